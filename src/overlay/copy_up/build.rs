//! What a copy is built from: an unnamed file, or a name in `work`, with everything but its marks.

use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{Built, Copied, CopyData, copy_data};
use crate::format::keys::OverlayKey;
use crate::overlay::attr::{Kind, stat_at};
use crate::overlay::ids::{link_target, make_stand_in};
use crate::overlay::node::{DataAt, Node};
use crate::overlay::work::Work;
use crate::overlay::{Overlay, Upper};

impl Overlay {
    pub(super) fn build_dir<'a>(
        &self,
        node: &Node,
        upper: &'a Upper,
        st: &Statx,
    ) -> Result<Built<'a>, Errno> {
        let temp = upper.work.temp();
        let work = upper.work.dir.as_fd();
        rustix::fs::mkdirat(work, &temp.name, Mode::RWXU)?;
        self.with_object(node, |dir, name| {
            self.copy_metadata((dir, name), st, (work, &temp.name))
        })?;
        let built = Built::Named(temp, None);
        self.mark_protection(&built, node)?;
        Ok(built)
    }

    /// Symlinks, FIFOs, sockets and devices.
    pub(super) fn build_special<'a>(
        &self,
        node: &Node,
        upper: &'a Upper,
        st: &Statx,
    ) -> Result<Built<'a>, Errno> {
        let temp = upper.work.temp();
        let work = upper.work.dir.as_fd();
        self.with_object(node, |dir, name| {
            let target = match node.kind {
                Kind::Symlink => link_target(dir, name, &self.ids)?,
                _ => Vec::new(),
            };
            match node.kind {
                _ if self.ids.stand_ins() => {
                    make_stand_in(work, &temp.name, &target)?;
                }
                Kind::Symlink => rustix::fs::symlinkat(&*target, work, &temp.name)?,
                _ => {
                    let dev = rustix::fs::makedev(st.stx_rdev_major, st.stx_rdev_minor);
                    let kind = FileType::from_raw_mode(node.kind.mode_bits());
                    rustix::fs::mknodat(work, &temp.name, kind, Mode::RUSR, dev)?;
                }
            }
            self.copy_metadata((dir, name), st, (work, &temp.name))
        })?;
        Ok(Built::Named(temp, None))
    }

    /// A new, empty, nameless file with these permission bits.
    fn new_file<'a>(&self, upper: &'a Upper, mode: u32) -> Result<Built<'a>, Errno> {
        if upper.work.tmpfile {
            return Ok(Built::Unnamed(upper.work.open_tmpfile(mode)?));
        }
        let temp = upper.work.temp();
        let fd = create_exclusive(&upper.work, &temp.name, mode)?;
        Ok(Built::Named(temp, Some(fd)))
    }

    pub(super) fn build_file<'a>(
        &self,
        node: &Node,
        upper: &'a Upper,
        st: &Statx,
        data: CopyData,
    ) -> Result<Built<'a>, Errno> {
        let elsewhere = node.place.read().data().cloned();
        let source = match &elsewhere {
            Some(at) => self.open_data(at)?,
            None => self.open_object(node, OFlags::RDONLY)?,
        };
        let here = OsStr::new("");
        let source = source.as_fd();
        let (held, size) = match &elsewhere {
            Some(_) => (stat_at(source, here)?.stx_size, st.stx_size),
            None => (st.stx_size, st.stx_size),
        };
        if held < size {
            return Err(Errno::IO); // the data is not this file's
        }
        let built = self.new_file(upper, plain_mode(st))?;
        let target = built.file().ok_or(Errno::IO)?;
        let length = match data {
            CopyData::All | CopyData::Nothing => size,
            CopyData::Prefix(n) => n.min(size),
        };
        let copied = copy_data(source, target, length, held)?;
        self.counters.copy_up_bytes.add(copied);
        match &elsewhere {
            None => {
                self.copy_metadata((source, here), st, (target, here))?;
                self.copy_flags(source, target)?;
            }
            Some(_) => {
                self.with_object(node, |dir, name| {
                    self.copy_metadata((dir, name), st, (target, here))
                })?;
                self.mark_protection(&built, node)?;
            }
        }
        if length > 0 && !self.config.volatile {
            rustix::fs::fdatasync(target)?;
        }
        Ok(built)
    }

    /// A file with the attributes alone. Of its flags only those that protect it are taken over: the
    /// others are not worth opening the original for.
    pub(super) fn build_metacopy<'a>(
        &self,
        node: &Node,
        upper: &'a Upper,
        st: &Statx,
    ) -> Result<Copied<'a>, Errno> {
        let built = self.new_file(upper, plain_mode(st))?;
        let target = built.file().ok_or(Errno::IO)?;
        self.with_object(node, |dir, name| {
            self.copy_metadata((dir, name), st, (target, OsStr::new("")))
        })?;
        self.mark_protection(&built, node)?;
        let place = node.place.read();
        let data = match (place.data(), &place.lower) {
            (Some(at), _) => at.clone(),
            (None, Some(lower)) => DataAt::Lower {
                dir: Arc::clone(&lower.dir),
                name: lower.name.clone().unwrap_or_else(|| place.name.clone()),
                blocks: st.stx_blocks,
            },
            (None, None) => return Err(Errno::STALE),
        };
        Ok(Copied {
            data: Some(data),
            ..built.into()
        })
    }

    /// Marks a copy of something that is immutable or append-only.
    fn mark_protection(&self, built: &Built<'_>, node: &Node) -> Result<(), Errno> {
        let protection = node.protection();
        if protection.any() {
            self.set_mark(built, OverlayKey::Protattr, &protection.encode())?;
        }
        Ok(())
    }
}

/// A new file in `work`, for file systems without `O_TMPFILE`.
fn create_exclusive(work: &Work, name: &OsStr, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(work.dir.as_fd(), name, flags, Mode::from_raw_mode(mode))
}

/// The permission bits that a copy can be made with, so that they needn't be set afterwards.
fn plain_mode(st: &Statx) -> u32 {
    u32::from(st.stx_mode) & 0o777
}
