//! Listings.
//!
//! There are no directory handles, so an offset has to mean the same in every call: in a
//! directory that is only in upper it is the file system's own; where lowers take part it is a
//! hash of the name, and entries are listed in its order. Entries created or removed meanwhile
//! then neither repeat nor hide others, and a copy-up in between changes nothing.

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::hash::{DefaultHasher, Hasher};
use std::ops::{Bound, ControlFlow};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::Overlay;
use super::attr::{Attr, Kind, is_whiteout, stat_opt};
use super::fds::FdKey;
use super::layer::{AufsFlag, DIR_READ};
use super::lookup::Found;
use super::node::Node;
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

/// Offsets of `.` and `..`; those of hashed names are above.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
const FIRST_HASH: u64 = 16;

/// The layer that an entry's topmost object is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Top {
    Upper,
    /// Index into the lowers of the directory.
    Lower(u16),
}

struct Entry {
    name: Box<OsStr>,
    ino: u64,
    kind: Kind,
    top: Top,
    hidden: bool,
}

/// A merged listing, in the order of the offsets.
#[derive(Default)]
pub(crate) struct Listing {
    entries: BTreeMap<u64, Entry>,
}

fn hash(name: &OsStr) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name.as_bytes());
    (hasher.finish() >> 2).max(FIRST_HASH)
}

impl Listing {
    /// The key of `name` if it is there, otherwise the key that it would get.
    fn locate(&self, name: &OsStr) -> (u64, bool) {
        let mut key = hash(name);
        while let Some(entry) = self.entries.get(&key) {
            if *entry.name == *name {
                return (key, true);
            }
            key += 1; // two names with one hash
        }
        (key, false)
    }

    fn get(&self, name: &OsStr) -> Option<&Entry> {
        let (key, there) = self.locate(name);
        if there { self.entries.get(&key) } else { None }
    }

    fn insert(&mut self, entry: Entry) {
        let (key, _) = self.locate(&entry.name);
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, name: &OsStr) {
        let (key, there) = self.locate(name);
        if there {
            // A name with the same hash may lie behind it: the place stays, without a name.
            if self.entries.contains_key(&(key + 1)) {
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.hidden = true;
                }
            } else {
                self.entries.remove(&key);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.entries.values().all(|e| e.hidden)
    }
}

/// What a cached listing knows of a name.
pub(crate) enum Hint {
    /// No listing is cached.
    Unknown,
    Absent,
    In(Top),
}

type SharedListing = Arc<Mutex<Listing>>;

/// Merged listings of the directories that were listed last, bounded by their entries.
pub(crate) struct ListingCache {
    inner: Mutex<CacheInner>,
}

struct CacheInner {
    listings: LruCache<u64, (SharedListing, usize)>,
    entries: usize,
}

/// About 25 MiB.
const MAX_CACHED_ENTRIES: usize = 256 * 1024;

impl ListingCache {
    pub(crate) fn new() -> ListingCache {
        let inner = CacheInner {
            listings: LruCache::unbounded(),
            entries: 0,
        };
        ListingCache {
            inner: Mutex::new(inner),
        }
    }

    fn get(&self, id: u64) -> Option<SharedListing> {
        self.inner
            .lock()
            .listings
            .get(&id)
            .map(|(l, _)| Arc::clone(l))
    }

    fn peek(&self, id: u64) -> Option<SharedListing> {
        self.inner
            .lock()
            .listings
            .peek(&id)
            .map(|(l, _)| Arc::clone(l))
    }

    fn put(&self, id: u64, listing: Listing) -> SharedListing {
        let size = listing.entries.len() + 8;
        let shared = Arc::new(Mutex::new(listing));
        let mut inner = self.inner.lock();
        let mut dropped = Vec::new();
        if let Some((old, n)) = inner.listings.put(id, (Arc::clone(&shared), size)) {
            inner.entries -= n;
            dropped.push(old);
        }
        inner.entries += size;
        while inner.entries > MAX_CACHED_ENTRIES && inner.listings.len() > 1 {
            let Some((_, (old, n))) = inner.listings.pop_lru() else {
                break;
            };
            inner.entries -= n;
            dropped.push(old);
        }
        drop(inner);
        drop(dropped); // not under the lock
        shared
    }

    /// Forgets the listing of one directory.
    pub(crate) fn remove(&self, id: u64) {
        let mut inner = self.inner.lock();
        let old = inner.listings.pop(&id);
        if let Some((_, n)) = &old {
            inner.entries -= n;
        }
        drop(inner);
        drop(old);
    }

    /// What the cached listing of the directory says of `name`.
    pub(crate) fn hint(&self, id: u64, name: &OsStr) -> Hint {
        let Some(listing) = self.peek(id) else {
            return Hint::Unknown;
        };
        let listing = listing.lock();
        match listing.get(name) {
            Some(e) if !e.hidden => Hint::In(e.top),
            _ => Hint::Absent,
        }
    }

