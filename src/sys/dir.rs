//! Reading directories: `getdents64(2)` with the offsets that it gives.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::call::check;

/// Bytes of one `getdents64`: about 1,000 short names.
const BUFFER: usize = 64 * 1024;
/// Room for three entries of the longest names.
const LEAST: usize = 1024;
/// Where the name begins in `struct linux_dirent64`.
const NAME_AT: usize = 19;

/// One entry, `.` and `..` included, borrowed from the reader's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The inode number (of the mount point, not of what is mounted there).
    pub ino: u64,
    /// The offset to [`DirReader::seek`] to, to go on with the next entry.
    pub next_off: u64,
    /// The type as `DT_*`; `DT_UNKNOWN` (0) where the file system does not say.
    pub kind: u8,
    /// The name.
    pub name: &'a OsStr,
}

/// A buffer for reading directories, to be used again and again.
#[derive(Debug)]
pub struct DirReader {
    buf: Box<[u8]>,
}

impl Default for DirReader {
    fn default() -> Self {
        DirReader::new()
    }
}

impl DirReader {
    /// Allocates the buffer, 64 KiB.
    pub fn new() -> DirReader {
        DirReader::with_room(BUFFER)
    }

    /// Allocates a buffer of so many bytes, within reason, for who may not want all that is in a directory.
    pub fn with_room(bytes: usize) -> DirReader {
        DirReader {
            buf: vec![0; bytes.clamp(LEAST, BUFFER)].into_boxed_slice(),
        }
    }

    /// Sets where the next [`read`](Self::read) of `fd` begins: 0, or some `next_off`.
    ///
    /// # Errors
    /// What `lseek(2)` returns.
    pub fn seek(fd: BorrowedFd<'_>, off: u64) -> Result<(), Errno> {
        rustix::fs::seek(fd, SeekFrom::Start(off)).map(drop)
    }

    /// Makes one system call and hands each entry that came to `each`. `false`: this was the end
    /// of the directory. After a `Break` the offset of `fd` is behind the whole batch, and the
    /// result is `true`: [`seek`](Self::seek) before going on.
    ///
    /// # Errors
    /// What `getdents64(2)` returns: `ENOENT` when the directory was removed.
    pub fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        each: &mut dyn FnMut(DirEntry<'_>) -> ControlFlow<()>,
    ) -> Result<bool, Errno> {
        let room = self.buf.len();
        // SAFETY: the buffer has `room` writable bytes.
        let filled = check(unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                fd.as_raw_fd(),
                self.buf.as_mut_ptr(),
                room,
            )
        })?;
        let mut rest = self.buf.get(..filled).ok_or(Errno::IO)?;
        while !rest.is_empty() {
            let (entry, after) = split_entry(rest).ok_or(Errno::IO)?;
            rest = after;
            if each(entry).is_break() {
                return Ok(true);
            }
        }
        Ok(filled > 0)
    }

    /// Hands every entry of `fd`, from its beginning, to `each`.
    ///
    /// # Errors
    /// What `lseek(2)` and `getdents64(2)` return.
    pub fn read_all(
        &mut self,
        fd: BorrowedFd<'_>,
        mut each: impl FnMut(DirEntry<'_>),
    ) -> Result<(), Errno> {
        DirReader::seek(fd, 0)?;
        let mut each = |entry: DirEntry<'_>| {
            each(entry);
            ControlFlow::Continue(())
        };
        while self.read(fd, &mut each)? {}
        Ok(())
    }
}

/// [`DirReader::read_all`] with a buffer of its own.
///
/// # Errors
/// What `lseek(2)` and `getdents64(2)` return.
pub fn read_all(fd: BorrowedFd<'_>, each: impl FnMut(DirEntry<'_>)) -> Result<(), Errno> {
    DirReader::new().read_all(fd, each)
}

