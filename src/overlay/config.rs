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
    /// All inode numbers fit 32 bits, for programs that can't take more.
    pub ino32: bool,
    /// How file systems are identified.
    pub uuid: Uuid,
    /// `true`: `user.overlay.*`, `false`: `trusted.overlay.*`, `None`: trusted where allowed.
    pub userxattr: Option<bool>,
    /// Never sync, and leave the marker `work/incompat/volatile`.
    pub volatile: bool,
    /// `false` turns fsync and syncfs of clients into no-ops (`fsync=0`), without the marker.
    pub fsync: bool,
    /// What becomes of owners and modes.
    pub ids: IdOptions,
    /// Directories have one link, however many subdirectories.
    pub static_nlink: bool,
    /// Go on (with a logged warning) when another live mount uses upper or work.
    pub shared_upper: bool,
    /// Do without what was asked for and can't be had here, where the tree stays the same.
    pub lenient: bool,
    /// Without an upper: once many have asked in vain for extended attributes, look through the layers. If
    /// nothing there has one, `listxattr` and `getxattr` fail with `ENOSYS`, after which the kernel asks no more.
    pub settle_xattrs: bool,
}

/// The writable part of a mount.
#[derive(Clone, Debug)]
pub struct UpperDirs {
    /// The upper directory.
    pub upper: PathBuf,
    /// The work directory: on upper's file system, neither inside upper nor around it.
    pub work: PathBuf,
}

/// A row of an id map: `count` ids from `stored` on are shown as those from `shown` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// The first id as the layers hold it.
    pub stored: u32,
    /// The first id as the mount's users see it.
    pub shown: u32,
    /// How many ids.
    pub count: u32,
}

/// Owners and modes that differ from those on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdOptions {
    /// Users; empty: as they are. Those outside of the map are shown as 65534.
    pub uid_map: Vec<IdMap>,
    /// Groups, likewise.
    pub gid_map: Vec<IdMap>,
    /// Everything is shown as this user's. What is stored is what was asked for, where the file
    /// system can store it.
    pub squash_uid: Option<u32>,
    /// Everything is shown as this group's.
    pub squash_gid: Option<u32>,
    /// Where owners, modes, and types are kept.
    pub xattr_permissions: XattrPermissions,
}

/// fuse-overlayfs' `xattr_permissions` values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XattrPermissions {
    /// On disk.
    #[default]
    Off,
    /// In `security.fuseoverlayfs.override_stat`, which only the privileged can change.
    Privileged,
    /// In `user.containers.override_stat`. Symlinks and special files are regular files on disk.
    User,
}

/// The kernel's `redirect_dir` values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectDir {
    /// Follow redirects, and make them on rename where the kernel's overlayfs would follow them too:
    /// not in `user.*` attributes. There, a directory with a lower part is copied up whole before it
    /// is renamed.
    Auto,
    /// Make redirects on rename and follow them.
    On,
    /// Follow existing redirects, make none.
    Follow,
    /// Neither.
    NoFollow,
    /// Make none; follow as the kernel does by default (`redirect_always_follow=Y`).
    Off,
}

/// The kernel's `xino` values. The numbers are the same in all of them: a FUSE mount shows one `st_dev`
/// for all layers, so numbers of several file systems must be made unique (the kernel's `off` shows
/// several devices instead).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xino {
    /// Compose layer bits and inode number where they fit; numbers for the others last as long as the mount.
    Auto,
    /// The same, and say so in the log when some may not fit.
    On,
    /// As `Auto`.
    Off,
}

/// The kernel's `uuid` values: what identifies the file systems of the layers, and the overlay itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uuid {
    /// The file systems' own; that of the overlay stays as it is in upper.
    Auto,
    /// The same, and an upper without an identity gets one (`overlay.uuid`), which the kernel's overlayfs
    /// then shows in statfs.
    On,
    /// File handles in upper are stored without the file system's uuid: for layers that are copied to other
    /// file systems, all on one.
    Off,
}

impl Config {
    /// The defaults of rovl for these lowers: everything on that makes the tree more correct.
    pub fn new(lowers: Vec<PathBuf>) -> Config {
        Config {
            lowers,
            data_lowers: Vec::new(),
            upper: None,
            redirect_dir: RedirectDir::Auto,
            index: true,
            metacopy: false,
            xino: Xino::Auto,
            ino32: false,
            uuid: Uuid::Auto,
            userxattr: None,
            volatile: false,
            fsync: true,
            ids: IdOptions::default(),
            static_nlink: false,
            shared_upper: false,
            lenient: false,
            settle_xattrs: false,
        }
    }
}
