//! Archives that mean harm, or are broken: each is refused with an error of its own, within bounded time
//! and memory, touches nothing outside of the root (see [`Place::try_unpack`]), and leaves neither threads
//! nor descriptors behind.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rovl::store::codec::budget::Budgets;
use rovl::store::codec::compress::{Compression, Encoder};
use rovl::store::codec::tar::EntryKind;
use rovl::store::unpack::{Options, unpack};

use crate::archive::{Tar, entry};
use crate::place::{Place, options};

/// What it is, the archive, and what the error has to say.
type Row = (&'static str, Vec<u8>, &'static str);

fn compressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), compression, None).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap().0
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    compressed(bytes, Compression::Gzip)
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compressed(bytes, Compression::Zstd)
}

fn sample() -> Vec<u8> {
    let body: String = (0..20_000).map(|n| n.to_string()).collect();
    Tar::new().dir("d").file("d/f", &body).end()
}

fn changed(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let at = if at >= bytes.len() {
        bytes.len() + at - usize::MAX - 1
    } else {
        at
    };
    bytes[at] ^= 0x55;
    bytes
}

fn cut(bytes: Vec<u8>, length: usize) -> Vec<u8> {
    bytes[..length].to_vec()
}

fn streams() -> Vec<Row> {
    let half = |bytes: Vec<u8>| cut(bytes.clone(), bytes.len() / 2);
    let last = |bytes: Vec<u8>| cut(bytes.clone(), bytes.len() - 1);
    let then = |bytes: Vec<u8>, more: &[u8]| [bytes, more.to_vec()].concat();
    let from_end = |n: usize| usize::MAX - n + 1;
    vec![
        (
            "gzip cut in half",
            half(gzip(&sample())),
            "gzip stream is truncated",
        ),
        (
            "gzip without its last byte",
            last(gzip(&sample())),
            "gzip stream is truncated",
        ),
        (
            "gzip of one header byte too few",
            cut(gzip(&sample()), 9),
            "gzip stream is truncated",
        ),
        (
            "zstd cut in half",
            half(zstd(&sample())),
            "zstd stream is truncated",
        ),
        (
            "zstd without its last byte",
            last(zstd(&sample())),
            "zstd stream is truncated",
        ),
        (
            "gzip with zeros behind",
            then(gzip(&sample()), &[0; 512]),
            "garbage after byte",
        ),
        (
            "gzip with a tar behind",
            then(gzip(&sample()), &sample()),
            "garbage after byte",
        ),
        (
            "zstd with gzip behind",
            then(zstd(&sample()), &gzip(b"x")),
            "garbage after byte",
        ),
        (
            "gzip with zstd behind",
            then(gzip(&sample()), &zstd(b"x")),
            "garbage after byte",
        ),
        (
            "gzip with another CRC",
            changed(gzip(&sample()), from_end(8)),
            "CRC-32 does not match",
        ),
        (
            "gzip with another length",
            changed(gzip(&sample()), from_end(1)),
            "length does not match",
        ),
        (
            "zstd with another checksum",
            changed(zstd(&sample()), from_end(1)),
            "checksum does not match",
        ),
        (
            "gzip of an unknown method",
            changed(gzip(&sample()), 2),
            "an unknown method",
        ),
        (
            "gzip with reserved flags",
            {
                let mut bytes = gzip(&sample());
                bytes[3] = 0x80;
                bytes
            },
            "reserved flags",
        ),
        (
            "gzip with damaged data",
            {
                let mut bytes = gzip(&sample());
                bytes[10] = 0xff;
                bytes
            },
            "gzip stream is damaged",
        ),
        (
            "a second member that is cut",
            then(gzip(&sample()), &gzip(b"x")[..12]),
            "truncated",
        ),
        (
            "a second member that is damaged",
            then(gzip(&sample()), &changed(gzip(b"xyz"), 14)),
            "gzip stream is damaged",
        ),
        (
            "a skippable frame that is cut",
            then(zstd(&sample()), b"\x50\x2a\x4d\x18\xff\xff\0\0x"),
            "zstd stream is truncated",
        ),
        ("xz", b"\xfd7zXZ\0\0\x04".to_vec(), "compressed with xz"),
        ("bzip2", b"BZh91AY&SY..".to_vec(), "compressed with bzip2"),
        ("gzip in gzip", gzip(&gzip(&sample())), "no tar archive"),
        (
            "text",
            "This is no archive. ".repeat(100).into_bytes(),
            "no tar archive",
        ),
        (
            "JSON",
            format!("{{{:600}}}", " ").into_bytes(),
            "no tar archive",
        ),
        ("one byte", vec![1], "truncated"),
        ("511 zeros", vec![0; 511], "truncated"),
    ]
}

