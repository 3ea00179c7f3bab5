//! Listings.
//!
//! There are no directory handles, so an offset has to mean the same in every call: it is a hash of
//! the name, and entries are listed in its order. Entries created or removed meanwhile then neither
//! repeat nor hide others, and a copy-up in between changes nothing.
//!
//! The low bits of an offset count the changes of the directory. The kernel caches listings, checks
//! the age of its cache only for readers at offset 0, and lets others go on in pages that somebody
//! else filled (fs/fuse/readdir.c, `fuse_readdir_cached`): a reader that began after a change could
//! go on in a listing from before it. With the count, its position is not found in such pages, and
//! it asks us.

use parking_lot::Mutex;
use rustix::fs::Mode;
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::ops::{Bound, ControlFlow};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Overlay;
use super::attr::{Attr, Kind, dev_of, is_whiteout, stat_at, stat_opt};
use super::layer::{AufsFlag, DIR_READ, NO_INO};
use super::listing::{DOT, DOT_DOT, Entry, Listing, Top};
use super::node::{DirPart, Node, Remembered};
use crate::format::keys::OverlayKey;
use crate::format::whiteout::{AufsName, classify};
use crate::sys::dir::{DirEntry, DirReader};
use crate::sys::xattr;

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct ListedEntry<'a> {
    /// The name.
    pub name: &'a OsStr,
    /// `d_ino`, equal to `st_ino`.
    pub ino: u64,
    /// The type.
    pub kind: Kind,
    /// The offset to go on with after this entry.
    pub next: u64,
}

/// Bits of an offset that count the changes of the directory.
const GENERATION_BITS: u32 = 16;
const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;

/// One directory that takes part in a merged listing.
struct Part<'a> {
    fd: OwnedFd,
    dev: u64,
    aufs: &'a AufsFlag,
    /// `None`: it is upper's, of which it was asked for before.
    opaque_mark: Option<&'a Remembered>,
    xattr_whiteouts: bool,
    top: Top,
}

/// What came of adding one.
enum Added {
    Whole,
    /// All of it, and the lowers below it count for nothing.
    Opaque,
    /// Not all of it: there are more entries than may be read.
    TooMuch,
}

/// What it takes to open a directory and find its end, in entries.
pub(super) const PART_COST: usize = 16;

