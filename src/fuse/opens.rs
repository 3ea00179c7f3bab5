//! OPEN, CREATE, TMPFILE and RELEASE, on a connection where they are answered: see [`super::passthrough`].

use rustix::fs::OFlags;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;

use super::passthrough::Paths;
use super::service::{Created, Done, Filesystem, caller, fits};
use super::wire::reply::{self, Opened, Out};
use super::wire::request::{Header, Op, OpenIn};
use crate::overlay::{ContentsAt, NewNode};

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
        let reads_only = access == libc::O_RDONLY.cast_unsigned();
        Purpose {
            flags: OFlags::from_bits_retain(open.flags),
            writes: !reads_only,
            may_map: !reads_only && access != libc::O_WRONLY.cast_unsigned(),
        }
    }
}

impl Filesystem {
    /// Answers what opens and closes files.
    pub(super) fn carry_out_open(&self, head: &Header, op: Op<'_>, out: &mut Out<'_>) -> Done {
        match op {
            Op::Open(open) => self.open(head, &open, out),
            Op::Create {
                name,
                mode,
                umask,
                open,
            } => self.create(head, name, (mode, umask), &open, out),
            Op::Tmpfile { mode, umask, open } => self.tmpfile(head, (mode, umask), &open, out),
            Op::Release => {
                self.release(head.node);
                Ok(())
            }
            _ => Err(Errno::NOSYS),
        }
    }

    /// Answers OPEN.
    fn open(&self, head: &Header, open: &OpenIn, out: &mut Out<'_>) -> Done {
        let paths = self.paths.as_ref().ok_or(Errno::NOSYS)?;
        let purpose = Purpose::of(open);
        let through = !purpose.writes || self.writes_may_pass(head.node, purpose)?;
        let (opened, news) = self.answer_open(paths, head.node, through, purpose)?;
        if news
            && let Some(notifier) = self.notifier.get()
            // Whoever opens holds the inode: the kernel doesn't have to wait for us to get rid of it.
            && let Err(e) = notifier.inval_attributes(head.node)
        {
            tracing::debug!(head.node, "attributes stay cached: {e}");
        }
        fits(reply::opened(out, &opened))
    }

    /// May an open for writing be passed through, as far as the file's attributes go?
    ///
    /// # Errors
    /// `EROFS`, and `EPERM` for a protected file.
    fn writes_may_pass(&self, node: u64, purpose: Purpose) -> Result<bool, Errno> {
        if self.overlay.is_read_only() {
            return Err(Errno::ROFS);
        }
        let watched = self.overlay.watches_writes(node, purpose.flags)?;
        Ok(!watched && !self.overlay.has_privileges(node)?)
    }

    /// The answer, and whether the attributes of the node are not to be cached from now on.
    fn answer_open(
        &self,
        paths: &Paths,
        node: u64,
        through: bool,
        purpose: Purpose,
    ) -> Result<(Opened, bool), Errno> {
        let opened = paths.open(node, || self.backing(node, through))?;
        let may_write = opened.passes_through() && purpose.writes;
        let news = may_write && paths.note_writer(node, purpose.may_map);
        Ok((opened, news))
    }

    /// The file that a first open is passed through to.
    fn backing(&self, node: u64, through: bool) -> Result<Option<OwnedFd>, Errno> {
        // What is in a lower may move to upper, unless there is none.
        let stays =
            self.overlay.is_read_only() || self.overlay.contents_at(node)? == ContentsAt::Upper;
        match through && stays {
            true => self.overlay.contents(node).map(Some),
            false => Ok(None),
        }
    }

    /// Answers CREATE.
    fn create(
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
    fn tmpfile(
        &self,
        head: &Header,
        (mode, umask): (u32, u32),
        open: &OpenIn,
        out: &mut Out<'_>,
    ) -> Done {
        let caller = caller(head, umask);
        let made = self.overlay.create_tmpfile(&caller, head.node, mode);
        match &self.paths {
            Some(paths) => self.answer_created(paths, made, open, out),
            None => {
                self.entry(out, made)?;
                fits(reply::opened(out, &Opened::default()))
            }
        }
    }

    fn answer_created(
        &self,
        paths: &Paths,
        made: Created,
        open: &OpenIn,
        out: &mut Out<'_>,
    ) -> Done {
        let (node, attr) = made?;
        let through = attr.perm & 0o6000 == 0;
        match self.answer_open(paths, node.id(), through, Purpose::of(open)) {
            Ok((opened, _)) => {
                self.entry(out, Ok((node, attr)))?;
                fits(reply::opened(out, &opened))
            }
            Err(e) => {
                self.forget_one(node.id(), 1);
                Err(e)
            }
        }
    }

    /// An open was closed.
    fn release(&self, node: u64) {
        if let Some(paths) = &self.paths {
            paths.release(node);
        }
    }

    /// The kernel gives lookups of a node back.
    pub(super) fn forget_one(&self, node: u64, count: u64) {
        self.overlay.forget(node, count);
        if let Some(paths) = &self.paths {
            paths.forget(node, || self.overlay.node(node).is_err());
        }
    }
}
