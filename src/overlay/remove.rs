//! Removing names: unlink, rmdir, and the whiteouts that hide what the lowers have.

use parking_lot::RwLockWriteGuard;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Statx};
use rustix::io::Errno;
use smallvec::SmallVec;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::attr::{Kind, is_dir, is_file, is_whiteout};
use super::copy_up::CopyData;
use super::index::UNKNOWN_LINKS;
use super::lookup::Found;
use super::node::{Node, Pin, Place};
use super::{Overlay, Upper};
use crate::format::keys::OverlayKey;
use crate::format::whiteout::whiteout_name;
use crate::sys::xattr::{self, SetFlags};

/// The name locks of several directories.
pub(crate) type NamesLocked<'a> = SmallVec<[RwLockWriteGuard<'a, ()>; 3]>;

/// Locks the names of these directories in the order of their ids, each once.
pub(crate) fn lock_names<'a>(dirs: &[&'a Node]) -> NamesLocked<'a> {
    let mut dirs: SmallVec<[&'a Node; 3]> = dirs.iter().copied().collect();
    dirs.sort_by_key(|n| n.id);
    dirs.dedup_by_key(|n| n.id);
    dirs.iter()
        .filter_map(|n| n.dir.as_deref())
        .map(|d| d.names.write())
        .collect()
}

