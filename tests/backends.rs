//! Real container engines on three drivers: the kernel's overlayfs, fuse-overlayfs 2.0.0 and rovl.
//!
//! One test an engine and privilege. Each runs the scenarios of `backends/cli.sh` or `backends/buildah.sh` on
//! three machines (`backends/machine.sh`) that differ in the driver only, and prints a table: what a scenario
//! prints must be what it prints on the kernel's overlayfs. A test fails where rovl fails and another does not.
//!
//! Needs root, `/dev/fuse`, Debian's podman, buildah, crun, docker.io, rootlesskit, slirp4netns, uidmap,
//! mmdebstrap and busybox-static, and cargo, which installs fuse-overlayfs 2.0.0 once (`ROVL_PEER_2` names one that
//! is there). `ROVL_BACKENDS_KEEP=1` keeps what the engines wrote.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

#[path = "backends/assets.rs"]
mod assets;
#[path = "backends/machine.rs"]
mod machine;
#[path = "peers/programs.rs"]
#[allow(dead_code)]
mod programs;
#[path = "backends/table.rs"]
mod table;

use machine::{Engine, Privilege};

#[test]
fn podman_as_root() {
    table::check(Engine::Podman, Privilege::Root);
}

#[test]
fn podman_rootless() {
    table::check(Engine::Podman, Privilege::Rootless);
}

#[test]
fn buildah_as_root() {
    table::check(Engine::Buildah, Privilege::Root);
}

#[test]
fn buildah_rootless() {
    table::check(Engine::Buildah, Privilege::Rootless);
}

#[test]
fn dockerd_as_root() {
    table::check(Engine::Dockerd, Privilege::Root);
}

#[test]
fn dockerd_rootless() {
    table::check(Engine::Dockerd, Privilege::Rootless);
}
