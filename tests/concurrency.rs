//! Eight processes work on the same directories for a minute; then the tree is what they say.
//!
//! Each worker owns names (`concurrency/layout.rs`) and keeps a model of them, so that the outcome
//! of each of its calls is certain although all others work in the same directories. Other names
//! are contended: of these, invariants are checked (`contended.rs`, `races.rs`).
//!
//! Needs root. `ROVL_STRESS_SECONDS` (60), `ROVL_STRESS_SEED` (random) and `ROVL_STRESS_RACES` (20,
//! a second) change a run. What workers did is kept in `/tmp/rovl-stress-*` when one fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

#[path = "concurrency/board.rs"]
mod board;
#[path = "concurrency/contended.rs"]
mod contended;
#[path = "concurrency/files.rs"]
mod files;
#[path = "concurrency/holders.rs"]
mod holders;
#[path = "concurrency/layout.rs"]
mod layout;
#[path = "concurrency/listing.rs"]
mod listing;
#[path = "concurrency/mapping.rs"]
mod mapping;
#[path = "concurrency/model.rs"]
mod model;
#[path = "concurrency/names.rs"]
mod names;
#[path = "concurrency/races.rs"]
mod races;
#[path = "concurrency/random.rs"]
mod random;
#[path = "concurrency/verify.rs"]
mod verify;
#[path = "concurrency/worker.rs"]
mod worker;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use board::Board;
use layout::{GROUPS, WORKERS};
use support::{
    Mounted, Scratch, Subject, assert_digests_equal, require_root, subject, tree_digest,
};

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|e| panic!("{variable}={text}: {e}"))
    })
}

/// The test starts this binary again, once a worker, with this test alone.
#[test]
#[ignore = "a part of `processes_agree_on_the_tree`, which starts it"]
fn worker_process() {
    let Ok(root) = std::env::var("ROVL_STRESS_ROOT") else {
        return;
    };
    worker::run(worker::Orders {
        w: number("ROVL_STRESS_WORKER", 0) as usize,
        root: root.into(),
        control: std::env::var_os("ROVL_STRESS_CONTROL").unwrap().into(),
        time: Duration::from_secs(number("ROVL_STRESS_SECONDS", 60)),
        seed: number("ROVL_STRESS_SEED", 1),
        lax: subject() != Subject::Rovl,
        races: number("ROVL_STRESS_RACES", 20) as u32,
    });
}

fn start_worker(w: usize, root: &Path, control: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "worker_process", "--nocapture"])
        .env("ROVL_STRESS_ROOT", root)
        .env("ROVL_STRESS_CONTROL", control)
        .env("ROVL_STRESS_WORKER", w.to_string())
        .env("ROVL_STRESS_SEED", seed.to_string())
        .env("RUST_BACKTRACE", "0")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits for all workers; the logs of those that failed, if any did.
fn wait_for(mut workers: Vec<Child>, control: &Path, board: &Board) -> Vec<String> {
    let limit = Duration::from_secs(number("ROVL_STRESS_SECONDS", 60) + 180);
    let start = Instant::now();
    let mut failed = Vec::new();
    for (w, worker) in workers.iter_mut().enumerate() {
        let status = loop {
            if let Some(status) = worker.try_wait().unwrap() {
                break status.to_string();
            }
            if start.elapsed() > limit {
                board.abort();
                worker.kill().ok();
                break "hangs".to_owned();
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if status != "exit status: 0" {
            board.abort();
            let log = std::fs::read_to_string(control.join(format!("log.{w}"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(12)..].join("\n    ");
            failed.push(format!(
                "worker {w}: {status}, after {} steps:\n    {last}",
                lines.len()
            ));
        }
    }
    // Those that failed first say why; the others only say that another failed.
    failed.sort_by_key(|text| !text.contains("FAILED FIRST"));
    failed
}

/// Panics with what is wrong, if anything is; the workers' logs are kept then.
fn conclude(wrong: &[String], control: &Path, seed: u64, when: &str) {
    if wrong.is_empty() {
        return;
    }
    let kept = PathBuf::from(format!("/tmp/rovl-stress-{}", std::process::id()));
    let copied = Command::new("cp")
        .arg("-a")
        .arg(control)
        .arg(&kept)
        .status()
        .unwrap();
    assert!(copied.success());
    panic!(
        "{when}: {} failures; seed {seed}; logs are in {}\n{}",
        wrong.len(),
        kept.display(),
        wrong[..wrong.len().min(40)].join("\n")
    );
}

fn new_board(control: &Path) -> Board {
    let board = Board::open(&control.join("board"));
    for g in 0..GROUPS {
        board.group_links(g).store(WORKERS as u64, SeqCst);
    }
    board
}

/// Both rovl and the kernel's overlayfs show the same tree after a new mount.
fn check_remounted(mounted: Mounted, control: &Path, board: &Board, seed: u64) {
    let before = tree_digest(mounted.root());
    let layers = mounted.layers().clone();
    let subject = mounted.subject().clone();
    mounted.unmount();
    for again in [subject, Subject::Kernel] {
        let when = format!("mounted again with {again:?}");
        let mounted = again.mount(&layers, &[]);
        assert_digests_equal(&before, &tree_digest(mounted.root()), &when);
        conclude(
            &verify::check_tree(mounted.root(), control, board),
            control,
            seed,
            &when,
        );
        mounted.unmount();
    }
}

#[test]
fn processes_agree_on_the_tree() {
    require_root();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("ROVL_STRESS_SEED", now.unwrap().as_secs() % 1_000_000);
    let (scratch, control) = (Scratch::new(), Scratch::new());
    let layers = scratch.layers(2);
    layout::build(&layers);
    let lowers: Vec<_> = layers
        .lowers
        .iter()
        .map(|lower| tree_digest(lower))
        .collect();

    let mounted = subject().mount(&layers, &[]);
    tree_digest(mounted.root());
    verify::drop_caches();
    let held_before = verify::held(&mounted);

    let board = new_board(control.path());
    let workers = (0..WORKERS)
        .map(|w| start_worker(w, mounted.root(), control.path(), seed))
        .collect();
    let failed = wait_for(workers, control.path(), &board);
    conclude(&failed, control.path(), seed, "while working");
    assert!(mounted.daemon_alive(), "the daemon is gone");

    let wrong = verify::check_tree(mounted.root(), control.path(), &board);
    conclude(&wrong, control.path(), seed, "when all were done");
    if let Some(before) = held_before {
        let wrong = verify::check_held(&mounted, before);
        conclude(&wrong, control.path(), seed, "after drop_caches");
    }
    for (lower, before) in layers.lowers.iter().zip(&lowers) {
        assert_digests_equal(before, &tree_digest(lower), "a lower before and after");
    }
    check_remounted(mounted, control.path(), &board, seed);
}
