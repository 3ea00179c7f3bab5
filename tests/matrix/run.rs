//! Runs the cells: Linux alone first, then rovl in its place at each turn.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mount::MountFlags;

use crate::cell::{
    Cell, KEPT_LINKS, Liberty, Namespace, ONE_DEVICE, OWN_MARKS, Place, UNREAD_ORIGINS,
};
use crate::lowers::{Lowers, build};
use crate::script::{self, PARTS, play};
use crate::support::{Layers, Mounted, Subject, UpperCheck, subject};
use crate::view::{self, Promise, Rigour, View, d_ino_difference, is_constant, view};

/// How many cells run at a time.
const THREADS: usize = 2;

/// Names of lower files that have several.
const LINKED: [&str; 13] = [
    "hard1",
    "hard2",
    "dir/hard3",
    "dir/hard4",
    "pair1",
    "pair2",
    "quad1",
    "quad2",
    "quad3",
    "dir/quad4",
    "dir/quad5",
    "meta3",
    "dir/meta3l",
];

/// What a failed check says: where, and the first difference.
type Checked<T = ()> = Result<T, String>;

/// Runs all cells; the failures, each once with the cells that have it.
pub fn run_all(disk: &Path, other: &Path, namespace: Namespace) -> Vec<String> {
    let start = std::time::Instant::now();
    let lowers = build(disk, other, namespace);
    let wanted = std::env::var("ROVL_MATRIX_CELLS").unwrap_or_default();
    let cells: Vec<Cell> = Cell::all()
        .into_iter()
        .filter(|cell| cell.to_string().contains(&wanted))
        .collect();
    let next = AtomicUsize::new(0);
    let failures: Mutex<BTreeMap<String, Failure>> = Mutex::default();
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(cell) = cells.get(at) else { break };
                    let run = Run::new(disk, at, *cell, &lowers, namespace);
                    let (served, found) = run.run();
                    counts[usize::from(served)].fetch_add(1, Ordering::Relaxed);
                    let mut failures = failures.lock().unwrap();
                    for failure in found {
                        let key = without_braces(&failure);
                        let same: &mut Failure = failures.entry(key).or_default();
                        same.example = failure;
                        same.cells.push(cell.to_string());
                    }
                }
            });
        }
    });
    let [refused, served] = counts.map(AtomicUsize::into_inner);
    println!(
        "{served} cells, {refused} refused, in {:?}",
        start.elapsed()
    );
    for liberty in [OWN_MARKS, KEPT_LINKS, ONE_DEVICE, UNREAD_ORIGINS] {
        let is = |cell: &&Cell| liberty.applies(cell, namespace);
        let count = cells.iter().filter(is).count();
        println!("  {count} cells are {}: {}", liberty.name, liberty.why);
    }
    assert_eq!(refused + served, cells.len(), "a cell ended early");
    let failures = failures.into_inner().unwrap();
    failures.values().map(Failure::summary).collect()
}

/// One difference, and the cells that have it first.
#[derive(Default)]
struct Failure {
    example: String,
    cells: Vec<String>,
}

impl Failure {
    fn summary(&self) -> String {
        let most = std::env::var("ROVL_MATRIX_SHOW").map_or(3, |n| n.parse().unwrap());
        let shown: Vec<&str> = self.cells.iter().take(most).map(String::as_str).collect();
        let more = match self.cells.len() - shown.len() {
            0 => String::new(),
            n => format!("\n    and {n} more"),
        };
        format!("- {}\n    {}{more}", self.example, shown.join("\n    "))
    }
}

/// A path in the index or in work has a name of its own in each run.
fn bare(fault: &str) -> String {
    match fault.split_once(": ") {
        Some((path, what)) if path.starts_with("work/") => {
            let (place, name) = path.rsplit_once('/').unwrap_or_default();
            format!("{place}/{{{name}}}: {what}")
        }
        _ => fault.to_owned(),
    }
}

/// A failure without what differs from run to run.
fn without_braces(text: &str) -> String {
    let mut parts = text.split('{');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        all + part.split_once('}').map_or("", |(_, rest)| rest)
    })
}

/// One cell.
struct Run<'a> {
    base: PathBuf,
    cell: Cell,
    lowers: &'a Lowers,
    namespace: Namespace,
    failures: Vec<String>,
    /// Has Linux had our upper mounted?
    lent: bool,
}

