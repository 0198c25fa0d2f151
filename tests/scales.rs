//! Caches of 8-bit integers, and of floating-point numbers of 8 bits, with scales and zeros of
//! every granularity, on both paths of every kernel, against f64 on the stored numbers.

mod common;
#[path = "common/f8.rs"]
mod f8;

use common::{KernelPath, Random, has_integers, is_tested, max_error, same_bits, thin};
use flash_attention::dtype::Dtype;
use flash_attention::kernel::{self, Path};
use flash_attention::machine::Machine;
use flash_attention::plan::Plan;
use flash_attention::problem::{Accuracy, Batch, Pages, Problem, Semantics, Shape, Tensors};
use flash_attention::reference;
use flash_attention::view::{Array, Layout, Quant, View, ViewMut};

/// What shares scales of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scales {
    /// Tokens, and elements of a row, that share values; 0: all.
    group: [usize; 2],
    zeros: bool,
}

const HEAD: Scales = Scales { group: [0, 0], zeros: false };
const TOKEN: Scales = Scales { group: [1, 0], zeros: false };
const TOKENS: Scales = Scales { group: [5, 0], zeros: false };
const CHANNEL: Scales = Scales { group: [0, 1], zeros: false };
const CHANNELS: Scales = Scales { group: [0, 24], zeros: false };
/// Of no vector's size.
const THREE: Scales = Scales { group: [0, 3], zeros: false };
/// Both: nothing leaves the loops.
const GRID: Scales = Scales { group: [1, 32], zeros: false };
const ODD_GRID: Scales = Scales { group: [4, 3], zeros: false };

const fn z(scales: Scales) -> Scales {
    Scales { zeros: true, ..scales }
}

/// Whether scales and zeros leave sums over elements (of K), or over keys (of V), of integers.
fn leaves([k, v]: [Scales; 2]) -> bool {
    let is_grid = |scales: Scales| scales.group[0] != 0 && scales.group[1] != 0;
    !is_grid(k) && v.group[0] == 0
}

/// One problem.
#[derive(Clone, Debug)]
struct Case {
    kv: [Scales; 2],
    /// Of K, of V, and of queries that are not f32.
    dtypes: [Dtype; 3],
    heads: [usize; 2],
    rows: usize,
    keys: usize,
    dims: [usize; 2],
    /// Keys of a page.
    page: Option<usize>,
    /// Sequences of different lengths, one behind the other.
    ragged: bool,
    causal: bool,
    softcap: f32,
    /// Queries are integers with a scale each.
    integer_queries: bool,
    /// The largest zero.
    zero: f32,
    seed: u64,
}

impl Case {
    fn new(kv: [Scales; 2], rows: usize, keys: usize, dims: [usize; 2]) -> Case {
        Case {
            kv,
            dtypes: [Dtype::I8; 3],
            heads: [4, 2],
            rows,
            keys,
            dims,
            page: None,
            ragged: false,
            causal: false,
            softcap: 0.0,
            integer_queries: false,
            zero: 60.0,
            seed: 1,
        }
    }
}

const BATCH: usize = 2;

/// Stored integers with their scales and zeros, `[entry][head][token][dim]`.
#[derive(Clone)]
struct Stored {
    scales: Scales,
    dtype: Dtype,
    /// Entries, heads, tokens, elements.
    extent: [usize; 4],
    bytes: Vec<u8>,
    scale: Vec<f32>,
    zero: Vec<f32>,
}

impl Stored {
    /// Scales of channels are spread over three orders of magnitude, others over one.
    fn new(dtype: Dtype, scales: Scales, extent: [usize; 4], zero: f32, random: &mut Random) -> Stored {
        let byte =
            |bits: u8| if !dtype.is_f8() { bits } else { f8::nearest(dtype, bits.cast_signed().into()) };
        let n = extent.iter().product::<usize>() * dtype.block_bytes();
        let bytes = (0..n).map(|_| byte((random.bits() >> 24) as u8)).collect();
        let n = Stored::cells(scales, extent).iter().product::<usize>() * extent[1];
        let orders = if scales.group[1] == 0 { 1.0 } else { 3.0 };
        // Fractions are as large as integers then.
        let unit = if dtype == Dtype::Q15 { 128.0 } else { 1.0 };
        let scale =
            (0..n).map(|_| unit * 10f64.powf(orders * random.uniform() - orders - 1.0) as f32).collect();
        let zero = (0..n).map(|_| zero * (2.0 * random.uniform() - 1.0) as f32).collect();
        Stored { scales, dtype, extent, bytes, scale, zero }
    }

