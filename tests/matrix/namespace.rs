//! The same tests as root of the machine, and as root of a user namespace.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cell::Namespace;
use crate::support::{Scratch, rovl_bin, wait_until};

/// Root of the namespace, as the machine knows it.
const FIRST_ID: u32 = 100_000;
const IDS: u32 = 65_536;

/// What a process in the namespace is told, by environment variables.
pub struct Orders {
    pub disk: String,
    pub other: String,
    pub answer: String,
}

impl Orders {
    pub fn from_env() -> Option<Orders> {
        let var = |name: &str| std::env::var(name).ok();
        Some(Orders {
            disk: var("MATRIX_DISK")?,
            other: var("MATRIX_OTHER")?,
            answer: var("MATRIX_ANSWER")?,
        })
    }
}

/// Runs all cells with their layers on `disk` (some lowers on `other`); the failures.
pub fn run(namespace: Namespace, disk: &Path, other: &Path) -> Vec<String> {
    match namespace {
        Namespace::Initial => crate::run::run_all(disk, other, namespace),
        Namespace::User => run_in_user_namespace(disk, other),
    }
}

fn run_in_user_namespace(disk: &Path, other: &Path) -> Vec<String> {
    for path in [disk, other] {
        chown(path, Some(FIRST_ID), Some(FIRST_ID)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    let scratch = Scratch::new();
    chown(scratch.path(), Some(FIRST_ID), Some(FIRST_ID)).unwrap();
    let (program, rovl) = (scratch.join("test"), scratch.join("rovl"));
    for (from, to) in [
        (std::env::current_exe().unwrap(), &program),
        (rovl_bin(), &rovl),
    ] {
        fs::copy(from, to).unwrap();
        fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let answer = scratch.join("answer");
    let space = UserSpace::new();
    let output = Command::new("nsenter")
        .args(["-U", "-m", "-t", &space.holder.id().to_string()])
        .arg(&program)
        .args(["--ignored", "--exact", "part_in_a_namespace", "--nocapture"])
        .env("MATRIX_DISK", disk)
        .env("MATRIX_OTHER", other)
        .env("MATRIX_ANSWER", &answer)
        .env("ROVL_TEST_BINARY", &rovl)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    let errors = String::from_utf8_lossy(&output.stderr);
    let answer = fs::read_to_string(&answer)
        .unwrap_or_else(|e| panic!("no answer from the namespace: {e}\n{said}{errors}"));
    answer
        .split('\0')
        .filter(|line| !line.is_empty())
        .map(String::from)
        .collect()
}

/// A user namespace with 65,536 ids and a mount namespace of its own, for as long as a process holds it.
struct UserSpace {
    holder: Child,
}

impl UserSpace {
    fn new() -> UserSpace {
        let holder = Command::new("unshare")
            .args(["-U", "-m", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let proc = PathBuf::from(format!("/proc/{}", holder.id()));
        let space = UserSpace { holder };
        let own = fs::read_link("/proc/self/ns/mnt").unwrap();
        let apart = wait_until(Duration::from_secs(10), || {
            fs::read_link(proc.join("ns/mnt")).is_ok_and(|other| other != own)
        });
        assert!(apart, "unshare -U -m makes no namespace");
        for map in ["uid_map", "gid_map"] {
            fs::write(proc.join(map), format!("0 {FIRST_ID} {IDS}")).unwrap();
        }
        space
    }
}

impl Drop for UserSpace {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        self.holder.wait().ok();
    }
}
