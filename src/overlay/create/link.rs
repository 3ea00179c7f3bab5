//! Making another name of an object.

use rustix::fs::AtFlags;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::overlay::attr::{Attr, dev_of, stat_at, stat_opt};
use crate::overlay::copy_up::CopyData;
use crate::overlay::lookup::{Found, FoundKind};
use crate::overlay::node::Node;
use crate::overlay::{Overlay, Upper};
use crate::sys::fs as sysfs;

impl Overlay {
    /// Makes another name for a file; gives its node, with one reference taken, and attributes.
    ///
    /// # Errors
    /// `EPERM` for directories, `EEXIST`, `EMLINK`, `ENOENT` for an unlinked file, and as
    /// [`create`](Self::create).
    pub fn link(
        &self,
        id: u64,
        new_parent: u64,
        new_name: &OsStr,
        known_absent: bool,
    ) -> Result<(Arc<Node>, Attr), Errno> {
        self.check_new_name(new_name)?;
        let node = self.node(id)?;
        let parent = self.node(new_parent)?;
        let dir = parent.dir.as_deref().ok_or(Errno::NOTDIR)?;
        if node.dir.is_some() {
            return Err(Errno::PERM);
        }
        let upper = self.upper()?;
        node.check_changeable()?;
        parent.check_adding()?;
        self.ensure_upper(&node, CopyData::Nothing)?;
        self.ensure_redirectable(&node)?;
        self.ensure_upper(&parent, CopyData::All)?;
        let _names = dir.names.write();
        if parent.place.read().removed {
            return Err(Errno::NOENT);
        }
        if !known_absent && self.resolve(&parent, new_name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let to = self.upper_dir_fd(&parent)?;
        node.links_change();
        let before = self.with_object(&node, stat_at)?;
        if self.has_origin(&node, &before)? {
            self.mark_impure(&parent)?;
        }
        if node.place.read().data().is_some() {
            // Under the new name there is no data below.
            self.set_redirect(&node, false)?;
        }
        let index = {
            let place = node.place.read();
            self.begin_nlink(&place, &before)?;
            place.index().map(Box::from)
        };
        self.link_at(upper, &node, to.as_fd(), new_name)?;
        self.name_added(&parent, new_name, &node);
        let st = self.shown_at(to.as_fd(), new_name)?;
        let found = Found {
            stat: st,
            upper_ino: st.stx_ino,
            upper_alias: true,
            identity: (dev_of(&st), st.stx_ino),
            protection: node.protection(),
            what: FoundKind::Other {
                lower: None,
                index,
                data: None,
                redirect: None,
            },
        };
        self.hold_as(&node, &parent, new_name, &found);
        let attr = self.attr_from(&node, &st)?;
        Ok((node, attr))
    }

    /// The step on disk; a whiteout makes place.
    fn link_at(
        &self,
        upper: &Upper,
        node: &Node,
        to: BorrowedFd<'_>,
        new_name: &OsStr,
    ) -> Result<(), Errno> {
        self.with_object(node, |from, name| {
            match link_object(from, name, to, new_name) {
                Err(Errno::EXIST) => {}
                other => return other,
            }
            let there = stat_opt(to, new_name)?;
            match there {
                Some(st) if self.is_upper_whiteout(to, new_name, &st)? => {}
                _ => return Err(Errno::EXIST),
            }
            let temp = upper.work.temp();
            let work = upper.work.dir.as_fd();
            link_object(from, name, work, &temp.name)?;
            rustix::fs::renameat(work, &temp.name, to, new_name)?;
            temp.published();
            Ok(())
        })
    }
}

/// A hard link to an object given by directory and name, or by a descriptor (empty name).
fn link_object(
    from: BorrowedFd<'_>,
    name: &OsStr,
    to: BorrowedFd<'_>,
    new_name: &OsStr,
) -> Result<(), Errno> {
    if name.is_empty() {
        return sysfs::link_fd_at(from, to, new_name);
    }
    rustix::fs::linkat(from, name, to, new_name, AtFlags::empty())
}
