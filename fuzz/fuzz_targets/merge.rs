//! fa_merge on any arguments: refused and nothing touched, or the formula of the header.

#![no_main]

use std::cell::RefCell;
use std::ptr;

use flash_attention::capi::merge::fa_merge;
use flash_attention::capi::status::fa_status;
use flash_attention_fuzz::input::{Input, hash, mutate};
use flash_attention_fuzz::layout::{MOST, Verdict};
use flash_attention_fuzz::memory::Guarded;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// Bytes of an array, at most.
const SIZE: usize = 1 << 11;

thread_local! {
    static MEMORY: RefCell<[Guarded; 4]> = RefCell::new([0; 4].map(|_| Guarded::new(2 * SIZE)));
}

/// An array as the input wants it.
struct Array {
    at: *mut f32,
    bytes: i128,
}

impl Array {
    fn overlaps(&self, other: &Array) -> bool {
        let range = |x: &Array| (x.at.addr() as i128, (x.at.addr() as i128).saturating_add(x.bytes));
        let ((a, b), (c, d)) = (range(self), range(other));
        a < d && c < b && a < b && c < d
    }
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate(data, [size, max_size], seed, 6, fuzzer_mutate)
});

fuzz_target!(|data: &[u8]| MEMORY.with_borrow_mut(|memory| try_out(memory, data)));

fn try_out(memory: &mut [Guarded; 4], data: &[u8]) {
    let mut input = Input(data);
    let [rows, dim] = [input.i64(), input.i64()];
    let places = [0; 4].map(|_| input.u64());
    let mut verdict = Verdict::Legal;
    verdict.demand(rows >= 0 && dim >= 1);
    let count = i128::from(rows) * i128::from(dim);
    verdict.demand(count <= MOST / 4);
    // Of o, lse, o2, lse2. Those that nothing is wrong with but that are too long for us have an
    // end, too.
    let lengths = [count, i128::from(rows), count, i128::from(rows)].map(|n| n.max(0).saturating_mul(4));
    if verdict == Verdict::Legal && lengths.iter().any(|&bytes| bytes > SIZE as i128) {
        return;
    }
    let bytes = lengths.map(|bytes| bytes.min(SIZE as i128) as usize);
    let mut arrays = [0, 1, 2, 3].map(|i| {
        let place = places[i];
        let own = match place & 3 {
            0 => ptr::null_mut(),
            // Whole numbers of f32, so that the end is one of a page, or a byte before it.
            1 => memory[i].place(bytes[i] + (place >> 8 & 1) as usize, true),
            _ => memory[i].place(bytes[i], false),
        };
        Array { at: own.cast(), bytes: lengths[i] }
    });
    for i in 0..4 {
        // Inside of another array, or next to it.
        if places[i] & 3 == 3 {
            let other = (places[i] >> 2 & 3) as usize;
            let offset = (places[i] >> 8) as usize % (SIZE + 1);
            let from = memory[other].place(2 * SIZE, false);
            arrays[i].at = from.wrapping_add(offset).cast();
            arrays[other].at = from.cast();
        }
    }
    if rows > 0 {
        verdict.demand(arrays.iter().all(|array| !array.at.is_null() && array.at.addr() % 4 == 0));
        let is_apart = |i: usize| (0..4).all(|j| i == j || !arrays[i].overlaps(&arrays[j]));
        verdict.demand(is_apart(0) && is_apart(1));
    }

    // Numbers from the input as long as there are some, then usual ones.
    let mut random = flash_attention_fuzz::common::Random(hash(data));
    let has_own = input.u8() & 1 == 1;
    for slot in memory.iter_mut() {
        for x in slot.bytes().as_chunks_mut::<4>().0 {
            let number =
                if has_own && !input.0.is_empty() { input.f32() } else { random.bits() as i32 as f32 / 1e9 };
            x.copy_from_slice(&number.to_ne_bytes());
        }
    }
    let before: Vec<Vec<u8>> = memory.iter_mut().map(|slot| slot.bytes().to_vec()).collect();
    // What is where, whatever it overlaps.
    let read = |array: &Array, n: usize| -> Vec<f32> {
        // SAFETY: lengths of legal arrays are those of our memory.
        (0..n).map(|i| unsafe { array.at.wrapping_add(i).read_unaligned() }).collect()
    };
    let is_legal = verdict == Verdict::Legal && rows > 0;
    let old = if is_legal {
        arrays.each_ref().map(|array| read(array, array.bytes as usize / 4))
    } else {
        [const { vec![] }; 4]
    };

    let [o, lse, o2, lse2] = arrays.each_ref().map(|array| array.at);
    // SAFETY: memory of the sizes that are stated, where they are legal.
    let status = unsafe { fa_merge(o, lse, o2, lse2, rows, dim) };
    assert_eq!(
        status == fa_status::FA_OK,
        verdict == Verdict::Legal,
        "{status:?}, {rows} x {dim}: {o:?} {lse:?} {o2:?} {lse2:?}"
    );
    let mut expected = before;
    if is_legal {
        check(&old, [read(&arrays[0], count as usize), read(&arrays[1], rows as usize)], dim as usize);
        for array in &arrays[..2] {
            // What was written, wherever that is.
            for (slot, copy) in memory.iter_mut().zip(&mut expected) {
                let all = slot.bytes();
                let offset = array.at.addr().wrapping_sub(all.as_ptr().addr());
                if let Some(now) = all.get(offset..).and_then(|all| all.get(..array.bytes as usize)) {
                    copy[offset..][..now.len()].copy_from_slice(now);
                }
            }
        }
    }
    for (slot, copy) in memory.iter_mut().zip(&expected) {
        assert!(slot.bytes() == copy, "touched what is no output, {status:?}");
    }
}

