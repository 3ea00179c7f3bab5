//! The adapter between the kernel's FUSE requests and the overlay core.
//!
//! [`mount`] makes the mount and gives a descriptor; [`Session`] answers on it. The only module
//! that knows fuser's types, so that another transport can stand beside it: `filesystem` is
//! decode, one call into [`Overlay`], one reply.
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

mod convert;
mod filesystem;
mod ioctl;
pub mod mount;
mod refresh;
mod requests;
mod service;

use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::overlay::Overlay;
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
    inner: fuser::Session<Filesystem>,
    overlay: Arc<Overlay>,
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
        let mut config = fuser::Config::default();
        config.n_threads = Some(options.threads.max(1));
        config.clone_fd = options.clone_fd && options.threads > 1;
        let filesystem = Filesystem::new(Arc::clone(&overlay), options.clone());
        let notifier = Arc::clone(&filesystem.notifier);
        // fuser's own filter of callers is left open: the kernel applies the mount's, and fuser's
        // would refuse what the kernel's writeback does on behalf of nobody.
        let inner = fuser::Session::from_fd(filesystem, fd, fuser::SessionACL::All, config)
            .map_err(SessionError::Handshake)?;
        notifier.get_or_init(|| inner.notifier());
        Ok(Session { inner, overlay })
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// [`SessionError::Serve`].
    pub fn run(self) -> Result<(), SessionError> {
        let served = self.inner.run().map_err(SessionError::Serve);
        if let Err(e) = self.overlay.close() {
            tracing::warn!("work was not emptied: {}", io::Error::from(e));
        }
        served
    }
}

/// The errno of a core error, as fuser has it.
fn errno(e: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(e.raw_os_error())
}
