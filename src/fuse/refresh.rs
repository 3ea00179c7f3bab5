//! Dropping what the kernel caches, after the layers were changed beneath the mount.

use rustix::io::Errno;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::answer::Answer;
use super::beside::BESIDE;
use super::channel::Notifier;
use super::service::{Filesystem, fits};
use super::wire::reply;
use super::wire::request::Header;
use crate::overlay::{Overlay, ROOT_ID};

impl Filesystem {
    /// Answers the order to refresh, which only root and whoever runs the daemon may give.
    pub(super) fn refresh(&self, head: &Header, size: u32) -> Answer {
        let own = rustix::process::geteuid().as_raw();
        if head.uid != 0 && head.uid != own {
            return Answer::Error(Errno::PERM);
        }
        let Some(notifier) = self.notifier.get().cloned() else {
            return Answer::Error(Errno::IO);
        };
        let mut trees = vec![(Arc::clone(&self.overlay), self.wire_id(0))];
        if let Some(beside) = self.company.beside() {
            // What is the same may be another thing now.
            beside.beneath.part(|_| ());
            trees.push((Arc::clone(&beside.filesystem.overlay), BESIDE));
        }
        // Invalidations wait for requests that the serving threads have to answer.
        Answer::Later(Box::new(move |out| {
            let mut names = 0;
            for (overlay, bit) in &trees {
                names += drop_caches(overlay, *bit, &notifier)?;
            }
            fits(reply::ioctl(out, &(names as u64).to_ne_bytes(), size))
        }))
    }
}

/// Drops what the daemon and the kernel know of the layers; gives the number of names dropped. `bit` is in the ids by
/// which the kernel knows the nodes.
fn drop_caches(overlay: &Overlay, bit: u64, notifier: &Notifier) -> Result<usize, Errno> {
    let known = overlay.refresh()?;
    let gone = |done: Result<(), Errno>| match done {
        // A mount inside, or a directory in use: its entries are dropped one by one.
        Err(Errno::NOTEMPTY) => Ok(()),
        other => other,
    };
    for name in &known {
        gone(notifier.inval_entry(name.parent | bit, &name.name))?;
    }
    // What is in use was not forgotten with its name.
    let mut dirs = vec![ROOT_ID];
    gone(notifier.inval_inode(ROOT_ID | bit))?;
    for name in &known {
        if let Ok(node) = overlay.node(name.id) {
            gone(notifier.inval_inode(name.id | bit))?;
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
                gone(notifier.inval_entry(dir | bit, name))?;
            }
        }
    }
    Ok(known.len())
}
