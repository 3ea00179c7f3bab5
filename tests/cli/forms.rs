//! The ways to say a mount: flags, `-o`, fuse-overlayfs's and mount(8)'s command lines, odd paths.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use crate::bench::{Bench, outcome, words};
use crate::support::{is_mount_point, rovl_bin};

const OPTIONS: &str = "lowerdir=lower0:lower1,upperdir=upper,workdir=work";

fn end(bench: &Bench) {
    bench.rovl(["umount", "merged"]).silent();
}

#[test]
fn mount_takes_flags_and_mount_options_alike() {
    let bench = Bench::new();
    let forms: [&[&str]; 4] = [
        &[
            "mount",
            "--lower",
            "lower0:lower1",
            "--upper",
            "upper",
            "--work",
            "work",
            "merged",
        ],
        &["mount", "-o", OPTIONS, "merged"],
        &[
            "mount",
            "merged",
            "-o",
            "lowerdir=lower0:lower1",
            "-oupperdir=upper,,workdir=work,",
        ],
        &[
            "mount",
            "--lower=lower0",
            "--lower=lower1",
            "-o",
            "upperdir=upper",
            "--work=work",
            "merged",
        ],
    ];
    for form in forms {
        bench.rovl(form).silent();
        bench.assert_served();
        assert!(bench.merged().join("other").exists());
        assert!(
            bench.mount_line().contains(" - fuse.rovl rovl rw"),
            "{}",
            bench.mount_line()
        );
        end(&bench);
    }
}

#[test]
fn the_command_lines_of_engines_mount() {
    let bench = Bench::new();
    let forms: [(&str, &[&str], &str); 7] = [
        (
            "fuse-overlayfs",
            &["-o", OPTIONS, "merged"],
            "fuse.fuse-overlayfs fuse-overlayfs",
        ),
        (
            "/usr/bin/fuse-overlayfs",
            &["merged", "-o", OPTIONS],
            "fuse.fuse-overlayfs fuse-overlayfs",
        ),
        (
            "fuse-overlayfs",
            &["overlay", "merged", "-o", OPTIONS, "-o", "dev,suid"],
            "fuse.fuse-overlayfs overlay",
        ),
        (
            "mount.rovl",
            &["none", "merged", "-o", OPTIONS, "-n", "-s"],
            "fuse.rovl none",
        ),
        (
            "/sbin/mount.fuse.rovl",
            &["rovl", "merged", "-o", OPTIONS, "-t", "fuse.rovl"],
            "fuse.rovl rovl",
        ),
        ("rovl", &["-o", OPTIONS, "merged"], "fuse.rovl rovl"),
        (
            "rovl",
            &[
                "-o",
                "lowerdir=lower0:lower1,,private,",
                "-o",
                "upperdir=upper,workdir=work",
                "merged",
            ],
            "fuse.rovl rovl",
        ),
    ];
    for (name, args, line) in forms {
        bench.named(name, args).silent();
        bench.assert_served();
        assert!(
            bench.mount_line().contains(&format!(" - {line} ")),
            "{}",
            bench.mount_line()
        );
        end(&bench);
    }
}

