//! What is remembered of containers from one read to the next, in the journal as well: counters that were shown may not
//! fall, and averages may not start again, because another daemon shows them.
//!
//! A container is told by its init and when that started. What is remembered of one goes when nobody speaks of it any
//! more and another one needs the room.

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use hashbrown::HashMap;
use rustix::time::ClockId;
use serde::Serialize as _;

use super::journal::{Content, Journal, Kind, Record};
use crate::model::container::{Container, History};
use crate::model::lock::lock;
use crate::source::host::clock_ns;

/// So many are known before those that have ended are looked for.
const FEW: usize = 64;

/// The averages of a load are written down so often and no more: another daemon makes up for a second by itself.
const LOAD_EVERY_NS: u64 = 1_000_000_000;

/// The histories of containers.
#[derive(Debug)]
pub struct Memory {
    journal: Option<Arc<Journal>>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    histories: HashMap<[u64; 2], Entry>,
    /// Those of the daemon before us whose container nobody has asked for yet.
    waiting: Vec<Arc<History>>,
    /// Look for ended ones when there are so many.
    sweep_at: usize,
    /// Where a record is put together. Kept for its memory.
    text: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    history: Weak<History>,
    record: Option<Record>,
    /// What is in the record, as far as we have written it.
    written: Vec<u8>,
    /// When it was, nanoseconds of `CLOCK_MONOTONIC`.
    written_ns: u64,
}

impl Memory {
    /// One that is written to `journal`.
    #[must_use]
    pub fn new(journal: Arc<Journal>) -> Self {
        Self { journal: Some(journal), known: Mutex::default() }
    }

    /// One that ends with this process.
    #[must_use]
    pub fn none() -> Self {
        Self { journal: None, known: Mutex::default() }
    }

    /// The history of the container of this init, which may have been known to a daemon before us.
    #[must_use]
    pub fn history(&self, init: u32, started_ns: u64) -> Arc<History> {
        self.find([init.into(), started_ns], &mut self.lock())
    }

    /// Writes down what is known of the container now.
    pub fn remember(&self, container: &Container) {
        self.write(container, 0);
    }

    /// The same, unless that was done less than a second ago.
    pub fn remember_load(&self, container: &Container) {
        self.write(container, LOAD_EVERY_NS);
    }

    fn write(&self, container: &Container, unless_within_ns: u64) {
        let Some(journal) = &self.journal else { return };
        let now_ns = clock_ns(ClockId::MonotonicCoarse);
        // Under the lock: of two that are written at a time, the later must stay.
        let mut known = self.lock();
        let Known { histories, text, .. } = &mut *known;
        let key = [container.init.into(), container.started_ns];
        let Some(entry) = histories.get_mut(&key) else { return };
        let is_recent = now_ns.saturating_sub(entry.written_ns) < unless_within_ns;
        if is_recent && !entry.written.is_empty() {
            return;
        }
        text.clear();
        // By name, so that another version may leave out what it does not know.
        let mut writer = rmp_serde::Serializer::new(&mut *text).with_struct_map();
        if container.history.carrying().serialize(&mut writer).is_err() || *text == entry.written {
            return;
        }
        let is_written = match entry.record {
            Some(record) => journal.replace(record, Content::Bytes(text)),
            None => {
                entry.record = journal.put(Kind::Container, key, Content::Bytes(text));
                entry.record.is_some()
            }
        };
        if is_written {
            std::mem::swap(&mut entry.written, text);
        } else {
            entry.written.clear();
        }
        entry.written_ns = now_ns;
    }

    /// The inits that a daemon before us knew. The journal need not be ours yet.
    #[must_use]
    pub fn inits(&self) -> Vec<u32> {
        let kept = self.journal.iter().flat_map(|journal| journal.list(Kind::Container));
        kept.filter_map(|kept| u32::try_from(kept.key[0]).ok()).collect()
    }

    /// Goes on from what a daemon before us knew. The journal must be ours by now.
    ///
    /// Where the counting does not go on, what there was before it is more than that daemon knew.
    pub fn take_over(&self, counting_goes_on: bool) {
        let Some(journal) = &self.journal else { return };
        let mut known = self.lock();
        for kept in journal.list(Kind::Container) {
            let history = self.find(kept.key, &mut known);
            let carried = kept.bytes.and_then(|text| rmp_serde::from_slice(&text).ok());
            history.resume(carried.unwrap_or_default(), counting_goes_on);
            if let Some(entry) = known.histories.get_mut(&kept.key) {
                entry.record = Some(kept.record);
            }
            known.waiting.push(history);
        }
    }

