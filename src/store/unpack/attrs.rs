//! What an object gets of owner, mode, times and extended attributes: planned from its entry, then
//! applied.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::{EntryProblem, IdMap, IdRange, Options, Refused, RefusedXattrs};
use crate::format::acl::{self, AclTag};
use crate::format::override_stat::{
    OverrideKind, OverrideStat, SECURITY_FUSE_OVERLAYFS, USER_CONTAINERS, USER_FUSE_OVERLAYFS,
};
use crate::store::codec::tar::{Entry, EntryKind, Time, Xattr};
use crate::sys::fs::{TimeSpec, chmod_at, chown_at, utimens_at};
use crate::sys::xattr::{SetFlags, set_at};

const CAPABILITY: &[u8] = b"security.capability";

/// The attributes of one object as they are to be on disk.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Owner and group; `None`: those of the caller.
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: u32,
    pub(super) mtime: Time,
    pub(super) atime: Time,
    pub(super) xattrs: Vec<Xattr>,
}

/// How attributes are planned and applied: the options, and what the process is.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    options: &'a Options,
    /// The owner and group that new objects surely get.
    own: Option<(u32, u32)>,
    /// Attributes left out so far.
    dropped: AtomicU64,
}

impl IdMap {
    fn find(ranges: &[IdRange], id: u32) -> Option<u32> {
        if ranges.is_empty() {
            return Some(id);
        }
        ranges.iter().find_map(|range| {
            let offset = id.checked_sub(range.container)?;
            let host = range.host.checked_add(offset)?;
            (offset < range.count && host != u32::MAX).then_some(host)
        })
    }

    /// The user on disk.
    pub fn uid(&self, id: u32) -> Option<u32> {
        IdMap::find(&self.uids, id)
    }

    /// The group on disk.
    pub fn gid(&self, id: u32) -> Option<u32> {
        IdMap::find(&self.gids, id)
    }

    /// The map in the other direction.
    pub fn inverted(&self) -> IdMap {
        let invert = |ranges: &[IdRange]| {
            let swap = |range: &IdRange| IdRange {
                container: range.host,
                host: range.container,
                count: range.count,
            };
            ranges.iter().map(swap).collect()
        };
        IdMap {
            uids: invert(&self.uids),
            gids: invert(&self.gids),
        }
    }

    /// The ids within an ACL, mapped; `None` when it is no ACL, or one of them has no image.
    pub(in crate::store) fn acl(&self, value: &[u8]) -> Option<Vec<u8>> {
        let mut parsed = acl::parse(value).ok()?;
        for entry in &mut parsed.entries {
            entry.tag = match entry.tag {
                AclTag::User(id) => AclTag::User(self.uid(id)?),
                AclTag::Group(id) => AclTag::Group(self.gid(id)?),
                other => other,
            };
        }
        Some(acl::encode(&parsed))
    }

