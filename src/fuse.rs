//! The adapter between the kernel's FUSE requests and the overlay core.
//!
//! [`mount`] makes the mount and gives a descriptor; [`Session`] answers on it. `wire` is the
//! protocol as pure code, `channel` moves its messages through `/dev/fuse`, `filesystem` is one call
//! into [`Overlay`] and one reply for each request, and knows nothing of where it came from.
//!
//! # Why the protocol is spoken here
//!
//! At first the crate fuser (0.18) did it. It could not: give a node another number than its inode number;
//! pass on by whom set-id bits are lost (`FATTR_KILL_SUIDGID`, `FUSE_SETXATTR_EXT`); decode times before 1970;
//! keep a name longer than its attributes, or show `d_ino` beside a node, in a listing; answer TMPFILE, STATX,
//! SYNCFS; serve over io_uring. Speed was no reason. Microseconds per call, one client, layers on tmpfs, 7
//! rounds taken in turns on 2 cores (Linux 6.18) that others kept busy, the least of the rounds' medians; in
//! parentheses with layers on ext4, 5 rounds:
//!
//! | | fuser | here, `/dev/fuse` | here, io_uring |
//! |---|---|---|---|
//! | stat, timeout 0 | 28 (34) | 27 (32) | 29 (34) |
//! | mkdir | 37 (189) | 37 (174) | 36 (75) |
//! | create, write 4 KiB, close | 75 (249) | 76 (238) | 83 (126) |
//! | unlink | 46 (88) | 42 (77) | 53 (81) |
//!
//! Beside other load io_uring wins where the work is long, since the thread that answers runs on the CPU of
//! whoever asks; an idle machine is still to be measured.
//!
//! SYNCFS is answered but does not come: the kernel sends it for virtiofs alone (`fc->sync_fs`), so syncfs(2)
//! on the mount writes what the kernel keeps back and no more. STATX comes once for each inode whose time of
//! birth somebody asks for; its other attributes are cached as ever.
//!
//! # Data paths
//!
//! **Cached**, the default: opens of files and directories are answered `ENOSYS` once; from then on the
//! kernel opens, closes, reads cached pages and lists cached directories without us. So there are no handles:
//! reads and writes come by inode. `CREATE` is answered `ENOSYS` too: `MKNOD` and the silent open
//! that the kernel then does are one request less than `CREATE` with its `RELEASE`.
//! `FUSE_ATOMIC_O_TRUNC` must not be asked for here: without an OPEN request the truncation would
//! be lost (fs/fuse/dir.c, `fuse_do_setattr`); without the flag it comes as SETATTR.
//!
//! The kernel does not keep writes back (`writeback=off`) unless it is asked to: with the writeback cache it forgets at
//! each close how many blocks a file has (fs/fuse/file.c, `fuse_flush`), so the next stat is a request, and it sends
//! the times that it set itself in a SETATTR of its own. Requests for each file, without and with it: a second
//! `grep -r` or `tar c` 0 and 1, unlink of a file that was just written 2 and 3, `cp -a` 10 and 12. One run on a busy
//! machine, time ÷ that of the kernel's overlayfs: `grep -r` 0.9 and 1.8, `tar c` 0.8 and 3.1, create + write 3.0 and
//! 4.8, dpkg 1.6 and 1.9, make 1.37 and 1.42; the other way round 4 KiB writes at random places 5.5 and 0.6. And what
//! write(2) has acknowledged is in upper, whatever becomes of the daemon.
//!
//! **Passthrough** (`passthrough=on`): OPEN and CREATE are answered, and data goes to the files of the layers
//! where that is safe, which `passthrough` tells; OPENDIR is not. Milliseconds or microseconds, least of 5 rounds
//! taken in turns, no upper, on 2 cores that others kept busy:
//!
//! | | ext4 | cached | passthrough |
//! |---|---|---|---|
//! | read 256 MiB, cold | 138 ms | 338 ms | 132 ms |
//! | the same, warm | 31 ms | 113 ms | 37 ms |
//! | the same in a second mount of the layer | | 291 ms | 17 ms |
//! | open, read 4 KiB, close, warm | 10 µs | 10 µs | 60 µs |
//! | the same, first time | 112 µs | 221 µs | 282 µs |
//!
//! An open costs 50 µs more, a MiB 0.3 ms less: it pays for files above some 200 KiB that are read as a whole,
//! and few are that large. (With an upper, medians of `tools/bench --quick`, cached being `writeback=on`: 128 MiB
//! written and synced 0.54 s and 0.31 s, 4 KiB written to a mapping 81 µs and 1.9 µs, by `O_DIRECT` 1,467 µs and
//! 107 µs, `grep -r` 52 ms and 140 ms.) So it is not the default, and who asks for it knows their files. `auto`
//! takes it where there is no upper: every file is passed through then, and many mounts of the same layers hold
//! their pages once.
//! To answer opens of large files alone is not possible: `ENOSYS` is for the whole connection.
//!
//! Names, attributes and absence of names are cached by the kernel without end: nobody else writes
//! to upper, and lowers don't change.

