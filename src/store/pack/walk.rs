//! The walk over the tree.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags};

use super::attrs::{Attributes, Reader};
use super::output::Output;
use super::{Failure, Options, PackError, PackProblem, Summary};
use crate::format::whiteout::{AufsName, OPAQUE_MARK, classify, whiteout_name};
use crate::store::codec::digest::DiffId;
use crate::store::codec::tar::{Entry, EntryKind, Time};

/// The state of a packing.
pub(super) struct Walk<'a, 'r, W> {
    options: &'a Options,
    pub(super) reader: Reader<'a>,
    output: Output<'r, W>,
    /// The first name of every file with more than one.
    links: HashMap<(u64, u64), Vec<u8>>,
    bytes: u64,
    sockets: u64,
}

/// A directory that is being packed.
struct Level {
    fd: OwnedFd,
    /// Its path, with a slash at the end unless it is the root.
    path: Vec<u8>,
    opaque: bool,
    xattr_whiteouts: bool,
}

/// A name in the archive, and what it comes from.
enum Child {
    Object(Vec<u8>),
    Whiteout,
}

impl<'a, 'r, W: Write> Walk<'a, 'r, W> {
    pub(super) fn new(options: &'a Options, output: Output<'r, W>) -> Walk<'a, 'r, W> {
        Walk {
            options,
            reader: Reader::new(options),
            output,
            links: HashMap::new(),
            bytes: 0,
            sockets: 0,
        }
    }

    pub(super) fn root(&mut self, root: BorrowedFd<'_>) -> Result<(), PackError> {
        let at = |failure: Failure| failure.at(b"/");
        let attributes = self.reader.read_whole(root, b"").map_err(at)?;
        self.directory(root, b".", b"./", attributes)
    }

    pub(super) fn finish(self) -> Result<Summary, PackError> {
        let entries = self.output.entries;
        let (digest, tar_bytes) = self.output.finish().map_err(PackError::Write)?;
        Ok(Summary {
            diff_id: DiffId(digest),
            tar_bytes,
            entries,
            bytes: self.bytes,
            sockets: self.sockets,
        })
    }

