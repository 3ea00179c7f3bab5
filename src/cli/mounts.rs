//! Mounting what is in the store: containers and images, by rovl's own daemon or by the kernel's overlayfs.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::options::{Dialect, Parser};
use super::plan::{Invocation, plan};
use super::{Failure, daemon, mounted, umount, warn};
use crate::fuse::mount::{self as fuse_mount, MountInfo, agent};
use crate::store::Store;
use crate::store::container::mounts::MountNotes;
use crate::sys::process::has_cap_sys_admin_in_init_ns;

/// Who merges the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Driver {
    /// rovl itself, over FUSE
    Fuse,
    /// The kernel's overlayfs
    Kernel,
    /// The kernel's overlayfs where it may be used, rovl itself elsewhere; says which
    Auto,
}

/// What is to be merged.
#[derive(Debug)]
pub struct MergedTree {
    /// The layers' trees, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The same as short links, relative to `base`, joined by colons.
    pub short_lowers: String,
    /// `overlay2` of the store.
    pub base: PathBuf,
    /// The name of the writable directory in `base`; none for a read-only tree.
    pub upper: Option<String>,
    /// What the mount table shows as the source.
    pub source: String,
    /// Nothing that is written has to outlive the machine.
    pub volatile: bool,
}

/// What became of a mount that was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountState {
    /// It is there and served.
    Live,
    /// It is in another mount namespace, which still has processes.
    Elsewhere,
    /// It is there, and its daemon is dead.
    Dead,
    /// It is not there any more.
    Gone,
}

impl MergedTree {
    /// Mounts at `target`, and says who does it.
    pub fn mount(&self, target: &Path, driver: Driver) -> Result<&'static str, Failure> {
        match driver {
            Driver::Fuse => self.mount_fuse(target).map(|()| "fuse"),
            Driver::Kernel => self
                .mount_kernel(target)
                .map(|()| "kernel")
                .map_err(|errno| Failure::failed(self.explain(target, errno))),
            Driver::Auto => match self.mount_kernel(target) {
                Ok(()) => Ok("kernel"),
                Err(errno) => {
                    tracing::debug!(%errno, "the kernel's overlayfs can't be used");
                    self.mount_fuse(target).map(|()| "fuse")
                }
            },
        }
    }

    fn explain(&self, target: &Path, errno: Errno) -> String {
        let why = match errno {
            Errno::PERM | Errno::ACCESS => {
                "; it needs root, or a user namespace with a mount namespace of its own \
                 (`unshare -Urm`); --driver fuse does not"
            }
            Errno::INVAL | Errno::NODEV => "; `dmesg` may say why; --driver fuse may do",
            _ => "",
        };
        let shown = target.display();
        format!("can't mount {shown} with the kernel's overlayfs: {errno}{why}")
    }

    /// Starts rovl's own daemon, which inherits the locks that this process holds.
    fn mount_fuse(&self, target: &Path) -> Result<(), Failure> {
        let is_root = rustix::process::geteuid().is_root();
        let mut parser = Parser::new(Dialect::Rovl);
        let upper = self.upper.as_ref().map(|name| self.base.join(name));
        parser.change(|options| {
            options.lowers.clone_from(&self.lowers);
            options.fs_name = Some(self.source.clone().into());
            options.volatile = self.volatile && upper.is_some();
            (options.dev, options.suid) = (is_root, is_root);
            if super::userns::has_one_id() {
                options.xattr_permissions = 2;
            }
            if agent::has_agent() {
                // The mount belongs to the namespace outside, where the user looks at it.
                (options.uid_map, options.gid_map) = super::userns::maps_to_outside();
                (options.dev, options.suid) = (false, false);
            }
        });
        parser.dir_flags(
            upper.as_ref().map(|dir| dir.join("diff")),
            upper.as_ref().map(|dir| dir.join("work")),
        );
        let parsed = parser
            .finish()
            .map_err(|error| Failure::failed(error.to_string()))?;
        let invocation = Invocation {
            dialect: Dialect::Rovl,
            subtype: "rovl",
            source: None,
            merged: target.to_owned(),
            foreground: false,
        };
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
        daemon::start(plan(parsed.options, invocation, Path::new("/"), cpus))
    }

    fn mount_kernel(&self, target: &Path) -> Result<(), Errno> {
        let only = match (self.lowers.as_slice(), &self.upper) {
            ([only], None) => Some(only),
            _ => None,
        };
        if let Some(tree) = only {
            // One directory is nothing to merge: overlayfs refuses it.
            rustix::mount::mount_bind(tree, target)?;
            return rustix::mount::mount_remount(
                target,
                MountFlags::BIND | MountFlags::RDONLY,
                c"",
            );
        }
        rustix::process::chdir(&self.base)?;
        let mut data = format!("lowerdir={}", self.short_lowers);
        if let Some(upper) = &self.upper {
            data.push_str(&format!(",upperdir={upper}/diff,workdir={upper}/work"));
        }
        let wanted: &[&str] = match has_cap_sys_admin_in_init_ns() {
            // What rovl's own mounts of the same container do, so that either may follow the other.
            true => &[",redirect_dir=on,index=on", ",index=off", ""],
            false => &[",userxattr"],
        };
        let mut result = Err(Errno::INVAL);
        for options in wanted {
            let options = if self.upper.is_none() && *options != ",userxattr" {
                ""
            } else {
                *options
            };
            let volatile = if self.volatile && self.upper.is_some() {
                ",volatile"
            } else {
                ""
            };
            let data =
                CString::new(format!("{data}{options}{volatile}")).map_err(|_| Errno::INVAL)?;
            result = rustix::mount::mount(
                self.source.as_str(),
                target,
                c"overlay",
                MountFlags::empty(),
                Some(data.as_c_str()),
            );
            if !matches!(result, Err(Errno::INVAL | Errno::STALE | Errno::OPNOTSUPP)) {
                break;
            }
        }
        result
    }
}

