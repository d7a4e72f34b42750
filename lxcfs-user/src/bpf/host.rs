//! Where the kernel keeps what readers on the host are shown of each CPU: the run queues, and idle time, for which it has had three
//! layouts.

use lxcfs_abi::field;

use super::btf::Btf;
use super::wanted::{Need, WANTED_HOST, global_value, want};

/// Values of read-only globals.
type Globals = Vec<(&'static str, u32)>;

/// The bit of `tick_sched.flags` that says that a CPU is idle: `TS_FLAG_IDLE_ACTIVE` (kernel/time/tick-sched.h), which is a macro and
/// not in the type information.
const IDLE_ACTIVE_BIT: u8 = 2;

/// What the programs are told of the run queues, and of idle time; nothing of what is not known.
pub(crate) fn globals(btf: &Btf<'_>) -> Globals {
    let queues = WANTED_HOST.iter().map(|wanted| {
        let member = btf.member(wanted.structure, wanted.path);
        global_value(wanted, member).ok().map(|value| (wanted.global, value))
    });
    let Some(mut globals) = queues.collect::<Option<Globals>>() else { return Vec::new() };
    globals.extend(of_cpustat(btf).or_else(|| of_tick(btf)).unwrap_or_default());
    globals
}

/// In new kernels (7.3): with the rest of CPU time.
fn of_cpustat(btf: &Btf<'_>) -> Option<Globals> {
    let structure = "kernel_cpustat";
    let times = btf.member(structure, "cpustat")?.offset_bits / 8;
    let active = value(btf, "F_IDLE_ACTIVE", structure, "idle_elapse", Need::Any)?;
    let nth = btf.enumerator("cpu_usage_stat", "CPUTIME_IDLE")?;
    let time = ("O_IDLE_TIME", times + 8 * nth);
    with_place(btf, structure, structure, vec![time, active, sequence(btf, structure)])
}

/// Before: with the tick that an idle CPU stops. Whether it is idle is a bit of its own, from 6.9 on one among others.
fn of_tick(btf: &Btf<'_>) -> Option<Globals> {
    let structure = "tick_sched";
    let active = match value(btf, "F_IDLE_ACTIVE", structure, "idle_active", Need::Any) {
        Some(active) => active,
        None => {
            let flags = btf.member(structure, "flags")?.offset_bits / 8;
            ("F_IDLE_ACTIVE", field::bit(u16::try_from(flags).ok()?, IDLE_ACTIVE_BIT))
        }
    };
    let time = value(btf, "O_IDLE_TIME", structure, "idle_sleeptime", Need::Bytes(8))?;
    with_place(btf, "tick_cpu_sched", structure, vec![time, active, sequence(btf, structure)])
}

/// Adds where the structure of a CPU lies, and since when that is idle.
fn with_place(
    btf: &Btf<'_>,
    variable: &str,
    structure: &'static str,
    mut globals: Globals,
) -> Option<Globals> {
    let behind_queue = btf.per_cpu(variable)?.wrapping_sub(btf.per_cpu("runqueues")?);
    globals.push(("IDLE_BEHIND_QUEUE", behind_queue));
    globals.push(value(btf, "O_IDLE_ENTRY", structure, "idle_entrytime", Need::Bytes(8))?);
    Some(globals)
}

/// Odd while idle time changes; before 6.4 the kernel itself reads it without.
fn sequence(btf: &Btf<'_>, structure: &'static str) -> (&'static str, u32) {
    let name = "F_IDLE_SEQUENCE";
    value(btf, name, structure, "idle_sleeptime_seq", Need::Any).unwrap_or((name, field::ABSENT))
}

fn value(
    btf: &Btf<'_>,
    global: &'static str,
    structure: &'static str,
    path: &'static str,
    need: Need,
) -> Option<(&'static str, u32)> {
    let wanted = want(global, structure, path, need);
    global_value(&wanted, btf.member(structure, path)).ok().map(|value| (global, value))
}

#[cfg(test)]
mod tests {
    use super::super::btf::tests::Builder;
    use super::*;

    const BYTES: u32 = 8;
    const HALF: u32 = 2;
    const WORD: u32 = 3;

    /// What every kernel has, and then its own idle time: types 1 to 3 are numbers of 1, 4 and 8 bytes.
    fn kernel(
        structure: &str,
        members: &[(&str, u32, u32)],
        variables: &[(&str, u32)],
    ) -> Vec<(&'static str, u32)> {
        let mut types = Builder::default();
        for bytes in [1, 4, 8] {
            types.number(bytes);
        }
        types.structure("sched_entity", &[("cfs_rq", WORD, 8 * BYTES)]);
        types.structure("task_struct", &[("se", 4, 16 * BYTES)]);
        types.structure("cfs_rq", &[("rq", WORD, 24 * BYTES)]);
        types.structure("rq", &[("nr_iowait", HALF, 0), ("online", HALF, 4 * BYTES)]);
        types.enumeration("cpu_usage_stat", "CPUTIME_IDLE", 5);
        types.structure(structure, members);
        types.per_cpu(10, variables);
        globals(&Btf::parse(&types.bytes()).unwrap())
    }

    fn value(globals: &[(&str, u32)], name: &str) -> Option<u32> {
        globals.iter().find(|(global, _)| *global == name).map(|(_, value)| *value)
    }

    #[test]
    fn idle_time_is_with_the_tick_or_with_the_rest_of_cpu_time() {
        let variables = [("tick_cpu_sched", 100), ("kernel_cpustat", 200), ("runqueues", 1_000)];
        let common = [("idle_entrytime", WORD, 16 * BYTES), ("idle_sleeptime", WORD, 24 * BYTES)];
        let old = [("idle_active", 1, 3 * BYTES), common[0], common[1]];
        let flags = [("flags", WORD, 8 * BYTES), common[0], common[1]];
        let (times, elapse) = (("cpustat", WORD, 32 * BYTES), ("idle_elapse", 1, BYTES));
        let sequence = ("idle_sleeptime_seq", HALF, 4 * BYTES);
        let new = [elapse, common[0], times, sequence];
        let cases: [(_, &[_], _, _, _, _); 3] = [
            ("tick_sched", &old, 24, field::whole(3, 1), field::ABSENT, 900),
            ("tick_sched", &flags, 24, field::bit(8, 2), field::ABSENT, 900),
            ("kernel_cpustat", &new, 72, field::whole(1, 1), field::whole(4, 4), 800),
        ];
        for (structure, members, time, active, sequence, before_queue) in cases {
            let globals = kernel(structure, members, &variables);
            let value = |name| value(&globals, name);
            assert_eq!((value("O_TASK_QUEUE"), value("O_QUEUE_RQ")), (Some(24), Some(24)));
            assert_eq!((value("O_IDLE_TIME"), value("O_IDLE_ENTRY")), (Some(time), Some(16)));
            assert_eq!(value("F_IDLE_ACTIVE"), Some(active));
            assert_eq!(value("F_IDLE_SEQUENCE"), Some(sequence));
            let behind = 0_u32.wrapping_sub(before_queue);
            assert_eq!(value("IDLE_BEHIND_QUEUE"), Some(behind));
        }
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let known = [("idle_sleeptime", WORD, 0), ("idle_entrytime", WORD, 64)];
        let variables = [("tick_cpu_sched", 100), ("runqueues", 1_000)];
        let globals = kernel("tick_sched", &known, &variables);
        assert_eq!(value(&globals, "O_RQ_NR_IOWAIT"), Some(0));
        assert_eq!(value(&globals, "IDLE_BEHIND_QUEUE"), None, "nothing says who is idle");
        let with_flags = [known[0], known[1], ("flags", WORD, 128)];
        let globals = kernel("tick_sched", &with_flags, &variables[..1]);
        assert_eq!(value(&globals, "IDLE_BEHIND_QUEUE"), None, "there is no run queue");
        assert_eq!(globals.len(), WANTED_HOST.len());
    }
}
