//! What goes wrong in the store.

use std::io;
use std::path::{Path, PathBuf};

/// A failure of the store: what was being done, to what, and why it failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call on a file of the store, or on an archive, failed.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done: a verb with its preposition.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// An archive that is not what it should be.
    #[error("bad archive: {0}")]
    Archive(String),
    /// A layer of an archive could not be taken in.
    #[error("layer {layer}: {reason}")]
    Layer {
        /// The name in the archive, or the diff-id.
        layer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tree can't be made an archive of.
    #[error("{0}")]
    Archiving(String),
    /// The store contradicts itself.
    #[error("the store is damaged: {0}; `rovl store fsck` says more")]
    Damaged(String),
    /// What was asked for by name is not there.
    #[error("no such {kind}: {name}")]
    NotFound {
        /// `image` or `layer`.
        kind: &'static str,
        /// As it was asked for.
        name: String,
    },
    /// A prefix of an id that fits several.
    #[error("{kind} id {prefix} is ambiguous: it fits {}", fits.join(", "))]
    Ambiguous {
        /// `image` or `layer`.
        kind: &'static str,
        /// As it was given.
        prefix: String,
        /// The ids that it fits.
        fits: Vec<String>,
    },
    /// What was to be removed is used.
    #[error("{what} is in use: {by}")]
    InUse {
        /// What was to be removed.
        what: String,
        /// Who uses it.
        by: String,
    },
    /// A name or id that can't be one.
    #[error("{0}")]
    BadName(String),
}

/// What the store's functions return.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Adds what was being done to the error of a system call.
pub trait Context<T> {
    /// `doing` is a verb with its preposition, as in "writing".
    fn context(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: &'static str, path: impl AsRef<Path>) -> Result<T> {
        self.map_err(|source| StoreError::Io {
            doing,
            path: path.as_ref().to_owned(),
            source: source.into(),
        })
    }
}

impl StoreError {
    /// A contradiction in the store.
    pub fn damaged(what: impl Into<String>) -> StoreError {
        StoreError::Damaged(what.into())
    }

    /// A fault of an archive.
    pub fn archive(what: impl Into<String>) -> StoreError {
        StoreError::Archive(what.into())
    }

    /// A fault of a layer of an archive.
    pub fn layer(layer: impl Into<String>, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Layer {
            layer: layer.into(),
            reason: reason.to_string(),
        }
    }
}