    fn cells(Scales { group, .. }: Scales, [_, _, tokens, dim]: [usize; 4]) -> [usize; 2] {
        [(group[0], tokens), (group[1], dim)]
            .map(|(group, all)| if group == 0 { 1 } else { all.div_ceil(group) })
    }

    /// The place of the scale of an element; entries share them.
    fn place(&self, [head, token, d]: [usize; 3]) -> usize {
        let Quant { stride, group, .. } = self.quant();
        head * stride[1] + token / group[0] * stride[2] + d / group[1] * stride[3]
    }

    fn quant(&self) -> Quant<'_> {
        let Scales { group, zeros } = self.scales;
        let [of_tokens, of_elements] = Stored::cells(self.scales, self.extent);
        let of = |group: usize, stride| if group == 0 { 0 } else { stride };
        Quant {
            scale: Some(Array::of(&self.scale)),
            zero: (zeros && self.dtype.takes_zeros()).then(|| Array::of(&self.zero)),
            stride: [0, of_tokens * of_elements, of(group[0], of_elements), of(group[1], 1)],
            group: group.map(|n| n.max(1)),
        }
    }

    fn view(&self) -> View<'_> {
        let [entries, heads, tokens, dim] = self.extent;
        let stride = [heads * tokens * dim, tokens * dim, dim].map(|n| n * self.dtype.block_bytes());
        let layout =
            Layout { dtype: self.dtype, extent: [entries, heads, tokens], dim, stride, stride_dim: 0 };
        assert!(self.bytes.len() >= entries * stride[0]);
        // SAFETY: as many bytes.
        unsafe { View::new(self.bytes.as_ptr(), layout).unwrap().quantised(self.quant()).unwrap() }
    }
}

/// The memory of a case.
#[derive(Clone)]
struct Memory {
    case: Case,
    q: Vec<f32>,
    q_stored: Stored,
    kv: [Stored; 2],
    table: Vec<i32>,
    starts: [Vec<i32>; 2],
    mask: Option<Vec<f32>>,
    scale: f32,
}

impl Memory {
    fn new(case: &Case) -> Memory {
        let mut random = Random(case.seed);
        let Case { kv, dtypes, heads: [heads_q, heads_kv], rows, keys, dims, page, ragged, .. } = *case;
        let (mut table, mut starts) = (Vec::new(), [vec![], vec![]]);
        let (mut entries, mut tokens, mut total) = (BATCH, keys, rows);
        if let Some(page) = page {
            let pages = keys.div_ceil(page);
            (entries, tokens) = (BATCH * pages, page);
            table = (0..entries as i32).collect();
            for i in (1..table.len()).rev() {
                table.swap(i, random.below(i + 1));
            }
        }
        if ragged {
            let first = |n: usize| n / 3 + 1;
            let list = |n: usize| vec![0, first(n) as i32, (first(n) + n) as i32];
            starts = [list(rows), list(keys)];
            (entries, tokens, total) = (1, first(keys) + keys, first(rows) + rows);
        }
        let q_entries = if ragged { 1 } else { BATCH };
        let q_extent = [q_entries, heads_q, total, dims[0]];
        let kv = [0, 1].map(|i| {
            Stored::new(dtypes[i], kv[i], [entries, heads_kv, tokens, dims[i]], case.zero, &mut random)
        });
        let mut memory = Memory {
            case: case.clone(),
            q: random.normals(q_extent.iter().product()),
            q_stored: Stored::new(dtypes[2], TOKEN, q_extent, 0.0, &mut random),
            kv,
            table,
            starts,
            mask: None,
            scale: 1.0,
        };
        // Scores of about 1, so that softmax has something to tell apart.
        let mut spread = 0f64;
        memory.with_problem(|problem| {
            let rows = problem.k().layout().extent[2].min(40);
            for head in 0..heads_q {
                let q = problem.q().get_row(0, head, 0);
                let squares = (0..rows).map(|token| {
                    let key = problem.k().get_row(0, problem.kv_head(head), token);
                    q.iter().zip(key).map(|(q, k)| q * k).sum::<f64>().powi(2)
                });
                spread = spread.max((squares.sum::<f64>() / rows as f64).sqrt());
            }
        });
        memory.scale = (1.5 / spread) as f32;
        memory
    }

