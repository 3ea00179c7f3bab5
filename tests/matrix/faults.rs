//! The check of uppers, checked: what Linux leaves is fine, and each kind of damage is found.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, XattrFlags};

use crate::support::files::{mknod, set_xattr};
use crate::support::{Layers, Scratch, Subject, UpperCheck, require_root, sh};

const OPTIONS: [&str; 3] = ["redirect_dir=on", "index=on", "metacopy=on"];

/// What each name is good for is in the damages below.
const LOWER: &str = "mkdir -p dir/in kept opq moved gone
    for f in dir/a dir/in/b kept/k opq/o moved/m gone/g meta data solo; do echo $f > $f; done
    echo three > hard1; ln hard1 hard2; ln hard1 hard3; ln hard1 dir/hard4";

const CHANGES: &str = "echo more >> dir/a; rm dir/in/b; rm -r gone; rm -r opq; mkdir opq; echo new > opq/n
    mv moved renamed; echo more >> renamed/m; chmod 600 meta; echo more >> data
    echo more >> hard1; ln hard2 hard5; rm dir/hard4; mv solo dir/solo2; mkdir pure; echo p > pure/p";

struct Upper {
    _scratch: Scratch,
    layers: Layers,
}

impl Upper {
    /// As Linux leaves it.
    fn new() -> Upper {
        require_root();
        let scratch = Scratch::new();
        let layers = scratch.layers(1);
        sh(layers.lower(), LOWER);
        let mounted = Subject::Kernel.mount(&layers, &OPTIONS);
        sh(mounted.root(), CHANGES);
        mounted.unmount();
        Upper {
            _scratch: scratch,
            layers,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.layers.upper.join(path)
    }

    fn faults(&self) -> Vec<String> {
        let layers = &self.layers;
        let check = UpperCheck {
            metacopy: true,
            by_kernel: true,
            ..UpperCheck::new(&layers.lowers, &layers.upper, &layers.work)
        };
        check.faults().unwrap()
    }

    /// The only entry of the index that is a file.
    fn index_entry(&self) -> PathBuf {
        let entries = fs::read_dir(self.layers.work.join("index")).unwrap();
        let mut files = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file());
        let found = files.next().expect("an index entry");
        assert!(files.next().is_none(), "one lower file has several names");
        found
    }
}

fn mark(path: &Path, name: &str, value: &[u8]) {
    set_xattr(path, &format!("trusted.overlay.{name}"), value).unwrap();
}

fn unmark(path: &Path, name: &str) {
    rustix::fs::lremovexattr(path, format!("trusted.overlay.{name}")).unwrap();
}

fn value(path: &Path, name: &str) -> Vec<u8> {
    let mut value = vec![0; 256];
    let n = rustix::fs::lgetxattr(path, format!("trusted.overlay.{name}"), &mut value[..]).unwrap();
    value.truncate(n);
    value
}

fn whiteout(path: &Path) {
    mknod(path, FileType::CharacterDevice, 0, 0).unwrap();
}

