//! The names of overlay's extended attributes, chosen once per mount, and how a client's own
//! attributes of such names are escaped.
//!
//! Sources: `ovl_xattr_table` in fs/overlayfs/util.c; fs/overlayfs/xattrs.c
//! (`ovl_is_private_xattr`, `ovl_xattr_escape_name`, `ovl_listxattr`);
//! Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts".

use std::borrow::Cow;
use std::ffi::CStr;

/// Put between the prefix and the rest of a client's own name.
const ESCAPE: &[u8] = b"overlay.";
/// What fuse-overlayfs leaves in layers; hidden in both namespaces.
const FUSE_OVERLAYFS: &[u8] = b"user.fuseoverlayfs.";

/// Which attributes a mount uses: the kernel's option `userxattr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Namespace {
    /// `trusted.overlay.*`: needs `CAP_SYS_ADMIN` in the initial user namespace.
    Trusted,
    /// `user.overlay.*`: works for everybody, but not on symlinks and special files.
    User,
}

/// What overlay keeps in extended attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OverlayKey {
    /// `y`: the directory hides those below. `x`: it may hold whiteouts in xattr form.
    Opaque,
    /// Where a renamed object's lower part is.
    Redirect,
    /// The file handle of the lower object that this one was copied from.
    Origin,
    /// `y`: the upper directory may hold objects with an origin.
    Impure,
    /// The link count of the overlay's inode, relative to the real one.
    Nlink,
    /// The file handle of the upper directory, on its entry in `work/index`.
    Upper,
    /// Attributes here, data below.
    Metacopy,
    /// A whiteout in the form of a regular file.
    Whiteout,
    /// The UUID of the overlay itself, on the root of upper.
    Uuid,
    /// Inode flags (immutable, append-only) that overlay stands for itself.
    Protattr,
}

