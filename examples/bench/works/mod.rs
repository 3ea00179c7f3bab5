//! All work, in the order of the tables.

mod changes;
mod contents;
mod load;
mod metadata;
mod programs;
mod trees;

use crate::data::Scale;
use crate::work::Work;

/// Every row.
pub fn all(scale: &Scale) -> Vec<Work> {
    let groups = [
        ("Names and attributes", metadata::works(scale)),
        ("Trees", trees::works(scale)),
        ("Data", contents::works(scale)),
        ("Changes", changes::works(scale)),
        ("Programs", programs::works(scale)),
        ("Clients, layers, memory", load::works(scale)),
    ];
    let mut all = Vec::new();
    for (group, works) in groups {
        all.extend(works.into_iter().map(|mut work| {
            work.group = group;
            work
        }));
    }
    all
}
