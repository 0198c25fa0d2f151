//! Quantising to 8 bits, on every instruction set, against formulas in f64 and loops over single
//! elements.

mod common;

use common::Random;
use flash_attention::dtype::Dtype;
use flash_attention::error::Error;
use flash_attention::kernel::{self, Kernel};
use flash_attention::quantize::Quantize;
use flash_attention::view::{ArrayMut, Layout, QuantMut, View, ViewMut};
use half::{bf16, f16};

/// What bytes, scales and zeros hold that nobody writes.
const UNTOUCHED: f32 = 1e30;

/// One call: numbers of a type in `[batch][head][token][dim]`, and what shares scales.
#[derive(Clone, Debug)]
struct Case {
    dtype: Dtype,
    extent: [usize; 3],
    dim: usize,
    /// Bytes between rows of `dst`; numbers between rows of `src`.
    gaps: [usize; 2],
    /// Whether batch entries, heads, tokens, channels have scales of their own.
    own: [bool; 4],
    group: [usize; 2],
    zeros: bool,
    /// Cells of one axis lie side by side: of the last one, or of the first.
    backwards: bool,
    smooth: Option<Vec<f32>>,
    x: Vec<f32>,
}

/// What a call wrote.
#[derive(Clone, Debug)]
struct Stored {
    bytes: Vec<i8>,
    scale: Vec<f32>,
    zero: Vec<f32>,
}

impl Stored {
    /// NaN are all alike.
    fn same_bits(&self, other: &Stored) -> bool {
        let alike = |a: &[f32], b: &[f32]| {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
        };
        self.bytes == other.bytes && alike(&self.scale, &other.scale) && alike(&self.zero, &other.zero)
    }
}

impl Case {
    /// Random numbers.
    fn new(extent: [usize; 3], dim: usize, random: &mut Random) -> Case {
        let x = random.normals(extent.iter().product::<usize>() * dim);
        let (own, group) = ([false; 4], [1; 2]);
        let case = Case {
            dtype: Dtype::F32,
            extent,
            dim,
            gaps: [0; 2],
            own,
            group,
            zeros: false,
            backwards: false,
            smooth: None,
            x,
        };
        case.stored_as(Dtype::F32)
    }

    /// The same, each number rounded to what a type can hold.
    fn stored_as(mut self, dtype: Dtype) -> Case {
        self.dtype = dtype;
        for x in &mut self.x {
            *x = match dtype {
                Dtype::F16 => f16::from_f32(*x).to_f32(),
                Dtype::Bf16 => bf16::from_f32(*x).to_f32(),
                _ => *x,
            };
        }
        self
    }

    fn cells(&self) -> [usize; 4] {
        let [batch, heads, tokens] = self.extent;
        let all = [batch, heads, tokens.div_ceil(self.group[0]), self.dim.div_ceil(self.group[1])];
        std::array::from_fn(|axis| if self.own[axis] { all[axis] } else { 1 })
    }

    fn stride(&self) -> [usize; 4] {
        let (mut stride, mut next) = ([0; 4], 2);
        let axes = if self.backwards { [0, 1, 2, 3] } else { [3, 2, 1, 0] };
        for axis in axes.into_iter().filter(|&axis| self.own[axis]) {
            stride[axis] = next;
            next *= self.cells()[axis];
        }
        stride
    }

    /// The place of an element's scale.
    fn place(&self, [b, h, t, d]: [usize; 4]) -> usize {
        let at = [b, h, t / self.group[0], d / self.group[1]];
        (0..4).map(|axis| at[axis] * self.stride()[axis]).sum()
    }

