//! fa_quantize_i8 and fa_quantize on any arguments: refused and nothing touched, or what the header
//! says, the same bits on every instruction set.

#![no_main]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr;

use flash_attention::capi::isa::fa_limit_isa;
use flash_attention::capi::quantize::{fa_quantize, fa_quantize_i8};
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::{fa_quant, fa_tensor};
use flash_attention_fuzz::common::Random;
use flash_attention_fuzz::definition::{
    BF16, BLOCKS, F8_E4M3, F8_E5M2, F16, F32, I8, Q15, at, block, stored,
};
use flash_attention_fuzz::input::{Input, hash, mutate};
use flash_attention_fuzz::layout::{
    MOST, Rows, Verdict, cells_are_apart, dim_verdict, quant_verdict, unit, values,
};
use flash_attention_fuzz::memory::Guarded;
use half::{bf16, f16};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// Bytes of an array, at most.
const SIZE: usize = 1 << 11;

thread_local! {
    /// Of src, smooth, dst, scale, zero.
    static MEMORY: RefCell<[Guarded; 5]> = RefCell::new([0; 5].map(|_| Guarded::new(2 * SIZE)));
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate(data, [size, max_size], seed, 24, fuzzer_mutate)
});

fn tensor(input: &mut Input) -> fa_tensor {
    let stride = [0; 3].map(|_| input.i64());
    let [dtype, stride_dim] = [input.i32(), input.i32()];
    fa_tensor { data: ptr::null_mut(), stride, dtype, stride_dim, quant: ptr::null() }
}

fuzz_target!(|data: &[u8]| MEMORY.with_borrow_mut(|memory| try_out(memory, data)));

