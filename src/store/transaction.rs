//! Transactions: what a command writes becomes visible as a whole or not at all.
//!
//! A transaction is a directory `rovl/tx/<id>`, locked by its process. Everything is built in it (layers'
//! trees, records, a new `repositories.json`). To commit, under the store's lock: what was built is synced, the
//! list of renames is written to `commit.json` in it and synced, the renames are done, the directories that they
//! changed are synced, and `commit.json` is removed. What is to be removed is renamed into the transaction's
//! directory, which is deleted at the end.
//!
//! A process that died before `commit.json` was there has changed nothing: its directory is deleted. One that died
//! after it is finished by whoever takes the store's lock next: each rename is done whose source is still
//! there. Power loss is no different, for `commit.json` is durable before the first rename and goes only when all
//! renames are durable.
//!
//! Invariant: nobody changes what the store shows except by [`Transaction::commit`].

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::error::{Context as _, Result, StoreError};
use super::lock::{self, Lock};
use super::{ids, layout};

/// The file that makes a transaction committed.
const LOG: &str = "commit.json";

/// The exclusive right to change what the store shows. Whatever others left unfinished has been finished.
#[derive(Debug)]
pub struct WriteLock {
    _lock: Lock,
    /// Transactions of dead processes, finished, and to be deleted once the lock is released.
    dead: Vec<(PathBuf, Lock)>,
}

impl WriteLock {
    /// Waits for the store's lock and finishes what dead processes left.
    pub fn take(disk: &Disk) -> Result<WriteLock> {
        layout::ensure(disk)?;
        let lock = lock::wait_exclusive(&disk.path(layout::LOCK))?;
        let mut dead = Vec::new();
        for name in layout::names(disk, layout::TRANSACTIONS)? {
            let path = Path::new(layout::TRANSACTIONS).join(&name);
            if let Some(lock) = lock::try_exclusive(&disk.path(&path))? {
                finish(disk, &path)?;
                dead.push((path, lock));
            }
        }
        Ok(WriteLock { _lock: lock, dead })
    }

    /// Releases the lock, then deletes what dead processes left.
    pub fn release(self, disk: &Disk) -> Result<()> {
        drop(self._lock);
        for (path, _lock) in self.dead {
            disk.remove_tree(path)?;
        }
        Ok(())
    }
}

/// One change of place. Both paths are relative to the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Move {
    from: PathBuf,
    to: PathBuf,
}

/// What `commit.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Log {
    moves: Vec<Move>,
}

/// A change of the store that is being built.
#[derive(Debug)]
pub struct Transaction {
    disk: Disk,
    path: PathBuf,
    moves: Vec<Move>,
    /// What was written and is not synced yet.
    unsynced: Vec<PathBuf>,
    next: u32,
    _lock: Lock,
    /// Locks of what goes, kept until it has gone.
    locks: Vec<Option<Lock>>,
    ended: bool,
}

impl Transaction {
    /// Begins one: an empty, locked directory. Finishes and deletes first what dead processes left.
    pub fn begin(disk: &Disk) -> Result<Transaction> {
        let guard = WriteLock::take(disk)?;
        let path = Path::new(layout::TRANSACTIONS).join(ids::random_hex::<16>()?);
        disk.make_dir(&path, 0o700)?;
        let lock = lock::try_exclusive(&disk.path(&path))?;
        let lock = lock.ok_or_else(|| StoreError::damaged("a new transaction is locked"))?;
        let transaction = Transaction {
            disk: disk.clone(),
            path,
            moves: Vec::new(),
            unsynced: Vec::new(),
            next: 0,
            _lock: lock,
            locks: Vec::new(),
            ended: false,
        };
        guard.release(disk)?;
        Ok(transaction)
    }

    /// The disk that it writes to.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// A path in the transaction's directory, relative to the root.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// A path in the transaction's directory that nothing has yet, relative to the root.
    pub fn fresh(&mut self) -> PathBuf {
        self.next += 1;
        self.path.join(format!("n{}", self.next))
    }

    /// Plans that what was built at `from` goes to `to`. A directory must not be there yet, a file is replaced.
    pub fn place(&mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) {
        self.moves.push(Move {
            from: from.into(),
            to: to.into(),
        });
    }

    /// Writes a file that is to go to `to`.
    pub fn place_file(&mut self, content: &[u8], mode: u32, to: impl Into<PathBuf>) -> Result<()> {
        let from = self.fresh();
        self.disk.write(&from, content, mode)?;
        self.sync_later(&from);
        self.place(from, to);
        Ok(())
    }

    /// Syncs a file, or the names in a directory, before anything is moved.
    pub fn sync_later(&mut self, path: impl Into<PathBuf>) {
        self.unsynced.push(path.into());
    }

    /// Plans that what is at `path`, a file or a tree, goes.
    pub fn remove(&mut self, path: impl Into<PathBuf>) {
        let to = self.fresh();
        self.place(path, to);
    }

    /// Keeps locks until what was planned is done.
    pub fn keep_until_committed(&mut self, locks: Vec<Option<Lock>>) {
        self.locks.extend(locks);
    }

    /// How many changes are planned.
    pub fn planned(&self) -> usize {
        self.moves.len()
    }

