//! How fast attention is, as a share of what a core can multiply: what `cargo bench --bench
//! attention` and `fa bench` have in common. Shapes, contenders, the probe that takes turns with
//! them, tables, and the report.

#![allow(missing_docs, unreachable_pub, reason = "of two programs of this repository, not for others")]

mod align;
mod case;
mod error;
mod features;
mod probe;
mod report;
mod rounds;
mod scales;
#[path = "../../tests/common/store.rs"]
mod store;
mod stream;
mod suite;
mod tables;
mod tile;

use std::time::Duration;

use case::Data;
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::problem::Accuracy;
use lexopt::prelude::*;
use report::Report;
use rounds::Way;
use tables::Tables;

pub use align::Lines;
pub use case::{Arrays, Case};

/// Another way to compute the dense f32 cases of the table `rival`.
pub trait Rival {
    /// Computes the case once.
    fn run(&mut self, case: &Case, arrays: &Arrays, threads: usize);
    fn out(&self) -> &[f32];
}

/// Makes a rival for a case.
pub type NewRival = fn(&Case) -> Box<dyn Rival>;

/// What is measured, and how.
pub struct Options {
    rival: Option<NewRival>,
    tables: Vec<String>,
    shape: Option<Case>,
    isa: Option<String>,
    threads: usize,
    seconds: f64,
    best: bool,
    runs: usize,
    json: Option<String>,
}

impl Options {
    /// From the words of a command line; an error says what was not understood. The table `rival`
    /// needs a rival.
    pub fn parse(
        args: impl IntoIterator<Item = String>,
        rival: Option<NewRival>,
    ) -> Result<Options, lexopt::Error> {
        let (tables, shape, isa, json) = (Vec::new(), None, None, None);
        let mut options =
            Options { rival, tables, shape, isa, threads: 1, seconds: 1.0, best: false, runs: 1, json };
        let mut parser = lexopt::Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            match arg {
                // As with other programs it has no value, or one behind "=".
                Long("json") => {
                    let file = parser.optional_value().unwrap_or("-".into());
                    options.json = Some(file.string()?);
                }
                Long(name) => {
                    let name = name.to_owned();
                    options.set(&name, &mut || parser.value()?.string())?;
                }
                Value(word) => options.word(&word.string()?)?,
                Short(_) => return Err(arg.unexpected()),
            }
        }
        Ok(options)
    }

    /// A table, or an option as logs and scripts write it: `len=512` for `--len 512`, `causal` for
    /// `--causal`.
    fn word(&mut self, word: &str) -> Result<(), lexopt::Error> {
        if tables(self.rival).any(|name| name == word) {
            self.tables.push(word.to_owned());
            return Ok(());
        }
        let (name, value) = word.split_once('=').unzip();
        let value = || value.map(str::to_owned).ok_or_else(|| format!("{word:?} wants a value").into());
        self.set(name.unwrap_or(word), &mut { value })
    }

    /// An option; only those that have a value ask for it.
    fn set(
        &mut self,
        name: &str,
        value: &mut dyn FnMut() -> Result<String, lexopt::Error>,
    ) -> Result<(), lexopt::Error> {
        let bad = |value: &str| format!("{name} {value:?} is none that is known, or does not fit");
        let mut number = || {
            let value = value()?;
            value.parse::<usize>().map_err(|_| lexopt::Error::from(bad(&value)))
        };
        match name {
            "threads" => self.threads = number()?,
            "runs" => self.runs = number()?.max(1),
            "isa" => self.isa = Some(value()?),
            "best" => self.best = true,
            "json" => self.json = Some(value()?),
            "seconds" => {
                let value = value()?;
                let seconds = value.parse().ok().filter(|s| (0.0..1e6).contains(s));
                self.seconds = seconds.ok_or_else(|| bad(&value))?;
            }
            _ => {
                let mut case = self.shape.clone().unwrap_or(Case::square(12, 512, 64));
                match name {
                    "heads" => case.heads = number()?,
                    "group" => case.group = number()?,
                    "window" => case.window = number()?,
                    "len" => [case.len_q, case.len_kv] = [number()?; 2],
                    "len_q" => case.len_q = number()?,
                    "len_kv" => case.len_kv = number()?,
                    "dim" => case.dim = number()?,
                    "stride" => case.row_stride = number()?,
                    "block" => case.block = number()?,
                    "causal" => case.causal = true,
                    "per_token" => case.per_token = true,
                    "precise" => case.accuracy = Accuracy::Precise,
                    "fast" => case.accuracy = Accuracy::Fast,
                    "dtype" | "path" | "data" => {
                        let value = value()?;
                        match (name, value.as_str()) {
                            ("dtype", "f16") => case.dtype = Dtype::F16,
                            ("dtype", "bf16") => case.dtype = Dtype::Bf16,
                            ("dtype", "i8") => case.dtype = Dtype::I8,
                            ("dtype", "q8_0") => case.dtype = Dtype::Q8_0,
                            ("dtype", "q4_0") => case.dtype = Dtype::Q4_0,
                            ("dtype", "q4_1") => case.dtype = Dtype::Q4_1,
                            ("dtype", "q5_0") => case.dtype = Dtype::Q5_0,
                            ("dtype", "q5_1") => case.dtype = Dtype::Q5_1,
                            ("dtype", "iq4_nl") => case.dtype = Dtype::Iq4Nl,
                            ("dtype", "f8_e4m3") => case.dtype = Dtype::F8E4M3,
                            ("dtype", "f8_e5m2") => case.dtype = Dtype::F8E5M2,
                            ("dtype", "u8") => case.dtype = Dtype::U8,
                            ("dtype", "q15") => case.dtype = Dtype::Q15,
                            ("path", "prefill") => case.path = Some(Path::Prefill),
                            ("path", "decode") => case.path = Some(Path::Decode),
                            ("data", "rising") => case.data = Data::Rising,
                            _ => return Err(bad(&value).into()),
                        }
                    }
                    _ => return Err(format!("{name:?} is no table, size or option").into()),
                }
                self.shape = Some(case);
            }
        }
        Ok(())
    }
}

