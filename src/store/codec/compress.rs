//! Compression of layers: what a stream is shows in its first bytes, not in its name.
//!
//! Decompression is in-process: a program found on `PATH` is never run. gzip members are parsed
//! here (RFC 1952), so that each way of being broken has its own error; only the deflate data goes
//! to the library.

use std::fmt;
use std::io::{self, Read, Write};

use flate2::write::GzEncoder;
use flate2::{Compression as Level, GzBuilder};

use super::budget::Budgets;
use super::digest::{BlobDigest, HashingWriter};
use gzip::Gzip;
use input::Input;
use zstd_frames::Zstd;

mod gzip;
mod input;
mod zstd_frames;

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
    /// It is compressed in a way that no image format has.
    #[error("the stream is compressed with {0}; layers are plain, gzip or zstd")]
    Unsupported(&'static str),
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

impl From<CompressError> for io::Error {
    fn from(error: CompressError) -> io::Error {
        let kind = match error {
            CompressError::Truncated(..) => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// What went in, or came out, compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// How it was compressed.
    pub compression: Compression,
    /// Of all its bytes.
    pub digest: BlobDigest,
    /// Their count.
    pub bytes: u64,
}

impl Compression {
    /// What a stream that begins with these bytes is; 10 bytes tell all there is to tell.
    ///
    /// # Errors
    /// [`CompressError::Unsupported`] for what is known, but by no image format.
    pub fn detect(begin: &[u8]) -> Result<Compression, CompressError> {
        match begin {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            [a, b, c, d, ..] if zstd_frames::is_magic([*a, *b, *c, *d]) => Ok(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(CompressError::Unsupported("xz")),
            [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                b'1',
                b'A',
                b'Y',
                b'&',
                b'S',
                b'Y',
                ..,
            ] => Err(CompressError::Unsupported("bzip2")),
            [0x04, 0x22, 0x4d, 0x18, ..] => Err(CompressError::Unsupported("lz4")),
            _ => Ok(Compression::None),
        }
    }
}

/// Decompresses a stream, whatever it is compressed with. [`Read::read`] gives 0 only once the
/// whole input was read to its end and every checksum was right. An error stays: what follows it is
/// the end of the stream or another error.
#[derive(Debug)]
pub struct Decoder<R> {
    input: Input<R>,
    format: Format,
    budgets: Budgets,
    bytes_out: u64,
}

#[derive(Debug)]
enum Format {
    Plain,
    Gzip(Gzip),
    Zstd(Zstd),
}

impl<R: Read> Decoder<R> {
    /// Reads the first bytes of `inner` to see what it is.
    ///
    /// # Errors
    /// What reading returns; [`CompressError::Unsupported`].
    pub fn new(inner: R, budgets: &Budgets) -> io::Result<Decoder<R>> {
        let mut input = Input::new(inner);
        let format = match Compression::detect(input.peek(10)?)? {
            Compression::None => Format::Plain,
            Compression::Gzip => Format::Gzip(Gzip::new()),
            Compression::Zstd => {
                let (most, shared) = (budgets.zstd_window_log, budgets.zstd_shared_log);
                Format::Zstd(Zstd::new(most, shared)?)
            }
        };
        Ok(Decoder {
            input,
            format,
            budgets: budgets.clone(),
            bytes_out: 0,
        })
    }

    /// How it is compressed.
    pub fn compression(&self) -> Compression {
        match self.format {
            Format::Plain => Compression::None,
            Format::Gzip(_) => Compression::Gzip,
            Format::Zstd(_) => Compression::Zstd,
        }
    }

    /// Bytes read of the compressed stream so far: for a progress bar.
    pub fn bytes_in(&self) -> u64 {
        self.input.bytes_in()
    }

    /// Reads what is left, throws it away, and tells what the compressed stream was.
    ///
    /// # Errors
    /// As reading.
    pub fn finish(mut self) -> io::Result<(R, Compressed)> {
        io::copy(&mut self, &mut io::sink())?;
        let compression = self.compression();
        let (inner, digest, bytes) = self.input.finish();
        let digest = BlobDigest(digest);
        let compressed = Compressed {
            compression,
            digest,
            bytes,
        };
        Ok((inner, compressed))
    }

    fn check_budgets(&self) -> Result<(), CompressError> {
        let Budgets {
            unpacked_bytes,
            ratio,
            ratio_from,
            ..
        } = self.budgets;
        let over = |what, limit| Err(CompressError::Budget { what, limit });
        if self.bytes_out > unpacked_bytes {
            return over("bytes", unpacked_bytes);
        }
        let allowed = self.input.bytes_used().saturating_mul(ratio);
        if self.bytes_out > ratio_from && self.bytes_out > allowed {
            return over("times its size", ratio);
        }
        Ok(())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = match &mut self.format {
            Format::Plain => self.input.read(buf)?,
            Format::Gzip(gzip) => gzip.read(&mut self.input, buf)?,
            Format::Zstd(zstd) => zstd.read(&mut self.input, buf)?,
        };
        self.bytes_out += n as u64;
        self.check_budgets()?;
        Ok(n)
    }
}

/// Compresses a stream reproducibly: gzip without name and time, zstd with a checksum.
pub struct Encoder<W: Write> {
    format: Encoding<HashingWriter<W>>,
    compression: Compression,
}

enum Encoding<W: Write> {
    Plain(W),
    Gzip(GzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// `level` as the format counts; `None`: 6 for gzip, 3 for zstd.
    ///
    /// # Errors
    /// What setting up the compressor returns.
    pub fn new(inner: W, compression: Compression, level: Option<i32>) -> io::Result<Encoder<W>> {
        let inner = HashingWriter::new(inner);
        let format = match compression {
            Compression::None => Encoding::Plain(inner),
            Compression::Gzip => {
                let level = level
                    .and_then(|level| u32::try_from(level).ok())
                    .unwrap_or(6);
                Encoding::Gzip(GzBuilder::new().write(inner, Level::new(level.min(9))))
            }
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(inner, level.unwrap_or(3))?;
                encoder.include_checksum(true)?;
                Encoding::Zstd(encoder)
            }
        };
        Ok(Encoder {
            format,
            compression,
        })
    }

    /// Writes the end; gives the writer back, and what it got.
    ///
    /// # Errors
    /// What writing returns.
    pub fn finish(self) -> io::Result<(W, Compressed)> {
        let inner = match self.format {
            Encoding::Plain(inner) => inner,
            Encoding::Gzip(encoder) => encoder.finish()?,
            Encoding::Zstd(encoder) => encoder.finish()?,
        };
        let (inner, digest, bytes) = inner.finish();
        let compressed = Compressed {
            compression: self.compression,
            digest: BlobDigest(digest),
            bytes,
        };
        Ok((inner, compressed))
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.format {
            Encoding::Plain(inner) => inner.write(buf),
            Encoding::Gzip(encoder) => encoder.write(buf),
            Encoding::Zstd(encoder) => encoder.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.format {
            Encoding::Plain(inner) => inner.flush(),
            Encoding::Gzip(encoder) => encoder.flush(),
            Encoding::Zstd(encoder) => encoder.flush(),
        }
    }
}

impl<W: Write> fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
