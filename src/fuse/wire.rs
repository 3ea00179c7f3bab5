//! The kernel's FUSE protocol, version 7, as pure code: bytes to typed requests, replies to bytes.
//!
//! `abi` has the numbers (include/uapi/linux/fuse.h), `request` decodes with the help of `fields` and
//! `extension`, `reply` encodes, `init` is
//! the agreement at the start, `notify` what the server says unasked. Nothing here reads, writes
//! or allocates; everything is in the byte order of the machine, as the protocol is.
//!
//! Invariant: no input makes anything here panic; what is too short or out of range is an error.

pub(super) mod abi;
pub(super) mod extension;
pub(super) mod fields;
pub(super) mod init;
pub(super) mod notify;
pub(super) mod reply;
pub(super) mod request;

/// The protocol's major version.
pub(super) const MAJOR: u32 = 7;
/// The newest minor version that is spoken here (Linux 6.18).
pub(super) const MINOR: u32 = 45;
/// The oldest one, of Linux 5.1: opens and listings can be left to the kernel from there on.
pub(super) const OLDEST_MINOR: u32 = 29;
