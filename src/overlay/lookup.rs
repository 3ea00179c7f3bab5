//! Lookup: which objects of which layers make up a name of the merged tree.
//!
//! Follows `ovl_lookup` in fs/overlayfs/namei.c: upper first, then the lowers from top to bottom;
//! a whiteout ends the search, an opaque directory ends it after itself, a redirect changes the
//! path for the layers below the one that it was found in.

use rustix::fs::Statx;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::attr::{dev_of, is_dir, is_file, is_whiteout, stat_opt};
use super::descent::{Descent, Step};
use super::flags::Protection;
use super::layer::{AufsFlag, AufsMarks, DirFd, LowerDir};
use super::listing::{Hint, Top};
use super::node::{DataAt, DirPart, LowerFile, Node};
use super::{Overlay, RedirectDir};
use crate::format::keys::OverlayKey;
use crate::format::redirect::Redirect;
use crate::format::whiteout::{AufsName, OPAQUE_MARK, classify, whiteout_name};
use crate::sys::xattr;

/// What a name of the merged tree resolves to.
pub(crate) struct Found {
    /// statx of the topmost object.
    pub stat: Statx,
    /// `st_ino` in upper, 0 if it isn't there.
    pub upper_ino: u64,
    /// Is the name itself in upper?
    pub upper_alias: bool,
    /// (`st_dev`, `st_ino`) that the inode number is made from.
    pub identity: (u64, u64),
    /// Is it immutable or append-only?
    pub protection: Protection,
    pub what: FoundKind,
}

pub(crate) enum FoundKind {
    Dir {
        lowers: Vec<Arc<LowerDir>>,
        redirect: Option<Redirect>,
        xattr_whiteouts: bool,
    },
    Other {
        lower: Option<LowerFile>,
        index: Option<Box<str>>,
        /// Where the contents are, if the object that was found has attributes only.
        data: Option<DataAt>,
        /// The redirect that upper's attributes carry then.
        redirect: Option<Redirect>,
    },
}

/// The marks on one directory of one layer.
#[derive(Default)]
pub(crate) struct DirMarks {
    pub opaque: bool,
    pub xattr_whiteouts: bool,
    pub redirect: Option<Redirect>,
    pub protection: Protection,
}

/// One layer's answer for a single name.
#[allow(clippy::large_enum_variant)] // lives on the stack for a moment; a box would cost more
pub(crate) enum Single {
    Absent,
    /// Hidden: the search ends here.
    Whiteout,
    Object(Statx),
}

impl Overlay {
    /// Is this a name that the mount keeps to itself (`.wh.*`)?
    pub(crate) fn is_reserved_name(&self, name: &OsStr) -> bool {
        !matches!(classify(name), AufsName::Plain)
    }

    /// Resolves `name` in `parent`. `Ok(None)`: there is no such name.
    ///
    /// # Errors
    /// What the layers' file systems return; `ENOTDIR` if `parent` is not a directory.
    pub(crate) fn resolve(&self, parent: &Node, name: &OsStr) -> Result<Option<Found>, Errno> {
        self.resolve_hinted(parent, name, self.listings.hint(parent.id, name))
    }

    /// [`resolve`](Self::resolve) for a caller that holds the directory's `names` lock: where it is asked often,
    /// the directory is listed.
    pub(crate) fn resolve_locked(
        &self,
        parent: &Node,
        name: &OsStr,
    ) -> Result<Option<Found>, Errno> {
        let mut hint = self.listings.hint(parent.id, name);
        if matches!(hint, Hint::Unknown) && self.list_for_lookups(parent) {
            hint = self.listings.hint(parent.id, name);
        }
        self.resolve_hinted(parent, name, hint)
    }

    fn resolve_hinted(
        &self,
        parent: &Node,
        name: &OsStr,
        hint: Hint,
    ) -> Result<Option<Found>, Errno> {
        match hint {
            Hint::Unknown => self.resolve_from(parent, name, Top::Upper, None),
            Hint::Absent => Ok(None),
            Hint::In(top, lowers) => self.resolve_from(parent, name, top, lowers),
        }
    }

