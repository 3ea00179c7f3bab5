//! The terminal of the user, and the one of the container: bytes and sizes from one to the other.

use std::fs::File;
use std::io::{IoSliceMut, IsTerminal as _, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::termios::{OptionalActions, Termios};

use crate::sys::process::{block_signals, wait_signal};

const WINDOW_CHANGED: i32 = 28;

/// How the user's terminal was.
#[derive(Debug)]
pub struct Saved(Option<Termios>);

impl Saved {
    /// Remembers it.
    pub fn take() -> Saved {
        let stdin = std::io::stdin();
        let is_terminal = stdin.is_terminal();
        Saved(
            is_terminal
                .then(|| rustix::termios::tcgetattr(&stdin).ok())
                .flatten(),
        )
    }

    /// Lets every key through as it is.
    pub fn make_raw(&self) {
        let Some(mut raw) = self.0.clone() else {
            return;
        };
        raw.make_raw();
        self.set(&raw);
    }

    /// Makes it what it was.
    pub fn restore(&self) {
        if let Some(saved) = &self.0 {
            self.set(saved);
        }
    }

    fn set(&self, termios: &Termios) {
        let stdin = std::io::stdin();
        if let Err(error) = rustix::termios::tcsetattr(&stdin, OptionalActions::Drain, termios) {
            tracing::debug!(%error, "the terminal stays as it is");
        }
    }
}

/// The container's terminal, as the runtime hands it over on its console socket.
pub fn receive(socket: &UnixListener) -> std::io::Result<OwnedFd> {
    let (stream, _) = socket.accept()?;
    let mut buffer = [0u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.ok_or_else(|| std::io::Error::other("the runtime has sent no terminal"))
}

/// Connects both terminals. The thread ends once all that was written in the container has been shown.
pub fn connect(master: OwnedFd) -> std::io::Result<JoinHandle<()>> {
    let master = Arc::new(File::from(master));
    block_signals(&[WINDOW_CHANGED])?;
    copy_size(&master);
    let resized = Arc::clone(&master);
    std::thread::spawn(move || {
        while wait_signal(&[WINDOW_CHANGED]).is_ok() {
            copy_size(&resized);
        }
    });
    let input = Arc::clone(&master);
    std::thread::spawn(move || {
        // Ends with the user's terminal, or with the container's.
        if let Err(error) = std::io::copy(&mut std::io::stdin().lock(), &mut &*input) {
            tracing::debug!(%error, "input ends");
        }
    });
    Ok(std::thread::spawn(move || {
        let mut buffer = [0; 16 << 10];
        let mut stdout = std::io::stdout();
        // EIO: nobody has the other side open any more.
        while let Ok(read @ 1..) = (&*master).read(&mut buffer) {
            let shown = stdout
                .write_all(buffer.get(..read).unwrap_or_default())
                .and_then(|()| stdout.flush());
            if shown.is_err() {
                return;
            }
        }
    }))
}

fn copy_size(master: &File) {
    let size = rustix::termios::tcgetwinsize(std::io::stdin().as_fd());
    if let Ok(size) = size
        && let Err(error) = rustix::termios::tcsetwinsize(master, size)
    {
        tracing::debug!(%error, "the size stays");
    }
}
