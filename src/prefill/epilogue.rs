//! Step 6: division by the sum, and the way back from lanes to rows of the output.

use std::ops::Range;

use super::softmax::State;
use crate::attend::MAX_WIDTH;
use crate::attend::finish::{blank_bytes, log_sum_exp, with_sink};
use crate::dtype::{self, Dtype};
use crate::simd::Isa;
use crate::simd::transpose::Square;
use crate::view::Layout;
use crate::work::query_tiles::QueryTile;

/// Writes the output rows (and LSE) of one tile of `part` from its state; outputs are multiplied by `scale`.
///
/// A row that sees no key is 0 with LSE -inf. That is decided by what is visible, never by the
/// sum: a row whose visible scores are all -inf, or one of which is NaN, is NaN.
///
/// # Safety
/// `state` is that of all keys, `Z` vectors wide; there are at most `Z * LANES` rows.
#[inline(always)]
pub(crate) unsafe fn epilogue<S: Isa, const Z: usize>(
    s: S,
    part: &QueryTile,
    tile_rows: Range<usize>,
    state: State,
    scale: f32,
) {
    let (first, n) = (tile_rows.start, tile_rows.len());
    let problem = part.problem();
    let dim = problem.shape().dim_v;
    let (sequence, head) = (part.sequence(), part.head());
    let width = Z * S::LANES;
    let mut blind = [false; MAX_WIDTH];
    // Windows move with the row: if the first and the last row see something, so do all between.
    if sequence.visible(first).is_empty() || sequence.visible(first + n - 1).is_empty() {
        for (lane, blind) in blind[..n].iter_mut().enumerate() {
            *blind = sequence.visible(first + lane).is_empty();
        }
    }
    if problem.logits().hides() {
        for (lane, blind) in blind[..n].iter_mut().enumerate() {
            // SAFETY: a lane of the state.
            let running_max = unsafe { state.running_max.add(lane).read() };
            // Only a row without a finite score can be one that sees nothing.
            *blind = running_max == f32::NEG_INFINITY && !problem.sees_any(sequence, head, first + lane);
        }
    }
    let sink = problem.sink(head);
    let Layout { dtype, stride: [_, _, stride], .. } = *problem.o().layout();
    // SAFETY: the rows belong to `part`, which nobody else holds; lanes and elements are below
    // `n` and `dim`.
    unsafe {
        // Zeros all get the same sign: that of a sum which underflows to 0 depends on the signs of
        // values with weight 0, invisible ones included.
        let mut weight = [0.0; MAX_WIDTH];
        for (lane, weight) in weight[..width].iter_mut().enumerate() {
            *weight = scale / state.sum.add(lane).read();
        }
        if sink != f32::NEG_INFINITY {
            for (lane, weight) in weight[..n].iter_mut().enumerate() {
                let (share, _) =
                    with_sink(sink, state.running_max.add(lane).read(), state.sum.add(lane).read());
                *weight = share * scale;
            }
        }
        for from in (0..n).step_by(S::LANES) {
            let rows = S::LANES.min(n - from);
            let out = part.output(first + from, rows);
            let weights = s.load(weight.as_ptr().add(from));
            let mut d = 0;
            while d + S::LANES <= dim {
                let sums = state.output.add(d * width + from);
                if dtype == Dtype::F32 && rows == S::LANES {
                    s.transpose(sums, width * 4, out.cast::<f32>().wrapping_add(d), stride, Some(weights));
                } else {
                    // What lies behind the last row is not written, and other types not as they are.
                    let mut square = Square::uninit();
                    let square = square.as_mut_ptr().cast::<f32>();
                    s.transpose(sums, width * 4, square, S::LANES * 4, Some(weights));
                    for lane in 0..rows {
                        let x = s.load(square.add(lane * S::LANES));
                        dtype::store(s, dtype, out.wrapping_add(lane * stride), d, S::LANES, x);
                    }
                }
                d += S::LANES;
            }
            for lane in 0..rows {
                let row = out.wrapping_add(lane * stride);
                if blind[from + lane] {
                    blank_bytes(row, problem.o().layout().row_bytes());
                } else {
                    for d in d..dim {
                        let x = state.output.add(d * width + from + lane).read();
                        dtype::store(s, dtype, row, d, 1, s.splat(x * weight[from + lane] + 0.0));
                    }
                }
            }
        }
        if problem.lse().is_some() {
            for (lane, &blind) in blind[..n].iter().enumerate() {
                let x = if blind {
                    sink
                } else {
                    log_sum_exp(sink, state.running_max.add(lane).read(), state.sum.add(lane).read())
                };
                if let Some(lse) = part.lse(first + lane) {
                    lse.write_unaligned(x);
                }
            }
        }
    }
}
