//! Images made of containers, and their trees as archives.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::builder::{Image, Layer};
use crate::images::{busybox, create, mount, rich, store_with, umount};
use crate::rovl_command::{TestStore, expect_failure, expect_success};
use crate::support::{Scratch, assert_digests_equal, require_program, rovl_bin, tree_digest};

fn config_of(store: &TestStore, image: &str) -> Value {
    let id = store.json(&["image", "inspect", image])[0]["Id"].clone();
    let hex = id
        .as_str()
        .unwrap()
        .strip_prefix("sha256:")
        .unwrap()
        .to_owned();
    let path = store
        .root
        .join("image/overlay2/imagedb/content/sha256")
        .join(hex);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_new_layer_is_exactly_the_difference() {
    let (store, _) = store_with(&rich());
    create(&store, &["--name", "one", "rich:1"]);
    let tree = mount(&store, &["one"]);
    fs::rename(tree.join("a"), tree.join("moved")).unwrap();
    fs::write(tree.join("moved/link"), "changed").unwrap();
    fs::remove_dir_all(tree.join("c")).unwrap();
    fs::create_dir(tree.join("c")).unwrap();
    let shown = tree_digest(&tree);
    umount(&store, "one");
    let made = store.json(&["container", "commit", "--json", "one", "new:2"]);
    let tar = store.run(&["container", "diff", "--tar", "one"]);
    let digest = rovl::store::ids::Digest::of(&tar).to_string();
    assert_eq!(made["diff_id"], digest.as_str());
    let exported = store.run(&["layer", "export", made["chain_id"].as_str().unwrap()]);
    assert!(exported == tar, "what is exported is not what was packed");
    let mounted = store.text(&["image", "mount", "new:2"]);
    assert_digests_equal(
        &shown,
        &tree_digest(mounted.trim().as_ref()),
        "the new image",
    );
    umount(&store, "new:2");
    // A container of it begins where that one ended.
    let two = create(&store, &["new:2"]);
    assert_eq!(store.text(&["container", "diff", &two]), "");
    store.assert_clean();
    store.assert_accounted();
}

#[test]
fn config_and_history_are_as_docker_writes_them() {
    let (store, _) = store_with(&rich());
    create(&store, &["--name", "one", "rich:1"]);
    let before = config_of(&store, "rich:1");
    store.run(&[
        "container",
        "commit",
        "--message",
        "why",
        "--author",
        "me <me@here>",
        "--change",
        "CMD [\"a\", \"b\"]",
        "-c",
        "ENV NEW=$FOR-x",
        "-c",
        "EXPOSE 80",
        "-c",
        "WORKDIR /w",
        "-c",
        "LABEL k=v",
        "-c",
        "USER web",
        "-c",
        "VOLUME /v",
        "-c",
        "STOPSIGNAL SIGINT",
        "-c",
        "ONBUILD RUN x",
        "-c",
        "ENTRYPOINT [\"/e\"]",
        "one",
        "new:2",
    ]);
    let after = config_of(&store, "new:2");
    assert_eq!(
        after["config"],
        json!({
            "Cmd": ["a", "b"], "Entrypoint": ["/e"], "Env": ["PATH=/bin", "FOR=rich:1", "NEW=rich:1-x"],
            "ExposedPorts": {"80/tcp": {}}, "WorkingDir": "/w", "Labels": {"k": "v"}, "User": "web",
            "Volumes": {"/v": {}}, "StopSignal": "SIGINT", "OnBuild": ["RUN x"],
        })
    );
    let history = after["history"].as_array().unwrap();
    assert_eq!(history.len(), 4);
    assert_eq!(history[..3], before["history"].as_array().unwrap()[..]);
    let last = history.last().unwrap();
    assert_eq!(
        (&last["comment"], &last["author"]),
        (&json!("why"), &json!("me <me@here>"))
    );
    assert_eq!(last["created"], after["created"]);
    assert_eq!(after["author"], "me <me@here>");
    assert_eq!(after["rootfs"]["diff_ids"].as_array().unwrap().len(), 4);
    assert_eq!(after["architecture"], before["architecture"]);
    for bad in ["RUN x", "EXPOSE what", "CMD"] {
        let said = expect_failure(
            &store.try_run(&["container", "commit", "-c", bad, "one", "never:1"]),
            2,
        );
        assert!(said.contains(bad), "{said}");
    }
}

#[test]
fn what_was_run_is_the_command_of_the_new_image() {
    let (store, _) = store_with(&busybox());
    store.run(&[
        "run",
        "--name",
        "one",
        "-e",
        "A=b",
        "busybox:1",
        "sh",
        "-c",
        "echo x > /made",
    ]);
    assert_eq!(store.text(&["container", "diff", "one"]), "A /made\n");
    store.run(&["container", "commit", "one", "made:1"]);
    let config = config_of(&store, "made:1");
    assert_eq!(
        config["config"]["Cmd"],
        json!(["sh", "-c", "echo x > /made"])
    );
    assert_eq!(
        store.text(&["run", "--rm", "made:1", "cat", "/made"]),
        "x\n"
    );
}

#[test]
fn an_export_is_the_whole_tree() {
    let (store, _) = store_with(&rich());
    create(&store, &["--name", "one", "rich:1"]);
    let tree = mount(&store, &["one"]);
    fs::remove_file(tree.join("noted")).unwrap();
    fs::rename(tree.join("d"), tree.join("e")).unwrap();
    fs::write(tree.join("a/link"), "all").unwrap();
    let shown = tree_digest(&tree);
    let (file, dir) = (store.scratch.join("out.tar"), store.scratch.join("flat"));
    store.run(&["container", "export", "-o", file.to_str().unwrap(), "one"]);
    umount(&store, "one");
    let again = store.run(&["container", "export", "one"]);
    assert!(fs::read(&file).unwrap() == again, "live and afterwards");
    fs::create_dir(&dir).unwrap();
    let untar = [
        "--xattrs",
        "--xattrs-include=*",
        "-xpf",
        file.to_str().unwrap(),
        "-C",
        dir.to_str().unwrap(),
    ];
    crate::support::run("tar", &untar);
    assert_digests_equal(&shown, &tree_digest(&dir), "tar's tree");
}

#[test]
fn a_live_container_can_be_committed() {
    let (store, _) = store_with(&busybox());
    let mut child = store
        .command(&[
            "run",
            "--rm",
            "--name",
            "one",
            "busybox:1",
            "sh",
            "-c",
            "echo data > /file; echo up > /up; while :; do echo more >> /log; done",
        ])
        .spawn()
        .unwrap();
    let has_begun = || {
        let output = store.try_run(&["container", "diff", "one"]);
        String::from_utf8_lossy(&output.stdout).contains("A /up")
    };
    assert!(crate::support::wait_until(
        std::time::Duration::from_secs(20),
        has_begun
    ));
    expect_success(store.try_run(&["container", "commit", "one", "live:1"]));
    let listed = store.json(&["container", "ls", "--json"]);
    assert_eq!(listed[0]["status"], "running");
    store.run(&["container", "rm", "--force", "one"]);
    assert!(!child.wait().unwrap().success());
    assert_eq!(
        store.text(&["run", "--rm", "live:1", "cat", "/file"]),
        "data\n"
    );
    assert_eq!(store.json(&["container", "ls", "--json"]), json!([]));
    store.assert_clean();
}

/// Files of the large image.
const FILES: usize = 90_000;
/// What of podman's time a commit may take.
const SHARE: f64 = 0.1;

fn large() -> Image {
    let mut layer = Layer::new();
    for n in 0..FILES {
        if n % 300 == 0 {
            layer = layer.dir(&format!("d{}/", n / 300));
        }
        layer = layer.file(&format!("d{}/f{n}", n / 300), b"some content");
    }
    Image::new("large:1", vec![layer.build()])
}

fn change_ten_files(tree: &Path) {
    for n in 0..10 {
        fs::write(tree.join(format!("d{n}/f{}", n * 300)), "changed").unwrap();
    }
}

fn timed(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

/// podman has the same image, and rovl as its mount program, with which it is faster than with fuse-overlayfs. It
/// takes half a minute, so it does it once.
#[test]
fn a_commit_takes_a_tenth_of_podman_s_time() {
    require_program("podman");
    let (store, archive) = store_with(&large());
    create(&store, &["--name", "one", "large:1"]);
    change_ten_files(&mount(&store, &["one"]));
    umount(&store, "one");
    let commit =
        |n| timed(|| drop(store.run(&["container", "commit", "one", &format!("ours:{n}")])));
    let ours = (0..3).map(commit).min().unwrap();

    let scratch = Scratch::new();
    let option = format!("overlay.mount_program={}", rovl_bin().display());
    let podman = |args: &[&str]| {
        crate::random::podman(&scratch, &[&["--storage-opt", &option], args].concat())
    };
    podman(&["load", "-q", "-i", archive.to_str().unwrap()]);
    podman(&["create", "--name", "one", "large:1", "true"]);
    change_ten_files(Path::new(&podman(&["mount", "one"])));
    podman(&["umount", "one"]);
    let theirs = timed(|| drop(podman(&["commit", "-q", "one", "theirs:1"])));
    podman(&["rm", "-af"]);
    let share = ours.as_secs_f64() / theirs.as_secs_f64();
    eprintln!("commit: rovl {ours:?}, podman {theirs:?}: {share:.4}");
    assert!(
        share <= SHARE,
        "{ours:?} is {share:.4} of podman's {theirs:?}"
    );
}
