//! Layers in the making: unpacked or cloned into a transaction's directory, verified, and not yet shown.

use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Store;
use super::codec::compress::{Compression, Encoder};
use super::dedup::Deduplicator;
use super::disk::{Disk, Step};
use super::error::{Context as _, Result, StoreError};
use super::ids::{BlobDigest, CacheId, DiffId, LinkId};
use super::layout::{self, LayerRecord};
use super::transaction::Transaction;
use super::unpack;

/// Level of the compression of tar-split records: they are small, and every load waits for them.
const SPLIT_LEVEL: i32 = 1;

/// A layer that is unpacked in a transaction's directory.
#[derive(Debug)]
pub struct StagedLayer {
    /// The name that its directory will have.
    pub cache_id: CacheId,
    /// The name that its link will have.
    pub link_id: LinkId,
    /// Its directory with `diff` and `link` in it, relative to the root.
    pub dir: PathBuf,
    /// Its record in the making, with the tar-split in it, relative to the root.
    pub record: PathBuf,
    /// Digest of its tar.
    pub diff_id: DiffId,
    /// Digest of what it was unpacked from; none for a clone.
    pub blob: Option<BlobDigest>,
    /// Bytes that it was unpacked from.
    pub blob_size: u64,
    /// How those were compressed.
    pub compression: Option<Compression>,
    /// Bytes of its files, each counted once.
    pub size: u64,
    /// Entries of its tar.
    pub entries: u64,
    /// Directories that its tar doesn't describe, parents first.
    pub implied: Vec<Vec<u8>>,
}

/// The directories of a layer in the making.
struct Empty {
    cache_id: CacheId,
    link_id: LinkId,
    dir: PathBuf,
    record: PathBuf,
}

impl Empty {
    fn new(disk: &Disk, base: &std::path::Path) -> Result<Empty> {
        let (cache_id, link_id) = (CacheId::random()?, LinkId::random()?);
        let dir = base.join(cache_id.as_str());
        let record = base.join(format!("{cache_id}.record"));
        disk.make_dir(&dir, 0o710)?;
        disk.make_dir(dir.join("diff"), 0o755)?;
        disk.write(dir.join("link"), link_id.as_str().as_bytes(), 0o644)?;
        disk.make_dir(&record, 0o755)?;
        Ok(Empty {
            cache_id,
            link_id,
            dir,
            record,
        })
    }
}

/// How layers are unpacked, and whether that is to go on.
pub struct Stager<'a> {
    store: &'a Store,
    base: PathBuf,
    options: unpack::Options,
    dedup: Option<&'a Deduplicator>,
    cancelled: &'a AtomicBool,
}

