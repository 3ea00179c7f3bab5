//! Containers of a plain user: with sub-ids, and with one id only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use crate::builder::{archive, docker_members};
use crate::images::busybox;
use crate::support::{Scratch, require_program, require_root, rovl_bin};

/// The files of users are changed by one test at a time.
static FILES: Mutex<()> = Mutex::new(());

struct User {
    name: String,
    uid: u32,
    scratch: Scratch,
}

impl User {
    fn new(tag: &str, with_sub_ids: bool) -> User {
        require_root();
        for program in ["newuidmap", "useradd", "setpriv", "crun"] {
            require_program(program);
        }
        let _guard = FILES.lock().unwrap_or_else(|e| e.into_inner());
        let name = format!("rovlc{tag}{}", std::process::id());
        crate::support::run(
            "useradd",
            &["--no-create-home", "--shell", "/bin/sh", &name],
        );
        let id = crate::support::run("id", &["-u", &name]).stdout;
        let uid = String::from_utf8(id).unwrap().trim().parse().unwrap();
        for file in ["/etc/subuid", "/etc/subgid"] {
            let text = fs::read_to_string(file).unwrap_or_default();
            let own = format!("{name}:");
            let mut lines: Vec<&str> = text
                .lines()
                .filter(|line| !line.starts_with(&own))
                .collect();
            let range = format!("{name}:800000:65536");
            if with_sub_ids {
                lines.push(&range);
            }
            fs::write(file, lines.join("\n") + "\n").unwrap();
        }
        let scratch = Scratch::new();
        let user = User { name, uid, scratch };
        let home = user.home();
        fs::create_dir(&home).unwrap();
        fs::write(home.join("a.tar"), archive(&docker_members(&[busybox()]))).unwrap();
        std::os::unix::fs::chown(&home, Some(uid), Some(uid)).unwrap();
        let device = fs::metadata("/dev/fuse").unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(
            device.permissions().mode() & 0o666,
            0o666,
            "needs /dev/fuse for everybody"
        );
        user
    }

    fn home(&self) -> PathBuf {
        self.scratch.join("home")
    }

    /// Runs a shell command as the user.
    fn shell(&self, script: &str) -> Output {
        Command::new("setpriv")
            .args([
                "--reuid",
                &self.uid.to_string(),
                "--regid",
                &self.uid.to_string(),
            ])
            .args(["--clear-groups", "--inh-caps=-all", "sh", "-euc", script])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.home())
            .env("USER", &self.name)
            .env("ROVL", rovl_bin())
            .current_dir(self.home())
            .output()
            .unwrap()
    }

    fn text(&self, script: &str) -> String {
        let output = self.shell(script);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{script}: {}: {said}",
            output.status
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _guard = FILES.lock().unwrap_or_else(|e| e.into_inner());
        Command::new("userdel").arg(&self.name).output().ok();
    }
}

fn assert_runs(user: &User) {
    user.text("$ROVL image load -q a.tar");
    let code = user
        .shell("$ROVL run --rm busybox:1 sh -c 'exit 7'")
        .status
        .code();
    assert_eq!(code, Some(7));
    assert_eq!(user.text("$ROVL run --rm busybox:1 id -u"), "0\n");
    assert_eq!(
        user.text("echo through | $ROVL run --rm busybox:1 cat"),
        "through\n"
    );
    let other = user
        .text("$ROVL run --rm busybox:1 readlink /proc/self/ns/user; readlink /proc/self/ns/user");
    let namespaces: Vec<&str> = other.lines().collect();
    assert_ne!(namespaces[0], namespaces[1]);
    user.text("$ROVL run --name kept busybox:1 sh -c 'echo x > /x; rm /etc/plain; mkdir /d'");
    let expected = "C /etc\nD /etc/plain\nA /d\nA /x\n";
    let diff = user.text("$ROVL container diff kept");
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&diff), sorted(expected));
    user.text("$ROVL container commit kept made:1");
    assert_eq!(
        user.text("$ROVL run --rm made:1 sh -c 'cat /x; test ! -e /etc/plain'"),
        "x\n"
    );
    user.text("$ROVL container export -o flat.tar kept; tar tf flat.tar | grep -q '^d/$'");
    // Ended by a signal, or killed: nothing stays.
    let ended = user.shell(
        "$ROVL run --rm --name ended busybox:1 sleep 1000 & pid=$!; \
         until $ROVL container ls | grep -q running; do sleep 0.05; done; sleep 0.3; \
         kill -TERM $pid; wait $pid",
    );
    assert_eq!(
        ended.status.code(),
        Some(143),
        "{}",
        String::from_utf8_lossy(&ended.stderr)
    );
    user.text(
        "$ROVL run --rm --name killed busybox:1 sleep 1000 & pid=$!; \
         until $ROVL container ls | grep -q running; do sleep 0.05; done; sleep 0.3; \
         kill -KILL $pid; wait $pid || true; \
         for i in $(seq 100); do $ROVL container ls | grep -q killed || exit 0; sleep 0.1; done; exit 1",
    );
    user.text("$ROVL container rm kept; $ROVL store fsck; $ROVL store gc");
    assert_eq!(user.text("$ROVL container ls -q"), "");
    assert_not_mounted(&user.home());
}

