//! File systems to put layers on, and the mounts that are compared.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::layers::Made;
use super::model::Disk;

/// The kernel's options: everything that rovl has on by default, so that most agrees.
pub const KERNEL_OPTIONS: &str = "redirect_dir=on,index=on,metacopy=off,xino=auto";

/// How long a command may take before it is called hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is tested.
#[derive(Clone, Debug)]
pub enum Subject {
    Rovl(PathBuf),
    /// The kernel's overlayfs in rovl's place: checks the test itself.
    Kernel,
    /// Another program with fuse-overlayfs's command line.
    Program(PathBuf),
}

impl Subject {
    /// From `ROVL_DIFF_SUBJECT`; rovl without it.
    pub fn from_env() -> Subject {
        match std::env::var_os("ROVL_DIFF_SUBJECT") {
            None => Subject::Rovl(PathBuf::from(env!("CARGO_BIN_EXE_rovl"))),
            Some(name) if name == "kernel" => Subject::Kernel,
            Some(path) => Subject::Program(path.into()),
        }
    }
}

/// The directories of an overlay.
#[derive(Clone, Debug)]
pub struct Dirs {
    pub lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub merged: PathBuf,
}

impl Dirs {
    fn options(&self) -> OsString {
        let mut options = OsString::from("lowerdir=");
        for (i, lower) in self.lowers.iter().enumerate() {
            if i > 0 {
                options.push(":");
            }
            options.push(lower);
        }
        options.push(",upperdir=");
        options.push(&self.upper);
        options.push(",workdir=");
        options.push(&self.work);
        options
    }
}

/// A mounted tree; dropping it detaches it.
pub struct Mounted {
    path: PathBuf,
    subject: Option<Subject>,
    live: bool,
}

/// nosuid and nodev are what FUSE mounts have.
fn flags() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME
}

/// Mounts the kernel's overlayfs.
pub fn kernel(dirs: &Dirs) -> Made<Mounted> {
    kernel_with(dirs, KERNEL_OPTIONS)
}

/// Mounts the kernel's overlayfs with other options.
pub fn kernel_with(dirs: &Dirs, options: &str) -> Made<Mounted> {
    let mut data = dirs.options();
    data.push(",");
    data.push(options);
    let data =
        std::ffi::CString::new(data.into_encoded_bytes()).map_err(|error| error.to_string())?;
    // EBUSY: another process's mount namespace still has the mount that was just unmounted.
    wait_for("kernel overlay mount", || {
        match rustix::mount::mount("overlay", &dirs.merged, "overlay", flags(), data.as_c_str()) {
            Ok(()) => Ok(true),
            Err(Errno::BUSY) => Ok(false),
            Err(error) => Err(format!("kernel overlay mount {data:?}: {error}")),
        }
    })?;
    Ok(Mounted {
        path: dirs.merged.clone(),
        subject: None,
        live: true,
    })
}

/// Mounts `from` on `to` with the flags that the overlays have.
pub fn bind(from: &Path, to: &Path) -> Made<Mounted> {
    rustix::mount::mount_bind(from, to)
        .map_err(|error| format!("bind mount on {}: {error}", to.display()))?;
    let mounted = Mounted {
        path: to.to_path_buf(),
        subject: None,
        live: true,
    };
    rustix::mount::mount_remount(to, MountFlags::BIND | flags(), c"")
        .map_err(|error| format!("remount {}: {error}", to.display()))?;
    Ok(mounted)
}

/// Mounts the subject.
pub fn subject(subject: &Subject, dirs: &Dirs, extra: &str) -> Made<Mounted> {
    let mut command = match subject {
        Subject::Kernel => return kernel(dirs),
        Subject::Rovl(path) => {
            // Another data path: the same variable as for the other tests of mounts.
            let more = std::env::var("ROVL_TEST_OPTIONS").unwrap_or_default();
            let extra = match more.contains("passthrough=on") {
                // That has no writeback cache.
                true => extra.replace(",writeback=1", ""),
                false => extra.to_owned(),
            };
            let mut command = Command::new(path);
            let options = format!("nosuid,nodev{extra}");
            command.arg("mount").arg("-o").arg(options);
            if !more.is_empty() {
                command.arg("-o").arg(more);
            }
            command
        }
        Subject::Program(path) => Command::new(path),
    };
    command.arg("-o").arg(dirs.options()).arg(&dirs.merged);
    run(&mut command)?;
    if !is_mounted(&dirs.merged)? {
        return Err(format!(
            "{command:?} says that it mounted, but nothing is mounted"
        ));
    }
    let through_ring = |path: &Path| {
        let said = Command::new(path).arg("stat").arg(&dirs.merged).output();
        said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("io_uring"))
    };
    if let Subject::Rovl(path) = subject
        && std::env::var("ROVL_TEST_OPTIONS").is_ok_and(|more| more.contains("io_uring=on"))
        && !through_ring(path)
    {
        return Err("requests don't come over io_uring".into());
    }
    Ok(Mounted {
        path: dirs.merged.clone(),
        subject: Some(subject.clone()),
        live: true,
    })
}

