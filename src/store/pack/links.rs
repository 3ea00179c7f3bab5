//! Hard links of lower files that were written through one of their names: `work/index` has the file that stands
//! in for all of them, and upper has only the names that were used.
//!
//! Their other names are found by looking at every file of the layers below that has several. That is done only
//! when the index has files at all. A file gets there also when one of its names is removed: as long as nothing was
//! written to it and no name in upper leads to it, its other names are those of the lower file still.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::attrs::{Attributes, Reader};
use super::merged::{At, Explorer, Found};
use super::{Failure, UpperLayers};
use crate::format::handle::OverlayHandle;
use crate::format::whiteout::is_whiteout_device;
use crate::sys::handle::{fs_uuid, name_to_handle_at};

/// Bytes that are compared at once.
const CHUNK: usize = 64 << 10;

/// An inode: device and number.
type Inode = (u64, u64);

/// What stands in for which lower files.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Names in `work/index`.
    by_inode: HashMap<Inode, Vec<u8>>,
    /// Names, by directory (with a slash at the end, or empty), which upper may lack, but whose files, or files
    /// below them, are stood in for.
    stand_ins: BTreeMap<Vec<u8>, BTreeSet<Vec<u8>>>,
}

/// One layer that is being searched.
struct Search<'a> {
    reader: &'a Reader<'a>,
    index: BorrowedFd<'a>,
    indexed: &'a BTreeSet<Vec<u8>>,
    uuid: [u8; 16],
    found: Vec<Name>,
}

/// A name of a lower file that another stands in for.
struct Name {
    inode: Inode,
    /// The name of that in `work/index`.
    hex: Vec<u8>,
    path: Vec<Vec<u8>>,
    /// What stands in for it differs, or has names in upper.
    is_changed: bool,
}

impl Links {
    pub(super) fn find(explorer: &Explorer<'_>, layers: &UpperLayers) -> Result<Links, Failure> {
        let mut links = Links::default();
        let Some(index) = &layers.index else {
            return Ok(links);
        };
        let indexed = files_of(index.as_fd())?;
        if indexed.is_empty() {
            return Ok(links);
        }
        for lower in &layers.lowers {
            let mut search = Search {
                reader: explorer.reader(),
                index: index.as_fd(),
                indexed: &indexed,
                uuid: fs_uuid(lower.as_fd())?.unwrap_or_default(),
                found: Vec::new(),
            };
            search.directory(lower.as_fd(), &mut Vec::new())?;
            for name in search.found {
                let path: Vec<&[u8]> = name.path.iter().map(Vec::as_slice).collect();
                if name.is_changed
                    && shows(explorer, &path, name.inode)?
                    && explorer.upper_lets_show(&path)?
                {
                    links.stand_in_at(&name.path);
                }
                links.by_inode.insert(name.inode, name.hex);
            }
        }
        Ok(links)
    }

    fn stand_in_at(&mut self, path: &[Vec<u8>]) {
        let mut dir = Vec::new();
        for name in path {
            let names = self.stand_ins.entry(dir.clone()).or_default();
            names.insert(name.clone());
            dir.extend_from_slice(name);
            dir.push(b'/');
        }
    }

    /// The name in `work/index` of what stands in for a lower file.
    pub(super) fn stand_in(&self, inode: Inode) -> Option<&[u8]> {
        self.by_inode.get(&inode).map(Vec::as_slice)
    }

    /// The names in a directory that have to be looked at although upper may lack them.
    pub(super) fn stand_ins_in(&self, dir: &[u8]) -> BTreeSet<Vec<u8>> {
        self.stand_ins.get(dir).cloned().unwrap_or_default()
    }
}

/// Whether the layers below show this very inode at a path.
fn shows(explorer: &Explorer<'_>, path: &[&[u8]], inode: Inode) -> Result<bool, Failure> {
    let Some((name, parents)) = path.split_last() else {
        return Ok(false);
    };
    let mut dirs = explorer.lowers().to_vec();
    for parent in parents {
        dirs = match explorer.find(&dirs, parent)? {
            Found::Dirs(dirs) => dirs,
            _ => return Ok(false),
        };
    }
    let Found::Leaf(dir) = explorer.find(&dirs, name)? else {
        return Ok(false);
    };
    let name = OsStr::from_bytes(name);
    let stat = rustix::fs::statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((stat.st_dev, stat.st_ino) == inode)
}

