//! The table of floors and goals: shares of the peak that each shape must and should reach.

use flash_attention::dtype::Dtype;
use flash_attention::kernel::Path;
use flash_attention::problem::Accuracy;

use crate::case::{Case, Data};

/// A shape with the percentage of the multiply-add peak below which it counts as broken, and the
/// one that we are here for.
pub struct Target {
    pub isa: &'static str,
    pub case: Case,
    pub floor: f64,
    pub goal: f64,
}

pub fn targets() -> Vec<Target> {
    let mut all = Vec::new();
    let mut add = |isa, case, floor, goal| all.push(Target { isa, case, floor, goal });
    for (dim, floor, goal) in
        [(32, 85., 88.), (64, 90., 93.), (80, 88., 92.), (96, 91., 94.), (128, 91., 94.), (256, 87., 92.)]
    {
        for len in [512, 2048, 8192] {
            add("avx512", Case::square(heads(len), len, dim), floor, goal);
        }
    }
    for dim in [64, 128] {
        add("avx512", Case::square(16, 128, dim), 86., 89.);
    }
    for dim in [64, 128] {
        for (len, floor, goal) in [(128, 71., 78.), (512, 86., 89.), (2048, 87., 91.), (8192, 87., 91.)] {
            add("avx512", Case { causal: true, ..Case::square(heads(len), len, dim) }, floor, goal);
        }
    }
    for (heads, dim) in [(16, 64), (8, 128)] {
        for len in [512, 2048] {
            let case = Case { row_stride: heads * dim * 4, ..Case::square(heads, len, dim) };
            add("avx512", case, 86., 90.);
        }
    }
    for (dim, floor, goal) in [(32, 77., 82.), (64, 86., 89.), (128, 87., 91.), (256, 86., 90.)] {
        for len in [512, 2048] {
            add("avx2", Case::square(heads(len), len, dim), floor, goal);
        }
    }
    for (dim, floor, goal) in [(64, 86., 89.), (128, 87., 91.)] {
        add("avx2", Case::square(16, 128, dim), 82., 86.);
        add("avx2", Case { causal: true, ..Case::square(1, 2048, dim) }, floor - 4., goal - 4.);
    }
    all
}

/// One head, so that caches hold what they can; short ones several times, so that a call is not
/// over at once.
fn heads(len: usize) -> usize {
    if len < 512 { 16 } else { 1 }
}

/// Many heads, whose tensors no longer fit the second-level cache: what a model's layer looks like.
pub fn layers() -> Vec<Case> {
    [(12, 512, 64), (8, 2048, 64), (32, 512, 128), (12, 128, 64)]
        .map(|(heads, len, dim)| Case::square(heads, len, dim))
        .into()
}

/// Odd sizes, each with its even neighbour: they lose at most 8 points.
pub fn odd() -> Vec<(Case, Case)> {
    let even = |dim| Case::square(8, 512, dim);
    let mut pairs: Vec<_> = [(63, 64), (65, 64), (100, 96)].map(|(odd, dim)| (even(odd), even(dim))).into();
    for dim in [64, 128] {
        let odd = Case { len_q: 513, len_kv: 1000, ..Case::square(4, 0, dim) };
        pairs.push((odd.clone(), Case { len_q: 512, len_kv: 1024, ..odd }));
    }
    pairs
}

/// Few queries on many keys: the time grows with their number, and never jumps.
pub fn few_queries() -> Vec<Case> {
    (1..=33).map(|len_q| Case { len_q, len_kv: 2048, ..Case::square(1, 0, 128) }).collect()
}

/// A case, what its time is compared with, and how many times as long it may take.
pub struct Times {
    pub case: Case,
    pub base: Case,
    pub floor: Option<f64>,
}

/// Few query rows of 32 heads on 8, and 8192 keys from memory: against one row, the same rows of
/// interleaved heads against these, and one row less.
pub fn grouped() -> Vec<Times> {
    let mut all = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Q8_0, Dtype::I8] {
        let of = |len_q| Case {
            dtype,
            query: Some(Dtype::F32),
            group: 4,
            len_q,
            len_kv: 8192,
            ..Case::square(32, 0, 128)
        };
        for rows in [2, 4, 6, 8, 12, 16, 24, 32, 64] {
            let floor = match (rows, dtype) {
                (8, Dtype::F32) => Some(1.8),
                (16, Dtype::F32) => Some(3.0),
                (8, _) => Some(2.8),
                (16, _) => Some(4.2),
                _ => None,
            };
            all.push(Times { case: of(rows), base: of(1), floor });
        }
        for rows in [1, 4, 8, 16, 64] {
            let case = Case { token_first: true, ..of(rows) };
            all.push(Times { case, base: of(rows), floor: Some(1.1) });
        }
        for rows in 2..=40 {
            let short = |len_q| Case { len_kv: 2048, ..of(len_q) };
            all.push(Times { case: short(rows - 1), base: short(rows), floor: Some(1.05) });
        }
    }
    all
}

