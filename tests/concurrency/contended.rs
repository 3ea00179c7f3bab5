//! Operations on names that all workers use, and what must hold whoever comes first.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::SeqCst;

use rustix::fs::{self, AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::files::read_all;
use super::layout::{
    GROUPS, MOVING, MOVING_PLACES, PUBLISHED, REGION, TOKENS, WORKERS, group_data, group_name,
    moving_content, moving_name, published_data, published_name, token_name,
};
use super::listing::entries;
use super::mapping::Mapping;
use super::worker::{Worker, expect, expect_bytes};

/// What a worker remembers about contended objects.
pub struct Seen {
    /// Its own published files so far.
    published: u64,
    /// (published name, writer) → the newest that it has read.
    newest: HashMap<(usize, usize), u64>,
    /// What its region of each hard-link group holds.
    regions: Vec<Vec<u8>>,
    /// Its further names of each hard-link group.
    links: Vec<Vec<String>>,
}

impl Seen {
    pub fn new(w: usize) -> Seen {
        let region = |g| group_data(g)[w * REGION..(w + 1) * REGION].to_vec();
        Seen {
            published: 0,
            newest: HashMap::new(),
            regions: (0..GROUPS).map(region).collect(),
            links: vec![Vec::new(); GROUPS],
        }
    }
}

impl Worker {
    pub fn contended(&mut self) {
        match self.random.below(10) {
            0 => self.publish(),
            1 => self.read_published(),
            2..=4 => self.token(),
            5 => self.group_region(),
            6 => self.group_link(),
            7 => self.move_directory(),
            _ => self.walk_moving(),
        }
    }

    /// Replaces a published file with a whole new one.
    fn publish(&mut self) {
        let k = self.random.below(PUBLISHED);
        self.seen.published += 1;
        let data = published_data(self.orders.w, self.seen.published);
        let temporary = format!("s{}/w{}.gtmp", self.random.below(5), self.orders.w);
        let what = format!("publish {} through {temporary}", published_name(k));
        self.note(&what);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let fd = expect(&what, self.open(&temporary, flags, 0o644), Ok(())).unwrap();
        for part in data.chunks(7000) {
            assert_eq!(
                expect(&what, rustix::io::write(&fd, part), Ok(())),
                Some(part.len())
            );
        }
        if self.random.one_in(20) {
            expect(&what, fs::fsync(&fd), Ok(()));
        }
        drop(fd);
        let got = fs::renameat(&self.root, &temporary, &self.root, published_name(k));
        expect(&what, got, Ok(()));
    }

    fn read_published(&mut self) {
        let k = self.random.below(PUBLISHED);
        let path = published_name(k);
        let what = format!("read {path}");
        self.note(&what);
        // It is replaced in one step: at no time is it absent.
        let fd = expect(&what, self.open(&path, OFlags::RDONLY, 0), Ok(())).unwrap();
        let data = read_all(&fd, &what);
        let (w, seq) = check_published(&what, &data);
        let newest = self.seen.newest.entry((k, w)).or_insert(seq);
        assert!(
            seq >= *newest,
            "{what}: number {seq} of worker {w} came back after {newest}"
        );
        *newest = seq;
    }

    /// One operation on names that all make, remove and rename; the board counts successes.
    fn token(&mut self) {
        let (a, b) = (self.random.below(TOKENS), self.random.below(TOKENS));
        let (from, to) = (token_name(a), token_name(b));
        let exists = [Errno::EXIST];
        let gone = [Errno::NOENT, Errno::ISDIR, Errno::NOTDIR, Errno::EXIST];
        match self.random.below(9) {
            0 | 1 => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let got = self.open(&from, flags, 0o644);
                if self.either(&format!("create {from}"), got.as_ref().map(|_| ()), &exists) {
                    self.board.token_in(a).fetch_add(1, SeqCst);
                }
                if let Ok(fd) = got {
                    let got = rustix::io::write(&fd, &published_data(self.orders.w, 7)[..2000]);
                    expect("write token", got, Ok(()));
                }
            }
            2 => {
                let got = fs::mkdirat(&self.root, &from, Mode::from(0o755));
                if self.either(&format!("mkdir {from}"), got.as_ref().map(|_| ()), &exists) {
                    self.board.token_in(a).fetch_add(1, SeqCst);
                }
            }
            3 | 4 => {
                let dir = self.random.one_in(3);
                let flags = if dir {
                    AtFlags::REMOVEDIR
                } else {
                    AtFlags::empty()
                };
                let got = fs::unlinkat(&self.root, &from, flags);
                if self.either(
                    &format!("remove {from}"),
                    got.as_ref().map(|_| ()),
                    &gone[..3],
                ) {
                    self.board.token_out(a).fetch_add(1, SeqCst);
                }
            }
            5 if a != b => {
                let got =
                    fs::renameat_with(&self.root, &from, &self.root, &to, RenameFlags::NOREPLACE);
                let what = format!("rename no-replace {from} {to}");
                if self.either(
                    &what,
                    got.as_ref().map(|_| ()),
                    &[Errno::NOENT, Errno::EXIST],
                ) {
                    self.board.token_in(b).fetch_add(1, SeqCst);
                    self.board.token_out(a).fetch_add(1, SeqCst);
                }
            }
            6 if a != b => {
                let got =
                    fs::renameat_with(&self.root, &from, &self.root, &to, RenameFlags::EXCHANGE);
                let what = format!("rename exchange {from} {to}");
                self.either(&what, got.as_ref().map(|_| ()), &[Errno::NOENT]);
            }
            7 if a != b => {
                let got = fs::linkat(&self.root, &from, &self.root, &to, AtFlags::empty());
                let refused = [Errno::NOENT, Errno::EXIST, Errno::PERM];
                if self.either(
                    &format!("link {from} {to}"),
                    got.as_ref().map(|_| ()),
                    &refused,
                ) {
                    self.board.token_in(b).fetch_add(1, SeqCst);
                }
            }
            _ => self.read_token(&from),
        }
    }

    fn read_token(&mut self, path: &str) {
        let got = self.open(path, OFlags::RDONLY, 0);
        let what = format!("open {path}");
        if !self.either(&what, got.as_ref().map(|_| ()), &[Errno::NOENT]) {
            return;
        }
        let Ok(fd) = got else { return };
        let mut data = vec![0; 4096];
        match rustix::io::pread(&fd, &mut data[..], 0) {
            Err(Errno::ISDIR) | Ok(0) => {}
            Ok(2000) => {
                let w = header(&what, &data).0;
                expect_bytes(&what, &data[..2000], &published_data(w, 7)[..2000]);
            }
            other => panic!("{what}: read gives {other:?}, want nothing or all 2000 bytes"),
        }
    }

    /// Notes an operation that others race with: success, or one of these errors.
    fn either(&mut self, what: &str, got: Result<(), &Errno>, errors: &[Errno]) -> bool {
        self.note(&format!("{what}: {got:?}"));
        match got {
            Ok(()) => true,
            Err(e) if errors.contains(e) => false,
            Err(e) => panic!("{what}: {e:?}, want success or one of {errors:?}"),
        }
    }

    /// Writes and reads its own region of a file that all write through names of their own.
    fn group_region(&mut self) {
        let g = self.random.below(GROUPS);
        let path = self.group_path(g);
        let what = format!("region of group {g} through {path}");
        self.note(&what);
        let fd = expect(&what, self.open(&path, OFlags::RDWR, 0), Ok(())).unwrap();
        let start = self.orders.w * REGION;
        let map = if self.random.one_in(2) {
            expect(&what, Mapping::new(&fd, WORKERS * REGION, true), Ok(()))
        } else {
            None
        };
        self.check_region(g, &fd, map.as_ref(), &what);
        let at = self.random.below(REGION);
        let count = 1 + self.random.below(REGION - at);
        let bytes = self.bytes(count);
        match &map {
            Some(map) => map.write(start + at, &bytes),
            None => {
                let got = rustix::io::pwrite(&fd, &bytes, (start + at) as u64);
                assert_eq!(
                    expect(&what, got, Ok(())),
                    Some(count),
                    "{what}: short write"
                );
            }
        }
        self.seen.regions[g][at..at + count].copy_from_slice(&bytes);
        if self.random.one_in(20) {
            expect(&what, fs::fsync(&fd), Ok(()));
        }
        self.check_region(g, &fd, map.as_ref(), &what);
    }

    fn check_region(&self, g: usize, fd: &OwnedFd, map: Option<&Mapping>, what: &str) {
        let want = &self.seen.regions[g];
        let start = self.orders.w * REGION;
        let all = read_all(fd, what);
        assert_eq!(all.len(), WORKERS * REGION, "{what}: size");
        expect_bytes(what, &all[start..start + REGION], want);
        if let Some(map) = map {
            let mut got = vec![0; REGION];
            map.read(start, &mut got);
            expect_bytes(&format!("{what}, mapped"), &got, want);
        }
    }

    fn group_path(&mut self, g: usize) -> String {
        let mut names = vec![group_name(g, self.orders.w)];
        names.extend(self.seen.links[g].iter().cloned());
        names[self.random.below(names.len())].clone()
    }

    /// Adds or removes a name of its own to or from a hard-link group.
    fn group_link(&mut self) {
        let g = self.random.below(GROUPS);
        let links = self.board.group_links(g);
        if self.random.one_in(2)
            && let Some(path) = self.seen.links[g].pop()
        {
            let what = format!("unlink {path} of group {g}");
            links.fetch_sub(1, SeqCst);
            self.note(&what);
            expect(
                &what,
                fs::unlinkat(&self.root, &path, AtFlags::empty()),
                Ok(()),
            );
            return;
        }
        let (s, w) = (self.random.below(6), self.orders.w);
        let path = format!("s{s}/w{w}.g{g}.{}", self.seen.links[g].len());
        if self.seen.links[g].contains(&path) || self.seen.links[g].len() > 5 {
            return;
        }
        let from = self.group_path(g);
        let what = format!("link {from} {path} of group {g}");
        self.note(&what);
        let got = fs::linkat(&self.root, &from, &self.root, &path, AtFlags::empty());
        expect(&what, got, Ok(()));
        self.board.group_links(g).fetch_add(1, SeqCst);
        self.seen.links[g].push(path);
    }

    /// Its names of each group are one file, with as many links as the board has counted. Only
    /// while all are quiet.
    pub fn check_groups(&mut self) {
        for g in 0..GROUPS {
            let path = self.group_path(g);
            let stat = expect(&path, self.stat(&path), Ok(())).unwrap();
            let want = self.board.group_links(g).load(SeqCst);
            assert_eq!(stat.st_nlink, want, "links of group {g}, by {path}");
        }
    }

    /// Each contended name is there if it came more often than it went. Only while all are quiet.
    pub fn check_tokens(&self) {
        for k in 0..TOKENS {
            let (came, went) = (self.board.token_in(k), self.board.token_out(k));
            let (came, went) = (came.load(SeqCst), went.load(SeqCst));
            let path = token_name(k);
            let there = match self.stat(&path) {
                Ok(_) => 1,
                Err(Errno::NOENT) => 0,
                Err(e) => panic!("stat {path}: {e:?}"),
            };
            assert_eq!(
                came,
                went + there,
                "{path}: came {came} times, went {went} times"
            );
        }
    }

    /// Moves a directory on to its next place, if it is this worker's to move.
    fn move_directory(&mut self) {
        let m = self.random.below(MOVING);
        if m != self.orders.w % MOVING || self.orders.w >= MOVING {
            return self.walk_moving();
        }
        let place = self.board.place(m).fetch_add(1, SeqCst) / 2;
        let from = moving_name(m, place % MOVING_PLACES);
        let to = moving_name(m, (place + 1) % MOVING_PLACES);
        let what = format!("rename directory {from} {to}");
        self.note(&what);
        expect(
            &what,
            fs::renameat(&self.root, &from, &self.root, &to),
            Ok(()),
        );
        self.board.place(m).fetch_add(1, SeqCst);
    }

    /// Walks in a directory that may be renamed meanwhile: by descriptor, all of it is there.
    fn walk_moving(&mut self) {
        let m = self.random.below(MOVING);
        let before = self.board.place(m).load(SeqCst);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let found = (0..MOVING_PLACES).find_map(|ahead| {
            let name = moving_name(m, (before / 2 + ahead) % MOVING_PLACES);
            match self.open(&name, flags, 0) {
                Ok(fd) => Some((name, fd)),
                Err(Errno::NOENT) => None,
                Err(e) => panic!("open {name}: {e:?}"),
            }
        });
        let Some((name, top)) = found else {
            let after = self.board.place(m).load(SeqCst);
            assert!(
                before != after || before % 2 == 1,
                "moving directory {m} is at none of its places, though nobody moves it"
            );
            return;
        };
        let what = format!("walk in {name}");
        self.note(&what);
        self.check_moving(m, &top, &what);
        self.make_in_moving(&top, &what);
    }

    fn check_moving(&self, m: usize, top: &OwnedFd, what: &str) {
        let content = moving_content(m);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for dir in ["", "deep", "deep/er"] {
            let path = if dir.is_empty() { "." } else { dir };
            let got = fs::openat(top, path, flags, Mode::empty());
            let fd = expect(&format!("{what}: open {path}"), got, Ok(())).unwrap();
            let mut names: Vec<String> = entries(&fd, 700, true, what)
                .into_iter()
                .map(|entry| entry.name)
                .filter(|name| !name.starts_with('w'))
                .collect();
            names.sort();
            let mut want: Vec<String> = content
                .iter()
                .map(|(path, _)| path.rsplit_once('/').unwrap_or(("", path)))
                .filter(|(parent, _)| *parent == dir)
                .map(|(_, name)| name.to_owned())
                .collect();
            want.sort();
            assert_eq!(names, want, "{what}: listing of {path}");
            let back = fs::statat(&fd, "..", AtFlags::empty());
            expect(&format!("{what}: {path}/.."), back, Ok(()));
        }
        for (path, data) in &content {
            let Some(data) = data else { continue };
            let what = format!("{what}: {path}");
            let got = fs::openat(top, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            let fd = expect(&what, got, Ok(())).unwrap();
            expect_bytes(&what, &read_all(&fd, &what), data);
        }
    }

    fn make_in_moving(&mut self, top: &OwnedFd, what: &str) {
        let name = format!("deep/w{}", self.orders.w);
        let what = format!("{what}: make {name}");
        self.note(&what);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = fs::openat(top, &name, flags, Mode::from(0o644));
        let fd = expect(&what, fd, Ok(())).unwrap();
        let data = self.bytes(500);
        expect(&what, rustix::io::write(&fd, &data), Ok(()));
        expect_bytes(&what, &read_all(&fd, &what), &data);
        expect(&what, fs::unlinkat(top, &name, AtFlags::empty()), Ok(()));
        expect_bytes(&what, &read_all(&fd, &what), &data);
    }
}

fn header(what: &str, data: &[u8]) -> (usize, u64) {
    let line = data.split(|byte| *byte == b'\n').next().unwrap();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace().map(str::parse::<u64>);
    match (words.next(), words.next()) {
        (Some(Ok(w)), Some(Ok(seq))) if (w as usize) < WORKERS => (w as usize, seq),
        _ => panic!(
            "{what}: {} bytes with a broken header: {line:.60}",
            data.len()
        ),
    }
}

/// Panics unless these are the whole of one published file; says whose.
pub fn check_published(what: &str, data: &[u8]) -> (usize, u64) {
    let (w, seq) = header(what, data);
    expect_bytes(what, data, &published_data(w, seq));
    (w, seq)
}
