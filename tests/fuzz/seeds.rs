//! What mutation begins with.

use std::io::Write;

use rovl::format::acl::{Acl, AclEntry, AclTag, encode};
use rovl::store::codec::compress::{Compression, Encoder};
use rovl::store::codec::tar::writer::{END, headers, padding_after, pax_record};
use rovl::store::codec::tar::{Entry, EntryKind, Time};
use rovl::store::codec::tar_split::Recorder;

fn entry(path: &str, kind: EntryKind, body: &[u8]) -> Vec<u8> {
    let size = body.len() as u64;
    let entry = Entry {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o755,
        uid: 3_000_000,
        gid: 5,
        mtime: Time { sec: -1, nsec: 5 },
        atime: None,
        size,
        stored: size,
        xattrs: vec![(b"user.x".to_vec(), b"v".to_vec())],
        sparse: None,
    };
    [&headers(&entry), body, padding_after(size)].concat()
}

fn with_flag(flag: u8, path: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = entry(path, EntryKind::File, body);
    // The PAX header and its body come first.
    let at = bytes.len() - 512 - body.len().next_multiple_of(512);
    bytes.drain(..at);
    bytes[156] = flag;
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

fn records_of(records: &[(&str, &str)]) -> Vec<u8> {
    records
        .iter()
        .flat_map(|(key, value)| pax_record(key.as_bytes(), value.as_bytes()))
        .collect()
}

pub fn pax() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        records_of(&[("path", "a/b"), ("linkpath", "c"), ("size", "5")]),
        records_of(&[
            ("uid", "1"),
            ("gid", ""),
            ("mtime", "-1.25"),
            ("atime", "7"),
        ]),
        records_of(&[("SCHILY.xattr.user.x", "\n=\0"), ("SCHILY.devmajor", "3")]),
        records_of(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,1,5,2")]),
        records_of(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "n"),
            ("GNU.sparse.realsize", "99"),
        ]),
        records_of(&[
            ("GNU.sparse.numblocks", "1"),
            ("GNU.sparse.offset", "1"),
            ("GNU.sparse.numbytes", "2"),
        ]),
    ]
}

pub fn archives() -> Vec<Vec<u8>> {
    let mut parts = vec![
        entry("d/", EntryKind::Dir, b""),
        entry("d/f", EntryKind::File, b"content"),
        entry("d/l", EntryKind::Symlink(b"../f".to_vec()), b""),
        entry("h", EntryKind::HardLink(b"d/f".to_vec()), b""),
        entry("c", EntryKind::Char { major: 1, minor: 3 }, b""),
        entry("p", EntryKind::Fifo, b""),
        entry(&"long/".repeat(60), EntryKind::Dir, b""),
        entry("d/.wh.gone", EntryKind::File, b""),
        entry("d/.wh..wh..opq", EntryKind::File, b""),
        [
            with_flag(b'L', "l", &[b'n'; 200]),
            with_flag(b'0', "x", b"1"),
        ]
        .concat(),
        [
            with_flag(b'K', "l", &[b'n'; 200]),
            with_flag(b'2', "y", b""),
        ]
        .concat(),
        with_flag(b'S', "s", b"sparse"),
    ];
    for records in pax() {
        let body = [
            with_flag(b'x', "p", &records),
            with_flag(b'0', "z", b"12345678"),
        ]
        .concat();
        parts.push(body);
        parts.push(with_flag(b'g', "g", &records));
    }
    let map = [
        b"2\n0\n2\n50\n3\n".to_vec(),
        vec![0; 501],
        b"abcde".to_vec(),
    ]
    .concat();
    parts.push([with_flag(b'x', "p", &pax()[5]), with_flag(b'0', "m", &map)].concat());
    let all = [parts.concat(), END.to_vec()].concat();
    parts.push(END.to_vec());
    parts.push(all);
    parts
}

