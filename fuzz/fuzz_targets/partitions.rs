//! fa_sparse_from_partitions on any arguments: refused and nothing touched, or the lists that are
//! said of each pair of a row and a key.

#![no_main]

use std::cell::RefCell;
use std::ptr;

use flash_attention::capi::sparse::{fa_sparse_config, fa_sparse_from_partitions, fa_sparse_lists};
use flash_attention::capi::status::fa_status;
use flash_attention_fuzz::input::{Input, mutate};
use flash_attention_fuzz::layout::Verdict;
use flash_attention_fuzz::memory::Guarded;
use flash_attention_fuzz::pairs::{ALL, Pairs, kept_tokens};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// Bytes of an array, at most.
const SIZE: usize = 1 << 12;

/// Tokens whose pairs are looked at one by one.
const TOKENS: i64 = 48;

thread_local! {
    /// Of the configuration, partitions, boundary tokens, lists, and their memory.
    static MEMORY: RefCell<[Guarded; 5]> = RefCell::new([0; 5].map(|_| Guarded::new(2 * SIZE)));
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate(data, [size, max_size], seed, 16, fuzzer_mutate)
});

fuzz_target!(|data: &[u8]| MEMORY.with_borrow_mut(|memory| try_out(memory, data)));

fn try_out(memory: &mut [Guarded; 5], data: &[u8]) {
    let mut input = Input(data);
    let flags = input.u64();
    let [len_q, len_kv, kept_q, kept_kv] = [0; 4].map(|_| input.i64());
    let [num_partitions, num_boundary_tokens, max_edges, window, room] = [0; 5].map(|_| input.i64());
    let [causal, coherence, coherence_low, coherence_high] = [0; 4].map(|_| input.u32());
    let [concentration, min_density, max_density] = [0; 3].map(|_| input.u32());
    let schedule = input.i32();
    // Tokens, mostly one a little behind another.
    let mut list = |n: i64| {
        let mut token = -1i32;
        let n = n.clamp(0, SIZE as i64 / 4);
        (0..n)
            .map(|i| {
                let step = input.u8();
                token = match step {
                    255 => i32::from_le_bytes(input.bytes()),
                    _ if i == 0 && step < 128 => 0,
                    _ => token.wrapping_add(i32::from(step % 16) + i32::from(step != 254)),
                };
                token
            })
            .collect::<Vec<i32>>()
    };
    let lists = [list(num_partitions), list(num_boundary_tokens)];

    let mut verdict = Verdict::Legal;
    verdict.demand((0..=i64::from(i32::MAX)).contains(&len_kv) && (0..=len_kv).contains(&len_q));
    verdict.demand(kept_q >= 1 && kept_kv >= 1 && max_edges >= -1 && window >= 0);
    verdict.demand((0..4).contains(&schedule) && coherence_low <= coherence_high);
    verdict.demand(min_density <= max_density && max_density <= ALL && concentration <= ALL);
    for (n, list) in [num_partitions, num_boundary_tokens].into_iter().zip(&lists) {
        verdict.demand((0..=len_kv).contains(&n));
        verdict.demand(list.is_sorted_by(|a, b| a < b));
        verdict.demand(list.iter().all(|&token| (0..len_kv).contains(&i64::from(token))));
    }
    verdict.demand(lists[0].first().is_none_or(|&first| first == 0));
    if verdict == Verdict::Legal && len_kv > TOKENS {
        // Still without lists, so that nothing is written: there may be too many blocks.
        verdict = Verdict::Either;
    }
    let is_large = verdict == Verdict::Either;
    // Longer lists than we have memory for, or more blocks than are counted quickly.
    let is_long = [num_partitions, num_boundary_tokens].iter().any(|&n| n > SIZE as i64 / 4);
    if is_large && (is_long || len_q / kept_q > 1 << 12) {
        return;
    }

    let place = |memory: &Guarded, list: &[i32]| {
        let at = memory.place(list.len() * 4, flags & 1 == 0).cast::<i32>();
        for (i, &token) in list.iter().enumerate() {
            // SAFETY: our memory, as large; it need not be aligned.
            unsafe { at.wrapping_add(i).write_unaligned(token) };
        }
        at.cast_const()
    };
    for memory in memory.iter_mut() {
        memory.bytes().fill(0x5a);
    }
    let [mut partitions, mut boundary_tokens] = [place(&memory[1], &lists[0]), place(&memory[2], &lists[1])];
    if flags >> 8 & 0xff == 0xff {
        partitions = ptr::null();
        verdict.demand(lists[0].is_empty());
    }
    if flags >> 16 & 0xff == 0xff {
        boundary_tokens = ptr::null();
        verdict.demand(lists[1].is_empty());
    }
    let config = fa_sparse_config {
        struct_size: size_of::<fa_sparse_config>(),
        len_q,
        len_kv,
        kept_q,
        kept_kv,
        partitions,
        num_partitions,
        boundary_tokens,
        num_boundary_tokens,
        max_edges,
        window,
        causal,
        schedule,
        coherence,
        coherence_low,
        coherence_high,
        concentration,
        min_density,
        max_density,
    };
    let cfg = memory[0].place(size_of::<fa_sparse_config>(), true).cast::<fa_sparse_config>();
    let to = memory[3].place(size_of::<fa_sparse_lists>(), true).cast::<fa_sparse_lists>();
    // SAFETY: our memory, as large.
    unsafe {
        cfg.write_unaligned(config);
        to.cast::<usize>().write_unaligned(size_of::<fa_sparse_lists>());
    }
    let before: Vec<Vec<u8>> = memory.iter_mut().map(|slot| slot.bytes().to_vec()).collect();
    let call = |at: *mut i32, room: i64| {
        // SAFETY: memory of the sizes that are stated, where they are legal.
        unsafe { fa_sparse_from_partitions(cfg, at, room, to, ptr::null_mut(), 0) }
    };
    let status = call(ptr::null_mut(), room);
    let is_fine = status == fa_status::FA_OK;
    assert_ne!(status, fa_status::FA_ERR_INTERNAL, "{config:?}");
    assert!(verdict == Verdict::Either || is_fine == (verdict == Verdict::Legal), "{status:?}: {config:?}");
    if is_fine && !is_large {
        // SAFETY: the call has written it.
        let asked = unsafe { to.read_unaligned() };
        assert!((3..=SIZE as i64).contains(&asked.room), "{asked:?}");
        let room = if flags >> 24 & 1 == 1 { room } else { asked.room };
        let at = memory[4].place(asked.room as usize * 4, flags & 2 == 0).cast::<i32>();
        let status = call(at, room);
        assert_eq!(status == fa_status::FA_OK, room >= asked.room, "{status:?}: {config:?}");
        if status == fa_status::FA_OK {
            // SAFETY: the call has written it, and all of the memory.
            let (found, numbers) = unsafe {
                let numbers = (0..asked.room as usize).map(|i| at.wrapping_add(i).read_unaligned());
                (to.read_unaligned(), numbers.collect::<Vec<i32>>())
            };
            judge(&config, &lists, &found, at, &numbers);
        }
    }
    let outputs = if is_fine { 3 } else { 5 };
    for (slot, copy) in memory.iter_mut().zip(&before).take(outputs) {
        assert!(slot.bytes() == copy, "touched what is no output: {status:?} {config:?}");
    }
}

