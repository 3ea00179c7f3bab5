//! Archives that were made to do harm, or were damaged: each gets a clear error, from a file and from standard
//! input, leaves nothing in the store, and touches nothing outside of it.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tar::EntryType;

use crate::builder::{
    Image, Layer, Members, Packed, archive, blob_name, descriptor, docker_members, finish_oci,
    gzip, oci_image, oci_members, rich_layers,
};
use crate::rovl_command::TestStore;
use crate::support::{require_root, tree_digest};

/// An archive and what the error must say.
struct Bad {
    name: &'static str,
    archive: Vec<u8>,
    says: &'static str,
}

fn bad(name: &'static str, archive: Vec<u8>, says: &'static str) -> Bad {
    Bad {
        name,
        archive,
        says,
    }
}

/// How long one may take to be refused.
const PATIENCE: Duration = Duration::from_secs(60);

/// Loads each and looks around.
fn assert_refused(corpus: Vec<Bad>) {
    require_root();
    let store = TestStore::new();
    let canary = store.scratch.join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "untouched").unwrap();
    let before = tree_digest(&canary);
    let count = corpus.len();
    for Bad {
        name,
        archive,
        says,
    } in corpus
    {
        let path = store.scratch.join("bad.tar");
        fs::write(&path, &archive).unwrap();
        let start = Instant::now();
        let from_file = refused(&store, Some(&path), &[]);
        let from_stdin = refused(&store, None, &archive);
        assert!(
            start.elapsed() < PATIENCE,
            "{name} took {:?}",
            start.elapsed()
        );
        for (way, (code, said)) in [("file", from_file), ("stdin", from_stdin)] {
            assert_eq!(code, Some(1), "{name} from {way}: {said}");
            assert!(said.starts_with("rovl: "), "{name} from {way}: {said}");
            assert!(
                said.contains(says),
                "{name} from {way} should say {says:?}: {said}"
            );
            assert!(
                said.len() < 2000,
                "{name} from {way}: {} bytes of error",
                said.len()
            );
        }
        let names = |dir: &str| -> Vec<String> {
            fs::read_dir(store.root.join(dir))
                .map(|entries| {
                    entries
                        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                        .collect()
                })
                .unwrap_or_default()
        };
        assert_eq!(names("rovl/tx"), Vec::<String>::new(), "{name}");
        assert_eq!(names("overlay2"), ["l"], "{name}");
        assert_eq!(
            names("image/overlay2/layerdb/sha256"),
            Vec::<String>::new(),
            "{name}"
        );
        assert_eq!(
            names("image/overlay2/imagedb/content/sha256"),
            Vec::<String>::new(),
            "{name}"
        );
        crate::support::assert_digests_equal(&before, &tree_digest(&canary), name);
    }
    eprintln!("{count} archives refused");
    store.assert_clean();
}

/// Memory that a load may have, in bytes: all that it can write to, whether it did or not.
const MEMORY: u64 = 256 << 20;

/// Each layer wants 128 MiB to be decompressed: one gets them at a time.
#[test]
fn large_windows_are_had_one_after_another() {
    require_root();
    let store = TestStore::new();
    let layers = (0..8_u64).map(|n| {
        let content = crate::support::pattern(n, 1_000_000);
        Layer::new().file(&format!("f{n}"), &content).build()
    });
    let image = Image::new("windows:1", layers.collect());
    let mut members = docker_members(std::slice::from_ref(&image));
    for (name, content) in &mut members {
        if name.ends_with("layer.tar") {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(27).unwrap();
            encoder.write_all(content).unwrap();
            *content = encoder.finish().unwrap();
        }
    }
    let path = store.scratch.join("windows.tar");
    fs::write(&path, archive(&members)).unwrap();
    let load = store.command(&["image", "load", "--jobs", "3"]);
    let output = Command::new("prlimit")
        .arg(format!("--data={MEMORY}"))
        .arg(load.get_program())
        .args(load.get_args())
        .arg(&path)
        .output()
        .unwrap();
    crate::rovl_command::expect_success(output);
    store.assert_clean();
}

/// Loads an archive from a file, or from standard input, with so much memory: the exit code and the error.
fn refused(store: &TestStore, path: Option<&Path>, input: &[u8]) -> (Option<i32>, String) {
    let load = store.command(&["image", "load"]);
    let mut command = Command::new("prlimit");
    command.arg(format!("--data={MEMORY}"));
    command.arg(load.get_program()).args(load.get_args());
    command.args(path).stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A program that gives up early doesn't read all.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output().unwrap()
    });
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

