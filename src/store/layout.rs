//! Where everything is below the store's root, with which mode, and how it is read.
//!
//! The layout is Docker's for its overlay2 driver; `rovl/` beside it is our own and can be rebuilt. All paths are
//! relative to the root.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::error::{Context as _, Result, StoreError};
use super::ids::{CacheId, ChainId, DiffId, Digest, ImageId, LinkId};

/// The layers' trees.
pub const OVERLAY: &str = "overlay2";
/// The short links to them.
pub const LINKS: &str = "overlay2/l";
/// The records of layers, by chain-id.
pub const LAYER_RECORDS: &str = "image/overlay2/layerdb/sha256";
/// The records of containers.
pub const MOUNT_RECORDS: &str = "image/overlay2/layerdb/mounts";
/// Where Docker builds records.
pub const LAYER_TMP: &str = "image/overlay2/layerdb/tmp";
/// The configs of images, by their digest.
pub const IMAGE_CONFIGS: &str = "image/overlay2/imagedb/content/sha256";
/// What else is known of images.
pub const IMAGE_METADATA: &str = "image/overlay2/imagedb/metadata/sha256";
/// Diff-ids by the digests of compressed layers.
pub const DIFF_ID_BY_DIGEST: &str = "image/overlay2/distribution/diffid-by-digest/sha256";
/// Names and tags.
pub const REPOSITORIES: &str = "image/overlay2/repositories.json";
/// What Docker's layout has no place for.
pub const OWN: &str = "rovl";
/// The store's lock.
pub const LOCK: &str = "rovl/lock";
/// Transactions under way.
pub const TRANSACTIONS: &str = "rovl/tx";
/// The index of file contents, one file a layer.
pub const FILE_INDEX: &str = "rovl/files";
/// The names of containers, and what they were made of.
pub const CONTAINERS: &str = "rovl/containers";
/// What is mounted where.
pub const MOUNTS: &str = "rovl/mounts";

/// Every directory of the layout with its mode, parents first.
///
/// `v2metadata-by-diffid` stays empty: Docker notes there which registry it pulled a layer from, so that a push can
/// refer to it; what came as an archive has none (`docker load` writes nothing there either).
const DIRECTORIES: &[(&str, u32)] = &[
    ("overlay2", 0o710),
    ("overlay2/l", 0o700),
    ("image", 0o700),
    ("image/overlay2", 0o700),
    ("image/overlay2/layerdb", 0o700),
    (LAYER_RECORDS, 0o755),
    (MOUNT_RECORDS, 0o755),
    (LAYER_TMP, 0o700),
    ("image/overlay2/imagedb", 0o700),
    ("image/overlay2/imagedb/content", 0o700),
    (IMAGE_CONFIGS, 0o700),
    ("image/overlay2/imagedb/metadata", 0o700),
    (IMAGE_METADATA, 0o700),
    ("image/overlay2/distribution", 0o700),
    ("image/overlay2/distribution/diffid-by-digest", 0o700),
    (DIFF_ID_BY_DIGEST, 0o700),
    ("image/overlay2/distribution/v2metadata-by-diffid", 0o700),
    (
        "image/overlay2/distribution/v2metadata-by-diffid/sha256",
        0o700,
    ),
    (OWN, 0o700),
    (TRANSACTIONS, 0o700),
    (FILE_INDEX, 0o700),
    (CONTAINERS, 0o700),
    (MOUNTS, 0o700),
];

/// Every directory of the layout that is the store's own, as `df` and `fsck` count them.
pub fn directories() -> impl Iterator<Item = &'static str> {
    DIRECTORIES.iter().map(|(path, _)| *path)
}

/// Mode of the root: as Docker's, others may pass through where the layers' modes let them.
const ROOT_MODE: u32 = 0o710;
/// Bytes that a record of the layout may have; the largest, a config, is far smaller.
const MAX_RECORD: u64 = 16 << 20;

/// Makes the root and what is missing in it.
pub fn ensure(disk: &Disk) -> Result<()> {
    let root = disk.root();
    if !root.is_dir() {
        if let Some(parent) = root.parent() {
            fs::create_dir_all(parent).context("making the directory", parent)?;
        }
        disk.ensure_dir("", ROOT_MODE)?;
    }
    for (path, mode) in DIRECTORIES {
        disk.ensure_dir(path, *mode)?;
    }
    Ok(())
}

/// The directory of a layer: `diff`, `link`, `lower`, `work` are in it.
pub fn layer_dir(id: &CacheId) -> PathBuf {
    Path::new(OVERLAY).join(id.as_str())
}

/// The directory of a container's layer, by its name: a cache id, for the lower of the two with `-init` behind.
pub fn container_dir(name: &str) -> PathBuf {
    Path::new(OVERLAY).join(name)
}

/// The record of a container.
pub fn mount_record(container: &str) -> PathBuf {
    Path::new(MOUNT_RECORDS).join(container)
}

/// Our own notes on a container.
pub fn container_notes(container: &str) -> PathBuf {
    Path::new(CONTAINERS).join(format!("{container}.json"))
}

/// Our own notes on what is mounted for a container or an image.
pub fn mount_notes(id: &str) -> PathBuf {
    Path::new(MOUNTS).join(format!("{id}.json"))
}

/// The tree of a layer.
pub fn layer_diff(id: &CacheId) -> PathBuf {
    layer_dir(id).join("diff")
}

/// The short link of a layer.
pub fn link(id: &LinkId) -> PathBuf {
    Path::new(LINKS).join(id.as_str())
}

