//! The layers of a container, open, and what they say: changes, archives.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Container;
use crate::store::Store;
use crate::store::changes::Change;
use crate::store::error::{Context as _, Result, StoreError};
use crate::store::layers::Hold;
use crate::store::layout;
use crate::store::lock::Lock;
use crate::store::pack::{self, Extent, Options, PackError, Summary, UpperLayers};

/// A container's upper and lowers, kept from being removed.
#[derive(Debug)]
pub struct Tree {
    layers: UpperLayers,
    _hold: Hold,
    _lock: Lock,
}

impl Store {
    /// The trees of a container below its upper, topmost first: `-init`, then the image's.
    pub fn container_lowers(&self, container: &Container) -> Result<Vec<PathBuf>> {
        let init = layout::container_dir(&container.init_id).join("diff");
        let mut lowers = vec![self.disk().path(init)];
        if let Some(parent) = &container.parent {
            for layer in self.chain_of(parent)? {
                lowers.push(self.disk().path(layout::layer_diff(&layer.cache_id)));
            }
        }
        Ok(lowers)
    }

    /// Opens the layers of a container.
    pub fn container_tree(&self, container: &Container) -> Result<Tree> {
        let lock = self.hold_container(container)?;
        let hold = match &container.parent {
            Some(parent) => self.hold(&self.chain_of(parent)?)?,
            None => Hold::default(),
        };
        let open =
            |path: &Path| -> Result<_> { Ok(File::open(path).context("opening", path)?.into()) };
        let index = self.disk().path(container.dir().join("work/index"));
        let index = match File::open(&index) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            other => Some(other.context("opening", &index)?.into()),
        };
        let lowers = self.container_lowers(container)?;
        Ok(Tree {
            layers: UpperLayers {
                upper: open(&self.disk().path(container.upper()))?,
                lowers: lowers
                    .iter()
                    .map(|path| open(path))
                    .collect::<Result<_>>()?,
                index,
            },
            _hold: hold,
            _lock: lock,
        })
    }
}

impl Tree {
    /// What the container has changed, sorted by path.
    pub fn changes(&self, options: &Options) -> Result<Vec<Change>> {
        pack::list_upper(&self.layers, options).map_err(failed)
    }

    /// Writes what the container has changed, or its whole tree, as a tar.
    pub fn pack(&self, extent: Extent, options: &Options, out: impl Write) -> Result<Summary> {
        pack::pack_upper(&self.layers, extent, options, out, None).map_err(failed)
    }
}

fn failed(error: PackError) -> StoreError {
    StoreError::Archiving(super::super::stage::chain_of_reasons(&error))
}
