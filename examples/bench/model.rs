//! What a run found, as plain data: what the JSON file holds, and what is rendered. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::{self, Summary};

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// When it began, UTC, as RFC 3339 has it.
    pub date: String,
    /// Where it ran.
    pub machine: Machine,
    /// Less data, shorter loops.
    pub quick: bool,
    /// How long it took, seconds.
    pub seconds: f64,
    /// What was measured.
    pub targets: Vec<TargetInfo>,
    /// By what work.
    pub rows: Vec<Row>,
}

/// The machine of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Its model, as /proc/cpuinfo tells it.
    pub cpu: String,
    /// How many of them.
    pub cpus: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// The file system under layers, upper and work.
    pub file_system: String,
}

/// What a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// No overlay at all: a plain directory on the same file system.
    Bare,
    /// The kernel's overlayfs.
    Kernel,
    /// rovl, in one of its modes.
    Rovl,
    /// fuse-overlayfs 2.0.0.
    FuseOverlayfs2,
    /// fuse-overlayfs 1.x.
    FuseOverlayfs1,
    /// Given by `--target`.
    Other,
}

/// One of the implementations that were compared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TargetInfo {
    /// Its name, which cells refer to.
    pub name: String,
    /// What it is.
    pub family: Family,
    /// How it is mounted; empty where no command is run.
    pub command: String,
    /// What the program says of its version.
    pub version: String,
    /// Why it would not mount, if so: it was not measured then.
    pub refused: Option<String>,
}

/// What the values of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Time of one operation.
    #[serde(rename = "µs")]
    Micros,
    /// Time of one operation.
    #[serde(rename = "ms")]
    Millis,
    /// Time of the whole work.
    #[serde(rename = "s")]
    Seconds,
    /// Memory.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// Memory for one object.
    #[serde(rename = "B")]
    Bytes,
    /// A quotient.
    #[serde(rename = "×")]
    Times,
}

impl Unit {
    /// As it is written.
    pub fn symbol(self) -> &'static str {
        match self {
            Unit::Micros => "µs",
            Unit::Millis => "ms",
            Unit::Seconds => "s",
            Unit::Mebibytes => "MiB",
            Unit::Bytes => "B",
            Unit::Times => "×",
        }
    }
}

/// What the value of a goal's row is divided by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Against {
    /// The same work on the first target of this family.
    Family(Family),
    /// Another row of the same target, by its id.
    Row(String),
    /// One, in the unit of the row.
    Nothing,
}

/// A limit of rovl's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Goal {
    /// What it is compared with.
    pub against: Against,
    /// What the quotient may be at most.
    pub at_most: f64,
}

impl Goal {
    /// At most this many times what the kernel's overlayfs takes.
    pub fn kernel(at_most: f64) -> Goal {
        let against = Against::Family(Family::Kernel);
        Goal { against, at_most }
    }

    /// At most this many times what fuse-overlayfs 2.0.0 takes.
    pub fn peer(at_most: f64) -> Goal {
        let against = Against::Family(Family::FuseOverlayfs2);
        Goal { against, at_most }
    }

    /// At most this many times what rovl itself takes in another row.
    pub fn row(id: &str, at_most: f64) -> Goal {
        let against = Against::Row(id.to_owned());
        Goal { against, at_most }
    }

    /// At most this much.
    pub fn limit(at_most: f64) -> Goal {
        let against = Against::Nothing;
        Goal { against, at_most }
    }
}

/// Whether a mode of rovl is within a goal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The mode's target.
    pub target: String,
    /// What it was held against.
    pub goal: Goal,
    /// The quotient of the medians; `None` when one of them was not measured.
    pub value: Option<f64>,
    /// `None`: not known, for want of a value.
    pub met: Option<bool>,
}

/// One work on all targets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// A short name, for `--only` and for goals.
    pub id: String,
    /// What was done, with its real sizes.
    pub title: String,
    /// The heading under which it stands.
    pub group: String,
    /// Of all values.
    pub unit: Unit,
    /// What one operation is, for the requests per operation.
    pub operation: String,
    /// The file system, where it is not that of the run.
    pub file_system: Option<String>,
    /// What rovl is held against.
    pub goals: Vec<Goal>,
    /// One for each target that was not refused.
    pub cells: Vec<Cell>,
    /// One for each goal and each mode of rovl.
    pub verdicts: Vec<Verdict>,
}

