//! Which user namespace the process is in.

use std::fs;

/// Whether this is the initial user namespace, as far as the id map tells.
pub fn is_initial() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether only one id can be given to files: a plain user, or a namespace with a map of one id.
pub fn has_one_id() -> bool {
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    ids_in(&map) <= 1
}

fn ids_in(map: &str) -> u64 {
    map.lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_map_are_counted() {
        assert_eq!(ids_in("         0       1000          1\n"), 1);
        assert_eq!(ids_in("0 1000 1\n1 100000 65536\n"), 65537);
        assert_eq!(ids_in(""), 0);
    }
}
