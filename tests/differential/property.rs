//! The test proper: many sequences, a failure shrunk and printed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::deviations;
use super::model::{Case, Disk};
use super::mounts::{Disks, Subject};
use super::random_layers;
use super::rng::Rng;
use super::run::{Source, run};
use super::shrink::Shrinker;
use super::stats;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Mount options of rovl that change how it serves, not what.
const OPTIONS: [&str; 7] = ["", "", "", "", "", ",writeback=0", ",timeout=0"];

/// One sequence; the text of its failure if it fails.
fn sequence(subject: &Subject, disks: &Disks, seed: u64, ops: usize) -> Option<String> {
    let mut rng = Rng::new(seed);
    let disk = match seed % 10 {
        0 => Disk::Xfs,
        1 => Disk::Tmpfs,
        2 => Disk::Mixed,
        _ => Disk::Ext4,
    };
    let mut case: Case = random_layers::layers(&mut rng, disk);
    case.options = OPTIONS[(seed / 10 % 7) as usize];
    let before = if rng.chance(40) { 40 } else { 0 };
    let failure = run(
        subject,
        disks,
        &mut case,
        Source::Random(&mut rng, before, ops),
    )
    .err()?;
    let known = std::env::var("ROVL_DIFF_IGNORE").unwrap_or_default();
    if known
        .split(',')
        .any(|part| !part.is_empty() && failure.class.contains(part))
    {
        println!("seed {seed} fails as known: {}", failure.class);
        return None;
    }
    println!(
        "seed {seed} fails ({}), shrinking:\n{}",
        failure.class, failure.text
    );
    let shrink_time = Duration::from_secs(number("ROVL_DIFF_SHRINK", 90));
    let mut shrinker = Shrinker::new(subject, disks, case, failure, shrink_time);
    shrinker.shrink();
    Some(format!(
        "seed {seed} fails: {} (shrunk in {} tries)\n{}\n\ncheck({:?});\n",
        shrinker.failure.class, shrinker.tries, shrinker.failure.text, shrinker.case
    ))
}

/// All sequences, several at a time. The texts of the failures.
fn sequences(subject: &Subject, disks: &Disks) -> Vec<String> {
    let (count, ops) = (
        number("ROVL_DIFF_SEQUENCES", 200),
        number("ROVL_DIFF_OPS", 500) as usize,
    );
    let (first, limit) = (
        number("ROVL_DIFF_SEED", 1),
        number("ROVL_DIFF_KEEP_GOING", 1) as usize,
    );
    let (next, failed, failures) = (
        AtomicU64::new(0),
        AtomicUsize::new(0),
        Mutex::new(Vec::new()),
    );
    std::thread::scope(|scope| {
        for _ in 0..number("ROVL_DIFF_JOBS", 2) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count || failed.load(Ordering::Relaxed) >= limit {
                        return;
                    }
                    if let Some(text) = sequence(subject, disks, first + i, ops) {
                        failed.fetch_add(1, Ordering::Relaxed);
                        println!("{text}");
                        failures.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    failures.into_inner().unwrap()
}

#[test]
fn random_operations_agree_with_the_kernel_and_a_plain_directory() {
    let subject = Subject::from_env();
    let disks = Disks::new(&[Disk::Ext4, Disk::Xfs, Disk::Tmpfs, Disk::Mixed]).unwrap();
    let start = Instant::now();
    let failures = sequences(&subject, &disks);
    println!(
        "{subject:?}: {:?}; deviations:\n{}",
        start.elapsed(),
        deviations::report()
    );
    println!("operations on the plain copy:\n{}", stats::report());
    drop(disks);
    assert!(
        failures.is_empty(),
        "{} sequences fail; the cases are above",
        failures.len()
    );
}
