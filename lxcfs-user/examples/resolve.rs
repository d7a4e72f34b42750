//! Finds the container of a process many times over, as at every read: `resolve PID COUNT`. To be run under a counter of
//! instructions or a profiler: what is between two counts is the finding of a container that is known already.
//!
//! It says `ready` and begins when its input ends, so that a counter can attach itself in between.

use std::io::Write as _;

use lxcfs::caller::{Caller, InitLookup};
use lxcfs::daemon::Rooms;
use lxcfs::error::{Errno, Error, Result};
use lxcfs::files::Policy;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |what| {
        let number = arguments.next().and_then(|number| number.parse::<u32>().ok());
        number.ok_or(Error::because("read", "the command line", Errno::INVAL, what))
    };
    let (pid, count) = (number("no PID")?, number("no COUNT")?);
    let rooms = Rooms::open(Policy::default(), InitLookup::Ask)?;
    let begin = writeln!(std::io::stdout(), "ready")
        .and_then(|()| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    begin.map_err(|error| Error::std("await", "the end of the input", &error))?;
    for _ in 0..count {
        // Of a process of the host nothing is looked up, so a count of that would say nothing.
        let Caller::Container(container) = rooms.road.callers().find(pid)? else {
            let cause = "it is in no container";
            return Err(Error::because(
                "find the container of",
                pid.to_string(),
                Errno::SRCH,
                cause,
            ));
        };
        std::hint::black_box(&container);
    }
    Ok(())
}
