//! WebAssembly's vectors of 128 bits (simd128): 4 lanes; a mask is a vector of all-ones and
//! all-zeros lanes.
//!
//! A module cannot ask what runs it, and is refused as a whole where an instruction is unknown. So
//! this set is there where the whole program is compiled for it, and needs no detection and no
//! [`Isa::enter`] of its own. There is no fused multiply-add: products are rounded, and then sums,
//! as in plain Rust.

use std::ffi::CStr;

use core::arch::wasm32::*;

use super::tiles::Plain;
use super::{Body, Isa, MAX_LANES, Padded, fallback, math};

/// simd128: that this is compiled is the proof.
#[derive(Clone, Copy)]
pub(crate) struct Simd128(());

/// 1.5 · 2^23: adding it rounds to integers, to nearest even, which are then in the lowest bits.
const ROUND: f32 = 12_582_912.0;

impl Simd128 {
    /// 2^x from the powers of the fractions of x, with the special values of [`Isa::exp2`].
    #[inline(always)]
    fn scaled(self, x: v128, power: impl Fn(v128) -> v128) -> v128 {
        /// Bits of the exponent 0 in the lowest bits of the sum.
        const TO_EXPONENT: f32 = ROUND + 127.0;
        let floor = f32x4_floor(x);
        let scale = i32x4_shl(f32x4_add(floor, f32x4_splat(TO_EXPONENT)), 23);
        // A product, so that NaN stays NaN.
        let y = f32x4_mul(power(f32x4_sub(x, floor)), scale);
        v128_andnot(y, f32x4_lt(x, f32x4_splat(math::UNDERFLOW)))
    }

    /// The bits of numbers rounded to nearest even: the 22 lowest ones are those of the integers.
    #[inline(always)]
    fn rounded(self, x: v128) -> v128 {
        f32x4_add(x, f32x4_splat(ROUND))
    }

    /// 0 for NaN, other numbers as they are.
    #[inline(always)]
    fn without_nan(self, x: v128) -> v128 {
        v128_and(x, f32x4_eq(x, x))
    }
}

/// The shuffle that transposes four rows of four bytes.
#[inline(always)]
fn transpose_bytes(x: v128) -> v128 {
    i8x16_shuffle::<0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15>(x, x)
}

/// Lane `i` is the sum of the lanes of vector `i`, (0 + 2) + (1 + 3).
#[inline(always)]
fn sums_of_lanes([a, b, c, d]: [v128; 4], add: impl Fn(v128, v128) -> v128) -> v128 {
    let pairs = |a, b| add(i32x4_shuffle::<0, 4, 1, 5>(a, b), i32x4_shuffle::<2, 6, 3, 7>(a, b));
    let (ab, cd) = (pairs(a, b), pairs(c, d));
    add(i32x4_shuffle::<0, 1, 4, 5>(ab, cd), i32x4_shuffle::<2, 3, 6, 7>(ab, cd))
}

impl Isa for Simd128 {
    const NAME: &'static CStr = c"simd128";
    const LANES: usize = 4;
    // A module has as many as it likes. x86-64 without AVX-512 has these, 64-bit Arm more.
    const REGISTERS: usize = 16;
    type F32 = v128;
    type I32 = v128;
    type Mask = v128;
    type Core = Simd128;
    type Tiles = Plain;

