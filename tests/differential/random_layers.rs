//! Random layers.

use std::collections::BTreeMap;

use super::layers::{acl, capability};
use super::model::{B, Case, Disk, Entry, Ext, L, M, Node};
use super::rng::Rng;
use super::words::{DIR_MODES, FILE_MODES, NAMES, join, moment, owner, parent, symlink_target};

/// A random case without operations.
pub fn layers(rng: &mut Rng, disk: Disk) -> Case {
    let mut below = BTreeMap::new();
    let mut lowers = Vec::new();
    let count = *rng.pick(&[1, 1, 2, 2, 2, 3, 3, 4]);
    let big = rng.chance(15);
    for level in 0..count {
        let size = if level == 0 {
            14 + rng.below(22)
        } else {
            5 + rng.below(16)
        };
        let mut maker = LayerMaker {
            rng,
            below: &mut below,
            entries: Vec::new(),
            own: BTreeMap::new(),
        };
        maker.root();
        if big {
            maker.big();
        }
        for _ in 0..size {
            maker.step();
        }
        lowers.insert(0, maker.finish());
    }
    Case {
        disk,
        options: "",
        lowers,
        before: Vec::new(),
        ops: Vec::new(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dir,
    Other,
    /// A directory that shows nothing of the layers below.
    Opaque,
    Gone,
}

struct LayerMaker<'a> {
    rng: &'a mut Rng,
    /// What the layers below show together.
    below: &'a mut BTreeMap<Vec<u8>, Kind>,
    entries: Vec<Entry>,
    own: BTreeMap<Vec<u8>, Kind>,
}

impl LayerMaker<'_> {
    fn root(&mut self) {
        let mode = *self.rng.pick(&[0o755, 0o777, 0o1777, 0o775]);
        self.add(b"", Node::Dir, mode);
    }

    /// Part of a directory that takes several getdents and several requests to list.
    fn big(&mut self) {
        self.add(b"big", Node::Dir, 0o777);
        for i in 0..250 {
            let path = format!("big/{i} {}", "n".repeat(i % 40)).into_bytes();
            let below = self.below.contains_key(&path);
            match self.rng.below(4) {
                0 => self.add(&path, Node::File(0, L(Vec::new())), 0o644),
                1 if below => self.add(&path, Node::Whiteout, 0),
                _ => {}
            }
        }
    }

    fn add(&mut self, path: &[u8], node: Node, mode: u32) {
        let kind = match node {
            Node::Dir => Kind::Dir,
            Node::Opaque => Kind::Opaque,
            Node::Whiteout => Kind::Gone,
            _ => Kind::Other,
        };
        self.own.insert(path.to_vec(), kind);
        let (uid, gid) = owner(self.rng);
        let xattrs = if matches!(node, Node::Whiteout | Node::Link(_)) {
            Vec::new()
        } else {
            self.xattrs(&node)
        };
        let mtime = moment(self.rng);
        self.entries.push(Entry {
            path: B(path.to_vec()),
            node,
            mode: M(mode),
            uid,
            gid,
            mtime,
            xattrs: L(xattrs),
        });
    }

    fn xattrs(&mut self, node: &Node) -> Vec<(B, B)> {
        let mut out = Vec::new();
        let dir = matches!(node, Node::Dir | Node::Opaque);
        let file = matches!(node, Node::File(..));
        let link = matches!(node, Node::Symlink(_));
        let mut add = |name: &str, value: B| out.push((B(name.as_bytes().to_vec()), value));
        if (dir || file) && self.rng.chance(15) {
            add("user.one", B(b"1".to_vec()));
        }
        if (dir || file) && self.rng.chance(5) {
            add("user.\u{e9}", B(Vec::new()));
        }
        if self.rng.chance(15) {
            add("trusted.two", B(vec![0, 255, 10]));
        }
        if self.rng.chance(4) {
            add("trusted.overlay.overlay.opaque", B(b"y".to_vec()));
        }
        if !link && self.rng.chance(8) {
            add("system.posix_acl_access", acl(6, (1001, 7), 4, 7, 4));
        }
        if dir && self.rng.chance(10) {
            add("system.posix_acl_default", acl(7, (1000, 5), 5, 7, 0));
        }
        if file && self.rng.chance(8) {
            add("security.capability", capability());
        }
        out
    }

    /// Makes `dir` a directory of this layer, with its parents. False if it can't be one.
    fn ensure_dir(&mut self, dir: &[u8]) -> bool {
        match self.own.get(dir) {
            Some(Kind::Dir | Kind::Opaque) => return true,
            Some(_) => return false,
            None => {}
        }
        if !self.ensure_dir(parent(dir)) {
            return false;
        }
        let mode = *self.rng.pick(DIR_MODES);
        self.add(dir, Node::Dir, mode);
        true
    }

    fn step(&mut self) {
        if !self.below.is_empty() && self.rng.chance(50) {
            self.cover();
        } else {
            self.fresh();
        }
    }

    /// An entry where the layers below may have none.
    fn fresh(&mut self) {
        let mut dirs: Vec<Vec<u8>> = vec![Vec::new()];
        let all = self.below.iter().chain(self.own.iter());
        dirs.extend(
            all.filter(|(_, kind)| matches!(kind, Kind::Dir | Kind::Opaque))
                .map(|(path, _)| path.clone()),
        );
        let dir = self.rng.pick(&dirs).clone();
        let name = self.rng.pick(NAMES).to_vec();
        let path = join(&dir, &name);
        let depth = path.iter().filter(|c| **c == b'/').count();
        if self.own.contains_key(&path)
            || depth > 4
            || !self.ensure_dir(&dir)
            || self.own.contains_key(&path)
        {
            return;
        }
        if self.rng.chance(30) {
            let node = if self.rng.chance(8) {
                Node::Opaque
            } else {
                Node::Dir
            };
            let mode = *self.rng.pick(DIR_MODES);
            return self.add(&path, node, mode);
        }
        let path = if self.rng.chance(4) {
            join(&dir, &[b'L'; 255])
        } else {
            path
        };
        if !self.own.contains_key(&path) {
            self.leaf(&path);
        }
    }

    /// An entry that hides or changes something below.
    fn cover(&mut self) {
        let paths: Vec<Vec<u8>> = self
            .below
            .keys()
            .filter(|p| !p.is_empty())
            .cloned()
            .collect();
        if paths.is_empty() {
            return;
        }
        let path = self.rng.pick(&paths).clone();
        if self.own.contains_key(&path)
            || !self.ensure_dir(parent(&path))
            || self.own.contains_key(&path)
        {
            return;
        }
        let hidden = (1..path.len())
            .any(|i| path[i] == b'/' && self.own.get(&path[..i]) == Some(&Kind::Opaque));
        let was_dir = self.below.get(&path) == Some(&Kind::Dir);
        let mode = *self.rng.pick(DIR_MODES);
        match self.rng.below(10) {
            0..=3 if !hidden => self.add(&path, Node::Whiteout, 0),
            4..=6 if was_dir => self.add(&path, Node::Dir, mode),
            7 if was_dir => self.add(&path, Node::Opaque, mode),
            // No directory with a long path: its redirect must fit (deviation `long-redirect`).
            8 if path.len() < 200 => self.add(&path, Node::Dir, mode),
            _ => self.leaf(&path),
        }
    }

    fn leaf(&mut self, path: &[u8]) {
        let mode = *self.rng.pick(FILE_MODES);
        let files: Vec<B> = self
            .entries
            .iter()
            .filter(|e| {
                !matches!(
                    e.node,
                    Node::Dir | Node::Opaque | Node::Whiteout | Node::Link(_)
                )
            })
            .map(|e| e.path.clone())
            .collect();
        let node = match self.rng.below(20) {
            0..=3 if !files.is_empty() => Node::Link(self.rng.pick(&files).clone()),
            4 | 5 => Node::Symlink(symlink_target(self.rng, &files)),
            6 => Node::Fifo,
            7 => Node::Sock,
            8 => Node::Chr(1, 3),
            9 => Node::Blk(240, 300),
            _ => file(self.rng),
        };
        self.add(path, node, mode);
    }

    fn finish(self) -> Vec<Entry> {
        for entry in &self.entries {
            let path = &entry.path.0;
            let under =
                |other: &[u8]| other.starts_with(path) && other.get(path.len()) == Some(&b'/');
            let was_dir = matches!(self.below.get(path), Some(Kind::Dir));
            let kind = self.own[path];
            if !path.is_empty() && (kind != Kind::Dir || !was_dir) {
                self.below.retain(|other, _| !under(other));
            }
            match kind {
                Kind::Gone => drop(self.below.remove(path)),
                Kind::Opaque => drop(self.below.insert(path.clone(), Kind::Dir)),
                kind => drop(self.below.insert(path.clone(), kind)),
            }
        }
        self.entries
    }
}

fn file(rng: &mut Rng) -> Node {
    let seed = rng.below(256) as u8;
    match rng.below(10) {
        0 | 1 => Node::File(0, L(Vec::new())),
        2 => Node::File(300_000, L(vec![Ext(131_072, 100, seed)])),
        3 => Node::File(65_536, L(vec![Ext(0, 4096, seed), Ext(32_768, 1, seed)])),
        4 => Node::File(100_000, L(vec![Ext(0, 100_000, seed)])),
        _ => {
            let size = 1 + rng.below(9000) as u32;
            Node::File(u64::from(size), L(vec![Ext(0, size, seed)]))
        }
    }
}
