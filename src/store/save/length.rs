//! How long a tar is that a tar-split record describes. Pure.

use std::io::{self, BufRead, BufReader, Read};

use serde::Deserialize;

/// Bytes that a line of a record may have.
const MAX_LINE: u64 = 64 << 20;

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default, borrow)]
    payload: Option<std::borrow::Cow<'a, str>>,
}

/// Bytes of the tar that the record (JSON lines, not compressed) describes.
pub fn of_record(record: impl Read) -> io::Result<u64> {
    let mut reader = BufReader::new(record);
    let mut line = String::new();
    let mut total: u64 = 0;
    loop {
        line.clear();
        let read = (&mut reader).take(MAX_LINE).read_line(&mut line)?;
        if read == 0 {
            return Ok(total);
        }
        if line.trim().is_empty() {
            continue;
        }
        let parsed: Line<'_> = serde_json::from_str(&line)?;
        let bytes = match parsed.kind {
            1 => parsed.size.unwrap_or(0),
            _ => base64_length(parsed.payload.as_deref().unwrap_or_default()),
        };
        total = total
            .checked_add(bytes)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    }
}

/// Bytes that a text in base64 stands for.
fn base64_length(text: &str) -> u64 {
    let digits = text.trim_end_matches('=').len() as u64;
    digits / 4 * 3 + (digits % 4).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_segments_are_added_up() {
        let record = concat!(
            "{\"type\":2,\"payload\":\"AAAA\",\"position\":0}\n",
            "{\"type\":1,\"name\":\"a\",\"size\":7,\"payload\":\"AAAAAAAAAAA=\",\"position\":1}\n",
            "{\"type\":2,\"payload\":\"AA==\",\"position\":2}\n",
            "{\"type\":2,\"payload\":\"AAA=\",\"position\":3}\n",
        );
        assert_eq!(of_record(record.as_bytes()).unwrap(), 3 + 7 + 1 + 2);
        assert!(of_record(&b"{"[..]).is_err());
    }
}
