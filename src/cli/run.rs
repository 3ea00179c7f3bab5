//! `rovl run`: a container, mounted, with a command run in it by an OCI runtime.
//!
//! Three processes. The *front* is the one that the user started: it passes signals on and the exit code back. The
//! *keeper* is the first process of a process namespace, with a mount namespace of its own; it makes the container,
//! mounts it, has the runtime start the command and waits for that. The FUSE daemon serves the tree in the same
//! namespaces. So whoever of them is killed, nothing stays: when the keeper dies the kernel ends everything in its
//! process namespace, and with the last process go the mounts, and the front removes the container; when the front
//! dies the keeper sees its pipe end. When both are killed at once, the container is removed by the next command.
//!
//! There is no network of the container's own, and nobody watches over it once `rovl run` has ended: those are what
//! podman and docker are for.

mod control;
mod keeper;
mod settings;
mod target;
mod terminal;

use std::ffi::OsString;
use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus};

use clap::Args;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use rustix::thread::UnshareFlags;

use super::mounts::{self, Driver};
use super::stored::Place;
use super::{Failure, userns};
use crate::store::Store;
use crate::store::container::ContainerName;
use crate::store::error::StoreError;
use crate::store::ids::CacheId;
use crate::sys::process::{block_signals, unblock_signals_in, wait_signal_sender};

pub use control::{kill, sync};

/// Exit code of `run` itself, as that of podman and docker.
const FAILED: u8 = 125;
/// Set for the keeper: the container's id, the descriptor of its pipe, whether it is in a user namespace of rovl's.
const KEEPER: &str = "ROVL_KEEPER";
/// SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM: passed on.
const PASSED_ON: [i32; 6] = [1, 2, 3, 10, 12, 15];
const CHILD_ENDED: i32 = 17;

/// Run a command in a new container.
#[derive(Debug, Args)]
#[command(after_help = "\
The command runs through crun, runc or youki, in user, mount, pid, uts and ipc namespaces of its own. The network is \
the host's: for networks, port mappings, restarts and supervision use podman or docker.\n\n\
Exit codes: that of the command; 125 rovl failed, 126 the command can't be executed, 127 it wasn't found, 128+N it \
was ended by signal N.")]
pub struct RunArgs {
    /// Remove the container at the end
    #[arg(long)]
    rm: bool,
    /// The container's name (default: one is made up)
    #[arg(long)]
    name: Option<ContainerName>,
    /// Show a directory or file of the host in the container
    #[arg(short, long = "volume", value_name = "SRC:DST[:ro]")]
    volumes: Vec<String>,
    /// Set a variable, or pass one on
    #[arg(short, long = "env", value_name = "K[=V]")]
    env: Vec<String>,
    /// The working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Who runs the command, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Run this instead of the image's entry point; empty: none
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// The tree can't be written
    #[arg(long)]
    read_only: bool,
    /// Pass standard input on, which is always done: for those who are used to say so
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal (default: if standard input and output are one)
    #[arg(short, long)]
    tty: bool,
    /// The OCI runtime (default: crun, runc or youki, whichever is found first)
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
    /// Who merges the layers
    #[arg(long, value_enum, default_value = "fuse")]
    driver: Driver,
    /// The image, by name, id or beginning of one; then the command (default: the image's)
    #[arg(
        value_name = "IMAGE [COMMAND [ARG…]]",
        required = true,
        trailing_var_arg = true
    )]
    #[arg(allow_hyphen_values = true)]
    words: Vec<String>,
}

