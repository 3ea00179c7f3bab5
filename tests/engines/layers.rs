//! Whiteouts and opaque directories in each form that engines leave in layers, names of full length,
//! and hard links.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FileType;

use crate::support::files::{ino, mknod, nlink, set_xattr};
use crate::support::{
    Layers, Scratch, Subject, errno, require_program, require_root, sh, subject, tree_digest,
};

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("list {}: {e}", dir.display()))
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The tree of an upper that was committed: as the topmost lower of a read-only mount.
fn committed_view(layers: &Layers) -> Layers {
    let mut view = layers.clone();
    view.lowers.insert(0, layers.upper.clone());
    view
}

/// Engine fault 1. `rm -rf D; mkdir D` and a commit: nothing of the old directory comes back, in the
/// mount, after a remount, in the committed layer, in the kernel's view.
#[test]
fn a_directory_removed_and_made_again_stays_empty_when_committed() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    for (i, lower) in layers.lowers.iter().enumerate() {
        for dir in ["d/sub", "e/sub", "parent/d/sub"] {
            fs::create_dir_all(lower.join(dir)).unwrap();
            for j in 0..60 {
                let name = format!("{dir}/../f{}", i * 60 + j);
                fs::write(lower.join(name), "old").unwrap();
                fs::write(lower.join(dir).join(format!("g{j}")), "old").unwrap();
            }
        }
    }
    let mut mounted = subject().mount(&layers, &[]);
    for dir in ["d", "e", "parent/d"] {
        fs::remove_dir_all(mounted.path(dir)).unwrap();
        fs::create_dir(mounted.path(dir)).unwrap();
    }
    fs::write(mounted.path("e/f7"), "new").unwrap();
    fs::create_dir(mounted.path("e/sub")).unwrap();
    let check = |root: &Path, what: &str| {
        assert_eq!(names(&root.join("d")), set(&[]), "d {what}");
        assert_eq!(names(&root.join("parent/d")), set(&[]), "parent/d {what}");
        assert_eq!(names(&root.join("e")), set(&["f7", "sub"]), "e {what}");
        assert_eq!(names(&root.join("e/sub")), set(&[]), "e/sub {what}");
        assert_eq!(fs::read(root.join("e/f7")).unwrap(), b"new", "{what}");
    };
    check(mounted.root(), "at once");
    mounted.remount();
    check(mounted.root(), "after a remount");
    mounted.unmount();
    let view = subject().mount_read_only(&committed_view(&layers), &[]);
    check(view.root(), "committed");
    view.unmount();
    let kernel = Subject::Kernel.mount(&layers, &[]);
    check(kernel.root(), "of the kernel");
}

/// A form in which a layer says that a name, or a directory's content below, is gone.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Character device 0:0; xattr opaque=y.
    Device,
    /// Empty file with overlay.whiteout in a directory with overlay.opaque=x.
    Xattr,
    /// `.wh.NAME`; `.wh..wh..opq`.
    Prefix,
}

/// The forms that the subject claims to read: the kernel has no prefix form.
fn forms() -> Vec<Form> {
    match subject() {
        Subject::Kernel => vec![Form::Device, Form::Xattr],
        Subject::Rovl => vec![Form::Device, Form::Xattr, Form::Prefix],
        Subject::FuseOverlayfs(_) => vec![Form::Device, Form::Prefix],
    }
}

fn whiteout(path: &Path, form: Form) {
    match form {
        Form::Device => mknod(path, FileType::CharacterDevice, 0, 0).unwrap(),
        Form::Xattr => {
            File::create(path).unwrap();
            set_xattr(path, "trusted.overlay.whiteout", b"").unwrap();
            set_xattr(path.parent().unwrap(), "trusted.overlay.opaque", b"x").unwrap();
        }
        Form::Prefix => {
            let name = format!(".wh.{}", path.file_name().unwrap().to_str().unwrap());
            File::create(path.with_file_name(name)).unwrap();
        }
    }
}

