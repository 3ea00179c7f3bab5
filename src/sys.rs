//! Safe wrappers of the system calls that rustix lacks. The only module with `unsafe`.
//!
//! Everything works on a directory's file descriptor and one name below it (an empty name means
//! the descriptor itself), never follows a final symlink, and reports
//! [`rustix::io::Errno`]. What rustix has (openat2, statx, renameat_with, linkat, mknodat,
//! copy_file_range, ioctl_ficlone, fallocate, seek with `SeekFrom::Data` and `SeekFrom::Hole`) is
//! used from there directly.
//!
//! Invariant: nothing here knows what an overlay is.

mod call;
pub mod dir;
pub mod extents;
pub mod fs;
pub mod fsxattr;
pub mod fuse;
pub mod handle;
pub mod mount;
pub mod process;
pub mod uring;
pub mod xattr;
