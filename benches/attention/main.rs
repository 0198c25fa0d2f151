//! How fast attention is, as a share of what this core can multiply.
//!
//! ```text
//! cargo bench --bench attention                     all tables, with floors and goals
//! cargo bench --bench attention -- TABLE ...        floors layers features odd few threads
//!                                                   auto rival rising types decode call
//! cargo bench --bench attention -- heads=12 len=512 dim=64 [len_q=N] [len_kv=N] [stride=BYTES]
//!                                  [causal] [dtype=f16|bf16|i8|q8_0]
//!                                  [group=N] [window=N] [block=N] [per_token] [precise] [data=rising] [path=prefill|decode]   one shape
//! options: isa=NAME  threads=N  seconds=S (of each shape)  runs=N (of everything)  json=FILE (-: to stdout)
//! ```
//!
//! Every figure is a median of at least seven rounds in which calls and a multiply-add probe of the
//! same instruction set take turns; ± is half the distance of the quartiles. Errors are those of
//! the very outputs that were timed, against f64. With several runs, the last table has the median of each
//! line over them.

#![allow(unreachable_pub, reason = "a program: nothing is public")]

// By its path, so that its modules are beside it: the example `fa` has it, too.
#[path = "program.rs"]
mod program;

use std::process::exit;

fn main() {
    // Cargo's own word.
    let args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let options = program::Options::parse(args).unwrap_or_else(|arg| {
        eprintln!("not understood: {arg}\nusage: {}", program::usage());
        exit(2)
    });
    if let Err(error) = program::run(options) {
        eprintln!("{error}");
        exit(1)
    }
}
