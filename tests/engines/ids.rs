//! Hosts that can't store owners: `xattr_permissions`, squashed and mapped ids. The daemon is root
//! without the privileges that root has over other users' files, or in a user namespace of one id.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::fs::FileType;

use crate::support::files::{acl_with_user, mknod, set_xattr};
use crate::support::{
    Layers, Scratch, as_user, errno, is_mount_point, require_program, require_root, rovl_bin,
    wait_until,
};

const OVERRIDE: &str = "user.containers.override_stat";
/// What a user has not: other users' files, device nodes, capabilities of files.
const LOST: &str = "-chown,-fowner,-dac_override,-dac_read_search,-mknod,-fsetid,-setfcap";

/// A mount whose daemon can store no owner but its own.
struct OneId {
    layers: Layers,
    options: &'static str,
}

impl OneId {
    fn mount(layers: &Layers, options: &'static str) -> OneId {
        require_root();
        require_program("setpriv");
        let one = OneId {
            layers: layers.clone(),
            options,
        };
        one.start();
        one
    }

    fn start(&self) {
        let output = Command::new("setpriv")
            .arg(format!("--bounding-set={LOST}"))
            .arg(format!("--inh-caps={LOST}"))
            .arg(rovl_bin())
            .args(["mount", "-o", self.options, "--lower"])
            .arg(self.layers.lowerdir())
            .arg("--upper")
            .arg(&self.layers.upper)
            .arg("--work")
            .arg(&self.layers.work)
            .arg(&self.layers.merged)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", self.options);
    }

    fn end(&self) {
        let point = &self.layers.merged;
        let ended = wait_until(Duration::from_secs(5), || {
            rustix::mount::unmount(point, rustix::mount::UnmountFlags::empty()).is_ok()
        });
        assert!(ended, "can't unmount {}", point.display());
    }

    fn remount(&self) {
        self.end();
        self.start();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.layers.merged.join(name)
    }
}

impl Drop for OneId {
    fn drop(&mut self) {
        if is_mount_point(&self.layers.merged) {
            Command::new("umount")
                .arg(&self.layers.merged)
                .output()
                .ok();
        }
    }
}

