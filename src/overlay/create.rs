//! Making objects: create, mkdir, mknod, symlink, link.

mod link;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Statx};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::attr::{Attr, Kind, dev_of, stat_at, stat_opt};
use super::copy_up::{CopyData, rename_noreplace};
use super::fds::FdKey;
use super::flags::Protection;
use super::ids::{DISK_MODE, Ids, make_stand_in, override_kind};
use super::lookup::{Found, FoundKind};
use super::node::{DirPart, Node};
use super::work::Temp;
use super::{Overlay, Upper};
use crate::format::acl;
use crate::format::keys::OverlayKey;
use crate::format::override_stat::OverrideStat;
use crate::format::whiteout::{OPAQUE_MARK, whiteout_name};
use crate::sys::fs as sysfs;
use crate::sys::xattr::{self, SetFlags};

const DEFAULT_ACL: &std::ffi::CStr = c"system.posix_acl_default";
const ACCESS_ACL: &std::ffi::CStr = c"system.posix_acl_access";

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// File system user id: owner of what is made.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
    /// The umask, which counts where the directory has no default ACL.
    pub umask: u32,
}

/// What to make.
#[derive(Clone, Copy, Debug)]
pub enum NewNode<'a> {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symlink with this target.
    Symlink(&'a OsStr),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

impl NewNode<'_> {
    fn file_type(&self) -> FileType {
        match self {
            NewNode::File => FileType::RegularFile,
            NewNode::Dir => FileType::Directory,
            NewNode::Symlink(_) => FileType::Symlink,
            NewNode::Fifo => FileType::Fifo,
            NewNode::Socket => FileType::Socket,
            NewNode::CharDevice { .. } => FileType::CharacterDevice,
            NewNode::BlockDevice { .. } => FileType::BlockDevice,
        }
    }

    /// Major and minor number.
    fn numbers(&self) -> (u32, u32) {
        match self {
            NewNode::CharDevice { major, minor } | NewNode::BlockDevice { major, minor } => {
                (*major, *minor)
            }
            _ => (0, 0),
        }
    }

    fn device(&self) -> u64 {
        let (major, minor) = self.numbers();
        rustix::fs::makedev(major, minor)
    }
}

/// How a new object gets its owner and mode.
pub(super) struct Ownership {
    pub uid: u32,
    /// `None`: the file system took it from the set-group-id directory.
    pub gid: Option<u32>,
    pub mode: u32,
    /// Does a fresh object belong to the caller without more ado?
    pub natural: bool,
}

impl Overlay {
    /// Can `name` be made in this mount at all?
    pub(crate) fn check_new_name(&self, name: &OsStr) -> Result<(), Errno> {
        if name.len() > 255 {
            return Err(Errno::NAMETOOLONG);
        }
        if self.is_reserved_name(name) {
            // It would hide a lower file, or be hidden itself.
            return Err(Errno::INVAL);
        }
        Ok(())
    }

