//! Images made by the tests: layers as tars, put into archives of all forms.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use rovl::store::ids::Digest;
use serde_json::{Value, json};
use tar::{EntryType, Header};

/// A layer's tar in the making.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
}

impl Layer {
    pub fn new() -> Layer {
        Layer {
            tar: tar::Builder::new(Vec::new()),
        }
    }

    pub fn entry(mut self, kind: EntryType, path: &str, mode: u32, content: &[u8]) -> Layer {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        self.tar.append_data(&mut header, path, content).unwrap();
        self
    }

    pub fn dir(self, path: &str) -> Layer {
        self.entry(EntryType::Directory, path, 0o755, b"")
    }

    pub fn file(self, path: &str, content: &[u8]) -> Layer {
        self.entry(EntryType::Regular, path, 0o644, content)
    }

    pub fn whiteout(self, dir: &str, name: &str) -> Layer {
        let sep = if dir.is_empty() { "" } else { "/" };
        self.file(&format!("{dir}{sep}.wh.{name}"), b"")
    }

    pub fn link(mut self, kind: EntryType, path: &str, target: &str) -> Layer {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        // As archivers do: a hard link comes with the mode of the file, here that of `file`. Some programs (podman)
        // give the file that mode.
        header.set_mode(match kind {
            EntryType::Link => 0o644,
            _ => 0o777,
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(0);
        self.tar.append_link(&mut header, path, target).unwrap();
        self
    }

    /// An entry whose name is written as it is, however bad it is.
    pub fn raw(mut self, kind: u8, name: &[u8], target: &[u8], content: &[u8]) -> Layer {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        let bytes = header.as_mut_bytes();
        bytes[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        bytes[157..157 + target.len().min(100)].copy_from_slice(&target[..target.len().min(100)]);
        header.set_cksum();
        self.tar.append(&header, content).unwrap();
        self
    }

    pub fn xattr(mut self, key: &str, value: &[u8]) -> Layer {
        let key = format!("SCHILY.xattr.{key}");
        self.tar
            .append_pax_extensions([(key.as_str(), value)])
            .unwrap();
        self
    }

    pub fn pax(mut self, key: &str, value: &[u8]) -> Layer {
        self.tar.append_pax_extensions([(key, value)]).unwrap();
        self
    }

    pub fn build(self) -> Vec<u8> {
        self.tar.into_inner().unwrap()
    }
}

/// How a layer is compressed in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    Plain,
    Gzip,
    /// Several members.
    MultiGzip,
    Zstd,
    /// Several frames, skippable ones between them.
    MultiZstd,
}

impl Packed {
    pub const ALL: [Packed; 5] = [
        Packed::Plain,
        Packed::Gzip,
        Packed::MultiGzip,
        Packed::Zstd,
        Packed::MultiZstd,
    ];

    pub fn pack(self, tar: &[u8]) -> Vec<u8> {
        let middle = tar.len() / 2;
        match self {
            Packed::Plain => tar.to_vec(),
            Packed::Gzip => gzip(tar),
            Packed::MultiGzip => [gzip(&tar[..middle]), gzip(&tar[middle..])].concat(),
            Packed::Zstd => zstd::encode_all(tar, 3).unwrap(),
            Packed::MultiZstd => {
                let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'x', b'y', b'z'];
                let (one, two) = (&tar[..middle], &tar[middle..]);
                [
                    &skippable[..],
                    &zstd::encode_all(one, 3).unwrap(),
                    &skippable,
                    &zstd::encode_all(two, 3).unwrap(),
                    &skippable,
                ]
                .concat()
            }
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Packed::Plain => "application/vnd.oci.image.layer.v1.tar",
            Packed::Gzip | Packed::MultiGzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Packed::Zstd | Packed::MultiZstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image: layers (the base first), a config made for them, names.
#[derive(Clone)]
pub struct Image {
    pub layers: Vec<Vec<u8>>,
    pub packed: Packed,
    pub names: Vec<String>,
    pub config: Vec<u8>,
    pub architecture: &'static str,
}

impl Image {
    pub fn new(name: &str, layers: Vec<Vec<u8>>) -> Image {
        Image::for_platform(name, layers, "amd64")
    }

    pub fn for_platform(name: &str, layers: Vec<Vec<u8>>, architecture: &'static str) -> Image {
        let diff_ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
        let history: Vec<Value> = (0..layers.len())
            .map(|n| json!({"created": "2024-01-01T00:00:00Z", "created_by": format!("step {n}")}))
            .collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-02T03:04:05Z",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", format!("FOR={name}")]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        });
        let names = match name {
            "" => Vec::new(),
            name => vec![name.to_owned()],
        };
        Image {
            layers,
            packed: Packed::Plain,
            names,
            config: config.to_string().into_bytes(),
            architecture,
        }
    }

    pub fn packed(mut self, packed: Packed) -> Image {
        self.packed = packed;
        self
    }

    pub fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }
}

