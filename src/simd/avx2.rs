//! AVX2 with FMA: 8 lanes; a mask is a vector of all-ones and all-zeros lanes. Its extensions are
//! [`Level`]s.

use std::ffi::CStr;

use core::arch::x86_64::*;

use super::math::{self, Table};
use super::tiles::Plain;
use super::{Body, Isa, MAX_LANES, Padded, Token, fallback, token};

/// AVX2 with the extensions of a level, [`Base`] by default.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<L = Base>(L);

token! {
    /// AVX2, FMA and F16C: server and desktop CPUs since Haswell (2013) and Excavator (2015).
    Base as Avx2; "avx2", "fma", "f16c"
}

token! {
    /// [`Base`] with dot products of bytes and i16: Alder Lake, Sapphire Rapids, Zen 5, and later.
    Vnni as Avx2; "avxvnni", "avx2", "fma", "f16c"
}

/// What [`Isa::exp2_u8`] adds to distances in units of 1/256, because there are 16-bit lanes and no
/// shift of each by its own number: the upper byte is then 8 for the largest probabilities, and
/// negative where they are less than 1/2.
const U8_TOP: f32 = 9.0 * 256.0 - 1.0;

/// Coefficients of 255 · 2^6 · 2^((b + 1)/256), ascending, as a parabola in b · 127 / 2^15 for a
/// byte b, exact for b = 255. The relative error is below 0.23 %.
const U8_PARABOLA: [i16; 3] = [16_399, 10_746, 5_754];

/// The methods of [`Isa`] that differ between levels of AVX2.
pub(crate) trait Level: Token {
    /// The value of [`Isa::NAME`].
    const NAME: &'static CStr;

    /// [`Isa::dot_u8_i8`]: lane by lane, unless the level has the instruction.
    #[inline(always)]
    fn dot_u8_i8(s: Avx2<Self>, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        fallback::dot_u8_i8(s, sum, a, b)
    }

    /// [`Isa::dot_i16`]: a multiply-add of pairs and an addition, unless the level has one
    /// instruction.
    #[inline(always)]
    fn dot_i16(_s: Avx2<Self>, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: I4: `_s` holds the token of a level, and every level includes the base's
        // features.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
    }
}

impl Level for Base {
    const NAME: &'static CStr = c"avx2";
}

impl Level for Vnni {
    const NAME: &'static CStr = c"avxvnni";

    #[inline(always)]
    fn dot_u8_i8(_s: Avx2<Self>, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: I4: `_s` holds the token of VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(sum, a, b) }
    }

    #[inline(always)]
    fn dot_i16(_s: Avx2<Self>, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: I4: `_s` holds the token of VNNI.
        unsafe { _mm256_dpwssd_avx_epi32(sum, a, b) }
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

impl<L: Level> Avx2<L> {
    /// Sums of the four f32 in each 128-bit lane, of four vectors: element `i` of a 128-bit lane of
    /// the result is the sum of that 128-bit lane of vector `i`.
    #[inline(always)]
    fn sums_in_lanes128(self, [a, b, c, d]: [__m256; 4]) -> __m256 {
        op!({
            let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
            let (even, odd) = (_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd));
            _mm256_add_ps(_mm256_castpd_ps(even), _mm256_castpd_ps(odd))
        })
    }

    /// Sums of the four i32 in each 128-bit lane, of four vectors: element `i` of a 128-bit lane of
    /// the result is the sum of that 128-bit lane of vector `i`.
    #[inline(always)]
    fn sums_in_lanes128_i32(self, [a, b, c, d]: [__m256i; 4]) -> __m256i {
        op!({
            let ab = _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let cd = _mm256_add_epi32(_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd))
        })
    }

    /// How far two vectors are below `top`, for [`exp2_of_units`]: 16 lanes of i16 in units of
    /// 1/256, to which [`U8_TOP`] is added, four lanes of each vector in turns. What is far,
    /// -inf and NaN become negative.
    #[inline(always)]
    fn units_below(self, [a, b]: [__m256; 2], top: __m256) -> __m256i {
        let (scale, bias) = (self.splat(256.0), self.splat(U8_TOP));
        let a = self.fma(self.sub(a, top), scale, bias);
        let b = self.fma(self.sub(b, top), scale, bias);
        op!(_mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)))
    }
}

