//! The adapter between the kernel's FUSE requests and the overlay core.
//!
//! [`mount`] makes the mount and gives a descriptor; [`Session`] answers on it. `wire` is the
//! protocol as pure code, `channel` moves its messages through `/dev/fuse`, `filesystem` is one call
//! into [`Overlay`] and one reply for each request, and knows nothing of where it came from.
//!
//! # Data path
//!
//! Opens of files and directories are answered `ENOSYS` once; from then on the kernel opens,
//! closes, reads cached pages and lists cached directories without us. So there are no handles:
//! reads and writes come by inode. `CREATE` is answered `ENOSYS` too: `MKNOD` and the silent open
//! that the kernel then does are one request less than `CREATE` with its `RELEASE`.
//! `FUSE_ATOMIC_O_TRUNC` must not be asked for here: without an OPEN request the truncation would
//! be lost (fs/fuse/dir.c, `fuse_do_setattr`); without the flag it comes as SETATTR.
//!
//! Names, attributes and absence of names are cached by the kernel without end: nobody else writes
//! to upper, and lowers don't change.

mod answer;
mod channel;
mod filesystem;
mod ioctl;
pub mod mount;
mod refresh;
mod requests;
mod service;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::overlay::Overlay;
use channel::{Device, Notifier};
use service::Filesystem;

/// Whether file data goes past the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    /// Never.
    Off,
    /// Wherever it can be done.
    On,
    /// Where it pays.
    Auto,
}

/// How a session serves.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Number of threads that answer requests, at least 1.
    pub threads: usize,
    /// Give each thread its own clone of the device.
    pub clone_fd: bool,
    /// Seconds for which the kernel may keep names and attributes; `None`: without end.
    pub timeout: Option<f64>,
    /// Let the kernel collect writes.
    pub writeback: bool,
    /// Whether file data goes past the daemon.
    pub passthrough: Passthrough,
    /// Largest write, in bytes.
    pub max_write: u32,
    /// Nothing can be changed.
    pub read_only: bool,
    /// POSIX ACLs count.
    pub acl: bool,
    /// Clients see extended attributes.
    pub xattrs: bool,
}

/// Why a session could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The kernel and we did not agree on how to talk.
    #[error("the FUSE handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// Reading requests failed.
    #[error("serving FUSE requests failed: {0}")]
    Serve(#[source] io::Error),
}

/// A mount that is being served.
pub struct Session {
    device: Device,
    filesystem: Arc<Filesystem>,
}

impl Session {
    /// Shakes hands with the kernel on a descriptor from [`mount::mount`].
    ///
    /// # Errors
    /// [`SessionError::Handshake`].
    pub fn new(
        overlay: Arc<Overlay>,
        fd: OwnedFd,
        options: &SessionOptions,
    ) -> Result<Session, SessionError> {
        let device = Device::new(fd);
        let wanted = service::wanted(options);
        let agreed = channel::shake_hands(&device, &wanted).map_err(SessionError::Handshake)?;
        tracing::debug!(?agreed, "the kernel answers");
        let filesystem = Filesystem::new(overlay, options.clone(), agreed);
        filesystem
            .notifier
            .get_or_init(|| Notifier::new(device.clone()));
        let filesystem = Arc::new(filesystem);
        Ok(Session { device, filesystem })
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// [`SessionError::Serve`].
    pub fn run(self) -> Result<(), SessionError> {
        let served = self.serve().map_err(SessionError::Serve);
        if let Err(e) = self.filesystem.overlay.close() {
            tracing::warn!("work was not emptied: {}", io::Error::from(e));
        }
        served
    }

    /// Serves with all threads, this one among them.
    fn serve(&self) -> io::Result<()> {
        let threads = self.filesystem.options.threads.max(1);
        std::thread::scope(|scope| {
            let mut others = Vec::new();
            for n in 1..threads {
                let device = self.device_for_thread();
                let builder = std::thread::Builder::new().name(format!("fuse-{n}"));
                let serve = move || channel::serve(&device, &self.filesystem);
                match builder.spawn_scoped(scope, serve) {
                    Ok(thread) => others.push(thread),
                    Err(e) => tracing::warn!("fewer threads than wanted: {e}"),
                }
            }
            let mut served = channel::serve(&self.device, &self.filesystem);
            for thread in others {
                let ended = thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a serving thread panicked")));
                served = served.and(ended);
            }
            served
        })
    }

    fn device_for_thread(&self) -> Device {
        if !self.filesystem.options.clone_fd {
            return self.device.clone();
        }
        self.device.try_clone().unwrap_or_else(|e| {
            tracing::debug!("threads share a descriptor: {e}");
            self.device.clone()
        })
    }
}
