//! One 512-byte header, and the extension blocks of old GNU sparse files. Pure.
//!
//! Sources: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format"; the
//! old GNU form is `struct oldgnu_header` and `struct sparse_header` there.

use super::{Field, SparseSegment, Time};

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// One block of an archive.
pub type Block = [u8; BLOCK];

/// Which of the formats a header is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// No magic.
    V7,
    /// `ustar\0`.
    Ustar,
    /// `ustar\0`, and `tar\0` at the end: the prefix is shorter.
    Star,
    /// `ustar  \0`.
    Gnu,
}

/// The fields of one header, as they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The format.
    pub dialect: Dialect,
    /// The type flag.
    pub flag: u8,
    /// Name, and prefix where there is one.
    pub path: Vec<u8>,
    /// The link's target.
    pub link: Vec<u8>,
    /// All bits of the mode field.
    pub mode: u64,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes of the body.
    pub size: u64,
    /// Modification time, seconds since 1970.
    pub mtime: i64,
    /// Device numbers; 0 where the format has none.
    pub device: (u64, u64),
    /// What an old GNU sparse file says of itself.
    pub sparse: Option<OldSparse>,
}

/// The sparse map of an old GNU header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldSparse {
    /// Length of the file with its holes.
    pub real_size: u64,
    /// The first pieces.
    pub segments: Vec<SparseSegment>,
    /// Whether an extension block with more follows the header.
    pub extended: bool,
}

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Only zeros: part of the end of the archive.
    Zeros,
    /// A header.
    Header(Box<Header>),
}

/// Reads a block where a header, or the end, has to be.
///
/// # Errors
/// [`Field::Checksum`], or the field that holds no number.
pub fn parse(block: &Block) -> Result<Parsed, Field> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Parsed::Zeros);
    }
    check_sum(block)?;
    let dialect = dialect(block);
    let flag = field::<156, 1>(block)[0];
    let numbers_of_device = dialect != Dialect::V7 && matches!(flag, b'3' | b'4');
    let device = if numbers_of_device {
        (
            unsigned(&field::<329, 8>(block), Field::Device)?,
            unsigned(&field::<337, 8>(block), Field::Device)?,
        )
    } else {
        (0, 0)
    };
    Ok(Parsed::Header(Box::new(Header {
        dialect,
        flag,
        path: path(block, dialect),
        link: text(&field::<157, 100>(block)),
        mode: unsigned(&field::<100, 8>(block), Field::Mode)?,
        uid: unsigned(&field::<108, 8>(block), Field::Uid)?,
        gid: unsigned(&field::<116, 8>(block), Field::Gid)?,
        size: unsigned(&field::<124, 12>(block), Field::Size)?,
        mtime: number(&field::<136, 12>(block), Field::Mtime)?,
        device,
        sparse: (flag == b'S').then(|| old_sparse(block)).transpose()?,
    })))
}

/// `N` bytes at `AT`.
fn field<const AT: usize, const N: usize>(block: &Block) -> [u8; N] {
    const { assert!(AT + N <= BLOCK) };
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(block.iter().skip(AT)) {
        *to = *from;
    }
    bytes
}

/// A text that NUL ends, or the field's end.
fn text(field: &[u8]) -> Vec<u8> {
    let end = field.iter().position(|byte| *byte == 0);
    field
        .get(..end.unwrap_or(field.len()))
        .unwrap_or_default()
        .to_vec()
}

fn dialect(block: &Block) -> Dialect {
    match &field::<257, 8>(block) {
        b"ustar  \0" => Dialect::Gnu,
        magic if magic.starts_with(b"ustar\0") => {
            if field::<508, 4>(block) == *b"tar\0" {
                Dialect::Star
            } else {
                Dialect::Ustar
            }
        }
        _ => Dialect::V7,
    }
}

fn path(block: &Block, dialect: Dialect) -> Vec<u8> {
    let name = text(&field::<0, 100>(block));
    let prefix = match dialect {
        Dialect::V7 | Dialect::Gnu => Vec::new(),
        Dialect::Ustar => text(&field::<345, 155>(block)),
        Dialect::Star => text(&field::<345, 131>(block)),
    };
    if prefix.is_empty() {
        name
    } else {
        [prefix, name].join(&b'/')
    }
}