    /// [`resolve`](Self::resolve) without asking a cached listing.
    pub(crate) fn resolve_unhinted(
        &self,
        parent: &Node,
        name: &OsStr,
    ) -> Result<Option<Found>, Errno> {
        self.resolve_from(parent, name, Top::Upper, None)
    }

    /// Resolves a name that is known not to be in the layers above `top`, nor in lowers that are not `chosen`.
    fn resolve_from(
        &self,
        parent: &Node,
        name: &OsStr,
        top: Top,
        chosen: Option<Box<[u16]>>,
    ) -> Result<Option<Found>, Errno> {
        let dir = parent.dir.as_deref().ok_or(Errno::NOTDIR)?;
        if self.is_reserved_name(name) {
            return Ok(None);
        }
        let skip = match top {
            Top::Upper => 0,
            Top::Lower(n) => usize::from(n),
        };
        let mut descent = Descent::new(dir, skip, chosen, name);
        let mut found_upper: Option<(Statx, DirMarks)> = None;
        if top == Top::Upper && parent.place.read().has_upper() {
            let fd = self.upper_dir_fd(parent)?;
            match self.single(fd.as_fd(), name, &dir.aufs, self.marks_whiteouts(dir))? {
                Single::Whiteout => return Ok(None),
                Single::Absent => {}
                Single::Object(st) if !is_dir(&st) => {
                    let found = self.found_upper_file(fd.as_fd(), name, st, descent)?;
                    return Ok(Some(found));
                }
                Single::Object(st) => {
                    if dir.lowers().is_empty() && !self.follow_redirects {
                        let protection = self.stored_protection(fd.as_fd(), name)?;
                        let marks = DirMarks {
                            protection,
                            ..DirMarks::default()
                        };
                        return Ok(self.found_dir(Some((st, marks)), Vec::new()));
                    }
                    let mut marks = self.dir_marks(fd.as_fd(), name)?;
                    // `.wh.NAME` beside NAME hides NAME of the layers below.
                    marks.opaque |= self.aufs_probe(fd.as_fd(), name, &dir.aufs)?;
                    if let Some(redirect) = &marks.redirect {
                        descent.redirect(redirect);
                    }
                    found_upper = Some((st, marks));
                }
            }
        }
        self.resolve_lowers(descent, found_upper)
    }

    /// The part of [`resolve`](Self::resolve) below upper.
    fn resolve_lowers(
        &self,
        mut descent: Descent,
        found_upper: Option<(Statx, DirMarks)>,
    ) -> Result<Option<Found>, Errno> {
        let mut lowers: Vec<(Arc<LowerDir>, Statx)> = Vec::new();
        if found_upper.as_ref().is_some_and(|(_, m)| m.opaque) {
            return Ok(self.found_dir(found_upper, lowers));
        }
        let in_dirs = found_upper.is_some();
        while let Some(step) = descent.next(self)? {
            let at = &step.at;
            let mut stop = step.last_here;
            let fd = self.lowers.dir_fd(&self.fds, at)?;
            match self.single(fd.as_fd(), &step.name, &at.aufs, at.xattr_whiteouts)? {
                Single::Whiteout => break,
                Single::Absent => {}
                Single::Object(st) if is_dir(&st) => {
                    stop = self.add_lower_dir(&fd, &step, st, &mut descent, &mut lowers)?;
                }
                // Hidden by the directories above it.
                Single::Object(_) if in_dirs || !lowers.is_empty() => break,
                Single::Object(st) => {
                    return self.found_lower_file(fd, &step, st, descent).map(Some);
                }
            }
            if stop {
                break;
            }
        }
        Ok(self.found_dir(found_upper, lowers))
    }

