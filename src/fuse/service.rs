//! What the requests have in common: the state, replies, and what takes more than one call.

use fuser::{
    Generation, INodeNo, InitFlags, KernelConfig, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyXattr,
};
use rustix::io::Errno;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::SessionOptions;
use super::convert::file_attr;
use super::errno;
use super::requests::{Request, RequestCounts};
use crate::overlay::{Attr, Caller, NewNode, Node, Overlay, Unprivileged};
use crate::sys::xattr::SetFlags;

/// "Without end" for the kernel, which counts in jiffies.
const FOREVER: Duration = Duration::from_secs(1_000_000_000);
pub(super) const GENERATION: Generation = Generation(0);
/// The xattr of the root that `rovl stat` reads. It is not listed.
pub(super) const STAT_XATTR: &str = "user.rovl.stat";
pub(super) const READ_BUFFER: usize = 1 << 20;

thread_local! {
    pub(super) static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The file system that fuser calls.
pub(super) struct Filesystem {
    pub overlay: Arc<Overlay>,
    pub options: SessionOptions,
    pub ttl: Duration,
    /// Set once the session stands.
    pub notifier: Arc<OnceLock<fuser::Notifier>>,
    /// Threads that make the kernel forget failed writes.
    forgetting: Arc<AtomicUsize>,
    counts: RequestCounts,
    started: Instant,
}

pub(super) type Created = Result<(Arc<Node>, Attr), Errno>;

impl Filesystem {
    pub(super) fn new(overlay: Arc<Overlay>, options: SessionOptions) -> Filesystem {
        let seconds = options
            .timeout
            .and_then(|t| Duration::try_from_secs_f64(t).ok());
        let ttl = seconds.map_or(FOREVER, |t| t.min(FOREVER));
        let counts = RequestCounts::new();
        Filesystem {
            notifier: Arc::default(),
            forgetting: Arc::default(),
            overlay,
            options,
            ttl,
            counts,
            started: Instant::now(),
        }
    }

    /// Counts the request and runs its answer. A panic would end the thread and in the end the
    /// mount: it becomes `EIO` (which a reply sends when it is dropped), and a line in the log.
    pub(super) fn serve(&self, request: Request, answer: impl FnOnce()) {
        self.counts.count(request);
        if catch_unwind(AssertUnwindSafe(answer)).is_err() {
            tracing::error!("internal error while answering a request");
        }
    }

    /// How long the kernel may keep these attributes.
    pub(super) fn keep_for(&self, attr: &Attr) -> Duration {
        if attr.settled {
            self.ttl
        } else {
            Duration::ZERO
        }
    }

    /// The attributes of an entry, and how long the kernel may keep them. fuser takes the number in
    /// them for the id of the node: where that is another one, the kernel must ask for the number.
    pub(super) fn entry_attr(&self, node: &Node, attr: &Attr) -> (Duration, fuser::FileAttr) {
        let mut shown = file_attr(attr);
        let mut keep = self.keep_for(attr);
        if node.id() != attr.ino {
            shown.ino = INodeNo(node.id());
            keep = Duration::ZERO;
        }
        (keep, shown)
    }

    pub(super) fn entry(&self, reply: ReplyEntry, made: Created) {
        match made {
            Ok((node, attr)) => {
                let (keep, attr) = self.entry_attr(&node, &attr);
                reply.entry_with_ttls(&keep, &self.ttl, &attr, GENERATION);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    pub(super) fn attr(&self, reply: ReplyAttr, attr: Result<Attr, Errno>) {
        match attr {
            Ok(attr) => reply.attr(&self.keep_for(&attr), &file_attr(&attr)),
            Err(e) => reply.error(errno(e)),
        }
    }

    pub(super) fn create_node(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        what: NewNode<'_>,
        (mode, umask): (u32, u32),
    ) -> Created {
        let caller = Caller {
            uid: req.uid(),
            gid: req.gid(),
            umask,
        };
        // The kernel holds the directory locked and has just seen that the name is free.
        self.overlay
            .create(&caller, parent.0, name, what, mode, true)
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
        for (name, count) in self.counts.seen() {
            map.insert(format!("requests_{name}"), count.into());
        }
        serde_json::Value::Object(map).to_string().into_bytes()
    }

    /// Asks for what the kernel can do of what we want.
    pub(super) fn negotiate(&mut self, config: &mut KernelConfig) {
        let mut wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_MAX_PAGES
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            | InitFlags::FUSE_DONT_MASK
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        wanted.set(
            InitFlags::FUSE_POSIX_ACL,
            self.options.acl && self.options.xattrs,
        );
        wanted.set(InitFlags::FUSE_WRITEBACK_CACHE, self.options.writeback);
        for flag in wanted.iter() {
            if let Err(missing) = config.add_capabilities(flag) {
                tracing::debug!("the kernel lacks {missing:?}");
            }
        }
        if let Err(nearest) = config.set_max_write(self.options.max_write)
            && config.set_max_write(nearest).is_err()
        {
            tracing::debug!("max_write stays at its default");
        }
        if config.set_max_background(64).is_err() || config.set_congestion_threshold(48).is_err() {
            tracing::debug!("the number of background requests stays at its default");
        }
        let granted = config
            .capabilities()
            .contains(InitFlags::FUSE_WRITEBACK_CACHE);
        self.options.writeback &= granted;
    }

    /// What a request of `req` that changes contents must do to set-id bits: nothing for root,
    /// which has `CAP_FSETID`.
    pub(super) fn unprivileged<R>(
        req: &fuser::Request,
        drops: bool,
        f: impl FnOnce(Unprivileged<'_>) -> R,
    ) -> R {
        let in_group = |gid| Filesystem::in_group(req, gid);
        f(drops.then_some(&in_group as &dyn Fn(u32) -> bool))
    }

    /// After a write that failed: makes the kernel forget what its cache holds of the file, pages
    /// and size, so that nobody reads what was never stored. Who has the file open keeps seeing
    /// the size until it is closed. On a thread of its own, as [`after_flush`](Self::after_flush).
    pub(super) fn drop_unwritten(&self, ino: u64) {
        let Some(notifier) = self.notifier.get().cloned() else {
            return;
        };
        // Each waits for locks of the kernel's; a client that fails all the time must not pile them
        // up. Those left out keep showing what was not stored until the kernel drops it.
        const AT_ONCE: usize = 4;
        let running = Arc::clone(&self.forgetting);
        if running.fetch_add(1, Ordering::AcqRel) >= AT_ONCE {
            running.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let name = self.overlay.name_of(ino);
        let done = Arc::clone(&running);
        let forget = move || {
            let mut result = notifier.inval_inode(INodeNo(ino), 0, 0);
            if let Some((parent, name)) = name {
                result = result.and(notifier.inval_entry(INodeNo(parent), &name));
            }
            if let Err(e) = result {
                tracing::debug!(ino, "the cache of a failed write stays: {e}");
            }
            running.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(e) = std::thread::Builder::new()
            .name("forget".into())
            .spawn(forget)
        {
            done.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!("no thread to forget a failed write: {e}");
        }
    }

    /// Answers after the kernel has written the pages of the file that it kept back. It is made to
    /// by an invalidation, which sends WRITE requests: the serving threads must be free to answer
    /// them, so the wait is on a thread of its own.
    pub(super) fn after_flush(&self, ino: u64, answer: impl FnOnce() + Send + 'static) {
        let notifier = self.notifier.get().cloned();
        let dirty = self.options.writeback && !self.options.read_only;
        let (true, Some(notifier)) = (dirty, notifier) else {
            return answer();
        };
        let flush_then_answer = move || {
            if let Err(e) = notifier.inval_inode(INodeNo(ino), 0, 0) {
                tracing::debug!(ino, "pages were not flushed: {e}");
            }
            answer();
        };
        // On failure the closure is dropped, and the reply in it says EIO.
        if let Err(e) = std::thread::Builder::new()
            .name("flush".into())
            .spawn(flush_then_answer)
        {
            tracing::warn!("no thread to wait for a flush: {e}");
        }
    }

    /// Answers SEEK_DATA and SEEK_HOLE. Pages that the kernel has not written yet would be missing
    /// from the answer, and it doesn't write them by itself (fs/fuse/file.c, `fuse_lseek`).
    pub(super) fn seek(&self, ino: u64, offset: u64, hole: bool, reply: ReplyLseek) {
        let overlay = Arc::clone(&self.overlay);
        self.after_flush(ino, move || {
            let found = overlay.seek_hole_data(ino, offset, hole);
            match found.and_then(|n| i64::try_from(n).map_err(|_| Errno::OVERFLOW)) {
                Ok(n) => reply.offset(n),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    /// Sets file capabilities. A write takes them away, and so would one that the kernel has kept
    /// back since before they were set.
    pub(super) fn set_capability(
        &self,
        ino: u64,
        (name, value): (&OsStr, &[u8]),
        flags: SetFlags,
        reply: ReplyEmpty,
    ) {
        let overlay = Arc::clone(&self.overlay);
        let (name, value) = (name.to_os_string(), value.to_vec());
        self.after_flush(ino, move || {
            reply_empty(reply, overlay.setxattr(ino, &name, &value, flags));
        });
    }

    /// Whether the caller is in the group, as far as the kernel lets us see: FUSE requests carry
    /// no supplementary groups, /proc does.
    pub(super) fn in_group(req: &fuser::Request, gid: u32) -> bool {
        if req.gid() == gid {
            return true;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", req.pid()));
        let Ok(status) = status else { return false };
        let groups = status.lines().find_map(|l| l.strip_prefix("Groups:"));
        groups.is_some_and(|l| l.split_whitespace().any(|g| g.parse() == Ok(gid)))
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(e)),
    }
}

/// The protocol of xattr replies: the size when asked with size 0, `ERANGE` when it doesn't fit.
pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(errno(Errno::RANGE)),
    }
}
