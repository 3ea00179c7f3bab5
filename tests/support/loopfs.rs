//! Whole file systems in a file: for layers on several file systems, for full disks.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::scratch::Scratch;
use super::{require_program, run, wait_until};

/// A file system on a loop device, mounted in a scratch directory of its own; gone on drop.
pub struct LoopFs {
    mount: PathBuf,
    _scratch: Scratch,
}

impl LoopFs {
    /// An ext4 of `size` bytes.
    pub fn ext4(size: u64) -> LoopFs {
        LoopFs::make("mkfs.ext4", &["-q", "-F", "-m", "0"], size)
    }

    /// An ext4 of `size` bytes with room for few inodes (one per 64 KiB).
    pub fn ext4_few_inodes(size: u64) -> LoopFs {
        LoopFs::make("mkfs.ext4", &["-q", "-F", "-m", "0", "-i", "65536"], size)
    }

    /// An XFS of `size` bytes with reflinks; mkfs.xfs wants at least 300 MiB.
    pub fn xfs(size: u64) -> LoopFs {
        LoopFs::make("mkfs.xfs", &["-q", "-f", "-m", "reflink=1"], size)
    }

    /// A btrfs of `size` bytes; mkfs.btrfs wants at least 110 MiB.
    pub fn btrfs(size: u64) -> LoopFs {
        LoopFs::make("mkfs.btrfs", &["-q", "-f"], size)
    }

    fn make(mkfs: &str, options: &[&str], size: u64) -> LoopFs {
        require_program(mkfs);
        let scratch = Scratch::new();
        let (image, mount) = (scratch.join("image"), scratch.join("fs"));
        File::create(&image).unwrap().set_len(size).unwrap();
        std::fs::create_dir(&mount).unwrap();
        let image = image.to_str().unwrap();
        let mut args = options.to_vec();
        args.push(image);
        run(mkfs, &args);
        // mount(8) sets the loop device up with autoclear: it goes with the last use.
        run("mount", &["-o", "loop", image, mount.to_str().unwrap()]);
        LoopFs {
            mount,
            _scratch: scratch,
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Free bytes for everyone.
    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.mount).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Fills the file system until `leave` bytes are free, with the file `name`. Returns its path.
    pub fn fill(&self, name: &str, leave: u64) -> PathBuf {
        let path = self.mount.join(name);
        let free = self.free();
        if free > leave {
            let bytes = (free - leave).to_string();
            // fallocate may fail at the very end for want of metadata blocks: that is full too.
            Command::new("fallocate")
                .args(["-l", &bytes, path.to_str().unwrap()])
                .output()
                .unwrap();
        }
        path
    }

    /// Unmounts and mounts it again: nothing is left in caches.
    pub fn cycle(&self) {
        let point = self.mount.to_str().unwrap();
        run("umount", &[point]);
        let image = self._scratch.join("image");
        let image = image.to_str().unwrap();
        // A namespace that another test has made meanwhile may have it mounted, too: it would be the same again.
        let gone = wait_until(Duration::from_secs(30), || {
            let uses = Command::new("losetup").args(["-j", image]).output();
            uses.unwrap().stdout.is_empty()
        });
        assert!(gone, "{image} stays in use");
        run("mount", &["-o", "loop", image, point]);
    }
}
