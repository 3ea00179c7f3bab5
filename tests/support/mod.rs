//! What the black-box tests share: scratch directories, layers, mounts of the subject under test,
//! loop-device file systems, tree digests, other users, and traces of the daemon's system calls.
//!
//! A test crate takes it in with `mod support;`. `ROVL_TEST_SUBJECT` says what gets mounted: unset
//! or `rovl`, `kernel` (overlayfs, the oracle), or the path of a fuse-overlayfs (a peer).
//! `ROVL_TEST_OPTIONS` (comma-separated) is added to the options of each mount of the subject, to
//! run the same tests over another data path; `ROVL_TEST_ROUNDS` repeats tests with chance in them.

// Each test crate compiles this module for itself and uses a part of it.
#![allow(dead_code, unused_imports, unreachable_pub)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod digest;
pub mod files;
mod loopfs;
mod mounted;
mod scratch;
mod trace;
pub mod upper_check;
mod users;

pub use digest::{
    EntryDigest, all_xattrs, assert_digests_equal, assert_trees_equal, differences, tree_digest,
    xattrs,
};
pub use loopfs::LoopFs;
pub use mounted::{
    Mounted, Subject, fuse_overlayfs_args, is_mount_point, is_running, signal, subject,
};
pub use scratch::{Layers, Scratch, mount_points_beneath, unmount_beneath};
pub use trace::{Call, Trace};
pub use upper_check::UpperCheck;
pub use users::{as_user, as_user_with_umask, with_umask};

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// The binary under test; `ROVL_TEST_BINARY` names a copy of it that other users can run.
pub fn rovl_bin() -> PathBuf {
    let copy = std::env::var_os("ROVL_TEST_BINARY");
    copy.map_or_else(|| env!("CARGO_BIN_EXE_rovl").into(), PathBuf::from)
}

/// Ends the test with a clear message unless it runs as root with /dev/fuse at hand.
///
/// A test that can't run here is a failure, never a silent skip.
pub fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test mounts file systems and must run as root: sudo -E cargo test"
    );
    if subject() != Subject::Kernel {
        assert!(
            Path::new("/dev/fuse").exists(),
            "this test needs /dev/fuse: modprobe fuse, or start the container with --device /dev/fuse"
        );
    }
}

/// Ends the test with a clear message unless `program` is on PATH.
pub fn require_program(program: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|dir| dir.join(program).exists());
    assert!(found, "this test needs the program `{program}`: install it");
}

/// Runs a program to its end; panics with its output unless it succeeds.
pub fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("can't run {program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?} failed with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a shell script in `dir`; panics with its output unless it succeeds. Returns its stdout.
pub fn sh(dir: &Path, script: &str) -> String {
    let output = Command::new("bash")
        .args(["-euc", script])
        .current_dir(dir)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|e| panic!("can't run bash in {}: {e}", dir.display()));
    assert!(
        output.status.success(),
        "in {}: `{script}` failed with {}:\n{}{}",
        dir.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Polls `condition` every few milliseconds; `false` if it is not true within `limit`.
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `f` on its own thread and returns its result; panics if it takes longer than `limit`.
///
/// The thread of a call that hangs is left behind: the unmount that follows sets it free.
pub fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = f();
        send.send(()).ok();
        result
    });
    match receive.recv_timeout(limit) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
            panic!("{what}: no answer within {limit:?}")
        }
        _ => match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        },
    }
}

/// The option sets that choose each data path of the subject: the default first.
pub fn data_paths() -> Vec<Vec<&'static str>> {
    let chosen = std::env::var_os("ROVL_TEST_OPTIONS").is_some_and(|o| !o.is_empty());
    match subject() {
        Subject::Rovl if !chosen => vec![vec![], vec!["writeback=on"], vec!["passthrough=on"]],
        _ => vec![vec![]],
    }
}

/// How often a test with chance in it runs: `usual` times, or `ROVL_TEST_ROUNDS` times.
pub fn rounds(usual: u64) -> u64 {
    match std::env::var("ROVL_TEST_ROUNDS") {
        Ok(number) => number.parse().expect("ROVL_TEST_ROUNDS is a number"),
        Err(_) => usual,
    }
}

/// The errno of a failed call, as a number; 0 for success.
pub fn errno<T>(result: std::io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(e) => e
            .raw_os_error()
            .unwrap_or_else(|| panic!("no errno in {e}")),
    }
}

/// A page of bytes that differ from position to position and from seed to seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
        .wrapping_add(0x1234_5678_9ABC_DEF1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