    /// Makes an object and gives its node, with one reference taken, and attributes. `mode`: the
    /// permission bits asked for, before the umask. `known_absent`: the caller holds the
    /// directory locked and knows that the name does not exist (the kernel's VFS does), so that
    /// the lowers needn't be asked again.
    ///
    /// # Errors
    /// `EEXIST`; `EINVAL` for a `.wh.` name; `EPERM` for a character device 0:0, which is a
    /// whiteout; `ENOENT` in a removed directory; `EROFS`; what upper's file system returns.
    pub fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        what: NewNode<'_>,
        mode: u32,
        known_absent: bool,
    ) -> Result<(Arc<Node>, Attr), Errno> {
        self.check_new_name(name)?;
        if matches!(what, NewNode::CharDevice { major: 0, minor: 0 }) {
            return Err(Errno::PERM);
        }
        let upper = self.upper()?;
        let parent = self.node(parent)?;
        let dir = parent.dir.as_deref().ok_or(Errno::NOTDIR)?;
        let shown = |o: &Overlay| -> Result<bool, Errno> {
            Ok(!known_absent && o.resolve(&parent, name)?.is_some())
        };
        if shown(self)? {
            return Err(Errno::EXIST);
        }
        if parent.place.read().removed {
            return Err(Errno::NOENT);
        }
        parent.check_adding()?;
        self.ensure_upper(&parent, CopyData::All)?;
        let _names = dir.names.write();
        if parent.place.read().removed {
            return Err(Errno::NOENT);
        }
        if shown(self)? {
            return Err(Errno::EXIST);
        }
        let fd = self.upper_dir_fd(&parent)?;
        let made = if self.ids.in_xattrs() {
            self.create_in_work(fd.as_fd(), name, &what, (caller, mode), upper)?
        } else {
            let owner = self.ownership(caller, dir, fd.as_fd(), mode)?;
            let marked = matches!(what, NewNode::Dir)
                && !upper.work.whiteouts_in_place
                && has_mark(fd.as_fd(), name)?;
            let direct = match marked {
                true => Err(Errno::EXIST),
                false => self.create_direct(fd.as_fd(), name, &what, &owner, upper),
            };
            match direct {
                Err(Errno::EXIST) => {
                    if !marked {
                        self.covers_whiteout(fd.as_fd(), name)?;
                    }
                    self.create_over_whiteout(fd.as_fd(), name, &what, &owner, mode, upper)?
                }
                other => other?,
            }
        };
        let st = match &made {
            Some(file) => self.shown_at(file.as_fd(), OsStr::new(""))?,
            None => self.shown_at(fd.as_fd(), name)?,
        };
        self.adopt_new(&parent, name, &st, made)
    }

    /// The node for an object of upper that was just made.
    fn adopt_new(
        &self,
        parent: &Arc<Node>,
        name: &OsStr,
        st: &Statx,
        fd: Option<OwnedFd>,
    ) -> Result<(Arc<Node>, Attr), Errno> {
        let what = if Kind::from_mode(u32::from(st.stx_mode)) == Some(Kind::Dir) {
            FoundKind::Dir {
                lowers: Vec::new(),
                redirect: None,
                xattr_whiteouts: false,
            }
        } else {
            FoundKind::Other {
                lower: None,
                index: None,
                data: None,
                redirect: None,
            }
        };
        let found = Found {
            stat: *st,
            upper_ino: st.stx_ino,
            upper_alias: true,
            identity: (dev_of(st), st.stx_ino),
            protection: Protection::default(),
            what,
        };
        let node = self.intern(parent, name, &found)?;
        self.name_added(parent, name, &node);
        if let Some(part) = &node.dir {
            part.aufs.set(false);
            part.impure.set(false);
        }
        if let Some(fd) = fd {
            self.fds.put(FdKey::Write(node.id), fd);
        }
        let attr = self.attr_from(&node, st)?;
        Ok((node, attr))
    }

    /// Has upper's part of the directory a default ACL?
    fn has_default_acl(&self, dir: &DirPart, fd: BorrowedFd<'_>) -> Result<bool, Errno> {
        if let Some(known) = dir.default_acl.get() {
            return Ok(known);
        }
        let has = xattr::has_at(fd, OsStr::new(""), DEFAULT_ACL)?;
        dir.default_acl.set(has);
        Ok(has)
    }

    pub(super) fn ownership(
        &self,
        caller: &Caller,
        dir: &DirPart,
        fd: BorrowedFd<'_>,
        mode: u32,
    ) -> Result<Ownership, Errno> {
        let umask = if self.has_default_acl(dir, fd)? {
            0
        } else {
            caller.umask
        };
        let mode = mode & 0o7777 & !umask;
        let (euid, egid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let (uid, gid) = self.ids.stored_caller(caller.uid, caller.gid);
        let natural = uid == euid && gid == egid;
        let mut gid = Some(gid);
        if !natural && stat_at(fd, OsStr::new(""))?.stx_mode & 0o2000 != 0 {
            gid = None;
        }
        Ok(Ownership {
            uid,
            gid,
            mode,
            natural,
        })
    }

    /// Makes the object at its place, where nothing may be. Files get their owner before they get
    /// their name; gives the descriptor of a new file.
    fn create_direct(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        what: &NewNode<'_>,
        owner: &Ownership,
        upper: &Upper,
    ) -> Result<Option<OwnedFd>, Errno> {
        let mode = Mode::from_raw_mode(owner.mode);
        match what {
            NewNode::File if owner.natural || !upper.work.tmpfile => {
                let flags = OFlags::RDWR
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(dir, name, flags, mode)?;
                if !owner.natural {
                    self.own(dir, name, owner, 0)?;
                }
                return Ok(Some(fd));
            }
            NewNode::File => {
                let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
                let fd = rustix::fs::openat(dir, c".", flags, mode)?;
                set_owner(&self.ids, fd.as_fd(), OsStr::new(""), owner)?;
                sysfs::link_fd_at(fd.as_fd(), dir, name)?;
                return Ok(Some(fd));
            }
            NewNode::Dir => rustix::fs::mkdirat(dir, name, mode)?,
            NewNode::Symlink(target) => rustix::fs::symlinkat(*target, dir, name)?,
            _ => rustix::fs::mknodat(dir, name, what.file_type(), mode, what.device())?,
        }
        if !owner.natural {
            let remove = if matches!(what, NewNode::Dir) {
                AtFlags::REMOVEDIR.bits()
            } else {
                0
            };
            self.own(dir, name, owner, remove)?;
        }
        Ok(None)
    }

    /// Gives the new object to its owner, or takes it back.
    fn own(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        owner: &Ownership,
        remove: u32,
    ) -> Result<(), Errno> {
        set_owner(&self.ids, dir, name, owner).inspect_err(|_| {
            let flags = AtFlags::from_bits_retain(remove);
            if let Err(e) = rustix::fs::unlinkat(dir, name, flags) {
                tracing::warn!(?name, "a half-made object stays in upper: {e}");
            }
        })
    }

    /// Builds the object in `work`, as the file system would have made it in `dir`, and puts it in
    /// the place of a whiteout.
    #[allow(clippy::too_many_arguments)]
    fn create_over_whiteout(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        what: &NewNode<'_>,
        owner: &Ownership,
        mode: u32,
        upper: &Upper,
    ) -> Result<Option<OwnedFd>, Errno> {
        let temp = upper.work.temp();
        let work = upper.work.dir.as_fd();
        let plain = Ownership {
            uid: owner.uid,
            gid: owner.gid,
            mode: owner.mode,
            natural: true,
        };
        let made = self.create_direct(work, &temp.name, what, &plain, upper)?;
        let parent = stat_at(dir, OsStr::new(""))?;
        let set_gid = parent.stx_mode & 0o2000 != 0;
        let gid = match owner.gid {
            Some(gid) if !set_gid => gid,
            _ => parent.stx_gid,
        };
        self.ids
            .chown(work, &temp.name, Some(owner.uid), Some(gid))?;
        if !matches!(what, NewNode::Symlink(_)) {
            let is_dir = matches!(what, NewNode::Dir);
            let set_gid_bit = if is_dir && set_gid { 0o2000 } else { 0 };
            let bits = self.inherit_acl(dir, work, &temp.name, owner, mode, is_dir)?;
            sysfs::chmod_at(work, &temp.name, bits | set_gid_bit)?;
        }
        self.put_over_whiteout(temp, matches!(what, NewNode::Dir), dir, name)?;
        Ok(made)
    }

    /// Puts a finished object of `work` into the place of a whiteout.
    fn put_over_whiteout(
        &self,
        temp: Temp<'_>,
        is_dir: bool,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<(), Errno> {
        let work = self.upper()?.work.dir.as_fd();
        if !is_dir {
            rustix::fs::renameat(work, &temp.name, dir, name)?;
            temp.published();
            return Ok(());
        }
        self.make_opaque(work, &temp.name)?;
        match rustix::fs::renameat_with(work, &temp.name, dir, name, RenameFlags::EXCHANGE) {
            // `temp` is the whiteout now, and goes.
            Ok(()) => Ok(()),
            // The whiteout is a `.wh.` mark, which hides nothing that the directory does not hide.
            Err(Errno::NOENT) => {
                rename_noreplace(work, &temp.name, dir, name)?;
                temp.published();
                remove_mark(dir, name)
            }
            Err(Errno::INVAL | Errno::NOSYS) => {
                rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
                rename_noreplace(work, &temp.name, dir, name)?;
                temp.published();
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// Makes an object whose owner, mode and perhaps type are in an attribute: in `work`, so that
    /// it appears with it.
    fn create_in_work(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        what: &NewNode<'_>,
        (caller, mode): (&Caller, u32),
        upper: &Upper,
    ) -> Result<Option<OwnedFd>, Errno> {
        let (temp, work) = (upper.work.temp(), upper.work.dir.as_fd());
        let parent = self.shown_at(dir, OsStr::new(""))?;
        let set_gid = parent.stx_mode & 0o2000 != 0;
        let (uid, gid) = self.ids.stored_caller(caller.uid, caller.gid);
        let mut stat = OverrideStat {
            uid,
            gid: if set_gid { parent.stx_gid } else { gid },
            mode: mode & 0o7777 & !caller.umask,
            kind: None,
        };
        let disk_mode = Mode::from_raw_mode(DISK_MODE);
        let mut made = None;
        match what {
            NewNode::File => made = Some(make_stand_in(work, &temp.name, b"")?),
            NewNode::Dir => {
                stat.mode |= if set_gid { 0o2000 } else { 0 };
                rustix::fs::mkdirat(work, &temp.name, disk_mode)?;
            }
            _ if self.ids.stand_ins() => {
                let target = match what {
                    NewNode::Symlink(target) => target.as_bytes(),
                    _ => b"",
                };
                stat.kind = Kind::from_mode(what.file_type().as_raw_mode())
                    .and_then(|kind| override_kind(kind, what.numbers()));
                make_stand_in(work, &temp.name, target)?;
            }
            NewNode::Symlink(target) => rustix::fs::symlinkat(*target, work, &temp.name)?,
            _ => {
                let kind = what.file_type();
                rustix::fs::mknodat(work, &temp.name, kind, disk_mode, what.device())?;
            }
        }
        self.ids.store(work, &temp.name, &stat)?;
        match rename_noreplace(work, &temp.name, dir, name) {
            Ok(()) => temp.published(),
            Err(Errno::EXIST) => {
                self.covers_whiteout(dir, name)?;
                self.put_over_whiteout(temp, matches!(what, NewNode::Dir), dir, name)?;
            }
            Err(e) => return Err(e),
        }
        Ok(made)
    }

    /// Is there a whiteout under the name of something that is to be made?
    ///
    /// # Errors
    /// `EEXIST` if it is something else.
    fn covers_whiteout(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        match stat_opt(dir, name)? {
            Some(st) if self.is_upper_whiteout(dir, name, &st)? => Ok(()),
            _ => Err(Errno::EXIST),
        }
    }

    /// Applies `dir`'s default ACL to an object made elsewhere; gives its permission bits.
    fn inherit_acl(
        &self,
        dir: BorrowedFd<'_>,
        work: BorrowedFd<'_>,
        name: &OsStr,
        owner: &Ownership,
        mode: u32,
        is_dir: bool,
    ) -> Result<u32, Errno> {
        let Some(default) = xattr::get_at(dir, OsStr::new(""), DEFAULT_ACL)? else {
            return Ok(owner.mode);
        };
        let inherited = acl::inherit(&default, mode, is_dir).map_err(|_| Errno::IO)?;
        if let Some(access) = &inherited.access {
            xattr::set_at(work, name, ACCESS_ACL, access, SetFlags::Any)?;
        }
        if let Some(default) = &inherited.default {
            xattr::set_at(work, name, DEFAULT_ACL, default, SetFlags::Any)?;
        }
        Ok(inherited.mode & 0o7777)
    }

    /// Makes a directory hide what the lowers have under its name.
    pub(crate) fn make_opaque(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        if self.upper_xattrs {
            let key = self.ns.key(OverlayKey::Opaque);
            return xattr::set_at(dir, name, key, b"y", SetFlags::Any);
        }
        let opened;
        let fd = if name.is_empty() {
            dir
        } else {
            opened = super::layer::open_names(dir, std::iter::once(name))?;
            opened.as_fd()
        };
        let mark = OsStr::from_bytes(OPAQUE_MARK);
        match rustix::fs::mknodat(fd, mark, FileType::RegularFile, Mode::empty(), 0) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }
}

/// Is there a `.wh.` mark for the name?
fn has_mark(dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Errno> {
    match whiteout_name(name) {
        Some(mark) => Ok(stat_opt(dir, OsStr::from_bytes(&mark))?.is_some()),
        None => Ok(false),
    }
}

/// Takes the `.wh.` mark for the name away, if there is one.
pub(crate) fn remove_mark(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    let Some(mark) = whiteout_name(name) else {
        return Ok(());
    };
    match rustix::fs::unlinkat(dir, OsStr::from_bytes(&mark), AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Owner first, then (it takes set-id bits away) the mode again where it has such bits.
pub(super) fn set_owner(
    ids: &Ids,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    owner: &Ownership,
) -> Result<(), Errno> {
    ids.chown(dir, name, Some(owner.uid), owner.gid)?;
    if owner.mode & 0o6000 != 0 {
        let st = stat_at(dir, name)?;
        let now = u32::from(st.stx_mode);
        if now & 0o170_000 != 0o120_000 && now & 0o6000 != owner.mode & 0o6000 {
            sysfs::chmod_at(dir, name, (now & 0o7777) | (owner.mode & 0o6000))?;
        }
    }
    Ok(())
}
