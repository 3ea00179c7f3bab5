//! The store of a plain user: with sub-ids, with one id only, and inside `unshare -Ur`.
//!
//! Needs root (to become a user), newuidmap and newgidmap (uidmap), unshare.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output};

use tar::EntryType;

use crate::builder::{Image, Layer, archive, docker_members, members_of};
use crate::rovl_command::expect_success;
use crate::support::{Scratch, require_program, require_root, rovl_bin};

/// A user that the test makes known, with sub-ids or without.
struct User {
    name: String,
    uid: u32,
}

impl User {
    fn new(tag: &str, sub_ids: bool) -> User {
        let name = format!("rovlt{tag}{}", std::process::id());
        run(
            "useradd",
            &["--no-create-home", "--shell", "/bin/sh", &name],
        );
        let id = run("id", &["-u", &name]).stdout;
        let uid = String::from_utf8(id).unwrap().trim().parse().unwrap();
        for file in ["/etc/subuid", "/etc/subgid"] {
            let text = fs::read_to_string(file).unwrap_or_default();
            let own = format!("{name}:");
            let mut lines: Vec<&str> = text
                .lines()
                .filter(|line| !line.starts_with(&own))
                .collect();
            let range = format!("{name}:700000:65536");
            if sub_ids {
                lines.push(&range);
            }
            fs::write(file, lines.join("\n") + "\n").unwrap();
        }
        User { name, uid }
    }

    /// Runs a shell command as the user, with a home of its own.
    fn shell(&self, home: &Path, script: &str) -> Output {
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
            .env("HOME", home)
            .env("USER", &self.name)
            .env("ROVL", rovl_bin())
            .current_dir(home)
            .output()
            .unwrap()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        Command::new("userdel").arg(&self.name).output().ok();
    }
}

fn run(program: &str, args: &[&str]) -> Output {
    crate::support::run(program, args)
}

fn image() -> Image {
    let layer = Layer::new()
        .dir("etc/")
        .file("etc/passwd", b"root\n")
        .entry(EntryType::Directory, "closed/", 0o000, b"")
        .entry(EntryType::Regular, "closed/secret", 0o000, b"secret")
        .entry(EntryType::Regular, "suid", 0o4755, b"x")
        .build();
    let mut owned = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o640);
    header.set_uid(33);
    header.set_gid(44);
    header.set_mtime(1);
    header.set_size(3);
    owned
        .append_data(&mut header, "owned", &b"own"[..])
        .unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(0);
    owned
        .append_data(&mut header, "etc/.wh.passwd", &b""[..])
        .unwrap();
    Image::new("user:1", vec![layer, owned.into_inner().unwrap()])
}

/// A home that the user owns, with the archive in it.
fn home(user: &User, scratch: &Scratch) -> std::path::PathBuf {
    let home = scratch.join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("a.tar"), archive(&docker_members(&[image()]))).unwrap();
    std::os::unix::fs::chown(&home, Some(user.uid), Some(user.uid)).unwrap();
    home
}

/// Loads, saves, checks, removes.
const ROUND: &str = "
    \"$ROVL\" image load -q a.tar
    \"$ROVL\" image ls
    \"$ROVL\" store fsck
    \"$ROVL\" image save -o saved.tar user:1
    \"$ROVL\" store df
";

fn assert_saved(home: &Path) {
    let saved = members_of(&fs::read(home.join("saved.tar")).unwrap());
    for content in image().layers.iter().chain([&image().config]) {
        assert!(saved.iter().any(|(_, saved)| saved == content));
    }
}

/// The path of the file `owned` in the user's store.
fn owned(home: &Path) -> String {
    let args = [
        home.to_str().unwrap(),
        "-name",
        "owned",
        "-path",
        "*/diff/*",
    ];
    let path = String::from_utf8(run("find", &args).stdout).unwrap();
    path.trim().to_owned()
}

fn owner_of_owned(home: &Path) -> (u32, u32) {
    let metadata = fs::symlink_metadata(owned(home)).unwrap();
    (metadata.uid(), metadata.gid())
}

#[test]
fn a_user_with_sub_ids_has_all_owners() {
    require_root();
    require_program("newuidmap");
    let user = User::new("s", true);
    let scratch = Scratch::new();
    let home = home(&user, &scratch);
    expect_success(user.shell(&home, ROUND));
    assert!(home.join(".local/share/rovl/overlay2").is_dir());
    assert_eq!(owner_of_owned(&home), (700_000 + 32, 700_000 + 43));
    assert_saved(&home);
    expect_success(user.shell(
        &home,
        "\"$ROVL\" image rm user:1; \"$ROVL\" store gc; \"$ROVL\" store fsck",
    ));
    let left = fs::read_dir(home.join(".local/share/rovl/overlay2"))
        .unwrap()
        .count();
    assert_eq!(left, 1, "files of other owners can be removed");
    // What it returns is what the command returned.
    let missing = user.shell(&home, "\"$ROVL\" image inspect none");
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn a_user_with_one_id_keeps_owners_in_attributes() {
    require_root();
    let user = User::new("o", false);
    let scratch = Scratch::new();
    let home = home(&user, &scratch);
    expect_success(user.shell(&home, ROUND));
    assert_eq!(owner_of_owned(&home), (user.uid, user.uid));
    assert_saved(&home);
    let value = run(
        "getfattr",
        &[
            "--only-values",
            "-n",
            "user.containers.override_stat",
            &owned(&home),
        ],
    );
    assert!(
        value.stdout.starts_with(b"33:44:"),
        "{:?}",
        String::from_utf8_lossy(&value.stdout)
    );
    expect_success(user.shell(&home, "\"$ROVL\" image rm user:1; \"$ROVL\" store gc"));
}

#[test]
fn inside_unshare_the_one_id_is_root() {
    require_root();
    let user = User::new("u", false);
    let scratch = Scratch::new();
    let home = home(&user, &scratch);
    let script = format!("unshare -Ur sh -euc '{}'", ROUND.replace('\'', "\""));
    expect_success(user.shell(&home, &script));
    assert!(home.join(".local/share/rovl/overlay2").is_dir());
    assert_saved(&home);
    let ignore =
        "unshare -Ur sh -euc '\"$ROVL\" --root other image load -q --ignore-chown-errors a.tar'";
    expect_success(user.shell(&home, ignore));
}
