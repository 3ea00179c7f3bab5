//! The ioctls that the kernel's FUSE client sends by itself, for chattr(1), lsattr(1) and project ids
//! (`fuse_fileattr_get` and `fuse_fileattr_set` in fs/fuse/ioctl.c).

use rustix::io::Errno;

use crate::overlay::Overlay;
use crate::sys::fsxattr::{FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR};

/// `_IOR('f', 1, long)` and `_IOW('f', 2, long)`; what is passed is an int all the same.
const FS_IOC_GETFLAGS: u32 = 2 << 30 | LONG << 16 | (b'f' as u32) << 8 | 1;
const FS_IOC_SETFLAGS: u32 = 1 << 30 | LONG << 16 | (b'f' as u32) << 8 | 2;
const LONG: u32 = size_of::<libc::c_long>() as u32;

/// May this ioctl change something?
pub(super) fn changes(cmd: u32) -> bool {
    matches!(cmd, FS_IOC_SETFLAGS | FS_IOC_FSSETXATTR)
}

/// Runs one ioctl on the object `id`; gives what it returns besides 0.
///
/// # Errors
/// `ENOTTY` for any other ioctl, `EINVAL` for input of another size, and what the core returns.
pub(super) fn answer(overlay: &Overlay, id: u64, cmd: u32, input: &[u8]) -> Result<Vec<u8>, Errno> {
    match cmd {
        FS_IOC_GETFLAGS => Ok(overlay.get_flags(id)?.to_ne_bytes().to_vec()),
        FS_IOC_SETFLAGS => {
            let flags = input.first_chunk().ok_or(Errno::INVAL)?;
            overlay.set_flags(id, u32::from_ne_bytes(*flags))?;
            Ok(Vec::new())
        }
        FS_IOC_FSGETXATTR => Ok(overlay.get_fsxattr(id)?.to_vec()),
        FS_IOC_FSSETXATTR => {
            let value = input.first_chunk().ok_or(Errno::INVAL)?;
            overlay.set_fsxattr(id, value)?;
            Ok(Vec::new())
        }
        _ => Err(Errno::NOTTY),
    }
}
