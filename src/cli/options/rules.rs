//! What options must hold against each other, and what of them is not implemented.

use super::{Dialect, MountOptions, OptionError};
use crate::fuse::Passthrough;
use crate::overlay::RedirectDir;

/// The least set of directories. Takes out what is of no use in a read-only mount, as the kernel does.
pub fn complete(
    options: &mut MountOptions,
    dialect: Dialect,
    warnings: &mut Vec<String>,
) -> Result<(), OptionError> {
    if let Some(name) = options.not_a_mount {
        return Err(OptionError::NotImplemented {
            name: name.to_owned(),
            why: "unmount and mount anew to change a mount",
        });
    }
    if options.lowers.is_empty() {
        return Err(OptionError::NoLowers);
    }
    match (&options.upper, &options.work, dialect) {
        (Some(_), None, _) => return Err(OptionError::NoWork),
        (None, Some(_), Dialect::Rovl) => return Err(OptionError::NoUpper),
        (None, Some(_), Dialect::Helper) => {
            warnings.push("'workdir' ignored: it is of no use without 'upperdir'".to_owned());
            options.work = None;
        }
        _ => {}
    }
    if options.upper.is_none() && options.volatile {
        warnings
            .push("'volatile' ignored: nothing is written without an upper directory".to_owned());
        options.volatile = false;
    }
    Ok(())
}

/// Two options that exclude each other.
struct Conflict {
    applies: fn(&MountOptions) -> bool,
    one: &'static str,
    /// `redirect_dir` stands for that option with its value.
    other: &'static str,
    why: &'static str,
}

/// The combinations that the kernel's overlayfs refuses (`ovl_fs_params_verify` in fs/overlayfs/params.c),
/// and those that rovl can't do.
const CONFLICTS: &[Conflict] = &[
    Conflict {
        applies: |o| {
            let makes = |mode| matches!(mode, RedirectDir::On | RedirectDir::Auto);
            makes_metacopies(o) && o.redirect_dir.is_some_and(|mode| !makes(mode))
        },
        one: "metacopy=on",
        other: "redirect_dir",
        why: "a file with attributes only finds its data through a redirect once it is renamed",
    },
    Conflict {
        applies: |o| o.verity && o.metacopy == Some(false),
        one: "verity=on",
        other: "metacopy=off",
        why: "the digest is kept in the metacopy mark",
    },
    Conflict {
        applies: |o| o.userxattr && makes_metacopies(o),
        one: "userxattr",
        other: "metacopy=on",
        why: "any user could make a file show another file's data, the marks being user xattrs",
    },
    Conflict {
        applies: |o| {
            let follows = |mode: RedirectDir| mode != RedirectDir::NoFollow;
            o.userxattr && o.redirect_dir.is_some_and(follows)
        },
        one: "userxattr",
        other: "redirect_dir",
        why: "any user could make a directory show another one, the marks being user xattrs",
    },
    Conflict {
        applies: |o| o.userxattr && o.verity,
        one: "userxattr",
        other: "verity=on",
        why: "any user could change the digests, the marks being user xattrs",
    },
    Conflict {
        applies: |o| exports(o) && makes_metacopies(o),
        one: "nfs_export=on",
        other: "metacopy=on",
        why: "a file handle can't be found again through a file that has attributes only",
    },
    Conflict {
        applies: |o| exports(o) && o.index == Some(false) && o.upper.is_some(),
        one: "nfs_export=on",
        other: "index=off",
        why: "file handles are found again through the index",
    },
    Conflict {
        applies: |o| o.passthrough == Some(Passthrough::On) && o.writeback == Some(true),
        one: "passthrough=on",
        other: "writeback=on",
        why: "the kernel does one of them on a connection, not both",
    },
];

fn makes_metacopies(options: &MountOptions) -> bool {
    options.metacopy == Some(true)
}

fn exports(options: &MountOptions) -> bool {
    options.nfs_export == Some(true)
}

/// Refuses options that exclude each other.
pub fn conflicts(options: &MountOptions) -> Result<(), OptionError> {
    let Some(row) = CONFLICTS.iter().find(|row| (row.applies)(options)) else {
        return Ok(());
    };
    let redirect = options.redirect_dir.map(redirect_word);
    let other = redirect
        .filter(|_| row.other == "redirect_dir")
        .unwrap_or(row.other);
    Err(OptionError::Conflict {
        one: row.one.to_owned(),
        other: other.to_owned(),
        why: row.why,
    })
}

/// An option that is understood but not done: the tree would not be what was asked for.
type Missing = (fn(&MountOptions) -> bool, &'static str, &'static str);

#[rustfmt::skip]
const MISSING: &[Missing] = &[
    (exports, "nfs_export=on", "file handles would go stale at a remount"),
    (|o| o.verity, "verity", "file contents would not be verified"),
    (|o| o.allow_root, "allow_root", "use allow_other"),
];

/// Refuses options that are understood but not done.
pub fn implemented(options: &MountOptions) -> Result<(), OptionError> {
    match MISSING.iter().find(|(asked, ..)| asked(options)) {
        None => Ok(()),
        Some((_, name, why)) => Err(OptionError::NotImplemented {
            name: (*name).to_owned(),
            why,
        }),
    }
}

fn redirect_word(mode: RedirectDir) -> &'static str {
    match mode {
        RedirectDir::On | RedirectDir::Auto => "redirect_dir=on",
        RedirectDir::Off => "redirect_dir=off",
        RedirectDir::Follow => "redirect_dir=follow",
        RedirectDir::NoFollow => "redirect_dir=nofollow",
    }
}
