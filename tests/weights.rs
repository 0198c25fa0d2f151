//! The optional output of probabilities: against f64 on every path of every kernel, chosen heads
//! and rows, and what is not written. Random descriptions have it, too: tests/general.rs.

mod common;
#[path = "common/store.rs"]
mod store;

use common::{Random, kernels, run, same_bits, thin};
use flash_attention::dtype::Dtype;
use flash_attention::error::Error;
use flash_attention::problem::{Batch, Logits, Problem, Semantics, Tensors, Weights, Window};
use flash_attention::view::{Array, Layout, Quant, View, ViewMut};
use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace, reference};
use store::encode;

const DIM: usize = 64;
/// What stands where nothing is written.
const GUARD: f32 = -3.0;

/// A problem of two sequences with grouped heads, ragged, as large as tiles and blocks need.
struct Case {
    dtype: Dtype,
    /// Query rows and keys of each sequence.
    lens: [[usize; 2]; 2],
    heads: [usize; 2],
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    semantics: Semantics,
    sinks: Option<Vec<f32>>,
    softcap: f32,
}

/// Probabilities of some heads and rows.
#[derive(Default)]
struct Chosen<'a> {
    heads: Option<&'a [i32]>,
    rows: Option<&'a [i32]>,
}

impl Case {
    fn new(dtype: Dtype, lens: [[usize; 2]; 2], seed: u64) -> Case {
        let (mut random, heads) = (Random(seed), [4, 2]);
        let [rows, keys] = [0, 1].map(|which| lens[0][which] + lens[1][which]);
        Case {
            dtype,
            lens,
            heads,
            q: random.normals(heads[0] * rows * DIM),
            k: random.normals(heads[1] * keys * DIM),
            v: random.normals(heads[1] * keys * DIM),
            semantics: Semantics::with_scale(0.2),
            sinks: None,
            softcap: 0.0,
        }
    }

    fn most(&self, which: usize) -> usize {
        self.lens[0][which].max(self.lens[1][which])
    }

    /// Hands the problem to `f`; returns the output, and the probabilities with guards around them.
    fn with(&self, chosen: &Chosen, f: impl FnOnce(&mut Problem)) -> (Vec<f32>, Vec<f32>) {
        let [heads_q, heads_kv] = self.heads;
        let [[rows, keys], [more_rows, more_keys]] = self.lens;
        let starts = [[0, rows, rows + more_rows], [0, keys, keys + more_keys]];
        let starts = starts.map(|starts| starts.map(|start| start as i32));
        let ((k, k_step), (v, v_step)) = (encode(self.dtype, &self.k, DIM), encode(self.dtype, &self.v, DIM));
        let quants = [Quant::per_tensor(&k_step), Quant::per_tensor(&v_step)];
        let stored = |bytes: &[u8], quant| {
            let layout = Layout::dense(self.dtype, heads_kv, keys + more_keys, DIM).unwrap();
            // SAFETY: as many bytes, which outlive the problem.
            let view = unsafe { View::new(bytes.as_ptr(), layout).unwrap() };
            if [Dtype::I8, Dtype::Q15].contains(&self.dtype) { view.quantised(quant).unwrap() } else { view }
        };
        let dense = |rows, dim| Layout::dense(Dtype::F32, heads_q, rows, dim).unwrap();
        let mut o = vec![f32::NAN; self.q.len()];
        let extent =
            [2, chosen.heads.map_or(heads_q, <[i32]>::len), chosen.rows.map_or(self.most(0), <[i32]>::len)];
        // An element between rows, and more between heads.
        let row = 4 * (self.most(1) + 1);
        let stride = [extent[1] * (extent[2] * row + 20), extent[2] * row + 20, row];
        let mut out = vec![GUARD; 2 * stride[0] / 4 + 1];
        let layout = Layout { dtype: Dtype::F32, extent, dim: self.most(1), stride, stride_dim: 0 };
        let tensors = Tensors {
            q: View::of(&self.q, dense(rows + more_rows, DIM)).unwrap(),
            k: stored(&k, quants[0]),
            v: stored(&v, quants[1]),
            o: ViewMut::of(&mut o, dense(rows + more_rows, DIM)).unwrap(),
            lse: None,
            batch: Batch {
                starts_q: Some(Array::of(&starts[0])),
                starts_kv: Some(Array::of(&starts[1])),
                ..Batch::default()
            },
            logits: Logits {
                softcap: self.softcap,
                sinks: self.sinks.as_deref().map(Array::of),
                ..Logits::default()
            },
            weights: Some(Weights {
                view: ViewMut::of(&mut out[1..], layout).unwrap(),
                heads: chosen.heads.map(Array::of),
                rows: chosen.rows.map(Array::of),
            }),
        };
        f(&mut Problem::new(tensors, self.semantics).unwrap());
        (o, out)
    }

