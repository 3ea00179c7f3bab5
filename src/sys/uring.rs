//! FUSE requests over io_uring: rings whose entries are buffers that the kernel puts requests into and
//! takes replies from (Documentation/filesystems/fuse/fuse-io-uring.rst).
//!
//! Invariant: a buffer is only touched here while its entry is `Owner::Us`; from a submission until its
//! completion it is the kernel's.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;

use super::call::check;

/// `io_uring_setup(2)`: one thread submits, and work that completes something waits for it to come.
const SETUP_R_DISABLED: u32 = 1 << 6;
const SETUP_SQE128: u32 = 1 << 10;
const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
const SETUP_NO_SQARRAY: u32 = 1 << 16;
const ENTER_GETEVENTS: u32 = 1;
const REGISTER_ENABLE_RINGS: u32 = 12;
const OFFSET_RINGS: i64 = 0;
const OFFSET_SQES: i64 = 0x1000_0000;
const OP_READ: u8 = 22;
const OP_URING_CMD: u8 = 46;
/// `FUSE_IO_URING_CMD_REGISTER`, `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`.
const CMD_REGISTER: u32 = 1;
const CMD_COMMIT_AND_FETCH: u32 = 2;
/// Submissions that fit the ring. They are handed over at each wait.
const SUBMISSIONS: u32 = 16;
const SQE: usize = 128;
/// `struct fuse_uring_req_header`: 128 bytes each for the header and the fixed part, 32 for sizes.
const HEADERS: usize = 288;
const PAGE: usize = 4096;
/// `user_data` of the read of the descriptor that wakes the ring.
const WOKEN: u64 = u64::MAX;

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    sq: SubmissionOffsets,
    cq: CompletionOffsets,
}

/// `struct io_sqring_offsets`.
#[repr(C)]
#[derive(Default)]
struct SubmissionOffsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    resv: u32,
    user: u64,
}

/// `struct io_cqring_offsets`.
#[repr(C)]
#[derive(Default)]
struct CompletionOffsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    overflow: u32,
    cqes: u32,
    flags: u32,
    resv: u32,
    user: u64,
}

/// Memory of its own pages.
struct Map {
    at: NonNull<u8>,
    size: usize,
}

// SAFETY: the memory belongs to whoever has the value, and to no thread.
unsafe impl Send for Map {}

impl Map {
    /// Anonymous memory, or what `ring` has at an offset.
    fn new(size: usize, ring: Option<(&OwnedFd, i64)>) -> Result<Map, Errno> {
        let (flags, fd, offset) = match ring {
            Some((fd, at)) => (libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), at),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
        };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), size, prot, flags, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(super::call::last_errno());
        }
        let at = NonNull::new(at.cast()).ok_or(Errno::NOMEM)?;
        Ok(Map { at, size })
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        debug_assert!(offset as usize + 4 <= self.size && offset.is_multiple_of(4));
        // SAFETY: the kernel's offsets are inside of the ring that it mapped, and aligned.
        unsafe { self.at.add(offset as usize).cast().as_ref() }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's alone. Failing to unmap only leaks it.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.size) };
    }
}

/// Who may touch an entry's buffers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Kernel,
    Us,
}

/// Room for one request and its reply.
struct Entry {
    memory: std::mem::ManuallyDrop<Map>,
    /// What REGISTER points to: the headers and the payload.
    segments: Box<[libc::iovec; 2]>,
    owner: Owner,
}

// SAFETY: the pointers are into the entry's own memory.
unsafe impl Send for Entry {}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.owner == Owner::Us {
            // SAFETY: not used after this. Memory that the kernel may still write to stays.
            unsafe { std::mem::ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

/// What a wait can end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The entry with this number holds a request.
    Request(usize),
    /// The entry with this number got none, nor will it: registering it failed, or the mount is over.
    Ended(usize, Errno),
    /// Somebody wrote to the descriptor that wakes the ring.
    Woken,
}

/// A request in an entry's buffers.
pub struct Parts<'a> {
    /// The header, and room behind it.
    pub header: &'a [u8],
    /// The fixed part of the operation, and room behind it.
    pub fixed: &'a [u8],
    /// Its first `sent` bytes are the rest of the request; the reply goes here.
    pub payload: &'a mut [u8],
    /// Bytes of the request in `payload`.
    pub sent: usize,
}

