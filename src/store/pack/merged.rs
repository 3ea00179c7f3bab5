//! An upper together with the layers that it lies on: what it changes, and what both show.
//!
//! A place of the merged tree has an upper directory, the lower directories that are merged with it, and its
//! *base*: the directories that the layers below show at the same path. The last two differ where a directory was
//! renamed (`overlay.redirect`): everything in it is new then at its new place. Otherwise only what upper has is
//! looked at, and what is in `work/index`, whose files stand in for lower ones under all of their names.
//!
//! Directories are opened one component at a time and never through a symlink: a live container may change the
//! upper meanwhile.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::attrs::{Attributes, Reader};
use super::links::Links;
use super::{Failure, Options, PackError, UpperLayers};
use crate::format::keys::OverlayKey;
use crate::format::redirect::Redirect;
use crate::format::whiteout::{AufsName, OPAQUE_MARK, classify, whiteout_name};
use crate::sys::xattr::get_at;

/// A directory of one layer.
#[derive(Debug)]
pub(super) struct Dir {
    pub(super) fd: OwnedFd,
    opaque: bool,
    xattr_whiteouts: bool,
    /// `.wh.` names in it are whiteouts: it is in a lower.
    aufs: bool,
}

/// What one layer has under a name.
enum Entry {
    Absent,
    /// A whiteout.
    Hidden,
    Leaf,
    Dir(Rc<Dir>),
}

/// What several layers show under a name.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    /// No directory; in this layer's.
    Leaf(Rc<Dir>),
    /// The directories that are merged, topmost first.
    Dirs(Vec<Rc<Dir>>),
}

impl Found {
    fn dirs(&self) -> Vec<Rc<Dir>> {
        match self {
            Found::Dirs(dirs) => dirs.clone(),
            _ => Vec::new(),
        }
    }

    pub(super) fn is_something(&self) -> bool {
        !matches!(self, Found::Nothing)
    }
}

/// An object: its directory, and its name there.
pub(super) type At<'a> = (BorrowedFd<'a>, &'a [u8]);

/// Takes what is found, in the order of the archive.
pub(super) trait Visitor {
    /// A directory; `path` is `./` or ends with a slash. `opaque`: it hides the base.
    fn directory(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        base: &Found,
        opaque: bool,
    ) -> Result<(), Failure>;

    /// Anything else, `from` where it is, with its data in `data`.
    fn leaf(
        &mut self,
        path: &[u8],
        from: At<'_>,
        data: At<'_>,
        attributes: &Attributes,
        base: &Found,
    ) -> Result<(), Failure>;

    /// What the base has is gone. `hidden`: a directory above hides it already. `dir` ends with a slash, or is
    /// empty.
    fn whiteout(&mut self, dir: &[u8], name: &[u8], hidden: bool) -> Result<(), Failure>;
}

/// A directory of the merged tree.
struct Place {
    upper: Option<Rc<Dir>>,
    lowers: Vec<Rc<Dir>>,
    base: Vec<Rc<Dir>>,
    /// The lowers are not the base: what they show counts as what upper has.
    whole: bool,
    /// The base is hidden by a directory above.
    hidden: bool,
}

/// Walks the merged tree.
pub(super) struct Explorer<'a> {
    options: &'a Options,
    reader: Reader<'a>,
    upper: Rc<Dir>,
    lowers: Vec<Rc<Dir>>,
    index: Option<&'a OwnedFd>,
    links: Links,
}

