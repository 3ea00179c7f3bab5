//! Mounts of containers and images: by both drivers, listed, kept in use, and recognised when they are stale.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::images::{create, mount, rich, store_with, umount};
use crate::rovl_command::{TestStore, expect_failure};
use crate::support::is_mount_point;
use crate::support::{assert_digests_equal, tree_digest};

fn mounts(store: &TestStore) -> Vec<(String, String)> {
    let list = store.json(&["container", "mount", "--json"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    list.as_array()
        .unwrap()
        .iter()
        .map(|m| (text(&m["name"]), text(&m["driver"])))
        .collect()
}

fn daemon_of(tree: &Path) -> String {
    let output = crate::support::run(
        crate::support::rovl_bin().to_str().unwrap(),
        &["stat", "--json", tree.to_str().unwrap()],
    );
    let stat: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    stat["pid"].to_string()
}

#[test]
fn both_drivers_show_the_same_and_take_over_from_one_another() {
    let (store, _) = store_with(&rich());
    create(&store, &["--name", "one", "rich:1"]);
    let tree = mount(&store, &["one"]);
    fs::rename(tree.join("a"), tree.join("moved")).unwrap();
    fs::write(tree.join("moved/link"), "changed").unwrap();
    fs::remove_dir_all(tree.join("c")).unwrap();
    fs::create_dir(tree.join("c")).unwrap();
    fs::write(tree.join("c/x"), "x").unwrap();
    let shown = tree_digest(&tree);
    assert_eq!(mounts(&store), [("one".into(), "fuse".into())]);
    umount(&store, "one");
    assert!(!tree.exists());

    let dir = store.scratch.join("elsewhere");
    let by_kernel = mount(
        &store,
        &["--driver", "kernel", "one", dir.to_str().unwrap()],
    );
    assert_eq!(by_kernel, dir);
    assert_eq!(mounts(&store), [("one".into(), "kernel".into())]);
    assert_digests_equal(&shown, &tree_digest(&dir), "the kernel's overlayfs");
    fs::write(dir.join("by-kernel"), "k").unwrap();
    let said = expect_failure(&store.try_run(&["container", "mount", "one"]), 1);
    assert!(said.contains("mounted at"), "{said}");
    let said = expect_failure(&store.try_run(&["container", "rm", "one"]), 1);
    assert!(said.contains("in use"), "{said}");
    umount(&store, "one");

    let output = store.try_run(&["container", "mount", "--driver", "auto", "one"]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the kernel's overlayfs"), "{said}");
    umount(&store, "one");
    let tree = mount(&store, &["one"]);
    assert_eq!(fs::read_to_string(tree.join("by-kernel")).unwrap(), "k");
    umount(&store, "one");
    store.assert_clean();
    store.assert_accounted();
}

#[test]
fn an_image_is_mounted_read_only_and_kept() {
    let (store, _) = store_with(&rich());
    let mut trees = Vec::new();
    for driver in ["fuse", "kernel"] {
        let output = store.text(&["image", "mount", "--driver", driver, "rich:1"]);
        let tree = Path::new(output.trim());
        assert_eq!(fs::read_to_string(tree.join("a/link")).unwrap(), "one");
        assert!(fs::write(tree.join("new"), "").is_err());
        assert_eq!(mounts(&store), [("rich:1".into(), driver.into())]);
        trees.push(tree_digest(tree));
        // What is mounted is not removed by anything.
        store.run(&["image", "rm", "rich:1"]);
        store.run(&["store", "gc"]);
        assert_eq!(fs::read_to_string(tree.join("a/deep/third")).unwrap(), "3");
        let archive = store.scratch.join("archive.tar");
        store.run(&["image", "load", archive.to_str().unwrap()]);
        umount(&store, "rich:1");
        assert!(!tree.exists());
    }
    assert_digests_equal(&trees[0], &trees[1], "both drivers");
    store.assert_clean();
}

#[test]
fn a_mount_whose_daemon_was_killed_is_cleaned_up() {
    let (store, _) = store_with(&rich());
    create(&store, &["--name", "one", "rich:1"]);
    let tree = mount(&store, &["one"]);
    fs::write(tree.join("kept"), "kept").unwrap();
    fs::File::open(tree.join("kept"))
        .unwrap()
        .sync_all()
        .unwrap();
    crate::support::run("kill", &["-9", &daemon_of(&tree)]);
    assert!(crate::support::wait_until(
        std::time::Duration::from_secs(10),
        || { mounts(&store).is_empty() }
    ));
    assert!(!is_mount_point(&tree));
    assert!(!tree.exists());
    let tree = mount(&store, &["one"]);
    assert_eq!(fs::read_to_string(tree.join("kept")).unwrap(), "kept");
    umount(&store, "one");
}

#[test]
fn mounts_of_another_boot_and_of_ended_namespaces_are_forgotten() {
    let (store, _) = store_with(&rich());
    let id = create(&store, &["--name", "one", "rich:1"]);
    let notes = store.root.join("rovl/mounts").join(format!("{id}.json"));
    let tree = mount(&store, &["one"]);
    let text = fs::read_to_string(&notes).unwrap();
    umount(&store, "one");
    let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [("boot", "another"), ("namespace", "mnt:[1]")] {
        let mut stale = parsed.clone();
        stale[key] = value.into();
        fs::create_dir(&tree).unwrap();
        fs::write(&notes, stale.to_string()).unwrap();
        assert_eq!(mounts(&store), []);
        assert!(!notes.exists());
        assert!(!tree.exists(), "the mount point stays");
    }
    // Within a namespace that has gone: nothing of it is left either.
    let script = format!(
        "'{}' --root '{}' container mount --driver kernel one",
        crate::support::rovl_bin().display(),
        store.root.display()
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-ec", &script])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(mounts(&store), []);
    store.run(&["container", "rm", "one"]);
}

#[test]
fn what_is_mounted_is_not_counted() {
    let (store, _) = store_with(&rich());
    create(&store, &["--name", "one", "rich:1"]);
    let before = store.json(&["store", "df", "--json"]);
    let tree = mount(&store, &["one"]);
    let mounted = store.json(&["store", "df", "--json"]);
    let containers = |df: &serde_json::Value| df["parts"]["containers"].as_u64();
    let (before, mounted) = (containers(&before), containers(&mounted));
    // What the mount itself needs in `work` is counted, what it shows is not.
    assert!(
        mounted.unwrap() <= before.unwrap() + (64 << 10),
        "{before:?} {mounted:?}"
    );
    drop(tree);
    umount(&store, "one");
}