    /// Probabilities by f64, laid out as [`Case::with`] does; `None` where nothing may be written.
    fn exact(&self, chosen: &Chosen) -> Vec<Option<f64>> {
        let mut exact = Vec::new();
        self.with(chosen, |problem| {
            let weights = problem.weights().unwrap();
            let Layout { extent: [_, heads, rows], dim, stride, .. } = *weights.view.layout();
            exact = vec![None; 2 * stride[0] / 4 + 1];
            for (b, head) in (0..2).flat_map(|b| (0..heads).map(move |head| (b, head))) {
                let sequence = problem.sequence(b);
                for row in 0..rows {
                    let of_list =
                        |list: Option<&[i32]>, at: usize| list.map_or(at as i64, |x| i64::from(x[at]));
                    let query = match of_list(chosen.rows, row) {
                        row if row < 0 => row + sequence.len_q as i64,
                        row => row,
                    };
                    let Some(i) = usize::try_from(query).ok().filter(|&i| i < sequence.len_q) else {
                        continue;
                    };
                    let at = 1 + (b * stride[0] + head * stride[1] + row * stride[2]) / 4;
                    exact[at..at + dim].fill(Some(0.0));
                    let head = of_list(chosen.heads, head) as usize;
                    for (j, weight) in reference::weights(problem, &sequence, head, i).0 {
                        exact[at + j] = Some(weight);
                    }
                }
            }
        });
        exact
    }

    /// Compares what every kernel computes, on both paths, for some choices.
    fn check(&self, near: f64) {
        // No head is wanted.
        let none = Chosen { heads: Some(&[]), rows: None };
        let kernels: Vec<_> = kernels(self.dtype).collect();
        let without: Vec<_> = kernels
            .iter()
            .map(|&kernel| self.with(&none, |problem| run(problem, kernel, 1).unwrap()).0)
            .collect();
        for chosen in [
            Chosen::default(),
            Chosen { heads: Some(&[1, 3]), rows: Some(&[0, 2, 17, 18, 40]) },
            Chosen { heads: None, rows: Some(&[-40, -3, -1]) },
        ] {
            // Rows that are not there may not be named.
            let most = self.most(0) as i32;
            let rows: Option<Vec<i32>> = chosen
                .rows
                .map(|rows| rows.iter().copied().filter(|&row| -most <= row && row < most).collect());
            let chosen = Chosen { rows: rows.as_deref(), ..chosen };
            let exact = self.exact(&chosen);
            for (&kernel, without) in kernels.iter().zip(&without) {
                let got = self.with(&chosen, |problem| run(problem, kernel, 1).unwrap());
                for (at, (&got, &exact)) in got.1.iter().zip(&exact).enumerate() {
                    match exact {
                        None => assert_eq!(got.to_bits(), GUARD.to_bits(), "{kernel:?}: {at} was written"),
                        Some(0.0) => assert_eq!(got, 0.0, "{kernel:?}: {at}"),
                        Some(exact) => {
                            let error = (f64::from(got) - exact).abs();
                            assert!(error <= near * exact + 1e-30, "{kernel:?}: {got} is not {exact}");
                        }
                    }
                }
                assert!(same_bits(&got.0, without), "{kernel:?}: another output");
                let again = self.with(&chosen, |problem| run(problem, kernel, 3).unwrap());
                assert!(same_bits(&again.1, &got.1), "{kernel:?}: other bits with threads");
            }
        }
    }
}

/// Errors relative to the probability: scores are f32, or have queries that were rounded.
const NEAR: [(Dtype, f64); 9] = [
    (Dtype::F32, 2e-5),
    (Dtype::Bf16, 5e-2),
    (Dtype::I8, 7e-2),
    (Dtype::Q8_0, 3e-3),
    (Dtype::Q4_0, 3e-3),
    (Dtype::Q5_1, 3e-3),
    (Dtype::Iq4Nl, 3e-3),
    (Dtype::F8E5M2, 2e-5),
    (Dtype::Q15, 2e-5),
];

#[test]
fn probabilities_are_those_of_f64_on_every_path() {
    for (dtype, near) in NEAR {
        for (lens, seed) in [([[3, 40], [1, 70]], 1), ([[41, 300], [19, 130]], 2), ([[5, 0], [2, 9]], 3)] {
            if seed == 2 && thin() > 1 {
                continue;
            }
            let mut case = Case::new(dtype, lens, seed);
            case.check(near);
            case.semantics = case.semantics.causal();
            case.check(near);
            (case.sinks, case.softcap) = (Some(vec![1.0, f32::NEG_INFINITY, -2.0, 5.0]), 3.0);
            case.semantics.window = Window { left: Some(9), right: Some(0) };
            case.semantics.prefix_keys = 3;
            case.check(near);
        }
    }
}