fn make_opaque(dir: &Path, form: Form) {
    match form {
        Form::Device | Form::Xattr => set_xattr(dir, "trusted.overlay.opaque", b"y").unwrap(),
        Form::Prefix => drop(File::create(dir.join(".wh..wh..opq")).unwrap()),
    }
}

/// Engine fault 2. From the bottom: `locale/old`, a whiteout of `locale`, a plain directory
/// `locale/`, and a fourth layer with `locale/` above: what is below the whiteout stays hidden.
#[test]
fn a_whiteout_between_directories_hides_what_is_below() {
    require_root();
    for form in forms() {
        let scratch = Scratch::new();
        let layers = scratch.layers(5);
        let dir = |i: usize, path: &str| {
            let dir = layers.lowers[i].join(path);
            fs::create_dir_all(&dir).unwrap();
            dir
        };
        fs::write(dir(4, "usr/locale/sub").join("deep"), "oldest").unwrap();
        fs::write(dir(4, "usr/locale").join("old"), "oldest").unwrap();
        fs::write(dir(3, "usr/locale").join("old3"), "old").unwrap();
        whiteout(&dir(2, "usr").join("locale"), form);
        fs::write(dir(1, "usr/locale/sub").join("new"), "new").unwrap();
        fs::write(dir(0, "usr/locale").join("newest"), "newest").unwrap();
        for writable in [false, true] {
            let mounted = subject().try_mount(&layers, &[], writable).unwrap();
            let locale = mounted.path("usr/locale");
            assert_eq!(names(&locale), set(&["newest", "sub"]), "{form:?}");
            assert_eq!(names(&locale.join("sub")), set(&["new"]), "{form:?}");
            for gone in ["old", "old3", "sub/deep"] {
                let looked = errno(fs::symlink_metadata(locale.join(gone)));
                assert_eq!(looked, libc::ENOENT, "{gone}, {form:?}");
            }
            if writable {
                fs::write(locale.join("old"), "made anew").unwrap();
                assert_eq!(fs::read(locale.join("old")).unwrap(), b"made anew");
            }
        }
    }
}

/// Whiteouts and opaque directories of each form, in lowers at each depth: what shows, what doesn't;
/// the marks themselves never show.
#[test]
fn whiteouts_and_opaque_directories_of_lowers_hide_what_is_below() {
    require_root();
    for form in forms() {
        let scratch = Scratch::new();
        let layers = scratch.layers(3);
        let (top, middle, bottom) = (&layers.lowers[0], &layers.lowers[1], &layers.lowers[2]);
        for lower in [top, middle, bottom] {
            for dir in ["dir", "opaque", "mid-opaque", "d"] {
                fs::create_dir_all(lower.join(dir)).unwrap();
            }
        }
        for name in ["a", "b", "c", "dir/a", "dir/b", "opaque/a", "mid-opaque/a"] {
            fs::write(bottom.join(name), "bottom").unwrap();
        }
        fs::write(middle.join("opaque/m"), "middle").unwrap();
        fs::write(middle.join("mid-opaque/m"), "middle").unwrap();
        fs::write(top.join("opaque/t"), "top").unwrap();
        fs::write(top.join("mid-opaque/t"), "top").unwrap();
        whiteout(&top.join("a"), form);
        whiteout(&middle.join("b"), form);
        fs::write(top.join("b"), "back again").unwrap();
        whiteout(&middle.join("dir/a"), form);
        whiteout(&top.join("dir/not-there"), form);
        make_opaque(&top.join("opaque"), form);
        make_opaque(&middle.join("mid-opaque"), form);

        let mut mounted = subject().mount(&layers, &[]);
        for when in ["at once", "after a change and a remount"] {
            let list = |dir: &str| names(&mounted.path(dir));
            let what = format!("{form:?} {when}");
            let root = ["b", "c", "d", "dir", "mid-opaque", "opaque"];
            assert_eq!(list(""), set(&root), "{what}");
            assert_eq!(list("dir"), set(&["b"]), "{what}");
            assert_eq!(list("opaque"), set(&["t"]), "{what}");
            assert_eq!(list("mid-opaque"), set(&["m", "t"]), "{what}");
            assert_eq!(fs::read(mounted.path("b")).unwrap(), b"back again");
            for gone in ["a", "dir/a", "opaque/a", "opaque/m", "mid-opaque/a"] {
                assert!(!mounted.path(gone).exists(), "{gone} {what}");
            }
            for mark in ["a", "not-there"].map(|name| format!("dir/.wh.{name}")) {
                assert!(!mounted.path(&mark).exists(), "{mark} {what}");
            }
            assert!(!mounted.path("opaque/.wh..wh..opq").exists(), "{what}");
            fs::remove_dir(mounted.path("d")).unwrap();
            fs::create_dir(mounted.path("d")).unwrap();
            mounted.remount();
        }
    }
}

