//! Headers of entries: ustar, with a PAX header before it only where ustar can't hold a value. The
//! same entry always gives the same bytes.

use std::fmt::Write as _;

use super::header::BLOCK;
use super::parser::padding;
use super::{Entry, EntryKind, Time};

/// What ends an archive.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Octal digits of a long field and of a short one.
const LONG: usize = 11;
const SHORT: usize = 7;

/// The zeros between a body of this length and the next header.
pub fn padding_after(size: u64) -> &'static [u8] {
    let n = usize::try_from(padding(size)).unwrap_or_default();
    END.get(..n).unwrap_or_default()
}

/// All header bytes of an entry. Its body has [`Entry::size`] bytes: a sparse one is to be written
/// as plain data.
pub fn headers(entry: &Entry) -> Vec<u8> {
    let split = split_path(&entry.path);
    let link: &[u8] = match &entry.kind {
        EntryKind::HardLink(link) | EntryKind::Symlink(link) => link,
        _ => b"",
    };
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut record = |key: &[u8], value: &[u8]| records.push((key.to_vec(), value.to_vec()));
    let number = |value: u64| value.to_string().into_bytes();
    if u64::from(entry.gid) > most(SHORT) {
        record(b"gid", &number(entry.gid.into()));
    }
    if link.len() > 100 {
        record(b"linkpath", link);
    }
    if entry.mtime.nsec != 0 || !(0..=most(LONG).cast_signed()).contains(&entry.mtime.sec) {
        record(b"mtime", pax_time(entry.mtime).as_bytes());
    }
    if split.is_none() {
        record(b"path", &entry.path);
    }
    if entry.size > most(LONG) {
        record(b"size", &number(entry.size));
    }
    if u64::from(entry.uid) > most(SHORT) {
        record(b"uid", &number(entry.uid.into()));
    }
    for (name, value) in &entry.xattrs {
        record(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records.sort();
    let mut out = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| pax_record(key, value))
            .collect();
        out.extend(pax_header(&entry.path, body.len() as u64));
        out.extend(&body);
        out.extend(padding_after(body.len() as u64));
    }
    let (prefix, name) = split.unwrap_or_else(|| (b"", shortened(&entry.path, 100)));
    out.extend(block(entry, prefix, name, shortened(link, 100)));
    out
}

/// `LENGTH KEY=VALUE\n`, the length counting itself.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Decimal seconds, with as many digits of the fraction as it needs.
fn pax_time(time: Time) -> String {
    let (sign, sec, nsec) = match (time.sec < 0, time.nsec) {
        (true, 1..) => (
            "-",
            (time.sec + 1).unsigned_abs(),
            1_000_000_000 - time.nsec,
        ),
        (true, 0) => ("-", time.sec.unsigned_abs(), 0),
        (false, nsec) => ("", time.sec.unsigned_abs(), nsec),
    };
    if nsec == 0 {
        return format!("{sign}{sec}");
    }
    let text = format!("{sign}{sec}.{nsec:09}");
    text.trim_end_matches('0').to_owned()
}

/// Prefix and name, if ustar can hold the path.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    // The slash has to leave at most 100 bytes behind it, and something that is not empty.
    let first = path.len().saturating_sub(101);
    let last = path.len().checked_sub(2)?;
    let slashes = path.iter().enumerate().take(last + 1).skip(first.max(1));
    let at = slashes
        .filter(|(_, byte)| **byte == b'/')
        .map(|(at, _)| at)
        .next()?;
    let (prefix, name) = path.split_at(at);
    (prefix.len() <= 155).then_some((prefix, name.get(1..)?))
}

fn shortened(bytes: &[u8], most: usize) -> &[u8] {
    bytes.get(..most).unwrap_or(bytes)
}

/// The greatest number of so many octal digits.
fn most(digits: usize) -> u64 {
    (1 << (3 * digits)) - 1
}

fn pax_header(path: &[u8], size: u64) -> Vec<u8> {
    let end = path.strip_suffix(b"/").unwrap_or(path);
    let last = end.rsplit(|byte| *byte == b'/').next().unwrap_or(end);
    let name = [b"PaxHeaders/", shortened(last, 80)].concat();
    let mut block = [0; BLOCK];
    fill(&mut block, 0, &name);
    octal(&mut block, 100, SHORT, 0o644);
    octal(&mut block, 108, SHORT, 0);
    octal(&mut block, 116, SHORT, 0);
    octal(&mut block, 124, LONG, size);
    octal(&mut block, 136, LONG, 0);
    fill(&mut block, 156, b"x");
    seal(&mut block);
    block.to_vec()
}

fn block(entry: &Entry, prefix: &[u8], name: &[u8], link: &[u8]) -> [u8; BLOCK] {
    let or_zero = |value: u64, digits| if value > most(digits) { 0 } else { value };
    let mut block = [0; BLOCK];
    fill(&mut block, 0, name);
    octal(&mut block, 100, SHORT, u64::from(entry.mode & 0o7777));
    octal(&mut block, 108, SHORT, or_zero(entry.uid.into(), SHORT));
    octal(&mut block, 116, SHORT, or_zero(entry.gid.into(), SHORT));
    octal(&mut block, 124, LONG, or_zero(entry.size, LONG));
    let sec = u64::try_from(entry.mtime.sec).unwrap_or_default();
    octal(&mut block, 136, LONG, or_zero(sec, LONG));
    let (flag, major, minor) = match entry.kind {
        EntryKind::File => (b"0", 0, 0),
        EntryKind::HardLink(_) => (b"1", 0, 0),
        EntryKind::Symlink(_) => (b"2", 0, 0),
        EntryKind::Char { major, minor } => (b"3", major, minor),
        EntryKind::Block { major, minor } => (b"4", major, minor),
        EntryKind::Dir => (b"5", 0, 0),
        EntryKind::Fifo => (b"6", 0, 0),
    };
    fill(&mut block, 156, flag);
    fill(&mut block, 157, link);
    octal(&mut block, 329, SHORT, major.into());
    octal(&mut block, 337, SHORT, minor.into());
    fill(&mut block, 345, prefix);
    seal(&mut block);
    block
}

/// Magic and checksum.
fn seal(block: &mut [u8; BLOCK]) {
    fill(block, 257, b"ustar\x0000");
    fill(block, 148, b"        ");
    let sum = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(block, 148, 6, sum);
    fill(block, 154, b"\0 ");
}

fn fill(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    if let Some(room) = block.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

fn octal(block: &mut [u8; BLOCK], at: usize, digits: usize, value: u64) {
    let mut text = String::with_capacity(digits);
    // Writing to a String can't fail.
    if write!(text, "{value:0digits$o}").is_ok() {
        fill(block, at, text.as_bytes());
    }
}
