//! The tree beneath the top layer of a mount, shown beside it with numbers that tell what is the same in both.
//!
//! Container engines compare a mount with what was there before: its lowers, or the layers beneath its topmost
//! one. Whoever walks two trees of one file system may leave out what has the same inode number in both
//! (`changes_linux.go` of containers/storage and moby does, whole directories at once). So here an object has the
//! number that it has in the mount exactly while the mount shows the same object at the same path, and for a
//! directory all that is beneath it; otherwise another, with [`APART`] set.
//!
//! # When two are the same
//!
//! A directory of this tree stands in one of three ways to what the mount has at its path:
//!
//! - *same*: the top layer has nothing there, nor at a directory above that would cut it off or lead elsewhere.
//!   Then both merge the same directories of the same layers.
//! - *mixed*: the top layer has a directory there, which is merged with those beneath it.
//! - *apart*: it is opaque there, a whiteout, something else, or redirected; or a directory above is apart.
//!
//! What is not a directory is the same if it has one name, and its directory is the same, or is mixed and the top
//! layer has nothing of its name. Something with several names may have been changed through another one, which
//! `work/index` tells. While there is anything in it no directory is the same, since nothing tells in which the other
//! names are.
//!
//! # When the mount changes
//!
//! A change would make numbers wrong that a client holds, which then would miss it. So before the first change to
//! the mount everything becomes apart ([`Beneath::part`]), and what clients hold is dropped; after that nothing is
//! looked at any more until somebody [joins](Beneath::join) them again.
//!
//! Numbers out of a table (`inos`) say nothing in another tree: those are always apart.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::RwLock;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::attr::{dev_of, is_dir, stat_at, stat_opt};
use super::layer::{AufsFlag, DIR_PATH, DIR_READ, open_names};
use super::node::{Node, ROOT_ID};
use super::validate::Validated;
use super::{OpenError, Overlay};
use crate::sys::dir::read_all;

/// Set in the number of what is not the same in both trees. No other number has it.
pub const APART: u64 = 1 << 63;
/// Numbers of objects that are not out of a table have fewer bits.
const PLAIN_BITS: u32 = 62;
/// Directories whose standing is remembered, at most.
const MOST_REMEMBERED: usize = 1 << 16;

/// How a directory stands to what the whole tree has at its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Same,
    Mixed,
    Apart,
}

/// The tree beneath the top layer, read-only.
pub struct Beneath {
    /// The tree.
    pub tree: Arc<Overlay>,
    /// The root of the layer above it.
    top: OwnedFd,
    root: Standing,
    /// The index of the whole.
    index: Option<OwnedFd>,
    standings: DashMap<u64, Standing>,
    /// Taken after `DirPart::names`, before `Node::place`.
    state: RwLock<State>,
}

/// What holds for all numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Everything is apart.
    Apart,
    /// What is the same has the number that it has in the whole, directories too.
    Together,
    /// Likewise, but no directory.
    FilesOnly,
}

/// What a list of layers is known by: device and inode of each root, top to bottom; the same on an idmapped mount,
/// where the owners are not. Empty layers at the end add nothing to any tree and are left out: podman puts one beneath a
/// single layer.
///
/// # Errors
/// What looking at them returns.
pub fn identity<F: AsFd>(lowers: &[F]) -> Result<Vec<(u64, u64)>, Errno> {
    let mut keys = Vec::with_capacity(lowers.len());
    for root in lowers {
        let st = stat_at(root.as_fd(), OsStr::new(""))?;
        keys.push((dev_of(&st), st.stx_ino));
    }
    while let (2.., Some(last)) = (keys.len(), lowers.get(keys.len() - 1)) {
        if !is_empty(last)? {
            break;
        }
        keys.pop();
    }
    Ok(keys)
}

fn is_empty<F: AsFd>(dir: &F) -> Result<bool, Errno> {
    let listed = rustix::fs::openat(dir, c".", DIR_READ, Mode::empty())?;
    let mut empty = true;
    read_all(listed.as_fd(), |entry| {
        empty &= entry.name == "." || entry.name == "..";
    })?;
    Ok(empty)
}

