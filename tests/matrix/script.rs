//! What is done to the merged tree, in three parts; between them the tree is unmounted.

use std::fs::{self, File, OpenOptions};
use std::io::{Result, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{FileType, RenameFlags};

use crate::support::errno;
use crate::support::files::{acl_with_user, mknod, rename_with, set_times, set_xattr};

/// An operation, and what it is called in a failure.
type Step = (&'static str, fn(&Path) -> Result<()>);

fn append(path: &Path) -> Result<()> {
    OpenOptions::new()
        .append(true)
        .open(path)?
        .write_all(b"appended\n")
}

fn write_at(path: &Path, at: u64) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all_at(b"written", at)
}

fn resize(path: &Path, size: u64) -> Result<()> {
    OpenOptions::new().write(true).open(path)?.set_len(size)
}

fn chmod(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn times(path: &Path) -> Result<()> {
    set_times(path, (1_100_000_000, 123), (-5, 999))
}

fn create(path: &Path) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)?;
    file.write_all(b"new\n")
}

fn exchange(a: &Path, b: &Path) -> Result<()> {
    rename_with(a, b, RenameFlags::EXCHANGE)
}

fn no_replace(a: &Path, b: &Path) -> Result<()> {
    rename_with(a, b, RenameFlags::NOREPLACE)
}

