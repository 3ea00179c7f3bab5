use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::super::attr::stat_opt;
use super::*;
use crate::format::acl::{Acl, AclEntry};

fn row(stored: u32, shown: u32, count: u32) -> IdMap {
    IdMap {
        stored,
        shown,
        count,
    }
}

fn ids(options: &IdOptions) -> Ids {
    Ids::new(options, |_| Ok(false)).unwrap()
}

/// podman's keep-id.
fn keep_id() -> Vec<IdMap> {
    vec![row(0, 1, 1002), row(1002, 0, 1), row(1003, 1003, 64_534)]
}

#[test]
fn ids_go_through_the_first_row_that_has_them() {
    let mapping = Mapping::new(&keep_id(), None);
    for (stored, shown) in [
        (0, 1),
        (1001, 1002),
        (1002, 0),
        (1003, 1003),
        (65_536, 65_536),
    ] {
        assert_eq!(mapping.to_shown(stored), Some(shown));
        assert_eq!(mapping.to_stored(shown), Some(stored));
        assert_eq!(mapping.shown(stored), shown);
    }
    assert_eq!(mapping.to_shown(65_537), None);
    assert_eq!(mapping.to_stored(65_537), None);
    assert_eq!(mapping.shown(65_537), OVERFLOW_ID);
}

#[test]
fn without_a_map_ids_are_themselves() {
    for rows in [vec![], vec![row(0, 0, u32::MAX)]] {
        let mapping = Mapping::new(&rows, None);
        for id in [0, 1, 65_534, u32::MAX] {
            assert_eq!(mapping.to_shown(id), Some(id));
            assert_eq!(mapping.to_stored(id), Some(id));
        }
    }
}

#[test]
fn squashed_ids_hide_every_other_and_are_stored_as_asked() {
    let options = IdOptions {
        squash_uid: Some(7),
        ..IdOptions::default()
    };
    let ids = ids(&options);
    assert_eq!((ids.shown_uid(5), ids.shown_gid(6)), (7, 6));
    assert_eq!(ids.stored_caller(55, 66), (55, 66));
}

#[test]
fn a_chown_to_an_id_outside_of_the_map_is_refused_and_a_caller_from_there_is_not() {
    let options = IdOptions {
        uid_map: vec![row(0, 100_000, 1000)],
        ..IdOptions::default()
    };
    let ids = ids(&options);
    let owner = |uid, gid| {
        ids.stored_owner(&SetAttr {
            uid,
            gid,
            ..SetAttr::default()
        })
    };
    assert_eq!(owner(Some(100_007), Some(8)), Ok((Some(7), Some(8))));
    assert_eq!(owner(None, Some(8)), Ok((None, Some(8))));
    assert_eq!(owner(Some(7), None), Err(Errno::INVAL));
    assert_eq!(ids.stored_caller(100_007, 8), (7, 8));
    assert_eq!(ids.stored_caller(7, 8), (OVERFLOW_ID, 8));
}

#[test]
fn ids_in_acls_are_mapped_and_back() {
    let options = IdOptions {
        uid_map: vec![row(0, 100, 10)],
        gid_map: vec![row(0, 200, 10)],
        ..IdOptions::default()
    };
    let acl = |user, group| {
        let entry = |tag| AclEntry { tag, perm: 5 };
        acl::encode(&Acl {
            entries: vec![
                entry(AclTag::UserObj),
                entry(AclTag::User(user)),
                entry(AclTag::GroupObj),
                entry(AclTag::Group(group)),
                entry(AclTag::Mask),
                entry(AclTag::Other),
            ],
        })
    };
    let key = OsStr::new("system.posix_acl_access");
    let mapped = ids(&options);
    assert_eq!(mapped.shown_value(key, acl(1, 2)), Ok(acl(101, 202)));
    assert_eq!(
        mapped.shown_value(key, acl(1, 77)),
        Ok(acl(101, OVERFLOW_ID))
    );
    assert_eq!(
        mapped.stored_value(key, &acl(101, 202)),
        Ok(Some(acl(1, 2)))
    );
    assert_eq!(mapped.stored_value(key, &acl(1, 202)), Err(Errno::INVAL));
    assert_eq!(mapped.stored_value(key, b"no acl"), Err(Errno::INVAL));
    assert_eq!(mapped.stored_value(OsStr::new("user.x"), b"v"), Ok(None));
    let plain = ids(&IdOptions::default());
    assert_eq!(plain.shown_value(key, acl(1, 2)), Ok(acl(1, 2)));
    assert_eq!(plain.stored_value(key, &acl(1, 2)), Ok(None));
}

