//! From partitions to lists: against what is said of single pairs, one by one.

mod common;
#[path = "common/pairs.rs"]
mod pairs;

use common::Random;
use flash_attention::{
    Array, Attention, Columns, Error, KeptBlocks, Partitions, Pool, Schedule, SparseLists, Sparsity, Tensor,
    TensorMut, Workspace,
};
use pairs::{ALL, Pairs, kept_tokens};

fn numbers(list: &Array<i32>) -> Vec<usize> {
    (0..list.len()).map(|i| list.get(i) as usize).collect()
}

/// Lists as they are written, with memory of exactly the size that was asked for.
fn lists_of(p: &Partitions) -> (Vec<Vec<usize>>, Vec<usize>, Sparsity) {
    let asked = p.measure().expect("fine");
    let mut memory = vec![-7; asked.entries().expect("a size")];
    let SparseLists { starts, blocks, column_start, columns, sparsity, .. } =
        p.lists(&mut memory).expect("fine");
    assert_eq!(sparsity, asked);
    assert_eq!([starts.len(), blocks.len(), columns.len()], [asked.starts, asked.blocks, asked.columns]);
    assert_eq!(column_start, [0, columns.len() as i32]);
    assert_eq!((starts[0], starts[starts.len() - 1]), (0, blocks.len() as i32));
    let lists = starts
        .windows(2)
        .map(|ends| blocks[ends[0] as usize..ends[1] as usize].iter().map(|&block| block as usize).collect());
    (lists.collect(), columns.iter().map(|&key| key as usize).collect(), sparsity)
}

fn oracle_of(p: &Partitions) -> Pairs {
    let Partitions { causal, len_q, len_kv, kept_q, kept_kv, window, max_edges, .. } = *p;
    let starts = numbers(&p.partitions);
    let columns = kept_tokens(&numbers(&p.boundary_tokens), max_edges);
    Pairs { causal, len_q, len_kv, kept: [kept_q, kept_kv], starts, columns, window }
}

/// The target of a schedule, in real numbers, as its crate has it for a `coherence_high` of 300.
fn target_of(p: &Partitions) -> f64 {
    let [least, most] = [p.min_density, p.max_density].map(|d| f64::from(d) / f64::from(ALL));
    let [low, high, now] = [p.coherence_low, p.coherence_high, p.coherence].map(f64::from);
    match p.schedule {
        Schedule::None => unreachable!(),
        Schedule::Linear if now >= high => most,
        Schedule::Linear => least + (now - low) / (high - low) * (most - least),
        Schedule::Threshold => {
            if now >= high {
                most
            } else {
                least
            }
        }
        Schedule::Adaptive => {
            let base = (now / (high / 2.0).floor().max(1.0)).clamp(0.0, 1.0) * 0.6 + 0.1;
            let of_boundaries = f64::from(p.concentration) / f64::from(ALL) * 0.2;
            let of_partitions = (0.05 * p.partitions.len() as f64).min(0.2);
            (base + of_boundaries - of_partitions).clamp(0.1, 0.9).clamp(least, most)
        }
    }
}

fn ascending(random: &mut Random, below: usize, share: f64, first: Option<i32>) -> Vec<i32> {
    let mut list: Vec<i32> = (0..below as i32).filter(|_| random.uniform() < share).collect();
    if let Some(first) = first.filter(|_| below > 0 && !list.is_empty()) {
        list[0] = first;
    }
    list
}

