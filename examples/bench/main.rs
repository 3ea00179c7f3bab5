//! Measures rovl beside the bare file system, the kernel's overlayfs and other implementations.
//!
//! `tools/bench` builds this program, installs what it needs, and runs it.
//!
//! | module | what it is |
//! |---|---|
//! | `cli`, `clock` | the command line, dates; pure |
//! | `model`, `stats`, `render` | what a run found, and how it is shown; pure, tested by `tests/bench_tool.rs` |
//! | `works` | what is done: one row of the tables each |
//! | `work` | the clock, the counters of requests, and what a row is |
//! | `schedule` | the rounds |
//! | `targets`; `data`, `build` | mounts; layers |
//! | `native`, `map`, `exec` | system calls in a loop; mappings; programs with a limit of time |
//!
//! Invariant: everything on disk is beneath one directory, every mount is beneath it too, and both go when their
//! owner goes out of scope, also after an error and after SIGINT.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program, not a library"
)]

mod build;
mod cli;
mod clock;
mod data;
mod exec;
mod map;
mod model;
mod native;
mod render;
mod schedule;
mod stats;
mod targets;
mod work;
mod works;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;

use cli::Args;
use data::Store;
use model::{Family, Machine, Report};
use schedule::{Plan, Run};

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything worked on rovl and on the targets that were given.
fn run(args: &Args) -> Result<bool> {
    if let Some(path) = &args.render {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let mut report: Report =
            serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        report.conclude();
        show(args, &report)?;
        return Ok(true);
    }
    let plan = Plan::new(args);
    let works = schedule::chosen(args, &plan);
    ensure!(
        !works.is_empty(),
        "--only {}: no such work; see --list",
        args.only
    );
    let mut targets = targets::chosen(args)?;
    if args.needs {
        schedule::needs(args, &works, &targets)
            .iter()
            .for_each(|need| println!("{need}"));
        return Ok(true);
    }
    if args.list {
        list(&works, &targets);
        return Ok(true);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "mounts file systems: run it as root"
    );
    exec::start_watching()?;
    targets::ask_versions(&mut targets);
    let root = args.root_archive();
    let store = Store::new(&args.dir, plan.scale, root, args.file_system())?;
    let mut run = Run::new(&plan, &works, &targets, store);
    let in_memory = data::type_of(&args.dir)? == "tmpfs";
    let on = match (args.file_system(), in_memory) {
        (Some(_), true) => " on a loop device in memory",
        (Some(_), false) => " on a loop device",
        (None, _) => "",
    };
    let mut report = Report {
        date: clock::utc(SystemTime::now()),
        machine: machine(format!("{}{on}", run.file_system()?)),
        quick: args.quick,
        seconds: 0.0,
        targets: run.probe()?,
        rows: Vec::new(),
    };
    let measured = run.measure(&mut report);
    drop(run);
    report.conclude();
    if report
        .rows
        .iter()
        .flat_map(|row| &row.cells)
        .any(|cell| !cell.samples.is_empty())
    {
        show(args, &report)?;
    }
    measured?;
    Ok(worked(&report))
}

/// Peers may fail; rovl, and what was given by `--target`, may not. A mode of rovl may refuse to mount.
fn worked(report: &Report) -> bool {
    let ours = |family| matches!(family, Family::Rovl | Family::Other);
    let refused = report
        .targets
        .iter()
        .any(|t| t.family == Family::Other && t.refused.is_some());
    let none = report
        .targets
        .iter()
        .any(|t| t.name == "rovl" && t.refused.is_some());
    let failed = report.rows.iter().flat_map(|row| &row.cells).any(|cell| {
        let target = report.targets.iter().find(|t| t.name == cell.target);
        cell.error.is_some() && target.is_some_and(|t| ours(t.family))
    });
    !refused && !none && !failed
}

fn list(works: &[work::Work], targets: &[targets::Target]) {
    let width = works.iter().map(|work| work.id.len()).max().unwrap_or(0);
    let mut group = "";
    for work in works {
        if work.group != group {
            group = work.group;
            println!("{group}");
        }
        println!(
            "  {:width$}  {}, {}",
            work.id,
            work.title,
            work.unit.symbol()
        );
    }
    println!("Targets");
    for target in targets {
        println!("  {}", target.name);
    }
}

/// Writes the three files, and one of the tables to stdout.
fn show(args: &Args, report: &Report) -> Result<()> {
    let markdown = render::markdown::render(report);
    let json = serde_json::to_string_pretty(report)? + "\n";
    write_into(&args.out, "bench.json", &json)?;
    write_into(&args.out, "bench.html", &render::html::render(report))?;
    write_into(&args.out, "bench.md", &markdown)?;
    if args.readme {
        print!("{}", render::markdown::render_goals(report));
    } else {
        print!("{}", render::text::render(report));
        println!(
            "\nwritten: {}/bench.json, bench.html, bench.md",
            args.out.display()
        );
    }
    Ok(())
}

fn write_into(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(&path, text))
        .with_context(|| format!("writing {}", path.display()))
}

fn machine(file_system: String) -> Machine {
    let field = |path: &str, name: &str| -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(name))?.to_owned();
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    Machine {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|e| e.to_string(), |text| text.trim().to_owned()),
        cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "processor".to_owned()),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: kib >> 10,
        file_system,
    }
}
