//! Copy-up: giving a lower object a copy in upper, so that it can change.
//!
//! The copy is built without a name (or in `work`), complete with owner, mode, xattrs and times,
//! its data is synced, and one link or rename publishes it. Only `Node::copying` of the object is
//! held meanwhile: a big copy stalls nobody but those who want to change the same file.

mod build;
mod data;
mod finish;

use rustix::fs::{AtFlags, Mode, OFlags, Statx};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::attr::{Kind, SetAttr, stat_at};
use super::fds::FdKey;
use super::node::{DataAt, Node, Pin, Place};
use super::work::Temp;
use super::{Overlay, Upper};
use crate::format::handle::OverlayHandle;
use crate::format::keys::OverlayKey;
use crate::format::nlink::{Nlink, NlinkBase};
use crate::sys::fs::{self as sysfs};
use crate::sys::xattr::{self, SetFlags};
pub(crate) use data::copy_data;
pub(crate) use finish::{rename_noreplace, set_times};

/// How much of a file's data the copy needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CopyData {
    /// All of it.
    All,
    /// The first so many bytes: the rest is about to be cut off.
    Prefix(u64),
    /// None: only attributes are about to change. With `metacopy=on` only they are copied.
    Nothing,
}

/// A copy on its way to its place.
struct Copied<'a> {
    object: Built<'a>,
    /// Does it say what it was copied from?
    has_origin: bool,
    /// The entry of the index that it gets.
    hard_link: Option<String>,
    /// How many names the merged tree shows of it, to be stored once upper's are there: where the
    /// lower's can't be counted again.
    names: Option<u32>,
    /// Where its contents are, if they were not copied.
    data: Option<DataAt>,
}

/// A finished copy that has no place in upper yet.
enum Built<'a> {
    /// An unnamed file.
    Unnamed(OwnedFd),
    /// A name in `work`; for files with the descriptor that wrote it.
    Named(Temp<'a>, Option<OwnedFd>),
}

impl Built<'_> {
    /// The file that is being built.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Built::Unnamed(fd) | Built::Named(_, Some(fd)) => Some(fd.as_fd()),
            Built::Named(_, None) => None,
        }
    }
}

impl<'a> From<Built<'a>> for Copied<'a> {
    /// A complete copy without marks.
    fn from(object: Built<'a>) -> Copied<'a> {
        Copied {
            object,
            has_origin: false,
            hard_link: None,
            names: None,
            data: None,
        }
    }
}

impl Overlay {
    /// Makes sure that `node`, and so all its ancestors, are in upper. Never called with a `names`
    /// lock held.
    ///
    /// # Errors
    /// `EROFS` without upper; what reading the lower and writing upper return. Nothing is
    /// published then.
    pub(crate) fn ensure_upper(&self, node: &Arc<Node>, data: CopyData) -> Result<(), Errno> {
        self.ensure_upper_as(node, data, None).map(drop)
    }

    /// As [`ensure_upper`](Self::ensure_upper); a copy that this makes gets the owner and mode of `change` before
    /// anybody sees it. Gives what statx says of that copy; `None`: nothing was changed.
    ///
    /// # Errors
    /// As [`ensure_upper`](Self::ensure_upper), and what changing owner and mode returns.
    pub(crate) fn ensure_upper_as(
        &self,
        node: &Arc<Node>,
        data: CopyData,
        change: Option<&SetAttr>,
    ) -> Result<Option<Statx>, Errno> {
        let (done, complete) = {
            let place = node.place.read();
            (place.has_upper(), place.data().is_none())
        };
        if done {
            if !complete && data != CopyData::Nothing {
                self.ensure_data(node, data)?;
            }
            return Ok(None);
        }
        self.upper()?;
        let mut chain: Vec<Arc<Node>> = Vec::new();
        let mut at = node.place.read().parent.clone();
        while let Some(dir) = at {
            let place = dir.place.read();
            if place.has_upper() {
                break;
            }
            at = place.parent.clone();
            drop(place);
            chain.push(dir);
        }
        for dir in chain.iter().rev() {
            self.copy_up(dir, CopyData::All, None)?;
        }
        let copy = self.copy_up(node, data, change)?;
        if data != CopyData::Nothing {
            // Somebody else may have copied the attributes meanwhile.
            self.ensure_data(node, data)?;
        }
        Ok(copy.filter(|_| change.is_some()))
    }