/// The damage, and what must be said of it.
type Damage = (&'static str, fn(&Upper));

const DAMAGES: &[Damage] = &[
    ("nowhere: a whiteout of nothing", |u| {
        whiteout(&u.at("nowhere"))
    }),
    ("dir/in/c: a whiteout of nothing", |u| {
        whiteout(&u.at("dir/in/c"))
    }),
    ("opq/o: a whiteout in a directory with nothing below", |u| {
        whiteout(&u.at("opq/o"))
    }),
    (
        "renamed: is redirected to none, which is no lower directory",
        |u| {
            mark(&u.at("renamed"), "redirect", b"none");
        },
    ),
    (
        "renamed: is redirected to /dir/a, which is no lower directory",
        |u| {
            mark(&u.at("renamed"), "redirect", b"/dir/a");
        },
    ),
    ("renamed: has a redirect that is no path", |u| {
        mark(&u.at("renamed"), "redirect", b"/dir//in");
    }),
    ("renamed: is both opaque and redirected", |u| {
        mark(&u.at("renamed"), "opaque", b"y")
    }),
    ("opq: has the opaque mark 'n'", |u| {
        mark(&u.at("opq"), "opaque", b"n")
    }),
    ("dir/a: has opaque and is no directory", |u| {
        mark(&u.at("dir/a"), "opaque", b"y")
    }),
    (
        "dir/a: has an origin, but its directory is not marked impure",
        |u| {
            unmark(&u.at("dir"), "impure");
        },
    ),
    (
        "dir/a: has an origin that leads to nothing in the lowers",
        |u| {
            let mut origin = value(&u.at("dir/a"), "origin");
            origin[24] ^= 0x55;
            mark(&u.at("dir/a"), "origin", &origin);
        },
    ),
    ("dir/a: has an origin that can't be read", |u| {
        mark(&u.at("dir/a"), "origin", b"\0\xfb")
    }),
    (
        "dir/a: has an origin that leads to nothing in the lowers",
        |u| {
            fs::remove_file(u.layers.lower().join("dir/a")).unwrap();
        },
    ),
    ("meta: has metacopy, but data of its own", |u| {
        OpenOptions::new()
            .write(true)
            .open(u.at("meta"))
            .unwrap()
            .write_all(b"data")
            .unwrap();
    }),
    ("meta: has metacopy, but there is no data below", |u| {
        fs::remove_file(u.layers.lower().join("meta")).unwrap();
    }),
    ("dir/solo2: has metacopy, but there is no data below", |u| {
        unmark(&u.at("dir/solo2"), "redirect")
    }),
    ("dir: has metacopy and is a directory", |u| {
        mark(&u.at("dir"), "metacopy", b"")
    }),
    ("is dangling: no name leads to it", |u| {
        fs::remove_file(u.at("hard5")).unwrap();
        for name in ["hard1", "hard2", "hard3"] {
            sh(&u.layers.upper, &format!("rm -f {name}"));
            whiteout(&u.at(name));
        }
    }),
    ("has 4 links, but 2 names", |u| {
        fs::rename(
            u.at("hard5"),
            u.layers.upper.parent().unwrap().join("elsewhere"),
        )
        .unwrap();
    }),
    ("overlay.nlink U+7 means 11, but there are 4 names", |u| {
        mark(&u.index_entry(), "nlink", b"U+7")
    }),
    ("has no overlay.nlink, or one that can't be read", |u| {
        mark(&u.index_entry(), "nlink", b"4")
    }),
    ("has an origin that is not its name", |u| {
        let mut origin = value(&u.index_entry(), "origin");
        origin[24] ^= 0x55;
        mark(&u.index_entry(), "origin", &origin);
    }),
    ("work/index/nonsense: is no name of an index entry", |u| {
        fs::write(u.layers.work.join("index/nonsense"), "").unwrap();
    }),
    (
        "work/index/00fb: is an index entry for nfs_export, which is off",
        |u| {
            whiteout(&u.layers.work.join("index/00fb"));
        },
    ),
    ("work/work/left: is left in work", |u| {
        fs::write(u.layers.work.join("work/left"), "").unwrap()
    }),
    ("work/more: has no place in a work directory", |u| {
        fs::write(u.layers.work.join("more"), "").unwrap();
    }),
    ("work/work/incompat: is left in work", |u| {
        fs::create_dir_all(u.layers.work.join("work/incompat/volatile")).unwrap();
    }),
    (".wh.a: a name that means a whiteout elsewhere", |u| {
        fs::write(u.at("dir/.wh.a"), "").unwrap()
    }),
    ("the root has redirect", |u| {
        mark(&u.layers.upper, "redirect", b"/dir")
    }),
];

#[test]
fn an_upper_of_linux_has_no_faults() {
    let upper = Upper::new();
    assert_eq!(upper.faults(), Vec::<String>::new());
    let missing = ["dir/a", "renamed/m", "meta", "hard5", "dir/solo2"];
    for name in missing {
        assert!(upper.at(name).exists(), "{name}: the script does nothing");
    }
}

#[test]
fn damaged_uppers_are_found_out() {
    for (expected, damage) in DAMAGES {
        let upper = Upper::new();
        damage(&upper);
        let faults = upper.faults();
        assert!(
            faults.iter().any(|fault| fault.contains(expected)),
            "want '{expected}': {faults:?}"
        );
    }
}

#[test]
fn a_volatile_upper_without_its_mark_is_found_out() {
    let upper = Upper::new();
    let layers = &upper.layers;
    let check = UpperCheck {
        metacopy: true,
        volatile: true,
        by_kernel: true,
        ..UpperCheck::new(&layers.lowers, &layers.upper, &layers.work)
    };
    assert_eq!(check.faults().unwrap(), ["work: has no mark of volatile"]);
    fs::create_dir_all(layers.work.join("work/incompat/volatile")).unwrap();
    assert_eq!(check.faults().unwrap(), Vec::<String>::new());
}

#[test]
fn privileged_marks_beside_userxattr_are_found_out() {
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    sh(
        layers.lower(),
        "mkdir dir; echo a > dir/a; setfattr -n trusted.overlay.origin -v x dir/a",
    );
    let options = ["redirect_dir=nofollow", "index=on", "userxattr"];
    let mounted = Subject::Kernel.mount(&layers, &options);
    sh(mounted.root(), "echo more >> dir/a");
    mounted.unmount();
    let check = UpperCheck {
        userxattr: true,
        by_kernel: true,
        ..UpperCheck::new(&layers.lowers, &layers.upper, &layers.work)
    };
    assert_eq!(check.faults().unwrap(), Vec::<String>::new());
    mark(&layers.upper.join("dir"), "impure", b"y");
    rustix::fs::lsetxattr(
        layers.upper.join("dir/a"),
        "user.overlay.metacopy",
        b"",
        XattrFlags::empty(),
    )
    .unwrap();
    let faults = check.faults().unwrap();
    assert_eq!(
        faults,
        [
            "upper/dir: has trusted.overlay.impure, but userxattr is on",
            "upper/dir/a: has metacopy, which is off",
            "upper/dir/a: has metacopy, but data of its own"
        ]
    );
}
