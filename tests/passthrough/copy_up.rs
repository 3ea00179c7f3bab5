//! Copy-up while somebody reads the lower: nobody gets an error, and nothing writes to the lower.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::SeekFrom;

use crate::bench::{content, counter, layers_with, mount, rest_of, some_bytes, truncate};
use crate::support::files::{Map, open_rw};
use crate::support::{Scratch, assert_digests_equal, sh, tree_digest, wait_until};

/// The ways in which the contents of a file are changed.
const WAYS: usize = 9;

fn change(way: usize, path: &Path, bytes: &mut Vec<u8>) {
    match way {
        0 => {
            open_rw(path).write_all_at(b"rewritten", 50).unwrap();
            bytes[50..59].copy_from_slice(b"rewritten");
        }
        1 => {
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"appended").unwrap();
            bytes.extend_from_slice(b"appended");
        }
        2 => {
            fs::write(path, b"truncated").unwrap();
            *bytes = b"truncated".to_vec();
        }
        3 => {
            truncate(path, 77).unwrap();
            bytes.truncate(77);
        }
        4 => {
            Map::new(&open_rw(path), true).write(b"mapped");
            bytes[..6].copy_from_slice(b"mapped");
        }
        5 => {
            let punch =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(open_rw(path), punch, 0, 4096).unwrap();
            bytes[..4096].fill(0);
        }
        6 => {
            let other = path.with_extension("source");
            fs::write(&other, [7; 100]).unwrap();
            let (from, to) = (File::open(&other).unwrap(), open_rw(path));
            let copied =
                rustix::fs::copy_file_range(&from, Some(&mut 0), &to, Some(&mut 200), 100).unwrap();
            assert_eq!(copied, 100);
            bytes[200..300].fill(7);
        }
        7 => {
            open_rw(path).set_len(0).unwrap();
            bytes.clear();
        }
        _ => {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .unwrap();
            file.write_all(b"created").unwrap();
            bytes[..7].copy_from_slice(b"created");
        }
    }
}

/// Whatever is done beside readers and mappings of the lower, it stays as it is, and everybody sees what was
/// written.
#[test]
fn the_lower_is_never_written_to() {
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    for way in 0..WAYS {
        fs::write(layers.lower().join(format!("f{way}")), some_bytes()).unwrap();
    }
    let before = tree_digest(layers.lower());
    let mounted = mount(&layers, &[]);
    for way in 0..WAYS {
        let path = mounted.path(format!("f{way}"));
        let readers = [File::open(&path).unwrap(), File::open(&path).unwrap()];
        let map = Map::new(&readers[0], false);
        assert_eq!(map.read(100), some_bytes()[..100]);
        let mut bytes = some_bytes();
        change(way, &path, &mut bytes);
        assert!(content(&path) == bytes, "way {way}: the mount shows it");
        let in_upper = content(&layers.upper.join(format!("f{way}")));
        assert!(in_upper == bytes, "way {way}: upper has it");
        for reader in &readers {
            assert!(
                rest_of(reader) == bytes,
                "way {way}: who has it open sees it"
            );
        }
        if bytes.len() >= 100 {
            assert_eq!(
                map.read(100),
                bytes[..100],
                "way {way}: who has it mapped sees it"
            );
        }
        drop((map, readers));
        assert!(
            content(&path) == bytes,
            "way {way}: once the readers are gone"
        );
        change(way, &path, &mut bytes);
        assert!(content(&path) == bytes, "way {way}: again, without them");
    }
    assert_digests_equal(&before, &tree_digest(layers.lower()), "the lower");
    mounted.unmount();
    assert_digests_equal(&before, &tree_digest(layers.lower()), "the lower");
}

/// Somebody reads the lower, while others write, unlink, and open the file again.
#[test]
fn an_open_reader_of_the_lower_goes_over_to_upper() {
    let scratch = Scratch::new();
    let bytes = some_bytes();
    let layers = layers_with(&scratch, &bytes);
    let mounted = mount(&layers, &[]);
    let path = mounted.path("file");
    let ino = fs::metadata(&path).unwrap().ino();
    let reader = File::open(&path).unwrap();
    assert!(rest_of(&reader) == bytes);

    let mut open = OpenOptions::new();
    let writer = open.read(true).append(true).open(&path).unwrap();
    (&writer).write_all(b"more").unwrap();
    let second = File::open(&path).unwrap();
    let whole = [&bytes[..], b"more"].concat();
    assert!(rest_of(&second) == whole && content(&path) == whole);
    assert_eq!(rest_of(&reader), b"more", "as tail -f reads");
    assert_eq!(fs::metadata(&path).unwrap().ino(), ino);
    for file in [&reader, &second, &writer] {
        let meta = file.metadata().unwrap();
        assert_eq!((meta.ino(), meta.len(), meta.nlink()), (ino, 10_004, 1));
    }
    let seek = |to| rustix::fs::seek(&reader, to);
    assert_eq!(seek(SeekFrom::Hole(5)), Ok(10_004));
    assert_eq!(seek(SeekFrom::Data(10_004)), Err(rustix::io::Errno::NXIO));
    let copy = File::create(mounted.path("copy")).unwrap();
    let copied =
        rustix::fs::copy_file_range(&reader, Some(&mut 0), &copy, Some(&mut 0), 20_000).unwrap();
    assert_eq!(copied, 10_004);
    assert!(content(&mounted.path("copy")) == whole);

    fs::remove_file(&path).unwrap();
    (&writer).write_all(b"!").unwrap();
    for file in [&reader, &second] {
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        let mut end = [0; 5];
        file.read_exact_at(&mut end, 10_000).unwrap();
        assert_eq!(&end, b"more!");
    }
    drop((reader, second, writer));
}