    #[inline(always)]
    fn detect() -> Option<Self> {
        // I4: the runtime has accepted a module with these instructions.
        Some(Simd128(()))
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
    fn splat(self, x: f32) -> v128 {
        f32x4_splat(x)
    }

    #[inline(always)]
    fn add(self, a: v128, b: v128) -> v128 {
        f32x4_add(a, b)
    }

    #[inline(always)]
    fn sub(self, a: v128, b: v128) -> v128 {
        f32x4_sub(a, b)
    }

    #[inline(always)]
    fn mul(self, a: v128, b: v128) -> v128 {
        f32x4_mul(a, b)
    }

    #[inline(always)]
    fn div(self, a: v128, b: v128) -> v128 {
        f32x4_div(a, b)
    }

    #[inline(always)]
    fn fma(self, a: v128, b: v128, c: v128) -> v128 {
        f32x4_add(f32x4_mul(a, b), c)
    }

    #[inline(always)]
    fn max(self, a: v128, b: v128) -> v128 {
        // The second operand if it is larger.
        f32x4_pmax(b, a)
    }

    #[inline(always)]
    fn min(self, a: v128, b: v128) -> v128 {
        // The second operand if it is smaller.
        f32x4_pmin(b, a)
    }

    #[inline(always)]
    fn exp2(self, x: v128) -> v128 {
        self.scaled(x, |fraction| math::exp2_fraction(self, fraction))
    }

    #[inline(always)]
    fn exp2_approx(self, x: v128) -> v128 {
        self.scaled(x, |fraction| math::exp2_fraction_approx(self, fraction))
    }

    #[inline(always)]
    fn gt(self, a: v128, b: v128) -> v128 {
        f32x4_gt(a, b)
    }

    #[inline(always)]
    fn in_range(self, low: v128, x: v128, high: v128) -> v128 {
        v128_and(i32x4_le(low, x), i32x4_lt(x, high))
    }

    #[inline(always)]
    fn select(self, mask: v128, a: v128, b: v128) -> v128 {
        v128_bitselect(a, b, mask)
    }

    #[inline(always)]
    fn any(self, mask: v128) -> bool {
        v128_any_true(mask)
    }

    #[inline(always)]
    fn horizontal_sums(self, v: &[v128; MAX_LANES]) -> v128 {
        sums_of_lanes([v[0], v[1], v[2], v[3]], |a, b| self.add(a, b))
    }

    #[inline(always)]
    fn horizontal_sum(self, x: v128) -> f32 {
        // The order of additions of `horizontal_sums`.
        let pairs = f32x4_add(x, i32x4_shuffle::<2, 3, 2, 3>(x, x));
        f32x4_extract_lane::<0>(f32x4_add(pairs, i32x4_shuffle::<1, 1, 1, 1>(pairs, pairs)))
    }

    #[inline(always)]
    fn horizontal_sums_i32(self, v: &[v128; MAX_LANES]) -> v128 {
        sums_of_lanes([v[0], v[1], v[2], v[3]], |a, b| i32x4_add(a, b))
    }

    #[inline(always)]
    fn horizontal_sum_i32(self, x: v128) -> i32 {
        let pairs = i32x4_add(x, i32x4_shuffle::<2, 3, 2, 3>(x, x));
        i32x4_extract_lane::<0>(i32x4_add(pairs, i32x4_shuffle::<1, 1, 1, 1>(pairs, pairs)))
    }

    #[inline(always)]
    fn horizontal_max(self, x: v128) -> f32 {
        let pairs = f32x4_pmax(x, i32x4_shuffle::<2, 3, 2, 3>(x, x));
        f32x4_extract_lane::<0>(f32x4_pmax(pairs, i32x4_shuffle::<1, 1, 1, 1>(pairs, pairs)))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> v128 {
        i32x4_splat(x)
    }

    #[inline(always)]
    fn to_f32(self, x: v128) -> v128 {
        f32x4_convert_i32x4(x)
    }

    #[inline(always)]
    fn sub_i32(self, a: v128, b: v128) -> v128 {
        i32x4_sub(a, b)
    }

    #[inline(always)]
    fn xor(self, a: v128, b: v128) -> v128 {
        v128_xor(a, b)
    }

    #[inline(always)]
    fn pack_bf16(self, low: v128, high: v128) -> v128 {
        v128_or(u32x4_shr(low, 16), v128_and(high, i32x4_splat(!0xffff)))
    }

    #[inline(always)]
    fn pack_i16(self, low: v128, high: v128) -> v128 {
        let [low, high] = [low, high].map(|x| self.rounded(self.without_nan(x)));
        v128_or(v128_and(low, i32x4_splat(0xffff)), i32x4_shl(high, 16))
    }

    #[inline(always)]
    fn dot_i16(self, sum: v128, a: v128, b: v128) -> v128 {
        i32x4_add(sum, i32x4_dot_i16x8(a, b))
    }

    #[inline(always)]
    fn interleave_i16(self, a: v128, b: v128) -> [v128; 2] {
        [i16x8_shuffle::<0, 8, 1, 9, 2, 10, 3, 11>(a, b), i16x8_shuffle::<4, 12, 5, 13, 6, 14, 7, 15>(a, b)]
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> v128 {
        // SAFETY: LANES values are readable at `p` (caller).
        unsafe { v128_load(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> v128 {
        // SAFETY: `n` values are readable at `p` (caller).
        unsafe {
            match n {
                0 => f32x4_splat(0.0),
                1 => v128_load32_zero(p.cast()),
                2 => v128_load64_zero(p.cast()),
                _ => v128_load32_lane::<2>(v128_load64_zero(p.cast()), p.add(2).cast()),
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: v128) {
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { v128_store(p.cast(), x) }
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, x: v128) {
        // SAFETY: `n` values are writable at `p` (caller).
        unsafe {
            match n {
                0 => {}
                1 => v128_store32_lane::<0>(x, p.cast()),
                _ => {
                    v128_store64_lane::<0>(x, p.cast());
                    if n > 2 {
                        v128_store32_lane::<2>(x, p.add(2).cast());
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store_segments<const R: usize>(self, p: *mut f32, step: usize, x: v128) {
        // SAFETY: `LANES / R` values are writable at each of the `R` places (caller).
        unsafe {
            match R {
                1 => v128_store(p.cast(), x),
                2 => {
                    v128_store64_lane::<0>(x, p.cast());
                    v128_store64_lane::<1>(x, p.add(step).cast());
                }
                _ => {
                    v128_store32_lane::<0>(x, p.cast());
                    v128_store32_lane::<1>(x, p.add(step).cast());
                    v128_store32_lane::<2>(x, p.add(2 * step).cast());
                    v128_store32_lane::<3>(x, p.add(3 * step).cast());
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> v128 {
        // SAFETY: LANES values are readable at `p` (caller).
        unsafe { v128_load(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, x: v128) {
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { v128_store(p.cast(), x) }
    }

    #[inline(always)]
    unsafe fn load_padded(self, row: *const u8, from: usize, n: usize, size: usize) -> Padded {
        const VECTOR: usize = 16;
        let end = from + n;
        if size != VECTOR || end < VECTOR {
            // SAFETY: the row has `from + n` bytes (caller).
            return unsafe { fallback::load_padded(row, from, n, size) };
        }
        let mut padded = [0; size_of::<Padded>()];
        // The last vector of the row, moved to the front; a place beyond the vector gives 0.
        let places = u8x16_add_sat(
            i8x16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
            u8x16_splat((VECTOR - n) as u8),
        );
        // SAFETY: I7: the row has `end` bytes (caller), at least a vector, and so has the array.
        unsafe {
            let last = v128_load(row.add(end - VECTOR).cast());
            v128_store(padded.as_mut_ptr().cast(), i8x16_swizzle(last, places));
        }
        padded
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> v128 {
        // SAFETY: LANES values are readable at `p` (caller).
        let bits = unsafe { i32x4_load_extend_u16x4(p) };
        // As `half::from_f16`: the number times 2^-112, and an exponent of ones made one of more.
        let small = v128_and(i32x4_shr(i32x4_shl(bits, 16), 3), u32x4_splat(0x8fff_e000));
        let ones = u32x4_splat(31 << 23);
        let is_special = i32x4_eq(v128_and(small, ones), ones);
        let exponent = v128_and(is_special, u32x4_splat(0xff << 23));
        f32x4_mul(v128_or(small, exponent), u32x4_splat((127 + 112) << 23))
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> v128 {
        // SAFETY: LANES values are readable at `p` (caller).
        i32x4_shl(unsafe { i32x4_load_extend_u16x4(p) }, 16)
    }

    #[inline(always)]
    unsafe fn load_i16(self, p: *const i16) -> v128 {
        // SAFETY: LANES values are readable at `p` (caller).
        f32x4_convert_i32x4(unsafe { i32x4_load_extend_i16x4(p) })
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> v128 {
        // SAFETY: LANES values are readable at `p` (caller).
        let bytes = unsafe { v128_load32_zero(p.cast()) };
        f32x4_convert_i32x4(i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(bytes)))
    }

    #[inline(always)]
    unsafe fn load_i8_i16(self, p: *const i8) -> v128 {
        // SAFETY: 2 * LANES values are readable at `p` (caller).
        unsafe { i16x8_load_extend_i8x8(p) }
    }

    #[inline(always)]
    unsafe fn unpack_nibbles(
        self,
        p: *const u8,
        table: &[i8; 16],
        fifths: Option<(u32, i8)>,
        sign: Option<i8>,
        to: *mut i8,
    ) {
        // SAFETY: I7: 16 bytes are readable at `p` (caller), and the table has 16.
        let (both, table) = unsafe { (v128_load(p.cast()), v128_load(table.as_ptr().cast())) };
        let nibbles = [v128_and(both, u8x16_splat(15)), u8x16_shr(both, 4)];
        for (half, nibbles) in nibbles.into_iter().enumerate() {
            let mut codes = i8x16_swizzle(table, nibbles);
            if let Some((bits, more)) = fifths {
                // Each of two bytes eight times, of which each time another bit counts.
                let bits = u32x4_splat(bits >> (16 * half));
                let bytes = i8x16_shuffle::<0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1>(bits, bits);
                let bit = u64x2_splat(0x8040_2010_0804_0201);
                let more = v128_and(i8x16_eq(v128_and(bytes, bit), bit), i8x16_splat(more));
                codes = i8x16_add(codes, more);
            }
            if sign.is_some_and(|sign| sign < 0) {
                codes = i8x16_neg(codes);
            }
            // SAFETY: 32 numbers are writable at `to` (caller).
            unsafe { v128_store(to.add(16 * half).cast(), codes) };
        }
    }

    #[inline(always)]
    unsafe fn load_interleaved_bytes(self, rows: [*const u8; 4], d: usize) -> v128 {
        // SAFETY: LANES bytes are readable at byte `d` of each row (caller).
        let [a, b, c, e] = rows.map(|row| unsafe { row.add(d).cast::<u32>().read_unaligned() });
        transpose_bytes(u32x4(a, b, c, e))
    }

    #[inline(always)]
    unsafe fn load_nonzero(self, p: *const u8) -> v128 {
        // SAFETY: LANES bytes are readable at `p` (caller).
        let bytes = unsafe { v128_load32_zero(p.cast()) };
        i32x4_ne(i32x4_extend_low_u16x8(i16x8_extend_low_u8x16(bytes)), i32x4_splat(0))
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: v128) {
        // As `half::to_f16`.
        let infinity = u32x4_splat(0x7f80_0000);
        let half = f32x4_splat(0.5);
        let magnitude = v128_and(x, u32x4_splat(0x7fff_ffff));
        let rebiased = i32x4_sub(magnitude, u32x4_splat(112 << 23));
        let odd = v128_and(u32x4_shr(rebiased, 13), u32x4_splat(1));
        let rounded = u32x4_shr(i32x4_add(rebiased, i32x4_add(odd, u32x4_splat(0xfff))), 13);
        let normal = u32x4_min(rounded, u32x4_splat(0x7c00));
        let subnormal = i32x4_sub(f32x4_add(magnitude, half), half);
        let payload = v128_and(u32x4_shr(magnitude, 13), u32x4_splat(0x3ff));
        let nan = v128_or(payload, u32x4_splat(0x7e00));
        let is_small = i32x4_lt(magnitude, u32x4_splat(0x3880_0000));
        let value = v128_bitselect(subnormal, normal, is_small);
        let value = v128_bitselect(nan, value, i32x4_gt(magnitude, infinity));
        let bits = v128_or(value, v128_and(u32x4_shr(x, 16), u32x4_splat(0x8000)));
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { v128_store64_lane::<0>(u16x8_narrow_i32x4(bits, bits), p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: v128) {
        let odd = v128_and(u32x4_shr(x, 16), u32x4_splat(1));
        let rounded = i32x4_add(i32x4_add(x, u32x4_splat(0x7fff)), odd);
        let quiet = v128_or(x, u32x4_splat(1 << 22));
        let bits = u32x4_shr(v128_bitselect(rounded, quiet, f32x4_eq(x, x)), 16);
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { v128_store64_lane::<0>(u16x8_narrow_i32x4(bits, bits), p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: v128) {
        // The bound, if the other is NaN.
        let x = self.min(self.max(x, f32x4_splat(-128.0)), f32x4_splat(127.0));
        let bits = self.rounded(x);
        let bytes = i8x16_shuffle::<0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12>(bits, bits);
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { v128_store32_lane::<0>(bytes, p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, x: v128) {
        let bits = self.rounded(x);
        let halves = i16x8_shuffle::<0, 2, 4, 6, 0, 2, 4, 6>(bits, bits);
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { v128_store64_lane::<0>(halves, p.cast()) }
    }

    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
        factor: Option<v128>,
    ) {
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| {
            // SAFETY: four rows of four values are readable (caller).
            let x = unsafe { v128_load(from.byte_add(row * from_stride).cast()) };
            match factor {
                // Adding 0 turns a product of -0 into +0.
                Some(factor) => f32x4_add(f32x4_mul(x, factor), f32x4_splat(0.0)),
                None => x,
            }
        });
        let (ab, cd) = (i32x4_shuffle::<0, 4, 1, 5>(a, b), i32x4_shuffle::<0, 4, 1, 5>(c, d));
        let (ab_high, cd_high) = (i32x4_shuffle::<2, 6, 3, 7>(a, b), i32x4_shuffle::<2, 6, 3, 7>(c, d));
        let columns = [
            i32x4_shuffle::<0, 1, 4, 5>(ab, cd),
            i32x4_shuffle::<2, 3, 6, 7>(ab, cd),
            i32x4_shuffle::<0, 1, 4, 5>(ab_high, cd_high),
            i32x4_shuffle::<2, 3, 6, 7>(ab_high, cd_high),
        ];
        for (i, column) in columns.into_iter().enumerate() {
            // SAFETY: four rows of four values are writable (caller).
            unsafe { v128_store(to.byte_add(i * to_stride).cast(), column) };
        }
    }
}
