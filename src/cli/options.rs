//! The options of a mount as plain data: what `-o` and the flags say, with no look at the system.
//!
//! Invariant: nothing here does I/O. Paths stay as they were written; [`super::plan`] makes them absolute.

mod lists;
mod rules;
mod table;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::fuse::{IdlePolling, IoUring, Passthrough};
use crate::overlay::{IdMap, RedirectDir, Uuid, Xino};

pub use lists::ListError;
use table::{Known, Setter, find};

/// Which command line is being read: it decides what is an error and what a warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `rovl mount`: what is not understood or not done is an error.
    Rovl,
    /// The command line of fuse-overlayfs and mount(8): what does no harm is a warning.
    Helper,
}

/// Whose ids all files are shown with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Squash {
    /// `squash_to_uid=`, or 0 with `squash_to_root`.
    pub uid: Option<u32>,
    /// `squash_to_gid=`, or 0 with `squash_to_root`.
    pub gid: Option<u32>,
}

/// Everything that can be asked of a mount. `None`: not said.
#[derive(Clone, Debug, PartialEq)]
pub struct MountOptions {
    /// Lowers, top to bottom.
    pub lowers: Vec<PathBuf>,
    /// Data-only lowers, top to bottom.
    pub data_lowers: Vec<PathBuf>,
    /// The upper directory.
    pub upper: Option<PathBuf>,
    /// The work directory.
    pub work: Option<PathBuf>,

    /// `ro`.
    pub read_only: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Set-id bits work.
    pub suid: bool,
    /// Programs can be run.
    pub exec: bool,
    /// Access times are left alone.
    pub noatime: bool,
    /// Every write is synchronous.
    pub sync: bool,
    /// Changes of directories are synchronous.
    pub dirsync: bool,
    /// Other users may use the mount; `None`: where the system allows it.
    pub allow_other: Option<bool>,
    /// The source that mountinfo shows.
    pub fs_name: Option<OsString>,
    /// The type that mountinfo shows behind `fuse.`.
    pub subtype: Option<OsString>,
    /// An SELinux context for all files.
    pub context: Option<OsString>,

    /// `redirect_dir=`.
    pub redirect_dir: Option<RedirectDir>,
    /// `index=`.
    pub index: Option<bool>,
    /// `metacopy=`.
    pub metacopy: Option<bool>,
    /// `nfs_export=`.
    pub nfs_export: Option<bool>,
    /// `xino=`.
    pub xino: Option<Xino>,
    /// `uuid=on`: the kernel would keep a file system id in upper.
    pub uuid: Option<Uuid>,
    /// `verity=on` or `verity=require`.
    pub verity: bool,
    /// `userxattr`.
    pub userxattr: bool,
    /// `volatile`, or `fsync=volatile`.
    pub volatile: bool,
    /// `fsync=`.
    pub fsync: Option<bool>,

    /// `uidmapping=`.
    pub uid_map: Vec<IdMap>,
    /// `gidmapping=`.
    pub gid_map: Vec<IdMap>,
    /// `squash_to_*`.
    pub squash: Squash,
    /// `xattr_permissions=`.
    pub xattr_permissions: u8,
    /// `static_nlink`.
    pub static_nlink: bool,
    /// `ino32_t`.
    pub ino32: bool,
    /// `noacl` makes it false.
    pub acl: bool,
    /// `noxattrs` makes it false.
    pub xattrs: bool,

