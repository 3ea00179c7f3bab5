//! What programs do with files that the daemon doesn't notice.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::bench::{cached_pages, content, counter, layers_with, mount, rest_of, some_bytes};
use crate::support::files::{Map, open_rw, write_solid};
use crate::support::{Mounted, Scratch, Subject, errno, require_root, run, sh, wait_until};

const MANY: usize = 5_000;

/// Opens all files, reads them, closes them.
fn open_many(mounted: &Mounted, open: impl Fn(usize, &Path) -> File) {
    let files: Vec<File> = (0..MANY)
        .map(|i| open(i, &mounted.path(format!("f{i}"))))
        .collect();
    assert_eq!(counter(mounted, "backing_files"), MANY as u64);
    let held = counter(mounted, "open_fds");
    assert!(held < 100, "the daemon holds {held} descriptors");
    for (i, file) in files.iter().enumerate() {
        assert_eq!(rest_of(file), format!("text {i}").as_bytes());
    }
    assert_eq!(counter(mounted, "requests_read"), 0);
    drop(files);
    let closed = wait_until(Duration::from_secs(20), || {
        counter(mounted, "backing_files") == 0 && counter(mounted, "open_nodes") == 0
    });
    assert!(closed, "{:?}", mounted.stat_json());
}

/// Each open file is one backing file, and no descriptor of the daemon's; none is left behind.
#[test]
fn five_thousand_open_files_cost_the_daemon_no_descriptors() {
    require_root();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    for i in 0..MANY {
        fs::write(layers.upper.join(format!("f{i}")), format!("text {i}")).unwrap();
        fs::write(layers.lower().join(format!("f{i}")), format!("text {i}")).unwrap();
    }
    let mounted = mount(&layers, &[]);
    open_many(&mounted, |i, path| match i % 2 {
        0 => File::open(path).unwrap(),
        _ => open_rw(path),
    });
    mounted.unmount();
    // In the lower, where nobody can write.
    let mounted = Subject::Rovl.mount_read_only(&layers, &["passthrough=on"]);
    open_many(&mounted, |_, path| File::open(path).unwrap());
}

/// Without an upper the lowers are read past the daemon: pages are those of the lower's file system, which all
/// mounts share, and there are no others.
#[test]
fn mounts_without_an_upper_share_the_pages_of_their_lower() {
    require_root();
    let size = 32 << 20;
    let (one, other) = (Scratch::new(), Scratch::new());
    let layers = one.layers(1);
    let path = layers.lower().join("big");
    write_solid(&path, size);
    let mut again = other.layers(1);
    again.lowers.clone_from(&layers.lowers);
    let mounts =
        [&layers, &again].map(|layers| Subject::Rovl.mount_read_only(layers, &["passthrough=on"]));
    let wanted = content(&path);
    for mounted in &mounts {
        let file = File::open(mounted.path("big")).unwrap();
        assert!(rest_of(&file) == wanted);
        let map = Map::new(&file, false);
        assert_eq!(map.read(4096), wanted[..4096]);
        assert_eq!(cached_pages(&file), 0);
        assert_eq!(counter(mounted, "requests_read"), 0);
        let refused = OpenOptions::new().write(true).open(mounted.path("big"));
        assert_eq!(errno(refused), libc::EROFS);
    }
    assert!(cached_pages(&File::open(&path).unwrap()) > 0);
}

/// Locks exclude each other, whichever layer the file is in.
#[test]
fn locks_exclude_each_other() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    let mounted = mount(&layers, &[]);
    fs::write(mounted.path("new"), b"x").unwrap();
    for name in ["file", "new"] {
        let path = mounted.path(name);
        let [one, two] = [File::open(&path).unwrap(), File::open(&path).unwrap()];
        let lock = |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(lock(&one), Ok(()));
        assert_eq!(lock(&two), Err(rustix::io::Errno::WOULDBLOCK), "{name}");
        drop(one);
        assert_eq!(lock(&two), Ok(()));
    }
    sh(
        mounted.root(),
        "exec 9<>file; flock -n 9; ! flock -n file true; exec 9>&-; flock -n file true",
    );
}

