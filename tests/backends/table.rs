//! The scenarios of one engine under the three drivers, side by side.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

use crate::machine::{self, Driver, Engine, Outcome, Privilege};
use crate::support::{require_program, require_root};

/// What the kernel's overlayfs itself does not do, so that it can't be the measure there: the scenario's own
/// checks are.
const KERNEL_FAILS: &[(Privilege, &str, &str)] = &[(
    Privilege::Rootless,
    "git",
    "a hard link to a file of a lower is another inode: git clone refuses it",
)];

/// How a scenario went on one driver, against what it prints on the kernel's overlayfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Differs,
    Failed(i32),
    TooLong,
}

impl Verdict {
    fn of(outcome: &Outcome, wanted: Option<&Outcome>) -> Verdict {
        match (outcome.code, wanted) {
            _ if outcome.timed_out() => Verdict::TooLong,
            (0, Some(wanted)) if wanted.stdout != outcome.stdout => Verdict::Differs,
            (0, _) => Verdict::Ok,
            (code, _) => Verdict::Failed(code),
        }
    }

    fn text(self) -> String {
        match self {
            Verdict::Ok => "ok".to_owned(),
            Verdict::Differs => "differs".to_owned(),
            Verdict::Failed(code) => format!("exit {code}"),
            Verdict::TooLong => "too long".to_owned(),
        }
    }
}

/// Runs everything, prints the table, and fails where rovl fails and another does not.
pub fn check(engine: Engine, privilege: Privilege) {
    require_root();
    for program in ["unshare", "setpriv", "nsenter", "mmdebstrap", "busybox"]
        .iter()
        .chain(engine.programs())
    {
        require_program(program);
    }
    let results = Driver::ALL.map(|driver| {
        let mut scenarios = engine.scenarios().to_vec();
        if driver == Driver::Rovl {
            // The commands of README's pages.
            scenarios.insert(scenarios.len() - 1, "readme");
        }
        machine::run(engine, privilege, driver, &scenarios)
    });
    let mut table = String::new();
    let mut problems = String::new();
    for name in engine.scenarios().iter().chain(&["readme"]) {
        row(engine, privilege, name, &results, &mut table, &mut problems);
    }
    // Past the test harness, which keeps what passing tests print to itself.
    std::io::stderr().write_all(table.as_bytes()).unwrap();
    assert!(problems.is_empty(), "{problems}");
}

type Results = [BTreeMap<&'static str, Outcome>; 3];

/// Adds a line to the table, and to the problems what is wrong in it.
fn row(
    engine: Engine,
    privilege: Privilege,
    name: &str,
    results: &Results,
    table: &mut String,
    problems: &mut String,
) {
    let [kernel, peer, rovl] = results;
    let known = KERNEL_FAILS
        .iter()
        .find(|(whose, scenario, _)| *whose == privilege && *scenario == name);
    let wanted = kernel.get(name).filter(|outcome| outcome.code == 0);
    let verdict = |outcomes: &BTreeMap<&str, Outcome>| {
        outcomes
            .get(name)
            .map(|outcome| Verdict::of(outcome, wanted))
    };
    let verdicts = [kernel, peer, rovl].map(verdict);
    let cells: Vec<String> = [kernel, peer, rovl]
        .into_iter()
        .zip(verdicts)
        .map(|(outcomes, verdict)| {
            verdict.map_or_else(
                || "-".to_owned(),
                |verdict| {
                    let seconds = outcomes[name].millis as f64 / 1000.0;
                    format!("{} {seconds:.1} s", verdict.text())
                },
            )
        })
        .collect();
    writeln!(
        table,
        "{:8} {:9} {name:13} kernel {:16} fuse-overlayfs 2.0.0 {:16} rovl {}",
        engine.name(),
        privilege.name(),
        cells[0],
        cells[1],
        cells[2]
    )
    .unwrap();
    let kernel_fails = verdicts[0].is_some_and(|verdict| verdict != Verdict::Ok);
    if kernel_fails && known.is_none() {
        let stderr = tail(&kernel[name].stderr);
        writeln!(
            problems,
            "{name}: fails on the kernel's overlayfs, so that it measures nothing: {stderr}"
        )
        .unwrap();
    }
    if verdicts[2] != Some(Verdict::Ok) {
        let outcome = &rovl[name];
        let stderr = tail(&outcome.stderr);
        let difference = wanted.map_or_else(String::new, |wanted| {
            difference(&wanted.stdout, &outcome.stdout)
        });
        writeln!(problems, "{name}: rovl: {}\n{difference}{stderr}", cells[2]).unwrap();
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// The first lines that only one of them has.
fn difference(wanted: &str, got: &str) -> String {
    let lines = |text: &str| -> std::collections::BTreeSet<String> {
        text.lines().map(str::to_owned).collect()
    };
    let (wanted, got) = (lines(wanted), lines(got));
    let missing = wanted.difference(&got).map(|line| format!("- {line}\n"));
    let added = got.difference(&wanted).map(|line| format!("+ {line}\n"));
    missing.take(15).chain(added.take(15)).collect()
}
