//! The config of an image: the part of it that the store looks at. Pure.
//!
//! OCI image-spec, config.md; Docker's is a superset. The bytes are kept as they came: their digest is the
//! image's id.

use serde::Deserialize;
use serde_json::Value;

use super::error::{Result, StoreError};
use super::ids::{ChainId, DiffId};

/// Bytes that a config may have.
pub const MAX_CONFIG: usize = 8 << 20;
/// Layers that an image may have: what a mount with short names takes is 500, what engines take is 127.
pub const MAX_LAYERS: usize = 500;

/// What the store knows of a config.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// As in Go: `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// As in Go: `linux`.
    #[serde(default)]
    pub os: String,
    /// Of the architecture: `v8`.
    #[serde(default)]
    pub variant: Option<String>,
    /// When it was made, RFC 3339.
    #[serde(default)]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default)]
    pub author: Option<String>,
    /// How containers are run.
    #[serde(default)]
    pub config: Option<Value>,
    /// The layers.
    pub rootfs: RootFs,
    /// How it was made, the oldest first.
    #[serde(default)]
    pub history: Option<Vec<History>>,
}

/// The layers of an image, the base first.
#[derive(Debug, Clone, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The digests of the layers' tars.
    #[serde(default)]
    pub diff_ids: Option<Vec<String>>,
}

/// One step of how an image was made.
#[derive(Debug, Clone, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default)]
    pub created: Option<String>,
    /// By which command.
    #[serde(default)]
    pub created_by: Option<String>,
    /// Anything.
    #[serde(default)]
    pub comment: Option<String>,
    /// Whether it made no layer.
    #[serde(default)]
    pub empty_layer: bool,
}

impl Config {
    /// Reads a config.
    pub fn parse(bytes: &[u8]) -> Result<Config> {
        if bytes.len() > MAX_CONFIG {
            let what = format!("the config has {} bytes, at most {MAX_CONFIG}", bytes.len());
            return Err(StoreError::archive(what));
        }
        let config: Config = serde_json::from_slice(bytes)
            .map_err(|error| StoreError::archive(format!("the config can't be read: {error}")))?;
        if config.rootfs.kind != "layers" {
            let what = format!("its rootfs is of type {:?}, not layers", config.rootfs.kind);
            return Err(StoreError::archive(what));
        }
        Ok(config)
    }

    /// The digests of the layers' tars, the base first.
    pub fn diff_ids(&self) -> Result<Vec<DiffId>> {
        let texts = self.rootfs.diff_ids.as_deref().unwrap_or_default();
        if texts.len() > MAX_LAYERS {
            let what = format!("{} layers, at most {MAX_LAYERS}", texts.len());
            return Err(StoreError::archive(what));
        }
        texts
            .iter()
            .map(|text| {
                text.parse()
                    .map_err(|_| StoreError::archive(format!("{text:?} is no diff-id")))
            })
            .collect()
    }

    /// The chain-ids of the layers, the base first.
    pub fn chain_ids(&self) -> Result<Vec<ChainId>> {
        Ok(chain(&self.diff_ids()?))
    }

    /// `OS/ARCH[/VARIANT]`.
    pub fn platform(&self) -> String {
        let mut text = format!("{}/{}", self.os, self.architecture);
        if let Some(variant) = self.variant.as_deref().filter(|v| !v.is_empty()) {
            text.push('/');
            text.push_str(variant);
        }
        text
    }
}

/// The chain-ids of these layers, the base first.
pub fn chain(diff_ids: &[DiffId]) -> Vec<ChainId> {
    let mut below: Option<ChainId> = None;
    diff_ids
        .iter()
        .map(|diff_id| {
            let chain_id = match below {
                Some(parent) => parent.child(*diff_id),
                None => ChainId::base(*diff_id),
            };
            below = Some(chain_id);
            chain_id
        })
        .collect()
}
