//! Requests as the kernel lays them out, and as it never would.

use proptest::prelude::*;

use std::os::unix::ffi::OsStrExt;

use super::super::abi::EXT_GROUPS;
use super::super::extension::groups;
use super::*;

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

fn longs(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

fn header(opcode: u32) -> Header {
    Header {
        opcode,
        ..Header::default()
    }
}

const EXTENDED: Dialect = Dialect { setxattr_ext: true };

/// Decodes both ways: in one piece, and with the fixed part of `fixed` bytes apart.
fn both_ways(opcode: u32, fixed: usize, bytes: &[u8], check: impl Fn(Op<'_>)) {
    let whole = Op::decode(&header(opcode), Body::Whole(bytes), EXTENDED);
    check(whole.unwrap());
    let (start, rest) = bytes.split_at(fixed);
    let mut area = start.to_vec();
    area.resize(128, 0xee);
    let body = Body::Split { fixed: &area, rest };
    check(Op::decode(&header(opcode), body, EXTENDED).unwrap());
}

#[test]
fn a_header_is_decoded() {
    let mut bytes = words(&[48, opcode::LOOKUP]);
    bytes.extend(longs(&[3, 4]));
    bytes.extend(words(&[5, 6, 7, 0]));
    bytes[36..38].copy_from_slice(&2u16.to_ne_bytes());
    let header = Header::decode(&bytes).unwrap();
    assert_eq!((header.len, header.unique, header.node), (48, 3, 4));
    assert_eq!((header.uid, header.gid, header.pid), (5, 6, 7));
    assert_eq!(header.extensions, 16);
    assert_eq!(Header::decode(&bytes[..39]), Err(Malformed::Short));
}

#[test]
fn names_are_decoded() {
    both_ways(opcode::LOOKUP, 0, b"name\0", |op| {
        assert_eq!(
            op,
            Op::Lookup {
                name: "name".as_ref()
            }
        );
    });
    both_ways(opcode::SYMLINK, 0, b"name\0../to\0", |op| {
        let (name, target) = ("name".as_ref(), "../to".as_ref());
        assert_eq!(op, Op::Symlink { name, target });
    });
    let lookup = Op::decode(&header(opcode::LOOKUP), Body::Whole(b"name"), EXTENDED);
    assert_eq!(lookup, Err(Malformed::Name));
    let mut rename = longs(&[9]);
    rename.extend(words(&[2, 0]));
    rename.extend(b"a\0b\0");
    both_ways(opcode::RENAME2, 16, &rename, |op| {
        let (name, new_name) = ("a".as_ref(), "b".as_ref());
        let flags = 2;
        assert_eq!(
            op,
            Op::Rename {
                name,
                to: 9,
                new_name,
                flags
            }
        );
    });
}

#[test]
fn writes_keep_their_data_and_flags() {
    let mut bytes = longs(&[0, 4096]);
    bytes.extend(words(&[3, WRITE_KILL_SUIDGID]));
    bytes.extend(longs(&[0]));
    bytes.extend(words(&[0, 0]));
    bytes.extend(b"abc");
    both_ways(opcode::WRITE, 40, &bytes, |op| {
        let data = b"abc".as_slice();
        assert_eq!(
            op,
            Op::Write {
                offset: 4096,
                data,
                kill_suidgid: true
            }
        );
    });
    let cut = Op::decode(&header(opcode::WRITE), Body::Whole(&bytes[..42]), EXTENDED);
    assert_eq!(cut, Err(Malformed::Short));
}

#[test]
fn opens_keep_their_flags() {
    let open = OpenIn { flags: 0o1001 };
    both_ways(opcode::OPEN, 8, &words(&[0o1001, 0]), |op| {
        assert_eq!(op, Op::Open(open));
    });
    let mut create = words(&[0o1001, 0o100_644, 0o22, 0]);
    create.extend(b"new\0");
    let (mode, umask) = (0o100_644, 0o22);
    both_ways(opcode::CREATE, 16, &create, |op| {
        let name = "new".as_ref();
        assert_eq!(
            op,
            Op::Create {
                name,
                mode,
                umask,
                open
            }
        );
    });
    both_ways(opcode::TMPFILE, 16, &create, |op| {
        assert_eq!(op, Op::Tmpfile { mode, umask, open });
    });
    let short = Op::decode(&header(opcode::OPEN), Body::Whole(&[0; 7]), EXTENDED);
    assert_eq!(short, Err(Malformed::Short));
}

fn setattr(valid: u32, atime: (i64, u32), mtime: (i64, u32)) -> Vec<u8> {
    let mut bytes = words(&[valid, 0]);
    let times = [atime.0.cast_unsigned(), mtime.0.cast_unsigned()];
    bytes.extend(longs(&[0, 77, 0, times[0], times[1], 5]));
    bytes.extend(words(&[atime.1, mtime.1, 5, 0o100_644, 0, 1000, 1001, 0]));
    bytes
}

#[test]
fn attributes_to_set_are_decoded() {
    use fattr::*;
    let all = setattr(MODE | UID | GID | SIZE | KILL_SUIDGID, (0, 0), (0, 0));
    both_ways(opcode::SETATTR, 88, &all, |op| {
        let expected = SetAttrIn {
            perm: Some(0o644),
            uid: Some(1000),
            gid: Some(1001),
            size: Some(77),
            kill_suidgid: true,
            ..SetAttrIn::default()
        };
        assert_eq!(op, Op::Setattr(expected));
    });
}

#[test]
fn times_before_1970_are_exact() {
    for (sec, nsec) in [
        (-1, 0),
        (-1, 1),
        (i64::MIN, 999_999_999),
        (-4_000_000_000, 5),
        (0, 7),
    ] {
        let bytes = setattr(fattr::ATIME | fattr::MTIME, (sec, nsec), (sec, nsec));
        let time = Some(SetTime::At(Timestamp { sec, nsec }));
        both_ways(opcode::SETATTR, 88, &bytes, |op| {
            let expected = SetAttrIn {
                atime: time,
                mtime: time,
                ..SetAttrIn::default()
            };
            assert_eq!(op, Op::Setattr(expected));
        });
    }
    // UTIME_NOW in disguise must not reach utimensat(2).
    let bytes = setattr(fattr::ATIME, (0, 0x3fff_ffff), (0, 0));
    let decoded = Op::decode(&header(opcode::SETATTR), Body::Whole(&bytes), EXTENDED);
    assert_eq!(decoded, Err(Malformed::Time));
    let now = setattr(fattr::ATIME | fattr::ATIME_NOW, (0, u32::MAX), (0, 0));
    both_ways(opcode::SETATTR, 88, &now, |op| {
        let expected = SetAttrIn {
            atime: Some(SetTime::Now),
            ..SetAttrIn::default()
        };
        assert_eq!(op, Op::Setattr(expected));
    });
}

#[test]
fn setxattr_has_flags_of_its_own_where_agreed_on() {
    let mut bytes = words(&[2, 1, SETXATTR_ACL_KILL_SGID, 0]);
    bytes.extend(b"user.a\0vv");
    let expected = |kill_sgid| Op::Setxattr {
        name: "user.a".as_ref(),
        value: b"vv",
        flags: 1,
        kill_sgid,
    };
    both_ways(opcode::SETXATTR, 16, &bytes, |op| {
        assert_eq!(op, expected(true))
    });
    let mut plain = words(&[2, 1]);
    plain.extend(b"user.a\0vv");
    let dialect = Dialect::default();
    let op = Op::decode(&header(opcode::SETXATTR), Body::Whole(&plain), dialect);
    assert_eq!(op, Ok(expected(false)));
}

#[test]
fn forgets_come_in_batches() {
    let mut bytes = words(&[2, 0]);
    bytes.extend(longs(&[10, 1, 11, 5]));
    let op = Op::decode(&header(opcode::BATCH_FORGET), Body::Whole(&bytes), EXTENDED);
    let Ok(Op::BatchForget(forgets)) = op else {
        panic!("{op:?}");
    };
    assert_eq!(forgets.collect::<Vec<_>>(), [(10, 1), (11, 5)]);
    bytes[..4].copy_from_slice(&3u32.to_ne_bytes());
    let op = Op::decode(&header(opcode::BATCH_FORGET), Body::Whole(&bytes), EXTENDED);
    assert_eq!(op, Err(Malformed::Short));
}

#[test]
fn ioctls_bring_their_data() {
    let mut bytes = longs(&[0]);
    bytes.extend(words(&[0, 0x4008_6602]));
    bytes.extend(longs(&[0xdead]));
    bytes.extend(words(&[4, 8]));
    bytes.extend(words(&[0x10]));
    both_ways(opcode::IOCTL, 32, &bytes, |op| {
        let expected = IoctlIn {
            command: 0x4008_6602,
            data: &0x10u32.to_ne_bytes(),
            out_size: 8,
        };
        assert_eq!(op, Op::Ioctl(expected));
    });
}

#[test]
fn extensions_of_creating_requests_are_understood() {
    // A security context, padded, then one group.
    let mut extensions = words(&[12, 1, 0xffff_ffff, 0]);
    extensions.extend(words(&[16, EXT_GROUPS, 1, 4242]));
    let found = groups(&extensions).unwrap();
    assert_eq!(found.collect::<Vec<_>>(), [4242]);
    let mut bytes = words(&[0o755, 0o22]);
    bytes.extend(b"dir\0");
    bytes.extend(&extensions);
    let header = Header {
        opcode: opcode::MKDIR,
        extensions: extensions.len(),
        ..Header::default()
    };
    let op = Op::decode(&header, Body::Whole(&bytes), EXTENDED);
    let name = "dir".as_ref();
    assert_eq!(
        op,
        Ok(Op::Mkdir {
            name,
            mode: 0o755,
            umask: 0o22
        })
    );
    for broken in [
        words(&[7, EXT_GROUPS]),
        words(&[16, EXT_GROUPS, 2, 1]),
        words(&[8, 33]),
        words(&[16, EXT_GROUPS, u32::MAX, 1]),
    ] {
        assert_eq!(groups(&broken), Err(Malformed::Extension), "{broken:?}");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        opcode in prop_oneof![0u32..64, any::<u32>()],
        extensions in 0usize..64,
        setxattr_ext: bool,
        bytes in proptest::collection::vec(any::<u8>(), 0..256),
        at in 0usize..256,
    ) {
        let header = Header { opcode, extensions, ..Header::default() };
        let dialect = Dialect { setxattr_ext };
        let (fixed, rest) = bytes.split_at(at.min(bytes.len()));
        for body in [Body::Whole(&bytes), Body::Split { fixed, rest }] {
            if let Ok(Op::BatchForget(forgets)) = Op::decode(&header, body, dialect) {
                prop_assert!(forgets.count() <= 16);
            }
        }
        if let Ok(found) = groups(&bytes) {
            prop_assert!(found.count() <= 64);
        }
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert!(header.extensions <= 8 * 65_535);
        }
    }

    #[test]
    fn every_piece_of_a_request_is_inside_of_it(
        opcode in 0u32..64,
        bytes in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..200),
    ) {
        let inside = |piece: &[u8]| {
            let all = bytes.as_ptr_range();
            let it = piece.as_ptr_range();
            all.start <= it.start && it.end <= all.end
        };
        let op = Op::decode(&header(opcode), Body::Whole(&bytes), EXTENDED);
        match op {
            Ok(Op::Write { data, .. }) => prop_assert!(inside(data)),
            Ok(Op::Setxattr { value, name, .. }) => {
                prop_assert!(inside(value) && inside(name.as_bytes()));
            }
            Ok(Op::Lookup { name } | Op::Unlink { name }) => {
                prop_assert!(inside(name.as_bytes()) && !name.as_bytes().contains(&0));
            }
            _ => {}
        }
    }
}
