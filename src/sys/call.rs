//! What every wrapper needs: results of raw system calls, C strings, paths through `/proc`.

use std::ffi::{CStr, CString, OsStr, c_long};
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

/// The thread's `errno`.
pub(super) fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error().raw_os_error();
    raw.map_or(Errno::IO, Errno::from_raw_os_error)
}

/// The result of `libc::syscall` or a libc function: -1 means that `errno` says why.
pub(super) fn check(result: c_long) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| last_errno())
}

/// Calls `f` with `name` as a C string, on the stack for anything that is one component.
///
/// # Errors
/// `EINVAL` when `name` holds a NUL; otherwise what `f` returns.
pub(super) fn with_c_name<R>(
    name: &OsStr,
    f: impl FnOnce(&CStr) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let bytes = name.as_bytes();
    let mut stack = [0u8; 256];
    if let Some(room) = stack.get_mut(..bytes.len())
        && bytes.len() < 256
    {
        room.copy_from_slice(bytes);
        let with_nul = stack.get(..=bytes.len()).ok_or(Errno::INVAL)?;
        return f(CStr::from_bytes_with_nul(with_nul).map_err(|_| Errno::INVAL)?);
    }
    let owned = CString::new(bytes).map_err(|_| Errno::INVAL)?;
    f(&owned)
}

/// Calls `f` with `/proc/self/fd/N` (empty name) or `/proc/self/fd/N/name`.
///
/// The first form has to be used with a system call that follows symlinks: the kernel's magic link
/// leads to exactly that inode, whatever it is called now, a symlink included. The second form has
/// to be used with one that does not.
///
/// # Errors
/// `EINVAL` when `name` holds a NUL, `ENAMETOOLONG` when the path would not fit `PATH_MAX`.
pub(super) fn with_proc_path<R>(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    f: impl FnOnce(&CStr) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let mut path = [0u8; 4096];
    let mut rest = &mut path[..];
    let fd = dir.as_raw_fd();
    let written = match (fd, name.is_empty()) {
        (libc::AT_FDCWD, true) => rest.write_all(b"."),
        (libc::AT_FDCWD, false) => Ok(()),
        (_, true) => write!(rest, "/proc/self/fd/{fd}"),
        (_, false) => write!(rest, "/proc/self/fd/{fd}/"),
    };
    written
        .and_then(|()| rest.write_all(name.as_bytes()))
        .and_then(|()| rest.write_all(&[0]))
        .map_err(|_| Errno::NAMETOOLONG)?;
    let left = rest.len();
    let used = path.len() - left;
    let with_nul = path.get(..used).ok_or(Errno::INVAL)?;
    f(CStr::from_bytes_with_nul(with_nul).map_err(|_| Errno::INVAL)?)
}