mod answer;
mod beside;
mod channel;
mod crew;
mod filesystem;
mod idle;
mod ioctl;
pub mod mount;
mod opens;
mod passthrough;
mod refresh;
mod requests;
mod service;
mod uring;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::overlay::Overlay;
use crate::sys::process::has_cap_sys_admin_in_init_ns;
pub use beside::digest as digest_beside;
use channel::{Device, Notifier};
use crew::Crew;
pub use idle::IdlePolling;
use idle::Wakefulness;
use passthrough::Paths;
use service::Filesystem;
use wire::abi::init::{OVER_IO_URING, PASSTHROUGH};
use wire::init::InitIn;

/// Whether file data goes past the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    /// Never.
    Off,
    /// Wherever it can be done; else there is no session.
    On,
    /// Wherever it can be done; else a warning.
    Preferred,
    /// Where it pays: where there is no upper, and it can be done. The module's documentation has the figures.
    Auto,
}

/// Whether requests come over io_uring, which needs Linux 6.14 and
/// `/sys/module/fuse/parameters/enable_uring`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoUring {
    /// Never.
    Off,
    /// Or else through the device, with a warning.
    On,
    /// Where the kernel offers it and it can be had, else through the device.
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
    /// Whether requests come over io_uring.
    pub io_uring: IoUring,
    /// Whether idle CPUs poll while clients are at work.
    pub idle_polling: IdlePolling,
    /// Largest write, in bytes.
    pub max_write: u32,
    /// Nothing can be changed.
    pub read_only: bool,
    /// POSIX ACLs count.
    pub acl: bool,
    /// Clients see extended attributes.
    pub xattrs: bool,
    /// What a mount of the layers beneath the top one has to agree in to be served beside this one (see
    /// [`digest_beside`]); `None`: none is.
    pub alike: Option<String>,
}

