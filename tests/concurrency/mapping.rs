//! Shared memory: of files in the tree under test, and of the board on which workers count.
//!
//! The only place of this test with `unsafe`.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;

/// A MAP_SHARED mapping of the first `len` bytes of a file.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps the file; `len` is not 0. The file may be closed, unlinked and renamed meanwhile.
    pub fn new(file: &impl AsFd, len: usize, writable: bool) -> Result<Mapping, Errno> {
        let mut access = libc::PROT_READ;
        if writable {
            access |= libc::PROT_WRITE;
        }
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let base = NonNull::new(base.cast()).ok_or(Errno::FAULT)?;
        Ok(Mapping { base, len })
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies out of the mapping. The range must lie within the file, or SIGBUS ends the process.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(offset + into.len() <= self.len);
        // SAFETY: the range is mapped (asserted above) and `into` is ours alone. Other processes
        // may write meanwhile: bytes have no invalid values, and callers own the range they check.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset),
                into.as_mut_ptr(),
                into.len(),
            );
        }
    }

    /// Copies into the mapping, which must be writable. The range must lie within the file.
    pub fn write(&self, offset: usize, from: &[u8]) {
        assert!(offset + from.len() <= self.len);
        // SAFETY: as in `read`; no reference into the mapping exists beside atomic cells.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.as_ptr(),
                self.base.as_ptr().add(offset),
                from.len(),
            );
        }
    }

    /// msync(MS_SYNC) of everything.
    pub fn sync(&self) -> Result<(), Errno> {
        // SAFETY: base and len are those of a live mapping.
        let result = unsafe { libc::msync(self.base.as_ptr().cast(), self.len, libc::MS_SYNC) };
        if result == 0 {
            Ok(())
        } else {
            Err(last_errno())
        }
    }

    /// The `index`-th 8-byte cell as an atomic counter.
    pub fn cell(&self, index: usize) -> &AtomicU64 {
        assert!((index + 1) * 8 <= self.len);
        // SAFETY: in range (asserted), aligned (a mapping starts on a page), alive as long as self,
        // and cells are reached through atomics only.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().cast::<u64>().add(index)) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of a live mapping, which nobody borrows any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
