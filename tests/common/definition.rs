//! Attention as the header defines it, in f64, read through a description itself: the oracle of the
//! general call.

#![allow(unreachable_pub, reason = "a module of its own where this is included")]

use std::collections::HashMap;
use std::fmt::Display;

use flash_attention::capi::attention::{
    FA_FAST, FA_MASK_TIMES_SLOPE, FA_NO_LIMIT, FA_POS_END, FA_PRECISE, fa_attention,
};
use flash_attention::capi::tensor::{fa_dtype, fa_quant, fa_tensor};
use half::{bf16, f16};

use super::description::why;

pub const F32: i32 = fa_dtype::FA_DTYPE_F32 as i32;
pub const F16: i32 = fa_dtype::FA_DTYPE_F16 as i32;
pub const BF16: i32 = fa_dtype::FA_DTYPE_BF16 as i32;
pub const I8: i32 = fa_dtype::FA_DTYPE_I8 as i32;
pub const Q8_0: i32 = fa_dtype::FA_DTYPE_Q8_0 as i32;
pub const BOOL8: i32 = fa_dtype::FA_DTYPE_BOOL8 as i32;
pub const Q4_0: i32 = fa_dtype::FA_DTYPE_Q4_0 as i32;
pub const Q4_1: i32 = fa_dtype::FA_DTYPE_Q4_1 as i32;
pub const Q5_0: i32 = fa_dtype::FA_DTYPE_Q5_0 as i32;
pub const Q5_1: i32 = fa_dtype::FA_DTYPE_Q5_1 as i32;
pub const IQ4_NL: i32 = fa_dtype::FA_DTYPE_IQ4_NL as i32;

pub const F8_E4M3: i32 = fa_dtype::FA_DTYPE_F8_E4M3 as i32;
pub const F8_E5M2: i32 = fa_dtype::FA_DTYPE_F8_E5M2 as i32;
pub const U8: i32 = fa_dtype::FA_DTYPE_U8 as i32;
pub const Q15: i32 = fa_dtype::FA_DTYPE_Q15 as i32;

/// Types whose blocks carry their own scales.
pub const BLOCKS: [i32; 6] = [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL];

/// What the nibbles of IQ4_NL stand for.
const OF_SIXTEEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Elements and bytes of a block of a type.
pub fn block(dtype: i32) -> [i64; 2] {
    match dtype {
        F32 => [1, 4],
        F16 | BF16 | Q15 => [1, 2],
        Q8_0 => [32, 34],
        Q4_0 | IQ4_NL => [32, 18],
        Q4_1 => [32, 20],
        Q5_0 => [32, 22],
        Q5_1 => [32, 24],
        _ => [1, 1],
    }
}

/// What a description that was not refused means.
pub struct Definition<'a>(pub &'a fa_attention);

