//! Which of the serving threads look for requests, and which rest.
//!
//! A thread that sleeps in a read of the device is woken by the kernel for the next request, also when another
//! one is awake and about to read it: on a machine with few CPUs the one that asked is pushed off its CPU for
//! nothing. So one thread at a time *watches* the device; who finds it watched after an answer rests on a
//! condition variable, which costs nothing. The watch ends with a request, and whoever is done first takes it.
//!
//! Two things bring resting threads back:
//!
//! - The *deputy*, one of them, looks every [`TICK`] while requests come: when none was taken since, and nobody
//!   watches, all others are at work that takes long, and it takes the watch. One slow request holds the others up
//!   for two ticks at most.
//! - Who finds one request after the other without a pause calls for help. A helper that finds nothing makes the
//!   next call later: with one client there is nothing to help with.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::idle::Wakefulness;

/// How often the deputy looks.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a request after which the deputy sleeps until the next one comes.
const IDLE_TICKS: u32 = 50;
/// Requests in a row, found without a pause, after which help is called for: at first, at least and at most.
const BACKLOG: u32 = 8;
const LEAST_BACKLOG: u32 = 2;
const MOST_BACKLOG: u32 = 1024;

/// What the serving threads know of each other.
pub(super) struct Crew {
    /// Is somebody waiting for requests?
    watched: AtomicBool,
    /// Requests taken since the start.
    taken: AtomicU64,
    /// Does the deputy sleep without looking?
    asleep: AtomicBool,
    backlog: AtomicU32,
    off: Mutex<Off>,
    /// Where those who rest wait.
    bench: Condvar,
    /// Where the deputy waits.
    post: Condvar,
}

#[derive(Default)]
struct Off {
    /// Threads on the bench.
    resting: usize,
    has_deputy: bool,
    /// Threads that were called and did not come yet.
    called: usize,
    /// The mount is over.
    over: bool,
    /// What the deputy's ticks keep awake.
    awake: Option<Wakefulness>,
}

/// Why a thread rests no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Back {
    /// Somebody called for help.
    Called,
    /// Everybody else is busy.
    Needed,
    /// The mount is over.
    Over,
}

impl Crew {
    pub(super) fn new(awake: Option<Wakefulness>) -> Crew {
        let off = Off {
            awake,
            ..Off::default()
        };
        Crew {
            watched: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            backlog: AtomicU32::new(BACKLOG),
            off: Mutex::new(off),
            bench: Condvar::new(),
            post: Condvar::new(),
        }
    }

    /// Takes the watch; `false`: somebody has it.
    pub(super) fn take_watch(&self) -> bool {
        !self.watched.swap(true, Ordering::SeqCst)
    }

    /// Gives the watch back.
    pub(super) fn leave_watch(&self) {
        self.watched.store(false, Ordering::SeqCst);
        // Either this sees that the deputy sleeps, or the deputy, before it does, that nobody watches.
        if self.asleep.load(Ordering::SeqCst) {
            let _off = self.off.lock();
            self.asleep.store(false, Ordering::SeqCst);
            self.post.notify_one();
        }
    }

