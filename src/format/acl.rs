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
