//! What agrees with what, and what a failure says.

use std::collections::HashMap;

use super::deviations::{self, History, Seen};
use super::layers::Made;
use super::outcome::{Outcome, Role, errno_name};
use super::run::Log;
use super::run::Step;
use super::tree::{self, Attr, Tree};

/// Why a case failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What kind of check failed: shrinking keeps to it.
    pub class: String,
    pub text: String,
    /// The operation that failed.
    pub at: Option<usize>,
}

impl Failure {
    pub fn new(class: &str, text: impl Into<String>) -> Failure {
        Failure {
            class: class.to_string(),
            text: text.into(),
            at: None,
        }
    }
}

/// Turns an error of the test's own doing into a failure.
pub fn setup<X>(result: Made<X>) -> Result<X, Failure> {
    result.map_err(|text| Failure::new("setup", text))
}

/// For each object of the plain copy the subject's inode number, which never changes.
#[derive(Default)]
pub struct Ids(HashMap<tree::Id, (u64, String)>);

impl Ids {
    pub fn check(
        &mut self,
        plain: &Attr,
        subject: &Attr,
        place: impl Fn() -> String,
    ) -> Result<(), Failure> {
        match self.0.get(&plain.id) {
            Some((ino, _)) if *ino == subject.id.0 => Ok(()),
            Some((ino, first)) => {
                let text = format!(
                    "st_ino was {ino} ({first}), is {} ({})",
                    subject.id.0,
                    place()
                );
                Err(Failure::new("ino", text))
            }
            None => {
                self.0.insert(plain.id, (subject.id.0, place()));
                Ok(())
            }
        }
    }

    pub fn check_trees(
        &mut self,
        plain: &Tree,
        subject: &Tree,
        stage: &str,
    ) -> Result<(), Failure> {
        for (path, x) in &plain.items {
            if let Some(y) = subject.items.get(path) {
                self.check(&x.attr, &y.attr, || format!("{path:?}, {stage}"))?;
            }
        }
        Ok(())
    }
}

/// Compares every outcome of the kernel's overlayfs with the plain copy's, and its tree at the end.
/// True if they diverge from some operation on, by a named deviation.
pub fn judge_kernel(
    plain: &Log,
    kernel: &[Outcome],
    (kernel_tree, plain_tree): (&Tree, &Tree),
) -> Result<bool, Failure> {
    let mut history = History::default();
    let excused = |history: &History, failure: Failure| {
        if history.may_resurrect() {
            deviations::count(deviations::RESURRECTION);
            return Ok(true);
        }
        Err(failure)
    };
    for (i, (step, got)) in plain.iter().zip(kernel).enumerate() {
        if history.ends_here(&step.op, &step.outcome) {
            return Ok(true);
        }
        if let Err(failure) = same_outcome(step, got, &history, true) {
            let text = format!(
                "the kernel deviates, by no name, at operation {i}: {:?}\n{}",
                step.op, failure.text
            );
            let class = format!("kernel-{}", failure.class);
            let at = Some(i);
            return excused(&history, Failure { class, text, at });
        }
        history.add(step);
    }
    let what = "the kernel's tree and the plain copy";
    match same_trees("kernel", what, kernel_tree, plain_tree, How::Kernel) {
        Ok(()) => Ok(false),
        Err(failure) => excused(&history, failure),
    }
}

pub fn same_outcome(
    step: &Step,
    got: &Outcome,
    history: &History,
    kernel: bool,
) -> Result<(), Failure> {
    let want = &step.outcome;
    if let (Outcome::Tree(x), Outcome::Tree(y)) = (got, want) {
        faultless("walk", "the tree", &x.0)?;
        return same_trees(
            "walk",
            "the tree and the plain copy",
            &x.0,
            &y.0,
            if kernel { How::Kernel } else { How::Same },
        );
    }
    let read_only = history.reads_read_only(&step.op);
    let seen = Seen {
        op: &step.op,
        got,
        want,
        deleted: step.deleted,
        read_only,
    };
    if got == want || deviations::explain(&seen, kernel).is_some() {
        return Ok(());
    }
    let mut text = format!("  got  {got:?}\n  want {want:?}");
    if let (Outcome::Stat(x), Outcome::Stat(y)) = (got, want) {
        text.push_str(&format!("\n  that is{}", x.difference(y, false)));
    }
    let sort = |outcome: &Outcome| match outcome {
        Outcome::Failed(errno) => errno_name(*errno),
        _ => String::new(),
    };
    let class = format!("outcome {} {}/{}", step.op.name(), sort(got), sort(want));
    Err(Failure::new(class.trim_end(), text))
}

/// How trees are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    Same,
    /// mtimes to the nanosecond, also those that the system set.
    Exact,
    /// The first is the kernel's and may deviate by name.
    Kernel,
    /// The second is, and neither has an index.
    Parity,
    /// Uppers as they lie on disk.
    Upper,
}

impl How {
    pub fn of(role: Role) -> How {
        if role == Role::Kernel {
            How::Kernel
        } else {
            How::Same
        }
    }
}

pub fn faultless(class: &str, what: &str, tree: &Tree) -> Result<(), Failure> {
    if tree.faults.is_empty() {
        return Ok(());
    }
    let faults: Vec<&str> = tree.faults.iter().map(String::as_str).take(10).collect();
    Err(Failure::new(
        class,
        format!("{what} is wrong in itself:\n  {}", faults.join("\n  ")),
    ))
}

pub fn same_trees(class: &str, what: &str, a: &Tree, b: &Tree, how: How) -> Result<(), Failure> {
    let excuse: Option<tree::Excuse> = match how {
        How::Same | How::Exact => None,
        How::Kernel => Some(deviations::explain_item),
        How::Parity | How::Upper => Some(|a, b| deviations::explain_item(b, a)),
    };
    let mut diffs = tree::compare(a, b, how == How::Exact, excuse);
    if how == How::Parity {
        let before = diffs.len();
        diffs.retain(|diff| !diff.what.starts_with(tree::LINKED));
        if diffs.len() < before {
            deviations::count(deviations::NO_INDEX_INODES);
        }
    }
    if diffs.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = diffs
        .iter()
        .take(12)
        .map(|diff| format!("  {:?}: {}", diff.path, diff.what))
        .collect();
    let more = diffs.len().saturating_sub(lines.len());
    Err(Failure::new(
        class,
        format!(
            "{what} differ in {} places ({more} not shown):\n{}",
            diffs.len(),
            lines.join("\n")
        ),
    ))
}

/// The differences of two states of one layer, times exact, ctime too.
pub fn raw_differences(a: &Tree, b: &Tree) -> Vec<String> {
    let mut out: Vec<String> = tree::compare(a, b, true, None)
        .iter()
        .map(|diff| format!("  {:?}: {}", diff.path, diff.what))
        .collect();
    for (path, x) in &a.items {
        if let Some(y) = b.items.get(path) {
            if x.attr.ctime != y.attr.ctime {
                out.push(format!(
                    "  {path:?}: ctime {:?} != {:?}",
                    x.attr.ctime, y.attr.ctime
                ));
            }
            if x.attr.id != y.attr.id {
                out.push(format!(
                    "  {path:?}: ino {} != {}",
                    x.attr.id.0, y.attr.id.0
                ));
            }
        }
    }
    out
}
