//! The README's commands for containers do what it says.

use std::fs;

use crate::images::{busybox, store_with};
use crate::support::{rovl_bin, sh};

#[test]
fn every_command_of_the_readme_runs() {
    let (store, _) = store_with(&busybox());
    store.run(&["image", "tag", "busybox:1", "debian:12"]);
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, rest) = text.split_once("**Containers.**").unwrap();
    let (_, rest) = rest.split_once("```console\n").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    let commands: Vec<&str> = block
        .lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .collect();
    assert!(commands.len() > 10, "{commands:?}");
    let bin = store.scratch.join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(rovl_bin(), bin.join("rovl")).unwrap();
    let (bin, root) = (bin.display(), store.root.display());
    // In one shell: what one command sets, another uses.
    let script = format!(
        "export PATH={bin}:$PATH ROVL_ROOT={root}\nset -e\n{}",
        commands.join("\n")
    );
    let said = sh(store.scratch.path(), &script);
    assert!(said.contains("in a container"), "{said}");
    assert_eq!(store.text(&["container", "ls", "-q"]), "");
    store.assert_clean();
}
