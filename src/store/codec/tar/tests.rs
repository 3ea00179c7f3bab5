use proptest::prelude::*;

use super::writer::{END, headers, padding_after};
use super::*;
use crate::store::codec::budget::Budgets;

pub(crate) fn file(path: &[u8], size: u64) -> Entry {
    Entry {
        path: path.to_vec(),
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        atime: None,
        size,
        stored: size,
        xattrs: Vec::new(),
        sparse: None,
    }
}

fn archive(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (entry, body) in entries {
        out.extend(headers(entry));
        out.extend(body);
        out.extend(padding_after(body.len() as u64));
    }
    out.extend(END);
    out
}

type Found = (Vec<(Entry, Vec<u8>)>, Vec<u8>);

/// All entries with their bodies, and all bytes in their order; fed `step` bytes at a time.
fn parse_by(bytes: &[u8], step: usize) -> Result<Found, TarError> {
    let mut parser = Parser::new(&Budgets::default());
    let (mut entries, mut all) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            let (taken, step) = parser.advance(rest)?;
            let (was, after) = rest.split_at(taken);
            rest = after;
            all.extend(parser.take_raw());
            match step {
                Step::More => {}
                Step::Entry(entry) => entries.push((*entry, Vec::new())),
                Step::Body(n) => {
                    assert_eq!(n, was.len());
                    all.extend(was);
                    entries.last_mut().unwrap().1.extend(was);
                }
                Step::Trailing(n) => {
                    assert_eq!(n, was.len());
                    all.extend(was);
                }
            }
        }
    }
    parser.finish()?;
    all.extend(parser.take_raw());
    Ok((entries, all))
}

fn problem(bytes: &[u8]) -> Problem {
    match parse_by(bytes, 100_000).unwrap_err() {
        TarError::Bad { problem, .. } => problem,
        TarError::Read(e) => panic!("{e}"),
    }
}

#[test]
fn entries_come_back_as_they_were_written_and_all_bytes_too() {
    let mut odd = file(&[b"d/".repeat(80), b"\xff".to_vec()].concat(), 3);
    odd.xattrs = vec![(b"security.capability".to_vec(), b"\0\x01=\n".to_vec())];
    odd.mtime = Time {
        sec: -2,
        nsec: 250_000_000,
    };
    (odd.uid, odd.gid) = (3_000_000_000, 2_097_152);
    let mut long = file(&b"n".repeat(300), 0);
    long.kind = EntryKind::Symlink(b"t".repeat(200));
    let mut device = file(b"dev", 0);
    device.kind = EntryKind::Block {
        major: 4095,
        minor: 1_048_575,
    };
    let mut link = file(b"link", 0);
    link.kind = EntryKind::HardLink(b"a".to_vec());
    let entries = vec![
        (file(b"a", 513), vec![7; 513]),
        (odd, b"abc".to_vec()),
        (long, vec![]),
        (device, vec![]),
        (link, vec![]),
    ];
    let mut bytes = archive(&entries);
    bytes.extend(b"trailing, and not a whole block");
    for step in [1, 7, 512, 700, 100_000] {
        let (found, all) = parse_by(&bytes, step).unwrap();
        assert_eq!(found, entries);
        assert!(all == bytes);
    }
}

#[test]
fn pax_is_written_only_where_it_is_needed() {
    assert_eq!(headers(&file(&b"a".repeat(100), 1)).len(), 512);
    assert_eq!(
        headers(&file(
            &[&b"a".repeat(155)[..], b"/", &b"b".repeat(100)].concat(),
            1
        ))
        .len(),
        512
    );
    assert_eq!(headers(&file(&b"a".repeat(101), 1)).len(), 1536);
    assert_eq!(headers(&file(b"a", (8 << 30) - 1)).len(), 512);
    assert_eq!(headers(&file(b"a", 8 << 30)).len(), 1536);
}

#[test]
fn an_archive_may_lack_its_end_but_not_be_cut_within_an_entry() {
    let bytes = archive(&[(file(b"a", 3), b"abc".to_vec())]);
    assert_eq!(parse_by(&[], 1).unwrap().0.len(), 0);
    for whole in [1024, 1536, 2048] {
        assert_eq!(parse_by(&bytes[..whole], 100).unwrap().0.len(), 1);
    }
    for cut in [1, 511, 512, 514, 515, 1023, 1025, 2047] {
        assert_eq!(problem(&bytes[..cut]), Problem::Truncated, "{cut}");
    }
}

