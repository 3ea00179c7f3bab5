//! What a layer's tree can lose: each kind of damage is found, and made right from an archive; and what is no damage
//! is not reported.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::builder::{Image, Layer, archive, docker_members};
use crate::rovl_command::TestStore;
use crate::support::{require_program, require_root, sh};

/// An image of two layers, with every kind of object in the lower one, packed by GNU tar.
struct Damaged {
    store: TestStore,
    /// The lower layer and the upper.
    trees: [PathBuf; 2],
}

fn image(store: &TestStore) -> Image {
    require_program("setcap");
    let place = store.scratch.join("tree");
    fs::create_dir(&place).unwrap();
    sh(
        &place,
        "mkdir -m 755 d d/sub e; mkdir -m 1777 tmp
         echo text >d/file; chmod 640 d/file; chown 12:34 d/file
         cp d/file d/suid; chown 3:4 d/suid; chmod 4755 d/suid
         ln d/file d/link; ln -s file d/symlink; touch d/empty; mkfifo d/pipe
         mknod d/device c 1 3; mknod d/disk b 7 9
         cp d/file d/capable; setcap cap_net_raw+ep d/capable
         cp d/file d/noted; setfattr -n user.note -v value d/noted
         cp d/file d/acl; setfacl -m u:77:r d/acl; setfacl -d -m g:78:rx e
         truncate -s 2M d/hole; truncate -s 3M d/sparse; printf piece | dd of=d/sparse bs=1 seek=1M conv=notrunc status=none
         find . -exec touch -h -d '2020-02-02 02:02:02.123456789' {} +
         touch -d '1955-05-05 05:05:05' d/empty
         tar --format=pax --sparse --xattrs --xattrs-include='*' --acls --numeric-owner -cf ../lower.tar .",
    );
    let lower = fs::read(store.scratch.join("lower.tar")).unwrap();
    let upper = Layer::new()
        .dir("d/")
        .whiteout("d", "empty")
        .dir("e/")
        .file("e/.wh..wh..opq", b"")
        .file("f", b"f")
        .build();
    Image::new("damaged:1", vec![lower, upper])
}

impl Damaged {
    fn new() -> Damaged {
        require_root();
        let store = TestStore::new();
        store.load(&archive(&docker_members(&[image(&store)])));
        store.assert_clean();
        let mut damaged = Damaged {
            store,
            trees: Default::default(),
        };
        damaged.find_trees();
        damaged
    }

    /// Repairing gives layers other directories.
    fn find_trees(&mut self) {
        let lowers = self.store.lowers("damaged:1");
        self.trees = [lowers[1].clone(), lowers[0].clone()];
    }

