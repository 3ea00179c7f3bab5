//! What the tests have in common.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

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
