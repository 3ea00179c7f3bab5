//! Requests: bytes in, values out. Names and data are borrowed from the buffer.

use std::ffi::OsStr;

use super::abi::{
    self, FSYNC_DATA_ONLY, REQUEST_HEADER, SETXATTR_ACL_KILL_SGID, WRITE_KILL_SUIDGID, fattr,
    opcode,
};
use super::extension;
use super::fields::{Body, Fields, Malformed};
use super::init::InitIn;
use crate::overlay::{SetTime, Timestamp};

/// What every request has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::fuse) struct Header {
    /// Bytes of the whole request.
    pub len: u32,
    pub opcode: u32,
    /// Names the request in its reply.
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    /// 0 for callers outside of the mount's pid namespace.
    pub pid: u32,
    /// Bytes of extensions at the end.
    pub extensions: usize,
}

impl Header {
    /// Decodes a header; what follows it is left alone.
    ///
    /// # Errors
    /// [`Malformed::Short`].
    pub(in crate::fuse) fn decode(bytes: &[u8]) -> Result<Header, Malformed> {
        let mut fields = Fields(bytes.get(..REQUEST_HEADER).ok_or(Malformed::Short)?);
        Ok(Header {
            len: fields.u32()?,
            opcode: fields.u32()?,
            unique: fields.u64()?,
            node: fields.u64()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
            pid: fields.u32()?,
            extensions: usize::from(fields.u16()?) * 8,
        })
    }
}

/// What was agreed on that changes how requests look.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::fuse) struct Dialect {
    /// SETXATTR has flags of its own.
    pub setxattr_ext: bool,
}

/// A change of attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::fuse) struct SetAttrIn {
    pub perm: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// The caller lacks `CAP_FSETID`; comes with a size.
    pub kill_suidgid: bool,
    /// Nothing at all is to be set, not even what can't be.
    pub nothing: bool,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::fuse) struct OpenIn {
    /// `O_*`, without those that concern the name, and without `O_TRUNC`: that comes as SETATTR.
    pub flags: u32,
}

/// Bytes of one file to go to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct CopyIn {
    pub from_offset: u64,
    pub to: u64,
    pub to_offset: u64,
    pub len: u64,
    /// The reply has room for 64 bits.
    pub wide: bool,
}

/// A restricted ioctl, whose data the kernel has copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct IoctlIn<'a> {
    pub command: u32,
    pub data: &'a [u8],
    /// Bytes that the reply's data has to have.
    pub out_size: u32,
}

/// The node ids and counts of a BATCH_FORGET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) struct Forgets<'a>(&'a [u8]);

impl Iterator for Forgets<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let mut fields = Fields(self.0);
        let one = (fields.u64().ok()?, fields.u64().ok()?);
        self.0 = fields.0;
        Some(one)
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fuse) enum Op<'a> {
    Lookup {
        name: &'a OsStr,
    },
    Forget {
        count: u64,
    },
    BatchForget(Forgets<'a>),
    Getattr,
    Statx,
    Setattr(SetAttrIn),
    Readlink,
    Symlink {
        name: &'a OsStr,
        target: &'a OsStr,
    },
    Mknod {
        name: &'a OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
    },
    Mkdir {
        name: &'a OsStr,
        mode: u32,
        umask: u32,
    },
    Unlink {
        name: &'a OsStr,
    },
    Rmdir {
        name: &'a OsStr,
    },
    Rename {
        name: &'a OsStr,
        to: u64,
        new_name: &'a OsStr,
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a OsStr,
    },
    Open(OpenIn),
    Create {
        name: &'a OsStr,
        mode: u32,
        umask: u32,
        open: OpenIn,
    },
    Tmpfile {
        mode: u32,
        umask: u32,
        open: OpenIn,
    },
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        kill_suidgid: bool,
    },
    Statfs,
    Release,
    Flush,
    Fsync {
        data_only: bool,
    },
    Syncfs,
    Setxattr {
        name: &'a OsStr,
        value: &'a [u8],
        flags: u32,
        kill_sgid: bool,
    },
    Getxattr {
        name: &'a OsStr,
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a OsStr,
    },
    Init(InitIn),
    Opendir,
    Readdir {
        offset: u64,
        size: u32,
    },
    Readdirplus {
        offset: u64,
        size: u32,
    },
    Releasedir,
    Fsyncdir {
        data_only: bool,
    },
    Interrupt,
    Destroy,
    Ioctl(IoctlIn<'a>),
    Fallocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    Lseek {
        offset: u64,
        whence: u32,
    },
    CopyFileRange(CopyIn),
    /// Something that has not been asked for, or is newer than this.
    Other,
}

