//! What the workers share beside the tree: counters, a barrier, and the flag that ends the run.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::layout::{GROUPS, MOVING, TOKENS, WORKERS};
use super::mapping::Mapping;

const ABORT: usize = 0;
const ARRIVED: usize = 1;
const GENERATION: usize = 2;
const RESULTS: usize = 8;
const TOKEN_IN: usize = RESULTS + WORKERS;
const TOKEN_OUT: usize = TOKEN_IN + TOKENS;
const GROUP_LINKS: usize = TOKEN_OUT + TOKENS;
const PLACES: usize = GROUP_LINKS + GROUPS;
const CELLS: usize = PLACES + MOVING;

/// How long a worker waits for the others before it takes them for hung.
const PATIENCE: Duration = Duration::from_secs(90);

/// Counters in a file outside the tree under test, mapped by every worker.
pub struct Board {
    cells: Mapping,
}

impl Board {
    /// Opens the board, and makes it first if need be.
    pub fn open(path: &Path) -> Board {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap();
        file.set_len(CELLS as u64 * 8).unwrap();
        Board {
            cells: Mapping::new(&file, CELLS * 8, true).unwrap(),
        }
    }

    /// Makes all workers stop: one has failed.
    pub fn abort(&self) {
        self.cells.cell(ABORT).store(1, SeqCst);
    }

    /// Whether a worker has failed.
    pub fn aborted(&self) -> bool {
        self.cells.cell(ABORT).load(SeqCst) != 0
    }

    /// Waits until all workers are here.
    pub fn barrier(&self) {
        let generation = self.cells.cell(GENERATION);
        let arrived = self.cells.cell(ARRIVED);
        let mine = generation.load(SeqCst);
        if arrived.fetch_add(1, SeqCst) + 1 == WORKERS as u64 {
            arrived.store(0, SeqCst);
            generation.store(mine + 1, SeqCst);
            return;
        }
        let start = Instant::now();
        let mut spins = 0_u32;
        while generation.load(SeqCst) == mine {
            spins += 1;
            if spins < 200 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(100));
            }
            assert!(!self.aborted(), "another worker failed");
            assert!(start.elapsed() < PATIENCE, "another worker hangs");
        }
    }

    /// What worker `w` got in the current race; see `races.rs`.
    pub fn result(&self, w: usize) -> &AtomicU64 {
        self.cells.cell(RESULTS + w)
    }

    /// How often an object came to be at contended name `k`.
    pub fn token_in(&self, k: usize) -> &AtomicU64 {
        self.cells.cell(TOKEN_IN + k)
    }

    /// How often the object at contended name `k` went away.
    pub fn token_out(&self, k: usize) -> &AtomicU64 {
        self.cells.cell(TOKEN_OUT + k)
    }

    /// Names of the hard-link group `g`.
    pub fn group_links(&self, g: usize) -> &AtomicU64 {
        self.cells.cell(GROUP_LINKS + g)
    }

    /// Where moving directory `m` is: a count that is odd while it moves; half of it, modulo
    /// the number of places, is the place.
    pub fn place(&self, m: usize) -> &AtomicU64 {
        self.cells.cell(PLACES + m)
    }
}
