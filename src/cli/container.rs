//! `rovl container`: writable layers over images.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::mounts::{self, Driver, MergedTree};
use super::stored::{self, Place, age, human, print_changes, print_json, table};
use super::{Failure, print, run};
use crate::store::Store;
use crate::store::container::change::Change;
use crate::store::container::commit::CommitOptions;
use crate::store::container::mounts::MountNotes;
use crate::store::container::{Container, ContainerName, NewContainer};
use crate::store::images::Image;
use crate::store::layout;
use crate::store::load::LoadOptions;
use crate::store::names::Reference;
use crate::store::pack::{self, Extent};
use crate::store::usage::tree_usage;

/// Make containers, mount them, and make images of what was changed in them.
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    Create(CreateArgs),
    Ls(LsArgs),
    Rm(RmArgs),
    Mount(MountArgs),
    Umount(UmountArgs),
    Diff(DiffArgs),
    Commit(CommitArgs),
    Export(ExportArgs),
}

/// Make a container: a writable layer over an image.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name (default: one is made up)
    #[arg(long)]
    name: Option<ContainerName>,
    /// A name, an id or the beginning of one
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// List containers.
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
    /// Print what they take on disk
    #[arg(short, long)]
    size: bool,
}

/// Remove containers.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Also one that is mounted or running: it is unmounted, what runs is killed
    #[arg(short, long)]
    force: bool,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// Mount a container, or list what is mounted.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Who merges the layers
    #[arg(long, value_enum, default_value = "fuse")]
    driver: Driver,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// A name, an id or the beginning of one; nothing: list mounts
    #[arg(value_name = "CONTAINER")]
    container: Option<String>,
    /// Where (default: `merged` in the container's directory)
    #[arg(value_name = "DIR")]
    target: Option<PathBuf>,
}

/// Unmount containers.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Take it out of the tree at once, also when it is in use
    #[arg(short, long)]
    lazy: bool,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// Show what a container has changed: A added, C changed, D deleted.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Print JSON
    #[arg(long, conflicts_with = "tar")]
    json: bool,
    /// Write the changes as a layer's tar, with whiteouts
    #[arg(long)]
    tar: bool,
    /// Where the tar goes (default: standard output)
    #[arg(short, long, value_name = "FILE", requires = "tar")]
    output: Option<PathBuf>,
    /// A name, an id or the beginning of one
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Make an image of a container.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Said in the image's history
    #[arg(short, long)]
    message: Option<String>,
    /// Who made it
    #[arg(short, long)]
    author: Option<String>,
    /// Change the config, as a line of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER,
    /// VOLUME or WORKDIR
    #[arg(short, long = "change", value_name = "LINE")]
    changes: Vec<Change>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// A name, an id or the beginning of one
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The image's name
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<Reference>,
}

/// Write the whole tree of a container as a tar.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Where to (default: standard output)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A name, an id or the beginning of one
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Runs `rovl container`.
pub fn run(command: ContainerCommand, place: &Place) -> Result<(), Failure> {
    let store = place.open()?;
    match command {
        ContainerCommand::Create(args) => create(args, &store),
        ContainerCommand::Ls(args) => list(&args, &store),
        ContainerCommand::Rm(args) => remove(&args, &store),
        ContainerCommand::Mount(args) => mount(&args, &store),
        ContainerCommand::Umount(args) => unmount(&args, &store),
        ContainerCommand::Diff(args) => diff(&args, &store),
        ContainerCommand::Commit(args) => commit(args, &store),
        ContainerCommand::Export(args) => {
            let container = store.find_container(&args.container)?;
            write_tar(
                &store,
                &container,
                Extent::Everything,
                args.output.as_deref(),
            )
        }
    }
}

fn create(args: CreateArgs, store: &Store) -> Result<(), Failure> {
    let new = NewContainer {
        name: args.name,
        ..NewContainer::default()
    };
    let (container, _lock) = store.create_container(&args.image, new)?;
    print(&format!("{}\n", container.id))
}

