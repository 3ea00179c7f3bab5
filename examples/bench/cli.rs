//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures rovl beside the bare file system, the kernel's overlayfs and other implementations.
///
/// The same work runs on every target in turn, in a rotating order, each time on a fresh mount with an empty
/// upper. Medians, spreads and ratios go to the terminal, to DIR/bench.json and to DIR/bench.html.
///
/// Needs root and /dev/fuse. Ends with 1 when work failed on rovl or on a target of --target.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "tools/bench",
    disable_version_flag = true,
    args_override_self = true
)]
pub struct Args {
    /// Less data and shorter loops: at most 5 minutes of measuring
    #[arg(long)]
    pub quick: bool,
    /// Only work whose id or title contains one of these (a|b or a,b); =ID is just that one
    #[arg(long, value_name = "PATTERN", default_value = "")]
    pub only: String,
    /// Show the work and end
    #[arg(long)]
    pub list: bool,
    /// Rounds: samples of each work on each target [default: 5; with --quick, up to 3 while time is left]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub repeat: Option<u16>,
    /// Where bench.json, bench.html and bench.md go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub out: PathBuf,
    /// Put all data on a new file system in a loop device (ext4, xfs, btrfs) [default: ext4 with --quick, so that
    /// nobody else's writes are waited for; otherwise the file system of --dir as it is]
    #[arg(long, value_name = "FS")]
    pub fs: Option<String>,
    /// One more target; CMD mounts, and has {lower} {upper} {work} {merged} in it
    #[arg(long, value_name = "NAME=CMD")]
    pub target: Vec<String>,
    /// These targets only, of those that --list names
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub targets: Vec<String>,
    /// Print the README's table instead of the terminal's: the rows in which rovl is held against something
    #[arg(long)]
    pub readme: bool,
    /// Measure nothing: show (and write to --out) what this JSON file holds
    #[arg(long, value_name = "JSON")]
    pub render: Option<PathBuf>,
    /// Begin no further round after this many seconds [default: 240 with --quick, none otherwise]
    #[arg(long, value_name = "SECONDS")]
    pub budget: Option<u64>,
    /// How long files are made and removed to see whether memory grows [default: 1 with --quick, 60 otherwise]
    #[arg(long, value_name = "SECONDS")]
    pub churn: Option<u64>,
    /// Where data are made and removed again [default: /var/tmp; /dev/shm with --quick where it has 6 GiB]
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/tmp",
        hide_default_value = true
    )]
    pub dir: PathBuf,
    /// What is kept between runs (fuse-overlayfs 2.0.0, a Debian root)
    #[arg(long, value_name = "DIR", default_value = "/var/cache/rovl-bench")]
    pub cache: PathBuf,
    /// The rovl to measure
    #[arg(long, value_name = "PROGRAM", default_value = "target/release/rovl")]
    pub rovl: PathBuf,
    /// The fuse-overlayfs 2.0.0 to compare with
    #[arg(long, value_name = "PROGRAM")]
    pub fuse_overlayfs_2: Option<PathBuf>,
    /// The fuse-overlayfs 1.x to compare with
    #[arg(
        long,
        value_name = "PROGRAM",
        default_value = "/usr/bin/fuse-overlayfs"
    )]
    pub fuse_overlayfs_1: PathBuf,
    /// Print what has to be installed for this run (for tools/bench), and end
    #[arg(long, hide = true)]
    pub needs: bool,
}

impl Args {
    /// fuse-overlayfs 2.0.0: as named, or where tools/bench installs it.
    pub fn peer_2(&self) -> PathBuf {
        let cached = || self.cache.join("fuse-overlayfs-2.0.0/bin/fuse-overlayfs");
        self.fuse_overlayfs_2.clone().unwrap_or_else(cached)
    }

    /// The file system to make for the data, if any.
    pub fn file_system(&self) -> Option<&str> {
        self.fs.as_deref().or(self.quick.then_some("ext4"))
    }

    /// The Debian root, as an archive.
    pub fn root_archive(&self) -> PathBuf {
        self.cache.join("root.tar")
    }
}

/// Whether `--only` takes work with this id and title.
pub fn is_chosen(only: &str, id: &str, title: &str) -> bool {
    let mut words = only
        .split([',', '|'])
        .map(str::trim)
        .filter(|w| !w.is_empty())
        .peekable();
    words.peek().is_none()
        || words.any(|word| match word.strip_prefix('=') {
            Some(exact) => id == exact,
            None => id.contains(word) || title.contains(word),
        })
}

/// A command line as words: blanks part them, quotes and backslashes keep them together.
///
/// # Errors
/// A quote that isn't closed.
pub fn split_words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("{line}: {quote} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_chosen_by_default() {
        assert!(is_chosen("", "stat-warm", "stat, warm"));
        assert!(is_chosen(" , ", "stat-warm", "stat, warm"));
    }

    #[test]
    fn patterns_are_parts_of_ids_or_titles() {
        assert!(is_chosen("readdir|stat", "stat-warm", "stat, warm"));
        assert!(is_chosen("stat, warm", "x", "of warm things"));
        assert!(!is_chosen("readdir,open", "stat-warm", "stat, warm"));
        assert!(is_chosen("=stat-warm", "stat-warm", ""));
        assert!(!is_chosen("=stat", "stat-warm", "stat"));
    }

    #[test]
    fn words_are_split_as_a_shell_would() {
        let split = |line| split_words(line).unwrap();
        assert_eq!(split("a  b\tc"), ["a", "b", "c"]);
        assert_eq!(
            split(r#"a "b c" 'd "e' f\ g """#),
            ["a", "b c", "d \"e", "f g", ""]
        );
        assert_eq!(split(r#""a\"b" '\'"#), ["a\"b", "\\"]);
        assert_eq!(split(""), [""; 0]);
        assert!(split_words("a 'b").is_err());
    }
}
