//! A file in memory: the only place of the bench with `unsafe`.
#![allow(unsafe_code, reason = "mmap(2) has no safe wrapper")]

use std::fs::File;
use std::os::fd::AsRawFd as _;

use anyhow::{Result, bail};

/// A shared mapping of a whole file.
pub struct Map {
    base: *mut u8,
    len: usize,
    writable: bool,
}

impl Map {
    /// Maps a file that nobody truncates while the mapping lives (a SIGBUS would end the bench).
    ///
    /// # Errors
    /// What mmap(2) returns; an empty file.
    pub fn new(file: &File, writable: bool) -> Result<Map> {
        let len = usize::try_from(file.metadata()?.len())?;
        if len == 0 {
            bail!("an empty file can't be mapped");
        }
        let mut access = libc::PROT_READ;
        if writable {
            access |= libc::PROT_WRITE;
        }
        // SAFETY: a new mapping, at an address that the kernel chooses; no memory of ours is touched.
        let base = unsafe {
            let fd = file.as_raw_fd();
            libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        let base = base.cast();
        Ok(Map {
            base,
            len,
            writable,
        })
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The byte at this offset; 0 beyond the end.
    pub fn get(&self, at: usize) -> u8 {
        if at >= self.len {
            return 0;
        }
        // SAFETY: inside of the mapping. Volatile, since others may change the file.
        unsafe { self.base.add(at).read_volatile() }
    }

    /// Changes the byte at this offset; nothing beyond the end or where the mapping is for reading.
    pub fn set(&mut self, at: usize, value: u8) {
        if at < self.len && self.writable {
            // SAFETY: inside of the mapping, which is writable.
            unsafe { self.base.add(at).write_volatile(value) }
        }
    }

    /// Waits until what was changed is in the file.
    ///
    /// # Errors
    /// What msync(2) returns.
    pub fn sync(&self) -> Result<()> {
        // SAFETY: exactly the mapping.
        let result = unsafe { libc::msync(self.base.cast(), self.len, libc::MS_SYNC) };
        if result != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(())
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping, which nobody uses any more.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
