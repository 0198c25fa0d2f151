//! The Rust API on slices: against f64, against the C entry to the bit, and what it refuses.

mod common;

use std::sync::Mutex;

use common::Random;
use flash_attention::capi::attention::{fa_attention, fa_attention_init};
use flash_attention::capi::plan::{fa_attention_plan, fa_path, fa_plan};
use flash_attention::capi::run::fa_attention_run;
use flash_attention::capi::status::fa_status;
use flash_attention::{
    Accuracy, Array, Attention, ComputePath, Data, DataMut, Error, Pool, Quant, Refusal, Tensor, TensorMut,
    Workspace,
};
use half::{bf16, f16};

/// Where element (batch, head, token, d) is in memory.
#[derive(Clone, Copy, Debug)]
struct Place {
    extent: [usize; 3],
    dim: usize,
    stride: [usize; 3],
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    HeadFirst,
    TokenFirst,
    Strided,
}

impl Place {
    fn new(random: &mut Random, extent: [usize; 3], dim: usize) -> Place {
        let [batch, heads, tokens] = extent;
        let (kind, stride) = match random.below(3) {
            0 => (Kind::HeadFirst, [heads * tokens * dim, tokens * dim, dim]),
            1 => (Kind::TokenFirst, [tokens * heads * dim, dim, heads * dim]),
            // Token, batch, head, and a gap behind each row.
            _ => (Kind::Strided, [heads * (dim + 3), dim + 3, batch * heads * (dim + 3)]),
        };
        Place { extent, dim, stride, kind }
    }

    fn at(&self, [b, h, t]: [usize; 3], d: usize) -> usize {
        b * self.stride[0] + h * self.stride[1] + t * self.stride[2] + d
    }

    /// Elements that the slice must have, to the last one.
    fn len(&self) -> usize {
        let [b, h, t] = self.extent;
        if b * h * t == 0 { 0 } else { self.at([b - 1, h - 1, t - 1], self.dim - 1) + 1 }
    }

    fn rows(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let [batch, heads, tokens] = self.extent;
        (0..batch).flat_map(move |b| (0..heads).flat_map(move |h| (0..tokens).map(move |t| [b, h, t])))
    }

    fn tensor<'a>(&self, data: impl Into<Data<'a>>) -> Tensor<'a> {
        let ([b, h, t], [of_batch, of_heads, of_tokens]) = (self.extent, self.stride);
        match self.kind {
            Kind::HeadFirst => Tensor::head_first(data, [b, h, t, self.dim]),
            Kind::TokenFirst => Tensor::token_first(data, [b, t, h, self.dim]),
            Kind::Strided => {
                Tensor::head_first(data, [b, h, t, self.dim]).strides(of_batch, of_heads, of_tokens)
            }
        }
    }

    fn tensor_mut<'a>(&self, data: impl Into<DataMut<'a>>) -> TensorMut<'a> {
        let ([b, h, t], [of_batch, of_heads, of_tokens]) = (self.extent, self.stride);
        match self.kind {
            Kind::HeadFirst => TensorMut::head_first(data, [b, h, t, self.dim]),
            Kind::TokenFirst => TensorMut::token_first(data, [b, t, h, self.dim]),
            Kind::Strided => {
                TensorMut::head_first(data, [b, h, t, self.dim]).strides(of_batch, of_heads, of_tokens)
            }
        }
    }
}

/// Numbers as they are stored.
#[derive(Debug)]
enum Stored {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
    /// With scales for the tensor, each head, or each token.
    I8(Vec<i8>, Vec<f32>, usize),
}

/// An input: where it is, how it is stored, and what that means.
#[derive(Debug)]
struct Input {
    place: Place,
    stored: Stored,
    values: Vec<f64>,
}

impl Input {
    fn new(random: &mut Random, extent: [usize; 3], dim: usize) -> Input {
        let place = Place::new(random, extent, dim);
        let x = random.normals(place.len());
        let [_, heads, tokens] = extent;
        let (stored, values) = match random.below(6) {
            0 => {
                let bits: Vec<u16> = x.iter().map(|&x| f16::from_f32(x).to_bits()).collect();
                let values = bits.iter().map(|&x| f16::from_bits(x).to_f64()).collect();
                (Stored::F16(bits), values)
            }
            1 => {
                let bits: Vec<u16> = x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
                let values = bits.iter().map(|&x| bf16::from_bits(x).to_f64()).collect();
                (Stored::Bf16(bits), values)
            }
            2 => {
                let integers: Vec<i8> = x.iter().map(|&x| (x * 30.0).round() as i8).collect();
                let grain = random.below(3);
                let count = [1, extent[0] * heads, extent.iter().product()][grain];
                let scales: Vec<f32> = (0..count).map(|_| 0.02 + 0.03 * random.uniform() as f32).collect();
                let mut values = vec![0.0; x.len()];
                for [b, h, t] in place.rows() {
                    let scale = scales[[0, b * heads + h, (b * heads + h) * tokens + t][grain]];
                    for i in (0..dim).map(|d| place.at([b, h, t], d)) {
                        values[i] = f64::from(integers[i]) * f64::from(scale);
                    }
                }
                (Stored::I8(integers, scales, grain), values)
            }
            _ => {
                let values = x.iter().map(|&x| f64::from(x)).collect();
                (Stored::F32(x), values)
            }
        };
        Input { place, stored, values }
    }

    fn tensor(&self) -> Tensor<'_> {
        match &self.stored {
            Stored::F32(x) => self.place.tensor(x),
            Stored::F16(x) => self.place.tensor(Data::F16(x)),
            Stored::Bf16(x) => self.place.tensor(Data::Bf16(x)),
            Stored::I8(x, scales, 0) => self.place.tensor(x).scale(&scales[0]),
            Stored::I8(x, scales, 1) => self.place.tensor(x).scale_per_head(scales),
            Stored::I8(x, scales, _) => self.place.tensor(x).scale_per_token(scales),
        }
    }

    fn at(&self, row: [usize; 3], d: usize) -> f64 {
        self.values[self.place.at(row, d)]
    }
}

/// Everything that a description may have, at random.
struct Case {
    q: Input,
    k: Input,
    v: Input,
    out: Place,
    lse: Place,
    scale: Option<f32>,
    softcap: f32,
    window: [Option<u64>; 2],
    q_pos: Option<i64>,
    /// Its extents, numbers, and whether they are booleans.
    mask: Option<([usize; 3], Vec<f32>, bool)>,
    slopes: Option<Vec<f32>>,
    sinks: Option<Vec<f32>>,
    kv_lens: Option<Vec<i32>>,
}

