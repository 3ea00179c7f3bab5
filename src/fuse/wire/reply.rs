//! Replies: values in, bytes out, into a buffer that the caller owns.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::abi::REPLY_HEADER;
use crate::overlay::{Attr, FsStat, Kind, Timestamp};

/// Room for what follows the header of a reply. What doesn't fit is left out as a whole.
pub(in crate::fuse) struct Out<'a> {
    room: &'a mut [u8],
    len: usize,
}

impl<'a> Out<'a> {
    /// Nothing written yet.
    pub(in crate::fuse) fn new(room: &'a mut [u8]) -> Out<'a> {
        Out { room, len: 0 }
    }

    /// Bytes written.
    pub(in crate::fuse) fn len(&self) -> usize {
        self.len
    }

    /// The same room, of which at most `size` bytes are to be written to.
    pub(in crate::fuse) fn limited(&mut self, size: u32) -> Out<'_> {
        let size = (size as usize).min(self.room.len());
        Out::new(self.room.get_mut(..size).unwrap_or_default())
    }

    /// The next `size` bytes, to be filled and then [`claim`](Self::claim)ed. They hold whatever
    /// an earlier reply left there. `None`: there are not that many.
    pub(in crate::fuse) fn space(&mut self, size: usize) -> Option<&mut [u8]> {
        let end = self.len.checked_add(size)?;
        self.room.get_mut(self.len..end)
    }

    /// Says that the first `size` bytes of the space are written.
    pub(in crate::fuse) fn claim(&mut self, size: usize) {
        self.len = self.len.saturating_add(size).min(self.room.len());
    }

    /// `false`: they don't fit.
    #[must_use]
    pub(in crate::fuse) fn bytes(&mut self, bytes: &[u8]) -> bool {
        let Some(space) = self.space(bytes.len()) else {
            return false;
        };
        space.copy_from_slice(bytes);
        self.claim(bytes.len());
        true
    }

    #[must_use]
    pub(in crate::fuse) fn u16(&mut self, value: u16) -> bool {
        self.bytes(&value.to_ne_bytes())
    }

    #[must_use]
    pub(in crate::fuse) fn u32(&mut self, value: u32) -> bool {
        self.bytes(&value.to_ne_bytes())
    }

    #[must_use]
    pub(in crate::fuse) fn u64(&mut self, value: u64) -> bool {
        self.bytes(&value.to_ne_bytes())
    }
}

/// Puts numbers into a fixed number of bytes.
struct Block<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Block<N> {
    fn new() -> Block<N> {
        Block {
            bytes: [0; N],
            at: 0,
        }
    }

    fn put(&mut self, value: &[u8]) {
        let end = self.at + value.len();
        debug_assert!(end <= N, "a block of {N} bytes is too small");
        if let Some(room) = self.bytes.get_mut(self.at..end) {
            room.copy_from_slice(value);
        }
        self.at = end;
    }

    fn u16(&mut self, value: u16) {
        self.put(&value.to_ne_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_ne_bytes());
    }
}

/// The header of a reply of `payload` bytes, or with an error (a positive errno, without payload).
pub(in crate::fuse) fn header(unique: u64, error: i32, payload: usize) -> [u8; REPLY_HEADER] {
    let mut block = Block::<REPLY_HEADER>::new();
    let len = REPLY_HEADER + payload;
    block.u32(u32::try_from(len).unwrap_or(u32::MAX));
    block.u32(error.wrapping_neg().cast_unsigned());
    block.u64(unique);
    block.bytes
}

/// How long the kernel may keep something.
pub(in crate::fuse) type Ttl = Duration;

/// Device number in the encoding of the kernel's `new_encode_dev`, which the protocol uses.
pub(in crate::fuse) fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The inverse of [`encode_dev`]: major and minor.
pub(in crate::fuse) fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev & 0xfff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xfff00))
}

const ATTR: usize = 88;
const ENTRY: usize = 40 + ATTR;
const DIRENT: usize = 24;

fn mode_of(attr: &Attr) -> u32 {
    attr.kind.mode_bits() | u32::from(attr.perm)
}

