//! What the random operations did, so that a run that tests nothing is noticed.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::outcome::{Outcome, errno_name};
use super::run::Step;

static OUTCOMES: Mutex<BTreeMap<(String, String), usize>> = Mutex::new(BTreeMap::new());

/// Counts the outcomes on the plain copy.
pub fn add(log: &[Step]) {
    let Ok(mut counts) = OUTCOMES.lock() else {
        return;
    };
    for Step { op, outcome, .. } in log {
        let name = op.name();
        let result = match outcome {
            Outcome::Failed(errno) => errno_name(*errno),
            Outcome::Skipped => "skipped".into(),
            Outcome::MustFail => "refused".into(),
            Outcome::Broken(_) => "broken".into(),
            _ => "ok".into(),
        };
        *counts.entry((name, result)).or_default() += 1;
    }
}

/// One line for each kind of operation.
pub fn report() -> String {
    let Ok(counts) = OUTCOMES.lock() else {
        return String::new();
    };
    let mut lines: BTreeMap<&str, String> = BTreeMap::new();
    for ((name, result), n) in counts.iter() {
        lines
            .entry(name)
            .or_default()
            .push_str(&format!(" {result} {n}"));
    }
    lines
        .iter()
        .map(|(name, line)| format!("  {name}:{line}\n"))
        .collect()
}
