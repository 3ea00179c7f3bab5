//! What a snapshotter does: steps on top of each other, each committed as a layer, each compared
//! with a plain directory on which the same was done. The cases are containerd's for snapshotters
//! (Engine fault 7), expressed with mounts.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use crate::support::{
    EntryDigest, Layers, Scratch, Subject, as_user, assert_digests_equal, require_root, run,
    subject, tree_digest,
};

/// Committed layers and the tree that they must show.
struct Chain {
    scratch: Scratch,
    committed: Vec<PathBuf>,
    model: PathBuf,
}

/// What must be equal: all but the times that the two copies of a step were made at.
fn digest(root: &Path) -> BTreeMap<PathBuf, EntryDigest> {
    let mut entries = tree_digest(root);
    for entry in entries.values_mut() {
        entry.mtime_ns = 0;
    }
    entries
}

impl Chain {
    fn new() -> Chain {
        require_root();
        let scratch = Scratch::new();
        let model = scratch.join("model");
        let base = scratch.join("base");
        fs::create_dir(&model).unwrap();
        fs::create_dir(&base).unwrap();
        Chain {
            scratch,
            committed: vec![base],
            model,
        }
    }

    fn layers(&self, name: &str) -> Layers {
        let mut layers = Layers::new(&self.scratch.join(name), 0);
        layers.lowers = self.committed.iter().rev().cloned().collect();
        layers
    }

    /// Does `change` in a mount and in the model, commits, and compares the active mount, the
    /// committed view, and the kernel's view.
    fn step(&mut self, change: impl Fn(&Path)) {
        let number = self.committed.len();
        let layers = self.layers(&format!("step{number}"));
        let mounted = subject().mount(&layers, &[]);
        change(mounted.root());
        change(&self.model);
        let expected = digest(&self.model);
        let what = |view: &str| format!("step {number}: model and {view}");
        assert_digests_equal(&expected, &digest(mounted.root()), &what("active mount"));
        mounted.unmount();
        self.committed.push(layers.upper.clone());

        let view = self.layers(&format!("view{number}"));
        let mounted = subject().mount_read_only(&view, &[]);
        assert_digests_equal(&expected, &digest(mounted.root()), &what("committed view"));
        mounted.unmount();
        if subject() != Subject::Kernel {
            let mounted = Subject::Kernel.mount_read_only(&view, &[]);
            assert_digests_equal(&expected, &digest(mounted.root()), &what("kernel's view"));
        }
    }
}

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

fn mode(root: &Path, path: &str, mode: u32) {
    fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
}

fn rename(root: &Path, from: &str, to: &str) {
    fs::rename(root.join(from), root.join(to))
        .unwrap_or_else(|e| panic!("rename {from} to {to} in {}: {e}", root.display()));
}

fn own(root: &Path, path: &str, uid: u32, gid: u32) {
    lchown(root.join(path), Some(uid), Some(gid)).unwrap();
}

/// Case "Rename": files and directories of lower layers, within and across directories.
#[test]
fn renames_are_committed() {
    let mut chain = Chain::new();
    chain.step(|root| {
        write(root, "dir1/f1", "one");
        write(root, "dir1/sub/f2", "two");
        write(root, "somefiles/f3", "three");
        mode(root, "somefiles", 0o700);
    });
    chain.step(|root| {
        rename(root, "somefiles/f3", "somefiles/f3-renamed");
        rename(root, "dir1", "dir1-renamed");
        write(root, "dir1-renamed/new", "new");
    });
    chain.step(|root| {
        rename(root, "dir1-renamed/sub", "somefiles/sub");
        rename(root, "dir1-renamed", "dir1");
        fs::remove_file(root.join("dir1/f1")).unwrap();
    });
    chain.step(|root| {
        rename(root, "somefiles/sub", "dir1/sub");
        write(root, "dir1/sub/f2", "changed");
        rename(root, "somefiles", "dir1/deep");
    });
}

/// Case "MoveFileFromLowerLayer".
#[test]
fn a_file_moved_from_a_lower_layer_is_committed() {
    let mut chain = Chain::new();
    chain.step(|root| {
        write(root, "dir1/f1", "foo");
        write(root, "dir2/f2", "bar");
    });
    chain.step(|root| {
        fs::create_dir(root.join("dir3")).unwrap();
        rename(root, "dir1", "dir3/dir1");
        rename(root, "dir2/f2", "dir3/f2");
        fs::hard_link(root.join("dir3/f2"), root.join("dir2/linked")).unwrap();
    });
    chain.step(|root| {
        rename(root, "dir3/dir1/f1", "f1");
        fs::remove_dir(root.join("dir3/dir1")).unwrap();
    });
}

/// Case "RemoveDirectoryInLowerLayer".
#[test]
fn a_directory_removed_from_a_lower_layer_is_committed() {
    let mut chain = Chain::new();
    chain.step(|root| {
        write(root, "dir1/f1", "1");
        write(root, "dir1/sub/f2", "2");
        write(root, "dir2/f", "3");
    });
    chain.step(|root| {
        fs::remove_dir_all(root.join("dir1")).unwrap();
        write(root, "dir1/f2", "new");
        fs::remove_dir_all(root.join("dir2")).unwrap();
    });
    chain.step(|root| {
        fs::remove_dir_all(root.join("dir1")).unwrap();
        write(root, "dir2/g", "again");
    });
    chain.step(|root| write(root, "dir1/sub/f9", "third life"));
}

