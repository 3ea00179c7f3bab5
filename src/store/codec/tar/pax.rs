//! PAX extended headers. Pure.
//!
//! Sources: POSIX.1-2017, pax, "pax Extended Header"; GNU tar's manual, "Storing Sparse Files";
//! `SCHILY.xattr.` is star's, which GNU tar, libarchive and Go share.

use super::{SparseSegment, Time};
use crate::store::codec::budget::Budgets;

const XATTR: &[u8] = b"SCHILY.xattr.";
/// Extended attributes of one entry; the kernel lists at most 64 KiB of names.
const XATTRS: usize = 1024;

/// What is wrong with a PAX header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaxError {
    /// A record is not `LENGTH KEY=VALUE\n`.
    #[error("a record is malformed: {0}")]
    Record(&'static str),
    /// The value of a key can't be what it says.
    #[error("the value of {0} is not valid")]
    Value(&'static str),
    /// A global header sets what is of one file only, so that readers disagree about what follows.
    #[error("a global header sets {0}, which belongs to one entry")]
    Global(&'static str),
    /// More bytes of extended attributes than the budget.
    #[error("extended attributes take more than {0} bytes")]
    Xattrs(usize),
    /// More extended attributes than any file system holds.
    #[error("more than 1024 extended attributes")]
    ManyXattrs,
    /// More pieces of a sparse file than the budget.
    #[error("a sparse file has more than {0} pieces")]
    Segments(usize),
}

/// A key's value: absent, taken back (an empty value), or there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Value<T> {
    /// No record of this key.
    #[default]
    Absent,
    /// A record with an empty value: what the header block says counts.
    Deleted,
    /// This.
    Set(T),
}

impl<T> Value<T> {
    /// The value, if it is there.
    pub fn as_set(&self) -> Option<&T> {
        match self {
            Value::Set(value) => Some(value),
            Value::Absent | Value::Deleted => None,
        }
    }

    /// This one, or where it is absent the one of the global header.
    fn or<'a>(&'a self, global: &'a Value<T>) -> Option<&'a T> {
        match self {
            Value::Absent => global.as_set(),
            own => own.as_set(),
        }
    }
}

/// GNU's records about sparse files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    /// `GNU.sparse.major` and `minor`; 1.0 has its map in the body.
    pub version: (u64, u64),
    /// Whether any record said that the file is sparse.
    pub present: bool,
    /// `GNU.sparse.name`
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.size` or `GNU.sparse.realsize`
    pub real_size: Option<u64>,
    /// `GNU.sparse.map`, or pairs of `GNU.sparse.offset` and `GNU.sparse.numbytes`.
    pub segments: Vec<SparseSegment>,
    /// `GNU.sparse.offset` whose `numbytes` has not come.
    offset: Option<u64>,
}

/// The records of one header that mean something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pax {
    /// `path`
    pub path: Value<Vec<u8>>,
    /// `linkpath`
    pub link: Value<Vec<u8>>,
    /// `size`
    pub size: Value<u64>,
    /// `uid`
    pub uid: Value<u64>,
    /// `gid`
    pub gid: Value<u64>,
    /// `mtime`
    pub mtime: Value<Time>,
    /// `atime`
    pub atime: Value<Time>,
    /// `SCHILY.devmajor`
    pub major: Value<u64>,
    /// `SCHILY.devminor`
    pub minor: Value<u64>,
    /// `SCHILY.xattr.*`, each name once.
    pub xattrs: Vec<(Vec<u8>, Value<Vec<u8>>)>,
    /// `GNU.sparse.*`
    pub sparse: Sparse,
}

impl Pax {
    /// Reads the body of an extended header; `global`: that of a type `g` one.
    ///
    /// # Errors
    /// See [`PaxError`]. Unknown keys are none.
    pub fn parse(body: &[u8], global: bool, budgets: &Budgets) -> Result<Pax, PaxError> {
        let mut pax = Pax::default();
        let mut xattr_bytes = 0;
        let mut rest = body;
        while !rest.is_empty() {
            let (Record { key, value }, after) = split_record(rest)?;
            rest = after;
            if global {
                refuse_global(key)?;
            }
            if let Some(name) = key.strip_prefix(XATTR) {
                xattr_bytes += name.len() + value.len();
                if xattr_bytes > budgets.xattr_bytes {
                    return Err(PaxError::Xattrs(budgets.xattr_bytes));
                }
                pax.set_xattr(name, value)?;
            } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                pax.sparse.set(name, value, budgets.sparse_segments)?;
            } else {
                pax.set(key, value)?;
            }
        }
        if pax.sparse.offset.is_some() {
            return Err(PaxError::Value("GNU.sparse.offset"));
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        match key {
            b"path" => self.path = text(value, "path")?,
            b"linkpath" => self.link = text(value, "linkpath")?,
            b"size" => self.size = parsed(value, "size", decimal)?,
            b"uid" => self.uid = parsed(value, "uid", decimal)?,
            b"gid" => self.gid = parsed(value, "gid", decimal)?,
            b"mtime" => self.mtime = parsed(value, "mtime", time)?,
            b"atime" => self.atime = parsed(value, "atime", time)?,
            b"SCHILY.devmajor" => self.major = parsed(value, "SCHILY.devmajor", decimal)?,
            b"SCHILY.devminor" => self.minor = parsed(value, "SCHILY.devminor", decimal)?,
            _ => {}
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), PaxError> {
        if name.is_empty() || name.contains(&0) {
            return Err(PaxError::Record("the name of an extended attribute"));
        }
        // An attribute may well be empty: it is not taken back by that.
        let value = Value::Set(value.to_vec());
        let full = self.xattrs.len() == XATTRS;
        match self.xattrs.iter_mut().find(|(have, _)| have == name) {
            Some((_, old)) => *old = value,
            None if full => return Err(PaxError::ManyXattrs),
            None => self.xattrs.push((name.to_vec(), value)),
        }
        Ok(())
    }

    /// This entry's own records on top of those of a global header.
    pub fn over(self, global: &Pax) -> Merged {
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let own = |name: &[u8]| self.xattrs.iter().any(|(have, _)| have == name);
        let inherited = global.xattrs.iter().filter(|(name, _)| !own(name));
        for (name, value) in inherited.chain(&self.xattrs) {
            if let Some(value) = value.as_set() {
                xattrs.push((name.clone(), value.clone()));
            }
        }
        Merged {
            uid: self.uid.or(&global.uid).copied(),
            gid: self.gid.or(&global.gid).copied(),
            mtime: self.mtime.or(&global.mtime).copied(),
            atime: self.atime.or(&global.atime).copied(),
            major: self.major.or(&global.major).copied(),
            minor: self.minor.or(&global.minor).copied(),
            path: self.path.as_set().cloned(),
            link: self.link.as_set().cloned(),
            size: self.size.as_set().copied(),
            xattrs,
            sparse: self.sparse,
        }
    }

    /// What a later global header adds.
    pub fn update(&mut self, later: Pax) {
        fn set<T>(old: &mut Value<T>, new: Value<T>) {
            if !matches!(new, Value::Absent) {
                *old = new;
            }
        }
        set(&mut self.uid, later.uid);
        set(&mut self.gid, later.gid);
        set(&mut self.mtime, later.mtime);
        set(&mut self.atime, later.atime);
    }
}

/// What all PAX headers together say of one entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// `path`
    pub path: Option<Vec<u8>>,
    /// `linkpath`
    pub link: Option<Vec<u8>>,
    /// `size`
    pub size: Option<u64>,
    /// `uid`
    pub uid: Option<u64>,
    /// `gid`
    pub gid: Option<u64>,
    /// `mtime`
    pub mtime: Option<Time>,
    /// `atime`
    pub atime: Option<Time>,
    /// `SCHILY.devmajor`
    pub major: Option<u64>,
    /// `SCHILY.devminor`
    pub minor: Option<u64>,
    /// `SCHILY.xattr.*`
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*`
    pub sparse: Sparse,
}

