//! The table of all options: those of mount(8), of the kernel's overlayfs, of fuse-overlayfs and libfuse,
//! and rovl's own.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::lists::{self, ListError};
use super::{MountOptions, Squash};
use crate::fuse::{IdlePolling, IoUring, Passthrough};
use crate::overlay::{RedirectDir, Uuid, Xino};

/// What an option does.
pub enum Setter {
    /// Nothing: with or without a value it makes no difference here.
    Ignored,
    /// No value.
    Flag(fn(&mut MountOptions)),
    /// on/off, 1/0; the bare name means on.
    Switch(fn(&mut MountOptions, bool)),
    /// A value, after what is expected of it; `None`: it is something else.
    Value(&'static str, fn(&mut MountOptions, &OsStr) -> Option<()>),
    /// A path or a list of paths.
    Path(fn(&mut MountOptions, &OsStr) -> Result<(), ListError>),
}

/// One row of the table.
pub struct Known {
    /// As it is written.
    pub name: &'static str,
    /// What it does.
    pub setter: Setter,
    /// A line for `--help`; empty: not listed there.
    help: &'static str,
}

const fn flag(name: &'static str, set: fn(&mut MountOptions), help: &'static str) -> Known {
    Known {
        name,
        setter: Setter::Flag(set),
        help,
    }
}

const fn switch(name: &'static str, set: fn(&mut MountOptions, bool), help: &'static str) -> Known {
    Known {
        name,
        setter: Setter::Switch(set),
        help,
    }
}

const fn value(
    name: &'static str,
    expected: &'static str,
    set: fn(&mut MountOptions, &OsStr) -> Option<()>,
    help: &'static str,
) -> Known {
    Known {
        name,
        setter: Setter::Value(expected, set),
        help,
    }
}

const fn path(
    name: &'static str,
    set: fn(&mut MountOptions, &OsStr) -> Result<(), ListError>,
    help: &'static str,
) -> Known {
    Known {
        name,
        setter: Setter::Path(set),
        help,
    }
}

/// Layers, and the kernel's overlayfs.
const OVERLAY: &[Known] = &[
    path(
        "lowerdir",
        set_lowers,
        "A:B[::DATA], top to bottom; \\: \\, \\\\ for : , \\",
    ),
    path(
        "lowerdir+",
        |o, v| lists::one_path(v).map(|p| o.lowers.push(p)),
        "one more lower",
    ),
    path(
        "datadir+",
        |o, v| lists::one_path(v).map(|p| o.data_lowers.push(p)),
        "one more data-only lower",
    ),
    path(
        "upperdir",
        |o, v| lists::one_path(v).map(|p| o.upper = Some(p)),
        "where changes go",
    ),
    path(
        "workdir",
        |o, v| lists::one_path(v).map(|p| o.work = Some(p)),
        "scratch, on upper's file system",
    ),
    value(
        "redirect_dir",
        "on, off, follow or nofollow",
        set_redirect_dir,
        "on (default), off, follow, nofollow",
    ),
    switch(
        "index",
        |o, on| o.index = Some(on),
        "on (default): hard links survive copy-up",
    ),
    switch("metacopy", |o, on| o.metacopy = Some(on), "off (default)"),
    switch(
        "nfs_export",
        |o, on| o.nfs_export = Some(on),
        "off (default)",
    ),
    value(
        "xino",
        "auto, on or off",
        set_xino,
        "auto (default), on, off",
    ),
    value("uuid", "auto, on, off or null", set_uuid, ""),
    value("verity", "off, on or require", set_verity, ""),
    flag(
        "userxattr",
        |o| o.userxattr = true,
        "keep marks in user.overlay.* xattrs",
    ),
    flag(
        "volatile",
        |o| o.volatile = true,
        "never sync; upper is lost when the machine crashes",
    ),
    value(
        "fsync",
        "0, 1, auto, strict or volatile",
        set_fsync,
        "0: fsync does nothing",
    ),
    Known {
        name: "override_creds",
        setter: Setter::Ignored,
        help: "",
    },
];

/// mount(8).
const MOUNT: &[Known] = &[
    flag("ro", |o| o.read_only = true, "read-only"),
    flag("rw", |o| o.read_only = false, ""),
    flag("dev", |o| o.dev = true, ""),
    flag("nodev", |o| o.dev = false, "device nodes don't work"),
    flag("suid", |o| o.suid = true, ""),
    flag("nosuid", |o| o.suid = false, "set-id bits don't work"),
    flag("exec", |o| o.exec = true, ""),
    flag("noexec", |o| o.exec = false, "programs can't be run"),
    flag("sync", |o| o.sync = true, "writes are synchronous"),
    flag("async", |o| o.sync = false, ""),
    flag(
        "dirsync",
        |o| o.dirsync = true,
        "changes of directories are synchronous",
    ),
    flag("noatime", |o| o.noatime = true, ""),
    flag("atime", |o| o.noatime = false, ""),
    flag("relatime", |o| o.noatime = false, "the default is noatime"),
    flag("strictatime", |o| o.noatime = false, ""),
    flag("remount", |o| o.not_a_mount = Some("remount"), ""),
    flag("bind", |o| o.not_a_mount = Some("bind"), ""),
    flag("rbind", |o| o.not_a_mount = Some("rbind"), ""),
    flag("move", |o| o.not_a_mount = Some("move"), ""),
    path(
        "context",
        |o, v| lists::unescape(v).map(|c| o.context = Some(c)),
        "an SELinux context for all files",
    ),
];

/// FUSE, libfuse and the data path.
const FUSE: &[Known] = &[
    flag(
        "allow_other",
        |o| o.allow_other = Some(true),
        "other users may use it (default where allowed)",
    ),
    flag(
        "noallow_other",
        |o| o.allow_other = Some(false),
        "only this user may use it",
    ),
    flag("allow_root", |o| o.allow_root = true, ""),
    path(
        "fsname",
        |o, v| lists::unescape(v).map(|name| o.fs_name = Some(name)),
        "source that mountinfo shows",
    ),
    path(
        "subtype",
        |o, v| lists::unescape(v).map(|name| o.subtype = Some(name)),
        "type shown behind `fuse.`",
    ),
    flag("debug", |o| o.debug = true, ""),
    value(
        "threads",
        "a number of threads",
        set_threads,
        "threads that serve",
    ),
    value("max_threads", "a number of threads", set_threads, ""),
    switch(
        "clone_fd",
        |o, on| o.clone_fd = Some(on),
        "a descriptor of /dev/fuse for each thread",
    ),
    value(
        "timeout",
        "a number of seconds",
        set_timeout,
        "seconds the kernel may cache names and attributes",
    ),
    switch(
        "writeback",
        |o, on| o.writeback = Some(on),
        "the kernel collects writes",
    ),
    value(
        "io_uring",
        "on, off or auto",
        set_io_uring,
        "requests come over io_uring where the kernel offers it: off (default), on, auto",
    ),
    value(
        "passthrough",
        "on, off or auto",
        set_passthrough,
        "reads and writes bypass the daemon: off (default), on, auto (without an upper)",
    ),
    value(
        "idle_polling",
        "on, off or auto",
        set_idle_polling,
        "idle CPUs stay awake while clients are at work: off, on, auto (default: on small virtual machines)",
    ),
    value(
        "max_write",
        "a number of bytes",
        |o, v| number(v).map(|n| o.max_write = Some(n)),
        "bytes in one write request",
    ),
    value(
        "max_read",
        "a number of bytes",
        |o, v| number(v).map(|n| o.max_read = Some(n)),
        "",
    ),
];

/// fuse-overlayfs.
const FUSE_OVERLAYFS: &[Known] = &[
    value(
        "uidmapping",
        "[:]STORED:SHOWN:COUNT[:…]",
        |o, v| map(v).map(|m| o.uid_map = m),
        "show other user ids than those stored",
    ),
    value(
        "gidmapping",
        "[:]STORED:SHOWN:COUNT[:…]",
        |o, v| map(v).map(|m| o.gid_map = m),
        "show other group ids than those stored",
    ),
    flag(
        "squash_to_root",
        |o| {
            o.squash = Squash {
                uid: Some(0),
                gid: Some(0),
            }
        },
        "show everything as root's",
    ),
    value(
        "squash_to_uid",
        "a user id",
        |o, v| number(v).map(|id| o.squash.uid = Some(id)),
        "show everything as this user's",
    ),
    value(
        "squash_to_gid",
        "a group id",
        |o, v| number(v).map(|id| o.squash.gid = Some(id)),
        "show everything as this group's",
    ),
    value(
        "xattr_permissions",
        "0, 1 or 2",
        set_xattr_permissions,
        "keep owners and modes in attributes: 1 security.*, 2 user.*",
    ),
    switch(
        "static_nlink",
        |o, on| o.static_nlink = on,
        "directories have one link",
    ),
    switch("ino32_t", |o, on| o.ino32 = on, "inode numbers fit 32 bits"),
    switch(
        "threaded",
        |o, on| o.threads = if on { None } else { Some(1) },
        "",
    ),
    switch("noacl", |o, on| o.acl = !on, "no POSIX ACLs"),
    switch("acl", |o, on| o.acl = on, ""),
    switch("noxattrs", |o, on| o.xattrs = !on, "no extended attributes"),
    switch("noxattr", |o, on| o.xattrs = !on, ""),
    switch("user_xattr", |o, on| o.xattrs = on, ""),
];

/// Understood, and of no effect here: states that always hold, hints to other programs, or caching that
/// rovl decides itself.
const IGNORED: &[&str] = &[
    // mount(8) and fstab
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "loud",
    "silent",
    "comment",
    "diratime",
    "nodiratime",
    "norelatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "symfollow",
    // propagation, which mount(8) and engines set with a call of their own
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
    // libfuse
    "default_permissions",
    "auto_cache",
    "noauto_cache",
    "kernel_cache",
    "ac_attr_timeout",
    "attr_timeout",
    "entry_timeout",
    "negative_timeout",
    "nonempty",
    "big_writes",
    "large_read",
    "hard_remove",
    "use_ino",
    "readdir_ino",
    "noforget",
    "remember",
    "intr",
    "intr_signal",
    "async_read",
    "sync_read",
    "atomic_o_trunc",
    "no_remote_lock",
    "max_readahead",
    "max_background",
    "congestion_threshold",
    "max_idle_threads",
    "splice_read",
    "no_splice_read",
    "splice_write",
    "no_splice_write",
    "splice_move",
    "no_splice_move",
    "auto_unmount",
    "blksize",
    "modules",
    "user_id",
    "group_id",
    "rootmode",
    "fd",
    // fuse-overlayfs
    "fast_ino",
    "plugins",
];

fn rows() -> impl Iterator<Item = &'static Known> {
    OVERLAY
        .iter()
        .chain(MOUNT)
        .chain(FUSE)
        .chain(FUSE_OVERLAYFS)
}

