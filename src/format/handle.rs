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
use std::fmt::Write;
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
        self.encode().iter().fold(String::new(), |mut name, byte| {
            // Writing to a String cannot fail.
            write!(name, "{byte:02x}").ok();
            name
        })
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
    /// | btrfs (fs/btrfs/export.c) | 0x4d, 0x4e | u64 ino, u64 subvolume, u32 generation … |
    ///
    /// FUSE and EROFS have the type and length of XFS, but the high word first, and a node number
    /// that need not be the inode number. FUSE has no UUID; the high word of an EROFS node is 0 up
    /// to 128 GiB. Both conditions give `None`, also for the XFS inodes that fulfil them.
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
            (FILEID_INO64, 12) | (FILEID_INO64_PARENT, 24)
                if self.uuid != [0; 16] && word(0) != Some(0) =>
            {
                long(0)
            }
            (FILEID_BTRFS_WITHOUT_PARENT, 20) | (FILEID_BTRFS_WITH_PARENT, 32 | 40) => long(0),
            _ => None,
        }
    }
}
