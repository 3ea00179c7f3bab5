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
