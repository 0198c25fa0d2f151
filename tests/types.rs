//! Storage types: read exactly, written rounded once, whatever the instruction set and the path.

mod common;
#[path = "common/store.rs"]
mod store;

use common::{Inputs, Size, kernels, relative_rms, run, same_bits};
use flash_attention::dtype::Dtype;
use flash_attention::problem::{Position, Problem, Semantics, Tensors, Window};
use flash_attention::reference;
use flash_attention::view::{Array, Layout, Quant, View, ViewMut};
use half::{bf16, f16};
use store::{encode, f8};

/// What attention of 20 rows over one key makes of its values: themselves.
fn copied(dtype: Dtype, values: &[u8], out: Dtype, mut check: impl FnMut(&[u8], &str)) {
    let dim = values.len() / dtype.block_bytes() * dtype.block();
    let rows = 20;
    let layout = |dtype, rows, dim| Layout::dense(dtype, 1, rows, dim).unwrap();
    // Zeros are zeros in every type.
    let (q, k) = (vec![1f32; rows * dtype.block()], vec![0u8; dtype.block_bytes()]);
    for kernel in kernels(dtype) {
        let row = dim * out.block_bytes();
        let mut o = vec![0xa5u8; rows * row];
        // SAFETY: as many bytes, which outlive the problem.
        let (k, v, o_view) = unsafe {
            let k = View::new(k.as_ptr(), layout(dtype, 1, dtype.block())).unwrap();
            let v = View::new(values.as_ptr(), layout(dtype, 1, dim)).unwrap();
            (k, v, ViewMut::new(o.as_mut_ptr(), layout(out, rows, dim)).unwrap())
        };
        let q = View::of(&q, layout(Dtype::F32, rows, dtype.block())).unwrap();
        let tensors = Tensors::new(q, k, v, o_view);
        run(&mut Problem::new(tensors, Semantics::with_scale(1.0)).unwrap(), kernel, 1).unwrap();
        for o in o.chunks(row) {
            check(o, &format!("{kernel:?}, {dtype:?} as {out:?}"));
        }
    }
}

fn bytes<T: Copy, const N: usize>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&x| to(x)).collect()
}

fn floats(o: &[u8]) -> impl Iterator<Item = f32> {
    o.chunks(4).map(|x| f32::from_ne_bytes(x.try_into().unwrap()))
}

/// Zeros have one sign in outputs, and NaN any bits.
fn same(got: f32, expected: f32) -> bool {
    got == expected || (got.is_nan() && expected.is_nan())
}

#[test]
fn every_16_bit_number_is_read_exactly() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let data = bytes(&all, u16::to_ne_bytes);
    copied(Dtype::F16, &data, Dtype::F32, |o, how| {
        for (&bits, x) in all.iter().zip(floats(o)) {
            assert!(same(x, f16::from_bits(bits).to_f32()), "{how}: {bits:#x} is not {x}");
        }
    });
    copied(Dtype::Bf16, &data, Dtype::F32, |o, how| {
        for (&bits, x) in all.iter().zip(floats(o)) {
            let exact = bf16::from_bits(bits).to_f32();
            // Instructions that multiply bfloat16 take subnormal numbers for 0.
            let is_flushed = how.contains("-bf16-") && exact.abs() < f32::MIN_POSITIVE && x == 0.0;
            assert!(same(x, exact) || is_flushed, "{how}: {bits:#x} is not {x}");
        }
    });
}

#[test]
fn every_8_bit_number_is_read_exactly() {
    let all: Vec<i8> = (i8::MIN..=i8::MAX).collect();
    copied(Dtype::I8, &bytes(&all, i8::to_ne_bytes), Dtype::F32, |o, how| {
        // Integers divide what is 255 times the number by 255.
        let ulps = if how.contains("-i8-Prefill") { 2.0 * f32::EPSILON } else { 0.0 };
        for (&exact, x) in all.iter().zip(floats(o)) {
            let exact = f32::from(exact);
            assert!((x - exact).abs() <= ulps * exact.abs(), "{how}: {exact} is not {x}");
        }
    });
}

#[test]
fn every_unsigned_number_is_read_exactly() {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    copied(Dtype::U8, &all, Dtype::F32, |o, how| {
        // Integers are 128 less, and then 128 more.
        let error = if how.contains("-i8-Prefill") { 256.0 * f32::EPSILON } else { 0.0 };
        for (&exact, x) in all.iter().zip(floats(o)) {
            let exact = f32::from(exact);
            assert!((x - exact).abs() <= error, "{how}: {exact} is not {x}");
        }
    });
}