/// A change of attributes alone copies up, too, and the file is opened beside readers of the lower.
#[test]
fn readers_before_and_after_a_chmod_see_the_same_data() {
    for options in [&[][..], &["metacopy=on"]] {
        let scratch = Scratch::new();
        let bytes = some_bytes();
        let layers = layers_with(&scratch, &bytes);
        let mounted = mount(&layers, options);
        let path = mounted.path("file");
        let before = File::open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let after = File::open(&path).unwrap();
        assert!(
            rest_of(&before) == bytes && rest_of(&after) == bytes,
            "{options:?}"
        );
        open_rw(&path).write_all_at(b"new", 0).unwrap();
        for file in [&before, &after] {
            let mut start = [0; 3];
            file.read_exact_at(&mut start, 0).unwrap();
            assert_eq!(&start, b"new", "{options:?}");
        }
        let mode = |file: &File| file.metadata().unwrap().mode() & 0o777;
        assert_eq!((mode(&before), mode(&after)), (0o600, 0o600));
        drop((before, after));
        assert!(content(&layers.lower().join("file")) == bytes);
    }
}

/// All names of a hard link lead to what was written through one of them, beside a reader of the lower.
#[test]
fn hard_links_stay_together() {
    let scratch = Scratch::new();
    let bytes = some_bytes();
    let layers = layers_with(&scratch, &bytes);
    let linked = layers.lower().join("linked");
    fs::hard_link(layers.lower().join("file"), &linked).unwrap();
    let mounted = mount(&layers, &[]);
    let names = ["file", "linked"].map(|name| mounted.path(name));
    let reader = File::open(&names[0]).unwrap();
    for (round, name) in [&names[1], &names[0], &names[1]].into_iter().enumerate() {
        open_rw(name).write_all_at(&[round as u8], 0).unwrap();
        for other in &names {
            assert_eq!(content(other)[0], round as u8);
            assert_eq!(fs::metadata(other).unwrap().nlink(), 2);
        }
    }
    let stat = names.each_ref().map(|name| fs::metadata(name).unwrap());
    assert_eq!(stat[0].ino(), stat[1].ino());
    assert_eq!(stat[0].mtime_nsec(), stat[1].mtime_nsec());
    fs::remove_file(&names[0]).unwrap();
    assert_eq!(fs::metadata(&names[1]).unwrap().nlink(), 1);
    assert_eq!(rest_of(&reader)[0], 2);
    assert!(content(&linked) == bytes);
}

/// What was open, and what was mapped for writing, leaves nothing behind once the kernel forgets it.
#[test]
fn what_is_forgotten_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    let mounted = mount(&layers, &[]);
    for i in 0..50 {
        fs::write(mounted.path(format!("n{i}")), b"x").unwrap();
    }
    let files = ["file", "n1", "n2"].map(|name| open_rw(&mounted.path(name)));
    // The lower's is cached.
    assert_eq!(counter(&mounted, "backing_files"), 2);
    assert_eq!(counter(&mounted, "open_nodes"), 3);
    drop(files);
    sh(mounted.root(), "rm -- *");
    let forgotten = wait_until(Duration::from_secs(10), || {
        ["backing_files", "open_nodes", "written_nodes"]
            .iter()
            .all(|name| counter(&mounted, name) == 0)
    });
    assert!(forgotten, "{:?}", mounted.stat_json());
}

/// Names are dropped from the kernel's cache while files are open; what is open stays what it was.
#[test]
fn a_refresh_leaves_open_files_alone() {
    let scratch = Scratch::new();
    let bytes = some_bytes();
    let layers = layers_with(&scratch, &bytes);
    let mounted = mount(&layers, &[]);
    let path = mounted.path("file");
    let reader = File::open(&path).unwrap();
    let map = Map::new(&reader, false);
    let refresh = || {
        let mut command = Command::new(crate::support::rovl_bin());
        let done = command
            .args(["ctl", "refresh"])
            .arg(mounted.root())
            .status();
        assert!(done.unwrap().success());
    };
    refresh();
    let writer = open_rw(&path);
    writer.write_all_at(b"new", 0).unwrap();
    refresh();
    assert_eq!(&content(&path)[..3], b"new");
    writer.write_all_at(b"NEW", 0).unwrap();
    assert_eq!(&content(&path)[..3], b"NEW");
    assert_eq!(&rest_of(&reader)[..3], b"NEW");
    assert_eq!(map.read(3), b"NEW");
}

/// An open that may only read and yet truncates reaches a running program after the kernel has refused it.
#[test]
fn a_running_program_is_not_truncated() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, b"");
    let mounted = mount(&layers, &[]);
    let program = mounted.path("program");
    fs::copy("/bin/sleep", &program).unwrap();
    // A child that another thread has just forked may have the copy open for writing for a moment.
    let mut running = None;
    let started = wait_until(Duration::from_secs(10), || {
        match Command::new(&program).arg("30").spawn() {
            Ok(child) => running = Some(child),
            Err(e) => assert_eq!(e.kind(), ErrorKind::ExecutableFileBusy),
        }
        running.is_some()
    });
    assert!(started, "it can't be executed");
    let mut running = running.unwrap();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC;
    let opened = rustix::fs::open(&program, flags, rustix::fs::Mode::empty());
    let length = fs::metadata(&program).unwrap().len();
    let ended = running.try_wait().unwrap();
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(opened.map(drop), Err(rustix::io::Errno::TXTBSY));
    assert_eq!(length, fs::metadata("/bin/sleep").unwrap().len());
    assert_eq!(ended, None);
}
