//! Files that several layers have: kept once where blocks can be shared, and never to be told apart.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::builder::{Image, Layer, archive, docker_members};
use crate::rovl_command::{command, expect_success};
use crate::support::files::{ino, nlink};
use crate::support::{LoopFs, assert_trees_equal, pattern, require_root};

const FILES: u64 = 60;

/// A layer with `FILES` files, of which the first `same` have the contents that every such layer has.
fn layer(seed: u64, same: u64) -> Vec<u8> {
    let own = format!("own-{seed}");
    let mut layer = Layer::new().dir("./").dir("data/").file(&own, b"own");
    for n in 0..FILES {
        // The shared half has nine tenths of the bytes.
        let (seed, size) = if n < same {
            (1000, 180_000)
        } else {
            (seed, 20_000)
        };
        let content = pattern(seed * 100 + n, size + n as usize);
        layer = layer.file(&format!("data/{seed}-{n}"), &content);
    }
    layer.build()
}

fn load(root: &Path, place: &Path, name: &str, layer: &[u8], more: &[&str]) {
    let path = place.join("archive.tar");
    let image = Image::new(name, vec![layer.to_vec()]);
    fs::write(&path, archive(&docker_members(&[image]))).unwrap();
    let mut args = vec!["image", "load", "-q", path.to_str().unwrap()];
    args.extend(more);
    expect_success(command(root, &args).output().unwrap());
}

fn tree(root: &Path, image: &str) -> PathBuf {
    let output = command(root, &["image", "inspect", image])
        .output()
        .unwrap();
    let inspected: serde_json::Value = serde_json::from_slice(&expect_success(output)).unwrap();
    let id = inspected[0]["Layers"][0]["CacheId"].as_str().unwrap();
    root.join("overlay2").join(id).join("diff")
}

fn df(root: &Path) -> serde_json::Value {
    let output = command(root, &["store", "df", "--json"]).output().unwrap();
    serde_json::from_slice(&expect_success(output)).unwrap()
}