/// Case "LayerFileupdate": one file written in layer after layer.
#[test]
fn a_file_updated_in_each_layer_is_committed() {
    let mut chain = Chain::new();
    chain.step(|root| {
        write(root, "foo", "foo");
        write(root, "etc/hosts", "first");
        write(root, "etc/resolv.conf", "first");
    });
    for i in 0..4 {
        chain.step(|root| {
            write(root, "etc/hosts", &format!("hosts of layer {i}"));
            if i % 2 == 0 {
                fs::remove_file(root.join("etc/resolv.conf")).unwrap();
                fs::remove_file(root.join("foo")).unwrap();
            } else {
                write(root, "etc/resolv.conf", &format!("made again in {i}"));
                write(root, "foo/file", &format!("a directory now: {i}"));
                fs::remove_dir_all(root.join("foo")).unwrap();
                write(root, "foo", &format!("a file again: {i}"));
            }
        });
    }
}

/// Case "Chown", with the set-id bits that a chown of a program clears.
#[test]
fn chowns_are_committed() {
    let mut chain = Chain::new();
    chain.step(|root| {
        for path in ["opt/a/b/file", "opt/c/file", "opt/d"] {
            write(root, path, path);
        }
        mode(root, "opt/d", 0o6755);
        std::os::unix::fs::symlink("d", root.join("opt/s")).unwrap();
    });
    chain.step(|root| {
        own(root, "opt/a/b", 1, 2);
        own(root, "opt/a/b/file", 3, 4);
        own(root, "opt/s", 5, 6);
        own(root, "opt/d", 7, 8);
    });
    chain.step(|root| {
        own(root, "opt", 65_534, 100_000);
        write(root, "opt/a/b/file", "changed by root");
    });
}

/// Case "DirectoryPermissionOnCommit": work in a directory leaves its mode and owner as they were,
/// in whichever layer they were given.
#[test]
fn permissions_of_directories_are_committed() {
    let mut chain = Chain::new();
    let dirs = ["dir1", "dir2", "dir3", "dir4", "dir5"];
    chain.step(|root| {
        for (i, dir) in dirs.into_iter().enumerate() {
            write(root, &format!("{dir}/f"), "x");
            mode(root, dir, [0o700, 0o1777, 0o2755, 0o711, 0o4750][i]);
        }
        own(root, "dir1", 1000, 1000);
        own(root, "dir3", 1001, 1001);
    });
    chain.step(|root| {
        for dir in dirs {
            write(root, &format!("{dir}/new"), "x");
        }
        own(root, "dir4", 1002, 1002);
        mode(root, "dir5", 0o777);
    });
    chain.step(|root| {
        for dir in dirs {
            fs::remove_file(root.join(dir).join("f")).unwrap();
        }
        as_user(1000, 1000, || write(root, "dir2/by-user", "u"));
        fs::remove_dir_all(root.join("dir1")).unwrap();
        fs::create_dir(root.join("dir1")).unwrap();
        mode(root, "dir1", 0o750);
    });
}

/// Case "128LayersMount": the greatest number of layers, mounted, read through and written to.
#[test]
fn one_hundred_and_twenty_eight_layers_are_mounted() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(128);
    let model = scratch.join("model");
    fs::create_dir(&model).unwrap();
    for (i, lower) in layers.lowers.iter().enumerate().rev() {
        for root in [lower, &model] {
            write(root, "bottom", &format!("layer {i}"));
            write(root, &format!("file{i}"), &format!("layer {i}"));
            write(root, &format!("dir/sub/file{i}"), &format!("layer {i}"));
        }
        // All trees are to have the times of one.
        for path in ["bottom", &format!("file{i}"), &format!("dir/sub/file{i}")] {
            let (from, to) = (model.join(path), lower.join(path));
            run(
                "touch",
                &["-r", from.to_str().unwrap(), to.to_str().unwrap()],
            );
        }
    }
    let mounted = subject().mount_read_only(&layers, &[]);
    assert_digests_equal(&digest(&model), &digest(mounted.root()), "128 layers");
    mounted.unmount();

    let mut mounted = subject().mount(&layers, &[]);
    for root in [&model, mounted.root()] {
        write(root, "bottom", "changed");
        write(root, "dir/sub/file127", "changed");
        fs::remove_file(root.join("file127")).unwrap();
        fs::remove_file(root.join("dir/sub/file0")).unwrap();
        write(root, "dir/sub/new", "new");
        rename(root, "dir/sub", "dir/renamed");
    }
    assert_digests_equal(&digest(&model), &digest(mounted.root()), "changed");
    mounted.remount();
    assert_digests_equal(&digest(&model), &digest(mounted.root()), "remounted");
}