    /// Threads that serve; `None`: as many as suit the machine.
    pub threads: Option<usize>,
    /// Seconds that the kernel may remember names and attributes.
    pub timeout: Option<f64>,
    /// The kernel collects writes.
    pub writeback: Option<bool>,
    /// Reads and writes bypass the daemon.
    pub passthrough: Option<Passthrough>,
    /// Whether idle CPUs poll while clients are at work.
    pub idle_polling: Option<IdlePolling>,
    /// Bytes in one write request.
    pub max_write: Option<u32>,
    /// Bytes in one read request.
    pub max_read: Option<u32>,
    /// A descriptor of /dev/fuse for each thread.
    pub clone_fd: Option<bool>,
    /// `io_uring=`.
    pub io_uring: Option<IoUring>,
    /// `allow_root`, which can't be had.
    pub allow_root: bool,
    /// `remount`, `bind` and their like, which can't be had.
    pub not_a_mount: Option<&'static str>,
    /// Stay in the foreground and log everything.
    pub debug: bool,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            lowers: Vec::new(),
            data_lowers: Vec::new(),
            upper: None,
            work: None,
            read_only: false,
            dev: true,
            suid: true,
            exec: true,
            noatime: true,
            sync: false,
            dirsync: false,
            allow_other: None,
            fs_name: None,
            subtype: None,
            context: None,
            redirect_dir: None,
            index: None,
            metacopy: None,
            nfs_export: None,
            xino: None,
            uuid: None,
            verity: false,
            userxattr: false,
            volatile: false,
            fsync: None,
            uid_map: Vec::new(),
            gid_map: Vec::new(),
            squash: Squash::default(),
            xattr_permissions: 0,
            static_nlink: false,
            ino32: false,
            acl: true,
            xattrs: true,
            threads: None,
            timeout: None,
            writeback: None,
            passthrough: None,
            idle_polling: None,
            max_write: None,
            max_read: None,
            clone_fd: None,
            io_uring: None,
            allow_root: false,
            not_a_mount: None,
            debug: false,
        }
    }
}

/// Why options can't be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OptionError {
    /// Not an option of anybody.
    #[error("unknown mount option '{name}'{}", nearest.map_or(String::new(), |near| format!("; did you mean '{near}'?")))]
    Unknown {
        /// As it was written.
        name: String,
        /// The known one that looks like it.
        nearest: Option<&'static str>,
    },
    /// `lowerdir` with no `=`.
    #[error("mount option '{0}' needs a value: {0}=…")]
    NeedsValue(&'static str),
    /// `ro=1`.
    #[error("mount option '{0}' takes no value")]
    TakesNoValue(&'static str),
    /// A value of the wrong kind.
    #[error("mount option '{name}={value}': expected {expected}")]
    BadValue {
        /// The option.
        name: &'static str,
        /// What was given.
        value: String,
        /// What could have been given.
        expected: &'static str,
    },
    /// A list of directories that can't be split.
    #[error("'{name}={value}' {source}")]
    List {
        /// The option or flag.
        name: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        source: ListError,
    },
    /// No lower directory.
    #[error("no lower directory given: say --lower DIR[:DIR…] or -o lowerdir=DIR[:DIR…]")]
    NoLowers,
    /// The same thing said by a flag and by `-o`.
    #[error("{flag} and -o {option} both given: use one of them")]
    Twice {
        /// The flag.
        flag: &'static str,
        /// The option.
        option: &'static str,
    },
    /// Upper without work.
    #[error(
        "an upper directory needs a work directory, empty and on the same file system: add --work DIR or -o workdir=DIR"
    )]
    NoWork,
    /// Work without upper.
    #[error(
        "a work directory is of no use without an upper directory: add --upper DIR or -o upperdir=DIR, or leave it out for a read-only mount"
    )]
    NoUpper,
    /// Two options that exclude each other.
    #[error("conflicting options '{one}' and '{other}': {why}")]
    Conflict {
        /// One.
        one: String,
        /// The other.
        other: String,
        /// The reason.
        why: &'static str,
    },
    /// Understood, and not done.
    #[error("mount option '{name}' is not implemented: {why}")]
    NotImplemented {
        /// The option.
        name: String,
        /// What follows from that.
        why: &'static str,
    },
}

/// What came of the options, with remarks for the user.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The options.
    pub options: MountOptions,
    /// What was left out of account, a sentence each.
    pub warnings: Vec<String>,
}

/// Reads options one after the other; a later one wins over an earlier one.
#[derive(Debug)]
pub struct Parser {
    dialect: Dialect,
    options: MountOptions,
    warnings: Vec<String>,
}

impl Parser {
    /// A parser with nothing said yet.
    pub fn new(dialect: Dialect) -> Parser {
        Parser {
            dialect,
            options: MountOptions::default(),
            warnings: Vec::new(),
        }
    }

    /// The value of one `-o`: options joined by commas.
    pub fn options(&mut self, raw: &OsStr) -> Result<(), OptionError> {
        lists::split_options(raw)
            .iter()
            .try_for_each(|part| self.option(part))
    }

    /// One option, `name` or `name=value`.
    fn option(&mut self, part: &OsStr) -> Result<(), OptionError> {
        let bytes = part.as_bytes();
        let equals = bytes.iter().position(|&byte| byte == b'=');
        let (name, value) = match equals {
            Some(at) => (&bytes[..at], Some(OsStr::from_bytes(&bytes[at + 1..]))),
            None => (bytes, None),
        };
        match std::str::from_utf8(name).ok().and_then(find) {
            Some(known) => self.set(known, value),
            None => self.unknown(name),
        }
    }

