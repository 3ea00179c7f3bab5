//! Whiteouts: who may make them, and when.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FileType, RenameFlags};

use crate::support::files::{mknod, rename_with};
use crate::support::{Scratch, Subject, Trace, errno, require_root, rounds, subject, tree_digest};

/// A way to make a name appear: `(root, name)`.
type Creation = fn(&Path, &str) -> std::io::Result<()>;

/// Every way to make a name appear.
const CREATIONS: [(&str, Creation); 8] = [
    ("create", |root, name| {
        File::create_new(root.join(name)).map(drop)
    }),
    ("mkdir", |root, name| fs::create_dir(root.join(name))),
    ("mknod", |root, name| {
        mknod(&root.join(name), FileType::RegularFile, 0o600, 0)
    }),
    ("fifo", |root, name| {
        mknod(&root.join(name), FileType::Fifo, 0o600, 0)
    }),
    ("symlink", |root, name| symlink("x", root.join(name))),
    ("link", |root, name| {
        fs::hard_link(root.join("other"), root.join(name))
    }),
    ("rename", |root, name| {
        fs::rename(root.join("movable"), root.join(name))
    }),
    ("exchange", |root, name| {
        rename_with(
            &root.join("movable"),
            &root.join(name),
            RenameFlags::EXCHANGE,
        )
    }),
];

/// Fault 9. Through the mount nobody can make a name that an overlay would read as a whiteout, in
/// whatever way, and so hide a lower file; the refusal leaves nothing behind. (The kernel's
/// overlayfs gives such names no meaning and so allows them.)
#[test]
fn whiteout_names_are_refused() {
    require_root();
    for (what, create) in CREATIONS {
        let scratch = Scratch::new();
        let layers = scratch.layers(2);
        let dir = layers.lowers[1].join("dir");
        fs::create_dir(&dir).unwrap();
        for name in ["victim", "other", "movable"] {
            fs::write(layers.lower().join(name), "x").unwrap();
            fs::write(dir.join(name), "x").unwrap();
        }
        let mut mounted = subject().mount(&layers, &[]);
        let before = tree_digest(mounted.root());
        for name in [".wh.victim", ".wh..wh..opq", ".wh.new", ".wh..wh.plnk"] {
            for dir in ["", "dir"] {
                let result = errno(create(&mounted.path(dir), name));
                if subject() != Subject::Kernel {
                    assert_ne!(result, 0, "{what} of {dir}/{name} was allowed");
                }
                assert_eq!(fs::read(mounted.path(dir).join("victim")).unwrap(), b"x");
            }
        }
        mounted.remount();
        assert!(mounted.path("victim").exists(), "{what} hid a file");
        assert!(mounted.path("dir/victim").exists(), "{what} hid a file");
        if subject() != Subject::Kernel {
            let after: Vec<_> = tree_digest(mounted.root()).into_keys().collect();
            assert_eq!(after, before.into_keys().collect::<Vec<_>>(), "{what}");
            assert_eq!(
                errno(fs::remove_file(mounted.path(".wh.victim"))),
                libc::ENOENT
            );
        }
    }
}

/// A device 0:0 made by hand is a whiteout to every overlay: it is refused, or shown as what it is;
/// it never hides a lower file.
#[test]
fn a_whiteout_device_made_by_hand_hides_nothing() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("victim"), "x").unwrap();
    let mounted = subject().mount(&layers, &[]);
    let path = mounted.path("device");
    let result = errno(mknod(&path, FileType::CharacterDevice, 0o600, 0));
    assert_ne!(result, 0, "mknod c 0 0 was allowed");
    assert_eq!(
        errno(rename_with(
            &mounted.path("victim"),
            &mounted.path("moved"),
            RenameFlags::WHITEOUT
        )),
        libc::EINVAL,
        "RENAME_WHITEOUT by a user"
    );
    assert!(mounted.path("victim").exists());
}

