//! The `newc` cpio format the kernel unpacks as its first root filesystem.
//!
//! Several archives may stand behind one another in one initramfs and a later entry replaces an
//! earlier one of the same name; so a large archive is cached and a small one holds what is new.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// The directories that are links into `/usr` on a merged system.
pub(crate) const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// An archive being written.
#[derive(Debug)]
pub(crate) struct Archive<W> {
    out: W,
    entries: u32,
    directories: BTreeSet<PathBuf>,
}

/// The fixed part of an entry.
#[derive(Debug, Clone, Copy)]
struct Header {
    mode: u32,
    size_bytes: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    pub(crate) const fn new(out: W) -> Self {
        Self { out, entries: 0, directories: BTreeSet::new() }
    }

    /// A directory and its parents; one that is there already stays as it is.
    pub(crate) fn directory(&mut self, path: &Path, permissions: u32) -> io::Result<()> {
        let mut path = inside(path);
        if MERGED.iter().any(|merged| path == Path::new(merged)) {
            path = Path::new("usr").join(path);
        }
        self.parents(&path)?;
        if path.as_os_str().is_empty() || !self.directories.insert(path.clone()) {
            return Ok(());
        }
        self.entry(&path, Header::of(DIRECTORY | permissions), &mut io::empty())
    }

    /// A regular file of exactly `size_bytes` bytes.
    pub(crate) fn file(
        &mut self,
        path: &Path,
        permissions: u32,
        size_bytes: u64,
        content: &mut impl Read,
    ) -> io::Result<()> {
        let path = inside(path);
        self.parents(&path)?;
        let size_bytes = u32::try_from(size_bytes)
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "cpio holds files < 4 GiB"))?;
        let header = Header { size_bytes, ..Header::of(REGULAR | permissions) };
        self.entry(&path, header, content)
    }

    /// A regular file from memory.
    pub(crate) fn text(
        &mut self,
        path: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
    ) -> io::Result<()> {
        let mut content = content.as_ref();
        self.file(path.as_ref(), 0o644, content.len() as u64, &mut content)
    }

    pub(crate) fn symlink(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let path = inside(path);
        self.parents(&path)?;
        let mut target = target.as_os_str().as_encoded_bytes();
        let size_bytes = u32::try_from(target.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "symlink target too long"))?;
        let header = Header { size_bytes, ..Header::of(SYMLINK | 0o777) };
        self.entry(&path, header, &mut target)
    }

    pub(crate) fn character_device(&mut self, path: &Path, device: (u32, u32)) -> io::Result<()> {
        let path = inside(path);
        self.parents(&path)?;
        let header = Header { device, ..Header::of(CHARACTER | 0o600) };
        self.entry(&path, header, &mut io::empty())
    }

    /// The closing entry; what was written so far is an archive only now.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry(Path::new("TRAILER!!!"), Header::of(0), &mut io::empty())?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.directory(parent, 0o755),
            _ => Ok(()),
        }
    }

    fn entry(&mut self, path: &Path, header: Header, content: &mut impl Read) -> io::Result<()> {
        let Header { mode, size_bytes, device: (major, minor) } = header;
        let name = path.as_os_str().as_encoded_bytes();
        self.entries += 1;
        write!(self.out, "070701{:08x}{mode:08x}", self.entries)?;
        // Owner, group, one link, no time: the same input gives the same bytes.
        write!(self.out, "{:08x}{:08x}{:08x}{:08x}{size_bytes:08x}", 0, 0, 1, 0)?;
        write!(self.out, "{:08x}{:08x}{major:08x}{minor:08x}", 0, 0)?;
        write!(self.out, "{:08x}{:08x}", name.len() + 1, 0)?;
        self.out.write_all(name)?;
        self.out.write_all(b"\0")?;
        self.pad(110 + name.len() as u64 + 1)?;
        let size_bytes = u64::from(size_bytes);
        let copied = io::copy(&mut content.take(size_bytes), &mut self.out)?;
        if copied != size_bytes {
            let what = format!("{}: shrank while it was read", path.display());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        self.pad(size_bytes)
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        for _ in written..written.next_multiple_of(4) {
            self.out.write_all(b"\0")?;
        }
        Ok(())
    }
}

impl Header {
    const fn of(mode: u32) -> Self {
        Self { mode, size_bytes: 0, device: (0, 0) }
    }
}

/// The name of `path` in the archive: no leading slash, no dots, and under `/usr` where the
/// top directory is a link to there.
fn inside(path: &Path) -> PathBuf {
    let mut parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let mut inside = PathBuf::new();
    if let Some(first) = parts.next() {
        // The bare name is the link itself.
        let rest: PathBuf = parts.collect();
        if !rest.as_os_str().is_empty() && MERGED.iter().any(|merged| first == *merged) {
            inside.push("usr");
        }
        inside.push(first);
        inside.push(rest);
    }
    inside.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fill: impl FnOnce(&mut Archive<Vec<u8>>)) -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        fill(&mut archive);
        archive.finish().unwrap()
    }

    /// Names, modes and contents, read back by the format's rules.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let digits = &bytes[6 + 8 * index..14 + 8 * index];
                usize::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let data = (110 + name_size).next_multiple_of(4);
            let content = bytes[data..data + size].to_vec();
            bytes = &bytes[(data + size).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, u32::try_from(mode).unwrap(), content));
        }
    }

    #[test]
    fn a_file_brings_its_parents_once() {
        let bytes = written(|archive| {
            archive.text("/a/b/one", "1").unwrap();
            archive.text("/a/b/two", "22222").unwrap();
        });
        let names: Vec<String> = read(&bytes).into_iter().map(|entry| entry.0).collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two"]);
    }

    #[test]
    fn modes_and_contents_come_back() {
        let bytes = written(|archive| {
            archive.file(Path::new("x"), 0o755, 3, &mut &b"abc"[..]).unwrap();
            archive.symlink(Path::new("y"), Path::new("/x")).unwrap();
        });
        let expected = [
            ("x".to_owned(), 0o100_755, b"abc".to_vec()),
            ("y".to_owned(), 0o120_777, b"/x".to_vec()),
        ];
        assert_eq!(read(&bytes), expected);
    }

    #[test]
    fn a_short_file_is_an_error() {
        let mut archive = Archive::new(Vec::new());
        let error = archive.file(Path::new("x"), 0o644, 4, &mut &b"abc"[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn top_directories_go_under_usr_but_their_links_stay() {
        assert_eq!(inside(Path::new("/lib64/ld.so")), Path::new("usr/lib64/ld.so"));
        assert_eq!(inside(Path::new("/lib")), Path::new("lib"));
        assert_eq!(inside(Path::new("/./opt/bin/x")), Path::new("opt/bin/x"));
    }

    #[test]
    fn a_directory_never_replaces_a_link() {
        let bytes = written(|archive| archive.directory(Path::new("/lib"), 0o755).unwrap());
        let names: Vec<String> = read(&bytes).into_iter().map(|entry| entry.0).collect();
        assert_eq!(names, ["usr", "usr/lib"]);
    }

    #[test]
    fn every_archive_is_a_multiple_of_four_long() {
        for name in ["a", "ab", "abc", "abcd"] {
            let bytes = written(|archive| archive.text(name, name).unwrap());
            assert_eq!(bytes.len() % 4, 0);
        }
    }
}
