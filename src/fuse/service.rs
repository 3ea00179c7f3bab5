//! What the requests have in common: the state, replies, and what takes more than one call.

use rustix::io::Errno;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::SessionOptions;
use super::answer::Answer;
use super::beside::Company;
use super::channel::Notifier;
use super::passthrough::Paths;
use super::requests::{Request, RequestCounts};
use super::wire::abi::init;
use super::wire::fields::Body;
use super::wire::init::{Agreed, Wanted};
use super::wire::reply::{self, Out};
use super::wire::request::{Dialect, Header, Op};
use crate::overlay::{Attr, Beneath, Caller, NewNode, Node, Overlay, Unprivileged};
use crate::sys::xattr::SetFlags;

/// "Without end" for the kernel, which counts in jiffies.
const FOREVER: Duration = Duration::from_secs(1_000_000_000);

/// Whether a request could be carried out; what it gives is written out.
pub(super) type Done = Result<(), Errno>;

/// The file system that the transport calls.
pub(super) struct Filesystem {
    pub overlay: Arc<Overlay>,
    pub options: SessionOptions,
    pub ttl: Duration,
    /// Opens are answered. `None`: they are left to the kernel.
    pub paths: Option<Paths>,
    /// It is the second tree of a connection, numbered by this.
    pub beneath: Option<Arc<Beneath>>,
    /// The second tree of this one's connection.
    pub company: Company,
    agreed: Agreed,
    dialect: Dialect,
    /// Set once the session stands.
    pub notifier: OnceLock<Notifier>,
    /// Threads that make the kernel forget failed writes.
    forgetting: Arc<AtomicUsize>,
    counts: RequestCounts,
    started: Instant,
}

pub(super) type Created = Result<(Arc<Node>, Attr), Errno>;

impl Filesystem {
    pub(super) fn new(
        overlay: Arc<Overlay>,
        mut options: SessionOptions,
        agreed: Agreed,
        paths: Option<Paths>,
    ) -> Filesystem {
        let seconds = options
            .timeout
            .and_then(|t| Duration::try_from_secs_f64(t).ok());
        let ttl = seconds.map_or(FOREVER, |t| t.min(FOREVER));
        options.writeback &= agreed.has(init::WRITEBACK_CACHE);
        Filesystem {
            notifier: OnceLock::new(),
            forgetting: Arc::default(),
            overlay,
            options,
            paths,
            beneath: None,
            company: Company::default(),
            ttl,
            dialect: Dialect {
                setxattr_ext: agreed.has(init::SETXATTR_EXT),
            },
            agreed,
            counts: RequestCounts::new(),
            started: Instant::now(),
        }
    }

    /// The second tree of this connection, served in the same way.
    pub(super) fn beside(&self, beneath: Arc<Beneath>) -> Filesystem {
        let mut options = self.options.clone();
        options.read_only = true;
        let tree = Arc::clone(&beneath.tree);
        let mut beside = Filesystem::new(tree, options, self.agreed, None);
        beside.beneath = Some(beneath);
        if let Some(notifier) = self.notifier.get() {
            beside.notifier = OnceLock::from(notifier.clone());
        }
        beside
    }

    /// What INIT has agreed on.
    pub(super) fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// Whether SETXATTR tells what an access ACL does to the set-group-id bit.
    pub(super) fn says_kill_sgid(&self) -> bool {
        self.dialect.setxattr_ext
    }

    /// Counts the request and answers it. A panic would end the thread and in the end the mount:
    /// it becomes `EIO`, and a line in the log.
    pub(super) fn answer(&self, head: &Header, body: Body<'_>, out: &mut Out<'_>) -> Answer {
        let op = match Op::decode(head, body, self.dialect) {
            Ok(op) => op,
            Err(e) => {
                tracing::error!(opcode = head.opcode, "{e}");
                return Answer::Error(Errno::IO);
            }
        };
        self.counts.count(Request::of(&op));
        let unanswered = matches!(op, Op::Forget { .. } | Op::BatchForget(_));
        let answered = catch_unwind(AssertUnwindSafe(|| self.route(head, op, out)));
        answered.unwrap_or_else(|_| {
            tracing::error!("internal error while answering a request");
            match unanswered {
                true => Answer::Silence,
                false => Answer::Error(Errno::IO),
            }
        })
    }

    /// How long the kernel may keep these attributes of a node.
    pub(super) fn keep_for(&self, node: u64, attr: &Attr) -> Duration {
        let paths = self.paths.as_ref();
        let unseen = paths.is_some_and(|paths| paths.changes_unseen(node));
        if attr.settled && !unseen {
            self.ttl
        } else {
            Duration::ZERO
        }
    }

