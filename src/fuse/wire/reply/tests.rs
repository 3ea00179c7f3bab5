//! Replies as the kernel expects them.

use proptest::prelude::*;

use super::*;

fn some_attr() -> Attr {
    let time = |sec, nsec| Timestamp { sec, nsec };
    Attr {
        ino: 42,
        kind: Kind::File,
        perm: 0o4755,
        nlink: 3,
        uid: 1000,
        gid: 1001,
        rdev_major: 8,
        rdev_minor: 300,
        size: 12_345,
        blocks: 24,
        blksize: 4096,
        atime: time(-2, 999_999_999),
        mtime: time(5, 6),
        ctime: time(7, 8),
        settled: true,
    }
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn headers_have_length_error_and_number() {
    let bytes = header(9, 5, 0);
    assert_eq!(
        (word(&bytes, 0), word(&bytes, 4)),
        (16, (-5i32).cast_unsigned())
    );
    assert_eq!(long(&bytes, 8), 9);
    assert_eq!(word(&header(9, 0, 100), 0), 116);
}

#[test]
fn a_node_s_number_and_its_inode_number_are_two_things() {
    let mut room = [0xff; 128];
    let mut out = Out::new(&mut room);
    let keep = (Ttl::new(3, 4), Ttl::new(5, 6));
    assert!(entry(&mut out, 1 << 40, keep.0, keep.1, &some_attr()));
    assert_eq!(out.len(), 128);
    assert_eq!((long(&room, 0), long(&room, 8)), (1 << 40, 0));
    assert_eq!((long(&room, 16), long(&room, 24)), (3, 5));
    assert_eq!((word(&room, 32), word(&room, 36)), (4, 6));
    assert_eq!(long(&room, 40), 42);
    // Times before 1970: seconds rounded down, nanoseconds forwards.
    assert_eq!(long(&room, 64).cast_signed(), -2);
    assert_eq!(word(&room, 88), 999_999_999);
    assert_eq!((word(&room, 100), word(&room, 104)), (0o104_755, 3));
    assert_eq!((word(&room, 108), word(&room, 112)), (1000, 1001));
    assert_eq!(word(&room, 116), encode_dev(8, 300));
}

#[test]
fn fixed_replies_have_the_kernel_s_sizes() {
    type Write = fn(&mut Out<'_>) -> bool;
    let rows: [(Write, usize); 6] = [
        (|out| attr(out, Ttl::ZERO, &some_attr()), 104),
        (|out| statx(out, Ttl::ZERO, &some_attr(), None), 288),
        (|out| statfs(out, &FsStat::default()), 80),
        (|out| absent(out, Ttl::ZERO), 128),
        (|out| opened(out, &Opened::default()), 16),
        (|out| count(out, 5), 8),
    ];
    for (write, size) in rows {
        let mut room = [0u8; 512];
        let mut out = Out::new(&mut room);
        assert!(write(&mut out));
        assert_eq!(out.len(), size);
        let mut small = Out::new(&mut room[..size - 1]);
        assert!(!write(&mut small));
    }
}

#[test]
fn statx_tells_the_time_of_birth_where_it_is_known() {
    let mut room = [0u8; 288];
    let birth = Timestamp { sec: 11, nsec: 12 };
    assert!(statx(
        &mut Out::new(&mut room),
        Ttl::ZERO,
        &some_attr(),
        Some(birth)
    ));
    assert_eq!(word(&room, 32), 0xfff);
    assert_eq!((word(&room, 36), word(&room, 48)), (4096, 3));
    assert_eq!(room[60..62], 0o104_755u16.to_ne_bytes());
    assert_eq!((long(&room, 64), long(&room, 72)), (42, 12_345));
    // atime, btime, ctime, mtime: 16 bytes each.
    let times: Vec<u64> = (0..4).map(|n| long(&room, 96 + 16 * n)).collect();
    assert_eq!(times, [(-2i64).cast_unsigned(), 11, 7, 5]);
    assert_eq!((word(&room, 160), word(&room, 164)), (8, 300));
}

#[test]
fn ioctl_data_has_the_size_that_was_asked_for() {
    let mut room = [0xffu8; 64];
    let mut out = Out::new(&mut room);
    assert!(ioctl(&mut out, &[1, 2, 3, 4], 8));
    assert_eq!(out.len(), 24);
    assert_eq!(room[16..24], [1, 2, 3, 4, 0, 0, 0, 0]);
    let mut out = Out::new(&mut room);
    assert!(ioctl(&mut out, &[1, 2, 3, 4], 2));
    assert_eq!(out.len(), 18);
}

#[test]
fn device_numbers_come_through() {
    for (major, minor) in [(0, 0), (8, 1), (259, 70_000), (4095, 0xf_ffff)] {
        assert_eq!(decode_dev(encode_dev(major, minor)), (major, minor));
    }
}

proptest! {
    #[test]
    fn listings_are_padded_and_never_cut(
        names in proptest::collection::vec("[a-z]{1,40}", 0..12),
        size in 0usize..2000,
        plus: bool,
    ) {
        let mut room = vec![0xaa; size];
        let mut out = Out::new(&mut room);
        let attr = some_attr();
        let keep = Ttl::from_secs(1);
        let known = Known { node: 7, keep_name: keep, keep_attr: Ttl::ZERO, attr: &attr };
        let mut written = 0;
        for (n, name) in names.iter().enumerate() {
            let entry = Dirent { ino: 9, next: n as u64, kind: Kind::Dir, name: name.as_ref() };
            let fits = match plus {
                true => direntplus(&mut out, &entry, Some(known)),
                false => dirent(&mut out, &entry),
            };
            if !fits {
                break;
            }
            written += 1;
        }
        let len = out.len();
        let mut at = 0;
        for (n, name) in names.iter().take(written).enumerate() {
            if plus {
                prop_assert_eq!(long(&room, at), 7);
                at += 128;
            }
            prop_assert_eq!((long(&room, at), long(&room, at + 8)), (9, n as u64));
            prop_assert_eq!(word(&room, at + 16) as usize, name.len());
            prop_assert_eq!(word(&room, at + 20), 4);
            prop_assert_eq!(&room[at + 24..at + 24 + name.len()], name.as_bytes());
            at += (24 + name.len()).next_multiple_of(8);
        }
        prop_assert_eq!(at, len);
        prop_assert!(len <= size);
    }
}