    fn elements(&self) -> impl Iterator<Item = [usize; 4]> {
        let ([batch, heads, tokens], dim) = (self.extent, self.dim);
        let rows =
            (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..tokens).map(move |t| [b, h, t])));
        rows.flat_map(move |[b, h, t]| (0..dim).map(move |d| [b, h, t, d]))
    }

    fn index(&self, [b, h, t, _]: [usize; 4], row: usize) -> usize {
        ((b * self.extent[1] + h) * self.extent[2] + t) * row
    }

    /// An element after smoothing.
    fn number(&self, at: [usize; 4]) -> f32 {
        let x = self.x[self.index(at, self.dim) + at[3]];
        self.smooth.as_ref().map_or(x, |smooth| x - smooth[at[1] * self.dim + at[3]])
    }

    fn run(&self, row: &dyn Kernel) -> Stored {
        let [batch, heads, tokens] = self.extent;
        let rows = batch * heads * tokens;
        let [gap_dst, gap_src] = self.gaps;
        let size = self.dtype.block_bytes();
        let (from, to) = ((self.dim + gap_src) * size, self.dim + gap_dst);
        let mut src = vec![0xffu8; rows * from + 1];
        for (i, x) in self.x.iter().enumerate() {
            let bytes = match self.dtype {
                Dtype::F16 => f16::from_f32(*x).to_ne_bytes().to_vec(),
                Dtype::Bf16 => bf16::from_f32(*x).to_ne_bytes().to_vec(),
                _ => x.to_ne_bytes().to_vec(),
            };
            // At odd addresses.
            src[1 + i / self.dim * from + i % self.dim * size..][..size].copy_from_slice(&bytes);
        }
        let mut stored = Stored {
            bytes: vec![-99; rows * to],
            scale: vec![UNTOUCHED; self.len() + 1],
            zero: vec![UNTOUCHED; self.len() + 1],
        };
        let layout = |dtype, row: usize| Layout {
            dtype,
            extent: self.extent,
            dim: self.dim,
            stride: [heads * tokens * row, tokens * row, row],
            stride_dim: 0,
        };
        let smooth = self.smooth.as_ref().map(|smooth| {
            let stride = [0, self.dim * 4, 0];
            View::of(
                smooth,
                Layout { dtype: Dtype::F32, extent: self.extent, dim: self.dim, stride, stride_dim: 0 },
            )
            .unwrap()
        });
        // SAFETY: as many bytes, which outlive the call.
        let src = unsafe { View::new(src[1..].as_ptr(), layout(self.dtype, from)).unwrap() };
        let dst = ViewMut::of(&mut stored.bytes, layout(Dtype::I8, to)).unwrap();
        let quant = QuantMut {
            scale: ArrayMut::of(&mut stored.scale),
            zero: self.zeros.then(|| ArrayMut::of(&mut stored.zero)),
            stride: self.stride(),
            group: self.group,
        };
        let mut quantize = Quantize::new(src, dst, smooth, quant).unwrap();
        row.quantize(&mut quantize).unwrap();
        stored
    }

    /// Places from the first to the last.
    fn len(&self) -> usize {
        1 + (0..4).map(|axis| (self.cells()[axis] - 1) * self.stride()[axis]).sum::<usize>()
    }

    /// Runs on all instruction sets, which agree; what is between rows and cells stays.
    fn stored(&self) -> Stored {
        let mut all = kernel::available().map(|row| (row, self.run(row)));
        let (_, stored) = all.next().unwrap();
        for (row, other) in all {
            assert!(stored.same_bits(&other), "{row:?}: {self:?}: {stored:?}, {other:?}");
        }
        let mut touched = vec![false; stored.scale.len()];
        let mut rest = stored.bytes.clone();
        for at in self.elements() {
            touched[self.place(at)] = true;
            rest[self.index(at, self.dim + self.gaps[0]) + at[3]] = -99;
        }
        assert!(rest.iter().all(|&byte| byte == -99), "bytes between rows");
        for (i, touched) in touched.into_iter().enumerate() {
            assert_eq!(stored.scale[i] != UNTOUCHED, touched, "scale {i}: {self:?}");
            assert_eq!(stored.zero[i] != UNTOUCHED, touched && self.zeros, "zero {i}: {self:?}");
        }
        stored
    }

    fn byte(&self, stored: &Stored, at: [usize; 4]) -> i8 {
        stored.bytes[self.index(at, self.dim + self.gaps[0]) + at[3]]
    }

    /// What an integer stands for.
    fn back(&self, stored: &Stored, at: [usize; 4]) -> f64 {
        let place = self.place(at);
        let zero = if self.zeros { f64::from(stored.zero[place]) } else { 0.0 };
        (f64::from(self.byte(stored, at)) - zero) * f64::from(stored.scale[place])
    }

    /// Smallest and largest number of each cell; NaN if one is not finite.
    fn bounds(&self) -> Vec<[f64; 2]> {
        let mut bounds = vec![[f64::INFINITY, f64::NEG_INFINITY]; self.len()];
        for at in self.elements() {
            let x = f64::from(self.number(at));
            let [min, max] = &mut bounds[self.place(at)];
            if !x.is_finite() || min.is_nan() {
                [*min, *max] = [f64::NAN; 2];
            } else {
                [*min, *max] = [min.min(x), max.max(x)];
            }
        }
        bounds
    }

    /// Everything that is promised of numbers that are neither tiny nor huge.
    fn check(&self) -> Stored {
        let stored = self.stored();
        let bounds = self.bounds();
        for at in self.elements() {
            let place = self.place(at);
            let [min, max] = bounds[place];
            let scale = f64::from(stored.scale[place]);
            let (byte, x) = (self.byte(&stored, at), f64::from(self.number(at)));
            let what = || format!("{at:?} = {x} in {min} to {max}, {byte} * {scale}: {self:?}");
            if min.is_nan() {
                assert!(scale.is_nan() && byte == 0, "{}", what());
                assert!(!self.zeros || stored.zero[place] == 0.0, "{}", what());
                continue;
            }
            let (expected, least) =
                if self.zeros { ((max - min) / 255.0, -128) } else { (max.max(-min) / 127.0, -127) };
            let error = (self.back(&stored, at) - x).abs();
            if self.zeros && min == max {
                assert_eq!(error, 0.0, "{}", what());
                continue;
            }
            assert!((scale - expected).abs() <= expected * 1.2e-7, "{}", what());
            assert!(i32::from(byte) >= least, "{}", what());
            // A division, one sum, and nothing else is rounded.
            let zero = if self.zeros { stored.zero[place] } else { 0.0 };
            let steps = (self.number(at) / stored.scale[place] + zero).round_ties_even();
            assert_eq!(f32::from(byte), steps.clamp(least as f32, 127.0), "{}", what());
            // Offsets of many steps are rounded to f32 where they are computed.
            let rounding = if self.zeros { max.abs().max(min.abs()) * 1.2e-7 } else { 0.0 };
            assert!(error <= scale / 2.0 * (1.0 + 1e-5) + rounding, "{error}: {}", what());
            if self.zeros {
                let zero = f64::from(stored.zero[place]);
                assert!(zero == zero.round(), "{}", what());
                let exact = -128.0 - min / expected;
                assert!((zero - exact).abs() <= 0.5 + exact.abs() * 3e-7 + 1e-4, "{}", what());
            }
        }
        stored
    }
}

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