/// Splits of long sequences, some of them in a gap, and their combination.
#[test]
fn many_keys_are_divided_among_threads() {
    for (dtype, near) in NEAR {
        if thin() > 1 {
            continue;
        }
        let mut case = Case::new(dtype, [[2, 5000], [1, 3001]], 7);
        case.check(near);
        case.semantics = case.semantics.causal();
        case.semantics.window = Window { left: Some(1500), right: Some(0) };
        case.semantics.prefix_keys = 300;
        case.check(near);
    }
}

/// Those of some heads and rows are those of all.
#[test]
fn chosen_heads_and_rows_have_the_bits_of_all() {
    let case = Case::new(Dtype::F32, [[41, 300], [41, 300]], 6);
    let (heads, rows) = ([0, 3], [-41, -40, -8, -1]);
    for kernel in kernels(Dtype::F32) {
        let compute = |chosen: &Chosen| case.with(chosen, |problem| run(problem, kernel, 1).unwrap()).1;
        let all = compute(&Chosen::default());
        let some = compute(&Chosen { heads: Some(&heads), rows: Some(&rows) });
        // As in `with`: an element behind each row, five more behind each head.
        let row_of = |x: &[f32], [of_heads, of_rows]: [usize; 2], [b, head, row]: [usize; 3]| {
            let head_stride = of_rows * 301 + 5;
            x[1 + (b * of_heads + head) * head_stride + row * 301..][..300].to_vec()
        };
        for (b, h, i) in (0..2).flat_map(|b| (0..2).flat_map(move |h| (0..4).map(move |i| (b, h, i)))) {
            let from = [b, heads[h] as usize, (rows[i] + 41) as usize];
            let same = same_bits(&row_of(&some, [2, 4], [b, h, i]), &row_of(&all, [4, 41], from));
            assert!(same, "{kernel:?}: sequence {b}, head {h}, row {i}");
        }
    }
}

#[test]
fn rows_sum_to_one_less_the_sink() {
    for kernel in kernels(Dtype::F32) {
        let mut case = Case::new(Dtype::F32, [[20, 200], [20, 200]], 4);
        let sinks = [0.0, f32::NEG_INFINITY, 3.0, 80.0];
        case.sinks = Some(sinks.to_vec());
        let exact = case.exact(&Chosen::default());
        let (_, got) = case.with(&Chosen::default(), |problem| run(problem, kernel, 1).unwrap());
        for (got, exact) in got[1..].chunks(201).zip(exact[1..].chunks(201)).take(20) {
            let sum: f64 = got[..200].iter().map(|&x| f64::from(x)).sum();
            let share: f64 = exact[..200].iter().map(|x| x.unwrap()).sum();
            assert!((sum - share).abs() < 1e-5 && share < 1.0, "{kernel:?}: {sum} instead of {share}");
        }
    }
}

/// A NaN or an infinity that a row sees makes NaN of what it sees, and only of that.
#[test]
fn rows_without_a_number_and_rows_without_a_key() {
    let (rows, keys) = (40, 70);
    for (x, len_q) in [(f32::NAN, rows), (f32::INFINITY, rows), (f32::NAN, 1), (f32::NEG_INFINITY, 2)] {
        let q = vec![1.0; len_q * 8];
        let mut k = vec![0.5; keys * 8];
        k[30 * 8] = x;
        let (mut out, mut weights) = (vec![0.0; len_q * 8], vec![GUARD; len_q * keys]);
        // Row 0 does not see key 30; row 1 sees no key.
        let mask: Vec<bool> =
            (0..len_q * keys).map(|at| at / keys != 1 && !(at / keys == 0 && at % keys == 30)).collect();
        let keys_of = Tensor::head_first(&k, [1, 1, keys, 8]);
        let values = vec![2.0; keys * 8];
        let mut a = Attention::new(
            Tensor::head_first(&q, [1, 1, len_q, 8]),
            keys_of,
            Tensor::head_first(&values, [1, 1, keys, 8]),
            TensorMut::head_first(&mut out, [1, 1, len_q, 8]),
        )
        .mask(Tensor::head_first(&mask, [1, 1, len_q, keys]))
        .weights(TensorMut::head_first(&mut weights, [1, 1, len_q, keys]));
        compute(&mut a).unwrap();
        for (i, row) in weights.chunks(keys).enumerate() {
            for (j, &weight) in row.iter().enumerate() {
                let is_right = match i {
                    _ if !mask[i * keys + j] => weight == 0.0,
                    0 => (weight - 1.0 / 69.0).abs() < 1e-6,
                    _ if x == f32::NEG_INFINITY => unreachable!(),
                    _ => weight.is_nan(),
                };
                assert!(is_right, "{x} among {len_q} rows: {weight} at row {i}, key {j}");
            }
        }
    }
}