impl Case {
    fn new(random: &mut Random) -> Case {
        let (batch, heads_kv) = (1 + random.below(3), 1 + random.below(3));
        let heads_q = heads_kv * (1 + random.below(3));
        let (len_q, len_kv) = (random.below(24), random.below(50));
        let (dim_qk, dim_v) = (1 + random.below(40), 1 + random.below(40));
        let q = Input::new(random, [batch, heads_q, len_q], dim_qk);
        let k = Input::new(random, [batch, heads_kv, len_kv], dim_qk);
        let v = Input::new(random, [batch, heads_kv, len_kv], dim_v);
        let limit = |random: &mut Random| (random.below(2) == 0).then(|| random.below(20) as u64);
        let mut some = |n: usize| (random.below(2) == 0).then(|| random.normals(n));
        let slopes = if batch % 2 == 0 { some(heads_q) } else { some(batch * heads_q) };
        let sinks = some(heads_q);
        let mask = (random.below(2) == 0).then(|| {
            let extent = [batch, heads_q, len_q].map(|n| if random.below(2) == 0 { 1 } else { n });
            let numbers = (0..extent.iter().product::<usize>() * len_kv)
                .map(|_| if random.below(4) == 0 { f32::NEG_INFINITY } else { random.normal() })
                .collect();
            (extent, numbers, random.below(2) == 0)
        });
        Case {
            out: Place::new(random, q.place.extent, dim_v),
            lse: Place::new(random, q.place.extent, 1),
            scale: (random.below(2) == 0).then(|| random.normal()),
            softcap: if random.below(2) == 0 { 0.0 } else { 2.0 },
            window: [limit(random), limit(random)],
            q_pos: (random.below(2) == 0).then(|| random.below(60) as i64 - 20),
            mask,
            slopes,
            sinks,
            kv_lens: (random.below(2) == 0)
                .then(|| (0..batch).map(|_| random.below(len_kv + 1) as i32).collect()),
            q,
            k,
            v,
        }
    }

    /// A description, for whatever `run` does with it.
    fn with<R>(&self, out: DataMut, lse: &mut [f32], run: impl FnOnce(&mut Attention) -> R) -> R {
        let mut a =
            Attention::new(self.q.tensor(), self.k.tensor(), self.v.tensor(), self.out.tensor_mut(out))
                .lse(self.lse.tensor_mut(lse))
                .softcap(self.softcap)
                .window(self.window[0], self.window[1])
                .accuracy(Accuracy::Precise);
        let seen: Vec<bool>;
        if let Some((extent, numbers, is_bool)) = &self.mask {
            seen = numbers.iter().map(|&x| x != f32::NEG_INFINITY).collect();
            let data = if *is_bool { Data::Bool(&seen) } else { Data::F32(numbers) };
            let [b, h, t] = *extent;
            a = a.mask(Tensor::head_first(data, [b, h, t, self.k.place.extent[2]]));
        }
        if let Some(scale) = self.scale {
            a = a.scale(scale);
        }
        if let Some(position) = self.q_pos {
            a = a.q_pos(position);
        }
        if let Some(slopes) = &self.slopes {
            a = a.alibi_slopes(slopes);
        }
        if let Some(sinks) = &self.sinks {
            a = a.sinks(sinks);
        }
        if let Some(lens) = &self.kv_lens {
            a = a.kv_lens(lens);
        }
        run(&mut a)
    }

    /// Output and log-sum-exp of a row, from the formula.
    fn exact(&self, [b, h, i]: [usize; 3]) -> (Vec<f64>, f64) {
        let ([_, heads_q, len_q], [_, heads_kv, len_kv]) = (self.q.place.extent, self.k.place.extent);
        let kv = h / (heads_q / heads_kv);
        let len = self.kv_lens.as_ref().map_or(len_kv, |lens| lens[b] as usize);
        let p = self.q_pos.unwrap_or(len as i64 - len_q as i64) + i as i64;
        let scale = f64::from(self.scale.unwrap_or((1.0 / (self.q.place.dim as f64).sqrt()) as f32));
        let mut terms = Vec::new();
        for j in 0..len {
            let distance = p - j as i64;
            let hidden = [distance, -distance]
                .into_iter()
                .zip(self.window)
                .any(|(distance, limit)| limit.is_some_and(|limit| distance > limit as i64));
            let mask = self.mask.as_ref().map_or(0.0, |(extent, numbers, is_bool)| {
                let at =
                    [b, h, i].into_iter().zip(extent).fold(0, |at, (n, &extent)| at * extent + n % extent);
                match f64::from(numbers[at * len_kv + j]) {
                    x if *is_bool && x != f64::NEG_INFINITY => 0.0,
                    x => x,
                }
            });
            if hidden || mask == f64::NEG_INFINITY {
                continue;
            }
            let dot: f64 =
                (0..self.q.place.dim).map(|d| self.q.at([b, h, i], d) * self.k.at([b, kv, j], d)).sum();
            let cap = f64::from(self.softcap);
            let s = if cap > 0.0 { cap * (scale * dot / cap).tanh() } else { scale * dot };
            let slope = self.slopes.as_ref().map_or(0.0, |slopes| {
                f64::from(if slopes.len() == heads_q { slopes[h] } else { slopes[b * heads_q + h] })
            });
            terms.push((j, s - slope * distance.abs() as f64 + mask));
        }
        let sink = self.sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[h]));
        let mut o = vec![0.0; self.out.dim];
        if terms.is_empty() {
            return (o, sink);
        }
        let max = terms.iter().fold(sink, |max, &(_, t)| max.max(t));
        let sum = terms.iter().map(|&(_, t)| (t - max).exp()).sum::<f64>() + (sink - max).exp();
        for (j, t) in terms {
            for (d, o) in o.iter_mut().enumerate() {
                *o += (t - max).exp() / sum * self.v.at([b, kv, j], d);
            }
        }
        (o, max + sum.ln())
    }
}

fn compute(a: &mut Attention) -> Result<(), Refusal> {
    let (mut workspace, pool) = (Workspace::new(), Pool::default());
    a.reserve(&mut workspace, &pool)?;
    a.run(&mut workspace, &pool)
}