/// Owner, group, type and mode of everything beneath `root`, symlinks with their targets.
fn owners(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let (path, meta) = (entry.path(), fs::symlink_metadata(entry.path()).unwrap());
            assert_eq!(entry.file_type().unwrap(), meta.file_type(), "{path:?}");
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let (uid, gid, mode) = (meta.uid(), meta.gid(), meta.mode());
            let target = fs::read_link(&path).unwrap_or_default();
            found.push(format!("{name} {uid}:{gid} {mode:o} {}", target.display()));
            if meta.is_dir() {
                dirs.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A file as a package manager replaces it: made beside it, given away, renamed over it.
fn install(path: &Path, owner: (u32, u32), mode: u32) {
    let new = path.with_extension("dpkg-new");
    fs::write(&new, format!("package's {}", path.display())).unwrap();
    chown(&new, Some(owner.0), Some(owner.1)).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
    File::open(&new).unwrap().sync_all().unwrap();
    if path.exists() {
        fs::hard_link(path, path.with_extension("dpkg-tmp")).unwrap();
    }
    fs::rename(&new, path).unwrap();
    fs::remove_file(path.with_extension("dpkg-tmp")).ok();
}

fn layers_of_a_system(scratch: &Scratch) -> Layers {
    let layers = scratch.layers(1);
    let lower = layers.lower();
    for dir in ["usr/bin", "var/mail", "etc"] {
        fs::create_dir_all(lower.join(dir)).unwrap();
    }
    fs::write(lower.join("usr/bin/passwd"), "old").unwrap();
    fs::write(lower.join("etc/shadow"), "root:*").unwrap();
    set_xattr(&lower.join("etc/shadow"), OVERRIDE, b"0:42:0640").unwrap();
    symlink("passwd", lower.join("usr/bin/alias")).unwrap();
    layers
}

/// dpkg's calls on a host with one id: every owner can be set, and is there after a remount.
#[test]
fn packages_are_installed_where_one_id_can_be_stored() {
    let scratch = Scratch::new();
    let layers = layers_of_a_system(&scratch);
    let one = OneId::mount(&layers, "xattr_permissions=2");
    install(&one.path("usr/bin/passwd"), (0, 0), 0o4755);
    install(&one.path("usr/bin/write"), (0, 5), 0o2755);
    install(&one.path("etc/shadow"), (0, 43), 0o600);
    lchown(one.path("usr/bin/alias"), Some(6), Some(7)).unwrap();
    symlink("write", one.path("usr/bin/new-alias")).unwrap();
    lchown(one.path("usr/bin/new-alias"), Some(60), Some(70)).unwrap();
    chown(one.path("var/mail"), Some(0), Some(8)).unwrap();
    fs::set_permissions(one.path("var/mail"), fs::Permissions::from_mode(0o2775)).unwrap();
    fs::create_dir(one.path("var/mail/box")).unwrap();
    for (name, kind, dev) in [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("disk", FileType::BlockDevice, rustix::fs::makedev(8, 1)),
        ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
    ] {
        mknod(&one.path(name), kind, 0o660, dev).unwrap();
        chown(one.path(name), Some(4_000_000_000), Some(99)).unwrap();
    }
    fs::remove_file(one.path("usr/bin/alias")).unwrap();
    symlink("elsewhere", one.path("usr/bin/alias")).unwrap();
    lchown(one.path("usr/bin/alias"), Some(3), Some(4)).unwrap();

    let rows = [
        ("usr/bin/passwd", (0, 0, 0o104_755)),
        ("usr/bin/write", (0, 5, 0o102_755)),
        ("etc/shadow", (0, 43, 0o100_600)),
        ("usr/bin/alias", (3, 4, 0o120_777)),
        ("usr/bin/new-alias", (60, 70, 0o120_777)),
        ("var/mail", (0, 8, 0o042_775)),
        ("var/mail/box", (0, 8, 0o042_755)),
        ("fifo", (4_000_000_000, 99, 0o010_660 & !0o022)),
    ];
    let before = owners(&layers.merged);
    for remounted in [false, true] {
        if remounted {
            one.remount();
        }
        for (name, expected) in rows {
            let meta = fs::symlink_metadata(one.path(name)).unwrap();
            let found = (meta.uid(), meta.gid(), meta.mode());
            assert_eq!(found, expected, "{name}, remounted: {remounted}");
        }
        assert_eq!(owners(&layers.merged), before);
        let null = fs::metadata(one.path("null")).unwrap();
        assert!(null.file_type().is_char_device() && null.rdev() == rustix::fs::makedev(1, 3));
        assert_eq!(
            fs::read_link(one.path("usr/bin/alias")).unwrap(),
            Path::new("elsewhere")
        );
    }
    for name in ["usr/bin/passwd", "etc/shadow", "fifo", "usr/bin/alias"] {
        let meta = fs::symlink_metadata(layers.upper.join(name)).unwrap();
        let found = (meta.uid(), meta.gid(), meta.mode());
        assert_eq!(found, (0, 0, 0o100_755), "{name} on disk");
    }
}

/// What a user may do follows what is shown, and a write or a chown takes set-id bits away.
#[test]
fn permissions_kept_in_attributes_hold() {
    let scratch = Scratch::new();
    let layers = layers_of_a_system(&scratch);
    let one = OneId::mount(&layers, "xattr_permissions=2");
    let file = one.path("file");
    fs::write(&file, "x").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let denied = as_user(1000, 1000, || errno(fs::read(&file).map(drop)));
    assert_eq!(denied, libc::EACCES);
    chown(&file, Some(1000), Some(1000)).unwrap();
    as_user(1000, 1000, || fs::write(&file, "mine")).unwrap();
    let denied = as_user(1001, 1001, || errno(fs::read(&file).map(drop)));
    assert_eq!(denied, libc::EACCES);

    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o6777)).unwrap();
    as_user(1001, 1001, || fs::write(&file, "not mine")).unwrap();
    assert_eq!(mode(&file), 0o777);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o6777)).unwrap();
    chown(&file, Some(5), None).unwrap();
    assert_eq!(mode(&file), 0o777);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"not mine");
}

/// The attribute is the mount's own: not to be seen, nor to be forged. ACLs can't be kept.
#[test]
fn the_attribute_is_out_of_reach() {
    let scratch = Scratch::new();
    let layers = layers_of_a_system(&scratch);
    let one = OneId::mount(&layers, "xattr_permissions=2");
    let shadow = one.path("etc/shadow");
    let mut buffer = [0; 256];
    assert_eq!(
        rustix::fs::getxattr(&shadow, OVERRIDE, &mut buffer[..]),
        Err(rustix::io::Errno::NODATA)
    );
    let n = rustix::fs::listxattr(&shadow, &mut buffer[..]).unwrap();
    assert!(!String::from_utf8_lossy(&buffer[..n]).contains("override"));
    assert_eq!(
        errno(set_xattr(&shadow, OVERRIDE, b"1:1:0777")),
        libc::EPERM
    );
    assert_eq!(
        errno(set_xattr(
            &shadow,
            "system.posix_acl_access",
            &acl_with_user(5, 7)
        )),
        libc::EOPNOTSUPP
    );
    let meta = fs::metadata(&shadow).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (0, 42, 0o640)
    );
    one.end();

    // Without the option it is an attribute like any other.
    let one = OneId::mount(&layers, "suid");
    let n = rustix::fs::getxattr(one.path("etc/shadow"), OVERRIDE, &mut buffer[..]).unwrap();
    assert_eq!(&buffer[..n], b"0:42:0640");
    assert_eq!(fs::metadata(one.path("etc/shadow")).unwrap().gid(), 0);
}

