//! Programs that read whole trees: find, grep, git, tar.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::data::{NEEDLE, Scale, Set};
use crate::exec::{self, Done};
use crate::model::{Goal, Unit};
use crate::native;
use crate::render::thousands;
use crate::work::{Session, Taken, Work, command_in, drop_caches, ended, wrote_lines};

/// How warm things are.
#[derive(Clone, Copy, PartialEq)]
enum Caches {
    /// The mount has done it before.
    Warm,
    /// The mount is new, the layers' files are in memory.
    Layers,
    /// Nothing is in memory.
    Cold,
}

impl Caches {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Caches::Warm => ("warm", "warm"),
            Caches::Layers => ("first", "first walk of a fresh mount, layers' caches warm"),
            Caches::Cold => ("cold", "first walk of a fresh mount, everything cold"),
        }
    }
}

/// Has the layers' (or the bare tree's) names and attributes in memory.
pub fn warm_layers(session: &Session<'_>) -> Result<()> {
    if session.mount.is_bare() {
        native::count(session.mount.read_root())?;
        return Ok(());
    }
    for lower in &session.mount.layers.lowers {
        native::count(lower)?;
    }
    Ok(())
}

/// Runs a program that reads.
fn reading(
    session: &Session<'_>,
    caches: Caches,
    operations: u64,
    command: impl FnMut() -> Command,
    verify: impl Fn(&Done) -> Result<()>,
) -> Result<Taken> {
    match caches {
        Caches::Warm => return session.warm_program(operations, command, verify),
        Caches::Layers => warm_layers(session)?,
        Caches::Cold => drop_caches(session)?,
    }
    session.program(operations, command, verify)
}

pub fn works(scale: &Scale) -> Vec<Work> {
    let warm = [Goal::kernel(1.2), Goal::peer(0.5)];
    let cold = [Goal::kernel(1.5), Goal::peer(0.5)];
    let mut works = finds(scale, &warm);
    let files = thousands(scale.tree as f64);
    let needles = scale.tree.div_ceil(100) as u64;
    let entries = scale.tree as u64;
    for caches in [Caches::Warm, Caches::Cold] {
        let (id, _) = caches.words();
        let is_warm = caches == Caches::Warm;
        works.push(
            Work::new(
                &format!("grep-{id}"),
                format!("grep -r in {files} files, {id}"),
                Unit::Seconds,
                Set::Tree,
                move |s| {
                    let words = ["grep", "-rF", "--exclude-dir=.git", NEEDLE, "tree"];
                    let command = || command_in(s.mount.read_root(), &words);
                    reading(s, caches, entries, command, |done| {
                        wrote_lines(done, needles)
                    })
                },
            )
            .per("file")
            .goals(if is_warm { &warm } else { &[] }),
        );
        works.push(
            Work::new(
                &format!("git-status-{id}"),
                format!("git status in {files} files, {id}"),
                Unit::Seconds,
                Set::Tree,
                move |s| git_status(s, caches, entries),
            )
            .per("file")
            .goals(if is_warm { &warm } else { &[] }),
        );
        works.push(
            Work::new(
                &format!("tar-{id}"),
                format!("tar c of {files} files, {id}"),
                Unit::Seconds,
                Set::Tree,
                move |s| {
                    let tree = native::count(&s.mount.layers.merged.join("tree"))?;
                    let command = || command_in(s.mount.read_root(), &["tar", "-cf", "-", "tree"]);
                    reading(s, caches, tree.files, command, |done| {
                        ended(done, 0)?;
                        ensure!(
                            done.bytes > tree.bytes,
                            "an archive of {} bytes for {tree:?}",
                            done.bytes
                        );
                        Ok(())
                    })
                },
            )
            .per("file")
            .goals(if is_warm { &warm } else { &cold }),
        );
    }
    works
}

fn finds(scale: &Scale, warm: &[Goal]) -> Vec<Work> {
    let files = thousands(scale.walk as f64);
    let rows: [(Caches, bool, &[Goal]); 4] = [
        (Caches::Warm, false, warm),
        (Caches::Warm, true, warm),
        (Caches::Layers, true, &[Goal::kernel(1.5), Goal::peer(0.25)]),
        (Caches::Cold, true, &[Goal::kernel(1.5), Goal::peer(0.5)]),
    ];
    let work = |(caches, ls, goals): (Caches, bool, &[Goal])| {
        let (id, words) = caches.words();
        let name = if ls { "find -ls" } else { "find" };
        let id = format!("{}-{id}", name.replace(' ', ""));
        let title = format!("{name}, {files} files in 8 layers, {words}");
        Work::new(&id, title, Unit::Seconds, Set::Walk, move |s| {
            // Counted where no overlay is in between.
            let merged = s.mount.layers.merged.join("walk");
            let entries = EXPECTED.with(|known| known.count(&merged))? + 1;
            let mut words = vec!["find", "walk"];
            words.extend(ls.then_some("-ls"));
            let command = || command_in(s.mount.read_root(), &words);
            reading(s, caches, entries, command, |done| {
                wrote_lines(done, entries)
            })
        })
        .per("entry")
        .goals(goals)
    };
    rows.into_iter().map(work).collect()
}

thread_local! {
    static EXPECTED: Known = const { Known(std::cell::RefCell::new(Vec::new())) };
}

/// Trees that were counted already: counting warms caches.
struct Known(std::cell::RefCell<Vec<(std::path::PathBuf, u64)>>);

impl Known {
    fn count(&self, path: &Path) -> Result<u64> {
        let mut known = self.0.borrow_mut();
        if let Some((_, entries)) = known.iter().find(|(of, _)| of == path) {
            return Ok(*entries);
        }
        let entries = native::count(path)?.entries;
        known.push((path.to_owned(), entries));
        Ok(entries)
    }
}

fn git_status(session: &Session<'_>, caches: Caches, files: u64) -> Result<Taken> {
    let tree = session.mount.reading("tree");
    let git = |words: &[&str], locks: &str| {
        let mut command = command_in(&tree, words);
        command
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .env("GIT_OPTIONAL_LOCKS", locks);
        command
    };
    let clean = |done: &Done| {
        ended(done, 0)?;
        ensure!(
            done.bytes == 0,
            "not clean: {}",
            done.text.lines().next().unwrap_or_default()
        );
        Ok(())
    };
    let listed = exec::run(&mut git(&["git", "ls-files"], "0"))?;
    wrote_lines(&listed, files)?;
    // Its first run reads all files and notes their inodes and times in the index.
    clean(&exec::run(&mut git(
        &["git", "status", "--porcelain"],
        "1",
    ))?)?;
    ensure!(fs::metadata(tree.join(".git/index"))?.len() > 0, "no index");
    let status = || git(&["git", "status", "--porcelain"], "0");
    reading(session, caches, files, status, clean)
}
