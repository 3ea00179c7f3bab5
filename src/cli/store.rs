//! `rovl store`: the whole of it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::stored::{self, Place, human, print_json, table};
use super::{Failure, print};
use crate::store::Store;
use crate::store::archive::source::{DirectorySource, Source, TarSource};
use crate::store::fsck::{FsckOptions, Repaired, Report};
use crate::store::gc::GcOptions;
use crate::store::ids::short;
use crate::store::usage::{ImageUsage, LayerUsage, Usage};

/// Look after the store.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    Info(InfoArgs),
    Df(DfArgs),
    Gc(GcArgs),
    Fsck(FsckArgs),
}

/// Show where the store is and what is in it.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show what takes how much space.
#[derive(Debug, Args)]
pub struct DfArgs {
    /// Print JSON, in bytes
    #[arg(long)]
    json: bool,
}

/// Remove what nothing refers to, also what a crash left.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Also images without a name
    #[arg(long)]
    untagged: bool,
    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Check layers against what was loaded (contents, owners, modes, times, attributes), and the layout against itself.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// Make right what can be: links and index from the records, contents from `--from`
    #[arg(long)]
    repair: bool,
    /// An archive with the images whose layers are damaged
    #[arg(long, value_name = "FILE|DIR", requires = "repair")]
    from: Option<PathBuf>,
    /// Check the layout only, without reading the layers' files
    #[arg(long)]
    quick: bool,
    /// Check so many layers at once
    #[arg(long, value_name = "N", default_value_t = stored::default_jobs())]
    jobs: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Runs `rovl store`.
pub fn run(command: StoreCommand, place: &Place) -> Result<(), Failure> {
    let store = place.open()?;
    match command {
        StoreCommand::Info(args) => info(&args, &store),
        StoreCommand::Df(args) => df(&args, &store),
        StoreCommand::Gc(args) => gc(&args, &store),
        StoreCommand::Fsck(args) => fsck(&args, &store),
    }
}

fn info(args: &InfoArgs, store: &Store) -> Result<(), Failure> {
    let (images, layers) = (store.image_ids()?.len(), store.layers()?.len());
    let containers = store.mount_records()?.len();
    let space = rustix::fs::statvfs(store.root()).ok();
    let free = space.map(|space| space.f_bavail * space.f_frsize);
    if args.json {
        return print_json(&json!({
            "root": store.root(), "images": images, "layers": layers,
            "containers": containers, "free_bytes": free,
        }));
    }
    let mut rows = vec![
        vec!["root".to_owned(), store.root().display().to_string()],
        vec!["images".to_owned(), images.to_string()],
        vec!["layers".to_owned(), layers.to_string()],
        vec!["containers".to_owned(), containers.to_string()],
    ];
    rows.extend(free.map(|free| vec!["free".to_owned(), human(free)]));
    let width = rows
        .iter()
        .filter_map(|row| row.first())
        .map(String::len)
        .max()
        .unwrap_or(0);
    let lines: Vec<String> = rows
        .iter()
        .map(|row| match row.as_slice() {
            [name, value] => format!("{name:<width$}  {value}\n"),
            _ => String::new(),
        })
        .collect();
    print(&lines.concat())
}

/// The parts of the store, each byte in one of them.
fn parts(usage: &Usage) -> [(&'static str, u64); 9] {
    [
        ("layers", usage.layer_bytes),
        ("containers", usage.container_bytes),
        ("records", usage.record_bytes),
        ("images", usage.image_bytes),
        ("index", usage.index_bytes),
        ("transactions", usage.transaction_bytes),
        ("garbage", usage.garbage_bytes),
        ("other", usage.foreign_bytes),
        ("directories", usage.layout_bytes),
    ]
}

fn df(args: &DfArgs, store: &Store) -> Result<(), Failure> {
    let usage = store.usage()?;
    let unreferenced: u64 = usage
        .layers
        .iter()
        .filter(|layer| !layer.referenced)
        .map(|layer| layer.bytes)
        .sum();
    match args.json {
        true => print_json(&usage_json(&usage, unreferenced)),
        false => print(&usage_text(&usage, unreferenced)),
    }
}

fn usage_json(usage: &Usage, unreferenced: u64) -> Value {
    let image = |image: &ImageUsage| {
        json!({
            "id": image.id.to_string(), "names": image.names, "total": image.total,
            "shared": image.shared, "unique": image.unique, "saved": image.saved,
        })
    };
    let layer = |layer: &LayerUsage| {
        json!({
            "chain_id": layer.chain_id, "bytes": layer.bytes, "saved": layer.saved,
            "referenced": layer.referenced,
        })
    };
    let parts: serde_json::Map<_, _> = parts(usage)
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes.into()))
        .collect();
    json!({
        "images": usage.images.iter().map(image).collect::<Vec<_>>(),
        "layers": usage.layers.iter().map(layer).collect::<Vec<_>>(),
        "parts": parts, "total": usage.total,
        "unreferenced_layers": unreferenced, "saved": usage.saved,
    })
}

