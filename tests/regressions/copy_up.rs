//! Copy-up: where the bytes go, and which bytes.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, Instant};

use crate::support::files::{
    Map, data_ranges, disk_usage, drop_caches, open_rw, tree_usage, write_solid, write_sparse,
};
use crate::support::{
    LoopFs, Mounted, Scratch, Subject, Trace, data_paths, pattern, require_root, subject,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Fault 1. A lower file is open read-only (so a backing file may be registered for passthrough),
/// then opened read-write and written: 2.0.0 wrote into the lower and nothing into the upper.
#[test]
fn a_write_beside_a_read_only_descriptor_changes_the_upper_and_never_the_lower() {
    require_root();
    for options in data_paths() {
        let scratch = Scratch::new();
        let layers = scratch.layers(2);
        let before = pattern(1, 10_000);
        for i in 0..8 {
            fs::write(layers.lowers[i % 2].join(format!("f{i}")), &before).unwrap();
        }
        let mut mounted = subject().mount(&layers, &options);
        let mut expected = Vec::new();
        for way in 0..8 {
            let path = mounted.path(format!("f{way}"));
            let reader = File::open(&path).unwrap();
            reader.read_exact_at(&mut [0; 100], 0).unwrap();
            let mut content = before.clone();
            write_in_way(way, &path, &mut content);
            expected.push(content);
            drop(reader);
        }
        let mut faults = Vec::new();
        for when in ["at once", "remounted"] {
            for (way, content) in expected.iter().enumerate() {
                let name = format!("f{way}");
                let places = [
                    (layers.lowers[way % 2].join(&name), &before),
                    (layers.upper.join(&name), content),
                    (mounted.path(&name), content),
                ];
                for (path, wanted) in places {
                    if fs::read(&path).ok().as_ref() != Some(wanted) {
                        faults.push(format!("way {way} {when}: {}", path.display()));
                    }
                }
            }
            mounted.remount();
        }
        assert!(
            faults.is_empty(),
            "wrong content, with options {options:?}:\n{}",
            faults.join("\n")
        );
    }
}

/// The ways in which a file can be changed while somebody else reads it.
fn write_in_way(way: usize, path: &std::path::Path, content: &mut Vec<u8>) {
    match way {
        0 | 1 => {
            open_rw(path).write_all_at(b"rewritten", 50).unwrap();
            content[50..59].copy_from_slice(b"rewritten");
        }
        2 => {
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"appended").unwrap();
            content.extend_from_slice(b"appended");
        }
        3 => {
            fs::write(path, b"truncated and written").unwrap();
            *content = b"truncated and written".to_vec();
        }
        4 => {
            OpenOptions::new()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(77)
                .unwrap();
            content.truncate(77);
        }
        5 => {
            let file = open_rw(path);
            Map::new(&file, true).write(b"through a map");
            content[..13].copy_from_slice(b"through a map");
        }
        6 => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
            open_rw(path).write_all_at(b"after chmod", 9000).unwrap();
            content[9000..9011].copy_from_slice(b"after chmod");
        }
        _ => {
            let linked = path.with_extension("link");
            fs::hard_link(path, &linked).unwrap();
            open_rw(&linked).write_all_at(b"other name", 4096).unwrap();
            content[4096..4106].copy_from_slice(b"other name");
        }
    }
}

/// The other half of fault 1, and POSIX: who opened the file before its copy-up sees the write, by
/// descriptor and by mapping. (The kernel's overlayfs goes on showing the lower file.)
#[test]
fn an_older_read_only_descriptor_and_mapping_see_the_write() {
    require_root();
    for options in data_paths() {
        let scratch = Scratch::new();
        let layers = scratch.layers(1);
        fs::write(layers.lower().join("f"), pattern(3, 8192)).unwrap();
        let mounted = subject().mount(&layers, &options);
        let path = mounted.path("f");
        let reader = File::open(&path).unwrap();
        let map = Map::new(&reader, false);
        assert_eq!(map.read(16), pattern(3, 16));

        open_rw(&path).write_all_at(b"seen by all", 0).unwrap();
        let mut seen = [0; 11];
        reader.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, b"seen by all", "descriptor, {options:?}");
        assert_eq!(map.read(11), b"seen by all", "mapping, {options:?}");

        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"tail")
            .unwrap();
        assert_eq!(reader.metadata().unwrap().len(), 8196, "fstat, {options:?}");
        drop(map);
    }
}

