//! Directories that stop being merged: everything in them is copied up, then upper's part hides the
//! lowers' for good.
//!
//! This is how a directory with a lower part is renamed where a redirect can't be stored, or where the
//! kernel's overlayfs would refuse to follow it (`userxattr`). It costs what mv(1) would spend on copying
//! after `EXDEV`, but the rename itself is one step, and hard links and open files stay what they are.

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::Overlay;
use super::attr::{stat_at, stat_opt};
use super::copy_up::{CopyData, set_times};
use super::layer::DIR_READ;
use super::node::Node;
use crate::format::whiteout::{AufsName, classify};

impl Overlay {
    /// Copies up everything beneath a directory that is in upper, and makes all directories of it
    /// opaque, from the deepest to `top`. What clients see doesn't change at any time.
    ///
    /// # Errors
    /// What copying up returns; `EBUSY` when somebody keeps adding to it from the lowers meanwhile.
    pub(crate) fn ensure_opaque_tree(&self, top: &Arc<Node>) -> Result<(), Errno> {
        let mut dirs: Vec<Arc<Node>> = vec![Arc::clone(top)];
        let mut next = 0;
        let mut result = Ok(());
        while let Some(dir) = dirs.get(next).cloned() {
            result = self.copy_up_entries(&dir, &mut dirs);
            if result.is_err() {
                break;
            }
            next += 1;
        }
        for dir in dirs.iter().rev() {
            if result.is_ok() {
                result = self.make_opaque_in_place(dir);
            }
        }
        // The first is the caller's.
        for dir in dirs.iter().skip(1) {
            self.release(dir, 1);
        }
        result
    }

    /// Copies up what is in the directory; adds its directories, with a reference on each.
    fn copy_up_entries(&self, dir: &Arc<Node>, dirs: &mut Vec<Arc<Node>>) -> Result<(), Errno> {
        let mut names: Vec<OsString> = Vec::new();
        self.readdir(dir.id, 0, &mut |entry| {
            if entry.name != "." && entry.name != ".." {
                names.push(entry.name.to_os_string());
            }
            ControlFlow::Continue(())
        })?;
        for name in names {
            let Some((child, _)) = self.lookup(dir.id, &name)? else {
                continue; // removed meanwhile
            };
            match self.ensure_upper(&child, CopyData::All) {
                Ok(()) if child.dir.is_some() => dirs.push(child),
                done => {
                    let linked = done.and_then(|()| self.ensure_name_in_upper(dir, &name, &child));
                    self.release(&child, 1);
                    linked?;
                }
            }
        }
        Ok(())
    }

    /// A hard link that was copied up by another of its names gets this one in upper, too.
    fn ensure_name_in_upper(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        child: &Arc<Node>,
    ) -> Result<(), Errno> {
        if child.place.read().index().is_none() {
            return Ok(());
        }
        let part = dir.dir.as_deref().ok_or(Errno::NOTDIR)?;
        let fd = self.upper_dir_fd(dir)?;
        let _names = part.names.write();
        let Some(found) = self.resolve(dir, name)? else {
            return Ok(());
        };
        let before = stat_at(fd.as_fd(), OsStr::new(""))?;
        if self
            .find_live(dir, name, &found)
            .is_some_and(|n| n.id == child.id)
        {
            self.ensure_alias(child, fd.as_fd(), name, Some(&found))?;
        }
        self.listings
            .added(dir.id, name, self.ino_of(child), child.kind);
        set_times(fd.as_fd(), OsStr::new(""), &before)
    }

    /// Makes a directory opaque whose entries are all in upper, and takes its whiteouts away, which
    /// hide nothing then.
    fn make_opaque_in_place(&self, node: &Arc<Node>) -> Result<(), Errno> {
        let part = node.dir.as_deref().ok_or(Errno::NOTDIR)?;
        let _names = part.names.write();
        if part.lowers().is_empty() {
            return Ok(());
        }
        if !self.has_upper_entries_only(node)? {
            return Err(Errno::BUSY);
        }
        let fd = self.upper_dir_fd(node)?;
        let here = rustix::fs::openat(fd.as_fd(), c".", DIR_READ, Mode::empty())?;
        self.make_opaque(here.as_fd(), OsStr::new(""))?;
        part.set_lowers(Vec::new());
        self.listings.remove(node.id);
        let before = stat_at(here.as_fd(), OsStr::new(""))?;
        let mut marks: Vec<OsString> = Vec::new();
        crate::sys::dir::read_all(here.as_fd(), |entry| {
            let device = matches!(entry.kind, libc::DT_CHR | libc::DT_REG | libc::DT_UNKNOWN);
            if device || matches!(classify(entry.name), AufsName::Hides(_)) {
                marks.push(entry.name.to_os_string());
            }
        })?;
        for name in marks {
            let hides = matches!(classify(&name), AufsName::Hides(_));
            let whiteout = match stat_opt(here.as_fd(), &name)? {
                Some(st) => self.is_upper_whiteout(here.as_fd(), &name, &st)?,
                None => false,
            };
            if hides || whiteout {
                rustix::fs::unlinkat(&here, &name, AtFlags::empty())?;
            }
        }
        part.aufs.set(false);
        set_times(here.as_fd(), OsStr::new(""), &before)
    }
}
