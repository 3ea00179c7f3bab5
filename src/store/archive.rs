//! Archives of images: what is in them, whatever their form.
//!
//! | module | what it is |
//! |---|---|
//! | [`documents`] | manifests and indexes; pure |
//! | [`platform`] | which image of several is meant; pure |
//! | [`resolve`] | from the documents to a list of images with their layers; pure |
//! | [`source`] | directories and tar files, whose members are read where they are |
//!
//! A directory, or a tar file that can be seeked in, is read in place: its members are found first, then read in
//! the order of need. A stream is read once, in the order it comes in, see `load`.

pub mod documents;
pub mod platform;
pub mod resolve;
pub mod source;