    pub(super) fn entry(&self, out: &mut Out<'_>, made: Created) -> Done {
        let (node, mut attr) = made?;
        let keep = self.keep_for(node.id(), &attr);
        attr.ino = self.number(&node, attr.ino, attr.nlink);
        let id = self.wire_id(node.id());
        fits(reply::entry(out, id, self.ttl, keep, &attr))
    }

    /// Attributes as clients see them.
    pub(super) fn numbered(&self, node: u64, mut attr: Attr) -> Result<Attr, Errno> {
        if self.beneath.is_some() {
            let node = self.overlay.node(node)?;
            attr.ino = self.number(&node, attr.ino, attr.nlink);
        }
        Ok(attr)
    }

    pub(super) fn attr(&self, out: &mut Out<'_>, node: u64, attr: Result<Attr, Errno>) -> Done {
        let attr = self.numbered(node, attr?)?;
        fits(reply::attr(out, self.keep_for(node, &attr), &attr))
    }

    pub(super) fn create_node(
        &self,
        head: &Header,
        name: &OsStr,
        what: NewNode<'_>,
        (mode, umask): (u32, u32),
    ) -> Created {
        // The kernel holds the directory locked and has just seen that the name is free.
        self.overlay
            .create(&caller(head, umask), head.node, name, what, mode, true)
    }

