//! Loading and attaching, and a start without a race.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use aya::programs::{BtfTracePoint, Iter, Program, ProgramError, RawTracePoint};
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use lxcfs_abi::EXTRA_RECORDS;

use super::clock::Clock;
use super::kept::{self, Below, Kept, Reader};
use super::maps::{Maps, ctrl_word};
use super::report::{self, ToTracing};
use super::support::{Barrier, Plan, TRACEPOINTS};
use super::{Options, Unavailable, patch, sys};

/// The built object, committed beside its source and rebuilt by `cargo xtask build-ebpf`.
pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!("../../../lxcfs-ebpf/prebuilt/lxcfs-ebpf.o");

/// Programs that user space runs on demand.
const ON_DEMAND: [&str; 3] = ["peek", "flush", "fold"];

/// Everything that came out of loading.
pub(crate) struct Loaded {
    /// Keeps the programs counting: closing the last copy of a link detaches.
    pub(crate) kept: Kept,
    pub(crate) messages: Option<EbpfLogger<ToTracing>>,
    pub(crate) clock: Clock,
    pub(crate) below: Below,
}

/// Loads and attaches all programs, behind a closed gate. Only descriptors are kept: the object and the kernel's types,
/// parsed, are twenty megabytes.
pub(crate) fn load(plan: &Plan, options: &Options) -> Result<Loaded, Unavailable> {
    let mut object = OBJECT.to_vec();
    patch::walk_calls(&mut object, plan.walk);
    let mut ebpf = open(&object, plan, options)?;
    let btf = Btf::from_sys_fs().map_err(failed("read the kernel's types"))?;
    for name in TRACEPOINTS {
        let program: &mut BtfTracePoint = program(&mut ebpf, name)?;
        program.load(name, &btf).map_err(refused(name))?;
    }
    let seed: &mut Iter = program(&mut ebpf, "seed")?;
    seed.load("task", &btf).map_err(refused("seed"))?;
    for name in ON_DEMAND {
        let program: &mut RawTracePoint = program(&mut ebpf, name)?;
        program.load().map_err(refused(name))?;
    }
    let mut kept = Kept::default();
    for name in kept::MAPS {
        kept.push(name, map_fd(&ebpf, name).map_err(failed("open a map"))?);
    }
    let maps = Maps::new(&kept).map_err(failed("map the counters"))?;
    maps.generation().store(1, Ordering::SeqCst);
    let mut free = kept.free().map_err(failed("open the free slots"))?;
    // A stack: the lowest comes out first.
    for slot in (1..options.slots).rev() {
        free.push(slot, 0).map_err(failed("fill the free slots"))?;
    }
    let clock = set_clock(&ebpf, &maps, plan).map_err(failed("read the kernel's clock"))?;
    let open = |name| program_fd(&ebpf, name).map_err(failed("open a program"));
    for name in TRACEPOINTS {
        kept.push(name, sys::attach(open(name)?.as_fd()).map_err(failed("attach"))?);
    }
    for name in kept::PROGRAMS {
        kept.push(name, open(name)?);
    }
    let below = kept::READERS.map(|reader| {
        let is_planned = match reader.name {
            "uptime" => plan.below.clone().and(plan.uptime.clone()),
            _ => plan.below.clone(),
        };
        is_planned.map_err(|reason| reason.to_string())?;
        let programs = load_below(&mut ebpf, &btf, &reader).map_err(|error| error.to_string())?;
        for (name, program) in programs {
            kept.push(name, program);
        }
        Ok(())
    });
    let messages = report::reader(&mut ebpf);
    Ok(Loaded { kept, messages, clock, below })
}

/// Loads the programs of a file below FUSE.
fn load_below(
    ebpf: &mut Ebpf,
    btf: &Btf,
    reader: &Reader,
) -> Result<Vec<(&'static str, OwnedFd)>, Unavailable> {
    let told = |unavailable: &Unavailable| {
        if let Unavailable::Refused { verifier_log, .. } = unavailable {
            tracing::debug!("{verifier_log}");
        }
    };
    for &(name, over) in reader.iterators {
        let iterator: &mut Iter = program(ebpf, name)?;
        iterator.load(over, btf).map_err(refused(name)).inspect_err(told)?;
    }
    let on_demand: &mut RawTracePoint = program(ebpf, reader.on_demand)?;
    on_demand.load().map_err(refused(reader.on_demand)).inspect_err(told)?;
    let names = reader.iterators.iter().map(|&(name, _)| name).chain([reader.on_demand]);
    let open = |name| program_fd(ebpf, name).map(|program| (name, program));
    names.map(open).collect::<io::Result<_>>().map_err(failed("open a program"))
}

