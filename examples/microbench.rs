//! Times one file system operation in a tight loop; `tools/bench` runs it inside each mount.
//!
//! ```text
//! microbench OP PATH [--count N] [--seconds S] [--size BYTES]
//! ```
//!
//! Prints one line of JSON: `{"op", "calls", "median_ns", "p90_ns", "mean_ns"}`, nanoseconds per
//! call. Loops over things that stay (stat, open, pread) run for `--seconds`; operations that use
//! things up (create, unlink, rename) run `--count` times. Setting up is not timed.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program, not a library"
)]

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{self, AtFlags, CWD, Mode, OFlags, RawDir};
use rustix::io::Errno;

/// Calls between two looks at the clock.
const BATCH: usize = 32;

fn main() -> ExitCode {
    match Args::parse(std::env::args().skip(1)).and_then(|args| run(&args)) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("microbench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The command line.
struct Args {
    op: String,
    path: String,
    count: usize,
    time: Duration,
    size: usize,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Args> {
        let op = words.next().context("usage: microbench OP PATH")?;
        let path = words.next().context("usage: microbench OP PATH")?;
        let mut args = Args {
            op,
            path,
            count: 2000,
            time: Duration::from_millis(500),
            size: 4096,
        };
        while let Some(flag) = words.next() {
            let value = words.next().with_context(|| format!("{flag}: no value"))?;
            match flag.as_str() {
                "--count" => args.count = value.parse()?,
                "--seconds" => args.time = Duration::from_secs_f64(value.parse()?),
                "--size" => args.size = value.parse()?,
                _ => bail!("{flag}: unknown option"),
            }
        }
        Ok(args)
    }
}

/// Per-call times of the batches of one run.
#[derive(Default)]
struct Samples {
    ns: Vec<f64>,
    calls: usize,
    total: Duration,
}

impl Samples {
    fn add(&mut self, calls: usize, took: Duration) {
        if calls > 0 {
            self.ns.push(took.as_nanos() as f64 / calls as f64);
            self.calls += calls;
            self.total += took;
        }
    }

    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.ns.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted
            .get((last as f64 * q).round() as usize)
            .copied()
            .unwrap_or(f64::NAN)
    }

    fn line(&self, op: &str) -> String {
        let mean = self.total.as_nanos() as f64 / self.calls.max(1) as f64;
        format!(
            r#"{{"op":"{op}","calls":{},"median_ns":{:.0},"p90_ns":{:.0},"mean_ns":{mean:.0}}}"#,
            self.calls,
            self.quantile(0.5),
            self.quantile(0.9),
        )
    }
}

/// Runs `call(i)` for the time asked for, after one untimed round that warms the caches.
fn for_time(
    args: &Args,
    round: usize,
    mut call: impl FnMut(usize) -> Result<()>,
) -> Result<Samples> {
    for i in 0..round {
        call(i)?;
    }
    let mut samples = Samples::default();
    let end = Instant::now() + args.time;
    let mut next = 0;
    // Slow calls (listing 100,000 names) are timed one by one.
    let batch = if round < BATCH { 1 } else { BATCH };
    loop {
        let start = Instant::now();
        for _ in 0..batch {
            call(next)?;
            next = (next + 1) % round;
        }
        samples.add(batch, start.elapsed());
        if Instant::now() >= end {
            return Ok(samples);
        }
    }
}

/// Runs `call(i)` once for each `i` below `count`.
fn for_count(count: usize, mut call: impl FnMut(usize) -> Result<()>) -> Result<Samples> {
    let mut samples = Samples::default();
    let mut next = 0;
    while next < count {
        let batch = BATCH.min(count - next);
        let start = Instant::now();
        for _ in 0..batch {
            call(next)?;
            next += 1;
        }
        samples.add(batch, start.elapsed());
    }
    Ok(samples)
}

fn run(args: &Args) -> Result<String> {
    let samples = match args.op.as_str() {
        "stat" => stat(args),
        "negative" => negative(args),
        "open" => open_close(args, false),
        "read" => open_close(args, true),
        "pread" => at_offsets(args, Io::Read, Order::Fixed),
        "pwrite" => at_offsets(args, Io::Write, Order::Fixed),
        "randread" => at_offsets(args, Io::Read, Order::Random),
        "randwrite" => at_offsets(args, Io::Write, Order::Random),
        "create" => create(args),
        "unlink" => unlink(args),
        "unlink-existing" => unlink_existing(args),
        "rename" => rename(args),
        "mkdir" => mkdir(args),
        "readdir" => readdir(args, false),
        "readdir-stat" => readdir(args, true),
        op => bail!("{op}: unknown operation"),
    }
    .with_context(|| format!("{} {}", args.op, args.path))?;
    Ok(samples.line(&args.op))
}

fn open_dir(path: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(fs::open(path, flags, Mode::empty())?)
}

/// Calls `each` with every name but `.` and `..`.
fn for_names(dir: &OwnedFd, mut each: impl FnMut(&CStr) -> Result<()>) -> Result<usize> {
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut count = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            each(name)?;
            count += 1;
        }
    }
    Ok(count)
}