/// One work on one target.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Cell {
    /// The target's name.
    pub target: String,
    /// One for each round.
    pub samples: Vec<Sample>,
    /// What they come to.
    pub summary: Option<Summary>,
    /// The median divided by that of the target named.
    pub ratios: BTreeMap<String, f64>,
    /// Requests that one operation took, by kind; `None` where they can't be counted.
    pub requests_per_operation: Option<BTreeMap<String, f64>>,
    /// The median of the daemon's memory after the work, MiB.
    pub daemon_rss_mib: Option<f64>,
    /// The median of the daemon's processor time during the work, ms.
    pub daemon_cpu_ms: Option<f64>,
    /// The first failure.
    pub error: Option<String>,
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// In the row's unit.
    pub value: f64,
    /// Operations that were done in the measured time.
    pub operations: u64,
    /// Requests that came to the daemon meanwhile, by kind.
    pub requests: Option<BTreeMap<String, u64>>,
    /// The daemon's resident memory afterwards, KiB.
    pub daemon_rss_kib: Option<u64>,
    /// The daemon's processor time meanwhile, ms.
    pub daemon_cpu_ms: Option<f64>,
}

impl Cell {
    /// Requests of all kinds that one operation took.
    pub fn requests(&self) -> Option<f64> {
        let kinds = self.requests_per_operation.as_ref()?;
        Some(kinds.values().sum())
    }

    fn summarize(&mut self) {
        let pick = |f: &dyn Fn(&Sample) -> Option<f64>| -> Vec<f64> {
            self.samples.iter().filter_map(f).collect()
        };
        self.summary = stats::summarize(&pick(&|s| Some(s.value)));
        self.daemon_rss_mib =
            stats::median(&pick(&|s| s.daemon_rss_kib.map(|kib| kib as f64 / 1024.0)));
        self.daemon_cpu_ms = stats::median(&pick(&|s| s.daemon_cpu_ms));
        let counted: Vec<&Sample> = self
            .samples
            .iter()
            .filter(|s| s.requests.is_some())
            .collect();
        let operations: u64 = counted.iter().map(|s| s.operations).sum();
        if operations > 0 {
            let mut kinds: BTreeMap<String, f64> = BTreeMap::new();
            for (kind, n) in counted.iter().filter_map(|s| s.requests.as_ref()).flatten() {
                *kinds.entry(kind.clone()).or_default() += *n as f64 / operations as f64;
            }
            self.requests_per_operation = Some(kinds);
        }
    }
}

impl Row {
    /// The cell of a target.
    pub fn cell(&self, target: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.target == target)
    }

    /// The median of a target.
    pub fn median(&self, target: &str) -> Option<f64> {
        Some(self.cell(target)?.summary?.median)
    }
}

impl Report {
    /// The name of the first target of this family that mounts.
    pub fn first(&self, family: Family) -> Option<&str> {
        let mut targets = self.targets.iter().filter(|t| t.refused.is_none());
        Some(&targets.find(|t| t.family == family)?.name)
    }

    /// The targets that were measured.
    pub fn measured(&self) -> impl Iterator<Item = &TargetInfo> {
        self.targets.iter().filter(|t| t.refused.is_none())
    }

    /// Works out everything that follows from the samples: summaries, ratios, verdicts.
    pub fn conclude(&mut self) {
        for cell in self.rows.iter_mut().flat_map(|row| &mut row.cells) {
            cell.summarize();
        }
        let families = [Family::Bare, Family::Kernel, Family::FuseOverlayfs2];
        let references: Vec<String> = families
            .into_iter()
            .filter_map(|family| self.first(family).map(str::to_owned))
            .collect();
        for row in &mut self.rows {
            let medians: Vec<(String, f64)> = references
                .iter()
                .filter_map(|name| Some((name.clone(), row.median(name)?)))
                .collect();
            for cell in &mut row.cells {
                let Some(own) = cell.summary.map(|s| s.median) else {
                    continue;
                };
                let ratio = |(name, other): &(String, f64)| (name.clone(), own / other);
                let usable = medians.iter().filter(|(_, other)| *other > 0.0);
                cell.ratios = usable.map(ratio).collect();
            }
        }
        let verdicts: Vec<Vec<Verdict>> = self.rows.iter().map(|r| self.verdicts(r)).collect();
        for (row, verdicts) in self.rows.iter_mut().zip(verdicts) {
            row.verdicts = verdicts;
        }
    }

    fn verdicts(&self, row: &Row) -> Vec<Verdict> {
        let modes = self.measured().filter(|t| t.family == Family::Rovl);
        modes
            .flat_map(|mode| row.goals.iter().map(move |goal| (mode, goal)))
            .map(|(mode, goal)| self.verdict(row, &mode.name, goal))
            .collect()
    }

    fn verdict(&self, row: &Row, target: &str, goal: &Goal) -> Verdict {
        let base = match &goal.against {
            Against::Nothing => Some(1.0),
            Against::Family(family) => self.first(*family).and_then(|name| row.median(name)),
            Against::Row(id) => {
                let other = self.rows.iter().find(|other| other.id == *id);
                other.and_then(|other| other.median(target))
            }
        };
        let own = row.median(target);
        let value = own.zip(base).filter(|(_, base)| *base > 0.0);
        let value = value.map(|(own, base)| own / base);
        Verdict {
            target: target.to_owned(),
            goal: goal.clone(),
            value,
            met: value.map(|value| value <= goal.at_most),
        }
    }
}

