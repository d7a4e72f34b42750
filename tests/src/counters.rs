//! Counters of `/proc/stat`, from one reading to the next.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// What they were at the last look, by their line's name and column.
#[derive(Debug, Default)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Looks at the lines of `stat` whose name begins with one of `counted`.
    ///
    /// # Errors
    /// One of them is smaller than before, or is no number.
    pub fn look(&mut self, stat: &str, counted: &[&str]) -> Result<()> {
        for line in stat.lines().filter(|line| counted.iter().any(|name| line.starts_with(name))) {
            let mut words = line.split_whitespace();
            let name = words.next().context("a line has words")?;
            for (nth, word) in words.enumerate() {
                let now = word.parse()?;
                let before = self.0.insert(format!("{name} {nth}"), now).unwrap_or(now);
                ensure!(before <= now, "column {nth} of {name} fell from {before} to {now}");
            }
        }
        Ok(())
    }

    /// What column `nth` of the line `name` was; `None` if it was never seen.
    #[must_use]
    pub fn get(&self, name: &str, nth: usize) -> Option<u64> {
        self.0.get(&format!("{name} {nth}")).copied()
    }

    /// Whether nothing was ever counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