/// Why a session could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The kernel and we did not agree on how to talk.
    #[error("the FUSE handshake failed: {0}")]
    Handshake(#[source] io::Error),
    /// File data can't go past the daemon.
    #[error("passthrough=on can't be had: {0}")]
    Passthrough(&'static str),
    /// Reading requests failed.
    #[error("serving FUSE requests failed: {0}")]
    Serve(#[source] io::Error),
}

/// A mount that is being served.
pub struct Session {
    device: Device,
    filesystem: Arc<Filesystem>,
    /// Empty: requests come through the device alone.
    workers: Vec<uring::Worker>,
}

impl Session {
    /// Shakes hands with the kernel on a descriptor from [`mount::mount`].
    ///
    /// # Errors
    /// [`SessionError::Handshake`], [`SessionError::Passthrough`].
    pub fn new(
        overlay: Arc<Overlay>,
        fd: OwnedFd,
        options: &SessionOptions,
    ) -> Result<Session, SessionError> {
        let device = Device::new(fd).map_err(|e| SessionError::Handshake(e.into()))?;
        let mut workers = Vec::new();
        let wants_passthrough = match options.passthrough {
            Passthrough::Off => false,
            Passthrough::On | Passthrough::Preferred => true,
            Passthrough::Auto => overlay.is_read_only(),
        };
        let mut refused = passthrough_refused();
        let wanted = |kernel: &InitIn| {
            if kernel.flags & PASSTHROUGH == 0 {
                refused = refused.or(Some("this kernel doesn't offer it (Linux 6.9 does)"));
            }
            let passes = wants_passthrough && refused.is_none();
            let mut wanted = service::wanted(options, passes);
            workers = ring_workers(options, kernel, wanted.payload());
            if !workers.is_empty() {
                wanted.flags |= OVER_IO_URING;
            }
            wanted
        };
        let agreed = channel::shake_hands(&device, wanted).map_err(SessionError::Handshake)?;
        tracing::debug!(?agreed, "the kernel answers");
        match (options.passthrough, refused) {
            (Passthrough::On, Some(why)) => return Err(SessionError::Passthrough(why)),
            (Passthrough::Preferred, Some(why)) => tracing::warn!("no passthrough: {why}"),
            (Passthrough::Auto, Some(why)) => tracing::debug!("no passthrough: {why}"),
            _ => {}
        }
        let paths = agreed.has(PASSTHROUGH);
        let paths = paths.then(|| Paths::new(device.clone()));
        let filesystem = Filesystem::new(overlay, options.clone(), agreed, paths);
        filesystem
            .notifier
            .get_or_init(|| Notifier::new(device.clone()));
        let filesystem = Arc::new(filesystem);
        Ok(Session {
            device,
            filesystem,
            workers,
        })
    }

    /// Serves until the file system is unmounted.
    ///
    /// # Errors
    /// [`SessionError::Serve`].
    pub fn run(self) -> Result<(), SessionError> {
        let filesystem = self.filesystem;
        let served = serve(&self.device, &filesystem, self.workers).map_err(SessionError::Serve);
        if let Err(e) = filesystem.overlay.close() {
            tracing::warn!("work was not emptied: {}", io::Error::from(e));
        }
        served
    }
}

/// Why this process can't have file data go past it; `None`: as far as it goes, it can.
pub fn passthrough_refused() -> Option<&'static str> {
    let refused = !has_cap_sys_admin_in_init_ns();
    refused.then_some("it takes CAP_SYS_ADMIN in the initial user namespace")
}

/// Serves with all threads, this one among them.
fn serve(
    device: &Device,
    filesystem: &Arc<Filesystem>,
    workers: Vec<uring::Worker>,
) -> io::Result<()> {
    let threads = filesystem.options.threads.max(1);
    let crew = Crew::new(Wakefulness::new(filesystem.options.idle_polling));
    let crew = &crew;
    std::thread::scope(|scope| {
        let mut others = Vec::new();
        let mut start = |name: String, serve: Box<dyn FnOnce() -> io::Result<()> + Send>| {
            let spawned = std::thread::Builder::new().name(name);
            spawned
                .spawn_scoped(scope, serve)
                .map(|thread| others.push(thread))
        };
        for (n, worker) in workers.into_iter().enumerate() {
            let serve = move || worker.serve(device, filesystem);
            if let Err(e) = start(format!("ring-{n}"), Box::new(serve)) {
                tracing::warn!("no io_uring: {e}");
                uring::refuse(device)?;
                break;
            }
        }
        for n in 1..threads {
            let device = device_for_thread(device, filesystem);
            let serve = move || channel::serve(&device, filesystem, crew);
            if let Err(e) = start(format!("fuse-{n}"), Box::new(serve)) {
                tracing::warn!("fewer threads than wanted: {e}");
            }
        }
        let mut served = channel::serve(device, filesystem, crew);
        for thread in others {
            let ended = thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a serving thread panicked")));
            served = served.and(ended);
        }
        served
    })
}

fn device_for_thread(device: &Device, filesystem: &Filesystem) -> Device {
    if !filesystem.options.clone_fd {
        return device.clone();
    }
    device.try_clone().unwrap_or_else(|e| {
        tracing::debug!("threads share a descriptor: {e}");
        device.clone()
    })
}

/// The threads' parts of io_uring, if requests are to come that way. None: why is in the log.
fn ring_workers(options: &SessionOptions, kernel: &InitIn, payload: usize) -> Vec<uring::Worker> {
    let refused = match options.io_uring {
        IoUring::Off => return Vec::new(),
        _ if kernel.flags & OVER_IO_URING == 0 => io::Error::other("the kernel doesn't offer it"),
        _ => match uring::workers(payload) {
            Ok(workers) => return workers,
            Err(e) => e,
        },
    };
    match options.io_uring {
        IoUring::On => tracing::warn!("no io_uring: {refused}"),
        _ => tracing::debug!("no io_uring: {refused}"),
    }
    Vec::new()
}
