//! Archives of images into the store.
//!
//! What the archive's configs ask for is compared with what there is; each layer that is missing is unpacked
//! once into a transaction's directory, several at a time, and verified; then all is synced at once and published
//! at once: an image is there with all its layers, or not at all. A layer that is there with another parent is
//! cloned instead of being unpacked.

mod commit;
mod inherit;
mod input;
mod plan;
mod publish;
mod stream;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

pub use input::Input;

pub use commit::apply_image;

use super::Store;
use super::archive::platform::Platform;
use super::archive::resolve::{self, ArchivedImage, Blob, Documents as _};
use super::archive::source::Source;
use super::dedup::Deduplicator;
use super::error::{Result, StoreError};
use super::ids::{ChainId, DiffId, ImageId};
use super::layers::Hold;
use super::lock;
use super::names::Reference;
use super::stage::{StagedLayer, Stager};
use super::transaction::Transaction;
use super::unpack;
use plan::ImagePlan;

/// Told how far a load is. Layers are named by short ids; several are under way at once.
pub trait Progress: Sync {
    /// A layer is begun; `total` bytes are to be read for it, where that is known. Returns its number.
    fn begin(&self, layer: &str, total: Option<u64>) -> usize;
    /// Bytes of that layer read so far.
    fn advance(&self, layer: usize, bytes: u64);
    /// That layer is done.
    fn end(&self, layer: usize, how: &str);
    /// Something else takes its time, and has a name.
    fn phase(&self, what: &str);
}

/// Nobody is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _layer: &str, _total: Option<u64>) -> usize {
        0
    }
    fn advance(&self, _layer: usize, _bytes: u64) {}
    fn end(&self, _layer: usize, _how: &str) {}
    fn phase(&self, _what: &str) {}
}

/// How an archive is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The platform to choose; this machine's by default.
    pub platform: Option<Platform>,
    /// A name for the image, which must be the only one then.
    pub name: Option<Reference>,
    /// Layers unpacked at once.
    pub jobs: usize,
    /// Whether equal files are looked for in other layers.
    pub dedup: bool,
    /// How layers are unpacked.
    pub unpack: unpack::Options,
}

/// What became of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was unpacked.
    Unpacked,
    /// It was there on another parent, and was cloned.
    Cloned,
    /// It was there.
    Existed,
}

/// A layer of a loaded image.
#[derive(Debug, Clone)]
pub struct LoadedLayer {
    /// The layer and all below.
    pub chain_id: ChainId,
    /// Its own tar.
    pub diff_id: DiffId,
    /// What became of it.
    pub outcome: Outcome,
    /// Bytes of its files.
    pub size: u64,
}

/// A loaded image.
#[derive(Debug, Clone)]
pub struct LoadedImage {
    /// Its id.
    pub id: ImageId,
    /// The names that it was given.
    pub names: Vec<Reference>,
    /// Its layers, the base first.
    pub layers: Vec<LoadedLayer>,
}

/// A load under way.
struct Loader<'a> {
    store: &'a Store,
    options: &'a LoadOptions,
    progress: &'a dyn Progress,
    transaction: Transaction,
    dedup: Option<Deduplicator>,
    cancelled: AtomicBool,
    /// Unpacked in this transaction.
    staged: BTreeMap<DiffId, StagedLayer>,
    /// Layers of the store that will be used.
    hold: Hold,
}

