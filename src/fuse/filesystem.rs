//! One method a request: decoded values in, one call into the core, one reply.

use rustix::io::Errno;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;

use super::answer::Answer;
use super::service::{Done, Filesystem, fits, in_group, xattr};
use super::wire::reply::{self, Dirent, Known, Out, decode_dev};
use super::wire::request::{CopyIn, Header, IoctlIn, Op, SetAttrIn};
use crate::overlay::{
    Attr, Kind, ListedEntry, NewNode, ROOT_ID, RenameMode, SetAttr, WriteHow, without_set_ids,
};
use crate::sys::fuse::{ORDER_BESIDE, ORDER_REFRESH, ORDER_STAT};
use crate::sys::xattr::SetFlags;

impl Filesystem {
    /// Answers a decoded request.
    ///
    /// `ENOSYS` has the kernel not ask again. OPEN, OPENDIR, CREATE: see [`super`]. FLUSH: nothing is
    /// kept back here, and the kernel writes its pages before it asks. INTERRUPT: nothing here can
    /// be broken off.
    pub(super) fn carry_out(&self, head: &Header, op: Op<'_>, out: &mut Out<'_>) -> Answer {
        let node = head.node;
        let done = match op {
            Op::Lookup { name } => self.lookup(node, name, out),
            Op::Forget { count } => return self.forget(std::iter::once((node, count))),
            Op::BatchForget(forgets) => return self.forget(forgets),
            Op::Getattr => self.attr(out, node, self.overlay.getattr(node)),
            Op::Statx => self.statx(node, out),
            Op::Setattr(set) => self.setattr(head, &set, out),
            Op::Readlink => self.readlink(node, out),
            Op::Symlink { name, target } => {
                let what = NewNode::Symlink(target);
                self.entry(out, self.create_node(head, name, what, (0o777, 0)))
            }
            Op::Mknod {
                name,
                mode,
                umask,
                rdev,
            } => self.mknod(head, name, (mode, umask), rdev, out),
            Op::Mkdir { name, mode, umask } => self.entry(
                out,
                self.create_node(head, name, NewNode::Dir, (mode, umask)),
            ),
            Op::Unlink { name } => self.overlay.unlink(node, name),
            Op::Rmdir { name } => self.overlay.rmdir(node, name),
            Op::Rename {
                name,
                to,
                new_name,
                flags,
            } => self.rename((node, name), (to, new_name), flags),
            Op::Link { node: id, name } => self.entry(out, self.overlay.link(id, node, name, true)),
            Op::Open(_) | Op::Create { .. } | Op::Tmpfile { .. } | Op::Release => {
                self.carry_out_open(head, op, out)
            }
            Op::Read { offset, size } => self.read(node, offset, size, out),
            Op::Write {
                offset,
                data,
                kill_suidgid,
            } => {
                return self.write(head, (offset, data), kill_suidgid, out);
            }
            Op::Statfs => self.statfs(out),
            Op::Fsync { data_only } | Op::Fsyncdir { data_only } => {
                self.overlay.sync(node, data_only)
            }
            Op::Syncfs => self.overlay.sync_all(),
            Op::Setxattr { .. }
            | Op::Getxattr { .. }
            | Op::Listxattr { .. }
            | Op::Removexattr { .. } => return self.carry_out_xattr(head, op, out),
            Op::Readdir { offset, size } => return self.readdir(node, offset, size, out),
            Op::Readdirplus { offset, size } => return self.readdirplus(node, offset, size, out),
            Op::Ioctl(request) => return self.ioctl(head, &request, out),
            Op::Fallocate {
                offset,
                length,
                mode,
            } => self.fallocate(head, (offset, length), mode),
            Op::Lseek { offset, whence } => return self.lseek(node, offset, whence, out),
            Op::CopyFileRange(copy) => self.copy_file_range(head, &copy, out),
            Op::Opendir | Op::Flush | Op::Interrupt | Op::Other => Err(Errno::NOSYS),
            Op::Releasedir | Op::Destroy => Ok(()),
            Op::Init(_) => Err(Errno::PROTO),
        };
        done.into()
    }

