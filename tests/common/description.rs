//! Random descriptions of all features, with the memory that they point to; for the general call's
//! test and for fuzzing.

#![allow(dead_code, unreachable_pub, reason = "a module of its own where this is included")]

use std::collections::HashSet;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use flash_attention::capi::attention::{
    FA_FAST, FA_MASK_TIMES_SLOPE, FA_NO_LIMIT, FA_POS_END, FA_PRECISE, fa_attention, fa_attention_init,
};
use flash_attention::capi::isa::{fa_isa, fa_limit_isa};
use flash_attention::capi::pool::fa_pool;
use flash_attention::capi::run::{
    fa_attention_check, fa_attention_finish, fa_attention_part, fa_attention_run, fa_attention_workspace,
    run_as_on,
};
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::{fa_quant, fa_tensor};
use flash_attention::kernel;
use flash_attention::machine::Machine;
use flash_attention::pool::Own;
use flash_attention::tuning::Tuning;
use half::{bf16, f16};

use super::common::{Random, is_tested, same_bits};
use super::definition::{
    BF16, BLOCKS, BOOL8, Definition, F8_E4M3, F8_E5M2, F16, F32, I8, IQ4_NL, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,
    Q15, U8, at, block, element_at, scale_at,
};

/// A description and the memory that it points to.
pub struct Case {
    pub a: fa_attention,
    /// For messages.
    label: String,
    /// Largest magnitude of the values.
    largest: f64,
    /// Kept for the pointers' sake; vectors and boxes do not move their contents.
    _inputs: Vec<Vec<u8>>,
    _lists: Vec<Vec<f32>>,
    _lens: Vec<Vec<i32>>,
    #[expect(clippy::vec_box, reason = "there are pointers to them")]
    _quants: Vec<Box<fa_quant>>,
    mask: Vec<u8>,
    _cells: Vec<u8>,
    o: Vec<u8>,
    lse: Vec<f32>,
    weights: Vec<f32>,
}

/// Descriptions that were computed with the keys of several kv heads in turns.
pub static IN_TURNS: AtomicUsize = AtomicUsize::new(0);

/// What outputs hold before: in bytes, and as f32.
const BEFORE: u8 = 0xa5;
const LSE_BEFORE: f32 = -7.0e30;
/// A score that shows, if it is taken for one.
const WEIGHT_BEFORE: f32 = 9.5;

/// Where numbers come from.
pub trait Choose {
    /// One from 0 to `n` - 1.
    fn number(&mut self, n: i64) -> i64;

    fn from(&mut self, low: i64, high: i64) -> i64 {
        low + self.number(high - low)
    }
    fn chance(&mut self, percent: i64) -> bool {
        self.number(100) < percent
    }
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.number(choices.len() as i64) as usize]
    }
}

impl Choose for Random {
    fn number(&mut self, n: i64) -> i64 {
        self.below(n as usize) as i64
    }
}

/// What a description is like comes from `choices`, two bytes each, as far as there are some; what
/// is in its tensors and lists, and the rest, from `random`.
pub struct Chooser<'a> {
    pub choices: &'a [u8],
    pub random: Random,
}

impl Choose for Chooser<'_> {
    fn number(&mut self, n: i64) -> i64 {
        match self.choices.split_first_chunk() {
            Some((&bytes, rest)) => {
                self.choices = rest;
                i64::from(u16::from_le_bytes(bytes)) % n
            }
            None => self.random.number(n),
        }
    }
}

impl Case {
    /// The same for the same seed.
    pub fn random(seed: u64) -> Case {
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let many_keys = seed % 25 == 24;
        Case::chosen(Chooser { choices: &[], random }, many_keys, format!("seed {seed}"), |_| true).unwrap()
    }

