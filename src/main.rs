//! The `rovl` command: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    rovl::cli::main(std::env::args_os().collect())
}
