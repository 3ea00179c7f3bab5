//! Makes a failing case smaller while it fails in the same way.

use std::time::{Duration, Instant};

use super::judge::Failure;
use super::model::{Case, Entry, Node};

/// Runs a case.
pub type Try<'a> = &'a dyn Fn(&mut Case) -> Result<(), Failure>;

/// A failing case that gets smaller.
pub struct Shrinker<'a> {
    run: Try<'a>,
    pub case: Case,
    pub failure: Failure,
    until: Instant,
    pub tries: usize,
}

impl<'a> Shrinker<'a> {
    pub fn new(run: Try<'a>, case: Case, failure: Failure, time: Duration) -> Self {
        Shrinker {
            run,
            case,
            failure,
            until: Instant::now() + time,
            tries: 0,
        }
    }

    /// Tries a smaller case and keeps it if it fails in the same way.
    fn attempt(&mut self, mut case: Case) -> bool {
        if Instant::now() > self.until {
            return false;
        }
        self.tries += 1;
        match (self.run)(&mut case) {
            Err(failure) if failure.class == self.failure.class => {
                if let Some(at) = failure.at {
                    case.ops.truncate(at + 1);
                }
                self.case = case;
                self.failure = failure;
                true
            }
            _ => false,
        }
    }

    /// Shrinks operations, then layers, then operations again.
    pub fn shrink(&mut self) {
        if let Some(at) = self.failure.at {
            self.case.ops.truncate(at + 1);
        }
        loop {
            let size = self.size();
            self.drop_chunks(
                |case| case.ops.len(),
                |case, from, to| drop(case.ops.drain(from..to)),
            );
            self.drop_chunks(
                |case| case.before.len(),
                |case, from, to| drop(case.before.drain(from..to)),
            );
            self.drop_layers();
            self.drop_entries();
            if self.size() == size || Instant::now() > self.until {
                return;
            }
        }
    }

    fn size(&self) -> usize {
        self.case.ops.len()
            + self.case.before.len()
            + self.case.lowers.iter().map(Vec::len).sum::<usize>()
    }

    /// Drops chunks, from the end, of half the length down to one.
    fn drop_chunks(&mut self, len: fn(&Case) -> usize, remove: fn(&mut Case, usize, usize)) {
        let mut chunk = len(&self.case).div_ceil(2).max(1);
        loop {
            let mut to = len(&self.case);
            while to > 0 {
                let from = to.saturating_sub(chunk);
                let mut case = self.case.clone();
                remove(&mut case, from, to);
                self.attempt(case);
                to = from.min(len(&self.case));
            }
            if chunk == 1 {
                return;
            }
            chunk = chunk.div_ceil(2);
        }
    }

    fn drop_layers(&mut self) {
        for i in (0..self.case.lowers.len()).rev() {
            if self.case.lowers.len() > 1 {
                let mut case = self.case.clone();
                case.lowers.remove(i);
                self.attempt(case);
            }
        }
    }

    /// Drops entries with what is below them, then attributes.
    fn drop_entries(&mut self) {
        for layer in 0..self.case.lowers.len() {
            let mut i = self.case.lowers[layer].len();
            while i > 1 {
                i = (i - 1).min(self.case.lowers[layer].len() - 1);
                let mut case = self.case.clone();
                let path = case.lowers[layer][i].path.clone();
                case.lowers[layer].retain(|entry| !depends(entry, &path));
                if self.attempt(case) || i == 0 {
                    continue;
                }
                let mut case = self.case.clone();
                let entry = &mut case.lowers[layer][i];
                if !entry.xattrs.0.is_empty() {
                    entry.xattrs.0.clear();
                    self.attempt(case);
                }
            }
        }
    }
}

/// Whether `entry` is `path`, below it, or another name of it.
fn depends(entry: &Entry, path: &[u8]) -> bool {
    let below = |p: &[u8]| p == path || (p.starts_with(path) && p.get(path.len()) == Some(&b'/'));
    below(&entry.path) || matches!(&entry.node, Node::Link(first) if below(first))
}
