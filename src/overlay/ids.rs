//! Owners, modes and types that differ from those on disk: id maps, squashed ids, and
//! `xattr_permissions`, where all three are kept in an attribute of the stored object.
//!
//! What is on disk goes through the attribute first and through the map then, as in
//! fuse-overlayfs: the attribute holds *stored* ids, clients see *shown* ones. Objects whose owner
//! is kept in an attribute are 0755 on disk, so that the daemon can always use them; what can't
//! have a `user.*` attribute (symlinks, FIFOs, sockets, devices) is stored as a regular file, the
//! attribute naming the type and a symlink's target being the content.
//!
//! Invariant: with no option set, nothing here makes a system call.

mod idmapped;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, Statx};
use rustix::io::Errno;
use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::attr::{Kind, SetAttr, is_file, stat_at};
use super::config::{IdMap, IdOptions, XattrPermissions};
use super::file::open_for;
use super::{Config, Overlay};
use crate::format::FormatError;
use crate::format::acl::{self, AclTag};
use crate::format::override_stat::{
    AS_ON_DISK, OverrideKind, OverrideStat, SECURITY_FUSE_OVERLAYFS, USER_CONTAINERS,
    USER_FUSE_OVERLAYFS,
};
use crate::sys::fs as sysfs;
use crate::sys::xattr::{self, SetFlags};
use idmapped::IdmappedMounts;

/// How ids outside of a map are shown, and whose the objects are that somebody outside of it makes.
const OVERFLOW_ID: u32 = 65_534;
/// Permissions on disk of an object that has its own in an attribute.
pub(crate) const DISK_MODE: u32 = 0o755;
/// The longest symlink target, in bytes (`PATH_MAX`).
const LONGEST_TARGET: usize = 4096;
const CAPABILITIES: &CStr = c"security.capability";
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// One way of changing user ids, or group ids.
#[derive(Default)]
struct Mapping {
    /// Empty: every id is itself.
    rows: Box<[IdMap]>,
    squash: Option<u32>,
}

impl Mapping {
    fn new(rows: &[IdMap], squash: Option<u32>) -> Mapping {
        let same = |row: &IdMap| row.stored == 0 && row.shown == 0 && row.count == u32::MAX;
        let rows = match rows {
            [row] if same(row) => Box::default(),
            rows => rows.into(),
        };
        Mapping { rows, squash }
    }

    /// `None`: not in the map.
    fn to_shown(&self, stored: u32) -> Option<u32> {
        if self.rows.is_empty() {
            return Some(stored);
        }
        self.rows.iter().find_map(|row| {
            let at = stored.checked_sub(row.stored)?;
            (at < row.count).then(|| row.shown.wrapping_add(at))
        })
    }

    /// `None`: not in the map.
    fn to_stored(&self, shown: u32) -> Option<u32> {
        if self.rows.is_empty() {
            return Some(shown);
        }
        self.rows.iter().find_map(|row| {
            let at = shown.checked_sub(row.shown)?;
            (at < row.count).then(|| row.stored.wrapping_add(at))
        })
    }

    fn shown(&self, stored: u32) -> u32 {
        self.squash
            .unwrap_or_else(|| self.to_shown(stored).unwrap_or(OVERFLOW_ID))
    }
}

/// What a mount does to ids and modes.
pub(crate) struct Ids {
    uids: Mapping,
    gids: Mapping,
    /// The attributes that owners and modes are kept in: the first is written, all are read, in
    /// this order. Empty: they are those on disk.
    keys: Vec<&'static CStr>,
    /// The attribute can't be had on anything but files and directories.
    stand_ins: bool,
    idmapped: IdmappedMounts,
    /// Held while an attribute is read, changed and written; a leaf.
    changing: Mutex<()>,
}

