//! Rounds: each work on each target in turn, the order rotating; then all of it again.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cli::{Args, is_chosen};
use crate::data::{Scale, Set, Store, Volume};
use crate::exec::{self, Deadline};
use crate::model::{Cell, Family, Report, Row, Sample, TargetInfo};
use crate::render::number;
use crate::targets::{Mount, Target};
use crate::work::{Session, Work};

/// How a run goes about it.
pub struct Plan {
    /// How much of everything.
    pub scale: Scale,
    /// Rounds at most.
    pub rounds: usize,
    /// No further round, nor work of it, begins after this time.
    pub budget: Option<Duration>,
    /// No work at all begins after this time: it has failed then.
    pub end: Option<Duration>,
    /// How long repeatable work is repeated.
    pub least: Duration,
    /// How long one work may take on one target.
    pub limit: Duration,
    /// How long churn goes on.
    pub churn: Duration,
}

impl Plan {
    /// As the command line says.
    pub fn new(args: &Args) -> Plan {
        let pick = |quick, full| if args.quick { quick } else { full };
        Plan {
            scale: if args.quick {
                Scale::QUICK
            } else {
                Scale::FULL
            },
            rounds: args.repeat.map_or(pick(3, 5), usize::from),
            budget: args
                .budget
                .or(args.quick.then_some(240))
                .map(Duration::from_secs),
            end: (args.quick && args.budget.is_none()).then_some(Duration::from_secs(280)),
            least: Duration::from_millis(pick(60, 500) as u64),
            limit: Duration::from_secs(pick(60, 1200) as u64),
            churn: Duration::from_secs(args.churn.unwrap_or(pick(1, 60) as u64)),
        }
    }
}

/// The work that the command line asks for.
pub fn chosen(args: &Args, plan: &Plan) -> Vec<Work> {
    let all = crate::works::all(&plan.scale).into_iter();
    all.filter(|work| is_chosen(&args.only, &work.id, &work.title))
        .collect()
}

/// A run under way.
pub struct Run<'a> {
    plan: &'a Plan,
    works: &'a [Work],
    targets: &'a [Target],
    store: Store,
    begin: Instant,
}

impl<'a> Run<'a> {
    /// Nothing is made or mounted yet.
    pub fn new(plan: &'a Plan, works: &'a [Work], targets: &'a [Target], store: Store) -> Run<'a> {
        Run {
            plan,
            works,
            targets,
            store,
            begin: Instant::now(),
        }
    }

    /// What file system is measured.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn file_system(&self) -> Result<String> {
        self.store.base_type()
    }

    /// Mounts each target once, to see who can.
    ///
    /// # Errors
    /// When the layers for that can't be made.
    pub fn probe(&mut self) -> Result<Vec<TargetInfo>> {
        let layers = self.store.layers(Set::Empty, Volume::Base)?;
        let mut infos = Vec::new();
        for target in self.targets {
            exec::check()?;
            let _deadline = Deadline::after(self.plan.limit);
            let refused = Mount::new(target, layers, &layers.scratch).err();
            infos.push(target.info(refused.map(|e| format!("{e:#}"))));
        }
        Ok(infos)
    }

    /// Runs everything and adds it to the report; when it is interrupted, what was measured until then.
    ///
    /// # Errors
    /// When data can't be made, or when the bench is to end.
    pub fn measure(&mut self, report: &mut Report) -> Result<()> {
        report.rows = self
            .works
            .iter()
            .map(|work| self.row(work, report))
            .collect();
        let most = self.works.iter().map(|w| w.max_rounds).max().unwrap_or(0);
        for round in 0..self.plan.rounds.min(most) {
            for (at, work) in self.works.iter().enumerate() {
                let over = self
                    .plan
                    .budget
                    .is_some_and(|budget| self.begin.elapsed() > budget);
                if round >= work.max_rounds || (round > 0 && over) {
                    continue;
                }
                let row = report.rows.get_mut(at).context("no such row")?;
                self.one_row(round, at, work, row)?;
                self.progress(round, row);
            }
        }
        report.seconds = self.begin.elapsed().as_secs_f64();
        Ok(())
    }

