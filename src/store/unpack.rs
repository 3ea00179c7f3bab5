//! A layer's archive into a directory, by the rules of the OCI image specification (layer.md).
//!
//! A pipeline: one thread reads and decompresses, the caller's digests and parses, makes directories,
//! symlinks and devices and records tar-split, others create the files. Buffers are shared, not copied,
//! and bounded: about 24 MiB whatever the layer.
//!
//! Nothing outside of the root is ever touched: see `tree`.

mod attrs;
mod check;
mod chunks;
mod engine;
mod finish;
mod path;
mod tree;
mod writers;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::format::keys::Namespace;
use crate::store::codec::budget::Budgets;
use crate::store::codec::compress::{Compressed, Decoder};
use crate::store::codec::digest::{DiffId, Digest, Hasher};
use crate::store::codec::tar::{Parser, Step, TarError, shown};
use attrs::Attributes;
pub use check::{Checker, Differences};
use chunks::{Chunk, Chunks};
use engine::Engine;
use tree::Tree;
use writers::{Shared, Writers};

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
    /// SHA-256 of the content. `None` unless [`Options::hash_files`], and for sparse files.
    pub digest: Option<Digest>,
}

/// Told of regular files, on the threads that write them, in no order.
pub trait FileSink: Sync {
    /// Once the content of a file is known, which some of its bytes may have been written of or not: may give
    /// `target` the same content in another way, and answer `true`; nothing more is written then. The file gets
    /// its attributes afterwards.
    ///
    /// # Errors
    /// End the unpacking.
    fn fill(&self, file: &FileFacts<'_>, target: BorrowedFd<'_>) -> io::Result<bool>;

    /// The file is there as it is to be.
    ///
    /// # Errors
    /// End the unpacking.
    fn written(&self, file: &FileFacts<'_>) -> io::Result<()>;
}

/// How to unpack.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the archive may cost.
    pub budgets: Budgets,
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
    /// Everything will be synced: have files be written to disk from the start, while the processors inflate.
    pub write_back: bool,
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
    /// Directories that no entry describes, parents first: 0755 and root's until somebody knows better.
    pub implied: Vec<Vec<u8>>,
}

/// What is wrong with one entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// `..` in a path, or in a hard link's target.
    #[error("a path with `..`")]
    DotDot,
    /// NUL in a path.
    #[error("a path with a NUL byte")]
    Nul,
    /// A name of more than 255 bytes.
    #[error("a name of more than 255 bytes")]
    LongName,
    /// A path of too many components.
    #[error("a path of more than {0} components")]
    Deep(usize),
    /// `.wh.`, `.wh..` or `.wh...`.
    #[error("a whiteout of no name, of `.` or of `..`")]
    BadWhiteout,
    /// A path through a whiteout.
    #[error("it lies beneath a whiteout")]
    BeneathWhiteout,
    /// A character device 0:0.
    #[error("a character device 0:0, which would be taken for a whiteout")]
    WhiteoutDevice,
    /// Two entries for one place.
    #[error("another entry of the archive is at the same place")]
    Duplicate,
    /// A non-directory where entries before it need a directory.
    #[error("it would replace a directory in which the archive put something")]
    ReplacesDir,
    /// The layer's root is no directory.
    #[error("the root of a layer has to be a directory")]
    RootNotDir,
    /// A path through something that is no directory.
    #[error("its path leads through something that is no directory")]
    ParentNotDir,
    /// A path through a symlink that leads nowhere within the layer.
    #[error("its path leads through a symlink whose target is not in the layer")]
    ParentDangles,
    /// A hard link's target is not in the layer.
    #[error(
        "its hard link's target is not in this layer; targets in other layers are not possible"
    )]
    LinkTarget,
    /// A hard link to a directory.
    #[error("a hard link to a directory")]
    LinkToDir,
    /// Hard links to one another.
    #[error("hard links that lead to one another only")]
    LinkCycle,
    /// A device that may not be made here.
    #[error(
        "making a device is refused here; run as root, or with device nodes recorded as attributes"
    )]
    DeviceRefused,
    /// An owner outside of the id map.
    #[error("owner {0}:{1} is not in the id map; map more ids, or ignore owners")]
    Unmapped(u32, u32),
    /// An extended attribute whose name is too long, escaped where it has to be.
    #[error("an extended attribute's name of more than 255 bytes")]
    LongXattr,
    /// An ACL that is none, or speaks of ids outside of the id map.
    #[error("an ACL that is not valid, or with ids outside of the id map")]
    Acl,
    /// A budget is exceeded.
    #[error("more than {limit} {what}")]
    Budget {
        /// Of what.
        what: &'static str,
        /// The budget.
        limit: u64,
    },
}

