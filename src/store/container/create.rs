//! Making a container: built in a transaction's directory, synced as a whole, shown at once.

use std::path::{Path, PathBuf};

use super::name::ContainerName;
use super::{Container, Notes, init};
use crate::store::Store;
use crate::store::dedup::copy_directory_attributes;
use crate::store::disk::Step;
use crate::store::error::{Context as _, Result, StoreError};
use crate::store::ids::{CacheId, ChainId, LinkId, random_hex};
use crate::store::images::Image;
use crate::store::layout;
use crate::store::lock::{self, Lock};
use crate::store::time;
use crate::store::transaction::{Transaction, WriteLock};

/// How often a name is drawn that nobody has.
const DRAWS: usize = 64;

/// What a new container is to be.
#[derive(Debug, Clone, Default)]
pub struct NewContainer {
    /// Its id; drawn if not given.
    pub id: Option<CacheId>,
    /// Its name; drawn if not given.
    pub name: Option<ContainerName>,
    /// It goes as soon as nobody uses it any more.
    pub ephemeral: bool,
    /// How it is run.
    pub config: Option<serde_json::Value>,
}

/// What a container lies on.
struct Base {
    chain: Option<ChainId>,
    cache_id: Option<CacheId>,
    /// The `lower` of what lies on it.
    lower: Option<String>,
    /// The trees, topmost first.
    trees: Vec<PathBuf>,
}

/// One of the two directories, and its link.
struct Staged {
    name: String,
    dir: PathBuf,
    link_id: LinkId,
    link: PathBuf,
}

impl Store {
    /// Makes a container over the image that a name or an id stands for. The lock keeps it from being removed.
    pub fn create_container(&self, image: &str, new: NewContainer) -> Result<(Container, Lock)> {
        let mut transaction = Transaction::begin(self.disk())?;
        let image_name = image;
        let image = self.find_image(image)?;
        let base = self.base_of(&image)?;
        let id = match new.id {
            Some(id) => id,
            None => CacheId::random()?,
        };
        let mount_id = CacheId::random()?;
        let below = format!("{mount_id}-init");
        let lower = base.lower.as_deref();
        let below = self.stage(&transaction, &base, below, lower)?;
        init::fill(self.disk(), &below.dir.join("diff"), &base.trees)?;
        let lower = layout::lower_of_child(&below.link_id, base.lower.as_deref());
        let top = self.stage(&transaction, &base, mount_id.to_string(), Some(&lower))?;
        let lock = lock::try_shared(&self.disk().path(top.dir.join("link")))?;
        let lock = lock.ok_or_else(|| StoreError::damaged("a new container is locked"))?;

        let guard = WriteLock::take(self.disk())?;
        // The image may have gone meanwhile; nothing goes from here on.
        self.find_image(&image.id.to_string())?;
        let notes = Notes {
            name: self.free_name(new.name)?.to_string(),
            image: image.id.to_string(),
            image_name: image_name.to_owned(),
            created: time::now(),
            ephemeral: new.ephemeral,
            config: new.config,
        };
        let container = Container {
            id: id.to_string(),
            mount_id: top.name.clone(),
            init_id: below.name.clone(),
            parent: base.chain,
            notes: Some(notes),
        };
        self.place_container(&mut transaction, &container, &base, [below, top])?;
        transaction.commit(guard)?;
        Ok((container, lock))
    }

    fn base_of(&self, image: &Image) -> Result<Base> {
        let Some(chain) = image.config.chain_ids()?.last().copied() else {
            return Ok(Base {
                chain: None,
                cache_id: None,
                lower: None,
                trees: Vec::new(),
            });
        };
        let layers = self.chain_of(&chain)?;
        let top = layers.first().map(|layer| layer.cache_id.clone());
        let lower = match &top {
            None => None,
            Some(id) => {
                let link = layout::read_link_id(self.disk(), id)?
                    .ok_or_else(|| StoreError::damaged(format!("layer {chain} has no link")))?;
                let own = layout::read_lower(self.disk(), id)?;
                Some(layout::lower_of_child(&link, own.as_deref()))
            }
        };
        let tree = |id| self.disk().path(layout::layer_diff(id));
        Ok(Base {
            chain: Some(chain),
            cache_id: top,
            lower,
            trees: layers.iter().map(|layer| tree(&layer.cache_id)).collect(),
        })
    }