fn open(object: &[u8], plan: &Plan, options: &Options) -> Result<Ebpf, Unavailable> {
    let mut loader = EbpfLoader::new();
    loader.allow_unsupported_maps();
    for (name, value) in &plan.globals {
        loader.override_global(name, value, true);
    }
    loader.override_global("TICK_JIFFIES", &plan.tick_jiffies, true);
    loader.override_global("TICK_PHASE", &plan.tick_phase, true);
    let records = options.slots.saturating_mul(plan.possible_cpus + EXTRA_RECORDS);
    for name in ["SLOTS", "LOCKS", "IDLES", "SLOT_OF", "EARLIER", "FREE"] {
        loader.map_max_entries(name, options.slots);
    }
    loader.map_max_entries("RECORDS", records);
    loader.map_max_entries("CPUS", plan.possible_cpus);
    loader.load(object).map_err(failed("load the maps"))
}

/// Opens the gate, then counts the tasks that were there before.
///
/// Programs return at once until the gate is open. After the barrier no program runs that saw it
/// closed, so from there on every event is seen; the iterator then sets each word that no event has
/// set. Whichever comes second replaces the first, and counts follow the words.
pub(crate) fn start(
    seed: BorrowedFd<'_>,
    maps: &Maps,
    barrier: Barrier,
) -> Result<(), Unavailable> {
    maps.enabled().store(1, Ordering::SeqCst);
    match barrier {
        Barrier::Membarrier => sys::membarrier().map_err(failed("wait for the programs"))?,
        Barrier::Sleep => std::thread::sleep(Duration::from_secs(1)),
    }
    walk_tasks(seed)
}

/// Reads the task iterator once: each task's word is compared with the kernel.
pub(crate) fn walk_tasks(seed: BorrowedFd<'_>) -> Result<(), Unavailable> {
    let mut file = sys::iterate(seed).map_err(failed("attach the task iterator"))?;
    let mut nothing = [0; 64];
    loop {
        match file.read(&mut nothing) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read the task iterator")(error)),
        }
    }
}

/// Waits for a jiffy to begin, so that the clock is right to microseconds.
fn set_clock(ebpf: &Ebpf, maps: &Maps, plan: &Plan) -> io::Result<Clock> {
    let peek = program_fd(ebpf, "peek")?;
    let look = || -> io::Result<(u64, u64)> {
        sys::test_run(peek.as_fd(), &[0; 2], None)?;
        let read = |word: &std::sync::atomic::AtomicU64| word.load(Ordering::Relaxed);
        Ok((read(ctrl_word!(maps, peek_jiffies)), read(ctrl_word!(maps, peek_monotonic_ns))))
    };
    let (first, started_ns) = look()?;
    loop {
        let (jiffies, monotonic_ns) = look()?;
        // A jiffy that does not end within a second is a clock that stands still.
        if jiffies != first || monotonic_ns.saturating_sub(started_ns) > 1_000_000_000 {
            return Ok(Clock {
                monotonic_ns,
                jiffies,
                jiffy_ns: plan.jiffy_ns,
                tick_jiffies: plan.tick_jiffies,
                tick_phase: plan.tick_phase,
            });
        }
    }
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Unavailable>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let missing = || io::Error::new(io::ErrorKind::NotFound, name);
    let program = ebpf.program_mut(name).ok_or_else(missing).map_err(failed("find a program"))?;
    program.try_into().map_err(failed("find a program"))
}

fn map_fd(ebpf: &Ebpf, name: &'static str) -> io::Result<OwnedFd> {
    use aya::maps::Map;
    match ebpf.map(name) {
        Some(
            Map::Array(data)
            | Map::HashMap(data)
            | Map::Stack(data)
            | Map::RingBuf(data)
            | Map::Unsupported(data),
        ) => data.fd().as_fd().try_clone_to_owned(),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, name)),
    }
}

fn program_fd(ebpf: &Ebpf, name: &'static str) -> io::Result<OwnedFd> {
    let program =
        ebpf.program(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name))?;
    let fd = match program {
        Program::RawTracePoint(program) => program.fd(),
        Program::Iter(program) => program.fd(),
        Program::BtfTracePoint(program) => program.fd(),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, name)),
    };
    fd.map_err(io::Error::other)?.as_fd().try_clone_to_owned()
}

pub(crate) fn failed<E>(operation: &'static str) -> impl FnOnce(E) -> Unavailable
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| Unavailable::Failed { operation, source: Box::new(error) }
}

/// The verifier's log goes with the error; it fills pages, so its printing is the caller's choice.
fn refused(program: &'static str) -> impl FnOnce(ProgramError) -> Unavailable {
    move |error| match error {
        ProgramError::LoadError { io_error, verifier_log } => Unavailable::Refused {
            program,
            source: io_error,
            verifier_log: verifier_log.to_string(),
        },
        other => failed("load a program")(other),
    }
}
