use super::*;
use proptest::prelude::*;
use std::os::unix::ffi::OsStringExt;

fn parse(dialect: Dialect, raw: &str) -> Result<Parsed, OptionError> {
    let mut parser = Parser::new(dialect);
    parser.options(OsStr::new(raw))?;
    parser.finish()
}

/// The options that `raw` gives besides a lower, in both command lines.
fn said(raw: &str) -> MountOptions {
    let raw = format!("lowerdir=/l,{raw}");
    let strict = parse(Dialect::Rovl, &raw).unwrap();
    let lenient = parse(Dialect::Helper, &raw).unwrap();
    assert_eq!(strict, lenient, "{raw}");
    assert_eq!(strict.warnings, Vec::<String>::new(), "{raw}");
    strict.options
}

/// An option, and what it changes.
type Row = (&'static str, fn(&mut MountOptions));

fn base() -> MountOptions {
    MountOptions {
        lowers: vec!["/l".into()],
        ..MountOptions::default()
    }
}

#[test]
fn each_option_sets_what_it_is_named_after() {
    let rows: &[Row] = &[
        ("", |_| {}),
        ("ro", |o| o.read_only = true),
        ("ro,rw", |_| {}),
        ("nodev,nosuid,noexec", |o| {
            (o.dev, o.suid, o.exec) = (false, false, false)
        }),
        ("nodev,nosuid,noexec,dev,suid,exec", |_| {}),
        ("relatime", |o| o.noatime = false),
        ("strictatime", |o| o.noatime = false),
        ("atime,noatime", |_| {}),
        ("sync,dirsync", |o| (o.sync, o.dirsync) = (true, true)),
        ("sync,async", |_| {}),
        ("allow_other", |o| o.allow_other = Some(true)),
        ("noallow_other", |o| o.allow_other = Some(false)),
        ("fsname=a=b", |o| o.fs_name = Some("a=b".into())),
        (r"fsname=a\,b", |o| o.fs_name = Some("a,b".into())),
        ("subtype=x", |o| o.subtype = Some("x".into())),
        (r#"context="u:r:t:s0:c1,c2""#, |o| {
            o.context = Some("u:r:t:s0:c1,c2".into())
        }),
        ("redirect_dir=on", |o| {
            o.redirect_dir = Some(RedirectDir::On)
        }),
        ("redirect_dir=off", |o| {
            o.redirect_dir = Some(RedirectDir::Off)
        }),
        ("redirect_dir=follow", |o| {
            o.redirect_dir = Some(RedirectDir::Follow)
        }),
        ("redirect_dir=nofollow", |o| {
            o.redirect_dir = Some(RedirectDir::NoFollow)
        }),
        ("index=on", |o| o.index = Some(true)),
        ("index=off", |o| o.index = Some(false)),
        ("metacopy=off", |o| o.metacopy = Some(false)),
        ("nfs_export=off", |o| o.nfs_export = Some(false)),
        ("xino=auto", |o| o.xino = Some(Xino::Auto)),
        ("xino=on", |o| o.xino = Some(Xino::On)),
        ("xino=off", |o| o.xino = Some(Xino::Off)),
        ("uuid=null,uuid=auto,uuid=off,verity=off", |o| {
            o.uuid = Some(Uuid::Off)
        }),
        ("uuid=on", |o| o.uuid = Some(Uuid::On)),
        ("ino32_t", |o| o.ino32 = true),
        ("io_uring=auto", |o| o.io_uring = Some(IoUring::Auto)),
        ("userxattr", |o| o.userxattr = true),
        ("fsync=0", |o| o.fsync = Some(false)),
        ("fsync=1", |o| o.fsync = Some(true)),
        ("fsync=strict", |o| o.fsync = Some(true)),
        ("uidmapping=0:0:4294967295", |o| {
            o.uid_map = lists::id_maps("0:0:4294967295").unwrap()
        }),
        ("uidmapping=:0:1:1002:1002:0:1", |o| {
            o.uid_map = lists::id_maps("0:1:1002:1002:0:1").unwrap()
        }),
        ("gidmapping=0:1000:1", |o| {
            o.gid_map = lists::id_maps("0:1000:1").unwrap()
        }),
        ("squash_to_root", |o| {
            (o.squash.uid, o.squash.gid) = (Some(0), Some(0))
        }),
        ("squash_to_uid=7", |o| o.squash.uid = Some(7)),
        ("squash_to_gid=8", |o| o.squash.gid = Some(8)),
        ("xattr_permissions=0", |_| {}),
        ("xattr_permissions=2", |o| o.xattr_permissions = 2),
        ("static_nlink", |o| o.static_nlink = true),
        ("noacl", |o| o.acl = false),
        ("noxattrs=1", |o| o.xattrs = false),
        ("noxattr", |o| o.xattrs = false),
        ("noxattrs=0", |_| {}),
        ("threads=3", |o| o.threads = Some(3)),
        ("threaded=0", |o| o.threads = Some(1)),
        ("threaded=1", |_| {}),
        ("clone_fd", |o| o.clone_fd = Some(true)),
        ("clone_fd=off", |o| o.clone_fd = Some(false)),
        ("timeout=1.5", |o| o.timeout = Some(1.5)),
        ("timeout=0", |o| o.timeout = Some(0.0)),
        ("writeback=0", |o| o.writeback = Some(false)),
        ("writeback", |o| o.writeback = Some(true)),
        ("passthrough=auto", |o| {
            o.passthrough = Some(Passthrough::Auto)
        }),
        ("passthrough=off", |o| {
            o.passthrough = Some(Passthrough::Off)
        }),
        ("idle_polling=auto", |o| {
            o.idle_polling = Some(IdlePolling::Auto)
        }),
        ("idle_polling=on", |o| {
            o.idle_polling = Some(IdlePolling::On)
        }),
        ("max_write=131072", |o| o.max_write = Some(131_072)),
        ("max_read=65536", |o| o.max_read = Some(65_536)),
        ("debug", |o| o.debug = true),
        (
            "private,default_permissions,nofail,x-systemd.automount,_netdev,fast_ino=1,auto_unmount",
            |_| {},
        ),
        ("static_nlink=0,ino32_t=0", |_| {}),
        ("metacopy=off,redirect_dir=on,redirect_dir=off", |o| {
            o.metacopy = Some(false);
            o.redirect_dir = Some(RedirectDir::Off);
        }),
    ];
    for (raw, change) in rows {
        let mut expected = base();
        change(&mut expected);
        assert_eq!(said(raw), expected, "{raw}");
    }
}

