//! The one seam through which the store writes.
//!
//! Whatever changes the store goes through [`Disk`], one method a kind of step, so that a test can count the
//! steps, fail the Nth, or cut the power there ([`Fault`]). Paths are relative to the store's root and made by
//! the store itself; what comes from an archive is resolved elsewhere, beneath a layer's directory.
//!
//! Invariant: no other file of the store makes, renames, removes or syncs anything, except the unpacking of a
//! layer into a staging directory, whose every chunk is announced as [`Step::Unpack`].

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Context as _, Result};

/// A step that changes the store, about to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A directory is made.
    MakeDir,
    /// A file is made or written.
    WriteFile,
    /// Something is renamed.
    Rename,
    /// A symlink is made.
    Symlink,
    /// A file, or an entry of a tree, is removed.
    Remove,
    /// A file or directory is synced.
    Sync,
    /// The file system is synced.
    SyncFs,
    /// A chunk of a layer is unpacked.
    Unpack,
}

/// What a test puts below the store's writes.
pub trait Fault: Send + Sync {
    /// Called before each step. An error keeps the step from being done.
    fn before(&self, step: Step) -> io::Result<()>;
}

/// How many threads sync at once.
const SYNCERS: usize = 4;

/// The store's directory, for writing.
#[derive(Clone)]
pub struct Disk {
    root: PathBuf,
    sync: bool,
    fault: Option<Arc<dyn Fault>>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk")
            .field("root", &self.root)
            .field("sync", &self.sync)
            .finish_non_exhaustive()
    }
}

impl Disk {
    /// Writes below `root`. Without `sync` nothing is synced: power loss may then cost anything.
    pub fn new(root: PathBuf, sync: bool, fault: Option<Arc<dyn Fault>>) -> Disk {
        Disk { root, sync, fault }
    }

    /// The store's root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The absolute path of what is at `path`.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// Announces a step that another module does.
    pub fn announce(&self, step: Step) -> io::Result<()> {
        match &self.fault {
            Some(fault) => fault.before(step),
            None => Ok(()),
        }
    }