/// What a container is doing.
fn status(store: &Store, container: &Container, mount: Option<&MountNotes>) -> &'static str {
    if mount.is_some() {
        return "mounted";
    }
    match store.is_container_free(container) {
        Ok(false) => "running",
        _ => "created",
    }
}

fn list(args: &LsArgs, store: &Store) -> Result<(), Failure> {
    let mounts = mounts::live(store)?;
    let containers = store.containers()?;
    let mount_of = |c: &Container| mounts.iter().find(|notes| notes.key == c.id);
    if args.json {
        let mut values = Vec::new();
        for c in &containers {
            let mount = mount_of(c);
            values.push(json!({
                "id": c.id, "name": c.name(), "mount_id": c.mount_id, "init_id": c.init_id,
                "parent": c.parent.map(|parent| parent.to_string()),
                "image": c.notes.as_ref().map(|notes| &notes.image),
                "image_name": c.notes.as_ref().map(|notes| &notes.image_name),
                "created": c.notes.as_ref().map(|notes| &notes.created),
                "status": status(store, c, mount),
                "mounted_at": mount.map(|mount| mount.target.to_string_lossy()),
                "driver": mount.map(|mount| &mount.driver),
                "size": tree_usage(&store.disk().path(c.upper()))?,
            }));
        }
        return print_json(&values.into());
    }
    let id = |c: &Container| match args.no_trunc {
        true => c.id.clone(),
        false => c.short().to_owned(),
    };
    if args.quiet {
        let ids: Vec<String> = containers.iter().map(|c| id(c) + "\n").collect();
        return print(&ids.concat());
    }
    let mut rows = Vec::new();
    for c in &containers {
        let notes = c.notes.as_ref();
        let mount = mount_of(c);
        let place = mount.map(|mount| mount.target.to_string_lossy().into_owned());
        let mut row = vec![
            id(c),
            notes.map_or("-".into(), |notes| notes.image_name.clone()),
            age(notes.map(|notes| notes.created.as_str())),
            status(store, c, mount).to_owned(),
            notes.map_or("-".into(), |notes| notes.name.clone()),
            place.unwrap_or_else(|| "-".into()),
        ];
        if args.size {
            row.push(human(tree_usage(&store.disk().path(c.upper()))?));
        }
        rows.push(row);
    }
    let mut headings = vec![
        "CONTAINER ID",
        "IMAGE",
        "CREATED",
        "STATUS",
        "NAME",
        "MOUNTED AT",
    ];
    if args.size {
        headings.push("SIZE>");
    }
    print(&table(&headings, &rows))
}

fn remove(args: &RmArgs, store: &Store) -> Result<(), Failure> {
    mounts::tidy(store)?;
    for name in &args.containers {
        let container = match store.find_container(name) {
            // As `rm --force` of Docker: what isn't there needs no removing.
            Err(crate::store::error::StoreError::NotFound { .. }) if args.force => continue,
            other => other?,
        };
        if args.force {
            for notes in store.mount_notes()? {
                if notes.key == container.id {
                    mounts::unmount(store, &notes, true)?;
                }
            }
            run::kill(store, &container)?;
        }
        match store.remove_container(&container) {
            // It went by itself once it had been killed.
            Err(crate::store::error::StoreError::NotFound { .. }) if args.force => {}
            other => other?,
        }
        print(&format!("{name}\n"))?;
    }
    Ok(())
}

/// What a container's mount merges.
pub fn merged_tree(store: &Store, container: &Container) -> Result<MergedTree, Failure> {
    let short = layout::read_text(store.disk(), container.dir().join("lower"))?;
    Ok(MergedTree {
        lowers: store.container_lowers(container)?,
        short_lowers: short.unwrap_or_default(),
        base: store.disk().path(layout::OVERLAY),
        upper: Some(container.mount_id.clone()),
        source: format!("rovl-{}", container.short()),
        volatile: false,
    })
}

