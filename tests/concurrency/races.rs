//! Races: all workers do the same thing to the same name at the same moment, and POSIX says how
//! many of them may win.
//!
//! Each has three steps, with a barrier after each: one worker prepares, all act and write down
//! what they got (0 or an errno), one worker verifies and cleans up while all others are quiet.

use std::sync::atomic::Ordering::SeqCst;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::files::read_all;
use super::layout::{RACE_STOCK, REGION, SHARED, WORKERS, race_data, race_dir, race_file};
use super::listing::entries;
use super::worker::{Worker, expect, expect_bytes};

/// The kinds of race, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Race {
    /// O_EXCL: one creates it.
    Create,
    /// One makes the directory.
    Mkdir,
    /// One makes the symlink.
    Symlink,
    /// One of many files gets the second name.
    Link,
    /// One removes the lower file.
    Unlink,
    /// One removes the lower directory.
    Rmdir,
    /// One moves the lower file away.
    MoveAway,
    /// One moves its file there, with RENAME_NOREPLACE.
    MoveThere,
    /// All replace the file: one stays.
    Replace,
    /// All append a record: none is lost.
    Append,
    /// All write a lower file, each its region, or change its attributes: one copy-up, no loss.
    CopyUp,
    /// All make files in a lower directory that half of them rename.
    MakeInMoved,
    /// Files are made in a directory that is being removed.
    MakeInRemoved,
    /// Links are made of a file that loses its only name.
    LinkUnlinked,
}

const RACES: [Race; 14] = [
    Race::Create,
    Race::Mkdir,
    Race::Symlink,
    Race::Link,
    Race::Unlink,
    Race::Rmdir,
    Race::MoveAway,
    Race::MoveThere,
    Race::Replace,
    Race::Append,
    Race::CopyUp,
    Race::MakeInMoved,
    Race::MakeInRemoved,
    Race::LinkUnlinked,
];

/// Bytes of an appended record.
const RECORD: usize = 96;

/// One race: its number gives its kind and its names.
struct Round {
    number: u32,
    race: Race,
    name: String,
}

impl Round {
    fn new(number: u32) -> Round {
        let s = number as usize % (SHARED - 1);
        Round {
            number,
            race: RACES[number as usize % RACES.len()],
            name: format!("s{s}/race.{number}"),
        }
    }

    /// The name that is worker `w`'s in this race.
    fn of(&self, w: usize) -> String {
        format!("{}.w{w}", self.name)
    }

    /// Lower files used up so far: three kinds of race use one each.
    fn stock(&self, which: usize) -> usize {
        (self.number as usize / RACES.len()) * 4 + which
    }
}

impl Worker {
    /// Takes part in a race.
    pub fn race(&mut self, number: u32) {
        let round = Round::new(number);
        let first = number as usize % WORKERS == self.orders.w;
        self.note(&format!("race {number} {:?} {}", round.race, round.name));
        self.board.barrier();
        if first {
            self.check_tokens();
            self.prepare(&round);
        }
        self.check_groups();
        self.board.barrier();
        let got = self.act(&round);
        let code = got.err().map_or(0, |e| e.raw_os_error() as u64);
        self.note(&format!("race: {got:?}"));
        self.board.result(self.orders.w).store(code, SeqCst);
        self.board.barrier();
        if first {
            self.verify(&round);
        }
        self.board.barrier();
    }

    /// Takes a lower file or directory from the stock, or makes a new one when it is used up.
    fn take_stock(&self, index: usize, to: &str, dir: bool) {
        if index < RACE_STOCK {
            let from = if dir {
                race_dir(index)
            } else {
                race_file(index)
            };
            expect(
                "take stock",
                fs::renameat(&self.root, &from, &self.root, to),
                Ok(()),
            );
        } else if dir {
            expect(
                "mkdir",
                fs::mkdirat(&self.root, to, Mode::from(0o755)),
                Ok(()),
            );
        } else {
            self.put(to, &race_data());
        }
    }

    fn put(&self, path: &str, data: &[u8]) {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let fd = expect(path, self.open(path, flags, 0o644), Ok(())).unwrap();
        if !data.is_empty() {
            expect(path, rustix::io::write(&fd, data), Ok(()));
        }
    }

