//! File systems that turn read-only, or fail, under a mount.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;
use std::time::Duration;

use crate::support::files::{cut_power, drop_caches};
use crate::support::{LoopFs, Scratch, errno, require_root, run, subject, wait_until, within};

/// An upper that turns read-only gives EROFS to who writes; reading goes on; and when it is writable
/// again, so is the mount.
#[test]
fn an_upper_that_turns_read_only_is_reported_and_survived() {
    require_root();
    let disk = LoopFs::ext4(64 << 20);
    let scratch = Scratch::new();
    let layers = scratch.layers(1).with_upper_in(disk.path());
    for name in ["f", "g", "h"] {
        fs::write(layers.lower().join(name), "lower").unwrap();
    }
    let mounted = subject().mount(&layers, &[]);
    fs::write(mounted.path("upper"), "upper").unwrap();
    rustix::fs::syncfs(File::open(mounted.root()).unwrap()).unwrap();
    let point = disk.path().to_str().unwrap();
    // Files that were written may stay open until they are forgotten; then nothing is in the way.
    drop_caches(2);
    let remount = || {
        let output = Command::new("mount")
            .args(["-o", "remount,ro", point])
            .output();
        output.unwrap().status.success()
    };
    assert!(
        wait_until(Duration::from_secs(10), remount),
        "upper can't be remounted read-only: it is kept open for writing"
    );

    assert_eq!(errno(File::create(mounted.path("new"))), libc::EROFS);
    assert_eq!(errno(fs::create_dir(mounted.path("d"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(mounted.path("f"))), libc::EROFS);
    assert_eq!(
        errno(fs::rename(mounted.path("f"), mounted.path("x"))),
        libc::EROFS
    );
    let mode = fs::Permissions::from_mode(0o600);
    assert_eq!(
        errno(fs::set_permissions(mounted.path("g"), mode)),
        libc::EROFS
    );
    for (name, content) in [("f", "lower"), ("g", "lower"), ("upper", "upper")] {
        assert_eq!(fs::read_to_string(mounted.path(name)).unwrap(), content);
    }
    assert_eq!(fs::read_dir(mounted.root()).unwrap().count(), 4);

    run("mount", &["-o", "remount,rw", point]);
    fs::write(mounted.path("f"), "changed").unwrap();
    fs::write(mounted.path("new"), "new").unwrap();
    fs::remove_file(mounted.path("h")).unwrap();
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"changed");
    assert_eq!(fs::read(layers.upper.join("new")).unwrap(), b"new");
}

/// An upper whose device fails gives errors; the daemon answers, serves the lowers, and unmounts.
#[test]
fn an_upper_that_fails_is_an_error_and_no_end() {
    require_root();
    let disk = LoopFs::ext4(64 << 20);
    let scratch = Scratch::new();
    let layers = scratch.layers(1).with_upper_in(disk.path());
    fs::create_dir(layers.lower().join("d")).unwrap();
    for i in 0..30 {
        fs::write(layers.lower().join(format!("d/f{i}")), "lower").unwrap();
    }
    let mounted = subject().mount(&layers, &[]);
    let held = File::create(mounted.path("held")).unwrap();
    held.write_all_at(b"before", 0).unwrap();
    rustix::fs::sync();
    cut_power(disk.path());
    drop_caches(2);
    let root = mounted.root().to_owned();
    within(
        Duration::from_secs(60),
        "calls on a failed disk",
        move || {
            assert_ne!(errno(fs::write(root.join("new"), "x")), 0, "create");
            assert_ne!(errno(fs::create_dir(root.join("new"))), 0, "mkdir");
            for i in 0..10 {
                let path = root.join(format!("d/f{i}"));
                let mode = fs::Permissions::from_mode(0o600);
                assert_ne!(errno(fs::set_permissions(&path, mode)), 0, "chmod");
                assert_ne!(errno(fs::remove_file(&path)), 0, "unlink");
            }
            let written = held
                .write_all_at(b"after", 0)
                .and_then(|()| held.sync_all());
            assert_ne!(errno(written), 0, "write and fsync");
        },
    );
    assert!(mounted.daemon_alive(), "the daemon died of EIO");
    rustix::mount::unmount(mounted.root(), rustix::mount::UnmountFlags::DETACH).unwrap();
    let ended = crate::support::wait_until(Duration::from_secs(10), || {
        mounted
            .daemon_pid()
            .is_none_or(|pid| !crate::support::is_running(pid))
    });
    assert!(ended, "the daemon goes on after the unmount");
    drop(mounted.already_ended());
    disk.cycle();
    let mounted = subject().mount(&layers, &[]);
    assert_eq!(fs::read(mounted.path("d/f0")).unwrap(), b"lower");
    fs::write(mounted.path("d/f0"), "changed").unwrap();
}

/// A lower whose device fails gives EIO for its files, and for nothing else; and no copy-up makes a
/// truncated file of it.
#[test]
fn a_lower_that_fails_is_an_error_and_no_end() {
    require_root();
    let disk = LoopFs::ext4(64 << 20);
    let scratch = Scratch::new();
    let mut layers = scratch.layers(1);
    let failing = disk.path().join("lower");
    fs::create_dir(&failing).unwrap();
    layers.lowers.push(failing.clone());
    for i in 0..10 {
        let data = vec![7; 200_000];
        fs::write(failing.join(format!("bad{i}")), data).unwrap();
    }
    fs::write(layers.lower().join("good"), "good").unwrap();
    let mounted = subject().mount(&layers, &[]);
    assert_eq!(fs::read(mounted.path("bad0")).unwrap().len(), 200_000);
    run("sync", &[]);
    drop_caches(3);
    cut_power(disk.path());
    let root = mounted.root().to_owned();
    within(
        Duration::from_secs(60),
        "calls on a failed disk",
        move || {
            for i in 1..10 {
                let path = root.join(format!("bad{i}"));
                let written = File::options()
                    .append(true)
                    .open(&path)
                    .and_then(|mut file| std::io::Write::write_all(&mut file, b"x"));
                assert_ne!(errno(written), 0, "copy-up of a file that can't be read");
            }
            assert_eq!(fs::read(root.join("good")).unwrap(), b"good");
            fs::write(root.join("good"), "changed").unwrap();
            fs::write(root.join("new"), "new").unwrap();
        },
    );
    assert!(mounted.daemon_alive(), "the daemon died of EIO");
    for i in 1..10 {
        let copy = layers.upper.join(format!("bad{i}"));
        assert!(!copy.exists(), "a broken copy was published");
    }
}
