//! Random operations.

use std::collections::VecDeque;

use rustix::fs::FileType;

use super::driver::{Driver, MAPS, SLOTS, USERS};
use super::layers::{acl, capability};
use super::model::{B, Disk, Fa, M, Nd, O, Op, Rn, Sk, Xf};
use super::random_paths::OpMaker;
use super::rng::Rng;
use super::run::Step;
use super::words::{MASKS, NAMES, join, symlink_target};

type Make = for<'a, 'b> fn(&'a mut OpMaker<'b>) -> Op;

/// What is made, and how often.
const WEIGHTS: &[(u64, Make)] = &[
    (5, |g| Op::As(g.rng.index(USERS.len()))),
    (2, |g| Op::Umask(M(*g.rng.pick(MASKS)))),
    (9, |g| g.open()),
    (3, |g| Op::Close(g.slot())),
    (3, |g| Op::Read {
        h: g.slot(),
        len: g.rng.index(5000) + 1,
    }),
    (4, |g| Op::Pread {
        h: g.slot(),
        off: g.offset(),
        len: g.rng.index(9000) + 1,
    }),
    (3, |g| Op::Write {
        h: g.slot(),
        len: g.len(),
        seed: g.seed(),
    }),
    (4, |g| Op::Pwrite {
        h: g.slot(),
        off: g.offset(),
        len: g.len(),
        seed: g.seed(),
    }),
    (2, |g| g.seek()),
    (2, |g| Op::Ftruncate {
        h: g.slot(),
        len: g.offset(),
    }),
    (2, |g| g.fallocate()),
    (2, |g| g.copy_range()),
    (1, |g| Op::MmapWrite {
        h: g.slot(),
        off: g.offset(),
        len: g.len(),
        seed: g.seed(),
    }),
    (1, |g| Op::MmapKeep {
        h: g.slot(),
        m: g.rng.index(MAPS),
    }),
    (2, |g| Op::MmapRead(g.rng.index(MAPS))),
    (3, |g| Op::Fstat(g.slot())),
    (1, |g| Op::Fchmod {
        h: g.slot(),
        mode: g.file_mode(),
    }),
    (1, |g| {
        let (uid, gid) = g.owner();
        Op::Fchown {
            h: g.slot(),
            uid,
            gid,
        }
    }),
    (1, |g| Op::Futimens {
        h: g.slot(),
        atime: g.time(),
        mtime: g.time(),
    }),
    (1, |g| g.fsetxattr()),
    (1, |g| Op::Fgetxattr {
        h: g.slot(),
        name: g.xattr_name(),
    }),
    (1, |g| Op::Fsync {
        h: g.slot(),
        data: g.rng.chance(50),
    }),
    (4, |g| Op::Cat(g.path())),
    (8, |g| g.put()),
    (3, |g| Op::Truncate {
        path: g.path(),
        len: g.offset(),
    }),
    (8, |g| Op::Mkdir {
        path: g.new_path(),
        mode: g.dir_mode(),
    }),
    (6, |g| Op::Rmdir(g.path_mostly(FileType::Directory))),
    (10, |g| Op::Unlink(g.path_mostly(FileType::RegularFile))),
    (4, |g| g.symlink()),
    (2, |g| Op::Readlink(g.path_mostly(FileType::Symlink))),
    (6, |g| Op::Link {
        from: g.path_mostly(FileType::RegularFile),
        to: g.new_path(),
        follow: g.rng.chance(10),
    }),
    (3, |g| g.mknod()),
    (16, |g| g.rename()),
    (6, |g| Op::Chmod {
        path: g.path(),
        mode: g.any_mode(),
    }),
    (5, |g| {
        let (uid, gid) = g.owner();
        Op::Chown {
            path: g.path(),
            uid,
            gid,
            follow: g.rng.chance(50),
        }
    }),
    (4, |g| Op::Utimens {
        path: g.path(),
        atime: g.time(),
        mtime: g.time(),
        follow: g.rng.chance(50),
    }),
    (5, |g| g.setxattr()),
    (2, |g| Op::Removexattr {
        path: g.path(),
        name: g.xattr_name(),
    }),
    (2, |g| Op::Getxattr {
        path: g.path(),
        name: g.xattr_name(),
    }),
    (2, |g| Op::Listxattr(g.path())),
    (6, |g| Op::Stat {
        path: g.path(),
        follow: g.rng.chance(50),
    }),
    (2, |g| Op::Access {
        path: g.path(),
        mode: g.rng.below(8) as u32,
    }),
    (6, |g| Op::List {
        path: g.path_mostly(FileType::Directory),
        stat: g.rng.chance(50),
    }),
    (2, |g| Op::ListWhile(g.path_mostly(FileType::Directory))),
    (1, |g| Op::FsyncDir(g.path_mostly(FileType::Directory))),
];