    fn with_problem(&self, f: impl FnOnce(&mut Problem)) -> (Vec<f32>, Vec<f32>) {
        let Case { heads: [heads, _], keys, dims, page, ragged, causal, softcap, .. } = self.case;
        let [entries, _, rows, _] = self.q_stored.extent;
        let layout = |dim: usize| Layout {
            dtype: Dtype::F32,
            extent: [entries, heads, rows],
            dim,
            stride: [4 * heads * rows * dim, 4 * rows * dim, 4 * dim],
            stride_dim: 0,
        };
        let n = entries * heads * rows;
        let (mut o, mut lse) = (vec![f32::MAX; n * dims[1]], vec![f32::MAX; n]);
        let [k, v] = &self.kv;
        let q = match self.case.integer_queries {
            true => self.q_stored.view(),
            false => View::of(&self.q, layout(dims[0])).unwrap(),
        };
        let mut tensors = Tensors::new(q, k.view(), v.view(), ViewMut::of(&mut o, layout(dims[1])).unwrap());
        tensors.lse = Some(ViewMut::of(&mut lse, layout(1)).unwrap());
        if let Some(page) = page {
            let table = Array::of(&self.table[..]);
            let pages =
                Pages { table, starts: None, stride: keys.div_ceil(page), head_stride: 0, len_kv: keys };
            tensors.batch.pages = Some(pages);
        }
        if ragged {
            let [q, kv] = self.starts.each_ref().map(|list| Some(Array::of(&list[..])));
            tensors.batch = Batch { starts_q: q, starts_kv: kv, ..tensors.batch };
        }
        if let Some(mask) = &self.mask {
            let layout = Layout { extent: [BATCH, heads, self.case.rows], dim: keys, ..layout(1) };
            tensors.logits.mask =
                Some(View::of(mask, Layout { stride: [0, 0, 4 * keys], ..layout }).unwrap());
        }
        tensors.logits.softcap = softcap;
        let semantics = Semantics::with_scale(self.scale);
        f(&mut Problem::new(tensors, if causal { semantics.causal() } else { semantics }).unwrap());
        (o, lse)
    }

    fn run(&self, kernel: KernelPath, threads: usize) -> (Vec<f32>, Vec<f32>) {
        self.with_problem(|problem| common::run(problem, kernel, threads).unwrap())
    }

    /// In the order of the memory of outputs: output, log-sum-exp, and of each element of the
    /// output how large the mean of as many values is that differ as those of its column do.
    fn exact(&self) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let [_, heads, rows, _] = self.q_stored.extent;
        let (dim, mut o, mut lse, mut size) = (self.case.dims[1], Vec::new(), Vec::new(), Vec::new());
        self.with_problem(|problem| {
            let n = problem.q().layout().extent[0] * heads * rows;
            (o, lse, size) = (vec![0.0; n * dim], vec![0.0; n], vec![0.0; n * dim]);
            for sequence in (0..BATCH).map(|b| problem.sequence(b)) {
                let columns = (0..self.case.heads[1]).map(|kv_head| {
                    let keys = 0..sequence.len_kv;
                    let rows = keys.map(|key| {
                        let [entry, token] = problem.key_at(&sequence, 0, key);
                        problem.v().get_row(entry, kv_head, token)
                    });
                    deviations(&rows.collect::<Vec<_>>(), dim)
                });
                let columns: Vec<Vec<f64>> = columns.collect();
                for (head, i) in (0..heads).flat_map(|head| (0..sequence.len_q).map(move |i| (head, i))) {
                    let [entry, row] = problem.query_at(&sequence, i);
                    let at = (entry * heads + head) * rows + row;
                    let (of_row, of_lse) = reference::row(problem, &sequence, head, i);
                    o[at * dim..][..dim].copy_from_slice(&of_row);
                    lse[at] = of_lse;
                    let seen = sequence.visible(i).len().max(1) as f64;
                    for (d, size) in size[at * dim..][..dim].iter_mut().enumerate() {
                        // A few keys have most of the weight.
                        *size = 3.0 * columns[problem.kv_head(head)][d] / seen.sqrt();
                    }
                }
            }
        });
        (o, lse, size)
    }

    /// Both paths of every kernel that computes it.
    fn kernels(&self) -> Vec<KernelPath> {
        let mut shape: Option<Shape> = None;
        self.with_problem(|problem| shape = Some(*problem.shape()));
        let rows = kernel::available().filter(|row| is_tested(row.isa()) && row.takes(&shape.unwrap()));
        rows.flat_map(|kernel| [Path::Prefill, Path::Decode].map(|path| KernelPath { kernel, path }))
            .collect()
    }
}