    /// Makes a directory with exactly `mode`, unless it is there.
    pub fn ensure_dir(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let path = self.path(path);
        if path.is_dir() {
            return Ok(());
        }
        self.announce(Step::MakeDir)
            .and_then(|()| match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
                Ok(()) => fs::set_permissions(&path, Permissions::from_mode(mode)),
            })
            .context("making the directory", path)
    }

    /// Makes a directory that must not be there yet, with exactly `mode`.
    pub fn make_dir(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let path = self.path(path);
        self.announce(Step::MakeDir)
            .and_then(|()| fs::create_dir(&path))
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode)))
            .context("making the directory", path)
    }

    /// Writes a file that is not published yet, with exactly `mode`. It is not synced.
    pub fn write(&self, path: impl AsRef<Path>, content: &[u8], mode: u32) -> Result<()> {
        self.write_to(path, mode, |file| file.write_all(content))
            .map(|_| ())
    }

    /// Writes a file that is not published yet, and syncs it.
    pub fn write_synced(&self, path: impl AsRef<Path>, content: &[u8], mode: u32) -> Result<()> {
        let path = path.as_ref();
        let file = self.write_to(path, mode, |file| file.write_all(content))?;
        if !self.sync {
            return Ok(());
        }
        self.announce(Step::Sync)
            .and_then(|()| file.sync_all())
            .context("syncing", self.path(path))
    }

    fn write_to(
        &self,
        path: impl AsRef<Path>,
        mode: u32,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<File> {
        let path = self.path(path);
        let mut file = self.create(&path, mode)?;
        self.announce(Step::WriteFile)
            .and_then(|()| write(&mut file))
            .context("writing", path)?;
        Ok(file)
    }

    /// Makes an empty file, or empties it, with exactly `mode`, open for reading and writing.
    pub fn create(&self, path: impl AsRef<Path>, mode: u32) -> Result<File> {
        let path = self.path(path);
        self.announce(Step::WriteFile)
            .and_then(|()| {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(true);
                let file = options.mode(mode).open(&path)?;
                file.set_permissions(Permissions::from_mode(mode))?;
                Ok(file)
            })
            .context("making", path)
    }

    /// Makes a symlink.
    pub fn symlink(&self, target: impl AsRef<OsStr>, path: impl AsRef<Path>) -> Result<()> {
        let path = self.path(path);
        self.announce(Step::Symlink)
            .and_then(|()| std::os::unix::fs::symlink(target.as_ref(), &path))
            .context("making the link", path)
    }

    /// Renames; what is at `to` is replaced as rename(2) does.
    pub fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let to = self.path(to);
        self.announce(Step::Rename)
            .and_then(|()| fs::rename(self.path(from), &to))
            .context("renaming to", to)
    }

    /// Removes a file. One that is not there is no error.
    pub fn remove_file(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = self.path(path);
        self.announce(Step::Remove)
            .and_then(|()| match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            })
            .context("removing", path)
    }

    /// Removes a tree, of which no symlink is followed. One that is not there is no error.
    pub fn remove_tree(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = self.path(path);
        self.announce(Step::Remove).context("removing", &path)?;
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            return Ok(());
        };
        if !metadata.is_dir() {
            return fs::remove_file(&path).context("removing", path);
        }
        // In pieces, so that a fault can come between them.
        for entry in fs::read_dir(&path).context("listing", &path)? {
            let entry = entry.context("listing", &path)?.path();
            self.announce(Step::Remove).context("removing", &entry)?;
            let is_dir = fs::symlink_metadata(&entry).is_ok_and(|m| m.is_dir());
            let removed = if is_dir {
                fs::remove_dir_all(&entry)
            } else {
                fs::remove_file(&entry)
            };
            removed.context("removing", &entry)?;
        }
        fs::remove_dir(&path).context("removing", path)
    }

    /// Whether anything is synced.
    pub fn syncs(&self) -> bool {
        self.sync
    }

    /// Syncs a directory: the names in it last from here on.
    pub fn sync_dir(&self, path: impl AsRef<Path>) -> Result<()> {
        if !self.sync {
            return Ok(());
        }
        self.sync_one(path.as_ref())
    }

    /// Syncs files and directories that don't wait for one another: in parallel, so that the file system takes them
    /// together, instead of one after another at the cost of a flush of the disk each. Not the whole file system,
    /// which may have gigabytes of somebody else's to write.
    pub fn sync_together(&self, paths: &[PathBuf]) -> Result<()> {
        if !self.sync {
            return Ok(());
        }
        let share = paths.len().div_ceil(SYNCERS).max(1);
        let sync = |paths: &[PathBuf]| paths.iter().try_for_each(|path| self.sync_one(path));
        std::thread::scope(|scope| {
            let mut shares = paths.chunks(share);
            let first = shares.next().unwrap_or_default();
            let mut others = Vec::new();
            let mut result = Ok(());
            for share in shares {
                let thread = std::thread::Builder::new();
                match thread.spawn_scoped(scope, move || sync(share)) {
                    Ok(other) => others.push(other),
                    // A process whose children are to be in another process namespace can have no threads.
                    Err(error) => {
                        tracing::debug!(%error, "syncing one after another");
                        result = result.and(sync(share));
                    }
                }
            }
            result = result.and(sync(first));
            for other in others {
                let gone = || io::Error::other("a thread that syncs has panicked");
                let synced = other
                    .join()
                    .unwrap_or_else(|_| Err(gone()).context("syncing below", &self.root));
                result = result.and(synced);
            }
            result
        })
    }

    fn sync_one(&self, path: &Path) -> Result<()> {
        let path = self.path(path);
        self.announce(Step::Sync)
            .and_then(|()| File::open(&path)?.sync_all())
            .context("syncing", path)
    }

    /// Syncs the file system of the store: everything written so far lasts.
    pub fn sync_fs(&self) -> Result<()> {
        if !self.sync {
            return Ok(());
        }
        self.announce(Step::SyncFs)
            .and_then(|()| Ok(rustix::fs::syncfs(File::open(&self.root)?)?))
            .context("syncing the file system of", &self.root)
    }
}
