//! Set-id bits and capabilities go when the contents change, also when nobody asks the daemon to write.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::bench::{counter, layers_with, mount, some_bytes, truncate};
use crate::support::files::set_xattr;
use crate::support::{Scratch, as_user, errno, sh, xattrs};

/// `cap_net_raw+ep`, revision 2.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
const USER: u32 = 1000;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// The mode by name, which upper's must be too.
fn mode_of(path: &Path, upper: &Path) -> u32 {
    let [shown, stored] = [path, upper].map(|p| fs::metadata(p).unwrap().mode() & 0o7777);
    assert_eq!(shown, stored, "{}", path.display());
    shown
}

fn write_as_user(path: &Path) {
    as_user(USER, USER, || {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"x", 0).unwrap();
    });
}

/// Writing, truncating, appending, mapping: alone, and beside somebody who has the file open already.
#[test]
fn set_id_bits_go_with_a_write_by_somebody_else() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    for name in ["alone", "beside", "behind"] {
        fs::write(layers.lower().join(name), some_bytes()).unwrap();
        set_mode(&layers.lower().join(name), 0o6777);
    }
    let mounted = mount(&layers, &[]);
    let paths = |name: &str| (mounted.path(name), layers.upper.join(name));

    let (path, upper) = paths("alone");
    write_as_user(&path);
    assert_eq!(mode_of(&path, &upper), 0o777);
    set_mode(&path, 0o6777);
    as_user(USER, USER, || drop(File::create(&path).unwrap()));
    assert_eq!(mode_of(&path, &upper), 0o777, "truncated by an open");
    set_mode(&path, 0o6777);
    as_user(USER, USER, || truncate(&path, 10)).unwrap();
    assert_eq!(mode_of(&path, &upper), 0o777, "truncated by name");

    // Others read it, in the lower first, then in upper.
    let (path, upper) = paths("beside");
    let in_lower = File::open(&path).unwrap();
    write_as_user(&path);
    assert_eq!(
        mode_of(&path, &upper),
        0o777,
        "beside a reader of the lower"
    );
    set_mode(&path, 0o6777);
    let in_upper = File::open(&path).unwrap();
    write_as_user(&path);
    assert_eq!(mode_of(&path, &upper), 0o777, "beside a reader of upper");
    drop((in_lower, in_upper));

    // The bits are set behind the back of who has it open for writing.
    let (path, upper) = paths("behind");
    set_mode(&path, 0o777);
    let file = OpenOptions::new().append(true).open(&path).unwrap();
    for round in 0..2 {
        set_mode(&path, 0o6777);
        as_user(USER, USER, || (&file).write_all(b"x").unwrap());
        assert_eq!(mode_of(&path, &upper), 0o777, "round {round}");
    }
    // Root may keep them.
    set_mode(&path, 0o6777);
    (&file).write_all(b"x").unwrap();
    assert_eq!(mode_of(&path, &upper), 0o6777);
}

/// Capabilities go whoever writes, root too.
#[test]
fn capabilities_go_with_every_write() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    let lower = layers.lower().join("file");
    set_mode(&lower, 0o777);
    set_xattr(&lower, "security.capability", &CAPABILITY).unwrap();
    let mounted = mount(&layers, &[]);
    let (path, upper) = (mounted.path("file"), layers.upper.join("file"));
    let capable = |what: &str| {
        let has = [&path, &upper].map(|p| xattrs(p).contains_key("security.capability"));
        assert_eq!(has[0], has[1], "{what}: the mount and upper differ");
        has[0]
    };
    let grant = || set_xattr(&path, "security.capability", &CAPABILITY).unwrap();

    let reader = File::open(&path).unwrap();
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(b"x", 0)
        .unwrap();
    assert!(!capable("root wrote beside a reader of the lower"));
    drop(reader);
    grant();
    let cached = counter(&mounted, "opens_cached");
    write_as_user(&path);
    assert!(!capable("somebody wrote"));
    assert!(counter(&mounted, "opens_cached") > cached);
    grant();
    let reader = File::open(&path).unwrap();
    write_as_user(&path);
    assert!(!capable("somebody wrote beside a reader"));
    drop(reader);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    grant();
    file.write_all_at(b"x", 0).unwrap();
    assert!(!capable("root wrote through what was open before"));
    grant();
    truncate(&path, 5).unwrap();
    assert!(!capable("root truncated"));
    assert!(xattrs(&lower).contains_key("security.capability"));
}

/// chattr +i and +a: nobody gets such a file to write past the daemon.
#[test]
fn protected_files_are_not_written_to() {
    let scratch = Scratch::new();
    let layers = layers_with(&scratch, &some_bytes());
    fs::write(layers.lower().join("log"), b"line\n").unwrap();
    let mounted = mount(&layers, &[]);
    sh(mounted.root(), "chattr +i file; chattr +a log");
    let (file, log) = (mounted.path("file"), mounted.path("log"));
    let reader = File::open(&log).unwrap();
    let refused = |mut options: OpenOptions, path: &Path| {
        assert_eq!(
            errno(options.read(true).open(path)),
            libc::EPERM,
            "{}",
            path.display()
        );
    };
    let open = OpenOptions::new;
    refused(open().write(true).clone(), &file);
    refused(open().append(true).clone(), &file);
    refused(open().write(true).clone(), &log);
    refused(
        open()
            .append(true)
            .write(true)
            .truncate(false)
            .custom(libc::O_TRUNC),
        &log,
    );
    let mut appender = open().append(true).open(&log).unwrap();
    appender.write_all(b"another\n").unwrap();
    assert_eq!(fs::read(&log).unwrap(), b"line\nanother\n");
    assert_eq!(fs::read(&file).unwrap(), some_bytes());
    drop((reader, appender));
    sh(mounted.root(), "chattr -i file; chattr -a log");
    fs::write(&file, b"free").unwrap();
    fs::write(&log, b"free").unwrap();
}

/// A builder's form of `custom_flags`.
trait Custom {
    fn custom(&mut self, flags: i32) -> OpenOptions;
}

impl Custom for OpenOptions {
    fn custom(&mut self, flags: i32) -> OpenOptions {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, flags).clone()
    }
}
