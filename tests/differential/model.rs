//! The words of a test case: layers and operations as plain data whose `Debug` form is the Rust
//! source that makes them again, so that a minimised failure is pasted into `regressions.rs`.

use std::fmt;

/// Bytes: a path, a name, a value. Printed as `b(b"…")`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct B(pub Vec<u8>);

/// Makes a [`B`].
#[allow(dead_code)] // used by pasted regression tests
pub fn b(bytes: &[u8]) -> B {
    B(bytes.to_vec())
}

impl fmt::Debug for B {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let long = self.0.len() > 40 && self.0.iter().all(|c| *c == self.0[0]);
        if long {
            return write!(
                f,
                "B(vec![b'{}'; {}])",
                self.0[0].escape_ascii(),
                self.0.len()
            );
        }
        write!(f, "b(b\"{}\")", self.0.escape_ascii())
    }
}

impl std::ops::Deref for B {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Permission bits, printed in octal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct M(pub u32);

impl fmt::Debug for M {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "M(0o{:o})", self.0)
    }
}

/// Seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct T(pub i64, pub u32);

impl fmt::Debug for T {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T({}, {})", self.0, self.1)
    }
}

/// A list printed as `vec![…]`.
#[derive(Clone, PartialEq, Eq)]
pub struct L<X>(pub Vec<X>);

impl<X: fmt::Debug> fmt::Debug for L<X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L(vec!{:?})", self.0)
    }
}

/// A piece of data in a file; the rest is a hole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ext(pub u64, pub u32, pub u8);

impl fmt::Debug for Ext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ext({}, {}, {})", self.0, self.1, self.2)
    }
}

/// The bytes that a write with this `seed` writes.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| {
            (i as u8)
                .wrapping_mul(7)
                .wrapping_add((i >> 8) as u8)
                .wrapping_add(seed)
                | 1
        })
        .collect()
}

/// What an entry of a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Dir,
    /// A directory with `trusted.overlay.opaque=y`.
    Opaque,
    /// A regular file of this size with this data in it.
    File(u64, L<Ext>),
    Symlink(B),
    Fifo,
    Sock,
    Chr(u32, u32),
    Blk(u32, u32),
    /// Character device 0:0.
    Whiteout,
    /// Another name of an earlier file of the same layer.
    Link(B),
}

/// One entry of a layer, made by hand on the layer's file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: B,
    pub node: Node,
    pub mode: M,
    pub uid: u32,
    pub gid: u32,
    pub mtime: T,
    pub xattrs: L<(B, B)>,
}

/// An [`Entry`], in the order of its fields.
#[allow(dead_code)] // used by pasted regression tests
pub fn e(path: B, node: Node, mode: M, uid: u32, gid: u32, mtime: T, xattrs: L<(B, B)>) -> Entry {
    Entry {
        path,
        node,
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    }
}

/// One operation. `h` is a slot of the table of open files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The following operations run as this user (an index in `driver::USERS`).
    As(usize),
    Umask(M),
    Open {
        h: usize,
        path: B,
        flags: O,
        mode: M,
    },
    Close(usize),
    Read {
        h: usize,
        len: usize,
    },
    Pread {
        h: usize,
        off: u64,
        len: usize,
    },
    Write {
        h: usize,
        len: usize,
        seed: u8,
    },
    Pwrite {
        h: usize,
        off: u64,
        len: usize,
        seed: u8,
    },
    Seek {
        h: usize,
        to: Sk,
    },
    Ftruncate {
        h: usize,
        len: u64,
    },
    Fallocate {
        h: usize,
        mode: Fa,
        off: u64,
        len: u64,
    },
    CopyRange {
        from: usize,
        to: usize,
        src: u64,
        dst: u64,
        len: usize,
    },
    /// Stores through a shared writable mapping.
    MmapWrite {
        h: usize,
        off: u64,
        len: usize,
        seed: u8,
    },
    /// Maps a whole file, shared, read-only, into slot `m`.
    MmapKeep {
        h: usize,
        m: usize,
    },
    /// Reads what mapping `m` shows now.
    MmapRead(usize),
    Fstat(usize),
    Fchmod {
        h: usize,
        mode: M,
    },
    Fchown {
        h: usize,
        uid: u32,
        gid: u32,
    },
    Futimens {
        h: usize,
        atime: Tm,
        mtime: Tm,
    },
    Fsetxattr {
        h: usize,
        name: B,
        value: B,
    },
    Fgetxattr {
        h: usize,
        name: B,
    },
    Fsync {
        h: usize,
        data: bool,
    },
    /// Open, read all, close.
    Cat(B),
    /// Open with these flags, write at an offset, close.
    Put {
        path: B,
        flags: O,
        mode: M,
        off: u64,
        len: usize,
        seed: u8,
    },
    Truncate {
        path: B,
        len: u64,
    },
    Mkdir {
        path: B,
        mode: M,
    },
    Rmdir(B),
    Unlink(B),
    Symlink {
        target: B,
        path: B,
    },
    Readlink(B),
    Link {
        from: B,
        to: B,
        follow: bool,
    },
    Mknod {
        path: B,
        kind: Nd,
        mode: M,
    },
    Rename {
        from: B,
        to: B,
        how: Rn,
    },
    Chmod {
        path: B,
        mode: M,
    },
    Chown {
        path: B,
        uid: u32,
        gid: u32,
        follow: bool,
    },
    Utimens {
        path: B,
        atime: Tm,
        mtime: Tm,
        follow: bool,
    },
    Setxattr {
        path: B,
        name: B,
        value: B,
        how: Xf,
        follow: bool,
    },
    Removexattr {
        path: B,
        name: B,
    },
    Getxattr {
        path: B,
        name: B,
    },
    Listxattr(B),
    Stat {
        path: B,
        follow: bool,
    },
    Access {
        path: B,
        mode: u32,
    },
    /// A listing; with `stat` each `d_ino` is compared with `st_ino`.
    List {
        path: B,
        stat: bool,
    },
    FsyncDir(B),
    /// Lists a directory in pieces while names come and go in it: a new one, which goes again at
    /// the end, and the first that is no directory, which is unlinked.
    ListWhile(B),
    /// Compares the whole tree.
    Walk,
    /// Closes everything, unmounts and mounts again.
    Remount,
}

