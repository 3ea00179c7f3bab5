//! Paths of archives. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::EntryProblem;
use crate::format::whiteout::{AufsName, WHITEOUT_PREFIX, classify};

/// The longest name of a directory entry.
const NAME_MAX: usize = 255;

/// A path relative to the layer's root: components joined by single slashes, none of them empty, `.`
/// or `..`. The root's is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct CleanPath(Vec<u8>);

impl CleanPath {
    /// Cleans a path of an archive: a leading slash means the layer's root.
    pub(super) fn new(path: &[u8], most_components: usize) -> Result<CleanPath, EntryProblem> {
        let mut clean = Vec::with_capacity(path.len());
        let mut count = 0;
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(EntryProblem::DotDot),
                _ if component.len() > NAME_MAX => return Err(EntryProblem::LongName),
                _ if component.contains(&0) => return Err(EntryProblem::Nul),
                _ => {}
            }
            count += 1;
            if count > most_components {
                return Err(EntryProblem::Deep(most_components));
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(component);
        }
        Ok(CleanPath(clean))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Parent and name; for the root an empty name.
    pub(super) fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => {
                let (parent, name) = self.0.split_at(at);
                (parent, name.get(1..).unwrap_or_default())
            }
            None => (b"", &self.0),
        }
    }
}

/// What an entry's path means in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// An object.
    Object,
    /// It hides this name, beside it, in the layers below.
    Hides(&'a [u8]),
    /// Its directory hides those below.
    Opaque,
    /// What AUFS kept for itself.
    Ignored,
}

/// What a path means. That of a whiteout's child is an error, that of AUFS' own directories' is ignored.
pub(super) fn meaning(path: &CleanPath) -> Result<Meaning<'_>, EntryProblem> {
    let (parent, name) = path.split();
    if !path
        .0
        .windows(WHITEOUT_PREFIX.len())
        .any(|w| w == WHITEOUT_PREFIX)
    {
        return Ok(Meaning::Object);
    }
    for component in parent.split(|byte| *byte == b'/') {
        match classify(OsStr::from_bytes(component)) {
            AufsName::Plain => {}
            AufsName::Reserved if is_aufs(component) => return Ok(Meaning::Ignored),
            _ => return Err(EntryProblem::BeneathWhiteout),
        }
    }
    match classify(OsStr::from_bytes(name)) {
        AufsName::Plain => Ok(Meaning::Object),
        AufsName::Hides(hidden) => Ok(Meaning::Hides(hidden.as_bytes())),
        AufsName::Opaque => Ok(Meaning::Opaque),
        AufsName::Reserved if is_aufs(name) => Ok(Meaning::Ignored),
        AufsName::Reserved => Err(EntryProblem::BadWhiteout),
    }
}

fn is_aufs(name: &[u8]) -> bool {
    name.starts_with(b".wh..wh.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(path: &str) -> Result<CleanPath, EntryProblem> {
        CleanPath::new(path.as_bytes(), 8)
    }

    #[test]
    fn paths_are_cleaned_and_never_lead_up() {
        for (path, expected) in [
            ("a", "a"),
            ("./a", "a"),
            ("/a//b/./c/", "a/b/c"),
            ("", ""),
            ("/", ""),
            ("./", ""),
            ("...", "..."),
            ("a/..b", "a/..b"),
        ] {
            assert_eq!(clean(path).unwrap().as_bytes(), expected.as_bytes());
        }
        for path in ["..", "../a", "a/..", "a/../b", "/..", "./../a"] {
            assert!(matches!(clean(path), Err(EntryProblem::DotDot)), "{path}");
        }
        assert!(matches!(
            clean(&"a".repeat(256)),
            Err(EntryProblem::LongName)
        ));
        assert!(matches!(clean(&"a/".repeat(9)), Err(EntryProblem::Deep(8))));
        assert!(matches!(clean("a\0b"), Err(EntryProblem::Nul)));
    }

    #[test]
    fn names_of_whiteouts_have_their_meaning() {
        let path = |text| clean(text).unwrap();
        assert_eq!(meaning(&path("a/b")), Ok(Meaning::Object));
        assert_eq!(meaning(&path("a/.wh.b")), Ok(Meaning::Hides(b"b")));
        assert_eq!(meaning(&path(".wh..wh..opq")), Ok(Meaning::Opaque));
        assert_eq!(meaning(&path("a/.wh..wh.plnk")), Ok(Meaning::Ignored));
        assert_eq!(meaning(&path(".wh..wh.plnk/a.b")), Ok(Meaning::Ignored));
        assert_eq!(meaning(&path("a.wh.b")), Ok(Meaning::Object));
        for bad in [".wh.", ".wh..", ".wh...", "a/.wh."] {
            assert_eq!(meaning(&path(bad)), Err(EntryProblem::BadWhiteout), "{bad}");
        }
        for bad in [".wh.a/b", "a/.wh.b/c/d"] {
            assert_eq!(meaning(&path(bad)), Err(EntryProblem::BeneathWhiteout));
        }
    }
}
