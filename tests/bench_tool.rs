//! `tools/bench`: the pure parts of examples/bench (their own unit tests run here), and one small run of the tool
//! itself, which needs root and /dev/fuse and fails without.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

// What the test does not call is what the program calls.
#[allow(dead_code)]
#[path = "../examples/bench/cli.rs"]
mod cli;
#[allow(dead_code)]
#[path = "../examples/bench/clock.rs"]
mod clock;
#[allow(dead_code)]
#[path = "../examples/bench/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../examples/bench/render/mod.rs"]
mod render;
#[allow(dead_code)]
#[path = "../examples/bench/stats.rs"]
mod stats;

/// The tool, with nothing to be installed: no peers, and rovl as the test harness has built it.
fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/bench"));
    command
        .args(arguments)
        .env("ROVL", env!("CARGO_BIN_EXE_rovl"))
        .stdin(Stdio::null());
    command
}

fn output(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The names of the elements of a page that are open at its end, or where it is not well-formed.
fn unclosed(page: &str) -> Result<Vec<String>, String> {
    let mut open: Vec<String> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").ok_or("no DOCTYPE")?;
    while let Some(at) = rest.find('<') {
        let before = &rest[..at];
        let inside_style = open.last().is_some_and(|name| name == "style");
        if before.contains('>') && !inside_style {
            return Err(format!("a bare > in {before:?}"));
        }
        let end = rest[at..].find('>').ok_or("a < without >")? + at;
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            let last = open
                .pop()
                .ok_or_else(|| format!("</{name}> closes nothing"))?;
            if last != name {
                return Err(format!("</{name}> closes <{last}>"));
            }
            continue;
        }
        if tag.matches('"').count() % 2 != 0 || tag.contains('<') {
            return Err(format!("<{tag}>"));
        }
        let name = tag.split([' ', '/']).next().unwrap_or_default();
        if name.is_empty() {
            return Err(format!("<{tag}> has no name"));
        }
        if !tag.ends_with('/') {
            open.push(name.to_owned());
        }
    }
    Ok(open)
}

#[test]
fn the_check_of_pages_can_fail() {
    let check = |body: &str| unclosed(&format!("<!DOCTYPE html>{body}"));
    assert_eq!(check("<a><b x=\"1\"/>t</a>"), Ok(vec![]));
    assert_eq!(check("<a>"), Ok(vec!["a".to_owned()]));
    for broken in ["<a></b>", "</a>", "<a", "<a x=\"></a>", "<a>1 > 2</a>"] {
        assert!(check(broken).is_err(), "{broken}");
    }
    assert!(unclosed("<html></html>").is_err());
}

#[test]
fn pages_are_well_formed_also_with_strange_names() {
    let page = render::html::render(&model::example());
    assert_eq!(unclosed(&page), Ok(vec![]));
}

fn mounts_beneath(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap().to_owned();
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    table
        .lines()
        .filter(|line| line.contains(&dir))
        .map(str::to_owned)
        .collect()
}

