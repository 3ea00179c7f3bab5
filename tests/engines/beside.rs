//! A container and its parent, mounted as podman does to compare them: one file system, in which what is the same has
//! one inode number. Whoever walks both leaves that out, as `Walk` does here and containers/storage in
//! `changes_linux.go`; nothing that differs may be left out.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{
    EntryDigest, Scratch, Subject, assert_digests_equal, is_mount_point, is_running,
    mount_points_beneath, require_root, rounds, rovl_bin, run, sh, signal, subject, tree_digest,
    wait_until, within,
};

/// A storage of podman's form: `ID/{diff,work,merged,empty}`.
struct Storage {
    scratch: Scratch,
}

/// Two layers, the second one with a little of each kind of thing.
const TREE: &str = "
    mkdir -p base/diff/{plain/sub/deep,changed/in,linked,names,gone,moved/in} top/diff/{plain,upper}
    echo f >base/diff/plain/f; echo d >base/diff/plain/sub/deep/d; echo top >top/diff/plain/top
    echo c >base/diff/changed/c; echo i >base/diff/changed/in/i; echo same >base/diff/changed/in/same
    echo l >base/diff/linked/one; ln base/diff/linked/one base/diff/names/two; echo s >base/diff/names/single
    echo g >base/diff/gone/g; echo m >base/diff/moved/m; echo n >base/diff/moved/in/n; ln -s c base/diff/changed/link
    echo u >top/diff/upper/u; rm -rf base/diff/empty
    find . -exec touch -h -d @1700000000 {} +";

impl Storage {
    fn new() -> Storage {
        require_root();
        let scratch = Scratch::new();
        for id in ["base", "top", "one", "two"] {
            for dir in ["diff", "work", "merged", "empty"] {
                fs::create_dir_all(scratch.join(id).join(dir)).unwrap();
            }
        }
        sh(scratch.path(), TREE);
        Storage { scratch }
    }

    fn dir(&self, id: &str, dir: &str) -> PathBuf {
        self.scratch.join(id).join(dir)
    }

    fn merged(&self, id: &str) -> PathBuf {
        self.dir(id, "merged")
    }

    fn lowerdir(&self, ids: &[&str]) -> OsString {
        let dirs: Vec<String> = ids
            .iter()
            .map(|id| self.dir(id, "diff").display().to_string())
            .collect();
        format!("lowerdir={}", dirs.join(":")).into()
    }

    fn command(&self, id: &str, options: OsString, more: &str) -> Command {
        let mut options = options;
        options.push(more);
        let mut command = Command::new(rovl_bin());
        command.arg("-o").arg(options).arg(self.merged(id));
        command.current_dir(self.scratch.path());
        command
    }

    /// The container `id` on both layers.
    fn mount(&self, id: &str, more: &str) {
        let mut options = self.lowerdir(&["top", "base"]);
        let [upper, work] = ["diff", "work"].map(|dir| self.dir(id, dir).display().to_string());
        options.push(format!(",upperdir={upper},workdir={work},,volatile"));
        succeeded(self.command(id, options, more).output().unwrap());
    }

    /// What is beneath it, at `top/merged`.
    fn mount_parent(&self, more: &str) {
        let options = self.lowerdir(&["top", "base"]);
        succeeded(self.command("top", options, more).output().unwrap());
    }

    fn unmount(&self, id: &str) {
        run("fusermount3", &["-u", self.merged(id).to_str().unwrap()]);
    }

    /// The process that serves it.
    fn daemon(&self, id: &str) -> u32 {
        let merged = self.merged(id);
        let stat = run(
            rovl_bin().to_str().unwrap(),
            &["stat", "--json", merged.to_str().unwrap()],
        );
        let stat: serde_json::Value = serde_json::from_slice(&stat.stdout).unwrap();
        u32::try_from(stat["pid"].as_u64().unwrap()).unwrap()
    }

    fn is_beside(&self, id: &str) -> bool {
        device(&self.merged(id)) == device(&self.merged("top"))
    }

    /// Compares the container `one` with its parent, as podman would; every difference must be among what the walk
    /// does not leave out.
    fn compare(&self) -> BTreeSet<PathBuf> {
        let walk = Walk::of(&self.merged("one"), &self.merged("top"));
        let (whole, parent) = (
            tree_digest(&self.merged("one")),
            tree_digest(&self.merged("top")),
        );
        for path in differing(&whole, &parent) {
            assert!(walk.contains(&path), "{} was left out", path.display());
        }
        walk
    }
}