/// In one layer `.wh.NAME` and NAME may stand side by side: the mark hides the layers below only.
#[test]
fn a_prefix_whiteout_beside_its_name_hides_the_layers_below_only() {
    require_root();
    if subject() == Subject::Kernel {
        return; // The kernel doesn't read this form.
    }
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    let (top, bottom) = (&layers.lowers[0], &layers.lowers[1]);
    for (lower, file) in [(top, "new"), (bottom, "old")] {
        fs::create_dir(lower.join("dir")).unwrap();
        fs::write(lower.join("dir").join(file), file).unwrap();
        fs::write(lower.join("file"), file).unwrap();
    }
    File::create(top.join(".wh.dir")).unwrap();
    File::create(top.join(".wh.file")).unwrap();
    let mounted = subject().mount(&layers, &[]);
    assert_eq!(names(mounted.root()), set(&["dir", "file"]));
    assert_eq!(names(&mounted.path("dir")), set(&["new"]));
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"new");
}

/// A name of the greatest length, made of one letter.
fn long(letter: &str) -> String {
    letter.repeat(255)
}

/// Engine fault 4. Names of 255 bytes work everywhere; one more byte is ENAMETOOLONG.
#[test]
fn names_of_255_bytes_work() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    for letter in ["l", "m", "n"] {
        fs::write(layers.lower().join(long(letter)), letter).unwrap();
    }
    fs::create_dir(layers.lowers[1].join(long("d"))).unwrap();
    fs::write(layers.lowers[1].join(long("d")).join(long("e")), "deep").unwrap();

    let mut mounted = subject().mount(&layers, &[]);
    let path = |letter: &str| layers.merged.join(long(letter));
    assert_eq!(errno(fs::metadata(path("z"))), libc::ENOENT);
    assert_eq!(fs::read(path("l")).unwrap(), b"l");
    fs::write(path("l"), "copied up").unwrap();
    fs::write(path("c"), "created").unwrap();
    fs::create_dir(path("i")).unwrap();
    symlink(long("t"), path("s")).unwrap();
    fs::hard_link(path("m"), path("h")).unwrap();
    mknod(&path("k"), FileType::Fifo, 0o600, 0).unwrap();
    fs::rename(path("n"), path("r")).unwrap();
    fs::remove_file(path("m")).unwrap();
    fs::write(path("d").join(long("f")), "in a lower's directory").unwrap();
    fs::remove_file(path("d").join(long("e"))).unwrap();
    fs::rename(path("d"), path("D")).unwrap();

    let too_long = layers.merged.join("x".repeat(256));
    assert_eq!(errno(fs::metadata(&too_long)), libc::ENAMETOOLONG);
    assert_eq!(errno(File::create(&too_long)), libc::ENAMETOOLONG);
    let before: Vec<_> = tree_digest(mounted.root()).into_keys().collect();
    mounted.remount();
    assert_eq!(
        before,
        tree_digest(mounted.root()).into_keys().collect::<Vec<_>>()
    );
    let expected: BTreeSet<String> = ["l", "c", "i", "s", "h", "k", "r", "D"].map(long).into();
    assert_eq!(names(mounted.root()), expected);
    assert_eq!(names(&path("D")), [long("f")].into());
    assert_eq!(fs::read(path("l")).unwrap(), b"copied up");
    assert_eq!(fs::read(path("h")).unwrap(), b"m");
}

