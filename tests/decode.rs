//! Few query rows on many keys: how the work is cut among threads, and lengths beyond 2^16 and
//! 10^6.

mod common;

use common::{Inputs, KernelPath, Size, kernels, largest, max_error, relative_rms};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::work::WorkQueues;

fn decoders() -> impl Iterator<Item = KernelPath> {
    kernels(Dtype::F32).filter(|kernel| kernel.path == Path::Decode)
}

/// What f32 promises, computed by two threads.
fn are_right(inputs: &Inputs<f32>) {
    let exact = inputs.exact();
    for kernel in decoders() {
        let output = inputs.run(kernel, 2);
        let error = max_error(&output.o, &exact.o);
        assert!(error <= 1e-5 * largest(&inputs.v), "{kernel:?}: {:?}: {error:.1e}", inputs.size);
        assert!(max_error(&output.lse, &exact.lse) <= 1e-5, "{kernel:?}: {:?}", inputs.size);
    }
}

/// Every split of every GQA group is in exactly one range, in order, and the splits of a group are
/// its keys.
#[test]
fn ranges_are_all_of_the_work_once() {
    for (heads, len_q, len_kv) in [(1, 1, 20_000), (3, 1, 5_000), (2, 40, 3_000), (5, 3, 513), (7, 2, 1)] {
        let inputs = Inputs::normal(Size::new(heads, len_q, len_kv, 1), 1);
        inputs.with_problem(|problem| {
            let row = decoders().next().unwrap().kernel;
            let paths = [Path::Decode, Path::Prefill];
            for (ranges, path) in [1, 2, 3, 8, 64].into_iter().flat_map(|n| paths.map(|path| (n, path))) {
                let plan = Plan::on(path, problem.shape(), row, Machine::get(), 1).unwrap();
                if plan.tiles.splits.is_none() {
                    continue;
                }
                let mut partition = plan.partition;
                partition.ranges = ranges;
                let mut keys = vec![vec![0usize; len_kv]; heads * len_q];
                let mut before = None;
                let work = WorkQueues::new(problem, &partition, 1);
                while let Some(range) = work.ranges.take() {
                    range
                        .try_for_each(|piece| {
                            for (head, row) in piece.lines() {
                                for split in piece.splits.clone() {
                                    let at = (head, row, split);
                                    assert!(piece.count() > 1 || before.replace(at).is_none_or(|x| x < at));
                                    piece.keys(split).for_each(|key| keys[head * len_q + row][key] += 1);
                                }
                            }
                            // The range with the first split of a group finds the others in later
                            // ranges.
                            if piece.splits.start == 0 {
                                let mut next = piece.splits.end;
                                for (_, splits) in range.in_later_ranges(&piece) {
                                    assert_eq!(splits.start, next);
                                    next = splits.end;
                                }
                                assert_eq!(next, piece.all_splits());
                            }
                            Ok::<_, ()>(())
                        })
                        .unwrap();
                }
                assert!(keys.iter().flatten().all(|&times| times == 1), "{ranges} ranges of {heads} heads");
            }
        });
    }
}

/// One sequence and one head are enough for all threads, whose number changes no bit: with decode,
/// and with tiles of prefill.
#[test]
fn one_head_is_divided_among_threads() {
    for rows in [1, 40] {
        let inputs = Inputs::normal(Size::new(1, rows, 20_000, 128), 5);
        let mut shape = None;
        inputs.with_problem(|problem| shape = Some(*problem.shape()));
        let exact = inputs.exact();
        let path = if rows == 1 { Path::Decode } else { Path::Prefill };
        for kernel in kernels(Dtype::F32).filter(|kernel| kernel.path == path) {
            let plan = kernel.plan(&shape.unwrap(), 4).unwrap();
            assert!(plan.threads == 4 && plan.partition.ranges > 4 && plan.work_items == 1, "{plan:?}");
            let one = inputs.run(kernel, 1);
            assert!(max_error(&one.o, &exact.o) <= 1e-5 * largest(&inputs.v), "{kernel:?}");
            for threads in [2, 3, 4, 7, 16] {
                assert_eq!(inputs.run(kernel, threads), one, "{kernel:?}, {threads} threads");
            }
        }
    }
}

/// More keys than 16 and 20 bits count.
#[test]
fn very_long_sequences_are_right() {
    for (len_kv, dim) in [(65_537, 16), (131_072, 8), (1_000_003, 2)] {
        are_right(&Inputs::normal(Size::new(1, 2, len_kv, dim), 3).causal());
    }
}

/// Caches that come from memory are read by loops of their own, which ask for the rows that are
/// next: of four and more rows, and of one row of 8-bit integers.
#[test]
fn caches_larger_than_the_last_level_are_right() {
    const DIM: usize = 64;
    // Larger than half of it, where that is not too much for a test.
    let keys = |bytes: usize| (Machine::get().l3 / 2 / (2 * DIM * bytes) + 1003).min(300_000);
    are_right(&Inputs::normal(Size::new(1, 5, keys(4), DIM), 7).causal());
    for rows in [1, 5] {
        let inputs = Inputs::normal(Size::new(1, rows, keys(1), DIM), 8).quantised();
        let exact = inputs.exact();
        for kernel in kernels(Dtype::I8).filter(|kernel| kernel.path == Path::Decode) {
            let output = inputs.run(kernel, 2);
            let error = relative_rms(&output.o, &exact.o);
            assert!(error <= 3e-4, "{kernel:?}, {rows} rows: {error:.1e}");
        }
    }
}

/// Threads of a caller that computes in parts come whether there is much to do or not, so that they
/// share what no thread of a pool is worth waking, or keeping busy, for.
#[test]
fn parts_of_a_caller_share_small_problems() {
    let row = decoders().next().unwrap().kernel;
    for (len_kv, parts) in [(64, 1), (512, 2), (1000, 2)] {
        Inputs::normal(Size::new(3, 1, len_kv, 64), 1).with_problem(|problem| {
            let plan = Plan::new(problem.shape(), row, Machine::get(), 2).unwrap();
            assert_eq!(plan.threads, 1, "{len_kv} keys");
            let plan = Plan::in_parts(problem.shape(), row, Machine::get(), 2).unwrap();
            assert_eq!(plan.threads, parts, "{len_kv} keys");
        });
    }
}

/// A thread that sleeps is worth less than one that is awake.
#[test]
fn threads_are_woken_for_long_calls_only() {
    let row = decoders().next().unwrap().kernel;
    for (len_kv, threads, wake) in [(1000, 1, 0), (2048, 2, 0), (8192, 4, 2), (100_000, 4, 3)] {
        Inputs::normal(Size::new(1, 1, len_kv, 128), 1).with_problem(|problem| {
            let plan = Plan::new(problem.shape(), row, Machine::get(), 4).unwrap();
            assert_eq!((plan.threads, plan.wake), (threads, wake), "{len_kv} keys");
            assert_eq!(plan.to_string().contains("worth waking"), wake + 1 < threads, "{plan}");
        });
    }
}
