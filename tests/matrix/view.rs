//! All that a mount shows of its tree, errors included, and how two views differ.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

/// Seconds since 1970. What the lowers hold is older, what the scripts set is older too.
const RECENT: i64 = 1_600_000_000;

/// One entry. Sizes and link counts of directories are each file system's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is compared always: by name, as text.
    pub facts: BTreeMap<&'static str, String>,
    /// Modification and access time; `None` where it was set to the current time.
    pub times: [Option<(i64, i64)>; 2],
    pub is_dir: bool,
    pub ino: u64,
    /// The inode number that the listing of the directory tells.
    pub d_ino: u64,
    /// The first of the names that lead to the same inode, if there are several.
    pub linked: Option<PathBuf>,
}

/// Entries by path from the root, which is `.` and has no `d_ino`.
pub type View = BTreeMap<PathBuf, Entry>;

/// What differences matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rigour {
    /// The same layers, seen by two.
    SameLayers,
    /// Layers that two have written, each its own: directories that one of them has touched may have the
    /// current time in one view.
    OwnLayers,
}

/// Looks at everything beneath `root`.
pub fn view(root: &Path) -> View {
    let mut walk = Walk {
        root,
        entries: View::new(),
        names: HashMap::new(),
    };
    walk.visit(Path::new("."), 0);
    walk.finish()
}

struct Walk<'a> {
    root: &'a Path,
    entries: View,
    /// The names of inodes with several links.
    names: HashMap<(u64, u64), Vec<PathBuf>>,
}

impl Walk<'_> {
    fn visit(&mut self, relative: &Path, d_ino: u64) {
        let path = self.root.join(relative);
        let mut facts = BTreeMap::new();
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(error) => {
                facts.insert("stat", code(&error));
                self.add(relative, facts, None, d_ino);
                return;
            }
        };
        let kind = FileType::from_raw_mode(meta.mode());
        facts.insert("type", format!("{kind:?}"));
        facts.insert("mode", format!("{:04o}", meta.mode() & 0o7777));
        facts.insert("owner", format!("{}:{}", meta.uid(), meta.gid()));
        facts.insert("xattrs", xattrs(&path));
        match kind {
            FileType::RegularFile => {
                facts.insert("size", meta.len().to_string());
                facts.insert("content", content(&path));
            }
            FileType::Symlink => {
                let target = fs::read_link(&path);
                facts.insert(
                    "target",
                    target.map_or_else(|e| code(&e), |t| t.display().to_string()),
                );
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                facts.insert("device", format!("{:x}", meta.rdev()));
            }
            _ => {}
        }
        if !meta.is_dir() {
            facts.insert("nlink", meta.nlink().to_string());
            self.names
                .entry((meta.dev(), meta.ino()))
                .or_default()
                .push(relative.to_path_buf());
        }
        let children = meta.is_dir().then(|| list(&path));
        if let Some(Err(error)) = &children {
            facts.insert("listing", code(error));
        }
        self.add(relative, facts, Some(&meta), d_ino);
        for (name, d_ino) in children.and_then(Result::ok).unwrap_or_default() {
            let child = match relative == Path::new(".") {
                true => PathBuf::from(&name),
                false => relative.join(&name),
            };
            if self.entries.contains_key(&child) {
                let entry = self.entries.get_mut(&child).unwrap();
                entry.facts.insert("listed", "twice".into());
                continue;
            }
            self.visit(&child, d_ino);
        }
    }

    fn add(
        &mut self,
        path: &Path,
        facts: BTreeMap<&'static str, String>,
        meta: Option<&fs::Metadata>,
        d_ino: u64,
    ) {
        let time = |seconds: i64, nanos: i64| (seconds < RECENT).then_some((seconds, nanos));
        let times = meta.map_or([None; 2], |m| {
            // Listing a directory reads it.
            let access = time(m.atime(), m.atime_nsec()).filter(|_| !m.is_dir());
            [time(m.mtime(), m.mtime_nsec()), access]
        });
        let entry = Entry {
            facts,
            times,
            is_dir: meta.is_some_and(fs::Metadata::is_dir),
            ino: meta.map_or(0, MetadataExt::ino),
            d_ino,
            linked: None,
        };
        self.entries.insert(path.to_path_buf(), entry);
    }

    fn finish(mut self) -> View {
        for names in self.names.values().filter(|names| names.len() > 1) {
            for name in names {
                let entry = self.entries.get_mut(name).unwrap();
                entry.linked = names.iter().min().cloned();
            }
        }
        self.entries
    }
}

