//! Layers that go to and fro between rovl and fuse-overlayfs: 1.10, in C, and 2.0.0, in Rust.
//!
//! Each writes, the other reads and goes on. Where fuse-overlayfs is known to show something wrong, that is
//! listed by name (`peers/known.rs`); anything else must be equal.
//!
//! Needs root, `/dev/fuse`, `fuse-overlayfs` (Debian's, 1.10) and cargo, which installs 2.0.0 beside the
//! target directory's other files once; `ROVL_PEER_2` names a fuse-overlayfs 2.0.0 that is there already.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

#[path = "matrix/cell.rs"]
#[allow(dead_code)]
mod cell;
#[path = "peers/forms.rs"]
mod forms;
#[path = "peers/known.rs"]
mod known;
#[path = "matrix/lowers.rs"]
#[allow(dead_code)]
mod lowers;
#[path = "matrix/namespace.rs"]
mod namespace;
#[path = "peers/programs.rs"]
mod programs;
#[path = "matrix/script.rs"]
#[allow(dead_code)]
mod script;
#[path = "peers/trips.rs"]
mod trips;
#[path = "matrix/view.rs"]
#[allow(dead_code)]
mod view;
