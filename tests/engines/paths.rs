//! Deep working directories, and calls that start from a directory descriptor (Engine fault 8: what
//! Go's standard library tests ask of a file system).

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, statat};
use rustix::io::Errno;

use crate::support::files::drop_caches;
use crate::support::{Scratch, as_user, require_root, subject, with_umask};

fn open_dir(at: BorrowedFd<'_>, name: &str) -> OwnedFd {
    openat(at, name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .unwrap_or_else(|e| panic!("open {name}: {e}"))
}

fn root(path: &Path) -> OwnedFd {
    open_dir(CWD, path.to_str().unwrap())
}

/// Goes `depth` directories of 200-byte names down, making them where `make` says so.
fn descend(start: &OwnedFd, depth: usize, make: bool) -> Vec<OwnedFd> {
    let mut chain = vec![start.try_clone().unwrap()];
    for i in 0..depth {
        let name = format!("{i:03}{}", "d".repeat(197));
        let last = chain[i].as_fd();
        if make {
            mkdirat(last, &name, Mode::from_raw_mode(0o755)).unwrap();
        }
        let next = open_dir(last, &name);
        chain.push(next);
    }
    chain
}

fn identity(at: &OwnedFd, name: &str) -> (u64, u64) {
    let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    (stat.st_dev, stat.st_ino)
}

/// Climbs from the last directory to the first by `..` alone, and finds each one's name in its
/// parent by device and inode number, as getwd does where the path is longer than PATH_MAX.
fn climb(chain: &[OwnedFd], top: (u64, u64)) -> usize {
    let mut at = chain.last().unwrap().try_clone().unwrap();
    let mut levels = 0;
    while identity(&at, ".") != top {
        let own = identity(&at, ".");
        let parent = open_dir(at.as_fd(), "..");
        let found = Dir::read_from(&parent).unwrap().any(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().to_str().unwrap();
            name != "." && name != ".." && identity(&parent, name) == own
        });
        assert!(found, "level {levels}: not found in its parent");
        at = parent;
        levels += 1;
    }
    levels
}

/// Engine fault 8. A working directory deeper than PATH_MAX can be found again by climbing, in
/// directories of a lower, and in new ones, and when the kernel has dropped its caches.
#[test]
fn a_deep_working_directory_is_found_by_climbing() {
    require_root();
    const DEPTH: usize = 40; // times 200 bytes: twice PATH_MAX
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    for dir in ["lower", "both"] {
        fs::create_dir(layers.lower().join(dir)).unwrap();
        descend(&root(&layers.lower().join(dir)), DEPTH, true);
    }
    let mounted = subject().mount(&layers, &[]);
    fs::create_dir(mounted.path("upper")).unwrap();
    descend(&root(&mounted.path("upper")), DEPTH, true);
    // A file at the bottom copies the whole chain up.
    let chain = descend(&root(&mounted.path("both")), DEPTH, false);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    openat(&chain[DEPTH], "file", flags, Mode::from_raw_mode(0o644)).unwrap();
    drop(chain);

    for dir in ["lower", "upper", "both"] {
        let start = root(&mounted.path(dir));
        let top = identity(&start, ".");
        let chain = descend(&start, DEPTH, false);
        assert_eq!(climb(&chain, top), DEPTH, "{dir}");
        let bottom = chain.into_iter().next_back().unwrap();
        drop_caches(2);
        assert_eq!(climb(&[bottom], top), DEPTH, "{dir}, caches dropped");
    }
}

/// getcwd(2) itself, where the path fits; and after the directory was renamed and removed.
#[test]
fn getcwd_follows_renames() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::create_dir_all(layers.lower().join("a/b/c")).unwrap();
    let mounted = subject().mount(&layers, &[]);
    // A thread of its own with a working directory of its own.
    with_umask(0o022, || {
        let cwd = || rustix::process::getcwd(Vec::new());
        let to_str = |path: &Path| path.to_str().unwrap().to_owned();
        rustix::process::chdir(mounted.path("a/b/c")).unwrap();
        assert_eq!(
            cwd().unwrap().to_str().unwrap(),
            to_str(&mounted.path("a/b/c"))
        );
        fs::rename(mounted.path("a/b"), mounted.path("moved")).unwrap();
        assert_eq!(
            cwd().unwrap().to_str().unwrap(),
            to_str(&mounted.path("moved/c"))
        );
        fs::rename(mounted.path("a"), mounted.path("moved/c/a")).unwrap();
        fs::write("a/file", "x").unwrap();
        assert!(mounted.path("moved/c/a/file").exists());
        fs::remove_dir_all(mounted.path("moved/c/a")).unwrap();
        fs::remove_dir(mounted.path("moved/c")).unwrap();
        assert_eq!(cwd().err(), Some(Errno::NOENT));
        assert!(
            fs::write("file", "x").is_err(),
            "a file in a removed directory"
        );
        rustix::process::chdir("/").unwrap();
    });
}

