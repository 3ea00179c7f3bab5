//! Checks of the directories of a mount, before anything is written to them: that they are there, can be
//! used, and don't lie in each other.
//!
//! Two directories are compared by where they are in their file system, not by the path that leads there:
//! the kernel's mount id of each, and from mountinfo the device and the directory that is mounted. Bind
//! mounts and symlinks are seen through, and a thousand lowers cost a thousand look-ups.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, FlockOperation, Mode, OFlags, StatVfsMountFlags, StatxFlags};
use rustix::io::Errno;

use super::config::Config;
use super::mountinfo::{self, MountInfo};

/// How long a daemon that has just been unmounted may take to let go of upper and work.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// What a directory is in the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A lower, counted from 1 at the top, and of how many.
    Lower(usize, usize),
    /// A data-only lower, counted from 1 at the top, and of how many.
    DataLower(usize, usize),
    /// The upper directory.
    Upper,
    /// The work directory.
    Work,
    /// Where the merged tree is to be.
    MountPoint,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Lower(_, 1) => f.write_str("lower directory"),
            Role::Lower(at, all) => write!(f, "lower directory {at} of {all}"),
            Role::DataLower(_, 1) => f.write_str("data-only lower directory"),
            Role::DataLower(at, all) => write!(f, "data-only lower directory {at} of {all}"),
            Role::Upper => f.write_str("upper directory"),
            Role::Work => f.write_str("work directory"),
            Role::MountPoint => f.write_str("mount point"),
        }
    }
}

/// A directory and its part in the mount, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its part.
    pub role: Role,
    /// As it was given.
    pub path: PathBuf,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.path.display())
    }
}

/// Why directories can't be mounted.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// No lower at all.
    #[error("no lower directory given")]
    NoLowers,
    /// ENOENT.
    #[error("{0} does not exist: check the path, or create it")]
    Missing(Named),
    /// ENOTDIR.
    #[error("{0} is not a directory (or something on the way to it is not)")]
    NotDirectory(Named),
    /// EACCES.
    #[error(
        "{dir} can't be {used}: permission denied; check its owner and mode, and those of the directories above"
    )]
    Denied {
        /// The directory.
        dir: Named,
        /// What was tried, as a participle.
        used: &'static str,
    },
    /// ENOTCONN.
    #[error(
        "{0} is a mount whose daemon has died: unmount it first, with `rovl umount` or `fusermount3 -u`"
    )]
    DeadMount(Named),
    /// It is gone but for those who have it open.
    #[error("{0} has been removed")]
    Removed(Named),
    /// Another error.
    #[error("{dir} can't be opened: {source}")]
    Open {
        /// The directory.
        dir: Named,
        /// The system's reason.
        source: io::Error,
    },
    /// Upper or work on a read-only file system.
    #[error(
        "{0} is on a read-only file system: use a writable one, or leave out upper and work for a read-only mount"
    )]
    ReadOnly(Named),
    /// One directory in two parts.
    #[error("{one} and {other} are the same directory: each must be one of its own")]
    Same {
        /// The first.
        one: Named,
        /// The second.
        other: Named,
    },
    /// One directory in another.
    #[error(
        "{inner} lies inside {outer}: they must be apart, or changes to one would show in the other"
    )]
    Inside {
        /// The deeper one.
        inner: Named,
        /// The one that it lies in.
        outer: Named,
    },
    /// No rename between them.
    #[error(
        "{work} is not on the same mount as {upper}: files are made in work and renamed into upper, which needs both on one mount of one file system"
    )]
    WorkElsewhere {
        /// Work.
        work: Named,
        /// Upper.
        upper: Named,
    },
    /// Another mount writes to it.
    #[error(
        "{dir} is in use by {user}: two mounts that write to it would destroy each other's files; unmount the other one, or use another directory"
    )]
    InUse {
        /// The directory.
        dir: Named,
        /// Who has it.
        user: String,
    },
    /// /proc/self/mountinfo.
    #[error("the list of mounts can't be read from /proc/self/mountinfo: {0}")]
    Mounts(#[source] io::Error),
}

impl ValidateError {
    /// Whether other arguments are the remedy, rather than another state of the system.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            ValidateError::NoLowers
                | ValidateError::Same { .. }
                | ValidateError::Inside { .. }
                | ValidateError::WorkElsewhere { .. }
        )
    }
}

/// Locks that keep other rovl mounts out of upper and work for as long as they are held.
#[derive(Debug, Default)]
pub struct Locks {
    held: Vec<OwnedFd>,
}

