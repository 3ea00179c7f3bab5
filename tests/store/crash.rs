//! The power is cut at every single step of what changes a store, and processes are killed at any moment.
//!
//! The store writes through one seam; a test's fault below it shuts the file system down (as a pulled plug does:
//! what wasn't synced is lost) at the Nth step, and fails everything after. The file system is then mounted
//! again, from its journal, and the store is opened: it must be as it was before, or as it should be after, and
//! if success was reported, as after.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rovl::format::keys::Namespace;
use rovl::store::disk::{Fault, Step};
use rovl::store::error::Result;
use rovl::store::fsck::FsckOptions;
use rovl::store::gc::GcOptions;
use rovl::store::load::{self, Input, LoadOptions, Quiet};
use rovl::store::{Store, StoreOptions, unpack};
use rustix::mount::UnmountFlags;

use crate::builder::{Image, Layer, Packed, archive, docker_members, oci_members, rich_layers};
use crate::rovl_command::{TestStore, expect_success};
use crate::support::files::cut_power;
use crate::support::{Scratch, pattern, require_program, require_root, rounds, run};

/// A file system in a file that can be brought back to a former state.
pub struct Disk {
    scratch: Scratch,
}

/// Gives this thread, and what it starts, mounts of its own: the disk must not stay mounted, with its power cut, in
/// the namespace of a container of another test.
#[allow(unsafe_code)]
fn leave_the_mounts_of_others() {
    // SAFETY: it changes this thread only, which shares its root and directory with nobody afterwards.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    run("mount", &["--make-rprivate", "/"]);
}

impl Disk {
    pub fn new(mkfs: &str, args: &[&str], size: u64) -> Disk {
        require_program(mkfs);
        let scratch = Scratch::new();
        let image = scratch.join("image");
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        let mut args = args.to_vec();
        args.push(image.to_str().unwrap());
        run(mkfs, &args);
        fs::create_dir(scratch.join("fs")).unwrap();
        Disk { scratch }
    }

    fn mount(&self) -> PathBuf {
        let (image, point) = (self.scratch.join("image"), self.scratch.join("fs"));
        run(
            "mount",
            &[
                "-o",
                "loop",
                image.to_str().unwrap(),
                point.to_str().unwrap(),
            ],
        );
        point
    }