/// What the short link of a layer points to.
pub fn link_target(id: &CacheId) -> String {
    format!("../{id}/diff")
}

/// The record of a layer.
pub fn layer_record(chain: &ChainId) -> PathBuf {
    Path::new(LAYER_RECORDS).join(chain.hex())
}

/// The config of an image.
pub fn image_config(id: &ImageId) -> PathBuf {
    Path::new(IMAGE_CONFIGS).join(id.digest().hex())
}

/// What else is known of an image.
pub fn image_metadata(id: &ImageId) -> PathBuf {
    Path::new(IMAGE_METADATA).join(id.digest().hex())
}

/// The diff-id of the layer whose compressed form has this digest.
pub fn diff_id_by_digest(digest: &Digest) -> PathBuf {
    Path::new(DIFF_ID_BY_DIGEST).join(digest.hex())
}

/// The index of the contents of a layer's files.
pub fn file_index(id: &CacheId) -> PathBuf {
    Path::new(FILE_INDEX).join(id.as_str())
}

/// `lower` of a layer on top of a parent: the parent's link, then the parent's own `lower`.
pub fn lower_of_child(parent: &LinkId, parents_lower: Option<&str>) -> String {
    match parents_lower {
        Some(lower) => format!("l/{parent}:{lower}"),
        None => format!("l/{parent}"),
    }
}

/// The names in a directory, sorted; none when it isn't there.
pub fn names(disk: &Disk, dir: impl AsRef<Path>) -> Result<Vec<OsString>> {
    let path = disk.path(dir);
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("listing", &path)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.context("listing", &path)?.file_name());
    }
    names.sort();
    Ok(names)
}

/// The content of a file of the layout; `None` when it isn't there.
pub fn read(disk: &Disk, path: impl AsRef<Path>) -> Result<Option<Vec<u8>>> {
    let path = disk.path(path);
    let file = match fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTDIR.raw_os_error()) => {
            return Ok(None);
        }
        other => other.context("opening", &path)?,
    };
    let mut content = Vec::new();
    file.take(MAX_RECORD + 1)
        .read_to_end(&mut content)
        .context("reading", &path)?;
    if content.len() as u64 > MAX_RECORD {
        let what = format!("{} has more than {MAX_RECORD} bytes", path.display());
        return Err(StoreError::damaged(what));
    }
    Ok(Some(content))
}

/// The content of a file of one line of text; `None` when it isn't there.
pub fn read_text(disk: &Disk, path: impl AsRef<Path>) -> Result<Option<String>> {
    let path = path.as_ref();
    let Some(content) = read(disk, path)? else {
        return Ok(None);
    };
    String::from_utf8(content)
        .map(|text| Some(text.trim_end_matches('\n').to_owned()))
        .map_err(|_| StoreError::damaged(format!("{} is no text", disk.path(path).display())))
}

/// The link of a layer's directory.
pub fn read_link_id(disk: &Disk, id: &CacheId) -> Result<Option<LinkId>> {
    parsed(disk, layer_dir(id).join("link"), |text| text.parse().ok())
}

/// The `lower` of a layer's directory; `None` for a base layer.
pub fn read_lower(disk: &Disk, id: &CacheId) -> Result<Option<String>> {
    read_text(disk, layer_dir(id).join("lower"))
}

/// What a layer's record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRecord {
    /// The digests of it and all below.
    pub chain_id: ChainId,
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// What it lies on.
    pub parent: Option<ChainId>,
    /// Its directory.
    pub cache_id: CacheId,
    /// Bytes of its files, each counted once.
    pub size: u64,
}

impl LayerRecord {
    /// The files of the record, without the tar-split: name and content.
    pub fn files(&self) -> Vec<(&'static str, String)> {
        let mut files = vec![
            ("cache-id", self.cache_id.to_string()),
            ("diff", self.diff_id.to_string()),
            ("size", self.size.to_string()),
        ];
        if let Some(parent) = &self.parent {
            files.push(("parent", parent.to_string()));
        }
        files
    }
}

/// Reads the record of a layer; `None` when there is none.
pub fn read_record(disk: &Disk, chain: &ChainId) -> Result<Option<LayerRecord>> {
    let dir = layer_record(chain);
    let Some(cache_id) = parsed(disk, dir.join("cache-id"), |text| text.parse().ok())? else {
        if disk.path(&dir).is_dir() {
            let what = format!("the record of layer {chain} has no cache-id");
            return Err(StoreError::damaged(what));
        }
        return Ok(None);
    };
    let diff_id = parsed(disk, dir.join("diff"), |text| text.parse().ok())?;
    let size = parsed(disk, dir.join("size"), |text| text.parse().ok())?;
    let (Some(diff_id), Some(size)) = (diff_id, size) else {
        let what = format!("the record of layer {chain} has no diff or no size");
        return Err(StoreError::damaged(what));
    };
    Ok(Some(LayerRecord {
        chain_id: *chain,
        diff_id,
        parent: parsed(disk, dir.join("parent"), |text| text.parse().ok())?,
        cache_id,
        size,
    }))
}

/// Reads a file of one line and parses it; one that can't be parsed is damage.
pub fn parsed<T>(
    disk: &Disk,
    path: impl AsRef<Path>,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>> {
    let path = path.as_ref();
    let Some(text) = read_text(disk, path)? else {
        return Ok(None);
    };
    match parse(&text) {
        Some(value) => Ok(Some(value)),
        None => Err(StoreError::damaged(format!(
            "{} holds {text:?}",
            disk.path(path).display()
        ))),
    }
}
