//! What work is, and how its time is taken.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::data::{Scale, Set, Volume};
use crate::exec::{self, Done};
use crate::model::{Goal, Sample, Unit};
use crate::native::open_dir;
use crate::stats;
use crate::targets::{Gauge, Mount};

/// What is done on a mount; gives what it took.
pub type Run = Box<dyn Fn(&Session<'_>) -> Result<Taken>>;

/// One kind of work: a row of the tables.
pub struct Work {
    /// A short name.
    pub id: String,
    /// What is done, with its sizes.
    pub title: String,
    /// The heading above.
    pub group: &'static str,
    /// Of the value: times are of one operation, but for seconds, which are of the whole work.
    pub unit: Unit,
    /// What one operation is.
    pub operation: &'static str,
    /// What is mounted.
    pub set: Set,
    /// On what.
    pub volume: Volume,
    /// What rovl is held against.
    pub goals: Vec<Goal>,
    /// The bare file system can do it.
    pub on_bare: bool,
    /// It is about a daemon.
    pub daemons_only: bool,
    /// Rounds after which there is nothing new to learn.
    pub max_rounds: usize,
    /// Does it.
    pub run: Run,
}

impl Work {
    /// Work for all targets, on the base volume.
    pub fn new<F>(id: &str, title: impl Into<String>, unit: Unit, set: Set, run: F) -> Work
    where
        F: Fn(&Session<'_>) -> Result<Taken> + 'static,
    {
        Work {
            id: id.to_owned(),
            title: title.into(),
            group: "",
            unit,
            operation: "call",
            set,
            volume: Volume::Base,
            goals: Vec::new(),
            on_bare: true,
            daemons_only: false,
            max_rounds: usize::MAX,
            run: Box::new(run),
        }
    }

    /// What one operation is.
    pub fn per(mut self, operation: &'static str) -> Work {
        self.operation = operation;
        self
    }

    /// What rovl is held against.
    pub fn goals(mut self, goals: &[Goal]) -> Work {
        self.goals.extend_from_slice(goals);
        self
    }

    /// On what.
    pub fn on(mut self, volume: Volume) -> Work {
        self.volume = volume;
        self
    }

    /// Only for overlays.
    pub fn overlays_only(mut self) -> Work {
        self.on_bare = false;
        self
    }

    /// Only for overlays with a daemon.
    pub fn daemons_only(mut self) -> Work {
        self.on_bare = false;
        self.daemons_only = true;
        self
    }

    /// So many rounds at most.
    pub fn rounds(mut self, most: usize) -> Work {
        self.max_rounds = most;
        self
    }
}

/// What measured work took, and what the daemon did meanwhile.
#[derive(Debug)]
pub struct Taken {
    /// Time of one iteration.
    pub time: Duration,
    /// Operations of one iteration.
    pub operations: u64,
    /// How many iterations were measured.
    pub iterations: u64,
    /// A value that is no time, in the unit of the row.
    pub value: Option<f64>,
    before: Gauge,
    after: Gauge,
    own_requests: std::collections::BTreeMap<String, u64>,
}

impl Taken {
    /// As a sample in this unit.
    pub fn sample(self, unit: Unit) -> Sample {
        let seconds = self.time.as_secs_f64();
        let each = seconds / self.operations.max(1) as f64;
        let value = self.value.unwrap_or(match unit {
            Unit::Micros => each * 1e6,
            Unit::Millis => each * 1e3,
            _ => seconds,
        });
        let requests = self.after.requests.as_ref().map(|after| {
            let before = self.before.requests.as_ref();
            let count = |of: Option<&std::collections::BTreeMap<String, u64>>, kind: &str| {
                of.and_then(|of| of.get(kind)).copied().unwrap_or(0)
            };
            let each = after.iter().map(|(kind, n)| {
                let other = count(before, kind) + count(Some(&self.own_requests), kind);
                (kind.clone(), n.saturating_sub(other))
            });
            each.filter(|(_, n)| *n > 0).collect()
        });
        let cpu = self.after.cpu.saturating_sub(self.before.cpu);
        Sample {
            value,
            operations: self.operations * self.iterations,
            requests,
            daemon_rss_kib: self.after.rss_kib,
            daemon_cpu_ms: self.after.rss_kib.map(|_| cpu.as_secs_f64() * 1e3),
        }
    }

    /// With a value that is no time.
    pub fn with_value(mut self, value: f64) -> Taken {
        self.value = Some(value);
        self
    }
}

/// What work gets: a fresh mount, and a clock.
pub struct Session<'a> {
    /// The mount.
    pub mount: &'a Mount<'a>,
    /// How much of everything.
    pub scale: &'a Scale,
    /// Repeatable work is repeated for about so long.
    pub least: Duration,
    /// How long churn goes on.
    pub churn: Duration,
}

impl Session<'_> {
    /// Times `work` once: `operations` operations.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn once(&self, operations: u64, work: impl FnOnce() -> Result<()>) -> Result<Taken> {
        self.gauged(operations, || {
            let start = Instant::now();
            work()?;
            Ok((start.elapsed(), 1))
        })
    }

    /// Times `work`, which can be repeated and was done at least once before, until enough of it was measured:
    /// the median.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn repeated(&self, operations: u64, mut work: impl FnMut() -> Result<()>) -> Result<Taken> {
        self.gauged(operations, || {
            let begin = Instant::now();
            let mut times = Vec::new();
            while times.len() < 3 || begin.elapsed() < self.least {
                exec::check()?;
                let start = Instant::now();
                work()?;
                times.push(start.elapsed().as_secs_f64());
                // Slow work: what was measured is enough.
                if begin.elapsed() > self.least * 4 {
                    break;
                }
            }
            let median = stats::median(&times).context("nothing measured")?;
            Ok((Duration::from_secs_f64(median), times.len() as u64))
        })
    }

    /// Times `work(i)` for i from 0 on, which uses something up each time: until enough of it was measured, at most
    /// `most` times: the mean.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn counted(&self, most: u64, mut work: impl FnMut(u64) -> Result<()>) -> Result<Taken> {
        let mut done = 0;
        let mut taken = self.gauged(1, || {
            let start = Instant::now();
            while done < most && (done < 16 || start.elapsed() < self.least) {
                for _ in 0..16.min(most - done) {
                    work(done)?;
                    done += 1;
                }
                exec::check()?;
            }
            Ok((start.elapsed(), 1))
        })?;
        ensure!(done > 0, "nothing to do");
        taken.operations = done;
        Ok(taken)
    }

    /// Runs a program once; what it wrote and how it ended is for `verify` to judge.
    ///
    /// # Errors
    /// When it can't be run, and what `verify` returns.
    pub fn program(
        &self,
        operations: u64,
        mut command: impl FnMut() -> Command,
        verify: impl Fn(&Done) -> Result<()>,
    ) -> Result<Taken> {
        self.gauged(operations, || {
            let done = exec::run(&mut command())?;
            verify(&done)?;
            Ok((done.took, 1))
        })
    }

    /// Runs a program once untimed, and then again and again as [`repeated`](Self::repeated).
    ///
    /// # Errors
    /// As [`program`](Self::program).
    pub fn warm_program(
        &self,
        operations: u64,
        mut command: impl FnMut() -> Command,
        verify: impl Fn(&Done) -> Result<()>,
    ) -> Result<Taken> {
        verify(&exec::run(&mut command())?)?;
        self.repeated(operations, || verify(&exec::run(&mut command())?))
    }

    fn gauged(
        &self,
        operations: u64,
        work: impl FnOnce() -> Result<(Duration, u64)>,
    ) -> Result<Taken> {
        // Asking is a request itself: two looks show how many.
        let first = self.mount.gauge()?;
        let before = self.mount.gauge()?;
        let own_requests = difference(&first, &before);
        let (time, iterations) = work()?;
        let after = self.mount.gauge()?;
        Ok(Taken {
            time,
            operations,
            iterations,
            value: None,
            before,
            after,
            own_requests,
        })
    }

    /// A path of the layers as it is to be read.
    pub fn reading(&self, name: &str) -> PathBuf {
        self.mount.reading(name)
    }
}

