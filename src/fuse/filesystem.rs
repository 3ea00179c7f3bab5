//! One method a request: decode, one call into the core, one reply.

use fuser::{
    CopyFileRangeFlags, FileHandle, INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::SystemTime;

use super::convert::{absent, decode_dev, file_type, set_time};
use super::errno;
use super::refresh::REFRESH_XATTR;
use super::requests::Request;
use super::service::{
    BUFFER, Filesystem, GENERATION, READ_BUFFER, STAT_XATTR, reply_empty, reply_xattr,
};
use crate::overlay::{NewNode, ROOT_ID, RenameMode, SetAttr, WriteHow};
use crate::sys::xattr::SetFlags;

impl fuser::Filesystem for Filesystem {
    fn init(&mut self, _req: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        self.negotiate(config);
        Ok(())
    }

    fn lookup(&self, _req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(Request::lookup, || {
            match self.overlay.lookup(parent.0, name) {
                Ok(Some(found)) => self.entry(reply, Ok(found)),
                Ok(None) => reply.entry(&self.ttl, &absent(), GENERATION),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn forget(&self, _req: &fuser::Request, ino: INodeNo, nlookup: u64) {
        self.serve(Request::forget, || self.overlay.forget(ino.0, nlookup));
    }

    fn getattr(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        self.serve(Request::getattr, || {
            self.attr(reply, self.overlay.getattr(ino.0))
        });
    }

    fn setattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.serve(Request::setattr, || {
            let set = SetAttr {
                perm: mode,
                uid,
                gid,
                size,
                atime: atime.map(set_time),
                mtime: mtime.map(set_time),
                keep_mtime: self.options.writeback,
            };
            // fuser doesn't hand FATTR_KILL_SUIDGID on; whoever isn't root lacks CAP_FSETID.
            let drops = (size.is_some() || uid.is_some() || gid.is_some()) && req.uid() != 0;
            let done = Filesystem::unprivileged(req, drops, |unprivileged| {
                self.overlay.setattr(ino.0, &set, unprivileged)
            });
            self.attr(reply, done);
        });
    }

    fn readlink(&self, _req: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        use std::os::unix::ffi::OsStrExt;
        self.serve(Request::readlink, || match self.overlay.readlink(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn mknod(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.serve(Request::mknod, || {
            let (major, minor) = decode_dev(rdev);
            let what = match mode & 0o170_000 {
                0o100_000 | 0 => NewNode::File,
                0o010_000 => NewNode::Fifo,
                0o140_000 => NewNode::Socket,
                0o020_000 => NewNode::CharDevice { major, minor },
                0o060_000 => NewNode::BlockDevice { major, minor },
                _ => return reply.error(errno(Errno::INVAL)),
            };
            self.entry(
                reply,
                self.create_node(req, parent, name, what, (mode, umask)),
            );
        });
    }

    fn mkdir(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.serve(Request::mkdir, || {
            self.entry(
                reply,
                self.create_node(req, parent, name, NewNode::Dir, (mode, umask)),
            );
        });
    }

    fn unlink(&self, _req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Request::unlink, || {
            reply_empty(reply, self.overlay.unlink(parent.0, name))
        });
    }

    fn rmdir(&self, _req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Request::rmdir, || {
            reply_empty(reply, self.overlay.rmdir(parent.0, name))
        });
    }

    fn symlink(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.serve(Request::symlink, || {
            let what = NewNode::Symlink(target.as_os_str());
            self.entry(
                reply,
                self.create_node(req, parent, link_name, what, (0o777, 0)),
            );
        });
    }

    fn rename(
        &self,
        _req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(Request::rename, || {
            let mode = match flags.bits() {
                0 => RenameMode::Replace,
                libc::RENAME_NOREPLACE => RenameMode::NoReplace,
                libc::RENAME_EXCHANGE => RenameMode::Exchange,
                _ => return reply.error(errno(Errno::INVAL)),
            };
            let done = self
                .overlay
                .rename(parent.0, name, newparent.0, newname, mode);
            reply_empty(reply, done);
        });
    }

    fn link(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.serve(Request::link, || {
            self.entry(reply, self.overlay.link(ino.0, newparent.0, newname, true));
        });
    }

    fn open(&self, _req: &fuser::Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(Request::open, || reply.error(errno(Errno::NOSYS)));
    }

    fn create(
        &self,
        _req: &fuser::Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.serve(Request::create, || reply.error(errno(Errno::NOSYS)));
    }

    fn read(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.serve(Request::read, || {
            BUFFER.with_borrow_mut(|buffer| {
                let size = size as usize;
                if buffer.len() < size {
                    buffer.resize(size.max(READ_BUFFER), 0);
                }
                match self.overlay.read(ino.0, offset, &mut buffer[..size]) {
                    Ok(n) => reply.data(&buffer[..n]),
                    Err(e) => reply.error(errno(e)),
                }
            });
        });
    }

    fn write(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.serve(Request::write, || {
            let drops = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            let keep_mtime = self.options.writeback;
            let done = Filesystem::unprivileged(req, drops, |unprivileged| {
                self.overlay.write(
                    ino.0,
                    offset,
                    data,
                    WriteHow {
                        unprivileged,
                        keep_mtime,
                    },
                )
            });
            match done {
                Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
                Err(e) => {
                    reply.error(errno(e));
                    self.drop_unwritten(ino.0);
                }
            }
        });
    }

    fn flush(
        &self,
        _req: &fuser::Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing is kept back here; the kernel writes its pages before it asks.
        self.serve(Request::flush, || reply.error(errno(Errno::NOSYS)));
    }

    fn fsync(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(Request::fsync, || {
            reply_empty(reply, self.overlay.sync(ino.0, datasync))
        });
    }

    fn opendir(&self, _req: &fuser::Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(Request::opendir, || reply.error(errno(Errno::NOSYS)));
    }

    fn readdir(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.serve(Request::readdir, || {
            let done = self
                .overlay
                .readdir(ino.0, offset, &mut |e| match reply.add(
                    INodeNo(e.ino),
                    e.next,
                    file_type(e.kind),
                    e.name,
                ) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                });
            match done {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn readdirplus(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.serve(Request::readdirplus, || {
            let done = self.overlay.readdir_plus(ino.0, offset, &mut |e, found| {
                let mut keep = self.ttl;
                let attr = match found {
                    Some((node, attr)) => {
                        let shown;
                        (keep, shown) = self.entry_attr(node, attr);
                        shown
                    }
                    None => {
                        // The kernel takes no node for `.` and `..`; for others 0 is none.
                        let dots = e.name == "." || e.name == "..";
                        let ino = INodeNo(if dots { e.ino } else { 0 });
                        fuser::FileAttr {
                            ino,
                            kind: file_type(e.kind),
                            ..absent()
                        }
                    }
                };
                match reply.add(attr.ino, e.next, e.name, &keep, &attr, GENERATION) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            });
            match done {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn fsyncdir(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(Request::fsyncdir, || {
            reply_empty(reply, self.overlay.sync(ino.0, datasync))
        });
    }

    fn statfs(&self, _req: &fuser::Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.serve(Request::statfs, || match self.overlay.statfs() {
            Ok(s) => reply.statfs(
                s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
            ),
            Err(e) => reply.error(errno(e)),
        });
    }

    fn setxattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.serve(Request::setxattr, || {
            if !self.options.xattrs {
                return reply.error(errno(Errno::OPNOTSUPP));
            }
            let flags = match flags {
                0 => SetFlags::Any,
                libc::XATTR_CREATE => SetFlags::Create,
                libc::XATTR_REPLACE => SetFlags::Replace,
                _ => return reply.error(errno(Errno::INVAL)),
            };
            if name == "security.capability" {
                return self.set_capability(ino.0, (name, value), flags, reply);
            }
            let set = || {
                self.overlay.setxattr(ino.0, name, value, flags)?;
                // As the kernel's posix_acl_update_mode, which can't see the caller's groups here.
                if name == "system.posix_acl_access" && req.uid() != 0 {
                    let attr = self.overlay.getattr(ino.0)?;
                    if attr.perm & 0o2000 != 0 && !Filesystem::in_group(req, attr.gid) {
                        self.overlay.drop_setgid(ino.0)?;
                    }
                }
                Ok(())
            };
            reply_empty(reply, set());
        });
    }

    fn getxattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.serve(Request::getxattr, || {
            if ino.0 == ROOT_ID && name == REFRESH_XATTR {
                return self.refresh(req, size, reply);
            }
            if ino.0 == ROOT_ID && name == STAT_XATTR {
                return reply_xattr(reply, size, &self.stat_json());
            }
            if !self.options.xattrs {
                return reply.error(errno(Errno::OPNOTSUPP));
            }
            match self.overlay.getxattr(ino.0, name) {
                Ok(value) => reply_xattr(reply, size, &value),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn listxattr(&self, req: &fuser::Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(Request::listxattr, || {
            if !self.options.xattrs {
                return reply_xattr(reply, size, b"");
            }
            match self.overlay.listxattr(ino.0, req.uid() == 0) {
                Ok(names) => reply_xattr(reply, size, &names),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn removexattr(&self, _req: &fuser::Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(Request::removexattr, || {
            if !self.options.xattrs {
                return reply.error(errno(Errno::OPNOTSUPP));
            }
            reply_empty(reply, self.overlay.removexattr(ino.0, name));
        });
    }

    fn ioctl(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: fuser::IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.serve(Request::ioctl, || {
            match super::ioctl::answer(&self.overlay, ino.0, cmd, in_data) {
                Ok(data) => reply.ioctl(0, &data),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    fn fallocate(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.serve(Request::fallocate, || {
            let done = Filesystem::unprivileged(req, req.uid() != 0, |unprivileged| {
                let mode = mode.cast_unsigned();
                let keep_mtime = self.options.writeback;
                let how = WriteHow {
                    unprivileged,
                    keep_mtime,
                };
                self.overlay.fallocate(ino.0, mode, offset, length, how)
            });
            reply_empty(reply, done);
        });
    }

    fn lseek(
        &self,
        _req: &fuser::Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve(Request::lseek, || {
            let hole = match whence {
                libc::SEEK_DATA => false,
                libc::SEEK_HOLE => true,
                _ => return reply.error(errno(Errno::INVAL)),
            };
            let Ok(offset) = u64::try_from(offset) else {
                return reply.error(errno(Errno::NXIO));
            };
            self.seek(ino.0, offset, hole, reply);
        });
    }

    fn copy_file_range(
        &self,
        req: &fuser::Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.serve(Request::copy_file_range, || {
            let (from, to) = ((ino_in.0, offset_in), (ino_out.0, offset_out));
            let copied = Filesystem::unprivileged(req, req.uid() != 0, |unprivileged| {
                let keep_mtime = self.options.writeback;
                self.overlay.copy_range(
                    from,
                    to,
                    len,
                    WriteHow {
                        unprivileged,
                        keep_mtime,
                    },
                )
            });
            match copied {
                Ok(n) => reply.written(u32::try_from(n).unwrap_or(u32::MAX)),
                Err(e) => reply.error(errno(e)),
            }
        });
    }
}
