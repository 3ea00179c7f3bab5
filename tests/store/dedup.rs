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

/// Two images that share half of their files, with nine tenths of their bytes, and no layer.
#[test]
fn shared_files_take_their_space_once_where_blocks_can_be_shared() {
    require_root();
    let scratch = crate::support::Scratch::new();
    for (kind, disk) in [
        ("xfs", LoopFs::xfs(512 << 20)),
        ("btrfs", LoopFs::btrfs(512 << 20)),
    ] {
        let place = scratch.path();
        let roots = [disk.path().join("plain"), disk.path().join("shared")];
        let mut taken = Vec::new();
        for (root, more) in roots.iter().zip([&["--no-dedup"][..], &[]]) {
            let before = used(&disk);
            load(root, place, "one", &layer(1, FILES / 2), more);
            load(root, place, "two", &layer(2, FILES / 2), more);
            taken.push(used(&disk).saturating_sub(before));
        }
        let ratio = taken[1] as f64 / taken[0] as f64;
        eprintln!("{kind}: {} bytes of {}, {ratio:.3}", taken[1], taken[0]);
        let [plain, shared] = &roots;
        for image in ["one", "two"] {
            assert_trees_equal(&tree(plain, image), &tree(shared, image));
        }
        assert_eq!(df(plain)["saved"], 0);
        let saved = df(shared)["saved"].as_u64().unwrap();
        assert!(saved > 30 * 180_000, "{kind}: {saved} bytes saved");
        if kind == "xfs" {
            assert!(ratio <= 0.58, "{kind}: {ratio}");
        }
    }
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