impl Namespace {
    /// The full name of `key`.
    pub fn key(self, key: OverlayKey) -> &'static CStr {
        let (trusted, user) = match key {
            OverlayKey::Opaque => (c"trusted.overlay.opaque", c"user.overlay.opaque"),
            OverlayKey::Redirect => (c"trusted.overlay.redirect", c"user.overlay.redirect"),
            OverlayKey::Origin => (c"trusted.overlay.origin", c"user.overlay.origin"),
            OverlayKey::Impure => (c"trusted.overlay.impure", c"user.overlay.impure"),
            OverlayKey::Nlink => (c"trusted.overlay.nlink", c"user.overlay.nlink"),
            OverlayKey::Upper => (c"trusted.overlay.upper", c"user.overlay.upper"),
            OverlayKey::Metacopy => (c"trusted.overlay.metacopy", c"user.overlay.metacopy"),
            OverlayKey::Whiteout => (c"trusted.overlay.whiteout", c"user.overlay.whiteout"),
            OverlayKey::Uuid => (c"trusted.overlay.uuid", c"user.overlay.uuid"),
            OverlayKey::Protattr => (c"trusted.overlay.protattr", c"user.overlay.protattr"),
        };
        match self {
            Namespace::Trusted => trusted,
            Namespace::User => user,
        }
    }

    /// What the names of this namespace begin with.
    pub fn prefix(self) -> &'static [u8] {
        match self {
            Namespace::Trusted => b"trusted.overlay.",
            Namespace::User => b"user.overlay.",
        }
    }

    /// Whether the attribute stored as `name` belongs to the overlay itself: it is neither shown
    /// nor copied up as data of the file. An escaped one, and one of the other namespace, is the
    /// client's.
    pub fn is_private(self, name: &[u8]) -> bool {
        match name.strip_prefix(self.prefix()) {
            Some(rest) => !rest.starts_with(ESCAPE),
            None => name.starts_with(FUSE_OVERLAYFS),
        }
    }

    /// How a client's attribute `name` is stored: `trusted.overlay.X` as
    /// `trusted.overlay.overlay.X`, everything else as it is.
    ///
    /// The kernel refuses the bare prefix with `EINVAL`, and a name that gets longer than 255 bytes
    /// with `EOPNOTSUPP`; both are left to the caller.
    pub fn to_stored<'a>(self, name: &'a [u8]) -> Cow<'a, [u8]> {
        match name.strip_prefix(self.prefix()) {
            Some(rest) => Cow::Owned([self.prefix(), ESCAPE, rest].concat()),
            None => Cow::Borrowed(name),
        }
    }

    /// The name that a client sees for the attribute stored as `stored`; `None`: it is hidden.
    pub fn to_shown<'a>(self, stored: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        if self.is_private(stored) {
            return None;
        }
        let escaped = stored
            .strip_prefix(self.prefix())
            .and_then(|rest| rest.strip_prefix(ESCAPE));
        Some(match escaped {
            Some(rest) => Cow::Owned([self.prefix(), rest].concat()),
            None => Cow::Borrowed(stored),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: [Namespace; 2] = [Namespace::Trusted, Namespace::User];
    const ALL: [OverlayKey; 10] = [
        OverlayKey::Opaque,
        OverlayKey::Redirect,
        OverlayKey::Origin,
        OverlayKey::Impure,
        OverlayKey::Nlink,
        OverlayKey::Upper,
        OverlayKey::Metacopy,
        OverlayKey::Whiteout,
        OverlayKey::Uuid,
        OverlayKey::Protattr,
    ];

    #[test]
    fn every_key_is_its_namespace_and_its_own_name() {
        for ns in BOTH {
            for key in ALL {
                let name = ns.key(key).to_bytes();
                let rest = name.strip_prefix(ns.prefix()).unwrap();
                assert_eq!(rest, format!("{key:?}").to_lowercase().as_bytes());
                assert!(ns.is_private(name));
                assert_eq!(ns.to_shown(name), None);
            }
        }
    }

    #[test]
    fn names_are_stored_and_shown_as_the_kernel_does() {
        // namespace, what the client says, what is stored
        let rows: [(Namespace, &str, &str); 9] = [
            (
                Namespace::Trusted,
                "trusted.overlay.foo",
                "trusted.overlay.overlay.foo",
            ),
            (
                Namespace::Trusted,
                "trusted.overlay.overlay.foo",
                "trusted.overlay.overlay.overlay.foo",
            ),
            (
                Namespace::Trusted,
                "trusted.overlay.",
                "trusted.overlay.overlay.",
            ),
            (Namespace::Trusted, "trusted.overlayx", "trusted.overlayx"),
            (Namespace::Trusted, "trusted.other", "trusted.other"),
            (Namespace::Trusted, "user.overlay.x", "user.overlay.x"),
            (
                Namespace::User,
                "user.overlay.opaque",
                "user.overlay.overlay.opaque",
            ),
            (
                Namespace::User,
                "trusted.overlay.opaque",
                "trusted.overlay.opaque",
            ),
            (Namespace::User, "", ""),
        ];
        for (ns, client, stored) in rows {
            assert_eq!(
                ns.to_stored(client.as_bytes()),
                stored.as_bytes(),
                "{client}"
            );
            assert!(!ns.is_private(stored.as_bytes()), "{stored}");
            assert_eq!(
                ns.to_shown(stored.as_bytes()).unwrap(),
                client.as_bytes(),
                "{stored}"
            );
        }
    }

    #[test]
    fn private_names_are_hidden() {
        let rows: [(Namespace, &str, bool); 8] = [
            (Namespace::Trusted, "trusted.overlay.opaque", true),
            (Namespace::Trusted, "trusted.overlay.of_the_future", true),
            (Namespace::Trusted, "trusted.overlay.overlay", true),
            (Namespace::Trusted, "trusted.overlay.", true),
            (Namespace::Trusted, "user.overlay.opaque", false),
            (Namespace::User, "user.overlay.opaque", true),
            (Namespace::User, "trusted.overlay.opaque", false),
            (Namespace::User, "user.fuseoverlayfs.opaque", true),
        ];
        for (ns, stored, hidden) in rows {
            assert_eq!(ns.is_private(stored.as_bytes()), hidden, "{stored}");
            assert_eq!(ns.to_shown(stored.as_bytes()).is_none(), hidden, "{stored}");
        }
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        let words: [&[u8]; 6] = [
            b"trusted.",
            b"user.",
            b"overlay.",
            b"fuseoverlayfs.",
            b"x",
            b"\xff",
        ];
        let word = proptest::sample::select(words.to_vec());
        proptest::collection::vec(word, 0..6).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn what_a_client_sets_it_sees(name in name()) {
            for ns in BOTH {
                let stored = ns.to_stored(&name);
                if name.starts_with(FUSE_OVERLAYFS) {
                    prop_assert!(ns.to_shown(&stored).is_none());
                } else {
                    prop_assert_eq!(ns.to_shown(&stored).unwrap(), name.as_slice());
                }
            }
        }

        #[test]
        fn what_is_shown_is_stored_there(stored in name()) {
            for ns in BOTH {
                if let Some(shown) = ns.to_shown(&stored) {
                    prop_assert_eq!(ns.to_stored(&shown), stored.as_slice());
                }
            }
        }
    }
}
