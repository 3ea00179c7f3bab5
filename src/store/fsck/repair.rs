//! Making right what a check found: links from the records, contents from an archive.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::{Fault, FaultKind, Report};
use crate::store::Store;
use crate::store::archive::resolve::{self, Blob, Documents as _};
use crate::store::archive::source::Source;
use crate::store::config::Config;
use crate::store::dedup;
use crate::store::error::{Result, StoreError};
use crate::store::ids::{ChainId, DiffId, ImageId, LinkId};
use crate::store::layers::mounted_text;
use crate::store::layout::{self, LayerRecord};
use crate::store::load::Progress;
use crate::store::stage::{StagedLayer, Stager};
use crate::store::transaction::{Transaction, WriteLock};
use crate::store::unpack;

/// What was made right.
#[derive(Debug, Default)]
pub struct Repaired {
    /// What was done, for people.
    pub done: Vec<String>,
    /// What could not be done, and why.
    pub left: Vec<String>,
}

/// What an archive has.
#[derive(Default)]
struct Supply {
    layers: BTreeMap<DiffId, Blob>,
    configs: BTreeMap<ImageId, Vec<u8>>,
}

impl Supply {
    fn of(source: &Source) -> Result<Supply> {
        let mut supply = Supply::default();
        for image in resolve::images(source, None)? {
            let Some(raw) = source.document(&image.config.name)? else {
                continue;
            };
            let diff_ids = Config::parse(&raw)?.diff_ids()?;
            supply.layers.extend(diff_ids.into_iter().zip(image.layers));
            supply.configs.insert(ImageId::of_config(&raw), raw);
        }
        Ok(supply)
    }
}

impl Store {
    /// Makes right what `report` lists, contents with the help of an archive.
    pub fn repair(
        &self,
        report: &Report,
        archive: Option<&Source>,
        options: &unpack::Options,
        progress: &dyn Progress,
    ) -> Result<Repaired> {
        let supply = match archive {
            Some(source) => Supply::of(source)?,
            None => Supply::default(),
        };
        let mut repaired = Repaired::default();
        for fault in &report.faults {
            match &fault.kind {
                FaultKind::Content(chain) => {
                    let result = self.repair_content(chain, archive, &supply, options, progress);
                    note(&mut repaired, fault, result);
                }
                FaultKind::Config(id) => {
                    let result = self.repair_config(id, &supply);
                    note(&mut repaired, fault, result);
                }
                FaultKind::Record(_) | FaultKind::MissingLayer(..) => repaired.left.push(format!(
                    "{}: remove the image, then load it again",
                    fault.what
                )),
                FaultKind::Links(_) | FaultKind::Name(_) | FaultKind::Repositories => {}
            }
        }
        self.repair_links(report, &mut repaired)?;
        self.repair_names(report, &mut repaired)?;
        self.rebuild_indexes(&mut repaired)?;
        Ok(repaired)
    }

    /// Unpacks a layer again and puts its tree in the place of the damaged one.
    fn repair_content(
        &self,
        chain: &ChainId,
        archive: Option<&Source>,
        supply: &Supply,
        options: &unpack::Options,
        progress: &dyn Progress,
    ) -> Result<String> {
        let record = self.layer(chain)?.ok_or_else(|| StoreError::NotFound {
            kind: "layer",
            name: chain.to_string(),
        })?;
        let wanted = || StoreError::NotFound {
            kind: "layer in an archive (name one that has it)",
            name: record.diff_id.to_string(),
        };
        let (source, blob) = archive
            .zip(supply.layers.get(&record.diff_id))
            .ok_or_else(wanted)?;
        let member = source.open(&blob.name)?.ok_or_else(wanted)?;
        let mut transaction = Transaction::begin(self.disk())?;
        let label: String = record.diff_id.hex().chars().take(12).collect();
        let number = progress.begin(&label, Some(member.size));
        let cancelled = AtomicBool::new(false);
        let staged = Stager::new(self, &transaction, options, None, &cancelled).unpack(
            &blob.name,
            member.content,
            &|bytes| progress.advance(number, bytes),
        );
        progress.end(number, if staged.is_ok() { "unpacked" } else { "failed" });
        let staged = staged?;
        if staged.diff_id != record.diff_id {
            let reason = format!("the archive's has the digest {}", staged.diff_id);
            return Err(StoreError::layer(record.diff_id.to_string(), reason));
        }
        self.disk().sync_fs()?;
        self.replace_tree(&mut transaction, &record, &staged)
            .and_then(|guard| transaction.commit(guard))?;
        Ok("unpacked again".into())
    }

    fn replace_tree(
        &self,
        transaction: &mut Transaction,
        record: &LayerRecord,
        staged: &StagedLayer,
    ) -> Result<WriteLock> {
        let guard = WriteLock::take(self.disk())?;
        let Some(lock) = self.lock_unused(&record.cache_id, &mounted_text())? else {
            return Err(StoreError::InUse {
                what: format!("layer {}", record.chain_id),
                by: "a mount or another process; unmount it first".into(),
            });
        };
        transaction.keep_until_committed(vec![lock]);
        let diff = layout::layer_diff(&record.cache_id);
        if self.disk().path(&diff).exists() {
            transaction.remove(&diff);
        }
        transaction.place(staged.dir.join("diff"), &diff);
        let split = Path::new("tar-split.json.gz");
        transaction.place(
            staged.record.join(split),
            layout::layer_record(&record.chain_id).join(split),
        );
        Ok(guard)
    }

