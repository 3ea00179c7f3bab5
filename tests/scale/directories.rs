//! Directories with 100,000 entries.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::time::Instant;

use rustix::fs::{AtFlags, SeekFrom};
use rustix::io::Errno;

use super::meter::{Entry, Meter, alone, check, drop_caches, entries, make_file, make_files};
use super::meter::{open_dir, timed};
use super::support::{Layers, Mounted, Scratch, require_root, subject};

const ENTRIES: usize = 100_000;
/// Names that are made and removed while a listing is on.
const CHANGES: usize = 500;

#[test]
fn a_lower_directory_of_100_000_entries() {
    large_directory(|layers| {
        make_files(&layers.lower().join("many"), "name-", ENTRIES);
    });
}

#[test]
fn an_upper_directory_of_100_000_entries() {
    large_directory(|layers| {
        make_files(&layers.upper.join("many"), "name-", ENTRIES);
    });
}

#[test]
fn a_merged_directory_of_100_000_entries() {
    large_directory(|layers| {
        make_files(&layers.lowers[0].join("many"), "name-", ENTRIES / 2);
        make_files(&layers.lowers[1].join("many"), "other-", ENTRIES / 2);
        // Names that are in both count once.
        make_files(&layers.upper.join("many"), "name-", 1000);
    });
}

fn large_directory(fill: impl FnOnce(&Layers)) {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new();
    let layers = scratch.layers(2);
    fill(&layers);
    drop_caches();
    let mounted = subject().mount(&layers, &[]);
    let meter = Meter::of(&mounted);
    let many = mounted.path("many");

    let names = timed("list, cold", || listed(&many));
    assert_eq!(names.len(), ENTRIES);
    assert_eq!(timed("list, warm", || listed(&many)), names);
    timed("stat all", || stat_all(&many, &names));
    check(meter.as_ref(), ENTRIES as u64, "after stat of all");
    offsets_are_stable(&many);
    let names = change(&many, names);
    assert_eq!(listed(&many), names, "after making and removing");
    check(meter.as_ref(), ENTRIES as u64, "after changes");
    after_remount(mounted, &names);
}

/// The names of a directory; panics when one is shown twice.
fn listed(path: &Path) -> BTreeSet<String> {
    let all = entries(&open_dir(path), usize::MAX);
    let count = all.len();
    let names: BTreeSet<String> = all.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), count, "names are listed twice");
    names
}

fn stat_all(path: &Path, names: &BTreeSet<String>) {
    let dir = open_dir(path);
    for name in names {
        rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .unwrap_or_else(|e| panic!("stat {name}: {e}"));
    }
}

/// seekdir to where telldir was goes on with the same entries, whatever was made and removed.
fn offsets_are_stable(path: &Path) {
    let dir = open_dir(path);
    let all = entries(&dir, usize::MAX);
    for place in [0, 1, 777, all.len() / 2, all.len() - 2] {
        let rest = rest_from(&dir, all[place].next, 3);
        let want: Vec<&str> = all[place + 1..].iter().take(3).map(name_of).collect();
        let got: Vec<&str> = rest.iter().map(name_of).collect();
        assert_eq!(got, want, "after seekdir to entry {place}");
    }
    let middle = all.len() / 2;
    let after: HashSet<&str> = all[middle + 1..].iter().map(name_of).collect();
    // Every tenth name in the middle goes, on both sides of the offset.
    let removed: Vec<&str> = all[middle - CHANGES * 5..middle + CHANGES * 5]
        .iter()
        .step_by(10)
        .map(name_of)
        .collect();
    for name in &removed {
        rustix::fs::unlinkat(&dir, *name, AtFlags::empty()).unwrap();
    }
    for i in 0..CHANGES {
        make_file(&dir, &format!("while-listing-{i}"));
    }
    let rest = rest_from(&dir, all[middle].next, usize::MAX);
    let mut seen = HashSet::new();
    for entry in &rest {
        let name = name_of(entry);
        assert!(seen.insert(name), "{name} is shown twice after seekdir");
        assert!(
            after.contains(name) || name.starts_with("while-listing-"),
            "{name} lay before the offset and is shown after it"
        );
    }
    for name in after.iter().filter(|name| !removed.contains(*name)) {
        assert!(seen.contains(name), "{name} is missing after seekdir");
    }
    // As it was, for the checks that follow.
    for i in 0..CHANGES {
        let name = format!("while-listing-{i}");
        rustix::fs::unlinkat(&dir, &name, AtFlags::empty()).unwrap();
    }
    removed.iter().for_each(|name| make_file(&dir, name));
}

fn name_of(entry: &Entry) -> &str {
    &entry.name
}

fn rest_from(dir: &std::os::fd::OwnedFd, offset: u64, most: usize) -> Vec<Entry> {
    rustix::fs::seek(dir, SeekFrom::Start(offset)).unwrap();
    entries(dir, most)
}

/// Makes and removes names; neither costs time in proportion to the directory.
fn change(path: &Path, mut names: BTreeSet<String>) -> BTreeSet<String> {
    let dir = open_dir(path);
    let start = Instant::now();
    for i in 0..CHANGES {
        let name = format!("new-{i}");
        make_file(&dir, &name);
        names.insert(name);
    }
    let each = start.elapsed() / CHANGES as u32;
    println!("create in it: {each:?} each");
    assert!(each.as_millis() < 3, "a create takes {each:?}");
    let start = Instant::now();
    let victims: Vec<String> = names
        .iter()
        .step_by(names.len() / CHANGES)
        .cloned()
        .collect();
    for name in &victims {
        rustix::fs::unlinkat(&dir, name, AtFlags::empty()).unwrap();
        let got = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW);
        assert_eq!(got.err(), Some(Errno::NOENT), "{name} is removed");
        names.remove(name);
    }
    let each = start.elapsed() / CHANGES as u32;
    println!("unlink in it: {each:?} each");
    assert!(each.as_millis() < 3, "an unlink takes {each:?}");
    names
}

fn after_remount(mut mounted: Mounted, names: &BTreeSet<String>) {
    mounted.remount();
    let many = mounted.path("many");
    assert!(
        listed(&many) == *names,
        "the listing is the same after a remount"
    );
    mounted.unmount();
}