/// The standard deviation of each column.
fn deviations(rows: &[Vec<f64>], dim: usize) -> Vec<f64> {
    let n = rows.len() as f64;
    let of = |d: usize| {
        let mean = rows.iter().map(|row| row[d]).sum::<f64>() / n;
        (rows.iter().map(|row| (row[d] - mean).powi(2)).sum::<f64>() / n).sqrt()
    };
    (0..dim).map(of).collect()
}

/// What computing so may cost: see [`error_of_output`] and [`error_of_lse`].
fn bounds(kernel: KernelPath) -> [f64; 2] {
    match kernel.kernel.compute_type(kernel.path) {
        // Eight bits of a query whose elements differ by three orders of magnitude.
        "i8" => [5e-2, 5e-2],
        "i16" => [6e-4, 4e-4],
        _ => [1e-5, 1e-5],
    }
}

/// Errors of an output, each relative to what such an element is: a share of itself, and the mean
/// of as many values as are seen. So small channels, heads and rows count as much as large ones.
/// Their RMS.
fn error_of_output(o: &[f32], exact: &[f64], size: &[f64], share: f64) -> f64 {
    assert!(o.len() == exact.len() && o.len() == size.len());
    let square = |((&o, &exact), &size): ((&f32, &f64), &f64)| match f64::from(o) - exact {
        0.0 => 0.0,
        error => (error / (share * exact.abs() + size)).powi(2),
    };
    (o.iter().zip(exact).zip(size).map(square).sum::<f64>() / o.len() as f64).sqrt()
}

/// The largest error of log-sum-exps, relative to 1 or to themselves.
fn error_of_lse(lse: &[f32], exact: &[f64]) -> f64 {
    let error = |(&lse, &exact): (&f32, &f64)| max_error(&[lse], &[exact]) / (1.0 + exact.abs());
    lse.iter().zip(exact).map(error).fold(0.0, f64::max)
}

fn check(case: &Case) {
    let memory = Memory::new(case);
    let (exact, exact_lse, size) = memory.exact();
    let kernels = memory.kernels();
    let can_multiply = kernels.iter().any(|kernel| has_integers(kernel.kernel.isa()));
    let multiplies = kernels.iter().any(|kernel| kernel.kernel.compute_type(kernel.path) == "i16");
    let are_integers = case.dtypes[..2].iter().all(|dtype| dtype.takes_zeros());
    assert_eq!(can_multiply && are_integers && leaves(case.kv), multiplies, "{case:?}");
    for kernel in kernels {
        let (o, lse) = memory.run(kernel, 1);
        let error = error_of_output(&o, &exact, &size, 1.0);
        let [rms, of_lse] = bounds(kernel);
        assert!(error <= rms, "{kernel:?} {case:?}: {error:.1e}");
        let error = error_of_lse(&lse, &exact_lse);
        assert!(error <= of_lse, "{kernel:?} {case:?}: LSE {error:.1e}");
        let (again, lse_again) = memory.run(kernel, 3);
        assert!(same_bits(&o, &again) && same_bits(&lse, &lse_again), "{kernel:?} {case:?}: three threads");
    }
}

const ALL: [Scales; 16] = [
    HEAD,
    z(HEAD),
    TOKEN,
    z(TOKEN),
    TOKENS,
    z(TOKENS),
    CHANNEL,
    z(CHANNEL),
    CHANNELS,
    z(CHANNELS),
    THREE,
    z(THREE),
    GRID,
    z(GRID),
    ODD_GRID,
    z(ODD_GRID),
];

