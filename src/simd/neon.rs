//! NEON, which every 64-bit Arm machine has: 4 lanes; a mask is a vector of all-ones and all-zeros
//! lanes. Its extensions are [`Level`]s.
//!
//! The dot products of the extensions, and prefetching, are inline assembly: no stable intrinsic
//! has them. An assembler that does not know of an extension is told in the line before, so that
//! the methods compile outside [`Isa::enter`], too.

use std::ffi::CStr;

use core::arch::aarch64::*;
use core::arch::asm;

use super::tiles::Plain;
use super::{Body, Isa, MAX_LANES, Padded, Token, fallback, math, token};

/// NEON with the extensions of a level, [`Base`] by default.
#[derive(Clone, Copy)]
pub(crate) struct Neon<L = Base>(L);

token! {
    /// NEON with conversions of binary16: all of Armv8-A.
    Base as Neon; "neon"
}

token! {
    /// [`Base`] with dot products of bytes of equal signs: Cortex-A55 and A76, Neoverse N1, Apple's
    /// A13 and M1, and later.
    DotProd as Neon; "dotprod", "neon"
}

token! {
    /// [`Base`] with products of unsigned by signed bytes, of pairs of rows, too: Cortex-A510 and
    /// A710, Neoverse V1 and N2, Apple's M2, and later.
    I8mm as Neon; "i8mm", "neon"
}

token! {
    /// [`Base`] with products of bfloat16, of pairs of rows, too: the machines of [`I8mm`].
    Bf16 as Neon; "bf16", "neon"
}

/// One dot product of four numbers of 8 bits in each lane, or two of 16, added to `$sum`. The
/// register that has `$sum` is all that changes.
macro_rules! dot {
    ($extension:literal, $instruction:literal, $sum:expr, $a:expr, $b:expr $(, $lane:expr)?) => {{
        let mut sum = $sum;
        asm!(
            concat!(".arch_extension ", $extension),
            $instruction,
            sum = inout(vreg) sum,
            a = in(vreg) $a,
            b = in(vreg) $b,
            $(lane = const $lane,)?
            options(pure, nomem, nostack, preserves_flags)
        );
        sum
    }};
}

/// The methods of [`Isa`] that differ between levels of NEON.
pub(crate) trait Level: Token {
    /// The value of [`Isa::NAME`].
    const NAME: &'static CStr;

    /// [`Isa::dot_bf16`]: two multiply-adds in f32, unless the level has the instruction.
    #[inline(always)]
    fn dot_bf16(s: Neon<Self>, sum: float32x4_t, a: int32x4_t, b: int32x4_t) -> float32x4_t {
        fallback::dot_bf16(s, sum, a, b)
    }

    /// [`Isa::matrix_bf16`], likewise.
    #[inline(always)]
    fn matrix_bf16(s: Neon<Self>, sum: float32x4_t, a: int32x4_t, b: int32x4_t) -> float32x4_t {
        fallback::matrix_bf16(s, sum, a, b)
    }

    /// [`Isa::matrix_u8_i8`]: two dot products, unless the level has the instruction.
    #[inline(always)]
    fn matrix_u8_i8(s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        fallback::matrix_u8_i8(s, sum, a, b)
    }

    /// The value of [`Isa::MULTIPLIES_EQUAL_SIGNS`].
    const MULTIPLIES_EQUAL_SIGNS: bool = false;

    /// [`Isa::dot_u8_i8`]: lane by lane, unless the level has the instruction.
    #[inline(always)]
    fn dot_u8_i8(s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        fallback::dot_u8_i8(s, sum, a, b)
    }

    /// [`Isa::dot_i8`], likewise.
    #[inline(always)]
    fn dot_i8(s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        fallback::dot_i8(s, sum, a, b)
    }

    /// [`Isa::dot_i8_lane`], likewise.
    #[inline(always)]
    fn dot_i8_lane<const I: i32>(s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        Self::dot_i8(s, sum, a, s.splat_lane_i32::<I>(b))
    }

    /// [`Isa::dot_u8`], likewise.
    #[inline(always)]
    fn dot_u8(s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        fallback::dot_u8(s, sum, a, b)
    }

