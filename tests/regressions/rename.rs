//! Renames of directories, and what must hold when a rename can't be done.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::RenameFlags;

use crate::support::files::rename_with;
use crate::support::{
    EntryDigest, Layers, LoopFs, Mounted, Scratch, Subject, assert_digests_equal, errno,
    require_root, run, sh, subject, tree_digest,
};

/// A digest without what a rename changes besides names: the times of directories.
fn digest(root: &Path) -> BTreeMap<PathBuf, EntryDigest> {
    let mut entries = tree_digest(root);
    for entry in entries.values_mut().filter(|e| e.kind == "dir") {
        entry.mtime_ns = 0;
    }
    entries
}

/// Three lowers and an upper that overlap in every way: pure lower, merged, opaque, whited out.
fn populate(layers: &Layers) {
    for (i, lower) in layers.lowers.iter().enumerate() {
        for dir in ["merged/deep/deeper", "other", "merged/empty"] {
            fs::create_dir_all(lower.join(dir)).unwrap();
        }
        for name in [
            format!("merged/f{i}"),
            format!("merged/deep/f{i}"),
            format!("merged/deep/deeper/f{i}"),
            format!("other/f{i}"),
            "merged/shadowed".to_owned(),
        ] {
            fs::write(lower.join(&name), format!("{name} of lower {i}")).unwrap();
        }
        let pure = format!("pure{i}/sub/subsub");
        fs::create_dir_all(lower.join(&pure)).unwrap();
        fs::write(lower.join(pure).join("leaf"), format!("leaf {i}")).unwrap();
        symlink("sub", lower.join(format!("pure{i}/symlink"))).unwrap();
    }
    fs::create_dir_all(layers.upper.join("merged/deep")).unwrap();
    fs::write(layers.upper.join("merged/of-upper"), "upper").unwrap();
    fs::create_dir(layers.upper.join("upper-dir")).unwrap();
    fs::write(layers.upper.join("upper-dir/f"), "upper").unwrap();
}

/// A plain copy of the tree, on which the same operations say what is right.
fn model(scratch: &Scratch, mounted: &Mounted) -> PathBuf {
    let model = scratch.join("model");
    run(
        "cp",
        &[
            "-a",
            mounted.root().to_str().unwrap(),
            model.to_str().unwrap(),
        ],
    );
    model
}

/// Runs the commands, one a line or between semicolons. `mv` is rename(2) and nothing else: the
/// program would copy and delete where the call says EXDEV.
fn operate(root: &Path, script: &str) {
    let commands = script.split([';', '\n']).map(str::trim);
    for command in commands.filter(|c| !c.is_empty()) {
        match command.split(' ').collect::<Vec<_>>()[..] {
            ["mv", from, to] => fs::rename(root.join(from), root.join(to))
                .unwrap_or_else(|e| panic!("{command} in {}: {e}", root.display())),
            _ => drop(sh(root, command)),
        }
    }
}

/// Runs `script` in the mount and in the model; then both must show the same, before and after a
/// remount, and so must the kernel's overlayfs on the same layers.
fn check(setup: impl Fn(&Layers), script: &str) {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(3);
    populate(&layers);
    setup(&layers);
    let mut mounted = subject().mount(&layers, &[]);
    let model = model(&scratch, &mounted);
    assert_digests_equal(&digest(&model), &digest(mounted.root()), "model and mount");
    let lowers: Vec<_> = layers.lowers.iter().map(|l| tree_digest(l)).collect();

    operate(&model, script);
    operate(mounted.root(), script);
    let expected = digest(&model);
    let compare = |mounted: &Mounted, what: &str| {
        let mut found = digest(mounted.root());
        // `cp` and `>` in the scripts give new times to what they write.
        let mut expected = expected.clone();
        for entries in [&mut found, &mut expected] {
            for entry in entries.values_mut().filter(|e| e.kind == "file") {
                entry.mtime_ns = 0;
            }
        }
        assert_digests_equal(&expected, &found, &format!("model and mount {what}"));
    };
    compare(&mounted, "at once");
    mounted.remount();
    compare(&mounted, "after a remount");
    mounted.unmount();
    let kernel = Subject::Kernel.mount(&layers, &[]);
    compare(&kernel, "of the kernel");
    kernel.unmount();
    for (lower, before) in layers.lowers.iter().zip(lowers) {
        assert_digests_equal(&before, &tree_digest(lower), "a lower before and after");
    }
}

