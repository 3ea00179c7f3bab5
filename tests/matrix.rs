//! What rovl writes, Linux's overlayfs reads, and the other way round: for every combination of mount
//! options, on four file systems, as root and in a user namespace.
//!
//! Linux is asked what is right: each cell of the matrix runs the same operations on Linux alone, and the
//! trees, errors, link counts and inode numbers that it shows are what the others are held to. With
//! `ROVL_TEST_SUBJECT=kernel` Linux stands in for rovl, which checks the test itself.
//!
//! Needs root, `/dev/fuse`, loop devices, `mkfs.ext4`, `mkfs.xfs`, `mkfs.btrfs`, `setfattr`, `setfacl`,
//! `nsenter` and `unshare`. `ROVL_MATRIX_CELLS` runs only cells whose name contains it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

#[path = "matrix/cell.rs"]
mod cell;
#[path = "matrix/changing.rs"]
mod changing;
#[path = "matrix/chown.rs"]
mod chown;
#[path = "matrix/faults.rs"]
mod faults;
#[path = "matrix/lowers.rs"]
mod lowers;
#[path = "matrix/namespace.rs"]
mod namespace;
#[path = "matrix/places.rs"]
mod places;
#[path = "matrix/run.rs"]
mod run;
#[path = "matrix/script.rs"]
mod script;
#[path = "matrix/view.rs"]
mod view;

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cell::Namespace;
use namespace::{answer, given, run_part};
use support::{LoopFs, Scratch, require_program, require_root};

/// The tests share two processors; one that measures time has them for itself.
static PROCESSORS: RwLock<()> = RwLock::new(());

fn alone() -> RwLockWriteGuard<'static, ()> {
    PROCESSORS.write().unwrap_or_else(PoisonError::into_inner)
}

fn among_others() -> RwLockReadGuard<'static, ()> {
    PROCESSORS.read().unwrap_or_else(PoisonError::into_inner)
}

const MIB: u64 = 1 << 20;

/// A file system to hold all layers.
enum Disk {
    Loop(LoopFs),
    Tmpfs(Scratch),
}

impl Disk {
    fn new(kind: &str) -> Disk {
        let disk = match kind {
            "ext4" => Disk::Loop(LoopFs::ext4(512 * MIB)),
            "xfs" => Disk::Loop(LoopFs::xfs(512 * MIB)),
            "btrfs" => Disk::Loop(LoopFs::btrfs(512 * MIB)),
            _ => {
                let scratch = Scratch::new();
                std::fs::create_dir(scratch.join("fs")).unwrap();
                let point = scratch.join("fs");
                let point = point.to_str().unwrap();
                support::run(
                    "mount",
                    &["-t", "tmpfs", "-o", "size=1g,mode=755", "tmpfs", point],
                );
                Disk::Tmpfs(scratch)
            }
        };
        // What reads of the test do must not show.
        support::run(
            "mount",
            &["-o", "remount,noatime", disk.path().to_str().unwrap()],
        );
        disk
    }

    fn path(&self) -> std::path::PathBuf {
        match self {
            Disk::Loop(fs) => fs.path().to_path_buf(),
            Disk::Tmpfs(scratch) => scratch.join("fs"),
        }
    }
}

fn matrix(kind: &str, namespace: Namespace) {
    require_root();
    let _turn = among_others();
    for program in ["setfattr", "setfacl", "nsenter", "unshare"] {
        require_program(program);
    }
    let (disk, other) = (Disk::new(kind), Disk::new("tmpfs"));
    let (disk_path, other_path) = (disk.path(), other.path());
    let failures = match namespace {
        Namespace::Initial => run::run_all(&disk_path, &other_path, namespace),
        Namespace::User => run_part(
            "part_in_a_namespace",
            &[("MATRIX_DISK", &disk_path), ("MATRIX_OTHER", &other_path)],
        ),
    };
    assert!(
        failures.is_empty(),
        "{} kinds of failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// What the test starts again in a user namespace.
#[test]
#[ignore = "a part of the tests in a user namespace, which start it"]
fn part_in_a_namespace() {
    if let (Some(disk), Some(other)) = (given("MATRIX_DISK"), given("MATRIX_OTHER")) {
        answer(&run::run_all(&disk, &other, Namespace::User));
    }
}

macro_rules! matrices {
    ($($name:ident: $kind:literal, $namespace:ident;)*) => {
        $(#[test]
        fn $name() {
            matrix($kind, Namespace::$namespace);
        })*
    };
}

matrices! {
    ext4_as_root: "ext4", Initial;
    xfs_as_root: "xfs", Initial;
    btrfs_as_root: "btrfs", Initial;
    tmpfs_as_root: "tmpfs", Initial;
    ext4_in_a_user_namespace: "ext4", User;
    xfs_in_a_user_namespace: "xfs", User;
    btrfs_in_a_user_namespace: "btrfs", User;
    tmpfs_in_a_user_namespace: "tmpfs", User;
}
