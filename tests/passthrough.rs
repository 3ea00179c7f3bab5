//! The data path that goes past the daemon (`passthrough=on`): each rule that keeps it safe, and what
//! clients see of it. All need root, `/dev/fuse` and Linux 6.9, and fail without.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

#[path = "passthrough/attributes.rs"]
mod attributes;
#[path = "passthrough/availability.rs"]
mod availability;
#[path = "passthrough/bench.rs"]
mod bench;
#[path = "passthrough/copy_up.rs"]
mod copy_up;
#[path = "passthrough/privileges.rs"]
mod privileges;
#[path = "passthrough/sharing.rs"]
mod sharing;
