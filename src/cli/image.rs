//! `rovl image`: images in, out, and their names.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::stored::{self, Place, human, print_json, table};
use super::{Failure, print};
use crate::store::Store;
use crate::store::archive::platform::Platform;
use crate::store::codec::compress::Compression;
use crate::store::ids::{random_hex, short};
use crate::store::images::Image;
use crate::store::load::{self, Input, LoadOptions, LoadedImage, Outcome};
use crate::store::names::Reference;
use crate::store::save::{DirectorySink, Format, SaveOptions, Saved, TarSink};

/// Load, list, tag, save and remove images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    Load(LoadArgs),
    Ls(LsArgs),
    Inspect(InspectArgs),
    History(HistoryArgs),
    Tag(TagArgs),
    Rm(RmArgs),
    Save(SaveArgs),
    Mount(MountArgs),
}

/// Load the images of an archive: docker-archive or OCI layout, a file, a directory, or standard input.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The archive; `-` or nothing: standard input
    #[arg(value_name = "FILE|DIR")]
    archive: Option<PathBuf>,
    /// Load the image for this platform, OS/ARCH[/VARIANT] (default: this machine's)
    #[arg(long)]
    platform: Option<Platform>,
    /// Give the image this name, instead of those in the archive
    #[arg(long, value_name = "NAME[:TAG]")]
    name: Option<Reference>,
    #[command(flatten)]
    unpack: UnpackArgs,
    /// Print what was loaded as JSON
    #[arg(long)]
    json: bool,
}

/// How layers are unpacked.
#[derive(Debug, Args)]
pub struct UnpackArgs {
    /// Unpack so many layers at once
    #[arg(long, value_name = "N", default_value_t = stored::default_jobs())]
    jobs: usize,
    /// Don't look for equal files in other layers
    #[arg(long)]
    no_dedup: bool,
    /// Leave files to the caller whose owners can't be had
    #[arg(long)]
    ignore_chown_errors: bool,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

impl UnpackArgs {
    /// As the store takes it.
    pub fn options(&self, platform: Option<Platform>, name: Option<Reference>) -> LoadOptions {
        LoadOptions {
            platform,
            name,
            jobs: self.jobs.clamp(1, 64),
            dedup: !self.no_dedup,
            unpack: stored::unpack_options(self.ignore_chown_errors),
        }
    }
}

/// Mount an image, read-only. `rovl container umount` takes it away again.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Who merges the layers
    #[arg(long, value_enum, default_value = "fuse")]
    driver: super::mounts::Driver,
    /// A name, an id or the beginning of one
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Where (default: a directory of the store)
    #[arg(value_name = "DIR")]
    target: Option<PathBuf>,
}

/// List images.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
}

/// Show everything about images, as JSON.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// Show how an image was made.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print whole commands and ids
    #[arg(long)]
    no_trunc: bool,
    /// A name, an id or the beginning of one
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// Give an image another name.
#[derive(Debug, Args)]
pub struct TagArgs {
    /// A name, an id or the beginning of one
    #[arg(value_name = "IMAGE")]
    image: String,
    /// The new name
    #[arg(value_name = "NAME[:TAG]")]
    name: Reference,
}

/// Take names away from images, and remove images with their last names.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Also an image with several names, by its id
    #[arg(short, long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// The form of an archive.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    /// As `docker save` writes it
    Docker,
    /// OCI image layout
    Oci,
}

/// How layers are compressed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressionArg {
    None,
    Gzip,
    Zstd,
}

/// Write images as an archive, their layers byte for byte as they were loaded.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Where to (default: standard output); a directory with `--dir`
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// Write a directory instead of a tar
    #[arg(long, requires = "output")]
    dir: bool,
    /// The form of the archive
    #[arg(long, value_enum, default_value = "docker")]
    format: FormatArg,
    /// Compress layers, in an OCI layout
    #[arg(long, value_enum, default_value = "none")]
    compress: CompressionArg,
    /// How much, as gzip and zstd count
    #[arg(long)]
    level: Option<i32>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

