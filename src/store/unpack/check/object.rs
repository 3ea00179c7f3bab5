//! One object against its entry.

use std::ffi::{CStr, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Stat, major, minor};
use rustix::io::Errno;

use super::super::tree::Dir;
use super::{Checker, Fault, kind_of};
use crate::format::acl;
use crate::format::keys::OverlayKey;
use crate::format::override_stat::{OverrideKind, OverrideStat, USER_CONTAINERS};
use crate::store::codec::tar::{Entry, EntryKind, Time};
use crate::sys::xattr::{get_at, list_at};

const CAPABILITY: &[u8] = b"security.capability";
const ACCESS: &CStr = c"system.posix_acl_access";

/// What is where an entry says.
pub(super) struct Found<'a> {
    dir: &'a Dir,
    name: &'a OsStr,
    stat: Stat,
    /// What the object stands for, where owners and devices couldn't be had.
    stands_for: Option<OverrideStat>,
}

impl<'a> Found<'a> {
    /// Looks at `name` in `dir` (empty: `dir` itself); `None` when nothing is there.
    pub(super) fn at(dir: &'a Dir, name: &'a [u8]) -> Result<Option<Found<'a>>, Errno> {
        let name = OsStr::from_bytes(name);
        let stat =
            match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH) {
                Err(Errno::NOENT) => return Ok(None),
                other => other?,
            };
        let mut found = Found {
            dir,
            name,
            stat,
            stands_for: None,
        };
        if !found.is_symlink() {
            let value = found.get(USER_CONTAINERS)?;
            found.stands_for = value.and_then(|value| OverrideStat::parse(&value).ok());
        }
        Ok(Some(found))
    }

    pub(super) fn ino(&self) -> u64 {
        self.stat.st_ino
    }

    /// The value of an attribute; `None` also where there can't be any.
    fn get(&self, key: &CStr) -> Result<Option<Vec<u8>>, Errno> {
        match get_at(self.dir.as_fd(), self.name, key) {
            Err(Errno::OPNOTSUPP) => Ok(None),
            other => other,
        }
    }

    fn is_symlink(&self) -> bool {
        kind_of(&self.stat) == FileType::Symlink
    }
}

impl Checker {
    /// What of an object is not as its entry says.
    pub(super) fn object_fault(
        &self,
        dir: &Dir,
        name: &[u8],
        entry: &Entry,
    ) -> Result<Option<Fault>, Errno> {
        let Some(found) = Found::at(dir, name)? else {
            return Ok(Fault::new("it is not there"));
        };
        if let Some(what) = kind_fault(&found, entry)? {
            return Ok(Fault::new(what));
        }
        if let Some(what) = self.attribute_fault(&found, entry)? {
            let of_attributes = true;
            return Ok(Some(Fault {
                what,
                of_attributes,
            }));
        }
        match self.owned {
            true => Ok(self.xattr_fault(&found, entry)?.and_then(Fault::new)),
            false => Ok(None),
        }
    }

    /// What of owner, mode and time is not as an entry says.
    pub(super) fn attribute_fault(
        &self,
        found: &Found<'_>,
        entry: &Entry,
    ) -> Result<Option<String>, Errno> {
        if !self.owned {
            return Ok(None);
        }
        let owner = self.owner_fault(found, entry);
        let mode = self.mode_fault(found, entry)?;
        Ok(owner
            .or(mode)
            .or_else(|| time_fault(&found.stat, entry.mtime)))
    }

    fn owner_fault(&self, found: &Found<'_>, entry: &Entry) -> Option<String> {
        let (uid, gid) = match &found.stands_for {
            Some(stands_for) => (stands_for.uid, stands_for.gid),
            None if !self.strict => return None,
            None => (found.stat.st_uid, found.stat.st_gid),
        };
        let is_right = (uid, gid) == (entry.uid, entry.gid);
        (!is_right).then(|| {
            let (user, group) = (entry.uid, entry.gid);
            format!("its owner is {uid}:{gid}, not {user}:{group}")
        })
    }

    fn mode_fault(&self, found: &Found<'_>, entry: &Entry) -> Result<Option<String>, Errno> {
        if found.is_symlink() {
            return Ok(None);
        }
        let mode = match &found.stands_for {
            Some(stands_for) => stands_for.mode,
            // An ACL changes the mode of its object.
            None if entry.xattrs.iter().any(|(name, _)| is_acl(name)) => return Ok(None),
            None if found.get(ACCESS)?.is_some() => {
                let is_inherited = self.default_acls;
                return Ok(
                    (!is_inherited).then(|| "it has an ACL that is not the archive's".into())
                );
            }
            None => found.stat.st_mode & 0o7777,
        };
        let wanted = entry.mode;
        Ok((mode != wanted).then(|| format!("its mode is {mode:04o}, not {wanted:04o}")))
    }

