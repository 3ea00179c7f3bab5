//! Files with attributes only (`overlay.metacopy`): finding their data, reading it where it is, and
//! completing the copy when the data is about to change.

use rustix::fs::{OFlags, Statx};
use rustix::io::Errno;
use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::Overlay;
use super::attr::{Kind, is_file, stat_at};
use super::copy_up::{CopyData, copy_data, set_times};
use super::descent::Descent;
use super::fds::FdKey;
use super::file::open_for;
use super::flags::Protection;
use super::layer::open_names;
use super::lookup::Single;
use super::node::{DataAt, LowerFile, Node, Place};
use crate::format::handle::OverlayHandle;
use crate::format::keys::OverlayKey;
use crate::format::metacopy::Metacopy;
use crate::format::redirect::Redirect;
use crate::sys::fs as sysfs;
use crate::sys::xattr::{self, SetFlags};

const CAPABILITIES: &CStr = c"security.capability";

/// The marks on an object that is not a directory.
#[derive(Default)]
pub(crate) struct FileMarks {
    /// What it was copied from.
    pub origin: Option<OverlayHandle>,
    /// Is its data below?
    pub metacopy: bool,
    /// Where, if not under the same name.
    pub redirect: Option<Redirect>,
    /// Is it immutable or append-only?
    pub protection: Protection,
}

impl LowerFile {
    /// The file as the place of somebody's data. Its name is its own.
    pub(crate) fn as_data(&self, st: &Statx) -> DataAt {
        DataAt::Lower {
            dir: Arc::clone(&self.dir),
            name: self.name.clone().unwrap_or_default(),
            blocks: st.stx_blocks,
        }
    }
}

impl Overlay {
    /// Reads the marks on an object of upper.
    ///
    /// # Errors
    /// `EIO` for a mark that can't be understood and would lead to wrong data.
    pub(crate) fn file_marks(&self, fd: BorrowedFd<'_>, name: &OsStr) -> Result<FileMarks, Errno> {
        let mut marks = FileMarks::default();
        // Most have none: one call tells.
        for key in xattr::list_at(fd, name)?.split(|b| *b == 0) {
            if key == self.ns.key(OverlayKey::Origin).to_bytes() {
                marks.origin = self.origin_of(fd, name)?;
            } else if key == self.ns.key(OverlayKey::Metacopy).to_bytes() {
                self.add_metacopy(fd, name, &mut marks)?;
            } else if key == self.ns.key(OverlayKey::Protattr).to_bytes() {
                marks.protection = self.stored_protection(fd, name)?;
            }
        }
        Ok(marks)
    }

