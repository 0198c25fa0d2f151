//! bfloat16: the upper 16 bits of a binary32.

use super::Stored;
use crate::simd::{Isa, half};

/// [`Stored`] of [`super::Dtype::Bf16`].
pub(crate) enum Bf16 {}

impl Stored for Bf16 {
    const BLOCK: usize = 1;
    const BLOCK_BYTES: usize = 2;

    #[inline(always)]
    unsafe fn element(row: *const u8, d: usize) -> f32 {
        // SAFETY: element `d` is readable (caller).
        half::from_bf16(unsafe { row.cast::<u16>().wrapping_add(d).read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load<S: Isa>(s: S, row: *const u8, d: usize) -> S::F32 {
        // SAFETY: LANES elements are readable from element `d` on (caller).
        unsafe { s.load_bf16(row.cast::<u16>().wrapping_add(d)) }
    }
}