/// Everything is one user's: giving it away is no error, and changes nothing.
#[test]
fn squashed_owners_need_not_be_stored() {
    let scratch = Scratch::new();
    let layers = layers_of_a_system(&scratch);
    let one = OneId::mount(&layers, "squash_to_uid=7,squash_to_gid=8");
    chown(one.path("etc/shadow"), Some(55), Some(66)).unwrap();
    as_user(7, 8, || {
        fs::write(one.path("new"), "x").unwrap();
        fs::create_dir(one.path("dir")).unwrap();
        symlink("x", one.path("link")).unwrap();
        fs::write(one.path("etc/shadow"), "changed").unwrap();
    });
    for name in ["etc/shadow", "new", "dir", "link", "usr/bin/alias"] {
        let meta = fs::symlink_metadata(one.path(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (7, 8), "{name}");
    }
}

/// The ids in ACLs are mapped as those of owners; ids outside of the map can't be given.
#[test]
fn mapped_ids_hold_in_acls_and_at_the_edge_of_the_map() {
    require_root();
    let scratch = Scratch::new();
    let layers = layers_of_a_system(&scratch);
    let options = "uidmapping=0:100000:1000,gidmapping=:0:200000:1000";
    let mounted = crate::support::Subject::Rovl.mount(&layers, &[options]);
    let path = mounted.path("usr/bin/passwd");
    let acl = "system.posix_acl_access";
    set_xattr(&path, acl, &acl_with_user(100_005, 7)).unwrap();
    let read = |path: &Path| {
        let mut buffer = [0; 256];
        let n = rustix::fs::getxattr(path, acl, &mut buffer[..]).unwrap();
        buffer[..n].to_vec()
    };
    assert_eq!(read(&path), acl_with_user(100_005, 7));
    let stored = layers.upper.join("usr/bin/passwd");
    assert_eq!(read(&stored), acl_with_user(5, 7));
    let refused = errno(set_xattr(&path, acl, &acl_with_user(5, 7)));
    assert_eq!(refused, libc::EINVAL);
    assert_eq!(errno(chown(&path, Some(5), None)), libc::EINVAL);
    chown(&path, Some(100_999), Some(200_999)).unwrap();
    let meta = fs::metadata(&stored).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (999, 999));
    chown(&stored, Some(1000), Some(1000)).unwrap();
    drop(mounted);
    let mounted = crate::support::Subject::Rovl.mount_read_only(&layers, &[options]);
    assert_eq!(fs::metadata(mounted.path("etc")).unwrap().uid(), 100_000);
    drop(mounted);
    let mounted = crate::support::Subject::Rovl.mount(&layers, &[options]);
    let meta = fs::metadata(mounted.path("usr/bin/passwd")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (65_534, 65_534));
}

