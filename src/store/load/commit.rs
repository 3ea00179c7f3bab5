//! One layer on top of an image, and the image that has it.

use std::io::Read;

use super::plan::ImagePlan;
use super::{LoadOptions, LoadedImage, Loader, Progress};
use crate::store::Store;
use crate::store::config::Config;
use crate::store::error::{Result, StoreError};
use crate::store::ids::{DiffId, ImageId};
use crate::store::load::plan::LayerPlan;
use crate::store::names::Reference;

/// Unpacks a tar as the topmost layer of a new image. `config` makes the image's config once the layer's digest is
/// known; it has to end with that layer.
pub fn apply_image(
    store: &Store,
    tar: impl Read + Send,
    config: impl FnOnce(&DiffId) -> Result<Vec<u8>>,
    name: Option<Reference>,
    options: &LoadOptions,
    progress: &dyn Progress,
) -> Result<LoadedImage> {
    let mut loader = Loader::new(store, options, progress)?;
    let number = progress.begin("layer", None);
    let staged = loader
        .stager()
        .unpack("the layer", tar, &|bytes| progress.advance(number, bytes));
    progress.end(number, if staged.is_ok() { "packed" } else { "failed" });
    let staged = staged?;
    let raw = config(&staged.diff_id)?;
    let plan = plan_of(raw, name)?;
    if plan.layers.last().map(|layer| layer.diff_id) != Some(staged.diff_id) {
        return Err(StoreError::archive("the config doesn't end with the layer"));
    }
    loader.staged.insert(staged.diff_id, staged);
    let loaded = loader.publish(vec![plan])?;
    let image = loaded.into_iter().next();
    image.ok_or_else(|| StoreError::damaged("an image was published and isn't there"))
}

fn plan_of(raw: Vec<u8>, name: Option<Reference>) -> Result<ImagePlan> {
    let config = Config::parse(&raw)?;
    let (diff_ids, chain_ids) = (config.diff_ids()?, config.chain_ids()?);
    let mut parent = None;
    let mut layers = Vec::new();
    for (diff_id, chain_id) in diff_ids.into_iter().zip(chain_ids) {
        layers.push(LayerPlan::unpacked(diff_id, chain_id, parent));
        parent = Some(chain_id);
    }
    Ok(ImagePlan {
        id: ImageId::of_config(&raw),
        raw: Some(raw),
        names: name.into_iter().collect(),
        layers,
    })
}
