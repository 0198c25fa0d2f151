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
mod words;

use std::time::Duration;

use case::Data;
use flash_attention::dtype::Dtype;
use flash_attention::kernel::{self, Path};
use flash_attention::problem::Accuracy;
use lexopt::prelude::*;
use report::Report;
use rounds::Way;
use tables::Tables;

pub use align::Lines;
pub use case::{Arrays, Case};
pub use report::disturbed;
pub use words::did_you_mean;

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
    /// Names of the options that were given.
    given: Vec<String>,
}

/// Options with a value of their own, and switches.
const NAMES: [&str; 23] = [
    "threads",
    "runs",
    "isa",
    "best",
    "json",
    "seconds",
    "heads",
    "group",
    "window",
    "len",
    "len_q",
    "len_kv",
    "dim",
    "stride",
    "block",
    "rows",
    "causal",
    "per_token",
    "precise",
    "fast",
    "dtype",
    "path",
    "data",
];

/// Names of storage types.
const TYPES: [(&str, Dtype); 14] = [
    ("f32", Dtype::F32),
    ("f16", Dtype::F16),
    ("bf16", Dtype::Bf16),
    ("i8", Dtype::I8),
    ("q8_0", Dtype::Q8_0),
    ("q4_0", Dtype::Q4_0),
    ("q4_1", Dtype::Q4_1),
    ("q5_0", Dtype::Q5_0),
    ("q5_1", Dtype::Q5_1),
    ("iq4_nl", Dtype::Iq4Nl),
    ("f8_e4m3", Dtype::F8E4M3),
    ("f8_e5m2", Dtype::F8E5M2),
    ("u8", Dtype::U8),
    ("q15", Dtype::Q15),
];

/// One of some words, as what stands for it.
fn choose<T: Copy>(name: &str, value: &str, known: &[(&str, T)]) -> Result<T, lexopt::Error> {
    if let Some((_, found)) = known.iter().find(|(word, _)| *word == value) {
        return Ok(*found);
    }
    let words = || known.iter().map(|(word, _)| *word);
    let all = words().collect::<Vec<_>>().join(", ");
    Err(format!("{name} {value:?} is none of {all}{}", did_you_mean(value, words())).into())
}

