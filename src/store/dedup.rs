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
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use parking_lot::Mutex;

use super::Store;
use super::codec::digest::{Digest, Hasher};
use super::disk::Disk;
use super::error::{Context as _, Result};
use super::ids::CacheId;
use super::layout;
use super::transaction::Transaction;
use super::unpack::{FileFacts, FileSink, open_beneath};
use crate::sys::fs::{TimeSpec, chmod_at, chown_at, utimens_at};
use crate::sys::xattr::{SetFlags, set_at};

pub use clone::{clone_tree, copy_directory_attributes};
pub use index::{LayerIndex, read_saved, rebuild};

/// Smaller files are not worth an extent of their own.
const MIN_SIZE: u64 = 4096;

/// Finds files in other layers. Threads share it.
pub struct Deduplicator {
    disk: Disk,
    base: PathBuf,
    known: Mutex<index::Known>,
}

impl Deduplicator {
    /// For a load of this store; `None` where files can't share their blocks.
    pub fn new(store: &Store, transaction: &mut Transaction) -> Result<Option<Deduplicator>> {
        if !can_reflink(transaction)? {
            return Ok(None);
        }
        Ok(Some(Deduplicator {
            disk: store.disk().clone(),
            base: transaction.join(""),
            known: Mutex::new(index::Known::load(store)?),
        }))
    }

    /// For one layer that is unpacked into the transaction.
    pub fn layer(&self, disk: &Disk, id: &CacheId) -> Result<LayerSink<'_>> {
        let layer = self
            .known
            .lock()
            .add_layer(disk.path(self.base.join(id.as_str()).join("diff")));
        Ok(LayerSink {
            dedup: self,
            id: id.clone(),
            layer,
            index: Mutex::new(LayerIndex::default()),
        })
    }

    /// A file of a layer with this content, open for reading.
    fn find(&self, digest: &Digest, size: u64) -> Option<File> {
        let place = self.known.lock().find(digest, size)?;
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
    id: CacheId,
    layer: u32,
    index: Mutex<LayerIndex>,
}

impl LayerSink<'_> {
    /// Writes the index of the layer into the transaction.
    pub fn finish(self) -> Result<()> {
        let to = self.dedup.base.join(format!("{}.files", self.id));
        let index = self.index.into_inner();
        self.dedup.disk.write(to, &index.encode(), 0o600)
    }

    fn note(&self, file: &FileFacts<'_>, digest: &Digest, saved: bool) {
        let mut index = self.index.lock();
        let offset = index.push(digest, file.size, file.path, saved);
        drop(index);
        let mut known = self.dedup.known.lock();
        known.insert(digest, file.size, self.layer, offset, file.path);
    }

    fn wanted<'f>(file: &'f FileFacts<'_>) -> Option<&'f Digest> {
        file.digest.as_ref().filter(|_| file.size >= MIN_SIZE)
    }
}

impl FileSink for LayerSink<'_> {
    fn place(&self, file: &FileFacts<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
        let Some(digest) = Self::wanted(file) else {
            return Ok(false);
        };
        let Some(source) = self.dedup.find(digest, file.size) else {
            return Ok(false);
        };
        let name = std::ffi::OsStr::from_bytes(name);
        let flags = rustix::fs::OFlags::WRONLY
            | rustix::fs::OFlags::CREATE
            | rustix::fs::OFlags::EXCL
            | rustix::fs::OFlags::NOFOLLOW
            | rustix::fs::OFlags::CLOEXEC;
        let target = rustix::fs::openat(dir, name, flags, rustix::fs::Mode::RUSR)?;
        if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
            rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty())?;
            return Ok(false);
        }
        set_attributes(target.as_fd(), file)?;
        self.note(file, digest, true);
        Ok(true)
    }

    fn written(&self, file: &FileFacts<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        let Some(digest) = Self::wanted(file) else {
            return Ok(());
        };
        let mut saved = false;
        if let Some(source) = self.dedup.find(digest, file.size) {
            let name = std::ffi::OsStr::from_bytes(name);
            let flags = rustix::fs::OFlags::WRONLY
                | rustix::fs::OFlags::NOFOLLOW
                | rustix::fs::OFlags::CLOEXEC;
            let target = rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty())?;
            saved = rustix::fs::ioctl_ficlone(&target, &source).is_ok();
            // Writing took set-id bits and capabilities away, and changed the time.
            set_attributes(target.as_fd(), file)?;
        }
        self.note(file, digest, saved);
        Ok(())
    }
}

/// Gives a file the attributes that the archive has for it. The owner first: it takes set-id bits and
/// capabilities away; the time last.
fn set_attributes(target: BorrowedFd<'_>, file: &FileFacts<'_>) -> io::Result<()> {
    let this = std::ffi::OsStr::new("");
    chown_at(target, this, file.uid, file.gid)?;
    chmod_at(target, this, file.mode)?;
    for (key, value) in file.xattrs {
        let key = std::ffi::CString::new(key.as_slice())?;
        set_at(target, this, &key, value, SetFlags::Any)?;
    }
    let mtime = TimeSpec::At {
        sec: file.mtime.sec,
        nsec: file.mtime.nsec,
    };
    utimens_at(target, this, mtime, mtime)?;
    Ok(())
}

/// Where the index of a layer is, relative to the root; for those who rebuild it.
pub fn index_path(id: &CacheId) -> PathBuf {
    layout::file_index(id)
}
