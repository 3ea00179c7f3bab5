//! The rules of unpacking, one a test.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::sync::Mutex;

use rovl::format::keys::Namespace;
use rovl::store::codec::compress::{Compression, Encoder};
use rovl::store::codec::digest::Digest;
use rovl::store::codec::tar::{EntryKind, Time};
use rovl::store::unpack::{
    FileFacts, FileSink, IdMap, IdRange, Refused, RefusedXattrs, WhiteoutForm, unpack,
};

use crate::archive::{Tar, entry};
use crate::place::{Place, options, set_xattr};

#[test]
fn objects_of_every_kind_get_all_their_attributes() {
    let place = Place::new();
    let mut file = entry(b"d/file", EntryKind::File, 3);
    (file.mode, file.uid, file.gid) = (0o6755, 1000, 1001);
    file.mtime = Time {
        sec: -5,
        nsec: 250_000_000,
    };
    file.xattrs = vec![
        (
            b"security.capability".to_vec(),
            b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
        ),
        (b"user.x".to_vec(), b"\0v".to_vec()),
    ];
    let mut dir = entry(b"d/", EntryKind::Dir, 0);
    (dir.mode, dir.uid) = (0o1750, 7);
    dir.mtime = Time {
        sec: 4_000_000_000,
        nsec: 1,
    };
    let mut block = entry(
        b"block",
        EntryKind::Block {
            major: 7,
            minor: 300,
        },
        0,
    );
    (block.mode, block.gid) = (0o660, 6);
    let mut link = entry(b"link", EntryKind::Symlink(b"/etc/../x".to_vec()), 0);
    (link.uid, link.mtime.nsec) = (5, 5);
    let tar = Tar::new()
        .add(&dir, b"")
        .add(&file, b"abc")
        .add(&block, b"")
        .add(&link, b"")
        .add(&entry(b"fifo", EntryKind::Fifo, 0), b"")
        .link("d/hard", "./d/file")
        .end();
    let done = place.unpack(&tar);
    assert_eq!(
        (done.summary.entries, done.summary.files, done.summary.bytes),
        (6, 1, 3)
    );
    let meta = place.meta("d/file");
    assert_eq!(
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink()),
        (0o6755, 1000, 1001, 2)
    );
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (-5, 250_000_000));
    assert_eq!(place.xattr("d/file", "user.x").unwrap(), b"\0v");
    assert_eq!(
        place.xattr("d/file", "security.capability").unwrap().len(),
        20
    );
    let meta = place.meta("d");
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o1750, 7));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (4_000_000_000, 1));
    let meta = place.meta("block");
    assert!(meta.file_type().is_block_device());
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o660, 6));
    assert_eq!(meta.rdev(), rustix::fs::makedev(7, 300));
    let meta = place.meta("link");
    assert_eq!((meta.uid(), meta.mtime(), meta.mtime_nsec()), (5, 1000, 5));
    assert_eq!(
        fs::read_link(place.path("link")).unwrap().as_os_str(),
        "/etc/../x"
    );
    assert!(place.meta("fifo").file_type().is_fifo());
}

#[test]
fn a_whiteout_hides_wherever_it_stands() {
    for tar in [
        Tar::new()
            .dir("d")
            .file("d/.wh.gone", "")
            .file("d/here", "x"),
        Tar::new()
            .file("d/here", "x")
            .file("d/.wh.gone", "")
            .dir("d"),
    ] {
        let place = Place::new();
        let done = place.unpack(&tar.end());
        assert!(place.is_whiteout("d/gone"));
        assert_eq!(done.summary.whiteouts, 1);
        assert!(!place.path("d/.wh.gone").exists());
    }
}

#[test]
fn a_whiteout_counts_whatever_its_type() {
    let place = Place::new();
    let tar = Tar::new()
        .link(".wh.a", ".wh..wh.aufs")
        .dir(".wh.b")
        .symlink(".wh.c", "/etc/passwd")
        .file(".wh.d", "with content")
        .device(".wh.e", 1, 3);
    place.unpack(&tar.end());
    for name in ["a", "b", "c", "d", "e"] {
        assert!(place.is_whiteout(name), "{name}");
    }
}

