//! Default methods of [`Isa`], lane by lane in plain Rust, through arrays on the stack. They define
//! what an instruction must give, and cost a store and a load for each vector.
//!
//! The defaults of split16 are in [`super::split16`], those for two blocks in a vector in
//! [`super::blocks`].

use super::{Isa, MAX_LANES, Padded, half};

/// The lanes of a vector in an array; elements from `LANES` on are 0.
#[inline(always)]
fn lanes<S: Isa>(s: S, x: S::F32) -> [f32; MAX_LANES] {
    let mut lanes = [0.0; MAX_LANES];
    // SAFETY: I7: the array has MAX_LANES elements.
    unsafe { s.store(lanes.as_mut_ptr(), x) };
    lanes
}

/// The lanes of a vector of integers in an array; elements from `LANES` on are 0.
#[inline(always)]
pub(super) fn lanes_i32<S: Isa>(s: S, x: S::I32) -> [i32; MAX_LANES] {
    let mut lanes = [0; MAX_LANES];
    // SAFETY: I7: the array has MAX_LANES elements.
    unsafe { s.store_i32(lanes.as_mut_ptr(), x) };
    lanes
}

/// A vector with lane `i` set to `lane(i)`.
#[inline(always)]
fn vector<S: Isa>(s: S, mut lane: impl FnMut(usize) -> f32) -> S::F32 {
    let mut lanes = [0.0; MAX_LANES];
    for (i, x) in lanes.iter_mut().enumerate().take(S::LANES) {
        *x = lane(i);
    }
    // SAFETY: I7: the array has MAX_LANES elements.
    unsafe { s.load(lanes.as_ptr()) }
}

/// A vector of integers with lane `i` set to `lane(i)`.
#[inline(always)]
fn vector_i32<S: Isa>(s: S, mut lane: impl FnMut(usize) -> i32) -> S::I32 {
    let mut lanes = [0; MAX_LANES];
    for (i, x) in lanes.iter_mut().enumerate().take(S::LANES) {
        *x = lane(i);
    }
    // SAFETY: I7: the array has MAX_LANES elements.
    unsafe { s.load_i32(lanes.as_ptr()) }
}

/// Default of [`Isa::splat_lane`].
#[inline(always)]
pub(crate) fn splat_lane<S: Isa, const I: i32>(s: S, x: S::F32) -> S::F32 {
    s.splat(lanes(s, x)[I as usize])
}

/// Default of [`Isa::splat_lane_i32`].
#[inline(always)]
pub(crate) fn splat_lane_i32<S: Isa, const I: i32>(s: S, x: S::I32) -> S::I32 {
    s.splat_i32(lanes_i32(s, x)[I as usize])
}

/// Word `word` of the row that a sum of 2 x 2 of [`Isa::matrix_bf16`] is made of, in each lane: of
/// the operand with a row for each row of sums, or with one for each column.
#[inline(always)]
fn of_rows<S: Isa>(s: S, x: S::I32, is_of_columns: bool, word: usize) -> S::I32 {
    let x = lanes_i32(s, x);
    vector_i32(s, |lane| {
        let row = if is_of_columns { lane % 2 } else { lane % 4 / 2 };
        x[lane - lane % 4 + 2 * row + word]
    })
}

/// Default of [`Isa::matrix_bf16`].
#[inline(always)]
pub(crate) fn matrix_bf16<S: Isa>(s: S, sum: S::F32, a: S::I32, b: S::I32) -> S::F32 {
    let sum = s.dot_bf16(sum, of_rows(s, a, false, 0), of_rows(s, b, true, 0));
    s.dot_bf16(sum, of_rows(s, a, false, 1), of_rows(s, b, true, 1))
}

/// Default of [`Isa::matrix_u8_i8`].
#[inline(always)]
pub(crate) fn matrix_u8_i8<S: Isa>(s: S, sum: S::I32, a: S::I32, b: S::I32) -> S::I32 {
    let sum = s.dot_u8_i8(sum, of_rows(s, a, false, 0), of_rows(s, b, true, 0));
    s.dot_u8_i8(sum, of_rows(s, a, false, 1), of_rows(s, b, true, 1))
}