fn docker(layers: Vec<Vec<u8>>) -> Vec<u8> {
    archive(&docker_members(&[Image::new("bad:1", layers)]))
}

fn one(layer: Layer) -> Vec<u8> {
    docker(vec![layer.build()])
}

fn good() -> Image {
    Image::new("bad:1", rich_layers())
}

/// A good docker-archive with one thing changed.
fn changed(change: impl FnOnce(&mut Members)) -> Vec<u8> {
    let mut members = docker_members(&[good()]);
    change(&mut members);
    archive(&members)
}

fn with_manifest(manifest: &str) -> Vec<u8> {
    changed(|members| members.last_mut().unwrap().1 = manifest.as_bytes().to_vec())
}

fn with_config(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut image = good();
    let mut config: Value = serde_json::from_slice(&image.config).unwrap();
    change(&mut config);
    image.config = config.to_string().into_bytes();
    archive(&docker_members(&[image]))
}

#[test]
fn bad_docker_archives() {
    let whole = archive(&docker_members(&[good()]));
    let manifest = |edit: &dyn Fn(&mut Value)| {
        changed(|members| {
            let last = members.last_mut().unwrap();
            let mut value: Value = serde_json::from_slice(&last.1).unwrap();
            edit(&mut value);
            last.1 = value.to_string().into_bytes();
        })
    };
    assert_refused(vec![
        bad("nothing", Vec::new(), "neither a manifest.json"),
        bad("zeros", vec![0; 4096], "neither a manifest.json"),
        bad("garbage", crate::support::pattern(1, 5000), ""),
        bad("text", b"hello, this is no archive\n".repeat(100), ""),
        bad("cut in a header", whole[..300].to_vec(), ""),
        bad("cut in a member", whole[..whole.len() / 2].to_vec(), ""),
        bad(
            "cut before the manifest",
            whole[..whole.len() - 2560].to_vec(),
            "",
        ),
        bad(
            "no manifest",
            changed(|m| drop(m.pop())),
            "neither a manifest.json",
        ),
        bad(
            "a manifest that is no JSON",
            with_manifest("{"),
            "manifest.json can't be read",
        ),
        bad("an empty manifest", with_manifest("[]"), "lists no image"),
        bad(
            "a manifest that is an object",
            with_manifest("{\"Config\":\"x\"}"),
            "can't be read",
        ),
        bad(
            "keys that come twice",
            with_manifest("[{\"Config\":\"a\",\"Config\":\"b\"}]"),
            "duplicate",
        ),
        bad(
            "no config",
            manifest(&|v| v[0]["Config"] = json!("none.json")),
            "none.json is missing",
        ),
        bad(
            "a config outside",
            manifest(&|v| v[0]["Config"] = json!("../../etc/passwd")),
            "no name of a member",
        ),
        bad(
            "a layer outside",
            manifest(&|v| v[0]["Layers"][0] = json!("../x")),
            "no name of a member",
        ),
        bad(
            "a missing layer",
            manifest(&|v| v[0]["Layers"][1] = json!("x.tar")),
            "x.tar is missing",
        ),
        bad(
            "a layer too few",
            manifest(&|v| drop(v[0]["Layers"].as_array_mut().unwrap().pop())),
            "lists 3 layers",
        ),
        bad(
            "layers swapped",
            manifest(&|v| v[0]["Layers"].as_array_mut().unwrap().swap(0, 1)),
            "its digest should be",
        ),
        bad(
            "a name that is none",
            manifest(&|v| v[0]["RepoTags"] = json!(["../x:1"])),
            "no name of an image",
        ),
        bad(
            "a config with another digest",
            changed(|m| {
                let config = m
                    .iter_mut()
                    .find(|(name, _)| name.ends_with(".json"))
                    .unwrap();
                config.1.push(b' ');
            }),
            "should have the digest",
        ),
        bad(
            "a config that is no JSON",
            with_config(|c| *c = json!("x")),
            "config can't be read",
        ),
        bad(
            "another kind of root",
            with_config(|c| c["rootfs"]["type"] = json!("squash")),
            "not layers",
        ),
        bad(
            "a diff-id that is none",
            with_config(|c| c["rootfs"]["diff_ids"][0] = json!("sha256:..")),
            "no diff-id",
        ),
        bad(
            "a wrong diff-id",
            with_config(|c| {
                c["rootfs"]["diff_ids"][2] = json!(format!("sha256:{}", "0".repeat(64)));
            }),
            "its digest should be",
        ),
        bad(
            "a giant config",
            with_config(|c| c["config"]["Env"] = json!(["x".repeat(9 << 20)])),
            "",
        ),
        bad(
            "501 layers",
            docker(vec![Layer::new().file("f", b"x").build(); 501]),
            "501 layers",
        ),
        bad(
            "a member twice",
            changed(|m| {
                let copy = m[0].clone();
                m.push(copy);
            }),
            "is in it twice",
        ),
        bad(
            "links in a circle",
            {
                let mut tar = tar::Builder::new(Vec::new());
                for (name, target) in [("manifest.json", "b"), ("b", "manifest.json")] {
                    let mut header = tar::Header::new_gnu();
                    header.set_entry_type(EntryType::Symlink);
                    header.set_size(0);
                    tar.append_link(&mut header, name, target).unwrap();
                }
                tar.into_inner().unwrap()
            },
            "circle",
        ),
        bad(
            "a link that leads out",
            {
                let mut tar = tar::Builder::new(Vec::new());
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, "manifest.json", "../../etc/passwd")
                    .unwrap();
                tar.into_inner().unwrap()
            },
            "leads out",
        ),
        bad(
            "a device",
            Layer::new()
                .entry(EntryType::Block, "sda", 0o600, b"")
                .build(),
            "no image has",
        ),
    ]);
}

