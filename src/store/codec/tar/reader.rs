//! A parser fed from a stream.

use std::io::Read;

use super::{Entry, Parser, Step, TarError};
use crate::store::codec::budget::Budgets;

const BUFFER: usize = 64 * 1024;

/// Reads an archive entry by entry: images and tests; layers go through
/// [`unpack`](crate::store::unpack::unpack).
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    parser: Parser,
    buf: Box<[u8]>,
    start: usize,
    end: usize,
    left: u64,
    done: bool,
}

impl<R: Read> Reader<R> {
    /// Around an uncompressed stream.
    pub fn new(inner: R, budgets: &Budgets) -> Reader<R> {
        Reader {
            inner,
            parser: Parser::new(budgets),
            buf: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            left: 0,
            done: false,
        }
    }

    /// The next entry; what was not read of the body before is skipped. `None` at the end of the
    /// stream, which is read to its end.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        // Nobody may ever take them: they must not pile up.
        self.parser.take_raw();
        loop {
            match self.step()? {
                None => return Ok(None),
                Some(Step::Entry(entry)) => {
                    self.left = entry.stored;
                    return Ok(Some(*entry));
                }
                Some(_) => {}
            }
        }
    }

    /// Bytes of the current entry's body (of the pieces of a sparse file); 0 at its end.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn read_body(&mut self, out: &mut [u8]) -> Result<usize, TarError> {
        while self.left > 0 && !out.is_empty() {
            self.fill()?;
            let have = self.buf.get(self.start..self.end).unwrap_or_default();
            if have.is_empty() {
                self.parser.finish()?;
                return Ok(0);
            }
            let some = have.get(..have.len().min(out.len())).unwrap_or_default();
            let (taken, step) = self.parser.advance(some)?;
            let was = some.get(..taken).unwrap_or_default();
            self.start += taken;
            if let Step::Body(n) = step {
                if let Some(out) = out.get_mut(..n) {
                    out.copy_from_slice(was);
                }
                self.left -= n as u64;
                return Ok(n);
            }
        }
        Ok(0)
    }

    /// The whole rest of the current entry's body.
    ///
    /// # Errors
    /// See [`TarError`]; [`super::Problem::Budget`] when it has more than `limit` bytes.
    pub fn read_to_vec(&mut self, limit: usize) -> Result<Vec<u8>, TarError> {
        if self.left > limit as u64 {
            return Err(TarError::Bad {
                offset: 0,
                path: None,
                problem: super::Problem::Budget {
                    what: "bytes of a file that has to be read as a whole",
                    limit: limit as u64,
                },
            });
        }
        let mut body = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let n = self.read_body(&mut chunk)?;
            if n == 0 {
                return Ok(body);
            }
            body.extend_from_slice(chunk.get(..n).unwrap_or_default());
        }
    }

    /// Padding and header bytes that the last [`next_entry`](Self::next_entry) read.
    pub fn take_raw(&mut self) -> Vec<u8> {
        self.parser.take_raw()
    }

    fn fill(&mut self) -> Result<(), TarError> {
        while self.start == self.end && !self.done {
            match self.inner.read(&mut self.buf) {
                Ok(n) => {
                    (self.start, self.end) = (0, n.min(self.buf.len()));
                    self.done = n == 0;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<Option<Step>, TarError> {
        self.fill()?;
        let have = self.buf.get(self.start..self.end).unwrap_or_default();
        if have.is_empty() {
            self.parser.finish()?;
            return Ok(None);
        }
        let (taken, step) = self.parser.advance(have)?;
        self.start += taken;
        // Where an archive is read for its entries, nobody takes what is between them.
        if matches!(step, Step::Trailing(_)) {
            self.parser.take_raw();
        }
        Ok(Some(step))
    }
}

impl<R: Read> Reader<R> {
    /// A view of the current entry's body as a stream; it ends where the body does.
    pub fn body(&mut self) -> Body<'_, R> {
        Body(self)
    }
}

/// The body of the current entry.
#[derive(Debug)]
pub struct Body<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for Body<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_body(buf).map_err(|error| match error {
            TarError::Read(error) => error,
            bad @ TarError::Bad { .. } => std::io::Error::new(std::io::ErrorKind::InvalidData, bad),
        })
    }
}
