//! Setting a mount up: layers, work directory, what the file systems can do.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::attr::{Kind, dev_of, stat_at, stat_opt};
use super::fds::{FdCache, PinBudget};
use super::ids;
use super::inos::InoMap;
use super::layer::{DIR_PATH, DIR_READ, Layer, LowerDir, LowerLayers};
use super::listing::ListingCache;
use super::lookup::follows;
use super::node::{DirPart, Node, NodeTable, Place, ROOT_ID};
use super::validate::Validated;
use super::work::Work;
use super::xattrless::Xattrless;
use super::{Config, Counters, Moves, Overlay, RedirectDir, Upper, Uuid, Xino};
use crate::format::keys::{Namespace, OverlayKey};
use crate::sys::fs as sysfs;
use crate::sys::handle::{fs_uuid, name_to_handle_at, open_by_handle_at};
use crate::sys::xattr::{self, SetFlags};

/// Descriptors that an overlay keeps open to be faster, and as many of files without a name.
const MOST_CACHED: usize = 4096;
/// Descriptors that a process with one overlay has open at most, about.
pub const CACHED_DESCRIPTORS: u32 = 2 * MOST_CACHED as u32;

/// Why a mount could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call on one of the directories failed.
    #[error("can't {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: Errno,
    },
    /// The last mount of this upper was volatile and did not end well.
    #[error(
        "{0} was mounted with `volatile` before: what it holds may be incomplete; remove \
         work/incompat/volatile to use it all the same"
    )]
    Volatile(PathBuf),
    /// The work directory asks for something that rovl doesn't know.
    #[error("{path} holds work/incompat/{feature}, which rovl does not know")]
    Incompatible {
        /// The work directory.
        path: PathBuf,
        /// The unknown feature.
        feature: String,
    },
    /// What was asked for needs attributes that only the privileged may write.
    #[error(
        "{option} needs permission to write trusted.overlay.* attributes to {path}: in user.* ones, \
         the kernel's overlayfs would not follow what it writes"
    )]
    NeedsTrusted {
        /// The option.
        option: &'static str,
        /// The upper directory.
        path: PathBuf,
    },
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Io {
        action,
        path,
        source,
    }
}

/// The file systems of the layers: their numbers and uuids.
#[derive(Default)]
struct FileSystems {
    devs: Vec<(u64, u32)>,
    narrow: bool,
}

impl FileSystems {
    /// Takes the file system with this `st_dev` in; a new one gets the next index.
    fn add(&mut self, dev: u64, root: BorrowedFd<'_>) {
        if self.devs.iter().any(|(d, _)| *d == dev) {
            return;
        }
        // Upper's is 0 also where there is no upper, as in the kernel.
        let id = self.devs.iter().map(|d| d.1 + 1).max().unwrap_or(1);
        self.devs.push((dev, id));
        self.narrow &= has_narrow_inos(root);
    }
}

/// Can objects be named by file handles, and opened by them?
fn probe_handles(root: BorrowedFd<'_>) -> (bool, bool) {
    match name_to_handle_at(root, OsStr::new("")) {
        Ok(Some(handle)) => (true, open_by_handle_at(root, &handle, OFlags::PATH).is_ok()),
        _ => (false, false),
    }
}

/// Are inode numbers of 32 bits there? The kernel tells it by the type of file handles, too.
fn has_narrow_inos(root: BorrowedFd<'_>) -> bool {
    const FILEID_INO32_GEN: u8 = 1;
    matches!(
        name_to_handle_at(root, OsStr::new("")),
        Ok(Some(h)) if h.handle_type == FILEID_INO32_GEN && h.bytes.len() == 8
    )
}

