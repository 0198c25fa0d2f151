//! What ends both paths, prefill and decode: empty rows, the sink, and the log-sum-exp of a row.

use std::f64::consts::{LN_2, LOG2_E};

/// Writes zeros as f32.
///
/// # Safety
/// `dim` values are writable at `row`.
#[inline(always)]
pub(crate) unsafe fn blank(row: *mut f32, dim: usize) {
    // SAFETY: `dim` values are 4 · `dim` bytes (caller).
    unsafe { blank_bytes(row.cast(), dim * 4) };
}

/// Writes zeros. Kept out of line: LLVM lowers it to memset, and the call would spill the registers
/// of the loops around it.
///
/// # Safety
/// `n` bytes are writable at `row`.
#[inline(never)]
pub(crate) unsafe fn blank_bytes(row: *mut u8, n: usize) {
    // SAFETY: `n` bytes are writable (caller); bytes need no alignment.
    unsafe { row.write_bytes(0, n) };
}

/// The natural logarithm of a row's sum of exponentials, that of the sink included, rounded once;
/// from the row's state in log2 units. `sink` is -inf if there is none.
#[inline(always)]
pub(crate) fn log_sum_exp(sink: f32, running_max: f32, sum: f32) -> f32 {
    let log2 = if sink == f32::NEG_INFINITY {
        f64::from(running_max) + f64::from(sum).log2()
    } else {
        with_sink(sink, running_max, sum).1
    };
    (log2 * LN_2) as f32
}

/// With a sink: the factor of a row's output, and the logarithm to base 2 of its whole sum. Kept
/// out of line: few problems have sinks.
#[inline(never)]
pub(crate) fn with_sink(sink: f32, running_max: f32, sum: f32) -> (f32, f64) {
    let (sink, running_max) = (f64::from(sink) * LOG2_E, f64::from(running_max));
    // The maximum of NaN and a number is the number; NaN comes back by way of the terms.
    let max = running_max.max(sink);
    let own = (running_max - max).exp2();
    let sum = f64::from(sum) * own + (sink - max).exp2();
    ((own / sum) as f32, max + sum.log2())
}
