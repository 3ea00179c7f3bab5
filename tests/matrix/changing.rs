//! Layers that change behind the back of a mount.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::{
    Layers, Mounted, Scratch, Subject, assert_digests_equal, require_root, rovl_bin, sh, subject,
    tree_digest, within,
};

/// How long layers are changed.
const TIME: Duration = Duration::from_secs(8);
/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(20);
const USERS: u64 = 3;
const DIRS: u64 = 6;
const FILES: u64 = 8;
/// What only users of the mount write.
const USERS_DATA: &[u8] = b"by a user of the mount\n";
const LOWERS_DATA: &[u8] = b"by whom the layer belongs to\n";

/// A fixed sequence of pseudo-random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// A path that exists or not: a directory, or a file in one. Users make names of their own, too.
    fn path(&mut self, root: &Path, own: Option<&str>) -> PathBuf {
        let dir = root.join(format!("d{}", self.below(DIRS)));
        let dir = if self.below(4) == 0 {
            dir.join("sub")
        } else {
            dir
        };
        match self.below(8) {
            0 => dir,
            n => dir.join(format!(
                "{}{}",
                own.filter(|_| n < 4).unwrap_or("f"),
                self.below(FILES)
            )),
        }
    }
}

/// One change of a tree; whether it works is the tree's business.
fn change(random: &mut Random, root: &Path, data: &[u8], own: Option<&str>) {
    let path = random.path(root, own);
    let result = match random.below(9) {
        0 => fs::remove_file(&path),
        1 => fs::remove_dir_all(&path),
        2 => fs::create_dir_all(&path),
        3 => fs::rename(&path, random.path(root, own)),
        4 => fs::hard_link(&path, random.path(root, own)),
        5 => fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut f| f.write_all(data)),
        6 => fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)),
        _ => fs::write(&path, data),
    };
    // Names come and go: any error is right, but no panic and no hang.
    drop(result);
}

fn read(random: &mut Random, root: &Path) {
    let path = random.path(root, None);
    let result = match random.below(3) {
        0 => fs::read_dir(&path).map(|entries| entries.flatten().count()),
        1 => fs::symlink_metadata(&path).map(|meta| meta.len() as usize),
        _ => OpenOptions::new()
            .read(true)
            .open(&path)
            .and_then(|mut f| f.read(&mut [0; 64])),
    };
    drop(result);
}

fn build(layers: &Layers) {
    for lower in &layers.lowers {
        let script = format!(
            "for d in $(seq 0 {}); do mkdir -p d$d/sub; for f in $(seq 0 {}); do
                 echo lower > d$d/f$f; echo lower > d$d/sub/f$f; done; done
             mkdir control; seq 1000 > control/a; ln control/a control/b; ln -s a control/c",
            DIRS - 1,
            FILES - 1
        );
        sh(lower, &script);
    }
}

/// Panics if a file of the layers holds, or is called, what only users of the mount write.
fn assert_untouched(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            !name.starts_with('u'),
            "a user's name in a lower: {}",
            path.display()
        );
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            assert_untouched(&path);
        } else if meta.is_file() {
            let data = fs::read(&path).unwrap();
            let users = data
                .windows(USERS_DATA.len())
                .any(|window| window == USERS_DATA);
            assert!(!users, "a user's data in a lower: {}", path.display());
        }
    }
}

