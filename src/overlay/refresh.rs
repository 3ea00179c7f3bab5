//! Looking at the layers anew, after they were changed beneath the mount.
//!
//! A change of a layer beneath a mount is undefined, as with the kernel's overlayfs: what was learnt of the
//! layers stays in use, and what is done by name fails or meets what is there now. This drops what was
//! learnt, so that the tree shows the layers as they are. Objects that are in use and are still what they
//! were stay the same; those that aren't are only found by who holds them.

use rustix::io::Errno;
use std::ffi::OsString;
use std::sync::Arc;

use super::lookup::FoundKind;
use super::node::Node;
use super::{Overlay, ROOT_ID};

/// A name of the merged tree that a client's cache may hold.
#[derive(Clone, Debug)]
pub struct KnownName {
    /// The directory's id.
    pub parent: u64,
    /// The component.
    pub name: OsString,
    /// The id of what it stood for.
    pub id: u64,
}

impl Overlay {
    /// Drops everything that was learnt of the layers. Gives the names whose place in a client's cache is
    /// to be dropped with it, from the root downwards.
    ///
    /// # Errors
    /// What reading the layers returns; names that can't be read any more are no error.
    pub fn refresh(&self) -> Result<Vec<KnownName>, Errno> {
        self.fds.clear();
        self.listings.clear();
        for layer in 0..self.lowers.merged {
            self.lowers.root(layer).aufs.forget();
        }
        if let Some(root) = &self.root.dir {
            root.forget_facts();
        }
        let mut known: Vec<(usize, Arc<Node>)> = self
            .nodes
            .all()
            .into_iter()
            .map(|node| (depth(&node), node))
            .collect();
        known.sort_by_key(|(depth, _)| *depth);
        let mut names = Vec::with_capacity(known.len());
        for (_, node) in known {
            let (parent, name) = {
                let place = node.place.read();
                (place.parent.clone(), place.name.to_os_string())
            };
            let Some(parent) = parent else { continue };
            self.look_anew(&parent, &name, &node)?;
            names.push(KnownName {
                parent: parent.id,
                name,
                id: node.id,
            });
        }
        Ok(names)
    }

    /// Takes over where a directory's lower parts are now.
    fn look_anew(&self, parent: &Arc<Node>, name: &OsString, node: &Node) -> Result<(), Errno> {
        let (Some(part), Some(above)) = (&node.dir, &parent.dir) else {
            return Ok(());
        };
        let found = {
            let _names = above.names.read();
            self.resolve_unhinted(parent, name)
        };
        let lowers = match found {
            Ok(Some(found)) => match found.what {
                FoundKind::Dir { lowers, .. } if found.upper_ino == node.place.read().upper_ino => {
                    lowers
                }
                _ => Vec::new(),
            },
            Ok(None) | Err(Errno::STALE | Errno::PERM | Errno::IO | Errno::NOTDIR) => Vec::new(),
            Err(e) => return Err(e),
        };
        let _names = part.names.write();
        part.set_lowers(lowers);
        part.forget_facts();
        // Listed again meanwhile, it would speak of the lowers of before.
        self.listings.remove(node.id);
        Ok(())
    }
}

fn depth(node: &Node) -> usize {
    let mut depth = 0;
    let mut at = node.place.read().parent.clone();
    while let Some(dir) = at {
        if dir.id == ROOT_ID {
            break;
        }
        depth += 1;
        at = dir.place.read().parent.clone();
    }
    depth
}
