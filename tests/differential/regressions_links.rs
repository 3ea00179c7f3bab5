//! Cases of hard links and of open files without a name, as in [`super::regressions`].

use super::model::Disk::{Ext4, Tmpfs};
use super::model::Fa::FaZero;
use super::model::Node::{Chr, Fifo};
use super::model::Op::*;
use super::model::Rn::{RnExchange, RnPlain};
use super::model::{Case, Entry, L, M, O, Op, Tm, Xf, b, e};
use super::mounts::{Disks, Subject};
use super::parity;
use super::regressions::{ROOT, THEN, check, check_on, dir, file, link, linked, open};

#[test]
fn a_hard_link_is_renamed_when_another_of_its_names_is_known() {
    let lower = vec![
        dir(b"d", 0o755),
        file(b"d/x", 0o644, ROOT),
        link(b"y", b"d/x"),
    ];
    let ops = vec![
        List {
            path: b(b"d"),
            stat: true,
        },
        Rename {
            from: b(b"y"),
            to: b(b"d/new"),
            how: RnPlain,
        },
    ];
    check_on(Ext4, lower, vec![], ops);
}

#[test]
fn a_hard_link_is_renamed_when_another_of_its_names_was_renamed() {
    let lower = vec![dir(b"d", 0o700), file(b"x", 0o644, ROOT), link(b"y", b"x")];
    let ops = vec![
        Rename {
            from: b(b"x"),
            to: b(b"d/x"),
            how: RnPlain,
        },
        Rename {
            from: b(b"y"),
            to: b(b"d/y"),
            how: RnPlain,
        },
    ];
    check_on(Tmpfs, lower, vec![], ops);
}

#[test]
fn a_hard_link_is_exchanged_when_another_of_its_names_was_copied_up() {
    let lower = vec![dir(b"d", 0o755), file(b"x", 0o644, ROOT), link(b"y", b"x")];
    let open = Open {
        h: 0,
        path: b(b"x"),
        flags: O(libc::O_RDWR),
        mode: M(0),
    };
    let ops = vec![Rename {
        from: b(b"d"),
        to: b(b"y"),
        how: RnExchange,
    }];
    check_on(Ext4, lower, vec![open], ops);
}

#[test]
fn the_link_count_of_a_device_survives_a_remount() {
    let device = e(b(b"x"), Chr(1, 3), M(0o600), ROOT, ROOT, THEN, L(vec![]));
    check_on(
        Ext4,
        vec![device, link(b"y", b"x")],
        vec![],
        vec![Unlink(b(b"x"))],
    );
}

