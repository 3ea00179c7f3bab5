//! The last steps of what is built in `work`: its times, and the rename that publishes it.

use rustix::fs::{RenameFlags, Statx};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use crate::overlay::attr::stat_opt;
use crate::sys::fs::{self as sysfs, TimeSpec};

/// Sets access and modification time as in `st`.
pub(crate) fn set_times(fd: BorrowedFd<'_>, name: &OsStr, st: &Statx) -> Result<(), Errno> {
    let at = |t: rustix::fs::StatxTimestamp| TimeSpec::At {
        sec: t.tv_sec,
        nsec: t.tv_nsec,
    };
    sysfs::utimens_at(fd, name, at(st.stx_atime), at(st.stx_mtime))
}

/// rename that fails with `EEXIST` on an existing target, also where the file system lacks the
/// flag (then by checking first: upper has no other writer).
pub(crate) fn rename_noreplace(
    from: BorrowedFd<'_>,
    from_name: &OsStr,
    to: BorrowedFd<'_>,
    to_name: &OsStr,
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from, from_name, to, to_name, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            if stat_opt(to, to_name)?.is_some() {
                return Err(Errno::EXIST);
            }
            rustix::fs::renameat(from, from_name, to, to_name)
        }
        other => other,
    }
}
