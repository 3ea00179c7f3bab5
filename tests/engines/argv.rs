//! The command lines of podman, buildah, dockerd and containerd, word for word.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::files::set_xattr;
use crate::support::{
    Layers, Mounted, Scratch, Subject, as_user, is_mount_point, require_root, rovl_bin, subject,
    within,
};

/// A graph root as podman keeps it: `l/<26 characters>` links, `<id>/diff`, `work`, `merged`.
pub struct Graph {
    scratch: Scratch,
    /// The directory G: `<graphroot>/overlay`.
    pub dir: PathBuf,
    links: Vec<String>,
}

impl Graph {
    /// `count` layers, topmost first, each with a file of its own; a container `c`.
    pub fn new(count: usize) -> Graph {
        require_root();
        let scratch = Scratch::new();
        let dir = scratch.join("overlay");
        fs::create_dir_all(dir.join("l")).unwrap();
        let mut links = Vec::new();
        for i in 0..count {
            let diff = dir.join(format!("{i:064}/diff"));
            fs::create_dir_all(&diff).unwrap();
            fs::write(diff.join(format!("file{i}")), format!("{i}")).unwrap();
            fs::write(diff.join("common"), format!("{i}")).unwrap();
            let link = format!("{i:026}").replace('0', "A").replace('1', "B");
            symlink(format!("../{i:064}/diff"), dir.join("l").join(&link)).unwrap();
            links.push(link);
        }
        for name in ["diff", "work", "merged", "empty"] {
            fs::create_dir_all(dir.join("c").join(name)).unwrap();
        }
        Graph {
            scratch,
            dir,
            links,
        }
    }

    /// `G/l/A:G/l/B…`, or relative to G.
    fn lowerdir(&self, absolute: bool) -> String {
        let prefix = if absolute {
            format!("{}/l", self.dir.display())
        } else {
            "l".to_owned()
        };
        let lowers: Vec<_> = self.links.iter().map(|l| format!("{prefix}/{l}")).collect();
        lowers.join(":")
    }

    /// A path in the container's directory.
    pub fn container(&self, name: &str) -> PathBuf {
        self.dir.join("c").join(name)
    }

    fn writable(&self, absolute: bool) -> String {
        format!(
            "lowerdir={},upperdir={},workdir={}",
            self.lowerdir(absolute),
            self.container("diff").display(),
            self.container("work").display()
        )
    }

    /// The mount program: rovl under the name of fuse-overlayfs.
    pub fn program(&self) -> PathBuf {
        if let Subject::FuseOverlayfs(program) = subject() {
            return program;
        }
        let bin = self.scratch.join("bin");
        fs::create_dir_all(&bin).unwrap();
        let program = bin.join("fuse-overlayfs");
        if !program.exists() {
            symlink(rovl_bin(), &program).unwrap();
        }
        program
    }

    /// Runs the program as an engine does: in G, with pipes that it reads to their end.
    pub fn run(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new(self.program());
        command
            .args(args)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        within(
            Duration::from_secs(20),
            "the program's exit and the end of its pipes",
            move || command.output().unwrap(),
        )
    }

    /// Runs it with `-o options merged`, and expects a mount.
    fn mount(&self, options: &str) -> EngineMount {
        let merged = self.container("merged");
        self.mount_with(&["-o", options, merged.to_str().unwrap()])
    }

    fn mount_with(&self, args: &[&str]) -> EngineMount {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success(),
            "{args:?}: {}: {stderr}",
            output.status
        );
        let merged = self.container("merged");
        assert!(is_mount_point(&merged), "{args:?}: exit 0, and no mount");
        EngineMount { merged, stderr }
    }
}

/// A mount made by an engine's command line; unmounted on drop as engines do.
pub struct EngineMount {
    /// The mount point.
    pub merged: PathBuf,
    /// What the program said.
    pub stderr: String,
}

impl Drop for EngineMount {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.merged).output().ok();
    }
}

impl EngineMount {
    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.merged.join(name)).unwrap_or_else(|e| panic!("read {name}: {e}"))
    }

    fn is_read_only(&self) -> bool {
        fs::write(self.merged.join("probe"), "x")
            .is_err_and(|e| e.raw_os_error() == Some(libc::EROFS))
    }
}

/// There is no program to call where the kernel is the subject.
pub fn no_program() -> bool {
    require_root();
    subject() == Subject::Kernel
}

