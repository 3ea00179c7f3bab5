//! The semantics of the merged tree, on directory file descriptors, with no FUSE in it.
//!
//! [`Overlay`] is opened from a [`Config`] and then answers what a file system is asked: lookups,
//! attributes, listings, changes, reads and writes. It names objects by node id and component, as
//! the kernel's VFS does; it never handles a path string from a client.
//!
//! # Locks, in the order in which they are taken
//!
//! 1. `Node::copying`: held over a copy-up, also while data is copied. It blocks nobody but those
//!    who want to change the same object. Ancestors are copied up before, each on its own.
//! 2. `DirPart::names` of directories (several in the order of their ids): shared by lookups and
//!    listings, exclusive for whoever changes a name in the directory. Nobody copies up with it
//!    held: everything is brought to upper first, and looked at again once the lock is there.
//!    `DirPart::looked_into` comes after it; lookups don't wait for it.
//!    A tree beneath another's top layer ([`beneath`]) takes its `Beneath::state` after these: shared by whoever
//!    numbers a node, exclusive for whoever is about to change the other tree.
//! 3. `Node::place`: a node's name, parent and layers. Written only while the name on disk is
//!    changed with it, so that whoever holds it for reading can use the name. Nobody takes a
//!    lock of the node table while holding it for writing.
//! 4. Shards of the node table and of the times of cached writes, the descriptor caches, the listing
//!    cache, `Ids::changing`: leaves.
//!
//! # Invariants
//!
//! - Nothing is ever opened for writing beneath a lower.
//! - Names are only ever used one component at a time beneath a directory's descriptor, and never
//!   through a symlink. (`LowerLayers::lacks` asks for two, but opens nothing and believes a "no" only.)
//! - What appears in upper appears complete: built in `work`, then one rename or link.

pub(crate) mod attr;
pub mod beneath;
pub mod config;
mod contents;
mod copy_up;
mod create;
mod descent;
mod fds;
mod file;
mod flags;
mod ids;
mod index;
mod inos;
mod intern;
mod layer;
mod listing;
mod looked_into;
mod lookup;
mod marks;
mod metacopy;
mod metadata;
pub mod mountinfo;
mod node;
mod opaque;
mod open;
mod readdir;
mod refresh;
mod remove;
mod rename;
mod stats;
mod statx;
mod tmpfile;
pub mod validate;
mod work;
mod xattrless;
mod xattrs;

pub use attr::{Attr, Kind, SetAttr, SetTime, Timestamp, without_set_ids};
pub use beneath::Beneath;
pub use config::{Config, IdMap, IdOptions, RedirectDir, UpperDirs, Uuid, XattrPermissions, Xino};
pub use contents::ContentsAt;
pub use create::{Caller, NewNode};
pub use file::WriteHow;
pub use metadata::{FsStat, Unprivileged};
pub use node::{Node, ROOT_ID};
pub use open::{CACHED_DESCRIPTORS, OpenError};
pub use readdir::ListedEntry;
pub use refresh::KnownName;
pub use rename::RenameMode;
pub use stats::{Counters, Snapshot};

use dashmap::DashMap;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::format::keys::Namespace;
use fds::{FdCache, FdKey, PinBudget};
use inos::InoMap;
use layer::{DIR_PATH, DirFd, Layer, LowerLayers, open_names};
use listing::ListingCache;
use node::NodeTable;
use work::Work;

/// The writable part of a mount.
pub(crate) struct Upper {
    /// Its root as a layer; never handed out for lower access.
    pub layer: Layer,
    pub work: Work,
}

/// How a directory with a lower part is moved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moves {
    /// A redirect says where the lower part is.
    Redirect,
    /// Everything in it is copied up first: redirects can't be stored, or would not be followed.
    Copy,
    /// Not at all: `EXDEV`.
    Refused,
}