    /// [`Isa::dot_u8_lane`], likewise.
    #[inline(always)]
    fn dot_u8_lane<const I: i32>(s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        Self::dot_u8(s, sum, a, s.splat_lane_i32::<I>(b))
    }
}

impl Level for Base {
    const NAME: &'static CStr = c"neon";
}

impl Level for DotProd {
    const NAME: &'static CStr = c"neon-dotprod";
    const MULTIPLIES_EQUAL_SIGNS: bool = true;

    /// Both as unsigned bytes: 128 is added to the signed ones, and 128 times the unsigned ones is
    /// subtracted again.
    #[inline(always)]
    fn dot_u8_i8(s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        let signs = s.splat_i32(i32::from_ne_bytes([0x80; 4]));
        let more = Self::dot_u8(s, s.splat_i32(0), a, signs);
        s.sub_i32(Self::dot_u8(s, sum, a, s.xor(b, signs)), more)
    }

    #[inline(always)]
    fn dot_i8(_s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: I4: `_s` holds the token of these dot products.
        unsafe { dot!("dotprod", "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum, a, b) }
    }

    #[inline(always)]
    fn dot_u8(_s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: I4: `_s` holds the token of these dot products.
        unsafe { dot!("dotprod", "udot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum, a, b) }
    }

    #[inline(always)]
    fn dot_i8_lane<const I: i32>(_s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: I4: `_s` holds the token of these dot products.
        unsafe { dot!("dotprod", "sdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]", sum, a, b, I) }
    }

    #[inline(always)]
    fn dot_u8_lane<const I: i32>(_s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: I4: `_s` holds the token of these dot products.
        unsafe { dot!("dotprod", "udot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]", sum, a, b, I) }
    }
}

impl Level for I8mm {
    const NAME: &'static CStr = c"neon-i8mm";

    #[inline(always)]
    fn dot_u8_i8(_s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: I4: `_s` holds the token of these dot products.
        unsafe { dot!("i8mm", "usdot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum, a, b) }
    }

    #[inline(always)]
    fn matrix_u8_i8(_s: Neon<Self>, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: I4: `_s` holds the token of these products.
        unsafe { dot!("i8mm", "usmmla {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum, a, b) }
    }
}

impl Level for Bf16 {
    const NAME: &'static CStr = c"neon-bf16";

    #[inline(always)]
    fn dot_bf16(_s: Neon<Self>, sum: float32x4_t, a: int32x4_t, b: int32x4_t) -> float32x4_t {
        // SAFETY: I4: `_s` holds the token of these dot products.
        unsafe { dot!("bf16", "bfdot {sum:v}.4s, {a:v}.8h, {b:v}.8h", sum, a, b) }
    }

    #[inline(always)]
    fn matrix_bf16(_s: Neon<Self>, sum: float32x4_t, a: int32x4_t, b: int32x4_t) -> float32x4_t {
        // SAFETY: I4: `_s` holds the token of these products.
        unsafe { dot!("bf16", "bfmmla {sum:v}.4s, {a:v}.8h, {b:v}.8h", sum, a, b) }
    }
}

/// Calls intrinsics of the CPU features that the token of this file stands for.
macro_rules! op {
    ($call:expr) => {{
        // SAFETY: I4: every caller has a token, which detection has made, so the CPU has every
        // feature of this file's list. Pointers lead to tables that are as long as what is read, or
        // are valid by the contract of the enclosing method (caller).
        unsafe { $call }
    }};
}

impl<L: Level> Neon<L> {
    /// 2^x from the powers of the fractions of x, with the special values of [`Isa::exp2`]. The
    /// integer part is added to the exponent.
    #[inline(always)]
    fn scaled(self, x: float32x4_t, power: impl Fn(float32x4_t) -> float32x4_t) -> float32x4_t {
        op!({
            let fraction = vsubq_f32(x, vrndmq_f32(x));
            // 0 for NaN.
            let exponent = vshlq_n_s32::<23>(vcvtmq_s32_f32(x));
            let y = vaddq_s32(vreinterpretq_s32_f32(power(fraction)), exponent);
            let underflows = vcgtq_f32(vdupq_n_f32(math::UNDERFLOW), x);
            vreinterpretq_f32_s32(vbicq_s32(y, vreinterpretq_s32_u32(underflows)))
        })
    }

    /// 255 · 2^x for x <= 0, rounded to integers; 0 for NaN.
    #[inline(always)]
    fn byte_power(self, x: float32x4_t) -> uint32x4_t {
        /// Adding it rounds to integers, which are then in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        /// Below, the result is 0.
        const LEAST: f32 = -20.0;
        /// 255 · 2^f for |f| <= 1/2, ascending, exact for 0. The relative error is below 0.2 %.
        const PARABOLA: [f32; 3] = [255.0, 179.272_55, 61.217_708];
        let [zero, one, two] = PARABOLA;
        op!({
            // The number, if the other is NaN.
            let x = vmaxnmq_f32(x, vdupq_n_f32(LEAST));
            let shifted = vaddq_f32(x, vdupq_n_f32(ROUND));
            let fraction = vsubq_f32(x, vsubq_f32(shifted, vdupq_n_f32(ROUND)));
            let y = vfmaq_f32(vdupq_n_f32(one), vdupq_n_f32(two), fraction);
            let y = vfmaq_f32(vdupq_n_f32(zero), y, fraction);
            let exponent = vshlq_n_s32::<23>(vreinterpretq_s32_f32(shifted));
            vcvtnq_u32_f32(vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(y), exponent)))
        })
    }
}

/// The shuffle that transposes four rows of four bytes.
const TRANSPOSE_BYTES: [u8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];

/// The two upper halves, or lower ones, of two vectors.
#[inline(always)]
fn join_halves(a: int32x4_t, b: int32x4_t) -> [int32x4_t; 2] {
    op!({
        let (a, b) = (vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b));
        [vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b))]
    })
}

impl<L: Level> Isa for Neon<L> {
    const NAME: &'static CStr = L::NAME;
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    // Every pipe that has the exponential multiplies, too: it would hide nothing.
    const EXP_IN_FIRST_TILE: bool = false;
    const MULTIPLIES_BY_LANE: bool = true;
    const MULTIPLIES_EQUAL_SIGNS: bool = L::MULTIPLIES_EQUAL_SIGNS;
    type F32 = float32x4_t;
    type I32 = int32x4_t;
    type Mask = uint32x4_t;
    type Core = Neon<Base>;
    type Tiles = Plain;

    #[inline(always)]
    fn detect() -> Option<Self> {
        L::probe().map(Neon)
    }

    #[inline(always)]
    fn core(self) -> Neon<Base> {
        // I4: the list of every level includes the features of the base.
        Neon(Base(()))
    }

    #[inline(always)]
    fn enter<B: Body>(self, body: B) -> B::Out {
        self.0.compiled_for(body)
    }

    #[inline(always)]
    fn tiles(self, columns: usize) -> Plain {
        Plain::new(columns)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        op!(vdupq_n_f32(x))
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn div(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vdivq_f32(a, b))
    }

    #[inline(always)]
    fn fma(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        op!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        self.select(self.gt(a, b), a, b)
    }

    #[inline(always)]
    fn min(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        self.select(self.gt(b, a), a, b)
    }

    #[inline(always)]
    fn exp2(self, x: float32x4_t) -> float32x4_t {
        self.scaled(x, |fraction| math::exp2_fraction(self, fraction))
    }

    #[inline(always)]
    fn exp2_approx(self, x: float32x4_t) -> float32x4_t {
        self.scaled(x, |fraction| math::exp2_fraction_approx(self, fraction))
    }

    #[inline(always)]
    fn splat_lane<const I: i32>(self, x: float32x4_t) -> float32x4_t {
        op!(vdupq_laneq_f32::<I>(x))
    }

    #[inline(always)]
    fn splat_lane_i32<const I: i32>(self, x: int32x4_t) -> int32x4_t {
        op!(vdupq_laneq_s32::<I>(x))
    }

    #[inline(always)]
    fn dot_i8(self, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        L::dot_i8(self, sum, a, b)
    }

    #[inline(always)]
    fn dot_u8(self, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        L::dot_u8(self, sum, a, b)
    }

    #[inline(always)]
    fn dot_i8_lane<const I: i32>(self, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        L::dot_i8_lane::<I>(self, sum, a, b)
    }

    #[inline(always)]
    fn dot_u8_lane<const I: i32>(self, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        L::dot_u8_lane::<I>(self, sum, a, b)
    }

    #[inline(always)]
    fn matrix_bf16(self, sum: float32x4_t, a: int32x4_t, b: int32x4_t) -> float32x4_t {
        L::matrix_bf16(self, sum, a, b)
    }

    #[inline(always)]
    fn matrix_u8_i8(self, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        L::matrix_u8_i8(self, sum, a, b)
    }

    #[inline(always)]
    fn zip(self, a: float32x4_t, b: float32x4_t) -> [float32x4_t; 2] {
        op!([vzip1q_f32(a, b), vzip2q_f32(a, b)])
    }

    #[inline(always)]
    fn unzip(self, a: float32x4_t, b: float32x4_t) -> [float32x4_t; 2] {
        op!([vuzp1q_f32(a, b), vuzp2q_f32(a, b)])
    }

    #[inline(always)]
    fn zip_halves(self, a: float32x4_t, b: float32x4_t) -> [float32x4_t; 2] {
        op!(join_halves(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(b)).map(|x| vreinterpretq_f32_s32(x)))
    }

    #[inline(always)]
    fn gt(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        op!(vcgtq_f32(a, b))
    }

    #[inline(always)]
    fn in_range(self, low: int32x4_t, x: int32x4_t, high: int32x4_t) -> uint32x4_t {
        op!(vandq_u32(vcleq_s32(low, x), vcltq_s32(x, high)))
    }

    #[inline(always)]
    fn select(self, mask: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        op!(vbslq_f32(mask, a, b))
    }

    #[inline(always)]
    fn any(self, mask: uint32x4_t) -> bool {
        op!(vmaxvq_u32(mask)) != 0
    }

    #[inline(always)]
    fn horizontal_sums(self, v: &[float32x4_t; MAX_LANES]) -> float32x4_t {
        op!(vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])))
    }

