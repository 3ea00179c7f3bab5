//! Users other than root: user namespaces, and plain users by way of fusermount3.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::time::Duration;

use crate::bench::{Bench, Outcome, outcome};
use crate::support::{is_mount_point, rovl_bin};

/// `nobody`: fusermount3 wants a user that has a name.
const USER: u32 = 65_534;

/// Runs a shell script in the scratch directory, `$ROVL` being a copy of the binary that everybody can run.
fn script(bench: &Bench, prefix: &[&str], script: &str) -> Outcome {
    let binary = bench.scratch.join("rovl-for-all");
    if !binary.exists() {
        fs::copy(rovl_bin(), &binary).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(prefix[0]);
    command.args(&prefix[1..]).args(["bash", "-euc", script]);
    command
        .env("ROVL", binary)
        .current_dir(bench.scratch.path());
    outcome(command)
}

fn as_plain_user(bench: &Bench, text: &str) -> Outcome {
    let id = USER.to_string();
    script(
        bench,
        &["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"],
        text,
    )
}

/// Everything but the lowers belongs to the plain user, and FUSE is open to all, as on a desktop.
fn plain_users_bench() -> Bench {
    let bench = Bench::new();
    for dir in [
        &bench.layers.upper,
        &bench.layers.work,
        &bench.layers.merged,
    ] {
        chown(dir, Some(USER), Some(USER)).unwrap();
    }
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    bench
}

#[test]
fn a_user_namespace_mounts_without_help() {
    let bench = Bench::new();
    let said = script(
        &bench,
        &["unshare", "-Urm"],
        "$ROVL mount --lower lower0:lower1 --upper upper --work work merged
         cat merged/file
         grep \"$PWD/merged \" /proc/self/mountinfo | grep -o 'fuse.rovl rovl.*'
         $ROVL umount merged
         ! grep \"$PWD/merged \" /proc/self/mountinfo | grep fuse.rovl",
    );
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.stdout
            .starts_with("data\nfuse.rovl rovl rw,user_id=0,group_id=0"),
        "{said:?}"
    );
}

#[test]
fn a_daemon_in_a_user_namespace_ends_by_a_signal_too() {
    let bench = Bench::new();
    let said = script(
        &bench,
        &["unshare", "-Urm"],
        "$ROVL mount --lower lower0:lower1 --upper upper --work work merged
         pid=$($ROVL stat --json merged | grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*')
         kill $pid
         for i in $(seq 100); do grep -q \"$PWD/merged .*fuse.rovl\" /proc/self/mountinfo || exit 0; sleep 0.05; done
         exit 1",
    );
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn a_plain_user_mounts_by_way_of_fusermount3() {
    let bench = plain_users_bench();
    let said = as_plain_user(
        &bench,
        "$ROVL mount --lower lower0:lower1 --upper upper --work work merged; cat merged/file; $ROVL stat merged >/dev/null",
    );
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(0), "data\n"),
        "{said:?}"
    );
    let line = bench.mount_line();
    assert!(
        line.contains("nosuid,nodev") && line.contains(&format!("user_id={USER}")),
        "{line}"
    );
    let busy = as_plain_user(&bench, "cd merged; $ROVL umount ../merged");
    busy.refused(1, &["is in use", "--lazy"]);
    let ended = as_plain_user(&bench, "$ROVL umount merged");
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{ended:?}"
    );
    assert!(!is_mount_point(bench.merged()));
}

#[test]
fn a_plain_users_daemon_unmounts_at_a_signal() {
    let bench = plain_users_bench();
    let said = as_plain_user(
        &bench,
        "$ROVL mount --lower lower0:lower1 --upper upper --work work merged
         pid=$($ROVL stat --json merged | grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*')
         echo $pid; exec 3<merged; kill $pid",
    );
    assert_eq!(said.code, Some(0), "{said:?}");
    bench.assert_gone(said.stdout.trim().parse().unwrap(), Duration::from_secs(10));
}

#[test]
fn a_plain_user_may_insist_on_allow_other_only_where_it_is_allowed() {
    let bench = plain_users_bench();
    let allowed = fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"));
    let said = as_plain_user(&bench, "$ROVL mount -o allow_other --lower lower0 merged");
    if allowed {
        assert_eq!(said.code, Some(0), "{said:?}");
    } else {
        said.refused(1, &["fusermount3", "allow_other", "/etc/fuse.conf"]);
        assert!(!is_mount_point(bench.merged()));
    }
}

#[test]
fn a_plain_user_is_told_what_is_not_permitted() {
    let bench = plain_users_bench();
    let lower = &bench.layers.lowers[1];
    fs::set_permissions(lower, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&bench.layers.upper, Some(0), Some(0)).unwrap();
    let rows = [
        (
            "--lower lower0:lower1 merged",
            "lower directory 2 of 2",
            "can't be read: permission denied",
        ),
        (
            "--lower lower0 --upper upper --work work merged",
            "upper directory",
            "can't be written to: permission denied",
        ),
        (
            "--lower lower0 upper",
            "fusermount3 did not mount",
            "no write access",
        ),
    ];
    for (args, what, why) in rows {
        let said = as_plain_user(&bench, &format!("$ROVL mount {args}"));
        said.refused(1, &[what, why]);
    }
    fs::set_permissions(lower, fs::Permissions::from_mode(0o100)).unwrap();
    as_plain_user(&bench, "$ROVL mount --lower lower1/in merged")
        .refused(1, &["lower1/in", "permission denied"]);
}
