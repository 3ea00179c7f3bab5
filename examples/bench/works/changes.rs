//! What changes the tree: making, removing, renaming, copying up.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::contents::size;
use crate::data::{Scale, Set, Volume};
use crate::exec;
use crate::model::{Goal, Unit};
use crate::native::{Names, count};
use crate::render::thousands;
use crate::work::{Run, Session, Taken, Work, command_in, ended};

pub fn works(scale: &Scale) -> Vec<Work> {
    let mut works = own_names();
    works.extend(removals());
    works.extend(by_size_of_directory(scale));
    works.extend(directories());
    works.extend(archived_trees(scale));
    works.extend(source_trees(scale));
    works.extend(copy_ups(scale));
    works
}

/// Names in a directory of the mount.
fn names(session: &Session<'_>, dir: &str, prefix: &str) -> Result<Names> {
    let names = (0..session.scale.names).map(|i| format!("{dir}/{prefix}{i}"));
    Names::given(&session.mount.root, names)
}

/// Made, for something that happens to them later.
fn made(session: &Session<'_>, dir: &str, prefix: &str) -> Result<Names> {
    let names = names(session, dir, prefix)?;
    for i in 0..session.scale.names {
        names.create(i, b"")?;
    }
    Ok(names)
}

/// Checks how many entries a directory has after the clock has stopped.
fn holds(
    session: &Session<'_>,
    taken: Taken,
    dir: &str,
    entries: impl Fn(u64) -> u64,
) -> Result<Taken> {
    let found = count(&session.mount.root.join(dir))?.entries;
    let expected = entries(taken.operations);
    ensure!(
        found == expected,
        "{found} entries instead of {expected} after {}",
        taken.operations
    );
    Ok(taken)
}

fn own_names() -> Vec<Work> {
    let goals = [Goal::kernel(3.0), Goal::peer(0.5)];
    let create = |data: &'static [u8]| {
        move |s: &Session<'_>| {
            s.mount.new_dir("new")?;
            let names = names(s, "new", "f")?;
            let taken = s.counted(s.scale.names, |i| names.create(i, data))?;
            holds(s, taken, "new", |done| done)
        }
    };
    static DATA: [u8; 4096] = [0x61; 4096];
    vec![
        Work::new(
            "create-write",
            "create + write 4 KiB + close",
            Unit::Micros,
            Set::Empty,
            create(&DATA),
        )
        .per("file")
        .goals(&goals),
        Work::new(
            "create",
            "create + close",
            Unit::Micros,
            Set::Empty,
            create(b""),
        )
        .per("file"),
        Work::new("mkdir", "mkdir", Unit::Micros, Set::Empty, |s| {
            s.mount.new_dir("new")?;
            let names = names(s, "new", "d")?;
            let taken = s.counted(s.scale.names, |i| names.mkdir(i))?;
            holds(s, taken, "new", |done| done)
        })
        .per("directory")
        .goals(&goals),
    ]
}

fn removals() -> Vec<Work> {
    let goals = [Goal::kernel(3.0), Goal::peer(0.5)];
    vec![
        Work::new(
            "unlink-upper",
            "unlink of a file in upper",
            Unit::Micros,
            Set::Empty,
            |s| {
                s.mount.new_dir("new")?;
                let names = made(s, "new", "f")?;
                let taken = s.counted(s.scale.names, |i| names.unlink(i))?;
                holds(s, taken, "new", |done| s.scale.names - done)
            },
        )
        .per("file")
        .goals(&goals),
        Work::new(
            "unlink-lower",
            "unlink of a file in a lower",
            Unit::Micros,
            Set::Micro,
            |s| {
                s.mount.changing("remove")?;
                let names = Names::listed(&s.mount.root, "remove")?.expect(2000)?;
                let taken = s.counted(names.len(), |i| names.unlink(i))?;
                holds(s, taken, "remove", |done| 2000 - done)
            },
        )
        .per("file")
        .goals(&goals),
        Work::new(
            "rename",
            "rename of a file in upper",
            Unit::Micros,
            Set::Empty,
            |s| {
                s.mount.new_dir("new")?;
                s.mount.new_dir("other")?;
                let from = made(s, "new", "f")?;
                let to = names(s, "other", "g")?;
                let taken = s.counted(s.scale.names, |i| from.rename(i, &to))?;
                holds(s, taken, "other", |done| done)
            },
        )
        .per("file")
        .goals(&goals),
    ]
}

