//! Numbers written in every storage type, on every instruction set, bit for bit against
//! definitions in plain loops; and appended to caches, against the same done by hand.

mod common;
#[path = "common/f8.rs"]
mod f8;

use common::Random;
use flash_attention::capi::append::fa_cache_append;
use flash_attention::capi::attention::{fa_attention, fa_attention_init};
use flash_attention::capi::quantize::fa_quantize;
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::{fa_quant, fa_tensor};
use flash_attention::dtype::Dtype;
use flash_attention::error::Error;
use flash_attention::kernel;
use flash_attention::quantize::{Quantize, Round};
use flash_attention::view::{Layout, View, ViewMut};
use flash_attention::{Append, ArrayMut, DataMut, Quant, QuantMut, Tensor, TensorMut, quantize};
use half::{bf16, f16};

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];
const BLOCKS: [Dtype; 6] = [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_1, Dtype::Q5_0, Dtype::Q5_1, Dtype::Iq4Nl];
/// A number as a fraction of 16 bits: a loop over all could not be plainer.
fn fraction(x: f32) -> i16 {
    match f64::from(x) * 32_768.0 {
        x if x.is_nan() => 0,
        x if x <= -32_768.0 => i16::MIN,
        x if x >= 32_767.0 => i16::MAX,
        x => x.round_ties_even() as i16,
    }
}

const F8: [Dtype; 2] = [Dtype::F8E4M3, Dtype::F8E5M2];
const VALUES: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// What an untouched byte holds.
const UNTOUCHED: u8 = 0xa7;

/// A number as a floating-point type stores it.
fn float(dtype: Dtype, x: f32) -> Vec<u8> {
    match dtype {
        Dtype::F32 => x.to_ne_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(x).to_ne_bytes().to_vec(),
        _ => bf16::from_f32(x).to_ne_bytes().to_vec(),
    }
}