/// Fault 6. unlink of a lower file, and a rename onto one, need a whiteout or a replacement, and
/// none of its bytes.
#[test]
fn removing_a_big_lower_file_copies_nothing() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    for name in ["unlinked", "replaced"] {
        write_solid(&layers.lower().join(name), 512 * MIB);
    }
    let mounted = subject().mount(&layers, &[]);
    fs::write(mounted.path("new"), "small").unwrap();
    let trace = mounted.daemon_pid().map(|pid| {
        Trace::attach(
            pid,
            "read,pread64,readv,preadv,write,pwrite64,copy_file_range,sendfile,splice",
        )
    });
    let start = Instant::now();
    fs::remove_file(mounted.path("unlinked")).unwrap();
    fs::rename(mounted.path("new"), mounted.path("replaced")).unwrap();
    let took = start.elapsed();
    if let Some(trace) = trace {
        let moved: u64 = trace
            .finish()
            .iter()
            .filter(|call| !call.text.contains("/dev/fuse"))
            .filter_map(|call| call.result())
            .sum();
        assert!(moved < 64 << 10, "{moved} bytes were moved");
    }
    assert!(tree_usage(&layers.upper) < MIB);
    assert!(took < Duration::from_secs(5), "took {took:?}");
    assert!(!mounted.path("unlinked").exists());
    assert_eq!(fs::read(mounted.path("replaced")).unwrap(), b"small");
}

/// Nor does the removal, the renaming over or the linking of one name of a hard link, not even when
/// the kernel lets go of the inode, or of the mount.
#[test]
fn removing_one_name_of_a_big_lower_file_copies_nothing() {
    require_root();
    if subject() == Subject::Kernel {
        return; // It copies up, to have a place for the link count.
    }
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    for pair in ["a", "b"] {
        write_solid(&layers.lower().join(pair), 256 * MIB);
        fs::hard_link(
            layers.lower().join(pair),
            layers.lower().join(format!("{pair}2")),
        )
        .unwrap();
    }
    let mounted = subject().mount(&layers, &[]);
    fs::write(mounted.path("new"), "small").unwrap();
    fs::remove_file(mounted.path("a")).unwrap();
    fs::rename(mounted.path("new"), mounted.path("b")).unwrap();
    drop_caches(2);
    assert_eq!(fs::metadata(mounted.path("a2")).unwrap().len(), 256 * MIB);
    mounted.unmount();
    assert!(tree_usage(&layers.upper) + tree_usage(&layers.work) < MIB);
}

/// Truncation needs none of the old bytes either: O_TRUNC, and truncate to 0.
#[test]
fn truncating_a_big_lower_file_copies_nothing() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    for name in ["open", "truncate"] {
        write_solid(&layers.lower().join(name), 256 * MIB);
    }
    let mounted = subject().mount(&layers, &[]);
    let trace = mounted.daemon_pid().map(|pid| {
        Trace::attach(
            pid,
            "read,pread64,readv,preadv,write,pwrite64,copy_file_range,sendfile,splice",
        )
    });
    fs::write(mounted.path("open"), "x").unwrap();
    rustix::fs::ftruncate(open_rw_for_truncate(&mounted), 0).unwrap();
    if let Some(trace) = trace {
        let moved: u64 = trace
            .finish()
            .iter()
            .filter(|call| !call.text.contains("/dev/fuse"))
            .filter_map(|call| call.result())
            .sum();
        assert!(moved < 64 << 10, "{moved} bytes were moved");
    }
    assert_eq!(fs::read(mounted.path("open")).unwrap(), b"x");
    assert_eq!(fs::metadata(mounted.path("truncate")).unwrap().len(), 0);
    assert!(tree_usage(&layers.upper) < MIB);
}

/// A descriptor to truncate through. The kernel's overlayfs copies the data at this open already:
/// there the truncation is part of the open.
fn open_rw_for_truncate(mounted: &Mounted) -> File {
    OpenOptions::new()
        .write(true)
        .truncate(*mounted.subject() == Subject::Kernel)
        .open(mounted.path("truncate"))
        .unwrap()
}

/// Fault 7. Holes stay holes: at the start, between data and at the end, in 1 GiB and in 8 GiB.
#[test]
fn copy_up_keeps_holes() {
    require_root();
    for (name, size) in [("one", GIB), ("eight", 8 * GIB)] {
        let scratch = Scratch::new();
        let layers = scratch.layers(1);
        let page = pattern(7, 4096);
        let at = [0, 300 * MIB, 300 * MIB + 8192, size / 2, size - MIB];
        let data: Vec<(u64, &[u8])> = at[1..].iter().map(|at| (*at, &page[..])).collect();
        let lower = layers.lower().join(name);
        write_sparse(&lower, size, &data);
        write_sparse(&layers.lower().join("hole"), size, &[]);
        assert!(disk_usage(&lower) < MIB, "the lower is not sparse");

        let mounted = subject().mount(&layers, &[]);
        let start = Instant::now();
        open_rw(&mounted.path(name))
            .write_all_at(b"first", 0)
            .unwrap();
        open_rw(&mounted.path("hole"))
            .write_all_at(b"last", size)
            .unwrap();
        let took = start.elapsed();
        for copied in [name, "hole"] {
            let usage = disk_usage(&layers.upper.join(copied));
            assert!(
                usage < hole_limit(),
                "{copied} of {size} takes {usage} bytes"
            );
        }
        assert!(took < Duration::from_secs(10), "took {took:?}");

        let file = File::open(mounted.path(name)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), size);
        for (at, bytes) in data {
            let mut read = vec![0; bytes.len()];
            file.read_exact_at(&mut read, at).unwrap();
            assert_eq!(read, bytes, "at {at}");
        }
        let ranges = data_ranges(&layers.upper.join(name));
        assert!(ranges.len() >= 4, "data at {ranges:x?}");
    }
}

