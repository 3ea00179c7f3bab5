//! The state machine: bytes in, entries out.

use super::header::{self, BLOCK, Block, Dialect, Header, Parsed};
use super::pax::{Merged, Pax};
use super::sparse::{MapReader, checked_segments};
use super::{Entry, EntryKind, Field, Problem, SparseSegment, TarError};
use crate::store::codec::budget::Budgets;

/// What the bytes fed so far come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// All of them were taken; feed more, or [`Parser::finish`].
    More,
    /// The headers of an entry are complete. [`Parser::take_raw`] has their bytes, after the
    /// padding of the entry before.
    Entry(Box<Entry>),
    /// So many bytes, those that were taken, are of the current entry's body.
    Body(usize),
    /// So many bytes, those that were taken, come after the end-of-archive blocks.
    Trailing(usize),
}

/// An archive's parser. Once it has returned an error it must not be fed again.
#[derive(Debug)]
pub struct Parser {
    budgets: Budgets,
    state: State,
    /// A block that is not complete yet, and the bytes that there are.
    block: Box<Block>,
    filled: usize,
    /// Bytes that are neither body nor trailing, since they were taken.
    raw: Vec<u8>,
    /// Bytes consumed.
    offset: u64,
    /// Where the current entry's first header begins.
    entry_at: u64,
    entries: u64,
    trailing: u64,
    global: Pax,
    pending: Pending,
}

#[derive(Debug)]
enum State {
    /// A header, or the end.
    Header,
    /// The body of an extension header.
    Extension { flag: u8, left: u64, pad: u64 },
    /// An extension block of an old GNU sparse file.
    SparseBlock(Box<Header>, Vec<SparseSegment>),
    /// The map at the beginning of a sparse file's body (GNU 1.0).
    SparseMap(Box<Entry>, MapReader),
    /// An entry's body.
    Body { left: u64, pad: u64 },
    /// Bytes up to the next block.
    Pad(u64),
    /// The first block of zeros was seen.
    Zeros,
    /// The second one was, too.
    Trailing,
}

/// What extension headers said about the entry to come.
#[derive(Debug, Default)]
struct Pending {
    pax: Option<Pax>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    /// Bytes of these headers.
    bytes: usize,
    /// The body that is being collected.
    body: Vec<u8>,
}

impl Parser {
    /// At the beginning of an archive.
    pub fn new(budgets: &Budgets) -> Parser {
        Parser {
            budgets: budgets.clone(),
            state: State::Header,
            block: Box::new([0; BLOCK]),
            filled: 0,
            raw: Vec::new(),
            offset: 0,
            entry_at: 0,
            entries: 0,
            trailing: 0,
            global: Pax::default(),
            pending: Pending::default(),
        }
    }

