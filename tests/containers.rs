//! Containers on the store: made, mounted, changed, compared, committed, run, and taken away, as root and as a plain
//! user.
//!
//! Needs root, busybox (static), crun or runc, umoci, podman, newuidmap and newgidmap; what is missing a test says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]
// The helpers of the store's tests are more than is needed here.
#![allow(dead_code)]

mod support;

#[path = "store/builder.rs"]
mod builder;
#[path = "containers/changes.rs"]
mod changes;
#[path = "containers/commit.rs"]
mod commit;
#[path = "containers/images.rs"]
mod images;
#[path = "containers/lifecycle.rs"]
mod lifecycle;
#[path = "containers/mounts.rs"]
mod mounts;
#[path = "containers/random.rs"]
mod random;
#[path = "containers/readme.rs"]
mod readme;
#[path = "store/rovl.rs"]
mod rovl_command;
#[path = "containers/running.rs"]
mod running;
#[path = "containers/users.rs"]
mod users;