impl<L: Level> Table for Avx2<L> {
    #[inline(always)]
    fn lookup(self, table: &[f32; MAX_LANES], index: __m256) -> __m256 {
        op!(_mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), _mm256_castps_si256(index)))
    }

    #[inline(always)]
    fn exponent(self, x: __m256) -> __m256 {
        op!({
            let bits = _mm256_slli_epi32::<20>(_mm256_castps_si256(x));
            _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(0xff << 23)))
        })
    }
}

impl<L: Level> Isa for Avx2<L> {
    const NAME: &'static CStr = L::NAME;
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    const STREAMS_SHARED_KEYS: bool = true;
    const FIRST_PASS_READS_ROWS: bool = true;
    const SCORES_FILL_VECTOR: bool = true;
    type F32 = __m256;
    type I32 = __m256i;
    type Mask = __m256;
    type Core = Avx2<Base>;
    type Tiles = Plain;

    #[inline(always)]
    fn detect() -> Option<Self> {
        L::probe().map(Avx2)
    }

    #[inline(always)]
    fn core(self) -> Avx2<Base> {
        // I4: the list of every level includes the features of the base.
        Avx2(Base(()))
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
    fn splat(self, x: f32) -> __m256 {
        op!(_mm256_set1_ps(x))
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        op!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn exp2(self, x: Self::F32) -> Self::F32 {
        math::exp2_by_table(self, x)
    }

    #[inline(always)]
    fn exp2_approx(self, x: __m256) -> __m256 {
        op!({
            let whole = _mm256_floor_ps(x);
            let power = math::exp2_fraction_approx(self, _mm256_sub_ps(x, whole));
            // The integer part is added to the exponent. Of NaN, that is 0.
            let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(whole));
            let y = _mm256_add_epi32(_mm256_castps_si256(power), exponent);
            let underflows = self.gt(self.splat(math::UNDERFLOW), x);
            _mm256_andnot_ps(underflows, _mm256_castsi256_ps(y))
        })
    }

    #[inline(always)]
    fn gt(self, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b))
    }

    #[inline(always)]
    fn select(self, mask: __m256, a: __m256, b: __m256) -> __m256 {
        op!(_mm256_blendv_ps(b, a, mask))
    }

    #[inline(always)]
    fn horizontal_sums(self, v: &[__m256; MAX_LANES]) -> __m256 {
        // `a` and `b` have partial sums, one 128-bit lane each; the last step adds the two lanes.
        let a = self.sums_in_lanes128([v[0], v[1], v[2], v[3]]);
        let b = self.sums_in_lanes128([v[4], v[5], v[6], v[7]]);
        op!(_mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)))
    }

    #[inline(always)]
    fn horizontal_sums_i32(self, v: &[__m256i; MAX_LANES]) -> __m256i {
        let a = self.sums_in_lanes128_i32([v[0], v[1], v[2], v[3]]);
        let b = self.sums_in_lanes128_i32([v[4], v[5], v[6], v[7]]);
        op!(_mm256_add_epi32(
            _mm256_permute2x128_si256::<0x20>(a, b),
            _mm256_permute2x128_si256::<0x31>(a, b)
        ))
    }

    #[inline(always)]
    fn horizontal_sum(self, x: __m256) -> f32 {
        op!({
            // The order of additions of `horizontal_sums`: k and k + 2, then k and k + 1, then
            // 128-bit lanes.
            let x = _mm256_add_ps(x, _mm256_permute_ps::<0b01_00_11_10>(x));
            let x = _mm256_add_ps(x, _mm256_permute_ps::<0b10_11_00_01>(x));
            _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)))
        })
    }

    #[inline(always)]
    fn horizontal_max(self, x: __m256) -> f32 {
        op!({
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn any(self, mask: __m256) -> bool {
        op!(_mm256_movemask_ps(mask)) != 0
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m256i {
        op!(_mm256_set1_epi32(x))
    }

    #[inline(always)]
    fn to_f32(self, x: __m256i) -> __m256 {
        op!(_mm256_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn pack_bf16(self, low: __m256, high: __m256) -> __m256i {
        op!({
            let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(low));
            _mm256_blend_epi16::<0b1010_1010>(low, _mm256_castps_si256(high))
        })
    }

    #[inline(always)]
    fn pack_bf16_rounded(self, low: __m256, high: __m256) -> __m256i {
        op!({
            let half = _mm256_set1_epi32(0x8000);
            let low = _mm256_add_epi32(_mm256_castps_si256(low), half);
            let high = _mm256_add_epi32(_mm256_castps_si256(high), half);
            self.pack_bf16(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
        })
    }

    #[inline(always)]
    fn low_bf16(self, x: __m256i) -> __m256 {
        op!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(x)))
    }

    #[inline(always)]
    fn high_bf16(self, x: __m256i) -> __m256 {
        op!(_mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(!0xffff))))
    }

    #[inline(always)]
    fn in_range(self, low: __m256i, x: __m256i, high: __m256i) -> __m256 {
        op!({
            let below = _mm256_cmpgt_epi32(low, x);
            let under_high = _mm256_cmpgt_epi32(high, x);
            _mm256_castsi256_ps(_mm256_andnot_si256(below, under_high))
        })
    }

    #[inline(always)]
    fn prefetch_l2(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T1>(p.cast()));
    }

    #[inline(always)]
    fn prefetch_l1(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(p.cast()));
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        op!(_mm256_loadu_ps(p))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: __m256) {
        op!(_mm256_storeu_ps(p, x));
    }

    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> __m256 {
        op!(_mm256_maskload_ps(p, first(n)))
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, x: __m256) {
        op!(_mm256_maskstore_ps(p, first(n), x));
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
            let last = _mm_loadu_si128(row.add(end - VECTOR).cast());
            _mm_storeu_si128(padded.as_mut_ptr().cast(), _mm_shuffle_epi8(last, last_bytes(n)));
        });
        padded
    }

    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> __m256i {
        op!(_mm256_loadu_si256(p.cast()))
    }

    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, x: __m256i) {
        op!(_mm256_storeu_si256(p.cast(), x));
    }

    #[inline(always)]
    unsafe fn store_segments<const R: usize>(self, p: *mut f32, step: usize, x: __m256) {
        op!(match R {
            1 => _mm256_storeu_ps(p, x),
            2 => {
                _mm_storeu_ps(p, _mm256_castps256_ps128(x));
                _mm_storeu_ps(p.add(step), _mm256_extractf128_ps::<1>(x));
            }
            4 => {
                let [low, high] = [_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)];
                _mm_storel_pd(p.cast(), _mm_castps_pd(low));
                _mm_storeh_pd(p.add(step).cast(), _mm_castps_pd(low));
                _mm_storel_pd(p.add(2 * step).cast(), _mm_castps_pd(high));
                _mm_storeh_pd(p.add(3 * step).cast(), _mm_castps_pd(high));
            }
            _ => fallback::store_segments::<Self, R>(self, p, step, x),
        });
    }

    #[inline(always)]
    unsafe fn splat_f16(self, p: *const u16) -> __m256 {
        op!(_mm256_cvtph_ps(_mm_set1_epi16(p.cast::<i16>().read_unaligned())))
    }

    #[inline(always)]
    unsafe fn gather_f16<At: Fn(usize) -> *const u8>(
        self,
        four: impl Fn(usize) -> At,
        distance: usize,
    ) -> [__m256; 2] {
        let (first, second) = (four(0), four(4));
        // A macro, because the lane of an insertion is an immediate.
        macro_rules! eight {
            ($distance:expr) => {{
                let word = |p: *const u8| i32::from(p.wrapping_add($distance).cast::<u16>().read_unaligned());
                let mut x = _mm_cvtsi32_si128(word(first(0)));
                x = _mm_insert_epi16::<1>(x, word(first(1)));
                x = _mm_insert_epi16::<2>(x, word(first(2)));
                x = _mm_insert_epi16::<3>(x, word(first(3)));
                x = _mm_insert_epi16::<4>(x, word(second(0)));
                x = _mm_insert_epi16::<5>(x, word(second(1)));
                x = _mm_insert_epi16::<6>(x, word(second(2)));
                x = _mm_insert_epi16::<7>(x, word(second(3)));
                _mm256_cvtph_ps(x)
            }};
        }
        op!([eight!(0), eight!(distance)])
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m256 {
        op!(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())))
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m256 {
        op!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))))
    }

    #[inline(always)]
    unsafe fn load_interleaved_bytes(self, rows: [*const u8; 4], d: usize) -> __m256i {
        op!({
            let [a, b, c, d] = rows.map(|row| _mm_loadl_epi64(row.add(d).cast()));
            let (ab, cd) = (_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d));
            _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd))
        })
    }

    #[inline(always)]
    unsafe fn load_i16(self, p: *const i16) -> __m256 {
        op!(_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(p.cast()))))
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m256 {
        op!(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))))
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: __m256) {
        op!(_mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)));
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: __m256) {
        op!({
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22));
            let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let upper = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, is_nan));
            let halves =
                _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256::<1>(upper));
            _mm_storeu_si128(p.cast(), halves);
        });
    }

    #[inline(always)]
    fn dot_i16(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        L::dot_i16(self, sum, a, b)
    }

    #[inline(always)]
    fn dot_u8_i8(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        L::dot_u8_i8(self, sum, a, b)
    }

    #[inline(always)]
    fn exp2_u8(self, [a, b, c, d]: [__m256; 4], top: __m256) -> __m256i {
        let (ab, cd) = (self.units_below([a, b], top), self.units_below([c, d], top));
        op!({
            let bytes = _mm256_packus_epi16(exp2_of_units(ab), exp2_of_units(cd));
            // Each 128-bit lane has four bytes of x[0], four of x[1], and so on: a 4 x 4
            // transposition.
            let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order))
        })
    }

    #[inline(always)]
    fn interleave_bytes(self, [a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        // Within each 128-bit lane: the first result has words 0 to 3, the second 4 to 7, and so
        // on.
        op!({
            let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
            let [ab_high, cd_high] = [_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d)];
            [
                _mm256_unpacklo_epi16(ab, cd),
                _mm256_unpackhi_epi16(ab, cd),
                _mm256_unpacklo_epi16(ab_high, cd_high),
                _mm256_unpackhi_epi16(ab_high, cd_high),
            ]
        })
    }

    #[inline(always)]
    fn deinterleave_bytes(self, [a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
        let ([first, third], [second, fourth]) = (self.deinterleave([a, b]), self.deinterleave([c, d]));
        [first, second, third, fourth]
    }

    #[inline(always)]
    fn join_split16(self, high: __m256i, low: __m256i) -> __m256i {
        op!(_mm256_add_epi32(_mm256_slli_epi32::<8>(high), low))
    }

    #[inline(always)]
    unsafe fn load_split16(self, p: *const i16) -> [__m256i; 2] {
        op!({
            let (a, b) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast()));
            // Low bytes from 128 on are negative as signed bytes: the high byte is one larger.
            let half = _mm256_set1_epi16(128);
            let a_high = _mm256_srai_epi16::<8>(_mm256_add_epi16(a, half));
            let b_high = _mm256_srai_epi16::<8>(_mm256_add_epi16(b, half));
            let a_low = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a));
            let b_low = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b));
            // Packing is within 128-bit lanes.
            let high = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(a_high, b_high));
            let low = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi16(a_low, b_low));
            [high, low]
        })
    }

    #[inline(always)]
    unsafe fn store_split16(self, p: *mut u8, x: __m256) {
        // NaN converts to i32::MIN, whose low half is 0.
        op!({
            let x = _mm256_cvtps_epi32(x);
            // In each 128-bit lane, four high bytes and then four low ones.
            let order = _mm_setr_epi8(1, 5, 9, 13, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
            let x = _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(order));
            let (low, high) = (_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            _mm_storeu_si128(p.cast(), _mm_unpacklo_epi32(low, high));
        });
    }

    #[inline(always)]
    fn pack_i16(self, low: __m256, high: __m256) -> __m256i {
        // NaN converts to i32::MIN, whose low half is 0.
        op!({
            let high = _mm256_slli_epi32::<16>(_mm256_cvtps_epi32(high));
            _mm256_blend_epi16::<0b1010_1010>(_mm256_cvtps_epi32(low), high)
        })
    }

    #[inline(always)]
    fn interleave_i16(self, a: __m256i, b: __m256i) -> [__m256i; 2] {
        op!([_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)])
    }

    #[inline(always)]
    fn interleave(self, x: [__m256; 2]) -> [__m256; 2] {
        // Exchanging the middle 128-bit lanes is its own inverse.
        self.deinterleave(x)
    }

    #[inline(always)]
    fn deinterleave(self, [a, b]: [__m256; 2]) -> [__m256; 2] {
        op!([_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)])
    }

    #[inline(always)]
    unsafe fn load_lower_half(self, p: *const i32) -> __m256i {
        op!(_mm256_zextsi128_si256(_mm_loadu_si128(p.cast())))
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
        op!(unpack_nibbles(p, table, fifths, sign, to));
    }

    #[inline(always)]
    unsafe fn load_i8_i16(self, p: *const i8) -> __m256i {
        op!(_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())))
    }

    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, x: __m256) {
        op!({
            let x = _mm256_cvtps_epi32(x);
            let words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            _mm_storeu_si128(p.cast(), words);
        });
    }

    #[inline(always)]
    fn sub_i32(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_sub_epi32(a, b))
    }

    #[inline(always)]
    fn xor(self, a: __m256i, b: __m256i) -> __m256i {
        op!(_mm256_xor_si256(a, b))
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: __m256) {
        op!({
            let x = self.min(self.max(x, self.splat(-128.0)), self.splat(127.0));
            let x = _mm256_cvtps_epi32(x);
            let words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(words, words));
        });
    }

    #[inline(always)]
    unsafe fn load_nonzero(self, p: *const u8) -> __m256 {
        op!({
            let x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            _mm256_castsi256_ps(_mm256_cmpgt_epi32(x, _mm256_setzero_si256()))
        })
    }

    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
        factor: Option<__m256>,
    ) {
        let mut r = [self.splat(0.0); 8];
        for (i, r) in r.iter_mut().enumerate() {
            let row = op!(_mm256_loadu_ps(from.byte_add(i * from_stride)));
            *r = match factor {
                // Adding 0 turns a product of -0 into +0.
                Some(factor) => self.add(self.mul(row, factor), self.splat(0.0)),
                None => row,
            };
        }
        // After two unpack steps, 128-bit lane l of r[4 g + k] is column 4 l + k of rows 4 g to
        // 4 g + 3. The permutations then join the two groups g of each column.
        for g in [0, 4] {
            let [a, b, c, d] = [r[g], r[g + 1], r[g + 2], r[g + 3]];
            op!({
                let ab_lo = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
                let ab_hi = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
                let cd_lo = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
                let cd_hi = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
                r[g] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_lo, cd_lo));
                r[g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_lo, cd_lo));
                r[g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_hi, cd_hi));
                r[g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_hi, cd_hi));
            });
        }
        for k in 0..4 {
            op!({
                let low = _mm256_permute2f128_ps::<0x20>(r[k], r[4 + k]);
                let high = _mm256_permute2f128_ps::<0x31>(r[k], r[4 + k]);
                _mm256_storeu_ps(to.byte_add(k * to_stride), low);
                _mm256_storeu_ps(to.byte_add((4 + k) * to_stride), high);
            });
        }
    }
}