fn create(at: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::from_raw_mode(0o644))
}

/// Engine fault 8. A directory descriptor goes on naming its directory, whatever becomes of its
/// path: lower directories and new ones, renamed, with dropped caches.
#[test]
fn a_directory_descriptor_survives_renames() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    for lower in &layers.lowers {
        fs::create_dir_all(lower.join("lower/sub")).unwrap();
        fs::write(lower.join("lower/sub/old"), "old").unwrap();
    }
    let mounted = subject().mount(&layers, &[]);
    fs::create_dir_all(mounted.path("upper/sub")).unwrap();
    fs::write(mounted.path("upper/sub/old"), "old").unwrap();
    for dir in ["lower", "upper"] {
        let top = root(&mounted.path(dir));
        let sub = open_dir(top.as_fd(), "sub");
        let path_only =
            openat(&top, "sub", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        fs::rename(mounted.path(dir), mounted.path(format!("{dir}-moved"))).unwrap();
        fs::create_dir(mounted.path(dir)).unwrap();
        for caches in ["kept", "dropped"] {
            if caches == "dropped" {
                drop_caches(2);
            }
            let what = format!("{dir}, caches {caches}");
            create(&sub, caches).unwrap_or_else(|e| panic!("create in {what}: {e}"));
            let there = mounted.path(format!("{dir}-moved/sub"));
            assert!(there.join(caches).exists(), "{what}");
            assert!(
                statat(&path_only, "old", AtFlags::empty()).is_ok(),
                "{what}"
            );
            assert_eq!(identity(&sub, ".."), identity(&top, "."), "{what}");
            mkdirat(&top, format!("new-{caches}"), Mode::from_raw_mode(0o755)).unwrap();
        }
        rustix::fs::unlinkat(&sub, "old", AtFlags::empty()).unwrap();
        assert_eq!(fs::read_dir(mounted.path(dir)).unwrap().count(), 0);
    }
}

/// Engine fault 8. What is done in a directory that was removed fails with ENOENT, and what it was
/// can still be asked.
#[test]
fn a_removed_directory_takes_nothing_in() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::create_dir(layers.lower().join("lower")).unwrap();
    fs::write(layers.lower().join("lower/f"), "x").unwrap();
    let mounted = subject().mount(&layers, &[]);
    fs::create_dir(mounted.path("upper")).unwrap();
    for dir in ["lower", "upper"] {
        let held = root(&mounted.path(dir));
        fs::remove_dir_all(mounted.path(dir)).unwrap();
        // A new one under the same name is another one.
        fs::create_dir(mounted.path(dir)).unwrap();
        fs::write(mounted.path(dir).join("new"), "x").unwrap();
        assert_eq!(create(&held, "file").err(), Some(Errno::NOENT), "{dir}");
        let made = mkdirat(&held, "dir", Mode::from_raw_mode(0o755));
        assert_eq!(made, Err(Errno::NOENT), "{dir}");
        assert_eq!(
            statat(&held, "new", AtFlags::empty()).err(),
            Some(Errno::NOENT),
            "{dir}"
        );
        let names = Dir::read_from(&held).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name().to_bytes().to_vec();
            name != b"." && name != b".."
        });
        assert_eq!(names.count(), 0, "{dir}");
        assert!(rustix::fs::fstat(&held).is_ok(), "{dir}");
    }
}

