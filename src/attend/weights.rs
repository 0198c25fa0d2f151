//! The optional output of probabilities. A row of it holds the scores of its keys, in log2 units,
//! until all keys have been seen: then the running maximum and the sum are known that make
//! probabilities of them. So there is no second pass over K, and no memory but the output.

use std::ops::Range;

use super::finish::{blank, with_sink};
use crate::problem::{Problem, SeenKeys, Sequence};
use crate::simd::{Body, Isa};

/// Writes the score of a key that is not seen, -inf, for `keys` of the row at `row`: keys that are
/// skipped keep it. Kept out of line: few problems want probabilities.
///
/// # Safety
/// `keys` are writable in the row.
#[inline(never)]
pub(crate) unsafe fn hide<S: Isa>(s: S, row: *mut f32, keys: &Range<usize>) {
    s.core().enter(Hide { row, keys });
}

/// The arguments of [`hide`], which alone makes one.
struct Hide<'a> {
    row: *mut f32,
    keys: &'a Range<usize>,
}

impl Body for Hide<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Range { start, end } = *self.keys;
        let never = s.splat(f32::NEG_INFINITY);
        for key in (start..end).step_by(S::LANES) {
            let n = S::LANES.min(end - key);
            // SAFETY: I7: `n` of the keys that the caller of `hide` vouches for.
            unsafe {
                let at = self.row.wrapping_add(key);
                if n == S::LANES { s.store(at, never) } else { s.store_partial(at, n, never) }
            }
        }
    }
}

/// A row of which all keys have been seen.
pub(crate) struct Row<'a> {
    pub(crate) problem: &'a Problem<'a>,
    pub(crate) sequence: &'a Sequence<'a>,
    pub(crate) head: usize,
    pub(crate) row: usize,
    /// Its running maximum, and its sum, relative to that and without the sink.
    pub(crate) max: f32,
    pub(crate) sum: f32,
    /// Whether it sees no key.
    pub(crate) is_empty: bool,
}

/// Turns the scores of `keys`, in the output row at `at`, into probabilities, in place; writes
/// zeros for all other keys. Kept out of line: few problems want probabilities.
///
/// # Safety
/// The output row is that of `row`, nobody else uses it, and all of its `keys` but those in their
/// gap have been written.
#[inline(never)]
pub(crate) unsafe fn finish<S: Isa>(s: S, row: &Row, keys: &SeenKeys, at: *mut f32) {
    let SeenKeys { keys, gap } = keys;
    let all = row.problem.weights().map_or(0, |weights| weights.view.layout().dim);
    let gap = if gap.is_empty() { keys.end..keys.end } else { gap.clone() };
    // Keys that nobody sees have been written by nobody.
    let seen = if row.is_empty { [0..0, 0..0] } else { [keys.start..gap.start, gap.end..keys.end] };
    let mut done = 0;
    for keys in seen.into_iter().filter(|keys| !keys.is_empty()) {
        // SAFETY: keys of the output row, which is the caller's.
        unsafe {
            blank(at.wrapping_add(done), keys.start - done);
            s.core().enter(Finish { row, keys: &keys, at });
        }
        done = keys.end;
    }
    // SAFETY: as above.
    unsafe { blank(at.wrapping_add(done), all - done) };
}

/// The arguments of [`finish`], which alone makes one.
struct Finish<'a, 'p> {
    row: &'a Row<'p>,
    keys: &'a Range<usize>,
    at: *mut f32,
}

impl Body for Finish<'_, '_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Isa>(self, s: S) {
        let Finish { row, keys, at } = self;
        let [head, _] = row.sequence.line(row.head, row.row);
        let sink = row.problem.sink(head);
        let factor = match sink == f32::NEG_INFINITY {
            true => 1.0 / row.sum,
            false => with_sink(sink, row.max, row.sum).0,
        };
        if !factor.is_finite() {
            // SAFETY: the caller of `finish` vouches for the keys.
            return unsafe { not_a_number(row, keys, at) };
        }
        // Without a finite score there is one of -inf, beside a sink: its probability is 0.
        let max = s.splat(if row.max > f32::NEG_INFINITY { row.max } else { 0.0 });
        let factor = s.splat(factor);
        for key in (keys.start..keys.end).step_by(S::LANES) {
            let n = S::LANES.min(keys.end - key);
            // SAFETY: I7: `n` of the keys that the caller of `finish` vouches for.
            unsafe {
                let at = at.wrapping_add(key);
                if n == S::LANES {
                    s.store(at, weight(s, s.load(at), max, factor));
                } else {
                    s.store_partial(at, n, weight(s, s.load_partial(at, n), max, factor));
                }
            }
        }
    }
}

/// 2^(score - max) · factor. Not a closure: one that is not inlined is compiled without the
/// instruction set.
#[inline(always)]
fn weight<S: Isa>(s: S, score: S::F32, max: S::F32, factor: S::F32) -> S::F32 {
    s.mul(s.exp2(s.sub(score, max)), factor)
}

/// The probabilities of a row whose output is NaN: those of keys that it sees are, too. Kept out of
/// line, because it is rare.
///
/// # Safety
/// The keys are those of an output row that is the caller's.
#[cold]
#[inline(never)]
unsafe fn not_a_number(row: &Row, keys: &Range<usize>, at: *mut f32) {
    let Row { problem, sequence, head, row, .. } = *row;
    for key in keys.clone() {
        let sees = problem.sees(sequence, head, row, key);
        // SAFETY: one of the keys (caller); no alignment is assumed.
        unsafe { at.wrapping_add(key).write_unaligned(if sees { f32::NAN } else { 0.0 }) };
    }
}
