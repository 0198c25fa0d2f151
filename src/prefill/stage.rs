//! Step 0 of a block: its rows of K and V as the compute type reads them, in place or staged:
//! copied or converted into scratch memory, from pages one run of rows at a time.

use std::ops::Range;

use super::gemm::Gemm;
use crate::attend::fold::of_key;
use crate::attend::gather::{self, GATHERED};
use crate::attend::rows::{Rows, Source, chunk_rows, key_rows};
use crate::attend::{K, V, prefetch_rows_l2};
use crate::dtype::Dtype;
use crate::problem::{Problem, Sequence, Shape};
use crate::simd::Isa;
use crate::view::{ScaleGranularity, View};

/// Rows of K, or groups of V, by way of `scratch` if `staged`; and whether values that are not
/// finite were left out (see [`Gemm::stage_v`]).
///
/// # Safety
/// `keys` are those of the sequence, and `scratch` has room for as many staged rows, `room` for
/// [`gathered_bytes`]. Rows that are not staged are of a type that the compute type reads in place,
/// and lie at equal distances.
#[inline(always)]
pub(crate) unsafe fn rows<S: Isa, F: Gemm, const WHICH: usize>(
    s: S,
    problem: &Problem,
    sequence: &Sequence,
    kv_head: usize,
    keys: &Range<usize>,
    staged: [bool; 2],
    scratch: *mut u8,
    room: *mut u8,
) -> (Rows, bool) {
    if !staged[WHICH] {
        let view = if WHICH == V { problem.v() } else { problem.k() };
        return (key_rows(problem, view, sequence, kv_head, keys.start).rows(), false);
    }
    // SAFETY: keys of the sequence, and room for them staged (caller).
    unsafe { stage::<S, F, WHICH>(s, problem, sequence, kv_head, keys, scratch, room) }
}

/// [`rows`] that are staged. Kept out of line: it uses no vectors of its own.
///
/// # Safety
/// `keys` are those of the sequence, and `scratch` has room for as many staged rows, `room` for
/// [`gathered_bytes`].
#[inline(never)]
unsafe fn stage<S: Isa, F: Gemm, const WHICH: usize>(
    s: S,
    problem: &Problem,
    sequence: &Sequence,
    kv_head: usize,
    keys: &Range<usize>,
    scratch: *mut u8,
    room: *mut u8,
) -> (Rows, bool) {
    let shape = problem.shape();
    let view = if WHICH == V { problem.v() } else { problem.k() };
    let dim = if WHICH == V { shape.dim_v } else { shape.dim_qk };
    let stride = if WHICH == V { F::staged_v_row(dim) } else { F::staged_k_row(dim) };
    let gathers =
        shape.gathers(WHICH).then(|| is_staged_as_stored::<F, WHICH>(shape.storage.dtypes[1 + WHICH], dim));
    let mut left_out = false;
    // SAFETY: rows of the caller's keys, and room for them in the caller's scratch memory.
    let mut stage = |rows: Source, n: usize, first: usize| unsafe {
        if WHICH == V {
            left_out |= F::stage_v(s, rows, n, dim, first, scratch);
        } else {
            F::stage_k(s, rows, n, dim, first, scratch.wrapping_add(first * stride));
        }
    };
    let chunks = Chunks { problem, sequence, view, kv_head, keys, dim, gathers, to: scratch, stride, room };
    // SAFETY: as above; `room` is for rows that are gathered (caller); all groups are there then.
    unsafe {
        chunks.each(s.core(), &mut stage);
        if WHICH == V {
            F::end_v(s, keys.len(), dim, scratch);
        }
    }
    (Rows { base: scratch, stride }, left_out)
}

/// How many keys ahead rows of pages, and of single keys, are prefetched: about what a core tracks
/// of misses, for rows of some lines.
const ROWS_AHEAD: usize = 16;

/// Bytes of a page that are prefetched: the hardware prefetcher follows what comes then.
const BYTES_OF_PAGE: usize = 8192;

/// Rows of K or V that are to be staged.
struct Chunks<'a, 'p> {
    problem: &'a Problem<'p>,
    sequence: &'a Sequence<'a>,
    view: &'a View<'p>,
    kv_head: usize,
    keys: &'a Range<usize>,
    dim: usize,
    /// Whether they are gathered first, and if so, whether that is all.
    gathers: Option<bool>,
    /// Where rows go, bytes from one to the next, and room for those that are gathered.
    to: *mut u8,
    stride: usize,
    room: *mut u8,
}

impl Chunks<'_, '_> {
    /// Calls `stage` for rows that lie at equal distances: their source, how many they are, and the
    /// number of the first among all. Kept out of line, so that the code exists once for each
    /// instruction set and not for each compute type.
    ///
    /// # Safety
    /// The sequence has the keys; there is room for as many rows, and for those that are gathered.
    #[inline(never)]
    unsafe fn each<S: Isa>(&self, s: S, stage: &mut dyn FnMut(Source, usize, usize)) {
        let Chunks { problem, sequence, view, kv_head, keys, dim, gathers, to, stride, room } = *self;
        // Pages and single keys lie anywhere, where no hardware prefetcher follows them.
        let lies_anywhere = problem.shape().page.is_some() || sequence.is_of_columns();
        let lies_anywhere = lies_anywhere && !view.layout().is_strided();
        let row_bytes = view.layout().row_bytes();
        let first_ahead = if lies_anywhere { keys.end.min(keys.start + ROWS_AHEAD) } else { keys.end };
        let mut ahead = problem.chunks(sequence, kv_head, first_ahead..keys.end);
        for chunk in problem.chunks(sequence, kv_head, keys.clone()) {
            if let Some(next) = ahead.next() {
                let rows = chunk_rows(view, kv_head, &next).rows();
                prefetch_rows_l2(s, rows, next.keys.len().min(BYTES_OF_PAGE / row_bytes.max(1)), row_bytes);
            }
            let (source, n) = (chunk_rows(view, kv_head, &chunk), chunk.keys.len());
            let start = chunk.keys.start - keys.start;
            // SAFETY: rows of the caller's keys, and room for them.
            unsafe {
                match gathers {
                    None => stage(source, n, start),
                    Some(true) => {
                        gather::gather(s, source, n, dim, to.wrapping_add(start * stride), stride);
                    }
                    Some(false) => gather::in_turns(s, source, n, dim, room, &mut |rows, n, before| {
                        stage(rows, n, start + before);
                    }),
                }
            }
        }
    }
}

/// Whether rows that are staged are what the compute type reads in place, too.
#[inline(always)]
fn is_staged_as_stored<F: Gemm, const WHICH: usize>(dtype: Dtype, dim: usize) -> bool {
    if WHICH == V { F::reads_v(dtype) } else { F::reads_k(dtype, dim) }
}

/// Bytes of scratch memory for rows that are gathered before they are staged.
#[inline(always)]
pub(crate) fn gathered_bytes(shape: &Shape) -> usize {
    if shape.gathers(K) || shape.gathers(V) { bytes_of_gathered(shape) } else { 0 }
}

/// [`gathered_bytes`] where there are some. Kept out of line: few problems have them.
#[inline(never)]
fn bytes_of_gathered(shape: &Shape) -> usize {
    let of = |which: usize, dim| match shape.gathers(which) {
        true => gather::row_bytes(shape.storage.dtypes[1 + which], dim).saturating_mul(GATHERED),
        false => 0,
    };
    of(K, shape.dim_qk).max(of(V, shape.dim_v))
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
    for chunk in problem.chunks(sequence, kv_head, keys.clone()) {
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