fn headers() -> Vec<Row> {
    let tar = Tar::new;
    let file = || tar().file("a", "content");
    let numbers = |at: usize, text: &'static [u8]| {
        tar()
            .header(b'0', b"a", 0, move |block| {
                block[at..at + text.len()].copy_from_slice(text);
            })
            .0
    };
    let device = |at: usize, text: &'static [u8]| {
        tar()
            .header(b'3', b"a", 0, move |block| {
                block[at..at + text.len()].copy_from_slice(text);
            })
            .0
    };
    vec![
        ("cut within a header", cut(file().end(), 300), "truncated"),
        ("cut within a body", cut(file().end(), 515), "truncated"),
        ("cut within padding", cut(file().end(), 600), "truncated"),
        ("cut within the end", cut(file().end(), 1100), "truncated"),
        (
            "a wrong checksum",
            changed(file().end(), 0),
            "checksum is wrong",
        ),
        (
            "a checksum that is no number",
            {
                let mut bytes = file().end();
                bytes[148..156].fill(b'z');
                bytes
            },
            "checksum is wrong",
        ),
        (
            "one block of zeros in between",
            [vec![0; 512], file().end()].concat(),
            "single block of zeros",
        ),
        (
            "an unknown type",
            tar().raw(b'Q', b"a", b"").end(),
            "unknown type 'Q'",
        ),
        (
            "a multi-volume part",
            tar().raw(b'M', b"a", b"").end(),
            "unknown type 'M'",
        ),
        (
            "a volume label",
            tar().raw(b'V', b"a", b"").end(),
            "unknown type 'V'",
        ),
        (
            "a dump directory",
            tar().raw(b'D', b"a", b"").end(),
            "unknown type 'D'",
        ),
        (
            "a Sun extended header",
            tar().raw(b'X', b"a", b"").end(),
            "unknown type 'X'",
        ),
        (
            "a mode that is no number",
            numbers(100, b"rwxr-xr"),
            "the mode is not valid",
        ),
        (
            "an owner that is no number",
            numbers(108, b"root\0\0\0"),
            "the owner is not valid",
        ),
        (
            "a negative owner",
            numbers(108, &[0xff; 8]),
            "the owner is not valid",
        ),
        (
            "a huge group",
            numbers(116, &[0x80, 0, 0, 1, 0, 0, 0, 0]),
            "the group is not valid",
        ),
        (
            "a negative size",
            numbers(124, &[0xff; 12]),
            "the size is not valid",
        ),
        (
            "a size beyond 64 bits",
            numbers(124, &[0xbf; 12]),
            "the size is not valid",
        ),
        (
            "a time beyond 64 bits",
            numbers(136, &[0x9f; 12]),
            "the modification time is not valid",
        ),
        (
            "a device of 4096",
            device(329, b"0010000"),
            "the device number is not valid",
        ),
        (
            "a minor of 2^20",
            device(337, b"4000000"),
            "the device number is not valid",
        ),
        ("no path", numbers(0, b"\0"), "the path is not valid"),
        (
            "no link target",
            tar().raw(b'1', b"a", b"").0,
            "the link target is not valid",
        ),
        (
            "a size of 8 EiB",
            tar()
                .pax(&[("size", b"9223372036854775807")])
                .raw(b'0', b"a", b"")
                .end(),
            "more than 274877906944 bytes of files",
        ),
        (
            "a file with a slash",
            tar().raw(b'0', b"a/", b"").end(),
            "ends with a slash",
        ),
        (
            "two PAX headers",
            tar()
                .pax(&[("path", b"b")])
                .pax(&[("path", b"c")])
                .file("a", "")
                .end(),
            "two headers give it a PAX header",
        ),
        (
            "PAX and GNU names",
            tar()
                .raw(b'L', b"l", b"b\0")
                .pax(&[("path", b"c")])
                .file("a", "")
                .end(),
            "two headers give it a path",
        ),
        (
            "PAX before the end",
            tar().pax(&[("path", b"b")]).end(),
            "no entry after it",
        ),
        (
            "PAX and nothing",
            tar().pax(&[("path", b"b")]).0,
            "no entry after it",
        ),
        (
            "PAX without a length",
            tar().raw(b'x', b"x", b"path=b\n").end(),
            "it has no length",
        ),
        (
            "PAX longer than itself",
            tar().raw(b'x', b"x", b"99 path=b\n").end(),
            "longer than the header",
        ),
        (
            "PAX of length 0",
            tar().raw(b'x', b"x", b"0 path=b\n").end(),
            "PAX header",
        ),
        (
            "PAX with a NUL in a path",
            tar().pax(&[("path", b"a\0b")]).file("a", "").end(),
            "the value of path",
        ),
        (
            "PAX with a negative owner",
            tar().pax(&[("uid", b"-1")]).file("a", "").end(),
            "the value of uid",
        ),
        (
            "PAX with a time in words",
            tar().pax(&[("mtime", b"yesterday")]).file("a", "").end(),
            "the value of mtime",
        ),
        (
            "a global path",
            tar().raw(b'g', b"g", b"10 path=b\n").file("a", "").end(),
            "a global header sets path",
        ),
        (
            "a global size",
            tar().raw(b'g', b"g", b"10 size=5\n").file("a", "").end(),
            "a global header sets size",
        ),
        (
            "a PAX header of 1 GiB",
            tar().header(b'x', b"x", 1 << 30, |_| {}).0,
            "bytes of extension headers",
        ),
        (
            "a name of 2 MiB",
            tar()
                .raw(b'L', b"l", &vec![b'a'; 2 << 20])
                .file("a", "")
                .end(),
            "bytes of extension headers",
        ),
        (
            "a name of 1 MiB",
            tar()
                .raw(b'L', b"l", &vec![b'a'; 1_000_000])
                .file("a", "")
                .end(),
            "bytes of a path",
        ),
        (
            "a target of 1 MiB",
            tar()
                .raw(b'K', b"l", &vec![b'a'; 1_000_000])
                .symlink("a", "b")
                .end(),
            "bytes of a link target",
        ),
        (
            "attributes of 300 KiB",
            tar()
                .pax(&[("SCHILY.xattr.user.a", &[b'x'; 300 << 10])])
                .file("a", "")
                .end(),
            "extended attributes take more",
        ),
        (
            "a sparse map out of order",
            tar()
                .pax(&[("GNU.sparse.size", b"99"), ("GNU.sparse.map", b"5,1,0,1")])
                .file("a", "xy")
                .end(),
            "the sparse map is not valid",
        ),
        (
            "a sparse map beyond the file",
            tar()
                .pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"8,2")])
                .file("a", "xy")
                .end(),
            "the sparse map is not valid",
        ),
        (
            "a sparse map without its data",
            tar()
                .pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,5")])
                .file("a", "xy")
                .end(),
            "the sparse map is not valid",
        ),
        (
            "a sparse file of 8 EiB",
            tar()
                .pax(&[
                    ("GNU.sparse.size", b"9223372036854775807"),
                    ("GNU.sparse.map", b""),
                ])
                .file("a", "")
                .end(),
            "bytes of files",
        ),
    ]
}

