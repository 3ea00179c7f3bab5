//! Where passthrough can't be had.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use crate::bench::{layers_with, some_bytes};
use crate::support::{Mounted, Scratch, Subject, require_root, rovl_bin};

/// Runs a shell script in a user namespace, with a copy of the binary as `$ROVL`.
fn in_user_namespace(scratch: &Scratch, script: &str) -> Output {
    let binary = scratch.join("rovl");
    if !binary.exists() {
        fs::copy(rovl_bin(), &binary).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["-Urm", "bash", "-euc", script]);
    command.env("ROVL", &binary).current_dir(scratch.path());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn in_a_user_namespace_it_is_refused_with_the_reason() {
    require_root();
    let scratch = Scratch::new();
    layers_with(&scratch, &some_bytes());
    let said = in_user_namespace(
        &scratch,
        "if $ROVL mount -o passthrough=on --lower lower0 --upper upper --work work merged; then exit 9; fi
         ! grep \"$PWD/merged \" /proc/self/mountinfo | grep fuse.rovl",
    );
    assert!(said.status.success(), "{said:?}");
    let stderr = text(&said.stderr);
    for word in ["passthrough=on", "CAP_SYS_ADMIN", "user namespace"] {
        assert!(stderr.contains(word), "{stderr}");
    }
}

/// With an upper and without: `auto` takes passthrough in neither, and says nothing.
#[test]
fn in_a_user_namespace_auto_does_without_a_word() {
    require_root();
    let scratch = Scratch::new();
    layers_with(&scratch, &some_bytes());
    let said = in_user_namespace(
        &scratch,
        "$ROVL mount -o passthrough=auto --lower lower0 merged
         cmp lower0/file merged/file; $ROVL stat merged | grep data_path; $ROVL umount merged
         $ROVL mount -o passthrough=auto --lower lower0 --upper upper --work work merged
         cmp lower0/file merged/file; echo more >>merged/file; tail -n 1 upper/file
         $ROVL stat merged | grep data_path; $ROVL umount merged",
    );
    assert!(said.status.success(), "{said:?}");
    assert_eq!(text(&said.stderr), "");
    let stdout = text(&said.stdout);
    assert!(stdout.contains("more\n"), "{stdout}");
    assert_eq!(stdout.matches("cached").count(), 2, "{stdout}");
}

#[test]
fn in_a_user_namespace_engines_get_a_warning() {
    require_root();
    let scratch = Scratch::new();
    layers_with(&scratch, &some_bytes());
    let said = in_user_namespace(
        &scratch,
        "ln -s $ROVL fuse-overlayfs
         ./fuse-overlayfs -o lowerdir=lower0,upperdir=upper,workdir=work,passthrough=on merged
         cmp lower0/file merged/file; $ROVL stat merged | grep data_path; $ROVL umount merged",
    );
    assert!(said.status.success(), "{said:?}");
    let stderr = text(&said.stderr);
    assert!(stderr.contains("'passthrough=on' ignored"), "{stderr}");
    assert!(text(&said.stdout).contains("cached"), "{said:?}");
}

/// `auto` is for mounts without an upper; said nothing, there is none. Later options win over earlier ones.
#[test]
fn who_asks_for_it_gets_it() {
    require_root();
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    let path_of = |mounted: Mounted| mounted.stat_json().unwrap()["data_path"].clone();
    let writable = |options: &[&str]| path_of(Subject::Rovl.mount(&layers, options));
    let read_only = |options: &[&str]| path_of(Subject::Rovl.mount_read_only(&layers, options));
    assert_eq!(writable(&["passthrough=off"]), "cached");
    assert_eq!(writable(&["passthrough=on"]), "passthrough");
    assert_eq!(writable(&["passthrough=auto"]), "cached");
    assert_eq!(read_only(&["passthrough=auto"]), "passthrough");
    assert_eq!(read_only(&["passthrough=off"]), "cached");
    if std::env::var_os("ROVL_TEST_OPTIONS").is_none() {
        assert_eq!(
            (writable(&[]), read_only(&[])),
            ("cached".into(), "cached".into())
        );
    }
}