/// podman run and build (an empty option), run -d (a trailing comma), and fsync=0 from storage.conf.
#[test]
fn podman_run_and_build() {
    if no_program() {
        return;
    }
    for rest in [",,volatile", ",", "", ",,fsync=0", ",,volatile,fsync=0"] {
        let graph = Graph::new(3);
        let mount = graph.mount(&format!("{}{rest}", graph.writable(true)));
        assert_eq!(mount.read("common"), "0", "{rest}");
        assert_eq!(mount.read("file2"), "2", "{rest}");
        fs::write(mount.merged.join("new"), "x").unwrap();
        File::open(mount.merged.join("new"))
            .unwrap()
            .sync_all()
            .unwrap();
        assert!(graph.container("diff").join("new").exists(), "{rest}");
        assert!(!mount.stderr.contains("fsync"), "{}", mount.stderr);
    }
}

/// podman diff, commit and image mount: no upperdir. And a single layer over an empty directory.
#[test]
fn podman_read_only_mounts() {
    if no_program() {
        return;
    }
    let graph = Graph::new(3);
    let diff = graph.container("diff");
    fs::write(diff.join("in-container"), "c").unwrap();
    let mount = graph.mount(&format!(
        "lowerdir={}:{}",
        diff.display(),
        graph.lowerdir(true)
    ));
    assert_eq!(mount.read("in-container"), "c");
    assert_eq!(mount.read("file1"), "1");
    assert!(mount.is_read_only());
    drop(mount);

    let empty = graph.container("empty");
    let mount = graph.mount(&format!("lowerdir={}:{}", diff.display(), empty.display()));
    assert_eq!(mount.read("in-container"), "c");
    assert!(mount.is_read_only());
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
}

/// podman diff and commit ask each object for its attributes. Where no layer has any, the kernel is told so and
/// asks no more; one attribute anywhere, or an upper, and every answer goes on being exact.
#[test]
fn podman_diff_of_layers_without_attributes() {
    if no_program() {
        return;
    }
    let list = |path: &Path| rustix::fs::listxattr(path, &mut [0u8; 256][..]);
    let get = |path: &Path| rustix::fs::getxattr(path, "user.x", &mut [0u8; 256][..]);
    for (writable, attribute) in [(false, false), (false, true), (true, false)] {
        let graph = Graph::new(2);
        let lowest = graph.dir.join(format!("{:064}/diff", 1));
        fs::create_dir_all(lowest.join("deep/er")).unwrap();
        for i in 0..400 {
            fs::write(lowest.join(format!("deep/er/{i}")), "x").unwrap();
        }
        if attribute {
            set_xattr(&lowest.join("deep/er/7"), "user.x", b"value").unwrap();
        }
        let options = match writable {
            true => graph.writable(true),
            false => format!("lowerdir={}", graph.lowerdir(true)),
        };
        let mount = graph.mount(&options);
        let refused = Err(rustix::io::Errno::OPNOTSUPP);
        let settled = !writable && !attribute && matches!(subject(), Subject::Rovl);
        for i in 0..400 {
            let path = mount.merged.join(format!("deep/er/{i}"));
            let expected = if attribute && i == 7 { 7 } else { 0 };
            let found = list(&path);
            let allowed = found == Ok(expected) || (settled && i > 200 && found == refused);
            assert!(allowed, "{i}: {found:?}");
        }
        let path = mount.merged.join("deep/er/7");
        let expected = if settled {
            refused
        } else {
            Ok(7 * usize::from(attribute))
        };
        assert_eq!(list(&path), expected, "{writable} {attribute}");
        let expected = match (attribute, settled) {
            (true, _) => Ok(5),
            (false, true) => refused,
            (false, false) => Err(rustix::io::Errno::NODATA),
        };
        assert_eq!(get(&path), expected, "{writable} {attribute}");
        if writable {
            set_xattr(&path, "user.x", b"value").unwrap();
            assert_eq!((list(&path), get(&path)), (Ok(7), Ok(5)));
        }
    }
}

/// 121 absolute lowers: 9.7 kB of argv.
#[test]
fn podman_many_layers() {
    if no_program() {
        return;
    }
    let graph = Graph::new(121);
    let mount = graph.mount(&graph.writable(true));
    for i in [0, 60, 120] {
        assert_eq!(mount.read(&format!("file{i}")), i.to_string());
    }
}

/// Relative lowers, upper and work are resolved against the working directory of the call.
#[test]
fn relative_paths() {
    if no_program() {
        return;
    }
    let graph = Graph::new(2);
    let options = format!(
        "lowerdir={},upperdir=c/diff,workdir=c/work",
        graph.lowerdir(false)
    );
    let mount = graph.mount_with(&["-o", &options, "c/merged"]);
    fs::write(mount.merged.join("new"), "x").unwrap();
    assert!(graph.container("diff/new").exists());
    assert_eq!(mount.read("file1"), "1");
}