/// A good OCI layout with the index changed.
fn oci(edit: impl FnOnce(&mut Members, Value) -> Vec<Value>) -> Vec<u8> {
    let mut members = Members::new();
    let entry = oci_image(&good(), &mut members);
    let manifests = edit(&mut members, entry);
    finish_oci(&mut members, manifests);
    archive(&members)
}

/// A good OCI layout with the manifest changed.
fn manifest(edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    oci(|members, entry| {
        let digest = entry["digest"]
            .as_str()
            .unwrap()
            .replace("sha256:", "blobs/sha256/");
        let (_, text) = members.iter().find(|(name, _)| *name == digest).unwrap();
        let mut value: Value = serde_json::from_slice(text).unwrap();
        edit(&mut value);
        let text = value.to_string().into_bytes();
        let entry = descriptor("application/vnd.oci.image.manifest.v1+json", &text);
        members.push((blob_name(&text), text));
        vec![entry]
    })
}

fn nested(depth: usize) -> Vec<u8> {
    oci(|members, mut entry| {
        for _ in 0..depth {
            let index = json!({"schemaVersion": 2, "manifests": [entry]})
                .to_string()
                .into_bytes();
            entry = descriptor("application/vnd.oci.image.index.v1+json", &index);
            members.push((blob_name(&index), index));
        }
        vec![entry]
    })
}

