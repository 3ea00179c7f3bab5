//! File handles (`name_to_handle_at(2)`) and the UUID of a file system.
#![allow(unsafe_code)]

use std::ffi::{OsStr, c_int, c_long, c_ulong, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use smallvec::SmallVec;

use super::call::{check, last_errno, with_c_name};
use super::fs::reopen;

/// `MAX_HANDLE_SZ` of include/linux/exportfs.h, in bytes.
const MAX_HANDLE: usize = 128;

/// What the kernel calls `struct file_handle`: names an inode of one file system for good.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RawHandle {
    /// The file system's own type (`enum fid_type`).
    pub handle_type: u8,
    /// The handle itself, in the byte order of this machine.
    pub bytes: SmallVec<[u8; 32]>,
}

/// `struct file_handle` with room for the largest handle.
#[repr(C, align(4))]
struct FileHandle {
    handle_bytes: u32,
    handle_type: i32,
    f_handle: [u8; MAX_HANDLE],
}

/// The handle of `name` in `dir` (empty: of `dir` itself, which may be an `O_PATH` descriptor).
/// `None` when this file system has no handles, or none that overlay's format can hold.
///
/// # Errors
/// What `name_to_handle_at(2)` returns for the name: `ENOENT`, `ENOTDIR`, `EACCES` and so on.
pub fn name_to_handle_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<RawHandle>, Errno> {
    let mut raw = FileHandle {
        handle_bytes: MAX_HANDLE as u32,
        handle_type: 0,
        f_handle: [0; MAX_HANDLE],
    };
    let mut mount_id: c_int = 0;
    let result = with_c_name(name, |name| {
        // SAFETY: `name` is NUL-terminated, `raw` has the layout of struct file_handle with the
        // `handle_bytes` bytes of room that it announces, `mount_id` is writable.
        check(unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                dir.as_raw_fd(),
                name.as_ptr(),
                &raw mut raw,
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        })
    });
    match result {
        Ok(_) => {}
        // EOVERFLOW also says "cannot be encoded" (do_sys_name_to_handle); ENOSYS and EPERM come
        // from system call filters.
        Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS | Errno::PERM) => return Ok(None),
        Err(e) => return Err(e),
    }
    let Ok(handle_type) = u8::try_from(raw.handle_type) else {
        return Ok(None);
    };
    let bytes = usize::try_from(raw.handle_bytes)
        .ok()
        .and_then(|n| raw.f_handle.get(..n));
    Ok(bytes.map(|bytes| RawHandle {
        handle_type,
        bytes: SmallVec::from_slice(bytes),
    }))
}

