//! Files below FUSE: links of the programs that print them, pinned in a bpffs, and what those have to be told.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use super::kept::FILES_BELOW;
use super::load::failed;
use super::maps::ctrl_word;
use super::support::TRACEPOINTS;
use super::{Accounting, Earlier, Slot, Unavailable, sys};

/// Holds what counts, so that a file says what is true for as long as somebody has it.
const COUNTING: &str = "counting";

/// Addresses of the kernel's own counts, in the order of `Ctrl::symbols`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbols([u64; 2]);

impl Symbols {
    const NAMES: [&str; 2] = ["avenrun", "nr_threads"];

    /// From the lines of `/proc/kallsyms`, `address type name`: megabytes that are not to be had in memory at once. `None`: one is
    /// missing, or no address is told.
    #[must_use]
    pub fn parse(kallsyms: impl Iterator<Item = impl AsRef<str>>) -> Option<Self> {
        let mut found = [0; 2];
        for line in kallsyms {
            let mut words = line.as_ref().split(' ');
            let (address, name) = (words.next()?, words.nth(1).unwrap_or_default());
            let place = Self::NAMES.iter().position(|known| *known == name);
            if let Some(place) = place.and_then(|nth| found.get_mut(nth)) {
                *place = u64::from_str_radix(address, 16).ok()?;
            }
        }
        (!found.contains(&0)).then_some(Self(found))
    }
}

impl Accounting {
    /// Whether the kernel can serve `file`.
    ///
    /// # Errors
    /// Why not.
    pub fn below(&self, file: &str) -> Result<(), &str> {
        let of = FILES_BELOW.iter().zip(&self.below).find(|(name, _)| **name == file);
        of.map_or(Err("there is no program for it"), |(_, below)| {
            below.as_ref().copied().map_err(String::as_str)
        })
    }

    /// Says since when everything is counted: nanoseconds of `CLOCK_BOOTTIME` and `CLOCK_MONOTONIC`.
    pub fn counts_since(&self, boottime_ns: u64, monotonic_ns: u64) {
        ctrl_word!(self.maps, loaded_boottime_ns).store(boottime_ns, Ordering::SeqCst);
        ctrl_word!(self.maps, loaded_monotonic_ns).store(monotonic_ns, Ordering::SeqCst);
    }

    /// Says which CPUs containers are shown, a number of [`view`](super::view).
    pub fn tell_view(&self, view: u32) {
        let offset = std::mem::offset_of!(lxcfs_abi::Ctrl, cpu_view);
        self.maps.ctrl.half(0, offset).store(view, Ordering::SeqCst);
    }

    /// Says what a container in a cgroup older than the programs was when they began.
    ///
    /// # Errors
    /// As many cgroups as there can be have been told of.
    pub fn was_earlier(&self, slot: Slot, earlier: Earlier) -> Result<(), Unavailable> {
        sys::update(self.maps.earlier.as_fd(), &slot.cgroup_id(), &earlier)
            .map_err(failed("keep what a container was before"))
    }

    /// Says where the kernel keeps what readers on the host are shown.
    pub fn tell_symbols(&self, symbols: Symbols) {
        let offset = std::mem::offset_of!(lxcfs_abi::Ctrl, symbols);
        // The first one last: it is what tells that all are there.
        for (nth, address) in symbols.0.into_iter().enumerate().rev() {
            self.maps.ctrl.word(0, offset + 8 * nth).store(address, Ordering::SeqCst);
        }
    }

    /// Says whether readers on the host may be told idle time as the programs make it.
    pub fn tell_host_idle(&self, is_right: bool) {
        let offset = std::mem::offset_of!(lxcfs_abi::Ctrl, tells_host_idle);
        self.maps.ctrl.half(0, offset).store(is_right.into(), Ordering::SeqCst);
    }

    /// Makes what counts stay for as long as `directory`, an empty bpffs, has it.
    ///
    /// # Errors
    /// It is no bpffs, or not ours to write to.
    pub fn pin_counting(&self, directory: &Path) -> Result<(), Unavailable> {
        let counting = directory.join(COUNTING);
        fs::create_dir(&counting).map_err(failed("make a directory in bpffs"))?;
        for name in TRACEPOINTS {
            let link = self.kept.get(name).map_err(failed("find a link"))?;
            sys::pin(link, &counting.join(name)).map_err(failed("pin a link"))?;
        }
        Ok(())
    }

    /// Makes `file` in `directory`.
    ///
    /// # Errors
    /// As for [`Self::pin_counting`], or there can be no such file.
    pub fn pin_below(&self, file: &str, directory: &Path) -> Result<(), Unavailable> {
        let link = self.link(file).map_err(failed("make a file of a program"))?;
        let path = directory.join(file);
        sys::pin(link.as_fd(), &path).map_err(failed("pin a file"))?;
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o444);
        fs::set_permissions(&path, readable).map_err(failed("let everybody read a file"))
    }

    fn link(&self, file: &str) -> std::io::Result<OwnedFd> {
        sys::link_elements(self.kept.get(file)?, self.kept.get("CTRL")?)
    }

    /// Whether `file` in `directory` is of these programs.
    #[must_use]
    pub fn is_below(&self, file: &str, directory: &Path) -> bool {
        let same = || -> std::io::Result<bool> {
            let link = sys::pinned(&directory.join(file))?;
            Ok(sys::program_of_link(link.as_fd())? == sys::program_number(self.kept.get(file)?)?)
        };
        same().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_names() {
        let text = "ffffffff81000000 T _text\n\
            ffffffff82000010 B avenrun\n\
            ffffffff82000020 D nr_threads\n\
            ffffffffc0000000 t avenrun_of_a_module\t[module]\n";
        let found = [0xffff_ffff_8200_0010, 0xffff_ffff_8200_0020];
        assert_eq!(Symbols::parse(text.lines()), Some(Symbols(found)));
    }

    #[test]
    fn an_address_that_is_not_told_is_none() {
        let hidden = "0000000000000000 B avenrun\n0000000000000000 D nr_threads\n";
        for text in ["", "x", "\n", hidden, "ffffffff82000010 B avenrun\n"] {
            assert_eq!(Symbols::parse(text.lines()), None, "{text}");
        }
    }
}