#[test]
fn an_open_hard_link_lives_on_when_the_name_it_was_linked_from_goes() {
    let ops = vec![
        Link {
            from: b(b"y"),
            to: b(b"d/new"),
            follow: false,
        },
        open(0, b"d/new", libc::O_RDWR),
        Unlink(b(b"y")),
        Ftruncate { h: 0, len: 2304 },
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn an_open_hard_link_lives_on_when_its_name_goes_and_another_is_in_the_lower() {
    let ops = vec![
        open(0, b"x", libc::O_RDWR),
        Fchown {
            h: 0,
            uid: 1000,
            gid: 2000,
        },
        Unlink(b(b"x")),
        Futimens {
            h: 0,
            atime: Tm::Omit,
            mtime: Tm::At(THEN),
        },
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn an_open_hard_link_lives_on_when_all_its_names_go() {
    let ops = vec![
        open(0, b"x", libc::O_RDWR),
        Unlink(b(b"y")),
        Unlink(b(b"x")),
        Ftruncate { h: 0, len: 0 },
        Fstat(0),
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn an_open_hard_link_lives_on_when_its_renamed_name_goes() {
    let ops = vec![
        Rename {
            from: b(b"x"),
            to: b(b"d/g"),
            how: RnPlain,
        },
        open(0, b"d/g", libc::O_RDONLY),
        Unlink(b(b"d/g")),
        Fchmod {
            h: 0,
            mode: M(0o444),
        },
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn a_hard_link_is_read_after_another_name_was_renamed_and_unlinked() {
    let ops = vec![
        open(0, b"y", libc::O_RDWR),
        Pread {
            h: 0,
            off: 0,
            len: 100,
        },
        Rename {
            from: b(b"x"),
            to: b(b"d/g"),
            how: RnPlain,
        },
        Unlink(b(b"d/g")),
        open(1, b"y", libc::O_RDWR),
        MmapKeep { h: 1, m: 0 },
        Cat(b(b"y")),
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn an_open_file_without_a_name_can_be_synced() {
    let ops = vec![
        Unlink(b(b"y")),
        open(0, b"x", libc::O_RDWR),
        Unlink(b(b"x")),
        Fsync { h: 0, data: false },
        open(1, b"z", libc::O_RDONLY),
        Unlink(b(b"z")),
        Fsync { h: 1, data: true },
    ];
    check_on(
        Ext4,
        [linked(), vec![file(b"z", 0o644, ROOT)]].concat(),
        vec![],
        ops,
    );
}

#[test]
fn the_link_count_of_a_fifo_falls_by_one_when_a_renamed_name_goes() {
    let fifo = e(b(b"x"), Fifo, M(0o600), ROOT, ROOT, THEN, L(vec![]));
    let lower = vec![dir(b"d", 0o755), fifo, link(b"d/y", b"x"), link(b"z", b"x")];
    let ops = vec![
        Rename {
            from: b(b"d"),
            to: b(b"e"),
            how: RnPlain,
        },
        Rename {
            from: b(b"e/y"),
            to: b(b"e/w"),
            how: RnPlain,
        },
        Unlink(b(b"e/w")),
        Stat {
            path: b(b"z"),
            follow: false,
        },
        Walk,
    ];
    check_on(Ext4, lower, vec![], ops);
}

#[test]
fn the_mtime_of_a_write_to_a_new_hard_link_is_kept() {
    let ops = vec![
        Link {
            from: b(b"y"),
            to: b(b"d/1"),
            follow: false,
        },
        Link {
            from: b(b"d/1"),
            to: b(b"d/2"),
            follow: false,
        },
        Unlink(b(b"y")),
        Put {
            path: b(b"d/2"),
            flags: O(libc::O_RDWR),
            mode: M(0),
            off: 0,
            len: 1,
            seed: 69,
        },
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn a_hard_link_is_allocated_and_synced_when_only_a_renamed_name_is_left() {
    let ops = vec![
        Chown {
            path: b(b"y"),
            uid: 1001,
            gid: 2000,
            follow: true,
        },
        Rename {
            from: b(b"x"),
            to: b(b"d/1"),
            how: RnPlain,
        },
        Unlink(b(b"y")),
        Rename {
            from: b(b"d/1"),
            to: b(b"2"),
            how: RnPlain,
        },
        open(0, b"2", libc::O_RDWR),
        Fallocate {
            h: 0,
            mode: FaZero,
            off: 0,
            len: 5044,
        },
        Fsync { h: 0, data: false },
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn a_hard_link_is_allocated_after_its_first_known_name_is_gone() {
    let ops = vec![
        Put {
            path: b(b"y"),
            flags: O(libc::O_WRONLY),
            mode: M(0),
            off: 5350,
            len: 0,
            seed: 67,
        },
        open(0, b"x", libc::O_RDWR),
        Unlink(b(b"y")),
        Fallocate {
            h: 0,
            mode: FaZero,
            off: 0,
            len: 5044,
        },
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn the_link_count_of_a_fifo_falls_by_one_when_a_name_is_replaced() {
    let fifo = e(b(b"x"), Fifo, M(0o600), ROOT, ROOT, THEN, L(vec![]));
    let lower = vec![
        fifo,
        link(b"y", b"x"),
        link(b"z", b"x"),
        file(b"f", 0o644, ROOT),
    ];
    let ops = vec![
        Rename {
            from: b(b"f"),
            to: b(b"z"),
            how: RnPlain,
        },
        Stat {
            path: b(b"y"),
            follow: true,
        },
    ];
    check_on(Ext4, lower, vec![], ops);
}

#[test]
fn a_mapping_of_a_hard_link_without_names_is_read() {
    let ops = vec![
        Stat {
            path: b(b"y"),
            follow: false,
        },
        Put {
            path: b(b"x"),
            flags: O(libc::O_WRONLY),
            mode: M(0),
            off: 0,
            len: 155,
            seed: 90,
        },
        Unlink(b(b"y")),
        open(0, b"x", libc::O_RDONLY),
        MmapKeep { h: 0, m: 0 },
        Close(0),
        Unlink(b(b"x")),
        MmapRead(0),
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn an_open_hard_link_without_names_takes_an_xattr() {
    let ops = vec![
        Utimens {
            path: b(b"y"),
            atime: Tm::Omit,
            mtime: Tm::Now,
            follow: true,
        },
        open(0, b"x", libc::O_WRONLY),
        Unlink(b(b"y")),
        Unlink(b(b"x")),
        Fsetxattr {
            h: 0,
            name: b(b"user.one"),
            value: b(b"1"),
        },
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn an_open_hard_link_without_names_is_read_after_renames_around_it() {
    let ops = vec![
        Rename {
            from: b(b"y"),
            to: b(b"d/z"),
            how: RnPlain,
        },
        Rename {
            from: b(b"d"),
            to: b(b"e"),
            how: RnPlain,
        },
        Stat {
            path: b(b"x"),
            follow: true,
        },
        Unlink(b(b"e/z")),
        open(0, b"x", libc::O_RDWR),
        Unlink(b(b"x")),
        Read { h: 0, len: 569 },
        Fstat(0),
        Fchmod {
            h: 0,
            mode: M(0o600),
        },
    ];
    check_on(Ext4, linked(), vec![], ops);
}

#[test]
fn a_file_whose_set_group_id_a_write_has_cleared_may_be_linked() {
    let put = Put {
        path: b(b"x"),
        flags: O(libc::O_WRONLY),
        mode: M(0),
        off: 0,
        len: 4096,
        seed: 217,
    };
    let ops = vec![
        Chmod {
            path: b(b"x"),
            mode: M(0o2777),
        },
        As(1),
        put,
        Link {
            from: b(b"x"),
            to: b(b"d/x"),
            follow: false,
        },
        Link {
            from: b(b"y"),
            to: b(b"d/y"),
            follow: false,
        },
    ];
    check_on(Ext4, linked(), vec![], ops.clone());
    let lowers = vec![[vec![dir(b"", 0o755)], linked()].concat()];
    check(Case {
        disk: Ext4,
        options: ",writeback=1",
        lowers,
        before: vec![],
        ops,
    });
}

/// With `index=off` the kernel's overlayfs is the truth.
fn check_without_index(lower: Vec<Entry>, ops: Vec<Op>) {
    let lowers = vec![[vec![dir(b"", 0o755)], lower].concat()];
    let mut case = Case {
        disk: Ext4,
        options: "",
        lowers,
        before: vec![],
        ops,
    };
    let disks = Disks::new(&[Ext4]).unwrap();
    let result = parity::run(&Subject::from_env(), &disks, &mut case, None);
    drop(disks);
    if let Err(failure) = result {
        panic!("{}: {}", failure.class, failure.text);
    }
}

#[test]
fn without_index_writing_to_a_hard_link_breaks_it() {
    let ops = vec![
        open(0, b"y", libc::O_RDWR),
        Write {
            h: 0,
            len: 10,
            seed: 1,
        },
        // Until then the kernel keeps the write back.
        Fsync { h: 0, data: false },
        Fstat(0),
    ];
    check_without_index(linked(), ops);
}

#[test]
fn without_index_a_new_link_of_a_lower_hard_link_is_linked_again() {
    let ops = vec![
        Link {
            from: b(b"y"),
            to: b(b"d/1"),
            follow: false,
        },
        Rename {
            from: b(b"y"),
            to: b(b"d/2"),
            how: RnPlain,
        },
        Link {
            from: b(b"d/1"),
            to: b(b"d/3"),
            follow: false,
        },
    ];
    check_without_index(linked(), ops);
}

#[test]
fn without_index_a_new_link_is_changed_when_the_name_it_was_linked_from_goes() {
    let ops = vec![
        Link {
            from: b(b"y"),
            to: b(b"d/1"),
            follow: false,
        },
        open(0, b"y", libc::O_WRONLY),
        Unlink(b(b"y")),
        Futimens {
            h: 0,
            atime: Tm::Omit,
            mtime: Tm::At(THEN),
        },
        Setxattr {
            path: b(b"d/1"),
            name: b(b"user.one"),
            value: b(b"1"),
            how: Xf::XfAny,
            follow: true,
        },
        open(1, b"d/1", libc::O_RDWR),
        Read { h: 1, len: 100 },
    ];
    check_without_index(linked(), ops);
}