/// Makes and runs `count` operations, with or without remounts among them.
pub fn run(
    rng: &mut Rng,
    driver: &mut Driver,
    count: usize,
    disk: Disk,
    remounts: bool,
) -> Vec<Step> {
    let mut maker = OpMaker {
        rng,
        paths: Vec::new(),
        stale: 0,
        user: 0,
        disk,
        open: Vec::new(),
        read_only: Vec::new(),
        recent: Vec::new(),
    };
    let mut done = Vec::with_capacity(count);
    let mut scene = VecDeque::new();
    while done.len() < count {
        maker.refresh(driver);
        // A scene goes on, mostly; what comes between may disturb it.
        let next = match scene.is_empty() || maker.rng.chance(20) {
            true => None,
            false => scene.pop_front(),
        };
        if scene.is_empty() && maker.rng.chance(2) {
            scene = maker.scene();
        }
        let mut op = match next {
            Some(op) => op,
            None => maker.single(),
        };
        match maker.rng.below(600) {
            0 | 1 => op = Op::Walk,
            2 | 3 if remounts => op = Op::Remount,
            _ => {}
        }
        // Root does most: it can undo what locks the others out.
        if op == Op::Remount {
            maker.user = 0;
        }
        if let Op::As(user) = op {
            let user = if maker.user != 0 { 0 } else { user };
            maker.user = user;
            op = Op::As(user);
        }
        done.push(Step::run(driver, op));
    }
    done
}

