//! The keeper: the first process of its process namespace, which has the container made, mounted, run and removed.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::UnshareFlags;
use serde_json::Value;

use super::control::{self, DONE, KILL, SYNC};
use super::target::Target;
use super::{Orders, RunArgs, settings, terminal};
use crate::cli::container::merged_tree;
use crate::cli::stored::Place;
use crate::cli::{Failure, mounts, umount};
use crate::oci;
use crate::store::Store;
use crate::store::container::{Container, NewContainer};
use crate::store::error::StoreError;
use crate::store::lock::Lock;
use crate::sys::process::{inherited_fd, unblock_signals_in};

/// The runtimes, in the order of preference.
const RUNTIMES: [&str; 3] = ["crun", "runc", "youki"];

fn failed(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("{what}: {error}"))
}

/// Makes the container, runs the command, and cleans up. The exit code.
pub fn run(args: &RunArgs, place: &Place, orders: &Orders) -> Result<u8, Failure> {
    let pipe = inherited_fd(orders.pipe).map_err(|errno| failed("the front's pipe", errno))?;
    separate()?;
    let runtime = find_runtime(args)?;
    if runtime.file_name().is_some_and(|name| name == "crun") {
        hide_second_hierarchy()?;
    }
    let store = place.open()?;
    let image = store.find_image(args.image())?;
    let config = settings::merged(args, image.config.config.as_ref());
    settings::check_command(&config)?;
    let new = NewContainer {
        id: Some(orders.id.clone()),
        name: args.name.clone(),
        ephemeral: args.rm,
        config: Some(Value::Object(config.clone())),
    };
    let (container, lock) = store.create_container(args.image(), new)?;
    let keeper = Keeper {
        args,
        orders,
        runtime,
        merged: store.disk().path(container.dir().join("merged")),
        store,
        container,
    };
    let result = keeper.hold_and_run(&config, File::from(pipe));
    let cleaned = keeper.clean_up(lock);
    let code = result?;
    cleaned?;
    Ok(code)
}

/// A mount namespace whose mounts nobody else sees, with a /proc of this process namespace.
fn separate() -> Result<(), Failure> {
    // The newer, unsafe form of it warns of CLONE_FILES only.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWNS)
        .map_err(|errno| failed("making a mount namespace", errno))?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags)
        .map_err(|errno| failed("keeping mounts apart", errno))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "/proc", "proc", flags, None).map_err(|errno| {
        failed(
            "mounting /proc, of which a part may be hidden here (a container?)",
            errno,
        )
    })
}

