//! The commands `mount`, `umount` and `stat` from the outside: what they accept, what they refuse and how,
//! and how a daemon comes and goes. All need root and /dev/fuse, and fail without.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

#[path = "cli/bench.rs"]
mod bench;
#[path = "cli/forms.rs"]
mod forms;
#[path = "cli/lifecycle.rs"]
mod lifecycle;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/users.rs"]
mod users;
