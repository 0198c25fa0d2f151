//! Instruction sets: the trait [`Isa`], and one zero-sized token type for each.
//!
//! A token is a proof: it is made by detection, or from the token of a larger instruction set, so
//! whoever holds it may execute every instruction behind its methods (invariant I4 in
//! `docs/safety.md`). Methods are `#[inline(always)]` and become single instructions inside
//! [`Isa::enter`], the one place where code is compiled for the instruction set. Called elsewhere
//! they are slow, never unsound.

use std::ffi::CStr;
#[cfg(target_arch = "x86_64")]
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod blocks;
pub(crate) mod fallback;
pub(crate) mod fp_env;
pub(crate) mod half;
pub(crate) mod lane;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;
pub(crate) mod split16;
pub(crate) mod tiles;
pub(crate) mod transpose;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) mod wasm;

/// Code to be compiled for one instruction set.
pub(crate) trait Body {
    /// The result of the code.
    type Out;
    /// The code. Implementations must be `#[inline(always)]`: a function that is not inlined into
    /// [`Isa::enter`] is compiled without the instructions of `s`.
    fn run<S: Isa>(self, s: S) -> Self::Out;
}

/// An instruction set: proof of its presence, and its operations on vectors of [`Isa::LANES`] lanes
/// of 32 bits, f32 or i32.
///
/// # What an instruction set writes
///
/// The constants and types below, and the 24 methods that have no default:
///
/// | section | methods |
/// |---|---|
/// | identity | `detect`, `core`, `enter`, `tiles` |
/// | arithmetic | `splat`, `add`, `sub`, `mul`, `div`, `fma`, `max`, `min`, `exp2` |
/// | comparison | `gt`, `select`, `any`, `in_range` |
/// | horizontal | `horizontal_sum` |
/// | integers | `splat_i32`, `to_f32` |
/// | memory | `load`, `store`, `load_i32`, `store_i32` |
///
/// All other methods have defaults that work lane by lane through memory. They are correct on any
/// machine, and slow. Override first what the inner loops of the kernels use:
///
/// 1. every compute type: `horizontal_sums`, `horizontal_max`, `transpose`, `load_partial`,
///    `store_partial`, `store_segments`, `prefetch_l2`, `prefetch_l1`;
/// 2. K, V and outputs of 16 or 8 bits: `load_bf16`, `load_f16`, `load_i16`, `load_i8`,
///    `load_padded`, `store_bf16`, `store_f16`, `store_i16`, `store_i8`;
/// 3. all integer types: `horizontal_sums_i32`, `horizontal_sum_i32`, `sub_i32`, `xor`; compute
///    type i16: `dot_i16`, `pack_i16`, `load_i8_i16`, `store_i16`, `exp2_approx`, `interleave_i16`
///    with `deinterleave` and `interleave`;
/// 4. compute type bf16: `dot_bf16`, `pack_bf16`, `pack_bf16_rounded`, `low_bf16`, `high_bf16`,
///    `load_lower_half`, `exp2_approx`, `interleave_i16` with `deinterleave` and `interleave`;
/// 5. compute type i8: `dot_u8_i8`, `exp2_u8`, `load_interleaved_bytes`;
/// 6. compute type split16: `dot_u8_i8`, `load_split16`, `store_split16`, `join_split16`,
///    `load_lower_half`, `interleave_bytes` with `deinterleave_bytes`; for Q8_0 also `load_halves`,
///    `splat_halves`, `horizontal_sums_of_halves`, `gather_f16`, `splat_f16`, `hide_pointer`, and
///    for blocks of 4 and 5 bits `unpack_nibbles`; compute type repacked: `dot_u8_i8`,
///    `join_split16`, `load_interleaved_bytes`, `load_transposed_words`, `look_up_nibbles`,
///    `add_by_bits`, `add_by_bit_of_lane`, `load_f16_pairs`, `signs`, `negate_bytes`;
/// 7. transposed K and V: `load_interleaved_bytes`, besides `transpose`, `load_bf16` and
///    `pack_bf16`;
/// 8. compute types bf16 and i8 by pairs of rows: `matrix_bf16` or `matrix_u8_i8`, `zip`, `unzip`,
///    `zip_halves`.
///
/// # What methods may assume of each other
///
/// - `horizontal_sums` and `horizontal_sum` add lanes in the same order: a dot product has the same
///   bits whether it is summed alone or together with others. The default of `horizontal_sums` is
///   `horizontal_sum` of each vector.
/// - `interleave_i16`, `deinterleave` and `interleave` belong together, and so do
///   `interleave_bytes` and `deinterleave_bytes`: override all of a group, or none.
/// - `load` and `store` take unaligned pointers; so do all other methods that read or write.
pub(crate) trait Isa: Copy + 'static {
    // ---- Identity ----

    /// The name that `fa_isa` reports and `fa_limit_isa` takes.
    const NAME: &'static CStr;
    /// Lanes of a vector of f32 or i32: a power of two, at least 4 and at most [`MAX_LANES`].
    const LANES: usize;
    /// Architectural vector registers: the accumulators and operands that fit without spilling.
    const REGISTERS: usize;
    /// Whether the first register tile of prefill's outputs makes the probabilities. With 16
    /// registers the exponential and the accumulators would spill.
    const EXP_IN_FIRST_TILE: bool = Self::REGISTERS >= 32;
    /// Vector accumulators of a register tile of decode. P·V takes as many sums at a time (query
    /// rows times vectors of elements): they hide the latency of FMA and leave registers for
    /// operands. With 16 of them, scores of one query row take vectors of a row in groups of 8,
    /// else of 4.
    const GEMV_ACCUMULATORS: usize = if Self::REGISTERS >= 32 { 16 } else { 8 };
    /// Whether the dot products of a register tile of decode fill a vector whatever its query rows
    /// are: `LANES / rows` keys. With 8 lanes they are then as many as hide the latency of FMA.
    /// Else a tile has 4 keys.
    const SCORES_FILL_VECTOR: bool = false;
    /// Whether decode has a second copy of its loops over V, and over K of one row, which
    /// prefetches a stream: rows that are read later. Whether a call takes it is decided when it
    /// runs.
    const PREFETCHES_STREAM: bool = false;
    /// Whether loops over K that several query rows share prefetch a stream. They have one copy:
    /// each asks between keys whether there is a stream, which is cheap beside several rows.
    const STREAMS_SHARED_KEYS: bool = Self::PREFETCHES_STREAM;
    /// Whether a pass over V that takes a part of each row, the first of several, reads the rest of
    /// the row as well where memory answers late: in the order of memory, which the hardware
    /// prefetcher follows. Else software prefetches bring it.
    const FIRST_PASS_READS_ROWS: bool = false;
    /// Whether decode has code that repacks blocks: [`crate::decode::repacked`].
    const REPACKS: bool = false;
    /// Whether a multiplication takes one lane of a vector for all lanes of the other, at no cost.
    /// Register tiles of prefill then load [`BY_LANE`] words of a key or of values at a time,
    /// instead of broadcasting each; a vector has as many lanes.
    const MULTIPLIES_BY_LANE: bool = false;
    /// Whether dot products are of bytes of equal signs, and those of unsigned by signed ones take
    /// several instructions: the compute type i8 then adds 128 to V instead of K.
    const MULTIPLIES_EQUAL_SIGNS: bool = false;
    /// A vector of f32.
    type F32: Copy;
    /// A vector of i32, or of 32-bit words that pack narrower numbers.
    type I32: Copy;
    /// One truth value for each lane.
    type Mask: Copy;
    /// The instruction set without extensions that only some compute types use, with the same
    /// lanes, or `Self`. Code that needs no more is compiled for it, once for all extensions.
    type Core: Isa;
    /// The registers of its matrix unit, or [`tiles::Plain`].
    type Tiles: tiles::TileRegisters;

    /// The token, if the running machine has the instruction set.
    fn detect() -> Option<Self>;
    /// The token of [`Isa::Core`], whose features are among those of `Self`.
    fn core(self) -> Self::Core;
    /// Runs `body`, compiled for this instruction set.
    fn enter<B: Body>(self, body: B) -> B::Out;
    /// The tiles of the thread, of which B and C have so many columns of words: 16, or fewer where
    /// two vectors have fewer.
    fn tiles(self, columns: usize) -> Self::Tiles;
    /// The format of the 16-bit numbers whose pairs it multiplies.
    #[inline(always)]
    fn half_format(self) -> half::Format {
        half::Format::Bf16
    }
    /// The token whose matrix unit multiplies 16-bit numbers of a format, if the machine has that.
    /// Vectors multiply bfloat16 alone.
    #[inline(always)]
    fn with_half_format(self, format: half::Format) -> Option<Self> {
        (format == self.half_format()).then_some(self)
    }

    // ---- Arithmetic ----

    /// Broadcasts `x` to every lane.
    fn splat(self, x: f32) -> Self::F32;
    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`: a fused multiply-add (rounded once) if the machine has it, else rounded twice.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger of the two; `b` if either is NaN, as on x86.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller of the two; `b` if either is NaN, as on x86.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// 2^x, with an error of at most 1.6 ulp for x in [-110, 126] and exactly 0 below (see
    /// [`math::UNDERFLOW`]). 2^n is exact for integers n. NaN gives NaN. `tests/numerics.rs` sweeps
    /// the range. Machines without a scaling instruction use [`math::exp2_by_table`].
    fn exp2(self, x: Self::F32) -> Self::F32;
    /// 2^x to within 1e-4 of the result, with the range and the special values of [`Isa::exp2`]:
    /// for probabilities that are rounded to 8 or 16 bits.
    #[inline(always)]
    fn exp2_approx(self, x: Self::F32) -> Self::F32 {
        self.exp2(x)
    }

    // ---- By lane ----
    //
    // With `MULTIPLIES_BY_LANE` a multiplication by one of these is one instruction.

    /// Broadcasts lane `I`.
    #[inline(always)]
    fn splat_lane<const I: i32>(self, x: Self::F32) -> Self::F32 {
        fallback::splat_lane::<Self, I>(self, x)
    }
    /// Broadcasts lane `I`.
    #[inline(always)]
    fn splat_lane_i32<const I: i32>(self, x: Self::I32) -> Self::I32 {
        fallback::splat_lane_i32::<Self, I>(self, x)
    }
    /// [`Isa::dot_i8`] by lane `I` of `b`.
    #[inline(always)]
    fn dot_i8_lane<const I: i32>(self, sum: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32 {
        self.dot_i8(sum, a, self.splat_lane_i32::<I>(b))
    }
    /// [`Isa::dot_u8`] by lane `I` of `b`.
    #[inline(always)]
    fn dot_u8_lane<const I: i32>(self, sum: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32 {
        self.dot_u8(sum, a, self.splat_lane_i32::<I>(b))
    }

    // ---- Pairs of rows ----
    //
    // Four lanes are two rows of two words, or 2 x 2 sums: a row for each row of `a`, and a column
    // for each row of `b`.

    /// The sums and the dot products of rows of four bfloat16: as [`Isa::dot_bf16`] of the first
    /// words of two rows, and then of the second ones.
    #[inline(always)]
    fn matrix_bf16(self, sum: Self::F32, a: Self::I32, b: Self::I32) -> Self::F32 {
        fallback::matrix_bf16(self, sum, a, b)
    }
    /// The sums and the dot products of rows of eight bytes: those of `a` are unsigned, those of
    /// `b` signed. Exact but for the 32-bit accumulator, which wraps.
    #[inline(always)]
    fn matrix_u8_i8(self, sum: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32 {
        fallback::matrix_u8_i8(self, sum, a, b)
    }
    /// The words of four lanes each in turn, `[a0, b0, a1, b1]` and `[a2, b2, a3, b3]`.
    #[inline(always)]
    fn zip(self, a: Self::F32, b: Self::F32) -> [Self::F32; 2] {
        fallback::zip(self, a, b)
    }
    /// `[a0, a2, b0, b2]` and `[a1, a3, b1, b3]` of four lanes each.
    #[inline(always)]
    fn unzip(self, a: Self::F32, b: Self::F32) -> [Self::F32; 2] {
        fallback::unzip(self, a, b)
    }
    /// `[a0, a1, b0, b1]` and `[a2, a3, b2, b3]` of four lanes each.
    #[inline(always)]
    fn zip_halves(self, a: Self::F32, b: Self::F32) -> [Self::F32; 2] {
        fallback::zip_halves(self, a, b)
    }

    // ---- Comparison ----

    /// `a > b`; false if either is NaN.
    fn gt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `low <= x && x < high`, of signed integers.
    fn in_range(self, low: Self::I32, x: Self::I32, high: Self::I32) -> Self::Mask;
    /// `a` where the mask is true, else `b` (a blend).
    fn select(self, mask: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Whether any lane is true.
    fn any(self, mask: Self::Mask) -> bool;

    // ---- Horizontal ----

    /// Horizontal sums of the first `LANES` vectors: lane `i` is the sum of the lanes of
    /// `vectors[i]`. The order of additions is the same for every `i`, and that of
    /// [`Isa::horizontal_sum`].
    #[inline(always)]
    fn horizontal_sums(self, vectors: &[Self::F32; MAX_LANES]) -> Self::F32 {
        fallback::horizontal_sums(self, vectors)
    }
    /// Horizontal sum of one vector, with the order of additions of [`Isa::horizontal_sums`].
    fn horizontal_sum(self, x: Self::F32) -> f32;
    /// Horizontal sums of the first `LANES` vectors of integers: lane `i` is the sum of the lanes
    /// of `vectors[i]`, wrapping.
    #[inline(always)]
    fn horizontal_sums_i32(self, vectors: &[Self::I32; MAX_LANES]) -> Self::I32 {
        fallback::horizontal_sums_i32(self, vectors)
    }
    /// Horizontal sum of one vector of integers, wrapping.
    #[inline(always)]
    fn horizontal_sum_i32(self, x: Self::I32) -> i32 {
        fallback::horizontal_sum_i32(self, x)
    }
    /// Horizontal sums of the lower halves of the first `LANES` vectors, and those of the upper
    /// halves: lane `i` of each result belongs to `vectors[i]`. Wrapping.
    #[inline(always)]
    fn horizontal_sums_of_halves(self, vectors: &[Self::I32; MAX_LANES]) -> [Self::I32; 2] {
        blocks::horizontal_sums_of_halves(self, vectors)
    }
    /// Horizontal maximum. No lane may be NaN.
    #[inline(always)]
    fn horizontal_max(self, x: Self::F32) -> f32 {
        fallback::horizontal_max(self, x)
    }

    // ---- Integers ----

    /// Broadcasts `x` to every lane.
    fn splat_i32(self, x: i32) -> Self::I32;
    /// `low` in every lane of the lower half, `high` in every lane of the upper half.
    #[inline(always)]
    fn splat_halves(self, low: i32, high: i32) -> Self::I32 {
        blocks::splat_halves(self, low, high)
    }
    /// Converts integers to f32, rounded to nearest even.
    fn to_f32(self, x: Self::I32) -> Self::F32;
    /// `a - b`, wrapping.
    #[inline(always)]
    fn sub_i32(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        fallback::sub_i32(self, a, b)
    }
    /// Bitwise exclusive or.
    #[inline(always)]
    fn xor(self, a: Self::I32, b: Self::I32) -> Self::I32 {
        fallback::xor(self, a, b)
    }
    /// Dot product of four bytes in each lane, added to `sum`: those of `a` are unsigned, those of
    /// `b` signed. Products and their sums are exact; only the 32-bit accumulator wraps (no
    /// saturation).
    #[inline(always)]
    fn dot_u8_i8(self, sum: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32 {
        fallback::dot_u8_i8(self, sum, a, b)
    }
    /// [`Isa::dot_u8_i8`] of signed bytes by signed ones.
    #[inline(always)]
    fn dot_i8(self, sum: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32 {
        fallback::dot_i8(self, sum, a, b)
    }
    /// [`Isa::dot_u8_i8`] of unsigned bytes by unsigned ones.
    #[inline(always)]
    fn dot_u8(self, sum: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32 {
        fallback::dot_u8(self, sum, a, b)
    }
    /// 255 · 2^(x - top) of four vectors, rounded to unsigned bytes with an error of at most 0.6 %:
    /// byte `i` of each lane is from `x[i]`. No `x` may be above `top`. -inf and NaN give 0.
    #[inline(always)]
    fn exp2_u8(self, x: [Self::F32; 4], top: Self::F32) -> Self::I32 {
        math::exp2_u8(self, x, top)
    }
    /// Interleaves the bytes of four vectors: each 32-bit word of the result is one byte of each,
    /// that of `x[0]` lowest. Bytes of the lower half of a vector stay in the lower half of the
    /// four results: it may be another block than the upper one. Apart from that, the order of the
    /// words is the instruction set's own (x86 unpacks within 128-bit lanes);
    /// [`Isa::deinterleave_bytes`] restores the order of the bytes.
    #[inline(always)]
    fn interleave_bytes(self, x: [Self::I32; 4]) -> [Self::I32; 4] {
        split16::interleave_bytes(self, x)
    }
    /// Restores lane order after [`Isa::interleave_bytes`]: lane `i` of the four vectors, taken as
    /// one, then belongs to byte `i`.
    #[inline(always)]
    fn deinterleave_bytes(self, x: [Self::F32; 4]) -> [Self::F32; 4] {
        split16::deinterleave_bytes(self, x)
    }
    /// `256 * high + low`, wrapping: joins the accumulators of the two bytes of
    /// [`Isa::load_split16`] and [`Isa::store_split16`].
    #[inline(always)]
    fn join_split16(self, high: Self::I32, low: Self::I32) -> Self::I32 {
        split16::join(self, high, low)
    }

    // ---- 16-bit halves ----
    //
    // A 32-bit lane packs two 16-bit numbers, bfloat16 or i16: a low half and a high half.

    /// Packs two vectors as bfloat16 by truncation: `low` in the low halves, `high` in the high
    /// ones.
    #[inline(always)]
    fn pack_bf16(self, low: Self::F32, high: Self::F32) -> Self::I32 {
        fallback::pack_bf16(self, low, high)
    }
    /// Packs two vectors as bfloat16, rounded to nearest, ties up: `low` in the low halves, `high`
    /// in the high ones. No lane may be NaN, negative or so large that it rounds to infinity.
    #[inline(always)]
    fn pack_bf16_rounded(self, low: Self::F32, high: Self::F32) -> Self::I32 {
        fallback::pack_bf16_rounded(self, low, high)
    }
    /// Packs two vectors as binary16, rounded to nearest even: `low` in the low halves, `high` in
    /// the high ones.
    #[inline(always)]
    fn pack_f16(self, low: Self::F32, high: Self::F32) -> Self::I32 {
        fallback::pack_f16(self, low, high)
    }
    /// The bfloat16 in the low halves, as f32.
    #[inline(always)]
    fn low_bf16(self, x: Self::I32) -> Self::F32 {
        fallback::low_bf16(self, x)
    }
    /// The bfloat16 in the high halves, as f32.
    #[inline(always)]
    fn high_bf16(self, x: Self::I32) -> Self::F32 {
        fallback::high_bf16(self, x)
    }
    /// Dot product of the two bfloat16 in each lane, added to `sum`. The machine may take subnormal
    /// numbers for 0, and its rounding is its own.
    #[inline(always)]
    fn dot_bf16(self, sum: Self::F32, a: Self::I32, b: Self::I32) -> Self::F32 {
        fallback::dot_bf16(self, sum, a, b)
    }
    /// Packs two vectors as i16, rounded to nearest even: `low` in the low halves, `high` in the
    /// high ones. NaN becomes 0. All other values must fit.
    #[inline(always)]
    fn pack_i16(self, low: Self::F32, high: Self::F32) -> Self::I32 {
        fallback::pack_i16(self, low, high)
    }
    /// Dot product of the two i16 in each lane, added to `sum`. Exact but for the 32-bit
    /// accumulator, which wraps.
    #[inline(always)]
    fn dot_i16(self, sum: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32 {
        fallback::dot_i16(self, sum, a, b)
    }
    /// Interleaves the halves of two vectors: each word of the result is a half of `a` (low) and
    /// the half of `b` with the same index (high). The order of the words is the instruction set's
    /// own (x86 unpacks within 128-bit lanes); [`Isa::deinterleave`] restores the order of the
    /// halves.
    #[inline(always)]
    fn interleave_i16(self, a: Self::I32, b: Self::I32) -> [Self::I32; 2] {
        fallback::interleave_i16(self, a, b)
    }
    /// Restores lane order after [`Isa::interleave_i16`]: lane `i` of the two vectors, taken as
    /// one, then belongs to half `i`.
    #[inline(always)]
    fn deinterleave(self, x: [Self::F32; 2]) -> [Self::F32; 2] {
        x
    }
    /// Permutes lanes into the order of [`Isa::interleave_i16`]: the inverse of
    /// [`Isa::deinterleave`].
    #[inline(always)]
    fn interleave(self, x: [Self::F32; 2]) -> [Self::F32; 2] {
        x
    }

    // ---- Memory: vectors of 32-bit lanes ----

    /// Loads a vector; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    unsafe fn load(self, p: *const f32) -> Self::F32;
    /// Partial load: the first `n` lanes, fewer than `LANES`. The other lanes are 0, and memory
    /// behind the first `n` values is not read.
    ///
    /// # Safety
    /// `n` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_partial(self, p: *const f32, n: usize) -> Self::F32 {
        // SAFETY: `n` values are readable at `p` (caller).
        unsafe { fallback::load_partial(self, p, n) }
    }
    /// Stores a vector; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    unsafe fn store(self, p: *mut f32, x: Self::F32);
    /// Partial store: the first `n` lanes, fewer than `LANES`. Memory behind them is not written.
    ///
    /// # Safety
    /// `n` values are writable at `p`.
    #[inline(always)]
    unsafe fn store_partial(self, p: *mut f32, n: usize, x: Self::F32) {
        // SAFETY: `n` values are writable at `p` (caller).
        unsafe { fallback::store_partial(self, p, n, x) }
    }
    /// Stores a vector as `R` segments of `LANES / R` lanes, the first at `p`, each next one `step`
    /// values further. `R` divides `LANES`; no alignment is needed.
    ///
    /// # Safety
    /// `LANES / R` values are writable at each of the `R` places.
    #[inline(always)]
    unsafe fn store_segments<const R: usize>(self, p: *mut f32, step: usize, x: Self::F32) {
        // SAFETY: each of the `R` places is writable (caller).
        unsafe { fallback::store_segments::<Self, R>(self, p, step, x) }
    }
    /// Loads a vector of i32; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    unsafe fn load_i32(self, p: *const i32) -> Self::I32;
    /// Stores a vector of i32; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    unsafe fn store_i32(self, p: *mut i32, x: Self::I32);
    /// Loads the lower half of a vector of i32. The lanes of the upper half are 0.
    ///
    /// # Safety
    /// `LANES / 2` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_lower_half(self, p: *const i32) -> Self::I32 {
        // SAFETY: half a vector is readable at `p` (caller).
        unsafe { fallback::load_lower_half(self, p) }
    }
    /// Loads the lower half of a vector of i32 from `low`, and the upper half from `high`.
    ///
    /// # Safety
    /// `LANES / 2` values are readable at `low` and at `high`.
    #[inline(always)]
    unsafe fn load_halves(self, low: *const i32, high: *const i32) -> Self::I32 {
        // SAFETY: half a vector is readable at `low` and at `high` (caller).
        unsafe { blocks::load_halves(self, low, high) }
    }

    /// The `n` bytes of a row from byte `from` on, fewer than `size`, and zeros behind them up to
    /// `size` bytes, which are 4, 8, 16, 32 or 64. Bytes of the row before `from` may be read, too,
    /// but none behind the `n` bytes.
    ///
    /// # Safety
    /// `from + n` bytes are readable at `row`.
    #[inline(always)]
    unsafe fn load_padded(self, row: *const u8, from: usize, n: usize, size: usize) -> Padded {
        // SAFETY: `from + n` bytes are readable at `row` (caller).
        unsafe { fallback::load_padded(row, from, n, size) }
    }

    // ---- Memory: conversions ----

    /// Loads `LANES` binary16 as f32; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_f16(self, p: *const u16) -> Self::F32 {
        // SAFETY: LANES values are readable at `p` (caller).
        unsafe { fallback::load_f16(self, p) }
    }
    /// Loads one binary16 and broadcasts it as f32; no alignment is needed.
    ///
    /// # Safety
    /// One value is readable at `p`.
    #[inline(always)]
    unsafe fn splat_f16(self, p: *const u16) -> Self::F32 {
        // SAFETY: one value is readable at `p` (caller).
        self.splat(half::from_f16(unsafe { p.read_unaligned() }))
    }
    /// Gathers two binary16 for each lane, as f32: one at the lane's address, and one `distance`
    /// bytes further. Lanes `n` to `n + 3`, for `n` a multiple of 4, have the addresses
    /// `four(n)(0)` to `four(n)(3)`. No alignment is needed.
    ///
    /// # Safety
    /// Both values of every lane are readable.
    #[inline(always)]
    unsafe fn gather_f16<At: Fn(usize) -> *const u8>(
        self,
        four: impl Fn(usize) -> At,
        distance: usize,
    ) -> [Self::F32; 2] {
        // SAFETY: both values of every lane are readable (caller).
        unsafe { blocks::gather_f16(self, four, distance) }
    }
    /// Loads `LANES` bfloat16 as f32; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F32 {
        // SAFETY: LANES values are readable at `p` (caller).
        unsafe { fallback::load_bf16(self, p) }
    }
    /// Loads `LANES` i16 as f32; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_i16(self, p: *const i16) -> Self::F32 {
        // SAFETY: LANES values are readable at `p` (caller).
        unsafe { fallback::load_i16(self, p) }
    }
    /// Loads `LANES` signed bytes as f32.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_i8(self, p: *const i8) -> Self::F32 {
        // SAFETY: LANES values are readable at `p` (caller).
        unsafe { fallback::load_i8(self, p) }
    }
    /// Loads `2 * LANES` signed bytes, sign-extended to i16.
    ///
    /// # Safety
    /// `2 * LANES` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_i8_i16(self, p: *const i8) -> Self::I32 {
        // SAFETY: 2 * LANES values are readable at `p` (caller).
        unsafe { fallback::load_i8_i16(self, p) }
    }
    /// Replaces each nibble of 16 bytes by its entry in `table`, and writes these 32 numbers: those
    /// of the low nibbles, then those of the high ones. With `fifths` the second number is added
    /// where the first one has a bit: that of the lowest order belongs to the first number. With a
    /// `sign` that is negative, all numbers are negated; none is -128.
    ///
    /// # Safety
    /// 16 bytes are readable at `p`, and 32 writable at `to`.
    #[inline(always)]
    unsafe fn unpack_nibbles(
        self,
        p: *const u8,
        table: &[i8; 16],
        fifths: Option<(u32, i8)>,
        sign: Option<i8>,
        to: *mut i8,
    ) {
        // SAFETY: 16 bytes are readable at `p`, and 32 writable at `to` (caller).
        unsafe { blocks::unpack_nibbles(p, table, fifths, sign, to) }
    }
    /// Loads `LANES` pairs of binary16 numbers: the first of each, and the second.
    ///
    /// # Safety
    /// `2 * LANES` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_f16_pairs(self, p: *const u16) -> [Self::F32; 2] {
        // SAFETY: 2 * LANES values are readable at `p` (caller).
        unsafe { blocks::load_f16_pairs(self, p) }
    }
    /// Loads 16 bytes from each of `LANES` addresses, transposed: lane `n` of vector `w` is word
    /// `w` of the 16 bytes at `four(n - n % 4)(n % 4)`.
    ///
    /// # Safety
    /// 16 bytes are readable at each address.
    #[inline(always)]
    unsafe fn load_transposed_words<At: Fn(usize) -> *const u8>(
        self,
        four: impl Fn(usize) -> At,
    ) -> [Self::I32; 4] {
        // SAFETY: 16 bytes are readable at each address (caller).
        unsafe { blocks::load_transposed_words(self, four) }
    }
    /// Replaces the low nibble of each byte by its entry in `table`, and the high one.
    #[inline(always)]
    fn look_up_nibbles(self, x: Self::I32, table: &[i8; 16]) -> [Self::I32; 2] {
        blocks::look_up_nibbles(self, x, table)
    }
    /// Adds `more` to byte `i` of each lane of `x` where the lane of `bits` has bit `first + i`.
    #[inline(always)]
    fn add_by_bits(self, x: Self::I32, bits: Self::I32, first: usize, more: i8) -> Self::I32 {
        blocks::add_by_bits(self, x, bits, first, more)
    }
    /// Adds `more` to byte `i` of each lane of `x`, where bit `first` plus the number of the lane
    /// is set in `bits[i]`: less than 32 in all.
    #[inline(always)]
    fn add_by_bit_of_lane(self, x: Self::I32, bits: [u32; 4], first: usize, more: i8) -> Self::I32 {
        blocks::add_by_bit_of_lane(self, x, bits, first, more)
    }
    /// The signs of all lanes: bit `n` is that of lane `n`.
    #[inline(always)]
    fn signs(self, x: Self::F32) -> u16 {
        blocks::signs(self, x)
    }
    /// Negates byte `i` of each lane of `x` where bit `i` of `signs` is set, a number below 16.
    #[inline(always)]
    fn negate_bytes(self, x: Self::I32, signs: u8) -> Self::I32 {
        blocks::negate_bytes(self, x, signs)
    }
    /// Loads `4 * LANES` i16, at most 32,639 each, split into signed bytes: a vector of high bytes
    /// and one of low bytes, where each number is `256 * high + low`.
    ///
    /// # Safety
    /// `4 * LANES` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_split16(self, p: *const i16) -> [Self::I32; 2] {
        // SAFETY: 4 * LANES values are readable at `p` (caller).
        unsafe { split16::load(self, p) }
    }
    /// Loads `LANES` bytes from each of four rows, from byte `d` on, interleaved: byte `r` of each
    /// lane is from `rows[r]`. Lanes are in memory order.
    ///
    /// # Safety
    /// `LANES` bytes are readable at byte `d` of each row.
    #[inline(always)]
    unsafe fn load_interleaved_bytes(self, rows: [*const u8; 4], d: usize) -> Self::I32 {
        // SAFETY: LANES bytes are readable at byte `d` of each row (caller).
        unsafe { fallback::load_interleaved_bytes(self, rows, d) }
    }
    /// Which of the `LANES` bytes at `p` are not 0.
    ///
    /// # Safety
    /// `LANES` bytes are readable at `p`.
    #[inline(always)]
    unsafe fn load_nonzero(self, p: *const u8) -> Self::Mask {
        // SAFETY: LANES bytes are readable at `p` (caller).
        unsafe { fallback::load_nonzero(self, p) }
    }
    /// Stores a vector as binary16, rounded to nearest even; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16, x: Self::F32) {
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { fallback::store_f16(self, p, x) }
    }
    /// Stores a vector as bfloat16, rounded to nearest even; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F32) {
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { fallback::store_bf16(self, p, x) }
    }
    /// Stores a vector as signed bytes, rounded to nearest even, with saturation. NaN becomes -128.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: Self::F32) {
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { fallback::store_i8(self, p, x) }
    }
    /// Stores a vector as i16, rounded to nearest even. All values must fit.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, x: Self::F32) {
        // SAFETY: LANES values are writable at `p` (caller).
        unsafe { fallback::store_i16(self, p, x) }
    }
    /// Stores a vector as u16, rounded to nearest even and split into bytes: all high bytes, then
    /// all low bytes. NaN becomes 0. All other values must fit.
    ///
    /// # Safety
    /// `2 * LANES` bytes are writable at `p`.
    #[inline(always)]
    unsafe fn store_split16(self, p: *mut u8, x: Self::F32) {
        // SAFETY: 2 * LANES bytes are writable at `p` (caller).
        unsafe { split16::store(self, p, x) }
    }

    // ---- Prefetch ----

    /// Software prefetch of the cache line at `p` into the L2 cache. Any address will do; none is
    /// read. Does nothing by default.
    #[inline(always)]
    fn prefetch_l2(self, p: *const u8) {
        let _ = p;
    }
    /// Software prefetch of the cache line at `p` into the L1 cache. Any address will do; none is
    /// read. Does nothing by default.
    #[inline(always)]
    fn prefetch_l1(self, p: *const u8) {
        let _ = p;
    }
    /// Optimisation barrier: hides `p` so that LLVM does not keep one register per row offset, of
    /// which an unrolled loop can have more than there are registers. Does nothing by default.
    #[inline(always)]
    fn hide_pointer(self, p: *const u8) -> *const u8 {
        p
    }

    // ---- Transposition ----

    /// Transposes a tile of `LANES` rows of `LANES` values. With `factor`, column `i` of `from` is
    /// multiplied by lane `i` of it, and products of -0 become +0; without, values keep their bits.
    /// Strides are in bytes; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` rows of `LANES` values are readable at `from` and writable at `to`, and the two do
    /// not overlap.
    #[inline(always)]
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
        factor: Option<Self::F32>,
    ) {
        // SAFETY: both tiles are valid and do not overlap (caller).
        unsafe { fallback::transpose(self, from, from_stride, to, to_stride, factor) }
    }
}