/// Why an archive can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Reading or decompressing failed; see
    /// [`CompressError::of`](crate::store::codec::compress::CompressError::of).
    #[error("can't read the layer: {0}")]
    Read(#[source] io::Error),
    /// The archive breaks its format.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry is not allowed in a layer.
    #[error("the layer's entry {path}: {problem}")]
    Entry {
        /// The entry, as the archive names it.
        path: String,
        /// What is wrong.
        problem: EntryProblem,
    },
    /// An object can't be made, or given its attributes.
    #[error("can't unpack {path}: {source}")]
    Io {
        /// The object.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The root can't be read.
    #[error("can't unpack into the directory: {0}")]
    Root(#[source] io::Error),
    /// The tar-split record can't be written.
    #[error("can't write the tar-split record: {0}")]
    Record(#[source] io::Error),
    /// A thread ended without saying why.
    #[error("a thread that unpacks has stopped")]
    Stopped,
}

/// What goes wrong within an entry.
#[derive(Debug)]
enum Failure {
    Problem(EntryProblem),
    Io(io::Error),
    /// A writer has failed.
    Stopped,
}

impl From<EntryProblem> for Failure {
    fn from(problem: EntryProblem) -> Failure {
        Failure::Problem(problem)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Io(errno.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Io(error)
    }
}

impl Options {
    /// For a store of this namespace: strict, no id map, no content digests, two writers.
    pub fn new(namespace: Namespace) -> Options {
        Options {
            budgets: Budgets::default(),
            namespace,
            whiteouts: WhiteoutForm::Device,
            whiteout_fallback: None,
            refused: Refused::Error,
            refused_xattrs: RefusedXattrs::Error,
            ids: IdMap::default(),
            hash_files: false,
            writers: 2,
            write_back: false,
        }
    }
}

/// Unpacks a layer, compressed or not, into `root`: a new empty directory, or one that holds a tree
/// which the archive is laid over. Whatever fails, `root` holds an unfinished tree then, which is
/// the caller's to remove; nothing outside of it was touched. Nothing is synced.
///
/// `tar_split` gets the record, as JSON lines; the caller compresses it. `sink` is told of files.
/// `progress` is told of compressed bytes read so far, about every 256 KiB, on another thread.
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
    let decoder = Decoder::new(archive, &options.budgets).map_err(UnpackError::Read)?;
    let tree = Tree::new(root).map_err(UnpackError::Root)?;
    let pristine = tree.is_pristine();
    let attributes = Attributes::new(options, root, pristine).map_err(UnpackError::Root)?;
    let shared = Shared::default();
    std::thread::scope(|scope| {
        let (to, chunks) = chunks::channel();
        let decoding = scope.spawn(move || chunks::decode(decoder, &to, progress));
        let writers = Writers::start(scope, &shared, &attributes, sink, options);
        let mut engine = Engine::new(options, &attributes, tree, writers, tar_split);
        // `read` drops the channel, which ends the decoding; dropping the engine ends the writers.
        let result = read(chunks, &mut engine).and_then(|stream| {
            let compressed = decoding.join().ok().flatten().ok_or(UnpackError::Stopped)?;
            let whiteouts = finish::finish(&mut engine)?;
            Ok((stream, compressed, whiteouts))
        });
        let ((diff_id, tar_bytes), source, (whiteouts, whiteout_form)) = match result {
            Err(UnpackError::Stopped) => {
                return Err(shared.take_error().unwrap_or(UnpackError::Stopped));
            }
            other => other?,
        };
        Ok(Summary {
            source,
            diff_id: DiffId(diff_id),
            tar_bytes,
            entries: engine.totals.entries,
            files: engine.totals.files,
            bytes: engine.totals.bytes,
            whiteouts,
            dropped_xattrs: attributes.dropped(),
            whiteout_form,
            implied: std::mem::take(&mut engine.implied).into_iter().collect(),
        })
    })
}

/// Reads the stream to its end; gives its digest and length.
fn read(chunks: Chunks, engine: &mut Engine<'_, '_>) -> Result<(Digest, u64), UnpackError> {
    let mut parser = Parser::new(&engine.options.budgets);
    let mut hasher = Hasher::new();
    for chunk in chunks {
        let chunk = Arc::new(chunk.map_err(UnpackError::Read)?);
        hasher.update(chunk.bytes());
        parse(&mut parser, &chunk, engine)?;
    }
    parser.finish()?;
    let rest = parser.take_raw();
    engine.segment(&rest)?;
    Ok(hasher.finish())
}

fn parse(
    parser: &mut Parser,
    chunk: &Arc<Chunk>,
    engine: &mut Engine<'_, '_>,
) -> Result<(), UnpackError> {
    let mut at = 0;
    while let Some(rest) = chunk.bytes().get(at..).filter(|rest| !rest.is_empty()) {
        let (taken, step) = parser.advance(rest)?;
        match step {
            Step::More => {}
            Step::Entry(entry) => {
                let headers = parser.take_raw();
                engine.segment(&headers)?;
                engine.entry(*entry, chunk.number)?;
            }
            Step::Body(n) => engine.body(chunk, at..at + n)?,
            Step::Trailing(n) => {
                let end = parser.take_raw();
                engine.segment(&end)?;
                engine.segment(rest.get(..n).unwrap_or_default())?;
            }
        }
        at += taken;
    }
    Ok(())
}

/// Opens a regular file of a layer for reading, by its path in the archive: symlinks stay beneath
/// `root`.
///
/// # Errors
/// What `openat2(2)` returns; `EINVAL` for what is no regular file.
pub fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<File> {
    // A named pipe must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = tree::open_in_root(root, path, flags)?;
    let stat = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    Ok(File::from(fd))
}
