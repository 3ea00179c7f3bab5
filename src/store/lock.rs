//! Locks between processes.
//!
//! All are flock(2) locks on open files: the kernel releases them when their process ends, however it ends, so
//! that a killed process never blocks others.
//!
//! | lock | on | held |
//! |---|---|---|
//! | the store's | `rovl/lock` | exclusively while a transaction begins, and while it commits: milliseconds |
//! | a transaction's | its directory in `rovl/tx/` | exclusively as long as its process lives |
//! | a layer's | `overlay2/<cache_id>/link` | shared while a layer is used, exclusively to remove it |
//!
//! Order: the store's before a layer's; a transaction's is only ever tried, never waited for.
//!
//! A dockerd on the same root knows none of them. It keeps what there is in memory, and writes `repositories.json`
//! from there: what others changed it would undo, and what is gone it would go on using. So nothing is changed beside
//! one ([`refuse_beside_docker`]); reading is fine.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::disk::Disk;
use super::error::{Context as _, Result, StoreError};

/// A database of dockerd's, relative to its root, which it has locked as long as it runs (bbolt's flock(2)).
const DOCKER_DATABASE: &str = "volumes/metadata.db";

/// An error where a dockerd runs on the store.
pub fn refuse_beside_docker(disk: &Disk) -> Result<()> {
    let database = disk.path(DOCKER_DATABASE);
    if !database.exists() || try_shared(&database)?.is_some() {
        return Ok(());
    }
    Err(StoreError::InUse {
        what: format!("the store at {}", disk.root().display()),
        by: "a dockerd runs on it, and would undo what others change; stop it first".into(),
    })
}

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Waits for the exclusive lock on the file at `path`, which is made if need be.
pub fn wait_exclusive(path: &Path) -> Result<Lock> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .context("opening the lock", path)?;
    flock(&file, FlockOperation::LockExclusive).context("locking", path)?;
    Ok(Lock { _file: file })
}

/// Tries to get the exclusive lock on what is at `path`. `None` when another holds it, or when nothing is there.
pub fn try_exclusive(path: &Path) -> Result<Option<Lock>> {
    try_lock(path, FlockOperation::NonBlockingLockExclusive)
}

/// Tries to get the shared lock on what is at `path`. `None` when another holds it exclusively, or when nothing
/// is there.
pub fn try_shared(path: &Path) -> Result<Option<Lock>> {
    try_lock(path, FlockOperation::NonBlockingLockShared)
}

fn try_lock(path: &Path, operation: FlockOperation) -> Result<Option<Lock>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.context("opening", path)?,
    };
    match flock(&file, operation) {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno).context("locking", path),
    }
}

fn flock(file: &File, operation: FlockOperation) -> std::result::Result<(), Errno> {
    loop {
        match rustix::fs::flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