#[test]
fn every_floating_point_number_of_8_bits_is_read_exactly() {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    for dtype in [Dtype::F8E4M3, Dtype::F8E5M2] {
        copied(dtype, &all, Dtype::F32, |o, how| {
            for (&bits, x) in all.iter().zip(floats(o)) {
                let exact = f8::value(dtype, bits) as f32;
                assert!(same(x, exact), "{how}: {bits:#x}, {exact}, is not {x}");
            }
        });
        // Of rows of any length, and one element at a time.
        for dim in (1..70).chain([127, 200]) {
            let row: Vec<u8> = (0..dim).map(|i| (i * 37 + dim) as u8).collect();
            copied(dtype, &row, Dtype::F32, |o, how| {
                for (&bits, x) in row.iter().zip(floats(o)) {
                    assert!(
                        same(x, f8::value(dtype, bits) as f32),
                        "{how}, {dim} elements: {bits:#x} is not {x}"
                    );
                }
            });
            let view = View::of(&row, Layout::dense(dtype, 1, 1, dim).unwrap()).unwrap();
            for (bits, x) in row.iter().zip(view.get_row(0, 0, 0)) {
                assert!(same(x as f32, f8::value(dtype, *bits) as f32), "{dtype}: {bits:#x} is not {x}");
            }
        }
    }
}

#[test]
fn every_fraction_is_read_exactly() {
    let all: Vec<i16> = (i16::MIN..=i16::MAX).collect();
    copied(Dtype::Q15, &bytes(&all, i16::to_ne_bytes), Dtype::F32, |o, how| {
        for (&exact, x) in all.iter().zip(floats(o)) {
            assert_eq!(x, f32::from(exact) / 32_768.0, "{how}: {exact}");
        }
    });
    // Of rows of any length, and one element at a time.
    for dim in (1..70).chain([127, 200]) {
        let row: Vec<i16> = (0..dim).map(|i| (i * 7919 + dim * 257) as i16).collect();
        copied(Dtype::Q15, &bytes(&row, i16::to_ne_bytes), Dtype::F32, |o, how| {
            for (&exact, x) in row.iter().zip(floats(o)) {
                assert_eq!(x, f32::from(exact) / 32_768.0, "{how}, {dim} elements: {exact}");
            }
        });
        let view = View::of(&row, Layout::dense(Dtype::Q15, 1, 1, dim).unwrap()).unwrap();
        for (&exact, x) in row.iter().zip(view.get_row(0, 0, 0)) {
            assert_eq!(x, f64::from(exact) / 32_768.0);
        }
    }
}

/// A block of ggml is its scale, least significant byte first, and then the integers.
#[test]
fn blocks_of_ggml_are_read_exactly() {
    let scales = [0x3800u16, 0xc000, 0x0001, 0x7bff];
    let mut data = Vec::new();
    for (block, scale) in scales.into_iter().enumerate() {
        data.extend(scale.to_le_bytes());
        data.extend((0..32u8).map(|i| (i * 8 + block as u8) ^ 0x80));
    }
    assert_eq!(data.len(), 4 * 34);
    copied(Dtype::Q8_0, &data, Dtype::F32, |o, how| {
        for (i, x) in floats(o).enumerate() {
            let scale = [0.5, -2.0, 2f32.powi(-24), 65504.0][i / 32];
            let integer = (i % 32) as i32 * 8 + (i / 32) as i32 - 128;
            assert_eq!(x, scale * integer as f32, "{how}: {i}");
        }
    });
}

