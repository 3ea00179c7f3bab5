//! Whether the store is what it says it is: layers against what was loaded, the layout against itself.
//!
//! What nothing refers to is no fault: it is counted, and `gc` takes it. What another process removes meanwhile is
//! no fault either: layers are held while they are checked, and gone ones are left out.

mod contents;
mod repair;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::Store;
use super::codec::digest::ChainId as Chain;
use super::error::{Result, StoreError};
use super::gc::GcOptions;
use super::ids::{ChainId, ImageId};
use super::images::Repositories;
use super::layout::{self, LayerRecord};
use super::load::Progress;
use super::transaction::WriteLock;

pub use repair::Repaired;

/// What kind of thing is wrong, which says what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// Files of a layer are not what was unpacked: an archive that has the layer is needed.
    Content(ChainId),
    /// The record of a layer contradicts itself or is incomplete: loading the image again helps once it is gone.
    Record(ChainId),
    /// A short link or a `lower` is wrong or missing: made anew from the records.
    Links(ChainId),
    /// The config of an image is damaged: an archive that has the image is needed.
    Config(ImageId),
    /// An image has a layer that is not there.
    MissingLayer(ImageId, ChainId),
    /// A name stands for an image that is not there: taken away.
    Name(String),
    /// `repositories.json` can't be read: kept aside, begun anew.
    Repositories,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind of thing.
    pub kind: FaultKind,
    /// What, for people.
    pub what: String,
}

impl Fault {
    fn new(kind: FaultKind, what: impl Into<String>) -> Fault {
        Fault {
            kind,
            what: what.into(),
        }
    }
}

/// How a store is checked.
#[derive(Debug, Clone, Copy)]
pub struct FsckOptions {
    /// Layers checked at once.
    pub jobs: usize,
    /// Whether files are read.
    pub contents: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// Layers that were checked.
    pub layers: usize,
    /// Images that were checked.
    pub images: usize,
    /// Bytes of tars that were put together again and hashed.
    pub bytes: u64,
    /// Things that nothing refers to.
    pub garbage: usize,
}

/// All layers whose records can be read.
type Records = BTreeMap<ChainId, LayerRecord>;

impl Store {
    /// Checks everything.
    pub fn fsck(&self, options: FsckOptions, progress: &dyn Progress) -> Result<Report> {
        let mut report = Report::default();
        if !self.root().is_dir() {
            return Ok(report);
        }
        // What a killed process left half done is finished first: it is no fault.
        WriteLock::take(self.disk())?.release(self.disk())?;
        let records = self.check_records(&mut report)?;
        self.check_links(&records, &mut report)?;
        self.check_images(&records, &mut report)?;
        if options.contents {
            self.check_contents(&records, options.jobs, progress, &mut report)?;
        }
        if report.faults.is_empty() {
            let garbage = self.gc(GcOptions {
                dry_run: true,
                untagged: false,
            })?;
            report.garbage = garbage.layers.len() + garbage.leftovers.len();
        }
        Ok(report)
    }

    /// Every record can be read, is where its chain-id says, and has a parent and a directory.
    fn check_records(&self, report: &mut Report) -> Result<Records> {
        let mut records = Records::new();
        for chain in self.chain_ids()? {
            report.layers += 1;
            match self.layer(&chain) {
                Ok(Some(record)) => {
                    records.insert(chain, record);
                }
                // Removed just now.
                Ok(None) => report.layers -= 1,
                Err(StoreError::Damaged(what)) => {
                    report
                        .faults
                        .push(Fault::new(FaultKind::Record(chain), what));
                }
                Err(error) => return Err(error),
            }
        }
        for record in records.values() {
            if let Some(what) = self.record_fault(record, &records)
                && self.layer(&record.chain_id)?.is_some()
            {
                let kind = FaultKind::Record(record.chain_id);
                report.faults.push(Fault::new(kind, what));
            }
        }
        Ok(records)
    }