    /// Keeps a cached listing right: `name` is in upper now.
    pub(crate) fn added(&self, id: u64, name: &OsStr, ino: u64, kind: Kind) {
        if let Some(listing) = self.peek(id) {
            let entry = Entry {
                name: name.into(),
                ino,
                kind,
                top: Top::Upper,
                hidden: false,
            };
            listing.lock().insert(entry);
        }
    }

    /// Keeps a cached listing right: `name` is gone.
    pub(crate) fn removed(&self, id: u64, name: &OsStr) {
        if let Some(listing) = self.peek(id) {
            listing.lock().remove(name);
        }
    }
}

/// One directory that takes part in a merged listing.
struct Part<'a> {
    fd: OwnedFd,
    dev: u64,
    aufs: &'a AufsFlag,
    xattr_whiteouts: bool,
    top: Top,
}

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
        if dir.lowers.is_empty() {
            return self.stream(node, offset, each);
        }
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
                    next: at,
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
        self.emit(&listing, offset, each)
    }

    /// Calls `each` for the entries after `offset`, without holding the listing locked meanwhile:
    /// `each` looks names up, which asks the listing.
    fn emit(
        &self,
        listing: &Mutex<Listing>,
        offset: u64,
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
                    next: key,
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

    /// Lists a directory that is only in upper: as it comes from the file system.
    fn stream(
        &self,
        node: &Arc<Node>,
        offset: u64,
        each: &mut dyn FnMut(ListedEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        let dir = node.dir.as_deref().ok_or(Errno::NOTDIR)?;
        let key = FdKey::Read(node.id);
        let fd = match self.fds.get(key) {
            Some(fd) => fd,
            None => self.fds.put(
                key,
                self.open_object(node, OFlags::RDONLY | OFlags::DIRECTORY)?,
            ),
        };
        let impure = self.is_impure(node)?;
        let dev = self.upper()?.layer.dev;
        // The descriptor has one position: whoever reads takes it as it needs it.
        let mut reader = dir.stream.lock();
        let reader = reader.get_or_insert_with(|| Box::new(DirReader::new()));
        DirReader::seek(fd.as_fd(), offset)?;
        let mut error = None;
        let mut stopped = false;
        while !stopped && error.is_none() {
            let more = reader.read(fd.as_fd(), &mut |e| match self.streamed(
                node,
                fd.as_fd(),
                &e,
                impure,
                dev,
            ) {
                Ok(None) => ControlFlow::Continue(()),
                Ok(Some((ino, kind))) => {
                    let entry = ListedEntry {
                        name: e.name,
                        ino,
                        kind,
                        next: e.next_off,
                    };
                    let flow = each(entry);
                    stopped = flow.is_break();
                    flow
                }
                Err(e) => {
                    error = Some(e);
                    ControlFlow::Break(())
                }
            })?;
            if !more {
                break;
            }
        }
        error.map_or(Ok(()), Err)
    }

    /// Number and type of one entry of a directory that is only in upper; `None` if it is hidden.
    fn streamed(
        &self,
        node: &Arc<Node>,
        fd: BorrowedFd<'_>,
        e: &DirEntry<'_>,
        impure: bool,
        dev: u64,
    ) -> Result<Option<(u64, Kind)>, Errno> {
        if e.name == "." {
            return Ok(Some((self.ino_of(node), Kind::Dir)));
        }
        if e.name == ".." {
            return Ok(Some((self.parent_ino(node), Kind::Dir)));
        }
        if self.is_reserved_name(e.name) {
            return Ok(None);
        }
        let Some(kind) = self.shown_kind(fd, e, false)? else {
            return Ok(None);
        };
        if !impure {
            return Ok(Some((self.inos.map(dev, e.ino), kind)));
        }
        let found = self.resolve(node, e.name)?;
        Ok(found.map(|f| (self.found_ino(&f), kind)))
    }

    fn found_ino(&self, found: &Found) -> u64 {
        self.inos.map(found.identity.0, found.identity.1)
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
                Ok((!hidden).then_some(Kind::File))
            }
            Some(Kind::CharDevice) | None => match stat_opt(fd, e.name)? {
                Some(st) if !is_whiteout(&st) => Ok(Kind::from_mode(u32::from(st.stx_mode))),
                _ => Ok(None),
            },
            known => Ok(known),
        }
    }

    /// Reads and merges all parts of a directory.
    fn build_listing(&self, node: &Arc<Node>) -> Result<Listing, Errno> {
        let dir = node.dir.as_deref().ok_or(Errno::NOTDIR)?;
        let mut listing = Listing::default();
        if node.place.read().has_upper() {
            let fd = self.upper_dir_fd(node)?;
            let part = Part {
                fd: rustix::fs::openat(fd.as_fd(), c".", DIR_READ, Mode::empty())?,
                dev: self.upper()?.layer.dev,
                aufs: &dir.aufs,
                xattr_whiteouts: dir.xattr_whiteouts,
                top: Top::Upper,
            };
            self.add_part(&mut listing, &part)?;
            self.number_upper_entries(node, &mut listing)?;
        }
        for (i, lower) in dir.lowers.iter().enumerate() {
            let fd = self.lowers.dir_fd(&self.fds, lower)?;
            let part = Part {
                fd: rustix::fs::openat(fd.as_fd(), c".", DIR_READ, Mode::empty())?,
                dev: lower.dev,
                aufs: &lower.aufs,
                xattr_whiteouts: lower.xattr_whiteouts,
                top: Top::Lower(u16::try_from(i).map_err(|_| Errno::OVERFLOW)?),
            };
            self.add_part(&mut listing, &part)?;
        }
        listing.entries.retain(|_, e| !e.hidden);
        Ok(listing)
    }

    /// Adds what one layer has and the layers above don't hide.
    fn add_part(&self, listing: &mut Listing, part: &Part<'_>) -> Result<(), Errno> {
        let mut hides: Vec<OsString> = Vec::new();
        let mut marks = false;
        let mut error = None;
        DirReader::new().read_all(part.fd.as_fd(), |e| {
            if error.is_some() || e.name == "." || e.name == ".." {
                return;
            }
            match classify(e.name) {
                AufsName::Plain => {}
                AufsName::Hides(name) => {
                    marks = true;
                    hides.push(name.to_os_string());
                    return;
                }
                AufsName::Opaque | AufsName::Reserved => return,
            }
            if listing.get(e.name).is_some() {
                return;
            }
            match self.shown_kind(part.fd.as_fd(), &e, part.xattr_whiteouts) {
                Ok(kind) => listing.insert(Entry {
                    name: e.name.into(),
                    ino: self.inos.map(part.dev, e.ino),
                    kind: kind.unwrap_or(Kind::CharDevice),
                    top: part.top,
                    hidden: kind.is_none(),
                }),
                Err(e) => error = Some(e),
            }
        })?;
        if let Some(e) = error {
            return Err(e);
        }
        part.aufs.set(marks);
        // `.wh.NAME` hides the layers below only: NAME of this layer is in already.
        for name in hides {
            if listing.get(&name).is_none() {
                let kind = Kind::CharDevice;
                listing.insert(Entry {
                    name: name.into(),
                    ino: 0,
                    kind,
                    top: part.top,
                    hidden: true,
                });
            }
        }
        Ok(())
    }

    /// Upper's entries have the numbers of what they were copied from.
    fn number_upper_entries(&self, node: &Arc<Node>, listing: &mut Listing) -> Result<(), Errno> {
        let impure = self.is_impure(node)?;
        for entry in listing.entries.values_mut().filter(|e| !e.hidden) {
            if (impure || entry.kind == Kind::Dir)
                && let Some(found) = self.resolve_unhinted(node, &entry.name)?
            {
                entry.ino = self.inos.map(found.identity.0, found.identity.1);
            }
        }
        Ok(())
    }

    /// Does a directory, whose names are locked, show nothing?
    pub(crate) fn is_empty_locked(&self, node: &Arc<Node>) -> Result<bool, Errno> {
        let dir = node.dir.as_deref().ok_or(Errno::NOTDIR)?;
        if !dir.lowers.is_empty() {
            if let Some(listing) = self.listings.peek(node.id) {
                return Ok(listing.lock().is_empty());
            }
            return Ok(self.build_listing(node)?.is_empty());
        }
        let mut empty = true;
        self.stream(node, 0, &mut |e| {
            if e.name == "." || e.name == ".." {
                return ControlFlow::Continue(());
            }
            empty = false;
            ControlFlow::Break(())
        })?;
        Ok(empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry {
            name: OsStr::new(name).into(),
            ino: 1,
            kind: Kind::File,
            top: Top::Upper,
            hidden: false,
        }
    }

    #[test]
    fn a_name_keeps_its_offset_while_others_come_and_go() {
        let mut listing = Listing::default();
        for i in 0..1000 {
            listing.insert(entry(&format!("f{i}")));
        }
        let (before, there) = listing.locate(OsStr::new("f500"));
        assert!(there);
        for i in 0..400 {
            listing.remove(OsStr::new(&format!("f{i}")));
            listing.insert(entry(&format!("g{i}")));
        }
        assert_eq!(listing.locate(OsStr::new("f500")), (before, true));
        assert!(listing.get(OsStr::new("f3")).is_none());
        assert!(listing.get(OsStr::new("g3")).is_some());
    }

    #[test]
    fn names_with_one_hash_are_kept_apart() {
        let mut listing = Listing::default();
        let (key, _) = listing.locate(OsStr::new("a"));
        listing.entries.insert(key, entry("other"));
        listing.insert(entry("a"));
        assert_eq!(listing.locate(OsStr::new("a")), (key + 1, true));
        if let Some(e) = listing.entries.get_mut(&key) {
            e.hidden = true;
        }
        assert!(listing.get(OsStr::new("a")).is_some());
    }
}
