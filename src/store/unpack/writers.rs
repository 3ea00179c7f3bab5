//! The threads that create regular files.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::attrs::{Attributes, Plan};
use super::chunks::Piece;
use super::tree::Dir;
use super::{FileFacts, FileSink, Options, UnpackError};
use crate::store::codec::digest::{Digest, Hasher};
use crate::store::codec::tar::{Entry, SparseSegment};
use crate::sys::fs::start_writeback;

/// Bytes of a file that is handed over as a whole, at most.
pub(super) const WHOLE: u64 = 256 * 1024;
/// What is handed over at once, to spare wake-ups: files, bytes, buffers that they lie in.
const BATCH_FILES: usize = 64;
const BATCH_BYTES: u64 = 1 << 20;
const BATCH_CHUNKS: u64 = 8;
/// Batches that wait for a thread, and pieces of a large file that wait for theirs.
const BATCHES: usize = 3;
const PIECES: usize = 16;

/// Bytes of a file from which on it is worth a system call to have it written to disk at once.
const WRITTEN_BACK: u64 = 64 << 10;

/// A regular file to be created.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) dir: Arc<Dir>,
    pub(super) path: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) size: u64,
    pub(super) stored: u64,
    pub(super) sparse: Option<Vec<SparseSegment>>,
    pub(super) plan: Plan,
}

/// Where a job's bytes come from.
#[derive(Debug)]
enum Body {
    Whole(Vec<Piece>),
    Stream(Receiver<Piece>),
}

type Batch = Vec<(Job, Body)>;

/// What the threads share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    failed: AtomicBool,
    /// The first error.
    error: Mutex<Option<UnpackError>>,
}

impl Shared {
    fn fail(&self, error: UnpackError) {
        self.error.lock().get_or_insert(error);
        // Release: who sees the flag finds the error.
        self.failed.store(true, Ordering::Release);
    }

    pub(super) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(super) fn take_error(&self) -> Option<UnpackError> {
        self.error.lock().take()
    }
}

/// A thread has failed; the error is in [`Shared`].
#[derive(Debug)]
pub(super) struct Stopped;

/// The side that hands files over.
#[derive(Debug)]
pub(super) struct Writers<'scope> {
    to: Option<Sender<Batch>>,
    threads: Vec<ScopedJoinHandle<'scope, ()>>,
    shared: &'scope Shared,
    batch: Batch,
    batch_bytes: u64,
    first_chunk: u64,
    current: Option<Current>,
}

/// The file whose body is being read.
#[derive(Debug)]
enum Current {
    Whole(Job, Vec<Piece>),
    Stream(Sender<Piece>),
}

impl<'scope> Writers<'scope> {
    pub(super) fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        shared: &'scope Shared,
        attributes: &'scope Attributes<'scope>,
        sink: Option<&'scope dyn FileSink>,
        options: &Options,
    ) -> Writers<'scope> {
        let (to, from) = bounded::<Batch>(BATCHES);
        let threads = (0..options.writers.max(1)).map(|_| {
            let worker = Worker {
                from: from.clone(),
                shared,
                attributes,
                sink,
                hash: options.hash_files,
                write_back: options.write_back,
            };
            scope.spawn(move || worker.run())
        });
        Writers {
            threads: threads.collect(),
            to: Some(to),
            shared,
            batch: Vec::new(),
            batch_bytes: 0,
            first_chunk: 0,
            current: None,
        }
    }

    /// Begins a file; its body follows.
    pub(super) fn begin(&mut self, job: Job) -> Result<(), Stopped> {
        if job.stored <= WHOLE {
            self.current = Some(Current::Whole(job, Vec::new()));
            return Ok(());
        }
        // Nothing may wait here while a large file passes: it would keep buffers from the pool.
        self.flush()?;
        let (to, pieces) = bounded(PIECES);
        self.send(vec![(job, Body::Stream(pieces))])?;
        self.current = Some(Current::Stream(to));
        Ok(())
    }

    /// Bytes of the file that was begun.
    pub(super) fn body(&mut self, piece: Piece) -> Result<(), Stopped> {
        match &mut self.current {
            Some(Current::Whole(_, pieces)) => {
                pieces.push(piece);
                Ok(())
            }
            Some(Current::Stream(to)) => to.send(piece).map_err(|_| Stopped),
            None => Ok(()),
        }
    }

    /// Ends the file that was begun; `at` is the number of the buffer that is being parsed.
    pub(super) fn end(&mut self, at: u64) -> Result<(), Stopped> {
        let Some(Current::Whole(job, pieces)) = self.current.take() else {
            return Ok(());
        };
        if self.batch.is_empty() {
            self.first_chunk = pieces.first().map_or(at, |piece| piece.chunk.number);
        }
        self.batch_bytes += job.stored;
        self.batch.push((job, Body::Whole(pieces)));
        let full = self.batch.len() >= BATCH_FILES
            || self.batch_bytes >= BATCH_BYTES
            || at.saturating_sub(self.first_chunk) >= BATCH_CHUNKS;
        if full { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Stopped> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        self.send(batch)
    }

    fn send(&mut self, batch: Batch) -> Result<(), Stopped> {
        if self.shared.failed() {
            return Err(Stopped);
        }
        let to = self.to.as_ref().ok_or(Stopped)?;
        to.send(batch).map_err(|_| Stopped)
    }

    /// Waits until all files are written.
    pub(super) fn finish(&mut self) -> Result<(), Stopped> {
        self.current = None;
        self.flush()?;
        self.to = None;
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| Stopped)?;
        }
        if self.shared.failed() {
            Err(Stopped)
        } else {
            Ok(())
        }
    }
}