/// A header with another type and body.
fn raw(flag: u8, path: &[u8], body: &[u8]) -> Vec<u8> {
    let mut block = headers(&file(path, body.len() as u64));
    block[156] = flag;
    resum(&mut block);
    block.extend(body);
    block.extend(padding_after(body.len() as u64));
    block
}

fn resum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let body: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| writer::pax_record(key.as_bytes(), value.as_bytes()))
        .collect();
    raw(b'x', b"pax", &body)
}

#[test]
fn headers_that_readers_disagree_about_are_refused() {
    let a = || raw(b'0', b"a", b"");
    let rows = [
        (
            vec![pax(&[("path", "b")]), pax(&[("path", "c")]), a()],
            Problem::Twice("PAX header"),
        ),
        (
            vec![raw(b'L', b"l", b"b\0"), raw(b'L', b"l", b"c\0"), a()],
            Problem::Twice("long name"),
        ),
        (
            vec![raw(b'K', b"l", b"b\0"), raw(b'K', b"l", b"c\0"), a()],
            Problem::Twice("long link target"),
        ),
        (
            vec![raw(b'L', b"l", b"b\0"), pax(&[("path", "c")]), a()],
            Problem::Twice("path"),
        ),
        (vec![pax(&[("path", "b")])], Problem::Dangling),
        (vec![pax(&[("path", "b")]), END.to_vec()], Problem::Dangling),
        (vec![vec![0; 512], a()], Problem::LoneZeros),
        (vec![raw(b'0', b"a/", b"")], Problem::SlashedFile),
        (vec![raw(b'Z', b"a", b"")], Problem::Type('Z')),
        (vec![raw(b'D', b"a", b"")], Problem::Type('D')),
        (vec![raw(b'M', b"a", b"")], Problem::Type('M')),
        (vec![raw(b'V', b"a", b"")], Problem::Type('V')),
        (vec![raw(b'1', b"a", b"")], Problem::Field(Field::Link)),
        (vec![raw(b'0', b"", b"")], Problem::Field(Field::Path)),
        (
            vec![pax(&[("uid", "4294967295")]), a()],
            Problem::Field(Field::Uid),
        ),
        (
            vec![pax(&[("gid", "4294967296")]), a()],
            Problem::Field(Field::Gid),
        ),
        (
            vec![pax(&[("SCHILY.devmajor", "4096")]), raw(b'3', b"a", b"")],
            Problem::Field(Field::Device),
        ),
    ];
    for (parts, expected) in rows {
        assert_eq!(problem(&parts.concat()), expected);
    }
    let mut flipped = a();
    flipped[0] ^= 1;
    assert_eq!(problem(&flipped), Problem::Checksum);
    assert_eq!(problem(&[b'x'; 512]), Problem::Checksum);
}

#[test]
fn the_size_in_pax_counts_for_its_entry_and_for_no_other_header() {
    // CVE-2025-62518: the size must not be that of the long name's header, nor be left over.
    let parts = [
        pax(&[("size", "600")]),
        raw(b'L', b"l", b"long\0"),
        headers(&file(b"a", 0)),
        vec![1; 600],
        padding_after(600).to_vec(),
        raw(b'0', b"b", b"xyz"),
    ];
    let (found, all) = parse_by(&parts.concat(), 77).unwrap();
    let names: Vec<_> = found
        .iter()
        .map(|(e, body)| (e.path.as_slice(), body.len()))
        .collect();
    assert_eq!(names, [(&b"long"[..], 600), (b"b", 3)]);
    assert!(all == parts.concat());
    // A header that claims a body while PAX says that there is none.
    let hidden = raw(b'0', b"hidden", b"");
    let mut outer = headers(&file(b"a", 512));
    outer = [pax(&[("size", "0")]), outer, hidden].concat();
    let names: Vec<_> = parse_by(&outer, 50)
        .unwrap()
        .0
        .into_iter()
        .map(|(e, _)| e.path)
        .collect();
    assert_eq!(names, [b"a".to_vec(), b"hidden".to_vec()]);
}

