//! The test proper: many sequences, a failure shrunk and printed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::deviations;
use super::judge::Failure;
use super::model::{Case, Disk};
use super::mounts::{Disks, Subject};
use super::parity;
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
const OPTIONS: [&str; 7] = ["", "", "", "", "", ",writeback=1", ",timeout=0"];

type Random = fn(&Subject, &Disks, u64, usize) -> Option<(Case, Failure)>;

/// A property: random cases, and the same cases again, smaller.
struct Property {
    /// Makes up and runs the case of a seed; the case and its failure if it fails.
    random: Random,
    again: fn(&Subject, &Disks, &mut Case) -> Result<(), Failure>,
}

const AGREES: Property = Property {
    random: agrees,
    again: |subject, disks, case| run(subject, disks, case, Source::Fixed),
};

const PARITY: Property = Property {
    random: parity::sequence,
    again: |subject, disks, case| parity::run(subject, disks, case, None),
};

/// A random case on three trees.
fn agrees(subject: &Subject, disks: &Disks, seed: u64, ops: usize) -> Option<(Case, Failure)> {
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
    let source = Source::Random(&mut rng, before, ops);
    let failure = run(subject, disks, &mut case, source).err()?;
    Some((case, failure))
}

/// One sequence; the text of its failure if it fails.
fn sequence(property: &Property, subject: &Subject, disks: &Disks, seed: u64) -> Option<String> {
    let ops = number("ROVL_DIFF_OPS", 500) as usize;
    let (case, failure) = (property.random)(subject, disks, seed, ops)?;
    let known = std::env::var("ROVL_DIFF_IGNORE").unwrap_or_default();
    let is_known = |part: &str| !part.is_empty() && failure.class.contains(part);
    if known.split(',').any(is_known) {
        println!("seed {seed} fails as known: {}", failure.class);
        return None;
    }
    println!(
        "seed {seed} fails ({}), shrinking:\n{}",
        failure.class, failure.text
    );
    let time = Duration::from_secs(number("ROVL_DIFF_SHRINK", 90));
    let again = |case: &mut Case| (property.again)(subject, disks, case);
    let mut shrinker = Shrinker::new(&again, case, failure, time);
    shrinker.shrink();
    Some(format!(
        "seed {seed} fails: {} (shrunk in {} tries)\n{}\n\ncheck({:?});\n",
        shrinker.failure.class, shrinker.tries, shrinker.failure.text, shrinker.case
    ))
}

/// Sequences, several at a time. The texts of the failures.
fn sequences(property: &Property, subject: &Subject, disks: &Disks, count: u64) -> Vec<String> {
    let first = number("ROVL_DIFF_SEED", 1);
    let limit = number("ROVL_DIFF_KEEP_GOING", 1) as usize;
    let (next, failed) = (AtomicU64::new(0), AtomicUsize::new(0));
    let failures = Mutex::new(Vec::new());
    let worker = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count || failed.load(Ordering::Relaxed) >= limit {
                return;
            }
            if let Some(text) = sequence(property, subject, disks, first + i) {
                failed.fetch_add(1, Ordering::Relaxed);
                println!("{text}");
                failures.lock().unwrap().push(text);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..number("ROVL_DIFF_JOBS", 2) {
            scope.spawn(worker);
        }
    });
    failures.into_inner().unwrap()
}

/// Runs `count` sequences and fails if one does.
fn hold(property: &Property, disks: &[Disk], count: u64) {
    let subject = Subject::from_env();
    let disks = Disks::new(disks).unwrap();
    let start = Instant::now();
    let failures = sequences(property, &subject, &disks, count);
    drop(disks);
    println!(
        "{subject:?}: {count} sequences in {:?}; deviations:\n{}",
        start.elapsed(),
        deviations::report()
    );
    println!("operations on the plain copy:\n{}", stats::report());
    assert!(
        failures.is_empty(),
        "{} sequences fail; the cases are above",
        failures.len()
    );
}

#[test]
fn random_operations_agree_with_the_kernel_and_a_plain_directory() {
    let disks = [Disk::Ext4, Disk::Xfs, Disk::Tmpfs, Disk::Mixed];
    hold(&AGREES, &disks, number("ROVL_DIFF_SEQUENCES", 200));
}

#[test]
fn with_the_kernels_defaults_the_upper_is_what_the_kernel_writes() {
    hold(
        &PARITY,
        &[Disk::Ext4, Disk::Tmpfs],
        number("ROVL_DIFF_SEQUENCES", 200) / 5,
    );
}
