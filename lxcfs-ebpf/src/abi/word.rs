//! Words that are changed atomically: a task's state, and a span of time that may be running.

/// Set once the task has been looked at; what the word says is counted.
pub const SEEN: u64 = 1 << 32;
/// Runnable, delayed dequeue excluded, bandwidth throttling included.
pub const RUN: u64 = 1 << 33;
/// Blocked and contributing to the load.
pub const UNINTERRUPTIBLE: u64 = 1 << 34;
/// Blocked in I/O.
pub const IOWAIT: u64 = 1 << 35;
/// Alive: from its first wake-up to its last switch.
pub const ALIVE: u64 = 1 << 36;

const CPU_SHIFT: u32 = 40;

/// Flags that say what is counted.
pub const STATE: u64 = RUN | UNINTERRUPTIBLE | IOWAIT | ALIVE;

/// The slot in which a task is counted.
#[must_use]
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low half is the slot")]
pub const fn slot(word: u64) -> u32 {
    word as u32
}

/// The CPU on which a task in I/O wait blocked; 0 for others.
#[must_use]
#[inline(always)]
pub const fn cpu(word: u64) -> u32 {
    (word >> CPU_SHIFT) as u32
}

/// The part of a word that names the CPU.
#[must_use]
#[inline(always)]
pub const fn cpu_bits(cpu: u32) -> u64 {
    (cpu as u64) << CPU_SHIFT
}

/// A word of `slot` with `flags`, and `cpu` if it is in I/O wait.
#[must_use]
#[inline(always)]
pub const fn make(slot: u32, flags: u64, cpu: u32) -> u64 {
    let place = if flags & IOWAIT != 0 { cpu_bits(cpu) } else { 0 };
    slot as u64 | flags | place
}

/// Change of one flag from `old` to `new`: -1, 0 or 1.
#[must_use]
#[inline(always)]
pub const fn change(old: u64, new: u64, flag: u64) -> i32 {
    (new & flag != 0) as i32 - (old & flag != 0) as i32
}

/// Accumulated time in one word, so that a reader needs one load: at rest the total, while running
/// [`span::RUNNING`] and start minus total (then `now - value` is the total).
pub mod span {
    pub const RUNNING: u64 = 1 << 63;

    /// Starts a span at `now`; a running one stays.
    #[must_use]
    #[inline(always)]
    pub const fn start(word: u64, now: u64) -> u64 {
        if word & RUNNING != 0 {
            return word;
        }
        RUNNING | (now.wrapping_sub(word) & !RUNNING)
    }

    /// The total at `now`. A `now` read slightly before the start does not go below zero.
    #[must_use]
    #[inline(always)]
    pub const fn total(word: u64, now: u64) -> u64 {
        if word & RUNNING == 0 {
            return word;
        }
        let total = now.wrapping_sub(word) & !RUNNING;
        if total >> 62 != 0 { 0 } else { total }
    }

    /// Ends a span at `now`.
    #[must_use]
    #[inline(always)]
    pub const fn stop(word: u64, now: u64) -> u64 {
        total(word, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_back_its_parts() {
        let word = make(17, SEEN | ALIVE | IOWAIT, 513);
        assert_eq!((slot(word), cpu(word)), (17, 513));
        assert_eq!(word & STATE, ALIVE | IOWAIT);
        assert_eq!(cpu(make(17, SEEN | RUN, 513)), 0);
    }

    #[test]
    fn a_flag_changes_by_one() {
        assert_eq!(change(0, RUN, RUN), 1);
        assert_eq!(change(RUN, 0, RUN), -1);
        assert_eq!(change(RUN, RUN | IOWAIT, RUN), 0);
    }

    #[test]
    fn a_span_accumulates() {
        let mut word = 0;
        assert_eq!(span::total(word, 1_000), 0);
        word = span::start(word, 1_000);
        assert_eq!(span::total(word, 1_300), 300);
        assert_eq!(span::start(word, 1_100), word);
        word = span::stop(word, 1_300);
        assert_eq!((word, span::total(word, 9_999)), (300, 300));
        word = span::start(word, 2_000);
        assert_eq!(span::total(word, 2_050), 350);
        assert_eq!(span::total(word, 1_600), 0, "a clock read before the start");
    }
}