impl OpMaker<'_> {
    /// One operation, by [`WEIGHTS`].
    fn single(&mut self) -> Op {
        let total: u64 = WEIGHTS.iter().map(|(weight, _)| weight).sum();
        let mut at = self.rng.below(total);
        for (weight, make) in WEIGHTS {
            if at < *weight {
                return make(self);
            }
            at -= weight;
        }
        Op::Walk
    }

    fn flags(&mut self) -> i32 {
        let mut flags = *self.rng.pick(&[
            libc::O_RDONLY,
            libc::O_RDONLY,
            libc::O_WRONLY,
            libc::O_RDWR,
            libc::O_RDWR,
        ]);
        for (bit, percent) in [
            (libc::O_CREAT, 35),
            (libc::O_EXCL, 8),
            (libc::O_TRUNC, 15),
            (libc::O_APPEND, 12),
            (libc::O_DIRECTORY, 4),
            (libc::O_NOFOLLOW, 5),
            (libc::O_NOATIME, 3),
            (libc::O_DSYNC, 2),
        ] {
            if self.rng.chance(percent) {
                flags |= bit;
            }
        }
        // O_EXCL alone is undefined; O_CREAT with O_DIRECTORY is EINVAL or worse.
        if flags & libc::O_CREAT == 0 {
            flags &= !libc::O_EXCL;
        } else {
            flags &= !libc::O_DIRECTORY;
        }
        flags
    }

    fn open(&mut self) -> Op {
        let flags = self.flags();
        let path = self.target(flags);
        Op::Open {
            h: self.rng.index(SLOTS),
            path,
            flags: O(flags),
            mode: self.file_mode(),
        }
    }

    fn put(&mut self) -> Op {
        let flags = self.flags() & !libc::O_DIRECTORY;
        let flags = if flags & 3 == 0 {
            flags | libc::O_WRONLY
        } else {
            flags
        };
        let path = self.target(flags);
        Op::Put {
            path,
            flags: O(flags),
            mode: self.file_mode(),
            off: self.offset(),
            len: self.len(),
            seed: self.seed(),
        }
    }

    fn target(&mut self, flags: i32) -> B {
        match flags & libc::O_CREAT != 0 && self.rng.chance(60) {
            true => self.new_path(),
            false => self.path_mostly(FileType::RegularFile),
        }
    }

    fn seek(&mut self) -> Op {
        let off = self.offset();
        let to = match self.rng.below(6) {
            0 => Sk::SkEnd(-(off as i64)),
            1 => Sk::SkCur(off as i64),
            2 => Sk::SkData(off),
            3 => Sk::SkHole(off),
            _ => Sk::SkSet(off),
        };
        Op::Seek { h: self.slot(), to }
    }

    fn fallocate(&mut self) -> Op {
        // fallocate takes set-id bits away, except that of tmpfs.
        if self.disk == Disk::Tmpfs {
            return Op::Fstat(self.slot());
        }
        let mode = *self.rng.pick(&[
            Fa::FaPlain,
            Fa::FaKeep,
            Fa::FaPunch,
            Fa::FaPunch,
            Fa::FaZero,
            Fa::FaZeroKeep,
        ]);
        Op::Fallocate {
            h: self.slot(),
            mode,
            off: self.offset(),
            len: self.len() as u64,
        }
    }

    /// Mostly not from a read-only file: the comparison with the kernel ends there.
    fn copy_range(&mut self) -> Op {
        let mut from = self.slot();
        for _ in 0..10 {
            if self.read_only.contains(&from) && !self.rng.chance(1) {
                from = self.slot();
            }
        }
        if self.read_only.contains(&from) && !self.rng.chance(10) {
            return Op::Fstat(from);
        }
        Op::CopyRange {
            from,
            to: self.slot(),
            src: self.offset(),
            dst: self.offset(),
            len: self.len(),
        }
    }

    fn symlink(&mut self) -> Op {
        let known: Vec<B> = self.paths.iter().map(|x| B(x.0.clone())).collect();
        Op::Symlink {
            target: symlink_target(self.rng, &known),
            path: self.new_path(),
        }
    }

    fn mknod(&mut self) -> Op {
        let kinds = [
            Nd::NdReg,
            Nd::NdFifo,
            Nd::NdSock,
            Nd::NdChr(1, 3),
            Nd::NdBlk(240, 300),
            Nd::NdChr(0, 0),
        ];
        Op::Mknod {
            path: self.new_path(),
            kind: *self.rng.pick(&kinds),
            mode: self.file_mode(),
        }
    }

    fn rename(&mut self) -> Op {
        let from = if self.rng.chance(40) {
            self.path_mostly(FileType::Directory)
        } else {
            self.path()
        };
        let to = match self.rng.below(10) {
            0..=5 => self.new_path(),
            6 => B(join(&from, self.rng.pick::<&[u8]>(NAMES))),
            7 => self.path_mostly(FileType::Directory),
            _ => self.path(),
        };
        let how = *self.rng.pick(&[
            Rn::RnPlain,
            Rn::RnPlain,
            Rn::RnPlain,
            Rn::RnNoReplace,
            Rn::RnExchange,
        ]);
        Op::Rename { from, to, how }
    }

    fn xattr_name(&mut self) -> B {
        let name = self.any_xattr_name();
        // The comparison with the kernel ends where a user changes an ACL.
        match self.user != 0 && name.starts_with(b"system.posix_acl_") && !self.rng.chance(10) {
            true => B(b"user.one".to_vec()),
            false => name,
        }
    }

    fn any_xattr_name(&mut self) -> B {
        let names: &[&str] = &[
            "user.one",
            "user.one",
            "user.three",
            "user.\u{e9}",
            "trusted.two",
            "trusted.four",
            "security.capability",
            "system.posix_acl_access",
            "system.posix_acl_default",
            "trusted.overlay.opaque",
            "trusted.overlay.redirect",
            "user.overlay.opaque",
            "bogus.name",
        ];
        B(self.rng.pick(names).as_bytes().to_vec())
    }

    fn xattr_value(&mut self) -> B {
        B(match self.rng.below(6) {
            0 => Vec::new(),
            1 => vec![b'x'; 300],
            2 => vec![0, 1, 2, 255],
            _ => b"y".to_vec(),
        })
    }

    /// A name with a value that is mostly valid for it.
    fn xattr(&mut self) -> (B, B) {
        let name = self.xattr_name();
        let value = match &name[..] {
            b"security.capability" => capability(),
            b"system.posix_acl_access" | b"system.posix_acl_default" if self.rng.chance(85) => {
                let perms = [
                    self.rng.below(8) as u16,
                    self.rng.below(8) as u16,
                    self.rng.below(8) as u16,
                ];
                let user = *self.rng.pick(&[1000, 1001, 4242]);
                acl(perms[0], (user, 6), perms[1], 7, perms[2])
            }
            _ => self.xattr_value(),
        };
        (name, value)
    }

    fn setxattr(&mut self) -> Op {
        let (name, value) = self.xattr();
        let how = *self
            .rng
            .pick(&[Xf::XfAny, Xf::XfAny, Xf::XfAny, Xf::XfCreate, Xf::XfReplace]);
        Op::Setxattr {
            path: self.path(),
            name,
            value,
            how,
            follow: self.rng.chance(50),
        }
    }

    fn fsetxattr(&mut self) -> Op {
        let (name, value) = self.xattr();
        Op::Fsetxattr {
            h: self.slot(),
            name,
            value,
        }
    }
}