/// 255 · 2^x, rounded, of 16 lanes of i16 that [`Avx2::units_below`] gives. The lower byte is the
/// fraction of x, of which a parabola makes a factor, and the upper byte indexes a table of powers
/// of two.
#[inline(always)]
fn exp2_of_units(x: __m256i) -> __m256i {
    op!({
        // A byte times 127 is a fraction of 15 bits, nearly.
        let fraction = _mm256_maddubs_epi16(x, _mm256_set1_epi16(127));
        let [zero, one, two] = U8_PARABOLA;
        let y = _mm256_mulhrs_epi16(_mm256_set1_epi16(two), fraction);
        let y = _mm256_mulhrs_epi16(_mm256_add_epi16(y, _mm256_set1_epi16(one)), fraction);
        let y = _mm256_add_epi16(y, _mm256_set1_epi16(zero));
        // Bytes from 0x80 on look up 0. The table has bytes: 256, the largest power, is the entry 0
        // looked up as an upper byte.
        let twice = _mm_setr_epi8(1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15);
        let twice = _mm256_shuffle_epi8(x, _mm256_broadcastsi128_si256(twice));
        let index = _mm256_sub_epi16(twice, _mm256_set1_epi16(0x800));
        let powers = _mm_setr_epi8(1, 2, 4, 8, 16, 32, 64, -128, 0, 0, 0, 0, 0, 0, 0, 0);
        let powers = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(powers), index);
        _mm256_mulhrs_epi16(y, powers)
    })
}

