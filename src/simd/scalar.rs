//! Plain Rust: runs on every target, and is what tests compare the other instruction sets with.
//!
//! Vectors have four lanes, so that LLVM compiles the loops to the 128-bit vectors that the target
//! guarantees. `fma` is not fused: without the instruction a fused one is a slow library call.

use std::ffi::CStr;

use core::array::from_fn;

use super::math::{self, Table};
use super::tiles::Plain;
use super::{Body, Isa, MAX_LANES};

/// The baseline instruction set of the compilation target.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Table for Scalar {
    #[inline(always)]
    fn lookup(self, table: &[f32; MAX_LANES], index: [f32; 4]) -> [f32; 4] {
        index.map(|index| table[(index.to_bits() & 7) as usize])
    }

    #[inline(always)]
    fn exponent(self, x: [f32; 4]) -> [f32; 4] {
        x.map(|x| f32::from_bits((x.to_bits() << 20) & (0xff << 23)))
    }
}

impl Isa for Scalar {
    const NAME: &'static CStr = c"scalar";
    const LANES: usize = 4;
    // As on x86-64; no target has fewer.
    const REGISTERS: usize = 16;
    type F32 = [f32; 4];
    type I32 = [i32; 4];
    type Mask = [bool; 4];
    type Core = Scalar;
    type Tiles = Plain;

    fn detect() -> Option<Self> {
        Some(Scalar)
    }

    #[inline(always)]
    fn core(self) -> Self {
        self
    }

    #[inline(always)]
    fn enter<B: Body>(self, body: B) -> B::Out {
        body.run(self)
    }

    #[inline(always)]
    fn tiles(self, columns: usize) -> Plain {
        Plain::new(columns)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 4] {
        [x; 4]
    }

    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn exp2(self, x: Self::F32) -> Self::F32 {
        math::exp2_by_table(self, x)
    }

    #[inline(always)]
    fn gt(self, a: [f32; 4], b: [f32; 4]) -> [bool; 4] {
        from_fn(|i| a[i] > b[i])
    }

    #[inline(always)]
    fn select(self, mask: [bool; 4], a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        from_fn(|i| if mask[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn horizontal_sum(self, x: [f32; 4]) -> f32 {
        (x[0] + x[2]) + (x[1] + x[3])
    }

    #[inline(always)]
    fn any(self, mask: [bool; 4]) -> bool {
        mask.contains(&true)
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> [i32; 4] {
        [x; 4]
    }

    #[inline(always)]
    fn to_f32(self, x: [i32; 4]) -> [f32; 4] {
        x.map(|x| x as f32)
    }

    #[inline(always)]
    fn in_range(self, low: [i32; 4], x: [i32; 4], high: [i32; 4]) -> [bool; 4] {
        from_fn(|i| low[i] <= x[i] && x[i] < high[i])
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; 4] {
        // SAFETY: LANES values are readable at `p` (caller).
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: [f32; 4]) {
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { p.cast::<[f32; 4]>().write_unaligned(x) };
    }

    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> [i32; 4] {
        // SAFETY: LANES values are readable at `p` (caller).
        unsafe { p.cast::<[i32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, x: [i32; 4]) {
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { p.cast::<[i32; 4]>().write_unaligned(x) };
    }
}
