//! `rovl run`: what the command sees, what comes back, and that nothing stays.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::builder::{archive, docker_members};
use crate::images::{busybox, store_with};
use crate::rovl_command::{TestStore, expect_failure};
use crate::support::signal;
use crate::support::{require_program, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

fn store() -> TestStore {
    require_program("crun");
    store_with(&busybox()).0
}

fn run(store: &TestStore, args: &[&str]) -> (i32, String) {
    let output = store.try_run(&[&["run", "--rm"], args].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = String::from_utf8(output.stdout).unwrap();
    (
        output.status.code().unwrap(),
        if text.is_empty() { said } else { text },
    )
}

/// Processes whose command line names the store.
fn processes(store: &TestStore) -> Vec<String> {
    let root = store.root.to_str().unwrap().to_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&root) {
            found.push(line);
        }
    }
    found
}

/// No process, no mount, no directory is left of what ran.
fn assert_nothing_left(store: &TestStore) {
    assert!(
        wait_until(PATIENCE, || processes(store).is_empty()),
        "{:?}",
        processes(store)
    );
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    assert!(!table.contains(store.root.to_str().unwrap()), "{table}");
    // A process has no command line any more before it gives up its locks.
    let listed = || store.json(&["container", "ls", "--json"]);
    let is_gone = wait_until(PATIENCE, || listed() == serde_json::json!([]));
    assert!(is_gone, "{}", listed());
    // The image's layer, and `l`.
    let overlay = fs::read_dir(store.root.join("overlay2")).unwrap();
    assert_eq!(overlay.count(), 2);
    store.assert_clean();
    store.assert_accounted();
}

#[test]
fn the_exit_code_comes_back() {
    let store = store();
    assert_eq!(run(&store, &["busybox:1", "sh", "-c", "exit 7"]).0, 7);
    assert_eq!(run(&store, &["busybox:1", "true"]).0, 0);
    assert_eq!(run(&store, &["busybox:1", "no-such-thing"]).0, 127);
    assert_eq!(run(&store, &["busybox:1", "/etc/plain"]).0, 126);
    assert_eq!(
        run(
            &store,
            &["busybox:1", "sh", "-c", "kill -9 $$; sleep 1; exit 3"]
        )
        .0,
        3
    );
    assert_eq!(run(&store, &["nothing:1"]).0, 125);
    assert_eq!(
        run(&store, &["--user", "nobody-here", "busybox:1", "true"]).0,
        125
    );
    assert_eq!(
        run(
            &store,
            &["--runtime", "/no/such/runtime", "busybox:1", "true"]
        )
        .0,
        125
    );
    assert_nothing_left(&store);
}

#[test]
fn every_runtime_that_is_there_will_do() {
    let store = store();
    for runtime in ["crun", "runc"] {
        require_program(runtime);
        let (code, text) = run(
            &store,
            &[
                "--runtime",
                runtime,
                "busybox:1",
                "sh",
                "-c",
                "id -u; exit 4",
            ],
        );
        assert_eq!((code, text.as_str()), (4, "0\n"), "{runtime}");
        let (code, said) = run(&store, &["--runtime", runtime, "busybox:1", "nowhere"]);
        assert_eq!(code, 127, "{runtime}");
        // Once, by whoever says it.
        let lines = said.lines().filter(|line| line.contains("nowhere"));
        assert_eq!(lines.count(), 1, "{runtime}: {said}");
    }
    assert_nothing_left(&store);
}

