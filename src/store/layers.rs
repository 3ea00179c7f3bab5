//! Layers: what there is, what refers to it, who uses it, and taking it away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::Store;
use super::error::{Context as _, Result, StoreError};
use super::ids::{CacheId, ChainId, DiffId, ImageId};
use super::images::by_prefix;
use super::layout::{self, LayerRecord};
use super::lock::{self, Lock};
use super::transaction::Transaction;

/// Layers that can't be removed as long as this is kept.
#[derive(Debug, Default)]
pub struct Hold {
    locks: BTreeMap<CacheId, Lock>,
}

/// The record of a container, by Docker or by us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRecord {
    /// The container's id.
    pub container: String,
    /// The name of its writable layer's directory.
    pub mount_id: Option<String>,
    /// The name of the directory between it and the image.
    pub init_id: Option<String>,
    /// The image's topmost layer.
    pub parent: Option<ChainId>,
}

impl Store {
    /// The layer with this chain-id; `None` when there is none.
    pub fn layer(&self, chain: &ChainId) -> Result<Option<LayerRecord>> {
        layout::read_record(self.disk(), chain)
    }

    /// The chain-ids of all layers.
    pub fn chain_ids(&self) -> Result<Vec<ChainId>> {
        let names = layout::names(self.disk(), layout::LAYER_RECORDS)?;
        Ok(names
            .iter()
            .filter_map(|name| format!("sha256:{}", name.to_str()?).parse().ok())
            .collect())
    }

    /// All layers, by chain-id.
    pub fn layers(&self) -> Result<Vec<LayerRecord>> {
        let mut layers = Vec::new();
        for chain in self.chain_ids()? {
            layers.extend(self.layer(&chain)?);
        }
        Ok(layers)
    }

    /// The layer that a chain-id, a diff-id or the beginning of one stands for, in this order.
    pub fn find_layer(&self, name: &str) -> Result<LayerRecord> {
        let layers = self.layers()?;
        let chains = layers.iter().map(|layer| (layer.chain_id.hex(), layer));
        match by_prefix("layer", name, chains) {
            Err(StoreError::NotFound { .. }) => {}
            other => return other.cloned(),
        }
        let diffs = layers.iter().map(|layer| (layer.diff_id.hex(), layer));
        match by_prefix("layer", name, diffs) {
            // One diff-id on several parents: the trees are the same, any will do.
            Err(StoreError::Ambiguous { fits, .. })
                if fits.windows(2).all(|pair| pair.first() == pair.last()) =>
            {
                layers
                    .iter()
                    .find(|layer| Some(&layer.diff_id.hex()) == fits.first())
                    .cloned()
                    .ok_or_else(|| StoreError::NotFound {
                        kind: "layer",
                        name: name.to_owned(),
                    })
            }
            other => other.cloned(),
        }
    }

    /// The chain of a layer: it, its parent, and so on to the base.
    pub fn chain_of(&self, top: &ChainId) -> Result<Vec<LayerRecord>> {
        let mut chain = Vec::new();
        let mut seen = BTreeSet::new();
        let mut next = Some(*top);
        while let Some(id) = next {
            let layer = self.layer(&id)?;
            let layer = layer.ok_or_else(|| {
                StoreError::damaged(format!("layer {id}, part of {top}, is not there"))
            })?;
            if !seen.insert(id) {
                let what = format!("the parents of layer {top} form a circle");
                return Err(StoreError::damaged(what));
            }
            next = layer.parent;
            chain.push(layer);
        }
        Ok(chain)
    }

    /// The records of containers.
    pub fn mount_records(&self) -> Result<Vec<MountRecord>> {
        let mut records = Vec::new();
        for name in layout::names(self.disk(), layout::MOUNT_RECORDS)? {
            let dir = Path::new(layout::MOUNT_RECORDS).join(&name);
            records.push(MountRecord {
                container: name.to_string_lossy().into_owned(),
                mount_id: layout::read_text(self.disk(), dir.join("mount-id"))?,
                init_id: layout::read_text(self.disk(), dir.join("init-id"))?,
                parent: layout::parsed(self.disk(), dir.join("parent"), |text| text.parse().ok())?,
            });
        }
        Ok(records)
    }

