//! Text for people, JSON for machines.

use std::fmt::Write as _;

use crate::measure::{DISTURBED, Rounds};

/// Collects what was measured and prints it as it comes.
pub struct Report {
    json: Option<String>,
    entries: Vec<String>,
    missed_floors: usize,
    missed_goals: usize,
    disturbed: usize,
    lines: usize,
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
    pub flops: f64,
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
    pub fn new(json: Option<String>) -> Report {
        Report { json, entries: Vec::new(), missed_floors: 0, missed_goals: 0, disturbed: 0, lines: 0 }
    }

    /// The heading of a table.
    pub fn heading(&mut self, words: &str) {
        println!("\n{words}");
        println!(
            "{:<34} {:<7} {:>9} {:>10} {:>8} {:>9} {:>7}  {:>6} {:>6}  {:>8}  {:>8}",
            "heads x queries x keys x dim",
            "ISA",
            "tiles",
            "us",
            "GFLOP/s",
            "figure",
            "±",
            "floor",
            "goal",
            "error",
            "peak"
        );
    }

    pub fn line(&mut self, line: &Line, rounds: &Rounds) {
        self.lines += 1;
        let seconds = rounds.contenders[0].seconds.median;
        let mut verdict = String::new();
        if line.floor.is_some_and(|bound| !bound.holds(line.figure)) {
            self.missed_floors += 1;
            verdict += "  BELOW FLOOR";
        } else if line.goal.is_some_and(|bound| !bound.holds(line.figure)) {
            self.missed_goals += 1;
            verdict += "  goal missed";
        }
        if rounds.peak.relative() > DISTURBED {
            self.disturbed += 1;
            let _ = write!(
                verdict,
                "  (disturbed: the probe varied by ±{:.0} %)",
                100.0 * rounds.peak.relative()
            );
        }
        let bound =
            |bound: Option<Bound>| bound.map_or(String::new(), |bound| format!("{:.2}", bound.value()));
        println!(
            "{:<34} {:<7} {:>9} {:>10.1} {:>8.1} {:>7.2} {} {:>6.2}  {:>6} {:>6}  {:>8}  {:>8.1}{verdict}",
            line.name,
            line.isa,
            line.tiles,
            seconds * 1e6,
            line.flops / seconds / 1e9,
            line.figure,
            line.unit,
            line.spread,
            bound(line.floor),
            bound(line.goal),
            line.error.map_or("-".to_owned(), |error| format!("{error:.1e}")),
            rounds.peak.median / 1e9,
        );
        let number = |x: Option<f64>| x.map_or("null".to_owned(), |x| format!("{x:e}"));
        self.entries.push(format!(
            "{{\"table\":\"{}\",\"shape\":\"{}\",\"isa\":\"{}\",\"tiles\":\"{}\",\"seconds\":{:e},\
             \"gflops\":{:.3},\"figure\":{:.4},\"spread\":{:.4},\"unit\":\"{}\",\"floor\":{},\"goal\":{},\
             \"error\":{},\"peak_gflops\":{:.3},\"peak_spread\":{:.4},\"rounds\":{}}}",
            line.table,
            line.name,
            line.isa,
            line.tiles,
            seconds,
            line.flops / seconds / 1e9,
            line.figure,
            line.spread,
            line.unit,
            number(line.floor.map(Bound::value)),
            number(line.goal.map(Bound::value)),
            number(line.error.filter(|error| error.is_finite())),
            rounds.peak.median / 1e9,
            rounds.peak.relative(),
            rounds.count,
        ));
    }

    /// The summary, and the file.
    pub fn finish(&self) {
        println!(
            "\n{} lines: {} below their floor, {} more below their goal, {} disturbed.",
            self.lines, self.missed_floors, self.missed_goals, self.disturbed
        );
        if let Some(path) = &self.json {
            let text = format!("[\n{}\n]\n", self.entries.join(",\n"));
            if let Err(error) = std::fs::write(path, text) {
                eprintln!("cannot write {path}: {error}");
                std::process::exit(1);
            }
        }
    }
}