/// Engine fault 5. `ln lower new` makes two names of one inode, in either xattr name space.
#[test]
fn a_new_link_of_a_lower_file_is_the_same_inode() {
    require_root();
    let option_sets: &[&[&str]] = match subject() {
        // With userxattr the kernel has no index, and shows two inodes.
        Subject::Kernel => &[&[]],
        Subject::FuseOverlayfs(_) => &[&[]],
        Subject::Rovl => &[&[], &["userxattr"]],
    };
    for options in option_sets {
        let scratch = Scratch::new();
        let layers = scratch.layers(1);
        fs::write(layers.lower().join("lower"), "content").unwrap();
        let mut mounted = subject().mount(&layers, options);
        let (old, new) = (mounted.path("lower"), mounted.path("new"));
        let before = ino(&old);
        let held = File::open(&old).unwrap();
        fs::hard_link(&old, &new).unwrap();
        assert_eq!((ino(&old), ino(&new)), (before, before), "{options:?}");
        assert_eq!((nlink(&old), nlink(&new)), (2, 2), "{options:?}");
        assert_eq!(held.metadata().unwrap().nlink(), 2, "{options:?}");
        assert_eq!(held.metadata().unwrap().ino(), before, "{options:?}");
        fs::write(&new, "through the new name").unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"through the new name");
        drop(held);
        mounted.remount();
        assert_eq!((ino(&old), ino(&new)), (before, before), "{options:?}");
        assert_eq!((nlink(&old), nlink(&new)), (2, 2), "{options:?}");
        assert_eq!(fs::read(&old).unwrap(), b"through the new name");
    }
}

/// Engine fault 5, as users met it: a local `git clone` links the objects and compares the inodes.
#[test]
fn git_clones_a_repository_of_a_lower() {
    require_root();
    require_program("git");
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    sh(
        layers.lower(),
        "git init -q repo; cd repo; git config user.email t@example.org; git config user.name t
         for i in $(seq 30); do echo $i > f$i; git add f$i; git commit -qm $i; done",
    );
    let mounted = subject().mount(&layers, &[]);
    let output = Command::new("git")
        .args(["clone", "repo", "clone"])
        .current_dir(mounted.root())
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git clone: {said}");
    assert!(!said.contains("hardlink"), "git clone: {said}");
    sh(
        &mounted.path("clone"),
        "git -c safe.directory='*' fsck --strict; git -c safe.directory='*' status --porcelain | wc -l | grep -qx 0
         find .git/objects -type f -links 1 | wc -l | grep -qx 0",
    );
    let status: PathBuf = mounted.path("repo");
    sh(
        &status,
        "git -c safe.directory='*' gc -q; git -c safe.directory='*' fsck --strict",
    );
}

/// A file of which a layer holds the attributes only (`metacopy=on`) is refused, as the kernel does
/// without that option: what the layer has in its place are zeros.
#[test]
fn a_file_without_its_data_is_refused() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("f"), "data below").unwrap();
    {
        let kernel = Subject::Kernel.mount(&layers, &["metacopy=on", "redirect_dir=on"]);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        fs::set_permissions(kernel.path("f"), mode).unwrap();
    }
    let mounted = subject().mount(&layers, &[]);
    let read = fs::read(mounted.path("f"));
    assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EPERM));
}
