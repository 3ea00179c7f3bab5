//! What one worker knows about its own names: the tree as POSIX says it must be. Pure.

use std::collections::{BTreeMap, HashMap};

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::layout::{DIR_MODE, FILE_MODE, SHARED, Start, StartKind, start_of};
use super::support::pattern;

/// An object; the first `SHARED` are the shared directories.
pub type Id = usize;

/// What an object is.
pub enum Kind {
    File {
        data: Vec<u8>,
        xattr: Option<Vec<u8>>,
    },
    Dir {
        children: BTreeMap<String, Id>,
        parent: Option<Id>,
    },
    Symlink {
        target: String,
    },
}

/// One object of the model.
pub struct Inode {
    pub kind: Kind,
    pub mode: u32,
    /// Names that it has.
    pub nlink: u64,
    /// Open holders: data lives on without names.
    pub holders: u32,
    /// st_ino, once seen.
    pub ino: Option<u64>,
    /// Only lowers hold it: nothing has changed it yet.
    pub pure_lower: bool,
}

/// The objects that one worker owns.
pub struct Model {
    inodes: HashMap<Id, Inode>,
    next: Id,
}

impl Model {
    /// The start as `layout` says.
    pub fn new(owner: usize) -> Model {
        let mut model = Model {
            inodes: HashMap::new(),
            next: 0,
        };
        for _ in 0..SHARED {
            model.add_inode(Model::new_dir(None), DIR_MODE);
        }
        for start in start_of(owner) {
            model.add_start(&start);
        }
        model
    }

    fn new_dir(parent: Option<Id>) -> Kind {
        Kind::Dir {
            children: BTreeMap::new(),
            parent,
        }
    }

    fn add_start(&mut self, start: &Start) {
        let (dir, name) = self.resolve_parent(&start.path);
        let id = match &start.kind {
            StartKind::File { seed, len } => self.add_file(pattern(*seed, *len), FILE_MODE),
            StartKind::Dir if self.child(dir, &name).is_some() => return,
            StartKind::Dir => self.add_inode(Model::new_dir(Some(dir)), DIR_MODE),
            StartKind::Symlink { target } => self.add_symlink(target),
            StartKind::Link { to } => {
                let (dir, name) = self.resolve_parent(to);
                self.child(dir, &name).unwrap()
            }
        };
        self.link(dir, &name, id);
        self.get_mut(id).pure_lower = start.is_lower();
    }

    fn resolve_parent(&self, path: &str) -> (Id, String) {
        let mut parts: Vec<&str> = path.split('/').collect();
        let name = parts.pop().unwrap().to_owned();
        let mut dir: Id = parts[0][1..].parse().unwrap();
        for part in &parts[1..] {
            dir = self.child(dir, part).unwrap();
        }
        (dir, name)
    }

    fn add_inode(&mut self, kind: Kind, mode: u32) -> Id {
        let id = self.next;
        self.next += 1;
        let inode = Inode {
            kind,
            mode,
            nlink: 0,
            holders: 0,
            ino: None,
            pure_lower: false,
        };
        self.inodes.insert(id, inode);
        id
    }

    pub fn add_file(&mut self, data: Vec<u8>, mode: u32) -> Id {
        self.add_inode(Kind::File { data, xattr: None }, mode)
    }

    pub fn add_dir(&mut self, parent: Id, mode: u32) -> Id {
        self.add_inode(Model::new_dir(Some(parent)), mode)
    }

    pub fn add_symlink(&mut self, target: &str) -> Id {
        let target = target.to_owned();
        self.add_inode(Kind::Symlink { target }, 0o777)
    }

    pub fn get(&self, id: Id) -> &Inode {
        &self.inodes[&id]
    }

    pub fn get_mut(&mut self, id: Id) -> &mut Inode {
        self.inodes.get_mut(&id).unwrap()
    }

    pub fn all(&self) -> impl Iterator<Item = (Id, &Inode)> {
        self.inodes.iter().map(|(id, inode)| (*id, inode))
    }

    /// The data of a file.
    pub fn data(&self, id: Id) -> &Vec<u8> {
        match &self.get(id).kind {
            Kind::File { data, .. } => data,
            _ => panic!("{id} is no file"),
        }
    }

    /// The data of a file, to change it.
    pub fn data_mut(&mut self, id: Id) -> &mut Vec<u8> {
        match &mut self.get_mut(id).kind {
            Kind::File { data, .. } => data,
            _ => panic!("{id} is no file"),
        }
    }

