//! Names, removal, gc, fsck and repair.

use std::fs;

use serde_json::json;

use crate::builder::{Image, Layer, archive, docker_members, rich_layers};
use crate::rovl_command::{TestStore, expect_failure};
use crate::support::require_root;

fn loaded() -> (TestStore, Image) {
    require_root();
    let store = TestStore::new();
    let image = Image::new("rich:1", rich_layers());
    store.load(&archive(&docker_members(std::slice::from_ref(&image))));
    (store, image)
}

#[test]
fn an_empty_store_is_empty() {
    let store = TestStore::new();
    assert_eq!(store.json(&["image", "ls", "--json"]), json!([]));
    assert_eq!(store.json(&["layer", "ls", "--json"]), json!([]));
    assert_eq!(store.json(&["store", "df", "--json"])["total"], 0);
    store.assert_clean();
    assert!(!store.root.exists(), "reading made the store");
}

#[test]
fn images_are_found_by_name_and_by_the_beginning_of_their_id() {
    let (store, image) = loaded();
    let id = image.id();
    let hex = id.strip_prefix("sha256:").unwrap();
    for name in [
        "rich:1",
        "docker.io/library/rich:1",
        &id,
        hex,
        &hex[..12],
        &hex[..5],
    ] {
        let inspected = store.json(&["image", "inspect", name]);
        assert_eq!(inspected[0]["Id"], id, "{name}");
    }
    for (name, why) in [
        ("rich", "no such image"),
        ("sha256:", "no such image"),
        ("zz", "no such"),
    ] {
        let said = expect_failure(&store.try_run(&["image", "inspect", name]), 1);
        assert!(said.contains(why), "{name}: {said}");
    }
    expect_failure(&store.try_run(&["image", "tag", "rich:1", "UPPER"]), 2);
}

#[test]
fn a_name_more_keeps_an_image_and_its_last_name_takes_it_along() {
    let (store, image) = loaded();
    store.run(&["image", "tag", "rich:1", "other/name"]);
    let listed = store.json(&["image", "ls", "--json"]);
    assert_eq!(listed[0]["names"], json!(["other/name:latest", "rich:1"]));
    let said = expect_failure(&store.try_run(&["image", "rm", &image.id()]), 1);
    assert!(said.contains("--force"), "{said}");
    let removed = store.json(&["image", "rm", "--json", "rich:1"]);
    assert_eq!(removed[0]["image"], json!(null));
    let removed = store.json(&["image", "rm", "--json", "other/name"]);
    assert_eq!(removed[0]["image"], image.id());
    assert_eq!(removed[0]["layers"].as_array().unwrap().len(), 3);
    assert_eq!(store.json(&["layer", "ls", "--json"]), json!([]));
    assert_eq!(
        fs::read_dir(store.root.join("overlay2")).unwrap().count(),
        1,
        "only l/ is left"
    );
    assert_eq!(
        fs::read_dir(store.root.join("overlay2/l")).unwrap().count(),
        0
    );
    assert_eq!(fs::read_dir(store.root.join("rovl/tx")).unwrap().count(), 0);
    store.assert_clean();
    store.assert_accounted();
}

#[test]
fn layers_that_another_image_has_stay() {
    let (store, image) = loaded();
    let mut layers = image.layers[..2].to_vec();
    layers.push(Layer::new().file("own", b"own").build());
    store.load(&archive(&docker_members(&[Image::new("more:1", layers)])));
    let df = store.json(&["store", "df", "--json"]);
    for image in df["images"].as_array().unwrap() {
        assert!(
            image["shared"].as_u64() > Some(0) && image["unique"].as_u64() > Some(0),
            "{df}"
        );
    }
    let removed = store.json(&["image", "rm", "--json", "more:1"]);
    assert_eq!(removed[0]["layers"].as_array().unwrap().len(), 1);
    store.assert_clean();
    store.run(&[
        "image",
        "save",
        "-o",
        store.scratch.join("out.tar").to_str().unwrap(),
        "rich:1",
    ]);
}

