//! A sparse file of 8 GiB.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Instant;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::meter::{alone, drop_caches};
use super::support::{Layers, Mounted, Scratch, Subject, pattern, require_root, subject};

const SIZE: u64 = 8 << 30;
const BLOCK: u64 = 64 << 10;
/// Where data is, `BLOCK` bytes each; block-aligned, so that holes are exact.
const ISLANDS: [u64; 4] = [0, (1 << 30) + (1 << 20), 5 << 30, SIZE - BLOCK];

fn make(layers: &Layers) {
    let file = File::create(layers.lower().join("sparse")).unwrap();
    file.set_len(SIZE).unwrap();
    for offset in ISLANDS {
        file.write_all_at(&pattern(offset, BLOCK as usize), offset)
            .unwrap();
    }
    file.sync_all().unwrap();
}

/// Data begins where an island begins, and ends where it ends.
fn check_extents(mounted: &Mounted, when: &str) {
    let file = File::open(mounted.path("sparse")).unwrap();
    let mut at = 0;
    let mut found = Vec::new();
    while at < SIZE {
        match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            Err(e) => panic!("{when}: SEEK_DATA from {at}: {e}"),
            Ok(start) => {
                let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
                assert!(end > start, "{when}: a hole at {end} after data at {start}");
                found.push((start, end));
                at = end;
            }
        }
    }
    if subject() == Subject::Kernel && when != "lower" {
        return;
    }
    let want: Vec<(u64, u64)> = ISLANDS.iter().map(|at| (*at, at + BLOCK)).collect();
    assert_eq!(found, want, "{when}: where data is");
}

fn check_content(mounted: &Mounted, when: &str) {
    let file = File::open(mounted.path("sparse")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SIZE, "{when}: size");
    let mut data = vec![0; BLOCK as usize];
    for offset in ISLANDS {
        file.read_exact_at(&mut data, offset).unwrap();
        let mut want = pattern(offset, BLOCK as usize);
        if when != "lower" && offset == 0 {
            want[100] = b'!';
        }
        assert!(data == want, "{when}: data at {offset}");
        if offset > 0 {
            file.read_exact_at(&mut data, offset - BLOCK).unwrap();
            assert!(
                data.iter().all(|byte| *byte == 0),
                "{when}: the hole ahead of {offset}"
            );
        }
    }
}

/// Allocated bytes are about those of the islands.
fn check_blocks(layers: &Layers) {
    let upper = fs::metadata(layers.upper.join("sparse")).unwrap();
    let allocated = upper.blocks() * 512;
    // The kernel copies 1 MiB from where data begins.
    let island = if subject() == Subject::Kernel {
        1 << 20
    } else {
        BLOCK
    };
    let islands = ISLANDS.len() as u64 * island;
    assert_eq!(upper.len(), SIZE);
    assert!(
        allocated <= islands + (1 << 20),
        "{allocated} bytes are allocated in upper, the data are {islands}"
    );
}

#[test]
fn copy_up_keeps_8_gib_sparse() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    make(&layers);
    drop_caches();
    let mut mounted = subject().mount(&layers, &[]);
    check_extents(&mounted, "lower");
    check_content(&mounted, "lower");

    let start = Instant::now();
    let file = OpenOptions::new()
        .write(true)
        .open(mounted.path("sparse"))
        .unwrap();
    file.write_all_at(b"!", 100).unwrap();
    file.sync_all().unwrap();
    drop(file);
    println!("copy-up: {:?}", start.elapsed());
    assert!(
        start.elapsed().as_secs() < 5,
        "copy-up took {:?}",
        start.elapsed()
    );
    check_blocks(&layers);
    check_extents(&mounted, "upper");
    check_content(&mounted, "upper");
    mounted.remount();
    check_extents(&mounted, "after a remount");
    check_content(&mounted, "after a remount");
    mounted.unmount();
}

#[test]
fn a_byte_beyond_8_gib_keeps_the_hole() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    make(&layers);
    let mounted = subject().mount(&layers, &[]);
    let path = mounted.path("sparse");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"end", 2 * SIZE).unwrap();
    file.set_len(2 * SIZE + 100).unwrap();
    drop(file);
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * SIZE + 100);
    let file = File::open(&path).unwrap();
    let mut data = [1; 100];
    file.read_exact_at(&mut data, 2 * SIZE).unwrap();
    assert_eq!(data[..4], *b"end\0");
    file.sync_all().unwrap();
    drop(file);
    let upper = fs::metadata(layers.upper.join("sparse")).unwrap();
    assert!(upper.blocks() * 512 < 4 << 20, "{} blocks", upper.blocks());
    mounted.unmount();
}