/// Engine fault 8. Opens that must stay beneath a directory: symlinks that leave it are refused,
/// those within are followed, `..` within is fine.
#[test]
fn rooted_opens_stay_beneath_their_root() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let base = layers.lower().join("root");
    fs::create_dir_all(base.join("dir/sub")).unwrap();
    fs::write(base.join("file"), "inside").unwrap();
    fs::write(layers.lower().join("secret"), "outside").unwrap();
    symlink("../file", base.join("dir/in")).unwrap();
    symlink("../../secret", base.join("dir/out")).unwrap();
    symlink("/etc/passwd", base.join("abs")).unwrap();
    symlink("loop", base.join("loop")).unwrap();
    let mounted = subject().mount(&layers, &[]);
    for copied_up in [false, true] {
        let at = root(&mounted.path("root"));
        let open = |path: &str, resolve: ResolveFlags| {
            // EAGAIN: somewhere in the system something was renamed or mounted meanwhile.
            loop {
                match openat2(&at, path, OFlags::RDONLY, Mode::empty(), resolve) {
                    Err(Errno::AGAIN) => {}
                    result => break result.map(File::from),
                }
            }
        };
        let beneath = ResolveFlags::BENEATH;
        let read = |path: &str| {
            std::io::read_to_string(open(path, beneath).unwrap_or_else(|e| panic!("{path}: {e}")))
        };
        for path in ["file", "dir/in", "dir/sub/../../file", "dir/./in"] {
            assert_eq!(read(path).unwrap(), "inside", "{path}");
        }
        for path in ["dir/out", "abs", "../secret", "dir/../../secret"] {
            assert_eq!(open(path, beneath).err(), Some(Errno::XDEV), "{path}");
        }
        assert_eq!(open("loop", beneath).err(), Some(Errno::LOOP));
        let in_root = open("dir/out", ResolveFlags::IN_ROOT).err();
        assert_eq!(in_root, Some(Errno::NOENT));
        let no_links = open("dir/in", ResolveFlags::NO_SYMLINKS).err();
        assert_eq!(no_links, Some(Errno::LOOP));
        let no_follow = openat(&at, "abs", OFlags::NOFOLLOW, Mode::empty()).err();
        assert_eq!(no_follow, Some(Errno::LOOP));
        let not_dir = openat(&at, "file", OFlags::DIRECTORY, Mode::empty()).err();
        assert_eq!(not_dir, Some(Errno::NOTDIR));
        let slash = openat(&at, "file/", OFlags::RDONLY, Mode::empty()).err();
        assert_eq!(slash, Some(Errno::NOTDIR));
        if !copied_up {
            fs::write(mounted.path("root/dir/sub/new"), "x").unwrap();
            fs::write(mounted.path("root/file"), "inside").unwrap();
        }
    }
}

/// O_TMPFILE is served, or refused in the way that makes programs fall back.
#[test]
fn an_unnamed_file_works_or_is_refused_as_unsupported() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let mounted = subject().mount(&layers, &[]);
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    match openat(CWD, mounted.root(), flags, Mode::from_raw_mode(0o600)) {
        Err(e) => assert_eq!(e, Errno::OPNOTSUPP),
        Ok(file) => {
            rustix::io::write(&file, b"unnamed").unwrap();
            rustix::fs::linkat(&file, "", CWD, mounted.path("named"), AtFlags::EMPTY_PATH).unwrap();
            assert_eq!(fs::read(mounted.path("named")).unwrap(), b"unnamed");
        }
    }
}

/// A directory that only its owner may enter is no obstacle for a descriptor got before.
#[test]
fn a_descriptor_works_without_permission_on_the_way() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::create_dir_all(layers.lower().join("open/closed/inner")).unwrap();
    fs::write(layers.lower().join("open/closed/inner/f"), "x").unwrap();
    let mounted = subject().mount(&layers, &[]);
    let inner = root(&mounted.path("open/closed/inner"));
    use std::os::unix::fs::PermissionsExt;
    let closed = mounted.path("open/closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    as_user(1000, 1000, || {
        assert!(fs::metadata(mounted.path("open/closed/inner")).is_err());
        assert!(statat(&inner, "f", AtFlags::empty()).is_ok());
        let opened = openat(&inner, "f", OFlags::RDONLY, Mode::empty());
        assert!(opened.is_ok(), "{opened:?}");
    });
}