/// Every mixture of granularities of K and V, few rows and many, head sizes that are and are not
/// whole vectors; softcap, so that a constant of all scores of a row shows in its output.
#[test]
fn every_mixture_is_what_its_numbers_say() {
    for (i, k) in ALL.into_iter().enumerate() {
        for (j, v) in ALL.into_iter().enumerate() {
            if (16 * i + j) % thin().min(29) != 0 {
                continue;
            }
            let dims = [[64, 64], [59, 64], [40, 19], [100, 33]][(i + j) % 4];
            let (rows, keys) = [(1, 130), (21, 77), (3, 61), (40, 40)][(i + j / 4) % 4];
            let case = Case {
                causal: (i + j) % 3 == 0,
                softcap: [0.0, 3.0][(i ^ j) % 2],
                integer_queries: (i + j) % 5 == 0,
                seed: (100 * i + j) as u64,
                ..Case::new([k, v], rows, keys, dims)
            };
            check(&case);
        }
    }
}

/// Unsigned integers, floating-point numbers of 8 bits, and fractions, as any of Q, K and V.
#[test]
fn every_type_with_scales() {
    const TYPES: [Dtype; 5] = [Dtype::I8, Dtype::U8, Dtype::F8E4M3, Dtype::F8E5M2, Dtype::Q15];
    for i in 0..16 * 16 {
        let [k, v] = [ALL[i % 16], ALL[i / 16]];
        for n in 0..2 {
            if (2 * i + n) % thin().min(7) != 0 {
                continue;
            }
            let dims = [[64, 64], [59, 64], [40, 19], [100, 33]][(i + n) % 4];
            let (rows, keys) = [(1, 130), (21, 77), (3, 61), (40, 40)][(i / 4 + n) % 4];
            let case = Case {
                dtypes: [TYPES[(i + 3 * n) % 5], TYPES[(i / 5 + 2 + n) % 5], TYPES[(i / 3) % 5]],
                causal: i % 3 == 0,
                softcap: [0.0, 3.0][i / 2 % 2],
                integer_queries: i % 5 < 3,
                page: [None, Some(1), Some(7), Some(16)][(i / 7 + n) % 4],
                seed: (3 * i + n) as u64,
                ..Case::new([k, v], rows, keys, dims)
            };
            check(&case);
        }
    }
}

/// An unsigned integer and its zero are those of a signed one, 128 more: the bits are the same.
#[test]
fn unsigned_integers_have_the_bits_of_signed_ones() {
    for (i, k) in ALL.into_iter().enumerate().filter(|(_, scales)| scales.zeros) {
        for (rows, keys, page) in [(1, 150, None), (20, 90, None), (3, 70, Some(7)), (33, 40, Some(16))] {
            let v = ALL[(5 * i + 2 * rows + 1) % 16];
            let case = Case {
                dtypes: [Dtype::U8, Dtype::U8, Dtype::I8],
                page,
                seed: i as u64,
                ..Case::new([k, z(v)], rows, keys, [59, 40])
            };
            let unsigned = Memory::new(&case);
            let mut signed = unsigned.clone();
            for stored in &mut signed.kv {
                stored.dtype = Dtype::I8;
                stored.bytes.iter_mut().for_each(|x| *x ^= 0x80);
                stored.zero.iter_mut().for_each(|x| *x -= 128.0);
            }
            let (kernels, alike) = (unsigned.kernels(), signed.kernels());
            assert_eq!(kernels.len(), alike.len());
            for kernel in kernels {
                let [a, b] = [&unsigned, &signed].map(|memory| memory.run(kernel, 1));
                assert!(same_bits(&a.0, &b.0) && same_bits(&a.1, &b.1), "{kernel:?} {case:?}");
            }
        }
    }
}

/// Caches in pages, whose tokens share scales with those of other pages, and packed sequences.
#[test]
fn pages_and_packed_sequences() {
    for (i, k) in ALL.into_iter().enumerate() {
        let v = ALL[(5 * i + 3) % ALL.len()];
        if i % thin() != 6 % thin() {
            continue;
        }
        for (rows, keys) in [(1, 150), (20, 90)] {
            for page in [1, 7, 16] {
                check(&Case { page: Some(page), seed: i as u64, ..Case::new([k, v], rows, keys, [64, 40]) });
            }
            check(&Case { ragged: true, causal: true, ..Case::new([k, v], rows, keys, [33, 64]) });
        }
    }
}

