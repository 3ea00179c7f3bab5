//! The content of a sparse file: its pieces are in the archive, and between them is nothing.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::super::tree::Dir;
use crate::store::codec::tar::{Entry, SparseSegment};

/// Bytes that are read at once.
const BUFFER: usize = 64 << 10;

/// A sparse file that is being compared.
#[derive(Debug)]
pub(super) struct SparseCheck {
    file: File,
    size: u64,
    segments: Vec<SparseSegment>,
    /// What of them is still to come.
    coming: VecDeque<SparseSegment>,
    is_equal: bool,
}

impl SparseCheck {
    /// Before its body comes; `None` when it can't be opened.
    pub(super) fn new(dir: &Dir, name: &[u8], entry: &Entry) -> Option<SparseCheck> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, OsStr::from_bytes(name), flags, Mode::empty()).ok()?;
        let segments = entry.sparse.clone()?;
        Some(SparseCheck {
            file: File::from(file),
            size: entry.size,
            coming: segments.iter().copied().collect(),
            segments,
            is_equal: true,
        })
    }

    /// The next bytes of its body.
    pub(super) fn body(&mut self, mut bytes: &[u8]) {
        let mut buffer = vec![0; BUFFER.min(bytes.len())];
        while !bytes.is_empty() && self.is_equal {
            let Some(segment) = self.coming.front_mut() else {
                return;
            };
            let n = usize::try_from(segment.length).unwrap_or(usize::MAX);
            let n = n.min(bytes.len()).min(buffer.len());
            let (now, later) = bytes.split_at(n);
            let there = buffer.get_mut(..n).unwrap_or_default();
            self.is_equal = self.file.read_exact_at(there, segment.offset).is_ok() && there == now;
            segment.offset += n as u64;
            segment.length -= n as u64;
            if segment.length == 0 {
                self.coming.pop_front();
            }
            bytes = later;
        }
    }

    /// Whether all pieces were equal, and there are zeros only between them.
    pub(super) fn is_as_recorded(&self) -> bool {
        let ends = self.segments.iter().map(|s| s.offset + s.length);
        let starts = self.segments.iter().map(|s| s.offset);
        let mut gaps = std::iter::once(0)
            .chain(ends)
            .zip(starts.chain([self.size]));
        self.is_equal && gaps.all(|(from, to)| self.is_empty(from, to).unwrap_or(true))
    }

    /// Whether nothing but zeros is between two places; holes are skipped.
    fn is_empty(&self, from: u64, to: u64) -> io::Result<bool> {
        let mut buffer = vec![0; BUFFER];
        let mut at = from;
        while at < to {
            let data = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Err(Errno::NXIO) => return Ok(true),
                other => other?,
            };
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data))?.min(to);
            at = data;
            while at < hole {
                let n = buffer
                    .len()
                    .min(usize::try_from(hole - at).unwrap_or(BUFFER));
                let piece = buffer.get_mut(..n).unwrap_or_default();
                self.file.read_exact_at(piece, at)?;
                if piece.iter().any(|byte| *byte != 0) {
                    return Ok(false);
                }
                at += n as u64;
            }
        }
        Ok(true)
    }
}