    fn set(&mut self, known: &'static Known, value: Option<&OsStr>) -> Result<(), OptionError> {
        let name = known.name;
        match (&known.setter, value) {
            (Setter::Flag(set), None) => set(&mut self.options),
            (Setter::Ignored, _) => {}
            // fuse-overlayfs and engines write volatile=1, squash_to_root=1 and the like.
            (Setter::Flag(set), Some(value)) => match (table::boolean(value), self.dialect) {
                (Some(true), Dialect::Helper) => set(&mut self.options),
                (Some(false), Dialect::Helper) => {}
                _ => return Err(OptionError::TakesNoValue(name)),
            },
            (Setter::Value(_, _), None) => return Err(OptionError::NeedsValue(name)),
            (Setter::Value(expected, set), Some(value)) => {
                set(&mut self.options, value).ok_or_else(|| bad_value(name, value, expected))?;
            }
            (Setter::Switch(set), value) => {
                let value = value.unwrap_or(OsStr::new("1"));
                let on = table::boolean(value)
                    .ok_or_else(|| bad_value(name, value, "on, off, 1 or 0"))?;
                set(&mut self.options, on);
            }
            (Setter::Path(_), None) => return Err(OptionError::NeedsValue(name)),
            (Setter::Path(set), Some(value)) => {
                set(&mut self.options, value).map_err(|source| list_error(name, value, source))?;
            }
        }
        Ok(())
    }

    fn unknown(&mut self, name: &[u8]) -> Result<(), OptionError> {
        let name = String::from_utf8_lossy(name).into_owned();
        // For programs that read fstab, not for file systems.
        if name.starts_with("x-") || name.starts_with("X-") {
            return Ok(());
        }
        match self.dialect {
            Dialect::Rovl => Err(OptionError::Unknown {
                nearest: table::nearest(&name),
                name,
            }),
            Dialect::Helper => {
                self.warnings
                    .push(format!("unknown mount option '{name}' ignored"));
                Ok(())
            }
        }
    }

    /// `--lower A:B[::DATA]`; adds to what earlier ones said.
    pub fn lower_flag(&mut self, raw: &OsStr) -> Result<(), OptionError> {
        let found = lists::split_lowers(raw).map_err(|e| list_error("--lower", raw, e))?;
        self.options.lowers.extend(found.lowers);
        self.options.data_lowers.extend(found.data);
        Ok(())
    }

    /// `--upper`, `--work`: paths as they are.
    pub fn dir_flags(&mut self, upper: Option<PathBuf>, work: Option<PathBuf>) {
        self.options.upper = upper.or(self.options.upper.take());
        self.options.work = work.or(self.options.work.take());
    }

    /// What has been said so far.
    pub fn so_far(&self) -> &MountOptions {
        &self.options
    }

    /// A flag outside `-o` that stands for an option.
    pub fn change(&mut self, change: impl FnOnce(&mut MountOptions)) {
        change(&mut self.options);
    }

    /// Remarks that the caller has.
    pub fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// Everything has been said: holds the options against each other and against what is implemented.
    pub fn finish(self) -> Result<Parsed, OptionError> {
        let Parser {
            dialect,
            mut options,
            mut warnings,
        } = self;
        rules::complete(&mut options, dialect, &mut warnings)?;
        rules::conflicts(&options)?;
        rules::implemented(&options)?;
        Ok(Parsed { options, warnings })
    }
}

/// Option names with a line of help each, for `--help`.
pub fn help_text() -> String {
    table::help_text()
}

fn bad_value(name: &'static str, value: &OsStr, expected: &'static str) -> OptionError {
    OptionError::BadValue {
        name,
        value: value.to_string_lossy().into_owned(),
        expected,
    }
}

/// An error about a list, which may be 100 kB long: its beginning is enough to know it by.
fn list_error(name: &str, value: &OsStr, source: ListError) -> OptionError {
    let mut value = value.to_string_lossy().into_owned();
    if value.chars().count() > 200 {
        value = value.chars().take(200).chain(['…']).collect();
    }
    OptionError::List {
        name: name.to_owned(),
        value,
        source,
    }
}

#[cfg(test)]
mod tests;
