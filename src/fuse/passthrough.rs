//! The data path that goes past the daemon: which opens are passed through to a file of the layers, and which
//! are not.
//!
//! # What the kernel wants (fs/fuse/iomode.c, backing.c, passthrough.c of Linux 6.18)
//!
//! While anybody has an inode open, it is either in cached mode or has one backing file; an open that is
//! answered otherwise fails with `EIO`. The kernel opens the backing file by its path with the flags of the
//! client's open, so whoever is passed through to a lower with an open for writing writes to the lower.
//!
//! # The rules
//!
//! [`Paths`] counts the opens of each node as the kernel does, and answers each open in the mode that the node
//! is in. The first open decides:
//!
//! - Contents in upper: passed through.
//! - Contents in a lower: passed through if the mount has no upper; cached otherwise, also if they are to be
//!   written: nothing is copied up before it has to be, and a truncation may come first. The contents of such a
//!   file can move to upper while it is open, its backing file can't, so a reader of the lower would go
//!   on reading what is old: `tail -f` sees no new lines, SQLite mixes pages of before and after a
//!   checkpoint. (To give later opens another node, by answering `ESTALE`, was tried: it works, and locks
//!   of the two nodes don't exclude each other, besides.) The kernel's overlayfs switches its reader over.
//! - To be written, with set-id bits or capabilities, immutable or append-only: cached. What goes past us
//!   clears nothing and checks nothing. If such a file is open and passed through to upper already, the
//!   kernel itself asks us to clear bits and capabilities before it writes.
//! - No backing file can be had (layers on a file system that is stacked itself, too many): cached.
//!
//! So no open ever meets a node in a mode that it can't be in: contents in upper stay there, and those of
//! a mount without upper stay in their lower.
//!
//! The kernel tells of a close late, and after it has left the mode itself. A count is never too low, and where
//! it is too high for a moment, the next open is answered as the one before.
//!
//! # What else follows
//!
//! - Nothing tells of stores to a mapping. The attributes of what was opened for reading and writing are not
//!   cached from then on, since the mapping may live longer than the open.
//! - Pages that the kernel's cache holds of a file are old once it was written past that cache; they are
//!   dropped by the next cached open.

use dashmap::DashMap;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::channel::Device;
use super::wire::abi::fopen;
use super::wire::reply::Opened;
use crate::sys::fuse::{close_backing, open_backing};

/// Backing files that are known to the kernel at a time. Each is in use by some client's open file, and holds
/// one more in the kernel, none here; what is opened beyond is cached.
const MOST_BACKINGS: usize = 1 << 16;

/// How the kernel does the I/O of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Through its page cache, and us.
    Cached,
    /// To the backing file of this number.
    Through(u32),
}

/// A node that is open.
#[derive(Default)]
struct Open {
    mode: Option<Mode>,
    count: u64,
    /// It has left the table.
    gone: bool,
}

/// What is remembered of a node while the kernel knows it.
#[derive(Clone, Copy, Default)]
struct Marks {
    /// It was written past us: pages in the kernel's cache may be old.
    written: bool,
    /// It may be mapped for writing: its times change and nobody says so.
    mapped: bool,
}

/// The opens of a connection. A lock of a node is held while the core opens its file; the core knows nothing
/// of these.
pub(super) struct Paths {
    device: Device,
    nodes: DashMap<u64, Arc<Mutex<Open>>>,
    backings: AtomicUsize,
    marks: DashMap<u64, Marks>,
    through: AtomicU64,
    cached: AtomicU64,
}

impl Paths {
    pub(super) fn new(device: Device) -> Paths {
        Paths {
            device,
            nodes: DashMap::new(),
            backings: AtomicUsize::new(0),
            marks: DashMap::new(),
            through: AtomicU64::new(0),
            cached: AtomicU64::new(0),
        }
    }

    /// Runs `f` on the state of a node, which leaves the table if it isn't open afterwards.
    fn with_node<R>(&self, node: u64, f: impl FnOnce(&mut Open) -> R) -> R {
        loop {
            let shared = Arc::clone(&self.nodes.entry(node).or_default());
            let mut state = shared.lock();
            if state.gone {
                continue;
            }
            let result = f(&mut state);
            if state.count == 0 {
                state.gone = true;
                if let Some(Mode::Through(backing)) = state.mode.take() {
                    self.forget_backing(backing);
                }
                self.nodes
                    .remove_if(&node, |_, other| Arc::ptr_eq(other, &shared));
            }
            return result;
        }
    }

    fn forget_backing(&self, backing: u32) {
        self.backings.fetch_sub(1, Ordering::AcqRel);
        if let Err(e) = close_backing(self.device.fd().as_fd(), backing) {
            tracing::warn!(backing, "a backing file stays open: {e}");
        }
    }

    /// Makes a file known to the kernel, if that can be.
    fn register(&self, file: &OwnedFd) -> Mode {
        if self.backings.fetch_add(1, Ordering::AcqRel) < MOST_BACKINGS {
            match open_backing(self.device.fd().as_fd(), file.as_fd()) {
                Ok(backing) => return Mode::Through(backing),
                Err(e) => tracing::debug!("a file is not passed through to: {e}"),
            }
        }
        self.backings.fetch_sub(1, Ordering::AcqRel);
        Mode::Cached
    }

