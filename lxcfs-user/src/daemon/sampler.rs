//! The one timer: it exists for load averages without BPF, and sleeps while no container is known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::caller::Callers;
use crate::error::{Error, Result};
use crate::keep::memory::Memory;
use crate::model::load::PERIOD_NS;
use crate::source::cgroup::CgroupFiles;

const PERIOD: Duration = Duration::from_nanos(PERIOD_NS);

/// Starts the thread. A container is sampled from its first request on, whichever file that is for.
///
/// # Errors
/// No thread can be made.
pub(super) fn start(
    callers: Arc<Callers>,
    files: Arc<CgroupFiles>,
    memory: Arc<Memory>,
) -> Result<()> {
    let run = move || {
        callers.wake_at_first_container(std::thread::current());
        let mut due = Instant::now();
        loop {
            let containers = callers.containers();
            if containers.is_empty() {
                std::thread::park();
                due = Instant::now();
                continue;
            }
            for container in containers {
                match files.sample_load(&container) {
                    Ok(_) => memory.remember(&container),
                    Err(error) => {
                        tracing::debug!("sample the load of {}: {error}", container.init);
                    }
                }
            }
            due += PERIOD;
            sleep_until(due);
        }
    };
    std::thread::Builder::new()
        .name("sampler".to_owned())
        .spawn(run)
        .map(|_| ())
        .map_err(|error| Error::std("start", "thread sampler", &error))
}

/// Parking may end early, for no reason or because a container came.
fn sleep_until(due: Instant) {
    while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    {
        std::thread::park_timeout(left);
    }
}
