//! tar-split: what of an archive is not in its files, so that it can be put together again.
//!
//! One JSON object a line, as github.com/vbatts/tar-split and with it Docker write and read them:
//! headers and padding are segments, a file is its name, its length and the CRC-64 of its content.
//! A body that no file of the layer holds as it is (sparse files, whiteouts, ignored entries) is
//! recorded as segments, too.

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read, Write};

use base64_simd::STANDARD as BASE64;
use serde::Deserialize;

use super::crc64::Crc64;
use super::digest::{DiffId, HashingWriter};
use super::tar::shown;

/// Bytes of a segment at most, as Docker's padding segments; longer ones are split.
const SEGMENT: usize = 1 << 20;
/// Bytes of a line that is read at most.
const LINE: u64 = 16 << 20;

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
    #[error("{path} is not the file that was unpacked: {what}")]
    Content {
        /// The file, as the archive names it.
        path: String,
        /// Length or checksum.
        what: &'static str,
    },
    /// A file can't be opened or read.
    #[error("can't read {path} of the layer: {source}")]
    Open {
        /// The file, as the archive names it.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The record can't be read.
    #[error("can't read the tar-split record: {0}")]
    Record(#[source] io::Error),
    /// The archive can't be written.
    #[error("can't write the archive: {0}")]
    Write(#[source] io::Error),
}

/// Writes a record while its archive is read.
#[derive(Debug)]
pub struct Recorder<W> {
    out: W,
    position: u64,
    line: String,
}

impl<W: Write> Recorder<W> {
    /// Around where the lines go to.
    pub fn new(out: W) -> Recorder<W> {
        Recorder {
            out,
            position: 0,
            line: String::new(),
        }
    }

    /// Records bytes of the archive as they are; none if there are none.
    ///
    /// # Errors
    /// What writing returns.
    pub fn segment(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(SEGMENT) {
            self.line.clear();
            self.line.push_str("{\"type\":2,\"payload\":\"");
            BASE64.encode_append(part, &mut self.line);
            self.line.push('"');
            self.end()?;
        }
        Ok(())
    }

    /// Records a file, or an entry without a body, after the segment with its headers. `crc` is
    /// needed for a `size` above 0 only.
    ///
    /// # Errors
    /// What writing returns.
    pub fn file(&mut self, name: &[u8], size: u64, crc: [u8; 8]) -> io::Result<()> {
        self.line.clear();
        self.line.push_str("{\"type\":1");
        match std::str::from_utf8(name) {
            Ok(name) => {
                self.line.push_str(",\"name\":\"");
                push_escaped(&mut self.line, name);
            }
            Err(_) => {
                self.line.push_str(",\"name_raw\":\"");
                BASE64.encode_append(name, &mut self.line);
            }
        }
        self.line.push('"');
        if size == 0 {
            self.line.push_str(",\"payload\":null");
        } else {
            self.line
                .push_str(&format!(",\"size\":{size},\"payload\":\""));
            BASE64.encode_append(crc, &mut self.line);
            self.line.push('"');
        }
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        let position = self.position;
        self.line.push_str(&format!(",\"position\":{position}}}\n"));
        self.position += 1;
        self.out.write_all(self.line.as_bytes())
    }

    /// The writer.
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// As Go's `encoding/json` escapes.
fn push_escaped(line: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '\u{8}' => line.push_str("\\b"),
            '\u{c}' => line.push_str("\\f"),
            '<' | '>' | '&' | '\0'..='\u{1f}' | '\u{2028}' | '\u{2029}' => {
                line.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => line.push(c),
        }
    }
}

/// One line of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Bytes of the archive.
    Segment(Vec<u8>),
    /// A file's content, or nothing when `size` is 0.
    File {
        /// As the archive names it.
        name: Vec<u8>,
        /// Its length.
        size: u64,
        /// Of its content; `None` when `size` is 0.
        crc: Option<[u8; 8]>,
    },
}

#[derive(Deserialize)]
struct RawLine<'a> {
    #[serde(rename = "type")]
    kind: u64,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    name_raw: Option<Cow<'a, str>>,
    #[serde(default)]
    size: u64,
    #[serde(borrow, default)]
    payload: Option<Cow<'a, str>>,
    position: u64,
}