impl Overlay {
    /// The layers beneath the top one. Empty where there is no such tree, or where its numbers could not be told
    /// from others.
    fn roots_beneath(&self) -> &[super::layer::Layer] {
        let layers = &self.lowers.layers;
        let tellable = self.inos.is_plain() && !self.lowers_idmapped;
        // Data-only lowers are not merged, so there is no telling what lies beneath what.
        if !tellable || layers.len() != self.lowers.merged {
            return &[];
        }
        match &self.upper {
            Some(_) => layers,
            None => layers.get(1..).unwrap_or_default(),
        }
    }

    /// What the layers beneath the top one are [known by](identity); `None`: that tree can't be shown beside this
    /// one.
    ///
    /// # Errors
    /// What looking at them returns.
    pub fn identity_beneath(&self) -> Result<Option<Vec<(u64, u64)>>, Errno> {
        let roots: Vec<&OwnedFd> = self.roots_beneath().iter().map(|l| &l.root).collect();
        if roots.is_empty() {
            return Ok(None);
        }
        identity(&roots).map(Some)
    }

    /// Opens the tree beneath the top layer. It stands apart until it [joins](Beneath::join).
    ///
    /// # Errors
    /// [`OpenError`]; `ENOTSUP` where there is none that can be shown.
    pub fn open_beneath(&self) -> Result<Beneath, OpenError> {
        let layers = self.roots_beneath();
        let io = |path: PathBuf| {
            move |source| OpenError::Io {
                action: "use what is beneath",
                path,
                source,
            }
        };
        let top = match &self.upper {
            Some(upper) => &upper.layer,
            None => &self.lowers.layers[0],
        };
        let failed = io(top.path.clone());
        if layers.is_empty() {
            return Err(failed(Errno::NOTSUP));
        }
        let mut lowers = Vec::with_capacity(layers.len());
        for layer in layers {
            let root = layer.root.try_clone();
            let root = root.map_err(|e| {
                let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
                io(layer.path.clone())(errno)
            })?;
            lowers.push((layer.path.clone(), root));
        }
        let mut config = self.config.clone();
        config.lowers = layers.iter().map(|layer| layer.path.clone()).collect();
        config.upper = None;
        // What it finds out would count for the whole connection.
        config.settle_xattrs = false;
        let mut validated = Validated::default();
        validated.lowers = lowers;
        let tree = Overlay::open(&config, validated)?;
        let alike = tree.ns == self.ns && tree.inos.is_plain();
        let fd = rustix::fs::openat(&top.root, c".", DIR_PATH, Mode::empty());
        let (true, Ok(top)) = (alike, fd) else {
            return Err(failed(Errno::NOTSUP));
        };
        let above = usize::from(self.upper.is_none());
        let root = self.root.dir.as_deref();
        let merged = root.is_some_and(|part| part.lowers().len() > above);
        let index = self
            .upper
            .as_ref()
            .and_then(|upper| upper.work.index.as_ref());
        let index = index.map(|dir| rustix::fs::openat(dir, c".", DIR_READ, Mode::empty()));
        let index = index.transpose().map_err(io(config.lowers[0].clone()))?;
        Ok(Beneath {
            tree,
            top,
            index,
            root: if merged {
                Standing::Mixed
            } else {
                Standing::Apart
            },
            standings: DashMap::new(),
            state: RwLock::new(State::Apart),
        })
    }
}

impl Beneath {
    /// The number to show for a node of this tree that has `ino` and so many links.
    pub fn number(&self, node: &Node, ino: u64, links: u32) -> u64 {
        let state = self.state.read();
        let comparable = match *state {
            State::Apart => false,
            State::Together => true,
            State::FilesOnly => !node.is_dir(),
        };
        let same = comparable
            && ino >> PLAIN_BITS == 0
            && self.is_same(node, links).unwrap_or_else(|e| {
                tracing::debug!(node = node.id, "taken for changed: {e}");
                false
            });
        if same { ino } else { ino | APART }
    }

    /// Before the whole is changed: from here on everything is apart. `drop_known` gets the nodes that clients may
    /// know if it was not before; whoever else wants to change something waits for it.
    pub fn part(&self, drop_known: impl FnOnce(&[Arc<Node>])) {
        if *self.state.read() == State::Apart {
            return;
        }
        let mut state = self.state.write();
        if *state != State::Apart {
            *state = State::Apart;
            drop_known(&self.known());
        }
    }

