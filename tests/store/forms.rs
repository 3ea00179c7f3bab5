//! Every form of archive, from a file, a directory and standard input, in any order of members.

use serde_json::json;

use crate::builder::{
    Image, Layer, Members, Packed, archive, blob_name, descriptor, directory, docker_members,
    finish_oci, gzip, members_of, oci_image, oci_members, rich_layers,
};
use crate::rovl_command::{TestStore, expect_failure, expect_success};
use crate::support::require_root;

fn image() -> Image {
    Image::new("rich:1", rich_layers())
}

/// Saves an image and holds its layers and config against what was loaded.
fn assert_saved(store: &TestStore, name: &str, image: &Image) {
    let saved = members_of(&store.run(&["image", "save", name]));
    for content in image.layers.iter().chain([&image.config]) {
        assert!(
            saved.iter().any(|(_, saved)| saved == content),
            "a layer or the config of {name} is not in {:?}",
            saved.iter().map(|(name, _)| name).collect::<Vec<_>>()
        );
    }
    let oci = members_of(&store.run(&["image", "save", "--format", "oci", name]));
    for content in image.layers.iter().chain([&image.config]) {
        assert!(oci.contains(&(blob_name(content), content.clone())));
    }
}

/// A way to load an archive into a store.
type Load<'a> = &'a dyn Fn(&TestStore);

fn load_all_ways(members: &Members, image: &Image, name: &str) {
    let tar = archive(members);
    let ways: [(&str, Load<'_>); 4] = [
        ("file", &|store| {
            store.load(&tar);
        }),
        ("directory", &|store| {
            let dir = store.scratch.join("archive");
            directory(members, &dir);
            store.run(&["image", "load", dir.to_str().unwrap()]);
        }),
        ("stdin", &|store| {
            expect_success(store.feed(&["image", "load"], &tar));
        }),
        ("compressed stdin", &|store| {
            expect_success(store.feed(&["image", "load", "-"], &gzip(&tar)));
        }),
    ];
    for (way, load) in ways {
        let store = TestStore::new();
        load(&store);
        let listed = store.json(&["image", "ls", "--json"]);
        assert_eq!(listed[0]["id"], image.id(), "{way}: {listed}");
        assert_eq!(listed[0]["names"], json!([name]), "{way}");
        assert_saved(&store, name, image);
        store.assert_clean();
        store.assert_accounted();
    }
}

#[test]
fn a_docker_archive_is_loaded_and_saved_byte_for_byte() {
    require_root();
    for packed in Packed::ALL {
        let image = image().packed(packed);
        let members = docker_members(std::slice::from_ref(&image));
        load_all_ways(&members, &image, "rich:1");
    }
}

#[test]
fn an_oci_layout_is_loaded_and_saved_byte_for_byte() {
    require_root();
    for packed in Packed::ALL {
        let image = image().packed(packed);
        let members = oci_members(std::slice::from_ref(&image));
        load_all_ways(&members, &image, "rich:1");
    }
}

#[test]
fn members_may_come_in_any_order() {
    require_root();
    let image = image().packed(Packed::Gzip);
    for members in [
        docker_members(std::slice::from_ref(&image)),
        oci_members(std::slice::from_ref(&image)),
    ] {
        for turn in 0..members.len() {
            let mut members = members.clone();
            members.rotate_left(turn);
            if turn % 2 == 1 {
                members.reverse();
            }
            let store = TestStore::new();
            expect_success(store.feed(&["image", "load"], &archive(&members)));
            assert_saved(&store, "rich:1", &image);
        }
    }
}

#[test]
fn layers_of_a_docker_archive_may_be_links_to_one_another() {
    require_root();
    let layer = Layer::new().file("f", b"content").build();
    let image = Image::new("linked", vec![layer.clone(), layer.clone()]);
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    };
    add("aa/layer.tar", &layer);
    add("c.json", &image.config);
    let items = json!([{"Config": "c.json", "RepoTags": ["linked:latest"],
        "Layers": ["aa/layer.tar", "bb/layer.tar"]}]);
    add("manifest.json", items.to_string().as_bytes());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "bb/layer.tar", "../aa/layer.tar")
        .unwrap();
    let tar = tar.into_inner().unwrap();
    let store = TestStore::new();
    store.load(&tar);
    assert_saved(&store, "linked", &image);
    store.assert_clean();
    let store = TestStore::new();
    expect_success(store.feed(&["image", "load"], &tar));
    store.assert_clean();
}

