//! gzip of any number of members (RFC 1952).

use std::io::{self, Read};

use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::CompressError;
use super::input::Input;

const NAME: &str = "gzip";
const DEFLATE: u8 = 8;
const FHCRC: u8 = 0x02;
const FEXTRA: u8 = 0x04;
const FNAME: u8 = 0x08;
const FCOMMENT: u8 = 0x10;
const RESERVED: u8 = 0xe0;
/// Bytes of a file name or comment in a header.
const TEXT_MAX: usize = 64 * 1024;

/// Where in the stream of members it stands.
#[derive(Debug)]
pub(super) struct Gzip {
    inflate: Decompress,
    crc: Crc,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A member has to begin: the first one.
    First,
    /// A member or the end has to come.
    Between,
    /// Within the deflate data.
    Data,
    /// The end was seen, or an error.
    End,
}

impl Gzip {
    pub(super) fn new() -> Gzip {
        Gzip {
            inflate: Decompress::new(false),
            crc: Crc::new(),
            state: State::First,
        }
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
                State::First => self.begin(input)?,
                State::Between => match *input.peek(2)? {
                    [] => self.state = State::End,
                    [0x1f, 0x8b, ..] => self.begin(input)?,
                    [0x1f] => return Err(truncated(input)),
                    _ => {
                        let at = input.bytes_used();
                        return Err(CompressError::TrailingGarbage(NAME, at).into());
                    }
                },
                State::Data => {
                    let n = self.inflate(input, out)?;
                    if n > 0 {
                        return Ok(n);
                    }
                }
            }
        }
    }

    fn begin<R: Read>(&mut self, input: &mut Input<R>) -> io::Result<()> {
        read_header(input)?;
        self.inflate.reset(false);
        self.crc.reset();
        self.state = State::Data;
        Ok(())
    }

    /// Inflates into `out`; 0 when the input has to go on, or when the member is over.
    fn inflate<R: Read>(&mut self, input: &mut Input<R>, out: &mut [u8]) -> io::Result<usize> {
        let at = input.bytes_used();
        let have = input.fill()?;
        // What the library still holds may come out without more input.
        let ended = have.is_empty();
        let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self
            .inflate
            .decompress(have, out, FlushDecompress::None)
            .map_err(|e| CompressError::Damaged(NAME, at, e.to_string()))?;
        let used = usize::try_from(self.inflate.total_in() - before_in).unwrap_or(usize::MAX);
        let made = usize::try_from(self.inflate.total_out() - before_out).unwrap_or(usize::MAX);
        input.consume(used);
        self.crc.update(out.get(..made).unwrap_or_default());
        match status {
            Status::StreamEnd => self.check_trailer(input)?,
            Status::Ok | Status::BufError if used == 0 && made == 0 => {
                if ended {
                    return Err(truncated(input));
                }
                return Err(damaged(input, "the data doesn't go on"));
            }
            Status::Ok | Status::BufError => {}
        }
        Ok(made)
    }

    fn check_trailer<R: Read>(&mut self, input: &mut Input<R>) -> io::Result<()> {
        let Some([a, b, c, d, e, f, g, h]) = input.array::<8>()? else {
            return Err(truncated(input));
        };
        if u32::from_le_bytes([a, b, c, d]) != self.crc.sum() {
            return Err(CompressError::Checksum(NAME, "CRC-32").into());
        }
        if u32::from_le_bytes([e, f, g, h]) != self.crc.amount() {
            return Err(CompressError::Checksum(NAME, "length").into());
        }
        self.state = State::Between;
        Ok(())
    }
}

fn truncated<R>(input: &Input<R>) -> io::Error {
    CompressError::Truncated(NAME, input.bytes_in()).into()
}

fn damaged<R>(input: &Input<R>, what: &str) -> io::Error {
    CompressError::Damaged(NAME, input.bytes_used(), what.to_owned()).into()
}

/// The bytes of one header, for its own checksum.
struct Header<'a, R> {
    input: &'a mut Input<R>,
    crc: Crc,
}

impl<R: Read> Header<'_, R> {
    fn byte(&mut self) -> io::Result<u8> {
        let byte = self.input.byte()?.ok_or_else(|| truncated(self.input))?;
        self.crc.update(&[byte]);
        Ok(byte)
    }

    fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    /// Skips a text that ends with NUL.
    fn text(&mut self) -> io::Result<()> {
        for _ in 0..TEXT_MAX {
            if self.byte()? == 0 {
                return Ok(());
            }
        }
        Err(damaged(self.input, "a name or comment without end"))
    }
}

fn read_header<R: Read>(input: &mut Input<R>) -> io::Result<()> {
    let crc = Crc::new();
    let mut header = Header { input, crc };
    // The magic: it was seen already.
    header.u16()?;
    if header.byte()? != DEFLATE {
        return Err(damaged(header.input, "an unknown method"));
    }
    let flags = header.byte()?;
    if flags & RESERVED != 0 {
        return Err(damaged(header.input, "reserved flags are set"));
    }
    // Time (4), extra flags, operating system.
    for _ in 0..6 {
        header.byte()?;
    }
    if flags & FEXTRA != 0 {
        for _ in 0..header.u16()? {
            header.byte()?;
        }
    }
    if flags & FNAME != 0 {
        header.text()?;
    }
    if flags & FCOMMENT != 0 {
        header.text()?;
    }
    if flags & FHCRC != 0 {
        let [low, high, ..] = header.crc.sum().to_le_bytes();
        if header.u16()? != u16::from_le_bytes([low, high]) {
            return Err(CompressError::Checksum(NAME, "header's CRC-16").into());
        }
    }
    Ok(())
}