#[test]
fn an_opaque_mark_counts_whatever_its_position() {
    for tar in [
        Tar::new()
            .dir("d")
            .file("d/.wh..wh..opq", "")
            .file("d/x", ""),
        Tar::new()
            .file("d/x", "")
            .dir("d")
            .file("d/.wh..wh..opq", ""),
    ] {
        let place = Place::new();
        place.unpack(&tar.end());
        assert!(place.is_opaque("d"));
        assert!(place.path("d/x").exists());
    }
}

#[test]
fn a_whiteout_in_an_opaque_directory_is_dropped() {
    let place = Place::new();
    let tar = Tar::new().file("d/.wh.x", "").file("d/.wh..wh..opq", "");
    let done = place.unpack(&tar.end());
    assert!(place.is_opaque("d"));
    assert!(fs::symlink_metadata(place.path("d/x")).is_err());
    assert_eq!(done.summary.whiteouts, 0);
}

#[test]
fn a_whiteout_and_a_directory_at_one_path_are_an_opaque_directory() {
    for tar in [
        Tar::new().file(".wh.d", "").dir("d").file("d/x", ""),
        Tar::new().dir("d").file("d/x", "").file(".wh.d", ""),
        Tar::new().file("d/x", "").file(".wh.d", ""),
    ] {
        let place = Place::new();
        place.unpack(&tar.end());
        assert!(place.is_opaque("d"));
        assert!(place.path("d/x").exists());
    }
}

#[test]
fn a_whiteout_beside_its_own_file_hides_only_what_is_below() {
    for tar in [
        Tar::new().file(".wh.a", "").file("a", "new"),
        Tar::new().file("a", "new").file(".wh.a", ""),
    ] {
        let place = Place::new();
        place.unpack(&tar.end());
        assert_eq!(fs::read(place.path("a")).unwrap(), b"new");
    }
}

#[test]
fn what_aufs_kept_for_itself_is_ignored() {
    let place = Place::new();
    let tar = Tar::new()
        .dir(".wh..wh.plnk")
        .file(".wh..wh.plnk/1.2", "content")
        .file(".wh..wh.aufs", "")
        .file("kept", "");
    place.unpack(&tar.end());
    assert_eq!(place.listing().len(), 2);
}

#[test]
fn whiteouts_have_other_forms_on_request() {
    let tar = Tar::new()
        .file("d/.wh.x", "")
        .file("o/.wh..wh..opq", "")
        .end();
    let mut wanted = options();
    wanted.whiteouts = WhiteoutForm::Aufs;
    let place = Place::new();
    place.unpack_with(&tar, &wanted);
    assert!(place.path("d/.wh.x").exists() && place.path("o/.wh..wh..opq").exists());
    wanted.whiteouts = WhiteoutForm::Xattr;
    wanted.namespace = Namespace::User;
    let place = Place::new();
    place.unpack_with(&tar, &wanted);
    assert!(place.xattr("d/x", "user.overlay.whiteout").is_some());
    assert_eq!(place.xattr("d", "user.overlay.opaque").unwrap(), b"x");
    assert_eq!(place.xattr("o", "user.overlay.opaque").unwrap(), b"y");
}

#[test]
fn implied_parents_are_roots_and_0755() {
    let place = Place::new();
    place.unpack(&Tar::new().file("a/b/c", "").end());
    for name in ["a", "a/b"] {
        let meta = place.meta(name);
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.gid()),
            (0o755, 0, 0)
        );
    }
    let place = Place::new();
    let mut dir = entry(b"a", EntryKind::Dir, 0);
    dir.mode = 0o700;
    place.unpack(&Tar::new().file("a/b/c", "").add(&dir, b"").end());
    assert_eq!(place.meta("a").mode() & 0o7777, 0o700);
    assert_eq!(place.meta("a").mtime(), 1000);
}

