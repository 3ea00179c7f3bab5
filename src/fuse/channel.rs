//! The connection to the kernel: a descriptor of `/dev/fuse`, requests read from it, replies and
//! notifications written to it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::answer::{Answer, Deferred, LATER_ROOM};
use super::crew::{Back, Crew};
use super::service::Filesystem;
use super::wire::abi::{MIN_READ_BUFFER, REPLY_HEADER, REQUEST_HEADER, WRITE_FIXED};
use super::wire::fields::{Body, Malformed};
use super::wire::init::{Agreed, Agreement, InitIn, Wanted, agree, encode_again};
use super::wire::notify::{self, Notification};
use super::wire::reply::{Out, header};
use super::wire::request::{Dialect, Header, Op};

/// One descriptor of the connection.
#[derive(Clone)]
pub(super) struct Device(Arc<OwnedFd>);

impl Device {
    /// # Errors
    /// What making it one that never waits returns.
    pub(super) fn new(fd: OwnedFd) -> Result<Device, Errno> {
        rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK)?;
        Ok(Device(Arc::new(fd)))
    }

    /// Another descriptor of the same connection, with a list of its own of the requests that it
    /// gave out.
    ///
    /// # Errors
    /// What opening `/dev/fuse` returns, and `EINVAL` on kernels without it.
    pub(super) fn try_clone(&self) -> Result<Device, Errno> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
        crate::sys::fuse::join_connection(fd.as_fd(), self.0.as_fd())?;
        Device::new(fd)
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Reads the next request if there is one.
    fn try_next(&self, buffer: &mut [u8]) -> Result<Next, Errno> {
        loop {
            match rustix::io::read(&*self.0, &mut *buffer) {
                Ok(n) => return Ok(Next::Request(n)),
                Err(Errno::AGAIN) => return Ok(Next::Nothing),
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(Next::Over),
                // ENOENT: whoever asked has gone.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Sleeps until there is a request, or the mount is over.
    fn wait(&self) -> Result<(), Errno> {
        let mut waited = [PollFd::new(&*self.0, PollFlags::IN)];
        match rustix::event::poll(&mut waited, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Writes one message, which the kernel takes as a whole.
    fn send(&self, message: &[u8]) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| rustix::io::write(&*self.0, message)).map(drop)
    }

    fn reply(&self, message: &[u8]) {
        match self.send(message) {
            // Whoever asked has gone, or the mount is over.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            Err(e) => tracing::error!("a reply was not taken: {e}"),
        }
    }

    fn reply_error(&self, unique: u64, error: Errno) {
        self.reply(&header(unique, error.raw_os_error(), 0));
    }
}

/// What reading a request gave.
enum Next {
    /// One of so many bytes.
    Request(usize),
    Nothing,
    /// The mount is over.
    Over,
}

/// Tells the kernel what not to believe any more.
#[derive(Clone)]
pub(super) struct Notifier(Device);

impl Notifier {
    pub(super) fn new(device: Device) -> Notifier {
        Notifier(device)
    }

    /// The attributes of a node and its pages are not to be kept. Returns once pages that were
    /// written to are on their way, which takes WRITE requests: no serving thread may wait for it.
    ///
    /// # Errors
    /// What the kernel returns. Not knowing the node is none.
    pub(super) fn inval_inode(&self, node: u64) -> Result<(), Errno> {
        let (offset, len) = (0, 0);
        self.notify(&Notification::InvalInode { node, offset, len })
    }

    /// The attributes of a node are not to be kept; its pages are.
    ///
    /// # Errors
    /// What the kernel returns. Not knowing the node is none.
    pub(super) fn inval_attributes(&self, node: u64) -> Result<(), Errno> {
        let (offset, len) = (-1, 0);
        self.notify(&Notification::InvalInode { node, offset, len })
    }

    /// What a name leads to is not to be kept.
    ///
    /// # Errors
    /// What the kernel returns. Not knowing the name is none.
    pub(super) fn inval_entry(&self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        self.notify(&Notification::InvalEntry { parent, name })
    }

    fn notify(&self, what: &Notification<'_>) -> Result<(), Errno> {
        let mut room = [0; notify::MAX];
        let length = notify::encode(what, &mut room).ok_or(Errno::NAMETOOLONG)?;
        let message = room.get(..length).ok_or(Errno::NAMETOOLONG)?;
        match self.0.send(message) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

/// Bytes of the buffer that requests are read into; a SETXATTR with the longest value fits too.
fn request_room(payload: usize) -> usize {
    const LONGEST_XATTR: usize = 65_536 + 256;
    (payload.max(LONGEST_XATTR) + REQUEST_HEADER + WRITE_FIXED).max(MIN_READ_BUFFER)
}

/// Answers the kernel's INIT, with what is wanted of such a kernel.
///
/// # Errors
/// `EPROTO` when there is no common language, `ENODEV` when the mount is over already, and what
/// reading returns.
pub(super) fn shake_hands(
    device: &Device,
    mut wanted: impl FnMut(&InitIn) -> Wanted,
) -> io::Result<Agreed> {
    let mut buffer = vec![0; request_room(0)];
    loop {
        let bytes = match device.try_next(&mut buffer)? {
            Next::Request(n) => buffer.get(..n).unwrap_or_default(),
            Next::Nothing => {
                device.wait()?;
                continue;
            }
            Next::Over => return Err(Errno::NODEV.into()),
        };
        let (head, body) = take_apart(bytes).map_err(|_| Errno::PROTO)?;
        let Ok(Op::Init(kernel)) = Op::decode(&head, body, Dialect::default()) else {
            return Err(Errno::PROTO.into());
        };
        let mut room = [0; REPLY_HEADER + 64];
        let (start, rest) = room.split_at_mut(REPLY_HEADER);
        let mut out = Out::new(rest);
        let agreed = match agree(&kernel, &wanted(&kernel)) {
            Agreement::Agreed(agreed) => Some(agreed),
            Agreement::Again => None,
            Agreement::TooOld => {
                device.reply_error(head.unique, Errno::PROTO);
                let said = format!(
                    "the kernel speaks FUSE {}.{}, at least 7.{} is needed",
                    kernel.major,
                    kernel.minor,
                    super::wire::OLDEST_MINOR
                );
                return Err(io::Error::new(io::ErrorKind::Unsupported, said));
            }
        };
        let fits = match &agreed {
            Some(agreed) => agreed.encode(&mut out),
            None => encode_again(&mut out),
        };
        if !fits {
            return Err(Errno::PROTO.into());
        }
        start.copy_from_slice(&header(head.unique, 0, out.len()));
        device.send(&room)?;
        if let Some(agreed) = agreed {
            return Ok(agreed);
        }
    }
}

/// Header and body of a request that came in one piece.
fn take_apart(bytes: &[u8]) -> Result<(Header, Body<'_>), Malformed> {
    let head = Header::decode(bytes)?;
    let whole = bytes.get(REQUEST_HEADER..head.len as usize);
    Ok((head, Body::Whole(whole.ok_or(Malformed::Short)?)))
}

/// Answers requests until the mount is over.
///
/// # Errors
/// What reading returns.
pub(super) fn serve(device: &Device, filesystem: &Arc<Filesystem>, crew: &Crew) -> io::Result<()> {
    let payload = filesystem.agreed().payload();
    let mut request = vec![0; request_room(payload)];
    let mut reply = vec![0; REPLY_HEADER + payload];
    let mut answer = |request: &[u8]| serve_one(device, filesystem, request, &mut reply);
    let mut back = None;
    loop {
        let mut in_a_row = 0;
        while let Next::Request(n) = device.try_next(&mut request)? {
            crew.took(in_a_row);
            answer(request.get(..n).unwrap_or_default());
            in_a_row += 1;
        }
        if back == Some(Back::Called) {
            crew.helped(in_a_row > 0);
        }
        back = None;
        if !crew.take_watch() {
            back = Some(crew.rest());
            if back == Some(Back::Over) {
                return Ok(());
            }
            continue;
        }
        let next = watch(device, &mut request);
        crew.leave_watch();
        match next? {
            Next::Request(n) => {
                crew.took(0);
                answer(request.get(..n).unwrap_or_default());
            }
            Next::Nothing => {}
            Next::Over => {
                crew.end();
                return Ok(());
            }
        }
    }
}

/// Waits for a request: awake for a moment, since a client mostly asks again at once, and waking a thread up takes
/// longer than answering; then asleep.
fn watch(device: &Device, request: &mut [u8]) -> Result<Next, Errno> {
    const MOMENT: Duration = Duration::from_micros(40);
    let since = Instant::now();
    while since.elapsed() < MOMENT {
        // Whoever else wants this CPU goes first.
        rustix::thread::sched_yield();
        match device.try_next(request)? {
            Next::Nothing => {}
            next => return Ok(next),
        }
    }
    device.wait()?;
    device.try_next(request)
}

fn serve_one(device: &Device, filesystem: &Arc<Filesystem>, bytes: &[u8], reply: &mut [u8]) {
    let (head, body) = match take_apart(bytes) {
        Ok(parts) => parts,
        Err(e) => return tracing::error!("{} bytes are no request: {e}", bytes.len()),
    };
    let (start, room) = reply.split_at_mut(REPLY_HEADER);
    let mut out = Out::new(room);
    match filesystem.answer(&head, body, &mut out) {
        Answer::Done => {
            let length = out.len();
            start.copy_from_slice(&header(head.unique, 0, length));
            if let Some(message) = reply.get(..REPLY_HEADER + length) {
                device.reply(message);
            }
        }
        Answer::Error(e) => device.reply_error(head.unique, e),
        Answer::ErrorThen(e, then) => {
            device.reply_error(head.unique, e);
            then();
        }
        Answer::Silence => {}
        Answer::Later(deferred) => {
            let (to, unique) = (device.clone(), head.unique);
            let answer = move || {
                let mut room = [0; REPLY_HEADER + LATER_ROOM];
                let (start, rest) = room.split_at_mut(REPLY_HEADER);
                let mut out = Out::new(rest);
                match run_deferred(deferred, &mut out) {
                    Ok(()) => {
                        let length = out.len();
                        start.copy_from_slice(&header(unique, 0, length));
                        to.reply(room.get(..REPLY_HEADER + length).unwrap_or_default());
                    }
                    Err(e) => to.reply_error(unique, e),
                }
            };
            if let Err(e) = spawn_deferred(answer) {
                device.reply_error(head.unique, e);
            }
        }
    }
}

/// A thread for an answer that takes other requests to be answered first.
///
/// # Errors
/// `EIO`: there can't be one.
pub(super) fn spawn_deferred(answer: impl FnOnce() + Send + 'static) -> Result<(), Errno> {
    let spawned = std::thread::Builder::new()
        .name("later".into())
        .spawn(answer);
    spawned.map(drop).map_err(|e| {
        tracing::warn!("no thread to wait for the kernel's pages: {e}");
        Errno::IO
    })
}

/// Runs what was put off.
///
/// # Errors
/// Its own; `EIO` if it panics.
pub(super) fn run_deferred(deferred: Deferred, out: &mut Out<'_>) -> Result<(), Errno> {
    let done = catch_unwind(AssertUnwindSafe(|| deferred(out)));
    done.unwrap_or_else(|_| {
        tracing::error!("internal error while answering a request");
        Err(Errno::IO)
    })
}
