//! IOCTL: the flags and extended attributes of inodes (`chattr`, project ids).
//!
//! Only these come here with their data: the kernel sends restricted ioctls alone, and does the
//! copying by the size that the command's number tells (fs/fuse/ioctl.c, `fuse_priv_ioctl`).

use rustix::io::Errno;

use super::service::Filesystem;
use super::wire::reply::{self, Out};
use super::wire::request::IoctlIn;

/// `FS_IOC_GETFLAGS` and the others of include/uapi/linux/fs.h, as 64-bit programs have them; the
/// kernel turns those of 32-bit programs into these.
const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;

/// `struct fsxattr`.
const FSXATTR: usize = 28;

/// What an ioctl asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command<'a> {
    GetFlags,
    SetFlags(u32),
    GetFsxattr,
    SetFsxattr(&'a [u8; FSXATTR]),
}

/// # Errors
/// `ENOTTY` for what is none of these, `EINVAL` for one without its data.
fn decode<'a>(request: &IoctlIn<'a>) -> Result<Command<'a>, Errno> {
    Ok(match request.command {
        GETFLAGS => Command::GetFlags,
        SETFLAGS => {
            let flags = request.data.first_chunk().ok_or(Errno::INVAL)?;
            Command::SetFlags(u32::from_ne_bytes(*flags))
        }
        FSGETXATTR => Command::GetFsxattr,
        FSSETXATTR => Command::SetFsxattr(request.data.first_chunk().ok_or(Errno::INVAL)?),
        _ => return Err(Errno::NOTTY),
    })
}

impl Filesystem {
    /// # Errors
    /// `ENOTTY` for unknown ones, and what the layer's file system returns.
    pub(super) fn ioctl(
        &self,
        _node: u64,
        request: &IoctlIn<'_>,
        _out: &mut Out<'_>,
    ) -> Result<(), Errno> {
        match decode(request)? {
            Command::GetFlags
            | Command::SetFlags(_)
            | Command::GetFsxattr
            | Command::SetFsxattr(_) => Err(Errno::NOTTY),
        }
    }
}
