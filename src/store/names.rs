//! Names of images, as Docker takes, stores and shows them.
//!
//! `[DOMAIN/]PATH[:TAG][@DIGEST]`; the domain `docker.io` and its `library/` are never shown nor stored. Pure.

use std::fmt;
use std::str::FromStr;

use super::error::StoreError;
use super::ids::Digest;

/// The tag of a name that has none.
const DEFAULT_TAG: &str = "latest";
/// Characters that a name may have.
const MAX_NAME: usize = 255;
/// Characters that a tag may have.
const MAX_TAG: usize = 128;

/// A name of an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The name without tag and digest, in its short form.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag: `latest` when there is neither a tag nor a digest.
    pub fn tag(&self) -> Option<&str> {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => Some(tag),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG),
        }
    }

    /// The digest of the manifest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// As it is written down: with a digest if it has one, with its tag otherwise.
    pub fn stored(&self) -> String {
        match (&self.digest, self.tag()) {
            (Some(digest), _) => format!("{}@{digest}", self.name),
            (None, tag) => format!("{}:{}", self.name, tag.unwrap_or(DEFAULT_TAG)),
        }
    }

    /// With `docker.io/library/` where it was left out, as OCI annotations want it.
    pub fn full(&self) -> String {
        let stored = self.stored();
        let first = self.name.split('/').next().unwrap_or_default();
        if !self.name.contains('/') {
            format!("docker.io/library/{stored}")
        } else if is_domain(first) {
            stored
        } else {
            format!("docker.io/{stored}")
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.stored())
    }
}

impl FromStr for Reference {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Reference, StoreError> {
        let bad =
            |why: &str| StoreError::BadName(format!("{text:?} is no name of an image: {why}"));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|_| bad("its digest is none"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(
                "a tag is up to 128 letters, digits, `_`, `.` and `-`, and begins with none of the last two",
            ));
        }
        let name = shorten(name);
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(bad("it is empty or longer than 255"));
        }
        let (domain, path) = split_domain(name);
        if domain.is_some_and(|domain| !is_domain_text(domain)) {
            return Err(bad("its registry's name is none"));
        }
        if !path.split('/').all(is_component) {
            return Err(bad(
                "its parts are lower-case letters and digits, separated by `.`, `_`, `__` or dashes",
            ));
        }
        if domain.is_none() && digest.is_none() && tag.is_none() && is_hex_id(path) {
            return Err(bad("64 hex digits are an id"));
        }
        Ok(Reference {
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// Without Docker's own domain and namespace, unless what is left would be taken for another domain.
fn shorten(name: &str) -> &str {
    let short = ["docker.io/", "index.docker.io/"]
        .iter()
        .find_map(|domain| name.strip_prefix(domain))
        .filter(|rest| split_domain(rest).0.is_none())
        .unwrap_or(name);
    match short.strip_prefix("library/") {
        Some(rest) if !rest.contains('/') => rest,
        _ => short,
    }
}

fn split_domain(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if is_domain(first) => (Some(first), rest),
        _ => (None, name),
    }
}

/// Whether the first part of a name is a registry rather than a part of the path.
fn is_domain(part: &str) -> bool {
    part == "localhost"
        || part.contains(['.', ':'])
        || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_domain_text(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) if !domain.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let port_fits = port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    let is_v6 = host.starts_with('[') && host.ends_with(']');
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let v6_fits = || {
        host.bytes()
            .all(|b| b.is_ascii_hexdigit() || b"[]:".contains(&b))
    };
    port_fits
        && if is_v6 {
            v6_fits()
        } else {
            host.split('.').all(is_label)
        }
}

fn is_component(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [part.bytes().next(), part.bytes().last()];
    let separators = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends.iter().all(|end| end.is_some_and(is_word))
        && separators.into_iter().all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag
            .bytes()
            .all(|byte| is_word(byte) || b".-".contains(&byte))
}

fn is_hex_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(text: &str) -> Option<String> {
        text.parse::<Reference>().ok().map(|name| name.stored())
    }

    #[test]
    fn names_are_shortened_as_docker_does() {
        let rows = [
            ("busybox", "busybox:latest"),
            ("docker.io/library/busybox", "busybox:latest"),
            ("docker.io/library/busybox:1", "busybox:1"),
            ("library/busybox", "busybox:latest"),
            ("docker.io/me/x:1", "me/x:1"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            (
                "quay.example/a/b-c__d.e:T_1.2-x",
                "quay.example/a/b-c__d.e:T_1.2-x",
            ),
            ("docker.io/a/library/b", "a/library/b:latest"),
        ];
        for (text, expected) in rows {
            assert_eq!(stored(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_digest_goes_before_a_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let name: Reference = format!("x/y:1@{digest}").parse().unwrap();
        assert_eq!(name.stored(), format!("x/y@{digest}"));
        assert_eq!(name.tag(), Some("1"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(256);
        let hex = "a".repeat(64);
        for text in [
            "",
            ":",
            "a:",
            "a:-x",
            "A",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "-a",
            "a-",
            "a___b",
            "a b",
            "a@sha256:00",
            "a:b:c",
            "-h.x/a",
            "h:x1/a",
            "../a",
            &long,
            &hex,
        ] {
            assert_eq!(stored(text), None, "{text}");
        }
    }

    #[test]
    fn annotations_get_full_names() {
        let full = |text: &str| text.parse::<Reference>().unwrap().full();
        assert_eq!(full("x"), "docker.io/library/x:latest");
        assert_eq!(full("me/x:1"), "docker.io/me/x:1");
        assert_eq!(full("localhost/x"), "localhost/x:latest");
    }
}
