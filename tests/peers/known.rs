//! Where fuse-overlayfs is known to be wrong, and how two views differ beyond that.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::view::{Entry, View};

/// One fact of one entry that two views don't agree on.
pub struct Seen<'a> {
    pub fact: &'static str,
    pub peer: &'a str,
    pub rovl: &'a str,
}

/// A fault of fuse-overlayfs that makes an equality impossible.
pub struct Fault {
    pub name: &'static str,
    pub why: &'static str,
    pub applies: fn(&Seen<'_>) -> bool,
}

/// All of them.
pub const FAULTS: &[Fault] = &[
    Fault {
        name: "nlink-of-lower-links",
        why: "st_nlink of a lower hard link counts the names looked up so far (2.0.0), or is the lower's (1.10)",
        applies: |seen| seen.fact == "nlink" && [seen.peer, seen.rovl] != ["1", "1"],
    },
    Fault {
        name: "other-marks",
        why: "user.overlay.* are hidden also where they mean nothing (as root); Linux and rovl show them there",
        applies: |seen| seen.fact == "xattrs" && without(seen.rovl, "user.overlay.") == seen.peer,
    },
    Fault {
        name: "override-stat-shown",
        why: "the xattrs that owners and modes are kept in show through the mount",
        applies: |seen| {
            let keys = [
                "security.fuseoverlayfs.",
                "user.fuseoverlayfs.",
                "user.containers.",
            ];
            let hidden = keys.iter().fold(seen.peer.to_owned(), |text, key| {
                without(&text, &format!("{key}override_stat="))
            });
            seen.fact == "xattrs" && hidden == seen.rovl
        },
    },
];

fn without(xattrs: &str, prefix: &str) -> String {
    let kept = xattrs.split(' ').filter(|xattr| !xattr.starts_with(prefix));
    kept.collect::<Vec<_>>().join(" ")
}

/// What differs and is not known, one line each; `peer` is fuse-overlayfs's view.
pub fn differences(peer: &View, rovl: &View) -> Vec<String> {
    let mut lines = Vec::new();
    let mut used = BTreeMap::new();
    let paths: std::collections::BTreeSet<&PathBuf> = peer.keys().chain(rovl.keys()).collect();
    for path in paths {
        let (a, b) = match (peer.get(path), rovl.get(path)) {
            (Some(a), Some(b)) => (a, b),
            (Some(_), None) => {
                lines.push(format!(
                    "{}: fuse-overlayfs has it, rovl not",
                    path.display()
                ));
                continue;
            }
            (None, _) => {
                lines.push(format!(
                    "{}: rovl has it, fuse-overlayfs not",
                    path.display()
                ));
                continue;
            }
        };
        let mut facts = facts(a);
        let ours = self::facts(b);
        facts.retain(|(fact, value)| !ours.contains(&(*fact, value.clone())));
        for (fact, peer) in facts {
            let rovl = ours.iter().find(|(name, _)| *name == fact);
            let rovl = rovl.map_or("nothing", |(_, value)| value);
            let seen = Seen {
                fact,
                peer: &peer,
                rovl,
            };
            match FAULTS.iter().find(|fault| (fault.applies)(&seen)) {
                Some(fault) => {
                    used.insert(fault.name, fault.why);
                }
                None => lines.push(format!(
                    "{}: {fact}: fuse-overlayfs {peer}, rovl {rovl}",
                    path.display()
                )),
            }
        }
    }
    for (name, why) in used {
        println!("known of fuse-overlayfs: {name}: {why}");
    }
    lines
}

fn facts(entry: &Entry) -> Vec<(&'static str, String)> {
    let mut facts: Vec<_> = entry
        .facts
        .iter()
        .map(|(fact, value)| (*fact, value.clone()))
        .collect();
    facts.push(("mtime", format!("{:?}", entry.times[0])));
    facts
}