    fn row(&self, work: &Work, report: &Report) -> Row {
        let takes_part = |target: &&TargetInfo| match target.family {
            Family::Bare => work.on_bare,
            Family::Kernel => !work.daemons_only,
            _ => true,
        };
        let cell = |target: &TargetInfo| Cell {
            target: target.name.clone(),
            ..Cell::default()
        };
        Row {
            id: work.id.clone(),
            title: work.title.clone(),
            group: work.group.to_owned(),
            unit: work.unit,
            operation: work.operation.to_owned(),
            file_system: match work.volume {
                Volume::Base => None,
                Volume::Ext4 => Some("ext4".to_owned()),
                Volume::Xfs => Some("xfs".to_owned()),
            },
            goals: work.goals.clone(),
            cells: report.measured().filter(takes_part).map(cell).collect(),
            verdicts: Vec::new(),
        }
    }

    /// One sample of each target that has not failed at this work.
    fn one_row(&mut self, round: usize, at: usize, work: &Work, row: &mut Row) -> Result<()> {
        let (scale, plan) = (&self.plan.scale, self.plan);
        let layers = self.store.layers(work.set, work.volume)?;
        let count = row.cells.len();
        for i in 0..count {
            let turn = (i + round + at) % count;
            let cell = row.cells.get_mut(turn).context("no such cell")?;
            let target = self
                .targets
                .iter()
                .find(|t| t.name == cell.target)
                .context("no such target")?;
            if cell.error.is_some() {
                continue;
            }
            let left = plan.end.map(|end| end.saturating_sub(self.begin.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                // What has samples from earlier rounds is good as it is.
                if cell.samples.is_empty() {
                    cell.error = Some("not measured: the time of --quick was over".to_owned());
                }
                continue;
            }
            let limit = plan.limit + plan.churn;
            let deadline = Deadline::after(left.map_or(limit, |left| left.min(limit)));
            let sample = || -> Result<Sample> {
                let mount = Mount::new(target, layers, &layers.scratch)?;
                deadline.serves(mount.daemon);
                let session = Session {
                    mount: &mount,
                    scale,
                    least: plan.least,
                    churn: plan.churn,
                };
                Ok((work.run)(&session)?.sample(work.unit))
            };
            match sample() {
                Ok(sample) => cell.samples.push(sample),
                Err(e) if exec::interrupted() => return Err(e),
                Err(e) => cell.error = Some(format!("{e:#}")),
            }
        }
        Ok(())
    }

    /// One line on stderr for each row.
    fn progress(&self, round: usize, row: &Row) {
        let shown = |cell: &Cell| match (&cell.error, cell.samples.last()) {
            (Some(_), _) => format!("{} failed", cell.target),
            (None, Some(sample)) => format!("{} {}", cell.target, number(sample.value)),
            (None, None) => format!("{} –", cell.target),
        };
        let values: Vec<String> = row.cells.iter().map(shown).collect();
        let mut stderr = std::io::stderr().lock();
        let line = writeln!(
            stderr,
            "[{}, {:.0} s] {}: {} {}",
            round + 1,
            self.begin.elapsed().as_secs_f64(),
            row.id,
            values.join(", "),
            row.unit.symbol()
        );
        // Nobody reads it then.
        line.ok();
    }
}

/// Names of what has to be installed for this run, one a line: `package NAME`, `peer-2`, `root`.
pub fn needs(args: &Args, works: &[Work], targets: &[Target]) -> Vec<String> {
    let mut needs = Vec::new();
    let package = |needs: &mut Vec<String>, name: &str| needs.push(format!("package {name}"));
    for target in targets {
        match target.family {
            Family::FuseOverlayfs2 if !args.peer_2().exists() => needs.push("peer-2".to_owned()),
            Family::FuseOverlayfs1
                if args.fuse_overlayfs_1 == Path::new("/usr/bin/fuse-overlayfs") =>
            {
                package(&mut needs, "fuse-overlayfs");
            }
            _ => {}
        }
    }
    let fs = args.file_system().unwrap_or_default();
    let uses = |volume| works.iter().any(|work| work.volume == volume);
    let tools = [
        (fs == "xfs" || uses(Volume::Xfs), "xfsprogs"),
        (fs == "ext4" || uses(Volume::Ext4), "e2fsprogs"),
        (fs == "btrfs", "btrfs-progs"),
        (works.iter().any(|work| work.set == Set::Tree), "git"),
        (works.iter().any(|work| work.id == "sqlite"), "python3"),
    ];
    for (_, name) in tools.iter().filter(|(needed, _)| *needed) {
        package(&mut needs, name);
    }
    if works.iter().any(|work| work.set == Set::Root) && !args.root_archive().exists() {
        package(&mut needs, "mmdebstrap");
        needs.push("root".to_owned());
    }
    needs
}