impl Overlay {
    /// Sets up the merged tree of `config`, whose directories `validated` holds open.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left behind but an emptied `work/work`.
    pub fn open(config: &Config, validated: Validated) -> Result<Arc<Overlay>, OpenError> {
        let idmapped = validated.idmapped_lowers();
        let Validated {
            lowers,
            data_lowers,
            upper,
            work,
            locks,
            ..
        } = validated;
        let mut systems = FileSystems {
            devs: Vec::new(),
            narrow: true,
        };
        let mut config = config.clone();
        let mut upper = match (upper, work) {
            (Some(upper), Some(work)) => Some(open_upper(&config, upper, work, &mut systems)?),
            _ => None,
        };
        let ns = choose_namespace(&config, upper.as_ref());
        let upper_xattrs = upper.as_ref().is_some_and(|u| probe_xattrs(u, ns));
        if let Some(upper) = &upper {
            need_trusted(&mut config, ns, upper)?;
        }
        let merged = lowers.len();
        let mut lowers = open_lowers(lowers, data_lowers, merged, ns, &mut systems)?;
        settle_identities(&config, &mut lowers, &systems);
        if let Some(upper) = &mut upper {
            config.index &= upper_xattrs;
            config.metacopy &= upper_xattrs;
            prepare_upper(&config, upper, upper_xattrs.then_some(ns))?;
        }
        let ids = open_ids(&config, upper.as_ref(), &lowers, &idmapped)?;
        let limit = sysfs::raise_nofile().unwrap_or(1024);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(1 << 16);
        let spare = limit.saturating_sub(64 + lowers.layers.len()).max(32);
        let root_dirs = root_stack(&lowers, upper.as_ref(), ns)?;
        let root_ino = root_number(&lowers, upper.as_ref(), &root_dirs)?;
        let inos = InoMap::new(systems.devs, systems.narrow, config.ino32);
        let root = make_root(upper.as_ref(), root_dirs)?;
        let overlay = Overlay {
            ns,
            ids,
            follow_redirects: follows(config.redirect_dir),
            moves: moves(config.redirect_dir, ns, upper_xattrs),
            upper_xattrs,
            xattrless: Xattrless::new(config.settle_xattrs && upper.is_none()),
            root_ino: inos.map(root_ino.0, root_ino.1),
            inos,
            lowers,
            upper,
            nodes: NodeTable::new(),
            root: Arc::new(root),
            fds: FdCache::new((spare / 2).min(MOST_CACHED)),
            pins: PinBudget::new((spare / 3).min(MOST_CACHED)),
            listings: ListingCache::new(),
            unlinked_lowers: dashmap::DashMap::new(),
            mtimes: dashmap::DashMap::new(),
            counters: Counters::default(),
            lowers_idmapped: idmapped.contains(&true),
            _locks: locks,
            config,
        };
        Ok(Arc::new(overlay))
    }
}

fn open_ids(
    config: &Config,
    upper: Option<&Upper>,
    lowers: &LowerLayers,
    idmapped: &[bool],
) -> Result<ids::Ids, OpenError> {
    let roots: Vec<&OwnedFd> = lowers.layers.iter().map(|layer| &layer.root).collect();
    let top = upper.map(|u| &u.layer);
    ids::open(config, top.map(|t| t.root.as_fd()), &roots, idmapped).map_err(|e| {
        let path = top.map_or(lowers.layers[0].path.as_path(), |t| t.path.as_path());
        io("keep owners and modes in the attributes of", path)(e)
    })
}

/// What file systems are taken for.
fn settle_identities(config: &Config, lowers: &mut LowerLayers, systems: &FileSystems) {
    if config.uuid == Uuid::Off {
        let layers = lowers.layers.iter_mut();
        layers.for_each(|layer| layer.uuid = Default::default());
    }
    distrust_handles(&mut lowers.layers);
    if config.xino == Xino::On && systems.devs.len() > 1 && !systems.narrow {
        tracing::warn!("xino=on: large inode numbers get others, which last as long as the mount");
    }
}

/// Makes upper and work ready for this mount. `marks`: the namespace of overlay's xattrs, where upper takes
/// them.
fn prepare_upper(
    config: &Config,
    upper: &mut Upper,
    marks: Option<Namespace>,
) -> Result<(), OpenError> {
    if let Some(ns) = marks {
        let chosen = upper.work.choose_whiteouts(ns.key(OverlayKey::Whiteout));
        chosen.map_err(io(
            "make whiteouts in the work directory of",
            &upper.layer.path,
        ))?;
    }
    prepare_work(config, upper)?;
    if let (Uuid::On, Some(ns)) = (config.uuid, marks) {
        give_uuid(upper, ns).map_err(io("identify", &upper.layer.path))?;
    }
    Ok(())
}

