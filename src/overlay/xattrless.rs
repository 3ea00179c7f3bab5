//! Read-only mounts of layers in which nothing has an extended attribute.
//!
//! An engine that compares two trees through a mount program asks for the attributes of every object, one
//! request each, although hardly any image has some. After some questions in vain the layers are looked
//! through, which takes a fraction of the time. If nothing has an attribute, `listxattr` and `getxattr` give
//! `ENOSYS`: the kernel does not ask again, and its clients get `EOPNOTSUPP` as from a file system without
//! attributes.
//!
//! Invariant: never with an upper, whose objects get attributes.

use rustix::fs::{Mode, openat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Overlay;
use super::layer::DIR_READ;
use crate::sys::dir::DirReader;
use crate::sys::xattr;

/// Questions in vain before the layers are looked through.
const QUESTIONS: u32 = 256;
/// Counts of questions: nobody looks, or there are attributes.
const NEVER: u32 = u32::MAX;
/// Counts of questions: nothing has an attribute.
const NONE: u32 = u32::MAX - 1;
/// Somebody is looking.
const LOOKING: u32 = u32::MAX - 2;
/// Objects that are looked at, at most: a fraction of a second.
const BUDGET: usize = 100_000;

/// What is known of attributes in the layers.
pub(crate) struct Xattrless(AtomicU32);

impl Xattrless {
    pub(crate) fn new(wanted: bool) -> Xattrless {
        Xattrless(AtomicU32::new(if wanted { 0 } else { NEVER }))
    }

    /// Is it known that nothing has an attribute?
    pub(crate) fn is_sure(&self) -> bool {
        self.0.load(Ordering::Relaxed) == NONE
    }

    /// Counts a question in vain. True for the one that has to look.
    fn count(&self) -> bool {
        let next = |n: u32| match n {
            NEVER | NONE | LOOKING => None,
            n if n >= QUESTIONS => Some(LOOKING),
            n => Some(n + 1),
        };
        let order = Ordering::Relaxed;
        self.0.fetch_update(order, order, next) == Ok(QUESTIONS)
    }
}

impl Overlay {
    /// Is this the name of an attribute that clients may see, as far as it is the layer's to say?
    pub(crate) fn is_shown_xattr(&self, stored: &[u8]) -> bool {
        !stored.starts_with(super::xattrs::FOREIGN_MARKS)
            && !self.ids.hides(stored)
            && self.ns.to_shown(stored).is_some()
    }

    /// An object was found to have no attributes. Looks through the layers when it is time to.
    pub(crate) fn had_no_xattr(&self) {
        if !self.xattrless.count() {
            return;
        }
        let found = match self.layers_have_xattrs() {
            Ok(false) => NONE,
            Ok(true) => NEVER,
            Err(e) => {
                tracing::debug!("looking for attributes in the layers: {e}");
                NEVER
            }
        };
        self.xattrless.0.store(found, Ordering::Relaxed);
    }

    /// `true` also where there is too much to look at.
    fn layers_have_xattrs(&self) -> Result<bool, Errno> {
        let mut left = BUDGET;
        let mut reader = DirReader::new();
        for layer in self.lowers.layers.iter().take(self.lowers.merged) {
            let root = layer.root.as_fd();
            if self.has_shown_xattr(root, OsStr::new(""))? {
                return Ok(true);
            }
            let mut dirs: Vec<OwnedFd> = vec![openat(root, c".", DIR_READ, Mode::empty())?];
            while let Some(dir) = dirs.pop() {
                if self.entries_have_xattrs(dir.as_fd(), &mut reader, &mut dirs, &mut left)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Looks at what is in one directory; adds its directories to `dirs`.
    fn entries_have_xattrs(
        &self,
        dir: BorrowedFd<'_>,
        reader: &mut DirReader,
        dirs: &mut Vec<OwnedFd>,
        left: &mut usize,
    ) -> Result<bool, Errno> {
        let mut names: Vec<(OsString, u8)> = Vec::new();
        reader.read_all(dir, |entry| {
            if entry.name != "." && entry.name != ".." {
                names.push((entry.name.to_os_string(), entry.kind));
            }
        })?;
        for (name, kind) in names {
            if *left == 0 || self.has_shown_xattr(dir, &name)? {
                return Ok(true);
            }
            *left -= 1;
            if matches!(kind, libc::DT_DIR | libc::DT_UNKNOWN) {
                match openat(dir, &name, DIR_READ, Mode::empty()) {
                    Ok(fd) => dirs.push(fd),
                    Err(Errno::NOTDIR | Errno::LOOP) if kind == libc::DT_UNKNOWN => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(false)
    }

    fn has_shown_xattr(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
        let list = xattr::list_at(dir, name)?;
        let mut names = list.split(|b| *b == 0).filter(|name| !name.is_empty());
        Ok(names.any(|name| self.is_shown_xattr(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_those_who_ask_looks_and_only_where_it_is_wanted() {
        let questions = |wanted| {
            let known = Xattrless::new(wanted);
            let looks = (0..2000).filter(|_| known.count()).count();
            (looks, known.is_sure())
        };
        assert_eq!(questions(true), (1, false));
        assert_eq!(questions(false), (0, false));
    }
}
