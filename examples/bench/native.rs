//! File system calls in a loop, inside of this process: no fork, no allocation between them.
//!
//! Paths are relative to a descriptor of the mount's root: names are walked as programs walk them, and what is above
//! the mount costs nothing.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, openat, statat};
use rustix::io::Errno;

const DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// Calls `each` with every name of a directory but `.` and `..`; how many there were.
///
/// # Errors
/// What getdents64(2) returns, and what `each` returns.
pub fn for_names(dir: &OwnedFd, mut each: impl FnMut(&CStr) -> Result<()>) -> Result<u64> {
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut count = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            each(name)?;
            count += 1;
        }
    }
    Ok(count)
}

/// A root, and names beneath it.
pub struct Names {
    root: OwnedFd,
    paths: Vec<CString>,
}

impl Names {
    /// Everything that is listed in the directory `dir` of `root`.
    ///
    /// # Errors
    /// When it can't be listed.
    pub fn listed(root: &Path, dir: &str) -> Result<Names> {
        let mut names = Names::given(root, [])?;
        let fd = openat(&names.root, dir, DIR, Mode::empty())?;
        let mut paths = Vec::new();
        for_names(&fd, |name| {
            let path = [dir.as_bytes(), b"/", name.to_bytes()].concat();
            paths.push(CString::new(path)?);
            Ok(())
        })?;
        names.paths = paths;
        Ok(names)
    }

    /// These paths, relative to `root`.
    ///
    /// # Errors
    /// When the root can't be opened.
    pub fn given(root: &Path, paths: impl IntoIterator<Item = String>) -> Result<Names> {
        let root = rustix::fs::open(root, DIR, Mode::empty())
            .with_context(|| format!("opening {}", root.display()))?;
        let paths = paths
            .into_iter()
            .map(CString::new)
            .collect::<Result<_, _>>()?;
        Ok(Names { root, paths })
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.paths.len() as u64
    }

    /// Fails unless there are so many.
    ///
    /// # Errors
    /// Just that.
    pub fn expect(self, count: usize) -> Result<Names> {
        ensure!(
            self.paths.len() == count,
            "{} names instead of {count}",
            self.paths.len()
        );
        Ok(self)
    }

    fn path(&self, i: u64) -> Result<&CStr> {
        let path = usize::try_from(i).ok().and_then(|i| self.paths.get(i));
        path.map(CString::as_c_str).context("no such name")
    }

    /// stat(2) of each.
    ///
    /// # Errors
    /// What it returns.
    pub fn stat_all(&self) -> Result<()> {
        for path in &self.paths {
            statat(&self.root, path.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// stat(2) of each, which must not exist.
    ///
    /// # Errors
    /// What it returns, but ENOENT.
    pub fn miss_all(&self) -> Result<()> {
        for path in &self.paths {
            match statat(&self.root, path.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
                Ok(_) => bail!("{path:?} exists"),
            }
        }
        Ok(())
    }

    /// open(2), read(2) of `size` bytes, close(2) of each.
    ///
    /// # Errors
    /// What they return; a read that is shorter.
    pub fn read_all(&self, size: usize) -> Result<()> {
        let mut buffer = vec![0; size];
        for path in &self.paths {
            let file = openat(&self.root, path.as_c_str(), FILE, Mode::empty())?;
            let n = rustix::io::read(&file, &mut buffer[..])?;
            ensure!(n == size, "{n} bytes instead of {size}");
        }
        Ok(())
    }

    /// stat(2), open(2), read(2) of what is there, close(2) of every `step`th from `first` on.
    ///
    /// # Errors
    /// What they return.
    pub fn visit(&self, first: usize, step: usize) -> Result<()> {
        let mut buffer = [0; 512];
        for path in self.paths.iter().skip(first).step_by(step) {
            statat(&self.root, path.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
            let file = openat(&self.root, path.as_c_str(), FILE, Mode::empty())?;
            rustix::io::read(&file, &mut buffer[..])?;
        }
        Ok(())
    }

    /// Makes file `i`, with these bytes in it.
    ///
    /// # Errors
    /// What open(2) and write(2) return.
    pub fn create(&self, i: u64, data: &[u8]) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.root, self.path(i)?, flags, Mode::from(0o644))?;
        if !data.is_empty() {
            ensure!(
                rustix::io::write(&file, data)? == data.len(),
                "a short write"
            );
        }
        Ok(())
    }

    /// Removes file `i`.
    ///
    /// # Errors
    /// What unlink(2) returns.
    pub fn unlink(&self, i: u64) -> Result<()> {
        Ok(rustix::fs::unlinkat(
            &self.root,
            self.path(i)?,
            AtFlags::empty(),
        )?)
    }

    /// Makes directory `i`.
    ///
    /// # Errors
    /// What mkdir(2) returns.
    pub fn mkdir(&self, i: u64) -> Result<()> {
        Ok(rustix::fs::mkdirat(
            &self.root,
            self.path(i)?,
            Mode::from(0o755),
        )?)
    }

    /// Renames `i` to `i` of `to`.
    ///
    /// # Errors
    /// What rename(2) returns.
    pub fn rename(&self, i: u64, to: &Names) -> Result<()> {
        Ok(rustix::fs::renameat(
            &self.root,
            self.path(i)?,
            &to.root,
            to.path(i)?,
        )?)
    }

    /// Writes the first byte of file `i` and waits until that is on disk.
    ///
    /// # Errors
    /// What open(2), write(2) and fsync(2) return.
    pub fn touch_byte(&self, i: u64) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&self.root, self.path(i)?, flags, Mode::empty())?;
        rustix::io::pwrite(&file, b"x", 0)?;
        Ok(rustix::fs::fsync(&file)?)
    }
}

