//! The way back: directories into archives.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;
use rovl::format::keys::Namespace;
use rovl::store::codec::budget::Budgets;
use rovl::store::codec::digest::Digest;
use rovl::store::codec::tar::{Entry, EntryKind, Reader, Time};
use rovl::store::codec::tar_split;
use rovl::store::pack::{Options, Summary, pack};
use rovl::store::unpack::{IdMap, IdRange, Refused, WhiteoutForm, open_beneath};

use crate::archive::{Tar, entry};
use crate::place::{Place, options, set_xattr};

fn packed_with(root: &Path, how: &Options) -> Result<(Vec<u8>, Summary), String> {
    let root = File::open(root).unwrap();
    let (mut out, mut record) = (Vec::new(), Vec::new());
    let summary =
        pack(root.as_fd(), how, &mut out, Some(&mut record)).map_err(|e| e.to_string())?;
    assert_eq!(summary.diff_id.0, Digest::of(&out));
    assert_eq!(summary.tar_bytes, out.len() as u64);
    let mut again = Vec::new();
    tar_split::assemble(&record[..], |p| open_beneath(root.as_fd(), p), &mut again).unwrap();
    assert!(again == out, "the record gives another archive");
    Ok((out, summary))
}

fn packed(place: &Place) -> Vec<u8> {
    packed_with(&place.root(), &Options::new(Namespace::Trusted))
        .unwrap()
        .0
}

fn entries(archive: &[u8]) -> Vec<Entry> {
    let mut reader = Reader::new(archive, &Budgets::default());
    std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
}

fn names(archive: &[u8]) -> Vec<String> {
    entries(archive)
        .iter()
        .map(|e| String::from_utf8_lossy(&e.path).into_owned())
        .collect()
}

/// Unpacks what was packed: the trees are equal, and packing that one gives the same bytes.
fn assert_survives(place: &Place) -> Vec<u8> {
    let archive = packed(place);
    let other = Place::new();
    other.unpack(&archive);
    assert_eq!(
        without_whiteout_attributes(place),
        without_whiteout_attributes(&other)
    );
    assert!(
        packed(&other) == archive,
        "packed again it is another archive"
    );
    archive
}

/// Time and mode of a whiteout mean nothing.
fn without_whiteout_attributes(place: &Place) -> BTreeMap<String, String> {
    let mut all = place.listing();
    for line in all.values_mut() {
        let words: Vec<&str> = line.split(' ').collect();
        let is_device = u32::from_str_radix(words[0], 8).unwrap() & 0o170_000 == 0o020_000;
        if is_device && words[3] == "0" {
            *line = "whiteout".to_owned();
        }
    }
    all
}

#[test]
fn a_tree_survives_with_all_its_attributes() {
    let place = Place::new();
    let mut odd = entry(b"d/\xff\xfe", EntryKind::File, 3);
    (odd.mode, odd.uid, odd.gid) = (0o4755, 70_000, 3_000_000);
    odd.mtime = Time {
        sec: -77,
        nsec: 123_456_789,
    };
    odd.xattrs = vec![(b"user.x".to_vec(), b"=\n\0".to_vec())];
    let long = format!("{}/{}", "l".repeat(200), "m".repeat(250));
    let tar = Tar::new()
        .dir("./")
        .add(&odd, b"odd")
        .file(&long, "long")
        .symlink("s", &"t".repeat(300))
        .device("null", 1, 3)
        .add(&entry(b"fifo", EntryKind::Fifo, 0), b"")
        .file("d/first", "both")
        .link("z-hard", "d/first")
        .file("d/.wh.gone", "")
        .file("o/.wh..wh..opq", "")
        .with_xattrs(
            "nested",
            EntryKind::Dir,
            &[("trusted.overlay.opaque", b"y")],
        )
        .end();
    place.unpack(&tar);
    let archive = assert_survives(&place);
    let all = entries(&archive);
    let find = |path: &[u8]| all.iter().find(|e| e.path == path).unwrap();
    assert_eq!(find(b"d/\xff\xfe"), &odd);
    assert_eq!(
        find(b"z-hard").kind,
        EntryKind::HardLink(b"d/first".to_vec())
    );
    let escaped = &find(b"nested/").xattrs;
    assert_eq!(escaped[0].0, b"trusted.overlay.opaque");
}

