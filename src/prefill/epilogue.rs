//! Step 6: division by the sum, and transposition from lanes to rows of the output.

use std::ops::Range;

use super::softmax::State;
use super::weights;
use crate::attend::MAX_WIDTH;
use crate::attend::finish::{blank_bytes, log_sum_exp, with_sink};
use crate::attend::fold::{columns, dequantized, divided};
use crate::attend::rows::Source;
use crate::attend::seen::sees_any;
use crate::dtype::{self, Dtype};
use crate::simd::transpose::TransposeTile;
use crate::simd::{Body, Isa, MAX_LANES};
use crate::view::{Layout, Quant};
use crate::work::query_tiles::QueryTile;

/// Writes the output rows, and log-sum-exps, of one lane tile from its state; outputs are
/// multiplied by `scale`. They are sums of the integers of V where `values` has scales and zeros
/// for their elements.
///
/// A row that sees no key is 0 with log-sum-exp -inf. Visibility decides that, never the sum: a row
/// whose visible scores are all -inf, or one of whose scores is NaN, is NaN.
///
/// Kept out of line, so that the code exists once for each instruction set and not in each kernel.
///
/// # Safety
/// `state` is that after all keys; there are at most as many rows as lanes, and they belong to the
/// query tile.
#[inline(never)]
pub(crate) unsafe fn epilogue<S: Isa>(
    s: S,
    part: &QueryTile,
    tile_rows: Range<usize>,
    state: State,
    scale: f32,
    values: Option<Source>,
) {
    s.core().enter(Epilogue { part, tile_rows, state, scale, values });
}

/// The arguments of [`epilogue`], which alone makes one.
struct Epilogue<'a, 'p> {
    part: &'a QueryTile<'p>,
    tile_rows: Range<usize>,
    state: State,
    scale: f32,
    values: Option<Source<'a>>,
}

impl Body for Epilogue<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        // SAFETY: `epilogue` made this, and its caller vouches for state and rows.
        unsafe { write(s, self) };
    }
}

