//! Which contents a layer has: one file a layer, and all of them in memory during a load.
//!
//! A file is the magic, the bytes that the layer shares with others (8 bytes, little-endian), then a record for
//! each file: SHA-256 (32), length (8), length of the path (4), the path.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::Blocks;
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
/// Contents that are kept in memory; more are not looked for. About 64 bytes each.
const MAX_KNOWN: usize = 1_000_000;

/// The index of one layer in the making.
#[derive(Debug, Default)]
pub struct LayerIndex {
    records: Vec<u8>,
    saved: u64,
}

impl LayerIndex {
    /// Adds a file that shares `saved` bytes of blocks, and returns where its record begins in the index's file.
    pub fn push(&mut self, digest: &Digest, size: u64, path: &[u8], saved: u64) -> u64 {
        let offset = (MAGIC.len() + 8 + self.records.len()) as u64;
        let length = u32::try_from(path.len()).unwrap_or(0);
        self.records.extend_from_slice(digest.as_bytes());
        self.records.extend_from_slice(&size.to_le_bytes());
        self.records.extend_from_slice(&length.to_le_bytes());
        if length > 0 {
            self.records.extend_from_slice(path);
        }
        self.saved += saved;
        offset
    }

    /// The index's file.
    pub fn encode(&self) -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(&self.saved.to_le_bytes());
        file.extend_from_slice(&self.records);
        file
    }
}

/// Calls `each` with offset, digest, length and path of every record. Whatever is damaged ends it.
fn records(file: &[u8], mut each: impl FnMut(u64, Digest, u64, &[u8])) {
    if !file.starts_with(MAGIC) {
        return;
    }
    let mut at = MAGIC.len() + 8;
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

/// Bytes that a layer shares with others, as its index has it.
pub fn read_saved(disk: &Disk, id: &CacheId) -> u64 {
    let mut head = [0; 16];
    let read = File::open(disk.path(layout::file_index(id)))
        .and_then(|file| std::io::Read::read_exact(&mut &file, &mut head));
    let (magic, saved) = head.split_at(8);
    match (read, saved.try_into()) {
        (Ok(()), Ok(saved)) if magic == MAGIC => u64::from_le_bytes(saved),
        _ => 0,
    }
}

/// Where a content is.
pub(super) struct Place {
    pub(super) root: PathBuf,
    pub(super) path: Vec<u8>,
}

/// The contents of all layers.
pub(super) struct Known {
    /// The tree of each layer, and the index that its paths are read from; none for a layer in the making.
    layers: Vec<(PathBuf, Option<PathBuf>)>,
    by_content: HashMap<(Digest, u64), (u32, u64)>,
    /// The paths of layers in the making.
    fresh: HashMap<(u32, u64), Vec<u8>>,
}

impl Known {
    /// Reads the indexes of all layers. What can't be read is left out: it only makes less be shared.
    pub(super) fn load(store: &Store) -> Result<Known> {
        let mut known = Known {
            layers: Vec::new(),
            by_content: HashMap::new(),
            fresh: HashMap::new(),
        };
        for layer in store.layers()? {
            let path = store.disk().path(layout::file_index(&layer.cache_id));
            let Ok(file) = fs::read(&path) else {
                continue;
            };
            let root = store.disk().path(layout::layer_diff(&layer.cache_id));
            let number = known.add_layer(root);
            if let Some((_, index)) = known.layers.last_mut() {
                *index = Some(path);
            }
            records(&file, |offset, digest, size, _| {
                if known.by_content.len() < MAX_KNOWN {
                    let place = (number, offset);
                    known.by_content.entry((digest, size)).or_insert(place);
                }
            });
        }
        Ok(known)
    }

    pub(super) fn add_layer(&mut self, root: PathBuf) -> u32 {
        self.layers.push((root, None));
        u32::try_from(self.layers.len() - 1).unwrap_or(u32::MAX)
    }

    pub(super) fn insert(
        &mut self,
        digest: &Digest,
        size: u64,
        layer: u32,
        offset: u64,
        path: &[u8],
    ) {
        if self.by_content.len() >= MAX_KNOWN {
            return;
        }
        if let std::collections::hash_map::Entry::Vacant(vacant) =
            self.by_content.entry((*digest, size))
        {
            vacant.insert((layer, offset));
            self.fresh.insert((layer, offset), path.to_owned());
        }
    }

    pub(super) fn find(&self, digest: &Digest, size: u64) -> Option<Place> {
        let place = self.by_content.get(&(*digest, size))?;
        let (root, index) = self.layers.get(usize::try_from(place.0).ok()?)?;
        let path = match index {
            None => self.fresh.get(place)?.clone(),
            Some(index) => read_path(index, place.1)?,
        };
        Some(Place {
            root: root.clone(),
            path,
        })
    }
}

/// The path of the record at `offset`.
fn read_path(index: &Path, offset: u64) -> Option<Vec<u8>> {
    use std::os::unix::fs::FileExt as _;
    let file = File::open(index).ok()?;
    let mut length = [0; 4];
    file.read_exact_at(&mut length, offset + 40).ok()?;
    let length = usize::try_from(u32::from_le_bytes(length)).ok()?;
    let mut path = vec![0; length.min(1 << 16)];
    file.read_exact_at(&mut path, offset + FIXED as u64).ok()?;
    Some(path)
}

/// The index of a layer, made anew from its tree. Nothing is known then of what it shares.
pub fn rebuild(disk: &Disk, id: &CacheId) -> Result<LayerIndex> {
    let tree = &disk.path(layout::layer_diff(id));
    let blocks = Blocks::of(disk)?;
    let root = File::open(tree).context("opening", tree)?;
    let mut index = LayerIndex::default();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let path = tree.join(&dir);
        for entry in fs::read_dir(&path).context("listing", &path)? {
            let entry = entry.context("listing", &path)?;
            let relative = dir.join(entry.file_name());
            let metadata = entry.metadata().context("looking at", entry.path())?;
            if metadata.is_dir() {
                todo.push(relative);
            } else if metadata.is_file() && metadata.len() >= blocks.smallest {
                let bytes = relative.as_os_str().as_bytes();
                let file = open_beneath(root.as_fd(), bytes).context("opening", entry.path())?;
                let (digest, size) = hash(file).context("reading", entry.path())?;
                index.push(&digest, size, bytes, 0);
            }
        }
    }
    Ok(index)
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
        let mut index = LayerIndex::default();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let first = index.push(&one, 5000, b"a/b", 0);
        let second = index.push(&two, 6000, b"c", 8192);
        let file = index.encode();
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