#[test]
fn the_root_gets_what_its_entry_says() {
    for name in ["./", "/", "."] {
        let place = Place::new();
        let mut root = entry(name.as_bytes(), EntryKind::Dir, 0);
        (root.mode, root.uid) = (0o711, 9);
        place.unpack(&Tar::new().add(&root, b"").file("./a", "").end());
        let meta = place.meta("");
        assert_eq!(
            (meta.mode() & 0o7777, meta.uid(), meta.mtime()),
            (0o711, 9, 1000)
        );
    }
}

#[test]
fn times_of_directories_come_last() {
    let place = Place::new();
    let tar = Tar::new()
        .dir("d")
        .dir("d/e")
        .file("d/e/f", "x")
        .link("d/l", "d/e/f")
        .file("d/.wh.w", "");
    place.unpack(&tar.end());
    assert_eq!(
        (place.meta("d").mtime(), place.meta("d/e").mtime()),
        (1000, 1000)
    );
}

#[test]
fn a_directory_stays_where_one_is_and_anything_else_is_replaced() {
    let place = Place::new();
    fs::create_dir_all(place.path("stays/inner")).unwrap();
    fs::create_dir_all(place.path("goes/deep/deeper")).unwrap();
    place.write("goes/deep/file", "");
    place.write("file", "old");
    symlink(place.outside(), place.path("leads-out")).unwrap();
    symlink(place.outside().join("secret"), place.path("secret")).unwrap();
    let tar = Tar::new()
        .dir("stays")
        .file("goes", "a file now")
        .dir("file")
        .dir("leads-out")
        .file("leads-out/secret", "mine")
        .file("secret", "mine");
    place.unpack(&tar.end());
    assert!(place.meta("stays/inner").is_dir());
    assert_eq!(place.meta("stays").mtime(), 1000);
    assert!(place.meta("goes").is_file() && place.meta("file").is_dir());
    assert!(place.meta("leads-out").is_dir() && place.meta("secret").is_file());
}

#[test]
fn hard_links_find_targets_that_come_later() {
    let place = Place::new();
    let tar = Tar::new()
        .link("z", "y")
        .link("d/y2", "/z")
        .link("y", "./d/x")
        .file("d/x", "content")
        .symlink("s", "nowhere")
        .link("s2", "s");
    let done = place.unpack(&tar.end());
    assert_eq!(place.meta("d/x").nlink(), 4);
    assert_eq!(place.meta("z").ino(), place.meta("d/x").ino());
    assert!(place.meta("s2").is_symlink());
    assert_eq!(done.summary.bytes, 7);
}

#[test]
fn a_path_through_a_symlink_stays_in_the_layer() {
    let place = Place::new();
    let outside = place.outside();
    let tar = Tar::new()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/a", "x")
        .symlink("abs", "/usr/lib")
        .file("abs/b", "y")
        .symlink("up", "../../../../usr/lib")
        .file("up/c", "z")
        .file("up/.wh.d", "")
        .link("up/e", "lib/a")
        .dir(outside.strip_prefix("/").unwrap().to_str().unwrap())
        .symlink("out", outside.to_str().unwrap())
        .file("out/secret", "mine");
    place.unpack(&tar.end());
    for name in ["usr/lib/a", "usr/lib/b", "usr/lib/c", "usr/lib/e"] {
        assert!(place.meta(name).is_file(), "{name}");
    }
    assert!(place.is_whiteout("usr/lib/d"));
    let inner = format!("{}/secret", outside.strip_prefix("/").unwrap().display());
    assert_eq!(fs::read(place.path(&inner)).unwrap(), b"mine");
}