    fn faults(&self) -> Vec<String> {
        let output = self.store.try_run(&["store", "fsck", "--json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let faults = report["faults"].as_array().unwrap();
        let ok = if faults.is_empty() { 0 } else { 1 };
        assert_eq!(output.status.code(), Some(ok), "{report}");
        faults
            .iter()
            .map(|fault| fault.as_str().unwrap().to_owned())
            .collect()
    }
}

/// Which of the two layers, what is done in its tree, and what must be said of it.
const DAMAGES: [(usize, &str, &[&str]); 25] = [
    (0, "chown 0:0 d/suid", &["suid", "owner is 0:0, not 3:4"]),
    (0, "chmod 4777 d/suid", &["suid", "mode is 4777, not 4755"]),
    (0, "chmod 777 tmp", &["tmp", "mode is 0777, not 1777"]),
    (0, "touch d/file", &["file", "time is"]),
    (0, "touch -h d/symlink", &["symlink", "time is"]),
    (0, "touch d/sub", &["sub", "time is"]),
    (0, "rm d/link; cp -a d/file d/link", &["link", "no link to"]),
    (0, "rm d/empty", &["empty", "not there"]),
    (0, "rmdir d/sub", &["sub", "not there"]),
    (0, "rm d/symlink", &["symlink", "not there"]),
    (0, "ln -sfn /etc d/symlink", &["symlink", "leads elsewhere"]),
    (
        0,
        "rm d/device; mknod d/device c 1 5",
        &["device", "another device"],
    ),
    (0, "rm d/pipe; touch d/pipe", &["pipe", "another type"]),
    (
        0,
        "setcap -r d/capable",
        &["capable", "security.capability"],
    ),
    (
        0,
        "setcap cap_sys_admin+ep d/file",
        &["file", "security.capability"],
    ),
    (
        0,
        "setfattr -n user.note -v other d/noted",
        &["noted", "user.note"],
    ),
    (
        0,
        "setfattr -n user.more -v x d/noted",
        &["noted", "user.more"],
    ),
    (
        0,
        "setfacl -m u:77:rw d/acl",
        &["acl", "system.posix_acl_access"],
    ),
    (
        0,
        "printf X | dd of=d/sparse bs=1 seek=1048577 conv=notrunc status=none; touch -d @1580608922.123456789 d/sparse",
        &["sparse", "content"],
    ),
    (
        0,
        "printf X | dd of=d/hole bs=1 seek=9 conv=notrunc status=none; touch -d @1580608922.123456789 d/hole",
        &["hole", "content"],
    ),
    (
        0,
        "printf X | dd of=d/sparse bs=1 seek=9 conv=notrunc status=none; touch -d @1580608922.123456789 d/sparse",
        &["sparse", "content"],
    ),
    (
        0,
        "echo x >d/sub/new",
        &["sub/new", "no archive brought it"],
    ),
    (1, "rm d/empty", &["d/empty", "hidden no longer"]),
    (
        1,
        "setfattr -x trusted.overlay.opaque e",
        &["doesn't hide what is below"],
    ),
    (
        1,
        "setfattr -n trusted.overlay.opaque -v y d",
        &["hides what is below"],
    ),
];

#[test]
fn every_kind_of_damage_is_found_and_repaired() {
    let mut damaged = Damaged::new();
    let from = damaged.store.scratch.join("archive.tar");
    let from = from.to_str().unwrap().to_owned();
    for (layer, script, words) in DAMAGES {
        sh(&damaged.trees[layer], script);
        let faults = damaged.faults();
        assert_eq!(faults.len(), 1, "{script}: {faults:?}");
        for word in words {
            assert!(faults[0].contains(word), "{script}: {faults:?}");
        }
        let repair = ["store", "fsck", "--repair", "--from", &from, "--json"];
        let repaired = damaged.store.json(&repair);
        assert_eq!(repaired["left"], json!([]), "{script}: {repaired}");
        damaged.store.assert_clean();
        damaged.find_trees();
    }
    damaged.store.assert_accounted();
}

/// Much at once is one fault a layer, which names the first and counts the others.
#[test]
fn much_damage_is_summed_up() {
    let damaged = Damaged::new();
    sh(
        &damaged.trees[0],
        "for n in 1 2 3 4 5; do echo >d/new$n; done",
    );
    let faults = damaged.faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("and 3 more"), "{faults:?}");
}

/// Reading, mounting and other things that leave a layer as it is are no faults; nor is what Docker does otherwise.
#[test]
fn what_is_no_damage_is_not_reported() {
    let damaged = Damaged::new();
    let [lower, upper] = &damaged.trees;
    sh(
        lower,
        "cat d/file >/dev/null; touch -a d/file
         setfattr -n user.overlay.opaque -v y d
         setfattr -n trusted.overlay.origin -v x d/file; setfattr -n trusted.overlay.impure -v y d",
    );
    // Times before 1970, which Docker makes 1970, and a file system with whole seconds.
    sh(
        lower,
        "touch -d @0 d/empty; touch -d '2020-02-02 02:02:02' d/noted",
    );
    // A whiteout in another form.
    sh(
        upper,
        "rm d/empty; touch d/.wh.empty; touch -d @1600000000 d",
    );
    assert_eq!(damaged.faults(), Vec::<String>::new());
}