/// Bytes on disk that a copy of a few pages may take. The kernel looks for holes in steps of 1 MiB.
fn hole_limit() -> u64 {
    match subject() {
        Subject::Kernel => 8 * MIB,
        _ => MIB,
    }
}

/// Holes also survive where upper and lower are different file systems: no clone, no
/// copy_file_range between them.
#[test]
fn copy_up_to_another_file_system_keeps_holes() {
    require_root();
    let small = LoopFs::ext4(64 * MIB);
    let scratch = Scratch::new();
    let layers = scratch.layers(1).with_upper_in(small.path());
    write_sparse(
        &layers.lower().join("sparse"),
        GIB,
        &[(512 * MIB, b"middle")],
    );
    let mounted = subject().mount(&layers, &[]);
    open_rw(&mounted.path("sparse"))
        .write_all_at(b"start", 0)
        .expect("1 GiB of holes fits 64 MiB");
    assert!(disk_usage(&layers.upper.join("sparse")) < hole_limit());
    let mut middle = [0; 6];
    File::open(mounted.path("sparse"))
        .unwrap()
        .read_exact_at(&mut middle, 512 * MIB)
        .unwrap();
    assert_eq!(&middle, b"middle");
}

/// A file of bytes, not of holes, arrives whole, whatever its size.
#[test]
fn copy_up_copies_every_byte() {
    require_root();
    let other = LoopFs::btrfs(400 * MIB);
    for place in [None, Some(other.path())] {
        let scratch = Scratch::new();
        let mut layers = scratch.layers(1);
        if let Some(place) = place {
            layers = layers.with_upper_in(place);
        }
        let sizes = [0, 1, 4095, 4096, 4097, 131_072, 131_073, 5 * MIB + 3];
        for size in sizes {
            write_solid(&layers.lower().join(size.to_string()), size);
        }
        let mounted = subject().mount(&layers, &[]);
        for size in sizes {
            let name = size.to_string();
            let mut file = OpenOptions::new()
                .append(true)
                .open(mounted.path(&name))
                .unwrap();
            file.write_all(b"end").unwrap();
            drop(file);
            let mut expected = fs::read(layers.lower().join(&name)).unwrap();
            expected.extend_from_slice(b"end");
            assert!(
                fs::read(mounted.path(&name)).unwrap() == expected,
                "merged {name}"
            );
            assert!(
                fs::read(layers.upper.join(&name)).unwrap() == expected,
                "upper {name}"
            );
        }
    }
}

/// Fault 12. The bytes of a copy-up are on disk before the call that gives them their name:
/// otherwise power loss leaves an empty file where a whole one was.
#[test]
fn copied_up_data_is_synced_before_it_is_published() {
    require_root();
    for (what, volatile) in [("write", false), ("chmod", false), ("write", true)] {
        let scratch = Scratch::new();
        let layers = scratch.layers(1);
        write_solid(&layers.lower().join("precious"), MIB);
        let options: &[&str] = if volatile { &["volatile"] } else { &[] };
        let mounted = subject().mount(&layers, options);
        let Some(pid) = mounted.daemon_pid() else {
            return; // The kernel makes no system calls to look at.
        };
        let trace = Trace::attach(
            pid,
            "fsync,fdatasync,syncfs,sync_file_range,link,linkat,rename,renameat,renameat2",
        );
        let path = mounted.path("precious");
        if what == "write" {
            let file = open_rw(&path);
            file.write_all_at(b"changed", 0).unwrap();
            file.sync_all().unwrap();
        } else {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let calls = trace.finish();
        let is_sync = |name: &str| matches!(name, "fsync" | "fdatasync" | "syncfs");
        let synced = calls.iter().position(|c| is_sync(&c.name) && !c.failed());
        if volatile {
            assert_eq!(synced, None, "volatile must not sync: {calls:#?}");
            continue;
        }
        let published = calls
            .iter()
            .find(|c| !is_sync(&c.name) && c.text.contains("precious\"") && !c.failed())
            .unwrap_or_else(|| panic!("no call publishes the copy: {calls:#?}"));
        let synced = synced.map(|i| &calls[i]);
        assert!(
            synced.is_some_and(|sync| sync.end < published.start),
            "published before it was synced ({what}): {calls:#?}"
        );
    }
}