#[test]
fn gc_takes_what_nothing_refers_to() {
    let (store, _) = loaded();
    let layer = store.scratch.join("layer.tar");
    fs::write(&layer, Layer::new().file("a", b"b").build()).unwrap();
    let applied = store.json(&["layer", "apply", "--json", layer.to_str().unwrap()]);
    // What crashes leave: a directory without a record, links to nothing, Docker's unfinished records.
    let overlay = store.root.join("overlay2");
    let orphan = overlay.join("ab".repeat(32));
    fs::create_dir_all(orphan.join("diff/sub")).unwrap();
    fs::write(orphan.join("diff/sub/file"), vec![1; 100_000]).unwrap();
    fs::write(orphan.join("link"), "A".repeat(26)).unwrap();
    std::os::unix::fs::symlink("../gone/diff", overlay.join("l").join("B".repeat(26))).unwrap();
    fs::create_dir(store.root.join("image/overlay2/layerdb/tmp/write-set-1")).unwrap();
    fs::write(overlay.join("not-ours"), "x").unwrap();
    store.assert_accounted();
    let dry = store.json(&["store", "gc", "--dry-run", "--json"]);
    assert!(orphan.exists());
    let collected = store.json(&["store", "gc", "--json"]);
    assert_eq!(collected, dry);
    assert_eq!(collected["layers"], json!([applied["chain_id"]]));
    assert!(collected["bytes"].as_u64().unwrap() > 100_000);
    assert!(!orphan.exists());
    assert!(overlay.join("not-ours").exists());
    assert_eq!(fs::read_dir(overlay.join("l")).unwrap().count(), 3);
    store.assert_clean();
    let again = store.json(&["store", "gc", "--json"]);
    assert_eq!(again["bytes"], 0, "{again}");
    store.run(&["image", "rm", "rich:1"]);
    store.assert_clean();
}

#[test]
fn gc_leaves_containers_and_what_they_lie_on() {
    let (store, _) = loaded();
    let chains = store.json(&["layer", "ls", "--json"]);
    let layer = &chains[0];
    let (mount, init) = ("cd".repeat(32), format!("{}-init", "cd".repeat(32)));
    let record = store
        .root
        .join("image/overlay2/layerdb/mounts")
        .join("ef".repeat(32));
    fs::create_dir(&record).unwrap();
    fs::write(record.join("mount-id"), &mount).unwrap();
    fs::write(record.join("init-id"), &init).unwrap();
    fs::write(record.join("parent"), layer["chain_id"].as_str().unwrap()).unwrap();
    for id in [&mount, &init] {
        fs::create_dir_all(store.root.join("overlay2").join(id).join("diff")).unwrap();
    }
    store.assert_accounted();
    let collected = store.json(&["store", "gc", "--json"]);
    assert_eq!(collected["leftovers"], json!([]));
    store.json(&["image", "rm", "--force", "--json", "rich:1"]);
    store.run(&["store", "gc"]);
    let left = store.json(&["layer", "ls", "--json"]);
    let kept = layer["chain_id"].as_str().unwrap();
    assert!(
        left.as_array()
            .unwrap()
            .iter()
            .any(|l| l["chain_id"] == kept),
        "{left}"
    );
    fs::remove_dir_all(&record).unwrap();
    store.run(&["store", "gc"]);
    assert_eq!(store.json(&["layer", "ls", "--json"]), json!([]));
    assert_eq!(
        fs::read_dir(store.root.join("overlay2")).unwrap().count(),
        1
    );
}

#[test]
fn damage_is_found_and_repaired_from_an_archive() {
    let (store, image) = loaded();
    let lowers = store.lowers("rich:1");
    fs::write(lowers[2].join("usr/bin/su"), "damaged").unwrap();
    fs::remove_file(lowers[0].join("etc/passwd")).unwrap();
    let report = store.try_run(&["store", "fsck", "--json"]);
    assert_eq!(report.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["faults"].as_array().unwrap().len(), 2, "{report}");
    expect_failure(&store.try_run(&["image", "save", "rich:1"]), 1);
    expect_failure(&store.try_run(&["store", "fsck", "--repair"]), 1);
    let archive = store.scratch.join("archive.tar");
    let from = archive.to_str().unwrap();
    let repaired = store.json(&["store", "fsck", "--repair", "--from", from, "--json"]);
    assert_eq!(repaired["left"], json!([]), "{repaired}");
    store.assert_clean();
    store.assert_accounted();
    assert_eq!(
        fs::read(lowers[0].join("etc/passwd")).unwrap(),
        b"changed\n"
    );
    assert!(!image.id().is_empty());
    let layers = store.json(&["layer", "ls", "--json"]);
    for layer in layers.as_array().unwrap() {
        store.run(&["layer", "verify", layer["chain_id"].as_str().unwrap()]);
    }
}

