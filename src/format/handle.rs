//! `overlay.origin`, `overlay.upper` and the names in `work/index`: the kernel's `struct ovl_fb`.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version, 0 |
//! | 1 | 1 | magic, 0xfb |
//! | 2 | 1 | length of all this, 21 + the handle's |
//! | 3 | 1 | flags: 1 big-endian, 2 any endian, 4 of an upper object |
//! | 4 | 1 | the handle's type |
//! | 5 | 16 | UUID of the file system, 0 where it has none or with `uuid=off` |
//! | 21 | ≤ 128 | the handle |
//!
//! Sources: fs/overlayfs/overlayfs.h (`struct ovl_fb`), copy_up.c (`ovl_encode_real_fh`), namei.c
//! (`ovl_check_fb_len`, `ovl_get_index_name_fh`, `ovl_verify_index`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use smallvec::SmallVec;

use super::FormatError;

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const FLAG_BIG_ENDIAN: u8 = 1;
const FLAG_ANY_ENDIAN: u8 = 2;
const FLAG_PATH_UPPER: u8 = 4;
const FLAG_ALL: u8 = FLAG_BIG_ENDIAN | FLAG_ANY_ENDIAN | FLAG_PATH_UPPER;
const FLAG_CPU_ENDIAN: u8 = if cfg!(target_endian = "big") {
    FLAG_BIG_ENDIAN
} else {
    0
};

/// `sizeof(struct ovl_fb)`: everything before the handle.
const HEADER: usize = 21;
/// The longest handle, in bytes (`MAX_HANDLE_SZ`); the length field would hold 234.
const HANDLE_MAX: usize = 128;

/// `enum fid_type` of include/linux/exportfs.h.
const FILEID_INO32_GEN: u8 = 1;
const FILEID_INO32_GEN_PARENT: u8 = 2;
const FILEID_BTRFS_WITHOUT_PARENT: u8 = 0x4d;
const FILEID_BTRFS_WITH_PARENT: u8 = 0x4e;
/// XFS: `FILEID_INO32_GEN` with `XFS_FILEID_TYPE_64FLAG`. FUSE and EROFS: `FILEID_INO64_GEN`.
const FILEID_INO64: u8 = 0x81;
const FILEID_INO64_PARENT: u8 = 0x82;

/// A file handle as overlay stores it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OverlayHandle {
    /// The UUID of the file system, zeros where there is none.
    pub uuid: [u8; 16],
    /// The file system's type of handle.
    pub handle_type: u8,
    /// The handle, at most 128 bytes.
    pub bytes: SmallVec<[u8; 32]>,
    /// Whether the object is in upper (`overlay.upper`), not in a lower.
    pub is_upper: bool,
}

impl OverlayHandle {
    /// The attribute's value, for this machine's byte order. Bytes of the handle beyond 128, which
    /// no kernel makes, are left out.
    pub fn encode(&self) -> Vec<u8> {
        let handle = self.bytes.get(..HANDLE_MAX).unwrap_or(&self.bytes);
        let length = u8::try_from(HEADER + handle.len()).unwrap_or(u8::MAX);
        let upper = if self.is_upper { FLAG_PATH_UPPER } else { 0 };
        let mut value = Vec::with_capacity(usize::from(length));
        value.extend([
            VERSION,
            MAGIC,
            length,
            FLAG_CPU_ENDIAN | upper,
            self.handle_type,
        ]);
        value.extend(self.uuid);
        value.extend(handle);
        value
    }

