//! Extended attributes and POSIX ACLs of the merged tree. The layers' own marks never show; a
//! client's attributes of the same names are stored escaped, as the kernel does, so that overlays
//! can be nested.

use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use super::Overlay;
use super::attr::SetAttr;
use super::copy_up::CopyData;
use super::node::Node;
use crate::sys::xattr::{self, SetFlags};

/// What the names of POSIX ACLs begin with.
const ACLS: &[u8] = b"system.posix_acl_";
/// fuse-overlayfs's own marks; not a client's business either.
pub(super) const FOREIGN_MARKS: &[u8] = b"user.fuseoverlayfs.";

impl Overlay {
    /// The name under which a client's attribute is stored; `None` for names that are nobody's.
    fn stored_name(&self, name: &OsStr) -> Result<Option<CString>, Errno> {
        let name = name.as_bytes();
        if self.ids.refuses_acl(name) {
            return Err(Errno::OPNOTSUPP);
        }
        if name.starts_with(FOREIGN_MARKS) || self.ids.hides(name) {
            return Ok(None);
        }
        let stored = self.ns.to_stored(name);
        if stored.len() > 255 {
            return Err(Errno::OPNOTSUPP);
        }
        CString::new(stored.into_owned())
            .map(Some)
            .map_err(|_| Errno::INVAL)
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `ENODATA`, `EOPNOTSUPP`, `ESTALE`, and what else the layer returns. `ENOSYS`: nothing has attributes
    /// here, nor will it have some.
    pub fn getxattr(&self, id: u64, name: &OsStr) -> Result<Vec<u8>, Errno> {
        let node = self.node(id)?;
        if self.xattrless.is_sure() {
            return Err(Errno::NOSYS);
        }
        let Some(key) = self.stored_name(name)? else {
            return Err(Errno::NODATA);
        };
        let value = self.with_object(&node, |dir, name| {
            match xattr::get_or_errno(dir, name, &key) {
                // A lower without ACLs: the kernel's check of permissions would fail with this error.
                Err(Errno::OPNOTSUPP) if key.as_bytes().starts_with(ACLS) => Err(Errno::NODATA),
                other => self.ids.value_on_disk((dir, name), &key, other?),
            }
        })?;
        self.ids.shown_value(name, value)
    }

    /// The names of all extended attributes, each ended by a NUL. `trusted`: also those that only
    /// privileged callers see.
    ///
    /// # Errors
    /// As [`getxattr`](Self::getxattr).
    pub fn listxattr(&self, id: u64, trusted: bool) -> Result<Vec<u8>, Errno> {
        let node = self.node(id)?;
        if self.xattrless.is_sure() {
            return Err(Errno::NOSYS);
        }
        let stored = self.with_object(&node, xattr::list_at)?;
        let mut shown = Vec::with_capacity(stored.len());
        for name in stored.split(|b| *b == 0).filter(|n| !n.is_empty()) {
            if !self.is_shown_xattr(name) || (!trusted && name.starts_with(b"trusted.")) {
                continue;
            }
            if let Some(name) = self.ns.to_shown(name) {
                shown.extend_from_slice(&name);
                shown.push(0);
            }
        }
        if shown.is_empty() {
            self.had_no_xattr();
        }
        Ok(shown)
    }

    /// Sets an extended attribute, after a copy-up.
    ///
    /// # Errors
    /// `EEXIST` and `ENODATA` by `flags`, `EPERM` for names that belong to overlay file systems,
    /// `EROFS`, and what upper's file system returns.
    pub fn setxattr(
        &self,
        id: u64,
        name: &OsStr,
        value: &[u8],
        flags: SetFlags,
    ) -> Result<(), Errno> {
        let node = self.node(id)?;
        let key = self.stored_name(name)?.ok_or(Errno::PERM)?;
        let mapped = self.ids.stored_value(name, value)?;
        let value = mapped.as_deref().unwrap_or(value);
        node.check_changeable()?;
        self.ensure_upper(&node, CopyData::Nothing)?;
        self.with_object(&node, |dir, name| {
            xattr::set_at(dir, name, &key, value, flags)
        })?;
        self.xattr_changed(&node, name);
        Ok(())
    }

    /// Removes an extended attribute. Nothing is copied up for one that isn't there.
    ///
    /// # Errors
    /// `ENODATA`, and as [`setxattr`](Self::setxattr).
    pub fn removexattr(&self, id: u64, name: &OsStr) -> Result<(), Errno> {
        let node = self.node(id)?;
        let key = self.stored_name(name)?.ok_or(Errno::NODATA)?;
        node.check_changeable()?;
        if !node.place.read().has_upper() {
            self.upper()?;
            self.with_object(&node, |dir, name| xattr::get_or_errno(dir, name, &key))?;
        }
        self.ensure_upper(&node, CopyData::Nothing)?;
        self.with_object(&node, |dir, name| xattr::remove_at(dir, name, &key))?;
        self.xattr_changed(&node, name);
        Ok(())
    }

    fn xattr_changed(&self, node: &Node, name: &OsStr) {
        if let Some(dir) = &node.dir
            && name == "system.posix_acl_default"
        {
            dir.default_acl.forget();
        }
    }

    /// Takes the set-group-id bit away, as setting an access ACL does for somebody who is not in
    /// the file's group.
    ///
    /// # Errors
    /// What upper's file system returns.
    pub fn drop_setgid(&self, id: u64) -> Result<(), Errno> {
        let node = self.node(id)?;
        self.ensure_upper(&node, CopyData::Nothing)?;
        self.with_object(&node, |dir, name| {
            let mode = u32::from(self.shown_at(dir, name)?.stx_mode);
            if mode & 0o2000 == 0 {
                return Ok(());
            }
            self.set_owner_and_mode(dir, name, &SetAttr::mode(mode & 0o5777))
        })
    }
}
