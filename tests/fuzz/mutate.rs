//! Inputs by mutation.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime};

/// How many inputs are kept.
const CORPUS: usize = 2000;
/// Bytes of an input.
const LONGEST: usize = 64 * 1024;

/// xorshift64*: enough for this, and the same everywhere.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

/// Runs `target` on mutated inputs for the time that is given, and prints how it went.
pub fn fuzz(name: &str, seeds: Vec<Vec<u8>>, target: impl Fn(&[u8]) -> String) {
    let time = Duration::from_secs(number("ROVL_FUZZ_SECONDS").unwrap_or(2));
    let clock = || {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_nanos()
    };
    let seed =
        number("ROVL_FUZZ_SEED").unwrap_or_else(|| u64::try_from(clock() & 0xffff_ffff).unwrap());
    println!("{name}: ROVL_FUZZ_SEED={seed}");
    let mut random = Random(seed | 1);
    let mut seen = HashSet::new();
    let mut corpus = Vec::new();
    for seed in seeds {
        seen.insert(run(&target, &seed));
        corpus.push(seed);
    }
    let start = Instant::now();
    let mut runs = 0_u64;
    while start.elapsed() < time {
        for _ in 0..16 {
            let input = mutated(&corpus, &mut random);
            runs += 1;
            if seen.insert(run(&target, &input)) {
                if corpus.len() < CORPUS {
                    corpus.push(input);
                } else {
                    let at = random.below(CORPUS);
                    corpus[at] = input;
                }
            }
        }
    }
    println!("{name}: {runs} inputs, {} outcomes", seen.len());
    assert!(
        runs > 100 && seen.len() > 3,
        "{name} does not get anywhere: {seen:?}"
    );
}

fn run(target: &impl Fn(&[u8]) -> String, input: &[u8]) -> String {
    let start = Instant::now();
    match catch_unwind(AssertUnwindSafe(|| target(input))) {
        Ok(outcome) => {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "too slow: {}",
                hex(input)
            );
            outcome
        }
        Err(_) => panic!("the input is {}", hex(input)),
    }
}

fn hex(input: &[u8]) -> String {
    input.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that parsers of numbers and lengths stumble over.
const ODD: [u8; 16] = [
    0, 1, 0x7f, 0x80, 0xff, b'0', b'7', b'9', b' ', b'\n', b'=', b'/', b'.', b'-', b'x', b'L',
];

fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..1 + random.below(4) {
        let at = random.below(input.len() + 1);
        match random.below(9) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = ODD[random.below(ODD.len())],
            2 => input.truncate(at),
            3 => input.insert(at, ODD[random.below(ODD.len())]),
            4 if at < input.len() => {
                let end = at + random.below((input.len() - at).min(600));
                input.drain(at..end);
            }
            5 => {
                let from = random.below(input.len() + 1);
                let end = from + random.below((input.len() - from).min(1200));
                let copy = input[from..end].to_vec();
                input.splice(at..at, copy);
            }
            6 => {
                // Whole blocks: headers change their places.
                let other = &corpus[random.below(corpus.len())];
                let blocks = other.len() / 512 + 1;
                let from = (random.below(blocks) * 512).min(other.len());
                let end = (from + 512 * (1 + random.below(4))).min(other.len());
                let at = at / 512 * 512;
                input.splice(at..at, other[from..end].iter().copied());
            }
            7 => sum_again(&mut input),
            _ if at < input.len() => input[at] = input[at].wrapping_add(1),
            _ => {}
        }
    }
    if random.below(2) == 0 {
        sum_again(&mut input);
    }
    input.truncate(LONGEST);
    input
}

/// Makes the checksums of what looks like tar headers right, or nothing would get past them.
fn sum_again(input: &mut [u8]) {
    for block in input.chunks_exact_mut(512) {
        if &block[257..262] != b"ustar" {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
