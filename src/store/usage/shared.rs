//! Blocks that several files of the store have.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::sys::extents::{Extent, each_extent};

/// File systems whose files never share blocks: ext2 to ext4, and tmpfs (linux/magic.h).
const NEVER_SHARED: [i64; 2] = [0xef53, 0x0102_1994];

/// The shared blocks that were seen so far.
#[derive(Debug, Default)]
pub(super) struct SharedBlocks {
    /// Disjoint ranges of bytes: where each begins, and its end.
    seen: BTreeMap<u64, u64>,
}

impl SharedBlocks {
    /// For files below `root`; `None` where none can share blocks.
    pub(super) fn new(root: &Path) -> Option<SharedBlocks> {
        let kind = rustix::fs::statfs(root).ok()?.f_type;
        (!NEVER_SHARED.contains(&kind)).then(SharedBlocks::default)
    }

    /// Bytes of a file that files before it have, too. None where the file system doesn't tell.
    pub(super) fn add(&mut self, path: &Path) -> u64 {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else {
            return 0;
        };
        let mut again = 0;
        let result = each_extent(File::from(file).as_fd(), |extent| again += self.see(extent));
        if let Err(errno) = result {
            tracing::debug!(%errno, path = %path.display(), "its extents can't be had");
        }
        again
    }

    /// Notes an extent; bytes of it that were seen before.
    fn see(&mut self, extent: Extent) -> u64 {
        if !extent.is_shared {
            return 0;
        }
        let (mut from, mut to) = (extent.physical, extent.physical + extent.length);
        let mut again = 0;
        let touching: Vec<(u64, u64)> = self
            .seen
            .range(..=to)
            .rev()
            .take_while(|(_, end)| **end >= from)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in touching {
            let overlap = end.min(extent.physical + extent.length);
            again += overlap.saturating_sub(start.max(extent.physical));
            (from, to) = (from.min(start), to.max(end));
            self.seen.remove(&start);
        }
        self.seen.insert(from, to);
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_again_is_counted_once_more() {
        let mut blocks = SharedBlocks::default();
        let mut see = |physical, length| {
            blocks.see(Extent {
                physical,
                length,
                is_shared: true,
            })
        };
        assert_eq!(see(100, 50), 0);
        assert_eq!(see(200, 50), 0);
        assert_eq!(see(100, 50), 50);
        assert_eq!(see(120, 10), 10);
        assert_eq!(see(90, 20), 10);
        assert_eq!(see(140, 100), 10 + 40);
        assert_eq!(see(0, 1000), 160);
        assert_eq!(see(0, 1000), 1000);
        let own = Extent {
            physical: 0,
            length: 5,
            is_shared: false,
        };
        assert_eq!(blocks.see(own), 0);
    }
}