#[test]
fn lists_are_what_is_said_of_each_pair() {
    let mut random = Random(1);
    let (mut shortened, mut widened, mut dense, mut columns_elsewhere) = (0, 0, 0, 0);
    for round in 0..900 {
        let len_kv = random.below(40);
        let shares = [0.0, 0.1, 0.3].map(|share| share * random.uniform());
        let partitions = ascending(&mut random, len_kv, shares[round % 3], Some(0));
        let tokens = ascending(&mut random, len_kv, 0.2, None);
        let schedules = [Schedule::None, Schedule::Linear, Schedule::Threshold, Schedule::Adaptive];
        let mut limits = [0; 2].map(|_: u32| random.below(ALL as usize + 1) as u32);
        limits.sort_unstable();
        let limits = if round % 5 < 3 { [0, ALL] } else { limits };
        let p = Partitions {
            len_q: if random.below(3) == 0 { random.below(len_kv + 1) } else { len_kv },
            kept_q: 1 + random.below(9),
            kept_kv: if round % 50 == 0 { usize::MAX } else { 1 + random.below(9) },
            boundary_tokens: Array::of(&tokens),
            max_edges: if random.below(2) == 0 { random.below(6) } else { usize::MAX },
            window: if round % 49 == 0 { usize::MAX } else { random.below(8) * random.below(2) },
            causal: random.below(3) > 0,
            schedule: schedules[random.below(4)],
            coherence: random.below(400) as u32,
            coherence_high: if round % 7 == 0 { 30 } else { 300 },
            concentration: random.below(ALL as usize + 1) as u32,
            min_density: limits[0],
            max_density: limits[1],
            ..Partitions::new(len_kv, &partitions)
        };
        let oracle = oracle_of(&p);
        let (lists, columns, found) = lists_of(&p);
        assert_eq!(columns, oracle.columns, "{p:?}");
        assert_eq!(lists, oracle.lists(found.window, found.reach), "{p:?}");
        let [pairs, column_pairs] = oracle.pairs(&lists);
        assert_eq!(
            [found.pairs, found.column_pairs, found.all_pairs],
            [pairs, column_pairs, oracle.all_pairs()]
        );
        let density = if found.all_pairs == 0 { 1.0 } else { pairs as f64 / found.all_pairs as f64 };
        assert_eq!(found.density(), density);

        let no_schedule = p.schedule == Schedule::None;
        let untrusted = !no_schedule && (p.coherence < p.coherence_low || partitions.len() < 2);
        assert_eq!(found.is_dense, untrusted, "{p:?}");
        if untrusted {
            assert!(found.pairs == found.all_pairs && found.target == ALL, "{found:?}");
            assert_eq!(found.time_saved(), 0.0);
            dense += 1;
            continue;
        }
        let whole = oracle.lists(p.window.min(len_kv), len_kv);
        let share = oracle.pairs(&whole)[0] as f64 / found.all_pairs.max(1) as f64;
        let target = f64::from(found.target) / f64::from(ALL);
        if no_schedule {
            let [least, most] = [p.min_density, p.max_density].map(|d| f64::from(d) / f64::from(ALL));
            assert!((target - share.clamp(least, most)).abs() < 1e-4, "{target} {share} {p:?}");
        } else {
            assert!((target - target_of(&p)).abs() < 1e-4, "{target} {} {p:?}", target_of(&p));
        }
        let is_kept = no_schedule
            && share < f64::from(p.max_density) / f64::from(ALL)
            && share > f64::from(p.min_density) / f64::from(ALL);
        let is_at_a_limit = no_schedule && (target - share).abs() < 1e-4;
        if is_kept {
            assert_eq!(lists, whole, "{p:?}");
        } else if !is_at_a_limit {
            assert_eq!(lists, oracle.densest(found.target), "{p:?}");
        }
        let lists_differ = lists != whole;
        shortened += u32::from(lists_differ && found.window <= p.window);
        widened += u32::from(lists_differ && found.window > p.window);
        columns_elsewhere += u32::from(column_pairs > 0);
        let cost =
            (1.1 * (pairs - column_pairs) as f64 + 1.3 * column_pairs as f64) / found.all_pairs.max(1) as f64;
        let saved = if found.all_pairs == 0 { 0.0 } else { (1.0 - cost).max(0.0) };
        assert!((found.time_saved() - saved).abs() < 1e-12, "{} {saved}", found.time_saved());
    }
    // It is about what it is meant to be about.
    for n in [shortened, widened, dense, columns_elsewhere] {
        assert!(n > 50, "{shortened} {widened} {dense} {columns_elsewhere}");
    }
}

/// Numbers that are those of the crate whose schedules these are: its defaults, and its tests'.
#[test]
fn schedules_are_those_of_their_crate() {
    let starts = [0, 300, 600];
    let of = |schedule, coherence, concentration| {
        let p = Partitions {
            schedule,
            coherence,
            concentration,
            min_density: 3277,
            max_density: 29491,
            ..Partitions::new(1000, &starts)
        };
        f64::from(p.measure().expect("fine").target) / f64::from(ALL)
    };
    for (schedule, coherence, concentration, wanted) in [
        (Schedule::Adaptive, 100, 8192, 0.4),
        (Schedule::Adaptive, 30, 0, 0.1),
        (Schedule::Adaptive, 300, 32768, 0.75),
        (Schedule::Threshold, 299, 0, 0.1),
        (Schedule::Threshold, 300, 0, 0.9),
        (Schedule::Linear, 30, 0, 0.1),
        (Schedule::Linear, 165, 0, 0.5),
        (Schedule::Linear, 1000, 0, 0.9),
    ] {
        let is = of(schedule, coherence, concentration);
        assert!((is - wanted).abs() < 1e-4, "{schedule:?} at {coherence}: {is}, not {wanted}");
    }
}

