//! Splitting of option strings and of lists of directories, with the escapes of the kernel's overlayfs:
//! a backslash takes the next byte literally, so `\,` `\:` and `\\` stand for `,` `:` and `\`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::overlay::IdMap;

/// Why a list can't be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// A backslash with nothing behind it.
    #[error("ends in a lone backslash; write `\\\\` for a backslash")]
    LoneBackslash,
    /// Nothing between two separators, or no path at all.
    #[error("has an empty path in it")]
    EmptyPath,
    /// `A::D:B`.
    #[error(
        "has an ordinary directory behind a data-only one; join data-only directories with `::`"
    )]
    LowerBehindData,
}

/// Directories to merge, and data-only directories, both top to bottom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lowers {
    /// The ordinary ones.
    pub lowers: Vec<PathBuf>,
    /// Those behind `::`.
    pub data: Vec<PathBuf>,
}

/// Splits the value of one `-o` at its unescaped commas; escapes stay in the parts. A value in double
/// quotes (SELinux contexts have commas in them) is not split and loses its quotes. Empty options vanish.
pub fn split_options(raw: &OsStr) -> Vec<OsString> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut quoted = false;
    let mut bytes = raw.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                part.push(byte);
                part.extend(bytes.next());
            }
            b'"' if quoted && matches!(bytes.peek(), None | Some(b',')) => quoted = false,
            b'"' if is_context(&part) => quoted = true,
            b',' if !quoted => parts.push(std::mem::take(&mut part)),
            other => part.push(other),
        }
    }
    parts.push(part);
    parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(OsString::from_vec)
        .collect()
}

/// Whether `part` is the name of a context option, up to and with the `=`.
fn is_context(part: &[u8]) -> bool {
    part.strip_suffix(b"context=").is_some()
}

/// Removes the backslash of every escape.
pub fn unescape(raw: &OsStr) -> Result<OsString, ListError> {
    let mut plain = Vec::with_capacity(raw.len());
    let mut bytes = raw.as_bytes().iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => plain.push(bytes.next().ok_or(ListError::LoneBackslash)?),
            other => plain.push(other),
        }
    }
    Ok(OsString::from_vec(plain))
}

/// One path, unescaped.
pub fn one_path(raw: &OsStr) -> Result<PathBuf, ListError> {
    let path = unescape(raw)?;
    if path.is_empty() {
        return Err(ListError::EmptyPath);
    }
    Ok(PathBuf::from(path))
}

/// `A:B::D1::D2`: directories joined by `:`, then data-only ones, each behind `::`.
pub fn split_lowers(raw: &OsStr) -> Result<Lowers, ListError> {
    let mut found = Lowers::default();
    let mut path = Vec::new();
    let mut behind_data = false;
    let mut bytes = raw.as_bytes().iter().copied().peekable();
    loop {
        let byte = bytes.next();
        match byte {
            Some(b'\\') => path.push(bytes.next().ok_or(ListError::LoneBackslash)?),
            None | Some(b':') => {
                if path.is_empty() {
                    return Err(ListError::EmptyPath);
                }
                let done = PathBuf::from(OsString::from_vec(std::mem::take(&mut path)));
                let list = if behind_data {
                    &mut found.data
                } else {
                    &mut found.lowers
                };
                list.push(done);
                if byte.is_none() {
                    return Ok(found);
                }
                let is_data = bytes.next_if_eq(&b':').is_some();
                if behind_data && !is_data {
                    return Err(ListError::LowerBehindData);
                }
                behind_data |= is_data;
            }
            Some(other) => path.push(other),
        }
    }
}

