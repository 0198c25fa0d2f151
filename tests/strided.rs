//! K and V whose elements lie apart, such as transposed caches: the same bits as rows that are
//! contiguous, on both paths of every kernel, and near what f64 computes.

mod common;
#[path = "common/store.rs"]
mod store;

use common::{Random, is_tested, max_error, same_bits};
use flash_attention::dtype::Dtype;
use flash_attention::error::Error;
use flash_attention::kernel::{self, Path};
use flash_attention::problem::{Batch, Pages, Problem, Semantics, Tensors};
use flash_attention::view::{Array, Layout, Quant, View, ViewMut};
use flash_attention::{Attention, Pool, Tensor, TensorMut, Workspace, reference};
use store::encode;

/// How rows lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lies {
    /// Behind one another.
    Dense,
    /// `[entry][head][dim][token]`, with room for so many tokens more.
    Transposed(usize),
    /// `[entry][dim][head][token]`.
    DimFirst,
    /// As dense ones, but with so many elements from one to the next.
    Apart(usize),
    /// Transposed, with so many elements from one token to the next.
    TokensApart(usize),
}

/// What shares scales of 8-bit integers: tokens, elements; 0 is all of them.
type Group = [usize; 2];

#[derive(Clone, Copy, Debug)]
struct Case {
    dtypes: [Dtype; 2],
    lies: [Lies; 2],
    rows: usize,
    keys: usize,
    dims: [usize; 2],
    /// Keys of a page.
    page: Option<usize>,
    block_kv: usize,
    groups: [Group; 2],
    causal: bool,
    /// A mask hides every third key, whose values are NaN.
    hides: bool,
    /// One key is seen much more than all others.
    sink: bool,
}

const HEADS: usize = 2;

fn case(dtype: Dtype, lies: Lies, rows: usize, keys: usize, dim: usize) -> Case {
    Case {
        dtypes: [dtype; 2],
        lies: [lies; 2],
        rows,
        keys,
        dims: [dim; 2],
        page: None,
        block_kv: 0,
        groups: [[0; 2]; 2],
        causal: false,
        hides: false,
        sink: false,
    }
}

/// K or V in memory.
struct Stored {
    bytes: Vec<u8>,
    layout: Layout,
    scale: Vec<f32>,
    zero: Vec<f32>,
    group: Group,
}

impl Stored {
    /// `numbers` are `[entry][head][token][dim]`.
    fn new(
        numbers: &[f32],
        extent: [usize; 3],
        dim: usize,
        dtype: Dtype,
        lies: Lies,
        group: Group,
    ) -> Stored {
        let size = dtype.block_bytes();
        let (dense, _) = encode(dtype, numbers, dim);
        let [entries, heads, tokens] = extent;
        let (stride, apart) = match lies {
            Lies::Dense => ([heads * tokens * dim, tokens * dim, dim], 1),
            Lies::Transposed(more) => {
                let room = tokens + more;
                ([heads * dim * room, dim * room, 1], room)
            }
            Lies::DimFirst => ([dim * heads * tokens, tokens, 1], heads * tokens),
            Lies::Apart(n) => ([heads * tokens * dim * n, tokens * dim * n, dim * n], n),
            Lies::TokensApart(n) => ([heads * dim * tokens * n, dim * tokens * n, n], tokens * n),
        };
        let last = (entries - 1) * stride[0]
            + (heads - 1) * stride[1]
            + (tokens - 1) * stride[2]
            + (dim - 1) * apart;
        // What belongs to no row is not a number in every format, and nothing lies behind the last
        // element.
        let mut bytes = vec![0xff; (last + 1) * size];
        for (i, element) in dense.chunks(size).enumerate() {
            let (row, d) = (i / dim, i % dim);
            let (token, head, entry) = (row % tokens, row / tokens % heads, row / tokens / heads);
            let at = entry * stride[0] + head * stride[1] + token * stride[2] + d * apart;
            bytes[at * size..][..size].copy_from_slice(element);
        }
        let mut random = Random(7);
        let cells = |n: usize, group: usize| if group == 0 { 1 } else { n.div_ceil(group) };
        let n = heads * cells(tokens, group[0]) * cells(dim, group[1]);
        Stored {
            bytes,
            layout: Layout {
                dtype,
                extent,
                dim,
                stride: stride.map(|n| n * size),
                stride_dim: if apart == 1 { 0 } else { apart * size },
            },
            scale: (0..n).map(|_| (0.01 + 0.02 * random.uniform()) as f32).collect(),
            zero: (0..n).map(|_| (20.0 * random.uniform() - 10.0) as f32).collect(),
            group,
        }
    }

