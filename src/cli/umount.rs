//! `rovl umount`: unmounts, and waits until the daemon has written everything and ended, unless it serves another
//! mount of the same file system.

use std::path::PathBuf;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::mounted::{self, Mounted};
use super::{Failure, warn};
use crate::fuse::mount::{UnmountError, fuse_mounts, unmount};

/// How long the daemon may take to end.
const PATIENCE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

/// Unmount a merged tree; returns once its daemon has ended.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Take it out of the tree at once, also when it is in use, and don't wait for the daemon
    #[arg(short, long)]
    lazy: bool,
    /// The mount point
    #[arg(value_name = "MERGED")]
    merged: PathBuf,
}

impl UmountArgs {
    /// Without a command line.
    pub fn new(merged: &std::path::Path, lazy: bool) -> UmountArgs {
        UmountArgs {
            lazy,
            merged: merged.to_owned(),
        }
    }
}

/// Runs `rovl umount`.
pub fn run(args: &UmountArgs) -> Result<(), Failure> {
    let mounted = mounted::find(&args.merged)?;
    // Opened before unmounting: afterwards the id might be another process's.
    let daemon = daemon_of(&mounted)?;
    let shown = args.merged.display();
    unmount(&mounted.target, args.lazy).map_err(|error| match error {
        UnmountError::Busy => Failure::failed(format!(
            "{shown} is in use: close what is open in it and leave its directories (`fuser -vm {shown}` shows \
             who is there), or use `rovl umount --lazy {shown}`"
        )),
        other => Failure::failed(format!("can't unmount {shown}: {other}")),
    })?;
    match (daemon, args.lazy) {
        (Some((pid, fd)), false) if !is_elsewhere(&mounted) => wait_for(pid, &fd, &args.merged),
        _ => Ok(()),
    }
}

/// Whether the file system is still mounted in another place: its daemon goes on then.
fn is_elsewhere(unmounted: &Mounted) -> bool {
    let mounts = fuse_mounts().unwrap_or_default();
    mounts.iter().any(|mount| mount.device == unmounted.device)
}

/// The daemon's process id and a descriptor for it; `None`: it has ended, or is not known.
fn daemon_of(mounted: &Mounted) -> Result<Option<(Pid, OwnedFd)>, Failure> {
    let pid = mounted
        .stat
        .as_ref()
        .ok()
        .and_then(|stat| stat.fields.get("pid")?.as_i64());
    let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?)) else {
        return Ok(None);
    };
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some((pid, fd))),
        // Ended already, or in another pid namespace, where its number means nothing to us.
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(errno) => Err(Failure::failed(format!(
            "watching the daemon (pid {pid}): {errno}"
        ))),
    }
}

fn wait_for(pid: Pid, daemon: &OwnedFd, merged: &std::path::Path) -> Result<(), Failure> {
    loop {
        match rustix::event::poll(&mut [PollFd::new(daemon, PollFlags::IN)], Some(&PATIENCE)) {
            Ok(0) => {
                let shown = merged.display();
                return Err(Failure::failed(format!(
                    "{shown} is unmounted, but its daemon (pid {pid}) has not ended after {} s: another mount \
                     namespace may still have it, or much is still being written",
                    PATIENCE.tv_sec
                )));
            }
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => {
                warn(&format!("waiting for the daemon (pid {pid}): {errno}"));
                return Ok(());
            }
        }
    }
}
