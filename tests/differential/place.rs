//! The directories of a running case, and threads that work in its trees.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::driver::Driver;
use super::judge::{Failure, setup};
use super::layers::{self, Made};
use super::model::Case;
use super::mounts::{Dirs, Disks};
use super::outcome::Role;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The second that it is.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64)
}

/// The directories of a running case; removed when dropped.
pub struct Place {
    pub lower_root: PathBuf,
    pub upper_root: PathBuf,
    pub subject: Dirs,
    pub kernel: Dirs,
    pub plain: PathBuf,
    pub plain_view: PathBuf,
    pub hidden: PathBuf,
}

impl Place {
    pub fn new(disks: &Disks, case: &Case) -> Made<Place> {
        let (lower, upper) = disks.places(case.disk);
        let name = format!("c{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let (lower_root, upper_root) = (lower.join(&name), upper.join(&name));
        for root in [&lower_root, &upper_root] {
            fs::create_dir_all(root).map_err(|error| format!("{}: {error}", root.display()))?;
        }
        let lowers: Vec<PathBuf> = (0..case.lowers.len())
            .map(|i| lower_root.join(format!("l{i}")))
            .collect();
        let dirs = |which: &str| -> Made<Dirs> {
            let path = |part: &str| upper_root.join(format!("{which}{part}"));
            let dirs = Dirs {
                lowers: lowers.clone(),
                upper: path("u"),
                work: path("w"),
                merged: path("m"),
            };
            for dir in [&dirs.upper, &dirs.work, &dirs.merged] {
                fs::create_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            }
            Ok(dirs)
        };
        let place = Place {
            subject: dirs("s")?,
            kernel: dirs("k")?,
            plain: upper_root.join("p"),
            plain_view: upper_root.join("pv"),
            hidden: upper_root.join("ph"),
            lower_root,
            upper_root,
        };
        fs::create_dir(&place.plain_view).map_err(|error| error.to_string())?;
        for (path, entries) in lowers.iter().zip(&case.lowers) {
            layers::make(path, entries)?;
        }
        // The root of an upper takes part in the merge like any directory.
        if let Some(root) = case.lowers.first().and_then(|layer| layer.first()) {
            for upper in [&place.subject.upper, &place.kernel.upper] {
                layers::root_attributes(upper, root)?;
            }
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for root in [&self.lower_root, &self.upper_root] {
            if let Err(error) = fs::remove_dir_all(root)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                println!("remove {}: {error}", root.display());
            }
        }
    }
}

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `work` in the tree `root` on a thread of its own; `None` if it does not end in time.
pub fn in_tree<X: Send + 'static>(
    root: &Path,
    role: Role,
    t0: i64,
    patience: Duration,
    work: impl FnOnce(&mut Driver) -> X + Send + 'static,
) -> Made<Option<X>> {
    let (sender, receiver) = mpsc::channel();
    let root = root.to_path_buf();
    let thread = std::thread::spawn(move || {
        let result = Driver::enter(&root, role, t0).and_then(|mut driver| {
            let result = work(&mut driver);
            driver.leave()?;
            Ok(result)
        });
        // Nobody listens any more after a timeout.
        drop(sender.send(result));
    });
    match receiver.recv_timeout(patience) {
        Ok(result) => {
            thread.join().map_err(|_| "a driver panicked".to_string())?;
            result.map(Some).map_err(|error| format!("driver: {error}"))
        }
        Err(RecvTimeoutError::Disconnected) => {
            let text = match thread.join() {
                Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
                Ok(()) => String::new(),
            };
            Err(format!("a driver panicked: {text}"))
        }
        Err(RecvTimeoutError::Timeout) => Ok(None),
    }
}

/// Like [`in_tree`], for trees that must not hang.
pub fn in_own_tree<X: Send + 'static>(
    root: &Path,
    role: Role,
    t0: i64,
    work: impl FnOnce(&mut Driver) -> X + Send + 'static,
) -> Result<X, Failure> {
    match setup(in_tree(root, role, t0, PATIENCE * 5, work))? {
        Some(result) => Ok(result),
        None => Err(Failure::new("setup", format!("{role:?} hangs"))),
    }
}
