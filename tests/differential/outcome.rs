//! What comes of an operation.

use std::fmt;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::model::B;
use super::tree::{self, Attr, Tree};

/// What the tree is to the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Subject,
    Kernel,
    Plain,
}

/// What came of an operation.
#[derive(Clone, PartialEq)]
pub enum Outcome {
    Done,
    Failed(Errno),
    Number(u64),
    /// Length, hash, first bytes.
    Data(usize, u64, B),
    Stat(Box<Attr>),
    List(Vec<(B, FileType)>),
    Names(Vec<B>),
    Bytes(B),
    Tree(TreeBox),
    /// The slot is empty.
    Skipped,
    /// The subject must refuse this; not run elsewhere.
    MustFail,
    /// Wrong in itself, whatever the others say.
    Broken(String),
}

/// A tree in an outcome; compared by [`tree::compare`], not by `==`.
#[derive(Clone)]
pub struct TreeBox(pub Box<Tree>);

impl PartialEq for TreeBox {
    fn eq(&self, other: &TreeBox) -> bool {
        tree::compare(&self.0, &other.0, false, None).is_empty()
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done => write!(f, "done"),
            Outcome::Failed(errno) => write!(f, "{}", errno_name(*errno)),
            Outcome::Number(n) => write!(f, "{n}"),
            Outcome::Data(len, hash, head) => write!(f, "{len} bytes {head:?}… (hash {hash:016x})"),
            Outcome::Stat(attr) => write!(
                f,
                "{:?} {:o} {}:{} rdev {:?} size {} nlink {} mtime {:?} ino {}",
                attr.kind,
                attr.mode,
                attr.uid,
                attr.gid,
                attr.rdev,
                attr.size,
                attr.nlink,
                attr.when,
                attr.id.0
            ),
            Outcome::List(names) => write!(f, "{names:?}"),
            Outcome::Names(names) => write!(f, "{names:?}"),
            Outcome::Bytes(bytes) => write!(f, "{bytes:?}"),
            Outcome::Tree(tree) => write!(f, "a tree of {} objects", tree.0.items.len()),
            Outcome::Skipped => write!(f, "skipped"),
            Outcome::MustFail => write!(f, "must be refused"),
            Outcome::Broken(why) => write!(f, "BROKEN: {why}"),
        }
    }
}

/// The name of an errno.
pub fn errno_name(errno: Errno) -> String {
    let known = [
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::IO, "EIO"),
        (Errno::NXIO, "ENXIO"),
        (Errno::BADF, "EBADF"),
        (Errno::AGAIN, "EAGAIN"),
        (Errno::ACCESS, "EACCES"),
        (Errno::BUSY, "EBUSY"),
        (Errno::EXIST, "EEXIST"),
        (Errno::XDEV, "EXDEV"),
        (Errno::NODEV, "ENODEV"),
        (Errno::NOTDIR, "ENOTDIR"),
        (Errno::ISDIR, "EISDIR"),
        (Errno::INVAL, "EINVAL"),
        (Errno::TXTBSY, "ETXTBSY"),
        (Errno::FBIG, "EFBIG"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::SPIPE, "ESPIPE"),
        (Errno::ROFS, "EROFS"),
        (Errno::MLINK, "EMLINK"),
        (Errno::PIPE, "EPIPE"),
        (Errno::RANGE, "ERANGE"),
        (Errno::NAMETOOLONG, "ENAMETOOLONG"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::NOTEMPTY, "ENOTEMPTY"),
        (Errno::LOOP, "ELOOP"),
        (Errno::NODATA, "ENODATA"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::STALE, "ESTALE"),
        (Errno::NOTCONN, "ENOTCONN"),
        (Errno::CONNABORTED, "ECONNABORTED"),
        (Errno::FAULT, "EFAULT"),
    ];
    match known.iter().find(|(e, _)| *e == errno) {
        Some((_, name)) => (*name).to_string(),
        None => format!("errno {}", errno.raw_os_error()),
    }
}