/// Reads a line; gives its position, too.
///
/// # Errors
/// What is wrong, in words.
pub fn parse_line(line: &[u8]) -> Result<(u64, Line), String> {
    let raw: RawLine<'_> = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    let decode = |text: &str| {
        BASE64
            .decode_to_vec(text.as_bytes())
            .map_err(|_| "a field is not base64".to_owned())
    };
    let payload = decode(raw.payload.as_deref().unwrap_or_default())?;
    let parsed = match raw.kind {
        2 => Line::Segment(payload),
        1 => {
            let name = match (raw.name, raw.name_raw) {
                (Some(name), None) => name.into_owned().into_bytes(),
                (None, Some(bytes)) => decode(&bytes)?,
                _ => return Err("a file needs a name, and one only".to_owned()),
            };
            let crc = if raw.size == 0 {
                None
            } else {
                let crc = payload.try_into();
                Some(crc.map_err(|_| "a file's checksum is not 8 bytes long".to_owned())?)
            };
            let size = raw.size;
            Line::File { name, size, crc }
        }
        other => return Err(format!("unknown type {other}")),
    };
    Ok((raw.position, parsed))
}

/// The lines of a record, one after another.
struct Lines<R> {
    record: BufReader<R>,
    number: u64,
    line: Vec<u8>,
}

impl<R: Read> Lines<R> {
    fn next(&mut self) -> Result<Option<Line>, TarSplitError> {
        self.line.clear();
        let mut limited = (&mut self.record).take(LINE);
        let read = limited.read_until(b'\n', &mut self.line);
        if read.map_err(TarSplitError::Record)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let bad = |what: String| TarSplitError::Format {
            line: self.number,
            what,
        };
        if self.line.len() as u64 == LINE {
            return Err(bad("it is too long".to_owned()));
        }
        let (position, line) = parse_line(&self.line).map_err(bad)?;
        if position + 1 != self.number {
            return Err(bad(format!("position {position} is out of order")));
        }
        Ok(Some(line))
    }
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
    mut open_file: impl FnMut(&[u8]) -> io::Result<R>,
    out: impl Write,
) -> Result<(DiffId, u64), TarSplitError> {
    let mut lines = Lines {
        record: BufReader::with_capacity(SEGMENT, record),
        number: 0,
        line: Vec::new(),
    };
    let mut out = HashingWriter::new(out);
    let mut buf = vec![0; 256 * 1024];
    while let Some(line) = lines.next()? {
        match line {
            Line::Segment(bytes) => out.write_all(&bytes).map_err(TarSplitError::Write)?,
            Line::File { name, size, crc } => {
                let Some(crc) = crc else { continue };
                let mut copy = Copy {
                    name: &name,
                    size,
                    crc,
                    buf: &mut buf,
                };
                copy.run(open_file(&name), &mut out)?;
            }
        }
    }
    out.flush().map_err(TarSplitError::Write)?;
    let (_, digest, bytes) = out.finish();
    Ok((DiffId(digest), bytes))
}

/// One file on its way into an archive.
struct Copy<'a> {
    name: &'a [u8],
    size: u64,
    crc: [u8; 8],
    buf: &'a mut [u8],
}

