//! What an archive may cost at most. On by default: an archive comes from strangers.

/// Limits on one layer. Each exceeded limit is an error that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Bytes of the uncompressed stream, and also of all files' lengths together (a sparse file
    /// is longer than its data).
    pub unpacked_bytes: u64,
    /// Bytes out for each byte in; judged once [`ratio_from`](Self::ratio_from) bytes are out.
    pub ratio: u64,
    /// Bytes of output below which the ratio is not judged: a small archive of zeros is no bomb.
    pub ratio_from: u64,
    /// Memory that a zstd frame may ask its decoder for, as the base-2 logarithm of bytes.
    pub zstd_window_log: u32,
    /// Above this, memory of that kind is given to one decoder of the process at a time; others wait until that is
    /// dropped. So whoever reads one such stream within another must set this to 63 for one of them.
    pub zstd_shared_log: u32,
    /// Entries.
    pub entries: u64,
    /// Bytes of a path or of a link's target.
    pub path_bytes: usize,
    /// Components of a path.
    pub path_components: usize,
    /// Bytes of all extension headers (PAX, GNU long names, sparse maps) of one entry.
    pub extension_bytes: usize,
    /// Bytes of one entry's extended attributes, names and values.
    pub xattr_bytes: usize,
    /// Pieces of data of one sparse file.
    pub sparse_segments: usize,
    /// Bytes that have to be kept in memory until the end of the archive: paths of directories,
    /// hard links and whiteouts.
    pub deferred_bytes: usize,
    /// Bytes after the end-of-archive blocks.
    pub trailing_bytes: u64,
}

impl Default for Budgets {
    fn default() -> Budgets {
        Budgets {
            unpacked_bytes: 256 << 30,
            ratio: 200,
            ratio_from: 1 << 30,
            zstd_window_log: 27,
            zstd_shared_log: 23,
            entries: 2_000_000,
            path_bytes: 4096,
            path_components: 512,
            extension_bytes: 1 << 20,
            xattr_bytes: 256 << 10,
            sparse_segments: 1 << 16,
            deferred_bytes: 64 << 20,
            trailing_bytes: 1 << 30,
        }
    }
}

impl Budgets {
    /// No limit but those of memory that a single header needs: for archives that rovl wrote.
    pub fn trusted() -> Budgets {
        Budgets {
            unpacked_bytes: u64::MAX,
            ratio: u64::MAX,
            ratio_from: u64::MAX,
            entries: u64::MAX,
            deferred_bytes: usize::MAX,
            trailing_bytes: u64::MAX,
            ..Budgets::default()
        }
    }
}