    /// Whether what is at `path` is planned to go elsewhere.
    pub fn moves_away(&self, path: &Path) -> bool {
        self.moves.iter().any(|step| step.from == path)
    }

    /// Where what the changes from the `first` on move is now.
    pub fn paths_from(&self, first: usize) -> Vec<PathBuf> {
        let moves = self.moves.get(first..).unwrap_or_default();
        moves.iter().map(|step| step.from.clone()).collect()
    }

    /// Does what was planned, durably, in the order of planning, and deletes what was removed. Everything that
    /// was built must have been synced, or noted to be.
    ///
    /// An error after the point of no return leaves the rest to whoever takes the lock next.
    pub fn commit(mut self, guard: WriteLock) -> Result<()> {
        if !self.moves.is_empty() {
            lock::refuse_beside_docker(&self.disk)?;
            let log = Log {
                moves: std::mem::take(&mut self.moves),
            };
            let text = serde_json::to_vec(&log)
                .map_err(std::io::Error::from)
                .context("writing", &self.path)?;
            let staged = self.path.join("commit.tmp");
            self.disk.write(&staged, &text, 0o600)?;
            let mut unsynced = std::mem::take(&mut self.unsynced);
            unsynced.extend([
                staged.clone(),
                self.path.clone(),
                layout::TRANSACTIONS.into(),
            ]);
            self.disk.sync_together(&unsynced)?;
            self.disk.rename(&staged, self.path.join(LOG))?;
            // From here on the directory is another's to finish, should this process fail.
            self.ended = true;
            self.disk.sync_dir(&self.path)?;
            replay(&self.disk, &self.path, &log.moves)?;
        }
        self.ended = true;
        guard.release(&self.disk)?;
        self.disk.remove_tree(&self.path)
    }

    /// Gives up: whatever was built is deleted.
    pub fn abandon(mut self) -> Result<()> {
        self.ended = true;
        self.disk.remove_tree(&self.path)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.ended {
            // What can't be removed now is removed by the next transaction.
            if let Err(error) = self.disk.remove_tree(&self.path) {
                tracing::debug!(%error, "a transaction's directory stays for the next one");
            }
        }
    }
}

/// Does the moves of a committed transaction that have not been done, and syncs the directories concerned.
fn replay(disk: &Disk, transaction: &Path, moves: &[Move]) -> Result<()> {
    let mut parents: BTreeSet<PathBuf> = BTreeSet::new();
    let mut before: Option<&Path> = None;
    for Move { from, to } in moves {
        let rank = rank(to, transaction);
        // Layers are durable before the records that name them are.
        if before.is_some_and(|before| before != rank) && !to.starts_with(transaction) {
            sync_all(disk, &mut parents)?;
        }
        before = Some(rank);
        // Also of what was moved already: after a crash that may not be durable.
        parents.extend(
            [from, to]
                .into_iter()
                .filter_map(|path| Some(path.parent()?.to_owned())),
        );
        // What was removed may since have been replaced by what was placed.
        let is_removed = to.starts_with(transaction) && exists(disk, to);
        if !is_removed && exists(disk, from) {
            disk.rename(from, to)?;
        }
    }
    sync_all(disk, &mut parents)?;
    disk.remove_file(transaction.join(LOG))?;
    // Done once more, removals would take what has come to the same place since; placing finds nothing to place.
    if moves.iter().any(|step| step.to.starts_with(transaction)) {
        disk.sync_dir(transaction)?;
    }
    Ok(())
}

/// What has to be durable together before anything else is: all trees, links and notes, which no order among
/// themselves protects, then one directory of records after the other.
fn rank<'a>(to: &'a Path, transaction: &Path) -> &'a Path {
    let is_body = [layout::OVERLAY, layout::OWN]
        .iter()
        .any(|dir| to.starts_with(dir));
    match is_body && !to.starts_with(transaction) {
        true => Path::new(""),
        false => to.parent().unwrap_or(Path::new("")),
    }
}

fn exists(disk: &Disk, path: &Path) -> bool {
    fs::symlink_metadata(disk.path(path)).is_ok()
}

fn sync_all(disk: &Disk, parents: &mut BTreeSet<PathBuf>) -> Result<()> {
    let mut dirs: Vec<PathBuf> = std::mem::take(parents).into_iter().collect();
    dirs.retain(|dir| disk.path(dir).is_dir());
    disk.sync_together(&dirs)
}

/// Finishes the transaction of a dead process: does its moves if it was committed.
fn finish(disk: &Disk, path: &Path) -> Result<()> {
    let log = disk.path(path.join(LOG));
    let text = match fs::read(&log) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("reading", log),
    };
    let parsed: Log = serde_json::from_slice(&text)
        .map_err(|error| StoreError::damaged(format!("{}: {error}", log.display())))?;
    let stays_inside = |path: &Path| {
        path.components()
            .all(|part| matches!(part, std::path::Component::Normal(_)))
    };
    if let Some(bad) = parsed
        .moves
        .iter()
        .find(|step| !stays_inside(&step.from) || !stays_inside(&step.to))
    {
        return Err(StoreError::damaged(format!(
            "{} moves {} to {}",
            log.display(),
            bad.from.display(),
            bad.to.display()
        )));
    }
    replay(disk, path, &parsed.moves)
}
