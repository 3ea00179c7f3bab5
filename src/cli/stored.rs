//! What the commands of the store share: opening it, tables, sizes, progress.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Failure, print};
use crate::format::keys::Namespace;
use crate::store::changes::{Change, ChangeKind};
use crate::store::error::StoreError;
use crate::store::load::Progress;
use crate::store::pack;
use crate::store::unpack::{self, Refused, RefusedXattrs, WhiteoutForm};
use crate::store::{Store, StoreOptions, time};
use crate::sys::fs::raise_nofile;
use crate::sys::process::has_cap_sys_admin_in_init_ns;

/// Where the store is, and how it is written.
#[derive(Debug, Clone)]
pub struct Place {
    /// `--root`, if given.
    pub root: Option<PathBuf>,
    /// Without `--no-sync`.
    pub sync: bool,
}

impl Place {
    /// Opens the store, which need not be there yet.
    pub fn open(&self) -> Result<Store, Failure> {
        if let Err(errno) = raise_nofile() {
            tracing::debug!(%errno, "the limit on open files stays");
        }
        let root = match &self.root {
            Some(root) => root.clone(),
            None => default_root(&|name| std::env::var_os(name).map(PathBuf::from))?,
        };
        let options = StoreOptions {
            sync: self.sync,
            fault: None,
        };
        Store::open(&root, options).map_err(Failure::from)
    }
}

/// `ROVL_ROOT`, or a place that depends on who asks.
fn default_root(var: &dyn Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, Failure> {
    let set = |name| var(name).filter(|path| !path.as_os_str().is_empty());
    if let Some(root) = set("ROVL_ROOT") {
        return Ok(root);
    }
    if rustix::process::geteuid().is_root() && super::userns::is_initial() {
        return Ok("/var/lib/rovl".into());
    }
    if let Some(data) = set("XDG_DATA_HOME") {
        return Ok(data.join("rovl"));
    }
    set("HOME")
        .map(|home| home.join(".local/share/rovl"))
        .ok_or_else(|| {
            Failure::misused("there is no HOME to keep the store in: use --root, or set ROVL_ROOT")
        })
}

/// How layers are unpacked by this process: strictly where all ids and attributes can be had, and otherwise so that
/// nothing is lost silently.
pub fn unpack_options(ignore_chown_errors: bool) -> unpack::Options {
    let is_privileged = has_cap_sys_admin_in_init_ns();
    let namespace = if is_privileged {
        Namespace::Trusted
    } else {
        Namespace::User
    };
    let mut options = unpack::Options::new(namespace);
    options.whiteout_fallback = Some(WhiteoutForm::Aufs);
    if !is_privileged {
        options.refused_xattrs = RefusedXattrs::Drop;
        if super::userns::has_one_id() {
            options.refused = Refused::OverrideStat;
        }
    }
    if ignore_chown_errors {
        options.refused = Refused::IgnoreOwner;
    }
    options
}

/// How trees of the store are made archives of, by this process.
pub fn pack_options() -> Result<pack::Options, Failure> {
    let is_privileged = has_cap_sys_admin_in_init_ns();
    let namespace = if is_privileged {
        Namespace::Trusted
    } else {
        Namespace::User
    };
    let mut options = pack::Options::new(namespace);
    options.override_stat = !is_privileged && super::userns::has_one_id();
    if let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) {
        let seconds = text.to_str().and_then(|text| text.parse().ok());
        options.latest = Some(seconds.ok_or_else(|| {
            Failure::misused(format!("SOURCE_DATE_EPOCH={} is no number", text.display()))
        })?);
    }
    Ok(options)
}

/// Work on several layers at once: each has four threads, and up to 40 MiB.
pub fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().clamp(1, 3))
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        match error {
            StoreError::BadName(what) => Failure::misused(what),
            other => Failure::failed(other.to_string()),
        }
    }
}

/// Prints a JSON value, indented.
pub fn print_json(value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format!("writing JSON: {error}")))?;
    print(&format!("{text}\n"))
}