impl Sparse {
    fn set(&mut self, name: &[u8], value: &[u8], most: usize) -> Result<(), PaxError> {
        let number = |what| decimal(value).ok_or(PaxError::Value(what));
        self.present = true;
        match name {
            b"major" => self.version.0 = number("GNU.sparse.major")?,
            b"minor" => self.version.1 = number("GNU.sparse.minor")?,
            b"size" | b"realsize" => self.real_size = Some(number("GNU.sparse.size")?),
            b"name" => self.name = text(value, "GNU.sparse.name")?.as_set().cloned(),
            b"numblocks" => self.segments.clear(),
            b"offset" => {
                let offset = number("GNU.sparse.offset")?;
                if self.offset.replace(offset).is_some() {
                    return Err(PaxError::Value("GNU.sparse.offset"));
                }
            }
            b"numbytes" => {
                let length = number("GNU.sparse.numbytes")?;
                let offset = self.offset.take();
                let offset = offset.ok_or(PaxError::Value("GNU.sparse.numbytes"))?;
                self.segments.push(SparseSegment { offset, length });
            }
            b"map" => self.segments = map(value, most)?,
            _ => {}
        }
        if self.segments.len() > most {
            return Err(PaxError::Segments(most));
        }
        Ok(())
    }
}

/// `GNU.sparse.map`: offsets and lengths in turn, with commas.
fn map(value: &[u8], most: usize) -> Result<Vec<SparseSegment>, PaxError> {
    const BAD: PaxError = PaxError::Value("GNU.sparse.map");
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let mut numbers = value.split(|byte| *byte == b',').map(decimal);
    let mut segments = Vec::new();
    while let Some(offset) = numbers.next() {
        let length = numbers.next().flatten().ok_or(BAD)?;
        let offset = offset.ok_or(BAD)?;
        if segments.len() == most {
            return Err(PaxError::Segments(most));
        }
        segments.push(SparseSegment { offset, length });
    }
    Ok(segments)
}