    pub(in crate::store) fn is_identity(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

impl<'a> Attributes<'a> {
    /// `pristine`: nothing is in the root yet.
    pub(super) fn new(
        options: &'a Options,
        root: BorrowedFd<'_>,
        pristine: bool,
    ) -> io::Result<Attributes<'a>> {
        let euid = rustix::process::geteuid().as_raw();
        let egid = rustix::process::getegid().as_raw();
        // New objects may get the group of their directory: where that can be another one, every
        // object is given its owner, even if it should have it already.
        let root = rustix::fs::fstat(root)?;
        let own_group = pristine && root.st_mode & 0o2000 == 0 && root.st_gid == egid;
        Ok(Attributes {
            options,
            own: own_group.then_some((euid, egid)),
            dropped: AtomicU64::new(0),
        })
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn count_dropped(&self) {
        // Relaxed: a counter that is read once all threads have ended.
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// What a directory gets that no entry speaks of: 0755, root's, and time 0, so that the same archive
    /// always gives the same tree.
    pub(super) fn plan_implied(&self) -> Result<Plan, EntryProblem> {
        Ok(Plan {
            owner: self.owner(0, 0)?,
            mode: 0o755,
            mtime: Time::default(),
            atime: Time::default(),
            xattrs: self.override_stat(0, 0, 0o755, None).into_iter().collect(),
        })
    }

    pub(super) fn plan(&self, entry: &Entry) -> Result<Plan, EntryProblem> {
        let mut xattrs = Vec::with_capacity(entry.xattrs.len());
        for (name, value) in &entry.xattrs {
            if let Some(stored) = self.plan_xattr(name, value)? {
                xattrs.push(stored);
            }
        }
        let mut mode = entry.mode;
        if self.options.refused == Refused::OverrideStat {
            let kind = None;
            let stat = self.override_stat(entry.uid, entry.gid, mode, kind);
            // A symlink can't have user attributes.
            let is_symlink = matches!(entry.kind, EntryKind::Symlink(_));
            xattrs.extend(stat.filter(|_| !is_symlink));
            let is_dir = entry.kind == EntryKind::Dir;
            mode = (mode & 0o777) | if is_dir { 0o700 } else { 0o600 };
        }
        Ok(Plan {
            owner: self.owner(entry.uid, entry.gid)?,
            mode,
            mtime: entry.mtime,
            atime: entry.atime.unwrap_or(entry.mtime),
            xattrs,
        })
    }

    /// Replaces the override of a plan, for an object that had to become an empty file.
    pub(super) fn stand_in(&self, plan: &mut Plan, entry: &Entry, kind: OverrideKind) {
        let key = USER_CONTAINERS.to_bytes();
        plan.xattrs.retain(|(name, _)| name != key);
        let stat = self.override_stat(entry.uid, entry.gid, entry.mode, Some(kind));
        plan.xattrs.extend(stat);
    }

    fn override_stat(
        &self,
        uid: u32,
        gid: u32,
        mode: u32,
        kind: Option<OverrideKind>,
    ) -> Option<Xattr> {
        let stat = OverrideStat {
            uid,
            gid,
            mode,
            kind,
        };
        let wanted = self.options.refused == Refused::OverrideStat;
        wanted.then(|| (USER_CONTAINERS.to_bytes().to_vec(), stat.encode()))
    }

    fn owner(&self, uid: u32, gid: u32) -> Result<Option<(u32, u32)>, EntryProblem> {
        if self.options.refused == Refused::OverrideStat {
            return Ok(None);
        }
        match (self.options.ids.uid(uid), self.options.ids.gid(gid)) {
            (Some(uid), Some(gid)) => Ok(Some((uid, gid))),
            _ if self.options.refused == Refused::IgnoreOwner => Ok(None),
            _ => Err(EntryProblem::Unmapped(uid, gid)),
        }
    }

    /// Name and value as they are stored; `None`: left out.
    fn plan_xattr(&self, name: &[u8], value: &[u8]) -> Result<Option<Xattr>, EntryProblem> {
        let ours = [
            USER_CONTAINERS,
            SECURITY_FUSE_OVERLAYFS,
            USER_FUSE_OVERLAYFS,
        ];
        let only_for_overlays = ours.iter().any(|key| key.to_bytes() == name)
            || name.starts_with(b"user.fuseoverlayfs.");
        if name == b"security.selinux" || only_for_overlays {
            self.count_dropped();
            return Ok(None);
        }
        let stored = self.options.namespace.to_stored(name);
        if stored.len() > 255 {
            return Err(EntryProblem::LongXattr);
        }
        let is_acl = name.starts_with(b"system.posix_acl_");
        let value = if is_acl && !self.options.ids.is_identity() {
            self.options.ids.acl(value).ok_or(EntryProblem::Acl)?
        } else {
            value.to_vec()
        };
        Ok(Some((stored.into_owned(), value)))
    }

    /// Applies all but the times to `name` in `dir` (empty: `dir` itself): owner first, which takes
    /// set-id bits and capabilities away.
    pub(super) fn apply(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        plan: &Plan,
        is_symlink: bool,
    ) -> io::Result<()> {
        let name = OsStr::from_bytes(name);
        if let Some((uid, gid)) = plan.owner
            && Some((uid, gid)) != self.own
        {
            self.ignore_owner(chown_at(dir, name, Some(uid), Some(gid)))?;
        }
        if !is_symlink {
            chmod_at(dir, name, plan.mode)?;
        }
        self.apply_xattrs(dir, name, plan)
    }

    /// As [`apply`](Self::apply), times included, on an open file that nobody else has seen yet.
    pub(super) fn apply_to_file(&self, file: BorrowedFd<'_>, plan: &Plan) -> io::Result<()> {
        if let Some((uid, gid)) = plan.owner
            && Some((uid, gid)) != self.own
        {
            let uid = rustix::fs::Uid::from_raw(uid);
            let gid = rustix::fs::Gid::from_raw(gid);
            self.ignore_owner(rustix::fs::fchown(file, Some(uid), Some(gid)))?;
        }
        rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(plan.mode))?;
        self.apply_xattrs(file, OsStr::new(""), plan)?;
        set_times(file, b"", plan)
    }

    fn ignore_owner(&self, result: Result<(), Errno>) -> io::Result<()> {
        match result {
            Err(Errno::PERM | Errno::INVAL) if self.options.refused == Refused::IgnoreOwner => {
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn apply_xattrs(&self, dir: BorrowedFd<'_>, name: &OsStr, plan: &Plan) -> io::Result<()> {
        for (key, value) in &plan.xattrs {
            let c_key = CString::new(key.as_slice())?;
            match set_at(dir.as_fd(), name, &c_key, value, SetFlags::Any) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::OPNOTSUPP) if self.may_drop(key) => self.count_dropped(),
                Err(e) => {
                    let key = key.escape_ascii();
                    let what = format!("can't set the attribute {key}: {}", io::Error::from(e));
                    return Err(io::Error::new(io::Error::from(e).kind(), what));
                }
            }
        }
        Ok(())
    }

    fn may_drop(&self, key: &[u8]) -> bool {
        self.options.refused_xattrs == RefusedXattrs::Drop
            && (key.starts_with(b"trusted.")
                || (key.starts_with(b"security.") && key != CAPABILITY))
    }
}

/// Sets both times of `name` in `dir` (empty: `dir` itself).
pub(super) fn set_times(dir: BorrowedFd<'_>, name: &[u8], plan: &Plan) -> io::Result<()> {
    let at = |time: Time| TimeSpec::At {
        sec: time.sec,
        nsec: time.nsec,
    };
    Ok(utimens_at(
        dir,
        OsStr::from_bytes(name),
        at(plan.atime),
        at(plan.mtime),
    )?)
}
