//! When to start again, and when to give up.

use std::time::Duration;

/// The first delay; each further one is twice as long, up to [`LONGEST`].
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// A daemon that has served so long was fine.
const FINE: Duration = Duration::from_secs(10);

/// Crashes in a row that are not waited after.
const FORGIVEN: u32 = 3;

/// Ends in a row after which no further daemon is tried. With the delays between them that takes 10 seconds, and what
/// the daemons themselves take.
const MOST: u32 = 10;

/// As many ends as one counts that was waited for until patience ended: two of them are enough.
const WAITED_FOR: u32 = MOST / 2;

/// How a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Somebody ended it.
    Told,
    /// By itself, while it served.
    Crashed { after: Duration },
    /// Before it served.
    NeverServed,
    /// It neither served nor ended, and was killed.
    Hung,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    StartIn(Duration),
    /// After so many in a row.
    GiveUp(u32),
}

/// Ends in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// As many as they count.
    failures: u32,
    ends: u32,
}

impl Backoff {
    pub(super) fn after(&mut self, end: End) -> Next {
        let forgiven = match end {
            End::Told => {
                *self = Self::default();
                return Next::StartIn(Duration::ZERO);
            }
            End::Crashed { after } if after >= FINE => {
                *self = Self { failures: 1, ends: 0 };
                FORGIVEN
            }
            End::Crashed { .. } => {
                self.failures += 1;
                FORGIVEN
            }
            End::NeverServed => {
                self.failures += 1;
                0
            }
            End::Hung => {
                self.failures += WAITED_FOR;
                0
            }
        };
        self.ends += 1;
        if self.failures >= MOST {
            return Next::GiveUp(self.ends);
        }
        let Some(doublings) = self.failures.checked_sub(forgiven + 1) else {
            return Next::StartIn(Duration::ZERO);
        };
        Next::StartIn((SHORTEST * 2_u32.pow(doublings.min(16))).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_start_is_given_up_within_ten_seconds() {
        let mut backoff = Backoff::default();
        let mut waited = Duration::ZERO;
        while let Next::StartIn(delay) = backoff.after(End::NeverServed) {
            assert!(delay >= SHORTEST);
            waited += delay;
        }
        assert!(waited < Duration::from_secs(10), "{waited:?}");
        assert_eq!(backoff.failures, MOST);
    }

    #[test]
    fn what_hangs_at_its_start_is_given_up_the_second_time() {
        let mut backoff = Backoff::default();
        assert!(matches!(backoff.after(End::Hung), Next::StartIn(_)));
        assert!(matches!(backoff.after(End::Hung), Next::GiveUp(2)));
    }

    #[test]
    fn a_daemon_that_was_killed_is_started_at_once_however_often() {
        let mut backoff = Backoff::default();
        for _ in 0..1_000 {
            assert_eq!(backoff.after(End::Told), Next::StartIn(Duration::ZERO));
        }
    }

    #[test]
    fn crashes_are_waited_after_from_the_fourth_on() {
        let mut backoff = Backoff::default();
        let crash = End::Crashed { after: Duration::from_millis(3) };
        for _ in 0..3 {
            assert_eq!(backoff.after(crash), Next::StartIn(Duration::ZERO));
        }
        assert_eq!(backoff.after(crash), Next::StartIn(SHORTEST));
        let late = End::Crashed { after: FINE };
        assert_eq!(backoff.after(late), Next::StartIn(Duration::ZERO));
        let mut all = std::iter::repeat_with(|| backoff.after(crash));
        assert_eq!(all.find(|next| matches!(next, Next::GiveUp(_))), Some(Next::GiveUp(MOST)));
    }
}
