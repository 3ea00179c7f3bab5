//! Conversions between fuser's types and the core's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::overlay::{Attr, Kind, SetTime, Timestamp};

/// A time as fuser wants it. Times that `SystemTime` can't express become the nearest one it can.
pub(super) fn system_time(t: Timestamp) -> SystemTime {
    let nsec = t.nsec.min(999_999_999);
    let time = if t.sec >= 0 {
        UNIX_EPOCH.checked_add(Duration::new(t.sec.unsigned_abs(), nsec))
    } else {
        let whole = UNIX_EPOCH.checked_sub(Duration::new(t.sec.unsigned_abs(), 0));
        whole.and_then(|s| s.checked_add(Duration::new(0, nsec)))
    };
    time.unwrap_or(UNIX_EPOCH)
}

/// A time as fuser decodes it from a request. For times before 1970 fuser 0.18 subtracts the
/// nanoseconds, which count forwards, together with the seconds (`system_time_from_time` in its
/// time.rs); this takes them apart again.
pub(super) fn timestamp(t: SystemTime) -> Timestamp {
    match t.duration_since(UNIX_EPOCH) {
        Ok(d) => Timestamp {
            sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
            nsec: d.subsec_nanos(),
        },
        Err(before) => {
            let d = before.duration();
            let sec = i64::try_from(d.as_secs()).map_or(i64::MIN, |s| -s);
            Timestamp {
                sec,
                nsec: d.subsec_nanos(),
            }
        }
    }
}

/// A time of SETATTR.
pub(super) fn set_time(t: fuser::TimeOrNow) -> SetTime {
    match t {
        fuser::TimeOrNow::Now => SetTime::Now,
        fuser::TimeOrNow::SpecificTime(t) => SetTime::At(timestamp(t)),
    }
}

/// The type as fuser names it.
pub(super) fn file_type(kind: Kind) -> fuser::FileType {
    match kind {
        Kind::File => fuser::FileType::RegularFile,
        Kind::Dir => fuser::FileType::Directory,
        Kind::Symlink => fuser::FileType::Symlink,
        Kind::Fifo => fuser::FileType::NamedPipe,
        Kind::Socket => fuser::FileType::Socket,
        Kind::CharDevice => fuser::FileType::CharDevice,
        Kind::BlockDevice => fuser::FileType::BlockDevice,
    }
}

/// Device number in the encoding of the kernel's `new_encode_dev`, which FUSE uses.
pub(super) fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The inverse of [`encode_dev`]: major and minor.
pub(super) fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev & 0xfff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xfff00))
}

/// Attributes as fuser has them.
pub(super) fn file_attr(a: &Attr) -> fuser::FileAttr {
    fuser::FileAttr {
        ino: fuser::INodeNo(a.ino),
        size: a.size,
        blocks: a.blocks,
        atime: system_time(a.atime),
        mtime: system_time(a.mtime),
        ctime: system_time(a.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(a.kind),
        perm: a.perm,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: encode_dev(a.rdev_major, a.rdev_minor),
        blksize: a.blksize,
        flags: 0,
    }
}

/// The reply that a name does not exist, which the kernel may remember: node 0.
pub(super) fn absent() -> fuser::FileAttr {
    fuser::FileAttr {
        ino: fuser::INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: fuser::FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 makes of a time in a request.
    fn as_fuser_decodes(sec: i64, nsec: u32) -> SystemTime {
        if sec >= 0 {
            UNIX_EPOCH + Duration::new(sec as u64, nsec)
        } else {
            UNIX_EPOCH - Duration::new((-sec) as u64, nsec)
        }
    }

    #[test]
    fn times_before_1970_come_through_requests() {
        for (sec, nsec) in [
            (-1, 0),
            (-1, 1),
            (-2, 999_999_999),
            (-4_000_000_000, 5),
            (0, 7),
            (5, 0),
        ] {
            let t = timestamp(as_fuser_decodes(sec, nsec));
            assert_eq!((t.sec, t.nsec), (sec, nsec));
        }
    }

    #[test]
    fn times_before_1970_come_through_replies() {
        // fuser encodes with `duration_since`: seconds rounded down, nanoseconds forwards.
        for (sec, nsec) in [(-1i64, 250_000_000u32), (-5, 0), (-1, 999_999_999)] {
            let before = UNIX_EPOCH
                .duration_since(system_time(Timestamp { sec, nsec }))
                .unwrap();
            let total = -(before.as_nanos() as i128);
            assert_eq!(total, i128::from(sec) * 1_000_000_000 + i128::from(nsec));
        }
    }

    #[test]
    fn any_time_is_converted() {
        for sec in [i64::MIN, i64::MIN + 1, i64::MAX] {
            system_time(Timestamp {
                sec,
                nsec: 999_999_999,
            });
        }
    }

    #[test]
    fn device_numbers_come_through() {
        for (major, minor) in [(0, 0), (8, 1), (259, 70_000), (4095, 0xf_ffff)] {
            assert_eq!(decode_dev(encode_dev(major, minor)), (major, minor));
        }
    }
}