    /// Answers an open. `backing` opens the file that it is passed through to if it is the first open; `None`:
    /// it is to be cached then.
    ///
    /// # Errors
    /// Those of `backing`.
    pub(super) fn open(
        &self,
        node: u64,
        backing: impl FnOnce() -> Result<Option<OwnedFd>, Errno>,
    ) -> Result<Opened, Errno> {
        let mode = self.with_node(node, |state| {
            let mode = match state.mode {
                Some(mode) => mode,
                None => backing()?.map_or(Mode::Cached, |file| self.register(&file)),
            };
            state.mode = Some(mode);
            state.count += 1;
            Ok(mode)
        })?;
        Ok(match mode {
            Mode::Cached => {
                self.cached.fetch_add(1, Ordering::Relaxed);
                let written = self.marks.get(&node).is_some_and(|marks| marks.written);
                Opened {
                    flags: if written { 0 } else { fopen::KEEP_CACHE },
                    backing: 0,
                }
            }
            Mode::Through(backing) => {
                self.through.fetch_add(1, Ordering::Relaxed);
                Opened {
                    flags: fopen::PASSTHROUGH,
                    backing,
                }
            }
        })
    }

    /// An open was closed.
    pub(super) fn release(&self, node: u64) {
        self.with_node(node, |state| state.count = state.count.saturating_sub(1));
    }

    /// Notes an open that may write past us. `true`: the kernel must not keep the attributes that it has.
    pub(super) fn note_writer(&self, node: u64, may_map: bool) -> bool {
        let mut marks = self.marks.entry(node).or_default();
        marks.written = true;
        let news = may_map && !marks.mapped;
        marks.mapped |= may_map;
        news
    }

    /// May the attributes of a node change without the kernel's knowing?
    pub(super) fn changes_unseen(&self, node: u64) -> bool {
        self.marks.get(&node).is_some_and(|marks| marks.mapped)
    }

    /// Drops what is remembered of a node if there is none any more, which `gone` says.
    pub(super) fn forget(&self, node: u64, gone: impl FnOnce() -> bool) {
        self.marks.remove_if(&node, |_, _| gone());
    }

    /// For `rovl stat`: names and numbers.
    pub(super) fn counters(&self) -> [(&'static str, u64); 5] {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        [
            ("opens_passed_through", self.through.load(Ordering::Relaxed)),
            ("opens_cached", self.cached.load(Ordering::Relaxed)),
            (
                "backing_files",
                count(self.backings.load(Ordering::Relaxed)),
            ),
            ("open_nodes", count(self.nodes.len())),
            ("written_nodes", count(self.marks.len())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No connection: nothing can be registered there.
    fn paths() -> Paths {
        let nobody = tempfile::tempfile().unwrap();
        Paths::new(Device::new(nobody.into()).unwrap())
    }

    fn file() -> Result<Option<OwnedFd>, Errno> {
        Ok(Some(tempfile::tempfile().unwrap().into()))
    }

    fn value(paths: &Paths, name: &str) -> u64 {
        let counters = paths.counters();
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }

    #[test]
    fn what_can_not_be_a_backing_file_is_cached() {
        let paths = paths();
        let opened = paths.open(7, file).unwrap();
        assert_eq!((opened.flags, opened.backing), (fopen::KEEP_CACHE, 0));
        let again = paths.open(7, || panic!("it is open already"));
        assert_eq!(again, Ok(opened));
        assert_eq!(value(&paths, "opens_cached"), 2);
        assert_eq!(value(&paths, "backing_files"), 0);
        for left in [1, 0, 0] {
            paths.release(7);
            assert_eq!(value(&paths, "open_nodes"), left);
        }
    }

    #[test]
    fn an_open_that_fails_is_none() {
        let paths = paths();
        assert_eq!(paths.open(7, || Err(Errno::NOENT)), Err(Errno::NOENT));
        assert_eq!(value(&paths, "open_nodes"), 0);
    }

    #[test]
    fn what_was_written_past_the_cache_is_not_kept_in_it() {
        let paths = paths();
        assert!(!paths.note_writer(7, false) && !paths.changes_unseen(7));
        assert!(paths.note_writer(7, true) && !paths.note_writer(7, true));
        assert!(paths.changes_unseen(7) && !paths.changes_unseen(8));
        assert_eq!(paths.open(7, || Ok(None)).unwrap().flags, 0);
        paths.forget(7, || false);
        assert!(paths.changes_unseen(7));
        paths.forget(7, || true);
        assert!(!paths.changes_unseen(7));
        assert_eq!(value(&paths, "written_nodes"), 0);
    }

    #[test]
    fn opens_and_closes_of_many_threads_add_up() {
        let paths = paths();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for round in 0..2_000 {
                        paths.open(round % 3, || Ok(None)).unwrap();
                        paths.release(round % 3);
                    }
                });
            }
        });
        assert_eq!(value(&paths, "open_nodes"), 0);
        assert_eq!(value(&paths, "opens_cached"), 16_000);
    }
}
