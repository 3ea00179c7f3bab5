//! What can't be mounted, unmounted or shown: the message names what, why and what to do, the exit code says
//! whether it failed (1) or was used wrongly (2), and nothing is mounted or created.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::process::Signal;

use crate::bench::{Bench, outcome, words};
use crate::support::{is_mount_point, is_running, run, sh, signal, wait_until};

#[test]
fn a_mount_point_that_is_missing_or_no_directory() {
    let bench = Bench::new();
    fs::write(bench.scratch.join("plain"), "").unwrap();
    bench.refuses(
        ["mount", "--lower", "lower0", "nix"],
        1,
        &["mount point", "/nix does not exist"],
    );
    bench.refuses(
        ["mount", "--lower", "lower0", "plain"],
        1,
        &["mount point", "/plain is not a directory"],
    );
}

#[test]
fn a_mount_point_inside_a_layer_and_a_layer_inside_the_mount_point() {
    let bench = Bench::new();
    for name in ["lower0/m", "lower1/m/n", "upper/m", "work/m"] {
        bench.dir(name);
        let args = [
            "mount",
            "--lower",
            "lower0:lower1",
            "--upper",
            "upper",
            "--work",
            "work",
            name,
        ];
        bench.refuses(
            args,
            2,
            &[
                "mount point",
                "lies inside",
                name.split('/').next().unwrap(),
            ],
        );
    }
    bench.dir("around/lower");
    bench.refuses(
        ["mount", "--lower", "lower0:around/lower", "around"],
        2,
        &["lies inside mount point", "around"],
    );
    let args = [
        "mount", "--lower", "lower0", "--upper", "upper", "--work", "work", "upper",
    ];
    bench.refuses(args, 2, &["same directory"]);
}

#[test]
fn layers_inside_each_other() {
    let bench = Bench::new();
    for dir in ["lower0/in", "upper/in", "work/in"] {
        bench.dir(dir);
    }
    let rows = [
        ("lower0:lower0/in", "upper", "work"),
        ("lower0", "lower0/in", "work"),
        ("upper/in", "upper", "work"),
        ("lower0", "upper", "lower0/in"),
        ("lower0", "upper", "upper/in"),
        ("lower0", "work/in", "work"),
    ];
    for (lower, upper, work) in rows {
        let args = [
            "mount", "--lower", lower, "--upper", upper, "--work", work, "merged",
        ];
        bench.refuses(args, 2, &["lies inside", "must be apart"]);
    }
}

#[test]
fn one_directory_twice_by_whatever_name() {
    let bench = Bench::new();
    symlink("lower0", bench.scratch.join("link")).unwrap();
    let bound = bench.dir("bound");
    run(
        "mount",
        &[
            "--bind",
            bench.layers.lowers[0].to_str().unwrap(),
            bound.to_str().unwrap(),
        ],
    );
    let rows = [
        ("lower0:lower0", "upper", "work"),
        ("lower0:link", "upper", "work"),
        ("lower0:lower1/../lower0", "upper", "work"),
        ("lower0:bound", "upper", "work"),
        ("lower0", "lower0", "work"),
        ("lower0", "bound", "work"),
        ("lower0", "upper", "upper"),
        ("lower0", "upper", "link"),
    ];
    for (lower, upper, work) in rows {
        let args = [
            "mount", "--lower", lower, "--upper", upper, "--work", work, "merged",
        ];
        bench.refuses(args, 2, &["same directory"]);
    }
}

#[test]
fn work_on_another_file_system_or_another_mount() {
    let bench = Bench::new();
    let other = bench.dir("other");
    run("mount", &["-t", "tmpfs", "none", other.to_str().unwrap()]);
    bench.dir("other/work");
    bench.dir("part/work");
    let bound = bench.dir("bound");
    run(
        "mount",
        &[
            "--bind",
            bench.scratch.join("part").to_str().unwrap(),
            bound.to_str().unwrap(),
        ],
    );
    for work in ["other/work", "bound/work"] {
        let args = [
            "mount", "--lower", "lower0", "--upper", "upper", "--work", work, "merged",
        ];
        bench.refuses(
            args,
            2,
            &["work directory", "not on the same mount as upper directory"],
        );
    }
}

