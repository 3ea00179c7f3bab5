//! The changes of an upper, as an archive and as a list.

use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::attrs::{Attributes, Reader};
use super::merged::{At, Explorer, Found, Visitor};
use super::output::Output;
use super::walk::Walk;
use super::{Extent, Failure, Options, PackError, Summary, UpperLayers};
use crate::store::changes::{Change, ChangeKind};

/// Writes what an upper changes, or all that is shown, as an uncompressed layer to `out`, and its tar-split record
/// (JSON lines) to `tar_split`. `out` should be buffered. Only the upper is walked, and of the layers below what a
/// redirect leads to; with `Extent::Everything` all.
///
/// # Errors
/// See [`PackError`]; a file that can't be read is one.
pub fn pack_upper(
    layers: &UpperLayers,
    extent: Extent,
    options: &Options,
    out: impl Write,
    tar_split: Option<&mut dyn Write>,
) -> Result<Summary, PackError> {
    let explorer = Explorer::new(layers, options)?;
    let mut packer = Packer(Walk::new(options, Output::new(out, tar_split)));
    match extent {
        Extent::Difference => explorer.difference(&mut packer)?,
        Extent::Everything => explorer.everything(&mut packer)?,
    }
    packer.0.finish()
}

/// What an upper changes, sorted by path: what `docker diff` shows. A directory that is in upper only because of
/// what is in it counts as changed, one that is there for nothing doesn't count.
///
/// # Errors
/// See [`PackError`].
pub fn list_upper(layers: &UpperLayers, options: &Options) -> Result<Vec<Change>, PackError> {
    let explorer = Explorer::new(layers, options)?;
    let mut lister = Lister {
        reader: explorer.reader(),
        found: Vec::new(),
    };
    explorer.difference(&mut lister)?;
    let mut changes: Vec<Change> = Vec::new();
    // From the end: what is in a directory comes behind it.
    for (change, is_same) in lister.found.into_iter().rev() {
        let has_changes = || {
            let next = changes.last();
            next.is_some_and(|next| next.path.starts_with(&change.path))
        };
        if !is_same || has_changes() {
            changes.push(change);
        }
    }
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

struct Packer<'a, 'r, W>(Walk<'a, 'r, W>);

impl<W: Write> Visitor for Packer<'_, '_, W> {
    fn directory(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        _: &Found,
        opaque: bool,
    ) -> Result<(), Failure> {
        self.0.directory_entry(path, attributes)?;
        if opaque {
            let dir = if path == b"./" { b"" } else { path };
            self.0.opaque_mark(dir)?;
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        path: &[u8],
        from: At<'_>,
        data: At<'_>,
        attributes: &Attributes,
        _: &Found,
    ) -> Result<(), Failure> {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        if name.starts_with(crate::format::whiteout::WHITEOUT_PREFIX) {
            return Err(super::PackProblem::WhiteoutName.into());
        }
        self.0.leaf(from, data, path, attributes)
    }

    fn whiteout(&mut self, dir: &[u8], name: &[u8], hidden: bool) -> Result<(), Failure> {
        match hidden {
            true => Ok(()),
            false => self.0.whiteout(dir, name),
        }
    }
}

struct Lister<'a, 'o> {
    reader: &'a Reader<'o>,
    /// With whether it is a directory whose attributes are those of the base.
    found: Vec<(Change, bool)>,
}

impl Lister<'_, '_> {
    fn add(&mut self, kind: ChangeKind, path: &[u8], is_same: bool) {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        let path = Path::new("/").join(OsStr::from_bytes(path));
        self.found.push((Change { kind, path }, is_same));
    }

    fn is_same(&self, attributes: &Attributes, base: &Found) -> Result<bool, Failure> {
        let Found::Dirs(dirs) = base else {
            return Ok(false);
        };
        let Some(below) = dirs.first() else {
            return Ok(false);
        };
        let below = self.reader.read(below.fd.as_fd(), b"")?;
        let of = |a: &Attributes| (a.mode, a.uid, a.gid, a.mtime);
        Ok(of(&below) == of(attributes) && below.xattrs == attributes.xattrs)
    }
}

impl Visitor for Lister<'_, '_> {
    fn directory(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
        base: &Found,
        _: bool,
    ) -> Result<(), Failure> {
        if path == b"./" {
            return Ok(());
        }
        let is_same = self.is_same(attributes, base)?;
        self.add(kind_over(base), path, is_same);
        Ok(())
    }

    fn leaf(
        &mut self,
        path: &[u8],
        _: At<'_>,
        _: At<'_>,
        _: &Attributes,
        base: &Found,
    ) -> Result<(), Failure> {
        self.add(kind_over(base), path, false);
        Ok(())
    }

    fn whiteout(&mut self, dir: &[u8], name: &[u8], _: bool) -> Result<(), Failure> {
        let path: PathBuf = [dir, name].map(OsStr::from_bytes).iter().collect();
        self.add(ChangeKind::Deleted, path.as_os_str().as_bytes(), false);
        Ok(())
    }
}

fn kind_over(base: &Found) -> ChangeKind {
    match base.is_something() {
        true => ChangeKind::Changed,
        false => ChangeKind::Added,
    }
}