fn paths() -> Vec<Row> {
    let tar = Tar::new;
    let long = "n".repeat(256);
    let deep = "d/".repeat(600);
    vec![
        (
            "`..` first",
            tar().file("../a", "x").end(),
            "a path with `..`",
        ),
        (
            "`..` within",
            tar().file("d/../../a", "x").end(),
            "a path with `..`",
        ),
        (
            "`..` that would stay inside",
            tar().file("d/../a", "x").end(),
            "a path with `..`",
        ),
        (
            "absolute and up",
            tar().file("/../outside/a", "x").end(),
            "a path with `..`",
        ),
        ("a directory up", tar().dir("..").end(), "a path with `..`"),
        (
            "a whiteout up",
            tar().file("../.wh.outside", "").end(),
            "a path with `..`",
        ),
        (
            "an opaque mark up",
            tar().file("../outside/.wh..wh..opq", "").end(),
            "a path with `..`",
        ),
        (
            "a hard link up",
            tar().link("a", "../outside/secret").end(),
            "a path with `..`",
        ),
        (
            "a hard link to what is not there",
            tar().link("a", "/etc/passwd").end(),
            "target is not in this layer",
        ),
        (
            "a hard link through a symlink",
            tar().symlink("s", "/etc").link("a", "s/passwd").end(),
            "target is not in this layer",
        ),
        (
            "a hard link to a directory",
            tar().dir("d").link("a", "d").end(),
            "a hard link to a directory",
        ),
        (
            "a hard link to itself",
            tar().link("a", "a").end(),
            "lead to one another",
        ),
        (
            "hard links in a circle",
            tar().link("a", "b").link("b", "c").link("c", "a").end(),
            "lead to one another",
        ),
        (
            "a hard link to a whiteout",
            tar().file(".wh.w", "").link("a", ".wh.w").end(),
            "target is not in this layer",
        ),
        (
            "a symlink as a parent",
            tar().symlink("s", "/etc").file("s/passwd", "x").end(),
            "target is not in the layer",
        ),
        (
            "symlinks in a circle as a parent",
            tar()
                .symlink("s", "t")
                .symlink("t", "s")
                .file("s/a", "x")
                .end(),
            "no directory",
        ),
        (
            "a file as a parent",
            tar().file("f", "x").file("f/a", "x").end(),
            "no directory",
        ),
        (
            "a device as a parent",
            tar().device("n", 1, 3).file("n/a", "x").end(),
            "no directory",
        ),
        (
            "a hard link as a parent",
            tar().file("f", "x").link("l", "f").file("l/a", "x").end(),
            "no directory",
        ),
        (
            "a directory that becomes a symlink",
            tar().file("d/a", "x").symlink("d", "/etc").end(),
            "would replace a directory",
        ),
        (
            "a directory that becomes a file",
            tar().dir("d").file("d", "x").end(),
            "another entry",
        ),
        (
            "the same file twice",
            tar().file("a", "x").file("./a", "y").end(),
            "another entry",
        ),
        (
            "the same directory twice",
            tar().dir("d").dir("d/").end(),
            "another entry",
        ),
        (
            "the same file through a symlink",
            tar()
                .dir("d")
                .symlink("s", "d")
                .file("d/a", "x")
                .file("s/a", "y")
                .end(),
            "another entry",
        ),
        (
            "the same whiteout twice",
            tar().file(".wh.a", "").file(".wh.a", "").end(),
            "another entry",
        ),
        (
            "a symlink that becomes a file",
            tar().symlink("a", "/etc/passwd").file("a", "x").end(),
            "another entry",
        ),
        ("two roots", tar().dir("./").dir("/").end(), "another entry"),
        ("a root that is a file", tar().file("/", "").end(), "slash"),
        (
            "a root that is a symlink",
            tar().symlink("./", "/etc").end(),
            "has to be a directory",
        ),
        (
            "a bare whiteout",
            tar().file("d/.wh.", "").end(),
            "a whiteout of no name",
        ),
        (
            "a whiteout of `.`",
            tar().file(".wh..", "").end(),
            "a whiteout of no name",
        ),
        (
            "a whiteout of `..`",
            tar().file(".wh...", "").end(),
            "a whiteout of no name",
        ),
        (
            "an object beneath a whiteout",
            tar().file(".wh.d/a", "x").end(),
            "beneath a whiteout",
        ),
        (
            "a device that is a whiteout",
            tar().device("etc", 0, 0).end(),
            "taken for a whiteout",
        ),
        (
            "a component of 256 bytes",
            tar().pax(&[("path", long.as_bytes())]).file("a", "").end(),
            "more than 255 bytes",
        ),
        (
            "600 components",
            tar()
                .pax(&[("path", format!("{deep}a").as_bytes())])
                .file("a", "")
                .end(),
            "more than 512 components",
        ),
        (
            "a whiteout through a symlink",
            tar().symlink("s", "..").file("s/../.wh.x", "").end(),
            "a path with `..`",
        ),
        (
            "an attribute of 300 bytes",
            tar()
                .pax(&[(&format!("SCHILY.xattr.user.{long}"), b"v")])
                .file("a", "")
                .end(),
            "name of more than 255 bytes",
        ),
        (
            "an attribute of no namespace",
            tar()
                .pax(&[("SCHILY.xattr.nonsense", b"v")])
                .file("a", "")
                .end(),
            "can't set the attribute nonsense",
        ),
        (
            "an ACL that is none",
            tar()
                .with_xattrs("a", EntryKind::File, &[("system.posix_acl_access", b"acl")])
                .end(),
            "can't set the attribute system.posix_acl_access",
        ),
    ]
}

