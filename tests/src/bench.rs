//! What the programs of the benchmark, `stopwatch` and `crowd`, tell the one that starts them.

use serde::{Deserialize, Serialize};

/// How the time of one file was over many readings. All times in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// The median of each round. Rounds of the files of one run alternate: the n-th ones belong together.
    pub rounds_ns: Vec<u64>,
    /// The median of all readings.
    pub p50_ns: u64,
    /// What one in a hundred readings takes longer than.
    pub p99_ns: u64,
}

/// The first reading of a file by a process, and one when everything is warm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct First {
    pub first_ns: u64,
    /// The median of twenty readings that followed.
    pub warm_ns: u64,
}

/// How many readings in a second many readers made of one file, in each round.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    pub rounds_per_second: Vec<u64>,
}