/// Lanes of the widest vector of any instruction set: the size of small arrays on the stack, which
/// then hold any vector.
pub(crate) const MAX_LANES: usize = 16;

/// Words that register tiles load at a time with [`Isa::MULTIPLIES_BY_LANE`].
pub(crate) const BY_LANE: usize = 4;

/// The bytes of a vector, of which narrow elements take a part.
pub(crate) type Padded = [u8; 4 * MAX_LANES];

/// Runs a unit test on each instruction set that this machine has: the list that a new instruction
/// set joins.
#[cfg(test)]
pub(crate) fn on_each_isa(test: impl Body<Out = ()> + Copy) {
    fn on<S: Isa>(test: impl Body<Out = ()>) {
        if let Some(s) = S::detect() {
            s.enter(test);
        }
    }
    on::<scalar::Scalar>(test);
    #[cfg(target_arch = "x86_64")]
    on::<avx2::Avx2>(test);
    #[cfg(target_arch = "x86_64")]
    on::<avx2::Avx2<avx2::Vnni>>(test);
    #[cfg(target_arch = "x86_64")]
    on::<avx512::Avx512>(test);
    #[cfg(target_arch = "aarch64")]
    {
        on::<neon::Neon>(test);
        on::<neon::Neon<neon::DotProd>>(test);
        on::<neon::Neon<neon::I8mm>>(test);
        on::<neon::Neon<neon::Bf16>>(test);
    }
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    on::<wasm::Simd128>(test);
}

