//! One of the processes that work on the tree: its loop, and what all its operations use.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::board::Board;
use super::contended::Seen;
use super::holders::Holder;
use super::layout::SHARED;
use super::model::{Id, Model};
use super::random::Random;

/// Own names at which a worker prefers removing to making.
const MANY_NAMES: usize = 220;

/// What a worker is told by its parent, by environment variables.
pub struct Orders {
    pub w: usize,
    /// The tree under test.
    pub root: PathBuf,
    /// The board, logs and manifests; outside the tree.
    pub control: PathBuf,
    pub time: Duration,
    pub seed: u64,
    /// The subject is the kernel's overlayfs or a peer: it isn't held to what the kernel gets
    /// wrong. A file that was opened read-only in a lower stays stale after copy-up; an open file
    /// without names has links; d_ino of a hard link in a pure upper directory is another.
    pub lax: bool,
    /// Races a second.
    pub races: u32,
}

/// A worker: its model of its own names, and its open files.
pub struct Worker {
    pub orders: Orders,
    pub root: OwnedFd,
    pub model: Model,
    pub holders: Vec<Holder>,
    pub random: Random,
    pub board: Board,
    pub seen: Seen,
    log: File,
    next_name: u64,
}

/// Runs a worker to its end; the panic of a failed check goes to its log and stops all others.
pub fn run(orders: Orders) {
    let log_path = orders.control.join(format!("log.{}", orders.w));
    let board = Board::open(&orders.control.join("board"));
    let result = catch_unwind(AssertUnwindSafe(|| Worker::new(orders).work()));
    if let Err(panic) = result {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "panic".to_owned());
        let first = !board.aborted();
        board.abort();
        let mut log = OpenOptions::new().append(true).open(log_path).unwrap();
        writeln!(
            log,
            "FAILED{}: {message}",
            if first { " FIRST" } else { "" }
        )
        .unwrap();
        std::process::exit(1);
    }
}

