//! What clients get from the kernel's protocol being spoken in full: unnamed files, times of birth,
//! set-id bits as the kernel decides, listings whose numbers are right.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, StatxFlags};
use rustix::io::Errno;

use crate::support::files::{acl_with_user, set_xattr};

use crate::support::{
    Mounted, Scratch, as_user, as_user_with_umask, require_root, subject, wait_until,
};

fn tmpfile(dir: &Path, flags: OFlags, mode: u32) -> rustix::io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | flags;
    rustix::fs::open(dir, flags, Mode::from_raw_mode(mode)).map(File::from)
}

/// Gives an unnamed file a name.
fn name_it(file: &File, to: &Path) -> rustix::io::Result<()> {
    rustix::fs::linkat(file.as_fd(), "", CWD, to, AtFlags::EMPTY_PATH)
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn count(mounted: &Mounted, request: &str) -> u64 {
    let stat = mounted.stat_json().unwrap();
    stat[format!("requests_{request}")].as_u64().unwrap_or(0)
}

#[test]
fn an_unnamed_file_gets_a_name_and_keeps_it() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    fs::create_dir(layers.lower().join("dir")).unwrap();
    let mut mounted = subject().mount(&layers, &[]);
    let dir = mounted.path("dir");
    let mut file = tmpfile(&dir, OFlags::empty(), 0o640).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all(b"unnamed").unwrap();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    name_it(&file, &dir.join("one")).unwrap();
    fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!((meta.nlink(), meta.mode() & 0o7777), (2, 0o640));
    assert_eq!(fs::metadata(dir.join("two")).unwrap().ino(), meta.ino());
    fs::remove_file(dir.join("one")).unwrap();
    file.write_all(b", named").unwrap();
    drop(file);
    mounted.remount();
    let kept = fs::read(mounted.path("dir/two")).unwrap();
    assert_eq!(kept, b"unnamed, named");
    assert_eq!(mode_of(&layers.upper.join("dir/two")), 0o640);
}

#[test]
fn an_unnamed_file_is_gone_once_it_is_closed() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let mounted = subject().mount(&layers, &[]);
    let mut file = tmpfile(mounted.root(), OFlags::EXCL, 0o600).unwrap();
    let refused = name_it(&file, &mounted.path("name"));
    assert_eq!(refused, Err(Errno::NOENT), "O_EXCL: never to have a name");
    file.write_all(&vec![7; 8 << 20]).unwrap();
    file.sync_all().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut back = Vec::new();
    file.read_to_end(&mut back).unwrap();
    assert!(back.len() == 8 << 20 && back.iter().all(|b| *b == 7));
    drop(file);
    let pinned = || mounted.stat_json().unwrap()["pinned_fds"].as_u64();
    wait_until(std::time::Duration::from_secs(5), || pinned() == Some(0));
    assert_eq!(pinned(), Some(0));
    let pid = mounted.stat_json().unwrap()["pid"].as_u64().unwrap();
    let held = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let deleted = held.filter_map(|fd| fs::read_link(fd.path()).ok());
    let deleted: Vec<_> = deleted
        .filter(|to| to.starts_with(&layers.upper) || to.starts_with(&layers.work))
        .filter(|to| to.to_string_lossy().ends_with("(deleted)"))
        .collect();
    assert!(deleted.is_empty(), "its space is not free: {deleted:?}");
    assert_eq!(fs::read_dir(&layers.upper).unwrap().count(), 0);
}

/// Owner, umask, set-group-id directories and default ACLs count as for any new file.
#[test]
fn unnamed_files_belong_to_who_makes_them() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let mounted = subject().mount(&layers, &[]);
    let plain = mounted.path("plain");
    let shared = mounted.path("shared");
    for dir in [&plain, &shared] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    }
    chown(&shared, None, Some(77)).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o2777)).unwrap();
    as_user_with_umask(1000, 1001, 0o027, || {
        let file = tmpfile(&plain, OFlags::empty(), 0o666).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (1000, 1001, 0o640)
        );
        let file = tmpfile(&shared, OFlags::empty(), 0o666).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (1000, 77, 0o640)
        );
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let flags = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(CWD, link, CWD, shared.join("named"), flags).unwrap();
    });
    let named = fs::metadata(layers.upper.join("shared/named")).unwrap();
    assert_eq!((named.uid(), named.gid()), (1000, 77));
    set_xattr(&plain, "system.posix_acl_default", &acl_with_user(1234, 6)).unwrap();
    as_user_with_umask(1000, 1001, 0o077, || {
        let file = tmpfile(&plain, OFlags::empty(), 0o666).unwrap();
        let mut acl = vec![0; 256];
        let size = rustix::fs::fgetxattr(&file, "system.posix_acl_access", &mut acl);
        assert!(size.unwrap() > 0, "the directory's default ACL");
    });
}

#[test]
fn unnamed_files_are_refused_where_nothing_can_be_made() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    fs::create_dir(layers.lower().join("dir")).unwrap();
    let mounted = subject().mount_read_only(&layers, &[]);
    let made = tmpfile(&mounted.path("dir"), OFlags::empty(), 0o600);
    assert_eq!(made.map(drop), Err(Errno::ROFS));
}

