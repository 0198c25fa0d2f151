//! Default methods of [`Isa`] for the compute type split16, which multiplies 16-bit integers as a
//! high and a low byte, and interleaves the bytes of four keys. Lane by lane in plain Rust.

use super::{Isa, MAX_LANES};

/// The bytes of a vector of any length, four for each lane.
type Bytes = [[u8; 4]; MAX_LANES];

/// The bytes of a vector in an array; elements from `LANES` on are 0.
#[inline(always)]
fn bytes<S: Isa>(s: S, x: S::I32) -> Bytes {
    let mut bytes = [[0; 4]; MAX_LANES];
    // SAFETY: I7: the array has MAX_LANES words.
    unsafe { s.store_i32(bytes.as_mut_ptr().cast(), x) };
    bytes
}

/// The vector of the first `LANES` elements.
#[inline(always)]
fn vector<S: Isa>(s: S, bytes: &Bytes) -> S::I32 {
    // SAFETY: I7: the array has MAX_LANES words.
    unsafe { s.load_i32(bytes.as_ptr().cast()) }
}

/// The byte of a vector that lane `lane` of word vector `part` of the default of
/// [`Isa::interleave_bytes`] belongs to: memory order within each half of the vector.
#[inline(always)]
fn zipped_byte<S: Isa>(part: usize, lane: usize) -> usize {
    let half = S::LANES / 2;
    lane / half * (4 * half) + part * half + lane % half
}

/// Default of [`Isa::interleave_bytes`], with words in memory order within each half of a vector.
#[inline(always)]
pub(crate) fn interleave_bytes<S: Isa>(s: S, x: [S::I32; 4]) -> [S::I32; 4] {
    let [a, b, c, d] = x.map(|x| bytes(s, x));
    [0, 1, 2, 3].map(|part| {
        let mut quads = [[0; 4]; MAX_LANES];
        for (lane, quad) in quads.iter_mut().enumerate().take(S::LANES) {
            let i = zipped_byte::<S>(part, lane);
            *quad = [a, b, c, d].map(|x| x[i / 4][i % 4]);
        }
        vector(s, &quads)
    })
}

/// Default of [`Isa::deinterleave_bytes`].
#[inline(always)]
pub(crate) fn deinterleave_bytes<S: Isa>(s: S, x: [S::F32; 4]) -> [S::F32; 4] {
    let mut all = [[0.0f32; MAX_LANES]; 4];
    for (part, x) in x.into_iter().enumerate() {
        let mut lanes = [0.0f32; MAX_LANES];
        // SAFETY: I7: the array has MAX_LANES values.
        unsafe { s.store(lanes.as_mut_ptr(), x) };
        for (lane, &x) in lanes.iter().enumerate().take(S::LANES) {
            let i = zipped_byte::<S>(part, lane);
            all[i / S::LANES][i % S::LANES] = x;
        }
    }
    // SAFETY: I7: each array has MAX_LANES values.
    all.map(|lanes| unsafe { s.load(lanes.as_ptr()) })
}

/// Default of [`Isa::join_split16`].
#[inline(always)]
pub(crate) fn join<S: Isa>(s: S, high: S::I32, low: S::I32) -> S::I32 {
    let (high, mut sum) = (bytes(s, high), bytes(s, low));
    for (sum, high) in sum.iter_mut().zip(high) {
        let [high, low] = [high, *sum].map(i32::from_ne_bytes);
        *sum = high.wrapping_mul(256).wrapping_add(low).to_ne_bytes();
    }
    vector(s, &sum)
}

/// Default of [`Isa::load_split16`].
///
/// # Safety
/// `4 * LANES` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load<S: Isa>(s: S, p: *const i16) -> [S::I32; 2] {
    let mut halves = [[[0; 4]; MAX_LANES]; 2];
    for i in 0..4 * S::LANES {
        // SAFETY: 4 * LANES values are readable at `p` (caller).
        let x = unsafe { p.add(i).read_unaligned() };
        // The low byte is signed, so the high one makes up for its sign.
        let low = x as u8;
        halves[0][i / 4][i % 4] = (x.wrapping_sub(i16::from(low.cast_signed())) >> 8) as u8;
        halves[1][i / 4][i % 4] = low;
    }
    halves.map(|bytes| vector(s, &bytes))
}