#[test]
fn directories_come_from_their_options() {
    let options = said("upperdir=/u,workdir=/w,volatile");
    assert_eq!(
        (options.upper, options.work),
        (Some("/u".into()), Some("/w".into()))
    );
    assert!(options.volatile);
    assert!(said("upperdir=/u,workdir=/w,fsync=volatile").volatile);
    let options = said("lowerdir=/a:/b::/d");
    assert_eq!(options.lowers, ["/a", "/b"].map(PathBuf::from));
    assert_eq!(options.data_lowers, ["/d"].map(PathBuf::from));
    let options = said(r"lowerdir+=/a:b,lowerdir+=/c\,d,datadir+=/e");
    assert_eq!(options.lowers, ["/l", "/a:b", "/c,d"].map(PathBuf::from));
    assert_eq!(options.data_lowers, ["/e"].map(PathBuf::from));
    assert_eq!(
        said(r"upperdir=/u\,v:w,workdir=/w").upper,
        Some("/u,v:w".into())
    );
}

#[test]
fn paths_need_not_be_utf8() {
    let mut parser = Parser::new(Dialect::Rovl);
    parser
        .options(OsStr::from_bytes(
            b"lowerdir=/\xff:/b,upperdir=/\xfe,workdir=/\xfd",
        ))
        .unwrap();
    let options = parser.finish().unwrap().options;
    assert_eq!(options.lowers[0].as_os_str().as_bytes(), b"/\xff");
    assert_eq!(options.upper.unwrap().as_os_str().as_bytes(), b"/\xfe");
}

