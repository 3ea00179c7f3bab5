//! The command line of fuse-overlayfs and of mount(8)'s helpers, as container engines write it: options and
//! positionals in any order, unknown things ignored with a warning. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::options::{Dialect, OptionError, Parsed, Parser};
use super::plan::Invocation;

/// The names under which this command line is understood.
const NAMES: [&str; 3] = ["fuse-overlayfs", "mount.rovl", "mount.fuse.rovl"];

/// What such a command line asks for.
#[derive(Debug)]
pub enum Request {
    /// To mount. Boxed: the options are large.
    Mount(Box<(Parsed, Invocation)>),
    /// `--version`.
    Version,
    /// `--help`.
    Help,
}

/// Why it can't be understood.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum HelperError {
    /// An option.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// `-o` at the end.
    #[error("'{0}' needs a value behind it")]
    NeedsValue(String),
    /// No positional.
    #[error("no mount point given")]
    NoMountPoint,
    /// More than source and target.
    #[error("unexpected argument '{0}': only a source and a mount point are taken")]
    TooMany(String),
}

/// Whether argv asks for this command line: by the program's name, or as `rovl -o … MERGED`.
pub fn is_helper(args: &[OsString]) -> bool {
    let name = args.first().map(|arg| base_name(arg)).unwrap_or_default();
    if NAMES.iter().any(|known| name == *known) {
        return true;
    }
    let Some(first) = args.get(1).map(|arg| arg.as_bytes()) else {
        return false;
    };
    let has_options = || {
        args[1..]
            .iter()
            .any(|arg| arg.as_bytes().starts_with(b"-o"))
    };
    match first {
        [b'-', b'o', ..] => true,
        b"-f" | b"-d" | b"-s" | b"--debug" => has_options(),
        // A path, where a command would stand.
        [b'-', ..] => false,
        other => other.contains(&b'/') && has_options(),
    }
}

fn base_name(arg: &OsStr) -> &OsStr {
    let bytes = arg.as_bytes();
    let start = bytes
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |at| at + 1);
    OsStr::from_bytes(&bytes[start..])
}

