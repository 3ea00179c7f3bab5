//! The layer store: archives in, the layout on disk, archives out, and what must hold in between.
//!
//! Needs root. What a test needs besides (kernel overlayfs, loop devices, podman, skopeo, umoci, buildah,
//! mmdebstrap, dockerd) it says when it is missing; nothing is skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

mod support;

#[path = "store/builder.rs"]
mod builder;
#[path = "store/care.rs"]
mod care;
#[path = "store/containers.rs"]
mod containers;
#[path = "store/crash.rs"]
mod crash;
#[path = "store/damage.rs"]
mod damage;
#[path = "store/dedup.rs"]
mod dedup;
#[path = "store/forms.rs"]
mod forms;
#[path = "store/hostile.rs"]
mod hostile;
#[path = "store/layout.rs"]
mod layout;
#[path = "store/processes.rs"]
mod processes;
#[path = "store/readme.rs"]
mod readme;
#[path = "store/rovl.rs"]
mod rovl_command;
#[path = "store/tools.rs"]
mod tools;
#[path = "store/users.rs"]
mod users;
