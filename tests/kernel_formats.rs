//! The formats against the kernel that defines them: overlayfs mounts on several file systems.
//!
//! All of these need root and are ignored otherwise:
//! `cargo test --test kernel_formats -- --ignored`. They need loop devices, mkfs.ext4, mkfs.xfs and
//! mkfs.btrfs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rovl::format::acl::{self, Acl, AclEntry, AclTag};
use rovl::format::handle::OverlayHandle;
use rovl::format::keys::{Namespace, OverlayKey};
use rovl::format::metacopy::Metacopy;
use rovl::format::nlink::{Nlink, NlinkBase};
use rovl::format::redirect::Redirect;
use rovl::sys::xattr::{SetFlags, get_at, list_at, remove_at, set_at};
use rovl::sys::{fs as sys_fs, handle};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;

const TRUSTED: Namespace = Namespace::Trusted;

fn run(program: &str, args: &[&OsStr]) {
    let out = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {said}");
}

/// A mount that ends with its value.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, options: &str, source: &Path, target: &Path) -> Mounted {
        let [t, o] = [OsStr::new("-t"), OsStr::new("-o")];
        let args = [
            t,
            OsStr::new(kind),
            o,
            OsStr::new(options),
            source.as_ref(),
            target.as_ref(),
        ];
        run("mount", &args);
        Mounted(target.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[self.0.as_ref()]);
    }
}

/// A file system of its own for one test, and overlay directories on it.
struct Fs {
    _mount: Option<Mounted>,
    root: PathBuf,
    _tmp: tempfile::TempDir,
}

impl Fs {
    fn new(kind: &str) -> Fs {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = tmp.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let mount = match kind {
            "here" => None,
            "tmpfs" => Some(Mounted::new("tmpfs", "size=64m", Path::new("none"), &root)),
            kind => {
                let image = tmp.path().join("image");
                std::fs::File::create(&image)
                    .unwrap()
                    .set_len(400 << 20)
                    .unwrap();
                run(&format!("mkfs.{kind}"), &["-q".as_ref(), image.as_ref()]);
                Some(Mounted::new(kind, "loop", &image, &root))
            }
        };
        for name in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        Fs {
            _mount: mount,
            root,
            _tmp: tmp,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn overlay(&self, options: &str) -> Mounted {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| self.at(name));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}{options}",
            lower.display(),
            upper.display(),
            work.display()
        );
        Mounted::new(
            "overlay",
            &options,
            Path::new("overlay"),
            &self.at("merged"),
        )
    }

    fn get(&self, path: &str, key: &CStr) -> Option<Vec<u8>> {
        get_at(CWD, self.at(path).as_os_str(), key).unwrap()
    }

    fn handle(&self, path: &str, is_upper: bool) -> OverlayHandle {
        let raw = handle::name_to_handle_at(CWD, self.at(path).as_os_str())
            .unwrap()
            .unwrap();
        let root = path_fd(&self.root);
        OverlayHandle {
            uuid: handle::fs_uuid(root.as_fd()).unwrap().unwrap(),
            handle_type: raw.handle_type,
            bytes: raw.bytes,
            is_upper,
        }
    }

    fn ino(&self, path: &str) -> u64 {
        std::fs::symlink_metadata(self.at(path)).unwrap().ino()
    }
}