fn assert_clean(dir: &Path) {
    assert_eq!(mounts_beneath(dir), [""; 0]);
    let left: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_small_run_measures_every_row_and_cleans_up() {
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let (data, out) = (scratch.path().join("data"), scratch.path().join("out"));
    fs::create_dir(&data).unwrap();
    let rovl = env!("CARGO_BIN_EXE_rovl");
    let given = format!(
        "given={rovl} mount --lower {{lower}} --upper {{upper}} --work {{work}} {{merged}}"
    );
    let in_front = format!(
        "in-front={rovl} mount --foreground --lower {{lower}} --upper {{upper}} --work {{work}} {{merged}}"
    );
    let rows = [
        "stat-warm",
        "create-write",
        "unlink-lower",
        "copy-up-small-xfs",
        "memory-idle",
        "layers-stat-20",
    ];
    let only: Vec<String> = rows.iter().map(|row| format!("={row}")).collect();
    let run = tool(&[
        "--quick",
        "--repeat=2",
        "--targets=bare,kernel,rovl,rovl:writeback=on",
        "--target",
        &given,
        "--target",
        &in_front,
        "--only",
        &only.join("|"),
        "--dir",
        data.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    let shown = String::from_utf8(output(run).stdout).unwrap();
    assert_clean(&data);
    check_files(&out, &shown, &rows);
    check_rendering_again(&out, &scratch.path().join("again"));
}

/// Holds what a run has written against the rows that were asked for.
fn check_files(out: &Path, shown: &str, rows: &[&str]) {
    let json: Value = serde_json::from_str(&text(out.join("bench.json"))).unwrap();
    let found: BTreeMap<&str, &Value> = json["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["id"].as_str().unwrap(), row))
        .collect();
    assert_eq!(found.len(), rows.len());
    let (page, table) = (text(out.join("bench.html")), text(out.join("bench.md")));
    assert_eq!(unclosed(&page), Ok(vec![]));
    for row in rows {
        let row = found[*row];
        let title = row["title"].as_str().unwrap();
        assert!(
            page.contains(title) && table.contains(title) && shown.contains(title),
            "{title}"
        );
        let cells = row["cells"].as_array().unwrap();
        assert!(cells.len() >= 4, "{title}: {cells:?}");
        for cell in cells {
            assert_eq!(cell["error"], Value::Null, "{title}");
            assert_eq!(
                cell["samples"].as_array().unwrap().len(),
                2,
                "{title}: {cell}"
            );
            assert!(
                cell["summary"]["median"].as_f64().unwrap() > 0.0,
                "{title}: {cell}"
            );
        }
    }
    let cell = |row: &str, target: &str| -> Value {
        let cells = found[row]["cells"].as_array().unwrap();
        cells
            .iter()
            .find(|cell| cell["target"] == target)
            .unwrap()
            .clone()
    };
    let requests = |row: &str| cell(row, "rovl")["requests_per_operation"].clone();
    assert!(requests("create-write")["write"].as_f64().unwrap() > 0.0);
    assert!(requests("unlink-lower")["unlink"].as_f64().unwrap() >= 0.9);
    assert_eq!(requests("stat-warm"), serde_json::json!({}));
    assert_eq!(
        cell("stat-warm", "kernel")["requests_per_operation"],
        Value::Null
    );
    assert!(
        cell("memory-idle", "given")["daemon_rss_mib"]
            .as_f64()
            .unwrap()
            > 0.1
    );
    let verdict = &found["stat-warm"]["verdicts"][0];
    assert!(verdict["met"].is_boolean(), "{verdict}");
}

/// What was measured can be shown again, by whoever has no root.
fn check_rendering_again(out: &Path, again: &Path) {
    let json = out.join("bench.json");
    let mut render = tool(&["--readme", "--render"]);
    render.arg(json).arg("--out").arg(again);
    let shown = String::from_utf8(output(render).stdout).unwrap();
    let whole = text(out.join("bench.md"));
    assert_eq!(text(again.join("bench.md")), whole);
    // The rows with goals, as they are in the whole table.
    assert!(
        shown.contains('≤') && shown.lines().count() < whole.lines().count(),
        "{shown}"
    );
    for line in shown.lines() {
        assert!(whole.lines().any(|other| other == line), "{line}");
    }
    assert_eq!(text(again.join("bench.html")), text(out.join("bench.html")));
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn a_failing_target_is_reported_and_leaves_nothing() {
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let data = scratch.path().join("data");
    let run = |target: &str| {
        let out = scratch.path().join("out");
        let mut command = tool(&[
            "--quick",
            "--repeat=1",
            "--targets=bare",
            "--only==stat-warm",
            "--target",
            target,
        ]);
        command.arg("--dir").arg(&data).arg("--out").arg(&out);
        let output = command.output().unwrap();
        assert_clean(&data);
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (code, shown) = run("broken=sh -c 'echo no such luck >&2; exit 3' {lower} {merged}");
    assert_eq!(code, Some(1));
    assert!(
        shown.contains("broken: refuses to mount:") && shown.contains("no such luck"),
        "{shown}"
    );
    // An empty tree that mounts well: the work notices that its files are not there.
    let (code, shown) = run("empty=mount -t tmpfs {lower} {merged}");
    assert_eq!(code, Some(1));
    assert!(shown.contains("failed: stat, warm on empty"), "{shown}");
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn an_interrupted_run_leaves_nothing() {
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let data = scratch.path().join("data");
    for signal in ["INT", "TERM"] {
        let mut command = tool(&[
            "--quick",
            "--repeat=1000",
            "--budget=600",
            "--targets=rovl,kernel",
        ]);
        command
            .args(["--only==stat-warm|=create-write|=copy-up-mid-xfs", "--out"])
            .arg(scratch.path().join("out"));
        command
            .arg("--dir")
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(300);
        while !data.exists() || mounts_beneath(&data).is_empty() {
            assert!(Instant::now() < deadline, "it mounts nothing");
            thread::sleep(Duration::from_millis(20));
        }
        let kill = Command::new("kill")
            .args([&format!("-{signal}"), &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        let asked = Instant::now();
        let status = child.wait().unwrap();
        assert!(!status.success(), "{status}");
        assert!(
            asked.elapsed() < Duration::from_secs(60),
            "it took {:?} to end",
            asked.elapsed()
        );
        assert_clean(&data);
    }
}

#[test]
fn wrong_use_is_refused_with_reasons() {
    let fails = |arguments: &[&str], word: &str| {
        let output = tool(arguments).output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(word), "{said}");
    };
    fails(&["--list", "--only", "no such work at all"], "no such work");
    fails(&["--list", "--target", "x=no placeholder"], "{merged}");
    fails(&["--list", "--targets", "nobody"], "no nobody");
    fails(&["--list", "--frobnicate"], "--frobnicate");
}

#[test]
fn the_list_names_every_kind_of_work() {
    let shown = String::from_utf8(output(tool(&["--list"])).stdout).unwrap();
    let ids: Vec<&str> = shown
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .collect();
    for id in [
        "stat-warm",
        "readdir-large-cold",
        "find-ls-first",
        "git-status-warm",
        "tar-cold",
        "write-fsync",
        "mmap-read-warm",
        "sqlite",
        "untar",
        "rm-lower",
        "copy-up-big-xfs",
        "python-cold",
        "compile",
        "dpkg",
        "apt-get",
        "clients-read-16",
        "layers-stat-500",
        "stall",
        "memory-inode",
    ] {
        assert!(ids.contains(&id), "{id} is not in {ids:?}");
    }
    let mut unique = ids.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), ids.len(), "two rows have one id");
}
