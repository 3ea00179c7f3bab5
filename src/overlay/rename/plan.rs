//! What a rename takes, as a table from facts to steps. Pure.

use super::RenameMode;

/// What is to be known of one of the two names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Side {
    pub is_dir: bool,
    /// A directory with lowers merged beneath it, or a file whose data is in a lower.
    pub merges: bool,
    /// A lower shows something under the name: it needs to be hidden when the name goes.
    pub covers: bool,
    /// The directory that the name is in has lowers.
    pub parent_merges: bool,
}

/// What upper has under the target's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Nothing,
    Whiteout,
    File,
    Dir,
}

/// How a moved directory is kept from merging with what lies under its new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    None,
    Opaque,
    Redirect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Move, leaving nothing.
    Move,
    /// Move, leaving a whiteout.
    MoveAndWhiteout,
    /// Swap the two names.
    Exchange,
    /// Swap with the target's whiteout, which then hides the source's old name.
    ExchangeWhiteout,
    /// The same, and remove the whiteout, which hides nothing there.
    ExchangeAndDropWhiteout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub source: Mark,
    pub target: Mark,
    pub step: Step,
}

/// The table. Pure.
pub(super) fn plan_rename(mode: RenameMode, source: Side, target: Side, slot: Slot) -> Plan {
    let mark = |moved: Side, to: Side| match moved {
        Side { merges: true, .. } => Mark::Redirect,
        Side { is_dir: false, .. } => Mark::None,
        _ if to.parent_merges => Mark::Opaque,
        _ => Mark::None,
    };
    if mode == RenameMode::Exchange {
        return Plan {
            source: mark(source, target),
            target: mark(target, source),
            step: Step::Exchange,
        };
    }
    let step = match (slot, source.is_dir, source.covers) {
        (Slot::Whiteout, true, true) => Step::ExchangeWhiteout,
        (Slot::Whiteout, true, false) => Step::ExchangeAndDropWhiteout,
        (_, _, true) => Step::MoveAndWhiteout,
        (_, _, false) => Step::Move,
    };
    Plan {
        source: mark(source, target),
        target: Mark::None,
        step,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Side = Side {
        is_dir: false,
        merges: false,
        covers: false,
        parent_merges: true,
    };
    const DIR: Side = Side {
        is_dir: true,
        ..FILE
    };

    #[test]
    fn a_file_leaves_a_whiteout_only_where_a_lower_shows() {
        let plan =
            |covers, slot| plan_rename(RenameMode::Replace, Side { covers, ..FILE }, FILE, slot);
        assert_eq!(plan(false, Slot::Nothing).step, Step::Move);
        assert_eq!(plan(true, Slot::Nothing).step, Step::MoveAndWhiteout);
        assert_eq!(plan(true, Slot::File).step, Step::MoveAndWhiteout);
        assert_eq!(plan(false, Slot::Whiteout).step, Step::Move);
        assert_eq!(plan(true, Slot::Whiteout).source, Mark::None);
    }

    #[test]
    fn a_directory_onto_a_whiteout_is_exchanged_with_it() {
        let plan = |covers| {
            plan_rename(
                RenameMode::Replace,
                Side { covers, ..DIR },
                FILE,
                Slot::Whiteout,
            )
        };
        assert_eq!(plan(true).step, Step::ExchangeWhiteout);
        assert_eq!(plan(false).step, Step::ExchangeAndDropWhiteout);
    }

    #[test]
    fn a_merged_directory_gets_a_redirect_and_a_new_one_is_made_opaque() {
        let merged = Side {
            merges: true,
            covers: true,
            ..DIR
        };
        let plan = plan_rename(RenameMode::Replace, merged, FILE, Slot::Nothing);
        assert_eq!(
            (plan.source, plan.step),
            (Mark::Redirect, Step::MoveAndWhiteout)
        );
        let plan = plan_rename(RenameMode::Replace, DIR, FILE, Slot::Nothing);
        assert_eq!((plan.source, plan.step), (Mark::Opaque, Step::Move));
        let pure = Side {
            parent_merges: false,
            ..FILE
        };
        let plan = plan_rename(RenameMode::NoReplace, DIR, pure, Slot::Nothing);
        assert_eq!(plan.source, Mark::None);
    }

    #[test]
    fn an_exchange_marks_both_and_leaves_no_whiteout() {
        let merged = Side {
            merges: true,
            covers: true,
            ..DIR
        };
        let plan = plan_rename(RenameMode::Exchange, merged, DIR, Slot::Dir);
        assert_eq!(plan.source, Mark::Redirect);
        assert_eq!(plan.target, Mark::Opaque);
        assert_eq!(plan.step, Step::Exchange);
    }
}
