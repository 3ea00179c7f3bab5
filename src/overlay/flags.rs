//! Inode flags (chattr(1)) and what goes with them.
//!
//! Immutable and append-only can't be set on the objects of upper: nothing could be done with them then,
//! not even by the overlay. As in the kernel (`ovl_set_protattr` in fs/overlayfs/util.c) they are stored as
//! `overlay.protattr`, and the overlay stands for them. All other flags are the object's own.

use rustix::fs::{OFlags, Statx, StatxAttributes};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::Overlay;
use super::attr::Kind;
use super::copy_up::CopyData;
use super::layer::Layer;
use super::node::Node;
use crate::format::keys::OverlayKey;
use crate::sys::fs as sysfs;
use crate::sys::fsxattr::{self, FSXATTR};
use crate::sys::xattr::{self, SetFlags};

const FS_IMMUTABLE_FL: u32 = 0x10;
const FS_APPEND_FL: u32 = 0x20;
const FS_SYNC_FL: u32 = 0x8;
const FS_NOATIME_FL: u32 = 0x80;
const FS_XFLAG_IMMUTABLE: u32 = 0x8;
const FS_XFLAG_APPEND: u32 = 0x10;
/// What a copy takes over of its original's flags (`OVL_COPY_FS_FLAGS_MASK`).
const COPIED: u32 = FS_SYNC_FL | FS_NOATIME_FL;

/// What may not be done to an object, whoever asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Protection {
    pub immutable: bool,
    pub append_only: bool,
}

impl Protection {
    /// That of an object of a lower.
    pub(crate) fn of_lower(layer: &Layer, st: &Statx) -> Protection {
        // erofs says that everything on it is immutable.
        if !layer.has_flags {
            return Protection::default();
        }
        Protection {
            immutable: st.stx_attributes.contains(StatxAttributes::IMMUTABLE),
            append_only: st.stx_attributes.contains(StatxAttributes::APPEND),
        }
    }

    /// Reads `overlay.protattr`; as in the kernel, what is unknown in it protects from nothing.
    pub(crate) fn parse(value: &[u8]) -> Protection {
        if value.is_empty() || value.iter().any(|b| !b"ai".contains(b)) {
            return Protection::default();
        }
        Protection {
            immutable: value.contains(&b'i'),
            append_only: value.contains(&b'a'),
        }
    }

    pub(crate) fn encode(self) -> Vec<u8> {
        let mut value = Vec::with_capacity(2);
        if self.append_only {
            value.push(b'a');
        }
        if self.immutable {
            value.push(b'i');
        }
        value
    }

    pub(crate) fn any(self) -> bool {
        self.immutable || self.append_only
    }

    pub(crate) fn bits(self) -> u8 {
        u8::from(self.immutable) | u8::from(self.append_only) << 1
    }

    pub(crate) fn from_bits(bits: u8) -> Protection {
        Protection {
            immutable: bits & 1 != 0,
            append_only: bits & 2 != 0,
        }
    }

    fn of_flags(flags: u32) -> Protection {
        Protection {
            immutable: flags & FS_IMMUTABLE_FL != 0,
            append_only: flags & FS_APPEND_FL != 0,
        }
    }

    fn of_xflags(flags: u32) -> Protection {
        Protection {
            immutable: flags & FS_XFLAG_IMMUTABLE != 0,
            append_only: flags & FS_XFLAG_APPEND != 0,
        }
    }

    fn flags(self) -> u32 {
        let one = |on: bool, flag| if on { flag } else { 0 };
        one(self.immutable, FS_IMMUTABLE_FL) | one(self.append_only, FS_APPEND_FL)
    }

    fn xflags(self) -> u32 {
        let one = |on: bool, flag| if on { flag } else { 0 };
        one(self.immutable, FS_XFLAG_IMMUTABLE) | one(self.append_only, FS_XFLAG_APPEND)
    }
}

impl Node {
    /// May its contents and attributes be changed? Not where it is immutable or append-only.
    ///
    /// # Errors
    /// `EPERM`.
    pub(crate) fn check_changeable(&self) -> Result<(), Errno> {
        match self.protection().any() {
            true => Err(Errno::PERM),
            false => Ok(()),
        }
    }

    /// May names in it be made?
    ///
    /// # Errors
    /// `EPERM`.
    pub(crate) fn check_adding(&self) -> Result<(), Errno> {
        match self.protection().immutable {
            true => Err(Errno::PERM),
            false => Ok(()),
        }
    }
}

