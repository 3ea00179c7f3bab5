//! Small things to do to files that std doesn't offer.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::Result;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, RenameFlags, SeekFrom, Timespec, Timestamps, XattrFlags,
};

/// Sets access and modification time of `path` itself, in whole seconds and nanoseconds.
pub fn set_times(path: &Path, atime: (i64, u32), mtime: (i64, u32)) -> Result<()> {
    let time = |(tv_sec, nsec): (i64, u32)| Timespec {
        tv_sec,
        tv_nsec: nsec.into(),
    };
    let times = Timestamps {
        last_access: time(atime),
        last_modification: time(mtime),
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Makes a device node, a fifo or an empty file.
pub fn mknod(path: &Path, kind: FileType, mode: u32, dev: u64) -> Result<()> {
    let mode = Mode::from_raw_mode(mode);
    Ok(rustix::fs::mknodat(CWD, path, kind, mode, dev)?)
}

/// renameat2(2).
pub fn rename_with(from: &Path, to: &Path, flags: RenameFlags) -> Result<()> {
    Ok(rustix::fs::renameat_with(CWD, from, CWD, to, flags)?)
}

/// Sets an xattr of `path` itself.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    Ok(rustix::fs::lsetxattr(
        path,
        name,
        value,
        XattrFlags::empty(),
    )?)
}

/// An entry of a POSIX ACL: tag (1 user_obj, 2 user, 4 group_obj, 8 group, 16 mask, 32 other),
/// permissions, id.
pub type AclEntry = (u16, u16, u32);

/// The value of `system.posix_acl_access` or `…_default`: version 2, then the entries.
pub fn acl(entries: &[AclEntry]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// An ACL with a user of its own: u::rwx,u:UID:PERM,g::r-x,m::rwx,o::---
pub fn acl_with_user(uid: u32, permissions: u16) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    acl(&[
        (1, 7, NO_ID),
        (2, permissions, uid),
        (4, 5, NO_ID),
        (16, 7, NO_ID),
        (32, 0, NO_ID),
    ])
}

/// Bytes on disk.
pub fn disk_usage(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().blocks() * 512
}

/// Bytes on disk of everything beneath `path`.
pub fn tree_usage(path: &Path) -> u64 {
    let mut sum = disk_usage(path);
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            sum += tree_usage(&entry.unwrap().path());
        }
    }
    sum
}

/// The inode number.
pub fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path)
        .unwrap_or_else(|e| panic!("stat {}: {e}", path.display()))
        .ino()
}

/// The link count.
pub fn nlink(path: &Path) -> u64 {
    fs::symlink_metadata(path)
        .unwrap_or_else(|e| panic!("stat {}: {e}", path.display()))
        .nlink()
}

/// Makes a file of `size` bytes that is a hole but for `data` at the given offsets.
pub fn write_sparse(path: &Path, size: u64, data: &[(u64, &[u8])]) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    for (offset, bytes) in data {
        file.write_all_at(bytes, *offset).unwrap();
    }
}

/// Makes a file of `size` bytes without holes, with content that no compression removes.
pub fn write_solid(path: &Path, size: u64) {
    use std::io::Write;
    let mut file = File::create(path).unwrap();
    let chunk = super::pattern(size, 1 << 20);
    let mut left = size;
    while left > 0 {
        let n = left.min(chunk.len() as u64);
        file.write_all(&chunk[..usize::try_from(n).unwrap()])
            .unwrap();
        left -= n;
    }
}

/// The data ranges of a file: offset and length, as SEEK_DATA and SEEK_HOLE tell them.
pub fn data_ranges(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let end = file.metadata().unwrap().len();
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < end {
        let Ok(start) = rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) else {
            break;
        };
        let hole = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(start)).unwrap();
        ranges.push((start, hole - start));
        at = hole;
    }
    ranges
}

/// A file opened for reading and writing.
pub fn open_rw(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|e| panic!("open {}: {e}", path.display()))
}

/// Drops clean pages, dentries and inodes that nobody uses (`2`: only the latter two, `3`: all).
pub fn drop_caches(what: u8) {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", what.to_string()).expect("drop_caches");
}

/// A shared mapping of the first page of a file.
pub struct Map {
    address: *mut libc::c_void,
}

impl Map {
    const LENGTH: usize = 4096;

    /// Maps the first page, for reading only or for writing too.
    pub fn new(file: &File, writable: bool) -> Map {
        use std::os::fd::AsRawFd;
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Map::LENGTH,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert!(
            address != libc::MAP_FAILED,
            "mmap: {}",
            std::io::Error::last_os_error()
        );
        Map { address }
    }

    /// The first `len` bytes as they are now.
    pub fn read(&self, len: usize) -> Vec<u8> {
        assert!(len <= Map::LENGTH);
        let bytes: *const u8 = self.address.cast();
        // SAFETY: within the mapping, which lives as long as self; volatile, since others write.
        (0..len)
            .map(|i| unsafe { bytes.add(i).read_volatile() })
            .collect()
    }

    /// Writes at the start of a writable mapping and syncs it.
    pub fn write(&self, data: &[u8]) {
        assert!(data.len() <= Map::LENGTH);
        let bytes: *mut u8 = self.address.cast();
        for (i, byte) in data.iter().enumerate() {
            // SAFETY: within the mapping, which was made writable.
            unsafe { bytes.add(i).write_volatile(*byte) };
        }
        // SAFETY: the mapping's own address and length.
        let result = unsafe { libc::msync(self.address, Map::LENGTH, libc::MS_SYNC) };
        assert_eq!(result, 0, "msync: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping's own address and length; nothing refers to it any more.
        unsafe { libc::munmap(self.address, Map::LENGTH) };
    }
}

/// Closes a file and tells the error that close(2) tells.
pub fn close(file: File) -> Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor was owned by `file` and nobody else, who gave it up.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Cuts a file system (ext4, XFS) off from its device as power loss would: what was not written and
/// not in the journal on disk is lost, and every further call is EIO. To be unmounted then.
pub fn cut_power(mount: &Path) {
    use std::os::fd::AsRawFd;
    const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
    const NO_LOG_FLUSH: u32 = 2;
    let root = File::open(mount).unwrap();
    let flags = NO_LOG_FLUSH;
    // SAFETY: the ioctl reads one u32 through the pointer, which outlives the call.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) };
    assert_eq!(result, 0, "shutdown: {}", std::io::Error::last_os_error());
}