    fn prepare(&self, round: &Round) {
        let name = &round.name;
        match round.race {
            Race::Create | Race::Mkdir | Race::Symlink => {}
            Race::Link | Race::MoveThere | Race::Replace => {
                for w in 0..WORKERS {
                    self.put(&round.of(w), format!("of {w}").as_bytes());
                }
            }
            // Unlinked where it lies, or after a rename: both ways of a lower file.
            Race::Unlink => self.take_stock(round.stock(0), name, false),
            Race::MoveAway => self.take_stock(round.stock(1), name, false),
            Race::CopyUp => self.prepare_copy_up(round),
            Race::Append | Race::LinkUnlinked => self.put(name, b""),
            Race::Rmdir => self.take_stock(round.stock(0), name, true),
            Race::MakeInMoved => self.take_stock(round.stock(1), name, true),
            Race::MakeInRemoved => self.take_stock(round.stock(2), name, true),
        }
    }

    /// The file stays where it is: a rename would copy it up before the race.
    fn prepare_copy_up(&self, round: &Round) {
        if round.stock(2) >= RACE_STOCK {
            self.put(&self.copy_up_path(round), &race_data());
        }
    }

    fn copy_up_path(&self, round: &Round) -> String {
        if round.stock(2) < RACE_STOCK {
            race_file(round.stock(2))
        } else {
            round.name.clone()
        }
    }

    fn act(&mut self, round: &Round) -> Result<(), Errno> {
        let w = self.orders.w;
        let (root, name, mine) = (&self.root, &round.name, round.of(w));
        let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        match round.race {
            Race::Create => self.open(name, create, 0o644).map(|_| ()),
            Race::Mkdir => fs::mkdirat(root, name, Mode::from(0o755)),
            Race::Symlink => fs::symlinkat(format!("target {w}"), root, name),
            Race::Link => fs::linkat(root, &mine, root, name, AtFlags::empty()),
            Race::Unlink => fs::unlinkat(root, name, AtFlags::empty()),
            Race::Rmdir => fs::unlinkat(root, name, AtFlags::REMOVEDIR),
            Race::MoveAway => fs::renameat(root, name, root, &mine),
            Race::MoveThere => fs::renameat_with(root, &mine, root, name, RenameFlags::NOREPLACE),
            Race::Replace => fs::renameat(root, &mine, root, name),
            Race::Append => self.append_record(round),
            Race::CopyUp => self.copy_up(round),
            Race::MakeInMoved if w.is_multiple_of(2) => fs::renameat(root, name, root, &mine),
            Race::MakeInRemoved if w.is_multiple_of(2) => {
                fs::unlinkat(root, name, AtFlags::REMOVEDIR)
            }
            Race::MakeInMoved | Race::MakeInRemoved => self
                .open(&format!("{name}/f{w}"), create, 0o644)
                .map(|_| ()),
            Race::LinkUnlinked if w == 0 => fs::unlinkat(root, name, AtFlags::empty()),
            Race::LinkUnlinked => fs::linkat(root, name, root, &mine, AtFlags::empty()),
        }
    }

    fn append_record(&self, round: &Round) -> Result<(), Errno> {
        let fd = self.open(&round.name, OFlags::WRONLY | OFlags::APPEND, 0)?;
        let record = vec![b'a' + self.orders.w as u8; RECORD];
        for _ in 0..3 {
            rustix::io::write(&fd, &record)?;
        }
        Ok(())
    }

    fn copy_up(&self, round: &Round) -> Result<(), Errno> {
        let w = self.orders.w;
        let path = self.copy_up_path(round);
        match w {
            0 => fs::chmodat(&self.root, &path, Mode::from(0o640), AtFlags::empty()),
            1 => {
                let full = self.orders.root.join(&path);
                fs::setxattr(&full, "user.race", b"kept", XattrFlags::empty())
            }
            2 => {
                let name = &round.of(w);
                fs::linkat(&self.root, &path, &self.root, name, AtFlags::empty())
            }
            _ => {
                let fd = self.open(&path, OFlags::RDWR, 0)?;
                let bytes = vec![b'0' + w as u8; REGION];
                rustix::io::pwrite(&fd, &bytes, (w * REGION) as u64)?;
                Ok(())
            }
        }
    }