/// `struct fuse_attr`.
fn put_attr<const N: usize>(block: &mut Block<N>, attr: &Attr) {
    for number in [attr.ino, attr.size, attr.blocks] {
        block.u64(number);
    }
    for time in [attr.atime, attr.mtime, attr.ctime] {
        block.u64(time.sec.cast_unsigned());
    }
    for time in [attr.atime, attr.mtime, attr.ctime] {
        block.u32(time.nsec);
    }
    let rdev = encode_dev(attr.rdev_major, attr.rdev_minor);
    for number in [mode_of(attr), attr.nlink, attr.uid, attr.gid, rdev] {
        block.u32(number);
    }
    block.u32(attr.blksize);
    block.u32(0); // flags: of submounts
}

/// `struct fuse_entry_out`. The generation is always 0: a node's id is not used again for another
/// object while the kernel knows the node.
fn entry_block(node: u64, keep_name: Ttl, keep_attr: Ttl, attr: Option<&Attr>) -> Block<ENTRY> {
    let mut block = Block::new();
    block.u64(node);
    block.u64(0);
    block.u64(keep_name.as_secs());
    block.u64(keep_attr.as_secs());
    block.u32(keep_name.subsec_nanos());
    block.u32(keep_attr.subsec_nanos());
    if let Some(attr) = attr {
        put_attr(&mut block, attr);
    }
    block
}

/// The node that a name leads to.
#[must_use]
pub(in crate::fuse) fn entry(
    out: &mut Out<'_>,
    node: u64,
    keep_name: Ttl,
    keep_attr: Ttl,
    attr: &Attr,
) -> bool {
    out.bytes(&entry_block(node, keep_name, keep_attr, Some(attr)).bytes)
}

/// That a name doesn't exist, which the kernel may remember.
#[must_use]
pub(in crate::fuse) fn absent(out: &mut Out<'_>, keep_name: Ttl) -> bool {
    out.bytes(&entry_block(0, keep_name, Ttl::ZERO, None).bytes)
}

/// What becomes of an open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::fuse) struct Opened {
    /// `abi::fopen`.
    pub flags: u32,
    /// Of the backing file, with `fopen::PASSTHROUGH`.
    pub backing: u32,
}

impl Opened {
    /// Does its data go to a backing file?
    pub(in crate::fuse) fn passes_through(&self) -> bool {
        self.flags & super::abi::fopen::PASSTHROUGH != 0
    }
}

/// `struct fuse_open_out`: the answer to OPEN, and the second half of that to CREATE and TMPFILE.
#[must_use]
pub(in crate::fuse) fn opened(out: &mut Out<'_>, open: &Opened) -> bool {
    let mut block = Block::<16>::new();
    block.u64(0); // the handle: requests name the node
    block.u32(open.flags);
    block.u32(open.backing);
    out.bytes(&block.bytes)
}

/// `struct fuse_attr_out`.
#[must_use]
pub(in crate::fuse) fn attr(out: &mut Out<'_>, keep: Ttl, attr: &Attr) -> bool {
    let mut block = Block::<{ 16 + ATTR }>::new();
    block.u64(keep.as_secs());
    block.u32(keep.subsec_nanos());
    block.u32(0);
    put_attr(&mut block, attr);
    out.bytes(&block.bytes)
}

/// `STATX_BASIC_STATS` and `STATX_BTIME`.
const STATX_BASIC: u32 = 0x7ff;
const STATX_BTIME: u32 = 0x800;

/// `struct fuse_statx_out`; `birth`: where the file system knows it.
#[must_use]
pub(in crate::fuse) fn statx(
    out: &mut Out<'_>,
    keep: Ttl,
    attr: &Attr,
    birth: Option<Timestamp>,
) -> bool {
    let mut block = Block::<288>::new();
    block.u64(keep.as_secs());
    block.u32(keep.subsec_nanos());
    block.put(&[0; 20]); // flags, spare
    block.u32(STATX_BASIC | if birth.is_some() { STATX_BTIME } else { 0 });
    block.u32(attr.blksize);
    block.u64(0); // attributes
    for number in [attr.nlink, attr.uid, attr.gid] {
        block.u32(number);
    }
    block.u16((mode_of(attr) & 0xffff) as u16);
    block.u16(0);
    for number in [attr.ino, attr.size, attr.blocks, 0] {
        block.u64(number);
    }
    for time in [
        attr.atime,
        birth.unwrap_or_default(),
        attr.ctime,
        attr.mtime,
    ] {
        block.u64(time.sec.cast_unsigned());
        block.u32(time.nsec);
        block.u32(0);
    }
    block.u32(attr.rdev_major);
    block.u32(attr.rdev_minor);
    out.bytes(&block.bytes)
}

