//! OPEN, CREATE, TMPFILE and RELEASE, on a connection where they are answered: see [`super::passthrough`].

use rustix::fs::OFlags;
use rustix::io::Errno;
use std::ffi::OsStr;

use super::passthrough::{Paths, Refused, Way};
use super::service::{Created, Done, Filesystem, caller, fits, in_group};
use super::wire::reply::{self, Opened, Out};
use super::wire::request::{CopyIn, Header, OpenIn};
use crate::overlay::{NewNode, SetAttr};

/// What an open is for.
#[derive(Clone, Copy)]
struct Purpose {
    flags: OFlags,
    /// Data can be changed.
    writes: bool,
    /// Data can be changed through a mapping: that needs leave to read, too.
    may_map: bool,
}

impl Purpose {
    fn of(open: &OpenIn) -> Purpose {
        let access = open.flags & libc::O_ACCMODE.cast_unsigned();
        let truncates = open.flags & libc::O_TRUNC.cast_unsigned() != 0;
        let reads_only = access == libc::O_RDONLY.cast_unsigned();
        Purpose {
            flags: OFlags::from_bits_retain(open.flags),
            writes: !reads_only || truncates,
            may_map: !reads_only && access != libc::O_WRONLY.cast_unsigned(),
        }
    }

    fn truncates(self) -> bool {
        self.flags.contains(OFlags::TRUNC)
    }
}

impl Filesystem {
    /// Answers OPEN. `node`: as the kernel names it, `head.node` being the object.
    pub(super) fn open(&self, head: &Header, node: u64, open: &OpenIn, out: &mut Out<'_>) -> Done {
        let paths = self.paths.as_ref().ok_or(Errno::NOSYS)?;
        let purpose = Purpose::of(open);
        let opened = if purpose.writes {
            self.open_to_write(paths, (head, node), (open, purpose))?
        } else {
            self.answer_open(paths, (node, head.node), Way::Through, purpose)?
        };
        fits(reply::opened(out, &opened))
    }

    fn open_to_write(
        &self,
        paths: &Paths,
        (head, node): (&Header, u64),
        (open, purpose): (&OpenIn, Purpose),
    ) -> Result<Opened, Errno> {
        let object = head.node;
        if self.overlay.is_read_only() {
            return Err(Errno::ROFS);
        }
        let watched = self.overlay.watches_writes(object, purpose.flags)?;
        if paths.is_read_in_lower(node) {
            return Err(self.move_on(paths, (node, object)));
        }
        if purpose.truncates() {
            let in_group = |gid| in_group(head, gid);
            let unprivileged = open
                .kill_suidgid
                .then_some(&in_group as &dyn Fn(u32) -> bool);
            let set = SetAttr {
                size: Some(0),
                ..SetAttr::default()
            };
            self.overlay.setattr(object, &set, unprivileged)?;
        }
        let way = match watched || self.overlay.has_privileges(object)? {
            true => Way::Cached,
            false => Way::Through,
        };
        match self.way_to_write(paths, (node, object), way, purpose) {
            Err(Errno::BUSY) => Err(self.move_on(paths, (node, object))),
            other => other,
        }
    }

    /// `EBUSY`: the node is in another mode.
    fn way_to_write(
        &self,
        paths: &Paths,
        nodes: (u64, u64),
        way: Way,
        purpose: Purpose,
    ) -> Result<Opened, Errno> {
        if way == Way::Through {
            self.overlay.bring_contents_up(nodes.1)?;
        }
        match self.try_open(paths, nodes, way, purpose) {
            Ok(opened) => Ok(opened),
            Err(Refused::Failed(e)) => Err(e),
            // A file with set-id bits that others have open already, passed through to upper: so is this one.
            // Before it writes the kernel itself asks us to clear them.
            Err(Refused::Conflict) if way == Way::Cached => {
                let watched = self.overlay.watches_writes(nodes.1, purpose.flags)?;
                match watched {
                    true => Err(Errno::BUSY),
                    false => self.way_to_write(paths, nodes, Way::Through, purpose),
                }
            }
            Err(Refused::Conflict) => Err(Errno::BUSY),
        }
    }

    fn answer_open(
        &self,
        paths: &Paths,
        nodes: (u64, u64),
        way: Way,
        purpose: Purpose,
    ) -> Result<Opened, Errno> {
        match self.try_open(paths, nodes, way, purpose) {
            Ok(opened) => Ok(opened),
            Err(Refused::Failed(e)) => Err(e),
            Err(Refused::Conflict) => Err(self.move_on(paths, nodes)),
        }
    }

