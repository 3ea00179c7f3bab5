//! What is done with an input. Each returns a word or two of what it came to: inputs that come to something
//! new are worth mutating further. A panic, or a broken promise, is a find.

use std::io::Read;

use rovl::format::keys::Namespace;
use rovl::format::override_stat::OverrideStat;
use rovl::format::{acl, handle, metacopy, nlink, redirect};
use rovl::store::archive::documents::{self, Document};
use rovl::store::archive::platform::Platform;
use rovl::store::codec::budget::Budgets;
use rovl::store::codec::compress::{CompressError, Decoder};
use rovl::store::codec::digest::Digest;
use rovl::store::codec::tar::pax::Pax;
use rovl::store::codec::tar::writer::{END, headers, padding_after};
use rovl::store::codec::tar::{Entry, Parser, Step, TarError};
use rovl::store::codec::tar_split;
use rovl::store::config::Config;
use rovl::store::names::Reference;

fn budgets() -> Budgets {
    Budgets {
        unpacked_bytes: 1 << 24,
        extension_bytes: 1 << 16,
        sparse_segments: 100,
        trailing_bytes: 1 << 20,
        entries: 1000,
        zstd_window_log: 20,
        ..Budgets::default()
    }
}

/// Entries, the bytes that are of no body, and how many there were.
fn parse(input: &[u8], step: usize) -> Result<(Vec<Entry>, usize, usize), TarError> {
    let mut parser = Parser::new(&budgets());
    let (mut entries, mut raw, mut bodies) = (Vec::new(), 0, 0);
    for piece in input.chunks(step) {
        let mut rest = piece;
        while !rest.is_empty() {
            let (taken, step) = parser.advance(rest)?;
            rest = &rest[taken..];
            match step {
                Step::More => {}
                Step::Entry(entry) => entries.push(*entry),
                Step::Body(n) | Step::Trailing(n) => bodies += n,
            }
            let new = parser.take_raw().len();
            assert!(new <= 2 * budgets().extension_bytes + 100 * 512);
            raw += new;
        }
    }
    parser.finish()?;
    raw += parser.take_raw().len();
    Ok((entries, raw, bodies))
}

fn words(error: &impl std::fmt::Display) -> String {
    error
        .to_string()
        .chars()
        .filter(|c| c.is_alphabetic())
        .take(60)
        .collect()
}

/// However the bytes come, they come to the same; none is lost; what was read can be written and read again.
pub fn tar(input: &[u8]) -> String {
    let whole = parse(input, usize::MAX);
    let pieces = parse(input, 1 + input.len() % 600);
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => {
            assert_eq!(whole, pieces);
            let (entries, raw, bodies) = whole;
            assert_eq!(raw + bodies, input.len(), "bytes are lost");
            let kinds: String = entries.iter().map(|e| format!("{:.4?}", e.kind)).collect();
            again(entries);
            kinds
        }
        (Err(whole), Err(pieces)) => {
            assert_eq!(whole.to_string(), pieces.to_string());
            words(&whole)
        }
        (whole, pieces) => panic!("{whole:?} and in pieces {pieces:?}"),
    }
}

fn again(entries: Vec<Entry>) {
    for mut entry in entries {
        // What a writer can't say.
        (entry.atime, entry.sparse) = (None, None);
        if entry.size > 1 << 20 || entry.xattrs.iter().any(|(name, _)| name.contains(&b'=')) {
            continue;
        }
        entry.stored = entry.size;
        let size = usize::try_from(entry.size).unwrap();
        let mut bytes = headers(&entry);
        bytes.extend(vec![0; size]);
        bytes.extend(padding_after(entry.size));
        bytes.extend(END);
        let (read, ..) = parse(&bytes, usize::MAX).unwrap();
        assert_eq!(read, [entry]);
    }
}

pub fn pax(input: &[u8]) -> String {
    let mut seen = String::new();
    for global in [false, true] {
        match Pax::parse(input, global, &budgets()) {
            Ok(pax) => {
                let merged = pax.over(&Pax::default());
                assert!(!merged.path.unwrap_or_default().contains(&0));
                seen += &format!("{} {}", merged.xattrs.len().min(3), merged.sparse.present);
            }
            Err(e) => seen += &words(&e),
        }
    }
    seen
}

pub fn tar_split(input: &[u8]) -> String {
    let line = match tar_split::parse_line(input) {
        Ok((_, tar_split::Line::Segment(_))) => "segment".to_owned(),
        Ok((_, tar_split::Line::File { .. })) => "file".to_owned(),
        Err(e) => words(&e),
    };
    let mut out = Vec::new();
    let open = |_: &[u8]| Ok(&b"body"[..]);
    match tar_split::assemble(input, open, &mut out) {
        Ok((digest, bytes)) => {
            assert_eq!((digest.0, bytes), (Digest::of(&out), out.len() as u64));
            line + "assembled"
        }
        Err(e) => line + &words(&e),
    }
}

