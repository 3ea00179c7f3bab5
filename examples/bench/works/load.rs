//! Several clients, many layers, and the daemon's memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::trees::warm_layers;
use crate::data::{Scale, Set, Volume};
use crate::exec;
use crate::model::{Goal, Unit};
use crate::native::{Names, count};
use crate::render::thousands;
use crate::stats;
use crate::work::{Session, Taken, Work};

pub fn works(scale: &Scale) -> Vec<Work> {
    let mut works = Vec::new();
    for clients in [1, 4, 16] {
        works.push(
            Work::new(
                &format!("clients-read-{clients}"),
                format!("stat + open + read + close, first time, {clients} clients"),
                Unit::Micros,
                Set::Walk,
                move |s| visits(s, clients),
            )
            .per("file"),
        );
        works.push(
            Work::new(
                &format!("clients-create-{clients}"),
                format!("create + write 4 KiB + close, {clients} clients"),
                Unit::Micros,
                Set::Empty,
                move |s| creates(s, clients),
            )
            .per("file"),
        );
    }
    works.push(
        Work::new(
            "stall",
            format!(
                "p99 of a stat while another client copies up {}, ext4",
                super::contents::size(scale.big)
            ),
            Unit::Millis,
            Set::Copy,
            stall,
        )
        .on(Volume::Ext4)
        .goals(&[Goal::limit(2.0)]),
    );
    works.extend(layers(scale));
    works.extend(memory(scale));
    works
}

/// Runs `work(client)` in so many threads at once.
fn together(clients: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let started: Vec<_> = (0..clients).map(|i| scope.spawn(move || work(i))).collect();
        started
            .into_iter()
            .try_for_each(|t| t.join().map_err(|_| anyhow!("a client panicked"))?)
    })
}

fn visits(session: &Session<'_>, clients: usize) -> Result<Taken> {
    let files = session.scale.walk;
    let paths = (0..files).map(|i| format!("walk/a{}/b{}/file{}.c", i / 20 % 50, i / 20, i % 20));
    warm_layers(session)?;
    let names = Names::given(session.mount.read_root(), paths)?;
    session.once(names.len(), || {
        together(clients, |i| names.visit(i, clients))
    })
}

fn creates(session: &Session<'_>, clients: usize) -> Result<Taken> {
    let each = if session.scale.walk >= 50_000 {
        8000
    } else {
        640
    } / clients as u64;
    let mut all = Vec::new();
    for client in 0..clients {
        session.mount.new_dir(&format!("client{client}"))?;
        let names = (0..each).map(|i| format!("client{client}/f{i}"));
        all.push(Names::given(&session.mount.root, names)?);
    }
    let data = [0x61; 4096];
    let taken = session.once(each * clients as u64, || {
        together(clients, |client| {
            let names = all.get(client).context("no such client")?;
            (0..each).try_for_each(|i| names.create(i, &data))
        })
    })?;
    let made = count(&session.mount.root)?.files;
    ensure!(made == each * clients as u64, "{made} files");
    Ok(taken)
}

/// Looks up names that nobody has asked for before, while a big file is copied up.
fn stall(session: &Session<'_>) -> Result<Taken> {
    let root = &session.mount.root;
    if session.mount.is_bare() {
        let source = session.mount.layers.merged.join("small");
        exec::succeed(exec::command(&["cp", "-a"]).arg(source).arg(root))?;
    }
    let big = Names::given(root, ["big".to_owned()])?;
    let source = session.mount.layers.merged.join("big");
    let done = AtomicBool::new(false);
    let mut latencies = Vec::new();
    let taken = session.once(1, || {
        thread::scope(|scope| {
            let copier = scope.spawn(|| {
                let copied = if session.mount.is_bare() {
                    std::fs::copy(&source, root.join("big"))
                        .map_err(anyhow::Error::from)
                        .and_then(|_| big.touch_byte(0))
                } else {
                    big.touch_byte(0)
                };
                done.store(true, Ordering::SeqCst);
                copied
            });
            let mut asked: Result<()> = Ok(());
            let mut i = 0;
            while asked.is_ok() && !done.load(Ordering::SeqCst) {
                let name = Names::given(root, [format!("small/not-there-{i}")])?;
                let start = Instant::now();
                asked = name.miss_all();
                latencies.push(start.elapsed().as_secs_f64() * 1e3);
                i += 1;
            }
            let copied = copier
                .join()
                .map_err(|_| anyhow!("the copying client panicked"))?;
            asked.and(copied)
        })
    })?;
    // One who stalls gets few answers.
    ensure!(
        latencies.len() >= 3,
        "only {} stats meanwhile",
        latencies.len()
    );
    let p99 = stats::quantile(&latencies, 0.99).context("nothing measured")?;
    let mut taken = taken.with_value(p99);
    taken.operations = latencies.len() as u64;
    Ok(taken)
}