fn try_out(memory: &mut [Guarded; 5], data: &[u8]) {
    let mut input = Input(data);
    let sizes = [0; 4].map(|_| input.i64());
    let (mut src, mut dst) = (tensor(&mut input), tensor(&mut input));
    let stride = [0; 4].map(|_| input.i64());
    let group = [input.i32(), input.i32()];
    let places = [0; 5].map(|_| input.u64());
    let flags = input.u64();
    let [batch, heads, tokens, dim] = sizes;
    let extent = [batch, heads, tokens];
    if flags >> 16 & 3 == 3 && dst.dtype != I8 {
        let mut random = Random(hash(data));
        return try_types(memory, &mut random, &mut input, sizes, [src, dst], [places[0], places[2]], flags);
    }

    let mut verdict = Verdict::Legal;
    verdict.demand(sizes.iter().all(|&n| n >= 0) && dim >= 1);
    for tensor in [&src, &dst] {
        verdict.join(dim_verdict(tensor.dtype, tensor.stride_dim, false));
    }
    verdict.demand([F32, F16, BF16].contains(&src.dtype) && dst.dtype == I8);
    let mut needed = [0i128; 5];
    let mut quant = fa_quant {
        scale: ptr::null(),
        zero: ptr::null(),
        stride,
        group_tokens: group[0],
        group_dims: group[1],
    };
    if verdict == Verdict::Legal {
        let elements = extent.iter().fold(i128::from(dim), |n, &m| n.saturating_mul(i128::from(m)));
        let from = Rows::of(src.dtype, extent, dim, src.stride);
        let to = Rows::of(I8, extent, dim, dst.stride);
        let smooth = Rows::of(F32, extent, dim, [0, dim.saturating_mul(4), 0]);
        verdict.join(from.verdict(unit(src.dtype)));
        verdict.join(to.verdict(1));
        verdict.join(to.are_apart());
        let n = values(extent, dim, stride, group);
        verdict.join(quant_verdict(stride, group, n));
        if smooth.row > MOST {
            // Without a vector to subtract, or rows to subtract it from, nobody need multiply its
            // size.
            verdict.join(if places[1] & 3 == 0 || elements == 0 {
                Verdict::Either
            } else {
                Verdict::Refused
            });
        } else if places[1] & 3 != 0 {
            verdict.join(smooth.verdict(4));
        }
        if verdict < Verdict::Refused {
            verdict.join(cells_are_apart(sizes, stride, group));
        }
        needed = [from.span(), smooth.span(), to.span(), n.saturating_mul(4), n.saturating_mul(4)];
        if verdict < Verdict::Refused && needed.iter().any(|&bytes| bytes > SIZE as i128) {
            return;
        }
        // Much work on few bytes, by strides of 0, which only src may have; or on none.
        if elements > 1 << 16 {
            return;
        }
    }
    let needed = needed.map(|bytes| bytes.clamp(0, SIZE as i128) as usize);

    let mut random = Random(hash(data));
    for (which, slot) in memory.iter_mut().enumerate() {
        // As outputs are before, and as bytes around inputs.
        slot.bytes().fill(if which < 2 { 0xff } else { 0xa5 });
    }
    let mut pointers = [0, 1, 2, 3, 4].map(|i| match places[i] & 3 {
        0 => ptr::null_mut(),
        1 => memory[i].place(needed[i], true),
        _ => memory[i].place(needed[i], false),
    });
    for i in 0..5 {
        if places[i] & 3 == 3 && verdict < Verdict::Refused {
            // Inside of another array, or next to it.
            let other = (places[i] >> 2) as usize % 5;
            let from = memory[other].place(2 * SIZE, false);
            pointers[other] = from;
            pointers[i] = from.wrapping_add((places[i] >> 8) as usize % (SIZE + 1));
        }
    }
    let is_null = |i: usize| pointers[i].is_null() && needed[i] > 0;
    verdict.demand(!is_null(0) && !is_null(2) && !is_null(3));
    let range = |i: usize| {
        let start = pointers[i].addr();
        if pointers[i].is_null() { 0..0 } else { start..start + needed[i] }
    };
    let overlaps = |i: usize, j: usize| {
        let (a, b) = (range(i), range(j));
        a.start < b.end && b.start < a.end && !a.is_empty() && !b.is_empty()
    };
    // Inputs may share what they like.
    verdict.demand((2..5).all(|i| (0..5).all(|j| i == j || !overlaps(i, j))));
    fill(&mut random, &mut input, src.dtype, flags, range(0), range(1));
    src.data = pointers[0].cast();
    dst.data = pointers[2].cast();
    (quant.scale, quant.zero) = (pointers[3].cast(), pointers[4].cast());
    if flags & 0xff == 0xff {
        verdict.demand(false);
    } else {
        dst.quant = &quant;
    }
    if flags & 0xff00 == 0x0100 {
        src.quant = &quant;
        verdict.demand(false);
    }
    let smooth = pointers[1].cast::<f32>();

    let before: Vec<Vec<u8>> = memory.iter_mut().map(|slot| slot.bytes().to_vec()).collect();
    let mut first: Option<[Vec<u8>; 3]> = None;
    for isa in [c"avx512", c"avx2", c"scalar"] {
        for (slot, copy) in memory.iter_mut().zip(&before) {
            slot.bytes().copy_from_slice(copy);
        }
        // SAFETY: a string.
        assert_eq!(unsafe { fa_limit_isa(isa.as_ptr()) }, fa_status::FA_OK);
        // SAFETY: memory of the sizes that are stated, where they are legal.
        let status = unsafe { fa_quantize_i8(&src, batch, heads, tokens, dim, smooth, &dst) };
        let fits = match verdict {
            Verdict::Legal => status == fa_status::FA_OK,
            Verdict::Either => true,
            Verdict::Refused => status != fa_status::FA_OK,
        };
        assert!(fits, "{status:?}, {verdict:?}: {sizes:?} {src:?} {dst:?} {quant:?} {needed:?}");
        assert_ne!(status, fa_status::FA_ERR_INTERNAL);
        let mut expected = before.clone();
        if status == fa_status::FA_OK {
            let outputs = [2, 3, 4].map(|i| {
                let range = range(i);
                let mut bytes = Vec::new();
                for slot in memory.iter_mut() {
                    let all = slot.bytes();
                    let offset = range.start.wrapping_sub(all.as_ptr().addr());
                    if let Some(found) = all.get(offset..).and_then(|all| all.get(..range.len())) {
                        bytes = found.to_vec();
                    }
                }
                bytes
            });
            if verdict == Verdict::Legal {
                check(sizes, &src, smooth, &dst, &quant);
                match &first {
                    None => first = Some(outputs.clone()),
                    // NaN are all alike.
                    Some(first) => assert!(same(first, &outputs), "{isa:?} writes other bits"),
                }
            }
            let written = places_written(sizes, &dst, &quant);
            for (slot, copy) in memory.iter_mut().zip(&mut expected) {
                let all = slot.bytes();
                let start = all.as_ptr().addr();
                for &(at, n) in &written {
                    let offset = at.wrapping_sub(start);
                    if let Some(now) = all.get(offset..).and_then(|all| all.get(..n)) {
                        copy[offset..][..n].copy_from_slice(now);
                    }
                }
            }
        }
        for (slot, copy) in memory.iter_mut().zip(&expected) {
            assert!(slot.bytes() == copy, "touched what is no output, {status:?}");
        }
        if status != fa_status::FA_OK {
            break;
        }
    }
}

