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

pub(crate) struct Entry {
    pub name: Box<OsStr>,
    pub ino: u64,
    pub kind: Kind,
    pub top: Top,
    /// Of a directory: the lowers in which there is something for its name, in ascending order. `None`: not known.
    pub lowers: Option<Box<[u16]>>,
    pub hidden: bool,
}

impl Entry {
    /// There is something for its name in this layer, beneath the others.
    pub(crate) fn note(&mut self, layer: Top) {
        let (Some(lowers), Top::Lower(n)) = (&mut self.lowers, layer) else {
            return;
        };
        if lowers.last() != Some(&n) {
            let mut longer = std::mem::take(lowers).into_vec();
            longer.push(n);
            *lowers = longer.into();
        }
    }
}

/// A merged listing, in the order of the offsets.
#[derive(Default)]
pub(crate) struct Listing {
    pub entries: BTreeMap<u64, Entry>,
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
    In(Top, Option<Box<[u16]>>),
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

    pub(crate) fn get(&self, id: u64) -> Option<SharedListing> {
        self.inner
            .lock()
            .listings
            .get(&id)
            .map(|(l, _)| Arc::clone(l))
    }

    pub(crate) fn peek(&self, id: u64) -> Option<SharedListing> {
        self.inner
            .lock()
            .listings
            .peek(&id)
            .map(|(l, _)| Arc::clone(l))
    }

    pub(crate) fn put(&self, id: u64, listing: Listing) -> SharedListing {
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

    /// Forgets all listings.
    pub(crate) fn clear(&self) {
        let mut inner = self.inner.lock();
        let old = std::mem::replace(&mut inner.listings, LruCache::unbounded());
        inner.entries = 0;
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
            Some(e) if !e.hidden => Hint::In(e.top, e.lowers.clone()),
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
                lowers: None,
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
}
