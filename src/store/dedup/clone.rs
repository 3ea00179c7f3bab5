//! The clone of a layer's tree: every attribute kept, blocks shared where the file system can.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::format::keys::Namespace;
use crate::store::disk::{Disk, Step};
use crate::store::error::{Context as _, Result};
use crate::sys::fs::{TimeSpec, chmod_at, chown_at, utimens_at};
use crate::sys::xattr::{SetFlags, get_at, list_at, set_at};

const THIS: &str = "";

/// Clones the tree `from` into the empty directory `to`. Nothing is synced.
pub fn clone_tree(disk: &Disk, from: &Path, to: &Path) -> Result<()> {
    let source = OwnedFd::from(File::open(from).context("opening", from)?);
    let target = OwnedFd::from(File::open(to).context("opening", to)?);
    let mut cloner = Cloner {
        disk,
        links: HashMap::new(),
        root: target.try_clone().context("opening", to)?,
    };
    cloner
        .directory(source, target, Path::new(""))
        .context("cloning", from)
}

struct Cloner<'a> {
    disk: &'a Disk,
    /// Where the first link of an inode with several went.
    links: HashMap<u64, std::path::PathBuf>,
    root: OwnedFd,
}

impl Cloner<'_> {
    /// Clones what is in a directory, then its attributes.
    fn directory(&mut self, from: OwnedFd, to: OwnedFd, path: &Path) -> std::io::Result<()> {
        for name in names(from.as_fd())? {
            self.disk.announce(Step::Unpack)?;
            let stat = rustix::fs::statat(&from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let child = path.join(&name);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                rustix::fs::mkdirat(&to, &name, Mode::RWXU)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner_from = rustix::fs::openat(&from, &name, flags, Mode::empty())?;
                let inner_to = rustix::fs::openat(&to, &name, flags, Mode::empty())?;
                self.directory(inner_from, inner_to, &child)?;
            } else {
                self.leaf(from.as_fd(), to.as_fd(), &name, &stat, child)?;
            }
        }
        let stat = rustix::fs::fstat(&from)?;
        let this = OsStr::new(THIS);
        copy_attributes((from.as_fd(), this), (to.as_fd(), this), &stat, &|_| true)?;
        Ok(())
    }

    fn leaf(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
        path: std::path::PathBuf,
    ) -> std::io::Result<()> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                rustix::fs::linkat(&self.root, first, to, name, AtFlags::empty())?;
                return Ok(());
            }
            self.links.insert(stat.st_ino, path);
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => clone_file(from, to, name)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(target, to, name)?;
            }
            kind => {
                rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
            }
        }
        copy_attributes((from, name), (to, name), stat, &|_| true)
    }
}

fn names(dir: BorrowedFd<'_>) -> std::io::Result<Vec<OsString>> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir));
    fs::read_dir(path)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect()
}

/// Clones the content: blocks are shared if they can, copied otherwise, holes left out.
fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr) -> std::io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let write = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
    let target = File::from(rustix::fs::openat(
        to,
        name,
        write,
        Mode::RUSR | Mode::WUSR,
    )?);
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(start))?;
        copy_range(&source, &target, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
        let (mut off_in, mut off_out) = (at, at);
        let copied = match rustix::fs::copy_file_range(
            source,
            Some(&mut off_in),
            target,
            Some(&mut off_out),
            want,
        ) {
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                let mut buffer = vec![0; want.min(1 << 20)];
                let read = source.read_at(&mut buffer, at)?;
                target.write_all_at(buffer.get(..read).unwrap_or_default(), at)?;
                read
            }
            other => other?,
        };
        if copied == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        at += copied as u64;
    }
    Ok(())
}

/// Gives a directory the owner, mode, times and attributes of another, but not what only an overlay may set.
pub fn copy_directory_attributes(from: &Path, to: &Path) -> std::io::Result<()> {
    let (from, to) = (File::open(from)?, File::open(to)?);
    let stat = rustix::fs::fstat(&from)?;
    let this = OsStr::new(THIS);
    let is_plain = |key: &[u8]| {
        ![Namespace::Trusted, Namespace::User]
            .iter()
            .any(|namespace| key.starts_with(namespace.prefix()))
    };
    copy_attributes((from.as_fd(), this), (to.as_fd(), this), &stat, &is_plain)
}

/// The owner first, which takes set-id bits and capabilities away; the times last.
fn copy_attributes(
    (from_dir, from): (BorrowedFd<'_>, &OsStr),
    (to_dir, to): (BorrowedFd<'_>, &OsStr),
    stat: &Stat,
    wanted: &dyn Fn(&[u8]) -> bool,
) -> std::io::Result<()> {
    chown_at(to_dir, to, Some(stat.st_uid), Some(stat.st_gid))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        chmod_at(to_dir, to, stat.st_mode & 0o7777)?;
    }
    for key in list_at(from_dir, from)?.split_inclusive(|byte| *byte == 0) {
        let Ok(key) = CStr::from_bytes_with_nul(key) else {
            continue;
        };
        if !wanted(key.to_bytes()) {
            continue;
        }
        if let Some(value) = get_at(from_dir, from, key)? {
            set_at(to_dir, to, key, &value, SetFlags::Any)?;
        }
    }
    let time = |sec: i64, nsec| TimeSpec::At {
        sec,
        nsec: u32::try_from(nsec).unwrap_or(0),
    };
    utimens_at(
        to_dir,
        to,
        time(stat.st_atime, stat.st_atime_nsec),
        time(stat.st_mtime, stat.st_mtime_nsec),
    )?;
    Ok(())
}
