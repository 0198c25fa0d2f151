//! Instruction sets: one zero-sized token each, made only by detection.
//!
//! A value of a type that implements `Isa` proves that the running CPU and its operating system
//! support every instruction behind its methods, so arithmetic needs no further proof. Methods are
//! `#[inline(always)]` and become single instructions inside `Isa::enter`, the one place where
//! code is compiled for the instruction set; called elsewhere they would be slow, never unsound.

use std::ffi::CStr;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod blocks;
pub(crate) mod fp_env;
pub(crate) mod half;
pub(crate) mod lane;
pub(crate) mod math;
pub(crate) mod scalar;
pub(crate) mod split16;
pub(crate) mod transpose;

/// A piece of code to be compiled for one instruction set.
pub(crate) trait Body {
    /// What it returns.
    type Out;
    /// The code. Implementations are `#[inline(always)]`, or they would be compiled without the
    /// instructions that `s` stands for.
    fn run<S: Isa>(self, s: S) -> Self::Out;
}

/// An instruction set: proof of its presence, and its operations on vectors of [`Isa::LANES`].
///
/// NaN handling of `max` is that of x86: the second operand is returned if either is NaN.
pub(crate) trait Isa: Copy + 'static {
    /// The name that `fa_isa` reports and `fa_limit_isa` takes.
    const NAME: &'static CStr;
    /// f32 (and i32) values in a vector; at most [`MAX_LANES`].
    const LANES: usize;
    /// Vector registers.
    const REGISTERS: usize;
    /// Vector accumulators of a register tile of decode. P·V takes as many sums at a time (query rows
    /// times vectors of elements): they hide the latency of FMA and leave registers for operands.
    /// With 16 of them, scores of one query row take vectors of a row in groups of 8, else of 4.
    const GEMV_ACCUMULATORS: usize = if Self::REGISTERS >= 32 { 16 } else { 8 };
    /// Whether decode has a second copy of its loops over K and V, which prefetches V while K is
    /// multiplied and the next K while V is. Whether a call takes it is decided when it runs.
    const PREFETCHES_OTHER_TENSOR: bool = Self::REGISTERS >= 32;
    /// A vector of f32.
    type F32: Copy;
    /// A vector of i32.
    type I32: Copy;
    /// One truth value a lane.
    type Mask: Copy;
    /// The same without what only some compute families need: code that does not use that exists once.
    type Core: Isa;

    /// The token, if the running machine has the instruction set.
    fn detect() -> Option<Self>;
    /// Runs `body` compiled for this instruction set.
    fn enter<B: Body>(self, body: B) -> B::Out;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F32;
    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once where the machine can.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger of the two; `b` if either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller of the two; `b` if either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// 2^x to within 1.6 ulp for x in [-110, 126]; below that exactly 0: see [`math::NOTHING`]. 2^n is exact for
    /// integers n. NaN gives NaN. `tests/numerics.rs` sweeps it.
    fn exp2(self, x: Self::F32) -> Self::F32;
    /// `a > b`, false for NaN.
    fn gt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// `a` where the mask is true, else `b`.
    fn select(self, mask: Self::Mask, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The sum of each of the first `LANES` vectors, in the lane of its number. All are added up in
    /// the same order, so a sum does not depend on the number.
    fn sums(self, vectors: &[Self::F32; MAX_LANES]) -> Self::F32;
    /// The sum of the lanes, in the same order.
    fn total(self, x: Self::F32) -> f32;
    /// What [`Isa::sums`] says, of integers: exact, but for sums beyond 32 bits, which wrap.
    fn sums_i32(self, vectors: &[Self::I32; MAX_LANES]) -> Self::I32;
    /// The sum of the lanes, wrapping.
    #[inline(always)]
    fn total_i32(self, x: Self::I32) -> i32 {
        math::total_i32(self, x)
    }
    /// The sums of the lower halves of the first `LANES` vectors, each in the lane of its number, and those of the upper
    /// halves; wrapping.
    #[inline(always)]
    fn sums_of_halves(self, vectors: &[Self::I32; MAX_LANES]) -> [Self::I32; 2] {
        blocks::sums_of_halves(self, vectors)
    }
    /// The largest lane; none is NaN.
    fn largest(self, x: Self::F32) -> f32;
    /// Whether any lane is true.
    fn any(self, mask: Self::Mask) -> bool;

    /// `x` in every lane.
    fn splat_i32(self, x: i32) -> Self::I32;
    /// `low` in every lane of the lower half, `high` in the others.
    #[inline(always)]
    fn splat_halves(self, low: i32, high: i32) -> Self::I32 {
        blocks::splat_halves(self, low, high)
    }
    /// The same numbers as f32, rounded to nearest even.
    fn to_f32(self, x: Self::I32) -> Self::F32;
    /// What [`Isa::exp2`] promises, but to within 1e-4 of the result: for probabilities that are rounded to 8
    /// or 16 bits.
    #[inline(always)]
    fn exp2_roughly(self, x: Self::F32) -> Self::F32 {
        self.exp2(x)
    }
    /// The upper halves of two f32, as bfloat16, those of `low` in the lower halves of the result.
    fn halves(self, low: Self::F32, high: Self::F32) -> Self::I32;
    /// The same, rounded to nearest; neither is NaN, negative or near the end of f32.
    fn halves_rounded(self, low: Self::F32, high: Self::F32) -> Self::I32;
    /// What is in the lower halves, as f32.
    fn low_half(self, x: Self::I32) -> Self::F32;
    /// `sum + a.low * b.low + a.high * b.high`, each lane a pair of bfloat16; the machine may take subnormal
    /// numbers for 0.
    #[inline(always)]
    fn dot_bf16(self, sum: Self::F32, a: Self::I32, b: Self::I32) -> Self::F32 {
        math::dot_of_halves(self, sum, a, b)
    }
    /// `a - b`, wrapping.
    fn sub_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The bits in which the two differ.
    fn xor(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `sum` and the products of the four bytes of each lane: unsigned ones of `a`, signed ones of `b`. Exact, but
    /// for sums beyond 32 bits, which wrap.
    #[inline(always)]
    fn dot_u8_i8(self, sum: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32 {
        math::dot_u8_i8(self, sum, a, b)
    }
    /// `sum` and the products of the two signed halves of each lane. Exact, but for sums beyond 32 bits, which wrap.
    fn dot_i16(self, sum: Self::I32, a: Self::I32, b: Self::I32) -> Self::I32;
    /// Two numbers as signed 16-bit integers, rounded to nearest even, `low` in the lower halves; NaN is 0. Both
    /// fit.
    fn pair_i16(self, low: Self::F32, high: Self::F32) -> Self::I32;
    /// 255 · 2^(x - top) of four `x` that are not above `top`, to within 0.6 % and rounded, as unsigned bytes of
    /// each lane, the first one the lowest. 0 for -inf and NaN.
    #[inline(always)]
    fn powers_u8(self, x: [Self::F32; 4], top: Self::F32) -> Self::I32 {
        math::powers_u8(self, x, top)
    }
    /// The halves of `a` and of `b` that have the same number next to each other, that of `a` in the lower half: what
    /// [`Isa::unzipped`] puts in order.
    #[inline(always)]
    fn zip_i16(self, a: Self::I32, b: Self::I32) -> [Self::I32; 2] {
        math::zip_i16(self, a, b)
    }
    /// Vectors whose lanes are in the order of [`Isa::zip_i16`], in that of the halves before.
    #[inline(always)]
    fn unzipped(self, x: [Self::F32; 2]) -> [Self::F32; 2] {
        x
    }
    /// The other way round.
    #[inline(always)]
    fn zipped(self, x: [Self::F32; 2]) -> [Self::F32; 2] {
        x
    }
    /// The bytes of four vectors that have the same number next to each other, that of the first vector the lowest:
    /// what [`Isa::unzipped_bytes`] puts in order.
    #[inline(always)]
    fn zip_bytes(self, x: [Self::I32; 4]) -> [Self::I32; 4] {
        split16::zip_bytes(self, x)
    }
    /// Vectors whose lanes are in the order of [`Isa::zip_bytes`], in that of the bytes before.
    #[inline(always)]
    fn unzipped_bytes(self, x: [Self::F32; 4]) -> [Self::F32; 4] {
        x
    }
    /// `256 * upper + lower`, wrapping.
    #[inline(always)]
    fn join_digits(self, upper: Self::I32, lower: Self::I32) -> Self::I32 {
        split16::join(self, upper, lower)
    }
    /// What is in the upper halves, as f32.
    fn high_half(self, x: Self::I32) -> Self::F32;
    /// `low <= x && x < high`.
    fn within(self, low: Self::I32, x: Self::I32, high: Self::I32) -> Self::Mask;

    /// Asks for the cache line at `p` to be brought into the second-level cache; any address will
    /// do, and none is read.
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        let _ = p;
    }

    /// The same into the first level.
    #[inline(always)]
    fn prefetch_near(self, p: *const u8) {
        let _ = p;
    }

    /// `p`, of which the compiler does not know that it is the same. So it does not keep the distances between it and others
    /// for a loop that has more of them than there are registers.
    #[inline(always)]
    fn anew(self, p: *const u8) -> *const u8 {
        p
    }

    /// Reads a vector; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    unsafe fn load(self, p: *const f32) -> Self::F32;
    /// Reads the first `n` lanes, fewer than `LANES`; the others are 0.
    ///
    /// # Safety
    /// `n` values are readable at `p`.
    unsafe fn load_first(self, p: *const f32, n: usize) -> Self::F32;
    /// Writes a vector; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    unsafe fn store(self, p: *mut f32, x: Self::F32);
    /// Writes the first `LANES / R` lanes to `p`, the next ones `step` values behind them, and so on; `R` divides
    /// `LANES`, and no alignment is needed.
    ///
    /// # Safety
    /// As many values are writable at each of these `R` places.
    #[inline(always)]
    unsafe fn store_split<const R: usize>(self, p: *mut f32, step: usize, x: Self::F32) {
        // SAFETY: this method's contract.
        unsafe { math::store_split::<Self, R>(self, p, step, x) }
    }
    /// Writes the first `n` lanes, fewer than `LANES`.
    ///
    /// # Safety
    /// `n` values are writable at `p`.
    unsafe fn store_first(self, p: *mut f32, n: usize, x: Self::F32);
    /// Reads a vector of i32; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    unsafe fn load_i32(self, p: *const i32) -> Self::I32;
    /// Writes a vector of i32; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    unsafe fn store_i32(self, p: *mut i32, x: Self::I32);
    /// Reads the first `LANES / 2` lanes; the others are 0.
    ///
    /// # Safety
    /// `LANES / 2` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_lower_half(self, p: *const i32) -> Self::I32 {
        // SAFETY: this method's contract.
        unsafe { math::load_lower_half(self, p) }
    }
    /// Reads `LANES / 2` lanes at `low`, and as many at `high`, in this order.
    ///
    /// # Safety
    /// They are readable at each.
    #[inline(always)]
    unsafe fn load_halves(self, low: *const i32, high: *const i32) -> Self::I32 {
        // SAFETY: this method's contract.
        unsafe { blocks::load_halves(self, low, high) }
    }
    /// Reads twice as many signed bytes as there are lanes, as 16-bit integers.
    ///
    /// # Safety
    /// `2 * LANES` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_i8_i16(self, p: *const i8) -> Self::I32 {
        // SAFETY: this method's contract.
        unsafe { math::load_i8_i16(self, p) }
    }
    /// Reads four times as many signed 16-bit integers as there are lanes, not above 32,639, as two vectors of signed
    /// bytes: 256 times the first, and the second, are the integers.
    ///
    /// # Safety
    /// `4 * LANES` values are readable at `p`.
    #[inline(always)]
    unsafe fn load_digits(self, p: *const i16) -> [Self::I32; 2] {
        // SAFETY: this method's contract.
        unsafe { split16::load(self, p) }
    }
    /// Writes a vector as unsigned 16-bit integers, rounded to nearest even: their upper bytes, and behind all of those
    /// the lower ones. NaN is 0; all others fit.
    ///
    /// # Safety
    /// `2 * LANES` bytes are writable at `p`.
    #[inline(always)]
    unsafe fn store_digits(self, p: *mut u8, x: Self::F32) {
        // SAFETY: this method's contract.
        unsafe { split16::store(self, p, x) }
    }
    /// Reads a vector of binary16; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    unsafe fn load_f16(self, p: *const u16) -> Self::F32;
    /// Reads two binary16 for each lane, `distance` bytes apart: of four lanes at a time, from lane `n` on, the first ones
    /// are where `four(n)` says. No alignment is needed.
    ///
    /// # Safety
    /// They are readable there.
    #[inline(always)]
    unsafe fn gather_f16<At: Fn(usize) -> *const u8>(
        self,
        four: impl Fn(usize) -> At,
        distance: usize,
    ) -> [Self::F32; 2] {
        // SAFETY: this method's contract.
        unsafe { blocks::gather_f16(self, four, distance) }
    }
    /// A binary16 in every lane; no alignment is needed.
    ///
    /// # Safety
    /// It is readable at `p`.
    #[inline(always)]
    unsafe fn splat_f16(self, p: *const u16) -> Self::F32 {
        // SAFETY: this method's contract.
        self.splat(half::from_f16(unsafe { p.read_unaligned() }))
    }
    /// Reads a vector of bfloat16; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F32;
    /// Reads a vector of signed bytes as f32.
    ///
    /// # Safety
    /// `LANES` values are readable at `p`.
    unsafe fn load_i8(self, p: *const i8) -> Self::F32;
    /// Element `d` and those behind it of four rows of bytes, one lane each, those of the first row the lowest.
    ///
    /// # Safety
    /// `LANES` bytes are readable at element `d` of each row.
    #[inline(always)]
    unsafe fn load_quads(self, rows: [*const u8; 4], d: usize) -> Self::I32 {
        // SAFETY: this method's contract.
        unsafe { math::load_quads(self, rows, d) }
    }
    /// Writes a vector as binary16, rounded to nearest even; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    unsafe fn store_f16(self, p: *mut u16, x: Self::F32);
    /// Writes a vector as bfloat16, rounded to nearest even; no alignment is needed.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F32);
    /// Writes a vector as signed bytes, rounded to nearest even, saturating; NaN becomes -128.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    unsafe fn store_i8(self, p: *mut i8, x: Self::F32);
    /// Writes a vector as signed 16-bit integers, rounded to nearest even; all of them fit.
    ///
    /// # Safety
    /// `LANES` values are writable at `p`.
    unsafe fn store_i16(self, p: *mut i16, x: Self::F32);
    /// Which of `LANES` bytes are not 0.
    ///
    /// # Safety
    /// They are readable at `p`.
    unsafe fn nonzero(self, p: *const u8) -> Self::Mask;
    /// Transposes `LANES` rows of `LANES` values, each column multiplied by its lane of `factor`, all
    /// zeros positive, or bit by bit if there is none; strides in bytes, no alignment is needed.
    ///
    /// # Safety
    /// All rows are readable at `from` and writable at `to`, and the two do not overlap.
    unsafe fn transpose(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
        factor: Option<Self::F32>,
    );
}