fn code(error: &io::Error) -> String {
    format!("E{}", error.raw_os_error().unwrap_or(0))
}

fn list(path: &Path) -> io::Result<Vec<(std::ffi::OsString, u64)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOATIME;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push((OsStr::from_bytes(name).to_owned(), entry.ino()));
        }
    }
    names.sort();
    Ok(names)
}

/// The length of the content and its hash, or why it can't be read.
fn content(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&bytes);
        Ok(format!("{} bytes {:016x}", bytes.len(), hasher.finish()))
    };
    read().unwrap_or_else(|error| code(&error))
}

fn xattrs(path: &Path) -> String {
    let mut names = vec![0_u8; 16 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(errno) => return format!("E{}", errno.raw_os_error()),
    };
    let mut found = Vec::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0_u8; 16 << 10];
        let got = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]);
        let value = match got {
            Ok(n) => value[..n].escape_ascii().to_string(),
            Err(errno) => format!("E{}", errno.raw_os_error()),
        };
        found.push(format!("{}={value}", name.escape_ascii()));
    }
    found.sort();
    found.join(" ")
}

// What Linux shows and nobody else need show. It is not compared:
//
// - refused names: Linux leaves out of a listing, or fails to list, what it refuses to look up (redirects,
//   metacopy). Whoever lists them must refuse them too.
// - times of directories, of layers that two have written: an operation that fails half-way, or the whiteout
//   that a rename leaves, changes a directory's mtime in one and not in the other.

/// Whether a path is beneath a directory that Linux failed to list.
fn unlisted(view: &View, path: &Path) -> bool {
    let above = path
        .ancestors()
        .skip(1)
        .filter(|above| !above.as_os_str().is_empty());
    let nearest = above
        .chain([Path::new(".")])
        .find_map(|above| view.get(above));
    nearest.is_some_and(|entry| entry.facts.contains_key("listing"))
}

fn is_refused(entry: &Entry) -> bool {
    entry.facts.contains_key("stat")
}

/// The first difference between what two saw, if there is one: `a` is the reference, Linux's view.
pub fn difference(a: &View, b: &View, rigour: Rigour) -> Option<String> {
    for (path, want) in a {
        let Some(got) = b.get(path) else {
            return Some(format!("{}: missing", path.display()));
        };
        if let Some(text) = entry_difference(want, got, rigour) {
            return Some(format!("{}: {text}", path.display()));
        }
    }
    let more = b
        .iter()
        .find(|(path, entry)| !a.contains_key(*path) && !is_refused(entry) && !unlisted(a, path))?;
    Some(format!("{}: too much", more.0.display()))
}

fn entry_difference(want: &Entry, got: &Entry, rigour: Rigour) -> Option<String> {
    for (fact, want) in want.facts.iter().filter(|(fact, _)| **fact != "listing") {
        let got = got.facts.get(fact).map_or("nothing", String::as_str);
        if got != want {
            return Some(format!("{fact}: {got}, want {want}"));
        }
    }
    if let Some((fact, got)) = got
        .facts
        .iter()
        .find(|(fact, _)| !want.facts.contains_key(*fact))
    {
        return Some(format!("{fact}: {got}, want nothing"));
    }
    for (time, at) in [("mtime", 0), ("atime", 1)] {
        let (want_time, got_time) = (want.times[at], got.times[at]);
        let one_is_recent = want_time.is_none() || got_time.is_none();
        let touched = want.is_dir && rigour == Rigour::OwnLayers && one_is_recent;
        if want_time != got_time && !touched {
            return Some(format!("{time}: {got_time:?}, want {want_time:?}"));
        }
    }
    None
}