/// Makes one layer of a tar, compressed or not, on top of `parent`. No image has it: `gc` takes it unless one does
/// by then.
pub fn apply(
    store: &Store,
    tar: impl std::io::Read + Send,
    parent: Option<&ChainId>,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<LoadedLayer> {
    let mut loader = Loader::new(store, options, progress)?;
    let number = progress.begin("layer", None);
    let staged = loader
        .stager()
        .unpack("the layer", tar, &|bytes| progress.advance(number, bytes));
    progress.end(number, if staged.is_ok() { "unpacked" } else { "failed" });
    let staged = staged?;
    let plan = ImagePlan::of_layer(staged.diff_id, parent.copied());
    loader.staged.insert(staged.diff_id, staged);
    let loaded = loader.publish(vec![plan])?;
    let layer = loaded
        .into_iter()
        .next()
        .and_then(|image| image.layers.into_iter().next());
    layer.ok_or_else(|| StoreError::damaged("a layer was published and isn't there"))
}

/// Loads all images of an archive.
pub fn load(
    store: &Store,
    input: Input,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<Vec<LoadedImage>> {
    let loader = Loader::new(store, options, progress)?;
    match input.open()? {
        input::Opened::Source(source) => loader.load_source(&source),
        input::Opened::Stream(stream) => loader.load_stream(stream),
    }
}

impl<'a> Loader<'a> {
    fn new(
        store: &'a Store,
        options: &'a LoadOptions,
        progress: &'a dyn Progress,
    ) -> Result<Loader<'a>> {
        // Before all the work, not after it.
        lock::refuse_beside_docker(store.disk())?;
        let mut transaction = Transaction::begin(store.disk())?;
        let dedup = match options.dedup {
            true => Deduplicator::new(store, &mut transaction)?,
            false => None,
        };
        Ok(Loader {
            store,
            options,
            progress,
            transaction,
            dedup,
            cancelled: AtomicBool::new(false),
            staged: BTreeMap::new(),
            hold: Hold::default(),
        })
    }
}

impl Loader<'_> {
    fn stager(&self) -> Stager<'_> {
        Stager::new(
            self.store,
            &self.transaction,
            &self.options.unpack,
            self.dedup.as_ref(),
            &self.cancelled,
        )
    }

    fn load_source(mut self, source: &Source) -> Result<Vec<LoadedImage>> {
        let images = resolve::images(source, self.options.platform.as_ref())?;
        let images = self.named(images)?;
        let mut plans = Vec::new();
        for image in images {
            let config = source.document(&image.config.name)?;
            plans.push(ImagePlan::new(image, config)?);
        }
        let missing = self.missing_layers(&plans)?;
        self.unpack_all(source, &missing)?;
        self.publish(plans)
    }

    /// Gives the only image the name that was asked for.
    fn named(&self, mut images: Vec<ArchivedImage>) -> Result<Vec<ArchivedImage>> {
        if let Some(name) = &self.options.name {
            match images.as_mut_slice() {
                [image] => image.names = vec![name.clone()],
                several => {
                    return Err(StoreError::BadName(format!(
                        "{name} can't be the name of {} images at once",
                        several.len()
                    )));
                }
            }
        }
        Ok(images)
    }

    /// The layers that have to be unpacked: each once, in the order of need.
    fn missing_layers(&mut self, plans: &[ImagePlan]) -> Result<Vec<(DiffId, Blob)>> {
        let in_store: std::collections::BTreeSet<DiffId> = self
            .store
            .layers()?
            .into_iter()
            .map(|layer| layer.diff_id)
            .collect();
        let mut missing: Vec<(DiffId, Blob)> = Vec::new();
        for plan in plans {
            for layer in &plan.layers {
                let known = in_store.contains(&layer.diff_id)
                    || self.staged.contains_key(&layer.diff_id)
                    || missing.iter().any(|(diff_id, _)| *diff_id == layer.diff_id);
                if !known {
                    missing.push((layer.diff_id, layer.blob.clone()));
                }
            }
        }
        Ok(missing)
    }

    /// Unpacks layers, several at a time. The first error stops all.
    fn unpack_all(&mut self, source: &Source, missing: &[(DiffId, Blob)]) -> Result<()> {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<StagedLayer>> = Mutex::new(Vec::new());
        let failed: Mutex<Option<StoreError>> = Mutex::new(None);
        let work = || {
            while let Some((diff_id, blob)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.cancelled.load(Ordering::Relaxed) {
                    return;
                }
                match self.unpack_one(source, diff_id, blob) {
                    Ok(layer) => done.lock().push(layer),
                    Err(error) => {
                        // Only the first is the cause; others may follow from it.
                        if !self.cancelled.swap(true, Ordering::Relaxed) {
                            *failed.lock() = Some(error);
                        }
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.options.jobs.clamp(1, missing.len().max(1)) {
                scope.spawn(work);
            }
            work();
        });
        if let Some(error) = failed.into_inner() {
            return Err(error);
        }
        for layer in done.into_inner() {
            self.staged.insert(layer.diff_id, layer);
        }
        Ok(())
    }

    fn unpack_one(&self, source: &Source, diff_id: &DiffId, blob: &Blob) -> Result<StagedLayer> {
        let member = source.open(&blob.name)?;
        let member =
            member.ok_or_else(|| StoreError::archive(format!("{} is missing", blob.name)))?;
        if blob.size.is_some_and(|size| size != member.size) {
            let reason = format!(
                "it has {} bytes, not {}",
                member.size,
                blob.size.unwrap_or_default()
            );
            return Err(StoreError::layer(&blob.name, reason));
        }
        let layer = self.unpack_stream(&blob.name, diff_id, member.content, Some(member.size))?;
        verify_layer(&layer, diff_id, blob)?;
        Ok(layer)
    }

    /// Unpacks one layer with its progress shown under `diff_id`.
    fn unpack_stream(
        &self,
        name: &str,
        shown: &DiffId,
        content: impl std::io::Read + Send,
        total: Option<u64>,
    ) -> Result<StagedLayer> {
        let label: String = shown.hex().chars().take(12).collect();
        let number = self.progress.begin(&label, total);
        let staged = self.stager().unpack(name, content, &|bytes| {
            self.progress.advance(number, bytes);
        });
        let how = if staged.is_ok() { "unpacked" } else { "failed" };
        self.progress.end(number, how);
        staged
    }
}

/// Holds an unpacked layer against what the archive says about it.
fn verify_layer(layer: &StagedLayer, diff_id: &DiffId, blob: &Blob) -> Result<()> {
    let stated = blob.digest.as_ref();
    let actual = layer.blob.as_ref().map(|digest| &digest.0);
    if let (Some(stated), Some(actual)) = (stated, actual)
        && stated != actual
    {
        let reason = format!("its digest should be {stated} and is {actual}");
        return Err(StoreError::layer(&blob.name, reason));
    }
    if blob.size.is_some_and(|size| size != layer.blob_size) {
        let reason = format!(
            "it has {} bytes, not {}",
            layer.blob_size,
            blob.size.unwrap_or_default()
        );
        return Err(StoreError::layer(&blob.name, reason));
    }
    if layer.diff_id != *diff_id {
        let reason = format!(
            "unpacked, its digest should be {diff_id}, as the config says, and is {}",
            layer.diff_id
        );
        return Err(StoreError::layer(&blob.name, reason));
    }
    Ok(())
}