#[test]
fn every_granularity() {
    let random = &mut Random(1);
    let groups = [[1, 1], [1, 5], [4, 1], [3, 2], [2, 16], [7, 20], [100, 100]];
    let mut cases = 0;
    for own in (0..16).map(|bits| [0, 1, 2, 3].map(|axis| bits >> axis & 1 == 1)) {
        for group in groups {
            for dim in [1, 3, 8, 15, 16, 17, 40, 67] {
                cases += 1;
                let case = Case::new([2, 3, 9], dim, random).stored_as(FLOATS[cases % 3]);
                let smooth = (cases % 4 == 0).then(|| random.normals(3 * dim));
                let gaps = [cases % 5, cases % 3];
                let case = Case { own, group, smooth, gaps, backwards: cases % 2 == 1, ..case };
                case.check();
                Case { zeros: true, ..case }.check();
            }
        }
    }
}

#[test]
fn long_rows_and_many_tokens() {
    let random = &mut Random(2);
    for own in [[false; 4], [false, true, false, false], [true, true, true, false], [true, true, false, true]]
    {
        for dtype in FLOATS {
            for zeros in [false, true] {
                let case = Case::new([1, 2, 300], 128, random).stored_as(dtype);
                Case { own, zeros, ..case }.check();
            }
        }
    }
}

