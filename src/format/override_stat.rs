//! Owner, mode and type of a file that the file system below can't hold, as text in an attribute.
//!
//! `uid:gid:mode[:type]`, the mode in octal. Source: containers/storage, pkg/idtools
//! (`FormatContainersOverrideXattrDevice`, `parseOverrideXattr`), which fuse-overlayfs shares.

use std::ffi::CStr;

use super::FormatError;

/// The attribute of containers/storage; what a mount with `xattr_permissions=2` uses.
pub const USER_CONTAINERS: &CStr = c"user.containers.override_stat";
/// fuse-overlayfs' own, with privilege.
pub const SECURITY_FUSE_OVERLAYFS: &CStr = c"security.fuseoverlayfs.override_stat";
/// fuse-overlayfs' own, without.
pub const USER_FUSE_OVERLAYFS: &CStr = c"user.fuseoverlayfs.override_stat";

/// A parsed override.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverrideStat {
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// The type, where it is not that of the file which has the attribute.
    pub kind: Option<OverrideKind>,
}

/// The types that an override can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symlink, its target being the file's content.
    Symlink,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A block device.
    Block {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A character device.
    Char {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

impl OverrideStat {
    /// Reads the attribute's value. Bits of the mode beyond 0o7777 (a file type) are dropped.
    ///
    /// # Errors
    /// When a field is missing, is not a number of 32 bits, or the type is not known.
    pub fn parse(value: &[u8]) -> Result<OverrideStat, FormatError> {
        let text = std::str::from_utf8(value)
            .map_err(|_| FormatError::OverrideStat("not uid:gid:mode[:type]"))?;
        let mut fields = text.split(':');
        let mut next = || {
            fields
                .next()
                .ok_or(FormatError::OverrideStat("a field is missing"))
        };
        let (uid, gid, mode) = (
            number(next()?, 10)?,
            number(next()?, 10)?,
            number(next()?, 8)?,
        );
        let kind = fields.next().map(OverrideKind::parse).transpose()?;
        if fields.next().is_some() {
            return Err(FormatError::OverrideStat("more than four fields"));
        }
        Ok(OverrideStat {
            uid,
            gid,
            mode: mode & 0o7777,
            kind,
        })
    }

    /// The attribute's value.
    pub fn encode(&self) -> Vec<u8> {
        let OverrideStat {
            uid,
            gid,
            mode,
            kind,
        } = self;
        let mut text = format!("{uid}:{gid}:{:04o}", mode & 0o7777);
        if let Some(kind) = kind {
            text.push(':');
            text.push_str(&kind.encode());
        }
        text.into_bytes()
    }
}

impl OverrideKind {
    fn parse(text: &str) -> Result<OverrideKind, FormatError> {
        const BAD: FormatError = FormatError::OverrideStat("an unknown type");
        Ok(match text {
            "file" => OverrideKind::File,
            "dir" => OverrideKind::Dir,
            "symlink" => OverrideKind::Symlink,
            "pipe" => OverrideKind::Pipe,
            "socket" => OverrideKind::Socket,
            device => {
                let (kind, device) = device.split_once('-').ok_or(BAD)?;
                let (major, minor) = device.split_once('-').ok_or(BAD)?;
                let (major, minor) = (number(major, 10)?, number(minor, 10)?);
                match kind {
                    "block" => OverrideKind::Block { major, minor },
                    "char" => OverrideKind::Char { major, minor },
                    _ => return Err(BAD),
                }
            }
        })
    }

    fn encode(self) -> String {
        match self {
            OverrideKind::File => "file".to_owned(),
            OverrideKind::Dir => "dir".to_owned(),
            OverrideKind::Symlink => "symlink".to_owned(),
            OverrideKind::Pipe => "pipe".to_owned(),
            OverrideKind::Socket => "socket".to_owned(),
            OverrideKind::Block { major, minor } => format!("block-{major}-{minor}"),
            OverrideKind::Char { major, minor } => format!("char-{major}-{minor}"),
        }
    }

    /// The type as the `S_IFMT` bits of `st_mode`.
    pub fn file_type(self) -> u32 {
        match self {
            OverrideKind::File => libc::S_IFREG,
            OverrideKind::Dir => libc::S_IFDIR,
            OverrideKind::Symlink => libc::S_IFLNK,
            OverrideKind::Pipe => libc::S_IFIFO,
            OverrideKind::Socket => libc::S_IFSOCK,
            OverrideKind::Block { .. } => libc::S_IFBLK,
            OverrideKind::Char { .. } => libc::S_IFCHR,
        }
    }
}

/// Digits only: no sign, no space.
fn number(text: &str, radix: u32) -> Result<u32, FormatError> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(FormatError::OverrideStat("not a number"));
    }
    u32::from_str_radix(text, radix).map_err(|_| FormatError::OverrideStat("not a number"))
}
