//! Layers against what was loaded: each is put together again from its files, hashed, and compared entry by entry;
//! several at a time.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Fault, FaultKind, Records, Report};
use crate::store::Store;
use crate::store::error::{Context as _, Result, StoreError};
use crate::store::layout::{self, LayerRecord};
use crate::store::load::Progress;
use crate::store::unpack::{Checker, Differences};

impl Store {
    /// Checks the files of all layers.
    pub(super) fn check_contents(
        &self,
        records: &Records,
        jobs: usize,
        progress: &dyn Progress,
        report: &mut Report,
    ) -> Result<()> {
        // The largest first: the last ones to be done decide how long all takes.
        let mut layers: Vec<&LayerRecord> = records.values().collect();
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        let next = AtomicUsize::new(0);
        let found = Mutex::new((Vec::new(), 0, None));
        let work = || {
            while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = self.verify_layer(layer, progress);
                let mut found = found.lock();
                match result {
                    Ok((fault, bytes)) => {
                        found.0.extend(fault);
                        found.1 += bytes;
                    }
                    Err(error) => found.2 = Some(error),
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..jobs.max(1) {
                scope.spawn(work);
            }
            work();
        });
        let (mut faults, bytes, error) = found.into_inner();
        if let Some(error) = error {
            return Err(error);
        }
        faults.sort_by(|a: &Fault, b: &Fault| a.what.cmp(&b.what));
        // What has no directory or record to check was reported already.
        faults.retain(|fault| {
            let FaultKind::Content(chain) = &fault.kind else {
                return true;
            };
            !report
                .faults
                .iter()
                .any(|other| other.kind == FaultKind::Record(*chain))
        });
        report.faults.extend(faults);
        report.bytes += bytes;
        Ok(())
    }

    /// What is wrong with the files of a layer, if anything, and the bytes of its tar.
    pub fn verify_layer(
        &self,
        layer: &LayerRecord,
        progress: &dyn Progress,
    ) -> Result<(Option<Fault>, u64)> {
        let Ok(_hold) = self.hold([layer]) else {
            // It is being removed, or has no link, which is reported elsewhere.
            if self.layer(&layer.chain_id)?.is_none() {
                return Ok((None, 0));
            }
            return self.verify_held(layer, progress);
        };
        self.verify_held(layer, progress)
    }

    fn verify_held(
        &self,
        layer: &LayerRecord,
        progress: &dyn Progress,
    ) -> Result<(Option<Fault>, u64)> {
        let label: String = layer.diff_id.hex().chars().take(12).collect();
        let number = progress.begin(&label, self.tar_bytes(layer).ok());
        let (found, bytes) = self.compare(layer, &|bytes| progress.advance(number, bytes));
        let fault = |what: String| {
            let what = format!("layer {}: {what}", layer.chain_id);
            Some(Fault::new(FaultKind::Content(layer.chain_id), what))
        };
        let result = match found {
            Ok(found) => Ok((found.and_then(fault), bytes)),
            Err(StoreError::Layer { reason, .. }) => Ok((fault(reason), bytes)),
            Err(error @ StoreError::Io { .. }) => Ok((fault(error.to_string()), bytes)),
            Err(error) => Err(error),
        };
        // A layer that went away meanwhile has no fault.
        let result = match result {
            Ok((Some(_), bytes)) if self.layer(&layer.chain_id)?.is_none() => Ok((None, bytes)),
            other => other,
        };
        let how = match &result {
            Ok((None, _)) => "ok",
            _ => "damaged",
        };
        progress.end(number, how);
        result
    }
}

impl Store {
    /// Puts a layer's tar together again, hashes it, and holds it against the tree: what is wrong, and how many
    /// bytes it has.
    fn compare(&self, layer: &LayerRecord, each: &dyn Fn(u64)) -> (Result<Option<String>>, u64) {
        let checker = match self.checker_of(layer) {
            Ok(checker) => checker,
            Err(error) => return (Err(error), 0),
        };
        let mut counter = Counter {
            bytes: 0,
            told: 0,
            checker,
            each,
        };
        let exported = self.export_layer(layer, &mut counter);
        let Counter { bytes, checker, .. } = counter;
        let found = exported.and_then(|_| {
            let found = checker.finish();
            Ok(summed_up(&found.context("checking", self.tree_of(layer))?))
        });
        (found, bytes)
    }

    fn checker_of(&self, layer: &LayerRecord) -> Result<Checker> {
        let tree = self.tree_of(layer);
        let root = File::open(&tree).context("opening", &tree)?;
        let dir = self.disk().path(layout::layer_dir(&layer.cache_id));
        let owner = dir.metadata().context("looking at", &dir)?.uid();
        Checker::new(root.as_fd(), owner).context("checking", tree)
    }

    fn tree_of(&self, layer: &LayerRecord) -> PathBuf {
        self.disk().path(layout::layer_diff(&layer.cache_id))
    }
}

/// The differences of a layer in one line.
fn summed_up(found: &Differences) -> Option<String> {
    const NAMED: usize = 3;
    let named: Vec<&str> = found.first.iter().take(NAMED).map(String::as_str).collect();
    let more = match found.count.saturating_sub(named.len()) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    (found.count > 0).then(|| format!("{}{more}", named.join("; ")))
}

/// Counts what is written, tells of it now and then, and holds it against the tree.
struct Counter<'a> {
    bytes: u64,
    told: u64,
    checker: Checker,
    each: &'a dyn Fn(u64),
}

impl io::Write for Counter<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.bytes += buffer.len() as u64;
        if self.bytes - self.told >= 1 << 20 {
            self.told = self.bytes;
            (self.each)(self.bytes);
        }
        self.checker.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
