//! The archive on its way out: digested, and recorded.

use std::io::{self, Read, Write};

use super::{Failure, PackProblem};
use crate::store::codec::crc64::Crc64;
use crate::store::codec::digest::{Digest, HashingWriter};
use crate::store::codec::tar::Entry;
use crate::store::codec::tar::writer::{END, headers, padding_after};
use crate::store::codec::tar_split::Recorder;

/// Where entries go to.
pub(super) struct Output<'r, W> {
    out: HashingWriter<W>,
    recorder: Option<Recorder<&'r mut (dyn Write + 'r)>>,
    /// Padding that is recorded together with the headers after it, as Docker does.
    segment: Vec<u8>,
    buf: Vec<u8>,
    pub(super) entries: u64,
}

impl<'r, W: Write> Output<'r, W> {
    pub(super) fn new(out: W, record: Option<&'r mut (dyn Write + 'r)>) -> Output<'r, W> {
        Output {
            out: HashingWriter::new(out),
            recorder: record.map(Recorder::new),
            segment: Vec::new(),
            buf: vec![0; 256 * 1024],
            entries: 0,
        }
    }

    /// Writes an entry; its body is that of `file`, which has to have exactly its length.
    pub(super) fn entry(
        &mut self,
        entry: &Entry,
        file: Option<&mut dyn Read>,
    ) -> Result<(), Failure> {
        self.entries += 1;
        let headers = headers(entry);
        self.out.write_all(&headers).map_err(Failure::Write)?;
        self.segment.extend_from_slice(&headers);
        let segment = std::mem::take(&mut self.segment);
        if let Some(recorder) = &mut self.recorder {
            recorder.segment(&segment).map_err(Failure::Write)?;
        }
        let (size, crc) = match file {
            Some(file) => (entry.size, self.body(file, entry.size)?),
            None => (0, [0; 8]),
        };
        if let Some(recorder) = &mut self.recorder {
            let recorded = recorder.file(&entry.path, size, crc);
            recorded.map_err(Failure::Write)?;
        }
        let padding = padding_after(size);
        self.segment.extend_from_slice(padding);
        self.out.write_all(padding).map_err(Failure::Write)
    }

    fn body(&mut self, file: &mut dyn Read, size: u64) -> Result<[u8; 8], Failure> {
        let mut crc = Crc64::new();
        let mut left = size;
        loop {
            let n = match file.read(&mut self.buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(Failure::Read)?,
            };
            let bytes = self.buf.get(..n).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            left = left.checked_sub(n as u64).ok_or(PackProblem::Changed)?;
            crc.update(bytes);
            self.out.write_all(bytes).map_err(Failure::Write)?;
        }
        if left > 0 {
            return Err(PackProblem::Changed.into());
        }
        Ok(crc.sum())
    }

    /// Writes the end of the archive; its digest and length.
    pub(super) fn finish(mut self) -> io::Result<(Digest, u64)> {
        self.out.write_all(&END)?;
        self.segment.extend_from_slice(&END);
        if let Some(recorder) = &mut self.recorder {
            recorder.segment(&self.segment)?;
        }
        self.out.flush()?;
        let (_, digest, bytes) = self.out.finish();
        Ok((digest, bytes))
    }
}