/// Two vectors, of which each four lanes are words of four of `a` and `b`, in this order.
#[inline(always)]
fn shuffle<S: Isa>(s: S, a: S::F32, b: S::F32, order: [[usize; 4]; 2]) -> [S::F32; 2] {
    let both = [lanes(s, a), lanes(s, b)];
    order.map(|order| {
        vector(s, |lane| {
            let from = order[lane % 4];
            both[from / 4][lane - lane % 4 + from % 4]
        })
    })
}

/// Default of [`Isa::zip`].
#[inline(always)]
pub(crate) fn zip<S: Isa>(s: S, a: S::F32, b: S::F32) -> [S::F32; 2] {
    shuffle(s, a, b, [[0, 4, 1, 5], [2, 6, 3, 7]])
}

/// Default of [`Isa::unzip`].
#[inline(always)]
pub(crate) fn unzip<S: Isa>(s: S, a: S::F32, b: S::F32) -> [S::F32; 2] {
    shuffle(s, a, b, [[0, 2, 4, 6], [1, 3, 5, 7]])
}

/// Default of [`Isa::zip_halves`].
#[inline(always)]
pub(crate) fn zip_halves<S: Isa>(s: S, a: S::F32, b: S::F32) -> [S::F32; 2] {
    shuffle(s, a, b, [[0, 1, 4, 5], [2, 3, 6, 7]])
}

/// Default of [`Isa::horizontal_sums`].
#[inline(always)]
pub(crate) fn horizontal_sums<S: Isa>(s: S, vectors: &[S::F32; MAX_LANES]) -> S::F32 {
    vector(s, |i| s.horizontal_sum(vectors[i]))
}

/// Default of [`Isa::horizontal_sums_i32`].
#[inline(always)]
pub(crate) fn horizontal_sums_i32<S: Isa>(s: S, vectors: &[S::I32; MAX_LANES]) -> S::I32 {
    vector_i32(s, |i| s.horizontal_sum_i32(vectors[i]))
}

/// Default of [`Isa::horizontal_sum_i32`].
#[inline(always)]
pub(crate) fn horizontal_sum_i32<S: Isa>(s: S, x: S::I32) -> i32 {
    lanes_i32(s, x)[..S::LANES].iter().copied().fold(0, i32::wrapping_add)
}

