//! Power loss: upper's file system is cut off from its device, and recovered from its journal.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use rustix::mount::UnmountFlags;

use crate::support::files::cut_power;
use crate::support::{
    Layers, LoopFs, Mounted, Scratch, Subject, pattern, require_root, subject, wait_until,
};

const FILES: usize = 40;

fn content(i: usize) -> Vec<u8> {
    pattern(i as u64, 3000 + 5000 * i)
}

/// Cuts the power under a mount, unmounts both, and brings upper's file system back.
fn lose_power(mounted: Mounted, disk: &LoopFs) {
    cut_power(disk.path());
    let (pid, root) = (mounted.daemon_pid(), mounted.root().to_owned());
    rustix::mount::unmount(&root, UnmountFlags::DETACH).unwrap();
    drop(mounted.already_ended());
    let ended = wait_until(std::time::Duration::from_secs(10), || {
        !pid.is_some_and(crate::support::is_running)
    });
    assert!(ended, "the daemon goes on after the unmount");
    disk.cycle();
}

fn disks() -> [(&'static str, LoopFs); 2] {
    [
        ("ext4", LoopFs::ext4(128 << 20)),
        ("xfs", LoopFs::xfs(320 << 20)),
    ]
}

fn layers_on(scratch: &Scratch, disk: &LoopFs) -> Layers {
    let layers = scratch.layers(1).with_upper_in(disk.path());
    fs::create_dir(layers.lower().join("d")).unwrap();
    for i in 0..FILES {
        fs::write(layers.lower().join(format!("d/f{i}")), content(i)).unwrap();
    }
    layers
}

/// A copy-up that power loss meets right after has all bytes or was never made: the user lost a
/// chmod, and never the file. (The journal is committed on purpose: names without data are what a
/// missing fsync leaves.)
#[test]
fn power_loss_never_leaves_an_empty_copy() {
    require_root();
    for (kind, disk) in disks() {
        let scratch = Scratch::new();
        let layers = layers_on(&scratch, &disk);
        rustix::fs::sync();
        let mounted = subject().mount(&layers, &[]);
        for i in 0..FILES {
            let path = mounted.path(format!("d/f{i}"));
            match i % 4 {
                0 => fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap(),
                1 => fs::rename(&path, mounted.path(format!("d/r{i}"))).unwrap(),
                2 => fs::hard_link(&path, mounted.path(format!("l{i}"))).unwrap(),
                _ => std::os::unix::fs::chown(&path, Some(1), Some(1)).unwrap(),
            }
        }
        // Another program's fsync commits the journal.
        let mut other = File::create(disk.path().join("other")).unwrap();
        other.write_all(b"x").unwrap();
        other.sync_all().unwrap();
        drop(other);
        lose_power(mounted, &disk);

        for view in [subject(), Subject::Kernel] {
            let mounted = view.mount(&layers, &[]);
            for i in 0..FILES {
                let names = [format!("d/f{i}"), format!("d/r{i}"), format!("l{i}")];
                let found: Vec<_> = names.iter().filter(|n| mounted.path(n).exists()).collect();
                assert!(!found.is_empty(), "{kind}: f{i} is gone");
                for name in found {
                    let now = fs::read(mounted.path(name)).unwrap();
                    assert!(
                        now == content(i),
                        "{kind}, {view:?}: {name} has {} bytes, not the lower's {}",
                        now.len(),
                        content(i).len()
                    );
                }
            }
            mounted.unmount();
        }
    }
}

/// What fsync returned for is there after power loss: new files, copied-up files, files in new and
/// in copied-up directories, replaced files.
#[test]
fn power_loss_keeps_what_was_synced() {
    require_root();
    for (kind, disk) in disks() {
        let scratch = Scratch::new();
        let layers = layers_on(&scratch, &disk);
        let mounted = subject().mount(&layers, &[]);
        let mut expected = Vec::new();
        let mut sync = |name: String, mut file: File, bytes: Vec<u8>, whole: Vec<u8>| {
            file.write_all(&bytes).unwrap();
            file.sync_all().unwrap();
            expected.push((name, whole));
        };
        for i in 0..FILES {
            let name = format!("d/f{i}");
            let append = || {
                OpenOptions::new()
                    .append(true)
                    .open(mounted.path(&name))
                    .unwrap()
            };
            let bytes = pattern(7000 + i as u64, 10_000);
            match i % 4 {
                0 => {
                    let mut whole = content(i);
                    whole.extend_from_slice(&bytes);
                    sync(name.clone(), append(), bytes, whole);
                }
                1 => {
                    let file = File::create(mounted.path(&name)).unwrap();
                    sync(name, file, bytes.clone(), bytes);
                }
                2 => {
                    let name = format!("new{i}/sub/f");
                    fs::create_dir_all(mounted.path(format!("new{i}/sub"))).unwrap();
                    let file = File::create(mounted.path(&name)).unwrap();
                    sync(name, file, bytes.clone(), bytes);
                }
                _ => {
                    let temporary = mounted.path("d/temporary");
                    fs::write(&temporary, &bytes).unwrap();
                    fs::rename(&temporary, mounted.path(&name)).unwrap();
                    let file = OpenOptions::new()
                        .append(true)
                        .open(mounted.path(&name))
                        .unwrap();
                    sync(name, file, Vec::new(), bytes);
                }
            }
        }
        lose_power(mounted, &disk);
        for view in [subject(), Subject::Kernel] {
            let mounted = view.mount(&layers, &[]);
            for (name, whole) in &expected {
                let now = fs::read(mounted.path(name));
                let now = now.unwrap_or_else(|e| panic!("{kind}, {view:?}: {name}: {e}"));
                assert!(
                    now == *whole,
                    "{kind}, {view:?}: {name} has {} bytes of {}",
                    now.len(),
                    whole.len()
                );
            }
            mounted.unmount();
        }
    }
}

/// `volatile` leaves its mark, and a mount refuses an upper that carries it.
#[test]
fn an_upper_left_by_a_volatile_mount_is_refused() {
    require_root();
    if let Subject::FuseOverlayfs(_) = subject() {
        return; // It leaves no mark.
    }
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("f"), "x").unwrap();
    let mounted = subject().mount(&layers, &["volatile"]);
    fs::write(mounted.path("f"), "y").unwrap();
    assert!(layers.work.join("work/incompat/volatile").is_dir());
    mounted.unmount();
    assert!(layers.work.join("work/incompat/volatile").is_dir());
    for options in [&[][..], &["volatile"]] {
        let refused = subject().try_mount(&layers, options, true).err();
        assert!(refused.is_some(), "mounted with {options:?}");
        if subject() == Subject::Rovl {
            let message = refused.unwrap_or_default();
            assert!(message.contains("volatile"), "said: {message}");
        }
    }
    fs::remove_dir_all(layers.work.join("work/incompat")).unwrap();
    let mounted = subject().mount(&layers, &[]);
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"y");
}