/// fa_quantize to a type that needs no scales of its own.
fn try_types(
    memory: &mut [Guarded; 5],
    random: &mut Random,
    input: &mut Input,
    sizes: [i64; 4],
    [mut src, mut dst]: [fa_tensor; 2],
    places: [u64; 2],
    flags: u64,
) {
    let [batch, heads, tokens, dim] = sizes;
    let extent = [batch, heads, tokens];
    let floats = [F32, F16, BF16];
    let mut verdict = Verdict::Legal;
    verdict.demand(sizes.iter().all(|&n| n >= 0) && dim >= 1);
    let is_f8 = [F8_E4M3, F8_E5M2].contains(&dst.dtype);
    verdict.demand(floats.contains(&src.dtype));
    verdict.demand(is_f8 || dst.dtype == Q15 || floats.contains(&dst.dtype) || BLOCKS.contains(&dst.dtype));
    for tensor in [&src, &dst] {
        verdict.join(dim_verdict(tensor.dtype, tensor.stride_dim, false));
    }
    let mut needed = [0i128; 2];
    if verdict == Verdict::Legal {
        verdict.demand(dim % block(dst.dtype)[0] == 0);
        let (from, to) =
            (Rows::of(src.dtype, extent, dim, src.stride), Rows::of(dst.dtype, extent, dim, dst.stride));
        verdict.join(from.verdict(unit(src.dtype)));
        verdict.join(to.verdict(unit(dst.dtype)));
        verdict.join(to.are_apart());
        needed = [from.span(), to.span()];
        let elements = extent.iter().fold(i128::from(dim), |n, &m| n.saturating_mul(i128::from(m)));
        let is_large = needed.iter().any(|&bytes| bytes > SIZE as i128);
        if (verdict < Verdict::Refused && is_large) || elements > 1 << 16 {
            return;
        }
    }
    let needed = needed.map(|bytes| bytes.clamp(0, SIZE as i128) as usize);
    let memory = &mut memory[..2];
    for (slot, byte) in memory.iter_mut().zip([0xff, 0xa5]) {
        slot.bytes().fill(byte);
    }
    let pointers = [0, 1].map(|i| match places[i] & 3 {
        0 => ptr::null_mut(),
        side => memory[i].place(needed[i], side == 1),
    });
    verdict.demand((0..2).all(|i| !pointers[i].is_null() || needed[i] == 0));
    (src.data, dst.data) = (pointers[0].cast(), pointers[1].cast());
    let start = pointers[0].addr();
    let range = if pointers[0].is_null() { 0..0 } else { start..start + needed[0] };
    fill(random, input, src.dtype, flags, range, 0..0);

    let before: Vec<Vec<u8>> = memory.iter_mut().map(|slot| slot.bytes().to_vec()).collect();
    let mut first: Option<Vec<u8>> = None;
    for isa in [c"avx512", c"avx2", c"scalar"] {
        memory[1].bytes().copy_from_slice(&before[1]);
        // SAFETY: a string.
        assert_eq!(unsafe { fa_limit_isa(isa.as_ptr()) }, fa_status::FA_OK);
        // SAFETY: memory of the sizes that are stated, where they are legal.
        let status = unsafe { fa_quantize(&src, batch, heads, tokens, dim, &dst) };
        let fits = match verdict {
            Verdict::Legal => status == fa_status::FA_OK,
            Verdict::Either => true,
            Verdict::Refused => status != fa_status::FA_OK,
        };
        assert!(
            fits && status != fa_status::FA_ERR_INTERNAL,
            "{status:?}, {verdict:?}: {sizes:?} {src:?} {dst:?}"
        );
        let after = memory[1].bytes().to_vec();
        let mut expected = before[1].clone();
        if status == fa_status::FA_OK {
            let base = memory[1].bytes().as_ptr().addr();
            let [_, bytes] = block(dst.dtype);
            elements(sizes, |[b, h, t, d]| {
                let [of_block, _] = block(dst.dtype);
                let offset = row(&dst, [b, h, t]) + (d / of_block * bytes) as usize - base;
                expected[offset..][..bytes as usize].copy_from_slice(&after[offset..][..bytes as usize]);
                if verdict == Verdict::Legal && of_block == 1 {
                    let [x, y] = [&src, &dst].map(|tensor| stored(tensor.dtype, row(tensor, [b, h, t]), d));
                    let rounded = match dst.dtype {
                        // By f32, which x is: from_f64 drops 32 bits before it rounds.
                        F16 => f16::from_f32(x as f32).to_f64(),
                        BF16 => bf16::from_f32(x as f32).to_f64(),
                        Q15 if x.is_nan() => 0.0,
                        Q15 => (x * 32_768.0).clamp(-32_768.0, 32_767.0).round_ties_even() / 32_768.0,
                        _ => x,
                    };
                    if is_f8 {
                        // To nearest, of 16 or 8 steps up to twice the number, or a subnormal one.
                        let [most, step, least] = match dst.dtype {
                            F8_E4M3 => [448.0, 1.0 / 16.0, 1.0 / 1024.0],
                            _ => [57344.0, 1.0 / 8.0, 1.0 / 131072.0],
                        };
                        let near =
                            (y - x.clamp(-most, most)).abs() <= f64::max(step * x.abs().min(most), least);
                        assert!(near || (x.is_nan() && y.is_nan()), "{x} became {y}");
                        return;
                    }
                    assert!(rounded == y || (rounded.is_nan() && y.is_nan()), "{x} became {y}");
                }
            });
            let first = first.get_or_insert_with(|| after.clone());
            assert!(*first == after || verdict != Verdict::Legal, "{isa:?} writes other bits");
        }
        assert!(
            after == expected && memory[0].bytes() == &before[0][..],
            "touched what is no output, {status:?}"
        );
        if status != fa_status::FA_OK {
            break;
        }
    }
}

