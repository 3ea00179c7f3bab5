use super::super::config::UpperDirs;
use super::*;
use std::fs;
use tempfile::TempDir;

struct Dirs {
    temp: TempDir,
}

impl Dirs {
    fn new(names: &[&str]) -> Dirs {
        let temp = TempDir::new().unwrap();
        for name in names {
            fs::create_dir_all(temp.path().join(name)).unwrap();
        }
        Dirs { temp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn config(&self, lowers: &[&str], upper: Option<(&str, &str)>) -> Config {
        let mut config = Config::new(lowers.iter().map(|name| self.path(name)).collect());
        config.upper = upper.map(|(upper, work)| UpperDirs {
            upper: self.path(upper),
            work: self.path(work),
        });
        config
    }

    fn check(
        &self,
        lowers: &[&str],
        upper: Option<(&str, &str)>,
    ) -> Result<Validated, ValidateError> {
        validate(&self.config(lowers, upper))
    }
}

#[test]
fn sound_layers_are_opened_in_order() {
    let dirs = Dirs::new(&["a", "b", "d", "u", "w"]);
    let mut config = dirs.config(&["a", "b"], Some(("u", "w")));
    config.data_lowers = vec![dirs.path("d")];
    let validated = validate(&config).unwrap();
    let ino = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    let ino_of = |name: &str| rustix::fs::stat(dirs.path(name)).unwrap().st_ino;
    assert_eq!(validated.lowers[0].0, dirs.path("a"));
    assert_eq!(ino(&validated.lowers[1].1), ino_of("b"));
    assert_eq!(ino(&validated.data_lowers[0].1), ino_of("d"));
    assert_eq!(ino(&validated.upper.as_ref().unwrap().1), ino_of("u"));
    assert_eq!(ino(&validated.work.as_ref().unwrap().1), ino_of("w"));
    assert_eq!(validated.locks.len(), 2);
    assert!(validated.warnings.is_empty());
}

#[test]
fn a_layer_that_can_not_be_used_is_named() {
    let dirs = Dirs::new(&["a", "u", "w"]);
    fs::write(dirs.path("file"), "").unwrap();
    let missing = dirs.check(&["a", "nix"], None).unwrap_err();
    assert!(
        matches!(&missing, ValidateError::Missing(name) if name.role == Role::Lower(2, 2)),
        "{missing}"
    );
    assert!(
        missing.to_string().contains("lower directory 2 of 2"),
        "{missing}"
    );
    assert!(
        missing.to_string().contains("/nix does not exist"),
        "{missing}"
    );
    let file = dirs.check(&["file"], None).unwrap_err();
    assert!(matches!(file, ValidateError::NotDirectory(_)), "{file}");
    let upper = dirs.check(&["a"], Some(("nix", "w"))).unwrap_err();
    assert!(
        matches!(&upper, ValidateError::Missing(name) if name.role == Role::Upper),
        "{upper}"
    );
    let work = dirs.check(&["a"], Some(("u", "file"))).unwrap_err();
    assert!(
        matches!(&work, ValidateError::NotDirectory(name) if name.role == Role::Work),
        "{work}"
    );
    assert!(matches!(
        dirs.check(&[], None),
        Err(ValidateError::NoLowers)
    ));
}

#[test]
fn one_directory_can_not_have_two_parts() {
    let dirs = Dirs::new(&["a", "b", "u", "w"]);
    std::os::unix::fs::symlink("a", dirs.path("alias")).unwrap();
    let rows: [(&[&str], (&str, &str)); 7] = [
        (&["a", "a"], ("u", "w")),
        (&["a", "b", "alias"], ("u", "w")),
        (&["a", "b/../a"], ("u", "w")),
        (&["a"], ("a", "w")),
        (&["a"], ("u", "a")),
        (&["a"], ("u", "u")),
        (&["a"], ("alias", "w")),
    ];
    for (lowers, upper) in rows {
        let error = dirs.check(lowers, Some(upper)).unwrap_err();
        assert!(
            matches!(error, ValidateError::Same { .. }),
            "{lowers:?} {upper:?}: {error}"
        );
        assert!(error.is_usage());
    }
}

#[test]
fn no_directory_may_lie_in_another() {
    let dirs = Dirs::new(&["a/x/y", "b", "u/x/y", "w/x/y"]);
    let rows: [(&[&str], (&str, &str)); 7] = [
        (&["a", "a/x"], ("u", "w")),
        (&["a/x/y", "b", "a"], ("u", "w")),
        (&["a"], ("a/x", "w")),
        (&["a"], ("u", "a/x")),
        (&["u/x/y"], ("u", "w")),
        (&["a"], ("u", "u/x")),
        (&["a"], ("w/x/y", "w")),
    ];
    for (lowers, upper) in rows {
        let error = dirs.check(lowers, Some(upper)).unwrap_err();
        assert!(
            matches!(error, ValidateError::Inside { .. }),
            "{lowers:?} {upper:?}: {error}"
        );
    }
    dirs.check(&["a/x", "b"], Some(("u/x", "w/x"))).unwrap();
}

#[test]
fn names_that_begin_alike_are_apart() {
    let dirs = Dirs::new(&["a", "ab", "a.b", "u", "u2"]);
    dirs.check(&["a", "ab", "a.b"], Some(("u", "u2"))).unwrap();
}

#[test]
fn a_thousand_lowers_are_checked_in_no_time() {
    let names: Vec<String> = (0..1000)
        .map(|at| format!("deep/er/and/deeper/{at}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    crate::sys::fs::raise_nofile().unwrap();
    let dirs = Dirs::new(&names);
    let start = Instant::now();
    assert_eq!(dirs.check(&names, None).unwrap().lowers.len(), 1000);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn upper_and_work_belong_to_one_mount_at_a_time() {
    let dirs = Dirs::new(&["a", "u", "w", "u2", "w2"]);
    let first = dirs.check(&["a"], Some(("u", "w"))).unwrap();
    for upper in [("u", "w2"), ("u2", "w"), ("w", "u2")] {
        let error = dirs.check(&["a"], Some(upper)).unwrap_err();
        assert!(
            matches!(error, ValidateError::InUse { .. }),
            "{upper:?}: {error}"
        );
        assert!(!error.is_usage());
    }
    let mut shared = dirs.config(&["a"], Some(("u", "w")));
    shared.shared_upper = true;
    assert_eq!(validate(&shared).unwrap().warnings.len(), 2);
    drop(first.locks);
    dirs.check(&["a"], Some(("u", "w"))).unwrap();
}

#[test]
fn a_lock_that_is_about_to_go_is_waited_for() {
    let dirs = Dirs::new(&["a", "u", "w"]);
    let first = dirs.check(&["a"], Some(("u", "w"))).unwrap();
    let going = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(first);
    });
    dirs.check(&["a"], Some(("u", "w"))).unwrap();
    going.join().unwrap();
}

#[test]
fn the_mount_point_lies_apart_from_the_layers() {
    let dirs = Dirs::new(&["a/x", "p/l", "u/x", "w/x", "m"]);
    let validated = dirs.check(&["a", "p/l"], Some(("u", "w"))).unwrap();
    let at = |name: &str| validate_mount_point(&validated, &dirs.path(name));
    assert_eq!(
        at("m").unwrap().path,
        dirs.path("m").canonicalize().unwrap()
    );
    for name in ["a/x", "u/x", "w/x", "p"] {
        let error = at(name).unwrap_err();
        assert!(
            matches!(error, ValidateError::Inside { .. }),
            "{name}: {error}"
        );
    }
    for name in ["u", "w"] {
        assert!(
            matches!(at(name), Err(ValidateError::Same { .. })),
            "{name}"
        );
    }
    fs::write(dirs.path("file"), "").unwrap();
    assert!(
        matches!(at("nix"), Err(ValidateError::Missing(name)) if name.role == Role::MountPoint)
    );
    assert!(matches!(at("file"), Err(ValidateError::NotDirectory(_))));
    // As `mount -t overlay -o lowerdir=/etc,… overlay /etc` does with the kernel's.
    assert!(at("a").is_ok());
}

#[test]
fn the_kernels_overlayfs_is_seen_in_the_list_of_mounts() {
    let dirs = Dirs::new(&["u", "elsewhere/u"]);
    let name = Named {
        role: Role::Upper,
        path: dirs.path("u"),
    };
    let fd = open_dir(&name, OFlags::RDONLY).unwrap();
    let place = place(name, fd.as_fd(), &HashMap::new()).unwrap();
    let mounts = |upper: &Path, kind: &str| {
        let line = format!(
            "44 27 0:40 / /mnt/m rw - {kind} overlay rw,lowerdir=/a,upperdir={},workdir=/w\n",
            upper.display()
        );
        mountinfo::parse(line.as_bytes())
    };
    let user = overlay_user(&place, &mounts(&dirs.path("u"), "overlay"));
    assert_eq!(user.as_deref(), Some("the kernel's overlayfs on /mnt/m"));
    assert_eq!(
        overlay_user(&place, &mounts(&dirs.path("elsewhere/u"), "overlay")),
        None
    );
    assert_eq!(overlay_user(&place, &mounts(&dirs.path("u"), "ext4")), None);
    std::os::unix::fs::symlink(dirs.temp.path(), dirs.path("link")).unwrap();
    assert!(overlay_user(&place, &mounts(&dirs.path("link/u"), "overlay")).is_some());
}

#[test]
fn a_removed_directory_is_no_layer() {
    let dirs = Dirs::new(&["a"]);
    let fd = open_dir(
        &Named {
            role: Role::Upper,
            path: dirs.path("a"),
        },
        OFlags::RDONLY,
    )
    .unwrap();
    fs::remove_dir(dirs.path("a")).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let error = validate(&Config::new(vec![path])).unwrap_err();
    assert!(
        matches!(error, ValidateError::Removed(_) | ValidateError::Missing(_)),
        "{error}"
    );
}