/// Users work on the mount while `changed` is changed beneath it.
fn storm(mounted: &Mounted, changed: &[PathBuf], seed: u64) {
    let end = AtomicBool::new(false);
    let steps: Vec<AtomicU64> = (0..USERS).map(|_| AtomicU64::new(0)).collect();
    let root = mounted.root();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(seed);
            while !end.load(Ordering::Relaxed) {
                let which = random.below(changed.len() as u64) as usize;
                change(&mut random, &changed[which], LOWERS_DATA, None);
            }
        });
        for (user, steps) in steps.iter().enumerate() {
            let end = &end;
            scope.spawn(move || {
                let mut random = Random(seed + 100 + user as u64);
                while !end.load(Ordering::Relaxed) {
                    match random.below(2) {
                        0 => read(&mut random, root),
                        _ => change(&mut random, root, USERS_DATA, Some("u")),
                    }
                    steps.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let watched = watch(&steps);
        end.store(true, Ordering::Relaxed);
        if let Err(user) = watched {
            // Sets free whoever waits for an answer, so that the threads end.
            rustix::mount::unmount(root, rustix::mount::UnmountFlags::FORCE).ok();
            panic!("user {user}: no answer within {PATIENCE:?}");
        }
    });
    for (user, steps) in steps.iter().enumerate() {
        let steps = steps.load(Ordering::Relaxed);
        println!("user {user}: {steps} steps");
        assert!(steps > 500, "user {user} did almost nothing");
    }
}

/// Waits until the time is over; the number of a user that stands still, if one does.
fn watch(steps: &[AtomicU64]) -> Result<(), usize> {
    let start = Instant::now();
    let mut last: Vec<(u64, Instant)> = vec![(0, start); steps.len()];
    while start.elapsed() < TIME {
        std::thread::sleep(Duration::from_millis(50));
        for (user, steps) in steps.iter().enumerate() {
            let now = steps.load(Ordering::Relaxed);
            if now != last[user].0 {
                last[user] = (now, Instant::now());
            } else if last[user].1.elapsed() > PATIENCE {
                return Err(user);
            }
        }
    }
    Ok(())
}

fn changes_are_survived(with_upper: bool, seed: u64) {
    require_root();
    let _turn = super::among_others();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    build(&layers);
    let control: Vec<PathBuf> = layers
        .lowers
        .iter()
        .map(|lower| lower.join("control"))
        .collect();
    let before: Vec<_> = control.iter().map(|dir| tree_digest(dir)).collect();
    let mounted = subject().mount(&layers, &[]);
    let mut changed = layers.lowers.clone();
    if with_upper {
        changed.push(layers.upper.clone());
    }
    storm(&mounted, &changed, seed);
    assert!(mounted.daemon_alive(), "the daemon has died");
    let root = mounted.root().to_path_buf();
    within(PATIENCE, "after the changes", move || {
        assert_eq!(
            fs::read_to_string(root.join("control/a"))
                .unwrap()
                .lines()
                .count(),
            1000
        );
        fs::write(root.join("answers"), "still").unwrap();
        assert_eq!(fs::read_to_string(root.join("answers")).unwrap(), "still");
    });
    mounted.unmount();
    for lower in &layers.lowers {
        assert_untouched(lower);
    }
    let after: Vec<_> = control.iter().map(|dir| tree_digest(dir)).collect();
    for (before, after) in before.iter().zip(&after) {
        assert_digests_equal(before, after, "a lower that nobody changed");
    }
    let mut beside: Vec<_> = fs::read_dir(scratch.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    beside.sort();
    assert_eq!(
        beside,
        ["lower0", "lower1", "merged", "upper", "work"],
        "something new beside the layers"
    );
    // Whatever is left can be mounted and looked at.
    let again = subject().mount(&layers, &[]);
    let root = again.root().to_path_buf();
    within(PATIENCE, "after mounting again", move || {
        assert_eq!(fs::read_to_string(root.join("answers")).unwrap(), "still");
        for entry in fs::read_dir(&root).unwrap() {
            let path = entry.unwrap().path();
            fs::read_dir(&path)
                .map(|entries| entries.flatten().count())
                .ok();
        }
    });
    again.unmount();
}

#[test]
fn lowers_that_change_are_survived() {
    changes_are_survived(false, 11);
}

#[test]
fn an_upper_that_changes_is_survived() {
    changes_are_survived(true, 12);
}

fn refresh(mounted: &Mounted) {
    let output = Command::new(rovl_bin())
        .args(["ctl", "refresh"])
        .arg(mounted.root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "rovl ctl refresh: {}: {said}",
        output.status
    );
}

/// After `rovl ctl refresh` the tree is what a new mount would show, whatever was looked at before.
#[test]
fn a_refresh_shows_changed_lowers() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    sh(
        &layers.lowers[1],
        "mkdir -p d/sub empty; for f in a b c d/e d/f d/sub/g kind1; do echo $f > $f; done; mkdir kind2
         ln -s a link; ln a hard; setfattr -n user.x -v 1 b",
    );
    sh(&layers.lowers[0], "mkdir d; echo top > d/top");
    let mounted = Subject::Rovl.mount(&layers, &[]);
    // Everything is looked at, also what is not there.
    drop(tree_digest(mounted.root()));
    assert!(!mounted.path("new").exists() && !mounted.path("d/new").exists());
    for round in 0..3 {
        sh(
            &layers.lowers[1],
            &format!(
                "echo another content, longer {round} > a; echo B > b; rm -f c; echo new{round} > new
                 rm -rf d/sub; mkdir d/sub; echo {round} > d/sub/h{round}; echo n > d/new{round}
                 rm -rf kind1 kind2; mkdir kind1; echo file > kind2; ln -sfn b link
                 setfattr -n user.x -v 2{round} b; chmod 60{round} d/e; chown {round} d/f; touch -d 1999-09-09 b"
            ),
        );
        sh(
            &layers.lowers[0],
            &format!("rm -f d/top*; echo t > d/top{round}; mknod d/e{round} c 0 0"),
        );
        refresh(&mounted);
        let mut shown = tree_digest(mounted.root());
        let reference = scratch.join("reference");
        fs::create_dir_all(&reference).unwrap();
        let fresh = Layers {
            merged: reference,
            ..layers.clone()
        };
        let kernels = Subject::Kernel.mount_read_only(&fresh, &[]);
        let mut wanted = tree_digest(kernels.root());
        kernels.unmount();
        // The reference has no upper, and so another root.
        for digest in [&mut shown, &mut wanted] {
            digest.remove(Path::new("."));
        }
        assert_digests_equal(
            &wanted,
            &shown,
            &format!("a new mount and a refreshed one, round {round},"),
        );
    }
    // It is still writable, and what is written stays through a refresh.
    fs::write(mounted.path("a"), "ours").unwrap();
    sh(&layers.lowers[1], "echo theirs > a; echo theirs > d/f");
    refresh(&mounted);
    assert_eq!(fs::read_to_string(mounted.path("a")).unwrap(), "ours");
    assert_eq!(fs::read_to_string(mounted.path("d/f")).unwrap(), "theirs\n");
    mounted.unmount();
}

/// A file that is open when its lower changes and everything is dropped: reads and writes end with data or an
/// error, and the names show the new file.
#[test]
fn open_files_outlive_a_refresh() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    sh(layers.lower(), "echo old > f; echo old > g");
    let mounted = Subject::Rovl.mount(&layers, &[]);
    let mut reader = fs::File::open(mounted.path("f")).unwrap();
    let mut writer = OpenOptions::new()
        .append(true)
        .open(mounted.path("g"))
        .unwrap();
    writer.write_all(b"ours\n").unwrap();
    sh(layers.lower(), "rm f; echo new > f");
    refresh(&mounted);
    writer.write_all(b"more\n").unwrap();
    let mut text = String::new();
    if reader.read_to_string(&mut text).is_ok() {
        assert!(text == "old\n" || text == "new\n", "{text:?}");
    }
    drop((reader, writer));
    assert_eq!(fs::read_to_string(mounted.path("f")).unwrap(), "new\n");
    assert_eq!(
        fs::read_to_string(mounted.path("g")).unwrap(),
        "old\nours\nmore\n"
    );
    mounted.unmount();
}

#[test]
fn an_open_file_outlives_the_upper_that_it_is_in() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let mounted = subject().mount(&layers, &[]);
    let path = mounted.path("log");
    fs::write(&path, "first\n").unwrap();
    let mut reader = fs::File::open(&path).unwrap();
    let mut writer = OpenOptions::new().append(true).open(&path).unwrap();
    // As an engine removes a container while its tree is still mounted somewhere.
    fs::remove_dir_all(&layers.upper).unwrap();
    writer.write_all(b"second\n").unwrap();
    assert_eq!(writer.metadata().unwrap().len(), 13);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "first\nsecond\n");
    fs::create_dir(&layers.upper).unwrap();
}
