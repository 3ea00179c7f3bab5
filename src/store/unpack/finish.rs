//! What has to wait for the end of the archive: hard links, whiteouts, and the attributes of
//! directories, which all of that would change.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::attrs::set_times;
use super::engine::{Engine, Link};
use super::tree::{Dir, Key, Seen, empty_file};
use super::{EntryProblem, Failure, UnpackError, WhiteoutForm};
use crate::format::keys::OverlayKey;
use crate::format::whiteout::{OPAQUE_MARK, whiteout_name};
use crate::sys::xattr::{SetFlags, set_at};

/// Does all of it. Gives the count of whiteouts and the form that they got.
pub(super) fn finish(engine: &mut Engine<'_, '_>) -> Result<(u64, WhiteoutForm), UnpackError> {
    engine.writers.finish()?;
    hard_links(engine)?;
    let opaque = opaque_directories(engine)?;
    let whiteouts = whiteouts(engine, &opaque)?;
    for (path, plan) in std::mem::take(&mut engine.dirs).into_iter().rev() {
        let Some(plan) = plan else { continue };
        let attributes = engine.attributes;
        let mut set = || {
            let dir = engine.tree.existing(&path)?;
            attributes.apply(dir.as_fd(), b"", &plan, false)?;
            Ok::<(), Failure>(set_times(dir.as_fd(), b"", &plan)?)
        };
        set().map_err(|failure| failure.at(&path))?;
    }
    Ok(whiteouts)
}

/// A link's place and that of its target, both in open directories.
struct Ends {
    dir: std::sync::Arc<Dir>,
    key: Key,
    target_dir: std::sync::Arc<Dir>,
    target_key: Key,
}

/// Links may lead to links, in any order: those whose target is not there yet wait for it.
fn hard_links(engine: &mut Engine<'_, '_>) -> Result<(), UnpackError> {
    let links = std::mem::take(&mut engine.links);
    let mut waiting: HashMap<Key, Vec<&Link>> = HashMap::new();
    let mut ready: Vec<&Link> = Vec::new();
    for first in &links {
        ready.push(first);
        while let Some(link) = ready.pop() {
            let ends = ends(engine, link).map_err(|f| f.at(link.path.as_bytes()))?;
            if engine.tree.seen(&ends.target_key) == Some(Seen::Link) {
                waiting.entry(ends.target_key).or_default().push(link);
                continue;
            }
            make_link(link, &ends).map_err(|f| f.at(link.path.as_bytes()))?;
            engine.tree.see(ends.key, Seen::Other);
            ready.extend(waiting.remove(&ends.key).unwrap_or_default());
        }
    }
    match waiting.values().flatten().next() {
        Some(link) => Err(Failure::from(EntryProblem::LinkCycle).at(link.path.as_bytes())),
        None => Ok(()),
    }
}

fn ends(engine: &mut Engine<'_, '_>, link: &Link) -> Result<Ends, Failure> {
    let tree = &mut engine.tree;
    let (parent, name) = link.path.split();
    let dir = tree.existing(parent)?;
    let key = tree.key(&dir, name);
    let (parent, name) = link.target.split();
    let target_dir = tree.existing(parent).map_err(|e| match e {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => EntryProblem::LinkTarget.into(),
        other => Failure::from(other),
    })?;
    let target_key = tree.key(&target_dir, name);
    Ok(Ends {
        dir,
        key,
        target_dir,
        target_key,
    })
}

fn make_link(link: &Link, ends: &Ends) -> Result<(), Failure> {
    let (_, name) = link.path.split();
    let (_, target) = link.target.split();
    let (name, target) = (OsStr::from_bytes(name), OsStr::from_bytes(target));
    // Without AT_SYMLINK_FOLLOW: a link to a symlink is one to the symlink itself.
    match rustix::fs::linkat(
        &*ends.target_dir,
        target,
        &*ends.dir,
        name,
        AtFlags::empty(),
    ) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => Err(EntryProblem::LinkTarget.into()),
        Err(Errno::PERM) => {
            let stat = rustix::fs::statat(&*ends.target_dir, target, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Err(EntryProblem::LinkToDir.into()),
                _ => Err(Errno::PERM.into()),
            }
        }
        Err(e) => Err(e.into()),
    }
}

