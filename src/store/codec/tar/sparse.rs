//! Maps of sparse files. Pure.

use super::pax::decimal;
use super::{Field, Problem, SparseSegment};

/// Decimal numbers, one a line: how many pieces, then offset and length of each.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    count: Option<u64>,
    offset: Option<u64>,
    digits: Vec<u8>,
    /// The pieces so far.
    pub(super) segments: Vec<SparseSegment>,
    /// Bytes that the map takes, so far.
    pub(super) bytes: u64,
}

/// Pieces in order, within the file, and together as long as the body. Empty ones are dropped.
pub(super) fn checked_segments(
    segments: Vec<SparseSegment>,
    size: u64,
    stored: u64,
) -> Result<Vec<SparseSegment>, Problem> {
    const BAD: Problem = Problem::Field(Field::Sparse);
    let (mut end, mut sum) = (0_u64, 0_u64);
    for segment in &segments {
        if segment.offset < end {
            return Err(BAD);
        }
        end = segment.offset.checked_add(segment.length).ok_or(BAD)?;
        sum += segment.length;
    }
    if end > size || sum != stored {
        return Err(BAD);
    }
    Ok(segments
        .into_iter()
        .filter(|segment| segment.length > 0)
        .collect())
}

impl MapReader {
    /// Takes a block; `true` once the map is complete, what is left of the block being padding.
    pub(super) fn feed(&mut self, block: &[u8], most: usize) -> Result<bool, Problem> {
        const BAD: Problem = Problem::Field(Field::Sparse);
        self.bytes += block.len() as u64;
        for byte in block {
            if *byte != b'\n' {
                self.digits.push(*byte);
                if self.digits.len() > 20 {
                    return Err(BAD);
                }
                continue;
            }
            let number = decimal(&std::mem::take(&mut self.digits)).ok_or(BAD)?;
            match (self.count, self.offset.take()) {
                (None, _) if number > most as u64 => {
                    let (what, limit) = ("pieces of a sparse file", most as u64);
                    return Err(Problem::Budget { what, limit });
                }
                (None, _) => self.count = Some(number),
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => {
                    let length = number;
                    self.segments.push(SparseSegment { offset, length });
                }
            }
            if self.count == Some(self.segments.len() as u64) && self.offset.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
