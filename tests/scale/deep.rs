//! A path of 4,000 bytes.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, renameat, statat, unlinkat};

use super::meter::{alone, drop_caches, entries, open_dir};
use super::support::{Mounted, Scratch, require_root, run, subject};

/// Bytes of the deep path, relative to the root of the tree.
const LENGTH: usize = 4000;

const DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

#[test]
fn a_path_of_2_000_short_names() {
    deep_path("d");
}

#[test]
fn a_path_of_20_long_names() {
    deep_path(&"n".repeat(199));
}

fn levels(name: &str) -> usize {
    LENGTH / (name.len() + 1)
}

/// Makes directories in one another; the deepest.
fn dig(top: &Path, name: &str) -> OwnedFd {
    let mut dir = open_dir(top);
    for _ in 0..levels(name) {
        mkdirat(&dir, name, Mode::from(0o755)).unwrap();
        dir = openat(&dir, name, DIR, Mode::empty()).unwrap();
    }
    dir
}

/// Goes down name by name.
fn descend(top: &Path, name: &str) -> OwnedFd {
    let mut dir = open_dir(top);
    for level in 0..levels(name) {
        dir =
            openat(&dir, name, DIR, Mode::empty()).unwrap_or_else(|e| panic!("level {level}: {e}"));
    }
    dir
}

fn put(dir: &OwnedFd, name: &str, data: &[u8]) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::from(0o644))
        .unwrap_or_else(|e| panic!("can't write {name}: {e}"));
    rustix::io::write(&file, data).unwrap();
}

fn content(dir: &OwnedFd, name: &str) -> Vec<u8> {
    let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .unwrap_or_else(|e| panic!("can't read {name}: {e}"));
    let mut data = vec![0; 100];
    let n = rustix::io::read(&file, &mut data[..]).unwrap();
    data.truncate(n);
    data
}

fn names(dir: &OwnedFd) -> Vec<String> {
    let here = openat(dir, ".", DIR, Mode::empty()).unwrap();
    let mut names: Vec<String> = entries(&here, usize::MAX)
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    names.sort();
    names
}

fn deep_path(name: &str) {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    let bottom = dig(layers.lower(), name);
    put(&bottom, "file", b"lower");
    put(&bottom, "gone", b"lower");
    mkdirat(&bottom, "dir", Mode::from(0o755)).unwrap();
    put(
        &openat(&bottom, "dir", DIR, Mode::empty()).unwrap(),
        "inside",
        b"lower",
    );
    drop(bottom);
    drop_caches();

    let mut mounted = subject().mount(&layers, &[]);
    let start = Instant::now();
    let bottom = descend(mounted.root(), name);
    println!("down {} levels: {:?}", levels(name), start.elapsed());
    assert_eq!(names(&bottom), ["dir", "file", "gone"]);
    change(&bottom);
    let after = ["dir.moved", "file", "made", "moved"];
    assert_eq!(names(&bottom), after);
    drop(bottom);
    println!("after changes: {:?}", start.elapsed());

    mounted.remount();
    by_whole_path(&mounted, name, &after);
    remove_all(&mounted, name);
    mounted.remount();
    assert!(!mounted.path(name).exists(), "it stays removed");
    mounted.unmount();
    assert!(start.elapsed().as_secs() < 60, "took {:?}", start.elapsed());
}

/// Each kind of change, at the bottom.
fn change(bottom: &OwnedFd) {
    put(bottom, "made", b"new");
    mkdirat(bottom, "new", Mode::from(0o755)).unwrap();
    renameat(bottom, "new", bottom, "moved").unwrap();
    put(bottom, "file", b"copied up");
    unlinkat(bottom, "gone", AtFlags::empty()).unwrap();
    renameat(bottom, "dir", bottom, "dir.moved").unwrap();
    let inside = openat(bottom, "dir.moved", DIR, Mode::empty()).unwrap();
    assert_eq!(content(&inside, "inside"), b"lower");
    put(&inside, "inside", b"copied up too");
}

/// One openat of 4,000 bytes.
fn by_whole_path(mounted: &Mounted, name: &str, want: &[&str]) {
    let path = vec![name; levels(name)].join("/");
    let root = open_dir(mounted.root());
    let bottom = openat(&root, path.as_str(), DIR, Mode::empty()).unwrap();
    assert_eq!(names(&bottom), want);
    assert_eq!(content(&bottom, "file"), b"copied up");
    assert_eq!(content(&bottom, "made"), b"new");
    assert_eq!(content(&bottom, "dir.moved/inside"), b"copied up too");
    let up = statat(&bottom, "..", AtFlags::empty()).unwrap();
    let parent = vec![name; levels(name) - 1].join("/");
    let parent = statat(&root, parent.as_str(), AtFlags::empty()).unwrap();
    assert_eq!(
        up.st_ino, parent.st_ino,
        "the parent of the deepest directory"
    );
}

fn remove_all(mounted: &Mounted, name: &str) {
    let path = mounted.path(name);
    let start = Instant::now();
    run("rm", &["-rf", path.to_str().unwrap()]);
    println!("rm -rf: {:?}", start.elapsed());
    assert!(fs::read_dir(mounted.root()).unwrap().next().is_none());
}
