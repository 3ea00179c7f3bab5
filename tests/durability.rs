//! What must survive: the daemon's sudden end, power loss, a full disk, a disk that fails.
//!
//! All need root; loop devices, mkfs.ext4 and mkfs.xfs too.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

#[path = "durability/crash.rs"]
mod crash;
#[path = "durability/failing.rs"]
mod failing;
#[path = "durability/full.rs"]
mod full;
#[path = "durability/power.rs"]
mod power;
