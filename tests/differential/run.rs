//! Runs one case on all backends and says what differs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::CWD;
use rustix::io::Errno;

use super::deviations::History;
use super::driver::Driver;
use super::judge::{
    Failure, How, Ids, faultless, judge_kernel, raw_differences, same_outcome, same_trees, setup,
};
use super::layers::{self, Made};
use super::model::{Case, Disk, Op};
use super::mounts::{self, Disks, Subject};
use super::outcome::{Outcome, Role};
use super::place::{PATIENCE, Place, in_own_tree, in_tree, now};
use super::random_ops;
use super::rng::Rng;
use super::stats;
use super::sys;
use super::tree::{self, Tree, Walker};
use super::upper;

/// Where operations come from.
pub enum Source<'a> {
    /// The case's own.
    Fixed,
    /// Made up: how many before and how many in the test proper.
    Random(&'a mut Rng, usize, usize),
}

/// Runs a case. With [`Source::Random`] the operations are put into it.
pub fn run(
    subject: &Subject,
    disks: &Disks,
    case: &mut Case,
    source: Source<'_>,
) -> Result<(), Failure> {
    let t0 = now();
    let place = setup(Place::new(disks, case))?;
    let lowers_before = setup(raw_trees(&place.subject.lowers, t0))?;
    let mut test = Test {
        subject,
        place: &place,
        t0,
        disk: case.disk,
        options: case.options,
        ids: Ids::default(),
    };
    test.whole(case, source)?;
    let lowers_after = setup(raw_trees(&place.subject.lowers, t0))?;
    for (i, (a, b)) in lowers_before.iter().zip(&lowers_after).enumerate() {
        let diffs = raw_differences(a, b);
        if !diffs.is_empty() {
            return Err(Failure::new(
                "lower",
                format!("lower {i} was changed:\n{}", diffs.join("\n")),
            ));
        }
    }
    Ok(())
}

/// The trees of layers as they lie on disk, marks and whiteouts too.
pub fn raw_trees(roots: &[PathBuf], t0: i64) -> Made<Vec<Tree>> {
    let roots = roots.to_vec();
    let thread = std::thread::spawn(move || -> Made<Vec<Tree>> {
        sys::own_fs().map_err(|error| error.to_string())?;
        let mut trees = Vec::new();
        for root in roots {
            use std::os::unix::ffi::OsStrExt;
            let dir = tree::open_dir(CWD, root.as_os_str().as_bytes())
                .map_err(|error| error.to_string())?;
            trees.push(Walker::new(t0, true, false).walk(dir));
        }
        Ok(trees)
    });
    thread
        .join()
        .map_err(|_| "a walk of the layers panicked".to_string())?
}

struct Test<'a> {
    subject: &'a Subject,
    place: &'a Place,
    t0: i64,
    disk: Disk,
    options: &'static str,
    ids: Ids,
}

/// An operation, what came of it, and whether it was on an open file without a name.
pub struct Step {
    pub op: Op,
    pub outcome: Outcome,
    pub deleted: bool,
}

impl Step {
    /// Runs an operation.
    pub fn run(driver: &mut Driver, op: Op) -> Step {
        let outcome = driver.run(&op);
        Step {
            deleted: driver.is_deleted(&op),
            op,
            outcome,
        }
    }
}

pub type Log = Vec<Step>;

/// The kernel is judged as the kernel also when it is in the subject's place.
fn role_of(subject: &Subject) -> Role {
    if matches!(subject, Subject::Kernel) {
        Role::Kernel
    } else {
        Role::Subject
    }
}

