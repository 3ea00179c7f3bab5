//! The process: signals, fork, session, umask, capabilities.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_long};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::Pid;

use super::call::check;

/// `CAP_SYS_ADMIN` as a bit of `CapEff`.
const CAP_SYS_ADMIN: u64 = 1 << 21;
/// `PROC_USER_INIT_INO` of include/linux/proc_ns.h.
const INITIAL_USER_NS: &str = "user:[4026531837]";

/// Which side of [`daemon_fork`] this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkResult {
    /// The one that called; the child's id.
    Parent(Pid),
    /// The new one.
    Child,
}

fn signal_set(signals: &[i32]) -> Result<libc::sigset_t, Errno> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it is given and cannot fail otherwise.
    let mut set = unsafe {
        check(c_long::from(libc::sigemptyset(set.as_mut_ptr())))?;
        set.assume_init()
    };
    for &signal in signals {
        // SAFETY: the set is initialised; a number that is no signal gives EINVAL.
        check(c_long::from(unsafe {
            libc::sigaddset(&raw mut set, signal)
        }))?;
    }
    Ok(set)
}

/// Blocks `signals` in this thread and in those that it starts later: to be called before the
/// first one is started, so that only [`wait_signal`] gets them.
///
/// # Errors
/// `EINVAL` when a number is not a signal.
pub fn block_signals(signals: &[i32]) -> Result<(), Errno> {
    let set = signal_set(signals)?;
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        e => Err(Errno::from_raw_os_error(e)),
    }
}

/// Takes back [`block_signals`], for this thread.
///
/// # Errors
/// `EINVAL` when a number is not a signal.
pub fn unblock_signals(signals: &[i32]) -> Result<(), Errno> {
    let set = signal_set(signals)?;
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) }
    {
        0 => Ok(()),
        e => Err(Errno::from_raw_os_error(e)),
    }
}

