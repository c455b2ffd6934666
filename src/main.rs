//! The binary: parse, dispatch, exit.

use std::process::ExitCode;

use clap::Parser;
use mainstay::cli;

fn main() -> ExitCode {
    match cli::Cli::try_parse() {
        Ok(parsed) => cli::run(parsed),
        Err(error) => {
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { 64 } else { 0 })
        }
    }
}
