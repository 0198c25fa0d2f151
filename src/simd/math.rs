//! exp2, written once over [`Isa`].

use super::Isa;

/// Coefficients of 2^f on [-1/2, 1/2], ascending: the minimax polynomial of relative error with
/// the constant term held at 1, so that exp2 of an integer (above all exp2(0) = 1, the largest
/// probability of a row) is exact. In exact arithmetic its relative error is below 3e-9.
const EXP2: [f32; 7] =
    [1.0, 0.693_147_24, 0.240_226_52, 0.055_503_104, 0.009_617_693, 0.001_340_664_4, 0.000_155_946_78];

/// 2^x to within 1.1 ulp (1.4 without fused multiply-add) for x in [-126, 126]; below that exactly
/// 0 or at most 2^-126, and exactly 0 for -inf. NaN gives NaN. `tests/numerics.rs` sweeps it.
///
/// Method: n = round(x), f = x - n (exact), 2^f by Horner's rule, then scaling by 2^n.
#[inline(always)]
pub(crate) fn exp2<S: Isa>(s: S, x: S::F32) -> S::F32 {
    // -inf - round(-inf) would be NaN. 2^-160 is 0 in f32, so nothing is lost by stopping there;
    // `x` is the second operand so that NaN passes through.
    let x = s.max(s.splat(-160.0), x);
    let n = s.round(x);
    let f = s.sub(x, n);
    let mut y = s.splat(EXP2[6]);
    for &c in EXP2[..6].iter().rev() {
        y = s.fma(y, f, s.splat(c));
    }
    s.scale_by_power(y, n)
}
