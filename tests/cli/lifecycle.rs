//! How a daemon comes and goes.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bench::{Bench, PATIENCE};
use crate::support::{is_mount_point, is_running, run, signal, wait_until};

/// How long an undisturbed end may take.
const SOON: Duration = Duration::from_secs(4);

#[test]
fn mount_returns_once_the_tree_is_served() {
    let bench = Bench::new();
    for _ in 0..5 {
        bench.mount();
        bench.assert_served();
        bench.rovl(["umount", "merged"]).silent();
    }
}

#[test]
fn the_daemon_has_cut_all_ties() {
    let bench = Bench::new();
    let pid = bench.mount();
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    for fd in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(link(fd).to_str(), Some("/dev/null"), "{fd}");
    }
    assert_eq!(link("cwd").to_str(), Some("/"));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let own = |at: usize| fields[at].parse::<u32>().unwrap();
    assert_eq!((own(2), own(3)), (pid, pid), "process group and session");
    assert_ne!(own(1), std::process::id(), "parent");
}

#[test]
fn umount_returns_once_the_daemon_has_ended() {
    let bench = Bench::new();
    let pid = bench.mount();
    bench.rovl(["umount", "merged"]).silent();
    assert!(!is_running(pid));
    bench.assert_gone(pid, Duration::ZERO);
}

#[test]
fn umount_finds_the_mount_by_any_path() {
    let bench = Bench::new();
    std::os::unix::fs::symlink("merged", bench.scratch.join("link")).unwrap();
    let absolute = bench.merged().to_str().unwrap().to_owned();
    for name in [
        "merged/",
        "./merged",
        "lower0/../merged",
        "link",
        absolute.as_str(),
    ] {
        let pid = bench.mount();
        bench.rovl(["umount", name]).silent();
        bench.assert_gone(pid, Duration::ZERO);
    }
}

#[test]
fn a_signal_unmounts_and_ends_the_daemon() {
    let bench = Bench::new();
    for number in [Signal::TERM, Signal::INT, Signal::HUP] {
        let pid = bench.mount();
        signal(pid, number);
        bench.assert_gone(pid, SOON);
    }
}

#[test]
fn a_signal_takes_a_busy_mount_away_at_once_and_ends_the_daemon_soon() {
    let bench = Bench::new();
    let pid = bench.mount();
    let busy = fs::File::open(bench.merged().join("file")).unwrap();
    signal(pid, Signal::TERM);
    assert!(wait_until(SOON, || !is_mount_point(bench.merged())));
    bench.assert_gone(pid, Duration::from_secs(10));
    drop(busy);
}

#[test]
fn a_second_signal_ends_the_daemon_at_once() {
    let bench = Bench::new();
    let pid = bench.mount();
    let busy = fs::File::open(bench.merged().join("file")).unwrap();
    signal(pid, Signal::TERM);
    assert!(wait_until(SOON, || !is_mount_point(bench.merged())));
    let second = Instant::now();
    signal(pid, Signal::TERM);
    bench.assert_gone(pid, SOON);
    assert!(second.elapsed() < SOON);
    drop(busy);
}

#[test]
fn other_unmounting_programs_end_the_daemon_too() {
    let bench = Bench::new();
    let merged = bench.merged().to_str().unwrap();
    let ways: [(&str, &[&str]); 4] = [
        ("fusermount3", &["-u", merged]),
        ("fusermount3", &["-uz", merged]),
        ("umount", &[merged]),
        ("umount", &["-l", merged]),
    ];
    for (program, args) in ways {
        let pid = bench.mount();
        run(program, args);
        bench.assert_gone(pid, SOON);
    }
}

#[test]
fn the_same_upper_can_be_mounted_again_at_once() {
    let bench = Bench::new();
    let merged = bench.merged().to_str().unwrap();
    for _ in 0..5 {
        bench.mount();
        run("fusermount3", &["-u", merged]);
    }
}