/// Fault 10: EXDEV.
#[test]
fn a_lower_directory_can_be_renamed() {
    check(|_| {}, "mv pure0 renamed; test -f renamed/sub/subsub/leaf");
}

/// Fault 10, deeper: the parents are lower directories too.
#[test]
fn a_deep_lower_directory_can_be_renamed() {
    check(
        |_| {},
        "mv pure1/sub/subsub pure1/sub/renamed; mv pure1/sub pure1/s2",
    );
}

/// Fault 10: a directory that is in all layers.
#[test]
fn a_merged_directory_can_be_renamed() {
    check(
        |_| {},
        "mv merged renamed; cat renamed/f0 renamed/deep/deeper/f2 > /dev/null",
    );
}

/// Fault 10: into another directory, which is lower, merged or new.
#[test]
fn a_directory_can_be_moved_into_another() {
    check(
        |_| {},
        "mv pure0 other/moved; mv merged/deep upper-dir/moved; mkdir new; mv other new/x
         mv new/x/moved/sub pure1/sub/from-pure0",
    );
}

/// Fault 10: twice, and back to where it was.
#[test]
fn a_directory_can_be_renamed_again_and_back() {
    check(
        |_| {},
        "mv merged a; mv a b; mv b/deep b/shallow; mv b merged; mv merged/shallow merged/deep
         mv pure2 p; mv p pure2",
    );
}

/// A name given up by a rename can be used anew, and shows nothing of what was there.
#[test]
fn the_old_name_of_a_directory_is_free() {
    check(
        |_| {},
        "mv merged old; mkdir merged; echo new > merged/only; mv pure0 gone; echo file > pure0
         mv pure1 swap; mv pure2 pure1; mv swap pure2",
    );
}

/// Onto an empty directory, which a lower has too; and after its content was removed.
#[test]
fn a_directory_can_replace_an_empty_one() {
    check(
        |_| {},
        "mv pure0 merged/empty; rm other/*; mv pure1 other; rm -r pure2/sub pure2/symlink
         mv merged/deep pure2",
    );
}

/// What is changed in a directory before its rename stays changed, and what is changed after.
#[test]
fn changes_go_with_a_renamed_directory() {
    check(
        |_| {},
        "rm merged/f1; echo changed > merged/f2; rm -r merged/deep/deeper; mkdir merged/deep/deeper
         echo x > merged/deep/deeper/new; mv merged renamed; rm renamed/f0
         echo changed > renamed/shadowed; rm renamed/deep/f1; mv renamed/deep/f2 f2; rmdir renamed/empty
         ln pure0/sub/subsub/leaf renamed/linked; mv renamed/deep renamed/empty",
    );
}

/// A directory of the upper moved over or into lower ones stays what it is: nothing of the lower
/// name shows through in it.
#[test]
fn a_new_directory_under_an_old_name_is_opaque() {
    check(
        |_| {},
        "rm -r pure0; mv upper-dir pure0; rm -r merged/deep; mkdir n; echo 1 > n/1; mv n merged/deep",
    );
}

/// RENAME_EXCHANGE of lower and merged directories and files.
#[test]
fn directories_and_files_can_be_exchanged() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(3);
    populate(&layers);
    let mut mounted = subject().mount(&layers, &[]);
    let model = model(&scratch, &mounted);
    let pairs = [
        ("pure0", "merged"),
        ("pure1/sub", "other"),
        ("upper-dir", "pure2/sub"),
        ("merged", "pure1/sub/f0"),
        ("pure0/f1", "pure0/deep"),
    ];
    for root in [&model, mounted.root()] {
        for (a, b) in pairs {
            rename_with(&root.join(a), &root.join(b), RenameFlags::EXCHANGE)
                .unwrap_or_else(|e| panic!("exchange {a} and {b} in {}: {e}", root.display()));
        }
    }
    let expected = digest(&model);
    assert_digests_equal(&expected, &digest(mounted.root()), "model and mount");
    mounted.remount();
    assert_digests_equal(&expected, &digest(mounted.root()), "after a remount");
    mounted.unmount();
    let kernel = Subject::Kernel.mount(&layers, &[]);
    assert_digests_equal(&expected, &digest(kernel.root()), "of the kernel");
}

