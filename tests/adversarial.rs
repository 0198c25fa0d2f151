//! Rows made to break an online softmax: scores that rise or fall all the way, enormous and
//! subnormal numbers, one visible key, keys hidden alternately. Every storage type, family, path
//! and instruction set against f64.

mod common;
#[path = "common/store.rs"]
mod store;

use common::{KernelPath, Random, is_tested, kernels, max_error, relative_rms, run, share, thin};
use flash_attention::dtype::Dtype;
use flash_attention::problem::{Batch, Logits, Position, Problem, Semantics, Tensors, Window};
use flash_attention::reference;
use flash_attention::view::{Layout, Quant, View, ViewMut};
use store::encode;

const DIM: usize = 32;
const TYPES: [Dtype; 10] = [
    Dtype::F32,
    Dtype::F16,
    Dtype::Bf16,
    Dtype::I8,
    Dtype::Q8_0,
    Dtype::Q4_0,
    Dtype::Q5_1,
    Dtype::Iq4Nl,
    Dtype::F8E4M3,
    Dtype::Q15,
];

/// One head: queries in f32, keys and values to be stored in some type.
struct Rows {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Added to scores, `[query][key]`, if not empty.
    mask: Vec<f32>,
    semantics: Semantics,
}

impl Rows {
    /// Query i is all `q`, key j has scores of about `score(j)`, value j is `value(j, d)`.
    fn new(
        queries: usize,
        keys: usize,
        score: impl Fn(usize) -> f32,
        value: impl Fn(usize, usize) -> f32,
    ) -> Rows {
        let k = (0..keys).flat_map(|j| [score(j) / DIM as f32; DIM]).collect();
        let v = (0..keys).flat_map(|j| (0..DIM).map(move |d| (j, d))).map(|(j, d)| value(j, d)).collect();
        let q = vec![1.0; queries * DIM];
        Rows { q, k, v, mask: Vec::new(), semantics: Semantics::with_scale(1.0) }
    }

    /// Normal queries, keys and values with scores of standard deviation 1, but for `sinks`, which
    /// together have about the part `mass` of each row's probability, and values near 0.
    fn with_sinks(queries: usize, keys: usize, sinks: &[usize], mass: f64) -> Rows {
        let mut random = Random(keys as u64);
        let [mut q, mut k, mut v] = [queries, keys, keys].map(|rows| random.normals(rows * DIM));
        let scale = 1.0 / (DIM as f32 - 1.0).sqrt();
        // The first element of each query is for the sinks alone.
        let light = (keys - sinks.len()) as f64 * 0.5f64.exp();
        let gap = (mass / (1.0 - mass) * light / sinks.len() as f64).ln() as f32;
        q.chunks_exact_mut(DIM).for_each(|row| row[0] = 2.0);
        for (j, (k, v)) in k.chunks_exact_mut(DIM).zip(v.chunks_exact_mut(DIM)).enumerate() {
            k[0] = 0.0;
            if sinks.contains(&j) {
                k.fill(0.0);
                k[0] = gap / (2.0 * scale);
                v.iter_mut().for_each(|x| *x *= 0.01);
            }
        }
        Rows { q, k, v, mask: Vec::new(), semantics: Semantics::with_scale(scale) }
    }

    /// The problem with K and V stored as `dtype`, for each kernel that takes it: outputs,
    /// log-sum-exps, both in f64, the largest |v| and the largest score.
    fn each(&self, dtype: Dtype, mut check: impl FnMut(KernelPath, &[f32], &[f32], &reference::Answer, f64)) {
        let ((k, k_step), (v, v_step)) = (encode(dtype, &self.k, DIM), encode(dtype, &self.v, DIM));
        let quants = [Quant::per_tensor(&k_step), Quant::per_tensor(&v_step)];
        let [queries, keys] = [&self.q, &self.k].map(|x| x.len() / DIM);
        let dense = |dtype, rows, dim| Layout::dense(dtype, 1, rows, dim).unwrap();
        let (mut o, mut lse) = (vec![f32::NAN; queries * DIM], vec![f32::NAN; queries]);
        let mut attend = |kernel: Option<KernelPath>| {
            o.fill(f32::NAN);
            // SAFETY: as many bytes, which outlive the problem.
            let stored = |data: &[u8]| unsafe { View::new(data.as_ptr(), dense(dtype, keys, DIM)).unwrap() };
            let (mut k, mut v) = (stored(&k), stored(&v));
            if [Dtype::I8, Dtype::Q15].contains(&dtype) {
                (k, v) = (k.quantised(quants[0]).unwrap(), v.quantised(quants[1]).unwrap());
            }
            let mask = View::of(&self.mask, dense(Dtype::F32, queries, keys)).ok();
            let tensors = Tensors {
                q: View::of(&self.q, dense(Dtype::F32, queries, DIM)).unwrap(),
                k,
                v,
                o: ViewMut::of(&mut o, dense(Dtype::F32, queries, DIM)).unwrap(),
                lse: Some(ViewMut::of(&mut lse, dense(Dtype::F32, queries, 1)).unwrap()),
                batch: Batch::default(),
                logits: Logits { mask, ..Logits::default() },
                weights: None,
            };
            let mut problem = Problem::new(tensors, self.semantics).unwrap();
            let exact = kernel.is_none().then(|| reference::attention(&problem));
            if let Some(kernel) = kernel {
                run(&mut problem, kernel, 1).unwrap();
            }
            (exact, o.clone(), lse.clone())
        };
        let exact = attend(None).0.unwrap();
        let largest = self.v.iter().fold(0.0, |m: f64, &x| m.max(f64::from(x).abs()));
        for kernel in kernels(dtype) {
            let (_, o, lse) = attend(Some(kernel));
            check(kernel, &o, &lse, &exact, largest);
        }
    }
}