/// Default of [`Isa::horizontal_max`].
#[inline(always)]
pub(crate) fn horizontal_max<S: Isa>(s: S, x: S::F32) -> f32 {
    lanes(s, x)[..S::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Default of [`Isa::pack_bf16`].
#[inline(always)]
pub(crate) fn pack_bf16<S: Isa>(s: S, low: S::F32, high: S::F32) -> S::I32 {
    let (low, high) = (lanes(s, low), lanes(s, high));
    vector_i32(s, |i| (low[i].to_bits() >> 16 | (high[i].to_bits() & !0xffff)) as i32)
}

/// Default of [`Isa::pack_bf16_rounded`].
#[inline(always)]
pub(crate) fn pack_bf16_rounded<S: Isa>(s: S, low: S::F32, high: S::F32) -> S::I32 {
    let (low, high) = (lanes(s, low), lanes(s, high));
    let rounded = |x: f32| x.to_bits().wrapping_add(0x8000);
    vector_i32(s, |i| (rounded(low[i]) >> 16 | (rounded(high[i]) & !0xffff)) as i32)
}

/// Default of [`Isa::pack_f16`].
#[inline(always)]
pub(crate) fn pack_f16<S: Isa>(s: S, low: S::F32, high: S::F32) -> S::I32 {
    let (low, high) = (lanes(s, low), lanes(s, high));
    let bits = |x: f32| i32::from(half::to_f16(x));
    vector_i32(s, |i| bits(low[i]) | bits(high[i]) << 16)
}

/// Default of [`Isa::low_bf16`].
#[inline(always)]
pub(crate) fn low_bf16<S: Isa>(s: S, x: S::I32) -> S::F32 {
    let x = lanes_i32(s, x);
    vector(s, |i| f32::from_bits((x[i] as u32) << 16))
}

/// Default of [`Isa::high_bf16`].
#[inline(always)]
pub(crate) fn high_bf16<S: Isa>(s: S, x: S::I32) -> S::F32 {
    let x = lanes_i32(s, x);
    vector(s, |i| f32::from_bits(x[i] as u32 & !0xffff))
}

/// Default of [`Isa::dot_bf16`]: two multiply-adds in f32.
#[inline(always)]
pub(crate) fn dot_bf16<S: Isa>(s: S, sum: S::F32, a: S::I32, b: S::I32) -> S::F32 {
    let sum = s.fma(s.low_bf16(a), s.low_bf16(b), sum);
    s.fma(s.high_bf16(a), s.high_bf16(b), sum)
}

/// Default of [`Isa::sub_i32`].
#[inline(always)]
pub(crate) fn sub_i32<S: Isa>(s: S, a: S::I32, b: S::I32) -> S::I32 {
    let (a, b) = (lanes_i32(s, a), lanes_i32(s, b));
    vector_i32(s, |i| a[i].wrapping_sub(b[i]))
}

/// Default of [`Isa::xor`].
#[inline(always)]
pub(crate) fn xor<S: Isa>(s: S, a: S::I32, b: S::I32) -> S::I32 {
    let (a, b) = (lanes_i32(s, a), lanes_i32(s, b));
    vector_i32(s, |i| a[i] ^ b[i])
}

/// Default of [`Isa::dot_u8_i8`].
#[inline(always)]
pub(crate) fn dot_u8_i8<S: Isa>(s: S, sum: S::I32, a: S::I32, b: S::I32) -> S::I32 {
    dot_bytes(s, sum, a, b, |a, b| i32::from(a) * i32::from(b.cast_signed()))
}

/// Default of [`Isa::dot_i8`].
#[inline(always)]
pub(crate) fn dot_i8<S: Isa>(s: S, sum: S::I32, a: S::I32, b: S::I32) -> S::I32 {
    dot_bytes(s, sum, a, b, |a, b| i32::from(a.cast_signed()) * i32::from(b.cast_signed()))
}

/// Default of [`Isa::dot_u8`].
#[inline(always)]
pub(crate) fn dot_u8<S: Isa>(s: S, sum: S::I32, a: S::I32, b: S::I32) -> S::I32 {
    dot_bytes(s, sum, a, b, |a, b| i32::from(a) * i32::from(b))
}

/// The sums of products of bytes, whose signs `product` knows.
#[inline(always)]
fn dot_bytes<S: Isa>(s: S, sum: S::I32, a: S::I32, b: S::I32, product: impl Fn(u8, u8) -> i32) -> S::I32 {
    let (mut sums, mut x, mut y) = ([0i32; MAX_LANES], [[0u8; 4]; MAX_LANES], [[0u8; 4]; MAX_LANES]);
    // SAFETY: I7: each array has MAX_LANES words.
    unsafe {
        s.store_i32(sums.as_mut_ptr(), sum);
        s.store_i32(x.as_mut_ptr().cast(), a);
        s.store_i32(y.as_mut_ptr().cast(), b);
        for (sum, (x, y)) in sums.iter_mut().zip(x.into_iter().zip(y)) {
            for (x, y) in x.into_iter().zip(y) {
                *sum = sum.wrapping_add(product(x, y));
            }
        }
        s.load_i32(sums.as_ptr())
    }
}

/// Default of [`Isa::dot_i16`].
#[inline(always)]
pub(crate) fn dot_i16<S: Isa>(s: S, sum: S::I32, a: S::I32, b: S::I32) -> S::I32 {
    let (sum, a, b) = (lanes_i32(s, sum), lanes_i32(s, a), lanes_i32(s, b));
    let low = |x: i32| i32::from(x as i16);
    vector_i32(s, |i| {
        let high = (a[i] >> 16) * (b[i] >> 16);
        sum[i].wrapping_add(low(a[i]) * low(b[i])).wrapping_add(high)
    })
}

/// Default of [`Isa::interleave_i16`], with words in memory order.
#[inline(always)]
pub(crate) fn interleave_i16<S: Isa>(s: S, a: S::I32, b: S::I32) -> [S::I32; 2] {
    let (mut x, mut y, mut pairs) =
        ([0u16; 2 * MAX_LANES], [0u16; 2 * MAX_LANES], [[0u16; 2]; 2 * MAX_LANES]);
    // SAFETY: I7: `x` and `y` have MAX_LANES words each, `pairs` twice as many.
    unsafe {
        s.store_i32(x.as_mut_ptr().cast(), a);
        s.store_i32(y.as_mut_ptr().cast(), b);
        for (pair, (x, y)) in pairs.iter_mut().zip(x.into_iter().zip(y)) {
            *pair = [x, y];
        }
        let pairs = pairs.as_ptr().cast::<i32>();
        [s.load_i32(pairs), s.load_i32(pairs.add(S::LANES))]
    }
}

/// Default of [`Isa::pack_i16`].
#[inline(always)]
pub(crate) fn pack_i16<S: Isa>(s: S, low: S::F32, high: S::F32) -> S::I32 {
    let (low, high) = (lanes(s, low), lanes(s, high));
    // `as` converts NaN to 0.
    let round = |x: f32| x.round_ties_even() as i32;
    vector_i32(s, |i| round(low[i]) & 0xffff | round(high[i]) << 16)
}

/// Default of [`Isa::load_partial`].
///
/// # Safety
/// `n` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_partial<S: Isa>(s: S, p: *const f32, n: usize) -> S::F32 {
    // SAFETY: only the first `n` values are read, which are readable at `p` (caller).
    vector(s, |i| if i < n { unsafe { p.add(i).read_unaligned() } } else { 0.0 })
}

/// Default of [`Isa::store_partial`].
///
/// # Safety
/// `n` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_partial<S: Isa>(s: S, p: *mut f32, n: usize, x: S::F32) {
    for (i, &x) in lanes(s, x)[..n].iter().enumerate() {
        // SAFETY: `i < n`, and `n` values are writable at `p` (caller).
        unsafe { p.add(i).write_unaligned(x) };
    }
}

