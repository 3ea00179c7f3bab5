//! The layer between an image and what a container changes: what every container has to find in its tree, as far
//! as the image doesn't have it, so that runtimes can mount over it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::store::changes::shows;
use crate::store::dedup::copy_directory_attributes;
use crate::store::disk::{Disk, Step};
use crate::store::error::{Context as _, Result};

/// What is made at a path.
enum Kind {
    Dir,
    File,
    Link(&'static str),
}

/// Docker's list.
const ENTRIES: &[(&str, Kind)] = &[
    ("dev/pts", Kind::Dir),
    ("dev/shm", Kind::Dir),
    ("proc", Kind::Dir),
    ("sys", Kind::Dir),
    (".dockerenv", Kind::File),
    ("etc/resolv.conf", Kind::File),
    ("etc/hosts", Kind::File),
    ("etc/hostname", Kind::File),
    ("dev/console", Kind::File),
    ("etc/mtab", Kind::Link("/proc/mounts")),
];
const MODE: u32 = 0o755;

/// Fills the tree at `diff`, relative to the root, over the image's trees, topmost first. Directories on the way get
/// the attributes that the image shows.
pub(super) fn fill(disk: &Disk, diff: &Path, image: &[PathBuf]) -> Result<()> {
    let mut trees = Trees::new(image);
    let mut copied = Vec::new();
    for (path, kind) in ENTRIES {
        let path = Path::new(path);
        let shown = trees.shown_at(path).is_some();
        if shown || !ensure_parents(disk, diff, &mut trees, path, &mut copied)? {
            continue;
        }
        let to = diff.join(path);
        match kind {
            Kind::Dir => disk.ensure_dir(to, MODE)?,
            Kind::File => disk.write(to, b"", MODE)?,
            Kind::Link(target) => disk.symlink(target, to)?,
        }
    }
    // Last, since what was made in them has changed their times.
    for (from, to) in copied.iter().rev() {
        disk.announce(Step::WriteFile)
            .and_then(|()| copy_directory_attributes(from, &disk.path(to)))
            .context("completing", to)?;
    }
    if let Some(root) = image.first() {
        disk.announce(Step::WriteFile)
            .and_then(|()| copy_directory_attributes(root, &disk.path(diff)))
            .context("completing", diff)?;
    }
    Ok(())
}

/// Makes the directories above a path. `false`: the image has something else there.
fn ensure_parents(
    disk: &Disk,
    diff: &Path,
    trees: &mut Trees<'_>,
    path: &Path,
    copied: &mut Vec<(PathBuf, PathBuf)>,
) -> Result<bool> {
    let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) else {
        return Ok(true);
    };
    let to = diff.join(parent);
    let shown = trees.shown_at(parent);
    if shown
        .as_ref()
        .is_some_and(|shown| !shown.symlink_metadata().is_ok_and(|m| m.is_dir()))
    {
        return Ok(false);
    }
    if disk.path(&to).is_dir() {
        return Ok(true);
    }
    disk.ensure_dir(&to, MODE)?;
    copied.extend(shown.map(|from| (from, to)));
    Ok(true)
}

/// The trees of an image, topmost first.
struct Trees<'a> {
    all: &'a [PathBuf],
    /// By names at the root: the trees that show or hide them. Few of many do.
    having: HashMap<OsString, Vec<&'a PathBuf>>,
}

impl<'a> Trees<'a> {
    fn new(all: &'a [PathBuf]) -> Trees<'a> {
        Trees {
            all,
            having: HashMap::new(),
        }
    }

    /// Where the object is that the trees show at a path.
    fn shown_at(&mut self, path: &Path) -> Option<PathBuf> {
        let top = Path::new(path.components().next()?.as_os_str());
        let all = self.all.iter();
        let having = self
            .having
            .entry(top.as_os_str().to_owned())
            .or_insert_with(|| all.filter(|tree| shows(tree, top).is_some()).collect());
        let found = having.iter().find_map(|tree| {
            let is_shown = shows(tree, path)?;
            Some(is_shown.then(|| tree.join(path)))
        });
        found.flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_topmost_tree_that_says_something_decides() {
        let scratch = tempfile::tempdir().unwrap();
        let tree = |name: &str| scratch.path().join(name);
        for dir in ["top/etc", "middle/etc/x", "bottom/etc/x", "bottom/usr"] {
            fs::create_dir_all(tree(dir)).unwrap();
        }
        fs::write(tree("top/.wh.usr"), "").unwrap();
        fs::write(tree("bottom/etc/x/deep"), "").unwrap();
        let image = [tree("top"), tree("middle"), tree("bottom")];
        let mut trees = Trees::new(&image);
        let mut shown = |path: &str| trees.shown_at(Path::new(path));
        assert_eq!(shown("etc"), Some(tree("top/etc")));
        assert_eq!(shown("etc/x"), Some(tree("middle/etc/x")));
        assert_eq!(shown("etc/x/deep"), Some(tree("bottom/etc/x/deep")));
        assert_eq!(
            (shown("usr"), shown("dev"), shown("etc/y")),
            (None, None, None)
        );
    }
}
