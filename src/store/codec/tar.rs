//! tar: V7, ustar, old GNU and PAX in; deterministic ustar with PAX where needed out.
//!
//! [`Parser`] is fed bytes and does no I/O; [`Reader`] feeds it from a stream. Where readers in the
//! field disagree about what an archive says, it is refused, rather than read in one of the ways.
//! What bodies are follows Go's `archive/tar`, since Docker and podman read layers with it: links,
//! directories and devices have none, whatever their size field says.

pub mod header;
pub mod parser;
pub mod pax;
pub mod reader;
mod sparse;
pub mod writer;

use std::fmt;
use std::io;

pub use parser::{Parser, Step};
pub use reader::Reader;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name of a file in the same archive: the target's path as it stands there.
    HardLink(Vec<u8>),
    /// A symlink and its target.
    Symlink(Vec<u8>),
    /// A directory.
    Dir,
    /// A named pipe.
    Fifo,
    /// A character device.
    Char {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970, negative before.
    pub sec: i64,
    /// Nanoseconds after that second, below 1,000,000,000.
    pub nsec: u32,
}

/// Data at some place of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseSegment {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Name and value of an extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// One object of an archive, with what all of its headers say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The path as it stands in the archive: neither cleaned nor checked, but without NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky, at most 0o7777.
    pub mode: u32,
    /// Owner, not 4294967295.
    pub uid: u32,
    /// Group, not 4294967295.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Access time, where the archive has one.
    pub atime: Option<Time>,
    /// Length of the file in bytes, holes included; 0 for what is no file.
    pub size: u64,
    /// Bytes of the body in the archive: `size`, or that of the pieces of a sparse file.
    pub stored: u64,
    /// Extended attributes, in the order of the archive; each name once.
    pub xattrs: Vec<Xattr>,
    /// The pieces that a sparse file's body consists of, in order, without overlap.
    pub sparse: Option<Vec<SparseSegment>>,
}

/// A field of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// The header's checksum.
    Checksum,
    /// Permission bits.
    Mode,
    /// Owner.
    Uid,
    /// Group.
    Gid,
    /// Length.
    Size,
    /// Modification time.
    Mtime,
    /// Device number.
    Device,
    /// Map of a sparse file.
    Sparse,
    /// Path.
    Path,
    /// Target of a link.
    Link,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::Checksum => "checksum",
            Field::Mode => "mode",
            Field::Uid => "owner",
            Field::Gid => "group",
            Field::Size => "size",
            Field::Mtime => "modification time",
            Field::Device => "device number",
            Field::Sparse => "sparse map",
            Field::Path => "path",
            Field::Link => "link target",
        })
    }
}

/// What is wrong with an archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The checksum is wrong: damage, or no tar at all.
    #[error("the header's checksum is wrong: it is damaged, or no tar archive")]
    Checksum,
    /// A field has a value that it can't have.
    #[error("the {0} is not valid")]
    Field(Field),
    /// A type that is not known.
    #[error("unknown type {0:?}")]
    Type(char),
    /// The archive ends where it has to go on.
    #[error("the archive is truncated")]
    Truncated,
    /// A PAX header breaks its format.
    #[error("PAX header: {0}")]
    Pax(#[from] pax::PaxError),
    /// Two headers say the same of one entry, and readers disagree which one counts.
    #[error("two headers give it a {0}")]
    Twice(&'static str),
    /// An extension header that no entry follows.
    #[error("an extension header with no entry after it")]
    Dangling,
    /// One block of zeros with something behind it.
    #[error("a single block of zeros between entries")]
    LoneZeros,
    /// A regular file with the name of a directory.
    #[error("a regular file whose name ends with a slash")]
    SlashedFile,
    /// A budget is exceeded.
    #[error("more than {limit} {what}")]
    Budget {
        /// Of what.
        what: &'static str,
        /// The budget.
        limit: u64,
    },
}

/// Why an archive can't be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// It is not right.
    #[error("the archive at byte {offset}{}: {problem}", of_entry(path.as_deref()))]
    Bad {
        /// Where its headers begin.
        offset: u64,
        /// Its path, as far as it is known.
        path: Option<Vec<u8>>,
        /// What is wrong.
        problem: Problem,
    },
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] io::Error),
}

fn of_entry(path: Option<&[u8]>) -> String {
    match path {
        Some(path) => format!(", entry {}", shown(path)),
        None => String::new(),
    }
}

/// A foreign path for an error: quoted, escaped, and not longer than one wants to read.
pub(crate) fn shown(path: &[u8]) -> String {
    const MOST: usize = 200;
    let short = path.get(..MOST).unwrap_or(path);
    let more = if short.len() < path.len() { "…" } else { "" };
    format!("\"{}{more}\"", short.escape_ascii())
}

#[cfg(test)]
mod tests;
