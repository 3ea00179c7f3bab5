//! Merged listings and the cache of them.

use lru::LruCache;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::attr::Kind;

/// Offsets of `.` and `..`; those of hashed names are above.
pub(crate) const DOT: u64 = 1;
pub(crate) const DOT_DOT: u64 = 2;
const FIRST_HASH: u64 = 16;
/// What is left of a hash leaves room for the count of changes in a positive 63-bit offset.
const HASH_SHIFT: u32 = 18;

/// The layer that an entry's topmost object is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Top {
    Upper,
    /// Index into the lowers of the directory.
    Lower(u16),
}

/// One of the lowers of a directory, in which there is something for a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct InLower(u16);

impl InLower {
    const DIR: u16 = 1 << 15;

    /// `n`: index into the lowers. `None`: there are too many.
    pub(crate) fn new(n: u16, dir: bool) -> Option<InLower> {
        (n < InLower::DIR).then_some(InLower(if dir { n | InLower::DIR } else { n }))
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0 & !InLower::DIR)
    }

    /// Is it surely a directory?
    pub(crate) fn is_dir(self) -> bool {
        self.0 & InLower::DIR != 0
    }
}

pub(crate) struct Entry {
    pub name: Box<OsStr>,
    pub ino: u64,
    pub kind: Kind,
    pub top: Top,
    /// Of a directory: the lowers in which there is something for its name, in ascending order. `None`: not known.
    pub lowers: Option<Vec<InLower>>,
    pub hidden: bool,
}

impl Entry {
    /// There is something for its name in this layer, beneath the others.
    pub(crate) fn note(&mut self, layer: Top, dir: bool) {
        let (Some(lowers), Top::Lower(n)) = (&mut self.lowers, layer) else {
            return;
        };
        match InLower::new(n, dir) {
            Some(at) if lowers.last().is_some_and(|l| l.index() == at.index()) => {}
            Some(at) => lowers.push(at),
            // Nobody has so many. Any may have something.
            None => self.lowers = None,
        }
    }
}

/// A merged listing, in the order of the offsets.
#[derive(Default)]
pub(crate) struct Listing {
    pub entries: BTreeMap<u64, Entry>,
    /// How many of the lowers are in it, from the top. `None`: everything is.
    pub upto: Option<usize>,
}