/// Numbers far from 0, whose zeros are large.
#[test]
fn offsets_cost_only_what_rounding_costs() {
    let random = &mut Random(3);
    for offset in [1.0, -50.0, 1e4, -1e6, 3e7] {
        for own in [[false; 4], [false, false, true, false], [false, false, false, true]] {
            let mut case = Case::new([1, 2, 20], 33, random);
            for x in &mut case.x {
                *x += offset;
            }
            Case { own, zeros: true, ..case }.check();
        }
    }
}

#[test]
fn sizes_of_numbers_do_not_matter() {
    let random = &mut Random(4);
    for power in [-115, -60, 60, 120] {
        for zeros in [false, true] {
            let mut case = Case::new([1, 1, 8], 21, random);
            for x in &mut case.x {
                *x *= 2f32.powi(power);
            }
            Case { zeros, own: [false, false, true, true], group: [2, 4], ..case }.check();
        }
    }
}

/// A range that f32 cannot hold.
#[test]
fn the_whole_range_of_f32() {
    let mut case = Case::new([1, 1, 1], 9, &mut Random(5));
    case.x = vec![3.3e38, -3.3e38, 0.0, 1.0, -1e38, 2e38, 5e37, -3e38, 1e30];
    case.check();
    Case { zeros: true, ..case }.check();
}

/// Halves of a step, exactly; and the ends.
#[test]
fn ties_go_to_the_even_integer() {
    let mut case = Case::new([1, 1, 1], 300, &mut Random(6));
    let numbers = |i: usize| (i as f32 - 150.0) / 2.0;
    for (i, x) in case.x.iter_mut().enumerate() {
        *x = numbers(i).clamp(-127.0, 127.0) * 0.25;
    }
    case.x[0] = -127.0 * 0.25;
    let stored = case.check();
    assert_eq!(stored.scale[0], 0.25);
    for (i, x) in case.x.iter().enumerate() {
        assert_eq!(f32::from(stored.bytes[i]), (x / 0.25).round_ties_even(), "{x}");
    }
    // From -128 to 127 with a zero of 0, and, 10 steps higher, of -10.
    for offset in [0, 10] {
        let mut case = Case { zeros: true, ..Case::new([1, 1, 1], 511, &mut Random(6)) };
        for (i, x) in case.x.iter_mut().enumerate() {
            *x = ((i as f32 - 256.0) / 2.0 + offset as f32) * 0.5;
        }
        let stored = case.check();
        assert_eq!((stored.scale[0], stored.zero[0]), (0.5, -offset as f32));
        for (i, &byte) in stored.bytes.iter().enumerate() {
            assert_eq!(f32::from(byte), ((i as f32 - 256.0) / 2.0).round_ties_even(), "{i}");
        }
    }
}