    fn view(&self) -> View<'_> {
        assert!(self.bytes.len() >= self.layout.row_bytes());
        // SAFETY: as many bytes as are reached.
        let view = unsafe { View::new(self.bytes.as_ptr(), self.layout).unwrap() };
        if !self.layout.dtype.takes_scales() {
            return view;
        }
        let [_, _, tokens] = self.layout.extent;
        let [of_tokens, of_elements] = self.group;
        let cells = |n: usize, group: usize| if group == 0 { 1 } else { n.div_ceil(group) };
        let row = cells(self.layout.dim, of_elements);
        let stride = [
            0,
            cells(tokens, of_tokens) * row,
            if of_tokens == 0 { 0 } else { row },
            if of_elements == 0 { 0 } else { 1 },
        ];
        let [scale, zero] = [&self.scale, &self.zero].map(|list| Some(Array::of(list)));
        let zero = zero.filter(|_| self.layout.dtype.takes_zeros());
        view.quantised(Quant { scale, zero, stride, group: self.group.map(|n| n.max(1)) }).unwrap()
    }
}

struct Memory {
    case: Case,
    q: Vec<f32>,
    kv: [Stored; 2],
    table: Vec<i32>,
    mask: Vec<u8>,
}

impl Memory {
    fn new(case: Case) -> Memory {
        let Case { dtypes, lies, rows, keys, dims, page, groups, hides, sink, .. } = case;
        let (entries, tokens) = page.map_or((1, keys), |page| (keys.div_ceil(page), page));
        let mut random = Random((keys * 1000 + dims[0]) as u64);
        let q = random.normals(HEADS * rows * dims[0]);
        let kv = [0, 1].map(|i| {
            let mut numbers = random.normals(entries * HEADS * tokens * dims[i]);
            for (row, numbers) in numbers.chunks_mut(dims[i]).enumerate() {
                let key = row / tokens / HEADS * tokens + row % tokens;
                if sink && i == 0 && key == keys / 2 {
                    numbers.iter_mut().for_each(|x| *x *= 30.0);
                }
                if hides && key % 3 == 1 && dtypes[i].is_float() {
                    numbers.fill(f32::NAN);
                }
                // Signs of zeros are kept.
                numbers[0] = if key.is_multiple_of(5) { -0.0 } else { numbers[0] };
            }
            Stored::new(&numbers, [entries, HEADS, tokens], dims[i], dtypes[i], lies[i], groups[i])
        });
        let table = (0..entries as i32).collect();
        let mask = (0..rows * keys).map(|at| u8::from(at % keys % 3 != 1)).collect();
        Memory { case, q, kv, table, mask }
    }