impl Ids {
    /// `marked`: does the root of any layer have this attribute? Engines mark the roots of the
    /// layers that they unpack.
    ///
    /// # Errors
    /// What `marked` returns.
    pub(crate) fn new(
        options: &IdOptions,
        marked: impl Fn(&CStr) -> Result<bool, Errno>,
    ) -> Result<Ids, Errno> {
        let own = match options.xattr_permissions {
            XattrPermissions::Off => None,
            XattrPermissions::Privileged => Some(SECURITY_FUSE_OVERLAYFS),
            XattrPermissions::User => Some(USER_CONTAINERS),
        };
        let mut keys = Vec::new();
        if let Some(own) = own {
            keys.push(own);
            for other in [
                SECURITY_FUSE_OVERLAYFS,
                USER_CONTAINERS,
                USER_FUSE_OVERLAYFS,
            ] {
                if other != own && marked(other)? {
                    keys.push(other);
                }
            }
        }
        Ok(Ids {
            uids: Mapping::new(&options.uid_map, options.squash_uid),
            gids: Mapping::new(&options.gid_map, options.squash_gid),
            keys,
            stand_ins: options.xattr_permissions == XattrPermissions::User,
            idmapped: IdmappedMounts::default(),
            changing: Mutex::new(()),
        })
    }

