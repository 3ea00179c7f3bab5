//! An independent check of what lies in upper and work after unmounting: it knows the format
//! (formats.md §1) and nothing of rovl's code.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;

#[path = "../support/upper_check.rs"]
#[allow(dead_code, unreachable_pub)]
mod upper_check;

use super::layers::Made;
use super::mounts::Dirs;
use super::sys;
use upper_check::{nlink, unhex};

/// Bytes of `struct ovl_fh` before the file handle: version, magic, length, flags, type, uuid.
const HEADER: usize = 5 + 16;

/// What is wrong with the upper and the work directory, as text.
pub fn check(dirs: &Dirs, by_kernel: bool) -> Made<Vec<String>> {
    let mut checker = Checker {
        dirs,
        by_kernel,
        faults: Vec::new(),
        handles: HashMap::new(),
    };
    let failed = |error: io::Error| format!("reading the upper: {error}");
    for lower in &dirs.lowers {
        checker.collect_handles(lower).map_err(failed)?;
    }
    checker
        .directory(&dirs.upper, &dirs.lowers)
        .map_err(failed)?;
    checker.work().map_err(failed)?;
    let mut faults = checker.faults;
    // The same question, asked by others, with link counts held against the names that show.
    let second = upper_check::UpperCheck {
        by_kernel,
        ..upper_check::UpperCheck::new(&dirs.lowers, &dirs.upper, &dirs.work)
    };
    faults.extend(second.faults().map_err(failed)?);
    Ok(faults)
}

fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

