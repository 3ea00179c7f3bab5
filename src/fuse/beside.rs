//! A second tree on one connection: what lies beneath the top layer, for a mount of its own beside the whole.
//!
//! Engines mount the layers of a parent to compare a container with them, entry by entry. Both are one file system
//! then (`st_dev`), and [`Beneath`] gives equal inode numbers to what is the same, so that whole directories are left
//! out of the comparison. Who mounts asks each likely daemon with [`ORDER_BESIDE`] whether it has that tree; the
//! answer is a name in the root, which nobody can guess, list or make (`.wh.`), and which leads to the tree's root;
//! that is then mounted as any directory can be.
//!
//! Node ids of the second tree have [`BESIDE`] set; [`Filesystem::route`] takes it away, and what answers puts it
//! back. Everything else is one file system that knows nothing of the other.
//!
//! [`ORDER_BESIDE`]: crate::sys::fuse::ORDER_BESIDE

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::answer::Answer;
use super::service::{Filesystem, fits};
use super::wire::reply::{self, Out};
use super::wire::request::{Header, IoctlIn, Op};
use crate::overlay::beneath::APART;
use crate::overlay::{Beneath, Node, ROOT_ID};
use crate::sys::fuse::BESIDE_SIZE;

/// Set in the node ids of the second tree.
pub(super) const BESIDE: u64 = 1 << 63;

/// How the name begins that leads to the second tree. Clients can't make names of this form.
const PREFIX: &str = ".wh..rovl.";

/// What a mount beside another is asked for with: the layers beneath the other's top one, and `alike`, which both
/// must agree in.
pub fn digest(alike: &str, layers: &[(u64, u64)]) -> [u8; BESIDE_SIZE] {
    let mut hash = Sha256::new();
    hash.update(alike.as_bytes());
    for (dev, ino) in layers {
        hash.update(dev.to_ne_bytes());
        hash.update(ino.to_ne_bytes());
    }
    let mut digest = [0; BESIDE_SIZE];
    for (to, from) in digest.iter_mut().zip(hash.finalize()) {
        *to = from;
    }
    digest
}

/// The second tree of a connection.
pub(super) struct Beside {
    pub filesystem: Filesystem,
    pub beneath: Arc<Beneath>,
    /// Where it is in the root.
    name: OsString,
}

/// What a connection has for a second tree.
#[derive(Default)]
pub(super) struct Company {
    beside: std::sync::OnceLock<Box<Beside>>,
    /// Held while one is made.
    making: Mutex<()>,
    /// Requests under way that may change something.
    changing: AtomicUsize,
}

/// A request under way that may change something.
struct Changing<'a>(&'a AtomicUsize);