    /// Adds a directory of a lower layer to the stack; `true`: nothing below it counts.
    fn add_lower_dir(
        &self,
        fd: &DirFd<'_>,
        step: &Step,
        st: Statx,
        descent: &mut Descent,
        lowers: &mut Vec<(Arc<LowerDir>, Statx)>,
    ) -> Result<bool, Errno> {
        let (fd, at, name) = (fd.as_fd(), &step.at, &*step.name);
        // In the last layer there is nothing that marks could hide or lead to.
        let last = descent.is_last(self, at);
        let marks = if last {
            DirMarks::default()
        } else {
            self.dir_marks(fd, name)?
        };
        let mut stop = step.last_here || marks.opaque;
        // `.wh.NAME` beside NAME in one layer hides NAME of the layers below only.
        if !stop && !last && self.aufs_probe(fd, name, &at.aufs)? {
            stop = true;
        }
        let key = (dev_of(&st), st.stx_ino);
        let dir = LowerDir::new(
            at.layer,
            key,
            Some(Arc::clone(at)),
            name,
            marks.xattr_whiteouts,
        );
        lowers.push((dir, st));
        if let Some(redirect) = &marks.redirect {
            // What it leads to is found also where the way to this one ended at an opaque directory.
            stop &= marks.opaque || matches!(redirect, Redirect::Relative(_));
            descent.redirect(redirect);
        }
        Ok(stop)
    }

    /// Can upper's part of the directory hold whiteouts in the form of marked files?
    pub(crate) fn marks_whiteouts(&self, dir: &DirPart) -> bool {
        let written = self
            .upper
            .as_ref()
            .is_some_and(|u| u.work.whiteout_mark.is_some());
        dir.xattr_whiteouts || written
    }

    /// Looks at one name in one directory of one layer.
    pub(crate) fn single(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
        aufs: &AufsFlag,
        xattr_whiteouts: bool,
    ) -> Result<Single, Errno> {
        match stat_opt(fd, name)? {
            Some(st) if is_whiteout(&st) => Ok(Single::Whiteout),
            Some(st) if xattr_whiteouts && is_file(&st) && st.stx_size == 0 => {
                let key = self.ns.key(OverlayKey::Whiteout);
                let hidden = xattr::has_at(fd, name, key)?;
                if hidden {
                    return Ok(Single::Whiteout);
                }
                Ok(Single::Object(self.ids.apply(fd, name, st)?))
            }
            Some(st) => Ok(Single::Object(self.ids.apply(fd, name, st)?)),
            None if self.aufs_probe(fd, name, aufs)? => Ok(Single::Whiteout),
            None => Ok(Single::Absent),
        }
    }

    /// Is there a `.wh.NAME`?
    fn aufs_probe(&self, fd: BorrowedFd<'_>, name: &OsStr, aufs: &AufsFlag) -> Result<bool, Errno> {
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
        if !marks.opaque && self.has_opaque_mark(fd, name)? {
            marks.opaque = true;
        }
        Ok(marks)
    }