#[test]
fn everything_at_random_is_what_f64_computes() {
    let mut random = Random(1);
    for round in 0..400 {
        let case = Case::new(&mut random);
        let untouched = 77.0;
        let (mut out, mut lse) = (vec![untouched; case.out.len()], vec![untouched; case.lse.len()]);
        case.with(DataMut::F32(&mut out), &mut lse, compute).unwrap();
        let quantised = [&case.q, &case.k, &case.v].iter().any(|x| matches!(x.stored, Stored::I8(..)));
        let bound = if quantised { 3e-3 } else { 5e-5 };
        let mut written = 0;
        for row in case.out.rows() {
            let (want, want_lse) = case.exact(row);
            for (d, want) in want.iter().enumerate() {
                let got = f64::from(out[case.out.at(row, d)]);
                assert!((got - want).abs() <= bound * 4.0, "{round}: {row:?} {d}: {got} instead of {want}");
                written += 1;
            }
            let got = f64::from(lse[case.lse.at(row, 0)]);
            let near = got == want_lse || (got - want_lse).abs() <= bound * want_lse.abs().max(1.0);
            assert!(near, "{round}: LSE of {row:?}: {got} instead of {want_lse}");
        }
        // What is between rows is nobody's.
        assert_eq!(out.iter().filter(|&&x| x == untouched).count(), out.len() - written, "{round}");

        // Outputs of 16 bits are the same numbers, rounded.
        let (mut bits, mut again) = (vec![0; out.len()], lse.clone());
        case.with(DataMut::F16(&mut bits), &mut again, compute).unwrap();
        assert!(case.out.rows().all(|row| {
            let at = case.out.at(row, 0);
            bits[at] == f16::from_f32(out[at]).to_bits()
        }));
        case.with(DataMut::Bf16(&mut bits), &mut again, compute).unwrap();
        assert!(case.out.rows().all(|row| {
            let at = case.out.at(row, 0);
            bits[at] == bf16::from_f32(out[at]).to_bits()
        }));
        assert!(lse.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

/// Two sequences, grouped heads, token first.
const SIZES: [usize; 6] = [2, 4, 2, 40, 70, 24];

/// A description for C.
fn blank() -> fa_attention {
    let mut a = std::mem::MaybeUninit::uninit();
    // SAFETY: room for one; the call fills it.
    unsafe {
        assert_eq!(fa_attention_init(a.as_mut_ptr(), size_of::<fa_attention>()), fa_status::FA_OK);
        a.assume_init()
    }
}

#[test]
fn bits_are_those_of_the_c_entry() {
    let [batch, heads_q, heads_kv, len_q, len_kv, dim] = SIZES;
    let mut random = Random(2);
    let q = random.normals(batch * len_q * heads_q * dim);
    let k: Vec<u16> =
        (0..batch * len_kv * heads_kv * dim).map(|_| bf16::from_f32(random.normal()).to_bits()).collect();
    let v: Vec<i8> = (0..k.len()).map(|_| (random.normal() * 30.0) as i8).collect();
    let (mask, lens) = (random.normals(len_q * len_kv), [61, 70]);
    let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; batch * heads_q * len_q]);
    let mut a = Attention::new(
        Tensor::token_first(&q, [batch, len_q, heads_q, dim]),
        Tensor::head_first(Data::Bf16(&k), [batch, heads_kv, len_kv, dim]),
        Tensor::head_first(&v, [batch, heads_kv, len_kv, dim]),
        TensorMut::token_first(&mut out, [batch, len_q, heads_q, dim]),
    )
    .lse(TensorMut::head_first(&mut lse, [batch, heads_q, len_q, 1]))
    .mask(Tensor::head_first(&mask, [1, 1, len_q, len_kv]))
    .kv_lens(&lens)
    .causal()
    .softcap(20.0);
    compute(&mut a).unwrap();

    let (mut c_out, mut c_lse) = (vec![f32::NAN; out.len()], vec![f32::NAN; lse.len()]);
    let mut c = blank();
    (c.batch, c.heads_q, c.heads_kv) = (batch as i64, heads_q as i64, heads_kv as i64);
    (c.len_q, c.len_kv, c.dim_qk, c.dim_v) = (len_q as i64, len_kv as i64, dim as i64, dim as i64);
    let rows = |token: usize, head: usize, batch: usize, size: usize| {
        [batch, head, token].map(|stride| (stride * size) as i64)
    };
    let token_first = rows(heads_q * dim, dim, len_q * heads_q * dim, 4);
    (c.q.data, c.q.stride) = (q.as_ptr().cast_mut().cast(), token_first);
    (c.k.data, c.k.dtype) = (k.as_ptr().cast_mut().cast(), 2);
    c.k.stride = rows(dim, len_kv * dim, heads_kv * len_kv * dim, 2);
    (c.v.data, c.v.dtype) = (v.as_ptr().cast_mut().cast(), 3);
    c.v.stride = rows(dim, len_kv * dim, heads_kv * len_kv * dim, 1);
    (c.o.data, c.o.stride) = (c_out.as_mut_ptr().cast(), token_first);
    (c.lse, c.lse_stride) = (c_lse.as_mut_ptr(), [(heads_q * len_q) as i64, len_q as i64, 1]);
    (c.mask.data, c.mask.stride) = (mask.as_ptr().cast_mut().cast(), [0, 0, len_kv as i64 * 4]);
    (c.kv_lens, c.window_right, c.softcap) = (lens.as_ptr(), 0, 20.0);
    let mut memory = vec![0u8; 1 << 22];
    // SAFETY: the slices are as long as the sizes say, and nobody else uses them.
    let status = unsafe { fa_attention_run(&c, memory.as_mut_ptr().cast(), memory.len(), std::ptr::null()) };
    assert_eq!(status, fa_status::FA_OK);
    assert!(out.iter().zip(&c_out).all(|(a, b)| a.to_bits() == b.to_bits()));
    assert!(lse.iter().zip(&c_lse).all(|(a, b)| a.to_bits() == b.to_bits()));
}

/// Ragged batches, and pages, give what their sequences give alone.
#[test]
fn ragged_and_paged_sequences_have_the_bits_of_dense_ones() {
    let [_, heads_q, heads_kv, _, _, dim] = SIZES;
    let (cu_q, cu_kv): ([i32; 4], [i32; 4]) = ([0, 3, 3, 20], [0, 33, 40, 70]);
    let mut random = Random(3);
    let (q, k, v) = (
        random.normals(20 * heads_q * dim),
        random.normals(70 * heads_kv * dim),
        random.normals(70 * heads_kv * dim),
    );
    let mut ragged = vec![f32::NAN; q.len()];
    let mut a = Attention::new(
        Tensor::token_first(&q, [1, 20, heads_q, dim]),
        Tensor::token_first(&k, [1, 70, heads_kv, dim]),
        Tensor::token_first(&v, [1, 70, heads_kv, dim]),
        TensorMut::token_first(&mut ragged, [1, 20, heads_q, dim]),
    )
    .cu_len_q(&cu_q)
    .cu_len_kv(&cu_kv)
    .causal();
    compute(&mut a).unwrap();

    // Pages of 10 tokens, in the order of memory reversed: sequence 0 of 33 keys, and sequence 2 of
    // 30.
    let page = 10 * heads_kv * dim;
    let paged = |x: &[f32]| {
        let mut pages = vec![f32::NAN; 7 * page];
        for (b, first) in [(0, 0), (2, 4)] {
            let rows = &x[cu_kv[b] as usize * heads_kv * dim..cu_kv[b + 1] as usize * heads_kv * dim];
            for (i, rows) in rows.chunks(page).enumerate() {
                pages[(6 - first - i) * page..][..rows.len()].copy_from_slice(rows);
            }
        }
        pages
    };
    let (pages_k, pages_v) = (paged(&k), paged(&v));
    let (table, lens) = ([6, 5, 4, 3, 2, 1, 0, -1], [33, 30]);
    let mut from_pages = vec![f32::NAN; q.len()];
    let mut a = Attention::new(
        Tensor::token_first(&q, [1, 20, heads_q, dim]),
        Tensor::token_first(&pages_k, [7, 10, heads_kv, dim]),
        Tensor::token_first(&pages_v, [7, 10, heads_kv, dim]),
        TensorMut::token_first(&mut from_pages, [1, 20, heads_q, dim]),
    )
    .cu_len_q(&[0, 3, 20])
    .pages(&table, 33)
    .kv_lens(&lens)
    .causal();
    compute(&mut a).unwrap();
    assert!(ragged.iter().zip(&from_pages).all(|(a, b)| a.to_bits() == b.to_bits()));

    for b in 0..3 {
        let part = |cu: &[i32; 4], heads| cu[b] as usize * heads * dim..cu[b + 1] as usize * heads * dim;
        let (rows, keys) = ((cu_q[b + 1] - cu_q[b]) as usize, (cu_kv[b + 1] - cu_kv[b]) as usize);
        let mut alone = vec![f32::NAN; rows * heads_q * dim];
        let mut a = Attention::new(
            Tensor::token_first(&q[part(&cu_q, heads_q)], [1, rows, heads_q, dim]),
            Tensor::token_first(&k[part(&cu_kv, heads_kv)], [1, keys, heads_kv, dim]),
            Tensor::token_first(&v[part(&cu_kv, heads_kv)], [1, keys, heads_kv, dim]),
            TensorMut::token_first(&mut alone, [1, rows, heads_q, dim]),
        )
        .causal();
        compute(&mut a).unwrap();
        let same = &ragged[part(&cu_q, heads_q)];
        assert!(alone.iter().zip(same).all(|(a, b)| a.to_bits() == b.to_bits()), "sequence {b}");
    }
}

/// Calls on threads of several kinds, at once, with one description each: bits of the calling
/// thread alone.
#[test]
fn threads_change_no_bits_and_outputs_can_be_divided_among_them() {
    let [batch, heads, _, len_q, len_kv, dim] = [2, 4, 4, 90, 300, 32];
    let mut random = Random(4);
    let (q, k) = (random.normals(batch * heads * len_q * dim), random.normals(batch * heads * len_kv * dim));
    let queries = Tensor::head_first(&q, [batch, heads, len_q, dim]);
    let keys = Tensor::head_first(&k, [batch, heads, len_kv, dim]);
    let to = [batch, heads, len_q, dim];
    let mut alone = vec![f32::NAN; q.len()];
    compute(&mut Attention::new(queries, keys, keys, TensorMut::head_first(&mut alone, to))).unwrap();

    let pool = Pool::new(3).unwrap();
    assert_eq!((pool.threads(), Pool::default().threads()), (3, 1));
    let all = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (mut out, mut workspace) = (vec![f32::NAN; q.len()], Workspace::new());
                let mut a = Attention::new(queries, keys, keys, TensorMut::head_first(&mut out, to));
                a.reserve(&mut workspace, &pool).unwrap();
                let bytes = workspace.bytes();
                for _ in 0..3 {
                    a.run(&mut workspace, &pool).unwrap();
                }
                assert_eq!(workspace.bytes(), bytes, "a call has allocated");
                all.lock().unwrap().push(out);
            });
        }
    });
    assert!(all.into_inner().unwrap().iter().all(|out| *out == alone));

    // Halves of one output, on two threads: the borrow checker has seen that they are disjoint.
    let mut halves = vec![f32::NAN; q.len()];
    let (first, second) = halves.split_at_mut(q.len() / 2);
    std::thread::scope(|scope| {
        for (b, out) in [first, second].into_iter().enumerate() {
            let (q, k) = (&q[b * q.len() / 2..], &k[b * k.len() / 2..]);
            scope.spawn(move || {
                let keys = Tensor::head_first(k, [1, heads, len_kv, dim]);
                let queries = Tensor::head_first(q, [1, heads, len_q, dim]);
                let to = TensorMut::head_first(out, [1, heads, len_q, dim]);
                compute(&mut Attention::new(queries, keys, keys, to)).unwrap();
            });
        }
    });
    assert_eq!(halves, alone);

    assert_eq!(Pool::new(257).unwrap_err().error, Error::Part);
}

