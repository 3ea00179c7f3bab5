//! A read-only mount for an engine, out of a daemon that shows these layers already, beneath its top one.
//!
//! podman and buildah mount the parent of a container to compare the two. Served by one daemon both are one file
//! system, in which `fuse::digest_beside` and what it belongs to let them leave out what is the same. It is an offer:
//! whatever stands in the way, a daemon of its own serves the mount, and says what is wrong if something is.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::mounted::open_root;
use super::plan::MountPlan;
use crate::fuse::mount::{MountInfo, MountRequest, attach, detached_mount, fuse_mounts};
use crate::fuse::{Passthrough, digest_beside};
use crate::overlay::beneath::identity;
use crate::overlay::validate::{validate, validate_mount_point};
use crate::sys::fuse::{BESIDE_SIZE, ask_beside};

/// How long the daemons that might serve it may take to answer, all together.
const PATIENCE: Duration = Duration::from_secs(2);

/// Mounts what `plan` says beside a mount that is there. `false`: it is still to be mounted.
pub fn mount(plan: &MountPlan) -> bool {
    let config = &plan.config;
    let Some(alike) = &plan.session.alike else {
        return false;
    };
    let passes = matches!(
        plan.session.passthrough,
        Passthrough::On | Passthrough::Preferred
    );
    if config.upper.is_some() || !config.data_lowers.is_empty() || passes {
        return false;
    }
    let Some(home) = home(&plan.request.target) else {
        return false;
    };
    let likely = match fuse_mounts() {
        Ok(mounts) => likely(mounts, plan, &home),
        Err(_) => return false,
    };
    if likely.is_empty() {
        return false;
    }
    let Ok(validated) = validate(config) else {
        return false;
    };
    let Ok(target) = validate_mount_point(&validated, &plan.request.target) else {
        return false;
    };
    let idmapped = validated.idmapped_lowers().contains(&true);
    let roots: Vec<_> = validated.lowers.iter().map(|(_, fd)| fd).collect();
    let (false, Ok(layers)) = (idmapped, identity(&roots)) else {
        return false;
    };
    let request = MountRequest {
        target: target.path,
        ..plan.request.clone()
    };
    ask(likely, digest_beside(alike, &layers), request)
}

/// The directory that holds those that hold the mount points of an engine's storage: `HOME/ID/merged`.
fn home(target: &Path) -> Option<PathBuf> {
    target.parent()?.parent().map(Path::to_owned)
}

/// The mounts that may have these layers: of the same storage, and of our kind.
fn likely(mounts: Vec<MountInfo>, plan: &MountPlan, home: &Path) -> Vec<PathBuf> {
    let mut kind = std::ffi::OsString::from("fuse.");
    kind.push(&plan.request.subtype);
    let fits = |mount: &MountInfo| {
        mount.fs_type == kind
            && mount.root == Path::new("/")
            && mount.mount_point != plan.request.target
            && mount.mount_point.parent().and_then(Path::parent) == Some(home)
    };
    let fitting = mounts.into_iter().filter(fits);
    fitting.map(|mount| mount.mount_point).collect()
}

/// Asks one daemon after the other, on a thread of its own, since one that hangs would not answer: that thread then
/// stays with the daemon that this process becomes. What comes too late is not mounted.
fn ask(likely: Vec<PathBuf>, digest: [u8; BESIDE_SIZE], request: MountRequest) -> bool {
    let (sender, answer) = mpsc::channel();
    let in_time = Arc::new(Mutex::new(true));
    let still = Arc::clone(&in_time);
    let asking = move || {
        let mounted = likely.iter().any(|path| {
            let mounted = mount_beside(path, &digest, &request, &still);
            if let Err(errno) = mounted {
                tracing::debug!(path = ?path, "no mount beside this: {errno}");
            }
            mounted.is_ok()
        });
        // Nobody listens any more after PATIENCE.
        sender.send(mounted).ok();
    };
    let builder = std::thread::Builder::new().name("beside".to_owned());
    let Ok(thread) = builder.spawn(asking) else {
        return false;
    };
    match answer.recv_timeout(PATIENCE) {
        Ok(mounted) => {
            // This process is one with a single thread again, which costs less.
            thread.join().is_ok() && mounted
        }
        Err(_) => {
            *in_time.lock() = false;
            // It may have come at the last moment.
            answer.try_recv().unwrap_or(false)
        }
    }
}

fn mount_beside(
    path: &Path,
    digest: &[u8; BESIDE_SIZE],
    request: &MountRequest,
    in_time: &Mutex<bool>,
) -> Result<(), Errno> {
    let root = open_root(path)?;
    let name = ask_beside(root.as_fd(), digest)?;
    let mount = detached_mount(root.as_fd(), &name, request)?;
    let in_time = in_time.lock();
    match *in_time {
        true => attach(&mount, request),
        false => Err(Errno::TIMEDOUT),
    }
}
