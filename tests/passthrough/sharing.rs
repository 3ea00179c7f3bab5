//! What programs do with files that the daemon doesn't notice.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::time::Duration;

use rustix::fs::FlockOperation;

use crate::bench::{content, counter, layers_with, mount, rest_of, some_bytes};
use crate::support::files::open_rw;
use crate::support::{Scratch, Subject, run, sh, wait_until};

const MANY: usize = 5_000;

/// Each open file is one backing file, and no descriptor of the daemon's; none is left behind.
#[test]
fn five_thousand_open_files_cost_the_daemon_no_descriptors() {
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    for i in 0..MANY {
        let home = if i % 2 == 0 { layers.lower() } else { &layers.upper };
        fs::write(home.join(format!("f{i}")), format!("text {i}")).unwrap();
    }
    let mounted = mount(&layers, &[]);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .unwrap();
    let files: Vec<File> = (0..MANY)
        .map(|i| {
            let path = mounted.path(format!("f{i}"));
            match i % 4 {
                3 => open_rw(&path),
                _ => File::open(&path).unwrap(),
            }
        })
        .collect();
    assert_eq!(counter(&mounted, "backing_files"), MANY as u64);
    let held = counter(&mounted, "open_fds");
    assert!(held < 1_000, "the daemon holds {held} descriptors");
    for (i, file) in files.iter().enumerate() {
        assert_eq!(rest_of(file), format!("text {i}").as_bytes());
    }
    assert_eq!(counter(&mounted, "requests_read"), 0);
    drop(files);
    let closed = wait_until(Duration::from_secs(20), || {
        counter(&mounted, "backing_files") == 0 && counter(&mounted, "open_nodes") == 0
    });
    assert!(closed, "{:?}", mounted.stat_json());
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
    fs::copy("/bin/true", layers.lower().join("program")).unwrap();
    let mounted = mount(&layers, &[]);
    let path = mounted.path("file");

    let mut direct = OpenOptions::new();
    direct.read(true).write(true).custom_flags(libc::O_DIRECT);
    sh(
        mounted.root(),
        "dd if=file of=direct bs=4096 iflag=direct oflag=direct conv=notrunc count=2 status=none
         head -c 8192 file | cmp - direct
         dd if=/dev/zero of=file bs=4096 count=1 oflag=direct conv=notrunc status=none
         head -c 4096 /dev/zero | cmp - <(head -c 4096 file)
         ./program; cp program mine; ./mine; echo >>mine; tail -c 1 mine | cmp - <(echo)
         cp /bin/sleep busy; ./busy 1 & until [ -e /proc/$!/exe ]; do :; done
         sleep 0.1; ! { echo >>busy; } 2>/dev/null; wait",
    );
    drop(direct);

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
    assert_eq!(counter(&mounted, "requests_read"), 0);
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
    run("cp", &["-a", on_top.path("file").to_str().unwrap(), on_top.path("copy").to_str().unwrap()]);
    open_rw(&on_top.path("file")).write_all_at(b"top", 0).unwrap();
    assert!(content(&mounted.path("file")) == some_bytes());
    drop(on_top);
}