/// Opens a layer's root. Lowers are used through a private, read-only clone of their mount where
/// we may make one: nothing mounted inside of them shows, not even access times change, and no
/// mistake can write to them.
fn private_lower(fd: OwnedFd) -> OwnedFd {
    const READ_ONLY: u64 = sysfs::MOUNT_ATTR_RDONLY | sysfs::MOUNT_ATTR_NOATIME;
    let cloned = sysfs::clone_tree(fd.as_fd()).and_then(|clone| {
        sysfs::mount_set_flags(clone.as_fd(), READ_ONLY)?;
        // Opened for reading: file handles can't be resolved through an `O_PATH` descriptor.
        rustix::fs::openat(&clone, c".", DIR_READ, Mode::empty())
    });
    match cloned {
        Ok(clone) => clone,
        Err(_) => rustix::fs::openat(&fd, c".", DIR_READ, Mode::empty()).unwrap_or(fd),
    }
}

fn open_lowers(
    lowers: Vec<(PathBuf, OwnedFd)>,
    data_lowers: Vec<(PathBuf, OwnedFd)>,
    merged: usize,
    ns: Namespace,
    systems: &mut FileSystems,
) -> Result<LowerLayers, OpenError> {
    let mut layers = Vec::with_capacity(lowers.len() + data_lowers.len());
    let mut roots = Vec::with_capacity(layers.capacity());
    for (i, (path, fd)) in lowers.into_iter().chain(data_lowers).enumerate() {
        let root = private_lower(fd);
        let st = stat_at(root.as_fd(), OsStr::new("")).map_err(io("read", &path))?;
        let dev = dev_of(&st);
        let index =
            u16::try_from(i).map_err(|_| io("use so many layers at", &path)(Errno::TOOBIG))?;
        let here = OsStr::new("");
        let opaque = xattr::get_at(root.as_fd(), here, ns.key(OverlayKey::Opaque))
            .map_err(io("read the attributes of", &path))?;
        let xattr_whiteouts = opaque.as_deref() == Some(b"x");
        let key = (dev, st.stx_ino);
        roots.push(LowerDir::new(index, key, None, here, xattr_whiteouts));
        let uuid = fs_uuid(root.as_fd()).ok().flatten().unwrap_or_default();
        let (has_handles, opens_handles) = probe_handles(root.as_fd());
        let has_flags = matches!(sysfs::inode_flags(root.as_fd()), Ok(Some(_)));
        systems.add(dev, root.as_fd());
        layers.push(Layer {
            path,
            root,
            dev,
            uuid,
            has_handles,
            has_flags,
            opens_handles,
        });
    }
    Ok(LowerLayers::new(layers, merged, roots))
}

/// File handles say nothing where several file systems have one uuid, or none: images without one, and
/// copies of one image. Neither origins nor the index are used there (`ovl_lower_uuid_ok`).
fn distrust_handles(layers: &mut [Layer]) {
    let systems: Vec<(u64, [u8; 16])> = layers.iter().map(|l| (l.dev, l.uuid)).collect();
    for layer in layers {
        let same = |(dev, uuid): &(u64, [u8; 16])| *uuid == layer.uuid && *dev != layer.dev;
        if systems.iter().any(same) {
            tracing::debug!(path = ?layer.path, "another lower's file system has the same uuid");
            (layer.has_handles, layer.opens_handles) = (false, false);
        }
    }
}

fn open_upper(
    config: &Config,
    (path, fd): (PathBuf, OwnedFd),
    (work_path, work): (PathBuf, OwnedFd),
    systems: &mut FileSystems,
) -> Result<Upper, OpenError> {
    check_incompat(config, &work_path, work.as_fd())?;
    let root = rustix::fs::openat(&fd, c".", DIR_PATH, Mode::empty()).map_err(io("open", &path))?;
    let st = stat_at(root.as_fd(), OsStr::new("")).map_err(io("read", &path))?;
    let dev = dev_of(&st);
    systems.devs.push((dev, 0));
    systems.narrow &= has_narrow_inos(root.as_fd());
    let uuid = fs_uuid(root.as_fd()).ok().flatten().unwrap_or_default();
    let (has_handles, opens_handles) = probe_handles(root.as_fd());
    let work = Work::open(work).map_err(io("prepare the work directory", &work_path))?;
    Ok(Upper {
        layer: Layer {
            path,
            root,
            dev,
            uuid,
            has_handles,
            has_flags: true,
            opens_handles,
        },
        work,
    })
}

