//! Cases that the property test found and shrank, each named after what was wrong.

use super::layers::capability;
use super::model::Disk::Ext4;
use super::model::Fa::{FaPlain, FaPunch};
use super::model::Node::{Dir, File, Link as Name};
use super::model::Op::*;
use super::model::Sk::SkHole;
use super::model::{Case, Disk, Entry, Ext, L, M, O, Op, T, b, e};
use super::mounts::{Disks, Subject};
use super::run::{Source, run};

pub const ROOT: u32 = 0;
const USER: u32 = 1000;
pub const THEN: T = T(1_000_000_000, 1);

/// A directory of a lower.
pub fn dir(path: &[u8], mode: u32) -> Entry {
    e(b(path), Dir, M(mode), ROOT, ROOT, THEN, L(vec![]))
}

/// A file of 5000 bytes in a lower.
pub fn file(path: &[u8], mode: u32, uid: u32) -> Entry {
    let data = File(5000, L(vec![Ext(0, 5000, 7)]));
    e(b(path), data, M(mode), uid, 65_534, THEN, L(vec![]))
}

/// Another name of `first` in a lower.
pub fn link(path: &[u8], first: &[u8]) -> Entry {
    e(b(path), Name(b(first)), M(0), ROOT, ROOT, THEN, L(vec![]))
}

/// Runs a case of one lower on the subject; the test fails if it fails.
pub fn check_on(disk: Disk, lower: Vec<Entry>, before: Vec<Op>, ops: Vec<Op>) {
    let lowers = vec![[vec![dir(b"", 0o755)], lower].concat()];
    check(Case {
        disk,
        options: "",
        lowers,
        before,
        ops,
    });
}

/// Runs a case; the test fails if it fails.
pub fn check(mut case: Case) {
    let disks = Disks::new(&[case.disk]).unwrap();
    let result = run(&Subject::from_env(), &disks, &mut case, Source::Fixed);
    drop(disks);
    if let Err(failure) = result {
        panic!("{}: {}", failure.class, failure.text);
    }
}

/// `x` and `y`, one file; and a directory.
pub fn linked() -> Vec<Entry> {
    vec![dir(b"d", 0o777), file(b"x", 0o644, ROOT), link(b"y", b"x")]
}

/// Opens a path into a slot.
pub fn open(h: usize, path: &[u8], flags: i32) -> Op {
    Open {
        h,
        path: b(path),
        flags: O(flags),
        mode: M(0o644),
    }
}

#[test]
fn an_xattr_of_an_unknown_namespace_is_not_supported() {
    let ops = vec![
        Getxattr {
            path: b(b"x"),
            name: b(b"bogus.name"),
        },
        Removexattr {
            path: b(b"x"),
            name: b(b"bogus.name"),
        },
    ];
    check_on(Ext4, vec![file(b"x", 0o644, ROOT)], vec![], ops);
}

#[test]
fn a_write_by_a_user_clears_set_group_id() {
    let put = Put {
        path: b(b"x"),
        flags: O(libc::O_RDWR),
        mode: M(0),
        off: 0,
        len: 10,
        seed: 1,
    };
    let ops = vec![
        As(1),
        put,
        Stat {
            path: b(b"x"),
            follow: false,
        },
    ];
    check_on(Ext4, vec![file(b"x", 0o2644, USER)], vec![], ops);
}

#[test]
fn fallocate_by_a_user_clears_set_ids_and_capabilities() {
    let mut able = file(b"y", 0o755, USER);
    able.xattrs = L(vec![(b(b"security.capability"), capability())]);
    let ops = vec![
        Open {
            h: 0,
            path: b(b"x"),
            flags: O(libc::O_RDWR),
            mode: M(0),
        },
        Open {
            h: 1,
            path: b(b"y"),
            flags: O(libc::O_RDWR),
            mode: M(0),
        },
        As(1),
        Fallocate {
            h: 0,
            mode: FaPunch,
            off: 0,
            len: 3444,
        },
        Fallocate {
            h: 1,
            mode: FaPlain,
            off: 0,
            len: 9000,
        },
        Fstat(0),
        Walk,
    ];
    check_on(Ext4, vec![file(b"x", 0o6711, ROOT), able], vec![], ops);
}

