//! The core without a mount: what an operation costs before the kernel and FUSE add their part.
//!
//! `cargo bench --bench core [FILTER]`. Layers are made under the directory of `TMPDIR`, upper and work too: a file
//! system with extended attributes and room for 100 MiB.

#![allow(
    missing_docs,
    reason = "criterion's macros make a function without any"
)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench that can't go on has nothing better to do"
)]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rovl::overlay::validate::validate;
use rovl::overlay::{Caller, Config, NewNode, Overlay, ROOT_ID, RenameMode, SetAttr, UpperDirs};
use tempfile::TempDir;

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0o022,
};

/// Layers on disk.
struct Layers {
    dir: TempDir,
    lowers: Vec<PathBuf>,
}

impl Layers {
    fn new(count: usize) -> Layers {
        let dir = TempDir::new().unwrap();
        let lowers: Vec<PathBuf> = (0..count)
            .map(|i| dir.path().join(format!("l{i}")))
            .collect();
        lowers
            .iter()
            .for_each(|lower| fs::create_dir(lower).unwrap());
        Layers { dir, lowers }
    }

    /// A file or directory in a layer, counted from the top.
    fn path(&self, layer: usize, name: &str) -> PathBuf {
        self.lowers[layer].join(name)
    }

    /// The merged tree, with a new upper.
    fn open(&self) -> Open {
        let top = TempDir::new_in(self.dir.path()).unwrap();
        let (upper, work) = (top.path().join("upper"), top.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let mut config = Config::new(self.lowers.clone());
        config.upper = Some(UpperDirs { upper, work });
        // What disks take to sync is not the core's doing.
        config.volatile = true;
        let validated = validate(&config).unwrap();
        let overlay = Overlay::open(&config, validated).unwrap();
        Open { overlay, _top: top }
    }
}

struct Open {
    overlay: Arc<Overlay>,
    _top: TempDir,
}

impl Open {
    /// The id of a name that exists, with one reference taken.
    fn id(&self, parent: u64, name: &str) -> u64 {
        let found = self.overlay.lookup(parent, OsStr::new(name)).unwrap();
        found.unwrap_or_else(|| panic!("no {name}")).0.id()
    }

    fn create(&self, parent: u64, name: &OsStr, what: NewNode<'_>) -> u64 {
        let made = self
            .overlay
            .create(&CALLER, parent, name, what, 0o755, true)
            .unwrap();
        made.0.id()
    }

    /// Counts a directory's entries.
    fn list(&self, id: u64) -> usize {
        let mut count = 0;
        let each = &mut |_: rovl::overlay::ListedEntry<'_>| {
            count += 1;
            ControlFlow::Continue(())
        };
        self.overlay.readdir(id, 0, each).unwrap();
        count
    }
}

/// A name in the lowest layer, one in the top layer, and one that none has.
fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for count in [2, 20, 120, 500] {
        let layers = Layers::new(count);
        for layer in 0..count {
            fs::create_dir(layers.path(layer, "dir")).unwrap();
        }
        fs::write(layers.path(0, "dir/top"), "").unwrap();
        fs::write(layers.path(count - 1, "dir/lowest"), "").unwrap();
        let open = layers.open();
        let dir = open.id(ROOT_ID, "dir");
        for name in ["top", "lowest", "missing"] {
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter(|| {
                    let found = open.overlay.lookup(dir, OsStr::new(name)).unwrap();
                    if let Some((node, _)) = black_box(found) {
                        open.overlay.forget(node.id(), 1);
                    }
                });
            });
        }
        group.bench_function(BenchmarkId::new("directory of all layers", count), |b| {
            let again = layers.open();
            b.iter(|| {
                let id = again.id(ROOT_ID, "dir");
                again.overlay.forget(id, 1);
            });
        });
    }
    group.finish();
}

/// A directory that several layers have.
fn listings(c: &mut Criterion) {
    let mut group = c.benchmark_group("readdir");
    for (layers_count, entries) in [(2, 1000), (8, 1000), (2, 20_000), (50, 1000)] {
        let layers = Layers::new(layers_count);
        for layer in 0..layers_count {
            fs::create_dir(layers.path(layer, "dir")).unwrap();
        }
        for i in 0..entries {
            fs::write(layers.path(i % layers_count, &format!("dir/f{i}")), "").unwrap();
        }
        let open = layers.open();
        let dir = open.id(ROOT_ID, "dir");
        group.throughput(Throughput::Elements(entries as u64));
        let id = BenchmarkId::new(
            "merged and cached",
            format!("{layers_count} layers, {entries} entries"),
        );
        group.bench_function(id, |b| b.iter(|| assert_eq!(open.list(dir), entries + 2)));
        let id = BenchmarkId::new(
            "merged anew",
            format!("{layers_count} layers, {entries} entries"),
        );
        group.bench_function(id, |b| {
            // A new mount: nothing of its listing is cached.
            b.iter_custom(|times| {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let open = layers.open();
                    let dir = open.id(ROOT_ID, "dir");
                    let start = Instant::now();
                    assert_eq!(open.list(dir), entries + 2);
                    total += start.elapsed();
                }
                total
            });
        });
    }
    group.finish();
}