fn mount(args: &MountArgs, store: &Store) -> Result<(), Failure> {
    let Some(name) = &args.container else {
        return list_mounts(store, args.json);
    };
    let mounted = mounts::live(store)?;
    let container = store.find_container(name)?;
    if let Some(notes) = mounted.iter().find(|notes| notes.key == container.id) {
        return Err(Failure::failed(format!(
            "container {} is mounted at {} already",
            container.short(),
            notes.target.display()
        )));
    }
    // Inherited by the daemon: as long as it lives, neither the container nor its layers can be removed.
    let _lock = store.hold_container(&container)?;
    let _hold = match &container.parent {
        Some(parent) => Some(store.hold(&store.chain_of(parent)?)?),
        None => None,
    };
    let target = match &args.target {
        Some(target) => target.clone(),
        None => store.disk().path(container.dir().join("merged")),
    };
    let tree = merged_tree(store, &container)?;
    let what = match container.name() {
        "" => container.short(),
        name => name,
    };
    mount_noted(store, &tree, (&container.id, what), &target, args.driver)
}

/// Mounts, notes it, and prints where.
fn mount_noted(
    store: &Store,
    tree: &MergedTree,
    (key, what): (&str, &str),
    target: &Path,
    driver: Driver,
) -> Result<(), Failure> {
    let (target, made) = mounts::ensure_target(target)?;
    let used = match tree.mount(&target, driver) {
        Ok(used) => used,
        Err(failure) => {
            if made && let Err(error) = std::fs::remove_dir(&target) {
                tracing::debug!(%error, "the mount point stays");
            }
            return Err(failure);
        }
    };
    if driver == Driver::Auto {
        eprintln!(
            "rovl: mounted by {}",
            match used {
                "kernel" => "the kernel's overlayfs",
                _ => "rovl, over FUSE",
            }
        );
    }
    mounts::note(store, tree, key, what, &target, used, made)?;
    print(&format!("{}\n", target.display()))
}

/// Mounts an image, read-only.
pub fn mount_image(
    store: &Store,
    image: &Image,
    target: Option<&Path>,
    driver: Driver,
) -> Result<(), Failure> {
    let key = format!("image-{}", image.id.digest().hex());
    let mounted = mounts::live(store)?;
    if let Some(notes) = mounted.iter().find(|notes| notes.key == key) {
        return Err(Failure::failed(format!(
            "image {} is mounted at {} already",
            image.id.short(),
            notes.target.display()
        )));
    }
    let (layers, _hold) = store.hold_image(image)?;
    let Some(top) = layers.last() else {
        return Err(Failure::failed(format!(
            "image {} has no layers",
            image.id.short()
        )));
    };
    let link = layout::read_link_id(store.disk(), &top.cache_id)?.ok_or_else(|| {
        Failure::failed(format!(
            "layer {} has no link; `rovl store fsck` says more",
            top.chain_id
        ))
    })?;
    let lower = layout::read_lower(store.disk(), &top.cache_id)?;
    let tree = MergedTree {
        lowers: layers
            .iter()
            .rev()
            .map(|layer| store.disk().path(layout::layer_diff(&layer.cache_id)))
            .collect(),
        short_lowers: layout::lower_of_child(&link, lower.as_deref()),
        base: store.disk().path(layout::OVERLAY),
        upper: None,
        source: format!("rovl-image-{}", image.id.short()),
        volatile: false,
    };
    let target = match target {
        Some(target) => target.to_owned(),
        None => store.disk().path(layout::MOUNTS).join(&key),
    };
    let short = image.id.short();
    let what = image.names.first().unwrap_or(&short);
    mount_noted(store, &tree, (&key, what), &target, driver)
}

fn list_mounts(store: &Store, as_json: bool) -> Result<(), Failure> {
    let mounts = mounts::live(store)?;
    if as_json {
        let values: Vec<Value> = mounts
            .iter()
            .map(|m| {
                json!({
                    "id": m.key, "name": m.what, "target": m.target.to_string_lossy(),
                    "driver": m.driver,
                })
            })
            .collect();
        return print_json(&values.into());
    }
    let rows: Vec<Vec<String>> = mounts
        .iter()
        .map(|m| {
            let id = m.key.strip_prefix("image-").unwrap_or(&m.key);
            let target = m.target.to_string_lossy().into_owned();
            vec![
                id.chars().take(12).collect(),
                m.what.clone(),
                m.driver.clone(),
                target,
            ]
        })
        .collect();
    print(&table(&["ID", "NAME", "DRIVER", "MOUNTED AT"], &rows))
}

