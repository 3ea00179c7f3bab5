//! The same tests as root of the machine, and as root of a user namespace.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Scratch, rovl_bin, wait_until};

/// Root of the namespace, as the machine knows it.
const FIRST_ID: u32 = 100_000;
const IDS: u32 = 65_536;

/// Runs the ignored test `part` of this test program as root of a user namespace, to which the directories
/// in `given` then belong; it finds their paths in environment variables. What it writes to the file in
/// `PART_ANSWER`, lines apart by NUL, is the answer.
pub fn run_part(part: &str, given: &[(&str, &Path)]) -> Vec<String> {
    let scratch = Scratch::new();
    for path in given.iter().map(|(_, path)| *path).chain([scratch.path()]) {
        chown(path, Some(FIRST_ID), Some(FIRST_ID)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
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
        .args(["--ignored", "--exact", part, "--nocapture"])
        .envs(given.iter().copied())
        .env("PART_ANSWER", &answer)
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

/// In the part: the directory that it was given by that name; `None` when it was not started by [`run_part`].
pub fn given(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// In the part: what it found.
pub fn answer(lines: &[String]) {
    let path = given("PART_ANSWER").expect("started by another test");
    fs::write(path, lines.join("\0")).unwrap();
}

/// A user namespace with 65,536 ids and a mount namespace of its own, for as long as a process holds it.
struct UserSpace {
    holder: Child,
}

impl UserSpace {
    fn new() -> UserSpace {
        // A copy of another test's mount would keep its daemon alive: none goes along.
        let script = "grep -E ' - (fuse|fuse\\.[^ ]*|overlay) ' /proc/self/mountinfo | cut -d ' ' -f 5 | tac |
            while read -r point; do umount -l \"$point\" || true; done
            exec unshare -U -m cat";
        let holder = Command::new("unshare")
            .args(["-m", "bash", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let proc = PathBuf::from(format!("/proc/{}", holder.id()));
        let space = UserSpace { holder };
        let own = fs::read_link("/proc/self/ns/user").unwrap();
        let apart = wait_until(Duration::from_secs(10), || {
            fs::read_link(proc.join("ns/user")).is_ok_and(|other| other != own)
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