/// New names: few, otherwise the small directory would not stay small.
const FEW: u64 = 500;

/// A lower directory that was copied up, with some of its own, and names that it does not have.
fn new_names(session: &Session<'_>, dir: &str) -> Result<Names> {
    session.mount.changing(dir)?;
    // The first change copies the directory up.
    fs::write(session.mount.root.join(dir).join("first"), "")?;
    let names = (0..FEW).map(|i| format!("{dir}/new-name-{i}"));
    Names::given(&session.mount.root, names)
}

/// Names that the mount does not know yet, but whose directory it does.
fn unknown_names(session: &Session<'_>, dir: &str, entries: u64) -> Result<Names> {
    let root = session.mount.read_root();
    fs::metadata(root.join(dir).join("f0"))?;
    // 9 names are what the small directory has left.
    let step = (entries / 10).max(1);
    let names = (1..10).map(|i| format!("{dir}/f{}", i * step));
    Names::given(root, names)
}

/// The same in a lower directory with few and with many entries.
fn by_size_of_directory(scale: &Scale) -> Vec<Work> {
    /// A ratio of two measurements of the same thing is not exactly 1.
    const SAME: f64 = 1.2;
    let mut works = Vec::new();
    for (dir, entries) in [("ten", 10), ("large", scale.large as u64)] {
        let work = |what: &str, run: Run| {
            let (id, small) = (format!("{what}-in-{dir}"), format!("{what}-in-ten"));
            let first = if what == "lookup" { "first " } else { "" };
            let title = format!(
                "{first}{what} in a directory of {}",
                thousands(entries as f64)
            );
            let same = (dir == "large").then(|| Goal::row(&small, SAME));
            let same: Vec<Goal> = same.into_iter().collect();
            Work::new(&id, title, Unit::Micros, Set::Dirs, run)
                .per("name")
                .goals(&same)
        };
        let create: Run = Box::new(move |s| {
            let names = new_names(s, dir)?;
            let taken = s.counted(FEW, |i| names.create(i, b""))?;
            holds(s, taken, dir, |done| entries + 1 + done)
        });
        let unlink: Run = Box::new(move |s| {
            let names = new_names(s, dir)?;
            (0..FEW).try_for_each(|i| names.create(i, b""))?;
            let taken = s.counted(FEW, |i| names.unlink(i))?;
            holds(s, taken, dir, |done| entries + 1 + FEW - done)
        });
        let lookup: Run = Box::new(move |s| {
            let names = unknown_names(s, dir, entries)?;
            s.once(names.len(), || names.stat_all())
        });
        works.extend([
            work("create", create),
            work("unlink", unlink),
            work("lookup", lookup),
        ]);
    }
    works
}

fn directories() -> Vec<Work> {
    let rename = |session: &Session<'_>, from: &Names, to: &str| -> Result<Taken> {
        session.mount.new_dir(to)?;
        let target = (0..from.len()).map(|i| format!("{to}/d{i}"));
        let target = Names::given(&session.mount.root, target)?;
        let taken = session.counted(from.len(), |i| from.rename(i, &target))?;
        holds_dirs(session, taken, to)
    };
    vec![
        Work::new(
            "rename-dir-upper",
            "rename of a directory in upper",
            Unit::Micros,
            Set::Empty,
            move |s| {
                s.mount.new_dir("new")?;
                let from = Names::given(
                    &s.mount.root,
                    (0..s.scale.names).map(|i| format!("new/d{i}")),
                )?;
                (0..from.len()).try_for_each(|i| from.mkdir(i))?;
                rename(s, &from, "other")
            },
        )
        .per("directory"),
        Work::new(
            "rename-dir-lower",
            "rename of a directory in lowers",
            Unit::Micros,
            Set::Walk,
            move |s| {
                // Some of its directories: of the bare file system's copy too.
                s.mount.changing("walk")?;
                let from = Names::listed(&s.mount.root, "walk/a0")?;
                rename(s, &from, "other")
            },
        )
        .per("directory"),
    ]
}

