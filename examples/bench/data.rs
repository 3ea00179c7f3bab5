//! The layers that are mounted, made once for a run, and the file systems that they are on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::exec;
use crate::targets::unmount_beneath;

/// Where data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Volume {
    /// The directory of `--dir`, or the file system of `--fs`.
    Base,
    /// A loop device with ext4, unless the base is ext4.
    Ext4,
    /// A loop device with XFS, which clones, unless the base is XFS.
    Xfs,
}

/// Layers that work shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Small files in one directory.
    Micro,
    /// Directories of 10, 1,000 and 100,000 entries.
    Dirs,
    /// Many files in 8 layers, a few in each directory.
    Walk,
    /// Something like a source tree, in git, and an archive of many files.
    Tree,
    /// One big file.
    Big,
    /// Files to be copied up.
    Copy,
    /// A Debian root, a package, and a project in C.
    Root,
    /// 500 layers. The number: how many of them are mounted.
    Many(usize),
    /// Very many files.
    Inodes,
    /// Nothing.
    Empty,
}

impl Set {
    /// How many layers are made.
    fn layers(self) -> usize {
        match self {
            Set::Walk => 8,
            Set::Micro | Set::Dirs | Set::Tree => 4,
            Set::Many(_) => 500,
            Set::Big | Set::Copy | Set::Root | Set::Inodes | Set::Empty => 2,
        }
    }

    /// Work of the bare file system needs the merged tree as a directory.
    pub fn has_merged(self) -> bool {
        !matches!(self, Set::Many(_) | Set::Inodes)
    }
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Entries of the largest directory.
    pub large: usize,
    /// Files of [`Set::Walk`].
    pub walk: usize,
    /// Files of the source tree.
    pub tree: usize,
    /// Files of the archive.
    pub archive: usize,
    /// Bytes of big files.
    pub big: u64,
    /// Files of 4 KiB, and of 1 MiB, to be copied up.
    pub copies: (usize, usize),
    /// Files of [`Set::Inodes`].
    pub inodes: usize,
    /// C files of the project.
    pub units: usize,
    /// Files in the package.
    pub packaged: usize,
    /// Directories in which nothing was looked up yet.
    pub cold_dirs: usize,
    /// Names that are made, renamed or removed one by one, at most.
    pub names: u64,
}

impl Scale {
    /// All of it.
    pub const FULL: Scale = Scale {
        large: 100_000,
        walk: 90_000,
        tree: 10_000,
        archive: 50_000,
        big: 1 << 30,
        copies: (400, 40),
        inodes: 1_000_000,
        units: 40,
        packaged: 2_000,
        cold_dirs: 200,
        names: 4_000,
    };

    /// What can be done in minutes.
    pub const QUICK: Scale = Scale {
        large: 10_000,
        walk: 6_000,
        tree: 400,
        archive: 400,
        big: 128 << 20,
        copies: (60, 12),
        inodes: 20_000,
        units: 4,
        packaged: 100,
        cold_dirs: 40,
        names: 600,
    };
}

/// One set on one volume.
pub struct Layers {
    /// Top to bottom.
    pub lowers: Vec<PathBuf>,
    /// The same tree as one directory, for sets that have it.
    pub merged: PathBuf,
    /// What is no part of the layers: archives.
    pub dir: PathBuf,
    /// Where uppers go: on the same file system.
    pub scratch: PathBuf,
}

/// The name of the file system that a path is on.
///
/// # Errors
/// When it can't be asked.
pub fn type_of(path: &Path) -> Result<String> {
    let done = exec::succeed(exec::command(&["stat", "-f", "-c", "%T"]).arg(path))?;
    let name = done.text.trim();
    Ok(if name == "ext2/ext3" { "ext4" } else { name }.to_owned())
}

/// Everything on disk of a run. Removed when it goes out of scope.
pub struct Store {
    base: PathBuf,
    scale: Scale,
    root_archive: PathBuf,
    file_system: Option<String>,
    volumes: BTreeMap<Volume, PathBuf>,
    sets: BTreeMap<(Set, Volume), Layers>,
}

