//! Puts layers on disk, and makes the plain copy of a merged tree.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, XattrFlags};

use super::calls::timestamps;
use super::model::{B, Entry, Ext, Node, T, Tm, pattern};
use super::tree::{self, Attr};

/// An error that says what was done to which path.
pub type Made<X> = Result<X, String>;

fn at<X, E: std::fmt::Display>(what: &str, path: &Path, result: Result<X, E>) -> Made<X> {
    result.map_err(|error| format!("{what} {}: {error}", path.display()))
}

fn join(root: &Path, path: &[u8]) -> PathBuf {
    root.join(std::ffi::OsStr::from_bytes(path))
}

/// Makes a layer in the new directory `root`.
pub fn make(root: &Path, entries: &[Entry]) -> Made<()> {
    at("mkdir", root, fs::create_dir(root))?;
    for entry in entries.iter().filter(|entry| !entry.path.is_empty()) {
        at("make", &join(root, &entry.path), node(root, entry))?;
    }
    for entry in entries
        .iter()
        .filter(|entry| !matches!(entry.node, Node::Whiteout | Node::Link(_)))
    {
        let path = join(root, &entry.path);
        at("attributes of", &path, attributes(&path, entry))?;
    }
    // Directories after what is in them: deepest first.
    for entry in entries.iter().rev() {
        let path = join(root, &entry.path);
        at("times of", &path, set_times(&path, entry.mtime))?;
    }
    Ok(())
}

fn node(root: &Path, entry: &Entry) -> io::Result<()> {
    let path = join(root, &entry.path);
    let mode = Mode::from_raw_mode(0o600);
    let device = |kind, major, minor| {
        rustix::fs::mknodat(CWD, &path, kind, mode, rustix::fs::makedev(major, minor))
            .map_err(io::Error::from)
    };
    match &entry.node {
        Node::Dir => fs::create_dir(&path),
        Node::Opaque => {
            fs::create_dir(&path)?;
            Ok(rustix::fs::lsetxattr(
                &path,
                "trusted.overlay.opaque",
                b"y",
                XattrFlags::empty(),
            )?)
        }
        Node::File(size, extents) => {
            let file = fs::File::create_new(&path)?;
            for Ext(off, len, seed) in &extents.0 {
                file.write_all_at(&pattern(*seed, *len as usize), *off)?;
            }
            file.set_len(*size)
        }
        Node::Symlink(target) => Ok(rustix::fs::symlinkat(&target[..], CWD, &path)?),
        Node::Fifo => device(FileType::Fifo, 0, 0),
        Node::Sock => device(FileType::Socket, 0, 0),
        Node::Chr(major, minor) => device(FileType::CharacterDevice, *major, *minor),
        Node::Blk(major, minor) => device(FileType::BlockDevice, *major, *minor),
        Node::Whiteout => device(FileType::CharacterDevice, 0, 0),
        Node::Link(first) => fs::hard_link(join(root, first), &path),
    }
}

fn attributes(path: &Path, entry: &Entry) -> io::Result<()> {
    own(path, entry.uid, entry.gid)?;
    if !matches!(entry.node, Node::Symlink(_)) {
        rustix::fs::chmodat(
            CWD,
            path,
            Mode::from_raw_mode(entry.mode.0),
            AtFlags::empty(),
        )?;
    }
    for (name, value) in &entry.xattrs.0 {
        rustix::fs::lsetxattr(path, &name[..], value, XattrFlags::empty())?;
    }
    Ok(())
}

