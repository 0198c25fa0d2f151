//! The loop of a score tile and nothing else: its multiply-adds and the loads that feed them, out
//! of the first-level cache. Where loads cost power, and power the clock, that is less than the
//! probe's peak, and attention cannot have more.

use flash_attention::dtype::Dtype;
use flash_attention::kernel::Kernel;

/// Elements of a head, and keys: 8 KiB of queries and 24 KiB of keys.
const DIM: usize = 64;
const KEYS: usize = 96;

/// What the loop reads and writes.
pub struct Tile {
    lanes: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    scores: Vec<f32>,
}

impl Tile {
    /// For the instruction set of a row of f32, if its loop is known here.
    pub fn of(row: &dyn Kernel) -> Option<Tile> {
        let lanes = row.lanes();
        if !row.takes_types([Dtype::F32; 3]) || !matches!(lanes, 8 | 16) {
            return None;
        }
        // Numbers of all kinds of bits, for the sake of power.
        let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
        Some(Tile {
            lanes,
            queries: numbers(2 * lanes * DIM),
            keys: numbers(KEYS * DIM),
            scores: vec![0.0; 2 * lanes * KEYS],
        })
    }

    /// Keys of a tile times vectors of queries.
    pub fn name(&self) -> &'static str {
        if self.lanes == 16 { "8x2" } else { "6x2" }
    }

    pub fn flops(&self) -> f64 {
        (2 * 2 * self.lanes * DIM * KEYS) as f64
    }

    /// All scores once.
    pub fn run(&mut self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a row with this many lanes is only available where its features are.
        unsafe {
            match self.lanes {
                16 => scores_avx512(&self.queries, &self.keys, &mut self.scores),
                _ => scores_avx2(&self.queries, &self.keys, &mut self.scores),
            }
        }
        std::hint::black_box(&mut self.scores);
    }
}

macro_rules! scores_of {
    ($name:ident, $lanes:literal, $rows:literal, $features:literal, $splat:ident, $load:ident, $fma:ident, $store:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name(queries: &[f32], keys: &[f32], scores: &mut [f32]) {
            use core::arch::x86_64::*;
            for (k, out) in keys.chunks_exact($rows * DIM).zip(scores.chunks_exact_mut($rows * 2 * $lanes)) {
                let mut sums = [[$splat(0.0); 2]; $rows];
                for (d, q) in queries.chunks_exact(2 * $lanes).enumerate() {
                    // SAFETY: a chunk is two vectors.
                    let q = unsafe { [$load(q.as_ptr()), $load(q.as_ptr().add($lanes))] };
                    for (r, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: DIM chunks of queries, so d < DIM, and r is a row of the chunk of
                        // keys.
                        let x = $splat(unsafe { *k.get_unchecked(r * DIM + d) });
                        sum[0] = $fma(q[0], x, sum[0]);
                        sum[1] = $fma(q[1], x, sum[1]);
                    }
                }
                for (sum, out) in sums.iter().zip(out.chunks_exact_mut(2 * $lanes)) {
                    // SAFETY: a chunk is two vectors.
                    unsafe {
                        $store(out.as_mut_ptr(), sum[0]);
                        $store(out.as_mut_ptr().add($lanes), sum[1]);
                    }
                }
            }
        }
    };
}
scores_of!(
    scores_avx512,
    16,
    8,
    "avx512f",
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    _mm512_storeu_ps
);
scores_of!(scores_avx2, 8, 6, "avx2,fma", _mm256_set1_ps, _mm256_loadu_ps, _mm256_fmadd_ps, _mm256_storeu_ps);