fn usage_text(usage: &Usage, unreferenced: u64) -> String {
    let rows: Vec<Vec<String>> = usage
        .images
        .iter()
        .map(|image| {
            let name = image.names.first().map_or("<none>", String::as_str);
            vec![
                name.to_owned(),
                image.id.short(),
                human(image.total),
                human(image.shared),
                human(image.unique),
                human(image.saved),
            ]
        })
        .collect();
    let headings = ["IMAGE", "ID", "TOTAL>", "SHARED>", "UNIQUE>", "SAVED>"];
    let mut text = table(&headings, &rows);
    text.push('\n');
    let mut rows: Vec<Vec<String>> = parts(usage)
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| vec![name.to_owned(), human(bytes)])
        .collect();
    rows.push(vec!["total".into(), human(usage.total)]);
    let remarks = [
        ("of it, layers that nothing refers to", unreferenced),
        ("saved by shared blocks", usage.saved),
    ];
    for (what, bytes) in remarks.into_iter().filter(|(_, bytes)| *bytes > 0) {
        rows.push(vec![what.into(), human(bytes)]);
    }
    text.push_str(&table(&["PART", "BYTES>"], &rows));
    text
}

fn gc(args: &GcArgs, store: &Store) -> Result<(), Failure> {
    let collected = store.gc(GcOptions {
        untagged: args.untagged,
        dry_run: args.dry_run,
    })?;
    if args.json {
        let images: Vec<String> = collected.images.iter().map(ToString::to_string).collect();
        return print_json(&json!({
            "images": images, "layers": collected.layers,
            "leftovers": collected.leftovers, "bytes": collected.bytes,
        }));
    }
    let mut text = String::new();
    for image in &collected.images {
        text.push_str(&format!("image {}\n", image.short()));
    }
    for layer in &collected.layers {
        text.push_str(&format!("layer {}\n", short(&layer.0)));
    }
    for path in &collected.leftovers {
        text.push_str(&format!("{}\n", path.display()));
    }
    let verb = if args.dry_run { "would free" } else { "freed" };
    text.push_str(&format!("{verb} {}\n", human(collected.bytes)));
    print(&text)
}

fn fsck(args: &FsckArgs, store: &Store) -> Result<(), Failure> {
    let options = FsckOptions {
        jobs: args.jobs.clamp(1, 64),
        contents: !args.quick,
    };
    let progress = stored::progress(args.quiet || args.json);
    let report = store.fsck(options, progress.as_ref())?;
    let mut repaired = None;
    if args.repair {
        let archive = args.from.as_ref().map(open_archive).transpose()?;
        let unpack = stored::unpack_options(false);
        let result = store.repair(&report, archive.as_ref(), &unpack, progress.as_ref())?;
        repaired = Some(result);
    }
    drop(progress);
    show(args, &report, repaired.as_ref())
}

fn open_archive(path: &PathBuf) -> Result<Source, Failure> {
    if path.is_dir() {
        return Ok(Source::Directory(DirectorySource::new(path)?));
    }
    let file = std::fs::File::open(path)
        .map_err(|error| Failure::failed(format!("opening {}: {error}", path.display())))?;
    Ok(Source::Tar(TarSource::new(path, file)?))
}

fn show(args: &FsckArgs, report: &Report, repaired: Option<&Repaired>) -> Result<(), Failure> {
    let faults: Vec<&str> = report
        .faults
        .iter()
        .map(|fault| fault.what.as_str())
        .collect();
    let left = match repaired {
        Some(repaired) => repaired.left.len(),
        None => faults.len(),
    };
    if args.json {
        print_json(&json!({
            "layers": report.layers, "images": report.images, "bytes": report.bytes,
            "garbage": report.garbage, "faults": faults,
            "repaired": repaired.map(|repaired| &repaired.done),
            "left": repaired.map(|repaired| &repaired.left),
        }))?;
    } else {
        let mut text = String::new();
        for fault in &faults {
            text.push_str(&format!("{fault}\n"));
        }
        for done in repaired.iter().flat_map(|repaired| &repaired.done) {
            text.push_str(&format!("repaired: {done}\n"));
        }
        for left in repaired.iter().flat_map(|repaired| &repaired.left) {
            text.push_str(&format!("not repaired: {left}\n"));
        }
        text.push_str(&format!(
            "{} layers, {} images, {} read: {}\n",
            report.layers,
            report.images,
            human(report.bytes),
            match faults.len() {
                0 => "all is well".to_owned(),
                count => format!("{count} faults"),
            }
        ));
        if report.garbage > 0 {
            text.push_str(&format!(
                "{} things that nothing refers to: `rovl store gc` removes them\n",
                report.garbage
            ));
        }
        print(&text)?;
    }
    match (left, args.repair) {
        (0, _) => Ok(()),
        (count, true) => Err(Failure::failed(format!("{count} faults are left"))),
        (count, false) => Err(Failure::failed(format!(
            "{count} faults; `rovl store fsck --repair --from ARCHIVE` makes right what it can"
        ))),
    }
}
