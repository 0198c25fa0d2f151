//! The tables: which shapes are measured, against what.

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr;

use flash_attention::capi::attention::{fa_attention, fa_attention_init};
use flash_attention::capi::config::fa_config;
use flash_attention::capi::forward::fa_forward_f32;
use flash_attention::capi::run::{fa_attention_check, fa_attention_run};
use flash_attention::capi::status::fa_status;
use flash_attention::dtype::Dtype;
use flash_attention::kernel::{self, Kernel, Path};
use flash_attention::machine;
use flash_attention::plan::Plan;
use flash_attention::problem::Accuracy;
use flash_attention::work::query_tiles::TileQueue;
use flash_attention::workspace::Workspace;

use crate::NewRival;
use crate::case::{Arrays, Case};
use crate::features::{self, Memory, Pair};
use crate::probe;
use crate::report::{Bound, Line, Report, Work};
use crate::rounds::{Rounds, Spread, Way, rounds};
use crate::scales;
use crate::stream;
use crate::suite;
use crate::tile::Tile;

pub struct Tables {
    pub report: Report,
    pub rival: Option<NewRival>,
    pub isa: Option<String>,
    pub threads: usize,
    pub way: Way,
}

impl Tables {
    pub const NAMES: [&str; 21] = [
        "floors", "layers", "features", "masks", "sparse", "odd", "few", "grouped", "latent", "threads",
        "auto", "rival", "rising", "types", "scales", "decode", "layouts", "weights", "sums", "memory",
        "call",
    ];

    pub fn table(&mut self, name: &str) {
        match name {
            "floors" => self.floors(),
            "layers" => self.layers(),
            "features" => self.features(),
            "masks" => self.masks(),
            "sparse" => self.sparse(),
            "odd" => self.odd(),
            "few" => self.few(),
            "grouped" => self.grouped(),
            "latent" => self.latent(),
            "threads" => self.two_threads(),
            "auto" => self.automatic_threads(),
            "rival" => self.rival(),
            "rising" => self.rising(),
            "types" => self.types(),
            "scales" => self.scales(),
            "decode" => self.decode(),
            "layouts" => self.layouts(),
            "weights" => self.weights(),
            "sums" => self.sums(),
            "memory" => self.memory(),
            _ => self.call(),
        }
    }