#[test]
fn what_pax_says_ends_with_its_entry() {
    let parts = [
        pax(&[
            ("path", "b"),
            ("mtime", "1.5"),
            ("SCHILY.xattr.user.x", "v"),
            ("uid", "9"),
        ]),
        raw(b'0', b"a", b""),
        raw(b'0', b"c", b""),
    ];
    let (found, _) = parse_by(&parts.concat(), 512).unwrap();
    let [(b, _), (c, _)] = &found[..] else {
        panic!()
    };
    assert_eq!(
        (b.path.as_slice(), b.uid, b.xattrs.len()),
        (&b"b"[..], 9, 1)
    );
    assert_eq!(c, &file(b"c", 0));
}

#[test]
fn global_headers_last_until_they_are_taken_back() {
    let global = |value: &str| raw(b'g', b"g", &writer::pax_record(b"uid", value.as_bytes()));
    let parts = [
        raw(
            b'g',
            b"pax_global_header",
            &writer::pax_record(b"comment", b"c0ffee"),
        ),
        global("5"),
        raw(b'0', b"a", b""),
        pax(&[("uid", "6")]),
        raw(b'0', b"b", b""),
        raw(b'0', b"c", b""),
        global(""),
        raw(b'0', b"d", b""),
    ];
    let (found, _) = parse_by(&parts.concat(), 512).unwrap();
    let uids: Vec<_> = found.iter().map(|(e, _)| e.uid).collect();
    assert_eq!(uids, [5, 6, 5, 0]);
}

#[test]
fn links_and_directories_have_no_body_whatever_their_size_says() {
    for (flag, target) in [(b'1', "t"), (b'2', "t"), (b'5', ""), (b'6', "")] {
        let mut header = headers(&file(b"a", 1000));
        header[156] = flag;
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        resum(&mut header);
        let bytes = [header, raw(b'0', b"b", b"x")].concat();
        let (found, _) = parse_by(&bytes, 512).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].0.size, found[0].0.stored), (0, 0));
    }
}