/// Compares with the header's formula.
fn check([o, lse, o2, lse2]: &[Vec<f32>; 4], [new_o, new_lse]: [Vec<f32>; 2], dim: usize) {
    for (row, (&a, &b)) in lse.iter().zip(lse2).enumerate() {
        let of = |x: &[f32], d: usize| x[row * dim + d];
        let got = new_lse[row];
        let is_same = |x: &[f32], from: f32| {
            got.to_bits() == from.to_bits() && (0..dim).all(|d| of(&new_o, d).to_bits() == of(x, d).to_bits())
        };
        if b == f32::NEG_INFINITY {
            assert!(is_same(o, a), "an empty second state changed row {row}");
        } else if a == f32::NEG_INFINITY {
            assert!(is_same(o2, b), "an empty first state changed row {row}");
        } else if a.is_finite() && b.is_finite() {
            let (a, b) = (f64::from(a), f64::from(b));
            let max = a.max(b);
            let (w, w2) = ((a - max).exp(), (b - max).exp());
            let exact = max + (w + w2).ln();
            let error = (f64::from(got) - exact).abs();
            assert!(error <= 2e-7 * (1.0 + exact.abs()), "log-sum-exp {got} is not {exact}");
            for d in 0..dim {
                let (x, y) = (f64::from(of(o, d)), f64::from(of(o2, d)));
                if x.is_finite() && y.is_finite() {
                    let exact = (w * x + w2 * y) / (w + w2);
                    let error = (f64::from(of(&new_o, d)) - exact).abs();
                    // The difference of the log-sum-exps is rounded to f32, and so is the result.
                    let bound = 1e-5 * x.abs().max(y.abs()) + f64::from(f32::MIN_POSITIVE);
                    assert!(error <= bound, "{} is not {exact}: {x} at {a}, {y} at {b}", of(&new_o, d));
                }
            }
        } else if a.is_nan() || b.is_nan() {
            assert!(got.is_nan(), "log-sum-exp of {a} and {b} is {got}");
            assert!((0..dim).all(|d| of(&new_o, d).is_nan()), "merged with NaN, row {row} is a number");
        }
    }
}
