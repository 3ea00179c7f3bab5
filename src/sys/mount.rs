//! Detached mounts: a clone of a tree with flags of its own.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::call::check;

/// No writes.
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// Set-id bits and file capabilities don't count.
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// Device files can't be opened.
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
/// Nothing can be executed.
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;
/// Access times stay.
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
/// Not flags but one field, which must be cleared as a whole before it is set.
const MOUNT_ATTR_ATIME_FIELD: u64 = 0x70;

/// `struct mount_attr` of include/uapi/linux/mount.h.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A detached mount of `dir`, without what is mounted below it. It lives as long as the
/// descriptor (an `O_PATH` one).
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` in the user namespace of the mount namespace.
pub fn clone_tree(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(dir, c"", flags)
}

/// Sets `attr_set` (`MOUNT_ATTR_*`) on the mount whose root `fd` is; others stay.
///
/// # Errors
/// What `mount_setattr(2)` returns: `EINVAL` when `fd` is not the root of a mount.
pub fn mount_set_flags(fd: BorrowedFd<'_>, attr_set: u64) -> Result<(), Errno> {
    let sets_atime = attr_set & MOUNT_ATTR_ATIME_FIELD != 0;
    let mut attr = MountAttr {
        attr_set,
        attr_clr: if sets_atime {
            MOUNT_ATTR_ATIME_FIELD
        } else {
            0
        },
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is NUL-terminated, `attr` is a struct mount_attr of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw mut attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{Mode, OFlags, open, openat};

    use super::*;

    #[test]
    #[ignore = "needs CAP_SYS_ADMIN"]
    fn a_read_only_clone_refuses_writes_and_the_original_does_not() {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(tmp.path().join("file"), b"").unwrap();
        let dir = open(tmp.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(
            mount_set_flags(dir.as_fd(), MOUNT_ATTR_RDONLY),
            Err(Errno::INVAL)
        );
        let clone = clone_tree(dir.as_fd()).unwrap();
        let write = |fd: &OwnedFd| openat(fd, "file", OFlags::WRONLY, Mode::empty()).map(drop);
        assert_eq!(write(&clone), Ok(()));
        mount_set_flags(clone.as_fd(), MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME).unwrap();
        mount_set_flags(clone.as_fd(), MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID).unwrap();
        assert_eq!(write(&clone), Err(Errno::ROFS));
        assert_eq!(write(&dir), Ok(()));
        let flags = rustix::fs::fstatvfs(&clone).unwrap().f_flag;
        for flag in ["RDONLY", "NOATIME", "NODEV", "NOSUID"] {
            let flag = rustix::fs::StatVfsMountFlags::from_name(flag).unwrap();
            assert!(flags.contains(flag), "{flag:?}");
        }
    }
}
