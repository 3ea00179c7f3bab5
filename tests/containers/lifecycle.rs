//! Containers come and go: the layout on disk, names, ids, and what keeps what from being removed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::builder::{Image, Layer};
use crate::images::{create, mount, rich, store_with, umount};
use crate::rovl_command::{TestStore, expect_failure};

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn listed(store: &TestStore) -> Vec<Value> {
    store
        .json(&["container", "ls", "--json"])
        .as_array()
        .unwrap()
        .clone()
}

#[test]
fn the_layout_is_docker_s() {
    let (store, _) = store_with(&rich());
    let id = create(&store, &["--name", "one", "rich:1"]);
    let overlay = store.root.join("overlay2");
    let record = store.root.join("image/overlay2/layerdb/mounts").join(&id);
    let mount_id = read(record.join("mount-id"));
    assert_eq!(read(record.join("init-id")), format!("{mount_id}-init"));
    let image = &store.json(&["image", "inspect", "rich:1"])[0];
    let top = image["Layers"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        read(record.join("parent")),
        top["ChainId"].as_str().unwrap()
    );

    let image_dir = overlay.join(top["CacheId"].as_str().unwrap());
    let (dir, init) = (
        overlay.join(&mount_id),
        overlay.join(format!("{mount_id}-init")),
    );
    let image_lower = format!(
        "l/{}:{}",
        read(image_dir.join("link")),
        read(image_dir.join("lower"))
    );
    assert_eq!(read(init.join("lower")), image_lower);
    assert_eq!(
        read(dir.join("lower")),
        format!("l/{}:{image_lower}", read(init.join("link")))
    );
    for dir in [&dir, &init] {
        let link = overlay.join("l").join(read(dir.join("link")));
        assert_eq!(
            link.canonicalize().unwrap(),
            dir.join("diff").canonicalize().unwrap()
        );
        let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(
            (mode(""), mode("diff"), mode("work")),
            (0o710, 0o755, 0o700)
        );
    }
    for made_over in [&image_dir, &init] {
        assert!(made_over.join("committed").is_file());
    }
    assert!(!dir.join("committed").exists());
    assert!(!dir.join("merged").exists());
    store.assert_clean();
    store.assert_accounted();
}

#[test]
fn what_every_container_has_is_made_where_the_image_lacks_it() {
    let layer = Layer::new()
        .entry(tar::EntryType::Directory, "etc/", 0o750, b"")
        .file("etc/hosts", b"own");
    let (store, _) = store_with(&Image::new("bare:1", vec![layer.build()]));
    let id = create(&store, &["bare:1"]);
    let tree = mount(&store, &[&id]);
    for dir in ["dev/pts", "dev/shm", "proc", "sys"] {
        assert!(tree.join(dir).is_dir(), "{dir}");
    }
    for file in [
        ".dockerenv",
        "etc/resolv.conf",
        "etc/hostname",
        "dev/console",
    ] {
        assert_eq!(read(tree.join(file)), "", "{file}");
    }
    assert_eq!(read(tree.join("etc/hosts")), "own");
    assert_eq!(
        fs::read_link(tree.join("etc/mtab")).unwrap(),
        Path::new("/proc/mounts")
    );
    let mode = fs::metadata(tree.join("etc")).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o750);
    umount(&store, &id);
    assert_eq!(store.text(&["container", "diff", &id]), "");
}

#[test]
fn names_and_prefixes_are_taken_as_docker_takes_them() {
    let (store, _) = store_with(&rich());
    let one = create(&store, &["--name", "one", "rich:1"]);
    let two = create(&store, &["rich:1"]);
    let said = expect_failure(
        &store.try_run(&["container", "create", "--name", "one", "rich:1"]),
        1,
    );
    assert!(said.contains("one is in use"), "{said}");
    let said = expect_failure(
        &store.try_run(&["container", "create", "--name", "a b", "rich:1"]),
        2,
    );
    assert!(said.contains("a b"), "{said}");
    expect_failure(&store.try_run(&["container", "create", "nothing:1"]), 1);
    let names: Vec<String> = listed(&store)
        .iter()
        .map(|c| c["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 2);
    assert!(names.contains(&"one".to_owned()), "{names:?}");
    assert!(names.iter().all(|name| name.len() > 2), "{names:?}");
    for wanted in ["one", "/one", one.as_str(), &one[..12]] {
        store.run(&["container", "diff", wanted]);
    }
    expect_failure(&store.try_run(&["container", "diff", "on"]), 1);
    store.run(&["container", "rm", "one", &two[..20]]);
    assert!(listed(&store).is_empty());
    expect_failure(&store.try_run(&["container", "rm", "one"]), 1);
    store.run(&["container", "rm", "--force", "one"]);
    store.assert_clean();
    store.assert_accounted();
}

#[test]
fn an_image_stays_as_long_as_a_container_lies_on_it() {
    let (store, _) = store_with(&rich());
    let id = create(&store, &["rich:1"]);
    let said = expect_failure(&store.try_run(&["image", "rm", "rich:1"]), 1);
    assert!(said.contains(&id), "{said}");
    store.run(&["store", "gc"]);
    let tree = mount(&store, &[&id]);
    assert_eq!(read(tree.join("a/file")), "one");
    let said = expect_failure(&store.try_run(&["container", "rm", &id]), 1);
    assert!(said.contains("--force"), "{said}");
    store.run(&["store", "gc"]);
    assert_eq!(read(tree.join("a/deep/third")), "3");
    store.run(&["container", "rm", "-f", &id]);
    assert!(!tree.exists());
    store.run(&["image", "rm", "rich:1"]);
    store.run(&["store", "gc"]);
    store.assert_clean();
    let left: Vec<_> = fs::read_dir(store.root.join("overlay2")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn names_are_forgotten_with_our_index_and_containers_are_not() {
    let (store, _) = store_with(&rich());
    let id = create(&store, &["--name", "one", "rich:1"]);
    fs::remove_dir_all(store.root.join("rovl")).unwrap();
    let tree = mount(&store, &[&id[..10]]);
    fs::write(tree.join("new"), "new").unwrap();
    umount(&store, &id);
    store.run(&["container", "commit", &id, "again:1"]);
    store.run(&["container", "rm", &id]);
    store.assert_clean();
}
