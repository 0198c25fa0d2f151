//! What ends both wings: empty rows, the sink, and the log-sum-exp of a row.

use std::f64::consts::{LN_2, LOG2_E};

/// Writes zeros.
///
/// # Safety
/// `dim` values are writable at `row`.
#[inline(always)]
pub(crate) unsafe fn blank(row: *mut f32, dim: usize) {
    // SAFETY: this function's contract.
    unsafe { blank_bytes(row.cast(), dim * 4) };
}

/// Writes zeros. Out of line: compilers make a call of it anyway, which does not belong among the
/// loops.
///
/// # Safety
/// `n` bytes are writable at `row`.
#[inline(never)]
pub(crate) unsafe fn blank_bytes(row: *mut u8, n: usize) {
    // SAFETY: this function's contract; bytes need no alignment.
    unsafe { row.write_bytes(0, n) };
}

/// The natural logarithm of a row's sum of exponentials, that of the sink included, rounded once, from its
/// state in log2 units. Without a sink that is -inf.
#[inline(always)]
pub(crate) fn log_sum_exp(sink: f32, reference: f32, sum: f32) -> f32 {
    let log2 = if sink == f32::NEG_INFINITY {
        f64::from(reference) + f64::from(sum).log2()
    } else {
        with_sink(sink, reference, sum).1
    };
    (log2 * LN_2) as f32
}

/// With a sink: what a row's output is multiplied by, and the logarithm (to base 2) of its whole sum. Out of
/// line, because few problems have any.
#[inline(never)]
pub(crate) fn with_sink(sink: f32, reference: f32, sum: f32) -> (f32, f64) {
    let (sink, reference) = (f64::from(sink) * LOG2_E, f64::from(reference));
    // A maximum of NaN and a number is the number: NaN comes back by way of the terms.
    let max = reference.max(sink);
    let own = (reference - max).exp2();
    let sum = f64::from(sum) * own + (sink - max).exp2();
    ((own / sum) as f32, max + sum.log2())
}