#[test]
fn engines_get_a_warning_where_people_get_an_error() {
    let bench = Bench::new();
    let options = format!("{OPTIONS},bogus");
    let said = bench.named("fuse-overlayfs", ["--nonsense", "-o", &options, "merged"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    for word in ["unknown mount option 'bogus'", "--nonsense"] {
        assert!(said.stderr.contains(word), "{said:?}");
    }
    bench.assert_served();
}

#[test]
fn versions_and_help_go_to_stdout() {
    let bench = Bench::new();
    let version = format!("rovl {}\n", env!("CARGO_PKG_VERSION"));
    for name in ["fuse-overlayfs", "mount.rovl", "rovl"] {
        assert_eq!(bench.named(name, ["--version"]).silent().stdout, version);
    }
    for (name, args) in [
        ("fuse-overlayfs", ["-h"].as_slice()),
        ("rovl", &["mount", "--help"]),
    ] {
        let help = bench.named(name, args).silent().stdout;
        assert!(
            help.contains("lowerdir=") && help.contains("volatile"),
            "{help}"
        );
    }
    let help = bench.rovl(["--help"]).silent().stdout;
    for command in ["mount", "umount", "stat"] {
        assert!(help.contains(command), "{help}");
    }
}

#[test]
fn mount_8_finds_the_helper() {
    let bench = Bench::new();
    let helper = Path::new("/sbin/mount.fuse.rovl");
    // Only where it is not installed: a test does not replace what a package owns.
    let ours = !helper.exists();
    if ours {
        std::os::unix::fs::symlink(rovl_bin(), helper).unwrap();
    }
    let options = OPTIONS.replace('=', &format!("={}/", bench.scratch.path().display()));
    let options = options.replace(":", &format!(":{}/", bench.scratch.path().display()));
    let mut command = std::process::Command::new("mount");
    command
        .args(["-t", "fuse.rovl", "some", "-o", &options])
        .arg(bench.merged());
    let said = outcome(command);
    if ours {
        fs::remove_file(helper).unwrap();
    }
    assert_eq!(said.code, Some(0), "{said:?}");
    bench.assert_served();
    assert!(
        bench.mount_line().contains(" - fuse.rovl some rw"),
        "{}",
        bench.mount_line()
    );
}

#[test]
fn odd_paths_are_escaped_in_lists_and_taken_as_they_are_elsewhere() {
    let bench = Bench::new();
    let odd: &[u8] = b"a:b,c\\d e\n\"\xff";
    let escaped: Vec<u8> = odd
        .iter()
        .flat_map(|&byte| {
            if b":,\\".contains(&byte) {
                vec![b'\\', byte]
            } else {
                vec![byte]
            }
        })
        .collect();
    let (odd, escaped) = (OsStr::from_bytes(odd), OsStr::from_bytes(&escaped));
    let place = bench.dir(odd);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(place.join(name)).unwrap();
    }
    fs::write(place.join("lower/file"), "data\n").unwrap();
    let join = |parts: &[&OsStr]| parts.iter().copied().collect::<OsString>();
    let by_options = [
        OsString::from("mount"),
        "-o".into(),
        join(&[
            "lowerdir=".as_ref(),
            escaped,
            "/lower:lower1,upperdir=".as_ref(),
            escaped,
            "/upper,workdir=".as_ref(),
            escaped,
            "/work".as_ref(),
        ]),
        join(&[odd, "/merged".as_ref()]),
    ];
    let by_flags = [
        OsString::from("mount"),
        "--lower".into(),
        join(&[escaped, "/lower:lower1".as_ref()]),
        "--upper".into(),
        join(&[odd, "/upper".as_ref()]),
        "--work".into(),
        join(&[odd, "/work".as_ref()]),
        join(&[odd, "/merged".as_ref()]),
    ];
    for form in [by_options.as_slice(), &by_flags] {
        bench.rovl(form).silent();
        assert_eq!(
            fs::read_to_string(place.join("merged/file")).unwrap(),
            "data\n"
        );
        bench
            .rovl([OsString::from("stat"), join(&[odd, "/merged".as_ref()])])
            .silent();
        bench
            .rovl([OsString::from("umount"), join(&[odd, "/merged".as_ref()])])
            .silent();
    }
}

#[test]
fn relative_paths_start_where_the_command_was_started() {
    let bench = Bench::new();
    let mut command = bench.command([
        "mount",
        "--lower",
        "../lower0:../lower1",
        "--upper",
        "../upper",
        "--work",
        "../work",
        "../merged",
    ]);
    command.current_dir(bench.dir("deep"));
    outcome(command).silent();
    bench.assert_served();
}

#[test]
fn without_upper_the_mount_is_read_only() {
    let bench = Bench::new();
    let forms: [&[&str]; 3] = [
        &["mount", "--lower", "lower0:lower1", "merged"],
        &["mount", "--lower", "lower0", "merged"],
        &[
            "mount", "-o", "ro", "--lower", "lower0", "--upper", "upper", "--work", "work",
            "merged",
        ],
    ];
    for form in forms {
        bench.rovl(form).silent();
        bench.assert_served();
        let error = fs::write(bench.merged().join("new"), "").unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::ROFS.raw_os_error())
        );
        assert!(
            bench.mount_line().contains("merged ro,"),
            "{}",
            bench.mount_line()
        );
        end(&bench);
    }
}

#[test]
fn a_thousand_lowers() {
    let bench = Bench::new();
    let mut lowers = Vec::new();
    for at in 0..1000 {
        let name = format!("{}/{at:0>60}", "long".repeat(8));
        bench.dir(&name);
        lowers.push(bench.scratch.join(name).to_str().unwrap().to_owned());
    }
    fs::write(Path::new(&lowers[999]).join("file"), "data\n").unwrap();
    let lowers = lowers.join(":");
    assert!(lowers.len() > 100_000, "{}", lowers.len());
    bench
        .rovl([
            "mount", "--lower", &lowers, "--upper", "upper", "--work", "work", "merged",
        ])
        .silent();
    bench.assert_served();
    end(&bench);
    bench
        .named(
            "fuse-overlayfs",
            ["-o", &format!("lowerdir={lowers}"), "merged"],
        )
        .silent();
    bench.assert_served();
}

#[test]
fn flags_of_the_mount_are_those_asked_for() {
    let bench = Bench::new();
    let rows = [
        ("", "rw,noatime"),
        ("nodev,nosuid,noexec", "rw,nosuid,nodev,noexec,noatime"),
        ("nodev,dev,ro", "ro,noatime"),
        ("relatime", "rw,relatime"),
        ("fsname=some,subtype=thing", "fuse.thing some"),
        ("", "default_permissions,allow_other"),
    ];
    for (options, expected) in rows {
        bench
            .rovl(["mount", "-o", OPTIONS, "-o", options, "merged"])
            .silent();
        assert!(
            bench.mount_line().contains(expected),
            "{options}: {}",
            bench.mount_line()
        );
        end(&bench);
    }
    bench
        .rovl(["mount", "-o", OPTIONS, "-o", "noallow_other", "merged"])
        .silent();
    assert!(!bench.mount_line().contains("allow_other"));
}

#[test]
fn a_lower_may_be_mounted_over() {
    let bench = Bench::new();
    bench
        .rovl([
            "mount",
            "--lower",
            "lower0:lower1",
            "--upper",
            "upper",
            "--work",
            "work",
            "lower0",
        ])
        .silent();
    let lower = bench.layers.lower().to_owned();
    assert_eq!(fs::read_to_string(lower.join("file")).unwrap(), "data\n");
    assert!(is_mount_point(&lower));
    bench.rovl(["umount", "lower0"]).silent();
    assert!(!is_mount_point(&lower));
}

#[test]
fn two_mounts_of_the_same_lowers_live_side_by_side() {
    let bench = Bench::new();
    bench.dir("merged2");
    let first = bench.mount();
    bench
        .rovl(["mount", "--lower", "lower0:lower1", "merged2"])
        .silent();
    bench.rovl(words(&["umount", "merged"])).silent();
    bench.assert_gone(first, Duration::ZERO);
    assert!(is_mount_point(&bench.scratch.join("merged2")));
    bench.rovl(["umount", "merged2"]).silent();
}