pub fn records() -> Vec<Vec<u8>> {
    let mut recorder = Recorder::new(Vec::new());
    recorder.segment(b"header").unwrap();
    let mut crc = rovl::store::codec::crc64::Crc64::new();
    crc.update(b"body");
    recorder.file(b"name", 4, crc.sum()).unwrap();
    recorder.file(b"\xff", 0, [0; 8]).unwrap();
    recorder.segment(&[0; 600]).unwrap();
    let all = recorder.into_inner();
    let mut seeds: Vec<Vec<u8>> = all
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    seeds.push(all);
    seeds
}

pub fn compressed() -> Vec<Vec<u8>> {
    let body: Vec<u8> = (0..500_u32)
        .flat_map(|n| n.to_string().into_bytes())
        .collect();
    let mut seeds = vec![body.clone(), b"BZh91AY&SY".to_vec()];
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut encoder = Encoder::new(Vec::new(), compression, None).unwrap();
        encoder.write_all(&body).unwrap();
        let bytes = encoder.finish().unwrap().0;
        seeds.push([bytes.clone(), bytes.clone()].concat());
        seeds.push([b"\x50\x2a\x4d\x18\x04\0\0\0skip".to_vec(), bytes].concat());
    }
    seeds.push(
        [
            &[0x1f, 0x8b, 8, 0x1e, 0, 0, 0, 0, 0, 3, 1, 0, b'x'][..],
            b"n\0c\0ab",
        ]
        .concat(),
    );
    seeds
}

pub fn xattrs() -> Vec<Vec<u8>> {
    let entries = [
        (AclTag::UserObj, 7),
        (AclTag::GroupObj, 5),
        (AclTag::Other, 5),
    ];
    let entries = entries.map(|(tag, perm)| AclEntry { tag, perm }).to_vec();
    vec![
        encode(&Acl { entries }),
        b"0:0:0755:char-1-3".to_vec(),
        b"/path/to".to_vec(),
        b"name".to_vec(),
        b"U+5".to_vec(),
        b"L-1".to_vec(),
        vec![0, 4, 0, 0],
        b"\x00\xfb\x1d\x00\x01aaaaaaaaaaaaaaaahandle..".to_vec(),
        b"trusted.overlay.overlay.x".to_vec(),
    ]
}

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn bytes(texts: &[String]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.clone().into_bytes()).collect()
}

pub fn manifests() -> Vec<Vec<u8>> {
    let item =
        r#"{"Config":"c.json","RepoTags":["a/b:1","x"],"Layers":["1/layer.tar","2/layer.tar"]}"#;
    bytes(&[
        format!("[{item}]"),
        format!("[{item},{item}]"),
        r#"[{"Config":"a","RepoTags":null,"Layers":null}]"#.into(),
        "[]".into(),
    ])
}

pub fn indexes() -> Vec<Vec<u8>> {
    let blob = |kind: &str| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{DIGEST}","size":7,"platform":{{"architecture":"arm64","os":"linux","variant":"v8"}},"annotations":{{"org.opencontainers.image.ref.name":"a:1"}}}}"#
        )
    };
    let (index, manifest) = (blob("index.v1+json"), blob("manifest.v1+json"));
    let (config, layer) = (blob("config.v1+json"), blob("layer.v1.tar+gzip"));
    bytes(&[
        format!(r#"{{"schemaVersion":2,"manifests":[{index},{manifest}]}}"#),
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer},{layer}]}}"#),
        format!(r#"{{"schemaVersion":2,"config":{config},"manifests":[{manifest}]}}"#),
        r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
    ])
}

pub fn configs() -> Vec<Vec<u8>> {
    bytes(&[
        format!(
            r#"{{"architecture":"arm64","os":"linux","variant":"v8","created":"2024-01-02T03:04:05.678Z","author":"a","config":{{"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":["{DIGEST}","{DIGEST}"]}},"history":[{{"created":"2024-01-01T00:00:00+02:00","created_by":"x","comment":"y"}},{{"empty_layer":true}}]}}"#
        ),
        r#"{"rootfs":{"type":"layers"}}"#.into(),
        r#"{"rootfs":{"type":"other","diff_ids":null}}"#.into(),
    ])
}