impl Overlay {
    /// The protection that an object of upper is marked with.
    pub(crate) fn stored_protection(
        &self,
        fd: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Protection, Errno> {
        let value = xattr::get_at(fd, name, self.ns.key(OverlayKey::Protattr))?;
        Ok(value.map_or_else(Protection::default, |v| Protection::parse(&v)))
    }

    /// Takes over flags of the original; `copy` is open for ioctls.
    pub(crate) fn copy_flags(
        &self,
        from: BorrowedFd<'_>,
        copy: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let wanted = sysfs::inode_flags(from)?.unwrap_or(0);
        let protection = Protection::of_flags(wanted);
        if protection.any() {
            let key = self.ns.key(OverlayKey::Protattr);
            xattr::set_at(
                copy,
                OsStr::new(""),
                key,
                &protection.encode(),
                SetFlags::Any,
            )?;
        }
        if wanted & COPIED == 0 {
            return Ok(());
        }
        let Some(now) = sysfs::inode_flags(copy)? else {
            return Ok(());
        };
        match sysfs::set_inode_flags(copy, now & !COPIED | wanted & COPIED) {
            // Another file system, which has no such flags: as in the kernel.
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL) => Ok(()),
            other => other,
        }
    }

    fn flags_fd(&self, node: &Arc<Node>) -> Result<OwnedFd, Errno> {
        match node.kind {
            Kind::File | Kind::Dir => self.open_object(node, OFlags::RDONLY),
            _ => Err(Errno::NOTTY),
        }
    }

    /// The inode's flags (`FS_*_FL`).
    ///
    /// # Errors
    /// `ENOTTY` where there are none.
    pub fn get_flags(&self, id: u64) -> Result<u32, Errno> {
        let node = self.node(id)?;
        let fd = self.flags_fd(&node)?;
        let own = sysfs::inode_flags(fd.as_fd())?.ok_or(Errno::NOTTY)?;
        Ok(own | node.protection().flags())
    }

    /// Sets the inode's flags. The kernel has checked that the caller may.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for flags that upper's file system lacks, `EPERM` where immutable and append-only can't
    /// be stored, `EROFS`.
    pub fn set_flags(&self, id: u64, flags: u32) -> Result<(), Errno> {
        let node = self.node(id)?;
        self.ensure_upper(&node, CopyData::Nothing)?;
        let fd = self.flags_fd(&node)?;
        let protection = Protection::of_flags(flags);
        let own = flags & !(FS_IMMUTABLE_FL | FS_APPEND_FL);
        if sysfs::inode_flags(fd.as_fd())?.ok_or(Errno::NOTTY)? != own {
            sysfs::set_inode_flags(fd.as_fd(), own)?;
        }
        self.protect(&node, protection)
    }

    /// The inode's further attributes: `struct fsxattr` in the machine's byte order.
    ///
    /// # Errors
    /// `ENOTTY` where there are none.
    pub fn get_fsxattr(&self, id: u64) -> Result<[u8; FSXATTR], Errno> {
        let node = self.node(id)?;
        let fd = self.flags_fd(&node)?;
        let mut value = fsxattr::get_fsxattr(fd.as_fd())?;
        let own = xflags(&value);
        set_xflags(&mut value, own | node.protection().xflags());
        Ok(value)
    }

    /// Sets the inode's further attributes, among them the project id.
    ///
    /// # Errors
    /// As [`set_flags`](Self::set_flags).
    pub fn set_fsxattr(&self, id: u64, value: &[u8; FSXATTR]) -> Result<(), Errno> {
        let node = self.node(id)?;
        self.ensure_upper(&node, CopyData::Nothing)?;
        let fd = self.flags_fd(&node)?;
        let protection = Protection::of_xflags(xflags(value));
        let mut own = *value;
        set_xflags(
            &mut own,
            xflags(value) & !(FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND),
        );
        fsxattr::set_fsxattr(fd.as_fd(), &own)?;
        self.protect(&node, protection)
    }

    /// Stores and remembers the protection of an object of upper.
    fn protect(&self, node: &Arc<Node>, protection: Protection) -> Result<(), Errno> {
        let key = self.ns.key(OverlayKey::Protattr);
        if node.protection() == protection {
            return Ok(());
        }
        let value = protection.encode();
        self.with_object(node, |dir, name| match value.is_empty() {
            true => match xattr::remove_at(dir, name, key) {
                Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
                other => other,
            },
            false => xattr::set_at(dir, name, key, &value, SetFlags::Any).map_err(|_| Errno::PERM),
        })?;
        node.set_protection(protection);
        Ok(())
    }
}

fn xflags(value: &[u8; FSXATTR]) -> u32 {
    let [a, b, c, d, ..] = *value;
    u32::from_ne_bytes([a, b, c, d])
}

fn set_xflags(value: &mut [u8; FSXATTR], flags: u32) {
    value[..4].copy_from_slice(&flags.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protections_are_stored_as_the_kernel_does() {
        let both = Protection {
            immutable: true,
            append_only: true,
        };
        assert_eq!(both.encode(), b"ai");
        assert_eq!(Protection::parse(b"ai"), both);
        assert_eq!(Protection::parse(b"i").flags(), FS_IMMUTABLE_FL);
        assert_eq!(Protection::parse(b"ax"), Protection::default());
        for bits in 0..4 {
            assert_eq!(Protection::from_bits(bits).bits(), bits);
        }
    }
}