pub fn compressed(input: &[u8]) -> String {
    let mut decoder = match Decoder::new(input, &budgets()) {
        Ok(decoder) => decoder,
        Err(e) => return words(&e),
    };
    let kind = decoder.compression();
    let mut out = Vec::new();
    match decoder.read_to_end(&mut out) {
        Ok(_) => {
            let (_, facts) = decoder.finish().unwrap();
            assert_eq!(facts.digest.0, Digest::of(input));
            format!("{kind:?} {}", out.len().checked_ilog2().unwrap_or_default())
        }
        Err(e) => {
            assert!(CompressError::of(&e).is_some(), "{e}");
            format!("{kind:?} {}", words(&e))
        }
    }
}

/// All that is read out of extended attributes.
pub fn xattrs(input: &[u8]) -> String {
    let mut seen = String::new();
    match acl::parse(input) {
        Ok(parsed) => {
            assert_eq!(acl::parse(&acl::encode(&parsed)), Ok(parsed));
            seen += "acl";
        }
        Err(e) => seen += &words(&e),
    }
    match OverrideStat::parse(input) {
        Ok(parsed) => {
            assert_eq!(OverrideStat::parse(&parsed.encode()), Ok(parsed));
            seen += "stat";
        }
        Err(e) => seen += &words(&e),
    }
    seen += &format!("{:.6?}", redirect::Redirect::parse(input));
    seen += &format!("{:.12?}", nlink::Nlink::parse(input));
    seen += &format!("{:.12?}", metacopy::Metacopy::parse(input));
    seen += &format!("{:.8?}", handle::OverlayHandle::parse(input));
    for namespace in [Namespace::Trusted, Namespace::User] {
        let stored = namespace.to_stored(input);
        assert!(!stored.starts_with(namespace.prefix()) || !namespace.is_private(&stored));
    }
    seen
}

/// A docker-archive's list of images, and the names in it.
pub fn manifest(input: &[u8]) -> String {
    match documents::parse_docker(input) {
        Ok(items) => {
            let names = items.iter().flat_map(|item| item.names.iter().flatten());
            let good = names.filter(|name| is_reference(name)).count();
            format!("{} images, {good} names", items.len().min(9))
        }
        Err(e) => words(&e),
    }
}

/// A name that is one says the same when it is read again.
fn is_reference(name: &str) -> bool {
    match name.parse::<Reference>() {
        Ok(name) => {
            let again = |text: String| text.parse::<Reference>().map(|name| name.full()).ok();
            assert_eq!(again(name.full()), Some(name.full()));
            assert_eq!(again(name.stored()), Some(name.full()));
            true
        }
        Err(_) => false,
    }
}

/// An OCI index or manifest, with all that is read of its descriptors.
pub fn index(input: &[u8]) -> String {
    let (kind, blobs) = match documents::parse_oci("x", input) {
        Ok(Document::Index(blobs)) => ("index", blobs),
        Ok(Document::Manifest { config, layers }) => ("manifest", [vec![config], layers].concat()),
        Err(e) => return words(&e),
    };
    let good = blobs.iter().filter(|blob| blob.parsed_digest().is_ok());
    let good = good.filter(|blob| blob.is_layer()).count();
    let names = blobs
        .iter()
        .filter_map(|blob| blob.annotation("org.opencontainers.image.ref.name"));
    let named = names.filter(|name| is_reference(name)).count();
    let host = Platform::host();
    let fit = blobs.iter().filter_map(|blob| blob.platform.as_ref());
    let fit = fit.filter(|platform| platform.fits(&host)).count();
    format!("{kind} {} {good} {named} {fit}", blobs.len().min(9))
}

/// An image's config: each layer has a chain-id, and its time is one or none.
pub fn config(input: &[u8]) -> String {
    let config = match Config::parse(input) {
        Ok(config) => config,
        Err(e) => return words(&e),
    };
    let time = config.created.as_deref().and_then(rovl::store::time::parse);
    match (config.diff_ids(), config.chain_ids()) {
        (Ok(diffs), Ok(chains)) => {
            assert_eq!(diffs.len(), chains.len());
            let platform = config.platform().len().min(20);
            format!("{} {} {platform}", diffs.len().min(9), time.is_some())
        }
        (Err(e), Err(_)) => words(&e),
        (diffs, chains) => panic!("{diffs:?} and {chains:?}"),
    }
}

/// The whole way into a directory: whatever comes, the error is one, and nothing is left open.
pub fn unpack(input: &[u8]) -> String {
    use std::os::fd::AsFd;
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = std::fs::File::open(place.path()).unwrap();
    let mut options = rovl::store::unpack::Options::new(Namespace::Trusted);
    options.budgets = budgets();
    options.writers = 1;
    let mut record = Vec::new();
    let done = rovl::store::unpack::unpack(
        input,
        root.as_fd(),
        &options,
        Some(&mut record),
        None,
        &|_| {},
    );
    match done {
        Ok(summary) => {
            let open = |path: &[u8]| rovl::store::unpack::open_beneath(root.as_fd(), path);
            let mut out = Vec::new();
            let (digest, _) = tar_split::assemble(&record[..], open, &mut out).unwrap();
            assert_eq!(digest, summary.diff_id);
            format!("{} {}", summary.entries, summary.whiteouts)
        }
        Err(e) => words(&e),
    }
}
