//! Times before 1970 and beyond all sense, and the times of what is not a file.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use rustix::fs::FileType;

use crate::support::files::{mknod, set_times, set_xattr};
use crate::support::{Mounted, Scratch, errno, require_root, subject, within, xattrs};

fn times(path: &Path) -> ((i64, i64), (i64, i64)) {
    let meta = fs::symlink_metadata(path).unwrap();
    (
        (meta.atime(), meta.atime_nsec()),
        (meta.mtime(), meta.mtime_nsec()),
    )
}

fn assert_serves(mounted: &Mounted, after: &str) {
    assert!(mounted.daemon_alive(), "the daemon died {after}");
    let root = mounted.root().to_owned();
    within(Duration::from_secs(10), after, move || {
        fs::read_dir(root).unwrap().count()
    });
}

/// Fault 2. A time before 1970 ended a worker thread of 2.0.0, and so many of them the daemon: so
/// there are more such files here than worker threads.
#[test]
fn times_before_1970_are_shown_kept_and_set() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let old = |i: i64| (-1 - i * 86_400, 999_999_999 - u32::try_from(i).unwrap());
    for i in 0..64 {
        let path = layers.lower().join(format!("f{i}"));
        fs::write(&path, "old").unwrap();
        set_times(&path, old(i), old(i)).unwrap();
    }
    let mut mounted = subject().mount(&layers, &[]);
    let check = |mounted: &Mounted, what: &str| {
        for i in 0..64 {
            let path = mounted.path(format!("f{i}"));
            let (seconds, nanos) = old(i);
            let (_, mtime) = times(&path);
            assert_eq!(mtime, (seconds, nanos.into()), "f{i} {what}");
        }
        assert_serves(mounted, what);
    };
    check(&mounted, "in the lower");
    for i in 0..64 {
        // chown copies up, and changes no time but ctime.
        chown(mounted.path(format!("f{i}")), Some(1000), Some(1000)).unwrap();
    }
    check(&mounted, "after copy-up");
    mounted.remount();
    check(&mounted, "after a remount");
    for i in 0..64 {
        let path = mounted.path(format!("new{i}"));
        fs::write(&path, "new").unwrap();
        set_times(&path, (-5, 1), (-1_000_000_000 - i, 500)).unwrap();
        let seen = times(&path);
        assert_eq!(seen, ((-5, 1), (-1_000_000_000 - i, 500)), "new{i}");
        assert_eq!(times(&layers.upper.join(format!("new{i}"))), seen);
    }
    assert_serves(&mounted, "after setting");
}

/// Fault 2 at its limits: any 64-bit second may be asked for. What upper can't hold it clamps or
/// refuses; the daemon goes on either way.
#[test]
fn times_beyond_all_sense_do_not_end_the_daemon() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("lower"), "x").unwrap();
    let mounted = subject().mount(&layers, &[]);
    fs::write(mounted.path("upper"), "x").unwrap();
    fs::create_dir(mounted.path("dir")).unwrap();
    symlink("nowhere", mounted.path("symlink")).unwrap();
    let extremes = [
        i64::MIN,
        i64::MIN + 1,
        i64::from(i32::MIN) - 1,
        i64::from(i32::MIN),
        -1,
        0,
        i64::from(i32::MAX) + 1,
        i64::from(u32::MAX) + 1,
        1 << 34,
        1 << 40,
        i64::MAX / 1_000_000_000,
        i64::MAX / 1_000_000_000 + 1,
        i64::MAX - 1,
        i64::MAX,
    ];
    let all_threads = threads(&mounted);
    for round in 0..3 {
        for seconds in extremes {
            for name in ["lower", "upper", "dir", "symlink"] {
                let path = mounted.path(name);
                let what = format!("after {seconds} s on {name}, round {round}");
                let results = within(Duration::from_secs(10), &what, move || {
                    [(seconds, 0), (0, seconds), (seconds, seconds)].map(|(atime, mtime)| {
                        let result = set_times(&path, (atime, 999_999_999), (mtime, 0));
                        fs::symlink_metadata(&path).unwrap();
                        errno(result)
                    })
                });
                for result in results {
                    let allowed = [0, libc::EINVAL, libc::ERANGE, libc::EOVERFLOW];
                    assert!(allowed.contains(&result), "{what}: errno {result}");
                }
                assert_eq!(threads(&mounted), all_threads, "{what}: a thread ended");
                let upper = layers.upper.join(name);
                // Where ext4 clamps, the kernel may go on showing what was asked for.
                let held = (i64::from(i32::MIN)..1 << 33).contains(&seconds);
                if held && upper.symlink_metadata().is_ok() {
                    assert_eq!(
                        times(&mounted.path(name)).1,
                        times(&upper).1,
                        "{what}: merged and upper disagree"
                    );
                }
            }
            assert_serves(&mounted, &format!("after {seconds} s"));
        }
    }
}