#[test]
fn a_batch_of_nothing_is_done_at_once() {
    let (none, starts) = ([0.0; 0], [3]);
    let to = [0, 2, 3, 4];
    let (q, kv) = (Tensor::head_first(&none, [0, 2, 3, 4]), Tensor::head_first(&none, [0, 1, 6, 4]));
    for pool in [Pool::default(), Pool::new(3).unwrap()] {
        let (mut out, mut workspace) = ([], Workspace::new());
        let mut a = Attention::new(q, kv, kv, TensorMut::head_first(&mut out, to)).alibi_slopes(&none);
        a.reserve(&mut workspace, &pool).unwrap();
        a.run(&mut workspace, &pool).unwrap();
        assert_eq!(workspace.bytes(), 0);
        // Rows and keys that belong to nobody.
        let (ones, mut out) = ([1.0; 24], [7.0; 24]);
        let (q, kv) = (Tensor::head_first(&ones, [1, 2, 3, 4]), Tensor::head_first(&ones, [1, 1, 6, 4]));
        let a = Attention::new(q, kv, kv, TensorMut::head_first(&mut out, [1, 2, 3, 4]));
        a.cu_len_q(&starts).cu_len_kv(&starts).run(&mut workspace, &pool).unwrap();
        assert_eq!(out, [7.0; 24]);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_words_and_writes_nothing() {
    // Two heads on one of 6 keys; dims of 8 and 4.
    static ONES: [f32; 48] = [1.0; 48];
    static INTEGERS: [i8; 48] = [1; 48];
    static BITS: [u16; 48] = [0; 48];
    static BLOCKS: [u8; 34] = [0; 34];
    static NAN: f32 = f32::NAN;

    /// What the tables below edit.
    struct Parts {
        q: Tensor<'static>,
        k: Tensor<'static>,
        v: Tensor<'static>,
        out: [usize; 4],
        out_stride: Option<[usize; 3]>,
        lse: [usize; 4],
    }
    let run = |edit: &dyn Fn(&mut Parts), more: &dyn for<'b> Fn(Attention<'b>) -> Attention<'b>| {
        let mut parts = Parts {
            q: Tensor::head_first(&ONES, [1, 2, 3, 8]),
            k: Tensor::head_first(&ONES, [1, 1, 6, 8]),
            v: Tensor::head_first(&ONES, [1, 1, 6, 4]),
            out: [1, 2, 3, 4],
            out_stride: None,
            lse: [1, 2, 3, 1],
        };
        edit(&mut parts);
        let (mut out, mut lse) = ([7.0; 24], [7.0; 6]);
        let mut to = TensorMut::head_first(&mut out, parts.out);
        if let Some([b, h, t]) = parts.out_stride {
            to = to.strides(b, h, t);
        }
        let mut a = more(
            Attention::new(parts.q, parts.k, parts.v, to).lse(TensorMut::head_first(&mut lse, parts.lse)),
        );
        let checked = a.check();
        let ran = compute(&mut a);
        assert_eq!(checked, ran, "check() and run() disagree");
        assert_eq!(out == [7.0; 24] && lse == [7.0; 6], ran.is_err(), "{ran:?}");
        ran
    };
    assert_eq!(run(&|_| (), &|a| a), Ok(()));

    const HUGE: usize = usize::MAX / 2;
    type Edit = dyn Fn(&mut Parts);
    type More = dyn for<'b> Fn(Attention<'b>) -> Attention<'b>;
    // What is done, what it is refused with, and how the words begin.
    let tensors: &[(&Edit, Error, &str)] = &[
        (&|p| p.q = Tensor::head_first(&ONES[1..], [1, 2, 3, 8]), Error::Shape, "q: its slice is shorter"),
        (&|p| p.q = p.q.strides(48, 25, 8), Error::Shape, "q: its slice is shorter"),
        (&|p| p.k = Tensor::head_first(&ONES[..47], [1, 1, 6, 8]), Error::Shape, "k: its slice is shorter"),
        (&|p| p.k = Tensor::head_first(&[0.0; 0], [1, 1, 6, 8]), Error::Shape, "k: its slice is shorter"),
        (&|p| p.v = Tensor::head_first(&ONES[..23], [1, 1, 6, 4]), Error::Shape, "v: its slice is shorter"),
        (&|p| p.out_stride = Some([0, 13, 4]), Error::Shape, "o: its slice is shorter"),
        (&|p| p.out_stride = Some([0, 12, 3]), Error::Stride, "o: strides let rows overlap"),
        (&|p| p.out_stride = Some([0, 0, 4]), Error::Stride, "o: strides let rows overlap"),
        (&|p| p.q = p.q.strides(0, HUGE, 8), Error::Overflow, "q: more bytes"),
        (
            &|p| p.q = Tensor::head_first(&ONES, [1, 2, HUGE, 8]),
            Error::Shape,
            "o.tokens = 3: not that of q = ",
        ),
        (&|p| p.q = Tensor::head_first(&ONES, [0, 2, 3, 8]), Error::Shape, "k.batch = 1: not that of q = 0"),
        (
            &|p| p.q = Tensor::head_first(&ONES, [1, 0, 3, 8]),
            Error::ZeroExtent,
            "q.heads = 0: must be at least 1",
        ),
        (&|p| p.k = Tensor::head_first(&ONES, [1, 0, 6, 8]), Error::ZeroExtent, "k.heads = 0: must be"),
        (
            &|p| p.q = Tensor::head_first(&ONES, [1, 2, 3, 0]),
            Error::ZeroExtent,
            "q.dim = 0: must be at least 1",
        ),
        (
            &|p| p.v = Tensor::head_first(&ONES, [1, 1, 6, 0]),
            Error::ZeroExtent,
            "v.dim = 0: must be at least 1",
        ),
        (&|p| p.k = Tensor::head_first(&ONES, [2, 1, 3, 8]), Error::Shape, "k.batch = 2: not that of q = 1"),
        (&|p| p.k = Tensor::head_first(&ONES, [1, 1, 6, 7]), Error::Shape, "k.dim = 7: not that of q = 8"),
        (&|p| p.v = Tensor::head_first(&ONES, [1, 1, 5, 4]), Error::Shape, "v.tokens = 5: not that of k = 6"),
        (&|p| p.v = Tensor::head_first(&ONES, [1, 2, 6, 4]), Error::Shape, "v.heads = 2: not that of k = 1"),
        (&|p| p.out = [1, 2, 2, 4], Error::Shape, "o.tokens = 2: not that of q = 3"),
        (&|p| p.out = [1, 2, 3, 3], Error::Shape, "o.dim = 3: not that of v = 4"),
        (&|p| p.lse = [1, 2, 2, 1], Error::Shape, "lse.tokens = 2: not that of q = 3"),
        (&|p| p.lse = [1, 2, 3, 2], Error::Shape, "lse.dim = 2: not = 1"),
        (
            &|p| {
                (p.k, p.v) =
                    (Tensor::head_first(&ONES, [1, 3, 2, 8]), Tensor::head_first(&ONES, [1, 3, 2, 4]))
            },
            Error::Shape,
            "heads_q = 2: not a multiple of heads_kv = 3",
        ),
        (
            &|p| p.k = Tensor::head_first(&[true; 48], [1, 1, 6, 8]),
            Error::Dtype,
            "unknown or unsupported data type",
        ),
        (&|p| p.k = p.k.scale(&1.0), Error::Dtype, "k: has scales, but"),
        (
            &|p| p.k = Tensor::head_first(&INTEGERS, [1, 1, 6, 8]).scale(&NAN),
            Error::QuantScale,
            "k.quant: a value",
        ),
        (
            &|p| p.k = Tensor::head_first(&INTEGERS, [1, 1, 6, 8]).scale_per_token(&[1.0; 5]),
            Error::Shape,
            "k.quant: fewer values",
        ),
        (&|p| p.k = Tensor::head_first(Data::F16(&BITS[..47]), [1, 1, 6, 8]), Error::Shape, "k: its slice"),
        (
            &|p| p.q = Tensor::head_first(Data::Q8_0(&BLOCKS), [1, 2, 3, 8]),
            Error::Shape,
            "q.dim = 8: not a multiple of the elements of a block = 32",
        ),
    ];
    for (i, (edit, error, words)) in tensors.iter().enumerate() {
        let refusal = run(edit, &|a| a).expect_err(words);
        assert_eq!(refusal.error, *error, "{i}: {refusal}");
        assert!(refusal.to_string().starts_with(words), "{i}: {refusal}");
    }

    let options: &[(&More, Error, &str)] = &[
        (&|a| a.scale(f32::NAN), Error::SoftmaxScale, "scale = NaN: NaN, infinite, or"),
        (&|a| a.scale(f32::INFINITY), Error::SoftmaxScale, "scale = inf: NaN, infinite, or"),
        (&|a| a.softcap(-1.0), Error::Softcap, "softcap = -1e0: negative"),
        (&|a| a.q_pos(i64::MAX), Error::Overflow, "q_pos = 9223372036854775807: "),
        (&|a| a.kv_lens(&[7]), Error::Lengths, "kv_lens[0] = 7: negative, or more than the keys"),
        (&|a| a.kv_lens(&[-1]), Error::Lengths, "kv_lens[0] = -1: negative"),
        (&|a| a.kv_lens(&[1, 1]), Error::Shape, "kv_lens = 2: not one for each sequence = 1"),
        (&|a| a.kv_starts(&[7]), Error::Lengths, "kv_starts[0] = 7: negative, or more than the keys"),
        (&|a| a.kv_starts(&[-1]), Error::Lengths, "kv_starts[0] = -1: negative"),
        (&|a| a.kv_starts(&[4]).kv_lens(&[3]), Error::Lengths, "kv_starts[0] = 4: negative, or more than"),
        (&|a| a.kv_starts(&[]), Error::Shape, "kv_starts = 0: not one for each sequence = 1"),
        (&|a| a.q_positions(&[0, 0]), Error::Shape, "q_positions = 2: not one for each sequence = 1"),
        (&|a| a.spans(&[], &[0]), Error::Shape, "span_starts = 1: not one more than sequences = 2"),
        (&|a| a.spans(&[[0, 1]], &[0, 2]), Error::Lengths, "span_starts[1] = 2: more than there are"),
        (&|a| a.spans(&[[0, 1]], &[-1, 1]), Error::Lengths, "span_starts[0] = -1: negative"),
        (&|a| a.spans(&[[0, 1]], &[1, 0]), Error::Lengths, "span_starts[1] = 0: less than the one before"),
        (&|a| a.spans(&[[-1, 1]], &[0, 1]), Error::Lengths, "spans[0] = -1: negative"),
        (&|a| a.spans(&[[0, 3], [2, 4]], &[0, 2]), Error::Lengths, "spans[2] = 2: spans of a sequence"),
        (&|a| a.sinks(&[0.0]), Error::Shape, "sinks = 1: not heads_q = 2"),
        (&|a| a.alibi_slopes(&[0.0; 3]), Error::Shape, "alibi_slopes = 3: neither"),
        (
            &|a| a.mask(Tensor::head_first(&[0.0; 15], [1, 1, 3, 5])),
            Error::Shape,
            "mask.dim = 5: not the number",
        ),
        (
            &|a| a.mask(Tensor::head_first(&[0.0; 12], [1, 1, 2, 6])),
            Error::Shape,
            "mask.tokens = 2: neither 1",
        ),
        (
            &|a| a.mask(Tensor::head_first(&[0.0; 17], [1, 1, 3, 6])),
            Error::Shape,
            "mask: its slice is shorter",
        ),
        (&|a| a.mask(Tensor::head_first(&[0i8; 18], [1, 1, 3, 6])), Error::Dtype, "unknown or unsupported"),
        (&|a| a.cu_len_q(&[]), Error::Shape, ""),
        (&|a| a.cu_len_q(&[0, 4]), Error::Lengths, "cu_len_q[1] = 4: beyond the rows of the tensor = 3"),
        (&|a| a.cu_len_kv(&[3, 1]), Error::Lengths, "cu_len_kv[1] = 1: less than the one before = 3"),
        (&|a| a.pages(&[1], 6), Error::Page, "block_table[0] = 1: no page of the tensor, num_pages = 1"),
        (&|a| a.pages(&[0], 7), Error::Lengths, "pages of a sequence"),
        (&|a| a.pages(&[], 1), Error::Lengths, "pages of a sequence"),
        (&|a| a.pages(&[0], 6).cu_len_kv(&[0, 6]), Error::Shape, "sizes"),
        (&|a| a.cu_len_q(&[0, 1, 3]).pages(&[0, 0, 0], 6), Error::Shape, "entries of the table of pages = 3"),
    ];
    for (i, (more, error, words)) in options.iter().enumerate() {
        let refusal = run(&|_| (), *more).expect_err(words);
        assert_eq!(refusal.error, *error, "{i}: {refusal}");
        assert!(refusal.to_string().starts_with(words), "{i}: {refusal}");
    }
}

