//! Round trips: the operations of the matrix, in turns.

use std::path::Path;

use crate::cell::Namespace;
use crate::known::differences;
use crate::lowers::build;
use crate::namespace::{answer, given, run_part};
use crate::programs::Version;
use crate::script::{PARTS, play};
use crate::support::{Layers, Scratch, Subject, require_root};
use crate::view::{View, view};

/// rovl keeps to what fuse-overlayfs knows: no redirects, no index.
const OPTIONS: [&str; 2] = ["redirect_dir=off", "index=off"];

fn options(who: &Subject) -> &'static [&'static str] {
    if *who == Subject::Rovl { &OPTIONS } else { &[] }
}

/// Steps that fuse-overlayfs does not survive.
struct Deadly {
    why: &'static str,
    version: Version,
    steps: &'static [&'static str],
}

const DEADLY: &[Deadly] = &[
    Deadly {
        why: "it opens a fifo of its layers like a file, and waits for ever for somebody to write",
        version: Version::One,
        steps: &["chown fifo", "mkfifo"],
    },
    Deadly {
        why: "a time before 1970 ends its threads",
        version: Version::Two,
        steps: &["utimens meta3", "utimens symlong", "utimens dir/sub/deep"],
    },
];

impl Deadly {
    fn is(&self, version: Version, step: &str) -> bool {
        let is = self.version == version && self.steps.contains(&step);
        if is {
            println!("left out: {step}: {}", self.why);
        }
        is
    }
}

/// Mounts, runs a part of the script, unmounts; the view of a fresh mount after that.
fn turn(who: &Subject, version: Version, layers: &Layers, part: usize) -> View {
    let mounted = who.mount(layers, options(who));
    let steps: Vec<_> = PARTS[part]
        .iter()
        .filter(|(name, _)| !DEADLY.iter().any(|deadly| deadly.is(version, name)))
        .copied()
        .collect();
    play(&steps, mounted.root());
    mounted.unmount();
    look(who, layers)
}

fn look(who: &Subject, layers: &Layers) -> View {
    let mounted = who.mount(layers, options(who));
    let seen = view(mounted.root());
    mounted.unmount();
    seen
}

/// The parts of the script in turns, `peer` or rovl first; what differs after each.
fn trip(base: &Path, version: Version, namespace: Namespace, peer_first: bool) -> Vec<String> {
    let peer = Subject::FuseOverlayfs(peer_program(version));
    let lowers = build(base, &base.join("unused"), namespace);
    for special in ["sp", "mc"] {
        std::fs::remove_dir_all(lowers.same[0].join(special)).unwrap();
    }
    if version == Version::One {
        std::fs::remove_file(lowers.same[2].join("fifo")).unwrap();
    }
    let mut layers = Layers::new(&base.join("trip"), 0);
    layers.lowers = lowers.same;
    let mut failures = Vec::new();
    for part in 0..PARTS.len() {
        let peers_turn = (part % 2 == 0) == peer_first;
        let (theirs, ours) = if peers_turn {
            (
                turn(&peer, version, &layers, part),
                look(&Subject::Rovl, &layers),
            )
        } else {
            let ours = turn(&Subject::Rovl, version, &layers, part);
            (look(&peer, &layers), ours)
        };
        assert!(
            theirs.len() > 40,
            "the views are almost empty: {}",
            theirs.len()
        );
        let who = if peers_turn { "fuse-overlayfs" } else { "rovl" };
        let found = differences(&theirs, &ours);
        failures.extend(
            found
                .into_iter()
                .map(|line| format!("part {part}, by {who}: {line}")),
        );
    }
    failures
}

fn peer_program(version: Version) -> std::path::PathBuf {
    // A namespace has a copy of its own.
    given("PEER_PROGRAM").map_or_else(|| version.program(), |dir| dir.join("fuse-overlayfs"))
}

fn both_ways(base: &Path, version: Version, namespace: Namespace) -> Vec<String> {
    [true, false]
        .into_iter()
        .flat_map(|peer_first| {
            let base = base.join(if peer_first { "peer" } else { "rovl" });
            std::fs::create_dir(&base).unwrap();
            trip(&base, version, namespace, peer_first)
        })
        .collect()
}

fn assert_none(failures: &[String]) {
    assert!(
        failures.is_empty(),
        "{} differences:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn as_root(version: Version) {
    require_root();
    let scratch = Scratch::new();
    assert_none(&both_ways(scratch.path(), version, Namespace::Initial));
}

fn in_a_user_namespace(version: Version) {
    require_root();
    let (base, programs) = (Scratch::new(), Scratch::new());
    std::fs::copy(version.program(), programs.join("fuse-overlayfs")).unwrap();
    let part = match version {
        Version::One => "trips::part_with_1",
        Version::Two => "trips::part_with_2",
    };
    let given = [
        ("PEER_BASE", base.path()),
        ("PEER_PROGRAM", programs.path()),
    ];
    assert_none(&run_part(part, &given));
}

fn part(version: Version) {
    if let Some(base) = given("PEER_BASE") {
        answer(&both_ways(&base, version, Namespace::User));
    }
}

#[test]
#[ignore = "a part of the tests in a user namespace, which start it"]
fn part_with_1() {
    part(Version::One);
}

#[test]
#[ignore = "a part of the tests in a user namespace, which start it"]
fn part_with_2() {
    part(Version::Two);
}

#[test]
fn with_1_as_root() {
    as_root(Version::One);
}

#[test]
fn with_2_as_root() {
    as_root(Version::Two);
}

#[test]
fn with_1_in_a_user_namespace() {
    in_a_user_namespace(Version::One);
}

#[test]
fn with_2_in_a_user_namespace() {
    in_a_user_namespace(Version::Two);
}
