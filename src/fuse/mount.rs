//! Mounting and unmounting: mount(2) and umount2(2) where they are allowed, the set-user-id program
//! `fusermount3` elsewhere.
//!
//! Invariant: from [`mount`]'s return until the daemon has answered the kernel's INIT request, nothing may
//! look at the mount point: it would wait for that answer. So nothing here does, after mounting, but for
//! [`unique_id`], which asks the kernel alone.

pub mod agent;

use std::ffi::{CString, OsStr, OsString};
use std::fmt::Write as _;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{MountFlags, MoveMountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use crate::overlay::mountinfo;
pub use crate::overlay::mountinfo::MountInfo;
use crate::sys::mount::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
    clone_tree, mount_set_flags,
};

/// The programs that mount for plain users, in the order of trying.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// What is to be mounted, and how.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// The mount point: absolute, without symlinks.
    pub target: PathBuf,
    /// The source that mountinfo shows.
    pub fs_name: OsString,
    /// The type that mountinfo shows behind `fuse.`.
    pub subtype: OsString,
    /// Nothing can be written.
    pub read_only: bool,
    /// Device nodes work. Only as root: `fusermount3` always says nodev.
    pub dev: bool,
    /// Set-id programs work. Only as root: `fusermount3` always says nosuid.
    pub suid: bool,
    /// Programs can be run.
    pub exec: bool,
    /// Access times are left alone.
    pub noatime: bool,
    /// Writes are synchronous.
    pub sync: bool,
    /// Changes of directories are synchronous.
    pub dirsync: bool,
    /// Other users may use the mount; `None`: where the system allows it.
    pub allow_other: Option<bool>,
    /// The kernel checks permissions by owner and mode.
    pub default_permissions: bool,
    /// Bytes in one read request; `None`: the kernel's default.
    pub max_read: Option<u32>,
    /// An SELinux context for all files.
    pub context: Option<OsString>,
}

impl MountRequest {
    /// A request with rovl's defaults for this mount point.
    pub fn new(target: PathBuf) -> MountRequest {
        MountRequest {
            target,
            fs_name: "rovl".into(),
            subtype: "rovl".into(),
            read_only: false,
            dev: true,
            suid: true,
            exec: true,
            noatime: true,
            sync: false,
            dirsync: false,
            allow_other: None,
            default_permissions: true,
            max_read: None,
            context: None,
        }
    }

    fn flags(&self) -> MountFlags {
        let rows = [
            (self.read_only, MountFlags::RDONLY),
            (!self.dev, MountFlags::NODEV),
            (!self.suid, MountFlags::NOSUID),
            (!self.exec, MountFlags::NOEXEC),
            (self.noatime, MountFlags::NOATIME),
            (self.sync, MountFlags::SYNCHRONOUS),
            (self.dirsync, MountFlags::DIRSYNC),
        ];
        rows.into_iter()
            .filter(|(set, _)| *set)
            .map(|(_, flag)| flag)
            .collect()
    }

    /// The same as flags of mount_setattr(2), read-only in any case.
    fn mount_attributes(&self) -> u64 {
        let rows = [
            (true, MOUNT_ATTR_RDONLY),
            (!self.dev, MOUNT_ATTR_NODEV),
            (!self.suid, MOUNT_ATTR_NOSUID),
            (!self.exec, MOUNT_ATTR_NOEXEC),
            (self.noatime, MOUNT_ATTR_NOATIME),
        ];
        let set = rows.iter().filter(|(set, _)| *set);
        set.fold(0, |flags, (_, flag)| flags | flag)
    }

    /// The options of mount(2)'s last argument, for the /dev/fuse descriptor `device`.
    fn kernel_data(&self, device: i32, uid: u32, gid: u32) -> Vec<u8> {
        let mut data = format!("fd={device},rootmode=40000,user_id={uid},group_id={gid}");
        if self.default_permissions {
            data.push_str(",default_permissions");
        }
        if self.allow_other != Some(false) {
            data.push_str(",allow_other");
        }
        // Writing to a String can't fail.
        let written = self.max_read.map(|bytes| write!(data, ",max_read={bytes}"));
        debug_assert!(written.is_none_or(|result| result.is_ok()));
        let mut data = data.into_bytes();
        if let Some(context) = &self.context {
            data.extend(b",context=\"");
            data.extend(context.as_bytes());
            data.push(b'"');
        }
        data
    }

