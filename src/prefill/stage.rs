//! Step 0 of a block: its rows of K and V as the compute type reads them, in place or staged:
//! copied or converted into scratch memory, from pages one run of rows at a time.

use std::ops::Range;

use super::gemm::Gemm;
use crate::attend::V;
use crate::attend::rows::{Rows, key_rows};
use crate::problem::{Problem, Sequence};
use crate::simd::Isa;

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
    let mut key = keys.start;
    while key < keys.end {
        let source = key_rows(problem, view, sequence, kv_head, key);
        let n = problem.keys_in_a_row(sequence, key).min(keys.end - key);
        let first = key - keys.start;
        // SAFETY: rows of the caller's keys, and room for them in the caller's scratch memory.
        unsafe {
            if WHICH == V {
                left_out |= F::stage_v(s, source, n, shape.dim_v, first, scratch);
            } else {
                F::stage_k(s, source, n, shape.dim_qk, scratch.wrapping_add(first * stride));
            }
        }
        key += n;
    }
    (Rows { base: scratch, stride }, left_out)
}

/// Writes the scales of `keys`, one for each row; returns whether any of them is not finite.
///
/// # Safety
/// `to` has room for as many numbers as there are `keys`, which are those of the sequence.
#[inline(never)]
pub(crate) unsafe fn key_scales(
    problem: &Problem,
    sequence: &Sequence,
    kv_head: usize,
    keys: &Range<usize>,
    to: *mut f32,
) -> bool {
    let mut has_nonfinite = false;
    for (i, key) in keys.clone().enumerate() {
        let scale = key_rows(problem, problem.k(), sequence, kv_head, key).scale();
        has_nonfinite |= !scale.is_finite();
        // SAFETY: one of as many numbers as there are keys (caller).
        unsafe { to.add(i).write(scale) };
    }
    has_nonfinite
}