/// One record.
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

/// The first record and what follows it.
fn split_record(bytes: &[u8]) -> Result<(Record<'_>, &[u8]), PaxError> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ');
    let space = space.ok_or(PaxError::Record("it has no length"))?;
    let (digits, _) = bytes.split_at(space);
    let length = decimal(digits).and_then(|length| usize::try_from(length).ok());
    let length = length.ok_or(PaxError::Record("its length is no number"))?;
    let (record, after) = bytes
        .split_at_checked(length)
        .ok_or(PaxError::Record("it is longer than the header"))?;
    let content = record
        .get(space + 1..)
        .and_then(|rest| rest.strip_suffix(b"\n"))
        .ok_or(PaxError::Record("it does not end where it says"))?;
    let equals = content.iter().position(|byte| *byte == b'=');
    let equals = equals.ok_or(PaxError::Record("it has no equals sign"))?;
    let (key, value) = content.split_at(equals);
    if key.is_empty() || key.contains(&0) {
        return Err(PaxError::Record("its key"));
    }
    let value = value.get(1..).unwrap_or_default();
    Ok((Record { key, value }, after))
}

fn refuse_global(key: &[u8]) -> Result<(), PaxError> {
    Err(PaxError::Global(match key {
        b"path" => "path",
        b"linkpath" => "linkpath",
        b"size" => "size",
        b"SCHILY.devmajor" | b"SCHILY.devminor" => "a device number",
        _ if key.starts_with(b"GNU.sparse.") => "GNU.sparse",
        _ if key.starts_with(XATTR) => "an extended attribute",
        _ => return Ok(()),
    }))
}

fn text(value: &[u8], key: &'static str) -> Result<Value<Vec<u8>>, PaxError> {
    match value {
        [] => Ok(Value::Deleted),
        _ if value.contains(&0) => Err(PaxError::Value(key)),
        _ => Ok(Value::Set(value.to_vec())),
    }
}

