//! Lookup: which objects of which layers make up a name of the merged tree.
//!
//! Follows `ovl_lookup` in fs/overlayfs/namei.c: upper first, then the lowers from top to bottom;
//! a whiteout ends the search, an opaque directory ends it after itself, a redirect changes the
//! path for the layers below the one that it was found in.

use rustix::fs::Statx;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::attr::{dev_of, is_dir, is_file, is_whiteout, stat_opt};
use super::descent::{Descent, Step};
use super::flags::Protection;
use super::layer::{AufsFlag, DirFd, LowerDir, NO_INO};
use super::listing::{Hint, InLower, Top};
use super::marks::{DirMarks, Unasked};
use super::node::{DataAt, DirPart, LowerFile, Node};
use super::{Overlay, RedirectDir};
use crate::format::keys::OverlayKey;
use crate::format::redirect::Redirect;
use crate::format::whiteout::{AufsName, classify};
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

/// One layer's answer for a single name.
#[allow(clippy::large_enum_variant)] // lives on the stack for a moment; a box would cost more
pub(crate) enum Single {
    Absent,
    /// Hidden: the search ends here.
    Whiteout,
    Object(Statx),
}

/// The same, of a step on the way down.
#[allow(clippy::large_enum_variant)] // likewise
enum Met<'a> {
    Absent,
    Whiteout,
    /// In this directory; without attributes, it is a directory itself.
    Object(DirFd<'a>, Option<Statx>),
}

/// What a directory of a lower leaves of the layers below it.
enum Below {
    Nothing,
    /// It has no marks in the form of files that hide them.
    Asked,
    /// It may have some.
    Unasked,
}

/// The directories of lowers that one of the merged tree is made of, top to bottom.
#[derive(Default)]
struct Stack {
    dirs: Vec<Arc<LowerDir>>,
    /// (`st_dev`, `st_ino`) and statx of the first.
    first: Option<((u64, u64), Statx)>,
}

