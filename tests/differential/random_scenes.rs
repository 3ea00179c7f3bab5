//! Short sequences that belong together: what programs do, and where copy-up, whiteouts and open
//! files meet. Single random operations hit upon these too rarely.

use std::collections::VecDeque;

use rustix::fs::FileType;

use super::driver::{MAPS, SLOTS};
use super::model::{B, M, O, Op, Rn, Tm, b};
use super::random_paths::OpMaker;
use super::words::{NAMES, join};

type Scene = for<'a, 'b> fn(&'a mut OpMaker<'b>) -> Vec<Op>;

const SCENES: &[Scene] = &[
    |g| g.read_while_written(),
    |g| g.use_after_unlink(),
    |g| g.replace_while_open(),
    |g| g.remove_and_make_again(),
    |g| g.move_and_fill(),
    |g| g.save_like_an_editor(),
];

impl OpMaker<'_> {
    /// The operations of a random scene.
    pub fn scene(&mut self) -> VecDeque<Op> {
        let scene = *self.rng.pick(SCENES);
        scene(self).into()
    }

    fn file(&mut self) -> B {
        self.path_mostly(FileType::RegularFile)
    }

    fn open_at(&mut self, h: usize, path: &B, flags: i32) -> Op {
        Op::Open {
            h,
            path: path.clone(),
            flags: O(flags),
            mode: M(0o644),
        }
    }

    fn put_at(&mut self, path: &B, flags: i32) -> Op {
        Op::Put {
            path: path.clone(),
            flags: O(flags),
            mode: M(0o644),
            off: self.offset(),
            len: self.len(),
            seed: self.seed(),
        }
    }

    /// An old read-only descriptor and mapping see what is written through another.
    fn read_while_written(&mut self) -> Vec<Op> {
        let (path, h, m) = (self.file(), self.rng.index(SLOTS), self.rng.index(MAPS));
        vec![
            self.open_at(h, &path, libc::O_RDONLY),
            Op::MmapKeep { h, m },
            Op::MmapRead(m),
            self.put_at(&path, libc::O_WRONLY),
            Op::Pread {
                h,
                off: 0,
                len: 9000,
            },
            Op::MmapRead(m),
            Op::Truncate {
                path: path.clone(),
                len: self.offset(),
            },
            Op::MmapRead(m),
            Op::Fstat(h),
        ]
    }

    /// A file is used by its descriptor after its name is gone.
    fn use_after_unlink(&mut self) -> Vec<Op> {
        let (path, h) = (self.file(), self.rng.index(SLOTS));
        let flags = *self.rng.pick(&[libc::O_RDWR, libc::O_RDWR, libc::O_RDONLY]);
        vec![
            self.open_at(h, &path, flags),
            Op::Unlink(path.clone()),
            Op::Pread {
                h,
                off: 0,
                len: 5000,
            },
            Op::Pwrite {
                h,
                off: self.offset(),
                len: self.len(),
                seed: self.seed(),
            },
            self.put_at(&path, libc::O_WRONLY | libc::O_CREAT),
            Op::Ftruncate {
                h,
                len: self.offset(),
            },
            Op::Pread {
                h,
                off: 0,
                len: 5000,
            },
            Op::Fsync { h, data: false },
            Op::Fstat(h),
        ]
    }

    /// Another file takes the name of an open one.
    fn replace_while_open(&mut self) -> Vec<Op> {
        let (path, other, h) = (self.file(), self.file(), self.rng.index(SLOTS));
        vec![
            self.open_at(h, &path, libc::O_RDWR),
            Op::Rename {
                from: other,
                to: path.clone(),
                how: Rn::RnPlain,
            },
            Op::Pwrite {
                h,
                off: self.offset(),
                len: self.len(),
                seed: self.seed(),
            },
            Op::Futimens {
                h,
                atime: Tm::Omit,
                mtime: Tm::Now,
            },
            Op::Cat(path),
            Op::Fstat(h),
        ]
    }

    /// `rm -rf D; mkdir D`, and something in it.
    fn remove_and_make_again(&mut self) -> Vec<Op> {
        let dir = self.path_mostly(FileType::Directory);
        let start = [&dir[..], b"/"].concat();
        let mut below: Vec<_> = self
            .paths
            .iter()
            .filter(|x| x.0.starts_with(&start))
            .cloned()
            .collect();
        below.sort_by(|x, y| y.0.cmp(&x.0));
        if below.len() > 25 {
            return vec![Op::ListWhile(dir)];
        }
        let remove = |(path, kind): (Vec<u8>, FileType)| match kind {
            FileType::Directory => Op::Rmdir(B(path)),
            _ => Op::Unlink(B(path)),
        };
        let first = below.last().map(|x| x.0.clone());
        let mut ops: Vec<Op> = below.into_iter().map(remove).collect();
        ops.push(Op::Rmdir(dir.clone()));
        ops.push(Op::Mkdir {
            path: dir.clone(),
            mode: self.dir_mode(),
        });
        let name = first.unwrap_or_else(|| join(&dir, self.rng.pick::<&[u8]>(NAMES)));
        ops.push(self.put_at(&B(name), libc::O_WRONLY | libc::O_CREAT));
        ops.push(Op::List {
            path: dir,
            stat: true,
        });
        ops
    }

    /// A directory moves away, a new one takes its name, and things move between the two.
    fn move_and_fill(&mut self) -> Vec<Op> {
        let (dir, to) = (self.path_mostly(FileType::Directory), self.new_path());
        let rename = |from: Vec<u8>, to: Vec<u8>| Op::Rename {
            from: B(from),
            to: B(to),
            how: Rn::RnPlain,
        };
        let start = [&dir[..], b"/"].concat();
        let inside = self.paths.iter().find(|x| x.0.starts_with(&start));
        let child = inside.map_or(b"a".to_vec(), |x| x.0[start.len()..].to_vec());
        vec![
            rename(dir.to_vec(), to.to_vec()),
            Op::Mkdir {
                path: dir.clone(),
                mode: self.dir_mode(),
            },
            Op::List {
                path: dir.clone(),
                stat: true,
            },
            rename(join(&to, &child), join(&dir, b"moved")),
            Op::ListWhile(to.clone()),
            rename(dir.to_vec(), join(&to, b"back")),
            rename(join(&to, b"back"), dir.to_vec()),
            Op::List {
                path: dir,
                stat: false,
            },
        ]
    }

    /// Write a new file, sync it, move it over the old one.
    fn save_like_an_editor(&mut self) -> Vec<Op> {
        let (path, h) = (self.file(), self.rng.index(SLOTS));
        let temporary = B([&path[..], b"~"].concat());
        vec![
            Op::Cat(path.clone()),
            self.open_at(h, &temporary, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL),
            Op::Write {
                h,
                len: self.len(),
                seed: self.seed(),
            },
            Op::Fchmod {
                h,
                mode: self.file_mode(),
            },
            Op::Fsync { h, data: false },
            Op::Link {
                from: path.clone(),
                to: B([&path[..], b".bak"].concat()),
                follow: false,
            },
            Op::Rename {
                from: temporary,
                to: path.clone(),
                how: Rn::RnPlain,
            },
            Op::Close(h),
            Op::FsyncDir(b(b".")),
            Op::Stat { path, follow: true },
        ]
    }
}
