//! The work directory: where things are built before one step puts them into upper.

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::attr::{is_dir, stat_opt};
use super::layer::DIR_READ;
use crate::sys::dir::DirReader;
use crate::sys::fs as sysfs;
use crate::sys::xattr::{self, SetFlags};

/// `work/work` and what the file system can do.
pub(crate) struct Work {
    /// The work directory as given by the user.
    pub base: OwnedFd,
    /// `work/work`: empty at mount, and again at unmount.
    pub dir: OwnedFd,
    /// `work/index`, where hard links of lower files are kept together.
    pub index: Option<OwnedFd>,
    /// Owner and group of what is made in `work/work`, with the mode that is asked for. `None`: with another.
    pub fresh_owner: Option<(u32, u32)>,
    /// Does the file system have `O_TMPFILE`?
    pub tmpfile: bool,
    /// Does it have `RENAME_WHITEOUT`?
    pub rename_whiteout: bool,
    /// Can whiteouts be character devices? Otherwise they are `.wh.` files.
    pub whiteouts_in_place: bool,
    /// The attribute that makes an empty file a whiteout, where there can be no others.
    pub whiteout_mark: Option<&'static CStr>,
    counter: AtomicU64,
    /// The whiteout that all others are hard links of, as the kernel does since 5.8.
    shared_whiteout: Mutex<Option<OsString>>,
}

/// A name in `work/work`, removed on drop unless it was published.
pub(crate) struct Temp<'a> {
    work: &'a Work,
    pub name: OsString,
    published: bool,
}

impl Temp<'_> {
    /// Says that the name is gone from `work`: it was renamed into its place.
    pub(crate) fn published(mut self) {
        self.published = true;
    }
}

impl Drop for Temp<'_> {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // What can't be removed now is removed at the next mount.
        if let Err(e) = remove_tree(self.work.dir.as_fd(), &self.name) {
            tracing::warn!(name = ?self.name, "a left-over stays in work: {e}");
        }
    }
}

