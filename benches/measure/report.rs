//! Text for people, JSON for machines.

use std::fmt::{Arguments, Write as _};
use std::io;

use serde_json::{Value, json};

use crate::rounds::{DISTURBED, Rounds, Spread};

/// Collects what was measured and prints it as it comes.
pub struct Report {
    json: Option<String>,
    entries: Vec<Value>,
    results: Vec<Summary>,
    disturbed: usize,
    run: usize,
    /// The processor, and how times are chosen: stands with each table.
    conditions: String,
}

/// One line over all runs.
struct Summary {
    table: String,
    name: String,
    isa: String,
    unit: String,
    figures: Vec<f64>,
    floor: Option<Bound>,
    goal: Option<Bound>,
}

/// One line: what is in the table it belongs to, besides the columns that all tables have.
pub struct Line<'a> {
    pub table: &'a str,
    pub name: String,
    pub isa: &'a str,
    pub tiles: String,
    pub error: Option<f64>,
    /// What the table is about, its unit, and the bound it must keep.
    pub figure: f64,
    pub spread: f64,
    pub unit: &'a str,
    pub floor: Option<Bound>,
    pub goal: Option<Bound>,
    pub work: Work,
}

/// What a call does.
#[derive(Clone, Copy)]
pub struct Work {
    pub flops: f64,
    /// Query rows: tokens of a sequence.
    pub tokens: Option<usize>,
    /// K and V as they are stored, of the keys that some row sees.
    pub bytes: Option<f64>,
}

impl Work {
    /// Of which nothing else is known.
    pub fn of_flops(flops: f64) -> Work {
        Work { flops, tokens: None, bytes: None }
    }
}

#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, x: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => x >= bound,
            Bound::AtMost(bound) => x <= bound,
        }
    }

    fn value(self) -> f64 {
        match self {
            Bound::AtLeast(bound) | Bound::AtMost(bound) => bound,
        }
    }
}

impl Report {
    pub fn new(json: Option<String>, conditions: String) -> Report {
        let (entries, results) = (Vec::new(), Vec::new());
        Report { json, entries, results, disturbed: 0, run: 0, conditions }
    }

    /// A line of text: on stderr, if stdout is JSON's.
    pub fn say(&self, line: Arguments) {
        match self.json.as_deref() {
            Some("-") => eprintln!("{line}"),
            _ => println!("{line}"),
        }
    }

    /// What follows belongs to the next run of all tables.
    pub fn next_run(&mut self, of: usize) {
        self.run += 1;
        if of > 1 {
            self.say(format_args!("\nRun {} of {of}", self.run));
        }
    }

    /// The heading of a table.
    pub fn heading(&mut self, words: &str) {
        self.say(format_args!("\n{words}\n({})", self.conditions));
        self.say(format_args!(
            "{:<34} {:<7} {:>9} {:>10} {:>9} {:>7} {:>8} {:>9} {:>7}  {:>6} {:>6}  {:>8}  {:>8}",
            "heads x queries x keys x dim",
            "ISA",
            "tiles",
            "us",
            "ms/token",
            "GB/s",
            "GFLOP/s",
            "figure",
            "±",
            "floor",
            "goal",
            "error",
            "peak"
        ));
    }

    pub fn line(&mut self, line: &Line, rounds: &Rounds) {
        self.remember(line);
        let seconds = rounds.contenders[0].seconds.median;
        let Work { flops, tokens, bytes } = line.work;
        let mut verdict = judge(line.figure, line.floor, line.goal).to_owned();
        let disturbed = disturbed(line.unit, line.figure, rounds.peak.relative());
        if let Some(why) = &disturbed {
            self.disturbed += 1;
            let _ = write!(verdict, "  (disturbed: {why})");
        }
        let per_token = tokens.filter(|&n| n > 0).map(|tokens| seconds * 1e3 / tokens as f64);
        let rate = bytes.map(|bytes| bytes / seconds / 1e9);
        let known =
            |x: Option<f64>, digits| x.map_or_else(|| "-".to_owned(), |x: f64| format!("{x:.digits$}"));
        let bound =
            |bound: Option<Bound>| bound.map_or(String::new(), |bound| format!("{:.2}", bound.value()));
        self.say(format_args!(
            "{:<34} {:<7} {:>9} {:>10.1} {:>9} {:>7} {:>8.1} {:>7.2} {} {:>6.2}  {:>6} {:>6}  {:>8}  {:>8.1}{verdict}",
            line.name,
            line.isa,
            line.tiles,
            seconds * 1e6,
            known(per_token, 4),
            known(rate, 2),
            flops / seconds / 1e9,
            line.figure,
            line.unit,
            line.spread,
            bound(line.floor),
            bound(line.goal),
            line.error.map_or("-".to_owned(), |error| format!("{error:.1e}")),
            rounds.peak.median / 1e9,
        ));
        self.entries.push(json!({
            "run": self.run,
            "table": line.table,
            "shape": line.name,
            "isa": line.isa,
            "tiles": line.tiles,
            "seconds": seconds,
            "ms_per_token": per_token.map(|ms| rounded(ms, 1e6)),
            "gb_per_second": rate.map(|rate| rounded(rate, 1e3)),
            "gflops": rounded(flops / seconds / 1e9, 1e3),
            "figure": rounded(line.figure, 1e4),
            "spread": rounded(line.spread, 1e4),
            "unit": line.unit,
            "floor": line.floor.map(Bound::value),
            "goal": line.goal.map(Bound::value),
            // What is not finite becomes null.
            "error": line.error,
            "peak_gflops": rounded(rounds.peak.median / 1e9, 1e3),
            "peak_spread": rounded(rounds.peak.relative(), 1e4),
            "rounds": rounds.count,
            "disturbed": disturbed,
        }));
    }

