//! Running programs, with a limit of time, so that neither a hung program nor a hung mount keeps the bench.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

/// Someone wants the bench to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What is being waited for.
static WATCHED: Mutex<Watched> = Mutex::new(Watched {
    deadline: None,
    program: None,
    daemon: None,
    expired: false,
});

struct Watched {
    deadline: Option<Instant>,
    /// The leader of a process group that has not been reaped yet.
    program: Option<Pid>,
    /// The daemon of the mount that is being measured.
    daemon: Option<Pid>,
    expired: bool,
}

fn watched() -> MutexGuard<'static, Watched> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the threads that look at signals and at the clock. To be called before any other thread is started.
///
/// # Errors
/// When a thread can't be started.
pub fn start_watching() -> Result<()> {
    const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    rovl::sys::process::block_signals(&SIGNALS)?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(|| {
            while rovl::sys::process::wait_signal(&SIGNALS).is_ok() {
                INTERRUPTED.store(true, Ordering::SeqCst);
                stop(&mut watched());
            }
        })?;
    thread::Builder::new().name("clock".to_owned()).spawn(|| {
        loop {
            thread::sleep(Duration::from_millis(200));
            let mut watched = watched();
            if watched.deadline.is_some_and(|at| Instant::now() > at) {
                watched.deadline = None;
                watched.expired = true;
                stop(&mut watched);
            }
        }
    })?;
    Ok(())
}

/// Ends what runs: the program first, and the daemon when the time is over (its mount then answers with errors).
fn stop(watched: &mut Watched) {
    // They may have ended just now.
    if let Some(group) = watched.program {
        kill_process_group(group, Signal::KILL).ok();
    }
    if watched.expired
        && let Some(daemon) = watched.daemon.take()
    {
        kill_process(daemon, Signal::KILL).ok();
    }
}

/// Fails when the bench is to end, or the time for the present work is over.
///
/// # Errors
/// Just these.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    if watched().expired {
        bail!("took longer than it may");
    }
    Ok(())
}

/// Is the bench to end?
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// While this lives, work has this much time; then its program and the daemon are killed.
pub struct Deadline(());

impl Deadline {
    /// From now on.
    pub fn after(limit: Duration) -> Deadline {
        let mut watched = watched();
        watched.deadline = Some(Instant::now() + limit);
        watched.expired = false;
        Deadline(())
    }

    /// Names the daemon that serves the work.
    pub fn serves(&self, daemon: Option<Pid>) {
        watched().daemon = daemon;
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let mut watched = watched();
        watched.deadline = None;
        watched.daemon = None;
        watched.expired = false;
    }
}

/// What a program did.
#[derive(Debug)]
pub struct Done {
    /// From before its start to after its end.
    pub took: Duration,
    /// Its status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Bytes that it wrote to stdout.
    pub bytes: u64,
    /// Line ends among them.
    pub lines: u64,
    /// The first of them.
    pub text: String,
    /// The last that it wrote to stderr.
    pub errors: String,
}

/// How much of stdout is kept.
const KEPT: usize = 64 << 10;

/// Runs a program to its end. What it writes to stdout is read, counted and dropped.
///
/// # Errors
/// When it can't be started, or when the bench is interrupted or the time is over.
pub fn run(command: &mut Command) -> Result<Done> {
    check()?;
    let name = command.get_program().to_string_lossy().into_owned();
    let mut log: File = tempfile::tempfile().context("making a temporary file")?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .process_group(0);
    let mut buffer = vec![0; 256 << 10];
    let mut kept = Vec::new();
    let (mut bytes, mut lines) = (0, 0);
    let start = Instant::now();
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let pid = Pid::from_child(&child);
    watched().program = Some(pid);
    let mut read = Ok(());
    if let Some(mut stdout) = child.stdout.take() {
        read = loop {
            match stdout.read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    let part = buffer.get(..n).unwrap_or_default();
                    bytes += n as u64;
                    lines += part.iter().filter(|b| **b == b'\n').count() as u64;
                    let room = KEPT.saturating_sub(kept.len()).min(n);
                    kept.extend_from_slice(part.get(..room).unwrap_or_default());
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
    }
    // Not reaped until nobody would kill that number any more.
    let ended = waitid(
        WaitId::Pid(pid),
        WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
    );
    let took = start.elapsed();
    watched().program = None;
    let status = child.wait();
    ended.with_context(|| format!("waiting for {name}"))?;
    read.with_context(|| format!("reading from {name}"))?;
    check()?;
    log.rewind()?;
    let mut errors = Vec::new();
    log.read_to_end(&mut errors)?;
    let from = errors.len().saturating_sub(600);
    Ok(Done {
        took,
        code: status?.code(),
        bytes,
        lines,
        text: String::from_utf8_lossy(&kept).into_owned(),
        errors: String::from_utf8_lossy(errors.get(from..).unwrap_or_default())
            .trim()
            .to_owned(),
    })
}

/// As [`run`], for a program that must succeed.
///
/// # Errors
/// As [`run`]; a status that is not 0, with what the program said.
pub fn succeed(command: &mut Command) -> Result<Done> {
    let done = run(command)?;
    if done.code != Some(0) {
        let shown = format!("{command:?}");
        let shown: String = shown.chars().take(160).collect();
        let code = done.code.map_or("a signal".to_owned(), |c| c.to_string());
        bail!("{shown} ended with {code}: {}", done.errors);
    }
    Ok(done)
}

/// A program with its arguments.
pub fn command<S: AsRef<std::ffi::OsStr>>(words: &[S]) -> Command {
    let mut words = words.iter();
    let mut command = Command::new(words.next().map_or("false".as_ref(), AsRef::as_ref));
    command
        .args(words)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC");
    command
}
