//! Images and their names: reading them, and planning their change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Store;
use super::config::Config;
use super::error::{Result, StoreError};
use super::ids::ImageId;
use super::layout;
use super::names::Reference;
use super::transaction::{Transaction, WriteLock};

/// `repositories.json`: which names stand for which images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repositories {
    /// By name without tag, then by name with tag or digest.
    #[serde(rename = "Repositories", default)]
    by_name: BTreeMap<String, BTreeMap<String, String>>,
}

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest of its config.
    pub id: ImageId,
    /// The config as it came.
    pub raw: Vec<u8>,
    /// What the store understands of it.
    pub config: Config,
    /// Its names, sorted.
    pub names: Vec<String>,
}

impl Repositories {
    /// Reads the file's text.
    pub fn parse(text: &[u8]) -> Result<Repositories> {
        serde_json::from_slice(text)
            .map_err(|error| StoreError::damaged(format!("{}: {error}", layout::REPOSITORIES)))
    }

    /// The file's text.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|error| StoreError::damaged(format!("{}: {error}", layout::REPOSITORIES)))
    }

    /// The image of a name.
    pub fn get(&self, name: &Reference) -> Result<Option<ImageId>> {
        let by_tag = self.by_name.get(name.name());
        by_tag
            .and_then(|by_tag| by_tag.get(&name.stored()))
            .map(|id| id.parse())
            .transpose()
    }

    /// Lets a name stand for an image; returns what it stood for.
    pub fn set(&mut self, name: &Reference, id: &ImageId) -> Option<String> {
        self.by_name
            .entry(name.name().to_owned())
            .or_default()
            .insert(name.stored(), id.to_string())
    }

    /// Takes a name away. Whether it was there.
    pub fn remove(&mut self, name: &Reference) -> bool {
        let Some(by_tag) = self.by_name.get_mut(name.name()) else {
            return false;
        };
        let was_there = by_tag.remove(&name.stored()).is_some();
        if by_tag.is_empty() {
            self.by_name.remove(name.name());
        }
        was_there
    }

    /// Takes all names of an image away, and returns them.
    pub fn remove_image(&mut self, id: &ImageId) -> Vec<String> {
        let id = id.to_string();
        let mut removed = Vec::new();
        for by_tag in self.by_name.values_mut() {
            by_tag.retain(|name, of| {
                let stays = *of != id;
                if !stays {
                    removed.push(name.clone());
                }
                stays
            });
        }
        self.by_name.retain(|_, by_tag| !by_tag.is_empty());
        removed
    }

    /// Keeps the names of images whose ids are kept.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        for by_tag in self.by_name.values_mut() {
            by_tag.retain(|_, id| keep(id));
        }
        self.by_name.retain(|_, by_tag| !by_tag.is_empty());
    }

    /// All names, each with the image's id as it is written there.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_name
            .values()
            .flatten()
            .map(|(name, id)| (name.as_str(), id.as_str()))
    }
}

impl Store {
    /// Which names stand for which images.
    pub fn repositories(&self) -> Result<Repositories> {
        match layout::read(self.disk(), layout::REPOSITORIES)? {
            Some(text) => Repositories::parse(&text),
            None => Ok(Repositories::default()),
        }
    }

    /// The ids of all images.
    pub fn image_ids(&self) -> Result<Vec<ImageId>> {
        let names = layout::names(self.disk(), layout::IMAGE_CONFIGS)?;
        Ok(names
            .iter()
            .filter_map(|name| format!("sha256:{}", name.to_str()?).parse().ok())
            .collect())
    }

    /// All images, by id.
    pub fn images(&self) -> Result<Vec<Image>> {
        let repositories = self.repositories()?;
        let mut images = Vec::new();
        for id in self.image_ids()? {
            // Another process may just have removed it.
            images.extend(self.read_image(&id, &repositories)?);
        }
        Ok(images)
    }

    /// The image with this id; `None` when there is none.
    pub fn read_image(&self, id: &ImageId, names: &Repositories) -> Result<Option<Image>> {
        let Some(raw) = layout::read(self.disk(), layout::image_config(id))? else {
            return Ok(None);
        };
        if ImageId::of_config(&raw) != *id {
            return Err(StoreError::damaged(format!(
                "the config of image {id} has another digest"
            )));
        }
        let config = Config::parse(&raw)
            .map_err(|error| StoreError::damaged(format!("image {id}: {error}")))?;
        let text = id.to_string();
        let names = names
            .iter()
            .filter(|(_, of)| **of == text)
            .map(|(name, _)| name.to_owned())
            .collect();
        Ok(Some(Image {
            id: *id,
            raw,
            config,
            names,
        }))
    }

    /// The image that a name, an id or the beginning of an id stands for, in this order, as Docker has it.
    pub fn find_image(&self, name: &str) -> Result<Image> {
        let repositories = self.repositories()?;
        let id = self.find_image_id(name, &repositories)?;
        self.read_image(&id, &repositories)?
            .ok_or_else(|| StoreError::NotFound {
                kind: "image",
                name: name.to_owned(),
            })
    }

