//! How far the very output that was timed is from f64.

use flash_attention::problem::Problem;
use flash_attention::reference;
use flash_attention::view::View;

/// Some rows as they should be, with where they are in the output.
pub struct Sample(Vec<([usize; 3], Vec<f64>)>);

/// Multiplications that the reference may take: about a second.
const LIMIT: usize = 300_000_000;

impl Sample {
    /// Rows at even distances over all heads and sequences: all of a small problem.
    pub fn of(problem: &Problem) -> Sample {
        let shape = problem.shape();
        let [batch, heads, len_q] = shape.queries;
        let rows = batch * heads * len_q;
        let few = (LIMIT / (shape.len_kv * (shape.dim_qk + shape.dim_v)).max(1)).max(16);
        // Odd, so that no power of two decides which rows of a tile are looked at.
        let step = rows.div_ceil(few) | 1;
        let mut sample = Vec::new();
        for at in (0..rows).step_by(step) {
            let (sequence, head, i) = (problem.sequence(at / len_q / heads), at / len_q % heads, at % len_q);
            if i < sequence.len_q {
                let [entry, row] = problem.query_at(&sequence, i);
                sample.push(([entry, head, row], reference::row(problem, &sequence, head, i).0));
            }
        }
        Sample(sample)
    }

    /// The largest error of the output in these rows.
    pub fn worst(&self, out: &View) -> f64 {
        let mut worst = 0f64;
        for ([entry, head, row], exact) in &self.0 {
            for (d, exact) in exact.iter().enumerate() {
                let error = (out.get(*entry, *head, *row, d) - exact).abs();
                // NaN is not an error to overlook.
                worst = if error <= worst { worst } else { error };
            }
        }
        worst
    }
}