/// Fault 18. A whiteout is no entry: RENAME_NOREPLACE onto it works, as do link, mkdir, symlink,
/// mknod and create.
#[test]
fn a_removed_name_is_free_for_everything() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let ways = [
        "noreplace",
        "link",
        "mkdir",
        "symlink",
        "mknod",
        "create",
        "dir-noreplace",
    ];
    for way in ways {
        fs::write(layers.lower().join(way), "lower").unwrap();
        fs::create_dir(layers.lower().join(format!("{way}-dir"))).unwrap();
        fs::write(layers.lower().join(format!("{way}-dir/old")), "old").unwrap();
    }
    for name in ["source1", "source2"] {
        fs::write(layers.lower().join(name), name).unwrap();
        fs::create_dir(layers.lower().join(format!("{name}-dir"))).unwrap();
    }
    let mut mounted = subject().mount(&layers, &[]);
    for way in ways {
        fs::remove_file(mounted.path(way)).unwrap();
        fs::remove_dir_all(mounted.path(format!("{way}-dir"))).unwrap();
    }
    mounted.remount();
    let m = |name: &str| mounted.path(name);
    let noreplace = |from: &str, to: &str| {
        rename_with(&m(from), &m(to), RenameFlags::NOREPLACE)
            .unwrap_or_else(|e| panic!("{from} to the whiteout {to}: {e}"));
    };
    noreplace("source1", "noreplace");
    noreplace("source1-dir", "dir-noreplace-dir");
    noreplace("source2-dir", "noreplace-dir");
    fs::hard_link(m("source2"), m("link")).unwrap();
    fs::create_dir(m("mkdir")).unwrap();
    fs::create_dir(m("mkdir-dir")).unwrap();
    symlink("target", m("symlink")).unwrap();
    symlink("target", m("symlink-dir")).unwrap();
    mknod(&m("mknod"), FileType::Fifo, 0o600, 0).unwrap();
    File::create_new(m("create")).unwrap();
    File::create_new(m("create-dir")).unwrap();
    let existing = errno(rename_with(
        &m("source2"),
        &m("create"),
        RenameFlags::NOREPLACE,
    ));
    assert_eq!(existing, libc::EEXIST);

    let before = tree_digest(mounted.root());
    assert!(!before.keys().any(|path| path.ends_with("old")));
    mounted.remount();
    let after = tree_digest(mounted.root());
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>()
    );
}

/// Fault 18. The rename and its whiteout are one step: whenever the daemon is killed, each file is
/// under exactly one of its two names, whole.
#[test]
fn a_rename_and_its_whiteout_are_one_step() {
    require_root();
    if subject() == Subject::Kernel {
        return; // There is no daemon to kill.
    }
    const FILES: usize = 400;
    for round in 0..rounds(6) {
        let scratch = Scratch::new();
        let layers = scratch.layers(1);
        fs::create_dir(layers.lower().join("to")).unwrap();
        for i in 0..FILES {
            fs::write(layers.lower().join(format!("f{i}")), format!("{i}")).unwrap();
        }
        let mounted = subject().mount(&layers, &[]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in (0..FILES).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let to = mounted_path(&layers.merged, i, true);
                    if fs::rename(mounted_path(&layers.merged, i, false), to).is_err() {
                        break;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(10 + 17 * (round % 8)));
            mounted.kill_daemon();
            stop.store(true, Ordering::Relaxed);
        });
        let mounted = subject().mount(&layers, &[]);
        for i in 0..FILES {
            let names = [false, true].map(|moved| mounted_path(mounted.root(), i, moved));
            let found: Vec<_> = names.iter().filter(|path| path.exists()).collect();
            assert_eq!(found.len(), 1, "file {i} is found as {found:?}");
            assert_eq!(fs::read_to_string(found[0]).unwrap(), format!("{i}"));
        }
    }
}

fn mounted_path(root: &Path, i: usize, moved: bool) -> std::path::PathBuf {
    match (moved, i % 2) {
        (false, _) => root.join(format!("f{i}")),
        (true, 0) => root.join(format!("f{i}-moved")),
        (true, _) => root.join(format!("to/f{i}")),
    }
}

/// Fault 18, by what the daemon asks of the kernel: the call that takes a lower file's name away
/// from upper puts the whiteout there too.
#[test]
fn a_rename_leaves_its_whiteout_in_the_same_call() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("source-name"), "x").unwrap();
    let mounted = subject().mount(&layers, &[]);
    let Some(pid) = mounted.daemon_pid() else {
        return; // The kernel makes no system calls to look at.
    };
    let trace = Trace::attach(pid, "rename,renameat,renameat2,mknod,mknodat,link,linkat");
    fs::rename(mounted.path("source-name"), mounted.path("target-name")).unwrap();
    let calls = trace.finish();
    let atomic = calls.iter().any(|call| {
        !call.failed()
            && call.text.contains("source-name\"")
            && (call.text.contains("RENAME_WHITEOUT") || call.text.contains("RENAME_EXCHANGE"))
    });
    assert!(atomic, "the whiteout is a step of its own: {calls:#?}");
    mounted.unmount();
    let whiteout = fs::symlink_metadata(layers.upper.join("source-name")).unwrap();
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
}