fn holds_dirs(session: &Session<'_>, taken: Taken, dir: &str) -> Result<Taken> {
    let found = fs::read_dir(session.mount.root.join(dir))?.count() as u64;
    ensure!(
        found == taken.operations,
        "{found} directories instead of {}",
        taken.operations
    );
    Ok(taken)
}

fn gone(path: &Path) -> Result<()> {
    ensure!(
        fs::symlink_metadata(path).is_err(),
        "{} is still there",
        path.display()
    );
    Ok(())
}

fn unpack(session: &Session<'_>) -> std::process::Command {
    let archive = session.mount.layers.dir.join("archive.tar");
    let mut tar = command_in(&session.mount.root, &["tar", "-xf"]);
    tar.arg(archive);
    tar
}

/// A tree that comes out of an archive.
fn archived_trees(scale: &Scale) -> Vec<Work> {
    let goals = [Goal::kernel(2.5), Goal::peer(0.4)];
    let archived = scale.archive as u64;
    let files = thousands(archived as f64);
    let same_count = |s: &Session<'_>, path: &str, expected: u64| -> Result<()> {
        let found = count(&s.mount.root.join(path))?.files;
        ensure!(found == expected, "{found} files instead of {expected}");
        Ok(())
    };
    vec![
        Work::new(
            "untar",
            format!("untar of {} files", files),
            Unit::Seconds,
            Set::Tree,
            move |s| {
                let taken = s.program(archived, || unpack(s), |done| ended(done, 0))?;
                same_count(s, "files", archived)?;
                Ok(taken)
            },
        )
        .per("file")
        .goals(&goals),
        Work::new(
            "rm-upper",
            format!("rm -rf of {} files in upper", files),
            Unit::Seconds,
            Set::Tree,
            move |s| {
                exec::succeed(&mut unpack(s))?;
                same_count(s, "files", archived)?;
                let rm = || command_in(&s.mount.root, &["rm", "-rf", "files"]);
                let taken = s.program(archived, rm, |done| ended(done, 0))?;
                gone(&s.mount.root.join("files"))?;
                Ok(taken)
            },
        )
        .per("file")
        .goals(&goals),
    ]
}

/// Files of the source tree, those of git among them.
fn files_of_tree(session: &Session<'_>) -> Result<u64> {
    Ok(count(&session.mount.layers.merged.join("tree"))?.files)
}

/// What happens to a tree that lowers have.
fn source_trees(scale: &Scale) -> Vec<Work> {
    let goals = [Goal::kernel(2.5), Goal::peer(0.4)];
    let files = thousands(scale.tree as f64);
    vec![
        Work::new(
            "rm-lower",
            format!("rm -rf of {} files in lowers", files),
            Unit::Seconds,
            Set::Tree,
            move |s| {
                s.mount.changing("tree")?;
                let rm = || command_in(&s.mount.root, &["rm", "-rf", "tree"]);
                let taken = s.program(files_of_tree(s)?, rm, |done| ended(done, 0))?;
                gone(&s.mount.root.join("tree"))?;
                Ok(taken)
            },
        )
        .per("file")
        .goals(&goals),
        Work::new(
            "cp",
            format!("cp -a of {} files", files),
            Unit::Seconds,
            Set::Tree,
            move |s| {
                let source = s.reading("tree");
                let mut words = vec!["cp".into(), "-a".into(), "--reflink=never".into()];
                words.extend([source.into_os_string(), "copy".into()]);
                let cp = || command_in(&s.mount.root, &words);
                let taken = s.program(files_of_tree(s)?, cp, |done| ended(done, 0))?;
                let original = count(&s.mount.layers.merged.join("tree"))?;
                let copy = count(&s.mount.root.join("copy"))?;
                ensure!(
                    copy.files == original.files,
                    "{copy:?} instead of {original:?}"
                );
                Ok(taken)
            },
        )
        .per("file"),
        Work::new(
            "chown",
            format!("chown -R of {} files in lowers", files),
            Unit::Seconds,
            Set::Tree,
            move |s| {
                s.mount.changing("tree")?;
                let chown = || command_in(&s.mount.root, &["chown", "-R", "1234:1234", "tree"]);
                let taken = s.program(files_of_tree(s)?, chown, |done| ended(done, 0))?;
                let first = "tree/a0/b0/file0.c";
                let owner = fs::metadata(s.mount.root.join(first))?.uid();
                ensure!(owner == 1234, "{first} is still of {owner}");
                Ok(taken)
            },
        )
        .per("file"),
    ]
}