#[test]
fn overlay_attributes_are_escaped_and_labels_dropped() {
    let place = Place::new();
    let tar = Tar::new().with_xattrs(
        "d",
        EntryKind::Dir,
        &[
            ("trusted.overlay.opaque", b"y"),
            ("user.overlay.redirect", b"/etc"),
            ("trusted.overlay.overlay.x", b"1"),
            ("user.fuseoverlayfs.opaque", b"y"),
            ("user.containers.override_stat", b"0:0:0755"),
            ("security.selinux", b"label"),
            ("trusted.kept", b"k"),
        ],
    );
    let done = place.unpack(&tar.end());
    assert_eq!(done.summary.dropped_xattrs, 3);
    assert!(!place.is_opaque("d"));
    let rows = [
        ("trusted.overlay.overlay.opaque", &b"y"[..]),
        // The other namespace is the image's own: some store within it may use it.
        ("user.overlay.redirect", b"/etc"),
        ("trusted.overlay.overlay.overlay.x", b"1"),
        ("trusted.kept", b"k"),
    ];
    for (key, value) in rows {
        assert_eq!(place.xattr("d", key).as_deref(), Some(value), "{key}");
    }
    for key in [
        "user.fuseoverlayfs.opaque",
        "user.containers.override_stat",
        "security.selinux",
    ] {
        assert_eq!(place.xattr("d", key), None, "{key}");
    }
}

#[test]
fn a_default_acl_is_not_inherited_by_what_the_archive_brings() {
    let acl = rovl::format::acl::encode(&rovl::format::acl::Acl {
        entries: [
            (rovl::format::acl::AclTag::UserObj, 7),
            (rovl::format::acl::AclTag::User(4321), 7),
            (rovl::format::acl::AclTag::GroupObj, 5),
            (rovl::format::acl::AclTag::Mask, 7),
            (rovl::format::acl::AclTag::Other, 0),
        ]
        .map(|(tag, perm)| rovl::format::acl::AclEntry { tag, perm })
        .to_vec(),
    });
    let place = Place::new();
    let tar = Tar::new()
        .with_xattrs("d", EntryKind::Dir, &[("system.posix_acl_default", &acl)])
        .file("d/f", "x")
        .dir("d/e")
        .with_xattrs("own", EntryKind::File, &[("system.posix_acl_access", &acl)]);
    place.unpack(&tar.end());
    assert_eq!(
        place.xattr("d", "system.posix_acl_default").as_deref(),
        Some(&acl[..])
    );
    assert_eq!(place.xattr("d/f", "system.posix_acl_access"), None);
    assert_eq!(place.xattr("d/e", "system.posix_acl_default"), None);
    assert_eq!(place.meta("d/f").mode() & 0o7777, 0o644);
    assert_eq!(
        place.xattr("own", "system.posix_acl_access").as_deref(),
        Some(&acl[..])
    );
}

#[test]
fn owners_go_through_the_id_map() {
    let range = |container, host, count| IdRange {
        container,
        host,
        count,
    };
    let mut mapped = options();
    mapped.ids = IdMap {
        uids: vec![range(0, 100_000, 1000), range(1000, 5000, 1)],
        gids: vec![range(0, 200_000, 1000)],
    };
    let mut file = entry(b"d/f", EntryKind::File, 0);
    (file.uid, file.gid) = (1000, 42);
    let place = Place::new();
    place.unpack_with(&Tar::new().add(&file, b"").end(), &mapped);
    let meta = place.meta("d/f");
    assert_eq!((meta.uid(), meta.gid()), (5000, 200_042));
    assert_eq!(
        (place.meta("d").uid(), place.meta("d").gid()),
        (100_000, 200_000)
    );
    file.uid = 1001;
    let tar = Tar::new().add(&file, b"").end();
    let error = Place::new().refused(&tar, &mapped);
    assert!(
        error.contains("owner 1001:42 is not in the id map"),
        "{error}"
    );
    mapped.refused = Refused::IgnoreOwner;
    let place = Place::new();
    place.unpack_with(&tar, &mapped);
    assert_eq!(place.meta("d/f").uid(), 0);
}

