//! Directories that a layer's tar has things in but doesn't describe.
//!
//! umoci, for one, writes `d/.wh.f` without an entry for `d`. The directory has to be in the layer's tree then, and
//! its attributes hide those of the layers below: so it gets theirs, as overlayfs does when it copies a directory
//! up. Without layers below that show it, it is 0755 and root's.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::store::changes::{is_opaque, shows};
use crate::store::dedup::copy_directory_attributes;
use crate::store::disk::{Disk, Step};
use crate::store::error::{Context as _, Result};

/// Gives the implied directories of `tree` the attributes that the layers below, topmost first, show.
pub(super) fn inherit(
    disk: &Disk,
    tree: &Path,
    implied: &[Vec<u8>],
    below: &[PathBuf],
) -> Result<()> {
    for path in implied {
        let path = Path::new(OsStr::from_bytes(path));
        if is_cut_off(tree, path) {
            continue;
        }
        let shown = below
            .iter()
            .find_map(|tree| shows(tree, path).map(|shown| shown.then(|| tree.join(path))));
        if let Some(Some(from)) = shown
            && from
                .symlink_metadata()
                .is_ok_and(|metadata| metadata.is_dir())
        {
            let to = tree.join(path);
            disk.announce(Step::Unpack)
                .and_then(|()| copy_directory_attributes(&from, &to))
                .context("completing", to)?;
        }
    }
    Ok(())
}

/// Whether the layer itself hides what is below at this path: a directory on the way is opaque.
fn is_cut_off(tree: &Path, path: &Path) -> bool {
    path.ancestors()
        .any(|ancestor| is_opaque(&tree.join(ancestor)))
}
