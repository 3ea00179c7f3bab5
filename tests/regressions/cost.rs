//! What an operation may cost: in system calls, in time for its neighbours, in memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::files::{drop_caches, open_rw, write_solid};
use crate::support::{Layers, Mounted, Scratch, Subject, Trace, require_root, subject, wait_until};

fn fill(dir: &Path, count: usize) {
    fs::create_dir_all(dir).unwrap();
    for i in 0..count {
        File::create(dir.join(format!("entry-{i}"))).unwrap();
    }
}

/// Directories of 10 and of 100,000 entries, in the lower and in the upper.
fn layers_with_big_directories(scratch: &Scratch) -> Layers {
    let layers = scratch.layers(1);
    for (root, prefix) in [(layers.lower(), "lower"), (&layers.upper, "upper")] {
        fill(&root.join(format!("{prefix}-10")), 10);
        fill(&root.join(format!("{prefix}-100000")), 100_000);
    }
    layers
}

/// Fault 13. What a create costs does not depend on the number of entries around it: the daemon
/// makes the same system calls, from the first create on, and takes about the same time.
#[test]
fn creating_a_file_costs_the_same_in_a_big_directory() {
    require_root();
    let scratch = Scratch::new();
    let layers = layers_with_big_directories(&scratch);
    let mounted = subject().mount(&layers, &[]);
    for prefix in ["lower", "upper"] {
        let (small, big) = (
            mounted.path(format!("{prefix}-10")),
            mounted.path(format!("{prefix}-100000")),
        );
        if let Some(pid) = mounted.daemon_pid() {
            let [few, many] = [&small, &big].map(|dir| {
                let trace = Trace::attach(pid, "all");
                for i in 0..20 {
                    File::create_new(dir.join(format!("counted-{i}"))).unwrap();
                }
                trace.finish().len()
            });
            assert!(
                many <= 2 * few,
                "20 creates in {prefix}: {few} system calls among 10 entries, {many} among 100,000"
            );
        }
        let bare = |count: usize| {
            let dir = scratch.join(format!("bare-{prefix}-{count}"));
            // A directory of the lower has a new, small one in upper.
            fill(&dir, if prefix == "upper" { count } else { 10 });
            dir
        };
        let (bare_small, bare_big) = (bare(10), bare(100_000));
        let dirs = [&small, &big, &bare_small, &bare_big].map(PathBuf::as_path);
        let tries: Vec<_> = (0..3).map(|round| medians(dirs, round)).collect();
        assert!(
            tries.iter().any(is_independent_of_size),
            "creates in {prefix}, among 10 and among 100,000 entries, and in bare directories: {tries:?}"
        );
    }
}

/// Whether a create in the big directory takes about as long as in the small one. What upper's file
/// system takes longer for is not the overlay's cost.
fn is_independent_of_size([few, many, bare_few, bare_many]: &[Duration; 4]) -> bool {
    let own_many = many.saturating_sub(bare_many.saturating_sub(*bare_few));
    own_many <= 2 * *few + Duration::from_micros(50)
}

/// Median times of a create in each directory, measured in turns, so that noise meets all.
fn medians(dirs: [&Path; 4], round: usize) -> [Duration; 4] {
    let mut times = [const { Vec::new() }; 4];
    for i in 0..301 {
        for (dir, times) in dirs.into_iter().zip(&mut times) {
            let path = dir.join(format!("timed-{round}-{i}"));
            let start = Instant::now();
            File::create_new(path).unwrap();
            times.push(start.elapsed());
        }
    }
    times.map(|mut times| {
        times.sort();
        times[times.len() / 2]
    })
}

/// Fault 14. A big copy-up holds up nobody else: stats and reads of its neighbours, which the
/// kernel has not cached, are answered while it runs.
#[test]
fn a_big_copy_up_does_not_hold_up_its_neighbours() {
    require_root();
    const NEIGHBOURS: usize = 20_000;
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let size = 1 << 30;
    write_solid(&layers.lower().join("big"), size);
    for i in 0..NEIGHBOURS {
        fs::write(layers.lower().join(format!("n{i}")), "x").unwrap();
    }
    rustix::fs::sync();
    let mounted = subject().mount(&layers, &[]);
    let done = AtomicBool::new(false);
    let (took, times) = std::thread::scope(|scope| {
        let copier = scope.spawn(|| {
            let start = Instant::now();
            let file = open_rw(&mounted.path("big"));
            file.write_all_at(b"x", 0).unwrap();
            done.store(true, Ordering::Release);
            start.elapsed()
        });
        let mut times = Vec::new();
        for i in 0..NEIGHBOURS {
            if done.load(Ordering::Acquire) {
                break;
            }
            let path = mounted.path(format!("n{i}"));
            let start = Instant::now();
            fs::metadata(&path).unwrap();
            if i % 16 == 0 {
                assert_eq!(fs::read(&path).unwrap(), b"x");
            }
            times.push(start.elapsed());
            std::thread::sleep(Duration::from_micros(500));
        }
        (copier.join().unwrap(), times)
    });
    let mut sorted = times.clone();
    sorted.sort();
    let p99 = sorted[sorted.len() * 99 / 100];
    let worst = sorted[sorted.len() - 1];
    let what = format!(
        "{} stats in {took:?}: p99 {p99:?}, worst {worst:?}",
        times.len()
    );
    if took < Duration::from_millis(100) {
        return; // Cloned: nothing to wait for.
    }
    assert!(times.len() >= 20, "the neighbours waited: {what}");
    assert!(p99 < Duration::from_millis(100), "{what}");
    assert!(worst < took / 2, "a neighbour waited: {what}");
}