/// The sum of all bytes, those of the field itself as spaces; some old tars summed signed bytes.
fn check_sum(block: &Block) -> Result<(), Field> {
    let stored = number(&field::<148, 8>(block), Field::Checksum)?;
    let in_field = |at: usize| (148..156).contains(&at);
    let bytes = || block.iter().enumerate();
    let unsigned: i64 = bytes()
        .map(|(at, byte)| if in_field(at) { 32 } else { i64::from(*byte) })
        .sum();
    let signed: i64 = bytes()
        .map(|(at, byte)| {
            if in_field(at) {
                32
            } else {
                i64::from(byte.cast_signed())
            }
        })
        .sum();
    if stored == unsigned || stored == signed {
        Ok(())
    } else {
        Err(Field::Checksum)
    }
}

fn unsigned(bytes: &[u8], field: Field) -> Result<u64, Field> {
    u64::try_from(number(bytes, field)?).map_err(|_| field)
}

/// Octal digits among spaces, ended by NUL; or, with the highest bit set, a big-endian two's
/// complement number of all other bits. Empty: 0.
fn number(bytes: &[u8], field: Field) -> Result<i64, Field> {
    if let Some((first, rest)) = bytes.split_first()
        && first & 0x80 != 0
    {
        // The bit beside the flag is the sign.
        let start = i64::from(((first << 1).cast_signed()) >> 1);
        return rest.iter().try_fold(start, |value, byte| {
            let shifted = value.checked_mul(256).ok_or(field)?;
            Ok(shifted | i64::from(*byte))
        });
    }
    let end = bytes.iter().position(|byte| *byte == 0);
    let digits = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    digits.trim_ascii().iter().try_fold(0_i64, |value, digit| {
        if !matches!(digit, b'0'..=b'7') {
            return Err(field);
        }
        let shifted = value.checked_mul(8).ok_or(field)?;
        Ok(shifted + i64::from(digit - b'0'))
    })
}

fn old_sparse(block: &Block) -> Result<OldSparse, Field> {
    Ok(OldSparse {
        real_size: unsigned(&field::<483, 12>(block), Field::Size)?,
        segments: segments(&field::<386, 96>(block))?,
        extended: field::<482, 1>(block)[0] != 0,
    })
}

/// Reads an extension block: more pieces, and whether yet another block follows.
///
/// # Errors
/// [`Field::Sparse`]
pub fn parse_sparse_extension(block: &Block) -> Result<(Vec<SparseSegment>, bool), Field> {
    let pieces = segments(&field::<0, 504>(block))?;
    Ok((pieces, field::<504, 1>(block)[0] != 0))
}

/// Pieces of 24 bytes; an empty one ends them.
fn segments(bytes: &[u8]) -> Result<Vec<SparseSegment>, Field> {
    let (pieces, _) = bytes.as_chunks::<24>();
    let mut segments = Vec::new();
    for piece in pieces {
        let (offset, length) = piece.split_at(12);
        if offset.first() == Some(&0) || length.first() == Some(&0) {
            break;
        }
        segments.push(SparseSegment {
            offset: unsigned(offset, Field::Sparse)?,
            length: unsigned(length, Field::Sparse)?,
        });
    }
    Ok(segments)
}

impl Header {
    /// The time as an [`Entry`](super::Entry) has it.
    pub fn time(&self) -> Time {
        Time {
            sec: self.mtime,
            nsec: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let read = |bytes: &[u8]| number(bytes, Field::Size);
        assert_eq!(read(b"0000644\0"), Ok(0o644));
        assert_eq!(read(b"   644 \0"), Ok(0o644));
        assert_eq!(read(b"644 \0junk"), Ok(0o644));
        assert_eq!(read(b"77777777"), Ok(0o77_777_777));
        assert_eq!(read(b"\0\0\0\0"), Ok(0));
        assert_eq!(read(b"    "), Ok(0));
        assert_eq!(read(b""), Ok(0));
        assert_eq!(read(b"\x80\0\0\x01"), Ok(1));
        assert_eq!(read(b"\x80\0\0\0\0\0\0\x01\0\0\0\0"), Ok(1 << 32));
        assert_eq!(read(b"\xff\xff\xff\xff"), Ok(-1));
        assert_eq!(
            read(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"),
            Ok(-2)
        );
        assert_eq!(
            read(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
            Ok(i64::MAX)
        );
        for bad in [
            &b"0000648\0"[..],
            b"-1\0",
            b"0x10\0",
            b"6 44\0",
            b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
            b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"777777777777777777777777",
        ] {
            assert_eq!(read(bad), Err(Field::Size), "{}", bad.escape_ascii());
        }
        assert_eq!(unsigned(b"\xff\xff\xff\xff", Field::Uid), Err(Field::Uid));
    }
}
