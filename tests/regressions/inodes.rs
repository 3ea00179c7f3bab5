//! Inode numbers and link counts: from the first look, after copy-up, after a remount.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;

use crate::support::files::{drop_caches, ino, nlink, open_rw, rename_with};
use crate::support::{Layers, LoopFs, Mounted, Scratch, Subject, require_root, subject};

/// The kernel gives inode numbers that last over several file systems with xino only.
fn options() -> &'static [&'static str] {
    match subject() {
        Subject::Kernel => &["xino=on"],
        _ => &[],
    }
}

/// Fault 8. The link count of a lower hard link counts all its names from the first stat, though
/// one name was looked up.
#[test]
fn a_lower_hard_link_has_its_link_count_at_first_sight() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    make_links(layers.lower());
    let mut mounted = subject().mount(&layers, &[]);
    for name in ["dir/c", "b", "a"] {
        drop_caches(2);
        mounted.remount();
        let path = mounted.path(name);
        assert_eq!(nlink(&path), 4, "first look at {name}");
        let open = fs::File::open(&path).unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 4, "fstat of {name}");
        assert_eq!(nlink(&path), 4, "second look at {name}");
        assert_eq!(fs::read_dir(mounted.path("dir")).unwrap().count(), 2);
        drop_caches(2);
        assert_eq!(nlink(&path), 4, "look at {name} after listing");
    }
}

/// Four names of one file: a, b, dir/c, dir/d.
fn make_links(root: &Path) {
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("a"), "linked").unwrap();
    for name in ["b", "dir/c", "dir/d"] {
        fs::hard_link(root.join("a"), root.join(name)).unwrap();
    }
}

/// Fault 8, over the life of the link: names stay together through copy-up, unlink, rename, a new
/// link and a remount, with the right count at each step.
#[test]
fn lower_hard_links_stay_together() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    make_links(layers.lower());
    let mut mounted = subject().mount(&layers, &[]);
    let original = ino(&mounted.path("a"));
    let mut content = b"linked".to_vec();
    let mut names = vec!["a", "b", "dir/c", "dir/d"];
    let step = |mounted: &mut Mounted, what: &str, names: &[&str], content: &[u8]| {
        for remounted in [false, true] {
            if remounted {
                mounted.remount();
            }
            for name in names {
                let path = mounted.path(name);
                let what = format!("{name} after {what}, remounted: {remounted}");
                assert_eq!(fs::read(&path).unwrap(), content, "{what}");
                assert_eq!(nlink(&path), names.len() as u64, "nlink of {what}");
                assert_eq!(ino(&path), original, "ino of {what}");
            }
        }
    };
    step(&mut mounted, "the mount", &names, &content);
    open_rw(&mounted.path("b")).write_all_at(b"LI", 0).unwrap();
    content[..2].copy_from_slice(b"LI");
    step(&mut mounted, "a write", &names, &content);

    fs::remove_file(mounted.path("a")).unwrap();
    names.remove(0);
    step(&mut mounted, "unlink of a", &names, &content);

    fs::rename(mounted.path("dir/c"), mounted.path("moved")).unwrap();
    names[1] = "moved";
    step(&mut mounted, "rename of dir/c", &names, &content);

    fs::hard_link(mounted.path("dir/d"), mounted.path("new")).unwrap();
    names.push("new");
    step(&mut mounted, "link of dir/d", &names, &content);

    open_rw(&mounted.path("new"))
        .write_all_at(b"ED!", 4)
        .unwrap();
    content.truncate(4);
    content.extend_from_slice(b"ED!");
    step(&mut mounted, "a second write", &names, &content);
    assert_eq!(fs::read(layers.lower().join("a")).unwrap(), b"linked");
}