impl Store {
    /// A new directory in `dir`; with `file_system`, on a loop device.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn new(
        dir: &Path,
        scale: Scale,
        root_archive: PathBuf,
        file_system: Option<&str>,
    ) -> Result<Store> {
        fs::create_dir_all(dir)?;
        let dir = fs::canonicalize(dir)?;
        let base = tempfile::Builder::new()
            .prefix("rovl-bench-")
            .tempdir_in(dir)?
            .keep();
        // Programs in a chroot that give up root must get through.
        fs::set_permissions(&base, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut store = Store {
            base,
            scale,
            root_archive,
            file_system: file_system.map(str::to_owned),
            volumes: BTreeMap::new(),
            sets: BTreeMap::new(),
        };
        store.volume(Volume::Base)?;
        Ok(store)
    }

    /// What file system the base is.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn base_type(&self) -> Result<String> {
        let path = self.volumes.get(&Volume::Base).unwrap_or(&self.base);
        type_of(path)
    }

    fn volume(&mut self, volume: Volume) -> Result<PathBuf> {
        if let Some(path) = self.volumes.get(&volume) {
            return Ok(path.clone());
        }
        let kind = match volume {
            Volume::Base => self.file_system.clone(),
            Volume::Ext4 => Some("ext4".to_owned()),
            Volume::Xfs => Some("xfs".to_owned()),
        };
        let same = volume != Volume::Base && kind.as_deref() == Some(&*self.base_type()?);
        let path = match kind {
            _ if same => self.volume(Volume::Base)?,
            None => self.base.join("data"),
            Some(kind) => self.loop_device(&kind)?,
        };
        fs::create_dir_all(&path)?;
        self.volumes.insert(volume, path.clone());
        Ok(path)
    }

    fn loop_device(&self, kind: &str) -> Result<PathBuf> {
        let image = self.base.join(format!("{kind}.img"));
        // Sparse; the largest sets are a few times the big file, and very many small ones.
        let gib = if self.scale.big >= 1 << 30 { 24 } else { 6 };
        File::create_new(&image)?.set_len(gib << 30)?;
        let format: &[&str] = match kind {
            "ext4" => &[
                "mkfs.ext4",
                "-q",
                "-F",
                "-i",
                "8192",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
            ],
            "xfs" => &["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
            "btrfs" => &["mkfs.btrfs", "-q", "-f"],
            _ => bail!("--fs {kind}: can make ext4, xfs and btrfs"),
        };
        exec::succeed(exec::command(format).arg(&image))?;
        let path = self.base.join(kind);
        fs::create_dir(&path)?;
        exec::succeed(exec::command(&["mount", "-o", "loop"]).args([&image, &path]))?;
        Ok(path)
    }

    /// The layers of a set, which are made when they are asked for the first time.
    ///
    /// # Errors
    /// When they can't be made.
    pub fn layers(&mut self, set: Set, volume: Volume) -> Result<&Layers> {
        let path = self.volume(volume)?;
        let is_base = self.volumes.get(&Volume::Base) == Some(&path);
        let volume = if is_base { Volume::Base } else { volume };
        let key = (set, volume);
        if !self.sets.contains_key(&key) {
            let layers = match set {
                // The same 500 directories.
                Set::Many(n) if n < set.layers() => {
                    let all = self.layers(Set::Many(set.layers()), volume)?;
                    Layers {
                        lowers: all.lowers.iter().take(n).cloned().collect(),
                        merged: all.merged.clone(),
                        dir: all.dir.clone(),
                        scratch: all.scratch.clone(),
                    }
                }
                _ => self
                    .build(set, &path)
                    .with_context(|| format!("making the data {set:?}"))?,
            };
            self.sets.insert(key, layers);
        }
        self.sets.get(&key).context("just made")
    }

    fn build(&self, set: Set, volume: &Path) -> Result<Layers> {
        let name = format!("{set:?}").to_lowercase();
        // Short names: a command line has to hold 500 of them.
        let dir = volume.join(
            name.chars()
                .take_while(|c| c.is_alphabetic())
                .collect::<String>(),
        );
        let layers = Layers {
            lowers: (0..set.layers()).map(|i| dir.join(i.to_string())).collect(),
            merged: dir.join("merged"),
            scratch: volume.join("run"),
            dir,
        };
        for path in layers
            .lowers
            .iter()
            .chain([&layers.merged, &layers.scratch])
        {
            fs::create_dir_all(path)?;
        }
        build::fill(set, &layers, &self.scale, &self.root_archive)?;
        Ok(layers)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.sets.clear();
        let removed = unmount_beneath(&self.base)
            .and_then(|()| fs::remove_dir_all(&self.base).map_err(anyhow::Error::from));
        if let Err(e) = removed {
            eprintln!("bench: removing {}: {e:#}", self.base.display());
        }
    }
}

/// What `grep` looks for.
pub const NEEDLE: &str = "here-is-the-needle";
