//! What the tree holds at the start, and who owns which names.
//!
//! Six shared directories `s0`…`s5` lie in different layers. In each of them:
//!
//! | names | whose |
//! |---|---|
//! | `keep.N` | nobody's: always there, never changed |
//! | `wN.*` | worker N's alone: it knows for certain what they are |
//! | `wN.gK` | worker N's name of hard-link group K, whose file all workers write, each its region |
//! | `pubK` | replaced by all, by rename: always there, always whole |
//! | `tokK` | made, removed and renamed by all; the board counts |
//! | `mvK.P` | moving directory K when at place P; one worker moves it, all walk in it |
//! | `race.*` | of the race that is on |

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::support::{Layers, pattern};

/// Processes that work on the tree.
pub const WORKERS: usize = 8;
/// Shared directories.
pub const SHARED: usize = 6;
/// Names that are made and removed by all.
pub const TOKENS: usize = 16;
/// Names that are replaced by all.
pub const PUBLISHED: usize = 6;
/// Hard-link groups with a name per worker.
pub const GROUPS: usize = 6;
/// Bytes of a group's file that each worker owns; not a divisor of the page size.
pub const REGION: usize = 1000;
/// Directories that are renamed while others walk in them.
pub const MOVING: usize = 4;
/// Places that a moving directory may be at.
pub const MOVING_PLACES: u64 = 4;
/// Lower files and directories that races use up, of each kind.
pub const RACE_STOCK: usize = 160;

/// Layers that a shared directory lies in; lower0 is on top of lower1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum In {
    Lower0,
    Lower1,
    Upper,
}

impl In {
    fn path(self, layers: &Layers) -> &Path {
        match self {
            In::Lower0 => &layers.lowers[0],
            In::Lower1 => &layers.lowers[1],
            In::Upper => &layers.upper,
        }
    }
}

/// The layers of shared directory `s`.
fn homes(s: usize) -> &'static [In] {
    match s {
        0 => &[In::Lower0],
        1 => &[In::Lower1],
        2 => &[In::Lower0, In::Lower1],
        3 => &[In::Upper, In::Lower1],
        4 => &[In::Upper],
        _ => &[In::Upper, In::Lower0, In::Lower1],
    }
}

/// How many `keep.N` there are: the last directory is large enough for many READDIR requests.
pub fn keeps(s: usize) -> usize {
    if s == SHARED - 1 { 1500 } else { 40 }
}

/// One of a worker's own objects at the start.
#[derive(Clone, Debug)]
pub struct Start {
    /// Path in the tree.
    pub path: String,
    pub kind: StartKind,
    home: In,
}

impl Start {
    /// Whether only lowers hold it.
    pub fn is_lower(&self) -> bool {
        self.home != In::Upper
    }
}

#[derive(Clone, Debug)]
pub enum StartKind {
    /// Data is `pattern(seed, len)`.
    File {
        seed: u64,
        len: usize,
    },
    /// A further name of an earlier file, in the same layer.
    Link {
        to: String,
    },
    /// Several of the same path are one merged directory.
    Dir,
    Symlink {
        target: String,
    },
}

/// The mode of all files at the start.
pub const FILE_MODE: u32 = 0o644;
/// The mode of all directories at the start.
pub const DIR_MODE: u32 = 0o755;

/// What worker `w` owns at the start, parents first.
pub fn start_of(w: usize) -> Vec<Start> {
    let mut all = Vec::new();
    for s in 0..SHARED {
        let homes = homes(s);
        for i in 0..4 {
            objects(w, s, i, homes[(w + i) % homes.len()], &mut all);
        }
        for (i, home) in homes.iter().enumerate() {
            merged_dir(w, s, i, *home, &mut all);
        }
    }
    all
}

/// Part `i` of directory `wN.m`, which lies in every layer that its parent lies in.
fn merged_dir(w: usize, s: usize, i: usize, home: In, all: &mut Vec<Start>) {
    let mut add = |path: String, kind: StartKind| all.push(Start { path, kind, home });
    let seed = (w * 1000 + s * 10 + i) as u64 + 500;
    let base = format!("s{s}/w{w}.m");
    add(base.clone(), StartKind::Dir);
    add(format!("{base}/sub"), StartKind::Dir);
    add(
        format!("{base}/part{i}"),
        StartKind::File { seed, len: 700 },
    );
    add(
        format!("{base}/sub/part{i}"),
        StartKind::File { seed, len: 70 },
    );
}

fn objects(w: usize, s: usize, i: usize, home: In, all: &mut Vec<Start>) {
    let mut add = |path: String, kind: StartKind| all.push(Start { path, kind, home });
    let seed = (w * 1000 + s * 10 + i) as u64;
    let len = [0, 100, 5000, 40_000][i];
    let base = format!("s{s}/w{w}");
    let first = format!("{base}.f{i}");
    add(first.clone(), StartKind::File { seed, len });
    add(format!("{base}.d{i}"), StartKind::Dir);
    add(
        format!("{base}.d{i}/a"),
        StartKind::File {
            seed: seed + 1,
            len: 300,
        },
    );
    add(format!("{base}.d{i}/sub"), StartKind::Dir);
    add(
        format!("{base}.d{i}/sub/b"),
        StartKind::File {
            seed: seed + 2,
            len: 9000,
        },
    );
    if i % 2 == 1 {
        add(
            format!("{base}.h{i}"),
            StartKind::Link { to: first.clone() },
        );
        add(format!("{base}.d{i}/h"), StartKind::Link { to: first });
        let target = format!("w{w}.f{i}");
        add(format!("{base}.l{i}"), StartKind::Symlink { target });
    }
}