    /// One with many keys, or with few; None if its description, which has everything but tensors
    /// and pages, is not `wanted`.
    pub fn chosen(
        mut c: Chooser,
        many_keys: bool,
        label: String,
        wanted: impl Fn(&fa_attention) -> bool,
    ) -> Option<Case> {
        let mut a = empty();
        a.batch = c.from(1, 4);
        a.heads_kv = c.from(1, 4);
        a.heads_q = a.heads_kv * c.from(1, 4);
        a.len_q = c.of(&[0, 1, 1, 2, 3, 5, 16, 17, 20, 33, 70]);
        a.len_kv = c.of(&[0, 1, 2, 7, 16, 31, 64, 100, 270]);
        if many_keys {
            // So many that they are divided among threads, in chunks that need not end where
            // sequences do.
            a.batch = c.from(1, 3);
            a.len_q = c.of(&[1, 1, 2, 5, 8, 16, 20, 33]);
            a.len_kv = c.of(&[513, 3000, 9001, 20_000]);
        }
        a.dim_qk = c.of(&[1, 2, 7, 8, 16, 17, 32, 40, 64]);
        a.dim_v = if c.chance(50) { a.dim_qk } else { c.of(&[1, 3, 8, 16, 19, 64]) };
        a.scale = c.of(&[0.0, 0.3, -0.2, 1.0]);
        a.q_pos = match c.number(5) {
            0 => 0,
            1 => a.len_kv - a.len_q,
            2 => c.from(-20, 0),
            _ => FA_POS_END,
        };
        a.flags = c.of(&[0, 0, FA_PRECISE, FA_FAST]);
        let limits = [FA_NO_LIMIT, FA_NO_LIMIT, 0, 0, 1, 5, 40];
        a.window_left = c.of(&limits);
        a.window_right = c.of(&limits);
        if many_keys {
            a.window_left = c.of(&[FA_NO_LIMIT, FA_NO_LIMIT, 100, 5000]);
        }
        a.block_kv = c.of(&[0, 0, 1, 3, 16, 50]);
        a.block_q = c.of(&[0, 0, 1, 20]);
        if !wanted(&a) {
            return None;
        }

        let mut lens = Vec::new();
        let batch = a.batch as usize;
        let starts = |c: &mut Chooser, len: i64| {
            let mut at = c.number(3);
            let mut starts = vec![at as i32];
            for _ in 0..batch {
                at += c.number(len + 1);
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
            let list = (0..batch).map(|b| c.number(most(b) + 1) as i32).collect::<Vec<_>>();
            lens.push(list);
            a.kv_lens = lens.last().unwrap().as_ptr();
        }

        let keys_in_use =
            |a: &fa_attention| -> Vec<i64> { (0..a.batch).map(|b| Definition(a).keys_in_use(b)).collect() };
        if c.chance(25) {
            let first = |keys: &i64| c.number(keys + 1).min(c.number(keys + 1)) as i32;
            let list = keys_in_use(&a).iter().map(first).collect::<Vec<_>>();
            lens.push(list);
            a.kv_starts = lens.last().unwrap().as_ptr();
        }
        if c.chance(20) {
            a.q_pos = c.of(&[0, FA_POS_END]);
            lens.push((0..batch).map(|_| c.number(a.len_kv + 30) as i32 - 20).collect());
            a.q_positions = lens.last().unwrap().as_ptr();
        }
        if c.chance(25) {
            a.prefix_keys = c.of(&[1, 4, 17, 60, i64::MAX]);
            if a.window_left == FA_NO_LIMIT && c.chance(70) {
                a.window_left = c.of(&[0, 3, 20]);
            }
        }
        if c.chance(25) {
            let mut bounds = vec![0; 2 * c.number(3) as usize];
            let count = |bounds: &[i32]| bounds.len() as i32 / 2;
            let mut starts = vec![count(&bounds)];
            for _ in 0..batch {
                // Some begin behind the last key, some are empty.
                let mut at = 0;
                for _ in 0..c.of(&[0, 1, 2, 5]) {
                    for _ in 0..2 {
                        at += c.of(&[0, 1, 7, 20, 90]);
                        bounds.push(at);
                    }
                }
                starts.push(count(&bounds));
            }
            // As long as they are read: one that is not there would be read beyond the allocation.
            lens.push(bounds);
            a.spans = lens.last().unwrap().as_ptr();
            lens.push(starts);
            a.span_starts = lens.last().unwrap().as_ptr();
        }

        if a.cu_len_kv.is_null() && c.chance(30) {
            a.page_size = c.of(&[1, 2, 3, 16, 40]);
            let used = |b: usize| match a.kv_lens.is_null() {
                true => a.len_kv,
                // SAFETY: [batch] values.
                false => unsafe { i64::from(*a.kv_lens.add(b)) },
            };
            let needed: Vec<i64> = (0..batch).map(|b| (used(b) + a.page_size - 1) / a.page_size).collect();
            a.num_pages = needed.iter().sum::<i64>() + c.number(3);
            // Every page once, in any order.
            let mut free: Vec<i32> = (0..a.num_pages as i32).collect();
            let mut page = |c: &mut Chooser| free.swap_remove(c.random.number(free.len() as i64) as usize);
            let garbage = [-1, 1 << 30, i32::MIN];
            // Pages without a key that is seen may be gone.
            let gone: Vec<i64> = (0..a.batch)
                .map(|b| match Definition(&a).first_key(b) {
                    first if first == Definition(&a).keys_in_use(b) => needed[b as usize],
                    first => first / a.page_size,
                })
                .collect();
            // Kv heads with lists of their own have the same pages, each in an order of its own.
            let lists = if c.chance(30) { a.heads_kv } else { 1 };
            if lists > 1 {
                a.table_head_stride = needed.iter().max().unwrap() + c.number(2);
            }
            let mut table = Vec::new();
            let mut fill = |c: &mut Chooser, table: &mut Vec<i32>, n: i64, gone: i64, of_head: i64| {
                let pages: Vec<i32> = (gone..n).map(|_| page(c)).collect();
                for list in 0..lists {
                    let mut rest = pages.clone();
                    table.extend((0..gone).map(|_| c.random.of(&garbage)));
                    if list == 0 {
                        table.extend(&pages);
                    } else {
                        let mut any = || rest.swap_remove(c.random.number(rest.len() as i64) as usize);
                        table.extend((gone..n).map(|_| any()));
                    }
                    if list < lists - 1 {
                        table.extend((n..of_head).map(|_| c.random.of(&garbage)));
                    }
                }
            };
            let of_head = a.table_head_stride;
            if c.chance(50) {
                let most = needed.iter().max().unwrap();
                a.table_stride = (lists - 1) * of_head + most + c.number(3);
                for (b, (&n, &gone)) in needed.iter().zip(&gone).enumerate() {
                    fill(&mut c, &mut table, n, gone, of_head);
                    table.resize((b + 1) * a.table_stride as usize, c.random.of(&garbage));
                }
            } else {
                let mut starts = vec![0];
                for (&n, &gone) in needed.iter().zip(&gone) {
                    fill(&mut c, &mut table, n, gone, of_head);
                    table.extend((0..c.number(2)).map(|_| c.random.of(&garbage)).collect::<Vec<_>>());
                    starts.push(table.len() as i32);
                }
                lens.push(starts);
                a.block_table_start = lens.last().unwrap().as_ptr();
            }
            // A kv head alone begins with its own list, and says that the table has as many
            // entries.
            table.resize(table.len() + ((lists - 1) * of_head) as usize, -1);
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
        let types = match c.number(11) {
            0..4 => vec![F32],
            4..6 => {
                vec![F32, F16, BF16, I8, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, F8_E4M3, F8_E5M2, U8, Q15]
            }
            // Few rows of these are multiplied as integers.
            6 => BLOCKS.to_vec(),
            7 => vec![I8, U8, U8, F8_E4M3, F8_E5M2, Q15, Q15],
            _ => vec![I8],
        };
        let mut input = |c: &mut Chooser, which: usize, extent: [i64; 3], dim: i64, broadcast: bool| {
            let mut dtype = if which == 0 && types[0] == I8 { c.of(&[F32, BF16, I8]) } else { c.of(&types) };
            if dim % block(dtype)[0] != 0 {
                dtype = I8;
            }
            let [elements, bytes] = block(dtype);
            let row = dim / elements * bytes;
            // Blocks begin with a number of 2 bytes.
            let is_blocks = BLOCKS.contains(&dtype);
            let (mut stride, _) = strides(c, extent, row, if is_blocks { 2 } else { bytes.min(4) });
            let (mut row, mut apart) = (row, 0);
            if which > 0 && !is_blocks && c.chance(30) {
                (stride, apart) = strided(c, extent, dim, bytes);
                row = (dim - 1) * apart + bytes;
            }
            if broadcast && c.chance(20) {
                stride[c.number(2) as usize] = 0;
            }
            // As many as are reached: a read beyond is a read beyond the allocation.
            let reached = (0..3).map(|i| (extent[i] - 1) * stride[i]).sum::<i64>() + row;
            let mut data = vec![0u8; if extent.contains(&0) { 0 } else { reached as usize }];
            let stride_dim = apart as i32;
            let mut tensor =
                fa_tensor { data: data.as_mut_ptr().cast(), stride, dtype, stride_dim, ..fa_tensor::NONE };
            let is_scaled = [I8, U8, F8_E4M3, F8_E5M2, Q15].contains(&dtype) && c.chance(80);
            if is_blocks {
                // Blocks begin where rows do.
                for_rows(&tensor, extent, |at| {
                    for at in (0..row).step_by(bytes as usize).map(|block| at as i64 + block) {
                        // SAFETY: a block of a row.
                        let block = unsafe { std::slice::from_raw_parts_mut(at as *mut u8, bytes as usize) };
                        largest = largest.max(fill(&mut c.random, dtype, false, block));
                    }
                });
            } else {
                for x in data.chunks_mut(bytes as usize) {
                    largest = largest.max(fill(&mut c.random, dtype, is_scaled, x));
                }
            }
            if is_scaled {
                let (mut quant, list, most) = scales(c, extent, dim, packed[which]);
                largest = largest.max(f64::from(most) * if dtype == U8 { 264.0 } else { 137.0 });
                if ![I8, U8].contains(&dtype) {
                    quant.zero = ptr::null();
                }
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
        a.o.dtype = if types == [F32] { F32 } else { c.of(&[F32, F16, BF16, Q15]) };
        if a.o.dtype == Q15 && c.chance(70) {
            let (mut quant, mut list, _) = scales(&mut c, extent, a.dim_v, packed[0]);
            // Such that outputs fill the fractions, and some exceed them.
            list[0].iter_mut().for_each(|x| *x *= 150.0);
            quant.zero = ptr::null();
            lists.extend(list);
            quants.push(Box::new(quant));
            a.o.quant = &**quants.last().unwrap();
        }
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
            if ![F32, F16, BF16, BOOL8].contains(&a.mask.dtype) {
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
                let hides = c.random.chance(hidden);
                let number = if hides { f32::NEG_INFINITY } else { c.random.normal() };
                match a.mask.dtype {
                    BOOL8 => x[0] = if hides { 0 } else { c.random.from(1, 256) as u8 },
                    F16 => x.copy_from_slice(&f16::from_f32(number).to_ne_bytes()),
                    BF16 => x.copy_from_slice(&bf16::from_f32(number).to_ne_bytes()),
                    _ => x.copy_from_slice(&number.to_ne_bytes()),
                }
            }
            (a.mask.stride, a.mask.data) = (stride, mask.as_mut_ptr().cast());
            // Some leave a range of keys to each row, as windows do: what is hidden beside it may
            // be whole blocks, and within it nothing may be left to mask.
            if c.chance(50) {
                let (width, step) = (c.from(1, a.len_kv + 1), c.from(0, 4));
                let (first, is_plain) = (c.number(a.len_kv), c.chance(60));
                let mut row = 0;
                for_rows(&a.mask, queries, |at| {
                    let low = (first + row % a.len_q.max(1) * step) % a.len_kv;
                    row += 1;
                    for j in 0..a.len_kv {
                        let is_seen = (low..low + width).contains(&j);
                        let number = if is_seen { 0.0 } else { f32::NEG_INFINITY };
                        if is_seen && !is_plain {
                            continue;
                        }
                        let to = (at as i64 + j * element) as *mut u8;
                        // SAFETY: an element of a row of the mask, which `strides` made room for.
                        unsafe {
                            match a.mask.dtype {
                                BOOL8 => to.write(u8::from(is_seen)),
                                F16 => to.cast::<u16>().write_unaligned(f16::from_f32(number).to_bits()),
                                BF16 => to.cast::<u16>().write_unaligned(bf16::from_f32(number).to_bits()),
                                _ => to.cast::<f32>().write_unaligned(number),
                            }
                        }
                    }
                });
            }
        }
        let mut cells = Vec::new();
        if c.chance(20) && a.len_q * a.len_kv > 0 {
            a.kept_q = c.of(&[1, 5, 16, 32, 100]);
            a.kept_kv = c.of(&[1, 7, 16, 64, 300]);
            a.kept_heads = c.of(&[0, a.heads_q, a.heads_kv, 1]);
            let kept = c.of(&[100, 70, 20, 0]);
            let heads = if a.kept_heads == 0 { a.heads_q } else { a.kept_heads };
            let of_head = (a.len_q + a.kept_q - 1) / a.kept_q;
            let keys = (a.len_kv + a.kept_kv - 1) / a.kept_kv;
            let (starts, blocks, stride) = lists_of(&mut c, [a.batch, heads], of_head, keys, kept);
            a.kept_stride = stride;
            lens.push(starts);
            a.kept_start = lens.last().unwrap().as_ptr();
            lens.push(blocks);
            a.kept_blocks = lens.last().unwrap().as_ptr();
        } else if c.chance(25) && a.len_q * a.len_kv > 0 {
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
            cells = (0..bytes)
                .map(|_| if c.random.chance(hidden) { 0 } else { c.random.from(1, 256) as u8 })
                .collect();
            (a.block_mask, a.block_mask_stride) = (cells.as_ptr(), stride);
        }
        let has_columns = mask.is_empty() && a.len_kv > 0 && c.chance(25);
        if has_columns {
            a.column_heads = c.of(&[0, a.heads_q, a.heads_kv, 1]);
            let heads = if a.column_heads == 0 { a.heads_q } else { a.column_heads };
            let percent = c.of(&[100, 40, 10, 0]);
            let (starts, columns, stride) = lists_of(&mut c, [a.batch, heads], 1, a.len_kv, percent);
            a.column_stride = stride;
            lens.push(starts);
            a.column_start = lens.last().unwrap().as_ptr();
            lens.push(columns);
            a.columns = lens.last().unwrap().as_ptr();
        }
        if !has_columns && c.chance(25) {
            let per_batch = c.chance(50);
            lists.push(
                (0..a.heads_q * if per_batch { a.batch } else { 1 })
                    .map(|_| c.random.of(&[0.0, 0.02, 0.5, -0.1]))
                    .collect(),
            );
            a.alibi_slopes = lists.last().unwrap().as_ptr();
            a.alibi_batch_stride = if per_batch { a.heads_q } else { 0 };
            if !mask.is_empty() && a.mask.dtype != BOOL8 && c.chance(50) {
                a.flags |= FA_MASK_TIMES_SLOPE;
            }
        }
        if c.chance(25) {
            lists.push(
                (0..a.heads_q).map(|_| c.random.of(&[0.0, 2.5, -3.0, 30.0, f32::NEG_INFINITY])).collect(),
            );
            a.sinks = lists.last().unwrap().as_ptr();
        }
        // Probabilities of some heads and rows, or of all. Longer outputs would take all the time.
        let mut weights = Vec::new();
        let room = a.batch * a.heads_q * a.len_q * a.len_kv <= 1 << 18;
        if !has_columns && c.chance(if room { 40 } else { 10 }) {
            let some = |c: &mut Chooser, n: i64, is_from_end: bool| -> Vec<i32> {
                let first = if is_from_end { -n } else { 0 };
                let percent = if room { c.of(&[20, 50, 90]) } else { 100 / n.max(1) };
                let chosen = (first..first + n).filter(|_| c.chance(percent)).collect::<Vec<_>>();
                let one = || vec![first + (n - 1) / 2];
                let chosen = if chosen.is_empty() && n > 0 { one() } else { chosen };
                chosen.into_iter().map(|x| x as i32).collect()
            };
            let mut extent = [a.batch, a.heads_q, a.len_q];
            if c.chance(50) || !room {
                lens.push(some(&mut c, a.heads_q, false));
                (a.weight_heads, extent[1]) =
                    (lens.last().unwrap().as_ptr(), lens.last().unwrap().len() as i64);
                a.num_weight_heads = extent[1];
            } else {
                a.num_weight_heads = c.of(&[0, a.heads_q]);
            }
            if a.len_q > 0 && (c.chance(50) || !room) {
                let is_from_end = c.chance(40);
                lens.push(some(&mut c, a.len_q, is_from_end));
                (a.weight_rows, extent[2]) =
                    (lens.last().unwrap().as_ptr(), lens.last().unwrap().len() as i64);
                a.num_weight_rows = extent[2];
            } else {
                a.num_weight_rows = c.of(&[0, a.len_q]);
            }
            let (stride, bytes) = strides(&mut c, extent, 4 * a.len_kv, 4);
            // An element more, so that there is an address without elements, too.
            weights = vec![WEIGHT_BEFORE; bytes / 4 + 1];
            (a.weights.data, a.weights.stride) = (weights.as_mut_ptr().cast(), stride);
        }
        // Some say how much memory there is.
        if c.chance(40) {
            let [q, k, v] = [0, 1, if a.v.data == a.k.data { 1 } else { 2 }].map(|i| inputs[i].len() as i64);
            (a.q_bytes, a.k_bytes, a.v_bytes, a.o_bytes) = (q, k, v, o.len() as i64);
            (a.mask_bytes, a.lse_bytes) = (mask.len() as i64, 4 * lse.len() as i64);
            a.weights_bytes = 4 * weights.len() as i64;
        }
        let mut case = Case {
            a,
            label,
            largest,
            _inputs: inputs,
            _lists: lists,
            _lens: lens,
            _quants: quants,
            mask,
            _cells: cells,
            o,
            lse,
            weights,
        };
        case.poison();
        Some(case)
    }

    /// NaN in every key and value that nothing sees, and in every number of the mask that is not
    /// looked at; in the scales of integers that nothing sees.
    fn poison(&mut self) {
        let mut looked_at = HashSet::new();
        let [x, y, z] = self.a.mask.stride;
        let [_, element] = block(self.a.mask.dtype);
        for b in 0..self.a.batch {
            for h in 0..self.a.heads_q {
                for i in 0..Definition(&self.a).queries_of(b) {
                    for j in Definition(&self.a).window(b, h, i) {
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
        let mut seen = HashSet::new();
        let mut scales = HashSet::new();
        Definition(&self.a).pairs(|b, h, _, keys| {
            let kv = h / (a.heads_q / a.heads_kv);
            for j in keys {
                for (tensor, dim) in [(&a.k, a.dim_qk), (&a.v, a.dim_v)] {
                    let place = Definition(&self.a).key_at(b, kv, j);
                    seen.insert(at(tensor, place, kv));
                    scales.extend((0..dim).filter_map(|d| scale_at(tensor, place, kv, d)));
                }
            }
        });
        let is_paged = !a.block_table.is_null();
        for b in 0..if is_paged { a.num_pages } else { a.batch } {
            for kv in 0..a.heads_kv {
                for j in 0..if is_paged { a.page_size } else { Definition(&self.a).keys_of(b) } {
                    for (tensor, dim) in [(&a.k, a.dim_qk), (&a.v, a.dim_v)] {
                        let place = if is_paged { [b, j] } else { Definition(&self.a).key_at(b, kv, j) };
                        let row = at(tensor, place, kv);
                        let [elements, bytes] = block(tensor.dtype);
                        if !seen.contains(&row) {
                            // Not a number in every format of floating point, scales of blocks
                            // included.
                            for d in (0..dim).step_by(elements as usize) {
                                let (at, d) = element_at(tensor, row, d);
                                let at = (at as i64 + d / elements * bytes) as *mut u8;
                                // SAFETY: an element, or a block, of a row of the tensor.
                                unsafe { at.write_bytes(0xff, bytes as usize) };
                            }
                        }
                        for scale in (0..dim).filter_map(|d| scale_at(tensor, place, kv, d)) {
                            // SAFETY: a list of scales that we made; one shared by all must be
                            // finite.
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

    /// Runs it on every instruction set that the machine has and that computes it, in all ways:
    /// right, with the same bits, and nothing else written.
    pub fn check_everywhere(&mut self, pool: *const fa_pool, width: i32) {
        let x86 = [c"amx", c"avx512bf16", c"avx512vnni", c"avx512", c"avxvnni", c"avx2"];
        let arm = [c"neon-bf16", c"neon-i8mm", c"neon-dotprod", c"neon"];
        let all = x86.into_iter().chain(arm).chain([c"simd128", c"scalar"]);
        // Machines of one architecture, unit tests and development builds have some of them only.
        let is_built = |isa: &&CStr| kernel::all().any(|kernel| kernel.isa() == *isa);
        for isa in all.filter(is_built).filter(|isa| is_tested(isa)) {
            // SAFETY: a string.
            assert_eq!(unsafe { fa_limit_isa(isa.as_ptr()) }, fa_status::FA_OK);
            // SAFETY: a static string.
            if unsafe { CStr::from_ptr(fa_isa()) } != isa {
                continue;
            }
            let how = isa.to_str().unwrap();
            self.blank();
            self.run(ptr::null(), 1);
            if !why(&self.a).starts_with(how) {
                // Computed by another one.
                continue;
            }
            self.check(how);
            let once = self.outputs();
            let same = |case: &Case, what: &str| {
                let now = case.outputs();
                let same = now.0 == once.0 && same_bits(&now.1, &once.1) && same_bits(&now.2, &once.2);
                assert!(same, "{}, {how}: {what}", case.label);
            };
            self.blank();
            self.run(pool, width);
            same(self, "a pool");
            for n in [1, 2, 5] {
                self.blank();
                self.run_in_parts(n);
                same(self, "parts");
            }
            // The block that is chosen for a sequence does not depend on the others; nor does
            // anything else.
            self.blank();
            for b in 0..self.a.batch {
                self.run_alone(b);
            }
            same(self, "each sequence alone");
            // Nor on the other heads, with which it may share vectors; only the path may.
            self.blank();
            let alone = (0..self.a.heads_q).all(|h| self.run_head_alone(h));
            if alone {
                same(self, "each head alone");
            }
            // Nor on the order in which the keys of several heads are read.
            for threads in [1, 3] {
                self.blank();
                if self.run_in_turns(threads) == 1 {
                    break;
                }
                same(self, "kv heads in turns");
                IN_TURNS.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Computes it with the keys of several kv heads in turns, if it can be. Returns how many heads
    /// took turns.
    fn run_in_turns(&self, threads: usize) -> usize {
        static TUNING: OnceLock<Tuning> = OnceLock::new();
        let mut machine = Machine::get();
        machine.tuning = TUNING.get_or_init(|| {
            let mut tuning = *machine.tuning;
            tuning.decode.together_above = 0;
            tuning
        });
        // SAFETY: a description of live memory.
        let plan = unsafe { run_as_on(machine, &self.a, threads, &Own) };
        plan.unwrap().partition.decode.kv_heads
    }

    /// Checks the outputs, and that nothing else was written.
    fn check(&self, isa: &str) {
        let mut o_left = self.o.clone();
        let mut lse_left = self.lse.clone();
        let lse_bytes = self.lse.as_ptr_range();
        let mut weights_left = self.weights.clone();
        let weights_bytes = self.weights.as_ptr_range();
        Definition(&self.a).check(isa, self.largest, &self.label, |at, bytes| {
            if (lse_bytes.start as usize..lse_bytes.end as usize).contains(&at) {
                lse_left[(at - lse_bytes.start as usize) / 4] = LSE_BEFORE;
            } else if (weights_bytes.start as usize..weights_bytes.end as usize).contains(&at) {
                weights_left[(at - weights_bytes.start as usize) / 4..][..bytes / 4].fill(WEIGHT_BEFORE);
            } else {
                o_left[at - self.o.as_ptr() as usize..][..bytes].fill(BEFORE);
            }
        });
        let untouched = o_left.iter().all(|&x| x == BEFORE)
            && lse_left.iter().all(|&x| x == LSE_BEFORE)
            && weights_left.iter().all(|&x| x == WEIGHT_BEFORE);
        assert!(untouched, "{}, {isa}: wrote beside the outputs", self.label);
    }

    fn blank(&mut self) {
        self.o.fill(BEFORE);
        self.lse.fill(LSE_BEFORE);
        self.weights.fill(WEIGHT_BEFORE);
    }

    fn outputs(&self) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
        (self.o.clone(), self.lse.clone(), self.weights.clone())
    }

    fn run(&self, pool: *const fa_pool, width: i32) {
        let mut ws = Workspace::of(&self.a, width);
        // SAFETY: a description of live memory.
        let status = unsafe { fa_attention_run(&self.a, ws.at(), ws.size, pool) };
        assert_eq!(status, fa_status::FA_OK, "{}: {}", self.label, why(&self.a));
    }

    fn run_in_parts(&self, n: i32) {
        let mut ws = Workspace::of(&self.a, n);
        for step in [fa_attention_part, fa_attention_finish] {
            for part in (0..n).rev() {
                // SAFETY: as above.
                let status = unsafe { step(&self.a, ws.at(), ws.size, part, n) };
                assert_eq!(status, fa_status::FA_OK, "{}", self.label);
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
        (a.len_q, a.len_kv) = (Definition(&self.a).queries_of(b), Definition(&self.a).keys_in_use(b));
        for tensor in [&mut a.q, &mut a.o] {
            shift(tensor, Definition(&self.a).query_at(b, 0));
        }
        if a.block_table.is_null() {
            for tensor in [&mut a.k, &mut a.v] {
                shift(tensor, Definition(&self.a).key_at(b, 0, 0));
            }
        } else if a.block_table_start.is_null() {
            a.block_table = a.block_table.wrapping_offset((b * a.table_stride) as isize);
        } else {
            a.block_table_start = a.block_table_start.wrapping_offset(b as isize);
        }
        let own = |list: *const i32| if list.is_null() { list } else { list.wrapping_offset(b as isize) };
        (a.kv_starts, a.q_positions, a.span_starts) =
            (own(a.kv_starts), own(a.q_positions), own(a.span_starts));
        if !a.lse.is_null() {
            let [entry, row] = Definition(&self.a).query_at(b, 0);
            a.lse = a.lse.wrapping_offset((entry * a.lse_stride[0] + row * a.lse_stride[2]) as isize);
        }
        if !a.weights.data.is_null() {
            // Its rows are as long as those of the longest sequence, and lists may name rows that
            // this one does not have: so these sizes stay.
            a.weights.data = a.weights.data.wrapping_byte_offset((b * a.weights.stride[0]) as isize);
        }
        if !a.block_mask.is_null() {
            a.block_mask = a.block_mask.wrapping_offset((b * a.block_mask_stride[0]) as isize);
        }
        if !a.kept_start.is_null() {
            a.kept_start = a.kept_start.wrapping_offset((b * a.kept_stride[0]) as isize);
        }
        if !a.column_start.is_null() {
            a.column_start = a.column_start.wrapping_offset((b * a.column_stride[0]) as isize);
        }
        if !a.mask.data.is_null() {
            a.mask.data = a.mask.data.wrapping_byte_offset((b * a.mask.stride[0]) as isize);
        }
        if !a.alibi_slopes.is_null() {
            a.alibi_slopes = a.alibi_slopes.wrapping_offset((b * a.alibi_batch_stride) as isize);
        }
        (a.cu_len_q, a.cu_len_kv, a.kv_lens) = (ptr::null(), ptr::null(), ptr::null());
        let starts = [[0, a.len_q as i32], [0, a.len_kv as i32]];
        // Lists may have blocks or keys, and weights keys, that this sequence does not.
        if !a.weights.data.is_null() || !a.kept_start.is_null() || !a.column_start.is_null() {
            (a.len_q, a.len_kv) = (self.a.len_q, self.a.len_kv);
            a.cu_len_q = starts[0].as_ptr();
            match a.block_table.is_null() {
                true => a.cu_len_kv = starts[1].as_ptr(),
                false => a.kv_lens = &raw const starts[1][1],
            }
        }
        self.run_other(&a);
    }

    /// Computes query head `h` alone, into the same place, if that takes the same path.
    fn run_head_alone(&self, h: i64) -> bool {
        let mut a = self.a;
        let kv = h / (a.heads_q / a.heads_kv);
        (a.heads_q, a.heads_kv) = (1, 1);
        let mut quants = Vec::new();
        for (tensor, head) in [(&mut a.q, h), (&mut a.o, h), (&mut a.k, kv), (&mut a.v, kv), (&mut a.mask, h)]
        {
            tensor.data = tensor.data.wrapping_byte_offset((head * tensor.stride[1]) as isize);
            if !tensor.quant.is_null() {
                // SAFETY: a box that the case keeps.
                let mut quant = unsafe { *tensor.quant };
                for list in [&mut quant.scale, &mut quant.zero] {
                    if !list.is_null() {
                        *list = list.wrapping_offset((head * quant.stride[1]) as isize);
                    }
                }
                quants.push(Box::new(quant));
                tensor.quant = &**quants.last().unwrap();
            }
        }
        if self.a.mask.data.is_null() {
            a.mask.data = ptr::null_mut();
        }
        let of_head = |list: *const f32| if list.is_null() { list } else { list.wrapping_offset(h as isize) };
        (a.alibi_slopes, a.sinks) = (of_head(a.alibi_slopes), of_head(a.sinks));
        if !a.lse.is_null() {
            a.lse = a.lse.wrapping_offset((h * a.lse_stride[1]) as isize);
        }
        if !a.block_mask.is_null() {
            a.block_mask = a.block_mask.wrapping_offset((h * a.block_mask_stride[1]) as isize);
        }
        if !a.kept_start.is_null() {
            let heads = if a.kept_heads == 0 { self.a.heads_q } else { a.kept_heads };
            let list = h / (self.a.heads_q / heads);
            a.kept_start = a.kept_start.wrapping_offset((list * a.kept_stride[1]) as isize);
            a.kept_heads = 0;
        }
        if !a.column_start.is_null() {
            let heads = if a.column_heads == 0 { self.a.heads_q } else { a.column_heads };
            let list = h / (self.a.heads_q / heads);
            a.column_start = a.column_start.wrapping_offset((list * a.column_stride[1]) as isize);
            a.column_heads = 0;
        }
        a.block_table = a.block_table.wrapping_offset((kv * a.table_head_stride) as isize);
        a.table_head_stride = 0;
        self.weights_of(h, &mut a);
        let decodes = |a: &fa_attention| why(a).contains("decode (");
        // Of a ragged batch sequences take either path, and of any other whose K and V are integers
        // and whose lengths differ.
        let is_float = |tensor: &fa_tensor| [F32, F16, BF16].contains(&tensor.dtype);
        let has_lengths = !a.kv_lens.is_null() || !a.cu_len_kv.is_null();
        let is_mixed = has_lengths && !(is_float(&a.k) && is_float(&a.v));
        let is_same = a.cu_len_q.is_null() && !is_mixed && decodes(&a) == decodes(&self.a);
        if is_same || self.a.heads_q == self.a.heads_kv {
            self.run_other(&a);
            return true;
        }
        false
    }

    /// Lets the description of query head `h` alone write its probabilities, if they are wanted.
    fn weights_of(&self, h: i64, a: &mut fa_attention) {
        if a.weights.data.is_null() {
            return;
        }
        let list = |i: i64| match a.weight_heads.is_null() {
            true => i,
            // SAFETY: as many heads as the description says.
            false => i64::from(unsafe { *a.weight_heads.offset(i as isize) }),
        };
        let n = if a.weight_heads.is_null() { self.a.heads_q } else { a.num_weight_heads };
        match (0..n).find(|&i| list(i) == h) {
            Some(i) => {
                let bytes = i * a.weights.stride[1];
                a.weights.data = a.weights.data.wrapping_byte_offset(bytes as isize);
            }
            None => {
                a.weights = fa_tensor::NONE;
                (a.weight_rows, a.num_weight_rows) = (ptr::null(), 0);
            }
        }
        (a.weight_heads, a.num_weight_heads) = (ptr::null(), 0);
    }

    fn run_other(&self, a: &fa_attention) {
        let mut ws = Workspace::of(a, 1);
        // SAFETY: as above.
        let status = unsafe { fa_attention_run(a, ws.at(), ws.size, ptr::null()) };
        assert_eq!(status, fa_status::FA_OK, "{}: {}", self.label, why(a));
    }
}

/// Strides of some layout of these extents with rows of so many bytes, and how many bytes that
/// takes. Distances are multiples of `unit`.
pub fn strides(
    c: &mut impl Choose,
    [entries, heads, rows]: [i64; 3],
    row: i64,
    unit: i64,
) -> ([i64; 3], usize) {
    let row = row + unit * c.of(&[0, 0, 1, 5]);
    let unit = unit as u64;
    let stride = match c.number(3) {
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

/// Strides of some layout of rows whose elements, of so many bytes, do not lie behind one another,
/// and the bytes from one to the next.
pub fn strided(c: &mut impl Choose, [_, heads, rows]: [i64; 3], dim: i64, bytes: i64) -> ([i64; 3], i64) {
    let more = c.of(&[0, 0, 1, 6]);
    let (stride, apart) = match c.number(5) {
        // [entry][head][dim][token].
        0 | 1 => ([heads * dim * (rows + more), dim * (rows + more), 1], rows + more),
        // [entry][dim][head][token].
        2 => ([dim * heads * rows + more, rows, 1], heads * rows),
        // Some elements between those of a row.
        3 => {
            let token = dim * 3 + more;
            ([heads * rows * token, rows * token, token], 3)
        }
        // Both: neither tokens nor elements lie side by side.
        _ => ([heads * dim * rows * 2, dim * rows * 2, 2], rows * 2),
    };
    // Of one token, elements may lie behind one another all the same.
    (stride.map(|n| n * bytes), apart.max(1) * bytes)
}

/// Writes one element (or block) of random data; returns its largest magnitude.
fn fill(random: &mut Random, dtype: i32, is_scaled: bool, to: &mut [u8]) -> f64 {
    match dtype {
        F32 => {
            let x = random.normal();
            to.copy_from_slice(&x.to_ne_bytes());
            f64::from(x.abs())
        }
        F16 => {
            let x = f16::from_f32(random.normal());
            to.copy_from_slice(&x.to_ne_bytes());
            x.to_f64().abs()
        }
        BF16 => {
            let x = bf16::from_f32(random.normal());
            to.copy_from_slice(&x.to_ne_bytes());
            x.to_f64().abs()
        }
        I8 => {
            let most = if is_scaled { 127 } else { 3 };
            to[0] = random.from(-most - 1, most + 1) as i8 as u8;
            if is_scaled { 0.0 } else { 4.0 }
        }
        U8 => {
            to[0] = random.from(0, if is_scaled { 256 } else { 7 }) as u8;
            if is_scaled { 0.0 } else { 6.0 }
        }
        // The extremes often.
        Q15 => {
            let x = match random.from(0, 10) {
                0 => i16::MIN,
                1 => i16::MAX,
                _ => random.from(-32_768, 32_768) as i16,
            };
            to.copy_from_slice(&x.to_ne_bytes());
            if is_scaled { 0.0 } else { 1.0 }
        }
        // Up to 128, as integers with scales; others up to 4.
        F8_E4M3 => {
            to[0] =
                random.from(0, if is_scaled { 0x71 } else { 0x49 }) as u8 | (random.from(0, 2) * 0x80) as u8;
            if is_scaled { 0.0 } else { 4.0 }
        }
        F8_E5M2 => {
            to[0] =
                random.from(0, if is_scaled { 0x59 } else { 0x45 }) as u8 | (random.from(0, 2) * 0x80) as u8;
            if is_scaled { 0.0 } else { 4.0 }
        }
        _ => {
            // Codes of few bits have larger scales, and some of these are negative.
            let [most, factor] = match dtype {
                Q8_0 => [128.0, 1.0],
                Q4_0 | Q4_1 => [15.0, 10.0],
                IQ4_NL => [127.0, -1.0],
                _ => [31.0, -5.0],
            };
            let scale = f16::from_f32(factor * random.from(1, 20) as f32 / 1000.0);
            to.iter_mut().for_each(|x| *x = random.from(-128, 128) as i8 as u8);
            to[..2].copy_from_slice(&scale.to_ne_bytes());
            let minimum = f16::from_f32(random.from(-20, 10) as f32 / 13.0);
            if [Q4_1, Q5_1].contains(&dtype) {
                to[2..4].copy_from_slice(&minimum.to_ne_bytes());
            }
            f64::from(most) * scale.to_f64().abs() + minimum.to_f64().abs()
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
    let scale: Vec<f32> = (0..n).map(|_| c.random.from(5, 20) as f32 / 1000.0).collect();
    let zero: Vec<f32> = (0..n).map(|_| c.random.from(-9, 10) as f32).collect();
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

/// Calls `f` with the address of each row.
fn for_rows(tensor: &fa_tensor, [entries, heads, rows]: [i64; 3], mut f: impl FnMut(usize)) {
    for entry in 0..entries {
        for head in 0..heads {
            (0..rows).for_each(|row| f(at(tensor, [entry, row], head)));
        }
    }
}

pub fn empty() -> fa_attention {
    let mut a = std::mem::MaybeUninit::uninit();
    // SAFETY: `a` is as large as it says, and filled on success.
    unsafe {
        assert_eq!(fa_attention_init(a.as_mut_ptr(), size_of::<fa_attention>()), fa_status::FA_OK);
        a.assume_init()
    }
}

pub fn why(a: &fa_attention) -> String {
    let mut words = [0u8; 300];
    // SAFETY: room for that many bytes.
    unsafe { fa_attention_check(a, words.as_mut_ptr().cast(), words.len()) };
    CStr::from_bytes_until_nul(&words).unwrap().to_str().unwrap().to_owned()
}

/// Scratch memory as bad as a caller may bring it: misaligned, full of NaN, and no byte too long.
pub struct Workspace {
    memory: Vec<u8>,
    pub size: usize,
}

impl Workspace {
    pub fn of(a: &fa_attention, n: i32) -> Workspace {
        let mut size = 0;
        // SAFETY: both pointers lead to locals.
        let status = unsafe { fa_attention_workspace(a, n, &mut size) };
        assert_eq!(status, fa_status::FA_OK, "{}", why(a));
        Workspace { memory: vec![0xff; size + 1], size }
    }

    pub fn at(&mut self) -> *mut c_void {
        self.memory[1..].as_mut_ptr().cast()
    }
}

/// `lists` lists for each of `heads` heads of `batch` sequences, where each of `numbers` numbers is
/// listed with a chance of `percent`: where they begin, the numbers, and strides.
fn lists_of(
    c: &mut Chooser,
    [batch, heads]: [i64; 2],
    lists: i64,
    numbers: i64,
    percent: i64,
) -> (Vec<i32>, Vec<i32>, [i64; 2]) {
    let of_head = lists + 1 + c.number(2);
    let mut stride = [heads * of_head, of_head];
    for stride in &mut stride {
        if c.chance(30) {
            *stride = 0;
        }
    }
    if stride[0] != 0 && stride[1] == 0 {
        stride[0] = of_head;
    }
    // As many as are reached: one that is not there would be read beyond the allocation.
    let reached = (batch - 1) * stride[0] + (heads - 1) * stride[1] + lists + 1;
    let (mut starts, mut listed) = (vec![-1; reached as usize], Vec::new());
    for b in 0..batch {
        for h in 0..heads {
            let first = b * stride[0] + h * stride[1];
            if starts[first as usize] >= 0 {
                continue;
            }
            for at in first..=first + lists {
                starts[at as usize] = listed.len() as i32;
                if at < first + lists {
                    listed.extend((0..numbers).filter(|_| c.random.chance(percent)).map(|n| n as i32));
                }
            }
        }
    }
    (starts, listed, stride)
}