#[test]
fn the_time_of_birth_is_that_of_the_layer() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("file"), "x").unwrap();
    fs::create_dir(layers.lower().join("dir")).unwrap();
    let mounted = subject().mount(&layers, &[]);
    fs::write(mounted.path("new"), "y").unwrap();
    let birth = |path: &Path| {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let st = rustix::fs::statx(CWD, path, flags, StatxFlags::BTIME).unwrap();
        assert_ne!(st.stx_mask & StatxFlags::BTIME.bits(), 0, "{path:?}");
        (st.stx_btime.tv_sec, st.stx_btime.tv_nsec)
    };
    for name in ["file", "dir"] {
        assert_eq!(
            birth(&mounted.path(name)),
            birth(&layers.lower().join(name))
        );
    }
    assert_eq!(
        birth(&mounted.path("new")),
        birth(&layers.upper.join("new"))
    );
    // Once for each inode: the kernel keeps it.
    let before = count(&mounted, "statx");
    for _ in 0..5 {
        birth(&mounted.path("new"));
    }
    assert_eq!(count(&mounted, "statx"), before);
}

/// Set-id bits go by what the kernel says of the caller's capabilities, not by who is root.
#[test]
fn set_id_bits_go_when_the_caller_lacks_the_capability() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let mounted = subject().mount(&layers, &[]);
    let file = |name: &str, mode: u32| {
        let path = mounted.path(name);
        fs::write(&path, "0123456789").unwrap();
        chown(&path, Some(1000), Some(1001)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let truncate = |path: &Path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(3).unwrap();
    };
    let write = |path: &Path| {
        let mut file = File::options().write(true).open(path).unwrap();
        file.write_all(b"z").unwrap();
    };
    let by_root = file("root", 0o6777);
    truncate(&by_root);
    write(&by_root);
    assert_eq!(mode_of(&by_root), 0o6777);
    for (name, change) in [("t", &truncate as &(dyn Fn(&Path) + Sync)), ("w", &write)] {
        let others = file(name, 0o6777);
        as_user(1000, 1001, || change(&others));
        assert_eq!(mode_of(&others), 0o777, "{name}");
        // Set-group-id without the right to execute stays for members of the group.
        let member = file(&format!("{name}-member"), 0o2767);
        as_user(1000, 1001, || change(&member));
        assert_eq!(mode_of(&member), 0o2767, "{name}");
    }
    let owned = file("owner", 0o6777);
    chown(&owned, Some(1002), None).unwrap();
    assert_eq!(
        mode_of(&owned),
        0o777,
        "chown takes them away for everybody"
    );
    let locked = file("locked", 0o2767);
    chown(&locked, Some(1002), None).unwrap();
    assert_eq!(
        mode_of(&locked),
        0o2767,
        "but not this one for the privileged"
    );
}

/// An access ACL set by somebody outside of the group takes set-group-id away; by a member it
/// does not, also when the group is a supplementary one.
#[test]
fn acls_take_set_group_id_away_from_strangers_only() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let mounted = subject().mount(&layers, &[]);
    let file = |name: &str| {
        let path = mounted.path(name);
        fs::write(&path, "x").unwrap();
        chown(&path, Some(1000), Some(1001)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2755)).unwrap();
        path
    };
    let acl = acl_with_user(1234, 4);
    for (name, gid, kept) in [("member", 1001, 0o2000), ("stranger", 1002, 0)] {
        let path = file(name);
        as_user(1000, gid, || {
            set_xattr(&path, "system.posix_acl_access", &acl).unwrap()
        });
        assert_eq!(mode_of(&path) & 0o2000, kept, "{name}");
    }
    let path = file("root");
    set_xattr(&path, "system.posix_acl_access", &acl).unwrap();
    assert_eq!(mode_of(&path) & 0o2000, 0o2000);
}

/// Names of a lower hard link are nodes of their own without the index, and one inode number.
#[test]
fn listings_and_stat_agree_where_nodes_and_numbers_differ() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("a"), "x").unwrap();
    for name in ["b", "c"] {
        fs::hard_link(layers.lower().join("a"), layers.lower().join(name)).unwrap();
    }
    let mounted = subject().mount(&layers, &["index=off"]);
    let listed = || {
        let dir: OwnedFd = File::open(mounted.root()).unwrap().into();
        let mut room = Vec::with_capacity(8192);
        let mut entries = RawDir::new(&dir, room.spare_capacity_mut());
        let mut numbers = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_str().unwrap().to_owned();
            if !name.starts_with('.') {
                numbers.push((name, entry.ino()));
            }
        }
        numbers
    };
    let check = |what: &str| {
        for (name, number) in listed() {
            let ino = fs::symlink_metadata(mounted.path(&name)).unwrap().ino();
            assert_eq!(number, ino, "{name} {what}");
        }
    };
    check("at first");
    let ino = |name: &str| fs::metadata(mounted.path(name)).unwrap().ino();
    assert_eq!(ino("a"), ino("b"));
    fs::write(mounted.path("a"), "changed").unwrap();
    assert_eq!(fs::read(mounted.path("b")).unwrap(), b"x");
    assert_ne!(ino("a"), ino("b"), "a link that copy-up has broken");
    assert_eq!(
        (ino("b"), fs::metadata(mounted.path("a")).unwrap().nlink()),
        (ino("c"), 1)
    );
}