fn walk(dir: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = fs::symlink_metadata(entry.path()).unwrap();
        count += 1;
        if meta.is_dir() {
            count += walk(&entry.path());
        }
    }
    count
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn nodes(mounted: &Mounted) -> Option<u64> {
    let stat = mounted.stat_json()?;
    Some(stat["nodes"].as_u64().expect("user.rovl.stat has nodes"))
}

/// Makes `count` files in directories of 500.
fn make_files(dir: &Path, count: usize) {
    for d in 0..count / 500 {
        fill(&dir.join(format!("dir-{d}")), 500);
    }
}

/// Fault 15. What the kernel forgets the daemon forgets: after each walk of another 50,000 files
/// the nodes are gone, and memory does not grow from walk to walk.
#[test]
fn forgotten_nodes_are_freed() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    for tree in ["a", "b", "c"] {
        make_files(&layers.lower().join(tree), 50_000);
    }
    let mounted = subject().mount(&layers, &[]);
    let Some(pid) = mounted.daemon_pid() else {
        return; // The kernel has no memory of its own to look at.
    };
    let baseline = nodes(&mounted);
    let mut memory = Vec::new();
    for tree in ["a", "b", "c"] {
        assert_eq!(walk(&mounted.path(tree)), 50_100);
        let dir = mounted.path(tree).join("dir-7");
        let open: Vec<File> = (0..300)
            .map(|i| File::open(dir.join(format!("entry-{i}"))).unwrap())
            .collect();
        if let Some(full) = nodes(&mounted) {
            assert!(full >= 300, "{full} nodes, and 300 files are open");
        }
        drop(open);
        let near_baseline = || {
            nodes(&mounted)
                .zip(baseline)
                .is_none_or(|(now, then)| now <= then + 500)
        };
        drop_caches(2);
        let freed = wait_until(Duration::from_secs(20), near_baseline);
        assert!(
            freed,
            "{:?} nodes at first, {:?} after a walk of {tree} and drop_caches",
            baseline,
            nodes(&mounted)
        );
        std::thread::sleep(Duration::from_millis(300));
        memory.push(resident(pid));
    }
    // The first walk sizes tables and arenas; the last must find room in them.
    assert!(
        memory[2] < memory[1] + memory[1] / 4 + 2048,
        "resident KiB after each walk: {memory:?}"
    );
    assert!(memory[2] < 200 << 10, "resident KiB: {memory:?}");
}

/// The same for files made and removed: an unlinked inode is gone when nobody has it open.
#[test]
fn removed_files_leave_no_nodes_and_no_descriptors() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let mounted = subject().mount(&layers, &[]);
    let Some(pid) = mounted.daemon_pid() else {
        return; // The kernel has no descriptors of its own to look at.
    };
    let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let round = |from: usize, count: usize| {
        for i in from..from + count {
            let path = mounted.path(format!("f{i}"));
            fs::write(&path, "x").unwrap();
            fs::remove_file(&path).unwrap();
        }
        drop_caches(2);
    };
    round(0, 200);
    std::thread::sleep(Duration::from_millis(200));
    let (before, baseline) = (descriptors(), nodes(&mounted));
    round(1000, 5000);
    assert!(
        wait_until(Duration::from_secs(20), || descriptors() <= before + 20),
        "{before} descriptors became {}",
        descriptors()
    );
    let near_baseline = || {
        nodes(&mounted)
            .zip(baseline)
            .is_none_or(|(a, b)| a <= b + 100)
    };
    assert!(
        wait_until(Duration::from_secs(20), near_baseline),
        "{baseline:?} nodes became {:?}",
        nodes(&mounted)
    );
    if *mounted.subject() == Subject::Rovl {
        assert!(baseline.is_some());
    }
}
