//! stat, failed stat, small files, listings.

use anyhow::ensure;

use crate::data::{Scale, Set};
use crate::model::{Goal, Unit};
use crate::native::{Names, list, open_dir};
use crate::render::thousands;
use crate::work::{Session, Taken, Work, drop_caches};

const FILES: usize = 1000;
const SIZE: usize = 4096;

fn names(session: &Session<'_>) -> anyhow::Result<Names> {
    Names::listed(session.mount.read_root(), "micro")?.expect(FILES)
}

fn missing(session: &Session<'_>) -> anyhow::Result<Names> {
    let names = (0..64).map(|i| format!("micro/no-such-name-{i}"));
    Names::given(session.mount.read_root(), names)
}

pub fn works(scale: &Scale) -> Vec<Work> {
    let mut works = single_names();
    for (dir, entries) in [("ten", 10), ("thousand", 1000), ("large", scale.large)] {
        works.extend(listings(dir, entries));
    }
    works
}

fn single_names() -> Vec<Work> {
    let warm = Goal::kernel(1.1);
    vec![
        Work::new("stat-warm", "stat, warm", Unit::Micros, Set::Micro, |s| {
            let names = names(s)?;
            names.stat_all()?;
            s.repeated(names.len(), || names.stat_all())
        })
        .goals(std::slice::from_ref(&warm)),
        Work::new("stat-cold", "stat, cold", Unit::Micros, Set::Micro, |s| {
            let names = names(s)?;
            drop_caches(s)?;
            s.once(names.len(), || names.stat_all())
        }),
        Work::new(
            "missing-warm",
            "stat of a missing name, warm",
            Unit::Micros,
            Set::Micro,
            |s| {
                let names = missing(s)?;
                names.miss_all()?;
                s.repeated(names.len(), || names.miss_all())
            },
        )
        .goals(std::slice::from_ref(&warm)),
        Work::new(
            "missing-first",
            "stat of a missing name, first time",
            Unit::Micros,
            Set::Micro,
            |s| {
                let names = missing(s)?;
                s.once(names.len(), || names.miss_all())
            },
        ),
        Work::new(
            "read-small-warm",
            "open + read 4 KiB + close, warm",
            Unit::Micros,
            Set::Micro,
            |s| {
                let names = names(s)?;
                names.read_all(SIZE)?;
                s.repeated(names.len(), || names.read_all(SIZE))
            },
        )
        .per("file")
        .goals(&[warm, Goal::peer(0.3)]),
        Work::new(
            "read-small-cold",
            "open + read 4 KiB + close, cold",
            Unit::Micros,
            Set::Micro,
            |s| {
                let names = names(s)?;
                drop_caches(s)?;
                s.once(names.len(), || names.read_all(SIZE))
            },
        )
        .per("file"),
    ]
}

/// Lists a directory; per entry.
fn listing(dir: &'static str, entries: usize, stat: bool, cold: bool) -> Work {
    let run = move |s: &Session<'_>| -> anyhow::Result<Taken> {
        let root = open_dir(s.mount.read_root())?;
        let listed = || {
            let n = list(&root, dir, stat)?;
            ensure!(n == entries as u64, "{n} entries instead of {entries}");
            Ok(())
        };
        if cold {
            drop_caches(s)?;
            return s.once(entries as u64, listed);
        }
        // The kernel caches a listing while it reads it for the second time.
        listed()?;
        listed()?;
        s.repeated(entries as u64, listed)
    };
    let what = if stat { "readdir + stat" } else { "readdir" };
    let how = if cold { "cold" } else { "warm" };
    let id = format!(
        "{}-{dir}-{how}",
        if stat { "readdir-stat" } else { "readdir" }
    );
    let title = format!("{what} of {} entries, {how}", thousands(entries as f64));
    Work::new(&id, title, Unit::Micros, Set::Dirs, run).per("entry")
}

fn listings(dir: &'static str, entries: usize) -> Vec<Work> {
    vec![
        listing(dir, entries, false, false).goals(&[Goal::kernel(1.1)]),
        listing(dir, entries, true, false),
        listing(dir, entries, false, true),
        listing(dir, entries, true, true),
    ]
}
