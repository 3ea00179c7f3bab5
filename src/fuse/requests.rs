//! Counts of requests by kind.

use std::sync::atomic::{AtomicU64, Ordering};

use super::wire::request::Op;

macro_rules! requests {
    ($($name:ident),* $(,)?) => {
        /// A kind of request.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy)]
        pub(super) enum Request { $($name),* }

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

requests!(
    lookup,
    forget,
    getattr,
    setattr,
    readlink,
    mknod,
    mkdir,
    unlink,
    rmdir,
    symlink,
    rename,
    link,
    open,
    read,
    write,
    fsync,
    opendir,
    readdir,
    readdirplus,
    fsyncdir,
    statfs,
    setxattr,
    getxattr,
    listxattr,
    removexattr,
    create,
    flush,
    ioctl,
    fallocate,
    lseek,
    copy_file_range,
    statx,
    tmpfile,
    syncfs,
    release,
    releasedir,
    interrupt,
    other,
);

impl Request {
    /// The kind of a request that was decoded.
    pub(super) fn of(op: &Op<'_>) -> Request {
        match op {
            Op::Lookup { .. } => Request::lookup,
            Op::Forget { .. } | Op::BatchForget(_) => Request::forget,
            Op::Getattr => Request::getattr,
            Op::Statx => Request::statx,
            Op::Setattr(_) => Request::setattr,
            Op::Readlink => Request::readlink,
            Op::Symlink { .. } => Request::symlink,
            Op::Mknod { .. } => Request::mknod,
            Op::Mkdir { .. } => Request::mkdir,
            Op::Unlink { .. } => Request::unlink,
            Op::Rmdir { .. } => Request::rmdir,
            Op::Rename { .. } => Request::rename,
            Op::Link { .. } => Request::link,
            Op::Open(_) => Request::open,
            Op::Create { .. } => Request::create,
            Op::Tmpfile { .. } => Request::tmpfile,
            Op::Read { .. } => Request::read,
            Op::Write { .. } => Request::write,
            Op::Statfs => Request::statfs,
            Op::Release => Request::release,
            Op::Flush => Request::flush,
            Op::Fsync { .. } => Request::fsync,
            Op::Syncfs => Request::syncfs,
            Op::Setxattr { .. } => Request::setxattr,
            Op::Getxattr { .. } => Request::getxattr,
            Op::Listxattr { .. } => Request::listxattr,
            Op::Removexattr { .. } => Request::removexattr,
            Op::Opendir => Request::opendir,
            Op::Readdir { .. } => Request::readdir,
            Op::Readdirplus { .. } => Request::readdirplus,
            Op::Releasedir => Request::releasedir,
            Op::Fsyncdir { .. } => Request::fsyncdir,
            Op::Interrupt => Request::interrupt,
            Op::Ioctl(_) => Request::ioctl,
            Op::Fallocate { .. } => Request::fallocate,
            Op::Lseek { .. } => Request::lseek,
            Op::CopyFileRange(_) => Request::copy_file_range,
            Op::Init(_) | Op::Destroy | Op::Other => Request::other,
        }
    }
}

/// One counter for each kind of request.
pub(super) struct RequestCounts(Vec<AtomicU64>);

impl RequestCounts {
    pub(super) fn new() -> RequestCounts {
        RequestCounts(NAMES.iter().map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn count(&self, request: Request) {
        if let Some(counter) = self.0.get(request as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Names and counts of the requests that came.
    pub(super) fn seen(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self.0.iter().map(|c| c.load(Ordering::Relaxed));
        NAMES.iter().copied().zip(counts).filter(|(_, n)| *n > 0)
    }
}
