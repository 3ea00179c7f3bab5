//! Origins, the index of hard links, and the marks that the kernel's overlayfs expects with them.
//!
//! As fs/overlayfs: an upper object remembers in `overlay.origin` the file handle of what it was
//! copied from; a lower file with several names gets one copy, `work/index/<handle>`, which all
//! its names in upper are hard links of, and `overlay.nlink` says how many names the merged tree
//! shows.

use rustix::fs::Statx;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::Overlay;
use super::attr::stat_opt;
use super::layer::LowerDir;
use super::node::{Node, Place};
use crate::format::handle::OverlayHandle;
use crate::format::keys::OverlayKey;
use crate::format::nlink::{Nlink, NlinkBase};
use crate::sys::handle::name_to_handle_at;
use crate::sys::xattr::{self, SetFlags};

/// The number of names of an indexed file of which some are in a lower where they can't be counted: the
/// index was made with privileges that this mount lacks. Its entry then stays for good.
pub(crate) const UNKNOWN_LINKS: u32 = u32::MAX;

/// The handle of the object `name` in `dir` as overlay stores it.
pub(crate) fn handle_at(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    uuid: [u8; 16],
) -> Result<Option<OverlayHandle>, Errno> {
    Ok(name_to_handle_at(dir, name)?.map(|h| OverlayHandle {
        uuid,
        handle_type: h.handle_type,
        bytes: h.bytes,
        is_upper: false,
    }))
}

impl Overlay {
    /// (`st_dev`, `st_ino`) of the lower object that a handle names, if the handle says it and one
    /// of the lowers lies on that file system.
    pub(crate) fn origin_identity(&self, origin: &OverlayHandle) -> Option<(u64, u64)> {
        let ino = origin.ino()?;
        let mut devs = self
            .lowers
            .layers
            .iter()
            .filter(|l| l.has_handles && l.uuid == origin.uuid)
            .map(|l| l.dev);
        let dev = devs.next()?;
        // Two file systems with one uuid: nobody can tell which is meant.
        devs.all(|d| d == dev).then_some((dev, ino))
    }

    /// The index entry of an upper file with this origin, if it is the same file.
    pub(crate) fn index_entry_of(
        &self,
        origin: &OverlayHandle,
        upper_ino: u64,
    ) -> Result<Option<Box<str>>, Errno> {
        let Some(index) = self.upper.as_ref().and_then(|u| u.work.index.as_ref()) else {
            return Ok(None);
        };
        let name = origin.index_name();
        let found = stat_opt(index.as_fd(), name.as_ref())?;
        Ok(found
            .filter(|st| st.stx_ino == upper_ino)
            .map(|_| name.into()))
    }

    /// The index entry of a lower file: its name and what it is in upper.
    pub(crate) fn find_index(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        at: &Arc<LowerDir>,
    ) -> Result<Option<(Box<str>, Statx)>, Errno> {
        let Some(index) = self.upper.as_ref().and_then(|u| u.work.index.as_ref()) else {
            return Ok(None);
        };
        let layer = self.lowers.layer(at);
        if !layer.has_handles {
            return Ok(None);
        }
        let Some(handle) = handle_at(dir, name, layer.uuid)? else {
            return Ok(None);
        };
        let hex = handle.index_name();
        let found = stat_opt(index.as_fd(), hex.as_ref())?;
        let Some(st) = found.filter(|st| !super::attr::is_whiteout(st)) else {
            return Ok(None);
        };
        let st = self.ids.apply(index.as_fd(), hex.as_ref(), st)?;
        Ok(Some((hex.into(), st)))
    }

    /// Can the names of a lower file be counted by its handle?
    pub(crate) fn counts_lower_links(&self, origin: &OverlayHandle) -> bool {
        let mut layers = self.lowers.layers.iter();
        layers.any(|l| l.uuid == origin.uuid && l.opens_handles)
    }

