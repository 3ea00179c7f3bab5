//! Rename: planned as a table from facts to steps, then run.
//!
//! Lower objects are copied up first (directories without what is in them: a redirect says where
//! their lower part is). What the source's old name would uncover is whited out in the same system
//! call that moves it, so that no crash leaves half a rename.

mod plan;
mod redirect;

use rustix::fs::{AtFlags, RenameFlags, Statx};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::attr::{dev_of, is_dir, stat_at, stat_opt};
use super::copy_up::{CopyData, set_times};
use super::create::remove_mark;
use super::index::UNKNOWN_LINKS;
use super::lookup::Found;
use super::node::{Node, Place};
use super::remove::{is_at, lock_names, loses_its_way};
use super::{Moves, Overlay, Upper};
use crate::format::keys::OverlayKey;
use crate::sys::xattr;
use plan::{Mark, Plan, Side, Slot, Step, plan_rename};

/// What to do with an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Fail with `EEXIST`.
    NoReplace,
    /// Swap the two.
    Exchange,
}

/// One of the two names of a rename, with what it stands for.
struct End<'a> {
    parent: &'a Arc<Node>,
    name: &'a OsStr,
    found: Option<Found>,
    node: Option<Arc<Node>>,
    side: Side,
}

impl Overlay {
    /// Renames.
    ///
    /// # Errors
    /// Those of renameat2(2). `EXDEV` for a directory with lower contents where redirects are off
    /// or the redirect would be too long.
    pub fn rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<(), Errno> {
        let upper = self.upper()?;
        self.check_new_name(new_name)?;
        let parent = self.node(parent)?;
        let new_parent = self.node(new_parent)?;
        let (source, _) = self.lookup(parent.id, name)?.ok_or(Errno::NOENT)?;
        let target = match self.lookup(new_parent.id, new_name) {
            Ok(found) => found.map(|(node, _)| node),
            Err(e) => {
                self.release(&source, 1);
                return Err(e);
            }
        };
        let ends = [(&parent, name), (&new_parent, new_name)];
        let result = self.rename_nodes(upper, ends, &source, target.as_ref(), mode);
        self.release(&source, 1);
        if let Some(target) = target {
            self.release(&target, 1);
        }
        for old in result? {
            self.release(&old, 1);
        }
        Ok(())
    }

    /// Checks, copies up, locks and goes. Gives the nodes on which a parent's reference is to be
    /// released.
    fn rename_nodes(
        &self,
        upper: &Upper,
        [(parent, name), (new_parent, new_name)]: [(&Arc<Node>, &OsStr); 2],
        source: &Arc<Node>,
        target: Option<&Arc<Node>>,
        mode: RenameMode,
    ) -> Result<Vec<Arc<Node>>, Errno> {
        self.check_rename(source, target, [parent, new_parent], mode)?;
        if target.is_some_and(|t| t.id == source.id) {
            return Ok(Vec::new()); // two names of one object: nothing happens
        }
        for dir in [parent, new_parent] {
            self.ensure_upper(dir, CopyData::All)?;
        }
        self.prepare_move(source)?;
        if let Some(target) = target {
            match mode {
                RenameMode::Exchange => self.prepare_move(target)?,
                _ => self.index_before_removal(new_parent, new_name)?,
            }
        }
        let mut dirs: Vec<&Node> = vec![parent, new_parent];
        dirs.extend(target.filter(|t| t.dir.is_some()).map(|t| &**t));
        let _locked = lock_names(&dirs);
        if new_parent.place.read().removed {
            return Err(Errno::NOENT);
        }
        let from = self.look_again(parent, name)?;
        let to = self.look_again(new_parent, new_name)?;
        let id = |end: &End<'_>| end.node.as_ref().map(|n| n.id);
        if id(&from) != Some(source.id) || id(&to) != target.map(|t| t.id) {
            return Err(Errno::STALE); // changed meanwhile; the kernel holds both directories
        }
        self.run_rename(upper, from, to, mode)
    }

