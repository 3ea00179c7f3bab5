//! Finding a rovl mount and asking its daemon for its counters.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Map, Value};

use super::Failure;
use crate::fuse::mount::{MountInfo, is_fuse, top_mount};
use crate::sys::fuse::ask_stat;

/// A rovl mount and what its daemon says.
#[derive(Debug)]
pub struct Mounted {
    /// Its path in mountinfo.
    pub target: PathBuf,
    /// Major and minor number of its file system.
    pub device: (u32, u32),
    /// The counters, or why the daemon did not tell them.
    pub stat: Result<Counters, Errno>,
}

/// The daemon's counters.
#[derive(Debug, PartialEq)]
pub struct Counters {
    /// As the daemon wrote them.
    pub raw: String,
    /// Parsed.
    pub fields: Map<String, Value>,
}

/// Finds the rovl mount at `path`. Anything else is an error that says what is there.
pub fn find(path: &Path) -> Result<Mounted, Failure> {
    let shown = path.display();
    let info = mount_at(path)?.ok_or_else(|| {
        Failure::failed(format!(
            "{shown} is not a mount point; `grep rovl /proc/self/mountinfo` lists rovl's mounts"
        ))
    })?;
    let kind = info.fs_type.to_string_lossy().into_owned();
    let foreign = || {
        Failure::failed(format!(
            "{shown} is a mount of type {kind}, not one of rovl"
        ))
    };
    if !is_fuse(&info) {
        return Err(foreign());
    }
    let stat = read_counters(&info.mount_point);
    let is_rovl = match stat {
        Ok(_) => true,
        // A dead daemon can't say that it was rovl; its mount point can be taken away all the same.
        Err(Errno::NOTCONN) => kind == "fuse.rovl" || kind == "fuse.fuse-overlayfs",
        Err(_) => kind == "fuse.rovl",
    };
    if !is_rovl {
        return Err(foreign());
    }
    Ok(Mounted {
        target: info.mount_point,
        device: info.device,
        stat,
    })
}

/// The mount on top at `path`. Looks at names before it looks at files: a dead or stuck mount can't be
/// looked at.
fn mount_at(path: &Path) -> Result<Option<MountInfo>, Failure> {
    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let absolute: PathBuf = cwd.join(path).components().collect();
    let plain = !absolute
        .components()
        .any(|part| part == Component::ParentDir);
    let named = plain.then(|| absolute.clone());
    let beneath = || {
        Some(
            absolute
                .parent()?
                .canonicalize()
                .ok()?
                .join(absolute.file_name()?),
        )
    };
    let mut tried = HashSet::new();
    let candidates: [&dyn Fn() -> Option<PathBuf>; 3] = [&|| named.clone(), &beneath, &|| {
        absolute.canonicalize().ok()
    }];
    for candidate in candidates {
        let Some(target) = candidate() else { continue };
        if !tried.insert(target.clone()) {
            continue;
        }
        let found = top_mount(&target)
            .map_err(|error| Failure::failed(format!("reading /proc/self/mountinfo: {error}")))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    // Nothing is mounted there; is there anything at all?
    match rustix::fs::lstat(&absolute) {
        Err(errno) => Err(Failure::failed(format!("{}: {errno}", path.display()))),
        Ok(_) => Ok(None),
    }
}

/// The root of the mount at `target`, for orders to its daemon.
pub fn open_root(target: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(target, flags, Mode::empty())
}

/// Reads and parses the counters of the mount at `target`.
fn read_counters(target: &Path) -> Result<Counters, Errno> {
    let raw = ask_stat(open_root(target)?.as_fd())?;
    let raw = String::from_utf8(raw).map_err(|_| Errno::NODATA)?;
    match serde_json::from_str(&raw) {
        Ok(Value::Object(fields)) => Ok(Counters { raw, fields }),
        _ => Err(Errno::NODATA),
    }
}