/// Multi-head latent attention, one query row: against the path of few query rows alone.
pub fn latent() -> Vec<Times> {
    let mut all = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::I8] {
        for (heads, len_kv) in [(16, 4096), (32, 4096), (128, 4096), (16, 32_768), (128, 32_768)] {
            let square = Case::square(heads, 1, 576);
            let query = Some(Dtype::F32);
            let case = Case { dtype, query, group: heads, len_kv, latent: 512, ..square };
            let base = Case { path: Some(Path::Decode), ..case.clone() };
            all.push(Times { case, base, floor: Some(1.05) });
        }
    }
    all
}

/// Errors of f32 and what they may be, in ten-millionths: growth with the logarithm of the keys.
pub fn sums() -> Vec<(Case, f64)> {
    let of = |heads, len_q, len_kv| Case { len_q, len_kv, ..Case::square(heads, 0, 64) };
    [(of(8, 2048, 2048), 4.), (of(1, 64, 16_384), 10.), (of(1, 16, 1 << 20), 20.), (of(1, 1, 1 << 20), 20.)]
        .into()
}

/// What scratch memory is asked for, with four threads: KiB a thread.
pub fn memory() -> Vec<(Case, f64)> {
    let square = |heads, len, dim| (Case::square(heads, len, dim), 256.);
    let few = |heads, group, len_q, len_kv, dim| {
        (Case { group, len_q, len_kv, ..Case::square(heads, 0, dim) }, 256.)
    };
    vec![
        few(8, 1, 62, 4096, 64),
        few(32, 4, 1, 8192, 128),
        few(32, 4, 64, 8192, 128),
        square(8, 512, 64),
        square(8, 2048, 128),
        square(8, 2048, 256),
    ]
}

/// Two threads against one: at least 1.9 times as fast.
pub fn two_threads() -> Vec<Case> {
    vec![Case::square(8, 2048, 64), Case::square(1, 8192, 64)]
}

/// Automatic threads against one: never more than 5 % slower.
pub fn automatic_threads() -> Vec<Case> {
    (0..=11).map(|log| Case::square(1, 1 << log, 64)).collect()
}

/// Never slower than three-step attention.
pub fn against_rival() -> Vec<Case> {
    [32, 64, 128].iter().flat_map(|&dim| (0..=13).map(move |log| Case::square(1, 1 << log, dim))).collect()
}

/// Rising scores against normal ones: at least 0.6 times as fast.
pub fn adversarial() -> Vec<(Case, Case)> {
    [64, 128]
        .map(|dim| {
            let normal = Case::square(4, 1024, dim);
            (Case { data: Data::Rising, ..normal.clone() }, normal)
        })
        .into()
}

/// A shape of another type than f32, and what is asked of the family that computes it where the
/// machine has it.
pub struct Typed {
    pub case: Case,
    /// None: the best.
    pub isa: Option<&'static str>,
    pub family: &'static str,
    pub floor: Option<f64>,
    pub goal: Option<f64>,
}

/// How many times as fast as f32.
pub fn types() -> Vec<Typed> {
    let mut cases = Vec::new();
    for (len, dim) in [(512, 64), (512, 128), (512, 256), (2048, 64), (2048, 128), (2048, 256)] {
        let mut add = |dtype, accuracy, isa, family, floor, goal| {
            let case = Case { dtype, accuracy, ..Case::square(heads(len), len, dim) };
            cases.push(Typed { case, isa, family, floor, goal });
        };
        let usual = Accuracy::default();
        add(Dtype::F16, usual, None, "f32", Some(0.95), None);
        add(Dtype::F16, usual, Some("avx2"), "f32", Some(0.96), None);
        add(Dtype::Bf16, usual, Some("avx2"), "f32", Some(0.96), None);
        add(Dtype::Bf16, usual, None, "bf16", Some(1.95), None);
        add(Dtype::Bf16, Accuracy::Precise, None, "f32", Some(0.95), None);
        add(Dtype::Q8_0, usual, None, "f32", Some(0.85), None);
        let floor = if dim == 64 { 3.6 } else { 3.8 };
        add(Dtype::I8, Accuracy::Fast, None, "i8", Some(floor).filter(|_| len == 2048), None);
        // Not measured yet: no machine was at hand.
        add(Dtype::Bf16, usual, Some("amx"), "bf16", None, Some(if dim == 64 { 6.0 } else { 8.0 }));
        add(Dtype::F16, usual, Some("amx"), "f16", None, Some(if dim == 64 { 6.0 } else { 8.0 }));
        add(Dtype::I8, Accuracy::Fast, Some("amx"), "i8", None, Some(4.9));
        add(Dtype::I8, Accuracy::Fast, Some("avxvnni"), "i8", None, Some(2.7));
        add(Dtype::I8, usual, None, "i16", None, None);
        add(Dtype::I8, usual, Some("avx2"), "i16", Some(1.6), None);
    }
    // Small ones: never slower than f32.
    for len in [1, 16, 32, 64, 128] {
        for dim in [64, 128] {
            let case = Case { dtype: Dtype::I8, ..Case::square(heads(len), len, dim) };
            let (isa, family) = (Some("avx2"), "i16");
            cases.push(Typed { case, isa, family, floor: Some(1.0), goal: None });
        }
    }
    cases
}