#[test]
fn bad_oci_layouts() {
    let broken_blob = |nth: usize| {
        oci(|members, entry| {
            let last = members[nth].1.len() - 1;
            members[nth].1[last] ^= 1;
            vec![entry]
        })
    };
    let zeros = format!("sha256:{}", "0".repeat(64));
    assert_refused(vec![
        bad(
            "an index that is a manifest",
            {
                let mut members = oci_members(&[good()]);
                let blob = json!({"digest": zeros, "size": 1});
                members.last_mut().unwrap().1 = json!({"config": blob, "layers": []})
                    .to_string()
                    .into_bytes();
                archive(&members)
            },
            "index.json is no index",
        ),
        bad(
            "a manifest that is an index",
            manifest(|v: &mut Value| v["manifests"] = json!([])),
            "at once",
        ),
        bad(
            "a manifest without config",
            manifest(|v| drop(v.as_object_mut().unwrap().remove("config"))),
            "neither",
        ),
        bad(
            "schema 1",
            manifest(|v| *v = json!({"schemaVersion": 1, "fsLayers": []})),
            "schema 1",
        ),
        bad("no images", oci(|_, _| Vec::new()), "lists no image"),
        bad("nested too deep", nested(12), "nested deeper"),
        bad(
            "an index that names itself",
            oci(|members, _| {
                // By digest it can't; it can only claim to.
                let own =
                    json!({"schemaVersion": 2, "manifests": [{"digest": zeros, "size": 100}]})
                        .to_string();
                members.push((
                    format!("blobs/sha256/{}", "0".repeat(64)),
                    own.clone().into_bytes(),
                ));
                vec![json!({"digest": zeros, "size": own.len()})]
            }),
            "should have the digest",
        ),
        bad(
            "a missing manifest",
            oci(|_, _| vec![json!({"digest": zeros, "size": 1})]),
            "is missing",
        ),
        bad(
            "another algorithm",
            oci(|_, _| vec![json!({"digest": "sha512:00", "size": 1})]),
            "no digest",
        ),
        bad(
            "a digest that leads out",
            oci(|_, _| vec![json!({"digest": "sha256:../../../etc/passwd", "size": 1})]),
            "no digest",
        ),
        bad(
            "a negative size",
            oci(|_, mut e| {
                e["size"] = json!(-1);
                vec![e]
            }),
            "can't be read",
        ),
        bad(
            "a wrong size of a manifest",
            oci(|_, mut e| {
                e["size"] = json!(7);
                vec![e]
            }),
            "bytes, not 7",
        ),
        bad("a broken base layer", broken_blob(0), "layer blobs/sha256/"),
        bad("a broken top layer", broken_blob(2), "layer blobs/sha256/"),
        bad("a broken config", broken_blob(3), "digest"),
        bad(
            "a wrong size of a layer",
            manifest(|v| v["layers"][0]["size"] = json!(12)),
            "bytes, not 12",
        ),
        bad(
            "a missing layer",
            manifest(|v| v["layers"][0]["digest"] = json!(zeros)),
            "is missing",
        ),
        bad(
            "a layer too many",
            manifest(|v| {
                let layer = v["layers"][0].clone();
                v["layers"].as_array_mut().unwrap().push(layer);
            }),
            "lists 3 layers",
        ),
        bad(
            "an encrypted layer",
            manifest(|v| {
                v["layers"][0]["mediaType"] =
                    json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
            }),
            "no image of a root file system",
        ),
        bad(
            "a chart",
            manifest(|v| {
                v["layers"][0]["mediaType"] =
                    json!("application/vnd.cncf.helm.chart.content.v1.tar+gzip");
            }),
            "no image of a root file system",
        ),
        bad(
            "only other platforms",
            oci(|_, entry| {
                ["s390x", "mips"]
                    .map(|architecture| {
                        let mut entry = entry.clone();
                        entry["platform"] = json!({"os": "linux", "architecture": architecture});
                        entry
                    })
                    .to_vec()
            }),
            "no image for linux/",
        ),
        bad(
            "a name that is none",
            oci(|_, mut entry| {
                entry["annotations"] = json!({"io.containerd.image.name": "../a b:c"});
                vec![entry]
            }),
            "no name of an image",
        ),
        bad(
            "a million descriptors",
            oci(|_, entry| vec![entry; 10_001]),
            "at most 10000",
        ),
    ]);
}

fn packed(blob: Vec<u8>, layer: &[u8]) -> Vec<u8> {
    let mut members = docker_members(&[Image::new("bad:1", vec![layer.to_vec()])]);
    members[0].1 = blob;
    archive(&members)
}

/// gzip of a tar with one file of zeros.
fn bomb(bytes: u64) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_cksum();
    encoder.write_all(header.as_bytes()).unwrap();
    let chunk = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        encoder.write_all(&chunk).unwrap();
    }
    encoder.write_all(&[0; 1024]).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bad_compression() {
    let layer = rich_layers().remove(0);
    let (gz, zst) = (gzip(&layer), Packed::Zstd.pack(&layer));
    let flipped = |blob: &[u8], from_end: usize| {
        let mut blob = blob.to_vec();
        let at = blob.len() - from_end;
        blob[at] ^= 0x55;
        blob
    };
    assert_refused(vec![
        bad(
            "gzip cut",
            packed(gz[..gz.len() - 100].to_vec(), &layer),
            "truncated",
        ),
        bad(
            "gzip cut in its trailer",
            packed(gz[..gz.len() - 3].to_vec(), &layer),
            "truncated",
        ),
        bad(
            "gzip with garbage",
            packed([&gz[..], b"garbage"].concat(), &layer),
            "garbage",
        ),
        bad(
            "gzip with a wrong checksum",
            packed(flipped(&gz, 7), &layer),
            "damaged",
        ),
        bad(
            "gzip with a wrong length",
            packed(flipped(&gz, 2), &layer),
            "damaged",
        ),
        bad(
            "gzip damaged",
            packed(flipped(&gz, gz.len() / 2), &layer),
            "",
        ),
        bad(
            "zstd cut",
            packed(zst[..zst.len() - 100].to_vec(), &layer),
            "truncated",
        ),
        bad(
            "zstd with garbage",
            packed([&zst[..], b"garbage"].concat(), &layer),
            "",
        ),
        bad(
            "zstd damaged",
            packed(flipped(&zst, zst.len() / 2), &layer),
            "",
        ),
        bad(
            "zstd that wants 2 GiB of memory",
            packed(
                [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8][..], &[0; 64]].concat(),
                &layer,
            ),
            "",
        ),
        bad("a bomb", packed(bomb(3 << 30), &layer), "times its size"),
    ]);
}

