//! INIT: what the kernel can do, what we want, what becomes of it.

use super::abi::init::{BIG_WRITES, INIT_EXT, MAX_PAGES, PASSTHROUGH};
use super::reply::Out;
use super::{MAJOR, MINOR, OLDEST_MINOR};

/// What the kernel says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct InitIn {
    pub major: u32,
    pub minor: u32,
    /// Bytes that it would read ahead.
    pub max_readahead: u32,
    /// `abi::init`.
    pub flags: u64,
}

/// What we would like.
#[derive(Clone, Copy, Debug)]
pub(in crate::fuse) struct Wanted {
    /// `abi::init`.
    pub flags: u64,
    /// Bytes in one WRITE.
    pub max_write: u32,
    /// Requests that the kernel has under way on nobody's behalf: readahead, writeback.
    pub max_background: u16,
    /// From how many of them on it holds back.
    pub congestion_threshold: u16,
}

impl Wanted {
    /// The most that [`Agreed::payload`] can be.
    pub(in crate::fuse) fn payload(&self) -> usize {
        let pages = self.max_write.div_ceil(PAGE).max(u32::from(DEFAULT_PAGES));
        (pages * PAGE) as usize
    }
}

/// What both can and want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct Agreed {
    pub minor: u32,
    pub flags: u64,
    pub max_readahead: u32,
    pub max_write: u32,
    /// Pages in one request.
    pub max_pages: u16,
    max_background: u16,
    congestion_threshold: u16,
}

/// How an INIT goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) enum Agreement {
    /// Both can talk.
    Agreed(Agreed),
    /// The kernel speaks a newer major version: told ours, it sends another INIT.
    Again,
    /// The kernel is too old.
    TooOld,
}

const PAGE: u32 = 4096;
/// Pages in one request where their number can't be agreed on.
const DEFAULT_PAGES: u16 = 32;

/// Compares what the kernel can with what is wanted.
pub(in crate::fuse) fn agree(kernel: &InitIn, wanted: &Wanted) -> Agreement {
    if kernel.major > MAJOR {
        return Agreement::Again;
    }
    if kernel.major < MAJOR || kernel.minor < OLDEST_MINOR {
        return Agreement::TooOld;
    }
    let mut flags = kernel.flags & (wanted.flags | INIT_EXT);
    if flags & INIT_EXT == 0 {
        flags &= u64::from(u32::MAX);
    }
    let pages = u16::try_from(wanted.max_write.div_ceil(PAGE)).unwrap_or(u16::MAX);
    let max_pages = match flags & MAX_PAGES != 0 {
        true => pages.max(1),
        false => DEFAULT_PAGES,
    };
    let most = match flags & BIG_WRITES != 0 {
        true => u32::from(max_pages) * PAGE,
        false => PAGE,
    };
    Agreement::Agreed(Agreed {
        minor: kernel.minor.min(MINOR),
        flags,
        max_readahead: kernel.max_readahead,
        max_write: wanted.max_write.clamp(PAGE, most.max(PAGE)),
        max_pages,
        max_background: wanted.max_background,
        congestion_threshold: wanted.congestion_threshold,
    })
}

impl Agreed {
    /// Bytes that one request or reply can bring beside its fixed parts.
    pub(in crate::fuse) fn payload(&self) -> usize {
        let pages = usize::from(self.max_pages) * PAGE as usize;
        pages
            .max(self.max_write as usize)
            .max(super::abi::MIN_READ_BUFFER)
    }

    /// Whether all of `flags` were agreed on.
    pub(in crate::fuse) fn has(&self, flags: u64) -> bool {
        self.flags & flags == flags
    }

    /// Backing files lie on file systems below this depth; the mount counts as one that deep. 1: not on
    /// a stacked file system, so that an overlayfs can still have the mount as a layer.
    fn max_stack_depth(&self) -> u32 {
        u32::from(self.has(PASSTHROUGH))
    }

    /// `struct fuse_init_out`.
    pub(in crate::fuse) fn encode(&self, out: &mut Out<'_>) -> bool {
        let low = (self.flags & u64::from(u32::MAX)) as u32;
        out.u32(MAJOR)
            && out.u32(self.minor)
            && out.u32(self.max_readahead)
            && out.u32(low)
            && out.u16(self.max_background)
            && out.u16(self.congestion_threshold)
            && out.u32(self.max_write)
            && out.u32(1) // time_gran: every nanosecond counts
            && out.u16(self.max_pages)
            && out.u16(0) // map_alignment
            && out.u32((self.flags >> 32) as u32)
            && out.u32(self.max_stack_depth())
            && out.u16(0) // request_timeout: none
            && out.bytes(&[0; 22])
    }
}

