//! Every deviation that is wanted, by name. A difference that no entry here explains is a failure.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::driver::{MAPS, SLOTS, slot_of};
use super::model::{Op, Sk};
use super::outcome::Outcome;
use super::run::Step;
use super::tree::{Item, When};

/// Who does not do what a plain directory does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Both overlays: it follows from the format.
    Both,
    /// rovl only.
    Rovl,
    /// The kernel's overlayfs only: rovl does what POSIX says (design.md §3).
    Kernel,
}

/// What a deviation is judged by.
pub struct Seen<'a> {
    pub op: &'a Op,
    /// The outcome on the overlay.
    pub got: &'a Outcome,
    /// The outcome on the plain copy.
    pub want: &'a Outcome,
    /// The operation is on an open file that has no name any more.
    pub deleted: bool,
    /// The operation reads from a file that was opened read-only.
    pub read_only: bool,
}

/// A wanted difference between an overlay and a plain copy of its tree.
pub struct Deviation {
    pub name: &'static str,
    pub who: Who,
    pub why: &'static str,
    pub applies: fn(&Seen<'_>) -> bool,
}

/// The table.
pub const DEVIATIONS: &[Deviation] = &[
    Deviation {
        name: "wh-name",
        who: Who::Rovl,
        why: "a name that begins with `.wh.` means a whiteout in layers of OCI form (formats.md §1)",
        applies: |seen| *seen.want == Outcome::MustFail && matches!(seen.got, Outcome::Failed(_)),
    },
    Deviation {
        name: "xfs-eexist",
        who: Who::Both,
        why: "rename onto a directory that is not empty: XFS says EEXIST, POSIX allows both",
        applies: |seen| {
            matches!(seen.op, Op::Rename { .. })
                && *seen.want == Outcome::Failed(Errno::EXIST)
                && *seen.got == Outcome::Failed(Errno::NOTEMPTY)
        },
    },
    Deviation {
        name: "kernel-stale-fd",
        who: Who::Kernel,
        why: "a file opened read-only, then written: the old fd and its mappings show the lower file (design.md §3)",
        applies: |seen| {
            seen.read_only
                && matches!(
                    seen.op,
                    Op::Read { .. }
                        | Op::Pread { .. }
                        | Op::MmapRead(_)
                        | Op::MmapKeep { .. }
                        | Op::Seek { .. }
                )
        },
    },
    Deviation {
        name: "kernel-dir-mtime",
        who: Who::Kernel,
        why: "a rename that fails, or that moves a directory over a whiteout, changes a directory's mtime",
        applies: |seen| match (seen.got, seen.want) {
            (Outcome::Stat(got), Outcome::Stat(want)) => {
                let mut corrected = got.clone();
                corrected.when = want.when;
                got.kind == FileType::Directory && got.when == When::Recent && corrected == *want
            }
            _ => false,
        },
    },
    Deviation {
        name: "kernel-unlinked-lower",
        who: Who::Kernel,
        why: "a lower file unlinked while open: nlink stays, and it can't be copied up any more (EEXIST)",
        applies: |seen| seen.deleted && slot_of(seen.op).is_some(),
    },
    Deviation {
        name: "hole-layout",
        who: Who::Both,
        why: "SEEK_DATA finds data or none: a copy may have other holes than its original",
        applies: |seen| {
            let possible = |o: &Outcome| matches!(o, Outcome::Done | Outcome::Failed(Errno::NXIO));
            let data = matches!(
                seen.op,
                Op::Seek {
                    to: Sk::SkData(_),
                    ..
                }
            );
            data && possible(seen.got) && possible(seen.want)
        },
    },
    Deviation {
        name: "acl-remove-absent",
        who: Who::Both,
        why: "removing an ACL that is not there: ENODATA or nothing, as the file system below likes",
        applies: |seen| {
            let name = match seen.op {
                Op::Removexattr { name, .. } => name,
                Op::Setxattr { name, value, .. } | Op::Fsetxattr { name, value, .. }
                    if value.is_empty() =>
                {
                    name
                }
                _ => return false,
            };
            let harmless =
                |o: &Outcome| matches!(o, Outcome::Done | Outcome::Failed(Errno::NODATA));
            name.starts_with(b"system.posix_acl_") && harmless(seen.got) && harmless(seen.want)
        },
    },
    Deviation {
        name: RESURRECTION,
        who: Who::Kernel,
        why: "a lower file that was unlinked while open comes back when it is changed through its fd (copy-up): not compared from there on",
        applies: |_| false, // counted where the comparison ends
    },
    Deviation {
        name: "large-link-count",
        who: Who::Rovl,
        why: "one of several names of a lower file over 1 MiB is removed: nothing is copied, a remount counts it again; never generated",
        applies: |_| false,
    },
    Deviation {
        name: NO_INDEX_INODES,
        who: Who::Rovl,
        why: "without an index copy-up breaks a lower's hard links, so each name is an inode; the kernel shows one number until then",
        applies: |_| false, // counted where trees are compared
    },
    Deviation {
        name: LATE_COPY_UP,
        who: Who::Rovl,
        why: "a file opened for writing is copied up when it is written (design.md §4); the kernel's upper has it before",
        applies: |_| false, // counted where uppers are compared
    },
    Deviation {
        name: "long-redirect",
        who: Who::Both,
        why: "a lower directory whose path is longer than a redirect may be (256 bytes): EXDEV; never generated",
        applies: |_| false,
    },
    Deviation {
        name: "truncate-in-place",
        who: Who::Rovl,
        why: "truncate(2), not ftruncate(2), to the size that a file has: with the writeback cache FUSE tells of no time, and the kernel shows its own: never done",
        applies: |_| false,
    },
    Deviation {
        name: "chown-to-nobody",
        who: Who::Rovl,
        why: "chown(-1, -1) takes set-id bits away, but FUSE sends nothing that says so: never generated",
        applies: |_| false,
    },
    Deviation {
        name: FIFO_TIMES,
        who: Who::Both,
        why: "a write to a fifo never reaches the layers: it leaves the mtime of the inode there",
        applies: |_| false, // counted where attributes are compared
    },
];

/// Where the comparison with the kernel's overlayfs ends, as its state is another from there on.
struct End {
    name: &'static str,
    why: &'static str,
    applies: fn(&History, &Op) -> bool,
}

const ENDS: &[End] = &[
    End {
        name: "kernel-stale-copy",
        why: "copy_file_range from a file opened read-only may copy stale data: not compared from there on",
        applies: |history, op| matches!(op, Op::CopyRange { .. }) && history.reads_read_only(op),
    },
    End {
        name: "kernel-acl-sgid",
        why: "a user changes an ACL, even one that is not there: set-gid may be cleared: not compared from there on",
        applies: |history, op| match op {
            Op::Removexattr { name, .. }
            | Op::Setxattr { name, .. }
            | Op::Fsetxattr { name, .. } => {
                history.user != 0 && name.starts_with(b"system.posix_acl_")
            }
            _ => false,
        },
    },
];

/// A wanted difference between an object of the kernel's tree and of the plain copy.
struct ItemDeviation {
    name: &'static str,
    why: &'static str,
    applies: fn(&Item, &Item) -> bool,
}

const ITEM_DEVIATIONS: &[ItemDeviation] = &[ItemDeviation {
    name: "kernel-dir-mtime",
    why: "a rename that fails, or that moves a directory over a whiteout, changes a directory's mtime",
    applies: |got, want| {
        got.attr.kind == FileType::Directory
            && got.attr.when == When::Recent
            && got.attr.when != want.attr.when
    },
}];

/// The deviation that explains two different objects of a tree; it is counted.
pub fn explain_item(got: &Item, want: &Item) -> bool {
    let found = ITEM_DEVIATIONS.iter().find(|d| (d.applies)(got, want));
    if let Some(found) = found {
        count(found.name);
    }
    found.is_some()
}

/// Which files are open, and how: what [`Seen`] needs to know of the past.
#[derive(Default)]
pub struct History {
    files: [bool; SLOTS],
    maps: [bool; MAPS],
    user: usize,
    changed_deleted: bool,
}

impl History {
    /// Whether `op` reads through a file that was opened read-only.
    pub fn reads_read_only(&self, op: &Op) -> bool {
        match op {
            Op::MmapRead(m) => self.maps[*m],
            Op::CopyRange { from, .. } => self.files[*from],
            _ => slot_of(op).is_some_and(|h| self.files[h]),
        }
    }

