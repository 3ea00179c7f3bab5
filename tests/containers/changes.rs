//! What a container has changed, as a list and as a tar: whatever the upper keeps it as.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::images::{create, mount, rich, store_with, umount};
use crate::rovl_command::{TestStore, expect_failure};
use crate::support::files::set_times;

fn diff(store: &TestStore) -> Vec<String> {
    let text = store.text(&["container", "diff", "one"]);
    text.lines().map(str::to_owned).collect()
}

/// The entries of the diff's tar: what they are, and their content.
fn entries(store: &TestStore) -> BTreeMap<String, String> {
    let tar = store.run(&["container", "diff", "--tar", "one"]);
    let mut archive = tar::Archive::new(tar.as_slice());
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        let link = entry.link_name().unwrap();
        let link = link.map(|link| format!("-> {}", link.display()));
        assert!(found.insert(path, link.unwrap_or(content)).is_none());
    }
    found
}

/// Makes a container of `rich:1`, lets it be changed while mounted, and gives what differs, live and afterwards.
fn changed(
    options: &[&str],
    change: impl FnOnce(&Path),
) -> (Vec<String>, BTreeMap<String, String>) {
    let (store, _) = store_with(&rich());
    create(&store, &["--name", "one", "rich:1"]);
    let tree = mount(&store, &[options, &["one"]].concat());
    change(&tree);
    let live = (diff(&store), entries(&store));
    umount(&store, "one");
    let after = (diff(&store), entries(&store));
    assert_eq!(live, after, "live and afterwards");
    let json = store.json(&["container", "diff", "--json", "one"]);
    let lines: Vec<String> = json
        .as_array()
        .unwrap()
        .iter()
        .map(|c| {
            format!(
                "{} {}",
                c["kind"].as_str().unwrap(),
                c["path"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(lines, after.0);
    after
}

fn names(entries: &BTreeMap<String, String>) -> Vec<&str> {
    entries.keys().map(String::as_str).collect()
}

#[test]
fn added_changed_and_deleted() {
    let (lines, entries) = changed(&[], |tree| {
        fs::write(tree.join("a/new"), "new").unwrap();
        fs::write(tree.join("b/stays"), "other").unwrap();
        fs::remove_file(tree.join("noted")).unwrap();
        // Made and gone again: nothing.
        fs::write(tree.join("d/x"), "").unwrap();
        fs::remove_file(tree.join("d/x")).unwrap();
        // Read only: nothing.
        fs::read(tree.join("d/closed/f")).unwrap();
    });
    let expected = ["C /a", "A /a/new", "C /b", "C /b/stays", "C /d", "D /noted"];
    assert_eq!(lines, expected);
    assert_eq!(entries["a/new"], "new");
    assert_eq!(entries["b/stays"], "other");
    assert!(entries.contains_key(".wh.noted"), "{entries:?}");
}

#[test]
fn a_directory_made_anew_is_opaque() {
    let (lines, entries) = changed(&[], |tree| {
        fs::remove_dir_all(tree.join("a/deep")).unwrap();
        fs::create_dir(tree.join("a/deep")).unwrap();
        fs::write(tree.join("a/deep/file"), "anew").unwrap();
    });
    let expected = [
        "C /a",
        "C /a/deep",
        "D /a/deep/er",
        "C /a/deep/file",
        "D /a/deep/link",
        "D /a/deep/third",
    ];
    assert_eq!(lines, expected);
    assert_eq!(
        names(&entries),
        ["./", "a/", "a/deep/", "a/deep/.wh..wh..opq", "a/deep/file"]
    );
}

#[test]
fn a_renamed_directory_comes_as_a_whole() {
    for driver in ["fuse", "kernel"] {
        let (lines, entries) = changed(&["--driver", driver], |tree| {
            fs::rename(tree.join("a"), tree.join("moved")).unwrap();
            fs::write(tree.join("moved/deep/file"), "changed").unwrap();
            fs::remove_file(tree.join("moved/deep/er/file")).unwrap();
        });
        let expected = [
            "D /a",
            "A /moved",
            "A /moved/deep",
            "A /moved/deep/er",
            "A /moved/deep/file",
            "A /moved/deep/link",
            "A /moved/deep/third",
            "A /moved/file",
            "A /moved/link",
        ];
        assert_eq!(lines, expected, "{driver}");
        assert_eq!(entries["moved/deep/file"], "changed");
        assert_eq!(entries["moved/deep/third"], "3");
        assert_eq!(entries["moved/deep/link"], "one");
        assert_eq!(entries["moved/file"], "-> moved/deep/link");
        assert!(entries.contains_key(".wh.a"));
        assert!(
            !entries
                .keys()
                .any(|name| name.contains("moved/deep/er/") && name != "moved/deep/er/"),
            "{entries:?}"
        );
    }
}

#[test]
fn a_directory_renamed_over_the_place_of_another_hides_it() {
    let (lines, entries) = changed(&[], |tree| {
        fs::remove_dir_all(tree.join("c")).unwrap();
        fs::rename(tree.join("b"), tree.join("c")).unwrap();
        // And one within a renamed one.
        fs::rename(tree.join("c"), tree.join("d/c")).unwrap();
        fs::rename(tree.join("d"), tree.join("e")).unwrap();
    });
    let expected = [
        "D /b",
        "D /c",
        "D /d",
        "A /e",
        "A /e/c",
        "A /e/c/stays",
        "A /e/closed",
        "A /e/closed/f",
    ];
    assert_eq!(lines, expected);
    assert_eq!(entries["e/c/stays"], "y");
    assert_eq!(entries["e/closed/f"], "f");
}

#[test]
fn hard_links_of_the_image_change_under_all_their_names() {
    let (lines, entries) = changed(&[], |tree| {
        fs::write(tree.join("a/link"), "all").unwrap();
        for name in ["a/file", "a/link", "a/deep/link"] {
            assert_eq!(fs::read_to_string(tree.join(name)).unwrap(), "all");
        }
    });
    assert!(lines.contains(&"C /a/file".to_owned()), "{lines:?}");
    assert!(lines.contains(&"C /a/deep/link".to_owned()), "{lines:?}");
    assert_eq!(entries["a/deep/link"], "all");
    assert_eq!(entries["a/file"], "-> a/deep/link");
    assert_eq!(entries["a/link"], "-> a/deep/link");
    // What lies on the way has the image's attributes.
    assert!(entries.contains_key("a/deep/"));
}

#[test]
fn removing_one_name_of_a_file_changes_none_of_the_others() {
    for driver in ["fuse", "kernel"] {
        let args = ["--driver", driver];
        let (lines, entries) = changed(&args, |tree| {
            fs::remove_file(tree.join("a/link")).unwrap();
        });
        assert_eq!(lines, ["C /a", "D /a/link"], "{driver}");
        assert_eq!(names(&entries), ["./", "a/", "a/.wh.link"], "{driver}");
        // What was written before that is in all that are left, which stay one file.
        let (lines, entries) = changed(&args, |tree| {
            fs::write(tree.join("a/link"), "all").unwrap();
            fs::remove_file(tree.join("a/link")).unwrap();
        });
        assert!(lines.contains(&"C /a/file".to_owned()), "{lines:?}");
        assert_eq!(entries["a/deep/link"], "all", "{driver}");
        assert_eq!(entries["a/file"], "-> a/deep/link", "{driver}");
        // So it is when the time of the last change is taken back.
        let (_, entries) = changed(&args, |tree| {
            let time = fs::metadata(tree.join("a/link")).unwrap().mtime();
            fs::write(tree.join("a/link"), "two").unwrap();
            set_times(&tree.join("a/link"), (time, 0), (time, 0)).unwrap();
            fs::remove_file(tree.join("a/link")).unwrap();
        });
        assert_eq!(entries["a/deep/link"], "two", "{driver}");
        // A name in upper keeps all together.
        let (_, entries) = changed(&args, |tree| {
            fs::rename(tree.join("a/link"), tree.join("z")).unwrap();
        });
        assert_eq!(entries["a/deep/link"], "one", "{driver}");
        assert_eq!(entries["z"], "-> a/deep/link", "{driver}");
    }
}

#[test]
fn new_hard_links_stay_links() {
    let (_, entries) = changed(&[], |tree| {
        fs::hard_link(tree.join("noted"), tree.join("again")).unwrap();
        fs::write(tree.join("x"), "x").unwrap();
        fs::hard_link(tree.join("x"), tree.join("y")).unwrap();
    });
    assert_eq!(entries["again"], "n");
    assert_eq!(entries["noted"], "-> again");
    assert_eq!(entries["y"], "-> x");
}

#[test]
fn replaced_types_are_changes() {
    let (lines, entries) = changed(&[], |tree| {
        fs::remove_dir_all(tree.join("c")).unwrap();
        fs::write(tree.join("c"), "a file now").unwrap();
        fs::remove_file(tree.join("noted")).unwrap();
        fs::create_dir(tree.join("noted")).unwrap();
        fs::write(tree.join("noted/in"), "in").unwrap();
        fs::remove_file(tree.join("symlink")).unwrap();
        std::os::unix::fs::symlink("elsewhere", tree.join("symlink")).unwrap();
    });
    assert_eq!(lines, ["C /c", "C /noted", "A /noted/in", "C /symlink"]);
    assert_eq!(entries["c"], "a file now");
    assert_eq!(entries["symlink"], "-> elsewhere");
}

#[test]
fn attributes_alone_are_changes_and_metacopies_get_their_data() {
    let (store, _) = store_with(&rich());
    create(&store, &["--name", "one", "rich:1"]);
    // rovl's own mount leaves metacopies with that option only.
    let c = &store.json(&["container", "ls", "--json"])[0];
    let dir = store
        .root
        .join("overlay2")
        .join(c["mount_id"].as_str().unwrap());
    let overlay = store.root.join("overlay2");
    let lower = fs::read_to_string(dir.join("lower")).unwrap();
    let lowers: Vec<String> = lower
        .split(':')
        .map(|link| overlay.join(link).display().to_string())
        .collect();
    let merged = store.scratch.join("merged");
    fs::create_dir(&merged).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},metacopy=on,redirect_dir=on",
        lowers.join(":"),
        dir.join("diff").display(),
        dir.join("work").display()
    );
    crate::support::run(
        "mount",
        &[
            "-t",
            "overlay",
            "-o",
            &options,
            "o",
            merged.to_str().unwrap(),
        ],
    );
    fs::set_permissions(merged.join("noted"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(merged.join("b/stays"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(merged.join("b/stays"), merged.join("b/moved")).unwrap();
    crate::support::run("umount", &[merged.to_str().unwrap()]);
    assert_eq!(
        diff(&store),
        ["C /b", "A /b/moved", "D /b/stays", "C /noted"]
    );
    let entries = entries(&store);
    assert_eq!(
        (entries["noted"].as_str(), entries["b/moved"].as_str()),
        ("n", "y")
    );
    // What a chmod alone has changed of a directory is a change as well.
    let tree = mount(&store, &["one"]);
    fs::set_permissions(tree.join("d/closed"), fs::Permissions::from_mode(0o711)).unwrap();
    umount(&store, "one");
    assert!(diff(&store).contains(&"C /d/closed".to_owned()));
}

#[test]
fn a_name_that_no_layer_can_hold_is_refused_in_tars_and_listed() {
    let (store, _) = store_with(&rich());
    create(&store, &["--name", "one", "rich:1"]);
    let tree = mount(&store, &["--driver", "kernel", "one"]);
    fs::write(tree.join(".wh.odd"), "").unwrap();
    umount(&store, "one");
    assert_eq!(diff(&store), ["A /.wh.odd"]);
    let out = store.scratch.join("out.tar");
    let tar = [
        "container",
        "diff",
        "--tar",
        "-o",
        out.to_str().unwrap(),
        "one",
    ];
    let said = expect_failure(&store.try_run(&tar), 1);
    assert!(said.contains(".wh.odd"), "{said}");
    assert!(!out.exists());
    let said = expect_failure(&store.try_run(&["container", "commit", "one", "x:1"]), 1);
    assert!(said.contains(".wh.odd"), "{said}");
    expect_failure(&store.try_run(&["image", "inspect", "x:1"]), 1);
    store.assert_clean();
}

#[test]
fn the_same_changes_give_the_same_bytes() {
    let (store, _) = store_with(&rich());
    create(&store, &["--name", "one", "rich:1"]);
    let tree = mount(&store, &["one"]);
    fs::write(tree.join("x"), "x").unwrap();
    umount(&store, "one");
    let tar = |epoch: &str| {
        let output = store
            .command(&["container", "diff", "--tar", "one"])
            .env("SOURCE_DATE_EPOCH", epoch)
            .output()
            .unwrap();
        crate::rovl_command::expect_success(output)
    };
    let (first, second) = (tar("1000"), tar("1000"));
    assert_eq!(first, second);
    let mut archive = tar::Archive::new(first.as_slice());
    let latest = archive
        .entries()
        .unwrap()
        .map(|e| e.unwrap().header().mtime().unwrap())
        .max();
    assert_eq!(latest, Some(1000));
}