impl<'a> Op<'a> {
    /// Decodes what follows the header.
    ///
    /// # Errors
    /// [`Malformed`]; the answer to that is `EIO`.
    pub(in crate::fuse) fn decode(
        header: &Header,
        body: Body<'a>,
        dialect: Dialect,
    ) -> Result<Op<'a>, Malformed> {
        match header.opcode {
            opcode::LOOKUP | opcode::UNLINK | opcode::RMDIR | opcode::SYMLINK => {
                Op::decode_named(header, body)
            }
            opcode::MKNOD
            | opcode::MKDIR
            | opcode::CREATE
            | opcode::TMPFILE
            | opcode::RENAME
            | opcode::RENAME2
            | opcode::LINK => Op::decode_new(header, body),
            opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => {
                Op::decode_xattr(header, body, dialect)
            }
            opcode::READ
            | opcode::WRITE
            | opcode::READDIR
            | opcode::READDIRPLUS
            | opcode::FSYNC
            | opcode::FSYNCDIR
            | opcode::LSEEK => Op::decode_contents(header, body),
            opcode::FALLOCATE
            | opcode::COPY_FILE_RANGE
            | opcode::COPY_FILE_RANGE_64
            | opcode::IOCTL => Op::decode_ranges(header, body),
            _ => Op::decode_plain(header, body),
        }
    }

    fn decode_named(header: &Header, body: Body<'a>) -> Result<Op<'a>, Malformed> {
        let (_, mut rest) = body.split(0)?;
        let name = rest.name()?;
        Ok(match header.opcode {
            opcode::LOOKUP => Op::Lookup { name },
            opcode::UNLINK => Op::Unlink { name },
            opcode::RMDIR => Op::Rmdir { name },
            _ => {
                let target = rest.name()?;
                extension::check(header, rest)?;
                Op::Symlink { name, target }
            }
        })
    }

    fn decode_new(header: &Header, body: Body<'a>) -> Result<Op<'a>, Malformed> {
        Ok(match header.opcode {
            opcode::MKNOD => {
                let (mut fixed, mut rest) = body.split(16)?;
                let (mode, rdev, umask) = (fixed.u32()?, fixed.u32()?, fixed.u32()?);
                let name = rest.name()?;
                extension::check(header, rest)?;
                Op::Mknod {
                    name,
                    mode,
                    umask,
                    rdev,
                }
            }
            opcode::MKDIR => {
                let (mut fixed, mut rest) = body.split(8)?;
                let (mode, umask) = (fixed.u32()?, fixed.u32()?);
                let name = rest.name()?;
                extension::check(header, rest)?;
                Op::Mkdir { name, mode, umask }
            }
            opcode::CREATE | opcode::TMPFILE => {
                let (mut fixed, mut rest) = body.split(16)?;
                let flags = fixed.u32()?;
                let (mode, umask) = (fixed.u32()?, fixed.u32()?);
                let open = OpenIn { flags };
                let name = rest.name()?;
                extension::check(header, rest)?;
                match header.opcode {
                    opcode::TMPFILE => Op::Tmpfile { mode, umask, open },
                    _ => Op::Create {
                        name,
                        mode,
                        umask,
                        open,
                    },
                }
            }
            opcode::LINK => {
                let (mut fixed, mut rest) = body.split(8)?;
                let (node, name) = (fixed.u64()?, rest.name()?);
                Op::Link { node, name }
            }
            other => {
                let with_flags = other == opcode::RENAME2;
                let (mut fixed, mut rest) = body.split(if with_flags { 16 } else { 8 })?;
                let to = fixed.u64()?;
                let flags = if with_flags { fixed.u32()? } else { 0 };
                let (name, new_name) = (rest.name()?, rest.name()?);
                Op::Rename {
                    name,
                    to,
                    new_name,
                    flags,
                }
            }
        })
    }

    fn decode_xattr(
        header: &Header,
        body: Body<'a>,
        dialect: Dialect,
    ) -> Result<Op<'a>, Malformed> {
        Ok(match header.opcode {
            opcode::SETXATTR => {
                let (mut fixed, mut rest) =
                    body.split(if dialect.setxattr_ext { 16 } else { 8 })?;
                let (size, flags) = (fixed.u32()?, fixed.u32()?);
                let more = if dialect.setxattr_ext {
                    fixed.u32()?
                } else {
                    0
                };
                let name = rest.name()?;
                let value = rest.bytes(size as usize)?;
                let kill_sgid = more & SETXATTR_ACL_KILL_SGID != 0;
                Op::Setxattr {
                    name,
                    value,
                    flags,
                    kill_sgid,
                }
            }
            opcode::GETXATTR => {
                let (mut fixed, mut rest) = body.split(8)?;
                let (size, name) = (fixed.u32()?, rest.name()?);
                Op::Getxattr { name, size }
            }
            opcode::LISTXATTR => {
                let (mut fixed, _) = body.split(8)?;
                let size = fixed.u32()?;
                Op::Listxattr { size }
            }
            _ => {
                let (_, mut rest) = body.split(0)?;
                let name = rest.name()?;
                Op::Removexattr { name }
            }
        })
    }

    fn decode_contents(header: &Header, body: Body<'a>) -> Result<Op<'a>, Malformed> {
        Ok(match header.opcode {
            opcode::READ | opcode::READDIR | opcode::READDIRPLUS => {
                let (mut fixed, _) = body.split(40)?;
                fixed.u64()?;
                let (offset, size) = (fixed.u64()?, fixed.u32()?);
                match header.opcode {
                    opcode::READ => Op::Read { offset, size },
                    opcode::READDIR => Op::Readdir { offset, size },
                    _ => Op::Readdirplus { offset, size },
                }
            }
            opcode::WRITE => {
                let (mut fixed, mut rest) = body.split(abi::WRITE_FIXED)?;
                fixed.u64()?;
                let (offset, size) = (fixed.u64()?, fixed.u32()?);
                let kill_suidgid = fixed.u32()? & WRITE_KILL_SUIDGID != 0;
                let data = rest.bytes(size as usize)?;
                Op::Write {
                    offset,
                    data,
                    kill_suidgid,
                }
            }
            opcode::FSYNC | opcode::FSYNCDIR => {
                let (mut fixed, _) = body.split(16)?;
                fixed.u64()?;
                let data_only = fixed.u32()? & FSYNC_DATA_ONLY != 0;
                match header.opcode {
                    opcode::FSYNC => Op::Fsync { data_only },
                    _ => Op::Fsyncdir { data_only },
                }
            }
            _ => {
                let (mut fixed, _) = body.split(24)?;
                fixed.u64()?;
                let (offset, whence) = (fixed.u64()?, fixed.u32()?);
                Op::Lseek { offset, whence }
            }
        })
    }

    fn decode_ranges(header: &Header, body: Body<'a>) -> Result<Op<'a>, Malformed> {
        Ok(match header.opcode {
            opcode::FALLOCATE => {
                let (mut fixed, _) = body.split(32)?;
                fixed.u64()?;
                let (offset, length, mode) = (fixed.u64()?, fixed.u64()?, fixed.u32()?);
                Op::Fallocate {
                    offset,
                    length,
                    mode,
                }
            }
            opcode::IOCTL => {
                let (mut fixed, mut rest) = body.split(32)?;
                fixed.u64()?;
                fixed.u32()?; // flags
                let command = fixed.u32()?;
                fixed.u64()?;
                let (in_size, out_size) = (fixed.u32()?, fixed.u32()?);
                let data = rest.bytes(in_size as usize)?;
                Op::Ioctl(IoctlIn {
                    command,
                    data,
                    out_size,
                })
            }
            other => {
                let (mut fixed, _) = body.split(56)?;
                fixed.u64()?;
                let (from_offset, to) = (fixed.u64()?, fixed.u64()?);
                fixed.u64()?;
                let (to_offset, len) = (fixed.u64()?, fixed.u64()?);
                let wide = other == opcode::COPY_FILE_RANGE_64;
                Op::CopyFileRange(CopyIn {
                    from_offset,
                    to,
                    to_offset,
                    len,
                    wide,
                })
            }
        })
    }

    fn decode_plain(header: &Header, body: Body<'a>) -> Result<Op<'a>, Malformed> {
        Ok(match header.opcode {
            opcode::FORGET => Op::Forget {
                count: body.split(8)?.0.u64()?,
            },
            opcode::BATCH_FORGET => {
                let (mut fixed, mut rest) = body.split(8)?;
                let size = (fixed.u32()? as usize).checked_mul(16);
                Op::BatchForget(Forgets(rest.bytes(size.ok_or(Malformed::Short)?)?))
            }
            opcode::GETATTR => Op::Getattr,
            opcode::STATX => Op::Statx,
            opcode::SETATTR => Op::Setattr(decode_setattr(body)?),
            opcode::READLINK => Op::Readlink,
            opcode::STATFS => Op::Statfs,
            opcode::RELEASE => Op::Release,
            opcode::FLUSH => Op::Flush,
            opcode::SYNCFS => Op::Syncfs,
            opcode::INIT => Op::Init(decode_init(body)?),
            opcode::OPEN => Op::Open(decode_open(body)?),
            opcode::OPENDIR => Op::Opendir,
            opcode::RELEASEDIR => Op::Releasedir,
            opcode::INTERRUPT => Op::Interrupt,
            opcode::DESTROY => Op::Destroy,
            _ => Op::Other,
        })
    }
}

/// `struct fuse_init_in`: 16 bytes of old kernels, 64 since 7.36.
fn decode_init(body: Body<'_>) -> Result<InitIn, Malformed> {
    let (mut fixed, mut rest) = body.split(16)?;
    let (major, minor) = (fixed.u32()?, fixed.u32()?);
    let (max_readahead, flags) = (fixed.u32()?, u64::from(fixed.u32()?));
    let more = match flags & abi::init::INIT_EXT != 0 {
        true => u64::from(rest.u32()?) << 32,
        false => 0,
    };
    Ok(InitIn {
        major,
        minor,
        max_readahead,
        flags: flags | more,
    })
}

/// `struct fuse_open_in`.
fn decode_open(body: Body<'_>) -> Result<OpenIn, Malformed> {
    let (mut fixed, _) = body.split(8)?;
    Ok(OpenIn {
        flags: fixed.u32()?,
    })
}

fn decode_setattr(body: Body<'_>) -> Result<SetAttrIn, Malformed> {
    let (mut fixed, _) = body.split(88)?;
    let valid = fixed.u32()?;
    fixed.u32()?;
    fixed.u64()?; // fh
    let size = fixed.u64()?;
    fixed.u64()?; // lock owner
    let (atime, mtime) = (fixed.u64()?, fixed.u64()?);
    fixed.u64()?; // ctime, which nobody can set
    let (atime_nsec, mtime_nsec) = (fixed.u32()?, fixed.u32()?);
    fixed.u32()?;
    let mode = fixed.u32()?;
    fixed.u32()?;
    let (uid, gid) = (fixed.u32()?, fixed.u32()?);
    let time = |set: u32, now: u32, sec: u64, nsec: u32| {
        if valid & set == 0 {
            return Ok(None);
        }
        if valid & now != 0 {
            return Ok(Some(SetTime::Now));
        }
        if nsec > 999_999_999 {
            return Err(Malformed::Time);
        }
        let sec = sec.cast_signed();
        Ok(Some(SetTime::At(Timestamp { sec, nsec })))
    };
    Ok(SetAttrIn {
        perm: (valid & fattr::MODE != 0).then_some(mode & 0o7777),
        uid: (valid & fattr::UID != 0).then_some(uid),
        gid: (valid & fattr::GID != 0).then_some(gid),
        size: (valid & fattr::SIZE != 0).then_some(size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, atime, atime_nsec)?,
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, mtime, mtime_nsec)?,
        kill_suidgid: valid & fattr::KILL_SUIDGID != 0,
        nothing: valid & !(fattr::FH | fattr::LOCK_OWNER) == 0,
    })
}

#[cfg(test)]
mod tests;