fn parsed<T>(
    value: &[u8],
    key: &'static str,
    parse: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<Value<T>, PaxError> {
    if value.is_empty() {
        return Ok(Value::Deleted);
    }
    parse(value).map(Value::Set).ok_or(PaxError::Value(key))
}

/// Digits only: no sign, no space, at least one.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Seconds with an optional sign and fraction; what is below a nanosecond is cut off.
fn time(value: &[u8]) -> Option<Time> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |byte| *byte == b'.');
    let whole = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or(b"0");
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let padded = fraction.iter().copied().chain(std::iter::repeat(b'0'));
    let nsec = padded
        .take(9)
        .fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    let (sec, nsec) = match (negative, nsec) {
        (false, nsec) => (whole, nsec),
        (true, 0) => (-whole, 0),
        (true, nsec) => (whole.checked_neg()?.checked_sub(1)?, 1_000_000_000 - nsec),
    };
    Some(Time { sec, nsec })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &str) -> Vec<u8> {
        super::super::writer::pax_record(key.as_bytes(), value.as_bytes())
    }

    fn parse(body: &[u8]) -> Result<Pax, PaxError> {
        Pax::parse(body, false, &Budgets::default())
    }

    #[test]
    fn records_are_split_by_their_length() {
        let body = [
            record("path", "a\nb=c"),
            record("comment", "x"),
            record("uid", "7"),
        ]
        .concat();
        let pax = parse(&body).unwrap();
        assert_eq!(pax.path, Value::Set(b"a\nb=c".to_vec()));
        assert_eq!(pax.uid, Value::Set(7));
        for bad in [
            &b"5 a=b"[..],
            b"6 a=b",
            b"6 a=b\0",
            b"7 a=b\n",
            b"5 a=b\n",
            b"a=b\n",
            b" 6 a=b\n",
            b"-6 a=b\n",
            b"0 ",
            b"1 ",
            b"2 \n",
            b"5 a\n\n",
            b"5 =b\n",
            b"99999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
            b"6 \0=b\n",
        ] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn times_have_signs_and_fractions() {
        let t = |sec, nsec| Some(Time { sec, nsec });
        assert_eq!(time(b"1"), t(1, 0));
        assert_eq!(time(b"1.5"), t(1, 500_000_000));
        assert_eq!(time(b"1.0000000019"), t(1, 1));
        assert_eq!(time(b"1."), t(1, 0));
        assert_eq!(time(b"-1.25"), t(-2, 750_000_000));
        assert_eq!(time(b"-1"), t(-1, 0));
        assert_eq!(time(b"-0.000000001"), t(-1, 999_999_999));
        assert_eq!(time(b"9223372036854775807.9"), t(i64::MAX, 900_000_000));
        for bad in [
            &b""[..],
            b".5",
            b"-",
            b"+1",
            b"1.x",
            b"1.5.5",
            b"9223372036854775808",
            b"1e3",
        ] {
            assert_eq!(time(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn an_empty_value_takes_a_key_back() {
        let global = Pax::parse(&record("uid", "5"), true, &Budgets::default()).unwrap();
        let own = parse(&record("uid", "")).unwrap();
        assert_eq!(own.over(&global).uid, None);
        assert_eq!(Pax::default().over(&global).uid, Some(5));
        assert_eq!(
            parse(&record("uid", "6")).unwrap().over(&global).uid,
            Some(6)
        );
    }

    #[test]
    fn what_belongs_to_one_entry_is_refused_in_a_global_header() {
        for key in [
            "path",
            "linkpath",
            "size",
            "GNU.sparse.map",
            "SCHILY.xattr.user.x",
        ] {
            let error = Pax::parse(&record(key, "1"), true, &Budgets::default()).unwrap_err();
            assert!(matches!(error, PaxError::Global(_)), "{key}");
        }
        let comment = record("comment", "a commit");
        Pax::parse(&comment, true, &Budgets::default()).unwrap();
    }

    #[test]
    fn nul_in_paths_is_refused_and_kept_in_attributes() {
        assert!(parse(&record("path", "a\0b")).is_err());
        assert!(parse(&record("linkpath", "a\0b")).is_err());
        assert!(parse(&record("SCHILY.xattr.user.\0", "v")).is_err());
        let pax = parse(&record("SCHILY.xattr.user.x", "a\0b=\n")).unwrap();
        assert_eq!(
            pax.over(&Pax::default()).xattrs,
            [(b"user.x".to_vec(), b"a\0b=\n".to_vec())]
        );
    }

    #[test]
    fn sparse_maps_come_in_two_forms() {
        let piece = |offset, length| SparseSegment { offset, length };
        let one = [
            record("GNU.sparse.size", "100"),
            record("GNU.sparse.numblocks", "2"),
            record("GNU.sparse.offset", "0"),
            record("GNU.sparse.numbytes", "5"),
            record("GNU.sparse.offset", "50"),
            record("GNU.sparse.numbytes", "6"),
        ];
        let sparse = parse(&one.concat()).unwrap().sparse;
        assert_eq!(sparse.segments, [piece(0, 5), piece(50, 6)]);
        assert_eq!(sparse.real_size, Some(100));
        let other = parse(&record("GNU.sparse.map", "0,5,50,6")).unwrap().sparse;
        assert_eq!(other.segments, [piece(0, 5), piece(50, 6)]);
        for bad in ["1", "1,", ",1", "1,2,", "1,2,3", "a,b", "-1,2"] {
            assert!(parse(&record("GNU.sparse.map", bad)).is_err(), "{bad}");
        }
        assert!(parse(&record("GNU.sparse.offset", "1")).is_err());
        assert!(parse(&record("GNU.sparse.numbytes", "1")).is_err());
    }

    #[test]
    fn budgets_hold() {
        let budgets = Budgets {
            xattr_bytes: 10,
            sparse_segments: 1,
            ..Budgets::default()
        };
        let refused = |key, value| Pax::parse(&record(key, value), false, &budgets).unwrap_err();
        assert_eq!(
            refused("SCHILY.xattr.user.x", "12345"),
            PaxError::Xattrs(10)
        );
        let many: Vec<u8> = (0..1025)
            .flat_map(|n| record(&format!("SCHILY.xattr.{n}"), ""))
            .collect();
        assert_eq!(parse(&many), Err(PaxError::ManyXattrs));
        assert_eq!(refused("GNU.sparse.map", "1,2,3,4"), PaxError::Segments(1));
    }
}
