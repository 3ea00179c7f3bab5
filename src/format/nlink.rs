//! `overlay.nlink`: the link count of an overlay inode, as a difference to a real one.
//!
//! Source: `ovl_get_nlink` and `ovl_set_nlink_common` in fs/overlayfs/inode.c.

use super::FormatError;

/// The longest value that the kernel reads, in bytes.
const LENGTH_MAX: usize = 12;

/// Whose link count the difference is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NlinkBase {
    /// The upper inode's.
    Upper,
    /// The lower inode's.
    Lower,
}

/// A parsed `overlay.nlink`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nlink {
    /// Whose link count to begin with.
    pub base: NlinkBase,
    /// What to add; fits 32 bits.
    pub diff: i64,
}

impl Nlink {
    /// Reads `U+1`, `L-2` and the like. As in the kernel the value ends at the first NUL, and one
    /// newline may follow.
    ///
    /// # Errors
    /// When the value is longer than 12 bytes or not of this form, or the number exceeds 32 bits.
    pub fn parse(value: &[u8]) -> Result<Nlink, FormatError> {
        const BAD: FormatError = FormatError::Nlink("not U or L, sign, decimal number");
        if value.len() > LENGTH_MAX {
            return Err(FormatError::Nlink("longer than 12 bytes"));
        }
        let text = value.split(|&b| b == 0).next().unwrap_or_default();
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let (base, sign, digits) = match text {
            [b'U', sign, digits @ ..] => (NlinkBase::Upper, sign, digits),
            [b'L', sign, digits @ ..] => (NlinkBase::Lower, sign, digits),
            _ => return Err(BAD),
        };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(BAD);
        }
        // At most 10 digits.
        let number = digits
            .iter()
            .fold(0i64, |n, &digit| n * 10 + i64::from(digit - b'0'));
        let diff = match sign {
            b'+' => number,
            b'-' => -number,
            _ => return Err(BAD),
        };
        if i32::try_from(diff).is_err() {
            return Err(FormatError::Nlink("more than 32 bits"));
        }
        Ok(Nlink { base, diff })
    }

    /// The attribute's value. A difference beyond 32 bits, which no file system can have, becomes
    /// the nearest one within.
    pub fn encode(&self) -> Vec<u8> {
        let base = match self.base {
            NlinkBase::Upper => 'U',
            NlinkBase::Lower => 'L',
        };
        let diff = self.diff.clamp(i32::MIN.into(), i32::MAX.into());
        format!("{base}{diff:+}").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn valid_values_are_read() {
        let rows: [(&[u8], NlinkBase, i64); 9] = [
            (b"U+1", NlinkBase::Upper, 1),
            (b"U+0", NlinkBase::Upper, 0),
            (b"U-0", NlinkBase::Upper, 0),
            (b"L-2", NlinkBase::Lower, -2),
            (b"L+0012", NlinkBase::Lower, 12),
            (b"U+2147483647", NlinkBase::Upper, 2_147_483_647),
            (b"L-2147483648", NlinkBase::Lower, -2_147_483_648),
            (b"U+1\n", NlinkBase::Upper, 1),
            (b"U+1\0x", NlinkBase::Upper, 1),
        ];
        for (value, base, diff) in rows {
            assert_eq!(Nlink::parse(value), Ok(Nlink { base, diff }), "{value:?}");
        }
    }

    #[test]
    fn invalid_values_are_errors() {
        let rows: [&[u8]; 20] = [
            b"",
            b"U",
            b"U+",
            b"L-",
            b"U1",
            b"+1",
            b"X+1",
            b"u+1",
            b"U 1",
            b"U++1",
            b"U+-1",
            b"U+1 ",
            b"U+1\n\n",
            b"U+1x",
            b"U+0x1",
            b"U+2147483648",
            b"L-2147483649",
            b"U+00000000001",
            b"\0U+1",
            b"U+\xff",
        ];
        for value in rows {
            assert!(Nlink::parse(value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn differences_are_written_with_their_sign() {
        let encode = |base, diff| String::from_utf8(Nlink { base, diff }.encode()).unwrap();
        assert_eq!(encode(NlinkBase::Upper, 0), "U+0");
        assert_eq!(encode(NlinkBase::Upper, -1), "U-1");
        assert_eq!(encode(NlinkBase::Lower, 7), "L+7");
        assert_eq!(encode(NlinkBase::Lower, i64::MAX), "L+2147483647");
        assert_eq!(encode(NlinkBase::Lower, i64::MIN), "L-2147483648");
    }

    proptest! {
        #[test]
        fn differences_survive(diff: i32, lower: bool) {
            let base = if lower { NlinkBase::Lower } else { NlinkBase::Upper };
            let nlink = Nlink { base, diff: diff.into() };
            prop_assert_eq!(Nlink::parse(&nlink.encode()), Ok(nlink));
        }

        #[test]
        fn no_bytes_panic(value in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(parsed) = Nlink::parse(&value) {
                prop_assert_eq!(Nlink::parse(&parsed.encode()), Ok(parsed));
            }
        }

        #[test]
        fn no_text_panics(value in "[UL][+-][0-9]{0,14}\n?") {
            if let Ok(parsed) = Nlink::parse(value.as_bytes()) {
                prop_assert_eq!(Nlink::parse(&parsed.encode()), Ok(parsed));
            }
        }
    }
}