    /// Builds a directory with `diff`, `link`, and, over something, `lower` and `work`.
    fn stage(
        &self,
        transaction: &Transaction,
        base: &Base,
        name: String,
        lower: Option<&str>,
    ) -> Result<Staged> {
        let disk = self.disk();
        let (dir, link_id) = (transaction.join(&name), LinkId::random()?);
        disk.make_dir(&dir, 0o710)?;
        let diff = dir.join("diff");
        disk.make_dir(&diff, 0o755)?;
        // The root of the merged tree has the attributes of the topmost root.
        if let Some(below) = base.trees.first() {
            disk.announce(Step::WriteFile)
                .and_then(|()| copy_directory_attributes(below, &disk.path(&diff)))
                .context("completing", &diff)?;
        }
        disk.write(dir.join("link"), link_id.as_str().as_bytes(), 0o644)?;
        if let Some(lower) = lower {
            disk.write(dir.join("lower"), lower.as_bytes(), 0o644)?;
            disk.make_dir(dir.join("work"), 0o700)?;
        }
        let link = transaction.join(format!("{name}.l"));
        disk.symlink(format!("../{name}/diff"), &link)?;
        Ok(Staged {
            name,
            dir,
            link_id,
            link,
        })
    }

    /// Notes all files that have content, and all directories, of a tree in the making to be synced.
    fn sync_tree_later(&self, transaction: &mut Transaction, tree: &Path) -> Result<()> {
        let mut todo = vec![tree.to_owned()];
        while let Some(dir) = todo.pop() {
            for name in layout::names(self.disk(), &dir)? {
                let path = dir.join(name);
                let metadata = self.disk().path(&path).symlink_metadata();
                let metadata = metadata.context("looking at", &path)?;
                if metadata.is_dir() {
                    todo.push(path);
                } else if metadata.is_file() && metadata.len() > 0 {
                    transaction.sync_later(path);
                }
            }
            transaction.sync_later(dir);
        }
        Ok(())
    }

    /// The name that was asked for, unless another container has it; or one that nobody has.
    fn free_name(&self, wanted: Option<ContainerName>) -> Result<ContainerName> {
        let containers = self.containers()?;
        let owner = |name: &ContainerName| containers.iter().find(|c| c.name() == name.as_str());
        if let Some(name) = wanted {
            return match owner(&name) {
                None => Ok(name),
                Some(other) => Err(StoreError::InUse {
                    what: format!("the name {name}"),
                    by: format!("container {}", other.short()),
                }),
            };
        }
        for _ in 0..DRAWS {
            let name = ContainerName::random()?;
            if owner(&name).is_none() {
                return Ok(name);
            }
        }
        let name = format!("container_{}", random_hex::<8>()?);
        name.parse()
    }

    /// Plans where everything goes: directories, links, the mark in the image's layer, notes, then the record that
    /// makes it a container.
    fn place_container(
        &self,
        transaction: &mut Transaction,
        container: &Container,
        base: &Base,
        staged: [Staged; 2],
    ) -> Result<()> {
        let disk = self.disk();
        let notes = serde_json::to_vec(&container.notes)
            .map_err(std::io::Error::from)
            .context("writing", layout::container_notes(&container.id))?;
        let record = transaction.fresh();
        disk.make_dir(&record, 0o755)?;
        let parent = container.parent.map(|parent| parent.to_string());
        for (name, text) in [
            ("mount-id", Some(&container.mount_id)),
            ("init-id", Some(&container.init_id)),
            ("parent", parent.as_ref()),
        ] {
            if let Some(text) = text {
                disk.write(record.join(name), text.as_bytes(), 0o644)?;
            }
        }
        self.sync_tree_later(transaction, &record)?;
        if let Some(below) = staged.first() {
            disk.write(below.dir.join("committed"), b"", 0o600)?;
        }
        for staged in &staged {
            self.sync_tree_later(transaction, &staged.dir)?;
            transaction.place(&staged.dir, layout::container_dir(&staged.name));
        }
        for staged in &staged {
            transaction.place(&staged.link, layout::link(&staged.link_id));
        }
        if let Some(id) = &base.cache_id {
            let mark = layout::layer_dir(id).join("committed");
            if !disk.path(&mark).exists() {
                transaction.place_file(b"", 0o600, mark)?;
            }
        }
        transaction.place_file(&notes, 0o600, layout::container_notes(&container.id))?;
        transaction.place(record, layout::mount_record(&container.id));
        Ok(())
    }
}
