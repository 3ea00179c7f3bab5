//! Nodes: what the mount knows of one object of the merged tree, and the table of them.
//!
//! A node lives while the kernel has looked it up more often than it has forgotten it, or while a
//! child names it as its parent. Nothing else keeps nodes: the tree itself is on disk.

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use parking_lot::{Mutex, RwLock};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::attr::Kind;
use super::fds::PinPlace;
use super::flags::Protection;
use super::layer::{AufsFlag, LowerDir};
use super::looked_into::LookedInto;
use crate::format::redirect::Redirect;

/// The node id of the root of the mount. Every other node's id is its `st_ino`, but for single
/// names of hard links that are broken by copy-up.
pub const ROOT_ID: u64 = 1;

/// A lower object that is not a directory.
#[derive(Clone)]
pub(crate) struct LowerFile {
    pub dir: Arc<LowerDir>,
    /// `None`: under the node's own name.
    pub name: Option<Box<OsStr>>,
}

/// Where the contents of a file are that has only attributes in its layer (`overlay.metacopy`).
#[derive(Clone)]
pub(crate) enum DataAt {
    /// In a lower.
    Lower {
        dir: Arc<LowerDir>,
        name: Box<OsStr>,
        /// The space that it takes, in units of 512 bytes.
        blocks: u64,
    },
    /// At this path of one of the data-only lowers, which are asked at the first access.
    DataOnly(Vec<OsString>),
}

/// A descriptor that keeps an object reachable which has no name (that we know of) any more.
pub(crate) struct Pin {
    pub fd: OwnedFd,
    _place: PinPlace,
}

impl Pin {
    pub(crate) fn new(fd: OwnedFd, place: PinPlace) -> Pin {
        Pin { fd, _place: place }
    }
}

/// The rare parts of a node's state.
#[derive(Default)]
pub(crate) struct Extra {
    /// The name in `work/index` of a copied-up hard link.
    pub index: Option<Box<str>>,
    /// Keeps an upper object that lost the name it was known by.
    pub pin: Option<Arc<Pin>>,
    /// Where the contents are of a file with attributes only.
    pub data: Option<DataAt>,
    /// The redirect that is stored on such a file in upper.
    pub redirect: Option<Redirect>,
    /// Name in `work/work` that an unlinked object was moved to when no descriptor was left for it.
    pub parked: Option<Box<str>>,
}

/// Where a node is and which layers hold it. Protected by the node's `place` lock.
pub(crate) struct Place {
    /// The directory and the name that it was last seen under. `None`: the root, or no name left.
    pub parent: Option<Arc<Node>>,
    pub name: Box<OsStr>,
    /// `st_ino` of the object in upper, 0 while there is none.
    pub upper_ino: u64,
    /// Is `parent`/`name` itself in upper? (Hard links of an indexed lower file may not be.)
    pub upper_alias: bool,
    /// The lower object of a node that is not a directory; data comes from here until copy-up.
    pub lower: Option<LowerFile>,
    /// No name is left: removed, perhaps still open.
    pub removed: bool,
    pub extra: Option<Box<Extra>>,
}

impl Place {
    pub(crate) fn has_upper(&self) -> bool {
        self.upper_ino != 0
    }

    pub(crate) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    pub(crate) fn index(&self) -> Option<&str> {
        self.extra.as_ref().and_then(|e| e.index.as_deref())
    }

    pub(crate) fn pin(&self) -> Option<&Arc<Pin>> {
        self.extra.as_ref().and_then(|e| e.pin.as_ref())
    }

    pub(crate) fn parked(&self) -> Option<&str> {
        self.extra.as_ref().and_then(|e| e.parked.as_deref())
    }
}

/// A fact that is looked up once and then remembered.
pub(crate) struct Remembered(AtomicU8);

impl Remembered {
    pub(crate) fn unknown() -> Remembered {
        Remembered(AtomicU8::new(0))
    }

