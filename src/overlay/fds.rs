//! Bounded caches of open file descriptors.
//!
//! There is no descriptor per inode: the limit can be as low as 256. Whatever is open here can be
//! closed at any time and opened again by name, so the caches only save system calls.

use lru::LruCache;
use parking_lot::Mutex;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a cached descriptor is good for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum FdKey {
    /// `O_PATH` of an upper directory, by node id.
    UpperDir(u64),
    /// `O_PATH` of a lower directory, by [`LowerDir`](super::layer::LowerDir) uid.
    LowerDir(u64),
    /// Open for reading (files and listings), by node id.
    Read(u64),
    /// Open for reading and writing, by node id.
    Write(u64),
}

const SHARDS: usize = 8;

/// An LRU of descriptors; dropping the last clone of an entry closes it.
pub(crate) struct FdCache {
    shards: Vec<Mutex<LruCache<FdKey, Arc<OwnedFd>>>>,
}

impl FdCache {
    /// A cache of at most about `capacity` descriptors.
    pub(crate) fn new(capacity: usize) -> FdCache {
        let per_shard = NonZeroUsize::new(capacity / SHARDS).unwrap_or(NonZeroUsize::MIN);
        let shard = || Mutex::new(LruCache::with_hasher(per_shard, Default::default()));
        FdCache {
            shards: (0..SHARDS).map(|_| shard()).collect(),
        }
    }

    fn shard(&self, key: FdKey) -> &Mutex<LruCache<FdKey, Arc<OwnedFd>>> {
        let id = match key {
            FdKey::UpperDir(n) | FdKey::LowerDir(n) => n,
            FdKey::Read(n) | FdKey::Write(n) => n.rotate_right(7),
        };
        let spread = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61;
        &self.shards[spread as usize % SHARDS]
    }

    /// The descriptor under `key`, which becomes the most recently used one.
    pub(crate) fn get(&self, key: FdKey) -> Option<Arc<OwnedFd>> {
        self.shard(key).lock().get(&key).cloned()
    }

    /// Keeps `fd` under `key`; what is pushed out is closed once nobody uses it.
    pub(crate) fn put(&self, key: FdKey, fd: OwnedFd) -> Arc<OwnedFd> {
        let fd = Arc::new(fd);
        let pushed_out = self.shard(key).lock().push(key, Arc::clone(&fd));
        drop(pushed_out); // closing may take time: not under the lock
        fd
    }

    /// Forgets the descriptor under `key`.
    pub(crate) fn remove(&self, key: FdKey) {
        let gone = self.shard(key).lock().pop(&key);
        drop(gone);
    }

    /// Forgets all that belongs to a node that nobody knows any more.
    pub(crate) fn remove_node(&self, id: u64, is_dir: bool) {
        if is_dir {
            self.remove(FdKey::UpperDir(id));
        } else {
            self.remove(FdKey::Write(id));
        }
        self.remove(FdKey::Read(id));
    }

    /// Number of descriptors held.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }

    /// Drops every descriptor.
    pub(crate) fn clear(&self) {
        for shard in &self.shards {
            shard.lock().clear();
        }
    }
}

/// Counts the descriptors that must stay open: those of unlinked objects.
pub(crate) struct PinBudget {
    used: AtomicUsize,
    limit: usize,
}

impl PinBudget {
    pub(crate) fn new(limit: usize) -> Arc<PinBudget> {
        Arc::new(PinBudget {
            used: AtomicUsize::new(0),
            limit,
        })
    }

    /// Takes one place; `None` when all are taken.
    pub(crate) fn take(self: &Arc<Self>) -> Option<PinPlace> {
        let take = |n| (n < self.limit).then_some(n + 1);
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            .ok()
            .map(|_| PinPlace(Arc::clone(self)))
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }
}

/// One taken place of a [`PinBudget`], given back on drop.
pub(crate) struct PinPlace(Arc<PinBudget>);

impl Drop for PinPlace {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}