    /// How many names the merged tree shows of a file that is in the index; [`UNKNOWN_LINKS`] where
    /// that can't be found out.
    pub(crate) fn indexed_nlink(&self, hex: &str, upper: &Statx) -> Result<u32, Errno> {
        let index = self.upper()?.work.index.as_ref().ok_or(Errno::IO)?;
        let key = self.ns.key(OverlayKey::Nlink);
        let Some(value) = xattr::get_at(index.as_fd(), hex.as_ref(), key)? else {
            return Ok(upper.stx_nlink.saturating_sub(1));
        };
        let Ok(nlink) = Nlink::parse(&value) else {
            return Ok(upper.stx_nlink);
        };
        let base = match nlink.base {
            NlinkBase::Upper => i64::from(upper.stx_nlink),
            NlinkBase::Lower => match self.lower_nlink(hex)? {
                Some(links) => i64::from(links),
                None => return Ok(UNKNOWN_LINKS),
            },
        };
        Ok(u32::try_from((base + nlink.diff).max(0)).unwrap_or(u32::MAX))
    }

    /// `st_nlink` of the lower file that an index entry was copied from.
    fn lower_nlink(&self, hex: &str) -> Result<Option<u32>, Errno> {
        use rustix::fs::OFlags;
        let handle = OverlayHandle::parse_index_name(OsStr::new(hex))
            .ok()
            .flatten();
        let Some(handle) = handle else {
            return Ok(None);
        };
        let raw = crate::sys::handle::RawHandle {
            handle_type: handle.handle_type,
            bytes: handle.bytes.clone(),
        };
        for layer in self.lowers.layers.iter().filter(|l| l.uuid == handle.uuid) {
            match crate::sys::handle::open_by_handle_at(layer.root.as_fd(), &raw, OFlags::PATH) {
                Ok(fd) => {
                    return Ok(Some(
                        super::attr::stat_at(fd.as_fd(), OsStr::new(""))?.stx_nlink,
                    ));
                }
                Err(Errno::PERM | Errno::STALE | Errno::BADF | Errno::NOENT | Errno::NOSYS) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// Stores the number of names relative to upper's link count, which the next step changes
    /// together with it (`ovl_nlink_start`). Gives the number before that step.
    pub(crate) fn begin_nlink(&self, place: &Place, upper: &Statx) -> Result<Option<u32>, Errno> {
        let Some(hex) = place.index() else {
            return Ok(None);
        };
        let shown = self.indexed_nlink(hex, upper)?;
        if shown == UNKNOWN_LINKS {
            return Ok(Some(shown));
        }
        self.store_nlink(hex, i64::from(shown) - i64::from(upper.stx_nlink))?;
        Ok(Some(shown))
    }

    /// Writes `overlay.nlink` as a difference to upper's link count.
    pub(crate) fn store_nlink(&self, hex: &str, diff: i64) -> Result<(), Errno> {
        let index = self.upper()?.work.index.as_ref().ok_or(Errno::IO)?;
        let value = Nlink {
            base: NlinkBase::Upper,
            diff,
        }
        .encode();
        let key = self.ns.key(OverlayKey::Nlink);
        xattr::set_at(index.as_fd(), hex.as_ref(), key, &value, SetFlags::Any)
    }

    /// Marks upper's part of a directory as holding entries with an origin: a listing then has to
    /// look their inode numbers up.
    pub(crate) fn mark_impure(&self, dir: &Node) -> Result<(), Errno> {
        let Some(part) = dir.dir.as_deref() else {
            return Err(Errno::NOTDIR);
        };
        if part.impure.get() == Some(true) || !self.upper_xattrs {
            return Ok(());
        }
        let fd = self.upper_dir_fd(dir)?;
        let key = self.ns.key(OverlayKey::Impure);
        xattr::set_at(fd.as_fd(), OsStr::new(""), key, b"y", SetFlags::Any)?;
        part.impure.set(true);
        Ok(())
    }

    /// Is upper's part of a directory marked impure?
    pub(crate) fn is_impure(&self, dir: &Node) -> Result<bool, Errno> {
        let Some(part) = dir.dir.as_deref() else {
            return Ok(false);
        };
        if let Some(known) = part.impure.get() {
            return Ok(known);
        }
        let fd = self.upper_dir_fd(dir)?;
        let key = self.ns.key(OverlayKey::Impure);
        let impure = xattr::has_at(fd.as_fd(), OsStr::new(""), key)?;
        part.impure.set(impure);
        Ok(impure)
    }
}
