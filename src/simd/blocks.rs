//! Default methods of [`Isa`] for block-scaled formats: a vector holds two blocks of elements, one
//! in each half, and the scales of blocks are gathered from the rows; or lanes are keys, or
//! elements of four keys ([`crate::decode::repacked`]). Lane by lane in plain Rust.

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

/// The bytes of a vector in an array; those of lanes from `LANES` on are 0.
#[inline(always)]
fn bytes<S: Isa>(s: S, x: S::I32) -> [[u8; 4]; MAX_LANES] {
    lanes(s, x).map(i32::to_ne_bytes)
}

/// The vector of the first `LANES` words.
#[inline(always)]
fn of_bytes<S: Isa>(s: S, bytes: &[[u8; 4]; MAX_LANES]) -> S::I32 {
    vector(s, &bytes.map(i32::from_ne_bytes))
}

/// Default of [`Isa::load_f16_pairs`].
///
/// # Safety
/// `2 * LANES` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load_f16_pairs<S: Isa>(s: S, p: *const u16) -> [S::F32; 2] {
    let mut both = [[0.0; MAX_LANES]; 2];
    for lane in 0..S::LANES {
        for (i, numbers) in both.iter_mut().enumerate() {
            // SAFETY: I7: one of `2 * LANES` values (caller).
            numbers[lane] = half::from_f16(unsafe { p.add(2 * lane + i).read_unaligned() });
        }
    }
    // SAFETY: I7: arrays of MAX_LANES elements.
    both.map(|numbers| unsafe { s.load(numbers.as_ptr()) })
}

/// Default of [`Isa::load_transposed_words`].
///
/// # Safety
/// 16 bytes are readable at each address.
#[inline(always)]
pub(crate) unsafe fn load_transposed_words<S: Isa, At: Fn(usize) -> *const u8>(
    s: S,
    four: impl Fn(usize) -> At,
) -> [S::I32; 4] {
    let mut words = [[0; MAX_LANES]; 4];
    for lane in 0..S::LANES {
        let from = four(lane - lane % 4)(lane % 4);
        for (w, words) in words.iter_mut().enumerate() {
            // SAFETY: I7: one of the four words at the address (caller).
            words[lane] = unsafe { from.add(4 * w).cast::<i32>().read_unaligned() };
        }
    }
    words.map(|words| vector(s, &words))
}

/// Default of [`Isa::look_up_nibbles`].
#[inline(always)]
pub(crate) fn look_up_nibbles<S: Isa>(s: S, x: S::I32, table: &[i8; 16]) -> [S::I32; 2] {
    let x = bytes(s, x);
    [0, 4].map(|shift| {
        let codes = x.map(|x| x.map(|x| table[usize::from(x >> shift & 15)].cast_unsigned()));
        of_bytes(s, &codes)
    })
}

/// Default of [`Isa::add_by_bits`].
#[inline(always)]
pub(crate) fn add_by_bits<S: Isa>(s: S, x: S::I32, bits: S::I32, first: usize, more: i8) -> S::I32 {
    let (mut x, bits) = (bytes(s, x), lanes(s, bits));
    for (x, bits) in x.iter_mut().zip(bits) {
        for (i, x) in x.iter_mut().enumerate() {
            *x = x.wrapping_add(if bits >> (first + i) & 1 == 1 { more.cast_unsigned() } else { 0 });
        }
    }
    of_bytes(s, &x)
}

/// Default of [`Isa::add_by_bit_of_lane`].
#[inline(always)]
pub(crate) fn add_by_bit_of_lane<S: Isa>(s: S, x: S::I32, bits: [u32; 4], first: usize, more: i8) -> S::I32 {
    let mut x = bytes(s, x);
    for (lane, x) in x.iter_mut().enumerate().take(S::LANES) {
        for (x, bits) in x.iter_mut().zip(bits) {
            *x = x.wrapping_add(if bits >> (first + lane) & 1 == 1 { more.cast_unsigned() } else { 0 });
        }
    }
    of_bytes(s, &x)
}

/// Default of [`Isa::signs`].
#[inline(always)]
pub(crate) fn signs<S: Isa>(s: S, x: S::F32) -> u16 {
    let mut numbers = [0.0f32; MAX_LANES];
    // SAFETY: I7: the array has MAX_LANES values.
    unsafe { s.store(numbers.as_mut_ptr(), x) };
    (0..MAX_LANES).map(|lane| u16::from(numbers[lane].is_sign_negative()) << lane).sum()
}

