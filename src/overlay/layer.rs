//! Layers and the directories in them.

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use smallvec::SmallVec;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::attr::stat_at;
use super::fds::{FdCache, FdKey};
use super::node::Remembered;

/// The flags that a directory is opened with to reach what is in it.
pub(crate) const DIR_PATH: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The flags that a directory is opened with to be listed or synced.
pub(crate) const DIR_READ: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// One layer of the mount. Immutable after the mount.
pub(crate) struct Layer {
    /// Where it was when it was mounted, for messages only.
    pub path: PathBuf,
    /// Its root, `O_PATH`.
    pub root: OwnedFd,
    /// `st_dev` of its root.
    pub dev: u64,
    /// The uuid of that file system, zeros where it has none.
    pub uuid: [u8; 16],
    /// Can its objects be named by file handles?
    pub has_handles: bool,
    /// Do its objects have inode flags? Where they don't, statx's are those of the file system.
    pub has_flags: bool,
    /// Can they be opened by them, too? That takes privileges.
    pub opens_handles: bool,
}

/// What is known of `.wh.NAME` files in one directory.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum AufsMarks {
    Unknown = 0,
    Absent = 1,
    Present = 2,
}

/// A memory of [`AufsMarks`]: written by whoever lists the directory.
pub(crate) struct AufsFlag(AtomicU8);

impl AufsFlag {
    pub(crate) fn new() -> AufsFlag {
        AufsFlag(AtomicU8::new(AufsMarks::Unknown as u8))
    }

    pub(crate) fn get(&self) -> AufsMarks {
        match self.0.load(Ordering::Acquire) {
            1 => AufsMarks::Absent,
            2 => AufsMarks::Present,
            _ => AufsMarks::Unknown,
        }
    }

    pub(crate) fn forget(&self) {
        self.0.store(AufsMarks::Unknown as u8, Ordering::Release);
    }

    pub(crate) fn set(&self, present: bool) {
        let value = if present {
            AufsMarks::Present
        } else {
            AufsMarks::Absent
        };
        self.0.store(value as u8, Ordering::Release);
    }
}

/// In place of the inode number of a directory that was found in a listing of its parent. Its `st_dev` is the parent's
/// then, which is not certain where something may be mounted in a layer.
pub(crate) const NO_INO: u64 = 0;

/// Names that are asked for through the parent of a directory before the directory is opened: an open and a close
/// cost as much as two or three questions, and most directories of most layers are asked for one name or none.
const BEFORE_OPENING: u8 = 8;

static NEXT_UID: AtomicU64 = AtomicU64::new(1);

/// A directory in a lower layer. Immutable: layers don't change under a mount.
pub(crate) struct LowerDir {
    /// Unique in the process: the key of its descriptors.
    pub uid: u64,
    /// Index into the mount's lowers.
    pub layer: u16,
    /// `st_dev` and `st_ino`; [`NO_INO`] where it was found in a listing.
    pub dev: u64,
    pub ino: u64,
    /// `None`: the root of the layer.
    pub parent: Option<Arc<LowerDir>>,
    pub name: Box<OsStr>,
    /// Does it hold `.wh.` marks?
    pub aufs: AufsFlag,
    /// Does it hold a mark that makes it opaque? Asked for once something is found in a layer below.
    pub opaque_mark: Remembered,
    /// How often a name was asked for without opening it; [`BEFORE_OPENING`] once it was opened.
    unopened: AtomicU8,
    /// Are empty files with the whiteout xattr whiteouts in it (`overlay.opaque=x`)?
    pub xattr_whiteouts: bool,
}

impl LowerDir {
    pub(crate) fn new(
        layer: u16,
        (dev, ino): (u64, u64),
        parent: Option<Arc<LowerDir>>,
        name: &OsStr,
        xattr_whiteouts: bool,
    ) -> Arc<LowerDir> {
        let opaque_mark = Remembered::unknown();
        if parent.is_none() {
            // Those of the roots were looked at when the stack was made.
            opaque_mark.set(false);
        }
        Arc::new(LowerDir {
            uid: NEXT_UID.fetch_add(1, Ordering::Relaxed),
            layer,
            dev,
            ino,
            parent,
            name: name.into(),
            aufs: AufsFlag::new(),
            opaque_mark,
            unopened: AtomicU8::new(0),
            xattr_whiteouts,
        })
    }
}

impl Drop for LowerDir {
    /// Drops the chain of parents in a loop: a path can have 2,000 components.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(dir) = next {
            match Arc::into_inner(dir) {
                Some(mut last) => next = last.parent.take(),
                None => break,
            }
        }
    }
}

/// The lowers and the descriptors into them.
pub(crate) struct LowerLayers {
    /// Top to bottom; the data-only ones follow after `merged`.
    pub layers: Vec<Layer>,
    /// How many of them are merged.
    pub merged: usize,
    roots: Vec<Arc<LowerDir>>,
}

impl LowerLayers {
    pub(crate) fn new(layers: Vec<Layer>, merged: usize, roots: Vec<Arc<LowerDir>>) -> LowerLayers {
        LowerLayers {
            layers,
            merged,
            roots,
        }
    }

    pub(crate) fn layer(&self, dir: &LowerDir) -> &Layer {
        &self.layers[usize::from(dir.layer)]
    }

    /// The root directory of the layer with this index.
    pub(crate) fn root(&self, layer: usize) -> &Arc<LowerDir> {
        &self.roots[layer]
    }