impl Test<'_> {
    fn whole(&mut self, case: &mut Case, mut source: Source<'_>) -> Result<(), Failure> {
        self.prepare(case, &mut source)?;
        let plain_view = setup(mounts::bind(&self.place.plain, &self.place.plain_view))?;
        let result = self.compare_all(case, source);
        setup(plain_view.unmount())?;
        result
    }

    /// Makes the upper that the test starts from, twice, by the kernel; then the plain copy.
    fn prepare(&mut self, case: &mut Case, source: &mut Source<'_>) -> Result<(), Failure> {
        let count = match source {
            Source::Fixed => case.before.len(),
            Source::Random(_, before, _) => *before,
        };
        if count > 0 {
            let mounted = setup(mounts::kernel(&self.place.kernel))?;
            let log = self.run_before(case, source)?;
            setup(layers::pin_times(&self.place.kernel.merged, self.t0))?;
            case.before = log.into_iter().map(|step| step.op).collect();
            setup(mounted.unmount())?;
            let mounted = setup(mounts::kernel(&self.place.subject))?;
            let ops = case.before.clone();
            in_own_tree(
                &self.place.subject.merged,
                Role::Kernel,
                self.t0,
                move |d| replay(d, &ops),
            )?;
            setup(layers::pin_times(&self.place.subject.merged, self.t0))?;
            setup(mounted.unmount())?;
        }
        let mounted = setup(mounts::kernel(&self.place.kernel))?;
        let (place, merged) = (self.place, &self.place.kernel.merged);
        setup(layers::copy(merged, &place.plain, &place.hidden))?;
        let a = in_own_tree(merged, Role::Kernel, self.t0, Driver::tree)?;
        let b = in_own_tree(&place.plain, Role::Plain, self.t0, Driver::tree)?;
        same_trees(
            "setup",
            "the kernel's tree and its copy",
            &setup(a.map_err(|e| e.to_string()))?,
            &setup(b.map_err(|e| e.to_string()))?,
            How::Same,
        )?;
        setup(mounted.unmount())
    }

    fn run_before(&self, case: &Case, source: &mut Source<'_>) -> Result<Log, Failure> {
        let root = &self.place.kernel.merged;
        match source {
            Source::Fixed => {
                let ops = case.before.clone();
                in_own_tree(root, Role::Kernel, self.t0, move |d| replay(d, &ops))
            }
            Source::Random(rng, count, _) => self.make(rng, root, Role::Kernel, *count, false),
        }
    }

    fn make(
        &self,
        rng: &mut Rng,
        root: &Path,
        role: Role,
        count: usize,
        remounts: bool,
    ) -> Result<Log, Failure> {
        let (mut own, disk) = (rng.clone(), self.disk);
        let (log, after) = in_own_tree(root, role, self.t0, move |d| {
            let log = random_ops::run(&mut own, d, count, disk, remounts);
            (log, own)
        })?;
        *rng = after;
        Ok(log)
    }

    fn compare_all(&mut self, case: &mut Case, source: Source<'_>) -> Result<(), Failure> {
        let view = &self.place.plain_view;
        let plain = match source {
            Source::Fixed => {
                let ops = case.ops.clone();
                in_own_tree(view, Role::Plain, self.t0, move |d| replay(d, &ops))?
            }
            Source::Random(rng, _, count) => self.make(rng, view, Role::Plain, count, true)?,
        };
        case.ops = plain.iter().map(|step| step.op.clone()).collect();
        stats::add(&plain);
        let plain_tree = in_own_tree(view, Role::Plain, self.t0, Driver::tree)?;
        let plain_tree = setup(plain_tree.map_err(|error| error.to_string()))?;

        let (subject, subject_tree) = self.on_subject(&case.ops)?;
        if role_of(self.subject) == Role::Kernel {
            let tree = setup(subject_tree.map_err(|error| error.to_string()))?;
            if judge_kernel(&plain, &subject, (&tree, &plain_tree))? {
                return Ok(());
            }
            return self.after(&plain_tree, &tree, !case.before.is_empty());
        }
        self.judge(&plain, &subject)?;
        let subject_tree = subject_tree
            .map_err(|error| Failure::new("tree", format!("can't read rovl's tree: {error}")))?;
        faultless("tree", "rovl's tree", &subject_tree)?;
        let what = "rovl's tree and the plain copy";
        same_trees("tree", what, &subject_tree, &plain_tree, How::Same)?;
        self.ids
            .check_trees(&plain_tree, &subject_tree, "after the operations")?;

        let (kernel, kernel_tree) = self.on_kernel(&case.ops)?;
        judge_kernel(&plain, &kernel, (&kernel_tree, &plain_tree))?;
        self.after(&plain_tree, &subject_tree, !case.before.is_empty())
    }

    /// Runs the operations on the subject, mounting it again where they say so.
    fn on_subject(&self, ops: &[Op]) -> Result<(Vec<Outcome>, Result<Tree, Errno>), Failure> {
        let mut outcomes = Vec::new();
        let dirs = &self.place.subject;
        let segments: Vec<&[Op]> = ops.split_inclusive(|op| *op == Op::Remount).collect();
        let mut last = Ok(Tree::default());
        for segment in if segments.is_empty() {
            vec![&[][..]]
        } else {
            segments
        } {
            let failed = |text| Failure::new("mount", text);
            let mounted = mounts::subject(self.subject, dirs, self.options).map_err(failed)?;
            let progress = Arc::new(AtomicUsize::new(0));
            let (mine, reached) = (segment.to_vec(), Arc::clone(&progress));
            let run = in_tree(
                &dirs.merged,
                role_of(self.subject),
                self.t0,
                PATIENCE,
                move |d| {
                    let mut outcomes = Vec::new();
                    for op in &mine {
                        outcomes.push(d.run(op));
                        reached.fetch_add(1, Ordering::Relaxed);
                    }
                    (outcomes, d.tree())
                },
            );
            match run.map_err(|text| Failure::new("enter", text))? {
                Some((more, tree)) => {
                    outcomes.extend(more);
                    last = tree;
                }
                None => {
                    mounted.abort();
                    let at = outcomes.len() + progress.load(Ordering::Relaxed);
                    let text = format!("hangs at operation {at}: {:?}", ops.get(at));
                    return Err(Failure {
                        at: Some(at),
                        ..Failure::new("hang", text)
                    });
                }
            }
            mounted
                .unmount()
                .map_err(|text| Failure::new("unmount", text))?;
        }
        Ok((outcomes, last))
    }

    fn on_kernel(&self, ops: &[Op]) -> Result<(Vec<Outcome>, Tree), Failure> {
        let mut outcomes = Vec::new();
        let dirs = &self.place.kernel;
        let mut last = Tree::default();
        let segments: Vec<&[Op]> = ops.split_inclusive(|op| *op == Op::Remount).collect();
        for segment in if segments.is_empty() {
            vec![&[][..]]
        } else {
            segments
        } {
            let mounted = setup(mounts::kernel(dirs))?;
            let ops = segment.to_vec();
            let (log, tree) = in_own_tree(&dirs.merged, Role::Kernel, self.t0, move |d| {
                (replay(d, &ops), d.tree())
            })?;
            outcomes.extend(log.into_iter().map(|step| step.outcome));
            last = setup(tree.map_err(|error| error.to_string()))?;
            setup(mounted.unmount())?;
        }
        Ok((outcomes, last))
    }

    /// Compares every outcome of the subject with the plain copy's.
    fn judge(&mut self, plain: &Log, subject: &[Outcome]) -> Result<(), Failure> {
        let mut history = History::default();
        for (i, (step, got)) in plain.iter().zip(subject).enumerate() {
            let op = &step.op;
            let fail = |mut failure: Failure| {
                failure.at = Some(i);
                failure.text = format!("operation {i}: {op:?}\n{}", failure.text);
                failure
            };
            same_outcome(step, got, &history, false).map_err(fail)?;
            let place = || format!("operation {i}, {op:?}");
            match (&step.outcome, got) {
                (Outcome::Stat(x), Outcome::Stat(y)) => {
                    self.ids.check(x, y, place).map_err(fail)?;
                }
                (Outcome::Tree(x), Outcome::Tree(y)) => {
                    self.ids.check_trees(&x.0, &y.0, &place()).map_err(fail)?;
                }
                _ => {}
            }
            history.add(step);
        }
        Ok(())
    }

    /// After the last unmount: the upper in itself, what the subject shows of it when mounted
    /// again, what the kernel shows of it, and what the subject shows after the kernel had it.
    fn after(&mut self, plain: &Tree, live: &Tree, before: bool) -> Result<(), Failure> {
        let dirs = &self.place.subject;
        let faults = setup(upper::check(
            dirs,
            before || role_of(self.subject) == Role::Kernel,
        ))?;
        if !faults.is_empty() {
            return Err(Failure::new(
                "upper",
                format!("the upper is not clean:\n  {}", faults.join("\n  ")),
            ));
        }
        for stage in [
            "mounted again",
            "mounted by the kernel",
            "mounted again after the kernel",
        ] {
            let by_kernel = stage == "mounted by the kernel";
            let who = if by_kernel {
                &Subject::Kernel
            } else {
                self.subject
            };
            let class = if by_kernel { "by-kernel" } else { "remount" };
            let mounted = mounts::subject(who, dirs, self.options)
                .map_err(|text| Failure::new(class, format!("{stage}: {text}")))?;
            let role = role_of(who);
            let tree = setup(in_tree(&dirs.merged, role, self.t0, PATIENCE, Driver::tree))?
                .ok_or_else(|| Failure::new("hang", stage))?
                .map_err(|error| Failure::new(class, format!("{stage}: {error}")))?;
            faultless(class, stage, &tree)?;
            same_trees(class, stage, &tree, plain, How::of(role_of(self.subject)))?;
            same_trees(
                class,
                &format!("{stage}, to the nanosecond"),
                &tree,
                live,
                How::Exact,
            )?;
            if !by_kernel && role == Role::Subject {
                self.ids.check_trees(plain, &tree, stage)?;
            }
            mounted
                .unmount()
                .map_err(|text| Failure::new("unmount", text))?;
        }
        Ok(())
    }
}

/// Runs operations one after the other.
pub fn replay(driver: &mut Driver, ops: &[Op]) -> Log {
    ops.iter().map(|op| Step::run(driver, op.clone())).collect()
}