    pub(crate) fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Acquire) {
            0 => None,
            n => Some(n == 2),
        }
    }

    pub(crate) fn set(&self, value: bool) {
        self.0.store(if value { 2 } else { 1 }, Ordering::Release);
    }

    pub(crate) fn forget(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// What only directories have.
pub(crate) struct DirPart {
    /// The directories that are merged beneath upper's, top to bottom. Replaced only with `names`
    /// locked exclusively: when upper's part becomes opaque, and when the layers are looked at anew.
    lowers: RwLock<Arc<[Arc<LowerDir>]>>,
    /// Shared by lookups and listings, exclusive for whoever changes a name in the directory.
    pub names: RwLock<()>,
    /// Redirect stored on the upper directory. Protected by `names` of the parent.
    pub redirect: Mutex<Option<Redirect>>,
    /// Counts changes of names; its low bits are part of the offsets of a listing.
    pub generation: AtomicU64,
    /// Has upper's directory a default ACL? (`umask` is not applied then.)
    pub default_acl: Remembered,
    /// Does upper's directory carry the impure mark?
    pub impure: Remembered,
    /// Lookups while no whole listing was cached. Held while it is listed for them: lookups only try to lock it.
    pub looked_into: Mutex<LookedInto>,
    /// `.wh.` marks in upper's directory.
    pub aufs: AufsFlag,
    /// Are whiteout xattrs honoured in upper's directory?
    pub xattr_whiteouts: bool,
}

impl DirPart {
    pub(crate) fn new(lowers: Vec<Arc<LowerDir>>, redirect: Option<Redirect>) -> DirPart {
        DirPart {
            lowers: RwLock::new(lowers.into()),
            names: RwLock::new(()),
            redirect: Mutex::new(redirect),
            generation: AtomicU64::new(0),
            default_acl: Remembered::unknown(),
            impure: Remembered::unknown(),
            looked_into: Mutex::default(),
            aufs: AufsFlag::new(),
            xattr_whiteouts: false,
        }
    }

    /// The directories that are merged beneath upper's, top to bottom.
    pub(crate) fn lowers(&self) -> Arc<[Arc<LowerDir>]> {
        Arc::clone(&self.lowers.read())
    }

    /// From here on these are merged.
    pub(crate) fn set_lowers(&self, lowers: Vec<Arc<LowerDir>>) {
        *self.lowers.write() = lowers.into();
    }

    /// Forgets what was learnt about upper's directory, and of listing the lowers.
    pub(crate) fn forget_facts(&self) {
        *self.looked_into.lock() = LookedInto::default();
        self.default_acl.forget();
        self.impure.forget();
        self.aufs.forget();
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

/// One object of the merged tree.
pub struct Node {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    /// One name of a lower hard link that copy-up breaks: see [`Overlay::is_apart`](super::Overlay::is_apart).
    pub(crate) apart: bool,
    /// Is it immutable or append-only? Bits of [`Protection`].
    protection: AtomicU8,
    /// `st_ino`.
    ino: AtomicU64,
    /// References: the kernel's lookups, and one for each node whose parent this is.
    refs: AtomicU64,
    /// When its link count was last changed: see [`links_settled`](Self::links_settled).
    links_changed: AtomicU32,
    /// Held by whoever copies the object up.
    pub(crate) copying: Mutex<()>,
    pub(crate) place: RwLock<Place>,
    pub(crate) dir: Option<Box<DirPart>>,
}

impl Node {
    pub(crate) fn new(id: u64, kind: Kind, place: Place, dir: Option<DirPart>) -> Node {
        Node {
            id,
            kind,
            apart: false,
            protection: AtomicU8::new(0),
            ino: AtomicU64::new(id),
            refs: AtomicU64::new(0),
            links_changed: AtomicU32::new(0),
            copying: Mutex::new(()),
            place: RwLock::new(place),
            dir: dir.map(Box::new),
        }
    }

    /// A node for one name of a hard link, which is an object of its own.
    pub(crate) fn apart(mut self, ino: u64) -> Node {
        self.apart = true;
        self.ino = AtomicU64::new(ino);
        self
    }

    pub(crate) fn protection(&self) -> Protection {
        Protection::from_bits(self.protection.load(Ordering::Acquire))
    }

    pub(crate) fn set_protection(&self, protection: Protection) {
        self.protection.store(protection.bits(), Ordering::Release);
    }

    pub(crate) fn ino(&self) -> u64 {
        self.ino.load(Ordering::Acquire)
    }

    /// The number changes when a copy-up breaks a hard link.
    pub(crate) fn set_ino(&self, ino: u64) {
        self.ino.store(ino, Ordering::Release);
    }

    /// The id by which the transport names this node.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The type of the object.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Is it a directory?
    pub fn is_dir(&self) -> bool {
        self.dir.is_some()
    }

    /// Notes that its link count is about to change.
    pub(crate) fn links_change(&self) {
        self.links_changed.store(seconds_now(), Ordering::Release);
    }

    /// Is the last change of the link count so long ago that its answer has reached the client?
    pub(crate) fn links_settled(&self) -> bool {
        const ANSWERED_AFTER: u32 = 5;
        let changed = self.links_changed.load(Ordering::Acquire);
        changed == 0 || seconds_now().saturating_sub(changed) > ANSWERED_AFTER
    }
}

/// Seconds since the first call, counted from 1.
fn seconds_now() -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed().as_secs();
    u32::try_from(elapsed).unwrap_or(u32::MAX).saturating_add(1)
}

/// All live nodes by id.
pub(crate) struct NodeTable {
    nodes: DashMap<u64, Arc<Node>>,
}

/// What [`NodeTable::intern`] found under an id.
pub(crate) enum Interned {
    /// The node is live (it was, or is now); one reference was taken.
    Node(Arc<Node>),
    /// Another object has this id.
    Conflict,
}

impl NodeTable {
    pub(crate) fn new() -> NodeTable {
        NodeTable {
            nodes: DashMap::with_shard_amount(64),
        }
    }

    pub(crate) fn get(&self, id: u64) -> Option<Arc<Node>> {
        self.nodes.get(&id).map(|n| Arc::clone(&n))
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All live nodes, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        self.nodes.iter().map(|n| Arc::clone(&n)).collect()
    }

    /// Finds the node `id` if `same` says that it is the object meant, or makes it. Takes one
    /// reference on it.
    pub(crate) fn intern(
        &self,
        id: u64,
        same: impl FnOnce(&Node) -> bool,
        make: impl FnOnce() -> Node,
    ) -> Interned {
        match self.nodes.entry(id) {
            Entry::Occupied(slot) => {
                if !same(slot.get()) {
                    return Interned::Conflict;
                }
                slot.get().refs.fetch_add(1, Ordering::AcqRel);
                Interned::Node(Arc::clone(slot.get()))
            }
            Entry::Vacant(slot) => {
                let node = Arc::new(make());
                node.refs.store(1, Ordering::Release);
                if let Some(parent) = &node.place.read().parent {
                    parent.refs.fetch_add(1, Ordering::AcqRel);
                }
                slot.insert(Arc::clone(&node));
                Interned::Node(node)
            }
        }
    }

    /// Takes a reference on a node that is known to be live.
    pub(crate) fn hold(&self, node: &Node) {
        node.refs.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives `count` references back. Nodes that nobody refers to any more, and then their
    /// parents, leave the table and are handed to `gone`.
    pub(crate) fn release(&self, node: &Arc<Node>, count: u64, gone: &mut dyn FnMut(&Arc<Node>)) {
        let mut next = Some((Arc::clone(node), count));
        while let Some((node, count)) = next.take() {
            let left = node
                .refs
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                    Some(n.saturating_sub(count))
                });
            if left.map_or(0, |n| n.saturating_sub(count)) > 0 || node.id == ROOT_ID {
                continue;
            }
            // A lookup may have taken it again meanwhile: it does so under the shard's lock.
            let removed = self.nodes.remove_if(&node.id, |_, n| {
                Arc::ptr_eq(n, &node) && n.refs.load(Ordering::Acquire) == 0
            });
            if removed.is_some() {
                gone(&node);
                next = node.place.write().parent.take().map(|p| (p, 1));
            }
        }
    }

    /// Moves a node to another parent: the reference on the old one goes over to the new one.
    pub(crate) fn set_parent(
        &self,
        place: &mut Place,
        parent: Option<Arc<Node>>,
    ) -> Option<Arc<Node>> {
        if let Some(new) = &parent {
            new.refs.fetch_add(1, Ordering::AcqRel);
        }
        std::mem::replace(&mut place.parent, parent)
    }
}