#[test]
fn old_formats_are_understood() {
    let mut v7 = headers(&file(b"dir/", 0));
    v7[156] = 0;
    v7[257..265].fill(0);
    resum(&mut v7);
    assert_eq!(parse_by(&v7, 512).unwrap().0[0].0.kind, EntryKind::Dir);
    // A checksum of signed bytes.
    let mut signed = headers(&file(b"\xff\xfe", 0));
    signed[148..156].fill(b' ');
    let sum: i32 = signed
        .iter()
        .map(|byte| i32::from(byte.cast_signed()))
        .sum();
    signed[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(parse_by(&signed, 512).unwrap().0[0].0.path, b"\xff\xfe");
    // GNU has other fields where ustar has the prefix.
    let mut gnu = headers(&file(b"name", 0));
    gnu[257..265].copy_from_slice(b"ustar  \0");
    gnu[345..356].copy_from_slice(b"14000000000");
    resum(&mut gnu);
    assert_eq!(parse_by(&gnu, 512).unwrap().0[0].0.path, b"name");
    // A contiguous file is a file.
    assert_eq!(
        parse_by(&raw(b'7', b"a", b"x"), 512).unwrap().0[0].0.kind,
        EntryKind::File
    );
}

fn old_sparse(segments: &[(u64, u64)], real: u64, extended: bool, body: &[u8]) -> Vec<u8> {
    let mut block = headers(&file(b"sparse", body.len() as u64));
    block[156] = b'S';
    block[257..265].copy_from_slice(b"ustar  \0");
    for (i, (offset, length)) in segments.iter().enumerate() {
        let at = 386 + 24 * i;
        block[at..at + 24].copy_from_slice(format!("{offset:011o}\0{length:011o}\0").as_bytes());
    }
    block[482] = u8::from(extended);
    block[483..495].copy_from_slice(format!("{real:011o}\0").as_bytes());
    resum(&mut block);
    block
}

#[test]
fn sparse_files_of_every_version_are_understood() {
    let piece = |offset, length| SparseSegment { offset, length };
    let mut extension = vec![0; 512];
    extension[..24].copy_from_slice(format!("{:011o}\0{:011o}\0", 5000, 2).as_bytes());
    let body = || [b"abcdef".to_vec(), padding_after(6).to_vec()].concat();
    let old = [
        old_sparse(&[(0, 3), (1000, 1)], 9000, true, b"abcdef"),
        extension,
        body(),
    ];
    let header = || headers(&file(b"GNUSparseFile.0/s", 6));
    let zero = [
        pax(&[
            ("GNU.sparse.size", "9000"),
            ("GNU.sparse.numblocks", "3"),
            ("GNU.sparse.offset", "0"),
            ("GNU.sparse.numbytes", "3"),
            ("GNU.sparse.offset", "1000"),
            ("GNU.sparse.numbytes", "1"),
            ("GNU.sparse.offset", "5000"),
            ("GNU.sparse.numbytes", "2"),
        ]),
        header(),
        body(),
    ];
    let map = ("GNU.sparse.map", "0,3,1000,1,5000,2");
    let one = [pax(&[("GNU.sparse.size", "9000"), map]), header(), body()];
    let in_body = [
        pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "real"),
            ("GNU.sparse.realsize", "9000"),
        ]),
        headers(&file(b"GNUSparseFile.0/s", 518)),
        [b"3\n0\n3\n1000\n1\n5000\n2\n".to_vec(), vec![0; 492]].concat(),
        body(),
    ];
    for parts in [&old[..], &zero, &one, &in_body] {
        let bytes = [parts.concat(), raw(b'0', b"next", b"")].concat();
        for step in [1, 512, 5000] {
            let (found, all) = parse_by(&bytes, step).unwrap();
            let (entry, body) = &found[0];
            let expected = vec![piece(0, 3), piece(1000, 1), piece(5000, 2)];
            assert_eq!(entry.sparse.as_ref(), Some(&expected));
            assert_eq!(
                (entry.size, entry.stored, body.as_slice()),
                (9000, 6, &b"abcdef"[..])
            );
            assert_eq!(found[1].0.path, b"next");
            assert!(all == bytes);
        }
    }
    assert_eq!(
        parse_by(&in_body.concat(), 512).unwrap().0[0].0.path,
        b"real"
    );
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let bad = Problem::Field(Field::Sparse);
    for segments in [
        &[(0, 2)][..],
        &[(0, 7)],
        &[(10, 3), (0, 3)],
        &[(0, 4), (3, 2)],
        &[(8998, 6)],
        &[(u64::MAX >> 31, 6)],
    ] {
        assert_eq!(problem(&old_sparse(segments, 9000, false, b"abcdef")), bad);
    }
    let endless = [old_sparse(&[(0, 6)], 9000, true, b"abcdef"), {
        let mut block = vec![0; 512];
        block[504] = 1;
        block
    }];
    assert_eq!(problem(&endless.concat()), bad);
    for body in [
        "x\n",
        "2\n0\n1\n",
        "1\n0\n99999999999999999999999999\n",
        "1\n0\n7\n",
    ] {
        let mut map = body.as_bytes().to_vec();
        map.resize(518, 0);
        let parts = [
            pax(&[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.realsize", "9000"),
            ]),
            raw(b'0', b"s", &map),
        ];
        assert_eq!(problem(&parts.concat()), bad, "{body}");
    }
    for parts in [
        [
            pax(&[("GNU.sparse.map", "0,6")]),
            raw(b'0', b"s", b"abcdef"),
        ],
        [
            pax(&[("GNU.sparse.major", "2"), ("GNU.sparse.size", "6")]),
            raw(b'0', b"s", b"abcdef"),
        ],
    ] {
        assert_eq!(problem(&parts.concat()), bad);
    }
}