#[test]
fn a_thousand_lowers_fit() {
    let lowers: Vec<String> = (0..1000).map(|at| format!("/{at:0>99}")).collect();
    let options = said(&format!("lowerdir={}", lowers.join(":")));
    assert_eq!(options.lowers.len(), 1000);
}

#[test]
fn an_unknown_option_is_an_error_or_a_warning() {
    let rows = [
        ("userxatr", Some("userxattr")),
        ("upperdri=/u", Some("upperdir")),
        ("redirectdir=on", Some("redirect_dir")),
        ("noatim", Some("noatime")),
        ("LOWERDIR=/l", None),
        ("q", None),
    ];
    for (raw, near) in rows {
        let both = format!("lowerdir=/l,{raw}");
        match parse(Dialect::Rovl, &both) {
            Err(OptionError::Unknown { name, nearest }) => {
                assert_eq!(
                    (name.as_str(), nearest),
                    (raw.split('=').next().unwrap(), near)
                );
            }
            other => panic!("{raw}: {other:?}"),
        }
        let parsed = parse(Dialect::Helper, &both).unwrap();
        let name = raw.split('=').next().unwrap();
        assert_eq!(
            parsed.warnings,
            [format!("unknown mount option '{name}' ignored")]
        );
    }
}

#[test]
fn values_are_checked() {
    let rows = [
        ("lowerdir", "needs a value"),
        ("upperdir", "needs a value"),
        ("upperdir=", "empty path"),
        ("lowerdir=", "empty path"),
        ("lowerdir=/a:", "empty path"),
        ("lowerdir=/a::/d:/b", "data-only"),
        (r"lowerdir=/a\", "lone backslash"),
        ("ro=1", "takes no value"),
        ("redirect_dir=maybe", "expected on, off, follow or nofollow"),
        ("redirect_dir", "needs a value"),
        ("index=2", "expected on, off, 1 or 0"),
        ("xino=", "expected auto"),
        ("timeout=-1", "expected a number"),
        ("timeout=nan", "expected a number"),
        ("timeout=inf", "expected a number"),
        ("max_write=x", "expected a number"),
        ("uidmapping=0:1", "expected [:]STORED:SHOWN:COUNT"),
        ("xattr_permissions=3", "expected 0, 1 or 2"),
        ("squash_to_uid=me", "expected a user id"),
        ("passthrough=yess", "expected on, off or auto"),
        ("idle_polling=perhaps", "expected on, off or auto"),
    ];
    for (raw, expected) in rows {
        let error = parse(Dialect::Rovl, &format!("lowerdir=/l,{raw}"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{raw}: {error}");
        let name = raw.split('=').next().unwrap();
        assert!(error.contains(name), "{raw}: {error}");
    }
}

#[test]
fn flags_with_a_value_are_taken_from_engines() {
    let flagged = |raw: &str| {
        parse(Dialect::Helper, &format!("lowerdir=/l,{raw}"))
            .unwrap()
            .options
    };
    assert!(flagged("ro=1").read_only);
    assert!(!flagged("ro=0").read_only);
    assert!(parse(Dialect::Helper, "lowerdir=/l,ro=maybe").is_err());
}

#[test]
fn directories_must_be_complete() {
    let rows = [
        ("ro", OptionError::NoLowers),
        ("upperdir=/u,workdir=/w", OptionError::NoLowers),
        ("lowerdir=/l,upperdir=/u", OptionError::NoWork),
        ("lowerdir=/l,workdir=/w", OptionError::NoUpper),
    ];
    for (raw, expected) in rows {
        assert_eq!(parse(Dialect::Rovl, raw), Err(expected), "{raw}");
    }
    let parsed = parse(Dialect::Helper, "lowerdir=/l,workdir=/w,volatile").unwrap();
    assert_eq!(parsed.options, base());
    assert_eq!(parsed.warnings.len(), 2);
}

#[test]
fn combinations_that_the_kernel_refuses_are_refused_with_the_reason() {
    let rows = [
        ("metacopy=on,redirect_dir=off", "redirect_dir=off"),
        ("metacopy=on,redirect_dir=nofollow", "redirect_dir=nofollow"),
        ("metacopy=on,redirect_dir=follow", "redirect_dir=follow"),
        ("metacopy=off,verity=on", "metacopy=off"),
        ("userxattr,metacopy=on", "metacopy=on"),
        ("userxattr,redirect_dir=on", "redirect_dir=on"),
        ("redirect_dir=follow,userxattr", "redirect_dir=follow"),
        ("redirect_dir=off,userxattr", "redirect_dir=off"),
        ("userxattr,verity=require", "verity=on"),
        ("nfs_export=on,metacopy=on", "metacopy=on"),
        (
            "nfs_export=on,index=off,upperdir=/u,workdir=/w",
            "index=off",
        ),
        ("passthrough=on,writeback=1", "writeback=on"),
    ];
    for dialect in [Dialect::Rovl, Dialect::Helper] {
        for (raw, other) in rows {
            match parse(dialect, &format!("lowerdir=/l,{raw}")) {
                Err(OptionError::Conflict { other: found, .. }) => {
                    assert_eq!(found, other, "{raw}")
                }
                result => panic!("{raw}: {result:?}"),
            }
        }
    }
    said("userxattr,redirect_dir=nofollow");
    said("userxattr,metacopy=off");
    said("nfs_export=off,index=off,metacopy=off");
}

#[test]
fn what_changes_the_tree_and_is_not_done_is_refused() {
    let rows = [
        ("nfs_export=on", "nfs_export=on"),
        ("verity=on", "verity"),
        ("allow_root", "allow_root"),
        ("remount", "remount"),
        ("bind", "bind"),
    ];
    for dialect in [Dialect::Rovl, Dialect::Helper] {
        for (raw, expected) in rows {
            match parse(dialect, &format!("lowerdir=/l,{raw}")) {
                Err(OptionError::NotImplemented { name, .. }) => assert_eq!(name, expected),
                result => panic!("{raw}: {result:?}"),
            }
        }
    }
}

#[test]
fn long_lists_are_cut_in_messages() {
    let error = parse(
        Dialect::Rovl,
        &format!("lowerdir=/{}:", "x".repeat(100_000)),
    )
    .unwrap_err();
    assert!(error.to_string().len() < 400);
}

#[test]
fn every_name_is_known_once() {
    let mut names: Vec<&str> = table::names().collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
    for name in names {
        assert!(find(name).is_some(), "{name}");
    }
}

proptest! {
    #[test]
    fn nothing_makes_it_panic(raws in proptest::collection::vec(proptest::collection::vec(1u8.., 0..60), 0..4)) {
        for dialect in [Dialect::Rovl, Dialect::Helper] {
            let mut parser = Parser::new(dialect);
            let read = raws.iter().try_for_each(|raw| parser.options(&OsString::from_vec(raw.clone())));
            drop((read, parser.finish()));
        }
    }

    #[test]
    fn no_mix_of_options_makes_it_panic(
        picks in proptest::collection::vec((0usize..1000, proptest::option::of("[a-z0-9:,\\\\/]{0,6}")), 0..8)
    ) {
        let names: Vec<&str> = table::names().collect();
        let words: Vec<String> = picks
            .into_iter()
            .map(|(at, value)| match value {
                Some(value) => format!("{}={value}", names[at % names.len()]),
                None => names[at % names.len()].to_owned(),
            })
            .collect();
        for dialect in [Dialect::Rovl, Dialect::Helper] {
            drop(parse(dialect, &words.join(",")));
        }
    }
}
