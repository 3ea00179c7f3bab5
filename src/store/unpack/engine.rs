//! One entry after another: what can be made at once is made, files go to the writers, and what
//! depends on the rest of the archive waits for [`finish`](super::finish).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::attrs::{Attributes, Plan, set_times};
use super::chunks::{Chunk, Piece};
use super::path::{CleanPath, Meaning, meaning};
use super::tree::{Dir, Key, Seen, Tree, empty_file};
use super::writers::{Job, Stopped, Writers};
use super::{EntryProblem, Failure, Options, Refused, UnpackError, shown};
use crate::format::override_stat::OverrideKind;
use crate::store::codec::crc64::Crc64;
use crate::store::codec::tar::{Entry, EntryKind};
use crate::store::codec::tar_split::Recorder;

/// A hard link that waits for its target.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) path: CleanPath,
    pub(super) target: CleanPath,
}

/// What is counted on the way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) entries: u64,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// The state of an unpacking.
pub(super) struct Engine<'a, 'r> {
    pub(super) options: &'a Options,
    pub(super) attributes: &'a Attributes<'a>,
    pub(super) tree: Tree,
    pub(super) writers: Writers<'a>,
    recorder: Option<Recorder<&'r mut (dyn Write + Send + 'r)>>,
    /// Directories in the order of their making, and what they get at the end; the root is the first.
    pub(super) dirs: Vec<(Vec<u8>, Option<Plan>)>,
    /// The paths of directories that no entry has described yet.
    pub(super) implied: BTreeSet<Vec<u8>>,
    pub(super) links: Vec<Link>,
    /// Directory and hidden name.
    pub(super) whiteouts: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) opaque: Vec<Vec<u8>>,
    deferred: usize,
    pub(super) totals: Totals,
    current: Current,
    /// Of the current entry's body, for the record.
    crc: Crc64,
}

/// What becomes of the body of the current entry.
enum Current {
    /// There is none, or it has ended.
    None,
    /// It is not kept in the layer: the record has it.
    Segments { left: u64 },
    /// A file as it is in the archive, so that the record needs but its checksum.
    File { left: u64, name: Vec<u8>, size: u64 },
    /// A sparse file: the record has its body, the layer has it with holes.
    Sparse { left: u64 },
}