#[test]
fn budgets_bound_what_headers_may_take() {
    let long = raw(b'L', b"l", &[b'a'; 5000]);
    let huge = headers(&file(b"l", 1 << 30));
    let mut huge_pax = huge.clone();
    huge_pax[156] = b'x';
    resum(&mut huge_pax);
    let budget = |bytes: &[u8]| match problem(bytes) {
        Problem::Budget { what, .. } => what,
        other => panic!("{other}"),
    };
    assert_eq!(
        budget(&[long, raw(b'0', b"a", b"")].concat()),
        "bytes of a path"
    );
    let target = raw(b'K', b"l", &[b'a'; 5000]);
    assert_eq!(
        budget(&[target, raw(b'2', b"a", b"")].concat()),
        "bytes of a link target"
    );
    assert_eq!(budget(&huge_pax), "bytes of extension headers");
    let globals = raw(b'g', b"g", &writer::pax_record(b"comment", &[b'x'; 4000])).repeat(300);
    assert_eq!(budget(&globals), "bytes of extension headers");
    let mut parser = Parser::new(&Budgets {
        entries: 2,
        ..Budgets::default()
    });
    let three = raw(b'0', b"a", b"").repeat(3);
    let mut rest = &three[..];
    let error = loop {
        match parser.advance(rest) {
            Ok((taken, _)) => rest = &rest[taken..],
            Err(e) => break e.to_string(),
        }
    };
    assert!(error.contains("more than 2 entries"), "{error}");
}

#[test]
fn a_reader_gives_entries_and_bodies() {
    let bytes = archive(&[
        (file(b"a", 70_000), vec![3; 70_000]),
        (file(b"b", 2), b"hi".to_vec()),
    ]);
    let mut reader = Reader::new(&bytes[..], &Budgets::default());
    assert_eq!(reader.next_entry().unwrap().unwrap().path, b"a");
    assert_eq!(reader.read_to_vec(1 << 20).unwrap(), vec![3; 70_000]);
    assert_eq!(reader.next_entry().unwrap().unwrap().path, b"b");
    assert!(reader.read_to_vec(1).is_err());
    assert!(reader.next_entry().unwrap().is_none());
    assert!(reader.next_entry().unwrap().is_none());
    let mut cut = Reader::new(&bytes[..1000], &Budgets::default());
    cut.next_entry().unwrap();
    assert!(cut.read_to_vec(1 << 20).is_err());
}

fn any_entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let kind = prop_oneof![
        3 => Just(EntryKind::File),
        1 => Just(EntryKind::Dir),
        1 => Just(EntryKind::Fifo),
        1 => proptest::collection::vec(1u8.., 1..300).prop_map(EntryKind::Symlink),
        1 => proptest::collection::vec(1u8.., 1..300).prop_map(EntryKind::HardLink),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| EntryKind::Char { major, minor }),
    ];
    let path = proptest::collection::vec("[a-z\u{e9}]{1,120}", 1..4);
    let xattrs = proptest::collection::btree_map(
        proptest::collection::vec(1u8..255, 1..20).prop_filter("", |n| !n.contains(&b'=')),
        proptest::collection::vec(any::<u8>(), 0..20),
        0..3,
    );
    (
        path,
        kind,
        0u32..0o10000,
        0u32..u32::MAX,
        any::<i64>(),
        0u32..1_000_000_000,
        xattrs,
        0usize..2000,
    )
        .prop_map(|(path, kind, mode, id, sec, nsec, xattrs, size)| {
            let size = if kind == EntryKind::File { size } else { 0 };
            let sec = if sec == i64::MIN { 0 } else { sec };
            let entry = Entry {
                kind,
                mode,
                uid: id,
                gid: id / 2,
                mtime: Time { sec, nsec },
                xattrs: xattrs.into_iter().collect(),
                ..file(path.join("/").as_bytes(), size as u64)
            };
            (entry, vec![b'x'; size])
        })
}

proptest! {
    #[test]
    fn any_entries_survive(
        entries in proptest::collection::vec(any_entry(), 0..6),
        step in 1usize..3000,
    ) {
        let bytes = archive(&entries);
        let (found, all) = parse_by(&bytes, step).unwrap();
        prop_assert_eq!(found, entries);
        prop_assert!(all == bytes);
    }

    #[test]
    fn how_the_bytes_come_makes_no_difference(
        entries in proptest::collection::vec(any_entry(), 0..4),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        step in 1usize..2000,
    ) {
        let mut bytes = archive(&entries);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let whole = parse_by(&bytes, usize::MAX).map_err(|e| e.to_string());
        let pieces = parse_by(&bytes, step).map_err(|e| e.to_string());
        prop_assert_eq!(whole, pieces);
    }
}
