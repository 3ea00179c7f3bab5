//! Platforms: `OS/ARCH[/VARIANT]`, in Go's words. Pure.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::store::error::StoreError;

/// What an image runs on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// Of the architecture: `v8`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// That of this machine.
    pub fn host() -> Platform {
        let (architecture, variant) = normal(std::env::consts::ARCH, None);
        Platform {
            os: std::env::consts::OS.to_owned(),
            architecture,
            variant,
        }
    }

    /// Whether an image for `self` is what `wanted` asks for. A variant that isn't asked for may be any.
    pub fn fits(&self, wanted: &Platform) -> bool {
        let (architecture, variant) = normal(&self.architecture, self.variant.as_deref());
        let (wanted_architecture, wanted_variant) =
            normal(&wanted.architecture, wanted.variant.as_deref());
        self.os.eq_ignore_ascii_case(&wanted.os)
            && architecture == wanted_architecture
            && (wanted_variant.is_none() || variant == wanted_variant || variant.is_none())
    }

    /// Whether it names no platform, as attestations beside images do.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

/// One word for each architecture, and no variant where there is but one.
fn normal(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let variant = variant.filter(|variant| !variant.is_empty());
    let (name, variant) = match (architecture.to_ascii_lowercase().as_str(), variant) {
        ("x86_64" | "x86-64" | "amd64", variant) => {
            ("amd64".into(), variant.filter(|v| *v != "v1"))
        }
        ("aarch64" | "arm64", variant) => (
            "arm64".into(),
            variant.filter(|v| !matches!(*v, "8" | "v8")),
        ),
        ("i386" | "i686" | "x86" | "386", _) => ("386".into(), None),
        ("powerpc64" | "ppc64le", variant) => ("ppc64le".into(), variant),
        ("loongarch64" | "loong64", variant) => ("loong64".into(), variant),
        ("armhf", None) => ("arm".into(), Some("v7")),
        ("armel", None) => ("arm".into(), Some("v6")),
        (other, variant) => (other.to_owned(), variant),
    };
    (name, variant.map(str::to_owned))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Platform, StoreError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some((*variant).to_owned())),
            _ => {
                let what = format!("{text:?} is no platform: it is OS/ARCH or OS/ARCH/VARIANT");
                return Err(StoreError::BadName(what));
            }
        };
        if parts.iter().any(|part| part.is_empty()) {
            let what = format!("{text:?} is no platform: a part is empty");
            return Err(StoreError::BadName(what));
        }
        Ok(Platform {
            os: (*os).to_owned(),
            architecture: (*architecture).to_owned(),
            variant,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_fit_by_their_normal_names() {
        let rows = [
            ("linux/amd64", "linux/x86_64", true),
            ("linux/arm64/v8", "linux/aarch64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm/v7", "linux/arm", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/amd64", "linux/arm64", false),
            ("windows/amd64", "linux/amd64", false),
        ];
        for (image, wanted, expected) in rows {
            let (image, wanted): (Platform, Platform) =
                (image.parse().unwrap(), wanted.parse().unwrap());
            assert_eq!(image.fits(&wanted), expected, "{image} for {wanted}");
        }
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
