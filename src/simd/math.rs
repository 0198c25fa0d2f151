//! Functions of vectors, written over [`Isa`]: exp2 by a table in a register, the polynomials of
//! exp2 for machines with a scaling instruction, exp2 rounded to bytes, and tanh.

use super::{Isa, MAX_LANES};

/// 2^(i/8) for i = 0..8, given twice: a table for vectors of 8 or 16 lanes.
const EIGHTHS: [f32; MAX_LANES] = {
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
const EXP2_SHORT: [f32; 3] = [0.693_147_24, 0.240_257_65, 0.055_496_22];

/// Coefficients of 2^f on [0, 1], ascending: the minimax polynomial with the constant term held at
/// 1, so that 2^n is exact for integers. In exact arithmetic its relative error is below 2.2e-9.
const EXP2_LONG: [f32; 7] =
    [1.0, 0.693_147_06, 0.240_229_09, 0.055_486_184, 0.009_673_775, 0.001_248_228_8, 0.000_215_659_85];

/// exp2 underflows to 0 below this: such a key weighs 10^33 times less than the heaviest one. The
/// threshold is 2^16 above the smallest normal number, so that the product of a nonzero probability
/// and a value of at least 2^-16 is normal. Intel CPUs take more than a hundred cycles for an
/// operation on subnormal numbers; scores that rise by hundreds within a block took ten times as
/// long.
pub(crate) const UNDERFLOW: f32 = -110.0;

/// Magic number that rounds to eighths: 1.5 · 2^20 + 127, where neighbouring f32 are 1/8 apart. In
/// the bits of the sum the last three count eighths, and those before them are an f32 exponent.
const ROUND_TO_EIGHTHS: f32 = 1_572_991.0;

/// Operations that [`exp2_by_table`] needs.
pub(crate) trait Table: Isa {
    /// Table lookup: the last three bits of each lane index a table of 8 values, which is given
    /// twice.
    fn lookup(self, table: &[f32; MAX_LANES], index: Self::F32) -> Self::F32;
    /// The power of two whose 8 exponent bits are those before the last three of `x`. Zero exponent
    /// bits give 0.
    fn exponent(self, x: Self::F32) -> Self::F32;
}

/// [`Isa::exp2`] for machines without a scaling instruction (x86 `vscalefps`).
///
/// Method (Tang 1989): r = x rounded to eighths, g = x - r (exact), 2^x = 2^floor(r) · 2^(r -
/// floor(r)) · 2^g. The second factor is from a table that fits a register. The kernels are bound
/// by multiply-adds, next to which lookups, additions and shifts cost nothing: this takes five
/// multiplications, a polynomial on [-1/2, 1/2] seven.
#[inline(always)]
pub(crate) fn exp2_by_table<S: Table>(s: S, x: S::F32) -> S::F32 {
    let shifted = s.add(x, s.splat(ROUND_TO_EIGHTHS));
    let g = s.sub(x, s.sub(shifted, s.splat(ROUND_TO_EIGHTHS)));
    let root = s.lookup(&EIGHTHS, shifted);
    let q = s.fma(s.fma(s.splat(EXP2_SHORT[2]), g, s.splat(EXP2_SHORT[1])), g, s.splat(EXP2_SHORT[0]));
    let y = s.mul(s.fma(s.mul(root, g), q, root), s.exponent(shifted));
    // Lanes that underflow hold garbage until here. NaN passes.
    s.select(s.gt(s.splat(UNDERFLOW), x), s.splat(0.0), y)
}

/// Coefficients of 2^f on [0, 1], ascending, with the constant term held at 1. The relative error
/// is below 8.6e-5: less than a fifth of half a unit in the last place of a number of 11 bits.
const EXP2_APPROX: [f32; 4] = [1.0, 0.695_116_8, 0.227_645, 0.077_067_04];

/// 2^f for f in [0, 1], with a relative error of at most 1e-4.
#[inline(always)]
pub(crate) fn exp2_fraction_approx<S: Isa>(s: S, f: S::F32) -> S::F32 {
    let mut y = s.splat(EXP2_APPROX[3]);
    for &c in EXP2_APPROX[..3].iter().rev() {
        y = s.fma(y, f, s.splat(c));
    }
    y
}

/// 2^f for f in [0, 1], as exactly as [`Isa::exp2`] demands.
#[inline(always)]
pub(crate) fn exp2_fraction<S: Isa>(s: S, f: S::F32) -> S::F32 {
    let mut y = s.splat(EXP2_LONG[6]);
    for &c in EXP2_LONG[..6].iter().rev() {
        y = s.fma(y, f, s.splat(c));
    }
    y
}

/// Coefficients of (tanh(x) - x) / x^3 in x^2 for |x| < [`TANH_SMALL`], ascending: the minimax
/// polynomial. The relative error of tanh is below 4e-8.
const TANH: [f32; 4] = [-0.333_329_47, 0.133_207_25, -0.052_671_812, 0.016_437_579];

/// Where tanh changes its formula: below, 1 - t cancels; above, the polynomial loses accuracy.
const TANH_SMALL: f32 = 0.55;

/// tanh, with an error of at most 4 ulp; exactly 1 or -1 for |x| >= 9. NaN gives NaN.
/// `tests/numerics.rs` sweeps the range.
#[inline(always)]
pub(crate) fn tanh<S: Isa>(s: S, x: S::F32) -> S::F32 {
    let zero = s.splat(0.0);
    let size = s.max(x, s.sub(zero, x));
    // tanh |x| = (1 - t) / (1 + t) with t = e^(-2|x|), which underflows to 0 below 2^-110.
    let t = s.exp2(s.mul(size, s.splat(-2.0 * std::f32::consts::LOG2_E)));
    let far = s.div(s.sub(s.splat(1.0), t), s.add(s.splat(1.0), t));
    let square = s.mul(x, x);
    let mut near = s.splat(TANH[3]);
    for &c in TANH[..3].iter().rev() {
        near = s.fma(near, square, s.splat(c));
    }
    let near = s.fma(s.mul(near, square), x, x);
    let far = s.select(s.gt(zero, x), s.sub(zero, far), far);
    s.select(s.gt(s.splat(TANH_SMALL), size), near, far)
}

/// Least right shift of the entries of [`U8_TABLE`]: to twice a probability. The largest, 15,
/// leaves 0.
pub(crate) const U8_SHIFT: u8 = 6;

/// 2 · 255 · 2^([`U8_SHIFT`] - i/64), rounded.
pub(crate) static U8_TABLE: [u16; 64] = [
    32640, 32288, 31941, 31597, 31256, 30919, 30586, 30257, 29931, 29609, 29290, 28974, 28662, 28353, 28048,
    27746, 27447, 27151, 26859, 26569, 26283, 26000, 25720, 25443, 25169, 24898, 24630, 24364, 24102, 23842,
    23585, 23331, 23080, 22831, 22585, 22342, 22101, 21863, 21628, 21395, 21164, 20936, 20711, 20488, 20267,
    20049, 19833, 19619, 19408, 19199, 18992, 18787, 18585, 18385, 18187, 17991, 17797, 17605, 17416, 17228,
    17043, 16859, 16677, 16498,
];

/// Distances from the maximum saturate here, in units of 1/64: the shift then leaves 0.
pub(crate) const U8_MAX_DISTANCE: u16 = 64 * 16 - 1;

/// Default of [`Isa::exp2_u8`]: 2^x is a table entry for the
/// fraction of x in units of 1/64, shifted by the integer part, and halved with rounding.
#[inline(always)]
pub(crate) fn exp2_u8<S: Isa>(s: S, x: [S::F32; 4], top: S::F32) -> S::I32 {
    let distance = s.fma(top, s.splat(64.0), s.splat(64.0 * f32::from(U8_SHIFT)));
    let mut bytes = [[0u8; 4]; MAX_LANES];
    for (key, x) in x.into_iter().enumerate() {
        let mut lanes = [0.0; MAX_LANES];
        // SAFETY: I7: the array has MAX_LANES elements.
        unsafe { s.store(lanes.as_mut_ptr(), s.fma(x, s.splat(-64.0), distance)) };
        for (x, bytes) in lanes.into_iter().zip(&mut bytes) {
            let distance = if x.is_nan() {
                U8_MAX_DISTANCE
            } else {
                x.round_ties_even().min(f32::from(U8_MAX_DISTANCE)) as u16
            };
            let twice = U8_TABLE[usize::from(distance % 64)] >> (distance / 64);
            bytes[key] = twice.div_ceil(2).min(255) as u8;
        }
    }
    // SAFETY: I7: the array has MAX_LANES words.
    unsafe { s.load_i32(bytes.as_ptr().cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Body, on_each_isa};

    #[derive(Clone, Copy)]
    struct Bytes;

    impl Body for Bytes {
        type Out = ();

        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            // SAFETY: I7: arrays have MAX_LANES elements.
            let vector = |x: [f32; MAX_LANES]| unsafe { s.load(x.as_ptr()) };
            let bytes = |x: [S::F32; 4], top: f32| {
                let mut bytes = [[0u8; 4]; MAX_LANES];
                // SAFETY: I7: the array has MAX_LANES words.
                unsafe { s.store_i32(bytes.as_mut_ptr().cast(), s.exp2_u8(x, s.splat(top))) };
                bytes
            };
            for top in [0.0f32, -3.7, 12_345.678, -1e30, 1e30] {
                // Distances up to 12, each lane of each vector its own, and what is far.
                for start in 0..3000 {
                    let x = |key: usize, lane: usize| {
                        let distance = (start + 7 * key + 31 * lane) as f32 * 0.004;
                        if top.abs() < 1e6 { top - distance } else { top - top.abs() * distance }
                    };
                    let got =
                        bytes([0, 1, 2, 3].map(|key| vector(std::array::from_fn(|lane| x(key, lane)))), top);
                    for (lane, got) in got.into_iter().enumerate().take(S::LANES) {
                        for (key, got) in got.into_iter().enumerate() {
                            let exact = 255.0 * (f64::from(x(key, lane)) - f64::from(top)).exp2();
                            let most = 0.5 + 0.006 * exact;
                            let error = (f64::from(got) - exact).abs();
                            assert!(
                                error <= most,
                                "{:?}: {top}, {}: {got} is not {exact}",
                                S::NAME,
                                x(key, lane)
                            );
                        }
                    }
                }
                for far in [f32::NEG_INFINITY, f32::NAN, f32::MIN, top - 1e3 - top.abs()] {
                    assert_eq!(bytes([s.splat(far); 4], top)[..S::LANES], [[0; 4]; MAX_LANES][..S::LANES]);
                }
                let alone = bytes([f32::NAN, top, f32::NAN, f32::NAN].map(|x| s.splat(x)), top);
                assert!(alone[..S::LANES].iter().all(|bytes| *bytes == [0, 255, 0, 0]), "{:?}", S::NAME);
            }
            let nothing = bytes([s.splat(f32::NEG_INFINITY); 4], f32::NEG_INFINITY);
            assert!(nothing[..S::LANES].iter().all(|bytes| *bytes == [0; 4]));
        }
    }

    #[test]
    fn exponentials_in_bytes_are_within_their_bound() {
        on_each_isa(Bytes);
    }
}