    /// Entries so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The bytes since the last call that are neither body nor trailing.
    pub fn take_raw(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.raw)
    }

    /// Takes bytes off the front of `input` and says how many, and what they came to. With
    /// [`Step::Entry`] it may have taken none.
    ///
    /// # Errors
    /// [`TarError::Bad`].
    pub fn advance(&mut self, input: &[u8]) -> Result<(usize, Step), TarError> {
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                return Ok((taken, Step::More));
            }
            let (n, step) = self.step(rest).map_err(|problem| self.error(problem))?;
            taken += n;
            self.offset += n as u64;
            match step {
                None => {}
                Some(step @ (Step::Body(_) | Step::Trailing(_))) if taken > n => {
                    // Body bytes have to be the ones that were taken, alone.
                    self.unread(&step);
                    self.offset -= n as u64;
                    return Ok((taken - n, Step::More));
                }
                Some(step) => return Ok((taken, step)),
            }
        }
    }

    /// Takes the count of a step back that is not handed out yet.
    fn unread(&mut self, step: &Step) {
        match (&mut self.state, step) {
            (State::Body { left, .. }, Step::Body(n)) => *left += *n as u64,
            (State::Trailing, Step::Trailing(n)) => self.trailing -= *n as u64,
            _ => {}
        }
    }

    /// The input has ended.
    ///
    /// # Errors
    /// [`Problem::Truncated`] within an entry, [`Problem::Dangling`] after an extension header. That
    /// the end-of-archive blocks are missing is no error: Docker takes such layers, too.
    pub fn finish(&self) -> Result<(), TarError> {
        let between = matches!(self.state, State::Header | State::Zeros | State::Trailing)
            || matches!(self.state, State::Body { left: 0, pad: 0 } | State::Pad(0));
        if !between || self.filled > 0 {
            return Err(self.error(Problem::Truncated));
        }
        if self.pending.bytes > 0 {
            return Err(self.error(Problem::Dangling));
        }
        Ok(())
    }

    fn error(&self, problem: Problem) -> TarError {
        let named = [
            &self.pending.path,
            &self.pending.pax.as_ref().and_then(path_of),
        ];
        let path = match &self.state {
            State::SparseBlock(header, _) => Some(header.path.clone()),
            State::SparseMap(entry, _) => Some(entry.path.clone()),
            _ => named.into_iter().flatten().next().cloned(),
        };
        TarError::Bad {
            offset: self.entry_at,
            path,
            problem,
        }
    }

    fn step(&mut self, input: &[u8]) -> Result<(usize, Option<Step>), Problem> {
        let take = |left: u64| usize::try_from(left).map_or(input.len(), |n| n.min(input.len()));
        match &mut self.state {
            State::Body { left: 0, pad } | State::Extension { left: 0, pad, .. } => {
                let pad = *pad;
                self.end_of_body(pad)?;
                Ok((0, None))
            }
            State::Pad(0) => {
                self.state = State::Header;
                Ok((0, None))
            }
            State::Pad(left) => {
                let n = take(*left);
                *left -= n as u64;
                self.keep(input, n);
                Ok((n, None))
            }
            State::Body { left, .. } => {
                let n = take(*left);
                *left -= n as u64;
                Ok((n, Some(Step::Body(n))))
            }
            State::Extension { left, .. } => {
                let n = take(*left);
                *left -= n as u64;
                self.keep(input, n);
                let body = input.get(..n).unwrap_or_default();
                self.pending.body.extend_from_slice(body);
                Ok((n, None))
            }
            State::Trailing => {
                let n = input.len();
                self.trailing = self.trailing.saturating_add(n as u64);
                let limit = self.budgets.trailing_bytes;
                if self.trailing > limit {
                    let what = "bytes after the end of the archive";
                    return Err(Problem::Budget { what, limit });
                }
                Ok((n, Some(Step::Trailing(n))))
            }
            State::Header | State::SparseBlock(..) | State::SparseMap(..) | State::Zeros => {
                let n = take((BLOCK - self.filled) as u64);
                let room = self.block.get_mut(self.filled..self.filled + n);
                if let (Some(room), Some(bytes)) = (room, input.get(..n)) {
                    room.copy_from_slice(bytes);
                }
                self.filled += n;
                self.keep(input, n);
                if self.filled < BLOCK {
                    return Ok((n, None));
                }
                self.filled = 0;
                Ok((n, self.block()?))
            }
        }
    }

    fn keep(&mut self, input: &[u8], n: usize) {
        self.raw
            .extend_from_slice(input.get(..n).unwrap_or_default());
    }

    /// A body, or the body of an extension header, is complete.
    fn end_of_body(&mut self, pad: u64) -> Result<(), Problem> {
        let State::Extension { flag, .. } = self.state else {
            self.state = State::Pad(pad);
            return Ok(());
        };
        let body = std::mem::take(&mut self.pending.body);
        let text = || body.split(|byte| *byte == 0).next().map(<[u8]>::to_vec);
        match flag {
            b'g' => self.global.update(Pax::parse(&body, true, &self.budgets)?),
            b'x' => self.pending.pax = Some(Pax::parse(&body, false, &self.budgets)?),
            b'L' => self.pending.path = text(),
            _ => self.pending.link = text(),
        }
        self.state = State::Pad(pad);
        Ok(())
    }

    /// A whole block was read.
    fn block(&mut self) -> Result<Option<Step>, Problem> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::Zeros => {
                if self.block.iter().any(|byte| *byte != 0) {
                    return Err(Problem::LoneZeros);
                }
                self.state = State::Trailing;
                Ok(None)
            }
            State::SparseBlock(header, segments) => self.sparse_block(header, segments),
            State::SparseMap(entry, map) => self.sparse_map(entry, map),
            _ => self.header_block(),
        }
    }

    fn header_block(&mut self) -> Result<Option<Step>, Problem> {
        if self.pending.bytes == 0 {
            self.entry_at = self.offset.saturating_sub(self.already_taken());
        }
        let header = match header::parse(&self.block) {
            Ok(Parsed::Header(header)) => header,
            Ok(Parsed::Zeros) if self.pending.bytes > 0 => return Err(Problem::Dangling),
            Ok(Parsed::Zeros) => {
                self.state = State::Zeros;
                return Ok(None);
            }
            Err(Field::Checksum) => return Err(Problem::Checksum),
            Err(field) => return Err(Problem::Field(field)),
        };
        match header.flag {
            b'x' | b'g' | b'L' | b'K' => self.begin_extension(&header).map(|()| None),
            b'S' => {
                let Some(sparse) = &header.sparse else {
                    return Err(Problem::Field(Field::Sparse));
                };
                let segments = sparse.segments.clone();
                if sparse.extended {
                    self.state = State::SparseBlock(header, segments);
                    return Ok(None);
                }
                self.emit(&header, Some(segments))
            }
            _ => self.emit(&header, None),
        }
    }

    /// Bytes of the current block that earlier calls took.
    fn already_taken(&self) -> u64 {
        // `offset` is advanced after a step: a block that came in one piece has not been counted.
        self.offset % BLOCK as u64
    }

    fn begin_extension(&mut self, header: &Header) -> Result<(), Problem> {
        let pending = &mut self.pending;
        let twice = match header.flag {
            b'x' => pending.pax.is_some().then_some("PAX header"),
            b'L' => pending.path.is_some().then_some("long name"),
            b'K' => pending.link.is_some().then_some("long link target"),
            _ => None,
        };
        if let Some(what) = twice {
            return Err(Problem::Twice(what));
        }
        let limit = self.budgets.extension_bytes;
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        let bytes = pending.bytes.saturating_add(size).saturating_add(BLOCK);
        if bytes > limit {
            let (what, limit) = ("bytes of extension headers", limit as u64);
            return Err(Problem::Budget { what, limit });
        }
        pending.bytes = bytes;
        self.state = State::Extension {
            flag: header.flag,
            left: header.size,
            pad: padding(header.size),
        };
        Ok(())
    }

    fn sparse_block(
        &mut self,
        header: Box<Header>,
        mut segments: Vec<SparseSegment>,
    ) -> Result<Option<Step>, Problem> {
        let (more, extended) =
            header::parse_sparse_extension(&self.block).map_err(Problem::Field)?;
        if more.is_empty() && extended {
            return Err(Problem::Field(Field::Sparse));
        }
        segments.extend(more);
        self.check_segments(segments.len())?;
        if extended {
            self.state = State::SparseBlock(header, segments);
            return Ok(None);
        }
        self.emit(&header, Some(segments))
    }

    fn check_segments(&self, count: usize) -> Result<(), Problem> {
        let limit = self.budgets.sparse_segments;
        if count > limit {
            let (what, limit) = ("pieces of a sparse file", limit as u64);
            return Err(Problem::Budget { what, limit });
        }
        Ok(())
    }

    fn sparse_map(
        &mut self,
        mut entry: Box<Entry>,
        mut map: MapReader,
    ) -> Result<Option<Step>, Problem> {
        let done = map.feed(&self.block[..], self.budgets.sparse_segments)?;
        if map.bytes > entry.stored {
            return Err(Problem::Field(Field::Sparse));
        }
        if !done {
            self.state = State::SparseMap(entry, map);
            return Ok(None);
        }
        let pad = padding(entry.stored);
        entry.stored -= map.bytes;
        entry.sparse = Some(checked_segments(map.segments, entry.size, entry.stored)?);
        let left = entry.stored;
        self.state = State::Body { left, pad };
        Ok(Some(Step::Entry(entry)))
    }

    /// The last header of an entry was read.
    fn emit(
        &mut self,
        header: &Header,
        old: Option<Vec<SparseSegment>>,
    ) -> Result<Option<Step>, Problem> {
        self.entries += 1;
        let limit = self.budgets.entries;
        if self.entries > limit {
            let what = "entries";
            return Err(Problem::Budget { what, limit });
        }
        let Pending {
            pax, path, link, ..
        } = std::mem::take(&mut self.pending);
        let pax = pax.unwrap_or_default().over(&self.global);
        let mut entry = Box::new(entry_of(header, &pax, path, link)?);
        self.check_lengths(&entry)?;
        let body = if entry.kind == EntryKind::File {
            pax.size.unwrap_or(header.size)
        } else {
            0
        };
        (entry.size, entry.stored) = (body, body);
        let is_file = entry.kind == EntryKind::File;
        if pax.sparse.present && (old.is_some() || !is_file) {
            return Err(Problem::Twice("sparse map"));
        }
        if let (Some(segments), Some(sparse)) = (old, &header.sparse) {
            entry.size = sparse.real_size;
            entry.sparse = Some(checked_segments(segments, entry.size, body)?);
        } else if pax.sparse.present {
            let real_size = pax.sparse.real_size;
            entry.size = real_size.ok_or(Problem::Field(Field::Sparse))?;
            match pax.sparse.version {
                (1, 0) => {
                    self.state = State::SparseMap(entry, MapReader::default());
                    return Ok(None);
                }
                (0, 0 | 1) => {
                    let segments = pax.sparse.segments;
                    entry.sparse = Some(checked_segments(segments, entry.size, body)?);
                }
                _ => return Err(Problem::Field(Field::Sparse)),
            }
        }
        let (left, pad) = (body, padding(body));
        self.state = State::Body { left, pad };
        Ok(Some(Step::Entry(entry)))
    }

    fn check_lengths(&self, entry: &Entry) -> Result<(), Problem> {
        let limit = self.budgets.path_bytes;
        let link = match &entry.kind {
            EntryKind::HardLink(link) | EntryKind::Symlink(link) => link.len(),
            _ => 0,
        };
        let too_long = |what| {
            let limit = limit as u64;
            Err(Problem::Budget { what, limit })
        };
        if entry.path.len() > limit {
            return too_long("bytes of a path");
        }
        if link > limit {
            return too_long("bytes of a link target");
        }
        Ok(())
    }
}

