//! Random changes in a container: what differs, applied over the image by rovl, umoci and podman, is what the
//! container showed. `ROVL_TEST_SEED` names the only sequence to be done.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FileType;

use crate::builder::{archive, docker_members};
use crate::images::{create, mount, rich, store_with, umount};
use crate::rovl_command::TestStore;
use crate::support::files::{mknod, set_times, set_xattr};
use crate::support::{EntryDigest, assert_digests_equal, tree_digest};
use crate::support::{Scratch, require_program, rounds};

const SEQUENCES: u64 = 100;
const OPERATIONS: u64 = 40;

/// xorshift64*: repeatable work.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// All paths of a tree but its root.
fn paths(tree: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![tree.to_owned()];
    while let Some(dir) = todo.pop() {
        let mut entries: Vec<PathBuf> = fs::read_dir(&dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

/// One change. What can't be done (a directory into itself, a link to a directory) is not done.
fn change(tree: &Path, random: &mut Random, number: u64) {
    let all = paths(tree);
    let mut dirs: Vec<PathBuf> = all
        .iter()
        .filter(|p| p.symlink_metadata().unwrap().is_dir())
        .cloned()
        .collect();
    dirs.push(tree.to_owned());
    let files: Vec<PathBuf> = all
        .iter()
        .filter(|p| p.symlink_metadata().unwrap().is_file())
        .cloned()
        .collect();
    let fresh = |random: &mut Random| random.pick(&dirs).join(format!("n{}", random.below(12)));
    let text = format!("content {number}").repeat(random.below(40) + 1);
    match random.below(16) {
        0 | 1 => {
            let path = fresh(random);
            // Writing a FIFO would wait for a reader.
            if path
                .symlink_metadata()
                .map_or(true, |metadata| metadata.is_file())
            {
                fs::write(path, text).unwrap();
            }
        }
        2 => drop(fs::create_dir(fresh(random))),
        3 if !files.is_empty() => {
            let mut file = fs::File::options()
                .append(true)
                .open(random.pick(&files))
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        4 if !files.is_empty() => drop(fs::write(random.pick(&files), text)),
        5 if !all.is_empty() => {
            let path = random.pick(&all);
            match path.symlink_metadata().unwrap().is_dir() {
                true => fs::remove_dir_all(path).unwrap(),
                false => fs::remove_file(path).unwrap(),
            }
        }
        6..=8 if !all.is_empty() => {
            let to = fresh(random);
            drop(fs::rename(random.pick(&all), to));
        }
        9 if all.len() > 1 => drop(fs::rename(random.pick(&all), random.pick(&all))),
        10 if !files.is_empty() => drop(fs::hard_link(random.pick(&files), fresh(random))),
        11 => drop(std::os::unix::fs::symlink("somewhere/else", fresh(random))),
        12 if !all.is_empty() => {
            let path = random.pick(&all);
            if !path.symlink_metadata().unwrap().is_symlink() {
                let mode = [0o755, 0o700, 0o1777, 0o644, 0o4755][random.below(5)];
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            }
            std::os::unix::fs::lchown(path, Some(random.below(3) as u32), Some(7)).unwrap();
        }
        13 if !all.is_empty() => {
            let time = (
                1_500_000_000 + random.below(1_000_000) as i64,
                random.below(999) as u32 * 1_000_000,
            );
            set_times(random.pick::<PathBuf>(&all), time, time).unwrap();
        }
        14 if !files.is_empty() => set_xattr(
            random.pick::<PathBuf>(&files),
            "user.mark",
            text.get(..9).unwrap().as_bytes(),
        )
        .unwrap(),
        15 if !dirs.is_empty() => {
            // A directory made anew.
            let dir = random.pick(&dirs);
            if dir != tree {
                fs::remove_dir_all(dir).unwrap();
                fs::create_dir(dir).unwrap();
                drop(mknod(&dir.join("fifo"), FileType::Fifo, 0o600, 0));
            }
        }
        _ => {}
    }
}

type Tree = BTreeMap<PathBuf, EntryDigest>;

/// The names in a layer's tree: files of all types, no directories, no whiteouts.
fn names_in(layer: &Path) -> BTreeSet<PathBuf> {
    let is_name = |path: &PathBuf| {
        let metadata = path.symlink_metadata().unwrap();
        let is_whiteout = metadata.file_type().is_char_device() && metadata.rdev() == 0;
        !metadata.is_dir() && !is_whiteout
    };
    let all = paths(layer).into_iter().filter(is_name);
    all.map(|path| path.strip_prefix(layer).unwrap().to_owned())
        .collect()
}

/// What every way of unpacking can give back of a tree. Left out are
/// - the number of links of a file, which counts names that no layer has any more;
/// - the time of the root, in which every program makes something of its own at the end.
///
/// Hard links are compared as far as a layer can express them: it can link names of its own to one another, and leaves
/// linked what the layers below have linked, but it can't link a name of its own to a file of another layer. So names
/// of one file of which some are in the new layer and some are not (one was renamed together with its directory, or
/// copied up by the kernel without an index) are two files, each with its own names.
fn comparable(mut tree: Tree, layer: &BTreeSet<PathBuf>) -> Tree {
    if let Some(root) = tree.get_mut(Path::new(".")) {
        root.mtime_ns = 0;
    }
    let mut firsts: BTreeMap<(PathBuf, bool), PathBuf> = BTreeMap::new();
    for (path, entry) in &mut tree {
        let file = entry.linked_to.take().unwrap_or_else(|| path.clone());
        let first = firsts
            .entry((file, layer.contains(path)))
            .or_insert_with(|| path.clone());
        entry.linked_to = (first != path).then(|| first.clone());
        entry.nlink = 0;
    }
    tree
}

struct Case {
    seed: u64,
    image: String,
    /// The names in the layer of what was changed.
    layer: BTreeSet<PathBuf>,
    shown: Tree,
}

impl Case {
    /// Compares a tree that some program has made of the image with what the container showed.
    fn assert_shown_by(&self, tree: &Path, who: &str) {
        let mut shown = self.shown.clone();
        let mut found = comparable(tree_digest(tree), &self.layer);
        if who == "podman" {
            // It gives every root a mode of its own, whatever a layer says.
            for tree in [&mut shown, &mut found] {
                tree.get_mut(Path::new(".")).unwrap().mode = 0;
            }
        }
        assert_digests_equal(&shown, &found, &format!("{who}, seed {}", self.seed));
    }
}

fn make_case(store: &TestStore, seed: u64) -> Case {
    let (name, image) = (format!("c{seed}"), format!("random:{seed}"));
    create(store, &["--name", &name, "rich:1"]);
    let driver = if seed % 5 == 4 { "kernel" } else { "fuse" };
    let tree = mount(store, &["--driver", driver, &name]);
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    for number in 0..OPERATIONS {
        change(&tree, &mut random, number);
        if number == OPERATIONS / 2 && seed.is_multiple_of(2) {
            // What was changed before a mount counts too.
            umount(store, &name);
            mount(store, &["--driver", driver, &name]);
        }
    }
    let shown = tree_digest(&tree);
    umount(store, &name);
    store.run(&["container", "commit", &name, &image]);
    let layer = names_in(store.lowers(&image).first().unwrap());
    let shown = comparable(shown, &layer);
    Case {
        seed,
        image,
        layer,
        shown,
    }
}

/// Writes the container's changes to a file, as a layer's tar.
fn write_diff(store: &TestStore, case: &Case, tar: &Path) {
    let (name, tar) = (format!("c{}", case.seed), tar.to_str().unwrap());
    store.run(&["container", "diff", "--tar", "-o", tar, &name]);
}

fn check_rovl(store: &TestStore, case: &Case, base: &str) {
    let mounted = store.text(&["image", "mount", &case.image]);
    case.assert_shown_by(Path::new(mounted.trim()), "rovl");
    umount(store, &case.image);
    // The tar by itself is that layer.
    let tar = store.scratch.join("diff.tar");
    write_diff(store, case, &tar);
    let applied = store.json(&[
        "layer",
        "apply",
        "--json",
        "-q",
        "--parent",
        base,
        tar.to_str().unwrap(),
    ]);
    let image = &store.json(&["image", "inspect", &case.image])[0];
    let top = image["Layers"].as_array().unwrap().last().unwrap();
    assert_eq!(applied["chain_id"], top["ChainId"], "seed {}", case.seed);
}

fn check_umoci(store: &TestStore, case: &Case, layout: &Path) {
    let scratch = Scratch::new();
    let (tag, rootfs) = (
        format!("{}:s{}", layout.display(), case.seed),
        scratch.join("rootfs"),
    );
    let base = format!("{}:base", layout.display());
    let tar = scratch.join("diff.tar");
    write_diff(store, case, &tar);
    let new_tag = format!("s{}", case.seed);
    let args = [
        "raw",
        "add-layer",
        "--image",
        &base,
        "--tag",
        &new_tag,
        tar.to_str().unwrap(),
    ];
    crate::support::run("umoci", &args);
    crate::support::run(
        "umoci",
        &["raw", "unpack", "--image", &tag, rootfs.to_str().unwrap()],
    );
    case.assert_shown_by(&rootfs, "umoci");
}

/// podman with its storage in `scratch`.
pub fn podman(scratch: &Scratch, args: &[&str]) -> String {
    let output = Command::new("podman")
        .arg("--root")
        .arg(scratch.join("root"))
        .arg("--runroot")
        .arg(scratch.join("run"))
        .arg("--tmpdir")
        .arg(scratch.join("tmp"))
        .args(["--storage-driver", "overlay"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn differences_applied_elsewhere_give_the_tree_that_was_shown() {
    for program in ["umoci", "podman", "skopeo"] {
        require_program(program);
    }
    let (store, _) = store_with(&rich());
    let image = &store.json(&["image", "inspect", "rich:1"])[0];
    let base = image["Layers"].as_array().unwrap().last().unwrap()["ChainId"]
        .as_str()
        .unwrap()
        .to_owned();
    let seeds = match std::env::var("ROVL_TEST_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..rounds(SEQUENCES)).collect(),
    };
    let cases: Vec<Case> = seeds
        .into_iter()
        .map(|seed| make_case(&store, seed))
        .collect();
    for case in &cases {
        check_rovl(&store, case, &base);
    }

    let (file, layout) = (store.scratch.join("base.tar"), store.scratch.join("layout"));
    fs::write(&file, archive(&docker_members(&[rich()]))).unwrap();
    let (from, to) = (
        format!("docker-archive:{}", file.display()),
        format!("oci:{}:base", layout.display()),
    );
    crate::support::run("skopeo", &["copy", "-q", "--insecure-policy", &from, &to]);
    for case in &cases {
        check_umoci(&store, case, &layout);
    }

    let scratch = Scratch::new();
    let all = store.scratch.join("all.tar");
    let names: Vec<&str> = cases.iter().map(|case| case.image.as_str()).collect();
    store.run(
        &[
            &["image", "save", "-o", all.to_str().unwrap()],
            names.as_slice(),
        ]
        .concat(),
    );
    podman(&scratch, &["load", "-q", "-i", all.to_str().unwrap()]);
    for case in &cases {
        let tree = podman(&scratch, &["image", "mount", &case.image]);
        case.assert_shown_by(Path::new(&tree), "podman");
        podman(&scratch, &["image", "umount", &case.image]);
    }
    podman(&scratch, &["rmi", "-af"]);
    let with_renames = cases
        .iter()
        .filter(|case| case.shown.values().any(|e| e.kind == "dir"))
        .count();
    assert!(with_renames > 0 && fs::metadata(&all).unwrap().size() > 0);
    store.assert_clean();
}
