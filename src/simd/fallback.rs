//! Methods of [`Isa`] that an instruction set need not write: lane by lane, in plain Rust. They are exact where the
//! trait says so, and what the tests compare the instructions with.

use super::{Isa, MAX_LANES, half};

/// The lanes of a vector, and anything behind them.
#[inline(always)]
fn lanes<S: Isa>(s: S, x: S::F32) -> [f32; MAX_LANES] {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: the array is as long as any vector.
    unsafe { s.store(lanes.as_mut_ptr(), x) };
    lanes
}

/// The lanes of a vector of integers, and anything behind them.
#[inline(always)]
fn lanes_i32<S: Isa>(s: S, x: S::I32) -> [i32; MAX_LANES] {
    let mut lanes = [0; MAX_LANES];
    // SAFETY: the array is as long as any vector.
    unsafe { s.store_i32(lanes.as_mut_ptr(), x) };
    lanes
}

/// The vector whose lanes are `lane(0)`, `lane(1)` and so on.
#[inline(always)]
fn vector<S: Isa>(s: S, mut lane: impl FnMut(usize) -> f32) -> S::F32 {
    let mut lanes = [0.0; MAX_LANES];
    for (i, x) in lanes.iter_mut().enumerate().take(S::LANES) {
        *x = lane(i);
    }
    // SAFETY: the array is as long as any vector.
    unsafe { s.load(lanes.as_ptr()) }
}

/// The vector of integers whose lanes are `lane(0)`, `lane(1)` and so on.
#[inline(always)]
fn vector_i32<S: Isa>(s: S, mut lane: impl FnMut(usize) -> i32) -> S::I32 {
    let mut lanes = [0; MAX_LANES];
    for (i, x) in lanes.iter_mut().enumerate().take(S::LANES) {
        *x = lane(i);
    }
    // SAFETY: the array is as long as any vector.
    unsafe { s.load_i32(lanes.as_ptr()) }
}

/// [`Isa::sums`].
#[inline(always)]
pub(crate) fn sums<S: Isa>(s: S, vectors: &[S::F32; MAX_LANES]) -> S::F32 {
    vector(s, |i| s.total(vectors[i]))
}

/// [`Isa::sums_i32`].
#[inline(always)]
pub(crate) fn sums_i32<S: Isa>(s: S, vectors: &[S::I32; MAX_LANES]) -> S::I32 {
    vector_i32(s, |i| s.total_i32(vectors[i]))
}

/// [`Isa::total_i32`].
#[inline(always)]
pub(crate) fn total_i32<S: Isa>(s: S, x: S::I32) -> i32 {
    lanes_i32(s, x)[..S::LANES].iter().copied().fold(0, i32::wrapping_add)
}

/// [`Isa::largest`].
#[inline(always)]
pub(crate) fn largest<S: Isa>(s: S, x: S::F32) -> f32 {
    lanes(s, x)[..S::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// [`Isa::halves`].
#[inline(always)]
pub(crate) fn halves<S: Isa>(s: S, low: S::F32, high: S::F32) -> S::I32 {
    let (low, high) = (lanes(s, low), lanes(s, high));
    vector_i32(s, |i| (low[i].to_bits() >> 16 | (high[i].to_bits() & !0xffff)) as i32)
}

/// [`Isa::halves_rounded`].
#[inline(always)]
pub(crate) fn halves_rounded<S: Isa>(s: S, low: S::F32, high: S::F32) -> S::I32 {
    let (low, high) = (lanes(s, low), lanes(s, high));
    let rounded = |x: f32| x.to_bits().wrapping_add(0x8000);
    vector_i32(s, |i| (rounded(low[i]) >> 16 | (rounded(high[i]) & !0xffff)) as i32)
}

/// [`Isa::low_half`].
#[inline(always)]
pub(crate) fn low_half<S: Isa>(s: S, x: S::I32) -> S::F32 {
    let x = lanes_i32(s, x);
    vector(s, |i| f32::from_bits((x[i] as u32) << 16))
}

/// [`Isa::high_half`].
#[inline(always)]
pub(crate) fn high_half<S: Isa>(s: S, x: S::I32) -> S::F32 {
    let x = lanes_i32(s, x);
    vector(s, |i| f32::from_bits(x[i] as u32 & !0xffff))
}

/// [`Isa::sub_i32`].
#[inline(always)]
pub(crate) fn sub_i32<S: Isa>(s: S, a: S::I32, b: S::I32) -> S::I32 {
    let (a, b) = (lanes_i32(s, a), lanes_i32(s, b));
    vector_i32(s, |i| a[i].wrapping_sub(b[i]))
}

/// [`Isa::xor`].
#[inline(always)]
pub(crate) fn xor<S: Isa>(s: S, a: S::I32, b: S::I32) -> S::I32 {
    let (a, b) = (lanes_i32(s, a), lanes_i32(s, b));
    vector_i32(s, |i| a[i] ^ b[i])
}

/// [`Isa::dot_i16`].
#[inline(always)]
pub(crate) fn dot_i16<S: Isa>(s: S, sum: S::I32, a: S::I32, b: S::I32) -> S::I32 {
    let (sum, a, b) = (lanes_i32(s, sum), lanes_i32(s, a), lanes_i32(s, b));
    let low = |x: i32| i32::from(x as i16);
    vector_i32(s, |i| {
        let high = (a[i] >> 16) * (b[i] >> 16);
        sum[i].wrapping_add(low(a[i]) * low(b[i])).wrapping_add(high)
    })
}

/// [`Isa::pair_i16`].
#[inline(always)]
pub(crate) fn pair_i16<S: Isa>(s: S, low: S::F32, high: S::F32) -> S::I32 {
    let (low, high) = (lanes(s, low), lanes(s, high));
    // `as` makes 0 of NaN.
    let round = |x: f32| x.round_ties_even() as i32;
    vector_i32(s, |i| round(low[i]) & 0xffff | round(high[i]) << 16)
}

/// [`Isa::load_first`].
///
/// # Safety
/// `n` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_first<S: Isa>(s: S, p: *const f32, n: usize) -> S::F32 {
    // SAFETY: only values below `n` are read, for which the caller vouches.
    vector(s, |i| if i < n { unsafe { p.add(i).read_unaligned() } } else { 0.0 })
}

/// [`Isa::store_first`].
///
/// # Safety
/// `n` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_first<S: Isa>(s: S, p: *mut f32, n: usize, x: S::F32) {
    for (i, &x) in lanes(s, x)[..n].iter().enumerate() {
        // SAFETY: below `n`, for which the caller vouches.
        unsafe { p.add(i).write_unaligned(x) };
    }
}

