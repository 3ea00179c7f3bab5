//! Reading and writing data: in a row and at random; through the page cache, O_DIRECT, and mapped.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::data::{Scale, Set};
use crate::map::Map;
use crate::model::{Goal, Unit};
use crate::native::{Aligned, Random, open_file};
use crate::work::{Session, Taken, Work, command_in, drop_caches, ended};

const BLOCK: usize = 4096;
const CHUNK: usize = 1 << 20;
/// Blocks at random places in one go.
const BLOCKS: u64 = 2000;

/// A size in words.
pub fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{} GiB", b >> 30),
        b if b >= 1 << 20 => format!("{} MiB", b >> 20),
        b => format!("{} KiB", b >> 10),
    }
}

pub fn works(scale: &Scale) -> Vec<Work> {
    let mut works = sequential_reads(scale);
    works.extend(sequential_writes(scale));
    works.extend(random_reads(scale));
    works.extend(random_writes(scale));
    works.extend(mapped_reads(scale));
    works.extend(mapped_writes(scale));
    works.push(sqlite(scale));
    works
}

fn read_through(file: &mut File, buffer: &mut [u8], expected: u64) -> Result<()> {
    let mut total = 0;
    loop {
        match file.read(buffer)? {
            0 => break,
            n => total += n as u64,
        }
    }
    ensure!(total == expected, "{total} bytes instead of {expected}");
    Ok(())
}

fn write_through(path: &Path, total: u64, direct: bool, sync: bool) -> Result<()> {
    let mut file = open_file(path, true, direct)?;
    let mut buffer = Aligned::new(CHUNK);
    let mut left = total;
    while left > 0 {
        crate::exec::check()?;
        let n = left.min(CHUNK as u64);
        file.write_all(
            buffer
                .bytes()
                .get(..usize::try_from(n)?)
                .unwrap_or_default(),
        )?;
        left -= n;
    }
    if sync {
        file.sync_all()?;
    }
    Ok(())
}

/// Checks, after the clock has stopped, that a file has its size.
fn verified(taken: Taken, path: &Path, expected: u64) -> Result<Taken> {
    let len = fs::metadata(path)?.len();
    ensure!(len == expected, "{len} bytes instead of {expected}");
    Ok(taken)
}

fn sequential_reads(scale: &Scale) -> Vec<Work> {
    let (big, name) = (scale.big, size(scale.big));
    let goals = [Goal::kernel(1.15), Goal::peer(1.0)];
    let chunks = big / CHUNK as u64;
    let read = move |direct: bool, cold: bool| {
        move |s: &Session<'_>| {
            let path = s.reading("big");
            let mut buffer = Aligned::new(CHUNK);
            let mut pass =
                || read_through(&mut open_file(&path, false, direct)?, buffer.bytes(), big);
            if cold {
                drop_caches(s)?;
                return s.once(chunks, pass);
            }
            pass()?;
            s.repeated(chunks, pass)
        }
    };
    vec![
        Work::new(
            "read-seq-warm",
            format!("read {name}, warm"),
            Unit::Seconds,
            Set::Big,
            read(false, false),
        )
        .per("MiB")
        .goals(&goals),
        Work::new(
            "read-seq-cold",
            format!("read {name}, cold"),
            Unit::Seconds,
            Set::Big,
            read(false, true),
        )
        .per("MiB")
        .goals(&goals),
        Work::new(
            "read-seq-direct",
            format!("read {name}, O_DIRECT"),
            Unit::Seconds,
            Set::Big,
            read(true, true),
        )
        .per("MiB"),
    ]
}

fn sequential_writes(scale: &Scale) -> Vec<Work> {
    let (big, name) = (scale.big, size(scale.big));
    let goals = [Goal::kernel(1.15), Goal::peer(1.0)];
    let chunks = big / CHUNK as u64;
    let write = move |direct: bool| {
        move |s: &Session<'_>| {
            let path = s.mount.root.join("written");
            let taken = s.once(chunks, || write_through(&path, big, direct, true))?;
            verified(taken, &path, big)
        }
    };
    vec![
        Work::new(
            "write-fsync",
            format!("write {name} + fsync"),
            Unit::Seconds,
            Set::Big,
            write(false),
        )
        .per("MiB")
        .goals(&goals),
        Work::new(
            "write-direct",
            format!("write {name} + fsync, O_DIRECT"),
            Unit::Seconds,
            Set::Big,
            write(true),
        )
        .per("MiB"),
    ]
}

