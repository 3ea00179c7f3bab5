//! Filling layers: the files of each set.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::data::{Layers, NEEDLE, Scale, Set};
use crate::exec;

/// Makes the files of a set.
///
/// # Errors
/// When they can't be made.
pub fn fill(set: Set, layers: &Layers, scale: &Scale, root_archive: &Path) -> Result<()> {
    let mut builder = Builder {
        layers,
        merged: set.has_merged(),
        random: 0x9e37_79b9_7f4a_7c15,
    };
    match set {
        Set::Micro => builder.micro(),
        Set::Dirs => builder.dirs(scale.large),
        Set::Walk => builder.spread("walk", scale.walk, |_| 0),
        Set::Tree => builder.tree(scale),
        Set::Big => builder.file(1, "big", scale.big),
        Set::Copy => builder.copies(scale),
        Set::Root => builder.root(scale, root_archive),
        Set::Many(_) => builder.many(scale.cold_dirs),
        Set::Inodes => builder.inodes(scale.inodes),
        Set::Empty => Ok(()),
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
                // It would pack the objects in the background, while they are copied to the layers.
                "-c",
                "gc.auto=0",
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