/// A merged tree.
pub struct Overlay {
    pub(crate) config: Config,
    pub(crate) ns: Namespace,
    pub(crate) ids: ids::Ids,
    pub(crate) lowers: LowerLayers,
    pub(crate) upper: Option<Upper>,
    pub(crate) inos: InoMap,
    pub(crate) nodes: NodeTable,
    pub(crate) root: Arc<Node>,
    pub(crate) root_ino: u64,
    pub(crate) fds: FdCache,
    pub(crate) pins: Arc<PinBudget>,
    pub(crate) listings: ListingCache,
    /// Names of lower hard links that were removed without a copy-up, by inode number.
    pub(crate) unlinked_lowers: DashMap<u64, u32>,
    /// Modification times that cached writes must leave, of files that were written.
    pub(crate) mtimes: DashMap<u64, Timestamp>,
    pub(crate) follow_redirects: bool,
    /// What a rename does with a directory that has a lower part.
    pub(crate) moves: Moves,
    /// Can xattrs be written to upper at all?
    pub(crate) upper_xattrs: bool,
    pub(crate) xattrless: xattrless::Xattrless,
    pub(crate) counters: Counters,
    /// A lower lies on a mount that maps ids.
    pub(crate) lowers_idmapped: bool,
    /// Kept for their locks.
    pub(crate) _locks: validate::Locks,
}

