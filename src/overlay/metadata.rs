//! Attributes of the merged tree: reading and changing them.

use rustix::fs::Statx;
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;

use super::attr::{Attr, Kind, SetAttr, SetTime, to_timespec, without_set_ids};
use super::copy_up::CopyData;
use super::fds::FdKey;
use super::file::WriteHow;
use super::ids::link_target;
use super::index::UNKNOWN_LINKS;
use super::node::Node;
use super::{Overlay, ROOT_ID};
use crate::sys::fs::{self as sysfs, TimeSpec};

/// Who changes contents without `CAP_FSETID`: set-id bits go, and whether the set-group-id bit of a
/// file that its group can't execute does, depends on the caller being in a group. `None`: somebody
/// privileged.
pub type Unprivileged<'a> = Option<&'a dyn Fn(u32) -> bool>;

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsStat {
    /// Size in blocks of `frsize` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for users without privileges.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred size of one I/O, in bytes.
    pub bsize: u32,
    /// Longest name, in bytes.
    pub namelen: u32,
    /// Size of a block, in bytes.
    pub frsize: u32,
}

impl Overlay {
    /// The attributes that clients see, from statx of the node's topmost object.
    pub(crate) fn attr_from(&self, node: &Node, st: &Statx) -> Result<Attr, Errno> {
        let mut attr = Attr::from_statx(st, self.ino_of(node))?;
        attr.uid = self.ids.shown_uid(attr.uid);
        attr.gid = self.ids.shown_gid(attr.gid);
        if let Some(dir) = &node.dir {
            let place = node.place.read();
            let parts = dir.lowers().len() + usize::from(place.has_upper());
            if place.removed {
                attr.nlink = 0;
            } else if parts > 1 || self.config.static_nlink {
                // As the kernel: counting the merged subdirectories would cost a listing, and 1
                // tells find(1) and others not to rely on it.
                attr.nlink = 1;
            }
            return Ok(attr);
        }
        attr.settled = node.links_settled();
        let place = node.place.read();
        // Copying it up will change number and links, and the kernel isn't told when it writes.
        attr.settled &= !node.apart || place.has_upper();
        if let Some(at) = place.data() {
            attr.blocks = at.blocks(st);
        }
        if let Some(hex) = place.index() {
            attr.nlink = match self.indexed_nlink(hex, st)? {
                // Those that are known: without the index's own.
                UNKNOWN_LINKS => attr.nlink.saturating_sub(1).max(1),
                links => links,
            };
        } else if place.parked().is_some() {
            attr.nlink = attr.nlink.saturating_sub(1);
        } else if !place.has_upper() && (attr.nlink > 1 || place.removed) {
            let gone = self.unlinked_lowers.get(&node.id).map_or(0, |n| *n);
            attr.nlink = attr.nlink.saturating_sub(gone);
            if place.removed && attr.nlink <= 1 {
                attr.nlink = 0;
            }
        }
        Ok(attr)
    }

    /// The attributes of a node.
    ///
    /// # Errors
    /// `ESTALE` for an unknown id, and what the layer returns.
    pub fn getattr(&self, id: u64) -> Result<Attr, Errno> {
        let node = self.node(id)?;
        self.attr_of(&node)
    }

    pub(crate) fn attr_of(&self, node: &Node) -> Result<Attr, Errno> {
        let st = self.look_at(node, |dir, name| self.shown_at(dir, name))?;
        self.attr_from(node, &st)
    }

    /// Calls `look` for a node's topmost object, or for what is open of it where somebody removed that from its layer
    /// behind our back, as engines remove a container whose tree is still mounted somewhere: who has a file open goes
    /// on with it.
    pub(crate) fn look_at(
        &self,
        node: &Node,
        look: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<Statx, Errno>,
    ) -> Result<Statx, Errno> {
        match self.with_object(node, &look) {
            Err(Errno::NOENT) if node.kind == Kind::File => {
                let open = [FdKey::Write(node.id), FdKey::Read(node.id)];
                let fd = open.into_iter().find_map(|key| self.fds.get(key));
                look(fd.ok_or(Errno::NOENT)?.as_fd(), OsStr::new(""))
            }
            other => other,
        }
    }

