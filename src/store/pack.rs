//! A directory, such as an upper, into a layer's archive.
//!
//! The walk is sorted by name, a directory before what is in it; the same tree always gives the same
//! bytes. Whiteouts come out with time 0 and mode 0600, whatever they have on disk; holes come out as
//! plain data.
//!
//! What only exists together with the layers below can't be packed from the directory alone: for
//! [`pack`] a file without its data (`overlay.metacopy`) and a directory that was renamed
//! (`overlay.redirect`) are errors; [`pack_upper`] finds both in the layers below.

mod attrs;
mod links;
mod merged;
mod output;
mod upper;
mod walk;

use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::format::keys::Namespace;
use crate::store::codec::digest::DiffId;
use crate::store::codec::tar::shown;
use crate::store::unpack::IdMap;

/// How to pack.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where overlay keeps its attributes.
    pub namespace: Namespace,
    /// Whether `.wh.` files are whiteouts, rather than files of that name (which are an error: no
    /// layer can hold them).
    pub aufs_whiteouts: bool,
    /// The map that the tree was unpacked with: owners on disk become what they were in the archive.
    pub ids: IdMap,
    /// Read `user.containers.override_stat`.
    pub override_stat: bool,
    /// Times later than this, in seconds since 1970, become this: `SOURCE_DATE_EPOCH`.
    pub latest: Option<i64>,
    /// Others may be writing: a file has the length that it had when it was looked at, what has become shorter
    /// ends with zeros, and what is gone is left out.
    pub live: bool,
}

impl Options {
    /// For a store of this namespace: no `.wh.` files, owners and times as they are.
    pub fn new(namespace: Namespace) -> Options {
        Options {
            namespace,
            aufs_whiteouts: false,
            ids: IdMap::default(),
            override_stat: false,
            latest: None,
            live: false,
        }
    }
}

/// What was packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Digest of the archive.
    pub diff_id: DiffId,
    /// Bytes of the archive.
    pub tar_bytes: u64,
    /// Entries, whiteouts included.
    pub entries: u64,
    /// Bytes of regular files, hard links once.
    pub bytes: u64,
    /// Sockets, which no archive can hold.
    pub sockets: u64,
}

/// What of a tree can't be in a layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackProblem {
    /// A name that begins with `.wh.`.
    #[error("no layer can hold a name that begins with `.wh.`")]
    WhiteoutName,
    /// The name is too long for the whiteout's prefix.
    #[error("a whiteout whose name is longer than 251 bytes")]
    LongWhiteout,
    /// `overlay.metacopy`.
    #[error("its data is in a layer below (metacopy): copy it up first")]
    Metacopy,
    /// `overlay.redirect`.
    #[error("a renamed directory whose content is in a layer below (redirect): copy it up first")]
    Redirect,
    /// It changed while it was read.
    #[error("it changed while it was packed")]
    Changed,
    /// An owner on disk outside of the id map.
    #[error("owner {0}:{1} on disk is not in the id map")]
    Unmapped(u32, u32),
    /// An ACL that is none, or with ids outside of the id map.
    #[error("an ACL that is not valid, or with ids outside of the id map")]
    Acl,
    /// An override that is none.
    #[error("its override_stat attribute is not valid")]
    OverrideStat,
}

/// Why a directory can't be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Something can't be in a layer.
    #[error("can't pack {path}: {problem}")]
    Object {
        /// Where it is, from the root of the tree.
        path: String,
        /// What is wrong.
        problem: PackProblem,
    },
    /// Something can't be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// Where it is, from the root of the tree.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Writing the archive or its record failed.
    #[error("can't write the archive: {0}")]
    Write(#[source] io::Error),
}

/// What goes wrong with one object.
#[derive(Debug)]
enum Failure {
    Problem(PackProblem),
    Read(io::Error),
    Write(io::Error),
}

impl Failure {
    fn at(self, path: &[u8]) -> PackError {
        let path = shown(path);
        match self {
            Failure::Problem(problem) => PackError::Object { path, problem },
            Failure::Read(source) => PackError::Read { path, source },
            Failure::Write(source) => PackError::Write(source),
        }
    }
}

impl From<PackProblem> for Failure {
    fn from(problem: PackProblem) -> Failure {
        Failure::Problem(problem)
    }
}

impl From<rustix::io::Errno> for Failure {
    fn from(errno: rustix::io::Errno) -> Failure {
        Failure::Read(errno.into())
    }
}

/// An upper and what it lies on.
#[derive(Debug)]
pub struct UpperLayers {
    /// The upper.
    pub upper: OwnedFd,
    /// The layers below, topmost first.
    pub lowers: Vec<OwnedFd>,
    /// `work/index`, if there is one.
    pub index: Option<OwnedFd>,
}

/// What of an upper and its layers is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What upper changes.
    Difference,
    /// All that both show: a flat tree, without whiteouts.
    Everything,
}

pub use upper::{list_upper, pack_upper};

/// Writes the tree of `root` as an uncompressed layer to `out`, and its tar-split record (JSON lines)
/// to `tar_split`. `out` should be buffered.
///
/// # Errors
/// See [`PackError`]; a file that can't be read, or changes meanwhile, is one.
pub fn pack(
    root: BorrowedFd<'_>,
    options: &Options,
    out: impl Write,
    tar_split: Option<&mut dyn Write>,
) -> Result<Summary, PackError> {
    let mut walk = walk::Walk::new(options, output::Output::new(out, tar_split));
    walk.root(root)?;
    walk.finish()
}
