//! With the kernel's defaults (`index=off,redirect_dir=off`) rovl gives the kernel's behaviour
//! back, bit for bit in the upper (design.md §3): the kernel's overlayfs is the truth here, and
//! what lies in the two uppers afterwards must be the same, whiteouts and marks included.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::FileType;

use super::deviations::{self, History, Seen};
use super::judge::{Failure, How, same_trees, setup};
use super::model::{Case, Disk};
use super::mounts::{self, Disks, Subject};
use super::outcome::{Outcome, Role};
use super::place::{PATIENCE, Place, in_own_tree, in_tree, now};
use super::random_layers;
use super::random_ops;
use super::rng::Rng;
use super::run::{Log, raw_trees, replay};
use super::tree::{Item, Tree, When};

const KERNEL_OPTIONS: &str = "redirect_dir=off,index=off,metacopy=off,xino=auto";
const OPTIONS: &str = ",redirect_dir=off,index=off";

/// Runs a case; with `rng` its operations are made up.
pub fn run(
    subject: &Subject,
    disks: &Disks,
    case: &mut Case,
    random: Option<(&mut Rng, usize)>,
) -> Result<(), Failure> {
    let t0 = now();
    let place = setup(Place::new(disks, case))?;
    let kernel = setup(mounts::kernel_with(&place.kernel, KERNEL_OPTIONS))?;
    let (log, kernel_tree) = match random {
        Some((rng, count)) => {
            let (mut own, disk) = (rng.clone(), case.disk);
            in_own_tree(&place.kernel.merged, Role::Kernel, t0, move |d| {
                let log = random_ops::run(&mut own, d, count, disk, false);
                (log, d.tree())
            })?
        }
        None => {
            let ops = case.ops.clone();
            in_own_tree(&place.kernel.merged, Role::Kernel, t0, move |d| {
                (replay(d, &ops), d.tree())
            })?
        }
    };
    setup(kernel.unmount())?;
    case.ops = log.iter().map(|step| step.op.clone()).collect();
    let mounted = match subject {
        Subject::Kernel => setup(mounts::kernel_with(&place.subject, KERNEL_OPTIONS))?,
        other => mounts::subject(other, &place.subject, OPTIONS)
            .map_err(|text| Failure::new("mount", text))?,
    };
    let role = match subject {
        Subject::Kernel => Role::Kernel,
        _ => Role::Subject,
    };
    let ops = case.ops.clone();
    let run = in_tree(&place.subject.merged, role, t0, PATIENCE, move |d| {
        (replay(d, &ops), d.tree())
    });
    let Some((outcomes, tree)) = setup(run)? else {
        mounted.abort();
        return Err(Failure::new("hang", "the subject hangs"));
    };
    mounted
        .unmount()
        .map_err(|text| Failure::new("unmount", text))?;
    let result = judge(&log, &outcomes).and_then(|ended| match ended {
        true => Ok(()),
        false => compare(&place, t0, tree, kernel_tree),
    });
    let mut history = History::default();
    log.iter().for_each(|step| history.add(step));
    if result.is_err() && history.may_resurrect() {
        deviations::count(deviations::RESURRECTION);
        return Ok(());
    }
    result
}

type Read = Result<Tree, rustix::io::Errno>;

/// Compares what is shown, and what lies in the uppers.
fn compare(place: &Place, t0: i64, tree: Read, kernel_tree: Read) -> Result<(), Failure> {
    let text = |error: rustix::io::Errno| error.to_string();
    let (tree, kernel_tree) = (
        setup(tree.map_err(text))?,
        setup(kernel_tree.map_err(text))?,
    );
    same_trees(
        "tree",
        "rovl's tree and the kernel's",
        &tree,
        &kernel_tree,
        How::Parity,
    )?;
    let uppers = [place.subject.upper.clone(), place.kernel.upper.clone()];
    let mut raw = setup(raw_trees(&uppers, t0))?;
    for tree in &mut raw {
        forget(tree, &place.subject.lowers);
    }
    leave_out_needless_copies(&raw[0].clone(), &mut raw[1]);
    same_trees(
        "upper",
        "rovl's upper and the kernel's",
        &raw[0],
        &raw[1],
        How::Upper,
    )
}