/// Runs `rovl image`.
pub fn run(command: ImageCommand, place: &Place) -> Result<(), Failure> {
    let store = place.open()?;
    match command {
        ImageCommand::Load(args) => run_load(args, &store),
        ImageCommand::Ls(args) => ls(&args, &store),
        ImageCommand::Inspect(args) => inspect(&args, &store),
        ImageCommand::History(args) => history(&args, &store),
        ImageCommand::Tag(args) => Ok(store.tag(&args.image, &args.name).map(drop)?),
        ImageCommand::Rm(args) => rm(&args, &store),
        ImageCommand::Save(args) => save(&args, &store),
        ImageCommand::Mount(args) => {
            let image = store.find_image(&args.image)?;
            super::container::mount_image(&store, &image, args.target.as_deref(), args.driver)
        }
    }
}

fn run_load(args: LoadArgs, store: &Store) -> Result<(), Failure> {
    let input = match args.archive {
        Some(path) if path.as_os_str() != "-" => Input::Path(path),
        _ if io::stdin().is_terminal() => {
            return Err(Failure::misused(
                "no archive: name a file or a directory, or feed one to standard input",
            ));
        }
        _ => Input::Stream(Box::new(io::stdin())),
    };
    let options = args.unpack.options(args.platform, args.name);
    let progress = stored::progress(args.unpack.quiet || args.json);
    let loaded = load::load(store, input, &options, progress.as_ref());
    drop(progress);
    let loaded = loaded?;
    if args.json {
        return print_json(&loaded.iter().map(loaded_json).collect());
    }
    let mut text = String::new();
    for image in &loaded {
        for name in &image.names {
            text.push_str(&format!("Loaded image: {name}\n"));
        }
        if image.names.is_empty() {
            text.push_str(&format!("Loaded image ID: {}\n", image.id));
        }
    }
    print(&text)
}

fn loaded_json(image: &LoadedImage) -> Value {
    let names: Vec<String> = image.names.iter().map(Reference::stored).collect();
    let layers: Vec<Value> = image
        .layers
        .iter()
        .map(|layer| {
            let outcome = match layer.outcome {
                Outcome::Unpacked => "unpacked",
                Outcome::Cloned => "cloned",
                Outcome::Existed => "existed",
            };
            json!({
                "chain_id": layer.chain_id, "diff_id": layer.diff_id,
                "outcome": outcome, "size": layer.size,
            })
        })
        .collect();
    json!({"id": image.id.to_string(), "names": names, "layers": layers})
}

/// Bytes of all layers of an image, as their records have them.
fn size_of(store: &Store, image: &Image) -> Result<u64, Failure> {
    let mut size = 0;
    for chain in image.config.chain_ids()? {
        size += store.layer(&chain)?.map_or(0, |layer| layer.size);
    }
    Ok(size)
}

fn ls(args: &LsArgs, store: &Store) -> Result<(), Failure> {
    let mut images = store.images()?;
    // The newest first, as docker has it.
    images.sort_by(|a, b| {
        b.config
            .created
            .cmp(&a.config.created)
            .then(a.id.cmp(&b.id))
    });
    if args.json {
        let mut list = Vec::new();
        for image in &images {
            list.push(json!({
                "id": image.id.to_string(),
                "names": image.names,
                "created": image.config.created,
                "size": size_of(store, image)?,
                "layers": image.config.diff_ids()?.len(),
                "platform": image.config.platform(),
            }));
        }
        return print_json(&list.into());
    }
    let id_of = |image: &Image| match args.no_trunc {
        true => image.id.to_string(),
        false => image.id.short(),
    };
    if args.quiet {
        let ids: Vec<String> = images.iter().map(|image| id_of(image) + "\n").collect();
        return print(&ids.concat());
    }
    let mut rows = Vec::new();
    for image in &images {
        let size = human(size_of(store, image)?);
        let none = vec!["<none>:<none>".to_owned()];
        let names = if image.names.is_empty() {
            &none
        } else {
            &image.names
        };
        for name in names {
            let (name, tag) = split_name(name);
            rows.push(vec![
                name.to_owned(),
                tag.to_owned(),
                id_of(image),
                stored::age(image.config.created.as_deref()),
                size.clone(),
            ]);
        }
    }
    print(&table(
        &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE>"],
        &rows,
    ))
}

