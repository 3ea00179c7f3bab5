//! What the tests have in common.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::files::open_rw;
use crate::support::{Layers, Mounted, Scratch, Subject, pattern, require_root};

/// A mount of one lower with opens passed through.
pub fn mount(layers: &Layers, more: &[&str]) -> Mounted {
    require_root();
    let options: Vec<&str> = ["passthrough=on"].iter().chain(more).copied().collect();
    let mounted = Subject::Rovl.mount(layers, &options);
    let stat = mounted.stat_json().unwrap();
    assert_eq!(stat["data_path"], "passthrough", "{stat}");
    mounted
}

/// One of the daemon's counters, 0 if it was never counted.
pub fn counter(mounted: &Mounted, name: &str) -> u64 {
    mounted.stat_json().unwrap()[name].as_u64().unwrap_or(0)
}

/// Layers with `file` of these bytes in the lower, which is 0644.
pub fn layers_with(scratch: &Scratch, content: &[u8]) -> Layers {
    let layers = scratch.layers(1);
    fs::write(layers.lower().join("file"), content).unwrap();
    layers
}

/// Bytes to fill a file with.
pub fn some_bytes() -> Vec<u8> {
    pattern(7, 10_000)
}

/// All that can be read through a descriptor, from its position on.
pub fn rest_of(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Reads the file by name.
pub fn content(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

/// truncate(2): by name, with no descriptor.
pub fn truncate(path: &Path, size: u64) -> std::io::Result<()> {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let size = i64::try_from(size).unwrap();
    // SAFETY: the path is NUL-terminated and outlives the call.
    match unsafe { libc::truncate(path.as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Pages of a file in the cache of the file system that it was opened on (cachestat(2), Linux 6.5).
pub fn cached_pages(file: &File) -> u64 {
    const SYS_CACHESTAT: libc::c_long = 451;
    let range = [0_u64; 2];
    let mut counts = [0_u64; 5];
    // SAFETY: struct cachestat_range has two u64, struct cachestat five, and both outlive the call.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            counts.as_mut_ptr(),
            0,
        )
    };
    assert_eq!(result, 0, "cachestat: {}", std::io::Error::last_os_error());
    counts[0]
}

/// Has a file of the lower copied up: what opens it from then on is passed through.
pub fn copy_up(path: &Path) {
    let file = open_rw(path);
    let mut first = [0];
    file.read_exact_at(&mut first, 0).unwrap();
    file.write_all_at(&first, 0).unwrap();
}