fn hash(name: &OsStr) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name.as_bytes());
    (hasher.finish() >> HASH_SHIFT).max(FIRST_HASH)
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

    pub fn get(&self, name: &OsStr) -> Option<&Entry> {
        let (key, there) = self.locate(name);
        if there { self.entries.get(&key) } else { None }
    }

    pub fn get_mut(&mut self, name: &OsStr) -> Option<&mut Entry> {
        let (key, there) = self.locate(name);
        if there {
            self.entries.get_mut(&key)
        } else {
            None
        }
    }

    pub fn insert(&mut self, entry: Entry) {
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

    /// What it says of `name`, in a directory of so many lowers, and whether it would say more if it were whole.
    fn hint(&self, name: &OsStr, count: usize) -> (Hint, bool) {
        let entry = self.get(name);
        let upto = self.upto.unwrap_or(count);
        let more = upto < count;
        match (entry, u16::try_from(upto)) {
            (Some(e), _) if e.hidden => (Hint::Absent, false),
            (Some(e), _) => {
                let mut lowers = e.lowers.clone();
                if let Some(lowers) = lowers.as_mut().filter(|_| more) {
                    lowers.retain(|l| l.index() < upto);
                    let rest = (upto..count).filter_map(|n| u16::try_from(n).ok());
                    lowers.extend(rest.filter_map(|n| InLower::new(n, false)));
                }
                let more = more && lowers.is_some();
                (Hint::In(e.top, lowers), more)
            }
            (None, Ok(upto)) if more => (Hint::In(Top::Lower(upto), None), true),
            (None, Err(_)) if more => (Hint::Unknown, true),
            (None, _) => (Hint::Absent, false),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.values().all(|e| e.hidden)
    }
}

/// What a cached listing knows of a name.
pub(crate) enum Hint {
    /// No listing is cached.
    Unknown,
    Absent,
    /// It is in this layer and in none above; of a directory, in these lowers and no others.
    In(Top, Option<Vec<InLower>>),
}

type SharedListing = Arc<Mutex<Listing>>;

fn share((listing, _): &(SharedListing, usize)) -> SharedListing {
    Arc::clone(listing)
}

fn is_whole(listing: &SharedListing) -> bool {
    listing.lock().upto.is_none()
}

/// Merged listings of the directories that were listed last, bounded by their entries.
pub(crate) struct ListingCache {
    inner: Mutex<CacheInner>,
}

struct CacheInner {
    listings: LruCache<u64, (SharedListing, usize)>,
    entries: usize,
}

/// About 30 MiB.
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

    /// The whole listing of a directory, which becomes the most recently used one.
    pub(crate) fn get(&self, id: u64) -> Option<SharedListing> {
        let found = self.inner.lock().listings.get(&id).map(share);
        found.filter(is_whole)
    }

    /// The whole listing of a directory.
    pub(crate) fn peek(&self, id: u64) -> Option<SharedListing> {
        self.peek_any(id).filter(is_whole)
    }

    fn peek_any(&self, id: u64) -> Option<SharedListing> {
        self.inner.lock().listings.peek(&id).map(share)
    }

    /// Takes the listing of some of a directory's lowers out, to be gone on with.
    pub(crate) fn take_begun(&self, id: u64) -> Option<Listing> {
        self.peek_any(id).filter(|l| !is_whole(l))?;
        let begun = self.remove(id)?;
        // Who is about to look a name up in it finds nothing.
        let nothing = Listing {
            upto: Some(0),
            ..Listing::default()
        };
        Some(std::mem::replace(&mut *begun.lock(), nothing))
    }

    pub(crate) fn put(&self, id: u64, listing: Listing) -> SharedListing {
        // What is noted of the lowers takes room, too.
        let noted = |e: &Entry| e.lowers.as_ref().map_or(0, Vec::len);
        let size =
            8 + listing.entries.len() + listing.entries.values().map(noted).sum::<usize>() / 32;
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
    pub(crate) fn remove(&self, id: u64) -> Option<SharedListing> {
        let mut inner = self.inner.lock();
        let (old, n) = inner.listings.pop(&id)?;
        inner.entries -= n;
        drop(inner);
        Some(old)
    }

    /// Forgets all listings.
    pub(crate) fn clear(&self) {
        let mut inner = self.inner.lock();
        let old = std::mem::replace(&mut inner.listings, LruCache::unbounded());
        inner.entries = 0;
        drop(inner);
        drop(old);
    }

    /// What the cached listing of the directory, which has so many lowers, says of `name`, and whether a whole one
    /// would say more.
    pub(crate) fn hint(&self, id: u64, name: &OsStr, count: usize) -> (Hint, bool) {
        match self.peek_any(id) {
            Some(listing) => listing.lock().hint(name, count),
            None => (Hint::Unknown, true),
        }
    }

    /// The whole listing, to be changed. One of some lowers is dropped: it says nothing of upper.
    fn to_change(&self, id: u64) -> Option<SharedListing> {
        let listing = self.peek_any(id)?;
        if !is_whole(&listing) {
            self.remove(id);
            return None;
        }
        Some(listing)
    }

    /// Keeps a cached listing right: `name` is in upper now.
    pub(crate) fn added(&self, id: u64, name: &OsStr, ino: u64, kind: Kind) {
        if let Some(listing) = self.to_change(id) {
            let entry = Entry {
                name: name.into(),
                ino,
                kind,
                top: Top::Upper,
                lowers: None,
                hidden: false,
            };
            listing.lock().insert(entry);
        }
    }

    /// Keeps a cached listing right: `name` is gone.
    pub(crate) fn removed(&self, id: u64, name: &OsStr) {
        if let Some(listing) = self.to_change(id) {
            listing.lock().remove(name);
        }
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
            lowers: None,
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

    #[test]
    fn a_listing_of_some_lowers_says_which_are_to_be_asked() {
        let cache = ListingCache::new();
        let mut begun = Listing {
            upto: Some(2),
            ..Listing::default()
        };
        let mut dir = entry("dir");
        (dir.kind, dir.top, dir.lowers) = (Kind::Dir, Top::Lower(1), Some(Vec::new()));
        dir.note(Top::Lower(1), true);
        // Of a lower that was not read to its end.
        dir.note(Top::Lower(2), true);
        begun.insert(dir);
        let mut file = entry("file");
        file.top = Top::Lower(0);
        begun.insert(file);
        let mut whiteout = entry("whiteout");
        (whiteout.top, whiteout.hidden) = (Top::Lower(0), true);
        begun.insert(whiteout);
        cache.put(1, begun);
        let hint = |name: &str| cache.hint(1, OsStr::new(name), 4);
        let (Hint::In(Top::Lower(1), Some(lowers)), true) = hint("dir") else {
            panic!("a directory may be in more lowers");
        };
        let lowers: Vec<_> = lowers.iter().map(|l| (l.index(), l.is_dir())).collect();
        assert_eq!(lowers, [(1, true), (2, false), (3, false)]);
        assert!(matches!(
            hint("file"),
            (Hint::In(Top::Lower(0), None), false)
        ));
        assert!(matches!(hint("whiteout"), (Hint::Absent, false)));
        assert!(matches!(
            hint("missing"),
            (Hint::In(Top::Lower(2), None), true)
        ));
        assert!(cache.get(1).is_none() && cache.peek(1).is_none());
        // It says nothing of upper.
        cache.removed(1, OsStr::new("file"));
        assert!(matches!(hint("file"), (Hint::Unknown, true)));
    }

    #[test]
    fn what_was_begun_is_taken_out_to_be_gone_on_with() {
        let cache = ListingCache::new();
        assert!(cache.take_begun(1).is_none());
        let mut listing = Listing {
            upto: Some(1),
            ..Listing::default()
        };
        listing.insert(entry("a"));
        cache.put(1, listing);
        let mut taken = cache.take_begun(1).unwrap();
        assert!(taken.get(OsStr::new("a")).is_some());
        assert!(cache.take_begun(1).is_none());
        taken.upto = None;
        cache.put(1, taken);
        assert!(cache.take_begun(1).is_none() && cache.get(1).is_some());
    }
}
