//! Attributes: what `stat` shows for an object of the merged tree, and changes to them.

use rustix::fs::{Statx, StatxFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

use crate::sys::fs::TimeSpec;

/// The mask of `stx_mask` that every attribute lookup asks for.
pub(crate) const STAT_MASK: StatxFlags = StatxFlags::BASIC_STATS;

/// A point in time: seconds since 1970 (negative before) and nanoseconds (0..1e9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01, may be negative.
    pub sec: i64,
    /// Nanoseconds, always counted forwards.
    pub nsec: u32,
}

/// The type of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A FIFO.
    Fifo,
    /// A UNIX domain socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl Kind {
    /// The kind that the type bits of `st_mode` name; `None` for bits that Linux doesn't use.
    pub fn from_mode(mode: u32) -> Option<Kind> {
        Some(match mode & 0o170_000 {
            0o100_000 => Kind::File,
            0o040_000 => Kind::Dir,
            0o120_000 => Kind::Symlink,
            0o010_000 => Kind::Fifo,
            0o140_000 => Kind::Socket,
            0o020_000 => Kind::CharDevice,
            0o060_000 => Kind::BlockDevice,
            _ => return None,
        })
    }

    /// The type bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            Kind::File => 0o100_000,
            Kind::Dir => 0o040_000,
            Kind::Symlink => 0o120_000,
            Kind::Fifo => 0o010_000,
            Kind::Socket => 0o140_000,
            Kind::CharDevice => 0o020_000,
            Kind::BlockDevice => 0o060_000,
        }
    }

    /// The kind that a `d_type` of getdents names; `None` for `DT_UNKNOWN` and `DT_WHT`.
    pub fn from_d_type(d_type: u8) -> Option<Kind> {
        Kind::from_mode(u32::from(d_type) << 12)
    }
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// `st_ino`, unique in the mount and stable across copy-up and remount.
    pub ino: u64,
    /// The type.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits (`st_mode & 07777`).
    pub perm: u16,
    /// Number of hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Major number of a device.
    pub rdev_major: u32,
    /// Minor number of a device.
    pub rdev_minor: u32,
    /// Size in bytes.
    pub size: u64,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// Preferred size of one I/O, in bytes.
    pub blksize: u32,
    /// Time of last access.
    pub atime: Timestamp,
    /// Time of last change of the contents.
    pub mtime: Timestamp,
    /// Time of last change of the attributes.
    pub ctime: Timestamp,
    /// May a client's cache keep them? Not while the answer to a link or unlink may be on its way:
    /// on its arrival the kernel's FUSE client counts the link on top of what it knows, which may
    /// be these attributes (fs/fuse/dir.c, `fuse_entry_unlinked`).
    pub settled: bool,
}

impl Attr {
    /// Takes over what statx gave, under another inode number.
    pub(crate) fn from_statx(st: &Statx, ino: u64) -> Result<Attr, Errno> {
        let mode = u32::from(st.stx_mode);
        let time = |t: rustix::fs::StatxTimestamp| Timestamp {
            sec: t.tv_sec,
            nsec: t.tv_nsec,
        };
        Ok(Attr {
            ino,
            kind: Kind::from_mode(mode).ok_or(Errno::IO)?,
            perm: (mode & 0o7777) as u16,
            nlink: st.stx_nlink,
            uid: st.stx_uid,
            gid: st.stx_gid,
            rdev_major: st.stx_rdev_major,
            rdev_minor: st.stx_rdev_minor,
            size: st.stx_size,
            blocks: st.stx_blocks,
            blksize: st.stx_blksize,
            atime: time(st.stx_atime),
            mtime: time(st.stx_mtime),
            ctime: time(st.stx_ctime),
            settled: true,
        })
    }
}

/// A change to one timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// To the time of the call.
    Now,
    /// To this time.
    At(Timestamp),
}

/// A change of attributes: what is `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// New permission bits.
    pub perm: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size, in bytes.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// A change of the size leaves the modification time: see [`WriteHow`](super::WriteHow).
    pub keep_mtime: bool,
}

impl SetAttr {
    /// A change of the permission bits alone.
    pub(crate) fn mode(perm: u32) -> SetAttr {
        SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        }
    }

    /// Is there a new owner or group?
    pub(crate) fn changes_owner(&self) -> bool {
        self.uid.is_some() || self.gid.is_some()
    }

    /// Are owner, group and mode all that is to change?
    pub(crate) fn changes_owner_or_mode_only(&self) -> bool {
        (self.changes_owner() || self.perm.is_some())
            && self.size.is_none()
            && self.atime.is_none()
            && self.mtime.is_none()
    }

    /// Are all times that are to be set the ones that are there, and nothing else is to be set?
    pub(crate) fn changes_nothing(&self, now: &Attr) -> bool {
        let same = |set: Option<SetTime>, is: Timestamp| match set {
            None => true,
            Some(SetTime::At(t)) => t == is,
            Some(SetTime::Now) => false,
        };
        self.perm.is_none()
            && !self.changes_owner()
            && self.size.is_none()
            && same(self.atime, now.atime)
            && same(self.mtime, now.mtime)
    }
}

/// The permission bits that stay when somebody without `CAP_FSETID` changes the contents of a file
/// (`setattr_should_drop_suidgid`). `in_group`: is the caller in the file's group?
pub fn without_set_ids(mode: u32, in_group: impl FnOnce() -> bool) -> u32 {
    let mut kept = mode & !0o4000;
    if mode & 0o2000 != 0 && (mode & 0o010 != 0 || !in_group()) {
        kept &= !0o2000;
    }
    kept
}

pub(crate) fn to_timespec(t: Option<SetTime>) -> TimeSpec {
    match t {
        None => TimeSpec::Omit,
        Some(SetTime::Now) => TimeSpec::Now,
        Some(SetTime::At(t)) => TimeSpec::At {
            sec: t.sec,
            nsec: t.nsec,
        },
    }
}

/// statx of `name` beneath `dir` without following a final symlink; an empty name means `dir`.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Statx, Errno> {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW
        | rustix::fs::AtFlags::EMPTY_PATH
        | rustix::fs::AtFlags::NO_AUTOMOUNT;
    loop {
        match rustix::fs::statx(dir, name, flags, STAT_MASK) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// As [`stat_at`], with absence as `None`.
pub(crate) fn stat_opt(dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<Statx>, Errno> {
    match stat_at(dir, name) {
        Ok(st) => Ok(Some(st)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e),
    }
}

/// `st_dev` as one number.
pub(crate) fn dev_of(st: &Statx) -> u64 {
    (u64::from(st.stx_dev_major) << 32) | u64::from(st.stx_dev_minor)
}

pub(crate) fn is_dir(st: &Statx) -> bool {
    st.stx_mode & 0o170_000 == 0o040_000
}

pub(crate) fn is_file(st: &Statx) -> bool {
    st.stx_mode & 0o170_000 == 0o100_000
}

/// Is it the character device 0:0?
pub(crate) fn is_whiteout(st: &Statx) -> bool {
    crate::format::whiteout::is_whiteout_device(
        u32::from(st.stx_mode),
        st.stx_rdev_major,
        st.stx_rdev_minor,
    )
}