impl Copy<'_> {
    fn run(
        &mut self,
        file: io::Result<impl Read>,
        out: &mut impl Write,
    ) -> Result<(), TarSplitError> {
        let path = || shown(self.name);
        let unreadable = |source| TarSplitError::Open {
            path: path(),
            source,
        };
        let changed = |what| TarSplitError::Content { path: path(), what };
        let mut file = file.map_err(unreadable)?;
        let mut crc = Crc64::new();
        let mut left = self.size;
        loop {
            let n = match file.read(self.buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(unreadable)?,
            };
            let bytes = self.buf.get(..n).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            left = left
                .checked_sub(n as u64)
                .ok_or_else(|| changed("it is longer"))?;
            crc.update(bytes);
            out.write_all(bytes).map_err(TarSplitError::Write)?;
        }
        if left > 0 {
            return Err(changed("it is shorter"));
        }
        if crc.sum() != self.crc {
            return Err(changed("its checksum is another one"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::codec::digest::Digest;

    fn crc(bytes: &[u8]) -> [u8; 8] {
        let mut crc = Crc64::new();
        crc.update(bytes);
        crc.sum()
    }

    fn put_together(record: &str, file: &[u8]) -> Result<Vec<u8>, TarSplitError> {
        let mut out = Vec::new();
        let (digest, bytes) = assemble(record.as_bytes(), |_| Ok(file), &mut out)?;
        assert_eq!(digest.0, Digest::of(&out));
        assert_eq!(bytes, out.len() as u64);
        Ok(out)
    }

    #[test]
    fn the_record_is_what_docker_writes() {
        let mut recorder = Recorder::new(Vec::new());
        recorder.segment(b"header").unwrap();
        recorder.file(b"etc/<a>&\"\\\t", 4, crc(b"body")).unwrap();
        recorder.segment(b"").unwrap();
        recorder.file(b"\xff", 0, [0; 8]).unwrap();
        recorder.segment(&[0; 3]).unwrap();
        let text = String::from_utf8(recorder.into_inner()).unwrap();
        let body = BASE64.encode_to_string(crc(b"body"));
        let expected = [
            "{\"type\":2,\"payload\":\"aGVhZGVy\",\"position\":0}\n".to_owned(),
            format!(
                "{{\"type\":1,\"name\":\"etc/\\u003ca\\u003e\\u0026\\\"\\\\\\t\",\"size\":4,\"payload\":\"{body}\",\"position\":1}}\n"
            ),
            "{\"type\":1,\"name_raw\":\"/w==\",\"payload\":null,\"position\":2}\n".to_owned(),
            "{\"type\":2,\"payload\":\"AAAA\",\"position\":3}\n".to_owned(),
        ];
        assert_eq!(text, expected.concat());
        assert_eq!(put_together(&text, b"body").unwrap(), b"headerbody\0\0\0");
    }

    #[test]
    fn a_file_that_changed_is_noticed() {
        let mut recorder = Recorder::new(Vec::new());
        recorder.file(b"f", 4, crc(b"body")).unwrap();
        let text = String::from_utf8(recorder.into_inner()).unwrap();
        for (file, why) in [
            (&b"bod"[..], "shorter"),
            (b"bodyy", "longer"),
            (b"bodx", "checksum"),
        ] {
            let error = put_together(&text, file).unwrap_err();
            assert!(matches!(error, TarSplitError::Content { .. }));
            assert!(error.to_string().contains(why), "{error}");
        }
        let gone = |_: &[u8]| Err::<&[u8], _>(io::ErrorKind::NotFound.into());
        let error = assemble(text.as_bytes(), gone, io::sink()).unwrap_err();
        assert!(matches!(error, TarSplitError::Open { .. }));
    }

    #[test]
    fn broken_records_are_errors() {
        for text in [
            "x\n",
            "{}\n",
            "{\"type\":3,\"payload\":\"\",\"position\":0}\n",
            "{\"type\":2,\"payload\":\"?\",\"position\":0}\n",
            "{\"type\":2,\"payload\":\"AAAA\",\"position\":1}\n",
            "{\"type\":2,\"payload\":\"AAAA\",\"position\":-1}\n",
            "{\"type\":2,\"payload\":\"AAAA\"}\n",
            "{\"type\":1,\"size\":4,\"payload\":\"AAAA\",\"position\":0}\n",
            "{\"type\":1,\"name\":\"a\",\"size\":4,\"payload\":\"AAAA\",\"position\":0}\n",
            "{\"type\":1,\"name\":\"a\",\"size\":4,\"payload\":null,\"position\":0}\n",
            "{\"type\":1,\"name\":\"a\",\"name_raw\":\"YQ==\",\"payload\":null,\"position\":0}\n",
            "{\"type\":1,\"name\":\"a\",\"size\":-4,\"payload\":null,\"position\":0}\n",
            "{\"type\":2,\"payload\":\"AAAA\",\"position\":0",
        ] {
            let error = put_together(text, b"").unwrap_err();
            assert!(
                matches!(error, TarSplitError::Format { line: 1, .. }),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn names_and_segments_survive(
            name in proptest::collection::vec(1u8.., 1..30),
            bytes in proptest::collection::vec(any::<u8>(), 1..100),
            size in 1u64..,
        ) {
            let mut recorder = Recorder::new(Vec::new());
            recorder.file(&name, size, [7; 8]).unwrap();
            recorder.segment(&bytes).unwrap();
            let lines = recorder.into_inner();
            let mut lines = lines.split(|byte| *byte == b'\n');
            let file = Line::File { name, size, crc: Some([7; 8]) };
            prop_assert_eq!(parse_line(lines.next().unwrap()), Ok((0, file)));
            prop_assert_eq!(parse_line(lines.next().unwrap()), Ok((1, Line::Segment(bytes))));
        }

        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _parsed = parse_line(&line);
        }
    }
}
