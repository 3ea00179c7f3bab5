//! Forking, and the pipe through which the daemon tells the command how it went.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};

use super::plan::MountPlan;
use super::{Failure, serve, warn};
use crate::sys::fs::{ForkResult, daemon_fork, setsid};

/// The daemon's end of the pipe. The first report counts; later ones have nobody to read them.
#[derive(Debug, Default)]
pub struct Reporter {
    pipe: Mutex<Option<File>>,
}

impl Reporter {
    fn new(pipe: OwnedFd) -> Reporter {
        Reporter {
            pipe: Mutex::new(Some(File::from(pipe))),
        }
    }

    /// Says how it went: code 0 and nothing, code 0 and something where this process is about to end, or an exit code
    /// and a message. `false`: it was said before, or nobody listens (foreground).
    pub fn send(&self, code: u8, message: &str) -> bool {
        let Some(mut pipe) = self.pipe.lock().take() else {
            return false;
        };
        let mut report = vec![code];
        report.extend(message.as_bytes());
        pipe.write_all(&report).is_ok()
    }
}

/// Serves `plan`: in this process with `foreground`, otherwise in a daemon, and then returns once the tree is
/// served.
pub fn start(plan: MountPlan) -> Result<(), Failure> {
    if plan.foreground {
        return serve::serve(plan, &Arc::default());
    }
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(|errno| Failure::failed(format!("starting the daemon: {errno}")))?;
    match daemon_fork() {
        Ok(ForkResult::Parent(child)) => {
            drop(writer);
            read_report(reader, child)
        }
        Ok(ForkResult::Child) => {
            drop(reader);
            let reporter = Arc::new(Reporter::new(writer));
            let code = match serve::serve(plan, &reporter) {
                Ok(()) => 0,
                Err(failure) => {
                    if !reporter.send(failure.code, &failure.message) {
                        tracing::error!("{}", failure.message);
                    }
                    failure.code
                }
            };
            std::process::exit(code.into())
        }
        Err(errno) => Err(Failure::failed(format!(
            "starting the daemon: fork failed: {errno}"
        ))),
    }
}

/// Waits for the daemon's report, or for its death.
fn read_report(reader: OwnedFd, child: Pid) -> Result<(), Failure> {
    let mut report = Vec::new();
    if let Err(error) = File::from(reader).read_to_end(&mut report) {
        return Err(Failure::failed(format!("waiting for the daemon: {error}")));
    }
    match report.split_first() {
        Some((0, b"")) => Ok(()),
        Some((0, _)) => {
            reap(child);
            Ok(())
        }
        Some((&code, message)) => {
            reap(child);
            Err(Failure {
                code,
                message: String::from_utf8_lossy(message).into_owned(),
            })
        }
        None => Err(Failure::failed(format!(
            "the daemon ended before the tree was served: {}",
            reap(child)
        ))),
    }
}

/// Waits for the daemon's end, so that nothing of it is left when the command returns.
fn reap(child: Pid) -> String {
    match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
        Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (_, Some(signal)) => format!("killed by signal {signal}"),
            _ => "for an unknown reason".to_owned(),
        },
        Ok(None) => "for an unknown reason".to_owned(),
        Err(errno) => {
            warn(&format!("waiting for the daemon: {errno}"));
            errno.to_string()
        }
    }
}

/// Cuts the ties to the command's terminal, pipes, session and directory.
pub fn detach() -> std::io::Result<()> {
    setsid()?;
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
