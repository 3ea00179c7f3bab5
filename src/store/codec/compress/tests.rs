use proptest::prelude::*;

use super::*;
use crate::store::codec::digest::Digest;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    compress(bytes, Compression::Gzip)
}

fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    compress(bytes, Compression::Zstd)
}

fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression, None).unwrap();
    encoder.write_all(bytes).unwrap();
    let (out, facts) = encoder.finish().unwrap();
    assert_eq!(facts.digest.0, Digest::of(&out));
    assert_eq!(facts.bytes, out.len() as u64);
    out
}

fn skippable(length: u32) -> Vec<u8> {
    let mut frame = vec![0x5a, 0x2a, 0x4d, 0x18];
    frame.extend(length.to_le_bytes());
    frame.extend(vec![0xaa; length as usize]);
    frame
}

/// Gives a few bytes at a time.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.1.min(buf.len()).min(self.0.len());
        let (now, later) = self.0.split_at(n);
        buf[..n].copy_from_slice(now);
        self.0 = later;
        Ok(n)
    }
}

fn decode_from(input: impl Read, budgets: &Budgets) -> io::Result<(Vec<u8>, Compressed)> {
    let mut decoder = Decoder::new(input, budgets)?;
    let mut out = Vec::new();
    decoder.read_to_end(&mut out)?;
    Ok((out, decoder.finish()?.1))
}

fn decode(bytes: &[u8]) -> io::Result<(Vec<u8>, Compressed)> {
    decode_from(bytes, &Budgets::default())
}

/// The error of decoding, which is the same however the input comes.
fn refused(bytes: &[u8]) -> CompressError {
    let as_ours = |e: io::Error| *e.into_inner().unwrap().downcast::<CompressError>().unwrap();
    let whole = as_ours(decode(bytes).unwrap_err());
    let dribbled = as_ours(decode_from(Dribble(bytes, 1), &Budgets::default()).unwrap_err());
    assert_eq!(
        std::mem::discriminant(&whole),
        std::mem::discriminant(&dribbled)
    );
    whole
}

#[test]
fn a_stream_is_known_by_its_first_bytes() {
    for (bytes, compression) in [
        (b"plain".to_vec(), Compression::None),
        (Vec::new(), Compression::None),
        (vec![0x1f], Compression::None),
        (gzip(b"plain"), Compression::Gzip),
        (zstd_frame(b"plain"), Compression::Zstd),
        (
            [skippable(9), zstd_frame(b"plain")].concat(),
            Compression::Zstd,
        ),
    ] {
        let (out, facts) = decode(&bytes).unwrap();
        assert_eq!(facts.compression, compression);
        assert_eq!(facts.digest.0, Digest::of(&bytes));
        assert_eq!(facts.bytes, bytes.len() as u64);
        if compression == Compression::None {
            assert_eq!(out, bytes);
        } else {
            assert_eq!(out, b"plain");
        }
    }
}

#[test]
fn other_compressions_are_named() {
    for (begin, name) in [
        (&b"\xfd7zXZ\0more"[..], "xz"),
        (b"BZh91AY&SYmore", "bzip2"),
        (b"\x04\x22\x4d\x18more", "lz4"),
    ] {
        assert!(matches!(refused(begin), CompressError::Unsupported(n) if n == name));
    }
    assert_eq!(decode(b"BZh file").unwrap().0, b"BZh file");
}

#[test]
fn members_and_frames_follow_one_another() {
    let members = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
    assert_eq!(decode(&members).unwrap().0, b"one two");
    let frames = [
        zstd_frame(b"one "),
        skippable(0),
        skippable(300_000),
        zstd_frame(b""),
        zstd_frame(b"two"),
        skippable(7),
    ];
    assert_eq!(decode(&frames.concat()).unwrap().0, b"one two");
}

#[test]
fn optional_header_fields_of_gzip_are_skipped_and_checked() {
    let plain = gzip(b"content");
    let mut header = vec![0x1f, 0x8b, 8, 0x1e, 1, 2, 3, 4, 0, 3];
    header.extend(4u16.to_le_bytes());
    header.extend(b"SZxx");
    header.extend(b"name\0comment\0");
    let mut crc = flate2::Crc::new();
    crc.update(&header);
    let sum = crc.sum().to_le_bytes();
    let good = [&header, &sum[..2], &plain[10..]].concat();
    assert_eq!(decode(&good).unwrap().0, b"content");
    let bad = [&header, &[!sum[0], sum[1]][..], &plain[10..]].concat();
    assert!(matches!(
        refused(&bad),
        CompressError::Checksum("gzip", "header's CRC-16")
    ));
}

#[test]
fn every_truncation_says_so() {
    let long: Vec<u8> = (0..3000u32).flat_map(u32::to_le_bytes).collect();
    for whole in [gzip(&long), zstd_frame(&long)] {
        for cut in (5..whole.len()).step_by(7).chain([whole.len() - 1]) {
            let error = refused(&whole[..cut]);
            assert!(
                matches!(error, CompressError::Truncated(..)),
                "{cut}: {error}"
            );
        }
        let second = [&whole[..], &whole[..2]].concat();
        assert!(matches!(refused(&second), CompressError::Truncated(..)));
    }
    let skip = [zstd_frame(b"x"), skippable(9)[..12].to_vec()].concat();
    assert!(matches!(refused(&skip), CompressError::Truncated(..)));
}

