//! The mount that this process serves, from the outside: how it is taken away again, by a signal or at the
//! end, so that no mount point stays behind.
//!
//! Signals reach one thread only ([`watch_signals`]). The first makes another thread write everything back
//! and unmount, on which the session ends by itself; the second ends the process at once.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::daemon::Reporter;
use super::{FAILED, Failure};
use crate::fuse::mount::{self, MountError, MountInfo, MountRequest, MountedFd, UnmountError};
use crate::sys::fs::{block_signals, wait_signal};

/// SIGHUP, SIGINT, SIGTERM: the same numbers on all architectures.
const SIGNALS: [i32; 3] = [1, 2, 15];
/// How long clients may keep an unmounted tree busy once a signal has asked for the end.
const BUSY_PATIENCE: Duration = Duration::from_secs(5);

/// Our mount. Ids and device numbers are used again as soon as it is gone, and the same place may be mounted
/// again by another daemon while this one ends: only the unique id tells our mount from that one.
#[derive(Clone, Debug)]
struct Mount {
    target: PathBuf,
    /// The id that no other mount ever gets, where the kernel has such ids.
    unique: Option<u64>,
    /// As mountinfo showed it after mounting.
    info: Option<MountInfo>,
}

/// What is mounted by this process.
#[derive(Debug, Default)]
pub struct State {
    /// Held while mounting, so that a signal never misses a mount that is just being made.
    mount: Mutex<Option<Mount>>,
    /// Upper, to be synced when the process has to end with clients still busy; none for throw-away mounts.
    upper: Mutex<Option<OwnedFd>>,
}

impl State {
    /// Mounts, and remembers what there is to take away.
    pub fn mount(&self, request: &MountRequest) -> Result<MountedFd, MountError> {
        let mut mount = self.mount.lock();
        let mounted = mount::mount(request)?;
        // Neither needs the daemon, which does not answer yet.
        let info = mount::top_mount(&request.target).ok().flatten();
        *mount = Some(Mount {
            target: request.target.clone(),
            unique: mount::unique_id(&request.target),
            info: info.filter(mount::is_fuse),
        });
        Ok(mounted)
    }

    /// Keeps upper to be synced in an emergency.
    pub fn keep_upper(&self, upper: OwnedFd) {
        *self.upper.lock() = Some(upper);
    }

    /// Unmounts, lazily if need be, if our mount is still there. Anything else at its place is left alone.
    pub fn take_away(&self) -> Result<(), UnmountError> {
        match &*self.mount.lock() {
            Some(mount) => mount.take_away(),
            None => Ok(()),
        }
    }

    fn current(&self) -> Option<Mount> {
        self.mount.lock().clone()
    }
}

impl Mount {
    /// Whether our mount is on top at its mount point.
    fn is_there(&self) -> bool {
        match (self.unique, &self.info) {
            (Some(unique), _) => mount::unique_id(&self.target) == Some(unique),
            (None, Some(info)) => mount::top_mount(&self.target)
                .ok()
                .flatten()
                .is_some_and(|top| top == *info),
            (None, None) => false,
        }
    }

    /// Unmounts everything that shows our file system: bind mounts of it first, so that its device number
    /// stays its own until the end.
    fn take_away(&self) -> Result<(), UnmountError> {
        let mounts = mount::fuse_mounts().unwrap_or_default();
        if !self.is_there() {
            let covered = self.info.as_ref().is_some_and(|info| mounts.contains(info));
            return if covered {
                Err(UnmountError::Covered)
            } else {
                Ok(())
            };
        }
        let device = self.info.as_ref().map(|info| info.device);
        let copies = mounts
            .iter()
            .filter(|mount| Some(mount.device) == device && mount.mount_point != self.target);
        for copy in copies {
            if let Err(error) = unmount_or_detach(&copy.mount_point) {
                tracing::warn!("unmounting {}: {error}", copy.mount_point.display());
            }
        }
        unmount_or_detach(&self.target)
    }

    /// Has the kernel write back what it holds for this mount.
    fn sync(&self) {
        if !self.is_there() {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let synced =
            rustix::fs::open(&self.target, flags, Mode::empty()).and_then(rustix::fs::syncfs);
        if let Err(errno) = synced {
            tracing::warn!("syncing {}: {errno}", self.target.display());
        }
    }
}

fn unmount_or_detach(target: &Path) -> Result<(), UnmountError> {
    let unmounted = match mount::unmount(target, false) {
        Err(UnmountError::Busy) => mount::unmount(target, true),
        other => other,
    };
    match unmounted {
        Err(UnmountError::NotMounted) => Ok(()),
        other => other,
    }
}

/// Starts the thread that waits for signals. To be called before any other thread is started: they inherit
/// that the signals are blocked.
pub fn watch_signals(state: &Arc<State>, reporter: &Arc<Reporter>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::failed(format!("waiting for signals: {error}"));
    block_signals(&SIGNALS).map_err(|errno| failed(errno.into()))?;
    let (state, reporter) = (Arc::clone(state), Arc::clone(reporter));
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || on_signals(&state, &reporter))
        .map(drop)
        .map_err(failed)
}

fn on_signals(state: &Arc<State>, reporter: &Arc<Reporter>) {
    let first = wait_signal(&SIGNALS);
    tracing::info!("signal {first:?}: unmounting");
    let (stopping, reporter) = (Arc::clone(state), Arc::clone(reporter));
    let stopper = std::thread::Builder::new().name("stop".to_owned());
    if let Err(error) = stopper.spawn(move || stop(&stopping, &reporter)) {
        tracing::error!("starting a thread to unmount: {error}");
    }
    let second = wait_signal(&SIGNALS);
    tracing::warn!("signal {second:?}: ending at once");
    // Not waiting for anybody who mounts just now; a detach waits for nobody either.
    if let Some(mount) = state.mount.try_lock().and_then(|mount| mount.clone())
        && mount.is_there()
        && let Err(error) = mount::unmount(&mount.target, true)
    {
        tracing::error!("unmounting {}: {error}", mount.target.display());
    }
    exit(FAILED.into());
}

/// Ends the session by taking its mount away. Ends the process only when the session does not end by itself.
fn stop(state: &State, reporter: &Reporter) {
    let Some(mount) = state.current() else {
        reporter.send(FAILED, "stopped by a signal before anything was mounted");
        exit(FAILED.into());
    };
    mount.sync();
    if let Err(error) = mount.take_away() {
        // A daemon that goes on is better than a dead mount point.
        tracing::error!("unmounting {}: {error}; serving on", mount.target.display());
        return;
    }
    std::thread::sleep(BUSY_PATIENCE);
    tracing::warn!(
        "{} is still in use after {BUSY_PATIENCE:?}: ending all the same",
        mount.target.display()
    );
    if let Some(Err(errno)) = state.upper.lock().as_ref().map(rustix::fs::syncfs) {
        tracing::error!("syncing upper: {errno}");
    }
    exit(0);
}