    /// The `-o` of `fusermount3`. `nodev` and `nosuid` are its own to add.
    fn helper_options(&self, allow_other: bool) -> OsString {
        let words = [
            (self.read_only, "ro"),
            (!self.exec, "noexec"),
            (self.noatime, "noatime"),
            (self.sync, "sync"),
            (self.dirsync, "dirsync"),
            (self.default_permissions, "default_permissions"),
            (allow_other, "allow_other"),
        ];
        let mut options = b"subtype=".to_vec();
        push_escaped(&mut options, &self.subtype);
        options.extend(b",fsname=");
        push_escaped(&mut options, &self.fs_name);
        for (_, word) in words.iter().filter(|(set, _)| *set) {
            options.push(b',');
            options.extend(word.as_bytes());
        }
        if let Some(bytes) = self.max_read {
            options.extend(format!(",max_read={bytes}").as_bytes());
        }
        OsString::from_vec(options)
    }
}

/// `fusermount3` takes a backslash as "the next byte is part of the value".
fn push_escaped(options: &mut Vec<u8>, value: &OsStr) {
    for &byte in value.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(byte);
    }
}

/// Why nothing was mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No FUSE here.
    #[error(
        "/dev/fuse can't be opened: {0}; load the kernel's fuse module, or let the container have the device"
    )]
    NoDevice(#[source] io::Error),
    /// Neither this user nor a helper program may use FUSE.
    #[error(
        "/dev/fuse can't be opened: {0}; make it readable and writable for this user, or install fusermount3 (package fuse3)"
    )]
    DeviceDenied(#[source] io::Error),
    /// mount(2).
    #[error("mounting on {} failed: {source}", target.display())]
    Mount {
        /// The mount point.
        target: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// mount(2) is not allowed, and there is nobody to ask.
    #[error("mounting on {} is not permitted to this user, and fusermount3 was not found: install it (package fuse3), or mount as root or in a user namespace (unshare -Urm)", .0.display())]
    NoHelper(PathBuf),
    /// The helper said no.
    #[error("fusermount3 did not mount {}: {said}", target.display())]
    Helper {
        /// The mount point.
        target: PathBuf,
        /// What it wrote.
        said: String,
    },
    /// The helper could not be run or talked to.
    #[error("running fusermount3 failed: {0}")]
    HelperIo(#[from] io::Error),
    /// A path or name with a NUL byte.
    #[error("a NUL byte in the mount point, type or source")]
    Nul,
}

impl From<Errno> for MountError {
    fn from(errno: Errno) -> MountError {
        MountError::HelperIo(errno.into())
    }
}

/// A mount that waits for a daemon.
#[derive(Debug)]
pub struct MountedFd {
    /// The connection to the kernel.
    pub fd: OwnedFd,
    /// Whether this process may open /dev/fuse itself, as a descriptor for each thread needs.
    pub may_clone: bool,
}

/// Mounts. The caller must answer the INIT request on the descriptor before anything uses the mount point.
pub fn mount(request: &MountRequest) -> Result<MountedFd, MountError> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    match device {
        Ok(fd) => match mount_directly(request, &fd) {
            Ok(()) => Ok(MountedFd {
                fd,
                may_clone: true,
            }),
            Err(Errno::PERM | Errno::ACCESS) => {
                drop(fd);
                let fd = mount_with_helper(request)?
                    .ok_or(MountError::NoHelper(request.target.clone()))?;
                Ok(MountedFd {
                    fd,
                    may_clone: true,
                })
            }
            Err(Errno::NODEV) => Err(MountError::NoDevice(Errno::NODEV.into())),
            Err(errno) => Err(MountError::Mount {
                target: request.target.clone(),
                source: errno.into(),
            }),
        },
        Err(errno @ (Errno::ACCESS | Errno::PERM)) => match mount_with_helper(request)? {
            Some(fd) => Ok(MountedFd {
                fd,
                may_clone: false,
            }),
            None => Err(MountError::DeviceDenied(errno.into())),
        },
        Err(errno) => Err(MountError::NoDevice(errno.into())),
    }
}

/// mount(2) itself. EPERM without CAP_SYS_ADMIN in the user namespace that owns the mount namespace.
fn mount_directly(request: &MountRequest, device: &OwnedFd) -> Result<(), Errno> {
    let uid = rustix::process::getuid().as_raw();
    let gid = rustix::process::getgid().as_raw();
    let data = request.kernel_data(device.as_raw_fd(), uid, gid);
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let mut kind = OsString::from("fuse.");
    kind.push(&request.subtype);
    rustix::mount::mount(
        &request.fs_name,
        &request.target,
        kind,
        request.flags(),
        Some(data.as_c_str()),
    )
}

/// A directory to be mounted from.
const MOUNTABLE: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A mount of `name` of a FUSE mount's root, as `request` says, read-only, which is nowhere yet.
///
/// # Errors
/// What the system calls return: `EPERM` without CAP_SYS_ADMIN in the user namespace of the mount namespace.
pub fn detached_mount(
    root: BorrowedFd<'_>,
    name: &OsStr,
    request: &MountRequest,
) -> Result<OwnedFd, Errno> {
    let tree = rustix::fs::openat(root, name, MOUNTABLE, Mode::empty())?;
    let clone = clone_tree(tree.as_fd())?;
    mount_set_flags(clone.as_fd(), request.mount_attributes())?;
    Ok(clone)
}

/// Puts a [`detached_mount`] at the mount point of `request`.
///
/// # Errors
/// What the system calls return.
pub fn attach(mount: &OwnedFd, request: &MountRequest) -> Result<(), Errno> {
    let target = rustix::fs::open(&request.target, MOUNTABLE, Mode::empty())?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", &target, c"", how)
}

/// Has `fusermount3` mount; `None`: it is not installed. Where it refuses allow_other and nobody insists on
/// it, asks once more without.
fn mount_with_helper(request: &MountRequest) -> Result<Option<OwnedFd>, MountError> {
    let wanted = request.allow_other.unwrap_or(true);
    match ask_helper(request, wanted) {
        Err(MountError::Helper { said, .. })
            if wanted && request.allow_other.is_none() && said.contains("allow_other") =>
        {
            ask_helper(request, false)
        }
        other => other,
    }
}

fn ask_helper(request: &MountRequest, allow_other: bool) -> Result<Option<OwnedFd>, MountError> {
    let options = request.helper_options(allow_other);
    let failed = |said: String| MountError::Helper {
        target: request.target.clone(),
        said,
    };
    if let Some(answer) = agent::ask(agent::Order::Mount(&options, &request.target)) {
        return answer.map_err(failed);
    }
    let (fd, output) = match fusermount(&options, &request.target)? {
        Some(ran) => ran,
        None => return Ok(None),
    };
    match fd {
        Some(fd) if output.status.success() => Ok(Some(fd)),
        _ => Err(failed(said(&output))),
    }
}

/// What the helper gives and says; `None`: it is not installed.
type Ran = Option<(Option<OwnedFd>, std::process::Output)>;

fn fusermount(options: &OsStr, target: &Path) -> Result<Ran, MountError> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
    let spawned = run_helper(|command| {
        command
            .arg("-o")
            .arg(options)
            .arg("--")
            .arg(target)
            .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
    })?;
    drop(theirs);
    let Some(output) = spawned else {
        return Ok(None);
    };
    Ok(Some((receive_fd(&ours)?, output)))
}

