//! Users other than root, in directories for everybody.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::support::files::close;
use crate::support::{
    Layers, Mounted, Scratch, Subject, as_user, errno, require_program, require_root, subject,
};

/// A lower with /tmp (1777), /home/u (uid 1000) and a root-only directory.
fn layers_with_tmp(scratch: &Scratch) -> Layers {
    let layers = scratch.layers(1);
    for (dir, mode, owner) in [
        ("tmp", 0o1777, 0),
        ("var/tmp", 0o1777, 0),
        ("home/u", 0o755, 1000),
        ("private", 0o700, 0),
    ] {
        let path = layers.lower().join(dir);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        chown(&path, Some(owner), Some(owner)).unwrap();
    }
    fs::write(layers.lower().join("tmp/roots"), "root's").unwrap();
    fs::write(layers.lower().join("home/u/file"), "u's").unwrap();
    chown(layers.lower().join("home/u/file"), Some(1000), Some(1000)).unwrap();
    layers
}

fn permission_denied(result: std::io::Result<()>) -> bool {
    matches!(errno(result), libc::EACCES | libc::EPERM)
}

/// Engine fault 3. Another user can make, change, rename and remove files in /tmp, at once and when
/// /tmp is still a lower directory; the sticky bit and the modes hold.
#[test]
fn another_user_can_write_in_tmp() {
    require_root();
    let scratch = Scratch::new();
    let layers = layers_with_tmp(&scratch);
    let mounted = subject().mount(&layers, &[]);
    let tmp = mounted.path("tmp");
    as_user(1000, 1000, || {
        for i in 0..20 {
            let path = tmp.join(format!("f{i}"));
            let mut file = File::create_new(&path).unwrap_or_else(|e| panic!("create: {e}"));
            file.write_all(b"content").unwrap();
            close(file).unwrap();
            fs::rename(&path, tmp.join(format!("g{i}"))).unwrap();
        }
        fs::create_dir(tmp.join("d")).unwrap();
        fs::write(tmp.join("d/f"), "x").unwrap();
        fs::hard_link(tmp.join("d/f"), tmp.join("d/g")).unwrap();
        fs::remove_file(tmp.join("g0")).unwrap();
        assert!(permission_denied(fs::remove_file(tmp.join("roots"))));
        assert!(permission_denied(fs::write(tmp.join("roots"), "no")));
        let home = mounted.path("home/u");
        fs::write(home.join("file"), "changed").unwrap();
        fs::write(home.join("new"), "new").unwrap();
        assert!(permission_denied(fs::write(mounted.path("new"), "no")));
        assert!(permission_denied(
            fs::read_dir(mounted.path("private")).map(drop)
        ));
    });
    as_user(1001, 1001, || {
        assert!(permission_denied(fs::remove_file(tmp.join("g1"))));
        assert!(permission_denied(fs::rename(
            tmp.join("g1"),
            tmp.join("mine")
        )));
        fs::write(mounted.path("var/tmp/x"), "x").unwrap();
    });
    let meta = fs::metadata(tmp.join("g1")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1000, 1000));
    let meta = fs::metadata(&tmp).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o1777, 0));
    assert_eq!(fs::read(mounted.path("tmp/roots")).unwrap(), b"root's");
}

fn run_as(mounted: &Mounted, uid: u32, script: &str) {
    let output = Command::new("bash")
        .args(["-euc", script])
        .current_dir(mounted.path("home/u"))
        .env("HOME", mounted.path("home/u"))
        .env("TMPDIR", mounted.path("tmp"))
        .uid(uid)
        .gid(uid)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "user {uid}: {script}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Engine fault 3, as users met it: gcc and git, whose temporary files are in /tmp.
#[test]
fn gcc_and_git_work_for_another_user() {
    require_root();
    for program in ["gcc", "git"] {
        require_program(program);
    }
    let scratch = Scratch::new();
    let layers = layers_with_tmp(&scratch);
    let mounted = subject().mount(&layers, &[]);
    run_as(
        &mounted,
        1000,
        "echo 'int main(void) { return 42; }' > main.c
         gcc -save-temps=obj -o main main.c; gcc -c main.c -o main.o; ar rc lib.a main.o
         s=0; ./main || s=$?; test $s = 42
         mktemp; mktemp -d
         git init -q r; cd r; git config user.email t@example.org; git config user.name t
         cp ../main.c .; git add .; git commit -qm one; git checkout -qb other
         echo // >> main.c; git commit -qam two; git rebase -q master 2>/dev/null || true
         git stash list; git gc -q; git fsck; git status --porcelain",
    );
    assert!(Path::new(&layers.upper).join("home/u/main").exists());
}

/// Engine fault 3's second half: EIO at close. Files that are written, replaced and unlinked while
/// open, as a package manager does, close without an error.
#[test]
fn closing_a_removed_or_replaced_file_is_no_error() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::create_dir(layers.lower().join("d")).unwrap();
    for i in 0..40 {
        fs::write(layers.lower().join(format!("d/f{i}")), "lower").unwrap();
    }
    let mounted = subject().mount(&layers, &[]);
    let dir = mounted.path("d");
    let mut open = Vec::new();
    for i in 0..40 {
        let path = dir.join(format!("f{i}"));
        let mut file = match i % 4 {
            0 => File::open(&path).unwrap(),
            1 => File::create(&path).unwrap(),
            _ => fs::OpenOptions::new().append(true).open(&path).unwrap(),
        };
        if i % 4 > 1 {
            file.write_all(b" and more").unwrap();
        }
        if i % 3 == 0 {
            fs::write(dir.join("new"), "replacement").unwrap();
            fs::rename(dir.join("new"), &path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        if i % 4 > 0 {
            file.write_all(b" and yet more").unwrap();
        }
        open.push((i, file));
    }
    fs::remove_dir_all(&dir).unwrap();
    for (i, mut file) in open {
        if i % 4 > 0 {
            file.write_all(b" at the end")
                .unwrap_or_else(|e| panic!("write to f{i}: {e}"));
            file.sync_all()
                .unwrap_or_else(|e| panic!("fsync of f{i}: {e}"));
        }
        let expected = match i % 4 {
            0 => 5,
            1 => 24,
            _ => 38,
        };
        assert_eq!(file.metadata().unwrap().len(), expected, "f{i}");
        // The kernel's overlayfs goes on showing the lower file's link count here.
        if subject() != Subject::Kernel {
            assert_eq!(file.metadata().unwrap().nlink(), 0, "f{i}");
        }
        close(file).unwrap_or_else(|e| panic!("close of f{i}: {e}"));
    }
    assert!(mounted.daemon_alive());
}
