//! Honest times on a machine that is not ours alone.
//!
//! Contenders and the multiply-add probe take turns in one process. Each round gives one ratio to
//! the probes next to it; what is reported is the median of the rounds with its quartiles, so a
//! slower clock or a noisy neighbour moves both sides, and a hiccup moves one round of many.
//!
//! On virtual cores that share pipes with a neighbour, the median says how busy that was. There the
//! best of many short calls against the best probe of the same seconds is what is steady
//! ([`Way::best`]).

use std::time::{Duration, Instant};

use flash_attention::kernel::Kernel;

use crate::probe;

/// Median and quartiles.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        Spread { median: at(0.5), low: at(0.25), high: at(0.75) }
    }

    /// One value.
    pub fn one(value: f64) -> Spread {
        Spread { median: value, low: value, high: value }
    }

    /// Half the distance of the quartiles, as a share of the median.
    pub fn relative(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median
    }
}

/// How long to measure, and what to report.
#[derive(Clone, Copy)]
pub struct Way {
    pub time: Duration,
    /// The best call and the best probe, instead of medians.
    pub best: bool,
}

/// What one contender did.
pub struct Measured {
    /// Seconds a call.
    pub seconds: Spread,
    /// Seconds a call times the peak of the probes around it: the operations that the core could
    /// have done in that time.
    pub possible: Spread,
    /// Seconds a call over seconds a call of the first contender, in the same round.
    pub against_first: Spread,
}

/// What all of them did.
pub struct Rounds {
    pub contenders: Vec<Measured>,
    /// FLOP/s of the probe.
    pub peak: Spread,
    pub count: usize,
}

/// Probes whose quartiles are further apart than this say that somebody else was computing.
pub const DISTURBED: f64 = 0.03;

/// Lets `contenders` take turns for about as long as `way` says, at least seven rounds.
pub fn rounds(row: &dyn Kernel, contenders: &mut [&mut dyn FnMut()], way: Way) -> Rounds {
    let Way { time, best } = way;
    // Calls that fill half a millisecond, well above the clock's resolution; the best ones are
    // those that nobody interrupted, so that they are shorter.
    let turn = if best { 1e-4 } else { 5e-4 };
    let repeats: Vec<usize> = contenders
        .iter_mut()
        .map(|call| {
            call();
            let start = Instant::now();
            call();
            (turn / start.elapsed().as_secs_f64()).ceil().clamp(1.0, 1e5) as usize
        })
        .collect();
    let mut seconds = vec![Vec::new(); contenders.len()];
    let mut possible = vec![Vec::new(); contenders.len()];
    let mut against = vec![Vec::new(); contenders.len()];
    let mut peaks = vec![probe::peak(row)];
    let begin = Instant::now();
    let mut count = 0;
    while count < 7 || begin.elapsed() < time {
        for (i, call) in contenders.iter_mut().enumerate() {
            let start = Instant::now();
            for _ in 0..repeats[i] {
                call();
            }
            let each = start.elapsed().as_secs_f64() / repeats[i] as f64;
            let before = peaks[peaks.len() - 1];
            let after = probe::peak(row);
            peaks.push(after);
            seconds[i].push(each);
            possible[i].push(each * (before + after) / 2.0);
            against[i].push(each / seconds[0][count]);
        }
        count += 1;
    }
    if best {
        let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
        let peak = peaks.iter().copied().fold(0.0, f64::max);
        let first = least(&seconds[0]);
        let contenders = seconds.iter().map(|seconds| {
            let seconds = least(seconds);
            Measured {
                seconds: Spread::one(seconds),
                possible: Spread::one(seconds * peak),
                against_first: Spread::one(seconds / first),
            }
        });
        return Rounds { contenders: contenders.collect(), peak: Spread::one(peak), count };
    }
    let contenders =
        seconds.into_iter().zip(possible).zip(against).map(|((seconds, possible), against)| Measured {
            seconds: Spread::of(seconds),
            possible: Spread::of(possible),
            against_first: Spread::of(against),
        });
    Rounds { contenders: contenders.collect(), peak: Spread::of(peaks), count }
}
