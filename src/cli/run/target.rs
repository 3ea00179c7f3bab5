//! The process that signals are for: the first one of the container.
//!
//! The kernel spares the first process of a process namespace every signal that it has no handler for. Who presses
//! Ctrl-C means it, though: a signal that would end any other process, and that this one neither handles nor
//! ignores, ends it here.

use std::fs;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal};

use super::keeper::send;

/// SIGINT and SIGTERM that a process may handle before it is killed.
const CHANCES: u32 = 3;
const INTERRUPT: i32 = 2;
const TERMINATE: i32 = 15;

#[derive(Debug, Default)]
struct State {
    pid: Option<Pid>,
    /// It is to be killed as soon as it is there.
    doomed: bool,
    ended_by: Option<i32>,
    asked: u32,
}

/// The first process of the container, once it is there and as long as it is.
#[derive(Debug, Default)]
pub struct Target {
    state: Mutex<State>,
}

impl Target {
    /// It is there.
    pub fn set(&self, pid: Pid) {
        let mut state = self.state.lock();
        state.pid = Some(pid);
        if state.doomed {
            send(pid, Signal::KILL);
        }
    }

    /// It has ended: its number may be another's from now on.
    pub fn forget(&self) {
        self.state.lock().pid = None;
    }

    /// The signal that has ended it, where it was killed in its stead.
    pub fn ended_by(&self) -> Option<i32> {
        self.state.lock().ended_by
    }

    /// Ends it.
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.doomed = true;
        if let Some(pid) = state.pid {
            send(pid, Signal::KILL);
        }
    }

    /// Passes a signal on.
    pub fn signal(&self, number: i32) {
        let mut state = self.state.lock();
        if number == INTERRUPT || number == TERMINATE {
            state.asked += 1;
        }
        let Some(pid) = state.pid else {
            state.doomed = true;
            state.ended_by = Some(number);
            return;
        };
        if state.asked < CHANCES && minds(pid, number) {
            if let Some(signal) = Signal::from_named_raw(number) {
                send(pid, signal);
            }
            return;
        }
        state.ended_by = Some(number);
        send(pid, Signal::KILL);
    }
}

/// Whether a process handles or ignores a signal.
fn minds(pid: Pid, number: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    status.is_ok_and(|status| {
        ["SigCgt:", "SigIgn:"].iter().any(|key| {
            let mask = status.lines().find_map(|line| line.strip_prefix(key));
            let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
            mask.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
        })
    })
}
