//! The reverse of unpacking: whether a tree is what its archive makes.
//!
//! The archive is put together again from the tree and written into a [`Checker`], which holds every entry against
//! what is there (type, owner, mode, time, extended attributes, link targets, devices, what is in sparse files and
//! what is not), and then looks for what the archive doesn't have.
//!
//! Invariant: what is as it should be is never reported. So nothing is said where the one who unpacked had a choice,
//! or Docker (which writes such layers too) does otherwise: of owners and capabilities unless the layer is root's
//! and so is this process; of modes beside an ACL; of times that a file system may have rounded or can't hold; of
//! access times; of directories that no entry describes; of attributes that rovl leaves out or escapes; of archives
//! that rovl's parser refuses.

mod object;
mod sparse;

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::path::{CleanPath, Meaning, meaning};
use super::shown;
use super::tree::{Dir, Key, Seen, Tree};
use crate::format::keys::{Namespace, OverlayKey};
use crate::format::whiteout::{OPAQUE_MARK, is_whiteout_device, whiteout_name};
use crate::store::codec::budget::Budgets;
use crate::store::codec::tar::{Entry, EntryKind, Parser, Step};
use crate::sys::process::has_cap_sys_admin_in_init_ns;
use crate::sys::xattr::get_at;
use object::Found;
use sparse::SparseCheck;

/// Differences that are kept; more are only counted.
const KEPT: usize = 1000;

/// What is wrong with a tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// The first of them, by place: the path, and what is wrong.
    pub first: Vec<String>,
    /// How many there are.
    pub count: usize,
}

/// What is wrong at one place.
#[derive(Debug)]
struct Fault {
    what: String,
    /// Whether it is owner, mode or time, which a hard link's entry may give as well.
    of_attributes: bool,
}

/// Holds a tree against an archive that is written into it, uncompressed. Writing never fails.
#[derive(Debug)]
pub struct Checker {
    parser: Option<Parser>,
    tree: Tree,
    /// Whether owners, capabilities and opaque marks can be seen as they are, and were given as the archive has them.
    strict: bool,
    /// Whether the process owns the layer, so that modes and times are as it would have made them.
    owned: bool,
    /// Where an ACL may have come from a directory.
    default_acls: bool,
    faults: BTreeMap<Key, Fault>,
    count: usize,
    /// Directories whose own path is known to be of the archive.
    parents: HashSet<Vec<u8>>,
    whiteouts: Vec<(Vec<u8>, Vec<u8>)>,
    opaque: Vec<Vec<u8>>,
    /// Of the current entry.
    sparse: Option<(Key, Vec<u8>, SparseCheck)>,
    left: u64,
}

impl Checker {
    /// For the tree at `root`. `owner` is that of the layer's directory.
    ///
    /// # Errors
    /// When the root can't be read.
    pub fn new(root: BorrowedFd<'_>, owner: u32) -> io::Result<Checker> {
        let owned = owner == rustix::process::geteuid().as_raw();
        Ok(Checker {
            parser: Some(Parser::new(&Budgets::trusted())),
            tree: Tree::new(root)?,
            strict: owned && owner == 0 && has_cap_sys_admin_in_init_ns(),
            owned,
            default_acls: false,
            faults: BTreeMap::new(),
            count: 0,
            parents: HashSet::new(),
            whiteouts: Vec::new(),
            opaque: Vec::new(),
            sparse: None,
            left: 0,
        })
    }

    /// What was found, once the whole archive was written.
    ///
    /// # Errors
    /// When a directory can't be read.
    pub fn finish(mut self) -> io::Result<Differences> {
        let Some(parser) = self.parser.take() else {
            return Ok(Differences::default());
        };
        if parser.finish().is_err() {
            return Ok(Differences::default());
        }
        let opaque = std::mem::take(&mut self.opaque);
        let marked = self.inos_of(&opaque);
        let hidden_dirs = self.check_whiteouts(&marked)?;
        self.walk(&marked, &hidden_dirs)?;
        let mut first: Vec<String> = self.faults.into_values().map(|fault| fault.what).collect();
        first.sort();
        Ok(Differences {
            first,
            count: self.count,
        })
    }

