//! Attention as the textbook writes it, in f64, one row at a time: the oracle of the tests, and
//! the page to read first. It shares no code with the kernels, only the problem's description.

use crate::problem::{Position, Problem, Semantics, Sequence};

/// `[batch][head][row][dim_v]` outputs and `[batch][head][row]` log-sum-exps, each sequence with its own
/// number of rows.
#[derive(Debug)]
pub struct Answer {
    /// Output.
    pub o: Vec<f64>,
    /// Natural logarithm of the sum of exponentials.
    pub lse: Vec<f64>,
}

/// Computes `problem` in f64 (its outputs are not touched).
pub fn attention(problem: &Problem) -> Answer {
    let [batch, heads, _] = problem.shape().queries;
    let (q, k, v) = (problem.q(), problem.k(), problem.v());
    let Semantics { softmax_scale, scales, .. } = *problem.semantics();
    let scale = f64::from(softmax_scale) * f64::from(scales.q) * f64::from(scales.k);
    let mut answer = Answer { o: Vec::new(), lse: Vec::new() };
    for b in 0..batch {
        let sequence = problem.sequence(b);
        for h in 0..heads {
            // Query heads share kv heads in groups of neighbours.
            let kv = h / (heads / k.layout().extent[1]);
            for i in 0..sequence.len_q {
                let [entry, row] = problem.query_at(&sequence, i);
                let keys: Vec<usize> =
                    (0..sequence.len_kv).filter(|&j| sees(problem, &sequence, i, j)).collect();
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|&j| {
                        let [page, token] = problem.key_at(&sequence, j);
                        let dot = |d| q.get(entry, h, row, d) * k.get(page, kv, token, d);
                        scale * (0..problem.shape().dim_qk).map(dot).sum::<f64>()
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let mut out = vec![0.0; problem.shape().dim_v];
                for (&j, weight) in keys.iter().zip(&weights) {
                    let [page, token] = problem.key_at(&sequence, j);
                    for (d, out) in out.iter_mut().enumerate() {
                        *out += weight / sum * f64::from(scales.v) * v.get(page, kv, token, d);
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
fn sees(problem: &Problem, sequence: &Sequence, row: usize, key: usize) -> bool {
    let Semantics { q_pos, window, .. } = *problem.semantics();
    let first = match q_pos {
        Position::At(position) => i128::from(position),
        Position::End => sequence.len_kv as i128 - sequence.len_q as i128,
    };
    let distance = key as i128 - (first + row as i128);
    window.left.is_none_or(|left| distance >= -i128::from(left))
        && window.right.is_none_or(|right| distance <= i128::from(right))
}
