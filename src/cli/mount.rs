//! `rovl mount`: reads the flags, plans, and starts the daemon.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use super::options::{Dialect, OptionError, Parsed, Parser, help_text};
use super::plan::{Invocation, plan};
use super::{Failure, daemon, warn};

/// Mount a merged tree; returns once it is served.
#[derive(Debug, Args)]
#[command(after_help = format!("Options of -o, joined by commas (those of mount(8), the kernel's overlayfs and fuse-overlayfs):\n{}", help_text()))]
pub struct MountArgs {
    /// Directories to merge, top to bottom, joined by `:`; data-only ones behind `::` (escapes: \: \\)
    #[arg(long, value_name = "A:B[::DATA]")]
    lower: Vec<OsString>,
    /// The directory that takes all changes; without it the mount is read-only
    #[arg(long, value_name = "DIR")]
    upper: Option<PathBuf>,
    /// An empty directory on upper's file system
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Mount options
    #[arg(short = 'o', value_name = "OPT[,OPT…]")]
    options: Vec<OsString>,
    /// Stay in the foreground and log to stderr
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Stay in the foreground and log everything
    #[arg(short = 'd', long)]
    debug: bool,
    /// The directory to mount on
    #[arg(value_name = "MERGED")]
    merged: PathBuf,
}

/// Runs `rovl mount`.
pub fn run(args: MountArgs) -> Result<(), Failure> {
    let parsed = parse(&args).map_err(|error| Failure::misused(error.to_string()))?;
    let invocation = Invocation {
        dialect: Dialect::Rovl,
        subtype: "rovl",
        source: None,
        merged: args.merged,
        foreground: args.foreground,
    };
    start(parsed, invocation)
}

fn parse(args: &MountArgs) -> Result<Parsed, OptionError> {
    let mut parser = Parser::new(Dialect::Rovl);
    args.options
        .iter()
        .try_for_each(|raw| parser.options(raw))?;
    let said = parser.so_far();
    let twice = [
        (
            !args.lower.is_empty() && !said.lowers.is_empty(),
            "--lower",
            "lowerdir=",
        ),
        (
            args.upper.is_some() && said.upper.is_some(),
            "--upper",
            "upperdir=",
        ),
        (
            args.work.is_some() && said.work.is_some(),
            "--work",
            "workdir=",
        ),
    ];
    if let Some((_, flag, option)) = twice.into_iter().find(|(both, ..)| *both) {
        return Err(OptionError::Twice { flag, option });
    }
    args.lower
        .iter()
        .try_for_each(|raw| parser.lower_flag(raw))?;
    parser.dir_flags(args.upper.clone(), args.work.clone());
    parser.change(|options| options.debug |= args.debug);
    parser.finish()
}

/// Mounts what either command line has asked for.
pub fn start(parsed: Parsed, invocation: Invocation) -> Result<(), Failure> {
    let Parsed { options, warnings } = parsed;
    warnings.iter().for_each(|warning| warn(warning));
    let paths = options
        .lowers
        .iter()
        .chain(&options.data_lowers)
        .chain(&options.upper)
        .chain(&options.work);
    let any_relative = paths
        .chain([&invocation.merged])
        .any(|path| path.is_relative());
    let cwd = match std::env::current_dir() {
        Ok(cwd) => cwd,
        Err(_) if !any_relative => Path::new("/").to_owned(),
        Err(error) => {
            let message = format!(
                "relative paths can't be used: the current directory is not known: {error}"
            );
            return Err(Failure::failed(message));
        }
    };
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    daemon::start(plan(options, invocation, &cwd, cpus))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Harness {
        #[command(flatten)]
        args: MountArgs,
    }

    fn parsed(words: &[&str]) -> Result<Parsed, OptionError> {
        let words = ["rovl"].iter().chain(words).copied();
        parse(&Harness::try_parse_from(words).unwrap().args)
    }

    #[test]
    fn flags_and_options_say_the_same() {
        let flags = parsed(&[
            "--lower",
            r"a:b\:c::d",
            "--upper",
            "u",
            "--work",
            "w",
            "-o",
            "ro",
            "m",
        ]);
        let words = parsed(&[
            "-o",
            r"lowerdir=a:b\:c::d,upperdir=u",
            "-o",
            "workdir=w,ro",
            "m",
        ]);
        assert_eq!(flags.unwrap(), words.unwrap());
    }

    #[test]
    fn several_lower_flags_add_up() {
        let options = parsed(&["--lower", "a", "--lower", "b:c", "m"])
            .unwrap()
            .options;
        assert_eq!(options.lowers, ["a", "b", "c"].map(PathBuf::from));
    }

    #[test]
    fn upper_and_work_are_taken_as_they_are() {
        let options = parsed(&["--lower", "a", "--upper", r"u:\,", "--work", "w", "m"])
            .unwrap()
            .options;
        assert_eq!(options.upper, Some(r"u:\,".into()));
    }

    #[test]
    fn the_same_thing_can_not_be_said_twice() {
        let rows: [(&[&str], &str); 3] = [
            (&["--lower", "a", "-o", "lowerdir=b", "m"], "--lower"),
            (
                &[
                    "--lower",
                    "a",
                    "--upper",
                    "u",
                    "-o",
                    "upperdir=u,workdir=w",
                    "m",
                ],
                "--upper",
            ),
            (
                &[
                    "--lower",
                    "a",
                    "--work",
                    "u",
                    "-o",
                    "upperdir=u,workdir=w",
                    "m",
                ],
                "--work",
            ),
        ];
        for (words, expected) in rows {
            match parsed(words) {
                Err(OptionError::Twice { flag, .. }) => assert_eq!(flag, expected),
                other => panic!("{words:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn empty_paths_are_refused() {
        for words in [["--lower", "", "m"], ["--lower", "a:", "m"]] {
            assert!(
                matches!(parsed(&words), Err(OptionError::List { .. })),
                "{words:?}"
            );
        }
    }
}
