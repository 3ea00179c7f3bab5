//! Open and mapped files that are held while their names are unlinked, renamed and copied up.

use std::os::fd::OwnedFd;

use rustix::fs;

use super::files::read_all;
use super::mapping::Mapping;
use super::model::Id;
use super::worker::{Worker, expect, expect_bytes};

/// Files that a worker holds open at most.
const MAX_HOLDERS: usize = 24;

/// An open file of the worker's own.
pub struct Holder {
    pub id: Id,
    fd: OwnedFd,
    map: Option<Mapping>,
    writable: bool,
    /// Opened read-only while only lowers held the file.
    pub from_lower: bool,
}

impl Worker {
    /// Keeps a file open, mapped perhaps.
    pub fn hold(&mut self, id: Id, fd: OwnedFd, writable: bool, from_lower: bool) {
        let len = self.model.data(id).len();
        let map = if len > 0 && self.random.one_in(2) {
            let what = format!("mmap {len} of object {id}");
            self.note(&what);
            expect(&what, Mapping::new(&fd, len, writable), Ok(()))
        } else {
            None
        };
        self.model.get_mut(id).holders += 1;
        self.holders.push(Holder {
            id,
            fd,
            map,
            writable,
            from_lower,
        });
        if self.holders.len() > MAX_HOLDERS {
            let oldest = self.holders.remove(0);
            self.check_holder(&oldest);
            self.let_go(oldest);
        }
    }

    /// Closes a held file.
    pub fn let_go(&mut self, holder: Holder) {
        let id = holder.id;
        drop(holder);
        self.model.get_mut(id).holders -= 1;
        self.model.collect(id);
    }

    /// One operation on one of the held files.
    pub fn use_holder(&mut self) {
        if self.holders.is_empty() {
            return;
        }
        let index = self.random.below(self.holders.len());
        // Taken out meanwhile, so that the model can be borrowed beside it.
        let holder = self.holders.swap_remove(index);
        let (id, links) = (holder.id, self.model.get(holder.id).nlink);
        match self.random.below(10) {
            0..=2 => {
                self.note(&format!("held {id}: check, {links} links"));
                self.check_holder(&holder);
            }
            3..=4 if holder.writable => {
                self.note(&format!("held {id}: write, {links} links"));
                self.before_write(id);
                self.write_some(&holder.fd, id, false);
                self.check_holder(&holder);
            }
            5..=6 if holder.writable => self.write_mapped(&holder),
            7 if holder.writable => {
                let len = self.random.below(40_000);
                let what = format!("held {id}: ftruncate {len}, {links} links");
                self.note(&what);
                self.before_write(id);
                expect(&what, fs::ftruncate(&holder.fd, len as u64), Ok(()));
                self.model.data_mut(id).resize(len, 0);
                self.check_holder(&holder);
            }
            8 => self.sync_holder(&holder),
            9 => {
                self.note(&format!("held {id}: close, {links} links"));
                self.check_holder(&holder);
                self.let_go(holder);
                return;
            }
            _ => self.check_holder(&holder),
        }
        self.holders.push(holder);
    }

    fn write_mapped(&mut self, holder: &Holder) {
        let Some(map) = &holder.map else { return };
        let len = map.len().min(self.model.data(holder.id).len());
        if len == 0 {
            return;
        }
        let start = self.random.below(len);
        let count = 1 + self.random.below((len - start).min(6000));
        let bytes = self.bytes(count);
        self.note(&format!(
            "held {}: write {count} mapped bytes at {start}",
            holder.id
        ));
        self.before_write(holder.id);
        map.write(start, &bytes);
        self.model.write(holder.id, start, &bytes);
        self.check_holder(holder);
    }

    fn sync_holder(&mut self, holder: &Holder) {
        let what = format!("held {}: sync", holder.id);
        self.note(&what);
        if let Some(map) = &holder.map
            && self.random.one_in(2)
        {
            expect(&what, map.sync(), Ok(()));
        } else if self.random.one_in(2) {
            expect(&what, fs::fsync(&holder.fd), Ok(()));
        } else {
            expect(&what, fs::fdatasync(&holder.fd), Ok(()));
        }
    }

    /// A held file reads as the model says, through the descriptor and through the mapping.
    pub fn check_holder(&self, holder: &Holder) {
        let inode = self.model.get(holder.id);
        let want = self.model.data(holder.id);
        let what = format!(
            "held object {} ({} links, writable {})",
            holder.id, inode.nlink, holder.writable
        );
        let stat = expect(&what, fs::fstat(&holder.fd), Ok(())).unwrap();
        assert_eq!(stat.st_size, want.len() as i64, "{what}: size");
        if !self.orders.lax {
            assert_eq!(stat.st_nlink, inode.nlink, "{what}: links");
        }
        if let Some(ino) = inode.ino {
            assert_eq!(stat.st_ino, ino, "{what}: inode number");
        }
        expect_bytes(&what, &read_all(&holder.fd, &what), want);
        if let Some(map) = &holder.map {
            let len = map.len().min(want.len());
            let mut got = vec![0; len];
            map.read(0, &mut got);
            expect_bytes(&format!("{what}, mapped"), &got, &want[..len]);
        }
    }
}
