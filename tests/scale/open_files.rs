//! 20,000 files open at once, by several clients.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::meter::{Meter, alone, timed};
use super::support::{
    Layers, Scratch, Subject, fuse_overlayfs_args, is_running, require_root, rovl_bin, subject,
    wait_until,
};

const CLIENTS: usize = 4;

/// Half of the files are in the lower, half in upper.
fn fill(layers: &Layers, count: usize) {
    for i in 0..count {
        let home = if i % 2 == 0 {
            layers.lower()
        } else {
            &layers.upper
        };
        fs::write(home.join(name(i)), text(i)).unwrap();
    }
}

fn name(i: usize) -> String {
    format!("f{i}")
}

fn text(i: usize) -> String {
    format!("this is file {i}\n")
}

/// What a client changes in its copy of the text, at the start of the file.
const MARK: &[u8] = b"THIS";

/// A process that opens files when told to, and reads them when told to.
struct Client {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Client {
    fn start(dir: &Path, from: usize, to: usize) -> Client {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "open_files::client_process",
                "--nocapture",
            ])
            .env("ROVL_SCALE_DIR", dir)
            .env("ROVL_SCALE_RANGE", format!("{from} {to}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Client { child, answers }
    }

    fn tell(&mut self, order: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{order}").unwrap();
    }

    /// Waits for the answer; lines of the test harness are in between.
    fn expect_done(&mut self, order: &str) {
        let mut line = String::new();
        loop {
            line.clear();
            let n = self.answers.read_line(&mut line).unwrap();
            assert!(n > 0, "a client failed: {order}");
            if line.ends_with("@done\n") {
                return;
            }
        }
    }
}

fn all_do(clients: &mut [Client], order: &str) {
    clients.iter_mut().for_each(|client| client.tell(order));
    clients
        .iter_mut()
        .for_each(|client| client.expect_done(order));
}

#[test]
#[ignore = "a part of the tests of many open files, which start it"]
fn client_process() {
    let Some(dir) = std::env::var_os("ROVL_SCALE_DIR").map(PathBuf::from) else {
        return;
    };
    let range = std::env::var("ROVL_SCALE_RANGE").unwrap();
    let (from, to) = range.split_once(' ').unwrap();
    let range = from.parse::<usize>().unwrap()..to.parse::<usize>().unwrap();
    let mut files: Vec<File> = Vec::new();
    for order in std::io::stdin().lines() {
        match order.unwrap().as_str() {
            "open" => files = range.clone().map(|i| open(&dir, i)).collect(),
            "read" => {
                for (file, i) in files.iter().zip(range.clone()) {
                    check_text(file, i, false);
                }
            }
            "unlink" => range
                .clone()
                .for_each(|i| fs::remove_file(dir.join(name(i))).unwrap()),
            other => panic!("what is {other}?"),
        }
        println!("@done");
    }
}

/// Whether file `i` is opened for writing: those in upper, and a tenth of those in the lower,
/// which are copied up by that.
fn is_writable(i: usize) -> bool {
    i % 2 == 1 || i.is_multiple_of(20)
}

fn open(dir: &Path, i: usize) -> File {
    let path = dir.join(name(i));
    File::options()
        .read(true)
        .write(is_writable(i))
        .open(&path)
        .unwrap_or_else(|e| panic!("can't open {}: {e}", path.display()))
}

fn check_text(file: &File, i: usize, marked: bool) {
    let mut data = vec![0; 100];
    let n = file
        .read_at(&mut data, 0)
        .unwrap_or_else(|e| panic!("read of file {i}: {e}"));
    let mut want = text(i).into_bytes();
    if marked {
        want[..MARK.len()].copy_from_slice(MARK);
    }
    assert_eq!(
        String::from_utf8_lossy(&data[..n]),
        String::from_utf8_lossy(&want),
        "file {i}"
    );
}

/// All files are opened, unlinked, and still there for those who hold them.
fn hold_and_unlink(root: &Path, count: usize, meter: Option<&Meter>) {
    let share = count / CLIENTS;
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|c| Client::start(root, c * share, (c + 1) * share))
        .collect();
    for order in ["open", "read", "unlink", "read"] {
        timed(order, || all_do(&mut clients, order));
        if let Some(meter) = meter {
            meter.check(count as u64, order);
        }
    }
    assert!(
        fs::read_dir(root).unwrap().next().is_none(),
        "all names are gone"
    );
    // New names don't bring old data back.
    fs::write(root.join(name(1)), "new").unwrap();
    timed("read", || all_do(&mut clients, "read"));
    assert_eq!(fs::read(root.join(name(1))).unwrap(), b"new");
    for mut client in clients {
        drop(client.child.stdin.take());
        assert!(client.child.wait().unwrap().success());
    }
}