#[test]
fn a_layer_that_is_missing_or_no_directory_is_named() {
    let bench = Bench::new();
    fs::write(bench.scratch.join("plain"), "").unwrap();
    let rows: [(&str, &str, &str, &[&str]); 6] = [
        (
            "lower0:nix:lower1",
            "upper",
            "work",
            &["lower directory 2 of 3", "/nix does not exist"],
        ),
        (
            "plain",
            "upper",
            "work",
            &["lower directory", "/plain is not a directory"],
        ),
        (
            "lower0::nix",
            "upper",
            "work",
            &["data-only lower directory", "/nix does not exist"],
        ),
        (
            "lower0",
            "nix",
            "work",
            &["upper directory", "/nix does not exist"],
        ),
        (
            "lower0",
            "upper",
            "nix",
            &["work directory", "/nix does not exist"],
        ),
        (
            "lower0",
            "upper",
            "plain",
            &["work directory", "/plain is not a directory"],
        ),
    ];
    for (lower, upper, work, expected) in rows {
        let args = [
            "mount", "--lower", lower, "--upper", upper, "--work", work, "merged",
        ];
        bench.refuses(args, 1, expected);
    }
}

#[test]
fn an_upper_that_is_read_only() {
    let bench = Bench::new();
    let fixed = bench.dir("fixed");
    run("mount", &["-t", "tmpfs", "none", fixed.to_str().unwrap()]);
    bench.dir("fixed/upper");
    bench.dir("fixed/work");
    run("mount", &["-o", "remount,bind,ro", fixed.to_str().unwrap()]);
    let args = [
        "mount",
        "--lower",
        "lower0",
        "--upper",
        "fixed/upper",
        "--work",
        "fixed/work",
        "merged",
    ];
    bench.refuses(args, 1, &["upper directory", "read-only"]);
}

#[test]
fn an_upper_or_work_in_use_by_rovl_is_an_error_and_in_engines_words_a_warning() {
    let bench = Bench::new();
    bench.dir("merged2");
    bench.dir("upper2");
    bench.dir("work2");
    bench.mount();
    for (upper, work, what) in [
        ("upper", "work2", "upper directory"),
        ("upper2", "work", "work directory"),
    ] {
        let args = [
            "mount", "--lower", "lower0", "--upper", upper, "--work", work, "merged2",
        ];
        bench.refuses(args, 1, &[what, "in use by another rovl mount"]);
    }
    let shared = bench.rovl([
        "-o",
        "lowerdir=lower0,upperdir=upper,workdir=work",
        "merged2",
    ]);
    assert_eq!(shared.code, Some(0), "{shared:?}");
    assert!(
        shared.stderr.contains("in use by another rovl mount"),
        "{shared:?}"
    );
    assert!(is_mount_point(&bench.scratch.join("merged2")));
}

#[test]
fn an_upper_in_use_by_the_kernels_overlayfs() {
    let bench = Bench::new();
    bench.dir("merged2");
    let options = "lowerdir=lower0,upperdir=upper,workdir=work";
    let absolute = options.replace('=', &format!("={}/", bench.scratch.path().display()));
    run(
        "mount",
        &[
            "-t",
            "overlay",
            "overlay",
            "-o",
            &absolute,
            bench.scratch.join("merged2").to_str().unwrap(),
        ],
    );
    bench.refuses(
        bench.writable(),
        1,
        &[
            "upper directory",
            "in use by the kernel's overlayfs",
            "merged2",
        ],
    );
}

#[test]
fn a_layer_or_mount_point_whose_daemon_has_died() {
    let bench = Bench::new();
    bench.dir("merged2");
    let pid = bench.mount();
    signal(pid, Signal::KILL);
    assert!(wait_until(crate::bench::PATIENCE, || !is_running(pid)));
    bench.refuses(
        ["mount", "--lower", "merged:lower0", "merged2"],
        1,
        &["daemon has died", "rovl umount"],
    );
    bench.refuses(
        ["mount", "--lower", "lower0", "merged"],
        1,
        &["mount point", "daemon has died"],
    );
    bench.refuses(["stat", "merged"], 1, &["daemon has died", "rovl umount"]);
    bench.rovl(["umount", "merged"]).silent();
    assert!(!is_mount_point(bench.merged()));
}