/// `[:]STORED:SHOWN:COUNT[:STORED:SHOWN:COUNT…]`, as container engines write it, in the order in which
/// fuse-overlayfs reads it; `None` when it is anything else.
pub fn id_maps(raw: &str) -> Option<Vec<IdMap>> {
    let raw = raw.strip_prefix(':').unwrap_or(raw);
    let numbers: Vec<u32> = raw
        .split(':')
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let rows: Vec<IdMap> = numbers
        .chunks_exact(3)
        .filter_map(|row| match row {
            &[stored, shown, count] => Some(IdMap {
                stored,
                shown,
                count,
            }),
            _ => None,
        })
        .collect();
    let complete = !rows.is_empty() && rows.len() * 3 == numbers.len();
    let sound = |row: &IdMap| {
        row.count > 0
            && row.stored.checked_add(row.count - 1).is_some()
            && row.shown.checked_add(row.count - 1).is_some()
    };
    (complete && rows.iter().all(sound)).then_some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn os(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn options_split_at_plain_commas_only() {
        let rows: &[(&str, &[&str])] = &[
            ("", &[]),
            (",,", &[]),
            ("a", &["a"]),
            ("a,,b,", &["a", "b"]),
            (r"lowerdir=/a\,b,ro", &[r"lowerdir=/a\,b", "ro"]),
            (r"x=a\\,b", &[r"x=a\\", "b"]),
            (r"x=\", &[r"x=\"]),
            (
                r#"context="u:o:s0:c1,c2",ro"#,
                &["context=u:o:s0:c1,c2", "ro"],
            ),
            (r#"context="open"#, &["context=open"]),
            (
                r#"lowerdir=/a"b,upperdir=/c"d"#,
                &[r#"lowerdir=/a"b"#, r#"upperdir=/c"d"#],
            ),
        ];
        for (raw, parts) in rows {
            assert_eq!(split_options(os(raw)), *parts, "{raw}");
        }
    }

    #[test]
    fn lowers_split_at_colons_and_double_colons() {
        let rows: &[(&str, &[&str], &[&str])] = &[
            ("a", &["a"], &[]),
            ("a:b", &["a", "b"], &[]),
            (r"a\:b:c", &["a:b", "c"], &[]),
            (r"a\\:c", &[r"a\", "c"], &[]),
            (r"a\,b", &["a,b"], &[]),
            ("a::d", &["a"], &["d"]),
            ("a:b::d::e", &["a", "b"], &["d", "e"]),
            (r"a\::d", &["a:", "d"], &[]),
        ];
        for (raw, lowers, data) in rows {
            let found = split_lowers(os(raw)).unwrap();
            assert_eq!(
                found.lowers,
                lowers.iter().map(PathBuf::from).collect::<Vec<_>>(),
                "{raw}"
            );
            assert_eq!(
                found.data,
                data.iter().map(PathBuf::from).collect::<Vec<_>>(),
                "{raw}"
            );
        }
    }

    #[test]
    fn lists_with_holes_are_refused() {
        for raw in ["", ":", "a:", ":a", "::a", "a:::b", "a::", "a::b::"] {
            assert_eq!(split_lowers(os(raw)), Err(ListError::EmptyPath), "{raw}");
        }
        assert_eq!(split_lowers(os("a::d:b")), Err(ListError::LowerBehindData));
        assert_eq!(split_lowers(os(r"a\")), Err(ListError::LoneBackslash));
    }

    #[test]
    fn paths_need_not_be_utf8() {
        let raw = OsStr::from_bytes(b"/\xff:/b\xfe");
        let found = split_lowers(raw).unwrap();
        assert_eq!(found.lowers[0].as_os_str().as_bytes(), b"/\xff");
        assert_eq!(found.lowers[1].as_os_str().as_bytes(), b"/b\xfe");
    }

    #[test]
    fn id_maps_come_in_threes() {
        let row = |stored, shown, count| IdMap {
            stored,
            shown,
            count,
        };
        assert_eq!(id_maps("0:1000:1"), Some(vec![row(0, 1000, 1)]));
        assert_eq!(
            id_maps(":0:1:1002:1002:0:1"),
            Some(vec![row(0, 1, 1002), row(1002, 0, 1)])
        );
        assert_eq!(id_maps("0:0:4294967295"), Some(vec![row(0, 0, u32::MAX)]));
        for raw in [
            "",
            ":",
            "0",
            "0:1",
            "0:1:2:3",
            "0:0:0",
            "a:b:c",
            "4294967295:0:2",
            "0:-1:2",
        ] {
            assert_eq!(id_maps(raw), None, "{raw}");
        }
    }

    /// Every byte that a path may have, escaped as a user would.
    fn escape(path: &[u8]) -> Vec<u8> {
        path.iter()
            .flat_map(|&byte| match byte {
                b'\\' | b',' | b':' | b'"' => vec![b'\\', byte],
                other => vec![other],
            })
            .collect()
    }

    proptest! {
        #[test]
        fn nothing_makes_the_splitters_panic(raw in proptest::collection::vec(any::<u8>(), 0..80)) {
            let raw = OsString::from_vec(raw);
            for part in split_options(&raw) {
                prop_assert!(!part.is_empty());
            }
            let _found = (split_lowers(&raw), unescape(&raw), one_path(&raw));
            let _maps = id_maps(&raw.to_string_lossy());
        }

        #[test]
        fn escaped_paths_come_back_whole(
            paths in proptest::collection::vec(proptest::collection::vec(1u8.., 1..12), 1..6)
        ) {
            let joined = paths.iter().map(|path| escape(path)).collect::<Vec<_>>().join(&b':');
            let mut option = b"lowerdir=".to_vec();
            option.extend(&joined);
            let parts = split_options(OsStr::from_bytes(&option));
            prop_assert_eq!(&parts, &vec![OsString::from_vec(option)]);
            let found = split_lowers(OsStr::from_bytes(&joined)).unwrap();
            let plain: Vec<PathBuf> = paths.into_iter().map(|path| OsString::from_vec(path).into()).collect();
            prop_assert_eq!(found.lowers, plain);
        }
    }
}
