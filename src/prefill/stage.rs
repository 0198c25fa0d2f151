//! Step 0 of a block: its rows of K and V as the compute type reads them, in place or staged:
//! copied or converted into scratch memory, from pages one run of rows at a time.

use std::ops::Range;

use super::gemm::Gemm;
use crate::attend::V;
use crate::attend::fold::of_key;
use crate::attend::rows::{Rows, chunk_rows, key_rows};
use crate::problem::{Problem, Sequence};
use crate::simd::Isa;
use crate::view::ScaleGranularity;

/// Rows of K, or groups of V, by way of `scratch` if `staged`; and whether values that are not
/// finite were left out (see [`Gemm::stage_v`]).
///
/// # Safety
/// `keys` are those of the sequence, and `scratch` has room for as many staged rows. Rows that are
/// not staged are of a type that the compute type reads in place, and lie at equal distances.
#[inline(always)]
pub(crate) unsafe fn rows<S: Isa, F: Gemm, const WHICH: usize>(
    s: S,
    problem: &Problem,
    sequence: &Sequence,
    kv_head: usize,
    keys: &Range<usize>,
    staged: [bool; 2],
    scratch: *mut u8,
) -> (Rows, bool) {
    if !staged[WHICH] {
        let view = if WHICH == V { problem.v() } else { problem.k() };
        return (key_rows(problem, view, sequence, kv_head, keys.start).rows(), false);
    }
    // SAFETY: keys of the sequence, and room for them staged (caller).
    unsafe { stage::<S, F, WHICH>(s, problem, sequence, kv_head, keys, scratch) }
}

/// [`rows`] that are staged. Kept out of line: it uses no vectors of its own.
///
/// # Safety
/// `keys` are those of the sequence, and `scratch` has room for as many staged rows.
#[inline(never)]
unsafe fn stage<S: Isa, F: Gemm, const WHICH: usize>(
    s: S,
    problem: &Problem,
    sequence: &Sequence,
    kv_head: usize,
    keys: &Range<usize>,
    scratch: *mut u8,
) -> (Rows, bool) {
    let shape = problem.shape();
    let view = if WHICH == V { problem.v() } else { problem.k() };
    let stride = if WHICH == V { F::staged_v_row(shape.dim_v) } else { F::staged_k_row(shape.dim_qk) };
    let mut left_out = false;
    for chunk in problem.chunks(sequence, keys.clone()) {
        let (source, n) = (chunk_rows(view, kv_head, &chunk), chunk.keys.len());
        let first = chunk.keys.start - keys.start;
        // SAFETY: rows of the caller's keys, and room for them in the caller's scratch memory.
        unsafe {
            if WHICH == V {
                left_out |= F::stage_v(s, source, n, shape.dim_v, first, scratch);
            } else {
                F::stage_k(s, source, n, shape.dim_qk, scratch.wrapping_add(first * stride));
            }
        }
    }
    (Rows { base: scratch, stride }, left_out)
}

/// Writes the scales of `keys` to the first list and their zeros to the second one, as far as there
/// is one, a number for each row: zeros that are not those of a token are in the corrections of the
/// queries, and count as 1. Returns whether any number is not finite.
///
/// # Safety
/// Lists have room for as many numbers as there are `keys`, which are those of the sequence.
#[inline(never)]
pub(crate) unsafe fn scales_and_zeros(
    problem: &Problem,
    sequence: &Sequence,
    kv_head: usize,
    keys: &Range<usize>,
    to: [Option<*mut f32>; 2],
) -> bool {
    let is_per_token = problem.shape().storage.granularities[1] == ScaleGranularity::PerToken;
    let mut has_nonfinite = false;
    for chunk in problem.chunks(sequence, keys.clone()) {
        let source = chunk_rows(problem.k(), kv_head, &chunk);
        for (i, key) in chunk.keys.enumerate() {
            let of_row = if is_per_token { source.skip(i).scale_and_zero().map(of_key) } else { [1.0; 2] };
            for (to, x) in to.into_iter().zip(of_row) {
                if let Some(to) = to {
                    has_nonfinite |= !x.is_finite();
                    // SAFETY: one of as many numbers as there are keys (caller).
                    unsafe { to.add(key - keys.start).write(x) };
                }
            }
        }
    }
    has_nonfinite
}
