//! Redirects: where the lower part of something that was renamed is.

use rustix::io::Errno;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::format::keys::OverlayKey;
use crate::format::redirect::{MAX_ABSOLUTE, Redirect};
use crate::overlay::attr::{Kind, stat_at};
use crate::overlay::copy_up::CopyData;
use crate::overlay::node::{DataAt, Node};
use crate::overlay::{Overlay, ROOT_ID};
use crate::sys::xattr::{self, SetFlags};

impl Overlay {
    /// Says on an object of upper where its lower part is (`ovl_set_redirect`). `same_dir`: it is
    /// about to get another name in its directory, nothing else.
    pub(crate) fn set_redirect(&self, node: &Arc<Node>, same_dir: bool) -> Result<(), Errno> {
        let known = own_redirect(node);
        // Another name of a file may be in another directory.
        let relative = same_dir && (node.dir.is_some() || !self.has_links(node)?);
        match &known {
            Some(Redirect::Absolute(_)) => return Ok(()),
            Some(Redirect::Relative(_)) if relative => return Ok(()),
            _ => {}
        }
        let redirect = if relative {
            Redirect::Relative(node.place.read().name.to_os_string())
        } else {
            Redirect::Absolute(self.lower_path(node, known)?)
        };
        let value = redirect.encode();
        if matches!(redirect, Redirect::Absolute(_)) && value.len() > MAX_ABSOLUTE {
            return Err(Errno::XDEV); // as the kernel: mv(1) then copies
        }
        let key = self.ns.key(OverlayKey::Redirect);
        self.with_object(node, |dir, name| {
            xattr::set_at(dir, name, key, &value, SetFlags::Any)
        })?;
        match &node.dir {
            Some(part) => *part.redirect.lock() = Some(redirect),
            None => node.place.write().extra_mut().redirect = Some(redirect),
        }
        Ok(())
    }

    /// Has the file, or the lower file that its data is in, several names?
    fn has_links(&self, node: &Node) -> Result<bool, Errno> {
        let own = self.with_object(node, stat_at)?.stx_nlink;
        let data = node.place.read().data().cloned();
        let below = match data {
            Some(DataAt::Lower { dir, name, .. }) => {
                let fd = self.lowers.dir_fd(&self.fds, &dir)?;
                stat_at(fd.as_fd(), &name)?.stx_nlink
            }
            _ => 1,
        };
        Ok(own > 1 || below > 1)
    }

    /// A file without its data whose lower path is too long for a redirect gets its data.
    pub(crate) fn ensure_redirectable(&self, node: &Arc<Node>) -> Result<(), Errno> {
        if node.kind != Kind::File || node.place.read().data().is_none() {
            return Ok(());
        }
        let path = self.lower_path(node, own_redirect(node))?;
        if Redirect::Absolute(path).encode().len() > MAX_ABSOLUTE {
            self.ensure_upper(node, CopyData::All)?;
        }
        Ok(())
    }

    /// The path of an object in the merged view of the lowers alone.
    fn lower_path(&self, node: &Arc<Node>, own: Option<Redirect>) -> Result<Vec<OsString>, Errno> {
        let mut names: Vec<OsString> = Vec::new();
        let mut at = Arc::clone(node);
        let mut redirect = own;
        while at.id != ROOT_ID {
            match redirect {
                Some(Redirect::Absolute(path)) => {
                    names.extend(path.into_iter().rev());
                    break;
                }
                Some(Redirect::Relative(name)) => names.push(name),
                None => names.push(at.place.read().name.to_os_string()),
            }
            let parent = at.place.read().parent.clone().ok_or(Errno::STALE)?;
            at = parent;
            redirect = own_redirect(&at);
        }
        names.reverse();
        Ok(names)
    }
}

/// The redirect that is stored on an object.
fn own_redirect(node: &Node) -> Option<Redirect> {
    match &node.dir {
        Some(part) => part.redirect.lock().clone(),
        None => {
            let place = node.place.read();
            place.extra.as_ref().and_then(|e| e.redirect.clone())
        }
    }
}
