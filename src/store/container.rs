//! Containers: a writable layer over an image, as Docker's overlay2 driver lays it out.
//!
//! A container is two directories in `overlay2/`: `<mount-id>-init`, with what every container has to find in its
//! tree, and `<mount-id>`, which takes all changes; and a record in `layerdb/mounts/`, which names both and the
//! image's topmost layer. Names, and the image that it was made of, are notes of our own in `rovl/containers/`: a
//! container whose notes are lost has no name, and is whole otherwise.
//!
//! Who uses a container holds the shared lock on its `link`, as with a layer.

pub mod change;
pub mod commit;
mod create;
mod init;
pub mod mounts;
mod name;
mod tree;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Store;
use super::error::{Result, StoreError};
use super::ids::{ChainId, ImageId};
use super::images::by_prefix;
use super::layers::MountRecord;
use super::layout;
use super::lock::{self, Lock};
use super::transaction::{Transaction, WriteLock};

pub use create::NewContainer;
pub use name::ContainerName;
pub use tree::Tree;

/// How often, and after which time, the lock of a container is tried again.
const ATTEMPTS: u32 = 20;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(2);

/// What Docker's layout doesn't say of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Its name.
    pub name: String,
    /// The image's id.
    pub image: String,
    /// The image, as it was asked for.
    pub image_name: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// It goes as soon as nobody uses it any more.
    #[serde(default)]
    pub ephemeral: bool,
    /// How it is run: what `run` was given, for a commit.
    #[serde(default)]
    pub config: Option<serde_json::Value>,
}

/// A container.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id: 64 hex digits.
    pub id: String,
    /// The name of its writable directory.
    pub mount_id: String,
    /// The name of the directory between that and the image.
    pub init_id: String,
    /// The image's topmost layer.
    pub parent: Option<ChainId>,
    /// What is known of it besides.
    pub notes: Option<Notes>,
}

impl Container {
    /// Its name; that of Docker's containers is not in the store.
    pub fn name(&self) -> &str {
        self.notes.as_ref().map_or("", |notes| notes.name.as_str())
    }

    /// The first 12 digits of its id.
    pub fn short(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    /// The id of its image, if that is known.
    pub fn image(&self) -> Option<ImageId> {
        self.notes.as_ref()?.image.parse().ok()
    }

    /// Its writable tree, relative to the root.
    pub fn upper(&self) -> PathBuf {
        self.dir().join("diff")
    }

    /// Its directory, relative to the root.
    pub fn dir(&self) -> PathBuf {
        layout::container_dir(&self.mount_id)
    }
}

impl Store {
    /// All containers, the newest first as far as that is known.
    pub fn containers(&self) -> Result<Vec<Container>> {
        let mut containers = Vec::new();
        for record in self.mount_records()? {
            containers.extend(self.container_of(record)?);
        }
        let created = |c: &Container| c.notes.as_ref().map(|notes| notes.created.clone());
        containers.sort_by(|a, b| created(b).cmp(&created(a)).then(a.id.cmp(&b.id)));
        Ok(containers)
    }

    /// None: the record is not complete, since the container is just being removed.
    fn container_of(&self, record: MountRecord) -> Result<Option<Container>> {
        let (Some(mount_id), Some(init_id)) = (record.mount_id, record.init_id) else {
            return Ok(None);
        };
        if !is_entry(&mount_id) || !is_entry(&init_id) {
            let what = format!("the record of container {} names a path", record.container);
            return Err(StoreError::damaged(what));
        }
        let notes = layout::read(self.disk(), layout::container_notes(&record.container))?;
        Ok(Some(Container {
            notes: notes.and_then(|text| serde_json::from_slice(&text).ok()),
            id: record.container,
            mount_id,
            init_id,
            parent: record.parent,
        }))
    }

