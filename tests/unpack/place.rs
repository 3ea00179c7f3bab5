//! Where layers are unpacked to, with neighbours that nobody may touch, and what is there then.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rovl::format::keys::Namespace;
use rovl::store::codec::digest::Digest;
use rovl::store::codec::tar_split;
use rovl::store::unpack::{Options, Summary, UnpackError, open_beneath, unpack};

/// A directory with `root` to unpack into, and `outside` beside it.
pub struct Place {
    base: tempfile::TempDir,
    before: BTreeMap<String, String>,
}

/// What an unpacking gave.
pub struct Done {
    pub summary: Summary,
    pub record: Vec<u8>,
}

pub fn options() -> Options {
    Options::new(Namespace::Trusted)
}

impl Place {
    pub fn new() -> Place {
        let base = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::create_dir(base.path().join("root")).unwrap();
        fs::create_dir(base.path().join("outside")).unwrap();
        fs::write(base.path().join("outside/secret"), "secret").unwrap();
        let before = listing(&base.path().join("outside"));
        Place { base, before }
    }

    pub fn root(&self) -> PathBuf {
        self.base.path().join("root")
    }

    pub fn outside(&self) -> PathBuf {
        self.base.path().join("outside")
    }

    pub fn try_unpack(&self, archive: &[u8], options: &Options) -> Result<Done, UnpackError> {
        let root = File::open(self.root()).unwrap();
        let mut record = Vec::new();
        let summary = unpack(
            archive,
            root.as_fd(),
            options,
            Some(&mut record),
            None,
            &|_| {},
        );
        assert_eq!(listing(&self.outside()), self.before, "outside of the root");
        let mut beside: Vec<_> = fs::read_dir(self.base.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        beside.sort();
        assert_eq!(beside, ["outside", "root"]);
        Ok(Done {
            summary: summary?,
            record,
        })
    }

    /// Unpacks, and checks the digest and that the record gives the archive back.
    pub fn unpack_with(&self, archive: &[u8], options: &Options) -> Done {
        let done = match self.try_unpack(archive, options) {
            Ok(done) => done,
            Err(e) => panic!("{e}"),
        };
        assert_eq!(done.summary.diff_id.0, Digest::of(archive));
        assert_eq!(done.summary.tar_bytes, archive.len() as u64);
        assert!(
            self.reassemble(&done.record) == archive,
            "reassembled otherwise"
        );
        done
    }

    pub fn unpack(&self, archive: &[u8]) -> Done {
        self.unpack_with(archive, &options())
    }

    pub fn reassemble(&self, record: &[u8]) -> Vec<u8> {
        let root = File::open(self.root()).unwrap();
        let mut out = Vec::new();
        let open = |path: &[u8]| open_beneath(root.as_fd(), path);
        tar_split::assemble(record, open, &mut out).unwrap();
        out
    }

    pub fn refused(&self, archive: &[u8], options: &Options) -> String {
        match self.try_unpack(archive, options) {
            Ok(done) => panic!("unpacked: {:?} {:?}", done.summary, self.listing()),
            Err(e) => e.to_string(),
        }
    }

    pub fn listing(&self) -> BTreeMap<String, String> {
        listing(&self.root())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub fn meta(&self, name: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path(name)).unwrap()
    }

    pub fn is_whiteout(&self, name: &str) -> bool {
        match fs::symlink_metadata(self.path(name)) {
            Ok(meta) => meta.file_type().is_char_device() && meta.rdev() == 0,
            Err(_) => false,
        }
    }

    pub fn xattr(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        get_xattr(&self.path(name), key)
    }

    pub fn is_opaque(&self, name: &str) -> bool {
        self.xattr(name, "trusted.overlay.opaque") == Some(b"y".to_vec())
    }

    pub fn write(&self, name: &str, body: &str) {
        let mut file = File::create(self.path(name)).unwrap();
        file.write_all(body.as_bytes()).unwrap();
    }
}

pub fn get_xattr(path: &Path, key: &str) -> Option<Vec<u8>> {
    let key = std::ffi::CString::new(key).unwrap();
    rovl::sys::xattr::get_at(rustix::fs::CWD, path.as_os_str(), &key).unwrap()
}

pub fn set_xattr(path: &Path, key: &str, value: &[u8]) {
    let key = std::ffi::CString::new(key).unwrap();
    let flags = rovl::sys::xattr::SetFlags::Any;
    rovl::sys::xattr::set_at(rustix::fs::CWD, path.as_os_str(), &key, value, flags).unwrap();
}

/// All attributes of every object beneath a directory, itself included, by path.
pub fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut links = BTreeMap::new();
    list_into(root, root, &mut all, &mut links);
    all
}

fn list_into(
    root: &Path,
    at: &Path,
    all: &mut BTreeMap<String, String>,
    links: &mut BTreeMap<u64, String>,
) {
    let meta = fs::symlink_metadata(at).unwrap();
    let name = at
        .strip_prefix(root)
        .unwrap()
        .as_os_str()
        .as_bytes()
        .escape_ascii()
        .to_string();
    let content = if meta.is_file() {
        Digest::of(&fs::read(at).unwrap()).hex()
    } else if meta.is_symlink() {
        fs::read_link(at)
            .unwrap()
            .as_os_str()
            .as_bytes()
            .escape_ascii()
            .to_string()
    } else if meta.is_dir() {
        String::new()
    } else {
        format!("{:x}", meta.rdev())
    };
    let mut xattrs: Vec<String> = rovl::sys::xattr::list_at(rustix::fs::CWD, at.as_os_str())
        .unwrap()
        .split(|byte| *byte == 0)
        .filter(|key| !key.is_empty())
        .map(|key| {
            let value = get_xattr(at, OsStr::from_bytes(key).to_str().unwrap()).unwrap();
            format!("{}={}", key.escape_ascii(), value.escape_ascii())
        })
        .collect();
    xattrs.sort();
    let first = if meta.nlink() > 1 && !meta.is_dir() {
        links
            .entry(meta.ino())
            .or_insert_with(|| name.clone())
            .clone()
    } else {
        String::new()
    };
    let line = format!(
        "{:o} {}:{} {}.{:09} {content} {xattrs:?} {first}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec(),
    );
    all.insert(name, line);
    if meta.is_dir() {
        let mut children: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        children.sort();
        for child in children {
            list_into(root, &child, all, links);
        }
    }
}
