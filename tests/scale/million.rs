//! A tree of a million files.

use std::fs;
use std::io::Write;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags};

use super::meter::{Meter, alone, check, drop_caches, entries, make_files, open_dir, timed};
use super::support::{LoopFs, Mounted, Scratch, require_root, run, subject, wait_until};

const DIRS: usize = 1000;
const FILES: usize = 1000;
/// Directories that are removed with all that is in them.
const REMOVED: usize = 10;

/// `dN` has a half of its files in either lower.
fn fill(lowers: &[std::path::PathBuf]) {
    std::thread::scope(|scope| {
        for (half, lower) in lowers.iter().enumerate() {
            scope.spawn(move || {
                for d in 0..DIRS {
                    let dir = lower.join(format!("d{d}"));
                    make_files(&dir, &format!("half{half}-"), FILES / lowers.len());
                }
            });
        }
    });
}

/// Lists all directories and stats all entries, as find -ls does; counts files.
fn walk(path: &Path) -> usize {
    let dir = open_dir(path);
    let mut files = 0;
    for entry in entries(&dir, usize::MAX) {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::statx(&dir, &entry.name, flags, StatxFlags::BASIC_STATS)
            .unwrap_or_else(|e| panic!("stat {}: {e}", entry.name));
        if entry.is_dir {
            files += walk(&path.join(&entry.name));
        } else {
            files += 1;
        }
    }
    files
}

#[test]
fn a_tree_of_a_million_files() {
    require_root();
    let _alone = alone();
    // A file system of its own: it is thrown away faster than a million files are removed.
    let disk = LoopFs::ext4(24 << 30);
    let scratch = Scratch::new();
    let layers = scratch
        .layers(1)
        .with_lowers_in(disk.path(), 2)
        .with_upper_in(disk.path());
    timed("make a million files", || fill(&layers.lowers));
    drop_caches();

    let mounted = subject().mount(&layers, &[]);
    let meter = Meter::of(&mounted);
    let files = timed("first walk", || walk(mounted.root()));
    assert_eq!(files, DIRS * FILES);
    check(
        meter.as_ref(),
        (DIRS * FILES) as u64,
        "after the first walk",
    );
    assert_eq!(timed("second walk", || walk(mounted.root())), files);
    check(
        meter.as_ref(),
        (DIRS * FILES) as u64,
        "after the second walk",
    );

    timed("append to 100 files", || append(&mounted));
    timed("rm -rf of 10 directories", || remove(&mounted));
    let left = timed("third walk", || walk(mounted.root()));
    assert_eq!(left, (DIRS - REMOVED) * FILES);
    check(meter.as_ref(), (DIRS * FILES) as u64, "after changes");
    assert_forgets(&mounted);
    mounted.unmount();
}

fn append(mounted: &Mounted) {
    for d in 0..100 {
        let path = mounted.path(format!("d{}/half{}-7", d * 7 + REMOVED, d % 2));
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"more").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"more");
    }
}

fn remove(mounted: &Mounted) {
    for d in 0..REMOVED {
        let path = mounted.path(format!("d{d}"));
        run("rm", &["-rf", path.to_str().unwrap()]);
        assert!(!path.exists());
    }
}

/// When the kernel forgets its inodes, the daemon does too.
fn assert_forgets(mounted: &Mounted) {
    let nodes = || mounted.stat_json().and_then(|stat| stat["nodes"].as_u64());
    let Some(before) = nodes() else { return };
    let fine = wait_until(std::time::Duration::from_secs(30), || {
        drop_caches();
        nodes().unwrap() < 2000
    });
    println!("nodes: {before}, then {:?}", nodes());
    assert!(
        fine,
        "of {before} nodes {:?} stay after drop_caches",
        nodes()
    );
}