/// Of each format of 4 or 5 bits: every code in the low and in the high half of a block, with
/// scales and minima of both signs.
#[test]
fn blocks_of_few_bits_are_read_exactly() {
    let scales = [0x3800u16, 0xc000, 0x0001, 0x7bff];
    let minima = [0xb400u16, 0x0000, 0x4248, 0x0203];
    let formats =
        [(Dtype::Q4_0, 18), (Dtype::Q4_1, 20), (Dtype::Q5_0, 22), (Dtype::Q5_1, 24), (Dtype::Iq4Nl, 18)];
    for (dtype, bytes) in formats {
        assert_eq!([dtype.block(), dtype.block_bytes()], [32, bytes], "{dtype}");
        let has_minimum = [Dtype::Q4_1, Dtype::Q5_1].contains(&dtype);
        let has_fifth = [Dtype::Q5_0, Dtype::Q5_1].contains(&dtype);
        // The code of element `i` of a block.
        let code = |block: usize, i: usize| (i * 7 + block * 3) % if has_fifth { 32 } else { 16 };
        let mut data = Vec::new();
        for block in 0..4 {
            data.extend(scales[block].to_le_bytes());
            if has_minimum {
                data.extend(minima[block].to_le_bytes());
            }
            if has_fifth {
                let bits = (0..32).map(|i| (code(block, i) as u32 >> 4) << i).sum::<u32>();
                data.extend(bits.to_le_bytes());
            }
            data.extend((0..16).map(|i| (code(block, i) % 16 + code(block, i + 16) % 16 * 16) as u8));
        }
        assert_eq!(data.len(), 4 * bytes);
        copied(dtype, &data, Dtype::F32, |o, how| {
            for (i, x) in floats(o).enumerate() {
                let scale = f16::from_bits(scales[i / 32]).to_f64();
                let minimum = f16::from_bits(minima[i / 32]).to_f64();
                let n = code(i / 32, i % 32);
                let of_sixteen = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
                let exact = match dtype {
                    Dtype::Q4_0 => scale * (n as f64 - 8.0),
                    Dtype::Q5_0 => scale * (n as f64 - 16.0),
                    Dtype::Iq4Nl => scale * f64::from(of_sixteen[n]),
                    _ => scale * n as f64 + minimum,
                };
                // The integers of few rows have minima of their own.
                let near = if has_minimum && how.contains("-Decode") {
                    3e-7 * (exact.abs() + 16.0 * scale.abs())
                } else {
                    0.0
                };
                let error = (f64::from(x) - f64::from(exact as f32)).abs();
                assert!(error <= near, "{dtype}, {how}: element {i} is {x}, not {exact}");
            }
        });
    }
}

/// Two blocks of each type, as ggml's reference functions write the numbers of the test below.
const ENCODED: [(Dtype, &str); 6] = [
    (Dtype::Q4_0, "7bb7bf269c046ad148ae258ce369c137ad15034737ae158be259c0379d047bd248bf268c"),
    (Dtype::Q4_1, "643761c240d962fb952eb751da730c953ec851eaea4603d337ae158ce259c0379d047be248bf269d"),
    (Dtype::Q5_0, "7bb3d54aa5566e5c1908d493805c3b08d6b3817e3b2903432ab552a97f4c2af7c5a2705d2a08e5b3906e4c19"),
    (
        Dtype::Q5_1,
        "273361c22ab55aa980a2d5f72a4c7f91c4e6193b6e80b3d5b14203d32ab55aa97f5d2a08d5b3806e3b19e6c4917f4c2a",
    ),
    (Dtype::Iq4Nl, "89a7cf259d036bd138be158ce25ad027ae14053737ae147ce249c026ae036be138cf159d"),
    (
        Dtype::Q8_0,
        "8a27941eb943de69049f29c44eea740faa34cf5af57f1ab540db65009b25c04be6701137f45cce36a70f81e951c22a9c046cdd45b71f90f860d23aab1385ed55c62ea008",
    ),
];

/// What ggml's reference functions wrote for these numbers.
#[test]
fn numbers_are_encoded_as_by_ggml() {
    let values: Vec<f32> =
        (0..64).map(|i| ((i * 37 % 64) as f32 - 29.0) * if i < 32 { 0.11 } else { -1.7 }).collect();
    for (dtype, expected) in ENCODED {
        let mut blocks = Vec::new();
        flash_attention::dtype::encode::blocks(dtype, &values, &mut blocks);
        let words: String = blocks.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(words, expected, "{dtype}");
    }
}