    fn verify(&self, round: &Round) {
        let what = format!("race {} {:?}", round.number, round.race);
        let results: Vec<u64> = (0..WORKERS)
            .map(|w| self.board.result(w).load(SeqCst))
            .collect();
        let winners: Vec<usize> = (0..WORKERS).filter(|w| results[*w] == 0).collect();
        let one_wins = |errno: Errno| {
            let lost = |code: &&u64| **code == errno.raw_os_error() as u64;
            let losers = results.iter().filter(lost).count();
            assert!(
                winners.len() == 1 && losers == WORKERS - 1,
                "{what}: one must win and all others get {errno:?}; errors are {results:?}"
            );
            winners[0]
        };
        match round.race {
            Race::Create | Race::Mkdir => {
                one_wins(Errno::EXIST);
            }
            Race::Symlink => {
                let winner = one_wins(Errno::EXIST);
                let target = fs::readlinkat(&self.root, &round.name, Vec::new()).unwrap();
                assert_eq!(
                    target.to_bytes(),
                    format!("target {winner}").as_bytes(),
                    "{what}"
                );
            }
            Race::Link => self.verify_link(round, one_wins(Errno::EXIST), &what),
            Race::Unlink | Race::Rmdir => {
                one_wins(Errno::NOENT);
                expect(&what, self.stat(&round.name), Err(Errno::NOENT));
            }
            Race::MoveAway => self.verify_moved(round, one_wins(Errno::NOENT), &what),
            Race::MoveThere => {
                let winner = one_wins(Errno::EXIST);
                self.verify_content(&round.name, winner, &what);
                for w in (0..WORKERS).filter(|w| *w != winner) {
                    self.verify_content(&round.of(w), w, &what);
                }
            }
            Race::Replace => self.verify_replaced(round, &winners, &what),
            Race::Append => self.verify_appended(round, &winners, &what),
            Race::CopyUp => self.verify_copied_up(round, &winners, &what),
            Race::MakeInMoved => self.verify_made_in_moved(round, &results, &what),
            Race::MakeInRemoved => self.verify_made_in_removed(round, &results, &what),
            Race::LinkUnlinked => self.verify_linked(round, &results, &what),
        }
        self.clean_up(round);
    }

    fn verify_content(&self, path: &str, w: usize, what: &str) {
        let fd = expect(what, self.open(path, OFlags::RDONLY, 0), Ok(())).unwrap();
        expect_bytes(what, &read_all(&fd, what), format!("of {w}").as_bytes());
    }

    fn verify_link(&self, round: &Round, winner: usize, what: &str) {
        self.verify_content(&round.name, winner, what);
        for w in 0..WORKERS {
            let links = self.stat(&round.of(w)).unwrap().st_nlink;
            assert_eq!(
                links,
                1 + u32::from(w == winner) as u64,
                "{what}: links of {w}"
            );
        }
    }

    fn verify_moved(&self, round: &Round, winner: usize, what: &str) {
        expect(what, self.stat(&round.name), Err(Errno::NOENT));
        for w in 0..WORKERS {
            let want = if w == winner {
                Ok(())
            } else {
                Err(Errno::NOENT)
            };
            expect(what, self.stat(&round.of(w)), want);
        }
        let fd = self.open(&round.of(winner), OFlags::RDONLY, 0).unwrap();
        expect_bytes(what, &read_all(&fd, what), &race_data());
    }

    fn verify_replaced(&self, round: &Round, winners: &[usize], what: &str) {
        assert_eq!(winners.len(), WORKERS, "{what}: all renames succeed");
        let fd = self.open(&round.name, OFlags::RDONLY, 0).unwrap();
        let data = read_all(&fd, what);
        let some = (0..WORKERS).any(|w| data == format!("of {w}").as_bytes());
        assert!(some, "{what}: holds {:?}", String::from_utf8_lossy(&data));
        assert_eq!(fs::fstat(&fd).unwrap().st_nlink, 1, "{what}: links");
        for w in 0..WORKERS {
            expect(what, self.stat(&round.of(w)), Err(Errno::NOENT));
        }
    }

    fn verify_appended(&self, round: &Round, winners: &[usize], what: &str) {
        assert_eq!(winners.len(), WORKERS, "{what}: all appends succeed");
        let fd = self.open(&round.name, OFlags::RDONLY, 0).unwrap();
        let data = read_all(&fd, what);
        assert_eq!(data.len(), WORKERS * 3 * RECORD, "{what}: size");
        let mut counts = [0; WORKERS];
        for record in data.chunks(RECORD) {
            let first = record[0];
            assert!(
                record.iter().all(|byte| *byte == first),
                "{what}: a record is torn"
            );
            counts[(first - b'a') as usize] += 1;
        }
        assert_eq!(counts, [3; WORKERS], "{what}: records of each");
    }

