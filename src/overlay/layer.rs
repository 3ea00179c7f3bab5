//! Layers and the directories in them.

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::fds::{FdCache, FdKey};

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

static NEXT_UID: AtomicU64 = AtomicU64::new(1);

/// A directory in a lower layer. Immutable: layers don't change under a mount.
pub(crate) struct LowerDir {
    /// Unique in the process: the key of its descriptors.
    pub uid: u64,
    /// Index into the mount's lowers.
    pub layer: u16,
    /// `st_dev` and `st_ino`.
    pub dev: u64,
    pub ino: u64,
    /// `None`: the root of the layer.
    pub parent: Option<Arc<LowerDir>>,
    pub name: Box<OsStr>,
    /// Does it hold `.wh.` marks?
    pub aufs: AufsFlag,
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
        Arc::new(LowerDir {
            uid: NEXT_UID.fetch_add(1, Ordering::Relaxed),
            layer,
            dev,
            ino,
            parent,
            name: name.into(),
            aufs: AufsFlag::new(),
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
        let fd = self.open_chain(cache, dir)?;
        Ok(DirFd::Cached(cache.put(FdKey::LowerDir(dir.uid), fd)))
    }

    /// Opens `dir` from its nearest ancestor that is open, many components at a time.
    fn open_chain(&self, cache: &FdCache, dir: &LowerDir) -> Result<OwnedFd, Errno> {
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
        open_names(base.as_fd(), names.iter().rev().copied())
    }
}

/// Opens the directory at `names` beneath `base` without following symlinks, in as few system
/// calls as `PATH_MAX` allows.
pub(crate) fn open_names<'a>(
    base: BorrowedFd<'_>,
    names: impl Iterator<Item = &'a OsStr>,
) -> Result<OwnedFd, Errno> {
    const CHUNK: usize = 3500;
    let mut fd: Option<OwnedFd> = None;
    let mut path = OsString::new();
    let step = |fd: &mut Option<OwnedFd>, path: &mut OsString| -> Result<(), Errno> {
        let at = fd.as_ref().map_or(base, |f| f.as_fd());
        let next = open_beneath(at, path, DIR_PATH)?;
        *fd = Some(next);
        path.clear();
        Ok(())
    };
    for name in names {
        if path.len() + name.len() > CHUNK {
            step(&mut fd, &mut path)?;
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
        step(&mut fd, &mut path)?;
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
    use std::os::unix::ffi::OsStrExt;
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
