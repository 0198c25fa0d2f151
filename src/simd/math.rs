//! Functions of vectors, written over [`Isa`]: exp2, and once more for machines with instructions made
//! for it; tanh.

use super::{Isa, MAX_LANES};

/// 2^(i/8) for i = 0..8, twice over for vectors of sixteen.
const POWERS: [f32; MAX_LANES] = {
    const P: [f32; 8] = [
        1.0,
        1.090_507_7,
        1.189_207_1,
        1.296_839_6,
        std::f32::consts::SQRT_2,
        1.542_210_8,
        1.681_792_9,
        1.834_008_1,
    ];
    [P[0], P[1], P[2], P[3], P[4], P[5], P[6], P[7], P[0], P[1], P[2], P[3], P[4], P[5], P[6], P[7]]
};

/// Coefficients of (2^g - 1) / g on [-1/16, 1/16], ascending: the minimax polynomial for 2^g. Its
/// relative error there is below 2.7e-8, under half a unit in the last place.
const SHORT: [f32; 3] = [0.693_147_24, 0.240_257_65, 0.055_496_22];

/// Coefficients of 2^f on [0, 1], ascending: the minimax polynomial with the constant term held at 1, so
/// that 2^n is exact for integers. In exact arithmetic its relative error is below 2.2e-9.
const LONG: [f32; 7] =
    [1.0, 0.693_147_06, 0.240_229_09, 0.055_486_184, 0.009_673_775, 0.001_248_228_8, 0.000_215_659_85];

/// Below this 2^x is 0: a key 10^33 times lighter than the heaviest one. Sixteen binary orders above the smallest
/// normal number, so that values not smaller than 2^-16 have normal products with all that is not 0: Intel's machines
/// take a hundred cycles and more for a subnormal one, and scores that rise by hundreds within a block took ten times
/// as long as others.
pub(crate) const NOTHING: f32 = -110.0;

/// 1.5 · 2^20 + 127: an f32 next to it is a multiple of 1/8, so that adding it rounds. Of the sum's bits the
/// last three count eighths, and those before them are the exponent of f32.
const EIGHTHS: f32 = 1_572_991.0;

/// What [`exp2_by_table`] needs.
pub(crate) trait Table: Isa {
    /// The value of a table of eight (given twice) that the last three bits of each lane name.
    fn pick(self, table: &[f32; MAX_LANES], index: Self::F32) -> Self::F32;
    /// The number whose exponent bits are those before the last three of `x`: 0 for all zeros.
    fn power(self, x: Self::F32) -> Self::F32;
}

/// What [`Isa::exp2`] promises, for machines without instructions made for it.
///
/// Method (Tang 1989): r = x rounded to eighths, g = x - r (exact), 2^x = 2^floor(r) · 2^(r - floor(r))
/// · 2^g, the second factor from a table that fits a register. Where multiply-adds are what all else
/// waits for, lookups, additions and shifts are free: five multiplications instead of the seven of a
/// polynomial on [-1/2, 1/2].
#[inline(always)]
pub(crate) fn exp2_by_table<S: Table>(s: S, x: S::F32) -> S::F32 {
    let shifted = s.add(x, s.splat(EIGHTHS));
    let g = s.sub(x, s.sub(shifted, s.splat(EIGHTHS)));
    let root = s.pick(&POWERS, shifted);
    let q = s.fma(s.fma(s.splat(SHORT[2]), g, s.splat(SHORT[1])), g, s.splat(SHORT[0]));
    let y = s.mul(s.fma(s.mul(root, g), q, root), s.power(shifted));
    // What is too small may be anything until here; NaN passes.
    s.select(s.gt(s.splat(NOTHING), x), s.splat(0.0), y)
}

/// As [`LONG`], with a relative error below 8.6e-5: less than a fifth of half a unit of a number of 11 bits.
const ROUGH: [f32; 4] = [1.0, 0.695_116_8, 0.227_645, 0.077_067_04];

/// 2^f for f in [0, 1], to within 1e-4.
#[inline(always)]
pub(crate) fn exp2_of_fraction_roughly<S: Isa>(s: S, f: S::F32) -> S::F32 {
    let mut y = s.splat(ROUGH[3]);
    for &c in ROUGH[..3].iter().rev() {
        y = s.fma(y, f, s.splat(c));
    }
    y
}

