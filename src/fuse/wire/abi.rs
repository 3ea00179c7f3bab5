//! Numbers of the protocol: operations, flags, sizes.

/// What a request asks for.
pub(in crate::fuse) mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
    pub const COPY_FILE_RANGE_64: u32 = 53;
}

/// What INIT agrees on; the upper 32 bits travel as `flags2`.
pub(in crate::fuse) mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    /// OPEN says whether to truncate.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// The server applies the umask.
    pub const DONT_MASK: u64 = 1 << 6;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    /// OPEN may be answered `ENOSYS`.
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// OPENDIR may be answered `ENOSYS`.
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    /// The server clears set-id bits where a request says so.
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// SETXATTR says whether an ACL takes the set-group-id bit away.
    pub const SETXATTR_EXT: u64 = 1 << 29;
    /// There are `flags2`.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Opens may be passed through to backing files.
    pub const PASSTHROUGH: u64 = 1 << 37;
    /// Requests may come over io_uring.
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// `valid` of SETATTR.
pub(in crate::fuse) mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const LOCK_OWNER: u32 = 1 << 9;
    /// The caller lacks `CAP_FSETID`.
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// What the answer to an open says of it.
pub(in crate::fuse) mod fopen {
    /// Pages that are cached stay.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// Data goes to the backing file.
    pub const PASSTHROUGH: u32 = 1 << 7;
}

/// WRITE: the caller lacks `CAP_FSETID`.
pub(in crate::fuse) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// SETXATTR of an access ACL: the caller is not in the group and lacks `CAP_FSETID`.
pub(in crate::fuse) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// FSYNC: the data is enough.
pub(in crate::fuse) const FSYNC_DATA_ONLY: u32 = 1 << 0;
/// Extension of creating requests: supplementary groups.
pub(in crate::fuse) const EXT_GROUPS: u32 = 32;
/// The highest type of extension that is a number of security contexts.
pub(in crate::fuse) const MAX_SECURITY_CONTEXTS: u32 = 31;

/// What a server may say unasked.
pub(in crate::fuse) mod notification {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    pub const DELETE: i32 = 6;
}

/// Bytes of the header of a request.
pub(in crate::fuse) const REQUEST_HEADER: usize = 40;
/// Bytes of the header of a reply.
pub(in crate::fuse) const REPLY_HEADER: usize = 16;
/// Bytes of the fixed part of a WRITE.
pub(in crate::fuse) const WRITE_FIXED: usize = 40;
/// The kernel takes no smaller buffer to read requests into.
pub(in crate::fuse) const MIN_READ_BUFFER: usize = 8192;