/// Percent of the peak of the family's own dot products.
pub fn shares() -> Vec<Typed> {
    let mut cases = Vec::new();
    let mut add = |case, family, floor, goal| {
        cases.push(Typed { case, isa: None, family, floor: Some(floor), goal: Some(goal) });
    };
    for (dim, floor, goal) in [(64, 88., 91.), (128, 90., 93.)] {
        for len in [512, 2048, 8192] {
            add(Case { dtype: Dtype::Bf16, ..Case::square(heads(len), len, dim) }, "bf16", floor, goal);
        }
    }
    for (dim, bounds) in
        [(64, [(70., 75.), (80., 83.), (84., 87.)]), (128, [(70., 75.), (86., 88.), (88., 90.)])]
    {
        for (len, at) in [(128, 0), (512, 1), (2048, 2), (8192, 2)] {
            let (floor, goal) = bounds[at];
            add(Case { dtype: Dtype::I8, ..Case::square(heads(len), len, dim) }, "i8", floor, goal);
        }
        let (floor, goal) = bounds[2];
        let long = Case { dtype: Dtype::I8, ..Case::square(1, 2048, dim) };
        add(Case { causal: true, ..long.clone() }, "i8", floor - 6., goal - 6.);
        add(Case { per_token: true, ..long }, "i8", floor - 10., goal - 10.);
    }
    cases
}

/// What limits a case.
pub enum Limit {
    /// Reading K and V once.
    Read,
    /// Multiplying, at the peak of the type's own dot products.
    Compute,
    /// Whichever is slower.
    Both,
}

/// Few queries on many keys, and the percentage of what limits them.
pub struct Decode {
    pub case: Case,
    pub threads: usize,
    pub bound: Limit,
    pub floor: Option<f64>,
    pub goal: Option<f64>,
}

/// One query of each of `heads` heads on so many keys of 128 elements.
fn one(dtype: Dtype, heads: usize, group: usize, len_kv: usize) -> Case {
    Case { dtype, group, len_q: 1, len_kv, ..Case::square(heads, 1, 128) }
}

/// Keys whose K and V do not fit any cache: 128 MiB.
fn far(dtype: Dtype) -> usize {
    (64 << 20) / dtype.row_bytes(128).expect("a row")
}

/// Keys whose K and V fit the second-level cache and the last one.
fn near(dtype: Dtype) -> usize {
    (1 << 20) / dtype.row_bytes(128).expect("a row")
}

/// `avx2` if that is the best instruction set of the machine: it has floors of its own for caches
/// that are near.
pub fn decode(avx2: bool) -> Vec<Decode> {
    use Dtype::{Bf16, F16, F32, I8, Q8_0};
    let near_floors = |floor: f64, goal: f64| if avx2 { (80., 90.) } else { (floor, goal) };
    let mut cases = Vec::new();
    let mut add = |case, threads, bound, floor, goal| {
        cases.push(Decode { case, threads, bound, floor, goal });
    };
    for (dtype, dram, cache) in [
        (F32, (90., 98.), near_floors(85., 95.)),
        (Bf16, (90., 98.), near_floors(85., 95.)),
        (F16, (85., 95.), near_floors(80., 90.)),
        (I8, (80., 95.), near_floors(75., 85.)),
        (Q8_0, (80., 95.), near_floors(75., 85.)),
    ] {
        add(one(dtype, 1, 1, far(dtype)), 1, Limit::Read, Some(dram.0), Some(dram.1));
        add(one(dtype, 1, 1, near(dtype)), 1, Limit::Read, Some(cache.0), Some(cache.1));
    }
    add(one(F32, 8, 8, far(F32)), 1, Limit::Read, Some(75.), Some(85.));
    let (floor, goal) = if avx2 { (70., 80.) } else { (80., 85.) };
    add(one(F32, 8, 8, near(F32)), 1, Limit::Compute, Some(floor), Some(goal));
    add(one(Bf16, 8, 8, far(Bf16)), 1, Limit::Read, Some(75.), Some(90.));
    add(one(Bf16, 8, 8, near(Bf16)), 1, Limit::Compute, Some(70.), Some(75.));
    add(one(I8, 8, 8, far(I8)), 1, Limit::Read, None, None);
    add(one(Q8_0, 8, 8, far(Q8_0)), 1, Limit::Read, None, None);
    add(one(F32, 1, 1, 131_072), 2, Limit::Read, Some(85.), None);
    add(Case { window: 4096, ..one(F32, 1, 1, 131_072) }, 1, Limit::Read, None, None);
    for len_q in [2, 4, 8, 13, 16] {
        add(Case { len_q, ..one(F32, 1, 1, 8192) }, 1, Limit::Both, Some(75.), Some(85.));
    }
    cases
}