impl<'a> Explorer<'a> {
    pub(super) fn new(
        layers: &'a UpperLayers,
        options: &'a Options,
    ) -> Result<Explorer<'a>, PackError> {
        let at = |failure: Failure| failure.at(b"/");
        let mut explorer = Explorer {
            options,
            reader: Reader::new(options),
            upper: Rc::new(
                dir_of(options, copy_of(&layers.upper).map_err(at)?, false).map_err(at)?,
            ),
            lowers: Vec::new(),
            index: layers.index.as_ref(),
            links: Links::default(),
        };
        for lower in &layers.lowers {
            let dir = dir_of(options, copy_of(lower).map_err(at)?, true).map_err(at)?;
            let is_last = dir.opaque;
            explorer.lowers.push(Rc::new(dir));
            if is_last {
                break;
            }
        }
        explorer.links = Links::find(&explorer, layers).map_err(at)?;
        Ok(explorer)
    }

    pub(super) fn reader(&self) -> &Reader<'a> {
        &self.reader
    }

    pub(super) fn lowers(&self) -> &[Rc<Dir>] {
        &self.lowers
    }

    /// What upper changes.
    pub(super) fn difference(&self, visitor: &mut dyn Visitor) -> Result<(), PackError> {
        let root = Place {
            upper: Some(Rc::clone(&self.upper)),
            lowers: self.lowers.clone(),
            base: self.lowers.clone(),
            whole: false,
            hidden: false,
        };
        let base = Found::Dirs(self.lowers.clone());
        self.directory(&root, &base, b"", visitor)
    }

    /// Everything that the merged tree shows.
    pub(super) fn everything(&self, visitor: &mut dyn Visitor) -> Result<(), PackError> {
        let root = Place {
            upper: Some(Rc::clone(&self.upper)),
            lowers: self.lowers.clone(),
            base: Vec::new(),
            whole: true,
            hidden: true,
        };
        let base = Found::Nothing;
        self.directory(&root, &base, b"", visitor)
    }

    /// `path` ends with a slash, or is empty.
    fn directory(
        &self,
        place: &Place,
        base: &Found,
        path: &[u8],
        visitor: &mut dyn Visitor,
    ) -> Result<(), PackError> {
        let at = |failure: Failure| failure.at(path);
        let Some(top) = place.upper.as_ref().or(place.lowers.first()) else {
            return Ok(());
        };
        let attributes = self.reader.read(top.fd.as_fd(), b"").map_err(at)?;
        let is_opaque = place.upper.as_ref().is_some_and(|upper| upper.opaque);
        let opaque = (place.whole || is_opaque) && !place.hidden && !place.base.is_empty();
        let shown_path = if path.is_empty() { b"./" } else { path };
        visitor
            .directory(shown_path, &attributes, base, opaque)
            .map_err(at)?;
        let hidden = place.hidden || opaque;
        for name in self.names(place, path, hidden).map_err(at)? {
            match self.child(place, path, &name, hidden, visitor) {
                Err(PackError::Read { source, .. })
                    if self.options.live
                        && source.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// The names to be looked at in a directory, sorted.
    fn names(
        &self,
        place: &Place,
        path: &[u8],
        hidden: bool,
    ) -> Result<BTreeSet<Vec<u8>>, Failure> {
        let mut names = self.links.stand_ins_in(path);
        if let Some(upper) = &place.upper {
            names_of(upper, &mut names)?;
        }
        if place.whole && !is_opaque(place) {
            for lower in &place.lowers {
                names_of(lower, &mut names)?;
            }
        }
        if hidden {
            for base in &place.base {
                names_of(base, &mut names)?;
            }
        }
        Ok(names)
    }

    fn child(
        &self,
        place: &Place,
        path: &[u8],
        name: &[u8],
        hidden: bool,
        visitor: &mut dyn Visitor,
    ) -> Result<(), PackError> {
        let full = [path, name].concat();
        let at = |failure: Failure| failure.at(&full);
        let base = self.find(&place.base, name).map_err(at)?;
        let entry = match &place.upper {
            Some(upper) => self.look(upper, name).map_err(at)?,
            None => Entry::Absent,
        };
        let inner = match (entry, &place.upper) {
            (Entry::Hidden, _) => {
                if base.is_something() {
                    visitor.whiteout(path, name, hidden).map_err(at)?;
                }
                return Ok(());
            }
            (Entry::Leaf, Some(upper)) => {
                return self
                    .upper_leaf(place, upper, name, &full, &base, visitor)
                    .map_err(at);
            }
            (Entry::Dir(dir), _) => self.upper_dir(place, dir, name).map_err(at)?,
            (Entry::Absent | Entry::Leaf, _) => {
                match self.find(&place.lowers, name).map_err(at)? {
                    Found::Nothing => {
                        if base.is_something() && hidden {
                            visitor.whiteout(path, name, true).map_err(at)?;
                        }
                        return Ok(());
                    }
                    Found::Leaf(dir) => {
                        return self
                            .lower_leaf(&dir, name, &full, &base, visitor)
                            .map_err(at);
                    }
                    Found::Dirs(lowers) => Place {
                        upper: None,
                        lowers,
                        whole: place.whole,
                        base: Vec::new(),
                        hidden,
                    },
                }
            }
        };
        let inner = Place {
            base: base.dirs(),
            hidden,
            ..inner
        };
        self.directory(&inner, &base, &[&full, b"/".as_slice()].concat(), visitor)
    }

    /// A directory of upper, with what it is merged with.
    fn upper_dir(&self, place: &Place, dir: Rc<Dir>, name: &[u8]) -> Result<Place, Failure> {
        let key = self.options.namespace.key(OverlayKey::Redirect);
        let redirect = get_at(dir.fd.as_fd(), OsStr::new(""), key)?;
        let lowers = match (&redirect, dir.opaque) {
            (_, true) => Vec::new(),
            (Some(value), false) => self.redirected(place, value)?.0.dirs(),
            (None, false) => self.find(&place.lowers, name)?.dirs(),
        };
        Ok(Place {
            whole: place.whole || (redirect.is_some() && !dir.opaque),
            upper: Some(dir),
            lowers,
            base: Vec::new(),
            hidden: false,
        })
    }

    fn upper_leaf(
        &self,
        place: &Place,
        upper: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        base: &Found,
        visitor: &mut dyn Visitor,
    ) -> Result<(), Failure> {
        let from = (upper.fd.as_fd(), name);
        let attributes = self.reader.read(from.0, name)?;
        if !attributes.metacopy {
            return visitor.leaf(path, from, from, &attributes, base);
        }
        let (found, below) = match &attributes.redirect {
            Some(value) => self.redirected(place, value)?,
            None => (self.find(&place.lowers, name)?, name.to_vec()),
        };
        match found {
            Found::Leaf(dir) => {
                visitor.leaf(path, from, (dir.fd.as_fd(), &below), &attributes, base)
            }
            _ => Err(Errno::STALE.into()),
        }
    }

    /// A lower object that is shown where the base isn't, or that another in `work/index` stands in for.
    fn lower_leaf(
        &self,
        dir: &Rc<Dir>,
        name: &[u8],
        path: &[u8],
        base: &Found,
        visitor: &mut dyn Visitor,
    ) -> Result<(), Failure> {
        let lower = (dir.fd.as_fd(), name);
        let attributes = self.reader.read(lower.0, name)?;
        let id = (attributes.stat.st_dev, attributes.stat.st_ino);
        let (Some(stand_in), Some(index)) = (self.links.stand_in(id), self.index) else {
            return visitor.leaf(path, lower, lower, &attributes, base);
        };
        let from = (index.as_fd(), stand_in);
        let mut attributes = self.reader.read(from.0, from.1)?;
        // Of its names only those in upper are counted there.
        attributes.stat.st_nlink = attributes.stat.st_nlink.max(2);
        let data = if attributes.metacopy { lower } else { from };
        visitor.leaf(path, from, data, &attributes, base)
    }

    /// What a redirect in `place` leads to, and its name there.
    fn redirected(&self, place: &Place, value: &[u8]) -> Result<(Found, Vec<u8>), Failure> {
        let redirect = Redirect::parse(value)
            .map_err(|error| Failure::Read(std::io::Error::other(error.to_string())))?;
        let path = match redirect {
            Redirect::Relative(name) => {
                let name = name.as_bytes().to_vec();
                return Ok((self.find(&place.lowers, &name)?, name));
            }
            Redirect::Absolute(path) => path,
        };
        let mut found = Found::Dirs(self.lowers.clone());
        let mut last = Vec::new();
        for name in path {
            last = name.as_bytes().to_vec();
            found = self.find(&found.dirs(), &last)?;
        }
        Ok((found, last))
    }

    /// What these directories, topmost first, show under a name.
    pub(super) fn find(&self, dirs: &[Rc<Dir>], name: &[u8]) -> Result<Found, Failure> {
        let mut merged = Vec::new();
        for dir in dirs {
            match self.look(dir, name)? {
                Entry::Absent => {}
                Entry::Hidden => break,
                Entry::Leaf if merged.is_empty() => return Ok(Found::Leaf(Rc::clone(dir))),
                Entry::Leaf => break,
                Entry::Dir(found) => {
                    let is_last = found.opaque;
                    merged.push(found);
                    if is_last {
                        break;
                    }
                }
            }
        }
        Ok(match merged.is_empty() {
            true => Found::Nothing,
            false => Found::Dirs(merged),
        })
    }

    /// Whether upper lets show what the layers below have at a path of these components.
    pub(super) fn upper_lets_show(&self, path: &[&[u8]]) -> Result<bool, Failure> {
        let key = self.options.namespace.key(OverlayKey::Redirect);
        let mut dir = Rc::clone(&self.upper);
        for name in path {
            if dir.opaque {
                return Ok(false);
            }
            match self.look(&dir, name)? {
                Entry::Absent => return Ok(true),
                Entry::Hidden | Entry::Leaf => return Ok(false),
                Entry::Dir(inner) => {
                    if get_at(inner.fd.as_fd(), OsStr::new(""), key)?.is_some() {
                        return Ok(false);
                    }
                    dir = inner;
                }
            }
        }
        Ok(false)
    }

    fn look(&self, dir: &Dir, name: &[u8]) -> Result<Entry, Failure> {
        let fd = dir.fd.as_fd();
        let os_name = OsStr::from_bytes(name);
        if dir.aufs && classify(os_name) != AufsName::Plain {
            return Ok(Entry::Absent);
        }
        let stat = match rustix::fs::statat(fd, os_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                let is_hidden =
                    dir.aufs && whiteout_name(os_name).is_some_and(|hiding| exists(fd, &hiding));
                return Ok(if is_hidden {
                    Entry::Hidden
                } else {
                    Entry::Absent
                });
            }
            other => other?,
        };
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = rustix::fs::openat(fd, os_name, flags, Mode::empty())?;
            return Ok(Entry::Dir(Rc::new(dir_of(self.options, inner, dir.aufs)?)));
        }
        match self.reader.is_whiteout(fd, name, dir.xattr_whiteouts)? {
            true => Ok(Entry::Hidden),
            false => Ok(Entry::Leaf),
        }
    }
}

