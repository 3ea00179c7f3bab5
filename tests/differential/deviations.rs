//! Every deviation that is wanted, by name. A difference that no entry here explains is a failure.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rustix::io::Errno;

use super::driver::Outcome;
use super::model::Op;

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
    /// All operations before this one.
    pub before: &'a [Op],
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
        name: "kernel-nlink-of-unlinked",
        who: Who::Kernel,
        why: "a lower file that was unlinked while open: fstat still shows the lower's nlink",
        applies: |seen| match (seen.op, seen.got, seen.want) {
            (Op::Fstat(_), Outcome::Stat(got), Outcome::Stat(want)) => {
                let mut corrected = got.clone();
                corrected.nlink = want.nlink;
                got.nlink == want.nlink + 1 && corrected == *want
            }
            _ => false,
        },
    },
];

static COUNTS: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());

/// The deviation that explains a difference; it is counted.
pub fn explain(seen: &Seen<'_>, kernel: bool) -> Option<&'static str> {
    let mine = if kernel { Who::Kernel } else { Who::Rovl };
    let found = DEVIATIONS.iter().find(|d| (d.who == Who::Both || d.who == mine) && (d.applies)(seen))?;
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
    let Ok(counts) = COUNTS.lock() else { return String::new() };
    let line = |(name, n): (&&str, &usize)| {
        let why = DEVIATIONS.iter().find(|d| d.name == *name).map_or("", |d| d.why);
        format!("  {n:>7} {name}: {why}\n")
    };
    counts.iter().map(line).collect()
}
