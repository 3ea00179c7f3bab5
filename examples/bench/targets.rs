//! What is measured, and how each is mounted and taken away again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::{Args, split_words};
use crate::data::Layers;
use crate::exec;
use crate::model::{Family, TargetInfo};

/// One implementation, in one mode.
pub struct Target {
    /// What reports call it.
    pub name: String,
    /// What it is.
    pub family: Family,
    /// The words of its command; empty for those that need none.
    pub command: Vec<String>,
    /// What `rovl stat` is called by, for those that can tell their requests.
    pub counts: Option<PathBuf>,
    version: String,
}

impl Target {
    fn new(name: &str, family: Family, command: &[&str]) -> Target {
        Target {
            name: name.to_owned(),
            family,
            command: command.iter().map(|w| (*w).to_owned()).collect(),
            counts: None,
            version: String::new(),
        }
    }

    /// For the report.
    pub fn info(&self, refused: Option<String>) -> TargetInfo {
        TargetInfo {
            name: self.name.clone(),
            family: self.family,
            command: self.command.join(" "),
            version: self.version.clone(),
            refused,
        }
    }
}

/// rovl's modes: what follows `rovl` in the name, and the options.
const MODES: [(&str, &str); 3] = [
    ("", ""),
    (":writeback=on", "writeback=on"),
    (":passthrough=on", "passthrough=on"),
];

const PEER: &str = "lowerdir={lower},upperdir={upper},workdir={work}";

/// All targets that the command line asks for.
///
/// # Errors
/// A `--target` that can't be used, a name in `--targets` that is nobody's.
pub fn chosen(args: &Args) -> Result<Vec<Target>> {
    let mut all = vec![
        Target::new("bare", Family::Bare, &[]),
        Target::new("kernel", Family::Kernel, &[]),
    ];
    let rovl = fs::canonicalize(&args.rovl).unwrap_or_else(|_| args.rovl.clone());
    for (suffix, options) in MODES {
        let program = rovl.to_string_lossy();
        let mut words = vec![
            &*program, "mount", "--lower", "{lower}", "--upper", "{upper}",
        ];
        words.extend(["--work", "{work}"]);
        if !options.is_empty() {
            words.extend(["-o", options]);
        }
        words.push("{merged}");
        let mut target = Target::new(&format!("rovl{suffix}"), Family::Rovl, &words);
        target.counts = Some(rovl.clone());
        all.push(target);
    }
    let peers = [
        (
            "fuse-overlayfs-2.0.0",
            Family::FuseOverlayfs2,
            args.peer_2(),
        ),
        (
            "fuse-overlayfs-1",
            Family::FuseOverlayfs1,
            args.fuse_overlayfs_1.clone(),
        ),
    ];
    for (name, family, program) in peers {
        let words = [&*program.to_string_lossy(), "-o", PEER, "{merged}"];
        all.push(Target::new(name, family, &words));
    }
    for given in &args.target {
        all.push(given_target(given)?);
    }
    if !args.targets.is_empty() {
        let names: Vec<&str> = all.iter().map(|t| t.name.as_str()).collect();
        if let Some(unknown) = args.targets.iter().find(|t| !names.contains(&t.as_str())) {
            bail!("--targets: no {unknown}; there are {}", names.join(", "));
        }
        all.retain(|target| args.targets.contains(&target.name) || target.family == Family::Other);
    }
    Ok(all)
}

fn given_target(given: &str) -> Result<Target> {
    let wanted = "want NAME=CMD with {lower} {upper} {work} {merged}";
    let (name, command) = given
        .split_once('=')
        .with_context(|| format!("--target {given}: {wanted}"))?;
    for part in ["{lower}", "{merged}"] {
        if name.is_empty() || !command.contains(part) {
            bail!("--target {given}: {wanted}");
        }
    }
    let words = split_words(command).map_err(anyhow::Error::msg)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(Target::new(name, Family::Other, &words))
}

/// Asks the programs for their versions.
pub fn ask_versions(targets: &mut [Target]) {
    for target in targets.iter_mut().filter(|t| t.family != Family::Other) {
        let Some(program) = target.command.first() else {
            continue;
        };
        if let Ok(done) = exec::run(Command::new(program).arg("--version")) {
            target.version = done.text.lines().next().unwrap_or_default().to_owned();
        }
    }
}

/// One mount, with an upper of its own. Taken away when it goes out of scope.
pub struct Mount<'a> {
    /// Whose.
    pub target: &'a Target,
    /// What it shows; for the bare file system, an empty directory for what is new.
    pub root: PathBuf,
    /// Its upper.
    pub upper: PathBuf,
    /// The layers under it.
    pub layers: &'a Layers,
    /// What serves it.
    pub daemon: Option<Pid>,
    base: PathBuf,
    /// A program that stays in the foreground.
    child: Option<Child>,
}

