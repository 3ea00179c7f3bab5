//! What is wrong with an upper and its work directory once nobody has them mounted: written from the
//! format (Linux, Documentation/filesystems/overlayfs.rst and fs/overlayfs), with no use of rovl's code.
//!
//! The upper is walked as it lies on disk, beside the lower directories that each of its directories is
//! merged with. Linux itself leaves nothing that is a fault here (`tests/matrix/faults.rs`).
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes of `struct ovl_fh` before the file handle: version, magic, length, flags, type, uuid.
const HEADER: usize = 5 + 16;
/// A redirect is at most that long (`OVL_REDIRECT_MAX`).
const REDIRECT_MAX: usize = 256;
/// What overlayfs keeps in xattrs, by the name after the prefix.
const MARKS: [&str; 8] = [
    "opaque", "redirect", "origin", "impure", "nlink", "upper", "metacopy", "uuid",
];

/// An upper, and how it was mounted.
#[derive(Clone, Debug)]
pub struct UpperCheck<'a> {
    /// Lowers, top to bottom.
    pub lowers: &'a [PathBuf],
    /// Data-only lowers, top to bottom.
    pub data_lowers: &'a [PathBuf],
    /// The upper directory.
    pub upper: &'a Path,
    /// The work directory.
    pub work: &'a Path,
    /// Marks are in `user.overlay.*`.
    pub userxattr: bool,
    /// `index=on`.
    pub index: bool,
    /// `metacopy=on`, now or before.
    pub metacopy: bool,
    /// `volatile`.
    pub volatile: bool,
    /// Redirects of lowers are followed.
    pub follow: bool,
    /// Linux had it mounted: it keeps its temporary names in the index, and one whiteout to link from.
    pub by_kernel: bool,
    /// Mounted without CAP_DAC_READ_SEARCH in the initial namespace: Linux then can't read an origin, and so
    /// does not mark a directory impure when such a file comes in later.
    pub unprivileged: bool,
    /// Where whiteouts can't be made as devices: `.wh.NAME` and `.wh..wh..opq`.
    pub wh_names: bool,
}

impl<'a> UpperCheck<'a> {
    /// A check of what `redirect_dir=on,index=on` left.
    pub fn new(lowers: &'a [PathBuf], upper: &'a Path, work: &'a Path) -> UpperCheck<'a> {
        UpperCheck {
            lowers,
            data_lowers: &[],
            upper,
            work,
            userxattr: false,
            index: true,
            metacopy: false,
            volatile: false,
            follow: true,
            by_kernel: false,
            unprivileged: false,
            wh_names: false,
        }
    }

    /// The faults, one line each, with the path in the upper or in work.
    pub fn faults(&self) -> io::Result<Vec<String>> {
        let mut walk = Walk {
            check: self,
            faults: Vec::new(),
            handles: HashMap::new(),
            upper_names: HashMap::new(),
            shown: HashMap::new(),
            shown_before: HashMap::new(),
            foreign: HashSet::new(),
        };
        for lower in self.lowers {
            walk.collect_handles(lower)?;
        }
        let roots: Vec<Dir> = self.roots();
        walk.lower_names(&roots)?;
        walk.root()?;
        walk.directory(self.upper, &roots)?;
        walk.work()?;
        Ok(walk.faults)
    }

    fn roots(&self) -> Vec<Dir> {
        let dir = |(layer, path): (usize, &PathBuf)| Dir {
            layer,
            path: path.clone(),
        };
        self.lowers.iter().enumerate().map(dir).collect()
    }

    /// The value of an overlay mark, if it is there.
    fn mark(&self, path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
        let prefix = if self.userxattr { "user" } else { "trusted" };
        xattr(path, &format!("{prefix}.overlay.{name}"))
    }

    fn is_whiteout(&self, path: &Path, meta: &Metadata) -> io::Result<bool> {
        let device = meta.file_type().is_char_device() && meta.rdev() == 0;
        let marked = meta.is_file() && meta.len() == 0;
        Ok(device || marked && self.mark(path, "whiteout")?.is_some())
    }
}

/// A directory of a lower.
#[derive(Clone, Debug)]
struct Dir {
    layer: usize,
    path: PathBuf,
}

/// What the lowers show under a name.
#[derive(Default)]
struct Found {
    /// Directories to merge with, top to bottom.
    dirs: Vec<Dir>,
    /// What is no directory, where it is on top.
    other: Option<Dir>,
}

impl Found {
    fn is_nothing(&self) -> bool {
        self.dirs.is_empty() && self.other.is_none()
    }
}

struct Walk<'a> {
    check: &'a UpperCheck<'a>,
    faults: Vec<String>,
    /// The handle of each object of the lowers, and its link count.
    handles: HashMap<Vec<u8>, u64>,
    /// How many names of the upper lead to an inode.
    upper_names: HashMap<u64, u64>,
    /// How many names of lower files show, by handle: now, and with no upper.
    shown: HashMap<Vec<u8>, u64>,
    shown_before: HashMap<Vec<u8>, u64>,
    /// Privileged marks of lowers that mean nothing, with their values.
    foreign: HashSet<(&'static str, Vec<u8>)>,
}

impl Walk<'_> {
    fn fault(&mut self, path: &Path, what: &str) {
        let base = self.check.upper.parent().unwrap_or(self.check.upper);
        let shown = path.strip_prefix(base).unwrap_or(path);
        let shown = shown.as_os_str().as_bytes().escape_ascii();
        self.faults.push(format!("{shown}: {what}"));
    }

