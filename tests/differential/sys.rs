//! The system calls that have no safe wrapper: the only `unsafe` of this test.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

fn check(result: i64) -> Result<u64, Errno> {
    if result >= 0 {
        return Ok(result as u64);
    }
    Err(Errno::from_raw_os_error(
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    ))
}

/// Gives the calling thread its own root, working directory and umask.
pub fn own_fs() -> Result<(), Errno> {
    // SAFETY: CLONE_FS shares no memory and no descriptors.
    check(i64::from(unsafe { libc::unshare(libc::CLONE_FS) })).map(drop)
}

/// truncate(2).
pub fn truncate(path: &[u8], len: u64) -> Result<(), Errno> {
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    // SAFETY: `path` is a C string that outlives the call.
    check(i64::from(unsafe {
        libc::truncate(path.as_ptr(), len as i64)
    }))
    .map(drop)
}

/// The file handle of `path`, by name_to_handle_at's `flags`: type, then bytes.
pub fn handle(dir: BorrowedFd<'_>, path: &[u8], flags: i32) -> Result<(i32, Vec<u8>), Errno> {
    const ROOM: usize = 128;
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    let mut buffer = [0u32; 2 + ROOM / 4];
    buffer[0] = ROOM as u32;
    let mut mount = 0;
    // SAFETY: `buffer` starts with the two words of a struct file_handle and has ROOM bytes after.
    check(i64::from(unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            path.as_ptr(),
            buffer.as_mut_ptr().cast(),
            &mut mount,
            flags,
        )
    }))?;
    let bytes: Vec<u8> = buffer[2..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    Ok((buffer[1] as i32, bytes[..buffer[0] as usize].to_vec()))
}

/// A shared mapping of a file from its start. Touched only through system calls, which answer
/// EFAULT where a load or a store would raise SIGBUS.
pub struct Map {
    start: *mut libc::c_void,
    len: usize,
    /// The file, for its size now.
    pub file: OwnedFd,
}

// SAFETY: the mapping belongs to the value alone and is reached through system calls only.
unsafe impl Send for Map {}

impl Map {
    /// Maps `len` bytes, more than 0.
    pub fn new(file: BorrowedFd<'_>, len: usize, write: bool) -> Result<Map, Errno> {
        let prot = if write {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        let copy = file.try_clone_to_owned().map_err(|_| Errno::MFILE)?;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            check(-1)?;
        }
        Ok(Map {
            start,
            len,
            file: copy,
        })
    }

    /// The first `len` bytes of the mapping.
    pub fn read(&self, len: usize) -> Result<Vec<u8>, Errno> {
        let memory = memory_file()?;
        let len = len.min(self.len);
        let mut done = 0;
        while done < len {
            // SAFETY: `start + done .. start + len` lies in the mapping.
            let n = check(unsafe {
                libc::write(
                    memory.as_raw_fd(),
                    self.start.cast::<u8>().add(done).cast(),
                    len - done,
                )
            } as i64)?;
            done += n as usize;
        }
        let mut bytes = vec![0; len];
        let n = rustix::io::pread(&memory, &mut bytes[..], 0)?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// Stores `bytes` at `off`, which with them lies in the mapping.
    pub fn write(&self, off: usize, bytes: &[u8]) -> Result<(), Errno> {
        if off + bytes.len() > self.len {
            return Err(Errno::INVAL);
        }
        let memory = memory_file()?;
        rustix::io::pwrite(&memory, bytes, 0)?;
        // SAFETY: `off .. off + bytes.len()` lies in the mapping.
        let n = check(unsafe {
            libc::read(
                memory.as_raw_fd(),
                self.start.cast::<u8>().add(off).cast(),
                bytes.len(),
            )
        } as i64)?;
        if n as usize == bytes.len() {
            Ok(())
        } else {
            Err(Errno::FAULT)
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nothing points into it.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

fn memory_file() -> Result<OwnedFd, Errno> {
    // SAFETY: the name is a C string.
    let fd = check(i64::from(unsafe {
        libc::memfd_create(c"differential".as_ptr(), libc::MFD_CLOEXEC)
    }))?;
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