/// The tables that there are.
fn tables(rival: Option<NewRival>) -> impl Iterator<Item = &'static str> {
    Tables::NAMES.into_iter().filter(move |name| *name != "rival" || rival.is_some())
}

/// What [`Options::parse`] takes.
pub fn usage(rival: Option<NewRival>) -> String {
    format!(
        "[{}] | [--heads N] [--len N] [--len_q N] [--len_kv N] [--dim N] [--stride BYTES] [--causal] \
         [--dtype f16|bf16|i8|q8_0|q4_0|q4_1|q5_0|q5_1|iq4_nl|f8_e4m3|f8_e5m2|u8|q15] [--group N] [--window N] [--block N] [--per_token] [--precise] [--fast] [--data rising] \
         [--path prefill|decode]\n\
         options: --isa NAME --threads N --seconds S --best --runs N --json[=FILE] (without FILE: to stdout, and text to stderr)\n\
         (heads=N for --heads N, and so on, will do, too)",
        tables(rival).collect::<Vec<_>>().join("|")
    )
}

/// What the system calls the processor, or its architecture.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let name = fields.find(|(key, _)| key.trim() == "model name");
    name.map_or(std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Measures, and prints what comes out.
pub fn run(options: Options) -> std::io::Result<()> {
    let Options { rival, tables: chosen, shape, isa, threads, seconds, best, runs, json } = options;
    let times = if best { "best of all calls against the best probe" } else { "medians of rounds" };
    let tuning = flash_attention::machine::Machine::get().tuning.name;
    let report = Report::new(json, format!("{}, tuned as {tuning}; {times}", processor()));
    let way = Way { time: Duration::from_secs_f64(seconds), best };
    let mut run = Tables { report, rival, isa, threads, way };
    for _ in 0..runs {
        run.report.next_run(runs);
        match &shape {
            Some(case) => run.shape(case),
            None if chosen.is_empty() => tables(rival).for_each(|name| run.table(name)),
            None => chosen.iter().for_each(|name| run.table(name)),
        }
    }
    run.report.finish()
}
