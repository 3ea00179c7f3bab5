//! Dropping what the kernel caches, after the layers were changed beneath the mount.

use fuser::{INodeNo, ReplyXattr};
use rustix::io::Errno;
use std::ffi::OsString;
use std::ops::ControlFlow;

use super::errno;
use super::service::{Filesystem, reply_xattr};
use crate::overlay::{Overlay, ROOT_ID};

/// The xattr of the root whose reading refreshes the mount; its value is the number of names that were
/// dropped. Reading, because setting would need a writable mount, and would hold the root locked.
pub(super) const REFRESH_XATTR: &str = "user.rovl.refresh";

impl Filesystem {
    /// Answers a request to read [`REFRESH_XATTR`], which only root and whoever runs the daemon may make.
    pub(super) fn refresh(&self, req: &fuser::Request, size: u32, reply: ReplyXattr) {
        let own = rustix::process::geteuid().as_raw();
        if req.uid() != 0 && req.uid() != own {
            return reply.error(errno(Errno::PERM));
        }
        if size == 0 {
            // The question how long the answer will be.
            return reply_xattr(reply, 0, &[0; 20]);
        }
        let (overlay, notifier) = (self.overlay.clone(), self.notifier.get().cloned());
        let refresh = move || {
            let Some(notifier) = notifier else {
                return reply.error(errno(Errno::IO));
            };
            match drop_caches(&overlay, &notifier) {
                Ok(names) => reply_xattr(reply, size, names.to_string().as_bytes()),
                Err(e) => reply.error(errno(e)),
            }
        };
        // Invalidations wait for requests that the serving threads have to answer.
        if let Err(e) = std::thread::Builder::new()
            .name("refresh".into())
            .spawn(refresh)
        {
            tracing::warn!("no thread to refresh with: {e}");
        }
    }
}

/// Drops what the daemon and the kernel know of the layers; gives the number of names dropped.
fn drop_caches(overlay: &Overlay, notifier: &fuser::Notifier) -> Result<usize, Errno> {
    let known = overlay.refresh()?;
    let gone = |done: std::io::Result<()>| match done {
        Ok(()) => Ok(()),
        // The kernel does not know it, which is what was wanted.
        Err(e) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        // A mount inside, or a directory in use: its entries are dropped one by one.
        Err(e) if e.raw_os_error() == Some(Errno::NOTEMPTY.raw_os_error()) => Ok(()),
        Err(e) => Err(Errno::from_io_error(&e).unwrap_or(Errno::IO)),
    };
    for name in &known {
        gone(notifier.inval_entry(INodeNo(name.parent), &name.name))?;
    }
    // What is in use was not forgotten with its name.
    let mut dirs = vec![ROOT_ID];
    gone(notifier.inval_inode(INodeNo(ROOT_ID), 0, 0))?;
    for name in &known {
        if let Ok(node) = overlay.node(name.id) {
            gone(notifier.inval_inode(INodeNo(name.id), 0, 0))?;
            if node.is_dir() {
                dirs.push(name.id);
            }
        }
    }
    // Names that were absent until now: the kernel remembers that, too.
    for dir in dirs {
        let mut names: Vec<OsString> = Vec::new();
        let listed = overlay.readdir(dir, 0, &mut |entry| {
            names.push(entry.name.to_os_string());
            ControlFlow::Continue(())
        });
        if listed.is_ok() {
            for name in names.iter().filter(|n| *n != "." && *n != "..") {
                gone(notifier.inval_entry(INodeNo(dir), name))?;
            }
        }
    }
    Ok(known.len())
}
