//! fa_forward_q15 and fa_mha_q15 on any arguments: refused and nothing touched, or every bit that
//! docs/fixed-point.md gives.

#![no_main]

use std::cell::RefCell;
use std::ptr;

use flash_attention::capi::fixed::{fa_forward_q15, fa_mha_q15, fa_q15_config};
use flash_attention::capi::status::fa_status;
use flash_attention_fuzz::common::Random;
use flash_attention_fuzz::fixed_reference::reference;
use flash_attention_fuzz::input::{Input, hash, mutate};
use flash_attention_fuzz::layout::{MOST, Verdict};
use flash_attention_fuzz::memory::Guarded;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// Bytes of an array, at most.
const SIZE: usize = 1 << 13;

/// Multiplications that the reference does quickly.
const WORK: i128 = 1 << 16;

thread_local! {
    /// Of q, k, v, out, and the configuration.
    static MEMORY: RefCell<[Guarded; 5]> = RefCell::new([0; 5].map(|_| Guarded::new(2 * SIZE)));
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate(data, [size, max_size], seed, 13, fuzzer_mutate)
});

fuzz_target!(|data: &[u8]| MEMORY.with_borrow_mut(|memory| try_out(memory, data)));

fn try_out(memory: &mut [Guarded; 5], data: &[u8]) {
    let mut input = Input(data);
    let flags = input.u64();
    let [struct_size, head_dim] = [input.u64() as usize, input.u64() as usize];
    let [scale_mantissa, scale_shift] = [input.i32(), input.i32()];
    let [causal, num_threads] = [input.u32(), input.u32()];
    let [heads, heads_kv, len_q, len_kv] = [0; 4].map(|_| input.u64() as usize);
    let places = [0; 4].map(|_| input.u64());
    let is_mha = flags & 1 == 1;
    let [heads, heads_kv] = if is_mha { [heads, heads_kv] } else { [1, 1] };

    // The configuration, perhaps a later version's.
    let known = size_of::<fa_q15_config>();
    let struct_size = if flags >> 8 & 3 == 3 { struct_size } else { known };
    let mut verdict = Verdict::Legal;
    let is_size = (known..=known + 4096).contains(&struct_size);
    verdict.demand(is_size);
    let cfg_bytes = if is_size { struct_size } else { known };
    let cfg = memory[4].place(cfg_bytes, true).cast::<fa_q15_config>();
    memory[4].bytes().fill(0);
    let threads = [1, 2, 3, 0][num_threads as usize % 4];
    let config =
        fa_q15_config { struct_size, head_dim, scale_mantissa, scale_shift, causal, num_threads: threads };
    // SAFETY: our memory, as large.
    unsafe { cfg.write_unaligned(config) };
    if flags >> 10 & 7 == 7 && is_size && struct_size > known {
        // SAFETY: the last byte of it.
        unsafe { cfg.cast::<u8>().add(struct_size - 1).write(1) };
        verdict.demand(false);
    }
    let cfg = if flags >> 16 & 0xff == 0xff { ptr::null() } else { cfg.cast_const() };
    verdict.demand(!cfg.is_null());

    let wide = |n: usize| n as i128;
    verdict.demand((1..=65_536).contains(&head_dim) && len_kv <= 2_097_152);
    verdict.demand(heads >= 1 && heads_kv >= 1 && heads.is_multiple_of(heads_kv.max(1)));
    verdict.demand((0..64).contains(&scale_shift));
    let steps = wide(head_dim).min(1 << 17);
    let rounded = (0..18).map(|bits| 1i128 << bits).find(|&power| power >= steps).unwrap_or(1 << 17);
    let limit = (1i128 << 18) << scale_shift.clamp(0, 63);
    verdict.demand(i128::from(scale_mantissa.unsigned_abs()) * rounded <= limit);
    let size = |heads: usize, len: usize| {
        [len, head_dim, 2].into_iter().fold(wide(heads), |n, m| n.saturating_mul(wide(m)))
    };
    let of_queries = size(heads, len_q);
    let of_keys = size(heads_kv, len_kv);
    let lengths = [of_queries, of_keys, of_keys, of_queries];
    verdict.demand(lengths.iter().all(|&bytes| bytes <= MOST));
    let work = of_queries.saturating_mul(wide(len_kv) + 1);
    if verdict == Verdict::Legal && (lengths.iter().any(|&n| n > SIZE as i128) || work > 2 * WORK) {
        return;
    }

    let bytes = lengths.map(|bytes| bytes.min(SIZE as i128) as usize);
    let mut arrays = [0, 1, 2, 3].map(|i| match places[i] & 3 {
        0 if places[i] & 0xf0 == 0 => ptr::null_mut(),
        1 => memory[i].place(bytes[i] + (places[i] >> 8 & 1) as usize, true),
        _ => memory[i].place(bytes[i], places[i] & 4 == 4),
    });
    // An input inside of the output, or next to it.
    for i in 0..3 {
        if places[i] & 0xf3 == 0x33 {
            let offset = (places[i] >> 8) as usize % (SIZE + 1);
            let from = memory[3].place(2 * SIZE, false);
            arrays[i] = from.wrapping_add(offset & !1);
            arrays[3] = from;
        }
    }
    let range = |i: usize| {
        let start = wide(arrays[i].addr());
        (start, start.saturating_add(lengths[i]))
    };
    for i in 0..4 {
        let is_there = !arrays[i].is_null() && arrays[i].addr().is_multiple_of(2);
        verdict.demand(is_there || lengths[i] == 0);
        let ((a, b), (c, d)) = (range(3), range(i));
        verdict.demand(i == 3 || !(a < d && c < b && a < b && c < d));
    }

    // Any bits are a number; often they are few, so that scores are alike.
    let mut random = Random(hash(data));
    let mask = [0xffff, 0x00ff, 0x8000, 0xfff0][(flags >> 24 & 3) as usize];
    for slot in &mut memory[..4] {
        for x in slot.bytes().as_chunks_mut::<2>().0 {
            *x = (random.bits() as u16 & mask).to_ne_bytes();
        }
    }
    let before: Vec<Vec<u8>> = memory.iter_mut().map(|slot| slot.bytes().to_vec()).collect();
    let [q, k, v, out] = arrays.map(|array| array.cast::<i16>());
    let read = |array: *mut i16, n: usize| -> Vec<i16> {
        // SAFETY: lengths of legal arrays are those of our memory.
        (0..n).map(|i| unsafe { array.wrapping_add(i).read_unaligned() }).collect()
    };
    let is_legal = verdict == Verdict::Legal;
    let inputs = if is_legal {
        [read(q, bytes[0] / 2), read(k, bytes[1] / 2), read(v, bytes[2] / 2)]
    } else {
        [const { vec![] }; 3]
    };
    // SAFETY: memory of the sizes that are stated, where they are legal.
    let status = unsafe {
        if is_mha {
            fa_mha_q15(cfg, q, k, v, heads, heads_kv, len_q, len_kv, out)
        } else {
            fa_forward_q15(cfg, q, k, v, len_q, len_kv, out)
        }
    };
    let label = format!("{config:?} {heads} {heads_kv} {len_q} {len_kv} {arrays:?}");
    assert_eq!(status == fa_status::FA_OK, is_legal, "{status:?}: {label}");
    assert_ne!(status, fa_status::FA_ERR_INTERNAL, "{label}");
    let mut expected = before;
    if is_legal && bytes[3] > 0 {
        let [q, k, v] = &inputs;
        let [of_q, of_kv] = [len_q, len_kv].map(|len| len * head_dim);
        let mut want = Vec::new();
        for head in 0..heads {
            let at = head / (heads / heads_kv) * of_kv;
            let [k, v] = [k, v].map(|x| &x[at..][..of_kv]);
            let scale = (scale_mantissa, scale_shift as u32);
            want.extend(reference(&q[head * of_q..][..of_q], k, v, head_dim, scale, causal != 0));
        }
        assert_eq!(read(out, bytes[3] / 2), want, "{label}");
        let offset = out.addr() - memory[3].bytes().as_ptr().addr();
        let written: Vec<u8> = want.iter().flat_map(|x| x.to_ne_bytes()).collect();
        expected[3][offset..][..written.len()].copy_from_slice(&written);
    }
    for (slot, copy) in memory.iter_mut().zip(&expected) {
        assert!(slot.bytes() == copy, "touched what is no output: {status:?} {label}");
    }
}