/// Default of [`Isa::store_segments`].
///
/// # Safety
/// `LANES / R` values are writable at each of the `R` places.
#[inline(always)]
pub(crate) unsafe fn store_segments<S: Isa, const R: usize>(s: S, p: *mut f32, step: usize, x: S::F32) {
    let mut lanes = [0.0; MAX_LANES];
    let width = S::LANES / R;
    // SAFETY: I7: the array has MAX_LANES elements; each segment is writable (caller).
    unsafe {
        s.store(lanes.as_mut_ptr(), x);
        for r in 0..R {
            for i in 0..width {
                p.add(r * step + i).write(lanes[r * width + i]);
            }
        }
    }
}

/// Default of [`Isa::load_lower_half`].
///
/// # Safety
/// `LANES / 2` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_lower_half<S: Isa>(s: S, p: *const i32) -> S::I32 {
    let mut lanes = [0i32; MAX_LANES];
    // SAFETY: half a vector is readable at `p` (caller); I7: the array has MAX_LANES elements.
    unsafe {
        for (i, lane) in lanes.iter_mut().enumerate().take(S::LANES / 2) {
            *lane = p.add(i).read_unaligned();
        }
        s.load_i32(lanes.as_ptr())
    }
}

/// Default of [`Isa::load_padded`]: the last eight bytes, shifted, where a row has as many.
///
/// # Safety
/// `from + n` bytes are readable at `row`.
#[inline(always)]
pub(crate) unsafe fn load_padded(row: *const u8, from: usize, n: usize, size: usize) -> Padded {
    let end = from + n;
    let mut padded = [0; size_of::<Padded>()];
    // SAFETY: the row has `end` bytes (caller), `n` of them from `from` on.
    unsafe {
        if size <= WORD && end >= WORD && n > 0 {
            let word = u64::from_le_bytes(row.add(end - WORD).cast::<[u8; WORD]>().read());
            padded[..WORD].copy_from_slice(&(word >> (8 * (WORD - n))).to_le_bytes());
        } else if size <= 2 * WORD {
            padded[..2 * WORD].copy_from_slice(short(row.wrapping_add(from), n).as_flattened());
        } else {
            for at in (0..n).step_by(2 * WORD) {
                let words = short(row.wrapping_add(from + at), (n - at).min(2 * WORD));
                padded[at..at + 2 * WORD].copy_from_slice(words.as_flattened());
            }
        }
    }
    padded
}

