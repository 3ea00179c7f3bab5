//! Whiteouts: the character device 0:0, and the names of the AUFS and OCI form.
//!
//! Sources: `ovl_is_whiteout` (fs/overlayfs, `IS_WHITEOUT` in include/linux/fs.h); the OCI image
//! specification, layer.md, "Whiteouts".

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use smallvec::SmallVec;

/// What the name of a whiteout file begins with.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The file that makes its directory opaque.
pub const OPAQUE_MARK: &[u8] = b".wh..wh..opq";

/// The longest name of a directory entry, in bytes.
const NAME_MAX: usize = 255;

/// What a name means where `.wh.` names are whiteouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AufsName<'a> {
    /// Nothing special.
    Plain,
    /// It hides this name in the layers below.
    Hides(&'a OsStr),
    /// It makes its directory opaque.
    Opaque,
    /// No object and no whiteout: other `.wh..wh.*`, bare `.wh.`, and what would hide `.` or `..`.
    Reserved,
}

/// What `name` means where `.wh.` names are whiteouts.
pub fn classify(name: &OsStr) -> AufsName<'_> {
    let Some(rest) = name.as_bytes().strip_prefix(WHITEOUT_PREFIX) else {
        return AufsName::Plain;
    };
    if name.as_bytes() == OPAQUE_MARK {
        AufsName::Opaque
    } else if matches!(rest, b"" | b"." | b"..") || rest.starts_with(WHITEOUT_PREFIX) {
        AufsName::Reserved
    } else {
        AufsName::Hides(OsStr::from_bytes(rest))
    }
}

/// The name of the file that hides `name`; `None` when it would be longer than 255 bytes, so that
/// no such file can exist.
pub fn whiteout_name(name: &OsStr) -> Option<SmallVec<[u8; 64]>> {
    let name = name.as_bytes();
    if WHITEOUT_PREFIX.len() + name.len() > NAME_MAX {
        return None;
    }
    let mut whiteout = SmallVec::from_slice(WHITEOUT_PREFIX);
    whiteout.extend_from_slice(name);
    Some(whiteout)
}

/// Whether an object of this `st_mode` and device number is a whiteout: a character device 0:0.
pub fn is_whiteout_device(mode: u32, major: u32, minor: u32) -> bool {
    mode & libc::S_IFMT == libc::S_IFCHR && major == 0 && minor == 0
}