#[test]
fn owner_and_mode_are_recorded_where_they_can_not_be_given() {
    let mut recorded = options();
    recorded.refused = Refused::OverrideStat;
    recorded.namespace = Namespace::User;
    let mut file = entry(b"d/f", EntryKind::File, 0);
    (file.uid, file.gid, file.mode) = (1000, 42, 0o4511);
    let place = Place::new();
    place.unpack_with(
        &Tar::new().add(&file, b"").symlink("l", "x").end(),
        &recorded,
    );
    let stat = place.xattr("d/f", "user.containers.override_stat").unwrap();
    assert_eq!(stat, b"1000:42:4511");
    let meta = place.meta("d/f");
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o711));
    assert_eq!(
        place.xattr("d", "user.containers.override_stat").unwrap(),
        b"0:0:0755"
    );
}

#[test]
fn sparse_files_keep_their_holes() {
    let place = Place::new();
    let mut pieces = Tar::new()
        .pax(&[
            ("GNU.sparse.size", b"1073741824"),
            ("GNU.sparse.map", b"0,3,536870912,600000"),
        ])
        .raw(b'0', b"s", &[b"abc".to_vec(), vec![7; 600_000]].concat())
        .file("next", "n");
    pieces = pieces
        .pax(&[("GNU.sparse.size", b"1073741824"), ("GNU.sparse.map", b"")])
        .raw(b'0', b"empty", b"");
    let done = place.unpack(&pieces.end());
    assert_eq!(done.summary.bytes, (2 << 30) + 1);
    for name in ["s", "empty"] {
        assert_eq!(place.meta(name).len(), 1 << 30);
        assert!(place.meta(name).blocks() * 512 < 1 << 20, "{name}");
    }
    let mut file = fs::File::open(place.path("s")).unwrap();
    let mut body = vec![0; 5];
    use std::io::{Read, Seek, SeekFrom};
    file.read_exact(&mut body).unwrap();
    assert_eq!(body, b"abc\0\0");
    file.seek(SeekFrom::Start(536_870_912 + 599_999)).unwrap();
    file.read_exact(&mut body[..2]).unwrap();
    assert_eq!(body[..2], [7, 0]);
}

#[test]
fn what_follows_the_end_is_digested_and_recorded() {
    let place = Place::new();
    let mut tar = Tar::new().file("a", "x").end();
    tar.extend(vec![0; 9000]);
    tar.extend(b"and something else");
    place.unpack(&tar);
}

#[test]
fn compressed_layers_are_unpacked_and_digested_on_both_sides() {
    let tar = Tar::new().file("a", &"x".repeat(700_000)).end();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let mut encoder = Encoder::new(Vec::new(), compression, None).unwrap();
        std::io::Write::write_all(&mut encoder, &tar).unwrap();
        let (bytes, facts) = encoder.finish().unwrap();
        let place = Place::new();
        let done = place
            .try_unpack(&bytes, &options())
            .map_err(|e| e.to_string())
            .unwrap();
        assert_eq!(done.summary.source, facts);
        assert_eq!(done.summary.diff_id.0, Digest::of(&tar));
        assert!(place.reassemble(&done.record) == tar);
    }
}

/// Notes files, and fills those whose content is `"known"`, with something else to be seen by.
#[derive(Default)]
struct Notes {
    written: Mutex<Vec<(String, Option<Digest>, u64)>>,
}

impl FileSink for Notes {
    fn fill(
        &self,
        file: &FileFacts<'_>,
        target: std::os::fd::BorrowedFd<'_>,
    ) -> std::io::Result<bool> {
        if file.digest != Some(Digest::of(b"known")) {
            return Ok(false);
        }
        rustix::io::write(target, b"KNOWN")?;
        Ok(true)
    }

    fn written(&self, file: &FileFacts<'_>) -> std::io::Result<()> {
        let path = String::from_utf8_lossy(file.path).into_owned();
        let note = (path, file.digest, file.size);
        self.written.lock().unwrap().push(note);
        Ok(())
    }
}

