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