/// Midpoints of neighbouring 16-bit numbers and what lies next to them; numbers beyond both ends.
#[test]
fn outputs_are_rounded_to_nearest_even() {
    let around = |low: f32, high: f32| {
        let middle = (f64::from(low) + f64::from(high)) as f32 / 2.0;
        [low, f32::from_bits(middle.to_bits() - 1), middle, f32::from_bits(middle.to_bits() + 1)]
    };
    let f16s =
        (1..0x7bffu16).map(|bits| around(f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32()));
    // Of bfloat16 every 5th, as far as f32 is normal: smaller results may be flushed to 0.
    let bf16s = (0x80..0x7f7fu16).step_by(5);
    let bf16s = bf16s
        .map(|bits| around(bf16::from_bits(bits).to_f32() / 2.0, bf16::from_bits(bits + 1).to_f32() / 2.0));
    let bf16s = bf16s.filter(|x| x[0] >= f32::MIN_POSITIVE);
    let mut values: Vec<f32> = f16s.chain(bf16s).flatten().flat_map(|x| [x, -x]).collect();
    values.extend([65519.9, 65520.0, 1e30, 3.4e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-8, 3e-8]);
    let data = bytes(&values, f32::to_ne_bytes);
    let expected = |x: f32| if x == 0.0 { 0.0 } else { x };
    copied(Dtype::F32, &data, Dtype::F16, |o, how| {
        for (x, o) in values.iter().zip(o.chunks(2)) {
            let (got, exact) = (f16::from_ne_bytes(o.try_into().unwrap()), f16::from_f32(*x));
            assert!(same(got.to_f32(), expected(exact.to_f32())), "{how}: {x:e} became {got:e}");
        }
    });
    copied(Dtype::F32, &data, Dtype::Bf16, |o, how| {
        for (x, o) in values.iter().zip(o.chunks(2)) {
            let (got, exact) = (bf16::from_ne_bytes(o.try_into().unwrap()), bf16::from_f32(*x));
            assert!(same(got.to_f32(), expected(exact.to_f32())), "{how}: {x:e} became {got:e}");
        }
    });
}

/// A number as a fraction, rounded to nearest even, and saturated.
fn fraction(x: f64) -> i16 {
    if x.is_nan() { 0 } else { (x * 32_768.0).clamp(-32_768.0, 32_767.0).round_ties_even() as i16 }
}

#[test]
fn fractions_are_rounded_to_nearest_even_and_saturate() {
    // Every one, what is halfway to the next, and the numbers beside that.
    let around = |i: i16| {
        let [exact, middle] = [f32::from(i) / 32_768.0, (f32::from(i) + 0.5) / 32_768.0];
        [exact, middle.next_down(), middle, middle.next_up()]
    };
    let mut values: Vec<f32> = (i16::MIN..=i16::MAX).flat_map(around).collect();
    values.extend([1.0, -1.0, 1e30, -1e30, 3.4e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-30]);
    copied(Dtype::F32, &bytes(&values, f32::to_ne_bytes), Dtype::Q15, |o, how| {
        for (&x, o) in values.iter().zip(o.chunks(2)) {
            let got = i16::from_ne_bytes(o.try_into().unwrap());
            assert_eq!(got, fraction(x.into()), "{how}: {x:e}");
        }
    });
}

/// An output is divided by its scales, whatever shares these, and then rounded.
#[test]
fn outputs_of_fractions_have_scales() {
    let (len_kv, heads) = (3, 2);
    for (len_q, dim) in [(1, 64), (3, 40), (20, 64), (37, 23), (70, 5)] {
        let mut random = common::Random((len_q * dim) as u64);
        let v = random.normals(heads * len_kv * dim);
        let (q, k) = (vec![0f32; heads * len_q], vec![0f32; heads * len_kv]);
        let layout = |dtype, rows, dim| Layout::dense(dtype, heads, rows, dim).unwrap();
        for (stride, group) in [
            ([0, 0, 0, 0], [1, 1]),
            ([0, 1, 0, 0], [1, 1]),
            ([0, len_q, 1, 0], [1, 1]),
            ([0, dim, 0, 1], [1, 1]),
            ([0, dim, 0, 1], [1, 3]),
            ([0, len_q * dim, dim, 1], [2, 4]),
        ] {
            let scales: Vec<f32> = (0..heads * len_q * dim).map(|i| 0.3 + (i % 11) as f32 * 0.37).collect();
            let quant = Quant { scale: Some(Array::of(&scales)), zero: None, stride, group };
            for kernel in kernels(Dtype::F32) {
                let attend = |o: ViewMut| {
                    let of = |data, rows, dim| View::of(data, layout(Dtype::F32, rows, dim)).unwrap();
                    let tensors = Tensors::new(of(&q, len_q, 1), of(&k, len_kv, 1), of(&v, len_kv, dim), o);
                    run(&mut Problem::new(tensors, Semantics::with_scale(1.0)).unwrap(), kernel, 1).unwrap();
                };
                let mut plain = vec![0f32; heads * len_q * dim];
                attend(ViewMut::of(&mut plain, layout(Dtype::F32, len_q, dim)).unwrap());
                let mut o = vec![7i16; heads * len_q * dim];
                let view = ViewMut::of(&mut o, layout(Dtype::Q15, len_q, dim)).unwrap();
                attend(view.quantised(quant).unwrap());
                for (i, (&x, &got)) in plain.iter().zip(&o).enumerate() {
                    let (row, d) = (i / dim, i % dim);
                    let at = row / len_q * stride[1] + row % len_q / group[0] * stride[2];
                    let scale = scales[at + d / group[1] * stride[3]];
                    assert_eq!(got, fraction((x / scale).into()), "{kernel:?}, {stride:?}, {row}, {d}: {x}");
                }
            }
        }
    }
}

