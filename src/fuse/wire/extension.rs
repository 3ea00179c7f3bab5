//! Extensions of the requests that create: security contexts and groups.
//!
//! They are understood and not asked for: a context needs a policy to be of use, and the group
//! (`FUSE_CREATE_SUPP_GROUP`) comes only where the kernel has taken set-group-id away itself already
//! (`vfs_prepare_mode`, which is older than the flag).

use super::abi::{EXT_GROUPS, MAX_SECURITY_CONTEXTS};
use super::fields::{Fields, Malformed};
use super::request::Header;

/// The supplementary groups in the extensions of a creating request (`FUSE_CREATE_SUPP_GROUP`: at
/// most the directory's own), empty if there are none.
///
/// # Errors
/// [`Malformed::Extension`].
pub(in crate::fuse) fn groups(extensions: &[u8]) -> Result<Groups<'_>, Malformed> {
    let mut rest = extensions;
    let mut found = Groups(&[]);
    while !rest.is_empty() {
        let mut fields = Fields(rest);
        let (size, kind) = (fields.u32(), fields.u32());
        let (Ok(size), Ok(kind)) = (size, kind) else {
            return Err(Malformed::Extension);
        };
        let size = size as usize;
        let record = rest.get(8..size).ok_or(Malformed::Extension)?;
        if kind == EXT_GROUPS {
            let mut fields = Fields(record);
            let count = fields.u32().map_err(|_| Malformed::Extension)? as usize;
            let length = count.checked_mul(4).ok_or(Malformed::Extension)?;
            let groups = fields.bytes(length).map_err(|_| Malformed::Extension)?;
            found = Groups(groups);
        } else if kind > MAX_SECURITY_CONTEXTS {
            return Err(Malformed::Extension);
        }
        let next = size.checked_next_multiple_of(8);
        rest = next.and_then(|n| rest.get(n..)).unwrap_or_default();
    }
    Ok(found)
}

/// Group ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct Groups<'a>(&'a [u8]);

impl Iterator for Groups<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let mut fields = Fields(self.0);
        let gid = fields.u32().ok()?;
        self.0 = fields.0;
        Some(gid)
    }
}

/// What follows the names must hold the extensions that the header tells of.
pub(super) fn check(header: &Header, rest: Fields<'_>) -> Result<(), Malformed> {
    let start = rest.0.len().checked_sub(header.extensions);
    let extensions = start.and_then(|n| rest.0.get(n..));
    groups(extensions.ok_or(Malformed::Extension)?).map(drop)
}
