//! The layer store: images in, layers unpacked once, images out.
//!
//! | module | what it is |
//! |---|---|
//! | [`ids`], [`names`], [`config`] | words of the store, parsed strictly; pure |
//! | [`layout`] | where everything is below the root, and how it is read |
//! | [`disk`] | the one seam through which the store writes |
//! | [`lock`], [`transaction`] | several processes at once, and none killed at a bad moment |
//! | [`layers`], [`images`] | what there is, and taking it away |
//! | [`changes`] | what a layer changes in those below |
//! | [`archive`], [`load`], [`stage`] | archives of images in |
//! | [`save`] | layers and images out |
//! | [`container`] | writable layers over images |
//! | [`dedup`] | files that several layers have, kept once |
//! | [`gc`], [`fsck`], [`usage`] | care |
//! | [`codec`], [`unpack`], [`pack`] | streams: compression, tar, tar-split; trees to and from them |
//!
//! Invariant: nothing here knows how a tree is mounted, and nothing here prints.

pub mod archive;
pub mod changes;
pub mod codec;
pub mod config;
pub mod container;
pub mod dedup;
pub mod disk;
pub mod error;
pub mod fsck;
pub mod gc;
pub mod ids;
pub mod images;
pub mod layers;
pub mod layout;
pub mod load;
pub mod lock;
pub mod names;
pub mod pack;
pub mod save;
pub mod stage;
pub mod time;
pub mod transaction;
pub mod unpack;
pub mod usage;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{Disk, Fault};
use error::{Context as _, Result};

/// How a store is opened.
#[derive(Clone)]
pub struct StoreOptions {
    /// Sync what is reported done. Without it power loss may cost anything.
    pub sync: bool,
    /// For tests: what comes below the store's writes.
    pub fault: Option<Arc<dyn Fault>>,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            sync: true,
            fault: None,
        }
    }
}

/// A store of layers and images.
///
/// Opening it reads and writes nothing: a store that isn't there is an empty one until something is written.
#[derive(Debug, Clone)]
pub struct Store {
    disk: Disk,
}

impl Store {
    /// The store at `root`.
    pub fn open(root: &Path, options: StoreOptions) -> Result<Store> {
        let root: PathBuf = std::path::absolute(root).context("finding", root)?;
        Ok(Store {
            disk: Disk::new(root, options.sync, options.fault),
        })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        self.disk.root()
    }

    /// The seam through which it writes.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }
}