    /// The archive can't be followed: nothing is said then.
    fn give_up(&mut self) {
        self.parser = None;
        self.sparse = None;
    }

    fn note(&mut self, key: Key, what: String) {
        if let Some(fault) = Fault::new(what) {
            self.insert(key, fault);
        }
    }

    fn insert(&mut self, key: Key, fault: Fault) {
        let is_new = !self.faults.contains_key(&key);
        self.count += usize::from(is_new);
        if !is_new || self.faults.len() < KEPT {
            self.faults.insert(key, fault);
        }
    }

    fn withdraw(&mut self, key: &Key) {
        if self.faults.remove(key).is_some() {
            self.count -= 1;
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let Some(parser) = &mut self.parser else {
                return;
            };
            let Ok((taken, step)) = parser.advance(rest) else {
                return self.give_up();
            };
            // Headers are of no use here.
            drop(parser.take_raw());
            match step {
                Step::Entry(entry) => match self.entry(*entry) {
                    Ok(()) => {}
                    Err(_) => return self.give_up(),
                },
                Step::Body(n) => self.body(rest.get(..n).unwrap_or_default()),
                Step::More | Step::Trailing(_) => {}
            }
            at += taken;
        }
    }

    fn body(&mut self, bytes: &[u8]) {
        if let Some((_, _, sparse)) = &mut self.sparse {
            sparse.body(bytes);
        }
        self.left = self.left.saturating_sub(bytes.len() as u64);
        if self.left == 0 {
            self.end_of_body();
        }
    }

    fn end_of_body(&mut self) {
        if let Some((key, path, sparse)) = self.sparse.take()
            && !sparse.is_as_recorded()
        {
            self.note(key, format!("{}: its content is another one", shown(&path)));
        }
    }

    /// An error: the entry is none that a layer can have.
    fn entry(&mut self, entry: Entry) -> Result<(), super::EntryProblem> {
        let path = CleanPath::new(&entry.path, usize::MAX)?;
        let (parent, name) = path.split();
        self.left = entry.stored;
        match meaning(&path)? {
            Meaning::Ignored => {}
            Meaning::Opaque => {
                self.know(parent);
                self.opaque.push(parent.to_vec());
            }
            Meaning::Hides(hidden) => {
                self.know(parent);
                self.whiteouts.push((parent.to_vec(), hidden.to_vec()));
            }
            Meaning::Object => {
                self.know(parent);
                self.object(&path, parent, name, &entry);
            }
        }
        if entry.stored == 0 {
            self.end_of_body();
        }
        Ok(())
    }

    fn object(&mut self, path: &CleanPath, parent: &[u8], name: &[u8], entry: &Entry) {
        self.default_acls |= entry
            .xattrs
            .iter()
            .any(|(name, _)| name == b"system.posix_acl_default");
        let Ok(dir) = self.tree.existing(parent) else {
            let root = self.tree.root();
            let key = self.tree.key(&root, path.as_bytes());
            return self.note(key, format!("{}: it is not there", shown(&entry.path)));
        };
        let key = self.tree.key(&dir, name);
        let is_dir = entry.kind == EntryKind::Dir;
        let seen = if is_dir { Seen::Dir(0) } else { Seen::Other };
        self.tree.see(key, seen);
        // The last entry for a place decides.
        self.withdraw(&key);
        if entry.sparse.is_some() {
            let check = SparseCheck::new(&dir, name, entry);
            self.sparse = check.map(|check| (key, entry.path.clone(), check));
        }
        let fault = match &entry.kind {
            EntryKind::HardLink(target) => self.link_fault(&dir, name, entry, target),
            _ => self.object_fault(&dir, name, entry),
        };
        let fault = fault.unwrap_or_else(|errno| Fault::new(io::Error::from(errno).to_string()));
        if let Some(fault) = fault {
            let what = format!("{}: {}", shown(&entry.path), fault.what);
            self.insert(key, Fault { what, ..fault });
        }
    }