impl Locks {
    /// How many directories are locked.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nothing is locked: a read-only mount, or a file system without locks.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// The directories of a mount, opened and found fit for use.
#[derive(Debug, Default)]
pub struct Validated {
    /// Lowers, top to bottom, opened with O_PATH.
    pub lowers: Vec<(PathBuf, OwnedFd)>,
    /// Data-only lowers, top to bottom, opened with O_PATH.
    pub data_lowers: Vec<(PathBuf, OwnedFd)>,
    /// Upper, opened for reading.
    pub upper: Option<(PathBuf, OwnedFd)>,
    /// Work, opened for reading.
    pub work: Option<(PathBuf, OwnedFd)>,
    /// Held until the mount is gone.
    pub locks: Locks,
    /// What the user should know but what is no error, a sentence each.
    pub warnings: Vec<String>,
    places: Vec<Place>,
}

impl Validated {
    /// Which of the lowers, the data-only ones after the others, lie on idmapped mounts.
    pub(crate) fn idmapped_lowers(&self) -> Vec<bool> {
        let lowers = self.lowers.len() + self.data_lowers.len();
        let places = self.places.iter().take(lowers);
        places.map(|place| place.idmapped).collect()
    }
}

/// A mount point that is fit for use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Its path without symlinks, from the root.
    pub path: PathBuf,
}

/// Where a directory is.
#[derive(Clone, Debug)]
struct Place {
    name: Named,
    /// The path that the kernel shows for it.
    visible: PathBuf,
    /// The file system, and the path from that file system's root.
    device: (u32, u32),
    within: PathBuf,
    /// Id of the mount that it was reached through; 0 where the kernel does not tell (before Linux 5.8).
    mount: u64,
    /// That mount maps ids.
    idmapped: bool,
    /// `st_dev`, which btrfs gives to each subvolume.
    st_dev: u64,
}

/// Opens the layers of `config` and checks them. Creates nothing.
pub fn validate(config: &Config) -> Result<Validated, ValidateError> {
    if config.lowers.is_empty() {
        return Err(ValidateError::NoLowers);
    }
    let mounts = mountinfo::mounts().map_err(ValidateError::Mounts)?;
    let by_id = by_id(&mounts);
    let mut places = Vec::new();
    let mut open_all = |paths: &[PathBuf], role: fn(usize, usize) -> Role| {
        let open = |(at, path): (usize, &PathBuf)| {
            let name = Named {
                role: role(at + 1, paths.len()),
                path: path.clone(),
            };
            let fd = open_dir(&name, OFlags::PATH)?;
            readable(&name, fd.as_fd())?;
            places.push(place(name, fd.as_fd(), &by_id)?);
            Ok((path.clone(), fd))
        };
        paths
            .iter()
            .enumerate()
            .map(open)
            .collect::<Result<Vec<_>, ValidateError>>()
    };
    let lowers = open_all(&config.lowers, Role::Lower)?;
    let data_lowers = open_all(&config.data_lowers, Role::DataLower)?;
    let mut validated = Validated {
        lowers,
        data_lowers,
        upper: None,
        work: None,
        locks: Locks::default(),
        warnings: Vec::new(),
        places,
    };
    if let Some(dirs) = &config.upper {
        let upper = open_writable(Role::Upper, &dirs.upper, &by_id)?;
        let work = open_writable(Role::Work, &dirs.work, &by_id)?;
        let (upper_place, work_place) = (upper.1.clone(), work.1.clone());
        validated.upper = Some((dirs.upper.clone(), upper.0));
        validated.work = Some((dirs.work.clone(), work.0));
        validated.places.extend([upper.1, work.1]);
        check_apart(&validated.places)?;
        if upper_place.st_dev != work_place.st_dev || upper_place.mount != work_place.mount {
            return Err(ValidateError::WorkElsewhere {
                work: work_place.name,
                upper: upper_place.name,
            });
        }
        claim(&mut validated, config.shared_upper, &mounts)?;
    } else {
        check_apart(&validated.places)?;
    }
    Ok(validated)
}