#[test]
fn who_sees_whom_is_what_a_mask_says() {
    let ([batch, heads, len_kv, dim], mut random) = ([2, 2, 150, 16], Random(5));
    let (starts, lens) = ([40, 0], [150, 90]);
    let (spans, span_starts) = ([[0, 7], [45, 70], [70, 71], [20, 120]], [0, 3, 4]);
    for (len_q, positions) in [(1, [60, 30]), (5, [66, 0]), (70, [20, 60])] {
        let q = random.normals(batch * heads * len_q * dim);
        let kv = random.normals(batch * len_kv * dim);
        for bits in 0..32 {
            let [at, first, prefix, lists, left] = [0, 1, 2, 3, 4].map(|bit| bits >> bit & 1 == 1);
            let mut seen = vec![false; batch * len_q * len_kv];
            for (n, sees) in seen.iter_mut().enumerate() {
                let [b, i, j] = [n / len_kv / len_q, n / len_kv % len_q, n % len_kv].map(|n| n as i32);
                let of = b as usize;
                let end = lens[of] - len_q as i32;
                let p = i + if at { positions[of] } else { end };
                let start = if first { starts[of] } else { 0 };
                let near = !left || j >= p - 11 || (prefix && j < start + 5);
                let of_sequence = span_starts[of]..span_starts[of + 1];
                let in_one =
                    |[begin, end]: &[i32; 2]| (*begin..*end).contains(&p) && (*begin..*end).contains(&j);
                *sees = (near && j <= p) || (lists && spans[of_sequence].iter().any(in_one));
                *sees &= j >= start && j < lens[of];
            }
            let keys = Tensor::head_first(&kv, [batch, 1, len_kv, dim]);
            let queries = Tensor::head_first(&q, [batch, heads, len_q, dim]);
            let mut outs = [vec![7.0; q.len()], vec![7.0; q.len()]];
            let [want, got] = outs.each_mut();
            let to = |out| TensorMut::head_first(out, [batch, heads, len_q, dim]);
            let mask = Tensor::head_first(seen.as_slice(), [batch, 1, len_q, len_kv]);
            compute(&mut Attention::new(queries, keys, keys, to(want.as_mut_slice())).mask(mask)).unwrap();
            let of_spans = span_starts.map(|start| start as i32);
            let mut a = Attention::new(queries, keys, keys, to(got.as_mut_slice())).kv_lens(&lens);
            a = a.window(left.then_some(11), Some(0));
            a = if at { a.q_positions(&positions) } else { a };
            a = if first { a.kv_starts(&starts) } else { a };
            a = if prefix { a.prefix_keys(5) } else { a };
            a = if lists { a.spans(&spans, &of_spans) } else { a };
            compute(&mut a).unwrap();
            for (x, y) in got.iter().zip(want.iter()) {
                assert!((x - y).abs() <= 1e-5, "{x} instead of {y}: {len_q} rows, options {bits:05b}");
            }
        }
    }
}