/// All names.
pub fn names() -> impl Iterator<Item = &'static str> {
    rows()
        .map(|known| known.name)
        .chain(IGNORED.iter().copied())
}

/// The row of `name`.
pub fn find(name: &str) -> Option<&'static Known> {
    static NOTHING: Known = Known {
        name: "",
        setter: Setter::Ignored,
        help: "",
    };
    let ignored = || IGNORED.contains(&name).then_some(&NOTHING);
    rows().find(|known| known.name == name).or_else(ignored)
}

/// The name that looks most like `name`, if any looks like it.
pub fn nearest(name: &str) -> Option<&'static str> {
    names()
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| known)
}

/// The options that have a line of help, in columns.
pub fn help_text() -> String {
    rows()
        .filter(|known| !known.help.is_empty())
        .map(|known| {
            let equals = if matches!(known.setter, Setter::Flag(_)) {
                ""
            } else {
                "="
            };
            format!(
                "  {:<16}{}\n",
                format!("{}{equals}", known.name),
                known.help
            )
        })
        .collect()
}

/// on/off in the ways that people write it.
pub fn boolean(value: &OsStr) -> Option<bool> {
    match value.as_bytes() {
        b"1" | b"on" | b"yes" | b"true" => Some(true),
        b"0" | b"off" | b"no" | b"false" => Some(false),
        _ => None,
    }
}