    /// What can be said before anything is changed.
    fn check_rename(
        &self,
        source: &Arc<Node>,
        target: Option<&Arc<Node>>,
        [parent, new_parent]: [&Arc<Node>; 2],
        mode: RenameMode,
    ) -> Result<(), Errno> {
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            (RenameMode::Replace, Some(target)) => match (&source.dir, &target.dir) {
                (Some(_), None) => return Err(Errno::NOTDIR),
                (None, Some(_)) => return Err(Errno::ISDIR),
                _ => {}
            },
            _ => {}
        }
        source.check_changeable()?;
        parent.check_changeable()?;
        match target {
            Some(target) => {
                target.check_changeable()?;
                new_parent.check_changeable()?;
            }
            None => new_parent.check_adding()?,
        }
        let mut at = Some(Arc::clone(new_parent));
        while let Some(dir) = at {
            if dir.id == source.id {
                return Err(Errno::INVAL); // into itself
            }
            at = dir.place.read().parent.clone();
        }
        let merges = |n: &Arc<Node>| n.dir.as_ref().is_some_and(|d| !d.lowers().is_empty());
        let exchanged = target.filter(|_| mode == RenameMode::Exchange);
        let moved_dir = merges(source) || exchanged.is_some_and(merges);
        if moved_dir && self.moves == Moves::Refused {
            return Err(Errno::XDEV);
        }
        Ok(())
    }

    /// Brings to upper what is about to move.
    fn prepare_move(&self, node: &Arc<Node>) -> Result<(), Errno> {
        self.ensure_upper(node, CopyData::Nothing)?;
        let merges = node.dir.as_ref().is_some_and(|d| !d.lowers().is_empty());
        if merges && self.moves == Moves::Copy {
            self.ensure_opaque_tree(node)?;
        }
        self.ensure_redirectable(node)
    }

    /// Resolves one end with everything locked.
    fn look_again<'a>(&self, parent: &'a Arc<Node>, name: &'a OsStr) -> Result<End<'a>, Errno> {
        let found = self.resolve(parent, name)?;
        let node = found.as_ref().and_then(|f| self.find_live(parent, name, f));
        let merges = |n: &Node| n.dir.as_ref().is_some_and(|d| !d.lowers().is_empty());
        let side = Side {
            is_dir: found.as_ref().is_some_and(|f| is_dir(&f.stat)),
            merges: node
                .as_ref()
                .is_some_and(|n| merges(n) || n.place.read().data().is_some()),
            covers: merges(parent) && self.lower_has(parent, name)?,
            parent_merges: merges(parent),
        };
        Ok(End {
            parent,
            name,
            found,
            node,
            side,
        })
    }

    fn run_rename(
        &self,
        upper: &Upper,
        from: End<'_>,
        to: End<'_>,
        mode: RenameMode,
    ) -> Result<Vec<Arc<Node>>, Errno> {
        let from_fd = self.upper_dir_fd(from.parent)?;
        let to_fd = self.upper_dir_fd(to.parent)?;
        let (from_fd, to_fd) = (from_fd.as_fd(), to_fd.as_fd());
        let source = from.node.as_ref().ok_or(Errno::STALE)?;
        self.ensure_alias(source, from_fd, from.name, from.found.as_ref())?;
        if let (RenameMode::Exchange, Some(target)) = (mode, &to.node) {
            self.ensure_alias(target, to_fd, to.name, to.found.as_ref())?;
        }
        if mode == RenameMode::Replace
            && let Some(victim) = to.node.as_ref().filter(|v| v.dir.is_some())
            && !self.is_empty_locked(victim)?
        {
            return Err(Errno::NOTEMPTY);
        }
        let slot = match stat_opt(to_fd, to.name)? {
            None => Slot::Nothing,
            Some(st) if self.is_upper_whiteout(to_fd, to.name, &st)? => Slot::Whiteout,
            Some(st) if is_dir(&st) => Slot::Dir,
            Some(_) => Slot::File,
        };
        let plan = plan_rename(mode, from.side, to.side, slot);
        let same_dir = from.parent.id == to.parent.id;
        self.mark_moved(plan.source, source, from_fd, from.name, same_dir)?;
        if mode == RenameMode::Exchange {
            let target = to.node.as_ref().ok_or(Errno::STALE)?;
            self.mark_moved(plan.target, target, to_fd, to.name, same_dir)?;
            self.mark_if_origin(target, from.parent, to.found.as_ref())?;
        }
        self.mark_if_origin(source, to.parent, from.found.as_ref())?;
        if slot == Slot::Dir && mode != RenameMode::Exchange {
            self.clear_out(upper, to_fd, to.name)?;
        }
        let released = match mode {
            RenameMode::Exchange => self.swap(upper, plan, &from, &to, (from_fd, to_fd))?,
            _ => self.move_over(upper, plan, &from, &to, (from_fd, to_fd), slot)?,
        };
        self.name_added(to.parent, to.name, source);
        match (&to.node, mode) {
            (Some(target), RenameMode::Exchange) => {
                self.name_added(from.parent, from.name, target);
            }
            _ => self.name_removed(from.parent, from.name),
        }
        Ok(released)
    }

    /// Gives a name of a hard link that was copied up under another of its names a place in upper
    /// (`ovl_link_up`), so that it can be moved.
    pub(crate) fn ensure_alias(
        &self,
        node: &Node,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        found: Option<&Found>,
    ) -> Result<(), Errno> {
        let Some(found) = found.filter(|f| !f.upper_alias && f.upper_ino != 0) else {
            return Ok(());
        };
        let index = node
            .place
            .read()
            .index()
            .map(Box::<str>::from)
            .ok_or(Errno::STALE)?;
        let shown = self.indexed_nlink(&index, &found.stat)?;
        let work_index = self.upper()?.work.index.as_ref().ok_or(Errno::IO)?;
        rustix::fs::linkat(work_index, &*index, dir, name, AtFlags::empty())?;
        if shown == UNKNOWN_LINKS {
            return Ok(());
        }
        // After the link: a crash in between counts a name too many, which loses nothing.
        self.store_nlink(
            &index,
            i64::from(shown) - i64::from(found.stat.stx_nlink) - 1,
        )
    }

    /// The move of everything but an exchange, and what the nodes say of themselves after it.
    fn move_over(
        &self,
        upper: &Upper,
        plan: Plan,
        from: &End<'_>,
        to: &End<'_>,
        (from_fd, to_fd): (BorrowedFd<'_>, BorrowedFd<'_>),
        slot: Slot,
    ) -> Result<Vec<Arc<Node>>, Errno> {
        let source = from.node.as_ref().ok_or(Errno::STALE)?;
        let mut released = Vec::new();
        let victim_pin = match &to.node {
            Some(v) if v.dir.is_some() && v.place.read().has_upper() => self.pin_dir(v)?,
            _ => None,
        };
        let victim = to.node.as_ref().zip(to.found.as_ref());
        let (mut source_place, mut victim_place) = match &victim {
            Some((v, _)) if v.id < source.id => {
                let v = v.place.write();
                (source.place.write(), Some(v))
            }
            Some((v, _)) => {
                let s = source.place.write();
                (s, Some(v.place.write()))
            }
            None => (source.place.write(), None),
        };
        let mut shown = None;
        if let (Some((v, found)), Some(place)) = (&victim, &mut victim_place)
            && v.dir.is_none()
        {
            v.links_change();
            shown = self.before_replaced(upper, to, to_fd, found, place)?;
        }
        self.step_on_disk(
            upper,
            plan.step,
            (from_fd, from.name),
            (to_fd, to.name),
            slot,
        )?;
        if let (Some((v, found)), Some(place)) = (&victim, &mut victim_place) {
            if v.dir.is_none() {
                released.extend(self.after_replaced(upper, to, found, v, place, shown)?);
            } else {
                place.removed = true;
                if victim_pin.is_some() {
                    place.extra_mut().pin = victim_pin;
                }
                self.listings.remove(v.id);
                released.extend(place.parent.take());
            }
        }
        released.extend(self.place_at(&mut source_place, to.parent, to.name, from));
        Ok(released)
    }

    /// The node is at another name now.
    fn place_at(
        &self,
        place: &mut Place,
        parent: &Arc<Node>,
        name: &OsStr,
        from: &End<'_>,
    ) -> Option<Arc<Node>> {
        if !is_at(place, from.parent, from.name) && place.parent.is_some() {
            return None; // known by another of its names, which stays
        }
        if let Some(lower) = &mut place.lower
            && lower.name.is_none()
        {
            lower.name = Some(place.name.clone());
        }
        place.name = name.into();
        place.upper_alias = true;
        self.nodes.set_parent(place, Some(Arc::clone(parent)))
    }

    fn swap(
        &self,
        upper: &Upper,
        plan: Plan,
        from: &End<'_>,
        to: &End<'_>,
        (from_fd, to_fd): (BorrowedFd<'_>, BorrowedFd<'_>),
    ) -> Result<Vec<Arc<Node>>, Errno> {
        let (source, target) = match (&from.node, &to.node) {
            (Some(s), Some(t)) => (s, t),
            _ => return Err(Errno::STALE),
        };
        let (mut s, mut t) = if source.id < target.id {
            let s = source.place.write();
            (s, target.place.write())
        } else {
            let t = target.place.write();
            (source.place.write(), t)
        };
        self.step_on_disk(
            upper,
            plan.step,
            (from_fd, from.name),
            (to_fd, to.name),
            Slot::Nothing,
        )?;
        let mut released = Vec::new();
        released.extend(self.place_at(&mut s, to.parent, to.name, from));
        released.extend(self.place_at(&mut t, from.parent, from.name, to));
        Ok(released)
    }

    /// Runs the step. Where the file system lacks a flag, the nearest order of plain steps is
    /// taken, in which a crash may leave both names.
    fn step_on_disk(
        &self,
        upper: &Upper,
        step: Step,
        (from, name): (BorrowedFd<'_>, &OsStr),
        (to, new_name): (BorrowedFd<'_>, &OsStr),
        slot: Slot,
    ) -> Result<(), Errno> {
        let rename = |flags| rustix::fs::renameat_with(from, name, to, new_name, flags);
        match step {
            Step::Move => rename(RenameFlags::empty())?,
            Step::MoveAndWhiteout if upper.work.rename_whiteout => rename(RenameFlags::WHITEOUT)?,
            Step::MoveAndWhiteout => {
                rename(RenameFlags::empty())?;
                self.put_whiteout(upper, from, name)?;
            }
            Step::Exchange => rename(RenameFlags::EXCHANGE)?,
            Step::ExchangeWhiteout | Step::ExchangeAndDropWhiteout => {
                // For the client it is a plain rename, which changes nothing in what is moved; XFS
                // gives directories that are exchanged a new time.
                let before = stat_at(from, name)?;
                self.mark_whiteouts(upper, from)?;
                rename(RenameFlags::EXCHANGE)?;
                set_times(to, new_name, &before)?;
                if step == Step::ExchangeAndDropWhiteout {
                    rustix::fs::unlinkat(from, name, AtFlags::empty())?;
                }
            }
        }
        if !upper.work.whiteouts_in_place && slot == Slot::Nothing {
            // A `.wh.` mark for the new name hides nothing any more.
            remove_mark(to, new_name)?;
        }
        Ok(())
    }

    /// Redirect or opaque mark on what is about to move.
    fn mark_moved(
        &self,
        mark: Mark,
        node: &Arc<Node>,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        same_dir: bool,
    ) -> Result<(), Errno> {
        match mark {
            Mark::None => Ok(()),
            Mark::Opaque => self.make_opaque(dir, name),
            Mark::Redirect => self.set_redirect(node, same_dir),
        }
    }

    /// A directory that gets an entry with an origin is impure.
    fn mark_if_origin(
        &self,
        node: &Node,
        new_parent: &Node,
        found: Option<&Found>,
    ) -> Result<(), Errno> {
        let Some(found) = found else { return Ok(()) };
        if node.dir.is_some() || self.has_origin(node, &found.stat)? {
            self.mark_impure(new_parent)?;
        }
        Ok(())
    }

    /// Does an object of upper say what it was copied from, though perhaps nobody here understands it?
    pub(crate) fn has_origin(&self, node: &Node, st: &Statx) -> Result<bool, Errno> {
        if self.inos.map(dev_of(st), st.stx_ino) != node.id {
            return Ok(true); // its number comes from there
        }
        let key = self.ns.key(OverlayKey::Origin);
        self.with_object(node, |dir, name| xattr::has_at(dir, name, key))
    }

    /// A directory in upper that shows as empty but holds whiteouts makes place for a really
    /// empty one, so that a rename can replace it (`ovl_clear_empty`).
    fn clear_out(&self, upper: &Upper, dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
        let fd = super::layer::open_names(dir, std::iter::once(name))?;
        let list =
            rustix::fs::openat(&fd, c".", super::layer::DIR_READ, rustix::fs::Mode::empty())?;
        let mut any = false;
        crate::sys::dir::read_all(list.as_fd(), |e| any |= e.name != "." && e.name != "..")?;
        if !any {
            return Ok(());
        }
        let before = stat_at(fd.as_fd(), OsStr::new(""))?;
        let temp = upper.work.temp();
        let work = upper.work.dir.as_fd();
        rustix::fs::mkdirat(work, &temp.name, rustix::fs::Mode::RWXU)?;
        let here = OsStr::new("");
        let shown = self.shown_at(fd.as_fd(), here)?;
        self.copy_metadata((fd.as_fd(), here), &shown, (work, &temp.name))?;
        self.make_opaque(work, &temp.name)?;
        set_times(work, &temp.name, &before)?;
        // `temp` is the old one after this, and goes with what is in it.
        rustix::fs::renameat_with(work, &temp.name, dir, name, RenameFlags::EXCHANGE)
    }

    /// What a file that is about to be replaced needs: see unlink.
    fn before_replaced(
        &self,
        upper: &Upper,
        to: &End<'_>,
        to_fd: BorrowedFd<'_>,
        found: &Found,
        place: &mut Place,
    ) -> Result<Option<u32>, Errno> {
        let shown = self.before_unlink(place, found)?;
        let primary = is_at(place, to.parent, to.name);
        if found.upper_ino != 0 && loses_its_way(primary, shown) {
            self.keep_object(upper, to_fd, to.name, found, place)?;
        }
        Ok(shown)
    }

    fn after_replaced(
        &self,
        upper: &Upper,
        to: &End<'_>,
        found: &Found,
        victim: &Node,
        place: &mut Place,
        shown: Option<u32>,
    ) -> Result<Option<Arc<Node>>, Errno> {
        self.after_unlink(upper, place.index(), found, shown)?;
        if shown.is_some_and(|n| n <= 1) {
            place.extra_mut().index = None;
        }
        if !is_at(place, to.parent, to.name) {
            place.removed |= shown == Some(1);
            return Ok(None);
        }
        let left = match shown {
            Some(n) => n.saturating_sub(1),
            None => self.names_left(victim, found),
        };
        place.removed = left == 0;
        place.upper_alias = false;
        Ok(place.parent.take())
    }
}