/// What the family of a kernel may be wrong by, of the largest |v|, where scores reach
/// `largest_score`.
fn bound(kernel: KernelPath, largest_score: f64) -> f64 {
    let name = format!("{kernel:?}");
    match () {
        // Eight bits of probability, of queries, or both.
        () if name.contains("-i8-") => 2e-2,
        () if name.contains("-bf16-") => 1e-2,
        () if name.contains("-f16-") => 1e-2 / 8.0,
        () if kernel.kernel.compute_type(kernel.path) == "i16" => 1e-3,
        () => 1e-5 * (1.0 + largest_score / 20.0),
    }
}

/// Runs `rows` in every type, with few queries and with many, against f64.
fn compare(what: &str, types: &[Dtype], largest_score: f64, rows: impl Fn(usize) -> Rows) {
    let mut compared = 0;
    for queries in [1, 37] {
        for &dtype in types {
            rows(queries).each(dtype, |kernel, o, lse, exact, largest| {
                let error = max_error(o, &exact.o) / largest;
                let most = bound(kernel, largest_score);
                assert!(error <= most, "{what}, {dtype:?}, {kernel:?}: {error:.1e}, not {most:.1e}");
                let error = max_error(lse, &exact.lse);
                // Where scores are enormous, as dense as they are: f32 is rounded in log2 units,
                // and once more to natural ones; others by their queries.
                let size = exact.lse.iter().filter(|x| x.is_finite()).fold(0.0, |m: f64, x| m.max(x.abs()));
                let least = bound(kernel, 0.0);
                let most = most * (1.0 + largest_score) + if least > 1e-5 { least } else { 4e-7 } * size;
                assert!(
                    error <= most,
                    "{what}, {dtype:?}, {kernel:?}: log-sum-exp {error:.1e}, not {most:.1e}"
                );
                compared += 1;
            });
        }
    }
    assert!(compared >= 4 * types.len() || !is_tested(c"scalar"), "{compared}");
}

/// Values that differ and are stored exactly in all types: multiples of 1/127.
fn plain(j: usize, d: usize) -> f32 {
    ((j * 7 + d * 13) % 255) as f32 / 127.0 - 1.0
}

/// Each key is heavier than all before: the reference moves again and again.
#[test]
fn rising_scores() {
    for span in [1.0, 20.0, 87.0, 300.0] {
        let keys = 700;
        let score = move |j: usize| span * j as f32 / keys as f32;
        compare("rising", &TYPES, f64::from(span), |queries| Rows::new(queries, keys, score, plain));
    }
}

/// The first key is the heaviest: all others underflow sooner or later.
#[test]
fn falling_scores() {
    for span in [1.0, 20.0, 87.0, 300.0] {
        let keys = 700;
        let score = move |j: usize| -span * j as f32 / keys as f32;
        compare("falling", &TYPES, f64::from(span), |queries| Rows::new(queries, keys, score, plain));
    }
}

/// Largest and smallest scores take turns.
#[test]
fn scores_that_jump() {
    let score = |j: usize| if j.is_multiple_of(2) { 40.0 } else { -40.0 };
    compare("jumping", &TYPES, 40.0, |queries| Rows::new(queries, 300, score, plain));
}

/// About the largest number that a type holds, up to 1e30.
fn largest(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F8E4M3 => 440.0,
        // Their scale is a 16-bit number.
        _ if dtype == Dtype::F16 || dtype.has_blocks() => 6e4,
        _ => 1e30,
    }
}

/// Values of ±1e30, or the largest that there are, of both signs, and next to small ones.
#[test]
fn enormous_values() {
    for dtype in TYPES {
        let most = largest(dtype);
        let value = move |j: usize, d: usize| most * plain(j, d);
        compare("large values", &[dtype], 3.0, |queries| {
            Rows::new(queries, 200, |j| (j % 7) as f32 - 3.0, value)
        });
    }
}