/// The answer to [`Agreement::Again`].
pub(in crate::fuse) fn encode_again(out: &mut Out<'_>) -> bool {
    out.u32(MAJOR) && out.u32(MINOR) && out.bytes(&[0; 56])
}

#[cfg(test)]
mod tests {
    use super::super::abi::init::*;
    use super::*;

    fn kernel(major: u32, minor: u32, flags: u64) -> InitIn {
        let max_readahead = 131_072;
        InitIn {
            major,
            minor,
            max_readahead,
            flags,
        }
    }

    fn wanted(flags: u64, max_write: u32) -> Wanted {
        Wanted {
            flags,
            max_write,
            max_background: 64,
            congestion_threshold: 48,
        }
    }

    fn agreed(kernel: InitIn, wanted: &Wanted) -> Agreed {
        match agree(&kernel, wanted) {
            Agreement::Agreed(agreed) => agreed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn versions_are_compared() {
        let want = wanted(0, 4096);
        assert_eq!(agree(&kernel(8, 0, 0), &want), Agreement::Again);
        assert_eq!(agree(&kernel(6, 99, 0), &want), Agreement::TooOld);
        assert_eq!(agree(&kernel(7, 28, 0), &want), Agreement::TooOld);
        assert_eq!(agreed(kernel(7, 29, 0), &want).minor, 29);
        assert_eq!(agreed(kernel(7, 99, 0), &want).minor, MINOR);
    }

    #[test]
    fn only_what_both_can_is_agreed_on() {
        let can = ASYNC_READ | BIG_WRITES | MAX_PAGES | INIT_EXT | OVER_IO_URING;
        let want = wanted(BIG_WRITES | MAX_PAGES | POSIX_ACL | OVER_IO_URING, 1 << 20);
        let both = agreed(kernel(7, 45, can), &want);
        assert_eq!(
            both.flags,
            BIG_WRITES | MAX_PAGES | INIT_EXT | OVER_IO_URING
        );
        assert_eq!((both.max_write, both.max_pages), (1 << 20, 256));
        assert!(both.has(OVER_IO_URING));
        // The upper flags count only if both say that there are any.
        let old = agreed(kernel(7, 35, can & !INIT_EXT), &want);
        assert_eq!(old.flags, BIG_WRITES | MAX_PAGES);
    }

    #[test]
    fn sizes_follow_what_was_agreed_on() {
        let no_pages = agreed(kernel(7, 45, BIG_WRITES), &wanted(BIG_WRITES, 1 << 20));
        assert_eq!((no_pages.max_write, no_pages.payload()), (131_072, 131_072));
        let small = agreed(kernel(7, 45, 0), &wanted(0, 1 << 20));
        assert_eq!(small.max_write, 4096);
    }

    #[test]
    fn a_reply_has_the_size_and_order_of_the_kernel_s_struct() {
        let mut room = [0xff; 64];
        let mut out = Out::new(&mut room);
        let all = agreed(
            kernel(7, 45, u64::MAX),
            &wanted(MAX_PAGES | BIG_WRITES | INIT_EXT | OVER_IO_URING, 65_536),
        );
        assert!(all.encode(&mut out));
        assert_eq!(out.len(), 64);
        let word = |at: usize| u32::from_ne_bytes(room[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(8)), (7, MINOR, 131_072));
        assert_eq!(word(12), (MAX_PAGES | BIG_WRITES | INIT_EXT) as u32);
        assert_eq!(word(16), 64 | 48 << 16);
        assert_eq!((word(20), word(24), word(28)), (65_536, 1, 16));
        assert_eq!(word(32), (OVER_IO_URING >> 32) as u32);
        assert_eq!(word(36), 0);
        let through = agreed(kernel(7, 45, u64::MAX), &wanted(PASSTHROUGH, 65_536));
        let mut out = Out::new(&mut room);
        assert!(through.encode(&mut out));
        assert_eq!(room[36..40], 1u32.to_ne_bytes());
    }
}
