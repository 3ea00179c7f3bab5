//! A mount of the subject under test.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::process::{Pid, Signal, kill_process};

use super::scratch::{Layers, Scratch, mount_points_beneath};
use super::{rovl_bin, wait_until};

/// What gets mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// This crate's binary.
    Rovl,
    /// The kernel's overlayfs with `index=on,redirect_dir=on`: the oracle.
    Kernel,
    /// A fuse-overlayfs, by its path: a peer.
    FuseOverlayfs(PathBuf),
}

/// The subject that `ROVL_TEST_SUBJECT` names.
pub fn subject() -> Subject {
    match std::env::var("ROVL_TEST_SUBJECT") {
        Err(_) => Subject::Rovl,
        Ok(name) => match name.as_str() {
            "" | "rovl" => Subject::Rovl,
            "kernel" => Subject::Kernel,
            path if path.contains('/') => Subject::FuseOverlayfs(path.into()),
            other => panic!("ROVL_TEST_SUBJECT={other}: want rovl, kernel or a path"),
        },
    }
}

impl Subject {
    /// Mounts the layers, writable; panics with the program's message if that fails.
    pub fn mount(&self, layers: &Layers, options: &[&str]) -> Mounted {
        self.try_mount(layers, options, true)
            .unwrap_or_else(|e| panic!("{self:?} can't mount {layers:?} with {options:?}: {e}"))
    }

    /// Mounts the lowers alone, read-only.
    pub fn mount_read_only(&self, layers: &Layers, options: &[&str]) -> Mounted {
        self.try_mount(layers, options, false)
            .unwrap_or_else(|e| panic!("{self:?} can't mount {layers:?} with {options:?}: {e}"))
    }

