//! Random layers and random operations.

use std::collections::BTreeMap;

use rustix::fs::{CWD, FileType};

use super::driver::{Driver, MAPS, SLOTS, USERS};
use super::layers::{acl, capability};
use super::model::{B, Case, Disk, Entry, Ext, Fa, L, M, Nd, Node, O, Op, Rn, Sk, T, Tm, Xf};
use super::rng::Rng;
use super::run::Step;
use super::tree;

/// Names for everything; few, so that layers and operations meet.
const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"f",
    b"g",
    b"h",
    b"-rf",
    b".hid",
    b" sp ace ",
    b"new\nline",
    b"\xff\xfe\x80",
    "\u{fc}\u{4e2d}".as_bytes(),
    b"...",
    b"*?[",
    b"wh.x",
    b"#1f",
];

/// Moments to set: before 1970, after 2038, with and without nanoseconds.
const TIMES: &[T] = &[
    T(0, 0),
    T(-1, 999_999_999),
    T(-86_400, 1),
    T(-1_234_567_890, 123_456_789),
    T(1, 500_000_000),
    T(1_000_000_000, 0),
    T(1_234_567_890, 987_654_321),
    T(2_147_483_647, 999_999_999),
    T(2_147_483_748, 42),
    T(4_102_444_800, 7),
    T(9_000_000_000, 1_000),
];

const FILE_MODES: &[u32] = &[
    0o644, 0o644, 0o600, 0o755, 0o444, 0o666, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0, 0o2644,
];
const DIR_MODES: &[u32] = &[
    0o755, 0o755, 0o777, 0o777, 0o1777, 0o2775, 0o2777, 0o700, 0o750, 0o555, 0o711, 0o3777,
];
const MASKS: &[u32] = &[0o022, 0o022, 0, 0o077, 0o027, 0o777];

fn owner(rng: &mut Rng) -> (u32, u32) {
    (
        *rng.pick(&[0, 0, 0, 1000, 1000, 1001, 70_000]),
        *rng.pick(&[0, 0, 1000, 1000, 1001, 2000, 65_534]),
    )
}

