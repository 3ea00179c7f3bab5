//! Operations on names: link, unlink, rename, mkdir, rmdir, symlink.

use rustix::fs::{self, AtFlags, Mode, RenameFlags};
use rustix::io::Errno;

use super::model::Model;
use super::worker::{Worker, expect};

const DIR_MODES: [u32; 4] = [0o755, 0o700, 0o711, 0o1777];

impl Worker {
    pub fn link(&mut self) {
        let Some((dir, name, id)) = self.some_child(|model, id| !model.is_dir(id)) else {
            return;
        };
        let (to_dir, to_name) = (self.some_dir(), self.some_name());
        let (from, to) = (self.path(dir, &name), self.path(to_dir, &to_name));
        let what = format!("link {from} {to}");
        self.note(&what);
        let want = match self.model.child(to_dir, &to_name) {
            Some(_) => Err(Errno::EXIST),
            None => Ok(()),
        };
        let got = fs::linkat(&self.root, &from, &self.root, &to, AtFlags::empty());
        if expect(&what, got, want).is_some() {
            self.model.link(to_dir, &to_name, id);
            self.model.get_mut(id).pure_lower = false;
            self.check(to_dir, &to_name, id);
        }
    }

    pub fn unlink(&mut self) {
        let Some((dir, name, id)) = self.some_child(|_, _| true) else {
            return;
        };
        let path = self.path(dir, &name);
        let what = format!("unlink {path}");
        self.note(&what);
        let is_dir = self.model.is_dir(id);
        let want = if is_dir { Err(Errno::ISDIR) } else { Ok(()) };
        if expect(
            &what,
            fs::unlinkat(&self.root, &path, AtFlags::empty()),
            want,
        )
        .is_some()
        {
            self.model.unlink(dir, &name);
            self.check_absent(&path);
        }
    }

    pub fn rename(&mut self) {
        let Some((dir, name, _)) = self.some_child(|_, _| true) else {
            return;
        };
        let (to_dir, to_name) = self.rename_target();
        let flags = match self.random.below(8) {
            0 | 1 => RenameFlags::NOREPLACE,
            2 => RenameFlags::EXCHANGE,
            _ => RenameFlags::empty(),
        };
        let (from, to) = (self.path(dir, &name), self.path(to_dir, &to_name));
        let what = format!("rename {flags:?} {from} {to}");
        self.note(&what);
        let want = self
            .model
            .plan_rename((dir, &name), (to_dir, &to_name), flags);
        let got = fs::renameat_with(&self.root, &from, &self.root, &to, flags);
        // POSIX: EEXIST or ENOTEMPTY for a directory in the way that isn't empty.
        let got = match (got, want) {
            (Err(Errno::EXIST), Err(Errno::NOTEMPTY)) => Err(Errno::NOTEMPTY),
            (got, _) => got,
        };
        if expect(&what, got, want).is_none() {
            return;
        }
        self.model.rename((dir, &name), (to_dir, &to_name), flags);
        for (dir, name) in [(dir, name), (to_dir, to_name)] {
            match self.model.child(dir, &name) {
                None => self.check_absent(&self.path(dir, &name)),
                Some(id) => {
                    self.model.get_mut(id).pure_lower = false;
                    self.check(dir, &name, id);
                }
            }
        }
    }

    /// A name that may be free or taken.
    fn rename_target(&mut self) -> (usize, String) {
        if self.random.one_in(3)
            && let Some((dir, name, _)) = self.some_child(|_, _| true)
        {
            return (dir, name);
        }
        (self.some_dir(), self.some_name())
    }

    pub fn mkdir(&mut self) {
        let (dir, name) = (self.some_dir(), self.some_name());
        let depth = self.model.path(dir).split('/').count();
        if depth > 6 {
            return;
        }
        let path = self.path(dir, &name);
        let mode = self.random.pick(&DIR_MODES).unwrap_or(0o755);
        let what = format!("mkdir {path} {mode:o}");
        self.note(&what);
        let want = match self.model.child(dir, &name) {
            Some(_) => Err(Errno::EXIST),
            None => Ok(()),
        };
        let got = fs::mkdirat(&self.root, &path, Mode::from(mode));
        if expect(&what, got, want).is_some() {
            let id = self.model.add_dir(dir, mode);
            self.model.link(dir, &name, id);
            self.check(dir, &name, id);
            self.list(id);
        }
    }

    pub fn rmdir(&mut self) {
        let empty_or_any = self.random.one_in(4);
        let wanted = move |model: &Model, id| {
            empty_or_any || (model.is_dir(id) && model.children(id).is_empty())
        };
        let Some((dir, name, id)) = self.some_child(wanted) else {
            return;
        };
        let path = self.path(dir, &name);
        let what = format!("rmdir {path}");
        self.note(&what);
        let want = match () {
            () if !self.model.is_dir(id) => Err(Errno::NOTDIR),
            () if !self.model.children(id).is_empty() => Err(Errno::NOTEMPTY),
            () => Ok(()),
        };
        if expect(
            &what,
            fs::unlinkat(&self.root, &path, AtFlags::REMOVEDIR),
            want,
        )
        .is_some()
        {
            self.model.unlink(dir, &name);
            self.check_absent(&path);
        }
    }

    pub fn symlink(&mut self) {
        let (dir, name) = (self.some_dir(), self.some_name());
        let path = self.path(dir, &name);
        let target = format!("../nowhere/{}", self.random.below(1000));
        let what = format!("symlink {target} {path}");
        self.note(&what);
        let want = match self.model.child(dir, &name) {
            Some(_) => Err(Errno::EXIST),
            None => Ok(()),
        };
        if expect(&what, fs::symlinkat(&target, &self.root, &path), want).is_some() {
            let id = self.model.add_symlink(&target);
            self.model.link(dir, &name, id);
            self.check(dir, &name, id);
        }
    }

    /// Looks up a name that isn't there.
    pub fn absent(&mut self) {
        let (dir, name) = (self.some_dir(), self.some_name());
        if self.model.child(dir, &name).is_none() {
            let path = self.path(dir, &name);
            self.note(&format!("absent {path}"));
            self.check_absent(&path);
        }
    }

    pub fn check_absent(&self, path: &str) {
        expect(&format!("stat {path}"), self.stat(path), Err(Errno::NOENT));
    }
}