/// What Linux promises: inode numbers that are the same in all views of a list, by path.
pub struct Promise<'a> {
    views: Vec<&'a View>,
    /// Where names were removed and made anew between the views: numbers of the lowers, which no new object
    /// gets by chance.
    lowers: Option<HashSet<u64>>,
}

impl<'a> Promise<'a> {
    /// Nothing was done between these views.
    pub fn still(views: Vec<&'a View>) -> Promise<'a> {
        Promise {
            views,
            lowers: None,
        }
    }

    /// Things were done; `lowers` is how it was before all of it.
    pub fn moved(views: Vec<&'a View>, lowers: &View) -> Promise<'a> {
        let lowers = lowers.values().map(|entry| entry.ino).collect();
        Promise {
            views,
            lowers: Some(lowers),
        }
    }

    fn holds(&self, path: &Path) -> bool {
        // The root is looked at by itself.
        let first = self.views.first().and_then(|view| view.get(path));
        let of_lowers = |ino: u64| {
            self.lowers
                .as_ref()
                .is_none_or(|lowers| lowers.contains(&ino))
        };
        let known = first.is_some_and(|entry| of_lowers(entry.ino));
        path != Path::new(".") && known && is_constant(&self.views, path)
    }

    /// The first inode number, or group of hard links, that differs between two views. Numbers that differ
    /// from run to run are in braces.
    pub fn ino_difference(&self, want: &View, got: &View, numbers: bool) -> Option<String> {
        want.iter()
            .filter(|(path, _)| self.holds(path))
            .find_map(|(path, want)| {
                let got = got.get(path)?;
                let path = path.display();
                let linked = |entry: &Entry| {
                    let first = entry.linked.as_ref().filter(|first| self.holds(first));
                    first.map(|first| first.display().to_string())
                };
                if linked(want) != linked(got) {
                    return Some(format!(
                        "{path}: linked with {:?}, want {:?}",
                        linked(got),
                        linked(want)
                    ));
                }
                (numbers && got.ino != want.ino)
                    .then(|| format!("{path}: another ino {{{}, want {}}}", got.ino, want.ino))
            })
    }

    /// The first promised inode number that changed between `views`.
    pub fn inconstancy(&self, views: &[&View]) -> Option<String> {
        let first = self.views.first()?;
        first
            .keys()
            .filter(|path| self.holds(path))
            .find_map(|path| {
                let inos: Vec<u64> = views
                    .iter()
                    .filter_map(|view| Some(view.get(path)?.ino))
                    .collect();
                (inos.len() == views.len() && !is_constant(views, path))
                    .then(|| format!("{}: ino changes {{{inos:?}}}", path.display()))
            })
    }
}

/// Whether an entry's inode number is the same in all of these views, which all have it.
pub fn is_constant(views: &[&View], path: &Path) -> bool {
    let inos: Option<Vec<u64>> = views.iter().map(|view| Some(view.get(path)?.ino)).collect();
    inos.is_some_and(|inos| inos.windows(2).all(|pair| pair[0] == pair[1]))
}

/// The first entry whose listing tells another inode number than stat.
pub fn d_ino_difference(view: &View) -> Option<String> {
    let mut children = view.iter().filter(|(path, _)| *path != Path::new("."));
    children.find_map(|(path, entry)| {
        (!is_refused(entry) && entry.d_ino != entry.ino).then(|| {
            format!(
                "{}: d_ino is not ino {{{}, {}}}",
                path.display(),
                entry.d_ino,
                entry.ino
            )
        })
    })
}