/// Sets a kernel parameter for as long as it lives.
struct Parameter {
    path: &'static str,
    before: String,
}

impl Parameter {
    fn set(path: &'static str, value: &str) -> Parameter {
        let before = fs::read_to_string(path).expect("a kernel with FUSE over io_uring (6.14)");
        fs::write(path, value).unwrap();
        Parameter { path, before }
    }
}

impl Drop for Parameter {
    fn drop(&mut self) {
        fs::write(self.path, self.before.trim()).unwrap();
    }
}

const ENABLE_URING: &str = "/sys/module/fuse/parameters/enable_uring";
const FORBID_URING: &str = "/proc/sys/kernel/io_uring_disabled";

fn ring_threads(mounted: &Mounted) -> usize {
    let tasks = format!("/proc/{}/task", mounted.daemon_pid().unwrap());
    let names = fs::read_dir(tasks).unwrap().map(|task| {
        let comm = task.unwrap().path().join("comm");
        fs::read_to_string(comm).unwrap_or_default()
    });
    names.filter(|name| name.starts_with("ring-")).count()
}

/// What every way of serving must do: many at once, big and small, and what waits for other requests.
fn use_it(mounted: &Mounted) {
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            scope.spawn(move || {
                let dir = mounted.path(format!("dir{thread}"));
                fs::create_dir(&dir).unwrap();
                for n in 0..50u8 {
                    fs::write(dir.join(format!("f{n}")), [n; 100]).unwrap();
                }
                let names = fs::read_dir(&dir).unwrap().count();
                assert_eq!(names, 50);
                let big = vec![thread; 3 << 20];
                fs::write(dir.join("big"), &big).unwrap();
                let mut sparse = File::create_new(dir.join("sparse")).unwrap();
                for at in [0, 1 << 20, 5 << 20] {
                    sparse.seek(SeekFrom::Start(at)).unwrap();
                    sparse.write_all(&[thread; 4096]).unwrap();
                    // The pages are still the kernel's: they have to be written first.
                    let hole = rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Hole(at));
                    assert_eq!(hole.unwrap(), at + 4096);
                }
                fs::remove_file(dir.join("f0")).unwrap();
                assert!(fs::symlink_metadata(dir.join("f0")).is_err());
            });
        }
    });
    for thread in 0..8u8 {
        let big = fs::read(mounted.path(format!("dir{thread}/big"))).unwrap();
        assert!(big.len() == 3 << 20 && big.iter().all(|b| *b == thread));
    }
}

#[test]
fn requests_come_over_io_uring_where_the_kernel_offers_it_and_through_the_device_elsewhere() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let mut mounted = {
        let _enabled = Parameter::set(ENABLE_URING, "Y");
        subject().mount(&layers, &["io_uring=auto"])
    };
    assert!(ring_threads(&mounted) >= 2);
    use_it(&mounted);
    {
        let _enabled = Parameter::set(ENABLE_URING, "Y");
        let _forbidden = Parameter::set(FORBID_URING, "2");
        mounted.remount();
    }
    assert_eq!(ring_threads(&mounted), 0, "refused, and nobody noticed");
    assert_eq!(fs::read(mounted.path("dir3/f7")).unwrap(), [7; 100]);
    fs::remove_dir_all(mounted.path("dir3")).unwrap();
    {
        let _disabled = Parameter::set(ENABLE_URING, "N");
        mounted.remount();
    }
    assert_eq!(ring_threads(&mounted), 0);
    assert!(!mounted.path("dir3").exists());
}

/// Microseconds that an idle CPU may take to wake up, as the machine's processes together want it.
fn wake_up_latency() -> i32 {
    let mut wanted = [0; 4];
    let mut wishes = File::open("/dev/cpu_dma_latency").unwrap();
    wishes.read_exact(&mut wanted).unwrap();
    i32::from_ne_bytes(wanted)
}

#[test]
fn idle_cpus_stay_awake_while_a_client_works_and_no_longer() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    let mounted = subject().mount(&layers, &["idle_polling=on", "timeout=0"]);
    let file = mounted.path("file");
    fs::write(&file, "x").unwrap();
    let start = Instant::now();
    let patience = Duration::from_secs(30);
    // Others on this machine may want it too, but not all the time.
    while wake_up_latency() == 0 {
        assert!(start.elapsed() < patience, "CPUs never sleep");
        std::thread::sleep(Duration::from_millis(5));
    }
    let start = Instant::now();
    while wake_up_latency() != 0 {
        assert!(
            start.elapsed() < patience,
            "CPUs sleep while a client works"
        );
        for _ in 0..500 {
            fs::symlink_metadata(&file).unwrap();
        }
    }
    let start = Instant::now();
    while wake_up_latency() == 0 {
        assert!(start.elapsed() < patience, "CPUs stay awake for nobody");
        std::thread::sleep(Duration::from_millis(5));
    }
}