fn path_of(pax: &Pax) -> Option<Vec<u8>> {
    pax.path.as_set().cloned()
}

/// Bytes from the end of a body to the next block.
pub(super) fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

fn entry_of(
    header: &Header,
    pax: &Merged,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
) -> Result<Entry, Problem> {
    let path = one_of(path, pax.sparse.name.clone().or(pax.path.clone()), "path")?;
    let path = path.unwrap_or_else(|| header.path.clone());
    let link = one_of(link, pax.link.clone(), "link target")?;
    let link = link.unwrap_or_else(|| header.link.clone());
    if path.is_empty() {
        return Err(Problem::Field(Field::Path));
    }
    let id = |value: u64, field| match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Problem::Field(field)),
    };
    Ok(Entry {
        kind: kind_of(header, pax, &path, link)?,
        path,
        mode: u32::try_from(header.mode & 0o7777).unwrap_or_default(),
        uid: id(pax.uid.unwrap_or(header.uid), Field::Uid)?,
        gid: id(pax.gid.unwrap_or(header.gid), Field::Gid)?,
        mtime: pax.mtime.unwrap_or_else(|| header.time()),
        atime: pax.atime,
        size: 0,
        stored: 0,
        xattrs: pax.xattrs.clone(),
        sparse: None,
    })
}