fn succeeded(output: Output) {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn device(path: &Path) -> u64 {
    fs::metadata(path).unwrap().dev()
}

/// The paths that two trees show differently, without the roots.
fn differing(
    a: &BTreeMap<PathBuf, EntryDigest>,
    b: &BTreeMap<PathBuf, EntryDigest>,
) -> Vec<PathBuf> {
    let paths: BTreeSet<&PathBuf> = a.keys().chain(b.keys()).collect();
    // How many names something has is nothing that a layer could tell.
    let of = |tree: &BTreeMap<PathBuf, EntryDigest>, path: &PathBuf| {
        let entry = tree.get(path).cloned();
        entry.map(|entry| EntryDigest {
            nlink: 0,
            linked_to: None,
            ..entry
        })
    };
    let differ = |path: &&PathBuf| *path != Path::new(".") && of(a, path) != of(b, path);
    let plain = |path: &PathBuf| path.strip_prefix("./").unwrap_or(path).to_owned();
    paths.into_iter().filter(differ).map(plain).collect()
}

/// What a walk of two trees looks at: `collectFileInfoForChanges`.
struct Walk {
    looked_at: BTreeSet<PathBuf>,
}

impl Walk {
    fn of(whole: &Path, parent: &Path) -> BTreeSet<PathBuf> {
        let mut walk = Walk {
            looked_at: BTreeSet::new(),
        };
        walk.visit(whole, parent, Path::new(""));
        walk.looked_at
    }

    fn visit(&mut self, whole: &Path, parent: &Path, at: &Path) {
        let dirs = [whole.join(at), parent.join(at)];
        let metadata = dirs.each_ref().map(|dir| fs::symlink_metadata(dir).ok());
        let listed = |n: usize| match &metadata[n] {
            Some(known) if known.is_dir() => numbers(&dirs[n]),
            _ => BTreeMap::new(),
        };
        let (first, second) = (listed(0), listed(1));
        let same_device = match &metadata {
            [Some(a), Some(b)] => a.dev() == b.dev(),
            _ => false,
        };
        let names: BTreeSet<&OsString> = first.keys().chain(second.keys()).collect();
        for name in names {
            if same_device && first.contains_key(name) && first.get(name) == second.get(name) {
                continue;
            }
            let path = at.join(name);
            self.looked_at.insert(path.clone());
            self.visit(whole, parent, &path);
        }
    }
}

/// Names and `d_ino`.
fn numbers(dir: &Path) -> BTreeMap<OsString, u64> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name(), entry.ino()))
        .collect()
}

fn other_subject() -> bool {
    require_root();
    subject() != Subject::Rovl
}

#[test]
fn what_is_the_same_is_left_out_and_costs_no_daemon() {
    if other_subject() {
        return;
    }
    let storage = Storage::new();
    storage.mount("one", "");
    sh(
        &storage.merged("one"),
        "echo new >changed/new; echo x >>changed/in/i; rm -r gone",
    );
    storage.mount_parent("");
    assert!(storage.is_beside("one"));
    let walk = storage.compare();
    let expected = [
        "changed",
        "changed/in",
        "changed/in/i",
        "changed/new",
        "gone",
        "gone/g",
        "linked",
        "names",
    ];
    // Of the hard link, each name is looked at, and so is what leads there.
    let links = ["linked/one", "names/two"];
    for path in walk.iter().map(|path| path.to_str().unwrap()) {
        assert!(
            expected.contains(&path) || links.contains(&path),
            "{path} was looked at"
        );
    }
    // Numbers are those of stat(2), too.
    for id in ["one", "top"] {
        for dir in ["plain", "changed", "changed/in"] {
            for (name, number) in numbers(&storage.merged(id).join(dir)) {
                let stat = fs::symlink_metadata(storage.merged(id).join(dir).join(&name)).unwrap();
                assert_eq!(stat.ino(), number, "{id}: {dir}/{}", name.display());
            }
        }
    }
    let parent = storage.merged("top");
    let refused = fs::write(parent.join("plain/f"), "no").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(30), "{refused}");
    assert!(!parent.join("changed/new").exists());
    assert_eq!(
        fs::read_to_string(parent.join("changed/in/i")).unwrap(),
        "i\n"
    );
    assert_eq!(sh(&parent, "pwd").trim(), parent.to_str().unwrap());
}