    fn collect_handles(&mut self, dir: &Path) -> io::Result<()> {
        self.collect_handle(dir)?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if fs::symlink_metadata(&path)?.is_dir() {
                self.collect_handles(&path)?;
            } else {
                self.collect_handle(&path)?;
            }
        }
        Ok(())
    }

    fn collect_handle(&mut self, path: &Path) -> io::Result<()> {
        if let Some(handle) = handle(path)? {
            let links = fs::symlink_metadata(path)?.nlink();
            self.handles.insert(handle, links);
        }
        for name in MARKS.into_iter().filter(|_| self.check.userxattr) {
            if let Some(value) = xattr(path, &format!("trusted.overlay.{name}"))? {
                self.foreign.insert((name, value));
            }
        }
        Ok(())
    }

    /// What the lower directories `below` show as `name`, following redirects between lowers.
    fn look(&self, below: &[Dir], name: &OsStr) -> io::Result<Found> {
        let mut found = Found::default();
        let mut wanted = Wanted {
            below: below.to_vec(),
            path: vec![name.to_owned()],
        };
        let mut next_layer = 0;
        while let Some(dir) = wanted
            .below
            .iter()
            .find(|dir| dir.layer >= next_layer)
            .cloned()
        {
            next_layer = dir.layer + 1;
            let Some((path, meta)) = self.walk_down(&dir.path, &wanted.path)? else {
                continue;
            };
            if self.check.is_whiteout(&path, &meta)? || hidden_by_wh(&path, self.check.wh_names)? {
                break;
            }
            if !meta.is_dir() {
                if found.dirs.is_empty() {
                    found.other = Some(Dir { path, ..dir });
                }
                break;
            }
            let opaque = self.check.mark(&path, "opaque")?;
            let redirect = self.check.mark(&path, "redirect")?;
            found.dirs.push(Dir {
                path,
                layer: dir.layer,
            });
            if opaque.as_deref() == Some(b"y") {
                break;
            }
            match redirect {
                Some(_) if !self.check.follow => break,
                Some(target) => wanted = wanted.redirected(&target, self.check),
                None => {}
            }
        }
        Ok(found)
    }

    /// The object that a path of several names leads to in one layer; `None` where a whiteout or something
    /// else than a directory is in the way.
    fn walk_down(
        &self,
        dir: &Path,
        names: &[std::ffi::OsString],
    ) -> io::Result<Option<(PathBuf, Metadata)>> {
        let mut path = dir.to_path_buf();
        let mut last = None;
        for name in names {
            path.push(name);
            let Some(meta) = meta(&path)? else {
                return Ok(None);
            };
            last = Some(meta);
        }
        Ok(last.map(|meta| (path, meta)))
    }

    /// Counts the names that the lowers show by themselves.
    fn lower_names(&mut self, below: &[Dir]) -> io::Result<()> {
        for name in names_in(below)? {
            let found = self.look(below, &name)?;
            if let Some(other) = &found.other
                && let Some(handle) = handle(&other.path)?
            {
                *self.shown_before.entry(handle).or_default() += 1;
            }
            if !found.dirs.is_empty() {
                self.lower_names(&found.dirs)?;
            }
        }
        Ok(())
    }

    /// Counts the names below a lower directory that shows through.
    fn lower_shows(&mut self, below: &[Dir]) -> io::Result<()> {
        for name in names_in(below)? {
            let found = self.look(below, &name)?;
            self.show(&found)?;
        }
        Ok(())
    }

    fn show(&mut self, found: &Found) -> io::Result<()> {
        if let Some(other) = &found.other
            && let Some(handle) = handle(&other.path)?
        {
            *self.shown.entry(handle).or_default() += 1;
        }
        if !found.dirs.is_empty() {
            self.lower_shows(&found.dirs)?;
        }
        Ok(())
    }

    fn root(&mut self) -> io::Result<()> {
        let upper = self.check.upper.to_path_buf();
        for name in ["redirect", "metacopy", "nlink", "upper"] {
            if self.check.mark(&upper, name)?.is_some() {
                self.fault(&upper, &format!("the root has {name}"));
            }
        }
        self.other_namespace(&upper)?;
        self.origin(&upper)
    }

    /// With `userxattr` no privileged marks are made. Those of lowers mean nothing then, and are copied up.
    fn other_namespace(&mut self, path: &Path) -> io::Result<()> {
        if !self.check.userxattr {
            return Ok(());
        }
        for name in MARKS {
            let mark = xattr(path, &format!("trusted.overlay.{name}"))?;
            if mark.is_some_and(|value| !self.foreign.contains(&(name, value))) {
                self.fault(
                    path,
                    &format!("has trusted.overlay.{name}, but userxattr is on"),
                );
            }
        }
        Ok(())
    }

    /// Checks the upper directory `dir`, which is merged with the lower directories `below`.
    fn directory(&mut self, dir: &Path, below: &[Dir]) -> io::Result<()> {
        let pure = self.check.mark(dir, "impure")?.is_none();
        let mut names = HashSet::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(name) = path.file_name().map(OsStr::to_owned) else {
                continue;
            };
            let meta = fs::symlink_metadata(&path)?;
            if let Some(hidden) = wh_target(&name) {
                names.insert(hidden.to_owned());
                self.wh_name(&path, below, hidden)?;
                continue;
            }
            names.insert(name.clone());
            self.entry(&path, &meta, below, pure)?;
        }
        for name in names_in(below)? {
            if !names.contains(&name) {
                let found = self.look(below, &name)?;
                self.show(&found)?;
            }
        }
        Ok(())
    }

    fn wh_name(&mut self, path: &Path, below: &[Dir], hidden: &OsStr) -> io::Result<()> {
        if !self.check.wh_names {
            self.fault(path, "a name that means a whiteout elsewhere");
        } else if !hidden.is_empty() && self.look(below, hidden)?.is_nothing() {
            self.fault(path, "a whiteout of nothing");
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, meta: &Metadata, below: &[Dir], pure: bool) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default();
        let found = self.look(below, name)?;
        if self.check.is_whiteout(path, meta)? {
            if below.is_empty() {
                self.fault(path, "a whiteout in a directory with nothing below");
            } else if found.is_nothing() {
                self.fault(path, "a whiteout of nothing");
            }
            return Ok(());
        }
        self.other_namespace(path)?;
        if self.check.mark(path, "origin")?.is_some() {
            self.origin(path)?;
            if pure && !(self.check.by_kernel && self.check.unprivileged) {
                self.fault(
                    path,
                    "has an origin, but its directory is not marked impure",
                );
            }
        }
        if meta.is_dir() {
            let merged = self.merged(path, below, found)?;
            return self.directory(path, &merged);
        }
        *self.upper_names.entry(meta.ino()).or_default() += 1;
        for name in ["opaque", "impure"] {
            if self.check.mark(path, name)?.is_some() {
                self.fault(path, &format!("has {name} and is no directory"));
            }
        }
        self.metacopy(path, meta, below)
    }

    /// An origin is empty, where the lower has no handles, or leads to an object of a lower.
    fn origin(&mut self, path: &Path) -> io::Result<()> {
        let Some(value) = self.check.mark(path, "origin")? else {
            return Ok(());
        };
        if value.is_empty() {
            return Ok(());
        }
        match origin_handle(&value) {
            None => self.fault(path, "has an origin that can't be read"),
            Some(handle) if !self.handles.contains_key(handle) => {
                self.fault(path, "has an origin that leads to nothing in the lowers");
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// The lower directories that the upper directory `path` is merged with.
    fn merged(&mut self, path: &Path, below: &[Dir], found: Found) -> io::Result<Vec<Dir>> {
        let redirect = self.check.mark(path, "redirect")?;
        if self.check.mark(path, "metacopy")?.is_some() {
            self.fault(path, "has metacopy and is a directory");
        }
        let wh_opaque = self.check.wh_names && meta(&path.join(".wh..wh..opq"))?.is_some();
        match self.check.mark(path, "opaque")?.as_deref() {
            Some(b"y") if redirect.is_some() => self.fault(path, "is both opaque and redirected"),
            Some(b"y") => return Ok(Vec::new()),
            None if wh_opaque => return Ok(Vec::new()),
            None | Some(b"x") => {}
            Some(other) => {
                let what = format!("has the opaque mark '{}'", other.escape_ascii());
                self.fault(path, &what);
            }
        }
        let Some(target) = redirect else {
            return Ok(found.dirs);
        };
        let dirs = self.follow(path, below, &target)?.dirs;
        if dirs.is_empty() {
            let target = target.escape_ascii();
            self.fault(
                path,
                &format!("is redirected to {target}, which is no lower directory"),
            );
        }
        Ok(dirs)
    }

    fn follow(&mut self, path: &Path, below: &[Dir], target: &[u8]) -> io::Result<Found> {
        let parts: Vec<&[u8]> = match target.strip_prefix(b"/") {
            Some(rest) => rest.split(|byte| *byte == b'/').collect(),
            None => vec![target],
        };
        if target.len() > REDIRECT_MAX {
            self.fault(path, "has a redirect that is too long");
        }
        if parts
            .iter()
            .any(|part| part.is_empty() || part.contains(&b'/'))
        {
            self.fault(path, "has a redirect that is no path");
        }
        let mut found = Found {
            dirs: if target.starts_with(b"/") {
                self.check.roots()
            } else {
                below.to_vec()
            },
            other: None,
        };
        for part in parts {
            found = self.look(&found.dirs, OsStr::from_bytes(part))?;
        }
        Ok(found)
    }

    /// A file with attributes only has its data below, and none of its own.
    fn metacopy(&mut self, path: &Path, meta: &Metadata, below: &[Dir]) -> io::Result<()> {
        if self.check.mark(path, "metacopy")?.is_none() {
            return Ok(());
        }
        if !self.check.metacopy {
            self.fault(path, "has metacopy, which is off");
        }
        if !meta.is_file() {
            self.fault(path, "has metacopy and is no file");
            return Ok(());
        }
        if has_data(path)? {
            self.fault(path, "has metacopy, but data of its own");
        }
        let found = match self.check.mark(path, "redirect")? {
            Some(target) => self.follow(path, below, &target)?,
            None => self.look(below, path.file_name().unwrap_or_default())?,
        };
        let data = match found.other {
            Some(lower) => fs::symlink_metadata(&lower.path)?.is_file(),
            None => self.in_data_lowers(path)?,
        };
        if !data {
            self.fault(path, "has metacopy, but there is no data below");
        }
        Ok(())
    }

    fn in_data_lowers(&self, path: &Path) -> io::Result<bool> {
        let Some(target) = self.check.mark(path, "redirect")? else {
            return Ok(false);
        };
        let Some(rest) = target.strip_prefix(b"/") else {
            return Ok(false);
        };
        for data in self.check.data_lowers {
            if meta(&data.join(OsStr::from_bytes(rest)))?.is_some_and(|meta| meta.is_file()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn work(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(self.check.work)? {
            let path = entry?.path();
            match path.file_name().map(OsStr::as_bytes) {
                Some(b"work") => {
                    for left in fs::read_dir(&path)? {
                        let left = left?.path();
                        let mark = self.check.volatile && left.ends_with("incompat");
                        if !mark && !self.is_linux_whiteout(&left)? {
                            self.fault(&left, "is left in work");
                        }
                    }
                }
                Some(b"index") if self.check.index => self.index(&path)?,
                // Made by an earlier mount with index=on: it stays as it is.
                Some(b"index") => {}
                _ => self.fault(&path, "has no place in a work directory"),
            }
        }
        let marker = self.check.work.join("work/incompat/volatile");
        if self.check.volatile && meta(&marker)?.is_none() {
            let work = self.check.work.to_path_buf();
            self.fault(&work, "has no mark of volatile");
        }
        Ok(())
    }

    /// Linux keeps one whiteout to link others from, in the index or in work.
    fn is_linux_whiteout(&self, path: &Path) -> io::Result<bool> {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let meta = fs::symlink_metadata(path)?;
        let linux = self.check.by_kernel && name.starts_with(b"#");
        Ok(linux && self.check.is_whiteout(path, &meta)?)
    }

    fn index(&mut self, dir: &Path) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
            let meta = fs::symlink_metadata(&path)?;
            if self.is_linux_whiteout(&path)? {
                continue;
            }
            let Some(value) = unhex(&name) else {
                self.fault(&path, "is no name of an index entry");
                continue;
            };
            if meta.is_dir() || self.check.is_whiteout(&path, &meta)? {
                self.fault(&path, "is an index entry for nfs_export, which is off");
                continue;
            }
            if self.check.mark(&path, "origin")?.as_deref() != Some(&value[..]) {
                self.fault(&path, "has an origin that is not its name");
            }
            let Some(handle) = origin_handle(&value).map(<[u8]>::to_vec) else {
                self.fault(&path, "has a name that is no handle");
                continue;
            };
            let Some(lower) = self.handles.get(&handle).copied() else {
                self.fault(&path, "leads to nothing in the lowers");
                continue;
            };
            self.index_links(&path, &meta, &handle, lower)?;
        }
        Ok(())
    }

    /// Holds `overlay.nlink` against the names that the merged tree shows. Linux counts from all names that
    /// the lower inode has, also those that other lowers hide; that is right too.
    fn index_links(
        &mut self,
        path: &Path,
        meta: &Metadata,
        handle: &[u8],
        lower: u64,
    ) -> io::Result<()> {
        let in_upper = self.upper_names.get(&meta.ino()).copied().unwrap_or(0);
        let below = self.shown.get(handle).copied().unwrap_or(0);
        let before = self.shown_before.get(handle).copied().unwrap_or(0);
        if in_upper + 1 != meta.nlink() {
            let what = format!("has {} links, but {in_upper} names", meta.nlink());
            self.fault(path, &what);
        }
        let names = (in_upper + below).cast_signed();
        let hidden = (lower.cast_signed() - before.cast_signed()).max(0);
        let value = self.check.mark(path, "nlink")?;
        let count = value
            .as_deref()
            .and_then(|value| nlink(value, meta.nlink(), lower));
        match count {
            None => self.fault(path, "has no overlay.nlink, or one that can't be read"),
            _ if names + hidden == 0 => self.fault(path, "is dangling: no name leads to it"),
            Some(count) if count != names && count != names + hidden => {
                let value = value.unwrap_or_default();
                let value = value.escape_ascii();
                self.fault(
                    path,
                    &format!("overlay.nlink {value} means {count}, but there are {names} names"),
                );
            }
            Some(_) => {}
        }
        Ok(())
    }
}

/// A search that goes on in the layers below.
struct Wanted {
    below: Vec<Dir>,
    path: Vec<std::ffi::OsString>,
}

impl Wanted {
    fn redirected(self, target: &[u8], check: &UpperCheck<'_>) -> Wanted {
        match target.strip_prefix(b"/") {
            Some(rest) => Wanted {
                below: check.roots(),
                path: rest
                    .split(|byte| *byte == b'/')
                    .map(|part| OsStr::from_bytes(part).to_owned())
                    .collect(),
            },
            None => {
                let mut path = self.path;
                path.pop();
                path.push(OsStr::from_bytes(target).to_owned());
                Wanted { path, ..self }
            }
        }
    }
}

fn names_in(dirs: &[Dir]) -> io::Result<HashSet<std::ffi::OsString>> {
    let mut names = HashSet::new();
    for dir in dirs {
        for entry in fs::read_dir(&dir.path)? {
            names.insert(entry?.file_name());
        }
    }
    Ok(names)
}

/// What a `.wh.` name hides; empty for `.wh..wh..opq` and its like.
fn wh_target(name: &OsStr) -> Option<&OsStr> {
    let rest = name.as_bytes().strip_prefix(b".wh.")?;
    let special = rest.starts_with(b".wh.");
    Some(OsStr::from_bytes(if special { b"" } else { rest }))
}

fn hidden_by_wh(path: &Path, wh_names: bool) -> io::Result<bool> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(false);
    };
    let mut wh = std::ffi::OsString::from(".wh.");
    wh.push(name);
    Ok(wh_names && meta(&parent.join(wh))?.is_some())
}

/// lstat; `None` if there is nothing.
fn meta(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Ok(None),
            _ => Err(error),
        },
    }
}