#[test]
fn the_mounts_own_attributes_are_hidden_only_while_they_are_in_use() {
    let of = |xattr_permissions, marked: &'static CStr| {
        let options = IdOptions {
            xattr_permissions,
            ..IdOptions::default()
        };
        Ids::new(&options, |key| Ok(key == marked)).unwrap()
    };
    let off = of(XattrPermissions::Off, USER_CONTAINERS);
    let user = of(XattrPermissions::User, c"");
    let both = of(XattrPermissions::Privileged, USER_CONTAINERS);
    for (key, hidden) in [
        (USER_CONTAINERS, [false, true, true]),
        (SECURITY_FUSE_OVERLAYFS, [false, false, true]),
        (c"system.posix_acl_access", [false, true, true]),
        (c"user.other", [false, false, false]),
    ] {
        let found = [&off, &user, &both].map(|ids| ids.hides(key.to_bytes()));
        assert_eq!(found, hidden, "{key:?}");
    }
    assert_eq!(both.keys, [SECURITY_FUSE_OVERLAYFS, USER_CONTAINERS]);
    assert!(user.stand_ins() && !both.stand_ins() && !off.stand_ins());
}

/// A directory with a regular file, and what `xattr_permissions=2` makes of it.
fn stored(kind: Option<OverrideKind>) -> (tempfile::TempDir, OwnedFd, Ids) {
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::write(scratch.path().join("f"), "target").unwrap();
    let dir = rustix::fs::open(scratch.path(), OFlags::PATH, Mode::empty()).unwrap();
    let options = IdOptions {
        xattr_permissions: XattrPermissions::User,
        ..IdOptions::default()
    };
    let ids = ids(&options);
    let stat = OverrideStat {
        uid: 77,
        gid: 88,
        mode: 0o4711,
        kind,
    };
    ids.store(dir.as_fd(), OsStr::new("f"), &stat).unwrap();
    (scratch, dir, ids)
}

#[test]
fn attributes_are_read_over_what_is_on_disk() {
    let name = OsStr::new("f");
    for kind in [Kind::File, Kind::Symlink, Kind::Fifo, Kind::CharDevice] {
        let (scratch, dir, ids) = stored(override_kind(kind, (5, 6)));
        let dir = dir.as_fd();
        let st = ids.apply(dir, name, stat_at(dir, name).unwrap()).unwrap();
        assert_eq!((st.stx_uid, st.stx_gid), (77, 88));
        assert_eq!(u32::from(st.stx_mode), kind.mode_bits() | 0o4711);
        assert_eq!(ids.kind_of_file(dir, name), Ok(kind));
        if kind == Kind::CharDevice {
            assert_eq!((st.stx_rdev_major, st.stx_rdev_minor), (5, 6));
        }
        assert_eq!(link_target(dir, name, &ids), Ok(b"target".to_vec()));
        let disk = fs::metadata(scratch.path().join("f")).unwrap();
        assert_eq!(
            disk.uid(),
            rustix::process::geteuid().as_raw(),
            "the real owner"
        );
    }
}

#[test]
fn a_file_never_stands_for_a_directory_nor_a_directory_for_a_file() {
    let name = OsStr::new("f");
    let (scratch, dir, ids) = stored(Some(OverrideKind::Dir));
    let dir = dir.as_fd();
    assert_eq!(ids.kind_of_file(dir, name), Ok(Kind::File));
    let st = ids.apply(dir, name, stat_at(dir, name).unwrap()).unwrap();
    assert!(is_file(&st));
    fs::create_dir(scratch.path().join("d")).unwrap();
    let name = OsStr::new("d");
    let stat = OverrideStat {
        uid: 1,
        gid: 1,
        mode: 0o700,
        kind: Some(OverrideKind::Symlink),
    };
    ids.store(dir, name, &stat).unwrap();
    let st = stat_opt(dir, name).unwrap().unwrap();
    let st = ids.apply(dir, name, st).unwrap();
    assert!(super::super::attr::is_dir(&st));
    assert_eq!(st.stx_uid, 1);
}

#[test]
fn a_damaged_attribute_is_an_error() {
    let (_scratch, dir, ids) = stored(None);
    let name = OsStr::new("f");
    for value in [&b"0:0"[..], &[b'0'; 200]] {
        xattr::set_at(dir.as_fd(), name, USER_CONTAINERS, value, SetFlags::Any).unwrap();
        let st = stat_at(dir.as_fd(), name).unwrap();
        assert_eq!(ids.apply(dir.as_fd(), name, st).err(), Some(Errno::IO));
    }
}

proptest! {
    #[test]
    fn what_is_stored_is_shown_again(
        rows in proptest::collection::vec((0u32..500, 0u32..500, 1u32..100), 1..4),
        id in 0u32..700,
    ) {
        // Rows that don't overlap: each in its own thousand.
        let rows: Vec<IdMap> = rows
            .iter()
            .zip((0..).step_by(1000))
            .map(|(&(stored, shown, count), base)| row(base + stored, base + shown, count))
            .collect();
        let mapping = Mapping::new(&rows, None);
        if let Some(stored) = mapping.to_stored(id) {
            prop_assert_eq!(mapping.to_shown(stored), Some(id));
        }
        if let Some(shown) = mapping.to_shown(id) {
            prop_assert_eq!(mapping.to_stored(shown), Some(id));
        }
    }
}
