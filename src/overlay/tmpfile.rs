//! Files without a name (`O_TMPFILE`), which `link` can give one.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::attr::{Attr, Kind, dev_of};
use super::copy_up::CopyData;
use super::create::{Caller, set_owner};
use super::fds::FdKey;
use super::ids::DISK_MODE;
use super::inos::TableKey;
use super::node::{DirPart, Extra, Interned, Node, Pin, Place};
use super::{Overlay, Upper};
use crate::format::override_stat::OverrideStat;
use crate::sys::fs as sysfs;

impl Overlay {
    /// Makes a file without a name, which belongs to the directory `parent` as far as its group,
    /// default ACL and file system go; gives its node, with one reference taken, and attributes.
    /// It is gone once it is forgotten, unless [`link`](Self::link) gave it a name.
    ///
    /// # Errors
    /// `EROFS`, `ENOTDIR`, `ENOENT` in a removed directory, `EOPNOTSUPP` where upper's file system
    /// has no unnamed files, and what else it returns.
    pub fn create_tmpfile(
        &self,
        caller: &Caller,
        parent: u64,
        mode: u32,
    ) -> Result<(Arc<Node>, Attr), Errno> {
        let upper = self.upper()?;
        if !upper.work.tmpfile {
            return Err(Errno::OPNOTSUPP);
        }
        let parent = self.node(parent)?;
        let dir = parent.dir.as_deref().ok_or(Errno::NOTDIR)?;
        if parent.place.read().removed {
            return Err(Errno::NOENT);
        }
        self.ensure_upper(&parent, CopyData::All)?;
        let fd = {
            let fd = self.upper_dir_fd(&parent)?;
            match self.ids.in_xattrs() {
                true => self.tmpfile_in_work(fd.as_fd(), (caller, mode), upper)?,
                false => self.tmpfile_in(fd.as_fd(), dir, caller, mode)?,
            }
        };
        self.tmpfile_node(fd, upper)
    }

    /// An unnamed file made beneath the directory, which gives it its group and ACLs.
    fn tmpfile_in(
        &self,
        dir: BorrowedFd<'_>,
        part: &DirPart,
        caller: &Caller,
        mode: u32,
    ) -> Result<OwnedFd, Errno> {
        let owner = self.ownership(caller, part, dir, mode)?;
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, c".", flags, Mode::from_raw_mode(owner.mode))?;
        if !owner.natural {
            set_owner(&self.ids, fd.as_fd(), OsStr::new(""), &owner)?;
        }
        Ok(fd)
    }

    /// One whose owner and mode are in an attribute.
    fn tmpfile_in_work(
        &self,
        dir: BorrowedFd<'_>,
        (caller, mode): (&Caller, u32),
        upper: &Upper,
    ) -> Result<OwnedFd, Errno> {
        let parent = self.shown_at(dir, OsStr::new(""))?;
        let (uid, gid) = self.ids.stored_caller(caller.uid, caller.gid);
        let set_gid = parent.stx_mode & 0o2000 != 0;
        let stat = OverrideStat {
            uid,
            gid: if set_gid { parent.stx_gid } else { gid },
            mode: mode & 0o7777 & !caller.umask,
            kind: None,
        };
        let fd = upper.work.open_tmpfile(DISK_MODE)?;
        self.ids.store(fd.as_fd(), OsStr::new(""), &stat)?;
        Ok(fd)
    }

    /// The node of a fresh unnamed file, which the file's descriptor keeps; where too many are
    /// kept that way, a name in `work` does.
    fn tmpfile_node(&self, fd: OwnedFd, upper: &Upper) -> Result<(Arc<Node>, Attr), Errno> {
        let mut extra = Extra::default();
        let cached = match self.pins.take() {
            Some(slot) => {
                extra.pin = Some(Arc::new(Pin::new(fd, slot)));
                None
            }
            None => {
                let temp = upper.work.temp();
                sysfs::link_fd_at(fd.as_fd(), upper.work.dir.as_fd(), &temp.name)?;
                extra.parked = temp.name.to_str().map(Box::from);
                temp.published();
                Some(fd)
            }
        };
        let kept = match (&extra.pin, &cached) {
            (Some(pin), _) => pin.fd.as_fd(),
            (None, Some(fd)) => fd.as_fd(),
            (None, None) => return Err(Errno::IO),
        };
        let st = self.shown_at(kept, OsStr::new(""))?;
        let place = Place {
            parent: None,
            name: OsStr::new("").into(),
            upper_ino: st.stx_ino,
            upper_alias: false,
            lower: None,
            removed: true,
            extra: Some(Box::new(extra)),
        };
        let mut id = self.inos.map(dev_of(&st), st.stx_ino);
        if self.nodes.get(id).is_some() {
            // An object whose origin had this number has it.
            id = self.inos.table_number(TableKey::Upper(st.stx_ino));
        }
        let make = || Node::new(id, Kind::File, place, None);
        let Interned::Node(node) = self.nodes.intern(id, |_| false, make) else {
            return Err(Errno::STALE);
        };
        if let Some(fd) = cached {
            self.fds.put(FdKey::Write(id), fd);
        }
        match self.attr_from(&node, &st) {
            Ok(attr) => Ok((node, attr)),
            Err(e) => {
                self.release(&node, 1);
                Err(e)
            }
        }
    }
}