/// Opens what `h` names on the file system of `mount`, which must not be an `O_PATH` descriptor.
/// `O_CLOEXEC` is added.
///
/// # Errors
/// `EPERM` without `CAP_DAC_READ_SEARCH`; `ESTALE` when the inode is gone; `EINVAL` when the
/// handle is too long.
pub fn open_by_handle_at(
    mount: BorrowedFd<'_>,
    h: &RawHandle,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let mut raw = FileHandle {
        handle_bytes: u32::try_from(h.bytes.len()).map_err(|_| Errno::INVAL)?,
        handle_type: i32::from(h.handle_type),
        f_handle: [0; MAX_HANDLE],
    };
    raw.f_handle
        .get_mut(..h.bytes.len())
        .ok_or(Errno::INVAL)?
        .copy_from_slice(&h.bytes);
    // SAFETY: `raw` has the layout of struct file_handle and `handle_bytes` valid bytes.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut raw,
            (flags | OFlags::CLOEXEC).bits(),
        )
    })?;
    let fd = c_int::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel has just made this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct fsuuid2` of include/uapi/linux/fs.h.
#[repr(C)]
struct FsUuid2 {
    len: u8,
    uuid: [u8; 16],
}

/// `struct fsuuid` of include/uapi/linux/ext4.h, with room for one UUID.
#[repr(C)]
struct Ext4FsUuid {
    len: u32,
    flags: u32,
    uuid: [u8; 16],
}

const FS_IOC_GETFSUUID: c_ulong = ior(0x15, 0, size_of::<FsUuid2>());
/// The size in the number is that of the struct's fixed part.
const EXT4_IOC_GETFSUUID: c_ulong = ior(b'f', 44, 8);
const XFS_IOC_FSGEOMETRY_V1: c_ulong = ior(b'X', 100, XFS_GEOMETRY_V1);
const BTRFS_IOC_FS_INFO: c_ulong = ior(0x94, 31, BTRFS_FS_INFO);

/// The size of `struct xfs_fsop_geom_v1` (fs/xfs/libxfs/xfs_fs.h) and where its UUID is.
const XFS_GEOMETRY_V1: usize = 112;
const XFS_UUID_AT: usize = 64;
/// The size of `struct btrfs_ioctl_fs_info_args` and where its fsid is.
const BTRFS_FS_INFO: usize = 1024;
const BTRFS_FSID_AT: usize = 16;

const EXT4_MAGIC: u32 = 0xef53;
const XFS_MAGIC: u32 = 0x5846_5342;
const BTRFS_MAGIC: u32 = 0x9123_683e;

/// `_IOR` of include/uapi/asm-generic/ioctl.h, for the architectures that use it unchanged.
const fn ior(kind: u8, nr: u8, size: usize) -> c_ulong {
    (2 << 30) | ((size as c_ulong) << 16) | ((kind as c_ulong) << 8) | nr as c_ulong
}

/// The UUID of the file system that `fd` is on: what the kernel has in `sb->s_uuid`. `None` when
/// it has none, or this kernel does not tell. `fd` may be an `O_PATH` descriptor of a directory.
///
/// # Errors
/// `EACCES` when an `O_PATH` descriptor cannot be opened for reading; what `fstatfs(2)` returns.
pub fn fs_uuid(fd: BorrowedFd<'_>) -> Result<Option<[u8; 16]>, Errno> {
    match read_uuid(fd) {
        Err(Errno::BADF) => {
            let open = reopen(fd, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
            read_uuid(std::os::fd::AsFd::as_fd(&open))
        }
        other => other,
    }
}

fn read_uuid(fd: BorrowedFd<'_>) -> Result<Option<[u8; 16]>, Errno> {
    let mut generic = FsUuid2 {
        len: 0,
        uuid: [0; 16],
    };
    // SAFETY: the request writes one struct fsuuid2.
    if unsafe { ioctl_read(fd, FS_IOC_GETFSUUID, (&raw mut generic).cast()) }? {
        // A shorter UUID (4 bytes on vfat) is padded with zeros, as in the superblock.
        let used = usize::from(generic.len).min(16);
        generic
            .uuid
            .get_mut(used..)
            .into_iter()
            .for_each(|rest| rest.fill(0));
        return Ok(Some(generic.uuid).filter(|_| used > 0));
    }
    #[allow(
        clippy::unnecessary_cast,
        reason = "the type of f_type differs by architecture"
    )]
    let magic = rustix::fs::fstatfs(fd)?.f_type as u32;
    match magic {
        EXT4_MAGIC => {
            let mut ext4 = Ext4FsUuid {
                len: 16,
                flags: 0,
                uuid: [0; 16],
            };
            // SAFETY: the request writes a struct fsuuid and at most `len` bytes after it.
            let known = unsafe { ioctl_read(fd, EXT4_IOC_GETFSUUID, (&raw mut ext4).cast()) }?;
            Ok(known.then_some(ext4.uuid))
        }
        XFS_MAGIC => uuid_in::<XFS_GEOMETRY_V1>(fd, XFS_IOC_FSGEOMETRY_V1, XFS_UUID_AT),
        BTRFS_MAGIC => uuid_in::<BTRFS_FS_INFO>(fd, BTRFS_IOC_FS_INFO, BTRFS_FSID_AT),
        _ => Ok(None),
    }
}

/// Asks for a struct of `N` bytes, the size encoded in `request`, and takes the UUID at `at`.
fn uuid_in<const N: usize>(
    fd: BorrowedFd<'_>,
    request: c_ulong,
    at: usize,
) -> Result<Option<[u8; 16]>, Errno> {
    #[repr(C, align(8))]
    struct Aligned<const N: usize>([u8; N]);
    let mut buf = Aligned([0u8; N]);
    // SAFETY: the request writes at most the N bytes that its number announces.
    if !unsafe { ioctl_read(fd, request, buf.0.as_mut_ptr().cast()) }? {
        return Ok(None);
    }
    Ok(buf.0.get(at..at + 16).and_then(|uuid| uuid.try_into().ok()))
}

/// Whether the file system knows the request. `EBADF` is an error (an `O_PATH` descriptor).
///
/// # Safety
/// `arg` points to what `request` writes.
unsafe fn ioctl_read(
    fd: BorrowedFd<'_>,
    request: c_ulong,
    arg: *mut c_void,
) -> Result<bool, Errno> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, arg) };
    if c_long::from(result) >= 0 {
        return Ok(true);
    }
    match last_errno() {
        Errno::BADF => Err(Errno::BADF),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{AtFlags, Mode, StatxFlags, open, statx};

    use super::*;

    fn path_fd(path: &std::path::Path) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).unwrap()
    }

    #[test]
    fn a_handle_names_the_inode_whatever_the_way_to_it() {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::write(tmp.path().join("file"), b"").unwrap();
        std::fs::hard_link(tmp.path().join("file"), tmp.path().join("other")).unwrap();
        std::os::unix::fs::symlink("file", tmp.path().join("link")).unwrap();
        let dir = path_fd(tmp.path());
        let handle = |name: &str| {
            name_to_handle_at(dir.as_fd(), OsStr::new(name))
                .unwrap()
                .unwrap()
        };
        let itself = path_fd(&tmp.path().join("file"));
        assert_eq!(
            name_to_handle_at(itself.as_fd(), OsStr::new("")),
            Ok(Some(handle("file")))
        );
        assert_eq!(handle("file"), handle("other"));
        assert_ne!(handle("file"), handle("link"));
        assert_ne!(handle("file"), handle(""));
        let none = name_to_handle_at(dir.as_fd(), OsStr::new("none"));
        assert_eq!(none, Err(Errno::NOENT));
    }

    #[test]
    fn a_file_system_without_handles_gives_none() {
        let proc = path_fd("/proc".as_ref());
        assert_eq!(
            name_to_handle_at(proc.as_fd(), OsStr::new("version")),
            Ok(None)
        );
    }

    #[test]
    #[ignore = "needs CAP_DAC_READ_SEARCH in the initial user namespace"]
    fn a_handle_is_opened_until_its_inode_is_gone() {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = tmp.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let mount = open(tmp.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let handle = name_to_handle_at(mount.as_fd(), OsStr::new("file"))
            .unwrap()
            .unwrap();
        let opened = open_by_handle_at(mount.as_fd(), &handle, OFlags::PATH).unwrap();
        let ino = |fd: BorrowedFd<'_>, name: &str| {
            statx(fd, name, AtFlags::EMPTY_PATH, StatxFlags::INO)
                .unwrap()
                .stx_ino
        };
        assert_eq!(ino(opened.as_fd(), ""), ino(mount.as_fd(), "file"));
        drop(opened);
        std::fs::remove_file(&file).unwrap();
        let gone = open_by_handle_at(mount.as_fd(), &handle, OFlags::PATH).map(drop);
        assert_eq!(gone, Err(Errno::STALE));
        let long = RawHandle {
            handle_type: 1,
            bytes: SmallVec::from_elem(0, 129),
        };
        assert_eq!(
            open_by_handle_at(mount.as_fd(), &long, OFlags::PATH).map(drop),
            Err(Errno::INVAL)
        );
    }

    #[test]
    fn uuids_are_the_same_for_a_path_descriptor() {
        for path in ["/", "/dev/shm", "/proc"] {
            let open = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
            assert_eq!(
                fs_uuid(path_fd(path.as_ref()).as_fd()),
                fs_uuid(open.as_fd()),
                "{path}"
            );
        }
    }
}
