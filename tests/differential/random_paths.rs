//! What random operations are about: paths, slots, numbers.

use rustix::fs::{CWD, FileType};

use super::driver::{Driver, SLOTS};
use super::model::{B, Disk, M, Tm};
use super::rng::Rng;
use super::tree;
use super::words::{DIR_MODES, FILE_MODES, NAMES, join, moment};

/// Makes operations while a driver runs them, so that most meet something that exists.
pub struct OpMaker<'a> {
    pub rng: &'a mut Rng,
    pub paths: Vec<(Vec<u8>, FileType)>,
    pub stale: u32,
    pub user: usize,
    pub disk: Disk,
    /// The slots that are open, and those that are open for reading only.
    pub open: Vec<usize>,
    pub read_only: Vec<usize>,
    /// The last paths that were used.
    pub recent: Vec<Vec<u8>>,
}

impl OpMaker<'_> {
    pub fn refresh(&mut self, driver: &mut Driver) {
        (self.open, self.read_only) = driver.open_slots();
        if self.stale > 0 {
            self.stale -= 1;
            return;
        }
        self.stale = 3;
        self.paths.clear();
        let paths = &mut self.paths;
        if driver.as_root(|_| collect(b".", 0, paths)).is_err() {
            return; // Then the operations are about nothing, and all fail alike.
        }
        self.paths.sort_by(|x, y| x.0.cmp(&y.0));
    }

    /// A slot that is mostly open.
    pub fn slot(&mut self) -> usize {
        match self.open.is_empty() || self.rng.chance(4) {
            true => self.rng.index(SLOTS),
            false => *self.rng.pick(&self.open),
        }
    }

    pub fn seed(&mut self) -> u8 {
        self.rng.below(256) as u8
    }

    pub fn len(&mut self) -> usize {
        match self.rng.below(8) {
            0 => 0,
            1 => 1,
            2 => 4096,
            3 => 40_000,
            _ => 1 + self.rng.index(6000),
        }
    }

    pub fn offset(&mut self) -> u64 {
        match self.rng.below(8) {
            0..=2 => 0,
            3 => 4096,
            4 => 200_000,
            _ => self.rng.below(10_000),
        }
    }

    pub fn file_mode(&mut self) -> M {
        M(*self.rng.pick(FILE_MODES))
    }

    pub fn dir_mode(&mut self) -> M {
        M(*self.rng.pick(DIR_MODES))
    }

    pub fn any_mode(&mut self) -> M {
        if self.rng.chance(50) {
            self.file_mode()
        } else {
            self.dir_mode()
        }
    }

    /// Who gets something; one of the two may stay. Not both: chown(-1, -1) takes set-id bits away,
    /// but the kernel does not tell FUSE of it (deviation `chown-to-nobody`).
    pub fn owner(&mut self) -> (u32, u32) {
        let uid = *self.rng.pick(&[0, 1000, 1001, u32::MAX]);
        let gid = *self.rng.pick(&[0, 1000, 1001, 2000, u32::MAX]);
        if uid == u32::MAX && gid == u32::MAX {
            (uid, 1000)
        } else {
            (uid, gid)
        }
    }

    pub fn time(&mut self) -> Tm {
        match self.rng.below(6) {
            0 => Tm::Now,
            1 => Tm::Omit,
            _ => Tm::At(moment(self.rng)),
        }
    }

    pub fn existing(&mut self) -> Vec<u8> {
        // What was just used is used again: that is where states meet.
        if !self.recent.is_empty() && self.rng.chance(30) {
            return self.rng.pick(&self.recent).clone();
        }
        if self.paths.is_empty() {
            return b"a".to_vec();
        }
        let at = self.rng.index(self.paths.len());
        let path = self.paths[at].0.clone();
        self.remember(&path);
        path
    }

    pub fn remember(&mut self, path: &[u8]) {
        if self.recent.len() >= 5 {
            self.recent.remove(0);
        }
        self.recent.push(path.to_vec());
    }

    /// A path that mostly exists.
    pub fn path(&mut self) -> B {
        B(match self.rng.below(40) {
            0 => b".".to_vec(),
            1 => join(&self.existing(), self.rng.pick::<&[u8]>(NAMES)),
            2 => [&self.existing()[..], b"/"].concat(),
            3 => [b"/", &self.existing()[..]].concat(),
            4 => join(&self.existing(), b".."),
            5 => join(&self.existing(), b"."),
            6..=8 => return self.new_path(),
            9 if self.rng.chance(20) => Vec::new(),
            _ => self.existing(),
        })
    }

    pub fn path_mostly(&mut self, kind: FileType) -> B {
        if self.rng.chance(20) {
            return B(self.existing());
        }
        for _ in 0..12 {
            if self.paths.is_empty() || self.rng.chance(8) {
                break;
            }
            let at = self.rng.index(self.paths.len());
            if self.paths[at].1 == kind {
                let path = self.paths[at].0.clone();
                self.remember(&path);
                return B(path);
            }
        }
        self.path()
    }

    /// A path whose parent mostly exists.
    pub fn new_path(&mut self) -> B {
        let dirs: Vec<&Vec<u8>> = self
            .paths
            .iter()
            .filter(|x| x.1 == FileType::Directory)
            .map(|x| &x.0)
            .collect();
        let dir = match dirs.is_empty() || self.rng.chance(25) {
            true => b".".to_vec(),
            false => (*self.rng.pick(&dirs)).clone(),
        };
        let name = match self.rng.below(100) {
            0 => vec![b'L'; 255],
            1 => vec![b'M'; 256],
            2 => b".wh.a".to_vec(),
            _ => self.rng.pick(NAMES).to_vec(),
        };
        B(join(&dir, &name))
    }
}

/// All paths below `dir`, relative to the root.
fn collect(dir: &[u8], depth: u32, out: &mut Vec<(Vec<u8>, FileType)>) {
    if depth > 12 || dir.len() > 1500 {
        return;
    }
    let Ok(fd) = tree::open_dir(CWD, dir) else {
        return;
    };
    let Ok(names) = tree::list(&fd) else { return };
    for (name, kind, _) in names {
        if &*name == b"." || &*name == b".." {
            continue;
        }
        let path = join(dir, &name);
        if kind == FileType::Directory {
            collect(&path, depth + 1, out);
        }
        out.push((path, kind));
    }
}
