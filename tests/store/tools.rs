//! Round trips with images that other tools made, and other tools reading what rovl wrote.
//!
//! Needs root, buildah, podman, skopeo, umoci, mmdebstrap with this machine's apt sources, dockerd (Debian's
//! docker.io), setfattr, setfacl, and a static busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rovl::store::ids::Digest;
use serde_json::Value;

use crate::builder::{Members, blob_name, members_of};
use crate::rovl_command::{TestStore, expect_failure, expect_success};
use crate::support::{
    EntryDigest, Scratch, assert_digests_equal, require_program, require_root, run, tree_digest,
    wait_until,
};

type Tree = std::collections::BTreeMap<PathBuf, EntryDigest>;

/// Without the root itself, of which these layers say nothing: each tool makes it as it likes.
fn without_root(mut tree: Tree) -> Tree {
    tree.remove(Path::new("."));
    tree
}

/// buildah and podman on a storage of their own.
struct Storage {
    scratch: Scratch,
}

impl Storage {
    fn new() -> Storage {
        for program in ["buildah", "podman", "skopeo"] {
            require_program(program);
        }
        Storage {
            scratch: Scratch::new(),
        }
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(program);
        if program == "podman" {
            // Else all podmans share one directory, which another's reset removes.
            command.arg("--tmpdir").arg(self.scratch.join("tmp"));
        }
        let output = command
            .arg("--root")
            .arg(self.scratch.join("root"))
            .arg("--runroot")
            .arg(self.scratch.join("run"))
            .args(["--storage-driver", "overlay"])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let shown = format!("{program} {args:?}");
        assert!(
            output.status.success(),
            "{shown}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Commits a layer on top of `from`, made by a shell script in the tree.
    fn step(&self, from: &str, script: &str, to: &str) {
        let container = self.run("buildah", &["from", "--pull-never", from]);
        let tree = self.run("buildah", &["mount", &container]);
        let output = Command::new("bash")
            .args(["-euc", script])
            .current_dir(&tree)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{to}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.run("buildah", &["umount", &container]);
        self.run("buildah", &["commit", "-q", &container, to]);
        self.run("buildah", &["rm", &container]);
    }

    /// Loads an archive with podman, and returns the name that podman gives the image.
    fn load(&self, archive: &str) -> String {
        let said = self.run("podman", &["load", "-q", "-i", archive]);
        let (_, name) = said.rsplit_once(": ").expect("podman names what it loads");
        name.to_owned()
    }

    /// What podman shows of an image.
    fn mounted(&self, image: &str) -> Tree {
        let tree = self.run("podman", &["image", "mount", image]);
        let digest = without_root(tree_digest(Path::new(&tree)));
        self.run("podman", &["image", "umount", image]);
        digest
    }
}

/// A Debian root as a tar of at least 150 MB.
fn debian(scratch: &Scratch) -> PathBuf {
    require_program("mmdebstrap");
    let tar = scratch.join("debian.tar");
    let codename = fs::read_to_string("/etc/os-release")
        .unwrap()
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME=").map(str::to_owned))
        .expect("this test needs a Debian with its apt sources");
    let log = run(
        "mmdebstrap",
        &[
            "--quiet",
            "--variant=minbase",
            "--include=git,libc6-dev",
            &codename,
            tar.to_str().unwrap(),
        ],
    );
    let size = fs::metadata(&tar).unwrap().len();
    assert!(size > 150_000_000, "{size} bytes: {log:?}");
    tar
}

/// What each layer on top of the Debian root does.
const STEPS: &[(&str, &str)] = &[
    ("deletions", "rm -rf usr/share/doc usr/share/locale var/cache; rm usr/bin/git etc/motd"),
    (
        "replaced",
        "rm -rf etc/apt; mkdir etc/apt; echo new > etc/apt/only
         rm -rf usr/share/man; echo file > usr/share/man
         rm usr/bin/who; mkdir usr/bin/who; echo x > usr/bin/who/inside
         rm -rf usr/share/info; ln -s man usr/share/info; rm etc/hostname -f; mkfifo etc/hostname",
    ),
    (
        "links",
        "mkdir -p opt/a opt/b; head -c 100000 /dev/urandom > opt/a/one; ln opt/a/one opt/a/two
         ln opt/a/one opt/b/three; ln -s ../nowhere opt/dangling; ln -s /etc opt/absolute
         ln usr/bin/env usr/bin/env2",
    ),
    (
        "privileges",
        "cp usr/bin/true opt/suid; chmod 6755 opt/suid; cp usr/bin/true opt/caps
         setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 opt/caps
         mkdir opt/acl; setfacl -m u:1234:rwx,d:g:77:r-x opt/acl; echo x > opt/acl/f; setfacl -m u:9:r opt/acl/f
         setfattr -n user.note -v 'some bytes' opt/a/one; chmod 1777 opt/b; chown -R 100:200 opt/a",
    ),
    (
        "names",
        "mkdir -p opt/names; cd opt/names; touch $'not\\xff\\xfeutf8' $'new\\nline' 'with space' $'tab\\t' '*'
         touch \"$(printf 'n%.0s' {1..255})\"; d=$(printf 'd%.0s' {1..60})
         mkdir -p $d/$d/$d/$d/$d; echo deep > $d/$d/$d/$d/$d/file; ln -s $d/$d/$d/$d/$d/$d/$d link",
    ),
    (
        "special",
        "truncate -s 50M opt/sparse; echo end >> opt/sparse; truncate -s 10M opt/hole
         mknod opt/null c 1 3; mknod opt/loop b 7 0; mkfifo opt/pipe; : > opt/empty",
    ),
    (
        "times",
        "mkdir opt/times; cd opt/times; for t in '1969-01-01 00:00:01' '1901-12-14' '2026-01-01 00:00:00.123456789' \
         '2100-05-05'; do touch -d \"$t UTC\" \"$t\"; done; touch -d '1965-02-03 UTC' .",
    ),
    (
        "moves",
        "mv opt/a opt/c; chmod 700 opt; mv usr/share/perl5 usr/share/perl6 || mkdir usr/share/perl6
         chown -R 5:5 usr/share/git-core || true; rm -rf opt/names/d*; echo again > etc/motd",
    ),
];

fn blobs_of(layout: &Path) -> (Vec<u8>, Vec<Vec<u8>>) {
    let read = |path: &str| fs::read(layout.join(path)).unwrap();
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        read(&format!("blobs/{}", digest.replace(':', "/")))
    };
    let index: Value = serde_json::from_slice(&read("index.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let plain = |bytes: Vec<u8>| {
        if !bytes.starts_with(&[0x1f, 0x8b]) {
            return bytes;
        }
        let mut tar = Vec::new();
        let mut decoder = flate2::read::MultiGzDecoder::new(bytes.as_slice());
        std::io::Read::read_to_end(&mut decoder, &mut tar).unwrap();
        tar
    };
    let layers = layers.iter().map(|layer| plain(blob(layer))).collect();
    (blob(&manifest["config"]), layers)
}

/// What the kernel's overlayfs shows of an image of the store.
fn mounted(store: &TestStore, image: &str) -> Tree {
    let merged = store.scratch.join("merged");
    fs::create_dir_all(&merged).unwrap();
    let lowers = store.lowers(image);
    let top = lowers[0].parent().unwrap();
    let read = |name: &str| fs::read_to_string(top.join(name)).ok();
    let mut lowerdir = format!("l/{}", read("link").unwrap());
    if let Some(lower) = read("lower") {
        lowerdir = format!("{lowerdir}:{lower}");
    } else {
        // The kernel wants two lowers at least.
        fs::create_dir_all(store.scratch.join("empty")).unwrap();
        lowerdir = format!("{lowerdir}:{}", store.scratch.join("empty").display());
    }
    let status = Command::new("mount")
        .args([
            "-t",
            "overlay",
            "overlay",
            "-o",
            &format!("ro,lowerdir={lowerdir}"),
        ])
        .arg(&merged)
        .current_dir(store.root.join("overlay2"))
        .status()
        .unwrap();
    assert!(status.success());
    let digest = without_root(tree_digest(&merged));
    run("umount", &[merged.to_str().unwrap()]);
    digest
}

/// podman (containers/storage) makes the times of 1970 of all times before: not so the archive, and rovl.
fn as_podman_shows(mut tree: Tree) -> Tree {
    for entry in tree.values_mut() {
        entry.mtime_ns = entry.mtime_ns.max(0);
    }
    tree
}

/// The plain layers and the config are in the archive that rovl writes, byte for byte.
fn assert_same_bytes(members: &Members, config: &[u8], layers: &[Vec<u8>]) {
    for content in layers.iter().map(Vec::as_slice).chain([config]) {
        let name = blob_name(content);
        let found = members.iter().find(|(member, _)| *member == name);
        assert!(
            found.is_some_and(|(_, saved)| saved == content),
            "{name} is not in the archive"
        );
    }
}

#[test]
fn an_image_of_a_debian_in_many_layers_goes_round() {
    require_root();
    let storage = Storage::new();
    let debian = debian(&storage.scratch);
    let tar = debian.to_str().unwrap();
    let container = storage.run("buildah", &["from", "scratch"]);
    storage.run("buildah", &["add", &container, tar, "/"]);
    storage.run(
        "buildah",
        &["commit", "-q", &container, "localhost/debian:0"],
    );
    storage.run("buildah", &["rm", &container]);
    let mut from = "localhost/debian:0".to_owned();
    for (n, (what, script)) in STEPS.iter().enumerate() {
        let to = format!("localhost/debian:{}-{what}", n + 1);
        storage.step(&from, script, &to);
        from = to;
    }
    let shown = storage.mounted(&from);
    assert!(shown.len() > 3000, "{} entries", shown.len());

    let oci = storage.scratch.join("oci");
    let docker = storage.scratch.join("docker.tar");
    let (oci_to, docker_to) = (
        format!("oci:{}:debian", oci.display()),
        format!("docker-archive:{}", docker.display()),
    );
    storage.run("buildah", &["push", "-q", &from, &oci_to]);
    storage.run(
        "buildah",
        &["push", "-q", "--format", "v2s2", &from, &docker_to],
    );
    let (config, layers) = blobs_of(&oci);
    assert_eq!(layers.len(), STEPS.len() + 1);

    let store = TestStore::new();
    let load = [
        "image",
        "load",
        "--name",
        "debian:oci",
        oci.to_str().unwrap(),
    ];
    store.run(&load);
    let ours = mounted(&store, "debian:oci");
    let old = ours.values().filter(|entry| entry.mtime_ns < 0).count();
    assert_eq!(old, 3, "times before 1970");
    assert_digests_equal(
        &shown,
        &as_podman_shows(ours),
        "podman's mount and the kernel's of rovl's",
    );
    store.run(&[
        "image",
        "load",
        "--name",
        "debian:docker",
        docker.to_str().unwrap(),
    ]);
    assert_digests_equal(
        &shown,
        &as_podman_shows(mounted(&store, "debian:docker")),
        "the docker-archive",
    );

    let saved = store.scratch.join("saved.tar");
    let saved_path = saved.to_str().unwrap();
    store.run(&[
        "image",
        "save",
        "--format",
        "oci",
        "-o",
        saved_path,
        "debian:oci",
    ]);
    assert_same_bytes(&members_of(&fs::read(&saved).unwrap()), &config, &layers);
    let inspected = run(
        "skopeo",
        &[
            "inspect",
            "--raw",
            "--config",
            &format!("oci-archive:{saved_path}"),
        ],
    );
    assert_eq!(Digest::of(&inspected.stdout), Digest::of(&config));

    // podman takes both forms of what rovl saves, and shows the same.
    let other = Storage::new();
    let name = other.load(saved_path);
    assert_digests_equal(&shown, &other.mounted(&name), "podman load of OCI");
    let saved = store.scratch.join("saved-docker.tar");
    let saved_path = saved.to_str().unwrap();
    store.run(&["image", "save", "-o", saved_path, "debian:docker"]);
    let name = other.load(saved_path);
    assert_digests_equal(&shown, &other.mounted(&name), "podman load");
    let copied = format!("oci:{}:x", store.scratch.join("copied").display());
    run(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "-q",
            &format!("docker-archive:{saved_path}"),
            &copied,
        ],
    );
    store.assert_clean();
    store.assert_accounted();
}

#[test]
fn what_umoci_unpacks_is_what_the_kernel_mounts() {
    require_root();
    require_program("umoci");
    let scratch = Scratch::new();
    let layout = scratch.join("layout");
    let image = format!("{}:made", layout.display());
    run("umoci", &["init", "--layout", layout.to_str().unwrap()]);
    run("umoci", &["new", "--image", &image]);
    let bundle = scratch.join("bundle");
    let scripts = [
        "mkdir -p a/b/c d; head -c 70000 /dev/urandom > a/b/c/f; ln a/b/c/f d/g; echo 1 > a/one; chmod 4755 a/one; \
         mkfifo p; mknod n c 1 3; setfattr -n user.k -v v d; chown 7:8 d; touch -d '1966-01-01 UTC' d/old",
        "rm -r a/b; mkdir a/b; echo new > a/b/new; rm d/g; mv a/one a/two; ln -s b a/link",
        "rm -r a; echo file > a; mkdir -p e/f; truncate -s 3M e/sparse; chmod 1770 e",
    ];
    for script in scripts {
        fs::remove_dir_all(&bundle).ok();
        run(
            "umoci",
            &["unpack", "--image", &image, bundle.to_str().unwrap()],
        );
        let status = Command::new("bash")
            .args(["-euc", script])
            .current_dir(bundle.join("rootfs"))
            .status()
            .unwrap();
        assert!(status.success(), "{script}");
        run(
            "umoci",
            &["repack", "--image", &image, bundle.to_str().unwrap()],
        );
    }
    fs::remove_dir_all(&bundle).unwrap();
    run(
        "umoci",
        &["unpack", "--image", &image, bundle.to_str().unwrap()],
    );
    let store = TestStore::new();
    store.run(&[
        "image",
        "load",
        "--name",
        "umoci:1",
        layout.to_str().unwrap(),
    ]);
    let shown = without_root(tree_digest(&bundle.join("rootfs")));
    assert_digests_equal(
        &shown,
        &mounted(&store, "umoci:1"),
        "umoci's tree and the kernel's",
    );
    let (config, layers) = blobs_of(&layout);
    let saved = store.run(&["image", "save", "--format", "oci", "umoci:1"]);
    assert_same_bytes(&members_of(&saved), &config, &layers);
    store.assert_clean();
}

/// A dockerd on a data root, ended on drop.
struct Dockerd {
    child: Child,
    scratch: Scratch,
}

impl Dockerd {
    fn start(root: &Path) -> Dockerd {
        for program in ["dockerd", "docker", "containerd", "runc"] {
            require_program(program);
        }
        let scratch = Scratch::new();
        let log = fs::File::create(scratch.join("log")).unwrap();
        let child = Command::new("dockerd")
            .arg("--data-root")
            .arg(root)
            .arg("--exec-root")
            .arg(scratch.join("exec"))
            .arg("--pidfile")
            .arg(scratch.join("pid"))
            .arg("-H")
            .arg(format!("unix://{}", scratch.join("sock").display()))
            .args(["--storage-driver", "overlay2", "--bridge=none"])
            .args(["--iptables=false", "--ip6tables=false"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let dockerd = Dockerd { child, scratch };
        let is_up = || {
            dockerd
                .command(&["version"])
                .output()
                .unwrap()
                .status
                .success()
        };
        let log = dockerd.scratch.join("log");
        assert!(
            wait_until(Duration::from_secs(60), is_up),
            "dockerd doesn't start: {}",
            fs::read_to_string(log).unwrap()
        );
        dockerd
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/docker");
        command
            .arg("-H")
            .arg(format!("unix://{}", self.scratch.join("sock").display()))
            .args(args)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        String::from_utf8(expect_success(output)).unwrap()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        self.child.wait().ok();
    }
}

fn busybox_image(storage: &Storage) -> PathBuf {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find(|path| Path::new(path).exists())
        .expect("this test needs busybox-static");
    let container = storage.run("buildah", &["from", "scratch"]);
    storage.run("buildah", &["copy", &container, busybox, "/bin/busybox"]);
    storage.run("buildah", &["config", "--cmd", "/bin/busybox", &container]);
    storage.run("buildah", &["commit", "-q", &container, "localhost/bb:0"]);
    storage.run("buildah", &["rm", &container]);
    storage.step(
        "localhost/bb:0",
        "ln -s busybox bin/sh; mkdir tmp etc; echo one > etc/f; echo x > etc/gone",
        "localhost/bb:1",
    );
    storage.step(
        "localhost/bb:1",
        "rm etc/gone; echo two > etc/f; ln bin/busybox bin/cat",
        "localhost/bb:2",
    );
    let archive = storage.scratch.join("bb.tar");
    let to = format!("docker-archive:{}", archive.display());
    storage.run(
        "buildah",
        &["push", "-q", "--format", "v2s2", "localhost/bb:2", &to],
    );
    archive
}

/// It would undo what others change: they are told, and may read.
fn nothing_is_changed_beside_dockerd(store: &TestStore, archive: &Path) {
    let archive = archive.to_str().unwrap();
    for args in [
        &["image", "load", archive][..],
        &["image", "tag", "localhost/bb:2", "other:1"],
        &["image", "rm", "localhost/built:1"],
        &["store", "gc"],
    ] {
        let said = expect_failure(&store.try_run(args), 1);
        assert!(said.contains("a dockerd runs on it"), "{args:?}: {said}");
    }
    let listed = store.json(&["image", "ls", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    store.run(&["image", "save", "localhost/bb:2"]);
    let fsck = store.json(&["store", "fsck", "--json"]);
    assert_eq!(fsck["faults"], serde_json::json!([]), "{fsck}");
}

#[test]
fn dockerd_lists_and_runs_what_rovl_wrote_and_rovl_reads_what_dockerd_wrote() {
    require_root();
    let storage = Storage::new();
    let archive = busybox_image(&storage);
    let store = TestStore::new();
    store.run(&["image", "load", archive.to_str().unwrap()]);
    let ours = store.json(&["image", "inspect", "localhost/bb:2"]);
    let saved = store.run(&["image", "save", "localhost/bb:2"]);
    {
        let dockerd = Dockerd::start(&store.root);
        let listed = dockerd.run(&[
            "images",
            "--no-trunc",
            "--format",
            "{{.Repository}}:{{.Tag}} {{.ID}}",
        ]);
        assert_eq!(
            listed.trim(),
            format!("localhost/bb:2 {}", ours[0]["Id"].as_str().unwrap())
        );
        let theirs: Value =
            serde_json::from_str(&dockerd.run(&["inspect", "localhost/bb:2"])).unwrap();
        assert_eq!(theirs[0]["RootFS"]["Layers"], ours[0]["RootFS"]["Layers"]);
        assert_eq!(theirs[0]["Size"], ours[0]["Size"]);
        let run = [
            "run",
            "--rm",
            "--network=none",
            "localhost/bb:2",
            "/bin/sh",
            "-c",
            "/bin/cat /etc/f; echo /etc/*",
        ];
        let said = dockerd.run(&run);
        assert!(
            said.starts_with("two\n") && !said.contains("/etc/gone"),
            "{said}"
        );
        // What docker saves of our layers are our layers.
        let theirs = members_of(&expect_success(
            dockerd
                .command(&["save", "localhost/bb:2"])
                .output()
                .unwrap(),
        ));
        for (name, content) in members_of(&saved) {
            if name.ends_with(".tar") {
                assert!(theirs.iter().any(|(_, other)| *other == content), "{name}");
            }
        }
        // It builds on them, and leaves a container behind.
        let create = [
            "create",
            "--network=none",
            "--name",
            "kept",
            "localhost/bb:2",
            "/bin/sh",
            "-c",
            "echo more > /etc/more",
        ];
        dockerd.run(&create);
        dockerd.run(&["start", "-a", "kept"]);
        dockerd.run(&["commit", "kept", "localhost/built:1"]);
        nothing_is_changed_beside_dockerd(&store, &archive);
    }
    let listed = store.json(&["image", "ls", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    let tree = mounted(&store, "localhost/built:1");
    assert!(tree.contains_key(Path::new("etc/more")));
    let fsck = store.json(&["store", "fsck", "--json"]);
    assert_eq!(fsck["faults"], serde_json::json!([]), "{fsck}");
    store.assert_accounted();
    let collected = store.json(&["store", "gc", "--json"]);
    assert_eq!(collected["layers"], serde_json::json!([]), "{collected}");
    let refused = expect_failure(&store.try_run(&["image", "rm", "localhost/bb:2"]), 1);
    assert!(refused.contains("in use: container"), "{refused}");
    store.run(&["image", "rm", "localhost/built:1"]);
    {
        let dockerd = Dockerd::start(&store.root);
        let containers = dockerd.run(&["ps", "-a", "--format", "{{.Names}}"]);
        assert_eq!(containers.trim(), "kept", "gc took a container's layers");
        dockerd.run(&["rm", "kept"]);
    }
    store.run(&["image", "rm", "localhost/bb:2"]);
    store.run(&["store", "gc"]);
    assert_eq!(
        store.json(&["layer", "ls", "--json"]),
        serde_json::json!([])
    );
}

#[test]
fn rovl_lists_and_mounts_a_store_that_dockerd_made() {
    require_root();
    let storage = Storage::new();
    let archive = busybox_image(&storage);
    let store = TestStore::new();
    {
        let dockerd = Dockerd::start(&store.root);
        dockerd.run(&["load", "-i", archive.to_str().unwrap()]);
    }
    let listed = store.json(&["image", "ls", "--json"]);
    assert_eq!(listed[0]["names"], serde_json::json!(["localhost/bb:2"]));
    let shown = storage.mounted("localhost/bb:2");
    assert_digests_equal(
        &shown,
        &mounted(&store, "localhost/bb:2"),
        "podman's tree and dockerd's layers",
    );
    let fsck = store.json(&["store", "fsck", "--json"]);
    assert_eq!(fsck["faults"], serde_json::json!([]), "{fsck}");
    let saved = store.run(&["image", "save", "localhost/bb:2"]);
    let other = TestStore::new();
    other.load(&saved);
    other.assert_clean();
    store.assert_accounted();
}
