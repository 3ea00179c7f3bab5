//! Marks: what says of a directory that layers below don't count, or are found elsewhere.
//!
//! Attributes are read together with the directory that has them. Marks that are files, as AUFS and OCI layers have
//! them, would take one more system call for each layer and name, although hardly any layer has some and most names
//! are in one layer only. So they're asked for once something is found that they would hide.

use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use super::Overlay;
use super::attr::stat_opt;
use super::descent::Step;
use super::flags::Protection;
use super::layer::{AufsFlag, AufsMarks, DirFd, LowerDir};
use crate::format::keys::OverlayKey;
use crate::format::redirect::Redirect;
use crate::format::whiteout::{OPAQUE_MARK, whiteout_name};
use crate::sys::xattr;

/// The marks on one directory of one layer.
#[derive(Default)]
pub(crate) struct DirMarks {
    pub opaque: bool,
    pub xattr_whiteouts: bool,
    pub redirect: Option<Redirect>,
    pub protection: Protection,
}

/// The places above, from top to bottom, that may have marks which hide what is found below.
#[derive(Default)]
pub(crate) struct Unasked<'a> {
    upper: Option<(DirFd<'a>, &'a OsStr, &'a AufsFlag)>,
    lowers: Vec<Step>,
}

impl<'a> Unasked<'a> {
    /// Upper may have a `.wh.NAME`.
    pub(crate) fn set_upper(&mut self, fd: DirFd<'a>, name: &'a OsStr, aufs: &'a AufsFlag) {
        if aufs.get() != AufsMarks::Absent {
            self.upper = Some((fd, name, aufs));
        }
    }

    /// So may this place, and it may be opaque.
    pub(crate) fn push(&mut self, step: Step) {
        let at = &step.at;
        if at.aufs.get() != AufsMarks::Absent || at.opaque_mark.get() != Some(false) {
            self.lowers.push(step);
        }
    }

    /// Do they hide what is below? What is added later is asked next time.
    pub(crate) fn hide(&mut self, overlay: &Overlay) -> Result<bool, Errno> {
        if let Some((fd, name, aufs)) = self.upper.take()
            && overlay.aufs_probe(fd.as_fd(), name, aufs)?
        {
            return Ok(true);
        }
        for step in self.lowers.drain(..) {
            if overlay.hides_below(&step.at, &step.name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Overlay {
    /// Does a directory of a lower, which may have `name` itself, hide that of the layers below?
    pub(crate) fn hides_below(&self, at: &LowerDir, name: &OsStr) -> Result<bool, Errno> {
        if self.has_opaque_file(at)? {
            return Ok(true);
        }
        if at.aufs.get() == AufsMarks::Absent {
            return Ok(false);
        }
        match whiteout_name(name) {
            Some(mark) => self.has_mark(at, OsStr::from_bytes(&mark)),
            None => Ok(false),
        }
    }

    /// Does a directory of a lower hold the file that makes it opaque? Asked once.
    pub(crate) fn has_opaque_file(&self, at: &LowerDir) -> Result<bool, Errno> {
        if let Some(known) = at.opaque_mark.get() {
            return Ok(known);
        }
        let opaque = self.has_mark(at, OsStr::from_bytes(OPAQUE_MARK))?;
        at.opaque_mark.set(opaque);
        Ok(opaque)
    }

    fn has_mark(&self, at: &LowerDir, mark: &OsStr) -> Result<bool, Errno> {
        if self.lowers.lacks(&self.fds, at, mark) {
            return Ok(false);
        }
        let fd = self.lowers.dir_fd(&self.fds, at)?;
        Ok(stat_opt(fd.as_fd(), mark)?.is_some())
    }

    /// Is there a `.wh.NAME`?
    pub(crate) fn aufs_probe(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
        aufs: &AufsFlag,
    ) -> Result<bool, Errno> {
        if aufs.get() == AufsMarks::Absent {
            return Ok(false);
        }
        // A name too long for the mark has none.
        let Some(mark) = whiteout_name(name) else {
            return Ok(false);
        };
        Ok(stat_opt(fd, OsStr::from_bytes(&mark))?.is_some())
    }

    /// Reads the marks of the directory `name` in `fd`.
    ///
    /// # Errors
    /// `EPERM` for a redirect when redirects are not followed, as the kernel does.
    pub(crate) fn dir_marks(&self, fd: BorrowedFd<'_>, name: &OsStr) -> Result<DirMarks, Errno> {
        let mut marks = self.dir_attributes(fd, name)?;
        if !marks.opaque && self.has_opaque_mark(fd, name)? {
            marks.opaque = true;
        }
        Ok(marks)
    }

    /// [`dir_marks`](Self::dir_marks) without those that are files in the directory.
    pub(crate) fn dir_attributes(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<DirMarks, Errno> {
        let mut marks = DirMarks::default();
        let mut value = [0u8; 4];
        for attr in xattr::list_at(fd, name)?.split(|b| *b == 0) {
            if attr == self.ns.key(OverlayKey::Opaque).to_bytes() {
                let n = xattr::get_at_into(fd, name, self.ns.key(OverlayKey::Opaque), &mut value);
                match n {
                    Ok(Some(1)) if value[0] == b'y' => marks.opaque = true,
                    Ok(Some(1)) if value[0] == b'x' => marks.xattr_whiteouts = true,
                    Ok(_) | Err(Errno::RANGE) => {}
                    Err(e) => return Err(e),
                }
            } else if attr == self.ns.key(OverlayKey::Protattr).to_bytes() {
                marks.protection = self.stored_protection(fd, name)?;
            } else if attr == b"user.fuseoverlayfs.opaque" {
                marks.opaque = true;
            } else if attr == self.ns.key(OverlayKey::Redirect).to_bytes() {
                if !self.follow_redirects {
                    return Err(Errno::PERM);
                }
                let value = xattr::get_at(fd, name, self.ns.key(OverlayKey::Redirect))?;
                // A redirect that can't be understood is an error, not an empty directory.
                let parse = |v: Vec<u8>| Redirect::parse(&v).map_err(|_| Errno::IO);
                marks.redirect = value.map(parse).transpose()?;
            }
        }
        Ok(marks)
    }

    /// Is there a `.wh..wh..opq` in the directory?
    pub(crate) fn has_opaque_mark(&self, fd: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
        let mut path = name.to_os_string();
        if path.len() > 240 {
            let dir = super::layer::open_names(fd, std::iter::once(name))?;
            return Ok(stat_opt(dir.as_fd(), OsStr::from_bytes(OPAQUE_MARK))?.is_some());
        }
        if !path.is_empty() {
            path.push("/");
        }
        path.push(OsStr::from_bytes(OPAQUE_MARK));
        Ok(stat_opt(fd, &path)?.is_some())
    }
}
