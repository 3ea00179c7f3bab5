//! The directories of the layer: found by path, never outside of the root, and what the archive put
//! into them.
//!
//! A component is opened alone, in its parent's descriptor and without following it: no path string
//! is walked. Only where a directory's path leads through a symlink of the layer, `openat2(2)`
//! resolves it with `RESOLVE_IN_ROOT`. An object is known by its directory's inode and its name, so
//! that two paths to the same place are seen to be one.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use lru::LruCache;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{EntryProblem, Failure};

/// Directories that are kept open.
const OPEN: NonZeroUsize = match NonZeroUsize::new(128) {
    Some(n) => n,
    None => NonZeroUsize::MIN,
};
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An open directory of the layer.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    ino: u64,
}

impl Dir {
    fn new(fd: OwnedFd) -> io::Result<Dir> {
        let ino = rustix::fs::fstat(&fd)?.st_ino;
        Ok(Dir { fd, ino })
    }

    /// Its inode number, by which it is told from others of the layer.
    pub(super) fn ino(&self) -> u64 {
        self.ino
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A place in the layer, as a hash that nobody can foresee.
pub(super) type Key = [u8; 16];

/// What the archive put at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A directory; its number in the list of those whose attributes come last.
    Dir(u32),
    /// A directory that was needed before an entry spoke of it; the same number.
    Implied(u32),
    /// A hard link that is made at the end.
    Link,
    /// Anything else.
    Other,
}

/// The layer's directories.
#[derive(Debug)]
pub(super) struct Tree {
    root: Arc<Dir>,
    open: LruCache<Vec<u8>, Arc<Dir>>,
    seen: HashMap<Key, Seen>,
    hashers: (RandomState, RandomState),
    /// The root was empty: what is in the way was put there by the archive.
    pristine: bool,
    /// Directories that were made because something in them was.
    pub(super) implied: Vec<(Vec<u8>, Key)>,
}

impl Tree {
    pub(super) fn new(root: BorrowedFd<'_>) -> io::Result<Tree> {
        let listed =
            rustix::fs::openat(root, c".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut pristine = true;
        crate::sys::dir::read_all(listed.as_fd(), |entry| {
            pristine &= entry.name == "." || entry.name == "..";
        })?;
        let root = rustix::fs::openat(root, c".", DIRECTORY, Mode::empty())?;
        Ok(Tree {
            root: Arc::new(Dir::new(root)?),
            open: LruCache::new(OPEN),
            seen: HashMap::new(),
            hashers: (RandomState::new(), RandomState::new()),
            pristine,
            implied: Vec::new(),
        })
    }

    pub(super) fn root(&self) -> Arc<Dir> {
        Arc::clone(&self.root)
    }

    /// Whether the root was empty.
    pub(super) fn is_pristine(&self) -> bool {
        self.pristine
    }

    pub(super) fn key(&self, dir: &Dir, name: &[u8]) -> Key {
        let (a, b) = (
            self.hashers.0.hash_one((dir.ino, name)),
            self.hashers.1.hash_one((dir.ino, name)),
        );
        (u128::from(a) << 64 | u128::from(b)).to_ne_bytes()
    }

    pub(super) fn seen(&self, key: &Key) -> Option<Seen> {
        self.seen.get(key).copied()
    }

    pub(super) fn see(&mut self, key: Key, what: Seen) {
        self.seen.insert(key, what);
    }

    /// The directory of this clean path; those that are missing are made.
    pub(super) fn dir(&mut self, path: &[u8]) -> Result<Arc<Dir>, Failure> {
        if path.is_empty() {
            return Ok(self.root());
        }
        if let Some(dir) = self.open.get(path) {
            return Ok(Arc::clone(dir));
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut ends: Vec<usize> = slashes.map(|(at, _)| at).collect();
        ends.push(path.len());
        let prefix = |end: usize| path.get(..end).unwrap_or_default();
        let known = ends
            .iter()
            .rposition(|end| self.open.contains(prefix(*end)));
        let mut dir = self.root();
        if let Some(end) = known.and_then(|at| ends.get(at))
            && let Some(open) = self.open.get(prefix(*end))
        {
            dir = Arc::clone(open);
        }
        let mut start = known.and_then(|at| ends.get(at)).map_or(0, |end| end + 1);
        for end in ends.into_iter().skip(known.map_or(0, |at| at + 1)) {
            let name = path.get(start..end).unwrap_or_default();
            dir = Arc::new(self.child(&dir, prefix(end), name)?);
            self.open.put(prefix(end).to_vec(), Arc::clone(&dir));
            start = end + 1;
        }
        Ok(dir)
    }

    fn child(&mut self, parent: &Dir, path: &[u8], name: &[u8]) -> Result<Dir, Failure> {
        let os_name = OsStr::from_bytes(name);
        let open =
            || rustix::fs::openat(parent, os_name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        let fd = match open() {
            Err(Errno::NOENT) => {
                let key = self.key(parent, name);
                if self.seen.contains_key(&key) {
                    // A file that is still to be written.
                    return Err(EntryProblem::ParentNotDir.into());
                }
                rustix::fs::mkdirat(parent, os_name, Mode::RWXU)?;
                self.implied.push((path.to_vec(), key));
                open()?
            }
            Err(Errno::NOTDIR | Errno::LOOP) => self.through_symlink(path)?,
            other => other?,
        };
        Ok(Dir::new(fd)?)
    }

    /// A directory whose path leads through a symlink. It has to be there.
    fn through_symlink(&self, path: &[u8]) -> Result<OwnedFd, Failure> {
        open_in_root(self.root.as_fd(), path, DIRECTORY).map_err(|e| match e {
            Errno::NOENT => EntryProblem::ParentDangles.into(),
            Errno::NOTDIR | Errno::LOOP => EntryProblem::ParentNotDir.into(),
            other => Failure::from(other),
        })
    }

    /// The directory of a clean path, for what is not to be made: at the end, or a link's target.
    pub(super) fn existing(&mut self, path: &[u8]) -> Result<Arc<Dir>, Errno> {
        if path.is_empty() {
            return Ok(self.root());
        }
        if let Some(dir) = self.open.get(path) {
            return Ok(Arc::clone(dir));
        }
        let fd = open_in_root(self.root.as_fd(), path, DIRECTORY)?;
        let dir = Dir::new(fd).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        let dir = Arc::new(dir);
        self.open.put(path.to_vec(), Arc::clone(&dir));
        Ok(dir)
    }

    /// Makes room for an object: what was there before the archive is removed, except a directory
    /// where there is to be one. `true`: a directory stayed.
    pub(super) fn make_room(&self, dir: &Dir, name: &[u8], for_dir: bool) -> Result<bool, Failure> {
        if self.pristine {
            return Ok(false);
        }
        let name = OsStr::from_bytes(name);
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(false),
            other => other?,
        };
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_dir && for_dir {
            return Ok(true);
        }
        remove(dir.as_fd(), name, is_dir)?;
        Ok(false)
    }
}

/// Makes an empty file: a mark, or what stands for a device that can't be made.
pub(super) fn empty_file(dir: &Dir, name: &[u8]) -> Result<(), Failure> {
    let mode = Mode::RUSR | Mode::WUSR;
    let name = OsStr::from_bytes(name);
    Ok(rustix::fs::mknodat(
        dir,
        name,
        FileType::RegularFile,
        mode,
        0,
    )?)
}

/// Opens a path with symlinks resolved as if `root` were the root of the file system.
pub(super) fn open_in_root(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::CLOEXEC;
    // EAGAIN: something was renamed while the kernel looked at a `..`.
    for _ in 0..64 {
        match rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Removes an object, a directory with all that is in it; nothing is followed.
fn remove(dir: BorrowedFd<'_>, name: &OsStr, is_dir: bool) -> Result<(), Errno> {
    if !is_dir {
        return rustix::fs::unlinkat(dir, name, AtFlags::empty());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    let mut names = Vec::new();
    crate::sys::dir::read_all(inner.as_fd(), |entry| {
        if entry.name != "." && entry.name != ".." {
            names.push(entry.name.to_owned());
        }
    })?;
    for name in names {
        let stat = rustix::fs::statat(&inner, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        remove(inner.as_fd(), &name, is_dir)?;
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}