#[test]
fn options_that_are_unknown_wrong_or_in_conflict() {
    let bench = Bench::new();
    let rows: [(&str, &[&str]); 9] = [
        (
            "userxatr",
            &[
                "unknown mount option 'userxatr'",
                "did you mean 'userxattr'",
            ],
        ),
        ("index=maybe", &["index=maybe", "expected on, off"]),
        ("ro=1", &["'ro' takes no value"]),
        (
            "metacopy=on,redirect_dir=off",
            &["conflicting options 'metacopy=on' and 'redirect_dir=off'"],
        ),
        (
            "userxattr,redirect_dir=on",
            &["conflicting options 'userxattr' and 'redirect_dir=on'"],
        ),
        ("nfs_export=on,metacopy=on", &["conflicting options"]),
        (
            "userxattr,redirect_dir=off",
            &["conflicting options 'userxattr' and 'redirect_dir=off'"],
        ),
        (
            "passthrough=on,writeback=on",
            &["conflicting options 'passthrough=on' and 'writeback=on'"],
        ),
        ("lowerdir=lower1", &["--lower and -o lowerdir= both given"]),
    ];
    for (options, expected) in rows {
        bench.refuses(
            ["mount", "--lower", "lower0", "-o", options, "merged"],
            2,
            expected,
        );
    }
    bench.refuses(["mount", "merged"], 2, &["no lower directory given"]);
    bench.refuses(
        ["mount", "--lower", "lower0", "--upper", "upper", "merged"],
        2,
        &["needs a work directory"],
    );
    bench.refuses(
        ["mount", "--lower", "lower0", "--work", "work", "merged"],
        2,
        &["upper directory"],
    );
    bench.refuses(
        ["mount", "--lower", "lower0::lower1:upper", "merged"],
        2,
        &["data-only"],
    );
}

#[test]
fn commands_and_flags_that_are_unknown() {
    let bench = Bench::new();
    bench.refuses(
        ["moutn", "merged"],
        2,
        &["unrecognized subcommand 'moutn'", "'mount'"],
    );
    bench.refuses(
        ["mount", "--lowr", "lower0", "merged"],
        2,
        &["'--lowr'", "'--lower'"],
    );
    bench.refuses(["mount", "--lower", "lower0"], 2, &["MERGED"]);
    bench.refuses(["umount", "--lazi", "merged"], 2, &["'--lazi'", "'--lazy'"]);
    bench.refuses(words(&[]), 2, &["Usage"]);
    bench.refuses(["-o", "lowerdir=lower0"], 2, &["no mount point given"]);
    bench.refuses(
        ["-o", "lowerdir=lower0", "a", "b", "c"],
        2,
        &["unexpected argument 'c'"],
    );
}

#[test]
fn umount_and_stat_of_what_is_no_rovl_mount() {
    let bench = Bench::new();
    let other = bench.dir("other");
    run("mount", &["-t", "tmpfs", "none", other.to_str().unwrap()]);
    for command in ["umount", "stat"] {
        bench.refuses([command, "merged"], 1, &["merged is not a mount point"]);
        bench.refuses(
            [command, "other"],
            1,
            &["mount of type tmpfs, not one of rovl"],
        );
        bench.refuses([command, "nix"], 1, &["nix", "No such file"]);
    }
    assert!(is_mount_point(&other));
}

#[test]
fn a_busy_mount_is_not_unmounted_but_lazily() {
    let bench = Bench::new();
    let pid = bench.mount();
    let open = fs::File::open(bench.merged().join(".")).unwrap();
    bench.refuses(
        ["umount", "merged"],
        1,
        &["is in use", "fuser -vm", "--lazy"],
    );
    bench.assert_served();
    bench.rovl(["umount", "--lazy", "merged"]).silent();
    assert!(!is_mount_point(bench.merged()));
    assert!(is_running(pid), "the daemon ends with the last open file");
    drop(open);
    bench.assert_gone(pid, crate::bench::PATIENCE);
}

#[test]
fn no_fuse_device() {
    let bench = Bench::new();
    let mut command = bench.command(words(&[]));
    let binary = command.get_program().to_owned();
    command = std::process::Command::new("unshare");
    let script = "mount -t tmpfs none /dev && \"$0\" mount --lower lower0:lower1 merged; code=$?; \
                  grep -c rovl /proc/self/mountinfo >&2; exit $code";
    command
        .args(["-m", "sh", "-c", script])
        .arg(binary)
        .current_dir(bench.scratch.path());
    outcome(command).refused(1, &["/dev/fuse can't be opened", "No such file"]);
    assert!(!is_mount_point(bench.merged()));
}

#[test]
fn nothing_is_left_behind_by_a_removed_current_directory() {
    let bench = Bench::new();
    let gone = bench.dir("gone");
    let script = format!(
        "cd gone; rmdir '{}'; ! $ROVL mount --lower lower0 merged 2>&1",
        gone.display()
    );
    let script = script.replace("$ROVL", crate::support::rovl_bin().to_str().unwrap());
    let said = sh(bench.scratch.path(), &script);
    assert!(said.contains("current directory"), "{said}");
}