fn corpus() -> Vec<Row> {
    [streams(), headers(), paths()].concat()
}

/// Threads and descriptors of this process that have to do with unpacking.
fn open_in(place: &Place) -> Vec<String> {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .filter(|target| target.starts_with(place.root()))
        .map(|target| target.display().to_string())
        .collect()
}

#[test]
fn every_bad_archive_has_its_error() {
    let corpus = corpus();
    assert!(corpus.len() >= 100, "{}", corpus.len());
    for (name, archive, expected) in corpus {
        for writers in [1, 3] {
            let place = Place::new();
            let mut options = options();
            options.writers = writers;
            let start = Instant::now();
            let error = place.refused(&archive, &options);
            assert!(error.contains(expected), "{name}: {error}");
            assert!(start.elapsed() < Duration::from_secs(5), "{name}");
            assert!(open_in(&place).is_empty(), "{name}: {:?}", open_in(&place));
            // What is left is the caller's to remove, and can be.
            std::fs::remove_dir_all(place.root()).unwrap();
        }
    }
}

#[test]
fn every_truncation_of_a_layer_is_noticed() {
    // Where the cut leaves whole entries, only the digest can tell; everywhere else the archive does.
    let tar = Tar::new().dir("d").file("d/f", &"x".repeat(700)).end();
    for length in (0..tar.len()).filter(|length| length % 512 != 0) {
        let error = Place::new().refused(&tar[..length], &options());
        assert!(error.contains("truncated"), "{length}: {error}");
    }
}

