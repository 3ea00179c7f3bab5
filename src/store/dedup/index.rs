//! Which contents a layer has: one file a layer, and where each content is in memory during a load.
//!
//! A file is the magic, then a record for each file: SHA-256 (32), length (8, little-endian), length of the path (4),
//! the path.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::smallest_shared;
use crate::store::Store;
use crate::store::codec::digest::{Digest, Hasher};
use crate::store::disk::Disk;
use crate::store::error::{Context as _, Result};
use crate::store::ids::CacheId;
use crate::store::layout;
use crate::store::unpack::open_beneath;

const MAGIC: &[u8; 8] = b"rovlidx1";
/// Bytes of a record before its path.
const FIXED: usize = 44;
/// Bytes of records that wait to be written.
const PENDING: usize = 64 << 10;
/// Contents that are kept in memory; more are not looked for. As many as a table of a million places takes, which
/// has 33 MiB.
const MAX_KNOWN: usize = 900_000;

/// The index of one layer in the making. Its records are in its file but for the last ones.
#[derive(Debug)]
pub struct LayerIndex {
    file: File,
    path: PathBuf,
    pending: Vec<u8>,
    /// Bytes of the file.
    written: u64,
}

impl LayerIndex {
    /// Begins the index's file at `path`, relative to the root.
    pub fn create(disk: &Disk, path: &Path) -> Result<LayerIndex> {
        // The magic is written at the end: until then it is no index.
        Ok(LayerIndex {
            file: disk.create(path, 0o600)?,
            path: disk.path(path),
            pending: Vec::new(),
            written: MAGIC.len() as u64,
        })
    }

    /// Adds a file, and returns where its record begins in the index's file.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn push(&mut self, digest: &Digest, size: u64, path: &[u8]) -> io::Result<u64> {
        if self.pending.len() >= PENDING {
            self.flush()?;
        }
        let offset = self.written + self.pending.len() as u64;
        let length = u32::try_from(path.len()).map_err(io::Error::other)?;
        self.pending.extend_from_slice(digest.as_bytes());
        self.pending.extend_from_slice(&size.to_le_bytes());
        self.pending.extend_from_slice(&length.to_le_bytes());
        self.pending.extend_from_slice(path);
        Ok(offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.pending, self.written)?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Completes the file. It is not synced.
    pub fn finish(&mut self) -> Result<()> {
        self.flush()
            .and_then(|()| self.file.write_all_at(MAGIC, 0))
            .context("writing", &self.path)
    }

    /// The path of the record at `offset`.
    fn path_at(&self, offset: u64) -> Option<Vec<u8>> {
        let Some(at) = offset.checked_sub(self.written) else {
            return read_path(&self.file, offset);
        };
        let record = self.pending.get(usize::try_from(at).ok()?..)?;
        let length = record.get(40..FIXED)?.try_into().ok()?;
        let end = FIXED + usize::try_from(u32::from_le_bytes(length)).ok()?;
        record.get(FIXED..end).map(<[u8]>::to_vec)
    }
}

/// Calls `each` with offset, digest, length and path of every record. Whatever is damaged ends it.
fn records(file: &[u8], mut each: impl FnMut(u64, Digest, u64, &[u8])) {
    if !file.starts_with(MAGIC) {
        return;
    }
    let mut at = MAGIC.len();
    while let Some(fixed) = file.get(at..at + FIXED) {
        let (digest, rest) = fixed.split_at(32);
        let (size, length) = rest.split_at(8);
        let (Ok(digest), Ok(size), Ok(length)) =
            (digest.try_into(), size.try_into(), length.try_into())
        else {
            return;
        };
        let length = u32::from_le_bytes(length) as usize;
        let start = at + FIXED;
        let Some(path) = start
            .checked_add(length)
            .and_then(|end| file.get(start..end))
        else {
            return;
        };
        each(
            at as u64,
            Digest::from_bytes(digest),
            u64::from_le_bytes(size),
            path,
        );
        at = start + length;
    }
}

/// Where a content is.
pub(super) struct Place {
    pub(super) root: PathBuf,
    pub(super) path: Vec<u8>,
}

/// Where the paths of a layer's contents are.
enum Paths {
    /// In the index's file.
    File(PathBuf),
    /// In the index that is being made.
    Index(Arc<Mutex<LayerIndex>>),
}

/// Half of a content's digest: whoever finds something by it looks whether it is that.
type Short = [u8; 16];

fn short(digest: &Digest) -> Short {
    let (short, _) = digest.as_bytes().split_at(16);
    short.try_into().unwrap_or_default()
}

