//! System calls with the words of the model.

use std::hash::Hasher;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::model::{B, Fa, M, Nd, O, Op, Rn, Sk, T, Tm, Xf};
use super::outcome::Outcome;
use super::tree::{self, Attr, Fnv};

/// An outcome, or the errno.
pub type Res = Result<Outcome, Errno>;

pub fn fstat(fd: &OwnedFd, t0: i64) -> Result<Attr, Errno> {
    let mask = rustix::fs::StatxFlags::BASIC_STATS;
    Ok(Attr::from_statx(
        t0,
        &rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, mask)?,
    ))
}

pub fn open_path(path: &[u8], flags: O, mode_bits: M) -> Result<OwnedFd, Errno> {
    let flags = OFlags::from_bits_retain(flags.0 as u32)
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC
        | OFlags::NOCTTY;
    rustix::fs::openat(CWD, path, flags, mode(mode_bits))
}

/// Operations that make, remove or move names.
pub fn names(op: &Op) -> Res {
    done(match op {
        Op::Mkdir { path, mode: bits } => rustix::fs::mkdirat(CWD, &path[..], mode(*bits)),
        Op::Rmdir(path) => rustix::fs::unlinkat(CWD, &path[..], AtFlags::REMOVEDIR),
        Op::Unlink(path) => rustix::fs::unlinkat(CWD, &path[..], AtFlags::empty()),
        Op::Symlink { target, path } => rustix::fs::symlinkat(&target[..], CWD, &path[..]),
        Op::Link { from, to, follow } => {
            let flags = if *follow {
                AtFlags::SYMLINK_FOLLOW
            } else {
                AtFlags::empty()
            };
            rustix::fs::linkat(CWD, &from[..], CWD, &to[..], flags)
        }
        Op::Mknod {
            path,
            kind,
            mode: bits,
        } => {
            let (kind, dev) = match *kind {
                Nd::NdReg => (FileType::RegularFile, 0),
                Nd::NdFifo => (FileType::Fifo, 0),
                Nd::NdSock => (FileType::Socket, 0),
                Nd::NdChr(major, minor) => {
                    (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
                }
                Nd::NdBlk(major, minor) => {
                    (FileType::BlockDevice, rustix::fs::makedev(major, minor))
                }
            };
            rustix::fs::mknodat(CWD, &path[..], kind, mode(*bits), dev)
        }
        Op::Rename { from, to, how } => {
            let flags = match how {
                Rn::RnPlain => RenameFlags::empty(),
                Rn::RnNoReplace => RenameFlags::NOREPLACE,
                Rn::RnExchange => RenameFlags::EXCHANGE,
            };
            rustix::fs::renameat_with(CWD, &from[..], CWD, &to[..], flags)
        }
        _ => return Ok(Outcome::Broken(format!("{op:?} is no operation on names"))),
    })
}

/// [`Op::ListWhile`].
pub fn list_while(path: &[u8]) -> Res {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let mut before = tree::list(&dir)?;
    before.sort_by(|x, y| x.0.cmp(&y.0));
    rustix::fs::seek(&dir, SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 600];
    let mut seen = tree::list_some(&dir, &mut buffer)?;
    let victim = before
        .iter()
        .find(|x| x.1 != FileType::Directory)
        .map(|x| x.0.clone());
    let new = b"comes and goes";
    let created = rustix::fs::mknodat(&dir, &new[..], FileType::RegularFile, mode(M(0o600)), 0);
    let removed = match &victim {
        Some(name) => rustix::fs::unlinkat(&dir, &name[..], AtFlags::empty()),
        None => Ok(()),
    };
    loop {
        let more = tree::list_some(&dir, &mut buffer)?;
        if more.is_empty() {
            break;
        }
        seen.extend(more);
    }
    for (name, ..) in &before {
        let times = seen.iter().filter(|x| x.0 == *name).count();
        let goes = removed.is_ok() && Some(name) == victim.as_ref();
        if times > 1 || (times == 0 && !goes) {
            return Ok(Outcome::Broken(format!("{name:?} is listed {times} times")));
        }
    }
    if let Some((name, ..)) = seen
        .iter()
        .find(|x| *x.0 != new[..] && !before.iter().any(|y| y.0 == x.0))
    {
        return Ok(Outcome::Broken(format!(
            "{name:?} is listed and was never there"
        )));
    }
    if created.is_ok() {
        rustix::fs::unlinkat(&dir, &new[..], AtFlags::empty())?;
    }
    created.and(removed)?;
    rustix::fs::seek(&dir, SeekFrom::Start(0))?;
    let mut after = tree::list(&dir)?;
    after.sort_by(|x, y| x.0.cmp(&y.0));
    Ok(Outcome::List(
        after.into_iter().map(|x| (x.0, x.1)).collect(),
    ))
}

pub fn xattr_op(op: &Op) -> Res {
    match op {
        Op::Setxattr {
            path,
            name,
            value,
            how,
            follow,
        } => {
            let flags = match how {
                Xf::XfAny => XattrFlags::empty(),
                Xf::XfCreate => XattrFlags::CREATE,
                Xf::XfReplace => XattrFlags::REPLACE,
            };
            done(match follow {
                true => rustix::fs::setxattr(&path[..], &name[..], value, flags),
                false => rustix::fs::lsetxattr(&path[..], &name[..], value, flags),
            })
        }
        Op::Removexattr { path, name } => done(rustix::fs::lremovexattr(&path[..], &name[..])),
        Op::Getxattr { path, name } => {
            let mut value = vec![0; 4096];
            let n = rustix::fs::lgetxattr(&path[..], &name[..], &mut value[..])?;
            Ok(Outcome::Bytes(B(value[..n].to_vec())))
        }
        Op::Listxattr(path) => {
            let mut names = vec![0u8; 16384];
            let n = rustix::fs::llistxattr(&path[..], &mut names[..])?;
            let mut list: Vec<B> = names[..n]
                .split(|c| *c == 0)
                .filter(|name| !name.is_empty())
                .map(|name| B(name.to_vec()))
                .collect();
            list.sort();
            Ok(Outcome::Names(list))
        }
        _ => Ok(Outcome::Broken(format!("{op:?} is not known"))),
    }
}

pub fn done(result: Result<(), Errno>) -> Res {
    result.map(|()| Outcome::Done)
}

pub fn number(result: Result<usize, Errno>) -> Res {
    result.map(|n| Outcome::Number(n as u64))
}

pub fn data(bytes: &[u8]) -> Outcome {
    let mut hasher = Fnv::default();
    hasher.write(bytes);
    Outcome::Data(
        bytes.len(),
        hasher.finish(),
        B(bytes[..bytes.len().min(12)].to_vec()),
    )
}

pub fn mode(bits: M) -> Mode {
    Mode::from_raw_mode(bits.0)
}

pub fn at_flags(follow: bool) -> AtFlags {
    if follow {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    }
}

/// `u32::MAX` leaves an id as it is.
pub fn ids(uid: u32, gid: u32) -> (Option<Uid>, Option<Gid>) {
    (
        (uid != u32::MAX).then(|| Uid::from_raw(uid)),
        (gid != u32::MAX).then(|| Gid::from_raw(gid)),
    )
}

pub fn access(path: &[u8], bits: u32) -> Result<(), Errno> {
    rustix::fs::accessat(
        CWD,
        path,
        rustix::fs::Access::from_bits_retain(bits),
        AtFlags::EACCESS,
    )
}

pub fn seek(fd: &OwnedFd, to: Sk) -> Res {
    let exact = match to {
        Sk::SkSet(off) => SeekFrom::Start(off),
        Sk::SkEnd(off) => SeekFrom::End(off),
        Sk::SkCur(off) => SeekFrom::Current(off),
        Sk::SkData(off) | Sk::SkHole(off) => {
            let to = if matches!(to, Sk::SkData(_)) {
                SeekFrom::Data(off)
            } else {
                SeekFrom::Hole(off)
            };
            // Where data ends is the file system's affair; that there is an end is not.
            rustix::fs::seek(fd, to)?;
            rustix::fs::seek(fd, SeekFrom::Start(off))?;
            return Ok(Outcome::Done);
        }
    };
    rustix::fs::seek(fd, exact).map(Outcome::Number)
}

pub fn fallocate_flags(mode: Fa) -> FallocateFlags {
    match mode {
        Fa::FaPlain => FallocateFlags::empty(),
        Fa::FaKeep => FallocateFlags::KEEP_SIZE,
        Fa::FaPunch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Fa::FaZero => FallocateFlags::ZERO_RANGE,
        Fa::FaZeroKeep => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    }
}

/// The two times of utimensat.
pub fn timestamps(atime: Tm, mtime: Tm) -> Timestamps {
    let spec = |time| match time {
        Tm::At(T(tv_sec, ns)) => Timespec {
            tv_sec,
            tv_nsec: i64::from(ns),
        },
        Tm::Now => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        Tm::Omit => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
    };
    Timestamps {
        last_access: spec(atime),
        last_modification: spec(mtime),
    }
}
