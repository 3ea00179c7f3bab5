//! The end of a load: what was unpacked becomes the layers of images, and all of it is shown at once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::inherit::inherit;
use super::plan::{ImagePlan, LayerPlan};
use super::{LoadedImage, LoadedLayer, Loader, Outcome};
use crate::store::disk::Disk;
use crate::store::error::{Result, StoreError};
use crate::store::ids::{ChainId, DiffId, LinkId};
use crate::store::images::plan_image;
use crate::store::layout::{self, LayerRecord};
use crate::store::stage::StagedLayer;
use crate::store::time;
use crate::store::transaction::WriteLock;

/// A layer that others can lie on.
#[derive(Debug, Clone)]
struct Below {
    link: LinkId,
    lower: Option<String>,
    /// Its tree and those of its parents, topmost first.
    trees: Vec<PathBuf>,
}

/// A layer that is to be published.
struct NewLayer {
    chain_id: ChainId,
    parent: Option<ChainId>,
    staged: StagedLayer,
    /// As it was written before the lock was taken.
    lower: Option<String>,
    outcome: Outcome,
}

impl Loader<'_> {
    /// Publishes the images and their layers.
    pub(super) fn publish(mut self, plans: Vec<ImagePlan>) -> Result<Vec<LoadedImage>> {
        let mut new: Vec<NewLayer> = Vec::new();
        let mut below: BTreeMap<ChainId, Below> = BTreeMap::new();
        for plan in &plans {
            for layer in &plan.layers {
                if !below.contains_key(&layer.chain_id) {
                    let parent = match layer.parent {
                        None => None,
                        Some(parent) => match below.get(&parent) {
                            Some(known) => Some(known.clone()),
                            None => Some(self.use_parent(&parent)?),
                        },
                    };
                    let made = self.prepare(layer, parent, &mut new)?;
                    below.insert(layer.chain_id, made);
                }
            }
        }
        if !new.is_empty() {
            self.progress.phase("syncing");
            self.store.disk().sync_fs()?;
        }
        self.commit(plans, new)
    }

    /// Makes sure that a layer is there or about to be.
    fn prepare(
        &mut self,
        layer: &LayerPlan,
        parent: Option<Below>,
        new: &mut Vec<NewLayer>,
    ) -> Result<Below> {
        if let Some(record) = self.store.layer(&layer.chain_id)? {
            return self.use_existing(&record);
        }
        let (staged, outcome) = self.staged_for(&layer.diff_id, new)?;
        let lower = parent
            .as_ref()
            .map(|parent| layout::lower_of_child(&parent.link, parent.lower.as_deref()));
        let disk = self.store.disk();
        let below = parent.map(|parent| parent.trees).unwrap_or_default();
        let tree = disk.path(staged.dir.join("diff"));
        inherit(disk, &tree, &staged.implied, &below)?;
        write_lower(disk, &staged, lower.as_deref(), false)?;
        if lower.is_some() {
            disk.make_dir(staged.dir.join("work"), 0o700)?;
        }
        let record = LayerRecord {
            chain_id: layer.chain_id,
            diff_id: layer.diff_id,
            parent: layer.parent,
            cache_id: staged.cache_id.clone(),
            size: staged.size,
        };
        for (name, content) in record.files() {
            disk.write(staged.record.join(name), content.as_bytes(), 0o644)?;
        }
        disk.symlink(layout::link_target(&staged.cache_id), link_in(&staged))?;
        let made = Below {
            link: staged.link_id.clone(),
            lower: lower.clone(),
            trees: [vec![tree], below].concat(),
        };
        new.push(NewLayer {
            chain_id: layer.chain_id,
            parent: layer.parent,
            staged,
            lower,
            outcome,
        });
        Ok(made)
    }

    fn use_parent(&mut self, parent: &ChainId) -> Result<Below> {
        let record = self.store.layer(parent)?;
        let record = record.ok_or_else(|| StoreError::NotFound {
            kind: "layer",
            name: parent.to_string(),
        })?;
        self.use_existing(&record)
    }

    fn use_existing(&mut self, record: &LayerRecord) -> Result<Below> {
        self.store.hold_one(record, &mut self.hold)?;
        let disk = self.store.disk();
        let link = layout::read_link_id(disk, &record.cache_id)?
            .ok_or_else(|| StoreError::damaged(format!("layer {} has no link", record.chain_id)))?;
        let chain = self.store.chain_of(&record.chain_id)?;
        Ok(Below {
            link,
            lower: layout::read_lower(disk, &record.cache_id)?,
            trees: chain
                .iter()
                .map(|layer| disk.path(layout::layer_diff(&layer.cache_id)))
                .collect(),
        })
    }

    /// The tree of a layer: unpacked just now, or a clone of one that is there.
    fn staged_for(&mut self, diff_id: &DiffId, new: &[NewLayer]) -> Result<(StagedLayer, Outcome)> {
        if let Some(staged) = self.staged.remove(diff_id) {
            return Ok((staged, Outcome::Unpacked));
        }
        self.progress.phase("cloning");
        if let Some(other) = new.iter().find(|other| other.staged.diff_id == *diff_id) {
            let clone = self.stager().clone_staged(&other.staged)?;
            return Ok((clone, Outcome::Cloned));
        }
        let layers = self.store.layers()?;
        let same = layers.iter().find(|layer| layer.diff_id == *diff_id);
        let same = same.ok_or_else(|| StoreError::NotFound {
            kind: "layer",
            name: diff_id.to_string(),
        })?;
        self.store.hold_one(same, &mut self.hold)?;
        Ok((self.stager().clone_layer(same)?, Outcome::Cloned))
    }

    fn commit(mut self, plans: Vec<ImagePlan>, mut new: Vec<NewLayer>) -> Result<Vec<LoadedImage>> {
        let guard = WriteLock::take(self.store.disk())?;
        self.yield_to_others(&mut new)?;
        self.place_layers(&new)?;
        let mut repositories = self.store.repositories()?;
        let before = repositories.clone();
        let now = time::now();
        let mut loaded = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for plan in plans {
            if let Some(raw) = &plan.raw
                && seen.insert(plan.id)
                && self.store.read_image(&plan.id, &before)?.is_none()
            {
                plan_image(&mut self.transaction, raw, &plan.id, &now)?;
            }
            for name in &plan.names {
                repositories.set(name, &plan.id);
            }
            loaded.push(self.report(plan, &new)?);
        }
        if repositories != before
            || self
                .store
                .disk()
                .path(layout::REPOSITORIES)
                .metadata()
                .is_err()
        {
            let text = repositories.encode()?;
            self.transaction
                .place_file(&text, 0o600, layout::REPOSITORIES)?;
        }
        self.transaction.commit(guard)?;
        Ok(loaded)
    }

    /// Another process may have published the same layers meanwhile: its are used then. What lies on them gets
    /// their links into its `lower`.
    fn yield_to_others(&mut self, new: &mut Vec<NewLayer>) -> Result<()> {
        let mut below: BTreeMap<ChainId, Below> = BTreeMap::new();
        let mut kept = Vec::new();
        for mut layer in std::mem::take(new) {
            if let Some(record) = self.store.layer(&layer.chain_id)? {
                let theirs = self.use_existing(&record)?;
                below.insert(layer.chain_id, theirs);
                continue;
            }
            let parent = layer.parent.and_then(|parent| below.get(&parent));
            if let Some(parent) = parent {
                let lower = layout::lower_of_child(&parent.link, parent.lower.as_deref());
                if layer.lower.as_ref() != Some(&lower) {
                    write_lower(self.store.disk(), &layer.staged, Some(&lower), true)?;
                    layer.lower = Some(lower);
                }
            }
            let made = Below {
                link: layer.staged.link_id.clone(),
                lower: layer.lower.clone(),
                trees: Vec::new(),
            };
            below.insert(layer.chain_id, made);
            kept.push(layer);
        }
        *new = kept;
        Ok(())
    }

    /// Plans where everything goes: trees, links, marks in parents, then the records that make them layers.
    fn place_layers(&mut self, new: &[NewLayer]) -> Result<()> {
        let transaction = &mut self.transaction;
        for layer in new {
            let staged = &layer.staged;
            let index = transaction.join(format!("{}.files", staged.cache_id));
            if self.store.disk().path(&index).exists() {
                transaction.place(index, layout::file_index(&staged.cache_id));
            }
        }
        for layer in new {
            transaction.place(&layer.staged.dir, layout::layer_dir(&layer.staged.cache_id));
        }
        for layer in new {
            transaction.place(link_in(&layer.staged), layout::link(&layer.staged.link_id));
        }
        for layer in new {
            let Some(parent) = &layer.parent else {
                continue;
            };
            let sibling = new.iter().find(|other| other.chain_id == *parent);
            let cache_id = match sibling {
                Some(sibling) => Some(sibling.staged.cache_id.clone()),
                None => self.store.layer(parent)?.map(|record| record.cache_id),
            };
            if let Some(cache_id) = cache_id {
                let mark = layout::layer_dir(&cache_id).join("committed");
                if !self.store.disk().path(&mark).exists() {
                    transaction.place_file(b"", 0o600, mark)?;
                }
            }
        }
        for layer in new {
            transaction.place(&layer.staged.record, layout::layer_record(&layer.chain_id));
        }
        for layer in new {
            if let Some(blob) = &layer.staged.blob {
                let to = layout::diff_id_by_digest(&blob.0);
                let diff_id = layer.staged.diff_id.to_string();
                transaction.place_file(diff_id.as_bytes(), 0o600, to)?;
            }
        }
        Ok(())
    }

    fn report(&self, plan: ImagePlan, new: &[NewLayer]) -> Result<LoadedImage> {
        let mut layers = Vec::new();
        for layer in plan.layers {
            let made = new.iter().find(|made| made.chain_id == layer.chain_id);
            let (outcome, size) = match made {
                Some(made) => (made.outcome, made.staged.size),
                None => {
                    let record = self.store.layer(&layer.chain_id)?;
                    (Outcome::Existed, record.map_or(0, |record| record.size))
                }
            };
            layers.push(LoadedLayer {
                chain_id: layer.chain_id,
                diff_id: layer.diff_id,
                outcome,
                size,
            });
        }
        Ok(LoadedImage {
            id: plan.id,
            names: plan.names,
            layers,
        })
    }
}

fn link_in(staged: &StagedLayer) -> std::path::PathBuf {
    staged.dir.with_extension("l")
}

fn write_lower(disk: &Disk, staged: &StagedLayer, lower: Option<&str>, synced: bool) -> Result<()> {
    let Some(lower) = lower else {
        return Ok(());
    };
    let path = staged.dir.join("lower");
    match synced {
        true => disk.write_synced(path, lower.as_bytes(), 0o644),
        false => disk.write(path, lower.as_bytes(), 0o644),
    }
}
