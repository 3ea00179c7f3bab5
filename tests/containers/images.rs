//! Images for containers.

use std::path::PathBuf;

use tar::EntryType;

use crate::builder::{Image, Layer, archive, docker_members};
use crate::rovl_command::TestStore;
use crate::support::{require_program, require_root};

const APPLETS: [&str; 12] = [
    "sh", "true", "cat", "sleep", "id", "env", "mkdir", "rm", "mv", "ln", "touch", "readlink",
];

/// Everything that a container would find missing otherwise: its `-init` layer has nothing to add then.
fn furnished(layer: Layer) -> Layer {
    layer
        .dir("dev/")
        .dir("dev/pts/")
        .dir("dev/shm/")
        .file("dev/console", b"")
        .dir("proc/")
        .dir("sys/")
        .file(".dockerenv", b"")
        .dir("etc/")
        .file("etc/hosts", b"")
        .file("etc/hostname", b"")
        .file("etc/resolv.conf", b"")
        .link(EntryType::Symlink, "etc/mtab", "/proc/mounts")
}

/// An image with busybox in it.
pub fn busybox() -> Image {
    require_program("busybox");
    let program = std::fs::read("/usr/bin/busybox").or_else(|_| std::fs::read("/bin/busybox"));
    let mut layer = furnished(Layer::new())
        .dir("bin/")
        .dir("tmp/")
        .dir("root/")
        .file(
            "etc/passwd",
            b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n",
        )
        .file("etc/group", b"root:x:0:\nwww:x:34:\nmore:x:35:web\n")
        .file("etc/plain", b"not to be executed")
        .entry(EntryType::Regular, "bin/busybox", 0o755, &program.unwrap());
    for name in APPLETS {
        layer = layer.link(EntryType::Symlink, &format!("bin/{name}"), "busybox");
    }
    Image::new("busybox:1", vec![layer.build()])
}

/// Layers with all that makes a difference difficult: hard links, whiteouts, opaque directories, replaced types.
pub fn rich() -> Image {
    let base = furnished(Layer::new())
        .dir("a/")
        .dir("a/deep/")
        .dir("a/deep/er/")
        .file("a/file", b"one")
        .file("a/deep/file", b"two")
        .file("a/deep/er/file", b"three")
        .link(EntryType::Link, "a/link", "a/file")
        .link(EntryType::Link, "a/deep/link", "a/file")
        .dir("b/")
        .file("b/gone", b"x")
        .file("b/stays", b"y")
        .dir("c/")
        .file("c/old", b"z")
        .dir("c/sub/")
        .file("c/sub/old", b"z")
        .link(EntryType::Symlink, "symlink", "a/file")
        .xattr("user.note", b"kept")
        .file("noted", b"n");
    let second = Layer::new()
        .dir("b/")
        .whiteout("b", "gone")
        .dir("c/")
        .file("c/.wh..wh..opq", b"")
        .file("c/new", b"new")
        .dir("d/")
        .entry(EntryType::Directory, "d/closed/", 0o700, b"")
        .file("d/closed/f", b"f");
    let third = Layer::new()
        .dir("a/")
        .dir("a/deep/")
        .file("a/deep/third", b"3");
    Image::new("rich:1", vec![base.build(), second.build(), third.build()])
}

/// A store with an image, and where its archive is.
pub fn store_with(image: &Image) -> (TestStore, PathBuf) {
    require_root();
    let store = TestStore::new();
    store.load(&archive(&docker_members(std::slice::from_ref(image))));
    let path = store.scratch.join("archive.tar");
    (store, path)
}

/// Makes a container and returns its id.
pub fn create(store: &TestStore, args: &[&str]) -> String {
    let args = [&["container", "create"], args].concat();
    store.text(&args).trim().to_owned()
}

/// Mounts a container, and returns where.
pub fn mount(store: &TestStore, args: &[&str]) -> PathBuf {
    let args = [&["container", "mount"], args].concat();
    PathBuf::from(store.text(&args).trim())
}

/// Unmounts it.
pub fn umount(store: &TestStore, name: &str) {
    store.run(&["container", "umount", name]);
}
