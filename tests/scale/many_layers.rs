//! 500 lowers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};

use super::meter::{Meter, alone, check, entries, open_dir, timed};
use super::support::files::set_xattr;
use super::support::{Layers, Mounted, Scratch, Subject, Trace, require_root, subject};

const LAYERS: usize = 500;

/// Lower `i` has names of its own, and parts of directories that all have.
fn fill(layers: &Layers) {
    for (i, lower) in layers.lowers.iter().enumerate() {
        let deep = lower.join("deep/a/b/c/d");
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir(lower.join("shared")).unwrap();
        let text = i.to_string();
        for path in [format!("only{i}"), "top".into(), format!("shared/f{i}")] {
            fs::write(lower.join(path), &text).unwrap();
        }
        fs::write(deep.join(format!("g{i}")), &text).unwrap();
        // Hidden by the layer above, for every third.
        if i > 0 && i % 3 == 0 {
            fs::write(lower.join(format!("shared/hidden{i}")), &text).unwrap();
            whiteout(&layers.lowers[i - 1].join(format!("shared/hidden{i}")));
        }
    }
}

pub fn whiteout(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn names(path: &Path) -> BTreeSet<String> {
    let all = entries(&open_dir(path), usize::MAX);
    let count = all.len();
    let names: BTreeSet<String> = all.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), count, "{} lists names twice", path.display());
    names
}

fn numbered(prefix: &str) -> BTreeSet<String> {
    (0..LAYERS).map(|i| format!("{prefix}{i}")).collect()
}

#[test]
fn a_mount_of_500_lowers() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new();
    let layers = scratch.layers(LAYERS);
    fill(&layers);
    let mut mounted = timed("mount", || subject().mount(&layers, &[]));
    let meter = Meter::of(&mounted);
    timed("check all", || check_all(&mounted));
    change(&mounted);
    check(meter.as_ref(), 5000, "at the end");
    timed("mount again", || mounted.remount());
    check_changed(&mounted);
    mounted.unmount();
}

fn check_all(mounted: &Mounted) {
    assert_eq!(names(&mounted.path("shared")), numbered("f"));
    assert_eq!(names(&mounted.path("deep/a/b/c/d")), numbered("g"));
    let mut want = numbered("only");
    want.extend(["deep", "shared", "top"].map(str::to_owned));
    assert_eq!(names(mounted.root()), want);
    let text = |path: &str| fs::read_to_string(mounted.path(path)).unwrap();
    assert_eq!(text("top"), "0", "the top layer wins");
    for i in 0..LAYERS {
        let number = i.to_string();
        assert_eq!(text(&format!("only{i}")), number);
        assert_eq!(text(&format!("shared/f{i}")), number);
        assert_eq!(text(&format!("deep/a/b/c/d/g{i}")), number);
        assert!(!mounted.path(format!("shared/hidden{i}")).exists());
        assert!(!mounted.path(format!("deep/a/none{i}")).exists());
    }
}

/// Whiteouts on top, copy-up from the bottom, a name that was hidden made anew.
fn change(mounted: &Mounted) {
    for i in (0..LAYERS).step_by(10) {
        fs::remove_file(mounted.path(format!("shared/f{i}"))).unwrap();
    }
    let last = LAYERS - 1;
    fs::write(mounted.path(format!("only{last}")), "changed").unwrap();
    fs::write(mounted.path("shared/hidden3"), "new").unwrap();
    fs::rename(mounted.path("deep/a"), mounted.path("deep/moved")).unwrap();
    check_changed(mounted);
}

fn check_changed(mounted: &Mounted) {
    let mut want = numbered("f");
    for i in (0..LAYERS).step_by(10) {
        want.remove(&format!("f{i}"));
        assert!(!mounted.path(format!("shared/f{i}")).exists());
    }
    want.insert("hidden3".into());
    assert_eq!(names(&mounted.path("shared")), want);
    let text = |path: String| fs::read_to_string(mounted.path(path)).unwrap();
    assert_eq!(text(format!("only{}", LAYERS - 1)), "changed");
    assert_eq!(text("shared/hidden3".into()), "new");
    assert_eq!(names(&mounted.path("deep/moved/b/c/d")), numbered("g"));
    assert_eq!(
        text(format!("deep/moved/b/c/d/g{}", LAYERS - 1)),
        (LAYERS - 1).to_string()
    );
    assert!(!mounted.path("deep/a").exists());
}

