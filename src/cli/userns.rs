//! User namespaces: which one the process is in, and entering one as a plain user.
//!
//! A plain user can't give files to others, but in a user namespace it can, to as many ids as its namespace has: its
//! sub-ids, which only newuidmap(1) and newgidmap(1) may map, from the outside; or its own id alone, as root. So a
//! user's command with sub-ids runs as a child process in a new namespace, mapped by its parent, and without them
//! in a namespace that it maps itself. Neither needs to be told to the other but by /proc: the parent sees that the
//! child has its own namespace, the child sees that it has its map.
//!
//! What the child mounts where the user sees it, the parent mounts for it ([`agent`]). A daemon that stays has its
//! agent stay with it: one more process of the same program, outside of the namespace.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

use super::{FAILED, Failure};
use crate::fuse::mount::agent;
use crate::overlay::IdMap;
use crate::sys::process::{
    block_signals, inherited_fd, start_session_in, unblock_signals, unblock_signals_in,
    wait_signal_sender,
};

/// Set for the child that is to be in a namespace of its own.
const MARK: &str = "ROVL_USERNS";
/// Who maps the child's ids.
const PARENT: &str = "parent";
const ITSELF: &str = "itself";
/// It is no child, but the agent that stays with one.
const AGENT: &str = "agent";
/// Set for the agent: where the daemon's tree is mounted.
const MOUNTED: &str = "ROVL_MOUNTED";
/// See [`is_own`].
static IS_OWN: AtomicBool = AtomicBool::new(false);
/// SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM, SIGCHLD.
const ATTENDED: [i32; 7] = [1, 2, 3, 10, 12, 15, CHILD_ENDED];
const CHILD_ENDED: i32 = 17;
/// How long the other process may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked after.
const PAUSE: Duration = Duration::from_micros(300);

/// Ids of a user in /etc/subuid or /etc/subgid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u32,
    count: u32,
}

/// Makes a plain user root of a user namespace. `Some`: the command has run, in a child, and this is its exit code.
/// `None`: it is to run here.
pub fn enter(args: &[OsString]) -> Result<Option<ExitCode>, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    if let Ok(mark) = std::env::var(MARK) {
        return begin_child(&mark);
    }
    if let Some((uids, gids)) = sub_ids()
        && let Some(code) = run_in_child(args, Some((uids, gids)))?
    {
        return Ok(Some(code));
    }
    run_in_child(args, None)
}

/// The child's part. `mark`: the descriptor of the socket to its parent, and who maps. `Some`: it was the agent's.
fn begin_child(mark: &str) -> Result<Option<ExitCode>, Failure> {
    let (socket, mapped_by) = mark.split_once(' ').unwrap_or((mark, ""));
    if let Some(socket) = socket.parse().ok().and_then(|n| inherited_fd(n).ok()) {
        if mapped_by == AGENT {
            agent::stay(socket.as_fd(), std::env::var_os(MOUNTED).map(PathBuf::from));
            return Ok(Some(ExitCode::SUCCESS));
        }
        agent::use_agent(socket);
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|errno| Failure::failed(format!("watching the parent: {errno}")))?;
    if mapped_by == PARENT {
        wait_for_map()?;
    } else if let Err(error) = map_own_id() {
        tracing::debug!(%error, "no user namespace: going on as a plain user");
        return Ok(None);
    }
    IS_OWN.store(true, Ordering::Relaxed);
    Ok(None)
}

/// Whether this process is in a user namespace that was made for it here.
pub fn is_own() -> bool {
    IS_OWN.load(Ordering::Relaxed)
}

/// In a namespace of its own: this process's id is root's, and there is no other.
fn map_own_id() -> std::io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    unshare()?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))
}

fn unshare() -> std::io::Result<()> {
    // The newer, unsafe form of it warns of CLONE_FILES only.
    #[allow(deprecated)]
    Ok(rustix::thread::unshare(UnshareFlags::NEWUSER)?)
}

