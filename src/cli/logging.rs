//! Where the daemon's log goes: stderr (which is /dev/null once it serves in the background), or the file
//! that `ROVL_LOG_FILE` names. How much: `ROVL_LOG`, in the syntax of `RUST_LOG`.

use std::fs::File;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;

use super::Failure;
use super::plan::MountPlan;

/// Starts logging. To be called once, before the first thread.
pub fn start(plan: &MountPlan) -> Result<(), Failure> {
    let usual = match (plan.debug, plan.foreground) {
        (true, _) => "debug",
        (false, true) => "info",
        (false, false) => "warn",
    };
    let filter = EnvFilter::try_from_env("ROVL_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false);
    let started = match std::env::var_os("ROVL_LOG_FILE").filter(|path| !path.is_empty()) {
        Some(path) => {
            let file = File::options()
                .append(true)
                .create(true)
                .open(&path)
                .map_err(|error| {
                    let path = path.to_string_lossy();
                    Failure::failed(format!(
                        "the log file {path} (ROVL_LOG_FILE) can't be opened: {error}"
                    ))
                })?;
            builder.with_writer(Arc::new(file)).try_init()
        }
        None => builder.with_writer(std::io::stderr).try_init(),
    };
    started.map_err(|error| Failure::failed(format!("starting the log: {error}")))
}

/// Logs panics of any thread, with their place, instead of writing them to stderr, which may be /dev/null.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let trace = std::backtrace::Backtrace::capture();
        tracing::error!("internal error: {info}\n{trace}");
    }));
}
