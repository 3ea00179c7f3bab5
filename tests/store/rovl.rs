//! Running `rovl` on a store of the test's own.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::{Scratch, rovl_bin};

/// A store in a scratch directory.
pub struct TestStore {
    pub scratch: Scratch,
    pub root: PathBuf,
}

impl TestStore {
    pub fn new() -> TestStore {
        let scratch = Scratch::new();
        let root = scratch.join("store");
        TestStore { scratch, root }
    }

    /// `rovl --root STORE ARGS…`.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        command(&self.root, args)
    }

    /// Runs it, whatever comes of it.
    pub fn try_run<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs it to its end and gives back what it printed.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Vec<u8> {
        expect_success(self.try_run(args))
    }

    /// Its output as text.
    pub fn text<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        String::from_utf8(self.run(args)).unwrap()
    }

    /// Its output as JSON.
    pub fn json<S: AsRef<OsStr>>(&self, args: &[S]) -> Value {
        serde_json::from_slice(&self.run(args)).unwrap()
    }

    /// Runs it with something on standard input.
    pub fn feed<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Output {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // A program that gives up early doesn't read all.
            scope.spawn(move || stdin.write_all(input).ok());
            child.wait_with_output().unwrap()
        })
    }

    /// Writes an archive beside the store and loads it.
    pub fn load(&self, archive: &[u8]) -> Value {
        let path = self.scratch.join("archive.tar");
        std::fs::write(&path, archive).unwrap();
        self.json(&["image", "load", "--json", path.to_str().unwrap()])
    }

    /// The trees of an image, topmost first.
    pub fn lowers(&self, image: &str) -> Vec<PathBuf> {
        let inspected = self.json(&["image", "inspect", image]);
        let layers = inspected[0]["Layers"].as_array().unwrap();
        layers
            .iter()
            .rev()
            .map(|layer| {
                let id = layer["CacheId"].as_str().unwrap();
                self.root.join("overlay2").join(id).join("diff")
            })
            .collect()
    }

    /// `fsck` finds nothing.
    pub fn assert_clean(&self) {
        let report = self.json(&["store", "fsck", "--json"]);
        assert_eq!(report["faults"], serde_json::json!([]), "{report}");
        assert_eq!(report["garbage"], 0, "{report}");
    }

    /// The sums of `df` are what a walk of the root finds.
    pub fn assert_accounted(&self) {
        let df = self.json(&["store", "df", "--json"]);
        let parts = df["parts"].as_object().unwrap();
        let sum: u64 = parts.values().map(|bytes| bytes.as_u64().unwrap()).sum();
        assert_eq!(df["total"].as_u64().unwrap(), sum, "{df}");
        let du = Command::new("du")
            .args(["-s", "--block-size=1"])
            .arg(&self.root)
            .output()
            .unwrap();
        let du = String::from_utf8(expect_success(du)).unwrap();
        let du: u64 = du.split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(du, sum, "{df}");
    }
}

pub fn command<S: AsRef<OsStr>>(root: &Path, args: &[S]) -> Command {
    let mut command = Command::new(rovl_bin());
    command.arg("--root").arg(root).args(args);
    command
}

pub fn expect_success(output: Output) -> Vec<u8> {
    assert!(
        output.status.success(),
        "failed with {}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// What it said on stderr; it must have failed with `code`.
pub fn expect_failure(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}
