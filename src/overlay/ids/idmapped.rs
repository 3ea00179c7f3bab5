//! Lowers on idmapped mounts: their ids are those to show already.
//!
//! podman as root hands a mount program both: lowers on mounts that map ids (`mapped/0/l/…`), and the
//! same map in `uidmapping=`, which upper needs. What such a mount shows is taken back to the ids that
//! the map is for, so that all else works with stored ids only. Upper is always as it is on disk.

use rustix::fs::Statx;
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{ACL_PREFIX, Ids, Mapping, OVERFLOW_ID};
use crate::overlay::attr::stat_at;

/// The mounts through which idmapped lowers are used, by the kernel's numbers. The kernel tells the
/// mount in every statx since Linux 5.8, and has idmapped mounts since 5.12.
#[derive(Default)]
pub(super) struct IdmappedMounts(Box<[u64]>);

impl IdmappedMounts {
    /// `roots`: of the idmapped lowers. A mount that upper is reached through too is left out: there,
    /// nobody could tell whose an object is.
    pub(super) fn of<'a>(
        roots: impl Iterator<Item = &'a OwnedFd>,
        upper: Option<BorrowedFd<'_>>,
    ) -> Result<IdmappedMounts, Errno> {
        let mount_of = |fd| stat_at(fd, OsStr::new("")).map(|st| st.stx_mnt_id);
        let upper = upper.map(mount_of).transpose()?;
        let mut mounts = Vec::new();
        for root in roots {
            let mount = mount_of(root.as_fd())?;
            if Some(mount) != upper && !mounts.contains(&mount) {
                mounts.push(mount);
            }
        }
        Ok(IdmappedMounts(mounts.into()))
    }

    fn has(&self, st: &Statx) -> bool {
        self.0.contains(&st.stx_mnt_id)
    }
}

fn back(mapping: &Mapping, id: u32) -> u32 {
    mapping.to_stored(id).unwrap_or(OVERFLOW_ID)
}

impl Ids {
    /// The ids of an object as the map takes them.
    pub(super) fn undo_mount(&self, st: &mut Statx) {
        if self.idmapped.has(st) {
            st.stx_uid = back(&self.uids, st.stx_uid);
            st.stx_gid = back(&self.gids, st.stx_gid);
        }
    }

    /// The value of an attribute that was read from an object, its ids as the map takes them.
    ///
    /// # Errors
    /// `EIO` for an ACL that can't be understood.
    pub(crate) fn value_on_disk(
        &self,
        (dir, name): (BorrowedFd<'_>, &OsStr),
        key: &CString,
        value: Vec<u8>,
    ) -> Result<Vec<u8>, Errno> {
        if self.idmapped.0.is_empty()
            || !key.as_bytes().starts_with(ACL_PREFIX)
            || !self.idmapped.has(&stat_at(dir, name)?)
        {
            return Ok(value);
        }
        self.map_acl(&value, |mapping, id| Some(back(mapping, id)))
            .map_err(|_| Errno::IO)
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::overlay::config::{IdMap, IdOptions};

    #[test]
    fn ids_of_an_idmapped_mount_are_taken_back_and_others_stay() {
        let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = rustix::fs::open(scratch.path(), OFlags::PATH, Mode::empty()).unwrap();
        let row = |shown| IdMap {
            stored: 0,
            shown,
            count: 1000,
        };
        let options = IdOptions {
            uid_map: vec![row(100_000)],
            gid_map: vec![row(200_000)],
            ..IdOptions::default()
        };
        let mut ids = Ids::new(&options, |_| Ok(false)).unwrap();
        let st = |uid, gid| {
            let mut st = stat_at(root.as_fd(), OsStr::new("")).unwrap();
            (st.stx_uid, st.stx_gid) = (uid, gid);
            st
        };
        let undone = |ids: &Ids, uid, gid| {
            let mut st = st(uid, gid);
            ids.undo_mount(&mut st);
            (st.stx_uid, st.stx_gid)
        };
        assert_eq!(undone(&ids, 100_005, 200_006), (100_005, 200_006));

        ids.idmapped = IdmappedMounts::of([&root].into_iter(), None).unwrap();
        assert_eq!(undone(&ids, 100_005, 200_006), (5, 6));
        assert_eq!(ids.shown_uid(undone(&ids, 100_005, 200_006).0), 100_005);
        // What the mount itself has no id for, and what lies on another mount.
        assert_eq!(undone(&ids, OVERFLOW_ID, 5), (OVERFLOW_ID, OVERFLOW_ID));
        let mut elsewhere = st(100_005, 200_006);
        elsewhere.stx_mnt_id += 1;
        ids.undo_mount(&mut elsewhere);
        assert_eq!(elsewhere.stx_uid, 100_005);

        ids.idmapped = IdmappedMounts::of([&root].into_iter(), Some(root.as_fd())).unwrap();
        assert_eq!(undone(&ids, 100_005, 200_006), (100_005, 200_006));
    }
}
