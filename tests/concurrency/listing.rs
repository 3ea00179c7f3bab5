//! Listings: what was there all the time is shown once, what never was is not shown.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, OFlags, RawDir};

use super::layout::{SHARED, keeps};
use super::model::{Id, Kind};
use super::worker::{Worker, expect};

/// One directory entry as listed.
pub struct Entry {
    pub name: String,
    pub ino: u64,
    pub kind: FileType,
}

/// Reads on from where the directory's offset is, with one getdents64 or (`all`) to the end.
pub fn entries(dir: &impl AsFd, buffer_size: usize, all: bool, what: &str) -> Vec<Entry> {
    let mut buffer = vec![MaybeUninit::uninit(); buffer_size];
    let mut raw = RawDir::new(dir.as_fd(), &mut buffer);
    let mut entries = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap_or_else(|e| panic!("{what}: getdents: {e}"));
        let name = entry.file_name().to_str().unwrap().to_owned();
        let (ino, kind) = (entry.ino(), entry.file_type());
        if name != "." && name != ".." {
            entries.push(Entry { name, ino, kind });
        }
        if !all && raw.is_buffer_empty() {
            break;
        }
    }
    entries
}

impl Worker {
    pub fn list_any(&mut self) {
        let dir = self.some_dir();
        self.note(&format!("list {}", self.model.path(dir)));
        self.list(dir);
    }

    /// Lists a directory: the own names are exactly those of the model.
    pub fn list(&mut self, dir: Id) {
        let path = self.model.path(dir);
        let what = format!("list {path}");
        let fd = self.open_dir(&path);
        let size = self
            .random
            .pick(&[600, 1500, 32 << 10, 256 << 10])
            .unwrap_or(4096);
        let seen = entries(&fd, size, true, &what);
        self.check_listing(&what, dir, &seen, &BTreeSet::new());
    }

    /// Lists a directory bit by bit and changes it meanwhile.
    pub fn list_slowly(&mut self) {
        let dir = self.some_dir();
        let path = self.model.path(dir);
        let what = format!("list slowly {path}");
        self.note(&what);
        let fd = self.open_dir(&path);
        let before = self.model.children(dir).clone();
        let mut touched = BTreeSet::new();
        let mut seen = Vec::new();
        loop {
            let some = entries(&fd, 1200, false, &what);
            if some.is_empty() {
                break;
            }
            seen.extend(some);
            let old = self.model.children(dir).clone();
            match self.random.below(4) {
                0 => self.create(),
                1 => self.unlink(),
                2 => self.rename(),
                _ => {}
            }
            // The directory itself may have been removed or moved.
            if !self.model.all().any(|(id, _)| id == dir) {
                return;
            }
            touched.extend(changed(&old, self.model.children(dir)));
        }
        touched.extend(changed(&before, self.model.children(dir)));
        self.note(&what);
        self.check_listing(&what, dir, &seen, &touched);
    }

    fn open_dir(&self, path: &str) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        expect(
            &format!("open directory {path}"),
            self.open(path, flags, 0),
            Ok(()),
        )
        .unwrap()
    }

    fn check_listing(&self, what: &str, dir: Id, seen: &[Entry], touched: &BTreeSet<String>) {
        let own = format!("w{}.", self.orders.w);
        let children = self.model.children(dir);
        let mut names = BTreeSet::new();
        let mut keep = 0;
        for entry in seen {
            let name = entry.name.as_str();
            let first = names.insert(name);
            let quiet = name.starts_with("keep.");
            keep += usize::from(quiet);
            let mine = dir >= SHARED || (name.starts_with(&own) && !name.contains(".g"));
            assert!(
                first || touched.contains(name) || !(mine || quiet),
                "{what}: {name} twice"
            );
            if !mine || touched.contains(name) {
                continue;
            }
            let id = children
                .get(name)
                .unwrap_or_else(|| panic!("{what}: shows {name}, which is not there"));
            self.check_entry(what, entry, *id);
        }
        for name in children.keys() {
            assert!(
                names.contains(name.as_str()) || touched.contains(name),
                "{what}: {name} is missing among {} entries",
                seen.len()
            );
        }
        if dir < SHARED {
            assert_eq!(keep, keeps(dir), "{what}: entries that nobody changes");
        }
    }

    fn check_entry(&self, what: &str, entry: &Entry, id: Id) {
        let inode = self.model.get(id);
        let kind = match inode.kind {
            Kind::File { .. } => FileType::RegularFile,
            Kind::Dir { .. } => FileType::Directory,
            Kind::Symlink { .. } => FileType::Symlink,
        };
        let name = &entry.name;
        assert!(
            entry.kind == kind || entry.kind == FileType::Unknown,
            "{what}: d_type of {name} is {:?}",
            entry.kind
        );
        if let Some(ino) = inode.ino
            && !self.orders.lax
        {
            assert_eq!(entry.ino, ino, "{what}: d_ino of {name} is not its st_ino");
        }
    }
}

/// Names whose object is not the same in both.
fn changed(a: &BTreeMap<String, Id>, b: &BTreeMap<String, Id>) -> Vec<String> {
    let differs = |name: &&String| a.get(*name) != b.get(*name);
    a.keys().chain(b.keys()).filter(differs).cloned().collect()
}