/// What fractions as Q, K, V and O cost, against f64 on the same stored numbers: half a step of the
/// output, and what f32 costs.
#[test]
fn errors_of_fractions_stay_within_what_is_documented() {
    for (len_q, len_kv, dim) in [(64, 2048, 64), (96, 500, 128), (40, 333, 65), (1, 8192, 64)] {
        let inputs = Inputs::normal(Size::new(1, len_q, len_kv, dim), 5);
        let stored = [&inputs.q, &inputs.k, &inputs.v].map(|x| encode(Dtype::Q15, x, dim));
        let layout = |rows| Layout::dense(Dtype::Q15, 1, rows, dim).unwrap();
        for kernel in kernels(Dtype::Q15) {
            let mut o = vec![0i16; inputs.size.queries()];
            let view = |which: usize, rows| {
                let (data, scale): &(Vec<u8>, f32) = &stored[which];
                assert!(data.len() >= layout(rows).row_bytes() * rows);
                // SAFETY: as many bytes, which outlive the problem.
                let view = unsafe { View::new(data.as_ptr(), layout(rows)).unwrap() };
                view.quantised(Quant::per_tensor(scale)).unwrap()
            };
            let out = ViewMut::of(&mut o, layout(len_q)).unwrap();
            let tensors = Tensors::new(view(0, len_q), view(1, len_kv), view(2, len_kv), out);
            let mut problem = Problem::new(tensors, inputs.semantics).unwrap();
            let exact = reference::attention(&problem).o;
            run(&mut problem, kernel, 1).unwrap();
            for (&got, &exact) in o.iter().zip(&exact) {
                let error = (f64::from(got) / 32_768.0 - exact.clamp(-1.0, 32_767.0 / 32_768.0)).abs();
                assert!(
                    error <= 0.5 / 32_768.0 + 3e-6,
                    "{kernel:?}, {len_q} x {len_kv} x {dim}: {error:.2e}"
                );
            }
        }
    }
}

/// What `dtype` costs on normal data, against f64 on the same stored numbers: output included,
/// which is of that type, too.
#[test]
fn errors_of_16_bits_stay_within_what_is_documented() {
    for (dtype, bound) in [(Dtype::F16, 5e-4), (Dtype::Bf16, 3e-3)] {
        for (len_q, len_kv, dim) in [(64, 2048, 64), (96, 500, 128), (40, 333, 65), (1, 8192, 64)] {
            let inputs = Inputs::normal(Size::new(1, len_q, len_kv, dim), 5);
            let stored = [&inputs.q, &inputs.k, &inputs.v].map(|x| encode(dtype, x, dim).0);
            let layout = |rows| Layout::dense(dtype, 1, rows, dim).unwrap();
            for kernel in kernels(dtype) {
                let mut o = vec![0u8; inputs.size.queries() * 2];
                // SAFETY: as many bytes, which outlive the problem.
                let (tensors, out) = unsafe {
                    let view = |data: &Vec<u8>, rows| View::new(data.as_ptr(), layout(rows)).unwrap();
                    let [q, k, v] = &stored;
                    let out = View::new(o.as_ptr(), layout(len_q)).unwrap();
                    let o = ViewMut::new(o.as_mut_ptr(), layout(len_q)).unwrap();
                    (Tensors::new(view(q, len_q), view(k, len_kv), view(v, len_kv), o), out)
                };
                let mut problem = Problem::new(tensors, inputs.semantics).unwrap();
                let exact = reference::attention(&problem).o;
                run(&mut problem, kernel, 1).unwrap();
                let got: Vec<f32> = (0..len_q).flat_map(|i| out.get_row(0, 0, i)).map(|x| x as f32).collect();
                let rms = relative_rms(&got, &exact);
                assert!(rms <= bound, "{kernel:?}, {dtype:?}, {len_q} x {len_kv} x {dim}: {rms:.1e}");
            }
        }
    }
}