/// For an agent: has `fusermount3` mount.
fn run_fusermount(options: &OsStr, target: &Path) -> Result<Option<OwnedFd>, String> {
    match fusermount(options, target).map_err(|error| error.to_string())? {
        Some((Some(fd), output)) if output.status.success() => Ok(Some(fd)),
        Some((_, output)) => Err(said(&output)),
        None => Err("fusermount3 is not installed".into()),
    }
}

/// Runs the first helper that is installed, to its end; `None`: there is none.
fn run_helper(
    arguments: impl for<'a> Fn(&'a mut Command) -> &'a mut Command,
) -> io::Result<Option<std::process::Output>> {
    for program in HELPERS {
        let mut command = Command::new(program);
        arguments(&mut command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        match command.output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.map(Some),
        }
    }
    Ok(None)
}

/// What a helper wrote, on one line, without its name.
fn said(output: &std::process::Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text
        .lines()
        .map(|line| {
            line.trim_start_matches("fusermount3: ")
                .trim_start_matches("fusermount: ")
                .trim()
        })
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        output.status.to_string()
    } else {
        lines.join("; ")
    }
}

/// The descriptor that the helper has sent, if it has. It has ended, so nothing more will come.
fn receive_fd(socket: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    match rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        flags,
    ) {
        Ok(_) => {}
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

/// Why something stays mounted.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// EBUSY.
    #[error("it is in use")]
    Busy,
    /// Nothing is mounted there.
    #[error("it is not mounted")]
    NotMounted,
    /// Something else is mounted on top of it.
    #[error("another mount lies on top of it")]
    Covered,
    /// The helper said no, or is not there.
    #[error("fusermount3 did not unmount it: {0}")]
    Helper(String),
    /// The helper could not be run.
    #[error("running fusermount3 failed: {0}")]
    HelperIo(#[source] io::Error),
    /// umount2(2).
    #[error("{0}")]
    System(#[source] io::Error),
}

/// Unmounts what is on top at `target`. With `lazy` it disappears from the tree at once, and ends when the
/// last user has let go.
pub fn unmount(target: &Path, lazy: bool) -> Result<(), UnmountError> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazy);
    match rustix::mount::unmount(target, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(UnmountError::Busy),
        Err(Errno::INVAL | Errno::NOENT) => Err(UnmountError::NotMounted),
        Err(Errno::PERM) => unmount_with_helper(target, lazy),
        Err(errno) => Err(UnmountError::System(errno.into())),
    }
}