#[test]
fn clients_hold_20_000_files_open() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fill(&layers, 20_000);
    let mounted = subject().mount(&layers, &[]);
    let meter = Meter::of(&mounted);
    hold_and_unlink(mounted.root(), 20_000, meter.as_ref());
    check_let_go(mounted.daemon_pid());
    mounted.unmount();
}

#[test]
fn unlinked_files_can_be_written() {
    const COUNT: usize = 4000;
    require_root();
    let _alone = alone();
    let scratch = Scratch::new();
    let layers = scratch.layers(1);
    fill(&layers, COUNT);
    let mounted = subject().mount(&layers, &[]);
    let files: Vec<(usize, File)> = (0..COUNT)
        .filter(|i| is_writable(*i))
        .map(|i| (i, open(mounted.root(), i)))
        .collect();
    for i in 0..COUNT {
        fs::remove_file(mounted.path(name(i))).unwrap();
    }
    for (_, file) in &files {
        file.write_all_at(MARK, 0).unwrap();
        file.sync_all().unwrap();
    }
    for (i, file) in &files {
        check_text(file, *i, true);
        assert_eq!(file.metadata().unwrap().len(), text(*i).len() as u64);
    }
    drop(files);
    mounted.unmount();
}

/// The daemon keeps no descriptors of files that nobody holds.
fn check_let_go(pid: Option<u32>) {
    let Some(pid) = pid else { return };
    let fds = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let fine = wait_until(std::time::Duration::from_secs(60), || {
        super::meter::drop_caches();
        fds() < 500
    });
    assert!(fine, "the daemon keeps {} descriptors open", fds());
}

/// A daemon whose hard limit is 256 descriptors serves 2,000 open files.
#[test]
fn a_daemon_may_have_256_descriptors() {
    require_root();
    let _alone = alone();
    let scratch = Scratch::new();
    let layers = scratch.layers(20);
    fill(&layers, 2000);
    let program = match subject() {
        Subject::Kernel => {
            println!("the kernel has no daemon to limit");
            return;
        }
        Subject::Rovl => rovl_bin(),
        Subject::FuseOverlayfs(program) => program,
    };
    let status = Command::new("bash")
        .args(["-c", "ulimit -n 256; exec \"$@\"", "bash"])
        .arg(program)
        .args(fuse_overlayfs_args(&layers, &[], true))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "the mount: {status}");
    let pid = daemon_of(&layers);
    hold_and_unlink(&layers.merged, 2000, Some(&Meter::of_process(pid)));
    rustix::mount::unmount(&layers.merged, rustix::mount::UnmountFlags::empty()).unwrap();
    let ended = wait_until(std::time::Duration::from_secs(10), || !is_running(pid));
    assert!(ended, "daemon {pid} doesn't end with its mount");
}

/// The process whose command line has the mount point, and which still runs.
fn daemon_of(layers: &Layers) -> u32 {
    let point = layers.merged.to_str().unwrap();
    let found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let cmdline = fs::read(entry.path().join("cmdline")).ok()?;
        let args = String::from_utf8_lossy(&cmdline).into_owned();
        (args.split('\0').any(|arg| arg == point) && is_running(pid)).then_some(pid)
    });
    found.expect("a daemon runs")
}
