//! What an image of an archive consists of, config and layers matched. Pure.

use crate::store::archive::resolve::{ArchivedImage, Blob, verify};
use crate::store::config::{Config, chain};
use crate::store::error::{Result, StoreError};
use crate::store::ids::{ChainId, DiffId, ImageId};
use crate::store::names::Reference;

/// An image that is to be there in the end.
pub struct ImagePlan {
    pub(super) id: ImageId,
    /// Its config; none for layers without an image.
    pub(super) raw: Option<Vec<u8>>,
    pub(super) names: Vec<Reference>,
    /// The base first.
    pub(super) layers: Vec<LayerPlan>,
}

impl ImagePlan {
    /// One layer without an image.
    pub(super) fn of_layer(diff_id: DiffId, parent: Option<ChainId>) -> ImagePlan {
        let chain_id = match parent {
            Some(parent) => parent.child(diff_id),
            None => ChainId::base(diff_id),
        };
        ImagePlan {
            id: ImageId::new(chain_id.0),
            raw: None,
            names: Vec::new(),
            layers: vec![LayerPlan::unpacked(diff_id, chain_id, parent)],
        }
    }
}

/// A layer of it.
pub(super) struct LayerPlan {
    pub(super) diff_id: DiffId,
    pub(super) chain_id: ChainId,
    pub(super) parent: Option<ChainId>,
    /// Where the archive has it.
    pub(super) blob: Blob,
}

impl LayerPlan {
    /// Of a layer that is unpacked already.
    pub(super) fn unpacked(
        diff_id: DiffId,
        chain_id: ChainId,
        parent: Option<ChainId>,
    ) -> LayerPlan {
        LayerPlan {
            diff_id,
            chain_id,
            parent,
            blob: Blob {
                name: diff_id.to_string(),
                digest: None,
                size: None,
            },
        }
    }
}

impl ImagePlan {
    /// Matches an image with its config, whose content is held against its digest.
    pub(super) fn new(image: ArchivedImage, config: Option<Vec<u8>>) -> Result<ImagePlan> {
        let raw = config
            .ok_or_else(|| StoreError::archive(format!("{} is missing", image.config.name)))?;
        verify(&image.config, &raw)?;
        let config = Config::parse(&raw)?;
        let diff_ids = config.diff_ids()?;
        if diff_ids.len() != image.layers.len() {
            return Err(StoreError::archive(format!(
                "{} lists {} layers, and the manifest {}",
                image.config.name,
                diff_ids.len(),
                image.layers.len()
            )));
        }
        let mut parent = None;
        let layers = chain(&diff_ids)
            .into_iter()
            .zip(diff_ids)
            .zip(image.layers)
            .map(|((chain_id, diff_id), blob)| LayerPlan {
                diff_id,
                chain_id,
                parent: parent.replace(chain_id),
                blob,
            })
            .collect();
        Ok(ImagePlan {
            id: ImageId::of_config(&raw),
            raw: Some(raw),
            names: image.names,
            layers,
        })
    }
}
