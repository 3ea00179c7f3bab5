//! How long it takes to make a container, measured while no other test runs: cargo runs one test program at a time.
//!
//! Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]
// The helpers of the store's tests are more than is needed here.
#![allow(dead_code)]

mod support;

#[path = "store/builder.rs"]
mod builder;
#[path = "containers/images.rs"]
mod images;
#[path = "store/rovl.rs"]
mod rovl_command;

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use builder::{Image, Layer};
use images::{create, store_with};
use rovl_command::TestStore;

/// How long a container may take to be made.
const LIMIT: Duration = Duration::from_millis(20);
/// Of what no way of making one can do without, at least: where the machine is busy with other tests, or its disk is
/// slow, that alone may take longer.
const TIMES: u32 = 4;
/// How often the disk has to be flushed one after the other: what was built, that it is to be moved, the moves, and
/// the record that makes it a container.
const FLUSHES: usize = 4;
/// How often it is tried.
const ATTEMPTS: usize = 60;

fn timed(run: impl FnOnce()) -> Duration {
    let start = Instant::now();
    run();
    start.elapsed()
}

/// A command that does nothing, and the flushes.
fn do_the_least(store: &TestStore) {
    store.run(&["--version"]);
    let path = store.scratch.join("flushed");
    for _ in 0..FLUSHES {
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(b"some").unwrap();
        file.sync_all().unwrap();
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// At best in less than the limit; always so on an idle machine.
#[test]
fn a_container_is_made_in_no_time_whatever_the_image() {
    let mut layers = vec![Layer::new().dir("d/")];
    for n in 0..20_000 {
        let layer = layers.pop().unwrap();
        layers.push(layer.file(&format!("d/{n}"), b""));
    }
    let mut built: Vec<Vec<u8>> = layers.into_iter().map(Layer::build).collect();
    built.extend((0..40).map(|n| Layer::new().file(&format!("l{n}"), b"").build()));
    let (store, _) = store_with(&Image::new("large:1", built));
    let (mut times, mut least) = (Vec::new(), Vec::new());
    while times.len() < ATTEMPTS && times.iter().all(|time| *time >= LIMIT) {
        least.push(timed(|| do_the_least(&store)));
        let mut id = String::new();
        times.push(timed(|| id = create(&store, &["large:1"])));
        store.run(&["container", "rm", &id]);
    }
    let best = times.iter().min().copied().unwrap();
    let (usual, least) = (median(times), median(least));
    eprintln!(
        "container create: {best:?} at best, {usual:?} usually; what it can't do without: {least:?}"
    );
    assert!(
        best < LIMIT || usual < TIMES * least,
        "{best:?} at best, {usual:?} usually; what it can't do without: {least:?}"
    );
}