fn compute(a: &mut Attention) -> Result<(), flash_attention::error::Refusal> {
    let (mut workspace, pool) = (Workspace::new(), Pool::default());
    a.reserve(&mut workspace, &pool)?;
    a.run(&mut workspace, &pool)
}

#[test]
fn the_workspace_is_that_without_them() {
    let case = Case::new(Dtype::F32, [[70, 300], [20, 200]], 5);
    for kernel in kernels(Dtype::F32) {
        let mut shapes = Vec::new();
        for chosen in [Chosen::default(), Chosen { heads: Some(&[]), rows: None }] {
            case.with(&chosen, |problem| shapes.push(*problem.shape()));
        }
        assert_eq!(shapes[0], shapes[1], "{kernel:?}: the plan depends on it");
    }
}

type Edit = dyn for<'a> Fn(Attention<'a>) -> Attention<'a>;

#[test]
fn what_cannot_be_is_refused() {
    let (x, one) = (vec![0.5; 3 * 5 * 8], [1, 1, 3, 8]);
    let refused = |shape: [usize; 4], edit: &Edit| {
        let (mut out, mut weights) = (vec![7.0; 3 * 8], vec![GUARD; 64]);
        let kv = Tensor::head_first(&x, [1, 1, 5, 8]);
        let a = Attention::new(Tensor::head_first(&x, one), kv, kv, TensorMut::head_first(&mut out, one));
        let mut a = edit(a.weights(TensorMut::head_first(&mut weights, shape)));
        let answer = compute(&mut a).map_err(|refusal| (refusal.error, refusal.to_string()));
        assert!(answer.is_ok() || weights.iter().all(|&x| x == GUARD), "refused, but written");
        answer
    };
    assert_eq!(refused([1, 1, 3, 5], &|a| a), Ok(()));
    assert_eq!(refused([1, 1, 1, 5], &|a| a.weight_rows(&[-1]).weight_heads(&[0])), Ok(()));
    let cases: &[([usize; 4], &Edit, Error, &str)] = &[
        ([2, 1, 3, 5], &|a| a, Error::Shape, "weights.batch = 2: not that of q = 1"),
        ([1, 2, 3, 5], &|a| a, Error::Shape, "weights.heads = 2: not as many as heads = 1"),
        ([1, 1, 2, 5], &|a| a, Error::Shape, "weights.tokens = 2: not as many as rows = 3"),
        ([1, 1, 3, 4], &|a| a, Error::Shape, "weights.dim = 4: not the number of keys = 5"),
        ([1, 1, 1, 5], &|a| a.weight_rows(&[3]), Error::Lengths, "weight_rows[0] = 3: not less than"),
        ([1, 1, 1, 5], &|a| a.weight_rows(&[-4]), Error::Lengths, "weight_rows[0] = -4: before the first"),
        ([1, 1, 2, 5], &|a| a.weight_rows(&[1, 1]), Error::Lengths, "weight_rows[1] = 1: not more than"),
        ([1, 1, 2, 5], &|a| a.weight_rows(&[1, 0]), Error::Lengths, "weight_rows[1] = 0: not more than"),
        ([1, 1, 2, 5], &|a| a.weight_rows(&[-1, 0]), Error::Lengths, "weight_rows[1] = 0: not negative"),
        ([1, 1, 3, 5], &|a| a.weight_heads(&[1]), Error::Lengths, "weight_heads[0] = 1: not less than"),
        ([1, 1, 3, 5], &|a| a.weight_heads(&[-1]), Error::Lengths, "weight_heads[0] = -1: negative"),
    ];
    for (i, (shape, edit, error, words)) in cases.iter().enumerate() {
        let (is, why) = refused(*shape, edit).expect_err(words);
        assert!(is == *error && why.starts_with(words), "{i}: {why}");
    }
    let mut out = vec![7.0; 3 * 8];
    let kv = Tensor::head_first(&x, [1, 1, 5, 8]);
    let a = Attention::new(Tensor::head_first(&x, one), kv, kv, TensorMut::head_first(&mut out, one));
    let refusal = compute(&mut a.weight_heads(&[0])).unwrap_err();
    assert!(refusal.error == Error::Null && refusal.to_string().starts_with("weight_heads: set, but"));
}