impl Definition<'_> {
    fn start(&self, starts: *const i32, b: i64) -> Option<i64> {
        // SAFETY: [batch + 1] values.
        (!starts.is_null()).then(|| i64::from(unsafe { read(starts, b) }))
    }

    pub fn queries_of(&self, b: i64) -> i64 {
        let start = |b| self.start(self.0.cu_len_q, b);
        start(b).map_or(self.0.len_q, |first| start(b + 1).unwrap() - first)
    }

    /// Keys that a sequence has, in use or not.
    pub fn keys_of(&self, b: i64) -> i64 {
        let start = |b| self.start(self.0.cu_len_kv, b);
        start(b).map_or(self.0.len_kv, |first| start(b + 1).unwrap() - first)
    }

    pub fn keys_in_use(&self, b: i64) -> i64 {
        self.start(self.0.kv_lens, b).unwrap_or_else(|| self.keys_of(b))
    }

    /// Entry and row of a key of a kv head.
    pub fn key_at(&self, b: i64, kv: i64, j: i64) -> [i64; 2] {
        let a = self.0;
        if a.block_table.is_null() {
            return self.start(a.cu_len_kv, b).map_or([b, j], |first| [0, first + j]);
        }
        let first = self.start(a.block_table_start, b).unwrap_or_else(|| b * a.table_stride);
        // SAFETY: the list is as long as there are keys in use.
        let page = unsafe { read(a.block_table, first + kv * a.table_head_stride + j / a.page_size) };
        [i64::from(page), j % a.page_size]
    }

    pub fn query_at(&self, b: i64, i: i64) -> [i64; 2] {
        self.start(self.0.cu_len_q, b).map_or([b, i], |first| [0, first + i])
    }

    /// The mask for a query and a key; 0 without one.
    pub fn mask(&self, b: i64, h: i64, i: i64, j: i64) -> f64 {
        if self.0.mask.data.is_null() {
            return 0.0;
        }
        let x = stored(self.0.mask.dtype, at(&self.0.mask, [b, i], h), j);
        match self.0.mask.dtype {
            BOOL8 if x == 0.0 => f64::NEG_INFINITY,
            BOOL8 => 0.0,
            _ => x,
        }
    }

    pub fn hides(&self, b: i64, h: i64, i: i64, j: i64) -> bool {
        let a = self.0;
        let [x, y, z] = a.block_mask_stride;
        let in_hidden_block = !a.block_mask.is_null() && {
            let at = b * x + h * y + i / a.block_mask_q * z + j / a.block_mask_kv;
            // SAFETY: a byte of the mask.
            unsafe { *a.block_mask.add(at as usize) == 0 }
        };
        let is_unlisted = in_hidden_block || !self.is_kept(b, h, i, j);
        (is_unlisted && !self.is_column(b, h, j)) || self.mask(b, h, i, j) == f64::NEG_INFINITY
    }

    /// Whether a key is one that all rows of a head see.
    pub fn is_column(&self, b: i64, h: i64, j: i64) -> bool {
        let a = self.0;
        if a.column_start.is_null() {
            return false;
        }
        let heads = if a.column_heads == 0 { a.heads_q } else { a.column_heads };
        let r = b * a.column_stride[0] + h / (a.heads_q / heads) * a.column_stride[1];
        // SAFETY: two entries for each list, and a key for each entry of a list.
        unsafe {
            let start = |r: i64| i64::from(*a.column_start.offset(r as isize));
            (start(r)..start(r + 1)).any(|n| i64::from(*a.columns.offset(n as isize)) == j)
        }
    }

    /// Whether the list of the row's block has the key's, if there are lists.
    fn is_kept(&self, b: i64, h: i64, i: i64, j: i64) -> bool {
        let a = self.0;
        if a.kept_start.is_null() {
            return true;
        }
        let heads = if a.kept_heads == 0 { a.heads_q } else { a.kept_heads };
        let [x, y] = a.kept_stride;
        let r = b * x + h / (a.heads_q / heads) * y + i / a.kept_q;
        // SAFETY: an entry for each list, and one more; a block for each entry of a list.
        unsafe {
            let start = |r: i64| i64::from(*a.kept_start.offset(r as isize));
            (start(r)..start(r + 1)).any(|n| i64::from(*a.kept_blocks.offset(n as isize)) == j / a.kept_kv)
        }
    }

    /// What the softmax is of.
    pub fn logit(&self, b: i64, h: i64, i: i64, j: i64, score: f64) -> f64 {
        let a = self.0;
        let cap = f64::from(a.softcap);
        let capped = if cap > 0.0 { cap * (score / cap).tanh() } else { score };
        if a.alibi_slopes.is_null() {
            return capped + self.mask(b, h, i, j);
        }
        // SAFETY: as many slopes.
        let slope = f64::from(unsafe { read(a.alibi_slopes, b * a.alibi_batch_stride + h) });
        if a.flags & FA_MASK_TIMES_SLOPE != 0 {
            return capped + slope * self.mask(b, h, i, j);
        }
        let distance = self.position(b, i) - i128::from(j);
        capped - slope * distance.abs() as f64 + self.mask(b, h, i, j)
    }

    pub fn sink(&self, h: i64) -> f64 {
        if self.0.sinks.is_null() {
            return f64::NEG_INFINITY;
        }
        // SAFETY: as many sinks as heads.
        f64::from(unsafe { read(self.0.sinks, h) })
    }

    /// Key position of a query row.
    pub fn position(&self, b: i64, i: i64) -> i128 {
        let end = || self.keys_in_use(b) - self.queries_of(b);
        let of_all = || if self.0.q_pos == FA_POS_END { end() } else { self.0.q_pos };
        i128::from(self.start(self.0.q_positions, b).unwrap_or_else(of_all)) + i128::from(i)
    }

    /// The first key of a sequence that any row sees.
    pub fn first_key(&self, b: i64) -> i64 {
        self.start(self.0.kv_starts, b).unwrap_or(0)
    }

    /// Whether a position and a key lie in one span of a sequence.
    fn in_one_span(&self, b: i64, p: i128, j: i128) -> bool {
        let Some(first) = self.start(self.0.span_starts, b) else { return false };
        (first..self.start(self.0.span_starts, b + 1).unwrap()).any(|span| {
            // SAFETY: two values for each span.
            let [begin, end] = [0, 1].map(|i| i128::from(unsafe { read(self.0.spans, 2 * span + i) }));
            (begin..end).contains(&p) && (begin..end).contains(&j)
        })
    }

    /// The keys that windows and lengths leave to a query row of a head, and single keys.
    pub fn window(&self, b: i64, h: i64, i: i64) -> Vec<i64> {
        let a = self.0;
        let p = self.position(b, i);
        let always = i128::from(self.first_key(b)) + i128::from(a.prefix_keys);
        let sees = |&j: &i64| {
            let j = i128::from(j);
            let is_near = a.window_left == FA_NO_LIMIT
                || j >= p - i128::from(a.window_left)
                || j < always
                || self.is_column(b, h, j as i64);
            let is_early = a.window_right == FA_NO_LIMIT || j <= p + i128::from(a.window_right);
            (is_near && is_early) || self.in_one_span(b, p, j)
        };
        (self.first_key(b)..self.keys_in_use(b)).filter(sees).collect()
    }

    /// The row of the weights that is for a query row, if it is wanted.
    pub fn weights_at(&self, b: i64, h: i64, i: i64) -> Option<usize> {
        let a = self.0;
        if a.weights.data.is_null() {
            return None;
        }
        let find = |list: *const i32, n: i64, x: i64, from_end: i64| match list.is_null() {
            true => Some(x),
            false => (0..n).find(|&at| {
                // SAFETY: as many values as are said.
                let number = i64::from(unsafe { read(list, at) });
                number + if number < 0 { from_end } else { 0 } == x
            }),
        };
        let head = find(a.weight_heads, a.num_weight_heads, h, 0)?;
        let row = find(a.weight_rows, a.num_weight_rows, i, self.queries_of(b))?;
        Some(at(&a.weights, [b, row], head))
    }

    /// Calls `f` with sequence, head, query row, and the keys that it sees.
    pub fn pairs(&self, mut f: impl FnMut(i64, i64, i64, Vec<i64>)) {
        let a = self.0;
        for b in 0..a.batch {
            for h in 0..a.heads_q {
                for i in 0..self.queries_of(b) {
                    let keys = self.window(b, h, i).into_iter().filter(|&j| !self.hides(b, h, i, j));
                    f(b, h, i, keys.collect());
                }
            }
        }
    }

    /// Checks the outputs that are there, and calls `written` with the address and the bytes of
    /// each of their elements. `isa` has computed them, from values of this largest magnitude; if
    /// that is infinity, only what is written counts.
    pub fn check(&self, isa: &str, largest: f64, label: &dyn Display, mut written: impl FnMut(usize, usize)) {
        let a = self.0;
        // Where numbers of 16 bits are multiplied, probabilities are rounded to 8 or 11 bits, and
        // queries that are not such numbers.
        let words = why(a);
        let (is_bf16, is_f16) = (words.contains(" bf16, "), words.contains(" f16, "));
        let is_half = is_bf16 || is_f16;
        // Where integers are, probabilities are multiples of 1/255 of the largest, by a table of
        // steps of 1/64 in their exponents, and queries are quantised that are not integers with
        // one scale a row, or that are multiplied by scales of K's channels.
        let is_vnni = words.starts_with("avx512vnni");
        let has_bytes = ["amx", "avx512vnni", "avxvnni", "neon-i8mm", "neon-dotprod"];
        let is_i8 = has_bytes.iter().any(|isa| words.starts_with(isa))
            && is_integer(a.k.dtype)
            && a.flags & FA_FAST != 0;
        // 16-bit ones leave more: 1/16384 and 1e-4, and queries of 15 bits as long as heads are not
        // too long. Few rows have them on blocks of ggml, too.
        let is_i16 = !is_i8
            && match (a.k.dtype, a.v.dtype) {
                (k, v) if is_integer(k) && is_integer(v) => !["scalar", "neon"].contains(&isa),
                (k, v) if BLOCKS.contains(&k) && BLOCKS.contains(&v) => {
                    // Sequences of a ragged batch may have few rows where the longest has many.
                    let may_be_few = isa == "avx2" && !a.cu_len_q.is_null() && a.flags & FA_PRECISE == 0;
                    is_vnni || may_be_few || words.contains(" i16, ")
                }
                _ => false,
            };
        let rounded = match (is_i8, is_i16) {
            (true, _) => 1.0 / 254.0,
            (_, true) => 1.0 / 40_000.0,
            _ if is_f16 => 2f64.powi(-11),
            // Half a unit in the last of 8 places.
            _ => 2f64.powi(-8),
        };
        let is_exact_q = match is_i8 || is_i16 {
            // Scales of K's channels are multiplied into them.
            true => {
                a.q.dtype == I8
                    && quant(&a.q).is_none_or(|q| q.zero.is_null() && q.stride[3] == 0)
                    && quant(&a.k).is_none_or(|k| k.stride[3] == 0)
            }
            false => a.q.dtype == if is_f16 { F16 } else { BF16 },
        };
        // Rows of K and V that have been looked up, by key, of one sequence and head.
        let mut of = [-1; 2];
        let mut rows: HashMap<i64, [Vec<f64>; 2]> = HashMap::new();
        self.pairs(|b, h, i, keys| {
            let kv = h / (a.heads_q / a.heads_kv);
            if of != [b, kv] {
                (of, rows) = ([b, kv], HashMap::new());
            }
            for &j in &keys {
                let place = self.key_at(b, kv, j);
                let row = |tensor, dim| (0..dim).map(|d| value(tensor, place, kv, d)).collect();
                rows.entry(j).or_insert_with(|| [row(&a.k, a.dim_qk), row(&a.v, a.dim_v)]);
            }
            let scale = if a.scale == 0.0 { 1.0 / (a.dim_qk as f64).sqrt() } else { f64::from(a.scale) };
            let q: Vec<f64> = (0..a.dim_qk).map(|d| value(&a.q, self.query_at(b, i), h, d)).collect();
            // Unsigned integers are multiplied as signed ones, which are 128 less.
            let more = |j: i64, d: i64| match scale_at(&a.k, self.key_at(b, kv, j), kv, d) {
                _ if a.k.dtype != U8 => 0.0,
                // SAFETY: the scale of an element.
                Some(at) => 128.0 * f64::from(unsafe { read(at as *const f32, 0) }).abs(),
                None => 128.0,
            };
            // The largest number on the way to a logit.
            let mut most = 0.0f64;
            let cap = if a.softcap > 0.0 { f64::from(a.softcap) } else { f64::INFINITY };
            let scores: Vec<f64> = keys
                .iter()
                .map(|&j| {
                    let products = || q.iter().zip(&rows[&j][0]).map(|(q, k)| scale * q * k);
                    let score = products().sum::<f64>();
                    let logit = self.logit(b, h, i, j, score);
                    most = most.max(score.abs().min(cap)).max(logit.abs());
                    // Products may be larger than their sum; of what that costs, the cap leaves its
                    // slope.
                    let more = (0..).zip(&q).map(|(d, q)| (scale * q).abs() * more(j, d));
                    let terms = products().map(f64::abs).sum::<f64>() + more.sum::<f64>();
                    let steepest = ((score.abs() - 1e-5 * terms).max(0.0) / cap).cosh().powi(-2);
                    most = most.max(terms * steepest);
                    logit
                })
                .collect();
            let sink = self.sink(h);
            let max = scores.iter().copied().fold(sink, f64::max);
            let rest = if sink == f64::NEG_INFINITY { 0.0 } else { (sink - max).exp() };
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum::<f64>() + rest;
            // Beyond what f32 holds nothing is promised.
            let is_beyond = most > 1e30 || scale.abs() > 1e25 || largest == f64::INFINITY;
            // Scores are f32: the larger they are the coarser.
            let coarse = 1.0 + most / 20.0;
            let row = at(&a.o, self.query_at(b, i), h);
            let largest_q = q.iter().fold(0.0f64, |m, q| m.max(q.abs()));
            let magnitude = |j: &i64| {
                let size = |q: f64| if is_i8 || is_i16 { largest_q } else { q.abs() };
                let of_keys = rows[j][0].iter().zip(0..).map(|(k, d)| k.abs() + more(*j, d));
                q.iter().zip(of_keys).map(|(&q, k)| size(q) * k).sum::<f64>()
            };
            let of_scores = match (is_half || is_i8 || is_i16) && !is_exact_q {
                true => scale.abs() * rounded * keys.iter().map(magnitude).fold(0.0, f64::max),
                false => 0.0,
            };
            // Exponentials are no better than their rounding needs.
            let [step, of_power] = if is_i8 { [0.5 / 255.0, 0.006] } else { [0.5 / 16384.0, 1e-4] };
            let of_powers = step * keys.len() as f64 / sum.max(1.0) + of_power;
            let of_sum = match (is_half, is_i8 || is_i16) {
                (true, _) => of_scores + 1e-4,
                (_, true) => of_scores + 1.1 * of_powers,
                _ => 0.0,
            };
            let of_weights = match (is_half, is_i8 || is_i16) {
                (true, _) => 2.0 * rounded + 2.0 * of_scores,
                (_, true) => 2.0 * of_powers + 2.0 * of_scores,
                _ => 0.0,
            };
            let element = block(a.o.dtype)[1];
            let mut exact = vec![0.0; a.dim_v as usize];
            for (j, weight) in keys.iter().zip(&weights) {
                exact.iter_mut().zip(&rows[j][1]).for_each(|(o, v)| *o += weight / sum * v);
            }
            for (d, exact) in (0..).zip(exact) {
                let scale = scale_at(&a.o, self.query_at(b, i), h, d);
                // SAFETY: one of the scales.
                let scale = scale.map_or(1.0, |at| f64::from(unsafe { read(at as *const f32, 0) }));
                let got = stored(a.o.dtype, row, d) * scale;
                written(row + (d * element) as usize, element as usize);
                // Half a unit in the last place of what is stored, and the least that it can hold.
                let rounding = match a.o.dtype {
                    F16 => (exact.abs() * 2f64.powi(-11)).max(2f64.powi(-25)),
                    BF16 => exact.abs() * 2f64.powi(-8),
                    Q15 => scale.abs() / 65_536.0,
                    _ => 0.0,
                };
                // What is too large for fractions saturates.
                let exact = if a.o.dtype == Q15 {
                    let [x, y] = [-1.0, 32_767.0 / 32_768.0].map(|x| x * scale);
                    exact.max(x.min(y)).min(x.max(y))
                } else {
                    exact
                };
                let is_near = (got - exact).abs() <= (1e-5 * coarse + of_weights) * largest + 1.01 * rounding;
                assert!(
                    is_near || is_beyond || !scale.is_finite(),
                    "{label}, {isa}: sequence {b}, head {h}, row {i}, element {d}: {got} is not {exact}"
                );
            }
            if let Some(row) = self.weights_at(b, h, i) {
                let near = (3e-5 * coarse + of_weights).exp_m1();
                let mut exact = vec![0.0; a.len_kv as usize];
                keys.iter().zip(&weights).for_each(|(&j, weight)| exact[j as usize] = weight / sum);
                for (j, &exact) in (0..).zip(&exact) {
                    let got = stored(F32, row, j);
                    let is_near = (got - exact).abs() <= near * exact + 1e-12;
                    assert!(
                        if keys.contains(&j) { is_near || is_beyond } else { got == 0.0 },
                        "{label}, {isa}: sequence {b}, head {h}, row {i}, weight of key {j}: {got} is not {exact}"
                    );
                }
                written(row, 4 * a.len_kv as usize);
            }
            if !a.lse.is_null() {
                let [entry, token] = self.query_at(b, i);
                let [x, y, z] = a.lse_stride;
                let at = a.lse.wrapping_offset((entry * x + h * y + token * z) as isize);
                // SAFETY: a row of the log-sum-exp.
                let (got, exact) = (f64::from(unsafe { at.read_unaligned() }), max + sum.ln());
                let same =
                    got == exact || (got - exact).abs() <= 1e-5 * (1.0 + exact.abs()) * coarse + of_sum;
                let empty = keys.is_empty() && got == sink;
                assert!(
                    same || empty || is_beyond,
                    "{label}, {isa}: LSE of {b}, {h}, {i}: {got} is not {exact}"
                );
                written(at as usize, 4);
            }
        });
    }
}

