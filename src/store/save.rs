//! Layers and images out, byte for byte as they came in.
//!
//! A layer's tar is put together from its tree and its tar-split record, and held against its diff-id while it is
//! written. Layers go out plain, or compressed reproducibly: the same layer always gives the same blob.

mod length;
mod sink;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::AsFd as _;

use serde_json::{Value, json};

pub use sink::{DirectorySink, Sink, TarSink};

use super::Store;
use super::codec::budget::Budgets;
use super::codec::compress::{Compression, Decoder, Encoder};
use super::codec::digest::{Digest, HashingWriter};
use super::codec::tar_split;
use super::error::{Context as _, Result, StoreError};
use super::ids::DiffId;
use super::images::Image;
use super::layout::{self, LayerRecord};
use super::load::Progress;
use super::names::Reference;
use super::stage::chain_of_reasons;
use super::unpack::open_beneath;

/// The form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As `docker save` writes it.
    Docker,
    /// OCI image layout.
    Oci,
}

/// How images are saved.
#[derive(Debug, Clone, Copy)]
pub struct SaveOptions {
    /// The form of the archive.
    pub format: Format,
    /// How layers are compressed, in an OCI layout.
    pub compression: Compression,
    /// As the compression counts; its default otherwise.
    pub level: Option<i32>,
}

/// An image and the names that it is saved under.
pub struct Saved {
    /// The image.
    pub image: Image,
    /// Its names in the archive.
    pub names: Vec<Reference>,
}

impl Store {
    /// Writes a layer's tar, and returns its bytes. What was written is that layer only if there is no error.
    pub fn export_layer(&self, layer: &LayerRecord, out: impl Write) -> Result<u64> {
        let tree = self.disk().path(layout::layer_diff(&layer.cache_id));
        let root = File::open(&tree).context("opening", &tree)?;
        let record = self.split_record(layer)?;
        let open = |path: &[u8]| open_beneath(root.as_fd(), path);
        let (diff_id, bytes) = tar_split::assemble(record, open, out).map_err(|error| {
            StoreError::layer(layer.diff_id.to_string(), chain_of_reasons(&error))
        })?;
        if diff_id != layer.diff_id {
            let reason = format!("put together again, its digest is {diff_id}: it was changed");
            return Err(StoreError::layer(layer.diff_id.to_string(), reason));
        }
        Ok(bytes)
    }

    /// The tar-split record of a layer, decompressed.
    fn split_record(&self, layer: &LayerRecord) -> Result<impl Read + use<>> {
        let path = layout::layer_record(&layer.chain_id).join("tar-split.json.gz");
        let path = self.disk().path(path);
        let file = BufReader::new(File::open(&path).context("opening", &path)?);
        Decoder::new(file, &Budgets::trusted()).context("reading", &path)
    }

    /// Directories that a layer's tar has things in but doesn't describe, parents first.
    pub(super) fn implied_directories(&self, layer: &LayerRecord) -> Result<Vec<Vec<u8>>> {
        length::implied(self.split_record(layer)?)
            .map_err(|error| StoreError::layer(layer.diff_id.to_string(), error))
    }

    /// Bytes that a layer's tar has.
    pub fn tar_bytes(&self, layer: &LayerRecord) -> Result<u64> {
        let record = self.split_record(layer)?;
        length::of_record(record)
            .map_err(|error| StoreError::layer(layer.diff_id.to_string(), error))
    }

    /// Writes images as an archive.
    pub fn save(
        &self,
        images: &[Saved],
        sink: &mut dyn Sink,
        options: &SaveOptions,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut saver = Saver {
            store: self,
            sink,
            options,
            progress,
            done: BTreeMap::new(),
            names: BTreeSet::new(),
        };
        match options.format {
            Format::Docker => saver.docker(images),
            Format::Oci => saver.oci(images),
        }
    }
}

/// A blob that was written.
#[derive(Debug, Clone, Copy)]
struct Blob {
    digest: Digest,
    size: u64,
}

struct Saver<'a> {
    store: &'a Store,
    sink: &'a mut dyn Sink,
    options: &'a SaveOptions,
    progress: &'a dyn Progress,
    /// Layers that were written.
    done: BTreeMap<DiffId, Blob>,
    /// Members that were written.
    names: BTreeSet<String>,
}