/// Name and tag; a digest counts as no tag.
fn split_name(name: &str) -> (&str, &str) {
    match name.split_once('@') {
        Some((name, _)) => (name, "<none>"),
        None => name.rsplit_once(':').unwrap_or((name, "")),
    }
}

fn inspect(args: &InspectArgs, store: &Store) -> Result<(), Failure> {
    let mut list = Vec::new();
    for name in &args.images {
        let image = store.find_image(name)?;
        let config = &image.config;
        let mut layers = Vec::new();
        for chain in config.chain_ids()? {
            layers.push(match store.layer(&chain)? {
                Some(layer) => json!({
                    "ChainId": layer.chain_id, "DiffId": layer.diff_id,
                    "CacheId": layer.cache_id.as_str(), "Size": layer.size,
                }),
                None => json!({"ChainId": chain, "Missing": true}),
            });
        }
        let (tags, digests): (Vec<&String>, Vec<&String>) =
            image.names.iter().partition(|name| !name.contains('@'));
        list.push(json!({
            "Id": image.id.to_string(),
            "RepoTags": tags,
            "RepoDigests": digests,
            "Created": config.created,
            "Author": config.author.clone().unwrap_or_default(),
            "Architecture": config.architecture,
            "Variant": config.variant,
            "Os": config.os,
            "Size": size_of(store, &image)?,
            "Config": config.config,
            "RootFS": {"Type": "layers", "Layers": config.diff_ids()?},
            "Layers": layers,
        }));
    }
    print_json(&list.into())
}

fn history(args: &HistoryArgs, store: &Store) -> Result<(), Failure> {
    let image = store.find_image(&args.image)?;
    let chains = image.config.chain_ids()?;
    let mut chains = chains.iter();
    let mut steps = Vec::new();
    let recorded = image.config.history.clone().unwrap_or_default();
    for step in &recorded {
        let chain = if step.empty_layer {
            None
        } else {
            chains.next()
        };
        steps.push((Some(step), chain));
    }
    // Layers of which the history says nothing.
    steps.extend(chains.map(|chain| (None, Some(chain))));
    let mut list = Vec::new();
    let mut rows = Vec::new();
    for (step, chain) in steps.iter().rev() {
        let layer = match chain {
            Some(chain) => store.layer(chain)?,
            None => None,
        };
        let size = layer.as_ref().map_or(0, |layer| layer.size);
        let created = step.and_then(|step| step.created.as_deref());
        let by = step
            .and_then(|step| step.created_by.as_deref())
            .unwrap_or_default();
        let comment = step
            .and_then(|step| step.comment.as_deref())
            .unwrap_or_default();
        list.push(json!({
            "created": created, "created_by": by, "comment": comment, "size": size,
            "chain_id": chain, "empty_layer": chain.is_none(),
        }));
        let by = by.replace(['\n', '\t'], " ");
        rows.push(vec![
            match (chain, args.no_trunc) {
                (None, _) => "-".to_owned(),
                (Some(chain), true) => chain.to_string(),
                (Some(chain), false) => short(&chain.0),
            },
            stored::age(created),
            match args.no_trunc || by.chars().count() <= 60 {
                true => by,
                false => by.chars().take(59).chain(['…']).collect(),
            },
            human(size),
            comment.to_owned(),
        ]);
    }
    if args.json {
        return print_json(&list.into());
    }
    print(&table(
        &["LAYER", "CREATED", "CREATED BY", "SIZE>", "COMMENT"],
        &rows,
    ))
}