/// What POSIX forbids stays forbidden.
#[test]
fn forbidden_renames_of_directories_are_refused() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(3);
    populate(&layers);
    let mounted = subject().mount(&layers, &[]);
    let before = digest(mounted.root());
    let rename = |from: &str, to: &str| errno(fs::rename(mounted.path(from), mounted.path(to)));
    assert_eq!(rename("pure0", "pure0/sub/inside"), libc::EINVAL);
    assert_eq!(rename("merged", "merged/deep/inside"), libc::EINVAL);
    assert_eq!(rename("pure0", "merged"), libc::ENOTEMPTY);
    assert_eq!(rename("pure0", "merged/f0"), libc::ENOTDIR);
    assert_eq!(rename("merged/f0", "pure0"), libc::EISDIR);
    assert_eq!(rename("nothing", "pure0"), libc::ENOENT);
    assert_digests_equal(
        &before,
        &digest(mounted.root()),
        "before and after refusals",
    );
}

/// Fault 18's second half: when upper is full, a rename that can't be done has done nothing, and one
/// that is reported done is done.
#[test]
fn a_rename_in_a_full_file_system_does_everything_or_nothing() {
    require_root();
    let small = LoopFs::ext4_few_inodes(16 << 20);
    let scratch = Scratch::new();
    let layers = scratch.layers(1).with_upper_in(small.path());
    let data = "data ".repeat(20_000);
    for i in 0..30 {
        fs::write(layers.lower().join(format!("f{i}")), &data).unwrap();
        let dir = layers.lower().join(format!("d{i}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("inside"), &data).unwrap();
    }
    let mut mounted = subject().mount(&layers, &[]);
    small.fill("ballast", 200 << 10);
    use_up_inodes(small.path(), 12);
    let mut failed = 0;
    let mut done = BTreeMap::new();
    for i in 0..30 {
        for kind in ["f", "d"] {
            let (from, to) = (format!("{kind}{i}"), format!("{kind}{i}-renamed"));
            let ok = fs::rename(mounted.path(&from), mounted.path(&to)).is_ok();
            failed += u32::from(!ok);
            done.insert((from, to), ok);
        }
    }
    assert!(failed > 0, "the file system was not full");
    for remounted in [false, true] {
        for ((from, to), ok) in &done {
            let what = format!("{from} (renamed: {ok}, remounted: {remounted})");
            let (there, gone) = if *ok { (to, from) } else { (from, to) };
            assert!(!mounted.path(gone).exists(), "{what}: {gone} exists");
            let file = if from.starts_with('d') {
                mounted.path(there).join("inside")
            } else {
                mounted.path(there)
            };
            let content = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(content == data, "{what}: the content changed");
        }
        if !remounted {
            // A mount needs a little space of its own.
            fs::remove_file(small.path().join("ballast")).unwrap();
            fs::remove_dir_all(small.path().join("inodes")).unwrap();
            mounted.remount();
        }
    }
    for ((from, to), _) in done.iter().filter(|(_, ok)| !**ok) {
        fs::rename(mounted.path(from), mounted.path(to))
            .unwrap_or_else(|e| panic!("{from}, with space again: {e}"));
    }
}

/// Makes empty files until `leave` inodes are free.
fn use_up_inodes(fs: &Path, leave: u64) {
    fs::create_dir(fs.join("inodes")).unwrap();
    let free = rustix::fs::statvfs(fs).unwrap().f_favail;
    for i in 0..free.saturating_sub(leave) {
        // The directory itself may find no block: then there are inodes to spare, and no space.
        if fs::write(fs.join(format!("inodes/{i}")), "").is_err() {
            break;
        }
    }
}