    /// A container over the image's topmost layer, which no other image has: it keeps the image.
    pub fn container_of_image(&self, id: &ImageId) -> Result<Option<String>> {
        let repositories = Default::default();
        let top_of = |id: &ImageId| -> Result<Option<ChainId>> {
            let image = self.read_image(id, &repositories)?;
            Ok(match image {
                Some(image) => image.config.chain_ids()?.last().copied(),
                None => None,
            })
        };
        let top = top_of(id)?;
        let Some(user) = self
            .mount_records()?
            .into_iter()
            .find(|record| record.parent.is_some() && record.parent == top)
        else {
            return Ok(None);
        };
        for other in self.image_ids()? {
            if other != *id && top_of(&other)? == top {
                return Ok(None);
            }
        }
        Ok(Some(user.container))
    }

    /// The layers that containers refer to, with all below them.
    pub(super) fn chains_of_containers(&self) -> Result<BTreeSet<ChainId>> {
        let mut chains = BTreeSet::new();
        for record in self.mount_records()? {
            let mut next = record.parent;
            while let Some(chain) = next {
                if !chains.insert(chain) {
                    break;
                }
                next = self.layer(&chain)?.and_then(|layer| layer.parent);
            }
        }
        Ok(chains)
    }

    /// The layers that images (but for one) and containers refer to, with all below them.
    pub fn referenced_chains(&self, except: Option<&ImageId>) -> Result<BTreeSet<ChainId>> {
        let repositories = Default::default();
        let mut chains = self.chains_of_containers()?;
        for id in self.image_ids()? {
            if Some(&id) != except
                && let Some(image) = self.read_image(&id, &repositories)?
            {
                chains.extend(image.config.chain_ids()?);
            }
        }
        Ok(chains)
    }

    /// Plans that an image's layers go which are not in `keep`, the topmost first, down to the first that is used.
    /// What is in use stays for `gc`.
    pub(super) fn plan_layer_removal(
        &self,
        transaction: &mut Transaction,
        image: &ImageId,
        keep: &BTreeSet<ChainId>,
    ) -> Result<Vec<ChainId>> {
        let Some(image) = self.read_image(image, &Default::default())? else {
            return Ok(Vec::new());
        };
        let unwanted: BTreeSet<ChainId> = image
            .config
            .chain_ids()?
            .into_iter()
            .filter(|chain| !keep.contains(chain))
            .collect();
        self.plan_removal_of(transaction, unwanted)
    }

    /// Plans that these layers go, children before parents. One that is in use stays, and so do its parents.
    pub(super) fn plan_removal_of(
        &self,
        transaction: &mut Transaction,
        unwanted: BTreeSet<ChainId>,
    ) -> Result<Vec<ChainId>> {
        let layers = self.layers()?;
        let mounted = mounted_text();
        let mut kept: BTreeSet<ChainId> = BTreeSet::new();
        let mut locks = BTreeMap::new();
        for layer in &layers {
            if !unwanted.contains(&layer.chain_id) {
                kept.extend(layer.parent);
            } else if let Some(lock) = self.lock_unused(&layer.cache_id, &mounted)? {
                locks.insert(layer.chain_id, lock);
            } else {
                kept.insert(layer.chain_id);
            }
        }
        let parents: BTreeMap<ChainId, Option<ChainId>> = layers
            .iter()
            .map(|layer| (layer.chain_id, layer.parent))
            .collect();
        for chain in kept.clone() {
            let mut next = Some(chain);
            while let Some(id) = next {
                kept.insert(id);
                next = parents.get(&id).copied().flatten();
            }
        }
        let going: Vec<&LayerRecord> = layers
            .iter()
            .filter(|layer| unwanted.contains(&layer.chain_id) && !kept.contains(&layer.chain_id))
            .collect();
        // The records first: a layer with a record is whole.
        for layer in &going {
            transaction.remove(layout::layer_record(&layer.chain_id));
        }
        for layer in &going {
            self.plan_directory_removal(transaction, &layer.cache_id)?;
        }
        let gone: BTreeSet<ChainId> = going.iter().map(|layer| layer.chain_id).collect();
        self.plan_digest_removal(transaction, &layers, &gone)?;
        transaction.keep_until_committed(locks.into_values().collect());
        Ok(going.iter().map(|layer| layer.chain_id).collect())
    }