    /// Packs `name` of `parent` and what is in it; `path` ends with a slash.
    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        attributes: Attributes,
    ) -> Result<(), PackError> {
        let at = |failure: Failure| failure.at(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, OsStr::from_bytes(name), flags, Mode::empty());
        let fd = fd.map_err(|e| at(e.into()))?;
        let mut level = Level {
            fd,
            path: if path == b"./" {
                Vec::new()
            } else {
                path.to_vec()
            },
            opaque: attributes.opaque,
            xattr_whiteouts: attributes.may_hold_xattr_whiteouts,
        };
        let entry = entry(path, EntryKind::Dir, &attributes, 0);
        self.output.entry(&entry, None).map_err(at)?;
        let children = self.children(&mut level).map_err(at)?;
        if level.opaque {
            let mark = [&level.path, OPAQUE_MARK].concat();
            self.output.entry(&whiteout_entry(mark), None).map_err(at)?;
        }
        for (name, child) in children {
            let path = [&level.path, name.as_slice()].concat();
            match child {
                // What an opaque directory hides needs no more hiding.
                Child::Whiteout if level.opaque => {}
                Child::Whiteout => {
                    let entry = whiteout_entry(path.clone());
                    self.output.entry(&entry, None).map_err(|f| f.at(&path))?;
                }
                Child::Object(name) => self.object(&level, &name, &path)?,
            }
        }
        Ok(())
    }

    /// The names of a directory in the archive, sorted; marks the level opaque where a file says so.
    fn children(&self, level: &mut Level) -> Result<Vec<(Vec<u8>, Child)>, Failure> {
        let mut names = Vec::new();
        crate::sys::dir::read_all(level.fd.as_fd(), |entry| {
            if entry.name != "." && entry.name != ".." {
                names.push(entry.name.as_bytes().to_vec());
            }
        })?;
        let mut children = Vec::with_capacity(names.len());
        for name in names {
            match (
                classify(OsStr::from_bytes(&name)),
                self.options.aufs_whiteouts,
            ) {
                (AufsName::Plain, _) => children.push((name.clone(), Child::Object(name))),
                (AufsName::Hides(_), true) => children.push((name, Child::Whiteout)),
                (AufsName::Opaque, true) => level.opaque = true,
                (AufsName::Reserved, true) if name.starts_with(b".wh..wh.") => {}
                _ => return Err(PackProblem::WhiteoutName.into()),
            }
        }
        for (name, child) in &mut children {
            let Child::Object(on_disk) = child else {
                continue;
            };
            if self
                .reader
                .is_whiteout(level.fd.as_fd(), on_disk, level.xattr_whiteouts)?
            {
                let hiding = whiteout_name(OsStr::from_bytes(on_disk));
                *name = hiding.ok_or(PackProblem::LongWhiteout)?.to_vec();
                *child = Child::Whiteout;
            }
        }
        children.sort_by(|(a, _), (b, _)| a.cmp(b));
        children.dedup_by(|(a, _), (b, _)| a == b);
        Ok(children)
    }

    fn object(&mut self, level: &Level, name: &[u8], path: &[u8]) -> Result<(), PackError> {
        let dir = level.fd.as_fd();
        let at = |failure: Failure| failure.at(path);
        let attributes = self.reader.read_whole(dir, name).map_err(at)?;
        if attributes.file_type == libc::S_IFDIR {
            let path = [path, b"/"].concat();
            return self.directory(dir, name, &path, attributes);
        }
        self.leaf((dir, name), (dir, name), path, &attributes)
            .map_err(at)
    }

    /// Packs what is no directory. Its data may be elsewhere.
    pub(super) fn leaf(
        &mut self,
        (dir, name): (BorrowedFd<'_>, &[u8]),
        data: (BorrowedFd<'_>, &[u8]),
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Failure> {
        let stat = &attributes.stat;
        if attributes.file_type == libc::S_IFSOCK {
            self.sockets += 1;
            return Ok(());
        }
        if stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&id) {
                let kind = EntryKind::HardLink(first.clone());
                let mut link = entry(path, kind, attributes, 0);
                link.xattrs.clear();
                return self.output.entry(&link, None);
            }
            self.links.insert(id, path.to_vec());
        }
        let (major, minor) = attributes.device;
        let kind = match attributes.file_type {
            libc::S_IFREG => return self.file(data, path, attributes),
            libc::S_IFLNK => EntryKind::Symlink(link_target(dir, name, attributes)?),
            libc::S_IFCHR => EntryKind::Char { major, minor },
            libc::S_IFBLK => EntryKind::Block { major, minor },
            libc::S_IFIFO => EntryKind::Fifo,
            _ => return Err(PackProblem::OverrideStat.into()),
        };
        self.output.entry(&entry(path, kind, attributes, 0), None)
    }

    fn file(
        &mut self,
        (dir, name): (BorrowedFd<'_>, &[u8]),
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Failure> {
        let mut file = open_file(dir, name)?;
        let before = rustix::fs::fstat(&file)?;
        if attributes.metacopy && before.st_size != attributes.stat.st_size {
            return Err(PackProblem::Metacopy.into());
        }
        let size = u64::try_from(attributes.stat.st_size).unwrap_or_default();
        let entry = entry(path, EntryKind::File, attributes, size);
        if self.options.live {
            let mut body = Padded { file, left: size };
            self.output.entry(&entry, Some(&mut body))?;
            self.bytes += size;
            return Ok(());
        }
        self.output.entry(&entry, Some(&mut file))?;
        let after = rustix::fs::fstat(&file)?;
        let times = |stat: &rustix::fs::Stat| (stat.st_ino, stat.st_mtime, stat.st_mtime_nsec);
        let looked_at = if attributes.metacopy {
            times(&before)
        } else {
            times(&attributes.stat)
        };
        if times(&after) != looked_at {
            return Err(PackProblem::Changed.into());
        }
        self.bytes += size;
        Ok(())
    }

    /// Writes the entry of a directory; `path` ends with a slash.
    pub(super) fn directory_entry(
        &mut self,
        path: &[u8],
        attributes: &Attributes,
    ) -> Result<(), Failure> {
        let entry = entry(path, EntryKind::Dir, attributes, 0);
        self.output.entry(&entry, None)
    }

    /// Writes the mark that hides what the layers below have in a directory; `dir` ends with a slash, or is empty.
    pub(super) fn opaque_mark(&mut self, dir: &[u8]) -> Result<(), Failure> {
        let mark = [dir, OPAQUE_MARK].concat();
        self.output.entry(&whiteout_entry(mark), None)
    }

    /// Writes the file that hides `name` of a directory.
    pub(super) fn whiteout(&mut self, dir: &[u8], name: &[u8]) -> Result<(), Failure> {
        let hiding = whiteout_name(OsStr::from_bytes(name)).ok_or(PackProblem::LongWhiteout)?;
        let path = [dir, hiding.as_slice()].concat();
        self.output.entry(&whiteout_entry(path), None)
    }
}

/// A file that somebody may be writing: exactly so many bytes, zeros where it has become shorter.
struct Padded {
    file: File,
    left: u64,
}

impl Read for Padded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = buffer.len().min(most);
        let wanted = buffer.get_mut(..length).unwrap_or_default();
        let mut read = self.file.read(wanted)?;
        if read == 0 {
            wanted.fill(0);
            read = wanted.len();
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> Result<File, Failure> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let name = OsStr::from_bytes(name);
    Ok(File::from(rustix::fs::openat(
        dir,
        name,
        flags,
        Mode::empty(),
    )?))
}

/// A symlink's target; that of a file which stands for one is its content.
fn link_target(
    dir: BorrowedFd<'_>,
    name: &[u8],
    attributes: &Attributes,
) -> Result<Vec<u8>, Failure> {
    if attributes.stat.st_mode & libc::S_IFMT == libc::S_IFLNK {
        let target = rustix::fs::readlinkat(dir, OsStr::from_bytes(name), Vec::new())?;
        return Ok(target.into_bytes());
    }
    let mut target = Vec::new();
    let file = open_file(dir, name)?;
    file.take(4096)
        .read_to_end(&mut target)
        .map_err(Failure::Read)?;
    Ok(target)
}

fn entry(path: &[u8], kind: EntryKind, attributes: &Attributes, size: u64) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: attributes.mtime,
        atime: None,
        size,
        stored: size,
        xattrs: attributes.xattrs.clone(),
        sparse: None,
    }
}

fn whiteout_entry(path: Vec<u8>) -> Entry {
    Entry {
        path,
        kind: EntryKind::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        atime: None,
        size: 0,
        stored: 0,
        xattrs: Vec::new(),
        sparse: None,
    }
}