    /// The id that a name, an id or the beginning of an id stands for.
    pub fn find_image_id(&self, name: &str, repositories: &Repositories) -> Result<ImageId> {
        if let Ok(reference) = name.parse::<Reference>()
            && let Some(id) = repositories.get(&reference)?
        {
            return Ok(id);
        }
        let ids = self.image_ids()?;
        by_prefix("image", name, ids.iter().map(|id| (id.digest().hex(), *id)))
    }

    /// Lets a name stand for an image.
    pub fn tag(&self, image: &str, name: &Reference) -> Result<ImageId> {
        if name.digest().is_some() {
            let what = format!("{name}: a digest can't be given to an image");
            return Err(StoreError::BadName(what));
        }
        let transaction = Transaction::begin(self.disk())?;
        let guard = WriteLock::take(self.disk())?;
        let mut repositories = self.repositories()?;
        let id = self.find_image_id(image, &repositories)?;
        repositories.set(name, &id);
        self.commit_repositories(transaction, guard, &repositories)?;
        Ok(id)
    }

    fn commit_repositories(
        &self,
        mut transaction: Transaction,
        guard: WriteLock,
        repositories: &Repositories,
    ) -> Result<()> {
        transaction.place_file(&repositories.encode()?, 0o600, layout::REPOSITORIES)?;
        transaction.commit(guard)
    }

    /// Takes a name of an image away, and the image with its last name; by id, the image with all its names,
    /// for which `force` is needed when it has several. Layers that no other image has go too.
    pub fn remove_image(&self, image: &str, force: bool) -> Result<Removed> {
        let mut transaction = Transaction::begin(self.disk())?;
        let guard = WriteLock::take(self.disk())?;
        let mut repositories = self.repositories()?;
        let id = self.find_image_id(image, &repositories)?;
        let reference = image.parse::<Reference>().ok();
        let named = match &reference {
            Some(reference) => repositories.get(reference)?.is_some(),
            None => false,
        };
        let mut removed = Removed::default();
        let text = id.to_string();
        let names_of = |r: &Repositories| r.iter().filter(|(_, of)| *of == text).count();
        if let Some(reference) = reference.filter(|_| named) {
            repositories.remove(&reference);
            removed.names.push(reference.stored());
        } else if names_of(&repositories) > 1 && !force {
            return Err(StoreError::InUse {
                what: format!("image {}", id.short()),
                by: "several names; remove them one by one, or use --force".into(),
            });
        } else {
            removed.names = repositories.remove_image(&id);
        }
        // Names go first: one that others see stands for an image that is there.
        if repositories != self.repositories()? {
            transaction.place_file(&repositories.encode()?, 0o600, layout::REPOSITORIES)?;
        }
        if names_of(&repositories) == 0 {
            if let Some(user) = self.container_of_image(&id)? {
                return Err(StoreError::InUse {
                    what: format!("image {}", id.short()),
                    by: format!("container {user}"),
                });
            }
            removed.image = Some(id);
            self.plan_image_removal(&mut transaction, &id);
            let keep: BTreeSet<_> = self.referenced_chains(Some(&id))?;
            removed.layers = self.plan_layer_removal(&mut transaction, &id, &keep)?;
        }
        transaction.commit(guard)?;
        Ok(removed)
    }

    /// Plans that the config of an image goes.
    pub(super) fn plan_image_removal(&self, transaction: &mut Transaction, id: &ImageId) {
        transaction.remove(layout::image_config(id));
        let metadata = layout::image_metadata(id);
        if self.disk().path(&metadata).exists() {
            transaction.remove(metadata);
        }
    }
}

/// What a removal took away.
#[derive(Debug, Default, Clone)]
pub struct Removed {
    /// Names.
    pub names: Vec<String>,
    /// The image, with its last name.
    pub image: Option<ImageId>,
    /// Layers that nothing else refers to.
    pub layers: Vec<super::ids::ChainId>,
}

/// Plans that an image's config and names are there.
pub fn plan_image(
    transaction: &mut Transaction,
    raw: &[u8],
    id: &ImageId,
    now: &str,
) -> Result<()> {
    let metadata = layout::image_metadata(id);
    let staged = transaction.fresh();
    let disk = transaction.disk().clone();
    disk.make_dir(&staged, 0o700)?;
    disk.write(staged.join("lastUpdated"), now.as_bytes(), 0o600)?;
    transaction.sync_later(staged.join("lastUpdated"));
    transaction.sync_later(&staged);
    if !disk.path(&metadata).exists() {
        transaction.place(staged, Path::new(&metadata));
    }
    transaction.place_file(raw, 0o600, layout::image_config(id))
}

/// What an id or its beginning stands for, with or without `sha256:`.
pub fn by_prefix<T>(
    kind: &'static str,
    name: &str,
    all: impl Iterator<Item = (String, T)>,
) -> Result<T> {
    let prefix = name.strip_prefix("sha256:").unwrap_or(name);
    let is_hex = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut fits: Vec<(String, T)> = all
        .filter(|(hex, _)| is_hex && hex.starts_with(prefix))
        .collect();
    if fits.len() > 1 {
        return Err(StoreError::Ambiguous {
            kind,
            prefix: prefix.to_owned(),
            fits: fits.into_iter().map(|(hex, _)| hex).collect(),
        });
    }
    fits.pop()
        .map(|(_, id)| id)
        .ok_or_else(|| StoreError::NotFound {
            kind,
            name: name.to_owned(),
        })
}