#[test]
fn entries_are_sorted_and_marks_come_first() {
    let place = Place::new();
    let tar = Tar::new()
        .file("b", "")
        .file("a/z", "")
        .file("a/.wh..wh..opq", "")
        .file("a.b", "")
        .file(".wh.hidden", "")
        .end();
    place.unpack(&tar);
    let expected = [
        "./",
        ".wh.hidden",
        "a/",
        "a/.wh..wh..opq",
        "a/z",
        "a.b",
        "b",
    ];
    let mut names = names(&packed(&place));
    assert_eq!(names.remove(0), expected[0]);
    assert_eq!(names, expected[1..]);
}

#[test]
fn whiteouts_of_every_form_are_read() {
    let tar = Tar::new()
        .file("d/.wh.x", "")
        .file("d/y", "")
        .file("o/.wh..wh..opq", "")
        .end();
    let reference = {
        let place = Place::new();
        place.unpack(&tar);
        names(&packed(&place))
    };
    let forms = [
        (WhiteoutForm::Xattr, Namespace::Trusted),
        (WhiteoutForm::Xattr, Namespace::User),
        (WhiteoutForm::Aufs, Namespace::Trusted),
        (WhiteoutForm::Device, Namespace::User),
    ];
    for (form, namespace) in forms {
        let place = Place::new();
        let mut unpacking = options();
        (unpacking.whiteouts, unpacking.namespace) = (form, namespace);
        place.unpack_with(&tar, &unpacking);
        let mut packing = Options::new(namespace);
        packing.aufs_whiteouts = form == WhiteoutForm::Aufs;
        let (archive, _) = packed_with(&place.root(), &packing).unwrap();
        assert_eq!(names(&archive), reference, "{form:?}");
    }
    let place = Place::new();
    fs::create_dir(place.path("o")).unwrap();
    set_xattr(&place.path("o"), "user.fuseoverlayfs.opaque", b"y");
    let archive = packed(&place);
    assert_eq!(names(&archive), ["./", "o/", "o/.wh..wh..opq"]);
    assert!(entries(&archive).iter().all(|e| e.xattrs.is_empty()));
}

#[test]
fn a_whiteout_where_none_may_be_is_a_file() {
    let place = Place::new();
    place.write("f", "");
    set_xattr(&place.path("f"), "trusted.overlay.whiteout", b"y");
    assert_eq!(names(&packed(&place)), ["./", "f"]);
}

#[test]
fn sockets_are_skipped_and_counted() {
    let place = Place::new();
    let _socket = std::os::unix::net::UnixListener::bind(place.path("s")).unwrap();
    let (archive, summary) = packed_with(&place.root(), &Options::new(Namespace::Trusted)).unwrap();
    assert_eq!(names(&archive), ["./"]);
    assert_eq!(summary.sockets, 1);
}

#[test]
fn times_are_cut_to_source_date_epoch() {
    let place = Place::new();
    let mut late = entry(b"late", EntryKind::File, 0);
    late.mtime = Time { sec: 5000, nsec: 5 };
    let tar = Tar::new().file("early", "").add(&late, b"").end();
    place.unpack(&tar);
    let mut how = Options::new(Namespace::Trusted);
    how.latest = Some(2000);
    let all = entries(&packed_with(&place.root(), &how).unwrap().0);
    let times: Vec<_> = all.iter().map(|e| (e.mtime.sec, e.mtime.nsec)).collect();
    assert_eq!(times, [(2000, 0), (1000, 0), (2000, 0)]);
}

#[test]
fn what_belongs_to_this_machine_stays_here() {
    let place = Place::new();
    place.write("f", "");
    for key in [
        "user.kept",
        "trusted.kept",
        "trusted.overlay.origin",
        "security.nonsense",
    ] {
        set_xattr(&place.path("f"), key, b"v");
    }
    let all = entries(&packed(&place));
    let keys: Vec<_> = all[1]
        .xattrs
        .iter()
        .map(|(key, _)| key.as_slice())
        .collect();
    assert_eq!(keys, [&b"trusted.kept"[..], b"user.kept"]);
}

#[test]
fn what_is_not_there_is_an_error() {
    let how = Options::new(Namespace::Trusted);
    let refused = |make: &dyn Fn(&Place)| {
        let place = Place::new();
        make(&place);
        packed_with(&place.root(), &how).unwrap_err()
    };
    let error = refused(&|place| {
        place.write("f", "");
        set_xattr(&place.path("f"), "trusted.overlay.metacopy", b"");
    });
    assert!(
        error.contains("\"f\"") && error.contains("metacopy"),
        "{error}"
    );
    let error = refused(&|place| {
        fs::create_dir(place.path("d")).unwrap();
        set_xattr(&place.path("d"), "trusted.overlay.redirect", b"/other");
    });
    assert!(error.contains("redirect"), "{error}");
    let error = refused(&|place| place.write(".wh.f", ""));
    assert!(error.contains(".wh."), "{error}");
}

