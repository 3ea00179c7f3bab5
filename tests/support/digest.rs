//! Everything that can be seen of a tree, in a form that can be compared.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::hash::Hasher;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What a tree shows of one entry. The size and link count of directories are left out: each file
/// system counts them in its own way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryDigest {
    /// `file`, `dir`, `symlink`, `fifo`, `socket`, `block` or `char`.
    pub kind: &'static str,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes; 0 for directories.
    pub size: u64,
    /// Device number of device nodes.
    pub rdev: u64,
    /// Modification time in nanoseconds since 1970; negative before.
    pub mtime_ns: i128,
    /// Hash of the content, or of the target of a symlink.
    pub content: u64,
    /// Extended attributes, without the overlay's own.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Number of links (0 for directories).
    pub nlink: u64,
    /// The first path of the tree that is the same inode, if that is another one.
    pub linked_to: Option<PathBuf>,
}

/// The digests of all entries beneath `root`, by path relative to it (`.` is the root itself).
pub fn tree_digest(root: &Path) -> BTreeMap<PathBuf, EntryDigest> {
    let mut entries = BTreeMap::new();
    let mut first_names = HashMap::new();
    visit(root, Path::new("."), &mut entries, &mut first_names);
    entries
}

fn visit(
    root: &Path,
    relative: &Path,
    entries: &mut BTreeMap<PathBuf, EntryDigest>,
    first_names: &mut HashMap<(u64, u64), PathBuf>,
) {
    let path = root.join(relative);
    let digest = digest(&path, relative, first_names);
    let is_dir = digest.kind == "dir";
    entries.insert(relative.to_path_buf(), digest);
    if !is_dir {
        return;
    }
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap_or_else(|e| panic!("can't list {}: {e}", path.display()))
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1], "{} lists a name twice", path.display());
    }
    for name in names {
        let child = if relative == Path::new(".") {
            PathBuf::from(&name)
        } else {
            relative.join(&name)
        };
        visit(root, &child, entries, first_names);
    }
}

fn digest(
    path: &Path,
    relative: &Path,
    first_names: &mut HashMap<(u64, u64), PathBuf>,
) -> EntryDigest {
    let meta = fs::symlink_metadata(path)
        .unwrap_or_else(|e| panic!("listed but can't be stat'ed: {}: {e}", path.display()));
    let kind = kind(&meta);
    let linked_to = if kind != "dir" && meta.nlink() > 1 {
        let first = first_names
            .entry((meta.dev(), meta.ino()))
            .or_insert_with(|| relative.to_path_buf());
        (first != relative).then(|| first.clone())
    } else {
        None
    };
    EntryDigest {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        size: if kind == "dir" { 0 } else { meta.len() },
        rdev: if matches!(kind, "block" | "char") {
            meta.rdev()
        } else {
            0
        },
        mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        content: content_hash(path, kind),
        xattrs: xattrs(path),
        nlink: if kind == "dir" { 0 } else { meta.nlink() },
        linked_to,
    }
}

fn kind(meta: &fs::Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => "dir",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_socket() => "socket",
        () if kind.is_block_device() => "block",
        () if kind.is_char_device() => "char",
        () => "file",
    }
}

fn content_hash(path: &Path, kind: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    match kind {
        "symlink" => hasher.write(fs::read_link(path).unwrap().as_os_str().as_bytes()),
        "file" => {
            let mut file =
                File::open(path).unwrap_or_else(|e| panic!("can't open {}: {e}", path.display()));
            let mut buffer = vec![0; 1 << 20];
            loop {
                let n = file
                    .read(&mut buffer)
                    .unwrap_or_else(|e| panic!("can't read {}: {e}", path.display()));
                if n == 0 {
                    break;
                }
                hasher.write(&buffer[..n]);
            }
        }
        _ => {}
    }
    hasher.finish()
}

/// The extended attributes of `path` itself, without those of overlay implementations.
pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    const HIDDEN: [&str; 4] = [
        "trusted.overlay.",
        "user.overlay.",
        "user.fuseoverlayfs.",
        "user.containers.",
    ];
    all_xattrs(path)
        .into_iter()
        .filter(|(name, _)| !HIDDEN.iter().any(|hidden| name.starts_with(hidden)))
        .collect()
}

/// All extended attributes of `path` itself.
pub fn all_xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..])
        .unwrap_or_else(|e| panic!("can't list xattrs of {}: {e}", path.display()));
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0_u8; 64 << 10];
            let name = OsStr::from_bytes(name).to_str().unwrap().to_owned();
            let n = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..])
                .unwrap_or_else(|e| panic!("can't read xattr {name} of {}: {e}", path.display()));
            value.truncate(n);
            (name, value)
        })
        .collect()
}

/// What differs between two digests, one line a difference.
pub fn differences(
    a: &BTreeMap<PathBuf, EntryDigest>,
    b: &BTreeMap<PathBuf, EntryDigest>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, left) in a {
        match b.get(path) {
            None => lines.push(format!("{}: only in the first", path.display())),
            Some(right) if left != right => lines.push(entry_difference(path, left, right)),
            Some(_) => {}
        }
    }
    for path in b.keys().filter(|path| !a.contains_key(*path)) {
        lines.push(format!("{}: only in the second", path.display()));
    }
    lines
}

fn entry_difference(path: &Path, a: &EntryDigest, b: &EntryDigest) -> String {
    let mut parts = Vec::new();
    let mut compare = |what: &str, left: String, right: String| {
        if left != right {
            parts.push(format!("{what} {left} against {right}"));
        }
    };
    compare("type", a.kind.into(), b.kind.into());
    compare("mode", format!("{:04o}", a.mode), format!("{:04o}", b.mode));
    compare("uid", a.uid.to_string(), b.uid.to_string());
    compare("gid", a.gid.to_string(), b.gid.to_string());
    compare("size", a.size.to_string(), b.size.to_string());
    compare("rdev", format!("{:x}", a.rdev), format!("{:x}", b.rdev));
    compare("mtime", a.mtime_ns.to_string(), b.mtime_ns.to_string());
    compare(
        "content",
        format!("{:x}", a.content),
        format!("{:x}", b.content),
    );
    compare(
        "xattrs",
        format!("{:?}", a.xattrs),
        format!("{:?}", b.xattrs),
    );
    compare("nlink", a.nlink.to_string(), b.nlink.to_string());
    compare(
        "linked to",
        format!("{:?}", a.linked_to),
        format!("{:?}", b.linked_to),
    );
    format!("{}: {}", path.display(), parts.join(", "))
}

/// Panics with the list of differences unless both trees show the same.
pub fn assert_trees_equal(a: &Path, b: &Path) {
    assert_digests_equal(
        &tree_digest(a),
        &tree_digest(b),
        &format!("{} and {}", a.display(), b.display()),
    );
}

/// Panics with the list of differences unless both digests are the same.
pub fn assert_digests_equal(
    a: &BTreeMap<PathBuf, EntryDigest>,
    b: &BTreeMap<PathBuf, EntryDigest>,
    what: &str,
) {
    let lines = differences(a, b);
    assert!(
        lines.is_empty(),
        "{what} differ in {} entries:\n{}",
        lines.len(),
        lines[..lines.len().min(50)].join("\n")
    );
}
