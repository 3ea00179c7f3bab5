//! What a mount is made of: the layers and the options, as plain data.

use std::path::PathBuf;

/// Everything that [`Overlay::open`](super::Overlay::open) needs to know. Paths are absolute or
/// relative to the current directory at the time of `open`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The lowers, top to bottom. At least one.
    pub lowers: Vec<PathBuf>,
    /// Data-only lowers, top to bottom: reached only through the redirect of a metacopy file.
    pub data_lowers: Vec<PathBuf>,
    /// Upper and work; without them the mount is read-only.
    pub upper: Option<UpperDirs>,
    /// What becomes of renamed directories.
    pub redirect_dir: RedirectDir,
    /// Keep hard links of lower files together across copy-up (`work/index`).
    pub index: bool,
    /// Copy up attributes without data when only attributes change.
    pub metacopy: bool,
    /// How inode numbers of several file systems are made unique.
    pub xino: Xino,
    /// `true`: `user.overlay.*`, `false`: `trusted.overlay.*`, `None`: trusted where allowed.
    pub userxattr: Option<bool>,
    /// Never sync, and leave the marker `work/incompat/volatile`.
    pub volatile: bool,
    /// `false` turns fsync and syncfs of clients into no-ops (`fsync=0`), without the marker.
    pub fsync: bool,
    /// Go on (with a logged warning) when another live mount uses upper or work.
    pub shared_upper: bool,
}

/// The writable part of a mount.
#[derive(Clone, Debug)]
pub struct UpperDirs {
    /// The upper directory.
    pub upper: PathBuf,
    /// The work directory: on upper's file system, neither inside upper nor around it.
    pub work: PathBuf,
}

/// The kernel's `redirect_dir` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectDir {
    /// Make redirects on rename and follow them.
    On,
    /// Follow existing redirects, make none.
    Follow,
    /// Neither.
    NoFollow,
    /// Make none; follow as the kernel does by default (`redirect_always_follow=Y`).
    Off,
}

/// The kernel's `xino` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xino {
    /// Compose layer bits and inode number where they fit.
    Auto,
    /// The same, and say so when it is not possible.
    On,
    /// Real inode numbers of each file system.
    Off,
}

impl Config {
    /// The defaults of rovl for these lowers: everything on that makes the tree more correct.
    pub fn new(lowers: Vec<PathBuf>) -> Config {
        Config {
            lowers,
            data_lowers: Vec::new(),
            upper: None,
            redirect_dir: RedirectDir::On,
            index: true,
            metacopy: false,
            xino: Xino::Auto,
            userxattr: None,
            volatile: false,
            fsync: true,
            shared_upper: false,
        }
    }
}