    #[inline(always)]
    fn horizontal_sum(self, x: float32x4_t) -> f32 {
        op!({
            // The order of additions of `horizontal_sums`.
            let pairs = vpaddq_f32(x, x);
            vgetq_lane_f32::<0>(vpaddq_f32(pairs, pairs))
        })
    }

    #[inline(always)]
    fn horizontal_sums_i32(self, v: &[int32x4_t; MAX_LANES]) -> int32x4_t {
        op!(vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3])))
    }

    #[inline(always)]
    fn horizontal_sum_i32(self, x: int32x4_t) -> i32 {
        op!(vaddvq_s32(x))
    }

    #[inline(always)]
    fn horizontal_max(self, x: float32x4_t) -> f32 {
        op!(vmaxnmvq_f32(x))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> int32x4_t {
        op!(vdupq_n_s32(x))
    }

    #[inline(always)]
    fn to_f32(self, x: int32x4_t) -> float32x4_t {
        op!(vcvtq_f32_s32(x))
    }

    #[inline(always)]
    fn sub_i32(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        op!(vsubq_s32(a, b))
    }

    #[inline(always)]
    fn xor(self, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        op!(veorq_s32(a, b))
    }

    #[inline(always)]
    fn dot_u8_i8(self, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        L::dot_u8_i8(self, sum, a, b)
    }

    #[inline(always)]
    fn exp2_u8(self, x: [float32x4_t; 4], top: float32x4_t) -> int32x4_t {
        let [a, b, c, d] = x.map(|x| op!(vreinterpretq_u16_u32(self.byte_power(self.sub(x, top)))));
        op!({
            // The lowest bytes of the words, four of each vector in turn.
            let (ab, cd) = (vuzp1q_u16(a, b), vuzp1q_u16(c, d));
            let bytes = vuzp1q_u8(vreinterpretq_u8_u16(ab), vreinterpretq_u8_u16(cd));
            vreinterpretq_s32_u8(vqtbl1q_u8(bytes, vld1q_u8(TRANSPOSE_BYTES.as_ptr())))
        })
    }

    #[inline(always)]
    fn interleave_bytes(self, x: [int32x4_t; 4]) -> [int32x4_t; 4] {
        op!({
            let [a, b, c, d] = x.map(|x| vreinterpretq_s8_s32(x));
            // Words of the bytes 0 to 3, 4 to 7, and so on.
            let [ab, cd] = [vzip1q_s8(a, b), vzip1q_s8(c, d)].map(|x| vreinterpretq_s32_s8(x));
            let [first, second] = self.interleave_i16(ab, cd);
            let [ab, cd] = [vzip2q_s8(a, b), vzip2q_s8(c, d)].map(|x| vreinterpretq_s32_s8(x));
            let [third, fourth] = self.interleave_i16(ab, cd);
            let ([a, b], [c, d]) = (join_halves(first, third), join_halves(second, fourth));
            [a, b, c, d]
        })
    }

    #[inline(always)]
    fn deinterleave_bytes(self, x: [float32x4_t; 4]) -> [float32x4_t; 4] {
        let [a, b, c, d] = x.map(|x| op!(vreinterpretq_s32_f32(x)));
        let ([first, third], [second, fourth]) = (join_halves(a, b), join_halves(c, d));
        [first, second, third, fourth].map(|x| op!(vreinterpretq_f32_s32(x)))
    }

    #[inline(always)]
    fn join_split16(self, high: int32x4_t, low: int32x4_t) -> int32x4_t {
        op!(vaddq_s32(vshlq_n_s32::<8>(high), low))
    }

    #[inline(always)]
    fn pack_bf16(self, low: float32x4_t, high: float32x4_t) -> int32x4_t {
        op!({
            let (low, high) = (vreinterpretq_u32_f32(low), vreinterpretq_u32_f32(high));
            vreinterpretq_s32_u32(vsriq_n_u32::<16>(high, low))
        })
    }

    #[inline(always)]
    fn pack_bf16_rounded(self, low: float32x4_t, high: float32x4_t) -> int32x4_t {
        op!({
            let half = vdupq_n_u32(0x8000);
            let low = vaddq_u32(vreinterpretq_u32_f32(low), half);
            let high = vaddq_u32(vreinterpretq_u32_f32(high), half);
            vreinterpretq_s32_u32(vsriq_n_u32::<16>(high, low))
        })
    }

    #[inline(always)]
    fn low_bf16(self, x: int32x4_t) -> float32x4_t {
        op!(vreinterpretq_f32_s32(vshlq_n_s32::<16>(x)))
    }

    #[inline(always)]
    fn high_bf16(self, x: int32x4_t) -> float32x4_t {
        op!(vreinterpretq_f32_s32(vandq_s32(x, vdupq_n_s32(!0xffff))))
    }

    #[inline(always)]
    fn dot_bf16(self, sum: float32x4_t, a: int32x4_t, b: int32x4_t) -> float32x4_t {
        L::dot_bf16(self, sum, a, b)
    }

    #[inline(always)]
    fn pack_i16(self, low: float32x4_t, high: float32x4_t) -> int32x4_t {
        op!(vsliq_n_s32::<16>(vcvtnq_s32_f32(low), vcvtnq_s32_f32(high)))
    }

    #[inline(always)]
    fn dot_i16(self, sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        op!({
            let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
            let low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
            vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(a, b)))
        })
    }

    #[inline(always)]
    fn interleave_i16(self, a: int32x4_t, b: int32x4_t) -> [int32x4_t; 2] {
        op!({
            let (a, b) = (vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
            [vreinterpretq_s32_s16(vzip1q_s16(a, b)), vreinterpretq_s32_s16(vzip2q_s16(a, b))]
        })
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> float32x4_t {
        op!(vld1q_f32(p))
    }

    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> float32x4_t {
        op!(match n {
            0 => vdupq_n_f32(0.0),
            1 => vld1q_lane_f32::<0>(p, vdupq_n_f32(0.0)),
            2 => vcombine_f32(vld1_f32(p), vdup_n_f32(0.0)),
            _ => vcombine_f32(vld1_f32(p), vld1_lane_f32::<0>(p.add(2), vdup_n_f32(0.0))),
        })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: float32x4_t) {
        op!(vst1q_f32(p, x));
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, x: float32x4_t) {
        op!(match n {
            0 => {}
            1 => vst1q_lane_f32::<0>(p, x),
            _ => {
                vst1_f32(p, vget_low_f32(x));
                if n > 2 {
                    vst1q_lane_f32::<2>(p.add(2), x);
                }
            }
        });
    }

    #[inline(always)]
    unsafe fn store_segments<const R: usize>(self, p: *mut f32, step: usize, x: float32x4_t) {
        op!(match R {
            1 => vst1q_f32(p, x),
            2 => {
                vst1_f32(p, vget_low_f32(x));
                vst1_f32(p.add(step), vget_high_f32(x));
            }
            _ => {
                vst1q_lane_f32::<0>(p, x);
                vst1q_lane_f32::<1>(p.add(step), x);
                vst1q_lane_f32::<2>(p.add(2 * step), x);
                vst1q_lane_f32::<3>(p.add(3 * step), x);
            }
        });
    }

    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> int32x4_t {
        op!(vld1q_s32(p))
    }

    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, x: int32x4_t) {
        op!(vst1q_s32(p, x));
    }

    #[inline(always)]
    unsafe fn load_lower_half(self, p: *const i32) -> int32x4_t {
        op!(vcombine_s32(vld1_s32(p), vdup_n_s32(0)))
    }

    #[inline(always)]
    unsafe fn load_halves(self, low: *const i32, high: *const i32) -> int32x4_t {
        op!(vcombine_s32(vld1_s32(low), vld1_s32(high)))
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
        // The last vector of the row, moved to the front.
        op!({
            let last = vld1q_u8(row.add(end - VECTOR));
            vst1q_u8(padded.as_mut_ptr(), vqtbl1q_u8(last, last_bytes(n)));
        });
        padded
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> float32x4_t {
        op!(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))))
    }

    #[inline(always)]
    unsafe fn splat_f16(self, p: *const u16) -> float32x4_t {
        op!(vcvt_f32_f16(vreinterpret_f16_u16(vld1_dup_u16(p))))
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> float32x4_t {
        op!(vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p))))
    }

    #[inline(always)]
    unsafe fn load_i16(self, p: *const i16) -> float32x4_t {
        op!(vcvtq_f32_s32(vmovl_s16(vld1_s16(p))))
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> float32x4_t {
        op!({
            let bytes = vcreate_s8(u64::from(p.cast::<u32>().read_unaligned()));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        })
    }

    #[inline(always)]
    unsafe fn load_i8_i16(self, p: *const i8) -> int32x4_t {
        op!(vreinterpretq_s32_s16(vmovl_s8(vld1_s8(p))))
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
        op!({
            let both = vld1q_u8(p);
            let table = vld1q_s8(table.as_ptr());
            let nibbles = [vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both)];
            for (half, nibbles) in nibbles.into_iter().enumerate() {
                let mut codes = vqtbl1q_s8(table, nibbles);
                if let Some((bits, more)) = fifths {
                    // Each of two bytes eight times, of which each time another bit counts.
                    let bytes = (bits >> (16 * half)).to_le_bytes();
                    let bytes = vcombine_u8(vdup_n_u8(bytes[0]), vdup_n_u8(bytes[1]));
                    let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
                    let more = vandq_s8(vreinterpretq_s8_u8(vtstq_u8(bytes, bit)), vdupq_n_s8(more));
                    codes = vaddq_s8(codes, more);
                }
                if sign.is_some_and(|sign| sign < 0) {
                    codes = vnegq_s8(codes);
                }
                vst1q_s8(to.add(16 * half), codes);
            }
        });
    }

    #[inline(always)]
    unsafe fn load_split16(self, p: *const i16) -> [int32x4_t; 2] {
        op!({
            let (a, b) = (vld1q_s16(p), vld1q_s16(p.add(8)));
            // Rounded: low bytes from 128 on are negative as signed bytes, and the high byte is one
            // larger.
            let high = vcombine_s8(vrshrn_n_s16::<8>(a), vrshrn_n_s16::<8>(b));
            let low = vuzp1q_s8(vreinterpretq_s8_s16(a), vreinterpretq_s8_s16(b));
            [vreinterpretq_s32_s8(high), vreinterpretq_s32_s8(low)]
        })
    }

    #[inline(always)]
    unsafe fn load_interleaved_bytes(self, rows: [*const u8; 4], d: usize) -> int32x4_t {
        op!({
            let words = rows.map(|row| row.add(d).cast::<u32>().read_unaligned());
            let bytes = vreinterpretq_u8_u32(vld1q_u32(words.as_ptr()));
            vreinterpretq_s32_u8(vqtbl1q_u8(bytes, vld1q_u8(TRANSPOSE_BYTES.as_ptr())))
        })
    }

    #[inline(always)]
    unsafe fn load_nonzero(self, p: *const u8) -> uint32x4_t {
        op!({
            let bytes = vcreate_u8(u64::from(p.cast::<u32>().read_unaligned()));
            let words = vmovl_u16(vget_low_u16(vmovl_u8(bytes)));
            vtstq_u32(words, words)
        })
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: float32x4_t) {
        op!(vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))));
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: float32x4_t) {
        op!({
            let bits = vreinterpretq_u32_f32(x);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
            let quiet = vorrq_u32(bits, vdupq_n_u32(1 << 22));
            let is_number = vceqq_f32(x, x);
            vst1_u16(p, vshrn_n_u32::<16>(vbslq_u32(is_number, rounded, quiet)));
        });
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: float32x4_t) {
        op!({
            // The number, if the other is NaN.
            let x = vmaxnmq_f32(x, vdupq_n_f32(-128.0));
            let words = vqmovn_s32(vcvtnq_s32_f32(x));
            let bytes = vqmovn_s16(vcombine_s16(words, words));
            p.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)));
        });
    }

    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, x: float32x4_t) {
        op!(vst1_s16(p, vmovn_s32(vcvtnq_s32_f32(x))));
    }

    #[inline(always)]
    unsafe fn store_split16(self, p: *mut u8, x: float32x4_t) {
        const HIGH_THEN_LOW: [u8; 8] = [1, 5, 9, 13, 0, 4, 8, 12];
        op!({
            // 0 for NaN.
            let x = vreinterpretq_u8_u32(vcvtnq_u32_f32(x));
            vst1_u8(p, vqtbl1_u8(x, vld1_u8(HIGH_THEN_LOW.as_ptr())));
        });
    }

    #[inline(always)]
    fn prefetch_l2(self, p: *const u8) {
        op!(asm!("prfm pldl2keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags)));
    }

    #[inline(always)]
    fn prefetch_l1(self, p: *const u8) {
        op!(asm!("prfm pldl1keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags)));
    }

    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
        factor: Option<float32x4_t>,
    ) {
        let mut rows = [self.splat(0.0); 4];
        for (i, row) in rows.iter_mut().enumerate() {
            let x = op!(vld1q_f32(from.byte_add(i * from_stride)));
            *row = match factor {
                // Adding 0 turns a product of -0 into +0.
                Some(factor) => self.add(self.mul(x, factor), self.splat(0.0)),
                None => x,
            };
        }
        let [a, b, c, d] = rows;
        op!({
            // Columns 0 and 2 of two rows, and columns 1 and 3.
            let ab = [vtrn1q_f32(a, b), vtrn2q_f32(a, b)].map(|x| vreinterpretq_f64_f32(x));
            let cd = [vtrn1q_f32(c, d), vtrn2q_f32(c, d)].map(|x| vreinterpretq_f64_f32(x));
            for column in 0..2 {
                let low = vreinterpretq_f32_f64(vzip1q_f64(ab[column], cd[column]));
                let high = vreinterpretq_f32_f64(vzip2q_f64(ab[column], cd[column]));
                vst1q_f32(to.byte_add(column * to_stride), low);
                vst1q_f32(to.byte_add((column + 2) * to_stride), high);
            }
        });
    }
}

/// The shuffle that moves the last `n` bytes of 16 to the front, and zeros behind them.
#[inline(always)]
fn last_bytes(n: usize) -> uint8x16_t {
    const ZERO: u8 = 0xff;
    const SHUFFLE: [u8; 32] = {
        let mut shuffle = [ZERO; 32];
        let mut i = 0;
        while i < 16 {
            shuffle[i] = i as u8;
            i += 1;
        }
        shuffle
    };
    assert!(n <= 16);
    // SAFETY: I7: the 16 bytes from index 16 - n on are in bounds by the assertion. I4: only
    // methods of the token call this.
    unsafe { vld1q_u8(SHUFFLE.as_ptr().add(16 - n)) }
}