fn header(edit: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("file").unwrap();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    edit(&mut header);
    header.set_cksum();
    [header.as_bytes().as_slice(), &[0; 1024]].concat()
}

#[test]
fn bad_layers() {
    let link = EntryType::Link;
    let long = "x".repeat(1 << 20);
    let deep = "d/".repeat(1500);
    assert_refused(vec![
        bad(
            "a name with ..",
            one(Layer::new().raw(b'0', b"../canary/file", b"", b"x")),
            "layer",
        ),
        bad(
            "a name with .. inside",
            one(Layer::new()
                .dir("a/")
                .raw(b'0', b"a/../../canary/file", b"", b"x")),
            "layer",
        ),
        bad(
            "a hard link outside",
            one(Layer::new().raw(b'1', b"l", b"../../canary/file", b"")),
            "layer",
        ),
        bad(
            "a hard link to nothing",
            one(Layer::new().link(link, "l", "gone")),
            "layer",
        ),
        bad(
            "a hard link to itself",
            one(Layer::new().link(link, "l", "l")),
            "layer",
        ),
        bad(
            "hard links in a circle",
            one(Layer::new().link(link, "a", "b").link(link, "b", "a")),
            "layer",
        ),
        bad(
            "a hard link to a directory",
            one(Layer::new().dir("d/").link(link, "l", "d")),
            "layer",
        ),
        bad(
            "an entry twice",
            one(Layer::new().file("f", b"1").file("f", b"2")),
            "layer",
        ),
        bad(
            "an entry twice, spelled differently",
            one(Layer::new().file("f", b"1").file("./f", b"2")),
            "layer",
        ),
        bad(
            "a bare whiteout",
            one(Layer::new().file(".wh.", b"")),
            "layer",
        ),
        bad(
            "a whiteout of .",
            one(Layer::new().file("d/.wh..", b"")),
            "layer",
        ),
        bad(
            "a whiteout of ..",
            one(Layer::new().file("d/.wh...", b"")),
            "layer",
        ),
        bad(
            "an unknown type",
            one(Layer::new().raw(b'Z', b"f", b"", b"")),
            "layer",
        ),
        bad(
            "a multi-volume part",
            one(Layer::new().raw(b'M', b"f", b"", b"")),
            "layer",
        ),
        bad(
            "an empty name",
            one(Layer::new().raw(b'0', b"", b"", b"x")),
            "layer",
        ),
        bad(
            "a PAX record without length",
            one(Layer::new()
                .raw(b'x', b"pax", b"", b"nonsense\n")
                .file("f", b"")),
            "layer",
        ),
        bad(
            "a PAX record too short",
            one(Layer::new()
                .raw(b'x', b"pax", b"", b"99 path=a\n")
                .file("f", b"")),
            "layer",
        ),
        bad(
            "a PAX size that disagrees with the end",
            one(Layer::new().pax("size", b"999999999").file("f", b"x")),
            "layer",
        ),
        bad(
            "a negative PAX size",
            one(Layer::new().pax("size", b"-1").file("f", b"x")),
            "layer",
        ),
        bad(
            "a PAX path with NUL",
            one(Layer::new().pax("path", b"a\0b").file("f", b"x")),
            "layer",
        ),
        bad(
            "a PAX time that is none",
            one(Layer::new().pax("mtime", b"soon").file("f", b"x")),
            "layer",
        ),
        bad(
            "a PAX owner that is none",
            one(Layer::new().pax("uid", b"root").file("f", b"x")),
            "layer",
        ),
        bad(
            "an owner too large",
            one(Layer::new().pax("uid", b"4294967295").file("f", b"x")),
            "layer",
        ),
        bad(
            "a PAX header without an entry",
            docker(vec![
                [&Layer::new().pax("path", b"a").build()[..1024], &[0; 1024]].concat(),
            ]),
            "layer",
        ),
        bad(
            "a giant PAX header",
            one(Layer::new()
                .pax("comment", &vec![b'x'; 2 << 20])
                .file("f", b"")),
            "layer",
        ),
        bad(
            "a name of 1 MiB",
            one(Layer::new().file(&long, b"")),
            "layer",
        ),
        bad(
            "a component too long",
            one(Layer::new().file(&"n".repeat(300), b"")),
            "layer",
        ),
        bad("a path too deep", one(Layer::new().dir(&deep)), "layer"),
        bad(
            "an attribute too large",
            one(Layer::new()
                .xattr("user.x", &vec![1; 300 << 10])
                .file("f", b"")),
            "layer",
        ),
        bad(
            "a negative size",
            docker(vec![header(|h| {
                h.as_old_mut().size = [0xff; 12];
            })]),
            "layer",
        ),
        bad(
            "a giant size",
            docker(vec![header(|h| h.set_size(1 << 62))]),
            "layer",
        ),
        bad(
            "a size that is no number",
            docker(vec![header(|h| {
                h.as_old_mut().size = *b"zzzzzzzzzzz\0";
            })]),
            "layer",
        ),
        bad(
            "a size too large for the layer",
            docker(vec![header(|h| h.set_size(1 << 20))]),
            "layer",
        ),
        bad(
            "a wrong header checksum",
            {
                let mut layer = Layer::new().file("a", b"x").file("b", b"y").build();
                layer[1024 + 150] ^= 1;
                docker(vec![layer])
            },
            "layer",
        ),
        bad(
            "cut in a file",
            {
                let layer = Layer::new().file("f", &[7; 5000]).build();
                docker(vec![layer[..2048].to_vec()])
            },
            "layer",
        ),
        bad(
            "a whiteout of a name in the same layer and a directory as a file",
            one(Layer::new()
                .file("d", b"x")
                .file("d/below", b"y")
                .file("d/below", b"z")),
            "layer",
        ),
        bad(
            "a giant sparse file",
            one(Layer::new()
                .pax("GNU.sparse.major", b"1")
                .file("f", b"nonsense")),
            "layer",
        ),
    ]);
}