    /// Are owners and modes kept in an attribute?
    pub(crate) fn in_xattrs(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Are symlinks and special files stored as regular files?
    pub(crate) fn stand_ins(&self) -> bool {
        self.stand_ins
    }

    /// The owner that clients see.
    pub(crate) fn shown_uid(&self, stored: u32) -> u32 {
        self.uids.shown(stored)
    }

    /// The group that clients see.
    pub(crate) fn shown_gid(&self, stored: u32) -> u32 {
        self.gids.shown(stored)
    }

    /// Whom something belongs to that this user and group make.
    pub(crate) fn stored_caller(&self, uid: u32, gid: u32) -> (u32, u32) {
        (
            self.uids.to_stored(uid).unwrap_or(OVERFLOW_ID),
            self.gids.to_stored(gid).unwrap_or(OVERFLOW_ID),
        )
    }

    /// Owner and group to store for a chown.
    ///
    /// # Errors
    /// `EINVAL` for an id outside of the map, as chown(2) in a user namespace.
    fn stored_owner(&self, set: &SetAttr) -> Result<(Option<u32>, Option<u32>), Errno> {
        let find = |mapping: &Mapping, id: Option<u32>| match id {
            Some(id) => mapping.to_stored(id).map(Some).ok_or(Errno::INVAL),
            None => Ok(None),
        };
        Ok((find(&self.uids, set.uid)?, find(&self.gids, set.gid)?))
    }

    /// Does this attribute belong to the mount, or is it one that the mount can't keep?
    pub(crate) fn hides(&self, key: &[u8]) -> bool {
        self.in_xattrs()
            && (key.starts_with(ACL_PREFIX) || self.keys.iter().any(|own| own.to_bytes() == key))
    }

    /// Can't there be POSIX ACLs under this name? They would need ids that can't be stored, and a
    /// mode that isn't on disk.
    pub(crate) fn refuses_acl(&self, key: &[u8]) -> bool {
        self.in_xattrs() && key.starts_with(ACL_PREFIX)
    }

    fn maps_acl(&self, key: &OsStr) -> bool {
        use std::os::unix::ffi::OsStrExt;
        !(self.uids.rows.is_empty() && self.gids.rows.is_empty())
            && key.as_bytes().starts_with(ACL_PREFIX)
    }

    /// The value of the attribute `key` as clients see it: the ids in an ACL are mapped.
    ///
    /// # Errors
    /// `EIO` for an ACL that can't be understood.
    pub(crate) fn shown_value(&self, key: &OsStr, value: Vec<u8>) -> Result<Vec<u8>, Errno> {
        if !self.maps_acl(key) {
            return Ok(value);
        }
        let to = |mapping: &Mapping, id| Some(mapping.to_shown(id).unwrap_or(OVERFLOW_ID));
        self.map_acl(&value, to).map_err(|_| Errno::IO)
    }

    /// The value of the attribute `key` to store; `None`: as it is.
    ///
    /// # Errors
    /// `EINVAL` for an ACL that is none, or with an id outside of the map.
    pub(crate) fn stored_value(&self, key: &OsStr, value: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        if !self.maps_acl(key) {
            return Ok(None);
        }
        self.map_acl(value, Mapping::to_stored)
            .map(Some)
            .map_err(|_| Errno::INVAL)
    }

    fn map_acl(
        &self,
        value: &[u8],
        map: impl Fn(&Mapping, u32) -> Option<u32>,
    ) -> Result<Vec<u8>, FormatError> {
        let outside = FormatError::Acl("an id outside of the map");
        let mut acl = acl::parse(value)?;
        for entry in &mut acl.entries {
            entry.tag = match entry.tag {
                AclTag::User(id) => AclTag::User(map(&self.uids, id).ok_or(outside)?),
                AclTag::Group(id) => AclTag::Group(map(&self.gids, id).ok_or(outside)?),
                other => other,
            };
        }
        Ok(acl::encode(&acl))
    }

    /// What the attribute of an object says.
    ///
    /// # Errors
    /// `EIO` for a value that can't be understood: a guess would give the object to somebody.
    fn read(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OverrideStat>, Errno> {
        for key in &self.keys {
            let mut value = [0u8; 128];
            match xattr::get_at_into(dir, name, key, &mut value) {
                Ok(Some(n)) => {
                    let value = value.get(..n).ok_or(Errno::IO)?;
                    return OverrideStat::parse(value).map(Some).map_err(|_| Errno::IO);
                }
                // `user.*` of what the daemon can't read.
                Ok(None) | Err(Errno::ACCESS | Errno::PERM) => {}
                Err(Errno::RANGE) => return Err(Errno::IO),
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// statx of an object, its ids as the map takes them, with the owner, mode and type that its
    /// attribute gives.
    pub(crate) fn apply(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        mut st: Statx,
    ) -> Result<Statx, Errno> {
        self.undo_mount(&mut st);
        if self.in_xattrs()
            && let Some(found) = self.read(dir, name)?
        {
            apply(&mut st, &found);
        }
        Ok(st)
    }

    /// The type of what is a regular file on disk.
    pub(crate) fn kind_of_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Kind, Errno> {
        if !self.in_xattrs() {
            return Ok(Kind::File);
        }
        let found = self.read(dir, name)?.and_then(|o| o.kind);
        let kind = found.filter(|kind| *kind != OverrideKind::Dir);
        Ok(kind
            .and_then(|kind| Kind::from_mode(kind.file_type()))
            .unwrap_or(Kind::File))
    }

    /// Writes the attribute.
    pub(crate) fn store(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        stat: &OverrideStat,
    ) -> Result<(), Errno> {
        let key = self.keys.first().ok_or(Errno::OPNOTSUPP)?;
        xattr::set_at(dir, name, key, &stat.encode(), SetFlags::Any)
    }

    /// Gives the root of upper its attribute if it has none: the mark by which others know that
    /// the layer has such attributes.
    pub(crate) fn mark_root(&self, root: BorrowedFd<'_>) -> Result<(), Errno> {
        let here = OsStr::new("");
        if self.read(root, here)?.is_some() {
            return Ok(());
        }
        self.store(root, here, &of_statx(&stat_at(root, here)?))
    }

    /// chown with stored ids. Where a squashed id is shown, it does not matter that the file
    /// system refuses to store another one.
    pub(crate) fn chown(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Errno> {
        if self.uids.squash.is_none() && self.gids.squash.is_none() {
            return sysfs::chown_at(dir, name, uid, gid);
        }
        let halves = [
            (uid, None, self.uids.squash.is_some()),
            (None, gid, self.gids.squash.is_some()),
        ];
        for (uid, gid, squashed) in halves {
            if uid.is_none() && gid.is_none() {
                continue;
            }
            match sysfs::chown_at(dir, name, uid, gid) {
                Err(Errno::PERM | Errno::INVAL) if squashed => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// Owner, mode and type over what is on disk. Only a regular file stands for something else, and
/// never for a directory, which it can't be.
fn apply(st: &mut Statx, found: &OverrideStat) {
    if found.uid != AS_ON_DISK {
        st.stx_uid = found.uid;
    }
    if found.gid != AS_ON_DISK {
        st.stx_gid = found.gid;
    }
    let mut kind = u32::from(st.stx_mode) & 0o170_000;
    if let Some(stands_for) = found.kind.filter(|kind| *kind != OverrideKind::Dir)
        && is_file(st)
    {
        kind = stands_for.file_type();
        if let OverrideKind::Block { major, minor } | OverrideKind::Char { major, minor } =
            stands_for
        {
            (st.stx_rdev_major, st.stx_rdev_minor) = (major, minor);
        }
    }
    st.stx_mode = (kind | found.mode & 0o7777) as u16;
}

/// The attribute that says what statx says, the type excepted.
fn of_statx(st: &Statx) -> OverrideStat {
    OverrideStat {
        uid: st.stx_uid,
        gid: st.stx_gid,
        mode: u32::from(st.stx_mode) & 0o7777,
        kind: None,
    }
}

/// The type that a regular file is to stand for.
pub(crate) fn override_kind(kind: Kind, (major, minor): (u32, u32)) -> Option<OverrideKind> {
    match kind {
        Kind::File | Kind::Dir => None,
        Kind::Symlink => Some(OverrideKind::Symlink),
        Kind::Fifo => Some(OverrideKind::Pipe),
        Kind::Socket => Some(OverrideKind::Socket),
        Kind::CharDevice => Some(OverrideKind::Char { major, minor }),
        Kind::BlockDevice => Some(OverrideKind::Block { major, minor }),
    }
}

/// Takes file capabilities away, which are not to be another user's.
fn drop_capabilities(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    // Without privileges removing is refused also where there is nothing to remove.
    if !xattr::has_at(dir, name, CAPABILITIES)? {
        return Ok(());
    }
    match xattr::remove_at(dir, name, CAPABILITIES) {
        Err(Errno::NODATA) => Ok(()),
        other => other,
    }
}

/// A new regular file; `content` is a symlink's target.
pub(crate) fn make_stand_in(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    content: &[u8],
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(DISK_MODE))?;
    let mut done = 0;
    while done < content.len() {
        let rest = content.get(done..).unwrap_or_default();
        done += rustix::io::retry_on_intr(|| rustix::io::write(&fd, rest))?;
    }
    Ok(fd)
}

/// The target of a symlink, or of the regular file that stands for one.
pub(crate) fn link_target(dir: BorrowedFd<'_>, name: &OsStr, ids: &Ids) -> Result<Vec<u8>, Errno> {
    match rustix::fs::readlinkat(dir, name, Vec::new()) {
        // An empty name of something that is not a symlink: ENOENT.
        Err(Errno::INVAL | Errno::NOENT) if ids.in_xattrs() => {}
        other => return Ok(other?.into_bytes()),
    }
    let fd = open_for(dir, name, OFlags::RDONLY)?;
    let mut target = vec![0; LONGEST_TARGET];
    let mut done = 0;
    while done < target.len() {
        let room = target.get_mut(done..).unwrap_or_default();
        match rustix::io::retry_on_intr(|| rustix::io::pread(&fd, &mut *room, done as u64))? {
            0 => break,
            n => done += n,
        }
    }
    target.truncate(done);
    Ok(target)
}

impl Overlay {
    /// statx of an object as the merged tree has it; ids are still the stored ones.
    pub(crate) fn shown_at(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Statx, Errno> {
        self.ids.apply(dir, name, stat_at(dir, name)?)
    }

    /// Changes owner and mode of an object of upper, wherever they are kept.
    ///
    /// # Errors
    /// `EINVAL` for an id outside of the map, and what upper's file system returns.
    pub(crate) fn set_owner_and_mode(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        set: &SetAttr,
    ) -> Result<(), Errno> {
        let owned = set.uid.is_some() || set.gid.is_some();
        if !owned && set.perm.is_none() {
            return Ok(());
        }
        let (uid, gid) = self.ids.stored_owner(set)?;
        if self.ids.in_xattrs() {
            return self.change_stored(dir, name, (uid, gid), set.perm);
        }
        if owned {
            self.ids.chown(dir, name, uid, gid)?;
        }
        match set.perm {
            Some(perm) => sysfs::chmod_at(dir, name, perm & 0o7777),
            None => Ok(()),
        }
    }

    fn change_stored(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        (uid, gid): (Option<u32>, Option<u32>),
        perm: Option<u32>,
    ) -> Result<(), Errno> {
        let _changing = self.ids.changing.lock();
        let st = stat_at(dir, name)?;
        let on_disk = of_statx(&st);
        let mut new = self.ids.read(dir, name)?.unwrap_or(on_disk);
        if new.uid == AS_ON_DISK {
            new.uid = on_disk.uid;
        }
        if new.gid == AS_ON_DISK {
            new.gid = on_disk.gid;
        }
        new.uid = uid.unwrap_or(new.uid);
        new.gid = gid.unwrap_or(new.gid);
        let is_file = is_file(&st);
        if (uid.is_some() || gid.is_some()) && !super::attr::is_dir(&st) {
            // As chown(2) does (`chown_common`).
            let group_runs_it = new.mode & 0o010 != 0;
            new.mode &= if group_runs_it { !0o6000 } else { !0o4000 };
            if is_file {
                drop_capabilities(dir, name)?;
            }
        }
        new.mode = perm.map_or(new.mode, |perm| perm & 0o7777);
        match self.ids.store(dir, name, &new) {
            Err(Errno::ACCESS) => {
                // Stored by somebody who keeps modes on disk, and not writable.
                sysfs::chmod_at(dir, name, DISK_MODE)?;
                self.ids.store(dir, name, &new)
            }
            // The same, and nothing that can have the attribute.
            Err(Errno::PERM | Errno::OPNOTSUPP) if !is_file && !super::attr::is_dir(&st) => {
                self.ids.chown(dir, name, uid, gid)?;
                match perm {
                    Some(perm) => sysfs::chmod_at(dir, name, perm & 0o7777),
                    None => Ok(()),
                }
            }
            other => other,
        }
    }

    /// Gives a copy that was just made in `work` the owner, mode and type of its original.
    pub(crate) fn copy_owner_and_mode(
        &self,
        st: &Statx,
        (to, to_name): (BorrowedFd<'_>, &OsStr),
    ) -> Result<(), Errno> {
        let mode = u32::from(st.stx_mode);
        let is_symlink = |mode: u32| Kind::from_mode(mode) == Some(Kind::Symlink);
        if !self.ids.in_xattrs() {
            let fresh = self.upper()?.work.fresh_owner;
            if fresh != Some((st.stx_uid, st.stx_gid)) {
                self.ids
                    .chown(to, to_name, Some(st.stx_uid), Some(st.stx_gid))?;
            }
            // Files are made with their mode, but set-id bits go with a change of the owner.
            let made_with_it = fresh.is_some() && is_file(st) && mode & 0o7000 == 0;
            if !is_symlink(mode) && !made_with_it {
                sysfs::chmod_at(to, to_name, mode & 0o7777)?;
            }
            return Ok(());
        }
        let copy = stat_at(to, to_name)?;
        if !is_symlink(u32::from(copy.stx_mode)) {
            sysfs::chmod_at(to, to_name, DISK_MODE)?;
        }
        let mut new = of_statx(st);
        if is_file(&copy) {
            let kind = Kind::from_mode(mode).ok_or(Errno::IO)?;
            new.kind = override_kind(kind, (st.stx_rdev_major, st.stx_rdev_minor));
        }
        self.ids.store(to, to_name, &new)
    }
}

/// What ids and modes of a mount with these options are: see [`Ids`]. `roots`: of all layers,
/// upper's first where there is one. `idmapped`: which of the lowers lie on idmapped mounts.
///
/// # Errors
/// What reading the attributes of the roots, and writing that of upper's, returns.
pub(crate) fn open(
    config: &Config,
    upper: Option<BorrowedFd<'_>>,
    roots: &[&OwnedFd],
    idmapped: &[bool],
) -> Result<Ids, Errno> {
    let here = OsStr::new("");
    let mut ids = Ids::new(&config.ids, |key| {
        let mut all = upper.into_iter().chain(roots.iter().map(|fd| fd.as_fd()));
        all.try_fold(false, |found, root| {
            Ok(found || xattr::has_at(root, here, key)?)
        })
    })?;
    if !(ids.uids.rows.is_empty() && ids.gids.rows.is_empty()) {
        let with = roots.iter().zip(idmapped).filter(|(_, mapped)| **mapped);
        ids.idmapped = IdmappedMounts::of(with.map(|(root, _)| *root), upper)?;
    }
    if let Some(upper) = upper
        && ids.in_xattrs()
    {
        ids.mark_root(upper)?;
    }
    Ok(ids)
}

#[cfg(test)]
mod tests;
