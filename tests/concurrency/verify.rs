//! What must hold when all workers are done: the tree is what they say, and nothing leaked.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::board::Board;
use super::contended::check_published;
use super::files::hash;
use super::layout::{
    GROUPS, MOVING, MOVING_PLACES, PUBLISHED, RACE_STOCK, SHARED, TOKENS, WORKERS, keep_data,
    keep_name, keeps, moving_content, moving_name, published_name, race_data, race_dir, race_file,
    token_name,
};
use super::support::{EntryDigest, Mounted, tree_digest, wait_until};

/// Compares the tree with the manifests and the board; returns what is wrong.
pub fn check_tree(root: &Path, control: &Path, board: &Board) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut tree = tree_digest(root);
    tree.remove(Path::new("."));
    check_manifests(root, control, &mut tree, &mut wrong);
    check_quiet(&mut tree, &mut wrong);
    check_contended(root, board, &mut tree, &mut wrong);
    for path in tree.keys() {
        wrong.push(format!("{}: nobody made it", path.display()));
    }
    wrong
}

/// Takes an entry out of what is left to explain.
fn take(
    tree: &mut BTreeMap<PathBuf, EntryDigest>,
    path: &str,
    wrong: &mut Vec<String>,
) -> Option<EntryDigest> {
    let entry = tree.remove(Path::new(path));
    if entry.is_none() {
        wrong.push(format!("{path}: is missing"));
    }
    entry
}

fn check_manifests(
    root: &Path,
    control: &Path,
    tree: &mut BTreeMap<PathBuf, EntryDigest>,
    wrong: &mut Vec<String>,
) {
    let mut inodes: HashMap<u64, String> = HashMap::new();
    for w in 0..WORKERS {
        let manifest = fs::read_to_string(control.join(format!("manifest.{w}"))).unwrap();
        for line in manifest.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [path, kind, mode, nlink, content, object] = words[..] else {
                panic!("a broken line: {line}");
            };
            let Some(entry) = take(tree, path, wrong) else {
                continue;
            };
            let got = format!(
                "{} {} {} {}",
                entry.kind, entry.mode, entry.nlink, entry.content
            );
            let content = if kind == "dir" {
                entry.content.to_string()
            } else {
                content.into()
            };
            let want = format!("{kind} {mode} {nlink} {content}");
            if got != want {
                wrong.push(format!("{path}: is {got}, want {want}"));
            }
            let ino = std::os::unix::fs::MetadataExt::ino(
                &fs::symlink_metadata(root.join(path)).unwrap(),
            );
            let owner = inodes.entry(ino).or_insert_with(|| object.to_owned());
            if owner != object {
                wrong.push(format!("{path}: inode {ino} is {object} and {owner}"));
            }
        }
    }
}

fn check_quiet(tree: &mut BTreeMap<PathBuf, EntryDigest>, wrong: &mut Vec<String>) {
    for s in 0..SHARED {
        take(tree, &format!("s{s}"), wrong);
        for i in 0..keeps(s) {
            check_content(tree, &keep_name(s, i), &keep_data(s, i), wrong);
        }
    }
    take(tree, "stock", wrong);
    for i in 0..RACE_STOCK {
        // What races have not used up is as it was.
        if tree.contains_key(Path::new(&race_file(i))) {
            check_content(tree, &race_file(i), &race_data(), wrong);
        }
        tree.remove(Path::new(&race_dir(i)));
    }
}

fn check_content(
    tree: &mut BTreeMap<PathBuf, EntryDigest>,
    path: &str,
    data: &[u8],
    wrong: &mut Vec<String>,
) {
    if let Some(entry) = take(tree, path, wrong)
        && entry.content != hash(data)
    {
        wrong.push(format!("{path}: its content changed"));
    }
}

fn check_contended(
    root: &Path,
    board: &Board,
    tree: &mut BTreeMap<PathBuf, EntryDigest>,
    wrong: &mut Vec<String>,
) {
    for k in 0..PUBLISHED {
        if take(tree, &published_name(k), wrong).is_some() {
            let data = fs::read(root.join(published_name(k))).unwrap();
            check_published(&published_name(k), &data);
        }
    }
    for k in 0..TOKENS {
        let there = tree.remove(Path::new(&token_name(k))).is_some();
        let (came, went) = (
            board.token_in(k).load(SeqCst),
            board.token_out(k).load(SeqCst),
        );
        if came != went + u64::from(there) {
            let name = token_name(k);
            wrong.push(format!(
                "{name}: came {came} times, went {went} times, there: {there}"
            ));
        }
    }
    for g in 0..GROUPS {
        let is_name = |path: &&PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.split('.').nth(1) == Some(&format!("g{g}"))
        };
        let names: Vec<PathBuf> = tree.keys().filter(is_name).cloned().collect();
        let want = board.group_links(g).load(SeqCst);
        for name in &names {
            let entry = tree.remove(name).unwrap();
            if entry.nlink != want {
                let name = name.display();
                wrong.push(format!("{name}: {} links, want {want}", entry.nlink));
            }
        }
        if names.len() as u64 != want {
            wrong.push(format!("group {g}: {} names, want {want}", names.len()));
        }
    }
    for m in 0..MOVING {
        let place = board.place(m).load(SeqCst) / 2 % MOVING_PLACES;
        let name = moving_name(m, place);
        take(tree, &name, wrong);
        for (path, data) in moving_content(m) {
            let path = format!("{name}/{path}");
            match data {
                Some(data) => check_content(tree, &path, &data, wrong),
                None => drop(take(tree, &path, wrong)),
            }
        }
    }
}

/// What a daemon holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Descriptors, without those that it says it has cached.
    pub fds: u64,
    /// Descriptors of files and directories that are unlinked.
    pub deleted: usize,
    /// Nodes, if the subject counts them.
    pub nodes: Option<u64>,
    /// Resident memory in KiB.
    pub rss: u64,
}

/// Lets the kernel forget its inodes and dentries.
pub fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// Counts what the daemon holds; `None` for the kernel's overlayfs.
pub fn held(mounted: &Mounted) -> Option<Held> {
    let pid = mounted.daemon_pid()?;
    let links: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .collect();
    let is_deleted = |link: &&PathBuf| link.to_string_lossy().ends_with(" (deleted)");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let rss = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    let stat = mounted.stat_json();
    let counted = |key: &str| stat.as_ref().and_then(|stat| stat[key].as_u64());
    Some(Held {
        fds: (links.len() as u64).saturating_sub(counted("cached_fds").unwrap_or(0)),
        deleted: links.iter().filter(is_deleted).count(),
        nodes: counted("nodes"),
        rss: rss.unwrap_or(0),
    })
}

/// Waits until the daemon holds no more than before, give or take a little.
pub fn check_held(mounted: &Mounted, before: Held) -> Vec<String> {
    let mut now = before;
    let fine = wait_until(Duration::from_secs(20), || {
        drop_caches();
        std::thread::sleep(Duration::from_millis(100));
        now = held(mounted).unwrap();
        now.fds <= before.fds + 32
            && now.deleted <= before.deleted
            && now.nodes.unwrap_or(0) <= before.nodes.unwrap_or(0) + 64
    });
    let mut wrong = Vec::new();
    if !fine {
        wrong.push(format!(
            "the daemon held {before:?} before, and holds {now:?} now"
        ));
    }
    // 30 MiB are for the allocator: thousands of nodes and files have come and gone.
    if now.rss > before.rss + (30 << 10) {
        wrong.push(format!(
            "the daemon's memory grew from {} to {} KiB",
            before.rss, now.rss
        ));
    }
    wrong
}