/// Options and positionals in any order; `-oOPTS` in one word; several `-o`; a source that is
/// ignored.
#[test]
fn options_and_positionals_in_any_order() {
    if no_program() {
        return;
    }
    let graph = Graph::new(2);
    let options = graph.writable(true);
    let merged = graph.container("merged");
    let merged = merged.to_str().unwrap();
    let (lower, rest) = options.split_once(",upperdir=").unwrap();
    let rest = format!("upperdir={rest}");
    let joined = format!("-o{options}");
    let forms: [&[&str]; 5] = [
        &["-o", &options, merged],
        &[merged, "-o", &options],
        &[&joined, merged],
        &["-o", lower, "-o", &rest, merged],
        &["-o", lower, merged, "-o", &rest],
    ];
    for form in forms {
        let mount = graph.mount_with(form);
        assert_eq!(mount.read("file0"), "0", "{form:?}");
    }
}

/// containerd through mount.fuse3: source and target, `-o` last, `dev,suid`; then `ro`.
#[test]
fn containerd_mount_helper() {
    if no_program() {
        return;
    }
    let graph = Graph::new(2);
    let merged = graph.container("merged");
    let merged = merged.to_str().unwrap();
    let options = format!(
        "workdir={},upperdir={},lowerdir={},dev,suid",
        graph.container("work").display(),
        graph.container("diff").display(),
        graph.lowerdir(true)
    );
    let mount = graph.mount_with(&["overlay", merged, "-o", &options]);
    assert_eq!(mount.read("file1"), "1");
    fs::write(mount.merged.join("new"), "x").unwrap();
    drop(mount);

    // The self-check at start: a read-only mount of two lowers.
    let options = format!("lowerdir={},ro", graph.lowerdir(true));
    let mount = graph.mount_with(&["overlay", merged, "-o", &options]);
    assert_eq!(mount.read("common"), "0");
    assert!(mount.is_read_only());
}

/// A writable set of directories mounted `ro`.
#[test]
fn containerd_read_only() {
    if no_program() {
        return;
    }
    let graph = Graph::new(2);
    let mount = graph.mount(&format!("{},ro", graph.writable(true)));
    assert!(mount.is_read_only());
    assert_eq!(mount.read("file1"), "1");
}

/// `:O` volumes send `private`; `type=image` mounts stack FUSE on FUSE.
#[test]
fn podman_volumes_and_image_mounts() {
    if no_program() {
        return;
    }
    let graph = Graph::new(2);
    let source = graph.scratch.join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "of the volume").unwrap();
    let base = graph.mount(&graph.writable(true));
    fs::write(base.merged.join("from-below"), "below").unwrap();

    let empty = graph.container("empty");
    for (lower, file, content) in [
        (source.to_str().unwrap(), "file", "of the volume"),
        (base.merged.to_str().unwrap(), "from-below", "below"),
    ] {
        let layers = Layers::new(&graph.scratch.join(format!("overlay-{file}")), 0);
        let lowers = format!("{lower}:{}", empty.display());
        for writable in [false, true] {
            let mut options = format!("lowerdir={lowers},private");
            if writable {
                let (upper, work) = (layers.upper.display(), layers.work.display());
                options = format!("lowerdir={lowers},upperdir={upper},workdir={work},private");
            }
            let merged = layers.merged.to_str().unwrap();
            let output = graph.run(&["-o", &options, merged]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{options}: {said}");
            let mount = EngineMount {
                merged: layers.merged.clone(),
                stderr: String::new(),
            };
            assert_eq!(mount.read(file), content);
            if writable {
                fs::write(mount.merged.join(file), "changed").unwrap();
                assert_eq!(mount.read(file), "changed");
            }
        }
        assert_eq!(
            fs::read_to_string(Path::new(lower).join(file)).unwrap(),
            content
        );
    }
}

/// uidmapping and gidmapping, with and without the leading colon of podman: on-disk id, id shown,
/// count.
#[test]
fn podman_id_mappings() {
    if no_program() {
        return;
    }
    for colon in ["", ":"] {
        let graph = Graph::new(1);
        let diff = graph.dir.join(format!("{:064}/diff", 0));
        chown(diff.join("file0"), Some(5), Some(6)).unwrap();
        let map = format!("{colon}0:100000:1000");
        let mount = graph.mount(&format!(
            "{},,volatile,uidmapping={map},gidmapping={map}",
            graph.writable(true)
        ));
        let meta = fs::metadata(mount.merged.join("file0")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (100_005, 100_006), "{map}");
        let path = mount.merged.join("file0");
        chown(&path, Some(100_007), Some(100_008)).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (100_007, 100_008), "{map}");
        let meta = fs::metadata(graph.container("diff/file0")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (7, 8), "{map}");
    }
}

