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

/// An owner or group that is the one on disk; no file can have it.
pub const AS_ON_DISK: u32 = u32::MAX;

/// A parsed override.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverrideStat {
    /// The owner, or [`AS_ON_DISK`].
    pub uid: u32,
    /// The group, or [`AS_ON_DISK`].
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
    /// Reads the attribute's value. Bits of the mode beyond 0o7777 (a file type), fields after the
    /// fourth, and NULs and newlines at the end are dropped.
    ///
    /// # Errors
    /// When a field is missing, is not a number of 32 bits, or the type is not known.
    pub fn parse(value: &[u8]) -> Result<OverrideStat, FormatError> {
        let text = std::str::from_utf8(value)
            .map_err(|_| FormatError::OverrideStat("not uid:gid:mode[:type]"))?;
        let mut fields = text.trim_end_matches(['\0', '\n']).split(':');
        let mut next = || {
            fields
                .next()
                .ok_or(FormatError::OverrideStat("a field is missing"))
        };
        // fuse-overlayfs 1.10 leaves -1 where only the other of the two was ever set.
        let id = |text: &str| match text {
            "-1" => Ok(AS_ON_DISK),
            text => number(text, 10),
        };
        let (uid, gid, mode) = (id(next()?)?, id(next()?)?, number(next()?, 8)?);
        let kind = fields.next().map(OverrideKind::parse).transpose()?;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_read_and_written() {
        let (major, minor) = (8, 1);
        let rows = [
            ("0:0:0755", 0o755, None),
            ("0:0:0755:file", 0o755, Some(OverrideKind::File)),
            ("0:0:1777:dir", 0o1777, Some(OverrideKind::Dir)),
            ("0:0:0777:symlink", 0o777, Some(OverrideKind::Symlink)),
            ("0:0:0600:pipe", 0o600, Some(OverrideKind::Pipe)),
            ("0:0:0000:socket", 0, Some(OverrideKind::Socket)),
            (
                "0:0:0660:block-8-1",
                0o660,
                Some(OverrideKind::Block { major, minor }),
            ),
            (
                "0:0:7660:char-8-1",
                0o7660,
                Some(OverrideKind::Char { major, minor }),
            ),
        ];
        for (text, mode, kind) in rows {
            let stat = OverrideStat {
                uid: 0,
                gid: 0,
                mode,
                kind,
            };
            assert_eq!(OverrideStat::parse(text.as_bytes()), Ok(stat), "{text}");
            assert_eq!(String::from_utf8(stat.encode()).unwrap(), text);
        }
    }

    #[test]
    fn looser_forms_are_read() {
        let stat = |mode| {
            Ok(OverrideStat {
                uid: 1,
                gid: 4_294_967_295,
                mode,
                kind: None,
            })
        };
        assert_eq!(OverrideStat::parse(b"1:4294967295:644"), stat(0o644));
        assert_eq!(OverrideStat::parse(b"1:4294967295:100644"), stat(0o644));
        assert_eq!(OverrideStat::parse(b"01:4294967295:0644\n"), stat(0o644));
        assert_eq!(OverrideStat::parse(b"1:4294967295:0644\0"), stat(0o644));
        assert_eq!(OverrideStat::parse(b"1:-1:0644"), stat(0o644));
        let kind = OverrideStat::parse(b"1:1:0644:file:more").unwrap().kind;
        assert_eq!(kind, Some(OverrideKind::File));
    }

    #[test]
    fn invalid_values_are_errors() {
        let rows: [&[u8]; 24] = [
            b"",
            b"0",
            b"0:0",
            b"0:0:",
            b":0:0644",
            b"0::0644",
            b"-2:0:0644",
            b"+1:0:0644",
            b" 0:0:0644",
            b"0:0:0648",
            b"0:0:0x1ff",
            b"4294967296:0:0644",
            b"0:4294967296:0644",
            b"0:0:77777777777777",
            b"0:0:0644:",
            b"0:0:0644:File",
            b"0:0:0644:fifo",
            b"0:0:0644:char",
            b"0:0:0644:char-1",
            b"0:0:0644:char-1-",
            b"0:0:0644:char-1-2-3",
            b"0:0:0644:char--1-2",
            b"0:0:0644:disk-1-2",
            b"0:0:0644:\xff",
        ];
        for value in rows {
            assert!(
                OverrideStat::parse(value).is_err(),
                "{:?}",
                value.escape_ascii().to_string()
            );
        }
    }

    #[test]
    fn types_have_their_bits_of_st_mode() {
        assert_eq!(OverrideKind::File.file_type(), 0o100_000);
        assert_eq!(OverrideKind::Dir.file_type(), 0o040_000);
        assert_eq!(OverrideKind::Symlink.file_type(), 0o120_000);
        assert_eq!(OverrideKind::Pipe.file_type(), 0o010_000);
        assert_eq!(OverrideKind::Socket.file_type(), 0o140_000);
        assert_eq!(
            OverrideKind::Block { major: 1, minor: 2 }.file_type(),
            0o060_000
        );
        assert_eq!(
            OverrideKind::Char { major: 1, minor: 2 }.file_type(),
            0o020_000
        );
    }

    fn any_kind() -> impl Strategy<Value = Option<OverrideKind>> {
        prop_oneof![
            Just(None),
            Just(Some(OverrideKind::File)),
            Just(Some(OverrideKind::Dir)),
            Just(Some(OverrideKind::Symlink)),
            Just(Some(OverrideKind::Pipe)),
            Just(Some(OverrideKind::Socket)),
            any::<(u32, u32)>()
                .prop_map(|(major, minor)| Some(OverrideKind::Block { major, minor })),
            any::<(u32, u32)>()
                .prop_map(|(major, minor)| Some(OverrideKind::Char { major, minor })),
        ]
    }

    proptest! {
        #[test]
        fn values_survive(uid: u32, gid: u32, mode in 0u32..=0o7777, kind in any_kind()) {
            let stat = OverrideStat { uid, gid, mode, kind };
            prop_assert_eq!(OverrideStat::parse(&stat.encode()), Ok(stat));
        }

        #[test]
        fn no_bytes_panic(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(parsed) = OverrideStat::parse(&value) {
                prop_assert_eq!(OverrideStat::parse(&parsed.encode()), Ok(parsed));
            }
        }

        #[test]
        fn no_text_panics(value in "[0-9]{0,11}:[0-9]{0,11}:[0-9]{0,6}:?[a-z]{0,6}(-[0-9]{0,11}){0,3}\0?") {
            if let Ok(parsed) = OverrideStat::parse(value.as_bytes()) {
                prop_assert_eq!(OverrideStat::parse(&parsed.encode()), Ok(parsed));
            }
        }
    }
}