    fn with_problem(&self, f: impl FnOnce(&mut Problem)) -> (Vec<f32>, Vec<f32>) {
        let Case { rows, keys, dims, page, block_kv, causal, hides, .. } = self.case;
        let dense = |dim| Layout::dense(Dtype::F32, HEADS, rows, dim).unwrap();
        let (mut o, mut lse) = (vec![0f32; HEADS * rows * dims[1]], vec![0f32; HEADS * rows]);
        let [k, v] = self.kv.each_ref().map(Stored::view);
        let q = View::of(&self.q, dense(dims[0])).unwrap();
        let mut tensors = Tensors::new(q, k, v, ViewMut::of(&mut o, dense(dims[1])).unwrap());
        tensors.lse = Some(ViewMut::of(&mut lse, dense(1)).unwrap());
        if page.is_some() {
            let table = Array::of(&self.table);
            let pages = Pages { table, starts: None, stride: table.len(), head_stride: 0, len_kv: keys };
            tensors.batch = Batch { pages: Some(pages), ..Batch::default() };
        }
        if hides {
            let stride = [0, 0, keys];
            let extent = [1, HEADS, rows];
            let layout = Layout { dtype: Dtype::Bool8, extent, dim: keys, stride, stride_dim: 0 };
            tensors.logits.mask = Some(View::of(&self.mask, layout).unwrap());
        }
        let semantics = Semantics::with_scale(1.0 / (dims[0] as f32).sqrt());
        let semantics = if causal { semantics.causal() } else { semantics };
        f(&mut Problem::new(tensors, Semantics { block_kv, ..semantics }).unwrap());
        (o, lse)
    }

    fn run(&self, kernel: common::KernelPath, threads: usize) -> (Vec<f32>, Vec<f32>) {
        self.with_problem(|problem| common::run(problem, kernel, threads).unwrap())
    }
}

/// Strided rows give the bits of dense ones; the best kernel is near f64.
fn check(case: Case) {
    let strided = Memory::new(case);
    let dense = Memory::new(Case { lies: [Lies::Dense; 2], ..case });
    let mut exact = None;
    strided.with_problem(|problem| exact = Some(reference::attention(problem)));
    let exact = exact.unwrap();
    let mut computed = 0;
    for kernel in kernel::available().filter(|kernel| is_tested(kernel.isa())) {
        for path in [Path::Prefill, Path::Decode] {
            let mut takes = false;
            strided.with_problem(|problem| takes = kernel.takes(problem.shape()));
            if !takes {
                continue;
            }
            let kernel = common::KernelPath { kernel, path };
            let (o, lse) = strided.run(kernel, 1);
            let (o_dense, lse_dense) = dense.run(kernel, 1);
            assert!(same_bits(&o, &o_dense) && same_bits(&lse, &lse_dense), "{kernel:?}, {case:?}");
            let largest = exact.o.iter().fold(0f64, |m, x| m.max(x.abs()));
            let compute = kernel.kernel.compute_type(path);
            let bound = if compute == "f32" { 1e-5 } else { 2e-2 };
            // Rounded queries move the score of a sink, which is most of the log-sum-exp, and with
            // it the weight of all others.
            let moved =
                if ["bf16", "f16", "i8"].contains(&compute) { max_error(&lse, &exact.lse) } else { 0.0 };
            let sink = exact.lse.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
            let error = max_error(&o, &exact.o);
            assert!(
                moved <= 2e-2 * sink
                    && error <= (bound + moved) * largest.max(1.0)
                    && !o.iter().any(|x| x.is_nan()),
                "{kernel:?}, {case:?}: {error}, moved by {moved}"
            );
            computed += 1;
        }
    }
    assert!(computed > 0 || !is_tested(c"scalar"));
}

const TYPES: [Dtype; 7] =
    [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I8, Dtype::U8, Dtype::F8E4M3, Dtype::Q15];
const LIES: [Lies; 6] = [
    Lies::Transposed(0),
    Lies::Transposed(5),
    Lies::DimFirst,
    Lies::Apart(2),
    Lies::Apart(5),
    Lies::TokensApart(3),
];

#[test]
fn any_stride_gives_the_bits_of_contiguous_rows() {
    for dtype in TYPES {
        for lies in LIES {
            for (rows, keys, dim) in [(20, 70, 64), (3, 40, 40), (17, 33, 17), (1, 5, 3)] {
                check(case(dtype, lies, rows, keys, dim));
            }
        }
    }
}