/// What is odd but allowed must stay beneath the layer.
#[test]
fn links_never_lead_out_of_a_layer() {
    require_root();
    let store = TestStore::new();
    let canary = store.scratch.join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "untouched").unwrap();
    fs::write(canary.join(".wh.file"), "untouched").unwrap();
    let before = tree_digest(&canary);
    let target = canary.to_str().unwrap();
    let up = "../".repeat(20) + target.trim_start_matches('/');
    let symlink = EntryType::Symlink;
    for (n, to) in [target, up.as_str()].into_iter().enumerate() {
        let layers = [
            Layer::new().link(symlink, "a", to).file("a/file", b"pwned"),
            Layer::new().link(symlink, "a", to).file("a/new", b"pwned"),
            Layer::new().link(symlink, "a", to).whiteout("a", "file"),
            Layer::new()
                .link(symlink, "a", to)
                .file("a/.wh..wh..opq", b""),
            Layer::new().link(symlink, "a", to).dir("a/sub/"),
            Layer::new()
                .link(symlink, "a", to)
                .link(EntryType::Link, "b", "a/file"),
            Layer::new()
                .link(symlink, "a", to)
                .entry(EntryType::Directory, "a", 0o777, b""),
            Layer::new()
                .link(symlink, "a", to)
                .link(EntryType::Link, "b", "a")
                .file("b/file", b"pwned"),
            Layer::new().raw(b'0', format!("{to}/file").as_bytes(), b"", b"pwned"),
        ];
        for (m, layer) in layers.into_iter().enumerate() {
            let image = Image::new("odd:1", vec![layer.build()]);
            let tar = archive(&docker_members(&[image]));
            let output = store.feed(&["image", "load", "--name", &format!("odd{n}:{m}")], &tar);
            let code = output.status.code();
            assert!(code == Some(0) || code == Some(1), "{n}.{m}: {output:?}");
            crate::support::assert_digests_equal(&before, &tree_digest(&canary), "canary");
        }
    }
    store.run(&["store", "gc"]);
    store.assert_clean();
}