/// More keys than a block has, and so than a split of the keys has.
#[test]
fn many_keys() {
    for kv in [[z(CHANNEL), z(CHANNEL)], [z(TOKEN), z(HEAD)], [z(TOKEN), z(TOKEN)], [CHANNEL, GRID]] {
        for rows in if thin() > 1 { vec![] } else { vec![1, 2, 17] } {
            check(&Case { heads: [2, 1], causal: true, ..Case::new(kv, rows, 9000, [32, 32]) });
        }
    }
}

/// Zeros far outside of the integers, as of numbers that are all alike: what is left of the
/// difference is as right as f32 is.
#[test]
fn large_zeros_do_not_cancel() {
    for of_k in [HEAD, TOKEN, CHANNEL] {
        for of_v in [HEAD, TOKEN, CHANNEL] {
            if of_k != of_v && thin() > 1 {
                continue;
            }
            for rows in [1, 20] {
                let zero = 10_000.0;
                let memory =
                    Memory::new(&Case { zero, ..Case::new([z(of_k), z(of_v)], rows, 100, [64, 64]) });
                let (exact, exact_lse, size) = memory.exact();
                for kernel in memory.kernels() {
                    let (o, lse) = memory.run(kernel, 1);
                    // Values are their zeros, to a hundredth: what is left counts.
                    let error = error_of_output(&o, &exact, &size, 0.01);
                    let [rms, of_lse] = bounds(kernel);
                    let rms = rms.max(1e-4);
                    let what = format!("{kernel:?} {of_k:?} {of_v:?} {rows}");
                    assert!(error <= rms, "{what}: {error:.1e}");
                    assert!(error_of_lse(&lse, &exact_lse) <= of_lse, "{what}");
                }
            }
        }
    }
}

/// Whatever shares its scales is NaN with them where it is seen, and has no influence where not.
#[test]
fn scales_that_are_not_numbers() {
    const ROWS: usize = 40;
    const DIM: usize = 20;
    for (which, scales) in
        [(0, z(TOKEN)), (0, z(CHANNEL)), (0, z(HEAD)), (1, z(TOKEN)), (1, z(CHANNEL)), (1, z(HEAD))]
    {
        let mut kv = [HEAD; 2];
        kv[which] = scales;
        let case = Case { causal: true, ..Case::new(kv, ROWS, ROWS, [DIM, DIM]) };
        let good = Memory::new(&case);
        for of_zero in [false, true] {
            let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
            for &bad in &bad[..if thin() > 1 { 1 } else { 3 }] {
                // Of head 1: queries 2 and 3; token 25, or channel 13.
                let mut memory = good.clone();
                let at = memory.kv[which].place([1, 25, 13]);
                let stored = &mut memory.kv[which];
                (if of_zero { &mut stored.zero } else { &mut stored.scale })[at] = bad;
                for kernel in good.kernels() {
                    let (before, now) = (good.run(kernel, 1), memory.run(kernel, 1));
                    for line in 0..BATCH * 4 * ROWS {
                        let (head, row) = (line / ROWS % 4, line % ROWS);
                        let what = format!("{kernel:?} {which} {scales:?} {of_zero} {bad}, {head}, {row}");
                        let sees = head >= 2 && (scales.group[0] == 0 || row >= 25);
                        for d in 0..DIM {
                            let reaches = sees && (which == 0 || scales.group[1] == 0 || d == 13);
                            let (before, now) = (before.0[line * DIM + d], now.0[line * DIM + d]);
                            match reaches {
                                false => assert_eq!(before.to_bits(), now.to_bits(), "{what}, {d}"),
                                true => assert!(!now.is_finite(), "{what}, {d}: {now}"),
                            }
                        }
                        match sees && which == 0 {
                            true => assert!(!now.1[line].is_finite(), "{what}: LSE {}", now.1[line]),
                            false => assert_eq!(before.1[line].to_bits(), now.1[line].to_bits(), "{what}"),
                        }
                    }
                    // A mask that hides the key from all rows: the same bits as with good numbers.
                    if scales.group[0] == 1 {
                        let mut mask = vec![0.0; ROWS * ROWS];
                        mask.iter_mut().skip(25).step_by(ROWS).for_each(|x| *x = f32::NEG_INFINITY);
                        let hidden = |memory: &Memory| {
                            Memory { mask: Some(mask.clone()), ..memory.clone() }.run(kernel, 1)
                        };
                        let (before, now) = (hidden(&good), hidden(&memory));
                        let same = same_bits(&before.0, &now.0) && same_bits(&before.1, &now.1);
                        assert!(same, "{kernel:?} {which} {scales:?} {of_zero} {bad}: hidden");
                    }
                }
            }
        }
    }
}