/// A ring, which one thread uses.
pub struct FuseRing {
    fd: OwnedFd,
    rings: Map,
    sqes: Map,
    sq: SubmissionOffsets,
    cq: CompletionOffsets,
    to_submit: u32,
    queue: u16,
    entries: Vec<Entry>,
    reserved: Option<Map>,
    /// Where the number of an eventfd is read to. Never freed: nothing tells when the kernel has let go of it.
    wake: &'static AtomicU64,
}

impl FuseRing {
    /// A ring for the queue of one CPU, which no thread uses yet.
    ///
    /// # Errors
    /// What io_uring_setup(2) and mmap(2) return: `EPERM` and `ENOSYS` where it is not allowed or
    /// not there, `EINVAL` on kernels before 6.6.
    pub fn new(queue: u16) -> Result<FuseRing, Errno> {
        let mut params = Params {
            flags: SETUP_R_DISABLED
                | SETUP_SQE128
                | SETUP_SINGLE_ISSUER
                | SETUP_DEFER_TASKRUN
                | SETUP_NO_SQARRAY,
            ..Params::default()
        };
        // SAFETY: `params` is a struct io_uring_params.
        let fd = check(unsafe {
            libc::syscall(libc::SYS_io_uring_setup, SUBMISSIONS, &raw mut params)
        })?;
        let fd = i32::try_from(fd).map_err(|_| Errno::MFILE)?;
        // SAFETY: a fresh descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let (sq, cq) = (params.sq, params.cq);
        // Both rings are one mapping since 5.4.
        let size = cq.cqes as usize + params.cq_entries as usize * 16;
        let rings = Map::new(size.max(sq.entries as usize + 4), Some((&fd, OFFSET_RINGS)))?;
        let room = params.sq_entries as usize * SQE;
        let sqes = Map::new(room, Some((&fd, OFFSET_SQES)))?;
        Ok(FuseRing {
            fd,
            rings,
            sqes,
            sq,
            cq,
            to_submit: 0,
            queue,
            entries: Vec::new(),
            reserved: None,
            wake: Box::leak(Box::default()),
        })
    }