/// The plan of a call in f32 that the C entry says, with pools of several threads.
#[test]
fn plans_are_those_of_the_c_entry() {
    for (len_q, len_kv, threads) in [(1, 5000, 1), (1, 5000, 3), (700, 700, 1), (700, 700, 2), (0, 5, 2)] {
        let (heads, dim) = ([4, 2], 64);
        let [q, k] = [heads[0] * len_q, heads[1] * len_kv].map(|rows| vec![0.5f32; rows * dim]);
        let mut out = vec![0.0f32; heads[0] * len_q * dim];
        let mut a = blank();
        (a.batch, a.heads_q, a.heads_kv) = (1, heads[0] as i64, heads[1] as i64);
        (a.len_q, a.len_kv, a.dim_qk, a.dim_v) = (len_q as i64, len_kv as i64, dim as i64, dim as i64);
        let row = 4 * dim as i64;
        (a.q.data, a.k.data, a.o.data) =
            (q.as_ptr().cast_mut().cast(), k.as_ptr().cast_mut().cast(), out.as_mut_ptr().cast());
        (a.q.stride, a.k.stride) = ([0, row * len_q as i64, row], [0, row * len_kv as i64, row]);
        (a.v, a.o.stride) = (a.k, a.q.stride);
        let mut how = std::mem::MaybeUninit::<fa_plan>::zeroed();
        // SAFETY: a description of tensors that are there, and a plan whose size is set.
        let how = unsafe {
            (*how.as_mut_ptr()).struct_size = size_of::<fa_plan>();
            assert_eq!(fa_attention_plan(&a, threads, how.as_mut_ptr()), fa_status::FA_OK);
            how.assume_init()
        };

        let [q, k] = [(&q, heads[0], len_q), (&k, heads[1], len_kv)]
            .map(|(x, heads, len)| Tensor::head_first(x, [1, heads, len, dim]));
        let o = TensorMut::head_first(&mut out, [1, heads[0], len_q, dim]);
        let pool = Pool::new(threads as usize).expect("threads");
        let plan = Attention::new(q, k, k, o).plan(&pool).expect("a plan");
        // SAFETY: static strings.
        let [isa, compute] = [how.isa, how.compute].map(|name| unsafe { std::ffi::CStr::from_ptr(name) });
        assert_eq!([isa.to_str(), compute.to_str()], [Ok(plan.isa), Ok(plan.compute)]);
        assert_eq!(how.path == fa_path::FA_PATH_DECODE as i32, plan.path == ComputePath::Decode);
        assert_eq!(plan.path == ComputePath::Decode, len_q <= 1, "{len_q}");
        assert_eq!([how.threads, how.threads_awake], [plan.threads, plan.threads_awake].map(|n| n as i32));
        assert_eq!([how.k_staged, how.v_staged], plan.staged.map(i32::from));
        let of_c =
            [how.tile_heads, how.tile_kv_heads, how.tile_rows, how.tile_keys, how.work_items, how.key_ranges];
        let of_rust = [
            plan.tile_heads,
            plan.tile_kv_heads,
            plan.tile_rows,
            plan.tile_keys,
            plan.work_items,
            plan.key_ranges,
        ];
        assert_eq!(of_c, of_rust.map(|n| n as i64));
        assert_eq!(how.thread_bytes, plan.thread_bytes);
        assert!(plan.threads <= threads as usize && (plan.work_items == 0) == (len_q == 0));
    }
}