/// The entries of `work/index` that stand in for files: neither directories nor whiteouts.
fn files_of(index: BorrowedFd<'_>) -> Result<BTreeSet<Vec<u8>>, Failure> {
    let mut names = BTreeSet::new();
    crate::sys::dir::read_all(index, |entry| {
        if entry.name != "." && entry.name != ".." {
            names.insert(entry.name.as_bytes().to_vec());
        }
    })?;
    let mut files = BTreeSet::new();
    for name in names {
        let stat = rustix::fs::statat(index, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW)?;
        let (major, minor) = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if !is_dir && !is_whiteout_device(stat.st_mode, major, minor) {
            files.insert(name);
        }
    }
    Ok(files)
}

impl Search<'_> {
    fn directory(&mut self, dir: BorrowedFd<'_>, path: &mut Vec<Vec<u8>>) -> Result<(), Failure> {
        let mut names = Vec::new();
        crate::sys::dir::read_all(dir, |entry| {
            if entry.name != "." && entry.name != ".." {
                names.push(entry.name.as_bytes().to_vec());
            }
        })?;
        for name in names {
            let os_name = OsStr::from_bytes(&name);
            let stat = rustix::fs::statat(dir, os_name, AtFlags::SYMLINK_NOFOLLOW)?;
            if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = rustix::fs::openat(dir, os_name, flags, Mode::empty())?;
                path.push(name);
                self.directory(inner.as_fd(), path)?;
                path.pop();
                continue;
            }
            if stat.st_nlink < 2 {
                continue;
            }
            let Some(handle) = name_to_handle_at(dir, os_name)? else {
                continue;
            };
            let hex = OverlayHandle {
                uuid: self.uuid,
                handle_type: handle.handle_type,
                bytes: handle.bytes,
                is_upper: false,
            }
            .index_name()
            .into_bytes();
            if self.indexed.contains(&hex) {
                let is_changed = self.is_changed(&hex, (dir, &name))?;
                self.found.push(Name {
                    inode: (stat.st_dev, stat.st_ino),
                    hex,
                    path: path.iter().cloned().chain([name]).collect(),
                    is_changed,
                });
            }
        }
        Ok(())
    }

    fn is_changed(&self, hex: &[u8], lower: At<'_>) -> Result<bool, Failure> {
        let now = self.reader.read(self.index, hex)?;
        if now.stat.st_nlink > 1 {
            return Ok(true);
        }
        let before = self.reader.read(lower.0, lower.1)?;
        let of = |a: &Attributes| (a.file_type, a.mode, a.uid, a.gid, a.mtime, a.device);
        if of(&now) != of(&before) || now.xattrs != before.xattrs {
            return Ok(true);
        }
        match now.file_type {
            libc::S_IFREG if !now.metacopy => Ok(now.stat.st_size != before.stat.st_size
                || !has_same_content((self.index, hex), lower)?),
            libc::S_IFLNK => Ok(target(self.index, hex)? != target(lower.0, lower.1)?),
            _ => Ok(false),
        }
    }
}

fn target(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>, Failure> {
    let target = rustix::fs::readlinkat(dir, OsStr::from_bytes(name), Vec::new())?;
    Ok(target.into_bytes())
}

/// Whether two files of the same size have the same bytes.
fn has_same_content(one: At<'_>, other: At<'_>) -> Result<bool, Failure> {
    let open = |(dir, name): At<'_>| -> Result<_, Failure> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::empty())?;
        Ok(BufReader::with_capacity(CHUNK, File::from(file)))
    };
    let (mut one, mut other) = (open(one)?, open(other)?);
    loop {
        let (a, b) = (
            one.fill_buf().map_err(Failure::Read)?,
            other.fill_buf().map_err(Failure::Read)?,
        );
        let common = a.len().min(b.len());
        if common == 0 {
            return Ok(a.len() == b.len());
        }
        if a.get(..common) != b.get(..common) {
            return Ok(false);
        }
        one.consume(common);
        other.consume(common);
    }
}