/// podman as root hands lowers on idmapped mounts together with the same map: they are not mapped
/// twice, and what is copied up or made is stored as without those mounts.
#[test]
fn lowers_on_idmapped_mounts_are_mapped_once() {
    require_root();
    require_program("unshare");
    let acl = "system.posix_acl_access";
    let change = |with_mounts: bool| {
        let scratch = Scratch::new();
        let mut layers = layers_of_a_system(&scratch);
        let lower = layers.lower().to_path_buf();
        for (name, owner) in [("usr/bin/passwd", 33), ("usr/bin", 34), ("var/mail", 5000)] {
            chown(lower.join(name), Some(owner), Some(owner + 1)).unwrap();
        }
        lchown(lower.join("usr/bin/alias"), Some(35), Some(36)).unwrap();
        set_xattr(&lower.join("usr/bin/passwd"), acl, &acl_with_user(5, 7)).unwrap();
        if with_mounts {
            let mapped = scratch.join("mapped");
            fs::create_dir(&mapped).unwrap();
            crate::support::mount_idmapped(&lower, &mapped, 100_000, 1000);
            layers.lowers = vec![mapped];
        }
        let options = "uidmapping=0:100000:1000,gidmapping=:0:100000:1000";
        let mut mounted = crate::support::Subject::Rovl.mount(&layers, &[options]);
        let mut seen = vec![owners(mounted.root())];
        let mut record = |mounted: &crate::support::Mounted| {
            seen.push(owners(mounted.root()));
            for root in [mounted.root(), &layers.upper] {
                let mut buffer = [0; 256];
                let path = root.join("usr/bin/passwd");
                let n = rustix::fs::getxattr(&path, acl, &mut buffer[..]).unwrap_or(0);
                seen.push(vec![format!("{:?}", &buffer[..n])]);
            }
        };
        record(&mounted);
        let path = mounted.path("usr/bin/passwd");
        fs::write(&path, "changed").unwrap();
        chown(mounted.path("etc/shadow"), Some(100_007), None).unwrap();
        chown(mounted.path("var"), None, Some(100_008)).unwrap();
        let refused = errno(chown(mounted.path("etc"), Some(7), None));
        assert_eq!(refused, libc::EINVAL);
        fs::rename(mounted.path("usr/bin/alias"), mounted.path("usr/moved")).unwrap();
        as_user(100_034, 100_035, || {
            fs::write(mounted.path("usr/bin/new"), "x").unwrap();
        });
        record(&mounted);
        mounted.remount();
        record(&mounted);
        drop(mounted);
        seen.push(owners(&layers.upper));
        seen
    };
    let seen = change(true);
    let has =
        |list: &[String], line: &str| assert!(list.iter().any(|l| l == line), "{line}: {list:?}");
    has(&seen[0], "usr/bin/passwd 100033:100034 100770 ");
    has(&seen[0], "usr/bin/alias 100035:100036 120777 passwd");
    has(&seen[0], "var/mail 65534:65534 40755 ");
    has(seen.last().unwrap(), "usr/bin/passwd 33:34 100770 ");
    has(seen.last().unwrap(), "usr/bin/new 34:35 100644 ");
    assert_eq!(seen, change(false));
}

/// Runs a script in a user namespace of one id, `$MOUNT` mounting the layers.
fn in_namespace(layers: &Layers, script: &str) -> Output {
    let mount = format!(
        "{} mount -o xattr_permissions=2 --lower {} --upper {} --work {} {}",
        rovl_bin().display(),
        layers.lowerdir(),
        layers.upper.display(),
        layers.work.display(),
        layers.merged.display()
    );
    Command::new("unshare")
        .args(["-Urm", "bash", "-euc", script])
        .env("MOUNT", mount)
        .env("MERGED", &layers.merged)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The same from within a user namespace of one id, in which the kernel knows no other: symlinks,
/// FIFOs, device nodes and set-id bits are kept, and the tree is the same after a remount.
#[test]
fn packages_are_installed_in_a_user_namespace_of_one_id() {
    require_root();
    require_program("unshare");
    let scratch = Scratch::new();
    let layers = layers_of_a_system(&scratch);
    // The kernel lets nobody touch what belongs to an id that the namespace lacks.
    set_xattr(&layers.lower().join("etc/shadow"), OVERRIDE, b"0:0:0600").unwrap();
    let script = r#"
        list() { cd $MERGED; find . -printf '%p %U:%G %m %y %l\n' | sort; cd /; }
        $MOUNT
        cd $MERGED
        chown -R 0:0 usr
        for file in usr/bin/passwd usr/bin/su etc/passwd; do
            echo new > $file.dpkg-new
            chown 0:0 $file.dpkg-new
            chmod 4755 $file.dpkg-new
            mv $file.dpkg-new $file
        done
        ln -s su usr/bin/doas.dpkg-new
        chown -h 0:0 usr/bin/doas.dpkg-new
        mv usr/bin/doas.dpkg-new usr/bin/doas
        mkfifo -m 600 run
        chown 0:0 run
        chmod 2775 var/mail
        mkdir var/mail/box
        rm -r etc
        mkdir -m 700 etc
        cd /
        before=$(list)
        umount $MERGED
        $MOUNT
        test "$before" = "$(list)"
        echo "$before"
        umount $MERGED"#;
    let output = in_namespace(&layers, script);
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{error}");
    for line in [
        "./usr/bin/passwd 0:0 4755 f ",
        "./usr/bin/doas 0:0 777 l su",
        "./usr/bin/alias 0:0 777 l passwd",
        "./run 0:0 600 p ",
        "./var/mail 0:0 2775 d ",
        "./etc 0:0 700 d ",
    ] {
        assert!(said.lines().any(|found| found == line), "{line}: {said}");
    }
}