fn limited(budgets: Budgets) -> Options {
    let mut options = options();
    options.budgets = budgets;
    options
}

/// A stream of which not all has to be in memory.
struct Endless<F>(F, Vec<u8>, usize);

impl<F: FnMut() -> Option<Vec<u8>>> Read for Endless<F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.2 == self.1.len() {
            match (self.0)() {
                Some(next) => (self.1, self.2) = (next, 0),
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.1.len() - self.2);
        buf[..n].copy_from_slice(&self.1[self.2..self.2 + n]);
        self.2 += n;
        Ok(n)
    }
}

fn refused_stream(stream: impl Read + Send, options: &Options) -> String {
    let place = Place::new();
    let root = std::fs::File::open(place.root()).unwrap();
    let start = Instant::now();
    let result = unpack(stream, root.as_fd(), options, None, None, &|_| {});
    assert!(start.elapsed() < Duration::from_secs(60));
    result.unwrap_err().to_string()
}

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}

#[test]
fn ten_million_entries_end_at_the_budget() {
    let budgets = Budgets {
        entries: 20_000,
        ..Budgets::default()
    };
    let mut count = 0;
    let endless = Endless(
        move || {
            count += 1;
            Some(Tar::new().symlink(&format!("l{count}"), "t").0)
        },
        Vec::new(),
        0,
    );
    let error = refused_stream(endless, &limited(budgets));
    assert!(error.contains("more than 20000 entries"), "{error}");
}

#[test]
fn what_waits_for_the_end_is_bounded() {
    let budgets = Budgets {
        deferred_bytes: 1 << 20,
        ..Budgets::default()
    };
    for flavour in ["whiteouts", "links", "marks"] {
        let mut count = 0;
        let endless = Endless(
            move || {
                count += 1;
                let name = format!("{}{count}", "n".repeat(150));
                Some(match flavour {
                    "whiteouts" => Tar::new().file(&format!("d/.wh.{name}"), "").0,
                    "links" => Tar::new().link(&format!("d/{name}"), "missing").0,
                    _ => Tar::new().file(&format!("{name}/.wh..wh..opq"), "").0,
                })
            },
            Vec::new(),
            0,
        );
        let error = refused_stream(endless, &limited(budgets.clone()));
        assert!(
            error.contains("bytes of directories, hard links and whiteouts"),
            "{error}"
        );
    }
}