/// Waits for one of `signals`, which must be blocked, and returns its number.
///
/// # Errors
/// `EINVAL` when a number is not a signal.
pub fn wait_signal(signals: &[i32]) -> Result<i32, Errno> {
    let set = signal_set(signals)?;
    loop {
        // SAFETY: the set is initialised; the details are not asked for.
        let signal = unsafe { libc::sigwaitinfo(&raw const set, std::ptr::null_mut()) };
        match check(c_long::from(signal)) {
            Ok(_) => return Ok(signal),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Waits for one of `signals`, which must be blocked: its number, and whether a process has sent it rather than the
/// kernel, as it does for keys of a terminal.
///
/// # Errors
/// `EINVAL` when a number is not a signal.
pub fn wait_signal_sender(signals: &[i32]) -> Result<(i32, bool), Errno> {
    let set = signal_set(signals)?;
    loop {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: the set is initialised, and `info` has room for what the kernel writes.
        let signal = unsafe { libc::sigwaitinfo(&raw const set, info.as_mut_ptr()) };
        match check(c_long::from(signal)) {
            Ok(_) => {
                // SAFETY: all bytes are initialised: it was zeroed, and the kernel has filled it in.
                let info = unsafe { info.assume_init() };
                return Ok((signal, info.si_code <= libc::SI_USER));
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Takes over a descriptor that the process was started with, and lets no child inherit it. To be called once for a
/// number, by who knows that nothing else here has it.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn inherited_fd(number: i32) -> Result<std::os::fd::OwnedFd, Errno> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: fcntl touches no memory; it fails for what is not open.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    check(c_long::from(result))?;
    // SAFETY: it is open, and the caller says that nobody else owns it.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(number) })
}

/// Lets the child start with no signal blocked, whatever this process blocks.
pub fn unblock_signals_in(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt as _;
    // SAFETY: sigemptyset and sigprocmask are safe to be called between fork and exec, and nothing else is.
    unsafe {
        command.pre_exec(|| {
            let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
            libc::sigemptyset(set.as_mut_ptr());
            match libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

/// Lets the child start in a session of its own, without a terminal that could end it.
pub fn start_session_in(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt as _;
    // SAFETY: setsid is safe to be called between fork and exec, and nothing else is.
    unsafe {
        command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?));
    }
}

/// Sets the umask of the process and returns the one before.
pub fn set_umask(mode: u32) -> u32 {
    rustix::process::umask(Mode::from_raw_mode(mode & 0o777)).as_raw_mode()
}

/// `fork(2)`. Only for a process with a single thread: a lock that another thread holds would stay
/// held in the child for ever.
///
/// # Errors
/// `EAGAIN`, `ENOMEM`; `EBUSY` when the process has more than one thread.
pub fn daemon_fork() -> Result<ForkResult, Errno> {
    if thread_count().is_some_and(|n| n > 1) {
        return Err(Errno::BUSY);
    }
    // SAFETY: there is one thread (checked above as far as /proc tells), so the child may go on
    // with everything as it is.
    let pid: c_int = unsafe { libc::fork() };
    check(c_long::from(pid))?;
    Ok(Pid::from_raw(pid).map_or(ForkResult::Child, ForkResult::Parent))
}

fn thread_count() -> Option<usize> {
    status_field("Threads:")?.trim().parse().ok()
}

/// Starts a session with this process as its leader.
///
/// # Errors
/// `EPERM` when it leads a process group already.
pub fn setsid() -> Result<(), Errno> {
    rustix::process::setsid().map(drop)
}

/// Names this thread, as `ps -L` and `top -H` show it; the kernel keeps 15 bytes.
///
/// # Errors
/// `EINVAL` when the name holds a NUL.
pub fn prctl_set_name(name: &str) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    rustix::thread::set_name(
        CStr::from_bytes_with_nul(name.as_bytes_with_nul()).map_err(|_| Errno::INVAL)?,
    )
}

/// Whether this process has `CAP_SYS_ADMIN` where it counts for `trusted.*` attributes and FUSE
/// passthrough: in the initial user namespace. Without `/proc` the answer is no.
pub fn has_cap_sys_admin_in_init_ns() -> bool {
    let effective = status_field("CapEff:")
        .and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok())
        .unwrap_or(0);
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // Root can give a new namespace the identity map too; the number of the initial one is fixed.
    let is_initial = std::fs::read_link("/proc/self/ns/user")
        .map_or(true, |link| link.as_os_str() == INITIAL_USER_NS);
    effective & CAP_SYS_ADMIN != 0 && is_identity_map(&map) && is_initial
}

/// Whether this `uid_map` is the initial user namespace's: every id but 4294967295 to itself.
fn is_identity_map(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

fn status_field(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_waited_for() {
        let waiter = std::thread::spawn(|| {
            block_signals(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
            // SAFETY: sends a signal, blocked here, to this thread alone.
            let sent = unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            assert_eq!(sent, 0);
            wait_signal(&[libc::SIGUSR1, libc::SIGUSR2])
        });
        assert_eq!(waiter.join().unwrap(), Ok(libc::SIGUSR2));
    }

    #[test]
    fn a_number_that_is_no_signal_is_an_error() {
        assert_eq!(block_signals(&[0]), Err(Errno::INVAL));
        assert_eq!(block_signals(&[12345]), Err(Errno::INVAL));
        assert_eq!(wait_signal(&[-1]), Err(Errno::INVAL));
    }

    #[test]
    fn fork_is_refused_beside_other_threads() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        assert_eq!(daemon_fork(), Err(Errno::BUSY));
        drop(stop);
        assert!(other.join().unwrap().is_err());
    }

    #[test]
    fn a_thread_gets_its_name() {
        let thread = std::thread::spawn(|| {
            prctl_set_name("a name of twenty").unwrap();
            std::fs::read_to_string("/proc/thread-self/comm").unwrap()
        });
        assert_eq!(thread.join().unwrap(), "a name of twent\n");
        assert_eq!(prctl_set_name("a\0b"), Err(Errno::INVAL));
    }

    #[test]
    #[ignore = "needs CAP_SYS_ADMIN in the initial user namespace"]
    fn root_of_the_initial_namespace_is_recognised() {
        assert!(has_cap_sys_admin_in_init_ns());
    }

    #[test]
    fn only_the_map_of_the_initial_namespace_is_the_identity() {
        assert!(is_identity_map("         0          0 4294967295\n"));
        assert!(!is_identity_map("         0       1000          1\n"));
        assert!(!is_identity_map("0 0 65536\n65536 65536 10\n"));
        assert!(!is_identity_map("0 0 4294967295\n0 0 1\n"));
        assert!(!is_identity_map(""));
    }
}
