//! Laws that hold for every problem, on random ones.

mod common;

use std::ops::Range;

use common::{Inputs, Output, Random, Size, kernels, largest, layout, max_error, run, same_bits};
use flash_attention::attend::merge::merge;
use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::problem::{
    Batch, BlockMask, Blocks, Logits, Position, Problem, Semantics, Shape, Slopes, Tensors, Window,
};
use flash_attention::reference;
use flash_attention::view::{Array, Layout, View, ViewMut};
use proptest::prelude::*;

fn sizes() -> impl Strategy<Value = Size> {
    (1..4usize, 1..150usize, 1..300usize, 1..70usize).prop_map(|(h, q, kv, d)| Size::new(h, q, kv, d))
}

fn inputs() -> impl Strategy<Value = Inputs<f32>> {
    (sizes(), any::<u64>(), any::<bool>(), prop_oneof![Just(0), 1..200usize]).prop_map(
        |(size, seed, causal, block_kv)| {
            let inputs = Inputs::normal(size, seed).blocks(0, block_kv);
            if causal { inputs.causal() } else { inputs }
        },
    )
}

/// One head's keys and values `keys` of `inputs` (which has one head), with every query.
fn cut(inputs: &Inputs<f32>, keys: Range<usize>) -> Inputs<f32> {
    let Size { len_q, dim, .. } = inputs.size;
    let elements = keys.start * dim..keys.end * dim;
    Inputs {
        size: Size::new(1, len_q, keys.len(), dim),
        q: inputs.q.clone(),
        k: inputs.k[elements.clone()].to_vec(),
        v: inputs.v[elements].to_vec(),
        scales: inputs.scales,
        semantics: inputs.semantics,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Adding the same vector to all keys adds a constant to all scores of a query.
    #[test]
    fn a_constant_added_to_all_scores_changes_nothing(inputs in inputs(), seed: u64) {
        let mut random = Random(seed);
        let shift = random.normals(inputs.size.dim);
        let mut shifted = inputs.clone();
        for k in shifted.k.chunks_mut(inputs.size.dim) {
            k.iter_mut().zip(&shift).for_each(|(k, shift)| *k += shift);
        }
        for kernel in kernels(Dtype::F32) {
            let [a, b] = [&inputs, &shifted].map(|inputs| inputs.run(kernel, 1).o);
            let b: Vec<f64> = b.into_iter().map(f64::from).collect();
            prop_assert!(max_error(&a, &b) <= 1e-5 * largest(&inputs.v), "{kernel:?}");
        }
    }

    /// Masking keys at the end is the same, to the bit, as not having them.
    #[test]
    fn cutting_keys_equals_masking_them(
        seed: u64, len in 1..200usize, dim in 1..40usize, kept in 0.0..1.0, block_kv in 1..100usize,
    ) {
        let kept = (len as f64 * kept) as usize;
        let inputs = Inputs::normal(Size::new(1, 1, len, dim), seed).blocks(0, block_kv);
        let mut masked = inputs.clone();
        masked.semantics.q_pos = Position::At(kept as i64 - 1);
        masked.semantics.window.right = Some(0);
        for kernel in kernels(Dtype::F32) {
            prop_assert!(same_bits(&masked.run(kernel, 1).o, &cut(&inputs, 0..kept).run(kernel, 1).o), "{kernel:?}");
        }
    }

    /// Attention over pieces of the keys, merged by their log-sum-exps, is attention over all.
    #[test]
    fn splitting_and_merging_equals_the_whole(
        seed: u64, len_q in 1..50usize, len_kv in 1..300usize, dim in 1..40usize,
        cuts in prop::collection::vec(0.0..1.0, 1..7), causal: bool,
    ) {
        let size = Size::new(1, len_q, len_kv, dim);
        let inputs = Inputs::normal(size, seed);
        let inputs = if causal { inputs.causal() } else { inputs };
        let mut edges: Vec<usize> = cuts.iter().map(|c| (c * len_kv as f64) as usize).collect();
        edges.extend([0, len_kv]);
        edges.sort_unstable();
        for kernel in kernels(Dtype::F32) {
            let whole = inputs.run(kernel, 1);
            let mut merged = Output {
                o: vec![0.0; size.queries()],
                lse: vec![f32::NEG_INFINITY; len_q],
            };
            for edge in edges.windows(2) {
                let mut piece = cut(&inputs, edge[0]..edge[1]);
                // Positions count from the piece's own first key.
                piece.semantics.q_pos = Position::At(inputs.q_pos() - edge[0] as i64);
                let piece = piece.run(kernel, 1);
                merge(&mut merged.o, &mut merged.lse, &piece.o, &piece.lse, dim);
            }
            let exact: Vec<f64> = whole.o.iter().map(|&x| f64::from(x)).collect();
            prop_assert!(max_error(&merged.o, &exact) <= 1e-5 * largest(&inputs.v), "{kernel:?}");
            let exact: Vec<f64> = whole.lse.iter().map(|&x| f64::from(x)).collect();
            prop_assert!(max_error(&merged.lse, &exact) <= 1e-5, "{kernel:?}");
        }
    }

    /// The same bits for every number of threads and every size of query tiles.
    #[test]
    fn threads_and_query_tiles_do_not_change_a_bit(inputs in inputs(), block_q in 1..200usize) {
        for kernel in kernels(Dtype::F32) {
            let one = inputs.run(kernel, 1);
            for threads in [2, 7] {
                prop_assert_eq!(&inputs.run(kernel, threads), &one);
            }
            let block_kv = inputs.semantics.block_kv;
            prop_assert_eq!(&inputs.clone().blocks(block_q, block_kv).run(kernel, 2), &one);
        }
        let quantised = inputs.quantised();
        for kernel in kernels(Dtype::I8) {
            let one = quantised.run(kernel, 1);
            for threads in [2, 7] {
                prop_assert_eq!(&quantised.run(kernel, threads), &one);
            }
        }
    }

    /// A row alone has the bits that it has among others.
    #[test]
    fn a_row_does_not_depend_on_its_neighbours(
        inputs in inputs(), pick in 0.0..1.0, left in prop::option::of(0..200u64),
    ) {
        let mut inputs = inputs;
        inputs.semantics.window.left = left;
        let Size { len_q, len_kv, dim, .. } = inputs.size;
        let i = (pick * len_q as f64) as usize;
        let alone = Inputs {
            size: Size::new(1, 1, len_kv, dim),
            q: inputs.q[i * dim..][..dim].to_vec(),
            k: inputs.k[..len_kv * dim].to_vec(),
            v: inputs.v[..len_kv * dim].to_vec(),
            scales: inputs.scales,
            semantics: Semantics { q_pos: Position::At(inputs.q_pos() + i as i64), ..inputs.semantics },
        };
        for kernel in kernels(Dtype::F32) {
            let all = inputs.run(kernel, 1);
            let one = alone.run(kernel, 1);
            prop_assert!(same_bits(&one.o, &all.o[i * dim..][..dim]), "{kernel:?}: row {i}");
            prop_assert_eq!(one.lse[0].to_bits(), all.lse[i].to_bits());
        }
    }

    /// Everything that changes what is seen and how scores become logits, against the page that
    /// defines it.
    #[test]
    fn every_problem_agrees_with_the_reference(
        seed: u64,
        batch in 1..3usize, heads_kv in 1..3usize, group in 1..4usize,
        len_q in 1..70usize, len_kv in 0..150usize, dim_qk in 1..40usize, dim_v in 1..40usize,
        q_pos in -100i64..200, left in prop::option::of(0..100u64), right in prop::option::of(0..100u64),
        block_kv in 0..70usize, padding in 0..5usize,
        softcap in prop_oneof![Just(0f32), 0.5f32..20.0], which: [bool; 5], cell in 1..40usize,
    ) {
        let heads_q = heads_kv * group;
        let mut random = Random(seed);
        // Heads interleaved: [batch][token][head][dim + padding].
        let interleaved = |tokens: usize, heads: usize, dim: usize| {
            let row = 4 * (dim + padding);
            let stride = [tokens * heads * row, row, heads * row];
            Layout { dtype: Dtype::F32, extent: [batch, heads, tokens], dim, stride, stride_dim: 0 }
        };
        let mut data = |tokens: usize, heads: usize, dim: usize| {
            random.normals(batch * tokens * heads * (dim + padding))
        };
        let q = data(len_q, heads_q, dim_qk);
        let k = data(len_kv, heads_kv, dim_qk);
        let v = data(len_kv, heads_kv, dim_v);
        let semantics = Semantics {
            q_pos: Position::At(q_pos), window: Window { left, right }, block_kv, ..Semantics::with_scale(0.3)
        };
        let [masked, by_bytes, sloped, sunk, in_cells] = which;
        // One mask for all heads, which hides keys here and there.
        let seen = |random: &mut Random, n: usize| -> Vec<u8> { (0..n).map(|_| random.below(4) as u8).collect() };
        let bytes = seen(&mut random, len_q * len_kv);
        let hide = |(bias, seen): (f32, &u8)| if *seen == 0 { f32::NEG_INFINITY } else { bias };
        let numbers: Vec<f32> = random.normals(len_q * len_kv).into_iter().zip(&bytes).map(hide).collect();
        let shared = |dtype: Dtype, rows: usize, dim: usize| {
            Layout { dtype, extent: [batch, heads_q, rows], dim, stride: [0, 0, dim * dtype.block_bytes()], stride_dim: 0 }
        };
        let cells = seen(&mut random, len_q.div_ceil(cell) * len_kv.div_ceil(cell));
        // Small ones, as logits beyond some tens are coarser in f32 than the bound below.
        let slopes: Vec<f32> = random.normals(heads_q).iter().map(|x| x / 30.0).collect();
        let sinks = random.normals(heads_q);
        let of_bytes = |bytes: &[u8], rows: usize, dim: usize| {
            // SAFETY: `rows * dim` bytes, which outlive the problems.
            unsafe { View::new(bytes.as_ptr(), shared(Dtype::Bool8, rows, dim)) }.unwrap()
        };
        let mask = match by_bytes {
            true => of_bytes(&bytes, len_q, len_kv),
            false => View::of(&numbers, shared(Dtype::F32, len_q, len_kv)).unwrap(),
        };
        let logits = Logits {
            softcap,
            mask: masked.then_some(mask),
            cells: in_cells.then(|| BlockMask {
                blocks: Blocks::Bytes(of_bytes(&cells, len_q.div_ceil(cell), len_kv.div_ceil(cell))),
                rows: cell, keys: cell,
            }),
            columns: None,
            slopes: sloped.then(|| Slopes {
                values: Array::of(&slopes), batch_stride: 0, times_mask: masked && !by_bytes && seed % 2 == 0,
            }),
            sinks: sunk.then(|| Array::of(&sinks)),
        };
        for kernel in kernels(Dtype::F32) {
            let mut o = vec![f32::MAX; batch * len_q * heads_q * (dim_v + padding)];
            let tensors = Tensors {
                q: View::of(&q, interleaved(len_q, heads_q, dim_qk)).unwrap(),
                k: View::of(&k, interleaved(len_kv, heads_kv, dim_qk)).unwrap(),
                v: View::of(&v, interleaved(len_kv, heads_kv, dim_v)).unwrap(),
                o: ViewMut::of(&mut o, interleaved(len_q, heads_q, dim_v)).unwrap(),
                lse: None,
                batch: Batch::default(),
                logits,
                weights: None,
            };
            let mut problem = Problem::new(tensors, semantics).unwrap();
            let exact = reference::attention(&problem).o;
            run(&mut problem, kernel, 2).unwrap();
            // From [batch][token][head] to the reference's [batch][head][token]; padding untouched.
            let mut dense = vec![0.0; exact.len()];
            for (at, x) in o.chunks(dim_v + padding).enumerate() {
                let (b, i, h) = (at / heads_q / len_q, at / heads_q % len_q, at % heads_q);
                dense[((b * heads_q + h) * len_q + i) * dim_v..][..dim_v].copy_from_slice(&x[..dim_v]);
                prop_assert!(x[dim_v..].iter().all(|&x| x == f32::MAX), "{kernel:?}: wrote into padding");
            }
            prop_assert!(max_error(&dense, &exact) <= 1e-5 * largest(&v).max(1.0), "{kernel:?}");
        }
    }
}

/// The reference of a row's softmax moves when its own scores demand it, whatever those of its
/// neighbours do.
#[test]
fn rows_with_rising_scores_do_not_move_their_neighbours() {
    let (len_q, len_kv, dim) = (40, 200, 8);
    for block_kv in [1, 16, 50] {
        let mut calm = Inputs::normal(Size::new(1, len_q, len_kv, dim), 10).blocks(0, block_kv);
        calm.semantics.softmax_scale = 1.0;
        // Scores rise slowly and stay below the slack.
        for (i, q) in calm.q.chunks_mut(dim).enumerate() {
            q.fill(0.0);
            q[0] = 1.0 + i as f32 / 100.0;
        }
        for (j, k) in calm.k.chunks_mut(dim).enumerate() {
            k[0] = j as f32 / 100.0;
        }
        for steep in [0, 7, 15, 39] {
            let mut inputs = calm.clone();
            inputs.q[steep * dim] = 100.0;
            for kernel in kernels(Dtype::F32) {
                let [expected, out] = [&calm, &inputs].map(|inputs| inputs.run(kernel, 1));
                for i in (0..len_q).filter(|&i| i != steep) {
                    let rows = [&expected, &out].map(|output| &output.o[i * dim..][..dim]);
                    assert!(same_bits(rows[0], rows[1]), "{kernel:?}: row {i} next to {steep}");
                    assert_eq!(expected.lse[i].to_bits(), out.lse[i].to_bits(), "{kernel:?}: row {i}");
                }
            }
        }
    }
}

/// Large enough that the plan really uses the threads.
#[test]
fn many_parts_on_many_threads_have_the_same_bits() {
    let size = Size::new(3, 300, 500, 64);
    for inputs in [Inputs::normal(size, 1), Inputs::normal(size, 2).causal()] {
        let quantised = inputs.quantised();
        for kernel in kernels(Dtype::F32) {
            let plan = kernel.plan(&shape(&inputs), 7).unwrap();
            assert!(plan.threads == 7, "{plan:?}");
            let one = inputs.run(kernel, 1);
            for threads in [2, 3, 7, 7, 7, 7] {
                assert_eq!(inputs.run(kernel, threads), one, "{kernel:?}, {threads} threads");
            }
        }
        for kernel in kernels(Dtype::I8) {
            let one = quantised.run(kernel, 1);
            for threads in [2, 7, 7] {
                assert_eq!(quantised.run(kernel, threads), one, "{kernel:?}, {threads} threads");
            }
        }
    }

    fn shape(inputs: &Inputs<f32>) -> Shape {
        let mut shape = None;
        inputs.with_problem(|problem| shape = Some(*problem.shape()));
        shape.unwrap()
    }
}

/// Rows at multiples of 1 KiB are copied before they are used, which must change no bit.
#[test]
fn rows_that_alias_in_the_cache_give_the_bits_of_dense_ones() {
    let (len_q, len_kv, heads) = (100, 300, 2);
    for dim in [1, 7, 64, 100, 127] {
        for stride in [1024, 4096] {
            let inputs = Inputs::normal(Size::new(heads, len_q, len_kv, dim), 9).causal();
            // [token][head][dim] with rows `stride` bytes apart; NaN between them.
            let spread = |x: &[f32], len: usize| {
                let mut out = vec![f32::NAN; len * stride / 4];
                for (at, row) in x.chunks(dim).enumerate() {
                    let (head, token) = (at / len, at % len);
                    out[token * stride / 4 + head * dim..][..dim].copy_from_slice(row);
                }
                let layout =
                    Layout { stride: [len * stride, 4 * dim, stride], ..layout::<f32>(heads, len, dim) };
                (out, layout)
            };
            let (k, k_layout) = spread(&inputs.k, len_kv);
            let (v, v_layout) = spread(&inputs.v, len_kv);
            for kernel in kernels(Dtype::F32) {
                let mut o = vec![0f32; inputs.size.queries()];
                let tensors = Tensors {
                    q: View::of(&inputs.q, layout::<f32>(heads, len_q, dim)).unwrap(),
                    k: View::of(&k, k_layout).unwrap(),
                    v: View::of(&v, v_layout).unwrap(),
                    o: ViewMut::of(&mut o, layout::<f32>(heads, len_q, dim)).unwrap(),
                    lse: None,
                    batch: Batch::default(),
                    logits: Logits::default(),
                    weights: None,
                };
                let mut problem = Problem::new(tensors, inputs.semantics).unwrap();
                let plan = kernel.plan(problem.shape(), 1).unwrap();
                // Decode reads row by row, wherever they are.
                assert_eq!(plan.tiles.staged, [kernel.path == Path::Prefill; 2], "{plan:?}");
                run(&mut problem, kernel, 1).unwrap();
                assert!(same_bits(&o, &inputs.run(kernel, 1).o), "{kernel:?}: dim {dim}, stride {stride}");
            }
        }
    }
}

#[test]
fn merging_with_an_empty_state_changes_no_bit() {
    // A zero with a sign shows arithmetic where there should be none.
    let (o, lse) = (vec![1.5f32, -2.25, -0.0, 0.1], vec![0.7f32, -30.0]);
    let (mut a, mut a_lse) = (o.clone(), lse.clone());
    merge(&mut a, &mut a_lse, &[0.0; 4], &[f32::NEG_INFINITY; 2], 2);
    assert!(same_bits(&a, &o) && same_bits(&a_lse, &lse));
    let (mut b, mut b_lse) = (vec![0.0; 4], vec![f32::NEG_INFINITY; 2]);
    merge(&mut b, &mut b_lse, &o, &lse, 2);
    assert!(same_bits(&b, &o) && same_bits(&b_lse, &lse));
    let (mut c, mut c_lse) = (vec![0.0; 4], vec![f32::NEG_INFINITY; 2]);
    merge(&mut c, &mut c_lse, &[0.0; 4], &[f32::NEG_INFINITY; 2], 2);
    assert!(same_bits(&c, &[0.0; 4]) && c_lse == [f32::NEG_INFINITY; 2]);
}