/// Reads or writes blocks at random places of a file.
fn blocks(
    file: &File,
    buffer: &mut [u8],
    len: u64,
    count: u64,
    write: bool,
    random: &mut Random,
) -> Result<()> {
    for _ in 0..count {
        let at = random.below(len / BLOCK as u64) * BLOCK as u64;
        if write {
            file.write_all_at(buffer, at)?;
        } else {
            file.read_exact_at(buffer, at)?;
        }
    }
    Ok(())
}

fn random_reads(scale: &Scale) -> Vec<Work> {
    let big = scale.big;
    let goals = [Goal::kernel(1.15), Goal::peer(1.0)];
    let read = move |direct: bool, cold: bool, name: &'static str| {
        move |s: &Session<'_>| {
            let path = s.reading(name);
            let len = fs::metadata(&path)?.len();
            let mut buffer = Aligned::new(BLOCK);
            if !cold && !direct {
                read_through(&mut File::open(&path)?, &mut vec![0; CHUNK], len)?;
            } else {
                drop_caches(s)?;
            }
            let file = open_file(&path, false, direct)?;
            let mut random = Random::new(len);
            let count = if cold || direct { BLOCKS / 4 } else { BLOCKS };
            let pass = || blocks(&file, buffer.bytes(), len, count, false, &mut random);
            if cold {
                s.once(count, pass)
            } else {
                s.repeated(count, pass)
            }
        }
    };
    vec![
        Work::new(
            "pread-warm",
            "pread 4 KiB of a 1 MiB file, warm",
            Unit::Micros,
            Set::Micro,
            read(false, false, "one"),
        )
        .goals(&[Goal::kernel(1.1)]),
        Work::new(
            "read-random-warm",
            format!("random read 4 KiB of {}, warm", size(big)),
            Unit::Micros,
            Set::Big,
            read(false, false, "big"),
        )
        .goals(&goals),
        Work::new(
            "read-random-cold",
            format!("random read 4 KiB of {}, cold", size(big)),
            Unit::Micros,
            Set::Big,
            read(false, true, "big"),
        ),
        Work::new(
            "read-random-direct",
            format!("random read 4 KiB of {}, O_DIRECT", size(big)),
            Unit::Micros,
            Set::Big,
            read(true, false, "big"),
        ),
    ]
}

fn random_writes(scale: &Scale) -> Vec<Work> {
    let quarter = scale.big / 4;
    let goals = [Goal::kernel(1.15), Goal::peer(1.0)];
    let write = move |direct: bool| {
        move |s: &Session<'_>| {
            let path = s.mount.root.join("written");
            write_through(&path, quarter, false, true)?;
            let file = open_file(&path, true, direct)?;
            let mut buffer = Aligned::new(BLOCK);
            let mut random = Random::new(quarter);
            let count = if direct { BLOCKS / 10 } else { BLOCKS };
            let taken = s.repeated(count, || {
                blocks(&file, buffer.bytes(), quarter, count, true, &mut random)
            })?;
            verified(taken, &path, quarter)
        }
    };
    vec![
        Work::new(
            "write-random",
            format!("random write 4 KiB of {}", size(quarter)),
            Unit::Micros,
            Set::Empty,
            write(false),
        )
        .goals(&goals),
        Work::new(
            "write-random-direct",
            format!("random write 4 KiB of {}, O_DIRECT", size(quarter)),
            Unit::Micros,
            Set::Empty,
            write(true),
        ),
    ]
}