    /// From here on numbers tell what is the same, until the whole is changed. `drop_known` gets the nodes that
    /// clients may know by other numbers.
    ///
    /// # Errors
    /// What reading the index returns.
    pub fn join(&self, drop_known: impl FnOnce(&[Arc<Node>])) -> Result<(), Errno> {
        let mut state = self.state.write();
        if *state == State::Apart {
            let linked = self.index.as_ref().map(is_empty).transpose()? == Some(false);
            self.standings.clear();
            *state = if linked {
                State::FilesOnly
            } else {
                State::Together
            };
            drop_known(&self.known());
        }
        Ok(())
    }

    /// The nodes that clients may know.
    pub fn known(&self) -> Vec<Arc<Node>> {
        let mut known = self.tree.nodes.all();
        known.push(Arc::clone(&self.tree.root));
        known
    }

    fn is_same(&self, node: &Node, links: u32) -> Result<bool, Errno> {
        if node.id == ROOT_ID {
            return Ok(false);
        }
        if node.is_dir() {
            return Ok(self.standing(node)? == Standing::Same);
        }
        if links != 1 {
            return Ok(false);
        }
        let (parent, name) = {
            let place = node.place.read();
            (place.parent.clone(), place.name.clone())
        };
        let Some(parent) = parent else {
            return Ok(false);
        };
        match self.standing(&parent)? {
            Standing::Same => Ok(true),
            Standing::Apart => Ok(false),
            Standing::Mixed => {
                let dir = self.open_top(&parent)?;
                Ok(stat_opt(dir.as_fd(), &name)?.is_none())
            }
        }
    }

    /// How a directory stands: from the nearest one above that is known, downwards.
    fn standing(&self, dir: &Node) -> Result<Standing, Errno> {
        if dir.id == ROOT_ID {
            return Ok(self.root);
        }
        let remembered = |id: u64| self.standings.get(&id).map(|known| *known);
        if let Some(known) = remembered(dir.id) {
            return Ok(known);
        }
        let mut chain: Vec<Arc<Node>> = Vec::new();
        let mut above = dir.place.read().parent.clone();
        let mut standing = loop {
            let Some(at) = above else {
                return Ok(Standing::Apart);
            };
            if at.id == ROOT_ID {
                break self.root;
            }
            if let Some(known) = remembered(at.id) {
                break known;
            }
            above = at.place.read().parent.clone();
            chain.push(at);
        };
        if self.standings.len() > MOST_REMEMBERED {
            self.standings.clear();
        }
        for at in chain.iter().rev().map(|at| &**at).chain([dir]) {
            if standing == Standing::Mixed {
                standing = self.look(at)?;
            }
            self.standings.insert(at.id, standing);
        }
        Ok(standing)
    }

    /// How a directory stands whose parent is mixed.
    fn look(&self, dir: &Node) -> Result<Standing, Errno> {
        let (parent, name) = {
            let place = dir.place.read();
            (place.parent.clone(), place.name.clone())
        };
        let Some(parent) = parent else {
            return Ok(Standing::Apart);
        };
        let top = self.open_top(&parent)?;
        let top = top.as_fd();
        let Some(st) = stat_opt(top, &name)? else {
            return Ok(Standing::Same);
        };
        if !is_dir(&st) {
            return Ok(Standing::Apart);
        }
        let marks = self.tree.dir_marks(top, &name)?;
        // `.wh.NAME` beside NAME hides what is beneath it.
        let hides = self.tree.aufs_probe(top, &name, &AufsFlag::new())?;
        let cut_off = marks.opaque || marks.redirect.is_some() || hides;
        Ok(if cut_off {
            Standing::Apart
        } else {
            Standing::Mixed
        })
    }

    /// The top layer's part of a mixed directory.
    fn open_top(&self, dir: &Node) -> Result<OwnedFd, Errno> {
        let mut names = Vec::new();
        let mut at = Some((
            dir.id,
            dir.place.read().name.clone(),
            dir.place.read().parent.clone(),
        ));
        while let Some((id, name, parent)) = at {
            if id == ROOT_ID {
                break;
            }
            names.push(name);
            at = parent.map(|parent| {
                let place = parent.place.read();
                (parent.id, place.name.clone(), place.parent.clone())
            });
        }
        open_names(self.top.as_fd(), names.iter().rev().map(|name| &**name))
    }
}