fn used(disk: &LoopFs) -> u64 {
    let synced = Command::new("sync")
        .arg("-f")
        .arg(disk.path())
        .status()
        .unwrap();
    assert!(synced.success());
    let stat = rustix::fs::statvfs(disk.path()).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

/// Sizes as files of distributions have them: the median is 3 KB, the largest have most of the bytes.
const SIZES: [usize; 15] = [
    200, 300, 600, 900, 1_400, 2_000, 2_600, 3_500, 6_000, 11_000, 20_000, 40_000, 90_000, 300_000,
    600_000,
];

/// Files of a layer: a name, and the contents that it has for this seed.
fn realistic(layer: Layer, files: std::ops::Range<usize>, seed: u64) -> Layer {
    let layer = (0..20).fold(layer, |layer, n| layer.dir(&format!("d{n}/")));
    files.fold(layer, |layer, n| {
        let size = SIZES[n % SIZES.len()] + 7 * n;
        let content = pattern(seed * 100_000 + n as u64, size);
        layer.file(&format!("d{}/f{seed}-{n}", n % 20), &content)
    })
}

/// Layers of an image, and the directory that tar unpacks them into.
fn load_image(root: &Path, place: &Path, name: &str, layers: &[Vec<u8>]) {
    let path = place.join("archive.tar");
    let image = Image::new(name, layers.to_vec());
    fs::write(&path, archive(&docker_members(&[image]))).unwrap();
    let args = ["image", "load", "-q", path.to_str().unwrap()];
    expect_success(command(root, &args).output().unwrap());
}

fn untar(to: &Path, place: &Path, layers: &[Vec<u8>]) {
    for (number, layer) in layers.iter().enumerate() {
        let (tar, to) = (place.join("layer.tar"), to.join(number.to_string()));
        fs::write(&tar, layer).unwrap();
        fs::create_dir_all(&to).unwrap();
        let (tar, to) = (tar.to_str().unwrap(), to.to_str().unwrap());
        crate::support::run("tar", &["--delay-directory-restore", "-xf", tar, "-C", to]);
    }
}

/// Holds what two images take in a store against what tar unpacks them to, on the same file system.
fn assert_space(what: &str, images: [&[Vec<u8>]; 2]) {
    require_root();
    let scratch = crate::support::Scratch::new();
    for (kind, disk) in [
        ("XFS", LoopFs::xfs(512 << 20)),
        ("Btrfs", LoopFs::btrfs(512 << 20)),
    ] {
        let root = disk.path().join("store");
        let before = used(&disk);
        for (number, layers) in images.iter().enumerate() {
            let to = disk.path().join("plain").join(number.to_string());
            untar(&to, scratch.path(), layers);
        }
        let plain = used(&disk) - before;
        for (name, layers) in ["one", "two"].iter().zip(images) {
            load_image(&root, scratch.path(), name, layers);
        }
        let shared = used(&disk) - before - plain;
        let ratio = shared as f64 / plain as f64;
        eprintln!("{what}, {kind}: {shared} bytes of {plain}, {ratio:.3}");
        assert!(ratio <= 0.55, "{what}, {kind}: {ratio}");
        for image in ["one", "two"] {
            let untarred = disk.path().join("plain");
            let untarred = untarred.join(if image == "one" { "0/0" } else { "1/0" });
            assert_trees_equal(&untarred, &tree(&root, image));
        }
        let saved = df(&root)["saved"].as_u64().unwrap();
        let expected = (plain - shared) as f64;
        let error = (saved as f64 - expected).abs() / expected;
        assert!(
            error < 0.1,
            "{what}, {kind}: {saved} saved, {expected} less"
        );
    }
}

/// Half of all files are there twice: one image has the same files as the other, cut into other layers.
#[test]
fn the_same_files_in_other_layers_take_their_space_once() {
    let base = || Layer::new().dir("./").file("release", b"1");
    let one = [realistic(base(), 0..1400, 1).build()];
    let two = [
        realistic(base(), 0..500, 1).build(),
        realistic(Layer::new().file("new", b"2"), 500..1400, 1).build(),
    ];
    assert_space("the same files", [&one, &two]);
}

/// Half of the files of each image are the other's, and those have most of the bytes: a base that both were
/// built on, squashed into their only layer.
#[test]
fn a_base_within_single_layers_takes_its_space_once() {
    let image = |seed: u64| {
        let base = realistic(Layer::new().dir("./").dir("own/"), 0..700, 9);
        let own = (0..700).fold(base, |layer, n| {
            let content = pattern(seed * 100_000 + n, 300 + 2 * n as usize);
            layer.file(&format!("own/{seed}-{n}"), &content)
        });
        [own.build()]
    };
    assert_space("a base within", [&image(1), &image(2)]);
}

/// What `--no-dedup` loads is the same, and shares nothing.
#[test]
fn without_deduplication_nothing_is_shared() {
    require_root();
    let scratch = crate::support::Scratch::new();
    let disk = LoopFs::xfs(320 << 20);
    let (plain, shared) = (disk.path().join("plain"), disk.path().join("shared"));
    for (root, more) in [(&plain, &["--no-dedup"][..]), (&shared, &[])] {
        load(root, scratch.path(), "one", &layer(1, FILES / 2), more);
        load(root, scratch.path(), "two", &layer(2, FILES / 2), more);
    }
    for image in ["one", "two"] {
        assert_trees_equal(&tree(&plain, image), &tree(&shared, image));
    }
    assert_eq!(df(&plain)["saved"], 0);
    assert!(df(&shared)["saved"].as_u64() > Some(30 * 180_000));
    // Once only one of the two has the blocks, nothing is saved.
    let remove = command(&shared, &["image", "rm", "one"]).output().unwrap();
    expect_success(remove);
    assert_eq!(df(&shared)["saved"], 0);
}

/// A write through one layer's file must not be seen in another's.
#[test]
fn shared_files_are_files_of_their_own() {
    require_root();
    let scratch = crate::support::Scratch::new();
    let disk = LoopFs::xfs(320 << 20);
    let root = disk.path().join("store");
    load(&root, scratch.path(), "one", &layer(1, FILES), &[]);
    load(&root, scratch.path(), "two", &layer(2, FILES), &[]);
    // The same layer again, on another parent: a clone.
    let (one, two) = (tree(&root, "one"), tree(&root, "two"));
    let name = "data/1000-3";
    assert_ne!(ino(&one.join(name)), ino(&two.join(name)));
    assert_eq!((nlink(&one.join(name)), nlink(&two.join(name))), (1, 1));
    let before = fs::read(two.join(name)).unwrap();
    fs::write(one.join(name), "changed").unwrap();
    assert_eq!(fs::read(two.join(name)).unwrap(), before);
    // What was damaged is not shared with others any more.
    load(&root, scratch.path(), "three", &layer(3, FILES), &[]);
    assert_eq!(fs::read(tree(&root, "three").join(name)).unwrap(), before);
}

/// Where blocks can't be shared, nothing is: a hard link would show.
#[test]
fn nothing_is_linked_where_blocks_cant_be_shared() {
    require_root();
    let scratch = crate::support::Scratch::new();
    let disk = LoopFs::ext4(128 << 20);
    let root = disk.path().join("store");
    load(&root, scratch.path(), "one", &layer(1, FILES), &[]);
    load(&root, scratch.path(), "two", &layer(2, FILES), &[]);
    let (one, two) = (tree(&root, "one"), tree(&root, "two"));
    assert_ne!(ino(&one.join("data/1000-3")), ino(&two.join("data/1000-3")));
    assert_eq!(nlink(&one.join("data/1000-3")), 1);
    assert_eq!(df(&root)["saved"], 0);
}

/// The index is only an index: without it less is shared, and fsck makes it anew.
#[test]
fn a_lost_index_is_made_anew() {
    require_root();
    let scratch = crate::support::Scratch::new();
    let disk = LoopFs::xfs(320 << 20);
    let root = disk.path().join("store");
    load(&root, scratch.path(), "one", &layer(1, FILES), &[]);
    let index = root.join("rovl/files");
    for entry in fs::read_dir(&index).unwrap() {
        fs::write(entry.unwrap().path(), "damaged").unwrap();
    }
    load(&root, scratch.path(), "two", &layer(2, FILES), &[]);
    assert_eq!(df(&root)["saved"], 0);
    fs::remove_dir_all(&index).unwrap();
    expect_success(
        command(&root, &["store", "fsck", "--repair"])
            .output()
            .unwrap(),
    );
    assert_eq!(fs::read_dir(&index).unwrap().count(), 2);
    load(&root, scratch.path(), "three", &layer(3, FILES), &[]);
    assert!(df(&root)["saved"].as_u64() > Some(FILES * 180_000));
}
