//! `rovl layer`: single layers.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Read, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::image::{UnpackArgs, to_file};
use super::stored::{self, Place, human, print_changes, print_json, table};
use super::{Failure, print};
use crate::store::Store;
use crate::store::ids::short;
use crate::store::layout::{self, LayerRecord};
use crate::store::load;

/// List, make, compare, export and verify layers.
#[derive(Debug, Subcommand)]
pub enum LayerCommand {
    Ls(LsArgs),
    Inspect(InspectArgs),
    Apply(ApplyArgs),
    Diff(DiffArgs),
    Export(ExportArgs),
    Verify(VerifyArgs),
}

/// List layers.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
}

/// Show everything about layers, as JSON.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Chain-ids, diff-ids, or beginnings of them
    #[arg(value_name = "LAYER", required = true)]
    layers: Vec<String>,
}

/// Make a layer of a tar, compressed or not.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Put it on top of this layer
    #[arg(long, value_name = "LAYER")]
    parent: Option<String>,
    #[command(flatten)]
    unpack: UnpackArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The tar; `-`: standard input
    #[arg(value_name = "TAR")]
    tar: PathBuf,
}

/// Show what a layer changes in those below: A added, C changed, D deleted.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// A chain-id, a diff-id, or the beginning of one
    #[arg(value_name = "LAYER")]
    layer: String,
}

/// Write a layer's tar, byte for byte as it came in.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Where to (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A chain-id, a diff-id, or the beginning of one
    #[arg(value_name = "LAYER")]
    layer: String,
}

/// Hold layers against their diff-ids.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Chain-ids, diff-ids, or beginnings of them
    #[arg(value_name = "LAYER", required = true)]
    layers: Vec<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Runs `rovl layer`.
pub fn run(command: LayerCommand, place: &Place) -> Result<(), Failure> {
    let store = place.open()?;
    match command {
        LayerCommand::Ls(args) => ls(&args, &store),
        LayerCommand::Inspect(args) => inspect(&args, &store),
        LayerCommand::Apply(args) => apply(&args, &store),
        LayerCommand::Diff(args) => diff(&args, &store),
        LayerCommand::Export(args) => export(&args, &store),
        LayerCommand::Verify(args) => verify(&args, &store),
    }
}

fn layer_json(store: &Store, layer: &LayerRecord) -> Result<Value, Failure> {
    let disk = store.disk();
    let link = layout::read_link_id(disk, &layer.cache_id)?;
    Ok(json!({
        "chain_id": layer.chain_id,
        "diff_id": layer.diff_id,
        "parent": layer.parent,
        "cache_id": layer.cache_id.as_str(),
        "size": layer.size,
        "diff": disk.path(layout::layer_diff(&layer.cache_id)),
        "link": link.map(|link| link.to_string()),
        "lower": layout::read_lower(disk, &layer.cache_id)?,
    }))
}

fn ls(args: &LsArgs, store: &Store) -> Result<(), Failure> {
    let layers = store.layers()?;
    if args.json {
        let list: Result<Vec<Value>, Failure> = layers
            .iter()
            .map(|layer| layer_json(store, layer))
            .collect();
        return print_json(&list?.into());
    }
    let id_of = |digest: &crate::store::ids::Digest| match args.no_trunc {
        true => digest.to_string(),
        false => short(digest),
    };
    let rows: Vec<Vec<String>> = layers
        .iter()
        .map(|layer| {
            vec![
                id_of(&layer.chain_id.0),
                id_of(&layer.diff_id.0),
                layer.parent.map_or("-".into(), |parent| id_of(&parent.0)),
                human(layer.size),
            ]
        })
        .collect();
    print(&table(&["CHAIN ID", "DIFF ID", "PARENT", "SIZE>"], &rows))
}

fn inspect(args: &InspectArgs, store: &Store) -> Result<(), Failure> {
    let mut list = Vec::new();
    for name in &args.layers {
        let layer = store.find_layer(name)?;
        let mut value = layer_json(store, &layer)?;
        let lowers: Vec<PathBuf> = store
            .chain_of(&layer.chain_id)?
            .iter()
            .map(|layer| store.disk().path(layout::layer_diff(&layer.cache_id)))
            .collect();
        if let Some(value) = value.as_object_mut() {
            value.insert("lowers".into(), json!(lowers));
            value.insert("tar_bytes".into(), json!(store.tar_bytes(&layer)?));
        }
        list.push(value);
    }
    print_json(&list.into())
}

fn apply(args: &ApplyArgs, store: &Store) -> Result<(), Failure> {
    let parent = match &args.parent {
        Some(name) => Some(store.find_layer(name)?.chain_id),
        None => None,
    };
    let tar: Box<dyn Read + Send> =
        if args.tar.as_os_str() == "-" {
            Box::new(io::stdin())
        } else {
            let opened = File::open(&args.tar);
            Box::new(opened.map_err(|error| {
                Failure::failed(format!("opening {}: {error}", args.tar.display()))
            })?)
        };
    let options = args.unpack.options(None, None);
    let progress = stored::progress(args.unpack.quiet || args.json);
    let layer = load::apply(store, tar, parent.as_ref(), &options, progress.as_ref());
    drop(progress);
    let layer = layer?;
    match args.json {
        true => print_json(&json!({
            "chain_id": layer.chain_id, "diff_id": layer.diff_id, "size": layer.size,
        })),
        false => print(&format!("{}\n", layer.chain_id)),
    }
}

fn diff(args: &DiffArgs, store: &Store) -> Result<(), Failure> {
    let layer = store.find_layer(&args.layer)?;
    let changes = store.changes(&layer)?;
    print_changes(&changes, args.json)
}

fn export(args: &ExportArgs, store: &Store) -> Result<(), Failure> {
    let layer = store.find_layer(&args.layer)?;
    let _hold = store.hold([&layer])?;
    match &args.output {
        Some(path) => to_file(path, |out| {
            store
                .export_layer(&layer, out)
                .map(drop)
                .map_err(Failure::from)
        }),
        None => {
            let stdout = io::stdout().lock();
            if stdout.is_terminal() {
                return Err(Failure::misused(
                    "a tar is not for a terminal: use --output, or redirect it",
                ));
            }
            let mut out = BufWriter::with_capacity(1 << 20, stdout);
            store.export_layer(&layer, &mut out)?;
            out.flush()
                .map_err(|error| Failure::failed(format!("writing to stdout: {error}")))
        }
    }
}

fn verify(args: &VerifyArgs, store: &Store) -> Result<(), Failure> {
    let progress = stored::progress(args.quiet);
    let mut damaged = Vec::new();
    let mut text = String::new();
    for name in &args.layers {
        let layer = store.find_layer(name)?;
        match store.verify_layer(&layer, progress.as_ref())? {
            (None, _) => text.push_str(&format!("{}: ok\n", layer.chain_id)),
            (Some(fault), _) => damaged.push(fault.what),
        }
    }
    drop(progress);
    print(&text)?;
    match damaged.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(damaged.join("\nrovl: "))),
    }
}
