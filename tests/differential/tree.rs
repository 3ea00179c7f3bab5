//! Whole trees as data: reading one from a directory, comparing two.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, StatxFlags};
use rustix::io::Errno;

use super::deviations;
use super::model::{B, T};
use super::sys;

/// An mtime as two trees that were changed at different moments can compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Set by the system since the test began.
    Recent,
    At(T),
}

impl When {
    /// `t0`: the second in which the test began.
    pub fn of(t0: i64, time: T) -> When {
        if time.0 >= t0 - 2 && time.0 < t0 + 100_000 {
            When::Recent
        } else {
            When::At(time)
        }
    }
}

/// What identifies an object: inode number and, on the plain copy, a hash of its file handle,
/// which holds the generation (numbers are used again).
pub type Id = (u64, u64);

/// The attributes of an object.
#[derive(Clone, Debug)]
pub struct Attr {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: (u32, u32),
    /// 0 for directories.
    pub size: u64,
    /// 1 for directories.
    pub nlink: u32,
    pub when: When,
    pub mtime: T,
    pub ctime: T,
    pub id: Id,
    pub dev: (u32, u32),
}

impl PartialEq for Attr {
    fn eq(&self, other: &Attr) -> bool {
        self.difference(other, false).is_empty()
    }
}

impl Attr {
    pub fn from_statx(t0: i64, st: &rustix::fs::Statx) -> Attr {
        let kind = FileType::from_raw_mode(u32::from(st.stx_mode));
        let dir = kind == FileType::Directory;
        let time = |t: rustix::fs::StatxTimestamp| T(t.tv_sec, t.tv_nsec);
        let mtime = time(st.stx_mtime);
        Attr {
            kind,
            mode: u32::from(st.stx_mode) & 0o7777,
            uid: st.stx_uid,
            gid: st.stx_gid,
            rdev: (st.stx_rdev_major, st.stx_rdev_minor),
            size: if dir { 0 } else { st.stx_size },
            nlink: if dir { 1 } else { st.stx_nlink },
            when: When::of(t0, mtime),
            mtime,
            ctime: time(st.stx_ctime),
            id: (st.stx_ino, 0),
            dev: (st.stx_dev_major, st.stx_dev_minor),
        }
    }

    /// The fields that differ, as text; `exact` compares mtimes to the nanosecond.
    pub fn difference(&self, other: &Attr, exact: bool) -> String {
        let mut out = String::new();
        let mut field = |name: &str, a: String, b: String| {
            if a != b {
                out.push_str(&format!(" {name}: {a} != {b};"));
            }
        };
        field(
            "type",
            format!("{:?}", self.kind),
            format!("{:?}", other.kind),
        );
        field(
            "mode",
            format!("{:o}", self.mode),
            format!("{:o}", other.mode),
        );
        field("uid", self.uid.to_string(), other.uid.to_string());
        field("gid", self.gid.to_string(), other.gid.to_string());
        field(
            "rdev",
            format!("{:?}", self.rdev),
            format!("{:?}", other.rdev),
        );
        field("size", self.size.to_string(), other.size.to_string());
        field("nlink", self.nlink.to_string(), other.nlink.to_string());
        let fifo = self.kind == FileType::Fifo && self.kind == other.kind;
        if fifo
            && (self.when == When::Recent || other.when == When::Recent)
            && self.mtime != other.mtime
        {
            deviations::count(deviations::FIFO_TIMES);
        } else if exact {
            field(
                "mtime",
                format!("{:?}", self.mtime),
                format!("{:?}", other.mtime),
            );
        } else {
            field(
                "mtime",
                format!("{:?}", self.when),
                format!("{:?}", other.when),
            );
        }
        out
    }
}

/// statx with all that [`Attr`] holds.
pub fn stat(dir: impl AsFd, path: &[u8], t0: i64, follow: bool) -> Result<Attr, Errno> {
    let flags = if follow {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    };
    let st = rustix::fs::statx(dir, path, flags, StatxFlags::BASIC_STATS)?;
    Ok(Attr::from_statx(t0, &st))
}

/// The hash of the file handle of `path`, for [`Attr::id`] on the plain copy.
pub fn generation(dir: impl AsFd, path: &[u8], flags: i32) -> Result<u64, Errno> {
    let (kind, bytes) = sys::handle(dir.as_fd(), path, flags)?;
    let mut hasher = Fnv::default();
    hasher.write(&bytes);
    hasher.write(&kind.to_ne_bytes());
    Ok(hasher.finish())
}

/// One object of a tree.
#[derive(Clone, Debug)]
pub struct Item {
    pub attr: Attr,
    /// A symlink's target.
    pub target: B,
    /// A regular file's content, hashed.
    pub content: u64,
    pub xattrs: Vec<(B, B)>,
}

/// A tree: every path below its root, and the root itself as the empty path.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    pub items: BTreeMap<B, Item>,
    /// What is wrong with the tree in itself: names listed twice, `d_ino` not `st_ino`, …
    pub faults: Vec<String>,
}

/// A listed name, its type and inode number.
pub type Listed = (B, FileType, u64);

