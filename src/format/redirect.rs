//! `overlay.redirect`: where the lower part of a renamed object is.
//!
//! Sources: `ovl_get_redirect_xattr` (fs/overlayfs/util.c), `ovl_check_redirect` (namei.c),
//! `ovl_get_redirect` (dir.c).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::FormatError;

/// The longest absolute redirect that is written, in bytes, all slashes included: the default of
/// the kernel's module parameter `redirect_max`. Longer ones are read.
pub const MAX_ABSOLUTE: usize = 256;

/// A parsed `overlay.redirect`. Every component is a real name: not empty, not `.` or `..`, without
/// slashes or NULs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Redirect {
    /// Another name in the same directory.
    Relative(OsString),
    /// The path from the root of the layers below; at least one component.
    Absolute(Vec<OsString>),
}

impl Redirect {
    /// Reads the attribute's value. As in the kernel the value ends at the first NUL.
    ///
    /// The kernel takes `.` and `..` here and then fails each lookup of them with `EACCES`
    /// (`lookup_one_common` in fs/namei.c); here they are invalid at once.
    ///
    /// # Errors
    /// For an empty value, an empty component (`//`, a slash at the end), a slash in a relative
    /// redirect, `.` and `..`.
    pub fn parse(value: &[u8]) -> Result<Redirect, FormatError> {
        let text = value.split(|&b| b == 0).next().unwrap_or_default();
        match text.strip_prefix(b"/") {
            Some(path) => path
                .split(|&b| b == b'/')
                .map(component)
                .collect::<Result<_, _>>()
                .map(Redirect::Absolute),
            None if text.contains(&b'/') => Err(FormatError::Redirect("relative, with a slash")),
            None => component(text).map(Redirect::Relative),
        }
    }

    /// The attribute's value.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Redirect::Relative(name) => name.clone().into_vec(),
            Redirect::Absolute(path) => path
                .iter()
                .flat_map(|name| [b"/", name.as_bytes()].concat())
                .collect(),
        }
    }
}

fn component(name: &[u8]) -> Result<OsString, FormatError> {
    match name {
        b"" => Err(FormatError::Redirect("an empty name")),
        b"." | b".." => Err(FormatError::Redirect("`.` or `..`")),
        name => Ok(OsStr::from_bytes(name).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn relative(name: &str) -> Redirect {
        Redirect::Relative(name.into())
    }

    fn absolute(path: &[&str]) -> Redirect {
        Redirect::Absolute(path.iter().map(OsString::from).collect())
    }

    #[test]
    fn valid_values_are_read() {
        let rows: [(&[u8], Redirect); 9] = [
            (b"a", relative("a")),
            (b"...", relative("...")),
            (b".wh.a", relative(".wh.a")),
            (b"/a", absolute(&["a"])),
            (b"/a/b", absolute(&["a", "b"])),
            (b"/a/..b/.c", absolute(&["a", "..b", ".c"])),
            // A C string ends at its NUL.
            (b"a\0", relative("a")),
            (b"a\0/b", relative("a")),
            (b"/a\0/", absolute(&["a"])),
        ];
        for (value, redirect) in rows {
            assert_eq!(Redirect::parse(value), Ok(redirect), "{value:?}");
        }
    }

    #[test]
    fn invalid_values_are_errors() {
        let rows: [&[u8]; 16] = [
            b"", b"\0", b"\0a", b"/", b"//", b"/a/", b"/a//b", b"//a", b"a/b", b"a/", b".", b"..",
            b"/.", b"/..", b"/a/../b", b"/a/.",
        ];
        for value in rows {
            assert!(Redirect::parse(value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn names_that_are_not_utf_8_survive() {
        let value = b"/\xff\xfe/b";
        assert_eq!(Redirect::parse(value).unwrap().encode(), value);
    }

    proptest! {
        #[test]
        fn valid_redirects_survive(
            path in proptest::collection::vec("[a-z.]{1,3}[^./\0]", 1..8),
            is_absolute: bool,
        ) {
            let mut path: Vec<_> = path.into_iter().map(OsString::from).collect();
            let redirect = match path.pop() {
                Some(name) if !is_absolute => Redirect::Relative(name),
                Some(name) => {
                    path.push(name);
                    Redirect::Absolute(path)
                }
                None => unreachable!(),
            };
            prop_assert_eq!(Redirect::parse(&redirect.encode()), Ok(redirect));
        }

        #[test]
        fn any_bytes_give_a_redirect_that_survives_or_an_error(
            value in proptest::collection::vec(
                prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..24),
        ) {
            if let Ok(redirect) = Redirect::parse(&value) {
                let text = value.split(|&b| b == 0).next().unwrap();
                let encoded = redirect.encode();
                prop_assert_eq!(encoded.as_slice(), text);
            }
        }
    }
}
