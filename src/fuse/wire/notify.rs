//! What the server says unasked: that something the kernel keeps is not so any more.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::abi::{REPLY_HEADER, notification};
use super::reply::{Out, header};

/// The longest one: a name of 255 bytes.
pub(in crate::fuse) const MAX: usize = REPLY_HEADER + 24 + 256;

/// A notification.
#[derive(Clone, Copy, Debug)]
pub(in crate::fuse) enum Notification<'a> {
    /// Attributes, ACLs and, unless `offset` is negative, pages of a node: `len` bytes from
    /// `offset` on (0: all). Pages that were written to are sent before they go.
    InvalInode { node: u64, offset: i64, len: i64 },
    /// What a name leads to.
    InvalEntry { parent: u64, name: &'a OsStr },
    /// A name that was removed behind the kernel's back.
    #[cfg_attr(
        not(test),
        expect(
            dead_code,
            reason = "nobody removes names behind the kernel's back yet"
        )
    )]
    Delete {
        parent: u64,
        child: u64,
        name: &'a OsStr,
    },
}

/// Encodes a notification; gives its length, `None` if it doesn't fit.
pub(in crate::fuse) fn encode(what: &Notification<'_>, room: &mut [u8; MAX]) -> Option<usize> {
    let (head, tail) = room.split_at_mut(REPLY_HEADER);
    let mut out = Out::new(tail);
    let length = |name: &OsStr| u32::try_from(name.len()).unwrap_or(u32::MAX);
    let (code, done) = match what {
        Notification::InvalInode { node, offset, len } => {
            let done =
                out.u64(*node) && out.u64(offset.cast_unsigned()) && out.u64(len.cast_unsigned());
            (notification::INVAL_INODE, done)
        }
        Notification::InvalEntry { parent, name } => {
            let done = out.u64(*parent) && out.u32(length(name)) && out.u32(0);
            let done = done && out.bytes(name.as_bytes()) && out.bytes(&[0]);
            (notification::INVAL_ENTRY, done)
        }
        Notification::Delete {
            parent,
            child,
            name,
        } => {
            let done = out.u64(*parent) && out.u64(*child) && out.u32(length(name)) && out.u32(0);
            let done = done && out.bytes(name.as_bytes()) && out.bytes(&[0]);
            (notification::DELETE, done)
        }
    };
    let len = out.len();
    if !done {
        return None;
    }
    // The code stands where a reply has its error, with the other sign.
    head.copy_from_slice(&header(0, code.wrapping_neg(), len));
    Some(REPLY_HEADER + len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_have_the_kernel_s_layout() {
        let mut room = [0u8; MAX];
        let what = Notification::InvalInode {
            node: 7,
            offset: -1,
            len: 0,
        };
        assert_eq!(encode(&what, &mut room), Some(40));
        assert_eq!(
            room[..8],
            [40u32.to_ne_bytes(), 2u32.to_ne_bytes()].concat()
        );
        assert_eq!(room[8..16], [0; 8]);
        assert_eq!(room[24..32], (-1i64).to_ne_bytes());
        let name = OsStr::new("ab");
        let what = Notification::InvalEntry { parent: 1, name };
        assert_eq!(encode(&what, &mut room), Some(16 + 16 + 3));
        assert_eq!(room[4..8], 3u32.to_ne_bytes());
        assert_eq!(room[24..28], 2u32.to_ne_bytes());
        assert_eq!(&room[32..35], b"ab\0");
        let what = Notification::Delete {
            parent: 1,
            child: 2,
            name,
        };
        assert_eq!(encode(&what, &mut room), Some(16 + 24 + 3));
        assert_eq!(room[4..8], 6u32.to_ne_bytes());
    }

    #[test]
    fn a_name_that_is_too_long_is_not_sent() {
        let name = "x".repeat(300);
        let what = Notification::InvalEntry {
            parent: 1,
            name: name.as_ref(),
        };
        assert_eq!(encode(&what, &mut [0; MAX]), None);
    }
}