#[test]
fn garbage_after_the_last_member_says_so() {
    for whole in [gzip(b"x"), zstd_frame(b"x")] {
        for garbage in [&b"\0"[..], b"\0\0\0\0\0\0\0\0", b"garbage", b"\x1f\x8c"] {
            let error = refused(&[&whole, garbage].concat());
            let CompressError::TrailingGarbage(_, at) = error else {
                panic!("{error}");
            };
            assert_eq!(at, whole.len() as u64);
        }
    }
}

#[test]
fn wrong_checksums_and_lengths_say_so() {
    let mut crc = gzip(b"content");
    let at = crc.len() - 8;
    crc[at] ^= 1;
    assert!(matches!(
        refused(&crc),
        CompressError::Checksum("gzip", "CRC-32")
    ));
    let mut length = gzip(b"content");
    *length.last_mut().unwrap() ^= 1;
    assert!(matches!(
        refused(&length),
        CompressError::Checksum("gzip", "length")
    ));
    let mut sum = zstd_frame(b"content");
    *sum.last_mut().unwrap() ^= 1;
    assert!(matches!(
        refused(&sum),
        CompressError::Checksum("zstd", "checksum")
    ));
}

#[test]
fn damage_in_headers_says_so() {
    for (at, bits) in [(2, 1), (3, 0x20), (3, 0x80)] {
        let mut bytes = gzip(b"content");
        bytes[at] ^= bits;
        assert!(matches!(refused(&bytes), CompressError::Damaged(..)));
    }
    let begin = [0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 3];
    let endless = [&begin[..], &[b'a'; 70_000]].concat();
    assert!(matches!(refused(&endless), CompressError::Damaged(..)));
    let mut reserved = zstd_frame(b"content");
    reserved[4] |= 0x08;
    assert!(matches!(refused(&reserved), CompressError::Damaged(..)));
}

#[test]
fn budgets_end_a_bomb() {
    let zeros = vec![0; 1 << 20];
    let limit = |bytes: &[u8], budgets: &Budgets| {
        let error = decode_from(bytes, budgets).unwrap_err();
        match CompressError::of(&error) {
            Some(CompressError::Budget { limit, .. }) => *limit,
            _ => panic!("{error}"),
        }
    };
    let bytes = Budgets {
        unpacked_bytes: 1 << 19,
        ..Budgets::default()
    };
    for stream in [zeros.clone(), gzip(&zeros), zstd_frame(&zeros)] {
        assert_eq!(limit(&stream, &bytes), 1 << 19);
    }
    let ratio = Budgets {
        ratio: 50,
        ratio_from: 1000,
        ..Budgets::default()
    };
    for stream in [gzip(&zeros), zstd_frame(&zeros)] {
        assert_eq!(limit(&stream, &ratio), 50);
        decode(&stream).unwrap();
    }
    decode_from(&zeros[..], &ratio).unwrap();
}

#[test]
fn a_zstd_window_beyond_the_budget_is_refused() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(24).unwrap();
    encoder.write_all(&vec![7; 1 << 25]).unwrap();
    let bytes = encoder.finish().unwrap();
    let budgets = Budgets {
        zstd_window_log: 23,
        ..Budgets::default()
    };
    let error = decode_from(&bytes[..], &budgets).unwrap_err();
    let ours = CompressError::of(&error);
    assert!(
        matches!(ours, Some(CompressError::Budget { .. })),
        "{error}"
    );
    decode(&bytes).unwrap();
}

#[test]
fn compressing_is_reproducible_and_has_no_time_or_name() {
    let bytes = gzip(b"content");
    assert_eq!(bytes, gzip(b"content"));
    assert_eq!(bytes[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
    assert_eq!(zstd_frame(b"content"), zstd_frame(b"content"));
}

proptest! {
    #[test]
    fn what_was_compressed_comes_out(
        parts in proptest::collection::vec(proptest::collection::vec(0u8..4, 0..3000), 1..4),
        step in 1usize..50,
    ) {
        let all = parts.concat();
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let bytes: Vec<u8> = parts.iter().flat_map(|part| compress(part, compression)).collect();
            let mut decoder = Decoder::new(Dribble(&bytes, step), &Budgets::default()).unwrap();
            let mut out = Vec::<u8>::new();
            let mut buf = vec![0; step * 3];
            loop {
                let n = decoder.read(&mut buf).unwrap();
                if n == 0 {
                    break;
                }
                out.extend(&buf[..n]);
            }
            prop_assert_eq!(&out, &all);
            prop_assert_eq!(decoder.finish().unwrap().1.digest.0, Digest::of(&bytes));
        }
    }

    #[test]
    fn no_damage_panics_or_passes(at in 0usize..200, bits in 1u8.., zstd: bool) {
        let long: Vec<u8> = (0..100u32).flat_map(u32::to_le_bytes).collect();
        let mut bytes = if zstd { zstd_frame(&long) } else { gzip(&long) };
        let at = at % bytes.len();
        bytes[at] ^= bits;
        if let Ok((out, facts)) = decode(&bytes) {
            prop_assert!(facts.compression == Compression::None || out == long || out.is_empty());
        }
    }
}
