//! Names of containers, as Docker takes them. Pure but for [`ContainerName::random`].

use std::fmt;
use std::str::FromStr;

use crate::store::error::{Result, StoreError};
use crate::store::ids;

/// A name: a letter or digit, then letters, digits, `_`, `.` and `-`; at least two characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerName(String);

const FIRST: [&str; 32] = [
    "amber", "bold", "brisk", "calm", "clear", "cool", "crisp", "dapper", "eager", "early", "fair",
    "fond", "gentle", "glad", "keen", "kind", "light", "lucid", "merry", "mild", "neat", "noble",
    "plain", "proud", "quick", "quiet", "rapid", "sharp", "sound", "swift", "warm", "wise",
];
const SECOND: [&str; 32] = [
    "badger", "bison", "crane", "curlew", "dove", "egret", "falcon", "ferret", "finch", "gannet",
    "heron", "ibex", "jackdaw", "kestrel", "lark", "lemur", "lynx", "marten", "merlin", "newt",
    "osprey", "otter", "plover", "puffin", "raven", "robin", "salmon", "stoat", "swan", "tern",
    "vole", "wren",
];

impl ContainerName {
    /// One that is nice to read. Another may have it already.
    pub fn random() -> Result<ContainerName> {
        let digits = ids::random_hex::<4>()?;
        let number = u32::from_str_radix(&digits, 16).unwrap_or_default();
        let word = |words: &[&'static str; 32], shift: u32| {
            let at = usize::try_from(number >> shift & 31).unwrap_or_default();
            words.get(at).copied().unwrap_or("some")
        };
        let (first, second) = (word(&FIRST, 0), word(&SECOND, 5));
        Ok(ContainerName(format!(
            "{first}_{second}{}",
            number >> 10 & 0xff
        )))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ContainerName {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<ContainerName> {
        let name = text.strip_prefix('/').unwrap_or(text);
        let is_inner = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        let begins = name
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if begins && name.len() >= 2 && name.len() <= 255 && name.bytes().all(is_inner) {
            return Ok(ContainerName(name.to_owned()));
        }
        Err(StoreError::BadName(format!(
            "{text:?} is no name of a container: a letter or digit, then at least one letter, digit, `_`, `.` or `-`"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_docker_takes() {
        for good in ["ab", "a1", "0b", "a.b-c_d", "/web", "A-"] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good}");
        }
        for bad in ["", "a", "-a", ".a", "_a", "a b", "a/b", "ü1", "//a", "/"] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad}");
        }
        let random = ContainerName::random().unwrap();
        assert_eq!(random.as_str().parse::<ContainerName>().unwrap(), random);
    }
}