/// Default of [`Isa::store_split16`].
///
/// # Safety
/// `2 * LANES` bytes are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store<S: Isa>(s: S, p: *mut u8, x: S::F32) {
    let mut lanes = [0.0f32; MAX_LANES];
    // SAFETY: 2 * LANES bytes are writable at `p` (caller); I7: the array has MAX_LANES elements.
    unsafe {
        s.store(lanes.as_mut_ptr(), x);
        for (lane, x) in lanes.iter().enumerate().take(S::LANES) {
            // `as` converts NaN to 0.
            let [low, high] = (x.round_ties_even() as u16).to_le_bytes();
            p.add(lane).write(high);
            p.add(S::LANES + lane).write(low);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Body, on_each_isa};

    /// Compares every operation with plain integers, on numbers of a sequence from index `first`
    /// on.
    #[derive(Clone, Copy)]
    struct Check {
        first: i32,
    }

    impl Body for Check {
        type Out = ();

        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            let n = S::LANES;
            // The sequence takes all values from -32768 to 32639.
            let number =
                |i: usize| (self.first.wrapping_add(i as i32).wrapping_mul(7919)).rem_euclid(65_408) - 32_768;
            let integers = |x: S::I32| {
                let mut lanes = [0i32; MAX_LANES];
                // SAFETY: I7: the array has MAX_LANES words.
                unsafe { s.store_i32(lanes.as_mut_ptr(), x) };
                lanes
            };
            let numbers = |x: S::F32| {
                let mut lanes = [0f32; MAX_LANES];
                // SAFETY: I7: the array has MAX_LANES words.
                unsafe { s.store(lanes.as_mut_ptr(), x) };
                lanes
            };

            let mut x = [0i16; 4 * MAX_LANES];
            x.iter_mut().enumerate().for_each(|(i, x)| *x = number(i) as i16);
            // SAFETY: I7: the array has 4 * MAX_LANES elements.
            let [high, low] = unsafe { s.load_split16(x.as_ptr()) }.map(|x| bytes(s, x));
            for i in 0..4 * n {
                let [high, low] = [high, low].map(|bytes| i32::from(bytes[i / 4][i % 4].cast_signed()));
                assert_eq!(256 * high + low, i32::from(x[i]));
            }

            let lanes: [i32; MAX_LANES] = std::array::from_fn(|i| number(i) << 15);
            // SAFETY: I7: the array has MAX_LANES words.
            let (a, b) = unsafe { (s.load_i32(lanes.as_ptr()), s.load_i32(lanes[MAX_LANES - n..].as_ptr())) };
            let joined = integers(s.join_split16(a, b));
            for i in 0..n {
                assert_eq!(joined[i], lanes[i].wrapping_mul(256).wrapping_add(lanes[MAX_LANES - n + i]));
            }
            let long: [i32; 2 * MAX_LANES] = std::array::from_fn(|i| number(i) << 15);
            // SAFETY: I7: MAX_LANES numbers follow each start below MAX_LANES.
            let vectors: [_; MAX_LANES] = std::array::from_fn(|i| unsafe { s.load_i32(long[i..].as_ptr()) });
            let sums = integers(s.horizontal_sums_i32(&vectors));
            for i in 0..n {
                let total = long[i..i + n].iter().fold(0, |sum: i32, &x| sum.wrapping_add(x));
                assert!(sums[i] == total && s.horizontal_sum_i32(vectors[i]) == total);
            }

            // Byte i of row r is 64 r + i, so the word of element i has the bytes i, 64 + i, 128 +
            // i and 192 + i.
            let rows = [0, 1, 2, 3].map(|r| {
                let row: [u8; 4 * MAX_LANES] = std::array::from_fn(|i| (64 * r + i) as u8);
                // SAFETY: I7: the array has MAX_LANES words.
                unsafe { s.load_i32(row.as_ptr().cast()) }
            });
            let words = s.interleave_bytes(rows);
            for words in words {
                for (lane, word) in integers(words).into_iter().enumerate().take(n) {
                    // The lowest byte is that of row 0, and so the number of the element.
                    assert_eq!((word & 0xff) as usize / (2 * n), lane / (n / 2), "in its half");
                }
            }
            let elements = s.deinterleave_bytes(words.map(|words| s.to_f32(words)));
            for (part, elements) in elements.into_iter().enumerate() {
                for (lane, &x) in numbers(elements)[..n].iter().enumerate() {
                    let element = (part * n + lane) as u8;
                    let word = i32::from_le_bytes([0, 1, 2, 3].map(|r: u8| 64 * r + element));
                    assert_eq!(x, word as f32);
                }
            }

            let p: [f32; MAX_LANES] = std::array::from_fn(|i| number(i).rem_euclid(65_536) as f32);
            let mut split = [0u8; 2 * MAX_LANES];
            // SAFETY: I7: the arrays have MAX_LANES elements and 2 * MAX_LANES bytes.
            unsafe { s.store_split16(split.as_mut_ptr(), s.load(p.as_ptr())) };
            for i in 0..n {
                assert_eq!(256.0 * f32::from(split[i]) + f32::from(split[n + i]), p[i]);
            }
            // SAFETY: I7: the array has 2 * MAX_LANES bytes.
            unsafe { s.store_split16(split.as_mut_ptr(), s.splat(f32::NAN)) };
            assert!(split[..2 * n].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn split_integers_and_interleaved_bytes_are_those_of_plain_integers() {
        for first in (0..65_536).step_by(4) {
            on_each_isa(Check { first });
        }
    }
}