fn xattr(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 4096];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a file has anything but holes.
fn has_data(path: &Path) -> io::Result<bool> {
    let file = fs::File::open(path)?;
    match rustix::fs::seek(&file, SeekFrom::Data(0)) {
        Ok(_) => Ok(true),
        Err(Errno::NXIO) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The type and the bytes of the file handle in an origin.
fn origin_handle(value: &[u8]) -> Option<&[u8]> {
    let [version, magic, length, _flags, _type, ..] = value else {
        return None;
    };
    (*version == 0 && *magic == 0xfb && usize::from(*length) == value.len() && value.len() > HEADER)
        .then(|| &value[HEADER..])
}

/// The bytes of an object's file handle; `None` where the file system has none.
fn handle(path: &Path) -> io::Result<Option<Vec<u8>>> {
    const ROOM: usize = 128;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut buffer = [0_u32; 2 + ROOM / 4];
    buffer[0] = 128;
    let mut mount = 0;
    // SAFETY: `buffer` starts with the two words of a struct file_handle and has ROOM bytes after them.
    let result = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            path.as_ptr(),
            buffer.as_mut_ptr().cast(),
            &raw mut mount,
            0,
        )
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EOVERFLOW) => Ok(None),
            _ => Err(error),
        };
    }
    let bytes: Vec<u8> = buffer[2..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    Ok(Some(bytes[..buffer[0] as usize].to_vec()))
}

/// The link count that `overlay.nlink` stands for.
pub fn nlink(value: &[u8], upper: u64, lower: u64) -> Option<i64> {
    let (base, difference) = value.split_first()?;
    let difference: i64 = std::str::from_utf8(difference)
        .ok()?
        .trim_start_matches('+')
        .parse()
        .ok()?;
    match base {
        b'U' => Some(upper.cast_signed() + difference),
        b'L' => Some(lower.cast_signed() + difference),
        _ => None,
    }
}

/// The bytes that hexadecimal digits stand for.
pub fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    if text.is_empty() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok())
        .collect()
}