fn full_paths(dir: &str) -> Result<Vec<CString>> {
    let mut paths = Vec::new();
    for_names(&open_dir(dir)?, |name| {
        let path = [dir.as_bytes(), b"/", name.to_bytes()].concat();
        paths.push(CString::new(path)?);
        Ok(())
    })?;
    if paths.is_empty() {
        bail!("no names in it");
    }
    Ok(paths)
}

fn stat(args: &Args) -> Result<Samples> {
    let paths = full_paths(&args.path)?;
    for_time(args, paths.len(), |i| {
        fs::statat(CWD, paths[i].as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    })
}

fn negative(args: &Args) -> Result<Samples> {
    let paths: Vec<CString> = (0..64)
        .map(|i| CString::new(format!("{}/no-such-name-{i}", args.path)))
        .collect::<Result<_, _>>()?;
    for_time(args, paths.len(), |i| {
        match fs::statat(CWD, paths[i].as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
            Ok(_) => bail!("{:?} exists", paths[i]),
        }
    })
}

fn open_close(args: &Args, read: bool) -> Result<Samples> {
    let paths = full_paths(&args.path)?;
    let mut buffer = vec![0; args.size];
    for_time(args, paths.len(), |i| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = fs::open(paths[i].as_c_str(), flags, Mode::empty())?;
        if read {
            rustix::io::read(&file, &mut buffer[..])?;
        }
        Ok(())
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Io {
    Read,
    Write,
}

#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// Always at offset 0.
    Fixed,
    /// At random blocks of the file.
    Random,
}

/// PATH is a file; each call reads or writes `--size` bytes of it.
fn at_offsets(args: &Args, io: Io, order: Order) -> Result<Samples> {
    let access = if io == Io::Write {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    let file = fs::open(args.path.as_str(), access | OFlags::CLOEXEC, Mode::empty())?;
    let size = args.size as u64;
    let blocks = (fs::fstat(&file)?.st_size as u64 / size).max(1);
    let mut buffer = vec![0x5a; args.size];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for_time(args, BATCH, |_| {
        let mut offset = 0;
        if order == Order::Random {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            offset = random % blocks * size;
        }
        match io {
            Io::Read => rustix::io::pread(&file, &mut buffer[..], offset)?,
            Io::Write => rustix::io::pwrite(&file, &buffer, offset)?,
        };
        Ok(())
    })
}

fn own_paths(args: &Args, kind: &str) -> Result<Vec<CString>> {
    let pid = std::process::id();
    (0..args.count)
        .map(|i| Ok(CString::new(format!("{}/{kind}-{pid}-{i}", args.path))?))
        .collect()
}

fn make_file(path: &CStr, data: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = fs::open(path, flags, Mode::from(0o644))?;
    if !data.is_empty() {
        rustix::io::write(&file, data)?;
    }
    Ok(())
}

fn create(args: &Args) -> Result<Samples> {
    let paths = own_paths(args, "c")?;
    let data = vec![0x61; args.size];
    for_count(args.count, |i| make_file(&paths[i], &data))
}

fn unlink(args: &Args) -> Result<Samples> {
    let paths = own_paths(args, "u")?;
    for path in &paths {
        make_file(path, b"")?;
    }
    for_count(args.count, |i| Ok(fs::unlink(paths[i].as_c_str())?))
}

/// Removes what is in PATH, up to `--count` files.
fn unlink_existing(args: &Args) -> Result<Samples> {
    let paths = full_paths(&args.path)?;
    let count = args.count.min(paths.len());
    for_count(count, |i| Ok(fs::unlink(paths[i].as_c_str())?))
}

fn rename(args: &Args) -> Result<Samples> {
    let from = own_paths(args, "r")?;
    let to = own_paths(args, "s")?;
    for path in &from {
        make_file(path, b"")?;
    }
    for_count(args.count, |i| {
        Ok(fs::rename(from[i].as_c_str(), to[i].as_c_str())?)
    })
}

fn mkdir(args: &Args) -> Result<Samples> {
    let paths = own_paths(args, "d")?;
    for_count(args.count, |i| {
        Ok(fs::mkdir(paths[i].as_c_str(), Mode::from(0o755))?)
    })
}

/// Opens PATH, lists all of it (and stats each name with `stat`), closes it.
fn readdir(args: &Args, stat: bool) -> Result<Samples> {
    for_time(args, 2, |_| {
        let dir = open_dir(&args.path)?;
        for_names(&dir, |name| {
            if stat {
                fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Ok(())
        })?;
        Ok(())
    })
}