    fn verify_copied_up(&self, round: &Round, winners: &[usize], what: &str) {
        assert_eq!(
            winners.len(),
            WORKERS,
            "{what}: all succeed; winners are {winners:?}"
        );
        let path = self.copy_up_path(round);
        let mut want = race_data();
        for w in 3..WORKERS {
            want[w * REGION..(w + 1) * REGION].fill(b'0' + w as u8);
        }
        let mut inos = Vec::new();
        for path in [&path, &round.of(2)] {
            let fd = self.open(path, OFlags::RDONLY, 0).unwrap();
            expect_bytes(&format!("{what}: {path}"), &read_all(&fd, what), &want);
            let stat = fs::fstat(&fd).unwrap();
            assert_eq!(
                stat.st_mode & 0o7777,
                0o640,
                "{what}: mode of {path}, in octal"
            );
            assert_eq!(stat.st_nlink, 2, "{what}: links of {path}");
            inos.push(stat.st_ino);
            let mut value = [0; 16];
            let got = fs::getxattr(self.orders.root.join(path), "user.race", &mut value);
            assert_eq!(got, Ok(4), "{what}: xattr of {path}");
        }
        assert_eq!(inos[0], inos[1], "{what}: both names are one inode");
        expect(
            what,
            fs::unlinkat(&self.root, &path, AtFlags::empty()),
            Ok(()),
        );
    }

    fn verify_made_in_moved(&self, round: &Round, results: &[u64], what: &str) {
        let movers: Vec<usize> = (0..WORKERS)
            .step_by(2)
            .filter(|w| results[*w] == 0)
            .collect();
        assert_eq!(
            movers.len(),
            1,
            "{what}: one moves the directory; errors are {results:?}"
        );
        self.verify_makers(&round.of(movers[0]), results, what);
    }

    fn verify_made_in_removed(&self, round: &Round, results: &[u64], what: &str) {
        let removed = (0..WORKERS).step_by(2).filter(|w| results[*w] == 0).count();
        let made = (1..WORKERS).step_by(2).filter(|w| results[*w] == 0).count();
        assert!(
            (removed == 1) != (made > 0) && removed < 2,
            "{what}: removed {removed} times, {made} files made in it; errors are {results:?}"
        );
        if removed == 0 {
            self.verify_makers(&round.name, results, what);
        } else {
            expect(what, self.stat(&round.name), Err(Errno::NOENT));
        }
    }

    /// In the directory are the files whose making succeeded; the others got ENOENT.
    fn verify_makers(&self, dir: &str, results: &[u64], what: &str) {
        let noent = Errno::NOENT.raw_os_error() as u64;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = expect(what, self.open(dir, flags, 0), Ok(())).unwrap();
        let mut names: Vec<String> = entries(&fd, 4096, true, what)
            .into_iter()
            .map(|entry| entry.name)
            .collect();
        names.sort();
        let makers = (1..WORKERS).step_by(2);
        let want: Vec<String> = makers
            .clone()
            .filter(|w| results[*w] == 0)
            .map(|w| format!("f{w}"))
            .collect();
        assert_eq!(
            names, want,
            "{what}: files in {dir}; errors are {results:?}"
        );
        let fine = makers
            .clone()
            .all(|w| results[w] == 0 || results[w] == noent);
        assert!(fine, "{what}: errors are {results:?}");
        for name in names {
            let path = format!("{dir}/{name}");
            expect(
                &path,
                fs::unlinkat(&self.root, &path, AtFlags::empty()),
                Ok(()),
            );
        }
    }

    fn verify_linked(&self, round: &Round, results: &[u64], what: &str) {
        assert_eq!(results[0], 0, "{what}: the unlink");
        let linked: Vec<usize> = (1..WORKERS).filter(|w| results[*w] == 0).collect();
        let noent = Errno::NOENT.raw_os_error() as u64;
        assert!(
            results.iter().all(|code| *code == 0 || *code == noent),
            "{what}: errors are {results:?}"
        );
        for w in &linked {
            let links = self.stat(&round.of(*w)).unwrap().st_nlink as usize;
            assert_eq!(links, linked.len(), "{what}: links of {w}");
        }
    }

    /// Removes what the race has left.
    fn clean_up(&self, round: &Round) {
        let mut names = vec![round.name.clone()];
        names.extend((0..WORKERS).map(|w| round.of(w)));
        for name in names {
            let Ok(stat) = self.stat(&name) else { continue };
            let dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let flags = if dir {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            expect(&name, fs::unlinkat(&self.root, &name, flags), Ok(()));
        }
    }
}