    /// Other tests start programs meanwhile: until those have replaced their image they have our files open.
    fn unmount(&self) {
        let point = self.scratch.join("fs");
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(errno) = rustix::mount::unmount(&point, UnmountFlags::empty()) {
            let is_busy = errno == rustix::io::Errno::BUSY;
            assert!(is_busy && Instant::now() < deadline, "unmounting: {errno}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn copy(&self, from: &str, to: &str) {
        let (from, to) = (self.scratch.join(from), self.scratch.join(to));
        // A loop device that the kernel is still giving up must not be found again by the file's inode.
        fs::remove_file(&to).ok();
        run(
            "cp",
            &[
                "--sparse=always",
                from.to_str().unwrap(),
                to.to_str().unwrap(),
            ],
        );
    }
}

/// Cuts the power at the `at`th step.
struct Cut {
    steps: AtomicU64,
    at: u64,
    disk: PathBuf,
}

impl Fault for Cut {
    fn before(&self, _: Step) -> io::Result<()> {
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        if step == self.at {
            cut_power(&self.disk);
        }
        if step >= self.at {
            return Err(io::Error::other("the power is cut"));
        }
        Ok(())
    }
}

fn options() -> LoadOptions {
    let mut unpack = unpack::Options::new(Namespace::Trusted);
    unpack.hash_files = true;
    LoadOptions {
        platform: None,
        name: None,
        jobs: 2,
        dedup: true,
        unpack,
    }
}

fn open(root: &Path, fault: Option<Arc<dyn Fault>>) -> Store {
    Store::open(root, StoreOptions { sync: true, fault }).unwrap()
}

/// The name of images that are made by commits.
pub const COMMITTED: &str = "committed:1";

/// What a store shows: names, images, and the layers that images have.
fn shown(store: &Store) -> Vec<String> {
    let mut shown = Vec::new();
    for container in store.containers().unwrap() {
        let has_trees = store.container_tree(&container).is_ok();
        assert!(has_trees, "{} is not whole", container.id);
        shown.push(format!("container {} {}", container.id, container.name()));
    }
    for image in store.images().unwrap() {
        // What a commit makes has the time in its config.
        let is_committed = image.names.iter().any(|name| name == COMMITTED);
        let id = if is_committed {
            String::new()
        } else {
            image.id.to_string()
        };
        shown.push(format!(
            "{id} {:?} {:?}",
            image.names,
            image.config.diff_ids()
        ));
        for chain in image.config.chain_ids().unwrap() {
            assert!(
                store.layer(&chain).unwrap().is_some(),
                "{} lacks {chain}",
                image.id
            );
        }
    }
    shown.sort();
    shown
}

/// What must hold of a store that was just opened after a cut.
fn assert_sound(root: &Path, what: &str) {
    let store = open(root, None);
    let options = FsckOptions {
        jobs: 2,
        contents: true,
    };
    let report = store.fsck(options, &Quiet).unwrap();
    assert!(report.faults.is_empty(), "{what}: {:?}", report.faults);
    store.gc(GcOptions::default()).unwrap();
    let report = store.fsck(options, &Quiet).unwrap();
    assert!(
        report.faults.is_empty(),
        "{what}, after gc: {:?}",
        report.faults
    );
    assert_eq!(report.garbage, 0, "{what}, after gc");
    let usage = store.usage().unwrap();
    let du = run("du", &["-s", "--block-size=1", root.to_str().unwrap()]).stdout;
    let du = String::from_utf8(du).unwrap();
    assert_eq!(
        du.split_whitespace().next().unwrap(),
        usage.total.to_string(),
        "{what}"
    );
    assert_eq!(
        (usage.garbage_bytes, usage.transaction_bytes),
        (0, 0),
        "{what}"
    );
}

/// A change of the store.
pub type Operation = fn(&Store, &Path) -> Result<()>;

pub fn first() -> Image {
    Image::new("first:1", rich_layers())
}

fn second() -> Image {
    let mut layers = rich_layers()[..2].to_vec();
    layers.push(Layer::new().file("more", &pattern(3, 70_000)).build());
    Image::new("second:1", layers).packed(Packed::Gzip)
}

fn load_from(store: &Store, path: &Path) -> Result<()> {
    load::load(store, Input::Path(path.to_owned()), &options(), &Quiet).map(drop)
}

fn load_second(store: &Store, archives: &Path) -> Result<()> {
    load_from(store, &archives.join("second.tar"))
}

fn stream_second(store: &Store, archives: &Path) -> Result<()> {
    let file = fs::File::open(archives.join("second.tar")).unwrap();
    load::load(store, Input::Stream(Box::new(file)), &options(), &Quiet).map(drop)
}

fn tag(store: &Store, _: &Path) -> Result<()> {
    store.tag("first:1", &"other:2".parse().unwrap()).map(drop)
}

fn remove(store: &Store, _: &Path) -> Result<()> {
    store.remove_image("first:1", false).map(drop)
}

fn collect(store: &Store, _: &Path) -> Result<()> {
    store
        .gc(GcOptions {
            untagged: true,
            dry_run: false,
        })
        .map(drop)
}

/// Runs `operation` with the power cut at each of its steps.
pub fn cut_everywhere(disk: &Disk, name: &str, prepare: Operation, operation: Operation) {
    let archives = Scratch::new();
    let write = |name: &str, image: &Image, oci: bool| {
        let images = std::slice::from_ref(image);
        let members = if oci {
            oci_members(images)
        } else {
            docker_members(images)
        };
        fs::write(archives.join(name), archive(&members)).unwrap();
    };
    write("first.tar", &first(), false);
    write("second.tar", &second(), true);

    let root = disk.mount().join("store");
    load_from(&open(&root, None), &archives.join("first.tar")).unwrap();
    prepare(&open(&root, None), archives.path()).unwrap();
    let before = shown(&open(&root, None));
    disk.unmount();
    disk.copy("image", "pristine");

    disk.mount();
    let counter = Arc::new(Cut {
        steps: AtomicU64::new(0),
        at: u64::MAX,
        disk: root.clone(),
    });
    operation(&open(&root, Some(counter.clone())), archives.path()).unwrap();
    let after = shown(&open(&root, None));
    disk.unmount();
    let steps = counter.steps.load(Ordering::SeqCst);
    assert!(steps > 5, "{name} goes around the seam: {steps} steps");

    let mut outcomes = [0, 0];
    for at in 0..steps {
        let what = format!("{name}, cut at step {at} of {steps}");
        disk.copy("pristine", "image");
        let point = disk.mount();
        let cut = Arc::new(Cut {
            steps: AtomicU64::new(0),
            at,
            disk: point,
        });
        let result = operation(&open(&root, Some(cut)), archives.path());
        disk.unmount();
        disk.mount();
        let now = shown(&open(&root, None));
        // What others see before anyone writes is old or new; a committed change is finished by the next writer.
        assert_sound(&root, &what);
        let finished = shown(&open(&root, None));
        assert!(
            finished == before || finished == after,
            "{what}: {now:?}, then {finished:?}"
        );
        if result.is_ok() {
            assert_eq!(finished, after, "{what}: it was reported done");
        }
        outcomes[usize::from(finished == after)] += 1;
        disk.unmount();
    }
    eprintln!(
        "{name}: {steps} cuts, {} left the old state, {} the new",
        outcomes[0], outcomes[1]
    );
    disk.copy("pristine", "image");
    disk.mount();
    fs::remove_dir_all(&root).unwrap();
    disk.unmount();
}

pub fn nothing(_: &Store, _: &Path) -> Result<()> {
    Ok(())
}

fn all_operations(disk: &Disk) {
    leave_the_mounts_of_others();
    let operations: [(&str, Operation, Operation); 5] = [
        ("load", nothing, load_second),
        ("load of a stream", nothing, stream_second),
        ("tag", nothing, tag),
        ("rm", load_second, remove),
        (
            "gc",
            |store, archives| {
                load_second(store, archives)?;
                // An image without a name, and layers that nothing has.
                store.tag("second:1", &"first:1".parse().unwrap())?;
                let layer = Layer::new().file("loose", b"loose").build();
                load::apply(store, layer.as_slice(), None, &options(), &Quiet).map(drop)
            },
            collect,
        ),
    ];
    for (name, prepare, operation) in operations {
        cut_everywhere(disk, name, prepare, operation);
    }
}

#[test]
fn the_power_is_cut_at_every_step_on_ext4() {
    require_root();
    all_operations(&Disk::new("mkfs.ext4", &["-q", "-F", "-m", "0"], 48 << 20));
}

#[test]
fn the_power_is_cut_at_every_step_on_xfs() {
    require_root();
    all_operations(&Disk::new(
        "mkfs.xfs",
        &["-q", "-f", "-m", "reflink=1"],
        320 << 20,
    ));
}

/// xorshift64*: repeatable work.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

/// Moments at which commands are killed.
const KILLS: u64 = 500;

/// Runs commands in a random order, kills each within so many microseconds, and checks the store: now and then
/// meanwhile, and after a last `gc`.
pub fn kill_while_they_run(
    store: &TestStore,
    commands: &[&[&str]],
    kills: u64,
    within: u64,
    mut random: Random,
) {
    let mut killed = 0;
    for round in 0..kills {
        let command = commands[random.below(commands.len() as u64) as usize];
        let mut child = store
            .command(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(500 + random.below(within)));
        child.kill().unwrap();
        // A child that had ended already gives its own status.
        killed += u64::from(child.wait().unwrap().code().is_none());
        if round % 25 == 24 {
            store.run(&["store", "fsck"]);
        }
    }
    assert!(
        killed > kills / 10,
        "only {killed} of {kills} were still running when they were killed"
    );
    store.run(&["store", "gc"]);
    store.assert_clean();
    store.assert_accounted();
}

#[test]
fn commands_killed_at_any_moment_leave_a_sound_store() {
    require_root();
    let store = TestStore::new();
    let archives = Scratch::new();
    let (one, two) = (archives.join("first.tar"), archives.join("second.tar"));
    fs::write(&one, archive(&docker_members(&[first()]))).unwrap();
    fs::write(&two, archive(&oci_members(&[second()]))).unwrap();
    let commands: [&[&str]; 7] = [
        &["image", "load", one.to_str().unwrap()],
        &["image", "load", two.to_str().unwrap()],
        &["image", "tag", "first:1", "third:1"],
        &["image", "rm", "first:1"],
        &["image", "rm", "second:1"],
        &["image", "rm", "third:1"],
        &["store", "gc"],
    ];
    let kills = rounds(KILLS);
    kill_while_they_run(&store, &commands, kills, 40_000, Random(0x5eed));
    for command in &commands[..2] {
        expect_success(store.try_run(command));
    }
    store.assert_clean();
}
