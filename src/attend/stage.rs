//! Step 0 of a block: its rows of K and V as the tile loops read them, in place where they can be, else
//! copied or converted into scratch memory; from pages run by run.

use std::ops::Range;

use super::key_rows;
use crate::dtype::{Family, Rows};
use crate::problem::{Problem, Sequence};
use crate::simd::Isa;

/// Whose rows [`rows`] brings.
pub(crate) const K: bool = false;
/// Likewise.
pub(crate) const V: bool = true;

/// Rows of `K` or `V`.
///
/// # Safety
/// `keys` are those of the sequence; `scratch` has room for as many staged rows.
#[inline(always)]
pub(crate) unsafe fn rows<S: Isa, F: Family, const WHICH: bool>(
    s: S,
    problem: &Problem,
    sequence: &Sequence,
    kv_head: usize,
    keys: &Range<usize>,
    copy: bool,
    scratch: *mut u8,
) -> Rows {
    let shape = problem.shape();
    let view = if WHICH == V { problem.v() } else { problem.k() };
    let mut key = keys.start;
    let mut staged = Rows { base: scratch, stride: 0 };
    loop {
        let rows = key_rows(problem, view, sequence, kv_head, key);
        let n = problem.keys_in_a_row(sequence, key).min(keys.end - key);
        // Rows that are staged lie behind one another, those that are read in place are all in one run.
        let to = scratch.wrapping_add((key - keys.start) * staged.stride);
        // SAFETY: rows `key..key + n`, by the caller's contract, and room for them.
        let here = unsafe {
            if WHICH == V {
                F::stage_v(s, rows, n, shape.dim_v, copy, to)
            } else {
                F::stage_k(s, rows, n, shape.dim_qk, copy, to)
            }
        };
        if key == keys.start {
            staged = here;
        }
        key += n;
        if key == keys.end {
            return staged;
        }
    }
}
