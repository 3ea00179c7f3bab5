//! Extended attributes by (directory, name), never through a final symlink.
//!
//! Uses `getxattrat(2)` and its family (Linux 6.13); where they are missing, and for `O_PATH`
//! descriptors with an empty name (which that family refuses with `EBADF`), the path-based calls
//! on `/proc/self/fd/N`.
#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_long};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::call::{check, with_c_name, with_proc_path};

/// The same on all architectures: added after the system call tables were unified.
const SYS_SETXATTRAT: c_long = 463;
const SYS_GETXATTRAT: c_long = 464;
const SYS_LISTXATTRAT: c_long = 465;
const SYS_REMOVEXATTRAT: c_long = 466;

const AT_FLAGS: libc::c_int = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;

/// The kernel's `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
const SIZE_MAX: usize = 65536;
/// How often a value may grow between asking its size and reading it.
const ATTEMPTS: u32 = 16;

/// Set for good once the kernel has answered `ENOSYS`. Relaxed: it guards no other data, and a
/// thread that misses it asks the kernel once more.
static NO_XATTRAT: AtomicBool = AtomicBool::new(false);

/// The kernel's `struct xattr_args` (include/uapi/linux/xattr.h): 16 bytes, 8-byte aligned.
#[repr(C, align(8))]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// What [`set_at`] expects of an attribute of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetFlags {
    /// Nothing: create or replace.
    Any,
    /// Its absence, otherwise `EEXIST`.
    Create,
    /// Its presence, otherwise `ENODATA`.
    Replace,
}

impl SetFlags {
    fn bits(self) -> libc::c_int {
        match self {
            SetFlags::Any => 0,
            SetFlags::Create => libc::XATTR_CREATE,
            SetFlags::Replace => libc::XATTR_REPLACE,
        }
    }
}

/// Runs `at` where the kernel has the `*xattrat` calls, otherwise, or when the kernel refuses this
/// kind of descriptor, `by_path` with a `/proc` path and whether that has to be followed.
///
/// fs/xattr.c takes an empty name through `fdget()`, which does not see `O_PATH` files: `EBADF`.
/// For directories `.` does instead, in less than half of the time that the walk through `/proc`
/// takes.
fn dispatch<R>(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    at: impl Fn(libc::c_int, &CStr) -> Result<R, Errno>,
    by_path: impl FnOnce(&CStr, bool) -> Result<R, Errno>,
) -> Result<R, Errno> {
    if !NO_XATTRAT.load(Ordering::Relaxed) {
        let fd = dir.as_raw_fd();
        match with_c_name(name, |name| at(fd, name)) {
            Err(Errno::NOSYS) => NO_XATTRAT.store(true, Ordering::Relaxed),
            Err(Errno::BADF) if name.is_empty() => match at(fd, c".") {
                // Not a directory, or one that may not be searched.
                Err(Errno::NOTDIR | Errno::ACCESS | Errno::BADF) => {}
                other => return other,
            },
            other => return other,
        }
    }
    with_proc_path(dir, name, |path| by_path(path, name.is_empty()))
}