/// Bytes of a word of [`short`].
const WORD: usize = 8;

/// The first `n` bytes at `from`, at most 16, and zeros behind them. Kept out of line: only rows
/// that are shorter than a vector need it, and its branches would grow each loop.
///
/// # Safety
/// `n` bytes are readable at `from`.
#[cold]
#[inline(never)]
unsafe fn short(from: *const u8, n: usize) -> [[u8; WORD]; 2] {
    // SAFETY: I7: bytes below `n`, of which the caller has so many.
    unsafe {
        let low = word(from, n.min(WORD));
        let high = if n > WORD { word(from.add(WORD), n - WORD) } else { 0 };
        [low.to_le_bytes(), high.to_le_bytes()]
    }
}

/// The first `n` bytes at `from`, at most 8, from two parts that may overlap.
///
/// # Safety
/// `n` bytes are readable at `from`.
#[inline(always)]
unsafe fn word(from: *const u8, n: usize) -> u64 {
    // SAFETY: I7: both parts are within the `n` bytes that the caller has.
    unsafe {
        match n {
            0 => 0,
            1 => u64::from(from.read()),
            2 | 3 => {
                let part = |at: usize| u64::from(u16::from_le_bytes(from.add(at).cast::<[u8; 2]>().read()));
                part(0) | part(n - 2) << (8 * (n - 2))
            }
            4..WORD => {
                let part = |at: usize| u64::from(u32::from_le_bytes(from.add(at).cast::<[u8; 4]>().read()));
                part(0) | part(n - 4) << (8 * (n - 4))
            }
            _ => u64::from_le_bytes(from.cast::<[u8; WORD]>().read()),
        }
    }
}

/// Loads a vector of numbers that are stored as `T`.
///
/// # Safety
/// `LANES` values are readable at `p`.
#[inline(always)]
unsafe fn load_as<S: Isa, T>(s: S, p: *const T, number: impl Fn(T) -> f32) -> S::F32 {
    // SAFETY: `i < LANES`, and LANES values are readable at `p` (caller).
    vector(s, |i| number(unsafe { p.add(i).read_unaligned() }))
}

/// Stores a vector of numbers as `T`.
///
/// # Safety
/// `LANES` values are writable at `p`.
#[inline(always)]
unsafe fn store_as<S: Isa, T>(s: S, p: *mut T, x: S::F32, stored: impl Fn(f32) -> T) {
    for (i, &x) in lanes(s, x)[..S::LANES].iter().enumerate() {
        // SAFETY: `i < LANES`, and LANES values are writable at `p` (caller).
        unsafe { p.add(i).write_unaligned(stored(x)) };
    }
}

/// Default of [`Isa::load_f16`].
///
/// # Safety
/// `LANES` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_f16<S: Isa>(s: S, p: *const u16) -> S::F32 {
    // SAFETY: LANES values are readable at `p` (caller).
    unsafe { load_as(s, p, half::from_f16) }
}

/// Default of [`Isa::load_bf16`].
///
/// # Safety
/// `LANES` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_bf16<S: Isa>(s: S, p: *const u16) -> S::F32 {
    // SAFETY: LANES values are readable at `p` (caller).
    unsafe { load_as(s, p, half::from_bf16) }
}

/// Default of [`Isa::load_i16`].
///
/// # Safety
/// `LANES` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_i16<S: Isa>(s: S, p: *const i16) -> S::F32 {
    // SAFETY: LANES values are readable at `p` (caller).
    unsafe { load_as(s, p, f32::from) }
}

