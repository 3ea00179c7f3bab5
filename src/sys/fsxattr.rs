//! The further attributes of an inode (`struct fsxattr`): project id, extent sizes, flags.

#![allow(unsafe_code)]

use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::call::last_errno;

/// The size of `struct fsxattr`, in bytes (include/uapi/linux/fs.h): xflags, extsize, nextents, projid and
/// cowextsize of 4 bytes each, and padding.
pub const FSXATTR: usize = 28;

/// `_IOR('X', 31, struct fsxattr)`.
pub const FS_IOC_FSGETXATTR: u32 = 2 << 30 | (FSXATTR as u32) << 16 | (b'X' as u32) << 8 | 31;
/// `_IOW('X', 32, struct fsxattr)`.
pub const FS_IOC_FSSETXATTR: u32 = 1 << 30 | (FSXATTR as u32) << 16 | (b'X' as u32) << 8 | 32;

/// The inode's attributes.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` where the file system has none, `EBADF` for an `O_PATH` descriptor.
pub fn get_fsxattr(fd: BorrowedFd<'_>) -> Result<[u8; FSXATTR], Errno> {
    #[repr(C, align(8))]
    struct Aligned([u8; FSXATTR]);
    let mut value = Aligned([0; FSXATTR]);
    // SAFETY: the request writes one struct fsxattr.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSGETXATTR as _, value.0.as_mut_ptr()) };
    if done < 0 {
        return Err(last_errno());
    }
    Ok(value.0)
}

/// Sets the inode's attributes.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` where the file system has none or not these, `EPERM` without permission,
/// `EBADF` for an `O_PATH` descriptor.
pub fn set_fsxattr(fd: BorrowedFd<'_>, value: &[u8; FSXATTR]) -> Result<(), Errno> {
    #[repr(C, align(8))]
    struct Aligned([u8; FSXATTR]);
    let value = Aligned(*value);
    // SAFETY: the request reads one struct fsxattr.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FSSETXATTR as _, value.0.as_ptr()) };
    if done < 0 {
        return Err(last_errno());
    }
    Ok(())
}