#[test]
fn bombs_end_at_the_budget_and_memory_stays_bounded() {
    let budgets = || Budgets {
        ratio_from: 64 << 20,
        ..Budgets::default()
    };
    let zeros = vec![0; 1 << 20];
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut encoder = Encoder::new(Vec::new(), compression, None).unwrap();
        let header = Tar::new().header(b'0', b"bomb", 4 << 30, |_| {}).0;
        encoder.write_all(&header).unwrap();
        for _ in 0..256 {
            encoder.write_all(&zeros).unwrap();
        }
        let bomb = encoder.finish().unwrap().0;
        let error = refused_stream(&bomb[..], &limited(budgets()));
        assert!(error.contains("more than 200 times its size"), "{error}");
        let bytes = Budgets {
            unpacked_bytes: 100 << 20,
            ..Budgets::default()
        };
        let error = refused_stream(&bomb[..], &limited(bytes));
        assert!(error.contains("more than 104857600 bytes"), "{error}");
    }
    // Zeros for ever behind the end of the archive.
    let trailing = Budgets {
        trailing_bytes: 64 << 20,
        ..Budgets::default()
    };
    let endless = Endless(|| Some(vec![0; 1 << 20]), Vec::new(), 0);
    let error = refused_stream(endless, &limited(trailing));
    assert!(
        error.contains("bytes after the end of the archive"),
        "{error}"
    );
    assert!(
        peak_memory() < 700,
        "{} MiB, the tests' own buffers included",
        peak_memory()
    );
}

#[test]
fn a_hostile_mix_of_sizes_does_not_stall_the_pipeline() {
    // Small files keep buffers while large ones need them; long headers lie in between.
    let mut tar = Tar::new();
    for i in 0..60 {
        tar = tar.file(&format!("small{i}"), "s");
        let value = vec![b'v'; 60_000];
        tar = tar.pax(&[
            ("SCHILY.xattr.user.a", &value),
            ("SCHILY.xattr.user.b", &value),
        ]);
        tar = tar.add(&entry(b"", EntryKind::Symlink(b"x".to_vec()), 0), b"");
        tar.0.truncate(tar.0.len() - 512);
        tar = tar.file(&format!("whole{i}"), &"w".repeat(262_144));
        tar = tar.file(&format!("large{i}"), &"l".repeat(700_000));
    }
    for writers in [1, 2, 4] {
        let place = Place::new();
        let mut options = options();
        options.writers = writers;
        // ext4 holds one block of attributes: they are too large, which is an error, not a stall.
        let start = Instant::now();
        match place.try_unpack(&tar.clone().end(), &options) {
            Ok(_) => {}
            Err(e) => assert!(e.to_string().contains("can't set the attribute"), "{e}"),
        }
        assert!(start.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn an_error_of_the_reader_is_told() {
    struct Fails(usize);
    impl Read for Fails {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::Error::other("the line broke"));
            }
            self.0 -= 1;
            let header = Tar::new().header(b'0', b"f", 1 << 30, |_| {}).0;
            buf[..512].copy_from_slice(&header);
            Ok(512)
        }
    }
    let error = refused_stream(Fails(1), &options());
    assert!(error.contains("the line broke"), "{error}");
}

#[test]
fn a_full_disk_is_told_and_ends_everything() {
    struct Full;
    impl rovl::store::unpack::FileSink for Full {
        fn fill(
            &self,
            _: &rovl::store::unpack::FileFacts<'_>,
            _: std::os::fd::BorrowedFd<'_>,
        ) -> io::Result<bool> {
            Err(rustix::io::Errno::NOSPC.into())
        }
        fn written(&self, _: &rovl::store::unpack::FileFacts<'_>) -> io::Result<()> {
            Ok(())
        }
    }
    let place = Place::new();
    let root = std::fs::File::open(place.root()).unwrap();
    for size in [10, 3_000_000] {
        let mut count = 0;
        let endless = Endless(
            move || {
                count += 1;
                Some(
                    Tar::new()
                        .file(&format!("f{size}-{count}"), &"x".repeat(size))
                        .0,
                )
            },
            Vec::new(),
            0,
        );
        let result = unpack(
            endless,
            root.as_fd(),
            &options(),
            None,
            Some(&Full),
            &|_| {},
        );
        let error = result.unwrap_err().to_string();
        assert!(error.contains("No space left"), "{error}");
    }
}
