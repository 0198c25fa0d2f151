//! How fast attention is, as a share of what this core can multiply.
//!
//! ```text
//! cargo bench --bench attention                     all tables, with floors and goals
//! cargo bench --bench attention -- TABLE ...        floors layers features odd few threads
//!                                                   auto rival rising types decode call
//! cargo bench --bench attention -- heads=12 len=512 dim=64 [len_q=N] [len_kv=N] [stride=BYTES]
//!                                  [causal] [dtype=f16|bf16|i8|q8_0]
//!                                  [group=N] [window=N] [block=N] [per_token] [precise] [data=rising] [path=prefill|decode]   one shape
//! options: isa=NAME  threads=N  seconds=S (of each shape)  runs=N (of everything)  json=FILE
//! ```
//!
//! Every figure is a median of at least seven rounds in which calls and a multiply-add probe of the
//! same instruction set take turns; ± is half the distance of the quartiles. Errors are those of
//! the very outputs that were timed, against f64. With several runs, the last table has the median of each
//! line over them.

#![allow(unreachable_pub, reason = "a program: nothing is public")]

mod align;
mod case;
mod error;
mod features;
mod measure;
mod probe;
mod report;
mod rival;
#[path = "../../tests/common/store.rs"]
mod store;
mod stream;
mod suite;
mod tables;
mod tile;

use std::time::Duration;

use case::{Case, Data};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use report::Report;
use tables::Tables;

#[global_allocator]
static ALLOCATOR: align::Lines = align::Lines;

fn main() {
    let mut tables = Vec::new();
    let mut shape = None;
    let mut threads = 1;
    let mut isa = None;
    let mut seconds = 1.0;
    let mut runs = 1;
    let mut json = None;
    for arg in std::env::args().skip(1).filter(|arg| arg != "--bench") {
        let (name, value) = arg.split_once('=').unwrap_or((&arg, ""));
        let number = || value.parse::<usize>().unwrap_or_else(|_| usage(&arg));
        let mut set = |change: &dyn Fn(&mut Case)| change(shape.get_or_insert(Case::square(12, 512, 64)));
        match (name, value) {
            (name, "") if Tables::NAMES.contains(&name) => tables.push(name.to_owned()),
            ("heads", _) => set(&|case| case.heads = number()),
            ("group", _) => set(&|case| case.group = number()),
            ("window", _) => set(&|case| case.window = number()),
            ("len", _) => set(&|case| (case.len_q, case.len_kv) = (number(), number())),
            ("len_q", _) => set(&|case| case.len_q = number()),
            ("len_kv", _) => set(&|case| case.len_kv = number()),
            ("dim", _) => set(&|case| case.dim = number()),
            ("stride", _) => set(&|case| case.row_stride = number()),
            ("causal", "") => set(&|case| case.causal = true),
            ("dtype", "f16") => set(&|case| case.dtype = Dtype::F16),
            ("dtype", "bf16") => set(&|case| case.dtype = Dtype::Bf16),
            ("dtype", "i8") => set(&|case| case.dtype = Dtype::I8),
            ("dtype", "q8_0") => set(&|case| case.dtype = Dtype::Q8_0),
            ("path", "prefill") => set(&|case| case.path = Some(Path::Prefill)),
            ("path", "decode") => set(&|case| case.path = Some(Path::Decode)),
            ("per_token", "") => set(&|case| case.per_token = true),
            ("precise", "") => set(&|case| case.precise = true),
            ("block", _) => set(&|case| case.block = number()),
            ("data", "rising") => set(&|case| case.data = Data::Rising),
            ("isa", _) => isa = Some(value.to_owned()),
            ("threads", _) => threads = number(),
            ("seconds", _) => seconds = value.parse().unwrap_or_else(|_| usage(&arg)),
            ("runs", _) => runs = number().max(1),
            ("json", _) => json = Some(value.to_owned()),
            _ => usage(&arg),
        }
    }
    let report = Report::new(json);
    let mut run = Tables { report, isa, threads, time: Duration::from_secs_f64(seconds) };
    for _ in 0..runs {
        run.report.next_run(runs);
        match &shape {
            Some(case) => run.shape(case),
            None if tables.is_empty() => Tables::NAMES.iter().for_each(|name| run.table(name)),
            None => tables.iter().for_each(|name| run.table(name)),
        }
    }
    run.report.finish();
}

fn usage(arg: &str) -> ! {
    eprintln!(
        "not understood: {arg}\n\
         usage: [{}] | [heads=N] [len=N] [len_q=N] [len_kv=N] [dim=N] [stride=BYTES] [causal] [dtype=f16|bf16|i8|q8_0] \
         [group=N] [window=N] [block=N] [per_token] [precise] [data=rising] [path=prefill|decode]\n\
         options: isa=NAME threads=N seconds=S runs=N json=FILE",
        Tables::NAMES.join("|")
    );
    std::process::exit(2)
}
