//! Idmapped mounts. mount(8) has no option for them before util-linux 2.39.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::wait_until;

/// Kills it.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A user namespace in which the ids from 0 on are those from `shown` on.
fn user_namespace(shown: u32, count: u32) -> File {
    let child = Command::new("unshare")
        .args(["--user", "sleep", "60"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let child = Sleeper(child);
    let proc = Path::new("/proc").join(child.0.id().to_string());
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    let apart = wait_until(Duration::from_secs(10), || {
        fs::read_link(proc.join("ns/user")).is_ok_and(|other| other != own)
    });
    assert!(apart, "unshare made no user namespace");
    for map in ["uid_map", "gid_map"] {
        fs::write(proc.join(map), format!("0 {shown} {count}")).unwrap();
    }
    File::open(proc.join("ns/user")).unwrap()
}

/// Mounts `dir` on `target` so that the owners from 0 on are shown as those from `shown` on.
pub fn mount_idmapped(dir: &Path, target: &Path, shown: u32, count: u32) {
    let namespace = user_namespace(shown, count);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone: OwnedFd = rustix::mount::open_tree(rustix::fs::CWD, dir, flags).unwrap();
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    // SAFETY: the path is NUL-terminated, `attr` is a struct mount_attr of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            clone.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "mount_setattr: {error}");
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&clone, c"", rustix::fs::CWD, target, flags).unwrap();
}