/// The value of an overlay xattr, if it is there.
fn xattr(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0; 4096];
    match rustix::fs::lgetxattr(path, format!("trusted.overlay.{name}"), &mut value[..]) {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// lstat; `None` if there is nothing.
fn meta(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What the directories `below`, top to bottom, show as `name`: the directories to merge, and
/// whether there is anything at all.
fn look(below: &[PathBuf], name: &Path) -> io::Result<(Vec<PathBuf>, bool)> {
    let mut merged = Vec::new();
    for dir in below {
        let path = dir.join(name);
        let Some(meta) = meta(&path)? else { continue };
        if is_whiteout(&meta) {
            return Ok((merged.clone(), !merged.is_empty()));
        }
        if !meta.is_dir() {
            return Ok((merged, true));
        }
        let opaque = xattr(&path, "opaque")?.is_some();
        merged.push(path);
        if opaque {
            break;
        }
    }
    let any = !merged.is_empty();
    Ok((merged, any))
}

struct Checker<'a> {
    dirs: &'a Dirs,
    /// The kernel wrote here, before or in the subject's place.
    by_kernel: bool,
    faults: Vec<String>,
    /// File handle of each lower file, and its link count.
    handles: HashMap<Vec<u8>, u64>,
}

impl Checker<'_> {
    fn fault(&mut self, path: &Path, what: &str) {
        let shown = path.strip_prefix(&self.dirs.upper).unwrap_or(path);
        self.faults.push(format!(
            "{}: {what}",
            shown.as_os_str().as_bytes().escape_ascii()
        ));
    }

    fn collect_handles(&mut self, dir: &Path) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                self.collect_handles(&path)?;
            } else {
                let (_, bytes) = sys::handle(
                    rustix::fd::AsFd::as_fd(&CWD),
                    path.as_os_str().as_bytes(),
                    0,
                )?;
                self.handles.insert(bytes, meta.nlink());
            }
        }
        Ok(())
    }

    /// Checks the upper directory `dir`, below which lie the lower directories `below`.
    fn directory(&mut self, dir: &Path, below: &[PathBuf]) -> io::Result<()> {
        let impure = xattr(dir, "impure")?.is_some();
        let opaque = xattr(dir, "opaque")?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = PathBuf::from(path.file_name().unwrap_or_default());
            let meta = fs::symlink_metadata(&path)?;
            let (merged, any) = look(below, &name)?;
            if is_whiteout(&meta) {
                if opaque.as_deref() == Some(b"y") {
                    self.fault(&path, "a whiteout in an opaque directory");
                } else if !any {
                    self.fault(&path, "a whiteout of nothing");
                }
                continue;
            }
            if name.as_os_str().as_bytes().starts_with(b".wh.") {
                self.fault(&path, "a name that means a whiteout");
            }
            if xattr(&path, "origin")?.is_some() && !impure {
                self.fault(
                    &path,
                    "has an origin, but its directory is not marked impure",
                );
            }
            if xattr(&path, "metacopy")?.is_some() {
                self.fault(&path, "has metacopy, which is off");
            }
            if meta.is_dir() {
                let merged = self.merged(&path, below, merged)?;
                self.directory(&path, &merged)?;
            } else {
                for name in ["opaque", "redirect", "impure"] {
                    if xattr(&path, name)?.is_some() {
                        self.fault(&path, &format!("has {name} and is no directory"));
                    }
                }
            }
        }
        Ok(())
    }

    /// The lower directories that the upper directory `path` is merged with.
    fn merged(
        &mut self,
        path: &Path,
        siblings: &[PathBuf],
        same_name: Vec<PathBuf>,
    ) -> io::Result<Vec<PathBuf>> {
        let redirect = xattr(path, "redirect")?;
        match xattr(path, "opaque")?.as_deref() {
            None => {}
            Some(b"y" | b"x") if redirect.is_some() => {
                self.fault(path, "both opaque and redirected")
            }
            Some(b"y") => return Ok(Vec::new()),
            Some(b"x") => {}
            Some(other) => self.fault(
                path,
                &format!("opaque is {:?}", other.escape_ascii().to_string()),
            ),
        }
        let Some(target) = redirect else {
            return Ok(same_name);
        };
        let found = match target.strip_prefix(b"/") {
            Some(target) => {
                if target.len() >= 256 {
                    self.fault(path, "redirect is too long for the kernel");
                }
                let mut below = self.dirs.lowers.clone();
                for part in target.split(|byte| *byte == b'/') {
                    below = look(&below, Path::new(std::ffi::OsStr::from_bytes(part)))?.0;
                }
                below
            }
            None => look(siblings, Path::new(std::ffi::OsStr::from_bytes(&target)))?.0,
        };
        if found.is_empty() {
            self.fault(
                path,
                &format!("redirect {} leads nowhere", target.escape_ascii()),
            );
        }
        Ok(found)
    }

    fn work(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dirs.work)? {
            let path = entry?.path();
            match path.file_name().map(|name| name.as_bytes()) {
                Some(b"work") => {
                    for left in fs::read_dir(&path)? {
                        self.fault(&left?.path(), "left in work");
                    }
                }
                Some(b"index") => self.index(&path)?,
                _ => self.fault(&path, "is not known in a work directory"),
            }
        }
        Ok(())
    }

    fn index(&mut self, dir: &Path) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().as_bytes().to_vec();
            let meta = fs::symlink_metadata(&path)?;
            if self.by_kernel && name.starts_with(b"#") && is_whiteout(&meta) {
                continue; // The kernel keeps one whiteout to link from, also beyond the unmount.
            }
            let Some(handle) = unhex(&name) else {
                self.fault(&path, "is no name of an index entry");
                continue;
            };
            if meta.is_dir() || is_whiteout(&meta) {
                self.fault(
                    &path,
                    "such index entries belong to nfs_export, which is off",
                );
                continue;
            }
            if xattr(&path, "origin")?.as_deref() != Some(&handle[..]) {
                self.fault(&path, "its origin is not its name");
            }
            let Some(lower) = handle
                .get(HEADER..)
                .and_then(|handle| self.handles.get(handle))
                .copied()
            else {
                self.fault(&path, "leads to nothing in the lowers");
                continue;
            };
            match xattr(&path, "nlink")?
                .as_deref()
                .and_then(|value| nlink(value, meta.nlink(), lower))
            {
                None => self.fault(&path, "has no nlink, or one that can't be read"),
                Some(..=0) => self.fault(&path, "is dangling: no name leads to it"),
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// The check itself: each fault that it is there to find.
mod tests {
    use std::fs;
    use std::path::Path;

    use rustix::fs::{CWD, FileType, Mode, XattrFlags};

    use super::super::mounts::Dirs;

    /// One lower with a file `f` and a directory `d`, an empty upper, an empty work directory.
    fn dirs(root: &Path) -> Dirs {
        let path = |name: &str| root.join(name);
        for name in ["l", "l/d", "u", "w", "w/work", "w/index"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("l/f"), "").unwrap();
        Dirs {
            lowers: vec![path("l")],
            upper: path("u"),
            work: path("w"),
            merged: path("m"),
        }
    }

    fn mark(path: &Path, name: &str, value: &[u8]) {
        let name = format!("trusted.overlay.{name}");
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    }

    fn whiteout(path: &Path) {
        let kind = FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, path, kind, Mode::empty(), 0).unwrap();
    }

    /// The faults of an upper that `make` spoils.
    fn faults(make: impl Fn(&Dirs)) -> Vec<String> {
        let root = tempfile::tempdir_in("/var/tmp").unwrap();
        let dirs = dirs(root.path());
        make(&dirs);
        super::check(&dirs, false).unwrap()
    }

    fn expect(fault: &str, make: impl Fn(&Dirs)) {
        let found = faults(make);
        // The second check may say it in its own words.
        assert!(
            found.len() <= 3 && found.iter().any(|f| f.contains(fault)),
            "{found:?}"
        );
    }

    #[test]
    fn a_clean_upper_has_no_faults() {
        let found = faults(|dirs| {
            whiteout(&dirs.upper.join("f"));
            fs::create_dir(dirs.upper.join("moved")).unwrap();
            mark(&dirs.upper.join("moved"), "redirect", b"/d");
        });
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn needless_whiteouts_are_found() {
        expect("a whiteout of nothing", |dirs| {
            whiteout(&dirs.upper.join("g"))
        });
        expect("in an opaque directory", |dirs| {
            fs::create_dir(dirs.upper.join("d")).unwrap();
            mark(&dirs.upper.join("d"), "opaque", b"y");
            whiteout(&dirs.upper.join("d/f"));
        });
    }

    #[test]
    fn a_redirect_to_nothing_is_found() {
        for target in [&b"/d/none"[..], b"/f", b"none"] {
            expect("leads nowhere", |dirs| {
                fs::create_dir(dirs.upper.join("x")).unwrap();
                mark(&dirs.upper.join("x"), "redirect", target);
            });
        }
    }

    #[test]
    fn what_is_left_in_work_is_found() {
        expect("left in work", |dirs| {
            fs::write(dirs.work.join("work/tmp"), "").unwrap();
        });
        expect("leads to nothing in the lowers", |dirs| {
            let entry = dirs.work.join("index/00fb1d00000102");
            fs::write(&entry, "").unwrap();
            mark(&entry, "origin", &[0, 0xfb, 0x1d, 0, 0, 1, 2]);
        });
    }

    #[test]
    fn an_origin_in_a_directory_that_is_not_impure_is_found() {
        expect("not marked impure", |dirs| {
            fs::write(dirs.upper.join("f"), "").unwrap();
            mark(&dirs.upper.join("f"), "origin", b"x");
        });
    }
}