impl Op {
    /// The name of the operation.
    pub fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split([' ', '('])
            .next()
            .unwrap_or_default()
            .to_string()
    }
}

/// Open flags, printed by name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct O(pub i32);

/// The names of the flags that the test opens with.
pub const OPEN_FLAGS: &[(i32, &str)] = &[
    (libc::O_WRONLY, "WRONLY"),
    (libc::O_RDWR, "RDWR"),
    (libc::O_CREAT, "CREAT"),
    (libc::O_EXCL, "EXCL"),
    (libc::O_TRUNC, "TRUNC"),
    (libc::O_APPEND, "APPEND"),
    (libc::O_DIRECTORY, "DIRECTORY"),
    (libc::O_NOFOLLOW, "NOFOLLOW"),
    (libc::O_NOATIME, "NOATIME"),
    (libc::O_DSYNC, "DSYNC"),
];

impl fmt::Debug for O {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<String> = OPEN_FLAGS
            .iter()
            .filter(|(bit, _)| self.0 & bit == *bit)
            .map(|(_, name)| format!("libc::O_{name}"))
            .collect();
        if names.is_empty() {
            names.push("libc::O_RDONLY".into());
        }
        write!(f, "O({})", names.join(" | "))
    }
}

/// Where to seek.
#[allow(clippy::enum_variant_names)] // the names stand alone in a pasted case
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sk {
    SkSet(u64),
    SkEnd(i64),
    SkCur(i64),
    SkData(u64),
    SkHole(u64),
}

/// What fallocate does.
#[allow(clippy::enum_variant_names)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fa {
    FaPlain,
    FaKeep,
    FaPunch,
    FaZero,
    FaZeroKeep,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tm {
    At(T),
    Now,
    Omit,
}

/// What mknod makes.
#[allow(clippy::enum_variant_names)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nd {
    NdReg,
    NdFifo,
    NdSock,
    NdChr(u32, u32),
    NdBlk(u32, u32),
}

/// The flags of renameat2.
#[allow(clippy::enum_variant_names)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rn {
    RnPlain,
    RnNoReplace,
    RnExchange,
}

/// The flags of setxattr.
#[allow(clippy::enum_variant_names)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xf {
    XfAny,
    XfCreate,
    XfReplace,
}

/// The file systems under a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    Ext4,
    Xfs,
    Tmpfs,
    /// Lowers on tmpfs, upper on ext4.
    Mixed,
}

/// All that a test case is made of.
#[derive(Clone, PartialEq, Eq)]
pub struct Case {
    pub disk: Disk,
    /// Mount options of rovl, each with a comma before it.
    pub options: &'static str,
    /// Top to bottom.
    pub lowers: Vec<Vec<Entry>>,
    /// What the kernel's overlayfs does to make the upper that the test starts from.
    pub before: Vec<Op>,
    pub ops: Vec<Op>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Case {{\n    disk: Disk::{:?},\n    options: {:?},\n    lowers: vec![",
            self.disk, self.options
        )?;
        for layer in &self.lowers {
            writeln!(f, "        vec![")?;
            for n in layer {
                writeln!(
                    f,
                    "            e({:?}, {}, {:?}, {}, {}, {:?}, {:?}),",
                    n.path,
                    Named(&n.node, "Node::"),
                    n.mode,
                    n.uid,
                    n.gid,
                    n.mtime,
                    n.xattrs
                )?;
            }
            writeln!(f, "        ],")?;
        }
        writeln!(f, "    ],")?;
        for (name, ops) in [("before", &self.before), ("ops", &self.ops)] {
            writeln!(f, "    {name}: vec![")?;
            for op in ops {
                writeln!(f, "        {op:?},")?;
            }
            writeln!(f, "    ],")?;
        }
        write!(f, "}}")
    }
}

struct Named<'a, X>(&'a X, &'a str);

impl<X: fmt::Debug> fmt::Display for Named<'_, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.1, self.0)
    }
}
