//! `/proc/self/mountinfo`, parsed. The format is in proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount of this mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Id of the mount; changes with every mount.
    pub id: u64,
    /// Id of the mount that it is mounted on.
    pub parent: u64,
    /// Major and minor number of the file system: `st_dev` of most files in it.
    pub device: (u32, u32),
    /// The directory of the file system that is at the mount point.
    pub root: PathBuf,
    /// Where, as seen from this process's root.
    pub mount_point: PathBuf,
    /// Options of the mount, separated by commas.
    pub options: String,
    /// Type, with the subtype: `fuse.rovl`.
    pub fs_type: OsString,
    /// What was mounted.
    pub source: OsString,
    /// Options of the file system, separated by commas, octal escapes still in them.
    pub super_options: Vec<u8>,
}

/// All mounts of this mount namespace, in the order of mounting for one mount point: the last is on top.
pub fn mounts() -> io::Result<Vec<MountInfo>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Parses the whole file. Lines that are not of the format are left out.
pub fn parse(text: &[u8]) -> Vec<MountInfo> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = std::str::from_utf8(fields.next()?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    let options = String::from_utf8_lossy(fields.next()?).into_owned();
    // Any number of optional fields, then a dash.
    fields.find(|field| *field == b"-")?;
    Some(MountInfo {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        mount_point,
        options,
        fs_type: OsString::from_vec(unescape(fields.next()?)),
        source: OsString::from_vec(unescape(fields.next()?)),
        super_options: fields.next().unwrap_or_default().to_vec(),
    })
}

impl MountInfo {
    /// Whether files show other owners here than those on the file system.
    pub fn is_idmapped(&self) -> bool {
        self.options.split(',').any(|option| option == "idmapped")
    }

    /// The value of `name=` among the file system's options, escapes undone.
    pub fn super_option(&self, name: &str) -> Option<PathBuf> {
        self.super_options
            .split(|&byte| byte == b',')
            .find_map(|option| option.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map(path)
    }
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Undoes the kernel's octal escapes: `\040` for a space.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(octal);
        plain.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() {
            tail.get(3..).unwrap_or_default()
        } else {
            tail
        };
    }
    plain
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0u8, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    #[test]
    fn a_line_is_understood_with_and_without_optional_fields() {
        let text = b"36 35 98:0 /sub /mnt/a\\040b rw,noatime shared:1 master:2 - fuse.rovl rovl rw,user_id=0\n\
                     44 27 0:40 / /m ro - overlay overlay rw,lowerdir=/a:/b,upperdir=/u\\054x,workdir=/w\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            (mounts[0].id, mounts[0].parent, mounts[0].device),
            (36, 35, (98, 0))
        );
        assert_eq!(mounts[0].root, Path::new("/sub"));
        assert_eq!(mounts[0].mount_point, Path::new("/mnt/a b"));
        assert_eq!(mounts[0].fs_type, "fuse.rovl");
        assert_eq!(mounts[0].options, "rw,noatime");
        assert_eq!(mounts[1].super_option("upperdir"), Some("/u,x".into()));
        assert_eq!(mounts[1].super_option("workdir"), Some("/w".into()));
        assert_eq!(mounts[1].super_option("dir"), None);
    }

    #[test]
    fn an_idmapped_mount_is_known_by_its_option() {
        let of = |options: &str| {
            let line = format!("36 35 98:0 / /m {options} - ext4 /dev/sda rw");
            parse(line.as_bytes())[0].is_idmapped()
        };
        assert!(of("rw,relatime,idmapped") && of("idmapped"));
        assert!(!of("rw,relatime") && !of("rw,notidmapped"));
    }

    #[test]
    fn octal_escapes_are_undone() {
        assert_eq!(unescape(br"a\040b\134c\012"), b"a b\\c\n");
        assert_eq!(unescape(br"\x\04"), br"\x\04");
        assert_eq!(unescape(br"\777\"), br"\777\");
    }

    #[test]
    fn the_root_of_this_process_is_found() {
        assert!(
            mounts()
                .unwrap()
                .iter()
                .any(|mount| mount.mount_point == Path::new("/"))
        );
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&text);
            unescape(&text);
        }
    }
}
