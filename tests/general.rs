//! The general door on random descriptions: against attention as the header defines it, in f64, read
//! through the description itself; the same bits however it is run; nothing written beside the outputs.

mod common;

use std::ffi::{CStr, c_void};
use std::ptr;

use common::{Random, same_bits};
use flash_attention::capi::attention::{
    FA_MASK_TIMES_SLOPE, FA_NO_LIMIT, FA_POS_END, FA_PRECISE, fa_attention, fa_attention_init,
};
use flash_attention::capi::isa::{fa_isa, fa_limit_isa};
use flash_attention::capi::pool::{fa_pool, fa_pool_create, fa_pool_destroy};
use flash_attention::capi::run::{
    fa_attention_check, fa_attention_finish, fa_attention_part, fa_attention_run, fa_attention_workspace,
};
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::{fa_dtype, fa_quant, fa_tensor};
use half::{bf16, f16};

/// A description and the memory that it points to.
struct Case {
    a: fa_attention,
    seed: u64,
    /// Largest magnitude of the values.
    largest: f64,
    /// Kept for the pointers' sake; vectors and boxes do not move their contents.
    _inputs: Vec<Vec<u8>>,
    _lists: Vec<Vec<f32>>,
    _lens: Vec<Vec<i32>>,
    #[expect(clippy::vec_box, reason = "there are pointers to them")]
    _quants: Vec<Box<fa_quant>>,
    mask: Vec<u8>,
    cells: Vec<u8>,
    o: Vec<u8>,
    lse: Vec<f32>,
}

/// What outputs hold before: in bytes, and as f32.
const BEFORE: u8 = 0xa5;
const LSE_BEFORE: f32 = -7.0e30;

const F32: i32 = fa_dtype::FA_DTYPE_F32 as i32;
const F16: i32 = fa_dtype::FA_DTYPE_F16 as i32;
const BF16: i32 = fa_dtype::FA_DTYPE_BF16 as i32;
const I8: i32 = fa_dtype::FA_DTYPE_I8 as i32;
const Q8_0: i32 = fa_dtype::FA_DTYPE_Q8_0 as i32;
const BOOL8: i32 = fa_dtype::FA_DTYPE_BOOL8 as i32;

/// Elements and bytes of a block of a type.
fn block(dtype: i32) -> [i64; 2] {
    match dtype {
        F32 => [1, 4],
        F16 | BF16 => [1, 2],
        Q8_0 => [32, 34],
        _ => [1, 1],
    }
}

struct Chooser(Random);

impl Chooser {
    fn below(&mut self, n: i64) -> i64 {
        self.0.below(n as usize) as i64
    }
    fn from(&mut self, low: i64, high: i64) -> i64 {
        low + self.below(high - low)
    }
    fn chance(&mut self, percent: i64) -> bool {
        self.below(100) < percent
    }
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as i64) as usize]
    }
}

