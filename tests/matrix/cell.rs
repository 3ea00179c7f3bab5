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
        // What syncs, and where the lowers are, have nothing to do with each other.
        cells.retain(|cell| cell.place == Place::Same || !cell.volatile);
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

/// Cells that Linux refuses and rovl need not.
pub struct Liberty {
    pub name: &'static str,
    pub why: &'static str,
    pub applies: fn(&Cell, bool) -> bool,
}

/// All of them; anything else that Linux refuses, rovl must refuse.
pub const LIBERTIES: &[Liberty] = &[];