impl RunArgs {
    fn image(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    fn command(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    fn wants_terminal(&self) -> bool {
        self.tty || std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
    }
}

/// What the front tells the keeper.
struct Orders {
    id: CacheId,
    pipe: i32,
    /// The user namespace is one that rovl made for this run.
    own_users: bool,
}

impl Orders {
    fn read() -> Option<Orders> {
        let text = std::env::var(KEEPER).ok()?;
        let mut words = text.split(' ');
        Some(Orders {
            id: words.next()?.parse().ok()?,
            pipe: words.next()?.parse().ok()?,
            own_users: words.next()? == "own",
        })
    }

    fn text(&self) -> String {
        let users = if self.own_users { "own" } else { "given" };
        format!("{} {} {users}", self.id, self.pipe)
    }
}

/// Runs `rovl run`, either part of it.
pub fn main(args: RunArgs, place: &Place) -> ExitCode {
    let result = match Orders::read() {
        Some(orders) => keeper::run(&args, place, &orders),
        None => front(&args, place),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // Empty: the runtime has said it.
            if !failure.message.is_empty() {
                eprintln!("rovl: {}", failure.message);
            }
            let code = match failure.code {
                126 | 127 => failure.code,
                _ => FAILED,
            };
            ExitCode::from(code)
        }
    }
}

fn front(args: &RunArgs, place: &Place) -> Result<u8, Failure> {
    let failed = |what: &str, error: std::io::Error| Failure::failed(format!("{what}: {error}"));
    let store = place.open()?;
    mounts::tidy(&store)?;
    let id = CacheId::random()?;
    let terminal = terminal::Saved::take();
    let signals: Vec<i32> = PASSED_ON.iter().copied().chain([CHILD_ENDED]).collect();
    block_signals(&signals).map_err(|errno| failed("blocking signals", errno.into()))?;
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|errno| failed("making a pipe", errno.into()))?;
    let mut keeper =
        spawn_keeper(&id, &reader).map_err(|error| failed("starting the keeper", error))?;
    drop(reader);
    let status = attend(&mut keeper, fs::File::from(writer), &signals)
        .map_err(|error| failed("waiting for the container", error))?;
    if let Some(code) = status.code() {
        return Ok(u8::try_from(code).unwrap_or(FAILED));
    }
    // Killed. The kernel has ended all that was in its process namespace.
    terminal.restore();
    clean_up(&store, &id, args.rm)?;
    let signal = status.signal().unwrap_or_default();
    Err(Failure::failed(format!(
        "the container's keeper was killed by signal {signal}"
    )))
}

/// Starts the keeper as the first process of a process namespace.
fn spawn_keeper(id: &CacheId, pipe: &OwnedFd) -> std::io::Result<Child> {
    let orders = Orders {
        id: id.clone(),
        pipe: pipe.as_raw_fd(),
        own_users: userns::is_own(),
    };
    rustix::io::fcntl_setfd(pipe, FdFlags::empty())?;
    // The newer, unsafe form of it warns of CLONE_FILES only.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWPID)?;
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut command = Command::new("/proc/self/exe");
    command.args(args).env(KEEPER, orders.text());
    unblock_signals_in(&mut command);
    command.spawn()
}

/// Passes signals on until the keeper has ended.
fn attend(keeper: &mut Child, mut pipe: fs::File, signals: &[i32]) -> std::io::Result<ExitStatus> {
    loop {
        let (signal, _) = wait_signal_sender(signals)?;
        if signal == CHILD_ENDED {
            if let Some(status) = keeper.try_wait()? {
                return Ok(status);
            }
            continue;
        }
        let byte = u8::try_from(signal).unwrap_or_default();
        match pipe.write_all(&[byte]) {
            // It is about to end, and its end will be noticed.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
    }
}

/// Removes what a killed keeper has left.
fn clean_up(store: &Store, id: &CacheId, with_container: bool) -> Result<(), Failure> {
    let container = match store.find_container(id.as_str()) {
        Err(StoreError::NotFound { .. }) => return Ok(()),
        other => other?,
    };
    let merged = store.disk().path(container.dir().join("merged"));
    if merged.exists()
        && let Err(error) = fs::remove_dir(&merged)
    {
        tracing::debug!(%error, "the mount point stays");
    }
    if with_container {
        store.remove_container(&container)?;
    }
    Ok(())
}
