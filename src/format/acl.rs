//! POSIX ACLs as `system.posix_acl_access` and `system.posix_acl_default` hold them.
//!
//! Little-endian on every machine: a u32 version (2), then entries of u16 tag, u16 permissions,
//! u32 id. Sources: include/uapi/linux/posix_acl_xattr.h, fs/posix_acl.c (`posix_acl_valid`,
//! `posix_acl_create`, `posix_acl_create_masq`).

use super::FormatError;

const VERSION: u32 = 2;
/// `ACL_UNDEFINED_ID`: the id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// An access control list, its entries in the order that the kernel demands: owner, users, group,
/// groups, mask, others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    /// The entries.
    pub entries: Vec<AclEntry>,
}

/// One line of an ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AclEntry {
    /// Whom it is about.
    pub tag: AclTag,
    /// Permission bits, at most 7.
    pub perm: u16,
}

/// Whom an entry of an ACL is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AclTag {
    /// The owner.
    UserObj,
    /// The user of this id.
    User(u32),
    /// The owning group.
    GroupObj,
    /// The group of this id.
    Group(u32),
    /// What users, owning group and groups get at most.
    Mask,
    /// Everybody else.
    Other,
}

/// What a new object gets from its directory's default ACL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The mode to create it with, type bits as they came in. The umask must not be applied.
    pub mode: u32,
    /// Its access ACL, as an attribute's value; `None` when the mode says it all.
    pub access: Option<Vec<u8>>,
    /// Its default ACL, for a directory.
    pub default: Option<Vec<u8>>,
}

impl AclTag {
    fn decode(tag: u16, id: u32) -> Option<AclTag> {
        Some(match tag {
            0x01 => AclTag::UserObj,
            0x02 => AclTag::User(id),
            0x04 => AclTag::GroupObj,
            0x08 => AclTag::Group(id),
            0x10 => AclTag::Mask,
            0x20 => AclTag::Other,
            _ => return None,
        })
    }

    fn encode(self) -> (u16, u32) {
        match self {
            AclTag::UserObj => (0x01, NO_ID),
            AclTag::User(id) => (0x02, id),
            AclTag::GroupObj => (0x04, NO_ID),
            AclTag::Group(id) => (0x08, id),
            AclTag::Mask => (0x10, NO_ID),
            AclTag::Other => (0x20, NO_ID),
        }
    }
}

/// Reads an ACL. One without entries (which the kernel takes for "remove it") is valid.
///
/// # Errors
/// For another version, half an entry, unknown tags or permission bits, an id of 4294967295, and
/// entries that `posix_acl_valid` refuses: out of order, repeated, missing.
pub fn parse(value: &[u8]) -> Result<Acl, FormatError> {
    let (version, rest) = value
        .split_first_chunk::<4>()
        .ok_or(FormatError::Acl("shorter than its header"))?;
    if u32::from_le_bytes(*version) != VERSION {
        return Err(FormatError::Acl("another version than 2"));
    }
    let (raw, half) = rest.as_chunks::<8>();
    if !half.is_empty() {
        return Err(FormatError::Acl("half an entry"));
    }
    let mut entries = Vec::with_capacity(raw.len());
    for &[t0, t1, p0, p1, i0, i1, i2, i3] in raw {
        let tag = AclTag::decode(
            u16::from_le_bytes([t0, t1]),
            u32::from_le_bytes([i0, i1, i2, i3]),
        )
        .ok_or(FormatError::Acl("an unknown tag"))?;
        entries.push(AclEntry {
            tag,
            perm: u16::from_le_bytes([p0, p1]),
        });
    }
    let acl = Acl { entries };
    if !acl.entries.is_empty() {
        acl.check()?;
    }
    Ok(acl)
}