/// Notes a mount that was just made.
pub fn note(
    store: &Store,
    tree: &MergedTree,
    key: &str,
    what: &str,
    target: &Path,
    driver: &str,
    made_target: bool,
) -> Result<(), Failure> {
    store.note_mount(&MountNotes {
        key: key.to_owned(),
        what: what.to_owned(),
        target: target.to_owned(),
        driver: driver.to_owned(),
        boot: boot_id(),
        namespace: mount_namespace(),
        source: tree.source.clone(),
        made_target,
    })?;
    Ok(())
}

/// Makes the mount point if it isn't there. Whether it was made; its path without symlinks.
pub fn ensure_target(target: &Path) -> Result<(PathBuf, bool), Failure> {
    let failed = |error: std::io::Error| {
        Failure::failed(format!("the mount point {}: {error}", target.display()))
    };
    let made = match fs::DirBuilder::new().mode(0o700).create(target) {
        Ok(()) => true,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(failed(error)),
    };
    Ok((target.canonicalize().map_err(failed)?, made))
}

fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn mount_namespace() -> String {
    let link = fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    link.to_string_lossy().into_owned()
}

/// Whether any process is in a mount namespace, as far as this user may look.
fn has_processes(namespace: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        return true;
    };
    processes.flatten().any(|process| {
        let link = fs::read_link(process.path().join("ns/mnt"));
        link.is_ok_and(|link| link.as_os_str() == namespace)
    })
}

/// What became of a mount.
pub fn state_of(notes: &MountNotes) -> MountState {
    if notes.boot != boot_id() {
        return MountState::Gone;
    }
    if notes.namespace != mount_namespace() {
        return match has_processes(&notes.namespace) {
            true => MountState::Elsewhere,
            false => MountState::Gone,
        };
    }
    let is_ours = |info: &MountInfo| {
        info.source.as_os_str() == notes.source.as_str()
            || notes.driver == "kernel" && !fuse_mount::is_fuse(info)
    };
    match fuse_mount::top_mount(&notes.target) {
        Ok(Some(info)) if is_ours(&info) => {}
        Ok(_) => return MountState::Gone,
        Err(_) => return MountState::Live,
    }
    let is_dead = || {
        let found = mounted::find(&notes.target);
        found.is_ok_and(|mounted| mounted.stat == Err(Errno::NOTCONN))
    };
    match notes.driver == "fuse" && is_dead() {
        true => MountState::Dead,
        false => MountState::Live,
    }
}

/// Takes away what a crash, a boot or a killed daemon has left: dead mounts, notes of what is gone, and the
/// containers that were to go with their users.
pub fn tidy(store: &Store) -> Result<(), Failure> {
    for notes in store.mount_notes()? {
        match state_of(&notes) {
            MountState::Live | MountState::Elsewhere => continue,
            MountState::Dead => {
                if let Err(error) = fuse_mount::unmount(&notes.target, true) {
                    warn(&format!("unmounting {}: {error}", notes.target.display()));
                    continue;
                }
            }
            MountState::Gone => {}
        }
        forget(store, &notes)?;
    }
    store.remove_abandoned_containers()?;
    Ok(())
}

/// The mounts that are there.
pub fn live(store: &Store) -> Result<Vec<MountNotes>, Failure> {
    tidy(store)?;
    Ok(store.mount_notes()?)
}

fn forget(store: &Store, notes: &MountNotes) -> Result<(), Failure> {
    store.forget_mount(&notes.key)?;
    if notes.made_target
        && let Err(error) = fs::remove_dir(&notes.target)
    {
        tracing::debug!(%error, "the mount point stays");
    }
    Ok(())
}

/// Unmounts, waits for the daemon, and forgets the mount.
pub fn unmount(store: &Store, notes: &MountNotes, lazy: bool) -> Result<(), Failure> {
    let shown = notes.target.display();
    match state_of(notes) {
        MountState::Elsewhere => {
            return Err(Failure::failed(format!(
                "{shown} was mounted in another mount namespace, and can be unmounted only there"
            )));
        }
        MountState::Gone => {}
        MountState::Live if notes.driver == "fuse" => {
            umount::run(&umount::UmountArgs::new(&notes.target, lazy))?;
        }
        MountState::Live | MountState::Dead => {
            let lazy = lazy || state_of(notes) == MountState::Dead;
            fuse_mount::unmount(&notes.target, lazy)
                .map_err(|error| Failure::failed(format!("can't unmount {shown}: {error}")))?;
        }
    }
    forget(store, notes)
}

/// Has everything that was written to a mounted tree so far reach its layers.
pub fn flush(notes: &MountNotes) -> Result<(), Failure> {
    if state_of(notes) != MountState::Live {
        return Ok(());
    }
    let failed =
        |errno: Errno| Failure::failed(format!("syncing {}: {errno}", notes.target.display()));
    sync_tree(&notes.target).map_err(failed)
}

/// Has what was written to the tree at `target` reach its layers.
pub fn sync_tree(target: &Path) -> Result<(), Errno> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::syncfs(rustix::fs::open(target, flags, Mode::empty())?)
}

/// Whether a directory is empty and on the same file system as its parent: nothing is mounted there.
pub fn is_plain_directory(path: &Path) -> bool {
    let device = |path: &Path| fs::symlink_metadata(path).ok().map(|m| m.dev());
    path.parent()
        .is_some_and(|parent| device(parent) == device(path))
}
