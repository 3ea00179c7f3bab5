//! Listings of directories that are only looked into.
//!
//! A lookup asks every lower of its directory for the name. Where there are many lowers and names are looked up again
//! and again, listing them costs less: a listing says where there is something. It is made a few lowers at a time, by
//! the lookups that would gain from it, and says what it can before it is whole.

use super::Overlay;
use super::listing::Listing;
use super::node::Node;
use super::readdir::PART_COST;
use crate::sys::dir::DirReader;

/// Lowers from which on a listing may pay.
const MANY_LOWERS: usize = 2;
/// Lookups and questions, likewise: most directories are looked into a few times only.
const MANY_LOOKUPS: u32 = 4;
const MANY_QUESTIONS: usize = 16;
/// Entries that cost about as much as asking one lower for a name, with its marks.
const ENTRIES_PER_QUESTION: usize = 6;
/// Entries that one lookup lists at most: a few milliseconds. What has more in one layer is not listed, nor what has
/// more in all.
const MOST_LISTED: usize = 8192;
/// Room for one of them in what the kernel fills at once.
const ENTRY_ROOM: usize = 32;
/// What it is worth to go on for.
const LEAST_LISTED: usize = 512;

/// What is kept of the lookups in a directory while it has no whole listing.
#[derive(Default)]
pub(crate) struct LookedInto {
    lookups: u32,
    /// Entries read so far.
    spent: usize,
    /// How many may be read before it is gone on with.
    needed: usize,
    /// How many lowers were listed.
    upto: usize,
}

impl LookedInto {
    /// Counts a lookup in a directory of so many lowers. The entries that may be read now, if any.
    ///
    /// All that is read may cost as much as all lookups have so far: together they take twice as long at most.
    fn allow(&mut self, lowers: usize) -> Option<usize> {
        self.lookups = self.lookups.saturating_add(1);
        let questions = (self.lookups as usize).saturating_mul(lowers);
        if self.lookups < MANY_LOOKUPS || questions < MANY_QUESTIONS || self.needed > MOST_LISTED {
            return None;
        }
        let earned = questions.saturating_mul(ENTRIES_PER_QUESTION);
        let left = earned.saturating_sub(self.spent).min(MOST_LISTED);
        (left >= self.needed.max(PART_COST)).then_some(left)
    }

    /// So many entries were read.
    fn read(&mut self, read: usize) {
        self.spent = self.spent.saturating_add(read);
    }

    /// So many did not suffice for all lowers.
    fn stopped(&mut self, read: usize, listing: &Listing) {
        // What is left of a lower is lost, and it is read from its beginning again. Where not a single one came to
        // its end, twice as many are needed at least.
        let went_on = listing.upto > Some(self.upto);
        self.upto = listing.upto.unwrap_or(0);
        self.needed = match went_on {
            true => LEAST_LISTED,
            false => read.saturating_mul(2).max(LEAST_LISTED),
        };
        if self.needed > MOST_LISTED && read < MOST_LISTED {
            self.needed = MOST_LISTED;
        }
        if listing.entries.len() > MOST_LISTED {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.needed = usize::MAX;
    }
}

impl Overlay {
    /// Counts a lookup that a listing would have spared questions, in a directory whose names are locked, and goes on
    /// with the listing where that pays. `true`: it says more now.
    ///
    /// Whoever may look into a directory need not be allowed to list it.
    pub(super) fn list_for_lookups(&self, node: &Node) -> bool {
        let Some(dir) = node.dir.as_deref() else {
            return false;
        };
        let lowers = dir.lowers().len();
        if lowers < MANY_LOWERS || node.place.read().has_upper() {
            return false;
        }
        // Otherwise somebody is at it.
        let Some(mut state) = dir.looked_into.try_lock() else {
            return false;
        };
        let Some(allowed) = state.allow(lowers) else {
            return false;
        };
        let mut listing = self.listings.take_begun(node.id).unwrap_or(Listing {
            upto: Some(0),
            ..Listing::default()
        });
        let mut left = allowed;
        let mut reader = DirReader::with_room(allowed.saturating_mul(ENTRY_ROOM));
        let added = self.add_lowers(&mut listing, dir, &mut reader, &mut left);
        let read = allowed.saturating_sub(left);
        state.read(read);
        match added {
            Ok(true) => listing.entries.retain(|_, e| !e.hidden),
            Ok(false) => state.stopped(read, &listing),
            Err(e) => {
                tracing::debug!(node = node.id, "a directory is not listed: {e}");
                state.give_up();
            }
        }
        self.listings.put(node.id, listing);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> Listing {
        Listing {
            upto: Some(0),
            ..Listing::default()
        }
    }

    #[test]
    fn what_is_read_never_costs_more_than_what_was_asked() {
        for lowers in [2, 20, 500] {
            let (mut state, mut read) = (LookedInto::default(), 0);
            for lookup in 1..20_000 {
                if let Some(left) = state.allow(lowers) {
                    read += left;
                    state.read(left);
                    state.stopped(left, &begun());
                }
                assert!(read <= lookup * lowers * ENTRIES_PER_QUESTION);
            }
            assert!(read > 0);
        }
    }

    #[test]
    fn a_directory_with_more_than_one_lookup_may_list_is_left_alone_after_some_tries() {
        let (mut state, mut tries) = (LookedInto::default(), 0);
        for _ in 0..1_000_000 {
            if let Some(left) = state.allow(2) {
                tries += 1;
                state.read(left);
                state.stopped(left, &begun());
            }
        }
        assert!((2..10).contains(&tries), "{tries}");
    }
}
