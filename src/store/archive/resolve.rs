//! From the documents of an archive to a list of images with their layers. Pure: documents are asked for by name.

use std::collections::BTreeSet;

use super::documents::{self, Descriptor, DockerItem, Document};
use super::platform::Platform;
use crate::store::error::{Result, StoreError};
use crate::store::ids::Digest;
use crate::store::names::Reference;

/// How deep indexes may be nested.
const MAX_DEPTH: usize = 8;
/// Documents that one archive may make us read.
const MAX_DOCUMENTS: usize = 10_000;
/// Annotations that name an image, the surest first.
const NAME_ANNOTATIONS: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// A member of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its name in the archive.
    pub name: String,
    /// Its digest, where the archive states one.
    pub digest: Option<Digest>,
    /// Its bytes, where the archive states them.
    pub size: Option<u64>,
}

/// An image of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedImage {
    /// The member that is its config.
    pub config: Blob,
    /// The members that are its layers, the base first.
    pub layers: Vec<Blob>,
    /// Its names.
    pub names: Vec<Reference>,
}

/// Where documents come from.
pub trait Documents {
    /// The content of a member; `None` when there is none of this name.
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>>;
}

/// The images of an archive: those of `manifest.json` if there is one and no platform is asked for, those of
/// `index.json` otherwise. Without `wanted`, this machine's platform is chosen where there is a choice.
pub fn images(from: &dyn Documents, wanted: Option<&Platform>) -> Result<Vec<ArchivedImage>> {
    let docker = from.document("manifest.json")?;
    let index = match (&docker, wanted) {
        (Some(_), None) => None,
        _ => from.document("index.json")?,
    };
    match (docker, index) {
        (_, Some(index)) => Oci::new(from, wanted).images(&index),
        (Some(manifest), None) => documents::parse_docker(&manifest)?
            .into_iter()
            .map(docker_image)
            .collect(),
        (None, None) => Err(StoreError::archive(
            "it has neither a manifest.json (docker-archive) nor an index.json (OCI layout)",
        )),
    }
}

fn docker_image(item: DockerItem) -> Result<ArchivedImage> {
    let blob = |name: String| {
        let name = member_name(&name)?;
        Ok(Blob {
            digest: stated_digest(&name),
            name,
            size: None,
        })
    };
    let names = item.names.unwrap_or_default();
    Ok(ArchivedImage {
        config: blob(item.config)?,
        layers: item
            .layers
            .unwrap_or_default()
            .into_iter()
            .map(|name| {
                // What a member is called says nothing of its content, but for blobs.
                let mut blob: Blob = blob(name)?;
                if !blob.name.starts_with("blobs/") {
                    blob.digest = None;
                }
                Ok(blob)
            })
            .collect::<Result<_>>()?,
        names: names
            .iter()
            .filter(|name| *name != "<none>:<none>")
            .map(|name| parse_name(name))
            .collect::<Result<_>>()?,
    })
}

/// A name that an archive gives: one that is none is the archive's fault.
fn parse_name(name: &str) -> Result<Reference> {
    name.parse()
        .map_err(|error: StoreError| StoreError::archive(error.to_string()))
}

/// The digest that a member's name states: `blobs/sha256/<hex>`, or `<hex>.json` of a config.
fn stated_digest(name: &str) -> Option<Digest> {
    let hex = name
        .strip_prefix("blobs/sha256/")
        .or_else(|| name.strip_suffix(".json"))?;
    format!("sha256:{hex}").parse().ok()
}

/// A name in the archive in its plain form: no leading `/` or `./`, no `..`.
pub fn member_name(name: &str) -> Result<String> {
    let parts: Vec<&str> = name
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    if parts.is_empty() || parts.contains(&"..") {
        return Err(StoreError::archive(format!(
            "{name:?} is no name of a member"
        )));
    }
    Ok(parts.join("/"))
}

/// Where a symlink of the archive leads: `target`, seen from the directory of `name`.
pub fn link_target(name: &str, target: &str) -> Result<String> {
    let mut parts: Vec<&str> = match target.starts_with('/') {
        true => Vec::new(),
        false => name.split('/').collect(),
    };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_none() => {
                let what = format!("the link {name} leads out of the archive, to {target:?}");
                return Err(StoreError::archive(what));
            }
            ".." => {}
            part => parts.push(part),
        }
    }
    member_name(&parts.join("/"))
}

/// Walks the indexes of an OCI layout.
struct Oci<'a> {
    from: &'a dyn Documents,
    wanted: Option<&'a Platform>,
    host: Platform,
    read: std::cell::Cell<usize>,
}

