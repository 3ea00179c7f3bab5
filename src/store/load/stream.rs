//! Archives that can be read only once, in the order they come in.
//!
//! A docker-archive's manifest and config may come last, so each member is judged by its own content when it
//! comes: documents (JSON) are kept in memory, within limits; what can be a layer is unpacked provisionally into
//! the transaction, and becomes a layer of an image if the documents say so. What no image has, goes with the
//! transaction. A member that is named after the digest of a layer that is there is only hashed, not unpacked.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::input::read_up_to;
use super::plan::ImagePlan;
use super::{LoadedImage, Loader, verify_layer};
use crate::store::archive::documents::MAX_DOCUMENT;
use crate::store::archive::resolve::{self, Documents};
use crate::store::archive::source::{MAX_MEMBERS, MemberKind, member_of};
use crate::store::codec::digest::HashingReader;
use crate::store::error::{Context as _, Result, StoreError};
use crate::store::ids::{BlobDigest, DiffId};
use crate::store::layout;

/// Bytes of documents that are kept.
const MAX_DOCUMENTS_TOTAL: usize = 64 << 20;
/// Bytes in one piece from the stream to the unpacking.
const CHUNK: usize = 1 << 20;
/// Pieces under way.
const QUEUE: usize = 4;
/// Links that one name may lead through.
const MAX_LINKS: usize = 16;

/// What a member turned out to be.
enum Collected {
    /// Small enough to be kept.
    Document(Vec<u8>),
    /// A layer, unpacked, or there already.
    Layer {
        diff_id: DiffId,
        blob: Option<BlobDigest>,
        bytes: u64,
    },
    /// Neither, and why.
    Useless(String),
    /// Another member.
    Link(String),
}

/// The members that have come in.
#[derive(Default)]
struct Members {
    by_name: BTreeMap<String, Collected>,
    kept: usize,
}

impl Members {
    fn get(&self, name: &str) -> Result<Option<&Collected>> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.by_name.get(name) {
                Some(Collected::Link(target)) => name = target,
                other => return Ok(other),
            }
        }
        Err(StoreError::archive(format!(
            "links of {name} form a circle"
        )))
    }
}

impl Documents for Members {
    fn document(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.get(name)? {
            None => Ok(None),
            Some(Collected::Document(content)) => Ok(Some(content.clone())),
            Some(_) => Err(StoreError::archive(format!("{name} is no document"))),
        }
    }
}

