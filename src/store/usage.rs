//! What the store takes on disk: every byte below the root, and whose it is.

mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::Store;
use super::error::{Context as _, Result};
use super::ids::{ChainId, ImageId};
use super::layout;
use shared::SharedBlocks;

/// Bytes of a block that `st_blocks` counts.
const BLOCK: u64 = 512;
/// `ENOTCONN`.
const DEAD_MOUNT: i32 = rustix::io::Errno::NOTCONN.raw_os_error();

/// What an image takes.
#[derive(Debug, Clone)]
pub struct ImageUsage {
    /// The image.
    pub id: ImageId,
    /// Its names.
    pub names: Vec<String>,
    /// Bytes of all its layers.
    pub total: u64,
    /// Bytes of layers that other images have too.
    pub shared: u64,
    /// Bytes of layers that no other image has.
    pub unique: u64,
    /// Bytes of its layers that are on disk once and counted more often: files share their blocks.
    pub saved: u64,
}

/// What a layer takes.
#[derive(Debug, Clone)]
pub struct LayerUsage {
    /// The layer.
    pub chain_id: ChainId,
    /// Bytes of its tree.
    pub bytes: u64,
    /// Bytes of it whose blocks files before it in this list have, too.
    pub saved: u64,
    /// Whether an image or a container refers to it.
    pub referenced: bool,
}

/// What the whole store takes. Each byte below the root is in exactly one of the sums.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Images, by id.
    pub images: Vec<ImageUsage>,
    /// Layers, by chain-id.
    pub layers: Vec<LayerUsage>,
    /// Trees of layers, with `link`, `lower` and what else is beside them.
    pub layer_bytes: u64,
    /// Directories of containers.
    pub container_bytes: u64,
    /// Records of layers and containers, with the tar-split records.
    pub record_bytes: u64,
    /// Configs, names and what else is known of images.
    pub image_bytes: u64,
    /// rovl's own index and locks.
    pub index_bytes: u64,
    /// Transactions under way, and those of killed processes.
    pub transaction_bytes: u64,
    /// What nothing refers to in `overlay2/`: `gc` takes it.
    pub garbage_bytes: u64,
    /// What is not the store's: Docker's other directories.
    pub foreign_bytes: u64,
    /// Directories of the layout itself.
    pub layout_bytes: u64,
    /// All of the above: what `du` says of the root.
    pub total: u64,
    /// Bytes that are counted above more than once, because files share their blocks.
    pub saved: u64,
}

/// Bytes that a tree has on disk, each inode once.
#[derive(Default)]
struct Meter {
    linked: BTreeSet<(u64, u64)>,
    /// Where files can share blocks, and that is of interest.
    shared: Option<SharedBlocks>,
    /// Bytes of blocks that were counted before.
    again: u64,
}

impl Meter {
    /// What is at `path` with all below; nothing when it has gone.
    fn tree(&mut self, path: &Path) -> Result<u64> {
        let mut bytes = 0;
        let mut todo = vec![path.to_owned()];
        let device = fs::symlink_metadata(path).ok().map(|m| m.dev());
        while let Some(next) = todo.pop() {
            let metadata = match fs::symlink_metadata(&next) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                // The mount of a container whose daemon has died.
                Err(error) if error.raw_os_error() == Some(DEAD_MOUNT) => continue,
                other => other.context("looking at", &next)?,
            };
            // What is mounted here, a container's merged tree for one, is not the store's.
            if device.is_some_and(|device| device != metadata.dev()) {
                continue;
            }
            if metadata.is_dir() {
                match fs::read_dir(&next) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    other => {
                        for entry in other.context("listing", &next)? {
                            todo.push(entry.context("listing", &next)?.path());
                        }
                    }
                }
                bytes += metadata.blocks() * BLOCK;
            } else if metadata.nlink() == 1 || self.linked.insert((metadata.dev(), metadata.ino()))
            {
                bytes += metadata.blocks() * BLOCK;
                if let Some(shared) = self.shared.as_mut().filter(|_| metadata.is_file()) {
                    self.again += shared.add(&next);
                }
            }
        }
        Ok(bytes)
    }

    /// What is at `path` itself.
    fn alone(&self, path: &Path) -> u64 {
        fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * BLOCK)
    }
}

/// Where a name below `overlay2/` belongs.
enum Owner {
    Layer(usize),
    Container,
    Nobody,
}

