//! The layers that are mounted, made once for a run, and the file systems that they are on.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

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
    fn has_merged(self) -> bool {
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
    };

    /// What can be done in minutes.
    pub const QUICK: Scale = Scale {
        large: 20_000,
        walk: 9_000,
        tree: 1_000,
        archive: 2_000,
        big: 128 << 20,
        copies: (60, 12),
        inodes: 50_000,
        units: 4,
        packaged: 100,
        cold_dirs: 40,
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
        let done = exec::succeed(exec::command(&["stat", "-f", "-c", "%T"]).arg(path))?;
        let name = done.text.trim();
        Ok(if name == "ext2/ext3" {
            "ext4".to_owned()
        } else {
            name.to_owned()
        })
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
        let mut builder = Builder {
            layers: &layers,
            merged: set.has_merged(),
            random: 0x9e37_79b9_7f4a_7c15,
        };
        match set {
            Set::Micro => builder.micro()?,
            Set::Dirs => builder.dirs(self.scale.large)?,
            Set::Walk => builder.spread("walk", self.scale.walk, |_| 0)?,
            Set::Tree => builder.tree(&self.scale)?,
            Set::Big => builder.file(1, "big", self.scale.big)?,
            Set::Copy => builder.copies(&self.scale)?,
            Set::Root => builder.root(&self.scale, &self.root_archive)?,
            Set::Many(_) => builder.many(self.scale.cold_dirs)?,
            Set::Inodes => builder.inodes(self.scale.inodes)?,
            Set::Empty => {}
        }
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

/// Makes files in a layer and in the merged tree alike.
struct Builder<'a> {
    layers: &'a Layers,
    merged: bool,
    random: u64,
}

/// Files in a directory of a spread tree.
const PER_DIR: usize = 20;

