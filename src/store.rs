//! The layer store: layer archives in and out of the directories that are mounted.
//!
//! | module | what it is |
//! |---|---|
//! | [`codec`] | digests, compression, tar, tar-split: streams in, streams out, no file system |
//! | [`unpack`] | a layer archive into a directory |
//! | [`pack`] | a directory into a layer archive |
//!
//! Invariant: nothing that comes out of an archive is trusted; every size has a budget.

pub mod codec;
pub mod pack;
pub mod unpack;
