//! Honest times on a machine that is not ours alone.
//!
//! Contenders and the multiply-add probe take turns in one process. Each round gives one ratio to
//! the probes next to it; what is reported is the median of the rounds with its quartiles, so a
//! slower clock or a noisy neighbour moves both sides, and a hiccup moves one round of many.

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

    /// Half the distance of the quartiles, as a share of the median.
    pub fn relative(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.median
    }
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

/// Lets `contenders` take turns for about `time`, at least seven rounds.
pub fn rounds(row: &dyn Kernel, contenders: &mut [&mut dyn FnMut()], time: Duration) -> Rounds {
    // Calls that fill half a millisecond, well above the clock's resolution.
    let repeats: Vec<usize> = contenders
        .iter_mut()
        .map(|call| {
            call();
            let start = Instant::now();
            call();
            (5e-4 / start.elapsed().as_secs_f64()).ceil().clamp(1.0, 1e5) as usize
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
    let contenders =
        seconds.into_iter().zip(possible).zip(against).map(|((seconds, possible), against)| Measured {
            seconds: Spread::of(seconds),
            possible: Spread::of(possible),
            against_first: Spread::of(against),
        });
    Rounds { contenders: contenders.collect(), peak: Spread::of(peaks), count }
}