/// Proof that the running machine has a list of CPU features.
pub(crate) trait Token: Copy + 'static {
    /// The token, if the machine has the features.
    fn probe() -> Option<Self>;
    /// Runs `body`, compiled with the features.
    fn compiled_for<B: Body>(self, body: B) -> B::Out;
}

/// Whether the machine has a CPU feature, or a test executes its instructions.
#[cfg(target_arch = "x86_64")]
macro_rules! has_feature {
    ("avxvnni") => {
        std::arch::is_x86_feature_detected!("avxvnni") || $crate::simd::is_vnni_emulated()
    };
    ($feature:tt) => {
        std::arch::is_x86_feature_detected!($feature)
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! has_feature {
    ($feature:tt) => {
        std::arch::is_aarch64_feature_detected!($feature)
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use has_feature;

/// Whether a test has called [`emulate_vnni`]. Where nothing can, the compiler knows that it is
/// false.
#[cfg(target_arch = "x86_64")]
static IS_VNNI_EMULATED: AtomicBool = AtomicBool::new(false);

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn is_vnni_emulated() -> bool {
    IS_VNNI_EMULATED.load(Ordering::Relaxed)
}

/// Takes it from now on that the machine has AVX-VNNI: for tests, on machines that have not.
///
/// # Safety
/// Something executes the instructions of AVX-VNNI on every thread: a handler of the signal that
/// the machine gives for illegal ones.
#[cfg(target_arch = "x86_64")]
pub unsafe fn emulate_vnni() {
    IS_VNNI_EMULATED.store(true, Ordering::Relaxed);
}

/// Defines the token type of an instruction set from one list of CPU features. Detection asks
/// for the list, and [`Isa::enter`] compiles for it, so the two cannot drift apart. The expression
/// after `as` makes an [`Isa`] of a token; the one after `if` is what else it takes. A token may
/// have content, of a type, which detection begins with.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! token {
    ($(#[$doc:meta])* $name:ident as $wrap:expr; $($feature:tt),+) => {
        $crate::simd::token! { $(#[$doc])* $name((); ()) as $wrap, if true; $($feature),+ }
    };
    (
        $(#[$doc:meta])*
        $name:ident($content:expr; $type:ty) as $wrap:expr, if $is_permitted:expr; $($feature:tt),+
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name($type);

        impl $crate::simd::Token for $name {
            #[inline(always)]
            fn probe() -> Option<Self> {
                ($($crate::simd::has_feature!($feature))&&+ && $is_permitted).then_some(Self($content))
            }

            #[inline(always)]
            fn compiled_for<B: $crate::simd::Body>(self, body: B) -> B::Out {
                $(#[target_feature(enable = $feature)])+
                fn inner<B: $crate::simd::Body>(s: $name, body: B) -> B::Out {
                    body.run($wrap(s))
                }
                // SAFETY: I4: `self` exists, so `probe` has found every feature of this list.
                unsafe { inner(self, body) }
            }
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use token;

#[cfg(test)]
mod tests {
    use std::array::from_fn;

    use super::*;

    #[derive(Clone, Copy)]
    struct PaddedLoads;

    impl Body for PaddedLoads {
        type Out = ();

        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            let bytes: [u8; 200] = std::array::from_fn(|i| i as u8 + 1);
            for size in [S::LANES, 2 * S::LANES, 4 * S::LANES] {
                for (from, n) in (0..80).flat_map(|from| (0..size).map(move |n| (from, n))) {
                    // SAFETY: the array has more than `from + n` bytes.
                    let padded = unsafe { s.load_padded(bytes.as_ptr(), from, n, size) };
                    assert_eq!(padded[..n], bytes[from..from + n], "{from} {n} {size}");
                    assert!(padded[n..size].iter().all(|&byte| byte == 0), "{from} {n} {size}");
                }
            }
        }
    }

    /// Words of four bytes, or two bfloat16, some of which are numbers near each other.
    #[derive(Clone, Copy)]
    struct ByLane;

    impl Body for ByLane {
        type Out = ();

        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            let word = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9).cast_signed();
            let words: [[i32; MAX_LANES]; 3] = [0, 1, 2].map(|n| from_fn(|i| word(MAX_LANES * n + i + 1)));
            let floats = [0, 1, 2].map(|n| words[n].map(|word| word as f32));
            let lanes = |x: S::I32| {
                let mut lanes = [0i32; MAX_LANES];
                // SAFETY: I7: the array has MAX_LANES words.
                unsafe { s.store_i32(lanes.as_mut_ptr(), x) };
                lanes
            };
            // SAFETY: I7: the arrays have MAX_LANES words.
            let ([sum, a, b], [x, y, z]) = unsafe {
                (words.map(|words| s.load_i32(words.as_ptr())), floats.map(|floats| s.load(floats.as_ptr())))
            };
            let bits = |x: S::F32| {
                let mut lanes = [0f32; MAX_LANES];
                // SAFETY: I7: the array has MAX_LANES words.
                unsafe { s.store(lanes.as_mut_ptr(), x) };
                lanes.map(f32::to_bits)
            };
            // Sums of products of bytes, signed where 0x80 is given, of the words of `a` with one.
            let plain = |sign_a: u8, sign_b: u8, word: i32| -> [i32; MAX_LANES] {
                let number = |byte: u8, sign: u8| i32::from(byte ^ sign) - i32::from(sign);
                from_fn(|lane| {
                    let pairs = words[1][lane].to_le_bytes().into_iter().zip(word.to_le_bytes());
                    pairs.fold(words[0][lane], |sum, (a, b)| {
                        sum.wrapping_add(number(a, sign_a) * number(b, sign_b))
                    })
                })
            };
            macro_rules! lane {
                ($lane:literal) => {
                    let of_b = s.splat_i32(words[2][$lane]);
                    assert_eq!(lanes(s.splat_lane_i32::<$lane>(b)), lanes(of_b));
                    assert_eq!(bits(s.splat_lane::<$lane>(y)), bits(s.splat(floats[1][$lane])));
                    let product = s.fma(x, s.splat(floats[1][$lane]), z);
                    assert_eq!(bits(s.fma(x, s.splat_lane::<$lane>(y), z)), bits(product));
                    let dots = lanes(s.dot_u8_i8(sum, a, of_b));
                    assert_eq!(dots[..S::LANES], plain(0, 0x80, words[2][$lane])[..S::LANES]);
                    let dots = lanes(s.dot_i8(sum, a, of_b));
                    assert_eq!(lanes(s.dot_i8_lane::<$lane>(sum, a, b)), dots);
                    assert_eq!(dots[..S::LANES], plain(0x80, 0x80, words[2][$lane])[..S::LANES]);
                    let dots = lanes(s.dot_u8(sum, a, of_b));
                    assert_eq!(lanes(s.dot_u8_lane::<$lane>(sum, a, b)), dots);
                    assert_eq!(dots[..S::LANES], plain(0, 0, words[2][$lane])[..S::LANES]);
                };
            }
            lane!(0);
            lane!(1);
            lane!(2);
            lane!(3);
        }
    }

    #[derive(Clone, Copy)]
    struct PairsOfRows;

    impl Body for PairsOfRows {
        type Out = ();

        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            let word = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9).cast_signed();
            for seed in 0..100 {
                let words: [[i32; MAX_LANES]; 3] =
                    [0, 1, 2].map(|n| from_fn(|i| word(3 * MAX_LANES * seed + MAX_LANES * n + i + 1)));
                // Of the words as bfloat16: neither infinities nor NaN, nor subnormal sums.
                let halves =
                    words.map(|words| words.map(|word| word & 0xbfff_bfff_u32.cast_signed() | 0x2000_2000));
                let store = |x: S::F32| {
                    let mut lanes = [0u32; MAX_LANES];
                    // SAFETY: I7: the array has MAX_LANES words.
                    unsafe { s.store(lanes.as_mut_ptr().cast(), x) };
                    lanes
                };
                let store_i32 = |x: S::I32| {
                    let mut lanes = [0i32; MAX_LANES];
                    // SAFETY: I7: the array has MAX_LANES words.
                    unsafe { s.store_i32(lanes.as_mut_ptr(), x) };
                    lanes
                };
                // SAFETY: I7: the arrays have MAX_LANES words.
                let load = |words: &[i32; MAX_LANES]| unsafe { s.load_i32(words.as_ptr()) };
                // SAFETY: I7: the arrays have MAX_LANES words.
                let load_f32 = |words: &[i32; MAX_LANES]| unsafe { s.load(words.as_ptr().cast()) };

                let [sum, a, b] = [0, 1, 2].map(|n| load(&words[n]));
                let (products, halves_of) = (store_i32(s.matrix_u8_i8(sum, a, b)), &halves);
                let [_, c, d] = [0, 1, 2].map(|n| load(&halves_of[n]));
                let sums = store(s.matrix_bf16(load_f32(&halves[0]), c, d));
                for lane in 0..S::LANES {
                    // Of four lanes: a row of `a` for two sums, and one of `b` for every other.
                    let (first, place) = (lane - lane % 4, lane % 4);
                    let (of_a, of_b) = (first + place / 2 * 2, first + place % 2 * 2);
                    let mut product = words[0][lane];
                    let mut x = load_f32(&halves[0]);
                    for i in 0..2 {
                        let bytes = words[1][of_a + i].to_le_bytes().into_iter();
                        for (a, b) in bytes.zip(words[2][of_b + i].to_le_bytes()) {
                            product = product.wrapping_add(i32::from(a) * i32::from(b.cast_signed()));
                        }
                        x = s.dot_bf16(x, s.splat_i32(halves[1][of_a + i]), s.splat_i32(halves[2][of_b + i]));
                    }
                    assert_eq!(products[lane], product);
                    assert_eq!(sums[lane], store(x)[lane], "seed {seed}, lane {lane}");
                }

                let [a, b] = [1, 2].map(|n| load_f32(&words[n]));
                let [zipped, unzipped, halves] = [s.zip(a, b), s.unzip(a, b), s.zip_halves(a, b)];
                for lane in 0..S::LANES {
                    let (first, place) = (lane - lane % 4, lane % 4);
                    for i in 0..2 {
                        let expected = |[of, at]: [usize; 2]| words[1 + of][first + at].cast_unsigned();
                        assert_eq!(store(zipped[i])[lane], expected([place % 2, 2 * i + place / 2]));
                        assert_eq!(store(unzipped[i])[lane], expected([place / 2, place % 2 * 2 + i]));
                        assert_eq!(store(halves[i])[lane], expected([place / 2, 2 * i + place % 2]));
                    }
                }
            }
        }
    }

    /// The machine's products of pairs of rows have the bits of its dot products, word by word.
    #[test]
    fn products_of_pairs_of_rows_are_dot_products() {
        on_each_isa(PairsOfRows);
    }

    #[derive(Clone, Copy)]
    struct PairsOfF16;

    impl Body for PairsOfF16 {
        type Out = ();

        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            // Of every exponent of binary16 and some beyond, with ties to even and what is next.
            let number = |i: usize| f32::from_bits(0x3180_0000 + i as u32 * 0x0004_7800);
            for first in (0..4096).step_by(2 * MAX_LANES) {
                let [low, high]: [[f32; MAX_LANES]; 2] =
                    [0, MAX_LANES].map(|more| from_fn(|i| number(first + more + i)));
                let mut words = [0i32; MAX_LANES];
                // SAFETY: I7: the arrays have MAX_LANES numbers.
                unsafe {
                    let pairs = s.pack_f16(s.load(low.as_ptr()), s.load(high.as_ptr()));
                    s.store_i32(words.as_mut_ptr(), pairs);
                }
                for i in 0..S::LANES {
                    let halves = [half::to_f16(low[i]), half::to_f16(high[i])].map(u32::from);
                    assert_eq!(
                        words[i].cast_unsigned(),
                        halves[0] | halves[1] << 16,
                        "{} {}",
                        low[i],
                        high[i]
                    );
                }
            }
        }
    }

    #[test]
    fn pairs_of_f16_are_rounded_to_nearest_even() {
        on_each_isa(PairsOfF16);
    }

    /// A lane of an operand counts as that number in all lanes.
    #[test]
    fn products_by_lane_are_those_of_the_lane() {
        on_each_isa(ByLane);
    }

    /// With few bytes before the part that is loaded, with many, and with none.
    #[test]
    fn padded_bytes_are_those_of_the_row_and_zeros() {
        on_each_isa(PaddedLoads);
    }
}
