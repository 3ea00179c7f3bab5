//! The uncompressed stream in shared buffers, so that a file's bytes are never copied on their way
//! from the decoder to the thread that writes them.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::store::codec::compress::{Compressed, Decoder};

/// Bytes of a buffer.
pub(super) const CHUNK: usize = 256 * 1024;
/// Buffers that may be in use at once: 24 MiB.
const POOL: usize = 96;
/// Full buffers that wait for the parser.
const AHEAD: usize = 8;

/// A buffer of the stream. It goes back to the pool when nobody needs it any more.
#[derive(Debug)]
pub(super) struct Chunk {
    buf: Vec<u8>,
    /// Its number in the stream.
    pub(super) number: u64,
    home: Sender<Vec<u8>>,
}

impl Chunk {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buf
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        match self.home.try_send(std::mem::take(&mut self.buf)) {
            // The pool has room for all buffers there are; or nobody needs it any more.
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }
}

/// Some bytes of a buffer.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) chunk: Arc<Chunk>,
    pub(super) range: Range<usize>,
}

impl Piece {
    pub(super) fn bytes(&self) -> &[u8] {
        self.chunk
            .bytes()
            .get(self.range.clone())
            .unwrap_or_default()
    }
}

/// What the decoding thread sends; the last one before the channel closes is an error, if any is.
pub(super) type Chunks = Receiver<io::Result<Chunk>>;

/// The channel between the decoding thread and the parser.
pub(super) fn channel() -> (Sender<io::Result<Chunk>>, Chunks) {
    bounded(AHEAD)
}

/// Decodes the stream to its end, or until nobody listens any more (`None`) or an error was sent.
pub(super) fn decode<R: Read>(
    mut decoder: Decoder<R>,
    to: &Sender<io::Result<Chunk>>,
    progress: &(dyn Fn(u64) + Sync),
) -> Option<Compressed> {
    let (home, free) = bounded::<Vec<u8>>(POOL);
    let mut made = 0;
    for number in 0.. {
        let mut buf = match free.try_recv() {
            Ok(buf) => buf,
            Err(_) if made < POOL => {
                made += 1;
                Vec::with_capacity(CHUNK)
            }
            Err(_) => free.recv().ok()?,
        };
        let filled = fill(&mut decoder, &mut buf);
        progress(decoder.bytes_in());
        if let Err(e) = filled {
            // Whoever listened has an error of its own if it left.
            return to.send(Err(e)).err().and(None);
        }
        if buf.is_empty() {
            break;
        }
        let home = home.clone();
        to.send(Ok(Chunk { buf, number, home })).ok()?;
    }
    match decoder.finish() {
        Ok((_, compressed)) => Some(compressed),
        Err(e) => to.send(Err(e)).err().and(None),
    }
}

/// Fills the buffer; shorter only at the end of the stream.
fn fill(reader: &mut impl Read, buf: &mut Vec<u8>) -> io::Result<()> {
    buf.resize(CHUNK, 0);
    let mut filled = 0;
    while let Some(room) = buf.get_mut(filled..).filter(|room| !room.is_empty()) {
        match reader.read(room)? {
            0 => break,
            n => filled += n,
        }
    }
    buf.truncate(filled);
    Ok(())
}
