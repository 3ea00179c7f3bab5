//! `.wh.` marks in many layers, which are asked for once something is found that they would hide.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::many_layers::whiteout;
use super::meter::{alone, entries, open_dir};
use super::support::files::set_xattr;
use super::support::{Layers, Scratch, Subject, require_root, subject};

const LAYERS: usize = 12;
const DIRS: usize = 6;
const NAMES: usize = 40;

/// The two forms of one thing: the kernel's overlayfs knows the first only.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Overlay,
    Aufs,
}

impl Form {
    /// Hides the name in the layers below this one.
    fn hide(self, dir: &Path, name: &str) {
        match self {
            Form::Overlay => whiteout(&dir.join(name)),
            Form::Aufs => fs::write(dir.join(format!(".wh.{name}")), "").unwrap(),
        }
    }

    /// Hides what the layers below have in a directory, by a mark in it.
    fn make_opaque(self, dir: &Path) {
        match self {
            Form::Overlay => set_xattr(dir, "trusted.overlay.opaque", b"y").unwrap(),
            Form::Aufs => fs::write(dir.join(".wh..wh..opq"), "").unwrap(),
        }
    }

    /// The same, by a mark beside it.
    fn hide_below(self, parent: &Path, name: &str) {
        match self {
            Form::Overlay => self.make_opaque(&parent.join(name)),
            Form::Aufs => self.hide(parent, name),
        }
    }
}

fn fill(lowers: &[impl AsRef<Path>], form: Form) {
    for (layer, lower) in lowers.iter().enumerate() {
        for d in 0..DIRS {
            let dir = lower.as_ref().join(format!("d{d}"));
            fs::create_dir(&dir).unwrap();
            for n in 0..NAMES {
                let kind = (layer * 7919 + d * 131 + n * 104_729 + layer * n * 31) % 16;
                // The kernel lists whiteouts of a directory that it need not merge.
                if (d, layer, kind) != (2, 0, 1) {
                    add(&dir, &format!("n{n}"), layer, kind, form);
                }
            }
            match (d, layer) {
                (1, 5) | (2, 0) => form.make_opaque(&dir),
                (3, 4) | (4, 8) => form.hide_below(lower.as_ref(), &format!("d{d}")),
                _ => {}
            }
        }
    }
}

fn add(dir: &Path, name: &str, layer: usize, kind: usize, form: Form) {
    let path = dir.join(name);
    match kind {
        0 => fs::write(&path, format!("{layer}")).unwrap(),
        1 => form.hide(dir, name),
        2 => {
            fs::write(&path, format!("{layer}, not below")).unwrap();
            if form == Form::Aufs {
                form.hide(dir, name);
            }
        }
        3..=9 => {
            fs::create_dir_all(path.join("sub")).unwrap();
            fs::write(path.join(format!("in-{layer}")), "here").unwrap();
            fs::write(path.join(format!("sub/in-{layer}")), "here").unwrap();
            match kind {
                3 => form.make_opaque(&path),
                4 => form.hide_below(dir, name),
                5 => form.make_opaque(&path.join("sub")),
                _ => {}
            }
        }
        _ => {}
    }
}

/// What is under each name, looked up one by one.
fn looked_up(root: &Path, order: &[usize]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for &n in order {
        let (d, n) = (n % DIRS, n / DIRS);
        let inside = (0..LAYERS).flat_map(|l| [format!("/in-{l}"), format!("/sub/in-{l}")]);
        for name in std::iter::once(String::new()).chain(inside) {
            let name = format!("d{d}/n{n}{name}");
            let path = root.join(&name);
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

fn listed(root: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        let mut names = BTreeSet::new();
        for entry in entries(&open_dir(root.join(&dir)), usize::MAX) {
            let path = if dir.is_empty() {
                entry.name.clone()
            } else {
                format!("{dir}/{}", entry.name)
            };
            if root.join(&path).is_dir() {
                dirs.push(path);
            }
            names.insert(entry.name);
        }
        found.insert(dir, names);
    }
    found
}

/// Directory by directory, so that a difference can be read.
fn assert_listed(root: &Path, want: &BTreeMap<String, BTreeSet<String>>) {
    let got = listed(root);
    for (dir, names) in want {
        assert_eq!(got.get(dir), Some(names), "in {dir}");
    }
    assert_eq!(got.len(), want.len());
}

/// The layers in the other form, which rovl mounts, show what the kernel's overlayfs makes of its own: however names
/// are looked up, with an upper and without, before and after a listing, and whatever is made anew.
#[test]
fn marks_of_12_layers_hide_what_whiteouts_hide() {
    require_root();
    if subject() != Subject::Rovl {
        return;
    }
    let _alone = alone();
    let scratch = Scratch::new();
    let all: Vec<usize> = (0..NAMES * DIRS).collect();
    let (overlay, aufs) = (scratch.join("overlay"), scratch.join("aufs"));
    fs::create_dir(&overlay).unwrap();
    fs::create_dir(&aufs).unwrap();
    let (overlay, aufs) = (Layers::new(&overlay, LAYERS), Layers::new(&aufs, LAYERS));
    fill(&overlay.lowers, Form::Overlay);
    fill(&aufs.lowers, Form::Aufs);
    let oracle = Subject::Kernel.mount_read_only(&overlay, &["redirect_dir=follow"]);
    let (want, want_listed) = (looked_up(oracle.root(), &all), listed(oracle.root()));
    oracle.unmount();
    for what in ["here", "0", ", not below", "NotFound", "FileType"] {
        assert!(want.values().any(|found| found.contains(what)), "{what}");
    }
    let backwards: Vec<usize> = all.iter().rev().copied().collect();
    let scattered: Vec<usize> = all.iter().map(|n| n * 7 % all.len()).collect();
    for (i, order) in [&all, &backwards, &scattered].into_iter().enumerate() {
        let mounted = match i {
            1 => subject().mount_read_only(&aufs, &[]),
            _ => subject().mount(&aufs, &[]),
        };
        assert_eq!(looked_up(mounted.root(), order), want);
        assert_listed(mounted.root(), &want_listed);
        mounted.unmount();
    }
    let mounted = subject().mount(&aufs, &[]);
    assert_listed(mounted.root(), &want_listed);
    // What hid something below hides it from what is made above it, too.
    for d in 0..DIRS {
        for n in 0..NAMES {
            let path = mounted.path(format!("d{d}/n{n}"));
            match fs::create_dir(&path) {
                Ok(()) => assert_eq!(
                    fs::read_dir(&path).unwrap().count(),
                    0,
                    "{}",
                    path.display()
                ),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists),
            }
        }
    }
    mounted.unmount();
}
