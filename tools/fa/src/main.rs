//! `fa`: what the library makes of this machine and of a shape, and how fast it is.
//!
//! ```text
//! cargo install --path tools/fa   (or, in place of `fa`: cargo run --release -p fa --)
//! fa info
//! fa check --heads 32/8 --len-q 1 --len-kv 8192 --kv bf16
//! fa bench decode --seconds 0.2
//! fa tune --heads 32 --len 2048 --dim 128
//! fa help
//! ```
//!
//! Exit codes: 0, or 1 if the answer is no (`check`: the library refuses that; a file cannot be
//! written), or 2 if the question was not understood.

#![allow(unreachable_pub, reason = "a program: nothing is public")]

mod check;
mod info;
mod options;
mod shape;

use std::io::{self, Write};
use std::process::ExitCode;

use options::{Given, Known};
use serde_json::Value;

// Tensors of the benchmark begin at cache lines, as those of engines do.
#[global_allocator]
static ALLOCATOR: measure::Lines = measure::Lines;

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let Reply { code, out, err } = run(args);
    // A reader that has seen enough, as `head`, is no failure.
    let (printed, _) = (io::stdout().write_all(out.as_bytes()), io::stderr().write_all(err.as_bytes()));
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::from(1),
        _ => ExitCode::from(code),
    }
}

/// What a command has to say.
#[derive(Default)]
struct Reply {
    code: u8,
    out: String,
    err: String,
}

/// The answer in the form that was asked for.
fn answer(code: u8, json: bool, text: String, data: Value) -> Reply {
    let out = if json { format!("{data}\n") } else { text };
    Reply { code, out, ..Reply::default() }
}

const HELP: &str = "\
fa: exact attention on CPUs, looked at from outside

usage: fa info  [--threads N] [--json]     this machine: CPU, caches, kernels, what they choose for some shapes
       fa check [shape] [--json]           one shape: whether it is accepted, path, kernel, tiles, parts, workspace
       fa bench [what] [--json]            how fast it is: ms a token, GB/s, share of what this machine can do
       fa tune  [shape] [--json]           whether other tile sizes are faster for a shape than those that are chosen
       fa help, fa COMMAND --help, fa --version

Exit codes: 0; 1 if the answer is no; 2 if the question was not understood.
";

fn run(args: Vec<String>) -> Reply {
    let mut args = args.into_iter();
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    match command.as_str() {
        "info" => with(info::KNOWN, info::HELP, rest, info::run),
        "check" => with(check::KNOWN, check::HELP, rest, check::run),
        "bench" => measured(BENCH, &measure::usage(None), rest, |options| {
            Ok(measure::run(measure::Options::parse(options, None)?))
        }),
        "tune" => measured(TUNE, &measure::tune_usage(), rest, |options| {
            Ok(measure::tune(measure::Options::parse(options, None)?.to_tune()?))
        }),
        "help" | "--help" | "-h" => Reply { out: HELP.to_owned(), ..Reply::default() },
        "--version" | "-V" => {
            Reply { out: format!("fa {}\n", env!("CARGO_PKG_VERSION")), ..Reply::default() }
        }
        "" => Reply { code: 2, err: HELP.to_owned(), ..Reply::default() },
        other => {
            let meant = measure::did_you_mean(other, ["info", "check", "bench", "tune", "help"]);
            misunderstood(&format!("there is no command {other:?}{meant}"), "fa help")
        }
    }
}

fn with(known: &[Known], about: &str, args: Vec<String>, run: fn(&Given) -> Result<Reply, String>) -> Reply {
    if asks_for_help(&args) {
        return Reply { out: format!("{about}\n{}", options::help(known)), ..Reply::default() };
    }
    let command = about.split([' ', ':']).nth(1).unwrap_or_default();
    match Given::parse(known, args).map_err(|e| e.to_string()).and_then(|given| run(&given)) {
        Ok(reply) => reply,
        Err(why) => misunderstood(&why, &format!("fa {command} --help")),
    }
}

fn asks_for_help(args: &[String]) -> bool {
    args.iter().any(|arg| arg == "--help" || arg == "-h")
}

fn misunderstood(why: &str, help: &str) -> Reply {
    Reply { code: 2, err: format!("fa: {why}\nTry: {help}\n"), ..Reply::default() }
}

const BENCH: &str = "\
fa bench: how fast attention is, next to a probe of what this machine can do. Without words all tables, which takes
half an hour; a table or a shape takes seconds to minutes. Lines appear as they are measured.

usage: fa bench [TABLE...] [options], fa bench [shape] [options]
";

const TUNE: &str = "\
fa tune: whether other tile sizes (block_q and block_kv of fa_attention) are faster for a shape than those that the
library chooses, each tried in turns with these. The last line says what to set, if anything.

usage: fa tune [shape] [options]
";

/// What measures, and prints meanwhile: what takes long should be seen as it comes. With --json
/// that is on stderr.
fn measured(
    about: &str,
    usage: &str,
    args: Vec<String>,
    run: impl FnOnce(Vec<String>) -> Result<io::Result<()>, lexopt::Error>,
) -> Reply {
    if asks_for_help(&args) {
        return Reply { out: format!("{about}\n{usage}"), ..Reply::default() };
    }
    let command = about.split([' ', ':']).nth(1).unwrap_or_default();
    match run(args) {
        Ok(Ok(())) => Reply::default(),
        Ok(Err(error)) => Reply { code: 1, err: format!("fa: {error}\n"), ..Reply::default() },
        Err(error) => misunderstood(&error.to_string(), &format!("fa {command} --help")),
    }
}

#[cfg(test)]
mod tests;