/// Compares with what is said of each pair.
fn judge(
    cfg: &fa_sparse_config,
    lists: &[Vec<i32>; 2],
    found: &fa_sparse_lists,
    at: *const i32,
    numbers: &[i32],
) {
    let part = |from: *const i32, n: i64| {
        let first = (from.addr() - at.addr()) / 4;
        numbers[first..first + n as usize].iter().map(|&x| x as usize).collect::<Vec<usize>>()
    };
    let [starts, tokens] = lists.each_ref().map(|list| list.iter().map(|&x| x as usize).collect::<Vec<_>>());
    let oracle = Pairs {
        causal: cfg.causal != 0,
        len_q: cfg.len_q as usize,
        len_kv: cfg.len_kv as usize,
        kept: [cfg.kept_q as usize, cfg.kept_kv as usize],
        starts,
        columns: kept_tokens(&tokens, if cfg.max_edges < 0 { usize::MAX } else { cfg.max_edges as usize }),
        window: cfg.window as usize,
    };
    let reach = if found.reach < 0 { usize::MAX } else { found.reach as usize };
    let want = oracle.lists(found.window as usize, reach);
    let ends = part(found.kept_start, found.num_starts);
    let blocks = part(found.kept_blocks, found.num_blocks);
    let is: Vec<Vec<usize>> = ends.windows(2).map(|end| blocks[end[0]..end[1]].to_vec()).collect();
    assert_eq!(is, want, "{cfg:?} {lists:?}");
    assert_eq!(part(found.columns, found.num_columns), oracle.columns, "{cfg:?} {lists:?}");
    assert_eq!(part(found.column_start, 2), [0, oracle.columns.len()]);
    let pairs = oracle.pairs(&want);
    assert_eq!([found.pairs, found.column_pairs].map(|n| n as u64), pairs, "{cfg:?} {lists:?}");
    assert_eq!(found.all_pairs as u64, oracle.all_pairs(), "{cfg:?}");
    let is_scheduled = cfg.schedule != 0 && cfg.coherence >= cfg.coherence_low && lists[0].len() > 1;
    if is_scheduled {
        assert_eq!(is, oracle.densest(found.target_density), "{cfg:?} {lists:?}");
    } else if cfg.schedule != 0 {
        assert!(found.dense == 1 && found.pairs == found.all_pairs, "{cfg:?}");
    }
}
