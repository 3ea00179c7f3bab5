//! Requests over io_uring (Linux 6.14, where the administrator allows it): a request and the reply to the
//! one before are one system call, and the request goes to a thread on the CPU of whoever asks.
//!
//! The kernel has a queue for each CPU and sends requests this way once every queue has an entry. FORGET,
//! INTERRUPT and what is asked before still come through the device, where notifications go too, so that the
//! threads of `channel` serve beside these.
//!
//! Each thread has one entry: a thread that is busy for long, with a copy-up or an fsync, gets no second
//! request that would wait for it. An entry is taken until its request is answered, so a thread that puts an
//! answer off offers another one. The kernel gives a new entry what is asked from then on, and what waits
//! already only when some entry of the queue is given back: if all threads of a queue put an answer off in the
//! same moment, and a WRITE of the pages that they wait for came in just then, it goes on with the next
//! request on that CPU.
//!
//! Invariant: once the kernel was told that requests may come this way, it holds them all back until every
//! queue has an entry or one was refused. So everything that can fail is done before it is told.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::thread::CpuSet;

use super::answer::{Answer, Deferred, LATER_ROOM};
use super::channel::{Device, run_deferred, spawn_deferred};
use super::service::Filesystem;
use super::wire::abi::{REPLY_HEADER, WRITE_FIXED};
use super::wire::fields::Body;
use super::wire::reply::{Out, header};
use super::wire::request::Header;
use crate::sys::uring::{Event, FuseRing};

/// Threads for each queue: one may be busy for long.
const THREADS_A_QUEUE: usize = 2;
/// More CPUs than this cost more threads than the trip is worth.
const MOST_CPUS: usize = 64;
/// Bytes of a request up to which it is copied, so that its reply can take its place. Those above are
/// WRITEs, whose replies are short.
const COPIED: usize = 1 << 16;

/// An answer that was put off.
struct Late {
    entry: usize,
    header: [u8; REPLY_HEADER],
    payload: [u8; LATER_ROOM],
    length: usize,
}

/// Answers that wait for the ring's thread, which alone may give them to the kernel.
struct Mailbox {
    late: Mutex<Vec<Late>>,
    wake: OwnedFd,
}

/// A ring and what its thread needs.
pub(super) struct Worker {
    ring: FuseRing,
    queue: usize,
    payload: usize,
    mailbox: Arc<Mailbox>,
}

/// The numbers of CPUs are below this.
fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next();
    let last = last.and_then(|n| n.parse::<usize>().ok());
    last.map(|n| n + 1)
        .ok_or_else(|| io::Error::other(format!("possible CPUs: {text:?}")))
}

/// Everything for the queues of all CPUs, for requests of up to `payload` bytes.
///
/// # Errors
/// Why io_uring can't be used here.
pub(super) fn workers(payload: usize) -> io::Result<Vec<Worker>> {
    let cpus = possible_cpus()?;
    if cpus > MOST_CPUS {
        return Err(io::Error::other(format!("{cpus} CPUs are too many")));
    }
    let mut workers = Vec::new();
    for n in 0..cpus * THREADS_A_QUEUE {
        let queue = n % cpus;
        let number = u16::try_from(queue).map_err(io::Error::other)?;
        let mut ring = FuseRing::new(number)?;
        ring.reserve(payload)?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
        let late = Mutex::default();
        workers.push(Worker {
            ring,
            queue,
            payload,
            mailbox: Arc::new(Mailbox { late, wake }),
        });
    }
    Ok(workers)
}

/// Offers an entry that the kernel refuses, after which requests come through the device.
///
/// # Errors
/// What io_uring returns.
pub(super) fn refuse(device: &Device) -> io::Result<()> {
    let mut ring = FuseRing::new(0)?;
    ring.enable()?;
    ring.register(device.fd().as_fd(), 1)?;
    ring.wait(&mut Vec::new())?;
    Ok(())
}