/// The contents of all layers.
pub(super) struct Known {
    /// The tree of each layer, and where the paths in it are.
    layers: Vec<(PathBuf, Paths)>,
    /// The number of a layer, and where the content's record begins in its index.
    by_content: HashMap<Short, (u32, u64)>,
}

impl Known {
    /// Reads the indexes of all layers. What can't be read is left out: it only makes less be shared.
    pub(super) fn load(store: &Store) -> Result<Known> {
        let mut known = Known {
            layers: Vec::new(),
            by_content: HashMap::new(),
        };
        for layer in store.layers()? {
            let path = store.disk().path(layout::file_index(&layer.cache_id));
            let Ok(file) = fs::read(&path) else {
                continue;
            };
            let root = store.disk().path(layout::layer_diff(&layer.cache_id));
            let number = known.add(root, Paths::File(path));
            records(&file, |offset, digest, _, _| {
                known.insert(&digest, number, offset);
            });
        }
        Ok(known)
    }

    /// Adds a layer in the making, and returns its number.
    pub(super) fn add_layer(&mut self, root: PathBuf, index: Arc<Mutex<LayerIndex>>) -> u32 {
        self.add(root, Paths::Index(index))
    }

    fn add(&mut self, root: PathBuf, paths: Paths) -> u32 {
        self.layers.push((root, paths));
        u32::try_from(self.layers.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn insert(&mut self, digest: &Digest, layer: u32, offset: u64) {
        if self.by_content.len() < MAX_KNOWN {
            let place = (layer, offset);
            self.by_content.entry(short(digest)).or_insert(place);
        }
    }

    /// Where a file is that probably has this content.
    pub(super) fn find(&self, digest: &Digest) -> Option<Place> {
        let (layer, offset) = self.by_content.get(&short(digest))?;
        let (root, paths) = self.layers.get(usize::try_from(*layer).ok()?)?;
        let path = match paths {
            Paths::Index(index) => index.lock().path_at(*offset)?,
            Paths::File(path) => read_path(&File::open(path).ok()?, *offset)?,
        };
        Some(Place {
            root: root.clone(),
            path,
        })
    }
}

/// The path of the record at `offset`.
fn read_path(index: &File, offset: u64) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    index.read_exact_at(&mut length, offset + 40).ok()?;
    let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
    let mut path = vec![0; length.min(1 << 16)];
    index.read_exact_at(&mut path, offset + FIXED as u64).ok()?;
    Some(path)
}

/// Makes the index of a layer anew from its tree, at `to`, relative to the root.
pub fn rebuild(disk: &Disk, id: &CacheId, to: &Path) -> Result<()> {
    let tree = &disk.path(layout::layer_diff(id));
    let smallest = smallest_shared(disk)?;
    let root = File::open(tree).context("opening", tree)?;
    let mut index = LayerIndex::create(disk, to)?;
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let path = tree.join(&dir);
        for entry in fs::read_dir(&path).context("listing", &path)? {
            let entry = entry.context("listing", &path)?;
            let relative = dir.join(entry.file_name());
            let metadata = entry.metadata().context("looking at", entry.path())?;
            if metadata.is_dir() {
                todo.push(relative);
            } else if metadata.is_file() && metadata.len() >= smallest {
                let bytes = relative.as_os_str().as_bytes();
                let file = open_beneath(root.as_fd(), bytes).context("opening", entry.path())?;
                let (digest, size) = hash(file).context("reading", entry.path())?;
                index
                    .push(&digest, size, bytes)
                    .context("writing", disk.path(to))?;
            }
        }
    }
    index.finish()
}

fn hash(mut file: File) -> std::io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_read_as_it_was_written() {
        let place = tempfile::tempdir().unwrap();
        let disk = Disk::new(place.path().to_owned(), false, None);
        let mut index = LayerIndex::create(&disk, Path::new("index")).unwrap();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let first = index.push(&one, 5000, b"a/b").unwrap();
        assert_eq!(index.path_at(first).unwrap(), b"a/b");
        index.flush().unwrap();
        let second = index.push(&two, 6000, b"c").unwrap();
        assert_eq!(index.path_at(first).unwrap(), b"a/b");
        assert_eq!(index.path_at(second).unwrap(), b"c");
        index.finish().unwrap();
        let file = fs::read(place.path().join("index")).unwrap();
        let mut found = Vec::new();
        records(&file, |offset, digest, size, path| {
            found.push((offset, digest, size, path.to_vec()));
        });
        let expected = [
            (first, one, 5000, b"a/b".to_vec()),
            (second, two, 6000, b"c".to_vec()),
        ];
        assert_eq!(found, expected);
        for cut in 0..file.len() {
            records(&file[..cut], |_, _, _, _| {});
        }
    }
}
