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
fn dispatch<R>(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    at: impl FnOnce(libc::c_int, &CStr) -> Result<R, Errno>,
    by_path: impl FnOnce(&CStr, bool) -> Result<R, Errno>,
) -> Result<R, Errno> {
    if !NO_XATTRAT.load(Ordering::Relaxed) {
        match with_c_name(name, |name| at(dir.as_raw_fd(), name)) {
            Err(Errno::NOSYS) => NO_XATTRAT.store(true, Ordering::Relaxed),
            // fs/xattr.c takes an empty name through fdget(), which does not see O_PATH files.
            Err(Errno::BADF) if name.is_empty() => {}
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
    let mut small = [0u8; 256];
    match get_at_into(dir, name, key, &mut small) {
        Ok(Some(n)) => return Ok(small.get(..n).map(<[u8]>::to_vec)),
        Ok(None) => return Ok(None),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    for _ in 0..ATTEMPTS {
        let Some(size) = get_at_into(dir, name, key, &mut [])? else {
            return Ok(None);
        };
        let mut value = vec![0u8; size.clamp(1, SIZE_MAX)];
        match get_at_into(dir, name, key, &mut value) {
            Ok(Some(n)) => {
                value.truncate(n);
                return Ok(Some(value));
            }
            Ok(None) => return Ok(None),
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
    let room = buf.len().min(SIZE_MAX);
    let value = buf.as_mut_ptr();
    let result = dispatch(
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
    );
    match result {
        Ok(n) => Ok(Some(n)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
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
    let mut list = vec![0u8; 1024];
    for _ in 0..ATTEMPTS {
        match list_once(dir, name, &mut list) {
            Ok(n) => {
                list.truncate(n);
                return Ok(list);
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(Errno::RANGE) if list.len() < SIZE_MAX => list.resize(SIZE_MAX, 0),
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
