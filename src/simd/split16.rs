//! 16-bit integers as two digits of 8 bits, and bytes of four keys side by side, written over [`Isa`]: for machines
//! without instructions for it.

use super::{Isa, MAX_LANES};

/// The bytes of a vector, four a lane, whatever its length.
type Bytes = [[u8; 4]; MAX_LANES];

/// Those of a vector of integers.
#[inline(always)]
fn bytes<S: Isa>(s: S, x: S::I32) -> Bytes {
    let mut bytes = [[0; 4]; MAX_LANES];
    // SAFETY: as long as any vector.
    unsafe { s.store_i32(bytes.as_mut_ptr().cast(), x) };
    bytes
}

/// The other way round.
#[inline(always)]
fn vector<S: Isa>(s: S, bytes: &Bytes) -> S::I32 {
    // SAFETY: as long as any vector.
    unsafe { s.load_i32(bytes.as_ptr().cast()) }
}

/// [`Isa::zip_bytes`], in order.
#[inline(always)]
pub(crate) fn zip_bytes<S: Isa>(s: S, x: [S::I32; 4]) -> [S::I32; 4] {
    let [a, b, c, d] = x.map(|x| bytes(s, x));
    [0, 1, 2, 3].map(|part| {
        let mut quads = [[0; 4]; MAX_LANES];
        for (lane, quad) in quads.iter_mut().enumerate().take(S::LANES) {
            let i = part * S::LANES + lane;
            *quad = [a, b, c, d].map(|x| x[i / 4][i % 4]);
        }
        vector(s, &quads)
    })
}

/// [`Isa::join_digits`].
#[inline(always)]
pub(crate) fn join<S: Isa>(s: S, upper: S::I32, lower: S::I32) -> S::I32 {
    let (upper, mut sum) = (bytes(s, upper), bytes(s, lower));
    for (lower, upper) in sum.iter_mut().zip(upper) {
        let [upper, low] = [upper, *lower].map(i32::from_ne_bytes);
        *lower = upper.wrapping_mul(256).wrapping_add(low).to_ne_bytes();
    }
    vector(s, &sum)
}

/// [`Isa::load_digits`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn load<S: Isa>(s: S, p: *const i16) -> [S::I32; 2] {
    let mut digits = [[[0; 4]; MAX_LANES]; 2];
    for i in 0..4 * S::LANES {
        // SAFETY: one of the caller's values.
        let x = unsafe { p.add(i).read_unaligned() };
        let lower = x as u8;
        digits[0][i / 4][i % 4] = (x.wrapping_sub(i16::from(lower.cast_signed())) >> 8) as u8;
        digits[1][i / 4][i % 4] = lower;
    }
    digits.map(|digits| vector(s, &digits))
}