fn unmount_with_helper(target: &Path, lazy: bool) -> Result<(), UnmountError> {
    match agent::ask(agent::Order::Unmount { lazy, target }) {
        Some(Ok(_)) => return Ok(()),
        Some(Err(said)) => return Err(refusal(said)),
        None => {}
    }
    let output = run_helper(|command| {
        if lazy {
            command.arg("-z");
        }
        command.arg("-u").arg("--").arg(target)
    });
    let output = match output {
        Ok(Some(output)) => output,
        Ok(None) => return Err(UnmountError::System(Errno::PERM.into())),
        Err(error) => return Err(UnmountError::HelperIo(error)),
    };
    if output.status.success() {
        return Ok(());
    }
    Err(refusal(said(&output)))
}

/// For an agent: has `fusermount3` unmount.
fn unmount_by_helper(target: &Path, lazy: bool) -> Result<(), String> {
    let output = run_helper(|command| {
        if lazy {
            command.arg("-z");
        }
        command.arg("-u").arg("--").arg(target)
    });
    match output {
        Ok(Some(output)) if output.status.success() => Ok(()),
        Ok(Some(output)) => Err(said(&output)),
        Ok(None) => Err("fusermount3 is not installed".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// What the helper's words mean.
fn refusal(said: String) -> UnmountError {
    if said.contains("busy") {
        UnmountError::Busy
    } else if said.contains("not found in") || said.contains("Invalid argument") {
        UnmountError::NotMounted
    } else {
        UnmountError::Helper(said)
    }
}

/// The FUSE mounts of this mount namespace.
pub fn fuse_mounts() -> io::Result<Vec<MountInfo>> {
    let mut mounts = mountinfo::mounts()?;
    mounts.retain(is_fuse);
    Ok(mounts)
}

/// The mount on top at `target` (absolute, without symlinks), whatever its type.
pub fn top_mount(target: &Path) -> io::Result<Option<MountInfo>> {
    Ok(top_of(mountinfo::mounts()?, target))
}

/// Among mounts on one mount point, the one that no other is mounted on.
fn top_of(mut mounts: Vec<MountInfo>, target: &Path) -> Option<MountInfo> {
    mounts.retain(|mount| mount.mount_point == target);
    let covered: Vec<u64> = mounts.iter().map(|mount| mount.parent).collect();
    mounts
        .into_iter()
        .rfind(|mount| !covered.contains(&mount.id))
}

/// The id of the mount on top at `target`, which no other mount ever gets; `None` before Linux 6.8, and
/// where the path leads nowhere. The only look at a mount point that a FUSE daemon has no part in: the kernel
/// is asked for nothing that it does not know itself.
pub fn unique_id(target: &Path) -> Option<u64> {
    // rustix does not name it yet.
    let unique = StatxFlags::from_bits_retain(0x4000);
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(CWD, target, flags, unique).ok()?;
    (stat.stx_mask & unique.bits() != 0).then_some(stat.stx_mnt_id)
}

/// Whether it is served by a FUSE daemon.
pub fn is_fuse(mount: &MountInfo) -> bool {
    mount.fs_type == "fuse" || mount.fs_type.as_bytes().starts_with(b"fuse.")
}

#[cfg(test)]
mod tests;
