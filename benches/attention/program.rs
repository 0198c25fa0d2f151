//! The benchmark as `cargo bench --bench attention` and `fa bench` run it: what is asked for, and the tables.

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

/// What is measured, and how.
pub struct Options {
    tables: Vec<String>,
    shape: Option<Case>,
    isa: Option<String>,
    threads: usize,
    seconds: f64,
    runs: usize,
    json: Option<String>,
}

impl Options {
    /// From the words of a command line; an error is the word that was not understood.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Options, String> {
        let (tables, shape, isa, json) = (Vec::new(), None, None, None);
        let mut options = Options { tables, shape, isa, threads: 1, seconds: 1.0, runs: 1, json };
        for arg in args {
            options.set(&arg).ok_or(arg)?;
        }
        Ok(options)
    }

    fn set(&mut self, arg: &str) -> Option<()> {
        let (name, value) = arg.split_once('=').unwrap_or((arg, ""));
        let number = value.parse::<usize>();
        if value.is_empty() && Tables::NAMES.contains(&name) {
            self.tables.push(name.to_owned());
            return Some(());
        }
        match name {
            "isa" => self.isa = Some(value.to_owned()),
            "threads" => self.threads = number.ok()?,
            "seconds" => self.seconds = value.parse().ok().filter(|s| (0.0..1e6).contains(s))?,
            "runs" => self.runs = number.ok()?.max(1),
            "json" => self.json = Some(value.to_owned()),
            _ => {
                let case = self.shape.get_or_insert(Case::square(12, 512, 64));
                match (name, value) {
                    ("heads", _) => case.heads = number.ok()?,
                    ("group", _) => case.group = number.ok()?,
                    ("window", _) => case.window = number.ok()?,
                    ("len", _) => [case.len_q, case.len_kv] = [number.ok()?; 2],
                    ("len_q", _) => case.len_q = number.ok()?,
                    ("len_kv", _) => case.len_kv = number.ok()?,
                    ("dim", _) => case.dim = number.ok()?,
                    ("stride", _) => case.row_stride = number.ok()?,
                    ("causal", "") => case.causal = true,
                    ("dtype", "f16") => case.dtype = Dtype::F16,
                    ("dtype", "bf16") => case.dtype = Dtype::Bf16,
                    ("dtype", "i8") => case.dtype = Dtype::I8,
                    ("dtype", "q8_0") => case.dtype = Dtype::Q8_0,
                    ("path", "prefill") => case.path = Some(Path::Prefill),
                    ("path", "decode") => case.path = Some(Path::Decode),
                    ("per_token", "") => case.per_token = true,
                    ("precise", "") => case.precise = true,
                    ("block", _) => case.block = number.ok()?,
                    ("data", "rising") => case.data = Data::Rising,
                    _ => return None,
                }
            }
        }
        Some(())
    }
}

/// What [`Options::parse`] takes.
pub fn usage() -> String {
    format!(
        "[{}] | [heads=N] [len=N] [len_q=N] [len_kv=N] [dim=N] [stride=BYTES] [causal] [dtype=f16|bf16|i8|q8_0] \
         [group=N] [window=N] [block=N] [per_token] [precise] [data=rising] [path=prefill|decode]\n\
         options: isa=NAME threads=N seconds=S runs=N json=FILE (-: to stdout, and text to stderr)",
        Tables::NAMES.join("|")
    )
}

/// Measures, and prints what comes out.
pub fn run(options: Options) -> std::io::Result<()> {
    let Options { tables, shape, isa, threads, seconds, runs, json } = options;
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
    run.report.finish()
}
