//! The data path that goes past the daemon: which opens are passed through to a file of the layers, and which
//! are not.
//!
//! # What the kernel wants (fs/fuse/iomode.c, backing.c, passthrough.c)
//!
//! While anybody has an inode open, it is either in cached mode or has one backing file; an open that is
//! answered otherwise fails with `EIO`. The kernel opens the backing file by its path with the flags of the
//! client's open. So nobody may be handed the backing file of a lower for writing, however it was registered
//! (here: beneath a read-only mount), and when a file has moved to upper under somebody who reads it in the
//! lower, nobody else can open that inode.
//!
//! # What follows
//!
//! - [`Paths`] counts the opens of each node as the kernel does, and answers each open in the mode that the
//!   node is in. The kernel tells of a close late, so the count is never too low, but may be too high for
//!   a moment.
//! - An open that writes copies up first, and is passed through to upper. One that reads is passed through to
//!   where the contents are.
//! - Where the mode of the node doesn't allow that, another node is made for the same object (an *alias*), and
//!   the open is answered `ESTALE`: the kernel looks the name up again, is given the alias, and opens that.
//!   Who reads the lower goes on doing so: it shows the file as it was when it was opened. The two nodes
//!   have the same `st_ino`, but locks of their own in the kernel.
//! - Writes past us clear no set-id bits and capabilities: who opens a file for writing that has some is
//!   answered in cached mode, and so is a write to one that is append-only.
//! - What can't be a backing file (a file system that is stacked itself) is opened in cached mode.
//! - Nothing tells of writes through a mapping. What was opened for reading and writing is asked for its
//!   attributes each time from then on.

use dashmap::DashMap;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::channel::Device;
use super::wire::abi::fopen;
use super::wire::reply::Opened;
use crate::overlay::{Contents, ContentsAt};
use crate::sys::fuse::{close_backing, open_backing};

/// Backing files that are known to the kernel at a time. Each is in use by some client's open file; those
/// beyond are opened in cached mode.
const MOST_BACKINGS: usize = 1 << 16;

/// The handle of an open in cached mode.
const CACHED: u64 = 1;
/// That of one that is passed through to a lower.
const LOWER: u64 = 2;
/// And to upper.
const UPPER: u64 = 3;

/// How the kernel does the I/O of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Through its page cache, and us.
    Cached,
    /// To a backing file.
    Through {
        backing: u32,
        at: ContentsAt,
        /// The length of the file when it was first opened, in bytes.
        size: u64,
    },
}

/// A node that is open.
#[derive(Default)]
struct Node {
    mode: Option<Mode>,
    opens: u64,
    /// It has left the table.
    gone: bool,
}

/// What is remembered of an object while the kernel knows it.
#[derive(Clone, Copy, Default)]
struct Marks {
    /// It was written past us: pages in the kernel's cache may be old.
    written: bool,
    /// It may be mapped for writing: its times change and nobody says so.
    mapped: bool,
}

/// Further nodes for objects.
#[derive(Default)]
struct Aliases {
    /// The object of an alias, and how often the kernel has looked it up.
    objects: HashMap<u64, (u64, u64)>,
    /// The alias under which an object is found.
    current: HashMap<u64, u64>,
}

/// How an open is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// In cached mode.
    Cached,
    /// Passed through to where the contents are.
    Through,
}

/// An open that the mode of the node doesn't allow.
#[derive(Debug)]
pub(super) enum Refused {
    /// The node is in another mode.
    Conflict,
    /// It can't be opened at all.
    Failed(Errno),
}