    /// Mounts the layers, or says why not.
    pub fn try_mount(
        &self,
        layers: &Layers,
        options: &[&str],
        writable: bool,
    ) -> Result<Mounted, String> {
        let more = std::env::var("ROVL_TEST_OPTIONS").unwrap_or_default();
        let with_more: Vec<&str> = more
            .split(',')
            .filter(|option| !option.is_empty())
            .chain(options.iter().copied())
            .collect();
        match self {
            // The kernel is a second opinion in many tests of others.
            Subject::Kernel => mount_kernel(layers, options, writable)?,
            Subject::Rovl => {
                run_mounter(&rovl_bin(), &rovl_args(layers, &with_more, writable))?;
            }
            Subject::FuseOverlayfs(program) => {
                run_mounter(program, &fuse_overlayfs_args(layers, &with_more, writable))?;
            }
        }
        let mut mounted = Mounted {
            subject: self.clone(),
            layers: layers.clone(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
            writable,
            pid: None,
            live: true,
        };
        mounted.pid = mounted.find_daemon();
        if *self == Subject::Rovl && more.contains("io_uring=on") {
            let stat = mounted.stat_json().unwrap();
            assert_eq!(stat["transport"], "io_uring", "{stat}");
        }
        Ok(mounted)
    }
}

fn rovl_args(layers: &Layers, options: &[&str], writable: bool) -> Vec<String> {
    let mut args = vec!["mount".into(), "--lower".into(), layers.lowerdir()];
    if writable {
        args.extend(["--upper".into(), layers.upper.to_str().unwrap().into()]);
        args.extend(["--work".into(), layers.work.to_str().unwrap().into()]);
    }
    if !options.is_empty() {
        args.extend(["-o".into(), options.join(",")]);
    }
    args.push(layers.merged.to_str().unwrap().into());
    args
}

/// mount(8)'s words: `-o lowerdir=…,upperdir=…,workdir=…,OPTIONS MERGED`.
pub fn fuse_overlayfs_args(layers: &Layers, options: &[&str], writable: bool) -> Vec<String> {
    let mut words = format!("lowerdir={}", layers.lowerdir());
    if writable {
        words.push_str(&format!(
            ",upperdir={},workdir={}",
            layers.upper.display(),
            layers.work.display()
        ));
    }
    for option in options {
        words.push(',');
        words.push_str(option);
    }
    vec!["-o".into(), words, layers.merged.to_str().unwrap().into()]
}

/// Runs a mount program to its end. Its output goes to a file, so that a daemon that holds on to
/// its standard error doesn't stop the test.
fn run_mounter(program: &Path, args: &[String]) -> Result<(), String> {
    let scratch = Scratch::new();
    let log = scratch.join("log");
    let out = File::create(&log).unwrap();
    let status = Command::new(program)
        .args(args)
        .stdin(std::process::Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .status()
        .map_err(|e| format!("can't run {}: {e}", program.display()))?;
    if status.success() {
        return Ok(());
    }
    Err(format!(
        "{status}: {}",
        fs::read_to_string(&log).unwrap_or_default()
    ))
}

/// What was unmounted a moment ago is in use as long as a mount namespace has a copy of it, which those that other
/// tests make for themselves have until they end.
fn mount_kernel(layers: &Layers, options: &[&str], writable: bool) -> Result<(), String> {
    let mut last = Ok(false);
    wait_until(Duration::from_secs(5), || {
        last = mount_kernel_once(layers, options, writable);
        last != Ok(false)
    });
    match last {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("fsconfig create: {}", rustix::io::Errno::BUSY)),
        Err(said) => Err(said),
    }
}

/// fsopen(2) takes one lower at a time: no page-size limit on 128 of them. `false`: upper or work is in use.
fn mount_kernel_once(layers: &Layers, options: &[&str], writable: bool) -> Result<bool, String> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| format!("fsopen: {e}"))?;
    let set = |key: &str, value: &str| {
        fsconfig_set_string(&fs, key, value).map_err(|e| format!("{key}={value}: {e}"))
    };
    for lower in &layers.lowers {
        set("lowerdir+", lower.to_str().unwrap())?;
    }
    let given = |key: &str| options.iter().any(|o| o.split('=').next() == Some(key));
    if writable {
        set("upperdir", layers.upper.to_str().unwrap())?;
        set("workdir", layers.work.to_str().unwrap())?;
        if !given("index") && !given("userxattr") {
            set("index", "on")?;
        }
    }
    if !given("redirect_dir") && !given("userxattr") {
        set("redirect_dir", "on")?;
    }
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => set(key, value)?,
            None => fsconfig_set_flag(&fs, *option).map_err(|e| format!("{option}: {e}"))?,
        }
    }
    match fsconfig_create(&fs) {
        Ok(()) => {}
        Err(rustix::io::Errno::BUSY) => return Ok(false),
        Err(e) => return Err(format!("fsconfig create: {e}")),
    }
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|e| format!("fsmount: {e}"))?;
    move_mount(
        &mount,
        "",
        rustix::fs::CWD,
        &layers.merged,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|e| format!("move_mount: {e}"))?;
    Ok(true)
}

/// A live mount; unmounted, with its daemon's end awaited, on drop.
pub struct Mounted {
    subject: Subject,
    layers: Layers,
    options: Vec<String>,
    writable: bool,
    pid: Option<u32>,
    live: bool,
}

impl Mounted {
    /// The root of the merged tree.
    pub fn root(&self) -> &Path {
        &self.layers.merged
    }