    fn xattr_fault(&self, found: &Found<'_>, entry: &Entry) -> Result<Option<String>, Errno> {
        for (name, value) in &entry.xattrs {
            let counts = self.counts(name) && !found.is_symlink();
            let key = std::ffi::CString::new(name.as_slice()).unwrap_or_default();
            let is_right = if counts {
                found.get(&key)?.as_ref() == Some(value)
            } else if is_acl(name) && self.strict {
                is_same_acl(found.get(&key)?.as_deref(), value)
            } else {
                true
            };
            if !is_right {
                let name = name.escape_ascii();
                return Ok(Some(format!("its attribute {name} is not the archive's")));
            }
        }
        if found.is_symlink() {
            return Ok(None);
        }
        let names = list_at(found.dir.as_fd(), found.name)?;
        let metacopy = self.namespace().key(OverlayKey::Metacopy).to_bytes();
        let extra = names
            .split(|byte| *byte == 0)
            .filter(|name| self.counts(name) || *name == metacopy)
            .find(|name| !entry.xattrs.iter().any(|(known, _)| known == name));
        Ok(extra.map(|extra| {
            let extra = extra.escape_ascii();
            format!("it has an attribute {extra}, which is not the archive's")
        }))
    }

    /// Whether an attribute is as the archive has it on every file system, for whoever unpacks.
    fn counts(&self, name: &[u8]) -> bool {
        is_users(name) || (name == CAPABILITY && self.strict)
    }
}

/// What is wrong with the type, and what goes with it.
fn kind_fault(found: &Found<'_>, entry: &Entry) -> Result<Option<String>, Errno> {
    let stat = &found.stat;
    let stands_for = found.stands_for.as_ref().and_then(|stat| stat.kind);
    let device = (major(stat.st_rdev), minor(stat.st_rdev));
    let is_right = match (&entry.kind, stands_for) {
        (EntryKind::Char { major, minor }, Some(kind)) => {
            let (major, minor) = (*major, *minor);
            kind == OverrideKind::Char { major, minor }
        }
        (EntryKind::Block { major, minor }, Some(kind)) => {
            let (major, minor) = (*major, *minor);
            kind == OverrideKind::Block { major, minor }
        }
        (EntryKind::Fifo, Some(kind)) => kind == OverrideKind::Pipe,
        (EntryKind::Char { major, minor }, None) => {
            kind_of(stat) == FileType::CharacterDevice && device == (*major, *minor)
        }
        (EntryKind::Block { major, minor }, None) => {
            kind_of(stat) == FileType::BlockDevice && device == (*major, *minor)
        }
        (EntryKind::Fifo, None) => kind_of(stat) == FileType::Fifo,
        (EntryKind::Dir, _) => kind_of(stat) == FileType::Directory,
        (EntryKind::File, _) => kind_of(stat) == FileType::RegularFile,
        (EntryKind::Symlink(_), _) => found.is_symlink(),
        (EntryKind::HardLink(_), _) => true,
    };
    if !is_right {
        return Ok(Some("it is of another type, or another device".into()));
    }
    match &entry.kind {
        EntryKind::File if u64::try_from(stat.st_size) != Ok(entry.size) => {
            let (is, wanted) = (stat.st_size, entry.size);
            Ok(Some(format!("it has {is} bytes, not {wanted}")))
        }
        EntryKind::Symlink(target) => {
            let is = rustix::fs::readlinkat(found.dir, found.name, Vec::new())?;
            let is_right = is.to_bytes() == target.as_slice();
            Ok((!is_right).then(|| "it leads elsewhere".into()))
        }
        _ => Ok(None),
    }
}

/// Times are compared as far as the file system holds them: rounded to some power of ten of nanoseconds, and
/// between 1970 and 2038, which all of them can hold, and Docker keeps.
fn time_fault(stat: &Stat, wanted: Time) -> Option<String> {
    if !(0..1 << 31).contains(&wanted.sec) {
        return None;
    }
    let nsec = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    let is_rounded = (0..=9).any(|power| {
        let unit = 10_u32.pow(power);
        nsec == wanted.nsec - wanted.nsec % unit
    });
    let is_right = stat.st_mtime == wanted.sec && is_rounded;
    (!is_right).then(|| {
        format!(
            "its time is {}.{nsec:09}, not {}.{:09}",
            stat.st_mtime, wanted.sec, wanted.nsec
        )
    })
}

fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

/// Whether it is an attribute that users give, rather than overlays and those who manage containers.
fn is_users(name: &[u8]) -> bool {
    let others: [&[u8]; 3] = [
        b"user.overlay.",
        b"user.fuseoverlayfs.",
        b"user.containers.",
    ];
    name.starts_with(b"user.") && !others.iter().any(|other| name.starts_with(other))
}

/// An ACL that says no more than the mode does is kept as the mode.
fn is_same_acl(is: Option<&[u8]>, wanted: &[u8]) -> bool {
    match (is, acl::parse(wanted)) {
        (Some(is), Ok(wanted)) => acl::parse(is).is_ok_and(|is| is == wanted),
        (None, Ok(wanted)) => wanted.entries.len() <= 3,
        (_, Err(_)) => true,
    }
}