/// Refuses a work directory with features that must not be ignored.
fn check_incompat(config: &Config, path: &Path, work: BorrowedFd<'_>) -> Result<(), OpenError> {
    let name = OsStr::new("work/incompat");
    let Some(_) = stat_opt(work, name).map_err(io("read", path))? else {
        return Ok(());
    };
    let dir = match rustix::fs::openat(work, name, DIR_READ, Mode::empty()) {
        // A file of this name is a left-over and goes with the rest of work/work.
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        other => other.map_err(io("read", path))?,
    };
    let mut features = Vec::new();
    crate::sys::dir::read_all(dir.as_fd(), |e| {
        if e.name != "." && e.name != ".." {
            features.push(e.name.to_os_string());
        }
    })
    .map_err(io("read", path))?;
    for feature in features {
        if feature != "volatile" {
            let feature = feature.to_string_lossy().into_owned();
            return Err(OpenError::Incompatible {
                path: path.to_path_buf(),
                feature,
            });
        }
        if !config.shared_upper {
            return Err(OpenError::Volatile(path.to_path_buf()));
        }
        tracing::warn!("the last mount of this upper was volatile: it may be incomplete");
    }
    Ok(())
}

/// The xattrs of overlay are `trusted.*` where we may write those.
fn choose_namespace(config: &Config, upper: Option<&Upper>) -> Namespace {
    match (config.userxattr, upper) {
        (Some(true), _) => Namespace::User,
        (Some(false), _) => Namespace::Trusted,
        (None, Some(upper)) => {
            if sysfs::has_cap_sys_admin_in_init_ns() || probe_xattrs(upper, Namespace::Trusted) {
                Namespace::Trusted
            } else {
                Namespace::User
            }
        }
        (None, None) if sysfs::has_cap_sys_admin_in_init_ns() => Namespace::Trusted,
        (None, None) => Namespace::User,
    }
}

/// Refuses what would be wrong in `user.*` attributes; leaves it out where that is asked for.
fn need_trusted(config: &mut Config, ns: Namespace, upper: &Upper) -> Result<(), OpenError> {
    let asked = [
        ("metacopy=on", config.metacopy),
        ("redirect_dir=on", config.redirect_dir == RedirectDir::On),
    ];
    let Some((option, _)) = asked.iter().find(|(_, on)| *on && ns == Namespace::User) else {
        return Ok(());
    };
    if !config.lenient {
        return Err(OpenError::NeedsTrusted {
            option,
            path: upper.layer.path.clone(),
        });
    }
    tracing::warn!("{option} left out: trusted.overlay.* attributes can't be written here");
    config.metacopy = false;
    if config.redirect_dir == RedirectDir::On {
        config.redirect_dir = RedirectDir::Auto;
    }
    Ok(())
}

/// What a rename does with a directory that has a lower part.
fn moves(redirect_dir: RedirectDir, ns: Namespace, upper_xattrs: bool) -> Moves {
    match redirect_dir {
        RedirectDir::Off | RedirectDir::Follow | RedirectDir::NoFollow => Moves::Refused,
        RedirectDir::On | RedirectDir::Auto if ns == Namespace::Trusted && upper_xattrs => {
            Moves::Redirect
        }
        RedirectDir::On | RedirectDir::Auto => Moves::Copy,
    }
}

/// Can overlay's xattrs be written on upper's file system?
fn probe_xattrs(upper: &Upper, ns: Namespace) -> bool {
    let temp = upper.work.temp();
    let dir = upper.work.dir.as_fd();
    rustix::fs::mkdirat(dir, &temp.name, Mode::RWXU).is_ok()
        && xattr::set_at(
            dir,
            &temp.name,
            ns.key(OverlayKey::Opaque),
            b"y",
            SetFlags::Any,
        )
        .is_ok()
}

