//! `rovl ctl`: orders to the daemon of a mount.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use rustix::io::Errno;

use super::{Failure, mounted, print};
use crate::sys::fuse::ask_refresh;

/// Give orders to the daemon of a mount.
#[derive(Debug, Args)]
pub struct CtlArgs {
    #[command(subcommand)]
    order: Order,
}

#[derive(Debug, Subcommand)]
enum Order {
    Refresh(RefreshArgs),
}

/// Drop everything that is cached of the layers, so that changes made to them beneath the mount show.
#[derive(Debug, Args)]
struct RefreshArgs {
    /// The mount point
    #[arg(value_name = "MERGED")]
    merged: PathBuf,
}

/// Runs `rovl ctl`.
pub fn run(args: &CtlArgs) -> Result<(), Failure> {
    match &args.order {
        Order::Refresh(args) => refresh(args),
    }
}

fn refresh(args: &RefreshArgs) -> Result<(), Failure> {
    let shown = args.merged.display();
    let mounted = mounted::find(&args.merged)?;
    if mounted.stat == Err(Errno::NOTCONN) {
        return Err(Failure::failed(format!(
            "{shown} is a rovl mount whose daemon has died; `rovl umount {shown}` takes it away"
        )));
    }
    let root = mounted::open_root(&mounted.target);
    let names = root
        .and_then(|root| ask_refresh(root.as_fd()))
        .map_err(|errno| {
            Failure::failed(match errno {
                Errno::PERM | Errno::ACCESS => {
                    format!(
                        "{shown} is another user's mount, which only that user and root may refresh"
                    )
                }
                other => format!("refreshing {shown}: {other}"),
            })
        })?;
    print(&format!(
        "{shown}: looked at anew; {names} names dropped from the caches\n"
    ))
}