/// One thread.
struct Worker<'a> {
    from: Receiver<Batch>,
    shared: &'a Shared,
    attributes: &'a Attributes<'a>,
    sink: Option<&'a dyn FileSink>,
    hash: bool,
    write_back: bool,
}

impl Worker<'_> {
    fn run(self) {
        for batch in &self.from {
            for (job, body) in batch {
                if self.shared.failed() {
                    break;
                }
                if let Err(source) = self.create(&job, body) {
                    let path = super::shown(&job.path);
                    self.shared.fail(UnpackError::Io { path, source });
                }
            }
        }
    }

    fn create(&self, job: &Job, body: Body) -> io::Result<()> {
        let hash = self.hash && job.sparse.is_none();
        let mut target = Target::create(job)?;
        let facts = |digest| FileFacts {
            path: &job.path,
            size: job.size,
            digest,
        };
        let facts = match body {
            Body::Whole(pieces) => {
                let facts = facts(hash.then(|| digest_of(&pieces)));
                let filled = match self.sink {
                    Some(sink) => sink.fill(&facts, target.file.as_fd())?,
                    None => false,
                };
                for piece in pieces.iter().filter(|_| !filled) {
                    target.write(piece.bytes())?;
                }
                facts
            }
            Body::Stream(pieces) => {
                let mut hasher = Hasher::new();
                let mut got = 0;
                for piece in &pieces {
                    let bytes = piece.bytes();
                    if hash {
                        hasher.update(bytes);
                    }
                    got += bytes.len() as u64;
                    target.write(bytes)?;
                }
                if got < job.stored {
                    // The other side has failed, and says why.
                    return Ok(());
                }
                let facts = facts(hash.then(|| hasher.finish().0));
                if let Some(sink) = self.sink {
                    sink.fill(&facts, target.file.as_fd())?;
                }
                facts
            }
        };
        if self.write_back && job.stored >= WRITTEN_BACK {
            target.start_writeback();
        }
        target.finish(job, self.attributes)?;
        match self.sink {
            Some(sink) => sink.written(&facts),
            None => Ok(()),
        }
    }
}

fn digest_of(pieces: &[Piece]) -> Digest {
    let mut hasher = Hasher::new();
    for piece in pieces {
        hasher.update(piece.bytes());
    }
    hasher.finish().0
}

/// A file that is being written.
struct Target {
    file: File,
    /// The pieces that are still to be written, of a sparse file.
    sparse: Option<VecDeque<SparseSegment>>,
}

impl Target {
    fn create(job: &Job) -> io::Result<Target> {
        // With O_EXCL a symlink is never followed, and nothing is ever overwritten.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let name = OsStr::from_bytes(&job.name);
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::openat(&*job.dir, name, flags | OFlags::CLOEXEC, mode)?;
        let file = File::from(fd);
        let sparse = job.sparse.clone().map(VecDeque::from);
        Ok(Target { file, sparse })
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Some(segments) = &mut self.sparse else {
            return self.file.write_all(bytes);
        };
        while !bytes.is_empty() {
            let Some(segment) = segments.front_mut() else {
                return Err(io::Error::other(
                    "more data than the sparse map has room for",
                ));
            };
            let n = usize::try_from(segment.length).map_or(bytes.len(), |n| n.min(bytes.len()));
            let (now, later) = bytes.split_at(n);
            self.file.seek(SeekFrom::Start(segment.offset))?;
            self.file.write_all(now)?;
            segment.offset += n as u64;
            segment.length -= n as u64;
            if segment.length == 0 {
                segments.pop_front();
            }
            bytes = later;
        }
        Ok(())
    }

    fn start_writeback(&self) {
        if let Err(errno) = start_writeback(self.file.as_fd()) {
            tracing::debug!(%errno, "a file is written back later");
        }
    }

    fn finish(self, job: &Job, attributes: &Attributes<'_>) -> io::Result<()> {
        if self.sparse.is_some() {
            self.file.set_len(job.size)?;
        }
        attributes.apply_to_file(self.file.as_fd(), &job.plan)
    }
}

impl Job {
    pub(super) fn new(dir: Arc<Dir>, path: &[u8], name: &[u8], entry: Entry, plan: Plan) -> Job {
        Job {
            dir,
            path: path.to_vec(),
            name: name.to_vec(),
            size: entry.size,
            stored: entry.stored,
            sparse: entry.sparse,
            plan,
        }
    }
}