impl Options {
    /// From the words of a command line; an error says what was not understood. The table `rival`
    /// needs a rival.
    pub fn parse(
        args: impl IntoIterator<Item = String>,
        rival: Option<NewRival>,
    ) -> Result<Options, lexopt::Error> {
        let (tables, given, shape, isa, json) = (Vec::new(), Vec::new(), None, None, None);
        let mut options = Options {
            rival,
            tables,
            shape,
            isa,
            threads: 1,
            seconds: 1.0,
            best: false,
            runs: 1,
            json,
            given,
        };
        let mut parser = lexopt::Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            match arg {
                // As with other programs it has no value, or one behind "=".
                Long("json") => {
                    options.once("json")?;
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
        if let Some(case) = &options.shape {
            case.check()?;
            if let Some(table) = options.tables.first() {
                return Err(format!("{table:?} is a table of shapes, and one shape is given, too").into());
            }
        }
        Ok(options)
    }

    /// For [`tune`], which has a shape and no tables.
    ///
    /// # Errors
    /// What was not understood.
    pub fn to_tune(self) -> Result<Options, lexopt::Error> {
        match self.tables.first() {
            Some(table) => Err(format!("{table:?} is a table of the benchmark, no size or option").into()),
            None => Ok(self),
        }
    }

    /// Refuses an option that has been given.
    fn once(&mut self, name: &str) -> Result<(), lexopt::Error> {
        if self.given.iter().any(|given| given == name) {
            return Err(format!("{name} is given twice").into());
        }
        self.given.push(name.to_owned());
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.given.iter().any(|given| given == name)
    }

    /// A table, or an option as logs and scripts write it: `len=512` for `--len 512`, `causal` for
    /// `--causal`.
    fn word(&mut self, word: &str) -> Result<(), lexopt::Error> {
        if tables(self.rival).any(|name| name == word) {
            self.once(word)?;
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
        // As other programs write it.
        let name = &name.replace('-', "_");
        if !NAMES.contains(&name.as_str()) {
            let known = NAMES.into_iter().chain(tables(self.rival));
            return Err(format!("{name:?} is no table, size or option{}", did_you_mean(name, known)).into());
        }
        self.once(name)?;
        let mut number = || {
            let value = value()?;
            let bad = || lexopt::Error::from(format!("{name} {value:?} is no number that fits"));
            value.parse::<usize>().map_err(|_| bad())
        };
        match name.as_str() {
            "threads" => {
                self.threads = number()?;
                if !(1..=256).contains(&self.threads) {
                    return Err("threads is 1 to 256".into());
                }
            }
            "runs" => self.runs = number()?.max(1),
            "isa" => {
                let known: Vec<_> = kernel::available().map(|row| row.isa().to_string_lossy()).collect();
                let known: Vec<_> = known.iter().map(|name| (&**name, ())).collect();
                let isa = value()?;
                choose("isa", &isa, &known)?;
                self.isa = Some(isa);
            }
            "best" => self.best = true,
            "json" => self.json = Some(value()?),
            "seconds" => {
                let value = value()?;
                let seconds = value.parse().ok().filter(|s| (0.0..1e6).contains(s));
                let bad = || format!("seconds {value:?} is no time from 0 to 1000000");
                self.seconds = seconds.ok_or_else(bad)?;
            }
            _ => {
                let mut case = self.shape.clone().unwrap_or(Case::square(12, 512, 64));
                match name.as_str() {
                    "heads" => case.heads = number()?,
                    "group" => case.group = number()?,
                    "window" => case.window = number()?,
                    // Of rows or keys alone counts more, wherever it stands.
                    "len" => {
                        let len = number()?;
                        let [of_q, of_kv] = ["len_q", "len_kv"].map(|name| self.has(name));
                        (case.len_q, case.len_kv) =
                            (if of_q { case.len_q } else { len }, if of_kv { case.len_kv } else { len });
                    }
                    "len_q" => case.len_q = number()?,
                    "len_kv" => case.len_kv = number()?,
                    "dim" => case.dim = number()?,
                    "stride" => case.row_stride = number()?,
                    "block" => case.block = number()?,
                    "rows" => case.rows = number()?,
                    "causal" => case.causal = true,
                    "per_token" => case.per_token = true,
                    "precise" => case.accuracy = Accuracy::Precise,
                    "fast" => case.accuracy = Accuracy::Fast,
                    "dtype" => case.dtype = choose(name, &value()?, &TYPES)?,
                    "path" => {
                        let known = [("prefill", Path::Prefill), ("decode", Path::Decode)];
                        case.path = Some(choose(name, &value()?, &known)?);
                    }
                    _ => {
                        let known = [("normal", Data::Normal), ("rising", Data::Rising)];
                        case.data = choose(name, &value()?, &known)?;
                    }
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

/// A shape of one's own, as [`Options::parse`] takes it.
const SHAPE: &str = "\
  shape: --heads N, --group N (query heads that share one of K and V), --len N, --len_q N, --len_kv N, --dim N,
    --causal, --window N (keys that a query sees, itself the last), --stride BYTES (from token to token, heads
    interleaved), --dtype f32|f16|bf16|i8|q8_0|q4_0|q4_1|q5_0|q5_1|iq4_nl|f8_e4m3|f8_e5m2|u8|q15, --per_token (scales of
    K), --precise, --fast, --rows N and --block N (query rows and keys of a tile), --data normal|rising,
    --path prefill|decode
  options: --isa NAME, --threads N, --seconds S (of each line), --best (the best call against the best probe),
    --runs N, --json[=FILE] (without FILE to stdout, and text to stderr)
  heads=N for --heads N, and --len-q for --len_q, will do, too.
";

/// What the columns of a table are.
const COLUMNS: &str = "\
columns: us of a call; ms/token, that time for each query row; GB/s, K and V of the keys that are seen, as they are
  stored, read once in that time; GFLOP/s; the figure that the heading names, with half the distance of its quartiles;
  its floor and goal; the largest error against f64; the peak that the probe reached. A share above 100 % cannot be,
  and is marked as disturbed, as are lines whose probe varied: measure these again.
";

/// What [`Options::parse`] takes.
pub fn usage(rival: Option<NewRival>) -> String {
    format!("tables: {}\n{SHAPE}\n{COLUMNS}", tables(rival).collect::<Vec<_>>().join("|"))
}

/// What [`Options::to_tune`] takes.
pub fn tune_usage() -> String {
    format!("{SHAPE}\n{COLUMNS}")
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
    let (runs, rival) = (options.runs, options.rival);
    let (chosen, shape) = (options.tables.clone(), options.shape.clone());
    let mut run = begin(options);
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

/// Tries tile sizes for the shape of the options, in place of those that the library chooses.
pub fn tune(options: Options) -> std::io::Result<()> {
    let runs = options.runs;
    let case = options.shape.clone().unwrap_or(Case::square(12, 512, 64));
    let mut run = begin(options);
    let mut found = Vec::new();
    for _ in 0..runs {
        run.report.next_run(runs);
        found.extend(run.tune(&case));
    }
    run.report.finish()?;
    found.iter().for_each(|words| run.report.say(format_args!("{words}")));
    Ok(())
}

fn begin(options: Options) -> Tables {
    let Options { rival, isa, threads, seconds, best, json, .. } = options;
    let times = if best { "best of all calls against the best probe" } else { "medians of rounds" };
    let tuning = flash_attention::machine::Machine::get().tuning.name;
    let report = Report::new(json, format!("{}, tuned as {tuning}; {times}", processor()));
    Tables { report, rival, isa, threads, way: Way { time: Duration::from_secs_f64(seconds), best } }
}
