//! The plain rival: three-step attention on a well-tuned matrix product, with the n x n matrix.

use flash_attention::kernel::Function;
use gemm::{Parallelism, gemm};

use measure::{Arrays, Case};

/// Scratch of the rival: the matrix of one head, and the output.
pub struct Rival {
    scores: Vec<f32>,
    out: Vec<f32>,
}

impl Rival {
    /// Dense f32 cases only.
    pub fn boxed(case: &Case) -> Box<dyn measure::Rival> {
        Box::new(Rival {
            scores: vec![0.0; case.len_q * case.len_kv],
            out: vec![0.0; case.heads * case.len_q * case.dim],
        })
    }
}

impl measure::Rival for Rival {
    /// Head by head.
    fn run(&mut self, case: &Case, arrays: &Arrays, threads: usize) {
        let Case { heads, len_q, len_kv, dim, .. } = *case;
        let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
        let (q, k, v) = arrays.qkv();
        let scale = (dim as f32).sqrt().recip();
        for h in 0..heads {
            let q = &q[h * len_q * dim..][..len_q * dim];
            let k = &k[h * len_kv * dim..][..len_kv * dim];
            let v = &v[h * len_kv * dim..][..len_kv * dim];
            let out = &mut self.out[h * len_q * dim..][..len_q * dim];
            let (rs, cs) = (dim as isize, 1);
            // SAFETY: row-major matrices of these sizes; `scores` and `out` overlap nothing.
            unsafe {
                let scores = self.scores.as_mut_ptr();
                // scores = q · kᵀ
                gemm(
                    len_q,
                    len_kv,
                    dim,
                    scores,
                    1,
                    len_kv as isize,
                    false,
                    q.as_ptr(),
                    cs,
                    rs,
                    k.as_ptr(),
                    rs,
                    cs,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
                self.scores.chunks_exact_mut(len_kv).for_each(|row| softmax(row, scale));
                // out = scores · v
                gemm(
                    len_q,
                    dim,
                    len_kv,
                    out.as_mut_ptr(),
                    cs,
                    rs,
                    false,
                    self.scores.as_ptr(),
                    1,
                    len_kv as isize,
                    v.as_ptr(),
                    cs,
                    rs,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
        }
    }

    fn out(&self) -> &[f32] {
        &self.out
    }
}

/// In place; written so that compilers vectorise it, with the exponential that the kernels use.
fn softmax(row: &mut [f32], scale: f32) {
    let mut max = [f32::NEG_INFINITY; 16];
    let mut chunks = row.chunks_exact(16);
    for chunk in &mut chunks {
        for (max, &x) in max.iter_mut().zip(chunk) {
            *max = if x > *max { x } else { *max };
        }
    }
    let rest = chunks.remainder().iter().copied();
    let max = max.into_iter().chain(rest).fold(f32::NEG_INFINITY, f32::max);
    let factor = scale * std::f32::consts::LOG2_E;
    for x in row.iter_mut() {
        *x = (*x - max) * factor;
    }
    let kernels = flash_attention::kernel::best().expect("a row");
    kernels.map(Function::Exp2, row);
    let sum: f32 = row.chunks(16).map(|chunk| chunk.iter().sum::<f32>()).sum();
    let weight = 1.0 / sum;
    for x in row {
        *x *= weight;
    }
}