#[test]
fn the_store_is_told_of_files_and_may_fill_them() {
    let big = "b".repeat(3_000_000);
    let tar = Tar::new()
        .file("./d/known", "known")
        .file("small", "s")
        .file("big", &big)
        .end();
    let place = Place::new();
    let root = fs::File::open(place.root()).unwrap();
    let notes = Notes::default();
    let mut hashing = options();
    hashing.hash_files = true;
    let fd = std::os::fd::AsFd::as_fd(&root);
    unpack(&tar[..], fd, &hashing, None, Some(&notes), &|_| {}).unwrap();
    let mut written = notes.written.into_inner().unwrap();
    written.sort();
    assert_eq!(
        written,
        [
            (
                "big".to_owned(),
                Some(Digest::of(big.as_bytes())),
                3_000_000
            ),
            ("d/known".to_owned(), Some(Digest::of(b"known")), 5),
            ("small".to_owned(), Some(Digest::of(b"s")), 1),
        ]
    );
    assert_eq!(fs::read(place.root().join("d/known")).unwrap(), b"KNOWN");
    // It has its attributes all the same.
    assert_eq!(place.meta("d/known").mode(), place.meta("small").mode());
}

#[test]
fn many_files_of_every_size_arrive_whole() {
    let place = Place::new();
    let mut tar = Tar::new();
    let mut expected = Vec::new();
    for i in 0..1500_usize {
        let size = [0, 1, 511, 4096, 70_000, 262_144, 262_145, 1_000_000][(i * 7 + i / 5) % 8]
            / (1 + i % 3);
        let body = format!("{i:08}").repeat(size / 8 + 1)[..size].to_owned();
        let name = format!("d{}/f{i}", i % 13);
        tar = tar.file(&name, &body);
        expected.push((name, body));
    }
    place.unpack(&tar.end());
    for (name, body) in expected {
        assert!(
            fs::read(place.path(&name)).unwrap() == body.as_bytes(),
            "{name}"
        );
    }
}

#[test]
fn refused_attributes_are_errors_unless_they_may_be_dropped() {
    // A symlink can't have user attributes, and these are never left out.
    let kind = || EntryKind::Symlink(b"x".to_vec());
    let tar = Tar::new()
        .with_xattrs("l", kind(), &[("user.x", b"1")])
        .end();
    let mut dropping = options();
    dropping.refused_xattrs = RefusedXattrs::Drop;
    for options in [options(), dropping.clone()] {
        let error = Place::new().refused(&tar, &options);
        assert!(error.contains("can't set the attribute user.x"), "{error}");
    }
    let tar = Tar::new()
        .with_xattrs("f", EntryKind::File, &[("security.nonsense", b"1")])
        .end();
    let place = Place::new();
    let done = place.unpack_with(&tar, &dropping);
    // Root may set it; what a plain user may not is tested below.
    assert_eq!(done.summary.dropped_xattrs, 0);
    assert_eq!(
        place.xattr("f", "security.nonsense").as_deref(),
        Some(&b"1"[..])
    );
}

#[test]
fn files_are_opened_beneath_the_root_only() {
    let place = Place::new();
    place.write("f", "content");
    symlink("/f", place.path("abs")).unwrap();
    symlink(place.outside().join("secret"), place.path("out")).unwrap();
    fs::create_dir(place.path("d")).unwrap();
    symlink("..", place.path("d/up")).unwrap();
    set_xattr(&place.path("f"), "user.x", b"1");
    let root = fs::File::open(place.root()).unwrap();
    let open = |path: &str| {
        rovl::store::unpack::open_beneath(std::os::fd::AsFd::as_fd(&root), path.as_bytes())
            .map(std::io::read_to_string)
    };
    for path in ["f", "./f", "/f", "../f", "d/up/f", "d/../../f"] {
        assert_eq!(open(path).unwrap().unwrap(), "content", "{path}");
    }
    for path in ["out", "d", "missing", "abs/x", "d/up"] {
        assert!(open(path).is_err(), "{path}");
    }
}