/// Scales of 0, some and all of them: products of nothing, and no division by it.
#[test]
fn scales_of_zero() {
    for kv in [[z(CHANNEL), z(CHANNEL)], [z(TOKEN), z(TOKEN)], [z(HEAD), z(HEAD)], [GRID, z(GRID)]] {
        for rows in [2, 20] {
            for all in [false, true] {
                let mut memory = Memory::new(&Case::new(kv, rows, 50, [24, 24]));
                for stored in &mut memory.kv {
                    stored.scale.iter_mut().step_by(if all { 1 } else { 3 }).for_each(|scale| *scale = 0.0);
                }
                let (exact, exact_lse, size) = memory.exact();
                for kernel in memory.kernels() {
                    let (o, lse) = memory.run(kernel, 1);
                    let [rms, of_lse] = bounds(kernel);
                    let error = error_of_output(&o, &exact, &size, 1.0);
                    assert!(error <= rms, "{kernel:?} {kv:?} {rows} {all}: {error:.1e}");
                    let error = error_of_lse(&lse, &exact_lse);
                    assert!(error <= of_lse, "{kernel:?} {kv:?} {rows} {all}: {error:.1e}");
                }
            }
        }
    }
}

/// A row has the bits that it has among others, in each path.
#[test]
fn rows_do_not_depend_on_their_neighbours() {
    for kv in [[z(CHANNEL), z(CHANNEL)], [z(TOKEN), z(HEAD)], [z(TOKEN), z(TOKEN)], [z(HEAD), CHANNEL]] {
        let rows = 20;
        let memory = Memory::new(&Case::new(kv, rows, 70, [40, 24]));
        for kernel in memory.kernels() {
            let (o, lse) = memory.run(kernel, 1);
            for row in [0, 7, 19] {
                let mut alone = memory.clone();
                alone.case.rows = 1;
                alone.q_stored.extent[2] = 1;
                alone.q =
                    memory.q.chunks(rows * 40).flat_map(|rows| rows[row * 40..][..40].to_vec()).collect();
                let (o_alone, lse_alone) = alone.run(kernel, 1);
                for line in 0..BATCH * 4 {
                    let at = line * rows + row;
                    let same = same_bits(&o_alone[line * 24..][..24], &o[at * 24..][..24])
                        && lse_alone[line].to_bits() == lse[at].to_bits();
                    assert!(same, "{kernel:?} {kv:?}: row {row} of {line}");
                }
            }
        }
    }
}

/// What is computed by integers, and read in place.
#[test]
fn plans_say_what_is_multiplied_as_it_is_stored() {
    let words = |kv, rows| {
        let mut words = String::new();
        Memory::new(&Case::new(kv, rows, 200, [64, 64])).with_problem(|problem| {
            let kernel = kernel::select(problem.shape(), Accuracy::default()).unwrap();
            words = Plan::new(problem.shape(), kernel, Machine::get(), 1).unwrap().to_string();
        });
        words
    };
    if has_integers(kernel::best().unwrap().isa()) {
        // In prefill, Arm's bytes are multiplied where 8 bits of probability are enough.
        let many = if cfg!(target_arch = "aarch64") { " f32, prefill" } else { " i16, prefill" };
        for kv in [[z(CHANNEL), CHANNEL], [z(TOKEN), z(HEAD)], [CHANNELS, z(THREE)]] {
            assert!(words(kv, 1).contains(" i16, decode"), "{}", words(kv, 1));
            assert!(words(kv, 40).contains(many), "{}", words(kv, 40));
        }
    }
    for kv in [[z(CHANNEL), z(TOKEN)], [z(TOKEN), TOKEN]] {
        assert!(words(kv, 1).contains("V converted from I8 as it is read"), "{}", words(kv, 1));
    }
    for kv in [[GRID, GRID], [z(ODD_GRID), z(GRID)]] {
        assert!(words(kv, 1).contains("V converted from I8 block by block"), "{}", words(kv, 1));
    }
}