#[test]
fn all_sizes_of_transposed_rows() {
    let sizes = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100];
    for dtype in TYPES {
        for dim in sizes {
            for keys in sizes {
                check(case(dtype, Lies::Transposed(dim % 3), 5, keys, dim));
            }
        }
        check(case(dtype, Lies::Transposed(0), 70, 600, 128));
        check(case(dtype, Lies::Transposed(0), 2, 1100, 257));
    }
}

#[test]
fn only_one_of_k_and_v_is_transposed() {
    for dtype in TYPES {
        for lies in [[Lies::Dense, Lies::Transposed(1)], [Lies::Transposed(0), Lies::Dense]] {
            for other in TYPES {
                let dtypes = [dtype, other];
                check(Case {
                    dtypes,
                    lies,
                    dims: [24, 40],
                    causal: true,
                    ..case(dtype, lies[0], 19, 90, 24)
                });
            }
        }
    }
}

#[test]
fn blocks_and_pages_of_any_size() {
    for dtype in TYPES {
        for block_kv in [0, 1, 3, 16, 32, 50] {
            check(Case { block_kv, ..case(dtype, Lies::Transposed(0), 20, 130, 32) });
        }
        for page in [1, 3, 16, 40, 64] {
            for lies in [Lies::Transposed(0), Lies::DimFirst, Lies::Apart(3)] {
                check(Case { page: Some(page), ..case(dtype, lies, 20, 130, 32) });
                check(Case { page: Some(page), block_kv: 20, ..case(dtype, lies, 4, 130, 33) });
            }
        }
    }
}

/// Whatever is looked at row by row is found there, too.
#[test]
fn values_behind_masks_and_sinks_of_integers() {
    for dtype in TYPES {
        for lies in [Lies::Transposed(3), Lies::Apart(2)] {
            for block_kv in [0, 20] {
                for (rows, keys) in [(40, 150), (3, 150), (3, 700)] {
                    let case = Case { block_kv, ..case(dtype, lies, rows, keys, 48) };
                    check(Case { hides: true, ..case });
                    check(Case { sink: true, ..case });
                    check(Case { hides: true, causal: true, sink: true, ..case });
                }
            }
        }
    }
}

#[test]
fn scales_of_every_granularity() {
    let groups = [[0, 0], [1, 0], [0, 1], [0, 8], [1, 16], [5, 3], [1, 1]];
    for k in groups {
        for v in groups {
            for lies in [Lies::Transposed(1), Lies::Apart(2)] {
                for (dtype, sink) in
                    [(Dtype::I8, false), (Dtype::I8, true), (Dtype::U8, true), (Dtype::F8E5M2, false)]
                {
                    check(Case { groups: [k, v], sink, ..case(dtype, lies, 20, 75, 40) });
                    check(Case { groups: [k, v], sink, page: Some(16), ..case(dtype, lies, 3, 75, 40) });
                }
            }
        }
    }
}

