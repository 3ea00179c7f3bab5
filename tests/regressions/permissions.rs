//! Modes, umasks, ACLs: of what is created, and of directories on the way to a copy-up.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::FileType;

use crate::support::files::{acl_with_user, mknod, set_times, set_xattr};
use crate::support::{
    Scratch, as_user_with_umask, require_root, subject, tree_digest, with_umask, xattrs,
};

/// Creates one of each kind with every permission asked for.
fn create_all_kinds(dir: &Path) {
    for (name, mode) in [("f666", 0o666), ("f777", 0o777), ("f4755", 0o4755)] {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(dir.join(name))
            .unwrap();
    }
    for (name, mode) in [("d777", 0o777), ("d1777", 0o1777)] {
        fs::DirBuilder::new()
            .mode(mode)
            .create(dir.join(name))
            .unwrap();
    }
    mknod(&dir.join("fifo"), FileType::Fifo, 0o666, 0).unwrap();
    mknod(&dir.join("node"), FileType::RegularFile, 0o666, 0).unwrap();
    std::os::unix::fs::symlink("x", dir.join("symlink")).unwrap();
    drop(std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap());
}

/// What a bare directory and a mount must agree on, by name.
fn modes_and_acls(dir: &Path) -> Vec<(String, String)> {
    tree_digest(dir)
        .into_iter()
        .filter(|(path, _)| path.as_os_str() != ".")
        .map(|(path, entry)| {
            (
                path.display().to_string(),
                format!(
                    "{} {:04o} {}:{} {:02x?}",
                    entry.kind, entry.mode, entry.uid, entry.gid, entry.xattrs
                ),
            )
        })
        .collect()
}

/// Fault 4. The caller's umask applies to what it creates, as in a bare directory, for root and for
/// another user, in the upper, in a merged directory and in a lower's.
#[test]
fn the_callers_umask_applies() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let bare = scratch.join("bare");
    fs::create_dir(&bare).unwrap();
    fs::create_dir(layers.lower().join("lower")).unwrap();
    fs::set_permissions(
        layers.lower().join("lower"),
        fs::Permissions::from_mode(0o777),
    )
    .unwrap();
    let mounted = subject().mount(&layers, &[]);
    for mask in [0, 0o002, 0o022, 0o027, 0o077, 0o777] {
        for uid in [0, 1000] {
            let make = |parent: &Path| {
                let dir = parent.join(format!("{mask:o}-{uid}"));
                fs::create_dir(&dir).unwrap();
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
                if uid == 0 {
                    with_umask(mask, || create_all_kinds(&dir));
                } else {
                    as_user_with_umask(uid, uid, mask, || create_all_kinds(&dir));
                }
                modes_and_acls(&dir)
            };
            let expected = make(&bare);
            for parent in [mounted.root().to_owned(), mounted.path("lower")] {
                assert_eq!(make(&parent), expected, "umask {mask:o}, user {uid}");
            }
        }
    }
}

/// Fault 4, with a default ACL: it takes the umask's place and is inherited, as in a bare directory.
#[test]
fn a_default_acl_takes_the_umasks_place() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let bare = scratch.join("bare");
    fs::create_dir(&bare).unwrap();
    let prepare = |parent: &Path, name: &str| {
        let dir = parent.join(name);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        set_xattr(&dir, "system.posix_acl_default", &acl_with_user(1234, 6)).unwrap();
        dir
    };
    prepare(layers.lower(), "lower");
    let mounted = subject().mount(&layers, &[]);
    prepare(mounted.root(), "upper");
    for (mask, uid) in [(0o022, 0), (0o077, 0), (0o077, 1000)] {
        let expected = prepare(&bare, &format!("{mask:o}-{uid}"));
        let create = |dir: &Path| {
            if uid == 0 {
                with_umask(mask, || create_all_kinds(dir));
            } else {
                as_user_with_umask(uid, uid, mask, || create_all_kinds(dir));
            }
            modes_and_acls(dir)
        };
        let expected = create(&expected);
        for parent in ["lower", "upper"] {
            let dir = mounted.path(parent);
            assert_eq!(create(&dir), expected, "umask {mask:o}, {uid}, {parent}");
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    fs::remove_dir(path).unwrap();
                } else {
                    fs::remove_file(path).unwrap();
                }
            }
        }
    }
}

/// Fault 5. The directories that a copy-up makes in upper are those of the lower: a 0700 stays
/// private, and owners, set-id and sticky bits, xattrs, ACLs and times stay too.
#[test]
fn copied_up_directories_keep_everything() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let chain = [
        ("private", 0o700, 1000),
        ("private/sticky", 0o1773, 1001),
        ("private/sticky/setgid", 0o2750, 1002),
        ("private/sticky/setgid/closed", 0o000, 1003),
    ];
    for (path, mode, owner) in chain {
        let path = layers.lower().join(path);
        fs::create_dir(&path).unwrap();
        chown(&path, Some(owner), Some(owner + 10)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        set_xattr(&path, "user.note", b"a directory's").unwrap();
        set_xattr(&path, "trusted.note", b"root's").unwrap();
    }
    let with_acl = layers.lower().join("private/sticky");
    for kind in ["system.posix_acl_access", "system.posix_acl_default"] {
        set_xattr(&with_acl, kind, &acl_with_user(4444, 5)).unwrap();
    }
    let file = "private/sticky/setgid/closed/file";
    fs::write(layers.lower().join(file), "x").unwrap();
    for (path, _, _) in chain.iter().rev() {
        set_times(&layers.lower().join(path), (11, 12), (1_234_567_890, 13)).unwrap();
    }
    let mut mounted = subject().mount(&layers, &[]);
    fs::write(mounted.path(file), "changed").unwrap();
    for remounted in [false, true] {
        for (path, _, _) in chain {
            let lower = fs::metadata(layers.lower().join(path)).unwrap();
            for copy in [mounted.path(path), layers.upper.join(path)] {
                let meta = fs::metadata(&copy).unwrap();
                let what = copy.display();
                assert_eq!(meta.mode(), lower.mode(), "mode of {what}");
                assert_eq!(
                    (meta.uid(), meta.gid()),
                    (lower.uid(), lower.gid()),
                    "{what}"
                );
                assert_eq!(
                    (meta.mtime(), meta.mtime_nsec()),
                    (1_234_567_890, 13),
                    "mtime of {what}: a write in a file below is no change of the directory"
                );
                assert_eq!(
                    xattrs(&copy),
                    xattrs(&layers.lower().join(path)),
                    "xattrs of {what}"
                );
            }
        }
        if !remounted {
            mounted.remount();
        }
    }
}