    fn repair_config(&self, id: &ImageId, supply: &Supply) -> Result<String> {
        let raw = supply.configs.get(id).ok_or_else(|| StoreError::NotFound {
            kind: "config in an archive (name one that has it)",
            name: id.to_string(),
        })?;
        let mut transaction = Transaction::begin(self.disk())?;
        let guard = WriteLock::take(self.disk())?;
        transaction.place_file(raw, 0o600, layout::image_config(id))?;
        transaction.commit(guard)?;
        Ok("taken from the archive".into())
    }

    /// Makes links and lowers anew from the records: a layer's own link stays if it has one.
    fn repair_links(&self, report: &Report, repaired: &mut Repaired) -> Result<()> {
        let is_links = |fault: &&Fault| matches!(fault.kind, FaultKind::Links(_));
        if !report.faults.iter().any(|fault| is_links(&fault)) {
            return Ok(());
        }
        let mut transaction = Transaction::begin(self.disk())?;
        let guard = WriteLock::take(self.disk())?;
        let layers = self.layers()?;
        let mut links: BTreeMap<ChainId, LinkId> = BTreeMap::new();
        for layer in &layers {
            let link = match layout::read_link_id(self.disk(), &layer.cache_id) {
                Ok(Some(link)) => link,
                _ => {
                    let link = LinkId::random()?;
                    let to = layout::layer_dir(&layer.cache_id).join("link");
                    transaction.place_file(link.as_str().as_bytes(), 0o644, to)?;
                    link
                }
            };
            let target = layout::link_target(&layer.cache_id);
            let path = self.disk().path(layout::link(&link));
            if std::fs::read_link(&path).ok().as_deref() != Some(Path::new(&target)) {
                let staged = transaction.fresh();
                self.disk().symlink(&target, &staged)?;
                transaction.place(staged, layout::link(&link));
            }
            links.insert(layer.chain_id, link);
        }
        let parents: BTreeMap<ChainId, Option<ChainId>> = layers
            .iter()
            .map(|layer| (layer.chain_id, layer.parent))
            .collect();
        for layer in &layers {
            self.plan_lower(&mut transaction, layer, &links, &parents)?;
        }
        transaction.commit(guard)?;
        for fault in report.faults.iter().filter(is_links) {
            repaired.done.push(format!("{}: made anew", fault.what));
        }
        Ok(())
    }

    fn plan_lower(
        &self,
        transaction: &mut Transaction,
        layer: &LayerRecord,
        links: &BTreeMap<ChainId, LinkId>,
        parents: &BTreeMap<ChainId, Option<ChainId>>,
    ) -> Result<()> {
        let mut parts = Vec::new();
        let mut seen = BTreeSet::new();
        let mut next = layer.parent;
        while let Some(parent) = next.filter(|parent| seen.insert(*parent)) {
            parts.extend(links.get(&parent).map(|link| format!("l/{link}")));
            next = parents.get(&parent).copied().flatten();
        }
        let lower = parts.join(":");
        let is = layout::read_lower(self.disk(), &layer.cache_id).unwrap_or(None);
        let path = layout::layer_dir(&layer.cache_id).join("lower");
        match (lower.is_empty(), is) {
            (true, None) => {}
            (true, Some(_)) => transaction.remove(path),
            (false, Some(is)) if is == lower => {}
            (false, _) => transaction.place_file(lower.as_bytes(), 0o644, path)?,
        }
        Ok(())
    }

    fn repair_names(&self, report: &Report, repaired: &mut Repaired) -> Result<()> {
        let damaged = report
            .faults
            .iter()
            .find(|fault| fault.kind == FaultKind::Repositories);
        let stale: Vec<&Fault> = report
            .faults
            .iter()
            .filter(|fault| matches!(fault.kind, FaultKind::Name(_)))
            .collect();
        if damaged.is_none() && stale.is_empty() {
            return Ok(());
        }
        let mut transaction = Transaction::begin(self.disk())?;
        let guard = WriteLock::take(self.disk())?;
        let mut repositories = match damaged {
            Some(fault) => {
                let aside = format!("{}.damaged", layout::REPOSITORIES);
                transaction.place(layout::REPOSITORIES, &aside);
                repaired
                    .done
                    .push(format!("{}: kept as {aside}, begun anew", fault.what));
                Default::default()
            }
            None => self.repositories()?,
        };
        let ids: BTreeSet<String> = self.image_ids()?.iter().map(ToString::to_string).collect();
        repositories.retain(|id| ids.contains(id));
        let text = repositories.encode()?;
        transaction.place_file(&text, 0o600, layout::REPOSITORIES)?;
        transaction.commit(guard)?;
        for fault in stale {
            repaired.done.push(format!("{}: taken away", fault.what));
        }
        Ok(())
    }

    /// Makes the indexes of contents anew that are missing, where they are of use.
    fn rebuild_indexes(&self, repaired: &mut Repaired) -> Result<()> {
        let mut transaction = Transaction::begin(self.disk())?;
        if dedup::Deduplicator::new(self, &mut transaction)?.is_none() {
            return transaction.abandon();
        }
        let mut built = 0;
        for layer in self.layers()? {
            let to = layout::file_index(&layer.cache_id);
            if self.disk().path(&to).exists() || self.hold([&layer]).is_err() {
                continue;
            }
            let from = transaction.fresh();
            dedup::rebuild(self.disk(), &layer.cache_id, &from)?;
            transaction.place(from, to);
            built += 1;
        }
        if built > 0 {
            self.disk().sync_fs()?;
            repaired
                .done
                .push(format!("the indexes of {built} layers: made anew"));
        }
        let guard = WriteLock::take(self.disk())?;
        transaction.commit(guard)
    }
}

fn note(repaired: &mut Repaired, fault: &Fault, result: Result<String>) {
    match result {
        Ok(how) => repaired.done.push(format!("{}: {how}", fault.what)),
        Err(error) => repaired.left.push(format!("{}: {error}", fault.what)),
    }
}