#[test]
fn environment_user_and_directory_are_the_image_s_unless_said_otherwise() {
    let store = store();
    let sh = |args: &[&str], script: &str| {
        run(&store, &[args, &["busybox:1", "sh", "-c", script]].concat())
    };
    let (_, text) = sh(
        &["-e", "A=b c", "-e", "FOR=me"],
        "echo $PATH-$A-$FOR-$HOME-$HOSTNAME",
    );
    assert!(text.starts_with("/bin-b c-me-/root-"), "{text}");
    assert_eq!(sh(&["-w", "/tmp"], "pwd").1, "/tmp\n");
    assert_eq!(sh(&[], "pwd").1, "/\n");
    assert_eq!(
        sh(&["-u", "web"], "id -u; id -g; id -G; echo $HOME").1,
        "33\n34\n34 35\n/srv\n"
    );
    assert_eq!(sh(&["-u", "5:6"], "id -u; id -g").1, "5\n6\n");
    let outside = store.scratch.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "from outside").unwrap();
    let volume = format!("{}:/v", outside.display());
    assert_eq!(
        sh(&["-v", &volume], "cat /v/f; echo back > /v/g").1,
        "from outside"
    );
    assert_eq!(fs::read_to_string(outside.join("g")).unwrap(), "back\n");
    assert_ne!(sh(&["-v", &format!("{volume}:ro")], "echo x > /v/h").0, 0);
    assert_eq!(sh(&["-v", "/no/such/place:/v"], "true").0, 125);
    assert_ne!(sh(&["--read-only"], "echo x > /h").0, 0);
    assert_eq!(sh(&["--driver", "kernel"], "echo x > /h; cat /h").1, "x\n");
    assert_eq!(
        run(
            &store,
            &["--entrypoint", "/bin/cat", "busybox:1", "/etc/plain"]
        )
        .1,
        "not to be executed"
    );
    let output = store.feed(&["run", "--rm", "busybox:1", "cat"], b"through");
    assert_eq!(output.stdout, b"through");
    assert_nothing_left(&store);
}

#[test]
fn the_namespaces_are_the_container_s_own_but_for_the_network() {
    let store = store();
    for kind in ["user", "mnt", "pid", "uts", "ipc", "net"] {
        let path = format!("/proc/self/ns/{kind}");
        let (_, text) = run(&store, &["busybox:1", "readlink", &path]);
        let ours = fs::read_link(&path).unwrap();
        assert_eq!(
            text.trim() == ours.to_str().unwrap(),
            kind == "net",
            "{kind}"
        );
    }
}

#[test]
fn a_terminal_is_passed_through() {
    require_program("script");
    let store = store();
    let command = format!(
        "'{}' --root '{}' run --rm busybox:1 sh -c 'test -t 0 && test -t 1 && readlink /proc/self/fd/0; exit 9'",
        crate::support::rovl_bin().display(),
        store.root.display()
    );
    let output = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("/dev/pts/0"), "{text}");
    assert_eq!(output.status.code(), Some(9));
    assert_nothing_left(&store);
}

/// Starts a command that says when it is there.
fn started(store: &TestStore, script: &str) -> Child {
    let ready = store.scratch.join("ready");
    fs::remove_dir_all(&ready).ok();
    fs::create_dir(&ready).unwrap();
    let volume = format!("{}:/ready", ready.display());
    let script = format!("touch /ready/yes; {script}");
    let child = store
        .command(&[
            "run",
            "--rm",
            "-v",
            &volume,
            "busybox:1",
            "sh",
            "-c",
            &script,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(wait_until(PATIENCE, || ready.join("yes").exists()));
    child
}

#[test]
fn signals_reach_the_command_or_end_it() {
    let store = store();
    for (number, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut child = started(&store, "exec sleep 1000");
        // The shell handles signals until then, and forgets those for which it has no trap.
        assert!(wait_until(PATIENCE, || runs(
            child.id(),
            b"sleep\x001000\0"
        )));
        signal(child.id(), number);
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
    let child = started(
        &store,
        "trap 'echo caught; exit 5' TERM; while :; do sleep 0.05; done",
    );
    std::thread::sleep(Duration::from_millis(200));
    signal(child.id(), Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(5), &b"caught\n"[..])
    );
    assert_nothing_left(&store);
}

fn children_of(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Whether a process or one below it was started with this command line.
fn runs(pid: u32, command_line: &[u8]) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == command_line)
        || children_of(pid)
            .into_iter()
            .any(|child| runs(child, command_line))
}

#[test]
fn nothing_stays_whoever_is_killed() {
    let store = store();
    // The front, then the keeper, then all at once, and the runtime's child, which is the command itself.
    let mut child = started(&store, "sleep 1000");
    signal(child.id(), Signal::KILL);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_nothing_left(&store);

    let mut child = started(&store, "sleep 1000");
    let keepers = children_of(child.id());
    assert_eq!(keepers.len(), 1);
    signal(keepers[0], Signal::KILL);
    assert_eq!(child.wait().unwrap().code(), Some(125));
    assert_nothing_left(&store);

    let mut child = started(&store, "sleep 1000");
    let keeper = children_of(child.id())[0];
    signal(child.id(), Signal::KILL);
    signal(keeper, Signal::KILL);
    child.wait().unwrap();
    assert_nothing_left(&store);

    for victim in 0..2 {
        let mut child = started(&store, "sleep 1000");
        let keeper = children_of(child.id())[0];
        // The runtime that has started the command may not have ended yet.
        assert!(wait_until(PATIENCE, || children_of(keeper).len() == 2));
        let below = children_of(keeper);
        signal(below[victim], Signal::KILL);
        if victim == 0 {
            // The daemon: the tree is dead, the command is not.
            signal(child.id(), Signal::TERM);
        }
        assert!(!child.wait().unwrap().success());
        assert_nothing_left(&store);
    }
}

#[test]
fn a_runtime_that_crashes_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let store = store();
    for at in ["create", "start"] {
        let script = store.scratch.join(format!("crash-at-{at}"));
        let text = format!(
            "#!/bin/sh\ncase \"$*\" in *{at}*) case {at} in start) ;; *) kill -9 $$;; esac; \
             kill -9 $$;; esac\nexec crun --cgroup-manager=disabled \"$@\"\n"
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        // crun refuses hosts with two hierarchies, which the keeper hides from it by its name.
        let named = store.scratch.join(at);
        fs::create_dir(&named).unwrap();
        fs::rename(&script, named.join("crun")).unwrap();
        let runtime = named.join("crun");
        let (code, _) = run(
            &store,
            &[
                "--runtime",
                runtime.to_str().unwrap(),
                "busybox:1",
                "sleep",
                "1000",
            ],
        );
        assert_eq!(code, 125, "{at}");
        assert_nothing_left(&store);
    }
}

#[test]
fn fifty_containers_of_one_image_run_at_once() {
    let store = store();
    let children: Vec<(usize, Child)> = (0..50)
        .map(|n| {
            let script = format!("echo {n} > /own; sleep 1; cat /own");
            let child = store
                .command(&["run", "--rm", "busybox:1", "sh", "-c", &script])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            (n, child)
        })
        .collect();
    for (n, child) in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{n}: {said}");
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("{n}\n"),
            "{said}"
        );
    }
    assert_nothing_left(&store);
}