    /// Forgets what is left of containers that have ended: all that live are known again by now.
    pub fn settle(&self) {
        let mut known = self.lock();
        known.waiting.clear();
        self.sweep(&mut known);
    }

    fn find(&self, key: [u64; 2], known: &mut Known) -> Arc<History> {
        if let Some(history) = known.histories.get(&key).and_then(|entry| entry.history.upgrade()) {
            return history;
        }
        if known.histories.len() >= known.sweep_at.max(FEW) {
            self.sweep(known);
            known.sweep_at = known.histories.len() * 2;
        }
        let history = Arc::default();
        let entry = known.histories.entry(key).or_insert_with(|| Entry {
            history: Weak::new(),
            record: None,
            written: Vec::new(),
            written_ns: 0,
        });
        entry.history = Arc::downgrade(&history);
        history
    }

    fn sweep(&self, known: &mut Known) {
        known.histories.retain(|_, entry| {
            let lives = entry.history.strong_count() > 0;
            if let (false, Some(record), Some(journal)) = (lives, entry.record, &self.journal) {
                journal.remove(record);
            }
            lives
        });
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::tests::journal;
    use super::*;
    use crate::model::container::{CgroupPaths, LoadHistory};
    use crate::model::monotonic::CpuTimes;

    fn container(memory: &Memory, init: u32) -> Container {
        let cgroups = CgroupPaths::default();
        let history = memory.history(init, 7);
        Container { init, started_ns: 7, pid_depth: 1, cgroups, history, ..Container::default() }
    }

    fn show(container: &Container) -> CpuTimes {
        let times = CpuTimes { user_ns: 5, ..CpuTimes::default() };
        container.history.cpu.lock().unwrap().advance(0, 100, times)
    }

    #[test]
    fn the_next_daemon_goes_on_where_the_last_one_was() {
        let journal = Arc::new(journal());
        let first = Memory::new(Arc::clone(&journal));
        let (kept, ended) = (container(&first, 1), container(&first, 2));
        let shown = show(&kept);
        let load = LoadHistory { sampled_ns: 12, ..LoadHistory::default() };
        *kept.history.load.lock().unwrap() = Some(load);
        first.remember(&kept);
        first.remember(&ended);

        let next = Memory::new(Arc::clone(&journal));
        assert_eq!(next.inits().len(), 2);
        let early = container(&next, 1);
        next.take_over(true);
        let text = |history: &History| rmp_serde::to_vec_named(&history.carrying()).unwrap();
        assert_eq!(text(&early.history), text(&kept.history));
        assert_eq!(show(&early), shown);
        next.settle();
        assert_eq!(next.inits(), [1], "the other has ended");
    }

    #[test]
    fn what_is_written_down_already_is_not_written_again() {
        let journal = Arc::new(journal());
        let memory = Memory::new(Arc::clone(&journal));
        let container = container(&memory, 1);
        let remember = || {
            memory.remember(&container);
            journal.list(Kind::Container)[0].bytes.clone().unwrap()
        };
        let first = remember();
        let record = journal.list(Kind::Container)[0].record;
        assert!(journal.replace(record, Content::Bytes(b"somebody else's")));
        assert_eq!(remember(), b"somebody else's", "nothing has changed since");
        show(&container);
        assert_ne!(remember(), first);
        assert_ne!(remember(), b"somebody else's");
    }

    #[test]
    fn a_load_is_written_down_once_in_a_second() {
        let journal = Arc::new(journal());
        let memory = Memory::new(Arc::clone(&journal));
        let container = container(&memory, 1);
        let record = || journal.list(Kind::Container)[0].bytes.clone().unwrap();
        memory.remember_load(&container);
        let first = record();
        let load = LoadHistory { sampled_ns: 12, ..LoadHistory::default() };
        *container.history.load() = Some(load);
        memory.remember_load(&container);
        assert_eq!(record(), first);
        memory.remember(&container);
        assert_ne!(record(), first, "who shows times waits for nothing");
    }

    #[test]
    fn what_has_ended_makes_room() {
        let journal = Arc::new(journal());
        let memory = Memory::new(Arc::clone(&journal));
        for init in 0..1_000 {
            memory.remember(&container(&memory, init));
        }
        assert!(memory.inits().len() <= 2 * FEW, "{}", memory.inits().len());
    }
}