/// The opens of a connection.
pub(super) struct Paths {
    device: Device,
    nodes: DashMap<u64, Arc<Mutex<Node>>>,
    backings: AtomicUsize,
    marks: DashMap<u64, Marks>,
    aliases: Mutex<Aliases>,
    /// Aliases in the table: most often none, and no lock is taken then.
    alias_count: AtomicUsize,
    next_alias: AtomicU64,
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
            aliases: Mutex::default(),
            alias_count: AtomicUsize::new(0),
            // Far from all inode numbers, real ones and those of the table: see `overlay::inos`.
            next_alias: AtomicU64::new(u64::MAX),
            through: AtomicU64::new(0),
            cached: AtomicU64::new(0),
        }
    }

    /// Runs `f` on the state of a node, which leaves the table if it isn't open afterwards.
    fn with_node<R>(&self, node: u64, f: impl FnOnce(&mut Node) -> R) -> R {
        loop {
            let shared = Arc::clone(&self.nodes.entry(node).or_default());
            let mut state = shared.lock();
            if state.gone {
                continue;
            }
            let result = f(&mut state);
            if state.opens == 0 {
                state.gone = true;
                if let Some(Mode::Through { backing, .. }) = state.mode.take() {
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

    /// Makes a file known to the kernel. `None`: it can't be, or there are too many.
    fn register(&self, contents: &Contents) -> Option<Mode> {
        if self.backings.fetch_add(1, Ordering::AcqRel) >= MOST_BACKINGS {
            self.backings.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        match open_backing(self.device.fd().as_fd(), contents.file.as_fd()) {
            Ok(backing) => Some(Mode::Through {
                backing,
                at: contents.at,
                size: contents.size,
            }),
            Err(e) => {
                tracing::debug!("a file is not passed through to: {e}");
                self.backings.fetch_sub(1, Ordering::AcqRel);
                None
            }
        }
    }

    /// Answers an open of `node`, which stands for `object`. `at`: where its contents are now, `contents`
    /// opens them; both are asked with the node locked, so that an open that finds them in upper comes
    /// after all that found them in a lower.
    pub(super) fn open(
        &self,
        (node, object): (u64, u64),
        way: Way,
        writes: bool,
        at: impl FnOnce() -> Result<ContentsAt, Errno>,
        contents: impl FnOnce() -> Result<Contents, Errno>,
    ) -> Result<Opened, Refused> {
        let keeps = !self.was_written(object);
        self.with_node(node, |state| {
            let mode = match (state.mode, way) {
                (Some(Mode::Cached), _) => Mode::Cached,
                // The kernel itself asks us to clear set-id bits then, before it writes.
                (Some(mode @ Mode::Through { at: known, .. }), Way::Through) => {
                    match at().map_err(Refused::Failed)? == known {
                        true => mode,
                        false => return Err(Refused::Conflict),
                    }
                }
                (Some(Mode::Through { .. }), Way::Cached) => return Err(Refused::Conflict),
                (None, Way::Cached) => Mode::Cached,
                (None, Way::Through) => {
                    let contents = contents().map_err(Refused::Failed)?;
                    self.register(&contents).unwrap_or(Mode::Cached)
                }
            };
            if writes && matches!(mode, Mode::Through { at, .. } if at == ContentsAt::Lower) {
                return Err(Refused::Failed(Errno::IO));
            }
            state.mode = Some(mode);
            state.opens += 1;
            Ok(self.opened(mode, keeps))
        })
    }

    fn opened(&self, mode: Mode, keeps: bool) -> Opened {
        match mode {
            Mode::Cached => {
                self.cached.fetch_add(1, Ordering::Relaxed);
                Opened {
                    handle: CACHED,
                    flags: if keeps { fopen::KEEP_CACHE } else { 0 },
                    backing: 0,
                }
            }
            Mode::Through { backing, at, .. } => {
                self.through.fetch_add(1, Ordering::Relaxed);
                Opened {
                    handle: match at {
                        ContentsAt::Lower => LOWER,
                        ContentsAt::Upper => UPPER,
                    },
                    flags: fopen::PASSTHROUGH,
                    backing,
                }
            }
        }
    }

    /// An open was closed.
    pub(super) fn release(&self, node: u64) {
        self.with_node(node, |state| state.opens = state.opens.saturating_sub(1));
    }

    /// Is the node read in a lower by somebody? Waits a moment for closes that are on their way.
    pub(super) fn is_read_in_lower(&self, node: u64) -> bool {
        const PAUSE: Duration = Duration::from_micros(50);
        const PAUSES: usize = 20;
        for _ in 0..PAUSES {
            if self.lower_size(node).is_none() {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        true
    }

    /// The length of the file in a lower that opens of the node are passed through to.
    fn lower_size(&self, node: u64) -> Option<u64> {
        let state = Arc::clone(self.nodes.get(&node).as_deref()?);
        match state.lock().mode {
            Some(Mode::Through { at, size, .. }) if at == ContentsAt::Lower => Some(size),
            _ => None,
        }
    }

    /// The length of the file as whoever has it open by `handle` sees it, if they see the lower while the
    /// contents are in upper.
    pub(super) fn left_behind(
        &self,
        node: u64,
        handle: u64,
        at: impl FnOnce() -> Result<ContentsAt, Errno>,
    ) -> Result<Option<u64>, Errno> {
        if handle != LOWER || at()? == ContentsAt::Lower {
            return Ok(None);
        }
        Ok(self.lower_size(node))
    }

    /// Notes an open that may write past us. `true`: the kernel must not keep the attributes that it has.
    pub(super) fn note_writer(&self, object: u64, may_map: bool) -> bool {
        let mut marks = self.marks.entry(object).or_default();
        marks.written = true;
        let news = may_map && !marks.mapped;
        marks.mapped |= may_map;
        news
    }

    fn was_written(&self, object: u64) -> bool {
        self.marks.get(&object).is_some_and(|m| m.written) || self.is_split(object)
    }

    /// May the attributes of an object change without the kernel's knowing?
    pub(super) fn changes_unseen(&self, object: u64) -> bool {
        self.marks.get(&object).is_some_and(|m| m.mapped) || self.is_split(object)
    }

    /// Drops what is remembered of an object if it is one no more, which `gone` says.
    pub(super) fn forget_object(&self, object: u64, gone: impl Fn() -> bool) {
        self.marks.remove_if(&object, |_, _| gone());
        if !self.has_aliases() {
            return;
        }
        // Whoever looks the object up anew does so before it asks for its node, with the table locked.
        let mut aliases = self.aliases.lock();
        let known = aliases.objects.values();
        let in_use = known.filter(|(o, _)| *o == object).any(|(_, n)| *n > 0);
        if !in_use && gone() {
            aliases.current.remove(&object);
            aliases.objects.retain(|_, (o, _)| *o != object);
            let left = aliases.objects.len();
            self.alias_count.store(left, Ordering::Release);
        }
    }

    fn has_aliases(&self) -> bool {
        self.alias_count.load(Ordering::Acquire) > 0
    }

    fn is_split(&self, object: u64) -> bool {
        self.has_aliases() && self.aliases.lock().current.contains_key(&object)
    }

    /// The object that a node stands for.
    pub(super) fn object(&self, node: u64) -> u64 {
        if !self.has_aliases() {
            return node;
        }
        let aliases = self.aliases.lock();
        aliases.objects.get(&node).map_or(node, |(object, _)| *object)
    }

    /// The nodes that may stand for an object.
    pub(super) fn nodes_of(&self, object: u64) -> Vec<u64> {
        let mut nodes = vec![object];
        if self.has_aliases() {
            let aliases = self.aliases.lock();
            let of_object = aliases.objects.iter().filter(|(_, (o, _))| *o == object);
            nodes.extend(of_object.map(|(alias, _)| *alias));
        }
        nodes
    }

    /// Makes the node under which an object is found from now on, unless `node` is not the one under which
    /// it is found until now.
    pub(super) fn split(&self, node: u64, object: u64) {
        let mut aliases = self.aliases.lock();
        let current = aliases.current.get(&object).copied().unwrap_or(object);
        if current != node {
            return;
        }
        let alias = self.next_alias.fetch_sub(1, Ordering::Relaxed);
        aliases.objects.insert(alias, (object, 0));
        aliases.current.insert(object, alias);
        self.alias_count.store(aliases.objects.len(), Ordering::Release);
    }

    /// The node to tell the kernel of for an object; it counts as looked up.
    pub(super) fn looked_up(&self, object: u64) -> u64 {
        if !self.has_aliases() {
            return object;
        }
        let mut aliases = self.aliases.lock();
        let Some(alias) = aliases.current.get(&object).copied() else {
            return object;
        };
        if let Some((_, lookups)) = aliases.objects.get_mut(&alias) {
            *lookups += 1;
        }
        alias
    }

    /// The kernel gives `count` lookups of a node back. Gives the object.
    pub(super) fn forget_node(&self, node: u64, count: u64) -> u64 {
        if !self.has_aliases() {
            return node;
        }
        let mut aliases = self.aliases.lock();
        let Some((object, lookups)) = aliases.objects.get_mut(&node) else {
            return node;
        };
        // It stays at 0, too: the kernel looks a name up twice after an open that was refused.
        *lookups = lookups.saturating_sub(count);
        *object
    }

    /// For `rovl stat`: names and numbers.
    pub(super) fn counters(&self) -> [(&'static str, u64); 5] {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        [
            ("opens_passed_through", self.through.load(Ordering::Relaxed)),
            ("opens_cached", self.cached.load(Ordering::Relaxed)),
            ("backing_files", count(self.backings.load(Ordering::Relaxed))),
            ("open_nodes", count(self.nodes.len())),
            ("aliases", count(self.alias_count.load(Ordering::Relaxed))),
        ]
    }
}
