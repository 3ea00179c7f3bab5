//! Archives made by hand, as right or as wrong as a test needs them.

use rovl::store::codec::tar::writer::{END, headers, padding_after, pax_record};
use rovl::store::codec::tar::{Entry, EntryKind, Time};

/// An archive in the making.
#[derive(Clone, Default)]
pub struct Tar(pub Vec<u8>);

/// An entry with mode 0644, of root, at time 0.
pub fn entry(path: &[u8], kind: EntryKind, size: u64) -> Entry {
    Entry {
        path: path.to_vec(),
        mode: if kind == EntryKind::Dir { 0o755 } else { 0o644 },
        kind,
        uid: 0,
        gid: 0,
        mtime: Time { sec: 1000, nsec: 0 },
        atime: None,
        size,
        stored: size,
        xattrs: Vec::new(),
        sparse: None,
    }
}

impl Tar {
    pub fn new() -> Tar {
        Tar::default()
    }

    /// Any entry, its body being `body`.
    pub fn add(mut self, entry: &Entry, body: &[u8]) -> Tar {
        self.0.extend(headers(entry));
        self.bytes(body)
    }

    /// Bytes, and the padding after them.
    pub fn bytes(mut self, body: &[u8]) -> Tar {
        self.0.extend(body);
        self.0.extend(padding_after(body.len() as u64));
        self
    }

    pub fn file(self, path: &str, body: &str) -> Tar {
        let entry = entry(path.as_bytes(), EntryKind::File, body.len() as u64);
        self.add(&entry, body.as_bytes())
    }

    pub fn dir(self, path: &str) -> Tar {
        self.add(&entry(path.as_bytes(), EntryKind::Dir, 0), b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Tar {
        let kind = EntryKind::Symlink(target.as_bytes().to_vec());
        self.add(&entry(path.as_bytes(), kind, 0), b"")
    }

    pub fn link(self, path: &str, target: &str) -> Tar {
        let kind = EntryKind::HardLink(target.as_bytes().to_vec());
        self.add(&entry(path.as_bytes(), kind, 0), b"")
    }

    pub fn device(self, path: &str, major: u32, minor: u32) -> Tar {
        let kind = EntryKind::Char { major, minor };
        self.add(&entry(path.as_bytes(), kind, 0), b"")
    }

    pub fn with_xattrs(self, path: &str, kind: EntryKind, xattrs: &[(&str, &[u8])]) -> Tar {
        let mut entry = entry(path.as_bytes(), kind, 0);
        let own = |(name, value): &(&str, &[u8])| (name.as_bytes().to_vec(), value.to_vec());
        entry.xattrs = xattrs.iter().map(own).collect();
        self.add(&entry, b"")
    }

    /// A PAX header of these records.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| pax_record(key.as_bytes(), value))
            .collect();
        self.raw(b'x', b"PaxHeaders/x", &body)
    }

    /// An entry of any type flag.
    pub fn raw(self, flag: u8, path: &[u8], body: &[u8]) -> Tar {
        self.header(flag, path, body.len() as u64, |_| {})
            .bytes(body)
    }

    /// A header alone, changed before its checksum is computed.
    pub fn header(mut self, flag: u8, path: &[u8], size: u64, change: impl Fn(&mut [u8])) -> Tar {
        let mut block = headers(&entry(path, EntryKind::File, size));
        assert_eq!(block.len(), 512);
        block[156] = flag;
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(block);
        self
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend(END);
        self.0
    }
}
