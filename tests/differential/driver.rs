//! Runs operations on one mounted tree and says what came of each.
//!
//! The driver's thread is chrooted into the tree (so absolute symlinks and `..` stay inside),
//! has its own umask, and switches its own effective ids.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::calls::{
    Res, access, at_flags, data, done, fallocate_flags, fstat, ids, list_while, mode, names,
    number, open_path, seek, timestamps, xattr_op,
};
use super::model::{B, M, Nd, O, Op, T, Tm, pattern};
use super::outcome::{Outcome, Role, TreeBox};
use super::sys::{self, Map};
use super::tree::{self, Tree, Walker};

/// Who runs operations: uid, gid, supplementary groups.
pub const USERS: &[(u32, u32, &[u32])] = &[
    (0, 0, &[]),
    (1000, 1000, &[1000, 2000]),
    (1001, 1001, &[1001]),
];

/// Slots for open files.
pub const SLOTS: usize = 6;

/// Slots for kept mappings.
pub const MAPS: usize = 2;

/// One tree with its open files. Lives on its own thread.
pub struct Driver {
    role: Role,
    pub t0: i64,
    outside: OwnedFd,
    user: usize,
    files: Vec<Option<OwnedFd>>,
    maps: Vec<Option<Map>>,
}

impl Driver {
    /// Moves the calling thread, which ends with the driver, into `root`.
    pub fn enter(root: &std::path::Path, role: Role, t0: i64) -> Result<Driver, Errno> {
        sys::own_fs()?;
        let outside = rustix::fs::openat(
            CWD,
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        rustix::process::chroot(root)?;
        rustix::process::chdir("/")?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let mut driver = Driver {
            role,
            t0,
            outside,
            user: 0,
            files: Vec::new(),
            maps: Vec::new(),
        };
        driver.files.resize_with(SLOTS, || None);
        driver.maps.resize_with(MAPS, || None);
        driver.set_user(0)?;
        Ok(driver)
    }

    /// Closes everything and moves the thread out of the tree, so that it can be unmounted.
    pub fn leave(mut self) -> Result<(), Errno> {
        self.set_user(0)?;
        self.maps.clear();
        self.files.clear();
        rustix::process::fchdir(&self.outside)?;
        rustix::process::chroot(".")
    }

    fn set_user(&mut self, user: usize) -> Result<(), Errno> {
        let (uid, gid, groups) = USERS[user];
        let groups: Vec<Gid> = groups.iter().map(|g| Gid::from_raw(*g)).collect();
        rustix::thread::set_thread_res_uid(None, Uid::ROOT, None)?;
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_res_gid(None, Gid::from_raw(gid), None)?;
        rustix::thread::set_thread_res_uid(None, Uid::from_raw(uid), None)?;
        self.user = user;
        Ok(())
    }

    /// Runs `f` as root.
    pub fn as_root<X>(&mut self, f: impl FnOnce(&mut Driver) -> X) -> Result<X, Errno> {
        let user = self.user;
        if user == 0 {
            return Ok(f(self));
        }
        self.set_user(0)?;
        let result = f(self);
        self.set_user(user)?;
        Ok(result)
    }

    /// What a remount does to a process: nothing is open, root, the usual umask.
    pub fn reset(&mut self) -> Result<(), Errno> {
        self.set_user(0)?;
        self.maps.iter_mut().for_each(|map| *map = None);
        self.files.iter_mut().for_each(|file| *file = None);
        rustix::process::umask(Mode::from_raw_mode(0o022));
        Ok(())
    }

    /// The whole tree, read as root.
    pub fn tree(&mut self) -> Result<Tree, Errno> {
        self.as_root(|d| {
            let root = tree::open_dir(CWD, b".")?;
            Ok(Walker::new(d.t0, d.role == Role::Subject, d.role == Role::Plain).walk(root))
        })?
    }

    /// Runs one operation.
    pub fn run(&mut self, op: &Op) -> Outcome {
        if self.role != Role::Subject && is_refused(op) {
            if let Op::Open { h, .. } = op {
                self.files[*h] = None;
            }
            return Outcome::MustFail;
        }
        match self.dispatch(op) {
            Ok(outcome) => outcome,
            Err(Errno::BADF) if uses_slot(op) && !self.slot_used(op) => Outcome::Skipped,
            Err(errno) => Outcome::Failed(errno),
        }
    }

    /// The slots that hold an open file, and those of them that were opened read-only.
    pub fn open_slots(&self) -> (Vec<usize>, Vec<usize>) {
        let open: Vec<usize> = (0..SLOTS).filter(|h| self.files[*h].is_some()).collect();
        let read_only = |h: &usize| {
            let flags = self.files[*h].as_ref().map(rustix::fs::fcntl_getfl);
            matches!(flags, Some(Ok(flags)) if !flags.intersects(OFlags::WRONLY | OFlags::RDWR))
        };
        (open.clone(), open.into_iter().filter(read_only).collect())
    }

    /// Whether `op` is on an open file that has no name any more.
    pub fn is_deleted(&self, op: &Op) -> bool {
        let deleted = |h: usize| {
            let attr = self.files[h].as_ref().map(|fd| fstat(fd, self.t0));
            matches!(attr, Some(Ok(attr)) if attr.nlink == 0)
        };
        match op {
            Op::CopyRange { from, to, .. } => deleted(*from) || deleted(*to),
            _ => slot_of(op).is_some_and(deleted),
        }
    }

    fn slot_used(&self, op: &Op) -> bool {
        match op {
            Op::CopyRange { from, to, .. } => {
                self.files[*from].is_some() && self.files[*to].is_some()
            }
            Op::MmapRead(m) => self.maps[*m].is_some(),
            _ => slot_of(op).is_some_and(|h| self.files[h].is_some()),
        }
    }

    fn fd(&self, h: usize) -> Result<&OwnedFd, Errno> {
        self.files[h].as_ref().ok_or(Errno::BADF)
    }

    fn dispatch(&mut self, op: &Op) -> Res {
        match op {
            Op::As(user) => done(self.set_user(*user)),
            Op::Umask(mask) => {
                rustix::process::umask(mode(*mask));
                Ok(Outcome::Done)
            }
            Op::Open {
                h,
                path,
                flags,
                mode,
            } => self.open(*h, path, *flags, *mode),
            Op::Close(h) => {
                self.fd(*h)?;
                self.files[*h] = None;
                Ok(Outcome::Done)
            }
            Op::Remount => done(self.reset()),
            Op::Walk => Ok(Outcome::Tree(TreeBox(Box::new(self.tree()?)))),
            Op::MmapKeep { .. } | Op::MmapRead(_) | Op::MmapWrite { .. } => self.mapping(op),
            _ if uses_slot(op) => self.on_slot(op),
            Op::Mknod {
                path,
                kind: Nd::NdChr(0, 0),
                mode,
            } if self.role == Role::Plain => self.plain_whiteout(path, *mode),
            Op::Mkdir { .. }
            | Op::Rmdir(_)
            | Op::Unlink(_)
            | Op::Symlink { .. }
            | Op::Link { .. }
            | Op::Mknod { .. }
            | Op::Rename { .. } => names(op),
            Op::List { path, stat } => self.list(path, *stat),
            Op::ListWhile(path) => list_while(path),
            _ => self.on_path(op),
        }
    }

    fn open(&mut self, h: usize, path: &B, flags: O, mode_bits: M) -> Res {
        self.files[h] = None;
        self.files[h] = Some(open_path(path, flags, mode_bits)?);
        Ok(Outcome::Done)
    }

    fn on_slot(&mut self, op: &Op) -> Res {
        match op {
            Op::Read { h, len } => {
                let mut buffer = vec![0; *len];
                let n = rustix::io::read(self.fd(*h)?, &mut buffer[..])?;
                Ok(data(&buffer[..n]))
            }
            Op::Pread { h, off, len } => {
                let mut buffer = vec![0; *len];
                let n = rustix::io::pread(self.fd(*h)?, &mut buffer[..], *off)?;
                Ok(data(&buffer[..n]))
            }
            Op::Write { h, len, seed } => {
                number(rustix::io::write(self.fd(*h)?, &pattern(*seed, *len)))
            }
            Op::Pwrite { h, off, len, seed } => number(rustix::io::pwrite(
                self.fd(*h)?,
                &pattern(*seed, *len),
                *off,
            )),
            // What an offset in a directory means is the file system's affair.
            Op::Seek { h, .. } if fstat(self.fd(*h)?, self.t0)?.kind == FileType::Directory => {
                Ok(Outcome::Skipped)
            }
            Op::Seek { h, to } => seek(self.fd(*h)?, *to),
            Op::Ftruncate { h, len } => done(rustix::fs::ftruncate(self.fd(*h)?, *len)),
            Op::Fallocate { h, mode, off, len } => done(rustix::fs::fallocate(
                self.fd(*h)?,
                fallocate_flags(*mode),
                *off,
                *len,
            )),
            Op::CopyRange {
                from,
                to,
                src,
                dst,
                len,
            } => {
                let (mut src, mut dst) = (*src, *dst);
                let (from, to) = (self.fd(*from)?, self.fd(*to)?);
                number(rustix::fs::copy_file_range(
                    from,
                    Some(&mut src),
                    to,
                    Some(&mut dst),
                    *len,
                ))
            }
            Op::Fsync { h, data: true } => done(rustix::fs::fdatasync(self.fd(*h)?)),
            Op::Fsync { h, data: false } => done(rustix::fs::fsync(self.fd(*h)?)),
            _ => self.attributes_of_slot(op),
        }
    }

    fn attributes_of_slot(&mut self, op: &Op) -> Res {
        match op {
            Op::Fstat(h) => {
                let mut attr = fstat(self.fd(*h)?, self.t0)?;
                if self.role == Role::Plain {
                    attr.id.1 = tree::generation(self.fd(*h)?, b"", libc::AT_EMPTY_PATH)?;
                }
                Ok(Outcome::Stat(Box::new(attr)))
            }
            Op::Fchmod { h, mode: bits } => done(rustix::fs::fchmod(self.fd(*h)?, mode(*bits))),
            Op::Fchown { h, uid, gid } => {
                let (uid, gid) = ids(*uid, *gid);
                done(rustix::fs::fchown(self.fd(*h)?, uid, gid))
            }
            Op::Futimens { h, atime, mtime } => done(rustix::fs::futimens(
                self.fd(*h)?,
                &timestamps(*atime, *mtime),
            )),
            Op::Fsetxattr { h, name, value } => done(rustix::fs::fsetxattr(
                self.fd(*h)?,
                &name[..],
                value,
                XattrFlags::empty(),
            )),
            Op::Fgetxattr { h, name } => {
                let mut value = vec![0; 4096];
                let n = rustix::fs::fgetxattr(self.fd(*h)?, &name[..], &mut value[..])?;
                Ok(Outcome::Bytes(B(value[..n].to_vec())))
            }
            _ => Ok(Outcome::Broken(format!("{op:?} is no operation on a slot"))),
        }
    }

    fn mapping(&mut self, op: &Op) -> Res {
        match op {
            Op::MmapKeep { h, m } => {
                self.maps[*m] = None;
                let fd = self.fd(*h)?;
                let attr = fstat(fd, self.t0)?;
                if attr.kind != FileType::RegularFile || attr.size == 0 {
                    return Ok(Outcome::Skipped);
                }
                self.maps[*m] = Some(Map::new(fd.as_fd(), attr.size as usize, false)?);
                Ok(Outcome::Done)
            }
            Op::MmapRead(m) => {
                let map = self.maps[*m].as_ref().ok_or(Errno::BADF)?;
                let size = fstat(&map.file, self.t0)?.size as usize;
                Ok(data(&map.read(size)?))
            }
            Op::MmapWrite { h, off, len, seed } => {
                let fd = self.fd(*h)?;
                let attr = fstat(fd, self.t0)?;
                if attr.kind != FileType::RegularFile || attr.size < off + *len as u64 {
                    return Ok(Outcome::Skipped);
                }
                let map = Map::new(fd.as_fd(), *off as usize + len, true)?;
                done(map.write(*off as usize, &pattern(*seed, *len)))
            }
            _ => Ok(Outcome::Broken(format!(
                "{op:?} is no operation on a mapping"
            ))),
        }
    }

    fn on_path(&mut self, op: &Op) -> Res {
        match op {
            Op::Cat(path) => {
                let fd = open_path(path, O(libc::O_RDONLY), M(0))?;
                let mut all = Vec::new();
                let mut buffer = vec![0; 1 << 16];
                loop {
                    let n = rustix::io::read(&fd, &mut buffer[..])?;
                    if n == 0 {
                        return Ok(data(&all));
                    }
                    all.extend_from_slice(&buffer[..n]);
                }
            }
            Op::Put {
                path,
                flags,
                mode,
                off,
                len,
                seed,
            } => {
                let fd = open_path(path, *flags, *mode)?;
                number(rustix::io::pwrite(fd, &pattern(*seed, *len), *off))
            }
            Op::Truncate { path, len } => {
                // The deviation "truncate-in-place": left out where it would show.
                let same = |st: rustix::fs::Stat| {
                    st.st_mode & libc::S_IFMT == libc::S_IFREG && st.st_size as u64 == *len
                };
                if rustix::fs::statat(CWD, &path[..], AtFlags::empty()).is_ok_and(same) {
                    return Ok(Outcome::Done);
                }
                done(sys::truncate(path, *len))
            }
            Op::Readlink(path) => {
                let target = rustix::fs::readlinkat(CWD, &path[..], Vec::new())?;
                Ok(Outcome::Bytes(B(target.into_bytes())))
            }
            Op::Access { path, mode } => done(access(path, *mode)),
            Op::FsyncDir(path) => {
                let dir = rustix::fs::openat(
                    CWD,
                    &path[..],
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                done(rustix::fs::fsync(dir))
            }
            _ => self.attributes_of_path(op),
        }
    }

    fn attributes_of_path(&mut self, op: &Op) -> Res {
        match op {
            Op::Chmod { path, mode: bits } => done(rustix::fs::chmodat(
                CWD,
                &path[..],
                mode(*bits),
                AtFlags::empty(),
            )),
            Op::Chown {
                path,
                uid,
                gid,
                follow,
            } => {
                let (uid, gid) = ids(*uid, *gid);
                done(rustix::fs::chownat(
                    CWD,
                    &path[..],
                    uid,
                    gid,
                    at_flags(*follow),
                ))
            }
            Op::Utimens {
                path,
                atime,
                mtime,
                follow,
            } => done(rustix::fs::utimensat(
                CWD,
                &path[..],
                &timestamps(*atime, *mtime),
                at_flags(*follow),
            )),
            Op::Stat { path, follow } => {
                let mut attr = tree::stat(CWD, path, self.t0, *follow)?;
                if self.role == Role::Plain {
                    let flags = if *follow { libc::AT_SYMLINK_FOLLOW } else { 0 };
                    attr.id.1 = tree::generation(CWD, path, flags)?;
                }
                Ok(Outcome::Stat(Box::new(attr)))
            }
            _ => xattr_op(op),
        }
    }

    /// On the plain copy: everything that mknod of a whiteout checks, but nothing made.
    fn plain_whiteout(&mut self, path: &[u8], bits: M) -> Res {
        let parent = match path.iter().rposition(|c| *c == b'/') {
            Some(slash) => &path[..slash],
            None => b".",
        };
        let before = rustix::fs::statx(
            CWD,
            parent,
            AtFlags::empty(),
            rustix::fs::StatxFlags::BASIC_STATS,
        )?;
        rustix::fs::mknodat(CWD, path, FileType::Fifo, mode(bits), 0)?;
        let times = timestamps(
            Tm::Omit,
            Tm::At(T(before.stx_mtime.tv_sec, before.stx_mtime.tv_nsec)),
        );
        self.as_root(|_| {
            rustix::fs::unlinkat(CWD, path, AtFlags::empty())?;
            rustix::fs::utimensat(CWD, parent, &times, AtFlags::empty())
        })??;
        Err(Errno::PERM)
    }

    fn list(&mut self, path: &B, stat: bool) -> Res {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, &path[..], flags, Mode::empty())?;
        let mut entries = tree::list(&dir)?;
        entries.sort_by(|x, y| x.0.cmp(&y.0));
        if stat && self.role == Role::Subject {
            for (name, kind, ino) in entries.iter().filter(|x| &*x.0 != b"..") {
                let Ok(attr) = tree::stat(&dir, name, self.t0, false) else {
                    continue;
                };
                if attr.id.0 != *ino || attr.kind != *kind {
                    let why = format!(
                        "{name:?}: d_ino {ino} d_type {kind:?}, stat {} {:?}",
                        attr.id.0, attr.kind
                    );
                    return Ok(Outcome::Broken(why));
                }
            }
        }
        Ok(Outcome::List(
            entries.into_iter().map(|x| (x.0, x.1)).collect(),
        ))
    }
}

/// Names that only the subject refuses (see the deviation `wh-name`).
fn is_refused(op: &Op) -> bool {
    let new = match op {
        Op::Mkdir { path, .. } | Op::Mknod { path, .. } | Op::Symlink { path, .. } => path,
        Op::Put { path, flags, .. } | Op::Open { path, flags, .. }
            if flags.0 & libc::O_CREAT != 0 =>
        {
            path
        }
        Op::Rename { to, .. } | Op::Link { to, .. } => to,
        _ => return false,
    };
    new.rsplit(|c| *c == b'/')
        .next()
        .is_some_and(|name| name.starts_with(b".wh."))
}

/// The slot that an operation works on.
pub fn slot_of(op: &Op) -> Option<usize> {
    match op {
        Op::Close(h)
        | Op::Read { h, .. }
        | Op::Pread { h, .. }
        | Op::Write { h, .. }
        | Op::Pwrite { h, .. }
        | Op::Seek { h, .. }
        | Op::Ftruncate { h, .. }
        | Op::Fallocate { h, .. }
        | Op::MmapWrite { h, .. }
        | Op::MmapKeep { h, .. }
        | Op::Fstat(h)
        | Op::Fchmod { h, .. }
        | Op::Fchown { h, .. }
        | Op::Futimens { h, .. }
        | Op::Fsetxattr { h, .. }
        | Op::Fgetxattr { h, .. }
        | Op::Fsync { h, .. } => Some(*h),
        Op::CopyRange { to, .. } => Some(*to),
        _ => None,
    }
}

fn uses_slot(op: &Op) -> bool {
    slot_of(op).is_some() || matches!(op, Op::MmapRead(_))
}
