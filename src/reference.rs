//! Attention as the textbook writes it, in f64, one row at a time: the oracle of the tests, and
//! the page to read first. It shares no code with the kernels, only the problem's description.

use crate::problem::{Problem, Semantics};

/// `[batch][head][row][dim_v]` outputs and `[batch][head][row]` log-sum-exps.
#[derive(Debug)]
pub struct Answer {
    /// Output.
    pub o: Vec<f64>,
    /// Natural logarithm of the sum of exponentials.
    pub lse: Vec<f64>,
}

/// Computes `problem` in f64 (its outputs are not touched).
pub fn attention(problem: &Problem) -> Answer {
    let [batch, heads, rows] = problem.shape().queries;
    let (q, k, v) = (problem.q(), problem.k(), problem.v());
    let Semantics { softmax_scale, scales, .. } = *problem.semantics();
    let scale = f64::from(softmax_scale) * f64::from(scales.q) * f64::from(scales.k);
    let mut answer = Answer { o: Vec::new(), lse: Vec::new() };
    for b in 0..batch {
        for h in 0..heads {
            // Query heads share kv heads in groups of neighbours.
            let kv = h / (heads / k.layout().extent[1]);
            for i in 0..rows {
                let keys: Vec<usize> = (0..problem.shape().len_kv).filter(|&j| sees(problem, i, j)).collect();
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|&j| {
                        let dot = |d| q.get(b, h, i, d) * k.get(b, kv, j, d);
                        scale * (0..problem.shape().dim_qk).map(dot).sum::<f64>()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut out = vec![0.0; problem.shape().dim_v];
                for (&j, weight) in keys.iter().zip(&weights) {
                    for (d, out) in out.iter_mut().enumerate() {
                        *out += weight / sum * f64::from(scales.v) * v.get(b, kv, j, d);
                    }
                }
                answer.o.extend(out);
                answer.lse.push(if keys.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() });
            }
        }
    }
    answer
}

/// The definition of a window, without clamping or cleverness.
fn sees(problem: &Problem, row: usize, key: usize) -> bool {
    let Semantics { q_pos, window, .. } = *problem.semantics();
    let distance = key as i128 - (i128::from(q_pos) + row as i128);
    window.left.is_none_or(|left| distance >= -i128::from(left))
        && window.right.is_none_or(|right| distance <= i128::from(right))
}