/// Takes one `struct linux_dirent64` off the front; `None` when it is not whole.
fn split_entry(buf: &[u8]) -> Option<(DirEntry<'_>, &[u8])> {
    let (ino, tail) = buf.split_first_chunk::<8>()?;
    let (next_off, tail) = tail.split_first_chunk::<8>()?;
    let (length, tail) = tail.split_first_chunk::<2>()?;
    let kind = *tail.first()?;
    let (record, after) = buf.split_at_checked(usize::from(u16::from_ne_bytes(*length)))?;
    let name = record.get(NAME_AT..)?;
    let end = name.iter().position(|&b| b == 0)?;
    let entry = DirEntry {
        ino: u64::from_ne_bytes(*ino),
        next_off: u64::from_ne_bytes(*next_off),
        kind,
        name: OsStr::from_bytes(name.get(..end)?),
    };
    Some((entry, after))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsString;
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::fs::{Mode, OFlags, open};

    use super::*;

    fn dir_of(count: usize) -> (tempfile::TempDir, OwnedFd, BTreeSet<OsString>) {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        let mut names = BTreeSet::from([OsString::from("."), OsString::from("..")]);
        for i in 0..count {
            let name = format!("{i:0>60}");
            std::fs::write(tmp.path().join(&name), b"").unwrap();
            names.insert(name.into());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(tmp.path(), flags, Mode::empty()).unwrap();
        (tmp, fd, names)
    }

    #[test]
    fn every_entry_comes_once_and_again_after_a_rewind() {
        let (_tmp, fd, names) = dir_of(2000);
        let mut reader = DirReader::new();
        for _ in 0..2 {
            let mut seen = BTreeSet::new();
            reader
                .read_all(fd.as_fd(), |e| assert!(seen.insert(e.name.to_owned())))
                .unwrap();
            assert_eq!(seen, names);
        }
    }

    #[test]
    fn entries_have_type_and_inode_number() {
        use std::os::unix::fs::MetadataExt;
        let (tmp, fd, _) = dir_of(1);
        std::fs::create_dir(tmp.path().join("sub")).unwrap();
        let mut kinds = vec![];
        read_all(fd.as_fd(), |e| {
            if e.name != ".." {
                let meta = std::fs::symlink_metadata(tmp.path().join(e.name)).unwrap();
                assert_eq!(e.ino, meta.ino());
                kinds.push(e.kind);
            }
        })
        .unwrap();
        kinds.sort_unstable();
        assert_eq!(kinds, [libc::DT_DIR, libc::DT_DIR, libc::DT_REG]);
    }

    #[test]
    fn reading_goes_on_at_any_offset() {
        let (_tmp, fd, names) = dir_of(1500);
        let mut reader = DirReader::new();
        let mut seen = BTreeSet::new();
        let mut at = 0;
        loop {
            DirReader::seek(fd.as_fd(), at).unwrap();
            let mut left = 100;
            let more = reader
                .read(fd.as_fd(), &mut |e| {
                    assert!(seen.insert(e.name.to_owned()));
                    at = e.next_off;
                    left -= 1;
                    if left == 0 {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })
                .unwrap();
            if !more {
                break;
            }
        }
        assert_eq!(seen, names);
    }

    #[test]
    fn a_removed_directory_is_an_error_or_empty() {
        let (tmp, fd, _) = dir_of(0);
        tmp.close().unwrap();
        let mut entries = 0;
        match read_all(fd.as_fd(), |_| entries += 1) {
            Ok(()) => assert_eq!(entries, 0),
            Err(e) => assert_eq!(e, Errno::NOENT),
        }
    }

    #[test]
    fn broken_records_are_none() {
        let mut record = [0u8; 24];
        record[16..18].copy_from_slice(&24u16.to_ne_bytes());
        record[19] = b'a';
        assert_eq!(split_entry(&record).unwrap().0.name, "a");
        for length in 0..24 {
            assert!(split_entry(&record[..length]).is_none());
        }
        for length in [0u16, 1, 19, 25, u16::MAX] {
            let mut bad = record;
            bad[16..18].copy_from_slice(&length.to_ne_bytes());
            assert!(split_entry(&bad).is_none(), "{length}");
        }
        record[19..].fill(b'a');
        assert!(split_entry(&record).is_none());
    }
}
