//! `overlay.metacopy`: an upper file with attributes only.
//!
//! Source: `struct ovl_metacopy` in fs/overlayfs/overlayfs.h, `ovl_check_metacopy_xattr` in util.c.

use smallvec::SmallVec;

use super::FormatError;

/// Bytes before the digest: version, length, flags, algorithm.
const HEADER: usize = 4;
/// `FS_VERITY_MAX_DIGEST_SIZE`.
const DIGEST_MAX: usize = 64;

const SHORT: FormatError = FormatError::Metacopy("shorter than its header");

/// A parsed `overlay.metacopy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metacopy {
    /// Reserved, 0 so far.
    pub flags: u8,
    /// The fs-verity digest that the data file below must have.
    pub digest: Option<Digest>,
}

/// An fs-verity digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// `FS_VERITY_HASH_ALG_*`: 1 SHA-256, 2 SHA-512.
    pub algorithm: u8,
    /// The digest, 1 to 64 bytes.
    pub bytes: SmallVec<[u8; 32]>,
}

impl Metacopy {
    /// Whether the attribute, whatever its digest, makes its file a metacopy: what the kernel
    /// demands as long as nobody asks for verity. Later versions pass.
    ///
    /// # Errors
    /// When the value is not empty, but shorter than its header: the kernel fails the lookup (EIO).
    pub fn check(value: &[u8]) -> Result<(), FormatError> {
        match value.len() {
            1..HEADER => Err(SHORT),
            _ => Ok(()),
        }
    }

    /// Reads the attribute's value, as the kernel does for verity. One that is empty or ends with
    /// its header has no digest, and neither its version nor its length counts.
    ///
    /// # Errors
    /// When the value is shorter than its header; when it has a digest, but is longer than 68
    /// bytes, of another length than the header says, or of a version other than 0.
    pub fn parse(value: &[u8]) -> Result<Metacopy, FormatError> {
        let (version, length, flags, algorithm, bytes) = match value {
            [] => return Ok(Metacopy::default()),
            &[_, _, flags, _] => {
                return Ok(Metacopy {
                    flags,
                    digest: None,
                });
            }
            &[version, length, flags, algorithm, ref bytes @ ..] => {
                (version, length, flags, algorithm, bytes)
            }
            _ => return Err(SHORT),
        };
        if bytes.len() > DIGEST_MAX {
            return Err(FormatError::Metacopy("longer than a digest can be"));
        }
        if version != 0 {
            return Err(FormatError::Metacopy("an unknown version"));
        }
        if usize::from(length) != value.len() {
            return Err(FormatError::Metacopy("a length that is not so"));
        }
        let digest = Some(Digest {
            algorithm,
            bytes: SmallVec::from_slice(bytes),
        });
        Ok(Metacopy { flags, digest })
    }

    /// The attribute's value; empty without flags and digest.
    pub fn encode(&self) -> Vec<u8> {
        if *self == Metacopy::default() {
            return Vec::new();
        }
        let (algorithm, bytes) = match &self.digest {
            Some(digest) => (digest.algorithm, digest.bytes.as_slice()),
            None => (0, [].as_slice()),
        };
        let bytes = bytes.get(..DIGEST_MAX).unwrap_or(bytes);
        let length = u8::try_from(HEADER + bytes.len()).unwrap_or(u8::MAX);
        let mut value = vec![0, length, self.flags, algorithm];
        value.extend(bytes);
        value
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_value_has_no_digest() {
        assert_eq!(Metacopy::parse(b""), Ok(Metacopy::default()));
        assert_eq!(Metacopy::parse(&[0, 4, 0, 0]), Ok(Metacopy::default()));
        assert_eq!(Metacopy::parse(&[9, 9, 0, 1]), Ok(Metacopy::default()));
        assert!(Metacopy::default().encode().is_empty());
    }

    #[test]
    fn a_digest_is_read_and_written() {
        let value = [&[0, 36, 0, 1], [0xab; 32].as_slice()].concat();
        let metacopy = Metacopy::parse(&value).unwrap();
        let digest = metacopy.digest.clone().unwrap();
        assert_eq!(
            (metacopy.flags, digest.algorithm, digest.bytes.as_slice()),
            (0, 1, [0xab; 32].as_slice())
        );
        assert_eq!(metacopy.encode(), value);
    }

    #[test]
    fn without_verity_only_the_header_must_be_there() {
        for (value, good) in [
            (&[][..], true),
            (&[0], false),
            (&[0, 4, 0], false),
            (&[9, 0, 0, 0], true),
            (&[1; 99], true),
        ] {
            assert_eq!(Metacopy::check(value).is_ok(), good, "{value:?}");
        }
    }

    #[test]
    fn invalid_values_are_errors() {
        let rows: [&[u8]; 8] = [
            &[0],
            &[0, 3, 0],
            &[1, 5, 0, 1, 9], // version
            &[0, 4, 0, 1, 9], // length
            &[0, 6, 0, 1, 9],
            &[0, 0, 0, 1, 9],
            &[0, 255, 0, 1, 9],
            &[&[0, 69, 0, 2][..], &[0; 65]].concat(),
        ];
        for value in rows {
            assert!(Metacopy::parse(value).is_err(), "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn values_survive(
            flags: u8,
            algorithm: u8,
            bytes in proptest::collection::vec(any::<u8>(), 1..=DIGEST_MAX),
        ) {
            let digest = Digest { algorithm, bytes: SmallVec::from_vec(bytes) };
            for digest in [Some(digest), None] {
                let metacopy = Metacopy { flags, digest };
                prop_assert_eq!(Metacopy::parse(&metacopy.encode()), Ok(metacopy));
            }
        }

        #[test]
        fn no_bytes_panic(
            mut value in proptest::collection::vec(any::<u8>(), 0..80),
            honest: bool,
        ) {
            let length = value.len() as u8;
            if let (true, [version, len, ..]) = (honest, value.as_mut_slice()) {
                (*version, *len) = (0, length);
            }
            if let Ok(parsed) = Metacopy::parse(&value) {
                prop_assert_eq!(Metacopy::parse(&parsed.encode()), Ok(parsed));
            }
        }
    }
}
