//! Large directories, large trees, deep paths, large files, many layers, many open files: all
//! work, with bounded memory and file descriptors.
//!
//! Needs root, 4 GiB of memory and 2 GiB of disk under /var/tmp; takes minutes. The tests run one
//! after another.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

#[path = "scale/deep.rs"]
mod deep;
#[path = "scale/directories.rs"]
mod directories;
#[path = "scale/many_layers.rs"]
mod many_layers;
#[path = "scale/marks.rs"]
mod marks;
#[path = "scale/meter.rs"]
mod meter;
#[path = "scale/million.rs"]
mod million;
#[path = "scale/open_files.rs"]
mod open_files;
#[path = "scale/sparse.rs"]
mod sparse;
