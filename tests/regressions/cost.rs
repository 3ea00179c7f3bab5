//! What an operation may cost: in system calls, in time for its neighbours, in memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::files::{drop_caches, open_rw, write_solid};
use crate::support::{
    Call, Layers, Mounted, Scratch, Subject, Trace, require_root, subject, wait_until,
};

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
    let mut mounted = subject().mount(&layers, &[]);
    for prefix in ["lower", "upper"] {
        let names = [10, 100_000].map(|count| format!("{prefix}-{count}"));
        let merged = names.each_ref().map(|name| mounted.path(name));
        if let Some(pid) = mounted.daemon_pid() {
            let [few, many] = merged.each_ref().map(|dir| count_calls(pid, dir));
            assert!(
                many <= 2 * few,
                "20 creates in {prefix}: {few} system calls among 10 entries, {many} among 100,000"
            );
        }
        let tries: Vec<_> = (0..3).map(|i| medians(&merged, &format!("m{i}"))).collect();
        // The same directories without the overlay: what they take longer for is not its cost.
        mounted = unmounted(mounted, || {
            let upper = names.each_ref().map(|name| layers.upper.join(name));
            let own = medians(&upper, "native");
            let independent = |[few, many]: &[Duration; 2]| {
                many.saturating_sub(own[1].saturating_sub(own[0]))
                    <= 2 * *few + Duration::from_micros(50)
            };
            assert!(
                tries.iter().any(independent),
                "creates in {prefix} among 10 and among 100,000 entries: {tries:?}, \
                 without the overlay: {own:?}"
            );
        });
    }
}

/// The system calls of the daemon for 20 creates.
fn count_calls(pid: u32, dir: &Path) -> usize {
    let trace = Trace::attach(pid, "all");
    for i in 0..20 {
        File::create_new(dir.join(format!("counted-{i}"))).unwrap();
    }
    trace.finish().len()
}

/// The daemon's system calls that read layers, for one action.
fn reads(pid: u32, action: impl FnOnce()) -> Vec<Call> {
    let trace = Trace::attach(pid, "statx,openat,openat2,getdents64");
    action();
    trace.finish()
}

/// In a directory that was not looked into before a layer is asked for a name once, without opening its part: not
/// for marks that would hide it either, as long as nothing is found. What one layer has, none below it is asked for.
#[test]
fn a_layer_that_lacks_a_name_is_asked_once() {
    require_root();
    const LAYERS: usize = 40;
    let scratch = Scratch::new();
    let layers = scratch.layers(LAYERS);
    for lower in &layers.lowers {
        fs::create_dir_all(lower.join("dir/sub")).unwrap();
        fs::create_dir(lower.join("dir/other")).unwrap();
    }
    fs::write(layers.lowers[0].join("dir/other/top"), "").unwrap();
    fs::write(layers.lowers[LAYERS - 1].join("dir/other/bottom"), "").unwrap();
    let mounted = subject().mount(&layers, &[]);
    let Some(pid) = mounted.daemon_pid() else {
        return;
    };
    for name in ["dir/sub", "dir/other"] {
        assert!(mounted.path(name).is_dir());
    }
    let rows = [
        ("dir/sub/missing", false, LAYERS + 4),
        ("dir/other/top", true, 6),
        // What would hide it is asked for: a name, and the mark of the whole directory.
        ("dir/other/bottom", true, 3 * LAYERS + 8),
    ];
    for (name, exists, most) in rows {
        let calls = reads(pid, || assert_eq!(mounted.path(name).exists(), exists));
        assert!(
            calls.len() <= most,
            "{} system calls for {name}: {calls:#?}",
            calls.len()
        );
    }
}

/// Looking names up in a directory of very many lists no more of it than the lookups are worth.
#[test]
fn some_lookups_in_a_big_directory_do_not_list_it() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    fill(&layers.lowers[0].join("big"), 20_000);
    fs::create_dir(layers.lowers[1].join("big")).unwrap();
    let mounted = subject().mount(&layers, &[]);
    let Some(pid) = mounted.daemon_pid() else {
        return;
    };
    let calls = reads(pid, || {
        for i in 0..40 {
            assert!(mounted.path(format!("big/entry-{i}")).exists());
        }
    });
    let listed: u64 = calls
        .iter()
        .filter(|c| c.name == "getdents64")
        .filter_map(Call::result)
        .sum();
    assert!(listed < 16 << 10, "{listed} bytes of entries were read");
}

/// Does something between an unmount and the next mount.
fn unmounted(mounted: Mounted, action: impl FnOnce()) -> Mounted {
    let layers = mounted.layers().clone();
    mounted.unmount();
    action();
    subject().mount(&layers, &[])
}

/// Median times of a create in two directories, measured in turns, so that noise meets both.
fn medians(dirs: &[PathBuf; 2], prefix: &str) -> [Duration; 2] {
    let mut times = [const { Vec::new() }; 2];
    for i in 0..301 {
        for (dir, times) in dirs.iter().zip(&mut times) {
            let path = dir.join(format!("{prefix}-{i}"));
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
    Some(stat["nodes"].as_u64().expect("the counters have nodes"))
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