#[cfg(test)]
fn example_targets() -> Vec<TargetInfo> {
    let target = |name: &str, family, refused: Option<&str>| TargetInfo {
        name: name.to_owned(),
        family,
        command: format!("{name} <{{lower}}>"),
        version: "1 & 2".to_owned(),
        refused: refused.map(str::to_owned),
    };
    vec![
        target("bare", Family::Bare, None),
        target("kernel", Family::Kernel, None),
        target("rovl", Family::Rovl, None),
        target("rovl:passthrough=on", Family::Rovl, Some("not <yet>")),
        target("fo-2", Family::FuseOverlayfs2, None),
    ]
}

/// A report with every kind of cell, for tests.
#[cfg(test)]
pub fn example() -> Report {
    let sample = |value: f64| Sample {
        value,
        operations: 10,
        requests: None,
        daemon_rss_kib: None,
        daemon_cpu_ms: None,
    };
    let cell = |name: &str, values: &[f64]| Cell {
        target: name.to_owned(),
        samples: values.iter().copied().map(sample).collect(),
        ..Cell::default()
    };
    let mut rovl = cell("rovl", &[3.0, 2.0, 4.0]);
    for sample in &mut rovl.samples {
        sample.requests = Some(BTreeMap::from([
            ("lookup".to_owned(), 20),
            ("read".to_owned(), 5),
        ]));
        sample.daemon_rss_kib = Some(2048);
        sample.daemon_cpu_ms = Some(1.5);
    }
    let row = |id: &str, goals, cells| Row {
        id: id.to_owned(),
        title: format!("{id} <of> \"1,000\" & more"),
        group: "Names & attributes".to_owned(),
        unit: Unit::Micros,
        operation: "file".to_owned(),
        file_system: None,
        goals,
        cells,
        verdicts: Vec::new(),
    };
    let mut broken = cell("kernel", &[]);
    broken.error = Some("mount: <refused> & gone".to_owned());
    let mut report = Report {
        date: "2026-01-02T03:04:05Z".to_owned(),
        machine: Machine {
            kernel: "6.18".to_owned(),
            cpu: "A <CPU>".to_owned(),
            cpus: 2,
            memory_mib: 1024,
            file_system: "ext4".to_owned(),
        },
        quick: true,
        seconds: 12.5,
        targets: example_targets(),
        rows: vec![
            row(
                "stat",
                vec![Goal::kernel(1.1), Goal::peer(0.3)],
                vec![
                    cell("bare", &[1.0]),
                    cell("kernel", &[2.0, 2.0, 2.0]),
                    rovl,
                    cell("fo-2", &[20.0]),
                ],
            ),
            row(
                "second",
                vec![Goal::row("stat", 2.0), Goal::limit(5.0), Goal::kernel(1.0)],
                vec![broken, cell("rovl", &[9.0])],
            ),
        ],
    };
    report.conclude();
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians() {
        let report = example();
        let ratios = &report.rows[0].cell("rovl").unwrap().ratios;
        assert_eq!(ratios["kernel"], 1.5);
        assert_eq!(ratios["bare"], 3.0);
        assert_eq!(ratios["fo-2"], 0.15);
    }

    #[test]
    fn goals_are_met_or_missed_or_unknown() {
        let report = example();
        let met = |row: usize| -> Vec<(Option<f64>, Option<bool>)> {
            let verdicts = &report.rows[row].verdicts;
            verdicts.iter().map(|v| (v.value, v.met)).collect()
        };
        assert_eq!(met(0), [(Some(1.5), Some(false)), (Some(0.15), Some(true))]);
        assert_eq!(
            met(1),
            [
                (Some(3.0), Some(false)),
                (Some(9.0), Some(false)),
                (None, None)
            ]
        );
    }

    #[test]
    fn refused_modes_have_no_verdict() {
        let report = example();
        let refused = "rovl:passthrough=on";
        assert!(
            report
                .rows
                .iter()
                .flat_map(|r| &r.verdicts)
                .all(|v| v.target != refused)
        );
        assert!(report.measured().all(|t| t.name != refused));
    }

    #[test]
    fn requests_are_per_operation_over_all_samples() {
        let report = example();
        let cell = report.rows[0].cell("rovl").unwrap();
        assert_eq!(cell.requests_per_operation.as_ref().unwrap()["lookup"], 2.0);
        assert_eq!(cell.requests(), Some(2.5));
        assert_eq!(cell.daemon_rss_mib, Some(2.0));
        assert_eq!(report.rows[0].cell("kernel").unwrap().requests(), None);
    }

    #[test]
    fn a_report_survives_its_file() {
        let report = example();
        let text = serde_json::to_string(&report).unwrap();
        let back: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
    }
}
