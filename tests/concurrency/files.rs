//! Operations on files: create, write, truncate, attributes, and the check of everything.

use std::hash::{DefaultHasher, Hasher};

use rustix::fs::{self, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::layout::SHARED;
use super::model::{Id, Kind};
use super::worker::{Worker, expect, expect_bytes};

const FILE_MODES: [u32; 5] = [0o644, 0o600, 0o755, 0o640, 0o666];
const XATTR: &str = "user.t";
/// Offsets of writes lie below this many bytes.
const MAX_OFFSET: usize = 48 << 10;
const MAX_WRITE: usize = 12 << 10;

impl Worker {
    pub fn create(&mut self) {
        let (dir, name) = (self.some_dir(), self.some_name());
        let path = self.path(dir, &name);
        let mode = self.random.pick(&FILE_MODES).unwrap_or(0o644);
        let what = format!("create {path} {mode:o}");
        self.note(&what);
        let want = match self.model.child(dir, &name) {
            Some(_) => Err(Errno::EXIST),
            None => Ok(()),
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let Some(fd) = expect(&what, self.open(&path, flags, mode), want) else {
            return;
        };
        let id = self.model.add_file(Vec::new(), mode);
        self.model.link(dir, &name, id);
        for _ in 0..self.random.below(3) {
            self.write_some(&fd, id, false);
        }
        self.check(dir, &name, id);
        if self.random.one_in(3) {
            self.hold(id, fd, true, false);
        }
    }

    pub fn write(&mut self) {
        let Some((dir, name, id)) = self.some_child(|model, id| model.is_file(id)) else {
            return;
        };
        let path = self.path(dir, &name);
        let append = self.random.one_in(4);
        let truncate = self.random.one_in(6);
        let mut flags = OFlags::RDWR;
        flags.set(OFlags::APPEND, append);
        flags.set(OFlags::TRUNC, truncate);
        let what = format!("open {flags:?} {path}");
        self.note(&what);
        self.before_write(id);
        let Some(fd) = expect(&what, self.open(&path, flags, 0), Ok(())) else {
            return;
        };
        if truncate {
            self.model.data_mut(id).clear();
        }
        for _ in 0..=self.random.below(2) {
            self.write_some(&fd, id, append);
        }
        if self.random.one_in(12) {
            self.note("fsync");
            expect("fsync", fs::fsync(&fd), Ok(()));
        }
        self.check(dir, &name, id);
        if !append && self.random.one_in(3) {
            self.hold(id, fd, true, false);
        }
    }

    /// One write of random bytes at a random offset, or at the end.
    pub fn write_some(&mut self, fd: &impl std::os::fd::AsFd, id: Id, append: bool) {
        let len = 1 + self.random.below(MAX_WRITE);
        let bytes = self.bytes(len);
        let end = self.model.data(id).len();
        let offset = if append || self.random.one_in(2) {
            end.min(MAX_OFFSET)
        } else {
            self.random.below(MAX_OFFSET)
        };
        let what = format!("write {len} at {offset}, append {append}, size {end}");
        self.note(&what);
        if append && end > MAX_OFFSET {
            return;
        }
        let got = if append {
            rustix::io::write(fd, &bytes)
        } else {
            rustix::io::pwrite(fd, &bytes, offset as u64)
        };
        assert_eq!(expect(&what, got, Ok(())), Some(len), "{what}: short");
        self.model.write(id, offset, &bytes);
    }

    pub fn truncate(&mut self) {
        let Some((dir, name, id)) = self.some_child(|model, id| model.is_file(id)) else {
            return;
        };
        let path = self.path(dir, &name);
        let len = if self.random.one_in(4) {
            0
        } else {
            self.random.below(MAX_OFFSET)
        };
        let what = format!("truncate {path} {len}");
        self.note(&what);
        self.before_write(id);
        let fd = expect(&what, self.open(&path, OFlags::WRONLY, 0), Ok(())).unwrap();
        expect(&what, fs::ftruncate(&fd, len as u64), Ok(()));
        self.model.data_mut(id).resize(len, 0);
        self.check(dir, &name, id);
    }

    /// Says that a file's data is about to change.
    pub fn before_write(&mut self, id: Id) {
        self.model.get_mut(id).pure_lower = false;
        if self.orders.lax {
            let stale: Vec<_> = self
                .holders
                .extract_if(.., |holder| holder.id == id && holder.from_lower)
                .collect();
            stale.into_iter().for_each(|holder| self.let_go(holder));
        }
    }

    pub fn chmod(&mut self) {
        let wanted = |model: &super::model::Model, id| model.is_file(id) || model.is_dir(id);
        let Some((dir, name, id)) = self.some_child(wanted) else {
            return;
        };
        let path = self.path(dir, &name);
        let mode = self.random.pick(&FILE_MODES).unwrap_or(0o644);
        let what = format!("chmod {path} {mode:o}, utimens");
        self.note(&what);
        let got = fs::chmodat(&self.root, &path, Mode::from(mode), fs::AtFlags::empty());
        expect(&what, got, Ok(()));
        let time = Timespec {
            tv_sec: self.random.below(2_000_000_000) as i64 - 500_000_000,
            tv_nsec: 123_456_789,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let got = fs::utimensat(&self.root, &path, &times, fs::AtFlags::SYMLINK_NOFOLLOW);
        expect(&what, got, Ok(()));
        let stat = expect(&what, self.stat(&path), Ok(())).unwrap();
        assert_eq!(
            (stat.st_mtime, stat.st_mtime_nsec),
            (time.tv_sec, 123_456_789),
            "{what}: mtime"
        );
        let inode = self.model.get_mut(id);
        inode.mode = mode;
        inode.pure_lower = false;
        self.check(dir, &name, id);
    }

    pub fn set_xattr(&mut self) {
        let Some((dir, name, id)) = self.some_child(|model, id| model.is_file(id)) else {
            return;
        };
        let path = self.path(dir, &name);
        let len = 1 + self.random.below(100);
        let value = self.bytes(len);
        let what = format!("setxattr {path}");
        self.note(&what);
        let full = self.orders.root.join(&path);
        expect(
            &what,
            fs::setxattr(&full, XATTR, &value, XattrFlags::empty()),
            Ok(()),
        );
        let inode = self.model.get_mut(id);
        inode.pure_lower = false;
        if let Kind::File { xattr, .. } = &mut inode.kind {
            *xattr = Some(value);
        }
        self.check(dir, &name, id);
    }

    pub fn check_any(&mut self) {
        let Some((dir, name, id)) = self.some_child(|_, _| true) else {
            return;
        };
        let path = self.path(dir, &name);
        self.note(&format!("check {path}"));
        self.check(dir, &name, id);
        if !self.model.is_file(id) {
            return;
        }
        let from_lower = self.model.get(id).pure_lower;
        let what = format!("open to read {path}");
        let fd = expect(&what, self.open(&path, OFlags::RDONLY, 0), Ok(())).unwrap();
        expect_bytes(&what, &read_all(&fd, &what), self.model.data(id));
        self.check_xattr(&path, id);
        if self.random.one_in(3) {
            self.hold(id, fd, false, from_lower);
        }
    }

    fn check_xattr(&self, path: &str, id: Id) {
        let Kind::File { xattr, .. } = &self.model.get(id).kind else {
            return;
        };
        let full = self.orders.root.join(path);
        let mut value = [0; 256];
        let what = format!("getxattr {path}");
        match xattr {
            None => {
                expect(
                    &what,
                    fs::getxattr(&full, XATTR, &mut value),
                    Err(Errno::NODATA),
                );
            }
            Some(want) => {
                let n = expect(&what, fs::getxattr(&full, XATTR, &mut value), Ok(())).unwrap();
                expect_bytes(&what, &value[..n], want);
            }
        }
    }

    /// The attributes that a name shows are those of the model.
    pub fn check(&mut self, dir: Id, name: &str, id: Id) {
        let path = self.path(dir, name);
        let what = format!("stat {path}");
        let stat = expect(&what, self.stat(&path), Ok(())).unwrap();
        let inode = self.model.get_mut(id);
        let ino = *inode.ino.get_or_insert(stat.st_ino);
        assert_eq!(stat.st_ino, ino, "{what}: the inode number changed");
        let (kind, size) = match &inode.kind {
            Kind::File { data, .. } => (FileType::RegularFile, Some(data.len())),
            Kind::Dir { .. } => (FileType::Directory, None),
            Kind::Symlink { target } => (FileType::Symlink, Some(target.len())),
        };
        assert_eq!(FileType::from_raw_mode(stat.st_mode), kind, "{what}: type");
        assert_eq!(stat.st_mode & 0o7777, inode.mode, "{what}: mode in octal");
        if let Some(size) = size {
            assert_eq!(stat.st_size, size as i64, "{what}: size");
            assert_eq!(stat.st_nlink, inode.nlink, "{what}: links");
        }
        if let Kind::Symlink { target } = &inode.kind {
            let got = fs::readlinkat(&self.root, &path, Vec::new());
            let got = expect(&what, got, Ok(())).unwrap();
            assert_eq!(got.to_str(), Ok(target.as_str()), "{what}: target");
        }
    }

    /// Everything that the model has is in the tree, with its data.
    pub fn check_all(&mut self) {
        for dir in self.all_dirs() {
            self.list(dir);
            let children: Vec<_> = self
                .model
                .children(dir)
                .iter()
                .map(|(name, id)| (name.clone(), *id))
                .collect();
            for (name, id) in children {
                self.check(dir, &name, id);
                if self.model.is_file(id) {
                    let path = self.path(dir, &name);
                    let fd = expect(&path, self.open(&path, OFlags::RDONLY, 0), Ok(())).unwrap();
                    expect_bytes(&path, &read_all(&fd, &path), self.model.data(id));
                    self.check_xattr(&path, id);
                }
            }
        }
    }

    /// One line an own name: `PATH TYPE MODE LINKS HASH OBJECT`.
    pub fn manifest(&self) -> String {
        let mut lines = String::new();
        for dir in self.all_dirs() {
            for (name, id) in self.model.children(dir) {
                let inode = self.model.get(*id);
                let (kind, hash) = match &inode.kind {
                    Kind::File { data, .. } => ("file", hash(data)),
                    Kind::Dir { .. } => ("dir", 0),
                    Kind::Symlink { target } => ("symlink", hash(target.as_bytes())),
                };
                let nlink = if kind == "dir" { 0 } else { inode.nlink };
                let (path, mode) = (self.path(dir, name), inode.mode);
                lines.push_str(&format!(
                    "{path} {kind} {mode} {nlink} {hash} w{}:{id}\n",
                    self.orders.w
                ));
            }
        }
        debug_assert!(self.all_dirs().len() >= SHARED);
        lines
    }
}

/// The same as `EntryDigest::content`.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Reads from offset 0 to the end.
pub fn read_all(fd: &impl std::os::fd::AsFd, what: &str) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = rustix::io::pread(fd, &mut buffer[..], all.len() as u64)
            .unwrap_or_else(|e| panic!("{what}: read: {e}"));
        if n == 0 {
            return all;
        }
        all.extend_from_slice(&buffer[..n]);
    }
}
