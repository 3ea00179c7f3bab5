//! From options to a plan: absolute paths, the core's configuration, the mount's flags. Still no I/O.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::options::{Dialect, MountOptions};
use crate::fuse::mount::MountRequest;
use crate::fuse::{IdlePolling, IoUring, Passthrough, SessionOptions};
use crate::overlay::{Config, IdOptions, UpperDirs, XattrPermissions};

/// Bytes in one write request: the most that FUSE has.
const MAX_WRITE: u32 = 1 << 20;
/// The kernel wants no less.
const MIN_WRITE: u32 = 4096;
/// More threads than this don't help one mount.
const MAX_THREADS: usize = 16;

/// What the command line says besides the options.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Which command line it was.
    pub dialect: Dialect,
    /// The type behind `fuse.`, unless an option says otherwise.
    pub subtype: &'static str,
    /// The first of two positionals, as mount(8) gives it.
    pub source: Option<OsString>,
    /// The mount point, as given.
    pub merged: PathBuf,
    /// Serve in this process.
    pub foreground: bool,
}

/// Everything that a mount needs.
#[derive(Debug)]
pub struct MountPlan {
    /// For the core.
    pub config: Config,
    /// For the adapter.
    pub session: SessionOptions,
    /// For mount(2); the target is absolute, but symlinks are still in it.
    pub request: MountRequest,
    /// Serve in this process.
    pub foreground: bool,
    /// Log everything.
    pub debug: bool,
}

/// Puts a plan together. `cwd` is what relative paths start from, `cpus` how many threads suit the machine.
pub fn plan(options: MountOptions, invocation: Invocation, cwd: &Path, cpus: usize) -> MountPlan {
    let read_only = options.read_only || options.upper.is_none();
    let mut session = session(&options, invocation.dialect, read_only, cpus);
    let subtype = options
        .subtype
        .clone()
        .unwrap_or_else(|| invocation.subtype.into());
    let fs_name = options.fs_name.clone().or(invocation.source);
    let request = MountRequest {
        fs_name: fs_name.unwrap_or_else(|| subtype.clone()),
        subtype,
        read_only,
        dev: options.dev,
        suid: options.suid,
        exec: options.exec,
        noatime: options.noatime,
        sync: options.sync,
        dirsync: options.dirsync,
        allow_other: options.allow_other,
        default_permissions: true,
        max_read: options.max_read,
        context: options.context.clone(),
        ..MountRequest::new(cwd.join(&invocation.merged))
    };
    let (foreground, debug) = (invocation.foreground || options.debug, options.debug);
    let config = config(options, cwd, invocation.dialect);
    // Engines compare trees; others want a mount of their own.
    if invocation.dialect == Dialect::Helper && !foreground {
        session.alike = Some(alike(&config, &session, &request));
    }
    MountPlan {
        session,
        request,
        foreground,
        debug,
        config,
    }
}

/// All that makes two mounts of the same layers show different things, or to different users.
fn alike(config: &Config, session: &SessionOptions, request: &MountRequest) -> String {
    let shown = (
        &config.ids,
        config.redirect_dir,
        config.xino,
        config.ino32,
        config.uuid,
        config.userxattr,
        config.static_nlink,
    );
    let kept = (session.acl, session.xattrs, session.timeout);
    let mounted = (
        request.allow_other,
        request.default_permissions,
        request.max_read,
        &request.context,
    );
    format!("{shown:?} {kept:?} {mounted:?}")
}

fn config(options: MountOptions, cwd: &Path, dialect: Dialect) -> Config {
    let absolute = |paths: Vec<PathBuf>| paths.iter().map(|path| cwd.join(path)).collect();
    let mut config = Config::new(absolute(options.lowers));
    config.data_lowers = absolute(options.data_lowers);
    if let (Some(upper), Some(work)) = (options.upper, options.work) {
        config.upper = Some(UpperDirs {
            upper: cwd.join(upper),
            work: cwd.join(work),
        });
    }
    config.redirect_dir = options.redirect_dir.unwrap_or(config.redirect_dir);
    config.index = options.index.unwrap_or(config.index);
    config.metacopy = options.metacopy.unwrap_or(config.metacopy);
    config.xino = options.xino.unwrap_or(config.xino);
    config.ino32 = options.ino32;
    config.uuid = options.uuid.unwrap_or(config.uuid);
    config.userxattr = options.userxattr.then_some(true).or(config.userxattr);
    config.volatile = options.volatile;
    config.fsync = options.fsync.unwrap_or(config.fsync);
    config.static_nlink = options.static_nlink;
    config.ids = IdOptions {
        uid_map: options.uid_map,
        gid_map: options.gid_map,
        squash_uid: options.squash.uid,
        squash_gid: options.squash.gid,
        xattr_permissions: match options.xattr_permissions {
            0 => XattrPermissions::Off,
            1 => XattrPermissions::Privileged,
            _ => XattrPermissions::User,
        },
    };
    config.shared_upper = dialect == Dialect::Helper;
    config.lenient = dialect == Dialect::Helper;
    config.settle_xattrs = dialect == Dialect::Helper;
    config
}