impl Saver<'_> {
    fn docker(&mut self, images: &[Saved]) -> Result<()> {
        let mut items = Vec::new();
        for saved in images {
            let (layers, _hold) = self.store.hold_image(&saved.image)?;
            let mut files = Vec::new();
            for layer in &layers {
                let name = format!("{}.tar", layer.diff_id.hex());
                if !self.done.contains_key(&layer.diff_id) {
                    self.plain_layer(layer, &name)?;
                }
                files.push(name);
            }
            let config = format!("{}.json", saved.image.id.digest().hex());
            self.document(&config, &saved.image.raw)?;
            let names: Vec<String> = saved.names.iter().map(Reference::stored).collect();
            items.push(json!({"Config": config, "RepoTags": names, "Layers": files}));
        }
        self.document("manifest.json", Value::from(items).to_string().as_bytes())?;
        self.sink.finish()
    }

    fn oci(&mut self, images: &[Saved]) -> Result<()> {
        let mut manifests = Vec::new();
        for saved in images {
            let (layers, _hold) = self.store.hold_image(&saved.image)?;
            let mut descriptors = Vec::new();
            for layer in &layers {
                let blob = match self.done.get(&layer.diff_id) {
                    Some(blob) => *blob,
                    None => self.oci_layer(layer)?,
                };
                let suffix = match self.options.compression {
                    Compression::None => "",
                    Compression::Gzip => "+gzip",
                    Compression::Zstd => "+zstd",
                };
                let kind = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
                descriptors.push(descriptor(&kind, &blob));
            }
            let config = self.blob(&saved.image.raw)?;
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
                "layers": descriptors,
            });
            let manifest = self.blob(manifest.to_string().as_bytes())?;
            manifests.extend(self.index_entries(saved, &manifest));
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
        });
        self.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        self.document("index.json", index.to_string().as_bytes())?;
        self.sink.finish()
    }

    /// One descriptor for each name, or one without.
    fn index_entries(&self, saved: &Saved, manifest: &Blob) -> Vec<Value> {
        let config = &saved.image.config;
        let mut platform = json!({"architecture": config.architecture, "os": config.os});
        if let Some(variant) = config.variant.as_deref().filter(|v| !v.is_empty())
            && let Some(platform) = platform.as_object_mut()
        {
            platform.insert("variant".into(), variant.into());
        }
        let entry = |name: Option<&Reference>| {
            let mut entry = descriptor(MANIFEST, manifest);
            if let Some(entry) = entry.as_object_mut() {
                entry.insert("platform".into(), platform.clone());
                if let Some(name) = name {
                    let annotations = json!({
                        "io.containerd.image.name": name.full(),
                        "org.opencontainers.image.ref.name": name.full(),
                    });
                    entry.insert("annotations".into(), annotations);
                }
            }
            entry
        };
        match saved.names.as_slice() {
            [] => vec![entry(None)],
            names => names.iter().map(|name| entry(Some(name))).collect(),
        }
    }

    fn plain_layer(&mut self, layer: &LayerRecord, name: &str) -> Result<Blob> {
        let size = self.store.tar_bytes(layer)?;
        let (store, number) = (self.store, self.begin(layer, size));
        let mut shown = 0;
        self.sink.member(name, size, &mut |out| {
            let out = Counted {
                inner: out,
                count: &mut shown,
                each: &|bytes| self.progress.advance(number, bytes),
            };
            store.export_layer(layer, out).map(drop)
        })?;
        self.progress.end(number, "saved");
        self.names.insert(name.to_owned());
        let blob = Blob {
            digest: layer.diff_id.0,
            size,
        };
        self.done.insert(layer.diff_id, blob);
        Ok(blob)
    }

    fn begin(&self, layer: &LayerRecord, size: u64) -> usize {
        let label: String = layer.diff_id.hex().chars().take(12).collect();
        self.progress.begin(&label, Some(size))
    }

    /// A compressed blob is named after what only compressing it tells: it is compressed twice, once to know, once
    /// to write. No copy of it is kept on disk meanwhile.
    fn oci_layer(&mut self, layer: &LayerRecord) -> Result<Blob> {
        if self.options.compression == Compression::None {
            return self.plain_layer(layer, &blob_name(&layer.diff_id.0));
        }
        let number = self.begin(layer, self.store.tar_bytes(layer)?);
        let first = self.compress(layer, &mut io::sink())?;
        let name = blob_name(&first.digest);
        let (store, options) = (self.store, self.options);
        let mut second = None;
        if self.names.insert(name.clone()) {
            self.sink.member(&name, first.size, &mut |out| {
                second = Some(compress_layer(store, layer, options, out)?);
                Ok(())
            })?;
            if second.map(|blob: Blob| blob.digest) != Some(first.digest) {
                let reason = "it changed while it was being saved";
                return Err(StoreError::layer(layer.diff_id.to_string(), reason));
            }
        }
        self.progress.end(number, "saved");
        self.done.insert(layer.diff_id, first);
        Ok(first)
    }

    fn compress(&self, layer: &LayerRecord, out: &mut dyn Write) -> Result<Blob> {
        compress_layer(self.store, layer, self.options, out)
    }

    fn blob(&mut self, content: &[u8]) -> Result<Blob> {
        let blob = Blob {
            digest: Digest::of(content),
            size: content.len() as u64,
        };
        self.document(&blob_name(&blob.digest), content)?;
        Ok(blob)
    }

    fn document(&mut self, name: &str, content: &[u8]) -> Result<()> {
        if !self.names.insert(name.to_owned()) {
            return Ok(());
        }
        self.sink.member(name, content.len() as u64, &mut |out| {
            out.write_all(content).context("writing", name)
        })
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn compress_layer(
    store: &Store,
    layer: &LayerRecord,
    options: &SaveOptions,
    out: &mut dyn Write,
) -> Result<Blob> {
    let hashing = HashingWriter::new(out);
    let mut encoder = Encoder::new(hashing, options.compression, options.level)
        .context("compressing", "a layer")?;
    store.export_layer(layer, &mut encoder)?;
    let (hashing, _) = encoder.finish().context("compressing", "a layer")?;
    let (_, digest, size) = hashing.finish();
    Ok(Blob { digest, size })
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn descriptor(kind: &str, blob: &Blob) -> Value {
    json!({"mediaType": kind, "digest": blob.digest.to_string(), "size": blob.size})
}

/// Tells of what is written through it.
struct Counted<'a> {
    inner: &'a mut dyn Write,
    count: &'a mut u64,
    each: &'a dyn Fn(u64),
}

impl Write for Counted<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        *self.count += written as u64;
        (self.each)(*self.count);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