fn one_of<T>(gnu: Option<T>, pax: Option<T>, what: &'static str) -> Result<Option<T>, Problem> {
    match (gnu, pax) {
        (Some(_), Some(_)) => Err(Problem::Twice(what)),
        (gnu, pax) => Ok(gnu.or(pax)),
    }
}

fn kind_of(
    header: &Header,
    pax: &Merged,
    path: &[u8],
    link: Vec<u8>,
) -> Result<EntryKind, Problem> {
    let device = || {
        let (major, minor) = header.device;
        let major = pax.major.unwrap_or(major);
        let minor = pax.minor.unwrap_or(minor);
        // Linux: 12 bits and 20 bits.
        match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major @ 0..=0xfff), Ok(minor @ 0..=0xf_ffff)) => Ok((major, minor)),
            _ => Err(Problem::Field(Field::Device)),
        }
    };
    let target = |link: Vec<u8>| match link.is_empty() {
        true => Err(Problem::Field(Field::Link)),
        false => Ok(link),
    };
    let slashed = path.ends_with(b"/");
    Ok(match header.flag {
        0 if slashed => EntryKind::Dir,
        b'0' if slashed && header.dialect == Dialect::V7 => EntryKind::Dir,
        b'0' | b'7' | b'S' if slashed => return Err(Problem::SlashedFile),
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink(target(link)?),
        b'2' => EntryKind::Symlink(target(link)?),
        b'3' => {
            let (major, minor) = device()?;
            EntryKind::Char { major, minor }
        }
        b'4' => {
            let (major, minor) = device()?;
            EntryKind::Block { major, minor }
        }
        b'5' => EntryKind::Dir,
        b'6' => EntryKind::Fifo,
        unknown => return Err(Problem::Type(char::from(unknown))),
    })
}