#[test]
fn lost_links_and_lowers_are_made_anew() {
    let (store, _) = loaded();
    let lowers = store.lowers("rich:1");
    let overlay = store.root.join("overlay2");
    let before: Vec<_> = lowers
        .iter()
        .map(|diff| fs::read(diff.parent().unwrap().join("lower")).ok())
        .collect();
    fs::remove_dir_all(overlay.join("l")).unwrap();
    fs::create_dir(overlay.join("l")).unwrap();
    fs::remove_file(lowers[0].parent().unwrap().join("lower")).unwrap();
    let report = store.try_run(&["store", "fsck", "--json"]);
    assert_eq!(report.status.code(), Some(1));
    store.run(&["store", "fsck", "--repair"]);
    let after: Vec<_> = lowers
        .iter()
        .map(|diff| fs::read(diff.parent().unwrap().join("lower")).ok())
        .collect();
    assert_eq!(before, after);
    store.assert_clean();
    // A link of its own that is lost gets a new name, and the layers above follow.
    fs::remove_file(lowers[2].parent().unwrap().join("link")).unwrap();
    store.run(&["store", "fsck", "--repair"]);
    store.run(&["store", "gc"]);
    store.assert_clean();
}

#[test]
fn names_of_lost_images_and_an_unreadable_list_are_repaired() {
    let (store, image) = loaded();
    let list = store.root.join("image/overlay2/repositories.json");
    let text = fs::read_to_string(&list).unwrap();
    let stale = text.replace(
        "\"rich:1\":",
        &format!("\"rich:0\":\"sha256:{}\",\"rich:1\":", "0".repeat(64)),
    );
    fs::write(&list, stale).unwrap();
    expect_failure(&store.try_run(&["store", "fsck"]), 1);
    store.run(&["store", "fsck", "--repair"]);
    assert_eq!(fs::read_to_string(&list).unwrap(), text);
    fs::write(&list, "{").unwrap();
    expect_failure(&store.try_run(&["store", "fsck"]), 1);
    store.run(&["store", "fsck", "--repair"]);
    store.assert_clean();
    store.run(&["image", "tag", &image.id(), "rich:1"]);
    store.assert_clean();
}

#[test]
fn history_and_inspect_tell_of_layers() {
    let (store, image) = loaded();
    let history = store.json(&["image", "history", "--json", "rich:1"]);
    assert_eq!(history[0]["created_by"], "step 2");
    assert_eq!(history.as_array().unwrap().len(), 3);
    let inspected = store.json(&["image", "inspect", "rich:1"]);
    assert_eq!(
        inspected[0]["RootFS"]["Layers"].as_array().unwrap().len(),
        image.layers.len()
    );
    assert_eq!(inspected[0]["Config"]["Cmd"], json!(["/bin/sh"]));
    let table = store.text(&["image", "ls"]);
    assert!(
        table.starts_with("REPOSITORY") && table.contains("rich"),
        "{table}"
    );
}

#[test]
fn layer_diff_shows_what_a_layer_changes() {
    let (store, _) = loaded();
    let inspected = store.json(&["image", "inspect", "rich:1"]);
    let chain = inspected[0]["Layers"][1]["ChainId"].as_str().unwrap();
    let diff = store.text(&["layer", "diff", chain]);
    let expected = "D /etc/hosts\nC /opt\nC /opt/a\nD /opt/a/one\nA /opt/a/three\nD /opt/a/two\n\
                    C /opt/b\nD /opt/b/gone\nA /tmp\n";
    let without_implied = diff.replace("C /etc\n", "");
    assert_eq!(without_implied, expected);
    let export = store.run(&["layer", "export", chain]);
    assert_eq!(export, rich_layers()[1]);
}

#[test]
fn root_is_for_the_store_only_and_mistakes_are_named() {
    let store = TestStore::new();
    let mut command = store.command(&["umount", "/nowhere"]);
    let said = expect_failure(&command.output().unwrap(), 2);
    assert!(said.contains("--root"), "{said}");
    let said = expect_failure(&store.try_run(&["image", "lod"]), 2);
    assert!(said.contains("load"), "{said}");
    let said = expect_failure(&store.try_run(&["image", "load", "--plattform", "x"]), 2);
    assert!(said.contains("--platform"), "{said}");
    let said = expect_failure(&store.try_run(&["image", "load", "/does/not/exist"]), 1);
    assert!(said.contains("/does/not/exist"), "{said}");
}