    fn remember(&mut self, line: &Line) {
        let same =
            |old: &&mut Summary| old.table == line.table && old.name == line.name && old.isa == line.isa;
        // A shape may stand in a table more than once; each run adds one figure to each line.
        let runs = self.run;
        if let Some(old) = self.results.iter_mut().find(|old| old.figures.len() < runs && same(old)) {
            old.figures.push(line.figure);
            return;
        }
        self.results.push(Summary {
            table: line.table.to_owned(),
            name: line.name.clone(),
            isa: line.isa.to_owned(),
            unit: line.unit.to_owned(),
            figures: vec![line.figure],
            floor: line.floor,
            goal: line.goal,
        });
    }

    /// The summary, and the file.
    pub fn finish(&self) -> io::Result<()> {
        if self.run > 1 {
            self.summary();
        }
        let verdict = |line: &Summary| judge(Spread::of(line.figures.clone()).median, line.floor, line.goal);
        let count = |wanted: &str| self.results.iter().filter(|line| verdict(line) == wanted).count();
        self.say(format_args!(
            "\n{} lines: {} below their floor, {} more below their goal; {} readings were disturbed.",
            self.results.len(),
            count(BELOW_FLOOR),
            count(GOAL_MISSED),
            self.disturbed
        ));
        let entries: Vec<_> = self.entries.iter().map(Value::to_string).collect();
        let text = format!("[\n{}\n]\n", entries.join(",\n"));
        match self.json.as_deref() {
            None => Ok(()),
            Some("-") => io::Write::write_all(&mut io::stdout(), text.as_bytes()),
            Some(path) => std::fs::write(path, text),
        }
    }

    /// Medians of all runs.
    fn summary(&self) {
        self.say(format_args!("\nMedians of {} runs, with the lowest and the highest", self.run));
        self.say(format_args!(
            "{:<8} {:<34} {:<7} {:>9} {:>8} {:>8}  {:>6} {:>6} {:>7}",
            "table",
            "heads x queries x keys x dim",
            "ISA",
            "median",
            "lowest",
            "highest",
            "floor",
            "goal",
            "to goal"
        ));
        for line in &self.results {
            let (lowest, highest) =
                line.figures.iter().fold((f64::INFINITY, 0f64), |(low, high), &x| (low.min(x), high.max(x)));
            let median = Spread::of(line.figures.clone()).median;
            let bound =
                |bound: Option<Bound>| bound.map_or(String::new(), |bound| format!("{:.2}", bound.value()));
            let distance = line.goal.map_or(String::new(), |goal| format!("{:+.2}", median - goal.value()));
            self.say(format_args!(
                "{:<8} {:<34} {:<7} {:>7.2} {} {:>8.2} {:>8.2}  {:>6} {:>6} {:>7}{}",
                line.table,
                line.name,
                line.isa,
                median,
                line.unit,
                lowest,
                highest,
                bound(line.floor),
                bound(line.goal),
                distance,
                judge(median, line.floor, line.goal),
            ));
        }
    }
}

/// To as many parts of one.
fn rounded(x: f64, parts: f64) -> f64 {
    (x * parts).round() / parts
}

/// Why a reading says nothing of the kernel, if it does not: somebody else was computing while the
/// probe ran, whose quartiles are `varied` apart, as a share.
pub fn disturbed(unit: &str, figure: f64, varied: f64) -> Option<String> {
    if unit == "%" && figure > 100.0 {
        return Some("more than 100 %, so that the probe was slowed down".to_owned());
    }
    (varied > DISTURBED).then(|| format!("the probe varied by ±{:.0} %", 100.0 * varied))
}

const BELOW_FLOOR: &str = "  BELOW FLOOR";
const GOAL_MISSED: &str = "  goal missed";

fn judge(figure: f64, floor: Option<Bound>, goal: Option<Bound>) -> &'static str {
    match (floor, goal) {
        (Some(floor), _) if !floor.holds(figure) => BELOW_FLOOR,
        (_, Some(goal)) if !goal.holds(figure) => GOAL_MISSED,
        _ => "",
    }
}