/// Keys of ±1e30, or the largest that there are, whose scores a small scale makes ordinary; and of
/// ±1e30 as scores, where one key takes all.
#[test]
fn enormous_keys() {
    for dtype in TYPES {
        let most = largest(dtype);
        compare("large keys", &[dtype], 32.0, |queries| {
            let score = |j: usize| most * DIM as f32 * ((j % 5) as f32 / 4.0 - 0.5);
            let mut rows = Rows::new(queries, 200, score, plain);
            rows.semantics = Semantics::with_scale(1.0 / most);
            rows
        });
        compare("one enormous score", &[dtype], 32.0, |queries| {
            let score = |j: usize| if j == 111 { most * DIM as f32 } else { -most * DIM as f32 };
            Rows::new(queries, 200, score, plain)
        });
    }
}

/// Subnormal values come out within the smallest normal number (bfloat16 products take them for 0),
/// subnormal keys are scores of 0.
#[test]
fn subnormal_numbers() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let tiny = if dtype == Dtype::F16 { 3e-6 } else { 5e-39 };
        for queries in [1, 37] {
            let rows = Rows::new(queries, 200, |_| 1.0, |j, d| tiny * plain(j, d));
            rows.each(dtype, |kernel, o, _, exact, _| {
                let error = max_error(o, &exact.o);
                let flushed = format!("{kernel:?}").contains("-bf16-");
                let most =
                    if flushed { f64::from(f32::MIN_POSITIVE) } else { 1e-5 * f64::from(tiny) + 1e-44 };
                assert!(error <= most, "{dtype:?}, {kernel:?}: {error:.1e}, not {most:.1e}");
            });
            let rows = Rows::new(queries, 200, |j| tiny * (j as f32 - 99.0), plain);
            rows.each(dtype, |kernel, o, _, exact, _| {
                let error = max_error(o, &exact.o);
                assert!(error <= bound(kernel, 0.0), "{dtype:?} keys, {kernel:?}: {error:.1e}");
            });
        }
    }
}

/// A row that sees one key is its value, whatever the scores of the others are.
#[test]
fn one_visible_key() {
    let score = |j: usize| if j.is_multiple_of(3) { 60.0 } else { -60.0 };
    for queries in [1, 37] {
        for first in [0, 5, 63, 128, 160] {
            let mut rows = Rows::new(queries, 200, score, plain);
            rows.semantics.window = Window { left: Some(0), right: Some(0) };
            rows.semantics.q_pos = Position::At(first);
            for dtype in TYPES {
                rows.each(dtype, |kernel, o, _, exact, _| {
                    let error = max_error(o, &exact.o);
                    // Integers divide what is 255 times the number by 255; Q8_0 and I8 multiply by
                    // their scale.
                    assert!(error <= 4e-7, "{dtype:?}, {kernel:?}, from {first}: {error:.1e}");
                });
            }
        }
    }
}

/// Every other key is hidden by -inf in the mask; one that hides all but a few; -FLT_MAX, which
/// hides nothing.
#[test]
fn alternating_masks() {
    let score = |j: usize| (j % 11) as f32 - 5.0;
    for (what, hides, with) in [
        ("even keys hidden", 0, f32::NEG_INFINITY),
        ("odd keys hidden", 1, f32::NEG_INFINITY),
        ("even keys at -1e30", 0, -1e30),
        ("odd keys at -FLT_MAX", 1, f32::MIN),
    ] {
        compare(what, &TYPES, 5.0, |queries| {
            let mut rows = Rows::new(queries, 300, score, plain);
            rows.mask = (0..queries * 300).map(|at| if at % 300 % 2 == hides { with } else { 0.0 }).collect();
            rows
        });
    }
}

/// Keys with scores of -inf, alternately, where a storage type has them: they weigh nothing.
#[test]
fn alternating_infinities() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for odd in [false, true] {
            let score = move |j: usize| if (j % 2 == 1) == odd { f32::NEG_INFINITY } else { (j % 5) as f32 };
            compare("-inf", &[dtype], 5.0, |queries| Rows::new(queries, 300, score, plain));
        }
    }
}