/// Values that are not numbers reach those who see them.
#[test]
fn every_value_passes() {
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MIN_POSITIVE / 2.0, f32::MAX];
    for (rows, path) in [(30, Path::Prefill), (2, Path::Decode)] {
        for dim in [8, 19] {
            let tokens = values.len();
            let v: Vec<f32> = (0..dim).flat_map(|_| values).collect();
            let (q, k) = (vec![0.0; rows * dim], vec![0.0; dim * tokens]);
            for (kept, value) in values.into_iter().enumerate() {
                let mask: Vec<bool> = (0..rows * tokens).map(|at| at % tokens == kept).collect();
                let mut out = vec![1.0; rows * dim];
                let mut attention = Attention::new(
                    Tensor::head_first(&q, [1, 1, rows, dim]),
                    Tensor::transposed(&k, [1, 1, dim, tokens]),
                    Tensor::transposed(&v, [1, 1, dim, tokens]),
                    TensorMut::head_first(&mut out, [1, 1, rows, dim]),
                )
                .mask(Tensor::head_first(&mask, [1, 1, rows, tokens]));
                let (mut workspace, pool) = (Workspace::default(), Pool::default());
                attention.reserve(&mut workspace, &pool).unwrap();
                attention.run(&mut workspace, &pool).unwrap();
                let is_same = |x: &f32| x.to_bits() == value.to_bits() || (x.is_nan() && value.is_nan());
                // A sum of products has no sign of its own where it is 0.
                let is_zero = |x: &f32| value == 0.0 && *x == 0.0;
                assert!(out.iter().all(|x| is_same(x) || is_zero(x)), "{path:?}, {value}: {out:?}");
            }
        }
    }
}

/// What has no such rows is refused in words.
#[test]
fn other_tensors_are_refused() {
    let (x, blocks, mask) = (vec![0.0; 64], vec![0u8; 4 * 34], vec![true; 64]);
    let mut out = vec![7.0; 64];
    type Change = fn([Tensor<'_>; 3]) -> [Tensor<'_>; 3];
    let refusals: [(Change, &str); 3] = [
        (|[q, k, v]| [q.stride_dim(2), k, v], "q.stride_dim = 2: only k and v"),
        (|[q, k, v]| [q, k.stride_dim(usize::MAX), v], "k"),
        (|[q, k, v]| [q, k, v.stride_dim(usize::MAX / 4)], "v"),
    ];
    for (change, words) in refusals {
        let tensor = Tensor::head_first(&x, [1, 1, 4, 16]);
        let [q, k, v] = change([tensor; 3]);
        let refused =
            Attention::new(q, k, v, TensorMut::head_first(&mut out, [1, 1, 4, 16])).check().unwrap_err();
        assert!(refused.to_string().starts_with(words), "{refused}");
        assert!([Error::Stride, Error::Overflow, Error::Shape].contains(&refused.error), "{refused}");
    }
    let q = Tensor::head_first(&x, [1, 1, 2, 32]);
    let quantised = Tensor::head_first(flash_attention::Data::Q8_0(&blocks), [1, 1, 4, 32]);
    for (k, v, words) in [
        (quantised.stride_dim(2), quantised, "k.stride_dim = 2: rows of blocks are contiguous"),
        (quantised, quantised.stride_dim(34), "v.stride_dim = 34: rows of blocks are contiguous"),
    ] {
        let refused =
            Attention::new(q, k, v, TensorMut::head_first(&mut out, [1, 1, 2, 32])).check().unwrap_err();
        assert!(refused.error == Error::Stride && refused.to_string().starts_with(words), "{refused}");
    }
    let k = Tensor::head_first(&x, [1, 1, 2, 32]);
    let mask = Tensor::head_first(&mask, [1, 1, 2, 2]).stride_dim(3);
    let mut attention = Attention::new(q, k, k, TensorMut::head_first(&mut out, [1, 1, 2, 32])).mask(mask);
    let refused = attention.check().unwrap_err();
    assert!(refused.to_string().starts_with("mask.stride_dim = 3: only k and v"), "{refused}");
    // A slice that is a token short.
    let v = Tensor::transposed(&x[..63], [1, 1, 32, 2]);
    let refused =
        Attention::new(q, k, v, TensorMut::head_first(&mut out, [1, 1, 2, 32])).check().unwrap_err();
    assert_eq!(refused.error, Error::Shape, "{refused}");
    // Contiguous in other words.
    let same = Tensor::head_first(&x, [1, 1, 2, 32]).stride_dim(1);
    Attention::new(same, same, same, TensorMut::head_first(&mut out, [1, 1, 2, 32])).check().unwrap();
    assert!(out.iter().all(|&x| x == 7.0));
}
