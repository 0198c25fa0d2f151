//! What decoding is measured against: bytes read once, and nothing else; and decoding as one would
//! write it.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

use flash_attention::pool::{Concurrency, Own, Threads};

use crate::case::{Arrays, Case};

/// Bytes that a thread reads at a time.
const RUN: usize = 64 << 10;

/// Reads all of `arrays` once, with as many threads.
pub fn read(arrays: [&[u8]; 2], threads: usize) {
    for bytes in arrays {
        if threads == 1 {
            black_box(sum(bytes));
            continue;
        }
        let next = AtomicUsize::new(0);
        Own.run(Concurrency::of(threads), &|| {
            loop {
                let at = next.fetch_add(RUN, Ordering::Relaxed);
                let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) else { break };
                black_box(sum(&rest[..rest.len().min(RUN)]));
            }
        });
    }
}

fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: just asked.
        return unsafe { sum_avx512(bytes) };
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: just asked.
        return unsafe { sum_avx2(bytes) };
    }
    sum_of_words(bytes)
}

/// Eight sums of 32 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    use core::arch::x86_64::*;
    let mut sums = [_mm256_setzero_si256(); 8];
    for run in bytes.chunks_exact(256) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 32 bytes of a run of 256.
            let x = unsafe { _mm256_loadu_si256(run.as_ptr().add(32 * i).cast()) };
            *sum = _mm256_add_epi64(*sum, x);
        }
    }
    let total = sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi64(a, b));
    let half = _mm_add_epi64(_mm256_castsi256_si128(total), _mm256_extracti128_si256::<1>(total));
    (_mm_cvtsi128_si64(half) as u64).wrapping_add(_mm_extract_epi64::<1>(half) as u64)
}

/// Eight sums of 64 bytes: nothing waits for an addition.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(bytes: &[u8]) -> u64 {
    use core::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 8];
    for run in bytes.chunks_exact(512) {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 64 bytes of a run of 512.
            let x = unsafe { _mm512_loadu_si512(run.as_ptr().add(64 * i).cast()) };
            *sum = _mm512_add_epi64(*sum, x);
        }
    }
    let total = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi64(a, b));
    _mm512_reduce_add_epi64(total) as u64
}

fn sum_of_words(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    for run in bytes.chunks_exact(128) {
        for (sum, word) in sums.iter_mut().zip(run.chunks_exact(8)) {
            *sum = sum.wrapping_add(word.iter().fold(0, |x, &byte| x << 8 | u64::from(byte)));
        }
    }
    sums.iter().fold(0, |a, &b| a.wrapping_add(b))
}

/// Attention of one query a head, written plainly: dot products, softmax, weighted sum; what the
/// compiler makes of it for the machine's vectors.
pub struct Plain {
    scores: Vec<f32>,
    out: Vec<f32>,
}

/// Lanes that plain code adds up side by side.
const LANES: usize = 64;

impl Plain {
    /// Dense f32 cases with a head_dim of whole [`LANES`] only.
    pub fn new(case: &Case) -> Plain {
        assert!(case.dim.is_multiple_of(LANES));
        Plain { scores: vec![0.0; case.len_kv], out: vec![0.0; case.heads * case.len_q * case.dim] }
    }

    pub fn run(&mut self, case: &Case, arrays: &Arrays) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            // SAFETY: just asked.
            return unsafe { self.run_avx512(case, arrays) };
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: just asked.
            return unsafe { self.run_avx2(case, arrays) };
        }
        self.rows(case, arrays);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn run_avx2(&mut self, case: &Case, arrays: &Arrays) {
        self.rows(case, arrays);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,fma")]
    fn run_avx512(&mut self, case: &Case, arrays: &Arrays) {
        self.rows(case, arrays);
    }

    #[inline(always)]
    fn rows(&mut self, case: &Case, arrays: &Arrays) {
        let Case { heads, len_q, len_kv, dim, .. } = *case;
        let (q, k, v) = arrays.qkv();
        let scale = (dim as f32).sqrt().recip();
        let group = heads / case.kv_heads();
        for row in 0..heads * len_q {
            let (q, out) = (&q[row * dim..][..dim], &mut self.out[row * dim..][..dim]);
            let at = row / len_q / group * len_kv * dim;
            let mut max = f32::NEG_INFINITY;
            for (score, k) in self.scores.iter_mut().zip(k[at..].chunks_exact(dim)) {
                let mut sums = [0f32; LANES];
                for (q, k) in q.chunks_exact(LANES).zip(k.chunks_exact(LANES)) {
                    for i in 0..LANES {
                        sums[i] = q[i].mul_add(k[i], sums[i]);
                    }
                }
                *score = sums.iter().sum::<f32>() * scale;
                max = max.max(*score);
            }
            let mut total = 0.0;
            for score in &mut self.scores {
                *score = (*score - max).exp();
                total += *score;
            }
            for (d, out) in out.chunks_exact_mut(LANES).enumerate() {
                let mut sums = [0f32; LANES];
                for (score, v) in self.scores.iter().zip(v[at..].chunks_exact(dim)) {
                    let v = &v[d * LANES..][..LANES];
                    for i in 0..LANES {
                        sums[i] = score.mul_add(v[i], sums[i]);
                    }
                }
                for i in 0..LANES {
                    out[i] = sums[i] / total;
                }
            }
        }
    }

    pub fn out(&self) -> &[f32] {
        &self.out
    }
}