/// Hides the second of two cgroup hierarchies, where a host has both: crun refuses such hosts, and no limits are set
/// here for which it would need either.
fn hide_second_hierarchy() -> Result<(), Failure> {
    let path = "/sys/fs/cgroup/unified";
    if !Path::new(path).join("cgroup.controllers").exists() {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", path, "tmpfs", flags, c"mode=0755")
        .map_err(|errno| failed("hiding the second cgroup hierarchy", errno))
}

fn find_runtime(args: &RunArgs) -> Result<PathBuf, Failure> {
    if let Some(runtime) = &args.runtime {
        return Ok(runtime.clone());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .collect();
    RUNTIMES
        .iter()
        .find_map(|name| dirs.iter().map(|dir| dir.join(name)).find(|p| p.is_file()))
        .ok_or_else(|| {
            Failure::failed(
                "no OCI runtime was found: install crun, runc or youki, or use --runtime",
            )
        })
}

struct Keeper<'a> {
    args: &'a RunArgs,
    orders: &'a Orders,
    runtime: PathBuf,
    store: Store,
    container: Container,
    /// Where the bundle is, on a file system in memory that only these namespaces have.
    merged: PathBuf,
}

impl Keeper<'_> {
    fn rootfs(&self) -> PathBuf {
        self.merged.join("rootfs")
    }

    fn hold_and_run(
        &self,
        config: &serde_json::Map<String, Value>,
        pipe: File,
    ) -> Result<u8, Failure> {
        let _hold = match &self.container.parent {
            Some(parent) => Some(self.store.hold(&self.store.chain_of(parent)?)?),
            None => None,
        };
        self.mount()?;
        let terminal = self.args.wants_terminal();
        let spec = settings::spec(
            self.args,
            config,
            &self.rootfs(),
            &self.container,
            self.orders,
        )?;
        settings::write_files(&self.merged, &spec.hostname)
            .map_err(|error| failed("writing the bundle", error))?;
        let spec = settings::with_files(spec, &self.merged, &self.rootfs());
        let text = oci::config(&spec).to_string();
        fs::write(self.merged.join("config.json"), text)
            .map_err(|error| failed("writing the bundle", error))?;
        let target = Arc::new(Target::default());
        self.serve(&target)?;
        let front = Arc::clone(&target);
        std::thread::spawn(move || pass_signals_on(pipe, &front));
        self.execute(&target, terminal)
    }

    /// Mounts memory for the bundle, and the container's tree in it.
    fn mount(&self) -> Result<(), Failure> {
        let at = |error: std::io::Error| failed(&format!("{}", self.merged.display()), error);
        mounts::ensure_target(&self.merged)?;
        rustix::mount::mount(
            "tmpfs",
            &self.merged,
            "tmpfs",
            MountFlags::NODEV,
            c"mode=0700",
        )
        .map_err(|errno| at(errno.into()))?;
        for dir in ["rootfs", "state"] {
            fs::create_dir(self.merged.join(dir)).map_err(at)?;
        }
        let mut tree = merged_tree(&self.store, &self.container)?;
        tree.volatile = self.args.rm;
        let used = tree.mount(&self.rootfs(), self.args.driver)?;
        tracing::debug!(used, "mounted");
        std::env::set_current_dir(&self.merged).map_err(at)
    }

    /// Answers other commands that ask about this container.
    fn serve(&self, target: &Arc<Target>) -> Result<(), Failure> {
        let listener = control::listen(&self.container.id)
            .map_err(|error| failed("listening to other commands", error))?;
        let (target, rootfs) = (Arc::clone(target), self.rootfs());
        let container = self.container.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Err(error) = answer(stream, &container, &target, &rootfs) {
                    tracing::debug!(%error, "another command has gone");
                }
            }
        });
        Ok(())
    }

    fn execute(&self, target: &Target, terminal: bool) -> Result<u8, Failure> {
        let socket = match terminal {
            true => Some(
                UnixListener::bind("console.sock")
                    .map_err(|error| failed("making the console's socket", error))?,
            ),
            false => None,
        };
        self.runtime(
            &["create", "--bundle", ".", "--pid-file", "pid"],
            socket.is_some(),
        )?;
        let saved = terminal::Saved::take();
        let output = match &socket {
            Some(socket) => {
                let master = terminal::receive(socket)
                    .map_err(|error| failed("taking over the container's terminal", error))?;
                saved.make_raw();
                let output = terminal::connect(master);
                Some(output.map_err(|error| failed("connecting the terminal", error))?)
            }
            None => None,
        };
        let code = self.start_and_wait(target, output);
        if terminal {
            saved.restore();
        }
        code
    }

    fn start_and_wait(
        &self,
        target: &Target,
        output: Option<JoinHandle<()>>,
    ) -> Result<u8, Failure> {
        let pid = fs::read_to_string("pid").map_err(|error| failed("reading the pid", error))?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::failed("the runtime has written no pid"))?;
        target.set(pid);
        if let Err(failure) = self.runtime(&["start"], false) {
            target.kill();
            return Err(failure);
        }
        let status = loop {
            // As the first process of the namespace this one has every orphan.
            match rustix::process::wait(WaitOptions::empty()) {
                Ok(Some((ended, status))) if ended == pid => break status,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed("waiting for the command", errno)),
            }
        };
        target.forget();
        if let Some(output) = output
            && output.join().is_err()
        {
            tracing::debug!("the terminal's thread has panicked");
        }
        let signal = target.ended_by().or(status.terminating_signal());
        let code = match signal {
            Some(signal) => 128 + signal,
            None => status.exit_status().unwrap_or_default(),
        };
        Ok(u8::try_from(code).unwrap_or(super::FAILED))
    }

    /// Runs the runtime, with a log of what goes wrong. While it creates the container its standard error is what the
    /// command will have, and it says there itself what it logs; that isn't said again.
    fn runtime(&self, words: &[&str], console: bool) -> Result<(), Failure> {
        let mut command = Command::new(&self.runtime);
        command.args(["--root", "state", "--log", "log"]);
        let name = self.runtime.file_name().unwrap_or_default();
        if name == "crun" {
            // Nothing is limited, and nothing stays behind in /sys/fs/cgroup.
            command.arg("--cgroup-manager=disabled");
        }
        command.args(words);
        if console {
            command.args(["--console-socket", "console.sock"]);
            command.stdin(Stdio::null());
        }
        let speaks = words.first() == Some(&"create");
        if !speaks {
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(Stdio::null());
        }
        command.arg(&self.container.id);
        unblock_signals_in(&mut command);
        let status = command.status();
        let status = status
            .map_err(|error| failed(&format!("running {}", self.runtime.display()), error))?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read_to_string("log").unwrap_or_default();
        let failure = settings::explain(&self.runtime, &said, &status.to_string());
        Err(match speaks && !said.trim().is_empty() {
            true => Failure {
                message: String::new(),
                ..failure
            },
            false => failure,
        })
    }

    /// Unmounts what was written to, and removes what was for this run only.
    fn clean_up(&self, lock: Lock) -> Result<(), Failure> {
        std::env::set_current_dir("/").map_err(|error| failed("leaving the bundle", error))?;
        let rootfs = self.rootfs();
        if rootfs.exists() && !mounts::is_plain_directory(&rootfs) {
            self.unmount(&rootfs)?;
        }
        if let Err(errno) = rustix::mount::unmount(&self.merged, UnmountFlags::DETACH) {
            tracing::debug!(%errno, "nothing was mounted");
        }
        if let Err(error) = fs::remove_dir(&self.merged) {
            tracing::debug!(%error, "the mount point stays");
        }
        drop(lock);
        if !self.args.rm {
            return Ok(());
        }
        match self.store.remove_container(&self.container) {
            // Whoever has ended it was faster.
            Err(StoreError::NotFound { .. }) => Ok(()),
            other => Ok(other?),
        }
    }

    fn unmount(&self, rootfs: &Path) -> Result<(), Failure> {
        let is_fuse = crate::fuse::mount::top_mount(rootfs)
            .ok()
            .flatten()
            .is_some_and(|info| crate::fuse::mount::is_fuse(&info));
        match is_fuse {
            true => umount::run(&umount::UmountArgs::new(rootfs, false)),
            false => crate::fuse::mount::unmount(rootfs, false)
                .map_err(|error| failed("unmounting the container", error)),
        }
    }
}