/// Attention sinks: one key, or a few, that have most of each row's probability, with values near
/// 0, as in real models (Xiao et al. 2023, arXiv:2309.17453). What counts is the error of the
/// output, which the light keys make, relative to itself.
#[test]
fn attention_sinks() {
    // Sinks, and the part of the probability that they have.
    let sinks: [(&[usize], f64); 8] = [
        (&[0], 0.15),
        (&[0], 0.5),
        (&[0], 0.9),
        (&[0], 0.98),
        (&[0], 0.999),
        (&[0, 1, 2, 3], 0.98),
        (&[0, 40], 0.99),
        (&[61], 0.999),
    ];
    let mut compared = 0;
    let short = [(64, 1), (64, 20), (512, 1), (512, 3), (512, 64), (2048, 20)];
    let long = [(32_768, 1), (32_768, 37), (131_072, 1), (131_072, 14)];
    for (keys, queries) in short.into_iter().chain(long) {
        for (which, mass) in sinks {
            let is_long = keys > 2048 && !(which == [0] && mass > if keys > 32_768 { 0.99 } else { 0.95 });
            let is_large = keys * queries > 2048 && thin() > 1;
            if is_long || is_large || (keys > 512 && share() > 1) {
                continue;
            }
            for dtype in TYPES {
                let rows = Rows::with_sinks(queries, keys, which, mass);
                rows.each(dtype, |kernel, o, lse, exact, _| {
                    let name = format!("{kernel:?}");
                    let most = match () {
                        () if name.contains("-i8-") && mass > 0.98 => return,
                        () if name.contains("-i8-") => 5e-2,
                        () if name.contains("-bf16-") => 5e-2,
                        () if name.contains("-f16-") => 5e-2 / 8.0,
                        () if name.contains("-i16-") => 5e-4,
                        // Few rows of blocks are multiplied as integers.
                        () if kernel.kernel.compute_type(kernel.path) == "i16" => 5e-4,
                        () => 2e-5,
                    };
                    let what = format!(
                        "{keys} keys, {queries} queries, sinks {which:?} of {mass}, {dtype:?}, {name}"
                    );
                    // Rounded queries move the sink's score, which is most of the log-sum-exp, and
                    // with it the weight of all others.
                    let is_coarse = ["-bf16-", "-f16-", "-i8-"].iter().any(|part| name.contains(part));
                    let moved = max_error(lse, &exact.lse);
                    let most_moved = if is_coarse { 1e-1 } else { most };
                    assert!(moved <= most_moved, "{what}: log-sum-exp {moved:.1e}, not {most_moved:.1e}");
                    let most = if is_coarse { most + moved } else { most };
                    let error = relative_rms(o, &exact.o);
                    assert!(error <= most, "{what}: {error:.1e}, not {most:.1e}");
                    compared += 1;
                });
            }
        }
    }
    assert!(compared > 0);
}

/// The report of such a row: one key 11.1 above 511 others, one query.
#[test]
fn one_sink_of_512_keys() {
    for queries in [1, 20] {
        let rows = Rows::new(
            queries,
            512,
            |j| if j == 0 { 11.1 } else { 0.0 },
            |j, d| if j == 0 { 0.0 } else { 1.0 + d as f32 / 127.0 },
        );
        rows.each(Dtype::I8, |kernel, o, lse, exact, _| {
            let most = if format!("{kernel:?}").contains("-i8-") { 2e-2 } else { 5e-4 };
            let error = relative_rms(o, &exact.o);
            assert!(error <= most, "{kernel:?}, {queries} queries: {error:.1e}");
            let error = max_error(lse, &exact.lse);
            assert!(error <= most, "{kernel:?}, {queries} queries: log-sum-exp {error:.1e}");
        });
    }
}

/// Keys with a millionth of a sink's probability, which make the output: in 16 bits with the range
/// of binary16, too, which has 4 bits left for such a number beside 1.
#[test]
fn light_keys_beside_a_sink() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for queries in [1, 20] {
            let score = |j: usize| if j == 0 { 14.3 } else { (j % 7) as f32 / 20.0 };
            let value = |j: usize, d: usize| if j == 0 { 0.0 } else { 1.0 + d as f32 / 127.0 };
            Rows::new(queries, 512, score, value).each(dtype, |kernel, o, lse, exact, _| {
                let name = format!("{kernel:?}");
                // Besides what rounded queries change of the sink's score.
                let [most, most_moved] = match () {
                    () if name.contains("-bf16-") => [5e-3, 1e-1],
                    () if name.contains("-f16-") => [5e-4, 1e-1 / 8.0],
                    () => [2e-5, 2e-5],
                };
                let (error, moved) = (relative_rms(o, &exact.o), max_error(lse, &exact.lse));
                assert!(
                    moved <= most_moved && error <= most + moved,
                    "{name}: {error:.1e}, moved {moved:.1e}"
                );
            });
        }
    }
}

/// More keys of a block exceed its reference than any rule would take apart, by 30 each: all count.
#[test]
fn many_heavy_keys() {
    for every in [1, 2, 7, 8, 9, 16, 17, 100] {
        let score = move |j: usize| if j.is_multiple_of(every) { 30.0 } else { (j % 3) as f32 };
        compare("many heavy keys", &TYPES, 30.0, |queries| Rows::new(queries, 300, score, plain));
    }
}