impl Overlay {
    /// The live node with this id.
    ///
    /// # Errors
    /// `ESTALE` if there is none.
    pub fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        if id == ROOT_ID {
            return Ok(Arc::clone(&self.root));
        }
        self.nodes.get(id).ok_or(Errno::STALE)
    }

    /// Gives back `count` references that [`lookup`](Self::lookup) and the calls that make objects
    /// have taken. Unknown ids are ignored.
    pub fn forget(&self, id: u64, count: u64) {
        if let Some(node) = self.nodes.get(id) {
            self.release(&node, count);
        }
    }

    pub(crate) fn release(&self, node: &Arc<Node>, count: u64) {
        self.nodes
            .release(node, count, &mut |gone| self.drop_node(gone));
    }

    /// Frees what a node held that nobody knows any more.
    fn drop_node(&self, node: &Node) {
        self.fds.remove_node(node.id, node.dir.is_some());
        self.inos.unbind(node.place.read().upper_ino, node.id);
        if node.kind == Kind::File {
            self.mtimes.remove(&node.id);
        }
        if let Some(dir) = &node.dir {
            self.listings.remove(node.id);
            for lower in dir.lowers().iter() {
                self.fds.remove(FdKey::LowerDir(lower.uid));
            }
        }
        let parked = node.place.read().parked().map(OsString::from);
        if let (Some(name), Some(upper)) = (parked, &self.upper)
            && let Err(e) = work::remove_tree(upper.work.dir.as_fd(), &name)
        {
            tracing::warn!(?name, "an unlinked file stays in work: {e}");
        }
    }

    /// The mount's upper.
    ///
    /// # Errors
    /// `EROFS` if there is none.
    pub(crate) fn upper(&self) -> Result<&Upper, Errno> {
        self.upper.as_ref().ok_or(Errno::ROFS)
    }

    /// Is the mount without an upper?
    pub fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// The inode number that clients see.
    pub fn ino_of(&self, node: &Node) -> u64 {
        if node.id == ROOT_ID {
            self.root_ino
        } else {
            node.ino()
        }
    }

    /// An `O_PATH` descriptor of upper's part of a directory that is in upper.
    ///
    /// # Errors
    /// `ESTALE` if the directory isn't where the mount left it.
    pub(crate) fn upper_dir_fd(&self, node: &Node) -> Result<DirFd<'_>, Errno> {
        let upper = self.upper()?;
        if node.id == ROOT_ID {
            return Ok(DirFd::Root(upper.layer.root.as_fd()));
        }
        if let Some(fd) = self.fds.get(FdKey::UpperDir(node.id)) {
            return Ok(DirFd::Cached(fd));
        }
        if let Some(pin) = node.place.read().pin() {
            let fd = rustix::fs::openat(&pin.fd, c".", DIR_PATH, Mode::empty())?;
            return Ok(DirFd::Cached(self.fds.put(FdKey::UpperDir(node.id), fd)));
        }
        // A rename of an ancestor between reading the names and opening them shows as absence or
        // as another inode: then the names are read again.
        const ATTEMPTS: usize = 64;
        let mut last = Errno::STALE;
        for _ in 0..ATTEMPTS {
            match self.open_upper_dir(node, upper) {
                Ok(fd) => {
                    let ino = attr::stat_at(fd.as_fd(), "".as_ref())?.stx_ino;
                    if ino == node.place.read().upper_ino {
                        return Ok(DirFd::Cached(self.fds.put(FdKey::UpperDir(node.id), fd)));
                    }
                    last = Errno::STALE;
                }
                Err(e @ (Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => last = e,
                Err(e) => return Err(e),
            }
        }
        Err(if last == Errno::NOENT {
            Errno::STALE
        } else {
            last
        })
    }

    /// Opens the directory by the names of its ancestors, from the nearest one that is open.
    fn open_upper_dir(&self, node: &Node, upper: &Upper) -> Result<OwnedFd, Errno> {
        let mut names: Vec<Box<std::ffi::OsStr>> = Vec::new();
        let mut at: Option<Arc<Node>> = {
            let place = node.place.read();
            names.push(place.name.clone());
            place.parent.clone()
        };
        let base = loop {
            let Some(dir) = at else {
                return Err(Errno::NOENT);
            };
            if dir.id == ROOT_ID {
                break DirFd::Root(upper.layer.root.as_fd());
            }
            if let Some(fd) = self.fds.get(FdKey::UpperDir(dir.id)) {
                break DirFd::Cached(fd);
            }
            let place = dir.place.read();
            names.push(place.name.clone());
            let next = place.parent.clone();
            drop(place);
            at = next;
        };
        open_names(base.as_fd(), names.iter().rev().map(|n| &**n))
    }

    /// Calls `f` with a directory descriptor and a name (empty: the descriptor itself) that stand
    /// for the node's topmost object, which stays there while `f` runs.
    ///
    /// # Errors
    /// `ESTALE` when the object can't be reached, and what `f` returns.
    pub(crate) fn with_object<T>(
        &self,
        node: &Node,
        f: impl FnOnce(BorrowedFd<'_>, &std::ffi::OsStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let empty = std::ffi::OsStr::new("");
        if node.id == ROOT_ID {
            let fd = match (&self.upper, &node.dir) {
                (Some(upper), _) => upper.layer.root.as_fd(),
                (None, _) => self.lowers.layers[0].root.as_fd(),
            };
            return f(fd, empty);
        }
        if let Some(dir) = &node.dir {
            // A directory's descriptor stands for it wherever it is moved to.
            if node.place.read().has_upper() {
                return f(self.upper_dir_fd(node)?.as_fd(), empty);
            }
            let lowers = dir.lowers();
            let lower = lowers.first().ok_or(Errno::STALE)?;
            return f(self.lowers.dir_fd(&self.fds, lower)?.as_fd(), empty);
        }
        let parent = node.place.read().parent.clone();
        let parent_fd = match &parent {
            Some(p) if p.place.read().has_upper() => Some(self.upper_dir_fd(p)?),
            _ => None,
        };
        let place = node.place.read();
        if place.has_upper() {
            let upper = self.upper()?;
            if let Some(pin) = place.pin() {
                return f(pin.fd.as_fd(), empty);
            }
            if let Some(name) = place.parked() {
                return f(upper.work.dir.as_fd(), name.as_ref());
            }
            let moved = place.parent.as_ref().map(|p| p.id) != parent.as_ref().map(|p| p.id);
            if place.upper_alias && !place.removed && !moved {
                let fd = parent_fd.ok_or(Errno::STALE)?;
                return f(fd.as_fd(), &place.name);
            }
            if place.upper_alias && !place.removed {
                // It moved to another directory between the two looks at its place.
                drop(place);
                return self.with_object(node, f);
            }
            let index = upper.work.index.as_ref().ok_or(Errno::STALE)?;
            let name = place.index().ok_or(Errno::STALE)?;
            return f(index.as_fd(), name.as_ref());
        }
        let lower = place.lower.as_ref().ok_or(Errno::STALE)?;
        let fd = self.lowers.dir_fd(&self.fds, &lower.dir)?;
        f(fd.as_fd(), lower.name.as_deref().unwrap_or(&place.name))
    }

    /// Opens the node's topmost object (a file, or a directory to be listed) with these flags.
    pub(crate) fn open_object(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        self.with_object(node, |dir, name| {
            if !name.is_empty() {
                return rustix::fs::openat(dir, name, flags, Mode::empty());
            }
            if node.dir.is_some() {
                return rustix::fs::openat(dir, c".", flags, Mode::empty());
            }
            crate::sys::fs::reopen(dir, flags.difference(OFlags::NOFOLLOW))
        })
    }

    /// Ends the mount: empties `work/work`, and makes upper durable, as unmounting the kernel's
    /// overlayfs does.
    ///
    /// # Errors
    /// What the file system returns; the mount is over all the same.
    pub fn close(&self) -> Result<(), Errno> {
        self.fds.clear();
        let Some(upper) = &self.upper else {
            return Ok(());
        };
        let cleaned = upper.work.clean_up();
        self.sync_all()?;
        cleaned
    }
}
