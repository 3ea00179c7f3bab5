//! The system calls of a daemon, as strace sees them.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::scratch::Scratch;
use super::{require_program, wait_until};

/// One system call of the traced process.
#[derive(Clone, Debug)]
pub struct Call {
    /// The thread that made it.
    pub tid: u32,
    /// Position in the order of calls begun.
    pub start: usize,
    /// Position in the order of calls finished; comparable with `start`.
    pub end: usize,
    /// Its name.
    pub name: String,
    /// The whole line: name, arguments (file descriptors with their paths), result.
    pub text: String,
}

impl Call {
    /// Whether it returned an error.
    pub fn failed(&self) -> bool {
        self.text.contains(") = -1 ") || self.text.contains(") = ?")
    }

    /// The number that it returned, if it did and was not negative.
    pub fn result(&self) -> Option<u64> {
        let (_, result) = self.text.rsplit_once(" = ")?;
        result
            .split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    }
}

/// strace, attached to all threads of a process.
pub struct Trace {
    strace: Child,
    output: PathBuf,
    _scratch: Scratch,
}

impl Trace {
    /// Attaches to `pid` and traces `calls` (strace's `-e trace=`), from the return of this on.
    pub fn attach(pid: u32, calls: &str) -> Trace {
        require_program("strace");
        let scratch = Scratch::new();
        let output = scratch.join("strace");
        let strace = Command::new("strace")
            .args(["-f", "-y", "-s", "400", "-e", &format!("trace={calls}")])
            .args(["-e", "signal=none", "-p", &pid.to_string(), "-o"])
            .arg(&output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace");
        let trace = Trace {
            strace,
            output,
            _scratch: scratch,
        };
        assert!(
            wait_until(Duration::from_secs(10), || all_threads_traced(pid)),
            "strace can't attach to {pid}"
        );
        trace
    }

    /// Detaches and returns the calls in the order of their beginning.
    pub fn finish(mut self) -> Vec<Call> {
        self.detach();
        parse(&String::from_utf8_lossy(&fs::read(&self.output).unwrap()))
    }

    fn detach(&mut self) {
        if let Some(pid) = Pid::from_raw(self.strace.id().cast_signed()) {
            kill_process(pid, Signal::INT).ok();
        }
        self.strace.wait().ok();
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if matches!(self.strace.try_wait(), Ok(None)) {
            self.detach();
        }
    }
}

fn all_threads_traced(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.flatten().all(|task| {
        fs::read_to_string(task.path().join("status")).is_ok_and(|status| {
            status
                .lines()
                .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        })
    })
}

/// Joins `unfinished` and `resumed` halves, and numbers beginnings and ends.
fn parse(output: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for (position, line) in output.lines().enumerate() {
        let Some((tid, text)) = line.split_once(' ') else {
            continue;
        };
        let (Ok(tid), text) = (tid.parse(), text.trim_start()) else {
            continue;
        };
        if let Some(rest) = text.strip_prefix("<... ") {
            let open = calls.iter_mut().rev().find(|c| c.tid == tid);
            if let (Some(call), Some((_, tail))) = (open, rest.split_once("resumed>")) {
                call.end = position;
                call.text.push_str(tail);
            }
            continue;
        }
        let Some((name, _)) = text.split_once('(') else {
            continue;
        };
        let unfinished = text.strip_suffix("<unfinished ...>");
        calls.push(Call {
            tid,
            start: position,
            end: if unfinished.is_some() {
                usize::MAX
            } else {
                position
            },
            name: name.to_owned(),
            text: unfinished.unwrap_or(text).to_owned(),
        });
    }
    calls
}
