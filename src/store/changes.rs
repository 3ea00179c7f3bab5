//! What a layer changes in those below it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::Store;
use super::error::{Context as _, Result};
use super::layout::{self, LayerRecord};
use crate::format::keys::{Namespace, OverlayKey};
use crate::format::whiteout::{AufsName, classify};
use crate::sys::xattr::get_at;

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It was there.
    Changed,
    /// It is gone.
    Deleted,
}

/// A path that a layer changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What became of it.
    pub kind: ChangeKind,
    /// From the root of the tree, with a leading slash.
    pub path: PathBuf,
}

/// Trees below a layer, topmost first.
struct Below {
    trees: Vec<PathBuf>,
}

impl Store {
    /// What a layer changes, sorted by path. Only the layer itself is walked.
    pub fn changes(&self, layer: &LayerRecord) -> Result<Vec<Change>> {
        let chain = self.chain_of(&layer.chain_id)?;
        let _hold = self.hold(&chain)?;
        let mut trees = chain
            .iter()
            .map(|layer| self.disk().path(layout::layer_diff(&layer.cache_id)));
        let Some(top) = trees.next() else {
            return Ok(Vec::new());
        };
        let below = Below {
            trees: trees.collect(),
        };
        let mut changes = Vec::new();
        walk(&top, Path::new(""), &below, &mut changes)?;
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }
}

fn walk(tree: &Path, dir: &Path, below: &Below, changes: &mut Vec<Change>) -> Result<()> {
    let path = tree.join(dir);
    let mut is_opaque = is_opaque(&path);
    let mut own = BTreeSet::new();
    let mut subdirectories = Vec::new();
    for entry in fs::read_dir(&path).context("listing", &path)? {
        let entry = entry.context("listing", &path)?;
        let name = entry.file_name();
        let metadata = entry.metadata().context("looking at", entry.path())?;
        let (hidden, is_deleted) = match classify(&name) {
            AufsName::Opaque => {
                is_opaque = true;
                continue;
            }
            AufsName::Hides(hidden) => (hidden.to_owned(), true),
            _ => {
                let is_device = metadata.file_type().is_char_device() && metadata.rdev() == 0;
                (
                    name.clone(),
                    is_device || has_whiteout_key(&path, &name, &metadata),
                )
            }
        };
        own.insert(hidden.clone());
        let child = dir.join(&hidden);
        let was_there = below.has(&child);
        let kind = match (is_deleted, was_there) {
            (true, true) => Some(ChangeKind::Deleted),
            (true, false) => None,
            (false, true) => Some(ChangeKind::Changed),
            (false, false) => Some(ChangeKind::Added),
        };
        if let Some(kind) = kind {
            changes.push(Change {
                kind,
                path: Path::new("/").join(&child),
            });
        }
        if !is_deleted && metadata.is_dir() {
            subdirectories.push(child);
        }
    }
    if is_opaque {
        for name in below.names(dir) {
            if !own.contains(&name) {
                changes.push(Change {
                    kind: ChangeKind::Deleted,
                    path: Path::new("/").join(dir).join(name),
                });
            }
        }
    }
    for child in subdirectories {
        walk(tree, &child, below, changes)?;
    }
    Ok(())
}

fn key(path: &Path, name: &OsStr, key: OverlayKey) -> Option<Vec<u8>> {
    let dir = fs::File::open(path).ok()?;
    [Namespace::Trusted, Namespace::User]
        .iter()
        .find_map(|namespace| {
            get_at(std::os::fd::AsFd::as_fd(&dir), name, namespace.key(key)).ok()?
        })
}

pub(super) fn is_opaque(path: &Path) -> bool {
    key(path, OsStr::new(""), OverlayKey::Opaque).is_some_and(|value| value == b"y")
}

fn has_whiteout_key(path: &Path, name: &OsStr, metadata: &fs::Metadata) -> bool {
    metadata.is_file() && metadata.len() == 0 && key(path, name, OverlayKey::Whiteout).is_some()
}

impl Below {
    /// Whether the layers below show something at this path.
    fn has(&self, path: &Path) -> bool {
        self.trees
            .iter()
            .find_map(|tree| shows(tree, path))
            .unwrap_or(false)
    }

    /// The names that the layers below show in a directory.
    fn names(&self, dir: &Path) -> Vec<OsString> {
        let mut names = BTreeSet::new();
        for tree in &self.trees {
            let Ok(entries) = fs::read_dir(tree.join(dir)) else {
                continue;
            };
            names.extend(entries.flatten().map(|entry| entry.file_name()));
        }
        names
            .into_iter()
            .filter(|name| self.has(&dir.join(name)))
            .collect()
    }
}

/// Whether a tree shows something at a path (`Some(true)`), hides it (`Some(false)`), or says nothing of it.
pub(super) fn shows(tree: &Path, path: &Path) -> Option<bool> {
    let mut at = tree.to_owned();
    let count = path.components().count();
    for (number, part) in path.components().enumerate() {
        let whiteout = at.join(format!(".wh.{}", part.as_os_str().to_string_lossy()));
        if fs::symlink_metadata(whiteout).is_ok() {
            return Some(false);
        }
        let parent = at.clone();
        at.push(part);
        let Ok(metadata) = fs::symlink_metadata(&at) else {
            return is_opaque(&parent).then_some(false);
        };
        let is_device = metadata.file_type().is_char_device() && metadata.rdev() == 0;
        if is_device || has_whiteout_key(&parent, part.as_os_str(), &metadata) {
            return Some(false);
        }
        if number + 1 < count && !metadata.is_dir() {
            return Some(false);
        }
    }
    Some(true)
}