/// Opens `path`, where the merged tree of `validated` is to be, and checks that it is no part of the layers.
/// It may be one of the lowers itself: that one is open already, so the mount on top does not hide it.
pub fn validate_mount_point(
    validated: &Validated,
    path: &Path,
) -> Result<MountPoint, ValidateError> {
    let name = Named {
        role: Role::MountPoint,
        path: path.to_owned(),
    };
    let fd = open_dir(&name, OFlags::PATH)?;
    let mounts = mountinfo::mounts().map_err(ValidateError::Mounts)?;
    let target = place(name, fd.as_fd(), &by_id(&mounts))?;
    for layer in &validated.places {
        let same = layer.device == target.device && layer.within == target.within;
        let is_lower = matches!(layer.name.role, Role::Lower(..) | Role::DataLower(..));
        let target_in_layer = target.visible.starts_with(&layer.visible)
            || layer.device == target.device && target.within.starts_with(&layer.within);
        if same && is_lower {
            continue;
        } else if same {
            return Err(ValidateError::Same {
                one: target.name,
                other: layer.name.clone(),
            });
        } else if target_in_layer {
            return Err(ValidateError::Inside {
                inner: target.name,
                outer: layer.name.clone(),
            });
        } else if layer.visible.starts_with(&target.visible) {
            return Err(ValidateError::Inside {
                inner: layer.name.clone(),
                outer: target.name,
            });
        }
    }
    Ok(MountPoint {
        path: target.visible,
    })
}

fn by_id(mounts: &[MountInfo]) -> HashMap<u64, &MountInfo> {
    mounts.iter().map(|mount| (mount.id, mount)).collect()
}

fn open_dir(name: &Named, flags: OFlags) -> Result<OwnedFd, ValidateError> {
    let flags = flags | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&name.path, flags, Mode::empty()).map_err(|errno| open_error(name, errno))
}

fn open_error(name: &Named, errno: Errno) -> ValidateError {
    let dir = name.clone();
    match errno {
        Errno::NOENT => ValidateError::Missing(dir),
        Errno::NOTDIR => ValidateError::NotDirectory(dir),
        Errno::ACCESS | Errno::PERM => ValidateError::Denied {
            dir,
            used: "opened",
        },
        Errno::NOTCONN => ValidateError::DeadMount(dir),
        other => ValidateError::Open {
            dir,
            source: other.into(),
        },
    }
}

/// Lowers are listed, so they must be readable; of data-only ones only known paths are opened.
fn readable(name: &Named, fd: BorrowedFd<'_>) -> Result<(), ValidateError> {
    let flags = match name.role {
        Role::DataLower(..) => OFlags::PATH,
        _ => OFlags::RDONLY,
    };
    match rustix::fs::openat(
        fd,
        ".",
        flags | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(_) => Ok(()),
        Err(Errno::ACCESS | Errno::PERM) => Err(ValidateError::Denied {
            dir: name.clone(),
            used: "read",
        }),
        Err(errno) => Err(open_error(name, errno)),
    }
}

fn open_writable(
    role: Role,
    path: &Path,
    by_id: &HashMap<u64, &MountInfo>,
) -> Result<(OwnedFd, Place), ValidateError> {
    let name = Named {
        role,
        path: path.to_owned(),
    };
    let fd = open_dir(&name, OFlags::RDONLY)?;
    let fs = rustix::fs::fstatvfs(&fd).map_err(|errno| open_error(&name, errno))?;
    if fs.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(ValidateError::ReadOnly(name));
    }
    match rustix::fs::accessat(
        &fd,
        ".",
        Access::WRITE_OK | Access::EXEC_OK,
        AtFlags::EACCESS,
    ) {
        // Before Linux 5.8 there is no such check: the first write tells.
        Ok(()) | Err(Errno::NOSYS | Errno::INVAL) => {}
        Err(Errno::ROFS) => return Err(ValidateError::ReadOnly(name)),
        Err(Errno::ACCESS | Errno::PERM) => {
            return Err(ValidateError::Denied {
                dir: name,
                used: "written to",
            });
        }
        Err(errno) => return Err(open_error(&name, errno)),
    }
    let place = place(name, fd.as_fd(), by_id)?;
    Ok((fd, place))
}

/// Finds out where an open directory is.
fn place(
    name: Named,
    fd: BorrowedFd<'_>,
    by_id: &HashMap<u64, &MountInfo>,
) -> Result<Place, ValidateError> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    // Asked anew: what the kernel remembers of a FUSE mount outlives its daemon.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let stat =
        rustix::fs::statx(fd, "", flags, wanted).map_err(|errno| open_error(&name, errno))?;
    if stat.stx_nlink == 0 {
        return Err(ValidateError::Removed(name));
    }
    let visible = visible_path(&name, fd)?;
    let mount = if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 {
        stat.stx_mnt_id
    } else {
        0
    };
    let st_dev = (stat.stx_dev_major, stat.stx_dev_minor);
    let info = by_id.get(&mount);
    let within = info.and_then(|info| {
        visible
            .strip_prefix(&info.mount_point)
            .ok()
            .map(|rest| info.root.join(rest))
    });
    Ok(Place {
        name,
        // Without the mount (an old kernel, a chroot) the visible path has to do.
        device: info.map_or(st_dev, |info| info.device),
        within: within.unwrap_or_else(|| visible.clone()),
        visible,
        mount,
        idmapped: info.is_some_and(|info| info.is_idmapped()),
        st_dev: rustix::fs::makedev(st_dev.0, st_dev.1),
    })
}