/// Passes on what the front passes on. When the front has died, so does what runs.
fn pass_signals_on(mut pipe: File, target: &Target) {
    let mut byte = [0];
    while let Ok(1) = pipe.read(&mut byte) {
        target.signal(byte.first().copied().unwrap_or_default().into());
    }
    target.kill();
}

fn answer(
    mut stream: UnixStream,
    container: &Container,
    target: &Target,
    rootfs: &Path,
) -> std::io::Result<()> {
    let Some(order) = control::read_order(&mut stream, container)? else {
        return Ok(());
    };
    let done = match order {
        SYNC => mounts::sync_tree(rootfs).is_ok(),
        KILL => {
            target.kill();
            true
        }
        _ => false,
    };
    stream.write_all(&[if done { DONE } else { b'?' }])
}

/// A file of the container's tree, whose symlinks are followed within it; empty when there is none.
pub fn read_in(rootfs: &Path, path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = || -> std::io::Result<String> {
        let root = File::open(rootfs)?;
        let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
        let mut text = Vec::new();
        File::from(file).take(4 << 20).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    open().unwrap_or_default()
}

/// Sends a signal to a process that may have ended.
pub fn send(pid: Pid, signal: Signal) {
    if let Err(errno) = rustix::process::kill_process(pid, signal) {
        tracing::debug!(%errno, "the command has ended");
    }
}