/// What the test below does once it is nobody.
fn as_nobody(root: &std::path::Path) {
    let root = fs::File::open(root).unwrap();
    let fd = || std::os::fd::AsFd::as_fd(&root);
    let mut file = entry(b"d/f", EntryKind::File, 4);
    (file.uid, file.gid, file.mode) = (0, 7, 0o640);
    let mut closed = entry(b"closed", EntryKind::Dir, 0);
    closed.mode = 0;
    let tar = Tar::new()
        .add(&file, b"body")
        .add(&closed, b"")
        .file("closed/in/f", "x")
        .file("d/.wh.w", "")
        .file("o/.wh..wh..opq", "")
        .link("hard", "d/f");
    let device = tar.clone().device("null", 1, 3).end();
    let trusted = [("trusted.x", &b"1"[..])];
    let with_trusted = tar
        .clone()
        .with_xattrs("t", EntryKind::File, &trusted)
        .end();
    let tar = tar.end();
    let sub = |name: &str| {
        rustix::fs::mkdirat(fd(), name, rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY;
        rustix::fs::openat(fd(), name, flags, rustix::fs::Mode::empty()).unwrap()
    };
    let attempt = |name: &str, tar: &[u8], options: &rovl::store::unpack::Options| {
        let dir = sub(name);
        let done = unpack(
            tar,
            std::os::fd::AsFd::as_fd(&dir),
            options,
            None,
            None,
            &|_| {},
        );
        done.map_err(|e| e.to_string())
    };
    let mut plain = options();
    plain.namespace = Namespace::User;
    let error = attempt("strict", &tar, &plain).unwrap_err();
    assert!(error.contains("Operation not permitted"), "{error}");
    plain.refused = Refused::IgnoreOwner;
    assert_eq!(attempt("ignore", &tar, &plain).unwrap().whiteouts, 1);
    let error = attempt("device", &device, &plain).unwrap_err();
    assert!(error.contains("making a device is refused"), "{error}");
    let error = attempt("trusted", &with_trusted, &plain).unwrap_err();
    assert!(
        error.contains("can't set the attribute trusted.x"),
        "{error}"
    );
    plain.refused_xattrs = RefusedXattrs::Drop;
    assert_eq!(
        attempt("dropped", &with_trusted, &plain)
            .unwrap()
            .dropped_xattrs,
        1
    );
    plain.refused = Refused::OverrideStat;
    attempt("recorded", &device, &plain).unwrap();
}

#[test]
fn a_plain_user_unpacks_too() {
    const PLACE: &str = "ROVL_TEST_AS_NOBODY";
    if let Some(root) = std::env::var_os(PLACE) {
        return as_nobody(root.as_ref());
    }
    let place = Place::new();
    let nobody = 65534;
    let base = place.root();
    let base = base.parent().unwrap();
    fs::set_permissions(base, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(place.root(), Some(nobody), Some(nobody)).unwrap();
    let output = std::os::unix::process::CommandExt::uid(
        &mut std::process::Command::new(std::env::current_exe().unwrap()),
        nobody,
    )
    .args(["--exact", "rules::a_plain_user_unpacks_too"])
    .env(PLACE, place.root())
    .output()
    .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    for name in ["ignore", "recorded"] {
        assert!(place.is_whiteout(&format!("{name}/d/w")));
        let key = "user.overlay.opaque";
        assert_eq!(
            place.xattr(&format!("{name}/o"), key).as_deref(),
            Some(&b"y"[..])
        );
        assert_eq!(
            fs::read(place.path(&format!("{name}/closed/in/f"))).unwrap(),
            b"x"
        );
        assert_eq!(place.meta(&format!("{name}/hard")).nlink(), 2);
    }
    assert_eq!(place.meta("ignore/d/f").uid(), nobody);
    assert_eq!(place.meta("ignore/closed").mode() & 0o7777, 0);
    let key = "user.containers.override_stat";
    let stat = |name: &str| String::from_utf8(place.xattr(name, key).unwrap()).unwrap();
    assert_eq!(stat("recorded/null"), "0:0:0644:char-1-3");
    assert_eq!(stat("recorded/d/f"), "0:7:0640");
    assert_eq!(stat("recorded/closed"), "0:0:0000");
    assert_eq!(stat("recorded/closed/in"), "0:0:0755");
}

/// A mount of the kernel's overlayfs, until it is dropped.
struct Overlay(std::path::PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        if let Err(e) = unmounted {
            eprintln!("can't unmount {}: {e}", self.0.display());
        }
    }
}

#[test]
fn the_kernel_shows_what_a_layer_means() {
    let tar = Tar::new()
        .file(".wh.gone", "")
        .file("dir/.wh.gone", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "")
        .file("replaced/new", "")
        .file(".wh.replaced", "")
        .with_xattrs("mine", EntryKind::Dir, &[("trusted.overlay.opaque", b"y")])
        .file("file-now", "");
    let tar = tar.end();
    for form in [WhiteoutForm::Device, WhiteoutForm::Xattr] {
        let (lower, upper, merged) = (Place::new(), Place::new(), Place::new());
        for dir in ["dir", "opaque", "replaced", "mine", "file-now"] {
            fs::create_dir(lower.path(dir)).unwrap();
            lower.write(&format!("{dir}/gone"), "");
        }
        lower.write("gone", "");
        let mut wanted = options();
        wanted.whiteouts = form;
        upper.unpack_with(&tar, &wanted);
        let layers = format!(
            "lowerdir={}:{}",
            upper.root().display(),
            lower.root().display()
        );
        let output = std::process::Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &layers])
            .arg(merged.root())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mount = Overlay(merged.root());
        let shown: Vec<String> = merged.listing().into_keys().collect();
        let expected = [
            "",
            "dir",
            "file-now",
            "mine",
            "mine/gone",
            "opaque",
            "opaque/new",
            "replaced",
            "replaced/new",
        ];
        assert_eq!(shown, expected, "{form:?}");
        assert_eq!(
            merged.xattr("mine", "trusted.overlay.opaque").as_deref(),
            Some(&b"y"[..])
        );
        drop(mount);
    }
}

