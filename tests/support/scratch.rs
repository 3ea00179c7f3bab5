//! Scratch directories that clean up after themselves, and the layer directories within.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::UnmountFlags;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A fresh directory under /var/tmp (a real file system), removed on drop, with whatever is still
/// mounted beneath it, also when the test panics. `ROVL_TEST_DIR` names another place.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes the directory. It can be entered by every user.
    pub fn new() -> Scratch {
        let base = std::env::var_os("ROVL_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
        let name = format!(
            "rovl-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = Path::new(&base).join(name);
        fs::create_dir(&path).unwrap_or_else(|e| panic!("can't make {}: {e}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Scratch { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path beneath it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Layer directories in it: `count` lowers, an upper, a work directory, a mount point.
    pub fn layers(&self, count: usize) -> Layers {
        Layers::new(&self.path, count)
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        unmount_beneath(&self.path);
        if fs::remove_dir_all(&self.path).is_ok() {
            return;
        }
        // Tests leave immutable entries on purpose.
        for flag in ["-i", "-a"] {
            Command::new("chattr")
                .args(["-R", "-f", flag])
                .arg(&self.path)
                .output()
                .ok();
        }
        if let Err(e) = fs::remove_dir_all(&self.path) {
            eprintln!("can't remove {}: {e}", self.path.display());
        }
    }
}

/// Lazily unmounts everything beneath `path` (and on it), last mounted first.
pub fn unmount_beneath(path: &Path) {
    for point in mount_points_beneath(path).iter().rev() {
        if let Err(e) = rustix::mount::unmount(point, UnmountFlags::DETACH) {
            eprintln!("can't unmount {}: {e}", point.display());
        }
    }
}

/// The mount points at or beneath `path`, in the order of mounting.
pub fn mount_points_beneath(path: &Path) -> Vec<PathBuf> {
    let table = fs::read("/proc/self/mountinfo").unwrap();
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|point| PathBuf::from(std::ffi::OsStr::from_bytes(point)))
        .filter(|point| point.starts_with(path))
        .collect()
}

/// The directories of an overlay mount.
#[derive(Clone, Debug)]
pub struct Layers {
    /// Lowers, top to bottom.
    pub lowers: Vec<PathBuf>,
    /// The upper directory.
    pub upper: PathBuf,
    /// The work directory.
    pub work: PathBuf,
    /// The mount point.
    pub merged: PathBuf,
}

impl Layers {
    /// Makes `lower0` (the topmost) … `lowerN`, `upper`, `work` and `merged` in `base`.
    pub fn new(base: &Path, count: usize) -> Layers {
        let make = |name: String| {
            let path = base.join(name);
            fs::create_dir_all(&path)
                .unwrap_or_else(|e| panic!("can't make {}: {e}", path.display()));
            path
        };
        Layers {
            lowers: (0..count).map(|i| make(format!("lower{i}"))).collect(),
            upper: make("upper".into()),
            work: make("work".into()),
            merged: make("merged".into()),
        }
    }

    /// The topmost lower.
    pub fn lower(&self) -> &Path {
        &self.lowers[0]
    }

    /// The same lowers and mount point with `upper` and `work` made in another place.
    pub fn with_upper_in(mut self, base: &Path) -> Layers {
        self.upper = base.join("upper");
        self.work = base.join("work");
        fs::create_dir_all(&self.upper).unwrap();
        fs::create_dir_all(&self.work).unwrap();
        self
    }

    /// The same upper with its lowers made anew in another place.
    pub fn with_lowers_in(mut self, base: &Path, count: usize) -> Layers {
        self.lowers = (0..count).map(|i| base.join(format!("lower{i}"))).collect();
        for lower in &self.lowers {
            fs::create_dir_all(lower).unwrap();
        }
        self
    }

    /// `lowerdir`'s value: the lowers joined with colons.
    pub fn lowerdir(&self) -> String {
        let lowers: Vec<&str> = self.lowers.iter().map(|l| l.to_str().unwrap()).collect();
        lowers.join(":")
    }
}