impl<'a, 'r> Engine<'a, 'r> {
    pub(super) fn new(
        options: &'a Options,
        attributes: &'a Attributes<'a>,
        tree: Tree,
        writers: Writers<'a>,
        record: Option<&'r mut (dyn Write + Send + 'r)>,
    ) -> Engine<'a, 'r> {
        Engine {
            options,
            attributes,
            tree,
            writers,
            recorder: record.map(Recorder::new),
            dirs: vec![(Vec::new(), None)],
            implied: BTreeSet::new(),
            links: Vec::new(),
            whiteouts: Vec::new(),
            opaque: Vec::new(),
            deferred: 0,
            totals: Totals::default(),
            current: Current::None,
            crc: Crc64::new(),
        }
    }

    /// Bytes of the archive that are not of a file.
    pub(super) fn segment(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        match &mut self.recorder {
            Some(recorder) => recorder.segment(bytes).map_err(UnpackError::Record),
            None => Ok(()),
        }
    }

    /// An entry's headers, which are recorded already. `at` is the number of the buffer.
    pub(super) fn entry(&mut self, entry: Entry, at: u64) -> Result<(), UnpackError> {
        self.totals.entries += 1;
        let (name, stored, size) = (entry.path.clone(), entry.stored, entry.size);
        let is_plain_file = entry.kind == EntryKind::File && entry.sparse.is_none();
        let is_kept = match self.make(entry) {
            Ok(kept) => kept,
            Err(failure) => return Err(failure.at(&name)),
        };
        let left = stored;
        self.crc = Crc64::new();
        self.current = match (is_kept, is_plain_file) {
            (true, true) => Current::File { left, name, size },
            (is_kept, _) => {
                if let Some(recorder) = &mut self.recorder {
                    let recorded = recorder.file(&name, 0, [0; 8]);
                    recorded.map_err(UnpackError::Record)?;
                }
                if is_kept {
                    Current::Sparse { left }
                } else {
                    Current::Segments { left }
                }
            }
        };
        if stored == 0 {
            self.end_of_entry(at)
        } else {
            Ok(())
        }
    }

    /// Bytes of the current entry's body.
    pub(super) fn body(
        &mut self,
        chunk: &Arc<Chunk>,
        range: Range<usize>,
    ) -> Result<(), UnpackError> {
        let piece = Piece {
            chunk: Arc::clone(chunk),
            range,
        };
        let n = piece.bytes().len() as u64;
        let (left, for_record, for_writers) = match &mut self.current {
            Current::None => return Ok(()),
            Current::Segments { left } => (left, true, false),
            Current::Sparse { left } => (left, true, true),
            Current::File { left, .. } => {
                if self.recorder.is_some() {
                    self.crc.update(piece.bytes());
                }
                (left, false, true)
            }
        };
        *left = left.saturating_sub(n);
        let ended = *left == 0;
        if for_record {
            self.segment(piece.bytes())?;
        }
        if for_writers {
            self.writers.body(piece).map_err(UnpackError::from)?;
        }
        if ended {
            self.end_of_entry(chunk.number)
        } else {
            Ok(())
        }
    }

    fn end_of_entry(&mut self, at: u64) -> Result<(), UnpackError> {
        let current = std::mem::replace(&mut self.current, Current::None);
        if let Current::File { name, size, .. } = &current
            && let Some(recorder) = &mut self.recorder
        {
            let recorded = recorder.file(name, *size, self.crc.sum());
            recorded.map_err(UnpackError::Record)?;
        }
        match current {
            Current::File { .. } | Current::Sparse { .. } => Ok(self.writers.end(at)?),
            Current::None | Current::Segments { .. } => Ok(()),
        }
    }

    /// Makes, or notes, what an entry says. `true`: a regular file was begun, the body is its content.
    fn make(&mut self, entry: Entry) -> Result<bool, Failure> {
        let path = CleanPath::new(&entry.path, self.options.budgets.path_components)?;
        let (parent, name) = path.split();
        match meaning(&path)? {
            Meaning::Ignored => Ok(false),
            Meaning::Opaque => {
                let dir = self.dir(parent)?;
                self.claim(&dir, name)?;
                self.defer(parent.len())?;
                self.opaque.push(parent.to_vec());
                Ok(false)
            }
            Meaning::Hides(hidden) => {
                let dir = match self.dir(parent) {
                    // umoci writes a whiteout for everything below a directory that became a file. What
                    // is no directory hides all of that already.
                    Err(Failure::Problem(EntryProblem::ParentNotDir)) => return Ok(false),
                    other => other?,
                };
                self.claim(&dir, name)?;
                self.defer(path.as_bytes().len())?;
                self.whiteouts.push((parent.to_vec(), hidden.to_vec()));
                Ok(false)
            }
            Meaning::Object => self.object(&path, entry),
        }
    }

    fn object(&mut self, path: &CleanPath, entry: Entry) -> Result<bool, Failure> {
        let (parent, name) = path.split();
        let mut plan = self.attributes.plan(&entry)?;
        if path.is_root() {
            return self.root(&entry, plan).map(|()| false);
        }
        let dir = self.dir(parent)?;
        if entry.kind == EntryKind::Dir {
            return self.directory(path, &dir, plan).map(|()| false);
        }
        let key = self.claim(&dir, name)?;
        self.tree.make_room(&dir, name, false)?;
        match &entry.kind {
            EntryKind::File => {
                self.count_file(entry.size)?;
                let job = Job::new(dir, path.as_bytes(), name, entry, plan);
                self.writers.begin(job)?;
                return Ok(true);
            }
            EntryKind::HardLink(target) => {
                let target = CleanPath::new(target, self.options.budgets.path_components)?;
                self.defer(path.as_bytes().len() + target.as_bytes().len())?;
                self.tree.see(key, Seen::Link);
                let path = path.clone();
                self.links.push(Link { path, target });
                return Ok(false);
            }
            EntryKind::Symlink(target) => {
                let target = OsStr::from_bytes(target);
                rustix::fs::symlinkat(target, &*dir, OsStr::from_bytes(name))?;
            }
            _ => self.special(&dir, name, &entry, &mut plan)?,
        }
        let is_symlink = matches!(entry.kind, EntryKind::Symlink(_));
        self.attributes
            .apply(dir.as_fd(), name, &plan, is_symlink)?;
        set_times(dir.as_fd(), name, &plan)?;
        Ok(false)
    }

    fn root(&mut self, entry: &Entry, plan: Plan) -> Result<(), Failure> {
        if entry.kind != EntryKind::Dir {
            return Err(EntryProblem::RootNotDir.into());
        }
        match self.dirs.first_mut() {
            Some((_, Some(_))) => Err(EntryProblem::Duplicate.into()),
            Some((_, none)) => {
                *none = Some(plan);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn directory(&mut self, path: &CleanPath, dir: &Arc<Dir>, plan: Plan) -> Result<(), Failure> {
        let (_, name) = path.split();
        let key = self.tree.key(dir, name);
        match self.tree.seen(&key) {
            Some(Seen::Implied(number)) => {
                if let Some((_, implied)) = self.dirs.get_mut(number as usize) {
                    *implied = Some(plan);
                }
                self.implied.remove(path.as_bytes());
                self.tree.see(key, Seen::Dir(number));
            }
            Some(_) => return Err(EntryProblem::Duplicate.into()),
            None => {
                if !self.tree.make_room(dir, name, true)? {
                    rustix::fs::mkdirat(&**dir, OsStr::from_bytes(name), Mode::RWXU)?;
                }
                let number = self.note_dir(path.as_bytes(), plan)?;
                self.tree.see(key, Seen::Dir(number));
            }
        }
        Ok(())
    }

    fn note_dir(&mut self, path: &[u8], plan: Plan) -> Result<u32, Failure> {
        let xattrs: usize = plan.xattrs.iter().map(|(k, v)| k.len() + v.len()).sum();
        self.defer(path.len() + size_of::<Plan>() + xattrs)?;
        let number = u32::try_from(self.dirs.len()).unwrap_or(u32::MAX);
        self.dirs.push((path.to_vec(), Some(plan)));
        Ok(number)
    }

    /// The directory of a path; what it implies is noted.
    fn dir(&mut self, path: &[u8]) -> Result<Arc<Dir>, Failure> {
        let dir = self.tree.dir(path);
        for (path, key) in std::mem::take(&mut self.tree.implied) {
            let plan = self.attributes.plan_implied()?;
            let number = self.note_dir(&path, plan)?;
            self.tree.see(key, Seen::Implied(number));
            self.implied.insert(path);
        }
        dir
    }

    /// Takes a place that nothing of this archive may have yet.
    fn claim(&mut self, dir: &Dir, name: &[u8]) -> Result<Key, Failure> {
        let key = self.tree.key(dir, name);
        match self.tree.seen(&key) {
            Some(Seen::Implied(_)) => Err(EntryProblem::ReplacesDir.into()),
            Some(_) => Err(EntryProblem::Duplicate.into()),
            None => {
                self.tree.see(key, Seen::Other);
                Ok(key)
            }
        }
    }

    fn defer(&mut self, bytes: usize) -> Result<(), Failure> {
        self.deferred = self.deferred.saturating_add(bytes);
        let limit = self.options.budgets.deferred_bytes;
        if self.deferred > limit {
            let what = "bytes of directories, hard links and whiteouts";
            let limit = limit as u64;
            return Err(EntryProblem::Budget { what, limit }.into());
        }
        Ok(())
    }

    fn count_file(&mut self, size: u64) -> Result<(), Failure> {
        self.totals.files += 1;
        self.totals.bytes = self.totals.bytes.saturating_add(size);
        let limit = self.options.budgets.unpacked_bytes;
        if self.totals.bytes > limit {
            let what = "bytes of files";
            return Err(EntryProblem::Budget { what, limit }.into());
        }
        Ok(())
    }

    /// A device or a named pipe; where that is refused, and wanted, an empty file that stands for it.
    fn special(
        &self,
        dir: &Dir,
        name: &[u8],
        entry: &Entry,
        plan: &mut Plan,
    ) -> Result<(), Failure> {
        let (kind, major, minor, stand_in) = match entry.kind {
            EntryKind::Char { major: 0, minor: 0 } => {
                // It would hide what is below, without being a whiteout in the archive.
                return Err(EntryProblem::WhiteoutDevice.into());
            }
            EntryKind::Char { major, minor } => {
                let stand_in = OverrideKind::Char { major, minor };
                (FileType::CharacterDevice, major, minor, stand_in)
            }
            EntryKind::Block { major, minor } => {
                let stand_in = OverrideKind::Block { major, minor };
                (FileType::BlockDevice, major, minor, stand_in)
            }
            _ => (FileType::Fifo, 0, 0, OverrideKind::Pipe),
        };
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::RUSR | Mode::WUSR;
        match rustix::fs::mknodat(dir, OsStr::from_bytes(name), kind, mode, device) {
            Ok(()) => Ok(()),
            Err(Errno::PERM) if self.options.refused == Refused::OverrideStat => {
                self.attributes.stand_in(plan, entry, stand_in);
                empty_file(dir, name)
            }
            Err(Errno::PERM) => Err(EntryProblem::DeviceRefused.into()),
            Err(e) => Err(e.into()),
        }
    }
}

impl From<Stopped> for UnpackError {
    fn from(_: Stopped) -> UnpackError {
        UnpackError::Stopped
    }
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Failure {
        Failure::Stopped
    }
}

impl Failure {
    /// With the entry that it is about.
    pub(super) fn at(self, path: &[u8]) -> UnpackError {
        let path = shown(path);
        match self {
            Failure::Problem(problem) => UnpackError::Entry { path, problem },
            Failure::Io(source) => UnpackError::Io { path, source },
            Failure::Stopped => UnpackError::Stopped,
        }
    }
}