/// Address of a row.
pub fn at(tensor: &fa_tensor, [entry, row]: [i64; 2], head: i64) -> usize {
    let [x, y, z] = tensor.stride;
    tensor.data.wrapping_byte_offset((entry * x + head * y + row * z) as isize) as usize
}

/// One value of a list, which needs no alignment.
///
/// # Safety
/// There are as many.
unsafe fn read<T: Copy>(list: *const T, i: i64) -> T {
    // SAFETY: the caller's promise.
    unsafe { list.wrapping_offset(i as isize).read_unaligned() }
}

/// What the integers of a tensor stand for.
fn quant(tensor: &fa_tensor) -> Option<fa_quant> {
    // SAFETY: NULL or a quant, by the description's contract.
    (!tensor.quant.is_null()).then(|| unsafe { tensor.quant.read_unaligned() })
}

/// Number of the scale and the zero of an element among all.
fn scale_index(quant: &fa_quant, [entry, row]: [i64; 2], head: i64, d: i64) -> i64 {
    let [x, y, z, w] = quant.stride;
    let group = |i: i64, size: i32, stride: i64| if stride == 0 { 0 } else { i / i64::from(size) * stride };
    entry * x + head * y + group(row, quant.group_tokens, z) + group(d, quant.group_dims, w)
}