    /// Makes the ring the calling thread's.
    ///
    /// # Errors
    /// What io_uring_register(2) returns.
    pub fn enable(&self) -> Result<(), Errno> {
        // SAFETY: no arguments.
        check(unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.fd.as_raw_fd(),
                REGISTER_ENABLE_RINGS,
                0,
                0,
            )
        })
        .map(drop)
    }

    /// Takes the memory of one entry, so that registering it can't fail for want of it.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn reserve(&mut self, payload: usize) -> Result<(), Errno> {
        self.reserved = Some(Map::new(PAGE + payload, None)?);
        Ok(())
    }

    /// Hands submissions over without waiting.
    ///
    /// # Errors
    /// What io_uring_enter(2) returns.
    pub fn submit(&mut self) -> Result<(), Errno> {
        self.enter(0)
    }

    /// Offers the kernel one more entry, with room for `payload` bytes, at the next wait; gives its
    /// number.
    ///
    /// # Errors
    /// `ENOMEM`, and what handing over earlier submissions returns.
    pub fn register(&mut self, device: BorrowedFd<'_>, payload: usize) -> Result<usize, Errno> {
        let memory = match self.reserved.take_if(|map| map.size >= PAGE + payload) {
            Some(map) => map,
            None => Map::new(PAGE + payload, None)?,
        };
        let payload = memory.size - PAGE;
        let segment = |at: *mut u8, size| libc::iovec {
            iov_base: at.cast(),
            iov_len: size,
        };
        let start = memory.at.as_ptr();
        // SAFETY: the mapping has a page and the payload.
        let segments = [
            segment(start, HEADERS),
            segment(unsafe { start.add(PAGE) }, payload),
        ];
        self.entries.push(Entry {
            memory: std::mem::ManuallyDrop::new(memory),
            segments: Box::new(segments),
            owner: Owner::Us,
        });
        let n = self.entries.len() - 1;
        self.command(n, device, CMD_REGISTER, 0)?;
        Ok(n)
    }

    /// Has 8 bytes read from an eventfd, once.
    ///
    /// # Errors
    /// What handing over earlier submissions returns.
    pub fn watch(&mut self, eventfd: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut sqe = [0u8; SQE];
        let to = self.wake.as_ptr() as u64;
        put(&mut sqe, 0, &[OP_READ]);
        put(&mut sqe, 4, &eventfd.as_raw_fd().to_ne_bytes());
        put(&mut sqe, 8, &u64::MAX.to_ne_bytes());
        put(&mut sqe, 16, &to.to_ne_bytes());
        put(&mut sqe, 24, &8u32.to_ne_bytes());
        put(&mut sqe, 32, &WOKEN.to_ne_bytes());
        self.push(&sqe)
    }

    /// The request in an entry that a wait has told of.
    pub fn parts(&mut self, n: usize) -> Option<Parts<'_>> {
        let entry = self.entries.get_mut(n)?;
        if entry.owner != Owner::Us {
            return None;
        }
        let size = entry.memory.size;
        // SAFETY: the kernel has given the memory to us, and `self` is borrowed as long as it is used.
        let bytes = unsafe { std::slice::from_raw_parts_mut(entry.memory.at.as_ptr(), size) };
        let (headers, payload) = bytes.split_at_mut_checked(PAGE)?;
        let (header, rest) = headers.split_at_checked(128)?;
        let (fixed, sizes) = rest.split_at_checked(128)?;
        let sent = u32::from_ne_bytes(*sizes.get(16..)?.first_chunk()?) as usize;
        Some(Parts {
            header,
            fixed,
            sent: sent.min(payload.len()),
            payload,
        })
    }

    /// Gives the entry back with a reply of `length` bytes in its payload, and takes the next
    /// request, at the next wait.
    ///
    /// # Errors
    /// `EBADF` for an entry that holds no request; what handing over earlier submissions returns.
    pub fn commit(
        &mut self,
        n: usize,
        device: BorrowedFd<'_>,
        header: &[u8; 16],
        length: usize,
    ) -> Result<(), Errno> {
        let entry = self.entries.get_mut(n).ok_or(Errno::BADF)?;
        if entry.owner != Owner::Us {
            return Err(Errno::BADF);
        }
        let length = u32::try_from(length).map_err(|_| Errno::OVERFLOW)?;
        // SAFETY: the first page of the entry's memory, which is ours.
        let page = unsafe { std::slice::from_raw_parts_mut(entry.memory.at.as_ptr(), PAGE) };
        put(page, 0, header);
        put(page, 256 + 16, &length.to_ne_bytes());
        let id = page.get(264..).and_then(|b| b.first_chunk());
        let id = u64::from_ne_bytes(*id.ok_or(Errno::INVAL)?);
        self.command(n, device, CMD_COMMIT_AND_FETCH, id)
    }

    fn command(
        &mut self,
        n: usize,
        device: BorrowedFd<'_>,
        command: u32,
        commit_id: u64,
    ) -> Result<(), Errno> {
        let queue = self.queue;
        let entry = self.entries.get_mut(n).ok_or(Errno::BADF)?;
        let segments = entry.segments.as_ptr() as u64;
        let mut sqe = [0u8; SQE];
        put(&mut sqe, 0, &[OP_URING_CMD]);
        put(&mut sqe, 4, &device.as_raw_fd().to_ne_bytes());
        put(&mut sqe, 8, &command.to_ne_bytes());
        put(&mut sqe, 16, &segments.to_ne_bytes());
        put(&mut sqe, 24, &2u32.to_ne_bytes());
        put(&mut sqe, 32, &(n as u64).to_ne_bytes());
        // struct fuse_uring_cmd_req: flags, commit_id, qid.
        put(&mut sqe, 56, &commit_id.to_ne_bytes());
        put(&mut sqe, 64, &queue.to_ne_bytes());
        self.push(&sqe)?;
        if let Some(entry) = self.entries.get_mut(n) {
            entry.owner = Owner::Kernel;
        }
        Ok(())
    }

    fn push(&mut self, sqe: &[u8; SQE]) -> Result<(), Errno> {
        let entries = self.rings.word(self.sq.entries).load(Ordering::Relaxed);
        if self.to_submit >= entries {
            self.enter(0)?;
        }
        let tail = self.rings.word(self.sq.tail);
        let at = tail.load(Ordering::Relaxed);
        let slot = (at & (entries - 1)) as usize * SQE;
        if slot + SQE > self.sqes.size {
            return Err(Errno::OVERFLOW);
        }
        // SAFETY: the slot is inside of the mapping, and the kernel has taken what was in it.
        let to = unsafe { std::slice::from_raw_parts_mut(self.sqes.at.as_ptr().add(slot), SQE) };
        to.copy_from_slice(sqe);
        tail.store(at.wrapping_add(1), Ordering::Release);
        self.to_submit += 1;
        Ok(())
    }

    fn enter(&mut self, wait_for: u32) -> Result<(), Errno> {
        loop {
            // SAFETY: no pointers but those in the submissions, which live as long as `self`.
            let done = check(unsafe {
                libc::syscall(
                    libc::SYS_io_uring_enter,
                    self.fd.as_raw_fd(),
                    self.to_submit,
                    wait_for,
                    ENTER_GETEVENTS,
                    0,
                    0,
                )
            });
            match done {
                Ok(n) => {
                    let taken = u32::try_from(n).unwrap_or(u32::MAX);
                    self.to_submit = self.to_submit.saturating_sub(taken);
                    if self.to_submit == 0 {
                        return Ok(());
                    }
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Hands submissions over, waits until something happens and puts it into `events`.
    ///
    /// # Errors
    /// What io_uring_enter(2) returns.
    pub fn wait(&mut self, events: &mut Vec<Event>) -> Result<(), Errno> {
        events.clear();
        self.enter(1)?;
        let mask = self.rings.word(self.cq.mask).load(Ordering::Relaxed);
        let head = self.rings.word(self.cq.head);
        let tail = self.rings.word(self.cq.tail);
        let mut at = head.load(Ordering::Relaxed);
        while at != tail.load(Ordering::Acquire) {
            let offset = self.cq.cqes + (at & mask) * 16;
            let word = |n: u32| self.rings.word(offset + 4 * n).load(Ordering::Relaxed);
            let user = u64::from(word(0)) | u64::from(word(1)) << 32;
            let result = word(2).cast_signed();
            at = at.wrapping_add(1);
            head.store(at, Ordering::Release);
            if user == WOKEN {
                events.push(Event::Woken);
                continue;
            }
            let Ok(n) = usize::try_from(user) else {
                continue;
            };
            if let Some(entry) = self.entries.get_mut(n) {
                entry.owner = Owner::Us;
            }
            events.push(match result {
                0.. => Event::Request(n),
                error => Event::Ended(n, Errno::from_raw_os_error(error.wrapping_neg())),
            });
        }
        Ok(())
    }
}

fn put(to: &mut [u8], at: usize, value: &[u8]) {
    if let Some(room) = to.get_mut(at..at + value.len()) {
        room.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_ring_is_woken_and_refuses_what_is_no_connection() {
        let mut ring = FuseRing::new(0).unwrap();
        ring.enable().unwrap();
        let flags = rustix::event::EventfdFlags::CLOEXEC;
        let wake = rustix::event::eventfd(0, flags).unwrap();
        ring.watch(wake.as_fd()).unwrap();
        rustix::io::write(&wake, &1u64.to_ne_bytes()).unwrap();
        let mut events = Vec::new();
        ring.wait(&mut events).unwrap();
        assert_eq!(events, [Event::Woken]);
        let file = tempfile::tempfile().unwrap();
        let n = ring.register(file.as_fd(), 8192).unwrap();
        assert!(ring.parts(n).is_none(), "the kernel has it");
        ring.wait(&mut events).unwrap();
        assert_eq!(events, [Event::Ended(n, Errno::OPNOTSUPP)]);
        assert_eq!(ring.parts(n).unwrap().payload.len(), 8192);
        assert_eq!(ring.commit(7, file.as_fd(), &[0; 16], 0), Err(Errno::BADF));
    }
}
