//! Removing what nothing refers to, also what a crash left.
//!
//! Never what is in use: layers below an image or a container, layers that a process holds, layers that the mount
//! table names. Docker's own unfinished work (`layerdb/tmp`, directories without a record) is what a crash left:
//! beside a dockerd that runs on the same root nothing is removed, as nothing is changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Store;
use super::error::Result;
use super::ids::{CacheId, ChainId, Digest, ImageId, LinkId};
use super::layers::mounted_text;
use super::layout;
use super::lock;
use super::transaction::{Transaction, WriteLock};
use super::usage::tree_usage;

/// What was removed, or would be.
#[derive(Debug, Default, Clone)]
pub struct Collected {
    /// Images without a name, if they were asked for.
    pub images: Vec<ImageId>,
    /// Layers that nothing referred to.
    pub layers: Vec<ChainId>,
    /// Everything else: directories without a record, links that lead nowhere, records of what is gone.
    pub leftovers: Vec<PathBuf>,
    /// Bytes on disk.
    pub bytes: u64,
}

/// What is to be collected.
#[derive(Debug, Default, Clone, Copy)]
pub struct GcOptions {
    /// Also images without a name.
    pub untagged: bool,
    /// Only say what would be removed.
    pub dry_run: bool,
}

impl Store {
    /// Removes what nothing refers to.
    pub fn gc(&self, options: GcOptions) -> Result<Collected> {
        if !options.dry_run {
            lock::refuse_beside_docker(self.disk())?;
        }
        let mut transaction = Transaction::begin(self.disk())?;
        let guard = WriteLock::take(self.disk())?;
        let mut collected = Collected::default();
        if options.untagged {
            self.plan_untagged(&mut transaction, &mut collected)?;
        }
        let gone: BTreeSet<ImageId> = collected.images.iter().copied().collect();
        let referenced = self.referenced_without(&gone)?;
        let unwanted = self
            .chain_ids()?
            .into_iter()
            .filter(|chain| !referenced.contains(chain))
            .collect();
        let planned = transaction.planned();
        collected.layers = self.plan_removal_of(&mut transaction, unwanted)?;
        collected.bytes += self.bytes_of(&transaction.paths_from(planned))?;
        let planned = transaction.planned();
        self.plan_leftovers(&mut transaction, &collected.layers)?;
        self.plan_stale_records(&mut transaction, &collected)?;
        collected.leftovers = transaction.paths_from(planned);
        collected.bytes += self.bytes_of(&collected.leftovers)?;
        self.plan_names(&mut transaction, &gone)?;
        if options.dry_run {
            guard.release(self.disk())?;
            transaction.abandon()?;
        } else {
            transaction.commit(guard)?;
        }
        Ok(collected)
    }

    fn bytes_of(&self, paths: &[PathBuf]) -> Result<u64> {
        paths
            .iter()
            .map(|path| tree_usage(&self.disk().path(path)))
            .sum()
    }

    fn referenced_without(&self, gone: &BTreeSet<ImageId>) -> Result<BTreeSet<ChainId>> {
        let mut chains = self.chains_of_containers()?;
        for id in self.image_ids()?.iter().filter(|id| !gone.contains(id)) {
            if let Some(image) = self.read_image(id, &Default::default())? {
                chains.extend(image.config.chain_ids()?);
            }
        }
        Ok(chains)
    }

    fn plan_untagged(
        &self,
        transaction: &mut Transaction,
        collected: &mut Collected,
    ) -> Result<()> {
        for image in self.images()? {
            if image.names.is_empty() && self.container_of_image(&image.id)?.is_none() {
                self.plan_image_removal(transaction, &image.id);
                collected.images.push(image.id);
            }
        }
        Ok(())
    }

