//! tar: V7, ustar, old GNU and PAX in; deterministic ustar with PAX where needed out.

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
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The pieces that a sparse file's body consists of, in order, without overlap.
    pub sparse: Option<Vec<SparseSegment>>,
}