/// The one of the three that the value names.
fn off_on_auto<T>(value: &OsStr, [off, on, auto]: [T; 3]) -> Option<T> {
    match boolean(value) {
        Some(false) => Some(off),
        Some(true) => Some(on),
        None => (value == "auto").then_some(auto),
    }
}

fn number(value: &OsStr) -> Option<u32> {
    value.to_str()?.parse().ok()
}

fn map(value: &OsStr) -> Option<Vec<crate::overlay::IdMap>> {
    lists::id_maps(value.to_str()?)
}

/// Like the kernel's: a second `lowerdir=` replaces the first.
fn set_lowers(options: &mut MountOptions, value: &OsStr) -> Result<(), ListError> {
    let found = lists::split_lowers(value)?;
    options.lowers = found.lowers;
    options.data_lowers = found.data;
    Ok(())
}

fn set_redirect_dir(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    let mode = match (value.as_bytes(), boolean(value)) {
        (b"follow", _) => RedirectDir::Follow,
        (b"nofollow", _) => RedirectDir::NoFollow,
        (_, Some(true)) => RedirectDir::On,
        (_, Some(false)) => RedirectDir::Off,
        _ => return None,
    };
    options.redirect_dir = Some(mode);
    Some(())
}

fn set_xino(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    let mode = off_on_auto(value, [Xino::Off, Xino::On, Xino::Auto])?;
    options.xino = Some(mode);
    Some(())
}