/// [`Isa::store_digits`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn store<S: Isa>(s: S, p: *mut u8, x: S::F32) {
    let mut lanes = [0.0f32; MAX_LANES];
    // SAFETY: as long as any vector, and the caller's bytes.
    unsafe {
        s.store(lanes.as_mut_ptr(), x);
        for (lane, x) in lanes.iter().enumerate().take(S::LANES) {
            // NaN becomes 0.
            let [lower, upper] = (x.round_ties_even() as u16).to_le_bytes();
            p.add(lane).write(upper);
            p.add(S::LANES + lane).write(lower);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Body, scalar::Scalar};

    /// All operations on as many numbers as `S` has, from number `first` of a sequence on, against plain integers.
    struct Check {
        first: i32,
    }

    impl Body for Check {
        type Out = ();

        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            let n = S::LANES;
            // All from -32768 to 32639, sooner or later.
            let number =
                |i: usize| (self.first.wrapping_add(i as i32).wrapping_mul(7919)).rem_euclid(65_408) - 32_768;
            let integers = |x: S::I32| {
                let mut lanes = [0i32; MAX_LANES];
                // SAFETY: as long as any vector.
                unsafe { s.store_i32(lanes.as_mut_ptr(), x) };
                lanes
            };
            let numbers = |x: S::F32| {
                let mut lanes = [0f32; MAX_LANES];
                // SAFETY: as long as any vector.
                unsafe { s.store(lanes.as_mut_ptr(), x) };
                lanes
            };

            let mut x = [0i16; 4 * MAX_LANES];
            x.iter_mut().enumerate().for_each(|(i, x)| *x = number(i) as i16);
            // SAFETY: as long as four vectors.
            let [upper, lower] = unsafe { s.load_digits(x.as_ptr()) }.map(|x| bytes(s, x));
            for i in 0..4 * n {
                let digits = [upper, lower].map(|bytes| i32::from(bytes[i / 4][i % 4].cast_signed()));
                assert_eq!(256 * digits[0] + digits[1], i32::from(x[i]));
            }

            let lanes: [i32; MAX_LANES] = std::array::from_fn(|i| number(i) << 15);
            // SAFETY: as long as any vector.
            let (a, b) = unsafe { (s.load_i32(lanes.as_ptr()), s.load_i32(lanes[MAX_LANES - n..].as_ptr())) };
            let joined = integers(s.join_digits(a, b));
            for i in 0..n {
                assert_eq!(joined[i], lanes[i].wrapping_mul(256).wrapping_add(lanes[MAX_LANES - n + i]));
            }
            let long: [i32; 2 * MAX_LANES] = std::array::from_fn(|i| number(i) << 15);
            // SAFETY: a vector from each number below `MAX_LANES` on.
            let vectors: [_; MAX_LANES] = std::array::from_fn(|i| unsafe { s.load_i32(long[i..].as_ptr()) });
            let sums = integers(s.sums_i32(&vectors));
            for i in 0..n {
                let total = long[i..i + n].iter().fold(0, |sum: i32, &x| sum.wrapping_add(x));
                assert!(sums[i] == total && s.total_i32(vectors[i]) == total);
            }

            // Rows of bytes 64 r + i: the words of element i are 0, 64, 128, 192 more than i, in the order of elements
            // once their numbers are.
            let rows = [0, 1, 2, 3].map(|r| {
                let row: [u8; 4 * MAX_LANES] = std::array::from_fn(|i| (64 * r + i) as u8);
                // SAFETY: as long as any vector.
                unsafe { s.load_i32(row.as_ptr().cast()) }
            });
            let words = s.zip_bytes(rows);
            let elements = s.unzipped_bytes(words.map(|words| s.to_f32(words)));
            for (part, elements) in elements.into_iter().enumerate() {
                for (lane, &x) in numbers(elements)[..n].iter().enumerate() {
                    let element = (part * n + lane) as u8;
                    let word = i32::from_le_bytes([0, 1, 2, 3].map(|r: u8| 64 * r + element));
                    assert_eq!(x, word as f32);
                }
            }

            let p: [f32; MAX_LANES] = std::array::from_fn(|i| number(i).rem_euclid(65_536) as f32);
            let mut digits = [0u8; 2 * MAX_LANES];
            // SAFETY: as long as any vector.
            unsafe { s.store_digits(digits.as_mut_ptr(), s.load(p.as_ptr())) };
            for i in 0..n {
                assert_eq!(256.0 * f32::from(digits[i]) + f32::from(digits[n + i]), p[i]);
            }
            // SAFETY: as above.
            unsafe { s.store_digits(digits.as_mut_ptr(), s.splat(f32::NAN)) };
            assert!(digits[..2 * n].iter().all(|&digit| digit == 0));
        }
    }

    fn check<S: Isa>() {
        if let Some(s) = S::detect() {
            for first in (0..65_536).step_by(4) {
                s.enter(Check { first });
            }
        }
    }

    /// What is written over [`Isa`], and what instruction sets have of their own.
    #[test]
    fn digits_and_bytes_are_those_of_plain_integers() {
        check::<Scalar>();
        #[cfg(target_arch = "x86_64")]
        check::<crate::simd::avx2::Avx2>();
        #[cfg(target_arch = "x86_64")]
        check::<crate::simd::avx512::Avx512>();
    }
}
