//! Attributes of files, descriptors and their limits.
//!
//! The neighbours [`dir`](super::dir), [`mount`](super::mount) and [`process`](super::process) can
//! be reached through here too.
#![allow(unsafe_code)]

use std::ffi::{OsStr, c_long};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, IFlags, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use super::call::{check, with_c_name, with_proc_path};

pub use super::dir::{DirEntry, DirReader, read_all};
pub use super::mount::{
    MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
    clone_tree, mount_set_flags,
};
pub use super::process::{
    ForkResult, block_signals, daemon_fork, has_cap_sys_admin_in_init_ns, prctl_set_name,
    set_umask, setsid, wait_signal,
};

/// Linux 6.6; the same number on all architectures.
const SYS_FCHMODAT2: c_long = 452;
const AT_FLAGS: libc::c_int = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
/// What the kernel's `fs.nr_open` allows by default.
const NOFILE_WANTED: u64 = 1 << 20;

/// A time to set with [`utimens_at`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSpec {
    /// Leave it.
    Omit,
    /// The kernel's current time.
    Now,
    /// This time.
    At {
        /// Seconds since 1970, negative before.
        sec: i64,
        /// Nanoseconds to add, below 1,000,000,000.
        nsec: u32,
    },
}

impl TimeSpec {
    fn to_kernel(self) -> Result<Timespec, Errno> {
        Ok(match self {
            TimeSpec::Omit => Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_OMIT,
            },
            TimeSpec::Now => Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_NOW,
            },
            // UTIME_NOW and UTIME_OMIT are larger than this.
            TimeSpec::At { nsec, .. } if nsec >= 1_000_000_000 => return Err(Errno::INVAL),
            TimeSpec::At { sec, nsec } => Timespec {
                tv_sec: sec,
                tv_nsec: nsec.into(),
            },
        })
    }
}

/// Has the kernel begin to write to disk what was written to `file`. It doesn't wait, and promises nothing:
/// `sync_file_range(2)`.
///
/// # Errors
/// What `sync_file_range(2)` returns.
pub fn start_writeback(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes numbers only.
    let result =
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    check(result.into()).map(drop)
}

/// Sets the permission bits (`mode & 0o7777`) of `name` in `dir`; empty: of `dir` itself, `O_PATH`
/// or not. A final symlink is not followed.
///
/// # Errors
/// `EOPNOTSUPP` for a symlink, otherwise what `fchmodat2(2)` returns.
pub fn chmod_at(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<(), Errno> {
    let result = with_c_name(name, |name| {
        // SAFETY: `name` is NUL-terminated.
        check(unsafe {
            libc::syscall(
                SYS_FCHMODAT2,
                dir.as_raw_fd(),
                name.as_ptr(),
                mode & 0o7777,
                AT_FLAGS,
            )
        })
    });
    match result {
        Ok(_) => Ok(()),
        Err(Errno::NOSYS) => chmod_by_path(dir, name, mode & 0o7777),
        Err(e) => Err(e),
    }
}

/// [`chmod_at`] before Linux 6.6. `/proc/self/fd/N` leads to exactly the inode.
fn chmod_by_path(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<(), Errno> {
    let pinned;
    let target = if name.is_empty() {
        dir
    } else {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        pinned = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        pinned.as_fd()
    };
    with_proc_path(target, OsStr::new(""), |path| {
        rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())
    })
}

/// Sets the times of `name` in `dir`; empty: of `dir` itself, also an `O_PATH` descriptor or one of
/// a symlink. A final symlink is not followed.
///
/// # Errors
/// `EINVAL` for a second or more of nanoseconds, otherwise what `utimensat(2)` returns.
pub fn utimens_at(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    atime: TimeSpec,
    mtime: TimeSpec,
) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: atime.to_kernel()?,
        last_modification: mtime.to_kernel()?,
    };
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    match rustix::fs::utimensat(dir, name, &times, flags) {
        // Before Linux 5.8 there is no AT_EMPTY_PATH here.
        Err(Errno::INVAL) if name.is_empty() => with_proc_path(dir, name, |path| {
            rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())
        }),
        Err(Errno::INVAL) => rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
        other => other,
    }
}