/// The child's part: a namespace, then waiting for the map that its parent has made for it.
fn wait_for_map() -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::failed(format!("making a user namespace for the sub-ids: {error}"))
    };
    unshare().map_err(failed)?;
    let start = Instant::now();
    while !is_mapped("/proc/self/uid_map") || !is_mapped("/proc/self/gid_map") {
        if start.elapsed() > PATIENCE {
            return Err(failed(std::io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn is_mapped(map: &str) -> bool {
    fs::read_to_string(map).is_ok_and(|map| !map.trim().is_empty())
}

/// The parent's part. `None` when the sub-ids can't be mapped, of which the user is told.
fn run_in_child(
    args: &[OsString],
    ranges: Option<(Range, Range)>,
) -> Result<Option<ExitCode>, Failure> {
    let failed =
        |error: std::io::Error| Failure::failed(format!("running rovl once more: {error}"));
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = args.first() {
        command.arg0(name);
    }
    let (ours, theirs) = socket_pair().map_err(failed)?;
    let mapped_by = if ranges.is_some() { PARENT } else { ITSELF };
    let mark = format!("{} {mapped_by}", theirs.as_raw_fd());
    command.args(args.iter().skip(1)).env(MARK, mark);
    unblock_signals_in(&mut command);
    // From here on signals are the child's.
    block_signals(&ATTENDED).map_err(|errno| failed(errno.into()))?;
    let mut child = command.spawn().map_err(failed)?;
    drop(theirs);
    if let Some((uids, gids)) = ranges
        && let Err(error) = map_child(&mut child, uids, gids)
    {
        super::warn(&format!("the sub-ids can't be used: {error}"));
        // It waits for its map, and has done nothing yet.
        child.kill().map_err(failed)?;
        child.wait().map_err(failed)?;
        unblock_signals(&ATTENDED).map_err(|errno| failed(errno.into()))?;
        return Ok(None);
    }
    let (stopped, stop) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let serving = std::thread::spawn(move || {
        let mounted = agent::serve(ours.as_fd(), Some(stopped.as_fd()), None);
        mounted.map(|mounted| (ours, mounted))
    });
    let status = attend(&mut child).map_err(failed)?;
    drop(stop);
    if let Ok(Ok((socket, Some(mounted)))) = serving.join()
        && let Err(error) = leave_agent(args, &socket, &mounted)
    {
        super::warn(&format!(
            "a signal will not unmount {}: {error}",
            mounted.display()
        ));
    }
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(FAILED),
        (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(FAILED),
        (None, None) => FAILED,
    };
    Ok(Some(ExitCode::from(code)))
}

/// Starts the agent that stays with a daemon. It shows the same arguments as the daemon.
fn leave_agent(args: &[OsString], socket: &OwnedFd, mounted: &Path) -> std::io::Result<()> {
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = args.first() {
        command.arg0(name);
    }
    rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())?;
    command
        .args(args.iter().skip(1))
        .env(MARK, format!("{} {AGENT}", socket.as_raw_fd()))
        .env(MOUNTED, mounted)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    start_session_in(&mut command);
    unblock_signals_in(&mut command);
    command.spawn().map(drop)
}

/// A socket between this process and its child, whose end the child inherits.
fn socket_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let kind = SocketType::SEQPACKET;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    rustix::io::fcntl_setfd(&pair.1, rustix::io::FdFlags::empty())?;
    Ok(pair)
}

/// The ids that this namespace has, as the namespace outside of it knows them.
pub fn maps_to_outside() -> (Vec<IdMap>, Vec<IdMap>) {
    let rows = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let row = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse);
            Some(IdMap {
                stored: numbers.next()?.ok()?,
                shown: numbers.next()?.ok()?,
                count: numbers.next()?.ok()?,
            })
        };
        text.lines().filter_map(row).collect()
    };
    (rows("/proc/self/uid_map"), rows("/proc/self/gid_map"))
}