/// Makes directories opaque: those that the archive marked, and those that it hides and then brings.
/// Gives their inode numbers; in them whiteouts are superfluous.
fn opaque_directories(engine: &mut Engine<'_, '_>) -> Result<HashSet<u64>, UnpackError> {
    let mut inos = HashSet::new();
    let mut paths = std::mem::take(&mut engine.opaque);
    let whiteouts = std::mem::take(&mut engine.whiteouts);
    for (parent, hidden) in &whiteouts {
        let dir = existing(engine, parent)?;
        let key = engine.tree.key(&dir, hidden);
        if let Some(Seen::Dir(_) | Seen::Implied(_)) = engine.tree.seen(&key) {
            let separator: &[u8] = if parent.is_empty() { b"" } else { b"/" };
            paths.push([parent, separator, hidden].concat());
        }
    }
    engine.whiteouts = whiteouts;
    for path in paths {
        let dir = existing(engine, &path)?;
        if inos.insert(dir.ino()) {
            make_opaque(engine, &dir).map_err(|f| f.at(&path))?;
        }
    }
    Ok(inos)
}

fn existing(engine: &mut Engine<'_, '_>, path: &[u8]) -> Result<std::sync::Arc<Dir>, UnpackError> {
    let dir = engine.tree.existing(path);
    dir.map_err(|e| Failure::from(e).at(path))
}

fn make_opaque(engine: &Engine<'_, '_>, dir: &Dir) -> Result<(), Failure> {
    if engine.options.whiteouts == WhiteoutForm::Aufs {
        return empty_file(dir, OPAQUE_MARK);
    }
    let key = engine.options.namespace.key(OverlayKey::Opaque);
    Ok(set_at(
        dir.as_fd(),
        OsStr::new(""),
        key,
        b"y",
        SetFlags::Any,
    )?)
}

fn whiteouts(
    engine: &mut Engine<'_, '_>,
    opaque: &HashSet<u64>,
) -> Result<(u64, WhiteoutForm), UnpackError> {
    let mut form = engine.options.whiteouts;
    let mut made = 0;
    for (parent, hidden) in std::mem::take(&mut engine.whiteouts) {
        let dir = existing(engine, &parent)?;
        let key = engine.tree.key(&dir, &hidden);
        // What the archive brings itself hides what is below by being there.
        if opaque.contains(&dir.ino()) || engine.tree.seen(&key).is_some() {
            continue;
        }
        let mut make = || {
            engine.tree.make_room(&dir, &hidden, false)?;
            match (
                whiteout(engine, &dir, &hidden, form),
                engine.options.whiteout_fallback,
            ) {
                (Err(Failure::Io(e)), Some(other))
                    if form == WhiteoutForm::Device && is_refusal(&e) =>
                {
                    form = other;
                    whiteout(engine, &dir, &hidden, form)
                }
                (result, _) => result,
            }
        };
        let path = [&parent[..], b"/.wh.", &hidden].concat();
        make().map_err(|failure| failure.at(&path))?;
        engine.tree.see(key, Seen::Other);
        made += 1;
    }
    Ok((made, form))
}

/// Whether the file system, or the kernel, does not make such devices.
fn is_refusal(error: &std::io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::NOSYS)
    )
}

fn whiteout(
    engine: &Engine<'_, '_>,
    dir: &Dir,
    hidden: &[u8],
    form: WhiteoutForm,
) -> Result<(), Failure> {
    let name = OsStr::from_bytes(hidden);
    let namespace = engine.options.namespace;
    match form {
        WhiteoutForm::Device => {
            let device = rustix::fs::makedev(0, 0);
            let kind = FileType::CharacterDevice;
            Ok(rustix::fs::mknodat(dir, name, kind, Mode::empty(), device)?)
        }
        WhiteoutForm::Xattr => {
            empty_file(dir, hidden)?;
            let (of_file, of_dir) = (OverlayKey::Whiteout, OverlayKey::Opaque);
            set_at(
                dir.as_fd(),
                name,
                namespace.key(of_file),
                b"y",
                SetFlags::Any,
            )?;
            let here = OsStr::new("");
            Ok(set_at(
                dir.as_fd(),
                here,
                namespace.key(of_dir),
                b"x",
                SetFlags::Any,
            )?)
        }
        WhiteoutForm::Aufs => match whiteout_name(name) {
            Some(whiteout) => empty_file(dir, &whiteout),
            None => Err(EntryProblem::LongName.into()),
        },
    }
}