impl<'a> Mount<'a> {
    /// Mounts `layers` in a new directory under `scratch`, on the layers' file system.
    ///
    /// # Errors
    /// When it does not mount, with what the program says.
    pub fn new(target: &'a Target, layers: &'a Layers, scratch: &Path) -> Result<Mount<'a>> {
        let base = tempfile::Builder::new()
            .prefix("m-")
            .tempdir_in(scratch)?
            .keep();
        let mut mount = Mount {
            target,
            root: base.join("merged"),
            upper: base.join("upper"),
            layers,
            daemon: None,
            child: None,
            base,
        };
        for dir in [&mount.root, &mount.upper, &mount.work()] {
            fs::create_dir(dir)?;
        }
        match target.family {
            Family::Bare => {}
            Family::Kernel => mount.mount_kernel().context("mount")?,
            _ => mount.mount_by_command().context("mount")?,
        }
        Ok(mount)
    }

    fn work(&self) -> PathBuf {
        self.base.join("work")
    }

    /// By fsconfig(2): mount(8) has no room for 500 lowers.
    fn mount_kernel(&self) -> Result<()> {
        let context = mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        mount::fsconfig_set_string(&context, "source", "rovl-bench")?;
        for lower in &self.layers.lowers {
            mount::fsconfig_set_string(&context, "lowerdir+", lower)?;
        }
        mount::fsconfig_set_string(&context, "upperdir", &self.upper)?;
        mount::fsconfig_set_string(&context, "workdir", self.work())?;
        mount::fsconfig_create(&context)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOATIME;
        let mounted = mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
        let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        mount::move_mount(&mounted, "", rustix::fs::CWD, &self.root, how)?;
        Ok(())
    }

    fn words(&self) -> Vec<OsString> {
        let lowers: Vec<String> = self
            .layers
            .lowers
            .iter()
            .map(|l| l.display().to_string())
            .collect();
        let values = [
            ("{lower}", lowers.join(":")),
            ("{upper}", self.upper.display().to_string()),
            ("{work}", self.work().display().to_string()),
            ("{merged}", self.root.display().to_string()),
        ];
        let fill = |word: &String| {
            let filled = values.iter().fold(word.clone(), |word, (name, value)| {
                word.replace(name, value)
            });
            OsString::from(filled)
        };
        self.target.command.iter().map(fill).collect()
    }

    fn mount_by_command(&mut self) -> Result<()> {
        /// A program that mounts and stays longer than this serves the mount itself.
        const STAYS: Duration = Duration::from_millis(500);
        const PATIENCE: Duration = Duration::from_secs(30);
        // A daemon may keep its output open: a file, not a pipe.
        let log_path = self.base.join("log");
        let log = File::create(&log_path)?;
        let mut command = exec::command(&self.words());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| self.target.command.join(" "))?;
        let said = || {
            let said = fs::read_to_string(&log_path).unwrap_or_default();
            said.trim().chars().take(300).collect::<String>()
        };
        let start = Instant::now();
        let mut mounted_at = None;
        loop {
            // In this order: what mounts may do so and end between the two.
            let ended = child.try_wait()?;
            let mounted = is_mount_point(&self.root)?;
            if let Some(status) = ended {
                if !status.success() || !mounted {
                    bail!("{status}: {}", said());
                }
                self.daemon = find_daemon(&self.root);
                return Ok(());
            }
            if mounted && mounted_at.get_or_insert_with(Instant::now).elapsed() > STAYS {
                self.daemon = Some(Pid::from_child(&child));
                self.child = Some(child);
                return Ok(());
            }
            if exec::check().is_err() || start.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                exec::check()?;
                bail!("not mounted after {} s: {}", PATIENCE.as_secs(), said());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Is it no overlay at all?
    pub fn is_bare(&self) -> bool {
        self.target.family == Family::Bare
    }

    /// Where the layers are seen merged, to be read.
    pub fn read_root(&self) -> &Path {
        if self.is_bare() {
            &self.layers.merged
        } else {
            &self.root
        }
    }

    /// Something of the layers that is only read.
    pub fn reading(&self, name: &str) -> PathBuf {
        self.read_root().join(name)
    }

    /// Something of the layers that will be changed: on the bare file system, a copy, whose pages and names are as
    /// warm as a copy is.
    ///
    /// # Errors
    /// When it can't be copied.
    pub fn changing(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        if self.is_bare() {
            let source = self.layers.merged.join(name);
            exec::succeed(exec::command(&["cp", "-a", "--reflink=never"]).args([&source, &path]))?;
        }
        Ok(path)
    }

    /// A new directory.
    ///
    /// # Errors
    /// What mkdir(2) returns.
    pub fn new_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// What the daemon has done so far.
    ///
    /// # Errors
    /// When the daemon is gone, or when `rovl stat` can't be understood.
    pub fn gauge(&self) -> Result<Gauge> {
        let mut gauge = Gauge::default();
        let Some(daemon) = self.daemon else {
            return Ok(gauge);
        };
        let proc = PathBuf::from(format!("/proc/{daemon}"));
        for thread in fs::read_dir(proc.join("task")).context("the daemon is gone")? {
            // Threads come and go.
            let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            let ns = text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
            gauge.cpu += Duration::from_nanos(ns.unwrap_or(0));
        }
        let status = fs::read_to_string(proc.join("status")).context("the daemon is gone")?;
        gauge.rss_kib = status.lines().find_map(|line| {
            let value = line.strip_prefix("VmRSS:")?;
            value.trim().trim_end_matches(" kB").parse().ok()
        });
        if let Some(program) = &self.target.counts {
            let done = exec::succeed(
                Command::new(program)
                    .args(["stat", "--json"])
                    .arg(&self.root),
            )?;
            gauge.requests = Some(requests(&done.text).context("rovl stat --json")?);
        }
        Ok(gauge)
    }

    fn take_away(&mut self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);
        if !self.is_bare() {
            unmount(&self.root)?;
        }
        let start = Instant::now();
        let mut asked = false;
        while let Some(daemon) = self.daemon {
            let gone = match &mut self.child {
                Some(child) => child.try_wait()?.is_some(),
                None => !is_daemon_of(daemon, &self.root),
            };
            if gone {
                self.daemon = None;
            } else if start.elapsed() > PATIENCE && !asked {
                // It may end just now.
                kill_process(daemon, Signal::TERM).ok();
                asked = true;
            } else if start.elapsed() > PATIENCE + Duration::from_secs(5) {
                kill_process(daemon, Signal::KILL).ok();
                self.daemon = None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        fs::remove_dir_all(&self.base)?;
        Ok(())
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.take_away() {
            eprintln!(
                "bench: {} on {}: {e:#}",
                self.target.name,
                self.root.display()
            );
        }
    }
}

/// Counters of a daemon at one moment.
#[derive(Clone, Debug, Default)]
pub struct Gauge {
    /// Requests by kind.
    pub requests: Option<BTreeMap<String, u64>>,
    /// Processor time of all its threads.
    pub cpu: Duration,
    /// Resident memory.
    pub rss_kib: Option<u64>,
}

/// Requests by kind out of `rovl stat --json`: `requests_KIND` or `requests: { KIND }`.
fn requests(text: &str) -> Result<BTreeMap<String, u64>> {
    let value: serde_json::Value = serde_json::from_str(text)?;
    let fields = value.as_object().context("not an object")?;
    let flat = fields
        .iter()
        .filter_map(|(k, v)| Some((k.strip_prefix("requests_")?, v.as_u64()?)));
    let nested = fields.get("requests").and_then(|v| v.as_object());
    let nested = nested
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.as_str(), v.as_u64()?)));
    Ok(flat
        .chain(nested)
        .map(|(kind, n)| (kind.to_owned(), n))
        .collect())
}