/// Sets owner and group (`None`: leave it) of `name` in `dir`; empty: of `dir` itself, `O_PATH` or
/// not. A final symlink is not followed.
///
/// # Errors
/// `EINVAL` for the id 4294967295, which means "none"; otherwise what `fchownat(2)` returns.
pub fn chown_at(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    uid: Option<u32>,
    gid: Option<u32>,
) -> Result<(), Errno> {
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL);
    }
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    rustix::fs::chownat(
        dir,
        name,
        uid.map(Uid::from_raw),
        gid.map(Gid::from_raw),
        flags,
    )
}

/// Opens the inode of `fd` once more, with other flags, through `/proc/self/fd`. `O_CLOEXEC` is
/// added.
///
/// # Errors
/// What `open(2)` returns; `ELOOP` when `fd` is a symlink; `ENOENT` without `/proc`.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    with_proc_path(fd, OsStr::new(""), |path| {
        rustix::fs::open(
            path,
            (flags - OFlags::NOFOLLOW) | OFlags::CLOEXEC,
            Mode::empty(),
        )
    })
}

/// Gives the unnamed file `fd` (`O_TMPFILE`) the name `name` in `dir`.
///
/// # Errors
/// `EEXIST` when the name is taken, otherwise what `linkat(2)` returns.
pub fn link_fd_at(fd: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    // Needs CAP_DAC_READ_SEARCH before Linux 6.10, and says ENOENT without; /proc works for everybody,
    // and takes twice as long.
    match rustix::fs::linkat(fd, c"", dir, name, AtFlags::EMPTY_PATH) {
        Err(Errno::NOENT | Errno::PERM | Errno::INVAL) => {}
        other => return other,
    }
    with_proc_path(fd, OsStr::new(""), |path| {
        rustix::fs::linkat(CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW)
    })
}

/// Raises the limit on open files as far as it goes: to at least 1,048,576 with
/// `CAP_SYS_RESOURCE`, to the hard limit otherwise. Returns the soft limit in force
/// (`u64::MAX`: none).
///
/// # Errors
/// What `setrlimit(2)` returns, except `EPERM` for the attempt on the hard limit.
pub fn raise_nofile() -> Result<u64, Errno> {
    let now = rustix::process::getrlimit(Resource::Nofile);
    let soft = now.current.unwrap_or(u64::MAX);
    let hard = now.maximum.unwrap_or(u64::MAX);
    if hard < NOFILE_WANTED {
        let more = Rlimit {
            current: Some(NOFILE_WANTED),
            maximum: Some(NOFILE_WANTED),
        };
        match rustix::process::setrlimit(Resource::Nofile, more) {
            Ok(()) => return Ok(NOFILE_WANTED),
            Err(Errno::PERM) => {}
            Err(e) => return Err(e),
        }
    }
    if soft < hard {
        let all = Rlimit {
            current: now.maximum,
            maximum: now.maximum,
        };
        rustix::process::setrlimit(Resource::Nofile, all)?;
    }
    Ok(hard)
}

/// Has the kernel make the table of descriptors as large as `count` of them need, `fd` being any. The table grows
/// otherwise by doubling, and in a process with threads each time waits until no CPU looks at the old one
/// (fs/file.c, `expand_fdtable`): tens of milliseconds, in which the request that needed the descriptor waits. To be
/// called before there are threads.
///
/// # Errors
/// `EINVAL` when `count` is beyond the limit on open files; `ENOMEM`.
pub fn make_room_for_descriptors(fd: BorrowedFd<'_>, count: u32) -> Result<(), Errno> {
    let last = i32::try_from(count.saturating_sub(1)).map_err(|_| Errno::INVAL)?;
    rustix::io::fcntl_dupfd_cloexec(fd, last).map(drop)
}

