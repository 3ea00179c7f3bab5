//! What a daemon may use, and what these tests share.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::fs::{Mode, OFlags, RawDir};

use super::support::Mounted;

/// Resident bytes that a daemon may use for each inode that the kernel knows.
const BYTES_PER_INODE: u64 = 300;
/// What an allocator may add, in percent.
const ALLOCATOR: u64 = 15;
/// Resident KiB beyond those for inodes: caches, listings, stacks, buffers.
const FIXED: u64 = 30 << 10;

static ALONE: Mutex<()> = Mutex::new(());

/// Lets the tests of this crate run one after another: each fills memory or disk.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A daemon's memory at the start, and the limits that follow.
pub struct Meter {
    pid: u32,
    rss: u64,
}

impl Meter {
    /// Looks at the daemon of a fresh mount; `None` for the kernel's overlayfs.
    pub fn of(mounted: &Mounted) -> Option<Meter> {
        mounted.daemon_pid().map(Meter::of_process)
    }

    pub fn of_process(pid: u32) -> Meter {
        Meter { pid, rss: rss(pid) }
    }

    /// Panics if the daemon uses more than it may with this many inodes known to the kernel.
    pub fn check(&self, inodes: u64, when: &str) {
        let (rss, fds, limit) = (rss(self.pid), fds(self.pid), fd_limit(self.pid));
        let per_inode = inodes * BYTES_PER_INODE * (100 + ALLOCATOR) / 100 / 1024;
        let most = self.rss + per_inode + FIXED;
        println!("{when}: {rss} KiB resident of {most} allowed, {fds} fds of {limit}");
        assert!(rss <= most, "{when}: {rss} KiB resident, {most} allowed");
        assert!(
            fds <= limit * 9 / 10,
            "{when}: {fds} descriptors open, the limit is {limit}"
        );
    }
}

/// Checks the daemon if there is one.
pub fn check(meter: Option<&Meter>, inodes: u64, when: &str) {
    if let Some(meter) = meter {
        meter.check(inodes, when);
    }
}

/// Resident KiB of a process.
fn rss(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap()
}

fn fds(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64
}

fn fd_limit(pid: u32) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok())
        .unwrap()
}

/// Runs a step and prints how long it took.
pub fn timed<T>(what: &str, step: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = step();
    println!("{what}: {:.2} s", start.elapsed().as_secs_f64());
    result
}

pub fn open_dir(path: impl AsRef<Path>) -> OwnedFd {
    let path = path.as_ref();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .unwrap_or_else(|e| panic!("can't open {}: {e}", path.display()))
}

/// A directory entry, with the offset of what comes after it.
pub struct Entry {
    pub name: String,
    pub next: u64,
    pub is_dir: bool,
}

/// The entries from the directory's offset on, at most `most` of them, without `.` and `..`.
/// After fewer than all, the directory's offset is somewhere ahead of the last.
pub fn entries(dir: &impl AsFd, most: usize) -> Vec<Entry> {
    let mut buffer = vec![MaybeUninit::uninit(); 32 << 10];
    let mut raw = RawDir::new(dir.as_fd(), &mut buffer);
    let mut all = Vec::new();
    while all.len() < most {
        let Some(entry) = raw.next() else { break };
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap();
        if name != "." && name != ".." {
            all.push(Entry {
                name: name.to_owned(),
                next: entry.next_entry_cookie(),
                is_dir: entry.file_type() == rustix::fs::FileType::Directory,
            });
        }
    }
    all
}

/// Makes `count` empty files `PREFIX0`… in a directory.
pub fn make_files(dir: &Path, prefix: &str, count: usize) {
    fs::create_dir_all(dir).unwrap();
    let fd = open_dir(dir);
    for i in 0..count {
        make_file(&fd, &format!("{prefix}{i}"));
    }
}

/// Makes an empty file.
pub fn make_file(dir: &impl AsFd, name: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from(0o644))
        .unwrap_or_else(|e| panic!("can't make {name}: {e}"));
}

/// Lets the kernel forget what it has cached of names, inodes and data.
pub fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}