fn path_fd(path: &Path) -> OwnedFd {
    open(
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap()
}

/// Origin, index and upper handles as the kernel writes them, and the inode numbers in them.
fn handles_are_the_kernels(kind: &str) {
    let fs = Fs::new(kind);
    std::fs::create_dir(fs.at("lower/dir")).unwrap();
    std::fs::write(fs.at("lower/dir/file"), b"data").unwrap();
    std::fs::hard_link(fs.at("lower/dir/file"), fs.at("lower/dir/other")).unwrap();
    std::os::unix::fs::symlink("file", fs.at("lower/dir/link")).unwrap();
    let merged = fs.overlay(",index=on,nfs_export=on");
    let now = sys_fs::TimeSpec::Now;
    for path in ["dir/file", "dir/link", "dir"] {
        sys_fs::utimens_at(CWD, fs.at("merged").join(path).as_os_str(), now, now).unwrap();
    }
    drop(merged);
    for path in ["dir/file", "dir/link", "dir"] {
        let (lower, upper) = (format!("lower/{path}"), format!("upper/{path}"));
        let expected = fs.handle(&lower, false);
        assert_eq!(
            expected.ino(),
            Some(fs.ino(&lower)),
            "{kind} {path}: {expected:?}"
        );
        let origin = fs.get(&upper, TRUSTED.key(OverlayKey::Origin)).unwrap();
        assert_eq!(
            OverlayHandle::parse(&origin),
            Ok(Some(expected.clone())),
            "{kind} {path}"
        );
        assert_eq!(expected.encode(), origin, "{kind} {path}");
        let index = format!("work/index/{}", expected.index_name());
        assert!(fs.at(&index).symlink_metadata().is_ok(), "{kind} {path}");
        if path == "dir" {
            let value = fs.get(&index, TRUSTED.key(OverlayKey::Upper)).unwrap();
            assert_eq!(fs.handle(&upper, true).encode(), value, "{kind} {path}");
        } else {
            assert_eq!(fs.ino(&index), fs.ino(&upper), "{kind} {path}");
        }
    }
    for entry in std::fs::read_dir(fs.at("work/index")).unwrap() {
        let name = entry.unwrap().file_name();
        let parsed = OverlayHandle::parse_index_name(&name).unwrap().unwrap();
        assert_eq!(OsString::from(parsed.index_name()), name);
    }
}

#[test]
#[ignore = "needs root, loop devices and mkfs.ext4"]
fn ext4_handles_are_the_kernels() {
    handles_are_the_kernels("ext4");
}

#[test]
#[ignore = "needs root, loop devices and mkfs.xfs"]
fn xfs_handles_are_the_kernels() {
    handles_are_the_kernels("xfs");
}

#[test]
#[ignore = "needs root, loop devices and mkfs.btrfs"]
fn btrfs_handles_are_the_kernels() {
    handles_are_the_kernels("btrfs");
}

#[test]
#[ignore = "needs root"]
fn tmpfs_handles_are_the_kernels() {
    handles_are_the_kernels("tmpfs");
}

#[test]
#[ignore = "needs root"]
fn a_handle_of_an_overlay_has_no_inode_number() {
    let fs = Fs::new("here");
    std::fs::write(fs.at("lower/file"), b"").unwrap();
    let merged = fs.overlay(",index=on,nfs_export=on");
    let raw = handle::name_to_handle_at(CWD, fs.at("merged/file").as_os_str()).unwrap();
    drop(merged);
    let raw = raw.unwrap();
    assert_eq!(raw.handle_type, 0xf8);
    let (handle_type, bytes) = (raw.handle_type, raw.bytes);
    let nested = OverlayHandle {
        uuid: [1; 16],
        handle_type,
        bytes,
        is_upper: false,
    };
    assert_eq!(nested.ino(), None);
}

fn names(list: &[u8]) -> Vec<&[u8]> {
    let mut names: Vec<_> = list
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names
}

/// A client's attributes on a kernel overlay: where they are stored, what is listed.
fn names_are_escaped_as_the_kernel_does(ns: Namespace, options: &str) {
    let fs = Fs::new("here");
    std::fs::write(fs.at("lower/file"), b"data").unwrap();
    let merged = fs.overlay(options);
    let file = fs.at("merged/file");
    let set: [&CStr; 9] = [
        c"trusted.overlay.foo",
        c"trusted.overlay.opaque",
        c"trusted.overlay.overlay.foo",
        c"trusted.overlay.overlay",
        c"trusted.overlayx",
        c"trusted.other",
        c"user.overlay.foo",
        c"user.overlay.overlay.foo",
        c"user.other",
    ];
    for key in set {
        set_at(CWD, file.as_os_str(), key, key.to_bytes(), SetFlags::Create).unwrap();
    }
    let listed = list_at(CWD, file.as_os_str()).unwrap();
    drop(merged);
    for key in set {
        let stored = CString::new(ns.to_stored(key.to_bytes())).unwrap();
        assert_eq!(
            fs.get("upper/file", &stored).as_deref(),
            Some(key.to_bytes()),
            "{key:?}"
        );
    }
    let stored = list_at(CWD, fs.at("upper/file").as_os_str()).unwrap();
    let shown: Vec<_> = names(&stored)
        .into_iter()
        .filter_map(|name| ns.to_shown(name))
        .collect();
    let mut shown: Vec<_> = shown.iter().map(|name| name.as_ref()).collect();
    shown.sort_unstable();
    assert_eq!(shown, names(&listed));
}

#[test]
#[ignore = "needs root"]
fn trusted_names_are_escaped_as_the_kernel_does() {
    names_are_escaped_as_the_kernel_does(Namespace::Trusted, "");
}

#[test]
#[ignore = "needs root"]
fn user_names_are_escaped_as_the_kernel_does() {
    names_are_escaped_as_the_kernel_does(Namespace::User, ",userxattr");
}

#[test]
#[ignore = "needs root"]
fn redirects_are_written_as_the_kernel_does() {
    let fs = Fs::new("here");
    for path in ["lower/a", "lower/a/b", "lower/c", "lower/d"] {
        std::fs::create_dir(fs.at(path)).unwrap();
    }
    let merged = fs.overlay(",redirect_dir=on");
    std::fs::rename(fs.at("merged/a/b"), fs.at("merged/d/moved")).unwrap();
    std::fs::rename(fs.at("merged/c"), fs.at("merged/renamed")).unwrap();
    drop(merged);
    let names = |path: &[&str]| path.iter().map(OsString::from).collect();
    let rows = [
        ("upper/d/moved", Redirect::Absolute(names(&["a", "b"]))),
        ("upper/renamed", Redirect::Relative("c".into())),
    ];
    for (path, redirect) in rows {
        let value = fs.get(path, TRUSTED.key(OverlayKey::Redirect)).unwrap();
        assert_eq!(Redirect::parse(&value), Ok(redirect.clone()));
        assert_eq!(redirect.encode(), value);
    }
}

#[test]
#[ignore = "needs root"]
fn redirects_are_refused_where_the_kernel_refuses_them() {
    let fs = Fs::new("here");
    std::fs::create_dir_all(fs.at("lower/a/b")).unwrap();
    std::fs::write(fs.at("lower/a/b/below"), b"").unwrap();
    let values: [&[u8]; 22] = [
        b"", b"\0", b"a", b"a\0", b"a\0b", b"a/b", b"a/", b"/", b"//", b"/a", b"/a/", b"/a//b",
        b"//a", b"/a/b", b"/a/b\0c", b".", b"..", b"/.", b"/..", b"/a/../a", b"/a/./b", b"none",
    ];
    for value in values {
        let dir = fs.at("upper/dir");
        std::fs::create_dir(&dir).unwrap();
        let key = TRUSTED.key(OverlayKey::Redirect);
        set_at(CWD, dir.as_os_str(), key, value, SetFlags::Any).unwrap();
        let merged = fs.overlay(",redirect_dir=on");
        let accepted = std::fs::read_dir(fs.at("merged/dir"));
        let shows = accepted
            .as_ref()
            .is_ok_and(|_| fs.at("merged/dir/below").exists());
        let (accepted, parsed) = (accepted.map(drop), Redirect::parse(value));
        drop(merged);
        let value = value.escape_ascii();
        assert_eq!(
            accepted.is_ok(),
            parsed.is_ok(),
            "{value}: {accepted:?} {parsed:?}"
        );
        let leads_there = parsed.is_ok_and(|redirect| redirect.encode() == b"/a/b");
        assert_eq!(shows, leads_there, "{value}");
        std::fs::remove_dir(&dir).unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn link_counts_are_those_of_the_kernel() {
    let fs = Fs::new("here");
    std::fs::write(fs.at("lower/a"), b"").unwrap();
    for name in ["b", "c", "d"] {
        std::fs::hard_link(fs.at("lower/a"), fs.at("lower").join(name)).unwrap();
    }
    let merged = fs.overlay(",index=on");
    std::fs::write(fs.at("merged/a"), b"changed").unwrap();
    std::fs::remove_file(fs.at("merged/b")).unwrap();
    drop(merged);
    let key = TRUSTED.key(OverlayKey::Nlink);
    let links = |path: &str| {
        std::fs::metadata(fs.at(path))
            .unwrap()
            .nlink()
            .cast_signed()
    };
    let (upper, lower) = (links("upper/a"), links("lower/a"));
    let real = |nlink: Nlink| {
        let base = if nlink.base == NlinkBase::Upper {
            upper
        } else {
            lower
        };
        Some(base + nlink.diff).filter(|&n| n > 0)
    };
    let written = Nlink::parse(&fs.get("upper/a", key).unwrap()).unwrap();
    assert_eq!(real(written), Some(3), "{written:?}");
    let values: [&[u8]; 20] = [
        b"U+0",
        b"U+1",
        b"U-1",
        b"L-1",
        b"L+7",
        b"L+007",
        b"U+1\n",
        b"U+5\0x",
        b"L-9",
        b"U+1\n\n",
        b"",
        b"U",
        b"U+",
        b"X+1",
        b"U1",
        b"U++1",
        b"U+1x",
        b"U+2147483648",
        b"U+00000000001",
        b"U+0000000001",
    ];
    for value in values {
        set_at(CWD, fs.at("upper/a").as_os_str(), key, value, SetFlags::Any).unwrap();
        let merged = fs.overlay(",index=on");
        let shown = links("merged/a");
        drop(merged);
        // The kernel falls back to the upper inode's own count.
        let expected = Nlink::parse(value).ok().and_then(real).unwrap_or(upper);
        assert_eq!(shown, expected, "{}", value.escape_ascii());
    }
}

#[test]
#[ignore = "needs root"]
fn metacopy_is_read_as_the_kernel_does() {
    let fs = Fs::new("here");
    std::fs::write(fs.at("lower/file"), b"data").unwrap();
    let merged = fs.overlay(",metacopy=on");
    sys_fs::chown_at(CWD, fs.at("merged/file").as_os_str(), Some(7), None).unwrap();
    drop(merged);
    let key = TRUSTED.key(OverlayKey::Metacopy);
    let written = fs.get("upper/file", key).unwrap();
    assert_eq!(Metacopy::parse(&written), Ok(Metacopy::default()));
    assert_eq!(Metacopy::default().encode(), written);
    let digest = |length: u8, bytes: usize| [&[0, length, 0, 1][..], &vec![9; bytes]].concat();
    let values = [
        vec![],
        vec![0],
        vec![0, 4, 0],
        vec![0, 4, 0, 0],
        vec![1, 4, 0, 0],
        vec![0, 5, 0, 0],
        vec![0, 4, 1, 0],
        digest(36, 32),
        digest(68, 64),
        digest(69, 65),
    ];
    for value in values {
        set_at(
            CWD,
            fs.at("upper/file").as_os_str(),
            key,
            &value,
            SetFlags::Any,
        )
        .unwrap();
        let read = |options| {
            let _merged = fs.overlay(options);
            std::fs::read(fs.at("merged/file"))
        };
        let plain = read(",metacopy=on");
        let checked = Metacopy::check(&value);
        assert_eq!(
            plain.is_ok(),
            checked.is_ok(),
            "{value:?}: {plain:?} {checked:?}"
        );
        let verified = read(",metacopy=on,verity=on");
        match Metacopy::parse(&value) {
            // The lower file has no digest to compare with.
            Ok(Metacopy {
                digest: Some(_), ..
            }) => assert!(verified.is_err(), "{value:?}"),
            parsed => {
                assert_eq!(
                    verified.is_ok(),
                    parsed.is_ok(),
                    "{value:?}: {verified:?} {parsed:?}"
                );
            }
        }
    }
}

/// Default ACLs of every shape, from a fixed sequence of pseudo-random numbers.
fn default_acls() -> impl Iterator<Item = Acl> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u16::try_from(state % 8).unwrap()
    };
    (0..200u32).map(move |i| {
        let mut entries = vec![AclEntry {
            tag: AclTag::UserObj,
            perm: next(),
        }];
        let mut add = |wanted, tag| {
            if wanted {
                entries.push(AclEntry { tag, perm: next() });
            }
        };
        add(i & 1 != 0, AclTag::User(7));
        add(i & 1 != 0, AclTag::User(1000));
        add(true, AclTag::GroupObj);
        add(i & 2 != 0, AclTag::Group(1001));
        add(i & 7 != 0, AclTag::Mask);
        add(true, AclTag::Other);
        Acl { entries }
    })
}

#[test]
fn default_acls_are_inherited_as_ext4_does() {
    let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = tmp.path().join("dir");
    std::fs::create_dir(&dir).unwrap();
    let (default, access) = (c"system.posix_acl_default", c"system.posix_acl_access");
    let modes = [0o777, 0o666, 0o640, 0o4711, 0o2000, 0];
    for (i, list) in default_acls().enumerate() {
        let value = acl::encode(&list);
        set_at(CWD, dir.as_os_str(), default, &value, SetFlags::Any).unwrap();
        // What the kernel gives back is what we would write.
        assert_eq!(
            get_at(CWD, dir.as_os_str(), default),
            Ok(Some(value.clone()))
        );
        for is_dir in [false, true] {
            let mode = modes[i % modes.len()] & if is_dir { 0o777 } else { 0o7777 };
            let raw = Mode::from_raw_mode(mode);
            let path = dir.join("new");
            if is_dir {
                rustix::fs::mkdirat(CWD, &path, raw).unwrap();
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
                drop(open(&path, flags, raw).unwrap());
            }
            let meta = std::fs::metadata(&path).unwrap();
            let got = acl::inherit(&value, mode, is_dir).unwrap();
            assert_eq!(got.mode, meta.mode() & 0o7777, "{list:?} {mode:o}");
            assert_eq!(
                Ok(got.access),
                get_at(CWD, path.as_os_str(), access),
                "{list:?} {mode:o}"
            );
            assert_eq!(Ok(got.default), get_at(CWD, path.as_os_str(), default));
            run("rm", &["-r".as_ref(), path.as_ref()]);
        }
    }
}

#[test]
fn acls_are_refused_where_the_kernel_refuses_them() {
    let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = tmp.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let key = c"system.posix_acl_access";
    let accepted = |value: &[u8]| match set_at(CWD, file.as_os_str(), key, value, SetFlags::Any) {
        Ok(()) => true,
        Err(Errno::INVAL | Errno::OPNOTSUPP) => false,
        Err(e) => panic!("{e}"),
    };
    for list in default_acls() {
        let good = acl::encode(&list);
        let mut values = vec![good.clone()];
        for at in 0..good.len() {
            for byte in [0, 1, 2, 4, 8, 16, 32, 64, 255] {
                let mut bad = good.clone();
                bad[at] = byte;
                values.push(bad);
            }
            values.push(good[..at].to_vec());
        }
        for value in values.iter().filter(|value| !value.is_empty()) {
            let parsed = acl::parse(value);
            assert_eq!(accepted(value), parsed.is_ok(), "{value:?} {parsed:?}");
        }
        match remove_at(CWD, file.as_os_str(), key) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => panic!("{e}"),
        }
    }
}