    /// A path in the merged tree.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.layers.merged.join(relative)
    }

    /// The layers of this mount.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// What is mounted.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The process that serves the mount; `None` for the kernel's overlayfs.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.pid
    }

    /// Whether the daemon still runs (always, for the kernel).
    pub fn daemon_alive(&self) -> bool {
        self.pid.is_none_or(is_running)
    }

    /// rovl's counters, as the daemon tells them; `None` for the others.
    pub fn stat_json(&self) -> Option<serde_json::Value> {
        let root = File::open(self.root()).ok()?;
        let text = rovl::sys::fuse::ask_stat(root.as_fd()).ok()?;
        Some(serde_json::from_slice(&text).expect("the counters are JSON"))
    }

    fn find_daemon(&self) -> Option<u32> {
        match self.subject {
            Subject::Kernel => None,
            Subject::Rovl => {
                let stat = self
                    .stat_json()
                    .expect("rovl tells the counters of a mount");
                let pid = stat["pid"].as_u64().expect("the counters have a pid");
                Some(u32::try_from(pid).unwrap())
            }
            Subject::FuseOverlayfs(_) => {
                Some(process_with_argument(&self.layers.merged).expect("a fuse-overlayfs runs"))
            }
        }
    }

    /// Unmounts and waits for the daemon to end; panics if either fails.
    pub fn unmount(mut self) {
        self.try_unmount().unwrap_or_else(|e| panic!("{e}"));
    }

    /// Unmounts and mounts again with the same options.
    pub fn remount(&mut self) {
        let options: Vec<String> = self.options.clone();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        self.remount_with(&options);
    }

    /// Unmounts and mounts again with other options.
    pub fn remount_with(&mut self, options: &[&str]) {
        self.try_unmount().unwrap_or_else(|e| panic!("{e}"));
        *self = self
            .subject
            .try_mount(&self.layers, options, self.writable)
            .unwrap_or_else(|e| panic!("remount: {e}"));
    }

    /// Kills the daemon at once, and removes the dead mount point.
    pub fn kill_daemon(mut self) {
        let pid = self.pid.expect("the kernel has no daemon");
        signal(pid, Signal::KILL);
        assert!(
            wait_until(Duration::from_secs(20), || !is_running(pid)),
            "daemon {pid} survives SIGKILL"
        );
        self.live = false;
        // The kernel may have removed nothing: a killed daemon leaves its mount point.
        rustix::mount::unmount(&self.layers.merged, UnmountFlags::DETACH).ok();
    }

    /// Says that the mount is gone already, so that nothing needs to be unmounted.
    #[must_use]
    pub fn already_ended(mut self) -> Mounted {
        self.live = false;
        self
    }

    fn try_unmount(&mut self) -> Result<(), String> {
        if !self.live {
            return Ok(());
        }
        self.live = false;
        let point = &self.layers.merged;
        let mut result = rustix::mount::unmount(point, UnmountFlags::empty());
        // A process that has just ended may hold its last file for a moment.
        wait_until(Duration::from_secs(3), || {
            if result == Err(rustix::io::Errno::BUSY) {
                result = rustix::mount::unmount(point, UnmountFlags::empty());
            }
            result != Err(rustix::io::Errno::BUSY)
        });
        if let Err(e) = result {
            rustix::mount::unmount(point, UnmountFlags::DETACH).ok();
            self.end_daemon(Duration::from_millis(100));
            return Err(format!("can't unmount {}: {e}", point.display()));
        }
        if self.end_daemon(Duration::from_secs(20)) {
            return Ok(());
        }
        Err(format!("daemon {:?} doesn't end with its mount", self.pid))
    }

    /// Waits for the daemon; kills it when it takes too long. `true` if it ended by itself.
    fn end_daemon(&self, limit: Duration) -> bool {
        let Some(pid) = self.pid else { return true };
        if wait_until(limit, || !is_running(pid)) {
            return true;
        }
        signal(pid, Signal::KILL);
        wait_until(Duration::from_secs(5), || !is_running(pid));
        false
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(e) = self.try_unmount()
            && !std::thread::panicking()
        {
            panic!("{e}");
        }
    }
}

/// Whether something is mounted exactly at `path`.
pub fn is_mount_point(path: &Path) -> bool {
    mount_points_beneath(path).iter().any(|point| point == path)
}

/// Whether a thread of the process still runs: a zombie doesn't, but its other threads may, with all
/// its descriptors open.
pub fn is_running(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.flatten().any(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
        matches!(state, Some(Some(state)) if !matches!(state, 'Z' | 'X'))
    })
}

/// Sends a signal to a process that may be gone.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        kill_process(pid, signal).ok();
    }
}

fn process_with_argument(argument: &Path) -> Option<u32> {
    let wanted = argument.to_str().unwrap().as_bytes();
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let cmdline = fs::read(entry.path().join("cmdline")).ok()?;
        let found = cmdline.split(|byte| *byte == 0).any(|arg| arg == wanted);
        (found && pid != std::process::id() && is_running(pid)).then_some(pid)
    })
}
