//! Default methods of [`Isa`] for block-scaled formats: a vector holds two blocks of elements, one
//! in each half, and the scales of blocks are gathered from the rows. Lane by lane in plain Rust.

use super::fallback::lanes_i32 as lanes;
use super::{Isa, MAX_LANES, half};

/// The vector whose lanes are the first `LANES` elements.
#[inline(always)]
fn vector<S: Isa>(s: S, lanes: &[i32; MAX_LANES]) -> S::I32 {
    // SAFETY: I7: the array has MAX_LANES elements.
    unsafe { s.load_i32(lanes.as_ptr()) }
}

/// Default of [`Isa::horizontal_sums_of_halves`].
#[inline(always)]
pub(crate) fn horizontal_sums_of_halves<S: Isa>(s: S, vectors: &[S::I32; MAX_LANES]) -> [S::I32; 2] {
    let mut sums = [[0i32; MAX_LANES]; 2];
    for (n, &x) in vectors.iter().enumerate().take(S::LANES) {
        for (lane, x) in lanes(s, x).into_iter().enumerate().take(S::LANES) {
            let sum = &mut sums[lane / (S::LANES / 2)][n];
            *sum = sum.wrapping_add(x);
        }
    }
    sums.map(|sums| vector(s, &sums))
}

/// Default of [`Isa::splat_halves`].
#[inline(always)]
pub(crate) fn splat_halves<S: Isa>(s: S, low: i32, high: i32) -> S::I32 {
    let mut lanes = [high; MAX_LANES];
    for lane in lanes.iter_mut().take(S::LANES / 2) {
        *lane = low;
    }
    vector(s, &lanes)
}

/// Default of [`Isa::load_halves`].
///
/// # Safety
/// `LANES / 2` values are readable at `low` and at `high`.
#[inline(always)]
pub(crate) unsafe fn load_halves<S: Isa>(s: S, low: *const i32, high: *const i32) -> S::I32 {
    let mut lanes = [0; MAX_LANES];
    for i in 0..S::LANES / 2 {
        // SAFETY: `i < LANES / 2` values are readable at both (caller).
        let [low, high] = unsafe { [low.add(i).read_unaligned(), high.add(i).read_unaligned()] };
        lanes[i] = low;
        lanes[S::LANES / 2 + i] = high;
    }
    vector(s, &lanes)
}

/// Default of [`Isa::gather_f16`].
///
/// # Safety
/// Both values of every lane are readable.
#[inline(always)]
pub(crate) unsafe fn gather_f16<S: Isa, At: Fn(usize) -> *const u8>(
    s: S,
    four: impl Fn(usize) -> At,
    distance: usize,
) -> [S::F32; 2] {
    let mut lanes = [[0.0; MAX_LANES]; 2];
    for n in 0..S::LANES {
        let first = four(n - n % 4)(n % 4);
        for (lanes, p) in lanes.iter_mut().zip([first, first.wrapping_add(distance)]) {
            // SAFETY: both values of the lane are readable (caller).
            lanes[n] = half::from_f16(unsafe { p.cast::<u16>().read_unaligned() });
        }
    }
    // SAFETY: I7: the array has MAX_LANES elements.
    lanes.map(|lanes| unsafe { s.load(lanes.as_ptr()) })
}

/// Default of [`Isa::unpack_nibbles`].
///
/// # Safety
/// 16 bytes are readable at `p`, and 32 writable at `to`.
#[inline(always)]
pub(crate) unsafe fn unpack_nibbles(
    p: *const u8,
    table: &[i8; 16],
    fifths: Option<(u32, i8)>,
    sign: Option<i8>,
    to: *mut i8,
) {
    for i in 0..32 {
        // SAFETY: I7: one of 16 bytes, and a place for one of 32 numbers (caller).
        unsafe {
            let nibble = p.add(i % 16).read() >> (i / 16 * 4) & 15;
            let mut code = table[usize::from(nibble)];
            if let Some((bits, more)) = fifths {
                code = code.wrapping_add(if bits >> i & 1 == 1 { more } else { 0 });
            }
            to.add(i).write(if sign.is_some_and(|sign| sign < 0) { -code } else { code });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Body, on_each_isa};

    /// Compares every operation with plain integers.
    #[derive(Clone, Copy)]
    struct Check;

    impl Body for Check {
        type Out = ();

        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            let (n, half) = (S::LANES, S::LANES / 2);
            let numbers: [i32; 3 * MAX_LANES] = std::array::from_fn(|i| (i as i32).wrapping_mul(0x3579_bdf1));
            // SAFETY: I7: MAX_LANES numbers follow each start below MAX_LANES.
            let vectors: [_; MAX_LANES] =
                std::array::from_fn(|i| unsafe { s.load_i32(numbers[i..].as_ptr()) });
            let sums = s.horizontal_sums_of_halves(&vectors).map(|sums| lanes(s, sums));
            let total = |x: &[i32]| x.iter().fold(0, |sum: i32, &x| sum.wrapping_add(x));
            for i in 0..n {
                assert_eq!(sums[0][i], total(&numbers[i..i + half]));
                assert_eq!(sums[1][i], total(&numbers[i + half..i + n]));
            }

            let splat = lanes(s, s.splat_halves(3, -5));
            assert!(splat[..half].iter().all(|&x| x == 3) && splat[half..n].iter().all(|&x| x == -5));

            // SAFETY: I7: more than half a vector follows each start.
            let both = lanes(s, unsafe { s.load_halves(numbers[7..].as_ptr(), numbers[1..].as_ptr()) });
            assert_eq!(both[..half], numbers[7..7 + half]);
            assert_eq!(both[half..n], numbers[1..1 + half]);

            // Every binary16, with NaN and infinities, from scattered addresses.
            let all: &[u16] = &(0..=u16::MAX).chain([0]).collect::<Vec<_>>();
            for first in (0..all.len() - 1).step_by(n) {
                let place = move |lane: usize| (first + lane * 8191) % (all.len() - 1);
                let four = |n: usize| move |i: usize| all[place(n + i)..].as_ptr().cast();
                // SAFETY: I7: `place` leaves room for the number and the one behind it.
                let both = unsafe { s.gather_f16(four, 2) };
                for (behind, both) in both.into_iter().enumerate() {
                    let mut got = [0.0; MAX_LANES];
                    // SAFETY: I7: the array has MAX_LANES elements.
                    unsafe { s.store(got.as_mut_ptr(), both) };
                    for (lane, got) in got.into_iter().enumerate().take(n) {
                        let expected = crate::simd::half::from_f16(all[place(lane) + behind]);
                        assert!(got == expected || (got.is_nan() && expected.is_nan()));
                    }
                }
            }
        }
    }

    #[test]
    fn halves_and_scales_are_those_of_plain_numbers() {
        on_each_isa(Check);
    }
}
