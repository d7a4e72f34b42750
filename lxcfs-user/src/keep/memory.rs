//! What is remembered of containers from one read to the next, in the journal as well: counters that were shown may not
//! fall, and averages may not start again, because another daemon shows them.
//!
//! A container is told by its init and when that started. What is remembered of one goes when nobody speaks of it any
//! more and another one needs the room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::journal::{Content, Journal, Kind, Record};
use crate::model::container::{Carried, Container, History};
use crate::model::lock::lock;

/// So many are known before those that have ended are looked for.
const FEW: usize = 64;

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
}

#[derive(Debug)]
struct Entry {
    history: Weak<History>,
    record: Option<Record>,
    /// What is in the record, as far as we have written it.
    written: Option<Carried>,
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
        let Some(journal) = &self.journal else { return };
        let mut known = self.lock();
        let key = [container.init.into(), container.started_ns];
        let Some(entry) = known.histories.get_mut(&key) else { return };
        // Under the lock: of two that are written at a time, the later must stay.
        if entry.written.as_ref().is_some_and(|written| container.history.is_still(written)) {
            return;
        }
        let carried = container.history.carried();
        let Ok(text) = serde_json::to_vec(&carried) else { return };
        let is_written = match entry.record {
            Some(record) => journal.replace(record, Content::Bytes(&text)),
            None => {
                entry.record = journal.put(Kind::Container, key, Content::Bytes(&text));
                entry.record.is_some()
            }
        };
        entry.written = is_written.then_some(carried);
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
            let carried = kept.bytes.and_then(|text| serde_json::from_slice(&text).ok());
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
            written: None,
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
        assert_eq!(early.history.carried(), kept.history.carried());
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
    fn what_has_ended_makes_room() {
        let journal = Arc::new(journal());
        let memory = Memory::new(Arc::clone(&journal));
        for init in 0..1_000 {
            memory.remember(&container(&memory, init));
        }
        assert!(memory.inits().len() <= 2 * FEW, "{}", memory.inits().len());
    }
}