fn unmount(args: &UmountArgs, store: &Store) -> Result<(), Failure> {
    for name in &args.containers {
        let mounted = mounts::live(store)?;
        let key = match store.find_container(name) {
            Ok(container) => container.id,
            // Images are mounted too.
            Err(error) => match store.find_image(name) {
                Ok(image) => format!("image-{}", image.id.digest().hex()),
                Err(_) => return Err(error.into()),
            },
        };
        let Some(notes) = mounted.iter().find(|notes| notes.key == key) else {
            return Err(Failure::failed(format!("{name} is not mounted")));
        };
        mounts::unmount(store, notes, args.lazy)?;
    }
    Ok(())
}

/// Has what is still on its way reach the layers; how they are to be read then.
fn settle(store: &Store, container: &Container) -> Result<pack::Options, Failure> {
    let mut options = stored::pack_options()?;
    for notes in mounts::live(store)? {
        if notes.key == container.id {
            mounts::flush(&notes)?;
        }
    }
    options.live = !store.is_container_free(container)?;
    if options.live {
        run::sync(container)?;
    }
    Ok(options)
}

fn diff(args: &DiffArgs, store: &Store) -> Result<(), Failure> {
    let container = store.find_container(&args.container)?;
    if args.tar {
        return write_tar(
            store,
            &container,
            Extent::Difference,
            args.output.as_deref(),
        );
    }
    let options = settle(store, &container)?;
    let changes = store.container_tree(&container)?.changes(&options)?;
    print_changes(&changes, args.json)
}

fn write_tar(
    store: &Store,
    container: &Container,
    extent: Extent,
    output: Option<&Path>,
) -> Result<(), Failure> {
    if output.is_none() && io::stdout().is_terminal() {
        return Err(Failure::misused(
            "a tar is not for a terminal: use --output, or redirect it",
        ));
    }
    let options = settle(store, container)?;
    let tree = store.container_tree(container)?;
    let write = |out: &mut dyn Write| -> Result<(), Failure> {
        let mut out = BufWriter::with_capacity(1 << 20, out);
        let summary = tree.pack(extent, &options, &mut out)?;
        if summary.sockets > 0 {
            super::warn(&format!(
                "{} sockets are left out: no tar has such",
                summary.sockets
            ));
        }
        out.flush()
            .map_err(|error| Failure::failed(format!("writing the tar: {error}")))
    };
    match output {
        Some(path) => super::image::to_file(path, write),
        None => write(&mut io::stdout().lock()),
    }
}

fn commit(args: CommitArgs, store: &Store) -> Result<(), Failure> {
    let container = store.find_container(&args.container)?;
    let packing = settle(store, &container)?;
    let commit = CommitOptions {
        name: args.name,
        message: args.message,
        author: args.author,
        changes: args.changes,
    };
    let unpacking = LoadOptions {
        platform: None,
        name: None,
        jobs: 1,
        dedup: false,
        unpack: stored::unpack_options(false),
    };
    let progress = stored::progress(args.json);
    let image =
        store.commit_container(&container, &commit, &packing, &unpacking, progress.as_ref())?;
    drop(progress);
    if args.json {
        let layer = image.layers.last();
        return print_json(&json!({
            "id": image.id.to_string(),
            "names": image.names.iter().map(Reference::stored).collect::<Vec<String>>(),
            "diff_id": layer.map(|layer| layer.diff_id.to_string()),
            "chain_id": layer.map(|layer| layer.chain_id.to_string()),
            "size": layer.map(|layer| layer.size),
        }));
    }
    print(&format!("{}\n", image.id))
}
