//! The binary: parse, dispatch, exit. And where all memory comes from, that of ONNX Runtime and SQLite too.

use std::process::ExitCode;

use clap::Parser;
use mainstay::cli;
use tikv_jemallocator::Jemalloc;

/// What is freed goes back to the machine after a second (.cargo/config.toml): the system's allocator keeps what a crowd of connections took
/// for as long as anything lies above it.
#[global_allocator]
static MEMORY: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    match cli::Cli::try_parse() {
        Ok(parsed) => cli::run(parsed),
        Err(error) => {
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { 64 } else { 0 })
        }
    }
}
