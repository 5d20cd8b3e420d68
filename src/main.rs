//! The `tollgate` command: parses the command line and does what it says.

mod commands;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use tollgate::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// After how many milliseconds the allocator gives back what was freed; it looks when a process begins. Its default, a
/// second, would keep much of what the cache has dropped beside what came in its place.
const PURGE_DELAY: (&str, &str) = ("MIMALLOC_PURGE_DELAY", "10");

fn main() -> ExitCode {
    let command = Cli::of_process().command;
    if command.serves() && std::env::var_os(PURGE_DELAY.0).is_none() {
        begin_again();
    }
    match commands::execute(&command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tollgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The same program in this process, with that setting. It returns only where that cannot be done; then the allocator's
/// default has to do.
fn begin_again() {
    let (Ok(program), mut arguments) = (std::env::current_exe(), std::env::args_os()) else { return };
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let _ = command.args(arguments).env(PURGE_DELAY.0, PURGE_DELAY.1).exec();
}
