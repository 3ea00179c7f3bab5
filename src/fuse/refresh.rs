//! Dropping what the kernel caches, after the layers were changed beneath the mount.

use rustix::io::Errno;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::answer::Answer;
use super::channel::Notifier;
use super::service::{Filesystem, xattr};
use super::wire::reply::Out;
use super::wire::request::Header;
use crate::overlay::{Overlay, ROOT_ID};

/// The xattr of the root whose reading refreshes the mount; its value is the number of names that were
/// dropped. Reading, because setting would need a writable mount, and would hold the root locked.
pub(super) const REFRESH_XATTR: &str = "user.rovl.refresh";

impl Filesystem {
    /// Answers a request to read [`REFRESH_XATTR`], which only root and whoever runs the daemon may make.
    pub(super) fn refresh(&self, head: &Header, size: u32, out: &mut Out<'_>) -> Answer {
        let own = rustix::process::geteuid().as_raw();
        if head.uid != 0 && head.uid != own {
            return Answer::Error(Errno::PERM);
        }
        if size == 0 {
            // The question how long the answer will be.
            return xattr(out, 0, &[0; 20]).into();
        }
        let Some(notifier) = self.notifier.get().cloned() else {
            return Answer::Error(Errno::IO);
        };
        let overlay = Arc::clone(&self.overlay);
        // Invalidations wait for requests that the serving threads have to answer.
        Answer::Later(Box::new(move |out| {
            let names = drop_caches(&overlay, &notifier)?;
            xattr(out, size, names.to_string().as_bytes())
        }))
    }
}

/// Drops what the daemon and the kernel know of the layers; gives the number of names dropped.
fn drop_caches(overlay: &Overlay, notifier: &Notifier) -> Result<usize, Errno> {
    let known = overlay.refresh()?;
    let gone = |done: Result<(), Errno>| match done {
        // A mount inside, or a directory in use: its entries are dropped one by one.
        Err(Errno::NOTEMPTY) => Ok(()),
        other => other,
    };
    for name in &known {
        gone(notifier.inval_entry(name.parent, &name.name))?;
    }
    // What is in use was not forgotten with its name.
    let mut dirs = vec![ROOT_ID];
    gone(notifier.inval_inode(ROOT_ID))?;
    for name in &known {
        if let Ok(node) = overlay.node(name.id) {
            gone(notifier.inval_inode(name.id))?;
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
                gone(notifier.inval_entry(dir, name))?;
            }
        }
    }
    Ok(known.len())
}
