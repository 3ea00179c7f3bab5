//! Compression of layers: what a stream is shows in its first bytes, not in its name.

use std::io::{self, Read, Write};

use super::budget::Budgets;
use super::digest::BlobDigest;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, of one or more members.
    Gzip,
    /// zstd, of one or more frames, skippable ones included.
    Zstd,
}

/// Why a stream can't be decompressed. Comes out of [`Decoder::read`] inside an [`io::Error`]; see
/// [`CompressError::of`].
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// It ends within a member or frame.
    #[error("the {0} stream is truncated: it ends after {1} bytes, within a member")]
    Truncated(&'static str, u64),
    /// Something else follows the last member or frame.
    #[error("there is garbage after byte {1} of the {0} stream")]
    TrailingGarbage(&'static str, u64),
    /// What was decompressed does not have the checksum, or the length, that its trailer says.
    #[error("the {0} stream is damaged: its {1} does not match its content")]
    Checksum(&'static str, &'static str),
    /// It breaks its format in another way.
    #[error("the {0} stream is damaged near byte {1}: {2}")]
    Damaged(&'static str, u64, String),
    /// A budget is exceeded.
    #[error("the stream decompresses to more than {limit} {what}")]
    Budget {
        /// `bytes`, or `times its size`.
        what: &'static str,
        /// The budget.
        limit: u64,
    },
}

impl CompressError {
    /// The one inside an I/O error, if that is what it is.
    pub fn of(error: &io::Error) -> Option<&CompressError> {
        error.get_ref()?.downcast_ref()
    }
}

/// What went in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// How it was compressed.
    pub compression: Compression,
    /// Of all bytes that went in.
    pub digest: BlobDigest,
    /// Their count.
    pub bytes: u64,
}

/// Decompresses a stream, whatever it is compressed with. [`Read::read`] gives 0 only once the
/// whole input was read to its end and every checksum was right.
#[derive(Debug)]
pub struct Decoder<R> {
    inner: R,
}

impl<R: Read> Decoder<R> {
    /// Reads the first bytes of `inner` to see what it is.
    ///
    /// # Errors
    /// What reading returns.
    pub fn new(inner: R, _budgets: &Budgets) -> io::Result<Decoder<R>> {
        Ok(Decoder { inner })
    }

    /// How it is compressed.
    pub fn compression(&self) -> Compression {
        Compression::None
    }

    /// Bytes read of the compressed stream so far: for a progress bar.
    pub fn bytes_in(&self) -> u64 {
        0
    }

    /// Reads what is left, throws it away, and tells what the compressed stream was.
    ///
    /// # Errors
    /// As reading.
    pub fn finish(self) -> io::Result<(R, Compressed)> {
        drop(self.inner);
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf)
    }
}

/// Compresses a stream reproducibly: gzip without name and time, zstd with a checksum.
#[derive(Debug)]
pub struct Encoder<W> {
    inner: W,
}

impl<W: Write> Encoder<W> {
    /// `level` as the format counts; `None`: 6 for gzip, 3 for zstd.
    ///
    /// # Errors
    /// What setting up the compressor returns.
    pub fn new(inner: W, _compression: Compression, _level: Option<i32>) -> io::Result<Encoder<W>> {
        Ok(Encoder { inner })
    }

    /// Writes the end; gives the writer back, and what it got.
    ///
    /// # Errors
    /// What writing returns.
    pub fn finish(self) -> io::Result<(W, Compressed)> {
        drop(self.inner);
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.inner.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