/// squash_to_uid and squash_to_gid: everything is shown with one owner; squash_to_root: root's.
#[test]
fn podman_squashed_ids() {
    if no_program() {
        return;
    }
    for (options, owner) in [
        ("squash_to_uid=7,squash_to_gid=8", (7, 8)),
        ("squash_to_root", (0, 0)),
    ] {
        let graph = Graph::new(1);
        let diff = graph.dir.join(format!("{:064}/diff", 0));
        chown(diff.join("file0"), Some(5), Some(6)).unwrap();
        let mount = graph.mount(&format!("{},{options}", graph.writable(true)));
        fs::write(mount.merged.join("new"), "x").unwrap();
        for name in ["file0", "new"] {
            let meta = fs::metadata(mount.merged.join(name)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), owner, "{name}, {options}");
        }
    }
}

/// force_mask: owner and mode are in an xattr of the layers, and go there.
#[test]
fn podman_permissions_in_xattrs() {
    if no_program() {
        return;
    }
    let graph = Graph::new(1);
    let diff = graph.dir.join(format!("{:064}/diff", 0));
    let key = "user.containers.override_stat";
    set_xattr(&diff, key, b"0:0:0755").unwrap();
    set_xattr(&graph.container("diff"), key, b"0:0:0755").unwrap();
    set_xattr(&diff.join("file0"), key, b"55:66:0640").unwrap();
    let mount = graph.mount(&format!(
        "{},,volatile,xattr_permissions=2",
        graph.writable(true)
    ));
    let path = mount.merged.join("file0");
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (55, 66, 0o640)
    );
    chown(&path, Some(77), Some(88)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (77, 88, 0o640)
    );
    let real = fs::metadata(graph.container("diff/file0")).unwrap();
    assert_eq!((real.uid(), real.gid()), (0, 0), "the real owner changed");
}

/// An option that nobody knows is a warning here, and no failure.
#[test]
fn unknown_options_are_warned_of() {
    if no_program() {
        return;
    }
    let graph = Graph::new(1);
    let mount = graph.mount(&format!("{},frobnicate=1,,sparkle", graph.writable(true)));
    for option in ["frobnicate", "sparkle"] {
        assert!(mount.stderr.contains(option), "said: {}", mount.stderr);
    }
}

/// A failure has a reason on stderr, a status other than 0, and no mount.
#[test]
fn failures_are_reported() {
    if no_program() {
        return;
    }
    let graph = Graph::new(1);
    let merged = graph.container("merged");
    let merged = merged.to_str().unwrap();
    let good = graph.lowerdir(true);
    for options in [
        "lowerdir=/nonexistent/layer".to_owned(),
        format!("lowerdir={good},upperdir=/nonexistent/upper,workdir=/nonexistent/work"),
        format!(
            "lowerdir={good},upperdir={}",
            graph.container("diff").display()
        ),
        "upperdir=/tmp".to_owned(),
        format!("lowerdir={good}:/etc/passwd"),
    ] {
        let output = graph.run(&["-o", &options, merged]);
        assert!(!output.status.success(), "{options}: exit 0");
        assert!(!output.stderr.is_empty(), "{options}: no reason given");
        assert!(!is_mount_point(Path::new(merged)), "{options}: mounted");
    }
    let options = format!("lowerdir={good}");
    let output = graph.run(&["-o", &options, "/nonexistent/target"]);
    assert!(!output.status.success() && !output.stderr.is_empty());
}

/// podman info shows the first lines of `--version`.
#[test]
fn the_version_is_shown() {
    if no_program() {
        return;
    }
    let graph = Graph::new(1);
    let output = graph.run(&["--version"]);
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("overlayfs") || said.contains("rovl"),
        "said: {said}"
    );
}

/// Every user sees the tree where root mounted it.
#[test]
fn other_users_are_allowed() {
    if no_program() {
        return;
    }
    let graph = Graph::new(1);
    let mount = graph.mount(&graph.writable(true));
    let path = mount.merged.join("file0");
    assert_eq!(as_user(1000, 1000, || fs::read(&path)).unwrap(), b"0");
}

/// The same command line, mounted and unmounted time after time: nothing stays locked.
#[test]
fn no_lock_outlives_the_unmount() {
    require_root();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    for i in 0..10 {
        let mounted: Mounted = subject().mount(&layers, &[]);
        fs::write(mounted.path("f"), format!("{i}")).unwrap();
        rustix::mount::unmount(mounted.root(), rustix::mount::UnmountFlags::DETACH).unwrap();
        // Not waiting for the daemon's end.
        let again = subject().mount(&layers, &[]);
        assert_eq!(fs::read_to_string(again.path("f")).unwrap(), format!("{i}"));
        again.unmount();
        drop(mounted.already_ended());
    }
}
