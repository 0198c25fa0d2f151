//! AVX-512 (F, BW, DQ, VL): 16 lanes, mask registers. Its extensions are [`Level`]s.

use std::ffi::CStr;
use std::mem::transmute;

use core::arch::{asm, x86_64::*};

use super::amx::Amx as AmxTiles;
use super::half::Format;
use super::tiles::{Plain, TileRegisters};
use super::{Body, Isa, Padded, Token, avx2, fallback, math, token};
use crate::machine::amx;

/// AVX-512 with the extensions of a level, [`Base`] by default.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<L = Base>(L);

token! {
    /// AVX-512 Foundation with the extensions that every CPU has since Skylake-X.
    Base as Avx512; "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"
}

token! {
    /// [`Base`] with dot products of bfloat16 pairs: Cooper Lake, Sapphire Rapids, Zen 4 and later.
    Bf16 as Avx512; "avx512bf16", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"
}

token! {
    /// [`Base`] with dot products of bytes and of i16: Cascade Lake, Ice Lake, Zen 4 and later.
    Vnni as Avx512; "avx512vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"
}

token! {
    /// [`Vnni`] with tiles of bfloat16 and of bytes, which the process may use: Sapphire Rapids and
    /// later. Its content says what 16-bit numbers they multiply; binary16: Granite Rapids and
    /// later.
    Amx(Format::Bf16; Format) as Avx512, if amx::is_permitted();
    "avx512vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"
}

/// The methods of [`Isa`] that differ between levels of AVX-512.
pub(crate) trait Level: Token {
    /// The value of [`Isa::NAME`].
    const NAME: &'static CStr;
    /// [`Isa::Tiles`].
    type Tiles: TileRegisters;

    /// [`Isa::tiles`].
    fn tiles(s: Avx512<Self>, columns: usize) -> Self::Tiles;

    /// [`Isa::half_format`].
    #[inline(always)]
    fn half_format(_s: Avx512<Self>) -> Format {
        Format::Bf16
    }

    /// [`Isa::with_half_format`].
    #[inline(always)]
    fn with_half_format(s: Avx512<Self>, format: Format) -> Option<Avx512<Self>> {
        (format == Format::Bf16).then_some(s)
    }

    /// [`Isa::dot_bf16`]: two multiply-adds in f32, unless the level has the instruction.
    #[inline(always)]
    fn dot_bf16(s: Avx512<Self>, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        fallback::dot_bf16(s, sum, a, b)
    }

    /// [`Isa::dot_u8_i8`]: lane by lane, unless the level has the instruction.
    #[inline(always)]
    fn dot_u8_i8(s: Avx512<Self>, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        fallback::dot_u8_i8(s, sum, a, b)
    }

    /// [`Isa::dot_i16`]: a multiply-add of pairs and an addition, unless the level has one
    /// instruction.
    #[inline(always)]
    fn dot_i16(_s: Avx512<Self>, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: I4: `_s` holds the token of a level, and every level includes the base's
        // features.
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)) }
    }
}

impl Level for Vnni {
    const NAME: &'static CStr = c"avx512vnni";
    type Tiles = Plain;

    #[inline(always)]
    fn tiles(_s: Avx512<Self>, columns: usize) -> Plain {
        Plain::new(columns)
    }

    #[inline(always)]
    fn dot_u8_i8(_s: Avx512<Self>, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: I4: `_s` holds the token of VNNI.
        unsafe { _mm512_dpbusd_epi32(sum, a, b) }
    }

    #[inline(always)]
    fn dot_i16(_s: Avx512<Self>, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: I4: `_s` holds the token of VNNI.
        unsafe { _mm512_dpwssd_epi32(sum, a, b) }
    }
}

impl Level for Base {
    const NAME: &'static CStr = c"avx512";
    type Tiles = Plain;

    #[inline(always)]
    fn tiles(_s: Avx512<Self>, columns: usize) -> Plain {
        Plain::new(columns)
    }
}

impl Level for Bf16 {
    const NAME: &'static CStr = c"avx512bf16";
    type Tiles = Plain;

    #[inline(always)]
    fn tiles(_s: Avx512<Self>, columns: usize) -> Plain {
        Plain::new(columns)
    }

