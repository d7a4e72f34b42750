//! `/proc/slabinfo`: the header alone (kernel: mm/slab_common.c).
//!
//! Slab caches belong to the machine. No kernel since 5.9 counts them by cgroup, so there is no line we could know, and
//! the host's lines tell a container what its neighbours do.

use super::View;
use crate::error::Result;
use crate::model::file::File;
use crate::source::{Text, parse};

/// How many lines describe the file before the first cache: version and column names.
const HEADER_LINES: usize = 2;

pub(super) fn gather(view: &View<'_>) -> Result<Text> {
    view.host(File::Slabinfo)
}

pub(super) fn render(host: &[u8], page: &mut Vec<u8>) {
    for line in parse::lines(host).take(HEADER_LINES).filter(|line| !line.is_empty()) {
        page.extend_from_slice(line);
        page.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use crate::files::testing::Case;
    use crate::model::file::File;
    use crate::source::fake::FakeSource;

    #[test]
    fn no_cache_of_the_host_is_shown() {
        let host = "slabinfo - version: 2.1\n# name <active_objs>\nbtrfs_delayed_node 0 0\n";
        let page = Case::new(FakeSource::default(), &[(File::Slabinfo, host)]).page(File::Slabinfo);
        assert_eq!(page.unwrap(), "slabinfo - version: 2.1\n# name <active_objs>\n");
    }
}
