//! What a layer looks like on disk: names, whiteouts, extended attributes. Pure: bytes in, values
//! out.
//!
//! The source of truth is Linux' `fs/overlayfs` and `Documentation/filesystems/overlayfs.rst`; each
//! file names the functions that it follows. A value that the kernel takes for invalid is an
//! error here, one that it takes for "unknown" is `None`.
//!
//! Invariant: no I/O, and no input makes a parser panic.

pub mod acl;
pub mod handle;
pub mod keys;
pub mod metacopy;
pub mod nlink;
pub mod override_stat;
pub mod redirect;
pub mod whiteout;

/// A value on disk that does not follow its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// `overlay.redirect`
    #[error("overlay.redirect: {0}")]
    Redirect(&'static str),
    /// `overlay.origin`, `overlay.upper` or a name in `work/index`
    #[error("overlay file handle: {0}")]
    Handle(&'static str),
    /// `overlay.nlink`
    #[error("overlay.nlink: {0}")]
    Nlink(&'static str),
    /// `overlay.metacopy`
    #[error("overlay.metacopy: {0}")]
    Metacopy(&'static str),
    /// `user.containers.override_stat` and its like
    #[error("override_stat: {0}")]
    OverrideStat(&'static str),
    /// `system.posix_acl_access` and `system.posix_acl_default`
    #[error("POSIX ACL: {0}")]
    Acl(&'static str),
}
