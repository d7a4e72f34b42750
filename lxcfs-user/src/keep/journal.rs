//! The journal: memory that outlives the process, in blocks of 4 KiB.
//!
//! | blocks | what |
//! |---|---|
//! | 0 | the header: what the mount is, and what was agreed with the kernel |
//! | 1 | what each serving thread does now ([`super::workers`]) |
//! | then | records: what is kept of an open file or of a container, a key and the place of its content |
//! | the rest | contents |
//!
//! The process may be killed between any two stores. What is changed is changed by one store at the end: a record is
//! there when its kind is, and it has another content when its place says so.
//!
//! Another version of this layout, another size, or memory that can still be cut short is refused before anything in it
//! is used.

mod records;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, MemfdFlags, SealFlags};

use self::records::Free;
pub use self::records::{Content, Kept, Kind, Record};
use crate::bpf::mapping::Mapping;
use crate::error::{Errno, Error, Result};

/// "lxcfsjnl", read as a little-endian word.
const MAGIC: u64 = u64::from_le_bytes(*b"lxcfsjnl");

/// To be raised with every change of what lies where, or of what it means.
const VERSION: u64 = 2;

/// What the journal is called where descriptors have paths.
const NAME: &str = "lxcfs journal";

const BLOCK_WORDS: usize = 512;
/// Bytes in a block.
const BLOCK_BYTES: usize = BLOCK_WORDS * 8;
/// Words of one of the threads that answer requests, which `workers` gives their meaning.
pub(super) const WORKER_WORDS: usize = 8;
/// One block for each 128 records.
const RECORD_BLOCKS: usize = 512;
const FIRST_RECORD_BLOCK: usize = 2;
const FIRST_CONTENT_BLOCK: usize = FIRST_RECORD_BLOCK + RECORD_BLOCKS;
/// 64 MiB of contents. Memory is taken only where something was written.
const CONTENT_BLOCKS: usize = 16_384;
const BLOCKS: usize = FIRST_CONTENT_BLOCK + CONTENT_BLOCKS;

/// Words of the header.
mod word {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 1;
    pub(super) const BLOCKS: usize = 2;
    /// The device number of the mount: it is told by the kernel, and no two mounts have it at a time.
    pub(super) const DEVICE: usize = 3;
    pub(super) const MOUNTED_NS: usize = 4;
    pub(super) const NEXT_HANDLE: usize = 5;
    pub(super) const LATEST_REQUEST: usize = 6;
    /// Records at and above this were never used.
    pub(super) const RECORDS_USED: usize = 7;
    /// CLOCK_MONOTONIC of when a daemon began to leave; 0 if none has.
    pub(super) const LEFT_NS: usize = 8;
    /// A length in bytes, and behind it the bytes.
    pub(super) const INIT_REQUEST: usize = 16;
    pub(super) const INIT_REPLY: usize = 96;
    pub(super) const MOUNT_POINT: usize = 176;
    /// For the accounting, see [`super::Journal::note`].
    pub(super) const NOTES: usize = 448;
}

/// Words that other rooms may write what they like into.
pub const NOTES: usize = 16;

/// The longest text of each kind in the header, bytes.
const LONGEST_INIT: usize = 512;
const LONGEST_PATH: usize = 2_048;

/// The journal of one mount.
#[derive(Debug)]
pub struct Journal {
    memory: OwnedFd,
    blocks: Mapping<[u64; BLOCK_WORDS]>,
    /// What is free, known once the journal is ours; nothing before.
    free: Mutex<Free>,
}

impl Journal {
    /// An empty one. It becomes a mount's with [`Self::describe`].
    ///
    /// # Errors
    /// Out of memory or descriptors.
    pub fn create() -> Result<Self> {
        let failed = |errno| Error::io("make", NAME, errno);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("lxcfs-journal", flags).map_err(failed)?;
        rustix::fs::ftruncate(&memory, (BLOCKS * BLOCK_BYTES) as u64).map_err(failed)?;
        rustix::fs::fcntl_add_seals(&memory, seals()).map_err(failed)?;
        let journal = Self::map(memory)?;
        journal.word(word::VERSION).store(VERSION, Ordering::Relaxed);
        journal.word(word::BLOCKS).store(BLOCKS as u64, Ordering::Relaxed);
        journal.word(word::NEXT_HANDLE).store(1, Ordering::Relaxed);
        Ok(journal)
    }