/// Each in a container of its own; where nothing is said, on the tree of both layers.
const CHANGES: [&str; 33] = [
    "echo more >>plain/f",
    ": >plain/f",
    "truncate -s 1 plain/sub/deep/d",
    "chmod 600 plain/f",
    "chmod 700 plain/sub",
    "chown 5:5 changed/in/i",
    "chown -h 5:5 changed/link",
    "chown -R 7:7 plain",
    "touch -d @1 changed/c",
    "touch -d @1 plain/sub/deep",
    "setfattr -n user.a -v b plain/f",
    "setfacl -m u:5:r plain/f",
    "setfacl -d -m u:5:r plain/sub",
    "chattr +i plain/f",
    "echo new >plain/sub/deep/new",
    "mkdir -p plain/new/er",
    "mkfifo plain/fifo",
    "ln -s x plain/link",
    "ln plain/f plain/again",
    "ln plain/f upper/again; rm plain/f",
    "rm plain/f",
    "rm -r plain",
    "rm -r plain; mkdir plain",
    "rm -r moved; mkdir moved; echo m >moved/m",
    "rm -r moved; echo file >moved",
    "rm upper/u; mkdir upper/u",
    "mv plain/f plain/g",
    "mv moved renamed",
    "mv moved/in plain/in; mkdir moved/in; echo n >moved/in/n",
    "mv changed other; mv moved changed",
    "echo through >>linked/one",
    "rm linked/one; echo through >>names/two",
    "cp plain/f changed/c; cp --preserve=timestamps changed/in/same changed/in/i",
];

#[test]
fn no_change_is_left_out() {
    if other_subject() {
        return;
    }
    for change in CHANGES {
        let storage = Storage::new();
        let untouched = "touch -d @1 names";
        // Made before the parent is mounted.
        storage.mount("one", "");
        sh(&storage.merged("one"), change);
        storage.mount_parent("");
        assert!(storage.is_beside("one"), "{change}");
        storage.compare();
        storage.unmount("one");
        storage.unmount("top");
        // Made while it is mounted, and after everything was looked at; and looked at again by those who are there,
        // and by who comes anew.
        storage.mount("two", "");
        storage.unmount("two");
        fs::remove_dir_all(storage.dir("one", "diff")).unwrap();
        fs::remove_dir_all(storage.dir("one", "work")).unwrap();
        fs::create_dir(storage.dir("one", "diff")).unwrap();
        fs::create_dir(storage.dir("one", "work")).unwrap();
        storage.mount("one", "");
        storage.mount_parent("");
        let before = tree_digest(&storage.merged("top"));
        assert!(!storage.compare().contains(Path::new("plain")), "{change}");
        sh(&storage.merged("one"), change);
        storage.compare();
        sh(&storage.merged("one"), untouched);
        storage.compare();
        storage.unmount("top");
        storage.mount_parent("");
        assert!(storage.is_beside("one"), "{change}");
        let walk = storage.compare();
        assert!(!walk.contains(Path::new("plain/top/x")) && walk.contains(Path::new("names")));
        assert_digests_equal(&before, &tree_digest(&storage.merged("top")), change);
    }
}

/// What is written to a mapping reaches the daemon when the mapping goes, at the latest.
#[test]
fn stores_to_a_mapping_are_not_left_out() {
    if other_subject() {
        return;
    }
    let storage = Storage::new();
    storage.mount("one", "");
    storage.mount_parent("");
    storage.compare();
    let program = "import mmap\nf = open('plain/sub/deep/d', 'r+b')\nm = mmap.mmap(f.fileno(), 0)\nm[0:1] = b'X'\n";
    let done = Command::new("python3")
        .args(["-c", program])
        .current_dir(storage.merged("one"))
        .output()
        .unwrap();
    succeeded(done);
    assert_eq!(
        fs::read_to_string(storage.merged("one").join("plain/sub/deep/d")).unwrap(),
        "X\n"
    );
    assert!(storage.compare().contains(Path::new("plain/sub/deep/d")));
}

