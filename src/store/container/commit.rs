//! A container's changes as a new image.

use std::io::{self, BufWriter, Read, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};

use super::change::Change;
use super::{Container, Tree};
use crate::store::Store;
use crate::store::config::Config;
use crate::store::error::{Result, StoreError};
use crate::store::ids::DiffId;
use crate::store::images::Image;
use crate::store::load::{LoadOptions, LoadedImage, Progress, apply_image};
use crate::store::names::Reference;
use crate::store::pack::{Extent, Options};
use crate::store::time;

/// Bytes that are packed at once.
const CHUNK: usize = 256 << 10;

/// What a commit is told.
#[derive(Debug, Default)]
pub struct CommitOptions {
    /// The new image's name.
    pub name: Option<Reference>,
    /// Said in its history.
    pub message: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// Changes of its config, in this order.
    pub changes: Vec<Change>,
}

impl Store {
    /// Makes an image of a container: its image's layers, and one with exactly what the container has changed.
    /// The changes are packed, hashed and unpacked at their new place in one pass.
    pub fn commit_container(
        &self,
        container: &Container,
        commit: &CommitOptions,
        packing: &Options,
        unpacking: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<LoadedImage> {
        let image = self.image_of(container)?;
        let tree = self.container_tree(container)?;
        let (reader, writer) = io::pipe().map_err(|error| pipe_failed(&error))?;
        let has_failed = AtomicBool::new(false);
        let pack = || {
            let mut out = BufWriter::with_capacity(CHUNK, writer);
            let packed = pack(&tree, packing, &mut out);
            has_failed.store(packed.is_err(), Ordering::SeqCst);
            // Dropped only now: the other end is to know of the failure once it sees the end.
            drop(out);
            packed
        };
        let config = |layer: &DiffId| commit_config(&image, container, commit, layer);
        std::thread::scope(|scope| {
            let packer = scope.spawn(pack);
            let tar = Checked {
                inner: reader,
                has_failed: &has_failed,
            };
            let name = commit.name.clone();
            let made = apply_image(self, tar, config, name, unpacking, progress);
            match packer.join() {
                Ok(Err(StoreError::Archiving(why))) if has_failed.load(Ordering::SeqCst) => {
                    // Without a reader packing fails too, and that is not the cause then.
                    match made {
                        Err(error) if why.contains("Broken pipe") => Err(error),
                        _ => Err(StoreError::Archiving(why)),
                    }
                }
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) => made,
                Err(_) => Err(StoreError::Archiving("packing was given up".into())),
            }
        })
    }

    /// The image of a container: the one that it was made of, or, if that is not known, any with its layers.
    pub fn image_of(&self, container: &Container) -> Result<Image> {
        if let Some(id) = container.image()
            && let Some(image) = self.read_image(&id, &self.repositories()?)?
        {
            return Ok(image);
        }
        for image in self.images()? {
            if image.config.chain_ids()?.last().copied() == container.parent {
                return Ok(image);
            }
        }
        Err(StoreError::NotFound {
            kind: "image of container",
            name: container.short().to_owned(),
        })
    }
}

fn pack(tree: &Tree, options: &Options, out: &mut BufWriter<io::PipeWriter>) -> Result<()> {
    tree.pack(Extent::Difference, options, &mut *out)?;
    out.flush().map_err(|error| pipe_failed(&error))
}

fn pipe_failed(error: &io::Error) -> StoreError {
    StoreError::Archiving(format!("packing the changes: {error}"))
}

/// An archive that ends only if all of it was written.
struct Checked<'a> {
    inner: io::PipeReader,
    has_failed: &'a AtomicBool,
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if read == 0 && self.has_failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("the changes could not be packed"));
        }
        Ok(read)
    }
}

/// The config of the new image, as Docker writes it.
fn commit_config(
    image: &Image,
    container: &Container,
    commit: &CommitOptions,
    layer: &DiffId,
) -> Result<Vec<u8>> {
    let damaged = |what: &str| StoreError::damaged(format!("image {}: {what}", image.id));
    let parsed: Value = serde_json::from_slice(&image.raw).map_err(|e| damaged(&e.to_string()))?;
    let Value::Object(mut whole) = parsed else {
        return Err(damaged("its config is no object"));
    };
    let run = container
        .notes
        .as_ref()
        .and_then(|notes| notes.config.clone());
    let mut config = match run.or_else(|| whole.get("config").cloned()) {
        Some(Value::Object(config)) => config,
        _ => Map::new(),
    };
    super::change::apply(&commit.changes, &mut config)?;
    let now = time::now();
    let mut step = Map::new();
    step.insert("created".into(), now.clone().into());
    if let Some(author) = &commit.author {
        step.insert("author".into(), author.clone().into());
        whole.insert("author".into(), author.clone().into());
    }
    step.insert("created_by".into(), command_of(&config).into());
    if let Some(message) = &commit.message {
        step.insert("comment".into(), message.clone().into());
        whole.insert("comment".into(), message.clone().into());
    } else {
        whole.remove("comment");
    }
    let mut history = history_of(&image.config, &whole);
    history.push(step.into());
    let mut diff_ids: Vec<String> = image
        .config
        .diff_ids()?
        .iter()
        .map(DiffId::to_string)
        .collect();
    diff_ids.push(layer.to_string());
    whole.insert("config".into(), config.into());
    whole.insert("created".into(), now.into());
    whole.insert("history".into(), history.into());
    whole.insert(
        "rootfs".into(),
        json!({"type": "layers", "diff_ids": diff_ids}),
    );
    // What says how the old image was made.
    for key in ["container", "container_config", "id", "parent", "parent_id"] {
        whole.remove(key);
    }
    serde_json::to_vec(&whole).map_err(|e| damaged(&e.to_string()))
}

/// The command that made the changes, as far as it is known.
fn command_of(config: &Map<String, Value>) -> String {
    let words = ["Entrypoint", "Cmd"]
        .iter()
        .filter_map(|key| config.get(*key)?.as_array())
        .flatten();
    words
        .filter_map(Value::as_str)
        .collect::<Vec<&str>>()
        .join(" ")
}

/// The steps so far; as many that made a layer as there are layers.
fn history_of(config: &Config, whole: &Map<String, Value>) -> Vec<Value> {
    let mut steps = match whole.get("history") {
        Some(Value::Array(steps)) => steps.clone(),
        _ => Vec::new(),
    };
    let made_layers = steps
        .iter()
        .filter(|step| step.get("empty_layer") != Some(&Value::Bool(true)))
        .count();
    let layers = config.rootfs.diff_ids.as_ref().map_or(0, Vec::len);
    for _ in made_layers..layers {
        steps.push(json!({"created_by": ""}));
    }
    steps
}