const FIRST: &[Step] = &[
    ("append dir/a", |m| append(&m.join("dir/a"))),
    ("overwrite dir/b", |m| fs::write(m.join("dir/b"), "anew")),
    ("truncate big", |m| resize(&m.join("big"), 1000)),
    ("write in sparse", |m| write_at(&m.join("sparse"), 2 << 20)),
    ("append mc/data1", |m| append(&m.join("mc/data1"))),
    ("chmod meta1", |m| chmod(&m.join("meta1"), 0o600)),
    ("chown meta2", |m| lchown(m.join("meta2"), Some(1), Some(2))),
    ("utimens meta3", |m| times(&m.join("meta3"))),
    ("setxattr meta4", |m| {
        set_xattr(&m.join("meta4"), "user.new", b"value")
    }),
    ("removexattr meta5", |m| {
        Ok(rustix::fs::removexattr(m.join("meta5"), "user.gone")?)
    }),
    ("setfacl meta6", |m| {
        set_xattr(
            &m.join("meta6"),
            "system.posix_acl_access",
            &acl_with_user(7, 6),
        )
    }),
    ("chmod mc/tagged", |m| chmod(&m.join("mc/tagged"), 0o604)),
    ("chmod solo", |m| chmod(&m.join("solo"), 0o4711)),
    ("chown sym", |m| lchown(m.join("sym"), Some(8), Some(9))),
    ("chown fifo", |m| lchown(m.join("fifo"), Some(8), Some(9))),
    ("utimens symlong", |m| times(&m.join("symlong"))),
    ("chmod dir", |m| chmod(&m.join("kept"), 0o711)),
    ("setxattr mv", |m| set_xattr(&m.join("mv"), "user.e", b"f")),
    ("utimens dir/sub/deep", |m| times(&m.join("dir/sub/deep"))),
    ("unlink dir/c", |m| fs::remove_file(m.join("dir/c"))),
    ("unlink merged/mid", |m| {
        fs::remove_file(m.join("merged/mid"))
    }),
    ("unlink dir/c again", |m| fs::remove_file(m.join("dir/c"))),
    ("rmdir empty", |m| fs::remove_dir(m.join("empty"))),
    ("mkdir empty", |m| fs::create_dir(m.join("empty"))),
    ("rmdir opq", |m| fs::remove_dir(m.join("opq"))),
    ("empty opq", |m| fs::remove_file(m.join("opq/new1"))),
    ("rmdir opq once empty", |m| fs::remove_dir(m.join("opq"))),
    ("mkdir opq", |m| fs::create_dir(m.join("opq"))),
    ("create opq/fresh", |m| create(&m.join("opq/fresh"))),
    ("rename solo", |m| {
        fs::rename(m.join("solo"), m.join("solo2"))
    }),
    ("rename dir/sub/x", |m| {
        fs::rename(m.join("dir/sub/x"), m.join("dir/x2"))
    }),
    ("rename mv", |m| {
        fs::rename(m.join("mv"), m.join("mv_renamed"))
    }),
    ("append mv_renamed/f1", |m| append(&m.join("mv_renamed/f1"))),
    ("unlink mv_renamed/f2", |m| {
        fs::remove_file(m.join("mv_renamed/f2"))
    }),
    ("rename mv2", |m| {
        fs::rename(m.join("mv2"), m.join("dir/mv2_in"))
    }),
    ("rename dir/sub/deep", |m| {
        fs::rename(m.join("dir/sub/deep"), m.join("dir/deep2"))
    }),
    ("append sp/moved/inner", |m| {
        append(&m.join("sp/moved/inner"))
    }),
    ("rename sp/moved", |m| {
        fs::rename(m.join("sp/moved"), m.join("sp/moved2"))
    }),
    ("chmod sp/moved2/in/most", |m| {
        chmod(&m.join("sp/moved2/in/most"), 0o640)
    }),
    ("create new", |m| create(&m.join("new"))),
    ("create dir/a", |m| create(&m.join("dir/a"))),
    ("link new", |m| {
        fs::hard_link(m.join("new"), m.join("dir/new_link"))
    }),
    ("create fresh", |m| create(&m.join("fresh"))),
    ("rename over dir/sub/y", |m| {
        fs::rename(m.join("fresh"), m.join("dir/sub/y"))
    }),
    ("rename over1 over dir/b", |m| {
        fs::rename(m.join("over1"), m.join("dir/b"))
    }),
    ("append hard1", |m| append(&m.join("hard1"))),
    ("link hard2", |m| {
        fs::hard_link(m.join("hard2"), m.join("dir/hard4"))
    }),
    ("unlink dir/hard3", |m| fs::remove_file(m.join("dir/hard3"))),
    ("chmod pair1", |m| chmod(&m.join("pair1"), 0o604)),
    ("unlink quad1", |m| fs::remove_file(m.join("quad1"))),
    ("rename quad2", |m| {
        fs::rename(m.join("quad2"), m.join("dir/quad5"))
    }),
    ("rename onto its own link", |m| {
        fs::rename(m.join("quad3"), m.join("dir/quad4"))
    }),
    ("exchange exch1 exch2", |m| {
        exchange(&m.join("exch1"), &m.join("exch2"))
    }),
    ("noreplace onto a whiteout", |m| {
        no_replace(&m.join("dir/x2"), &m.join("dir/c"))
    }),
    ("noreplace onto meta1", |m| {
        no_replace(&m.join("new"), &m.join("meta1"))
    }),
    ("link a directory", |m| {
        fs::hard_link(m.join("dir"), m.join("dir2"))
    }),
    ("rename dir over dir", |m| {
        fs::rename(m.join("merged"), m.join("dir"))
    }),
    ("rename dir into itself", |m| {
        fs::rename(m.join("dir"), m.join("dir/sub/dir"))
    }),
    ("rename file over dir", |m| {
        fs::rename(m.join("new"), m.join("dir"))
    }),
    ("mkdir pure", |m| fs::create_dir(m.join("pure"))),
    ("create pure/p", |m| create(&m.join("pure/p"))),
    ("link lower into pure", |m| {
        fs::hard_link(m.join("meta1"), m.join("pure/meta1"))
    }),
    ("symlink", |m| symlink("target", m.join("pure/sym"))),
    ("mkfifo", |m| {
        mknod(&m.join("pure/fifo"), FileType::Fifo, 0o600, 0)
    }),
    ("rename into pure", |m| {
        fs::rename(m.join("tow/t"), m.join("pure/t"))
    }),
    ("rename pure", |m| {
        fs::rename(m.join("pure"), m.join("dir/pure2"))
    }),
    ("rename a device", |m| {
        fs::rename(m.join("null"), m.join("dir/null2"))
    }),
    ("rename a symlink", |m| {
        fs::rename(m.join("dangling"), m.join("dir/dangling2"))
    }),
    ("unlink a directory", |m| fs::remove_file(m.join("kept"))),
    ("rmdir a file", |m| fs::remove_dir(m.join("new"))),
    ("copy_file_range", |m| {
        fs::copy(m.join("merged/low"), m.join("copied")).map(drop)
    }),
];