    /// Copies one object up whose parent is in upper, and changes its owner and mode. Gives what statx says of the
    /// copy; `None`: somebody else was faster.
    fn copy_up(
        &self,
        node: &Arc<Node>,
        data: CopyData,
        change: Option<&SetAttr>,
    ) -> Result<Option<Statx>, Errno> {
        let upper = self.upper()?;
        let _copying = node.copying.lock();
        if node.place.read().has_upper() {
            return Ok(None);
        }
        self.counters.copy_ups.add(1);
        let origin = self.lower_handle(node)?;
        // Layers don't change: one look at the original is enough.
        let st = self.with_object(node, |dir, name| self.shown_at(dir, name))?;
        let mut copied = match node.kind {
            Kind::Dir => {
                self.check_not_removed(node)?;
                self.build_dir(node, upper, &st)?.into()
            }
            Kind::File if data == CopyData::Nothing && self.config.metacopy => {
                self.build_metacopy(node, upper, &st)?
            }
            Kind::File => self.build_file(node, upper, &st, data)?.into(),
            _ => self.build_special(node, upper, &st)?.into(),
        };
        let links = st.stx_nlink;
        let several = node.kind != Kind::Dir && links > 1;
        if let Some(origin) = &origin
            && (!several || self.config.index)
        {
            copied.has_origin =
                self.set_mark(&copied.object, OverlayKey::Origin, &origin.encode())?;
            if several && upper.work.index.is_some() {
                let removed = self.unlinked_lowers.get(&node.id).map_or(0, |n| *n);
                let nlink = Nlink {
                    base: NlinkBase::Lower,
                    diff: -i64::from(removed),
                };
                self.set_mark(&copied.object, OverlayKey::Nlink, &nlink.encode())?;
                copied.hard_link = Some(origin.index_name());
                if !self.counts_lower_links(origin) {
                    copied.names = Some(links.saturating_sub(removed));
                }
            }
        }
        if copied.data.is_some() {
            // After the origin: ext4 has room for one of them in the inode, and this one, empty everywhere,
            // is kept once for many files.
            let target = copied.object.file().ok_or(Errno::IO)?;
            self.mark_metacopy(target, st.stx_size)?;
        }
        self.with_built(&copied.object, |fd, name| {
            if let Some(change) = change {
                self.set_owner_and_mode(fd, name, change)?;
            }
            // The last touch on a copy.
            set_times(fd, name, &st)
        })?;
        self.publish(node, upper, copied).map(Some)
    }

    /// Names of an indexed file are counted relative to upper's where the lower's can't be opened by
    /// its handle to count them again.
    fn store_names(&self, place: &Place, names: Option<u32>, upper: &Statx) -> Result<(), Errno> {
        match (place.index(), names) {
            (Some(hex), Some(names)) => {
                self.store_nlink(hex, i64::from(names) - i64::from(upper.stx_nlink))
            }
            _ => Ok(()),
        }
    }

    fn check_not_removed(&self, node: &Node) -> Result<(), Errno> {
        if node.place.read().removed {
            Err(Errno::NOENT)
        } else {
            Ok(())
        }
    }