    /// Changes attributes; the object is copied up first.
    ///
    /// # Errors
    /// `EROFS` without upper, `EINVAL` for the size of something that is not a file, and what the
    /// file system of upper returns.
    pub fn setattr(
        &self,
        id: u64,
        set: &SetAttr,
        unprivileged: Unprivileged<'_>,
    ) -> Result<Attr, Errno> {
        let node = self.node(id)?;
        // Times: those of cached writes to a file that is append-only.
        let times_only = set.perm.is_none() && !set.changes_owner() && set.size.is_none();
        if times_only && !node.place.read().has_upper() && self.upper.is_some() {
            // The kernel's cache tells of times that it changed on its own, also of the ctime that
            // an unlink or link sets and nobody can: no reason to copy anything.
            let attr = self.attr_of(&node)?;
            if set.changes_nothing(&attr) {
                return Ok(attr);
            }
        }
        if node.protection().immutable || !times_only {
            node.check_changeable()?;
        }
        let data = set.size.map_or(CopyData::Nothing, CopyData::Prefix);
        // Set-id bits that depend on the caller are looked at below.
        let at_once = unprivileged.is_none() && set.changes_owner_or_mode_only();
        let copy = self.ensure_upper_as(&node, data, at_once.then_some(set))?;
        if let Some(copy) = copy.filter(|_| !self.ids.in_xattrs()) {
            return self.attr_from(&node, &copy);
        }
        if let Some(size) = set.size {
            if node.kind != Kind::File {
                return Err(if node.kind == Kind::Dir {
                    Errno::ISDIR
                } else {
                    Errno::INVAL
                });
            }
            let fd = self.write_fd(&node)?;
            let keep_mtime = set.keep_mtime && set.mtime.is_none();
            let how = WriteHow {
                unprivileged,
                keep_mtime,
            };
            self.remember_mtime(&node, fd.as_fd(), how)?;
            rustix::io::retry_on_intr(|| rustix::fs::ftruncate(&*fd, size))?;
            self.clear_suidgid(fd.as_fd(), OsStr::new(""), unprivileged)?;
            self.restore_mtime(&node, fd.as_fd(), how)?;
        }
        let st = self.with_object(&node, |dir, name| {
            if set.changes_owner() && !matches!(node.kind, Kind::Dir | Kind::Symlink) {
                self.clear_suidgid(dir, name, unprivileged)?;
            }
            self.set_owner_and_mode(dir, name, set)?;
            let (atime, mtime) = (to_timespec(set.atime), to_timespec(set.mtime));
            match (atime, set.mtime) {
                (TimeSpec::Omit, None) => {}
                (_, Some(SetTime::At(t))) if node.kind == Kind::File => {
                    // Cached writes that are under way set this time again: see `write`.
                    let mut known = self.mtimes.entry(node.id).or_insert(t);
                    *known = t;
                    sysfs::utimens_at(dir, name, atime, mtime)?;
                }
                _ => {
                    self.mtimes.remove(&node.id);
                    sysfs::utimens_at(dir, name, atime, mtime)?;
                }
            }
            self.shown_at(dir, name)
        })?;
        self.attr_from(&node, &st)
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// `EINVAL` if it isn't one.
    pub fn readlink(&self, id: u64) -> Result<OsString, Errno> {
        let node = self.node(id)?;
        let target = self.with_object(&node, |dir, name| link_target(dir, name, &self.ids))?;
        Ok(OsString::from_vec(target))
    }

    /// Space on the file system of upper, or of the topmost lower.
    ///
    /// # Errors
    /// What the file system returns.
    pub fn statfs(&self) -> Result<FsStat, Errno> {
        let root = match &self.upper {
            Some(upper) => upper.layer.root.as_fd(),
            None => self.lowers.layers[0].root.as_fd(),
        };
        let st = rustix::fs::fstatvfs(root)?;
        Ok(FsStat {
            blocks: st.f_blocks,
            bfree: st.f_bfree,
            bavail: st.f_bavail,
            files: st.f_files,
            ffree: st.f_ffree,
            bsize: u32::try_from(st.f_bsize).unwrap_or(4096),
            namelen: u32::try_from(st.f_namemax).unwrap_or(255),
            frsize: u32::try_from(st.f_frsize).unwrap_or(4096),
        })
    }

    /// Takes the set-id bits away that a change of the contents by somebody without `CAP_FSETID`
    /// takes away (`setattr_should_drop_suidgid`).
    pub(crate) fn clear_suidgid(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        unprivileged: Unprivileged<'_>,
    ) -> Result<(), Errno> {
        let Some(in_group) = unprivileged else {
            return Ok(());
        };
        let st = self.shown_at(dir, name)?;
        let mode = u32::from(st.stx_mode) & 0o7777;
        let kept = without_set_ids(mode, || in_group(self.ids.shown_gid(st.stx_gid)));
        if kept != mode {
            self.set_owner_and_mode(dir, name, &SetAttr::mode(kept))?;
        }
        Ok(())
    }

    /// A name that a node is known by: its directory's id, and the component.
    pub fn name_of(&self, id: u64) -> Option<(u64, OsString)> {
        let node = self.node(id).ok()?;
        let place = node.place.read();
        let parent = place.parent.as_ref()?;
        Some((parent.id, place.name.to_os_string()))
    }

    /// Is this the root of the mount?
    pub(crate) fn is_root(&self, node: &Node) -> bool {
        node.id == ROOT_ID
    }
}