/// Default of [`Isa::load_i8`].
///
/// # Safety
/// `LANES` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_i8<S: Isa>(s: S, p: *const i8) -> S::F32 {
    // SAFETY: LANES values are readable at `p` (caller).
    unsafe { load_as(s, p, f32::from) }
}

/// Default of [`Isa::load_i8_i16`].
///
/// # Safety
/// `2 * LANES` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_i8_i16<S: Isa>(s: S, p: *const i8) -> S::I32 {
    let mut wide = [0i16; 2 * MAX_LANES];
    // SAFETY: 2 * LANES values are readable at `p` (caller); I7: the array has MAX_LANES words.
    unsafe {
        for (i, wide) in wide.iter_mut().enumerate().take(2 * S::LANES) {
            *wide = i16::from(p.add(i).read());
        }
        s.load_i32(wide.as_ptr().cast())
    }
}

/// Default of [`Isa::load_interleaved_bytes`].
///
/// # Safety
/// `LANES` bytes are readable at byte `d` of each row.
#[inline(always)]
pub(crate) unsafe fn load_interleaved_bytes<S: Isa>(s: S, rows: [*const u8; 4], d: usize) -> S::I32 {
    let mut bytes = [[0u8; 4]; MAX_LANES];
    for (i, row) in rows.into_iter().enumerate() {
        for (lane, bytes) in bytes.iter_mut().enumerate().take(S::LANES) {
            // SAFETY: LANES bytes are readable at byte `d` of each row (caller).
            bytes[i] = unsafe { row.add(d + lane).read() };
        }
    }
    // SAFETY: I7: the array has MAX_LANES words.
    unsafe { s.load_i32(bytes.as_ptr().cast()) }
}

/// Default of [`Isa::store_f16`].
///
/// # Safety
/// `LANES` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_f16<S: Isa>(s: S, p: *mut u16, x: S::F32) {
    // SAFETY: LANES values are writable at `p` (caller).
    unsafe { store_as(s, p, x, half::to_f16) };
}

/// Default of [`Isa::store_bf16`].
///
/// # Safety
/// `LANES` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_bf16<S: Isa>(s: S, p: *mut u16, x: S::F32) {
    // SAFETY: LANES values are writable at `p` (caller).
    unsafe { store_as(s, p, x, half::to_bf16) };
}

/// Default of [`Isa::store_i8`].
///
/// # Safety
/// `LANES` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_i8<S: Isa>(s: S, p: *mut i8, x: S::F32) {
    // `as` saturates, and converts NaN to 0.
    let stored = |x: f32| if x.is_nan() { i8::MIN } else { x.round_ties_even() as i8 };
    // SAFETY: LANES values are writable at `p` (caller).
    unsafe { store_as(s, p, x, stored) };
}

/// Default of [`Isa::store_i16`].
///
/// # Safety
/// `LANES` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store_i16<S: Isa>(s: S, p: *mut i16, x: S::F32) {
    // SAFETY: LANES values are writable at `p` (caller).
    unsafe { store_as(s, p, x, |x| x.round_ties_even() as i16) };
}

/// Default of [`Isa::load_nonzero`].
///
/// # Safety
/// `LANES` bytes are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_nonzero<S: Isa>(s: S, p: *const u8) -> S::Mask {
    // SAFETY: LANES bytes are readable at `p` (caller).
    s.gt(unsafe { load_as(s, p, f32::from) }, s.splat(0.0))
}

/// Default of [`Isa::transpose`].
///
/// # Safety
/// `LANES` rows of `LANES` values are readable at `from` and writable at `to`, and the two do not
/// overlap.
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
            // SAFETY: `row` and `column` are below LANES: within both tiles (caller).
            unsafe {
                let x = from.byte_add(row * from_stride).add(column).read_unaligned();
                let x = factor.map_or(x, |factor| x * factor[column] + 0.0);
                to.byte_add(column * to_stride).add(row).write_unaligned(x);
            }
        }
    }
}