    /// Directories that no record names, and links that lead to no layer.
    fn plan_leftovers(&self, transaction: &mut Transaction, going: &[ChainId]) -> Result<()> {
        let disk = self.disk();
        let mounted = mounted_text();
        let mut owned: BTreeSet<String> = BTreeSet::new();
        let mut links: BTreeSet<String> = BTreeSet::new();
        for layer in self.layers()? {
            // The links of layers that are going were planned with them.
            if let Ok(Some(link)) = layout::read_link_id(disk, &layer.cache_id) {
                links.insert(link.to_string());
            }
            owned.insert(layer.cache_id.to_string());
        }
        for record in self.mount_records()? {
            owned.extend([record.mount_id, record.init_id].into_iter().flatten());
        }
        for name in layout::names(disk, layout::OVERLAY)? {
            let text = name.to_string_lossy().into_owned();
            if text == "l" {
                continue;
            }
            let path = Path::new(layout::OVERLAY).join(&name);
            let link = layout::read_text(disk, path.join("link"));
            if let (true, Ok(Some(link))) = (owned.contains(&text), &link) {
                links.insert(link.clone());
            }
            if owned.contains(&text) || !is_layer_name(&text) || mounted.contains(&text) {
                continue;
            }
            if let Ok(id) = text.parse::<CacheId>() {
                match self.lock_unused(&id, &mounted)? {
                    None => {
                        links.extend(link.ok().flatten());
                        continue;
                    }
                    Some(lock) => transaction.keep_until_committed(vec![lock]),
                }
            }
            transaction.remove(path);
        }
        for name in layout::names(disk, layout::LINKS)? {
            let text = name.to_string_lossy();
            if text.parse::<LinkId>().is_ok() && !links.contains(&*text) {
                transaction.remove(Path::new(layout::LINKS).join(&name));
            }
        }
        let kept: BTreeSet<String> = self
            .layers()?
            .iter()
            .filter(|layer| !going.contains(&layer.chain_id))
            .map(|layer| layer.cache_id.to_string())
            .collect();
        for name in layout::names(disk, layout::FILE_INDEX)? {
            // Those of layers that are going were planned with them.
            if !kept.contains(&*name.to_string_lossy()) && !owned.contains(&*name.to_string_lossy())
            {
                transaction.remove(Path::new(layout::FILE_INDEX).join(&name));
            }
        }
        Ok(())
    }

    /// Records of what is gone.
    fn plan_stale_records(
        &self,
        transaction: &mut Transaction,
        collected: &Collected,
    ) -> Result<()> {
        let disk = self.disk();
        for name in layout::names(disk, layout::LAYER_TMP)? {
            transaction.remove(Path::new(layout::LAYER_TMP).join(&name));
        }
        for name in layout::names(disk, layout::IMAGE_METADATA)? {
            let config = Path::new(layout::IMAGE_CONFIGS).join(&name);
            if fs::symlink_metadata(disk.path(config)).is_err() {
                transaction.remove(Path::new(layout::IMAGE_METADATA).join(&name));
            }
        }
        let diff_ids: BTreeSet<String> = self
            .layers()?
            .iter()
            .filter(|layer| !collected.layers.contains(&layer.chain_id))
            .map(|layer| layer.diff_id.to_string())
            .collect();
        for name in layout::names(disk, layout::DIFF_ID_BY_DIGEST)? {
            let path = Path::new(layout::DIFF_ID_BY_DIGEST).join(&name);
            let diff_id = layout::read_text(disk, &path)?.unwrap_or_default();
            let is_planned = transaction.moves_away(&path);
            let is_ours = Digest::from_hex(&name.to_string_lossy()).is_ok();
            if is_ours && !is_planned && !diff_ids.contains(&diff_id) {
                transaction.remove(path);
            }
        }
        Ok(())
    }

    /// Names of images that are gone.
    fn plan_names(&self, transaction: &mut Transaction, gone: &BTreeSet<ImageId>) -> Result<()> {
        let mut repositories = self.repositories()?;
        let before = repositories.clone();
        let ids: BTreeSet<String> = self
            .image_ids()?
            .iter()
            .filter(|id| !gone.contains(id))
            .map(ToString::to_string)
            .collect();
        repositories.retain(|id| ids.contains(id));
        if repositories != before {
            let text = repositories.encode()?;
            transaction.place_file(&text, 0o600, layout::REPOSITORIES)?;
        }
        Ok(())
    }
}

/// Whether a name in `overlay2/` is one that layers and containers have. Others are left alone.
fn is_layer_name(name: &str) -> bool {
    let stem = name.strip_suffix("-init").unwrap_or(name);
    stem.parse::<CacheId>().is_ok()
}
