//! Layers in unusual places: an upper on an overlay, on FUSE, on a file system without xattrs or where no
//! whiteout device can be made; lowers on squashfs and erofs.
#![allow(unsafe_code)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Disk;
use crate::cell::Namespace;
use crate::lowers::build;
use crate::script::{self, PARTS, play};
use crate::support::{
    Layers, Mounted, Scratch, Subject, UpperCheck, is_mount_point, require_program, require_root,
    rovl_bin, run, sh, subject, wait_until,
};
use crate::view::{Rigour, View, difference, view};

const OPTIONS: [&str; 4] = ["redirect_dir=on", "index=on", "metacopy=off", "xino=auto"];
/// For lowers without handles of their own, where Linux takes index=on as off.
const NO_INDEX: [&str; 4] = ["redirect_dir=on", "index=off", "metacopy=off", "xino=auto"];

/// How a story is told.
#[derive(Clone, Copy)]
struct Telling {
    options: &'static [&'static str],
    /// Steps that are no part of it.
    left_out: &'static [&'static str],
    /// Whiteouts are `.wh.` files.
    wh_names: bool,
}

const PLAIN: Telling = Telling {
    options: &OPTIONS,
    left_out: &[],
    wh_names: false,
};

/// What the parts of the script come to.
struct Story {
    errors: Vec<Vec<(&'static str, i32)>>,
    /// After each part.
    views: Vec<View>,
}

/// Runs two parts of the script with a new mount for each, and looks again through a third.
fn story(who: &Subject, layers: &Layers, telling: Telling) -> Story {
    let Telling {
        options, left_out, ..
    } = telling;
    let mut story = Story {
        errors: Vec::new(),
        views: Vec::new(),
    };
    for part in &PARTS[..2] {
        let mounted = who.mount(layers, options);
        quiet(&mounted);
        let steps: Vec<_> = part
            .iter()
            .filter(|(name, _)| !left_out.contains(name))
            .copied()
            .collect();
        story.errors.push(play(&steps, mounted.root()));
        story.views.push(view(mounted.root()));
        mounted.unmount();
    }
    let mounted = who.mount(layers, options);
    quiet(&mounted);
    story.views.push(view(mounted.root()));
    mounted.unmount();
    story
}

/// Linux's mounts leave access times alone, as rovl's do by default.
fn quiet(mounted: &Mounted) {
    if *mounted.subject() == Subject::Kernel {
        let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::NOATIME;
        rustix::mount::mount_remount(mounted.root(), flags, c"").unwrap();
    }
}

fn layers_of(lowers: &[PathBuf], base: &Path, name: &str) -> Layers {
    let mut layers = Layers::new(&base.join(name), 0);
    layers.lowers = lowers.to_vec();
    layers
}

/// The lowers of the matrix, on ext4.
fn lowers(disk: &Disk) -> Vec<PathBuf> {
    let other = disk.path().join("other");
    fs::create_dir(&other).unwrap();
    build(&disk.path(), &other, Namespace::Initial).same
}

/// Whatever Linux does with these lowers on an ordinary upper, we do with `ours`.
fn as_linux_does(disk: &Disk, lowers: &[PathBuf], ours: &Layers, telling: Telling) {
    let ordinary = layers_of(lowers, &disk.path(), "linux");
    let wanted = story(&Subject::Kernel, &ordinary, telling);
    let got = story(&subject(), ours, telling);
    for (want, got) in wanted.errors.iter().zip(&got.errors) {
        assert_eq!(script::difference(want, got), None);
    }
    for (at, (want, got)) in wanted.views.iter().zip(&got.views).enumerate() {
        assert_eq!(difference(want, got, Rigour::OwnLayers), None, "view {at}");
    }
    let [_, live, again] = &got.views[..] else {
        panic!("three views");
    };
    assert_eq!(
        difference(live, again, Rigour::SameLayers),
        None,
        "mounted again"
    );
    let check = UpperCheck {
        by_kernel: subject() == Subject::Kernel,
        wh_names: telling.wh_names,
        index: telling.options.contains(&"index=on"),
        ..UpperCheck::new(lowers, &ours.upper, &ours.work)
    };
    assert_eq!(check.faults().unwrap(), Vec::<String>::new());
}

/// An upper within the merged tree of another mount.
fn upper_within(outer: &Subject) {
    require_root();
    let _turn = super::among_others();
    let disk = Disk::new("ext4");
    let lowers = lowers(&disk);
    let outside = Layers::new(&disk.path().join("outer"), 1);
    sh(
        outside.lower(),
        "mkdir in in/upper in/work; echo beside > in/beside",
    );
    let outer = outer.mount(&outside, &["redirect_dir=on", "index=on"]);
    quiet(&outer);
    let mut ours = layers_of(&lowers, &disk.path(), "ours");
    (ours.upper, ours.work) = (outer.path("in/upper"), outer.path("in/work"));
    // Neither lets a whiteout device be made in its tree.
    let telling = Telling {
        wh_names: true,
        ..PLAIN
    };
    as_linux_does(&disk, &lowers, &ours, telling);
    assert_eq!(
        fs::read_to_string(outer.path("in/beside")).unwrap(),
        "beside\n"
    );
    outer.unmount();
}

#[test]
fn an_upper_may_lie_on_rovl() {
    upper_within(&Subject::Rovl);
}

#[test]
fn an_upper_may_lie_on_linuxs_overlayfs() {
    upper_within(&Subject::Kernel);
}

fn lowers_in_images(kind: &str, program: &str, make: fn(&Path, &Path) -> Vec<String>) {
    require_root();
    let _turn = super::among_others();
    require_program(program);
    let (disk, scratch) = (Disk::new("ext4"), Scratch::new());
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    let has = |kind: &str| known.lines().any(|line| line.trim() == kind);
    if !has(kind) {
        let other = if kind == "erofs" { "squashfs" } else { "erofs" };
        assert!(
            has(other),
            "this kernel has neither {kind} nor {other}: no image can be tested"
        );
        println!("this kernel has no {kind}; {other} is tested");
        return;
    }
    let mounted: Vec<PathBuf> = lowers(&disk)
        .iter()
        .enumerate()
        .map(|(at, lower)| {
            let (image, point) = (
                scratch.join(format!("image{at}")),
                scratch.join(format!("mounted{at}")),
            );
            let args = make(lower, &image);
            run(
                program,
                &args.iter().map(String::as_str).collect::<Vec<_>>(),
            );
            fs::create_dir(&point).unwrap();
            run(
                "mount",
                &[
                    "-t",
                    kind,
                    "-o",
                    "loop,ro,noatime",
                    image.to_str().unwrap(),
                    point.to_str().unwrap(),
                ],
            );
            point
        })
        .collect();
    let ours = layers_of(&mounted, &disk.path(), "ours");
    // Linux takes no ACL where the lower's file system has none; we do where the upper's has them.
    let telling = Telling {
        options: &NO_INDEX,
        left_out: &["setfacl meta6"],
        ..PLAIN
    };
    as_linux_does(&disk, &mounted, &ours, telling);
}

#[test]
fn lowers_may_lie_on_squashfs() {
    lowers_in_images("squashfs", "mksquashfs", |from, to| {
        let words = [
            from.to_str().unwrap(),
            to.to_str().unwrap(),
            "-noappend",
            "-quiet",
            "-no-progress",
        ];
        words.map(String::from).to_vec()
    });
}

#[test]
fn lowers_may_lie_on_erofs() {
    lowers_in_images("erofs", "mkfs.erofs", |from, to| {
        ["--quiet", to.to_str().unwrap(), from.to_str().unwrap()]
            .map(String::from)
            .to_vec()
    });
}

/// Two file systems in which the same inode numbers, and so the same handles, mean other files: images of one
/// maker without a uuid, or with the same. A written file of one must not show through in the other.
fn images_are_told_apart(make: fn(&Scratch, &str)) {
    require_root();
    let _turn = super::among_others();
    let (disk, scratch) = (Disk::new("ext4"), Scratch::new());
    for name in ["a", "b"] {
        sh(
            scratch.path(),
            &format!(
                "mkdir {name} m{name}; echo {name} > {name}/{name}1; ln {name}/{name}1 {name}/{name}2; echo {name} > {name}/single{name}; mkdir {name}/dir; echo {name} > {name}/dir/{name}"
            ),
        );
        make(&scratch, name);
    }
    let lowers = [scratch.join("ma"), scratch.join("mb")];
    let numbers = lowers.each_ref().map(|lower| {
        let name = lower
            .file_name()
            .unwrap()
            .to_string_lossy()
            .replace('m', "");
        crate::support::files::ino(&lower.join(format!("{name}1")))
    });
    assert_eq!(
        numbers[0], numbers[1],
        "the images have other inode numbers: they prove nothing"
    );
    let ours = layers_of(&lowers, &disk.path(), "ours");
    for _ in 0..2 {
        let mounted = subject().mount(&ours, &["index=on", "redirect_dir=on"]);
        sh(
            mounted.root(),
            "echo more >> a1; echo x >> singlea; chmod 600 dir; test $(cat b1) = b; test $(cat b2) = b; test $(cat singleb) = b",
        );
        sh(
            mounted.root(),
            "grep -q more a1; ! grep -q a b1; touch -h singleb; test $(cat singleb) = b",
        );
        mounted.unmount();
    }
    let mounted = subject().mount(&ours, &["index=on", "redirect_dir=on"]);
    sh(
        mounted.root(),
        "echo B >> b2; grep -q B b2; ! grep -q B a1 a2; ! grep -q a b2; test $(stat -c %i a1) != $(stat -c %i b1)",
    );
    mounted.unmount();
}

#[test]
fn squashfs_images_are_told_apart() {
    images_are_told_apart(|scratch, name| {
        sh(
            scratch.path(),
            &format!(
                "mksquashfs {name} img{name} -noappend -quiet -no-progress >/dev/null; mount -o loop,ro img{name} m{name}"
            ),
        );
    });
}

#[test]
fn images_with_the_same_uuid_are_told_apart() {
    images_are_told_apart(|scratch, name| {
        let uuid = "-U 11111111-2222-3333-4444-555555555555 -E hash_seed=11111111-2222-3333-4444-555555555555";
        sh(
            scratch.path(),
            &format!(
                "truncate -s 8M img{name}; mkfs.ext4 -q {uuid} -d {name} img{name}; mount -o loop img{name} m{name}"
            ),
        );
    });
}

/// What is refused and what is done must add up: what a mount shows is what the next one shows.
fn nothing_is_pretended(lowers: &[PathBuf], ours: &Layers) {
    let mounted = match subject().try_mount(ours, &[], true) {
        Err(said) => {
            let names = [&ours.upper, &ours.work].map(|dir| dir.display().to_string());
            assert!(
                names.iter().any(|name| said.contains(name)),
                "refused without saying what: {said}"
            );
            return;
        }
        Ok(mounted) => mounted,
    };
    let errors = play(PARTS[0], mounted.root());
    let done = errors.iter().filter(|(_, errno)| *errno == 0).count();
    println!("{done} of {} steps work", errors.len());
    assert!(done > 20, "almost nothing works: {errors:?}");
    let (live, again) = {
        let live = view(mounted.root());
        mounted.unmount();
        let mounted = subject().mount(ours, &[]);
        let again = view(mounted.root());
        mounted.unmount();
        (live, again)
    };
    assert_eq!(
        difference(&live, &again, Rigour::SameLayers),
        None,
        "mounted again"
    );
    let removed = errors.contains(&("unlink merged/mid", 0));
    assert_eq!(
        again.contains_key(Path::new("merged/mid")),
        !removed,
        "merged/mid"
    );
    let emptied = errors.contains(&("mkdir opq", 0));
    let old = ["opq/old1", "opq/new1"]
        .iter()
        .any(|name| again.contains_key(Path::new(name)));
    assert!(!(emptied && old), "what was removed comes back");
    for lower in lowers {
        assert!(lower.exists());
    }
}

/// ramfs: device nodes, but no xattrs; neither an opaque directory nor an origin can be kept as usual.
#[test]
fn an_upper_without_xattrs_shows_no_wrong_tree() {
    require_root();
    let _turn = super::among_others();
    let disk = Disk::new("ext4");
    let lowers = lowers(&disk);
    let scratch = Scratch::new();
    let place = scratch.join("ramfs");
    fs::create_dir(&place).unwrap();
    run(
        "mount",
        &[
            "-t",
            "ramfs",
            "-o",
            "noatime",
            "ramfs",
            place.to_str().unwrap(),
        ],
    );
    let probe = rustix::fs::setxattr(&place, "trusted.a", b"b", rustix::fs::XattrFlags::empty());
    assert!(
        probe.is_err(),
        "ramfs has xattrs here: this test needs another file system"
    );
    let ours = layers_of(&lowers, &place, "ours");
    nothing_is_pretended(&lowers, &ours);
}

/// Lets device nodes and whiteouts of rename be refused, as before Linux 5.8 without privileges, and on NFS.
fn refuse_devices() -> std::io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let op = |code: u16, jt: u8, jf: u8, k: u32| libc::sock_filter { code, jt, jf, k };
    let argument = |at: u32| 16 + 8 * at;
    let mut filter = [
        op(LOAD, 0, 0, 0),
        op(EQUAL, 2, 0, libc::SYS_mknodat as u32),
        op(EQUAL, 4, 0, libc::SYS_renameat2 as u32),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        op(LOAD, 0, 0, argument(2)),
        op(AND, 0, 0, libc::S_IFMT),
        op(EQUAL, 2, 3, libc::S_IFCHR),
        op(LOAD, 0, 0, argument(4)),
        op(SET, 0, 1, libc::RENAME_WHITEOUT),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives until the call is over; the filter is for this process.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

fn mount_without_devices(layers: &Layers) {
    let mut command = Command::new(rovl_bin());
    command
        .args([
            "mount",
            "-o",
            "redirect_dir=on,index=on",
            "--lower",
            &layers.lowerdir(),
            "--upper",
        ])
        .arg(&layers.upper)
        .arg("--work")
        .arg(&layers.work)
        .arg(&layers.merged)
        .stdin(Stdio::null());
    // SAFETY: only system calls between fork and exec.
    unsafe { command.pre_exec(refuse_devices) };
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(is_mount_point(&layers.merged));
}

fn unmount(layers: &Layers) {
    let ended = wait_until(Duration::from_secs(5), || {
        rustix::mount::unmount(&layers.merged, rustix::mount::UnmountFlags::empty()).is_ok()
    });
    assert!(ended, "can't unmount {}", layers.merged.display());
}

/// Where no whiteout device can be made, `.wh.` files hide what is below, and the tree is the same.
#[test]
fn whiteouts_are_files_where_devices_are_refused() {
    require_root();
    let _turn = super::among_others();
    let disk = Disk::new("ext4");
    let lowers = lowers(&disk);
    let wanted = story(
        &Subject::Kernel,
        &layers_of(&lowers, &disk.path(), "linux"),
        PLAIN,
    );
    let ours = layers_of(&lowers, &disk.path(), "ours");
    for (part, steps) in PARTS[..2].iter().enumerate() {
        mount_without_devices(&ours);
        let got = play(steps, &ours.merged);
        let live = view(&ours.merged);
        let reserved = fs::write(ours.merged.join("dir/.wh.a"), "");
        unmount(&ours);
        // What needs a device itself can't be renamed or copied up here.
        let needs_device = |name: &str| name.contains("device");
        let errors = got
            .iter()
            .filter(|(name, _)| !needs_device(name))
            .copied()
            .collect::<Vec<_>>();
        let want: Vec<_> = wanted.errors[part]
            .iter()
            .filter(|(name, _)| !needs_device(name))
            .copied()
            .collect();
        assert_eq!(script::difference(&want, &errors), None, "part {part}");
        let without_devices = |view: &View| {
            let mut view = view.clone();
            view.retain(|path, _| !path.ends_with("null") && !path.ends_with("null2"));
            view
        };
        let (want, live) = (without_devices(&wanted.views[part]), without_devices(&live));
        assert_eq!(
            difference(&want, &live, Rigour::OwnLayers),
            None,
            "part {part}"
        );
        assert!(reserved.is_err(), "a user can make a whiteout");
        assert!(
            ours.upper.join("merged/.wh.mid").exists() || part > 0,
            "no .wh. file hides merged/mid"
        );
        mount_without_devices(&ours);
        let again = without_devices(&view(&ours.merged));
        unmount(&ours);
        assert_eq!(
            difference(&live, &again, Rigour::SameLayers),
            None,
            "part {part}, mounted again"
        );
    }
    let devices = sh(&ours.upper, "find . -type c");
    assert_eq!(devices, "", "a device was made all the same");
    // Anybody who can make devices reads the same tree.
    let mounted = Subject::Rovl.mount(&ours, &["redirect_dir=on", "index=on"]);
    let read = view(mounted.root());
    mounted.unmount();
    let mut want = wanted.views[1].clone();
    want.retain(|path, _| !path.ends_with("null2") && !path.ends_with("null"));
    let mut read = read;
    read.retain(|path, _| !path.ends_with("null2") && !path.ends_with("null"));
    assert_eq!(
        difference(&want, &read, Rigour::OwnLayers),
        None,
        "read with devices"
    );
    let check = UpperCheck {
        wh_names: true,
        ..UpperCheck::new(&lowers, &ours.upper, &ours.work)
    };
    assert_eq!(check.faults().unwrap(), Vec::<String>::new());
}
