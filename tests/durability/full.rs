//! Full disks: an error for who writes, nothing half-done, and life after space was freed.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::Duration;

use crate::support::files::{close, drop_caches, open_rw, tree_usage, write_solid};
use crate::support::{
    Layers, LoopFs, Mounted, Scratch, assert_digests_equal, errno, pattern, require_root, subject,
    tree_digest, wait_until,
};

const MIB: u64 = 1 << 20;

/// A small ext4 and a small XFS for upper.
fn disks() -> [(&'static str, LoopFs); 2] {
    [
        ("ext4", LoopFs::ext4(48 * MIB)),
        ("xfs", LoopFs::xfs(300 * MIB)),
    ]
}

fn work_is_empty(layers: &Layers) -> bool {
    fs::read_dir(layers.work.join("work")).map_or(0, Iterator::count) == 0
}

/// Writes until something fails: the number of bytes that were taken, and the error of write, fsync
/// or close.
fn write_until_full(path: &std::path::Path, limit: u64) -> (u64, Option<i32>) {
    let mut file = match File::create(path) {
        Ok(file) => file,
        Err(e) => return (0, e.raw_os_error()),
    };
    let chunk = pattern(5, 1 << 18);
    let mut taken = 0;
    let mut error = None;
    while taken < limit {
        match file.write(&chunk) {
            Ok(n) => taken += n as u64,
            Err(e) => {
                error = e.raw_os_error();
                break;
            }
        }
    }
    let synced = file.sync_all().err().and_then(|e| e.raw_os_error());
    let closed = close(file).err().and_then(|e| e.raw_os_error());
    (taken, error.or(synced).or(closed))
}

/// Writes a file and looks at each error that there can be.
fn write_synced(path: &std::path::Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()?;
    close(file)
}

/// Whoever writes on a full disk is told so, by write, fsync or close; and when space is freed the
/// mount goes on.
#[test]
fn a_full_disk_is_reported_and_survived() {
    require_root();
    for (kind, disk) in disks() {
        let scratch = Scratch::new();
        let layers = scratch.layers(1).with_upper_in(disk.path());
        fs::write(layers.lower().join("lower"), "lower").unwrap();
        let mut mounted = subject().mount(&layers, &[]);
        fs::write(mounted.path("before"), "written before").unwrap();
        disk.fill("ballast", 8 * MIB);
        let (taken, error) = write_until_full(&mounted.path("big"), 400 * MIB);
        assert_eq!(
            error,
            Some(libc::ENOSPC),
            "{kind}: {taken} bytes were taken"
        );
        assert!(mounted.daemon_alive());
        assert_eq!(fs::read(mounted.path("lower")).unwrap(), b"lower");
        assert_eq!(fs::read(mounted.path("before")).unwrap(), b"written before");

        // A full disk must let go of what is on it.
        fs::remove_file(mounted.path("big")).unwrap_or_else(|e| panic!("{kind}: rm: {e}"));
        let whole = pattern(9, 2 << 20);
        // FUSE tells of the last close a moment later: until then the space is taken.
        let written = wait_until(Duration::from_secs(20), || {
            write_synced(&mounted.path("after"), &whole).is_ok()
        });
        assert!(written, "{kind}: no space after rm");
        fs::write(mounted.path("lower"), "changed").unwrap();
        mounted.remount();
        assert!(fs::read(mounted.path("after")).unwrap() == whole, "{kind}");
        assert_eq!(fs::read(mounted.path("lower")).unwrap(), b"changed");
    }
}

/// What asks for a copy-up.
fn copying_calls(mounted: &Mounted) -> Vec<(&'static str, i32)> {
    let path = mounted.path("big");
    let open_and = |change: &dyn Fn(&File) -> std::io::Result<()>| {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        change(&file)?;
        file.sync_all()?;
        close(file)
    };
    vec![
        ("write", errno(open_and(&|f| f.write_all_at(b"x", 100)))),
        (
            "append",
            errno(open_and(&|f| f.write_all_at(b"x", 20 * MIB))),
        ),
        ("ftruncate", errno(open_and(&|f| f.set_len(19 * MIB)))),
        ("chmod", {
            errno(fs::set_permissions(
                &path,
                fs::Permissions::from_mode(0o600),
            ))
        }),
        (
            "chown",
            errno(std::os::unix::fs::chown(&path, Some(5), None)),
        ),
        ("rename", errno(fs::rename(&path, mounted.path("moved")))),
        ("link", errno(fs::hard_link(&path, mounted.path("linked")))),
    ]
}

/// A copy-up that finds no space fails with ENOSPC, publishes nothing, leaves nothing in work, and
/// the lower's file stays visible as it was; with space it works.
#[test]
fn a_copy_up_without_space_changes_nothing() {
    require_root();
    for (kind, disk) in disks() {
        let scratch = Scratch::new();
        let layers = scratch.layers(1).with_upper_in(disk.path());
        write_solid(&layers.lower().join("big"), 20 * MIB);
        let mut mounted = subject().mount(&layers, &[]);
        disk.fill("ballast", 5 * MIB);
        let before = tree_digest(mounted.root());
        let usage = tree_usage(&layers.upper);
        for (call, result) in copying_calls(&mounted) {
            assert_eq!(result, libc::ENOSPC, "{kind}: {call}");
        }
        // Pages that failed to be written may be in the cache still; the next test is about them.
        drop_caches(3);
        for remounted in [false, true] {
            let what = format!("{kind}, remounted: {remounted}");
            assert_digests_equal(&before, &tree_digest(mounted.root()), &what);
            assert_eq!(fs::read_dir(&layers.upper).unwrap().count(), 0, "{what}");
            assert!(tree_usage(&layers.upper) <= usage + 8192, "{what}");
            assert!(work_is_empty(&layers), "{what}: work has left-overs");
            assert!(mounted.daemon_alive());
            if !remounted {
                assert!(disk.free() > 3 * MIB, "{what}: space was lost");
                mounted.remount();
            }
        }
        fs::remove_file(disk.path().join("ballast")).unwrap();
        let file = open_rw(&mounted.path("big"));
        file.write_all_at(b"now", 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        let mut whole = fs::read(layers.lower().join("big")).unwrap();
        whole[..3].copy_from_slice(b"now");
        mounted.remount();
        assert!(fs::read(mounted.path("big")).unwrap() == whole, "{kind}");
    }
}

/// Who reads the file after a write to it failed sees the lower's bytes and size, not those that
/// were never stored.
#[test]
fn a_failed_write_is_not_shown_afterwards() {
    require_root();
    let disk = LoopFs::ext4(48 * MIB);
    let scratch = Scratch::new();
    let layers = scratch.layers(1).with_upper_in(disk.path());
    write_solid(&layers.lower().join("big"), 20 * MIB);
    let mounted = subject().mount(&layers, &[]);
    disk.fill("ballast", 5 * MIB);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mounted.path("big"));
    if let Ok(file) = file {
        let failed = file
            .write_all_at(b"never stored", 20 * MIB)
            .and_then(|()| file.sync_all())
            .and_then(|()| close(file));
        assert_eq!(errno(failed), libc::ENOSPC);
    }
    let seen = fs::read(mounted.path("big")).unwrap();
    assert_eq!(
        seen.len() as u64,
        20 * MIB,
        "the size of what was not stored"
    );
    assert!(seen == fs::read(layers.lower().join("big")).unwrap());
}

/// Without a free inode nothing can be made; what can't be done is reported and not half-done, and
/// files of upper can still be removed.
#[test]
fn a_disk_without_inodes_is_reported_and_survived() {
    require_root();
    let disk = LoopFs::ext4_few_inodes(16 * MIB);
    let scratch = Scratch::new();
    let layers = scratch.layers(1).with_upper_in(disk.path());
    for i in 0..20 {
        fs::write(layers.lower().join(format!("f{i}")), "lower").unwrap();
    }
    fs::create_dir(layers.lower().join("d")).unwrap();
    fs::write(layers.lower().join("d/f"), "lower").unwrap();
    let mut mounted = subject().mount(&layers, &[]);
    fs::write(mounted.path("f0"), "upper").unwrap();
    let mut made = 0;
    let full = (0..).find_map(|i| {
        made = i;
        errno_of(File::create(mounted.path(format!("new{i}"))))
    });
    assert_eq!(full, Some(libc::ENOSPC));
    assert!(made > 10);
    assert_eq!(errno(fs::create_dir(mounted.path("dir"))), libc::ENOSPC);
    assert_eq!(errno(fs::write(mounted.path("f1"), "x")), libc::ENOSPC);
    assert_eq!(errno(fs::write(mounted.path("d/f"), "x")), libc::ENOSPC);
    assert_eq!(fs::read(mounted.path("f1")).unwrap(), b"lower");
    assert_eq!(fs::read(mounted.path("d/f")).unwrap(), b"lower");
    // A whiteout may need an inode of its own: the file is gone, or it is there.
    let removed = fs::remove_file(mounted.path("f2")).is_ok();
    assert_eq!(mounted.path("f2").exists(), !removed);
    let renamed = fs::rename(mounted.path("f0"), mounted.path("g0")).is_ok();
    assert_eq!(mounted.path("g0").exists(), renamed);
    assert_eq!(mounted.path("f0").exists(), !renamed);

    for i in 0..made {
        fs::remove_file(mounted.path(format!("new{i}")))
            .unwrap_or_else(|e| panic!("rm new{i}: {e}"));
    }
    fs::write(mounted.path("f1"), "upper").unwrap();
    fs::write(mounted.path("d/f"), "upper").unwrap();
    fs::create_dir(mounted.path("dir")).unwrap();
    mounted.remount();
    assert_eq!(mounted.path("f2").exists(), !removed);
    assert_eq!(fs::read(mounted.path("d/f")).unwrap(), b"upper");
    let name = if renamed { "g0" } else { "f0" };
    assert_eq!(fs::read(mounted.path(name)).unwrap(), b"upper");
}

fn errno_of<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

/// rm -r of lower directories on a full disk: each entry is gone or there, and at last, with space,
/// all are gone.
#[test]
fn removals_on_a_full_disk_do_everything_or_nothing() {
    require_root();
    let disk = LoopFs::ext4_few_inodes(16 * MIB);
    let scratch = Scratch::new();
    let layers = scratch.layers(1).with_upper_in(disk.path());
    for d in 0..30 {
        let dir = layers.lower().join(format!("d{d}"));
        fs::create_dir(&dir).unwrap();
        for f in 0..20 {
            fs::write(dir.join(format!("f{f}")), "x").unwrap();
        }
    }
    let mut mounted = subject().mount(&layers, &[]);
    let mut made = 0;
    while File::create(mounted.path(format!("new{made}"))).is_ok() {
        made += 1;
    }
    // A few inodes to begin with.
    for i in 0..4 {
        fs::remove_file(mounted.path(format!("new{i}"))).unwrap();
    }
    let mut gone = Vec::new();
    for d in 0..30 {
        for f in 0..20 {
            let name = format!("d{d}/f{f}");
            gone.push((fs::remove_file(mounted.path(&name)).is_ok(), name));
        }
    }
    for remounted in [false, true] {
        for (gone, name) in &gone {
            let there = fs::metadata(mounted.path(name)).is_ok_and(|meta| meta.size() == 1);
            assert_eq!(there, !gone, "{name}, remounted: {remounted}");
        }
        if !remounted {
            for i in 4..made {
                fs::remove_file(mounted.path(format!("new{i}"))).unwrap();
            }
            mounted.remount();
        }
    }
    for d in 0..30 {
        fs::remove_dir_all(mounted.path(format!("d{d}"))).unwrap();
    }
    mounted.remount();
    assert_eq!(fs::read_dir(mounted.root()).unwrap().count(), 0);
}
