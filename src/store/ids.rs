//! The ids of the store, each its own type, parsed strictly.

use std::fmt;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};

use super::error::{Context as _, Result, StoreError};

pub use super::codec::digest::{BlobDigest, ChainId, DiffId, Digest};

/// The name of a layer's directory: 64 hex digits, random.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheId(String);

/// The name of a layer's short link: 26 characters of base32, random.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(String);

/// The id of an image: the digest of its config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(Digest);

/// The alphabet of link ids: base32 of RFC 4648.
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Characters of a link id.
const LINK_LENGTH: usize = 26;
/// Characters of a cache id. Docker's own `-init` directories have a suffix.
const CACHE_LENGTH: usize = 64;

impl CacheId {
    /// A new one.
    pub fn random() -> Result<CacheId> {
        random_hex::<32>().map(CacheId)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl LinkId {
    /// A new one.
    pub fn random() -> Result<LinkId> {
        let bytes = random_bytes::<LINK_LENGTH>()?;
        let text = bytes
            .iter()
            .filter_map(|byte| BASE32.get(usize::from(byte % 32)))
            .map(|digit| char::from(*digit))
            .collect();
        Ok(LinkId(text))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl ImageId {
    /// The id of the image with this config.
    pub fn of_config(config: &[u8]) -> ImageId {
        ImageId(Digest::of(config))
    }

    /// Of a config whose digest is known.
    pub fn new(digest: Digest) -> ImageId {
        ImageId(digest)
    }

    /// The digest of the config.
    pub fn digest(&self) -> &Digest {
        &self.0
    }

    /// The first 12 hex digits, as people see them.
    pub fn short(&self) -> String {
        short(&self.0)
    }
}

/// The first 12 hex digits of a digest, as people see them.
pub fn short(digest: &Digest) -> String {
    digest.hex().chars().take(12).collect()
}

impl fmt::Display for CacheId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CacheId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<CacheId> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == CACHE_LENGTH && text.bytes().all(is_hex) {
            Ok(CacheId(text.to_owned()))
        } else {
            Err(StoreError::BadName(format!("{text:?} is no cache id")))
        }
    }
}

impl FromStr for LinkId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<LinkId> {
        if text.len() == LINK_LENGTH && text.bytes().all(|byte| BASE32.contains(&byte)) {
            Ok(LinkId(text.to_owned()))
        } else {
            Err(StoreError::BadName(format!("{text:?} is no link id")))
        }
    }
}

impl FromStr for ImageId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<ImageId> {
        text.parse()
            .map(ImageId)
            .map_err(|_| StoreError::BadName(format!("{text:?} is no image id")))
    }
}

/// `N` random bytes as hex digits.
pub fn random_hex<const N: usize>() -> Result<String> {
    let bytes = random_bytes::<N>()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        filled += getrandom(rest, GetRandomFlags::empty()).context("drawing", "random bytes")?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_parsed_strictly() {
        let cache = CacheId::random().unwrap();
        assert_eq!(cache.as_str().parse::<CacheId>().unwrap(), cache);
        let link = LinkId::random().unwrap();
        assert_eq!(link.as_str().parse::<LinkId>().unwrap(), link);
        for bad in [
            "",
            "..",
            "A",
            &cache.as_str()[1..],
            &cache.as_str().to_uppercase(),
        ] {
            assert!(bad.parse::<CacheId>().is_err(), "{bad}");
        }
        for bad in [
            "",
            "..",
            &link.as_str()[1..],
            &"a".repeat(26),
            &"1".repeat(26),
        ] {
            assert!(bad.parse::<LinkId>().is_err(), "{bad}");
        }
    }
}