fn own(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    Ok(rustix::fs::chownat(
        CWD,
        path,
        uid,
        gid,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Sets both times, also of a symlink.
pub fn set_times(path: &Path, time: T) -> io::Result<()> {
    let times = timestamps(Tm::At(T(time.0 + 1, time.1)), Tm::At(time));
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Copies the tree `from` with everything that can be seen of it to the new directory `to`.
/// Names of a link group that `from` does not show get a stand-in in the new directory `hidden`,
/// so that link counts agree.
pub fn copy(from: &Path, to: &Path, hidden: &Path) -> Made<()> {
    at("mkdir", hidden, fs::create_dir(hidden))?;
    at("mkdir", to, fs::create_dir(to))?;
    let mut copier = Copier {
        hidden: hidden.to_path_buf(),
        groups: HashMap::new(),
    };
    copier.directory(from, to)?;
    for group in copier.groups.values() {
        for extra in group.seen..group.nlink {
            let name = copier.hidden.join(format!("{}.{extra}", group.number));
            at("link", &name, fs::hard_link(&group.first, &name))?;
        }
    }
    Ok(())
}

struct Group {
    first: PathBuf,
    seen: u32,
    nlink: u32,
    number: usize,
}

struct Copier {
    hidden: PathBuf,
    groups: HashMap<(u64, (u32, u32)), Group>,
}

impl Copier {
    fn directory(&mut self, from: &Path, to: &Path) -> Made<()> {
        let mut names = Vec::new();
        for entry in at("list", from, fs::read_dir(from))? {
            names.push(at("list", from, entry)?.file_name());
        }
        names.sort();
        for name in names {
            self.object(&from.join(&name), &to.join(&name))?;
        }
        let attr = at(
            "stat",
            from,
            tree::stat(CWD, from.as_os_str().as_bytes(), 0, false),
        )?;
        self.attributes(from, to, &attr)
    }

    fn object(&mut self, from: &Path, to: &Path) -> Made<()> {
        let attr = at(
            "stat",
            from,
            tree::stat(CWD, from.as_os_str().as_bytes(), 0, false),
        )?;
        if attr.kind == FileType::Directory {
            at("mkdir", to, fs::create_dir(to))?;
            return self.directory(from, to);
        }
        let number = self.groups.len();
        if let Some(group) = self.groups.get_mut(&(attr.id.0, attr.dev)) {
            group.seen += 1;
            return at("link", to, fs::hard_link(&group.first, to));
        }
        if attr.nlink > 1 {
            let group = Group {
                first: to.to_path_buf(),
                seen: 1,
                nlink: attr.nlink,
                number,
            };
            self.groups.insert((attr.id.0, attr.dev), group);
        }
        at("copy", from, node_copy(from, to, &attr))?;
        self.attributes(from, to, &attr)
    }

    fn attributes(&self, from: &Path, to: &Path, attr: &Attr) -> Made<()> {
        at("chown", to, own(to, attr.uid, attr.gid))?;
        if attr.kind != FileType::Symlink {
            let mode = Mode::from_raw_mode(attr.mode);
            at(
                "chmod",
                to,
                rustix::fs::chmodat(CWD, to, mode, AtFlags::empty()),
            )?;
        }
        for (name, value) in at("xattrs of", from, tree::xattrs(from.as_os_str().as_bytes()))? {
            at(
                "setxattr",
                to,
                rustix::fs::lsetxattr(to, &name[..], &value, XattrFlags::empty()),
            )?;
        }
        at("times of", to, set_times(to, attr.mtime))
    }
}

fn node_copy(from: &Path, to: &Path, attr: &Attr) -> io::Result<()> {
    match attr.kind {
        FileType::Symlink => {
            let target = fs::read_link(from)?;
            Ok(rustix::fs::symlinkat(target.as_os_str(), CWD, to)?)
        }
        FileType::RegularFile => {
            let bytes = fs::read(from)?;
            let file = fs::File::create_new(to)?;
            for (i, block) in bytes.chunks(4096).enumerate() {
                if block.iter().any(|byte| *byte != 0) {
                    file.write_all_at(block, i as u64 * 4096)?;
                }
            }
            file.set_len(attr.size)
        }
        kind => {
            let device = rustix::fs::makedev(attr.rdev.0, attr.rdev.1);
            Ok(rustix::fs::mknodat(
                CWD,
                to,
                kind,
                Mode::from_raw_mode(0o600),
                device,
            )?)
        }
    }
}

/// Replaces every mtime of `root` that the system has set since `t0` by one that follows from the
/// path, so that two trees made by the same operations agree. Returns the number replaced.
pub fn pin_times(root: &Path, t0: i64) -> Made<usize> {
    let mut replaced = 0;
    // Setting the time of an entry does not change its directory's; order does not matter.
    for (path, time) in recent(root, t0, &B(Vec::new()))? {
        let full = join(root, &path);
        at("times of", &full, set_times(&full, time))?;
        replaced += 1;
    }
    Ok(replaced)
}

fn recent(root: &Path, t0: i64, path: &B) -> Made<Vec<(B, T)>> {
    let full = join(root, path);
    let attr = at(
        "stat",
        &full,
        tree::stat(CWD, full.as_os_str().as_bytes(), t0, false),
    )?;
    let mut out = Vec::new();
    if attr.when == tree::When::Recent {
        let sum = path.iter().fold(7u32, |sum, c| {
            sum.wrapping_mul(31).wrapping_add(u32::from(*c))
        });
        out.push((
            path.clone(),
            T(
                1_000_000_000 + i64::from(sum % 100_000),
                sum % 1_000_000_000,
            ),
        ));
    }
    if attr.kind == FileType::Directory {
        for entry in at("list", &full, fs::read_dir(&full))? {
            let name = at("list", &full, entry)?.file_name();
            let mut below = path.0.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(name.as_bytes());
            out.extend(recent(root, t0, &B(below))?);
        }
    }
    Ok(out)
}

/// The value of a POSIX ACL xattr: owner, named user, group, mask, other.
pub fn acl(owner: u16, user: (u32, u16), group: u16, mask: u16, other: u16) -> B {
    let mut out = 2u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, perm, id) in [
        (0x01u16, owner, none),
        (0x02, user.1, user.0),
        (0x04, group, none),
        (0x10, mask, none),
        (0x20, other, none),
    ] {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&perm.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    B(out)
}

/// The value of `security.capability`: cap_net_raw, permitted and effective.
pub fn capability() -> B {
    let mut out = 0x0200_0001u32.to_le_bytes().to_vec();
    for word in [1u32 << 13, 0, 0, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    B(out)
}

/// Gives the root of an upper the attributes that a layer's root has.
pub fn root_attributes(upper: &Path, root: &Entry) -> Made<()> {
    at("attributes of", upper, attributes(upper, root))?;
    at("times of", upper, set_times(upper, root.mtime))
}