/// The index, and the marker of a volatile mount.
fn prepare_work(config: &Config, upper: &mut Upper) -> Result<(), OpenError> {
    let path = upper.layer.path.clone();
    if config.index {
        let base = upper.work.base.as_fd();
        let name = OsStr::new("index");
        match rustix::fs::mkdirat(base, name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                sysfs::chmod_at(base, name, 0o700).map_err(io("prepare work/index of", &path))?;
            }
            Err(e) => return Err(io("make work/index of", &path)(e)),
        }
        let index = rustix::fs::openat(base, name, DIR_READ, Mode::empty())
            .map_err(io("open work/index of", &path))?;
        upper.work.index = Some(index);
    }
    if config.volatile {
        let dir = upper.work.dir.as_fd();
        for name in ["incompat", "incompat/volatile"] {
            match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(io("mark as volatile", &path)(e)),
            }
        }
    }
    Ok(())
}

/// Gives the overlay an identity of its own, if it has none.
fn give_uuid(upper: &Upper, ns: Namespace) -> Result<(), Errno> {
    let (root, here, key) = (
        upper.layer.root.as_fd(),
        OsStr::new(""),
        ns.key(OverlayKey::Uuid),
    );
    let mut uuid = [0u8; 16];
    rustix::rand::getrandom(&mut uuid, rustix::rand::GetRandomFlags::empty())?;
    // Version 4, as the kernel's `uuid_gen`.
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    match xattr::set_at(root, here, key, &uuid, SetFlags::Create) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// The lower directories that the root merges: all of them, up to an opaque one.
fn root_stack(
    lowers: &LowerLayers,
    upper: Option<&Upper>,
    ns: Namespace,
) -> Result<Vec<Arc<LowerDir>>, OpenError> {
    let mut stack = Vec::new();
    if let Some(upper) = upper
        && is_opaque(upper.layer.root.as_fd(), ns).map_err(io("read", &upper.layer.path))?
    {
        return Ok(stack);
    }
    for i in 0..lowers.merged {
        stack.push(Arc::clone(lowers.root(i)));
        let layer = &lowers.layers[i];
        if i + 1 < lowers.merged
            && is_opaque(layer.root.as_fd(), ns).map_err(io("read", &layer.path))?
        {
            break;
        }
    }
    Ok(stack)
}

fn is_opaque(root: BorrowedFd<'_>, ns: Namespace) -> Result<bool, Errno> {
    use std::os::unix::ffi::OsStrExt;
    let here = OsStr::new("");
    let value = xattr::get_at(root, here, ns.key(OverlayKey::Opaque))?;
    if value.as_deref() == Some(b"y") || xattr::has_at(root, here, c"user.fuseoverlayfs.opaque")? {
        return Ok(true);
    }
    let mark = OsStr::from_bytes(crate::format::whiteout::OPAQUE_MARK);
    Ok(stat_opt(root, mark)?.is_some())
}

/// What the root's inode number is made from.
fn root_number(
    lowers: &LowerLayers,
    upper: Option<&Upper>,
    stack: &[Arc<LowerDir>],
) -> Result<(u64, u64), OpenError> {
    if let (None, Some(dir)) = (upper, stack.first()) {
        return Ok((dir.dev, dir.ino));
    }
    let layer = upper.map_or(&lowers.layers[0], |u| &u.layer);
    let st = stat_at(layer.root.as_fd(), OsStr::new("")).map_err(io("read", &layer.path))?;
    Ok((dev_of(&st), st.stx_ino))
}

fn make_root(upper: Option<&Upper>, stack: Vec<Arc<LowerDir>>) -> Result<Node, OpenError> {
    let upper_ino = match upper {
        None => 0,
        Some(upper) => {
            let root = upper.layer.root.as_fd();
            stat_at(root, OsStr::new(""))
                .map_err(io("read", &upper.layer.path))?
                .stx_ino
        }
    };
    let place = Place {
        parent: None,
        name: OsStr::new("").into(),
        upper_ino,
        upper_alias: upper_ino != 0,
        lower: None,
        removed: false,
        extra: None,
    };
    Ok(Node::new(
        ROOT_ID,
        Kind::Dir,
        place,
        Some(DirPart::new(stack, None)),
    ))
}