/// Prints what changed, a line each: `A` added, `C` changed, `D` deleted, and the path.
pub fn print_changes(changes: &[Change], as_json: bool) -> Result<(), Failure> {
    let letter = |kind: ChangeKind| match kind {
        ChangeKind::Added => "A",
        ChangeKind::Changed => "C",
        ChangeKind::Deleted => "D",
    };
    if as_json {
        let list: Vec<Value> = changes
            .iter()
            .map(|change| json!({"kind": letter(change.kind), "path": change.path.to_string_lossy()}))
            .collect();
        return print_json(&list.into());
    }
    let mut out = BufWriter::new(io::stdout().lock());
    for change in changes {
        let path = std::os::unix::ffi::OsStrExt::as_bytes(change.path.as_os_str());
        let line = [letter(change.kind).as_bytes(), b" ", path, b"\n"].concat();
        match out.write_all(&line) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => {
                other.map_err(|error| Failure::failed(format!("writing to stdout: {error}")))?
            }
        }
    }
    match out.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("writing to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Rows in aligned columns. Columns whose heading ends with `>` are aligned to the right.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings
        .iter()
        .map(|heading| heading.trim_end_matches('>').chars().count())
        .collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for ((cell, width), heading) in cells.zip(&widths).zip(headings) {
            if !text.is_empty() {
                text.push_str("  ");
            }
            match heading.ends_with('>') {
                true => text.push_str(&format!("{cell:>width$}")),
                false => text.push_str(&format!("{cell:<width$}")),
            }
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = line(&mut headings.iter().map(|heading| heading.trim_end_matches('>')));
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// Bytes as people read them: `1.5 MiB`.
pub fn human(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// How long ago an RFC 3339 time was.
pub fn age(created: Option<&str>) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(0));
    match created.and_then(time::parse) {
        Some(then) => time::ago(now - then),
        None => "-".into(),
    }
}

/// Progress on stderr if that is a terminal, nothing otherwise.
pub fn progress(quiet: bool) -> Box<dyn Progress> {
    if quiet || !std::io::stderr().is_terminal() {
        return Box::new(crate::store::load::Quiet);
    }
    Box::new(Bars {
        all: MultiProgress::new(),
        layers: Mutex::new(BTreeMap::new()),
        phase: Mutex::new(None),
    })
}

/// A bar for each layer: bytes, rate, time left.
struct Bars {
    all: MultiProgress,
    layers: Mutex<BTreeMap<usize, ProgressBar>>,
    phase: Mutex<Option<ProgressBar>>,
}

impl Bars {
    fn finish_phase(&self) {
        if let Some(bar) = self.phase.lock().take() {
            bar.finish_and_clear();
        }
    }
}

const BAR: &str =
    "{prefix}  {bar:24} {bytes:>11} of {total_bytes:<11} {bytes_per_sec:>12}  {eta:>4} {msg}";
const NO_TOTAL: &str = "{prefix}  {spinner} {bytes:>11} {bytes_per_sec:>12} {msg}";

impl Progress for Bars {
    fn begin(&self, layer: &str, total: Option<u64>) -> usize {
        self.finish_phase();
        let mut layers = self.layers.lock();
        let number = layers.len();
        let template = if total.is_some() { BAR } else { NO_TOTAL };
        let style = ProgressStyle::with_template(template);
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        let bar = self.all.add(bar);
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(layer.to_owned());
        layers.insert(number, bar);
        number
    }

    fn advance(&self, layer: usize, bytes: u64) {
        if let Some(bar) = self.layers.lock().get(&layer) {
            bar.set_position(bytes);
        }
    }

    fn end(&self, layer: usize, how: &str) {
        if let Some(bar) = self.layers.lock().get(&layer) {
            if let Some(total) = bar.length() {
                bar.set_position(total);
            }
            bar.finish_with_message(how.to_owned());
        }
    }

    fn phase(&self, what: &str) {
        self.finish_phase();
        let bar = self.all.add(ProgressBar::new_spinner());
        bar.enable_steady_tick(Duration::from_millis(120));
        bar.set_message(what.to_owned());
        *self.phase.lock() = Some(bar);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.finish_phase();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![
            vec!["a".into(), "10".into(), "x".into()],
            vec!["longer".into(), "5".into(), String::new()],
        ];
        let text = table(&["NAME", "SIZE>", "REST"], &rows);
        assert_eq!(text, "NAME    SIZE  REST\na         10  x\nlonger     5\n");
    }

    #[test]
    fn the_store_is_where_the_environment_says() {
        let var = |name: &str| (name == "ROVL_ROOT").then(|| PathBuf::from("/x"));
        assert_eq!(default_root(&var).unwrap(), PathBuf::from("/x"));
    }
}
