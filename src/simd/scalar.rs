//! Plain Rust: runs on every target, and is what the other rows are compared with.
//!
//! Four lanes and not one, so that compilers turn the loops into whatever 128-bit vectors the
//! target guarantees. No fused multiply-add: without the instruction it is a slow library call.

use std::ffi::CStr;

use core::array::from_fn;

use super::math::{self, Table};
use super::{Body, Isa, MAX_LANES, half};

/// The instruction set of the compilation target itself.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Table for Scalar {
    #[inline(always)]
    fn pick(self, table: &[f32; MAX_LANES], index: [f32; 4]) -> [f32; 4] {
        index.map(|index| table[(index.to_bits() & 7) as usize])
    }

    #[inline(always)]
    fn power(self, x: [f32; 4]) -> [f32; 4] {
        x.map(|x| f32::from_bits((x.to_bits() << 20) & (0xff << 23)))
    }
}

impl Isa for Scalar {
    const NAME: &'static CStr = c"scalar";
    const LANES: usize = 4;
    // What x86-64 guarantees, the least of all targets.
    const REGISTERS: usize = 16;
    type F32 = [f32; 4];
    type I32 = [i32; 4];
    type Mask = [bool; 4];
    type Core = Scalar;

    fn detect() -> Option<Self> {
        Some(Scalar)
    }

    #[inline(always)]
    fn enter<B: Body>(self, body: B) -> B::Out {
        body.run(self)
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
    fn sums(self, v: &[[f32; 4]; MAX_LANES]) -> [f32; 4] {
        from_fn(|i| self.total(v[i]))
    }

    #[inline(always)]
    fn sums_i32(self, v: &[[i32; 4]; MAX_LANES]) -> [i32; 4] {
        from_fn(|i| v[i].into_iter().fold(0, i32::wrapping_add))
    }

    #[inline(always)]
    fn total(self, x: [f32; 4]) -> f32 {
        (x[0] + x[2]) + (x[1] + x[3])
    }

    #[inline(always)]
    fn largest(self, x: [f32; 4]) -> f32 {
        x[0].max(x[1]).max(x[2].max(x[3]))
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
    fn halves(self, low: [f32; 4], high: [f32; 4]) -> [i32; 4] {
        from_fn(|i| (low[i].to_bits() >> 16 | (high[i].to_bits() & !0xffff)) as i32)
    }

    #[inline(always)]
    fn halves_rounded(self, low: [f32; 4], high: [f32; 4]) -> [i32; 4] {
        let rounded = |x: f32| f32::from_bits(x.to_bits().wrapping_add(0x8000));
        self.halves(low.map(rounded), high.map(rounded))
    }

    #[inline(always)]
    fn low_half(self, x: [i32; 4]) -> [f32; 4] {
        x.map(|x| f32::from_bits((x as u32) << 16))
    }

    #[inline(always)]
    fn high_half(self, x: [i32; 4]) -> [f32; 4] {
        x.map(|x| f32::from_bits(x as u32 & !0xffff))
    }

    #[inline(always)]
    fn within(self, low: [i32; 4], x: [i32; 4], high: [i32; 4]) -> [bool; 4] {
        from_fn(|i| low[i] <= x[i] && x[i] < high[i])
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> [f32; 4] {
        // SAFETY: this method's contract.
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: [f32; 4]) {
        // SAFETY: this method's contract.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(x) };
    }

    #[inline(always)]
    unsafe fn load_first(self, p: *const f32, n: usize) -> [f32; 4] {
        // SAFETY: this method's contract.
        from_fn(|i| if i < n { unsafe { p.add(i).read_unaligned() } } else { 0.0 })
    }

    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize, x: [f32; 4]) {
        for (i, &x) in x[..n].iter().enumerate() {
            // SAFETY: this method's contract.
            unsafe { p.add(i).write_unaligned(x) };
        }
    }

    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> [i32; 4] {
        // SAFETY: this method's contract.
        unsafe { p.cast::<[i32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, x: [i32; 4]) {
        // SAFETY: this method's contract.
        unsafe { p.cast::<[i32; 4]>().write_unaligned(x) };
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> [f32; 4] {
        // SAFETY: this method's contract.
        unsafe { p.cast::<[u16; 4]>().read_unaligned() }.map(half::from_f16)
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> [f32; 4] {
        // SAFETY: this method's contract.
        unsafe { p.cast::<[u16; 4]>().read_unaligned() }.map(half::from_bf16)
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> [f32; 4] {
        // SAFETY: this method's contract.
        unsafe { p.cast::<[i8; 4]>().read_unaligned() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: [f32; 4]) {
        // SAFETY: this method's contract.
        unsafe { p.cast::<[u16; 4]>().write_unaligned(x.map(half::to_f16)) };
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: [f32; 4]) {
        // SAFETY: this method's contract.
        unsafe { p.cast::<[u16; 4]>().write_unaligned(x.map(half::to_bf16)) };
    }

    #[inline(always)]
    fn dot_i16(self, sum: [i32; 4], a: [i32; 4], b: [i32; 4]) -> [i32; 4] {
        let low = |x: i32| i32::from(x as i16);
        from_fn(|i| {
            let high = (a[i] >> 16) * (b[i] >> 16);
            sum[i].wrapping_add(low(a[i]) * low(b[i])).wrapping_add(high)
        })
    }

    #[inline(always)]
    fn pair_i16(self, low: [f32; 4], high: [f32; 4]) -> [i32; 4] {
        // `as` makes 0 of NaN.
        let round = |x: f32| x.round_ties_even() as i32;
        from_fn(|i| round(low[i]) & 0xffff | round(high[i]) << 16)
    }

    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, x: [f32; 4]) {
        // SAFETY: this method's contract.
        unsafe { p.cast::<[i16; 4]>().write_unaligned(x.map(|x| x.round_ties_even() as i16)) };
    }

    #[inline(always)]
    fn sub_i32(self, a: [i32; 4], b: [i32; 4]) -> [i32; 4] {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    fn xor(self, a: [i32; 4], b: [i32; 4]) -> [i32; 4] {
        from_fn(|i| a[i] ^ b[i])
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: [f32; 4]) {
        // `as` saturates, and makes 0 of NaN.
        let bytes = x.map(|x| if x.is_nan() { i8::MIN } else { x.round_ties_even() as i8 });
        // SAFETY: this method's contract.
        unsafe { p.cast::<[i8; 4]>().write_unaligned(bytes) };
    }

    #[inline(always)]
    unsafe fn nonzero(self, p: *const u8) -> [bool; 4] {
        // SAFETY: this method's contract.
        from_fn(|i| unsafe { p.add(i).read() } != 0)
    }

    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
        factor: Option<[f32; 4]>,
    ) {
        for row in 0..4 {
            for column in 0..4 {
                // SAFETY: this method's contract.
                unsafe {
                    let x = from.byte_add(row * from_stride).add(column).read_unaligned();
                    let x = factor.map_or(x, |factor| x * factor[column] + 0.0);
                    to.byte_add(column * to_stride).add(row).write_unaligned(x);
                }
            }
        }
    }
}