/// `struct fuse_statfs_out`.
#[must_use]
pub(in crate::fuse) fn statfs(out: &mut Out<'_>, st: &FsStat) -> bool {
    let mut block = Block::<80>::new();
    for number in [st.blocks, st.bfree, st.bavail, st.files, st.ffree] {
        block.u64(number);
    }
    for number in [st.bsize, st.namelen, st.frsize] {
        block.u32(number);
    }
    out.bytes(&block.bytes)
}

/// A number of bytes, in 32 bits: written, or the size of an attribute.
#[must_use]
pub(in crate::fuse) fn count(out: &mut Out<'_>, bytes: u32) -> bool {
    out.u32(bytes) && out.u32(0)
}

/// `struct fuse_ioctl_out` and `size` bytes of data: longer values are cut, shorter ones are
/// filled with zeros.
#[must_use]
pub(in crate::fuse) fn ioctl(out: &mut Out<'_>, data: &[u8], size: u32) -> bool {
    let size = size as usize;
    let data = data.get(..size).unwrap_or(data);
    let filler = size - data.len();
    out.bytes(&[0; 16]) && out.bytes(data) && (0..filler).all(|_| out.bytes(&[0]))
}

/// An entry of a listing.
#[derive(Clone, Copy)]
pub(in crate::fuse) struct Dirent<'a> {
    pub ino: u64,
    /// The offset to go on with after it.
    pub next: u64,
    pub kind: Kind,
    pub name: &'a OsStr,
}

fn dirent_size(name: &OsStr) -> usize {
    (DIRENT + name.len()).next_multiple_of(8)
}

/// `struct fuse_dirent`. `false`: it doesn't fit any more, and nothing was written.
#[must_use]
pub(in crate::fuse) fn dirent(out: &mut Out<'_>, entry: &Dirent<'_>) -> bool {
    let size = dirent_size(entry.name);
    let (Some(space), Ok(name_len)) = (out.space(size), u32::try_from(entry.name.len())) else {
        return false;
    };
    let mut block = Block::<DIRENT>::new();
    block.u64(entry.ino);
    block.u64(entry.next);
    block.u32(name_len);
    block.u32(entry.kind.mode_bits() >> 12);
    let (head, tail) = space.split_at_mut(DIRENT);
    head.copy_from_slice(&block.bytes);
    let (name, filler) = tail.split_at_mut(entry.name.len());
    name.copy_from_slice(entry.name.as_bytes());
    filler.fill(0);
    out.claim(size);
    true
}

/// What the kernel learns of an entry of a listing beside its name.
#[derive(Clone, Copy)]
pub(in crate::fuse) struct Known<'a> {
    pub node: u64,
    pub keep_name: Ttl,
    pub keep_attr: Ttl,
    pub attr: &'a Attr,
}

/// `struct fuse_direntplus`. `None`: no node comes with the name. `false`: as [`dirent`].
#[must_use]
pub(in crate::fuse) fn direntplus(
    out: &mut Out<'_>,
    entry: &Dirent<'_>,
    known: Option<Known<'_>>,
) -> bool {
    if out.space(ENTRY + dirent_size(entry.name)).is_none() {
        return false;
    }
    let block = match known {
        Some(k) => entry_block(k.node, k.keep_name, k.keep_attr, Some(k.attr)),
        None => entry_block(0, Ttl::ZERO, Ttl::ZERO, None),
    };
    out.bytes(&block.bytes) && dirent(out, entry)
}

#[cfg(test)]
mod tests;
