//! The way down: which directory of which lower is asked next for a name.
//!
//! As the loop of `ovl_lookup` and `ovl_lookup_layer` in fs/overlayfs/namei.c: through the lowers of the
//! parent, until a redirect leads away from them; then from the roots of the layers below.

use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::Arc;

use super::Overlay;
use super::attr::{dev_of, is_dir};
use super::layer::LowerDir;
use super::listing::InLower;
use super::lookup::Single;
use super::node::DirPart;
use crate::format::redirect::Redirect;

/// Where the layers below are searched.
#[derive(Clone)]
enum SearchPath {
    /// In the lowers of the parent, under this name.
    InParent(Arc<OsStr>),
    /// From the roots of the layers.
    FromRoot(Vec<OsString>),
}

/// A search through the lowers, from top to bottom.
pub(crate) struct Descent {
    lowers: Arc<[Arc<LowerDir>]>,
    /// How many of the parent's lowers have been asked, or need not be.
    asked: usize,
    /// The parent's lowers that have something for the name, in ascending order. `None`: any may have.
    chosen: Option<Vec<InLower>>,
    /// Index of the layer from which a search from the roots goes on.
    layer: usize,
    search: SearchPath,
    /// Are lowers below one that a file makes opaque left out? Who does not ask for it here does so when something
    /// is found.
    heeds_marks: bool,
}

/// From how many lowers on it pays to ask for a name without opening them.
const MANY_LOWERS: usize = 4;

/// A place to look at.
pub(crate) struct Step {
    /// The directory to look into.
    pub at: Arc<LowerDir>,
    /// The name to look for.
    pub name: Arc<OsStr>,
    /// Was it found from the root of its layer?
    pub from_root: bool,
    /// Is it surely a directory?
    pub is_dir: bool,
    /// Is it one of many that are asked in turn?
    pub of_many: bool,
    /// Do the layers below count for nothing, because of an opaque directory on the way?
    pub last_here: bool,
}

impl Descent {
    /// Begins with the lowers of `parent`, but for the topmost `skip`; of these, only those that are `chosen`.
    pub(crate) fn new(
        parent: &DirPart,
        skip: usize,
        chosen: Option<Vec<InLower>>,
        name: &OsStr,
    ) -> Descent {
        Descent {
            lowers: parent.lowers(),
            asked: skip,
            chosen,
            layer: 0,
            search: SearchPath::InParent(name.into()),
            heeds_marks: false,
        }
    }

    /// From here on without what the marks of lowers hide.
    pub(crate) fn heed_marks(&mut self) {
        self.heeds_marks = true;
    }

    /// Takes the redirect into account that was found at the last step (or in upper).
    pub(crate) fn redirect(&mut self, redirect: &Redirect) {
        // They were chosen for another name.
        self.chosen = None;
        self.search = match (redirect, &self.search) {
            (Redirect::Absolute(path), _) => SearchPath::FromRoot(path.clone()),
            (Redirect::Relative(name), SearchPath::InParent(_)) => {
                SearchPath::InParent(name.as_os_str().into())
            }
            (Redirect::Relative(name), SearchPath::FromRoot(path)) => {
                let mut path = path.clone();
                path.pop();
                path.push(name.clone());
                SearchPath::FromRoot(path)
            }
        };
    }

    /// Is there nothing below `at` that could be asked?
    pub(crate) fn is_last(&self, overlay: &Overlay, at: &LowerDir) -> bool {
        let nothing_left = self.asked >= self.lowers.len() && !overlay.follow_redirects;
        nothing_left || usize::from(at.layer) + 1 == overlay.lowers.merged
    }

    /// The next place, if there is one.
    pub(crate) fn next(&mut self, overlay: &Overlay) -> Result<Option<Step>, Errno> {
        loop {
            let path = match &self.search {
                SearchPath::InParent(name) => {
                    let (next, is_dir) = match &self.chosen {
                        None => (self.asked, false),
                        Some(chosen) => {
                            let from = chosen.partition_point(|n| n.index() < self.asked);
                            let first = chosen.get(from);
                            first.map_or((usize::MAX, false), |n| (n.index(), n.is_dir()))
                        }
                    };
                    let Some(first) = self.lowers.get(next) else {
                        return Ok(None);
                    };
                    if self.heeds_marks {
                        for above in self.lowers.iter().take(next) {
                            if overlay.has_opaque_file(above)? {
                                return Ok(None);
                            }
                        }
                    }
                    self.asked = next + 1;
                    self.layer = usize::from(first.layer) + 1;
                    return Ok(Some(Step {
                        at: Arc::clone(first),
                        name: Arc::clone(name),
                        from_root: false,
                        is_dir,
                        of_many: self.lowers.len() >= MANY_LOWERS,
                        last_here: false,
                    }));
                }
                SearchPath::FromRoot(path) => path.clone(),
            };
            if self.layer >= overlay.lowers.merged {
                return Ok(None);
            }
            let walked = self.walk_from_root(overlay, self.layer, &path)?;
            self.layer += 1;
            match walked {
                Walked::Dir(at, last_here) => {
                    let name = path.last().map_or(OsStr::new(""), |n| n);
                    return Ok(Some(Step {
                        at,
                        name: name.into(),
                        from_root: true,
                        is_dir: false,
                        of_many: false,
                        last_here,
                    }));
                }
                Walked::Absent => {}
                Walked::Stop => return Ok(None),
            }
        }
    }

    /// Walks to the parent of the last component of `path` in one layer. Redirects met on the way
    /// hold for the layers below.
    fn walk_from_root(
        &mut self,
        overlay: &Overlay,
        layer: usize,
        path: &[OsString],
    ) -> Result<Walked, Errno> {
        let mut at = Arc::clone(overlay.lowers.root(layer));
        let mut stop = false;
        for (i, name) in path.iter().enumerate().take(path.len().saturating_sub(1)) {
            let fd = overlay.lowers.dir_fd(&overlay.fds, &at)?;
            let st = match overlay.single(fd.as_fd(), name, &at.aufs, at.xattr_whiteouts)? {
                Single::Whiteout => return Ok(Walked::Stop),
                Single::Absent => return Ok(if stop { Walked::Stop } else { Walked::Absent }),
                Single::Object(st) if !is_dir(&st) => return Ok(Walked::Stop),
                Single::Object(st) => st,
            };
            let marks = overlay.dir_marks(fd.as_fd(), name)?;
            stop |= marks.opaque;
            if let Some(redirect) = marks.redirect.as_ref().filter(|_| !marks.opaque) {
                let mut changed = match redirect {
                    Redirect::Absolute(p) => {
                        stop = false;
                        p.clone()
                    }
                    Redirect::Relative(n) => {
                        let mut p = path[..i].to_vec();
                        p.push(n.clone());
                        p
                    }
                };
                changed.extend_from_slice(&path[i + 1..]);
                self.search = SearchPath::FromRoot(changed);
            }
            let key = (dev_of(&st), st.stx_ino);
            at = LowerDir::new(
                at.layer,
                key,
                Some(Arc::clone(&at)),
                name,
                marks.xattr_whiteouts,
            );
            at.opaque_mark.set(marks.opaque);
        }
        // After an opaque directory on the way, layers below can't add to what is found here.
        Ok(Walked::Dir(at, stop))
    }
}

enum Walked {
    /// The directory in which the last component is to be looked up; whether the search ends there.
    Dir(Arc<LowerDir>, bool),
    /// Not in this layer.
    Absent,
    /// Not in this layer, and hidden from the layers below.
    Stop,
}