impl Overlay {
    /// Removes a name of something that is not a directory. The object lives on while it has other
    /// names or is open. Nothing is copied up but the directories above it.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `EROFS`, and what upper's file system returns.
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let upper = self.upper()?;
        let parent = self.node(parent)?;
        let dir = parent.dir.as_deref().ok_or(Errno::NOTDIR)?;
        parent.check_changeable()?;
        if !parent.place.read().has_upper() {
            // Something must be there before the directory is copied up for it.
            let found = self.resolve(&parent, name)?.ok_or(Errno::NOENT)?;
            if is_dir(&found.stat) {
                return Err(Errno::ISDIR);
            }
        }
        self.ensure_upper(&parent, CopyData::All)?;
        self.index_before_removal(&parent, name)?;
        let old = {
            let _names = dir.names.write();
            let found = self.resolve(&parent, name)?.ok_or(Errno::NOENT)?;
            if is_dir(&found.stat) {
                return Err(Errno::ISDIR);
            }
            if found.protection.any() {
                return Err(Errno::PERM);
            }
            self.unlink_found(upper, &parent, name, &found)?
        };
        if let Some(old) = old {
            self.release(&old, 1);
        }
        Ok(())
    }

    /// Copies a lower hard link into the index before one of its names goes, as the kernel does, so
    /// that the number of its names is right after a remount, too. Not for big files: theirs is
    /// right as long as the mount lives, and removing a name stays cheap.
    pub(crate) fn index_before_removal(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Result<(), Errno> {
        const CHEAP: u64 = 1 << 20;
        if self.upper()?.work.index.is_none() {
            return Ok(());
        }
        let dir = parent.dir.as_deref().ok_or(Errno::NOTDIR)?;
        let found = {
            let _names = dir.names.read();
            self.resolve(parent, name)?
        };
        let Some(found) = found else { return Ok(()) };
        let small = !is_file(&found.stat) || found.stat.stx_size <= CHEAP;
        let cheap = small || self.config.metacopy;
        if found.upper_ino != 0 || found.stat.stx_nlink < 2 || is_dir(&found.stat) || !cheap {
            return Ok(());
        }
        let Some((node, _)) = self.lookup(parent.id, name)? else {
            return Ok(());
        };
        let copied = self.ensure_upper(&node, CopyData::Nothing);
        self.release(&node, 1);
        copied
    }

    /// unlink with the directory locked. Gives the parent that the node no longer has, on which a
    /// reference is to be released.
    fn unlink_found(
        &self,
        upper: &Upper,
        parent: &Arc<Node>,
        name: &OsStr,
        found: &Found,
    ) -> Result<Option<Arc<Node>>, Errno> {
        let fd = self.upper_dir_fd(parent)?;
        let live = self.find_live(parent, name, found);
        let mut old = None;
        if let Some(node) = &live {
            node.links_change();
            let mut place = node.place.write();
            let shown = self.before_unlink(&place, found)?;
            let primary = is_at(&place, parent, name);
            if found.upper_ino != 0 && loses_its_way(primary, shown) {
                self.keep_object(upper, fd.as_fd(), name, found, &mut place)?;
            }
            self.take_name(upper, parent, fd.as_fd(), name, found)?;
            self.after_unlink(upper, place.index(), found, shown)?;
            if shown.is_some_and(|n| n <= 1) {
                place.extra_mut().index = None;
            }
            if primary {
                let left = match shown {
                    Some(n) => n.saturating_sub(1),
                    None => self.names_left(node, found),
                };
                place.removed = left == 0;
                place.upper_alias = false;
                old = place.parent.take();
            } else if shown == Some(1) {
                place.removed = true;
            }
        } else {
            self.unlink_unknown(upper, parent, fd.as_fd(), name, found)?;
        }
        self.name_removed(parent, name);
        Ok(old)
    }

    /// unlink of an object that no node stands for.
    fn unlink_unknown(
        &self,
        upper: &Upper,
        parent: &Arc<Node>,
        fd: BorrowedFd<'_>,
        name: &OsStr,
        found: &Found,
    ) -> Result<(), Errno> {
        let index = match &found.what {
            super::lookup::FoundKind::Other { index, .. } => index.as_deref(),
            super::lookup::FoundKind::Dir { .. } => None,
        };
        let mut place = Place {
            parent: None,
            name: name.into(),
            upper_ino: found.upper_ino,
            upper_alias: found.upper_alias,
            lower: None,
            removed: false,
            extra: None,
        };
        if let Some(index) = index {
            place.extra_mut().index = Some(index.into());
        }
        let shown = self.before_unlink(&place, found)?;
        self.take_name(upper, parent, fd, name, found)?;
        self.after_unlink(upper, index, found, shown)
    }

    /// Number of names of an object of the index before one goes; stored so that it stays right
    /// when the next step changes upper's link count.
    pub(crate) fn before_unlink(&self, place: &Place, found: &Found) -> Result<Option<u32>, Errno> {
        if place.index().is_none() || found.upper_ino == 0 {
            return Ok(None);
        }
        self.begin_nlink(place, &found.stat)
    }

    /// Accounts for a name of an indexed object that is gone.
    pub(crate) fn after_unlink(
        &self,
        upper: &Upper,
        index: Option<&str>,
        found: &Found,
        shown: Option<u32>,
    ) -> Result<(), Errno> {
        let linked = found.stat.stx_nlink > 1 && self.config.index;
        if found.upper_ino == 0 && linked {
            let (dev, ino) = found.identity;
            *self
                .unlinked_lowers
                .entry(self.inos.map(dev, ino))
                .or_insert(0) += 1;
        }
        let (Some(hex), Some(shown)) = (index, shown.filter(|n| *n != UNKNOWN_LINKS)) else {
            return Ok(());
        };
        if shown <= 1 {
            let dir = upper.work.index.as_ref().ok_or(Errno::IO)?;
            return match rustix::fs::unlinkat(dir, hex, AtFlags::empty()) {
                Err(Errno::NOENT) => Ok(()),
                other => other,
            };
        }
        if !found.upper_alias {
            // Upper's link count stayed, the number of names went down.
            let diff = i64::from(shown) - 1 - i64::from(found.stat.stx_nlink);
            self.store_nlink(hex, diff)?;
        }
        Ok(())
    }

    /// Number of names that an object outside of the index still has.
    pub(crate) fn names_left(&self, node: &Node, found: &Found) -> u32 {
        if node.apart && found.upper_ino == 0 {
            return 0;
        }
        let gone = if found.upper_ino == 0 {
            self.unlinked_lowers
                .get(&node.id)
                .map_or(1, |n| (*n).max(1))
        } else {
            1
        };
        found.stat.stx_nlink.saturating_sub(gone)
    }

    /// Keeps an upper object reachable that is about to lose the name it is known by: through a
    /// descriptor, or, when there are too many of those, under a name in `work`.
    pub(crate) fn keep_object(
        &self,
        upper: &Upper,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        found: &Found,
        place: &mut Place,
    ) -> Result<(), Errno> {
        if place.pin().is_some() || place.parked().is_some() {
            return Ok(());
        }
        // A name that is not in upper itself leads to the index.
        let index = place.index().map(std::ffi::OsString::from);
        let (dir, name) = match (&index, &upper.work.index) {
            _ if found.upper_alias => (dir, name),
            (Some(hex), Some(index)) => (index.as_fd(), hex.as_os_str()),
            _ => return Ok(()),
        };
        if let Some(slot) = self.pins.take() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(dir, name, flags, Mode::empty()) {
                Ok(fd) => {
                    place.extra_mut().pin = Some(Arc::new(Pin::new(fd, slot)));
                    return Ok(());
                }
                Err(Errno::MFILE | Errno::NFILE) => {}
                Err(e) => return Err(e),
            }
        }
        let temp = upper.work.temp();
        rustix::fs::linkat(
            dir,
            name,
            upper.work.dir.as_fd(),
            &temp.name,
            AtFlags::empty(),
        )?;
        place.extra_mut().parked = temp.name.to_str().map(Box::from);
        temp.published();
        Ok(())
    }

    /// The step on disk: the name goes, or a whiteout takes its place.
    fn take_name(
        &self,
        upper: &Upper,
        parent: &Node,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        found: &Found,
    ) -> Result<(), Errno> {
        if !found.upper_alias {
            return self.put_whiteout(upper, dir, name);
        }
        if !self.lower_has(parent, name)? {
            return rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
        if !upper.work.whiteouts_in_place {
            self.put_whiteout(upper, dir, name)?;
            return rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
        self.mark_whiteouts(upper, dir)?;
        let whiteout = upper.work.make_whiteout()?;
        rustix::fs::renameat(upper.work.dir.as_fd(), &whiteout.name, dir, name)?;
        whiteout.published();
        Ok(())
    }

    /// Says of a directory of upper that it may hold whiteouts in the form of marked files.
    pub(crate) fn mark_whiteouts(&self, upper: &Upper, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        if upper.work.whiteout_mark.is_none() {
            return Ok(());
        }
        let (here, key) = (OsStr::new(""), self.ns.key(OverlayKey::Opaque));
        match xattr::set_at(dir, here, key, b"x", SetFlags::Create) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// Is an object of upper a whiteout?
    pub(crate) fn is_upper_whiteout(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        st: &Statx,
    ) -> Result<bool, Errno> {
        let mark = self.upper.as_ref().and_then(|u| u.work.whiteout_mark);
        match mark {
            Some(mark) if is_file(st) && st.stx_size == 0 => xattr::has_at(dir, name, mark),
            _ => Ok(is_whiteout(st)),
        }
    }

    /// Makes a whiteout where upper has nothing.
    pub(crate) fn put_whiteout(
        &self,
        upper: &Upper,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<(), Errno> {
        if upper.work.whiteouts_in_place {
            self.mark_whiteouts(upper, dir)?;
            return upper.work.link_whiteout(dir, name);
        }
        use std::os::unix::ffi::OsStrExt;
        let mark = whiteout_name(name).ok_or(Errno::NAMETOOLONG)?;
        let mark = OsStr::from_bytes(&mark);
        let kind = rustix::fs::FileType::RegularFile;
        match rustix::fs::mknodat(dir, mark, kind, Mode::empty(), 0) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `ENOTEMPTY`, `ENOENT`, `ENOTDIR`, `EROFS`, and what upper's file system returns.
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let upper = self.upper()?;
        let parent = self.node(parent)?;
        let (child, _) = self.lookup(parent.id, name)?.ok_or(Errno::NOENT)?;
        let result = self.rmdir_child(upper, &parent, name, &child);
        self.release(&child, 1);
        if let Some(old) = result? {
            self.release(&old, 1);
        }
        Ok(())
    }

    fn rmdir_child(
        &self,
        upper: &Upper,
        parent: &Arc<Node>,
        name: &OsStr,
        child: &Arc<Node>,
    ) -> Result<Option<Arc<Node>>, Errno> {
        if child.kind != Kind::Dir {
            return Err(Errno::NOTDIR);
        }
        parent.check_changeable()?;
        child.check_changeable()?;
        self.ensure_upper(parent, CopyData::All)?;
        let _locked = lock_names(&[parent, child]);
        let found = self.resolve(parent, name)?.ok_or(Errno::NOENT)?;
        if self
            .find_live(parent, name, &found)
            .is_none_or(|n| n.id != child.id)
        {
            return Err(Errno::NOENT); // replaced meanwhile
        }
        if !self.is_empty_locked(child)? {
            return Err(Errno::NOTEMPTY);
        }
        let fd = self.upper_dir_fd(parent)?;
        let kept = if found.upper_ino != 0 {
            self.pin_dir(child)?
        } else {
            None
        };
        let covers = found.upper_ino == 0 || self.lower_has(parent, name)?;
        let mut place = child.place.write();
        self.take_dir(upper, fd.as_fd(), name, found.upper_ino != 0, covers)?;
        place.removed = true;
        if kept.is_some() {
            place.extra_mut().pin = kept;
        }
        self.name_removed(parent, name);
        self.listings.remove(child.id);
        Ok(place.parent.take())
    }

    /// A descriptor that keeps a removed directory reachable for those who are in it.
    pub(crate) fn pin_dir(&self, node: &Node) -> Result<Option<Arc<Pin>>, Errno> {
        let Some(slot) = self.pins.take() else {
            return Ok(None);
        };
        let fd = self.upper_dir_fd(node)?;
        let fd = rustix::fs::openat(fd.as_fd(), c".", super::layer::DIR_PATH, Mode::empty())?;
        Ok(Some(Arc::new(Pin::new(fd, slot))))
    }

    /// The step on disk for a directory that shows as empty; upper's part may hold whiteouts.
    fn take_dir(
        &self,
        upper: &Upper,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        in_upper: bool,
        covers: bool,
    ) -> Result<(), Errno> {
        if !in_upper {
            return self.put_whiteout(upper, dir, name);
        }
        let work = upper.work.dir.as_fd();
        if !covers {
            match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                other => return other,
            }
            // Whiteouts are in it: away with it in one step, then they can go one by one.
            let temp = upper.work.temp();
            return rustix::fs::renameat(dir, name, work, &temp.name);
        }
        if upper.work.whiteouts_in_place {
            self.mark_whiteouts(upper, dir)?;
            let whiteout = upper.work.make_whiteout()?;
            let flags = RenameFlags::EXCHANGE;
            match rustix::fs::renameat_with(work, &whiteout.name, dir, name, flags) {
                // The name in work stands for the old directory now, and goes with it.
                Ok(()) => return Ok(()),
                Err(Errno::INVAL | Errno::NOSYS) => {}
                Err(e) => return Err(e),
            }
        }
        // No exchange on this file system: the whiteout is a second step.
        let temp = upper.work.temp();
        rustix::fs::renameat(dir, name, work, &temp.name)?;
        self.put_whiteout(upper, dir, name)
    }
}

/// Is this the name by which the node is known?
pub(crate) fn is_at(place: &Place, parent: &Node, name: &OsStr) -> bool {
    place.parent.as_ref().is_some_and(|p| p.id == parent.id) && *place.name == *name
}

/// Will nothing lead to an object of upper any more when a name of it goes? In the index it is found
/// until its last name (of `shown`) goes, elsewhere by the name that it is known by.
pub(crate) fn loses_its_way(primary: bool, shown: Option<u32>) -> bool {
    match shown {
        Some(names) => names <= 1,
        None => primary,
    }
}