impl Loader<'_> {
    pub(super) fn load_stream(
        mut self,
        mut stream: Box<dyn Read + Send>,
    ) -> Result<Vec<LoadedImage>> {
        let mut members = Members::default();
        {
            let mut archive = tar::Archive::new(&mut stream);
            for entry in archive.entries().context("reading", "the archive")? {
                let mut entry = entry.context("reading the tar of", "the archive")?;
                let (name, kind) = member_of(&entry)?;
                let size = entry.size();
                let collected = match kind {
                    MemberKind::Other => continue,
                    MemberKind::Link(target) => Collected::Link(target),
                    MemberKind::File => self.take(&name, size, &mut entry, &mut members.kept)?,
                };
                if members.by_name.len() >= MAX_MEMBERS {
                    let what = format!("more than {MAX_MEMBERS} members");
                    return Err(StoreError::archive(what));
                }
                if members.by_name.insert(name.clone(), collected).is_some() {
                    return Err(StoreError::archive(format!("{name} is in it twice")));
                }
            }
        }
        // Whoever writes the stream is let finish, and a compressed one is verified to its end.
        io::copy(&mut stream, &mut io::sink()).context("reading", "the archive")?;
        let images = resolve::images(&members, self.options.platform.as_ref())?;
        let images = self.named(images)?;
        let mut plans = Vec::new();
        for image in images {
            let config = members.document(&image.config.name)?;
            let plan = ImagePlan::new(image, config)?;
            self.match_layers(&plan, &members)?;
            plans.push(plan);
        }
        self.publish(plans)
    }

    /// Holds the layers of an image against what came in.
    fn match_layers(&mut self, plan: &ImagePlan, members: &Members) -> Result<()> {
        for layer in &plan.layers {
            let name = &layer.blob.name;
            match members.get(name)? {
                None => return Err(StoreError::archive(format!("{name} is missing"))),
                Some(Collected::Useless(why)) => return Err(StoreError::layer(name, why)),
                Some(Collected::Document(content)) => {
                    // A layer so small that it was kept.
                    if self.store.layer(&layer.chain_id)?.is_none()
                        && !self.staged.contains_key(&layer.diff_id)
                    {
                        let total = Some(content.len() as u64);
                        let (shown, content) = (&layer.diff_id, content.as_slice());
                        let staged = self.unpack_stream(name, shown, content, total)?;
                        verify_layer(&staged, &layer.diff_id, &layer.blob)?;
                        self.staged.insert(layer.diff_id, staged);
                    }
                }
                Some(Collected::Layer {
                    diff_id,
                    blob,
                    bytes,
                }) => {
                    if let (Some(stated), Some(actual)) = (&layer.blob.digest, blob)
                        && *stated != actual.0
                    {
                        let reason = format!("its digest should be {stated} and is {actual}");
                        return Err(StoreError::layer(name, reason));
                    }
                    if layer.blob.size.is_some_and(|size| size != *bytes) {
                        let stated = layer.blob.size.unwrap_or_default();
                        let reason = format!("it has {bytes} bytes, not {stated}");
                        return Err(StoreError::layer(name, reason));
                    }
                    if *diff_id != layer.diff_id {
                        let reason = format!(
                            "unpacked, its digest should be {}, as the config says, and is {diff_id}",
                            layer.diff_id
                        );
                        return Err(StoreError::layer(name, reason));
                    }
                }
                Some(Collected::Link(_)) => {
                    return Err(StoreError::archive(format!("{name} leads nowhere")));
                }
            }
        }
        Ok(())
    }

    /// Takes one member in.
    fn take(
        &mut self,
        name: &str,
        size: u64,
        content: &mut impl Read,
        kept: &mut usize,
    ) -> Result<Collected> {
        let mut head = vec![0; 1024];
        let read = read_up_to(&mut *content, &mut head).context("reading", name)?;
        head.truncate(read);
        if (read as u64) < size.min(1024) {
            return Err(StoreError::archive(format!("it ends within {name}")));
        }
        if !can_be_layer(&head) {
            return keep(name, size, head, content, kept);
        }
        if let Some(known) = self.known(name)? {
            return self.hash_only(name, size, known, head.as_slice().chain(content));
        }
        let label: String = label_of(name);
        let number = self.progress.begin(&label, Some(size));
        let staged = self.unpack_from(name, number, head, content);
        self.progress.end(
            number,
            if staged.is_ok() {
                "unpacked"
            } else {
                "no layer"
            },
        );
        match staged? {
            Err(reason) => Ok(Collected::Useless(reason)),
            Ok(layer) => {
                let collected = Collected::Layer {
                    diff_id: layer.diff_id,
                    blob: layer.blob,
                    bytes: layer.blob_size,
                };
                self.staged.entry(layer.diff_id).or_insert(layer);
                Ok(collected)
            }
        }
    }

    /// Unpacks a member while it comes in: the tar around it is read on this thread, and handed on in pieces.
    /// The inner error is the member's; the outer one is the stream's, or the store's.
    fn unpack_from(
        &self,
        name: &str,
        number: usize,
        head: Vec<u8>,
        content: &mut impl Read,
    ) -> Result<std::result::Result<crate::store::stage::StagedLayer, String>> {
        let (sender, receiver) = std::sync::mpsc::sync_channel::<io::Result<Vec<u8>>>(QUEUE);
        let stager = self.stager();
        std::thread::scope(|scope| {
            let unpacking = scope.spawn(|| {
                let pieces = Pieces::new(receiver);
                stager.unpack(name, pieces, &|bytes| self.progress.advance(number, bytes))
            });
            let mut wanted = sender.send(Ok(head)).is_ok();
            let mut failed = None;
            loop {
                let mut piece = vec![0; CHUNK];
                match read_up_to(&mut *content, &mut piece) {
                    Ok(0) => break,
                    Ok(read) => {
                        piece.truncate(read);
                        // What nobody wants is still read: the next member comes after it.
                        wanted = wanted && sender.send(Ok(piece)).is_ok();
                    }
                    Err(error) => {
                        failed = Some(io::Error::new(error.kind(), error.to_string()));
                        if sender.send(Err(error)).is_err() {
                            tracing::debug!("the unpacking has ended before its input");
                        }
                        break;
                    }
                }
            }
            drop(sender);
            let unpacked = match unpacking.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            match (unpacked, failed) {
                (_, Some(error)) => Err(error).context("reading", name),
                (Ok(layer), None) => Ok(Ok(layer)),
                (Err(StoreError::Layer { reason, .. }), None) => Ok(Err(reason)),
                (Err(error), None) => Err(error),
            }
        })
    }

    /// The layer of the store that a member's name states by its digest: `blobs/sha256/<digest>`, or
    /// `<diff-id>.tar`.
    fn known(&self, name: &str) -> Result<Option<DiffId>> {
        let disk = self.store.disk();
        let stated = if let Some(hex) = name.strip_prefix("blobs/sha256/") {
            let Ok(digest) = format!("sha256:{hex}").parse() else {
                return Ok(None);
            };
            let recorded = layout::parsed(disk, layout::diff_id_by_digest(&digest), |text| {
                text.parse().ok()
            })?;
            Some(recorded.unwrap_or(DiffId(digest)))
        } else {
            let hex = name.strip_suffix(".tar").unwrap_or(name);
            format!("sha256:{hex}").parse().ok()
        };
        let layers = self.store.layers()?;
        Ok(stated.filter(|diff_id| layers.iter().any(|layer| layer.diff_id == *diff_id)))
    }

    /// Reads a member whose layer is there, and holds it against its name.
    fn hash_only(
        &self,
        name: &str,
        size: u64,
        known: DiffId,
        content: impl Read,
    ) -> Result<Collected> {
        let number = self.progress.begin(&label_of(name), Some(size));
        let mut reader = HashingReader::new(content);
        io::copy(&mut reader, &mut io::sink()).context("reading", name)?;
        let (_, digest, bytes) = reader.finish();
        self.progress.advance(number, bytes);
        self.progress.end(number, "exists");
        if !name.contains(&digest.hex()) {
            let reason = format!("its digest is {digest}, which is not what it is named after");
            return Err(StoreError::layer(name, reason));
        }
        Ok(Collected::Layer {
            diff_id: known,
            blob: Some(BlobDigest(digest)),
            bytes,
        })
    }
}