#[test]
fn several_images_of_one_archive_share_their_layers() {
    require_root();
    let layers = rich_layers();
    let images = [
        Image::new("one:1", layers[..2].to_vec()),
        Image::new("two:1", layers.clone()),
        Image::new("", layers[..1].to_vec()),
    ];
    for members in [docker_members(&images), oci_members(&images)] {
        let store = TestStore::new();
        let loaded = store.load(&archive(&members));
        assert_eq!(loaded.as_array().unwrap().len(), 3, "{loaded}");
        let layers = store.json(&["layer", "ls", "--json"]);
        assert_eq!(layers.as_array().unwrap().len(), 3, "{layers}");
        assert_saved(&store, "one:1", &images[0]);
        assert_saved(&store, "two:1", &images[1]);
        store.assert_clean();
        // One archive of both has each layer once, and loads again.
        let both = store.run(&["image", "save", "one:1", "two:1"]);
        let store = TestStore::new();
        store.load(&both);
        assert_saved(&store, "two:1", &images[1]);
    }
}

#[test]
fn a_nested_index_gives_the_image_for_the_platform() {
    require_root();
    let of = |architecture| {
        let layer = Layer::new()
            .file("arch", str::as_bytes(architecture))
            .build();
        Image::for_platform("multi:1", vec![layer], architecture)
    };
    let images = [of("amd64"), of("arm64"), of("riscv64")];
    let mut members = Members::new();
    let entries: Vec<_> = images
        .iter()
        .map(|image| oci_image(image, &mut members))
        .collect();
    let inner = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let middle_entry = descriptor("application/vnd.oci.image.index.v1+json", inner.as_bytes());
    members.push((blob_name(inner.as_bytes()), inner.into_bytes()));
    let middle = json!({"schemaVersion": 2, "manifests": [middle_entry]}).to_string();
    let mut outer = descriptor("application/vnd.oci.image.index.v1+json", middle.as_bytes());
    outer["annotations"] = json!({"io.containerd.image.name": "docker.io/library/multi:1"});
    members.push((blob_name(middle.as_bytes()), middle.into_bytes()));
    finish_oci(&mut members, vec![outer]);
    let tar = archive(&members);

    for image in &images {
        let platform = format!("linux/{}", image.architecture);
        let store = TestStore::new();
        let path = store.scratch.join("a.tar");
        std::fs::write(&path, &tar).unwrap();
        let path = path.to_str().unwrap();
        store.run(&["image", "load", "--platform", &platform, path]);
        let listed = store.json(&["image", "ls", "--json"]);
        assert_eq!(listed[0]["id"], image.id(), "{platform}");
        assert_eq!(listed[0]["names"], json!(["multi:1"]));
        store.assert_clean();
    }
    let store = TestStore::new();
    store.load(&tar);
    let listed = store.json(&["image", "ls", "--json"]);
    let host = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    assert_eq!(listed[0]["platform"], format!("linux/{host}"));
    let missing = store.feed(&["image", "load", "--platform", "linux/s390x"], &tar);
    let said = expect_failure(&missing, 1);
    assert!(
        said.contains("no image for linux/s390x") && said.contains("linux/arm64"),
        "{said}"
    );
}

