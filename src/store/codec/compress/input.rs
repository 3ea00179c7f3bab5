//! The compressed side: buffered, counted and digested.

use std::io::{self, Read};

use crate::store::codec::digest::{Digest, Hasher};

/// Bytes of one read.
const BUFFER: usize = 128 * 1024;

/// A buffer over a reader. Invariant: `start <= end <= buf.len()`.
pub(super) struct Input<R> {
    inner: R,
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    hasher: Hasher,
    ended: bool,
}

impl<R> std::fmt::Debug for Input<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("bytes_in", &self.bytes_in())
            .finish_non_exhaustive()
    }
}

impl<R> Input<R> {
    pub(super) fn new(inner: R) -> Input<R> {
        Input {
            inner,
            buf: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            hasher: Hasher::new(),
            ended: false,
        }
    }

    /// Bytes read from the reader.
    pub(super) fn bytes_in(&self) -> u64 {
        self.hasher.bytes()
    }

    /// Bytes taken out of the buffer.
    pub(super) fn bytes_used(&self) -> u64 {
        self.bytes_in() - (self.end - self.start) as u64
    }

    /// What is in the buffer.
    pub(super) fn buffered(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    /// Takes `n` bytes out of the buffer.
    pub(super) fn consume(&mut self, n: usize) {
        self.start = self.end.min(self.start + n);
    }

    /// The reader, and the digest and count of what was read of it.
    pub(super) fn finish(self) -> (R, Digest, u64) {
        let (digest, bytes) = self.hasher.finish();
        (self.inner, digest, bytes)
    }
}

impl<R: Read> Input<R> {
    /// At least one byte, unless the input is at its end.
    pub(super) fn fill(&mut self) -> io::Result<&[u8]> {
        self.peek(1)
    }

    /// At least `n` bytes (much fewer than a buffer), unless the input ends before.
    pub(super) fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        while self.end - self.start < n && !self.ended {
            if self.start > 0 {
                self.buf.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            let room = self.buf.get_mut(self.end..).unwrap_or_default();
            let read = read_once(&mut self.inner, room)?;
            self.hasher.update(room.get(..read).unwrap_or_default());
            self.end += read;
            self.ended = read == 0;
        }
        Ok(self.buffered())
    }

    /// The next byte; `None` at the end.
    pub(super) fn byte(&mut self) -> io::Result<Option<u8>> {
        let byte = self.fill()?.first().copied();
        self.consume(usize::from(byte.is_some()));
        Ok(byte)
    }

    /// The next `N` bytes; `None` when the input ends before.
    pub(super) fn array<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        let array = self.peek(N)?.first_chunk::<N>().copied();
        if array.is_some() {
            self.consume(N);
        }
        Ok(array)
    }

    /// Bytes for who wants no compression: out of the buffer first, then past it.
    pub(super) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.buffered().is_empty() || out.len() < self.buf.len() {
            let have = self.fill()?;
            let n = have.len().min(out.len());
            if let (Some(to), Some(from)) = (out.get_mut(..n), have.get(..n)) {
                to.copy_from_slice(from);
            }
            self.consume(n);
            return Ok(n);
        }
        if self.ended {
            return Ok(0);
        }
        let n = read_once(&mut self.inner, out)?;
        self.hasher.update(out.get(..n).unwrap_or_default());
        self.ended = n == 0;
        Ok(n)
    }
}

/// One read, begun again when a signal interrupts it.
fn read_once(inner: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match inner.read(buf) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(n) if n > buf.len() => {
                let what = "a reader returned more than its buffer holds";
                return Err(io::Error::other(what));
            }
            other => return other,
        }
    }
}
