//! System calls that no crate of ours wraps: parts of bpf(2), membarrier(2), and malloc_trim(3).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
/// `enum bpf_attach_type`.
const BPF_TRACE_ITER: u32 = 28;
const BPF_F_TEST_RUN_ON_CPU: u32 = 1;
const MEMBARRIER_CMD_QUERY: libc::c_int = 0;
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// `union bpf_attr` for the map element commands.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// The beginning of `union bpf_attr` for `BPF_LINK_CREATE` and `BPF_ITER_CREATE`: a descriptor and what it is for.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    /// Address and length of what is iterated over, if it has to be said.
    of: u64,
    of_bytes: u32,
    padding: u32,
}

/// `union bpf_attr` for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
#[derive(Default)]
struct PinAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    fd: u32,
    bytes: u32,
    info: u64,
}

/// `union bpf_attr` for `BPF_RAW_TRACEPOINT_OPEN`.
#[repr(C)]
#[derive(Default)]
struct TracepointAttr {
    name: u64,
    fd: u32,
    padding: u32,
}

/// Attaches a program to the tracepoint it was loaded for, for as long as the descriptor is open somewhere.
pub(crate) fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attr = TracepointAttr { fd: fd_word(program), ..TracepointAttr::default() };
    make(BPF_RAW_TRACEPOINT_OPEN, &attr)
}

/// A file whose reading runs an iterator program over everything it iterates over.
pub(crate) fn iterate(program: BorrowedFd<'_>) -> io::Result<File> {
    let attr =
        LinkAttr { fd: fd_word(program), attach_type: BPF_TRACE_ITER, ..LinkAttr::default() };
    open_iterator(make(BPF_LINK_CREATE, &attr)?.as_fd())
}

fn open_iterator(link: BorrowedFd<'_>) -> io::Result<File> {
    let attr = LinkAttr { fd: fd_word(link), ..LinkAttr::default() };
    make(BPF_ITER_CREATE, &attr).map(File::from)
}

/// A file whose reading runs an iterator program for the one task `tid`. From 6.1.
pub(crate) fn iterate_task(program: BorrowedFd<'_>, tid: u32) -> io::Result<File> {
    // `union bpf_iter_link_info`: thread, process, pidfd.
    open_iterator(link_to(program, &[tid, 0, 0, 0])?.as_fd())
}

/// A link whose pin is a file that runs `program` for each element of `map` when it is read.
pub(crate) fn link_elements(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    link_to(program, &[fd_word(map), 0, 0, 0])
}

/// A link of an iterator program over what `of`, a `union bpf_iter_link_info`, says.
fn link_to(program: BorrowedFd<'_>, of: &[u32; 4]) -> io::Result<OwnedFd> {
    let attr = LinkAttr {
        fd: fd_word(program),
        attach_type: BPF_TRACE_ITER,
        of: std::ptr::from_ref(of) as u64,
        of_bytes: size_word::<[u32; 4]>(),
        ..LinkAttr::default()
    };
    make(BPF_LINK_CREATE, &attr)
}

/// Gives what is behind `fd` a name in a bpffs.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = PinAttr { path: path.as_ptr() as u64, fd: fd_word(fd), flags: 0 };
    // SAFETY: `attr` is of the size passed, and the path in it ends with a zero; both outlive the call, which only reads.
    check(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, std::ptr::from_ref(&attr), size_of::<PinAttr>())
    })
}

/// What has this name in a bpffs.
pub(crate) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    make(BPF_OBJ_GET, &PinAttr { path: path.as_ptr() as u64, ..PinAttr::default() })
}

