//! `/dev/fuse` beyond reading and writing.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::call::check;

/// `_IOR(229, 0, uint32_t)` of include/uapi/linux/fuse.h.
const FUSE_DEV_IOC_CLONE: u32 = 0x8004_e500;

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
}