/// One name of a lower hard link was written, and so copied up; the others have no place in upper
/// yet. Each operation on such a name works at once, without a look at it before.
#[test]
fn a_name_of_a_copied_up_hard_link_can_be_changed() {
    require_root();
    type Operation = fn(&Path) -> std::io::Result<()>;
    let operations: [(&str, Operation, &[&str]); 7] = [
        (
            "rename",
            |r| fs::rename(r.join("dir/c"), r.join("x")),
            &["a", "b", "x", "dir/d"],
        ),
        (
            "rename over a file",
            |r| fs::rename(r.join("dir/c"), r.join("other")),
            &["a", "b", "other", "dir/d"],
        ),
        (
            "rename onto another name",
            |r| fs::rename(r.join("dir/c"), r.join("a")),
            &["a", "b", "dir/c", "dir/d"],
        ),
        (
            "exchange",
            |r| rename_with(&r.join("dir/c"), &r.join("other"), RenameFlags::EXCHANGE),
            &["a", "b", "other", "dir/d"],
        ),
        (
            "link",
            |r| fs::hard_link(r.join("dir/c"), r.join("x")),
            &["a", "b", "dir/c", "dir/d", "x"],
        ),
        (
            "unlink",
            |r| fs::remove_file(r.join("dir/c")),
            &["a", "b", "dir/d"],
        ),
        (
            "being renamed over",
            |r| fs::rename(r.join("other"), r.join("dir/c")),
            &["a", "b", "dir/d"],
        ),
    ];
    for (what, operation, names) in operations {
        for looked_up in [false, true] {
            let scratch = Scratch::new();
            let layers = scratch.layers(1);
            make_links(layers.lower());
            fs::write(layers.lower().join("other"), "other").unwrap();
            let mut mounted = subject().mount(&layers, &[]);
            let original = ino(&mounted.path("b"));
            fs::write(mounted.path("b"), "changed").unwrap();
            mounted.remount();
            if looked_up {
                assert_eq!(fs::read(mounted.path("dir/c")).unwrap(), b"changed");
            }
            operation(mounted.root()).unwrap_or_else(|e| panic!("{what}: {e}"));
            for _ in 0..2 {
                for name in names {
                    let path = mounted.path(name);
                    let what = format!("{name} after {what}, looked up before: {looked_up}");
                    assert_eq!(fs::read(&path).unwrap(), b"changed", "{what}");
                    assert_eq!(nlink(&path), names.len() as u64, "nlink of {what}");
                    assert_eq!(ino(&path), original, "ino of {what}");
                }
                mounted.remount();
            }
        }
    }
}

/// Unlinking names of a lower hard link, with no copy-up before, counts down too.
#[test]
fn unlinking_names_of_a_lower_hard_link_counts_down() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    make_links(layers.lower());
    let mut mounted = subject().mount(&layers, &[]);
    let held = fs::File::open(mounted.path("dir/d")).unwrap();
    for (left, name) in [(3, "a"), (2, "dir/c"), (1, "b")] {
        fs::remove_file(mounted.path(name)).unwrap();
        assert_eq!(
            nlink(&mounted.path("dir/d")),
            left,
            "after unlink of {name}"
        );
        assert_eq!(held.metadata().unwrap().nlink(), left, "fstat");
    }
    drop(held);
    fs::remove_file(mounted.path("dir/d")).unwrap();
    mounted.remount();
    assert_eq!(fs::read_dir(mounted.path("dir")).unwrap().count(), 0);
}

/// What was counted down stays so over a remount. (The kernel copies the file up for it.)
#[test]
fn the_link_count_of_a_partly_removed_lower_hard_link_lasts() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    make_links(layers.lower());
    let mut mounted = subject().mount(&layers, &[]);
    fs::remove_file(mounted.path("a")).unwrap();
    fs::rename(mounted.path("b"), mounted.path("dir/c")).unwrap();
    mounted.remount();
    // POSIX: a rename onto another name of the same inode does nothing.
    assert_eq!(nlink(&mounted.path("dir/d")), 3);
    fs::remove_file(mounted.path("b")).unwrap();
    fs::remove_file(mounted.path("dir/c")).unwrap();
    mounted.remount();
    assert_eq!(nlink(&mounted.path("dir/d")), 1);
}

/// A tree with all kinds in each lower and in the upper; returns the paths.
fn populate(layers: &Layers) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from("merged-dir")];
    let roots = layers.lowers.iter().chain([&layers.upper]);
    for (i, root) in roots.enumerate() {
        let dir = format!("dir{i}");
        fs::create_dir_all(root.join(&dir).join("sub")).unwrap();
        fs::create_dir_all(root.join("merged-dir")).unwrap();
        for name in [
            format!("{dir}/file"),
            format!("merged-dir/f{i}"),
            format!("f{i}"),
        ] {
            fs::write(root.join(&name), format!("content of {name}")).unwrap();
            paths.push(name.into());
        }
        let (link, target) = (format!("{dir}/hard"), format!("f{i}"));
        fs::hard_link(root.join(target), root.join(&link)).unwrap();
        symlink("target", root.join(format!("{dir}/symlink"))).unwrap();
        paths.extend([link.into(), format!("{dir}/symlink").into()]);
        paths.extend([dir.clone().into(), format!("{dir}/sub").into()]);
    }
    paths
}

fn inos(mounted: &Mounted, paths: &[PathBuf]) -> BTreeMap<PathBuf, u64> {
    paths
        .iter()
        .map(|path| (path.clone(), ino(&mounted.path(path))))
        .collect()
}

fn assert_same(before: &BTreeMap<PathBuf, u64>, after: &BTreeMap<PathBuf, u64>, what: &str) {
    let changed: Vec<String> = before
        .iter()
        .filter(|(path, ino)| after[*path] != **ino)
        .map(|(path, ino)| format!("{}: {ino} became {}", path.display(), after[path]))
        .collect();
    assert!(changed.is_empty(), "{what}:\n{}", changed.join("\n"));
}