fn mapped_reads(scale: &Scale) -> Vec<Work> {
    let big = scale.big;
    let goals = [Goal::kernel(1.15), Goal::peer(1.0)];
    let pages = big / BLOCK as u64;
    let read_all = move |path: &Path| -> Result<()> {
        let map = Map::new(&File::open(path)?, false)?;
        ensure!(map.len() as u64 == big, "a mapping of {} bytes", map.len());
        let sum: u64 = (0..map.len())
            .step_by(BLOCK)
            .map(|at| u64::from(map.get(at)))
            .sum();
        ensure!(sum > 0, "only zeros");
        Ok(())
    };
    let read = move |cold: bool| {
        move |s: &Session<'_>| {
            let path = s.reading("big");
            if cold {
                drop_caches(s)?;
                return s.once(pages, || read_all(&path));
            }
            read_all(&path)?;
            s.repeated(pages, || read_all(&path))
        }
    };
    let read_random = move |s: &Session<'_>| {
        let path = s.reading("big");
        read_all(&path)?;
        let mut random = Random::new(big);
        s.repeated(BLOCKS, || {
            let map = Map::new(&File::open(&path)?, false)?;
            let sum: u64 = (0..BLOCKS)
                .map(|_| u64::from(map.get(random.below(big) as usize)))
                .sum();
            ensure!(sum > 0, "only zeros");
            Ok(())
        })
    };
    let name = size(big);
    vec![
        Work::new(
            "mmap-read-warm",
            format!("mmap, read {name}, warm"),
            Unit::Micros,
            Set::Big,
            read(false),
        )
        .per("page")
        .goals(&[Goal::kernel(1.1)]),
        Work::new(
            "mmap-read-cold",
            format!("mmap, read {name}, cold"),
            Unit::Micros,
            Set::Big,
            read(true),
        )
        .per("page"),
        Work::new(
            "mmap-read-random",
            format!("mmap, random read in {name}, warm"),
            Unit::Micros,
            Set::Big,
            read_random,
        )
        .per("page")
        .goals(&goals),
    ]
}

fn mapped_writes(scale: &Scale) -> Vec<Work> {
    let quarter = scale.big / 4;
    let goals = [Goal::kernel(1.15), Goal::peer(1.0)];
    let write_random = move |s: &Session<'_>| {
        let path = s.mount.root.join("written");
        write_through(&path, quarter, false, true)?;
        let file = open_file(&path, true, false)?;
        let mut random = Random::new(quarter);
        // Mapped anew each time: otherwise there are soon no faults.
        let taken = s.repeated(BLOCKS, || {
            let mut map = Map::new(&file, true)?;
            (0..BLOCKS).for_each(|_| map.set(random.below(quarter) as usize, 1));
            Ok(())
        })?;
        Map::new(&file, true)?.sync()?;
        let written = fs::read(&path)?.iter().filter(|b| **b == 1).count();
        ensure!(
            written > 1,
            "what was written through the mapping is not in the file"
        );
        verified(taken, &path, quarter)
    };
    vec![
        Work::new(
            "mmap-write-random",
            format!("mmap, random write in {}", size(quarter)),
            Unit::Micros,
            Set::Empty,
            write_random,
        )
        .per("page")
        .goals(&goals),
    ]
}

/// Transactions of one row each, all of them synced.
const SQLITE: &str = "
import sqlite3, sys
db = sqlite3.connect('test.db', isolation_level=None)
db.execute('pragma synchronous=full')
db.execute('create table t (k integer primary key, v text)')
for i in range(int(sys.argv[1])):
    db.execute('insert into t values (?, ?)', (i, 'x' * 200))
print(db.execute('select count(*) from t').fetchone()[0])
";

fn sqlite(scale: &Scale) -> Work {
    let transactions = if scale.big >= 1 << 30 { 1000 } else { 100 };
    let title = format!("SQLite, {transactions} transactions");
    Work::new("sqlite", title, Unit::Seconds, Set::Empty, move |s| {
        let count = transactions.to_string();
        let dir = s.mount.new_dir("database")?;
        let words = ["/usr/bin/python3", "-I", "-S", "-c", SQLITE, &count];
        s.program(
            transactions,
            || command_in(&dir, &words),
            |done| {
                ended(done, 0)?;
                ensure!(
                    done.text.trim() == count,
                    "{} rows instead of {count}",
                    done.text.trim()
                );
                Ok(())
            },
        )
    })
    .per("transaction")
}
