//! What a tar-split record tells of its tar without the files: how long it is, and which directories it leaves out.
//! Pure.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
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
    name: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    name_raw: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    payload: Option<Cow<'a, str>>,
}

/// Bytes of the tar that the record (JSON lines, not compressed) describes.
pub fn of_record(record: impl Read) -> io::Result<u64> {
    let mut total: u64 = 0;
    each_line(record, |line| {
        let bytes = match line.kind {
            1 => line.size.unwrap_or(0),
            _ => base64_length(line.payload.as_deref().unwrap_or_default()),
        };
        total = total
            .checked_add(bytes)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(())
    })?;
    Ok(total)
}

/// Directories on the way to entries which are no entries themselves, parents first.
pub fn implied(record: impl Read) -> io::Result<Vec<Vec<u8>>> {
    let mut named = HashSet::new();
    let mut parents = BTreeSet::new();
    each_line(record, |line| {
        let raw = line.name_raw.map(|raw| decode(&raw)).transpose()?;
        let name = raw.or_else(|| line.name.map(|name| name.as_bytes().to_vec()));
        let Some(name) = name.filter(|_| line.kind == 1) else {
            return Ok(());
        };
        let parts: Vec<&[u8]> = name
            .split(|byte| *byte == b'/')
            .filter(|part| !matches!(*part, b"" | b"."))
            .collect();
        for length in 1..parts.len() {
            parents.insert(parts.get(..length).unwrap_or_default().join(&b'/'));
        }
        named.insert(parts.join(&b'/'));
        Ok(())
    })?;
    parents.retain(|parent| !named.contains(parent));
    Ok(parents.into_iter().collect())
}

fn decode(raw: &str) -> io::Result<Vec<u8>> {
    base64_simd::STANDARD
        .decode_to_vec(raw)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

fn each_line(
    record: impl Read,
    mut each: impl FnMut(Line<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut reader = BufReader::new(record);
    let mut line = String::new();
    loop {
        line.clear();
        if (&mut reader).take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.trim().is_empty() {
            each(serde_json::from_str(&line)?)?;
        }
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

    #[test]
    fn directories_that_are_no_entries_are_found() {
        let record = concat!(
            "{\"type\":1,\"name\":\"./a/\",\"position\":0}\n",
            "{\"type\":1,\"name\":\"a/b/c/d\",\"size\":1,\"position\":1}\n",
            "{\"type\":1,\"name_raw\":\"eP8veQ==\",\"position\":2}\n",
        );
        let found = implied(record.as_bytes()).unwrap();
        assert_eq!(found, [&b"a/b"[..], b"a/b/c", b"x\xff"]);
    }
}