fn visible_path(name: &Named, fd: BorrowedFd<'_>) -> Result<PathBuf, ValidateError> {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .or_else(|_| name.path.canonicalize())
        .map_err(|source| ValidateError::Open {
            dir: name.clone(),
            source,
        })
}

/// No directory twice and none inside another one, as the kernel has it for lowers ("conflicting" and
/// "overlapping lowerdir path").
fn check_apart(places: &[Place]) -> Result<(), ValidateError> {
    let mut known: HashMap<((u32, u32), &Path), &Place> = HashMap::with_capacity(places.len());
    for place in places {
        if let Some(other) = known.insert((place.device, &place.within), place) {
            return Err(ValidateError::Same {
                one: other.name.clone(),
                other: place.name.clone(),
            });
        }
    }
    for place in places {
        let above = place.within.ancestors().skip(1);
        if let Some(outer) = above
            .filter_map(|dir| known.get(&(place.device, dir)))
            .next()
        {
            return Err(ValidateError::Inside {
                inner: place.name.clone(),
                outer: outer.name.clone(),
            });
        }
    }
    Ok(())
}

/// Makes sure that nobody else writes to upper and work: rovl's daemons lock them, the kernel's overlayfs is
/// found in the list of mounts. With `shared` a user gets a warning instead of an error.
fn claim(
    validated: &mut Validated,
    shared: bool,
    mounts: &[MountInfo],
) -> Result<(), ValidateError> {
    let writable: Vec<Place> = validated
        .places
        .iter()
        .filter(|place| matches!(place.name.role, Role::Upper | Role::Work))
        .cloned()
        .collect();
    let deadline = Instant::now() + LOCK_PATIENCE;
    for place in writable {
        let user = match overlay_user(&place, mounts) {
            Some(user) => Some(user),
            None => match lock(&place, deadline)? {
                Lock::Held(fd) => {
                    validated.locks.held.push(fd);
                    None
                }
                Lock::Impossible => None,
                Lock::Busy => Some("another rovl mount".to_owned()),
            },
        };
        match user {
            Some(user) if shared => {
                tracing::warn!("{} is in use by {user}", place.name);
                validated.warnings.push(format!(
                    "{} is in use by {user}; if both write to it, files will be destroyed",
                    place.name
                ));
            }
            Some(user) => {
                return Err(ValidateError::InUse {
                    dir: place.name,
                    user,
                });
            }
            None => {}
        }
    }
    Ok(())
}

enum Lock {
    Held(OwnedFd),
    Busy,
    /// The file system has no locks for directories (NFS wants them open for writing).
    Impossible,
}

/// Locks a directory through a descriptor of its own, so that the lock ends with [`Locks`] and with nothing
/// else. Waits a little: a daemon whose mount has just been taken away may still be on its way out.
fn lock(place: &Place, deadline: Instant) -> Result<Lock, ValidateError> {
    let fd = open_dir(&place.name, OFlags::RDONLY)?;
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Lock::Held(fd)),
            Err(Errno::WOULDBLOCK) if Instant::now() >= deadline => return Ok(Lock::Busy),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::INTR) => {}
            Err(errno) => {
                tracing::debug!("{} can't be locked: {errno}", place.name);
                return Ok(Lock::Impossible);
            }
        }
    }
}

/// The kernel's overlayfs that has `place` as its upper or work. Relative paths in its options can't be
/// told apart and are not looked at.
fn overlay_user(place: &Place, mounts: &[MountInfo]) -> Option<String> {
    let uses = |mount: &&MountInfo| {
        mount.fs_type == "overlay"
            && ["upperdir", "workdir"]
                .iter()
                .filter_map(|name| mount.super_option(name))
                .any(|dir| {
                    dir == place.visible
                        || dir == place.name.path
                        || dir.file_name() == place.visible.file_name() && same_dir(&dir, place)
                })
    };
    let found = mounts.iter().find(uses)?;
    Some(format!(
        "the kernel's overlayfs on {}",
        found.mount_point.display()
    ))
}

/// Whether an absolute path of a mounted overlay leads to `place`, through symlinks or bind mounts.
fn same_dir(dir: &Path, place: &Place) -> bool {
    let inode = |path: &Path| {
        rustix::fs::stat(path)
            .ok()
            .map(|stat| (stat.st_dev, stat.st_ino))
    };
    dir.is_absolute() && inode(dir).is_some_and(|found| Some(found) == inode(&place.visible))
}

#[cfg(test)]
mod tests;