    fn try_open(
        &self,
        paths: &Paths,
        nodes: (u64, u64),
        way: Way,
        purpose: Purpose,
    ) -> Result<Opened, Refused> {
        let object = nodes.1;
        if purpose.writes && way == Way::Through && paths.note_writer(object, purpose.may_map) {
            self.drop_attributes(&[nodes.0]);
        }
        let opened = paths.open(
            nodes,
            way,
            purpose.writes,
            || self.overlay.contents_at(object),
            || self.overlay.contents(object),
        )?;
        Ok(opened)
    }

    /// Has the next lookup give the object another node, and the kernel look the name up again.
    fn move_on(&self, paths: &Paths, (node, object): (u64, u64)) -> Errno {
        paths.split(node, object);
        self.drop_attributes(&paths.nodes_of(object));
        Errno::STALE
    }

    /// Makes the kernel ask for attributes again. Done before the answer to an open: whoever opens holds the
    /// inode, so that the kernel doesn't have to wait for us to get rid of it.
    fn drop_attributes(&self, nodes: &[u64]) {
        let Some(notifier) = self.notifier.get() else {
            return;
        };
        for node in nodes {
            if let Err(e) = notifier.inval_attributes(*node) {
                tracing::debug!(node, "attributes stay cached: {e}");
            }
        }
    }

    /// Answers CREATE.
    pub(super) fn create(
        &self,
        head: &Header,
        name: &OsStr,
        (mode, umask): (u32, u32),
        open: &OpenIn,
        out: &mut Out<'_>,
    ) -> Done {
        let paths = self.paths.as_ref().ok_or(Errno::NOSYS)?;
        let made = self.create_node(head, name, NewNode::File, (mode, umask));
        self.answer_created(paths, made, open, out)
    }

    /// Answers TMPFILE.
    pub(super) fn tmpfile(
        &self,
        head: &Header,
        (mode, umask): (u32, u32),
        open: &OpenIn,
        out: &mut Out<'_>,
    ) -> Done {
        let made = self.overlay.create_tmpfile(&caller(head, umask), head.node, mode);
        match &self.paths {
            Some(paths) => self.answer_created(paths, made, open, out),
            None => {
                self.entry(out, made)?;
                fits(reply::opened(out, &Opened::default()))
            }
        }
    }

    /// Nobody else has it open, or by another name of it that was there before.
    fn answer_created(
        &self,
        paths: &Paths,
        made: Created,
        open: &OpenIn,
        out: &mut Out<'_>,
    ) -> Done {
        let purpose = Purpose::of(open);
        let (node, attr) = made?;
        let object = node.id();
        let way = match attr.perm & 0o6000 != 0 {
            true => Way::Cached,
            false => Way::Through,
        };
        let node = paths.looked_up(object);
        let opened = self.try_open(paths, (node, object), way, purpose);
        let keep = self.keep_for(object, &attr);
        match opened {
            Ok(opened) => {
                let written = reply::entry(out, node, self.ttl, keep, &attr);
                fits(written && reply::opened(out, &opened))
            }
            Err(e) => {
                let object = paths.forget_node(node, 1);
                self.overlay.forget(object, 1);
                Err(match e {
                    Refused::Failed(e) => e,
                    Refused::Conflict => Errno::STALE,
                })
            }
        }
    }

    /// An open was closed.
    pub(super) fn release(&self, node: u64) {
        if let Some(paths) = &self.paths {
            paths.release(node);
        }
    }

    /// The kernel gives lookups of a node back.
    pub(super) fn forget_one(&self, node: u64, count: u64) {
        let Some(paths) = &self.paths else {
            return self.overlay.forget(node, count);
        };
        let object = paths.forget_node(node, count);
        self.overlay.forget(object, count);
        let gone = || self.overlay.node(object).is_err();
        if gone() {
            paths.forget_object(object, gone);
        }
    }

    /// Answers SEEK_DATA and SEEK_HOLE of somebody who goes on reading the lower: as if the file had no
    /// holes. `None`: the contents are where they read.
    pub(super) fn seek_left_behind(
        &self,
        (node, object): (u64, u64),
        handle: u64,
        (offset, hole): (u64, bool),
    ) -> Result<Option<u64>, Errno> {
        let Some(paths) = &self.paths else {
            return Ok(None);
        };
        let size = paths.left_behind(node, handle, || self.overlay.contents_at(object))?;
        match size {
            Some(size) if offset >= size => Err(Errno::NXIO),
            Some(size) => Ok(Some(if hole { size } else { offset })),
            None => Ok(None),
        }
    }

    /// Copies from what somebody reads in a lower, while the contents are in upper, are made by the kernel's
    /// reading and writing (`EXDEV`).
    pub(super) fn check_source(&self, node: u64, object: u64, copy: &CopyIn) -> Done {
        let Some(paths) = &self.paths else {
            return Ok(());
        };
        let at = || self.overlay.contents_at(object);
        match paths.left_behind(node, copy.from_handle, at)? {
            Some(_) => Err(Errno::XDEV),
            None => Ok(()),
        }
    }
}
