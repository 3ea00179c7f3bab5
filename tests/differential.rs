//! The differential property test: random layers and random operations on rovl, on the kernel's
//! overlayfs with the same layers, and on a plain copy of the merged tree; all must agree.
//!
//! Needs root, `/dev/fuse`, the kernel's overlayfs, loop devices, `mkfs.ext4` and `mkfs.xfs`.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `ROVL_DIFF_SEQUENCES` | how many sequences | 200 |
//! | `ROVL_DIFF_OPS` | operations in each | 500 |
//! | `ROVL_DIFF_SEED` | seed of the first; the next has one more | 1 |
//! | `ROVL_DIFF_JOBS` | sequences at a time | 2 |
//! | `ROVL_DIFF_SUBJECT` | `kernel`, or a program with fuse-overlayfs's command line | rovl |
//! | `ROVL_DIFF_KEEP_GOING` | go on after a failure, up to so many | 1 |
//! | `ROVL_DIFF_SHRINK` | seconds to spend on making a failure smaller | 90 |
//! | `ROVL_DIFF_MILD` | no times before 1970, for subjects that die of them | not set |
//!
//! A failure is shrunk and printed as the source of a case for `differential/regressions.rs`.

#[cfg(test)]
mod differential {
    mod calls;
    mod deviations;
    mod driver;
    mod judge;
    mod layers;
    mod model;
    mod mounts;
    mod outcome;
    mod parity;
    mod place;
    mod property;
    mod random_layers;
    mod random_ops;
    mod random_paths;
    mod random_scenes;
    mod regressions;
    mod regressions_links;
    mod rng;
    mod run;
    mod shrink;
    mod stats;
    mod sys;
    mod tree;
    mod upper;
    mod words;
}