/// Passes signals on until the child has ended. Those that a terminal sends reach the child by themselves.
fn attend(child: &mut Child) -> std::io::Result<ExitStatus> {
    loop {
        let (signal, by_process) = wait_signal_sender(&ATTENDED)?;
        if signal == CHILD_ENDED {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
        } else if by_process
            && let Some(signal) = Signal::from_named_raw(signal)
            && let Some(pid) = Pid::from_raw(child.id().cast_signed())
        {
            rustix::process::kill_process(pid, signal)?;
        }
    }
}

fn map_child(child: &mut Child, uids: Range, gids: Range) -> std::io::Result<()> {
    let own = fs::read_link("/proc/self/ns/user")?;
    let theirs = format!("/proc/{}/ns/user", child.id());
    let start = Instant::now();
    while fs::read_link(&theirs)? == own {
        if child.try_wait()?.is_some() || start.elapsed() > PATIENCE {
            return Err(std::io::Error::other(
                "the child has no namespace of its own",
            ));
        }
        std::thread::sleep(PAUSE);
    }
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    // The group map first: the child begins once it has both.
    map_ids("newgidmap", child.id(), gid, gids)?;
    map_ids("newuidmap", child.id(), uid, uids)
}

fn map_ids(program: &str, pid: u32, own: u32, range: Range) -> std::io::Result<()> {
    let ids = [pid, 0, own, 1, 1, range.start, range.count];
    let output = Command::new(program)
        .args(ids.map(|id| id.to_string()))
        .output()
        .map_err(|error| std::io::Error::new(error.kind(), format!("{program}: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(std::io::Error::other(format!("{program}: {}", said.trim())))
        }
    }
}

/// The largest ranges of this user. None: there are no sub-ids.
fn sub_ids() -> Option<(Range, Range)> {
    let uid = rustix::process::getuid().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = name_of(&passwd, uid).or_else(|| std::env::var("USER").ok());
    let range = |path| {
        let text = fs::read_to_string(path).ok()?;
        range_of(&text, name.as_deref(), uid)
    };
    Some((range("/etc/subuid")?, range("/etc/subgid")?))
}

fn name_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The largest range of a user, by name or number, in the text of /etc/subuid.
fn range_of(text: &str, name: Option<&str>, uid: u32) -> Option<Range> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let is_own = Some(owner) == name || owner.parse() == Ok(uid);
            let start = fields.next()?.parse().ok()?;
            let count = fields.next()?.parse().ok()?;
            is_own.then_some(Range { start, count })
        })
        .filter(|range| range.count > 0)
        .max_by_key(|range| range.count)
}

/// Whether this is the initial user namespace, as far as the id map tells.
pub fn is_initial() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether only one id can be given to files: a plain user, or a namespace with a map of one id.
pub fn has_one_id() -> bool {
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    ids_in(&map) <= 1
}

fn ids_in(map: &str) -> u64 {
    map.lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_a_user_is_found() {
        let text = "a:1000:5\nb:2000:65536\n# b:1:99999999\nb:300000:70000\n1001:9:8\nbad\n";
        let range = |start, count| Some(Range { start, count });
        assert_eq!(range_of(text, Some("b"), 1), range(300_000, 70_000));
        assert_eq!(range_of(text, None, 1001), range(9, 8));
        assert_eq!(range_of(text, Some("c"), 2), None);
        let passwd = "root:x:0:0::/:/bin/sh\nme:x:1001:1001::/:/bin/sh\n";
        assert_eq!(name_of(passwd, 1001).as_deref(), Some("me"));
    }

    #[test]
    fn ids_of_a_map_are_counted() {
        assert_eq!(ids_in("         0       1000          1\n"), 1);
        assert_eq!(ids_in("0 1000 1\n1 100000 65536\n"), 65537);
        assert_eq!(ids_in(""), 0);
    }
}
