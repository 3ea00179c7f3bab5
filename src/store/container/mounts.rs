//! Notes on what is mounted: which container or image, where, by which driver. Whether it still is, only who looks
//! at the mount table can tell: notes outlive a crash, and a boot.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::store::Store;
use crate::store::error::{Context as _, Result};
use crate::store::layout;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountNotes {
    /// The container's id, or `image-` and the image's.
    pub key: String,
    /// The container or image, as people call it.
    pub what: String,
    /// Where it is mounted.
    pub target: PathBuf,
    /// `fuse` or `kernel`.
    pub driver: String,
    /// The boot during which it was mounted: none survives one.
    pub boot: String,
    /// The mount namespace that has it.
    pub namespace: String,
    /// What the mount table shows as its source.
    pub source: String,
    /// The directory was made for it.
    pub made_target: bool,
}

impl Store {
    /// All notes; those that can't be read are of no use to anybody, and left out.
    pub fn mount_notes(&self) -> Result<Vec<MountNotes>> {
        let mut all = Vec::new();
        for name in layout::names(self.disk(), layout::MOUNTS)? {
            if !name.as_encoded_bytes().ends_with(b".json") {
                continue;
            }
            let path = std::path::Path::new(layout::MOUNTS).join(name);
            let text = layout::read(self.disk(), path)?;
            all.extend(text.and_then(|text| serde_json::from_slice::<MountNotes>(&text).ok()));
        }
        Ok(all)
    }

    /// Notes a mount. They are for this boot only, and not synced.
    pub fn note_mount(&self, notes: &MountNotes) -> Result<()> {
        let path = layout::mount_notes(&notes.key);
        let text = serde_json::to_vec(notes)
            .map_err(std::io::Error::from)
            .context("writing", &path)?;
        layout::ensure(self.disk())?;
        let staged = path.with_extension(format!("{}.tmp", std::process::id()));
        self.disk().write(&staged, &text, 0o600)?;
        self.disk().rename(staged, path)
    }

    /// Forgets a mount.
    pub fn forget_mount(&self, key: &str) -> Result<()> {
        self.disk().remove_file(layout::mount_notes(key))
    }
}
