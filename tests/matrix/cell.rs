//! The cells of the matrix, and who may refuse which.

use std::fmt;

/// Where the lowers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All layers on one file system.
    Same,
    /// The lowest layer on another.
    Mixed,
}

/// One combination of options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub redirect: &'static str,
    pub index: bool,
    pub metacopy: bool,
    pub xino: &'static str,
    pub userxattr: bool,
    pub volatile: bool,
    pub place: Place,
}

fn on(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.place == Place::Mixed {
            " mixed"
        } else {
            ""
        };
        write!(f, "{}{place}", self.options().join(","))
    }
}

impl Cell {
    /// Every combination.
    pub fn all() -> Vec<Cell> {
        let both = [false, true];
        let mut cells = Vec::new();
        for place in [Place::Same, Place::Mixed] {
            for redirect in ["on", "off", "follow", "nofollow"] {
                for xino in ["auto", "on", "off"] {
                    for bits in 0..16 {
                        let bit = |at: usize| both[bits >> at & 1];
                        cells.push(Cell {
                            redirect,
                            index: bit(0),
                            metacopy: bit(1),
                            xino,
                            userxattr: bit(2),
                            volatile: bit(3),
                            place,
                        });
                    }
                }
            }
        }
        // What syncs, and whether redirects are made or only followed, has nothing to do with where lowers are.
        let plain = |cell: &Cell| !cell.volatile && matches!(cell.redirect, "on" | "nofollow");
        cells.retain(|cell| cell.place == Place::Same || plain(cell));
        cells
    }

    /// As mount options, all of them said.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![
            format!("redirect_dir={}", self.redirect),
            format!("index={}", on(self.index)),
            format!("metacopy={}", on(self.metacopy)),
            format!("xino={}", self.xino),
        ];
        for (flag, wanted) in [("userxattr", self.userxattr), ("volatile", self.volatile)] {
            if wanted {
                options.push(flag.into());
            }
        }
        options
    }
}

/// Where the cells run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// As root of the machine.
    Initial,
    /// As root of a user namespace.
    User,
}

/// Cells in which rovl does what Linux can't.
pub struct Liberty {
    pub name: &'static str,
    pub why: &'static str,
    applies: fn(&Cell, Namespace) -> bool,
}

impl Liberty {
    /// Whether the cell is one of them.
    pub fn applies(&self, cell: &Cell, namespace: Namespace) -> bool {
        (self.applies)(cell, namespace)
    }
}

/// In a user namespace Linux can't keep privileged marks, and mounts without any, or not at all where a redirect
/// would need one. rovl keeps them in `user.overlay.*`, with or without `userxattr`, and follows redirects with
/// no more rights than its user has.
pub const OWN_MARKS: Liberty = Liberty {
    name: "own-marks",
    why: "in a user namespace without userxattr Linux keeps no marks; rovl keeps them in user.overlay.*",
    applies: |cell, namespace| namespace == Namespace::User && !cell.userxattr && !cell.metacopy,
};

/// Linux opens the lower file by its handle, which needs CAP_DAC_READ_SEARCH in the initial namespace; without
/// it `index=on` is taken as `index=off`. rovl only compares handles, which needs nothing.
pub const KEPT_LINKS: Liberty = Liberty {
    name: "kept-links",
    why: "in a user namespace Linux takes index=on as index=off, as it can't open files by handle; rovl needs not to",
    applies: |cell, namespace| namespace == Namespace::User && cell.index,
};

/// Each file system of a mixed tree has a device number of its own in Linux with `xino=off`, and so may use the
/// inode numbers as they are. FUSE has one device number.
pub const ONE_DEVICE: Liberty = Liberty {
    name: "one-device",
    why: "without xino Linux shows several device numbers; in rovl's one the inode numbers must differ",
    applies: |cell, namespace| {
        let composed = cell.xino == "on" || cell.xino == "auto" && namespace == Namespace::Initial;
        cell.place == Place::Mixed && !composed
    },
};

/// Linux decodes an origin only with CAP_DAC_READ_SEARCH in the initial namespace. Without it, it shows what was
/// copied up under the upper's number, and takes `impure` away from directories where it finds no origin. rovl
/// compares, which needs nothing. Neither can mark a symlink or a device with `user.*` attributes: those have the
/// upper's number after a remount.
pub const UNREAD_ORIGINS: Liberty = Liberty {
    name: "unread-origins",
    why: "in a user namespace Linux can't read origins: inode numbers of copies are those of the upper",
    applies: |_, namespace| namespace == Namespace::User,
};