    fn carry_out_xattr(&self, head: &Header, op: Op<'_>, out: &mut Out<'_>) -> Answer {
        match op {
            Op::Setxattr {
                name,
                value,
                flags,
                kill_sgid,
            } => self.setxattr(head, (name, value), flags, kill_sgid, out),
            Op::Getxattr { name, size } => self.getxattr(head.node, name, size, out).into(),
            Op::Listxattr { size } => self.listxattr(head, size, out).into(),
            Op::Removexattr { name } => self.removexattr(head.node, name).into(),
            _ => Answer::Error(Errno::NOSYS),
        }
    }

    fn lookup(&self, parent: u64, name: &OsStr, out: &mut Out<'_>) -> Done {
        match self.overlay.lookup(parent, name)? {
            Some(found) => self.entry(out, Ok(found)),
            None => fits(reply::absent(out, self.ttl)),
        }
    }

    fn forget(&self, forgets: impl Iterator<Item = (u64, u64)>) -> Answer {
        for (node, count) in forgets {
            self.forget_one(node, count);
        }
        Answer::Silence
    }

    fn statx(&self, node: u64, out: &mut Out<'_>) -> Done {
        let (attr, birth) = self.overlay.statx(node)?;
        let attr = self.numbered(node, attr)?;
        fits(reply::statx(out, self.keep_for(node, &attr), &attr, birth))
    }

    fn setattr(&self, head: &Header, set: &SetAttrIn, out: &mut Out<'_>) -> Done {
        if set.nothing {
            return self.drop_set_ids(head, out);
        }
        let chown = set.uid.is_some() || set.gid.is_some();
        // For a new size the flag means that the caller lacks CAP_FSETID. With a new owner it comes
        // for everybody: what a chown takes away whoever asks, the one of upper's file takes away;
        // set-group-id without the right to execute stays for the privileged.
        let drops = if chown {
            head.uid != 0
        } else {
            set.kill_suidgid
        };
        let in_group = |gid| in_group(head, gid);
        let unprivileged = drops.then_some(&in_group as &dyn Fn(u32) -> bool);
        let set = SetAttr {
            perm: set.perm,
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: set.atime,
            mtime: set.mtime,
            keep_mtime: self.options.writeback,
        };
        let done = self.overlay.setattr(head.node, &set, unprivileged);
        self.attr(out, head.node, done)
    }

    /// A SETATTR of nothing comes before a write by somebody without CAP_FSETID to a file with
    /// set-id bits (fs/fuse/dir.c, `fuse_setattr`, leaves `ATTR_KILL_SUID` to us). The write will
    /// say the same, but its answer has no room for the new mode, which the kernel then doesn't
    /// know: it would go on refusing hard links to the file. Root's comes before a write to a file
    /// with capabilities, and says nothing of set-id bits.
    fn drop_set_ids(&self, head: &Header, out: &mut Out<'_>) -> Done {
        let attr = self.overlay.getattr(head.node)?;
        let mode = u32::from(attr.perm);
        let kept = without_set_ids(mode, || in_group(head, attr.gid));
        if kept == mode || attr.kind != Kind::File || head.uid == 0 {
            return self.attr(out, head.node, Ok(attr));
        }
        let set = SetAttr {
            perm: Some(kept),
            ..SetAttr::default()
        };
        let done = self.overlay.setattr(head.node, &set, None);
        self.attr(out, head.node, done)
    }

    fn readlink(&self, node: u64, out: &mut Out<'_>) -> Done {
        let target = self.overlay.readlink(node)?;
        fits(out.bytes(target.as_bytes()))
    }

    fn mknod(
        &self,
        head: &Header,
        name: &OsStr,
        (mode, umask): (u32, u32),
        rdev: u32,
        out: &mut Out<'_>,
    ) -> Done {
        let (major, minor) = decode_dev(rdev);
        let what = match mode & 0o170_000 {
            0o100_000 | 0 => NewNode::File,
            0o010_000 => NewNode::Fifo,
            0o140_000 => NewNode::Socket,
            0o020_000 => NewNode::CharDevice { major, minor },
            0o060_000 => NewNode::BlockDevice { major, minor },
            _ => return Err(Errno::INVAL),
        };
        self.entry(out, self.create_node(head, name, what, (mode, umask)))
    }

    fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), flags: u32) -> Done {
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(Errno::INVAL),
        };
        self.overlay.rename(from.0, from.1, to.0, to.1, mode)
    }

    fn read(&self, node: u64, offset: u64, size: u32, out: &mut Out<'_>) -> Done {
        let buffer = out.space(size as usize).ok_or(Errno::INVAL)?;
        let read = self.overlay.read(node, offset, buffer)?;
        out.claim(read);
        Ok(())
    }

    fn write(
        &self,
        head: &Header,
        (offset, data): (u64, &[u8]),
        drops: bool,
        out: &mut Out<'_>,
    ) -> Answer {
        let keep_mtime = self.options.writeback;
        let done = Filesystem::unprivileged(head, drops, |unprivileged| {
            let how = WriteHow {
                unprivileged,
                keep_mtime,
            };
            self.overlay.write(head.node, offset, data, how)
        });
        match done {
            Ok(n) => fits(reply::count(out, u32::try_from(n).unwrap_or(u32::MAX))).into(),
            Err(e) => Answer::ErrorThen(e, self.drop_unwritten(head.node)),
        }
    }

    fn readdir(&self, node: u64, offset: u64, size: u32, out: &mut Out<'_>) -> Answer {
        let mut room = out.limited(size);
        let listed = self.overlay.readdir(node, offset, &mut |e| {
            // Listings without attributes, which the kernel does not ask for: nobody compares those.
            let ino = self.number_of_dots(e.ino);
            more(reply::dirent(&mut room, &dirent(&ListedEntry { ino, ..e })))
        });
        let length = room.len();
        out.claim(length);
        listed.into()
    }

    fn readdirplus(&self, node: u64, offset: u64, size: u32, out: &mut Out<'_>) -> Answer {
        let mut room = out.limited(size);
        let listed = self.overlay.readdir_plus(node, offset, &mut |e, found| {
            // What can't be looked up has no node, and `.` and `..` need none.
            let numbered = found.map(|(node, attr)| {
                let ino = self.number(node, attr.ino, attr.nlink);
                (node, Attr { ino, ..*attr })
            });
            let known = numbered.as_ref().map(|(node, attr)| Known {
                node: self.wire_id(node.id()),
                keep_name: self.ttl,
                keep_attr: self.keep_for(node.id(), attr),
                attr,
            });
            let ino = match &known {
                Some(known) => known.attr.ino,
                None => self.number_of_dots(e.ino),
            };
            more(reply::direntplus(
                &mut room,
                &dirent(&ListedEntry { ino, ..e }),
                known,
            ))
        });
        let length = room.len();
        out.claim(length);
        listed.into()
    }

    fn statfs(&self, out: &mut Out<'_>) -> Done {
        fits(reply::statfs(out, &self.overlay.statfs()?))
    }

    fn setxattr(
        &self,
        head: &Header,
        (name, value): (&OsStr, &[u8]),
        flags: u32,
        kill_sgid: bool,
        out: &mut Out<'_>,
    ) -> Answer {
        if !self.options.xattrs {
            return Answer::Error(Errno::OPNOTSUPP);
        }
        let flags = match flags.cast_signed() {
            0 => SetFlags::Any,
            libc::XATTR_CREATE => SetFlags::Create,
            libc::XATTR_REPLACE => SetFlags::Replace,
            _ => return Answer::Error(Errno::INVAL),
        };
        if name == "security.capability" {
            return self.set_capability(head.node, (name, value), flags, out);
        }
        let set = || {
            self.overlay.setxattr(head.node, name, value, flags)?;
            if name == "system.posix_acl_access" && self.acl_drops_setgid(head, kill_sgid)? {
                self.overlay.drop_setgid(head.node)?;
            }
            Ok(())
        };
        set().into()
    }

    /// Does setting an access ACL take the set-group-id bit away (the kernel's
    /// `posix_acl_update_mode`)? Where the kernel doesn't say it, its caller's groups decide.
    fn acl_drops_setgid(&self, head: &Header, kill_sgid: bool) -> Result<bool, Errno> {
        if self.says_kill_sgid() {
            return Ok(kill_sgid);
        }
        if head.uid == 0 {
            return Ok(false);
        }
        let attr = self.overlay.getattr(head.node)?;
        Ok(attr.perm & 0o2000 != 0 && !in_group(head, attr.gid))
    }

    fn getxattr(&self, node: u64, name: &OsStr, size: u32, out: &mut Out<'_>) -> Done {
        if !self.options.xattrs {
            // The kernel asks no more, and gives its clients EOPNOTSUPP.
            return Err(Errno::NOSYS);
        }
        xattr(out, size, &self.overlay.getxattr(node, name)?)
    }

    fn listxattr(&self, head: &Header, size: u32, out: &mut Out<'_>) -> Done {
        if !self.options.xattrs {
            return xattr(out, size, b"");
        }
        let names = self.overlay.listxattr(head.node, head.uid == 0)?;
        xattr(out, size, &names)
    }

    fn removexattr(&self, node: u64, name: &OsStr) -> Done {
        if !self.options.xattrs {
            return Err(Errno::OPNOTSUPP);
        }
        self.overlay.removexattr(node, name)
    }

    fn ioctl(&self, head: &Header, request: &IoctlIn<'_>, out: &mut Out<'_>) -> Answer {
        let data = match (head.node, request.command) {
            (ROOT_ID, ORDER_STAT) => Ok(self.stat_json()),
            (ROOT_ID, ORDER_REFRESH) => return self.refresh(head, request.out_size),
            (ROOT_ID, ORDER_BESIDE) => return self.order_beside(head, request, out),
            (node, command) => super::ioctl::answer(&self.overlay, node, command, request.data),
        };
        data.and_then(|data| fits(reply::ioctl(out, &data, request.out_size)))
            .into()
    }

    fn fallocate(&self, head: &Header, (offset, length): (u64, u64), mode: u32) -> Done {
        // No flag tells of CAP_FSETID here; whoever isn't root lacks it.
        Filesystem::unprivileged(head, head.uid != 0, |unprivileged| {
            let how = WriteHow {
                unprivileged,
                keep_mtime: self.options.writeback,
            };
            self.overlay.fallocate(head.node, mode, offset, length, how)
        })
    }

    fn lseek(&self, node: u64, offset: u64, whence: u32, out: &mut Out<'_>) -> Answer {
        let hole = match whence.cast_signed() {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return Answer::Error(Errno::INVAL),
        };
        if i64::try_from(offset).is_err() {
            return Answer::Error(Errno::NXIO);
        }
        self.seek(node, offset, hole, out)
    }

    fn copy_file_range(&self, head: &Header, copy: &CopyIn, out: &mut Out<'_>) -> Done {
        let (from, to) = ((head.node, copy.from_offset), (copy.to, copy.to_offset));
        let copied = Filesystem::unprivileged(head, head.uid != 0, |unprivileged| {
            let how = WriteHow {
                unprivileged,
                keep_mtime: self.options.writeback,
            };
            self.overlay.copy_range(from, to, copy.len, how)
        })?;
        fits(match copy.wide {
            true => out.u64(copied),
            false => reply::count(out, u32::try_from(copied).unwrap_or(u32::MAX)),
        })
    }
}

fn dirent<'a>(entry: &ListedEntry<'a>) -> Dirent<'a> {
    Dirent {
        ino: entry.ino,
        next: entry.next,
        kind: entry.kind,
        name: entry.name,
    }
}

/// Goes on while entries fit.
fn more(written: bool) -> ControlFlow<()> {
    match written {
        true => ControlFlow::Continue(()),
        false => ControlFlow::Break(()),
    }
}