fn assert_not_mounted(home: &Path) {
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    assert!(!table.contains(home.to_str().unwrap()), "{table}");
}

#[test]
fn a_user_with_sub_ids_has_containers() {
    let user = User::new("s", true);
    assert_runs(&user);
    let ids =
        user.text("$ROVL run --rm -u web busybox:1 sh -c 'id -u; id -g; touch /tmp/x' || true");
    assert!(ids.starts_with("33\n34\n"), "{ids}");
    // A mount where the user sees it, with the owners that the user's own namespace knows.
    let mounted = user.text(
        "$ROVL run --name own -u web busybox:1 sh -c 'touch /tmp/x || true'; \
         tree=$($ROVL container mount own); cat $tree/etc/plain; echo seen > $tree/seen; \
         stat -c %u $tree/etc $tree/seen; $ROVL container mount | grep -c own; \
         $ROVL container diff own | grep seen; $ROVL container umount own; \
         $ROVL container mount | grep -c own || true; $ROVL container rm own",
    );
    let uid = user.uid;
    let expected = format!("not to be executed{uid}\n{uid}\n1\nA /seen\n0\nown\n");
    assert_eq!(mounted, expected);
    let kernel = user.text("$ROVL run --rm --driver kernel busybox:1 sh -c 'echo y > /y; cat /y'");
    assert_eq!(kernel, "y\n");
    let auto = user.text("$ROVL run --rm --driver auto busybox:1 sh -c 'echo y > /y; cat /y'");
    assert_eq!(auto, "y\n");
}

/// The processes of the mount of `one`: the daemon, and the agent that stays with it; and the daemon alone.
const PROCESSES: &str = "all() { pgrep -u $(id -u) -f '^[^ ]*rovl container mount one'; }; \
     daemon() { for p in $(all); do ls -l /proc/$p/fd | grep -q /dev/fuse && echo $p; done; }; ";

#[test]
fn a_signal_to_a_user_s_daemon_leaves_nothing() {
    for (tag, with_sub_ids) in [("t", true), ("u", false)] {
        let user = User::new(tag, with_sub_ids);
        user.text("$ROVL image load -q a.tar; $ROVL container create --name one busybox:1");
        for (signal, is_busy) in [
            ("TERM", false),
            ("TERM", true),
            ("INT", false),
            ("KILL", false),
        ] {
            let hold = if is_busy {
                "(cd $tree; exec sleep 1) &"
            } else {
                ""
            };
            let listed = user.text(&format!(
                "{PROCESSES} tree=$($ROVL container mount one); echo {signal} > $tree/x; sync $tree/x; {hold} \
                 kill -{signal} $(daemon); for i in $(seq 100); do all >/dev/null || break; sleep 0.1; done; wait; \
                 $ROVL container mount | grep -c one || true; $ROVL container ls | grep -c created; \
                 tree=$($ROVL container mount one); cat $tree/x; $ROVL container umount one; \
                 for i in $(seq 100); do all >/dev/null || exit 0; sleep 0.1; done; exit 1",
            ));
            assert_eq!(
                listed,
                format!("0\n1\n{signal}\n"),
                "{signal}, busy: {is_busy}"
            );
            assert_not_mounted(&user.home());
        }
        user.text("$ROVL container rm one; $ROVL store fsck");
    }
}

#[test]
fn a_user_with_one_id_has_containers() {
    let user = User::new("o", false);
    assert_runs(&user);
}
