//! Where an archive comes from, and whether it can be read in place.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::store::archive::source::{DirectorySource, Source, TarSource};
use crate::store::codec::budget::Budgets;
use crate::store::codec::compress::{Compression, Decoder};
use crate::store::error::{Context as _, Result};

/// Where an archive comes from.
pub enum Input {
    /// A directory, a file, or something else that can be read once.
    Path(PathBuf),
    /// Something that can be read once.
    Stream(Box<dyn Read + Send>),
}

/// An archive, opened.
pub(super) enum Opened {
    Source(Source),
    /// A tar stream.
    Stream(Box<dyn Read + Send>),
}

impl Input {
    /// Looks what it is. A compressed file is a stream: nothing can be found in it without reading all before.
    pub(super) fn open(self) -> Result<Opened> {
        match self {
            Input::Stream(stream) => decoded(stream, Path::new("standard input")),
            Input::Path(path) => open_path(&path),
        }
    }
}

fn open_path(path: &Path) -> Result<Opened> {
    let mut file = File::open(path).context("opening", path)?;
    let metadata = file.metadata().context("looking at", path)?;
    if metadata.is_dir() {
        return Ok(Opened::Source(Source::Directory(DirectorySource::new(
            path,
        )?)));
    }
    if !metadata.is_file() {
        return decoded(Box::new(file), path);
    }
    let compression = {
        let reader = file.try_clone().context("opening", path)?;
        let decoder = Decoder::new(reader, &outer_budgets()).context("reading", path)?;
        decoder.compression()
    };
    file.seek(SeekFrom::Start(0)).context("reading", path)?;
    match compression {
        Compression::None => Ok(Opened::Source(Source::Tar(TarSource::new(path, file)?))),
        _ => decoded(Box::new(file), path),
    }
}

fn decoded(stream: Box<dyn Read + Send>, path: &Path) -> Result<Opened> {
    let decoder = Decoder::new(stream, &outer_budgets()).context("reading", path)?;
    Ok(Opened::Stream(Box::new(decoder)))
}

/// Limits on the archive itself, around those on each layer: its window is taken beside that of a layer.
fn outer_budgets() -> Budgets {
    Budgets {
        unpacked_bytes: 1 << 40,
        zstd_window_log: 26,
        zstd_shared_log: 63,
        ..Budgets::default()
    }
}

/// Fills the buffer as far as the stream goes.
pub(super) fn read_up_to(mut from: impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
