//! Several processes on one store at once.

use std::fs;
use std::process::{Child, Stdio};

use serde_json::json;

use crate::builder::{Image, Layer, archive, docker_members, rich_layers};
use crate::rovl_command::TestStore;
use crate::support::{pattern, require_root};

fn start(store: &TestStore, args: &[&str]) -> Child {
    store
        .command(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Ends well, or with one of these messages.
fn expect(child: Child, allowed: &[&str]) {
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() || allowed.iter().any(|text| said.contains(text)),
        "{}: {said}",
        output.status
    );
}

#[test]
fn the_same_image_loaded_by_many_at_once_is_there_once() {
    require_root();
    let store = TestStore::new();
    let path = store.scratch.join("a.tar");
    fs::write(
        &path,
        archive(&docker_members(&[Image::new("rich:1", rich_layers())])),
    )
    .unwrap();
    let args = ["image", "load", path.to_str().unwrap()];
    let children: Vec<Child> = (0..8).map(|_| start(&store, &args)).collect();
    for child in children {
        expect(child, &[]);
    }
    assert_eq!(
        store
            .json(&["layer", "ls", "--json"])
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(
        fs::read_dir(store.root.join("overlay2")).unwrap().count(),
        4
    );
    store.assert_clean();
    store.assert_accounted();
}

#[test]
fn loads_lists_tags_and_removals_run_at_once() {
    require_root();
    let store = TestStore::new();
    let mut paths = Vec::new();
    for n in 0..4 {
        let mut layers = rich_layers();
        layers.push(Layer::new().file("own", &pattern(n, 50_000)).build());
        let path = store.scratch.join(format!("{n}.tar"));
        let image = Image::new(&format!("image{n}:1"), layers);
        fs::write(&path, archive(&docker_members(&[image]))).unwrap();
        paths.push(path);
    }
    let gone = ["no such image", "no such layer", "in use"];
    for round in 0..6 {
        let mut children = Vec::new();
        for (n, path) in paths.iter().enumerate() {
            children.push(start(&store, &["image", "load", path.to_str().unwrap()]));
            let other = format!("image{}:1", (n + round) % 4);
            children.push(start(&store, &["image", "rm", &other]));
            children.push(start(&store, &["image", "ls"]));
            children.push(start(
                &store,
                &["image", "tag", &other, &format!("t{n}:{round}")],
            ));
            children.push(start(&store, &["store", "gc"]));
            children.push(start(&store, &["store", "df"]));
        }
        for child in children {
            expect(child, &gone);
        }
    }
    for path in &paths {
        store.run(&["image", "load", path.to_str().unwrap()]);
    }
    store.assert_clean();
    store.run(&["store", "gc"]);
    store.assert_accounted();
}

/// A stopped process that holds nothing of the store's lock doesn't keep others from anything, and what it was
/// doing is deleted once it is dead.
#[test]
fn a_process_that_stands_still_blocks_nobody() {
    require_root();
    let store = TestStore::new();
    let image = Image::new("rich:1", rich_layers());
    let tar = archive(&docker_members(std::slice::from_ref(&image)));
    let mut child = store
        .command(&["image", "load"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &tar[..tar.len() / 2]).unwrap();
    let transactions = store.root.join("rovl/tx");
    let has_begun =
        || fs::read_dir(&transactions).is_ok_and(|mut entries| entries.next().is_some());
    assert!(crate::support::wait_until(
        std::time::Duration::from_secs(10),
        has_begun
    ));
    store.load(&tar);
    store.run(&["image", "tag", "rich:1", "other"]);
    store.run(&["store", "gc"]);
    assert_eq!(
        fs::read_dir(&transactions).unwrap().count(),
        1,
        "gc took what a process works on"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    store.run(&["image", "tag", "rich:1", "third"]);
    assert_eq!(fs::read_dir(&transactions).unwrap().count(), 0);
    assert_eq!(
        store.json(&["image", "ls", "--json"])[0]["names"],
        json!(["other:latest", "rich:1", "third:latest"])
    );
    store.assert_clean();
}
