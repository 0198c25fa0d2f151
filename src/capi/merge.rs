//! `fa_merge`.

use std::ops::Range;
use std::slice;

use super::guard;
use super::status::fa_status;
use crate::attend::merge;
use crate::error::Error;
use crate::view::overlap;

/// Merges two results of attention of the same queries over disjoint sets of keys. Afterwards (o,
/// lse) is what attention over all these keys gives, within rounding. For prefixes that sequences
/// share, contexts split over machines, and keys that come in chunks.
///
/// With w = exp(lse) and w2 = exp(lse2): o = (w * o + w2 * o2) / (w + w2), lse = log(w + w2).
///
/// @param[in,out] o, lse  [rows][dim_v] and [rows], dense
/// @param[in] o2, lse2    the same sizes; not the same memory
/// @param rows            at least 0
/// @param dim_v           at least 1
/// @return FA_OK; FA_ERR_NULL; FA_ERR_SHAPE (a size is negative); FA_ERR_ZERO_EXTENT;
///         FA_ERR_OVERFLOW; FA_ERR_STRIDE (an address is not a multiple of 4); FA_ERR_OVERLAP
///
/// A result over no keys (o = 0, lse = -infinity) changes no bit of the other one, on either side.
/// Otherwise both orders give the same within rounding. Thread-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fa_merge(
    o: *mut f32,
    lse: *mut f32,
    o2: *const f32,
    lse2: *const f32,
    rows: i64,
    dim_v: i64,
) -> fa_status {
    guard(|| {
        if rows < 0 || dim_v < 0 {
            return Err(Error::Shape);
        }
        if dim_v == 0 {
            return Err(Error::ZeroExtent);
        }
        let (Ok(rows), Ok(dim)) = (usize::try_from(rows), usize::try_from(dim_v)) else {
            return Err(Error::Overflow);
        };
        let most = isize::MAX as usize / 4;
        let count = rows.checked_mul(dim).filter(|&n| n <= most).ok_or(Error::Overflow)?;
        if rows == 0 {
            return Ok(());
        }
        if o.is_null() || lse.is_null() || o2.is_null() || lse2.is_null() {
            return Err(Error::Null);
        }
        if [o.addr(), lse.addr(), o2.addr(), lse2.addr()].iter().any(|address| !address.is_multiple_of(4)) {
            return Err(Error::Stride);
        }
        let span = |start: usize, n: usize| start..start.saturating_add(4 * n);
        let outputs = [span(o.addr(), count), span(lse.addr(), rows)];
        let inputs = [span(o2.addr(), count), span(lse2.addr(), rows)];
        let overlaps = |a: &Range<usize>| inputs.iter().any(|b| overlap(a, b));
        if overlap(&outputs[0], &outputs[1]) || outputs.iter().any(overlaps) {
            return Err(Error::Overlap);
        }
        // SAFETY: I1: arrays of these sizes. I2: not NULL, aligned, within an address space, and
        // outputs apart from everything else, as was just checked.
        unsafe {
            merge::merge(
                slice::from_raw_parts_mut(o, count),
                slice::from_raw_parts_mut(lse, rows),
                slice::from_raw_parts(o2, count),
                slice::from_raw_parts(lse2, rows),
                dim,
            );
        }
        Ok(())
    })
}