/// Address of the scale of an element, if it has one.
pub fn scale_at(tensor: &fa_tensor, place: [i64; 2], head: i64, d: i64) -> Option<usize> {
    let quant = quant(tensor).filter(|quant| !quant.scale.is_null())?;
    Some(quant.scale.wrapping_offset(scale_index(&quant, place, head, d) as isize) as usize)
}

/// Address and number of an element of a row at an address: those that `stored` takes.
pub fn element_at(tensor: &fa_tensor, row: usize, d: i64) -> (usize, i64) {
    match i64::from(tensor.stride_dim) {
        0 => (row, d),
        apart => ((row as i64 + d * apart) as usize, 0),
    }
}

/// An element as it is stored.
pub fn stored(dtype: i32, row: usize, d: i64) -> f64 {
    let [elements, bytes] = block(dtype);
    let block = (row as i64 + d / elements * bytes) as *const u8;
    // SAFETY: an element of a row of a live tensor.
    unsafe {
        match dtype {
            F32 => f64::from(block.cast::<f32>().read_unaligned()),
            F16 => block.cast::<f16>().read_unaligned().to_f64(),
            BF16 => block.cast::<bf16>().read_unaligned().to_f64(),
            I8 => f64::from(block.cast::<i8>().read()),
            Q15 => f64::from(block.cast::<i16>().read_unaligned()) / 32_768.0,
            BOOL8 | U8 => f64::from(block.read()),
            F8_E4M3 | F8_E5M2 => float8(dtype, block.read()),
            Q8_0 => {
                let scale = block.cast::<f16>().read_unaligned().to_f64();
                scale * f64::from(block.add(2 + (d % 32) as usize).cast::<i8>().read())
            }
            _ => nibble(dtype, block, (d % 32) as usize),
        }
    }
}