    /// The one behind `memory`, if it is one and of our layout.
    ///
    /// # Errors
    /// It is not, which the message says.
    pub fn open(memory: OwnedFd) -> Result<Self> {
        let refused = |cause: String| Error::because("take over", NAME, Errno::INVAL, cause);
        let size = rustix::fs::fstat(&memory).map_err(|errno| Error::io("stat", NAME, errno))?;
        let expected = BLOCKS * BLOCK_BYTES;
        if usize::try_from(size.st_size) != Ok(expected) {
            return Err(refused(format!("it has {} bytes and not {expected}", size.st_size)));
        }
        let sealed = rustix::fs::fcntl_get_seals(&memory);
        if !sealed.is_ok_and(|sealed| sealed.contains(seals())) {
            return Err(refused("it is not sealed: somebody could cut it short".to_owned()));
        }
        let journal = Self::map(memory)?;
        let word = |at| journal.word(at).load(Ordering::Acquire);
        if word(word::MAGIC) != MAGIC {
            return Err(refused("it is none, or was never finished".to_owned()));
        }
        if word(word::VERSION) != VERSION {
            let cause = format!("its layout is version {}, ours {VERSION}", word(word::VERSION));
            return Err(
                refused(cause).hint("the mount can only be kept by a version that knows it")
            );
        }
        Ok(journal)
    }

    fn map(memory: OwnedFd) -> Result<Self> {
        let blocks = u32::try_from(BLOCKS).unwrap_or(u32::MAX);
        let blocks =
            Mapping::new(&memory, blocks).map_err(|error| Error::std("map", NAME, &error))?;
        Ok(Self { memory, blocks, free: Mutex::default() })
    }

    /// Says what the mount is; from here on the journal can be taken over.
    pub fn describe(&self, mount: &Described) {
        self.store_bytes(word::INIT_REQUEST, &mount.init_request, LONGEST_INIT);
        self.store_bytes(word::INIT_REPLY, &mount.init_reply, LONGEST_INIT);
        let point = mount.point.as_os_str().as_encoded_bytes();
        self.store_bytes(word::MOUNT_POINT, point, LONGEST_PATH);
        self.word(word::DEVICE).store(mount.device, Ordering::Relaxed);
        self.word(word::MOUNTED_NS).store(mount.mounted_ns, Ordering::Relaxed);
        self.word(word::MAGIC).store(MAGIC, Ordering::Release);
    }

    /// What the mount is.
    #[must_use]
    pub fn described(&self) -> Described {
        use std::os::unix::ffi::OsStringExt;
        let point = self.load_bytes(word::MOUNT_POINT, LONGEST_PATH);
        Described {
            point: PathBuf::from(std::ffi::OsString::from_vec(point)),
            device: self.word(word::DEVICE).load(Ordering::Relaxed),
            mounted_ns: self.word(word::MOUNTED_NS).load(Ordering::Relaxed),
            init_request: self.load_bytes(word::INIT_REQUEST, LONGEST_INIT),
            init_reply: self.load_bytes(word::INIT_REPLY, LONGEST_INIT),
        }
    }

    /// Makes the journal this process's, at once or not at all.
    ///
    /// # Errors
    /// Another process has it (`EBUSY`), or what is in it contradicts itself.
    pub fn claim(&self) -> Result<()> {
        match rustix::fs::fcntl_lock(&self.memory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let cause = "another lxcfs serves this mount";
                Err(Error::because("take over", NAME, Errno::BUSY, cause))
            }
            Err(errno) => Err(Error::io("lock", NAME, errno)),
            Ok(()) => self.find_free(),
        }
    }

    /// The same, once the process that has it lets go of it.
    ///
    /// # Errors
    /// What is in it contradicts itself.
    pub fn wait_and_claim(&self) -> Result<()> {
        rustix::fs::fcntl_lock(&self.memory, FlockOperation::LockExclusive)
            .map_err(|errno| Error::io("lock", NAME, errno))?;
        self.find_free()
    }

    /// Lets another process have it. We must not write to it any more.
    pub fn let_go(&self) {
        // If it fails, the lock goes with the process, a moment later.
        let _ = rustix::fs::fcntl_lock(&self.memory, FlockOperation::Unlock);
    }

    /// A number no open file of this mount ever had.
    pub fn next_handle(&self) -> u64 {
        self.word(word::NEXT_HANDLE).fetch_add(1, Ordering::Relaxed)
    }

    /// The number of a request that was read lately, and no later one has been for long.
    #[must_use]
    pub fn latest_request(&self) -> &AtomicU64 {
        self.word(word::LATEST_REQUEST)
    }

    /// When the daemon before us began to leave, nanoseconds of `CLOCK_MONOTONIC`; 0 if it did not.
    #[must_use]
    pub fn left_ns(&self) -> &AtomicU64 {
        self.word(word::LEFT_NS)
    }

    /// One of the [`NOTES`] words that another room keeps something in; 0 at first.
    #[must_use]
    pub fn note(&self, nth: usize) -> &AtomicU64 {
        self.word(word::NOTES + nth.min(NOTES - 1))
    }

    /// The word `nth` of what thread `thread` does now.
    #[must_use]
    pub(super) fn worker(&self, thread: usize, nth: usize) -> &AtomicU64 {
        self.word(BLOCK_WORDS + thread * WORKER_WORDS + nth)
    }

    /// The memory itself, to be kept by somebody else.
    #[must_use]
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        let block = u32::try_from(at / BLOCK_WORDS).unwrap_or(u32::MAX);
        self.blocks.word(block, at % BLOCK_WORDS * 8)
    }

    /// Writes a length and the bytes behind it, no more than `most`.
    fn store_bytes(&self, at: usize, bytes: &[u8], most: usize) {
        let bytes = &bytes[..bytes.len().min(most)];
        self.store_words(at + 1, bytes);
        self.word(at).store(bytes.len() as u64, Ordering::Release);
    }

    fn load_bytes(&self, at: usize, most: usize) -> Vec<u8> {
        let length = self.word(at).load(Ordering::Acquire);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(most);
        self.load_words(at + 1, length)
    }

    fn store_words(&self, at: usize, bytes: &[u8]) {
        for (nth, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(at + nth).store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }

    fn load_words(&self, at: usize, length: usize) -> Vec<u8> {
        let words = 0..length.div_ceil(8);
        let mut bytes: Vec<u8> = words
            .flat_map(|nth| self.word(at + nth).load(Ordering::Relaxed).to_le_bytes())
            .collect();
        bytes.truncate(length);
        bytes
    }
}

