//! Where the contents of a file are, for who reads and writes them past this core.

use rustix::fs::OFlags;
use rustix::io::Errno;
use std::os::fd::OwnedFd;

use super::Overlay;
use super::file::open_for;
use super::node::{Node, Place};
use crate::sys::xattr;

/// Which layer holds the contents of a file. They move once at most: from lower to upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentsAt {
    /// A lower, which is never written to.
    Lower,
    /// Upper.
    Upper,
}

impl Place {
    fn contents(&self) -> ContentsAt {
        match self.has_upper() && self.data().is_none() {
            true => ContentsAt::Upper,
            false => ContentsAt::Lower,
        }
    }
}

impl Overlay {
    /// The layer that holds a file's contents now.
    ///
    /// # Errors
    /// `ESTALE` for an unknown id, `EISDIR` and `EINVAL` for what is not a regular file.
    pub fn contents_at(&self, id: u64) -> Result<ContentsAt, Errno> {
        Ok(self.file_node(id)?.place.read().contents())
    }

    /// Opens the file that holds a file's contents now, for reading; beneath a lower through a read-only mount
    /// where there is leave to make one.
    ///
    /// # Errors
    /// As [`contents_at`](Self::contents_at), and what opening it returns.
    pub fn contents(&self, id: u64) -> Result<OwnedFd, Errno> {
        let node = self.file_node(id)?;
        loop {
            let (at, data) = {
                let place = node.place.read();
                (place.contents(), place.data().cloned())
            };
            let file = match data {
                Some(data) => self.open_data(&data)?,
                None => self.with_object(&node, |dir, name| open_for(dir, name, OFlags::RDONLY))?,
            };
            // A copy-up meanwhile: which of the two was opened can't be told.
            if node.place.read().contents() == at {
                return Ok(file);
            }
        }
    }

    /// Does each change of a file's contents have to be looked at, because it is immutable or append-only?
    /// Says `EPERM` for an open that no such file allows.
    ///
    /// # Errors
    /// `EPERM`, and as [`contents_at`](Self::contents_at).
    pub fn watches_writes(&self, id: u64, open: OFlags) -> Result<bool, Errno> {
        let node = self.file_node(id)?;
        let protection = node.protection();
        let writes = open.intersects(OFlags::WRONLY | OFlags::RDWR);
        let refused = writes
            && (protection.immutable || (protection.append_only && !open.contains(OFlags::APPEND)));
        match refused {
            true => Err(Errno::PERM),
            false => Ok(protection.any()),
        }
    }

    /// Has the file set-id bits or capabilities, which a change of its contents takes away?
    ///
    /// # Errors
    /// As [`contents_at`](Self::contents_at), and what the layer returns.
    pub fn has_privileges(&self, id: u64) -> Result<bool, Errno> {
        let node = self.file_node(id)?;
        Ok(self.attr_of(&node)?.perm & 0o6000 != 0 || self.has_capabilities(&node)?)
    }

    fn has_capabilities(&self, node: &Node) -> Result<bool, Errno> {
        self.with_object(node, |dir, name| {
            match xattr::get_at(dir, name, c"security.capability") {
                Ok(value) => Ok(value.is_some()),
                Err(Errno::OPNOTSUPP) => Ok(false),
                Err(e) => Err(e),
            }
        })
    }
}
