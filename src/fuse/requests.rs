//! Counts of requests by kind.

use std::sync::atomic::{AtomicU64, Ordering};

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
);

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