/// What a mount is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Where it was mounted.
    pub point: PathBuf,
    /// The kernel's device number of the mount.
    pub device: u64,
    /// When, nanoseconds since 1970.
    pub mounted_ns: u64,
    /// What the kernel asked of the first daemon, and what it was told: as bytes of the FUSE protocol.
    pub init_request: Vec<u8>,
    /// See `init_request`.
    pub init_reply: Vec<u8>,
}

impl Described {
    /// Whether it is what is mounted at `point` with the number `device`.
    ///
    /// # Errors
    /// It is another mount.
    pub fn is(&self, point: &Path, device: Option<u64>) -> Result<()> {
        if self.point == point && Some(self.device) == device {
            return Ok(());
        }
        let cause = format!("it belongs to another mount, at {}", self.point.display());
        Err(Error::because("take over", NAME, Errno::INVAL, cause))
    }
}

/// The size can never change, nor can that be changed.
fn seals() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One that is ours and described.
    pub(crate) fn journal() -> Journal {
        let journal = Journal::create().unwrap();
        journal.describe(&description());
        journal.find_free().unwrap();
        journal
    }

    fn description() -> Described {
        Described {
            point: "/var/lib/lxcfs".into(),
            device: 42,
            mounted_ns: 7,
            init_request: (0..104).collect(),
            init_reply: vec![9; 80],
        }
    }

    fn again(journal: &Journal) -> OwnedFd {
        journal.memory.try_clone().unwrap()
    }

    #[test]
    fn the_next_daemon_reads_what_the_last_one_wrote() {
        let first = journal();
        assert_eq!((first.next_handle(), first.next_handle()), (1, 2));
        first.note(3).store(11, Ordering::Relaxed);
        let next = Journal::open(again(&first)).unwrap();
        assert_eq!(next.described(), description());
        assert_eq!(next.next_handle(), 3);
        assert_eq!(next.note(3).load(Ordering::Relaxed), 11);
        assert!(next.described().is(Path::new("/var/lib/lxcfs"), Some(42)).is_ok());
        for (point, device) in [("/var/lib/lxcfs", Some(43)), ("/mnt", Some(42)), ("/mnt", None)] {
            let error = next.described().is(Path::new(point), device).unwrap_err();
            assert!(error.to_string().contains("another mount, at /var/lib/lxcfs"), "{error}");
        }
    }

    #[test]
    fn what_is_no_journal_is_refused_with_its_reason() {
        let refusal = |memory: OwnedFd| Journal::open(memory).unwrap_err().to_string();
        let plain = |size: u64| {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let memory = rustix::fs::memfd_create("x", flags).unwrap();
            rustix::fs::ftruncate(&memory, size).unwrap();
            memory
        };
        let whole = (BLOCKS * BLOCK_BYTES) as u64;
        assert!(refusal(plain(4_096)).contains("it has 4096 bytes and not"));
        assert!(refusal(plain(whole)).contains("not sealed"));
        assert!(refusal(again(&Journal::create().unwrap())).contains("never finished"));
        let other = journal();
        other.word(word::VERSION).store(9, Ordering::Relaxed);
        assert!(refusal(again(&other)).contains("version 9, ours 2"));
    }
}
