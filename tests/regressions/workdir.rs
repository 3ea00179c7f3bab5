//! The work directory: what a crash, or somebody, left there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::FileType;

use crate::support::files::mknod;
use crate::support::{Layers, Scratch, Subject, Trace, require_root, run, subject};

/// Names that a counter would give.
fn names() -> impl Iterator<Item = String> {
    (0..40).flat_map(|i| [format!("{i}"), format!("#{i:x}"), format!("tmp{i}")])
}

fn leave_behind(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    for name in names() {
        fs::write(
            dir.join(name),
            "left over by a crash, longer than the user's data",
        )
        .unwrap();
    }
    // The kernel gives up on directories more than two levels deep, and mounts read-only.
    let deep = match subject() {
        Subject::Kernel => dir.join("dir"),
        _ => dir.join("dir/deeper/deepest"),
    };
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "x").unwrap();
    fs::set_permissions(dir.join("dir"), fs::Permissions::from_mode(0o0)).unwrap();
    symlink("/etc", dir.join("symlink")).unwrap();
    mknod(&dir.join("fifo"), FileType::Fifo, 0o600, 0).unwrap();
    mknod(&dir.join("whiteout"), FileType::CharacterDevice, 0, 0).unwrap();
}

fn copy_up_files(layers: &Layers, root: &Path) {
    for i in 0..20 {
        let name = format!("f{i}");
        fs::write(root.join(&name), "rewritten").unwrap();
        fs::write(root.join(format!("new{i}")), "fresh").unwrap();
        fs::create_dir(root.join(format!("dir{i}"))).unwrap();
        let kept = root.join(format!("kept{i}"));
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o600)).unwrap();
    }
    for i in 0..20 {
        for dir in [root, &layers.upper] {
            let read = |name: String| fs::read_to_string(dir.join(name)).unwrap();
            assert_eq!(read(format!("f{i}")), "rewritten");
            assert_eq!(read(format!("new{i}")), "fresh");
            assert_eq!(read(format!("kept{i}")), "lower");
            let listed = fs::read_dir(dir.join(format!("dir{i}"))).unwrap().count();
            assert_eq!(listed, 0, "a new directory has entries");
        }
    }
}

fn layers_with_files(scratch: &Scratch) -> Layers {
    let layers = scratch.layers(1);
    for i in 0..20 {
        fs::write(layers.lower().join(format!("f{i}")), "lower").unwrap();
        fs::write(layers.lower().join(format!("kept{i}")), "lower").unwrap();
    }
    layers
}

/// Fault 3. Left-overs of every kind are gone after the mount, and none of their bytes shows up in
/// a user's file.
#[test]
fn leftovers_in_work_are_removed_and_never_become_data() {
    require_root();
    let scratch = Scratch::new();
    let layers = layers_with_files(&scratch);
    for dir in [layers.work.join("work"), layers.work.clone()] {
        leave_behind(&dir);
    }
    let mounted = subject().mount(&layers, &[]);
    let left: Vec<_> = fs::read_dir(layers.work.join("work"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "work/work still has {left:?}");
    copy_up_files(&layers, mounted.root());
    assert!(Path::new("/etc/passwd").exists());
    mounted.unmount();
    if subject() == Subject::Rovl {
        let left = fs::read_dir(layers.work.join("work")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "work/work is not empty after the unmount");
    }
}

/// Fault 3, with a left-over that can't be removed: the mount may be refused with a reason, or it
/// works; the left-over's bytes stay out of the tree either way.
#[test]
fn an_immutable_leftover_never_becomes_data() {
    require_root();
    let scratch = Scratch::new();
    let layers = layers_with_files(&scratch);
    for dir in [layers.work.join("work"), layers.work.clone()] {
        leave_behind(&dir);
        for name in names() {
            let path = dir.join(name);
            run("chattr", &["+i", path.to_str().unwrap()]);
        }
    }
    match subject().try_mount(&layers, &[], true) {
        Err(message) => assert!(!message.trim().is_empty(), "refused without a reason"),
        Ok(mounted) => {
            // The kernel mounts read-only here.
            let writable = fs::write(mounted.path("probe"), "x");
            if subject() == Subject::Kernel && writable.is_err() {
                return;
            }
            writable.unwrap();
            copy_up_files(&layers, mounted.root());
        }
    }
}

/// Fault 3, the other guard: what is built in work is created with O_EXCL or has no name at all.
#[test]
fn temporaries_are_created_exclusively() {
    require_root();
    let scratch = Scratch::new();
    let layers = layers_with_files(&scratch);
    let mounted = subject().mount(&layers, &[]);
    let Some(pid) = mounted.daemon_pid() else {
        return; // The kernel makes no system calls to look at.
    };
    let trace = Trace::attach(pid, "open,openat,openat2,creat");
    copy_up_files(&layers, mounted.root());
    let work = layers.work.to_str().unwrap().to_owned();
    for call in trace.finish() {
        let creates = call.text.contains("O_CREAT") && call.text.contains(&work);
        assert!(
            !creates || call.text.contains("O_EXCL"),
            "created without O_EXCL: {}",
            call.text
        );
    }
}
