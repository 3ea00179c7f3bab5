//! What a peer got wrong once, each as a test named after the behaviour that is right.
//!
//! The numbers in the tests' comments are those of the list of faults found in fuse-overlayfs
//! 2.0.0, which each test was seen to fail on (`ROVL_TEST_SUBJECT=/path/to/fuse-overlayfs`), unless
//! its comment says otherwise. All need root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

#[path = "regressions/copy_up.rs"]
mod copy_up;
#[path = "regressions/cost.rs"]
mod cost;
#[path = "regressions/inodes.rs"]
mod inodes;
#[path = "regressions/lifecycle.rs"]
mod lifecycle;
#[path = "regressions/permissions.rs"]
mod permissions;
#[path = "regressions/protocol.rs"]
mod protocol;
#[path = "regressions/rename.rs"]
mod rename;
#[path = "regressions/times.rs"]
mod times;
#[path = "regressions/whiteouts.rs"]
mod whiteouts;
#[path = "regressions/workdir.rs"]
mod workdir;