/// What is large is counted without overflow, and refused where numbers of 32 bits end.
#[test]
fn large_texts_are_counted() {
    let most = i32::MAX as usize;
    let p = Partitions { kept_q: 1 << 20, kept_kv: 1 << 20, ..Partitions::new(most, &[]) };
    let found = p.measure().expect("fine");
    assert_eq!((found.starts, found.blocks), (2049, 2048 * 2049 / 2));
    assert_eq!(found.pairs, (most as u64) * (most as u64 + 1) / 2);
    let both_ways = Partitions { causal: false, window: usize::MAX, ..p };
    assert_eq!(both_ways.measure().expect("fine").pairs, (most as u64) * (most as u64));
    let refused = Partitions { kept_q: 1 << 12, kept_kv: 1 << 12, ..p }.measure().expect_err("2^37 blocks");
    assert_eq!(refused.error, Error::Overflow);
    let refused = Partitions { len_kv: most + 1, ..p }.measure().expect_err("2^31 keys");
    assert_eq!(
        (refused.error, refused.to_string().as_str()),
        (Error::Overflow, "len_kv = 2147483648: 2^31 or more")
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let starts = [0, 10, 20];
    let p = Partitions::new(30, &starts);
    let [behind, twice, negative, late] = [[0, 30], [4, 4], [-1, 2], [1, 2]];
    let refused = [
        (
            Partitions { len_q: 31, ..p },
            Error::Shape,
            "len_q = 31: query rows are the last tokens, but there are more than len_kv = 30",
        ),
        (Partitions { kept_q: 0, ..p }, Error::ZeroExtent, "kept_q = 0: must be at least 1"),
        (Partitions { kept_kv: 0, ..p }, Error::ZeroExtent, "kept_kv = 0: must be at least 1"),
        (
            Partitions { partitions: Array::of(&behind), ..p },
            Error::Lengths,
            "partitions[1] = 30: not below len_kv = 30",
        ),
        (
            Partitions { partitions: Array::of(&late), ..p },
            Error::Lengths,
            "partitions[0] = 1: the first one begins with token = 0",
        ),
        (
            Partitions { partitions: Array::of(&negative), ..p },
            Error::Lengths,
            "partitions[0] = -1: negative",
        ),
        (
            Partitions { boundary_tokens: Array::of(&twice), ..p },
            Error::Lengths,
            "boundary_tokens[1] = 4: tokens are ascending, each once, but this is less than = 5",
        ),
        (
            Partitions { min_density: 5, max_density: 4, ..p },
            Error::Shape,
            "min_density = 5: more than max_density = 4",
        ),
        (
            Partitions { max_density: ALL + 1, ..p },
            Error::Shape,
            "max_density = 32769: more than 1, which is 32768",
        ),
        (
            Partitions { concentration: ALL + 1, ..p },
            Error::Shape,
            "concentration = 32769: more than 1, which is 32768",
        ),
        (
            Partitions { coherence_low: 301, ..p },
            Error::Shape,
            "coherence_low = 301: more than coherence_high = 300",
        ),
    ];
    for (wrong, error, words) in refused {
        let refusal = wrong.measure().expect_err(words);
        assert_eq!((refusal.error, refusal.to_string().as_str()), (error, words));
        let mut memory = [-7; 100];
        assert_eq!(wrong.lists(&mut memory).expect_err(words), refusal);
        assert_eq!(memory, [-7; 100]);
    }
    let needed = p.measure().expect("fine").entries().expect("a size");
    let mut memory = vec![-7; needed - 1];
    let refusal = p.lists(&mut memory).expect_err("too small");
    let words = format!("room = {}: less than the entries of all lists = {needed}", needed - 1);
    assert_eq!((refusal.error, refusal.to_string()), (Error::Shape, words));
    assert!(memory.iter().all(|&x| x == -7));
}

/// Attention takes the lists as they are, and computes what a mask of all pairs says.
#[test]
fn attention_takes_the_lists() {
    let (len, dim) = (300, 16);
    let mut random = Random(7);
    let x = random.normals(len * dim);
    let (starts, tokens) = ([0, 40, 130, 200], [0, 7, 130]);
    for (len_q, schedule) in [(len, Schedule::None), (70, Schedule::Linear), (3, Schedule::None)] {
        let p = Partitions {
            len_q,
            kept_q: 16,
            kept_kv: 32,
            window: 20,
            boundary_tokens: Array::of(&tokens),
            schedule,
            coherence: 100,
            ..Partitions::new(len, &starts)
        };
        let mut memory = vec![0; p.measure().expect("fine").entries().expect("a size")];
        let lists = p.lists(&mut memory).expect("fine");
        assert!(lists.sparsity.pairs < lists.sparsity.all_pairs);
        let mask: Vec<bool> = (0..len_q * len)
            .map(|pair| {
                let (r, key) = (pair / len / 16, (pair % len) as i32);
                let list = &lists.blocks[lists.starts[r] as usize..lists.starts[r + 1] as usize];
                list.contains(&(key / 32)) || tokens.contains(&key)
            })
            .collect();
        let keys = Tensor::head_first(&x, [1, 1, len, dim]);
        let queries = Tensor::head_first(&x[..len_q * dim], [1, 1, len_q, dim]);
        let (mut workspace, pool) = (Workspace::new(), Pool::default());
        let mut outputs = [vec![0.0; len_q * dim], vec![0.0; len_q * dim]];
        for (by_mask, out) in outputs.iter_mut().enumerate() {
            let out = TensorMut::head_first(out, [1, 1, len_q, dim]);
            let attention = Attention::new(queries, keys, keys, out).causal();
            let mut attention = match by_mask {
                0 => attention.kept_blocks(KeptBlocks::from(lists)).columns(Columns::from(lists)),
                _ => attention.mask(Tensor::head_first(&mask, [1, 1, len_q, len])),
            };
            attention.reserve(&mut workspace, &pool).expect("memory");
            attention.run(&mut workspace, &pool).expect("fine");
        }
        let [ours, wanted] = outputs;
        assert!(ours.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{len_q} rows");
    }
}
