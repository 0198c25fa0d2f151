//! Who writes which rows: every output row belongs to exactly one query tile or GQA group, whatever
//! the batch, the tiles, the number of threads and of callers.

mod common;

use common::{Random, kernels};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::problem::{Batch, Logits, Problem, Semantics, Tensors};
use flash_attention::view::{Array, Layout, View, ViewMut};
use flash_attention::work::WorkQueues;
use flash_attention::work::query_tiles::{DecodeRule, Way, WayRule};

/// A random batch, ragged or not, of rows of one element.
struct Case {
    heads: usize,
    group: usize,
    /// Query rows and keys of each sequence.
    lens: Vec<[usize; 2]>,
    ragged: bool,
}

impl Case {
    fn random(random: &mut Random) -> Case {
        let ragged = random.below(2) == 1;
        let batch = 1 + random.below(4);
        let most = [1, 5, 40, 130][random.below(4)];
        let mut len = || [random.below(most + 1), random.below(2000)];
        let lens = if ragged { (0..batch).map(|_| len()).collect() } else { vec![len(); batch] };
        Case { heads: 1 + random.below(3), group: 1 + random.below(3), lens, ragged }
    }

    fn with_problem(&self, f: impl FnOnce(&mut Problem)) {
        let starts = |which: usize| {
            let ends = self.lens.iter().scan(0, |sum, len| {
                *sum += len[which] as i32;
                Some(*sum)
            });
            std::iter::once(0).chain(ends).collect::<Vec<i32>>()
        };
        let (starts_q, starts_kv) = (starts(0), starts(1));
        let most = [0, 1].map(|which| self.lens.iter().map(|len| len[which]).max().unwrap());
        let heads_q = self.heads * self.group;
        let layout = |heads: usize, which: usize| {
            let rows: usize = self.lens.iter().map(|len| len[which]).sum();
            let (batch, tokens) = if self.ragged { (1, rows) } else { (self.lens.len(), most[which]) };
            let stride = [heads * tokens * 4, tokens * 4, 4];
            Layout { dtype: Dtype::F32, extent: [batch, heads, tokens], dim: 1, stride, stride_dim: 0 }
        };
        let data = vec![1f32; 1 << 17];
        let mut out = data.clone();
        let batch = Batch {
            starts_q: Some(Array::of(&starts_q)),
            starts_kv: Some(Array::of(&starts_kv)),
            most,
            ..Batch::default()
        };
        let tensors = Tensors {
            q: View::of(&data, layout(heads_q, 0)).unwrap(),
            k: View::of(&data, layout(self.heads, 1)).unwrap(),
            v: View::of(&data, layout(self.heads, 1)).unwrap(),
            o: ViewMut::of(&mut out, layout(heads_q, 0)).unwrap(),
            lse: None,
            batch: if self.ragged { batch } else { Batch::default() },
            logits: Logits::default(),
            weights: None,
        };
        f(&mut Problem::new(tensors, Semantics::with_scale(1.0).causal()).unwrap());
    }
}

#[test]
fn every_row_has_one_writer() {
    let mut random = Random(1);
    let kernel = kernels(Dtype::F32).next().unwrap().kernel;
    for _ in 0..400 {
        let case = Case::random(&mut random);
        let too_few = [13, 26, 39, 52];
        let row_keys = random.below(3) * 20;
        let decode =
            DecodeRule { lanes: 16, too_few, row_keys, heads: case.group, of_head: random.below(17) };
        let by_rows = WayRule::ByRows { split_rows: random.below(30), decode: Some(decode) };
        let [tiles, split_tiles, decode] = [Way::Tiles, Way::SplitTiles, Way::Decode].map(WayRule::Always);
        let rules = [tiles, split_tiles, decode, by_rows];
        let (rule, rows) = (rules[random.below(4)], 1 + random.below(50));
        let (ranges, callers) = ([1, 2, 7, 64][random.below(4)], 1 + random.below(4));
        let together = 1 + random.below(4);
        case.with_problem(|problem| {
            let path = if rule == tiles { Path::Prefill } else { Path::Decode };
            let plan = Plan::on(path, problem.shape(), kernel, Machine::get(), 1).unwrap();
            let mut partition = plan.partition;
            (partition.rule, partition.prefill.q, partition.ranges) = (rule, rows, ranges);
            if case.group.is_multiple_of(together) {
                partition.prefill.heads = together;
            }
            let heads = problem.shape().queries[1];
            let mut writers: Vec<Vec<usize>> = case.lens.iter().map(|len| vec![0; heads * len[0]]).collect();
            for caller in 0..callers {
                let work = WorkQueues::of_caller(problem, &partition, [caller, callers]);
                while let Some(tile) = work.tiles.take() {
                    let batch = tile.coord().batch;
                    let [len, _] = case.lens[batch];
                    tile.lines().for_each(|(head, row)| writers[batch][head * len + row] += 1);
                }
                while let Some(range) = work.ranges.take() {
                    let written = range.try_for_each(|piece| {
                        // The range with the first split of a group writes its rows.
                        let (batch, len) = (piece.sequence().batch, piece.sequence().len_q);
                        if piece.splits.start == 0 {
                            piece.lines().for_each(|(head, row)| writers[batch][head * len + row] += 1);
                        }
                        Ok::<_, ()>(())
                    });
                    written.unwrap();
                }
            }
            let all_once = writers.iter().flatten().all(|&n| n == 1);
            assert!(all_once, "{rule:?}, {rows} rows, {ranges} ranges, {callers} callers, {:?}", case.lens);
        });
    }
}

/// Callers with threads of their own have no queue to even things out.
#[test]
fn callers_have_as_many_keys_within_a_split() {
    let kernel = kernels(Dtype::F32).next().unwrap().kernel;
    for (keys, callers) in
        [(2048, 2), (2048, 4), (2048, 3), (6000, 2), (20_000, 3), (20_000, 7), (40_000, 16)]
    {
        let case = Case { heads: 1, group: 1, lens: vec![[1, keys]], ragged: false };
        case.with_problem(|problem| {
            let plan = Plan::new(problem.shape(), kernel, Machine::get(), callers).unwrap();
            let mut partition = plan.partition;
            // As for heads of more elements: these are too small for two threads.
            partition.ranges = 4 * callers;
            let mut split_keys = 0;
            let of_callers: Vec<usize> = (0..callers)
                .map(|caller| {
                    let (work, mut own) = (WorkQueues::of_caller(problem, &partition, [caller, callers]), 0);
                    while let Some(range) = work.ranges.take() {
                        let counted = range.try_for_each(|piece| {
                            split_keys = piece.keys(0).len();
                            own += piece.splits.clone().map(|split| piece.keys(split).len()).sum::<usize>();
                            Ok::<_, ()>(())
                        });
                        counted.unwrap();
                    }
                    own
                })
                .collect();
            assert_eq!(of_callers.iter().sum::<usize>(), keys);
            let most = keys / callers + split_keys;
            assert!(of_callers.iter().all(|&own| own <= most), "{callers} callers: {of_callers:?}");
        });
    }
}