#[test]
fn a_container_that_is_kept_can_be_looked_at() {
    let store = store();
    store.run(&[
        "run",
        "--name",
        "kept",
        "busybox:1",
        "sh",
        "-c",
        "echo x > /x; rm /etc/plain",
    ]);
    assert_eq!(
        store.text(&["container", "diff", "kept"]),
        "C /etc\nD /etc/plain\nA /x\n"
    );
    let listed = store.json(&["container", "ls", "--json"]);
    assert_eq!(listed[0]["status"], "created");
    let said = expect_failure(
        &store.try_run(&["run", "--name", "kept", "busybox:1", "true"]),
        125,
    );
    assert!(said.contains("kept"), "{said}");
    store.run(&["container", "rm", "kept"]);
    assert_nothing_left(&store);
}

/// podman with the kernel's overlayfs, on the same image.
#[test]
fn it_starts_faster_than_podman() {
    require_program("podman");
    let store = store();
    let scratch = crate::support::Scratch::new();
    let path = scratch.join("image.tar");
    fs::write(&path, archive(&docker_members(&[busybox()]))).unwrap();
    let podman = |args: &[&str]| {
        let args = [&["--cgroup-manager", "cgroupfs"], args].concat();
        crate::random::podman(&scratch, &args);
    };
    podman(&["load", "-q", "-i", path.to_str().unwrap()]);
    let run = [
        "run",
        "--rm",
        "--network",
        "host",
        "--runtime",
        "runc",
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=1024:1024",
        "busybox:1",
        "true",
    ];
    let median = |f: &dyn Fn()| {
        let mut times: Vec<Duration> = (0..7)
            .map(|_| {
                let start = Instant::now();
                f();
                start.elapsed()
            })
            .collect();
        times.sort();
        times[3]
    };
    let theirs = median(&|| podman(&run));
    let ours = median(&|| drop(store.run(&["run", "--rm", "busybox:1", "true"])));
    podman(&["rmi", "-af"]);
    eprintln!("run --rm IMAGE true: rovl {ours:?}, podman with native overlay {theirs:?}");
    assert!(ours < theirs, "rovl {ours:?}, podman {theirs:?}");
}
