//! From what a lookup found to the node that stands for it.

use rustix::io::Errno;
use std::ffi::OsStr;
use std::sync::Arc;

use super::Overlay;
use super::attr::{Attr, Kind};
use super::inos::TableKey;
use super::layer::LowerDir;
use super::lookup::{Found, FoundKind};
use super::node::{DirPart, Extra, Interned, LowerFile, Node, Place};

impl Overlay {
    /// Finds or makes the node for what was found, and takes a reference on it.
    pub(crate) fn intern(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        found: &Found,
    ) -> Result<Arc<Node>, Errno> {
        let kind = Kind::from_mode(u32::from(found.stat.stx_mode)).ok_or(Errno::IO)?;
        let (dev, ino) = found.identity;
        let real = self.inos.map(dev, ino);
        let apart = self.is_apart(kind, found);
        self.heal_impure(parent, found);
        let bound = || self.inos.known(&TableKey::Upper(found.upper_ino));
        let mut id = match found.upper_ino {
            0 if apart => self.inos.for_name(parent.id, name),
            0 => real,
            _ => bound().unwrap_or(real),
        };
        for attempt in 0..2 {
            let same = |n: &Node| self.is_same(n, parent, name, kind, found);
            let make = || {
                let node = make_node(id, kind, parent, name, found);
                node.set_protection(found.protection);
                if apart { node.apart(real) } else { node }
            };
            match self.nodes.intern(id, same, make) {
                Interned::Node(node) => {
                    self.adopt_name(&node, parent, name, found);
                    return Ok(node);
                }
                Interned::Conflict if attempt == 0 => {
                    id = match found.upper_ino {
                        0 => self.inos.for_name(parent.id, name),
                        upper => self.inos.table_number(TableKey::Upper(upper)),
                    };
                }
                Interned::Conflict => break,
            }
        }
        Err(Errno::STALE)
    }

    /// A directory that holds something with an origin is impure, whatever it says: the kernel's overlayfs
    /// takes the mark away where it may not read origins. Without it listings show other numbers.
    fn heal_impure(&self, parent: &Node, found: &Found) {
        let own = self
            .inos
            .map(super::attr::dev_of(&found.stat), found.stat.stx_ino);
        let from_origin =
            found.upper_alias && self.inos.map(found.identity.0, found.identity.1) != own;
        let pure = |part: &DirPart| part.impure.get() == Some(false);
        if from_origin && parent.dir.as_deref().is_some_and(pure) {
            if let Err(e) = self.mark_impure(parent) {
                tracing::debug!("a directory stays without its impure mark: {e}");
            }
            self.listings.remove(parent.id);
        }
    }

    /// Is this one name of a lower hard link whose names become objects of their own when they are
    /// copied up, as without the index? Such a name has a node of its own from the start: clients
    /// must not share what they cache of it with the other names.
    fn is_apart(&self, kind: Kind, found: &Found) -> bool {
        let FoundKind::Other {
            lower: Some(lower), ..
        } = &found.what
        else {
            return false;
        };
        kind != Kind::Dir
            && found.upper_ino == 0
            && found.stat.stx_nlink > 1
            && self.upper.is_some()
            && !(self.config.index && self.lowers.layer(&lower.dir).has_handles)
    }

    /// Is the live node `n` the object that was found?
    fn is_same(&self, n: &Node, parent: &Node, name: &OsStr, kind: Kind, found: &Found) -> bool {
        let place = n.place.read();
        if n.kind != kind {
            return false;
        }
        if found.upper_ino != 0 {
            return place.upper_ino == found.upper_ino;
        }
        match &found.what {
            FoundKind::Dir { lowers, .. } => {
                let key = |d: &Arc<LowerDir>| (d.dev, d.ino);
                let known = n.dir.as_deref().and_then(|d| d.lowers().first().map(key));
                known == lowers.first().map(key) && !place.removed
            }
            FoundKind::Other { .. } => {
                let linked = found.stat.stx_nlink > 1 && !self.is_apart(kind, found);
                let here = place.parent.as_ref().is_some_and(|p| p.id == parent.id)
                    && *place.name == *name;
                linked || here
            }
        }
    }

    /// Takes a reference on a live node that got another name.
    pub(crate) fn hold_as(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &OsStr,
        found: &Found,
    ) {
        self.nodes.hold(node);
        self.adopt_name(node, parent, name, found);
    }