/// The value of `key`; `None` when there is none or the file system has no such attributes.
///
/// # Errors
/// What `getxattr(2)` returns, except `ENODATA` and `EOPNOTSUPP`. `ERANGE` only when the value
/// kept growing while it was read.
pub fn get_at(dir: BorrowedFd<'_>, name: &OsStr, key: &CStr) -> Result<Option<Vec<u8>>, Errno> {
    match get_or_errno(dir, name, key) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The value of `key`.
///
/// # Errors
/// What `getxattr(2)` returns, `ENODATA` and `EOPNOTSUPP` included. `ERANGE` only when the value
/// kept growing while it was read.
pub fn get_or_errno(dir: BorrowedFd<'_>, name: &OsStr, key: &CStr) -> Result<Vec<u8>, Errno> {
    let mut small = [0u8; 256];
    match get_once(dir, name, key, &mut small) {
        Ok(n) => return small.get(..n).map(<[u8]>::to_vec).ok_or(Errno::RANGE),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    for _ in 0..ATTEMPTS {
        let size = get_once(dir, name, key, &mut [])?;
        let mut value = vec![0u8; size.clamp(1, SIZE_MAX)];
        match get_once(dir, name, key, &mut value) {
            Ok(n) => {
                value.truncate(n);
                return Ok(value);
            }
            Err(Errno::RANGE) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::RANGE)
}

/// Reads the value of `key` into `buf` and returns its length; with an empty `buf`, only the
/// length. `None` as in [`get_at`].
///
/// # Errors
/// `ERANGE` when `buf` is too small, otherwise as [`get_at`].
pub fn get_at_into(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    key: &CStr,
    buf: &mut [u8],
) -> Result<Option<usize>, Errno> {
    match get_once(dir, name, key, buf) {
        Ok(n) => Ok(Some(n)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

fn get_once(dir: BorrowedFd<'_>, name: &OsStr, key: &CStr, buf: &mut [u8]) -> Result<usize, Errno> {
    let room = buf.len().min(SIZE_MAX);
    let value = buf.as_mut_ptr();
    dispatch(
        dir,
        name,
        |fd, name| {
            let mut args = XattrArgs {
                value: value as usize as u64,
                size: u32::try_from(room).unwrap_or(u32::MAX),
                flags: 0,
            };
            // SAFETY: `name` and `key` are NUL-terminated; `args` names `room` writable bytes of
            // `buf`, which outlives the call.
            check(unsafe {
                libc::syscall(
                    SYS_GETXATTRAT,
                    fd,
                    name.as_ptr(),
                    AT_FLAGS,
                    key.as_ptr(),
                    &raw mut args,
                    size_of::<XattrArgs>(),
                )
            })
        },
        |path, follow| {
            let call = if follow {
                libc::getxattr
            } else {
                libc::lgetxattr
            };
            // SAFETY: `path` and `key` are NUL-terminated; `value` points to `room` writable bytes.
            check(unsafe { call(path.as_ptr(), key.as_ptr(), value.cast(), room) } as c_long)
        },
    )
}

/// Whether `key` is there, whatever its value.
///
/// # Errors
/// As [`get_at`].
pub fn has_at(dir: BorrowedFd<'_>, name: &OsStr, key: &CStr) -> Result<bool, Errno> {
    Ok(get_at_into(dir, name, key, &mut [])?.is_some())
}

/// Sets `key` to `value`.
///
/// # Errors
/// What `setxattr(2)` returns.
pub fn set_at(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    key: &CStr,
    value: &[u8],
    flags: SetFlags,
) -> Result<(), Errno> {
    let size = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    dispatch(
        dir,
        name,
        |fd, name| {
            let args = XattrArgs {
                value: value.as_ptr() as usize as u64,
                size,
                flags: flags.bits().cast_unsigned(),
            };
            // SAFETY: `name` and `key` are NUL-terminated; `args` names the readable bytes of
            // `value`, which outlives the call.
            check(unsafe {
                libc::syscall(
                    SYS_SETXATTRAT,
                    fd,
                    name.as_ptr(),
                    AT_FLAGS,
                    key.as_ptr(),
                    &raw const args,
                    size_of::<XattrArgs>(),
                )
            })
        },
        |path, follow| {
            let call = if follow {
                libc::setxattr
            } else {
                libc::lsetxattr
            };
            // SAFETY: `path` and `key` are NUL-terminated; `value` is readable for its length.
            let result = unsafe {
                call(
                    path.as_ptr(),
                    key.as_ptr(),
                    value.as_ptr().cast(),
                    value.len(),
                    flags.bits(),
                )
            };
            check(c_long::from(result))
        },
    )
    .map(drop)
}

/// The names of all attributes, each followed by a NUL, as the kernel gives them; empty when the
/// file system has no attributes.
///
/// # Errors
/// What `listxattr(2)` returns, except `EOPNOTSUPP`. `ERANGE` only when the list kept growing.
pub fn list_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Vec<u8>, Errno> {
    let mut small = [0u8; 1024];
    match list_once(dir, name, &mut small) {
        Ok(n) => return small.get(..n).map(<[u8]>::to_vec).ok_or(Errno::RANGE),
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    let mut list = vec![0u8; SIZE_MAX];
    for _ in 0..ATTEMPTS {
        match list_once(dir, name, &mut list) {
            Ok(n) => {
                list.truncate(n);
                return Ok(list);
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(Errno::RANGE) => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::RANGE)
}

fn list_once(dir: BorrowedFd<'_>, name: &OsStr, buf: &mut [u8]) -> Result<usize, Errno> {
    let (list, room) = (buf.as_mut_ptr(), buf.len());
    dispatch(
        dir,
        name,
        |fd, name| {
            // SAFETY: `name` is NUL-terminated; `list` points to `room` writable bytes.
            check(unsafe {
                libc::syscall(SYS_LISTXATTRAT, fd, name.as_ptr(), AT_FLAGS, list, room)
            })
        },
        |path, follow| {
            let call = if follow {
                libc::listxattr
            } else {
                libc::llistxattr
            };
            // SAFETY: `path` is NUL-terminated; `list` points to `room` writable bytes.
            check(unsafe { call(path.as_ptr(), list.cast(), room) } as c_long)
        },
    )
}

/// Removes `key`.
///
/// # Errors
/// What `removexattr(2)` returns: `ENODATA` when there is no such attribute.
pub fn remove_at(dir: BorrowedFd<'_>, name: &OsStr, key: &CStr) -> Result<(), Errno> {
    dispatch(
        dir,
        name,
        |fd, name| {
            // SAFETY: `name` and `key` are NUL-terminated.
            check(unsafe {
                libc::syscall(SYS_REMOVEXATTRAT, fd, name.as_ptr(), AT_FLAGS, key.as_ptr())
            })
        },
        |path, follow| {
            let call = if follow {
                libc::removexattr
            } else {
                libc::lremovexattr
            };
            // SAFETY: `path` and `key` are NUL-terminated.
            check(c_long::from(unsafe { call(path.as_ptr(), key.as_ptr()) }))
        },
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::Path;

    use rustix::fs::{CWD, Mode, OFlags, open};

    use super::*;

    const KEY: &CStr = c"user.test";

    /// On a file system with `user.*` attributes, which tmpfs may lack.
    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir_in("/var/tmp").unwrap()
    }

    fn fd(path: &Path, flags: OFlags) -> OwnedFd {
        open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn n(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    fn both_ways(test: impl Fn()) {
        for fallback in [false, true] {
            // Tests run side by side; either value is right for each of them.
            NO_XATTRAT.store(fallback, Ordering::Relaxed);
            test();
        }
        NO_XATTRAT.store(false, Ordering::Relaxed);
    }

    fn round_trip(dir: BorrowedFd<'_>, name: &OsStr) {
        assert_eq!(get_at(dir, name, KEY), Ok(None));
        assert_eq!(has_at(dir, name, KEY), Ok(false));
        assert_eq!(remove_at(dir, name, KEY), Err(Errno::NODATA));
        assert_eq!(
            set_at(dir, name, KEY, b"x", SetFlags::Replace),
            Err(Errno::NODATA)
        );
        set_at(dir, name, KEY, b"", SetFlags::Create).unwrap();
        assert_eq!(get_at(dir, name, KEY), Ok(Some(vec![])));
        assert_eq!(has_at(dir, name, KEY), Ok(true));
        assert_eq!(
            set_at(dir, name, KEY, b"x", SetFlags::Create),
            Err(Errno::EXIST)
        );
        set_at(dir, name, KEY, b"value", SetFlags::Replace).unwrap();
        set_at(dir, name, c"user.other", b"1", SetFlags::Any).unwrap();
        assert_eq!(get_at(dir, name, KEY), Ok(Some(b"value".to_vec())));
        let mut buf = [0u8; 5];
        assert_eq!(get_at_into(dir, name, KEY, &mut buf), Ok(Some(5)));
        assert_eq!(&buf, b"value");
        assert_eq!(get_at_into(dir, name, KEY, &mut [0; 4]), Err(Errno::RANGE));
        assert_eq!(get_at_into(dir, name, KEY, &mut []), Ok(Some(5)));
        let list = list_at(dir, name).unwrap();
        assert!(list.ends_with(b"\0"));
        let names: Vec<_> = list.split(|&b| b == 0).collect();
        assert!(
            names.contains(&b"user.test".as_slice()) && names.contains(&b"user.other".as_slice())
        );
        remove_at(dir, name, KEY).unwrap();
        remove_at(dir, name, c"user.other").unwrap();
    }

    #[test]
    fn attributes_are_reached_by_every_kind_of_descriptor() {
        both_ways(|| {
            let tmp = scratch();
            std::fs::write(tmp.path().join("file"), b"").unwrap();
            std::fs::create_dir(tmp.path().join("sub")).unwrap();
            for flags in [OFlags::RDONLY, OFlags::PATH] {
                let dir = fd(tmp.path(), flags);
                round_trip(dir.as_fd(), n("file"));
                round_trip(dir.as_fd(), n("sub"));
                round_trip(dir.as_fd(), n(""));
                round_trip(fd(&tmp.path().join("file"), flags).as_fd(), n(""));
            }
            let file = tmp.path().join("file");
            round_trip(CWD, file.as_os_str());
        });
    }

    #[test]
    fn a_final_symlink_is_not_followed() {
        both_ways(|| {
            let tmp = scratch();
            std::fs::write(tmp.path().join("file"), b"").unwrap();
            std::os::unix::fs::symlink("file", tmp.path().join("link")).unwrap();
            let dir = fd(tmp.path(), OFlags::PATH);
            set_at(dir.as_fd(), n("file"), KEY, b"x", SetFlags::Any).unwrap();
            let link = fd(&tmp.path().join("link"), OFlags::PATH | OFlags::NOFOLLOW);
            for (dir, name) in [(dir.as_fd(), n("link")), (link.as_fd(), n(""))] {
                // A symlink can't have user.* attributes.
                assert_eq!(get_at(dir, name, KEY), Ok(None));
                assert_eq!(
                    set_at(dir, name, KEY, b"y", SetFlags::Any),
                    Err(Errno::PERM)
                );
                assert_eq!(
                    list_at(dir, name)
                        .unwrap()
                        .windows(9)
                        .find(|w| w == b"user.test"),
                    None
                );
            }
            assert_eq!(get_at(dir.as_fd(), n("file"), KEY), Ok(Some(b"x".to_vec())));
        });
    }

    #[test]
    #[ignore = "needs CAP_SYS_ADMIN in the initial user namespace"]
    fn symlinks_and_special_files_have_trusted_attributes() {
        both_ways(|| {
            let tmp = scratch();
            std::os::unix::fs::symlink("nowhere", tmp.path().join("link")).unwrap();
            let dir = fd(tmp.path(), OFlags::PATH);
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(&dir, "fifo", kind, Mode::RWXU, 0).unwrap();
            for name in ["link", "fifo"] {
                let key = c"trusted.test";
                let itself = fd(&tmp.path().join(name), OFlags::PATH | OFlags::NOFOLLOW);
                set_at(dir.as_fd(), n(name), key, b"1", SetFlags::Create).unwrap();
                assert_eq!(get_at(itself.as_fd(), n(""), key), Ok(Some(b"1".to_vec())));
                set_at(itself.as_fd(), n(""), key, b"2", SetFlags::Replace).unwrap();
                assert_eq!(get_at(dir.as_fd(), n(name), key), Ok(Some(b"2".to_vec())));
                assert_eq!(
                    list_at(itself.as_fd(), n("")),
                    list_at(dir.as_fd(), n(name))
                );
                remove_at(itself.as_fd(), n(""), key).unwrap();
            }
        });
    }

    #[test]
    fn values_larger_than_the_stack_buffer_are_read() {
        both_ways(|| {
            let tmp = scratch();
            let dir = fd(tmp.path(), OFlags::PATH);
            for size in [255, 256, 257, 2000] {
                let value = vec![b'v'; size];
                set_at(dir.as_fd(), n(""), KEY, &value, SetFlags::Any).unwrap();
                assert_eq!(get_at(dir.as_fd(), n(""), KEY), Ok(Some(value)));
            }
        });
    }

    #[test]
    fn lists_larger_than_the_first_buffer_are_read() {
        both_ways(|| {
            let tmp = scratch();
            let dir = fd(tmp.path(), OFlags::PATH);
            for i in 0..9 {
                let key = std::ffi::CString::new(format!("user.{i}{}", "k".repeat(200))).unwrap();
                set_at(dir.as_fd(), n(""), &key, b"", SetFlags::Any).unwrap();
            }
            let list = list_at(dir.as_fd(), n("")).unwrap();
            let ours = list
                .split(|&b| b == 0)
                .filter(|key| key.starts_with(b"user."));
            assert_eq!(ours.count(), 9);
        });
    }

    #[test]
    fn no_attributes_at_all_is_none() {
        both_ways(|| {
            let dir = fd(Path::new("/proc/self"), OFlags::PATH);
            assert_eq!(get_at(dir.as_fd(), n("status"), KEY), Ok(None));
            assert_eq!(list_at(dir.as_fd(), n("status")), Ok(vec![]));
            let refused = set_at(dir.as_fd(), n("status"), KEY, b"", SetFlags::Any);
            // The owner's permission is asked for first.
            assert!(
                matches!(refused, Err(Errno::OPNOTSUPP | Errno::ACCESS)),
                "{refused:?}"
            );
        });
    }

    #[test]
    fn names_that_do_not_exist_are_errors() {
        both_ways(|| {
            let tmp = scratch();
            std::fs::write(tmp.path().join("file"), b"").unwrap();
            let dir = fd(tmp.path(), OFlags::PATH);
            let file = fd(&tmp.path().join("file"), OFlags::PATH);
            assert_eq!(get_at(dir.as_fd(), n("none"), KEY), Err(Errno::NOENT));
            assert_eq!(get_at(file.as_fd(), n("none"), KEY), Err(Errno::NOTDIR));
            assert_eq!(get_at(dir.as_fd(), n("a\0b"), KEY), Err(Errno::INVAL));
            for length in [256, 5000] {
                let long = "a".repeat(length);
                assert_eq!(get_at(dir.as_fd(), n(&long), KEY), Err(Errno::NAMETOOLONG));
            }
            let longest = "a".repeat(255);
            std::fs::write(tmp.path().join(&longest), b"").unwrap();
            assert_eq!(get_at(dir.as_fd(), n(&longest), KEY), Ok(None));
        });
    }
}