impl Worker {
    fn new(orders: Orders) -> Worker {
        rustix::process::umask(Mode::empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let log_path = orders.control.join(format!("log.{}", orders.w));
        Worker {
            root: fs::open(&orders.root, flags, Mode::empty()).unwrap(),
            model: Model::new(orders.w),
            holders: Vec::new(),
            random: Random::new(orders.seed * 100 + orders.w as u64 + 1),
            board: Board::open(&orders.control.join("board")),
            seen: Seen::new(orders.w),
            log: OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(log_path)
                .unwrap(),
            next_name: 0,
            orders,
        }
    }

    fn work(mut self) {
        self.board.barrier();
        let start = Instant::now();
        let races = self.orders.time.as_millis() as u32 * self.orders.races / 1000;
        let mut operations = 0_u64;
        for race in 0..races {
            let next = start + self.orders.time * (race + 1) / races;
            while Instant::now() < next {
                assert!(!self.board.aborted(), "another worker failed");
                self.operation();
                operations += 1;
            }
            self.race(race);
        }
        self.finish(operations);
    }

    fn operation(&mut self) {
        let names = self.model.all().map(|(_, inode)| inode.nlink).sum::<u64>();
        let removing = names as usize > MANY_NAMES && self.random.one_in(2);
        match if removing { 26 } else { self.random.below(60) } {
            0..=4 => self.create(),
            5..=9 => self.write(),
            10..=15 => self.check_any(),
            16..=17 => self.truncate(),
            18..=20 => self.link(),
            21..=23 => self.mkdir(),
            24..=25 => self.rmdir(),
            26..=29 => self.unlink(),
            30..=34 => self.rename(),
            35..=36 => self.symlink(),
            37 => self.chmod(),
            38 => self.set_xattr(),
            39 => self.absent(),
            40..=42 => self.list_any(),
            43 => self.list_slowly(),
            44..=49 => self.use_holder(),
            _ => self.contended(),
        }
    }

    /// All that it owns is checked once more and written down for the parent.
    fn finish(mut self, operations: u64) {
        self.note("finish");
        self.check_all();
        while let Some(holder) = self.holders.pop() {
            self.check_holder(&holder);
            self.let_go(holder);
        }
        self.board.barrier();
        let path = self
            .orders
            .control
            .join(format!("manifest.{}", self.orders.w));
        std::fs::write(path, self.manifest()).unwrap();
        self.note(&format!("DONE {operations} operations"));
    }

    /// Writes what is about to be done to the log, so that it survives SIGBUS and SIGKILL.
    pub fn note(&mut self, what: &str) {
        writeln!(self.log, "{what}").unwrap();
    }

    /// A name of this worker's that is likely, not certain, to be free.
    pub fn some_name(&mut self) -> String {
        self.next_name = (self.next_name + 1) % 48;
        let filler = if self.random.one_in(20) {
            "-".repeat(200)
        } else {
            String::new()
        };
        format!("w{}.n{}{filler}", self.orders.w, self.next_name)
    }

    /// One of the directories: a shared one or an own one.
    pub fn some_dir(&mut self) -> Id {
        if self.random.one_in(2) {
            return self.random.below(SHARED);
        }
        let mut dirs: Vec<Id> = self.all_dirs();
        dirs.sort_unstable();
        self.random.pick(&dirs).unwrap_or(0)
    }

    /// All directories that have a path.
    pub fn all_dirs(&self) -> Vec<Id> {
        let dirs = self
            .model
            .all()
            .filter(|(id, inode)| self.model.is_dir(*id) && (*id < SHARED || inode.nlink > 0));
        dirs.map(|(id, _)| id).collect()
    }

    /// One of the names that have an object of a kind.
    pub fn some_child(&mut self, wanted: impl Fn(&Model, Id) -> bool) -> Option<(Id, String, Id)> {
        for _ in 0..20 {
            let dir = self.some_dir();
            let names: Vec<(&String, Id)> = self
                .model
                .children(dir)
                .iter()
                .filter(|(_, id)| wanted(&self.model, **id))
                .map(|(name, id)| (name, *id))
                .collect();
            if let Some((name, id)) = self.random.pick(&names) {
                return Some((dir, name.clone(), id));
            }
        }
        None
    }

    /// Path of a name in a directory, relative to the root of the tree.
    pub fn path(&self, dir: Id, name: &str) -> String {
        format!("{}/{name}", self.model.path(dir))
    }

    pub fn open(&self, path: &str, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        fs::openat(&self.root, path, flags | OFlags::CLOEXEC, Mode::from(mode))
    }

    pub fn stat(&self, path: &str) -> Result<Stat, Errno> {
        fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Bytes that tell who wrote them and when.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut random = Random::new(self.random.next());
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&random.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// Panics unless a call did what the model says; its value if it was to succeed.
pub fn expect<T>(what: &str, got: Result<T, Errno>, want: Result<(), Errno>) -> Option<T> {
    match (got, want) {
        (Ok(value), Ok(())) => Some(value),
        (Err(got), Err(want)) if got == want => None,
        (Ok(_), Err(want)) => panic!("{what}: succeeded, want {want:?}"),
        (Err(got), want) => panic!("{what}: {got:?}, want {want:?}"),
    }
}

/// Panics unless both are the same, and says where bytes first differ.
pub fn expect_bytes(what: &str, got: &[u8], want: &[u8]) {
    if got == want {
        return;
    }
    let at = got.iter().zip(want).take_while(|(a, b)| a == b).count();
    let near = |bytes: &[u8]| format!("{:02x?}", &bytes[at..bytes.len().min(at + 16)]);
    let zeroes = got[at..].iter().take_while(|byte| **byte == 0).count();
    panic!(
        "{what}: {} bytes, want {}; they differ from offset {at}: {}, want {} ({zeroes} zeroes)",
        got.len(),
        want.len(),
        near(got),
        near(want),
    );
}