#[test]
fn a_daemon_that_ends_leaves_the_next_mount_in_the_same_place_alone() {
    let bench = Bench::new();
    let mount = || {
        bench
            .rovl(["mount", "--lower", "lower0:lower1", "merged"])
            .silent()
    };
    mount();
    for _ in 0..30 {
        run("umount", &["-l", bench.merged().to_str().unwrap()]);
        mount();
        bench.assert_served();
    }
    let pid = bench.daemon();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(bench.daemon(), pid);
    bench.rovl(["umount", "merged"]).silent();
}

#[test]
fn a_signal_unmounts_bind_mounts_of_the_tree_too() {
    let bench = Bench::new();
    let copy = bench.dir("copy");
    let pid = bench.mount();
    run(
        "mount",
        &[
            "--bind",
            bench.merged().to_str().unwrap(),
            copy.to_str().unwrap(),
        ],
    );
    signal(pid, Signal::TERM);
    bench.assert_gone(pid, SOON);
    assert!(!is_mount_point(&copy));
}

#[test]
fn a_mount_that_is_covered_is_served_on() {
    let bench = Bench::new();
    let pid = bench.mount();
    let merged = bench.merged().to_str().unwrap();
    run("mount", &["-t", "tmpfs", "none", merged]);
    signal(pid, Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_running(pid));
    run("umount", &[merged]);
    bench.assert_served();
    bench.rovl(["umount", "merged"]).silent();
}

#[test]
fn an_aborted_connection_leaves_no_mount_point() {
    let bench = Bench::new();
    let pid = bench.mount();
    let device = bench.mount_line().split(' ').nth(2).unwrap().to_owned();
    let connection = device.split_once(':').unwrap().1;
    let control = bench.dir("control");
    run(
        "mount",
        &["-t", "fusectl", "none", control.to_str().unwrap()],
    );
    fs::write(control.join(connection).join("abort"), "1").unwrap();
    bench.assert_gone(pid, SOON);
}

/// A daemon in the foreground, once it serves.
fn foreground(bench: &Bench, extra: &str) -> Child {
    let mut args = bench.writable();
    args.insert(1, extra.into());
    let mut command = bench.command(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    assert!(wait_until(PATIENCE, || bench
        .merged()
        .join("file")
        .exists()));
    child
}

/// Waits for the end of a daemon in the foreground; its stderr.
fn end_of(mut child: Child) -> String {
    let pid = child.id();
    assert!(
        wait_until(PATIENCE, || child.try_wait().unwrap().is_some()),
        "{pid} still runs"
    );
    let status = child.wait().unwrap();
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None), "{said}");
    said
}

#[test]
fn foreground_stays_until_a_signal_or_an_unmount() {
    let bench = Bench::new();
    for flag in ["--foreground", "-f"] {
        let child = foreground(&bench, flag);
        assert_eq!(bench.daemon(), child.id());
        signal(child.id(), Signal::INT);
        end_of(child);
        assert!(!is_mount_point(bench.merged()));
    }
    let child = foreground(&bench, "--foreground");
    bench.rovl(["umount", "merged"]).silent();
    end_of(child);
    let child = foreground(&bench, "--debug");
    run("fusermount3", &["-u", bench.merged().to_str().unwrap()]);
    assert!(!end_of(child).is_empty(), "debug logs something");
}

#[test]
fn the_log_goes_to_the_file_that_is_named() {
    let bench = Bench::new();
    let mut command = bench.command(bench.writable());
    command.env("ROVL_LOG_FILE", "log").env("ROVL_LOG", "info");
    crate::bench::outcome(command).silent();
    let pid = bench.daemon();
    signal(pid, Signal::TERM);
    bench.assert_gone(pid, SOON);
    let log = fs::read_to_string(bench.scratch.join("log")).unwrap();
    assert!(
        log.contains("serving") && log.contains("unmounting"),
        "{log}"
    );
}

#[test]
fn stat_shows_counters_for_people_and_for_programs() {
    let bench = Bench::new();
    let pid = bench.mount();
    let table = bench.rovl(["stat", "merged"]).silent().stdout;
    let row = table
        .lines()
        .find(|line| line.split_whitespace().next() == Some("pid"));
    assert_eq!(
        row.unwrap().split_whitespace().nth(1),
        Some(pid.to_string().as_str())
    );
    let json = bench.rovl(["stat", "--json", "merged"]).silent().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["pid"], pid);
}
