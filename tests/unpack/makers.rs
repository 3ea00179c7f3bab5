//! Archives made by other programs: the tree arrives, and the archive comes back bit by bit.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::place::{Place, listing, set_xattr};

/// A tree with something of everything that tar programs get wrong.
fn source(at: &Path, long: bool) {
    let make = |name: &str, body: &[u8]| fs::write(at.join(name), body).unwrap();
    fs::create_dir_all(at.join("dir/inner")).unwrap();
    fs::create_dir(at.join("empty")).unwrap();
    make("plain", b"content");
    make("nothing", b"");
    make("dir/exact", &[5; 1024]);
    make("dir/inner/odd", &[6; 513]);
    make(
        "big",
        &(0..300_000_u32)
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<u8>>(),
    );
    fs::hard_link(at.join("plain"), at.join("dir/hard")).unwrap();
    symlink("../plain", at.join("dir/soft")).unwrap();
    if long {
        let deep = format!("{}/{}", "long".repeat(30), "name".repeat(40));
        fs::create_dir(at.join("long".repeat(30))).unwrap();
        make(&deep, b"deep");
        fs::hard_link(at.join(&deep), at.join("to-deep")).unwrap();
        symlink("target".repeat(30), at.join("long-soft")).unwrap();
    }
    std::os::unix::fs::chown(at.join("big"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(at.join("big"), fs::Permissions::from_mode(0o6711)).unwrap();
    fs::set_permissions(at.join("empty"), fs::Permissions::from_mode(0o1777)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000);
    for name in ["plain", "big", "empty", "dir/inner", "dir", ""] {
        File::open(at.join(name))
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
}

fn run(command: &mut Command) {
    let output = command.env("LC_ALL", "C.UTF-8").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
}

/// Without what a format can't hold: fractions of seconds and extended attributes.
fn coarse(all: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let line = |line: String| {
        let mut words: Vec<&str> = line.split(' ').collect();
        words[2] = words[2].split('.').next().unwrap();
        words.remove(4);
        words.join(" ")
    };
    all.into_iter()
        .map(|(name, text)| (name, line(text)))
        .collect()
}

/// Makes an archive of a tree with `make(archive, tree)`, unpacks it, compares.
fn assert_arrives(long: bool, exact: bool, prepare: impl Fn(&Path), make: impl Fn(&Path, &Path)) {
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    source(&tree, long);
    prepare(&tree);
    let archive = scratch.path().join("archive.tar");
    make(&archive, &tree);
    let place = Place::new();
    place.unpack(&fs::read(&archive).unwrap());
    let (expected, got) = (listing(&tree), listing(&place.root()));
    if exact {
        assert_eq!(expected, got);
    } else {
        assert_eq!(coarse(expected), coarse(got));
    }
}

fn nothing(_: &Path) {}

#[test]
fn of_gnu_tar_in_every_format() {
    for (format, long) in [
        ("v7", false),
        ("oldgnu", true),
        ("gnu", true),
        ("ustar", false),
        ("posix", true),
    ] {
        assert_arrives(long, format == "posix", nothing, |archive, tree| {
            let format = format!("--format={format}");
            run(Command::new("tar")
                .arg("-cf")
                .arg(archive)
                .arg(format)
                .arg("-C")
                .arg(tree)
                .arg("."));
        });
    }
}

#[test]
fn of_gnu_tar_with_extended_attributes() {
    let prepare = |tree: &Path| {
        set_xattr(&tree.join("plain"), "user.x", b"a\0b=\n%");
        set_xattr(&tree.join("empty"), "user.dir", b"1");
        let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        set_xattr(&tree.join("big"), "security.capability", capability);
        set_xattr(&tree.join("nothing"), "trusted.t", b"2");
    };
    assert_arrives(true, true, prepare, |archive, tree| {
        run(Command::new("tar")
            .args(["--format=posix", "--xattrs", "--xattrs-include=*", "-cf"])
            .arg(archive)
            .arg("-C")
            .arg(tree)
            .arg("."));
    });
}

#[test]
fn of_gnu_tar_with_sparse_files_of_every_version() {
    let prepare = |tree: &Path| {
        let file = File::create(tree.join("sparse")).unwrap();
        file.set_len(50 << 20).unwrap();
        for at in 0..40_u64 {
            file.write_all_at(b"data", at << 20).unwrap();
        }
        let file = File::create(tree.join("hole")).unwrap();
        file.set_len(10 << 20).unwrap();
        let file = File::create(tree.join("ends-with-data")).unwrap();
        file.write_all_at(&[1; 70_000], 5 << 20).unwrap();
    };
    for how in [
        &["--format=gnu"][..],
        &["--format=oldgnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        assert_arrives(true, false, prepare, |archive, tree| {
            run(Command::new("tar")
                .arg("-Scf")
                .arg(archive)
                .args(how)
                .arg("-C")
                .arg(tree)
                .arg("."));
            assert!(fs::metadata(archive).unwrap().len() < 10 << 20);
        });
    }
}

#[test]
fn of_bsdtar_in_every_format() {
    for (format, long) in [
        ("ustar", false),
        ("pax", true),
        ("gnutar", true),
        ("v7", false),
    ] {
        assert_arrives(long, format == "pax", nothing, |archive, tree| {
            run(Command::new("bsdtar")
                .arg("-cf")
                .arg(archive)
                .args(["--format", format, "-C"])
                .arg(tree)
                .arg("."));
        });
    }
}

#[test]
fn of_busybox() {
    assert_arrives(true, false, nothing, |archive, tree| {
        run(Command::new("busybox")
            .arg("tar")
            .arg("-cf")
            .arg(archive)
            .arg("-C")
            .arg(tree)
            .arg("."));
    });
}

#[test]
fn of_python_in_every_format() {
    for (format, long) in [
        ("USTAR_FORMAT", false),
        ("GNU_FORMAT", true),
        ("PAX_FORMAT", true),
    ] {
        assert_arrives(long, false, nothing, |archive, tree| {
            let script = "import sys, tarfile\n\
                t = tarfile.open(sys.argv[1], 'w', format=getattr(tarfile, sys.argv[3]))\n\
                t.add(sys.argv[2], arcname='.')\n\
                t.close()\n";
            run(Command::new("python3")
                .args(["-c", script])
                .arg(archive)
                .arg(tree)
                .arg(format));
        });
    }
}

#[test]
fn other_programs_read_what_is_packed() {
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    source(&tree, true);
    set_xattr(&tree.join("plain"), "user.x", b"value");
    let root = File::open(&tree).unwrap();
    let archive = scratch.path().join("packed.tar");
    let options = rovl::store::pack::Options::new(rovl::format::keys::Namespace::Trusted);
    let out = File::create(&archive).unwrap();
    let fd = std::os::fd::AsFd::as_fd(&root);
    rovl::store::pack::pack(fd, &options, std::io::BufWriter::new(out), None).unwrap();
    for (program, flags) in [
        (
            "tar",
            &["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"][..],
        ),
        ("bsdtar", &["--xattrs", "--numeric-owner", "-xpf"]),
    ] {
        let to = scratch.path().join(program);
        fs::create_dir(&to).unwrap();
        run(Command::new(program)
            .args(flags)
            .arg(&archive)
            .arg("-C")
            .arg(&to));
        // bsdtar goes on writing into the root after it has set its time.
        let (mut got, mut expected) = (listing(&to), listing(&tree));
        for all in [&mut got, &mut expected] {
            assert!(all.remove("").is_some());
        }
        assert_eq!(got, expected, "{program}");
    }
}