    fn record_fault(&self, record: &LayerRecord, records: &Records) -> Option<String> {
        let chain = &record.chain_id;
        let stated = match &record.parent {
            None => Chain::base(record.diff_id),
            Some(parent) => parent.child(record.diff_id),
        };
        if stated != *chain {
            return Some(format!(
                "layer {chain}: its diff-id and parent make {stated}"
            ));
        }
        if let Some(parent) = record.parent.filter(|parent| !records.contains_key(parent)) {
            return Some(format!("layer {chain}: its parent {parent} is not there"));
        }
        let diff = self.disk().path(layout::layer_diff(&record.cache_id));
        if !diff.is_dir() {
            return Some(format!("layer {chain}: {} is not there", diff.display()));
        }
        let split = layout::layer_record(chain).join("tar-split.json.gz");
        let split = self.disk().path(split);
        (!split.is_file()).then(|| format!("layer {chain}: {} is not there", split.display()))
    }

    /// Every layer has its short link, and a `lower` that leads through its parents.
    fn check_links(&self, records: &Records, report: &mut Report) -> Result<()> {
        for record in records.values() {
            let Some(what) = self.link_fault(record, records)? else {
                continue;
            };
            let diff = self.disk().path(layout::layer_diff(&record.cache_id));
            if diff.is_dir() && self.layer(&record.chain_id)?.is_some() {
                let what = format!("layer {}: {what}", record.chain_id);
                let kind = FaultKind::Links(record.chain_id);
                report.faults.push(Fault::new(kind, what));
            }
        }
        Ok(())
    }

    fn link_fault(&self, record: &LayerRecord, records: &Records) -> Result<Option<String>> {
        let disk = self.disk();
        let link = match layout::read_link_id(disk, &record.cache_id) {
            Ok(Some(link)) => link,
            Ok(None) => return Ok(Some("it has no link".into())),
            Err(StoreError::Damaged(what)) => return Ok(Some(what)),
            Err(error) => return Err(error),
        };
        let path = disk.path(layout::link(&link));
        let expected = layout::link_target(&record.cache_id);
        match fs::read_link(&path) {
            Ok(target) if target.as_os_str() == expected.as_str() => {}
            Ok(target) => {
                let what = format!("{} leads to {}", path.display(), target.display());
                return Ok(Some(what));
            }
            Err(error) => return Ok(Some(format!("{}: {error}", path.display()))),
        }
        let mut expected = Vec::new();
        let mut seen = BTreeSet::new();
        let mut next = record.parent;
        while let Some(parent) = next.and_then(|parent| records.get(&parent)) {
            if !seen.insert(parent.chain_id) {
                break;
            }
            if let Ok(Some(link)) = layout::read_link_id(disk, &parent.cache_id) {
                expected.push(format!("l/{link}"));
            }
            next = parent.parent;
        }
        let lower = match layout::read_lower(disk, &record.cache_id) {
            Ok(lower) => lower.unwrap_or_default(),
            Err(StoreError::Damaged(what)) => return Ok(Some(what)),
            Err(error) => return Err(error),
        };
        let expected = expected.join(":");
        Ok((lower != expected)
            .then(|| format!("its lower is {lower:?}, and its parents' links make {expected:?}")))
    }

    /// Every image has the digest that it is named after, and its layers; every name stands for an image.
    fn check_images(&self, records: &Records, report: &mut Report) -> Result<()> {
        let repositories = match self.repositories() {
            Ok(repositories) => repositories,
            Err(StoreError::Damaged(what)) => {
                report
                    .faults
                    .push(Fault::new(FaultKind::Repositories, what));
                Repositories::default()
            }
            Err(error) => return Err(error),
        };
        let mut ids = BTreeSet::new();
        for id in self.image_ids()? {
            report.images += 1;
            match self.read_image(&id, &repositories) {
                Ok(None) => report.images -= 1,
                Ok(Some(image)) => {
                    ids.insert(id.to_string());
                    for chain in image.config.chain_ids()? {
                        if !records.contains_key(&chain)
                            && self.layer(&chain).is_ok_and(|l| l.is_none())
                        {
                            let what = format!("image {id}: its layer {chain} is not there");
                            let kind = FaultKind::MissingLayer(id, chain);
                            report.faults.push(Fault::new(kind, what));
                        }
                    }
                }
                Err(StoreError::Damaged(what)) => {
                    ids.insert(id.to_string());
                    report.faults.push(Fault::new(FaultKind::Config(id), what));
                }
                Err(error) => return Err(error),
            }
        }
        for (name, id) in repositories.iter() {
            if !ids.contains(id) {
                let what = format!("{name} stands for {id}, which is not there");
                report
                    .faults
                    .push(Fault::new(FaultKind::Name(name.to_owned()), what));
            }
        }
        Ok(())
    }
}
