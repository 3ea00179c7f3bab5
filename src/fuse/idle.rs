//! CPUs that are kept awake while requests come one after the other.
//!
//! A client sleeps until its request is answered, and its CPU with it. Waking that CPU takes longer than answering:
//! on a virtual machine it is a message to the hypervisor, which has to schedule the CPU again. The kernel has a
//! remedy in two places, and both are a setting of the machine: a guest may poll for a moment before it halts
//! (`guest_halt_poll_ns`), and whoever may open `/dev/cpu_dma_latency` can ask that no idle CPU sleeps deeper than a
//! number of microseconds. The second is what is done here, for as long as a client is at work. Microseconds on a
//! machine with 2 CPUs, `guest_halt_poll_ns` 0, upper on tmpfs, without and with it, least of four rounds:
//!
//! | | kernel's overlayfs | without | with |
//! |---|---|---|---|
//! | a GETXATTR that is not cached | 2.7 | 23 | 11 |
//! | mkdir | 11 | 85 | 35 |
//! | rename | 10 | 103 | 51 |
//! | unlink | 9.5 | 74 | 36 |
//! | create, write 4 KiB, close | 18 | 122 | 62 |
//!
//! A thread that spins at the lowest priority (`SCHED_IDLE`) on the client's CPU, which anybody may have, saves a
//! tenth to a fifth only: the CPU is awake, but still gets a message where one that polls sees a flag.
//!
//! Idle CPUs that poll take power, and on a virtual machine time of the host's. So by itself (`auto`) this is done
//! on small virtual machines only, where a wake-up is dearest and few CPUs poll for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};

/// `PM_QOS_DEFAULT_VALUE` of include/linux/pm_qos.h: no wish.
const NO_WISH: i32 = -1;
/// On machines with more CPUs than this, most of those that would poll have no client.
const FEW_CPUS: usize = 4;
/// Requests within a tick of the deputy's that make a client one at work.
const BUSY: u64 = 8;
/// Ticks in a row with fewer requests after which it is none.
const QUIET_TICKS: u32 = 3;

/// Whether idle CPUs poll while clients are at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolling {
    /// Never.
    Off,
    /// Yes; else a warning.
    On,
    /// On virtual machines with few CPUs that don't poll by themselves, where it can be had.
    Auto,
}

/// The wish that idle CPUs stay awake. It ends with this object.
pub(super) struct Wakefulness {
    wishes: File,
    awake: bool,
    quiet: u32,
}

impl Wakefulness {
    /// What was asked for, if it can be had; why not is in the log.
    pub(super) fn new(asked: IdlePolling) -> Option<Wakefulness> {
        let wanted = match asked {
            IdlePolling::Off => false,
            IdlePolling::On => true,
            IdlePolling::Auto => pays(),
        };
        if !wanted {
            return None;
        }
        let opened = OpenOptions::new().write(true).open("/dev/cpu_dma_latency");
        match (opened, asked) {
            (Ok(wishes), _) => return Some(Wakefulness::with(wishes)),
            (Err(e), IdlePolling::On) => {
                tracing::warn!("idle CPUs sleep: /dev/cpu_dma_latency: {e}");
            }
            (Err(e), _) => tracing::debug!("idle CPUs sleep: /dev/cpu_dma_latency: {e}"),
        }
        None
    }

    fn with(wishes: File) -> Wakefulness {
        Wakefulness {
            wishes,
            awake: false,
            quiet: 0,
        }
    }

    /// A tick has passed, with so many requests.
    pub(super) fn tick(&mut self, requests: u64) {
        if requests >= BUSY {
            self.quiet = 0;
            self.wish(true);
        } else if self.awake {
            self.quiet += 1;
            if self.quiet >= QUIET_TICKS {
                self.wish(false);
            }
        }
    }

    /// Nobody looks at the requests from here on.
    pub(super) fn rest(&mut self) {
        self.wish(false);
    }

    fn wish(&mut self, awake: bool) {
        if self.awake == awake {
            return;
        }
        self.awake = awake;
        let microseconds = if awake { 0 } else { NO_WISH };
        if let Err(e) = self.wishes.write_all(&microseconds.to_ne_bytes()) {
            tracing::debug!("/dev/cpu_dma_latency: {e}");
        }
    }
}

/// Whether a wake-up is dear here, and polling cheap.
fn pays() -> bool {
    let cpus = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
    let read = |path| fs::read_to_string(path);
    cpus <= FEW_CPUS
        && is_virtual(&read("/proc/cpuinfo").unwrap_or_default())
        && !polls_itself(read("/sys/module/haltpoll/parameters/guest_halt_poll_ns"))
}

fn is_virtual(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|l| l.strip_prefix("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|f| f == "hypervisor"))
}

/// Whether a guest polls before it halts. The parameter is there where its governor is.
fn polls_itself(guest_halt_poll_ns: io::Result<String>) -> bool {
    guest_halt_poll_ns.is_ok_and(|ns| ns.trim().parse() != Ok(0_u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was wished, in order.
    fn wishes(ticks: &[u64]) -> Vec<i32> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut awake = Wakefulness::with(file.reopen().unwrap());
        ticks.iter().for_each(|requests| awake.tick(*requests));
        awake.rest();
        let bytes = fs::read(file.path()).unwrap();
        let (words, rest) = bytes.as_chunks();
        assert!(rest.is_empty());
        words.iter().map(|w| i32::from_ne_bytes(*w)).collect()
    }

    #[test]
    fn cpus_are_kept_awake_while_requests_come() {
        assert!(wishes(&[0, 1, BUSY - 1]).is_empty());
        assert_eq!(wishes(&[BUSY, 40, 40]), [0, NO_WISH]);
        assert_eq!(wishes(&[40, 0, 0, 40, 0, 0, 40]), [0, NO_WISH]);
        assert_eq!(wishes(&[40, 0, 0, 0, 0, 40]), [0, NO_WISH, 0, NO_WISH]);
    }

    #[test]
    fn a_virtual_machine_says_so() {
        assert!(is_virtual(
            "model name\t: x\nflags\t\t: fpu hypervisor lm\n"
        ));
        assert!(!is_virtual("flags\t\t: fpu lm\n"));
        assert!(!is_virtual("CPU implementer : 0x41\n"));
    }

    #[test]
    fn a_guest_that_polls_needs_no_help() {
        assert!(polls_itself(Ok("200000\n".into())));
        assert!(!polls_itself(Ok("0\n".into())));
        assert!(!polls_itself(Err(io::ErrorKind::NotFound.into())));
    }
}