#[test]
fn loading_again_unpacks_nothing() {
    require_root();
    let image = image().packed(Packed::Gzip);
    let tar = archive(&oci_members(std::slice::from_ref(&image)));
    let store = TestStore::new();
    let first = store.load(&tar);
    let outcomes = |loaded: &serde_json::Value| -> Vec<String> {
        loaded[0]["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer["outcome"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(outcomes(&first), ["unpacked"; 3]);
    assert_eq!(outcomes(&store.load(&tar)), ["existed"; 3]);
    let again = expect_success(store.feed(&["image", "load", "--json"], &tar));
    let again = serde_json::from_slice(&again).unwrap();
    assert_eq!(outcomes(&again), ["existed"; 3]);
    store.assert_clean();
}

#[test]
fn a_layer_on_another_parent_is_cloned() {
    require_root();
    let layers = rich_layers();
    let other = Layer::new().file("other", b"base").build();
    let store = TestStore::new();
    store.load(&archive(&docker_members(&[Image::new(
        "a:1",
        layers.clone(),
    )])));
    let image = Image::new("b:1", vec![other, layers[0].clone(), layers[1].clone()]);
    let loaded = store.load(&archive(&docker_members(std::slice::from_ref(&image))));
    let outcomes: Vec<_> = (0..3)
        .map(|n| loaded[0]["layers"][n]["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["unpacked", "cloned", "cloned"]);
    let (a, b) = (store.lowers("a:1"), store.lowers("b:1"));
    crate::support::assert_trees_equal(&a[2], &b[1]);
    crate::support::assert_trees_equal(&a[1], &b[0]);
    assert_saved(&store, "b:1", &image);
    store.assert_clean();
}

#[test]
fn compressed_layers_are_reproducible_and_load_again() {
    require_root();
    let image = image();
    let store = TestStore::new();
    store.load(&archive(&docker_members(std::slice::from_ref(&image))));
    for how in ["gzip", "zstd"] {
        let args = [
            "image",
            "save",
            "--format",
            "oci",
            "--compress",
            how,
            "rich:1",
        ];
        let saved = store.run(&args);
        assert_eq!(saved, store.run(&args), "{how}");
        let other = TestStore::new();
        other.load(&saved);
        assert_saved(&other, "rich:1", &image);
        let dir = store.scratch.join(format!("dir-{how}"));
        let mut args = args.to_vec();
        args.extend(["--dir", "-o", dir.to_str().unwrap()]);
        store.run(&args);
        let other = TestStore::new();
        other.run(&["image", "load", dir.to_str().unwrap()]);
        assert_saved(&other, "rich:1", &image);
    }
}

#[test]
fn a_name_can_be_given_while_loading() {
    require_root();
    let store = TestStore::new();
    let tar = archive(&docker_members(&[Image::new("", rich_layers())]));
    expect_success(store.feed(&["image", "load", "--name", "given:2"], &tar));
    let listed = store.json(&["image", "ls", "--json"]);
    assert_eq!(listed[0]["names"], json!(["given:2"]));
    let two = [Image::new("x:1", rich_layers()), Image::new("y:1", vec![])];
    let refused = store.feed(
        &["image", "load", "--name", "z"],
        &archive(&docker_members(&two)),
    );
    expect_failure(&refused, 2);
}

/// A directory that a layer's tar has things in but doesn't describe shows the attributes of the layers below.
#[test]
fn a_directory_that_is_only_implied_keeps_its_attributes() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    require_root();
    let base = |mode, value: &[u8]| {
        Layer::new()
            .xattr("user.k", value)
            .entry(tar::EntryType::Directory, "d/", mode, b"")
            .dir("d/sub/")
            .file("d/sub/gone", b"x")
            .build()
    };
    let top = Layer::new()
        .whiteout("d/sub", "gone")
        .file("new/f", b"x")
        .build();
    let opaque = Layer::new().whiteout("", "d").file("d/sub/f", b"x").build();
    let store = TestStore::new();
    for (name, mode, value) in [("a:1", 0o1750, b"one"), ("b:1", 0o2705, b"two")] {
        let image = Image::new(name, vec![base(mode, value), top.clone(), opaque.clone()]);
        store.load(&archive(&docker_members(std::slice::from_ref(&image))));
        let lowers = store.lowers(name);
        let shown = |path: &str, layer: usize| {
            let metadata = std::fs::symlink_metadata(lowers[layer].join(path)).unwrap();
            (metadata.permissions().mode() & 0o7777, metadata.mtime())
        };
        assert_eq!(shown("d", 1), (mode, 1_600_000_000), "{name}");
        let keys = crate::support::xattrs(&lowers[1].join("d"));
        let value = Some(&value[..]);
        assert_eq!(keys.get("user.k").map(Vec::as_slice), value, "{name}");
        assert_eq!(shown("new", 1).0, 0o755);
        assert_eq!(shown("d", 0).0, 0o755, "what is opaque inherits nothing");
        assert_saved(&store, name, &image);
    }
    store.assert_clean();
}