/// The largest number is 127 (or -127) steps, and none is -128.
#[test]
fn ends_of_a_cell_are_ends_of_the_integers() {
    let random = &mut Random(7);
    for sign in [1f32, -1.0] {
        for _ in 0..2000 {
            let mut case = Case::new([1, 1, 1], 5, random);
            case.x[3] = sign * (10.0 + case.x[3].abs());
            let stored = case.check();
            assert_eq!(f32::from(stored.bytes[3]), sign * 127.0);
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_cell() {
    let random = &mut Random(8);
    let owns = [
        [false, false, true, false],
        [false, true, false, false],
        [true, false, true, true],
        [false, false, false, true],
        [true, true, true, true],
    ];
    for (i, own) in owns.into_iter().enumerate() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for group in [[1, 1], [2, 3], [3, 17], [2, 40]] {
                for dtype in FLOATS {
                    for zeros in [false, true] {
                        let case = Case::new([2, 2, 7], 37, random).stored_as(dtype);
                        let smooth = (i % 2 == 0).then(|| random.normals(2 * 37));
                        let clean = Case { own, group, zeros, smooth, ..case };
                        let mut case = clean.clone();
                        let hit = random.below(case.x.len());
                        case.x[hit] = bad;
                        let (stored, before) = (case.check(), clean.check());
                        let bounds = case.bounds();
                        assert_eq!(bounds.iter().filter(|[min, _]| min.is_nan()).count(), 1);
                        for at in case.elements().filter(|&at| !bounds[case.place(at)][0].is_nan()) {
                            assert_eq!(case.byte(&stored, at), clean.byte(&before, at));
                            assert_eq!(stored.scale[case.place(at)], before.scale[case.place(at)]);
                        }
                    }
                }
            }
        }
    }
    // NaN in the first, a middle and the last lane, followed by numbers; several; all.
    for zeros in [false, true] {
        for hits in [vec![0], vec![20], vec![39], vec![0, 16, 32], (0..40).collect()] {
            let mut case = Case { zeros, ..Case::new([1, 1, 1], 40, random) };
            for hit in hits {
                case.x[hit] = f32::NAN;
            }
            case.check();
        }
    }
}

/// Infinite only after smoothing.
#[test]
fn smoothing_can_overflow() {
    let mut case = Case::new([1, 2, 3], 5, &mut Random(9));
    case.own = [false, true, false, true];
    case.x[2] = 3e38;
    let mut smooth = vec![0.5; 10];
    smooth[2] = -3e38;
    case.smooth = Some(smooth);
    let stored = case.check();
    assert_eq!(stored.scale.iter().filter(|scale| scale.is_nan()).count(), 1);
}

#[test]
fn smoothing_is_one_subtraction() {
    let random = &mut Random(10);
    for dtype in FLOATS {
        for own in [[false; 4], [false, true, true, false], [false, true, false, true]] {
            let case = Case::new([3, 2, 6], 35, random).stored_as(dtype);
            let smoothed = Case { own, smooth: Some(random.normals(2 * 35)), ..case };
            let mut plain = Case { smooth: None, dtype: Dtype::F32, ..smoothed.clone() };
            let numbers: Vec<f32> = smoothed.elements().map(|at| smoothed.number(at)).collect();
            plain.x = numbers;
            assert!(smoothed.check().same_bits(&plain.check()));
        }
    }
}

#[test]
fn cells_of_one_number() {
    for x in [0.0, -0.0, 1.0, -3.7, 1e-40, -f32::MIN_POSITIVE, f32::MAX, f32::MIN, 1e-45] {
        for own in [[false; 4], [false, false, false, true], [false, false, true, false]] {
            let mut case = Case::new([1, 2, 3], 19, &mut Random(11));
            case.x.fill(x);
            case.own = own;
            let zeros = Case { zeros: true, ..case.clone() };
            let stored = zeros.stored();
            assert!(zeros.elements().all(|at| zeros.back(&stored, at) == f64::from(x)), "{x}: {stored:?}");
            let stored = case.stored();
            let tiny = x.abs() / 127.0 < f32::MIN_POSITIVE;
            for at in case.elements() {
                let scale = stored.scale[case.place(at)];
                let integer = if tiny { 0.0 } else { x.signum() * 127.0 };
                assert_eq!(scale, if tiny { 0.0 } else { x.abs() / 127.0 }, "{x}");
                assert_eq!(f32::from(case.byte(&stored, at)), integer, "{x}");
            }
        }
    }
    // Zeros of both signs.
    let mut case = Case { zeros: true, ..Case::new([1, 1, 1], 33, &mut Random(11)) };
    for (i, x) in case.x.iter_mut().enumerate() {
        *x = if i % 2 == 0 { 0.0 } else { -0.0 };
    }
    assert_eq!(case.stored().scale[0].to_bits(), 0);
}

/// Steps that f32 can hold only roughly, or not at all.
#[test]
fn tiny_numbers_become_one_number() {
    let random = &mut Random(12);
    for power in [-149, -140, -130, -126, -122] {
        for zeros in [false, true] {
            let mut case = Case { zeros, ..Case::new([1, 1, 4], 18, random) };
            for x in &mut case.x {
                *x *= 2f32.powi(power / 2) * 2f32.powi(power - power / 2);
            }
            let stored = case.stored();
            for at in case.elements() {
                let error = (case.back(&stored, at) - f64::from(case.number(at))).abs();
                assert!(error <= 255.0 * f64::from(f32::MIN_POSITIVE), "{error}");
            }
            assert!(stored.scale[0].abs() < 1e-30);
        }
    }
}

#[test]
fn nothing_is_nothing() {
    for extent in [[0, 2, 3], [2, 0, 3], [2, 3, 0], [0, 0, 0]] {
        let layout = |dtype| Layout { dtype, extent, dim: 4, stride: [0; 3], stride_dim: 0 };
        let src = View::of::<f32>(&[], layout(Dtype::F32)).unwrap();
        let mut bytes = [1i8; 4];
        let mut scale = [2.0];
        let dst = ViewMut::of(&mut bytes, layout(Dtype::I8)).unwrap();
        let quant = QuantMut { scale: ArrayMut::of(&mut scale), zero: None, stride: [1; 4], group: [1; 2] };
        let mut quantize = Quantize::new(src, dst, None, quant).unwrap();
        for row in kernel::available() {
            row.quantize(&mut quantize).unwrap();
        }
        assert_eq!((bytes, scale), ([1; 4], [2.0]));
    }
}

/// Two cells with one place are refused, as far as the library can tell; others are not.
#[test]
fn cells_have_places_of_their_own() {
    let refused = |stride: [usize; 4], group: [usize; 2]| {
        let layout = |dtype| Layout::dense(dtype, 3, 4, 6).unwrap();
        let (x, mut bytes, mut scale) = ([0f32; 72], [0i8; 72], [0.0; 1000]);
        let src = View::of(&x, layout(Dtype::F32)).unwrap();
        let dst = ViewMut::of(&mut bytes, layout(Dtype::I8)).unwrap();
        let quant = QuantMut { scale: ArrayMut::of(&mut scale), zero: None, stride, group };
        Quantize::new(src, dst, None, quant).err()
    };
    for (stride, group) in [
        ([0, 0, 0, 0], [1, 1]),
        ([0, 24, 6, 1], [1, 1]),
        ([0, 1, 3, 12], [1, 1]),
        ([0, 4, 1, 0], [1, 1]),
        ([0, 2, 1, 0], [2, 1]),
        ([0, 1, 1, 0], [4, 1]),
        ([1, 1, 1, 1], [9, 9]),
        ([0, 2, 0, 1], [1, 3]),
        ([0, 100, 7, 1], [1, 1]),
    ] {
        assert_eq!(refused(stride, group), None, "{stride:?}, {group:?}");
    }
    for (stride, group) in [
        ([0, 1, 1, 0], [1, 1]),
        ([0, 23, 6, 1], [1, 1]),
        ([0, 24, 5, 1], [1, 1]),
        ([0, 1, 3, 11], [1, 1]),
        ([0, 1, 1, 0], [2, 1]),
        ([0, 1, 0, 1], [1, 3]),
    ] {
        assert_eq!(refused(stride, group), Some(Error::Stride), "{stride:?}, {group:?}");
    }
}