    /// Whether the kernel's state is another from `op` on; counted.
    pub fn ends_here(&self, op: &Op, outcome: &Outcome) -> bool {
        if matches!(outcome, Outcome::Skipped | Outcome::Failed(_)) {
            return false;
        }
        let found = ENDS.iter().find(|end| (end.applies)(self, op));
        if let Some(found) = found {
            count(found.name);
        }
        found.is_some()
    }

    /// Whether an open file without a name was changed (see [`RESURRECTION`]).
    pub fn may_resurrect(&self) -> bool {
        self.changed_deleted
    }

    /// Takes note of an operation and its outcome on the plain copy.
    pub fn add(&mut self, step: &Step) {
        let (op, done) = (&step.op, step.outcome == Outcome::Done);
        self.changed_deleted |= step.deleted
            && matches!(
                op,
                Op::Fchmod { .. }
                    | Op::Fchown { .. }
                    | Op::Futimens { .. }
                    | Op::Fsetxattr { .. }
                    | Op::Ftruncate { .. }
            );
        match op {
            Op::Open { h, flags, .. } => {
                self.files[*h] = done && flags.0 & libc::O_ACCMODE == libc::O_RDONLY
            }
            Op::MmapKeep { h, m } => self.maps[*m] = done && self.files[*h],
            Op::As(user) => self.user = *user,
            Op::Remount => {
                *self = History {
                    changed_deleted: self.changed_deleted,
                    ..History::default()
                }
            }
            _ => {}
        }
    }
}

/// The name under which changes of lower files without a name are counted.
pub const RESURRECTION: &str = "kernel-resurrection";

/// The name under which link groups without an index are counted.
pub const NO_INDEX_INODES: &str = "no-index-inodes";

/// The name under which uppers with fewer copies are counted.
pub const LATE_COPY_UP: &str = "late-copy-up";

/// The name under which times of fifos are counted.
pub const FIFO_TIMES: &str = "fifo-times";

static COUNTS: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

/// The deviation that explains a difference; it is counted.
pub fn explain(seen: &Seen<'_>, kernel: bool) -> Option<&'static str> {
    let mine = if kernel { Who::Kernel } else { Who::Rovl };
    let found = DEVIATIONS
        .iter()
        .find(|d| (d.who == Who::Both || d.who == mine) && (d.applies)(seen))?;
    count(found.name);
    Some(found.name)
}

/// Counts one more use of a named deviation.
pub fn count(name: &'static str) {
    if let Ok(mut counts) = COUNTS.lock() {
        *counts.entry(name).or_default() += 1;
    }
}

/// How often each deviation was met.
pub fn report() -> String {
    let Ok(counts) = COUNTS.lock() else {
        return String::new();
    };
    let line = |(name, n): (&&str, &usize)| {
        let all = DEVIATIONS.iter().map(|d| (d.name, d.why));
        let all = all.chain(ENDS.iter().map(|d| (d.name, d.why)));
        let mut all = all.chain(ITEM_DEVIATIONS.iter().map(|d| (d.name, d.why)));
        let why = all.find(|d| d.0 == *name).map_or("", |d| d.1);
        format!("  {n:>7} {name}: {why}\n")
    };
    counts.iter().map(line).collect()
}