#[test]
fn times_that_no_file_system_holds_are_cut_and_do_no_harm() {
    for sec in [i64::MAX, i64::MIN + 1, 1 << 40, -(1 << 40)] {
        let place = Place::new();
        let mut file = entry(b"d/f", EntryKind::File, 0);
        file.mtime = Time {
            sec,
            nsec: 999_999_999,
        };
        let mut dir = entry(b"d", EntryKind::Dir, 0);
        dir.mtime = file.mtime;
        place.unpack(&Tar::new().add(&dir, b"").add(&file, b"").end());
        for name in ["d", "d/f"] {
            assert_eq!(place.meta(name).mtime() < 0, sec < 0, "{sec}");
        }
    }
}

#[test]
fn groups_are_not_inherited_from_directories() {
    for (mode, gid, inner) in [(0o2755, 77, false), (0o755, 77, false), (0o755, 0, true)] {
        let place = Place::new();
        std::os::unix::fs::chown(place.root(), None, Some(gid)).unwrap();
        fs::set_permissions(
            place.root(),
            std::os::unix::fs::PermissionsExt::from_mode(mode),
        )
        .unwrap();
        if inner {
            fs::create_dir(place.path("d")).unwrap();
            std::os::unix::fs::chown(place.path("d"), None, Some(78)).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o2755);
            fs::set_permissions(place.path("d"), mode).unwrap();
        }
        place.unpack(
            &Tar::new()
                .file("d/f", "x")
                .dir("d/e")
                .symlink("d/s", "x")
                .end(),
        );
        for name in ["d/f", "d/e", "d/s"] {
            assert_eq!(place.meta(name).gid(), 0, "{name}");
        }
        assert_eq!(place.meta("d/e").mode() & 0o7777, 0o755);
    }
}