fn session(
    options: &MountOptions,
    dialect: Dialect,
    read_only: bool,
    cpus: usize,
) -> SessionOptions {
    // The data path that works everywhere, and the faster one for most, is the cached one.
    let passthrough = match (options.passthrough, dialect) {
        (None, _) => Passthrough::Off,
        (Some(Passthrough::On), Dialect::Helper) => Passthrough::Preferred,
        (Some(asked), _) => asked,
    };
    SessionOptions {
        io_uring: options.io_uring.unwrap_or(IoUring::Off),
        threads: options.threads.unwrap_or((2 * cpus).clamp(4, MAX_THREADS)),
        clone_fd: options.clone_fd.unwrap_or(true),
        timeout: options.timeout,
        // See `fuse`, "Data paths".
        writeback: options.writeback.unwrap_or(false),
        passthrough,
        idle_polling: options.idle_polling.unwrap_or(IdlePolling::Auto),
        max_write: options
            .max_write
            .unwrap_or(MAX_WRITE)
            .clamp(MIN_WRITE, MAX_WRITE),
        read_only,
        // ACLs that the core can't keep: it refuses them, and the kernel needn't ask.
        acl: options.acl && options.xattrs && options.xattr_permissions == 0,
        xattrs: options.xattrs,
        alike: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Parser;
    use super::*;
    use std::ffi::OsStr;

    fn planned(dialect: Dialect, raw: &str) -> MountPlan {
        let mut parser = Parser::new(dialect);
        parser.options(OsStr::new(raw)).unwrap();
        let invocation = Invocation {
            dialect,
            subtype: "rovl",
            source: None,
            merged: "m".into(),
            foreground: false,
        };
        plan(
            parser.finish().unwrap().options,
            invocation,
            Path::new("/cwd"),
            4,
        )
    }

    #[test]
    fn relative_paths_start_from_the_current_directory() {
        let plan = planned(Dialect::Rovl, "lowerdir=a:/b::d,upperdir=u,workdir=../w");
        assert_eq!(plan.config.lowers, [Path::new("/cwd/a"), Path::new("/b")]);
        assert_eq!(plan.config.data_lowers, [Path::new("/cwd/d")]);
        let upper = plan.config.upper.unwrap();
        assert_eq!(upper.upper, Path::new("/cwd/u"));
        assert_eq!(upper.work, Path::new("/cwd/../w"));
        assert_eq!(plan.request.target, Path::new("/cwd/m"));
    }

    #[test]
    fn without_upper_the_mount_is_read_only() {
        let plan = planned(Dialect::Rovl, "lowerdir=a:b");
        assert!(plan.request.read_only && plan.session.read_only);
        let plan = planned(Dialect::Rovl, "lowerdir=a:b,upperdir=u,workdir=w");
        assert!(!plan.request.read_only && !plan.session.read_only);
        let plan = planned(Dialect::Rovl, "lowerdir=a:b,upperdir=u,workdir=w,ro");
        assert!(plan.request.read_only && plan.session.read_only);
    }

    #[test]
    fn flags_are_those_of_fuse_overlayfs_unless_asked_otherwise() {
        let plan = planned(Dialect::Helper, "lowerdir=a:b");
        let request = plan.request;
        assert!(request.noatime && request.suid && request.dev && request.exec);
        assert!(request.default_permissions && request.allow_other.is_none());
        let request = planned(Dialect::Helper, "lowerdir=a:b,nodev,nosuid,noexec,relatime").request;
        assert!(!request.noatime && !request.suid && !request.dev && !request.exec);
    }

    #[test]
    fn an_upper_in_use_is_an_error_in_one_command_line_and_a_warning_in_the_other() {
        assert!(!planned(Dialect::Rovl, "lowerdir=a").config.shared_upper);
        assert!(planned(Dialect::Helper, "lowerdir=a").config.shared_upper);
    }

    #[test]
    fn mounts_of_engines_are_alike_whatever_upper_they_have_and_unlike_where_it_shows() {
        let of = |raw: &str| planned(Dialect::Helper, raw).session.alike;
        let plain = of("lowerdir=a:b");
        assert!(plain.is_some());
        assert_eq!(plain, of("lowerdir=c,upperdir=u,workdir=w,,volatile"));
        for other in [
            "squash_to_uid=1",
            "xattr_permissions=2",
            "noxattrs",
            "noacl",
            "ino32_t",
        ] {
            assert_ne!(plain, of(&format!("lowerdir=a:b,{other}")), "{other}");
        }
        assert_eq!(planned(Dialect::Rovl, "lowerdir=a").session.alike, None);
    }

    #[test]
    fn numbers_stay_within_what_fuse_has() {
        let session = planned(Dialect::Rovl, "lowerdir=a,max_write=1,threads=0").session;
        assert_eq!((session.max_write, session.threads), (MIN_WRITE, 1));
        let session = planned(Dialect::Rovl, "lowerdir=a,max_write=999999999").session;
        assert_eq!((session.max_write, session.threads), (MAX_WRITE, 8));
        assert!(!planned(Dialect::Rovl, "lowerdir=a,noxattrs").session.acl);
        assert!(
            planned(Dialect::Rovl, "lowerdir=a,writeback=on")
                .session
                .writeback
        );
    }

    #[test]
    fn what_can_not_be_had_ends_one_command_line_and_not_the_other() {
        let asked = |dialect, raw| planned(dialect, raw).session.passthrough;
        let on = "lowerdir=a,passthrough=on";
        assert_eq!(asked(Dialect::Rovl, on), Passthrough::On);
        assert_eq!(asked(Dialect::Helper, on), Passthrough::Preferred);
        let auto = "lowerdir=a,passthrough=auto";
        assert_eq!(asked(Dialect::Helper, auto), Passthrough::Auto);
        assert_eq!(asked(Dialect::Helper, "lowerdir=a"), Passthrough::Off);
    }

    #[test]
    fn source_and_type_can_be_named() {
        let request = planned(Dialect::Rovl, r"lowerdir=a,fsname=x\,y,subtype=z").request;
        assert_eq!(
            (request.fs_name, request.subtype),
            ("x,y".into(), "z".into())
        );
        let request = planned(Dialect::Rovl, "lowerdir=a").request;
        assert_eq!(
            (request.fs_name, request.subtype),
            ("rovl".into(), "rovl".into())
        );
    }
}