    #[inline(always)]
    fn dot_bf16(_s: Avx512<Self>, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: I4: `_s` holds the token of BF16. Both types are 512 bits of any value (I9).
        unsafe { _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) }
    }
}

impl Level for Amx {
    const NAME: &'static CStr = c"amx";
    type Tiles = AmxTiles;

    #[inline(always)]
    fn tiles(s: Avx512<Self>, columns: usize) -> AmxTiles {
        // SAFETY: I4: `s` holds the token of AMX, whose format the machine has.
        unsafe { AmxTiles::new(columns, s.half_format()) }
    }

    #[inline(always)]
    fn half_format(s: Avx512<Self>) -> Format {
        s.0.0
    }

    #[inline(always)]
    fn with_half_format(_s: Avx512<Self>, format: Format) -> Option<Avx512<Self>> {
        (format == Format::Bf16 || amx::has_f16()).then_some(Avx512(Amx(format)))
    }

    #[inline(always)]
    fn dot_u8_i8(_s: Avx512<Self>, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: I4: `_s` holds the token of AMX, which includes VNNI.
        unsafe { _mm512_dpbusd_epi32(sum, a, b) }
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

impl<L: Level> Avx512<L> {
    /// Sums of the four f32 in each 128-bit lane, of four vectors: element `i` of a 128-bit lane of
    /// the result is the sum of that 128-bit lane of vector `i`.
    #[inline(always)]
    fn sums_in_lanes128(self, [a, b, c, d]: [__m512; 4]) -> __m512 {
        op!({
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
            let (even, odd) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
            _mm512_add_ps(_mm512_castpd_ps(even), _mm512_castpd_ps(odd))
        })
    }

    /// Sums of the four i32 in each 128-bit lane, of four vectors: element `i` of a 128-bit lane of
    /// the result is the sum of that 128-bit lane of vector `i`.
    #[inline(always)]
    fn sums_in_lanes128_i32(self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        op!({
            let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
        })
    }
}

/// The even 128-bit lanes of `a` and `b`, and the odd ones.
#[inline(always)]
fn even_odd_lanes128(a: __m512i, b: __m512i) -> [__m512i; 2] {
    // SAFETY: I4: only methods of a token call this.
    unsafe { [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b)] }
}

impl<L: Level> Isa for Avx512<L> {
    const NAME: &'static CStr = L::NAME;
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    const PREFETCHES_STREAM: bool = true;
    const REPACKS: bool = true;
    type F32 = __m512;
    type I32 = __m512i;
    type Mask = __mmask16;
    type Core = Avx512<Base>;
    type Tiles = L::Tiles;

    #[inline(always)]
    fn detect() -> Option<Self> {
        L::probe().map(Avx512)
    }

    #[inline(always)]
    fn core(self) -> Avx512<Base> {
        // I4: the list of every level includes the features of the base.
        Avx512(Base(()))
    }

    #[inline(always)]
    fn enter<B: Body>(self, body: B) -> B::Out {
        self.0.compiled_for(body)
    }

    #[inline(always)]
    fn tiles(self, columns: usize) -> L::Tiles {
        L::tiles(self, columns)
    }

    #[inline(always)]
    fn half_format(self) -> Format {
        L::half_format(self)
    }

    #[inline(always)]
    fn with_half_format(self, format: Format) -> Option<Self> {
        L::with_half_format(self, format)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn exp2(self, x: __m512) -> __m512 {
        op!({
            // x - floor(x), which is 0 for -inf. `scalef` multiplies by 2^floor(x).
            let fraction = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF }>(x);
            _mm512_maskz_scalef_ps(in_exp2_range(x), math::exp2_fraction(self, fraction), x)
        })
    }

    #[inline(always)]
    fn exp2_approx(self, x: __m512) -> __m512 {
        op!({
            let fraction = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF }>(x);
            _mm512_maskz_scalef_ps(in_exp2_range(x), math::exp2_fraction_approx(self, fraction), x)
        })
    }

