//! The command line: the commands, one file each, and what they print.
//!
//! Invariant: this is the only module that prints. Options are read into plain data first
//! (`options`, `helper`), then resolved (`plan`), then run.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod beside;
mod container;
mod ctl;
mod daemon;
mod helper;
mod image;
mod layer;
mod logging;
mod mount;
mod mounted;
mod mounts;
mod options;
mod plan;
mod run;
mod serve;
mod stat;
mod state;
mod store;
mod stored;
mod umount;
mod userns;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code of what failed.
const FAILED: u8 = 1;
/// Exit code of what was asked for wrongly.
const MISUSED: u8 = 2;

/// Merge directories into one tree, without the kernel's overlayfs.
#[derive(Debug, Parser)]
#[command(name = "rovl", version, disable_help_subcommand = true)]
#[command(after_help = "\
Called as fuse-overlayfs, mount.rovl or mount.fuse.rovl, or as `rovl -o … MERGED`, it takes the command \
line of fuse-overlayfs and mount(8).\n\n\
Exit codes: 0 done, 1 failed, 2 used wrongly.")]
struct Cli {
    /// The store (default: ROVL_ROOT, /var/lib/rovl for root, $XDG_DATA_HOME/rovl for others)
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Don't sync what is written to the store: for stores that may be lost
    #[arg(long)]
    no_sync: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::MountArgs),
    Umount(umount::UmountArgs),
    Stat(stat::StatArgs),
    Ctl(ctl::CtlArgs),
    #[command(subcommand)]
    Image(image::ImageCommand),
    #[command(subcommand)]
    Layer(layer::LayerCommand),
    #[command(subcommand)]
    Container(container::ContainerCommand),
    Run(run::RunArgs),
    #[command(subcommand)]
    Store(store::StoreCommand),
}

/// A command that did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It failed.
    fn failed(message: impl Into<String>) -> Failure {
        Failure {
            code: FAILED,
            message: message.into(),
        }
    }

    /// It was used wrongly.
    fn misused(message: impl Into<String>) -> Failure {
        Failure {
            code: MISUSED,
            message: message.into(),
        }
    }
}

/// Runs the command line `args`, the program's name first, and returns the exit code.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let result = if helper::is_helper(&args) {
        run_helper(&args)
    } else {
        match Cli::try_parse_from(&args) {
            Ok(cli) => match enter_namespace(&cli.command, &args) {
                Ok(Some(code)) => return code,
                Ok(None) => match cli.command {
                    Command::Run(args) => return run::main(args, &place_of(cli.root, cli.no_sync)),
                    _ => run_command(cli),
                },
                Err(failure) => Err(failure),
            },
            Err(error) => return report_clap(&error),
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("rovl: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// The commands of the store are for root, be it of a user namespace.
fn enter_namespace(command: &Command, args: &[OsString]) -> Result<Option<ExitCode>, Failure> {
    match command {
        Command::Image(_)
        | Command::Layer(_)
        | Command::Container(_)
        | Command::Run(_)
        | Command::Store(_) => userns::enter(args),
        Command::Mount(_) | Command::Umount(_) | Command::Stat(_) | Command::Ctl(_) => Ok(None),
    }
}

fn place_of(root: Option<PathBuf>, no_sync: bool) -> stored::Place {
    stored::Place {
        root,
        sync: !no_sync,
    }
}

fn run_command(cli: Cli) -> Result<(), Failure> {
    let place = place_of(cli.root, cli.no_sync);
    if matches!(
        cli.command,
        Command::Mount(_) | Command::Umount(_) | Command::Stat(_)
    ) && (place.root.is_some() || !place.sync)
    {
        return Err(Failure::misused(
            "--root and --no-sync are for the commands image, layer, container, run and store",
        ));
    }
    match cli.command {
        Command::Mount(args) => mount::run(args),
        Command::Umount(args) => umount::run(&args),
        Command::Stat(args) => stat::run(&args),
        Command::Ctl(args) => ctl::run(&args),
        Command::Image(command) => image::run(command, &place),
        Command::Layer(command) => layer::run(command, &place),
        Command::Container(command) => container::run(command, &place),
        // It has an exit code of its own.
        Command::Run(_) => Ok(()),
        Command::Store(command) => store::run(command, &place),
    }
}

fn run_helper(args: &[OsString]) -> Result<(), Failure> {
    match helper::parse(args).map_err(|error| Failure::misused(error.to_string()))? {
        helper::Request::Mount(request) => mount::start(request.0, request.1),
        helper::Request::Version => print(&format!("rovl {}\n", env!("CARGO_PKG_VERSION"))),
        helper::Request::Help => print(&format!(
            "usage: fuse-overlayfs [-f] [-d] [-o OPTION[,OPTION…]] [SOURCE] MERGED\n\n\
             -f  stay in the foreground\n-d  the same, and log everything\n\noptions:\n{}",
            options::help_text()
        )),
    }
}

/// Help and versions go to stdout with 0, misuse to stderr with 2; clap knows which is which.
fn report_clap(error: &clap::Error) -> ExitCode {
    match error.print() {
        Ok(()) => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(MISUSED)),
        Err(_) => ExitCode::from(FAILED),
    }
}

/// Writes to stdout. A reader that has gone away (`rovl … | head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("writing to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// A remark on stderr that changes nothing.
fn warn(text: &str) {
    eprintln!("rovl: warning: {text}");
}