    /// Reads the attribute's value. `None` for what the kernel takes for "origin unknown": an empty
    /// value, a later version, unknown flags, the other byte order. Bytes beyond the length that
    /// the header gives are ignored.
    ///
    /// # Errors
    /// When the value is too short, or has another magic number.
    pub fn parse(value: &[u8]) -> Result<Option<OverlayHandle>, FormatError> {
        if value.is_empty() {
            return Ok(None);
        }
        let &[version, magic, length, flags, handle_type, ref rest @ ..] = value else {
            return Err(FormatError::Handle("too short"));
        };
        let Some((uuid, handle)) = rest.split_first_chunk::<16>() else {
            return Err(FormatError::Handle("too short"));
        };
        if magic != MAGIC {
            return Err(FormatError::Handle("another magic number"));
        }
        let Some(handle) = usize::from(length)
            .checked_sub(HEADER)
            .and_then(|n| handle.get(..n))
        else {
            return Err(FormatError::Handle("a length that is not so"));
        };
        let other_endian =
            flags & FLAG_ANY_ENDIAN == 0 && flags & FLAG_BIG_ENDIAN != FLAG_CPU_ENDIAN;
        if version > VERSION || flags & !FLAG_ALL != 0 || other_endian {
            return Ok(None);
        }
        if handle.len() > HANDLE_MAX {
            return Err(FormatError::Handle("longer than a file handle can be"));
        }
        Ok(Some(OverlayHandle {
            uuid: *uuid,
            handle_type,
            bytes: SmallVec::from_slice(handle),
            is_upper: flags & FLAG_PATH_UPPER != 0,
        }))
    }

    /// The name of this object in `work/index`: the encoded bytes in lower-case hex.
    pub fn index_name(&self) -> String {
        let digits = |byte: u8| [byte >> 4, byte & 0xf].map(|d| char::from_digit(d.into(), 16));
        self.encode()
            .into_iter()
            .flat_map(digits)
            .flatten()
            .collect()
    }

    /// Reads a name of `work/index`; `None` as in [`parse`](Self::parse).
    ///
    /// # Errors
    /// When the name is not an even number of hex digits, and as [`parse`](Self::parse).
    pub fn parse_index_name(name: &OsStr) -> Result<Option<OverlayHandle>, FormatError> {
        let (pairs, odd) = name.as_bytes().as_chunks::<2>();
        if pairs.is_empty() || !odd.is_empty() {
            return Err(FormatError::Handle("not an even number of hex digits"));
        }
        let mut value = SmallVec::<[u8; 64]>::new();
        for &[high, low] in pairs {
            let digit = |c: u8| {
                char::from(c)
                    .to_digit(16)
                    .and_then(|d| u8::try_from(d).ok())
            };
            let (Some(high), Some(low)) = (digit(high), digit(low)) else {
                return Err(FormatError::Handle("not hex digits"));
            };
            value.push(high << 4 | low);
        }
        OverlayHandle::parse(&value)
    }

