//! What becomes of a request, said without knowing how it came.

use rustix::io::Errno;

use super::wire::reply::Out;

/// Runs later, on a thread of its own.
pub(super) type Deferred = Box<dyn FnOnce(&mut Out<'_>) -> Result<(), Errno> + Send>;

/// The answer to a request.
pub(super) enum Answer {
    /// What was written out, which may be nothing.
    Done,
    /// An error.
    Error(Errno),
    /// An error, and what is to be done once it is on its way.
    ErrorThen(Errno, Box<dyn FnOnce() + Send>),
    /// None: the kernel doesn't wait for one.
    Silence,
    /// It takes requests of the kernel's to be answered first, so no serving thread may wait for
    /// it. What it writes out fits [`LATER_ROOM`].
    Later(Deferred),
}

/// Bytes of a reply that comes [`Answer::Later`].
pub(super) const LATER_ROOM: usize = 64;

impl From<Result<(), Errno>> for Answer {
    fn from(done: Result<(), Errno>) -> Answer {
        match done {
            Ok(()) => Answer::Done,
            Err(e) => Answer::Error(e),
        }
    }
}
