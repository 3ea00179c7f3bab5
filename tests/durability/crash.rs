//! kill -9 in the middle of random work.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{
    Layers, Scratch, Subject, assert_digests_equal, is_running, pattern, require_root, rounds,
    signal, subject, tree_digest, wait_until,
};

/// What was promised about a name.
#[derive(Clone, Debug, PartialEq)]
struct Promise {
    /// The content that an fsync returned for; `None` where the last write was not synced.
    content: Option<Vec<u8>>,
    mode: u32,
}

/// The promises of one worker about its directory, and the names of the call under way, about which
/// nothing is promised.
#[derive(Default)]
struct Ledger {
    promises: BTreeMap<String, Promise>,
    in_flight: BTreeSet<String>,
}

/// xorshift64*: repeatable work.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(high).unwrap() % limit
    }
}

const FILES: usize = 60;

fn lower_content(worker: usize, i: usize) -> Vec<u8> {
    pattern((worker * 1000 + i) as u64, 500 + 997 * i)
}

fn populate(layers: &Layers, workers: usize) -> Vec<Ledger> {
    (0..workers)
        .map(|worker| {
            let mut ledger = Ledger::default();
            for (n, lower) in layers.lowers.iter().enumerate() {
                let dir = lower.join(format!("w{worker}/sub"));
                fs::create_dir_all(&dir).unwrap();
                for i in (n..FILES).step_by(layers.lowers.len()) {
                    let name = if i % 3 == 0 {
                        format!("sub/f{i}")
                    } else {
                        format!("f{i}")
                    };
                    let path = lower.join(format!("w{worker}")).join(&name);
                    fs::write(&path, lower_content(worker, i)).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
                    let promise = Promise {
                        content: Some(lower_content(worker, i)),
                        mode: 0o644,
                    };
                    ledger.promises.insert(name, promise);
                }
            }
            ledger
        })
        .collect()
}

/// One random operation; what it promises is entered when it has returned.
fn operate(dir: &Path, random: &mut Random, ledger: &Mutex<Ledger>) -> std::io::Result<()> {
    let names: Vec<String> = ledger.lock().unwrap().promises.keys().cloned().collect();
    let old = names
        .get(random.below(names.len().max(1)))
        .cloned()
        .unwrap_or_default();
    let new = match random.below(2) {
        0 => format!("n{}", random.below(200)),
        _ => format!("sub/n{}", random.below(200)),
    };
    let action = random.below(8);
    let new = if names.is_empty() || action < 2 {
        new
    } else if names.contains(&new) {
        return Ok(());
    } else {
        new
    };
    ledger.lock().unwrap().in_flight = [old.clone(), new.clone()].into();
    match action {
        0 | 1 => write(dir, &new, random, ledger)?,
        _ if names.is_empty() => {}
        2 | 3 => write(dir, &old, random, ledger)?,
        4 => {
            fs::rename(dir.join(&old), dir.join(&new))?;
            let mut ledger = ledger.lock().unwrap();
            let promise = ledger.promises.remove(&old).unwrap();
            ledger.promises.insert(new, promise);
        }
        5 => {
            fs::remove_file(dir.join(&old))?;
            ledger.lock().unwrap().promises.remove(&old);
        }
        6 => {
            let mode = 0o600 + u32::try_from(random.below(64)).unwrap();
            fs::set_permissions(dir.join(&old), fs::Permissions::from_mode(mode))?;
            let mut ledger = ledger.lock().unwrap();
            ledger.promises.get_mut(&old).unwrap().mode = mode;
        }
        _ => replace(dir, &old, random, ledger)?,
    }
    ledger.lock().unwrap().in_flight.clear();
    Ok(())
}

/// Rewrites a file, with fsync in two cases of three.
fn write(
    dir: &Path,
    name: &str,
    random: &mut Random,
    ledger: &Mutex<Ledger>,
) -> std::io::Result<()> {
    let length = random.below(50_000);
    let content = pattern(random.below(1 << 20) as u64, length);
    let sync = random.below(3) > 0;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(dir.join(name))?;
    file.write_all(&content)?;
    if sync {
        file.sync_all()?;
    }
    let mode = file.metadata()?.mode() & 0o7777;
    let promise = Promise {
        content: sync.then_some(content),
        mode,
    };
    ledger
        .lock()
        .unwrap()
        .promises
        .insert(name.to_owned(), promise);
    Ok(())
}

/// What editors do: write another file, sync it, rename it over the old one.
fn replace(
    dir: &Path,
    name: &str,
    random: &mut Random,
    ledger: &Mutex<Ledger>,
) -> std::io::Result<()> {
    let temporary = format!("tmp{}", random.below(1 << 20));
    ledger.lock().unwrap().in_flight.insert(temporary.clone());
    let length = random.below(20_000);
    let content = pattern(random.below(1 << 20) as u64, length);
    let mut file = fs::File::create_new(dir.join(&temporary))?;
    file.write_all(&content)?;
    file.sync_all()?;
    let mode = file.metadata()?.mode() & 0o7777;
    fs::rename(dir.join(&temporary), dir.join(name))?;
    let promise = Promise {
        content: Some(content),
        mode,
    };
    ledger
        .lock()
        .unwrap()
        .promises
        .insert(name.to_owned(), promise);
    Ok(())
}