fn set_uuid(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    options.uuid = Some(match (value.as_bytes(), boolean(value)) {
        (b"auto" | b"null", _) => Uuid::Auto,
        (_, Some(false)) => Uuid::Off,
        (_, Some(true)) => Uuid::On,
        _ => return None,
    });
    Some(())
}

fn set_verity(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    options.verity = match (value.as_bytes(), boolean(value)) {
        (b"require", _) => true,
        (_, Some(on)) => on,
        _ => return None,
    };
    Some(())
}

/// 0 and 1 are fuse-overlayfs's words, the others the kernel's.
fn set_fsync(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    match (value.as_bytes(), boolean(value)) {
        (b"volatile", _) => options.volatile = true,
        (b"auto" | b"strict", _) => options.fsync = Some(true),
        (_, Some(on)) => options.fsync = Some(on),
        _ => return None,
    }
    Some(())
}

fn set_threads(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    let threads: usize = value.to_str()?.parse().ok()?;
    options.threads = Some(threads.clamp(1, 256));
    Some(())
}

fn set_timeout(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    let seconds: f64 = value.to_str()?.parse().ok()?;
    options.timeout = (seconds.is_finite() && seconds >= 0.0).then_some(seconds);
    options.timeout.map(|_| ())
}

fn set_io_uring(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    let mode = off_on_auto(value, [IoUring::Off, IoUring::On, IoUring::Auto])?;
    options.io_uring = Some(mode);
    Some(())
}

fn set_passthrough(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    let mode = off_on_auto(
        value,
        [Passthrough::Off, Passthrough::On, Passthrough::Auto],
    )?;
    options.passthrough = Some(mode);
    Some(())
}

fn set_idle_polling(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    let mode = off_on_auto(
        value,
        [IdlePolling::Off, IdlePolling::On, IdlePolling::Auto],
    )?;
    options.idle_polling = Some(mode);
    Some(())
}

fn set_xattr_permissions(options: &mut MountOptions, value: &OsStr) -> Option<()> {
    options.xattr_permissions = number(value)?.try_into().ok().filter(|mode| *mode <= 2)?;
    Some(())
}