/// [`epilogue`], compiled for an instruction set.
///
/// # Safety
/// As [`epilogue`].
#[inline(always)]
unsafe fn write<S: Isa>(s: S, what: Epilogue) {
    let Epilogue { part, tile_rows, state, scale, values } = what;
    let (first, n) = (tile_rows.start, tile_rows.len());
    let problem = part.problem();
    let dim = problem.shape().dim_v;
    let (sequence, head) = (part.sequence(), part.head());
    let width = state.lanes;
    if let Some(values) = values {
        // SAFETY: the state is the caller's.
        unsafe { dequantize(s, state, dim, values) };
    }
    let mut is_empty = [false; MAX_WIDTH];
    // Windows move with the row: if the first and the last row see something, so do all between.
    if sequence.visible(first).is_empty() || sequence.visible(first + n - 1).is_empty() {
        for (lane, is_empty) in is_empty[..n].iter_mut().enumerate() {
            *is_empty = sequence.visible(first + lane).is_empty();
        }
    }
    if problem.logits().hides() {
        for (lane, is_empty) in is_empty[..n].iter_mut().enumerate() {
            // SAFETY: a lane of the state (caller).
            let running_max = unsafe { state.running_max.add(lane).read() };
            // Only a row without a finite score can be one that sees no key.
            *is_empty = running_max == f32::NEG_INFINITY && !sees_any(problem, sequence, head, first + lane);
        }
    }
    let sink_of = |lane: usize| problem.sink(sequence.line(head, first + lane)[0]);
    let Layout { dtype, stride: [_, _, stride], .. } = *problem.o().layout();
    let scales = problem.o().quant();
    let scale_at = |scales: &Quant, lane: usize| scales.at(problem.line_at(sequence, head, first + lane));
    // SAFETY: the rows are the query tile's alone (I3); lanes below `n` and elements below `dim`
    // are those of the caller's state.
    unsafe {
        // All zeros get the same sign: that of a sum which underflows to 0 depends on the signs of
        // values with weight 0, hidden ones included.
        let mut weight = [0.0; MAX_WIDTH];
        for (lane, weight) in weight[..width].iter_mut().enumerate() {
            *weight = scale / state.sum.add(lane).read();
        }
        if problem.logits().sinks.is_some() {
            for (lane, weight) in weight[..n].iter_mut().enumerate() {
                let sink = sink_of(lane);
                if sink != f32::NEG_INFINITY {
                    let (share, _) =
                        with_sink(sink, state.running_max.add(lane).read(), state.sum.add(lane).read());
                    *weight = share * scale;
                }
            }
        }
        for from in (0..n).step_by(S::LANES) {
            let rows = S::LANES.min(n - from);
            let is_grouped = sequence.is_grouped();
            let mut out = [part.output(first + from, if is_grouped { 1 } else { rows }); MAX_LANES];
            for (lane, out) in out[..rows].iter_mut().enumerate().skip(1) {
                match is_grouped {
                    true => *out = part.output(first + from + lane, 1),
                    false => *out = out.wrapping_add(lane * stride),
                }
            }
            let weights = s.load(weight.as_ptr().add(from));
            let mut d = 0;
            while d + S::LANES <= dim {
                let sums = state.output.add(d * width + from);
                if dtype == Dtype::F32 && rows == S::LANES && !is_grouped {
                    let out = out[0].cast::<f32>().wrapping_add(d);
                    s.transpose(sums, width * 4, out, stride, Some(weights));
                } else {
                    // Nothing behind the last row is written, and other types are converted.
                    let mut square = TransposeTile::uninit();
                    let square = square.as_mut_ptr().cast::<f32>();
                    s.transpose(sums, width * 4, square, S::LANES * 4, Some(weights));
                    for (lane, &to) in out[..rows].iter().enumerate() {
                        let mut x = s.load(square.add(lane * S::LANES));
                        if let Some(scales) = scales {
                            x = divided(s, scales, scale_at(scales, from + lane), d, S::LANES, x);
                        }
                        dtype::store(s, dtype, to, d, S::LANES, x);
                    }
                }
                d += S::LANES;
            }
            for (lane, &row) in out[..rows].iter().enumerate() {
                if is_empty[from + lane] {
                    blank_bytes(row, problem.o().layout().row_bytes());
                } else {
                    for d in d..dim {
                        let x = state.output.add(d * width + from + lane).read();
                        let mut x = s.splat(x * weight[from + lane] + 0.0);
                        if let Some(scales) = scales {
                            x = divided(s, scales, scale_at(scales, from + lane), d, 1, x);
                        }
                        dtype::store(s, dtype, row, d, 1, x);
                    }
                }
            }
        }
        if problem.weights().is_some() {
            weights::finish(s, part, &tile_rows, state, &is_empty);
        }
        if problem.lse().is_some() {
            for (lane, &is_empty) in is_empty[..n].iter().enumerate() {
                let sink = sink_of(lane);
                let x = if is_empty {
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

/// Applies the scales and zeros of elements of V to an output, which is a sum of integers.
///
/// # Safety
/// As [`epilogue`].
#[inline(always)]
unsafe fn dequantize<S: Isa>(s: S, state: State, dim: usize, values: Source) {
    let Some(quant) = values.view.quant() else { return };
    for first in (0..dim).step_by(S::LANES) {
        let n = S::LANES.min(dim - first);
        let [scales, zeros] = columns(s, quant, quant.at(values.at), first, n);
        let (mut scale, mut zero) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        // SAFETY: arrays are as long as any vector; vectors of the sums, and of elements below
        // `dim` of the output (caller).
        unsafe {
            s.store(scale.as_mut_ptr(), scales);
            s.store(zero.as_mut_ptr(), zeros);
            for (i, (scale, zero)) in scale.into_iter().zip(zero).enumerate().take(n) {
                let of_element = [s.splat(scale), s.splat(zero)];
                for lane in (0..state.lanes).step_by(S::LANES) {
                    let at = state.output.add((first + i) * state.lanes + lane);
                    s.store(at, dequantized(s, of_element, s.load(at), s.load(state.sum.add(lane))));
                }
            }
        }
    }
}