/// 2^f for f in [0, 1].
#[inline(always)]
pub(crate) fn exp2_of_fraction<S: Isa>(s: S, f: S::F32) -> S::F32 {
    let mut y = s.splat(LONG[6]);
    for &c in LONG[..6].iter().rev() {
        y = s.fma(y, f, s.splat(c));
    }
    y
}

/// [`Isa::dot_bf16`] without an instruction for it.
#[inline(always)]
pub(crate) fn dot_of_halves<S: Isa>(s: S, sum: S::F32, a: S::I32, b: S::I32) -> S::F32 {
    let sum = s.fma(s.low_half(a), s.low_half(b), sum);
    s.fma(s.high_half(a), s.high_half(b), sum)
}

/// Coefficients of (tanh(x) - x) / x^3 in x^2 for |x| < [`SMALL`], ascending: the minimax polynomial, whose
/// relative error in tanh is below 4e-8.
const NEAR_ZERO: [f32; 4] = [-0.333_329_47, 0.133_207_25, -0.052_671_812, 0.016_437_579];

/// Below this 1 - tanh loses digits, above it the polynomial does.
const SMALL: f32 = 0.55;

/// tanh to within 4 ulp; 1 and -1 from 9 on; NaN gives NaN. `tests/numerics.rs` sweeps it.
#[inline(always)]
pub(crate) fn tanh<S: Isa>(s: S, x: S::F32) -> S::F32 {
    let zero = s.splat(0.0);
    let size = s.max(x, s.sub(zero, x));
    // tanh |x| = (1 - t) / (1 + t) with t = e^(-2|x|); below 2^-110 it is 0.
    let t = s.exp2(s.mul(size, s.splat(-2.0 * std::f32::consts::LOG2_E)));
    let far = s.div(s.sub(s.splat(1.0), t), s.add(s.splat(1.0), t));
    let square = s.mul(x, x);
    let mut near = s.splat(NEAR_ZERO[3]);
    for &c in NEAR_ZERO[..3].iter().rev() {
        near = s.fma(near, square, s.splat(c));
    }
    let near = s.fma(s.mul(near, square), x, x);
    let far = s.select(s.gt(zero, x), s.sub(zero, far), far);
    s.select(s.gt(s.splat(SMALL), size), near, far)
}

/// How far at least the numbers of [`U8_POWERS`] are shifted: to twice a probability. At most by 15, which
/// leaves nothing.
pub(crate) const U8_SHIFT: u8 = 6;

/// 2 · 255 · 2^([`U8_SHIFT`] - i/64), rounded.
pub(crate) static U8_POWERS: [u16; 64] = [
    32640, 32288, 31941, 31597, 31256, 30919, 30586, 30257, 29931, 29609, 29290, 28974, 28662, 28353, 28048,
    27746, 27447, 27151, 26859, 26569, 26283, 26000, 25720, 25443, 25169, 24898, 24630, 24364, 24102, 23842,
    23585, 23331, 23080, 22831, 22585, 22342, 22101, 21863, 21628, 21395, 21164, 20936, 20711, 20488, 20267,
    20049, 19833, 19619, 19408, 19199, 18992, 18787, 18585, 18385, 18187, 17991, 17797, 17605, 17416, 17228,
    17043, 16859, 16677, 16498,
];

/// The largest distance that is told apart, in units of 1/64: one that shifts everything out.
pub(crate) const U8_FAR: u16 = 64 * 16 - 1;

/// [`Isa::powers_u8`] without instructions for it.
#[inline(always)]
pub(crate) fn powers_u8<S: Isa>(s: S, x: [S::F32; 4], top: S::F32) -> S::I32 {
    let distance = s.fma(top, s.splat(64.0), s.splat(64.0 * f32::from(U8_SHIFT)));
    let mut bytes = [[0u8; 4]; MAX_LANES];
    for (key, x) in x.into_iter().enumerate() {
        let mut lanes = [0.0; MAX_LANES];
        // SAFETY: as long as any vector.
        unsafe { s.store(lanes.as_mut_ptr(), s.fma(x, s.splat(-64.0), distance)) };
        for (x, bytes) in lanes.into_iter().zip(&mut bytes) {
            let distance =
                if x.is_nan() { U8_FAR } else { x.round_ties_even().min(f32::from(U8_FAR)) as u16 };
            let twice = U8_POWERS[usize::from(distance % 64)] >> (distance / 64);
            bytes[key] = twice.div_ceil(2).min(255) as u8;
        }
    }
    // SAFETY: as long as any vector.
    unsafe { s.load_i32(bytes.as_ptr().cast()) }
}

