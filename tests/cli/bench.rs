//! Running the binary and looking at what it leaves behind.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{
    Layers, Scratch, is_mount_point, is_running, require_root, rovl_bin, wait_until, within,
};

/// Longer than anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// The outcome of a program that should have succeeded without a word on stderr.
    #[track_caller]
    pub fn silent(self) -> Outcome {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        self
    }

    /// Fails unless the program ended with `code` and said all of `words` on stderr.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
        assert!(
            !self.stderr.contains("panicked") && !self.stderr.contains("internal error"),
            "{self:?}"
        );
    }
}

/// Runs a program until its stdout and stderr are closed, as container engines do.
pub fn outcome(mut command: Command) -> Outcome {
    command.stdin(Stdio::null());
    let what = format!("{command:?}");
    let output = within(
        PATIENCE,
        &what.chars().take(300).collect::<String>(),
        move || command.output().unwrap(),
    );
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Layers with a file in each, and a place to run commands in.
pub struct Bench {
    pub layers: Layers,
    pub scratch: Scratch,
}

impl Bench {
    /// Two lowers, upper, work and a mount point. `file` is in the first lower, `other` in the second.
    pub fn new() -> Bench {
        require_root();
        let scratch = Scratch::new();
        let layers = scratch.layers(2);
        fs::write(layers.lowers[0].join("file"), "data\n").unwrap();
        fs::write(layers.lowers[1].join("other"), "more\n").unwrap();
        Bench { layers, scratch }
    }

    pub fn dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.scratch.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn merged(&self) -> &Path {
        &self.layers.merged
    }

    /// A command that runs the binary in the scratch directory.
    pub fn command<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Command {
        let mut command = Command::new(rovl_bin());
        command.current_dir(self.scratch.path()).args(args);
        command
    }

    /// Runs the binary to its end.
    pub fn rovl<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I) -> Outcome {
        outcome(self.command(args))
    }

    /// Runs the binary under another name.
    pub fn named<I: IntoIterator<Item: AsRef<OsStr>>>(&self, name: &str, args: I) -> Outcome {
        let mut command = self.command(args);
        command.arg0(name);
        outcome(command)
    }

    /// The flags of a writable mount of these layers, by relative paths.
    pub fn writable(&self) -> Vec<OsString> {
        words(&[
            "mount",
            "--lower",
            "lower0:lower1",
            "--upper",
            "upper",
            "--work",
            "work",
            "merged",
        ])
    }

    /// Mounts these layers writable and returns the daemon's process id.
    pub fn mount(&self) -> u32 {
        self.rovl(self.writable()).silent();
        self.daemon()
    }

    /// The process id that the daemon of `merged` tells.
    pub fn daemon(&self) -> u32 {
        let out = self.rovl(["stat", "--json", "merged"]).silent().stdout;
        let stat: serde_json::Value = serde_json::from_str(&out).unwrap();
        u32::try_from(stat["pid"].as_u64().unwrap()).unwrap()
    }

    /// Fails unless `merged` shows the lowers.
    #[track_caller]
    pub fn assert_served(&self) {
        assert_eq!(
            fs::read_to_string(self.merged().join("file")).unwrap(),
            "data\n"
        );
    }

    /// Fails unless neither the mount nor the daemon is left within `limit`.
    #[track_caller]
    pub fn assert_gone(&self, pid: u32, limit: Duration) {
        assert!(
            wait_until(limit, || !is_running(pid)),
            "the daemon {pid} still runs"
        );
        assert!(
            !is_mount_point(self.merged()),
            "the mount point is left behind"
        );
    }

    /// The line of mountinfo about `merged`.
    pub fn mount_line(&self) -> String {
        // Others mount in places whose names are no text meanwhile.
        let table = fs::read("/proc/self/mountinfo").unwrap();
        let table = String::from_utf8_lossy(&table);
        let merged = self.merged().to_str().unwrap();
        let line = table
            .lines()
            .rfind(|line| line.split(' ').nth(4) == Some(merged));
        line.unwrap_or_else(|| panic!("{merged} is not mounted"))
            .to_owned()
    }

    /// Runs a command that must be refused, and checks that it mounts and creates nothing.
    #[track_caller]
    pub fn refuses<I: IntoIterator<Item: AsRef<OsStr>>>(&self, args: I, code: i32, words: &[&str]) {
        let before = self.everything();
        let mounts = mounts_beneath(self.scratch.path());
        self.rovl(args).refused(code, words);
        assert_eq!(self.everything(), before, "something was created");
        assert_eq!(
            mounts_beneath(self.scratch.path()),
            mounts,
            "something was mounted"
        );
    }

    /// All paths in the scratch directory.
    fn everything(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut ahead = vec![self.scratch.path().to_owned()];
        while let Some(dir) = ahead.pop() {
            // A dead mount can't be listed.
            let Ok(entries) = fs::read_dir(&dir) else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    ahead.push(entry.path());
                }
                found.insert(entry.path());
            }
        }
        found
    }
}

fn mounts_beneath(path: &Path) -> usize {
    crate::support::mount_points_beneath(path).len()
}

/// Strings as arguments.
pub fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}
