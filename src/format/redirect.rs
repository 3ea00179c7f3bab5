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