#[test]
fn owners_and_overrides_go_back() {
    let mut file = entry(b"f", EntryKind::File, 0);
    (file.uid, file.gid, file.mode) = (7, 8, 0o4511);
    let tar = Tar::new().dir("./").add(&file, b"").end();
    let range = |container, host| IdRange {
        container,
        host,
        count: 1000,
    };
    let ids = IdMap {
        uids: vec![range(0, 100_000)],
        gids: vec![range(0, 200_000)],
    };
    let place = Place::new();
    let mut unpacking = options();
    unpacking.ids = ids.clone();
    place.unpack_with(&tar, &unpacking);
    let mut packing = Options::new(Namespace::Trusted);
    packing.ids = ids;
    let all = entries(&packed_with(&place.root(), &packing).unwrap().0);
    assert_eq!(all[1], file);
    packing.ids.uids[0].host = 5;
    let error = packed_with(&place.root(), &packing).unwrap_err();
    assert!(error.contains("not in the id map"), "{error}");

    let place = Place::new();
    let mut unpacking = options();
    (unpacking.refused, unpacking.namespace) = (Refused::OverrideStat, Namespace::User);
    place.unpack_with(&tar, &unpacking);
    let mut packing = Options::new(Namespace::User);
    packing.override_stat = true;
    let (archive, _) = packed_with(&place.root(), &packing).unwrap();
    assert!(archive == tar, "the same archive comes out");
}

#[test]
fn holes_come_out_as_plain_data() {
    let place = Place::new();
    let file = File::create(place.path("s")).unwrap();
    file.set_len(100_000).unwrap();
    let archive = packed(&place);
    assert!(archive.len() > 100_000);
    assert_eq!(entries(&archive)[1].size, 100_000);
}

#[derive(Clone, Debug)]
enum Node {
    File(Vec<u8>),
    Symlink(String),
    Whiteout,
    Dir(BTreeMap<String, Node>, bool),
}

fn tree() -> impl Strategy<Value = BTreeMap<String, Node>> {
    let leaf = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..3000).prop_map(Node::File),
        "[a-z/.]{1,150}".prop_map(Node::Symlink),
        Just(Node::Whiteout),
    ];
    let node = leaf.prop_recursive(4, 24, 5, |inner| {
        let children = proptest::collection::btree_map("[a-zé]{1,130}", inner, 0..5);
        (children, any::<bool>()).prop_map(|(children, opaque)| Node::Dir(children, opaque))
    });
    proptest::collection::btree_map("[a-z]{1,40}", node, 0..6)
}

fn build(at: &Path, children: &BTreeMap<String, Node>, seed: &mut i64, opaque: bool) {
    for (name, node) in children {
        // 251 bytes are the most that a whiteout can hide.
        let name: String = name.chars().take(120).collect();
        let path = at.join(&name);
        *seed += 1;
        match node {
            Node::File(body) => fs::write(&path, body).unwrap(),
            Node::Symlink(target) => symlink(target, &path).unwrap(),
            Node::Whiteout if opaque => continue,
            Node::Whiteout => {
                let kind = rustix::fs::FileType::CharacterDevice;
                let mode = rustix::fs::Mode::empty();
                rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
                continue;
            }
            Node::Dir(children, opaque) => {
                fs::create_dir(&path).unwrap();
                if *opaque {
                    set_xattr(&path, "trusted.overlay.opaque", b"y");
                }
                build(&path, children, seed, *opaque);
            }
        }
        let fd_path = path.as_os_str().as_bytes();
        if !path.is_symlink() {
            let mode = [0o644, 0o4755, 0o000, 0o1777, 0o600][usize::try_from(*seed % 5).unwrap()];
            std::os::unix::fs::chown(&path, Some(u32::try_from(*seed).unwrap()), Some(9)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let time = rovl::sys::fs::TimeSpec::At {
            sec: *seed * 1_000_003 - 20_000_000,
            nsec: u32::try_from(*seed % 3).unwrap() * 500,
        };
        let name = std::ffi::OsStr::from_bytes(fd_path);
        rovl::sys::fs::utimens_at(rustix::fs::CWD, name, time, time).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_tree_survives(tree in tree()) {
        let place = Place::new();
        build(&place.root(), &tree, &mut 0, false);
        assert_survives(&place);
    }
}