/// Two inodes never have one number, one inode never two; d_ino is st_ino.
fn assert_consistent(mounted: &Mounted, paths: &[PathBuf], what: &str) {
    let mut seen: HashMap<u64, PathBuf> = HashMap::new();
    for path in paths {
        let meta = fs::symlink_metadata(mounted.path(path)).unwrap();
        let Some(other) = seen.insert(meta.ino(), path.clone()) else {
            continue;
        };
        let read = |p: &Path| fs::read(mounted.path(p)).unwrap_or_default();
        assert!(
            meta.is_file() && meta.nlink() > 1 && read(path) == read(&other),
            "{} and {} share inode {} {what}",
            path.display(),
            other.display(),
            meta.ino()
        );
    }
    for path in paths.iter().filter(|p| mounted.path(p).is_dir()) {
        for entry in fs::read_dir(mounted.path(path)).unwrap() {
            let entry = entry.unwrap();
            let listed = entry.ino();
            assert_eq!(
                listed,
                ino(&entry.path()),
                "d_ino against st_ino of {} {what}",
                entry.path().display()
            );
        }
    }
}

/// Changes everything without changing which inode is which.
fn copy_everything_up(mounted: &Mounted, paths: &[PathBuf]) {
    for path in paths {
        let path = mounted.path(path);
        std::os::unix::fs::lchown(&path, Some(7), Some(7)).unwrap();
        if path.is_file() && !path.is_symlink() {
            open_rw(&path).write_all_at(b"C", 0).unwrap();
        }
    }
}

fn check_inode_numbers(layers: &Layers) {
    let paths = populate(layers);
    let mut mounted = subject().mount(layers, options());
    assert_consistent(&mounted, &paths, "at first");
    let before = inos(&mounted, &paths);
    drop_caches(2);
    assert_same(&before, &inos(&mounted, &paths), "caches dropped");

    mounted.remount();
    assert_same(&before, &inos(&mounted, &paths), "remounted");
    copy_everything_up(&mounted, &paths);
    assert_same(&before, &inos(&mounted, &paths), "copied up");
    assert_consistent(&mounted, &paths, "after copy-up");
    mounted.remount();
    assert_same(&before, &inos(&mounted, &paths), "copied up and remounted");
    assert_consistent(&mounted, &paths, "after copy-up and remount");

    for path in paths.iter().filter(|p| p.components().count() == 1) {
        let path = mounted.path(path);
        fs::rename(&path, path.with_extension("moved")).unwrap();
    }
    let moved: BTreeMap<PathBuf, u64> = before
        .iter()
        .map(|(path, ino)| {
            let mut parts = path.components();
            let first = Path::new(parts.next().unwrap().as_os_str()).with_extension("moved");
            (parts.fold(first, |p, c| p.join(c)), *ino)
        })
        .collect();
    let moved_paths: Vec<PathBuf> = moved.keys().cloned().collect();
    assert_same(&moved, &inos(&mounted, &moved_paths), "renamed");
    mounted.remount();
    assert_same(
        &moved,
        &inos(&mounted, &moved_paths),
        "renamed and remounted",
    );
    assert_consistent(&mounted, &moved_paths, "after rename and remount");
}

/// Fault 11. Inode numbers last: over dropped caches, copy-up, rename and remounts; all layers on
/// one file system.
#[test]
fn inode_numbers_last_on_one_file_system() {
    require_root();
    let scratch = Scratch::new();
    check_inode_numbers(&scratch.layers(3));
}

/// Fault 11, with each layer on a file system of its own: the same small inode numbers occur in all
/// of them.
#[test]
fn inode_numbers_last_over_several_file_systems() {
    require_root();
    let (a, b, c) = (
        LoopFs::ext4(64 << 20),
        LoopFs::ext4(64 << 20),
        LoopFs::xfs(320 << 20),
    );
    let scratch = Scratch::new();
    let mut layers = scratch.layers(0).with_upper_in(a.path());
    for (i, fs) in [&b, &c, &a].into_iter().enumerate() {
        let lower = fs.path().join(format!("lower{i}"));
        fs::create_dir(&lower).unwrap();
        layers.lowers.push(lower);
    }
    check_inode_numbers(&layers);
}

/// The real inode number is shown where one file system is under all layers.
#[test]
fn the_inode_number_is_the_real_one_on_one_file_system() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("f"), "x").unwrap();
    let real = ino(&layers.lower().join("f"));
    let mut mounted = subject().mount(&layers, &[]);
    assert_eq!(ino(&mounted.path("f")), real);
    fs::write(mounted.path("f"), "copied up").unwrap();
    assert_eq!(ino(&mounted.path("f")), real, "after copy-up");
    mounted.remount();
    assert_eq!(ino(&mounted.path("f")), real, "after a remount");
    fs::write(mounted.path("new"), "x").unwrap();
    assert_eq!(ino(&mounted.path("new")), ino(&layers.upper.join("new")));
}
