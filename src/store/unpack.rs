//! A layer's archive into a directory, by the rules of the OCI image specification.

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use crate::format::keys::Namespace;
use crate::store::codec::compress::Compressed;
use crate::store::codec::digest::{DiffId, Digest};
use crate::store::codec::tar::Time;

/// How a whiteout is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhiteoutForm {
    /// A character device 0:0; opaque directories have `overlay.opaque=y`.
    Device,
    /// An empty file with `overlay.whiteout`, in a directory with `overlay.opaque=x`.
    Xattr,
    /// `.wh.NAME`; opaque directories have a `.wh..wh..opq`.
    Aufs,
}

/// What becomes of an owner, group or device that can't be given to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is an error.
    Error,
    /// Owners stay those of the caller (`--ignore-chown-errors`). A device is still an error.
    IgnoreOwner,
    /// Owner, mode and type go into `user.containers.override_stat` of every file.
    OverrideStat,
}

/// What becomes of extended attributes that the file system or the kernel refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedXattrs {
    /// It is an error.
    Error,
    /// `trusted.*` and `security.*` other than `security.capability` are left out and counted;
    /// others are errors.
    Drop,
}

/// One range of an id map: `count` ids from `container` on become those from `host` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first id in the archive.
    pub container: u32,
    /// What it becomes on disk.
    pub host: u32,
    /// How many follow one another.
    pub count: u32,
}

/// Owners in the archive to owners on disk. Empty: as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// For users.
    pub uids: Vec<IdRange>,
    /// For groups.
    pub gids: Vec<IdRange>,
}

/// What the store wants of a regular file that was unpacked.
#[derive(Clone, Debug)]
pub struct FileFacts<'a> {
    /// As the archive names it, cleaned: no leading slash, no `.`.
    pub path: &'a [u8],
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the content, holes as zeros. `None` unless [`Options::hash_files`].
    pub digest: Option<Digest>,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Owner on disk.
    pub uid: u32,
    /// Group on disk.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes as they are stored.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Told of regular files, on the threads that write them, in no order.
pub trait FileSink: Sync {
    /// Before a file is created whose content is known already (up to some 100 KiB): may put an
    /// equal one at `name` in `dir`, attributes and all, and answer `true`; nothing is written then.
    ///
    /// # Errors
    /// End the unpacking.
    fn place(&self, file: &FileFacts<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool>;

    /// After a file was written and has its attributes. Not called when [`place`](Self::place)
    /// answered `true`. `dir` and `name` are where it is.
    ///
    /// # Errors
    /// End the unpacking.
    fn written(&self, file: &FileFacts<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()>;
}

/// How to unpack.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the archive may cost.
    pub budgets: super::codec::budget::Budgets,
    /// Where overlay keeps its attributes.
    pub namespace: Namespace,
    /// How whiteouts are written.
    pub whiteouts: WhiteoutForm,
    /// How, when making a character device 0:0 is refused; `None`: that is an error.
    pub whiteout_fallback: Option<WhiteoutForm>,
    /// Owners and devices that can't be had.
    pub refused: Refused,
    /// Attributes that can't be had.
    pub refused_xattrs: RefusedXattrs,
    /// Owners in the archive to owners on disk.
    pub ids: IdMap,
    /// Compute the SHA-256 of every regular file.
    pub hash_files: bool,
    /// Threads that write files, at least 1.
    pub writers: usize,
}

/// What was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The compressed stream: form, digest, bytes.
    pub source: Compressed,
    /// Digest of the uncompressed stream, to its very end.
    pub diff_id: DiffId,
    /// Bytes of the uncompressed stream.
    pub tar_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Regular files.
    pub files: u64,
    /// Bytes of regular files, as Docker counts a layer's `size`: hard links once.
    pub bytes: u64,
    /// Whiteouts made.
    pub whiteouts: u64,
    /// Attributes left out: `security.selinux`, those that only an overlay may set, refused ones.
    pub dropped_xattrs: u64,
    /// The form of whiteout that was written in the end.
    pub whiteout_form: WhiteoutForm,
}

/// Why an archive can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Reading or decompressing failed.
    #[error(transparent)]
    Read(#[from] io::Error),
}

impl Options {
    /// For a store of this namespace: strict, no id map, no content digests, two writers.
    pub fn new(namespace: Namespace) -> Options {
        Options {
            budgets: super::codec::budget::Budgets::default(),
            namespace,
            whiteouts: WhiteoutForm::Device,
            whiteout_fallback: None,
            refused: Refused::Error,
            refused_xattrs: RefusedXattrs::Error,
            ids: IdMap::default(),
            hash_files: false,
            writers: 2,
        }
    }
}

/// Unpacks a layer, compressed or not, into `root`: a new empty directory, or one that holds a tree
/// which the archive is laid over. Whatever fails, `root` holds an unfinished tree then, which is
/// the caller's to remove; nothing outside of it was touched. Nothing is synced.
///
/// `tar_split` gets the record, as JSON lines; the caller compresses it. `sink` is told of files.
/// `progress` is told of compressed bytes read so far, about every 256 KiB.
///
/// # Errors
/// See [`UnpackError`].
pub fn unpack(
    archive: impl Read + Send,
    root: BorrowedFd<'_>,
    options: &Options,
    tar_split: Option<&mut (dyn Write + Send)>,
    sink: Option<&dyn FileSink>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Summary, UnpackError> {
    let _ = (archive, root, options, tar_split, sink, progress);
    Err(UnpackError::Read(io::ErrorKind::Unsupported.into()))
}

/// Opens a regular file of a layer for reading, by its path in the archive: symlinks stay beneath
/// `root`.
///
/// # Errors
/// What `openat2(2)` returns; `EINVAL` for what is no regular file.
pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<std::fs::File> {
    let _ = (root, path);
    Err(io::ErrorKind::Unsupported.into())
}