    /// A hard link's attributes count only where they excuse what its target has: Docker gives them to both.
    fn link_fault(
        &mut self,
        dir: &Dir,
        name: &[u8],
        entry: &Entry,
        target: &[u8],
    ) -> Result<Option<Fault>, Errno> {
        // Links that AUFS kept for itself: Docker knows them.
        let path = CleanPath::new(target, usize::MAX);
        if path.is_ok_and(|path| meaning(&path) == Ok(Meaning::Ignored)) {
            return Ok(None);
        }
        let found = Found::at(dir, name)?;
        let target = self.target(target);
        let Some((found, (key, target))) = found.zip(target) else {
            return Ok(Fault::new("it, or what it is a link to, is not there"));
        };
        if target.map(|target| target.st_ino) != Some(found.ino()) {
            return Ok(Fault::new("it is no link to what the archive says"));
        }
        let is_excused = self
            .faults
            .get(&key)
            .is_some_and(|fault| fault.of_attributes);
        if is_excused && self.attribute_fault(&found, entry)?.is_none() {
            self.withdraw(&key);
        }
        Ok(None)
    }

    /// A hard link's target: its place and what is there.
    fn target(&mut self, target: &[u8]) -> Option<(Key, Option<Stat>)> {
        let path = CleanPath::new(target, usize::MAX).ok()?;
        let (parent, name) = path.split();
        let dir = self.tree.existing(parent).ok()?;
        let stat = rustix::fs::statat(&*dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW);
        Some((self.tree.key(&dir, name), stat.ok()))
    }

    /// Notes that the archive makes this directory and those above it.
    fn know(&mut self, path: &[u8]) {
        let mut path = path;
        while !path.is_empty() && self.parents.insert(path.to_vec()) {
            let at = path.iter().rposition(|byte| *byte == b'/');
            let (parent, name) = match at {
                Some(at) => (
                    path.get(..at).unwrap_or_default(),
                    path.get(at + 1..).unwrap_or_default(),
                ),
                None => (&b""[..], path),
            };
            if let Ok(dir) = self.tree.existing(parent) {
                let key = self.tree.key(&dir, name);
                if self.tree.seen(&key).is_none() {
                    self.tree.see(key, Seen::Implied(0));
                }
            }
            path = parent;
        }
    }

    fn inos_of(&mut self, paths: &[Vec<u8>]) -> HashSet<u64> {
        paths
            .iter()
            .filter_map(|path| self.tree.existing(path).ok().map(|dir| dir.ino()))
            .collect()
    }

    /// Looks for what hides what, and gives the directories that whiteouts make opaque.
    fn check_whiteouts(&mut self, marked: &HashSet<u64>) -> io::Result<HashSet<u64>> {
        let mut hidden_dirs = HashSet::new();
        for (parent, hidden) in std::mem::take(&mut self.whiteouts) {
            // Where a file is now there was nothing to be hidden.
            let Ok(dir) = self.tree.existing(&parent) else {
                continue;
            };
            let key = self.tree.key(&dir, &hidden);
            if self.tree.seen(&key).is_some() {
                if let Ok(dir) = self.tree.existing(&join(&parent, &hidden)) {
                    hidden_dirs.insert(dir.ino());
                }
                continue;
            }
            self.tree.see(key, Seen::Other);
            let aufs = whiteout_name(OsStr::from_bytes(&hidden));
            if let Some(name) = &aufs {
                let key = self.tree.key(&dir, name);
                self.tree.see(key, Seen::Other);
            }
            let is_there = is_whiteout(&dir, &hidden)?
                || aufs.is_some_and(|name| matches!(stat_at(&dir, &name), Ok(Some(_))));
            // In an opaque directory it may have been left out.
            if !is_there && !marked.contains(&dir.ino()) && !is_opaque(&dir)? {
                let path = join(&parent, &hidden);
                self.note(key, format!("{}: it is hidden no longer", shown(&path)));
            }
        }
        Ok(hidden_dirs)
    }