impl Builder<'_> {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// The places of `name`: in the layer, counted from the top, and in the merged tree.
    fn places(&self, layer: usize, name: &str) -> Result<Vec<PathBuf>> {
        let lower = self.layers.lowers.get(layer).context("no such layer")?;
        let merged = self.merged.then(|| self.layers.merged.join(name));
        Ok([lower.join(name)].into_iter().chain(merged).collect())
    }

    fn dir(&self, layer: usize, name: &str) -> Result<()> {
        for place in self.places(layer, name)? {
            fs::create_dir_all(place)?;
        }
        Ok(())
    }

    fn dir_everywhere(&self, name: &str) -> Result<()> {
        (0..self.layers.lowers.len()).try_for_each(|layer| self.dir(layer, name))
    }

    fn bytes(&self, layer: usize, name: &str, data: &[u8]) -> Result<()> {
        for place in self.places(layer, name)? {
            File::create_new(place)?.write_all(data)?;
        }
        Ok(())
    }

    /// A file whose bytes don't repeat.
    fn file(&mut self, layer: usize, name: &str, size: u64) -> Result<()> {
        let places = self.places(layer, name)?;
        let mut files = places
            .iter()
            .map(File::create_new)
            .collect::<Result<Vec<_>, _>>()?;
        let mut left = size;
        let mut block = Vec::new();
        while left > 0 {
            exec::check()?;
            let len = left.min(1 << 20);
            block.clear();
            while (block.len() as u64) < len {
                block.extend_from_slice(&self.random().to_le_bytes());
            }
            block.truncate(usize::try_from(len)?);
            for file in &mut files {
                file.write_all(&block)?;
            }
            left -= len;
        }
        Ok(())
    }

    /// `count` files `f0`… in one directory that all layers have.
    fn flat(&mut self, name: &str, count: usize, size: u64) -> Result<()> {
        self.dir_everywhere(name)?;
        let layers = self.layers.lowers.len();
        (0..count).try_for_each(|i| self.file(i % layers, &format!("{name}/f{i}"), size))
    }

    /// `count` files in directories of [`PER_DIR`]. A directory is in one layer; every fourth in two.
    fn spread(&mut self, name: &str, count: usize, size: impl Fn(u64) -> u64) -> Result<()> {
        let layers = self.layers.lowers.len();
        for i in 0..count {
            let (d, f) = (i / PER_DIR, i % PER_DIR);
            let dir = format!("{name}/a{}/b{d}", d % 50);
            let merges = d.is_multiple_of(4) && f >= PER_DIR - 4;
            let layer = if merges { d + 3 } else { d } % layers;
            if f == 0 || f == PER_DIR - 4 {
                self.dir(layer, &dir)?;
            }
            let bytes = size(self.random());
            self.file(layer, &format!("{dir}/file{f}.c"), bytes)?;
        }
        Ok(())
    }

    fn micro(&mut self) -> Result<()> {
        self.flat("micro", 1000, 4096)?;
        self.flat("remove", 2000, 100)?;
        self.file(2, "one", 1 << 20)
    }

    fn dirs(&mut self, large: usize) -> Result<()> {
        self.flat("ten", 10, 0)?;
        self.flat("thousand", 1000, 0)?;
        self.flat("large", large, 0)
    }

    fn copies(&mut self, scale: &Scale) -> Result<()> {
        self.flat("small", scale.copies.0, 4096)?;
        self.flat("mid", scale.copies.1, 1 << 20)?;
        self.file(1, "big", scale.big)
    }

    fn many(&mut self, cold_dirs: usize) -> Result<()> {
        for layer in 0..self.layers.lowers.len() {
            self.dir(layer, "names")?;
            self.bytes(layer, &format!("names/f{layer}"), b"")?;
            // What is mounted with few layers has to have them too.
            for d in (0..cold_dirs).filter(|_| layer < 120) {
                self.dir(layer, &format!("everywhere/d{d}"))?;
                if layer < 2 {
                    self.dir(layer, &format!("few/d{d}"))?;
                }
            }
            for name in ["everywhere", "few"] {
                self.dir(layer, name)?;
            }
        }
        Ok(())
    }

    fn inodes(&mut self, count: usize) -> Result<()> {
        for i in 0..count {
            let dir = format!("d{}", i / 1000);
            if i % 1000 == 0 {
                exec::check()?;
                self.dir(1, &dir)?;
            }
            self.bytes(1, &format!("{dir}/f{i}"), b"")?;
        }
        Ok(())
    }

    /// Text with a word that `grep` finds in every hundredth file.
    fn tree(&mut self, scale: &Scale) -> Result<()> {
        let layers = self.layers.lowers.len();
        for i in 0..scale.tree {
            let d = i / PER_DIR;
            let layer = if i % 7 == 0 { i } else { d } % layers;
            let dir = format!("tree/a{}/b{d}", d % 16);
            self.dir(layer, &dir)?;
            let mut text = String::new();
            // A few large ones, many small ones: 4 KiB on average.
            let lines = 10 + self.random() % if i % 20 == 0 { 1000 } else { 60 };
            for line in 0..lines {
                let word = self.random();
                text.push_str(&format!(
                    "static long value_{line} = 0x{word:x}; /* {i} */\n"
                ));
            }
            if i % 100 == 0 {
                text.push_str(&format!("/* {NEEDLE} */\n"));
            }
            self.bytes(layer, &format!("{dir}/file{i}.c"), text.as_bytes())?;
        }
        let tree = self.layers.merged.join("tree");
        for words in [
            &["git", "init", "-q"][..],
            &["git", "add", "."],
            &[
                "git",
                "-c",
                "user.name=a",
                "-c",
                "user.email=a@b",
                "commit",
                "-q",
                "-m",
                "All",
            ],
        ] {
            let mut git = exec::command(words);
            exec::succeed(git.current_dir(&tree).env("GIT_CONFIG_GLOBAL", "/dev/null"))?;
        }
        let lowest = self.layers.lowers.last().context("no layers")?.join("tree");
        exec::succeed(exec::command(&["cp", "-a"]).args([tree.join(".git"), lowest]))?;
        self.archive(scale.archive)
    }

    /// `archive.tar`, with files in `files`.
    fn archive(&mut self, count: usize) -> Result<()> {
        let staging = self.layers.dir.join("staging");
        for i in 0..count {
            let dir = staging.join(format!("files/a{}/b{}", i / PER_DIR % 40, i / PER_DIR));
            if i % PER_DIR == 0 {
                exec::check()?;
                fs::create_dir_all(&dir)?;
            }
            let size = self.random() % 4096;
            let data: Vec<u8> = (0..size / 8 + 1)
                .flat_map(|_| self.random().to_le_bytes())
                .collect();
            fs::write(dir.join(format!("file{i}")), data)?;
        }
        let archive = self.layers.dir.join("archive.tar");
        let mut tar = exec::command(&["tar", "-C"]);
        exec::succeed(tar.arg(&staging).arg("-cf").arg(archive).arg("files"))?;
        fs::remove_dir_all(staging)?;
        Ok(())
    }

    /// Debian at the bottom, a package and a project above.
    fn root(&mut self, scale: &Scale, archive: &Path) -> Result<()> {
        let lowest = self.layers.lowers.last().context("no layers")?;
        for root in [lowest, &self.layers.merged] {
            let mut tar = exec::command(&[
                "tar",
                "--numeric-owner",
                "--xattrs",
                "--xattrs-include=*",
                "-xpf",
            ]);
            exec::succeed(tar.arg(archive).arg("-C").arg(root))?;
        }
        self.project(scale.units)?;
        self.package(scale.packaged)
    }

    fn project(&mut self, units: usize) -> Result<()> {
        let home = "srv/project";
        self.dir(0, home)?;
        for h in 0..units * 2 {
            let text = format!(
                "#include <stdio.h>\n#include <stdlib.h>\nint unit_{h}(int);\n#define H{h} {h}\n"
            );
            self.bytes(0, &format!("{home}/h{h}.h"), text.as_bytes())?;
        }
        let mut main = String::from("int main(void) { int sum = 0;\n");
        for u in 0..units {
            let mut text: String = (0..units * 2)
                .map(|h| format!("#include \"h{h}.h\"\n"))
                .collect();
            for system in [
                "string", "unistd", "errno", "math", "time", "signal", "sys/stat", "fcntl",
            ] {
                text.push_str(&format!("#include <{system}.h>\n"));
            }
            for f in 0..40 {
                text.push_str(&format!(
                    "static int f{f}(int x) {{ for (int i = 0; i < {f}; i++) x = x * 31 + i; return x; }}\n"
                ));
            }
            text.push_str(&format!(
                "int unit_{u}(int x) {{ return f3(x) + f7(x); }}\n"
            ));
            self.bytes(0, &format!("{home}/u{u}.c"), text.as_bytes())?;
            main.push_str(&format!(
                "extern int unit_{u}(int); sum += unit_{u}({u});\n"
            ));
        }
        main.push_str("return sum == 1; }\n");
        self.bytes(0, &format!("{home}/main.c"), main.as_bytes())?;
        let objects: String = (0..units).map(|u| format!(" u{u}.o")).collect();
        let make =
            format!("prog: main.o{objects}\n\tcc -o $@ $^\n%.o: %.c\n\tcc -O1 -c -o $@ $<\n");
        self.bytes(0, &format!("{home}/Makefile"), make.as_bytes())
    }

    fn package(&mut self, files: usize) -> Result<()> {
        let staging = self.layers.dir.join("package");
        fs::create_dir_all(staging.join("DEBIAN"))?;
        let control = "Package: rovl-bench\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: files\n";
        fs::write(staging.join("DEBIAN/control"), control)?;
        for i in 0..files {
            let dir = staging.join(format!("usr/share/rovl-bench/d{}", i / 50));
            fs::create_dir_all(&dir)?;
            let data: Vec<u8> = (0..512).flat_map(|_| self.random().to_le_bytes()).collect();
            fs::write(dir.join(format!("f{i}")), data)?;
        }
        let built = self.layers.dir.join("rovl-bench.deb");
        let mut tool =
            exec::command(&["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build"]);
        exec::succeed(tool.args([&staging, &built]))?;
        for place in self.places(0, "srv/rovl-bench.deb")? {
            fs::copy(&built, place)?;
        }
        fs::remove_dir_all(staging)?;
        Ok(())
    }
}

/// What `grep` looks for.
pub const NEEDLE: &str = "here-is-the-needle";
