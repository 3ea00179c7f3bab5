//! Files that several layers have, kept once.
//!
//! Where the file system can share extents (XFS, Btrfs, bcachefs), a file whose content another layer holds
//! becomes a reflink of it: a file of its own in every respect, whose blocks are shared until one is written.
//!
//! Where it can't (ext4), nothing is shared. A hard link would keep the content once too, but it is one inode:
//! `st_nlink` and `st_ino`, which both the kernel's overlayfs and rovl show as the lower has them, would tell
//! of it, tar and rsync would take two files for one, and a copy-up would break a link that the image doesn't
//! have. Deduplication must never change what a mount shows, and there is no owner, mode or time for which a
//! second link doesn't. (Within one layer the links that its tar has are kept, of course.)
//!
//! Contents are found by SHA-256 and length in an index of one file a layer, `rovl/files/<cache_id>`. It can be
//! rebuilt. What it points to is read and hashed again before it is shared: a damaged file must not spread.

mod clone;
mod index;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Store;
use super::codec::digest::{Digest, Hasher};
use super::disk::Disk;
use super::error::{Context as _, Result};
use super::ids::CacheId;
use super::transaction::Transaction;
use super::unpack::{FileFacts, FileSink, open_beneath};

pub use clone::{clone_tree, copy_directory_attributes};
use index::LayerIndex;
pub use index::rebuild;

/// Btrfs keeps contents up to this many bytes beside the inode (its `max_inline`), where they can't be shared.
const BTRFS_INLINE: u64 = 2048;

/// Bytes of the smallest file that has a block of its own, which can be shared, on the store's file system.
fn smallest_shared(disk: &Disk) -> Result<u64> {
    let root = disk.root();
    let kind = rustix::fs::statfs(root).context("looking at", root)?.f_type;
    // The magic number of Btrfs in linux/magic.h.
    let is_btrfs = kind == 0x9123_683e;
    Ok(if is_btrfs { BTRFS_INLINE + 1 } else { 1 })
}

/// Finds files in other layers. Threads share it.
pub struct Deduplicator {
    base: PathBuf,
    smallest: u64,
    known: Mutex<index::Known>,
}

impl Deduplicator {
    /// For a load of this store; `None` where files can't share their blocks.
    pub fn new(store: &Store, transaction: &mut Transaction) -> Result<Option<Deduplicator>> {
        if !can_reflink(transaction)? {
            return Ok(None);
        }
        Ok(Some(Deduplicator {
            base: transaction.join(""),
            smallest: smallest_shared(store.disk())?,
            known: Mutex::new(index::Known::load(store)?),
        }))
    }

    /// For one layer that is unpacked into the transaction.
    pub fn layer(&self, disk: &Disk, id: &CacheId) -> Result<LayerSink<'_>> {
        let to = self.base.join(format!("{id}.files"));
        let index = Arc::new(Mutex::new(LayerIndex::create(disk, &to)?));
        let root = disk.path(self.base.join(id.as_str()).join("diff"));
        let layer = self.known.lock().add_layer(root, Arc::clone(&index));
        Ok(LayerSink {
            dedup: self,
            layer,
            index,
        })
    }

    /// A file of a layer with this content, open for reading.
    fn find(&self, digest: &Digest, size: u64) -> Option<File> {
        let place = self.known.lock().find(digest)?;
        let root = File::open(&place.root).ok()?;
        let file = open_beneath(root.as_fd(), &place.path).ok()?;
        holds(&file, digest, size).then_some(file)
    }
}

/// Whether the file has this content.
fn holds(file: &File, digest: &Digest, size: u64) -> bool {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut reader = file.take(size + 1);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return hasher.finish() == (*digest, size),
            Ok(read) => hasher.update(buffer.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

/// Whether two files of the store can share blocks: it is tried.
fn can_reflink(transaction: &mut Transaction) -> Result<bool> {
    let (from, to) = (transaction.fresh(), transaction.fresh());
    let disk = transaction.disk();
    disk.write(&from, &[1; 4096], 0o600)?;
    let source = File::open(disk.path(&from)).context("opening", disk.path(&from))?;
    let target = disk.create(&to, 0o600)?;
    let can = rustix::fs::ioctl_ficlone(&target, &source).is_ok();
    disk.remove_file(from)?;
    disk.remove_file(to)?;
    Ok(can)
}

/// What one layer's unpacking tells of its files.
pub struct LayerSink<'a> {
    dedup: &'a Deduplicator,
    layer: u32,
    index: Arc<Mutex<LayerIndex>>,
}

impl LayerSink<'_> {
    /// Completes the index of the layer, in the transaction.
    pub fn finish(self) -> Result<()> {
        self.index.lock().finish()
    }

    /// The digest of a file that is worth being looked up.
    fn wanted<'f>(&self, file: &'f FileFacts<'_>) -> Option<&'f Digest> {
        let smallest = self.dedup.smallest;
        file.digest.as_ref().filter(|_| file.size >= smallest)
    }
}

impl FileSink for LayerSink<'_> {
    fn fill(&self, file: &FileFacts<'_>, target: BorrowedFd<'_>) -> io::Result<bool> {
        let source = self
            .wanted(file)
            .and_then(|digest| self.dedup.find(digest, file.size));
        // What can't be shared after all (another quota, too many references) is written.
        Ok(source.is_some_and(|source| rustix::fs::ioctl_ficlone(target, &source).is_ok()))
    }

    fn written(&self, file: &FileFacts<'_>) -> io::Result<()> {
        let Some(digest) = self.wanted(file) else {
            return Ok(());
        };
        let pushed = self.index.lock().push(digest, file.size, file.path);
        let offset = pushed?;
        self.dedup.known.lock().insert(digest, self.layer, offset);
        Ok(())
    }
}