    /// Reads whether a file is a metacopy, and where its data is.
    ///
    /// # Errors
    /// As [`file_marks`](Self::file_marks).
    pub(crate) fn metacopy_marks(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<FileMarks, Errno> {
        let mut marks = FileMarks::default();
        self.add_metacopy(fd, name, &mut marks)?;
        Ok(marks)
    }

    fn add_metacopy(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
        marks: &mut FileMarks,
    ) -> Result<(), Errno> {
        let Some(value) = xattr::get_at(fd, name, self.ns.key(OverlayKey::Metacopy))? else {
            return Ok(());
        };
        Metacopy::check(&value).map_err(|_| Errno::IO)?;
        marks.metacopy = true;
        let redirect = xattr::get_at(fd, name, self.ns.key(OverlayKey::Redirect))?;
        let parse = |value: Vec<u8>| Redirect::parse(&value).map_err(|_| Errno::IO);
        marks.redirect = redirect.map(parse).transpose()?;
        Ok(())
    }

    /// The marks on an entry of the index.
    pub(crate) fn index_marks(&self, hex: &str) -> Result<FileMarks, Errno> {
        let index = self.upper()?.work.index.as_ref().ok_or(Errno::IO)?;
        self.file_marks(index.as_fd(), hex.as_ref())
    }

    /// The parsed `overlay.origin` of an upper object.
    pub(crate) fn origin_of(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Option<OverlayHandle>, Errno> {
        let mut buf = [0u8; 160];
        match xattr::get_at_into(fd, name, self.ns.key(OverlayKey::Origin), &mut buf) {
            Ok(Some(n)) => Ok(OverlayHandle::parse(&buf[..n]).ok().flatten()),
            Ok(None) | Err(Errno::RANGE) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Goes on with the search that found a metacopy with these marks, until there is data.
    /// `in_lower`: the metacopy is in a lower.
    ///
    /// # Errors
    /// `EPERM` where the mount doesn't follow metacopies or redirects, `EIO` when there is no data:
    /// both as the kernel. Never is the hole shown that the file holds.
    pub(crate) fn find_data(
        &self,
        mut descent: Descent,
        marks: &FileMarks,
        mut in_lower: bool,
    ) -> Result<DataAt, Errno> {
        let mut redirect = marks.redirect.clone();
        if let Some(redirect) = &redirect {
            descent.redirect(redirect);
        }
        descent.heed_marks();
        let refused = || !self.config.metacopy;
        while let Some(step) = descent.next(self)? {
            if refused() || (redirect.is_some() && !self.follow_redirects) {
                return Err(Errno::PERM);
            }
            let at = &step.at;
            let fd = self.lowers.dir_fd(&self.fds, at)?;
            match self.single(fd.as_fd(), &step.name, &at.aufs, at.xattr_whiteouts)? {
                Single::Object(st) if is_file(&st) => {
                    let found = self.metacopy_marks(fd.as_fd(), &step.name)?;
                    if !found.metacopy {
                        return Ok(DataAt::Lower {
                            dir: Arc::clone(at),
                            name: (*step.name).into(),
                            blocks: st.stx_blocks,
                        });
                    }
                    in_lower = true;
                    if let Some(found) = found.redirect {
                        descent.redirect(&found);
                        redirect = Some(found);
                    }
                }
                Single::Absent => {}
                Single::Object(_) | Single::Whiteout => break,
            }
            if step.last_here {
                break;
            }
        }
        let data_only = self.lowers.layers.len() > self.lowers.merged;
        match redirect {
            // Needs no leave of `metacopy` and `redirect_dir`: whoever made the lowers made this.
            Some(Redirect::Absolute(path)) if in_lower && data_only => Ok(DataAt::DataOnly(path)),
            _ if refused() => Err(Errno::PERM),
            _ => Err(Errno::IO),
        }
    }

    /// Opens the file that holds the data.
    ///
    /// # Errors
    /// `ENOENT` when none of the data-only lowers has it, and what the layer returns.
    pub(crate) fn open_data(&self, at: &DataAt) -> Result<OwnedFd, Errno> {
        match at {
            DataAt::Lower { dir, name, .. } => {
                let fd = self.lowers.dir_fd(&self.fds, dir)?;
                open_for(fd.as_fd(), name, OFlags::RDONLY)
            }
            DataAt::DataOnly(path) => self.open_data_only(path),
        }
    }

    fn open_data_only(&self, path: &[OsString]) -> Result<OwnedFd, Errno> {
        let (name, parents) = path.split_last().ok_or(Errno::IO)?;
        for layer in self.lowers.layers.iter().skip(self.lowers.merged) {
            let parent = match parents {
                [] => None,
                _ => match open_names(layer.root.as_fd(), parents.iter().map(|n| &**n)) {
                    Ok(fd) => Some(fd),
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                    Err(e) => return Err(e),
                },
            };
            let dir = parent.as_ref().map_or(layer.root.as_fd(), |fd| fd.as_fd());
            match open_for(dir, name, OFlags::RDONLY) {
                Ok(fd) if is_file(&stat_at(fd.as_fd(), OsStr::new(""))?) => return Ok(fd),
                Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::NOENT)
    }

    /// Marks a copy that is being built as one without data, of the size of its original.
    pub(crate) fn mark_metacopy(&self, copy: BorrowedFd<'_>, size: u64) -> Result<(), Errno> {
        rustix::fs::ftruncate(copy, size)?;
        let key = self.ns.key(OverlayKey::Metacopy);
        xattr::set_at(copy, OsStr::new(""), key, b"", SetFlags::Any)
    }

    /// Gives a file in upper the data that it lacks. Nothing but its mark says so, which goes last:
    /// a crash before leaves what was there.
    ///
    /// # Errors
    /// What reading the lower and writing upper return.
    pub(crate) fn ensure_data(&self, node: &Arc<Node>, data: CopyData) -> Result<(), Errno> {
        if node.kind != Kind::File || node.place.read().data().is_none() {
            return Ok(());
        }
        let _copying = node.copying.lock();
        let Some(at) = node.place.read().data().cloned() else {
            return Ok(());
        };
        let here = OsStr::new("");
        let source = self.open_data(&at)?;
        let target = self.with_object(node, |dir, name| open_for(dir, name, OFlags::RDWR))?;
        let target = target.as_fd();
        let before = stat_at(target, here)?;
        let size = stat_at(source.as_fd(), here)?.stx_size;
        if size < before.stx_size {
            return Err(Errno::IO); // the data is not this file's
        }
        let length = match data {
            CopyData::Prefix(n) => n.min(before.stx_size),
            CopyData::All | CopyData::Nothing => before.stx_size,
        };
        // Writing takes capabilities away, and from the unprivileged set-id bits.
        let capabilities = xattr::get_at(target, here, CAPABILITIES)?;
        let copied = copy_data(source.as_fd(), target, length, size)?;
        self.counters.copy_up_bytes.add(copied);
        if let Some(value) = capabilities {
            xattr::set_at(target, here, CAPABILITIES, &value, SetFlags::Any)?;
        }
        let after = stat_at(target, here)?;
        if after.stx_mode != before.stx_mode {
            sysfs::chmod_at(target, here, u32::from(before.stx_mode) & 0o7777)?;
        }
        set_times(target, here, &before)?;
        if length > 0 && !self.config.volatile {
            rustix::fs::fdatasync(target)?;
        }
        let mut place = node.place.write();
        match xattr::remove_at(target, here, self.ns.key(OverlayKey::Metacopy)) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
        place.complete();
        self.fds.remove(FdKey::Read(node.id));
        Ok(())
    }
}

impl DataAt {
    /// The space that a file with these attributes takes, in units of 512 bytes.
    pub(crate) fn blocks(&self, st: &Statx) -> u64 {
        match self {
            DataAt::Lower { blocks, .. } => *blocks,
            // Not searched for before it is needed: as if the file had no holes.
            DataAt::DataOnly(_) => {
                let block = u64::from(st.stx_blksize.max(512));
                st.stx_size.div_ceil(block).saturating_mul(block) / 512
            }
        }
    }
}

impl Place {
    /// Where the contents are, if upper or the lower has attributes only.
    pub(crate) fn data(&self) -> Option<&DataAt> {
        self.extra.as_ref().and_then(|e| e.data.as_ref())
    }

    /// The object has its data itself now.
    fn complete(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.data = None;
            extra.redirect = None;
        }
    }
}