/// O_DIRECT, O_APPEND, sparse files, programs, files without a name, renamed and removed ones.
#[test]
fn all_kinds_of_use_work_as_on_upper() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    let mounted = mount(&layers, &[]);
    sh(mounted.root(), "cp file mine; mv mine file");
    let path = mounted.path("file");
    let reads = counter(&mounted, "requests_read");
    sh(
        mounted.root(),
        "dd if=file of=direct bs=4096 iflag=direct oflag=direct conv=notrunc count=2 status=none
         head -c 8192 file | cmp - direct
         dd if=/dev/zero of=file bs=4096 count=1 oflag=direct conv=notrunc status=none
         head -c 4096 /dev/zero | cmp - <(head -c 4096 file)
         cp /bin/true mine; ./mine; echo >>mine; tail -c 1 mine | cmp - <(echo)
         cp /bin/sleep busy; ./busy 1 & until [ -e /proc/$!/exe ]; do :; done
         sleep 0.1; ! { echo >>busy; } 2>/dev/null; wait",
    );

    let sparse = File::create_new(mounted.path("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(&[1; 4096], 1 << 19).unwrap();
    let seek = |to| rustix::fs::seek(&sparse, to).unwrap();
    assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), 1 << 19);
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(1 << 19)), (1 << 19) + 4096);

    let mut unnamed = OpenOptions::new();
    unnamed.read(true).write(true).custom_flags(libc::O_TMPFILE);
    let unnamed = unnamed.open(mounted.root()).unwrap();
    (&unnamed).write_all(b"nameless").unwrap();
    let mut bytes = [0; 8];
    unnamed.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"nameless");

    let file = open_rw(&path);
    fs::rename(&path, mounted.path("moved")).unwrap();
    file.write_all_at(b"moved", 0).unwrap();
    assert_eq!(&content(&mounted.path("moved"))[..5], b"moved");
    fs::remove_file(mounted.path("moved")).unwrap();
    file.write_all_at(b"removed", 0).unwrap();
    file.read_exact_at(&mut bytes[..7], 0).unwrap();
    assert_eq!(&bytes[..7], b"removed");
    assert_eq!(file.metadata().unwrap().len(), 10_000);
    assert_eq!(counter(&mounted, "requests_write"), 0);
    assert_eq!(counter(&mounted, "requests_read"), reads);
}

/// What has no leave to be written by its owner can still be written by who creates it.
#[test]
fn a_file_is_created_open_for_writing_whatever_its_mode() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, b"");
    fs::set_permissions(layers.lower(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&layers.upper, fs::Permissions::from_mode(0o777)).unwrap();
    let mounted = mount(&layers, &[]);
    crate::support::as_user(1000, 1000, || {
        for mode in [0, 0o444, 0o4755] {
            let path = mounted.path(format!("m{mode:o}"));
            let mut open = OpenOptions::new();
            let file = open.write(true).create_new(true).mode(mode).open(&path);
            file.unwrap().write_all(b"text").unwrap();
            assert_eq!(fs::metadata(&path).unwrap().len(), 4);
        }
    });
}

/// Layers on an overlayfs can't be passed through to: their files are opened in cached mode.
#[test]
fn files_of_stacked_layers_are_cached() {
    let scratch = Scratch::new();
    let below = layers_with(&scratch, &some_bytes());
    let stacked = Subject::Kernel.mount(&below, &[]);
    let other = Scratch::new();
    let mut layers = other.layers(1);
    layers.lowers = vec![stacked.root().to_owned()];
    let mounted = mount(&layers, &[]);
    let path = mounted.path("file");
    let reader = File::open(&path).unwrap();
    assert!(rest_of(&reader) == some_bytes());
    let writer = open_rw(&path);
    writer.write_all_at(b"new", 0).unwrap();
    let mut start = [0; 3];
    reader.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"new");
    assert_eq!(&content(&path)[..3], b"new");
    assert!(counter(&mounted, "opens_cached") > 0);
    drop((reader, writer));
    // Its copy in upper can be.
    let through = counter(&mounted, "opens_passed_through");
    open_rw(&path).write_all_at(b"NEW", 0).unwrap();
    assert_eq!(&content(&path)[..3], b"NEW");
    assert!(counter(&mounted, "opens_passed_through") > through);
    drop(mounted);
    drop(stacked);
}

/// An overlayfs of the kernel's can have the mount as its lower.
#[test]
fn the_kernels_overlayfs_stacks_on_top() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    let mounted = mount(&layers, &[]);
    let other = Scratch::new();
    let mut above = other.layers(1);
    above.lowers = vec![mounted.root().to_owned()];
    let on_top = Subject::Kernel.mount(&above, &[]);
    assert!(content(&on_top.path("file")) == some_bytes());
    run(
        "cp",
        &[
            "-a",
            on_top.path("file").to_str().unwrap(),
            on_top.path("copy").to_str().unwrap(),
        ],
    );
    open_rw(&on_top.path("file"))
        .write_all_at(b"top", 0)
        .unwrap();
    assert!(content(&mounted.path("file")) == some_bytes());
    drop(on_top);
}