    /// The container that an id, a name or the beginning of an id stands for, in this order, as Docker has it.
    pub fn find_container(&self, wanted: &str) -> Result<Container> {
        let containers = self.containers()?;
        let name = wanted.strip_prefix('/').unwrap_or(wanted);
        let exact = containers
            .iter()
            .find(|container| container.id == wanted)
            .or_else(|| {
                let named = |c: &&Container| !name.is_empty() && c.name() == name;
                containers.iter().find(named)
            });
        match exact {
            Some(container) => Ok(container.clone()),
            None => {
                let ids = containers.iter().map(|c| (c.id.clone(), c));
                by_prefix("container", wanted, ids).cloned()
            }
        }
    }

    /// Keeps a container from being removed.
    pub fn hold_container(&self, container: &Container) -> Result<Lock> {
        let gone = || StoreError::NotFound {
            kind: "container",
            name: container.id.clone(),
        };
        let path = self.disk().path(container.dir().join("link"));
        for _ in 0..ATTEMPTS {
            if let Some(lock) = lock::try_shared(&path)? {
                return match path.exists() {
                    true => Ok(lock),
                    false => Err(gone()),
                };
            }
            // Somebody removes it, or only looks whether it is in use.
            std::thread::sleep(PAUSE);
        }
        Err(gone())
    }

    /// Whether nobody uses a container, as far as locks tell.
    pub fn is_container_free(&self, container: &Container) -> Result<bool> {
        let path = self.disk().path(container.dir().join("link"));
        Ok(!path.exists() || lock::try_exclusive(&path)?.is_some())
    }

    /// Removes a container that nobody uses.
    pub fn remove_container(&self, container: &Container) -> Result<()> {
        let mut transaction = Transaction::begin(self.disk())?;
        let guard = WriteLock::take(self.disk())?;
        if !self.plan_container_removal(&mut transaction, container)? {
            return Err(StoreError::InUse {
                what: format!("container {}", container.short()),
                by: "it is mounted, or something runs in it; use --force to end that".into(),
            });
        }
        transaction.commit(guard)
    }

    /// Removes the containers that were to go with their last user, and whose users have died before they could
    /// see to that. Returns their ids.
    pub fn remove_abandoned_containers(&self) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for container in self.containers()? {
            let is_ephemeral = container.notes.as_ref().is_some_and(|n| n.ephemeral);
            if !is_ephemeral || !self.is_container_free(&container)? {
                continue;
            }
            match self.remove_container(&container) {
                Ok(()) => removed.push(container.id),
                // Somebody else was faster, or began to use it.
                Err(StoreError::InUse { .. } | StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// `false`: it is in use.
    fn plan_container_removal(
        &self,
        transaction: &mut Transaction,
        container: &Container,
    ) -> Result<bool> {
        let disk = self.disk();
        let record = layout::mount_record(&container.id);
        if !disk.path(&record).exists() {
            return Err(StoreError::NotFound {
                kind: "container",
                name: container.id.clone(),
            });
        }
        let link = disk.path(container.dir().join("link"));
        if link.exists() {
            match lock::try_exclusive(&link)? {
                Some(lock) => transaction.keep_until_committed(vec![Some(lock)]),
                None => return Ok(false),
            }
        }
        if super::layers::mounted_text().contains(&format!("{}/diff", container.mount_id)) {
            return Ok(false);
        }
        // The record first: a container with a record is whole.
        transaction.remove(record);
        for notes in [
            layout::container_notes(&container.id),
            layout::mount_notes(&container.id),
        ] {
            if disk.path(&notes).exists() {
                transaction.remove(notes);
            }
        }
        for name in [&container.mount_id, &container.init_id] {
            let dir = layout::container_dir(name);
            if let Ok(Some(link)) = layout::read_text(disk, dir.join("link"))
                && is_entry(&link)
            {
                transaction.remove(Path::new(layout::LINKS).join(link));
            }
            if disk.path(&dir).exists() {
                transaction.remove(dir);
            }
        }
        Ok(true)
    }
}

/// Whether a text of a record is the name of an entry, and no path to anywhere else.
fn is_entry(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}
