//! rovl: an overlay2 file system in userspace, and a layer store for container images.
//!
//! # The map of the house
//!
//! | module | what it is | may use |
//! |---|---|---|
//! | [`sys`] | safe wrappers of the system calls that rustix lacks; the only `unsafe` | nothing of ours |
//! | [`mod@format`] | what a layer looks like on disk; pure | `sys` |
//! | [`overlay`] | the semantics of the merged tree, on directory file descriptors, without FUSE | `format`, `sys` |
//! | [`store`] | the layer store: archives in and out of layer directories | `format`, `sys` |
//! | [`fuse`] | the adapter between the kernel's FUSE requests and [`overlay`] | `overlay`, `format`, `sys` |
//! | [`oci`] | what an OCI runtime is told of a container; pure | nothing of ours |
//! | [`cli`] | the commands; the only module that prints | everything |
//!
//! Dependencies point down only; `tests/architecture.rs` reads the source and enforces it.
//!
//! # Glossary
//!
//! - *layer*: an immutable directory tree. *lowers*: the layers of a mount, top to bottom.
//! - *upper*: the writable directory on top. *work*: its scratch directory, on the same file system.
//! - *merged*: the view over two or more layers.
//! - *whiteout*: an entry that hides the name below. *opaque*: a directory that hides the directories below.
//! - *copy-up*: making a lower object's copy in upper so that it can change.
//! - *redirect*: the xattr that says where a renamed directory's lower part is.
//! - *metacopy*: an upper file with attributes only, whose data is still in a lower.
//! - *origin*: the xattr with the file handle of the lower object that an upper object was copied from.

pub mod cli;
pub mod format;
pub mod fuse;
pub mod oci;
pub mod overlay;
pub mod store;
pub mod sys;