const SECOND: &[Step] = &[
    ("rename dir/mv2_in", |m| {
        fs::rename(m.join("dir/mv2_in"), m.join("mv2_out"))
    }),
    ("append mv2_out/h", |m| append(&m.join("mv2_out/h"))),
    ("mkdir mv2", |m| fs::create_dir(m.join("mv2"))),
    ("mkdir mv", |m| fs::create_dir(m.join("mv"))),
    ("create mv/f1", |m| create(&m.join("mv/f1"))),
    ("append meta1", |m| append(&m.join("meta1"))),
    ("rename meta2", |m| {
        fs::rename(m.join("meta2"), m.join("dir/meta2r"))
    }),
    ("link meta3", |m| {
        fs::hard_link(m.join("meta3"), m.join("dir/meta3l"))
    }),
    ("truncate meta4", |m| resize(&m.join("meta4"), 0)),
    ("append mc/tagged", |m| append(&m.join("mc/tagged"))),
    ("append sp/moved2/in/most", |m| {
        append(&m.join("sp/moved2/in/most"))
    }),
    ("unlink hard1", |m| fs::remove_file(m.join("hard1"))),
    ("append dir/hard4", |m| append(&m.join("dir/hard4"))),
    ("append pair2", |m| append(&m.join("pair2"))),
    ("unlink dir/quad5", |m| fs::remove_file(m.join("dir/quad5"))),
    ("append quad3", |m| append(&m.join("quad3"))),
    ("rename mv_renamed/d", |m| {
        fs::rename(m.join("mv_renamed/d"), m.join("d_moved"))
    }),
    ("chmod d_moved/g", |m| chmod(&m.join("d_moved/g"), 0o444)),
    ("create dir/c", |m| create(&m.join("dir/c"))),
    ("empty dir/sub", |m| fs::remove_dir_all(m.join("dir/sub"))),
    ("mkdir dir/sub", |m| fs::create_dir(m.join("dir/sub"))),
    ("rmdir empty", |m| fs::remove_dir(m.join("empty"))),
    ("create empty", |m| create(&m.join("empty"))),
    ("rename opq", |m| fs::rename(m.join("opq"), m.join("opq2"))),
    ("chmod merged", |m| chmod(&m.join("merged"), 0o500)),
    ("unlink sparse", |m| fs::remove_file(m.join("sparse"))),
    ("rename over a whiteout", |m| {
        fs::rename(m.join("exch2"), m.join("sparse"))
    }),
    ("exchange dir and file", |m| {
        exchange(&m.join("d_moved"), &m.join("new"))
    }),
    ("rename other/w", |m| {
        fs::rename(m.join("other/w"), m.join("dir/sub/w"))
    }),
    ("rename dir/pure2", |m| {
        fs::rename(m.join("dir/pure2"), m.join("tow/pure3"))
    }),
    ("remove kept", |m| fs::remove_dir_all(m.join("kept"))),
    ("truncate meta6", |m| {
        File::create(m.join("meta6")).map(drop)
    }),
    ("setxattr solo2", |m| {
        set_xattr(&m.join("solo2"), "user.s", b"t")
    }),
];

const THIRD: &[Step] = &[
    ("append mv2_out/i", |m| append(&m.join("mv2_out/i"))),
    ("rename mv2_out", |m| {
        fs::rename(m.join("mv2_out"), m.join("mv2"))
    }),
    ("unlink meta3", |m| fs::remove_file(m.join("meta3"))),
    ("append dir/meta2r", |m| append(&m.join("dir/meta2r"))),
    ("append dir/meta3l", |m| append(&m.join("dir/meta3l"))),
    ("unlink dir/hard4", |m| fs::remove_file(m.join("dir/hard4"))),
    ("append hard2", |m| append(&m.join("hard2"))),
    ("unlink quad3", |m| fs::remove_file(m.join("quad3"))),
    ("unlink dir/quad4", |m| fs::remove_file(m.join("dir/quad4"))),
    ("unlink pair1", |m| fs::remove_file(m.join("pair1"))),
    ("unlink pair2", |m| fs::remove_file(m.join("pair2"))),
    ("create pair1", |m| create(&m.join("pair1"))),
    ("rename dir/sub/w back", |m| {
        fs::rename(m.join("dir/sub/w"), m.join("other/w"))
    }),
    ("rename mv_renamed", |m| {
        fs::rename(m.join("mv_renamed"), m.join("other/mv3"))
    }),
    ("chown other/mv3/f1", |m| {
        lchown(m.join("other/mv3/f1"), Some(5), Some(5))
    }),
    ("remove sp/moved2", |m| {
        fs::remove_dir_all(m.join("sp/moved2"))
    }),
    ("chmod exch1", |m| chmod(&m.join("exch1"), 0o755)),
    ("append merged/both", |m| append(&m.join("merged/both"))),
    ("remove opq2", |m| fs::remove_dir_all(m.join("opq2"))),
    ("remove tow", |m| fs::remove_dir_all(m.join("tow"))),
];

/// The parts, in order.
pub const PARTS: [&[Step]; 3] = [FIRST, SECOND, THIRD];

/// What each step came to: its name and its errno, 0 for success.
pub fn play(steps: &[Step], merged: &Path) -> Vec<(&'static str, i32)> {
    steps
        .iter()
        .map(|(name, step)| (*name, errno(step(merged))))
        .collect()
}

/// The first step that came to something else.
pub fn difference(want: &[(&'static str, i32)], got: &[(&'static str, i32)]) -> Option<String> {
    want.iter()
        .zip(got)
        .find(|(want, got)| want != got)
        .map(|((name, want), (_, got))| format!("{name}: E{got}, want E{want}"))
}
