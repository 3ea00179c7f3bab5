//! Inode numbers: one space for all layers.
//!
//! All layers on one file system: the real numbers. Several: the index of the file system in the
//! high bits, composed as the kernel does (`ovl_map_dev_ino` in fs/overlayfs/inode.c). What does
//! not fit, objects on file systems that are mounted inside of a layer, and objects that claim a
//! number that is taken get one from a table; those numbers last as long as the mount.

use dashmap::DashMap;
use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers from here on are the table's where all must fit 32 bits.
const TABLE_32: u64 = 1 << 31;

/// What a number out of the table stands for.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum TableKey {
    /// An object by `st_dev` and `st_ino`.
    Object(u64, u64),
    /// An upper object, by `st_ino`, whose origin is taken.
    Upper(u64),
    /// A lower object, by parent and name, whose number is taken.
    Name(u64, OsString),
}

/// The map from (file system, inode) to the mount's `st_ino`.
pub(crate) struct InoMap {
    /// Pairs of `st_dev` and file system index.
    devs: Vec<(u64, u32)>,
    /// Bits that real numbers may use; `None`: all are on one file system.
    shift: Option<u32>,
    /// All numbers are below 2^32.
    fit32: bool,
    table: DashMap<TableKey, u64>,
    next: AtomicU64,
}

impl InoMap {
    /// `devs`: every file system of the layers with its index (upper's is 0). `narrow`: all of
    /// them have 32-bit inode numbers. `fit32`: so must the mount's.
    pub(crate) fn new(devs: Vec<(u64, u32)>, narrow: bool, fit32: bool) -> InoMap {
        let one = devs.iter().all(|d| d.0 == devs[0].0);
        let highest = devs.iter().map(|d| d.1).max().unwrap_or(0);
        let bits = if narrow {
            32
        } else {
            highest.max(1).ilog2() + 2
        };
        let shift = (!one).then_some(64 - bits);
        InoMap {
            devs,
            shift,
            fit32,
            table: DashMap::new(),
            next: AtomicU64::new(1),
        }
    }

    /// Are the numbers those of the one file system of all layers, but for what is out of the table?
    pub(crate) fn is_plain(&self) -> bool {
        self.shift.is_none() && !self.fit32
    }

    /// The `st_ino` for the object `ino` on the file system with this `st_dev`.
    pub(crate) fn map(&self, dev: u64, ino: u64) -> u64 {
        let first = self.devs.first().map(|d| d.0);
        let fsid = self.devs.iter().find(|d| d.0 == dev).map(|d| d.1);
        match (fsid, self.shift) {
            _ if self.fit32 && first == Some(dev) && ino > 1 && ino < TABLE_32 => ino,
            _ if self.fit32 => self.table_number(TableKey::Object(dev, ino)),
            // 0 is "no inode" and 1 is the id of the root on the FUSE side.
            (Some(_), None) if ino > 1 && ino >> 62 == 0 => ino,
            (Some(fsid), Some(shift)) if ino > 1 && ino >> shift == 0 => {
                ino | (u64::from(fsid) << shift << 1)
            }
            _ => self.table_number(TableKey::Object(dev, ino)),
        }
    }

    /// A number for something that can't have the one it should.
    pub(crate) fn table_number(&self, key: TableKey) -> u64 {
        let base = match self.shift {
            _ if self.fit32 => TABLE_32,
            Some(shift) => 1 << shift,
            None => 1 << 62,
        };
        *self
            .table
            .entry(key)
            .or_insert_with(|| base | self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Lets an upper object be found under the id of its node, which is not made from its number.
    pub(crate) fn bind(&self, upper_ino: u64, id: u64) {
        self.table.insert(TableKey::Upper(upper_ino), id);
    }

    /// Undoes [`bind`](Self::bind).
    pub(crate) fn unbind(&self, upper_ino: u64, id: u64) {
        self.table
            .remove_if(&TableKey::Upper(upper_ino), |_, bound| *bound == id);
    }

    /// The number that was given for this key, if one was.
    pub(crate) fn known(&self, key: &TableKey) -> Option<u64> {
        self.table.get(key).map(|n| *n)
    }

    /// A number for the lower object at `name` in the directory with id `parent`.
    pub(crate) fn for_name(&self, parent: u64, name: &OsStr) -> u64 {
        self.table_number(TableKey::Name(parent, name.to_os_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_system_keeps_the_real_numbers() {
        let map = InoMap::new(vec![(7, 0), (7, 1)], true, false);
        assert_eq!(map.map(7, 1234), 1234);
        assert_ne!(map.map(7, 1), 1);
    }

    #[test]
    fn several_file_systems_are_composed_as_the_kernel_does() {
        let map = InoMap::new(vec![(7, 0), (8, 1), (9, 2)], true, false);
        assert_eq!(map.map(7, 5), 5);
        assert_eq!(map.map(8, 5), 5 | 1 << 33);
        assert_eq!(map.map(9, 5), 5 | 2 << 33);
        let wide = InoMap::new(vec![(7, 0), (8, 1), (9, 2)], false, false);
        assert_eq!(wide.map(9, 5), 5 | 2 << 62);
    }

    #[test]
    fn numbers_fit_32_bits_where_they_must() {
        let map = InoMap::new(vec![(7, 0), (8, 1)], false, true);
        assert_eq!(map.map(7, 1234), 1234);
        let (a, b) = (map.map(8, 1234), map.map(7, 1 << 40));
        assert!(a < 1 << 32 && b < 1 << 32 && a != b && a != 1234 && b != 1234);
        assert_eq!(map.map(8, 1234), a);
    }

    #[test]
    fn what_does_not_fit_is_stable_and_unique() {
        let map = InoMap::new(vec![(7, 0), (8, 1)], true, false);
        let a = map.map(8, 1 << 40);
        assert_eq!(a, map.map(8, 1 << 40));
        assert_ne!(a, map.map(7, 1 << 40));
        assert_ne!(a, map.map(99, 5));
    }
}