/// Worker `w`'s first name in hard-link group `g`.
pub fn group_name(g: usize, w: usize) -> String {
    // All names of a lower file are in one layer: s0 and s2 both have a part in lower0.
    let s = if w.is_multiple_of(2) { 0 } else { 2 };
    format!("s{s}/w{w}.g{g}")
}

/// Contended name `k`.
pub fn token_name(k: usize) -> String {
    format!("s{}/tok{k}", k % SHARED)
}

/// Published name `k`.
pub fn published_name(k: usize) -> String {
    // s4 is not in the lowers.
    format!("s{}/pub{k}", [0, 1, 2, 3, 5][k % 5])
}

/// What a published file holds: a header that says all, then a pattern.
pub fn published_data(w: usize, seq: u64) -> Vec<u8> {
    let len = 64 + (seq as usize * 977 + w * 131) % 20_000;
    let mut data = format!("{w:8} {seq:16} {len:16}\n").into_bytes();
    data.extend(pattern(seq * 64 + w as u64, len));
    data
}

/// Moving directory `m` at `place`.
pub fn moving_name(m: usize, place: u64) -> String {
    format!("s{}/mv{m}.{place}", (m + place as usize) % 4)
}

/// What a moving directory holds: path beneath it, and the data of files.
pub fn moving_content(m: usize) -> Vec<(String, Option<Vec<u8>>)> {
    let mut all = vec![("deep".to_owned(), None), ("deep/er".to_owned(), None)];
    for i in 0..12 {
        let data = |n: usize| Some(pattern((m * 100 + n) as u64, 50 * n));
        all.push((format!("x{i}"), data(i)));
        all.push((format!("deep/y{i}"), data(20 + i)));
        all.push((format!("deep/er/z{i}"), data(40 + i)));
    }
    all
}

/// Lower file `i` for races.
pub fn race_file(i: usize) -> String {
    format!("stock/file{i}")
}

/// Lower directory `i` for races: empty.
pub fn race_dir(i: usize) -> String {
    format!("stock/dir{i}")
}

/// The data of every lower file for races: a region per worker.
pub fn race_data() -> Vec<u8> {
    pattern(77, WORKERS * REGION)
}

/// The data of a group's file at the start.
pub fn group_data(g: usize) -> Vec<u8> {
    pattern(500 + g as u64, WORKERS * REGION)
}

/// Fills the layers.
pub fn build(layers: &Layers) {
    for s in 0..SHARED {
        for home in homes(s) {
            fs::create_dir(home.path(layers).join(format!("s{s}"))).unwrap();
        }
        for i in 0..keeps(s) {
            let home = homes(s)[i % homes(s).len()];
            put(&home.path(layers).join(keep_name(s, i)), &keep_data(s, i));
        }
    }
    for start in (0..WORKERS).flat_map(start_of) {
        make(start.home.path(layers), &start);
    }
    build_contended(layers);
}

/// Quiet name `i` of shared directory `s`.
pub fn keep_name(s: usize, i: usize) -> String {
    format!("s{s}/keep.{i}")
}

/// What that file holds.
pub fn keep_data(s: usize, i: usize) -> Vec<u8> {
    format!("{s} {i}").into_bytes()
}

fn build_contended(layers: &Layers) {
    let (top, bottom) = (&layers.lowers[0], &layers.lowers[1]);
    for g in 0..GROUPS {
        let first = top.join(group_name(g, 0));
        put(&first, &group_data(g));
        for w in 1..WORKERS {
            fs::hard_link(&first, top.join(group_name(g, w))).unwrap();
        }
    }
    for k in 0..PUBLISHED {
        let name = published_name(k);
        put(
            &lower_of(&name, 0, layers).join(&name),
            &published_data(0, 0),
        );
    }
    for m in 0..MOVING {
        let name = moving_name(m, 0);
        for (i, (path, data)) in moving_content(m).iter().enumerate() {
            let path = lower_of(&name, i, layers).join(&name).join(path);
            match data {
                None => fs::create_dir_all(path).unwrap(),
                Some(data) => put(&path, data),
            }
        }
    }
    for i in 0..RACE_STOCK {
        let home = if i % 2 == 0 { top } else { bottom };
        put(&home.join(race_file(i)), &race_data());
        fs::create_dir(home.join(race_dir(i))).unwrap();
    }
}

/// The `i`-th of the lowers that hold the shared directory of this path.
fn lower_of<'a>(path: &str, i: usize, layers: &'a Layers) -> &'a Path {
    let s: usize = path[1..2].parse().unwrap();
    let lowers: Vec<&In> = homes(s).iter().filter(|home| **home != In::Upper).collect();
    lowers[i % lowers.len()].path(layers)
}

/// Writes a file, after its parents.
fn put(path: &Path, data: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, data).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(FILE_MODE)).unwrap();
}

fn make(layer: &Path, start: &Start) {
    let path = layer.join(&start.path);
    match &start.kind {
        StartKind::File { seed, len } => put(&path, &pattern(*seed, *len)),
        StartKind::Link { to } => fs::hard_link(layer.join(to), &path).unwrap(),
        StartKind::Dir => {
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(DIR_MODE)).unwrap();
        }
        StartKind::Symlink { target } => symlink(target, &path).unwrap(),
    }
}