impl<'a> Stager<'a> {
    /// Unpacks into the directory of `transaction`.
    pub fn new(
        store: &'a Store,
        transaction: &Transaction,
        options: &unpack::Options,
        dedup: Option<&'a Deduplicator>,
        cancelled: &'a AtomicBool,
    ) -> Stager<'a> {
        Stager {
            store,
            base: transaction.join(""),
            // Contents are hashed for those alone who look them up.
            options: unpack::Options {
                hash_files: dedup.is_some(),
                write_back: store.disk().syncs(),
                ..options.clone()
            },
            dedup,
            cancelled,
        }
    }

    /// Unpacks one layer. `name` is for errors. On failure what was unpacked is deleted at once.
    pub fn unpack(
        &self,
        name: &str,
        content: impl Read + Send,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<StagedLayer> {
        let disk = self.store.disk();
        let empty = Empty::new(disk, &self.base)?;
        let (dir, record) = (empty.dir.clone(), empty.record.clone());
        let staged = self.unpack_into(empty, name, content, progress);
        if staged.is_err() {
            for path in [dir, record] {
                // The first error matters; what stays goes with the transaction.
                if let Err(error) = disk.remove_tree(path) {
                    tracing::debug!(%error, "what was unpacked stays for now");
                }
            }
        }
        staged
    }

    fn unpack_into(
        &self,
        empty: Empty,
        name: &str,
        content: impl Read + Send,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<StagedLayer> {
        let disk = self.store.disk();
        let root = disk.path(empty.dir.join("diff"));
        let root = File::open(&root).context("opening", &root)?;
        let split_path = empty.record.join("tar-split.json.gz");
        let split = BufWriter::new(disk.create(&split_path, 0o644)?);
        let level = Some(SPLIT_LEVEL);
        let mut split =
            Encoder::new(split, Compression::Gzip, level).context("writing", &split_path)?;
        let reader = Watched {
            inner: content,
            disk,
            cancelled: self.cancelled,
        };
        let sink = self
            .dedup
            .map(|dedup| dedup.layer(disk, &empty.cache_id))
            .transpose()?;
        let summary = unpack::unpack(
            reader,
            root.as_fd(),
            &self.options,
            Some(&mut split),
            sink.as_ref().map(|sink| sink as &dyn unpack::FileSink),
            progress,
        )
        .map_err(|error| StoreError::layer(name, chain_of_reasons(&error)))?;
        let (writer, _) = split.finish().context("writing", &split_path)?;
        writer
            .into_inner()
            .map_err(|error| error.into_error())
            .context("writing", &split_path)?;
        if let Some(sink) = sink {
            sink.finish()?;
        }
        Ok(StagedLayer {
            cache_id: empty.cache_id,
            link_id: empty.link_id,
            dir: empty.dir,
            record: empty.record,
            diff_id: summary.diff_id,
            blob: Some(summary.source.digest),
            blob_size: summary.source.bytes,
            compression: Some(summary.source.compression),
            size: summary.bytes,
            entries: summary.entries,
            implied: summary.implied,
        })
    }

    /// Clones a layer of the store that is to lie on another parent.
    pub fn clone_layer(&self, from: &LayerRecord) -> Result<StagedLayer> {
        let split = layout::layer_record(&from.chain_id).join("tar-split.json.gz");
        let dir = layout::layer_dir(&from.cache_id);
        let clone = self.clone_tree(&dir, &split, &from.diff_id, from.size)?;
        // They have what the other parent shows.
        let implied = self.store.implied_directories(from)?;
        Ok(StagedLayer { implied, ..clone })
    }

    /// Clones a layer of the same transaction.
    pub fn clone_staged(&self, from: &StagedLayer) -> Result<StagedLayer> {
        let split = from.record.join("tar-split.json.gz");
        let clone = self.clone_tree(&from.dir, &split, &from.diff_id, from.size)?;
        Ok(StagedLayer {
            entries: from.entries,
            implied: from.implied.clone(),
            ..clone
        })
    }

    fn clone_tree(
        &self,
        dir: &std::path::Path,
        split: &std::path::Path,
        diff_id: &DiffId,
        size: u64,
    ) -> Result<StagedLayer> {
        let disk = self.store.disk();
        let empty = Empty::new(disk, &self.base)?;
        let (from, to) = (
            disk.path(dir.join("diff")),
            disk.path(empty.dir.join("diff")),
        );
        super::dedup::clone_tree(disk, &from, &to)?;
        let split = disk.path(split);
        let mut reading = File::open(&split).context("opening", &split)?;
        let mut writing = disk.create(empty.record.join("tar-split.json.gz"), 0o644)?;
        io::copy(&mut reading, &mut writing).context("copying", &split)?;
        Ok(StagedLayer {
            cache_id: empty.cache_id,
            link_id: empty.link_id,
            dir: empty.dir,
            record: empty.record,
            diff_id: *diff_id,
            blob: None,
            blob_size: 0,
            compression: None,
            size,
            entries: 0,
            implied: Vec::new(),
        })
    }
}

/// An error with what caused it, as one line.
pub fn chain_of_reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Announces every read as a step of unpacking, and fails once another layer has failed.
struct Watched<'a, R> {
    inner: R,
    disk: &'a Disk,
    cancelled: &'a AtomicBool,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("given up because of another layer"));
        }
        self.disk.announce(Step::Unpack)?;
        self.inner.read(buffer)
    }
}
