use super::*;

fn request() -> MountRequest {
    MountRequest::new("/m".into())
}

#[test]
fn flags_follow_the_request() {
    assert_eq!(request().flags(), MountFlags::NOATIME);
    let all = MountRequest {
        read_only: true,
        dev: false,
        suid: false,
        exec: false,
        noatime: false,
        sync: true,
        dirsync: true,
        ..request()
    };
    assert_eq!(
        all.flags(),
        MountFlags::RDONLY
            | MountFlags::NODEV
            | MountFlags::NOSUID
            | MountFlags::NOEXEC
            | MountFlags::SYNCHRONOUS
            | MountFlags::DIRSYNC
    );
}

#[test]
fn the_kernel_gets_its_options() {
    assert_eq!(
        request().kernel_data(7, 1000, 100),
        b"fd=7,rootmode=40000,user_id=1000,group_id=100,default_permissions,allow_other"
    );
    let other = MountRequest {
        allow_other: Some(false),
        default_permissions: false,
        max_read: Some(4096),
        context: Some("u:r:t:s0:c1,c2".into()),
        ..request()
    };
    assert_eq!(
        other.kernel_data(7, 0, 0),
        b"fd=7,rootmode=40000,user_id=0,group_id=0,max_read=4096,context=\"u:r:t:s0:c1,c2\""
    );
}

#[test]
fn the_helper_gets_its_options() {
    assert_eq!(
        request().helper_options(true),
        "subtype=rovl,fsname=rovl,noatime,default_permissions,allow_other"
    );
    let other = MountRequest {
        read_only: true,
        fs_name: r"a,b\c".into(),
        exec: false,
        ..request()
    };
    assert_eq!(
        other.helper_options(false),
        r"subtype=rovl,fsname=a\,b\\c,ro,noexec,noatime,default_permissions"
    );
}

fn mount_line(id: u64, parent: u64, target: &str) -> String {
    format!("{id} {parent} 0:{id} / {target} rw - fuse.rovl rovl rw\n")
}

#[test]
fn the_mount_on_top_is_the_one_that_none_is_mounted_on() {
    let text = [
        mount_line(30, 1, "/m"),
        mount_line(40, 30, "/m"),
        mount_line(50, 1, "/other"),
    ]
    .concat();
    let top = |text: &str| {
        top_of(mountinfo::parse(text.as_bytes()), Path::new("/m")).map(|mount| mount.id)
    };
    assert_eq!(top(&text), Some(40));
    // Ids are used again: the order of the lines says nothing.
    let text = [mount_line(20, 30, "/m"), mount_line(30, 1, "/m")].concat();
    assert_eq!(top(&text), Some(20));
    assert_eq!(top(&mount_line(50, 1, "/other")), None);
}

#[test]
fn only_fuse_is_fuse() {
    let kind = |kind: &str| {
        let line = format!("1 2 0:3 / /m rw - {kind} x rw\n");
        is_fuse(&mountinfo::parse(line.as_bytes())[0])
    };
    assert!(kind("fuse") && kind("fuse.rovl") && kind("fuse.fuse-overlayfs"));
    assert!(!kind("fusectl") && !kind("fuseblk") && !kind("ext4"));
}

#[test]
fn what_a_helper_says_is_shown_without_its_name() {
    let output = |text: &str| std::process::Output {
        status: std::process::ExitStatus::default(),
        stdout: Vec::new(),
        stderr: text.as_bytes().to_vec(),
    };
    assert_eq!(
        said(&output(
            "fusermount3: user has no write access to mountpoint /m\n"
        )),
        "user has no write access to mountpoint /m"
    );
    assert_eq!(said(&output("fusermount3: a\n\nfusermount3: b\n")), "a; b");
    assert_eq!(said(&output("")), "exit status: 0");
}