impl Work {
    /// Opens `work/work` beneath `base`, creating or emptying it, and finds out what the file
    /// system can do.
    ///
    /// # Errors
    /// What the file system returns; `EROFS` among others.
    pub(crate) fn open(base: OwnedFd) -> Result<Work, Errno> {
        let dir = open_empty_dir(base.as_fd(), OsStr::new("work"))?;
        let mut work = Work {
            base,
            dir,
            index: None,
            tmpfile: false,
            rename_whiteout: false,
            whiteouts_in_place: false,
            whiteout_mark: None,
            fresh_owner: None,
            counter: AtomicU64::new(0),
            shared_whiteout: Mutex::new(None),
        };
        // What is made in it must not inherit anything.
        match xattr::remove_at(
            work.dir.as_fd(),
            OsStr::new(""),
            c"system.posix_acl_default",
        ) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(e) => return Err(e),
        }
        work.fresh_owner = work.probe_owner()?;
        work.tmpfile = work.probe_tmpfile()?;
        work.whiteouts_in_place = work.probe_whiteout()?;
        work.rename_whiteout = work.whiteouts_in_place && work.probe_rename_whiteout()?;
        Ok(work)
    }

    fn probe_owner(&self) -> Result<Option<(u32, u32)>, Errno> {
        let temp = self.temp();
        let dir = self.dir.as_fd();
        rustix::fs::mkdirat(dir, &temp.name, Mode::RWXU | Mode::RWXG | Mode::RWXO)?;
        let st = super::attr::stat_at(dir, &temp.name)?;
        // Under a umask what is made needs more than an owner: then nothing is taken for granted.
        let whole = st.stx_mode & 0o777 == 0o777;
        Ok(whole.then_some((st.stx_uid, st.stx_gid)))
    }

    fn probe_tmpfile(&self) -> Result<bool, Errno> {
        match self.open_tmpfile(0o600) {
            Ok(_) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn probe_whiteout(&self) -> Result<bool, Errno> {
        let temp = self.temp();
        match mknod_whiteout(self.dir.as_fd(), &temp.name) {
            Ok(()) => Ok(true),
            Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV) => {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    fn probe_rename_whiteout(&self) -> Result<bool, Errno> {
        let (from, to) = (self.temp(), self.temp());
        let dir = self.dir.as_fd();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(rustix::fs::openat(dir, &from.name, flags, Mode::RUSR)?);
        match rustix::fs::renameat_with(dir, &from.name, dir, &to.name, RenameFlags::WHITEOUT) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// A fresh name in `work/work`. Nothing exists under it yet; what is made must be made with
    /// `O_EXCL` or a call that fails on an existing name.
    pub(crate) fn temp(&self) -> Temp<'_> {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        Temp {
            work: self,
            name: OsString::from(format!("#{n:x}")),
            published: false,
        }
    }

    /// An unnamed file on upper's file system.
    pub(crate) fn open_tmpfile(&self, mode: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(self.dir.as_fd(), c".", flags, Mode::from_raw_mode(mode))
    }

    /// Makes a whiteout under a fresh name in `work/work`.
    pub(crate) fn make_whiteout(&self) -> Result<Temp<'_>, Errno> {
        let temp = self.temp();
        self.link_whiteout(self.dir.as_fd(), &temp.name)?;
        Ok(temp)
    }

    /// Makes a whiteout at `name` in `dir`, where nothing may exist.
    ///
    /// # Errors
    /// `EEXIST`, and what the file system returns.
    pub(crate) fn link_whiteout(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        let mut shared = self.shared_whiteout.lock();
        if let Some(source) = shared.as_ref() {
            match rustix::fs::linkat(self.dir.as_fd(), source, dir, name, AtFlags::empty()) {
                // Too many links, or a file system without links to devices: a new one.
                Err(Errno::MLINK | Errno::PERM | Errno::NOENT | Errno::XDEV | Errno::OPNOTSUPP) => {
                }
                other => return other,
            }
        }
        if let Some(mark) = self.whiteout_mark {
            // It gets its name complete.
            let fresh = self.new_marked_whiteout(mark)?;
            rustix::fs::linkat(self.dir.as_fd(), &fresh.name, dir, name, AtFlags::empty())?;
            *shared = Some(fresh.name.clone());
            fresh.published();
            return Ok(());
        }
        mknod_whiteout(dir, name)?;
        let fresh = self.temp();
        match rustix::fs::linkat(dir, name, self.dir.as_fd(), &fresh.name, AtFlags::empty()) {
            Ok(()) => {
                let new = fresh.name.clone();
                fresh.published();
                if let Some(old) = shared.replace(new) {
                    unlink_quietly(self.dir.as_fd(), &old);
                }
            }
            Err(e) => tracing::debug!("whiteouts can't be shared: {e}"),
        }
        Ok(())
    }

    fn new_marked_whiteout(&self, mark: &CStr) -> Result<Temp<'_>, Errno> {
        let temp = self.temp();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dir, &temp.name, flags, Mode::RUSR | Mode::WUSR)?;
        xattr::set_at(fd.as_fd(), OsStr::new(""), mark, b"", SetFlags::Any)?;
        Ok(temp)
    }

    /// Falls back to whiteouts that are empty files with the attribute `mark`, if devices and `.wh.`
    /// names are refused: as on another overlay, which keeps both to itself.
    pub(crate) fn choose_whiteouts(&mut self, mark: &'static CStr) -> Result<(), Errno> {
        if self.whiteouts_in_place {
            return Ok(());
        }
        let (dir, probe) = (self.dir.as_fd(), c".wh.probe");
        match rustix::fs::mknodat(dir, probe, FileType::RegularFile, Mode::empty(), 0) {
            Ok(()) => return rustix::fs::unlinkat(dir, probe, AtFlags::empty()),
            Err(Errno::INVAL | Errno::PERM | Errno::ACCESS) => {}
            Err(e) => return Err(e),
        }
        self.whiteout_mark = Some(mark);
        self.whiteouts_in_place = true;
        drop(self.make_whiteout()?);
        Ok(())
    }

    /// Removes what the mount keeps in `work/work` while it lives.
    pub(crate) fn clean_up(&self) -> Result<(), Errno> {
        *self.shared_whiteout.lock() = None;
        empty_dir_but(self.dir.as_fd(), OsStr::new("incompat"))
    }
}

fn unlink_quietly(dir: BorrowedFd<'_>, name: &OsStr) {
    if let Err(e) = rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        tracing::debug!(?name, "left in work: {e}");
    }
}