impl Overlay {
    /// Lists a directory from `offset` on (0: from the start), until `each` breaks off.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE`, and what the layers return.
    pub fn readdir(
        &self,
        id: u64,
        offset: u64,
        each: &mut dyn FnMut(ListedEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        let node = self.node(id)?;
        let dir = node.dir.as_deref().ok_or(Errno::NOTDIR)?;
        let _names = dir.names.read();
        self.readdir_locked(&node, offset, each)
    }

    /// Lists a directory with the attributes of what is in it. `each` gets, for everything but `.`
    /// and `..`, the node with one reference taken; when it breaks off, that reference is taken
    /// back. An entry that can't be looked up is listed without a node.
    ///
    /// # Errors
    /// As [`readdir`](Self::readdir).
    #[allow(clippy::type_complexity)]
    pub fn readdir_plus(
        &self,
        id: u64,
        offset: u64,
        each: &mut dyn FnMut(ListedEntry<'_>, Option<(&Arc<Node>, &Attr)>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        let node = self.node(id)?;
        let dir = node.dir.as_deref().ok_or(Errno::NOTDIR)?;
        let _names = dir.names.read();
        self.readdir_locked(&node, offset, &mut |entry| {
            if entry.name == "." || entry.name == ".." {
                return each(entry, None);
            }
            match self.lookup_locked(&node, entry.name) {
                Ok(Some((child, attr))) => {
                    let entry = ListedEntry {
                        ino: attr.ino,
                        kind: attr.kind,
                        ..entry
                    };
                    let flow = each(entry, Some((&child, &attr)));
                    if flow.is_break() {
                        self.release(&child, 1);
                    }
                    flow
                }
                Ok(None) => ControlFlow::Continue(()),
                Err(_) => each(entry, None),
            }
        })
    }

    fn readdir_locked(
        &self,
        node: &Arc<Node>,
        offset: u64,
        each: &mut dyn FnMut(ListedEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        let dir = node.dir.as_deref().ok_or(Errno::NOTDIR)?;
        if node.place.read().removed {
            return Ok(());
        }
        let generation = dir.generation.load(Ordering::Acquire) & GENERATION_MASK;
        let offset = offset >> GENERATION_BITS;
        let tagged = |key: u64| key << GENERATION_BITS | generation;
        for (name, at, ino) in [
            (".", DOT, self.ino_of(node)),
            ("..", DOT_DOT, self.parent_ino(node)),
        ] {
            if offset < at {
                let name = OsStr::new(name);
                let entry = ListedEntry {
                    name,
                    ino,
                    kind: Kind::Dir,
                    next: tagged(at),
                };
                if each(entry).is_break() {
                    return Ok(());
                }
            }
        }
        let listing = match self.listings.get(node.id) {
            Some(listing) => listing,
            None => self.listings.put(node.id, self.build_listing(node)?),
        };
        self.emit(&listing, offset, &tagged, each)
    }

    /// Calls `each` for the entries after `offset`, without holding the listing locked meanwhile:
    /// `each` looks names up, which asks the listing.
    fn emit(
        &self,
        listing: &Mutex<Listing>,
        offset: u64,
        tagged: &dyn Fn(u64) -> u64,
        each: &mut dyn FnMut(ListedEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        const BATCH: usize = 256;
        let mut after = offset.max(DOT_DOT);
        loop {
            let batch: Vec<(u64, OsString, u64, Kind)> = {
                let listing = listing.lock();
                let range = (Bound::Excluded(after), Bound::Unbounded);
                let shown = listing.entries.range(range).filter(|(_, e)| !e.hidden);
                shown
                    .take(BATCH)
                    .map(|(k, e)| (*k, e.name.to_os_string(), e.ino, e.kind))
                    .collect()
            };
            if batch.is_empty() {
                return Ok(());
            }
            for (key, name, ino, kind) in batch {
                after = key;
                if each(ListedEntry {
                    name: &name,
                    ino,
                    kind,
                    next: tagged(key),
                })
                .is_break()
                {
                    return Ok(());
                }
            }
        }
    }

    fn parent_ino(&self, node: &Node) -> u64 {
        let parent = node.place.read().parent.clone();
        parent.map_or_else(|| self.ino_of(node), |p| self.ino_of(&p))
    }

    /// The type of a directory entry of one layer; `None` for whiteouts and what is gone.
    fn shown_kind(
        &self,
        fd: BorrowedFd<'_>,
        e: &DirEntry<'_>,
        xattr_whiteouts: bool,
    ) -> Result<Option<Kind>, Errno> {
        let kind = Kind::from_d_type(e.kind);
        match kind {
            Some(Kind::File) if xattr_whiteouts => {
                let hidden = xattr::has_at(fd, e.name, self.ns.key(OverlayKey::Whiteout))?;
                if hidden {
                    return Ok(None);
                }
                self.ids.kind_of_file(fd, e.name).map(Some)
            }
            Some(Kind::File) => self.ids.kind_of_file(fd, e.name).map(Some),
            Some(Kind::CharDevice) | None => match stat_opt(fd, e.name)? {
                Some(st) if !is_whiteout(&st) => {
                    let st = self.ids.apply(fd, e.name, st)?;
                    Ok(Kind::from_mode(u32::from(st.stx_mode)))
                }
                _ => Ok(None),
            },
            known => Ok(known),
        }
    }

    /// Reads and merges all parts of a directory.
    fn build_listing(&self, node: &Arc<Node>) -> Result<Listing, Errno> {
        let dir = node.dir.as_deref().ok_or(Errno::NOTDIR)?;
        let mut listing = Listing::default();
        let mut unlimited = usize::MAX;
        let mut reader = DirReader::new();
        if node.place.read().has_upper() {
            let fd = self.upper_dir_fd(node)?;
            let part = Part {
                fd: rustix::fs::openat(fd.as_fd(), c".", DIR_READ, Mode::empty())?,
                dev: self.upper()?.layer.dev,
                aufs: &dir.aufs,
                opaque_mark: None,
                xattr_whiteouts: self.marks_whiteouts(dir),
                top: Top::Upper,
            };
            self.add_part(&mut listing, &part, &mut reader, &mut unlimited)?;
            self.number_upper_entries(node, &mut listing)?;
        }
        self.add_lowers(&mut listing, dir, &mut reader, &mut unlimited)?;
        listing.entries.retain(|_, e| !e.hidden);
        Ok(listing)
    }

    /// Adds the lowers of a directory that a listing lacks. `false`: that is more than `left`; it can be gone on with.
    pub(super) fn add_lowers(
        &self,
        listing: &mut Listing,
        dir: &DirPart,
        reader: &mut DirReader,
        left: &mut usize,
    ) -> Result<bool, Errno> {
        let from = listing.upto.unwrap_or(0);
        for (i, lower) in dir.lowers().iter().enumerate().skip(from) {
            let Some(fewer) = left.checked_sub(PART_COST) else {
                return Ok(false);
            };
            *left = fewer;
            let fd = self.lowers.open_to_list(&self.fds, lower)?;
            let dev = match lower.ino {
                NO_INO => dev_of(&stat_at(fd.as_fd(), OsStr::new(""))?),
                _ => lower.dev,
            };
            let part = Part {
                fd,
                dev,
                aufs: &lower.aufs,
                opaque_mark: Some(&lower.opaque_mark),
                xattr_whiteouts: lower.xattr_whiteouts,
                top: Top::Lower(u16::try_from(i).map_err(|_| Errno::OVERFLOW)?),
            };
            match self.add_part(listing, &part, reader, left)? {
                Added::TooMuch => return Ok(false),
                Added::Opaque => break,
                Added::Whole => listing.upto = Some(i + 1),
            }
        }
        listing.upto = None;
        Ok(true)
    }

    /// Adds what one layer has and the layers above don't hide.
    fn add_part(
        &self,
        listing: &mut Listing,
        part: &Part<'_>,
        reader: &mut DirReader,
        left: &mut usize,
    ) -> Result<Added, Errno> {
        let mut hides: Vec<OsString> = Vec::new();
        let mut opaque = false;
        let mut more = true;
        while more {
            let mut failed = None;
            more = reader.read(part.fd.as_fd(), &mut |e| {
                let Some(fewer) = left.checked_sub(1) else {
                    failed = Some(Ok(Added::TooMuch));
                    return ControlFlow::Break(());
                };
                *left = fewer;
                opaque |= matches!(classify(e.name), AufsName::Opaque);
                match self.add_entry(listing, part, &e, &mut hides) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(e) => {
                        failed = Some(Err(e));
                        ControlFlow::Break(())
                    }
                }
            })?;
            if let Some(failed) = failed {
                return failed;
            }
        }
        part.aufs.set(!hides.is_empty());
        // `.wh.NAME` hides the layers below only: NAME of this layer is in already.
        for name in hides {
            match listing.get_mut(&name) {
                Some(above) => above.note(part.top, false),
                None => listing.insert(Entry {
                    name: name.into(),
                    ino: 0,
                    kind: Kind::CharDevice,
                    top: part.top,
                    lowers: None,
                    hidden: true,
                }),
            }
        }
        // That of a root was heeded when the layers were opened, or is none: in the last layer.
        Ok(match part.opaque_mark {
            Some(mark) if mark.get() != Some(false) => {
                mark.set(opaque);
                if opaque { Added::Opaque } else { Added::Whole }
            }
            _ => Added::Whole,
        })
    }

    /// Adds one entry of a layer, or its name to those that are hidden in the layers below.
    fn add_entry(
        &self,
        listing: &mut Listing,
        part: &Part<'_>,
        e: &DirEntry<'_>,
        hides: &mut Vec<OsString>,
    ) -> Result<(), Errno> {
        if e.name == "." || e.name == ".." {
            return Ok(());
        }
        match classify(e.name) {
            AufsName::Plain => {}
            AufsName::Hides(name) => {
                hides.push(name.to_os_string());
                return Ok(());
            }
            AufsName::Opaque | AufsName::Reserved => return Ok(()),
        }
        let surely_dir = Kind::from_d_type(e.kind) == Some(Kind::Dir);
        if let Some(above) = listing.get_mut(e.name) {
            above.note(part.top, surely_dir);
            return Ok(());
        }
        let kind = self.shown_kind(part.fd.as_fd(), e, part.xattr_whiteouts)?;
        let mut entry = Entry {
            name: e.name.into(),
            ino: self.inos.map(part.dev, e.ino),
            kind: kind.unwrap_or(Kind::CharDevice),
            top: part.top,
            lowers: (kind == Some(Kind::Dir)).then(Vec::new),
            hidden: kind.is_none(),
        };
        entry.note(part.top, surely_dir);
        listing.insert(entry);
        Ok(())
    }

    /// Upper's entries have the numbers of what they were copied from.
    fn number_upper_entries(&self, node: &Arc<Node>, listing: &mut Listing) -> Result<(), Errno> {
        let impure = self.is_impure(node)?;
        let merges = node.dir.as_ref().is_some_and(|d| !d.lowers().is_empty());
        for entry in listing.entries.values_mut().filter(|e| !e.hidden) {
            let numbered = impure || (entry.kind == Kind::Dir && merges);
            if !numbered {
                continue;
            }
            match self.resolve_unhinted(node, &entry.name) {
                Ok(Some(found)) => {
                    entry.ino = self.inos.map(found.identity.0, found.identity.1);
                }
                // What can't be used because of its marks is listed all the same, as in the kernel.
                Ok(None) | Err(Errno::PERM | Errno::IO) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Says that `name` is in the directory now, whose names are locked.
    pub(crate) fn name_added(&self, dir: &Node, name: &OsStr, node: &Node) {
        self.count_change(dir);
        self.listings
            .added(dir.id, name, self.ino_of(node), node.kind);
    }

    /// Says that `name` is gone from the directory, whose names are locked.
    pub(crate) fn name_removed(&self, dir: &Node, name: &OsStr) {
        self.count_change(dir);
        self.listings.removed(dir.id, name);
    }

    fn count_change(&self, dir: &Node) {
        if let Some(part) = &dir.dir {
            part.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Does a directory, whose names are locked, show nothing that is only in a lower?
    pub(crate) fn has_upper_entries_only(&self, node: &Arc<Node>) -> Result<bool, Errno> {
        let listing = self.build_listing(node)?;
        let entries = listing.entries.iter().filter(|(_, e)| !e.hidden);
        for (_, entry) in entries {
            // A name of a hard link in the index need not be in upper itself.
            if entry.top != Top::Upper {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Does a directory, whose names are locked, show nothing?
    pub(crate) fn is_empty_locked(&self, node: &Arc<Node>) -> Result<bool, Errno> {
        let dir = node.dir.as_deref().ok_or(Errno::NOTDIR)?;
        if !dir.lowers().is_empty() {
            if let Some(listing) = self.listings.peek(node.id) {
                return Ok(listing.lock().is_empty());
            }
            return Ok(self.build_listing(node)?.is_empty());
        }
        let fd = self.upper_dir_fd(node)?;
        let fd = rustix::fs::openat(fd.as_fd(), c".", DIR_READ, Mode::empty())?;
        let (mut empty, mut error) = (true, None);
        let mut reader = DirReader::new();
        let mut more = true;
        while more && empty && error.is_none() {
            more = reader.read(fd.as_fd(), &mut |e| {
                if e.name == "." || e.name == ".." || self.is_reserved_name(e.name) {
                    return ControlFlow::Continue(());
                }
                match self.shown_kind(fd.as_fd(), &e, self.marks_whiteouts(dir)) {
                    Ok(None) => return ControlFlow::Continue(()),
                    Ok(Some(_)) => empty = false,
                    Err(e) => error = Some(e),
                }
                ControlFlow::Break(())
            })?;
        }
        if let Some(e) = error {
            return Err(e);
        }
        Ok(empty)
    }
}
