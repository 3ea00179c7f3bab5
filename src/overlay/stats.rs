//! Live counters of a mount.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Overlay;

/// A counter that many threads add to.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the core counts.
#[derive(Default)]
pub struct Counters {
    /// Objects copied up.
    pub copy_ups: Counter,
    /// Bytes copied by copy-ups; clones count nothing.
    pub copy_up_bytes: Counter,
}

/// The state of a mount at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Live nodes.
    pub nodes: usize,
    /// Descriptors in the caches.
    pub cached_fds: usize,
    /// Descriptors that keep unlinked objects.
    pub pinned_fds: usize,
    /// Objects copied up since the mount.
    pub copy_ups: u64,
    /// Bytes copied by them.
    pub copy_up_bytes: u64,
    /// Number of merged lowers.
    pub lowers: usize,
    /// The upper, if there is one.
    pub upper: Option<String>,
}

impl Overlay {
    /// The mount's counters.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            nodes: self.nodes.len() + 1,
            cached_fds: self.fds.len(),
            pinned_fds: self.pins.used(),
            copy_ups: self.counters.copy_ups.get(),
            copy_up_bytes: self.counters.copy_up_bytes.get(),
            lowers: self.lowers.merged,
            upper: self
                .upper
                .as_ref()
                .map(|u| u.layer.path.display().to_string()),
        }
    }
}
