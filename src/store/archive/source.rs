//! Archives that are read in place: directories, and tar files that can be seeked in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::documents::MAX_DOCUMENT;
use super::resolve::{Documents, link_target, member_name};
use crate::store::error::{Context as _, Result, StoreError};

/// Members that an archive may have.
pub const MAX_MEMBERS: usize = 100_000;
/// Links that one name may lead through.
const MAX_LINKS: usize = 16;

/// A member, open for reading.
pub struct Member {
    /// Its bytes.
    pub content: Box<dyn Read + Send>,
    /// How many there are.
    pub size: u64,
}

/// An archive whose members can be read in any order, several at once.
pub enum Source {
    /// A directory.
    Directory(DirectorySource),
    /// A tar file.
    Tar(TarSource),
}

/// A directory.
pub struct DirectorySource {
    path: PathBuf,
    fd: OwnedFd,
}

/// A tar file and where its members are.
pub struct TarSource {
    path: PathBuf,
    file: Arc<File>,
    members: BTreeMap<String, Place>,
}

/// Where the content of a member is.
#[derive(Debug, Clone)]
enum Place {
    /// In the file: offset and bytes.
    Data(u64, u64),
    /// Another member.
    Link(String),
}

impl Source {
    /// Opens a member; `None` when there is none of this name.
    pub fn open(&self, name: &str) -> Result<Option<Member>> {
        match self {
            Source::Directory(source) => source.open(name),
            Source::Tar(source) => source.open(name),
        }
    }
}

impl Documents for Source {
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(member) = self.open(name)? else {
            return Ok(None);
        };
        if member.size > MAX_DOCUMENT as u64 {
            let what = format!("{name} has {} bytes, at most {MAX_DOCUMENT}", member.size);
            return Err(StoreError::archive(what));
        }
        let mut content = Vec::new();
        member
            .content
            .take(MAX_DOCUMENT as u64)
            .read_to_end(&mut content)
            .context("reading", name)?;
        Ok(Some(content))
    }
}

impl DirectorySource {
    /// Opens the directory at `path`.
    pub fn new(path: &Path) -> Result<DirectorySource> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).context("opening", path)?;
        Ok(DirectorySource {
            path: path.to_owned(),
            fd,
        })
    }

    /// No link leads out of the directory, and nothing is opened that could block.
    fn open(&self, name: &str) -> Result<Option<Member>> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = match rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), resolve) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            other => other.context("opening", &path)?,
        };
        let file = File::from(fd);
        let metadata = file.metadata().context("looking at", &path)?;
        if !metadata.is_file() {
            return Err(StoreError::archive(format!(
                "{} is no file",
                path.display()
            )));
        }
        Ok(Some(Member {
            content: Box::new(file),
            size: metadata.len(),
        }))
    }
}

impl TarSource {
    /// Finds the members of a tar file.
    pub fn new(path: &Path, file: File) -> Result<TarSource> {
        let mut members = BTreeMap::new();
        let length = file.metadata().context("looking at", path)?.len();
        let mut reading = file.try_clone().context("opening", path)?;
        reading.seek(SeekFrom::Start(0)).context("reading", path)?;
        let mut archive = tar::Archive::new(reading);
        for entry in archive.entries_with_seek().context("reading", path)? {
            let entry = entry.context("reading the tar", path)?;
            let Some((name, place)) = place_of(&entry)? else {
                continue;
            };
            if let Place::Data(offset, size) = place
                && offset.checked_add(size).is_none_or(|end| end > length)
            {
                let what = format!("{name} goes beyond the end of the file: it is truncated");
                return Err(StoreError::archive(what));
            }
            insert(&mut members, name, place)?;
        }
        Ok(TarSource {
            path: path.to_owned(),
            file: Arc::new(file),
            members,
        })
    }

    fn open(&self, name: &str) -> Result<Option<Member>> {
        let mut name = name.to_owned();
        for _ in 0..MAX_LINKS {
            match self.members.get(&name) {
                None => return Ok(None),
                Some(Place::Link(target)) => name = target.clone(),
                Some(Place::Data(offset, size)) => {
                    return Ok(Some(Member {
                        content: Box::new(Section {
                            file: self.file.clone(),
                            at: *offset,
                            end: offset + size,
                        }),
                        size: *size,
                    }));
                }
            }
        }
        let what = format!("{}: links of {name} form a circle", self.path.display());
        Err(StoreError::archive(what))
    }
}

fn insert(members: &mut BTreeMap<String, Place>, name: String, place: Place) -> Result<()> {
    if members.len() >= MAX_MEMBERS {
        return Err(StoreError::archive(format!(
            "more than {MAX_MEMBERS} members"
        )));
    }
    if members.insert(name.clone(), place).is_some() {
        return Err(StoreError::archive(format!("{name} is in it twice")));
    }
    Ok(())
}

/// What a member of an outer tar is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A file.
    File,
    /// Another name of the member.
    Link(String),
    /// Nothing to read.
    Other,
}

/// Name and kind of a member of an outer tar.
pub fn member_of<R: Read>(entry: &tar::Entry<'_, R>) -> Result<(String, MemberKind)> {
    use tar::EntryType as T;
    let path = entry.path_bytes();
    let name = String::from_utf8_lossy(&path).into_owned();
    let link = || -> Result<String> {
        let target = entry.link_name_bytes().unwrap_or_default();
        Ok(String::from_utf8_lossy(&target).into_owned())
    };
    let kind = match entry.header().entry_type() {
        T::Regular | T::Continuous => MemberKind::File,
        T::Symlink => MemberKind::Link(link_target(&member_name(&name)?, &link()?)?),
        T::Link => MemberKind::Link(member_name(&link()?)?),
        T::Directory => return Ok((String::new(), MemberKind::Other)),
        T::XGlobalHeader => return Ok((String::new(), MemberKind::Other)),
        other => {
            let what = format!(
                "{name} is of type {:?}, which no image has",
                other.as_byte() as char
            );
            return Err(StoreError::archive(what));
        }
    };
    Ok((member_name(&name)?, kind))
}

fn place_of<R: Read>(entry: &tar::Entry<'_, R>) -> Result<Option<(String, Place)>> {
    let (name, kind) = member_of(entry)?;
    Ok(match kind {
        MemberKind::File => Some((name, Place::Data(entry.raw_file_position(), entry.size()))),
        MemberKind::Link(target) => Some((name, Place::Link(target))),
        MemberKind::Other => None,
    })
}

/// A part of a file, read at its own position: several can be read at once.
struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let Some(buffer) = buffer.get_mut(..length).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        let read = self.file.read_at(buffer, self.at)?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive has become shorter",
            ));
        }
        self.at += read as u64;
        Ok(read)
    }
}
