//! The command line: parse, run, print, exit code. Everything it does is in the library; see `cli/`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
