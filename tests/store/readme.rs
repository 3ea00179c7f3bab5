//! The README's commands do what it says.

use std::fs;

use crate::builder::{Image, archive, docker_members, rich_layers};
use crate::rovl_command::TestStore;
use crate::support::{require_root, rovl_bin, sh};

/// The lines after `$ ` in the first console block that follows `heading`.
fn commands_below(heading: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, rest) = text
        .split_once(heading)
        .expect("the README has no such part");
    let (_, rest) = rest.split_once("```console\n").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    let commands = block.lines().filter_map(|line| line.strip_prefix("$ "));
    commands.map(str::to_owned).collect()
}

#[test]
fn every_command_of_the_readme_runs() {
    require_root();
    let store = TestStore::new();
    let image = Image::new("debian:12", rich_layers());
    let tar = archive(&docker_members(std::slice::from_ref(&image)));
    fs::write(store.scratch.join("debian.tar"), tar).unwrap();
    let commands = commands_below("**The layer store.**");
    assert!(commands.len() > 10, "{commands:?}");
    let bin = store.scratch.join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(rovl_bin(), bin.join("rovl")).unwrap();
    let (bin, root) = (bin.display(), store.root.display());
    for command in commands {
        let script = format!("export PATH={bin}:$PATH ROVL_ROOT={root}\n{command}");
        sh(store.scratch.path(), &script);
    }
    let back = fs::read(store.scratch.join("out.tar")).unwrap();
    assert!(!back.is_empty());
    let layout = store.scratch.join("out/oci-layout");
    assert!(layout.exists(), "{}", layout.display());
    store.assert_clean();
}