    #[inline(always)]
    fn gt(self, a: __m512, b: __m512) -> __mmask16 {
        op!(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b))
    }

    #[inline(always)]
    fn select(self, mask: __mmask16, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mask_blend_ps(mask, b, a))
    }

    #[inline(always)]
    fn horizontal_sums(self, v: &[__m512; 16]) -> __m512 {
        // `a` to `d` have partial sums, one 128-bit lane each; two steps then add the four lanes.
        let a = self.sums_in_lanes128([v[0], v[1], v[2], v[3]]);
        let b = self.sums_in_lanes128([v[4], v[5], v[6], v[7]]);
        let c = self.sums_in_lanes128([v[8], v[9], v[10], v[11]]);
        let d = self.sums_in_lanes128([v[12], v[13], v[14], v[15]]);
        op!({
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
            _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
        })
    }

    #[inline(always)]
    fn horizontal_sums_i32(self, v: &[__m512i; 16]) -> __m512i {
        let a = self.sums_in_lanes128_i32([v[0], v[1], v[2], v[3]]);
        let b = self.sums_in_lanes128_i32([v[4], v[5], v[6], v[7]]);
        let c = self.sums_in_lanes128_i32([v[8], v[9], v[10], v[11]]);
        let d = self.sums_in_lanes128_i32([v[12], v[13], v[14], v[15]]);
        let add = |[a, b]: [__m512i; 2]| op!(_mm512_add_epi32(a, b));
        let (ab, cd) = (add(even_odd_lanes128(a, b)), add(even_odd_lanes128(c, d)));
        add(even_odd_lanes128(ab, cd))
    }

    #[inline(always)]
    fn horizontal_sums_of_halves(self, v: &[__m512i; 16]) -> [__m512i; 2] {
        let a = self.sums_in_lanes128_i32([v[0], v[1], v[2], v[3]]);
        let b = self.sums_in_lanes128_i32([v[4], v[5], v[6], v[7]]);
        let c = self.sums_in_lanes128_i32([v[8], v[9], v[10], v[11]]);
        let d = self.sums_in_lanes128_i32([v[12], v[13], v[14], v[15]]);
        let add = |[a, b]: [__m512i; 2]| op!(_mm512_add_epi32(a, b));
        even_odd_lanes128(add(even_odd_lanes128(a, b)), add(even_odd_lanes128(c, d)))
    }

    #[inline(always)]
    fn horizontal_sum(self, x: __m512) -> f32 {
        op!({
            // The order of additions of `horizontal_sums`: k and k + 2, then k and k + 1, then
            // 128-bit lanes.
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0b01_00_11_10>(x));
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0b10_11_00_01>(x));
            let x = _mm512_add_ps(x, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
            let x = _mm512_add_ps(x, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x));
            _mm512_cvtss_f32(x)
        })
    }

    #[inline(always)]
    fn horizontal_max(self, x: __m512) -> f32 {
        op!(_mm512_reduce_max_ps(x))
    }

    #[inline(always)]
    fn any(self, mask: __mmask16) -> bool {
        mask != 0
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        op!(_mm512_set1_epi32(x))
    }

    #[inline(always)]
    fn splat_halves(self, low: i32, high: i32) -> __m512i {
        op!(_mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xff00, high))
    }

    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        op!(_mm512_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn pack_bf16(self, low: __m512, high: __m512) -> __m512i {
        op!({
            let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(low));
            _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_castps_si512(high))
        })
    }

    #[inline(always)]
    fn pack_bf16_rounded(self, low: __m512, high: __m512) -> __m512i {
        op!({
            let half = _mm512_set1_epi32(0x8000);
            let low = _mm512_add_epi32(_mm512_castps_si512(low), half);
            let high = _mm512_add_epi32(_mm512_castps_si512(high), half);
            self.pack_bf16(_mm512_castsi512_ps(low), _mm512_castsi512_ps(high))
        })
    }

    #[inline(always)]
    fn pack_f16(self, low: __m512, high: __m512) -> __m512i {
        op!({
            let low = _mm512_castsi256_si512(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(low));
            let high = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(high);
            const PAIRS: [i16; 32] = {
                let mut pairs = [0; 32];
                let mut i = 0;
                while i < 32 {
                    pairs[i] = (i / 2 + i % 2 * 16) as i16;
                    i += 1;
                }
                pairs
            };
            let pairs = _mm512_loadu_si512(PAIRS.as_ptr().cast());
            _mm512_permutexvar_epi16(pairs, _mm512_inserti64x4::<1>(low, high))
        })
    }

    #[inline(always)]
    fn low_bf16(self, x: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)))
    }

    #[inline(always)]
    fn high_bf16(self, x: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(!0xffff))))
    }

    #[inline(always)]
    fn dot_bf16(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        L::dot_bf16(self, sum, a, b)
    }

    #[inline(always)]
    fn in_range(self, low: __m512i, x: __m512i, high: __m512i) -> __mmask16 {
        op!(_mm512_mask_cmplt_epi32_mask(_mm512_cmple_epi32_mask(low, x), x, high))
    }

    #[inline(always)]
    fn prefetch_l2(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T1>(p.cast()));
    }

    #[inline(always)]
    fn prefetch_l1(self, p: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(p.cast()));
    }

    #[allow(clippy::pointers_in_nomem_asm_block, reason = "the pointer is not dereferenced")]
    #[inline(always)]
    fn hide_pointer(self, mut p: *const u8) -> *const u8 {
        // SAFETY: the assembly is a comment, without an instruction. It is not `pure`, because LLVM
        // would then hoist it out of loops.
        unsafe { asm!("/* {0} */", inlateout(reg) p, options(nomem, nostack, preserves_flags)) };
        p
    }

    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        op!(_mm512_loadu_ps(p))
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: __m512) {
        op!(_mm512_storeu_ps(p, x));
    }

    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> __m512 {
        op!(_mm512_maskz_loadu_ps(first(n), p))
    }

    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, x: __m512) {
        op!(_mm512_mask_storeu_ps(p, first(n), x));
    }

    #[inline(always)]
    unsafe fn load_padded(self, row: *const u8, from: usize, n: usize, size: usize) -> Padded {
        let mut padded = [0; size_of::<Padded>()];
        let to = padded.as_mut_ptr();
        // A byte whose bit is not set is not read.
        let first = (1u64 << (n & 63)).wrapping_sub(1);
        op!({
            let from = row.add(from).cast();
            match size {
                64 => _mm512_storeu_si512(to.cast(), _mm512_maskz_loadu_epi8(first, from)),
                32 => _mm256_storeu_si256(to.cast(), _mm256_maskz_loadu_epi8(first as u32, from)),
                _ => _mm_storeu_si128(to.cast(), _mm_maskz_loadu_epi8(first as u16, from)),
            }
        });
        padded
    }

    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> __m512i {
        op!(_mm512_loadu_si512(p.cast()))
    }

    #[inline(always)]
    unsafe fn store_i32(self, p: *mut i32, x: __m512i) {
        op!(_mm512_storeu_si512(p.cast(), x));
    }

    #[inline(always)]
    unsafe fn store_segments<const R: usize>(self, p: *mut f32, step: usize, x: __m512) {
        op!(match R {
            1 => _mm512_storeu_ps(p, x),
            2 => {
                _mm256_storeu_ps(p, _mm512_castps512_ps256(x));
                _mm256_storeu_ps(p.add(step), _mm512_extractf32x8_ps::<1>(x));
            }
            4 => {
                _mm_storeu_ps(p, _mm512_castps512_ps128(x));
                _mm_storeu_ps(p.add(step), _mm512_extractf32x4_ps::<1>(x));
                _mm_storeu_ps(p.add(2 * step), _mm512_extractf32x4_ps::<2>(x));
                _mm_storeu_ps(p.add(3 * step), _mm512_extractf32x4_ps::<3>(x));
            }
            _ => fallback::store_segments::<Self, R>(self, p, step, x),
        });
    }

    #[inline(always)]
    unsafe fn splat_f16(self, p: *const u16) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_set1_epi16(p.cast::<i16>().read_unaligned())))
    }

    #[inline(always)]
    unsafe fn gather_f16<At: Fn(usize) -> *const u8>(
        self,
        four: impl Fn(usize) -> At,
        distance: usize,
    ) -> [__m512; 2] {
        // A macro, because the lane of an insertion is an immediate.
        macro_rules! insert {
            ($x:ident, $at:ident; $($lane:literal $n:literal),+) => {
                $(
                    let p = $at($n).cast::<u16>();
                    $x[0] = _mm_insert_epi16::<$lane>($x[0], i32::from(p.read_unaligned()));
                    $x[1] = _mm_insert_epi16::<$lane>($x[1], i32::from(p.byte_add(distance).read_unaligned()));
                )+
            };
        }
        op!({
            let mut eight = [[_mm_setzero_si128(); 2]; 2];
            for (n, x) in eight.iter_mut().enumerate() {
                let (first, second) = (four(8 * n), four(8 * n + 4));
                insert!(x, first; 0 0, 1 1, 2 2, 3 3);
                insert!(x, second; 4 0, 5 1, 6 2, 7 3);
            }
            let [low, high] = eight;
            [0, 1].map(|n| _mm512_cvtph_ps(_mm256_set_m128i(high[n], low[n])))
        })
    }

    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())))
    }

    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))))
    }

    #[inline(always)]
    unsafe fn load_i16(self, p: *const i16) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(p.cast()))))
    }

    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))))
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: __m512) {
        op!(_mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)));
    }

    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: __m512) {
        // Not `vcvtneps2bf16`, which flushes subnormal numbers to zero.
        op!({
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(1 << 22));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let upper = _mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(is_nan, rounded, quiet));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(upper));
        });
    }

    #[inline(always)]
    fn dot_i16(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        L::dot_i16(self, sum, a, b)
    }

    #[inline(always)]
    fn pack_i16(self, low: __m512, high: __m512) -> __m512i {
        // NaN converts to i32::MIN, whose low half is 0.
        op!({
            let high = _mm512_slli_epi32::<16>(_mm512_cvtps_epi32(high));
            _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_cvtps_epi32(low), high)
        })
    }

    #[inline(always)]
    fn interleave_i16(self, a: __m512i, b: __m512i) -> [__m512i; 2] {
        op!([_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)])
    }

    #[inline(always)]
    fn interleave(self, [a, b]: [__m512; 2]) -> [__m512; 2] {
        // The even 128-bit lanes of the two go to the first vector, the odd ones to the second.
        op!([_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)])
    }

    #[inline(always)]
    fn deinterleave(self, [even, odd]: [__m512; 2]) -> [__m512; 2] {
        op!({
            let first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
            let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
            [_mm512_permutex2var_ps(even, first, odd), _mm512_permutex2var_ps(even, second, odd)]
        })
    }

    #[inline(always)]
    fn interleave_bytes(self, [a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // Within each 128-bit lane: the first result has words 0 to 3, the second 4 to 7, and so
        // on.
        op!({
            let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
            let [ab_high, cd_high] = [_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d)];
            [
                _mm512_unpacklo_epi16(ab, cd),
                _mm512_unpackhi_epi16(ab, cd),
                _mm512_unpacklo_epi16(ab_high, cd_high),
                _mm512_unpackhi_epi16(ab_high, cd_high),
            ]
        })
    }

    #[inline(always)]
    fn deinterleave_bytes(self, x: [__m512; 4]) -> [__m512; 4] {
        // A transposition of a 4 x 4 matrix of 128-bit lanes.
        let [a, b, c, d] = op!(x.map(|x| _mm512_castps_si512(x)));
        let ([ab, ab_odd], [cd, cd_odd]) = (even_odd_lanes128(a, b), even_odd_lanes128(c, d));
        let ([first, third], [second, fourth]) =
            (even_odd_lanes128(ab, cd), even_odd_lanes128(ab_odd, cd_odd));
        op!([first, second, third, fourth].map(|x| _mm512_castsi512_ps(x)))
    }

    #[inline(always)]
    fn join_split16(self, high: __m512i, low: __m512i) -> __m512i {
        op!(_mm512_add_epi32(_mm512_slli_epi32::<8>(high), low))
    }

    #[inline(always)]
    unsafe fn load_split16(self, p: *const i16) -> [__m512i; 2] {
        op!({
            let x = [_mm512_loadu_si512(p.cast()), _mm512_loadu_si512(p.add(32).cast())];
            let bytes = |[a, b]: [__m512i; 2]| {
                let low = _mm512_castsi256_si512(_mm512_cvtepi16_epi8(a));
                _mm512_inserti64x4::<1>(low, _mm512_cvtepi16_epi8(b))
            };
            // Low bytes from 128 on are negative as signed bytes: the high byte is one larger.
            let high = x.map(|x| _mm512_srai_epi16::<8>(_mm512_add_epi16(x, _mm512_set1_epi16(128))));
            [bytes(high), bytes(x)]
        })
    }

    #[inline(always)]
    unsafe fn store_split16(self, p: *mut u8, x: __m512) {
        // NaN converts to i32::MIN, whose low half is 0.
        op!({
            let x = _mm512_cvtps_epi32(x);
            _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_srli_epi32::<8>(x)));
            _mm_storeu_si128(p.add(16).cast(), _mm512_cvtepi32_epi8(x));
        });
    }

    #[inline(always)]
    unsafe fn load_lower_half(self, p: *const i32) -> __m512i {
        op!(_mm512_zextsi256_si512(_mm256_loadu_si256(p.cast())))
    }

    #[inline(always)]
    unsafe fn load_halves(self, low: *const i32, high: *const i32) -> __m512i {
        op!({
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(low.cast()));
            _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(high.cast()))
        })
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
        op!(avx2::unpack_nibbles(p, table, fifths, sign, to));
    }

    #[inline(always)]
    unsafe fn load_transposed_words<At: Fn(usize) -> *const u8>(
        self,
        four: impl Fn(usize) -> At,
    ) -> [__m512i; 4] {
        // A macro, because a closure that is called several times may not be inlined.
        macro_rules! lanes {
            ($at:ident, $n:literal) => {{
                let part = [$at[0]($n), $at[1]($n), $at[2]($n), $at[3]($n)];
                let x = _mm512_castsi128_si512(_mm_loadu_si128(part[0].cast()));
                let x = _mm512_inserti32x4::<1>(x, _mm_loadu_si128(part[1].cast()));
                let x = _mm512_inserti32x4::<2>(x, _mm_loadu_si128(part[2].cast()));
                _mm512_inserti32x4::<3>(x, _mm_loadu_si128(part[3].cast()))
            }};
        }
        op!({
            let at = [four(0), four(4), four(8), four(12)];
            // 128-bit lane l of the nth of these is of address 4 l + n.
            let [a, b, c, d] = [lanes!(at, 0), lanes!(at, 1), lanes!(at, 2), lanes!(at, 3)];
            let (ab_lo, ab_hi) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd_lo, cd_hi) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab_lo, cd_lo),
                _mm512_unpackhi_epi64(ab_lo, cd_lo),
                _mm512_unpacklo_epi64(ab_hi, cd_hi),
                _mm512_unpackhi_epi64(ab_hi, cd_hi),
            ]
        })
    }

    #[inline(always)]
    fn look_up_nibbles(self, x: __m512i, table: &[i8; 16]) -> [__m512i; 2] {
        op!({
            let low = _mm512_set1_epi8(15);
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            [
                _mm512_shuffle_epi8(table, _mm512_and_si512(x, low)),
                _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16::<4>(x), low)),
            ]
        })
    }

    #[inline(always)]
    fn add_by_bits(self, x: __m512i, bits: __m512i, first: usize, more: i8) -> __m512i {
        op!({
            // The byte with the four bits, four times, of which each time another bit counts.
            let at = _mm_setr_epi32(0, 0x0404_0404, 0x0808_0808, 0x0c0c_0c0c);
            let at = _mm_add_epi8(at, _mm_set1_epi8((first / 8) as i8));
            let bytes = _mm512_shuffle_epi8(bits, _mm512_broadcast_i32x4(at));
            let bit = if first.is_multiple_of(8) { 0x0804_0201 } else { 0x8040_2010_u32 as i32 };
            let bit = _mm512_set1_epi32(bit);
            let is_set = _mm512_test_epi8_mask(bytes, bit);
            _mm512_mask_add_epi8(x, is_set, x, _mm512_set1_epi8(more))
        })
    }

    #[inline(always)]
    fn add_by_bit_of_lane(self, x: __m512i, bits: [u32; 4], first: usize, more: i8) -> __m512i {
        op!({
            let [a, b, c, d] = bits.map(u32::cast_signed);
            // Of each number the byte with the bits of eight lanes.
            let at = _mm512_setr_epi32(
                0x0c08_0400,
                0x0c08_0400,
                0x0c08_0400,
                0x0c08_0400,
                0x0c08_0400,
                0x0c08_0400,
                0x0c08_0400,
                0x0c08_0400,
                0x0d09_0501,
                0x0d09_0501,
                0x0d09_0501,
                0x0d09_0501,
                0x0d09_0501,
                0x0d09_0501,
                0x0d09_0501,
                0x0d09_0501,
            );
            let at = _mm512_add_epi8(at, _mm512_set1_epi8((first / 8) as i8));
            let bytes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_setr_epi32(a, b, c, d)), at);
            let bit = _mm512_mullo_epi32(
                _mm512_set1_epi32(0x0101_0101),
                _mm512_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128),
            );
            let is_set = _mm512_test_epi8_mask(bytes, bit);
            _mm512_mask_add_epi8(x, is_set, x, _mm512_set1_epi8(more))
        })
    }

    #[inline(always)]
    fn signs(self, x: __m512) -> u16 {
        op!(_mm512_movepi32_mask(_mm512_castps_si512(x)))
    }

    #[inline(always)]
    fn negate_bytes(self, x: __m512i, signs: u8) -> __m512i {
        let all = u64::from(signs) * 0x1111_1111_1111_1111;
        op!(_mm512_mask_sub_epi8(x, all, _mm512_setzero_si512(), x))
    }

    #[inline(always)]
    unsafe fn load_f16_pairs(self, p: *const u16) -> [__m512; 2] {
        op!({
            let pairs = _mm512_loadu_si512(p.cast());
            let second = _mm512_srli_epi32::<16>(pairs);
            [_mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs)), _mm512_cvtph_ps(_mm512_cvtepi32_epi16(second))]
        })
    }

    #[inline(always)]
    unsafe fn load_i8_i16(self, p: *const i8) -> __m512i {
        op!(_mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())))
    }

    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, x: __m512) {
        op!(_mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x))));
    }

    #[inline(always)]
    fn sub_i32(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_sub_epi32(a, b))
    }

    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_xor_si512(a, b))
    }

    #[inline(always)]
    fn dot_u8_i8(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        L::dot_u8_i8(self, sum, a, b)
    }

    #[inline(always)]
    fn exp2_u8(self, x: [__m512; 4], top: __m512) -> __m512i {
        // Distances in units of 1/64: the fraction indexes a table in two registers, the integer
        // part is a right shift.
        let distance = self.fma(top, self.splat(64.0), self.splat(64.0 * f32::from(math::U8_SHIFT)));
        let distances = |x| op!(_mm512_cvtps_epi32(self.fma(x, self.splat(-64.0), distance)));
        let [a, b, c, d] = [distances(x[0]), distances(x[1]), distances(x[2]), distances(x[3])];
        op!({
            let table = math::U8_TABLE.as_ptr();
            let low = _mm512_loadu_si512(table.cast());
            let high = _mm512_loadu_si512(table.add(32).cast());
            // -inf and NaN have converted to i32::MIN, which saturates to -2^15: a large unsigned
            // number.
            let far = _mm512_set1_epi16(math::U8_MAX_DISTANCE as i16);
            let ab = _mm512_min_epu16(_mm512_packs_epi32(a, b), far);
            let cd = _mm512_min_epu16(_mm512_packs_epi32(c, d), far);
            let ab = _mm512_srlv_epi16(_mm512_permutex2var_epi16(low, ab, high), _mm512_srli_epi16::<6>(ab));
            let cd = _mm512_srlv_epi16(_mm512_permutex2var_epi16(low, cd, high), _mm512_srli_epi16::<6>(cd));
            // So far twice the probability: averaging with 0 halves it, rounded to nearest.
            let zero = _mm512_setzero_si512();
            let bytes = _mm512_packus_epi16(_mm512_avg_epu16(ab, zero), _mm512_avg_epu16(cd, zero));
            // Each 128-bit lane has four bytes of x[0], four of x[1], and so on: a 4 x 4
            // transposition.
            let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order))
        })
    }

    #[inline(always)]
    unsafe fn load_interleaved_bytes(self, rows: [*const u8; 4], d: usize) -> __m512i {
        op!({
            let [a, b, c, d] = [rows[0].add(d), rows[1].add(d), rows[2].add(d), rows[3].add(d)];
            let x = _mm512_castsi128_si512(_mm_loadu_si128(a.cast()));
            let x = _mm512_inserti32x4::<1>(x, _mm_loadu_si128(b.cast()));
            let x = _mm512_inserti32x4::<2>(x, _mm_loadu_si128(c.cast()));
            let x = _mm512_inserti32x4::<3>(x, _mm_loadu_si128(d.cast()));
            // 128-bit lane l gets word l of each row, whose bytes are then transposed.
            const WORDS: [i32; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
            // LLVM would make ten shuffles of insertions and two permutations that it knows.
            let words = _mm512_loadu_si512(self.hide_pointer(WORDS.as_ptr().cast()).cast());
            let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let x = _mm512_permutexvar_epi32(words, x);
            _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(order))
        })
    }

    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: __m512) {
        op!({
            let x = self.min(self.max(x, self.splat(-128.0)), self.splat(127.0));
            _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
        });
    }

    #[inline(always)]
    unsafe fn load_nonzero(self, p: *const u8) -> __mmask16 {
        op!({
            let x = _mm_loadu_si128(p.cast());
            _mm_test_epi8_mask(x, x)
        })
    }

    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
        factor: Option<__m512>,
    ) {
        let mut r = [self.splat(0.0); 16];
        for (i, r) in r.iter_mut().enumerate() {
            let row = op!(_mm512_loadu_ps(from.byte_add(i * from_stride)));
            *r = match factor {
                // Adding 0 turns a product of -0 into +0.
                Some(factor) => self.add(self.mul(row, factor), self.splat(0.0)),
                None => row,
            };
        }
        // After two unpack steps, 128-bit lane l of r[4 g + k] is column 4 l + k of rows 4 g to
        // 4 g + 3. The shuffles then join the four groups g of each column.
        for g in (0..16).step_by(4) {
            let [a, b, c, d] = [r[g], r[g + 1], r[g + 2], r[g + 3]];
            op!({
                let ab_lo = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                let ab_hi = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                let cd_lo = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                let cd_hi = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                r[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_lo, cd_lo));
                r[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_lo, cd_lo));
                r[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_hi, cd_hi));
                r[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_hi, cd_hi));
            });
        }
        for k in 0..4 {
            op!({
                let even_01 = _mm512_shuffle_f32x4::<0x88>(r[k], r[4 + k]);
                let odd_01 = _mm512_shuffle_f32x4::<0xdd>(r[k], r[4 + k]);
                let even_23 = _mm512_shuffle_f32x4::<0x88>(r[8 + k], r[12 + k]);
                let odd_23 = _mm512_shuffle_f32x4::<0xdd>(r[8 + k], r[12 + k]);
                let columns = [
                    _mm512_shuffle_f32x4::<0x88>(even_01, even_23),
                    _mm512_shuffle_f32x4::<0x88>(odd_01, odd_23),
                    _mm512_shuffle_f32x4::<0xdd>(even_01, even_23),
                    _mm512_shuffle_f32x4::<0xdd>(odd_01, odd_23),
                ];
                for (l, column) in columns.into_iter().enumerate() {
                    _mm512_storeu_ps(to.byte_add((4 * l + k) * to_stride), column);
                }
            });
        }
    }
}

/// A mask of the lanes where 2^x does not underflow (see [`math::UNDERFLOW`]). True for NaN.
#[inline(always)]
fn in_exp2_range(x: __m512) -> __mmask16 {
    // SAFETY: I4: only methods of a token call this.
    unsafe { _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(math::UNDERFLOW)) }
}

/// A mask of the first `n` lanes, fewer than 16.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    (1 << n) - 1
}