#[test]
fn no_change_of_a_random_sequence_is_left_out() {
    if other_subject() {
        return;
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % bound as u64).unwrap()
    };
    for round in 0..rounds(12) {
        let storage = Storage::new();
        storage.mount("one", "");
        let mut mounted = false;
        for step in 0..24 {
            match next(8) {
                0 if mounted => storage.unmount("top"),
                0 => storage.mount_parent(""),
                1 | 2 if mounted => drop(storage.compare()),
                _ => {
                    // Some of them fail, on what others have left.
                    let script = CHANGES[next(CHANGES.len())];
                    let mut shell = Command::new("bash");
                    shell
                        .args(["-c", script])
                        .current_dir(storage.merged("one"));
                    shell.stderr(Stdio::null()).status().unwrap();
                }
            }
            mounted = is_mount_point(&storage.merged("top"));
            assert!(storage.merged("one").exists(), "round {round}, step {step}");
        }
        if !mounted {
            storage.mount_parent("");
        }
        storage.compare();
        sh(
            &storage.merged("one"),
            "find . -exec chattr -i {} + 2>/dev/null || true",
        );
    }
}

/// What podman mounts for a container that does not run: its layer on top, read-only; and one layer alone with an empty
/// one beneath.
#[test]
fn layers_of_what_is_not_written_to_are_compared_too() {
    if other_subject() {
        return;
    }
    let storage = Storage::new();
    storage.mount("one", "");
    sh(
        &storage.merged("one"),
        "rm -r gone; mkdir gone; mv moved renamed; echo x >>linked/one; touch -d @1 upper",
    );
    storage.unmount("one");
    let whole = storage.lowerdir(&["one", "top", "base"]);
    succeeded(storage.command("one", whole, "").output().unwrap());
    storage.mount_parent("");
    assert!(storage.is_beside("one"));
    let walk = storage.compare();
    assert!(!walk.contains(Path::new("plain")) && walk.contains(Path::new("gone")));
    storage.unmount("top");
    storage.unmount("one");

    let top = storage.lowerdir(&["top", "base"]);
    succeeded(storage.command("one", top, "").output().unwrap());
    let mut base = storage.lowerdir(&["base"]);
    base.push(format!(":{}", storage.dir("base", "empty").display()));
    // At the same place, for `compare`.
    succeeded(storage.command("top", base, "").output().unwrap());
    assert!(storage.is_beside("one"));
    let walk = storage.compare();
    assert!(walk.contains(Path::new("upper/u")) && !walk.contains(Path::new("changed")));
}

#[test]
fn either_may_be_unmounted_first_and_the_daemon_ends_with_the_last() {
    if other_subject() {
        return;
    }
    let storage = Storage::new();
    let daemon = |id: &str| storage.daemon(id);
    let gone = |pid: u32| wait_until(Duration::from_secs(10), || !is_running(pid));
    for unmount in ["fusermount3 -u", "umount", "umount -l", "$ROVL umount"] {
        for order in [["one", "top"], ["top", "one"]] {
            storage.mount("one", "");
            storage.mount_parent("");
            let pid = daemon("one");
            assert_eq!(daemon("top"), pid);
            let script = |id: &str| {
                let unmount = unmount.replace("$ROVL", rovl_bin().to_str().unwrap());
                format!("{unmount} {}", storage.merged(id).display())
            };
            let begin = Instant::now();
            sh(Path::new("/"), &script(order[0]));
            assert!(is_running(pid));
            assert!(!is_mount_point(&storage.merged(order[0])));
            let left = storage.merged(order[1]).join("plain/f");
            assert_eq!(fs::read_to_string(left).unwrap(), "f\n");
            sh(Path::new("/"), &script(order[1]));
            assert!(gone(pid), "{unmount}, {order:?}");
            assert!(
                begin.elapsed() < Duration::from_secs(10),
                "{unmount}, {order:?}"
            );
        }
    }
    // The container again while its parent is still there: a daemon of its own.
    storage.mount("one", "");
    storage.mount_parent("");
    let first = daemon("one");
    storage.unmount("one");
    storage.mount("one", "");
    assert_ne!(daemon("one"), first);
    assert!(!storage.is_beside("one"));
    fs::write(storage.merged("one").join("plain/f"), "again").unwrap();
    storage.compare();
    storage.unmount("top");
    assert!(gone(first));
    assert_eq!(
        fs::read_to_string(storage.merged("one").join("plain/f")).unwrap(),
        "again"
    );
    // A signal takes both away.
    let pid = daemon("one");
    storage.mount_parent("");
    signal(pid, Signal::TERM);
    assert!(gone(pid));
    assert_eq!(
        mount_points_beneath(storage.scratch.path()),
        [] as [PathBuf; 0]
    );
}