const MIXED: usize = 12;
const NAMES: usize = 60;

/// Names of which every layer has something else: a file, a directory, a whiteout, an opaque directory, one that
/// leads to another name, or nothing.
fn mix(layers: &Layers) {
    for (layer, lower) in layers.lowers.iter().enumerate() {
        for n in 0..NAMES {
            let other = lower.join(format!("d/other{n}"));
            fs::create_dir_all(&other).unwrap();
            fs::write(other.join(format!("in-{layer}")), "other").unwrap();
            let path = lower.join(format!("d/n{n}"));
            match (layer * 7919 + n * 104_729 + layer * n * 31) % 16 {
                0 => fs::write(&path, format!("{layer}")).unwrap(),
                1 => whiteout(&path),
                kind @ 2..=8 => {
                    fs::create_dir(&path).unwrap();
                    fs::write(path.join(format!("in-{layer}")), "here").unwrap();
                    match kind {
                        2 => set_xattr(&path, "trusted.overlay.opaque", b"y").unwrap(),
                        3 => {
                            let value = format!("other{n}");
                            set_xattr(&path, "trusted.overlay.redirect", value.as_bytes()).unwrap();
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
    }
}

/// What each name is and what is beneath it, by looking names up one after another.
fn looked_up(mounted: &Mounted, order: impl Iterator<Item = usize>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for n in order {
        let inside = (0..MIXED).map(|layer| format!("d/n{n}/in-{layer}"));
        for name in std::iter::once(format!("d/n{n}")).chain(inside) {
            let path = mounted.path(&name);
            let what = match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_file() => fs::read_to_string(&path).unwrap(),
                Ok(meta) => format!("{:?}", meta.file_type()),
                Err(error) => format!("{:?}", error.kind()),
            };
            found.insert(name, what);
        }
    }
    found
}

/// A directory that is only looked into is listed after some lookups; that changes no answer.
#[test]
fn names_of_12_lowers_that_are_looked_up_one_by_one() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new();
    let layers = scratch.layers(MIXED);
    mix(&layers);
    let oracle = Subject::Kernel.mount_read_only(&layers, &["redirect_dir=follow"]);
    let want = looked_up(&oracle, 0..NAMES);
    oracle.unmount();
    assert!(want.values().any(|what| what == "here"));
    for reversed in [false, true] {
        let mounted = subject().mount(&layers, &[]);
        let got = match reversed {
            false => looked_up(&mounted, 0..NAMES),
            true => looked_up(&mounted, (0..NAMES).rev()),
        };
        assert_eq!(got, want);
        mounted.unmount();
    }
}

/// What a lookup costs in a directory that all layers have, of a name that two have: nothing for the others.
#[test]
fn lookups_ask_the_layers_that_have_the_name() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new();
    let layers = scratch.layers(120);
    for (i, lower) in layers.lowers.iter().enumerate() {
        fs::create_dir(lower.join("few")).unwrap();
        for n in (0..200).filter(|_| i == 30 || i == 90) {
            fs::create_dir(lower.join(format!("few/n{n}"))).unwrap();
        }
    }
    let mounted = subject().mount(&layers, &[]);
    let look = |n: usize| {
        let missing = mounted.path(format!("few/n{n}/missing"));
        assert!(!missing.exists());
    };
    (0..100).for_each(look);
    let Some(pid) = mounted.daemon_pid() else {
        return;
    };
    let trace = Trace::attach(pid, "all");
    (100..200).for_each(look);
    let calls = trace.finish().len();
    assert!(calls < 4000, "{calls} system calls for 200 lookups");
}