    /// An `O_PATH` descriptor of `dir`.
    pub(crate) fn dir_fd(&self, cache: &FdCache, dir: &LowerDir) -> Result<DirFd<'_>, Errno> {
        if dir.parent.is_none() {
            return Ok(DirFd::Root(self.layer(dir).root.as_fd()));
        }
        if let Some(fd) = cache.get(FdKey::LowerDir(dir.uid)) {
            return Ok(DirFd::Cached(fd));
        }
        dir.unopened.store(BEFORE_OPENING, Ordering::Relaxed);
        let fd = self.open_chain(cache, dir, DIR_PATH)?;
        Ok(DirFd::Cached(cache.put(FdKey::LowerDir(dir.uid), fd)))
    }

    /// A descriptor of `dir` to list it with, which nobody else has.
    pub(crate) fn open_to_list(&self, cache: &FdCache, dir: &LowerDir) -> Result<OwnedFd, Errno> {
        let open = match dir.parent {
            None => DirFd::Root(self.layer(dir).root.as_fd()),
            Some(_) => match cache.get(FdKey::LowerDir(dir.uid)) {
                Some(fd) => DirFd::Cached(fd),
                None => return self.open_chain(cache, dir, DIR_READ),
            },
        };
        rustix::fs::openat(open.as_fd(), c".", DIR_READ, Mode::empty())
    }

    /// Is there surely no `name` in `dir`? `false`: it has to be looked at.
    ///
    /// Asks in one system call, through the parent's descriptor, where `dir` itself is not open and need not be. The
    /// way is not protected from symlinks: layers don't change, and `dir` was found to be a directory. Where it is none
    /// any more, the worst that this says is that there is no such name.
    pub(crate) fn lacks(&self, cache: &FdCache, dir: &LowerDir, name: &OsStr) -> bool {
        let Some(parent) = &dir.parent else {
            return false;
        };
        if dir.unopened.load(Ordering::Relaxed) >= BEFORE_OPENING {
            return false;
        }
        let base = match parent.parent {
            None => DirFd::Root(self.layer(dir).root.as_fd()),
            Some(_) => match cache.get(FdKey::LowerDir(parent.uid)) {
                Some(fd) => DirFd::Cached(fd),
                None => return false,
            },
        };
        dir.unopened.fetch_add(1, Ordering::Relaxed);
        let mut path: SmallVec<[u8; 256]> = SmallVec::from_slice(dir.name.as_bytes());
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
        matches!(
            stat_at(base.as_fd(), OsStr::from_bytes(&path)),
            Err(Errno::NOENT)
        )
    }

    /// Opens `dir` from its nearest ancestor that is open, many components at a time.
    fn open_chain(&self, cache: &FdCache, dir: &LowerDir, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut names: Vec<&OsStr> = vec![&dir.name];
        let mut at = dir.parent.as_deref();
        let base = loop {
            match at {
                None => break DirFd::Root(self.layer(dir).root.as_fd()),
                Some(d) if d.parent.is_none() => break DirFd::Root(self.layer(d).root.as_fd()),
                Some(d) => {
                    if let Some(fd) = cache.get(FdKey::LowerDir(d.uid)) {
                        break DirFd::Cached(fd);
                    }
                    names.push(&d.name);
                    at = d.parent.as_deref();
                }
            }
        };
        open_names_as(base.as_fd(), names.iter().rev().copied(), flags)
    }
}

/// Opens the directory at `names` beneath `base` without following symlinks, in as few system
/// calls as `PATH_MAX` allows.
pub(crate) fn open_names<'a>(
    base: BorrowedFd<'_>,
    names: impl Iterator<Item = &'a OsStr>,
) -> Result<OwnedFd, Errno> {
    open_names_as(base, names, DIR_PATH)
}

/// [`open_names`], with these flags for the last one.
fn open_names_as<'a>(
    base: BorrowedFd<'_>,
    names: impl Iterator<Item = &'a OsStr>,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    const CHUNK: usize = 3500;
    let mut fd: Option<OwnedFd> = None;
    let mut path = OsString::new();
    let step = |fd: &mut Option<OwnedFd>, path: &mut OsString, flags| -> Result<(), Errno> {
        let at = fd.as_ref().map_or(base, |f| f.as_fd());
        let next = open_beneath(at, path, flags)?;
        *fd = Some(next);
        path.clear();
        Ok(())
    };
    for name in names {
        if path.len() + name.len() > CHUNK {
            step(&mut fd, &mut path, DIR_PATH)?;
        }
        if !path.is_empty() {
            path.push("/");
        }
        path.push(name);
    }
    if !path.is_empty() || fd.is_none() {
        if path.is_empty() {
            path.push(".");
        }
        step(&mut fd, &mut path, flags)?;
    }
    fd.ok_or(Errno::IO)
}

/// `openat2` that never leaves `dir` and follows no symlink at all; plain `openat`, component by
/// component, where the kernel or a seccomp filter refuses openat2.
fn open_beneath(dir: BorrowedFd<'_>, path: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::NOSYS | Errno::PERM) => break,
            other => return other,
        }
    }
    let mut fd: Option<OwnedFd> = None;
    for name in path.as_bytes().split(|b| *b == b'/') {
        let at = fd.as_ref().map_or(dir, |f| f.as_fd());
        fd = Some(rustix::fs::openat(
            at,
            OsStr::from_bytes(name),
            flags,
            Mode::empty(),
        )?);
    }
    fd.ok_or(Errno::NOENT)
}

/// A directory descriptor: a layer's root, or one out of the cache.
pub(crate) enum DirFd<'a> {
    Root(BorrowedFd<'a>),
    Cached(Arc<OwnedFd>),
}

impl AsFd for DirFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            DirFd::Root(fd) => *fd,
            DirFd::Cached(fd) => fd.as_fd(),
        }
    }
}
