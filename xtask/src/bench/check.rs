//! The regression guard: ratios to the floor against those that are kept in the repository.
//!
//! A ratio of two times in one run depends little on the machine; a time does.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::results::Results;
use super::subjects::FLOOR;
use super::targets::{against, unusable};

/// So much worse than the stored ratio is a regression.
const TOLERANCE: f64 = 0.20;

fn stored_at() -> PathBuf {
    crate::root().join("xtask/bench-ratios.json")
}

/// Our time by file, as times the floor's.
fn ratios(results: &Results) -> BTreeMap<String, f64> {
    let files = results.cycle.keys();
    files.filter_map(|file| Some((file.clone(), against(results, file, FLOOR)?))).collect()
}

/// Keeps the ratios of a run.
pub(super) fn store(results: &Results) -> Result<()> {
    if let Some(why) = unusable(results) {
        anyhow::bail!("ratios of this run are not worth keeping: {why}");
    }
    let rounded: BTreeMap<_, _> = ratios(results)
        .into_iter()
        .map(|(file, ratio)| (file, (ratio * 100.0).round() / 100.0))
        .collect();
    let text = serde_json::to_string_pretty(&rounded)? + "\n";
    fs::write(stored_at(), text).context("write the stored ratios")
}

/// Fails where a ratio is worse than the stored one.
pub(super) fn check(results: &Results) -> Result<()> {
    let text = fs::read_to_string(stored_at()).context("read the stored ratios")?;
    let stored: BTreeMap<String, f64> = serde_json::from_str(&text)?;
    let now = ratios(results);
    let worse = regressions(&stored, &now);
    ensure!(worse.is_empty(), "slower than before:\n{}", worse.join("\n"));
    println!("{} files are no slower than they were", now.len());
    Ok(())
}

/// Where `now` is worse than `stored` by more than is borne.
pub(super) fn regressions(
    stored: &BTreeMap<String, f64>,
    now: &BTreeMap<String, f64>,
) -> Vec<String> {
    let worse = stored.iter().filter_map(|(file, before)| {
        let Some(now) = now.get(file) else {
            return Some(format!("{file} was not measured"));
        };
        let is_worse = *now > before * (1.0 + TOLERANCE);
        is_worse.then(|| format!("{file}: {now:.2}, and {before:.2} before"))
    });
    worse.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_is_borne_and_more_is_not() {
        let of = |ratio| BTreeMap::from([("proc/stat".to_owned(), ratio)]);
        assert!(regressions(&of(1.5), &of(1.79)).is_empty());
        assert_eq!(regressions(&of(1.5), &of(1.81)).len(), 1);
        assert_eq!(regressions(&of(1.5), &BTreeMap::new()).len(), 1);
    }
}