/// Keeps a member that is no layer, if it is small enough to be a document.
fn keep(
    name: &str,
    size: u64,
    head: Vec<u8>,
    content: &mut impl Read,
    kept: &mut usize,
) -> Result<Collected> {
    if size > MAX_DOCUMENT as u64 {
        io::copy(content, &mut io::sink()).context("reading", name)?;
        let why = format!("it is no layer, and with {size} bytes too large for a document");
        return Ok(Collected::Useless(why));
    }
    let mut document = head;
    content
        .read_to_end(&mut document)
        .context("reading", name)?;
    if document.len() as u64 != size {
        return Err(StoreError::archive(format!("it ends within {name}")));
    }
    *kept += document.len();
    if *kept > MAX_DOCUMENTS_TOTAL {
        let what = format!("its documents have more than {MAX_DOCUMENTS_TOTAL} bytes together");
        return Err(StoreError::archive(what));
    }
    Ok(Collected::Document(document))
}

/// Whether a member that begins so can be a layer: compressed, or a tar.
fn can_be_layer(head: &[u8]) -> bool {
    let is_zstd = head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
    head.starts_with(&[0x1f, 0x8b]) || is_zstd || is_tar(head)
}

/// Whether it begins with a tar header, or with the blocks that end a tar.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..512) else {
        return false;
    };
    if block.iter().all(|byte| *byte == 0) {
        return true;
    }
    let stated = block.get(148..156).unwrap_or_default();
    let digits: String = stated
        .iter()
        .map(|byte| char::from(*byte))
        .skip_while(|c| *c == ' ')
        .take_while(|c| c.is_digit(8))
        .collect();
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            if (148..156).contains(&at) {
                u32::from(b' ')
            } else {
                u32::from(*byte)
            }
        })
        .sum();
    u32::from_str_radix(&digits, 8) == Ok(sum)
}

/// How a member is called in the progress: the beginning of the digest that it is named after, or its name.
fn label_of(name: &str) -> String {
    let stem = name.strip_prefix("blobs/sha256/").unwrap_or(name);
    let stem = stem.trim_end_matches("/layer.tar").trim_end_matches(".tar");
    stem.chars().take(12).collect()
}

/// Pieces that come from another thread, as a stream.
struct Pieces {
    from: std::sync::mpsc::Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
}

impl Pieces {
    fn new(from: std::sync::mpsc::Receiver<io::Result<Vec<u8>>>) -> Pieces {
        Pieces {
            from,
            piece: Vec::new(),
            at: 0,
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.piece.len() {
            match self.from.recv() {
                Ok(piece) => {
                    self.piece = piece?;
                    self.at = 0;
                }
                Err(_) => return Ok(0),
            }
        }
        let rest = self.piece.get(self.at..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.at += length;
        Ok(length)
    }
}