impl Mounted {
    /// Unmounts, and waits until the daemon is gone.
    pub fn unmount(mut self) -> Made<()> {
        match self.subject.clone() {
            Some(Subject::Rovl(path)) => self.rovl_unmount(&path)?,
            other => {
                self.plain_unmount()?;
                if matches!(other, Some(Subject::Program(_))) {
                    wait_for("the daemon ends", || Ok(!daemon_lives(&self.path)))?;
                }
            }
        }
        if is_mounted(&self.path)? {
            return Err(format!("{} is still mounted", self.path.display()));
        }
        self.live = false;
        Ok(())
    }

    /// A child that another thread has forked, but that has not reached its exec, holds our files
    /// for a moment: hence several attempts.
    fn rovl_unmount(&self, rovl: &Path) -> Made<()> {
        let mut last = Ok(());
        for _ in 0..10 {
            last = run(Command::new(rovl).arg("umount").arg(&self.path));
            if last.is_ok() || !is_mounted(&self.path)? {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        last.map_err(|text| format!("{text}\nheld by: {}", holders(&self.path)))
    }

    fn plain_unmount(&self) -> Made<()> {
        wait_for("unmount", || {
            match rustix::mount::unmount(&self.path, UnmountFlags::empty()) {
                Ok(()) => Ok(true),
                Err(Errno::BUSY) => Ok(false),
                Err(error) => Err(format!("unmount {}: {error}", self.path.display())),
            }
        })
    }

    /// Aborts a FUSE connection that does not answer.
    pub fn abort(&self) {
        // EBUSY is usual: the drop that follows detaches the mount.
        report(
            "abort",
            &self.path,
            rustix::mount::unmount(&self.path, UnmountFlags::FORCE),
        );
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.live {
            self.abort();
            report(
                "detach",
                &self.path,
                rustix::mount::unmount(&self.path, UnmountFlags::DETACH),
            );
        }
    }
}

/// Says what went wrong while cleaning up, where there is no one to return it to.
fn report(what: &str, path: &Path, result: Result<(), Errno>) {
    match result {
        Ok(()) | Err(Errno::BUSY | Errno::INVAL) => {}
        Err(error) => println!("{what} {}: {error}", path.display()),
    }
}

fn wait_for(what: &str, mut ready: impl FnMut() -> Made<bool>) -> Made<()> {
    let start = Instant::now();
    while !ready()? {
        if start.elapsed() > PATIENCE {
            return Err(format!("{what}: not within {PATIENCE:?}"));
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    Ok(())
}

/// Runs a command that must succeed. Its output goes to a file: a daemon may keep a pipe open.
fn run(command: &mut Command) -> Made<()> {
    let failed = |error: std::io::Error| format!("{command:?}: {error}");
    let mut log = tempfile::tempfile().map_err(failed)?;
    let copy = |log: &fs::File| log.try_clone().map(Stdio::from);
    let mut child = match (copy(&log), copy(&log)) {
        (Ok(out), Ok(err)) => command.stdin(Stdio::null()).stdout(out).stderr(err).spawn(),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
    .map_err(|error| format!("{command:?}: {error}"))?;
    let mut status = None;
    let waited = wait_for("a command", || {
        status = child.try_wait().map_err(|error| error.to_string())?;
        Ok(status.is_some())
    });
    if waited.is_err() {
        // It may have just ended; then there is nothing to kill.
        drop(child.kill());
        drop(child.wait());
    }
    if let Some(status) = status
        && status.success()
    {
        return Ok(());
    }
    let mut text = String::new();
    let read = std::io::Seek::rewind(&mut log)
        .and_then(|()| std::io::Read::read_to_string(&mut log, &mut text));
    Err(format!(
        "{command:?} failed ({status:?}): {text} {:?}",
        read.err()
    ))
}

fn is_mounted(path: &Path) -> Made<bool> {
    let table = fs::read("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let table = String::from_utf8_lossy(&table);
    let path = path.to_string_lossy();
    Ok(table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(&path)))
}

/// Which threads have something of the mount `path` open, as working directory or root.
fn holders(path: &Path) -> String {
    let mut found = Vec::new();
    let list = |dir: &Path| {
        fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .collect::<Vec<_>>()
    };
    for process in list(Path::new("/proc")) {
        for thread in list(&process.join("task")) {
            let mut links = vec![thread.join("cwd"), thread.join("root")];
            links.extend(list(&thread.join("fd")));
            links.extend(list(&process.join("map_files")));
            for link in links {
                if let Ok(target) = fs::read_link(&link)
                    && target.starts_with(path)
                {
                    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
                    let name = link.file_name().unwrap_or_default();
                    let info = read(thread.join("fdinfo").join(name));
                    let mount = info.lines().find(|line| line.starts_with("mnt_id"));
                    found.push(format!(
                        "{} ({}) -> {} {mount:?}",
                        link.display(),
                        read(thread.join("comm")).trim_end(),
                        target.display()
                    ));
                }
            }
        }
    }
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let table = String::from_utf8_lossy(&table);
    let path = path.to_string_lossy();
    found.extend(
        table
            .lines()
            .filter(|line| line.contains(&*path))
            .map(String::from),
    );
    found.join("\n  ")
}

/// Whether a process has `path` among its arguments.
fn daemon_lives(path: &Path) -> bool {
    let wanted = path.as_os_str().as_encoded_bytes();
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    processes.flatten().any(|entry| {
        fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
            line.split(|byte| *byte == 0)
                .any(|argument| argument == wanted)
        })
    })
}

/// The file systems of a test run. Dropping it unmounts and removes them.
pub struct Disks {
    base: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Disks {
    /// What `wanted` needs of ext4, XFS and tmpfs, below a new directory of `/var/tmp`.
    pub fn new(wanted: &[Disk]) -> Made<Disks> {
        if !rustix::process::geteuid().is_root() {
            return Err("this test mounts file systems and changes owners: it needs root".into());
        }
        let base = tempfile::Builder::new()
            .prefix("rovl-diff.")
            .tempdir_in("/var/tmp")
            .map_err(|error| format!("/var/tmp: {error}"))?
            .keep();
        let mut disks = Disks {
            base,
            mounts: Vec::new(),
        };
        let tmpfs = disks.directory("tmpfs")?;
        rustix::mount::mount(
            "tmpfs",
            &tmpfs,
            "tmpfs",
            MountFlags::empty(),
            c"size=4g,mode=755",
        )
        .map_err(|error| format!("tmpfs: {error}"))?;
        disks.mounts.push(tmpfs.clone());
        let needs = |kind: &str| match kind {
            "ext4" => wanted
                .iter()
                .any(|disk| matches!(disk, Disk::Ext4 | Disk::Mixed)),
            _ => wanted.contains(&Disk::Xfs),
        };
        for kind in ["ext4", "xfs"].into_iter().filter(|kind| needs(kind)) {
            let image = tmpfs.join(format!("{kind}.img"));
            let file = fs::File::create(&image).map_err(|error| error.to_string())?;
            file.set_len(1 << 30).map_err(|error| error.to_string())?;
            let target = disks.directory(kind)?;
            run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))?;
            run(Command::new("mount")
                .args(["-o", "loop"])
                .arg(&image)
                .arg(&target))?;
            disks.mounts.push(target);
        }
        Ok(disks)
    }

    fn directory(&self, name: &str) -> Made<PathBuf> {
        let path = self.base.join(name);
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(path)
    }

    /// Where the lowers and where the uppers of a case go.
    pub fn places(&self, disk: Disk) -> (PathBuf, PathBuf) {
        let (lower, upper) = match disk {
            Disk::Ext4 => ("ext4", "ext4"),
            Disk::Xfs => ("xfs", "xfs"),
            Disk::Tmpfs => ("tmpfs", "tmpfs"),
            Disk::Mixed => ("tmpfs", "ext4"),
        };
        (self.base.join(lower), self.base.join(upper))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for path in self.mounts.iter().rev() {
            report(
                "unmount",
                path,
                rustix::mount::unmount(path, UnmountFlags::DETACH),
            );
        }
        if let Err(error) = fs::remove_dir_all(&self.base) {
            println!("remove {}: {error}", self.base.display());
        }
    }
}