    pub(super) fn stat_json(&self) -> Vec<u8> {
        let mut map = serde_json::Map::new();
        if let Ok(serde_json::Value::Object(core)) = serde_json::to_value(self.overlay.snapshot()) {
            map.extend(core);
        }
        let fds = std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count().saturating_sub(1));
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        map.insert("pid".into(), std::process::id().into());
        map.insert("uptime_s".into(), self.started.elapsed().as_secs().into());
        map.insert("open_fds".into(), fds.into());
        map.insert("fd_limit".into(), limit.into());
        map.insert("threads".into(), self.options.threads.into());
        let path = match &self.paths {
            Some(paths) => {
                for (name, count) in paths.counters() {
                    map.insert(name.into(), count.into());
                }
                "passthrough"
            }
            None => "cached",
        };
        map.insert("data_path".into(), path.into());
        let transport = match self.agreed.has(init::OVER_IO_URING) {
            true => "io_uring",
            false => "device",
        };
        map.insert("transport".into(), transport.into());
        for (name, count) in self.counts.seen() {
            map.insert(format!("requests_{name}"), count.into());
        }
        serde_json::Value::Object(map).to_string().into_bytes()
    }

    /// What a request that changes contents must do to set-id bits, when `drops` says that it may
    /// have to.
    pub(super) fn unprivileged<R>(
        head: &Header,
        drops: bool,
        f: impl FnOnce(Unprivileged<'_>) -> R,
    ) -> R {
        let in_group = |gid| in_group(head, gid);
        f(drops.then_some(&in_group as &dyn Fn(u32) -> bool))
    }

    /// After a write that failed: makes the kernel forget what its cache holds of the file, pages
    /// and size, so that nobody reads what was never stored. Who has the file open keeps seeing
    /// the size until it is closed. On a thread of its own, as [`after_flush`](Self::after_flush).
    pub(super) fn drop_unwritten(&self, node: u64) -> Box<dyn FnOnce() + Send> {
        let Some(notifier) = self.notifier.get().cloned() else {
            return Box::new(|| {});
        };
        // Each waits for locks of the kernel's; a client that fails all the time must not pile them
        // up. Those left out keep showing what was not stored until the kernel drops it.
        const AT_ONCE: usize = 4;
        let running = Arc::clone(&self.forgetting);
        let name = self.overlay.name_of(node);
        Box::new(move || {
            if running.fetch_add(1, Ordering::AcqRel) >= AT_ONCE {
                running.fetch_sub(1, Ordering::AcqRel);
                return;
            }
            let done = Arc::clone(&running);
            let forget = move || {
                let mut result = notifier.inval_inode(node);
                if let Some((parent, name)) = name {
                    result = result.and(notifier.inval_entry(parent, &name));
                }
                if let Err(e) = result {
                    tracing::debug!(node, "the cache of a failed write stays: {e}");
                }
                running.fetch_sub(1, Ordering::AcqRel);
            };
            let builder = std::thread::Builder::new().name("forget".into());
            if let Err(e) = builder.spawn(forget) {
                done.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!("no thread to forget a failed write: {e}");
            }
        })
    }

    /// Answers after the kernel has written the pages of the file that it kept back. It is made to
    /// by an invalidation, which sends WRITE requests: the serving threads must be free to answer
    /// them, so the wait is on a thread of its own.
    pub(super) fn after_flush(
        &self,
        node: u64,
        out: &mut Out<'_>,
        answer: impl FnOnce(&mut Out<'_>) -> Done + Send + 'static,
    ) -> Answer {
        let notifier = self.notifier.get().cloned();
        let dirty = self.options.writeback && !self.options.read_only;
        let (true, Some(notifier)) = (dirty, notifier) else {
            return answer(out).into();
        };
        Answer::Later(Box::new(move |out| {
            if let Err(e) = notifier.inval_inode(node) {
                tracing::debug!(node, "pages were not flushed: {e}");
            }
            answer(out)
        }))
    }

    /// Answers SEEK_DATA and SEEK_HOLE. Pages that the kernel has not written yet would be missing
    /// from the answer, and it doesn't write them by itself (fs/fuse/file.c, `fuse_lseek`).
    pub(super) fn seek(&self, node: u64, offset: u64, hole: bool, out: &mut Out<'_>) -> Answer {
        let overlay = Arc::clone(&self.overlay);
        self.after_flush(node, out, move |out| {
            let found = overlay.seek_hole_data(node, offset, hole)?;
            if i64::try_from(found).is_err() {
                return Err(Errno::OVERFLOW);
            }
            fits(out.u64(found))
        })
    }

    /// Sets file capabilities. A write takes them away, and so would one that the kernel has kept
    /// back since before they were set.
    pub(super) fn set_capability(
        &self,
        node: u64,
        (name, value): (&OsStr, &[u8]),
        flags: SetFlags,
        out: &mut Out<'_>,
    ) -> Answer {
        let overlay = Arc::clone(&self.overlay);
        let (name, value) = (name.to_os_string(), value.to_vec());
        self.after_flush(node, out, move |_| {
            overlay.setxattr(node, &name, &value, flags)
        })
    }
}

/// What to ask the kernel for. Listings always come with attributes (no `READDIRPLUS_AUTO`): what lists a
/// directory mostly looks at what is in it next, and the kernel's guess fails for everything that reads a large
/// directory to its end before: the first `find -ls` of 100,000 files in 200 directories took 1.4 s with and 3.6 s
/// without (the kernel's overlayfs 1.0 s). The first plain `find` is slower for it (1.1 s, 0.5 s).
pub(super) fn wanted(options: &SessionOptions, passes_through: bool) -> Wanted {
    let mut flags = init::ASYNC_READ
        | init::BIG_WRITES
        | init::PARALLEL_DIROPS
        | init::EXPLICIT_INVAL_DATA
        | init::CACHE_SYMLINKS
        | init::DO_READDIRPLUS
        | init::ASYNC_DIO
        | init::MAX_PAGES
        | init::HANDLE_KILLPRIV_V2
        | init::DONT_MASK
        | init::NO_OPEN_SUPPORT
        | init::NO_OPENDIR_SUPPORT
        | init::SETXATTR_EXT;
    if options.acl && options.xattrs {
        flags |= init::POSIX_ACL;
    }
    if options.writeback {
        flags |= init::WRITEBACK_CACHE;
    }
    if passes_through {
        flags &= !(init::WRITEBACK_CACHE | init::NO_OPEN_SUPPORT);
        // No ATOMIC_O_TRUNC: an OPEN that truncates comes before the kernel finds that the file is being executed
        // (fs/namei.c, `do_open`), and `O_RDONLY | O_TRUNC` would empty a running program.
        flags |= init::PASSTHROUGH;
    }
    Wanted {
        flags,
        max_write: options.max_write,
        max_background: 64,
        congestion_threshold: 48,
    }
}

/// Who asks.
pub(super) fn caller(head: &Header, umask: u32) -> Caller {
    Caller {
        uid: head.uid,
        gid: head.gid,
        umask,
    }
}

/// Whether the caller is in the group, as far as the kernel lets us see: requests carry no
/// supplementary groups but those that create (and there the kernel has decided already), /proc does.
pub(super) fn in_group(head: &Header, gid: u32) -> bool {
    if head.gid == gid {
        return true;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", head.pid));
    let Ok(status) = status else { return false };
    let groups = status.lines().find_map(|l| l.strip_prefix("Groups:"));
    groups.is_some_and(|l| l.split_whitespace().any(|g| g.parse() == Ok(gid)))
}

/// A reply of fixed size always fits; the kernel has room for it too.
pub(super) fn fits(written: bool) -> Done {
    if written { Ok(()) } else { Err(Errno::IO) }
}

/// The protocol of xattr replies: the size when asked with size 0, `ERANGE` when it doesn't fit.
pub(super) fn xattr(out: &mut Out<'_>, size: u32, value: &[u8]) -> Done {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => fits(reply::count(out, length)),
        Ok(length) if length <= size && out.bytes(value) => Ok(()),
        _ => Err(Errno::RANGE),
    }
}