    /// The live node for what was found under `name` in `parent`, if there is one.
    pub(crate) fn find_live(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        found: &Found,
    ) -> Option<Arc<Node>> {
        let kind = Kind::from_mode(u32::from(found.stat.stx_mode))?;
        let (dev, ino) = found.identity;
        let other = match found.upper_ino {
            0 => TableKey::Name(parent.id, name.to_os_string()),
            upper => TableKey::Upper(upper),
        };
        let ids = [Some(self.inos.map(dev, ino)), self.inos.known(&other)];
        ids.into_iter()
            .flatten()
            .filter_map(|id| self.nodes.get(id))
            .find(|n| self.is_same(n, parent, name, kind, found))
    }

    /// A node that lost the name it was known by goes on under the name it was found by now.
    fn adopt_name(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &OsStr, found: &Found) {
        {
            let place = node.place.read();
            if place.parent.is_some() && (place.upper_alias || !found.upper_alias) {
                return;
            }
        }
        let old = {
            let mut place = node.place.write();
            if place.removed && node.dir.is_some() {
                return;
            }
            if place.parent.is_some() && (place.upper_alias || !found.upper_alias) {
                return;
            }
            let place = &mut *place;
            if *place.name != *name
                && let Some(lower) = &mut place.lower
                && lower.name.is_none()
            {
                lower.name = Some(place.name.clone());
            }
            place.name = name.into();
            place.upper_alias = found.upper_alias;
            place.removed = false;
            if let Some(extra) = &mut place.extra {
                extra.pin = None;
            }
            self.nodes.set_parent(place, Some(Arc::clone(parent)))
        };
        if let Some(old) = old {
            self.release(&old, 1);
        }
    }

    /// Looks `name` up in the directory `parent`: the node, with one reference taken, and its
    /// attributes. `Ok(None)`: no such name.
    ///
    /// # Errors
    /// `ENOTDIR`, `ESTALE` if `parent` is not known, and what the layers return.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Option<(Arc<Node>, Attr)>, Errno> {
        let parent = self.node(parent)?;
        let dir = parent.dir.as_deref().ok_or(Errno::NOTDIR)?;
        if name.len() > 255 {
            return Err(Errno::NAMETOOLONG);
        }
        let _names = dir.names.read();
        self.lookup_locked(&parent, name)
    }

    /// [`lookup`](Self::lookup) for a caller that holds the directory's `names` lock.
    pub(crate) fn lookup_locked(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
    ) -> Result<Option<(Arc<Node>, Attr)>, Errno> {
        let Some(found) = self.resolve_locked(parent, name)? else {
            return Ok(None);
        };
        let node = self.intern(parent, name, &found)?;
        match self.attr_from(&node, &found.stat) {
            Ok(attr) => Ok(Some((node, attr))),
            Err(e) => {
                self.release(&node, 1);
                Err(e)
            }
        }
    }
}

/// The node for an object that was just found.
fn make_node(id: u64, kind: Kind, parent: &Arc<Node>, name: &OsStr, found: &Found) -> Node {
    let mut extra = Extra::default();
    let (lower, dir) = match &found.what {
        FoundKind::Dir {
            lowers,
            redirect,
            xattr_whiteouts,
        } => {
            let mut part = DirPart::new(lowers.clone(), redirect.clone());
            part.xattr_whiteouts = *xattr_whiteouts;
            (None, Some(part))
        }
        FoundKind::Other {
            lower,
            index,
            data,
            redirect,
        } => {
            // The name is kept once where it is the same.
            let lower = lower.clone().map(|l| LowerFile {
                name: l.name.filter(|n| **n != *name),
                dir: l.dir,
            });
            extra.index.clone_from(index);
            extra.data.clone_from(data);
            extra.redirect.clone_from(redirect);
            (lower, None)
        }
    };
    let rare = extra.index.is_some() || extra.data.is_some();
    let place = Place {
        parent: Some(Arc::clone(parent)),
        name: name.into(),
        upper_ino: found.upper_ino,
        upper_alias: found.upper_alias,
        lower,
        removed: false,
        extra: rare.then(|| Box::new(extra)),
    };
    Node::new(id, kind, place, dir)
}
