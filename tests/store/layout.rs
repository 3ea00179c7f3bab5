//! The layout on disk, to the byte, and the kernel's overlayfs on it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rovl::store::ids::Digest;
use rustix::mount::UnmountFlags;

use crate::builder::{Image, archive, docker_members, rich_layers};
use crate::rovl_command::TestStore;
use crate::support::require_root;

fn mode(path: &Path) -> u32 {
    let metadata = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    metadata.permissions().mode() & 0o7777
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn loaded() -> (TestStore, Image) {
    require_root();
    let store = TestStore::new();
    let image = Image::new("rich:1", rich_layers());
    store.load(&archive(&docker_members(std::slice::from_ref(&image))));
    (store, image)
}

fn chain_ids(image: &Image) -> Vec<String> {
    let mut chains: Vec<String> = Vec::new();
    for layer in &image.layers {
        let diff = Digest::of(layer).to_string();
        let chain = match chains.last() {
            None => diff,
            Some(below) => Digest::of(format!("{below} {diff}").as_bytes()).to_string(),
        };
        chains.push(chain);
    }
    chains
}

fn hex(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap()
}

#[test]
fn layers_lie_as_dockers_overlay2_has_them() {
    let (store, image) = loaded();
    let overlay = store.root.join("overlay2");
    let records = store.root.join("image/overlay2/layerdb/sha256");
    assert_eq!(mode(&overlay), 0o710);
    assert_eq!(mode(&overlay.join("l")), 0o700);
    let chains = chain_ids(&image);
    assert_eq!(fs::read_dir(&records).unwrap().count(), chains.len());
    let mut expected_lower = String::new();
    for (n, chain) in chains.iter().enumerate() {
        let record = records.join(hex(chain));
        assert_eq!(mode(&record), 0o755);
        assert_eq!(
            read(record.join("diff")),
            Digest::of(&image.layers[n]).to_string()
        );
        match n {
            0 => assert!(!record.join("parent").exists()),
            _ => assert_eq!(read(record.join("parent")), chains[n - 1]),
        }
        let size: u64 = read(record.join("size")).parse().unwrap();
        assert!(size > 0);
        assert!(
            fs::read(record.join("tar-split.json.gz"))
                .unwrap()
                .starts_with(&[0x1f, 0x8b])
        );
        let cache_id = read(record.join("cache-id"));
        assert!(cache_id.len() == 64 && cache_id.bytes().all(|b| b.is_ascii_hexdigit()));
        let dir = overlay.join(&cache_id);
        assert_eq!(mode(&dir), 0o710);
        assert_eq!(mode(&dir.join("diff")), 0o755);
        let link = read(dir.join("link"));
        assert!(link.len() == 26 && link.bytes().all(|b| matches!(b, b'A'..=b'Z' | b'2'..=b'7')));
        assert_eq!(mode(&dir.join("link")), 0o644);
        let target = fs::read_link(overlay.join("l").join(&link)).unwrap();
        assert_eq!(target.to_str().unwrap(), format!("../{cache_id}/diff"));
        if n == 0 {
            assert!(!dir.join("lower").exists() && !dir.join("work").exists());
        } else {
            assert_eq!(read(dir.join("lower")), expected_lower);
            assert_eq!(mode(&dir.join("lower")), 0o644);
            assert_eq!(mode(&dir.join("work")), 0o700);
        }
        let is_parent = n + 1 < chains.len();
        assert_eq!(dir.join("committed").exists(), is_parent);
        if is_parent {
            assert_eq!(
                (mode(&dir.join("committed")), read(dir.join("committed"))),
                (0o600, String::new())
            );
        }
        expected_lower = match n {
            0 => format!("l/{link}"),
            _ => format!("l/{link}:{expected_lower}"),
        };
    }
}

#[test]
fn images_lie_as_docker_has_them() {
    let (store, image) = loaded();
    let images = store.root.join("image/overlay2");
    let id = image.id();
    let config = images.join("imagedb/content/sha256").join(hex(&id));
    assert_eq!(fs::read(&config).unwrap(), image.config);
    assert_eq!(mode(&config), 0o600);
    let updated = images.join("imagedb/metadata/sha256").join(hex(&id));
    assert!(read(updated.join("lastUpdated")).ends_with('Z'));
    let repositories: serde_json::Value =
        serde_json::from_str(&read(images.join("repositories.json"))).unwrap();
    let expected = serde_json::json!({"Repositories": {"rich": {"rich:1": id}}});
    assert_eq!(repositories, expected);
    assert_eq!(mode(&images.join("repositories.json")), 0o600);
    for dir in [
        "layerdb/mounts",
        "layerdb/tmp",
        "distribution/diffid-by-digest/sha256",
    ] {
        assert!(images.join(dir).is_dir(), "{dir}");
    }
}

/// Mounts the kernel's overlayfs from nothing but the topmost layer's `link` and `lower`.
#[test]
fn the_kernel_mounts_a_chain_from_lower_alone() {
    let (store, image) = loaded();
    let chains = chain_ids(&image);
    let record = store
        .root
        .join("image/overlay2/layerdb/sha256")
        .join(hex(&chains[2]));
    let overlay = store.root.join("overlay2");
    let dir = overlay.join(read(record.join("cache-id")));
    let lowerdir = format!("l/{}:{}", read(dir.join("link")), read(dir.join("lower")));
    let merged = store.scratch.join("merged");
    fs::create_dir(&merged).unwrap();
    // Relative lowers are relative to the working directory: a program of its own has one of its own.
    let status = std::process::Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o"])
        .arg(format!("ro,lowerdir={lowerdir}"))
        .arg(&merged)
        .current_dir(&overlay)
        .status()
        .unwrap();
    assert!(status.success());
    let names = |dir: &str| -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(merged.join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["bin", "etc", "long", "opt", "tmp", "usr"]);
    assert_eq!(names("etc"), ["passwd"]);
    assert_eq!(read(merged.join("etc/passwd")), "changed\n");
    assert_eq!(names("opt/a"), ["three"]);
    assert_eq!(names("opt/b"), Vec::<String>::new());
    assert_eq!(mode(&merged.join("usr/bin/su")), 0o4755);
    assert_eq!(mode(&merged.join("tmp")), 0o1777);
    let links = |name: &str| crate::support::files::nlink(&merged.join(name));
    assert_eq!((links("usr/bin/su"), links("opt/noted")), (2, 1));
    let busy = store.json(&["store", "gc", "--json"]);
    assert_eq!(busy["layers"], serde_json::json!([]));
    rustix::mount::unmount(&merged, UnmountFlags::empty()).unwrap();
}

/// A layer that the kernel's overlayfs shows is in use, also where something else is mounted in a place whose name is
/// no text.
#[test]
fn what_the_kernel_has_mounted_stays_whatever_else_is_mounted() {
    use std::os::unix::ffi::OsStrExt;
    let (store, image) = loaded();
    let chains = chain_ids(&image);
    let records = store.root.join("image/overlay2/layerdb/sha256");
    let overlay = store.root.join("overlay2");
    let dirs: Vec<std::path::PathBuf> = chains
        .iter()
        .map(|chain| overlay.join(read(records.join(hex(chain)).join("cache-id"))))
        .collect();
    let [merged, other] = [&b"merged"[..], b"no \xff text"]
        .map(|name| store.scratch.join(std::ffi::OsStr::from_bytes(name)));
    for dir in [&merged, &other] {
        fs::create_dir(dir).unwrap();
    }
    let mount = |kind: &str, options: String, at: &std::path::Path| {
        let mut command = std::process::Command::new("mount");
        command.args(["-t", kind, kind, "-o", &options]).arg(at);
        assert!(command.status().unwrap().success());
    };
    mount("tmpfs", "size=4k".to_owned(), &other);
    let lowers: Vec<String> = dirs
        .iter()
        .rev()
        .map(|dir| dir.join("diff").display().to_string())
        .collect();
    mount(
        "overlay",
        format!("ro,lowerdir={}", lowers.join(":")),
        &merged,
    );
    store.json(&["image", "rm", "--force", "--json", &image.id()]);
    store.json(&["store", "gc", "--json"]);
    assert!(
        dirs.iter().all(|dir| dir.is_dir()),
        "a mounted layer is gone"
    );
    assert_eq!(read(merged.join("etc/passwd")), "changed\n");
    for at in [&merged, &other] {
        rustix::mount::unmount(at, UnmountFlags::empty()).unwrap();
    }
    store.json(&["store", "gc", "--json"]);
    assert!(
        dirs.iter().all(|dir| !dir.exists()),
        "a layer stays that nobody uses"
    );
}