fn check(root: &Path, ledgers: &[Mutex<Ledger>], what: &str) {
    let mut faults = Vec::new();
    for (worker, ledger) in ledgers.iter().enumerate() {
        let ledger = ledger.lock().unwrap();
        let dir = root.join(format!("w{worker}"));
        let mut found: BTreeSet<PathBuf> = tree_digest(&dir)
            .into_iter()
            .filter(|(_, entry)| entry.kind != "dir")
            .map(|(path, _)| path)
            .collect();
        for name in &ledger.in_flight {
            found.remove(Path::new(name));
        }
        for (name, promise) in &ledger.promises {
            if ledger.in_flight.contains(name) {
                continue;
            }
            let path = dir.join(name);
            if !found.remove(Path::new(name)) {
                faults.push(format!("{} is gone", path.display()));
                continue;
            }
            if let Some(content) = &promise.content {
                let now = fs::read(&path).unwrap();
                if now != *content {
                    let (is, was) = (now.len(), content.len());
                    faults.push(format!(
                        "{}: synced {was} bytes, found {is} others",
                        path.display()
                    ));
                }
            }
            let mode = fs::metadata(&path).unwrap().mode() & 0o7777;
            if mode != promise.mode {
                faults.push(format!(
                    "{}: mode {:o}, not {:o}",
                    path.display(),
                    mode,
                    promise.mode
                ));
            }
        }
        for path in found {
            faults.push(format!("{} was removed", dir.join(path).display()));
        }
    }
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
}

/// What was promised before kill -9 holds after it: synced bytes, names, removals, modes. Upper can
/// be mounted by the kernel and again, both show the same; the lowers are untouched; work is empty.
#[test]
fn a_killed_daemon_breaks_no_promise() {
    require_root();
    if subject() == Subject::Kernel {
        return; // There is no daemon to kill.
    }
    for round in 0..rounds(8) {
        let scratch = Scratch::new();
        let layers = scratch.layers(2);
        let ledgers: Vec<Mutex<Ledger>> =
            populate(&layers, 2).into_iter().map(Mutex::new).collect();
        let lowers: Vec<_> = layers.lowers.iter().map(|l| tree_digest(l)).collect();
        let mounted = subject().mount(&layers, &[]);
        let pid = mounted.daemon_pid().unwrap();
        std::thread::scope(|scope| {
            for (worker, ledger) in ledgers.iter().enumerate() {
                let dir = mounted.path(format!("w{worker}"));
                let mut random = Random(0xC0FFEE + round * 977 + worker as u64);
                scope.spawn(move || {
                    // The first error is the daemon's end.
                    while operate(&dir, &mut random, ledger).is_ok() {}
                });
            }
            std::thread::sleep(Duration::from_millis(30 + 71 * (round % 9)));
            signal(pid, Signal::KILL);
        });
        assert!(wait_until(Duration::from_secs(10), || !is_running(pid)));
        mounted.kill_daemon();

        for (lower, before) in layers.lowers.iter().zip(&lowers) {
            assert_digests_equal(before, &tree_digest(lower), "a lower before and after");
        }
        let kernel = Subject::Kernel.mount(&layers, &[]);
        check(kernel.root(), &ledgers, &format!("round {round}, kernel"));
        let seen = tree_digest(kernel.root());
        kernel.unmount();
        let mounted = subject().mount(&layers, &[]);
        let left: Vec<_> = fs::read_dir(layers.work.join("work"))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "work/work has {left:?}");
        check(mounted.root(), &ledgers, &format!("round {round}"));
        assert_digests_equal(
            &seen,
            &tree_digest(mounted.root()),
            "the kernel's view and ours",
        );
        goes_on(mounted.root());
    }
}

fn goes_on(root: &Path) {
    for worker in 0..2 {
        let dir = root.join(format!("w{worker}"));
        fs::rename(&dir, root.join("moved")).unwrap();
        fs::rename(root.join("moved"), &dir).unwrap();
        fs::write(dir.join("after"), "x").unwrap();
        fs::remove_dir_all(dir.join("sub")).unwrap();
    }
}

/// A copy-up that is killed half-way leaves the lower's file, whole.
#[test]
fn a_killed_copy_up_publishes_nothing() {
    require_root();
    if subject() == Subject::Kernel {
        return; // There is no daemon to kill.
    }
    let size = 400 << 20;
    for delay in [5, 40, 120, 250] {
        let scratch = Scratch::new();
        let layers = scratch.layers(1);
        let lower = layers.lower().join("big");
        crate::support::files::write_solid(&lower, size);
        let mounted = subject().mount(&layers, &[]);
        let pid = mounted.daemon_pid().unwrap();
        let path = mounted.path("big");
        let writer = std::thread::spawn(move || {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).is_ok()
        });
        std::thread::sleep(Duration::from_millis(delay));
        signal(pid, Signal::KILL);
        let done = writer.join().unwrap();
        mounted.kill_daemon();
        let mounted = subject().mount(&layers, &[]);
        let meta = fs::metadata(mounted.path("big")).unwrap();
        assert_eq!(meta.len(), size, "after {delay} ms");
        if done {
            assert_eq!(meta.mode() & 0o7777, 0o600);
        }
        let same = std::process::Command::new("cmp")
            .args([&lower, &mounted.path("big")])
            .status()
            .unwrap();
        assert!(same.success(), "after {delay} ms the content differs");
        assert_eq!(
            fs::read_dir(layers.work.join("work")).map_or(0, Iterator::count),
            0
        );
    }
}
