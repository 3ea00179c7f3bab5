//! What the serving process does: check, open, mount, serve, clean up.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;

use super::daemon::{Reporter, detach};
use super::plan::MountPlan;
use super::state::{State, watch_signals};
use super::{Failure, beside, logging, warn};
use crate::fuse::{Passthrough, Session, SessionError, passthrough_refused};
use crate::overlay::validate::{ValidateError, Validated, validate, validate_mount_point};
use crate::overlay::{CACHED_DESCRIPTORS, Overlay};
use crate::sys::fs::{make_room_for_descriptors, raise_nofile, set_umask};

/// Serves `plan` until it is unmounted or a signal comes. Whatever happens, no mount point stays behind.
pub fn serve(plan: MountPlan, reporter: &Arc<Reporter>) -> Result<(), Failure> {
    logging::start(&plan)?;
    logging::log_panics();
    if beside::mount(&plan) {
        reporter.send(0, "another daemon serves it");
        return Ok(());
    }
    let target = plan.request.target.clone();
    let state = Arc::new(State::default());
    open_files();
    watch_signals(&state, reporter)?;
    let served = catch_unwind(AssertUnwindSafe(|| bring_up(plan, &state, reporter)));
    if let Err(error) = state.take_away() {
        tracing::error!("unmounting {}: {error}", target.display());
    }
    served
        .unwrap_or_else(|_| Err("internal error: see the log (ROVL_LOG_FILE=…)".into()))
        .map_err(|problem| {
            let code = match problem.downcast_ref::<ValidateError>() {
                Some(error) if error.is_usage() => super::MISUSED,
                _ => super::FAILED,
            };
            Failure {
                code,
                message: format!("can't mount {}: {}", target.display(), explain(&*problem)),
            }
        })
}

/// Lets this process have many open files, at once. Before there are threads: that is faster.
fn open_files() {
    let limit = raise_nofile().unwrap_or_else(|errno| {
        tracing::warn!("the limit on open files can't be raised: {errno}");
        1024
    });
    let held = u32::try_from(limit)
        .unwrap_or(u32::MAX)
        .min(CACHED_DESCRIPTORS);
    if let Err(errno) = make_room_for_descriptors(std::io::stderr().as_fd(), held) {
        tracing::debug!("the table of open files grows by and by: {errno}");
    }
}

type Problem = Box<dyn std::error::Error>;

/// An error with its causes, those left out that the error's own text tells already.
fn explain(problem: &(dyn std::error::Error + 'static)) -> String {
    let mut text = problem.to_string();
    let mut cause = problem.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}

fn bring_up(plan: MountPlan, state: &Arc<State>, reporter: &Arc<Reporter>) -> Result<(), Problem> {
    // Objects are created with the mode that was asked for: the client's umask is applied, not ours.
    set_umask(0);
    let MountPlan {
        config,
        mut session,
        mut request,
        foreground,
        ..
    } = plan;
    settle_passthrough(&mut session.passthrough)?;
    let validated = validate(&config)?;
    request.target = validate_mount_point(&validated, &request.target)?.path;
    validated.warnings.iter().for_each(|warning| warn(warning));
    keep_upper(state, &validated, config.volatile || !config.fsync)?;

    let overlay = Overlay::open(&config, validated)?;
    let mounted = state.mount(&request)?;
    session.clone_fd &= mounted.may_clone;
    let session = Session::new(overlay, mounted.fd, &session)?;
    announce(request.target, foreground, state, reporter)?;
    session.run()?;
    Ok(())
}

/// Says at once, on stderr, what the session would only write to the log.
fn settle_passthrough(asked: &mut Passthrough) -> Result<(), SessionError> {
    match (*asked, passthrough_refused()) {
        (Passthrough::On, Some(why)) => return Err(SessionError::Passthrough(why)),
        (Passthrough::Preferred, Some(why)) => {
            warn(&format!("mount option 'passthrough=on' ignored: {why}"));
            *asked = Passthrough::Off;
        }
        _ => {}
    }
    Ok(())
}

fn keep_upper(state: &State, validated: &Validated, throw_away: bool) -> Result<(), Problem> {
    if let (Some((_, upper)), false) = (&validated.upper, throw_away) {
        state.keep_upper(upper.try_clone()?);
    }
    Ok(())
}

/// Starts a thread that asks for the root of the merged tree, as any client would, and reports success once
/// the session, which this thread goes on to run, has answered.
fn announce(
    target: PathBuf,
    foreground: bool,
    state: &Arc<State>,
    reporter: &Arc<Reporter>,
) -> std::io::Result<()> {
    let (state, reporter) = (Arc::clone(state), Arc::clone(reporter));
    let probe = move || {
        let problem = match (answers(&target), foreground) {
            (Ok(()), true) => None,
            (Ok(()), false) => detach()
                .err()
                .map(|error| format!("detaching the daemon: {error}")),
            (Err(errno), _) => Some(format!("the tree is mounted but not served: {errno}")),
        };
        match problem {
            None => {
                tracing::info!("serving {}", target.display());
                reporter.send(0, "");
            }
            Some(problem) => {
                tracing::error!("{problem}");
                reporter.send(
                    super::FAILED,
                    &format!("can't mount {}: {problem}", target.display()),
                );
                if let Err(error) = state.take_away() {
                    tracing::error!("unmounting {}: {error}", target.display());
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(probe)
        .map(drop)
}

/// Asks the daemon for the attributes of the root.
fn answers(target: &Path) -> Result<(), Errno> {
    match rustix::fs::statx(
        CWD,
        target,
        AtFlags::STATX_FORCE_SYNC,
        StatxFlags::BASIC_STATS,
    ) {
        // Without allow_other root itself may not look into a user's mount.
        Ok(_) | Err(Errno::ACCESS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