fn layers(scale: &Scale) -> Vec<Work> {
    let dirs = scale.cold_dirs;
    let mut works = Vec::new();
    for n in [2, 20, 120, 500] {
        let goals: &[Goal] = if n == 500 {
            &[Goal::row("layers-stat-2", 1.1)]
        } else {
            &[]
        };
        works.push(
            Work::new(
                &format!("layers-stat-{n}"),
                format!("stat, warm, {n} layers"),
                Unit::Micros,
                Set::Many(n),
                move |s| {
                    // The same number of names, however many layers there are.
                    let names =
                        (0..1000).map(|i| format!("names/f{}", if i % 2 == 0 { 0 } else { n - 1 }));
                    let names = Names::given(s.mount.read_root(), names)?;
                    names.stat_all()?;
                    s.repeated(names.len(), || names.stat_all())
                },
            )
            .overlays_only()
            .goals(goals),
        );
    }
    for (dir, words) in [
        ("everywhere", "that all layers have"),
        ("few", "that 2 layers have"),
    ] {
        for n in [2, 120] {
            let goals: &[Goal] = match (n, dir) {
                (120, "everywhere") => &[Goal::row("layers-missing-everywhere-2", 3.0)],
                (120, _) => &[Goal::row("layers-missing-few-2", 3.0)],
                _ => &[],
            };
            let title = format!("failed lookup in a directory {words}, fresh mount, {n} layers");
            works.push(
                Work::new(
                    &format!("layers-missing-{dir}-{n}"),
                    title,
                    Unit::Micros,
                    Set::Many(n),
                    move |s| {
                        // The layers' names are in memory; the mount knows neither directories nor names.
                        for lower in &s.mount.layers.lowers {
                            count(&lower.join(dir))?;
                        }
                        let names = (0..dirs).map(|d| format!("{dir}/d{d}/missing"));
                        let names = Names::given(s.mount.read_root(), names)?;
                        s.once(names.len(), || names.miss_all())
                    },
                )
                .per("lookup")
                .overlays_only()
                .goals(goals),
            );
        }
    }
    works
}

fn rss_mib(session: &Session<'_>) -> Result<f64> {
    let gauge = session.mount.gauge()?;
    Ok(gauge.rss_kib.context("no daemon was found")? as f64 / 1024.0)
}

fn memory(scale: &Scale) -> Vec<Work> {
    let inodes = scale.inodes as u64;
    vec![
        Work::new(
            "memory-idle",
            "daemon's memory, idle",
            Unit::Mebibytes,
            Set::Micro,
            |s| {
                let taken = s.once(0, || Ok(()))?;
                let value = rss_mib(s)?;
                Ok(taken.with_value(value))
            },
        )
        .daemons_only()
        .goals(&[Goal::limit(10.0)]),
        Work::new(
            "memory-inode",
            format!(
                "daemon's memory for each of {} inodes",
                thousands(inodes as f64)
            ),
            Unit::Bytes,
            Set::Inodes,
            move |s| {
                let before = rss_mib(s)?;
                let mut files = 0;
                let taken = s.once(inodes, || {
                    files = count(s.mount.read_root())?.files;
                    Ok(())
                })?;
                ensure!(files == inodes, "{files} files instead of {inodes}");
                let grown = (rss_mib(s)? - before).max(0.0);
                Ok(taken.with_value(grown * f64::from(1 << 20) / inodes as f64))
            },
        )
        .per("file")
        .rounds(1)
        .daemons_only()
        .goals(&[Goal::limit(300.0)]),
        Work::new(
            "memory-churn",
            "daemon's memory, end ÷ first third of making and removing files",
            Unit::Times,
            Set::Empty,
            churn,
        )
        .per("file")
        .rounds(1)
        .daemons_only()
        .goals(&[Goal::limit(1.1)]),
    ]
}

fn churn(session: &Session<'_>) -> Result<Taken> {
    const BATCH: u64 = 500;
    session.mount.new_dir("churn")?;
    let (mut batches, mut early) = (0_u64, None);
    let begin = Instant::now();
    let taken = session.once(0, || {
        while begin.elapsed() < session.churn {
            exec::check()?;
            let names = (0..BATCH).map(|i| format!("churn/f{batches}-{i}"));
            let names = Names::given(&session.mount.root, names)?;
            (0..BATCH).try_for_each(|i| names.create(i, b"some data"))?;
            names.stat_all()?;
            (0..BATCH).try_for_each(|i| names.unlink(i))?;
            batches += 1;
            if early.is_none() && begin.elapsed() > session.churn / 3 {
                early = Some(rss_mib(session)?);
            }
        }
        Ok(())
    })?;
    let left = count(&session.mount.root.join("churn"))?.entries;
    ensure!(left == 0, "{left} files are left");
    let Some(early) = early else {
        bail!("--churn is shorter than one batch");
    };
    // What was forgotten is freed a moment later.
    thread::sleep(Duration::from_millis(50));
    let mut taken = taken.with_value(rss_mib(session)? / early.max(0.1));
    taken.operations = batches * BATCH;
    Ok(taken)
}
