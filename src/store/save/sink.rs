//! Where an archive goes: a directory, or a tar stream.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::store::error::{Context as _, Result, StoreError};

/// Bytes of a tar's block.
const BLOCK: u64 = 512;

/// Takes the members of an archive.
pub trait Sink {
    /// A member of exactly `size` bytes, which `write` writes.
    fn member(
        &mut self,
        name: &str,
        size: u64,
        write: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
    ) -> Result<()>;

    /// There are no more.
    fn finish(&mut self) -> Result<()>;
}

/// A directory. Members appear whole or not at all.
pub struct DirectorySink {
    path: PathBuf,
}

impl DirectorySink {
    /// Writes to the directory at `path`, which is made, or is empty.
    pub fn new(path: &Path) -> Result<DirectorySink> {
        fs::create_dir_all(path).context("making the directory", path)?;
        if fs::read_dir(path)
            .context("listing", path)?
            .next()
            .is_some()
        {
            let error = io::Error::from(io::ErrorKind::DirectoryNotEmpty);
            return Err(error).context("saving to", path);
        }
        Ok(DirectorySink {
            path: path.to_owned(),
        })
    }
}

impl Sink for DirectorySink {
    fn member(
        &mut self,
        name: &str,
        size: u64,
        write: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).context("making the directory", parent)?;
        }
        let temporary = path.with_extension("part");
        let file = File::create(&temporary).context("making", &temporary)?;
        let mut writer = Exact::new(BufWriter::new(file), size);
        write(&mut writer)?;
        writer.finish(&path)?;
        fs::rename(&temporary, &path).context("renaming to", &path)
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A tar stream. All times are 0 and all owners root: the same images give the same bytes.
pub struct TarSink<W: Write> {
    out: W,
}

impl<W: Write> TarSink<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> TarSink<W> {
        TarSink { out }
    }

    /// The stream.
    pub fn into_inner(self) -> W {
        self.out
    }
}

impl<W: Write> Sink for TarSink<W> {
    fn member(
        &mut self,
        name: &str,
        size: u64,
        write: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).context("naming", name)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.out
            .write_all(header.as_bytes())
            .context("writing", name)?;
        let mut writer = Exact::new(&mut self.out, size);
        write(&mut writer)?;
        writer.finish(Path::new(name))?;
        let padding = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0);
        let zeros = [0; BLOCK as usize];
        self.out
            .write_all(zeros.get(..padding).unwrap_or_default())
            .context("writing", name)
    }

    fn finish(&mut self) -> Result<()> {
        self.out
            .write_all(&[0; 2 * BLOCK as usize])
            .and_then(|()| self.out.flush())
            .context("writing", "the archive")
    }
}

/// Lets exactly so many bytes through.
struct Exact<W: Write> {
    inner: W,
    left: u64,
}

impl<W: Write> Exact<W> {
    fn new(inner: W, size: u64) -> Exact<W> {
        Exact { inner, left: size }
    }

    fn finish(mut self, path: &Path) -> Result<()> {
        if self.left > 0 {
            let what = format!("{} is {} bytes short", path.display(), self.left);
            return Err(StoreError::Damaged(what));
        }
        self.inner.flush().context("writing", path)
    }
}

impl<W: Write> Write for Exact<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if buffer.len() as u64 > self.left {
            return Err(io::Error::other("there is more of it than there should be"));
        }
        let written = self.inner.write(buffer)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
