//! The power is cut at every step of what changes containers, and processes are killed meanwhile.

use std::fs;
use std::path::Path;

use rovl::format::keys::Namespace;
use rovl::store::container::commit::CommitOptions;
use rovl::store::container::{Container, NewContainer};
use rovl::store::error::Result;
use rovl::store::load::{LoadOptions, Quiet};
use rovl::store::{Store, pack, unpack};

use crate::builder::{archive, docker_members};
use crate::crash::{
    COMMITTED, Disk, Operation, Random, cut_everywhere, first, kill_while_they_run, nothing,
};
use crate::rovl_command::TestStore;
use crate::support::{require_root, rounds};

fn create(store: &Store, _: &Path) -> Result<()> {
    let new = NewContainer {
        id: Some("c".repeat(64).parse().unwrap()),
        name: Some("one".parse().unwrap()),
        ..NewContainer::default()
    };
    store.create_container("first:1", new).map(drop)
}

fn the_container(store: &Store) -> Container {
    store.find_container("one").unwrap()
}

/// A container with something in it.
fn create_and_fill(store: &Store, archives: &Path) -> Result<()> {
    create(store, archives)?;
    let upper = store.root().join(the_container(store).upper());
    fs::create_dir(upper.join("new")).unwrap();
    for n in 0..5 {
        fs::write(upper.join(format!("new/{n}")), vec![b'x'; 3000 * n]).unwrap();
    }
    fs::File::open(upper.join("new"))
        .unwrap()
        .sync_all()
        .unwrap();
    store.disk().sync_fs()
}

fn remove(store: &Store, _: &Path) -> Result<()> {
    store.remove_container(&the_container(store))
}

fn commit(store: &Store, _: &Path) -> Result<()> {
    let options = CommitOptions {
        name: Some(COMMITTED.parse().unwrap()),
        ..CommitOptions::default()
    };
    let mut packing = pack::Options::new(Namespace::Trusted);
    // Times of directories would differ from one run to the next.
    packing.latest = Some(1_000_000_000);
    let unpacking = LoadOptions {
        platform: None,
        name: None,
        jobs: 1,
        dedup: false,
        unpack: unpack::Options::new(Namespace::Trusted),
    };
    let container = the_container(store);
    store
        .commit_container(&container, &options, &packing, &unpacking, &Quiet)
        .map(drop)
}

#[test]
fn the_power_is_cut_at_every_step_of_containers() {
    require_root();
    let disk = Disk::new("mkfs.ext4", &["-q", "-F", "-m", "0"], 48 << 20);
    let operations: [(&str, Operation, Operation); 3] = [
        ("container create", nothing, create),
        ("container rm", create_and_fill, remove),
        ("container commit", create_and_fill, commit),
    ];
    for (name, prepare, operation) in operations {
        cut_everywhere(&disk, name, prepare, operation);
    }
}

/// Moments at which commands are killed.
const KILLS: u64 = 200;

#[test]
fn commands_for_containers_killed_at_any_moment_leave_a_sound_store() {
    require_root();
    let store = TestStore::new();
    store.load(&archive(&docker_members(&[first()])));
    let commands: [&[&str]; 6] = [
        &["container", "create", "--name", "one", "first:1"],
        &["container", "commit", "one", "two:1"],
        &["container", "rm", "one"],
        &["container", "create", "first:1"],
        &["image", "rm", "two:1"],
        &["store", "gc"],
    ];
    let kills = rounds(KILLS);
    kill_while_they_run(&store, &commands, kills, 30_000, Random(0xc0ffee));
    for container in store
        .json(&["container", "ls", "--json"])
        .as_array()
        .unwrap()
    {
        let id = container["id"].as_str().unwrap();
        assert_eq!(store.text(&["container", "diff", id]), "");
        store.run(&["container", "rm", id]);
    }
    store.run(&["store", "gc"]);
    store.assert_clean();
}
