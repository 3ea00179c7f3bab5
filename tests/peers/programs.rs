//! The fuse-overlayfs programs: where they come from.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::support::Subject;

/// Whose program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 1.10, in C.
    One,
    /// 2.0.0, in Rust.
    Two,
}

static INSTALLING: Mutex<()> = Mutex::new(());

impl Version {
    /// The program; installs it if it has to.
    pub fn program(self) -> PathBuf {
        let program = match self {
            Version::One => PathBuf::from("/usr/bin/fuse-overlayfs"),
            Version::Two => std::env::var_os("ROVL_PEER_2").map_or_else(install, PathBuf::from),
        };
        let said = Command::new(&program)
            .arg("--version")
            .output()
            .unwrap_or_else(|e| panic!("can't run {}: {e}", program.display()));
        let said = String::from_utf8_lossy(&said.stdout).into_owned()
            + &String::from_utf8_lossy(&said.stderr);
        let wanted = match self {
            Version::One => "version 1.",
            Version::Two => "version 2.0.0",
        };
        let shown = program.display();
        assert!(
            said.contains(wanted),
            "{shown} is not fuse-overlayfs {wanted}: {said}"
        );
        program
    }

    pub fn subject(self) -> Subject {
        Subject::FuseOverlayfs(self.program())
    }
}

/// `cargo install`, once: the program stays in the target directory.
fn install() -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers");
    let program = root.join("bin/fuse-overlayfs");
    let _alone = INSTALLING.lock().unwrap();
    if !program.exists() {
        println!("installing fuse-overlayfs 2.0.0 in {}", root.display());
        let output = Command::new(env!("CARGO"))
            .args([
                "install",
                "--locked",
                "--quiet",
                "fuse-overlayfs@2.0.0",
                "--root",
            ])
            .arg(&root)
            .current_dir("/")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_TARGET_DIR")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "cargo can't install fuse-overlayfs 2.0.0: {said}"
        );
    }
    program
}
