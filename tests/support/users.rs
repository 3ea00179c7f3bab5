//! Running a part of a test as another user or under another umask.
//!
//! Linux keeps credentials per thread, so a thread of its own suffices: the rest of the process
//! stays root.

use rustix::process::{Gid, Uid, umask};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Runs `f` as `uid` and `gid`, without supplementary groups and with umask 022.
pub fn as_user<T: Send>(uid: u32, gid: u32, f: impl FnOnce() -> T + Send) -> T {
    as_user_with_umask(uid, gid, 0o022, f)
}

/// Runs `f` as root under another umask.
pub fn with_umask<T: Send>(mask: u32, f: impl FnOnce() -> T + Send) -> T {
    on_thread(mask, || {}, f)
}

/// Runs `f` as `uid` and `gid`, without supplementary groups and with a umask.
pub fn as_user_with_umask<T: Send>(
    uid: u32,
    gid: u32,
    mask: u32,
    f: impl FnOnce() -> T + Send,
) -> T {
    let drop_root = move || {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        set_thread_groups(&[]).expect("setgroups");
        set_thread_res_gid(gid, gid, gid).expect("setresgid");
        set_thread_res_uid(uid, uid, uid).expect("setresuid");
    };
    on_thread(mask, drop_root, f)
}

fn on_thread<T: Send>(mask: u32, prepare: impl FnOnce() + Send, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // The umask belongs to the process unless the thread parts with it. The newer, unsafe
            // form of unshare warns of CLONE_FILES only.
            #[allow(deprecated)]
            rustix::thread::unshare(UnshareFlags::FS).expect("unshare(CLONE_FS)");
            umask(rustix::fs::Mode::from_raw_mode(mask));
            prepare();
            f()
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