#[test]
fn only_what_would_show_the_same_is_served_beside_another() {
    if other_subject() {
        return;
    }
    // Of the container, and of the parent.
    let apart = [
        (",squash_to_uid=5", ""),
        ("", ",squash_to_uid=5"),
        ("", ",xattr_permissions=2"),
        ("", ",noxattrs"),
        (",writeback=on", ""),
        (",passthrough=on", ""),
        ("", ",passthrough=on"),
        (",ino32_t", ",ino32_t"),
        ("", ",timeout=1"),
    ];
    for (whole, parent) in apart {
        let storage = Storage::new();
        storage.mount("one", whole);
        storage.mount_parent(parent);
        assert!(!storage.is_beside("one"), "{whole} and {parent}");
    }
    let storage = Storage::new();
    storage.mount("one", ",squash_to_uid=5");
    storage.mount_parent(",squash_to_uid=5");
    assert!(storage.is_beside("one"));
    storage.unmount("top");
    let base = storage.lowerdir(&["base"]);
    succeeded(
        storage
            .command("top", base, ",squash_to_uid=5")
            .output()
            .unwrap(),
    );
    assert!(!storage.is_beside("one"), "other layers");

    // The command line that is not an engine's.
    let storage = Storage::new();
    storage.mount("one", "");
    let [top, base, merged] = [
        storage.dir("top", "diff"),
        storage.dir("base", "diff"),
        storage.merged("top"),
    ];
    let lower = format!("{}:{}", top.display(), base.display());
    run(
        rovl_bin().to_str().unwrap(),
        &["mount", "--lower", &lower, merged.to_str().unwrap()],
    );
    assert!(!storage.is_beside("one"));
}

/// A stopped process, which goes on in the end.
struct GoesOn(u32);

impl Drop for GoesOn {
    fn drop(&mut self) {
        if is_running(self.0) {
            signal(self.0, Signal::CONT);
        }
    }
}

/// Have all threads stopped? They do so one after the other, and one that has not may still answer.
fn is_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut stats = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("stat")));
    stats.all(|stat| {
        stat.is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        })
    })
}

#[test]
fn a_daemon_that_hangs_is_waited_for_in_vain_but_not_for_long() {
    if other_subject() {
        return;
    }
    let storage = Storage::new();
    storage.mount("one", "");
    let pid = storage.daemon("one");
    signal(pid, Signal::STOP);
    // Whatever fails from here on, it is not left stopped.
    let _goes_on = GoesOn(pid);
    assert!(wait_until(Duration::from_secs(10), || is_stopped(pid)));
    let begin = Instant::now();
    storage.mount_parent("");
    let took = begin.elapsed();
    // From its own daemon: nobody would answer otherwise.
    let file = storage.merged("top").join("plain/f");
    let shown = within(Duration::from_secs(10), "reading", move || {
        fs::read_to_string(file)
    });
    assert_eq!(shown.unwrap(), "f\n");
    signal(pid, Signal::CONT);
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(!storage.is_beside("one"));
    // Nothing came late.
    let mounts = mount_points_beneath(storage.scratch.path());
    assert_eq!(mounts.len(), 2, "{mounts:?}");
}

#[test]
fn the_way_there_is_not_listed_and_not_made_and_nothing_crosses() {
    if other_subject() {
        return;
    }
    let storage = Storage::new();
    storage.mount("one", "");
    storage.mount_parent("");
    let (whole, parent) = (storage.merged("one"), storage.merged("top"));
    assert!(
        numbers(&whole)
            .keys()
            .all(|name| !name.as_encoded_bytes().starts_with(b".wh."))
    );
    assert!(fs::symlink_metadata(whole.join(".wh..rovl.0123")).is_err());
    assert!(fs::create_dir(whole.join(".wh..rovl.0123")).is_err());
    let crossed = fs::rename(parent.join("plain/f"), whole.join("f")).unwrap_err();
    assert_eq!(crossed.raw_os_error(), Some(18), "{crossed}");
    let crossed = fs::hard_link(parent.join("plain/f"), whole.join("f")).unwrap_err();
    assert_eq!(crossed.raw_os_error(), Some(18), "{crossed}");
    // copy_file_range(2), where the kernel asks the daemon.
    assert_eq!(
        fs::copy(parent.join("plain/f"), whole.join("copy")).unwrap(),
        2
    );
    assert_eq!(fs::read_to_string(whole.join("copy")).unwrap(), "f\n");
    // Many times over: one tree, whose nodes are given back.
    for _ in 0..20 {
        storage.unmount("top");
        storage.mount_parent("");
        storage.compare();
    }
}