/// A random case without operations.
pub fn layers(rng: &mut Rng, disk: Disk) -> Case {
    let mut below = BTreeMap::new();
    let mut lowers = Vec::new();
    let count = *rng.pick(&[1, 1, 2, 2, 2, 3, 3, 4]);
    for level in 0..count {
        let size = if level == 0 {
            14 + rng.below(22)
        } else {
            5 + rng.below(16)
        };
        let mut maker = LayerMaker {
            rng,
            below: &mut below,
            entries: Vec::new(),
            own: BTreeMap::new(),
        };
        maker.root();
        for _ in 0..size {
            maker.step();
        }
        lowers.insert(0, maker.finish());
    }
    Case {
        disk,
        lowers,
        before: Vec::new(),
        ops: Vec::new(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dir,
    Other,
    /// A directory that shows nothing of the layers below.
    Opaque,
    Gone,
}

struct LayerMaker<'a> {
    rng: &'a mut Rng,
    /// What the layers below show together.
    below: &'a mut BTreeMap<Vec<u8>, Kind>,
    entries: Vec<Entry>,
    own: BTreeMap<Vec<u8>, Kind>,
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter()
        .rposition(|c| *c == b'/')
        .map_or(b"", |slash| &path[..slash])
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() || dir == b"." {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

impl LayerMaker<'_> {
    fn root(&mut self) {
        let mode = *self.rng.pick(&[0o755, 0o777, 0o1777, 0o775]);
        self.add(b"", Node::Dir, mode);
    }

    fn add(&mut self, path: &[u8], node: Node, mode: u32) {
        let kind = match node {
            Node::Dir => Kind::Dir,
            Node::Opaque => Kind::Opaque,
            Node::Whiteout => Kind::Gone,
            _ => Kind::Other,
        };
        self.own.insert(path.to_vec(), kind);
        let (uid, gid) = owner(self.rng);
        let xattrs = if matches!(node, Node::Whiteout | Node::Link(_)) {
            Vec::new()
        } else {
            self.xattrs(&node)
        };
        let mtime = *self.rng.pick(TIMES);
        self.entries.push(Entry {
            path: B(path.to_vec()),
            node,
            mode: M(mode),
            uid,
            gid,
            mtime,
            xattrs: L(xattrs),
        });
    }

    fn xattrs(&mut self, node: &Node) -> Vec<(B, B)> {
        let mut out = Vec::new();
        let dir = matches!(node, Node::Dir | Node::Opaque);
        let file = matches!(node, Node::File(..));
        let link = matches!(node, Node::Symlink(_));
        let mut add = |name: &str, value: B| out.push((B(name.as_bytes().to_vec()), value));
        if (dir || file) && self.rng.chance(15) {
            add("user.one", B(b"1".to_vec()));
        }
        if (dir || file) && self.rng.chance(5) {
            add("user.\u{e9}", B(Vec::new()));
        }
        if self.rng.chance(15) {
            add("trusted.two", B(vec![0, 255, 10]));
        }
        if self.rng.chance(4) {
            add("trusted.overlay.overlay.opaque", B(b"y".to_vec()));
        }
        if !link && self.rng.chance(8) {
            add("system.posix_acl_access", acl(6, (1001, 7), 4, 7, 4));
        }
        if dir && self.rng.chance(10) {
            add("system.posix_acl_default", acl(7, (1000, 5), 5, 7, 0));
        }
        if file && self.rng.chance(8) {
            add("security.capability", capability());
        }
        out
    }

    /// Makes `dir` a directory of this layer, with its parents. False if it can't be one.
    fn ensure_dir(&mut self, dir: &[u8]) -> bool {
        match self.own.get(dir) {
            Some(Kind::Dir | Kind::Opaque) => return true,
            Some(_) => return false,
            None => {}
        }
        if !self.ensure_dir(&parent(dir).to_vec()) {
            return false;
        }
        let mode = *self.rng.pick(DIR_MODES);
        self.add(dir, Node::Dir, mode);
        true
    }

    fn step(&mut self) {
        if !self.below.is_empty() && self.rng.chance(50) {
            self.cover();
        } else {
            self.fresh();
        }
    }

    /// An entry where the layers below may have none.
    fn fresh(&mut self) {
        let mut dirs: Vec<Vec<u8>> = vec![Vec::new()];
        let all = self.below.iter().chain(self.own.iter());
        dirs.extend(
            all.filter(|(_, kind)| matches!(kind, Kind::Dir | Kind::Opaque))
                .map(|(path, _)| path.clone()),
        );
        let dir = self.rng.pick(&dirs).clone();
        let name = self.rng.pick(NAMES).to_vec();
        let path = join(&dir, &name);
        let depth = path.iter().filter(|c| **c == b'/').count();
        if self.own.contains_key(&path)
            || depth > 4
            || !self.ensure_dir(&dir)
            || self.own.contains_key(&path)
        {
            return;
        }
        if self.rng.chance(30) {
            let node = if self.rng.chance(8) {
                Node::Opaque
            } else {
                Node::Dir
            };
            let mode = *self.rng.pick(DIR_MODES);
            return self.add(&path, node, mode);
        }
        let path = if self.rng.chance(4) {
            join(&dir, &[b'L'; 255])
        } else {
            path
        };
        if !self.own.contains_key(&path) {
            self.leaf(&path);
        }
    }

    /// An entry that hides or changes something below.
    fn cover(&mut self) {
        let paths: Vec<Vec<u8>> = self
            .below
            .keys()
            .filter(|p| !p.is_empty())
            .cloned()
            .collect();
        if paths.is_empty() {
            return;
        }
        let path = self.rng.pick(&paths).clone();
        if self.own.contains_key(&path)
            || !self.ensure_dir(&parent(&path).to_vec())
            || self.own.contains_key(&path)
        {
            return;
        }
        let hidden = (1..path.len())
            .any(|i| path[i] == b'/' && self.own.get(&path[..i]) == Some(&Kind::Opaque));
        let was_dir = self.below.get(&path) == Some(&Kind::Dir);
        let mode = *self.rng.pick(DIR_MODES);
        match self.rng.below(10) {
            0..=3 if !hidden => self.add(&path, Node::Whiteout, 0),
            4..=6 if was_dir => self.add(&path, Node::Dir, mode),
            7 if was_dir => self.add(&path, Node::Opaque, mode),
            8 => self.add(&path, Node::Dir, mode),
            _ => self.leaf(&path),
        }
    }

    fn leaf(&mut self, path: &[u8]) {
        let mode = *self.rng.pick(FILE_MODES);
        let files: Vec<B> = self
            .entries
            .iter()
            .filter(|e| {
                !matches!(
                    e.node,
                    Node::Dir | Node::Opaque | Node::Whiteout | Node::Link(_)
                )
            })
            .map(|e| e.path.clone())
            .collect();
        let node = match self.rng.below(20) {
            0..=3 if !files.is_empty() => Node::Link(self.rng.pick(&files).clone()),
            4 | 5 => Node::Symlink(symlink_target(self.rng, &files)),
            6 => Node::Fifo,
            7 => Node::Sock,
            8 => Node::Chr(1, 3),
            9 => Node::Blk(240, 300),
            _ => file(self.rng),
        };
        self.add(path, node, mode);
    }

    fn finish(self) -> Vec<Entry> {
        for entry in &self.entries {
            let path = &entry.path.0;
            let under =
                |other: &[u8]| other.starts_with(path) && other.get(path.len()) == Some(&b'/');
            let was_dir = matches!(self.below.get(path), Some(Kind::Dir));
            let kind = self.own[path];
            if !path.is_empty() && (kind != Kind::Dir || !was_dir) {
                self.below.retain(|other, _| !under(other));
            }
            match kind {
                Kind::Gone => drop(self.below.remove(path)),
                Kind::Opaque => drop(self.below.insert(path.clone(), Kind::Dir)),
                kind => drop(self.below.insert(path.clone(), kind)),
            }
        }
        self.entries
    }
}

fn file(rng: &mut Rng) -> Node {
    let seed = rng.below(256) as u8;
    match rng.below(10) {
        0 | 1 => Node::File(0, L(Vec::new())),
        2 => Node::File(300_000, L(vec![Ext(131_072, 100, seed)])),
        3 => Node::File(65_536, L(vec![Ext(0, 4096, seed), Ext(32_768, 1, seed)])),
        4 => Node::File(100_000, L(vec![Ext(0, 100_000, seed)])),
        _ => {
            let size = 1 + rng.below(9000) as u32;
            Node::File(u64::from(size), L(vec![Ext(0, size, seed)]))
        }
    }
}

fn symlink_target(rng: &mut Rng, known: &[B]) -> B {
    match rng.below(6) {
        0 => B(b"nowhere/at/all".to_vec()),
        1 => B([b"/", &rng.pick(NAMES)[..]].concat()),
        2 if !known.is_empty() => B([b"/", &rng.pick(known)[..]].concat()),
        3 => B([b"../", &rng.pick(NAMES)[..]].concat()),
        4 => B(b".".to_vec()),
        _ => B(rng.pick(NAMES).to_vec()),
    }
}

/// Makes operations while a driver runs them, so that most meet something that exists.
pub struct OpMaker<'a> {
    rng: &'a mut Rng,
    paths: Vec<(Vec<u8>, FileType)>,
    stale: u32,
    user: usize,
    disk: Disk,
    /// The slots that are open, and those that are open for reading only.
    open: Vec<usize>,
    read_only: Vec<usize>,
    /// The last paths that were used.
    recent: Vec<Vec<u8>>,
}

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
    (1, |g| Op::Fchown {
        h: g.slot(),
        uid: g.uid(),
        gid: g.gid(),
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
    (5, |g| Op::Chown {
        path: g.path(),
        uid: g.uid(),
        gid: g.gid(),
        follow: g.rng.chance(50),
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
    let total: u64 = WEIGHTS.iter().map(|(weight, _)| weight).sum();
    let mut done = Vec::with_capacity(count);
    while done.len() < count {
        maker.refresh(driver);
        let mut at = maker.rng.below(total);
        let make = WEIGHTS.iter().find(|(weight, _)| {
            let here = at < *weight;
            at = at.wrapping_sub(*weight);
            here
        });
        let Some((_, make)) = make else { continue };
        let mut op = make(&mut maker);
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
    fn refresh(&mut self, driver: &mut Driver) {
        (self.open, self.read_only) = driver.open_slots();
        if self.stale > 0 {
            self.stale -= 1;
            return;
        }
        self.stale = 3;
        self.paths.clear();
        let paths = &mut self.paths;
        if driver.as_root(|_| collect(b".", 0, paths)).is_err() {
            return; // Then the operations are about nothing, and all fail alike.
        }
        self.paths.sort_by(|x, y| x.0.cmp(&y.0));
    }

    /// A slot that is mostly open.
    fn slot(&mut self) -> usize {
        match self.open.is_empty() || self.rng.chance(4) {
            true => self.rng.index(SLOTS),
            false => *self.rng.pick(&self.open),
        }
    }

    fn seed(&mut self) -> u8 {
        self.rng.below(256) as u8
    }

    fn len(&mut self) -> usize {
        match self.rng.below(8) {
            0 => 0,
            1 => 1,
            2 => 4096,
            3 => 40_000,
            _ => 1 + self.rng.index(6000),
        }
    }

    fn offset(&mut self) -> u64 {
        match self.rng.below(8) {
            0..=2 => 0,
            3 => 4096,
            4 => 200_000,
            _ => self.rng.below(10_000),
        }
    }

    fn file_mode(&mut self) -> M {
        M(*self.rng.pick(FILE_MODES))
    }

    fn dir_mode(&mut self) -> M {
        M(*self.rng.pick(DIR_MODES))
    }

    fn any_mode(&mut self) -> M {
        if self.rng.chance(50) {
            self.file_mode()
        } else {
            self.dir_mode()
        }
    }

    fn uid(&mut self) -> u32 {
        *self.rng.pick(&[0, 1000, 1001, u32::MAX])
    }

    fn gid(&mut self) -> u32 {
        *self.rng.pick(&[0, 1000, 1001, 2000, u32::MAX])
    }

    fn time(&mut self) -> Tm {
        match self.rng.below(6) {
            0 => Tm::Now,
            1 => Tm::Omit,
            _ => Tm::At(*self.rng.pick(TIMES)),
        }
    }

    fn existing(&mut self) -> Vec<u8> {
        // What was just used is used again: that is where states meet.
        if !self.recent.is_empty() && self.rng.chance(30) {
            return self.rng.pick(&self.recent).clone();
        }
        if self.paths.is_empty() {
            return b"a".to_vec();
        }
        let at = self.rng.index(self.paths.len());
        let path = self.paths[at].0.clone();
        self.remember(&path);
        path
    }

    fn remember(&mut self, path: &[u8]) {
        if self.recent.len() >= 5 {
            self.recent.remove(0);
        }
        self.recent.push(path.to_vec());
    }

    /// A path that mostly exists.
    fn path(&mut self) -> B {
        B(match self.rng.below(40) {
            0 => b".".to_vec(),
            1 => join(&self.existing(), self.rng.pick::<&[u8]>(NAMES)),
            2 => [&self.existing()[..], b"/"].concat(),
            3 => [b"/", &self.existing()[..]].concat(),
            4 => join(&self.existing(), b".."),
            5 => join(&self.existing(), b"."),
            6..=8 => return self.new_path(),
            9 if self.rng.chance(20) => Vec::new(),
            _ => self.existing(),
        })
    }

    fn path_mostly(&mut self, kind: FileType) -> B {
        if self.rng.chance(20) {
            return B(self.existing());
        }
        for _ in 0..12 {
            if self.paths.is_empty() || self.rng.chance(8) {
                break;
            }
            let at = self.rng.index(self.paths.len());
            if self.paths[at].1 == kind {
                let path = self.paths[at].0.clone();
                self.remember(&path);
                return B(path);
            }
        }
        self.path()
    }

    /// A path whose parent mostly exists.
    fn new_path(&mut self) -> B {
        let dirs: Vec<&Vec<u8>> = self
            .paths
            .iter()
            .filter(|x| x.1 == FileType::Directory)
            .map(|x| &x.0)
            .collect();
        let dir = match dirs.is_empty() || self.rng.chance(25) {
            true => b".".to_vec(),
            false => (*self.rng.pick(&dirs)).clone(),
        };
        let name = match self.rng.below(100) {
            0 => vec![b'L'; 255],
            1 => vec![b'M'; 256],
            2 => b".wh.a".to_vec(),
            _ => self.rng.pick(NAMES).to_vec(),
        };
        B(join(&dir, &name))
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

/// All paths below `dir`, relative to the root.
fn collect(dir: &[u8], depth: u32, out: &mut Vec<(Vec<u8>, FileType)>) {
    if depth > 12 || dir.len() > 1500 {
        return;
    }
    let Ok(fd) = tree::open_dir(CWD, dir) else {
        return;
    };
    let Ok(names) = tree::list(&fd) else { return };
    for (name, kind, _) in names {
        if &*name == b"." || &*name == b".." {
            continue;
        }
        let path = join(dir, &name);
        if kind == FileType::Directory {
            collect(&path, depth + 1, out);
        }
        out.push((path, kind));
    }
}
