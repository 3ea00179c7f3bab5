//! `chown -R` of a large lower tree with `metacopy=on`: attributes are copied, data is not.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Layers, Scratch, Subject, UpperCheck, require_root, rovl_bin, sh};

const DIRS: usize = 100;
const FILES_IN_EACH: usize = 1000;
/// How much longer than Linux it may take.
const FACTOR: u32 = 3;
/// How often both are measured at most, in turns.
const ROUNDS: u32 = 6;

const OPTIONS: [&str; 3] = ["metacopy=on", "redirect_dir=on", "index=on"];

fn build(lower: &Path) {
    for dir in 0..DIRS {
        let dir = lower.join(format!("d{dir:02}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..FILES_IN_EACH {
            fs::write(dir.join(format!("file{file}")), "content of some length\n").unwrap();
        }
    }
}

/// Bytes on disk of all files (not directories) below, and how many there are with this owner.
fn files(dir: &Path, uid: u32) -> (u64, usize) {
    let (mut bytes, mut count) = (0, 0);
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        if meta.is_dir() {
            let below = files(&entry.path(), uid);
            bytes += below.0;
            count += below.1;
        } else {
            bytes += meta.blocks() * 512;
            count += usize::from(meta.uid() == uid);
        }
    }
    (bytes, count)
}

/// Mounts, changes all owners, unmounts; how long the change took, and the bytes copied if the subject tells.
fn chown_all(who: &Subject, layers: &Layers) -> (Duration, Option<u64>) {
    let mounted = who.mount(layers, &OPTIONS);
    let start = Instant::now();
    sh(mounted.root(), "chown -R 1234:1234 .");
    let took = start.elapsed();
    let copied = (*who == Subject::Rovl).then(|| {
        let output = Command::new(rovl_bin())
            .args(["stat", "--json"])
            .arg(mounted.root())
            .output()
            .unwrap();
        let stat: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let ups = stat["copy_ups"].as_u64().expect("copy_ups");
        assert!(ups >= (DIRS * FILES_IN_EACH) as u64, "{ups} copy-ups");
        stat["copy_up_bytes"].as_u64().expect("copy_up_bytes")
    });
    let sample = mounted.path("d07/file77");
    assert_eq!(
        fs::read_to_string(sample).unwrap(),
        "content of some length\n"
    );
    mounted.unmount();
    (took, copied)
}

#[test]
fn owners_of_a_hundred_thousand_files_change_without_their_data() {
    require_root();
    let _alone = super::alone();
    let scratch = Scratch::new();
    let lower = scratch.join("tree");
    fs::create_dir(&lower).unwrap();
    build(&lower);
    let layers = |name: &str| {
        let mut layers = Layers::new(&scratch.join(name), 0);
        layers.lowers = vec![lower.clone()];
        layers
    };
    // The lower's inodes are in memory for both.
    files(&lower, 0);
    // Others may keep the machine busy: the least of up to ROUNDS rounds counts.
    let (mut kernel_took, mut took) = (Duration::MAX, Duration::MAX);
    let mut round = 0;
    let (kernels, ours, copied) = loop {
        let (kernels, ours) = (
            layers(&format!("kernel{round}")),
            layers(&format!("rovl{round}")),
        );
        let (kernel_now, _) = chown_all(&Subject::Kernel, &kernels);
        let (now, copied) = chown_all(&Subject::Rovl, &ours);
        (kernel_took, took) = (kernel_took.min(kernel_now), took.min(now));
        round += 1;
        if round == ROUNDS || took <= kernel_took * FACTOR {
            break (kernels, ours, copied);
        }
    };
    println!(
        "chown -R of {} files: Linux {kernel_took:?}, rovl {took:?}",
        DIRS * FILES_IN_EACH
    );
    assert_eq!(copied, Some(0), "data was copied up");
    let (kernel_bytes, kernel_count) = files(&kernels.upper, 1234);
    let (bytes, count) = files(&ours.upper, 1234);
    assert_eq!(
        (count, kernel_count),
        (DIRS * FILES_IN_EACH, DIRS * FILES_IN_EACH)
    );
    assert!(
        bytes <= kernel_bytes,
        "{bytes} bytes of files in upper, Linux has {kernel_bytes}"
    );
    let check = UpperCheck {
        metacopy: true,
        ..UpperCheck::new(&ours.lowers, &ours.upper, &ours.work)
    };
    assert_eq!(check.faults().unwrap(), Vec::<String>::new());
    assert!(
        took <= kernel_took * FACTOR,
        "{took:?}, Linux took {kernel_took:?}"
    );
}