/// The number of the daemon's threads; 0 for the kernel.
fn threads(mounted: &Mounted) -> usize {
    mounted.daemon_pid().map_or(0, |pid| {
        fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
    })
}

/// Makes one of each kind that is neither file nor directory, with owner, old times and xattrs.
fn make_specials(dir: &Path) {
    symlink("target", dir.join("symlink")).unwrap();
    mknod(&dir.join("fifo"), FileType::Fifo, 0o640, 0).unwrap();
    let null = rustix::fs::makedev(1, 3);
    mknod(&dir.join("char"), FileType::CharacterDevice, 0o604, null).unwrap();
    let loop7 = rustix::fs::makedev(7, 7);
    mknod(&dir.join("block"), FileType::BlockDevice, 0o600, loop7).unwrap();
    drop(UnixListener::bind(dir.join("socket")).unwrap());
    for name in SPECIALS {
        let path = dir.join(name);
        lchown(&path, Some(1234), Some(4321)).unwrap();
        set_xattr(&path, "trusted.rovl-test", name.as_bytes()).unwrap();
        set_xattr(&path, "security.rovl-test", b"kept").unwrap();
        set_times(&path, (-77, 123_456_789), (1_000_000_007, 987_654_321)).unwrap();
    }
}

const SPECIALS: [&str; 5] = ["symlink", "fifo", "char", "block", "socket"];

/// An operation that copies up.
type Change = fn(&Path);

/// Fault 17. Owner, mode, times, device number and xattrs of symlinks, fifos, sockets and devices
/// are those of the lower after each operation that copies up.
#[test]
fn symlinks_and_special_files_keep_everything_on_copy_up() {
    require_root();
    let ways: [(&str, Change); 3] = [
        ("chown", |path| lchown(path, Some(1234), Some(99)).unwrap()),
        ("rename", |path| {
            fs::rename(path, path.with_extension("moved")).unwrap();
            fs::rename(path.with_extension("moved"), path).unwrap();
        }),
        ("link", |path| {
            fs::hard_link(path, path.with_extension("link")).unwrap();
        }),
    ];
    for (way, change) in ways {
        let scratch = Scratch::new();
        let layers = scratch.layers(1);
        make_specials(layers.lower());
        let mut mounted = subject().mount(&layers, &[]);
        for name in SPECIALS {
            change(&mounted.path(name));
        }
        for remounted in [false, true] {
            for name in SPECIALS {
                compare_special(&layers.lower().join(name), &mounted.path(name), way);
                compare_special(&layers.lower().join(name), &layers.upper.join(name), way);
            }
            if !remounted {
                mounted.remount();
            }
        }
    }
}

fn compare_special(lower: &Path, copy: &Path, way: &str) {
    let (a, b) = (
        fs::symlink_metadata(lower).unwrap(),
        fs::symlink_metadata(copy).unwrap(),
    );
    let what = format!("{} after {way}", copy.display());
    assert_eq!(a.mode(), b.mode(), "mode of {what}");
    let gid = if way == "chown" { 99 } else { 4321 };
    assert_eq!((b.uid(), b.gid()), (1234, gid), "owner of {what}");
    assert_eq!(times(lower).1, times(copy).1, "mtime of {what}");
    if !a.is_symlink() {
        assert_eq!(times(lower).0, times(copy).0, "atime of {what}");
        assert_eq!(a.rdev(), b.rdev(), "device of {what}");
    }
    assert_eq!(xattrs(lower), xattrs(copy), "xattrs of {what}");
    if a.is_symlink() {
        assert_eq!(fs::read_link(copy).unwrap(), Path::new("target"), "{what}");
    }
}