#[test]
fn a_hole_is_sought_in_what_was_just_written() {
    let ops = vec![
        Open {
            h: 0,
            path: b(b"x"),
            flags: O(libc::O_RDWR),
            mode: M(0),
        },
        Pwrite {
            h: 0,
            off: 8192,
            len: 2552,
            seed: 1,
        },
        Seek {
            h: 0,
            to: SkHole(6000),
        },
    ];
    check_on(Ext4, vec![file(b"x", 0o644, ROOT)], vec![], ops);
}

#[test]
fn an_mtime_survives_a_remount_to_the_nanosecond() {
    let put = |path: &[u8], flags, seed| Put {
        path: b(path),
        flags: O(libc::O_RDWR | flags),
        mode: M(0o644),
        off: 0,
        len: 3000,
        seed,
    };
    let ops = vec![
        put(b"new", libc::O_CREAT, 1),
        put(b"x", libc::O_TRUNC, 2),
        put(b"x", libc::O_TRUNC, 3),
        Open {
            h: 0,
            path: b(b"y"),
            flags: O(libc::O_RDWR | libc::O_TRUNC),
            mode: M(0),
        },
        Fstat(0),
        put(b"y", libc::O_TRUNC, 4),
    ];
    check_on(
        Ext4,
        vec![file(b"x", 0o644, ROOT), file(b"y", 0o644, ROOT)],
        vec![],
        ops,
    );
}

#[test]
fn truncating_by_a_user_clears_set_group_id() {
    let ops = vec![
        open(0, b"x", libc::O_RDWR),
        Fchmod {
            h: 0,
            mode: M(0o2000),
        },
        As(1),
        Ftruncate { h: 0, len: 0 },
        Fstat(0),
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn the_mtime_of_a_file_made_over_a_whiteout_survives_a_remount() {
    let put = Put {
        path: b(b"d/f"),
        flags: O(libc::O_WRONLY | libc::O_CREAT),
        mode: M(0o4755),
        off: 2873,
        len: 2639,
        seed: 1,
    };
    let ops = vec![Unlink(b(b"d/f")), As(2), put];
    check_on(
        Ext4,
        vec![dir(b"d", 0o777), file(b"d/f", 0, ROOT)],
        vec![],
        ops,
    );
}

#[test]
fn chown_by_an_owner_outside_the_group_clears_set_group_id() {
    let put = Put {
        path: b(b"x"),
        flags: O(libc::O_WRONLY | libc::O_CREAT),
        mode: M(0o2644),
        off: 0,
        len: 1,
        seed: 1,
    };
    let ops = vec![
        put,
        Chown {
            path: b(b"x"),
            uid: 1001,
            gid: 2000,
            follow: true,
        },
        Chmod {
            path: b(b"x"),
            mode: M(0o2644),
        },
        As(2),
        Chown {
            path: b(b"x"),
            uid: u32::MAX,
            gid: 1001,
            follow: true,
        },
        Stat {
            path: b(b"x"),
            follow: true,
        },
    ];
    check_on(Ext4, vec![], vec![], ops);
}

#[test]
fn a_capability_outlives_cached_writes_that_came_before_it() {
    let ops = vec![
        open(0, b"x", libc::O_WRONLY | libc::O_CREAT),
        Write {
            h: 0,
            len: 4096,
            seed: 138,
        },
        Fsetxattr {
            h: 0,
            name: b(b"security.capability"),
            value: capability(),
        },
    ];
    check_on(Ext4, vec![], vec![], ops);
}

#[test]
fn chown_of_a_lower_file_by_its_owner_clears_set_group_id() {
    let ops = vec![
        As(2),
        Chown {
            path: b(b"x"),
            uid: 1001,
            gid: 1001,
            follow: true,
        },
        Stat {
            path: b(b"x"),
            follow: true,
        },
    ];
    check_on(Ext4, vec![file(b"x", 0o2644, 1001)], vec![], ops);
}
