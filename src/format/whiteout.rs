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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_classified() {
        let hides = |name| AufsName::Hides(OsStr::new(name));
        let rows = [
            ("", AufsName::Plain),
            ("a", AufsName::Plain),
            (".", AufsName::Plain),
            ("..", AufsName::Plain),
            (".wh", AufsName::Plain),
            (".w", AufsName::Plain),
            ("wh.a", AufsName::Plain),
            ("a.wh.b", AufsName::Plain),
            (".WH.a", AufsName::Plain),
            (".wh.a", hides("a")),
            (".wh..a", hides(".a")),
            (".wh..wh", hides(".wh")),
            (".wh....", hides("...")),
            (".wh.a.wh.b", hides("a.wh.b")),
            (".wh..wh..opq", AufsName::Opaque),
            (".wh..wh..opq2", AufsName::Reserved),
            (".wh..wh..op", AufsName::Reserved),
            (".wh..wh.plnk", AufsName::Reserved),
            (".wh..wh.aufs", AufsName::Reserved),
            (".wh..wh.", AufsName::Reserved),
            (".wh.", AufsName::Reserved),
            (".wh..", AufsName::Reserved),
            (".wh...", AufsName::Reserved),
        ];
        for (name, meaning) in rows {
            assert_eq!(classify(OsStr::new(name)), meaning, "{name}");
        }
        assert_eq!(
            classify(OsStr::from_bytes(b".wh.\xff")),
            AufsName::Hides(OsStr::from_bytes(b"\xff"))
        );
    }

    #[test]
    fn a_name_too_long_to_hide_is_none() {
        assert_eq!(whiteout_name(OsStr::new("a")).unwrap().as_slice(), b".wh.a");
        assert_eq!(
            whiteout_name(OsStr::new(&"a".repeat(251))).unwrap().len(),
            255
        );
        assert_eq!(whiteout_name(OsStr::new(&"a".repeat(252))), None);
        assert_eq!(whiteout_name(OsStr::new(&"a".repeat(255))), None);
    }

    #[test]
    fn only_a_character_device_0_0_is_a_whiteout() {
        assert!(is_whiteout_device(libc::S_IFCHR, 0, 0));
        assert!(is_whiteout_device(libc::S_IFCHR | 0o777, 0, 0));
        assert!(!is_whiteout_device(libc::S_IFCHR, 0, 1));
        assert!(!is_whiteout_device(libc::S_IFCHR, 1, 0));
        for other in [
            libc::S_IFBLK,
            libc::S_IFREG,
            libc::S_IFDIR,
            libc::S_IFLNK,
            libc::S_IFIFO,
            libc::S_IFSOCK,
            0,
        ] {
            assert!(!is_whiteout_device(other, 0, 0), "{other:o}");
        }
    }

    proptest! {
        #[test]
        fn a_whiteout_hides_its_name(name in proptest::collection::vec(1u8..=255, 1..260)) {
            let name = OsStr::from_bytes(&name);
            let plain = classify(name) == AufsName::Plain && name != "." && name != "..";
            match whiteout_name(name) {
                Some(whiteout) if plain => {
                    prop_assert_eq!(classify(OsStr::from_bytes(&whiteout)), AufsName::Hides(name));
                }
                Some(_) => {}
                None => prop_assert!(name.len() > 251),
            }
        }
    }
}
