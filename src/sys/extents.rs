//! Where a file's blocks are (`ioctl(FS_IOC_FIEMAP)`, Linux's Documentation/filesystems/fiemap.rst).

#![allow(unsafe_code)]

use rustix::io::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::call::last_errno;

/// Extents that are asked for at once.
const BATCH: usize = 32;
/// `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: u32 = 3 << 30 | 32 << 16 | (b'f' as u32) << 8 | 11;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;

/// `struct fiemap` with room for extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved2: [u32; 3],
}

/// Blocks of a file that lie one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins on the device, in bytes; on Btrfs an address that stands for such a place.
    pub physical: u64,
    /// Its bytes.
    pub length: u64,
    /// Whether other files, or other places of this one, have the same blocks.
    pub is_shared: bool,
}

/// Calls `each` with the extents of a file that have blocks.
///
/// # Errors
/// `EOPNOTSUPP` or `ENOTTY` where the file system doesn't tell.
pub fn each_extent(fd: BorrowedFd<'_>, mut each: impl FnMut(Extent)) -> Result<(), Errno> {
    let none = RawExtent {
        logical: 0,
        physical: 0,
        length: 0,
        reserved: [0; 2],
        flags: 0,
        reserved2: [0; 3],
    };
    let mut start = 0;
    loop {
        let mut map = Fiemap {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped: 0,
            room: BATCH as u32,
            reserved: 0,
            extents: [none; BATCH],
        };
        // SAFETY: the request reads and writes one struct fiemap with `room` extents behind it.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut map) };
        if done < 0 {
            return Err(last_errno());
        }
        let mapped = usize::try_from(map.mapped).unwrap_or(0).min(BATCH);
        let extents = map.extents.get(..mapped).unwrap_or_default();
        for extent in extents {
            each(Extent {
                physical: extent.physical,
                length: extent.length,
                is_shared: extent.flags & FIEMAP_EXTENT_SHARED != 0,
            });
        }
        match extents.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => {
                start = last.logical.saturating_add(last.length);
            }
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn pieces_of_a_sparse_file_are_extents() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        for piece in 0..100 {
            file.write_all_at(&[1; 4096], piece * 65536).unwrap();
        }
        file.sync_all().unwrap();
        let mut bytes = 0;
        let mut count = 0;
        each_extent(file.as_fd(), |extent| {
            assert!(!extent.is_shared);
            bytes += extent.length;
            count += 1;
        })
        .unwrap();
        assert_eq!((count, bytes), (100, 100 * 4096));
    }
}
