//! Copying the contents of a file.

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Copies the first `length` bytes of a file of `size` bytes: by reference where the file system
/// can, otherwise inside the kernel, otherwise through a buffer. Holes stay holes. Gives the
/// number of bytes that were really copied (0 for a clone).
pub(crate) fn copy_data(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    length: u64,
    size: u64,
) -> Result<u64, Errno> {
    if length == 0 {
        return Ok(0);
    }
    if length == size && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(0);
    }
    let mut copied = 0;
    let mut at = 0;
    while at < length {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(n) if n >= length => break,
            Ok(n) => n,
            Err(Errno::NXIO) => break, // a hole up to the end
            Err(_) => at,              // no knowledge of holes: all is data
        };
        let end = match rustix::fs::seek(from, SeekFrom::Hole(start)) {
            Ok(n) if n > start => n.min(length),
            _ => length,
        };
        copy_range(from, to, start, end)?;
        copied += end - start;
        at = end;
    }
    rustix::fs::ftruncate(to, length)?;
    Ok(copied)
}

/// Copies bytes `start..end` to the same place.
fn copy_range(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Errno> {
    const STEP: u64 = 64 << 20;
    let (mut source, mut target) = (start, start);
    while source < end {
        let want = (end - source).min(STEP) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), want) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            // Not between these two: by hand.
            Err(
                Errno::XDEV
                | Errno::OPNOTSUPP
                | Errno::INVAL
                | Errno::NOSYS
                | Errno::BADF
                | Errno::PERM
                | Errno::IO,
            ) => break,
            Err(e) => return Err(e),
        }
    }
    if source < end {
        copy_by_hand(from, to, source, end)?;
    }
    Ok(())
}

fn copy_by_hand(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    start: u64,
    end: u64,
) -> Result<(), Errno> {
    let mut buffer = vec![0u8; 1 << 20];
    let mut at = start;
    while at < end {
        let want = (end - at).min(buffer.len() as u64) as usize;
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut buffer[..want], at))?;
        if got == 0 {
            return Err(Errno::IO); // the lower file shrank: better an error than zeros
        }
        let mut done = 0;
        while done < got {
            let data = &buffer[done..got];
            let offset = at + done as u64;
            done += rustix::io::retry_on_intr(|| rustix::io::pwrite(to, data, offset))?;
        }
        at += got as u64;
    }
    Ok(())
}