pub type Members = Vec<(String, Vec<u8>)>;

/// The members of a docker-archive, the manifest last, as `docker save` has it.
pub fn docker_members(images: &[Image]) -> Members {
    let mut members = Members::new();
    let mut items = Vec::new();
    for image in images {
        let mut layers = Vec::new();
        for layer in &image.layers {
            let blob = image.packed.pack(layer);
            let name = format!("{}/layer.tar", &Digest::of(layer).hex()[..40]);
            if !members.iter().any(|(known, _)| *known == name) {
                members.push((name.clone(), blob));
            }
            layers.push(name);
        }
        let config = format!("{}.json", Digest::of(&image.config).hex());
        members.push((config.clone(), image.config.clone()));
        items.push(json!({"Config": config, "RepoTags": image.names, "Layers": layers}));
    }
    let manifest = Value::from(items).to_string().into_bytes();
    members.push(("manifest.json".into(), manifest));
    members
}

pub fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(blob).to_string(), "size": blob.len()})
}

pub fn blob_name(blob: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(blob).hex())
}

/// Adds an image's blobs, and returns the descriptor of its manifest.
pub fn oci_image(image: &Image, members: &mut Members) -> Value {
    let mut add = |blob: Vec<u8>| {
        let name = blob_name(&blob);
        if !members.iter().any(|(known, _)| *known == name) {
            members.push((name, blob));
        }
    };
    let mut layers = Vec::new();
    for layer in &image.layers {
        let blob = image.packed.pack(layer);
        layers.push(descriptor(image.packed.media_type(), &blob));
        add(blob);
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &image.config),
        "layers": layers,
    })
    .to_string()
    .into_bytes();
    add(image.config.clone());
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    add(manifest);
    entry["platform"] = json!({"architecture": image.architecture, "os": "linux"});
    entry
}

/// The members of an OCI layout with an image for each name.
pub fn oci_members(images: &[Image]) -> Members {
    let mut members = Members::new();
    let mut manifests = Vec::new();
    for image in images {
        let entry = oci_image(image, &mut members);
        let mut named = false;
        for name in &image.names {
            let mut entry = entry.clone();
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
            manifests.push(entry);
            named = true;
        }
        if !named {
            manifests.push(entry);
        }
    }
    finish_oci(&mut members, manifests);
    members
}

pub fn finish_oci(members: &mut Members, manifests: Vec<Value>) {
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    members.push((
        "oci-layout".into(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    ));
    members.push(("index.json".into(), index.into_bytes()));
}

/// Members as a tar.
pub fn archive(members: &Members) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_slice())
            .unwrap();
    }
    tar.into_inner().unwrap()
}

/// Members as a directory.
pub fn directory(members: &Members, path: &Path) {
    for (name, content) in members {
        let path = path.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// The members of a tar.
pub fn members_of(tar: &[u8]) -> Members {
    let mut archive = tar::Archive::new(tar);
    archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (name, content)
        })
        .collect()
}

/// Layers with everything that overlay has to get right: replaced directories, deletions, links.
pub fn rich_layers() -> Vec<Vec<u8>> {
    let big: Vec<u8> = crate::support::pattern(7, 300_000);
    let base = Layer::new()
        .dir("etc/")
        .file("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .file("etc/hosts", b"127.0.0.1 localhost\n")
        .dir("usr/")
        .dir("usr/bin/")
        .entry(EntryType::Regular, "usr/bin/su", 0o4755, &big)
        .link(EntryType::Link, "usr/bin/su2", "usr/bin/su")
        .link(EntryType::Symlink, "bin", "usr/bin")
        .dir("opt/")
        .dir("opt/a/")
        .file("opt/a/one", b"1")
        .file("opt/a/two", b"2")
        .dir("opt/b/")
        .file("opt/b/gone", b"x")
        .entry(EntryType::Fifo, "opt/pipe", 0o600, b"")
        .xattr("user.note", b"a\nb=c\0d")
        .file("opt/noted", b"n")
        .build();
    let middle = Layer::new()
        .dir("opt/")
        .dir("opt/a/")
        .file("opt/a/.wh..wh..opq", b"")
        .file("opt/a/three", b"3")
        .whiteout("opt/b", "gone")
        .whiteout("etc", "hosts")
        .entry(EntryType::Directory, "tmp/", 0o1777, b"")
        .build();
    let top = Layer::new()
        .dir("etc/")
        .file("etc/passwd", b"changed\n")
        .file(&format!("long/{}", "n".repeat(200)), b"long")
        .build();
    vec![base, middle, top]
}