    /// The row for a type: of the instruction set asked for, or `isa`, or the best.
    fn row(&self, dtype: Dtype, isa: Option<&str>) -> Option<&'static dyn Kernel> {
        let plain = Case { dtype, ..Case::square(1, 1, 1) };
        self.row_of(&plain, self.isa.as_deref().or(isa))
    }

    /// The row for a case: of instruction set `isa` or a lesser one, where that has none for the
    /// type.
    fn row_of(&self, case: &Case, isa: Option<&str>) -> Option<&'static dyn Kernel> {
        let rows: Vec<_> = kernel::available().collect();
        let first =
            isa.map_or(Some(0), |isa| rows.iter().position(|row| row.isa().to_bytes() == isa.as_bytes()));
        let fits = |row: &&&'static dyn Kernel| {
            row.takes_types([case.dtype; 3])
                && row.accuracy() >= case.accuracy
                && (isa.is_some() || row.is_worth_it())
        };
        rows[first?..].iter().find(fits).copied()
    }

    /// Share of the peak that one shape reaches, in percent.
    fn share(&self, row: &'static dyn Kernel, case: &Case) -> (Rounds, Plan, Spread, Option<f64>) {
        let mut arrays = Arrays::new(case);
        let (plan, mut call) = arrays.runner(row, self.threads);
        let measured = rounds(row, &mut [&mut call], self.way);
        drop(call);
        let possible = measured.contenders[0].possible;
        let percent = |possible| 100.0 * case.flops() / possible / self.threads as f64;
        let share = Spread {
            median: percent(possible.median),
            low: percent(possible.high),
            high: percent(possible.low),
        };
        let error = Some(arrays.error());
        (measured, plan, share, error)
    }

    fn share_line(
        &mut self,
        table: &str,
        row: &'static dyn Kernel,
        case: &Case,
        floor: Option<f64>,
        goal: Option<f64>,
    ) -> f64 {
        let (measured, plan, share, error) = self.share(row, case);
        let line = Line {
            table,
            name: case.name(),
            isa: &row.isa().to_string_lossy(),
            tiles: format!("{}x{}", plan.tiles.q, plan.tiles.kv),
            error,
            figure: share.median,
            spread: share.median * share.relative(),
            unit: "%",
            floor: floor.map(Bound::AtLeast),
            goal: goal.map(Bound::AtLeast),
            work: case.work(),
        };
        self.report.line(&line, &measured);
        share.median
    }

    /// One shape, on every instruction set or the one asked for.
    pub fn shape(&mut self, case: &Case) {
        self.report.heading("Share of the multiply-add peak");
        let isas: Vec<_> = kernel::available().filter(|row| row.takes_types([case.dtype; 3])).collect();
        for row in isas {
            if self.isa.as_deref().is_none_or(|isa| row.isa().to_bytes() == isa.as_bytes()) {
                self.share_line("shape", row, case, None, None);
            }
        }
    }

    /// One shape with other tile sizes, each against those that the library chooses; returns what
    /// to make of them.
    pub fn tune(&mut self, case: &Case) -> Option<String> {
        // A difference that is worth setting a field for.
        const MATTERS: f64 = 1.02;
        let row = self.row_of(case, self.isa.as_deref())?;
        self.report.heading("Tile sizes: times as fast as with those that the library chooses");
        let mut base = Arrays::new(case);
        let (own, call) = base.runner(row, self.threads);
        drop(call);
        let own = [own.tiles.q, own.tiles.kv];
        let mut tried = vec![own];
        let mut best: Option<([usize; 2], Spread)> = None;
        for [rows, block] in candidates(own, case) {
            let other = Case { rows, block, ..case.clone() };
            let mut arrays = Arrays::new(&other);
            let (plan, mut call) = arrays.runner(row, self.threads);
            // What is asked for is held to what a kernel can do.
            let tiles = [plan.tiles.q, plan.tiles.kv];
            if tried.contains(&tiles) {
                continue;
            }
            tried.push(tiles);
            let (_, mut base_call) = base.runner(row, self.threads);
            let measured = rounds(row, &mut [&mut call, &mut base_call], self.way);
            drop(call);
            let ratio = measured.contenders[1].against_first;
            self.ratio("tune", row, &other, &plan, &measured, Some(arrays.error()), None, None);
            if best.is_none_or(|(_, of_best)| ratio.median > of_best.median) {
                best = Some(([rows, block], ratio));
            }
        }
        let own = format!("the library's own choice ({} x {})", own[0], own[1]);
        Some(match best {
            Some(([rows, keys], ratio)) if ratio.low > MATTERS => format!(
                "block_q = {rows}, block_kv = {keys}: {:.2} times as fast as {own}. Other keys of a tile \
                 change results within rounding.",
                ratio.median
            ),
            _ => format!("Nothing to set: {own} is as fast as any of these, within 2 %."),
        })
    }

    /// What is left of the peak for multiply-adds that are fed by a kernel's loads.
    fn tile_line(&mut self, isa: &str) {
        let Some(row) = self.row(Dtype::F32, Some(isa)).filter(|row| row.isa().to_bytes() == isa.as_bytes())
        else {
            return;
        };
        let Some(mut tile) = Tile::of(row) else { return };
        let (name, flops) = (tile.name(), tile.flops());
        let measured = rounds(row, &mut [&mut || tile.run()], self.way);
        let possible = measured.contenders[0].possible;
        let figure = 100.0 * flops / possible.median;
        let line = Line {
            table: "floors",
            name: format!("(a score tile's loop alone, {name})"),
            isa,
            tiles: name.to_owned(),
            error: None,
            figure,
            spread: figure * possible.relative(),
            unit: "%",
            floor: None,
            goal: None,
            work: Work::of_flops(flops),
        };
        self.report.line(&line, &measured);
    }

    fn floors(&mut self) {
        self.report.heading("Share of the multiply-add peak, one thread (f32)");
        for isa in ["avx512", "avx2"] {
            if self.isa.as_deref().is_none_or(|named| named == isa) {
                self.tile_line(isa);
            }
        }
        for target in suite::targets() {
            if self.isa.as_deref().is_some_and(|isa| isa != target.isa) {
                continue;
            }
            let Some(row) = self.row(Dtype::F32, Some(target.isa)) else {
                self.report.say(format_args!(
                    "{:<34} {:<7} not on this machine",
                    target.case.name(),
                    target.isa
                ));
                continue;
            };
            self.share_line("floors", row, &target.case, Some(target.floor), Some(target.goal));
        }
    }

    fn layers(&mut self) {
        self.report.heading("Whole layers: share of the multiply-add peak, from larger caches and memory");
        for dtype in [Dtype::F32, Dtype::I8] {
            let Some(row) = self.row(dtype, None) else { continue };
            for case in suite::layers() {
                self.share_line("layers", row, &Case { dtype, ..case }, None, None);
            }
        }
    }

    /// Rates of the pairs that are seen, of each feature against the plain problem.
    fn features(&mut self) {
        self.report
            .heading("What engines need: rate of the pairs that are seen, over that of plain attention");
        self.pairs("features", features::pairs());
    }

    fn masks(&mut self) {
        self.report.heading("Masks: rate over that of the fields that say the same");
        self.pairs("masks", features::masks());
    }

    fn sparse(&mut self) {
        self.report.heading(
            "Lists of blocks, single keys, and selected pages: rate of the pairs that are seen, over that of all",
        );
        self.pairs("sparse", features::sparse());
    }

    fn pairs(&mut self, table: &str, pairs: Vec<Pair>) {
        let Some(row) = self.row(Dtype::F32, None) else { return };
        for Pair { feature, plain, threads, floor, goal } in pairs {
            let (mut memory, mut plain) = (Memory::new(&feature), Memory::new(&plain));
            let (name, flops, plain_flops) = (memory.name(), memory.flops(), plain.flops());
            let (plan, mut call) = memory.runner(row, threads);
            let (_, mut plain_call) = plain.runner(row, threads);
            let measured = rounds(row, &mut [&mut call, &mut plain_call], self.way);
            drop(call);
            let ratio = measured.contenders[1].against_first;
            let rate = ratio.median * flops / plain_flops;
            let line = Line {
                table,
                name,
                isa: &row.isa().to_string_lossy(),
                tiles: format!("{}x{}", plan.tiles.q, plan.tiles.kv),
                error: Some(memory.error()),
                figure: rate,
                spread: rate * ratio.relative(),
                unit: "x",
                floor: Some(Bound::AtLeast(floor)),
                goal: goal.map(Bound::AtLeast),
                work: Work::of_flops(flops),
            };
            self.report.line(&line, &measured);
        }
    }

    fn odd(&mut self) {
        self.report.heading("Odd sizes: at most 8 points below the even neighbour, which comes first");
        let Some(row) = self.row(Dtype::F32, None) else { return };
        for (odd, even) in suite::odd() {
            let share = self.share_line("odd", row, &even, None, None);
            self.share_line("odd", row, &odd, Some(share - 8.0), None);
        }
    }

    fn few(&mut self) {
        self.report.heading("Few queries on 2048 keys: microseconds over those of one query less (no cliff)");
        let Some(row) = self.row(Dtype::F32, None) else { return };
        let mut before: Option<Case> = None;
        for case in suite::few_queries() {
            let less = before.replace(case.clone()).unwrap_or_else(|| case.clone());
            self.ratio_line("few", row, (&case, 1), (&less, 1), Some(Bound::AtMost(1.05)), None);
        }
    }

    fn grouped(&mut self) {
        self.report.heading(
            "Few queries of grouped heads: times as long as one query, as dense heads, as one query more",
        );
        self.against("grouped", suite::grouped());
    }

    fn latent(&mut self) {
        self.report.heading("Multi-head latent attention: times as long as by decode alone");
        self.against("latent", suite::latent());
    }

    /// How many times as long as its base each case takes.
    fn against(&mut self, table: &str, all: Vec<suite::Times>) {
        for suite::Times { case, base, floor } in all {
            let Some(row) = self.row(case.dtype, None) else { continue };
            let (mut arrays, mut base_arrays) = (Arrays::new(&case), Arrays::new(&base));
            let (plan, mut call) = arrays.runner(row, self.threads);
            let (_, mut base_call) = base_arrays.runner(row, self.threads);
            let measured = rounds(row, &mut [&mut call, &mut base_call], self.way);
            drop(call);
            let ratio = measured.contenders[1].against_first;
            let line = Line {
                table,
                name: case.name(),
                isa: &row.isa().to_string_lossy(),
                tiles: format!("{}x{}", plan.tiles.q, plan.tiles.kv),
                error: Some(arrays.error()),
                figure: ratio.median.recip(),
                spread: ratio.median.recip() * ratio.relative(),
                unit: "x",
                floor: floor.map(Bound::AtMost),
                goal: None,
                work: case.work(),
            };
            self.report.line(&line, &measured);
        }
    }

    /// Time of one against time of another, in the same rounds.
    fn ratio_line(
        &mut self,
        table: &str,
        row: &'static dyn Kernel,
        (case, threads): (&Case, usize),
        (other, other_threads): (&Case, usize),
        floor: Option<Bound>,
        goal: Option<Bound>,
    ) {
        let (mut arrays, mut other_arrays) = (Arrays::new(case), Arrays::new(other));
        let (plan, mut call) = arrays.runner(row, threads);
        // Another type is another row's, the best that it has.
        let isa = row.isa().to_str().ok();
        let other_row = if other.dtype == case.dtype { Some(row) } else { self.row_of(other, isa) };
        let Some(other_row) = other_row else { return };
        let (_, mut other_call) = other_arrays.runner(other_row, other_threads);
        let measured = rounds(row, &mut [&mut call, &mut other_call], self.way);
        drop(call);
        self.ratio(table, row, case, &plan, &measured, Some(arrays.error()), floor, goal);
    }

    /// The line for the second contender against the first.
    fn ratio(
        &mut self,
        table: &str,
        row: &dyn Kernel,
        case: &Case,
        plan: &Plan,
        measured: &Rounds,
        error: Option<f64>,
        floor: Option<Bound>,
        goal: Option<Bound>,
    ) {
        let ratio = measured.contenders[1].against_first;
        let line = Line {
            table,
            name: case.name(),
            isa: &row.isa().to_string_lossy(),
            tiles: format!("{}x{}", plan.tiles.q, plan.tiles.kv),
            error,
            figure: ratio.median,
            spread: ratio.median * ratio.relative(),
            unit: "x",
            floor,
            goal,
            work: case.work(),
        };
        self.report.line(&line, measured);
    }

    fn two_threads(&mut self) {
        self.report.heading("Two threads: times as fast as one");
        let Some(row) = self.row(Dtype::F32, None) else { return };
        for case in suite::two_threads() {
            let (floor, goal) = (Some(Bound::AtLeast(1.9)), Some(Bound::AtLeast(1.97)));
            self.ratio_line("threads", row, (&case, 2), (&case, 1), floor, goal);
        }
    }

    fn automatic_threads(&mut self) {
        self.report.heading("All cores where they are worth it: times as fast as one thread");
        let Some(row) = self.row(Dtype::F32, None) else { return };
        for case in suite::automatic_threads() {
            self.ratio_line(
                "auto",
                row,
                (&case, machine::cores()),
                (&case, 1),
                Some(Bound::AtLeast(0.95)),
                None,
            );
        }
    }

    fn rival(&mut self) {
        let Some(new) = self.rival else { return };
        self.report
            .heading("Against three-step attention with a tuned matrix product, same threads: times as fast");
        let Some(row) = self.row(Dtype::F32, None) else { return };
        for case in suite::against_rival() {
            let mut arrays = Arrays::new(&case);
            let rival_arrays = Arrays::new(&case);
            let mut rival = new(&case);
            let threads = self.threads;
            let (plan, mut call) = arrays.runner(row, threads);
            let mut rival_call = || rival.run(&case, &rival_arrays, threads);
            let measured = rounds(row, &mut [&mut call, &mut rival_call], self.way);
            drop(call);
            black_box(rival.out());
            let floor = Some(Bound::AtLeast(1.0));
            self.ratio("rival", row, &case, &plan, &measured, Some(arrays.error()), floor, None);
        }
    }

    fn rising(&mut self) {
        self.report.heading("Scores rising along the keys: speed against normal data");
        let Some(row) = self.row(Dtype::F32, None) else { return };
        for (rising, normal) in suite::adversarial() {
            self.ratio_line("rising", row, (&rising, 1), (&normal, 1), Some(Bound::AtLeast(0.6)), None);
        }
    }

    fn types(&mut self) {
        self.report.heading("Q, K and V of other types: speed against f32 on the same instruction set");
        for suite::Typed { case, isa, family, floor, goal } in suite::types() {
            let Some(row) = self.row_of(&case, self.isa.as_deref().or(isa)) else { continue };
            // Bounds are those of a family.
            let is_it = row.compute_type(Path::Prefill) == family;
            let [floor, goal] = [floor, goal].map(|bound| bound.filter(|_| is_it).map(Bound::AtLeast));
            let plain =
                Case { dtype: Dtype::F32, per_token: false, accuracy: Accuracy::default(), ..case.clone() };
            self.ratio_line("types", row, (&case, 1), (&plain, 1), floor, goal);
        }
        self.report.heading("bf16 and i8: share of the peak of their own dot products");
        for suite::Typed { case, family, floor, goal, .. } in suite::shares() {
            let row = self.row_of(&case, self.isa.as_deref());
            if let Some(row) = row.filter(|row| row.compute_type(Path::Prefill) == family) {
                self.share_line("types", row, &case, floor, goal);
            }
        }
    }

    /// Caches of 8-bit integers, by what shares their scales.
    fn scales(&mut self) {
        self.report.heading("8-bit K and V by what shares scales: times as fast as f32");
        for scales::Bounded { case, floor } in scales::cases() {
            let (mut memory, mut plain) = (scales::Memory::new(&case), scales::Memory::new(&case.plain()));
            let (plan, row, mut call) = memory.runner(1);
            let (_, _, mut plain_call) = plain.runner(1);
            let measured = rounds(row, &mut [&mut call, &mut plain_call], self.way);
            drop(call);
            let ratio = measured.contenders[1].against_first;
            let line = Line {
                table: "scales",
                name: case.name(),
                isa: &row.isa().to_string_lossy(),
                tiles: format!("{}x{}x{}", plan.tiles.heads, plan.tiles.q, plan.tiles.kv),
                error: Some(memory.error()),
                figure: ratio.median,
                spread: ratio.median * ratio.relative(),
                unit: "x",
                floor: Some(Bound::AtLeast(floor)),
                goal: None,
                work: Work { tokens: Some(case.rows), ..Work::of_flops(case.flops()) },
            };
            self.report.line(&line, &measured);
        }
    }

    /// Few queries on many keys.
    fn decode(&mut self) {
        self.report
            .heading("Decode: share of the bandwidth at which K and V can be read, or else of the peak");
        let isa = self.row(Dtype::F32, None).map(|row| row.isa().to_string_lossy());
        for suite::Decode { case, threads, bound, floor, goal } in
            suite::decode(isa.as_deref() == Some("avx2"))
        {
            let Some(row) = self.row_of(&case, self.isa.as_deref()) else { continue };
            let mut arrays = Arrays::new(&case);
            let other = Arrays::new(&case);
            // Of a window, what it shows.
            let bytes = other.kv_bytes().map(|bytes| match case.window {
                0 => bytes,
                keys => &bytes[..bytes.len() / case.len_kv * keys],
            });
            let mut read = || stream::read(bytes, threads);
            let (plan, mut call) = arrays.runner(row, threads);
            let measured = rounds(row, &mut [&mut call, &mut read], self.way);
            drop(call);
            let read = measured.contenders[1].against_first;
            let compute = {
                let possible = measured.contenders[0].possible;
                // Probes are those of the family of many rows.
                let is_own = row.compute_type(Path::Decode) == row.compute_type(Path::Prefill);
                let f32_row = self.row(Dtype::F32, None).unwrap_or(row);
                let factor = if is_own { 1.0 } else { probe::peak(row) / probe::peak(f32_row) };
                case.flops() / possible.median * factor.max(1.0) / threads as f64
            };
            let share = match bound {
                suite::Limit::Read => read.median,
                suite::Limit::Compute => compute,
                suite::Limit::Both => read.median.max(compute),
            };
            let line = Line {
                table: "decode",
                name: format!("{}{}", case.name(), if threads > 1 { ", 2 threads" } else { "" }),
                isa: &row.isa().to_string_lossy(),
                tiles: format!("{}x{}x{}", plan.tiles.heads, plan.tiles.q, plan.tiles.kv),
                error: Some(arrays.error()),
                figure: 100.0 * share,
                spread: 100.0 * share * read.relative(),
                unit: "%",
                floor: floor.map(Bound::AtLeast),
                goal: goal.map(Bound::AtLeast),
                work: case.work(),
            };
            self.report.line(&line, &measured);
        }
        self.report.heading("Decode: times as fast as something else");
        let Some(row) = self.row(Dtype::F32, None) else { return };
        for (a, b, floor, goal) in suite::decode_ratios() {
            let (floor, goal) = (floor.map(Bound::AtLeast), goal.map(Bound::AtLeast));
            let row = self.row_of(&a.0, self.isa.as_deref()).unwrap_or(row);
            self.ratio_line("decode", row, (&a.0, a.1), (&b.0, b.1), floor, goal);
        }
        self.report.heading("Decode: times as fast as plain code, f32, one thread");
        for case in suite::decode_rival() {
            let mut arrays = Arrays::new(&case);
            let other = Arrays::new(&case);
            let mut plain = stream::Plain::new(&case);
            let (plan, mut call) = arrays.runner(row, 1);
            let mut rival = || plain.run(&case, &other);
            let measured = rounds(row, &mut [&mut call, &mut rival], self.way);
            drop(call);
            black_box(plain.out());
            self.ratio(
                "decode",
                row,
                &case,
                &plan,
                &measured,
                Some(arrays.error()),
                Some(Bound::AtLeast(1.0)),
                None,
            );
        }
    }

    /// Pages, transposed K and V, odd head sizes, and conversions in plain code.
    fn layouts(&mut self) {
        self.report.heading("Other layouts: times as fast as no pages, contiguous rows, whole vectors, f32");
        for (isa, case, other, floor) in suite::layouts() {
            let Some(row) = self.row_of(&case, isa.or(self.isa.as_deref())) else { continue };
            self.ratio_line("layouts", row, (&case, 1), (&other, 1), Some(Bound::AtLeast(floor)), None);
        }
    }

    /// Probabilities of all heads and rows as an output of their own.
    fn weights(&mut self) {
        self.report.heading("Probabilities of all heads and rows: time over that without them");
        for case in suite::weights() {
            let Some(row) = self.row_of(&case, self.isa.as_deref()) else { continue };
            let mut plain_arrays = Arrays::new(&Case { weights: false, ..case.clone() });
            let mut arrays = Arrays::new(&case);
            let (_, mut plain_call) = plain_arrays.runner(row, 1);
            let (plan, mut call) = arrays.runner(row, 1);
            let measured = rounds(row, &mut [&mut plain_call, &mut call], self.way);
            drop(call);
            let floor = Some(Bound::AtMost(2.2));
            self.ratio("weights", row, &case, &plan, &measured, Some(arrays.error()), floor, None);
        }
    }

    /// How exact sums of f32 are.
    fn sums(&mut self) {
        self.report.heading("Largest error of f32 on normal data, in ten-millionths");
        let Some(row) = self.row(Dtype::F32, None) else { return };
        for (case, floor) in suite::sums() {
            let mut arrays = Arrays::new(&case);
            let (plan, mut call) = arrays.runner(row, self.threads);
            let measured = rounds(row, &mut [&mut call], self.way);
            drop(call);
            let error = arrays.error();
            self.plain_line("sums", row, &case, &plan, &measured, (1e7 * error, "e-7"), floor);
        }
    }

    /// What scratch memory a call asks for.
    fn memory(&mut self) {
        const THREADS: usize = 4;
        self.report.heading("Scratch memory with four threads: KiB a thread");
        let Some(row) = self.row(Dtype::F32, None) else { return };
        for (case, floor) in suite::memory() {
            let mut arrays = Arrays::new(&case);
            let (plan, mut call) = arrays.runner(row, THREADS);
            let measured = rounds(row, &mut [&mut call], self.way);
            drop(call);
            let bytes = plan.memory.bytes().expect("a number of bytes");
            let figure = bytes as f64 / 1024.0 / THREADS as f64;
            self.plain_line("memory", row, &case, &plan, &measured, (figure, "KiB"), floor);
        }
    }

    /// A line whose figure is not a time, and may be so much at most.
    fn plain_line(
        &mut self,
        table: &str,
        row: &dyn Kernel,
        case: &Case,
        plan: &Plan,
        measured: &Rounds,
        (figure, unit): (f64, &str),
        floor: f64,
    ) {
        let line = Line {
            table,
            name: case.name(),
            isa: &row.isa().to_string_lossy(),
            tiles: format!("{}x{}", plan.tiles.q, plan.tiles.kv),
            error: None,
            figure,
            spread: 0.0,
            unit,
            floor: Some(Bound::AtMost(floor)),
            goal: None,
            work: case.work(),
        };
        self.report.line(&line, measured);
    }

    /// What a call costs besides computing: C entries against the bare kernel on a prepared part,
    /// and what the check of a description takes.
    fn call(&mut self) {
        self.report.heading("Fixed cost of a call from C, one head, 16 x 64: microseconds");
        let Some(row) = self.row(Dtype::F32, None) else { return };
        let case = Case::square(1, 16, 64);
        let mut arrays = Arrays::new(&case);
        let mut bare_arrays = Arrays::new(&case);
        let cfg = fa_config {
            block_size_q: 0,
            block_size_kv: 0,
            head_dim: 64,
            causal: false,
            softmax_scale: 0.125,
            num_threads: 1,
            reserved: 0,
        };
        let (plan, call) = arrays.runner(row, 1);
        drop(call);
        let (mut out, mut described_out) = (vec![0f32; 16 * 64], vec![0f32; 16 * 64]);
        let (q, k, v) = arrays.qkv();
        let described = described([q, k, v], &mut described_out);
        let mut from_c = || {
            // SAFETY: dense arrays of these sizes.
            let status =
                unsafe { fa_forward_f32(&cfg, q.as_ptr(), k.as_ptr(), v.as_ptr(), 16, 16, out.as_mut_ptr()) };
            assert_eq!(status, fa_status::FA_OK);
        };
        let mut scratch = vec![0u8; plan.memory.borrowed_bytes().expect("a size")];
        let mut run = || {
            // SAFETY: a description of arrays of these sizes, and as much memory as its plan needs.
            let status = unsafe {
                fa_attention_run(&described, scratch.as_mut_ptr().cast(), scratch.len(), ptr::null())
            };
            assert_eq!(status, fa_status::FA_OK);
        };
        let mut check = || {
            // SAFETY: a description; no words are wanted.
            let status = unsafe { fa_attention_check(&described, ptr::null_mut(), 0) };
            assert_eq!(status, fa_status::FA_OK);
        };
        let mut problem = bare_arrays.problem();
        let workspace = Workspace::allocate(plan.memory).expect("scratch memory");
        let mut piece = workspace.take().expect("a piece");
        let mut bare = || {
            let queue = TileQueue::new(&mut problem, plan.tiles.q, 1);
            let part = queue.take().expect("a part");
            row.prefill(&part, plan.tiles, None, piece.reborrow()).expect("an available row");
        };
        let measured = rounds(row, &mut [&mut from_c, &mut run, &mut check, &mut bare], self.way);
        let [from_c, run, check, bare] = [0, 1, 2, 3].map(|i| measured.contenders[i].seconds);
        let most = if row.isa().to_bytes() == b"avx2" { 0.5 } else { 0.3 };
        let fixed = |call: Spread| 1e6 * (call.median - bare.median);
        let (most, goal) = (Some(Bound::AtMost(most)), Some(Bound::AtMost(0.2)));
        for (name, figure, call, floor, goal) in [
            ("fa_forward_f32", fixed(from_c), from_c, most, goal),
            ("fa_attention_run", fixed(run), run, most, goal),
            ("fa_attention_check, with its plan", 1e6 * check.median, check, None, None),
        ] {
            let line = Line {
                table: "call",
                name: name.to_owned(),
                isa: &row.isa().to_string_lossy(),
                tiles: format!("{}x{}", plan.tiles.q, plan.tiles.kv),
                error: None,
                figure,
                spread: figure * call.relative(),
                unit: "us",
                floor,
                goal,
                work: case.work(),
            };
            self.report.line(&line, &measured);
        }
    }
}