/// What a floating-point type makes of a number.
fn stored(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(x).to_f32(),
        Dtype::Bf16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// A block, as ggml's reference functions say it: loops over single elements.
fn block(dtype: Dtype, x: &[f32]) -> Vec<u8> {
    let half = |x: f32| f16::from_f32(x).to_le_bytes();
    if x.iter().any(|x| !x.is_finite()) {
        let mut bytes = vec![0; dtype.block_bytes()];
        bytes[..2].copy_from_slice(&0x7e00u16.to_le_bytes());
        return bytes;
    }
    let (mut largest, mut least, mut most) = (0f32, f32::MAX, f32::MIN);
    for &x in x {
        if x.abs() > largest.abs() {
            largest = x;
        }
        if x < least {
            least = x;
        }
        if x > most {
            most = x;
        }
    }
    let inverse = |d: f32| if d == 0.0 { 0.0 } else { 1.0 / d };
    let nibbles = |codes: &[u32]| (0..16).map(|i| (codes[i] % 16 + codes[i + 16] % 16 * 16) as u8).collect();
    let fifths = |codes: &[u32]| (0..32).map(|i| (codes[i] / 16) << i).sum::<u32>().to_le_bytes();
    let mut codes = [0u32; 32];
    match dtype {
        Dtype::Q8_0 => {
            let d = largest.abs() / 127.0;
            let bytes = x.iter().map(|x| (x * inverse(d)).round().clamp(-127.0, 127.0) as i8 as u8);
            half(d).into_iter().chain(bytes).collect()
        }
        Dtype::Q4_0 | Dtype::Q5_0 => {
            let (half_of, offset, top) =
                if dtype == Dtype::Q4_0 { (-8.0, 8.5, 15) } else { (-16.0, 16.5, 31) };
            let d = largest / half_of;
            for (code, x) in codes.iter_mut().zip(x) {
                *code = ((x * inverse(d) + offset) as u32).min(top);
            }
            let high = if top == 31 { fifths(&codes).to_vec() } else { vec![] };
            [half(d).to_vec(), high, nibbles(&codes)].concat()
        }
        Dtype::Q4_1 | Dtype::Q5_1 => {
            let top = if dtype == Dtype::Q4_1 { 15 } else { 31 };
            let d = (most - least) / top as f32;
            for (code, x) in codes.iter_mut().zip(x) {
                *code = (((x - least) * inverse(d) + 0.5) as u32).min(top);
            }
            let high = if top == 31 { fifths(&codes).to_vec() } else { vec![] };
            [half(d).to_vec(), half(least).to_vec(), high, nibbles(&codes)].concat()
        }
        _ => {
            let mut d = 0.0;
            if largest.abs() >= 1e-15 {
                let (mut products, mut squares) = (0.0, 0.0);
                let id = 1.0 / (largest / VALUES[0]);
                for (code, &x) in codes.iter_mut().zip(x) {
                    let scaled = id * x;
                    // As ggml searches: bisection, then the nearer of two.
                    *code = match scaled {
                        s if s <= VALUES[0] => 0,
                        s if s >= VALUES[15] => 15,
                        s => {
                            let (mut low, mut high) = (0, 15);
                            while high - low > 1 {
                                let middle = (low + high) / 2;
                                if s < VALUES[middle] { high = middle } else { low = middle }
                            }
                            if s - VALUES[high - 1] < VALUES[high] - s {
                                high as u32 - 1
                            } else {
                                high as u32
                            }
                        }
                    };
                    let (weight, value) = (x * x, VALUES[*code as usize]);
                    products += weight * value * x;
                    squares += weight * value * value;
                }
                d = if squares > 0.0 { products / squares } else { 0.0 };
            }
            [half(d).to_vec(), nibbles(&codes)].concat()
        }
    }
}

/// A row of numbers in any type but 8-bit integers.
fn row(dtype: Dtype, x: &[f32]) -> Vec<u8> {
    if dtype.is_f8() {
        return x.iter().map(|&x| f8::nearest(dtype, x)).collect();
    }
    if dtype == Dtype::Q15 {
        return x.iter().flat_map(|&x| fraction(x).to_ne_bytes()).collect();
    }
    match dtype.has_blocks() {
        true => x.chunks(32).flat_map(|x| block(dtype, x)).collect(),
        false => x.iter().flat_map(|&x| float(dtype, x)).collect(),
    }
}

/// Numbers of all kinds, blocks of each: near and far, ties, signed zeros, NaN and infinities.
fn numbers(n: usize, random: &mut Random) -> Vec<f32> {
    let normals = random.normals(n);
    let special =
        [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN, 65519.9, 65520.0, 3e38, 1e-40];
    let of = |kind: usize, i: usize, x: f32| match kind {
        0 => x,
        1 => x * 2f32.powi(i as i32 % 60 - 40),
        // Ties: multiples of half a step, of either sign.
        2 => ((i * 7 % 33) as f32 - 16.0) * 0.5,
        3 => -((i * 5 % 32) as f32) * 0.25,
        4 => 5.0,
        5 => [0.0, -0.0][i * 3 % 5 % 2],
        6 => x * 1e-39,
        7 => x * 3e37,
        8 => {
            if i % 7 == 3 {
                special[i / 7 % special.len()]
            } else {
                x
            }
        }
        9 => {
            if i % 40 == 5 {
                f32::NAN
            } else {
                x
            }
        }
        10 => {
            if i % 40 == 5 {
                f32::NEG_INFINITY
            } else {
                x
            }
        }
        11 => f32::from_bits((i as u32).wrapping_mul(2654435761) ^ x.to_bits()),
        12 => x * 1e5,
        13 => x.abs() + 3.0,
        14 => x * 1e-14,
        _ => ((i * 13 % 255) as f32 - 127.0) * 0.5 + x * 1e-7,
    };
    normals.into_iter().enumerate().map(|(i, x)| of(i / 32 % 16, i, x)).collect()
}

fn layout(dtype: Dtype, extent: [usize; 3], dim: usize, gaps: [usize; 3]) -> Layout {
    let unit = dtype.unit();
    let token = dtype.row_bytes(dim).unwrap() + gaps[0] * unit;
    let head = extent[2] * token + gaps[1] * unit;
    let stride = [extent[1] * head + gaps[2] * unit, head, token];
    Layout { dtype, extent, dim, stride, stride_dim: 0 }
}

fn bytes(layout: &Layout) -> usize {
    (0..3).map(|i| layout.extent[i] * layout.stride[i]).sum::<usize>()
        + layout.dtype.row_bytes(layout.dim).unwrap()
}

/// Every row of a layout and where it begins.
fn rows(layout: &Layout) -> impl Iterator<Item = usize> + use<> {
    let ([batch, heads, tokens], s) = (layout.extent, layout.stride);
    (0..batch * heads * tokens)
        .map(move |i| i / (heads * tokens) * s[0] + i / tokens % heads * s[1] + i % tokens * s[2])
}

#[test]
fn every_type_from_every_type() {
    let random = &mut Random(7);
    let cases = [([1, 1, 1], 32, [0; 3]), ([2, 3, 5], 64, [1, 0, 3]), ([1, 2, 16], 160, [0, 2, 0])];
    let narrow = [([2, 2, 3], 1, [1, 0, 0]), ([1, 3, 40], 33, [0, 1, 2]), ([1, 1, 50], 47, [0; 3])];
    for from in FLOATS {
        for to in FLOATS.into_iter().chain(BLOCKS).chain(F8).chain([Dtype::Q15]) {
            for (extent, dim, gaps) in cases.into_iter().chain(narrow) {
                if dim % to.block() != 0 {
                    continue;
                }
                let (source, target) =
                    (layout(from, extent, dim, [gaps[1], gaps[2], gaps[0]]), layout(to, extent, dim, gaps));
                let x = numbers(extent.iter().product::<usize>() * dim, random);
                // At odd addresses.
                let mut src = vec![0xffu8; bytes(&source) + 1];
                let mut expected = vec![UNTOUCHED; bytes(&target) + 1];
                for ((x, at), place) in x.chunks(dim).zip(rows(&source)).zip(rows(&target)) {
                    let x: Vec<f32> = x.iter().map(|&x| stored(from, x)).collect();
                    let (read, written) = (row(from, &x), row(to, &x));
                    src[1 + at..][..read.len()].copy_from_slice(&read);
                    expected[1 + place..][..written.len()].copy_from_slice(&written);
                }
                for kernel in kernel::available() {
                    let mut dst = vec![UNTOUCHED; expected.len()];
                    // SAFETY: as many bytes, which outlive the call.
                    let (src, to_view) = unsafe {
                        let src = View::new(src[1..].as_ptr(), source).unwrap();
                        (src, ViewMut::new(dst[1..].as_mut_ptr(), target).unwrap())
                    };
                    kernel.round(&Round::new(src, to_view).unwrap()).unwrap();
                    let wrong = dst.iter().zip(&expected).position(|(got, want)| got != want);
                    assert_eq!(wrong, None, "{kernel:?}: {from} to {to}, {extent:?} x {dim}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, mut y) = (vec![0f32; 256], vec![0f32; 256]);
    let mut refuse = |from: Layout, to: Layout, error| {
        // SAFETY: as many bytes, which outlive the views.
        let (src, dst) = unsafe {
            (View::new(x.as_ptr().cast(), from).unwrap(), ViewMut::new(y.as_mut_ptr().cast(), to).unwrap())
        };
        assert_eq!(Round::new(src, dst).map(|_| ()), error, "{from:?}, {to:?}");
    };
    let of = |dtype, dim| layout(dtype, [1, 2, 2], dim, [0; 3]);
    refuse(of(Dtype::F32, 32), of(Dtype::Q8_0, 32), Ok(()));
    refuse(of(Dtype::Q8_0, 32), of(Dtype::F32, 32), Err(Error::Dtype));
    refuse(of(Dtype::F32, 32), of(Dtype::F8E4M3, 32), Ok(()));
    refuse(of(Dtype::F8E4M3, 32), of(Dtype::F32, 32), Err(Error::Dtype));
    refuse(of(Dtype::F32, 32), of(Dtype::U8, 32), Err(Error::Dtype));
    refuse(of(Dtype::F32, 32), of(Dtype::Q15, 32), Ok(()));
    refuse(of(Dtype::Q15, 32), of(Dtype::F32, 32), Err(Error::Dtype));
    refuse(of(Dtype::F32, 32), of(Dtype::I8, 32), Err(Error::Dtype));
    refuse(of(Dtype::I8, 32), of(Dtype::F32, 32), Err(Error::Dtype));
    refuse(of(Dtype::F32, 32), of(Dtype::Bool8, 32), Err(Error::Dtype));
    refuse(of(Dtype::F32, 32), of(Dtype::F16, 31), Err(Error::Shape));
    refuse(of(Dtype::F32, 32), layout(Dtype::F16, [1, 4, 1], 32, [0; 3]), Err(Error::Shape));
    refuse(Layout { stride_dim: 8, ..of(Dtype::F32, 8) }, of(Dtype::F16, 8), Err(Error::Stride));
    let both = layout(Dtype::F16, [1, 1, 4], 8, [0; 3]);
    // SAFETY: as many bytes, which outlive the views.
    let (src, dst) = unsafe {
        (View::new(y.as_ptr().cast(), both).unwrap(), ViewMut::new(y.as_mut_ptr().cast(), both).unwrap())
    };
    assert_eq!(Round::new(src, dst).map(|_| ()), Err(Error::Overlap));
}

/// Every number of 8 bits, what is halfway between neighbours, and the numbers next to that, of
/// every type that can say them; every 16-bit number.
#[test]
fn numbers_of_8_bits_are_rounded_to_nearest_even() {
    for to in F8 {
        let mut numbers =
            vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 464.0, 61440.0, 1e9, 1e38];
        numbers.extend([f32::MIN_POSITIVE, 1e-40, f32::from_bits(1), f32::from_bits(0x7f80_0001)]);
        let all: Vec<f32> =
            (0..0x80).map(|bits| f8::value(to, bits) as f32).filter(|x| x.is_finite()).collect();
        for (i, &x) in all.iter().enumerate() {
            let middle = (x + all.get(i + 1).unwrap_or(&(2.0 * x))) / 2.0;
            for x in [x, middle] {
                numbers.extend([x, x.next_up(), x.next_down().max(0.0)]);
            }
            // By the definition, and not by what the reference takes for the nearest.
            let even = if i % 2 == 0 { x } else { all.get(i + 1).copied().unwrap_or(x) };
            assert_eq!(
                f8::value(to, f8::nearest(to, middle)) as f32,
                if i + 1 == all.len() { x } else { even }
            );
        }
        numbers.extend(numbers.clone().iter().map(|x| -x));
        let wide = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32());
        let bytes_of = |from: Dtype| -> Vec<u8> {
            let halves = (0..=u16::MAX).flat_map(u16::to_ne_bytes);
            if from == Dtype::F32 { row(from, &numbers) } else { halves.collect() }
        };
        for from in FLOATS {
            let x: Vec<f32> = match from {
                Dtype::F32 => numbers.clone(),
                Dtype::F16 => wide.clone().collect(),
                _ => (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()).collect(),
            };
            let (read, expected) = (bytes_of(from), row(to, &x));
            for kernel in kernel::available() {
                let mut dst = vec![UNTOUCHED; x.len()];
                let of = |dtype| layout(dtype, [1; 3], x.len(), [0; 3]);
                // SAFETY: as many bytes, which outlive the call.
                let src = unsafe { View::new(read.as_ptr(), of(from)).unwrap() };
                let dst_view = ViewMut::of(&mut dst, of(to)).unwrap();
                kernel.round(&Round::new(src, dst_view).unwrap()).unwrap();
                let wrong = (0..x.len()).find(|&i| dst[i] != expected[i]);
                assert_eq!(wrong.map(|i| (x[i], dst[i], expected[i])), None, "{kernel:?}: {from} to {to}");
            }
        }
    }
}

/// Scales, zeros and elements of types of 8 bits that are found, a row and a group of channels
/// each, against plain loops.
#[test]
fn scales_of_8_bits_are_found() {
    let random = &mut Random(3);
    for (dtype, dim, group) in [Dtype::U8, F8[0], F8[1]].into_iter().flat_map(|dtype| {
        [(96, 96), (70, 70), (64, 32), (50, 3), (33, 1), (40, 17)].map(|(dim, group)| (dtype, dim, group))
    }) {
        let tokens = 64;
        let x = numbers(tokens * dim, random);
        let groups = dim.div_ceil(group);
        let (mut scales, mut zeros) = (vec![7f32; tokens * groups], vec![7f32; tokens * groups]);
        for kernel in kernel::available() {
            let mut stored = vec![UNTOUCHED; tokens * dim];
            let quant = QuantMut {
                scale: ArrayMut::of(&mut scales),
                zero: (dtype == Dtype::U8).then(|| ArrayMut::of(&mut zeros)),
                stride: [0, 0, groups, 1],
                group: [1, group],
            };
            let of = |dtype| layout(dtype, [1, 1, tokens], dim, [0; 3]);
            let src = View::of(&x, of(Dtype::F32)).unwrap();
            let dst = ViewMut::of(&mut stored, of(dtype)).unwrap();
            kernel.quantize(&mut Quantize::new(src, dst, None, quant).unwrap()).unwrap();
            for (i, x) in x.chunks(dim).flat_map(|row| row.chunks(group)).enumerate() {
                let least = x.iter().fold(f32::INFINITY, |m, &x| m.min(x));
                let most = x.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
                let limit = if dtype == F8[0] { 448.0 } else { 57_344.0 };
                let (mut scale, mut zero, mut constant) = (most.max(-least) / limit, 0.0, None);
                if dtype == Dtype::U8 {
                    let range = most - least;
                    scale = if range < f32::INFINITY {
                        range / 255.0
                    } else {
                        (most * 0.5 - least * 0.5) / 127.5
                    };
                    zero = (-least / scale).round_ties_even();
                }
                if x.iter().any(|x| !x.is_finite()) {
                    (scale, zero, constant) = (f32::NAN, 0.0, Some(0));
                } else if scale < f32::MIN_POSITIVE {
                    let is_u8 = dtype == Dtype::U8;
                    (scale, zero, constant) =
                        if is_u8 { (least + 0.0, 0.0, Some(1)) } else { (0.0, 0.0, Some(0)) };
                }
                let what = format!("{kernel:?}, {dtype}, {dim}, group {i} of {group}");
                assert!(
                    scales[i].to_bits() == scale.to_bits() || scale.is_nan() && scales[i].is_nan(),
                    "{what}"
                );
                assert!(dtype != Dtype::U8 || zeros[i] == zero, "{what}: zero {} is not {zero}", zeros[i]);
                let row = &stored[i / groups * dim + i % groups * group..][..x.len()];
                for (x, &got) in x.iter().zip(row) {
                    let expected = constant.unwrap_or_else(|| match dtype {
                        Dtype::U8 => (x / scale + zero).round_ties_even() as u8,
                        _ => f8::nearest(dtype, x / scale),
                    });
                    let is_zero = |bits: u8| dtype.is_f8() && bits & 0x7f == 0;
                    assert!(
                        got == expected || (is_zero(got) && is_zero(expected)),
                        "{what}: {x}: {got:#x}, not {expected:#x}"
                    );
                }
            }
        }
    }
}

/// Scales and fractions that are found, a row and a group of channels each, against plain loops.
#[test]
fn scales_of_fractions_are_found() {
    let random = &mut Random(5);
    for (dim, group) in [(96, 96), (70, 70), (64, 32), (50, 3), (33, 1), (40, 17)] {
        let tokens = 64;
        let mut x = numbers(tokens * dim, random);
        // Next to the largest number no scale would be finite.
        x[..dim].fill(f32::MAX);
        let groups = dim.div_ceil(group);
        for kernel in kernel::available() {
            let mut scales = vec![7f32; tokens * groups];
            let mut stored = vec![0x7a7ai16; tokens * dim + 1];
            let quant = QuantMut {
                scale: ArrayMut::of(&mut scales),
                zero: None,
                stride: [0, 0, groups, 1],
                group: [1, group],
            };
            let of = |dtype| layout(dtype, [1, 1, tokens], dim, [0; 3]);
            let src = View::of(&x, of(Dtype::F32)).unwrap();
            let dst = ViewMut::of(&mut stored, of(Dtype::Q15)).unwrap();
            kernel.quantize(&mut Quantize::new(src, dst, None, quant).unwrap()).unwrap();
            assert_eq!(stored.pop(), Some(0x7a7a), "{kernel:?}: wrote behind the last row");
            for (i, x) in x.chunks(dim).flat_map(|row| row.chunks(group)).enumerate() {
                let what = format!("{kernel:?}, {dim}, group {i} of {group}");
                let row = &stored[i / groups * dim + i % groups * group..][..x.len()];
                let step = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 32_767.0;
                if x.iter().any(|x| !x.is_finite()) {
                    assert!(scales[i].is_nan() && row.iter().all(|&x| x == 0), "{what}");
                } else if step < f32::MIN_POSITIVE {
                    assert!(scales[i] == 0.0 && row.iter().all(|&x| x == 0), "{what}");
                } else {
                    assert_eq!(scales[i], (step * 32_768.0).min(f32::MAX), "{what}");
                    for (x, &got) in x.iter().zip(row) {
                        assert_eq!(got, (x / step).round_ties_even() as i16, "{what}: {x}");
                        let is = f64::from(got) / 32_768.0 * f64::from(scales[i]);
                        let most = f64::from(step) * 0.51 + f64::from(x.abs()) * 4e-5;
                        assert!((is - f64::from(*x)).abs() <= most, "{what}: {x} became {is}");
                    }
                }
            }
        }
    }
}

/// Where rows of a cache lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Dense,
    Ragged,
    Paged,
}

/// How 8-bit elements of a cache have scales.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scaled {
    /// Each token and head, groups of so many channels.
    Own {
        group: usize,
        zeros: bool,
    },
    /// Those of a channel of a head, in each entry of the cache.
    Given,
    No,
}

/// K or V: a cache, its scales, and the new rows.
struct Half {
    dtype: Dtype,
    from: Dtype,
    dim: usize,
    scaled: Scaled,
    layout: Layout,
    data: Vec<u8>,
    scale: Vec<f32>,
    zero: Vec<f32>,
    new_layout: Layout,
    x: Vec<f32>,
    new: Vec<u8>,
}

fn number_of(dtype: Dtype) -> i32 {
    use flash_attention::capi::tensor::fa_dtype::*;
    (match dtype {
        Dtype::F32 => FA_DTYPE_F32,
        Dtype::F16 => FA_DTYPE_F16,
        Dtype::Bf16 => FA_DTYPE_BF16,
        Dtype::I8 => FA_DTYPE_I8,
        Dtype::Q8_0 => FA_DTYPE_Q8_0,
        Dtype::Bool8 => FA_DTYPE_BOOL8,
        Dtype::Q4_0 => FA_DTYPE_Q4_0,
        Dtype::Q4_1 => FA_DTYPE_Q4_1,
        Dtype::Q5_0 => FA_DTYPE_Q5_0,
        Dtype::Q5_1 => FA_DTYPE_Q5_1,
        Dtype::Iq4Nl => FA_DTYPE_IQ4_NL,
        Dtype::F8E4M3 => FA_DTYPE_F8_E4M3,
        Dtype::F8E5M2 => FA_DTYPE_F8_E5M2,
        Dtype::U8 => FA_DTYPE_U8,
        Dtype::Q15 => FA_DTYPE_Q15,
    }) as i32
}

fn tensor(data: *const u8, layout: &Layout) -> fa_tensor {
    let stride = layout.stride.map(|stride| stride as i64);
    fa_tensor { data: data.cast_mut().cast(), stride, dtype: number_of(layout.dtype), ..fa_tensor::NONE }
}

impl Half {
    fn new(cache: [usize; 3], new: [usize; 3], random: &mut Random) -> Half {
        let pick = |random: &mut Random, n: usize| random.below(n);
        let from = FLOATS[pick(random, 3)];
        let scaled = [Dtype::I8, Dtype::I8, Dtype::U8, Dtype::U8, F8[0], F8[1], Dtype::Q15, Dtype::Q15];
        let dtype = [&FLOATS[..], &BLOCKS[..], &scaled[..]].concat()[pick(random, 17)];
        let dim = if dtype.has_blocks() { 32 * (1 + pick(random, 3)) } else { 1 + pick(random, 70) };
        let scaled = match (dtype, pick(random, 4)) {
            _ if !dtype.takes_scales() => Scaled::No,
            (_, 0) => Scaled::No,
            (_, 1) => Scaled::Given,
            (Dtype::I8, _) => Scaled::Own { group: 1 + pick(random, dim), zeros: pick(random, 2) == 0 },
            _ => Scaled::Own { group: 1 + pick(random, dim), zeros: dtype == Dtype::U8 },
        };
        let gaps = [pick(random, 3), pick(random, 3), pick(random, 3)];
        let mut of_cache = layout(dtype, cache, dim, gaps);
        if pick(random, 2) == 0 {
            // Tokens first.
            let row = dtype.row_bytes(dim).unwrap() + gaps[0] * dtype.unit();
            let token = cache[1] * row;
            of_cache.stride = [cache[2] * token, row, token];
        }
        let new_layout = layout(from, new, dim, [gaps[2], gaps[0], gaps[1]]);
        let x: Vec<f32> =
            numbers(new.iter().product::<usize>() * dim, random).iter().map(|&x| stored(from, x)).collect();
        let mut bytes_of_new = vec![0xffu8; bytes(&new_layout)];
        for (x, at) in x.chunks(dim).zip(rows(&new_layout)) {
            let read = row(from, x);
            bytes_of_new[at..][..read.len()].copy_from_slice(&read);
        }
        let groups = cache.iter().product::<usize>() * dim;
        let scale = match scaled {
            Scaled::Given => {
                random.normals(cache[0] * cache[1] * dim).iter().map(|x| x.abs() * 0.02 + 1e-3).collect()
            }
            _ => vec![-7.0; groups],
        };
        let zero = match scaled {
            Scaled::Given => {
                random.normals(cache[0] * cache[1] * dim).iter().map(|x| (x * 9.0).round()).collect()
            }
            _ => vec![-7.0; groups],
        };
        let data = vec![UNTOUCHED; bytes(&of_cache)];
        Half {
            dtype,
            from,
            dim,
            scaled,
            layout: of_cache,
            data,
            scale,
            zero,
            new_layout,
            x,
            new: bytes_of_new,
        }
    }

    fn stride(&self) -> [usize; 4] {
        let [_, heads, tokens] = self.layout.extent;
        match self.scaled {
            Scaled::Own { group, .. } => {
                let groups = self.dim.div_ceil(group);
                [heads * tokens * groups, tokens * groups, groups, 1]
            }
            Scaled::Given => [heads * self.dim, self.dim, 0, 1],
            Scaled::No => [0; 4],
        }
    }

    fn quant(&self) -> fa_quant {
        let (group, zeros) = match self.scaled {
            Scaled::Own { group, zeros } => (group, zeros),
            _ => (1, self.dtype.takes_zeros()),
        };
        fa_quant {
            scale: self.scale.as_ptr(),
            zero: if zeros { self.zero.as_ptr() } else { std::ptr::null() },
            stride: self.stride().map(|stride| stride as i64),
            group_tokens: 1,
            group_dims: group as i32,
        }
    }

    /// Writes row `from` of the new ones to a place of the cache, as a program would by itself.
    fn by_hand(&mut self, from: [usize; 3], to: [usize; 3]) {
        let [_, heads, tokens] = self.new_layout.extent;
        let x = &self.x[((from[0] * heads + from[1]) * tokens + from[2]) * self.dim..][..self.dim];
        let place: usize = (0..3).map(|axis| to[axis] * self.layout.stride[axis]).sum();
        let stride = self.stride();
        let at: usize = (0..3).map(|axis| to[axis] * stride[axis]).sum();
        let written = match (self.dtype, self.scaled) {
            (dtype, Scaled::Own { group, zeros }) => {
                let groups = self.dim.div_ceil(group);
                let mut bytes = vec![0u8; self.dim * dtype.block_bytes()];
                let quant = fa_quant {
                    scale: self.scale[at..].as_ptr(),
                    zero: if zeros { self.zero[at..].as_ptr() } else { std::ptr::null() },
                    stride: [0, 0, 0, 1],
                    group_tokens: 1,
                    group_dims: group as i32,
                };
                assert!(at + groups <= self.scale.len());
                let row =
                    |dtype| Layout { dtype, extent: [1; 3], dim: self.dim, stride: [0; 3], stride_dim: 0 };
                let (src, dst) =
                    (tensor(x.as_ptr().cast(), &row(Dtype::F32)), tensor(bytes.as_mut_ptr(), &row(dtype)));
                let dst = fa_tensor { quant: &raw const quant, ..dst };
                // SAFETY: tensors and scales of these sizes.
                let status = unsafe { fa_quantize(&raw const src, 1, 1, 1, self.dim as i64, &raw const dst) };
                assert_eq!(status, fa_status::FA_OK);
                bytes
            }
            (Dtype::Q15, Scaled::Given) => {
                let given = x.iter().zip(&self.scale[at..]);
                given.flat_map(|(x, scale)| fraction(x / scale).to_ne_bytes()).collect()
            }
            (dtype, scaled) if dtype.takes_scales() && dtype != Dtype::Q15 => {
                let given = |list: &[f32], d, none| if scaled == Scaled::Given { list[at + d] } else { none };
                let of = |(d, x): (usize, &f32)| {
                    let x = x / given(&self.scale, d, 1.0);
                    if dtype.is_f8() {
                        return f8::nearest(dtype, x);
                    }
                    let x = (x + given(&self.zero, d, 0.0)).round_ties_even();
                    match dtype {
                        _ if x.is_nan() => 0,
                        Dtype::U8 => x.clamp(0.0, 255.0) as u8,
                        _ => x.clamp(-128.0, 127.0) as i8 as u8,
                    }
                };
                x.iter().enumerate().map(of).collect()
            }
            _ => row(self.dtype, x),
        };
        self.data[place..][..written.len()].copy_from_slice(&written);
    }
}

/// Random caches of all kinds, with random strides: what is appended is what a program writes by
/// itself, and nothing else changes.
#[test]
fn appended_tokens_are_as_if_quantised_and_copied() {
    let random = &mut Random(11);
    for round in 0..600 {
        let kind = [Kind::Dense, Kind::Ragged, Kind::Paged][round % 3];
        let (batch, heads) = (1 + random.below(4), 1 + random.below(3));
        let (ragged_new, with_list) = (random.below(2) == 0, random.below(2) == 0);
        let most_new = 1 + random.below(9);
        let counts: Vec<usize> =
            (0..batch).map(|_| if ragged_new { random.below(most_new + 1) } else { most_new }).collect();
        // Keys in use, which count the new tokens, and where these begin.
        let lens: Vec<usize> = counts.iter().map(|n| n + random.below(20)).collect();
        let starts: Vec<usize> = (0..batch)
            .map(|b| if with_list { random.below(lens[b] - counts[b] + 1) } else { lens[b] - counts[b] })
            .collect();
        let len_kv = lens.iter().max().unwrap() + random.below(3);
        let page_size = 1 + random.below(6);
        let pages = len_kv.div_ceil(page_size);
        let num_pages = batch * pages + 2;
        let mut free: Vec<i32> = (0..num_pages as i32).collect();
        for i in (1..free.len()).rev() {
            free.swap(i, random.below(i + 1));
        }
        let sums = |counts: &[usize]| {
            let mut sum = 0;
            let rest = counts.iter().map(move |&n| {
                sum += n as i32;
                sum
            });
            std::iter::once(0).chain(rest).collect::<Vec<i32>>()
        };
        let (cu_q, cu_kv) = (sums(&counts), sums(&lens));
        let cache = match kind {
            Kind::Dense => [batch, heads, len_kv],
            Kind::Ragged => [1, heads, *cu_kv.last().unwrap() as usize],
            Kind::Paged => [num_pages, heads, page_size],
        };
        let new =
            if ragged_new { [1, heads, *cu_q.last().unwrap() as usize] } else { [batch, heads, most_new] };
        let mut halves = [Half::new(cache, new, random), Half::new(cache, new, random)];
        let integers = |list: &[usize]| list.iter().map(|&n| n as i32).collect::<Vec<_>>();
        let (kv_lens, positions) = (integers(&lens), integers(&starts));

        let mut a = std::mem::MaybeUninit::<fa_attention>::uninit();
        // SAFETY: room for the description, which the call initialises.
        let mut a = unsafe {
            assert_eq!(fa_attention_init(a.as_mut_ptr(), size_of::<fa_attention>()), fa_status::FA_OK);
            a.assume_init()
        };
        (a.batch, a.heads_kv, a.len_q, a.len_kv) =
            (batch as i64, heads as i64, most_new as i64, len_kv as i64);
        (a.dim_qk, a.dim_v) = (halves[0].dim as i64, halves[1].dim as i64);
        a.kv_lens = kv_lens.as_ptr();
        if ragged_new {
            a.cu_len_q = cu_q.as_ptr();
        }
        if with_list {
            a.q_positions = positions.as_ptr();
        }
        match kind {
            Kind::Dense => {}
            Kind::Ragged => a.cu_len_kv = cu_kv.as_ptr(),
            Kind::Paged => {
                a.block_table = free.as_ptr();
                (a.table_stride, a.page_size, a.num_pages) =
                    (pages as i64, page_size as i64, num_pages as i64);
            }
        }
        let quants = [halves[0].quant(), halves[1].quant()];
        let of = |i: usize| {
            let cache = tensor(halves[i].data.as_ptr(), &halves[i].layout);
            let quant = if halves[i].scaled == Scaled::No { std::ptr::null() } else { &raw const quants[i] };
            (fa_tensor { quant, ..cache }, tensor(halves[i].new.as_ptr(), &halves[i].new_layout))
        };
        let ((k, new_k), (v, new_v)) = (of(0), of(1));
        (a.k, a.v) = (k, v);
        let both = round % 5 != 0;
        let new_v = if both { &raw const new_v } else { std::ptr::null() };
        let mut why = [0u8; 200];
        // SAFETY: description, tensors and lists are of these sizes.
        let status = unsafe {
            fa_cache_append(&raw const a, &raw const new_k, new_v, why.as_mut_ptr().cast(), why.len())
        };
        let words = String::from_utf8_lossy(&why);
        assert_eq!(status, fa_status::FA_OK, "{words}");
        assert_eq!(why[0], 0);

        for (i, half) in halves.iter_mut().enumerate() {
            let got = (half.data.clone(), half.scale.clone(), half.zero.clone());
            half.data.fill(UNTOUCHED);
            if half.scaled != Scaled::Given {
                half.scale.fill(-7.0);
                half.zero.fill(-7.0);
            }
            for b in (0..batch).filter(|_| i == 0 || both) {
                for t in 0..counts[b] {
                    let key = starts[b] + t;
                    let (entry, place) = match kind {
                        Kind::Dense => (b, key),
                        Kind::Ragged => (0, cu_kv[b] as usize + key),
                        Kind::Paged => (free[b * pages + key / page_size] as usize, key % page_size),
                    };
                    let from = if ragged_new { [0, cu_q[b] as usize + t] } else { [b, t] };
                    for h in 0..heads {
                        half.by_hand([from[0], h, from[1]], [entry, h, place]);
                    }
                }
            }
            let what = format!("{round}: {kind:?}, {} from {}, {:?}", half.dtype, half.from, half.scaled);
            assert!(got.0 == half.data, "{what}");
            let alike = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
            };
            assert!(alike(&got.1, &half.scale) && alike(&got.2, &half.zero), "{what}: scales");
        }
    }
}

/// A cache in pages and one of 8-bit integers through slices, and what does not fit.
#[test]
fn slices_are_written_alike() {
    let (heads, dim, page, pages) = (2, 64, 4, 5);
    let random = &mut Random(5);
    let x = random.normals(3 * heads * dim);
    // [page][head][token][dim]; sequences of 6 and 3 keys, of which 2 and 1 are new.
    let (table, lens, starts) = ([3, 1, 4, 0], [6, 3], [0, 2, 3]);
    let mut k = vec![0u8; pages * heads * page * 2 * 22];
    let mut v = vec![0i8; pages * heads * page * dim];
    let mut scales = vec![0f32; pages * heads * page];
    let mut by_hand = k.clone();
    let rows = Tensor::token_first(&x, [1, 3, heads, dim]);
    Append::new(
        TensorMut::head_first(DataMut::Q5_0(&mut k), [pages, heads, page, dim]),
        rows,
        TensorMut::head_first(DataMut::I8(&mut v), [pages, heads, page, dim]).scale_per_token(&mut scales),
        rows,
    )
    .kv_lens(&lens)
    .cu_len_q(&starts)
    .pages(&table, 8)
    .run()
    .unwrap();
    for (token, (of_page, at)) in [(1, 0), (1, 1), (4, 2)].into_iter().enumerate() {
        for h in 0..heads {
            let x = &x[(token * heads + h) * dim..][..dim];
            let place = (of_page * heads + h) * page + at;
            by_hand[place * 44..][..44].copy_from_slice(&row(Dtype::Q5_0, x));
            let (mut integers, mut scale) = (vec![0i8; dim], [0f32]);
            let dst =
                TensorMut::head_first(DataMut::I8(&mut integers), [1, 1, 1, dim]).scale_per_token(&mut scale);
            quantize(Tensor::head_first(x, [1, 1, 1, dim]), dst).unwrap();
            assert_eq!(scale[0], x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0);
            assert!(
                v[place * dim..][..dim] == integers && scales[place] == scale[0],
                "token {token}, head {h}"
            );
            v[place * dim..][..dim].fill(0);
            scales[place] = 0.0;
            // Given, the same scales make the same integers.
            let mut again = vec![0i8; dim];
            let dst = TensorMut::head_first(DataMut::I8(&mut again), [1, 1, 1, dim]);
            quantize(Tensor::head_first(x, [1, 1, 1, dim]), dst.scales_given(Quant::per_tensor(&scale[0])))
                .unwrap();
            assert_eq!(again, integers);
        }
    }
    assert!(k == by_hand && v.iter().all(|&x| x == 0) && scales.iter().all(|&x| x == 0.0));

    let mut refuse = |lens: &[i32], table: &[i32], of_scales: Option<[usize; 4]>, error| {
        let mut scales = vec![0f32; 64];
        let mut cache = TensorMut::head_first(DataMut::I8(&mut v), [pages, heads, page, dim]);
        if let Some(stride) = of_scales {
            let scale = ArrayMut::of(&mut scales);
            cache = cache.quantised(QuantMut { scale, zero: None, stride, group: [1; 2] });
        }
        let found = Append::keys(cache, rows).kv_lens(lens).cu_len_q(&starts).pages(table, 8).run();
        assert_eq!(found.map_err(Error::from), error, "{lens:?}, {table:?}, {of_scales:?}");
    };
    let own = Some([heads * page, page, 1, 0]);
    refuse(&lens, &table, own, Ok(()));
    refuse(&lens, &table, None, Ok(()));
    refuse(&[1, 3], &table, own, Err(Error::Lengths));
    refuse(&[9, 3], &table, own, Err(Error::Lengths));
    refuse(&lens, &[3, 5, 4, 0], own, Err(Error::Page));
    refuse(&lens, &table[..2], own, Err(Error::Lengths));
    refuse(&lens, &table[..3], own, Err(Error::Shape));
    refuse(&lens, &table, Some([1, 0, 0, 0]), Err(Error::Shape));
    refuse(&lens, &table, Some([heads * page, page, 0, 0]), Err(Error::Shape));
    refuse(&lens, &table, Some([9 * heads * page, page, 1, 0]), Err(Error::Shape));
    refuse(&lens, &table, Some([heads * page, 1, 1, 0]), Err(Error::Stride));
    // One row that is repeated more often than there are positions.
    for many in [usize::MAX / 2 + 1, usize::MAX, usize::MAX / 2] {
        let mut few = [0u16; 4 * 64];
        let cache = TensorMut::head_first(DataMut::F16(&mut few), [1, 1, 4, dim]);
        let new = Tensor::head_first(&x, [1, 1, many, dim]).strides(0, 0, 0);
        let found = Append::keys(cache, new).run().map_err(Error::from);
        // Positions have 64 bits everywhere.
        let expected = if i64::try_from(many).is_err() { Error::Overflow } else { Error::Lengths };
        assert_eq!(found, Err(expected), "{many}");
    }
    let mut scale = [0f32];
    let mut bytes = vec![0u8; dim];
    let unsigned = TensorMut::head_first(DataMut::U8(&mut bytes), [1, 1, 1, dim]).scale_per_token(&mut scale);
    let found = quantize(Tensor::head_first(&x[..dim], [1, 1, 1, dim]), unsigned).unwrap_err();
    assert!(found.to_string().contains("dst.quant.zero"), "{found}");
    assert_eq!(Error::from(found), Error::Null);
    let mut zero = [0f32];
    let quant = QuantMut {
        scale: ArrayMut::of(&mut scale),
        zero: Some(ArrayMut::of(&mut zero)),
        stride: [0; 4],
        group: [1; 2],
    };
    let floats = TensorMut::head_first(DataMut::F8E4M3(&mut bytes), [1, 1, 1, dim]).quantised(quant);
    let found = quantize(Tensor::head_first(&x[..dim], [1, 1, 1, dim]), floats).unwrap_err();
    assert!(found.to_string().contains("no zero points"), "{found}");
    assert_eq!(Error::from(found), Error::Dtype);
    let mut out = vec![0i8; dim];
    fn dst(data: DataMut) -> TensorMut {
        TensorMut::head_first(data, [1, 1, 1, 64])
    }
    let from = Tensor::head_first(&x[..dim], [1, 1, 1, dim]);
    assert_eq!(quantize(from, dst(DataMut::I8(&mut out))).map_err(Error::from), Err(Error::Dtype));
    let mut few = vec![0u16; dim - 1];
    assert_eq!(quantize(from, dst(DataMut::F16(&mut few))).map_err(Error::from), Err(Error::Shape));
    let mut scale = [0f32];
    let floats = dst(DataMut::Bf16(&mut few)).scale_per_token(&mut scale);
    assert_eq!(quantize(from, floats).map_err(Error::from), Err(Error::Dtype));
}
