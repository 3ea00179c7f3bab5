//! The pieces of a request: numbers and names, one after the other.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::fuse) enum Malformed {
    /// Shorter than what the operation needs, or than its header says.
    #[error("a request is too short")]
    Short,
    /// A name without its end.
    #[error("a name without a NUL")]
    Name,
    /// Nanoseconds outside of a second.
    #[error("a time with more than a second of nanoseconds")]
    Time,
    /// Extensions that contradict their sizes.
    #[error("extensions that can't be understood")]
    Extension,
}

/// What follows the header.
#[derive(Clone, Copy)]
pub(in crate::fuse) enum Body<'a> {
    /// The fixed part and the rest one after the other, as the device gives them.
    Whole(&'a [u8]),
    /// Apart, as io_uring gives them.
    Split { fixed: &'a [u8], rest: &'a [u8] },
}

impl<'a> Body<'a> {
    /// The fixed part, of `size` bytes, and the rest.
    pub(super) fn split(self, size: usize) -> Result<(Fields<'a>, Fields<'a>), Malformed> {
        let (fixed, rest) = match self {
            Body::Whole(bytes) => bytes.split_at_checked(size).ok_or(Malformed::Short)?,
            Body::Split { fixed, rest } => (fixed.get(..size).ok_or(Malformed::Short)?, rest),
        };
        Ok((Fields(fixed), Fields(rest)))
    }
}

/// Reads fields one after the other.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Malformed::Short)?;
        self.0 = tail;
        Ok(head)
    }

    /// Up to a NUL, which is taken too.
    pub(super) fn name(&mut self) -> Result<&'a OsStr, Malformed> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(Malformed::Name)?;
        let name = self.bytes(end)?;
        self.bytes(1)?;
        Ok(OsStr::from_bytes(name))
    }
}