fn is_opaque(place: &Place) -> bool {
    place.upper.as_ref().is_some_and(|upper| upper.opaque)
}

fn exists(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    let name = OsStr::from_bytes(name);
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn copy_of(fd: &OwnedFd) -> Result<OwnedFd, Failure> {
    fd.try_clone().map_err(Failure::Read)
}

fn dir_of(options: &Options, fd: OwnedFd, aufs: bool) -> Result<Dir, Failure> {
    let key = options.namespace.key(OverlayKey::Opaque);
    let value = get_at(fd.as_fd(), OsStr::new(""), key)?;
    let is_marked = aufs && exists(fd.as_fd(), OPAQUE_MARK);
    Ok(Dir {
        opaque: value.as_deref() == Some(b"y") || is_marked,
        xattr_whiteouts: value.as_deref() == Some(b"x"),
        aufs,
        fd,
    })
}

/// Adds the names that a directory has, those of `.wh.` files left out where they are whiteouts.
fn names_of(dir: &Dir, names: &mut BTreeSet<Vec<u8>>) -> Result<(), Failure> {
    crate::sys::dir::read_all(dir.fd.as_fd(), |entry| {
        let is_mark = dir.aufs && classify(entry.name) != AufsName::Plain;
        if entry.name != "." && entry.name != ".." && !is_mark {
            names.insert(entry.name.as_bytes().to_vec());
        }
    })?;
    Ok(())
}