/// [`Isa::unpack_nibbles`], for AVX-512, too.
///
/// # Safety
/// 16 bytes are readable at `p`, and 32 writable at `to`.
#[inline(always)]
pub(super) unsafe fn unpack_nibbles(
    p: *const u8,
    table: &[i8; 16],
    fifths: Option<(u32, i8)>,
    sign: Option<i8>,
    to: *mut i8,
) {
    op!({
        let (both, low) = (_mm_loadu_si128(p.cast()), _mm_set1_epi8(15));
        let high = _mm_and_si128(_mm_srli_epi16::<4>(both), low);
        let nibbles = _mm256_set_m128i(high, _mm_and_si128(both, low));
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        let mut codes = _mm256_shuffle_epi8(table, nibbles);
        if let Some((bits, more)) = fifths {
            // Each of four bytes eight times, of which each time another bit counts.
            let spread =
                _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits.cast_signed()), spread);
            let bit = _mm256_set1_epi64x(i64::from_le_bytes([1, 2, 4, 8, 16, 32, 64, 128]));
            let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
            codes = _mm256_add_epi8(codes, _mm256_and_si256(is_set, _mm256_set1_epi8(more)));
        }
        if let Some(sign) = sign {
            codes = _mm256_sign_epi8(codes, _mm256_or_si256(_mm256_set1_epi8(sign), _mm256_set1_epi8(1)));
        }
        _mm256_storeu_si256(to.cast(), codes);
    })
}

/// The shuffle that moves the last `n` bytes of 16 to the front, and zeros behind them.
#[inline(always)]
fn last_bytes(n: usize) -> __m128i {
    const ZERO: u8 = 0x80;
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
    // methods of the token call this, so the CPU has AVX2.
    unsafe { _mm_loadu_si128(SHUFFLE.as_ptr().add(16 - n).cast()) }
}

/// A mask of the first `n` lanes, at most 8.
#[inline(always)]
fn first(n: usize) -> __m256i {
    const MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(n <= 8);
    // SAFETY: I7: the 8 values from index 8 - n on are in bounds by the assertion. I4: only methods
    // of the token call this, so the CPU has AVX2.
    unsafe { _mm256_loadu_si256(MASK.as_ptr().add(8 - n).cast()) }
}