    /// A request was taken, the `in_a_row`th without a pause.
    pub(super) fn took(&self, in_a_row: u32) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        if in_a_row > 0 && in_a_row.is_multiple_of(self.backlog.load(Ordering::Relaxed)) {
            self.call();
        }
    }

    /// Whether a thread that was called found something to do.
    pub(super) fn helped(&self, found: bool) {
        let backlog = self.backlog.load(Ordering::Relaxed);
        let next = match found {
            true => backlog / 2,
            false => backlog.saturating_mul(2),
        };
        let next = next.clamp(LEAST_BACKLOG, MOST_BACKLOG);
        self.backlog.store(next, Ordering::Relaxed);
    }

    fn call(&self) {
        let mut off = self.off.lock();
        let deputies = usize::from(off.has_deputy);
        if off.called >= off.resting + deputies {
            return;
        }
        off.called += 1;
        match off.resting {
            0 => self.post.notify_one(),
            _ => self.bench.notify_one(),
        };
    }

    /// The mount is over: nobody rests any more.
    pub(super) fn end(&self) {
        self.off.lock().over = true;
        self.bench.notify_all();
        self.post.notify_all();
    }

    /// Rests until there is a reason not to.
    pub(super) fn rest(&self) -> Back {
        let mut off = self.off.lock();
        loop {
            if let Some(back) = off.reason() {
                return back;
            }
            if off.has_deputy {
                off.resting += 1;
                self.bench.wait(&mut off);
                off.resting -= 1;
                continue;
            }
            off.has_deputy = true;
            let back = self.stand_in(&mut off);
            off.has_deputy = false;
            if off.resting == 0 {
                off.keep_awake(None);
            }
            // Somebody else is the deputy from here on.
            self.bench.notify_one();
            return back;
        }
    }

    /// What the deputy does.
    fn stand_in(&self, off: &mut MutexGuard<'_, Off>) -> Back {
        let (mut seen, mut idle) = (self.taken.load(Ordering::Relaxed), 0);
        loop {
            if let Some(back) = off.reason() {
                return back;
            }
            if idle < IDLE_TICKS {
                self.post.wait_for(off, TICK);
            } else {
                off.keep_awake(None);
                self.asleep.store(true, Ordering::SeqCst);
                if self.watched.load(Ordering::SeqCst) {
                    self.post.wait(off);
                }
                self.asleep.store(false, Ordering::SeqCst);
                idle = 0;
                seen = self.taken.load(Ordering::Relaxed);
                continue;
            }
            let taken = self.taken.load(Ordering::Relaxed);
            off.keep_awake(Some(taken.wrapping_sub(seen)));
            if taken != seen {
                (seen, idle) = (taken, 0);
            } else if self.watched.load(Ordering::SeqCst) {
                idle += 1;
            } else {
                return Back::Needed;
            }
        }
    }
}

impl Off {
    /// So many requests came since the last tick; `None`: nobody counts them.
    fn keep_awake(&mut self, requests: Option<u64>) {
        match (&mut self.awake, requests) {
            (Some(awake), Some(requests)) => awake.tick(requests),
            (Some(awake), None) => awake.rest(),
            (None, _) => {}
        }
    }

    fn reason(&mut self) -> Option<Back> {
        if self.over {
            return Some(Back::Over);
        }
        self.called = self.called.checked_sub(1)?;
        Some(Back::Called)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// Waits for something that another thread does soon.
    fn until(what: impl Fn() -> bool) {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(20), "it never came");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn resting(crew: &Crew) -> usize {
        let off = crew.off.lock();
        off.resting + usize::from(off.has_deputy)
    }

    #[test]
    fn one_thread_watches() {
        let crew = Crew::new(None);
        assert!(crew.take_watch());
        assert!(!crew.take_watch());
        crew.leave_watch();
        assert!(crew.take_watch());
    }

    #[test]
    fn the_deputy_comes_when_the_others_are_busy() {
        let crew = Arc::new(Crew::new(None));
        assert!(crew.take_watch());
        let of_deputy = Arc::clone(&crew);
        let deputy = thread::spawn(move || of_deputy.rest());
        until(|| crew.asleep.load(Ordering::SeqCst));
        crew.leave_watch();
        crew.took(0);
        assert_eq!(deputy.join().unwrap(), Back::Needed);
    }

    #[test]
    fn a_call_brings_one_thread_and_the_end_all() {
        let crew = Arc::new(Crew::new(None));
        assert!(crew.take_watch());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let crew = Arc::clone(&crew);
                thread::spawn(move || crew.rest())
            })
            .collect();
        until(|| resting(&crew) == 4);
        crew.took(BACKLOG);
        until(|| resting(&crew) == 3);
        crew.end();
        let backs: Vec<Back> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        let called = backs.iter().filter(|b| **b == Back::Called).count();
        assert_eq!((called, backs.len()), (1, 4), "{backs:?}");
        assert_eq!(crew.rest(), Back::Over);
    }

    #[test]
    fn help_that_finds_nothing_is_called_less_often() {
        let crew = Crew::new(None);
        for _ in 0..20 {
            crew.helped(false);
        }
        assert_eq!(crew.backlog.load(Ordering::Relaxed), MOST_BACKLOG);
        for _ in 0..20 {
            crew.helped(true);
        }
        assert_eq!(crew.backlog.load(Ordering::Relaxed), LEAST_BACKLOG);
    }

    #[test]
    fn nobody_is_called_who_is_not_there() {
        let crew = Crew::new(None);
        crew.took(BACKLOG);
        assert_eq!(crew.off.lock().called, 0);
    }
}
