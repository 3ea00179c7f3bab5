//! Attributes with the time of birth.

use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::Overlay;
use super::attr::{Attr, STAT_MASK, Timestamp};

impl Overlay {
    /// The attributes of a node, and when its topmost object was made, where the file system knows
    /// it. As in the kernel's overlayfs a copy-up makes a new object.
    ///
    /// # Errors
    /// As [`getattr`](Self::getattr).
    pub fn statx(&self, id: u64) -> Result<(Attr, Option<Timestamp>), Errno> {
        let node = self.node(id)?;
        let st = self.look_at(&node, |dir, name| {
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
            let mask = STAT_MASK | StatxFlags::BTIME;
            let st = rustix::io::retry_on_intr(|| rustix::fs::statx(dir, name, flags, mask))?;
            self.ids.apply(dir, name, st)
        })?;
        let known = st.stx_mask & StatxFlags::BTIME.bits() != 0;
        let birth = known.then_some(Timestamp {
            sec: st.stx_btime.tv_sec,
            nsec: st.stx_btime.tv_nsec,
        });
        Ok((self.attr_from(&node, &st)?, birth))
    }
}