/// Rows and keys of tiles to be tried beside a plan's own.
fn candidates([rows, keys]: [usize; 2], case: &Case) -> Vec<[usize; 2]> {
    let all_keys: Vec<_> = [keys / 4, keys / 2, keys, 2 * keys, 4 * keys]
        .into_iter()
        .filter(|&n| n == keys || (n >= 16 && n < case.len_kv.max(16) * 2))
        .collect();
    // Few rows are one tile anyway.
    let all_rows: Vec<_> = [rows / 2, rows, 2 * rows]
        .into_iter()
        .filter(|&n| n == rows || (n >= 8 && n < case.len_q * 2))
        .collect();
    all_rows.iter().flat_map(|&rows| all_keys.iter().map(move |&keys| [rows, keys])).collect()
}

/// A description of one head, 16 x 64.
fn described(qkv: [&[f32]; 3], out: &mut [f32]) -> fa_attention {
    let mut a = MaybeUninit::<fa_attention>::uninit();
    // SAFETY: room for a description, of its own size, which is initialised then.
    let mut a = unsafe {
        assert_eq!(fa_attention_init(a.as_mut_ptr(), size_of::<fa_attention>()), fa_status::FA_OK);
        a.assume_init()
    };
    let [q, k, v] = qkv.map(<[f32]>::as_ptr).map(<*const f32>::cast_mut);
    for (tensor, data) in [(&mut a.q, q), (&mut a.k, k), (&mut a.v, v), (&mut a.o, out.as_mut_ptr())] {
        (tensor.data, tensor.stride) = (data.cast(), [4096, 4096, 256]);
    }
    (a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv) = (1, 1, 1, 16, 16);
    (a.dim_qk, a.dim_v, a.scale) = (64, 64, 0.125);
    a
}
