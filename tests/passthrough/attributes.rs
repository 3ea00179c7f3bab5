//! Sizes, times, and what is durable, after writes that the daemon doesn't see.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use rustix::mount::UnmountFlags;

use crate::bench::{content, copy_up, counter, layers_with, mount, some_bytes};
use crate::support::files::{Map, cut_power, open_rw};
use crate::support::{LoopFs, Scratch, is_running, wait_until};

/// What stat shows that a write changes.
fn shown(meta: &fs::Metadata) -> (u64, u64, (i64, i64), (i64, i64)) {
    let mtime = (meta.mtime(), meta.mtime_nsec());
    let ctime = (meta.ctime(), meta.ctime_nsec());
    (meta.len(), meta.blocks(), mtime, ctime)
}

/// What the mount shows by name and through descriptors is what upper has.
fn assert_shown(what: &str, upper: &Path, path: &Path, files: &[&File]) {
    let wanted = shown(&fs::metadata(upper).unwrap());
    assert_eq!(
        shown(&fs::metadata(path).unwrap()),
        wanted,
        "{what}, by name"
    );
    for file in files {
        assert_eq!(
            shown(&file.metadata().unwrap()),
            wanted,
            "{what}, through a descriptor"
        );
    }
}

/// After each kind of change through one descriptor, all others and the name show size, space and times.
#[test]
fn sizes_and_times_follow_every_write() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    let mounted = mount(&layers, &[]);
    for name in ["file", "new"] {
        let (path, upper) = (mounted.path(name), layers.upper.join(name));
        if name == "file" {
            copy_up(&path);
        }
        let mut open = OpenOptions::new();
        open.write(true).create(true);
        let writer = open.open(&path).unwrap();
        let other = File::open(&path).unwrap();
        let appender = OpenOptions::new().append(true).open(&path).unwrap();
        let files = [&writer, &other, &appender];
        let check = |what: &str| assert_shown(&format!("{name}: {what}"), &upper, &path, &files);
        check("opened");
        writer.write_all_at(&[1; 5000], 9000).unwrap();
        check("written");
        (&appender).write_all(b"to the end").unwrap();
        check("appended");
        writer.set_len(3).unwrap();
        check("cut");
        writer.set_len(100_000).unwrap();
        check("extended");
        let mode = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&writer, mode, 0, 1 << 20).unwrap();
        check("allocated");
        let copied =
            rustix::fs::copy_file_range(&other, Some(&mut 0), &writer, Some(&mut 2_000_000), 4096);
        assert_eq!(copied, Ok(4096));
        check("copied");
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&path, b"short").unwrap();
        check("truncated by an open");
        std::thread::sleep(Duration::from_millis(20));
        (&appender).write_all(b"more").unwrap();
        assert_eq!(content(&path), b"shortmore");
        check("appended after that");
    }
}

/// Stores to a mapping tell nobody: what stat shows must be right all the same, while the file is open and
/// when the mapping is all that is left of it.
#[test]
fn times_follow_writes_through_a_mapping() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    let mounted = mount(&layers, &[]);
    let (path, upper) = (mounted.path("file"), layers.upper.join("file"));
    copy_up(&path);
    let first = shown(&fs::metadata(&path).unwrap());
    let file = open_rw(&path);
    let map = Map::new(&file, true);
    let mut before = first;
    for (round, word) in [b"one", b"two", b"six"].into_iter().enumerate() {
        if round == 2 {
            drop(open_rw(&path));
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_shown("before a store", &upper, &path, &[]);
        map.write(word);
        assert_shown("after a store", &upper, &path, &[]);
        let now = shown(&fs::metadata(&path).unwrap());
        assert_ne!(
            now.2, before.2,
            "the modification time stays after store {round}"
        );
        before = now;
    }
    drop(file);
    std::thread::sleep(Duration::from_millis(20));
    map.write(b"end");
    assert_shown("with nothing but the mapping", &upper, &path, &[]);
    assert_ne!(shown(&fs::metadata(&path).unwrap()).2, before.2);
}

/// Mappings, reads and writes of several descriptors are of the same pages, those of upper.
#[test]
fn mappings_and_descriptors_agree() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    let mounted = mount(&layers, &[]);
    let path = mounted.path("file");
    let files = [open_rw(&path), open_rw(&path), File::open(&path).unwrap()];
    let maps = files.each_ref().map(|file| Map::new(file, false));
    let writable = Map::new(&files[0], true);
    files[1].write_all_at(b"by write", 0).unwrap();
    for map in &maps {
        assert_eq!(map.read(8), b"by write");
    }
    writable.write(b"by a map");
    for (map, file) in maps.iter().zip(&files) {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((map.read(8), &bytes), (b"by a map".to_vec(), b"by a map"));
    }
    assert_eq!(content(&layers.upper.join("file"))[..8], *b"by a map");
    drop(files);
    // Nobody has it open any more, but for the mappings.
    fs::write(&path, [b'z'; 5000]).unwrap();
    for map in &maps {
        assert_eq!(map.read(8), b"zzzzzzzz");
    }
    writable.write(b"last");
    assert_eq!(content(&path)[..5], *b"lastz");
}

/// What fsync(2), fdatasync(2), `O_SYNC` and msync(2) have made durable is there after power loss.
#[test]
fn what_is_synced_survives_power_loss() {
    let disk = LoopFs::ext4(128 << 20);
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes()).with_upper_in(disk.path());
    let mounted = mount(&layers, &[]);
    let ways = ["fsync", "fdatasync", "o_sync", "msync"];
    for way in ways {
        let path = mounted.path(way);
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true);
        if way == "o_sync" {
            std::os::unix::fs::OpenOptionsExt::custom_flags(&mut open, libc::O_SYNC);
        }
        let file = open.open(&path).unwrap();
        file.write_all_at(&some_bytes(), 0).unwrap();
        match way {
            "fsync" => file.sync_all().unwrap(),
            "fdatasync" => file.sync_data().unwrap(),
            "msync" => Map::new(&file, true).write(b"mapped"),
            _ => {}
        }
        File::open(mounted.root()).unwrap().sync_all().unwrap();
        assert_eq!(counter(&mounted, "requests_write"), 0, "{way}");
    }
    cut_power(disk.path());
    let (pid, root) = (mounted.daemon_pid(), mounted.root().to_owned());
    rustix::mount::unmount(&root, UnmountFlags::DETACH).unwrap();
    drop(mounted.already_ended());
    assert!(wait_until(Duration::from_secs(10), || !pid.is_some_and(is_running)));
    disk.cycle();
    for way in ways {
        let kept = content(&layers.upper.join(way));
        let mut wanted = some_bytes();
        if way == "msync" {
            wanted[..6].copy_from_slice(b"mapped");
            assert_eq!(kept[..4096], wanted[..4096], "{way}");
        } else {
            assert!(kept == wanted, "{way}: {} bytes are left", kept.len());
        }
    }
}