/// Numbers of a type in `src`, of f32 in `smooth`: usual ones, and by the input's own bits where it
/// has some.
fn fill(
    random: &mut Random,
    input: &mut Input,
    dtype: i32,
    flags: u64,
    src: std::ops::Range<usize>,
    smooth: std::ops::Range<usize>,
) {
    let size = if [F16, BF16].contains(&dtype) { 2 } else { 4 };
    let constant = flags & 2 != 0;
    let factor = [1.0, 1e-3, 1e30, 1e-38, 1e4, 1e-42, 3e38, 1.0][(flags >> 8 & 7) as usize];
    for at in src.clone().step_by(size).filter(|at| at + size <= src.end) {
        let number = if constant { 0.75 } else { random.normal() * factor };
        let own = flags & 4 != 0 && !input.0.is_empty();
        // SAFETY: inside of our memory.
        unsafe {
            match dtype {
                F16 => (at as *mut u16).write_unaligned(if own {
                    input.u32() as u16
                } else {
                    f16::from_f32(number).to_bits()
                }),
                BF16 => (at as *mut u16).write_unaligned(if own {
                    input.u32() as u16
                } else {
                    bf16::from_f32(number).to_bits()
                }),
                _ => (at as *mut f32).write_unaligned(if own { input.f32() } else { number }),
            }
        }
    }
    for at in smooth.clone().step_by(4).filter(|at| at + 4 <= smooth.end) {
        // SAFETY: likewise.
        unsafe { (at as *mut f32).write_unaligned(random.normal()) };
    }
}

/// The same bytes in integers, the same bits or NaN both in scales and zeros.
fn same(a: &[Vec<u8>; 3], b: &[Vec<u8>; 3]) -> bool {
    let floats = |x: &[u8]| x.as_chunks::<4>().0.iter().map(|x| f32::from_ne_bytes(*x)).collect::<Vec<_>>();
    let alike = |a: &[u8], b: &[u8]| {
        floats(a).iter().zip(floats(b)).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()))
    };
    a[0] == b[0] && alike(&a[1], &b[1]) && alike(&a[2], &b[2])
}

/// Where the value of an element is among scales and zeros.
fn place(quant: &fa_quant, [b, h, t, d]: [i64; 4]) -> i64 {
    let group = |i: i64, size: i32, stride: i64| if stride == 0 { 0 } else { i / i64::from(size) * stride };
    let far = |i: i64, stride: i64| if i == 0 { 0 } else { i * stride };
    far(b, quant.stride[0])
        + far(h, quant.stride[1])
        + group(t, quant.group_tokens, quant.stride[2])
        + group(d, quant.group_dims, quant.stride[3])
}