/// Default of [`Isa::negate_bytes`].
#[inline(always)]
pub(crate) fn negate_bytes<S: Isa>(s: S, x: S::I32, signs: u8) -> S::I32 {
    let mut x = bytes(s, x);
    for x in &mut x {
        for (i, x) in x.iter_mut().enumerate() {
            *x = if signs >> i & 1 == 1 { x.wrapping_neg() } else { *x };
        }
    }
    of_bytes(s, &x)
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

    /// Compares the operations on nibbles, their fifth bits and their signs with plain integers.
    #[derive(Clone, Copy)]
    struct CheckBytes;

    impl Body for CheckBytes {
        type Out = ();

        #[inline(always)]
        fn run<S: Isa>(self, s: S) {
            let random: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 23) as u8).collect();
            let place = |lane: usize| lane * 61 % 97 * 3;
            let four = |n: usize| {
                let from = &random;
                move |i: usize| from[place(n + i)..].as_ptr()
            };
            // SAFETY: I7: more than 16 bytes follow each place.
            let words = unsafe { s.load_transposed_words(four) };
            for (w, words) in words.into_iter().enumerate() {
                for (lane, word) in lanes(s, words).into_iter().enumerate().take(S::LANES) {
                    assert_eq!(word.to_ne_bytes(), random[place(lane) + 4 * w..][..4]);
                }
            }

            // SAFETY: I7: a vector of words and more.
            let load = |at: usize| unsafe { s.load_i32(random[at..].as_ptr().cast()) };
            let table: [i8; 16] = std::array::from_fn(|i| (37 * i as i32 - 127) as i8);
            let x = load(5);
            let [low, high] = s.look_up_nibbles(x, &table).map(|codes| bytes(s, codes));
            for (lane, x) in bytes(s, x).into_iter().enumerate().take(S::LANES) {
                assert_eq!(low[lane], x.map(|x| table[usize::from(x & 15)].cast_unsigned()));
                assert_eq!(high[lane], x.map(|x| table[usize::from(x >> 4)].cast_unsigned()));
            }

            let (x, bits) = (load(11), load(777));
            for first in (0..32).step_by(4) {
                let sums = bytes(s, s.add_by_bits(x, bits, first, 16));
                let both = bytes(s, x).into_iter().zip(lanes(s, bits));
                for (sum, (x, bits)) in sums.into_iter().zip(both).take(S::LANES) {
                    let more = [0, 1, 2, 3].map(|i| (bits >> (first + i) & 1) as u8 * 16);
                    assert_eq!(sum, [0, 1, 2, 3].map(|i| x[i].wrapping_add(more[i])));
                }
            }
            let bits = [0x0123_4567, 0xf00f_a55a, 0x8000_0001, 0x7ffe_dcba];
            for first in (0..32).step_by(S::LANES) {
                let sums = bytes(s, s.add_by_bit_of_lane(x, bits, first, 16));
                for (lane, x) in bytes(s, x).into_iter().enumerate().take(S::LANES) {
                    let more = bits.map(|bits| (bits >> (first + lane) & 1) as u8 * 16);
                    assert_eq!(sums[lane], [0, 1, 2, 3].map(|i| x[i].wrapping_add(more[i])));
                }
            }

            let numbers: [f32; MAX_LANES] =
                std::array::from_fn(|i| [1.0, -2.0, 0.0, -0.0, f32::NEG_INFINITY, 3e38][i % 6]);
            // SAFETY: I7: an array of MAX_LANES elements.
            let signs = s.signs(unsafe { s.load(numbers.as_ptr()) });
            for (lane, x) in numbers.into_iter().enumerate() {
                assert_eq!(signs >> lane & 1 == 1, lane < S::LANES && x.is_sign_negative());
            }
            for signs in 0..16 {
                let both = bytes(s, s.negate_bytes(x, signs)).into_iter().zip(bytes(s, x));
                for (negated, x) in both.take(S::LANES) {
                    let negate = |i: usize| if signs >> i & 1 == 1 { x[i].wrapping_neg() } else { x[i] };
                    assert_eq!(negated, [0, 1, 2, 3].map(negate));
                }
            }

            let all: &[u16] = &(0..=u16::MAX).collect::<Vec<_>>();
            // SAFETY: I7: numbers enough from there on.
            let both = unsafe { s.load_f16_pairs(all[0x3bf7..].as_ptr()) };
            for (i, numbers) in both.into_iter().enumerate() {
                let mut got = [0.0; MAX_LANES];
                // SAFETY: I7: the array has MAX_LANES elements.
                unsafe { s.store(got.as_mut_ptr(), numbers) };
                for (lane, got) in got.into_iter().enumerate().take(S::LANES) {
                    assert_eq!(got, half::from_f16(all[0x3bf7 + 2 * lane + i]));
                }
            }
        }
    }

    #[test]
    fn nibbles_bits_and_signs_are_those_of_plain_numbers() {
        on_each_isa(CheckBytes);
    }

    #[test]
    fn halves_and_scales_are_those_of_plain_numbers() {
        on_each_isa(Check);
    }
}