    /// Writes into a file; a gap before `offset` is zeroes.
    pub fn write(&mut self, id: Id, offset: usize, bytes: &[u8]) {
        let data = self.data_mut(id);
        if data.len() < offset + bytes.len() {
            data.resize(offset + bytes.len(), 0);
        }
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub fn is_dir(&self, id: Id) -> bool {
        matches!(self.get(id).kind, Kind::Dir { .. })
    }

    pub fn is_file(&self, id: Id) -> bool {
        matches!(self.get(id).kind, Kind::File { .. })
    }

    /// The names in a directory.
    pub fn children(&self, dir: Id) -> &BTreeMap<String, Id> {
        match &self.get(dir).kind {
            Kind::Dir { children, .. } => children,
            _ => panic!("{dir} is no directory"),
        }
    }

    pub fn child(&self, dir: Id, name: &str) -> Option<Id> {
        self.children(dir).get(name).copied()
    }

    fn children_mut(&mut self, dir: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.get_mut(dir).kind {
            Kind::Dir { children, .. } => children,
            _ => panic!("{dir} is no directory"),
        }
    }

    fn parent(&self, dir: Id) -> Option<Id> {
        match &self.get(dir).kind {
            Kind::Dir { parent, .. } => *parent,
            _ => panic!("{dir} is no directory"),
        }
    }

    /// The path of a directory in the tree.
    pub fn path(&self, dir: Id) -> String {
        let Some(parent) = self.parent(dir) else {
            return format!("s{dir}");
        };
        let name = self
            .children(parent)
            .iter()
            .find(|(_, id)| **id == dir)
            .map(|(name, _)| name)
            .unwrap();
        format!("{}/{name}", self.path(parent))
    }

    /// Whether `dir` is `above`, or somewhere beneath it.
    pub fn is_beneath(&self, dir: Id, above: Id) -> bool {
        dir == above
            || self
                .parent(dir)
                .is_some_and(|up| self.is_beneath(up, above))
    }

    /// Gives an object a name that is free.
    pub fn link(&mut self, dir: Id, name: &str, id: Id) {
        let before = self.children_mut(dir).insert(name.to_owned(), id);
        assert!(before.is_none(), "{name} is taken");
        let inode = self.get_mut(id);
        inode.nlink += 1;
        if let Kind::Dir { parent, .. } = &mut inode.kind {
            *parent = Some(dir);
        }
    }

    /// Takes a name away; the object goes with its last name and holder.
    pub fn unlink(&mut self, dir: Id, name: &str) {
        let id = self.children_mut(dir).remove(name).unwrap();
        self.get_mut(id).nlink -= 1;
        self.collect(id);
    }

    /// Forgets an object that has neither names nor holders.
    pub fn collect(&mut self, id: Id) {
        if self.get(id).nlink == 0 && self.get(id).holders == 0 {
            self.inodes.remove(&id);
        }
    }

    /// What rename(2) must say.
    pub fn plan_rename(
        &self,
        from: (Id, &str),
        to: (Id, &str),
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let source = self.child(from.0, from.1).ok_or(Errno::NOENT)?;
        let target = self.child(to.0, to.1);
        if flags.contains(RenameFlags::NOREPLACE) && target.is_some() {
            return Err(Errno::EXIST);
        }
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if exchange && target.is_none() {
            return Err(Errno::NOENT);
        }
        if self.is_dir(source) && self.is_beneath(to.0, source) {
            return Err(Errno::INVAL);
        }
        let Some(target) = target else { return Ok(()) };
        if self.is_dir(target) && self.is_beneath(from.0, target) {
            return Err(if exchange {
                Errno::INVAL
            } else {
                Errno::NOTEMPTY
            });
        }
        if exchange || source == target {
            return Ok(());
        }
        match (self.is_dir(source), self.is_dir(target)) {
            (true, false) => Err(Errno::NOTDIR),
            (false, true) => Err(Errno::ISDIR),
            (true, true) if !self.children(target).is_empty() => Err(Errno::NOTEMPTY),
            _ => Ok(()),
        }
    }

    /// Does what rename(2) did.
    pub fn rename(&mut self, from: (Id, &str), to: (Id, &str), flags: RenameFlags) {
        let source = self.child(from.0, from.1).unwrap();
        let target = self.child(to.0, to.1);
        if target == Some(source) {
            // Two names of one file: POSIX has rename do nothing.
            return;
        }
        if let Some(target) = target {
            // Held, so that an exchange doesn't collect it.
            self.get_mut(target).holders += 1;
            self.unlink(to.0, to.1);
        }
        self.get_mut(source).holders += 1;
        self.unlink(from.0, from.1);
        self.link(to.0, to.1, source);
        self.get_mut(source).holders -= 1;
        if let Some(target) = target {
            if flags.contains(RenameFlags::EXCHANGE) {
                self.link(from.0, from.1, target);
            }
            self.get_mut(target).holders -= 1;
            self.collect(target);
        }
    }
}