/// [`Isa::dot_u8_i8`] without an instruction for it.
#[inline(always)]
pub(crate) fn dot_u8_i8<S: Isa>(s: S, sum: S::I32, a: S::I32, b: S::I32) -> S::I32 {
    let (mut sums, mut x, mut y) = ([0i32; MAX_LANES], [[0u8; 4]; MAX_LANES], [[0i8; 4]; MAX_LANES]);
    // SAFETY: as long as any vector.
    unsafe {
        s.store_i32(sums.as_mut_ptr(), sum);
        s.store_i32(x.as_mut_ptr().cast(), a);
        s.store_i32(y.as_mut_ptr().cast(), b);
        for (sum, (x, y)) in sums.iter_mut().zip(x.into_iter().zip(y)) {
            for (x, y) in x.into_iter().zip(y) {
                *sum = sum.wrapping_add(i32::from(x) * i32::from(y));
            }
        }
        s.load_i32(sums.as_ptr())
    }
}

/// [`Isa::load_quads`] without instructions for it.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn load_quads<S: Isa>(s: S, rows: [*const u8; 4], d: usize) -> S::I32 {
    let mut bytes = [[0u8; 4]; MAX_LANES];
    for (i, row) in rows.into_iter().enumerate() {
        for (lane, bytes) in bytes.iter_mut().enumerate().take(S::LANES) {
            // SAFETY: the caller's bytes.
            bytes[i] = unsafe { row.add(d + lane).read() };
        }
    }
    // SAFETY: as long as any vector.
    unsafe { s.load_i32(bytes.as_ptr().cast()) }
}

/// [`Isa::zip_i16`] without instructions for it, in order.
#[inline(always)]
pub(crate) fn zip_i16<S: Isa>(s: S, a: S::I32, b: S::I32) -> [S::I32; 2] {
    let (mut x, mut y, mut pairs) =
        ([0u16; 2 * MAX_LANES], [0u16; 2 * MAX_LANES], [[0u16; 2]; 2 * MAX_LANES]);
    // SAFETY: as long as any vector, or as two of them.
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

/// [`Isa::load_lower_half`] without an instruction for it.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn load_lower_half<S: Isa>(s: S, p: *const i32) -> S::I32 {
    let mut lanes = [0i32; MAX_LANES];
    // SAFETY: the caller's values; an array as long as any vector.
    unsafe {
        for (i, lane) in lanes.iter_mut().enumerate().take(S::LANES / 2) {
            *lane = p.add(i).read_unaligned();
        }
        s.load_i32(lanes.as_ptr())
    }
}

/// [`Isa::load_i8_i16`] without an instruction for it.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn load_i8_i16<S: Isa>(s: S, p: *const i8) -> S::I32 {
    let mut wide = [0i16; 2 * MAX_LANES];
    // SAFETY: the caller's values; an array as long as any vector.
    unsafe {
        for (i, wide) in wide.iter_mut().enumerate().take(2 * S::LANES) {
            *wide = i16::from(p.add(i).read());
        }
        s.load_i32(wide.as_ptr().cast())
    }
}

/// See [`Isa::store_split`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn store_split<S: Isa, const R: usize>(s: S, p: *mut f32, step: usize, x: S::F32) {
    let mut lanes = [0.0; MAX_LANES];
    let width = S::LANES / R;
    // SAFETY: an array as long as any vector, and this function's contract.
    unsafe {
        s.store(lanes.as_mut_ptr(), x);
        for r in 0..R {
            for i in 0..width {
                p.add(r * step + i).write(lanes[r * width + i]);
            }
        }
    }
}