/// The widest vector of any instruction set, in f32 lanes: sizes of small arrays on the stack.
pub(crate) const MAX_LANES: usize = 16;

/// Proof that the running machine has a list of CPU features.
pub(crate) trait Token: Copy + 'static {
    /// The token, if the machine has them.
    fn probe() -> Option<Self>;
    /// Runs `body` compiled for them.
    fn compiled_for<B: Body>(self, body: B) -> B::Out;
}

/// Makes the token type of an instruction set from its one list of CPU features: the list that
/// detection asks for is the list that [`Isa::enter`] compiles for, so they cannot drift apart. Behind `as`
/// stands what makes an [`Isa`] of a token.
#[cfg(target_arch = "x86_64")]
macro_rules! token {
    ($(#[$doc:meta])* $name:ident as $wrap:expr; $($feature:tt),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name(());

        impl $crate::simd::Token for $name {
            #[inline(always)]
            fn probe() -> Option<Self> {
                ($(std::arch::is_x86_feature_detected!($feature))&&+).then_some(Self(()))
            }

            #[inline(always)]
            fn compiled_for<B: $crate::simd::Body>(self, body: B) -> B::Out {
                $(#[target_feature(enable = $feature)])+
                fn inner<B: $crate::simd::Body>(s: $name, body: B) -> B::Out {
                    body.run($wrap(s))
                }
                // SAFETY: `self` exists, so `probe` found every feature of the same list.
                unsafe { inner(self, body) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use token;