/// Takes out of an upper what may differ:
/// - the identity of the overlay;
/// - the attributes of whiteouts, and how many names one has (the kernel links them);
/// - `opaque` where no lower has the path: the kernel sets it before a rename that then fails;
/// - `impure`, which may stay on a directory for longer than it is needed (that it is there when
///   it is needed is checked by `upper::check`).
fn forget(tree: &mut Tree, lowers: &[PathBuf]) {
    for (number, (path, item)) in tree.items.iter_mut().enumerate() {
        let name = OsStr::from_bytes(path);
        let covers = lowers
            .iter()
            .any(|lower| lower.join(name).symlink_metadata().is_ok());
        item.xattrs.retain(|(name, _)| match &**name {
            b"trusted.overlay.uuid" | b"trusted.overlay.impure" => false,
            b"trusted.overlay.opaque" => covers,
            _ => true,
        });
        if is_whiteout(item) {
            item.attr.id = (u64::MAX - number as u64, 0);
            item.attr.when = When::Recent;
            (item.attr.nlink, item.attr.mode) = (1, 0);
            (item.attr.uid, item.attr.gid) = (0, 0);
            item.xattrs.clear();
        }
    }
}

/// The kernel copies up when a file is opened for writing, and before an operation that then
/// fails; rovl copies up when something changes (the deviation `late-copy-up`).
fn leave_out_needless_copies(rovl: &Tree, kernel: &mut Tree) {
    let before = kernel.items.len();
    kernel.items.retain(|path, item| {
        let is_copy = item
            .xattrs
            .iter()
            .any(|(name, _)| &**name == b"trusted.overlay.origin");
        rovl.items.contains_key(path) || !is_copy || item.attr.when == When::Recent
    });
    if kernel.items.len() < before {
        deviations::count(deviations::LATE_COPY_UP);
    }
}

fn is_whiteout(item: &Item) -> bool {
    item.attr.kind == FileType::CharacterDevice && item.attr.rdev == (0, 0)
}

/// Compares the outcomes; true where the two are to diverge.
fn judge(kernel: &Log, subject: &Log) -> Result<bool, Failure> {
    let mut history = History::default();
    for (i, (want, got)) in kernel.iter().zip(subject).enumerate() {
        if history.ends_here(&want.op, &want.outcome) {
            return Ok(true);
        }
        // The deviations are written with the kernel as the one that deviates.
        let seen = Seen {
            op: &want.op,
            got: &want.outcome,
            want: &got.outcome,
            deleted: got.deleted || want.deleted,
            read_only: history.reads_read_only(&want.op),
        };
        let refused =
            want.outcome == Outcome::MustFail && matches!(got.outcome, Outcome::Failed(_));
        let trees = matches!(want.outcome, Outcome::Tree(_));
        if want.outcome != got.outcome
            && !refused
            && !trees
            && deviations::explain(&seen, true).is_none()
        {
            let text = format!(
                "operation {i}: {:?}\n  got  {:?}\n  want {:?}",
                want.op, got.outcome, want.outcome
            );
            return Err(Failure {
                at: Some(i),
                ..Failure::new(&format!("outcome {}", want.op.name()), text)
            });
        }
        history.add(want);
    }
    Ok(false)
}

/// A random case for [`run`].
pub fn sequence(
    subject: &Subject,
    disks: &Disks,
    seed: u64,
    ops: usize,
) -> Option<(Case, Failure)> {
    let mut rng = Rng::new(seed ^ 0x7061_7269_7479);
    let disk = if seed.is_multiple_of(5) {
        Disk::Tmpfs
    } else {
        Disk::Ext4
    };
    let mut case = random_layers::layers(&mut rng, disk);
    let failure = run(subject, disks, &mut case, Some((&mut rng, ops))).err()?;
    Some((case, failure))
}
