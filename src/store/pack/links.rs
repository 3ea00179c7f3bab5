//! Hard links of lower files that were written through one of their names: `work/index` has the file that stands
//! in for all of them, and upper has only the names that were used.
//!
//! Their other names are found by looking at every file of the layers below that has several. That is done only
//! when the index has files at all.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::merged::{Explorer, Found};
use super::{Failure, UpperLayers};
use crate::format::handle::OverlayHandle;
use crate::format::whiteout::is_whiteout_device;
use crate::sys::handle::{fs_uuid, name_to_handle_at};

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
    indexed: &'a BTreeSet<Vec<u8>>,
    uuid: [u8; 16],
    found: Vec<(Inode, Vec<u8>, Vec<Vec<u8>>)>,
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
                indexed: &indexed,
                uuid: fs_uuid(lower.as_fd())?.unwrap_or_default(),
                found: Vec::new(),
            };
            search.directory(lower.as_fd(), &mut Vec::new())?;
            for (inode, hex, path) in search.found {
                let names: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
                if shows(explorer, &names, inode)? && explorer.upper_lets_show(&names)? {
                    links.stand_in_at(&path);
                }
                links.by_inode.insert(inode, hex);
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
                let full = path.iter().cloned().chain([name]).collect();
                self.found.push(((stat.st_dev, stat.st_ino), hex, full));
            }
        }
        Ok(())
    }
}
