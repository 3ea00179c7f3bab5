//! Layers in and out: every rule of unpacking, hostile archives, archives made by other programs, and the
//! way back. Needs root, and the Debian packages tar, libarchive-tools, busybox and python3.

// The helpers of a test are not seen as tests by clippy.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

#[path = "unpack/archive.rs"]
mod archive;
#[path = "unpack/hostile.rs"]
mod hostile;
#[path = "unpack/makers.rs"]
mod makers;
#[path = "unpack/packing.rs"]
mod packing;
#[path = "unpack/place.rs"]
mod place;
#[path = "unpack/rules.rs"]
mod rules;
