//! The documents of image archives: docker-archive's `manifest.json`, OCI's index and manifest. Pure.
//!
//! OCI image-spec: image-layout.md, image-index.md, manifest.md, descriptor.md.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::platform::Platform;
use crate::store::error::{Result, StoreError};
use crate::store::ids::Digest;

/// Bytes that a document may have.
pub const MAX_DOCUMENT: usize = 8 << 20;
/// Descriptors that an index may list.
const MAX_DESCRIPTORS: usize = 10_000;

/// One image of a docker-archive.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct DockerItem {
    /// The member that is the config.
    #[serde(rename = "Config")]
    pub config: String,
    /// Names.
    #[serde(rename = "RepoTags", default)]
    pub names: Option<Vec<String>>,
    /// The members that are the layers, the base first.
    #[serde(rename = "Layers", default)]
    pub layers: Option<Vec<String>>,
}

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// What it is.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
    /// Of an image: what it runs on.
    #[serde(default)]
    pub platform: Option<Platform>,
    /// Anything.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// An OCI index or manifest, by what is in it rather than by what it calls itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// A list of images.
    Index(Vec<Descriptor>),
    /// An image.
    Manifest {
        /// Its config.
        config: Descriptor,
        /// Its layers, the base first.
        layers: Vec<Descriptor>,
    },
}

#[derive(Deserialize)]
struct RawDocument {
    #[serde(rename = "schemaVersion", default)]
    schema_version: Option<u64>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers", default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

fn bounded(what: &str, text: &[u8]) -> Result<()> {
    if text.len() > MAX_DOCUMENT {
        let why = format!("{what} has {} bytes, at most {MAX_DOCUMENT}", text.len());
        return Err(StoreError::archive(why));
    }
    Ok(())
}

/// Reads a docker-archive's `manifest.json`.
pub fn parse_docker(text: &[u8]) -> Result<Vec<DockerItem>> {
    bounded("manifest.json", text)?;
    let items: Vec<DockerItem> = serde_json::from_slice(text)
        .map_err(|error| StoreError::archive(format!("manifest.json can't be read: {error}")))?;
    if items.is_empty() {
        return Err(StoreError::archive("manifest.json lists no image"));
    }
    Ok(items)
}

/// Reads an OCI index or manifest named `name`. One that could be taken for both is refused (CVE-2021-41190).
pub fn parse_oci(name: &str, text: &[u8]) -> Result<Document> {
    bounded(name, text)?;
    let raw: RawDocument = serde_json::from_slice(text)
        .map_err(|error| StoreError::archive(format!("{name} can't be read: {error}")))?;
    let refused = |why: &str| Err(StoreError::archive(format!("{name} {why}")));
    if raw.fs_layers.is_some() || raw.schema_version == Some(1) {
        return refused(
            "is a manifest of Docker's schema 1, which has no config; convert it first",
        );
    }
    let listed = raw.manifests.as_deref().unwrap_or_default().len()
        + raw.layers.as_deref().unwrap_or_default().len();
    if listed > MAX_DESCRIPTORS {
        return refused(&format!("lists {listed} blobs, at most {MAX_DESCRIPTORS}"));
    }
    match (raw.manifests, raw.config, raw.layers) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            refused("is a manifest and an index at once")
        }
        (Some(manifests), None, None) => Ok(Document::Index(manifests)),
        (None, Some(config), layers) => Ok(Document::Manifest {
            config,
            layers: layers.unwrap_or_default(),
        }),
        (None, None, _) => refused("is neither an image's manifest nor an index"),
    }
}

impl Descriptor {
    /// The digest, parsed.
    pub fn parsed_digest(&self) -> Result<Digest> {
        self.digest.parse().map_err(|_| {
            StoreError::archive(format!(
                "{:?} is no digest of the form sha256:<64 hex digits>",
                self.digest
            ))
        })
    }

    /// One of its annotations.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether it is said to be a layer of a kind that images have. Others (charts, signatures, wasm) are no trees.
    pub fn is_layer(&self) -> bool {
        let media_type = self.media_type.as_str();
        media_type.is_empty()
            || (media_type.starts_with("application/vnd.oci.image.layer.")
                || media_type.starts_with("application/vnd.docker.image.rootfs."))
                && !media_type.contains("+encrypted")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_that_is_also_an_index_is_refused() {
        let blob = r#"{"mediaType":"x","digest":"sha256:00","size":1}"#;
        let both = format!(r#"{{"manifests":[{blob}],"config":{blob},"layers":[]}}"#);
        let error = parse_oci("index.json", both.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains("at once"), "{error}");
        let also = format!(r#"{{"manifests":[],"layers":[{blob}]}}"#);
        assert!(parse_oci("x", also.as_bytes()).is_err());
    }

    #[test]
    fn documents_are_told_apart_by_what_is_in_them() {
        let blob = r#"{"digest":"sha256:00","size":1}"#;
        let manifest = format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{blob}]}}"#);
        let parsed = parse_oci("x", manifest.as_bytes()).unwrap();
        assert!(matches!(parsed, Document::Manifest { layers, .. } if layers.len() == 1));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{blob}]}}"#);
        assert!(
            matches!(parse_oci("x", index.as_bytes()), Ok(Document::Index(list)) if list.len() == 1)
        );
        for bad in [
            "{}",
            "[]",
            "",
            "{\"schemaVersion\":1,\"fsLayers\":[]}",
            "{\"layers\":[]}",
        ] {
            assert!(parse_oci("x", bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_that_comes_twice_is_refused() {
        let text = br#"[{"Config":"a","Config":"b","Layers":[]}]"#;
        assert!(parse_docker(text).is_err());
        let blob = r#"{"digest":"sha256:00","size":1}"#;
        let text = format!(r#"{{"config":{blob},"config":{blob}}}"#);
        assert!(parse_oci("x", text.as_bytes()).is_err());
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_the_parsers_panic(bytes: Vec<u8>) {
            drop(parse_docker(&bytes));
            drop(parse_oci("x", &bytes));
        }
    }
}