impl Case {
    fn random(seed: u64) -> Case {
        let mut c = Chooser(Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let mut a = empty();
        a.batch = c.from(1, 4);
        a.heads_kv = c.from(1, 4);
        a.heads_q = a.heads_kv * c.from(1, 4);
        a.len_q = c.of(&[0, 1, 1, 2, 3, 5, 16, 17, 20, 33, 70]);
        a.len_kv = c.of(&[0, 1, 2, 7, 16, 31, 64, 100, 270]);
        let many_keys = seed % 25 == 24;
        if many_keys {
            // So many that they are divided among threads, in chunks that need not end where sequences do.
            a.batch = c.from(1, 3);
            a.len_q = c.of(&[1, 1, 2, 5]);
            a.len_kv = c.of(&[513, 3000, 9001, 20_000]);
        }
        a.dim_qk = c.of(&[1, 2, 7, 8, 16, 17, 32, 40, 64]);
        a.dim_v = if c.chance(50) { a.dim_qk } else { c.of(&[1, 3, 8, 16, 19, 64]) };
        a.scale = c.of(&[0.0, 0.3, -0.2, 1.0]);
        a.q_pos = match c.below(5) {
            0 => 0,
            1 => a.len_kv - a.len_q,
            2 => c.from(-20, 0),
            _ => FA_POS_END,
        };
        a.flags = if c.chance(20) { FA_PRECISE } else { 0 };
        let limits = [FA_NO_LIMIT, FA_NO_LIMIT, 0, 0, 1, 5, 40];
        a.window_left = c.of(&limits);
        a.window_right = c.of(&limits);
        if many_keys {
            a.window_left = c.of(&[FA_NO_LIMIT, FA_NO_LIMIT, 100, 5000]);
        }
        a.block_kv = c.of(&[0, 0, 1, 3, 16, 50]);
        a.block_q = c.of(&[0, 0, 1, 20]);

        let mut lens = Vec::new();
        let batch = a.batch as usize;
        let starts = |c: &mut Chooser, len: i64| {
            let mut at = c.below(3);
            let mut starts = vec![at as i32];
            for _ in 0..batch {
                at += c.below(len + 1);
                starts.push(at as i32);
            }
            starts
        };
        if c.chance(30) {
            lens.push(starts(&mut c, a.len_q));
            a.cu_len_q = lens.last().unwrap().as_ptr();
        }
        if c.chance(30) {
            lens.push(starts(&mut c, a.len_kv));
            a.cu_len_kv = lens.last().unwrap().as_ptr();
        }
        if c.chance(40) {
            let most = |b: usize| match a.cu_len_kv.is_null() {
                true => a.len_kv,
                // SAFETY: [batch + 1] values.
                false => unsafe { i64::from(*a.cu_len_kv.add(b + 1) - *a.cu_len_kv.add(b)) },
            };
            let list = (0..batch).map(|b| c.below(most(b) + 1) as i32).collect::<Vec<_>>();
            lens.push(list);
            a.kv_lens = lens.last().unwrap().as_ptr();
        }

        if a.cu_len_kv.is_null() && c.chance(30) {
            a.page_size = c.of(&[1, 2, 3, 16, 40]);
            let used = |b: usize| match a.kv_lens.is_null() {
                true => a.len_kv,
                // SAFETY: [batch] values.
                false => unsafe { i64::from(*a.kv_lens.add(b)) },
            };
            let needed: Vec<i64> = (0..batch).map(|b| (used(b) + a.page_size - 1) / a.page_size).collect();
            a.num_pages = needed.iter().sum::<i64>() + c.below(3);
            // Every page once, in any order.
            let mut free: Vec<i32> = (0..a.num_pages as i32).collect();
            let mut page = |c: &mut Chooser| free.swap_remove(c.below(free.len() as i64) as usize);
            let garbage = [-1, 1 << 30, i32::MIN];
            let mut table = Vec::new();
            if c.chance(50) {
                a.table_stride = needed.iter().max().unwrap() + c.below(3);
                for &n in &needed {
                    table.extend((0..n).map(|_| page(&mut c)).collect::<Vec<_>>());
                    table.extend((n..a.table_stride).map(|_| c.of(&garbage)).collect::<Vec<_>>());
                }
            } else {
                let mut starts = vec![0];
                for &n in &needed {
                    table.extend((0..n).map(|_| page(&mut c)).collect::<Vec<_>>());
                    table.extend((0..c.below(2)).map(|_| c.of(&garbage)).collect::<Vec<_>>());
                    starts.push(table.len() as i32);
                }
                lens.push(starts);
                a.block_table_start = lens.last().unwrap().as_ptr();
            }
            lens.push(table);
            a.block_table = lens.last().unwrap().as_ptr();
        }

        let total = |starts: *const i32, len: i64| match starts.is_null() {
            true => (a.batch, len),
            // SAFETY: [batch + 1] values.
            false => (1, unsafe { i64::from(*starts.add(batch)) }),
        };
        let (entries_q, rows_q) = total(a.cu_len_q, a.len_q);
        let (entries_kv, rows_kv) = match a.block_table.is_null() {
            true => total(a.cu_len_kv, a.len_kv),
            false => (a.num_pages, a.page_size),
        };
        let (mut inputs, mut lists, mut quants) = (Vec::new(), Vec::new(), Vec::new());
        let mut largest = 1.0f64;
        let packed = [!a.cu_len_q.is_null(), !a.cu_len_kv.is_null(), !a.cu_len_kv.is_null()];
        // Many problems are f32 throughout, and many have the types that integers compute.
        let types = match c.below(10) {
            0..4 => vec![F32],
            4..7 => vec![F32, F16, BF16, I8, Q8_0],
            _ => vec![I8],
        };
        let mut input = |c: &mut Chooser, which: usize, extent: [i64; 3], dim: i64, broadcast: bool| {
            let mut dtype = if which == 0 && types[0] == I8 { c.of(&[F32, BF16, I8]) } else { c.of(&types) };
            if dim % block(dtype)[0] != 0 {
                dtype = I8;
            }
            let [elements, bytes] = block(dtype);
            let row = dim / elements * bytes;
            let (mut stride, _) = strides(c, extent, row, bytes.min(4));
            if broadcast && c.chance(20) {
                stride[c.below(2) as usize] = 0;
            }
            // As many as are reached: a read beyond is a read beyond the allocation.
            let reached = (0..3).map(|i| (extent[i] - 1) * stride[i]).sum::<i64>() + row;
            let mut data = vec![0u8; if extent.contains(&0) { 0 } else { reached as usize }];
            let mut tensor = fa_tensor { data: data.as_mut_ptr().cast(), stride, dtype, ..fa_tensor::NONE };
            let is_scaled = dtype == I8 && c.chance(80);
            if dtype == Q8_0 {
                // Blocks begin where rows do.
                for_rows(&tensor, extent, |at| {
                    for at in (0..row).step_by(bytes as usize).map(|block| at as i64 + block) {
                        // SAFETY: a block of a row.
                        let block = unsafe { std::slice::from_raw_parts_mut(at as *mut u8, bytes as usize) };
                        largest = largest.max(fill(c, dtype, false, block));
                    }
                });
            } else {
                for x in data.chunks_mut(bytes as usize) {
                    largest = largest.max(fill(c, dtype, is_scaled, x));
                }
            }
            if is_scaled {
                let (quant, list, most) = scales(c, extent, dim, packed[which]);
                largest = largest.max(f64::from(most) * 137.0);
                lists.extend(list);
                quants.push(Box::new(quant));
                tensor.quant = &**quants.last().unwrap();
            }
            inputs.push(data);
            tensor
        };
        a.q = input(&mut c, 0, [entries_q, a.heads_q, rows_q], a.dim_qk, false);
        a.k = input(&mut c, 1, [entries_kv, a.heads_kv, rows_kv], a.dim_qk, true);
        a.v = input(&mut c, 2, [entries_kv, a.heads_kv, rows_kv], a.dim_v, true);
        if a.dim_v <= a.dim_qk && a.dim_v % block(a.k.dtype)[0] == 0 && c.chance(15) {
            a.v = a.k;
        }
        let extent = [entries_q, a.heads_q, rows_q];
        a.o.dtype = if types == [F32] { F32 } else { c.of(&[F32, F16, BF16]) };
        let element = block(a.o.dtype)[1];
        let (stride, bytes) = strides(&mut c, extent, a.dim_v * element, element);
        let mut o = vec![BEFORE; bytes];
        (a.o.data, a.o.stride) = (o.as_mut_ptr().cast(), stride);
        let (stride, bytes) = strides(&mut c, extent, 4, 4);
        let mut lse = vec![LSE_BEFORE; bytes / 4];
        if c.chance(70) {
            a.lse = lse.as_mut_ptr();
            a.lse_stride = stride.map(|bytes| bytes / 4);
        }
        if c.chance(20) {
            a.softcap = c.of(&[0.5, 3.0, 50.0]);
        }
        let queries = [a.batch, a.heads_q, a.len_q];
        let mut mask = Vec::new();
        if c.chance(50) && a.len_q * a.len_kv > 0 {
            a.mask.dtype = if c.chance(50) { BOOL8 } else { c.of(&types) };
            if [I8, Q8_0].contains(&a.mask.dtype) {
                a.mask.dtype = F32;
            }
            let element = block(a.mask.dtype)[1];
            let (mut stride, bytes) = strides(&mut c, queries, a.len_kv * element, element);
            for stride in &mut stride {
                if c.chance(30) {
                    *stride = 0;
                }
            }
            // Some hide almost everything, so that there are rows that see nothing.
            let hidden = c.of(&[0, 10, 50, 97]);
            mask = vec![0; bytes];
            for x in mask.chunks_mut(element as usize) {
                let hides = c.chance(hidden);
                let number = if hides { f32::NEG_INFINITY } else { c.0.normal() };
                match a.mask.dtype {
                    BOOL8 => x[0] = if hides { 0 } else { c.from(1, 256) as u8 },
                    F16 => x.copy_from_slice(&f16::from_f32(number).to_ne_bytes()),
                    BF16 => x.copy_from_slice(&bf16::from_f32(number).to_ne_bytes()),
                    _ => x.copy_from_slice(&number.to_ne_bytes()),
                }
            }
            (a.mask.stride, a.mask.data) = (stride, mask.as_mut_ptr().cast());
        }
        let mut cells = Vec::new();
        if c.chance(25) && a.len_q * a.len_kv > 0 {
            a.block_mask_q = c.of(&[1, 5, 16, 32, 100]);
            a.block_mask_kv = c.of(&[1, 7, 16, 64, 300]);
            let extent = [a.batch, a.heads_q, (a.len_q + a.block_mask_q - 1) / a.block_mask_q];
            let (mut stride, bytes) =
                strides(&mut c, extent, (a.len_kv + a.block_mask_kv - 1) / a.block_mask_kv, 1);
            for stride in &mut stride {
                if c.chance(30) {
                    *stride = 0;
                }
            }
            let hidden = c.of(&[0, 30, 80, 100]);
            cells = (0..bytes).map(|_| if c.chance(hidden) { 0 } else { c.from(1, 256) as u8 }).collect();
            (a.block_mask, a.block_mask_stride) = (cells.as_ptr(), stride);
        }
        if c.chance(25) {
            let per_batch = c.chance(50);
            lists.push(
                (0..a.heads_q * if per_batch { a.batch } else { 1 })
                    .map(|_| c.of(&[0.0, 0.02, 0.5, -0.1]))
                    .collect(),
            );
            a.alibi_slopes = lists.last().unwrap().as_ptr();
            a.alibi_batch_stride = if per_batch { a.heads_q } else { 0 };
            if !mask.is_empty() && a.mask.dtype != BOOL8 && c.chance(50) {
                a.flags |= FA_MASK_TIMES_SLOPE;
            }
        }
        if c.chance(25) {
            lists.push((0..a.heads_q).map(|_| c.of(&[0.0, 2.5, -3.0, 30.0, f32::NEG_INFINITY])).collect());
            a.sinks = lists.last().unwrap().as_ptr();
        }
        let mut case = Case {
            a,
            seed,
            largest,
            _inputs: inputs,
            _lists: lists,
            _lens: lens,
            _quants: quants,
            mask,
            cells,
            o,
            lse,
        };
        case.poison();
        case
    }

    /// NaN in every key and value that nothing sees, and in every number of the mask that is not looked at;
    /// in the scales of integers that nothing sees.
    fn poison(&mut self) {
        let mut looked_at = std::collections::HashSet::new();
        let [x, y, z] = self.a.mask.stride;
        let [_, element] = block(self.a.mask.dtype);
        for b in 0..self.a.batch {
            for h in 0..self.a.heads_q {
                for i in 0..self.queries_of(b) {
                    for j in self.window(b, i) {
                        looked_at.insert(b * x + h * y + i * z + j * element);
                    }
                }
            }
        }
        for (index, x) in self.mask.chunks_mut(element as usize).enumerate() {
            if self.a.mask.dtype != BOOL8 && !looked_at.contains(&(index as i64 * element)) {
                // Not a number in every format.
                x.fill(0xff);
            }
        }
        let a = &self.a;
        let mut seen = std::collections::HashSet::new();
        let mut scales = std::collections::HashSet::new();
        self.pairs(|b, h, _, keys| {
            let kv = h / (a.heads_q / a.heads_kv);
            for j in keys {
                for (tensor, dim) in [(&a.k, a.dim_qk), (&a.v, a.dim_v)] {
                    let place = self.key_at(b, j);
                    seen.insert(at(tensor, place, kv));
                    scales.extend((0..dim).filter_map(|d| scale_at(tensor, place, kv, d)));
                }
            }
        });
        let is_paged = !a.block_table.is_null();
        for b in 0..if is_paged { a.num_pages } else { a.batch } {
            for kv in 0..a.heads_kv {
                for j in 0..if is_paged { a.page_size } else { self.keys_of(b) } {
                    for (tensor, dim) in [(&a.k, a.dim_qk), (&a.v, a.dim_v)] {
                        let place = if is_paged { [b, j] } else { self.key_at(b, j) };
                        let row = at(tensor, place, kv);
                        let [elements, bytes] = block(tensor.dtype);
                        if !seen.contains(&row) {
                            // Not a number in every format of floating point, scales of blocks included.
                            // SAFETY: a row of the tensor.
                            unsafe { (row as *mut u8).write_bytes(0xff, (dim / elements * bytes) as usize) };
                        }
                        for scale in (0..dim).filter_map(|d| scale_at(tensor, place, kv, d)) {
                            // SAFETY: a list of scales that we made; one shared by all must be finite.
                            unsafe {
                                let is_shared = (*tensor.quant).stride == [0; 4];
                                if !scales.contains(&scale) && !is_shared {
                                    (scale as *mut f32).write(f32::NAN);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn start(&self, starts: *const i32, b: i64) -> Option<i64> {
        // SAFETY: [batch + 1] values.
        (!starts.is_null()).then(|| i64::from(unsafe { *starts.add(b as usize) }))
    }

    fn queries_of(&self, b: i64) -> i64 {
        let start = |b| self.start(self.a.cu_len_q, b);
        start(b).map_or(self.a.len_q, |first| start(b + 1).unwrap() - first)
    }

    /// Keys that a sequence has, in use or not.
    fn keys_of(&self, b: i64) -> i64 {
        let start = |b| self.start(self.a.cu_len_kv, b);
        start(b).map_or(self.a.len_kv, |first| start(b + 1).unwrap() - first)
    }

    fn keys_in_use(&self, b: i64) -> i64 {
        self.start(self.a.kv_lens, b).unwrap_or_else(|| self.keys_of(b))
    }

    /// Entry and row of a key.
    fn key_at(&self, b: i64, j: i64) -> [i64; 2] {
        let a = &self.a;
        if a.block_table.is_null() {
            return self.start(a.cu_len_kv, b).map_or([b, j], |first| [0, first + j]);
        }
        let first = self.start(a.block_table_start, b).unwrap_or(b * a.table_stride);
        // SAFETY: the list is as long as there are keys in use.
        let page = unsafe { *a.block_table.add((first + j / a.page_size) as usize) };
        [i64::from(page), j % a.page_size]
    }

    fn query_at(&self, b: i64, i: i64) -> [i64; 2] {
        self.start(self.a.cu_len_q, b).map_or([b, i], |first| [0, first + i])
    }

    /// The mask for a query and a key; 0 without one.
    fn mask(&self, b: i64, h: i64, i: i64, j: i64) -> f64 {
        if self.mask.is_empty() {
            return 0.0;
        }
        let x = stored(self.a.mask.dtype, at(&self.a.mask, [b, i], h), j);
        match self.a.mask.dtype {
            BOOL8 if x == 0.0 => f64::NEG_INFINITY,
            BOOL8 => 0.0,
            _ => x,
        }
    }

    fn hides(&self, b: i64, h: i64, i: i64, j: i64) -> bool {
        let a = &self.a;
        let [x, y, z] = a.block_mask_stride;
        let in_hidden_block = !a.block_mask.is_null() && {
            let at = b * x + h * y + i / a.block_mask_q * z + j / a.block_mask_kv;
            self.cells[at as usize] == 0
        };
        in_hidden_block || self.mask(b, h, i, j) == f64::NEG_INFINITY
    }

    /// What the softmax is of.
    fn logit(&self, b: i64, h: i64, i: i64, j: i64, score: f64) -> f64 {
        let a = &self.a;
        let cap = f64::from(a.softcap);
        let capped = if cap > 0.0 { cap * (score / cap).tanh() } else { score };
        if a.alibi_slopes.is_null() {
            return capped + self.mask(b, h, i, j);
        }
        // SAFETY: as many slopes.
        let slope = f64::from(unsafe { *a.alibi_slopes.add((b * a.alibi_batch_stride + h) as usize) });
        if a.flags & FA_MASK_TIMES_SLOPE != 0 {
            return capped + slope * self.mask(b, h, i, j);
        }
        let (rows, keys) = (self.queries_of(b), self.keys_in_use(b));
        let p = if a.q_pos == FA_POS_END { keys - rows + i } else { a.q_pos + i };
        capped - slope * (p - j).abs() as f64 + self.mask(b, h, i, j)
    }

    fn sink(&self, h: i64) -> f64 {
        if self.a.sinks.is_null() {
            return f64::NEG_INFINITY;
        }
        // SAFETY: as many sinks as heads.
        f64::from(unsafe { *self.a.sinks.add(h as usize) })
    }

    /// The keys that windows and lengths leave to a query row.
    fn window(&self, b: i64, i: i64) -> Vec<i64> {
        let a = &self.a;
        let (rows, keys) = (self.queries_of(b), self.keys_in_use(b));
        let p = if a.q_pos == FA_POS_END { keys - rows + i } else { a.q_pos + i };
        let sees = |j: &i64| {
            (a.window_left == FA_NO_LIMIT || *j >= p - a.window_left)
                && (a.window_right == FA_NO_LIMIT || *j <= p + a.window_right)
        };
        (0..keys).filter(sees).collect()
    }

    /// Calls `f` with sequence, head, query row, and the keys that it sees.
    fn pairs(&self, mut f: impl FnMut(i64, i64, i64, Vec<i64>)) {
        let a = &self.a;
        for b in 0..a.batch {
            for h in 0..a.heads_q {
                for i in 0..self.queries_of(b) {
                    let keys = self.window(b, i).into_iter().filter(|&j| !self.hides(b, h, i, j));
                    f(b, h, i, keys.collect());
                }
            }
        }
    }

    /// Checks the outputs, and that nothing else was written.
    fn check(&self, how: &str) {
        let a = &self.a;
        // Where bfloat16 is multiplied, probabilities are rounded to 8 bits, and queries that are not bfloat16.
        let words = why(a);
        let is_bf16 = words.starts_with("avx512bf16");
        // Where integers are, probabilities are multiples of 1/255 of the largest, by a table of steps of 1/64
        // in their exponents, and queries are quantised that are not integers with one scale a row.
        let is_i8 = words.starts_with("avx512vnni") && a.flags & FA_PRECISE == 0;
        // 16-bit ones leave more: 1/16384 and 1e-4, and queries of 15 bits as long as heads are not too long.
        let is_i16 = !is_i8 && how != "scalar" && (a.k.dtype, a.v.dtype) == (I8, I8);
        let rounded = match (is_i8, is_i16) {
            (true, _) => 1.0 / 254.0,
            (_, true) => 1.0 / 40_000.0,
            // Half a unit in the last of 8 places.
            _ => 2f64.powi(-8),
        };
        // SAFETY: NULL or a box that the case keeps.
        let quant = unsafe { a.q.quant.as_ref() };
        let is_exact_q = match is_i8 || is_i16 {
            true => a.q.dtype == I8 && quant.is_none_or(|q| q.zero.is_null() && q.stride[3] == 0),
            false => a.q.dtype == BF16,
        };
        let mut o_left = self.o.clone();
        let mut lse_left = self.lse.clone();
        let seed = self.seed;
        self.pairs(|b, h, i, keys| {
            let kv = h / (a.heads_q / a.heads_kv);
            let scale = if a.scale == 0.0 { 1.0 / (a.dim_qk as f64).sqrt() } else { f64::from(a.scale) };
            let q: Vec<f64> = (0..a.dim_qk).map(|d| value(&a.q, self.query_at(b, i), h, d)).collect();
            let scores: Vec<f64> = keys
                .iter()
                .map(|&j| {
                    let place = self.key_at(b, j);
                    let dot = |(d, q): (i64, &f64)| q * value(&a.k, place, kv, d);
                    let score = scale * (0..).zip(&q).map(dot).sum::<f64>();
                    self.logit(b, h, i, j, score)
                })
                .collect();
            let sink = self.sink(h);
            let max = scores.iter().copied().fold(sink, f64::max);
            let rest = if sink == f64::NEG_INFINITY { 0.0 } else { (sink - max).exp() };
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum::<f64>() + rest;
            // Scores are f32: the larger they are the coarser.
            let coarse = 1.0 + scores.iter().fold(0.0f64, |m, s| m.max(s.abs())) / 20.0;
            let row = at(&a.o, self.query_at(b, i), h);
            let largest_q = q.iter().fold(0.0f64, |m, q| m.max(q.abs()));
            let magnitude = |&j: &i64| {
                let place = self.key_at(b, j);
                let size = |q: f64| if is_i8 || is_i16 { largest_q } else { q.abs() };
                (0..).zip(&q).map(|(d, &q)| size(q) * value(&a.k, place, kv, d).abs()).sum::<f64>()
            };
            let of_scores = match (is_bf16 || is_i8 || is_i16) && !is_exact_q {
                true => scale.abs() * rounded * keys.iter().map(magnitude).fold(0.0, f64::max),
                false => 0.0,
            };
            // Exponentials are no better than their rounding needs.
            let [step, of_power] = if is_i8 { [0.5 / 255.0, 0.006] } else { [0.5 / 16384.0, 1e-4] };
            let of_powers = step * keys.len() as f64 / sum.max(1.0) + of_power;
            let of_sum = match (is_bf16, is_i8 || is_i16) {
                (true, _) => of_scores + 1e-4,
                (_, true) => of_scores + 1.1 * of_powers,
                _ => 0.0,
            };
            let of_weights = match (is_bf16, is_i8 || is_i16) {
                (true, _) => 2.0 * rounded + 2.0 * of_scores,
                (_, true) => 2.0 * of_powers + 2.0 * of_scores,
                _ => 0.0,
            };
            let element = block(a.o.dtype)[1];
            for d in 0..a.dim_v {
                let weigh =
                    |(&j, s): (&i64, &f64)| (s - max).exp() / sum * value(&a.v, self.key_at(b, j), kv, d);
                let exact: f64 = keys.iter().zip(&scores).map(weigh).sum();
                let got = stored(a.o.dtype, row, d);
                let where_ = format!("seed {seed}, {how}: sequence {b}, head {h}, row {i}, element {d}");
                // Half a unit in the last place of what is stored, and the least that it can hold.
                let rounding = match a.o.dtype {
                    F16 => (exact.abs() * 2f64.powi(-11)).max(2f64.powi(-25)),
                    BF16 => exact.abs() * 2f64.powi(-8),
                    _ => 0.0,
                };
                assert!(
                    (got - exact).abs() <= (1e-5 * coarse + of_weights) * self.largest + 1.01 * rounding,
                    "{where_}: {got} is not {exact}"
                );
                let index = row - self.o.as_ptr() as usize + (d * element) as usize;
                o_left[index..][..element as usize].fill(BEFORE);
            }
            if !a.lse.is_null() {
                let [entry, token] = self.query_at(b, i);
                let [x, y, z] = a.lse_stride;
                let index = (entry * x + h * y + token * z) as usize;
                let (got, exact) = (f64::from(self.lse[index]), max + sum.ln());
                let same =
                    got == exact || (got - exact).abs() <= 1e-5 * (1.0 + exact.abs()) * coarse + of_sum;
                let empty = keys.is_empty() && got == sink;
                assert!(same || empty, "seed {seed}, {how}: LSE of {b}, {h}, {i}: {got} is not {exact}");
                lse_left[index] = LSE_BEFORE;
            }
        });
        let untouched = o_left.iter().all(|&x| x == BEFORE) && lse_left.iter().all(|&x| x == LSE_BEFORE);
        assert!(untouched, "seed {seed}, {how}: wrote beside the outputs");
    }

    fn blank(&mut self) {
        self.o.fill(BEFORE);
        self.lse.fill(LSE_BEFORE);
    }

    fn outputs(&self) -> (Vec<u8>, Vec<f32>) {
        (self.o.clone(), self.lse.clone())
    }

    fn run(&self, pool: *const fa_pool, width: i32) {
        let mut ws = Workspace::of(&self.a, width);
        // SAFETY: a description of live memory.
        let status = unsafe { fa_attention_run(&self.a, ws.at(), ws.size, pool) };
        assert_eq!(status, fa_status::FA_OK, "seed {}: {}", self.seed, why(&self.a));
    }

    fn run_in_parts(&self, n: i32) {
        let mut ws = Workspace::of(&self.a, n);
        for step in [fa_attention_part, fa_attention_finish] {
            for part in (0..n).rev() {
                // SAFETY: as above.
                let status = unsafe { step(&self.a, ws.at(), ws.size, part, n) };
                assert_eq!(status, fa_status::FA_OK, "seed {}", self.seed);
            }
        }
    }

    /// Computes sequence `b` alone, into the same place.
    fn run_alone(&self, b: i64) {
        let mut a = self.a;
        let mut quants = Vec::new();
        let mut shift = |tensor: &mut fa_tensor, [entry, row]: [i64; 2]| {
            let bytes = entry * tensor.stride[0] + row * tensor.stride[2];
            tensor.data = tensor.data.wrapping_byte_offset(bytes as isize);
            if !tensor.quant.is_null() {
                // SAFETY: a box that the case keeps.
                let mut quant = unsafe { *tensor.quant };
                let [x, _, z, _] = quant.stride;
                let values = entry * x + if z == 0 { 0 } else { row / i64::from(quant.group_tokens) * z };
                for list in [&mut quant.scale, &mut quant.zero] {
                    if !list.is_null() {
                        *list = list.wrapping_offset(values as isize);
                    }
                }
                quants.push(Box::new(quant));
                tensor.quant = &**quants.last().unwrap();
            }
        };
        a.batch = 1;
        (a.len_q, a.len_kv) = (self.queries_of(b), self.keys_in_use(b));
        for tensor in [&mut a.q, &mut a.o] {
            shift(tensor, self.query_at(b, 0));
        }
        if a.block_table.is_null() {
            for tensor in [&mut a.k, &mut a.v] {
                shift(tensor, self.key_at(b, 0));
            }
        } else if a.block_table_start.is_null() {
            a.block_table = a.block_table.wrapping_offset((b * a.table_stride) as isize);
        } else {
            a.block_table_start = a.block_table_start.wrapping_offset(b as isize);
        }
        if !a.lse.is_null() {
            let [entry, row] = self.query_at(b, 0);
            a.lse = a.lse.wrapping_offset((entry * a.lse_stride[0] + row * a.lse_stride[2]) as isize);
        }
        if !a.block_mask.is_null() {
            a.block_mask = a.block_mask.wrapping_offset((b * a.block_mask_stride[0]) as isize);
        }
        if !a.mask.data.is_null() {
            a.mask.data = a.mask.data.wrapping_byte_offset((b * a.mask.stride[0]) as isize);
        }
        if !a.alibi_slopes.is_null() {
            a.alibi_slopes = a.alibi_slopes.wrapping_offset((b * a.alibi_batch_stride) as isize);
        }
        (a.cu_len_q, a.cu_len_kv, a.kv_lens) = (ptr::null(), ptr::null(), ptr::null());
        let mut ws = Workspace::of(&a, 1);
        // SAFETY: as above.
        let status = unsafe { fa_attention_run(&a, ws.at(), ws.size, ptr::null()) };
        assert_eq!(status, fa_status::FA_OK, "seed {}: {}", self.seed, why(&a));
    }
}

/// Strides of some layout of these extents with rows of so many bytes, and how many bytes that takes.
/// Distances are multiples of `unit`.
fn strides(c: &mut Chooser, [entries, heads, rows]: [i64; 3], row: i64, unit: i64) -> ([i64; 3], usize) {
    let row = row + unit * c.of(&[0, 0, 1, 5]);
    let unit = unit as u64;
    let stride = match c.below(3) {
        0 => [heads * rows * row, rows * row, row],
        1 => [rows * heads * row, row, heads * row],
        // Rows so far apart that they fall on the same cache lines.
        _ => {
            let far = ((heads * row) as u64).next_multiple_of(1024).next_multiple_of(unit) as i64;
            [rows * far, row, far]
        }
    };
    let bytes: i64 = if entries * heads * rows == 0 { 0 } else { entries * stride[0].max(heads * stride[1]) };
    (stride, (bytes as u64).next_multiple_of(unit) as usize)
}

/// Writes one element (or block) of random data; returns its largest magnitude.
fn fill(c: &mut Chooser, dtype: i32, is_scaled: bool, to: &mut [u8]) -> f64 {
    match dtype {
        F32 => {
            let x = c.0.normal();
            to.copy_from_slice(&x.to_ne_bytes());
            f64::from(x.abs())
        }
        F16 => {
            let x = f16::from_f32(c.0.normal());
            to.copy_from_slice(&x.to_ne_bytes());
            x.to_f64().abs()
        }
        BF16 => {
            let x = bf16::from_f32(c.0.normal());
            to.copy_from_slice(&x.to_ne_bytes());
            x.to_f64().abs()
        }
        I8 => {
            let most = if is_scaled { 127 } else { 3 };
            to[0] = c.from(-most - 1, most + 1) as i8 as u8;
            if is_scaled { 0.0 } else { 4.0 }
        }
        _ => {
            let scale = f16::from_f32(c.from(1, 20) as f32 / 1000.0);
            to[..2].copy_from_slice(&scale.to_ne_bytes());
            to[2..].iter_mut().for_each(|x| *x = c.from(-128, 128) as i8 as u8);
            128.0 * scale.to_f64()
        }
    }
}

/// Scales and zeros of some granularity for a tensor, and the largest scale.
fn scales(c: &mut Chooser, extent: [i64; 3], dim: i64, packed: bool) -> (fa_quant, Vec<Vec<f32>>, f32) {
    // Of packed rows a group may belong to two sequences, which then cannot be cut out.
    let group_tokens = if packed { 1 } else { c.of(&[1, 1, 4, 7]) };
    let group_dims = c.of(&[1, 1, 3, 8, 16, 32]);
    let groups = |n: i64, size: i64| (n + size - 1) / size;
    let counts = [extent[0], extent[1], groups(extent[2], group_tokens), groups(dim, group_dims)];
    let mut stride = [0; 4];
    let mut n = 1;
    for axis in (0..4).rev() {
        if c.chance(40) {
            stride[axis] = n;
            n *= counts[axis].max(1);
        }
    }
    let scale: Vec<f32> = (0..n).map(|_| c.from(5, 20) as f32 / 1000.0).collect();
    let zero: Vec<f32> = (0..n).map(|_| c.from(-9, 10) as f32).collect();
    let most = scale.iter().fold(0f32, |m, &x| m.max(x));
    let quant = fa_quant {
        scale: scale.as_ptr(),
        zero: if c.chance(30) { zero.as_ptr() } else { ptr::null() },
        stride,
        group_tokens: if stride[2] == 0 { c.of(&[0, 1, 5]) } else { group_tokens as i32 },
        group_dims: if stride[3] == 0 { c.of(&[0, 1, 5]) } else { group_dims as i32 },
    };
    (quant, vec![scale, zero], most)
}

/// Address of a row.
fn at(tensor: &fa_tensor, [entry, row]: [i64; 2], head: i64) -> usize {
    let [x, y, z] = tensor.stride;
    tensor.data.wrapping_byte_offset((entry * x + head * y + row * z) as isize) as usize
}

/// Calls `f` with the address of each row.
fn for_rows(tensor: &fa_tensor, [entries, heads, rows]: [i64; 3], mut f: impl FnMut(usize)) {
    for entry in 0..entries {
        for head in 0..heads {
            (0..rows).for_each(|row| f(at(tensor, [entry, row], head)));
        }
    }
}

/// Address of the scale of an element, if it has one.
fn scale_at(tensor: &fa_tensor, [entry, row]: [i64; 2], head: i64, d: i64) -> Option<usize> {
    // SAFETY: NULL or a box that the case keeps.
    let quant = unsafe { tensor.quant.as_ref()? };
    let [x, y, z, w] = quant.stride;
    let group = |i: i64, size: i32, stride: i64| if stride == 0 { 0 } else { i / i64::from(size) * stride };
    let at = entry * x + head * y + group(row, quant.group_tokens, z) + group(d, quant.group_dims, w);
    Some(quant.scale.wrapping_offset(at as isize) as usize)
}

/// An element as it is stored.
fn stored(dtype: i32, row: usize, d: i64) -> f64 {
    let [elements, bytes] = block(dtype);
    let block = (row as i64 + d / elements * bytes) as *const u8;
    // SAFETY: an element of a row of a live tensor.
    unsafe {
        match dtype {
            F32 => f64::from(block.cast::<f32>().read_unaligned()),
            F16 => block.cast::<f16>().read_unaligned().to_f64(),
            BF16 => block.cast::<bf16>().read_unaligned().to_f64(),
            I8 => f64::from(block.cast::<i8>().read()),
            BOOL8 => f64::from(block.read()),
            _ => {
                let scale = block.cast::<f16>().read_unaligned().to_f64();
                scale * f64::from(block.add(2 + (d % 32) as usize).cast::<i8>().read())
            }
        }
    }
}

/// What an element of a tensor is.
fn value(tensor: &fa_tensor, place: [i64; 2], head: i64, d: i64) -> f64 {
    let x = stored(tensor.dtype, at(tensor, place, head), d);
    let Some(scale) = scale_at(tensor, place, head, d) else { return x };
    // SAFETY: as in `scale_at`; zeros lie as scales do.
    unsafe {
        let quant = &*tensor.quant;
        let index = (scale - quant.scale as usize) / 4;
        let zero = if quant.zero.is_null() { 0.0 } else { f64::from(*quant.zero.add(index)) };
        (x - zero) * f64::from(*(scale as *const f32))
    }
}

fn empty() -> fa_attention {
    let mut a = std::mem::MaybeUninit::uninit();
    // SAFETY: `a` is as large as it says, and filled on success.
    unsafe {
        assert_eq!(fa_attention_init(a.as_mut_ptr(), size_of::<fa_attention>()), fa_status::FA_OK);
        a.assume_init()
    }
}

fn why(a: &fa_attention) -> String {
    let mut words = [0u8; 300];
    // SAFETY: room for that many bytes.
    unsafe { fa_attention_check(a, words.as_mut_ptr().cast(), words.len()) };
    CStr::from_bytes_until_nul(&words).unwrap().to_str().unwrap().to_owned()
}

/// Scratch memory as bad as a caller may bring it: misaligned, full of NaN, and no byte too long.
struct Workspace {
    memory: Vec<u8>,
    size: usize,
}

impl Workspace {
    fn of(a: &fa_attention, n: i32) -> Workspace {
        let mut size = 0;
        // SAFETY: both pointers lead to locals.
        let status = unsafe { fa_attention_workspace(a, n, &mut size) };
        assert_eq!(status, fa_status::FA_OK, "{}", why(a));
        Workspace { memory: vec![0xff; size + 1], size }
    }

    fn at(&mut self) -> *mut c_void {
        self.memory[1..].as_mut_ptr().cast()
    }
}

#[test]
fn random_descriptions_agree_with_the_definition_however_they_are_run() {
    let mut pool = ptr::null_mut();
    // SAFETY: `pool` is writable.
    assert_eq!(unsafe { fa_pool_create(3, &mut pool) }, fa_status::FA_OK);
    // Seeds are numbers; a failure prints its own.
    for seed in 0..3000 {
        let mut case = Case::random(seed);
        for isa in [c"avx512bf16", c"avx512vnni", c"avx512", c"avx2", c"scalar"] {
            // SAFETY: a string.
            assert_eq!(unsafe { fa_limit_isa(isa.as_ptr()) }, fa_status::FA_OK);
            // SAFETY: a static string.
            if unsafe { CStr::from_ptr(fa_isa()) } != isa {
                continue;
            }
            let how = isa.to_str().unwrap();
            case.blank();
            case.run(ptr::null(), 1);
            if !why(&case.a).starts_with(how) {
                // Computed by another one.
                continue;
            }
            case.check(how);
            let once = case.outputs();
            let same = |case: &Case, how: &str| {
                let now = case.outputs();
                assert!(now.0 == once.0 && same_bits(&now.1, &once.1), "seed {seed}: {how}");
            };
            case.blank();
            case.run(pool, 3);
            same(&case, "a pool");
            for n in [1, 2, 5] {
                case.blank();
                case.run_in_parts(n);
                same(&case, "parts");
            }
            // The block that is chosen for a sequence does not depend on the others; nor does anything else.
            case.blank();
            for b in 0..case.a.batch {
                case.run_alone(b);
            }
            same(&case, "each sequence alone");
        }
    }
    // SAFETY: nothing uses the pool any more.
    unsafe { fa_pool_destroy(pool) };
}

/// What is seen counts, even if nothing comes of it: a row without a finite score is not a row that sees
/// nothing.
#[test]
fn rows_that_see_only_infinities_or_nan_are_not_empty() {
    // On both paths: many rows, and two.
    let (rows, keys, dim) = (64usize, 20usize, 8usize);
    for (k, len_q) in [(f32::NEG_INFINITY, rows), (f32::NAN, rows), (f32::NEG_INFINITY, 2), (f32::NAN, 2)] {
        let (q, k, v) = (vec![1f32; rows * dim], vec![k; keys * dim], vec![1f32; keys * dim]);
        let mut o = vec![0f32; rows * dim];
        let mut lse = vec![0f32; rows];
        // Row 1 sees no key at all.
        let mask: Vec<u8> = (0..rows * keys).map(|at| u8::from(at / keys != 1)).collect();
        let tensor = |data: *const f32| fa_tensor {
            data: data.cast_mut().cast(),
            stride: [0, 0, 4 * dim as i64],
            ..fa_tensor::NONE
        };
        let mut a = empty();
        (a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv) = (1, 1, 1, len_q as i64, keys as i64);
        (a.dim_qk, a.dim_v) = (dim as i64, dim as i64);
        (a.q, a.k, a.v) = (tensor(q.as_ptr()), tensor(k.as_ptr()), tensor(v.as_ptr()));
        (a.o, a.lse, a.lse_stride) = (tensor(o.as_mut_ptr()), lse.as_mut_ptr(), [0, 0, 1]);
        a.mask = fa_tensor {
            data: mask.as_ptr().cast_mut().cast(),
            stride: [0, 0, keys as i64],
            dtype: BOOL8,
            ..fa_tensor::NONE
        };
        let mut ws = Workspace::of(&a, 1);
        // SAFETY: a description of live memory.
        let status = unsafe { fa_attention_run(&a, ws.at(), ws.size, ptr::null()) };
        assert_eq!(status, fa_status::FA_OK, "{}", why(&a));
        for row in 0..len_q {
            let (o, lse) = (&o[row * dim..][..dim], lse[row]);
            if row == 1 {
                assert!(
                    o.iter().all(|&x| x == 0.0) && lse == f32::NEG_INFINITY,
                    "{len_q} rows: {o:?}, {lse}"
                );
            } else {
                assert!(o.iter().all(|x| x.is_nan()), "{len_q} rows, row {row}: {o:?}");
            }
        }
    }
}

/// Only -inf hides a key: what frameworks write for "masked" may be the least finite number, and then a row of
/// nothing else sees all keys alike. Factors as large as f32 has overflow nowhere.
#[test]
fn the_largest_finite_biases_are_numbers_like_others() {
    let (keys, dim) = (20usize, 8usize);
    for len_q in [64usize, 2] {
        let (q, k) = (vec![0.5f32; len_q * dim], vec![0.25f32; keys * dim]);
        let v: Vec<f32> = (0..keys * dim).map(|at| (at / dim) as f32).collect();
        let mut o = vec![0f32; len_q * dim];
        let mut lse = vec![0f32; len_q];
        let tensor = |data: *const f32| fa_tensor {
            data: data.cast_mut().cast(),
            stride: [0, 0, 4 * dim as i64],
            ..fa_tensor::NONE
        };
        let mut a = empty();
        (a.batch, a.heads_q, a.heads_kv, a.len_q, a.len_kv) = (1, 1, 1, len_q as i64, keys as i64);
        (a.dim_qk, a.dim_v, a.q_pos) = (dim as i64, dim as i64, 3);
        (a.q, a.k, a.v) = (tensor(q.as_ptr()), tensor(k.as_ptr()), tensor(v.as_ptr()));
        (a.o, a.lse, a.lse_stride) = (tensor(o.as_mut_ptr()), lse.as_mut_ptr(), [0, 0, 1]);
        let mean = (keys - 1) as f32 / 2.0;
        let run = |a: &fa_attention, expected: &dyn Fn(usize) -> f32, what: &str| {
            let mut ws = Workspace::of(a, 1);
            // SAFETY: a description of live memory.
            let status = unsafe { fa_attention_run(a, ws.at(), ws.size, ptr::null()) };
            assert_eq!(status, fa_status::FA_OK, "{}", why(a));
            for row in 0..len_q {
                // SAFETY: the outputs that the description points to.
                let (o, lse) = unsafe { (*a.o.data.cast::<f32>().add(row * dim), *a.lse.add(row)) };
                assert!((o - expected(row)).abs() < 1e-4, "{what}, {len_q} rows, row {row}: {o}");
                assert!(!lse.is_nan() && lse.abs() < f32::INFINITY, "{what}, {len_q} rows: LSE {lse}");
            }
        };
        let mask: Vec<f32> = vec![f32::MIN; keys];
        a.mask.data = mask.as_ptr().cast_mut().cast();
        run(&a, &|_| mean, "a mask of the least numbers");
        let mut mask = mask;
        mask[5] = f32::MAX;
        a.mask.data = mask.as_ptr().cast_mut().cast();
        run(&a, &|_| 5.0, "a mask with the largest number");
        let slope = [f32::MAX];
        a.alibi_slopes = slope.as_ptr();
        a.mask.data = ptr::null_mut();
        // Rows behind the last key are too far from all keys to tell them apart.
        run(&a, &|row| if row + 3 < keys { (row + 3) as f32 } else { mean }, "the largest slope");
        a.alibi_slopes = ptr::null();
        a.softcap = f32::MAX;
        run(&a, &|_| mean, "the largest softcap");
    }
}
