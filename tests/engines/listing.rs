//! Listings while others change the directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Mounted, Scratch, require_root, subject};

const STABLE: usize = 400;

/// Lists a directory and counts each name.
fn list(dir: &Path) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        *names
            .entry(entry.unwrap().file_name().into_string().unwrap())
            .or_default() += 1;
    }
    names
}

/// Creates, renames, rewrites and removes names that begin with `churn`, until told to stop.
fn churn(dir: &Path, thread: usize, stop: &AtomicBool) {
    let mut i = 0;
    while !stop.load(Ordering::Relaxed) {
        let (a, b) = (
            dir.join(format!("churn-{thread}-{}", i % 37)),
            dir.join(format!("churn-moved-{thread}-{}", i % 11)),
        );
        File::create(&a).unwrap();
        if i % 3 == 0 {
            fs::rename(&a, &b).unwrap();
        } else {
            fs::remove_file(&a).unwrap();
        }
        i += 1;
    }
}

/// Engine fault 6. Whatever happens around them, entries that stay are listed exactly once, and
/// entries removed before the listing began are not listed.
#[test]
fn a_listing_under_load_is_complete_and_current() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    for (i, lower) in layers.lowers.iter().enumerate() {
        fs::create_dir(lower.join("d")).unwrap();
        for j in (i..STABLE).step_by(2) {
            fs::write(lower.join(format!("d/stable-{j}")), "x").unwrap();
            fs::write(lower.join(format!("d/removed-{j}")), "x").unwrap();
        }
    }
    let mounted = subject().mount(&layers, &[]);
    let dir = mounted.path("d");
    let stop = AtomicBool::new(false);
    let listings = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (dir, stop) = (&dir, &stop);
            scope.spawn(move || churn(dir, thread, stop));
        }
        let check = || {
            let start = Instant::now();
            for round in 0.. {
                if start.elapsed() > Duration::from_secs(4) {
                    break;
                }
                if round % 4 == 0 && round / 4 < STABLE {
                    // Each removal must show in the very next listing.
                    fs::remove_file(dir.join(format!("removed-{}", round / 4))).unwrap();
                }
                check_listing(&dir, round / 4);
                listings.fetch_add(1, Ordering::Relaxed);
            }
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(listings.load(Ordering::Relaxed) > 10, "too few listings");
}

fn check_listing(dir: &Path, removed: usize) {
    let names = list(dir);
    for j in 0..STABLE {
        let count = names.get(&format!("stable-{j}")).copied().unwrap_or(0);
        assert_eq!(count, 1, "stable-{j} is listed {count} times");
        let count = names.get(&format!("removed-{j}")).copied().unwrap_or(0);
        let wanted = usize::from(j > removed);
        assert_eq!(count, wanted, "removed-{j} is listed {count} times");
    }
}

/// One process removes while it lists, as `rm -r` does: nothing is passed over.
#[test]
fn removing_while_listing_passes_over_nothing() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::create_dir(layers.lower().join("d")).unwrap();
    for i in 0..3000 {
        fs::write(layers.lower().join(format!("d/lower-{i}")), "").unwrap();
    }
    let mounted = subject().mount(&layers, &[]);
    for i in 0..3000 {
        fs::write(mounted.path(format!("d/upper-{i}")), "").unwrap();
    }
    let removed = remove_each(&mounted, "d");
    assert_eq!(removed, 6000);
    assert_eq!(list(&mounted.path("d")), BTreeMap::new());
    fs::remove_dir(mounted.path("d")).unwrap();
}

/// One listing from start to end, with a removal of each entry as it comes.
fn remove_each(mounted: &Mounted, dir: &str) -> usize {
    let mut removed = 0;
    for entry in fs::read_dir(mounted.path(dir)).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
    }
    removed
}

/// A directory that one process lists slowly while another makes and removes entries: positions
/// stay valid, entries that were there all the time come once.
#[test]
fn a_slow_listing_survives_changes() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    for lower in &layers.lowers {
        fs::create_dir(lower.join("d")).unwrap();
    }
    for i in 0..2000 {
        fs::write(layers.lowers[i % 2].join(format!("d/stable-{i}")), "").unwrap();
    }
    let mounted = subject().mount(&layers, &[]);
    let dir = mounted.path("d");
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (i, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if i % 50 == 0 {
            let (a, b) = (dir.join(format!("new-{i}")), dir.join(format!("b-{i}")));
            fs::write(&a, "").unwrap();
            fs::rename(&a, &b).unwrap();
            if i % 100 == 0 {
                fs::remove_file(&b).unwrap();
            }
        }
        *seen.entry(name).or_default() += 1;
    }
    for i in 0..2000 {
        assert_eq!(seen.get(&format!("stable-{i}")), Some(&1), "stable-{i}");
    }
}