/// A character device 0:0 at `name` in `dir`.
pub(crate) fn mknod_whiteout(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Opens the directory `name` in `base`; makes it, or empties it.
fn open_empty_dir(base: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(base, name, Mode::RWXU) {
        Ok(()) => return rustix::fs::openat(base, name, DIR_READ, Mode::empty()),
        Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    match stat_opt(base, name)? {
        Some(st) if is_dir(&st) => {}
        _ => {
            // Not ours, but in the place that is ours: it goes, as the kernel does it.
            rustix::fs::unlinkat(base, name, AtFlags::empty())?;
            rustix::fs::mkdirat(base, name, Mode::RWXU)?;
        }
    }
    // The kernel makes it with mode 0, which stops everybody but root.
    sysfs::chmod_at(base, name, 0o700)?;
    let dir = rustix::fs::openat(base, name, DIR_READ, Mode::empty())?;
    empty_dir_but(dir.as_fd(), OsStr::new(""))?;
    Ok(dir)
}

/// Removes everything in `dir` but the entry `keep` (the marker of a volatile mount outlives it).
fn empty_dir_but(dir: BorrowedFd<'_>, keep: &OsStr) -> Result<(), Errno> {
    // A directory is listed again until nothing is left: entries may move while it is emptied.
    loop {
        let mut names: Vec<OsString> = Vec::new();
        DirReader::seek(dir, 0)?;
        DirReader::new().read_all(dir, |e| {
            if e.name != "." && e.name != ".." && e.name != keep {
                names.push(e.name.to_os_string());
            }
        })?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            remove_tree(dir, &name)?;
        }
    }
}

/// Removes `name` in `dir` and all beneath it, without recursion: depth costs no stack, and at
/// most one descriptor a level of real directories is held.
///
/// # Errors
/// The first one met. Absence is not an error.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    match stat_opt(dir, name)? {
        None => return Ok(()),
        Some(st) if is_dir(&st) => {}
        Some(_) => {
            clear_immutable(dir, name)?;
            return rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    clear_immutable(dir, name)?;
    let sub = match rustix::fs::openat(dir, name, DIR_READ, Mode::empty()) {
        Err(Errno::ACCESS) => {
            sysfs::chmod_at(dir, name, 0o700)?;
            rustix::fs::openat(dir, name, DIR_READ, Mode::empty())?
        }
        other => other?,
    };
    flatten_into(dir, sub.as_fd())?;
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Empties `sub`; directories that are not empty are moved up into `top`, where they are removed
/// in turn, so that depth needs neither stack nor descriptors.
fn flatten_into(top: BorrowedFd<'_>, sub: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut queue: Vec<OsString> = Vec::new();
    let mut moved = 0u64;
    let mut current: Option<OwnedFd> = None;
    loop {
        let dir = current.as_ref().map_or(sub, |fd| fd.as_fd());
        let mut names: Vec<OsString> = Vec::new();
        DirReader::new().read_all(dir, |e| {
            if e.name != "." && e.name != ".." {
                names.push(e.name.to_os_string());
            }
        })?;
        for name in names {
            if remove_leaf(dir, &name)? {
                continue;
            }
            let to = loop {
                moved += 1;
                let to = OsString::from(format!("#gone-{moved:x}"));
                match rustix::fs::renameat_with(dir, &name, top, &to, RenameFlags::NOREPLACE) {
                    Err(Errno::EXIST) => {}
                    other => {
                        other?;
                        break to;
                    }
                }
            };
            queue.push(to);
        }
        // The last one moved up is empty now, or the next to be emptied.
        loop {
            let Some(name) = queue.last() else {
                return Ok(());
            };
            match rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {
                    queue.pop();
                }
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    current = Some(rustix::fs::openat(top, name, DIR_READ, Mode::empty())?);
                    break;
                }
                Err(e) => return Err(e),
            }
        }
    }
}

/// Removes a file or an empty directory; `false`: it is a directory with something in it, made
/// ready to be moved and listed.
fn remove_leaf(dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let Some(st) = stat_opt(dir, name)? else {
        return Ok(true);
    };
    clear_immutable(dir, name)?;
    if !is_dir(&st) {
        rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
        return Ok(true);
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            sysfs::chmod_at(dir, name, 0o700)?;
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Takes `chattr +i` and `+a` away, which a left-over of a file with them has.
fn clear_immutable(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    const IMMUTABLE_OR_APPEND: u32 = 0x10 | 0x20;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        // Only files and directories have flags; the others can't be opened or needn't.
        Err(Errno::LOOP | Errno::NXIO | Errno::ACCESS | Errno::NODEV) => return Ok(()),
        other => other?,
    };
    match sysfs::inode_flags(fd.as_fd())? {
        Some(set) if set & IMMUTABLE_OR_APPEND != 0 => {
            sysfs::set_inode_flags(fd.as_fd(), set & !IMMUTABLE_OR_APPEND)
        }
        _ => Ok(()),
    }
}