fn rm(args: &RmArgs, store: &Store) -> Result<(), Failure> {
    let mut text = String::new();
    let mut list = Vec::new();
    for image in &args.images {
        let removed = store.remove_image(image, args.force)?;
        for name in &removed.names {
            text.push_str(&format!("Untagged: {name}\n"));
        }
        if let Some(id) = &removed.image {
            text.push_str(&format!("Deleted: {id}\n"));
        }
        for layer in &removed.layers {
            text.push_str(&format!("Deleted: {layer}\n"));
        }
        list.push(json!({
            "names": removed.names,
            "image": removed.image.map(|id| id.to_string()),
            "layers": removed.layers,
        }));
    }
    match args.json {
        true => print_json(&list.into()),
        false => print(&text),
    }
}

fn save(args: &SaveArgs, store: &Store) -> Result<(), Failure> {
    let options = SaveOptions {
        format: match args.format {
            FormatArg::Docker => Format::Docker,
            FormatArg::Oci => Format::Oci,
        },
        compression: match args.compress {
            CompressionArg::None => Compression::None,
            CompressionArg::Gzip => Compression::Gzip,
            CompressionArg::Zstd => Compression::Zstd,
        },
        level: args.level,
    };
    if options.format == Format::Docker && options.compression != Compression::None {
        return Err(Failure::misused(
            "a docker-archive has plain layers: use --format oci with --compress",
        ));
    }
    let images = images_to_save(args, store)?;
    let progress = stored::progress(args.quiet);
    let save_to = |sink: &mut dyn crate::store::save::Sink| {
        store.save(&images, sink, &options, progress.as_ref())
    };
    match (&args.output, args.dir) {
        (Some(path), true) => Ok(save_to(&mut DirectorySink::new(path)?)?),
        (Some(path), false) => to_file(path, |out| {
            save_to(&mut TarSink::new(out)).map_err(Failure::from)
        }),
        (None, _) => {
            let stdout = io::stdout().lock();
            if stdout.is_terminal() {
                return Err(Failure::misused(
                    "an archive is not for a terminal: use --output, or redirect it",
                ));
            }
            Ok(save_to(&mut TarSink::new(BufWriter::with_capacity(
                1 << 20,
                stdout,
            )))?)
        }
    }
}

/// What was named, each image once. By name, it is saved under that name; by id, under all of its names.
fn images_to_save(args: &SaveArgs, store: &Store) -> Result<Vec<Saved>, Failure> {
    let mut images: Vec<Saved> = Vec::new();
    for name in &args.images {
        let image = store.find_image(name)?;
        let reference = name
            .parse::<Reference>()
            .ok()
            .filter(|reference| image.names.contains(&reference.stored()));
        let names: Vec<Reference> = match reference {
            Some(reference) if reference.digest().is_none() => vec![reference],
            Some(_) => Vec::new(),
            None => image
                .names
                .iter()
                .filter_map(|name| name.parse::<Reference>().ok())
                .filter(|reference| reference.digest().is_none())
                .collect(),
        };
        match images.iter_mut().find(|saved| saved.image.id == image.id) {
            Some(saved) => saved.names.extend(names),
            None => images.push(Saved { image, names }),
        }
    }
    for saved in &mut images {
        saved.names.sort();
        saved.names.dedup();
    }
    Ok(images)
}

/// Writes a file that appears whole or not at all; something that is no file is written as it is.
pub fn to_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |what: &str, error: io::Error| {
        Failure::failed(format!("{what} {}: {error}", path.display()))
    };
    let is_special = path.metadata().is_ok_and(|metadata| !metadata.is_file());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let target = match is_special {
        true => path.to_owned(),
        false => path.with_file_name(format!(".{name}.{}", random_hex::<4>()?)),
    };
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(!is_special)
        .open(&target)
        .map_err(|error| failed("making", error))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let written =
        write(&mut writer).and_then(|()| writer.flush().map_err(|error| failed("writing", error)));
    if is_special {
        return written;
    }
    let renamed = written.and_then(|()| {
        std::fs::rename(&target, path).map_err(|error| failed("renaming to", error))
    });
    if renamed.is_err()
        && let Err(error) = std::fs::remove_file(&target)
    {
        tracing::debug!(%error, "what was written stays");
    }
    renamed
}
