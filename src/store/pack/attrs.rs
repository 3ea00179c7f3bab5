//! What an object is, and has, in the archive: read from its directory and name.

use std::ffi::{CString, OsStr};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Stat};

use super::{Failure, Options, PackProblem};
use crate::format::keys::OverlayKey;
use crate::format::override_stat::{
    OverrideKind, OverrideStat, SECURITY_FUSE_OVERLAYFS, USER_CONTAINERS, USER_FUSE_OVERLAYFS,
};
use crate::format::whiteout::is_whiteout_device;
use crate::store::codec::tar::Time;
use crate::store::unpack::IdMap;
use crate::sys::xattr::{get_at, list_at};

/// All that an entry needs, the type as `S_IFMT` bits.
#[derive(Debug)]
pub(super) struct Attributes {
    pub(super) stat: Stat,
    pub(super) file_type: u32,
    pub(super) device: (u32, u32),
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `overlay.opaque=y`, or fuse-overlayfs' form of it.
    pub(super) opaque: bool,
    /// `overlay.opaque=x`: files in it may be whiteouts.
    pub(super) may_hold_xattr_whiteouts: bool,
    /// `overlay.metacopy`: its data is in a layer below.
    pub(super) metacopy: bool,
    /// `overlay.redirect`: where its lower part is.
    pub(super) redirect: Option<Vec<u8>>,
}

/// Reads objects.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    options: &'a Options,
    ids: IdMap,
}

impl<'a> Reader<'a> {
    pub(super) fn new(options: &'a Options) -> Reader<'a> {
        let ids = options.ids.inverted();
        Reader { options, ids }
    }

    /// Whether `name` in `dir` is a whiteout: a device, or, where `dir` may hold such, a file with an
    /// attribute.
    pub(super) fn is_whiteout(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        by_xattr: bool,
    ) -> Result<bool, Failure> {
        let name = OsStr::from_bytes(name);
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let (major, minor) = device_of(&stat);
        let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
        let key = self.options.namespace.key(OverlayKey::Whiteout);
        Ok(is_whiteout_device(stat.st_mode, major, minor)
            || (by_xattr && is_file && get_at(dir, name, key)?.is_some()))
    }

    /// As [`read`](Self::read), for what must not depend on the layers below.
    pub(super) fn read_whole(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<Attributes, Failure> {
        let attributes = self.read(dir, name)?;
        if attributes.metacopy {
            return Err(PackProblem::Metacopy.into());
        }
        if attributes.redirect.is_some() && attributes.file_type == libc::S_IFDIR {
            return Err(PackProblem::Redirect.into());
        }
        Ok(attributes)
    }

    /// What `name` in `dir` is and has (empty: `dir` itself).
    pub(super) fn read(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Attributes, Failure> {
        let name = OsStr::from_bytes(name);
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        let stat = rustix::fs::statat(dir, name, flags)?;
        let mut attributes = self.basic(stat)?;
        let keys = list_at(dir, name)?;
        for key in keys.split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
            let c_key = CString::new(key).map_err(|e| Failure::Read(e.into()))?;
            if let Some(value) = get_at(dir, name, &c_key)? {
                self.xattr(key, value, &mut attributes)?;
            }
        }
        attributes.xattrs.sort();
        Ok(attributes)
    }

    fn basic(&self, stat: Stat) -> Result<Attributes, Failure> {
        let unmapped = PackProblem::Unmapped(stat.st_uid, stat.st_gid);
        let (uid, gid) = if self.options.override_stat {
            (stat.st_uid, stat.st_gid)
        } else {
            let ids = self.ids.uid(stat.st_uid).zip(self.ids.gid(stat.st_gid));
            ids.ok_or(unmapped)?
        };
        let mtime = Time {
            sec: stat.st_mtime,
            nsec: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        };
        Ok(Attributes {
            file_type: stat.st_mode & libc::S_IFMT,
            device: device_of(&stat),
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            mtime: match self.options.latest {
                Some(sec) if mtime.sec >= sec => Time { sec, nsec: 0 },
                _ => mtime,
            },
            xattrs: Vec::new(),
            opaque: false,
            may_hold_xattr_whiteouts: false,
            metacopy: false,
            redirect: None,
            stat,
        })
    }

    fn xattr(&self, key: &[u8], value: Vec<u8>, to: &mut Attributes) -> Result<(), Failure> {
        let namespace = self.options.namespace;
        let is = |overlay: OverlayKey| namespace.key(overlay).to_bytes() == key;
        let is_dir = to.file_type == libc::S_IFDIR;
        if is(OverlayKey::Opaque) && is_dir {
            to.opaque |= value == b"y";
            to.may_hold_xattr_whiteouts = value == b"x";
        } else if key == b"user.fuseoverlayfs.opaque" && is_dir {
            to.opaque |= value == b"y";
        } else if is(OverlayKey::Metacopy) {
            to.metacopy = true;
        } else if is(OverlayKey::Redirect) {
            to.redirect = Some(value);
        } else if key == USER_CONTAINERS.to_bytes() {
            if self.options.override_stat {
                let stat = OverrideStat::parse(&value).map_err(|_| PackProblem::OverrideStat)?;
                to.override_with(stat);
            }
        } else if let Some(shown) = namespace.to_shown(key)
            && is_kept(&shown)
        {
            let is_acl = shown.starts_with(b"system.posix_acl_");
            let value = if is_acl && !self.ids.is_identity() {
                self.ids.acl(&value).ok_or(PackProblem::Acl)?
            } else {
                value
            };
            to.xattrs.push((shown.into_owned(), value));
        }
        Ok(())
    }
}

fn device_of(stat: &Stat) -> (u32, u32) {
    let device = stat.st_rdev;
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// What belongs to the image rather than to this machine.
fn is_kept(key: &[u8]) -> bool {
    let ours = [
        USER_CONTAINERS,
        SECURITY_FUSE_OVERLAYFS,
        USER_FUSE_OVERLAYFS,
    ];
    if ours.iter().any(|own| own.to_bytes() == key) {
        return false;
    }
    key.starts_with(b"user.")
        || key.starts_with(b"trusted.")
        || key.starts_with(b"system.posix_acl_")
        || key == b"security.capability"
}

impl Attributes {
    fn override_with(&mut self, stat: OverrideStat) {
        (self.uid, self.gid, self.mode) = (stat.uid, stat.gid, stat.mode);
        let Some(kind) = stat.kind else { return };
        self.file_type = kind.file_type();
        if let OverrideKind::Block { major, minor } | OverrideKind::Char { major, minor } = kind {
            self.device = (major, minor);
        }
    }
}
