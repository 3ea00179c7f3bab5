//! Layers against their diff-ids: each is put together again from its files and hashed, several at a time.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::{Fault, FaultKind, Records, Report};
use crate::store::Store;
use crate::store::error::{Result, StoreError};
use crate::store::layout::LayerRecord;
use crate::store::load::Progress;

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
        let mut counter = Counter {
            bytes: 0,
            told: 0,
            each: &|bytes| progress.advance(number, bytes),
        };
        let result = self.export_layer(layer, &mut counter);
        let bytes = counter.bytes;
        let fault = |what: String| {
            let what = format!("layer {}: {what}", layer.chain_id);
            Some(Fault::new(FaultKind::Content(layer.chain_id), what))
        };
        let result = match result {
            Ok(_) => Ok((None, bytes)),
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

/// Counts what is written, and tells of it now and then.
struct Counter<'a> {
    bytes: u64,
    told: u64,
    each: &'a dyn Fn(u64),
}

impl io::Write for Counter<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.bytes += buffer.len() as u64;
        if self.bytes - self.told >= 1 << 20 {
            self.told = self.bytes;
            (self.each)(self.bytes);
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