fn difference(first: &Gauge, second: &Gauge) -> std::collections::BTreeMap<String, u64> {
    let (Some(first), Some(second)) = (&first.requests, &second.requests) else {
        return std::collections::BTreeMap::new();
    };
    let was = |kind: &String| first.get(kind).copied().unwrap_or(0);
    second
        .iter()
        .map(|(kind, n)| (kind.clone(), n.saturating_sub(was(kind))))
        .collect()
}

/// Writes out what the mount and its layers have in memory, and has the kernel forget pages, names and inodes. What
/// others have still to write is left to them: it is nothing that the work will read.
///
/// # Errors
/// Where that is not allowed.
pub fn drop_caches(session: &Session<'_>) -> Result<()> {
    exec::check()?;
    for path in [session.mount.read_root(), &session.mount.layers.dir] {
        rustix::fs::syncfs(open_dir(path)?)
            .with_context(|| format!("syncing {}", path.display()))?;
    }
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches")
}

/// A program in a directory.
pub fn command_in<S: AsRef<std::ffi::OsStr>>(dir: &Path, words: &[S]) -> Command {
    let mut command = exec::command(words);
    command.current_dir(dir);
    command
}

/// A check of how a program ended.
///
/// # Errors
/// Another status.
pub fn ended(done: &Done, code: i32) -> Result<()> {
    if done.code != Some(code) {
        bail!("status {:?} instead of {code}: {}", done.code, done.errors);
    }
    Ok(())
}

/// A check that a program ended well and wrote so many lines.
///
/// # Errors
/// Another status, another number of lines.
pub fn wrote_lines(done: &Done, lines: u64) -> Result<()> {
    ended(done, 0)?;
    ensure!(
        done.lines == lines,
        "{} lines instead of {lines}",
        done.lines
    );
    Ok(())
}