/// Whether elements are 8-bit integers.
pub fn is_integer(dtype: i32) -> bool {
    [I8, U8].contains(&dtype)
}

/// A floating-point number of 8 bits.
fn float8(dtype: i32, bits: u8) -> f64 {
    // Bits of the mantissa, bias of the exponent, and the first magnitude that is no number.
    let [mantissa, bias, end] = if dtype == F8_E4M3 { [3, 7, 0x7f] } else { [2, 15, 0x7c] };
    let magnitude = i32::from(bits & 0x7f);
    let sign = if bits < 0x80 { 1.0 } else { -1.0 };
    let (exponent, rest) = (magnitude >> mantissa, magnitude & ((1 << mantissa) - 1));
    let number = match exponent {
        _ if magnitude >= end => {
            if magnitude == 0x7c {
                f64::INFINITY
            } else {
                f64::NAN
            }
        }
        0 => f64::from(rest) * 2f64.powi(1 - bias - mantissa),
        _ => f64::from(rest + (1 << mantissa)) * 2f64.powi(exponent - bias - mantissa),
    };
    sign * number
}

/// Element `i` of a block of 4 or 5 bits.
///
/// # Safety
/// The block is readable.
unsafe fn nibble(dtype: i32, block: *const u8, i: usize) -> f64 {
    // SAFETY: bytes of the block (caller).
    unsafe {
        let number = |at: usize| block.add(at).cast::<f16>().read_unaligned().to_f64();
        let code = |at: usize| {
            let byte = block.add(at + i % 16).read();
            i32::from(if i < 16 { byte % 16 } else { byte / 16 })
        };
        let fifth = |at: usize| i32::from(block.add(at + i / 8).read() >> (i % 8) & 1) * 16;
        match dtype {
            Q4_0 => number(0) * f64::from(code(2) - 8),
            Q4_1 => number(0) * f64::from(code(4)) + number(2),
            Q5_0 => number(0) * f64::from(code(6) + fifth(2) - 16),
            Q5_1 => number(0) * f64::from(code(8) + fifth(4)) + number(2),
            _ => number(0) * f64::from(OF_SIXTEEN[code(2) as usize]),
        }
    }
}

/// What an element of a tensor is.
pub fn value(tensor: &fa_tensor, place: [i64; 2], head: i64, d: i64) -> f64 {
    let (row, number) = element_at(tensor, at(tensor, place, head), d);
    let x = stored(tensor.dtype, row, number);
    let Some(quant) = quant(tensor) else { return x };
    let at = scale_index(&quant, place, head, d);
    let of = |list: *const f32, none| {
        if list.is_null() {
            return none;
        }
        // SAFETY: as many values, by the description's contract.
        f64::from(unsafe { read(list, at) })
    };
    (x - of(quant.zero, 0.0)) * of(quant.scale, 1.0)
}
