//! What options must hold against each other, and what of them is not implemented.

use super::{Dialect, IdMap, MountOptions, OptionError};
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

/// The combinations that the kernel's overlayfs refuses (`ovl_fs_params_verify` in fs/overlayfs/params.c),
/// and those that rovl can't do.
pub fn conflicts(options: &MountOptions) -> Result<(), OptionError> {
    let redirect = options.redirect_dir.map(redirect_word);
    let metacopy = options.metacopy == Some(true);
    let nfs_export = options.nfs_export == Some(true);
    let no_redirect = matches!(
        options.redirect_dir,
        Some(RedirectDir::Off | RedirectDir::Follow | RedirectDir::NoFollow)
    );
    let rows = [
        (
            metacopy && no_redirect,
            "metacopy=on",
            redirect.unwrap_or(""),
            "a file with attributes only finds its data through a redirect once it is renamed",
        ),
        (
            options.verity && options.metacopy == Some(false),
            "verity=on",
            "metacopy=off",
            "the digest is kept in the metacopy mark",
        ),
        (
            options.userxattr && metacopy,
            "userxattr",
            "metacopy=on",
            "any user could make a file show another file's data, the marks being user xattrs",
        ),
        (
            options.userxattr
                && matches!(
                    options.redirect_dir,
                    Some(RedirectDir::On | RedirectDir::Follow)
                ),
            "userxattr",
            redirect.unwrap_or(""),
            "any user could make a directory show another one, the marks being user xattrs",
        ),
        (
            options.userxattr && options.verity,
            "userxattr",
            "verity=on",
            "any user could change the digests, the marks being user xattrs",
        ),
        (
            nfs_export && metacopy,
            "nfs_export=on",
            "metacopy=on",
            "a file handle can't be found again through a file that has attributes only",
        ),
        (
            nfs_export && options.index == Some(false) && options.upper.is_some(),
            "nfs_export=on",
            "index=off",
            "file handles are found again through the index",
        ),
        (
            options.passthrough == Some(Passthrough::On) && options.writeback == Some(true),
            "passthrough=on",
            "writeback=on",
            "the kernel does one of them on a connection, not both",
        ),
    ];
    match rows.into_iter().find(|(applies, ..)| *applies) {
        Some((_, one, other, why)) => Err(OptionError::Conflict {
            one: one.to_owned(),
            other: other.to_owned(),
            why,
        }),
        None => Ok(()),
    }
}

/// What an option that is not implemented means for the tree.
enum Weight {
    /// The tree would not be what was asked for.
    Changes,
    /// The same tree, at another price: a warning is enough where an engine sends it.
    Harmless,
}

/// Refuses options that are understood but not done; the harmless ones get a warning in [`Dialect::Helper`]
/// and are taken out.
pub fn implemented(
    options: &mut MountOptions,
    dialect: Dialect,
    warnings: &mut Vec<String>,
) -> Result<(), OptionError> {
    use Weight::{Changes, Harmless};
    let rows: [(bool, &str, &'static str, Weight); 12] = [
        (
            maps_ids(&options.uid_map),
            "uidmapping",
            "files would have the wrong owners",
            Changes,
        ),
        (
            maps_ids(&options.gid_map),
            "gidmapping",
            "files would have the wrong groups",
            Changes,
        ),
        (
            options.squash.uid.is_some(),
            "squash_to_uid",
            "files would have their own owners",
            Changes,
        ),
        (
            options.squash.gid.is_some(),
            "squash_to_gid",
            "files would have their own groups",
            Changes,
        ),
        (
            options.xattr_permissions != 0,
            "xattr_permissions",
            "owners and modes would be those on disk",
            Changes,
        ),
        (
            options.ino32,
            "ino32_t",
            "inode numbers would not fit 32 bits",
            Changes,
        ),
        (
            options.nfs_export == Some(true),
            "nfs_export=on",
            "file handles would go stale at a remount",
            Changes,
        ),
        (
            options.verity,
            "verity",
            "file contents would not be verified",
            Changes,
        ),
        (options.allow_root, "allow_root", "use allow_other", Changes),
        (
            options.metacopy == Some(true),
            "metacopy=on",
            "data is copied up with the attributes",
            Harmless,
        ),
        (
            options.static_nlink,
            "static_nlink",
            "directories have the link counts of POSIX",
            Harmless,
        ),
        (
            options.uuid_on,
            "uuid=on",
            "statfs shows an id of this mount only",
            Harmless,
        ),
    ];
    for (asked, name, why, weight) in rows {
        match (asked, weight, dialect) {
            (false, _, _) => {}
            (true, Harmless, Dialect::Helper) => {
                warnings.push(format!("mount option '{name}' ignored: {why}"))
            }
            (true, _, _) => {
                return Err(OptionError::NotImplemented {
                    name: name.to_owned(),
                    why,
                });
            }
        }
    }
    options.metacopy = options.metacopy.map(|_| false);
    options.static_nlink = false;
    options.uuid_on = false;
    Ok(())
}

/// Whether the maps change any id: a single row that maps all of them to themselves does not.
fn maps_ids(maps: &[IdMap]) -> bool {
    let everything = IdMap {
        inside: 0,
        outside: 0,
        count: u32::MAX,
    };
    !maps.is_empty() && maps != [everything]
}

fn redirect_word(mode: RedirectDir) -> &'static str {
    match mode {
        RedirectDir::On => "redirect_dir=on",
        RedirectDir::Off => "redirect_dir=off",
        RedirectDir::Follow => "redirect_dir=follow",
        RedirectDir::NoFollow => "redirect_dir=nofollow",
    }
}