/// The inode's flags (`FS_*_FL`, as `lsattr` shows); `None` where the file system has none.
///
/// # Errors
/// What `ioctl(FS_IOC_GETFLAGS)` returns: `EBADF` for an `O_PATH` descriptor.
pub fn inode_flags(fd: BorrowedFd<'_>) -> Result<Option<u32>, Errno> {
    match rustix::fs::ioctl_getflags(fd) {
        Ok(flags) => Ok(Some(flags.bits())),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets all of the inode's flags.
///
/// # Errors
/// What `ioctl(FS_IOC_SETFLAGS)` returns: `EPERM` for immutable and append-only without
/// `CAP_LINUX_IMMUTABLE`, `EOPNOTSUPP` for flags that the file system does not have.
pub fn set_inode_flags(fd: BorrowedFd<'_>, flags: u32) -> Result<(), Errno> {
    rustix::fs::ioctl_setflags(fd, IFlags::from_bits_retain(flags))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use super::*;

    fn scratch() -> tempfile::TempDir {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(tmp.path().join("file"), b"data").unwrap();
        std::fs::create_dir(tmp.path().join("sub")).unwrap();
        std::os::unix::fs::symlink("file", tmp.path().join("link")).unwrap();
        tmp
    }

    fn fd(path: &Path, flags: OFlags) -> OwnedFd {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    /// Every way to name `name`: below the directory, and as its own descriptor.
    fn every_way(tmp: &Path, name: &str, test: impl Fn(BorrowedFd<'_>, &OsStr)) {
        for flags in [OFlags::RDONLY, OFlags::PATH] {
            test(fd(tmp, flags).as_fd(), OsStr::new(name));
        }
        let itself = fd(&tmp.join(name), OFlags::PATH | OFlags::NOFOLLOW);
        test(itself.as_fd(), OsStr::new(""));
        if name != "link" {
            test(fd(&tmp.join(name), OFlags::RDONLY).as_fd(), OsStr::new(""));
        }
    }

    fn meta(tmp: &Path, name: &str) -> std::fs::Metadata {
        std::fs::symlink_metadata(tmp.join(name)).unwrap()
    }

    #[test]
    fn modes_are_set_on_every_kind_of_descriptor() {
        let tmp = scratch();
        for change in [chmod_at, chmod_by_path] {
            for name in ["file", "sub"] {
                every_way(tmp.path(), name, |dir, at| {
                    for mode in [0o7711, 0o0, 0o700] {
                        change(dir, at, mode).unwrap();
                        assert_eq!(meta(tmp.path(), name).mode() & 0o7777, mode);
                    }
                });
            }
        }
    }

    #[test]
    fn the_mode_of_a_symlink_is_refused_and_its_target_left_alone() {
        let tmp = scratch();
        let before = meta(tmp.path(), "file").mode();
        every_way(tmp.path(), "link", |dir, at| {
            assert_eq!(chmod_at(dir, at, 0o111), Err(Errno::OPNOTSUPP));
            assert_eq!(chmod_by_path(dir, at, 0o111), Err(Errno::OPNOTSUPP));
        });
        assert_eq!(meta(tmp.path(), "file").mode(), before);
    }

    #[test]
    fn times_are_set_on_every_kind_of_descriptor() {
        let tmp = scratch();
        for name in ["file", "sub", "link"] {
            every_way(tmp.path(), name, |dir, at| {
                let early = TimeSpec::At {
                    sec: -5,
                    nsec: 999_999_999,
                };
                let late = TimeSpec::At {
                    sec: 4_000_000_000,
                    nsec: 1,
                };
                utimens_at(dir, at, early, late).unwrap();
                let now = meta(tmp.path(), name);
                assert_eq!((now.atime(), now.atime_nsec()), (-5, 999_999_999));
                assert_eq!((now.mtime(), now.mtime_nsec()), (4_000_000_000, 1));
                utimens_at(dir, at, TimeSpec::Omit, TimeSpec::Now).unwrap();
                let now = meta(tmp.path(), name);
                assert_eq!((now.atime(), now.atime_nsec()), (-5, 999_999_999));
                assert!(now.mtime() > 1_700_000_000 && now.mtime() < 4_000_000_000);
            });
        }
        let dir = fd(tmp.path(), OFlags::PATH);
        for nsec in [1_000_000_000, 0x3fff_ffff, 0x3fff_fffe, u32::MAX] {
            let bad = TimeSpec::At { sec: 0, nsec };
            let refused = utimens_at(dir.as_fd(), OsStr::new("file"), bad, TimeSpec::Omit);
            assert_eq!(refused, Err(Errno::INVAL));
        }
    }

    #[test]
    fn owners_can_be_left_as_they_are() {
        let tmp = scratch();
        let ids = (
            meta(tmp.path(), "file").uid(),
            meta(tmp.path(), "file").gid(),
        );
        for name in ["file", "sub", "link"] {
            every_way(tmp.path(), name, |dir, at| {
                chown_at(dir, at, None, None).unwrap();
                chown_at(dir, at, Some(ids.0), Some(ids.1)).unwrap();
                assert_eq!(chown_at(dir, at, Some(u32::MAX), None), Err(Errno::INVAL));
                assert_eq!(chown_at(dir, at, None, Some(u32::MAX)), Err(Errno::INVAL));
            });
        }
    }

    #[test]
    #[ignore = "needs CAP_CHOWN"]
    fn owners_are_set_on_every_kind_of_descriptor() {
        let tmp = scratch();
        for name in ["file", "sub", "link"] {
            every_way(tmp.path(), name, |dir, at| {
                chown_at(dir, at, Some(1001), Some(1002)).unwrap();
                chown_at(dir, at, Some(1003), None).unwrap();
                let now = meta(tmp.path(), name);
                assert_eq!((now.uid(), now.gid()), (1003, 1002));
                chown_at(dir, at, Some(0), Some(0)).unwrap();
            });
        }
    }

    #[test]
    fn a_descriptor_is_opened_again_with_other_flags() {
        let tmp = scratch();
        let path = fd(&tmp.path().join("file"), OFlags::PATH);
        let open = reopen(path.as_fd(), OFlags::RDWR | OFlags::NOFOLLOW).unwrap();
        rustix::io::write(&open, b"DA").unwrap();
        assert_eq!(std::fs::read(tmp.path().join("file")).unwrap(), b"DAta");
        let link = fd(&tmp.path().join("link"), OFlags::PATH | OFlags::NOFOLLOW);
        assert_eq!(
            reopen(link.as_fd(), OFlags::RDONLY).map(drop),
            Err(Errno::LOOP)
        );
    }

    #[test]
    fn an_unnamed_file_gets_a_name_once() {
        let tmp = scratch();
        let dir = fd(tmp.path(), OFlags::PATH);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, c".", flags, Mode::RUSR).unwrap();
        link_fd_at(file.as_fd(), dir.as_fd(), OsStr::new("new")).unwrap();
        assert_eq!(meta(tmp.path(), "new").mode() & 0o777, 0o400);
        let again = link_fd_at(file.as_fd(), dir.as_fd(), OsStr::new("file"));
        assert_eq!(again, Err(Errno::EXIST));
    }

    #[test]
    fn the_limit_on_open_files_is_raised_as_far_as_it_goes() {
        let soft = raise_nofile().unwrap();
        let now = rustix::process::getrlimit(Resource::Nofile);
        assert_eq!(now.current.unwrap_or(u64::MAX), soft);
        assert_eq!(now.current, now.maximum);
        assert_eq!(raise_nofile(), Ok(soft));
    }

    #[test]
    fn there_is_room_for_as_many_descriptors_as_the_limit_allows() {
        let tmp = scratch();
        let dir = fd(tmp.path(), OFlags::PATH);
        raise_nofile().unwrap();
        make_room_for_descriptors(dir.as_fd(), 1 << 13).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|l| l.strip_prefix("FDSize:"));
        let size: u32 = size.unwrap().trim().parse().unwrap();
        assert!(size >= 1 << 13, "{size}");
        let beyond = make_room_for_descriptors(dir.as_fd(), u32::MAX);
        assert_eq!(beyond, Err(Errno::INVAL));
    }

    #[test]
    fn inode_flags_are_read_and_set_where_there_are_any() {
        let tmp = scratch();
        let file = fd(&tmp.path().join("file"), OFlags::RDONLY);
        let noatime = 0x80;
        let before = inode_flags(file.as_fd()).unwrap().unwrap();
        set_inode_flags(file.as_fd(), before | noatime).unwrap();
        assert_eq!(inode_flags(file.as_fd()), Ok(Some(before | noatime)));
        let proc = fd(Path::new("/proc/self/status"), OFlags::RDONLY);
        assert_eq!(inode_flags(proc.as_fd()), Ok(None));
    }
}