impl Worker {
    /// Answers requests until the mount is over, or the kernel refuses.
    ///
    /// # Errors
    /// What io_uring returns.
    pub(super) fn serve(mut self, device: &Device, filesystem: &Arc<Filesystem>) -> io::Result<()> {
        let mut own = CpuSet::new();
        own.set(self.queue);
        if let Err(e) = rustix::thread::sched_setaffinity(None, &own) {
            tracing::debug!(self.queue, "the thread stays on no CPU of its own: {e}");
        }
        self.ring.enable()?;
        self.ring.register(device.fd().as_fd(), self.payload)?;
        self.ring.watch(self.mailbox.wake.as_fd())?;
        let mut live = 1usize;
        let (mut events, mut copy) = (Vec::new(), Vec::new());
        while live > 0 {
            self.ring.wait(&mut events)?;
            for event in events.drain(..) {
                match event {
                    Event::Request(n) => {
                        live += self.serve_one(n, device, filesystem, &mut copy)?
                    }
                    Event::Woken => self.send_late(device)?,
                    Event::Ended(_, e) => {
                        live -= 1;
                        if !matches!(e, Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED) {
                            tracing::warn!(self.queue, "no requests over io_uring: {e}");
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Answers one request; gives the number of entries that were added.
    fn serve_one(
        &mut self,
        n: usize,
        device: &Device,
        filesystem: &Arc<Filesystem>,
        copy: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let Some(parts) = self.ring.parts(n) else {
            return Ok(0);
        };
        let Ok(head) = Header::decode(parts.header) else {
            return Err(io::Error::other("a request without a header"));
        };
        let fixed = parts.fixed;
        let mut length = 0;
        let answer = if parts.sent <= COPIED {
            copy.clear();
            copy.extend_from_slice(parts.payload.get(..parts.sent).unwrap_or_default());
            let body = Body::Split { fixed, rest: copy };
            let mut out = Out::new(parts.payload);
            let answer = filesystem.answer(&head, body, &mut out);
            length = out.len();
            answer
        } else {
            let mut room = [0; WRITE_FIXED];
            let mut out = Out::new(&mut room);
            let rest = parts.payload.get(..parts.sent).unwrap_or_default();
            let answer = filesystem.answer(&head, Body::Split { fixed, rest }, &mut out);
            length += out.len();
            if let (Some(to), Some(from)) = (parts.payload.get_mut(..length), room.get(..length)) {
                to.copy_from_slice(from);
            }
            answer
        };
        let fd = device.fd().as_fd();
        let failed = |e: Errno| header(head.unique, e.raw_os_error(), 0);
        match answer {
            Answer::Done => {
                let done = header(head.unique, 0, length);
                self.ring.commit(n, fd, &done, length)?;
            }
            // Nothing that comes this way goes unanswered.
            Answer::Silence => self.ring.commit(n, fd, &header(head.unique, 0, 0), 0)?,
            Answer::Error(e) => self.ring.commit(n, fd, &failed(e), 0)?,
            Answer::ErrorThen(e, then) => {
                self.ring.commit(n, fd, &failed(e), 0)?;
                self.ring.submit()?;
                then();
            }
            Answer::Later(deferred) => return self.put_off(n, &head, deferred, device),
        }
        // What is answered now must not wait for what comes next.
        self.ring.submit()?;
        Ok(0)
    }

    /// Has an answer made elsewhere, and an entry take the place of the one that waits for it.
    fn put_off(
        &mut self,
        entry: usize,
        head: &Header,
        deferred: Deferred,
        device: &Device,
    ) -> io::Result<usize> {
        self.ring.register(device.fd().as_fd(), self.payload)?;
        self.ring.submit()?;
        let (mailbox, unique) = (Arc::clone(&self.mailbox), head.unique);
        let answer = move || {
            let mut payload = [0; LATER_ROOM];
            let mut out = Out::new(&mut payload);
            let done = run_deferred(deferred, &mut out);
            let length = if done.is_ok() { out.len() } else { 0 };
            let error = done.err().map_or(0, Errno::raw_os_error);
            mailbox.late.lock().push(Late {
                entry,
                header: header(unique, error, length),
                payload,
                length,
            });
            if let Err(e) = rustix::io::write(&mailbox.wake, &1u64.to_ne_bytes()) {
                tracing::error!("an answer stays where it is: {e}");
            }
        };
        if let Err(e) = spawn_deferred(answer) {
            let failed = header(unique, e.raw_os_error(), 0);
            self.ring.commit(entry, device.fd().as_fd(), &failed, 0)?;
            self.ring.submit()?;
        }
        Ok(1)
    }

    /// Gives the kernel the answers that are ready now.
    fn send_late(&mut self, device: &Device) -> io::Result<()> {
        self.ring.watch(self.mailbox.wake.as_fd())?;
        let late = std::mem::take(&mut *self.mailbox.late.lock());
        for one in late {
            if let Some(parts) = self.ring.parts(one.entry)
                && let (Some(to), Some(from)) = (
                    parts.payload.get_mut(..one.length),
                    one.payload.get(..one.length),
                )
            {
                to.copy_from_slice(from);
            }
            let fd = device.fd().as_fd();
            self.ring.commit(one.entry, fd, &one.header, one.length)?;
        }
        self.ring.submit()?;
        Ok(())
    }
}