/// The attribute's value.
pub fn encode(acl: &Acl) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for entry in &acl.entries {
        let (tag, id) = entry.tag.encode();
        value.extend(tag.to_le_bytes());
        value.extend(entry.perm.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// What an object created with `mode` in a directory of this default ACL gets. `mode` is what the
/// creator asked for: where there is a default ACL, the umask does not count.
///
/// # Errors
/// When the ACL is not valid or has no entries.
pub fn inherit(default_acl: &[u8], mode: u32, is_dir: bool) -> Result<Inherited, FormatError> {
    let mut acl = parse(default_acl)?;
    if acl.entries.is_empty() {
        return Err(FormatError::Acl("without entries"));
    }
    let has_mask = acl.entries.iter().any(|entry| entry.tag == AclTag::Mask);
    let mut permissions = 0;
    for entry in &mut acl.entries {
        // Whose bits of the mode this entry and the mode share; the mask stands for the group.
        let shift = match entry.tag {
            AclTag::UserObj => 6,
            AclTag::GroupObj if !has_mask => 3,
            AclTag::Mask => 3,
            AclTag::Other => 0,
            AclTag::GroupObj | AclTag::User(_) | AclTag::Group(_) => continue,
        };
        let allowed = u32::from(entry.perm) & (mode >> shift) & 0o7;
        entry.perm &= u16::try_from(mode >> shift & 0o7).unwrap_or(0);
        permissions |= allowed << shift;
    }
    // A mask is required with users and groups, and alone it is not equivalent to a mode either.
    Ok(Inherited {
        mode: mode & !0o777 | permissions,
        access: has_mask.then(|| encode(&acl)),
        default: is_dir.then(|| default_acl.to_vec()),
    })
}

impl Acl {
    /// The rules of `posix_acl_valid`.
    fn check(&self) -> Result<(), FormatError> {
        const ORDER: FormatError = FormatError::Acl("entries out of order, repeated or missing");
        let rank = |tag: AclTag| match tag {
            AclTag::UserObj => 0,
            AclTag::User(_) => 1,
            AclTag::GroupObj => 2,
            AclTag::Group(_) => 3,
            AclTag::Mask => 4,
            AclTag::Other => 5,
        };
        let mut seen = [0usize; 6];
        let mut last = 0;
        for entry in &self.entries {
            let here = rank(entry.tag);
            if here < last {
                return Err(ORDER);
            }
            last = here;
            if let Some(count) = seen.get_mut(here) {
                *count += 1;
            }
            if entry.perm > 7 {
                return Err(FormatError::Acl("unknown permission bits"));
            }
            if matches!(entry.tag, AclTag::User(NO_ID) | AclTag::Group(NO_ID)) {
                return Err(FormatError::Acl("an id that means none"));
            }
        }
        let [owner, users, group, groups, mask, other] = seen;
        let named = users + groups > 0;
        if owner != 1 || group != 1 || other != 1 || mask > 1 || (named && mask == 0) {
            return Err(ORDER);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn e(tag: AclTag, perm: u16) -> AclEntry {
        AclEntry { tag, perm }
    }

    fn value(entries: &[AclEntry]) -> Vec<u8> {
        encode(&Acl {
            entries: entries.to_vec(),
        })
    }

    const BASIC: [AclEntry; 3] = [
        e(AclTag::UserObj, 7),
        e(AclTag::GroupObj, 5),
        e(AclTag::Other, 5),
    ];

    const EXTENDED: [AclEntry; 6] = [
        e(AclTag::UserObj, 7),
        e(AclTag::User(1000), 6),
        e(AclTag::GroupObj, 5),
        e(AclTag::Group(7), 7),
        e(AclTag::Mask, 7),
        e(AclTag::Other, 4),
    ];

    #[test]
    fn the_layout_is_the_kernels() {
        let bytes = value(&[e(AclTag::UserObj, 7), e(AclTag::User(0x0102_0304), 6)]);
        let expected = [
            2, 0, 0, 0, // version
            1, 0, 7, 0, 255, 255, 255, 255, // the owner
            2, 0, 6, 0, 4, 3, 2, 1, // a user
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn valid_lists_are_read() {
        for entries in [&BASIC[..], &EXTENDED[..], &[]] {
            assert_eq!(
                parse(&value(entries)),
                Ok(Acl {
                    entries: entries.to_vec()
                })
            );
        }
        // The ids of entries without one don't matter.
        let mut odd = value(&BASIC);
        odd[8..12].fill(0);
        assert_eq!(
            parse(&odd),
            Ok(Acl {
                entries: BASIC.to_vec()
            })
        );
    }

    #[test]
    fn invalid_lists_are_errors() {
        let good = value(&EXTENDED);
        for length in [0, 1, 3, 5, 11, good.len() - 1, good.len() - 8] {
            assert!(parse(&good[..length]).is_err(), "{length}");
        }
        // (where, what): version, tag, permissions, id
        for (at, byte) in [(0, 1), (3, 1), (4, 0x40), (4, 3), (5, 1), (6, 8), (7, 1)] {
            let mut bad = good.clone();
            bad[at] = byte;
            assert!(parse(&bad).is_err(), "{at} {byte}");
        }
        let without = |skip| {
            let mut entries = EXTENDED.to_vec();
            entries.remove(skip);
            value(&entries)
        };
        for missing in [0, 2, 4, 5] {
            assert!(parse(&without(missing)).is_err(), "{missing}");
        }
        for repeated in [0, 2, 4, 5] {
            let mut entries = EXTENDED.to_vec();
            entries.insert(repeated, EXTENDED[repeated]);
            assert!(parse(&value(&entries)).is_err(), "{repeated}");
        }
        for swapped in 0..5 {
            let mut entries = EXTENDED;
            entries.swap(swapped, swapped + 1);
            assert!(parse(&value(&entries)).is_err(), "{swapped}");
        }
        let mut nobody = EXTENDED;
        nobody[1] = e(AclTag::User(u32::MAX), 6);
        assert!(parse(&value(&nobody)).is_err());
    }

    #[test]
    fn a_basic_default_acl_becomes_the_mode() {
        let default = value(&BASIC);
        let file = inherit(&default, 0o100_666, false).unwrap();
        assert_eq!(
            file,
            Inherited {
                mode: 0o100_644,
                access: None,
                default: None
            }
        );
        let dir = inherit(&default, 0o2777, true).unwrap();
        assert_eq!(
            dir,
            Inherited {
                mode: 0o2755,
                access: None,
                default: Some(default)
            }
        );
    }

    #[test]
    fn with_a_mask_the_group_bits_are_the_mask() {
        let default = value(&EXTENDED);
        let file = inherit(&default, 0o640, false).unwrap();
        let mut access = EXTENDED;
        access[0].perm = 6;
        access[4].perm = 4;
        access[5].perm = 0;
        assert_eq!(
            file,
            Inherited {
                mode: 0o640,
                access: Some(value(&access)),
                default: None
            }
        );
    }

    #[test]
    fn a_mask_alone_is_kept() {
        let masked = [
            e(AclTag::UserObj, 7),
            e(AclTag::GroupObj, 7),
            e(AclTag::Mask, 5),
            e(AclTag::Other, 0),
        ];
        let got = inherit(&value(&masked), 0o777, false).unwrap();
        assert_eq!((got.mode, got.access), (0o750, Some(value(&masked))));
    }

    #[test]
    fn an_empty_default_acl_is_an_error() {
        assert!(inherit(&value(&[]), 0o644, false).is_err());
        assert!(inherit(b"", 0o644, false).is_err());
    }

    fn any_acl() -> impl Strategy<Value = Acl> {
        let named = || proptest::collection::vec((0u32..u32::MAX, 0u16..8), 0..4);
        (
            named(),
            named(),
            any::<bool>(),
            proptest::array::uniform4(0u16..8),
        )
            .prop_map(|(users, groups, masked, [owner, group, mask, other])| {
                let masked = masked || !users.is_empty() || !groups.is_empty();
                let mut entries = vec![e(AclTag::UserObj, owner)];
                entries.extend(users.iter().map(|&(id, perm)| e(AclTag::User(id), perm)));
                entries.push(e(AclTag::GroupObj, group));
                entries.extend(groups.iter().map(|&(id, perm)| e(AclTag::Group(id), perm)));
                entries.extend(masked.then_some(e(AclTag::Mask, mask)));
                entries.push(e(AclTag::Other, other));
                Acl { entries }
            })
    }

    proptest! {
        #[test]
        fn lists_survive(acl in any_acl()) {
            prop_assert_eq!(parse(&encode(&acl)), Ok(acl));
        }

        #[test]
        fn inheritance_never_adds_rights(acl in any_acl(), mode in 0u32..=0o7777, is_dir: bool) {
            let got = inherit(&encode(&acl), mode, is_dir).unwrap();
            prop_assert_eq!(got.mode & !mode, 0);
            prop_assert_eq!(got.mode & !0o777, mode & !0o777);
            if let Some(access) = got.access {
                prop_assert!(parse(&access).is_ok());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), mode: u32) {
            if let Ok(acl) = parse(&bytes) {
                prop_assert_eq!(parse(&encode(&acl)), Ok(acl));
            }
            if let Ok(got) = inherit(&bytes, mode, true) {
                prop_assert_eq!(got.default, Some(bytes));
            }
        }

        #[test]
        fn no_damage_panics(acl in any_acl(), at in 0usize..60, byte: u8, mode: u32) {
            let mut bytes = encode(&acl);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            if let Ok(got) = inherit(&bytes, mode, false) {
                prop_assert_eq!(got.default, None);
            }
        }
    }
}