/// Whether something is mounted just there. Does not wait for what is mounted.
///
/// # Errors
/// When /proc can't be read.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let mounts = rovl::overlay::mountinfo::mounts()?;
    Ok(mounts.iter().any(|m| m.mount_point == path))
}

fn is_daemon_of(pid: Pid, root: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    line.split(|b| *b == 0)
        .any(|word| word == root.as_os_str().as_encoded_bytes())
}

/// The process that has the mount point, which is nobody else's, among its arguments.
fn find_daemon(root: &Path) -> Option<Pid> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        Pid::from_raw(name.to_str()?.parse().ok()?)
    });
    pids.into_iter().find(|pid| is_daemon_of(*pid, root))
}

/// Unmounts what is mounted there: waits for those who still use it, then detaches it.
///
/// # Errors
/// What umount2(2) returns.
pub fn unmount(path: &Path) -> Result<()> {
    const ATTEMPTS: u32 = 100;
    for attempt in 0..ATTEMPTS {
        if !is_mount_point(path)? {
            return Ok(());
        }
        let flags = UnmountFlags::NOFOLLOW;
        let last = attempt + 1 == ATTEMPTS;
        match mount::unmount(
            path,
            if last {
                flags | UnmountFlags::DETACH
            } else {
                flags
            },
        ) {
            Ok(()) => {}
            Err(rustix::io::Errno::BUSY) => std::thread::sleep(Duration::from_millis(50)),
            Err(e) => return Err(e).with_context(|| format!("unmounting {}", path.display())),
        }
    }
    Ok(())
}

/// Unmounts everything at or beneath `path`, the last first.
///
/// # Errors
/// What umount2(2) returns.
pub fn unmount_beneath(path: &Path) -> Result<()> {
    let mounts = rovl::overlay::mountinfo::mounts()?;
    for mount in mounts
        .iter()
        .rev()
        .filter(|m| m.mount_point.starts_with(path))
    {
        unmount(&mount.mount_point)?;
    }
    Ok(())
}