#[test]
fn a_workspace_is_needed_where_the_stack_does_not_do() {
    let (heads, len, dim) = (4, 300, 64);
    let x = vec![0.5; heads * len * dim];
    let (mut out, mut workspace, pool) = (vec![7.0; x.len()], Workspace::new(), Pool::default());
    let all = Tensor::head_first(&x, [1, heads, len, dim]);
    let mut a = Attention::new(all, all, all, TensorMut::head_first(&mut out, [1, heads, len, dim]));
    let refusal = a.run(&mut workspace, &pool).unwrap_err();
    assert_eq!(refusal.error, Error::Workspace);
    assert!(refusal.to_string().starts_with("bytes of the workspace = 0: fewer than the call needs"));
    a.reserve(&mut workspace, &pool).unwrap();
    a.run(&mut workspace, &pool).unwrap();
    assert!(out.iter().all(|&x| x == 0.5));
    fn is_send<T: Send>(_: &T) {}
    is_send(&Attention::new(all, all, all, TensorMut::head_first(&mut out, [1, heads, len, dim])));
    is_send(&(workspace, pool));
}

#[test]
fn zeros_of_quantised_tensors_and_blocks_of_ggml() {
    let (len, dim) = (5, 32);
    let mut random = Random(5);
    let q = random.normals(dim);
    let stored: Vec<i8> = (0..len * dim).map(|_| random.below(200) as i8).collect();
    let real: Vec<f32> = stored.iter().map(|&x| (f32::from(x) - 3.0) * 0.125).collect();
    let blocks: Vec<u8> = real
        .chunks(32)
        .zip(stored.chunks(32))
        .flat_map(|(_, stored)| {
            f16::from_f32(0.125).to_le_bytes().into_iter().chain(stored.iter().map(|&x| x as u8))
        })
        .collect();
    let attend = |k: Tensor, v: Tensor| {
        let mut out = vec![f32::NAN; dim];
        let to = TensorMut::head_first(&mut out, [1, 1, 1, dim]);
        compute(
            &mut Attention::new(Tensor::head_first(&q, [1, 1, 1, dim]), k, v, to).accuracy(Accuracy::Precise),
        )
        .unwrap();
        out
    };
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0));
    let shape = [1, 1, len, dim];
    let (scale, zero) = ([0.125], [3.0]);
    let quant =
        Quant { scale: Some(Array::of(&scale)), zero: Some(Array::of(&zero)), stride: [0; 4], group: [1; 2] };
    let plain = Tensor::head_first(&real, shape);
    let quantised = Tensor::head_first(&stored, shape).quantised(quant);
    assert!(near(&attend(quantised, quantised), &attend(plain, plain)));
    let (scaled, of_blocks) =
        (Tensor::head_first(&stored, shape).scale(&0.125), Tensor::head_first(Data::Q8_0(&blocks), shape));
    assert!(near(&attend(of_blocks, of_blocks), &attend(scaled, scaled)));

    // Unsigned integers that stand for the same numbers, and floating-point numbers of 8 bits.
    let unsigned: Vec<u8> = stored.iter().map(|&x| x.cast_unsigned() ^ 0x80).collect();
    let zero = [131.0];
    let unsigned = Tensor::head_first(Data::U8(&unsigned), shape)
        .quantised(Quant { zero: Some(Array::of(&zero)), ..quant });
    assert!(near(&attend(unsigned, unsigned), &attend(plain, plain)));
    let bits = [0x3c, 0xbc, 0x44, 0x34, 0x00];
    let of_bits: Vec<u8> = (0..len * dim).map(|i| bits[i * 7 % 5]).collect();
    let values = [1.5, -1.5, 3.0, 0.75, 0.0];
    let real: Vec<f32> = (0..len * dim).map(|i| 0.25 * values[i * 7 % 5]).collect();
    let plain = Tensor::head_first(&real, shape);
    let floats = Tensor::head_first(Data::F8E4M3(&of_bits), shape).scale(&0.25);
    assert!(near(&attend(floats, floats), &attend(plain, plain)));
    let of_bits: Vec<u8> = of_bits
        .iter()
        .map(|x| [0x3e, 0xbe, 0x42, 0x3a, 0x00][bits.iter().position(|y| x == y).unwrap()])
        .collect();
    let floats = Tensor::head_first(Data::F8E5M2(&of_bits), shape).scale(&0.25);
    assert!(near(&attend(floats, floats), &attend(plain, plain)));

    // Fractions, as inputs and as the output, which is divided by its scale.
    let fractions: Vec<i16> = (0..len * dim).map(|i| (8192.0 * values[i * 7 % 5]) as i16).collect();
    let fractions = Tensor::head_first(Data::Q15(&fractions), shape);
    assert!(near(&attend(fractions, fractions), &attend(plain, plain)));
    let (mut halves, mut own) = ([7i16; 64], [0f32]);
    let query = Tensor::head_first(&q, [1, 1, 1, dim]);
    fn to_fractions(to: &mut [i16]) -> TensorMut<'_> {
        let dim = to.len();
        TensorMut::head_first(DataMut::Q15(to), [1, 1, 1, dim])
    }
    let out = to_fractions(&mut halves[..dim]).scales_given(Quant::per_tensor(&2.0));
    compute(&mut Attention::new(query, fractions, fractions, out)).unwrap();
    for (x, &half) in attend(fractions, fractions).iter().zip(&halves[..dim]) {
        assert_eq!((x / 2.0 * 32_768.0).round_ties_even(), f32::from(half));
    }
    for (refused, but) in [
        (to_fractions(&mut halves[..dim]).scales_given(quant), "o.quant.zero"),
        (to_fractions(&mut [0; 64][..dim]).scale_per_token(&mut own), "given, not found"),
        (to_fractions(&mut [0; 64][..dim]).scales_given(Quant::per_tensor(&f32::NAN)), "o.quant: a value"),
    ] {
        let found = compute(&mut Attention::new(query, fractions, fractions, refused)).unwrap_err();
        assert!(found.to_string().contains(but), "{found}");
    }

    // They have no zero points.
    let mut out = vec![7f32; dim];
    let to = TensorMut::head_first(&mut out, [1, 1, 1, dim]);
    let refused = Tensor::head_first(Data::F8E5M2(&of_bits), shape).quantised(quant);
    let found = compute(&mut Attention::new(Tensor::head_first(&q, [1, 1, 1, dim]), refused, floats, to))
        .unwrap_err();
    assert!(found.to_string().contains("k.quant.zero"), "{found}");
}

/// Enabled, or refused in the same words each time: of the processor, or of the system.
#[test]
fn amx_is_enabled_or_refused_with_words() {
    match flash_attention::enable_amx() {
        Ok(()) => assert!(flash_attention::enable_amx().is_ok()),
        Err(refusal) => {
            assert_eq!(refusal.error, Error::Isa);
            assert!(refusal.to_string().starts_with("AMX: "), "{refusal}");
            assert_eq!(flash_attention::enable_amx(), Err(refusal));
        }
    }
}