impl<'a> Changing<'a> {
    fn new(count: &'a AtomicUsize) -> Changing<'a> {
        count.fetch_add(1, Ordering::SeqCst);
        // What is looked at next must not have been looked at before the count.
        fence(Ordering::SeqCst);
        Changing(count)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Company {
    pub(super) fn beside(&self) -> Option<&Beside> {
        self.beside.get().map(|beside| &**beside)
    }
}

impl Filesystem {
    /// Has the right tree carry out a request.
    pub(super) fn route(&self, head: &Header, op: Op<'_>, out: &mut Out<'_>) -> Answer {
        // Before looking whether there is a second tree: whoever joins the two looks whether somebody changes something
        // after there is one.
        let changing = changes(&op).then(|| Changing::new(&self.company.changing));
        let Some(beside) = self.company.beside() else {
            return self.carry_out(head, op, out);
        };
        if let Op::BatchForget(forgets) = op {
            for (node, count) in forgets {
                match node & BESIDE {
                    0 => self.forget_one(node, count),
                    _ => beside.filesystem.forget_one(node & !BESIDE, count),
                }
            }
            return Answer::Silence;
        }
        if crosses(head.node, &op) {
            return Answer::Error(Errno::XDEV);
        }
        if head.node & BESIDE != 0 {
            let node = head.node & !BESIDE;
            return beside
                .filesystem
                .carry_out(&Header { node, ..*head }, op, out);
        }
        match op {
            Op::Lookup { name } if head.node == ROOT_ID && name == beside.name => {
                let tree = &beside.filesystem.overlay;
                let root = tree
                    .node(ROOT_ID)
                    .and_then(|root| Ok((root, tree.getattr(ROOT_ID)?)));
                beside.filesystem.entry(out, root).into()
            }
            op => {
                if changing.is_some() {
                    self.part_ways(beside);
                }
                self.carry_out(head, op, out)
            }
        }
    }

    /// Answers the order to show what is beneath the top layer, which only root and whoever runs the daemon may give.
    pub(super) fn order_beside(
        &self,
        head: &Header,
        request: &IoctlIn<'_>,
        out: &mut Out<'_>,
    ) -> Answer {
        let own = rustix::process::geteuid().as_raw();
        if head.uid != 0 && head.uid != own {
            return Answer::Error(Errno::PERM);
        }
        let named = self.name_beside(request.data);
        named
            .and_then(|name| fits(reply::ioctl(out, name.as_bytes(), request.out_size)))
            .into()
    }

    /// The name under which the tree with this digest is shown.
    fn name_beside(&self, asked: &[u8]) -> Result<&OsStr, Errno> {
        // What the kernel keeps back, or does past us, we would not hear of in time.
        let hears = !self.options.writeback && self.paths.is_none();
        let (Some(alike), true, None) = (&self.options.alike, hears, &self.beneath) else {
            return Err(Errno::NOENT);
        };
        let layers = self.overlay.identity_beneath()?.ok_or(Errno::NOENT)?;
        if asked != digest(alike, &layers) {
            return Err(Errno::NOENT);
        }
        let _making = self.company.making.lock();
        if self.company.beside().is_none() {
            let made = self.make_beside()?;
            // Nobody else sets it: the lock is held.
            self.company
                .beside
                .set(Box::new(made))
                .map_err(|_| Errno::BUSY)?;
        }
        let beside = self.company.beside().ok_or(Errno::NOENT)?;
        beside.beneath.join(|known| self.drop_known(known))?;
        fence(Ordering::SeqCst);
        if self.company.changing.load(Ordering::SeqCst) != 0 {
            // It may have looked whether there is a second tree before there was one.
            self.part_ways(beside);
            return Err(Errno::BUSY);
        }
        Ok(&beside.name)
    }

    fn make_beside(&self) -> Result<Beside, Errno> {
        let beneath = self.overlay.open_beneath().map_err(|e| {
            tracing::debug!("{e}");
            Errno::NOENT
        })?;
        let beneath = Arc::new(beneath);
        let mut random = [0_u8; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Beside {
            filesystem: self.beside(Arc::clone(&beneath)),
            beneath,
            name: format!("{PREFIX}{token}").into(),
        })
    }

    /// Before something of the whole is changed.
    fn part_ways(&self, beside: &Beside) {
        beside.beneath.part(|known| {
            self.drop_known(known);
            // A listing that was answered just before may reach the kernel's cache just after.
            let (Some(notifier), beneath) =
                (self.notifier.get().cloned(), Arc::clone(&beside.beneath))
            else {
                return;
            };
            let again = move || {
                std::thread::sleep(Duration::from_secs(1));
                drop_listings(&notifier, &beneath.known());
            };
            if let Err(e) = std::thread::Builder::new().name("part".into()).spawn(again) {
                tracing::warn!("no thread to drop listings again: {e}");
            }
        });
    }

    /// Has the kernel forget numbers of the second tree. It waits for nobody: what is invalidated are attributes, and
    /// pages of directories, which are locked for moments only.
    fn drop_known(&self, known: &[Arc<Node>]) {
        let Some(notifier) = self.notifier.get() else {
            return;
        };
        drop_listings(notifier, known);
        for node in known.iter().filter(|node| !node.is_dir()) {
            if let Err(e) = notifier.inval_attributes(node.id() | BESIDE) {
                tracing::debug!(node = node.id(), "attributes stay cached: {e}");
            }
        }
    }

    /// The id by which the kernel knows a node.
    pub(super) fn wire_id(&self, node: u64) -> u64 {
        match &self.beneath {
            Some(_) => node | BESIDE,
            None => node,
        }
    }

    /// The inode number that clients see.
    pub(super) fn number(&self, node: &Node, ino: u64, links: u32) -> u64 {
        match &self.beneath {
            Some(beneath) => beneath.number(node, ino, links),
            None => ino,
        }
    }

    /// The number of `.` or `..` in the second tree: nobody compares those.
    pub(super) fn number_of_dots(&self, ino: u64) -> u64 {
        match &self.beneath {
            Some(_) => ino | APART,
            None => ino,
        }
    }
}

fn drop_listings(notifier: &super::channel::Notifier, known: &[Arc<Node>]) {
    for node in known.iter().filter(|node| node.is_dir()) {
        if let Err(e) = notifier.inval_inode(node.id() | BESIDE) {
            tracing::debug!(node = node.id(), "a listing stays cached: {e}");
        }
    }
}

/// Does a request name nodes of both trees? The kernel takes them for one file system, and keeps clients from some of
/// these only since they come through two mounts.
fn crosses(node: u64, op: &Op<'_>) -> bool {
    let other = match op {
        Op::Rename { to, .. } => *to,
        Op::Link { node, .. } => *node,
        Op::CopyFileRange(copy) => copy.to,
        _ => return false,
    };
    (node ^ other) & BESIDE != 0
}

/// May it change what the mount shows? Not what opens for writing, since writes are answered here.
fn changes(op: &Op<'_>) -> bool {
    match op {
        Op::Setattr(_)
        | Op::Symlink { .. }
        | Op::Mknod { .. }
        | Op::Mkdir { .. }
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. }
        | Op::Link { .. }
        | Op::Create { .. }
        | Op::Tmpfile { .. }
        | Op::Write { .. }
        | Op::Setxattr { .. }
        | Op::Removexattr { .. }
        | Op::Fallocate { .. }
        | Op::CopyFileRange(_) => true,
        Op::Ioctl(request) => super::ioctl::changes(request.command),
        Op::Lookup { .. }
        | Op::Forget { .. }
        | Op::BatchForget(_)
        | Op::Getattr
        | Op::Statx
        | Op::Readlink
        | Op::Open(_)
        | Op::Release
        | Op::Read { .. }
        | Op::Statfs
        | Op::Fsync { .. }
        | Op::Fsyncdir { .. }
        | Op::Syncfs
        | Op::Getxattr { .. }
        | Op::Listxattr { .. }
        | Op::Readdir { .. }
        | Op::Readdirplus { .. }
        | Op::Opendir
        | Op::Releasedir
        | Op::Flush
        | Op::Lseek { .. }
        | Op::Interrupt
        | Op::Destroy
        | Op::Init(_)
        | Op::Other => false,
    }
}
