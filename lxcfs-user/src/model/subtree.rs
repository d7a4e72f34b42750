//! What a reader sees of a cgroup hierarchy: the way down to its own cgroup, that cgroup, and everything below it.
//!
//! Paths begin at the top of what is mounted and have no slash at either end; the top itself is the empty path.

/// What a reader sees of one directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight<'a> {
    /// Everything in it.
    Everything,
    /// The directory of this name, which leads to the reader's own cgroup, and nothing else.
    Only(&'a [u8]),
    /// That it is there.
    Nothing,
}

impl<'a> Sight<'a> {
    /// Of the directory at `path`, for a reader whose cgroup is at `own`. `None`: the directory is not there for it.
    ///
    /// A reader at the top has no cgroup of its own. Everything is below it, and belongs to others.
    #[must_use]
    pub fn of(path: &[u8], own: &'a [u8]) -> Option<Self> {
        if own.is_empty() {
            return path.is_empty().then_some(Self::Nothing);
        }
        if below(own, path).is_some() {
            return Some(Self::Everything);
        }
        let way = below(path, own)?;
        way.split(|&byte| byte == b'/').next().map(Self::Only)
    }
}

/// `path` as seen from `top`: what of it is below. `None`: it is neither `top` nor below it.
#[must_use]
pub fn below<'a>(top: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    match path.strip_prefix(top)? {
        rest if top.is_empty() || rest.is_empty() => Some(rest),
        rest => rest.strip_prefix(b"/"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sight<'a>(path: &str, own: &'a str) -> Option<Sight<'a>> {
        Sight::of(path.as_bytes(), own.as_bytes())
    }

    #[test]
    fn the_way_down_then_everything() {
        let own = "lxc/c 1";
        assert_eq!(sight("", own), Some(Sight::Only(b"lxc")));
        assert_eq!(sight("lxc", own), Some(Sight::Only(b"c 1")));
        assert_eq!(sight("lxc/c 1", own), Some(Sight::Everything));
        assert_eq!(sight("lxc/c 1/a/b", own), Some(Sight::Everything));
    }

    #[test]
    fn no_sibling_and_none_whose_name_begins_alike() {
        for path in ["lxc/c2", "lxc/c", "lxc/c 11", "lxc/c 1 (deleted)", "lx", "lxcc", "lxc/c2/a"] {
            assert_eq!(sight(path, "lxc/c 1"), None, "{path}");
        }
        assert_eq!(sight("lxc", "../lxc"), None, "a cgroup outside of what is mounted");
    }

    #[test]
    fn who_has_no_cgroup_of_its_own_sees_none() {
        assert_eq!(sight("", ""), Some(Sight::Nothing));
        assert_eq!(sight("lxc", ""), None);
    }

    proptest! {
        #[test]
        fn all_that_is_seen_can_be_reached(path in "[ab/]{0,9}", own in "[ab]{1,3}(/[ab]{1,2}){0,3}") {
            // What is seen has a parent that is seen, and is in that parent's listing.
            if let (Some(_), Some(slash)) = (sight(&path, &own), path.rfind('/')) {
                let name = &path[slash + 1..];
                match sight(&path[..slash], &own) {
                    Some(Sight::Everything) => {}
                    Some(Sight::Only(next)) => prop_assert_eq!(next, name.as_bytes()),
                    hidden => prop_assert!(false, "{:?}", hidden),
                }
            }
        }
    }
}