    /// Writes an overlay xattr on something that is being built; `false` where there can't be one.
    fn set_mark(&self, built: &Built<'_>, key: OverlayKey, value: &[u8]) -> Result<bool, Errno> {
        if !self.upper_xattrs {
            return Ok(false);
        }
        let key = self.ns.key(key);
        let result = self.with_built(built, |fd, name| {
            xattr::set_at(fd, name, key, value, SetFlags::Any)
        });
        match result {
            Ok(()) => Ok(true),
            // `user.*` is refused on symlinks and special files: the kernel goes on without, too.
            Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn with_built<T>(
        &self,
        built: &Built<'_>,
        f: impl FnOnce(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match built {
            Built::Unnamed(fd) => f(fd.as_fd(), OsStr::new("")),
            Built::Named(temp, _) => f(self.upper()?.work.dir.as_fd(), &temp.name),
        }
    }

    /// Owner, mode and xattrs, in an order in which none undoes another: data before capabilities,
    /// chown before the set-id bits and capabilities that it clears, the mode before the ACL.
    /// `st`: of the original, as the merged tree has it.
    pub(crate) fn copy_metadata(
        &self,
        (from, from_name): (BorrowedFd<'_>, &OsStr),
        st: &Statx,
        (to, to_name): (BorrowedFd<'_>, &OsStr),
    ) -> Result<(), Errno> {
        self.copy_owner_and_mode(st, (to, to_name))?;
        for key in xattr::list_at(from, from_name)?.split(|b| *b == 0) {
            if key.is_empty() || self.is_layer_mark(key) || self.ids.hides(key) {
                continue;
            }
            let key = CString::new(key).map_err(|_| Errno::IO)?;
            let Some(value) = xattr::get_at(from, from_name, &key)? else {
                continue;
            };
            match xattr::set_at(to, to_name, &key, &value, SetFlags::Any) {
                Ok(()) => {}
                Err(e) if may_lose(key.as_bytes(), e, self.ns) => {
                    tracing::debug!(?key, "not copied up: {e}");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Does this xattr belong to the layer it lies in, not to the object?
    fn is_layer_mark(&self, key: &[u8]) -> bool {
        self.ns.is_private(key) || key.starts_with(b"user.fuseoverlayfs.")
    }

    /// Puts a finished copy into its place, and gives what statx says of it.
    fn publish(
        &self,
        node: &Arc<Node>,
        upper: &Upper,
        mut copied: Copied<'_>,
    ) -> Result<Statx, Errno> {
        let parent = node.place.read().parent.clone();
        let Some(parent) = parent else {
            let mut place = node.place.write();
            return self.publish_nameless(node, upper, &mut place, copied);
        };
        if copied.has_origin {
            self.mark_impure(&parent)?;
        }
        let parent_fd = self.upper_dir_fd(&parent)?;
        let parent_dir = parent.dir.as_deref().ok_or(Errno::NOTDIR)?;
        let _names = parent_dir.names.write();
        let before = stat_at(parent_fd.as_fd(), OsStr::new(""))?;
        let st = {
            let mut place = node.place.write();
            if place.removed {
                return self.publish_nameless(node, upper, &mut place, copied);
            }
            if place.parent.as_ref().is_none_or(|p| p.id != parent.id) {
                // Renamed meanwhile? Whoever renames it copies it up first.
                return Err(Errno::STALE);
            }
            if let Some(index) = copied.hard_link.take() {
                self.link_into_index(upper, &copied.object, &index)?;
                place.extra_mut().index = Some(index.into());
            }
            let name = place.name.clone();
            let st = self.publish_name(node, &mut place, parent_fd.as_fd(), &name, copied)?;
            self.listings
                .added(parent.id, &name, self.ino_of(node), node.kind);
            st
        };
        // The directory's contents did not change for anybody who looks at the merged tree.
        set_times(parent_fd.as_fd(), OsStr::new(""), &before)?;
        Ok(st)
    }

    /// The step that makes a copy visible, and what the node says of itself with it.
    fn publish_name(
        &self,
        node: &Arc<Node>,
        place: &mut Place,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        copied: Copied<'_>,
    ) -> Result<Statx, Errno> {
        let fd = match copied.object {
            Built::Unnamed(fd) => {
                sysfs::link_fd_at(fd.as_fd(), parent, name)?;
                Some(fd)
            }
            Built::Named(temp, fd) => {
                let work = self.upper()?.work.dir.as_fd();
                rename_noreplace(work, &temp.name, parent, name)?;
                temp.published();
                fd
            }
        };
        let st = match &fd {
            Some(fd) => stat_at(fd.as_fd(), OsStr::new(""))?,
            None => stat_at(parent, name)?,
        };
        place.upper_alias = true;
        self.now_in_upper(node, place, &st, (fd, copied.data), copied.has_origin);
        self.store_names(place, copied.names, &st)?;
        Ok(st)
    }

    /// The node's data and attributes are upper's from here on.
    fn now_in_upper(
        &self,
        node: &Node,
        place: &mut Place,
        st: &Statx,
        (fd, data): (Option<OwnedFd>, Option<DataAt>),
        has_origin: bool,
    ) {
        place.upper_ino = st.stx_ino;
        let real = self.inos.map(super::attr::dev_of(st), st.stx_ino);
        if node.apart {
            node.set_ino(real);
        }
        if !has_origin && real != node.id {
            // Nothing in upper leads from the copy to the number that clients know.
            self.inos.bind(st.stx_ino, node.id);
        }
        let complete = data.is_none();
        if !complete || place.data().is_some() {
            place.extra_mut().data = data;
        }
        if node.dir.is_none() {
            place.lower = None;
        }
        // Readers put their descriptor into the cache with the place locked: none of the lower
        // file can come after this.
        self.fds.remove(FdKey::Read(node.id));
        if let Some(fd) = fd.filter(|_| complete) {
            self.fds.put(FdKey::Write(node.id), fd);
        }
    }

    /// A copy of an object whose last known name was removed while somebody has it open.
    fn publish_nameless(
        &self,
        node: &Arc<Node>,
        upper: &Upper,
        place: &mut Place,
        copied: Copied<'_>,
    ) -> Result<Statx, Errno> {
        let built = copied.object;
        place.upper_alias = false;
        if let Some(index) = copied.hard_link {
            self.link_into_index(upper, &built, &index)?;
            place.extra_mut().index = Some(index.into());
        }
        let st = self.with_built(&built, stat_at)?;
        let (keep, fd) = match &built {
            Built::Unnamed(fd) => (sysfs::reopen(fd.as_fd(), OFlags::PATH)?, true),
            Built::Named(temp, fd) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let work = upper.work.dir.as_fd();
                (
                    rustix::fs::openat(work, &temp.name, flags, Mode::empty())?,
                    fd.is_some(),
                )
            }
        };
        if place.index().is_none() {
            let slot = self.pins.take().ok_or(Errno::NFILE)?;
            place.extra_mut().pin = Some(Arc::new(Pin::new(keep, slot)));
        }
        let fd = match built {
            Built::Unnamed(fd) => Some(fd),
            // Dropping the name removes it from work; the pin keeps the object.
            Built::Named(_temp, file) if fd => file,
            Built::Named(..) => None,
        };
        self.now_in_upper(node, place, &st, (fd, copied.data), copied.has_origin);
        self.store_names(place, copied.names, &st)?;
        Ok(st)
    }

    fn link_into_index(&self, upper: &Upper, built: &Built<'_>, index: &str) -> Result<(), Errno> {
        let dir = upper.work.index.as_ref().ok_or(Errno::IO)?;
        match built {
            Built::Unnamed(fd) => sysfs::link_fd_at(fd.as_fd(), dir.as_fd(), index.as_ref()),
            Built::Named(temp, _) => {
                let work = upper.work.dir.as_fd();
                rustix::fs::linkat(work, &temp.name, dir, index, AtFlags::empty())
            }
        }
    }

    /// The handle of the lower object that a node's copy comes from.
    fn lower_handle(&self, node: &Node) -> Result<Option<OverlayHandle>, Errno> {
        let layer = match (&node.dir, &node.place.read().lower) {
            (Some(dir), _) => dir.lowers().first().map(|d| d.layer),
            (None, lower) => lower.as_ref().map(|l| l.dir.layer),
        };
        let Some(layer) = layer else { return Ok(None) };
        let layer = &self.lowers.layers[usize::from(layer)];
        if !layer.has_handles {
            return Ok(None);
        }
        let uuid = layer.uuid;
        self.with_object(node, |dir, name| super::index::handle_at(dir, name, uuid))
    }
}

/// May a copy go on without this xattr? ACLs and (for those who could set them) security
/// attributes protect something: without them a copy would be wrong. As `ovl_copy_xattr`.
fn may_lose(key: &[u8], error: Errno, ns: crate::format::keys::Namespace) -> bool {
    let protects = key.starts_with(b"system.posix_acl_");
    match error {
        Errno::OPNOTSUPP => !protects,
        // Without privileges, capabilities and labels of other users' files can't be copied; the
        // file has less rights then, not more.
        Errno::PERM | Errno::ACCESS => !protects && ns == crate::format::keys::Namespace::User,
        _ => false,
    }
}