/// Reads the command line, the program's name first.
pub fn parse(args: &[OsString]) -> Result<Request, HelperError> {
    let program = args.first().map(|arg| base_name(arg)).unwrap_or_default();
    let is_fuse_overlayfs = program == "fuse-overlayfs";
    let mut parser = Parser::new(Dialect::Helper);
    let mut positionals = Vec::new();
    let mut foreground = false;
    let mut rest = args.iter().skip(1);
    while let Some(arg) = rest.next() {
        let bytes = arg.as_bytes();
        match bytes {
            b"--" => positionals.extend(rest.by_ref()),
            b"-h" | b"--help" => return Ok(Request::Help),
            b"-V" | b"--version" => return Ok(Request::Version),
            b"-f" | b"--foreground" => foreground = true,
            b"-d" | b"--debug" => parser.change(|options| options.debug = true),
            // libfuse: one thread; mount(8): be lenient, which this form is anyway.
            b"-s" if is_fuse_overlayfs => parser.change(|options| options.threads = Some(1)),
            b"-s" | b"-n" | b"-v" | b"-w" => {}
            b"-r" => parser.change(|options| options.read_only = true),
            b"-o" => parser.options(
                rest.next()
                    .ok_or(HelperError::NeedsValue("-o".to_owned()))?,
            )?,
            [b'-', b'o', value @ ..] => parser.options(OsStr::from_bytes(value))?,
            // mount(8) tells its type and, if asked, a namespace that it has entered.
            b"-t" | b"-N" => drop(rest.next()),
            [b'-', _, ..] => parser.warn(format!(
                "unknown argument '{}' ignored",
                arg.to_string_lossy()
            )),
            b"" => {}
            _ => positionals.push(arg),
        }
    }
    let (source, merged) = match positionals.as_slice() {
        [] => return Err(HelperError::NoMountPoint),
        [merged] => (None, *merged),
        [source, merged] => (Some((*source).clone()), *merged),
        [_, _, other, ..] => {
            return Err(HelperError::TooMany(other.to_string_lossy().into_owned()));
        }
    };
    let invocation = Invocation {
        dialect: Dialect::Helper,
        subtype: if is_fuse_overlayfs {
            "fuse-overlayfs"
        } else {
            "rovl"
        },
        source,
        merged: merged.into(),
        foreground,
    };
    Ok(Request::Mount(Box::new((parser.finish()?, invocation))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;
    use std::path::Path;

    fn args(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn mount(words: &[&str]) -> (Parsed, Invocation) {
        match parse(&args(words)).unwrap() {
            Request::Mount(mount) => *mount,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn the_name_of_the_program_or_a_leading_option_choose_this_form() {
        let rows: &[(&[&str], bool)] = &[
            (&["fuse-overlayfs"], true),
            (&["/usr/bin/fuse-overlayfs", "mount"], true),
            (&["/sbin/mount.rovl", "a", "b"], true),
            (&["mount.fuse.rovl"], true),
            (&["rovl", "-o", "lowerdir=a", "m"], true),
            (&["rovl", "-olowerdir=a", "m"], true),
            (&["rovl", "-f", "-o", "lowerdir=a", "m"], true),
            (&["rovl", "./m", "-o", "lowerdir=a"], true),
            (&["rovl", "mount", "-o", "lowerdir=a", "m"], false),
            (&["rovl", "moutn", "-o", "lowerdir=a", "m"], false),
            (&["rovl", "--help"], false),
            (&["rovl", "-f"], false),
            (&["rovl"], false),
            (&[], false),
        ];
        for (words, expected) in rows {
            assert_eq!(is_helper(&args(words)), *expected, "{words:?}");
        }
    }

    #[test]
    fn the_command_lines_of_engines_are_understood() {
        // podman run; its id maps come with a leading colon
        let (parsed, invocation) = mount(&[
            "fuse-overlayfs",
            "-o",
            "lowerdir=/G/l/A:/G/l/B,upperdir=/G/d,workdir=/G/w,,volatile",
            "/G/merged",
        ]);
        assert_eq!(
            parsed.options.lowers,
            [Path::new("/G/l/A"), Path::new("/G/l/B")]
        );
        assert!(parsed.options.volatile);
        assert_eq!(parsed.warnings, Vec::<String>::new());
        assert_eq!(
            (invocation.merged.as_path(), invocation.subtype),
            (Path::new("/G/merged"), "fuse-overlayfs")
        );
        // containerd
        let (parsed, invocation) = mount(&[
            "fuse-overlayfs",
            "overlay",
            "/t",
            "-o",
            "workdir=/w,upperdir=/u,lowerdir=/l,dev,suid",
        ]);
        assert_eq!(invocation.source, Some("overlay".into()));
        assert_eq!(invocation.merged, Path::new("/t"));
        assert_eq!(parsed.options.upper, Some("/u".into()));
        // mount(8)
        let (parsed, invocation) = mount(&[
            "mount.rovl",
            "none",
            "/t",
            "-s",
            "-n",
            "-o",
            "rw,lowerdir=/l",
            "-o",
            "ro",
            "-t",
            "rovl",
        ]);
        assert!(parsed.options.read_only);
        assert_eq!(
            (invocation.source, invocation.subtype),
            (Some("none".into()), "rovl")
        );
        assert_eq!(parsed.options.threads, None);
    }

    #[test]
    fn order_does_not_matter_and_unknown_things_are_warnings() {
        let (parsed, invocation) = mount(&[
            "rovl",
            "-o",
            "lowerdir=/l",
            "--nonsense",
            "/m",
            "-f",
            "-obogus=1",
        ]);
        assert!(invocation.foreground);
        assert_eq!(invocation.merged, Path::new("/m"));
        assert_eq!(
            parsed.warnings,
            [
                "unknown argument '--nonsense' ignored",
                "unknown mount option 'bogus' ignored"
            ]
        );
    }

    #[test]
    fn a_mount_point_may_look_like_an_option_behind_two_dashes() {
        let (_, invocation) = mount(&["fuse-overlayfs", "-olowerdir=/l", "-s", "--", "-m"]);
        assert_eq!(invocation.merged, Path::new("-m"));
    }

    #[test]
    fn debug_stays_in_the_foreground_as_with_libfuse() {
        assert!(
            mount(&["fuse-overlayfs", "-d", "-olowerdir=/l", "m"])
                .0
                .options
                .debug
        );
        assert_eq!(
            mount(&["fuse-overlayfs", "-s", "-olowerdir=/l", "m"])
                .0
                .options
                .threads,
            Some(1)
        );
    }

    #[test]
    fn version_and_help_need_nothing_else() {
        assert!(matches!(
            parse(&args(&["fuse-overlayfs", "--version"])),
            Ok(Request::Version)
        ));
        assert!(matches!(
            parse(&args(&["fuse-overlayfs", "-h"])),
            Ok(Request::Help)
        ));
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        let error = |words: &[&str]| parse(&args(words)).unwrap_err();
        assert_eq!(
            error(&["fuse-overlayfs", "-o", "lowerdir=/l"]),
            HelperError::NoMountPoint
        );
        assert_eq!(
            error(&["fuse-overlayfs", "m", "-o"]),
            HelperError::NeedsValue("-o".into())
        );
        assert_eq!(
            error(&["fuse-overlayfs", "m"]),
            HelperError::Option(OptionError::NoLowers)
        );
        assert_eq!(
            error(&["fuse-overlayfs", "-olowerdir=/l", "a", "b", "c"]),
            HelperError::TooMany("c".into())
        );
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(
            words in proptest::collection::vec(proptest::collection::vec(1u8.., 0..12), 0..6)
        ) {
            let args: Vec<OsString> = words.into_iter().map(OsString::from_vec).collect();
            is_helper(&args);
            drop(parse(&args));
        }
    }
}
