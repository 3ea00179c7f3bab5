//! Fuzzing of what reads foreign bytes, without a nightly compiler: inputs grow from seeds by mutation, those
//! that make a parser say something new are kept. `ROVL_FUZZ_SECONDS` is the time of each target (2 without
//! it); `ROVL_FUZZ_SEED` the random seed, which is printed; an input that fails is printed in hexadecimal.
//! `fuzz/` has the same targets for cargo-fuzz.

// The helpers of a test are not seen as tests by clippy.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/seeds.rs"]
mod seeds;
#[path = "fuzz/targets.rs"]
mod targets;

use mutate::fuzz;

#[test]
fn tar() {
    fuzz("tar", seeds::archives(), targets::tar);
}

#[test]
fn pax() {
    fuzz("pax", seeds::pax(), targets::pax);
}

#[test]
fn tar_split() {
    fuzz("tar_split", seeds::records(), targets::tar_split);
}

#[test]
fn compressed() {
    fuzz("compressed", seeds::compressed(), targets::compressed);
}

#[test]
fn xattrs() {
    fuzz("xattrs", seeds::xattrs(), targets::xattrs);
}

#[test]
fn unpack() {
    fuzz("unpack", seeds::archives(), targets::unpack);
}

#[test]
fn manifest() {
    fuzz("manifest", seeds::manifests(), targets::manifest);
}

#[test]
fn index() {
    fuzz("index", seeds::indexes(), targets::index);
}

#[test]
fn config() {
    fuzz("config", seeds::configs(), targets::config);
}

/// Writes the seeds of each target to `DIR/TARGET/N`, for libFuzzer, where `ROVL_FUZZ_SEEDS` is `DIR`.
#[test]
fn seeds_are_there_for_every_target() {
    let all = [
        ("tar", seeds::archives()),
        ("pax", seeds::pax()),
        ("tar_split", seeds::records()),
        ("compressed", seeds::compressed()),
        ("xattrs", seeds::xattrs()),
        ("unpack", seeds::archives()),
        ("manifest", seeds::manifests()),
        ("index", seeds::indexes()),
        ("config", seeds::configs()),
    ];
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/fuzz_targets");
    let mut targets: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    targets.sort();
    let mut named: Vec<String> = all.iter().map(|(name, _)| format!("{name}.rs")).collect();
    named.sort();
    assert_eq!(targets, named);
    let Some(to) = std::env::var_os("ROVL_FUZZ_SEEDS") else {
        return;
    };
    for (name, seeds) in all {
        let to = std::path::Path::new(&to).join(name);
        std::fs::create_dir_all(&to).unwrap();
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(to.join(format!("seed-{number}")), seed).unwrap();
        }
    }
}