/// All names of an open directory, `.` and `..` too, in the order of the directory.
pub fn list(dir: impl AsFd) -> Result<Vec<Listed>, Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 8192];
    let mut names = Vec::new();
    loop {
        let more = list_some(&dir, &mut buffer)?;
        if more.is_empty() {
            return Ok(names);
        }
        names.extend(more);
    }
}

/// One getdents' worth of names.
pub fn list_some(dir: impl AsFd, buffer: &mut [MaybeUninit<u8>]) -> Result<Vec<Listed>, Errno> {
    let mut names = Vec::new();
    let mut raw = RawDir::new(dir, buffer);
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = B(entry.file_name().to_bytes().to_vec());
        names.push((name, entry.file_type(), entry.ino()));
        if raw.is_buffer_empty() {
            break;
        }
    }
    Ok(names)
}

/// Opens the directory `path` for listing.
pub fn open_dir(at: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

/// The extended attributes of `name` in the working directory, sorted.
pub fn xattrs(name: &[u8]) -> Result<Vec<(B, B)>, Errno> {
    let mut names = vec![0u8; 65536];
    let n = rustix::fs::llistxattr(name, &mut names[..])?;
    let mut out = Vec::new();
    let mut value = vec![0u8; 65536];
    for key in names[..n].split(|c| *c == 0).filter(|key| !key.is_empty()) {
        let len = rustix::fs::lgetxattr(name, key, &mut value[..])?;
        out.push((B(key.to_vec()), B(value[..len].to_vec())));
    }
    out.sort();
    Ok(out)
}

/// Reads a tree. Uses (and restores) the thread's own working directory.
pub struct Walker {
    pub t0: i64,
    /// Compare `d_ino` and `d_type` with what stat says.
    pub check_dino: bool,
    /// Take generations into [`Attr::id`].
    pub generations: bool,
    tree: Tree,
}

impl Walker {
    pub fn new(t0: i64, check_dino: bool, generations: bool) -> Walker {
        Walker {
            t0,
            check_dino,
            generations,
            tree: Tree::default(),
        }
    }

    /// The tree below the open directory `root`.
    pub fn walk(mut self, root: OwnedFd) -> Tree {
        let here = rustix::fs::openat(
            CWD,
            ".",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let result = rustix::process::fchdir(&root).and_then(|()| self.item(b"", b"."));
        if let Err(error) = result.and_then(|attr| self.directory(b"", root, &attr)) {
            self.tree.faults.push(format!("the root: {error}"));
        }
        if let Ok(here) = here
            && let Err(error) = rustix::process::fchdir(here)
        {
            self.tree.faults.push(format!("fchdir back: {error}"));
        }
        self.tree
    }

    /// Records the object `name` of the working directory as `path`.
    fn item(&mut self, path: &[u8], name: &[u8]) -> Result<Attr, Errno> {
        let mut attr = stat(CWD, name, self.t0, false)?;
        if self.generations {
            attr.id.1 = generation(CWD, name, 0)?;
        }
        let mut item = Item {
            attr: attr.clone(),
            target: B(Vec::new()),
            content: 0,
            xattrs: Vec::new(),
        };
        match xattrs(name) {
            Ok(list) => item.xattrs = list,
            Err(error) => self.fault(path, &format!("xattrs: {error}")),
        }
        if attr.kind == FileType::Symlink {
            match rustix::fs::readlinkat(CWD, name, Vec::new()) {
                Ok(target) => item.target = B(target.into_bytes()),
                Err(error) => self.fault(path, &format!("readlink: {error}")),
            }
        }
        if attr.kind == FileType::RegularFile {
            match hash_file(name) {
                Ok((len, hash)) if len == attr.size => item.content = hash,
                Ok((len, _)) => self.fault(
                    path,
                    &format!("{len} bytes can be read, st_size is {}", attr.size),
                ),
                Err(error) => self.fault(path, &format!("read: {error}")),
            }
        }
        self.tree.items.insert(B(path.to_vec()), item);
        Ok(attr)
    }

    fn fault(&mut self, path: &[u8], what: &str) {
        self.tree
            .faults
            .push(format!("{}: {what}", path.escape_ascii()));
    }

    /// Records what is in `dir`, which is the working directory.
    fn directory(&mut self, path: &[u8], dir: OwnedFd, own: &Attr) -> Result<(), Errno> {
        let mut names = list(&dir)?;
        names.sort_by(|a, b| a.0.cmp(&b.0));
        for pair in names.windows(2) {
            if pair[0].0 == pair[1].0 {
                self.fault(path, &format!("{:?} is listed twice", pair[0].0));
            }
        }
        for (name, kind, ino) in names {
            if &*name == b"." || &*name == b".." {
                if self.check_dino && &*name == b"." && ino != own.id.0 {
                    self.fault(
                        path,
                        &format!("d_ino of . is {ino}, st_ino is {}", own.id.0),
                    );
                }
                continue;
            }
            let mut below = path.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(&name);
            let attr = match self.item(&below, &name) {
                Ok(attr) => attr,
                Err(error) => {
                    self.fault(&below, &format!("listed, but stat says {error}"));
                    continue;
                }
            };
            if kind != FileType::Unknown && kind != attr.kind {
                self.fault(&below, &format!("d_type {kind:?}, st_mode {:?}", attr.kind));
            }
            if self.check_dino && ino != attr.id.0 {
                self.fault(&below, &format!("d_ino {ino}, st_ino {}", attr.id.0));
            }
            if attr.kind == FileType::Directory {
                self.descend(&below, &name, &dir, &attr);
            }
        }
        Ok(())
    }

    fn descend(&mut self, path: &[u8], name: &[u8], parent: &OwnedFd, attr: &Attr) {
        let result = open_dir(CWD, name).and_then(|dir| {
            rustix::process::fchdir(&dir)?;
            let result = self.directory(path, dir, attr);
            rustix::process::fchdir(parent)?;
            result
        });
        if let Err(error) = result {
            self.fault(path, &format!("can't be listed: {error}"));
        }
    }
}

/// Length and hash of the file `name` in the working directory.
fn hash_file(name: &[u8]) -> Result<(u64, u64), Errno> {
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOATIME;
    let fd = rustix::fs::openat(CWD, name, flags, Mode::empty())?;
    let mut hasher = Fnv::default();
    let mut buffer = vec![0u8; 1 << 17];
    let mut len = 0;
    loop {
        let n = rustix::io::read(&fd, &mut buffer[..])?;
        if n == 0 {
            return Ok((len, hasher.finish()));
        }
        hasher.write(&buffer[..n]);
        len += n as u64;
    }
}

/// A hash that does not depend on how the input is cut into pieces.
#[derive(Default)]
pub struct Fnv {
    state: u64,
    pending: Vec<u8>,
}

impl Fnv {
    fn word(&mut self, word: u64) {
        self.state = (self.state ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(23);
    }
}

impl Hasher for Fnv {
    fn write(&mut self, mut bytes: &[u8]) {
        while !self.pending.is_empty() && self.pending.len() < 8 && !bytes.is_empty() {
            self.pending.push(bytes[0]);
            bytes = &bytes[1..];
        }
        if self.pending.len() == 8 {
            let mut word = [0; 8];
            word.copy_from_slice(&self.pending);
            self.pending.clear();
            self.word(u64::from_le_bytes(word));
        }
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        self.pending.extend_from_slice(chunks.remainder());
    }

    fn finish(&self) -> u64 {
        let mut last = Fnv {
            state: self.state,
            pending: Vec::new(),
        };
        last.word(
            self.pending
                .iter()
                .fold(self.pending.len() as u64, |word, byte| {
                    word << 8 | u64::from(*byte)
                }),
        );
        last.state
    }
}

/// For every path of a non-directory the first path of its link group.
fn groups(tree: &Tree) -> HashMap<&B, &B> {
    let mut first: HashMap<(u64, (u32, u32)), &B> = HashMap::new();
    let mut out = HashMap::new();
    for (path, item) in &tree.items {
        if item.attr.kind != FileType::Directory {
            out.insert(
                path,
                *first.entry((item.attr.id.0, item.attr.dev)).or_insert(path),
            );
        }
    }
    out
}

/// How a difference of link groups begins.
pub const LINKED: &str = "linked with";

/// One difference of two trees: where, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff {
    pub path: B,
    pub what: String,
}

/// Says whether two objects may have different attributes.
pub type Excuse = fn(&Item, &Item) -> bool;

/// The differences of two trees; `exact` compares mtimes to the nanosecond.
pub fn compare(a: &Tree, b: &Tree, exact: bool, excuse: Option<Excuse>) -> Vec<Diff> {
    let mut diffs = Vec::new();
    let (group_a, group_b) = (groups(a), groups(b));
    let mut say = |path: &B, what: String| {
        diffs.push(Diff {
            path: path.clone(),
            what,
        })
    };
    for (path, x) in &a.items {
        let Some(y) = b.items.get(path) else {
            say(path, format!("only the first has it ({:?})", x.attr.kind));
            continue;
        };
        let attr = x.attr.difference(&y.attr, exact);
        let excused = !attr.is_empty() && excuse.is_some_and(|excuse| excuse(x, y));
        if !attr.is_empty() && !excused {
            say(path, attr);
        }
        if x.target != y.target {
            say(path, format!("target {:?} != {:?}", x.target, y.target));
        }
        if x.attr.kind == y.attr.kind && x.content != y.content {
            say(path, "content differs".into());
        }
        if x.xattrs != y.xattrs {
            say(path, format!("xattrs {:?} != {:?}", x.xattrs, y.xattrs));
        }
        if group_a.get(path) != group_b.get(path) {
            say(
                path,
                format!(
                    "{LINKED} {:?} != {:?}",
                    group_a.get(path),
                    group_b.get(path)
                ),
            );
        }
    }
    for (path, y) in &b.items {
        if !a.items.contains_key(path) {
            say(path, format!("only the second has it ({:?})", y.attr.kind));
        }
    }
    diffs
}
