//! How the daemon lives: what it holds, how the mount looks to others, and how it ends.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::argv::no_program;
use crate::support::{
    Mounted, Scratch, Subject, is_mount_point, is_running, require_program, require_root, run,
    signal, subject, wait_until,
};

fn small_mount(scratch: &Scratch) -> Mounted {
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("f"), "lower").unwrap();
    subject().mount(&layers, &[])
}

/// The daemon is in a session of its own, in `/`, with /dev/null for its standard descriptors.
#[test]
fn the_daemon_lets_go_of_its_caller() {
    if no_program() {
        return;
    }
    let scratch = Scratch::new();
    let mounted = small_mount(&scratch);
    let pid = mounted.daemon_pid().unwrap();
    for fd in 0..3 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
        assert_eq!(target, Path::new("/dev/null"), "descriptor {fd}");
    }
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(cwd, Path::new("/"));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let own = fs::read_to_string("/proc/self/stat").unwrap();
    let own_session = own.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    assert_ne!(
        fields[3], own_session,
        "the daemon is in its caller's session"
    );
}

/// The type that engines look for, and the flags that programs in the tree need.
#[test]
fn the_mount_looks_as_engines_expect() {
    if no_program() {
        return;
    }
    let scratch = Scratch::new();
    let mounted = small_mount(&scratch);
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    let wanted = mounted.root().to_str().unwrap();
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(wanted))
        .unwrap();
    let (flags, rest) = line.split_once(" - ").unwrap();
    let kind = rest.split(' ').next().unwrap();
    assert!(
        matches!(kind, "fuse.fuse-overlayfs" | "fuse.rovl"),
        "type {kind}"
    );
    let flags = flags.split(' ').nth(5).unwrap();
    assert!(flags.contains("noatime"), "flags {flags}");
    assert!(
        !flags.contains("nosuid") && !flags.contains("noexec"),
        "{flags}"
    );
    assert!(rest.contains("default_permissions"), "{rest}");
    assert!(rest.contains("allow_other"), "{rest}");
    let statfs = rustix::fs::statfs(mounted.root()).unwrap();
    assert_eq!(statfs.f_type, 0x6573_5546, "statfs magic");
    assert_eq!(statfs.f_namelen, 255);
}

/// A set-id program of a lower, and one of the upper, runs with its owner's rights.
#[test]
fn set_id_programs_work() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let install = |dir: &Path, name: &str| {
        let program = dir.join(name);
        fs::copy("/usr/bin/id", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    };
    install(layers.lower(), "of-lower");
    let mounted = subject().mount(&layers, &[]);
    install(mounted.root(), "of-upper");
    for name in ["of-lower", "of-upper"] {
        let output = Command::new(mounted.path(name))
            .arg("-u")
            .uid(1000)
            .gid(1000)
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            "0",
            "{name}"
        );
    }
}

/// podman's way out: fusermount3 -u.
#[test]
fn fusermount_unmounts() {
    if no_program() {
        return;
    }
    require_program("fusermount3");
    let scratch = Scratch::new();
    let mounted = small_mount(&scratch);
    fs::write(mounted.path("new"), "x").unwrap();
    let pid = mounted.daemon_pid().unwrap();
    run("fusermount3", &["-u", mounted.root().to_str().unwrap()]);
    assert!(wait_until(Duration::from_secs(10), || !is_running(pid)));
    assert!(!is_mount_point(mounted.root()));
    assert_eq!(fs::read(mounted.layers().upper.join("new")).unwrap(), b"x");
    drop(mounted.already_ended());
}

/// After a lazy unmount open files go on working, and the daemon ends with the last of them.
#[test]
fn a_lazily_unmounted_daemon_ends_with_its_last_file() {
    require_root();
    let scratch = Scratch::new();
    let mounted = small_mount(&scratch);
    let mut open = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(mounted.path("f"))
        .unwrap();
    rustix::mount::unmount(mounted.root(), UnmountFlags::DETACH).unwrap();
    assert!(!is_mount_point(mounted.root()));
    std::thread::sleep(Duration::from_millis(300));
    open.write_all(b"after").unwrap();
    open.sync_all().unwrap();
    assert_eq!(
        fs::read(mounted.layers().upper.join("f")).unwrap(),
        b"after"
    );
    let mut rest = Vec::new();
    open.read_to_end(&mut rest).unwrap();
    assert!(mounted.daemon_alive());
    drop(open);
    let pid = mounted.daemon_pid();
    let ended = wait_until(Duration::from_secs(10), || !pid.is_some_and(is_running));
    assert!(ended, "the daemon goes on after its last file");
    drop(mounted.already_ended());
}

/// A dead daemon is seen as "not connected", and its mount point can be unmounted and used again.
#[test]
fn a_dead_mount_point_can_be_cleaned_up() {
    if no_program() {
        return;
    }
    let scratch = Scratch::new();
    let mounted = small_mount(&scratch);
    fs::write(mounted.path("new"), "x").unwrap();
    let (pid, layers) = (mounted.daemon_pid().unwrap(), mounted.layers().clone());
    signal(pid, Signal::KILL);
    assert!(wait_until(Duration::from_secs(10), || !is_running(pid)));
    let error = fs::metadata(mounted.path("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    run("umount", &[layers.merged.to_str().unwrap()]);
    drop(mounted.already_ended());
    let again = subject().mount(&layers, &[]);
    assert_eq!(fs::read(again.path("new")).unwrap(), b"x");
}

/// A mount point may be in use as a lower of another mount, and as the parent of another mount
/// point.
#[test]
fn a_mount_within_a_mount_works() {
    require_root();
    let scratch = Scratch::new();
    let mounted = small_mount(&scratch);
    let inner = mounted.path("inner");
    fs::create_dir(&inner).unwrap();
    run("mount", &["-t", "tmpfs", "none", inner.to_str().unwrap()]);
    File::create(inner.join("f")).unwrap();
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 1);
    run("umount", &[inner.to_str().unwrap()]);
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 0);
    if *mounted.subject() == Subject::Kernel {
        return; // Its mount can't be the upper of another overlay either.
    }
    let above = Scratch::new();
    let mut layers = above.layers(0);
    layers.lowers = vec![mounted.root().to_owned()];
    let kernel = Subject::Kernel.mount(&layers, &["index=off", "redirect_dir=off"]);
    assert_eq!(fs::read(kernel.path("f")).unwrap(), b"lower");
    fs::write(kernel.path("f"), "in the kernel's upper").unwrap();
    kernel.unmount();
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"lower");
}