    /// The inode number inside the handle, for the file systems whose handles hold it; `None` for
    /// others, and where type and length could also be another file system's.
    ///
    /// | file system | type | bytes |
    /// |---|---|---|
    /// | ext4 and all that use `generic_encode_ino32_fh`; XFS with `inode32` | 1 | u32 ino, u32 generation |
    /// | tmpfs (mm/shmem.c, `shmem_encode_fh`) | 1 | u32 generation, u32 ino low, u32 ino high |
    /// | XFS (fs/xfs/xfs_export.c) | 0x81 | u64 ino, u32 generation, packed |
    /// | EROFS (fs/erofs/super.c, `erofs_encode_fh`) | 0x81 | u32 ino high, u32 ino low, u32 generation |
    /// | btrfs (fs/btrfs/export.c) | 0x4d, 0x4e | u64 ino, u64 subvolume, u32 generation … |
    ///
    /// XFS and EROFS are told apart by the first word: 0 in EROFS up to 128 GiB, never 0 in XFS,
    /// where it is the number within an allocation group, whose block 0 holds no inodes. FUSE has
    /// EROFS' form, but a node number that is not the inode number; it has no UUID, and without one
    /// type 0x81 gives `None`.
    pub fn ino(&self) -> Option<u64> {
        let word = |i: usize| {
            let bytes = self.bytes.get(4 * i..4 * i + 4)?;
            Some(u64::from(u32::from_ne_bytes(bytes.try_into().ok()?)))
        };
        let long = |i: usize| {
            let bytes = self.bytes.get(8 * i..8 * i + 8)?;
            Some(u64::from_ne_bytes(bytes.try_into().ok()?))
        };
        match (self.handle_type, self.bytes.len()) {
            (FILEID_INO32_GEN, 8) | (FILEID_INO32_GEN_PARENT, 16) => word(0),
            (FILEID_INO32_GEN, 12) => Some(word(1)? | word(2)? << 32),
            (FILEID_INO64, 12) | (FILEID_INO64_PARENT, 24) if self.uuid != [0; 16] => {
                if word(0)? == 0 { word(1) } else { long(0) }
            }
            (FILEID_BTRFS_WITHOUT_PARENT, 20) | (FILEID_BTRFS_WITH_PARENT, 32) => long(0),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What Linux 6.18 wrote for the lower inode 2162805 of an ext4 without UUID.
    const EXT4: &str = "00fb1d00010000000000000000000000000000000075002100a803295d";

    fn parse_hex(name: &str) -> Result<Option<OverlayHandle>, FormatError> {
        OverlayHandle::parse_index_name(OsStr::new(name))
    }

    fn with(handle_type: u8, bytes: &[u8]) -> OverlayHandle {
        OverlayHandle {
            uuid: [7; 16],
            handle_type,
            bytes: SmallVec::from_slice(bytes),
            is_upper: false,
        }
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_value_is_read_and_written() {
        let handle = parse_hex(EXT4).unwrap().unwrap();
        assert_eq!(handle.handle_type, 1);
        assert_eq!(handle.uuid, [0; 16]);
        assert_eq!(handle.bytes.as_slice(), b"\x75\0\x21\0\xa8\x03\x29\x5d");
        assert!(!handle.is_upper);
        assert_eq!(handle.ino(), Some(2_162_805));
        assert_eq!(handle.index_name(), EXT4);
        assert_eq!(parse_hex(&EXT4.to_uppercase()).unwrap().unwrap(), handle);
    }

    #[test]
    fn an_upper_handle_has_its_flag() {
        let handle = OverlayHandle {
            is_upper: true,
            ..with(1, &[0; 8])
        };
        assert_eq!(handle.encode()[3] & FLAG_PATH_UPPER, FLAG_PATH_UPPER);
        assert_eq!(OverlayHandle::parse(&handle.encode()), Ok(Some(handle)));
    }

    #[test]
    fn an_unknown_origin_is_none() {
        assert_eq!(OverlayHandle::parse(b""), Ok(None));
        let good = with(1, &[0; 8]).encode();
        let rows: [(usize, u8); 5] = [
            (0, 1), // a later version
            (0, 255),
            (3, FLAG_CPU_ENDIAN | 8), // an unknown flag
            (3, FLAG_CPU_ENDIAN | 128),
            (3, FLAG_CPU_ENDIAN ^ FLAG_BIG_ENDIAN), // the other byte order
        ];
        for (at, byte) in rows {
            let mut value = good.clone();
            value[at] = byte;
            assert_eq!(OverlayHandle::parse(&value), Ok(None), "{at} {byte}");
        }
        let mut any_endian = good;
        any_endian[3] = FLAG_ANY_ENDIAN | (FLAG_CPU_ENDIAN ^ FLAG_BIG_ENDIAN);
        assert_eq!(
            OverlayHandle::parse(&any_endian),
            Ok(Some(with(1, &[0; 8])))
        );
    }

    #[test]
    fn invalid_values_are_errors() {
        let good = with(1, &[0; 8]).encode();
        assert_eq!(good.len(), 29);
        for length in 1..good.len() {
            assert!(OverlayHandle::parse(&good[..length]).is_err(), "{length}");
        }
        // (where, what): magic; length beyond the value, within the header, zero
        for (at, byte) in [(1, 0xfa), (1, 0), (2, 30), (2, 255), (2, 20), (2, 0)] {
            let mut value = good.clone();
            value[at] = byte;
            assert!(OverlayHandle::parse(&value).is_err(), "{at} {byte}");
        }
        let mut too_long = with(1, &[0; 128]).encode();
        assert!(OverlayHandle::parse(&too_long).is_ok());
        too_long[2] += 1;
        too_long.push(0);
        assert!(OverlayHandle::parse(&too_long).is_err());
    }

    #[test]
    fn bytes_after_the_length_are_ignored() {
        let mut value = with(1, &[1; 8]).encode();
        value.extend(b"more");
        assert_eq!(OverlayHandle::parse(&value), Ok(Some(with(1, &[1; 8]))));
    }

    #[test]
    fn names_that_are_not_of_the_index_are_errors() {
        for name in [
            "",
            "0",
            "#1f",
            "zz",
            "00f",
            "00fb",
            &EXT4[..57],
            &EXT4.replace('d', "g"),
        ] {
            assert!(parse_hex(name).is_err(), "{name}");
        }
        assert!(OverlayHandle::parse_index_name(OsStr::from_bytes(b"\xff\xff")).is_err());
    }

    #[test]
    fn inode_numbers_are_found_by_type_and_length() {
        let xfs = 0x1_2345_6789u64.to_ne_bytes();
        let rows: [(u8, Vec<u8>, Option<u64>); 14] = [
            (1, words(&[0xffff_fff0, 9]), Some(0xffff_fff0)),
            (2, words(&[12, 9, 2, 8]), Some(12)),
            (1, words(&[9, 5, 0]), Some(5)),
            (1, words(&[9, 5, 2]), Some(0x2_0000_0005)),
            (0x81, [&xfs[..], &[9; 4]].concat(), Some(0x1_2345_6789)),
            (0x4d, [&xfs[..], &[9; 12]].concat(), Some(0x1_2345_6789)),
            (0x4e, [&xfs[..], &[9; 24]].concat(), Some(0x1_2345_6789)),
            // EROFS: the high word first
            (0x81, words(&[0, 36, 9]), Some(36)),
            // overlay on overlay, kernfs, unknown
            (0xf8, vec![1; 32], None),
            (0xfb, vec![1; 29], None),
            (0xfe, vec![1; 8], None),
            (1, words(&[1]), None),
            (1, vec![], None),
            (0x4d, vec![1; 8], None),
        ];
        for (handle_type, bytes, ino) in rows {
            assert_eq!(
                with(handle_type, &bytes).ino(),
                ino,
                "{handle_type} {bytes:?}"
            );
        }
        // FUSE: no UUID
        let fuse = OverlayHandle {
            uuid: [0; 16],
            ..with(0x81, &words(&[1, 36, 9]))
        };
        assert_eq!(fuse.ino(), None);
    }

    fn any_handle() -> impl Strategy<Value = OverlayHandle> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..=HANDLE_MAX);
        (any::<[u8; 16]>(), any::<u8>(), bytes, any::<bool>()).prop_map(
            |(uuid, handle_type, bytes, is_upper)| OverlayHandle {
                uuid,
                handle_type,
                bytes: SmallVec::from_vec(bytes),
                is_upper,
            },
        )
    }

    proptest! {
        #[test]
        fn handles_survive(handle in any_handle()) {
            prop_assert_eq!(OverlayHandle::parse(&handle.encode()), Ok(Some(handle.clone())));
            prop_assert_eq!(parse_hex(&handle.index_name()), Ok(Some(handle)));
        }

        #[test]
        fn no_bytes_panic(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(handle)) = OverlayHandle::parse(&value) {
                prop_assert_eq!(OverlayHandle::parse(&handle.encode()), Ok(Some(handle)));
            }
            let name = OsStr::from_bytes(&value);
            prop_assert!(OverlayHandle::parse_index_name(name) != Ok(None) || value.len() >= 42);
        }

        #[test]
        fn no_damage_panics(
            handle in any_handle(),
            damage in proptest::collection::vec((0usize..160, any::<u8>()), 0..4),
            cut in 0usize..160,
        ) {
            let mut value = handle.encode();
            for (at, byte) in damage {
                if let Some(place) = value.get_mut(at) {
                    *place = byte;
                }
            }
            value.truncate(cut);
            if let Ok(Some(handle)) = OverlayHandle::parse(&value) {
                handle.ino();
                prop_assert_eq!(OverlayHandle::parse(&handle.encode()), Ok(Some(handle)));
            }
        }
    }
}