/// A file's first change, without syncing.
fn copy_up(c: &mut Criterion) {
    const FILES: usize = 64;
    let mut group = c.benchmark_group("copy-up");
    group.sample_size(20);
    for (name, size) in [("4 KiB", 4 << 10), ("1 MiB", 1 << 20)] {
        let layers = Layers::new(2);
        for i in 0..FILES {
            fs::write(layers.path(1, &format!("f{i}")), vec![0x61; size]).unwrap();
        }
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(name, |b| {
            b.iter_custom(|times| {
                let mut total = Duration::ZERO;
                let mut left = usize::try_from(times).unwrap();
                while left > 0 {
                    let open = layers.open();
                    let files = left.min(FILES);
                    let ids: Vec<u64> = (0..files)
                        .map(|i| open.id(ROOT_ID, &format!("f{i}")))
                        .collect();
                    let set = SetAttr {
                        perm: Some(0o600),
                        ..SetAttr::default()
                    };
                    let start = Instant::now();
                    for id in ids {
                        open.overlay.setattr(id, &set, None).unwrap();
                    }
                    total += start.elapsed();
                    left -= files;
                }
                total
            });
        });
    }
    group.finish();
}

/// Planning and carrying out: the plan itself is not public.
fn rename(c: &mut Criterion) {
    let mut group = c.benchmark_group("rename");
    let layers = Layers::new(2);
    fs::create_dir(layers.path(1, "lower")).unwrap();
    fs::write(layers.path(1, "lower/file"), "").unwrap();
    let open = layers.open();
    let (a, b_name) = (OsString::from("a"), OsString::from("b"));
    let back_and_forth = |parent: u64| {
        open.overlay
            .rename(parent, &a, parent, &b_name, RenameMode::Replace)
            .unwrap();
        open.overlay
            .rename(parent, &b_name, parent, &a, RenameMode::Replace)
            .unwrap();
    };
    for (name, what) in [("file", NewNode::File), ("directory", NewNode::Dir)] {
        let parent = open.create(ROOT_ID, OsStr::new(name), NewNode::Dir);
        open.create(parent, &a, what);
        group.bench_function(format!("{name} in upper, there and back"), |b| {
            b.iter(|| back_and_forth(parent))
        });
    }
    let lower = open.id(ROOT_ID, "lower");
    open.create(lower, OsStr::new("copied up"), NewNode::File);
    open.overlay
        .rename(
            ROOT_ID,
            OsStr::new("lower"),
            ROOT_ID,
            &a,
            RenameMode::Replace,
        )
        .unwrap();
    group.bench_function("directory with a redirect, there and back", |b| {
        b.iter(|| back_and_forth(ROOT_ID))
    });
    group.finish();
}

/// Nodes by id, and references taken and given back.
fn inode_table(c: &mut Criterion) {
    const NODES: usize = 20_000;
    let mut group = c.benchmark_group("inode table");
    let layers = Layers::new(1);
    for i in 0..NODES {
        fs::write(layers.path(0, &format!("f{i}")), "").unwrap();
    }
    let open = layers.open();
    let ids: Vec<u64> = (0..NODES)
        .map(|i| open.id(ROOT_ID, &format!("f{i}")))
        .collect();
    let mut next = 0;
    group.bench_function(format!("node by id, of {NODES}"), |b| {
        b.iter(|| {
            next = (next + 7919) % NODES;
            black_box(open.overlay.node(ids[next]).unwrap());
        });
    });
    let mut next = 0;
    group.bench_function(format!("attributes by id, of {NODES}"), |b| {
        b.iter(|| {
            next = (next + 7919) % NODES;
            black_box(open.overlay.getattr(ids[next]).unwrap());
        });
    });
    group.bench_function("look up and forget a new node", |b| {
        let fresh = layers.open();
        b.iter(|| {
            let id = fresh.id(ROOT_ID, "f0");
            fresh.overlay.forget(id, 1);
        });
    });
    group.finish();
}

/// Making and removing in directories of several sizes: their cost must not depend on it.
fn create_and_unlink(c: &mut Criterion) {
    let mut group = c.benchmark_group("create and unlink");
    for entries in [10, 1000, 20_000] {
        let layers = Layers::new(2);
        fs::create_dir(layers.path(1, "dir")).unwrap();
        for i in 0..entries {
            fs::write(layers.path(1, &format!("dir/f{i}")), "").unwrap();
        }
        let open = layers.open();
        let dir = open.id(ROOT_ID, "dir");
        let name = OsString::from("new");
        group.bench_function(BenchmarkId::from_parameter(entries), |b| {
            b.iter_batched(
                || (),
                |()| {
                    let id = open.create(dir, &name, NewNode::File);
                    open.overlay.unlink(dir, &name).unwrap();
                    open.overlay.forget(id, 1);
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(
    core,
    lookup,
    listings,
    copy_up,
    rename,
    inode_table,
    create_and_unlink
);
criterion_main!(core);