impl<'a> Oci<'a> {
    fn new(from: &'a dyn Documents, wanted: Option<&'a Platform>) -> Oci<'a> {
        Oci {
            from,
            wanted,
            host: Platform::host(),
            read: std::cell::Cell::new(0),
        }
    }

    fn platform(&self) -> &Platform {
        self.wanted.unwrap_or(&self.host)
    }

    /// The images of `index.json`. What has one name is one image, in several platforms perhaps; what has none is
    /// an image each, unless platforms tell them apart.
    fn images(&self, index: &[u8]) -> Result<Vec<ArchivedImage>> {
        let Document::Index(descriptors) = documents::parse_oci("index.json", index)? else {
            return Err(StoreError::archive("index.json is no index"));
        };
        let mut groups: Vec<(Option<Reference>, Vec<&Descriptor>)> = Vec::new();
        for descriptor in &descriptors {
            let name = name_of(descriptor)?;
            let same = groups.iter_mut().find(|(other, list)| {
                *other == name
                    && descriptor.platform.is_some()
                    && list
                        .iter()
                        .all(|d| d.platform.is_some() && d.platform != descriptor.platform)
            });
            match same {
                Some((_, list)) => list.push(descriptor),
                None => groups.push((name, vec![descriptor])),
            }
        }
        let mut images: Vec<ArchivedImage> = Vec::new();
        for (name, list) in groups {
            let image = match list.as_slice() {
                [only] => self.image(only, &mut Vec::new())?,
                several => self.choose(several, &mut Vec::new())?,
            };
            let names: Vec<Reference> = name.into_iter().collect();
            let same = images
                .iter_mut()
                .find(|other| other.config == image.config && other.layers == image.layers);
            match same {
                Some(other) => other.names.extend(names),
                None => images.push(ArchivedImage { names, ..image }),
            }
        }
        if images.is_empty() {
            return Err(StoreError::archive("index.json lists no image"));
        }
        Ok(images)
    }

    /// The image that a descriptor leads to, through indexes if need be.
    fn image(&self, descriptor: &Descriptor, above: &mut Vec<Digest>) -> Result<ArchivedImage> {
        let digest = descriptor.parsed_digest()?;
        if above.contains(&digest) {
            return Err(StoreError::archive(format!(
                "the index {digest} contains itself"
            )));
        }
        if above.len() >= MAX_DEPTH {
            return Err(StoreError::archive(format!(
                "indexes are nested deeper than {MAX_DEPTH}"
            )));
        }
        let blob = blob_of(descriptor)?;
        match documents::parse_oci(&blob.name, &self.verified(&blob)?)? {
            Document::Index(list) => {
                above.push(digest);
                let list: Vec<&Descriptor> = list.iter().collect();
                let image = self.choose(&list, above);
                above.pop();
                image
            }
            Document::Manifest { config, layers } => {
                if let Some(layer) = layers.iter().find(|layer| !layer.is_layer()) {
                    let what = format!(
                        "{digest} is no image of a root file system: it has a layer of type {:?}",
                        layer.media_type
                    );
                    return Err(StoreError::archive(what));
                }
                Ok(ArchivedImage {
                    config: blob_of(&config)?,
                    layers: layers.iter().map(blob_of).collect::<Result<_>>()?,
                    names: Vec::new(),
                })
            }
        }
    }

    /// The image for the platform: the first that fits, or the only one if none is asked for.
    fn choose(&self, list: &[&Descriptor], above: &mut Vec<Digest>) -> Result<ArchivedImage> {
        let is_image = |descriptor: &&&Descriptor| {
            !descriptor
                .platform
                .as_ref()
                .is_some_and(Platform::is_unknown)
        };
        let candidates: Vec<&Descriptor> = list.iter().filter(is_image).copied().collect();
        let fits = |descriptor: &&&Descriptor| {
            let platform = descriptor.platform.as_ref();
            platform.is_some_and(|platform| platform.fits(self.platform()))
        };
        if let Some(exact) = candidates.iter().find(fits) {
            return self.image(exact, above);
        }
        let unnamed: Vec<&Descriptor> = candidates
            .iter()
            .filter(|descriptor| descriptor.platform.is_none())
            .copied()
            .collect();
        match (unnamed.as_slice(), self.wanted, candidates.as_slice()) {
            ([only], _, _) | (_, None, [only]) => self.image(only, above),
            _ => {
                let platforms: BTreeSet<String> = candidates
                    .iter()
                    .filter_map(|descriptor| Some(descriptor.platform.as_ref()?.to_string()))
                    .collect();
                let have: Vec<String> = platforms.into_iter().collect();
                Err(StoreError::archive(format!(
                    "it has no image for {}{}",
                    self.platform(),
                    match have.is_empty() {
                        true => String::new(),
                        false =>
                            format!("; it has {} (choose one with --platform)", have.join(", ")),
                    }
                )))
            }
        }
    }

    /// The document with this digest.
    fn verified(&self, blob: &Blob) -> Result<Vec<u8>> {
        self.read.set(self.read.get() + 1);
        if self.read.get() > MAX_DOCUMENTS {
            let what = format!("it has more than {MAX_DOCUMENTS} manifests and indexes");
            return Err(StoreError::archive(what));
        }
        if blob
            .size
            .is_some_and(|size| size > documents::MAX_DOCUMENT as u64)
        {
            return Err(StoreError::archive(format!("{} is too large", blob.name)));
        }
        let text = self.from.document(&blob.name)?;
        let text = text.ok_or_else(|| StoreError::archive(format!("{} is missing", blob.name)))?;
        verify(blob, &text)?;
        Ok(text)
    }
}

/// Holds a member's content against the digest and the size that the archive states.
pub fn verify(blob: &Blob, content: &[u8]) -> Result<()> {
    if blob.size.is_some_and(|size| size != content.len() as u64) {
        let what = format!(
            "{} has {} bytes, not {}",
            blob.name,
            content.len(),
            blob.size.unwrap_or_default()
        );
        return Err(StoreError::archive(what));
    }
    let actual = Digest::of(content);
    match &blob.digest {
        Some(digest) if *digest != actual => Err(StoreError::archive(format!(
            "{} should have the digest {digest} and has {actual}",
            blob.name
        ))),
        _ => Ok(()),
    }
}

fn blob_of(descriptor: &Descriptor) -> Result<Blob> {
    let digest = descriptor.parsed_digest()?;
    Ok(Blob {
        name: format!("blobs/sha256/{}", digest.hex()),
        digest: Some(digest),
        size: Some(descriptor.size),
    })
}

/// The name that annotations give. A reference name without `:` and `/` is only a tag of a layout whose own name is
/// not in it.
fn name_of(descriptor: &Descriptor) -> Result<Option<Reference>> {
    NAME_ANNOTATIONS
        .iter()
        .find_map(|key| descriptor.annotation(key))
        .filter(|name| name.contains([':', '/']))
        .map(parse_name)
        .transpose()
}