fn elements([batch, heads, tokens, dim]: [i64; 4], mut f: impl FnMut([i64; 4])) {
    for b in 0..batch {
        for h in 0..heads {
            for t in 0..tokens {
                (0..dim).for_each(|d| f([b, h, t, d]));
            }
        }
    }
}

/// Addresses and bytes of all outputs.
fn places_written(sizes: [i64; 4], dst: &fa_tensor, quant: &fa_quant) -> Vec<(usize, usize)> {
    let mut written = Vec::new();
    elements(sizes, |[b, h, t, d]| {
        written.push((row(dst, [b, h, t]) + d as usize, 1));
        for list in [quant.scale, quant.zero] {
            if !list.is_null() {
                written.push((list.wrapping_offset(place(quant, [b, h, t, d]) as isize).addr(), 4));
            }
        }
    });
    written
}

/// Address of a row; strides of axes with one entry do not matter.
fn row(tensor: &fa_tensor, [b, h, t]: [i64; 3]) -> usize {
    let mut tensor = *tensor;
    for (stride, i) in tensor.stride.iter_mut().zip([b, h, t]) {
        if i == 0 {
            *stride = 0;
        }
    }
    at(&tensor, [b, t], h)
}

/// Compares with what the header says about each cell.
fn check(sizes: [i64; 4], src: &fa_tensor, smooth: *const f32, dst: &fa_tensor, quant: &fa_quant) {
    let number = |[b, h, t, d]: [i64; 4]| {
        let x = stored(src.dtype, row(src, [b, h, t]), d) as f32;
        if smooth.is_null() {
            return x;
        }
        // SAFETY: [heads][dim] numbers.
        x - unsafe { smooth.wrapping_offset((h * sizes[3] + d) as isize).read_unaligned() }
    };
    let mut cells: HashMap<i64, Vec<[i64; 4]>> = HashMap::new();
    elements(sizes, |at| cells.entry(place(quant, at)).or_default().push(at));
    for (place, members) in cells {
        let value = |list: *const f32| {
            // SAFETY: a value that has been written.
            (!list.is_null()).then(|| unsafe { list.wrapping_offset(place as isize).read_unaligned() })
        };
        let (scale, zero) = (value(quant.scale).unwrap(), value(quant.zero));
        let all: Vec<f32> = members.iter().map(|&at| number(at)).collect();
        let integers: Vec<i8> =
            members.iter().map(|&[b, h, t, d]| stored(I8, row(dst, [b, h, t]), d) as i8).collect();
        let about = format!("cell at {place}: scale {scale}, zero {zero:?}, of {all:?}, {integers:?}");
        if all.iter().any(|x| !x.is_finite()) {
            assert!(
                scale.is_nan() && zero.is_none_or(|zero| zero == 0.0) && integers.iter().all(|&x| x == 0),
                "{about}"
            );
            continue;
        }
        let least = all.iter().copied().fold(f32::INFINITY, f32::min);
        let most = all.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let largest = least.abs().max(most.abs());
        let step = match zero {
            None => f64::from(largest) / 127.0,
            Some(_) => (f64::from(most) - f64::from(least)) / 255.0,
        };
        // Just at the border either is right.
        let is_border = (step / f64::from(f32::MIN_POSITIVE) - 1.0).abs() < 1e-6;
        if is_border {
            continue;
        }
        if step < f64::from(f32::MIN_POSITIVE) {
            match zero {
                None => assert!(scale == 0.0 && integers.iter().all(|&x| x == 0), "{about}"),
                Some(zero) => {
                    assert!(scale == least && zero == 0.0 && integers.iter().all(|&x| x == 1), "{about}");
                }
            }
            continue;
        }
        assert!((f64::from(scale) / step - 1.0).abs() < 1e-6, "{about}");
        let zero = zero.unwrap_or(0.0);
        assert!(zero.fract() == 0.0, "{about}");
        let lowest = if quant.zero.is_null() { -127 } else { -128 };
        for (&x, &integer) in all.iter().zip(&integers) {
            let back = (f64::from(integer) - f64::from(zero)) * f64::from(scale);
            let bound = f64::from(scale) * 0.500_01 + f64::from(largest) * 2f64.powi(-22);
            assert!(integer >= lowest && (back - f64::from(x)).abs() <= bound, "{x} became {back}: {about}");
        }
    }
}