impl Stack {
    /// `st`: that of the first has to be known.
    fn push(&mut self, dir: Arc<LowerDir>, st: Option<Statx>) {
        let key = (dir.dev, dir.ino);
        self.first = self.first.or(st.map(|st| (key, st)));
        self.dirs.push(dir);
    }
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
        let (hint, _) = self.hint(parent, name);
        self.resolve_hinted(parent, name, hint)
    }

    /// [`resolve`](Self::resolve) for a caller that holds the directory's `names` lock: where it is asked often,
    /// the directory is listed.
    pub(crate) fn resolve_locked(
        &self,
        parent: &Node,
        name: &OsStr,
    ) -> Result<Option<Found>, Errno> {
        let (mut hint, more) = self.hint(parent, name);
        if more && self.list_for_lookups(parent) {
            (hint, _) = self.hint(parent, name);
        }
        self.resolve_hinted(parent, name, hint)
    }

    fn hint(&self, parent: &Node, name: &OsStr) -> (Hint, bool) {
        let lowers = parent.dir.as_ref().map_or(0, |d| d.lowers().len());
        self.listings.hint(parent.id, name, lowers)
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
        chosen: Option<Vec<InLower>>,
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
        let mut unasked = Unasked::default();
        if top == Top::Upper && parent.place.read().has_upper() {
            let fd = self.upper_dir_fd(parent)?;
            match self.object(fd.as_fd(), name, self.marks_whiteouts(dir))? {
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
                        return Ok(self.found_dir(Some((st, marks)), Stack::default()));
                    }
                    let mut marks = self.dir_attributes(fd.as_fd(), name)?;
                    let redirected = marks.redirect.is_some();
                    if !marks.opaque && (redirected || !dir.lowers().is_empty()) {
                        marks.opaque = self.has_opaque_mark(fd.as_fd(), name)?
                            || (redirected && self.aufs_probe(fd.as_fd(), name, &dir.aufs)?);
                    }
                    if let Some(redirect) = &marks.redirect {
                        descent.redirect(redirect);
                    }
                    found_upper = Some((st, marks));
                }
            }
            unasked.set_upper(fd, name, &dir.aufs);
        }
        self.resolve_lowers(descent, found_upper, unasked)
    }

    /// The part of [`resolve`](Self::resolve) below upper.
    fn resolve_lowers(
        &self,
        mut descent: Descent,
        found_upper: Option<(Statx, DirMarks)>,
        mut unasked: Unasked<'_>,
    ) -> Result<Option<Found>, Errno> {
        let mut stack = Stack::default();
        if found_upper.as_ref().is_some_and(|(_, m)| m.opaque) {
            return Ok(self.found_dir(found_upper, stack));
        }
        let in_dirs = found_upper.is_some();
        while let Some(mut step) = descent.next(self)? {
            // Attributes are those of the first.
            step.is_dir &= !stack.dirs.is_empty();
            let (fd, st) = match self.meet(&step)? {
                Met::Object(fd, st) => (fd, st),
                Met::Whiteout => break,
                Met::Absent if step.last_here => break,
                Met::Absent if step.from_root && self.hides_below(&step.at, &step.name)? => break,
                Met::Absent => {
                    unasked.push(step);
                    continue;
                }
            };
            // Hidden by directories above it, or by marks.
            let beneath = in_dirs || !stack.dirs.is_empty();
            let other = st.filter(|st| !is_dir(st));
            if (beneath && other.is_some()) || unasked.hide(self)? {
                break;
            }
            if let Some(st) = other {
                return self.found_lower_file(fd, &step, st, descent).map(Some);
            }
            match self.add_lower_dir(&fd, &step, st, &mut descent, &mut stack)? {
                Below::Nothing => break,
                Below::Asked => {}
                Below::Unasked => unasked.push(step),
            }
        }
        Ok(self.found_dir(found_upper, stack))
    }

    /// Adds a directory of a lower layer to the stack.
    fn add_lower_dir(
        &self,
        fd: &DirFd<'_>,
        step: &Step,
        st: Option<Statx>,
        descent: &mut Descent,
        stack: &mut Stack,
    ) -> Result<Below, Errno> {
        let (fd, at, name) = (fd.as_fd(), &step.at, &*step.name);
        // In the last layer there is nothing that marks could hide or lead to.
        let last = descent.is_last(self, at);
        let marks = match last {
            true => DirMarks::default(),
            false => self.dir_attributes(fd, name)?,
        };
        let key = st.map_or((at.dev, NO_INO), |st| (dev_of(&st), st.stx_ino));
        let dir = LowerDir::new(
            at.layer,
            key,
            Some(Arc::clone(at)),
            name,
            marks.xattr_whiteouts,
        );
        let mut stop = step.last_here || marks.opaque;
        let mut below = Below::Unasked;
        if let Some(redirect) = &marks.redirect {
            let opaque = marks.opaque || self.has_opaque_file(&dir)?;
            stop |= opaque || self.hides_below(at, name)?;
            // What it leads to is found also where the way to this one ended at an opaque directory.
            stop &= opaque || matches!(redirect, Redirect::Relative(_));
            descent.redirect(redirect);
            below = Below::Asked;
        }
        stack.push(dir, st);
        Ok(if stop { Below::Nothing } else { below })
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
        match self.object(fd, name, xattr_whiteouts)? {
            Single::Absent if self.aufs_probe(fd, name, aufs)? => Ok(Single::Whiteout),
            other => Ok(other),
        }
    }

    /// [`single`](Self::single) without asking for a `.wh.NAME`.
    fn object(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
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
            None => Ok(Single::Absent),
        }
    }

    /// Looks at a step's name. Where many directories are asked, most have nothing: they aren't opened.
    fn meet(&self, step: &Step) -> Result<Met<'_>, Errno> {
        let at = &step.at;
        if step.of_many && !step.is_dir && self.lowers.lacks(&self.fds, at, &step.name) {
            return Ok(Met::Absent);
        }
        let fd = self.lowers.dir_fd(&self.fds, at)?;
        if step.is_dir {
            return Ok(Met::Object(fd, None));
        }
        Ok(
            match self.object(fd.as_fd(), &step.name, at.xattr_whiteouts)? {
                Single::Absent => Met::Absent,
                Single::Whiteout => Met::Whiteout,
                Single::Object(st) => Met::Object(fd, Some(st)),
            },
        )
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
        let mut descent = Descent::new(dir, 0, None, name);
        let mut unasked = Unasked::default();
        while let Some(step) = descent.next(self)? {
            match self.meet(&step)? {
                Met::Object(..) => return Ok(!unasked.hide(self)?),
                Met::Whiteout => return Ok(false),
                Met::Absent => unasked.push(step),
            }
        }
        Ok(false)
    }

    /// The directory made of upper's part and the lowers' parts, if there is any.
    fn found_dir(&self, upper: Option<(Statx, DirMarks)>, stack: Stack) -> Option<Found> {
        let first = stack.first;
        let (stat, upper_ino, marks) = match (upper, first) {
            (Some((st, marks)), _) => (st, st.stx_ino, marks),
            (None, Some((_, st))) => (st, 0, DirMarks::default()),
            (None, None) => return None,
        };
        Some(Found {
            stat,
            upper_ino,
            upper_alias: upper_ino != 0,
            identity: first.map_or((dev_of(&stat), stat.stx_ino), |(key, _)| key),
            protection: match upper_ino {
                0 => stack.dirs.first().map_or_else(Protection::default, |dir| {
                    Protection::of_lower(self.lowers.layer(dir), &stat)
                }),
                _ => marks.protection,
            },
            what: FoundKind::Dir {
                lowers: stack.dirs,
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