/// What one mounted tree showed, from mounting to unmounting.
struct Turn {
    before: View,
    errors: Vec<(&'static str, i32)>,
    after: View,
}

impl<'a> Run<'a> {
    fn new(
        disk: &Path,
        at: usize,
        cell: Cell,
        lowers: &'a Lowers,
        namespace: Namespace,
    ) -> Run<'a> {
        Run {
            base: disk.join(format!("cell{at}")),
            cell,
            lowers,
            namespace,
            failures: Vec::new(),
            lent: false,
        }
    }

    /// Whether both mount it, and what is wrong.
    fn run(mut self) -> (bool, Vec<String>) {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.judge()));
        let served = match result {
            Ok(served) => served,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                self.failures.push(format!(
                    "panic: {}",
                    text.replace(&*self.base.to_string_lossy(), "")
                ));
                true
            }
        };
        crate::support::unmount_beneath(&self.base);
        fs::remove_dir_all(&self.base).ok();
        (served, self.failures)
    }

    fn judge(&mut self) -> bool {
        let kernel = self.mount(&Subject::Kernel, &self.layers("asked"));
        let ours = self.mount(&subject(), &self.layers("tried"));
        let result = match (kernel.map(drop), ours.map(drop)) {
            (Ok(()), Ok(())) => self.directions(),
            (Err(_), Err(said)) => {
                self.refusal(&said);
                return false;
            }
            (Ok(()), Err(said)) => Err(format!("refused, Linux mounts it: {said}")),
            (Err(_), Ok(())) if self.takes(&OWN_MARKS) => self.without_linux(),
            (Err(why), Ok(())) => Err(format!("mounted, Linux refuses it: {why}")),
        };
        self.failures.extend(result.err());
        true
    }

    fn takes(&self, liberty: &Liberty) -> bool {
        liberty.applies(&self.cell, self.namespace)
    }

    /// A refusal is an error of usage or of the mount, and names an option of the cell.
    fn refusal(&mut self, said: &str) {
        if subject() == Subject::Kernel {
            return;
        }
        let names = [
            "redirect_dir",
            "index",
            "metacopy",
            "xino",
            "userxattr",
            "volatile",
        ];
        let clear = names.iter().any(|name| said.contains(name));
        let code = ["exit status: 1", "exit status: 2"]
            .iter()
            .any(|code| said.contains(code));
        if !clear || !code {
            self.failures
                .push(format!("refused without saying why: {said}"));
        }
    }

    fn layers(&self, name: &str) -> Layers {
        let mut layers = Layers::new(&self.base.join(name), 0);
        layers.lowers = match self.cell.place {
            Place::Same => self.lowers.same.clone(),
            Place::Mixed => self.lowers.mixed.clone(),
        };
        layers
    }

    fn mount(&self, subject: &Subject, layers: &Layers) -> Checked<Mounted> {
        let mut options = self.cell.options();
        if *subject == Subject::Kernel && self.takes(&OWN_MARKS) {
            options.push("userxattr".into());
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let mounted = subject.try_mount(layers, &options, true)?;
        if *subject == Subject::Kernel {
            // rovl's mounts leave access times alone by default.
            let flags = MountFlags::BIND | MountFlags::NOATIME;
            rustix::mount::mount_remount(mounted.root(), flags, c"").map_err(|e| e.to_string())?;
        }
        Ok(mounted)
    }

    /// One mount: looks, runs a part of the script if there is one, looks again, unmounts, checks the upper.
    fn turn(&mut self, who: &Subject, layers: &Layers, part: Option<usize>) -> Checked<Turn> {
        let mounted = self
            .mount(who, layers)
            .map_err(|said| format!("can't mount again: {said}"))?;
        let before = view(mounted.root());
        let (errors, after) = match part {
            None => (Vec::new(), before.clone()),
            Some(part) => {
                let errors = play(PARTS[part], mounted.root());
                (errors, view(mounted.root()))
            }
        };
        mounted.unmount();
        self.lent |= *who == Subject::Kernel && layers.upper.ends_with("ours/upper");
        self.check_upper(layers);
        self.end_volatile(layers)?;
        Ok(Turn {
            before,
            errors,
            after,
        })
    }

    fn check_upper(&mut self, layers: &Layers) {
        let ours = layers.upper.ends_with("ours/upper") && subject() != Subject::Kernel;
        let check = UpperCheck {
            userxattr: self.cell.userxattr || self.namespace == Namespace::User,
            // Where Linux takes the index as off, it doesn't keep it either.
            index: self.cell.index && (ours || !self.takes(&KEPT_LINKS)),
            metacopy: self.cell.metacopy,
            volatile: self.cell.volatile,
            follow: self.cell.redirect != "nofollow",
            by_kernel: !ours || (self.lent && self.takes(&UNREAD_ORIGINS)),
            unprivileged: self.namespace == Namespace::User,
            ..UpperCheck::new(&layers.lowers, &layers.upper, &layers.work)
        };
        let turns = layers
            .upper
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default();
        let turns = turns.display();
        match check.faults() {
            Err(error) => self
                .failures
                .push(format!("{turns}: reading the upper: {error}")),
            Ok(faults) => {
                let more = faults.len().saturating_sub(1);
                let first = faults.into_iter().next();
                self.note(
                    &format!("{turns}: upper"),
                    first.map(|first| format!("{} {{and {more} more}}", bare(&first))),
                );
            }
        }
    }

    /// A volatile upper is refused until its mark is taken away.
    fn end_volatile(&self, layers: &Layers) -> Checked {
        if !self.cell.volatile {
            return Ok(());
        }
        for who in [Subject::Kernel, subject()] {
            if self.mount(&who, layers).is_ok() {
                return Err(format!("{who:?} takes an upper that was volatile"));
            }
        }
        fs::remove_dir_all(layers.work.join("work/incompat")).map_err(|e| format!("incompat: {e}"))
    }

    fn note(&mut self, what: &str, difference: Option<String>) {
        if let Some(difference) = difference {
            self.failures.push(format!("{what}: {difference}"));
        }
    }

    fn directions(&mut self) -> Checked {
        let oracle = self.alone()?;
        for (name, result) in [
            ("rovl wrote", self.we_write(&oracle)),
            ("Linux wrote", self.in_turns(&oracle)),
        ] {
            if let Err(failure) = result {
                self.failures.push(format!("{name}: {failure}"));
            }
        }
        Ok(())
    }

    /// Linux alone; the view of each part, as it was and after mounting again.
    fn alone(&mut self) -> Checked<Vec<Turn>> {
        let layers = self.layers("alone");
        let mut turns = Vec::new();
        for part in [Some(0), Some(1), Some(2), None] {
            let turn = self.turn(&Subject::Kernel, &layers, part);
            turns.push(turn.map_err(|failure| format!("Linux alone: {failure}"))?);
        }
        Ok(turns)
    }

    /// A view without what Linux has otherwise in such a cell.
    fn comparable(&self, view: &View) -> View {
        let mut view = view.clone();
        if self.takes(&KEPT_LINKS) {
            view.retain(|path, _| !LINKED.iter().any(|name| path == Path::new(name)));
        }
        view
    }

    /// Linux refuses the cell: what we wrote must be there when it is mounted again.
    fn without_linux(&mut self) -> Checked {
        let layers = self.layers("ours");
        for part in [0, 1, 2] {
            let ours = self.turn(&subject(), &layers, Some(part))?;
            let again = self.turn(&subject(), &layers, None)?;
            self.mounted_again(
                &ours.after,
                &again.after,
                &Promise::still(vec![&ours.after]),
            );
        }
        Ok(())
    }

    fn mounted_again(&mut self, live: &View, again: &View, kept: &Promise<'_>) {
        self.note(
            "mounted again",
            view::difference(live, again, Rigour::SameLayers),
        );
        let mut numbered = live.clone();
        if self.takes(&UNREAD_ORIGINS) {
            let marked = ["RegularFile", "Directory"];
            numbered.retain(|_, entry| {
                let kind = entry.facts.get("type").map(String::as_str);
                kind.is_some_and(|kind| marked.contains(&kind))
            });
        }
        self.note("mounted again", kept.inconstancy(&[&numbered, again]));
    }

    /// All names of a lower file that was written show what was written, and are counted.
    fn keeps_links(&mut self, what: &str, view: &View) {
        if !self.takes(&KEPT_LINKS) || subject() == Subject::Kernel {
            return;
        }
        let names = ["hard1", "hard2", "dir/hard4"].map(|name| view.get(Path::new(name)));
        let fine = names.iter().all(|entry| {
            entry.is_some_and(|entry| {
                let fact = |name: &str| entry.facts.get(name).cloned().unwrap_or_default();
                let size = "three\nappended\n".len().to_string();
                fact("nlink") == "3"
                    && fact("size") == size
                    && entry.linked == Some("dir/hard4".into())
            })
        });
        self.note(
            what,
            (!fine).then(|| format!("kept hard links: {{{names:?}}}")),
        );
    }

    /// Both see the same layers; `want` is Linux's view.
    fn same_layers(&mut self, what: &str, want: &View, got: &View, promise: &Promise<'_>) {
        let (want, got) = (&self.comparable(want), &self.comparable(got));
        let same_numbers = !self.takes(&ONE_DEVICE) && !self.takes(&UNREAD_ORIGINS);
        self.note(what, view::difference(want, got, Rigour::SameLayers));
        self.note(what, promise.ino_difference(want, got, same_numbers));
        // Linux's own directories on several file systems have numbers that change.
        if subject() != Subject::Kernel {
            self.note(what, d_ino_difference(got));
        }
    }

    /// Two uppers that the same was done to; `want` is what Linux alone has.
    fn own_layers(&mut self, what: &str, want: &View, got: &View, promise: &Promise<'_>) {
        let (want, got) = (&self.comparable(want), &self.comparable(got));
        self.note(what, view::difference(want, got, Rigour::OwnLayers));
        self.note(what, promise.ino_difference(want, got, false));
    }

    fn we_write(&mut self, oracle: &[Turn]) -> Checked {
        let layers = self.layers("ours");
        let lowers = &oracle[0].before;
        let promise = Promise::moved(vec![lowers, &oracle[0].after, &oracle[1].before], lowers);
        let kept = Promise::still(vec![&oracle[0].after, &oracle[1].before]);
        let ours = self.turn(&subject(), &layers, Some(0))?;
        self.same_layers("lowers", &oracle[0].before, &ours.before, &promise);
        self.note(
            "first part",
            script::difference(&oracle[0].errors, &ours.errors),
        );
        self.own_layers(
            "after the first part",
            &oracle[0].after,
            &ours.after,
            &promise,
        );
        self.note(
            "first part",
            promise.inconstancy(&[&ours.before, &ours.after]),
        );
        let kernels = self.turn(&Subject::Kernel, &layers, None)?;
        self.own_layers(
            "Linux reads ours",
            &oracle[1].before,
            &kernels.after,
            &promise,
        );
        let again = self.turn(&subject(), &layers, None)?;
        self.same_layers("we read ours", &kernels.after, &again.after, &kept);
        self.mounted_again(&ours.after, &again.after, &kept);
        self.keeps_links("after the first part", &ours.after);
        self.keeps_links("mounted again", &again.after);
        self.root_ino(
            &[&oracle[0].before, &oracle[1].before],
            &kernels.after,
            &[&ours.after, &again.after],
        );
        Ok(())
    }

    /// Linux writes, we go on, Linux goes on, both read.
    fn in_turns(&mut self, oracle: &[Turn]) -> Checked {
        let layers = self.layers("turns");
        let views = |at: usize| {
            let Turn { before, after, .. } = &oracle[at];
            Promise::moved(
                vec![before, after, &oracle[at + 1].before],
                &oracle[0].before,
            )
        };
        let kept = |at: usize| Promise::still(vec![&oracle[at].after, &oracle[at + 1].before]);
        let first = self.turn(&Subject::Kernel, &layers, Some(0))?;
        self.own_layers("Linux twice", &oracle[0].after, &first.after, &views(0));
        let ours = self.turn(&subject(), &layers, Some(1))?;
        self.own_layers(
            "we read Linux's",
            &oracle[1].before,
            &ours.before,
            &views(0),
        );
        if !self.takes(&ONE_DEVICE) {
            let (theirs, read) = (self.comparable(&first.after), self.comparable(&ours.before));
            self.note("we read Linux's", kept(0).inconstancy(&[&theirs, &read]));
        }
        self.note(
            "second part",
            script::difference(&oracle[1].errors, &ours.errors),
        );
        self.own_layers(
            "after the second part",
            &oracle[1].after,
            &ours.after,
            &views(1),
        );
        self.note(
            "second part",
            views(1).inconstancy(&[&ours.before, &ours.after]),
        );
        let third = self.turn(&Subject::Kernel, &layers, Some(2))?;
        self.same_layers("Linux reads both's", &third.before, &ours.after, &kept(1));
        self.note(
            "third part",
            script::difference(&oracle[2].errors, &third.errors),
        );
        self.own_layers(
            "after the third part",
            &oracle[2].after,
            &third.after,
            &views(2),
        );
        let kernels = self.turn(&Subject::Kernel, &layers, None)?;
        let last = self.turn(&subject(), &layers, None)?;
        self.same_layers("both read", &kernels.after, &last.after, &kept(2));
        Ok(())
    }

    /// Linux shows the root with the inode number of the upper's.
    fn root_ino(&mut self, oracle: &[&View], kernels: &View, ours: &[&View]) {
        let root = Path::new(".");
        if self.cell.place == Place::Same && is_constant(oracle, root) {
            let same = ours.iter().all(|view| is_constant(&[kernels, view], root));
            self.note(
                "the root",
                (!same).then(|| "another ino than Linux shows".to_owned()),
            );
        }
    }
}
