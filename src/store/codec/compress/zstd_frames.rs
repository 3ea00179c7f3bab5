//! zstd of any number of frames, skippable ones included (RFC 8878).

use std::fmt;
use std::io::{self, Read};

use parking_lot::{Condvar, Mutex};
use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::CompressError;
use super::input::Input;

const NAME: &str = "zstd";
const FRAME: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Whether a frame or a skippable frame begins with these bytes.
pub(super) fn is_magic(begin: [u8; 4]) -> bool {
    begin == FRAME || is_skippable(begin)
}

fn is_skippable(begin: [u8; 4]) -> bool {
    matches!(begin, [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}

/// Where in the stream of frames it stands.
pub(super) struct Zstd {
    decoder: Decoder<'static>,
    state: State,
    window_log: u32,
    shared_log: u32,
    large: Option<LargeWindow>,
}

/// The right to a large window, which one decoder of the process has at a time, until it is dropped: several layers
/// at once must not take several times as much memory.
struct LargeWindow;

static IS_TAKEN: Mutex<bool> = Mutex::new(false);
static FREED: Condvar = Condvar::new();

impl LargeWindow {
    /// Waits until nobody else has it.
    fn take() -> LargeWindow {
        let mut is_taken = IS_TAKEN.lock();
        FREED.wait_while(&mut is_taken, |is_taken| *is_taken);
        *is_taken = true;
        LargeWindow
    }
}

impl Drop for LargeWindow {
    fn drop(&mut self) {
        *IS_TAKEN.lock() = false;
        FREED.notify_one();
    }
}

/// Bytes of the window that a frame wants, by its header (RFC 8878, section 3.1.1.1); 0 for half a header.
fn window_of(frame: &[u8]) -> u64 {
    let byte = |at: usize| frame.get(at).copied().map(u64::from);
    let Some(descriptor) = byte(4) else {
        return 0;
    };
    if descriptor & 0x20 == 0 {
        let window = byte(5).unwrap_or(0);
        let base = 1 << (10 + (window >> 3));
        return base + base / 8 * (window & 7);
    }
    // A single segment: its window is its content, whose length comes after the number of a dictionary.
    let dictionary = [0, 1, 2, 4];
    let start = 5 + dictionary.get(descriptor as usize & 3).unwrap_or(&0);
    let length = 1_usize << (descriptor >> 6);
    let bytes = frame.get(start..start + length).unwrap_or_default();
    let value = bytes
        .iter()
        .rev()
        .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    value + if length == 2 { 256 } else { 0 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A frame or the end has to come.
    Between,
    /// Within a frame.
    Data,
    /// Within a skippable frame, with so many bytes left.
    Skip(u32),
    /// The end was seen, or an error.
    End,
}

impl fmt::Debug for Zstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zstd")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Zstd {
    /// Windows of more than 2^`window_log` bytes are errors; larger ones than 2^`shared_log` wait for one another.
    pub(super) fn new(window_log: u32, shared_log: u32) -> io::Result<Zstd> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(window_log))?;
        Ok(Zstd {
            decoder,
            state: State::Between,
            window_log,
            shared_log,
            large: None,
        })
    }

    pub(super) fn read<R: Read>(
        &mut self,
        input: &mut Input<R>,
        out: &mut [u8],
    ) -> io::Result<usize> {
        let result = self.read_on(input, out);
        if result.is_err() {
            self.state = State::End;
        }
        result
    }

    fn read_on<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.state {
                State::End => return Ok(0),
                State::Between => self.begin(input)?,
                State::Skip(0) => self.state = State::Between,
                State::Skip(left) => {
                    let have = input.fill()?.len();
                    if have == 0 {
                        return Err(truncated(input));
                    }
                    let take = left.min(u32::try_from(have).unwrap_or(u32::MAX));
                    input.consume(take as usize);
                    self.state = State::Skip(left - take);
                }
                State::Data => {
                    let n = self.decompress(input, out)?;
                    if n > 0 {
                        return Ok(n);
                    }
                }
            }
        }
    }

    fn begin<R: Read>(&mut self, input: &mut Input<R>) -> io::Result<()> {
        let at = input.bytes_used();
        // The longest header of a frame: magic, descriptor, dictionary, length.
        match *input.peek(17)? {
            [] => self.state = State::End,
            [a, b, c, d, ..] if [a, b, c, d] == FRAME => {
                let window = window_of(input.peek(17)?);
                if window > 1 << self.shared_log.min(63) && self.large.is_none() {
                    self.large = Some(LargeWindow::take());
                }
                self.decoder.reinit()?;
                self.state = State::Data;
            }
            [a, b, c, d, ..] if is_skippable([a, b, c, d]) => {
                input.consume(4);
                let length = input.array::<4>()?.ok_or_else(|| truncated(input))?;
                self.state = State::Skip(u32::from_le_bytes(length));
            }
            ref short if short.len() < 4 && FRAME.starts_with(short) => {
                return Err(truncated(input));
            }
            _ => return Err(CompressError::TrailingGarbage(NAME, at).into()),
        }
        Ok(())
    }

    /// Decompresses into `out`; 0 when the input has to go on, or when the frame is over.
    fn decompress<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> io::Result<usize> {
        let at = input.bytes_used();
        let have = input.fill()?;
        // What the library still holds may come out without more input.
        let ended = have.is_empty();
        let status = match self.decoder.run_on_buffers(have, out) {
            Ok(status) => status,
            Err(e) => return Err(self.explain(at, &e).into()),
        };
        input.consume(status.bytes_read);
        if status.remaining == 0 {
            self.state = State::Between;
        } else if ended && status.bytes_written == 0 {
            return Err(truncated(input));
        }
        Ok(status.bytes_written)
    }

    /// The library has but texts for its errors (`ZSTD_getErrorString`).
    fn explain(&self, at: u64, error: &io::Error) -> CompressError {
        let text = error.to_string();
        if text.contains("checksum") {
            CompressError::Checksum(NAME, "checksum")
        } else if text.contains("too much memory") {
            let (what, limit) = ("bytes in its window", 1 << self.window_log.min(63));
            CompressError::Budget { what, limit }
        } else {
            CompressError::Damaged(NAME, at, text)
        }
    }
}

fn truncated<R>(input: &Input<R>) -> io::Error {
    CompressError::Truncated(NAME, input.bytes_in()).into()
}

#[cfg(test)]
mod tests {
    use zstd::stream::raw::{CParameter, Encoder, InBuffer, OutBuffer};

    use super::*;

    fn frame(parameter: CParameter, pledged: Option<u64>) -> Vec<u8> {
        let mut encoder = Encoder::new(1).unwrap();
        encoder.set_parameter(parameter).unwrap();
        encoder.set_pledged_src_size(pledged).unwrap();
        let content = vec![7; 70_000];
        let mut bytes = vec![0; 100_000];
        let mut out = OutBuffer::around(&mut bytes);
        encoder
            .run(&mut InBuffer::around(&content), &mut out)
            .unwrap();
        encoder.finish(&mut out, true).unwrap();
        let length = out.pos();
        bytes.truncate(length);
        bytes
    }

    #[test]
    fn the_window_is_read_from_the_header() {
        for log in [10, 17, 23, 27] {
            let frame = frame(CParameter::WindowLog(log), None);
            assert_eq!(window_of(&frame), 1 << log);
        }
        let single = frame(CParameter::ContentSizeFlag(true), Some(70_000));
        assert_eq!(window_of(&single), 70_000);
        for cut in 0..single.len().min(18) {
            window_of(&single[..cut]);
        }
    }
}
