//! The daemon's end.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{
    Scratch, Subject, is_mount_point, is_running, mount_points_beneath, require_root, signal,
    subject, wait_until,
};

/// Fault 16. A daemon that is told to end unmounts first: nobody meets "transport endpoint is not
/// connected" afterwards, and what was written is in upper.
#[test]
fn a_daemon_told_to_end_leaves_no_mount_point() {
    require_root();
    if subject() == Subject::Kernel {
        return; // There is no daemon.
    }
    for end in [Signal::TERM, Signal::INT] {
        let scratch = Scratch::new();
        let layers = scratch.layers(1);
        fs::write(layers.lower().join("f"), "lower").unwrap();
        let mounted = subject().mount(&layers, &[]);
        fs::write(mounted.path("f"), "upper").unwrap();
        let pid = mounted.daemon_pid().unwrap();
        signal(pid, end);
        assert!(
            wait_until(Duration::from_secs(10), || !is_running(pid)),
            "daemon {pid} goes on after {end:?}"
        );
        assert!(
            !is_mount_point(&layers.merged),
            "{end:?} left the mount point behind"
        );
        assert_eq!(fs::read_dir(&layers.merged).unwrap().count(), 0);
        assert_eq!(fs::read(layers.upper.join("f")).unwrap(), b"upper");
        drop(mounted.already_ended());
    }
}

/// Fault 16, with the tree in use: the mount point goes at once, and the daemon serves the file that
/// is still open, or ends; it never leaves a dead mount point.
#[test]
fn a_daemon_told_to_end_while_in_use_leaves_no_mount_point() {
    require_root();
    if subject() == Subject::Kernel {
        return; // There is no daemon.
    }
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("f"), "lower").unwrap();
    let mounted = subject().mount(&layers, &[]);
    let open = File::open(mounted.path("f")).unwrap();
    let pid = mounted.daemon_pid().unwrap();
    signal(pid, Signal::TERM);
    assert!(
        wait_until(Duration::from_secs(10), || !is_mount_point(&layers.merged)),
        "the mount point is still there"
    );
    drop(open);
    assert!(
        wait_until(Duration::from_secs(10), || !is_running(pid)),
        "daemon {pid} goes on after its last file was closed"
    );
    assert!(mount_points_beneath(Path::new(scratch.path())).is_empty());
    drop(mounted.already_ended());
}
