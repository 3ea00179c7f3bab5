//! `/dev/fuse` beyond reading and writing, and the orders to the daemon of a mount.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::call::check;

/// `_IOR(229, 0, uint32_t)` of include/uapi/linux/fuse.h.
const FUSE_DEV_IOC_CLONE: u32 = 0x8004_e500;
/// `_IOW(229, 1, struct fuse_backing_map)`.
const FUSE_DEV_IOC_BACKING_OPEN: u32 = 0x4010_e501;
/// `_IOW(229, 2, uint32_t)`.
const FUSE_DEV_IOC_BACKING_CLOSE: u32 = 0x4004_e502;

/// Bytes of the answer to [`ORDER_STAT`]; the size of what an ioctl is given has 14 bits.
pub const STAT_SIZE: usize = (16 << 10) - 8;
/// `_IOR(215, 1, char[STAT_SIZE])` on the root of a mount: its counters, a JSON object ended by a NUL.
pub const ORDER_STAT: u32 = order(1, STAT_SIZE);
/// `_IOR(215, 2, uint64_t)` on the root of a mount: look at the layers anew. Gives the number of names that were
/// dropped. An order that reads, because the mount may be read-only.
pub const ORDER_REFRESH: u32 = order(2, size_of::<u64>());

/// Bytes of the question and of the answer of [`ORDER_BESIDE`].
pub const BESIDE_SIZE: usize = 64;
/// `_IOWR(215, 3, char[BESIDE_SIZE])` on the root of a mount: show what is beneath the top layer beside the whole, for
/// a mount with this digest. Gives a name in the root, ended by a NUL, which leads there.
pub const ORDER_BESIDE: u32 = order(3, BESIDE_SIZE) | 1 << 30;

const fn order(number: u32, size: usize) -> u32 {
    2 << 30 | (size as u32) << 16 | 215 << 8 | number
}

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// Makes a fresh descriptor of `/dev/fuse` one more of the connection that `connection` belongs to.
///
/// # Errors
/// `EINVAL` when `device` has a connection, or `connection` has none.
pub fn join_connection(device: BorrowedFd<'_>, connection: BorrowedFd<'_>) -> Result<(), Errno> {
    let other = connection.as_raw_fd().cast_unsigned();
    // SAFETY: the ioctl reads the u32 that it is given and keeps no pointer.
    let result = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            FUSE_DEV_IOC_CLONE.into(),
            &raw const other,
        )
    };
    check(result.into()).map(drop)
}

/// Makes `file` known to the connection of `device` as one that opens can be passed through to. The
/// kernel holds it until [`close_backing`] and the last such open are done; `file` may be closed before.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` in the initial user namespace, or where INIT didn't agree on
/// passthrough; `ELOOP` for a file on a file system that is stacked too deep; `EINVAL` for what is not
/// a regular file; `ENOTTY` before Linux 6.9.
pub fn open_backing(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<u32, Errno> {
    let map = BackingMap {
        fd: file.as_raw_fd(),
        flags: 0,
        padding: 0,
    };
    // SAFETY: the ioctl reads the struct that it is given and keeps no pointer.
    let result = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            FUSE_DEV_IOC_BACKING_OPEN.into(),
            &raw const map,
        )
    };
    let id = check(result.into())?;
    u32::try_from(id).map_err(|_| Errno::OVERFLOW)
}

/// Has the connection forget a backing file. Opens that use it go on.
///
/// # Errors
/// `ENOENT` when there is none with this id.
pub fn close_backing(device: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    // SAFETY: the ioctl reads the u32 that it is given and keeps no pointer.
    let result = unsafe {
        libc::ioctl(
            device.as_raw_fd(),
            FUSE_DEV_IOC_BACKING_CLOSE.into(),
            &raw const id,
        )
    };
    check(result.into()).map(drop)
}

/// The counters of the mount whose root this is, as its daemon wrote them.
///
/// # Errors
/// `ENOTTY` and others where it is no such root, `ENOTCONN` when its daemon has died.
pub fn ask_stat(root: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    let mut text = vec![0_u8; STAT_SIZE];
    // SAFETY: the ioctl writes STAT_SIZE bytes at most, as its number says, and keeps no pointer.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), ORDER_STAT.into(), text.as_mut_ptr()) };
    check(result.into())?;
    text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(STAT_SIZE));
    Ok(text)
}

/// Has the daemon of the mount whose root this is look at the layers anew. The number of names dropped.
///
/// # Errors
/// `EPERM` for other users than the daemon's and root; otherwise as [`ask_stat`].
pub fn ask_refresh(root: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut names = 0_u64;
    // SAFETY: the ioctl writes the u64 that it is given and keeps no pointer.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), ORDER_REFRESH.into(), &raw mut names) };
    check(result.into()).map(|_| names)
}

/// Asks the daemon of the mount whose root this is for the name under which it shows the tree that `digest` stands
/// for.
///
/// # Errors
/// `ENOENT` when it has no such tree, `EBUSY` while it is being changed, `EPERM` for other users than the daemon's and
/// root; otherwise as [`ask_stat`].
pub fn ask_beside(
    root: BorrowedFd<'_>,
    digest: &[u8; BESIDE_SIZE],
) -> Result<std::ffi::OsString, Errno> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut text = *digest;
    // SAFETY: the ioctl reads and writes BESIDE_SIZE bytes, as its number says, and keeps no pointer.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), ORDER_BESIDE.into(), text.as_mut_ptr()) };
    check(result.into())?;
    let name = text.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(std::ffi::OsString::from_vec(name.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn only_connections_can_be_joined() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(
            join_connection(file.as_fd(), file.as_fd()),
            Err(Errno::NOTTY)
        );
    }

    #[test]
    fn only_mounts_take_orders() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(ask_stat(file.as_fd()), Err(Errno::NOTTY));
        assert_eq!(ask_refresh(file.as_fd()), Err(Errno::NOTTY));
        let digest = [0; BESIDE_SIZE];
        assert_eq!(ask_beside(file.as_fd(), &digest), Err(Errno::NOTTY));
    }

    #[test]
    fn only_connections_have_backing_files() {
        let file = tempfile::tempfile().unwrap();
        let refused = open_backing(file.as_fd(), file.as_fd());
        assert_eq!(refused, Err(Errno::NOTTY));
        assert_eq!(close_backing(file.as_fd(), 1), Err(Errno::NOTTY));
    }
}
