//! How fast attention is, as a share of what this core can multiply.
//!
//! ```text
//! cargo bench -p benches --bench attention                all tables, with floors and goals
//! cargo bench -p benches --bench attention -- TABLE ...   floors layers features masks sparse odd
//!                                                         few grouped latent threads auto rival
//!                                                         rising types scales decode layouts
//!                                                         weights sums memory call
//! cargo bench -p benches --bench attention -- --heads 12 --len 512 --dim 64         one shape
//!     [--len_q N] [--len_kv N] [--stride BYTES] [--causal]
//!     [--dtype f16|bf16|i8|q8_0|q4_0|q4_1|q5_0|q5_1|iq4_nl|f8_e4m3|f8_e5m2|u8|q15]
//!     [--group N] [--window N] [--rows N] [--block N] [--per_token] [--precise] [--fast]
//!     [--data rising] [--path prefill|decode]
//! options: --isa NAME  --threads N  --seconds S (of each shape)  --runs N (of everything)
//!          --json[=FILE] (without FILE: to stdout)
//! ```
//!
//! Every figure is a median of at least seven rounds in which calls and a multiply-add probe of the
//! same instruction set take turns; ± is half the distance of the quartiles. Errors are those of
//! the very outputs that were timed, against f64. With several runs, the last table has the median
//! of each line over them. A share above 100 % cannot be, and is marked as disturbed.

#![allow(unreachable_pub, reason = "a program: nothing is public")]

mod rival;

use std::process::exit;

use rival::Rival;

#[global_allocator]
static ALLOCATOR: measure::Lines = measure::Lines;

fn main() {
    // Cargo's own word.
    let args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let options = measure::Options::parse(args, Some(Rival::boxed)).unwrap_or_else(|error| {
        eprintln!("not understood: {error}\nusage: {}", measure::usage(Some(Rival::boxed)));
        exit(2)
    });
    if let Err(error) = measure::run(options) {
        eprintln!("{error}");
        exit(1)
    }
}
