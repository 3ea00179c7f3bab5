//! What container engines do with a mount, and what mount programs failed them in: each as a test.
//!
//! The numbers in the tests' comments are those of the list of faults seen in fuse-overlayfs 1.10
//! and 2.0.0 under podman, dockerd and containerd. All need root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

#[path = "engines/argv.rs"]
mod argv;
#[path = "engines/beside.rs"]
mod beside;
#[path = "engines/ids.rs"]
mod ids;
#[path = "engines/layers.rs"]
mod layers;
#[path = "engines/listing.rs"]
mod listing;
#[path = "engines/paths.rs"]
mod paths;
#[path = "engines/service.rs"]
mod service;
#[path = "engines/snapshots.rs"]
mod snapshots;
#[path = "engines/users.rs"]
mod users;