    /// Looks at all that is there: what the archive doesn't have, and directories that hide what they shouldn't.
    fn walk(&mut self, marked: &HashSet<u64>, hidden_dirs: &HashSet<u64>) -> io::Result<()> {
        let mut todo = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            let dir = match self.tree.existing(&path) {
                Err(Errno::NAMETOOLONG | Errno::NOENT) => continue,
                other => other?,
            };
            if let Some(what) = self.directory_fault(&dir, marked, hidden_dirs)? {
                let key = self.tree.key(&dir, b"");
                self.note(key, format!("{}: {what}", shown(&path)));
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let listed = rustix::fs::openat(&*dir, c".", flags, Mode::empty())?;
            let mut names = Vec::new();
            crate::sys::dir::read_all(listed.as_fd(), |entry| {
                if entry.name != "." && entry.name != ".." && entry.name.as_bytes() != OPAQUE_MARK {
                    names.push(entry.name.as_bytes().to_vec());
                }
            })?;
            for name in names {
                let child = join(&path, &name);
                let key = self.tree.key(&dir, &name);
                match self.tree.seen(&key) {
                    Some(Seen::Dir(_) | Seen::Implied(_)) => {
                        let stat = stat_at(&dir, &name)?;
                        if stat.is_some_and(|stat| kind_of(&stat) == FileType::Directory) {
                            todo.push(child);
                        }
                    }
                    Some(_) => {}
                    None => self.note(key, format!("{}: no archive brought it", shown(&child))),
                }
            }
        }
        Ok(())
    }

    /// What an overlay's own marks say that the archive doesn't, or the other way round.
    fn directory_fault(
        &self,
        dir: &Dir,
        marked: &HashSet<u64>,
        hidden_dirs: &HashSet<u64>,
    ) -> io::Result<Option<&'static str>> {
        let is_marked = marked.contains(&dir.ino());
        if is_marked && self.strict && !is_opaque(dir)? {
            return Ok(Some("it doesn't hide what is below"));
        }
        // In the other namespace they are attributes like others.
        let value = |key| get_at(dir.as_fd(), OsStr::new(""), self.namespace().key(key));
        let is_opaque = value(OverlayKey::Opaque)?.is_some_and(|value| value == b"y");
        if is_opaque && !is_marked && !hidden_dirs.contains(&dir.ino()) {
            return Ok(Some(
                "it hides what is below, which the archive doesn't say",
            ));
        }
        let redirect = value(OverlayKey::Redirect)?;
        Ok(redirect.map(|_| "it shows another directory (overlay.redirect)"))
    }

    /// Where this process sees the marks of overlays.
    fn namespace(&self) -> Namespace {
        match self.strict {
            true => Namespace::Trusted,
            false => Namespace::User,
        }
    }
}

impl Fault {
    /// A fault of more than attributes.
    fn new(what: impl Into<String>) -> Option<Fault> {
        Some(Fault {
            what: what.into(),
            of_attributes: false,
        })
    }
}

impl Write for Checker {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.feed(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if parent.is_empty() { b"" } else { b"/" };
    [parent, separator, name].concat()
}

fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn stat_at(dir: &Dir, name: &[u8]) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The value of one of the overlay's attributes, in either namespace.
fn overlay_value(dir: &Dir, name: &[u8], key: OverlayKey) -> io::Result<Option<Vec<u8>>> {
    for namespace in [Namespace::Trusted, Namespace::User] {
        let value = get_at(dir.as_fd(), OsStr::from_bytes(name), namespace.key(key))?;
        if value.is_some() {
            return Ok(value);
        }
    }
    Ok(None)
}

fn is_whiteout(dir: &Dir, name: &[u8]) -> io::Result<bool> {
    let Some(stat) = stat_at(dir, name)? else {
        return Ok(false);
    };
    let (major, minor) = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    if is_whiteout_device(stat.st_mode, major, minor) {
        return Ok(true);
    }
    let is_file = kind_of(&stat) == FileType::RegularFile;
    Ok(is_file && overlay_value(dir, name, OverlayKey::Whiteout)?.is_some())
}

/// Whether a directory hides those below, in whatever form.
fn is_opaque(dir: &Dir) -> io::Result<bool> {
    let value = overlay_value(dir, b"", OverlayKey::Opaque)?;
    Ok(value.as_deref() == Some(b"y") || stat_at(dir, OPAQUE_MARK)?.is_some())
}
