//! `/proc/loadavg`: three averages, running over all threads, newest pid (kernel: fs/proc/loadavg.c).

use super::digits::{push, push_fraction};
use super::{View, required};
use crate::error::Result;
use crate::source::Load;

pub(super) fn gather(view: &View<'_>) -> Result<Load> {
    required(view.source.load(view.container)?, "load")
}

pub(super) fn render(load: &Load, page: &mut Vec<u8>) {
    for (whole, hundredths) in load.average.hundredths() {
        push_fraction(page, whole, hundredths);
        page.push(b' ');
    }
    // The reader itself is running, and one of the threads: a sample taken before it started may not know it.
    let running = load.tasks.running.max(1);
    let threads = load.tasks.threads.max(running);
    for (number, end) in [(running, b'/'), (threads, b' '), (load.tasks.last_pid, b'\n')] {
        push(page, number.into());
        page.push(end);
    }
}

#[cfg(test)]
mod tests {
    use crate::files::testing::Case;
    use crate::model::container::Tasks;
    use crate::model::file::File;
    use crate::model::load::LoadAverage;
    use crate::source::Load;
    use crate::source::fake::FakeSource;

    fn case(average: LoadAverage, tasks: Tasks) -> Case {
        let load = Some(Load { average, tasks, ..Load::default() });
        Case::new(FakeSource { load, ..FakeSource::default() }, &[])
    }

    #[test]
    fn three_tasks_for_a_minute() {
        let tasks = Tasks { running: 3, blocked: 1, waiting_for_io: 1, threads: 12, last_pid: 77 };
        case(LoadAverage::default().advance(3, 12), tasks)
            .golden(File::Loadavg, "loadavg/three_busy");
    }

    #[test]
    fn the_reader_is_running() {
        let fresh = case(LoadAverage::default(), Tasks::default());
        assert_eq!(fresh.page(File::Loadavg).unwrap(), "0.00 0.00 0.00 1/1 0\n");
    }
}
