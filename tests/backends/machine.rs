//! A machine: an engine with one driver, as root or without, in a mount and a pid namespace of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::assets;
use crate::programs::Version;
use crate::support::{Scratch, rovl_bin};

/// Seconds that one scenario may take.
const LIMIT: u64 = 600;
/// What `timeout` returns for what took longer.
const TIMED_OUT: i32 = 124;

/// The engine whose commands the scenarios are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Podman,
    Buildah,
    Dockerd,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Engine::Podman => "podman",
            Engine::Buildah => "buildah",
            Engine::Dockerd => "dockerd",
        }
    }

    /// Programs without which there is nothing to test.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Engine::Podman => &["podman", "crun", "newuidmap"],
            Engine::Buildah => &["buildah", "crun", "newuidmap"],
            Engine::Dockerd => &["dockerd", "docker", "crun", "newuidmap", "rootlesskit"],
        }
    }

    /// The scenarios, in the order in which they run: later ones use the images of earlier ones.
    pub fn scenarios(self) -> &'static [&'static str] {
        match self {
            Engine::Podman => &[
                "import",
                "run",
                "exec",
                "whiteouts",
                "commit",
                "diff",
                "cp",
                "save-load",
                "read-only",
                "userns",
                "volumes",
                "two-at-once",
                "prune",
                "killed",
                "restarted",
                "lazy",
                "volatile",
                "switch",
                "build",
                "git",
                "nothing-left",
            ],
            Engine::Buildah => &[
                "import",
                "run",
                "whiteouts",
                "commit",
                "cp",
                "mount",
                "save-load",
                "two-at-once",
                "prune",
                "killed",
                "build",
                "nothing-left",
            ],
            Engine::Dockerd => &[
                "import",
                "run",
                "exec",
                "whiteouts",
                "commit",
                "diff",
                "cp",
                "save-load",
                "read-only",
                "volumes",
                "two-at-once",
                "prune",
                "killed",
                "restarted",
                "lazy",
                "build",
                "git",
                "nothing-left",
            ],
        }
    }
}

/// Whose engine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    Root,
    /// A user with subordinate ids.
    Rootless,
}

impl Privilege {
    pub fn name(self) -> &'static str {
        match self {
            Privilege::Root => "root",
            Privilege::Rootless => "rootless",
        }
    }
}

/// What makes the mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Kernel,
    FuseOverlayfs,
    Rovl,
}

impl Driver {
    pub const ALL: [Driver; 3] = [Driver::Kernel, Driver::FuseOverlayfs, Driver::Rovl];

    pub fn name(self) -> &'static str {
        match self {
            Driver::Kernel => "kernel",
            Driver::FuseOverlayfs => "fuse-overlayfs",
            Driver::Rovl => "rovl",
        }
    }

    fn program(self) -> PathBuf {
        match self {
            Driver::Kernel => PathBuf::new(),
            Driver::FuseOverlayfs => Version::Two.program(),
            Driver::Rovl => rovl_bin(),
        }
    }
}

/// How a scenario went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit code, -1 when it was not run.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub millis: u64,
}

impl Outcome {
    pub fn timed_out(&self) -> bool {
        self.code == TIMED_OUT
    }
}

/// Where the scripts are.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/backends")
}

/// Runs `scenarios` on a fresh machine, and returns how each went.
pub fn run(
    engine: Engine,
    privilege: Privilege,
    driver: Driver,
    scenarios: &[&'static str],
) -> BTreeMap<&'static str, Outcome> {
    let scratch = Scratch::new();
    let out = scratch.join("out");
    // Its own copy: whoever runs the scenarios must be able to read them.
    let copy = scratch.join("scripts");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(scripts()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"),
        copy.join("README.md"),
    )
    .unwrap();
    let child = Command::new("unshare")
        .args(
            "--mount --pid --fork --kill-child --mount-proc --propagation private bash".split(' '),
        )
        .arg(copy.join("machine.sh"))
        .args(scenarios)
        .env("ENGINE", engine.name())
        .env("PRIVILEGE", privilege.name())
        .env("DRIVER", driver.name())
        .env("PROGRAM", driver.program())
        .env("DIR", scratch.path())
        .env("ASSETS", assets::directory())
        .env("OUT", &out)
        .env("SCRIPTS", &copy)
        .env("LIMIT", LIMIT.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(scratch.join("machine.err")).unwrap())
        .spawn()
        .unwrap();
    wait(child, LIMIT * scenarios.len() as u64);
    let said = fs::read_to_string(scratch.join("machine.err")).unwrap();
    let outcomes = scenarios
        .iter()
        .map(|name| (*name, outcome(&out, name, &said)))
        .collect();
    if std::env::var_os("ROVL_BACKENDS_KEEP").is_some() {
        println!("kept: {}", scratch.path().display());
        std::mem::forget(scratch);
    }
    outcomes
}

fn wait(mut child: std::process::Child, seconds: u64) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(seconds) {
            // With it ends all that runs in its pid namespace.
            child.kill().unwrap();
            child.wait().unwrap();
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn outcome(out: &Path, name: &str, machine: &str) -> Outcome {
    let read = |kind: &str| fs::read(out.join(format!("{name}.{kind}"))).ok();
    let text = |kind: &str| {
        read(kind).map_or_else(String::new, |bytes| {
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    match text("rc").trim().parse() {
        Ok(code) => Outcome {
            code,
            stdout: text("out"),
            stderr: text("err"),
            millis: text("time").trim().parse().unwrap_or(0),
        },
        Err(_) => Outcome {
            code: -1,
            stdout: String::new(),
            stderr: format!("not run: {machine}"),
            millis: 0,
        },
    }
}