impl Store {
    /// Measures everything below the root.
    pub fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        if !self.root().is_dir() {
            return Ok(usage);
        }
        let mut meter = Meter {
            shared: SharedBlocks::new(self.root()),
            ..Meter::default()
        };
        self.measure_layers(&mut usage, &mut meter)?;
        let layout: BTreeSet<&str> = layout::directories().collect();
        usage.layout_bytes = meter.alone(self.root());
        self.measure_rest(Path::new(""), &layout, &mut usage, &mut meter)?;
        self.sum_up_images(&mut usage)?;
        usage.total = usage.layer_bytes
            + usage.container_bytes
            + usage.record_bytes
            + usage.image_bytes
            + usage.index_bytes
            + usage.transaction_bytes
            + usage.garbage_bytes
            + usage.foreign_bytes
            + usage.layout_bytes;
        usage.saved = meter.again;
        Ok(usage)
    }

    fn measure_layers(&self, usage: &mut Usage, meter: &mut Meter) -> Result<()> {
        let referenced = self.referenced_chains(None)?;
        let mut owners: BTreeMap<String, Owner> = BTreeMap::new();
        for layer in self.layers()? {
            owners.insert(layer.cache_id.to_string(), Owner::Layer(usage.layers.len()));
            usage.layers.push(LayerUsage {
                chain_id: layer.chain_id,
                bytes: 0,
                saved: 0,
                referenced: referenced.contains(&layer.chain_id),
            });
        }
        for record in self.mount_records()? {
            for id in [record.mount_id, record.init_id].into_iter().flatten() {
                owners.insert(id, Owner::Container);
            }
        }
        for name in layout::names(self.disk(), layout::OVERLAY)? {
            if name == "l" {
                continue;
            }
            let path = self.disk().path(Path::new(layout::OVERLAY).join(&name));
            let before = meter.again;
            let bytes = meter.tree(&path)?;
            let owner = owners
                .get(&*name.to_string_lossy())
                .unwrap_or(&Owner::Nobody);
            match owner {
                Owner::Layer(number) => {
                    usage.layer_bytes += bytes;
                    if let Some(layer) = usage.layers.get_mut(*number) {
                        layer.bytes = bytes;
                        layer.saved = meter.again - before;
                    }
                }
                Owner::Container => usage.container_bytes += bytes,
                Owner::Nobody => usage.garbage_bytes += bytes,
            }
        }
        Ok(())
    }

    /// Everything but the directories in `overlay2/`.
    fn measure_rest(
        &self,
        dir: &Path,
        layout: &BTreeSet<&str>,
        usage: &mut Usage,
        meter: &mut Meter,
    ) -> Result<()> {
        for name in layout::names(self.disk(), dir)? {
            let relative = dir.join(&name);
            let path = self.disk().path(&relative);
            let text = relative.to_string_lossy();
            if layout.contains(&*text) {
                usage.layout_bytes += meter.alone(&path);
                if text != layout::OVERLAY {
                    self.measure_rest(&relative, layout, usage, meter)?;
                } else {
                    self.measure_rest(Path::new(layout::LINKS), layout, usage, meter)?;
                    usage.layout_bytes += meter.alone(&self.disk().path(layout::LINKS));
                }
                continue;
            }
            let is_under = |parent: &str| relative.starts_with(parent);
            let bytes = meter.tree(&path)?;
            if is_under(layout::LINKS) {
                usage.layer_bytes += bytes;
            } else if is_under("image/overlay2/layerdb") {
                usage.record_bytes += bytes;
            } else if is_under("image/overlay2") {
                usage.image_bytes += bytes;
            } else if is_under(layout::TRANSACTIONS) {
                usage.transaction_bytes += bytes;
            } else if is_under("rovl") {
                usage.index_bytes += bytes;
            } else {
                usage.foreign_bytes += bytes;
            }
        }
        Ok(())
    }

    fn sum_up_images(&self, usage: &mut Usage) -> Result<()> {
        let images = self.images()?;
        let mut users: BTreeMap<ChainId, u32> = BTreeMap::new();
        let mut chains = Vec::new();
        for image in &images {
            let own: BTreeSet<ChainId> = image.config.chain_ids()?.into_iter().collect();
            for chain in &own {
                *users.entry(*chain).or_default() += 1;
            }
            chains.push(own);
        }
        let by_chain: BTreeMap<ChainId, (u64, u64)> = usage
            .layers
            .iter()
            .map(|layer| (layer.chain_id, (layer.bytes, layer.saved)))
            .collect();
        for (image, own) in images.into_iter().zip(chains) {
            let mut sums = ImageUsage {
                id: image.id,
                names: image.names,
                total: 0,
                shared: 0,
                unique: 0,
                saved: 0,
            };
            for chain in own {
                let (bytes, saved) = by_chain.get(&chain).copied().unwrap_or_default();
                sums.total += bytes;
                sums.saved += saved;
                match users.get(&chain) {
                    Some(1) => sums.unique += bytes,
                    _ => sums.shared += bytes,
                }
            }
            usage.images.push(sums);
        }
        Ok(())
    }
}

/// Bytes that a tree has on disk, each inode once.
pub fn tree_usage(path: &Path) -> Result<u64> {
    Meter::default().tree(path)
}