/// Writing a byte to files in a lower, each synced.
fn copy_ups(scale: &Scale) -> Vec<Work> {
    let (small, mid) = scale.copies;
    let mut works = Vec::new();
    for (volume, fs) in [(Volume::Ext4, "ext4"), (Volume::Xfs, "XFS")] {
        for (dir, files, bytes) in [("small", small, 4096), ("mid", mid, 1 << 20)] {
            let id = format!("copy-up-{dir}-{}", fs.to_lowercase());
            let title = format!("copy-up of {} + fsync, {fs}", size(bytes));
            works.push(
                Work::new(&id, title, Unit::Millis, Set::Copy, move |s| {
                    s.mount.changing(dir)?;
                    let names = Names::listed(&s.mount.root, dir)?.expect(files)?;
                    let taken = s.counted(names.len(), |i| names.touch_byte(i))?;
                    copied_up(s, dir, bytes, taken)
                })
                .per("file")
                .on(volume),
            );
        }
        let goals = if fs == "XFS" {
            [Goal::kernel(1.2), Goal::peer(0.1)]
        } else {
            [Goal::kernel(1.1), Goal::peer(0.8)]
        };
        let (id, bytes) = (format!("copy-up-big-{}", fs.to_lowercase()), scale.big);
        let title = format!("copy-up of {} + fsync, {fs}", size(bytes));
        works.push(
            Work::new(&id, title, Unit::Seconds, Set::Copy, move |s| big(s, bytes))
                .per("file")
                .on(volume)
                .goals(&goals),
        );
    }
    works
}

/// Checks that so many files are in upper, whole, and that the lower files are as they were.
fn copied_up(session: &Session<'_>, dir: &str, bytes: u64, taken: Taken) -> Result<Taken> {
    let place = if session.mount.is_bare() {
        &session.mount.root
    } else {
        &session.mount.upper
    };
    let entries = fs::read_dir(place.join(dir))?.collect::<Result<Vec<_>, _>>()?;
    for entry in &entries {
        let len = entry.metadata()?.len();
        ensure!(len == bytes, "{} bytes instead of {bytes} in upper", len);
    }
    let found = entries.len() as u64;
    let enough =
        found == taken.operations || (session.mount.is_bare() && found >= taken.operations);
    ensure!(
        enough,
        "{found} files in upper instead of {}",
        taken.operations
    );
    Ok(taken)
}

fn big(session: &Session<'_>, bytes: u64) -> Result<Taken> {
    let root = &session.mount.root;
    if session.mount.is_bare() {
        // What a copy-up does, by hand.
        let source = session.mount.layers.merged.join("big");
        let mut cp = exec::command(&["cp", "--reflink=auto"]);
        cp.args([&source, &root.join("big")]);
        return session.once(1, || {
            exec::succeed(&mut cp)?;
            Names::given(root, ["big".to_owned()])?.touch_byte(0)
        });
    }
    let names = Names::given(root, ["big".to_owned()])?;
    let lower = session
        .mount
        .layers
        .lowers
        .last()
        .context("no layers")?
        .join("big");
    let before = fs::metadata(&lower)?;
    let taken = session.once(1, || names.touch_byte(0))?;
    let after = fs::metadata(&lower)?;
    ensure!(
        before.modified()? == after.modified()?,
        "the lower file was written"
    );
    let len = fs::metadata(session.mount.upper.join("big"))?.len();
    ensure!(len == bytes, "{len} bytes instead of {bytes} in upper");
    Ok(taken)
}
