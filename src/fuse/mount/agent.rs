//! Mounting by another's hand.
//!
//! A process that has made itself root of a user namespace, to have the user's sub-ids, can't mount where the user
//! sees it any more: it is not root of the namespace that owns the mounts, and `fusermount3` has no set-id powers
//! there. Its parent has stayed outside, and runs `fusermount3` for it. They talk over a socket: a request of three
//! strings, and a byte for an answer, 0 and the descriptor of /dev/fuse, or 1 and the reason.
//!
//! The daemon that serves a tree needs it as long as it lives, to unmount on a signal; and when it is killed, nobody
//! else is there to take away what is dead. So the one who mounted stays until the other end is closed.

use std::ffi::OsStr;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::{run_fusermount, unmount_by_helper};

static AGENT: OnceLock<OwnedFd> = OnceLock::new();

/// Bytes of a request or an answer: two paths and options.
const MAX_MESSAGE: usize = 16 << 10;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order<'a> {
    Mount(&'a OsStr, &'a Path),
    Unmount { lazy: bool, target: &'a Path },
}

/// From now on this process mounts by the hand of whoever is at the other end.
pub fn use_agent(socket: OwnedFd) {
    if AGENT.set(socket).is_err() {
        tracing::debug!("there is an agent already");
    }
}

/// Whether mounts are made by another's hand, in the user namespace outside of this one.
pub fn has_agent() -> bool {
    AGENT.get().is_some()
}

/// `None`: there is no agent, or it has ended.
pub(super) fn ask(order: Order<'_>) -> Option<Result<Option<OwnedFd>, String>> {
    let socket = AGENT.get()?;
    let (verb, words, target): (&[u8], &[u8], &Path) = match order {
        Order::Mount(options, target) => (b"mount", options.as_bytes(), target),
        Order::Unmount { lazy: true, target } => (b"umount", b"lazy", target),
        Order::Unmount { target, .. } => (b"umount", b"", target),
    };
    let message = [verb, words, target.as_os_str().as_bytes()].join(&0);
    rustix::net::send(socket, &message, SendFlags::NOSIGNAL).ok()?;
    let mut answer = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut answer)],
        &mut control,
        flags,
    );
    let length = received.ok()?.bytes;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    match answer.get(..length)?.split_first()? {
        (0, _) => Some(Ok(fd)),
        (_, why) => Some(Err(String::from_utf8_lossy(why).into_owned())),
    }
}

/// The agent's part: serves until the other end is closed, or `stop` is. Returns where it has mounted something, last
/// and not unmounted since; a command mounts one tree.
pub fn serve(
    socket: BorrowedFd<'_>,
    stop: Option<BorrowedFd<'_>>,
    mut mounted: Option<PathBuf>,
) -> Result<Option<PathBuf>, Errno> {
    let mut message = vec![0; MAX_MESSAGE];
    loop {
        if is_stopped(socket, stop)? {
            return Ok(mounted);
        }
        let (_, length) = rustix::net::recv(socket, message.as_mut_slice(), RecvFlags::empty())?;
        if length == 0 {
            return Ok(mounted);
        }
        let request = message.get(..length).unwrap_or_default();
        let mut words = request.splitn(3, |byte| *byte == 0).map(OsStr::from_bytes);
        let (verb, options, target) = (words.next(), words.next(), words.next());
        let done = match (verb.map(OsStr::as_bytes), options, target.map(Path::new)) {
            (Some(b"mount"), Some(options), Some(target)) => {
                run_fusermount(options, target).inspect(|_| mounted = Some(target.to_owned()))
            }
            (Some(b"umount"), Some(words), Some(target)) => {
                unmount_by_helper(target, words == "lazy").map(|()| {
                    mounted.take_if(|path| path == target);
                    None
                })
            }
            _ => Err("a request that can't be understood".into()),
        };
        answer(socket, done)?;
    }
}

/// Waits for a request. `true`: `stop` was closed, and there is none.
fn is_stopped(socket: BorrowedFd<'_>, stop: Option<BorrowedFd<'_>>) -> Result<bool, Errno> {
    let Some(stop) = stop else { return Ok(false) };
    let mut fds = [
        PollFd::from_borrowed_fd(socket, PollFlags::IN),
        PollFd::from_borrowed_fd(stop, PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => break,
        }
    }
    let [request, stop] = fds;
    Ok(request.revents().is_empty() && !stop.revents().is_empty())
}

/// Serves until the daemon has ended. Takes away what it has left, if it died before it could.
pub fn stay(socket: BorrowedFd<'_>, mounted: Option<PathBuf>) {
    let left = serve(socket, None, mounted).unwrap_or_else(|error| {
        tracing::debug!(%error, "nobody is left to mount for");
        None
    });
    let Some(target) = left else { return };
    if rustix::fs::stat(&target).err() == Some(Errno::NOTCONN)
        && let Err(error) = unmount_by_helper(&target, true)
    {
        tracing::debug!(%error, "a dead mount stays");
    }
}

fn answer(socket: BorrowedFd<'_>, done: Result<Option<OwnedFd>, String>) -> Result<(), Errno> {
    let (text, fd) = match &done {
        Ok(fd) => (vec![0], fd.as_ref()),
        Err(why) => ([&[1], why.as_bytes()].concat(), None),
    };
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&text)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
