//! Streams of layers and images: digests, compression, tar, tar-split.
//!
//! Invariant: no file system here, and no input makes a parser panic or take memory beyond its
//! [`Budgets`](budget::Budgets).

pub mod budget;
pub mod compress;
pub mod crc64;
pub mod digest;
pub mod tar;
pub mod tar_split;