/// Lists a directory; with `stat`, looks at everything in it. How many entries there were.
///
/// # Errors
/// What the calls return.
pub fn list(root: &OwnedFd, dir: &str, stat: bool) -> Result<u64> {
    let dir = openat(root, dir, DIR, Mode::empty())?;
    for_names(&dir, |name| {
        if stat {
            statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    })
}

/// A directory, to be read.
///
/// # Errors
/// What open(2) returns.
pub fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, DIR, Mode::empty())
        .with_context(|| format!("opening {}", path.display()))
}

/// What is in a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Entries, without the root.
    pub entries: u64,
    /// Regular files among them.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Walks a tree, looking at each entry.
///
/// # Errors
/// What the calls return.
pub fn count(path: &Path) -> Result<Count> {
    let mut total = Count::default();
    let mut ahead = vec![path.to_owned()];
    while let Some(path) = ahead.pop() {
        crate::exec::check()?;
        let dir = open_dir(&path)?;
        for_names(&dir, |name| {
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            total.entries += 1;
            match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
                rustix::fs::FileType::Directory => {
                    ahead.push(path.join(std::ffi::OsStr::from_bytes(name.to_bytes())));
                }
                rustix::fs::FileType::RegularFile => {
                    total.files += 1;
                    total.bytes += u64::try_from(stat.st_size)?;
                }
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok(total)
}

/// Memory that O_DIRECT takes: aligned to a page.
pub struct Aligned {
    data: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// So many bytes, not all 0.
    pub fn new(len: usize) -> Aligned {
        const PAGE: usize = 4096;
        let data = vec![0x5a; len + PAGE];
        let start = data.as_ptr().align_offset(PAGE);
        Aligned { data, start, len }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.data
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

/// Numbers that look random and are the same each time.
pub struct Random(u64);

impl Random {
    /// The same row for each number.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15))
    }

    /// One that is less than `end`; 0 if there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.checked_rem(end).unwrap_or(0)
    }
}

/// Opens a file for what O_DIRECT asks, or through the page cache.
///
/// # Errors
/// What open(2) returns.
pub fn open_file(path: &Path, write: bool, direct: bool) -> Result<File> {
    let mut flags = if write {
        OFlags::RDWR | OFlags::CREATE
    } else {
        OFlags::RDONLY
    } | OFlags::CLOEXEC;
    if direct {
        flags |= OFlags::DIRECT;
    }
    let fd = rustix::fs::open(path, flags, Mode::from(0o644));
    Ok(fd
        .with_context(|| format!("opening {}", path.display()))?
        .into())
}
