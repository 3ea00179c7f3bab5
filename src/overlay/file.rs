//! File contents: reading, writing, holes, syncing. By node, not by handle: the kernel doesn't
//! tell us of opens on a cached connection.

use dashmap::mapref::entry::Entry;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::Overlay;
use super::attr::{Kind, SetTime, Timestamp, stat_at, to_timespec};
use super::copy_up::CopyData;
use super::fds::FdKey;
use super::metadata::Unprivileged;
use super::node::Node;
use crate::sys::fs::{self as sysfs, TimeSpec};

/// Circumstances of a write.
#[derive(Clone, Copy, Default)]
pub struct WriteHow<'a> {
    /// The caller lacks `CAP_FSETID`.
    pub unprivileged: Unprivileged<'a>,
    /// The modification time stays: with the writeback cache the kernel keeps its own, shows that
    /// one, and sends it when it is not the one that it got from us.
    pub keep_mtime: bool,
}

impl Overlay {
    pub(crate) fn file_node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let node = self.node(id)?;
        match node.kind {
            Kind::File => Ok(node),
            Kind::Dir => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// A descriptor to read the node's contents with.
    fn read_fd(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = self.fds.get(FdKey::Write(node.id)) {
            return Ok(fd);
        }
        if let Some(fd) = self.fds.get(FdKey::Read(node.id)) {
            return Ok(fd);
        }
        // Into the cache with the place locked: see `now_in_upper`.
        {
            let place = node.place.read();
            if let Some(at) = place.data() {
                let fd = self.open_data(at)?;
                return Ok(self.fds.put(FdKey::Read(node.id), fd));
            }
        }
        self.with_object(node, |dir, name| {
            let fd = open_for(dir, name, OFlags::RDONLY)?;
            Ok(self.fds.put(FdKey::Read(node.id), fd))
        })
    }

    /// A descriptor to write the node's contents with. The node is in upper.
    ///
    /// One of a file without its data is good for `fsync`, and not cached: it would be read with.
    pub(crate) fn write_fd(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = self.fds.get(FdKey::Write(node.id)) {
            return Ok(fd);
        }
        let complete = {
            let place = node.place.read();
            if !place.has_upper() {
                return Err(Errno::IO);
            }
            place.data().is_none()
        };
        self.with_object(node, |dir, name| {
            let fd = match open_for(dir, name, OFlags::RDWR) {
                // An owner without privileges may not read what it may write.
                Err(Errno::ACCESS) => open_for(dir, name, OFlags::WRONLY)?,
                other => other?,
            };
            Ok(match complete {
                true => self.fds.put(FdKey::Write(node.id), fd),
                false => Arc::new(fd),
            })
        })
    }

    /// Reads at `offset` into `buf` until it is full or the file ends; gives the number of bytes.
    ///
    /// # Errors
    /// `EISDIR`, `EINVAL` for special files, and what the layer returns.
    pub fn read(&self, id: u64, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let node = self.file_node(id)?;
        let fd = self.read_fd(&node)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let got = rustix::io::retry_on_intr(|| rustix::io::pread(&*fd, &mut buf[done..], at));
            match got {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Writes all of `data` at `offset`, after a copy-up where it is needed.
    ///
    /// # Errors
    /// `ENOSPC`, `EDQUOT`, `EFBIG`, `EIO` and the others of pwrite and of copy-up. If a part was
    /// written, its length is returned instead.
    pub fn write(
        &self,
        id: u64,
        offset: u64,
        data: &[u8],
        how: WriteHow<'_>,
    ) -> Result<usize, Errno> {
        let node = self.file_node(id)?;
        let mut done = 0;
        if node.protection().any() {
            done = self.check_append(&node, offset, data)?;
        }
        self.ensure_upper(&node, CopyData::All)?;
        let fd = self.write_fd(&node)?;
        self.remember_mtime(&node, fd.as_fd(), how)?;
        while done < data.len() {
            let at = offset + done as u64;
            match rustix::io::retry_on_intr(|| rustix::io::pwrite(&*fd, &data[done..], at)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        self.clear_suidgid(fd.as_fd(), OsStr::new(""), how.unprivileged)?;
        self.restore_mtime(&node, fd.as_fd(), how)?;
        Ok(done)
    }

    /// May this be written to a protected file? To one that is append-only, at its end: the kernel's cache
    /// writes whole pages, so what is there already may come with it. Gives the length of that part.
    fn check_append(&self, node: &Arc<Node>, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if node.protection().immutable {
            return Err(Errno::PERM);
        }
        let size = self.with_object(node, stat_at)?.stx_size;
        let known = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let known = known.min(data.len());
        let mut there = vec![0; known];
        let got = self.read(node.id, offset, &mut there)?;
        match data.get(..known) {
            Some(same) if got == known && same == there => Ok(known),
            _ => Err(Errno::PERM),
        }
    }

    /// Sets the modification time again that a change of the kernel's cache must leave.
    pub(crate) fn restore_mtime(
        &self,
        node: &Node,
        fd: BorrowedFd<'_>,
        how: WriteHow<'_>,
    ) -> Result<(), Errno> {
        if how.keep_mtime
            && let Some(mtime) = self.mtimes.get(&node.id)
        {
            // With the entry locked: a SETATTR that comes meanwhile has the last word.
            let mtime = to_timespec(Some(SetTime::At(*mtime)));
            sysfs::utimens_at(fd, OsStr::new(""), TimeSpec::Omit, mtime)?;
        }
        Ok(())
    }

    /// Notes the modification time that the kernel knows, before a write of its cache changes it.
    pub(crate) fn remember_mtime(
        &self,
        node: &Node,
        fd: BorrowedFd<'_>,
        how: WriteHow<'_>,
    ) -> Result<(), Errno> {
        if how.keep_mtime
            && let Entry::Vacant(slot) = self.mtimes.entry(node.id)
        {
            let t = stat_at(fd, OsStr::new(""))?.stx_mtime;
            slot.insert(Timestamp {
                sec: t.tv_sec,
                nsec: t.tv_nsec,
            });
        }
        Ok(())
    }

    /// fallocate with the mode bits of fallocate(2).
    ///
    /// # Errors
    /// `EOPNOTSUPP` for what upper's file system can't, and its other errors.
    pub fn fallocate(
        &self,
        id: u64,
        mode: u32,
        offset: u64,
        length: u64,
        how: WriteHow<'_>,
    ) -> Result<(), Errno> {
        let node = self.file_node(id)?;
        let extends =
            FallocateFlags::from_bits_retain(mode) == FallocateFlags::KEEP_SIZE || mode == 0;
        if node.protection().immutable || (node.protection().append_only && !extends) {
            return Err(Errno::PERM);
        }
        self.ensure_upper(&node, CopyData::All)?;
        let fd = self.write_fd(&node)?;
        let flags = FallocateFlags::from_bits_retain(mode);
        self.remember_mtime(&node, fd.as_fd(), how)?;
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&*fd, flags, offset, length))?;
        self.clear_suidgid(fd.as_fd(), OsStr::new(""), how.unprivileged)?;
        self.restore_mtime(&node, fd.as_fd(), how)
    }

    /// The next data or hole at or after `offset`.
    ///
    /// # Errors
    /// `ENXIO` beyond the end.
    pub fn seek_hole_data(&self, id: u64, offset: u64, hole: bool) -> Result<u64, Errno> {
        let node = self.file_node(id)?;
        let fd = self.read_fd(&node)?;
        // SEEK_DATA and SEEK_HOLE give the answer as result; the offset itself is nobody's.
        let to = if hole {
            SeekFrom::Hole(offset)
        } else {
            SeekFrom::Data(offset)
        };
        rustix::fs::seek(&*fd, to)
    }

    /// Copies between two files of the mount inside the kernel; clones where the file system can.
    ///
    /// # Errors
    /// Those of copy_file_range(2). `EXDEV` and `EOPNOTSUPP` make the kernel copy through its
    /// page cache.
    pub fn copy_range(
        &self,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        length: u64,
        how: WriteHow<'_>,
    ) -> Result<u64, Errno> {
        let source = self.file_node(from)?;
        let target = self.file_node(to)?;
        if target.protection().any() {
            self.check_append(&target, to_offset, &[])?;
            let size = self.with_object(&target, stat_at)?.stx_size;
            if to_offset < size {
                return Err(Errno::PERM);
            }
        }
        self.ensure_upper(&target, CopyData::All)?;
        let source_fd = self.read_fd(&source)?;
        let target_fd = self.write_fd(&target)?;
        self.remember_mtime(&target, target_fd.as_fd(), how)?;
        let (mut source_at, mut target_at) = (from_offset, to_offset);
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        let copied = rustix::io::retry_on_intr(|| {
            rustix::fs::copy_file_range(
                &*source_fd,
                Some(&mut source_at),
                &*target_fd,
                Some(&mut target_at),
                length,
            )
        })?;
        self.clear_suidgid(target_fd.as_fd(), OsStr::new(""), how.unprivileged)?;
        self.restore_mtime(&target, target_fd.as_fd(), how)?;
        Ok(copied as u64)
    }

    /// Makes the contents (and, unless `data_only`, the attributes) of a file or the names in a
    /// directory durable. A lower object is durable already.
    ///
    /// # Errors
    /// `EIO`, `ENOSPC` and what else a deferred write can end with.
    pub fn sync(&self, id: u64, data_only: bool) -> Result<(), Errno> {
        if self.config.volatile || !self.config.fsync {
            return Ok(());
        }
        let node = self.node(id)?;
        if !node.place.read().has_upper() && !self.is_root(&node) {
            return Ok(());
        }
        if node.kind == Kind::File {
            let fd = match self.write_fd(&node) {
                Ok(fd) => fd,
                Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) => self.read_fd(&node)?,
                Err(e) => return Err(e),
            };
            return if data_only {
                rustix::fs::fdatasync(&*fd)
            } else {
                rustix::fs::fsync(&*fd)
            };
        }
        if node.kind == Kind::Dir && self.upper.is_some() {
            let fd = self.upper_dir_fd(&node)?;
            let dir = rustix::fs::openat(
                fd.as_fd(),
                c".",
                super::layer::DIR_READ,
                rustix::fs::Mode::empty(),
            )?;
            return rustix::fs::fsync(&dir);
        }
        Ok(())
    }

    /// Makes everything in upper durable.
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn sync_all(&self) -> Result<(), Errno> {
        match &self.upper {
            Some(upper) if !self.config.volatile && self.config.fsync => {
                rustix::fs::syncfs(&upper.work.dir)
            }
            _ => Ok(()),
        }
    }
}

/// Opens one file for I/O; the access check was the kernel's.
pub(crate) fn open_for(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    access: OFlags,
) -> Result<OwnedFd, Errno> {
    if name.is_empty() {
        return crate::sys::fs::reopen(dir, access | OFlags::CLOEXEC | OFlags::NONBLOCK);
    }
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty())
}