    /// Plans that records of compressed forms go whose layers go.
    fn plan_digest_removal(
        &self,
        transaction: &mut Transaction,
        layers: &[LayerRecord],
        going: &BTreeSet<ChainId>,
    ) -> Result<()> {
        let left: BTreeSet<DiffId> = layers
            .iter()
            .filter(|layer| !going.contains(&layer.chain_id))
            .map(|layer| layer.diff_id)
            .collect();
        let gone: BTreeSet<String> = layers
            .iter()
            .filter(|layer| going.contains(&layer.chain_id) && !left.contains(&layer.diff_id))
            .map(|layer| layer.diff_id.to_string())
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        for name in layout::names(self.disk(), layout::DIFF_ID_BY_DIGEST)? {
            let path = Path::new(layout::DIFF_ID_BY_DIGEST).join(name);
            let diff_id = layout::read_text(self.disk(), &path)?;
            if diff_id.is_some_and(|diff_id| gone.contains(&diff_id)) {
                transaction.remove(path);
            }
        }
        Ok(())
    }

    /// Plans that a layer's directory and all that belongs to it goes.
    pub(super) fn plan_directory_removal(
        &self,
        transaction: &mut Transaction,
        id: &CacheId,
    ) -> Result<()> {
        if let Ok(Some(link)) = layout::read_link_id(self.disk(), id) {
            transaction.remove(layout::link(&link));
        }
        transaction.remove(layout::layer_dir(id));
        let index = layout::file_index(id);
        if self.disk().path(&index).exists() {
            transaction.remove(index);
        }
        Ok(())
    }

    /// The exclusive lock of a layer that nobody uses. A layer without a link can't be used.
    pub(super) fn lock_unused(&self, id: &CacheId, mounted: &str) -> Result<Option<Option<Lock>>> {
        let link = layout::read_link_id(self.disk(), id).unwrap_or(None);
        let in_table = |text: &str| mounted.contains(text);
        if in_table(id.as_str()) || link.as_ref().is_some_and(|link| in_table(link.as_str())) {
            return Ok(None);
        }
        let path = self.disk().path(layout::layer_dir(id).join("link"));
        if !path.exists() {
            return Ok(Some(None));
        }
        Ok(lock::try_exclusive(&path)?.map(Some))
    }

    /// Keeps layers from being removed. An error if one is not there, or is just being removed.
    pub fn hold<'a>(&self, layers: impl IntoIterator<Item = &'a LayerRecord>) -> Result<Hold> {
        let mut hold = Hold::default();
        for layer in layers {
            self.hold_one(layer, &mut hold)?;
        }
        Ok(hold)
    }

    /// Keeps one more layer from being removed.
    pub(super) fn hold_one(&self, layer: &LayerRecord, hold: &mut Hold) -> Result<()> {
        if hold.locks.contains_key(&layer.cache_id) {
            return Ok(());
        }
        let path = self
            .disk()
            .path(layout::layer_dir(&layer.cache_id).join("link"));
        let gone = || StoreError::NotFound {
            kind: "layer",
            name: layer.chain_id.to_string(),
        };
        let lock = lock::try_shared(&path)?.ok_or_else(gone)?;
        // It may have gone between the record and the lock.
        if fs::symlink_metadata(&path).is_err() {
            return Err(gone());
        }
        hold.locks.insert(layer.cache_id.clone(), lock);
        Ok(())
    }

    /// An image and its layers, the base first, kept from being removed.
    pub fn hold_image(&self, image: &super::images::Image) -> Result<(Vec<LayerRecord>, Hold)> {
        let mut layers = Vec::new();
        for chain in image.config.chain_ids()? {
            let layer = self.layer(&chain)?.ok_or_else(|| {
                StoreError::damaged(format!("image {}: layer {chain} is not there", image.id))
            })?;
            layers.push(layer);
        }
        let hold = self.hold(&layers)?;
        Ok((layers, hold))
    }
}

/// The mount table of this mount namespace as far as it names lowers: layers that the kernel has mounted.
pub(super) fn mounted_text() -> String {
    // Without /proc there is no telling; locks and container records remain. Somebody else's mount may be in a place
    // whose name is no text; those of layers are.
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    String::from_utf8_lossy(&table).into_owned()
}

/// Bytes that a tree's files have, each inode once, as Docker counts a layer's size.
pub fn tree_size(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut seen = BTreeSet::new();
    let mut size = 0;
    let mut todo = vec![path.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).context("listing", &dir)? {
            let entry = entry.context("listing", &dir)?.path();
            let metadata = fs::symlink_metadata(&entry).context("looking at", &entry)?;
            if metadata.is_dir() {
                todo.push(entry);
            } else if metadata.nlink() == 1 || seen.insert(metadata.ino()) {
                size += metadata.len();
            }
        }
    }
    Ok(size)
}
