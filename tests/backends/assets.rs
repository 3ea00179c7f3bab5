//! What the images are made of: made once, kept in the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::machine::scripts;

static MAKING: Mutex<()> = Mutex::new(());

/// The directory with busybox.tar, base.tar and debs/.
pub fn directory() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("backends");
    let done = dir.join("done");
    let _alone = MAKING.lock().unwrap();
    let script = fs::read(scripts().join("assets.sh")).unwrap();
    if fs::read(&done).is_ok_and(|made_by| made_by == script) {
        return dir;
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    let output = Command::new("bash")
        .arg(scripts().join("assets.sh"))
        .arg(&dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "making the images: {said}");
    fs::write(done, script).unwrap();
    dir
}
