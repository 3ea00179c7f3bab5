//! SHA-256 digests, what they name, and streams that compute them.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

const ALGORITHM: &str = "sha256:";

/// A SHA-256. Written `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// A text that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `sha256:` in front.
    #[error("{0:?} is not a sha256 digest (only \"sha256:\" and 64 hexadecimal digits is one)")]
    Algorithm(String),
    /// Not 64 lower-case hexadecimal digits.
    #[error("{0:?} is not 64 lower-case hexadecimal digits")]
    Hex(String),
}

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// From its 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits: its name in a directory.
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
        self.0
            .iter()
            .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
            .collect()
    }

    /// From 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// [`DigestError::Hex`] for anything else.
    pub fn from_hex(hex: &str) -> Result<Digest, DigestError> {
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let error = || DigestError::Hex(shorten(hex));
        let (pairs, odd) = hex.as_bytes().as_chunks::<2>();
        if pairs.len() != 32 || !odd.is_empty() {
            return Err(error());
        }
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            let (high, low) = value(*high).zip(value(*low)).ok_or_else(error)?;
            *byte = high << 4 | low;
        }
        Ok(Digest(bytes))
    }
}

/// As much of a foreign text as an error should show.
fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    /// Strict: `sha256:` and 64 lower-case hexadecimal digits, nothing around them.
    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let hex = text
            .strip_prefix(ALGORITHM)
            .ok_or_else(|| DigestError::Algorithm(shorten(text)))?;
        Digest::from_hex(hex)
    }
}

macro_rules! digest_names {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Digest);

        impl $name {
            /// The 64 hexadecimal digits: its name in a directory.
            pub fn hex(&self) -> String {
                self.0.hex()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<$name, DigestError> {
                text.parse().map($name)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

digest_names! {
    /// Of a layer's uncompressed tar.
    DiffId;
    /// Of a stack of layers: its own diff-id and all those below.
    ChainId;
    /// Of a blob as it is stored or sent: a compressed layer, a manifest, a config.
    BlobDigest;
}

impl ChainId {
    /// Of a layer without a parent.
    pub fn base(diff: DiffId) -> ChainId {
        ChainId(diff.0)
    }

    /// Of a layer on top of this stack.
    pub fn child(&self, diff: DiffId) -> ChainId {
        ChainId(Digest::of(format!("{self} {diff}").as_bytes()))
    }

    /// Of a whole stack, the base first; `None` without layers.
    pub fn of(diffs: &[DiffId]) -> Option<ChainId> {
        let (base, rest) = diffs.split_first()?;
        let base = ChainId::base(*base);
        Some(rest.iter().fold(base, |chain, diff| chain.child(*diff)))
    }
}

/// A running digest and the count of bytes.
#[derive(Clone, Default)]
pub struct Hasher {
    state: Sha256,
    bytes: u64,
}

impl Hasher {
    /// Of nothing yet.
    pub fn new() -> Hasher {
        Hasher::default()
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The digest and the count of bytes.
    pub fn finish(self) -> (Digest, u64) {
        (Digest(self.state.finalize().into()), self.bytes)
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Digests what is read through it.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> HashingReader<R> {
    /// Around `inner`.
    pub fn new(inner: R) -> HashingReader<R> {
        let hasher = Hasher::new();
        HashingReader { inner, hasher }
    }

    /// Bytes read so far.
    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    /// The reader, the digest of what was read, and the count of its bytes.
    pub fn finish(self) -> (R, Digest, u64) {
        let (digest, bytes) = self.hasher.finish();
        (self.inner, digest, bytes)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// Digests what is written through it.
#[derive(Debug)]
pub struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> HashingWriter<W> {
    /// Around `inner`.
    pub fn new(inner: W) -> HashingWriter<W> {
        let hasher = Hasher::new();
        HashingWriter { inner, hasher }
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.hasher.bytes()
    }

    /// The writer, the digest of what was written, and the count of its bytes.
    pub fn finish(self) -> (W, Digest, u64) {
        let (digest, bytes) = self.hasher.finish();
        (self.inner, digest, bytes)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_parsed_strictly_and_written_the_same() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::of(b""));
        assert_eq!(digest.to_string(), EMPTY);
        let hex = &EMPTY[7..];
        let bad = [
            String::new(),
            hex.to_owned(),
            format!("sha512:{hex}"),
            format!("SHA256:{hex}"),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{hex}0"),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{}", &hex[2..]),
            format!("sha256: {}", &hex[1..]),
            format!(" {EMPTY}"),
            format!("{EMPTY}\n"),
            format!("sha256:{}é", &hex[2..]),
            format!("sha256:+{}", &hex[1..]),
        ];
        for text in bad {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn chain_ids_follow_the_oci_specification() {
        let diffs = [b"a", b"b", b"c"].map(|b| DiffId(Digest::of(b)));
        let by_hand = |chain: &str, diff: &DiffId| Digest::of(format!("{chain} {diff}").as_bytes());
        let one = ChainId::of(&diffs[..1]).unwrap();
        assert_eq!(one.0, diffs[0].0);
        let two = ChainId::of(&diffs[..2]).unwrap();
        assert_eq!(two.0, by_hand(&diffs[0].to_string(), &diffs[1]));
        let three = ChainId::of(&diffs).unwrap();
        assert_eq!(three.0, by_hand(&two.to_string(), &diffs[2]));
        assert_eq!(ChainId::of(&[]), None);
    }

    #[test]
    fn streams_are_digested_as_they_pass() {
        let mut reader = HashingReader::new(&b"some bytes"[..]);
        let mut writer = HashingWriter::new(Vec::new());
        io::copy(&mut reader, &mut writer).unwrap();
        let (_, read, n) = reader.finish();
        let (bytes, written, m) = writer.finish();
        assert_eq!((n, m), (10, 10));
        assert_eq!(read, Digest::of(b"some bytes"));
        assert_eq!((read, bytes.as_slice()), (written, &b"some bytes"[..]));
    }

    #[test]
    fn names_are_texts_in_json() {
        let id: DiffId = serde_json::from_str(&format!("{EMPTY:?}")).unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("{EMPTY:?}"));
        assert!(serde_json::from_str::<DiffId>("\"sha256:0\"").is_err());
    }
}