/// Powers of two may be in queries, in keys or in the scale: no format of 16 bits overflows or
/// loses bits.
#[test]
fn queries_of_any_size_have_the_same_bits() {
    let (len_q, len_kv, dim) = (20, 70, 40);
    let inputs = Inputs::normal(Size::new(1, len_q, len_kv, dim), 12);
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let v = encode(dtype, &inputs.v, dim).0;
        // Queries are 2^of_q times as large as usual, keys 2^of_k times.
        let compute = |kernel, [of_q, of_k]: [i32; 2]| {
            let q: Vec<f32> = inputs.q.iter().map(|x| x * 2f32.powi(of_q)).collect();
            let k: Vec<f32> = inputs.k.iter().map(|x| x.round() * 2f32.powi(of_k)).collect();
            let k = encode(dtype, &k, dim).0;
            let mut o = vec![0f32; len_q * dim];
            // SAFETY: as many bytes, which outlive the problem.
            let [k, v] = [&k, &v].map(|data| unsafe {
                View::new(data.as_ptr(), Layout::dense(dtype, 1, len_kv, dim).unwrap()).unwrap()
            });
            let layout = Layout::dense(Dtype::F32, 1, len_q, dim).unwrap();
            let tensors =
                Tensors::new(View::of(&q, layout).unwrap(), k, v, ViewMut::of(&mut o, layout).unwrap());
            let semantics = Semantics::with_scale(0.3 * 2f32.powi(-of_q - of_k));
            run(&mut Problem::new(tensors, semantics).unwrap(), kernel, 1).unwrap();
            o
        };
        for kernel in kernels(dtype) {
            let usual = compute(kernel, [0, 0]);
            for powers in [[-100, 0], [100, 0], [16, -16], [18, -20], [-12, 12], [-30, 13]] {
                assert!(same_bits(&compute(kernel, powers), &usual), "{kernel:?}: {powers:?}");
            }
        }
    }
}

/// A row's bits do not depend on the rows that it shares tiles and parts with, nor on what it does
/// not see, wherever its first key lies in a group of keys and whatever lies there that is not
/// finite.
#[test]
fn rows_of_16_bits_do_not_depend_on_their_neighbours() {
    let (len_q, len_kv, dim) = (75, 190, 33);
    let inputs = Inputs::normal(Size::new(1, len_q, len_kv, dim), 11);
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| encode(dtype, x, dim).0);
        let row = dim * dtype.block_bytes();
        let layout = |rows| Layout::dense(dtype, 1, rows, dim).unwrap();
        // Into f32, as 16 bits would round differences away. Query `first` and those behind it, in
        // parts of `block_q` rows, a window of 20 keys before each.
        let compute = |kernel, v: &[u8], first: usize, rows: usize, block_q| {
            let mut o = vec![0f32; rows * dim];
            // SAFETY: as many bytes, which outlive the problem.
            let (q, k, v) = unsafe {
                let q = View::new(q[first * row..].as_ptr(), layout(rows)).unwrap();
                let k = View::new(k.as_ptr(), layout(len_kv)).unwrap();
                let v = View::new(v.as_ptr(), layout(len_kv)).unwrap();
                (q, k, v)
            };
            let o_view = ViewMut::of(&mut o, Layout::dense(Dtype::F32, 1, rows, dim).unwrap()).unwrap();
            let tensors = Tensors::new(q, k, v, o_view);
            let window = Window { left: Some(20), right: Some(3) };
            let semantics = Semantics {
                q_pos: Position::At(60 + first as i64),
                window,
                block_q,
                block_kv: 51,
                ..inputs.semantics
            };
            run(&mut Problem::new(tensors, semantics).unwrap(), kernel, 1).unwrap();
            o
        };
        for kernel in kernels(dtype) {
            let all = compute(kernel, &v, 0, len_q, 0);
            for block_q in [1, 7, 20, 64] {
                assert!(
                    same_bits(&compute(kernel, &v, 0, len_q, block_q), &all),
                    "{kernel:?}: parts of {block_q}"
                );
            }
            for first in [0, 1, 38, 39, 74] {
                let alone = compute(kernel, &v, first, 1, 0);
                assert!(same_bits(&alone, &all[first * dim..][..dim]), "{kernel:?}: row {first}");
                // All that it does not see is NaN.
                let (from, to) = (60 + first - 20, (60 + first + 4).min(len_kv));
                let mut poisoned = vec![0xff; v.len()];
                poisoned[from * row..to * row].copy_from_slice(&v[from * row..to * row]);
                let alone = compute(kernel, &poisoned, first, 1, 0);
                assert!(same_bits(&alone, &all[first * dim..][..dim]), "{kernel:?}: row {first} next to NaN");
            }
        }
    }
}