/// A case with so many threads, and how many times as fast as another it must be.
pub type Against = ((Case, usize), (Case, usize), Option<f64>, Option<f64>);

pub fn decode_ratios() -> Vec<Against> {
    use Dtype::{Bf16, F32, I8};
    vec![
        ((one(F32, 1, 1, 8192), 2), (one(F32, 1, 1, 8192), 1), Some(1.8), None),
        ((one(F32, 32, 4, 16), 2), (one(F32, 32, 4, 16), 1), Some(0.95), None),
        (
            (Case { window: 4096, ..one(F32, 1, 1, 131_072) }, 1),
            (one(F32, 1, 1, 4096), 1),
            Some(1.0 / 1.2),
            None,
        ),
        ((one(I8, 8, 8, 1 << 19), 1), (one(Bf16, 8, 8, 1 << 19), 1), Some(1.5), Some(1.9)),
    ]
}

pub fn decode_rival() -> Vec<Case> {
    [(1, 1, 16), (1, 1, 512), (1, 1, 8192), (1, 1, 131_072), (8, 8, 8192), (32, 4, 16), (32, 4, 2048)]
        .map(|(heads, group, len_kv)| one(Dtype::F32, heads, group, len_kv))
        .into()
}

/// Layouts that are not the usual ones, each against the usual one: instruction set
/// (None: the best), case, other case, least ratio.
pub fn layouts() -> Vec<(Option<&'static str>, Case, Case, f64)> {
    use Dtype::{Bf16, F16, F32, I8, Q8_0};
    let mut cases = Vec::new();
    // Small pages: at most 1.5 times the time of none.
    for dtype in [F32, F16, Bf16, I8] {
        let dense = one(dtype, 32, 4, 4096);
        for page in [1, 2, 4, 8, 16] {
            cases.push((None, Case { page, ..dense.clone() }, dense.clone(), 1.0 / 1.5));
        }
    }
    // K and V transposed: at most twice the time of dense ones in prefill, and four times in
    // decode, which reads them once and rearranges what it has read.
    for dtype in [F32, F16, Bf16, I8] {
        for dim in [64, 128] {
            let dense = Case { dtype, ..Case::square(4, 512, dim) };
            cases.push((None, Case { transposed: true, ..dense.clone() }, dense, 0.5));
        }
        let dense = one(dtype, 32, 4, 4096);
        cases.push((None, Case { transposed: true, ..dense.clone() }, dense, 0.25));
    }
    // Odd head sizes, against the next that is a whole number of vectors.
    for dtype in [F16, Bf16, I8] {
        for (dim, even) in [(59, 64), (100, 112)] {
            let of = |dim| Case { dim, ..one(dtype, 32, 4, 2048) };
            cases.push((None, of(dim), of(even), 1.0 / 1.5));
        }
    }
    // Conversions in plain code: against f32.
    for dtype in [F16, Bf16, I8, Q8_0] {
        for (heads, group) in [(8, 1), (32, 4)] {
            let of = |dtype| one(dtype, heads, group, 512);
            cases.push((Some("scalar"), of(dtype), of(F32), 1.0 / 1.5));
        }
    }
    cases
}

/// Probabilities of all heads and rows: many query rows, and one on a long cache.
pub fn weights() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (len, dim) in [(512, 64), (512, 128), (2048, 64), (2048, 128)] {
            cases.push(Case { dtype, weights: true, ..Case::square(1, len, dim) });
        }
        cases.push(Case { dtype, weights: true, len_q: 1, ..Case::square(1, 32_768, 64) });
    }
    cases
}