    /// Is there a `.wh..wh..opq` in the directory?
    fn has_opaque_mark(&self, fd: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
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

    /// An object of upper that is not a directory: where does its inode number come from, and its
    /// data?
    fn found_upper_file(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
        st: Statx,
        descent: Descent,
    ) -> Result<Found, Errno> {
        let marks = self.file_marks(fd, name)?;
        let mut identity = (dev_of(&st), st.stx_ino);
        let mut index = None;
        if let Some(origin) = &marks.origin {
            if let Some(key) = self.origin_identity(origin) {
                identity = key;
            }
            if st.stx_nlink > 1 {
                index = self.index_entry_of(origin, st.stx_ino)?;
            }
        }
        let data = if marks.metacopy && is_file(&st) {
            Some(self.find_data(descent, &marks, false)?)
        } else {
            None
        };
        Ok(Found {
            stat: st,
            upper_ino: st.stx_ino,
            upper_alias: true,
            identity,
            protection: marks.protection,
            what: FoundKind::Other {
                lower: None,
                index,
                redirect: marks.redirect.filter(|_| data.is_some()),
                data,
            },
        })
    }

    /// A lower object that is not a directory; it may have been copied up under another name.
    fn found_lower_file(
        &self,
        fd: DirFd<'_>,
        step: &Step,
        st: Statx,
        descent: Descent,
    ) -> Result<Found, Errno> {
        let (at, name) = (&step.at, &*step.name);
        let identity = (dev_of(&st), st.stx_ino);
        let lower = LowerFile {
            dir: Arc::clone(at),
            name: Some(name.into()),
        };
        let (mut stat, mut upper_ino) = (st, 0);
        let mut protection = Protection::of_lower(self.lowers.layer(at), &st);
        // An empty file has no data to be anywhere else.
        let mut data = None;
        if is_file(&st) && st.stx_size > 0 {
            let marks = self.metacopy_marks(fd.as_fd(), name)?;
            if marks.metacopy {
                data = Some(self.find_data(descent, &marks, true)?);
            }
        }
        let (mut index, mut redirect) = (None, None);
        if st.stx_nlink > 1
            && let Some((hex, upper)) = self.find_index(fd.as_fd(), name, at)?
        {
            (stat, upper_ino) = (upper, upper.stx_ino);
            let marks = self.index_marks(&hex)?;
            protection = marks.protection;
            data = marks
                .metacopy
                .then(|| data.unwrap_or_else(|| lower.as_data(&st)));
            redirect = marks.redirect.filter(|_| data.is_some());
            index = Some(hex);
        }
        Ok(Found {
            stat,
            upper_ino,
            upper_alias: false,
            identity,
            protection,
            what: FoundKind::Other {
                lower: Some(lower),
                index,
                data,
                redirect,
            },
        })
    }

    /// Does a lower of `parent` show something under `name`? (It then needs a whiteout.)
    pub(crate) fn lower_has(&self, parent: &Node, name: &OsStr) -> Result<bool, Errno> {
        let dir = parent.dir.as_deref().ok_or(Errno::NOTDIR)?;
        for at in dir.lowers().iter() {
            let fd = self.lowers.dir_fd(&self.fds, at)?;
            match self.single(fd.as_fd(), name, &at.aufs, at.xattr_whiteouts)? {
                Single::Whiteout => return Ok(false),
                Single::Object(_) => return Ok(true),
                Single::Absent => {}
            }
        }
        Ok(false)
    }

    /// The directory made of upper's part and the lowers' parts, if there is any.
    fn found_dir(
        &self,
        upper: Option<(Statx, DirMarks)>,
        lowers: Vec<(Arc<LowerDir>, Statx)>,
    ) -> Option<Found> {
        let first = lowers.first().map(|(d, st)| ((d.dev, d.ino), *st));
        let (stat, upper_ino, marks) = match (upper, &first) {
            (Some((st, marks)), _) => (st, st.stx_ino, marks),
            (None, Some((_, st))) => (*st, 0, DirMarks::default()),
            (None, None) => return None,
        };
        Some(Found {
            stat,
            upper_ino,
            upper_alias: upper_ino != 0,
            identity: first.map_or((dev_of(&stat), stat.stx_ino), |(key, _)| key),
            protection: match upper_ino {
                0 => lowers
                    .first()
                    .map_or_else(Protection::default, |(dir, st)| {
                        Protection::of_lower(self.lowers.layer(dir), st)
                    }),
                _ => marks.protection,
            },
            what: FoundKind::Dir {
                lowers: lowers.into_iter().map(|(d, _)| d).collect(),
                redirect: marks.redirect,
                xattr_whiteouts: marks.xattr_whiteouts,
            },
        })
    }
}

/// Used by the mount's own set-up.
pub(crate) fn follows(redirect_dir: RedirectDir) -> bool {
    !matches!(redirect_dir, RedirectDir::NoFollow)
}