/// A vector of numbers that are stored as `T`.
///
/// # Safety
/// `LANES` of them are readable at `p`.
#[inline(always)]
unsafe fn load_as<S: Isa, T>(s: S, p: *const T, number: impl Fn(T) -> f32) -> S::F32 {
    // SAFETY: below `LANES`, for which the caller vouches.
    vector(s, |i| number(unsafe { p.add(i).read_unaligned() }))
}

/// Writes a vector of numbers as `T`.
///
/// # Safety
/// `LANES` of them are writable at `p`.
#[inline(always)]
unsafe fn store_as<S: Isa, T>(s: S, p: *mut T, x: S::F32, stored: impl Fn(f32) -> T) {
    for (i, &x) in lanes(s, x)[..S::LANES].iter().enumerate() {
        // SAFETY: below `LANES`, for which the caller vouches.
        unsafe { p.add(i).write_unaligned(stored(x)) };
    }
}

/// [`Isa::load_f16`].
///
/// # Safety
/// `LANES` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_f16<S: Isa>(s: S, p: *const u16) -> S::F32 {
    // SAFETY: the caller vouches for the values.
    unsafe { load_as(s, p, half::from_f16) }
}

/// [`Isa::load_bf16`].
///
/// # Safety
/// `LANES` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_bf16<S: Isa>(s: S, p: *const u16) -> S::F32 {
    // SAFETY: the caller vouches for the values.
    unsafe { load_as(s, p, half::from_bf16) }
}

/// [`Isa::load_i8`].
///
/// # Safety
/// `LANES` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_i8<S: Isa>(s: S, p: *const i8) -> S::F32 {
    // SAFETY: the caller vouches for the values.
    unsafe { load_as(s, p, f32::from) }
}

/// [`Isa::store_f16`].
///
/// # Safety
/// `LANES` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_f16<S: Isa>(s: S, p: *mut u16, x: S::F32) {
    // SAFETY: the caller vouches for the values.
    unsafe { store_as(s, p, x, half::to_f16) };
}

/// [`Isa::store_bf16`].
///
/// # Safety
/// `LANES` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_bf16<S: Isa>(s: S, p: *mut u16, x: S::F32) {
    // SAFETY: the caller vouches for the values.
    unsafe { store_as(s, p, x, half::to_bf16) };
}

/// [`Isa::store_i8`].
///
/// # Safety
/// `LANES` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_i8<S: Isa>(s: S, p: *mut i8, x: S::F32) {
    // `as` saturates, and makes 0 of NaN.
    let stored = |x: f32| if x.is_nan() { i8::MIN } else { x.round_ties_even() as i8 };
    // SAFETY: the caller vouches for the values.
    unsafe { store_as(s, p, x, stored) };
}

/// [`Isa::store_i16`].
///
/// # Safety
/// `LANES` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_i16<S: Isa>(s: S, p: *mut i16, x: S::F32) {
    // SAFETY: the caller vouches for the values.
    unsafe { store_as(s, p, x, |x| x.round_ties_even() as i16) };
}

/// [`Isa::nonzero`].
///
/// # Safety
/// `LANES` bytes are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn nonzero<S: Isa>(s: S, p: *const u8) -> S::Mask {
    // SAFETY: the caller vouches for the bytes.
    s.gt(unsafe { load_as(s, p, f32::from) }, s.splat(0.0))
}

/// [`Isa::transpose`].
///
/// # Safety
/// All rows are readable at `from` and writable at `to`, and the two do not overlap.
#[inline(always)]
pub(crate) unsafe fn transpose<S: Isa>(
    s: S,
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
    factor: Option<S::F32>,
) {
    let factor = factor.map(|factor| lanes(s, factor));
    for row in 0..S::LANES {
        for column in 0..S::LANES {
            // SAFETY: a value of one of the rows, for which the caller vouches.
            unsafe {
                let x = from.byte_add(row * from_stride).add(column).read_unaligned();
                let x = factor.map_or(x, |factor| x * factor[column] + 0.0);
                to.byte_add(column * to_stride).add(row).write_unaligned(x);
            }
        }
    }
}
