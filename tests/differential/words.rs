//! The names, times and modes that random layers and random operations share.

use super::model::{B, T};
use super::rng::Rng;

/// Names for everything; few, so that layers and operations meet.
pub const NAMES: &[&[u8]] = &[
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"f",
    b"g",
    b"h",
    b"-rf",
    b".hid",
    b" sp ace ",
    b"new\nline",
    b"\xff\xfe\x80",
    "\u{fc}\u{4e2d}".as_bytes(),
    b"...",
    b"*?[",
    b"wh.x",
    b"#1f",
];

/// Moments to set: before 1970, after 2038, with and without nanoseconds.
pub const TIMES: &[T] = &[
    T(0, 0),
    T(-1, 999_999_999),
    T(-86_400, 1),
    T(-1_234_567_890, 123_456_789),
    T(1, 500_000_000),
    T(1_000_000_000, 0),
    T(1_234_567_890, 987_654_321),
    T(2_147_483_647, 999_999_999),
    T(2_147_483_748, 42),
    T(4_102_444_800, 7),
    T(9_000_000_000, 1_000),
];

pub const FILE_MODES: &[u32] = &[
    0o644, 0o644, 0o600, 0o755, 0o444, 0o666, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0, 0o2644,
];

pub const DIR_MODES: &[u32] = &[
    0o755, 0o755, 0o777, 0o777, 0o1777, 0o2775, 0o2777, 0o700, 0o750, 0o555, 0o711, 0o3777,
];

pub const MASKS: &[u32] = &[0o022, 0o022, 0, 0o077, 0o027, 0o777];

/// A moment of [`TIMES`]; with `ROVL_DIFF_MILD` none before 1970, so that a subject that dies of
/// those shows what else it does.
pub fn moment(rng: &mut Rng) -> T {
    let time = *rng.pick(TIMES);
    if time.0 < 0 && std::env::var_os("ROVL_DIFF_MILD").is_some() {
        T(77, 77)
    } else {
        time
    }
}

pub fn owner(rng: &mut Rng) -> (u32, u32) {
    (
        *rng.pick(&[0, 0, 0, 1000, 1000, 1001, 70_000]),
        *rng.pick(&[0, 0, 1000, 1000, 1001, 2000, 65_534]),
    )
}

pub fn parent(path: &[u8]) -> &[u8] {
    path.iter()
        .rposition(|c| *c == b'/')
        .map_or(b"", |slash| &path[..slash])
}

pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() || dir == b"." {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

pub fn symlink_target(rng: &mut Rng, known: &[B]) -> B {
    match rng.below(6) {
        0 => B(b"nowhere/at/all".to_vec()),
        1 => B([b"/", &rng.pick(NAMES)[..]].concat()),
        2 if !known.is_empty() => B([b"/", &rng.pick(known)[..]].concat()),
        3 => B([b"../", &rng.pick(NAMES)[..]].concat()),
        4 => B(b".".to_vec()),
        _ => B(rng.pick(NAMES).to_vec()),
    }
}