/// The number of the program that a link runs.
pub(crate) fn program_of_link(link: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_link_info` begins with type, number, number of the program.
    info::<3>(link).map(|[_, _, program]| program)
}

/// The number of a program.
pub(crate) fn program_number(program: BorrowedFd<'_>) -> io::Result<u32> {
    // `struct bpf_prog_info` begins with type and number.
    info::<2>(program).map(|[_, number]| number)
}

/// The first words that the kernel says of an object.
fn info<const WORDS: usize>(fd: BorrowedFd<'_>) -> io::Result<[u32; WORDS]> {
    let mut words = [0; WORDS];
    let mut attr = InfoAttr {
        fd: fd_word(fd),
        bytes: size_word::<[u32; WORDS]>(),
        info: std::ptr::from_mut(&mut words) as u64,
    };
    // SAFETY: `attr` is of the size passed; the kernel writes no more of `words` than it is told they have.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            std::ptr::from_mut(&mut attr),
            size_of::<InfoAttr>(),
        )
    })?;
    Ok(words)
}

/// Sets `key` to `value` in a map whose keys and values are exactly these types.
pub(crate) fn update<K, T>(map: BorrowedFd<'_>, key: &K, value: &T) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: fd_word(map),
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        ..ElementAttr::default()
    };
    // SAFETY: the kernel reads one key and one value of the map's sizes, which the callers in this room pair with its types.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_ELEM,
            std::ptr::from_ref(&attr),
            size_of::<ElementAttr>(),
        )
    })
}

fn make<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is of the size passed and outlives the call, which only reads it.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    check(fd)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: all commands this is called with give a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a raw tracepoint program with `arguments`, on `cpu` if given, and returns what it returned.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    arguments: &[u64],
    cpu: Option<u32>,
) -> io::Result<u32> {
    let mut attr = TestRunAttr {
        prog_fd: fd_word(program),
        ctx_size_in: u32::try_from(size_of_val(arguments)).map_err(io::Error::other)?,
        ctx_in: arguments.as_ptr() as u64,
        flags: if cpu.is_some() { BPF_F_TEST_RUN_ON_CPU } else { 0 },
        cpu: cpu.unwrap_or(0),
        ..TestRunAttr::default()
    };
    // SAFETY: `attr` is of the size passed; the kernel reads `arguments`, which outlives the call,
    // and writes into `attr` only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            std::ptr::from_mut(&mut attr),
            size_of::<TestRunAttr>(),
        )
    };
    check(result)?;
    Ok(attr.retval)
}

/// Looks up `key` in a map whose values are exactly `T`.
pub(crate) fn lookup<K, T: Default + Copy>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<T>> {
    let mut value = T::default();
    let attr = ElementAttr {
        map_fd: fd_word(map),
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_mut(&mut value) as u64,
        ..ElementAttr::default()
    };
    // SAFETY: the kernel reads `key` and writes one value of the map, which the callers in this
    // room pair with its type (sizes are asserted in the ABI); both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_ELEM,
            std::ptr::from_ref(&attr),
            size_of::<ElementAttr>(),
        )
    };
    match check(result) {
        Ok(()) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Deletes `key`; one that is not there is fine.
pub(crate) fn delete<K>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: fd_word(map),
        key: std::ptr::from_ref(key) as u64,
        ..ElementAttr::default()
    };
    // SAFETY: the kernel reads `key`, of the map's key size as for `lookup`; it outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_DELETE_ELEM,
            std::ptr::from_ref(&attr),
            size_of::<ElementAttr>(),
        )
    };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Whether [`membarrier`] waits for all programs (not where CPUs run without ticks).
pub(crate) fn has_membarrier() -> bool {
    // SAFETY: a query takes no pointers.
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0) };
    commands > 0 && commands & libc::c_long::from(MEMBARRIER_CMD_GLOBAL) != 0
}

/// Waits until every eBPF program that runs now has ended: the command is the kernel's
/// `synchronize_rcu`.
pub(crate) fn membarrier() -> io::Result<()> {
    // SAFETY: the command takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) })
}

/// Gives freed memory back to the kernel: the allocator would keep what parsing the kernel's types took.
pub(crate) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn fd_word(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn size_word<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("a few words")
}
