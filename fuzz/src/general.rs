//! The general call on any description.
//!
//! An input is the bytes of `fa_attention`, field by field, of its quants, and of its lists.
//! Pointers become real ones: see [`crate::pointers`]. Everything else is taken as it comes. The
//! header then says what is legal ([`verdict`]), and the definition in f64 what is right.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr;

use flash_attention::capi::attention::{
    FA_FAST, FA_MASK_TIMES_SLOPE, FA_NO_LIMIT, FA_POS_END, FA_PRECISE, fa_attention,
};
use flash_attention::capi::isa::{fa_isa, fa_limit_isa};
use flash_attention::capi::plan::{fa_attention_plan, fa_plan};
use flash_attention::capi::pool::fa_pool;
use flash_attention::capi::run::{
    fa_attention_check, fa_attention_check_run, fa_attention_finish, fa_attention_part, fa_attention_run,
    fa_attention_workspace, fa_attention_workspace_max,
};
use flash_attention::capi::status::fa_status;
use flash_attention::capi::tensor::{fa_quant, fa_tensor};

use crate::common::Random;
use crate::definition::{BF16, BLOCKS, BOOL8, Definition, F8_E4M3, F8_E5M2, F16, F32, I8, Q15, U8, block};
use crate::input::{Input, hash};
use crate::layout::{MOST as ADDRESSES, Rows, Verdict, dim_verdict, quant_verdict, unit, values};
use crate::memory::Guarded;
use crate::pointers::{Code, Kind, MOST, Memory, Pointer, anything};

/// Numbers of the pointers.
pub(crate) const Q: usize = 0;
pub(crate) const K: usize = 1;
pub(crate) const V: usize = 2;
pub(crate) const O: usize = 3;
const MASK: usize = 4;
const LSE: usize = 5;
const SLOPES: usize = 6;
const SINKS: usize = 7;
const CELLS: usize = 8;
pub(crate) const STARTS_Q: usize = 9;
pub(crate) const STARTS_KV: usize = 10;
pub(crate) const LENS: usize = 11;
pub(crate) const TABLE: usize = 12;
pub(crate) const TABLE_STARTS: usize = 13;
pub(crate) const POSITIONS: usize = 14;
pub(crate) const FIRSTS: usize = 15;
pub(crate) const SPANS: usize = 16;
pub(crate) const SPAN_STARTS: usize = 17;
const WEIGHT_HEADS: usize = 18;
const WEIGHT_ROWS: usize = 19;
const KEPT_START: usize = 20;
const KEPT_BLOCKS: usize = 21;
const COLUMN_START: usize = 22;
const COLUMNS: usize = 23;
/// Scales of Q, K and V; their zeros come after them.
pub(crate) const SCALES: usize = 24;
const WEIGHTS: usize = 30;
pub const POINTERS: usize = 31;

/// Values of a list that an input gives; longer ones repeat them.
pub const LISTED: [usize; 15] = [8, 8, 8, 32, 8, 8, 8, 16, 8, 8, 8, 32, 32, 32, 32];

/// Work that the oracle does quickly: multiplications.
const WORK: i128 = 1 << 15;

/// A description before its pointers are real.
pub struct Described {
    pub control: [u8; 16],
    pub a: fa_attention,
    pub codes: [Code; POINTERS],
    /// Of Q, K, V, O, the mask and the weights: whether they have one, and what it is.
    pub has_quant: [u64; 6],
    pub quants: [fa_quant; 3],
    pub lists: [Vec<i32>; LISTED.len()],
}

fn tensor(input: &mut Input) -> (fa_tensor, Code, u64) {
    let code = Code(input.u64());
    let stride = [0; 3].map(|_| input.i64());
    let [dtype, stride_dim] = [input.i32(), input.i32()];
    (fa_tensor { data: ptr::null_mut(), stride, dtype, stride_dim, quant: ptr::null() }, code, input.u64())
}

impl Described {
    /// Reads fields in the order in which the header has them.
    pub fn read(input: &mut Input) -> Described {
        let control = input.bytes();
        let mut codes = [Code(0); POINTERS];
        let mut has_quant = [0; 6];
        let mut a = crate::description::empty();
        a.struct_size = input.u64() as usize;
        (a.flags, a.reserved0) = (input.u32(), input.u32());
        for field in [
            &mut a.batch,
            &mut a.heads_q,
            &mut a.heads_kv,
            &mut a.len_q,
            &mut a.len_kv,
            &mut a.dim_qk,
            &mut a.dim_v,
        ] {
            *field = input.i64();
        }
        (a.q, codes[Q], has_quant[Q]) = tensor(input);
        (a.k, codes[K], has_quant[K]) = tensor(input);
        (a.v, codes[V], has_quant[V]) = tensor(input);
        (a.o, codes[O], has_quant[O]) = tensor(input);
        (a.scale, a.softcap) = (input.f32(), input.f32());
        (a.q_pos, a.window_left, a.window_right) = (input.i64(), input.i64(), input.i64());
        (a.mask, codes[MASK], has_quant[MASK]) = tensor(input);
        codes[SLOPES] = Code(input.u64());
        a.alibi_batch_stride = input.i64();
        codes[SINKS] = Code(input.u64());
        codes[CELLS] = Code(input.u64());
        a.block_mask_stride = [0; 3].map(|_| input.i64());
        (a.block_mask_q, a.block_mask_kv) = (input.i64(), input.i64());
        for list in [STARTS_Q, STARTS_KV, LENS, TABLE, TABLE_STARTS] {
            codes[list] = Code(input.u64());
        }
        (a.table_stride, a.page_size, a.num_pages) = (input.i64(), input.i64(), input.i64());
        codes[LSE] = Code(input.u64());
        a.lse_stride = [0; 3].map(|_| input.i64());
        (a.block_q, a.block_kv) = (input.i64(), input.i64());
        let quants = [0, 1, 2].map(|i| {
            codes[SCALES + i] = Code(input.u64());
            codes[SCALES + 3 + i] = Code(input.u64());
            let stride = [0; 4].map(|_| input.i64());
            let [group_tokens, group_dims] = [input.i32(), input.i32()];
            fa_quant { scale: ptr::null(), zero: ptr::null(), stride, group_tokens, group_dims }
        });
        let list = |input: &mut Input, n| (0..n).map(|_| input.i32()).collect::<Vec<_>>();
        let mut lists = LISTED.map(|_| Vec::new());
        for i in 0..5 {
            lists[i] = list(input, LISTED[i]);
        }
        // What the structure has been given later comes after everything else.
        for list in [POSITIONS, FIRSTS, SPANS, SPAN_STARTS] {
            codes[list] = Code(input.u64());
        }
        a.prefix_keys = input.i64();
        for i in 5..9 {
            lists[i] = list(input, LISTED[i]);
        }
        (a.weights, codes[WEIGHTS], has_quant[5]) = tensor(input);
        (codes[WEIGHT_HEADS], codes[WEIGHT_ROWS]) = (Code(input.u64()), Code(input.u64()));
        (a.num_weight_heads, a.num_weight_rows) = (input.i64(), input.i64());
        for i in 9..11 {
            lists[i] = list(input, LISTED[i]);
        }
        (codes[KEPT_START], codes[KEPT_BLOCKS]) = (Code(input.u64()), Code(input.u64()));
        a.kept_stride = [0; 2].map(|_| input.i64());
        for field in [&mut a.kept_heads, &mut a.kept_q, &mut a.kept_kv, &mut a.table_head_stride] {
            *field = input.i64();
        }
        for i in 11..13 {
            lists[i] = list(input, LISTED[i]);
        }
        (codes[COLUMN_START], codes[COLUMNS]) = (Code(input.u64()), Code(input.u64()));
        a.column_stride = [0; 2].map(|_| input.i64());
        a.column_heads = input.i64();
        for i in 13..LISTED.len() {
            lists[i] = list(input, LISTED[i]);
        }
        for field in [&mut a.q_bytes, &mut a.k_bytes, &mut a.v_bytes, &mut a.o_bytes] {
            *field = input.i64();
        }
        for field in [&mut a.mask_bytes, &mut a.lse_bytes, &mut a.weights_bytes] {
            *field = input.i64();
        }
        Described { control, a, codes, has_quant, quants, lists }
    }

    /// How long lists are: sequences, one more, and so on, in the order of their pointers.
    pub(crate) fn lengths(&mut self) -> [i128; LISTED.len()] {
        let batch = i128::from(self.a.batch).max(0);
        // As long as nobody reads them, lists of any length are fine; of what is read there is a
        // page or two.
        let longest = MOST as i128 / 4;
        if batch >= longest {
            for list in [STARTS_Q, STARTS_KV, LENS, TABLE_STARTS, POSITIONS, FIRSTS, SPAN_STARTS] {
                self.codes[list] = Code(0);
            }
        }
        for list in [4, 8, 11, 13] {
            for start in &mut self.lists[list] {
                if i128::from(*start) > longest {
                    *start %= 64;
                }
            }
        }
        let mut table = i128::from(self.a.table_stride).max(0).saturating_mul(batch);
        if !self.codes[TABLE_STARTS].is_null() {
            table = i128::from(self.lists[4][batch as usize % LISTED[4]]).max(0);
        }
        if table > longest {
            self.codes[TABLE] = Code(0);
            table = 0;
        }
        let spans = 2 * i128::from(self.lists[8][batch as usize % LISTED[8]]).max(0);
        if spans > longest {
            self.codes[SPANS] = Code(0);
        }
        let counts = [self.a.num_weight_heads, self.a.num_weight_rows].map(|n| i128::from(n).max(0));
        for (list, n) in [WEIGHT_HEADS, WEIGHT_ROWS].into_iter().zip(counts) {
            if n > longest {
                self.codes[list] = Code(0);
            }
        }
        let [heads, rows] = counts;
        let (kept, columns) = (self.kept(), self.columns());
        let mut entries = [0; 2];
        for (i, (given, start)) in [(&kept, KEPT_START), (&columns, COLUMN_START)].into_iter().enumerate() {
            let looked_at =
                given.distinct(0).saturating_mul(given.distinct(1)).saturating_mul(given.lists + 1);
            if given.needed() > longest || looked_at > 1 << 16 {
                self.codes[start] = Code(0);
            }
            if !self.codes[start].is_null() {
                let ends = given.heads().flat_map(|at| [at, at + given.lists]);
                entries[i] = ends.map(|at| i128::from(self.listed(11 + 2 * i, at))).max().unwrap_or(0).max(0);
            }
        }
        [
            batch + 1,
            batch + 1,
            batch,
            table,
            batch + 1,
            batch,
            batch,
            spans,
            batch + 1,
            heads,
            rows,
            kept.needed(),
            entries[0],
            columns.needed(),
            entries[1],
        ]
        .map(|n| n.min(longest))
    }

    /// Where lists of blocks are, if there are some.
    fn kept(&self) -> Given {
        let a = &self.a;
        let size = i128::from(a.kept_q).max(1);
        self.lists_of(a.kept_heads, a.kept_stride, (i128::from(a.len_q).max(0) + size - 1) / size)
    }

    /// Where lists of single keys are, if there are some.
    fn columns(&self) -> Given {
        self.lists_of(self.a.column_heads, self.a.column_stride, 1)
    }

    fn lists_of(&self, heads: i64, strides: [i64; 2], lists: i128) -> Given {
        let heads = if heads == 0 { self.a.heads_q } else { heads };
        let [batch, heads] = [self.a.batch, heads].map(|n| i128::from(n).max(0));
        let stride = |i: usize, n: i128| if n > 1 { i128::from(strides[i]).max(0) } else { 0 };
        Given { stride: [stride(0, batch), stride(1, heads)], count: [batch, heads], lists }
    }

    /// Keys of a sequence that are in use.
    pub(crate) fn keys_in_use(&self, b: i128) -> i64 {
        let has = |pointer: usize| !self.codes[pointer].is_null();
        match (has(LENS), has(STARTS_KV)) {
            (true, _) => self.listed(2, b),
            (_, true) => self.listed(1, b + 1) - self.listed(1, b),
            _ => self.a.len_kv,
        }
    }

    /// A value of a list.
    pub(crate) fn listed(&self, list: usize, i: i128) -> i64 {
        i64::from(self.lists[list][(i % LISTED[list] as i128) as usize])
    }
}

/// Where lists are.
struct Given {
    stride: [i128; 2],
    /// Sequences and heads with lists.
    count: [i128; 2],
    /// Lists of each.
    lists: i128,
}

impl Given {
    /// Entries of the list of starts.
    fn needed(&self) -> i128 {
        let [batch, heads] = self.count;
        if batch == 0 || heads == 0 {
            return 0;
        }
        let last = (batch - 1).saturating_mul(self.stride[0]);
        last.saturating_add((heads - 1).saturating_mul(self.stride[1])).saturating_add(self.lists + 1)
    }

    /// Sequences (0), or heads (1), whose lists differ.
    fn distinct(&self, i: usize) -> i128 {
        if self.stride[i] == 0 { self.count[i].min(1) } else { self.count[i] }
    }

    /// Where the lists of each head begin; those that are the same for all, once.
    fn heads(&self) -> impl Iterator<Item = i128> + '_ {
        (0..self.distinct(0)).flat_map(move |b| {
            (0..self.distinct(1)).map(move |h| {
                b.saturating_mul(self.stride[0]).saturating_add(h.saturating_mul(self.stride[1]))
            })
        })
    }
}

/// What a description says about sizes, as far as it says it.
struct Sizes {
    verdict: Verdict,
    /// Bytes behind each pointer.
    bytes: [i128; POINTERS],
    work: i128,
}

/// Judges lists, positions and pages; entries and rows of Q, and those of K and V.
pub(crate) fn lists(d: &Described, lengths: &[i128; LISTED.len()], verdict: &mut Verdict) -> [[i64; 2]; 2] {
    let a = &d.a;
    let batch = i128::from(a.batch.max(0));
    let [len_q, len_kv, page_size, num_pages] =
        [a.len_q, a.len_kv, a.page_size, a.num_pages].map(|n| n.max(0));

    let has = |pointer: usize| !d.codes[pointer].is_null();
    let packed = |verdict: &mut Verdict, list: usize, pointer: usize, len: i64| -> Option<i64> {
        if !has(pointer) {
            return None;
        }
        let start = |b| d.listed(list, b);
        verdict.demand(start(0) >= 0);
        for b in 0..batch.min(lengths[2]) {
            verdict.demand((0..=len).contains(&(start(b + 1) - start(b))));
        }
        Some(start(batch).max(0))
    };
    let rows_q = packed(verdict, 0, STARTS_Q, a.len_q);
    let rows_kv = packed(verdict, 1, STARTS_KV, a.len_kv);
    let is_paged = has(TABLE);
    verdict.demand(is_paged || !has(TABLE_STARTS));
    verdict.demand(!(is_paged && has(STARTS_KV)));
    if has(LENS) {
        for b in 0..batch.min(lengths[2]) {
            let most = if has(STARTS_KV) { d.listed(1, b + 1) - d.listed(1, b) } else { a.len_kv };
            verdict.demand((0..=most).contains(&d.listed(2, b)));
        }
    }
    if has(POSITIONS) {
        verdict.demand([0, FA_POS_END].contains(&a.q_pos));
        for b in 0..batch.min(lengths[5]) {
            verdict.demand(d.listed(5, b).checked_add(a.len_q).is_some());
        }
    }
    if has(FIRSTS) {
        for b in 0..batch.min(lengths[6]) {
            verdict.demand((0..=d.keys_in_use(b)).contains(&d.listed(6, b)));
        }
    }
    verdict.demand(has(SPANS) == has(SPAN_STARTS));
    if has(SPANS) && has(SPAN_STARTS) {
        verdict.demand(d.listed(8, 0) >= 0);
        for b in 0..batch.min(lengths[8] - 1) {
            let [start, end] = [d.listed(8, b), d.listed(8, b + 1)];
            verdict.demand(start <= end && 2 * i128::from(end) <= lengths[7]);
            let mut before = 0;
            for at in (2 * start.max(0)..2 * end).take_while(|&at| i128::from(at) < lengths[7]) {
                verdict.demand(before <= d.listed(7, at.into()));
                before = d.listed(7, at.into());
            }
        }
    }
    if is_paged {
        verdict.demand(a.page_size >= 1 && a.num_pages >= 0 && a.table_head_stride >= 0);
        // "Not with block_table_start": then nobody need look at it.
        if has(TABLE_STARTS) {
            verdict.usually(a.table_stride >= 0)
        } else {
            verdict.demand(a.table_stride >= 0)
        };
        let page_size = i128::from(page_size.max(1));
        // All alike where there is nothing that tells sequences apart.
        let lists = has(TABLE_STARTS) || has(LENS) || has(FIRSTS);
        let some = if lists || a.table_stride > 0 { batch } else { batch.min(1) };
        for b in 0..some {
            let (start, end) = match has(TABLE_STARTS) {
                true => (i128::from(d.listed(4, b)), i128::from(d.listed(4, b + 1))),
                false => (b * i128::from(a.table_stride), (b + 1) * i128::from(a.table_stride)),
            };
            let keys = if has(LENS) { d.listed(2, b) } else { a.len_kv };
            let needed = (i128::from(keys.max(0)) + page_size - 1) / page_size;
            let of_head = i128::from(a.table_head_stride.max(0));
            let heads = if of_head == 0 { 1 } else { i128::from(a.heads_kv.max(1)) };
            let of_others = (heads - 1).saturating_mul(of_head);
            let fits = 0 <= start && start <= end && of_others.saturating_add(needed) <= end - start;
            verdict.demand(fits && end <= lengths[3]);
            let first = if has(FIRSTS) { d.listed(6, b).max(0) } else { 0 };
            let gone = if first >= keys { needed } else { i128::from(first) / page_size };
            for list in
                (0..heads).map(|head| start + head * of_head).take_while(|_| fits && end <= lengths[3])
            {
                for at in list + gone..list + needed {
                    verdict.demand((0..a.num_pages).contains(&d.listed(3, at)));
                }
            }
        }
    }
    let of_queries = rows_q.map_or([batch as i64, len_q], |rows| [1, rows]);
    let of_keys = match is_paged {
        true => [num_pages, a.page_size.max(0)],
        false => rows_kv.map_or([batch as i64, len_kv], |rows| [1, rows]),
    };
    [of_queries, of_keys]
}

/// Whether so much memory, 0 = unknown, is enough for a tensor that takes so much.
pub(crate) fn is_enough(given: i64, taken: i128) -> bool {
    given == 0 || (given > 0 && taken <= i128::from(given))
}

/// Judges everything but NULL and overlaps, which need addresses.
fn sizes(d: &mut Described) -> Sizes {
    let mut verdict = Verdict::Legal;
    let mut bytes = [0; POINTERS];
    let lengths = d.lengths();
    for (i, n) in lengths.into_iter().enumerate() {
        bytes[STARTS_Q + i] = 4 * n;
    }
    let a = d.a;
    let known = size_of::<fa_attention>();
    verdict.demand((known..=known + 4096).contains(&a.struct_size));
    verdict.demand(a.flags & !(FA_MASK_TIMES_SLOPE | FA_PRECISE | FA_FAST) == 0 && a.reserved0 == 0);
    verdict.demand(a.flags & (FA_PRECISE | FA_FAST) != FA_PRECISE | FA_FAST);
    verdict.demand([a.heads_q, a.heads_kv, a.dim_qk, a.dim_v].iter().all(|&n| n >= 1));
    verdict.demand(a.batch >= 0 && a.len_q >= 0 && a.len_kv >= 0);
    verdict.demand(a.heads_kv < 1 || a.heads_q % a.heads_kv == 0);
    let scale = if a.scale == 0.0 { 1.0 } else { a.scale };
    verdict.demand(((f64::from(scale) * std::f64::consts::LOG2_E) as f32).is_finite());
    verdict.demand(a.softcap.is_finite() && a.softcap >= 0.0);
    verdict.demand([a.window_left, a.window_right].iter().all(|&n| n >= 0 || n == FA_NO_LIMIT));
    verdict.demand(a.block_q >= 0 && a.block_kv >= 0);
    verdict.demand(a.q_pos == FA_POS_END || a.q_pos.checked_add(a.len_q).is_some());
    verdict.demand(a.prefix_keys >= 0);
    // What is refused must be described all the same: nobody says which field is looked at first.
    let batch = i128::from(a.batch.max(0));
    let [heads_q, heads_kv, len_q, len_kv, dim_qk, dim_v] =
        [a.heads_q, a.heads_kv, a.len_q, a.len_kv, a.dim_qk, a.dim_v].map(|n| n.max(0));
    let has = |pointer: usize| !d.codes[pointer].is_null();
    let [[entries_q, rows], [entries_kv, keys]] = lists(d, &lengths, &mut verdict);

    let queries = [entries_q, heads_q, rows];
    let cache = [entries_kv, heads_kv, keys];
    for (which, tensor, extent, dim) in
        [(Q, &a.q, queries, dim_qk), (K, &a.k, cache, dim_qk), (V, &a.v, cache, dim_v)]
    {
        let may_have_scales = [I8, U8, F8_E4M3, F8_E5M2, Q15].contains(&tensor.dtype);
        let needs_none = [F32, F16, BF16].contains(&tensor.dtype) || BLOCKS.contains(&tensor.dtype);
        verdict.demand(may_have_scales || needs_none);
        verdict.demand(dim % block(tensor.dtype)[0] == 0);
        verdict.join(dim_verdict(tensor.dtype, tensor.stride_dim, which != Q));
        let rows = Rows::of(tensor.dtype, extent, dim, tensor.stride);
        let rows = rows.apart(tensor.dtype, dim, tensor.stride_dim);
        verdict.join(rows.verdict(unit(tensor.dtype)));
        bytes[which] = rows.span();
        let quant = d.quants[which];
        let group = [quant.group_tokens, quant.group_dims];
        let n = values(extent, dim, quant.stride, group).saturating_mul(4);
        (bytes[SCALES + which], bytes[SCALES + 3 + which]) = (n, n);
        if d.has_quant[which] & 3 != 0 {
            verdict.demand(may_have_scales);
            let is_integer = [I8, U8].contains(&tensor.dtype);
            verdict.demand(is_integer || d.codes[SCALES + 3 + which].is_null());
            verdict.join(quant_verdict(quant.stride, group, n / 4));
        } else {
            (bytes[SCALES + which], bytes[SCALES + 3 + which]) = (0, 0);
        }
    }
    verdict.demand([F32, F16, BF16, Q15].contains(&a.o.dtype));
    if d.has_quant[O] & 3 != 0 {
        // It has the scales of q.
        verdict.demand(a.o.dtype == Q15 && d.codes[SCALES + 3].is_null());
        let quant = d.quants[0];
        let group = [quant.group_tokens, quant.group_dims];
        let n = values(queries, dim_v, quant.stride, group);
        verdict.join(quant_verdict(quant.stride, group, n));
        for place in [SCALES, SCALES + 3] {
            bytes[place] = bytes[place].max(n.saturating_mul(4));
        }
    }
    verdict.join(dim_verdict(a.o.dtype, a.o.stride_dim, false));
    let o = Rows::of(a.o.dtype, queries, dim_v, a.o.stride);
    verdict.join(o.verdict(unit(a.o.dtype)));
    verdict.join(o.are_apart());
    bytes[O] = o.span();
    if has(LSE) {
        let lse = Rows::of(F32, queries, 1, a.lse_stride.map(|stride| stride.saturating_mul(4)));
        // Of elements: saturated products are too large in any case.
        verdict.join(lse.verdict(1));
        verdict.join(lse.are_apart());
        bytes[LSE] = lse.span();
    }
    let all = [batch as i64, heads_q, len_q];
    if has(MASK) {
        verdict.demand([F32, F16, BF16, BOOL8].contains(&a.mask.dtype) && d.has_quant[MASK] & 3 == 0);
        verdict.join(dim_verdict(a.mask.dtype, a.mask.stride_dim, false));
        let mask = Rows::of(a.mask.dtype, all, len_kv, a.mask.stride);
        verdict.join(mask.verdict(unit(a.mask.dtype)));
        bytes[MASK] = mask.span();
    }
    let mut extent = [batch as i64, heads_q, len_q];
    let lists = [(9, WEIGHT_HEADS, a.num_weight_heads, false), (10, WEIGHT_ROWS, a.num_weight_rows, true)];
    for (axis, (list, pointer, count, may_count_from_end)) in (1..).zip(lists) {
        let most = extent[axis];
        if !has(pointer) {
            verdict.demand(count == 0 || count == most);
            continue;
        }
        verdict.demand(has(WEIGHTS) && (1..=most).contains(&count));
        extent[axis] = count.max(0);
        let first = d.listed(list, 0);
        let bounds = if first < 0 && may_count_from_end { -most..0 } else { 0..most };
        let mut before = i64::MIN;
        for at in 0..i128::from(count.max(0)).min(lengths[list]) {
            let number = d.listed(list, at);
            verdict.demand(bounds.contains(&number) && number > before);
            before = number;
        }
    }
    if has(WEIGHTS) {
        verdict.demand(a.weights.dtype == F32 && d.has_quant[5] & 3 == 0);
        let weights = Rows::of(F32, extent, len_kv, a.weights.stride);
        verdict.join(dim_verdict(a.weights.dtype, a.weights.stride_dim, false));
        verdict.join(weights.verdict(unit(F32)));
        verdict.join(weights.are_apart());
        bytes[WEIGHTS] = weights.span();
    }
    let given = [(Q, a.q_bytes), (K, a.k_bytes), (V, a.v_bytes), (O, a.o_bytes)];
    let optional = [(MASK, a.mask_bytes), (LSE, a.lse_bytes), (WEIGHTS, a.weights_bytes)];
    for (which, given) in given.into_iter().chain(optional.into_iter().filter(|&(which, _)| has(which))) {
        verdict.demand(is_enough(given, bytes[which]));
    }
    if has(SLOPES) {
        verdict.demand(a.alibi_batch_stride >= 0);
        let last = (batch - 1).max(0).saturating_mul(i128::from(a.alibi_batch_stride).max(0));
        let n = if batch == 0 { 0 } else { last.saturating_add(i128::from(heads_q)) };
        verdict.demand(n <= ADDRESSES / 4);
        bytes[SLOPES] = n.saturating_mul(4);
    }
    if a.flags & FA_MASK_TIMES_SLOPE != 0 {
        verdict.demand(has(SLOPES) && has(MASK) && a.mask.dtype != BOOL8);
    }
    if has(SINKS) {
        bytes[SINKS] = 4 * i128::from(heads_q);
        // Nobody says how many heads an address space holds if there are no rows; their sinks are
        // too many.
        verdict.usually(bytes[SINKS] <= ADDRESSES);
    }
    if has(CELLS) {
        verdict.demand(a.block_mask_q >= 1 && a.block_mask_kv >= 1);
        let blocks =
            |n: i64, size: i64| (i128::from(n) + i128::from(size.max(1)) - 1) / i128::from(size.max(1));
        let extent = [all[0], all[1], blocks(len_q, a.block_mask_q) as i64];
        let cells = Rows::of(BOOL8, extent, blocks(len_kv, a.block_mask_kv) as i64, a.block_mask_stride);
        verdict.join(cells.verdict(1));
        bytes[CELLS] = cells.span();
    }
    if has(KEPT_START) {
        verdict.demand(!has(CELLS) && a.kept_q >= 1 && a.kept_kv >= 1 && a.kept_heads >= 0);
        let size = i128::from(a.kept_kv.max(1));
        let blocks = (i128::from(len_kv) + size - 1) / size;
        verdict.join(verdict_of_lists(
            d,
            &d.kept(),
            [a.kept_heads, heads_q],
            a.kept_stride,
            11,
            has(KEPT_BLOCKS),
            blocks,
            lengths[12],
        ));
    } else {
        verdict.demand(!has(KEPT_BLOCKS));
    }
    if has(COLUMN_START) {
        verdict.demand(a.column_heads >= 0 && !has(MASK) && !has(SLOPES) && !has(WEIGHTS));
        verdict.join(verdict_of_lists(
            d,
            &d.columns(),
            [a.column_heads, heads_q],
            a.column_stride,
            13,
            has(COLUMNS),
            i128::from(len_kv),
            lengths[14],
        ));
    } else {
        verdict.demand(!has(COLUMNS));
    }
    // Scratch memory for such heads, or such blocks, may be more than an address space.
    let large = [dim_qk, dim_v, heads_q, a.batch, len_kv, len_q];
    verdict
        .usually(large.iter().fold(1i128, |n, &m| n.saturating_mul(i128::from(m).max(1))) < ADDRESSES / 1024);
    let work = [rows, entries_q, heads_q, len_kv.saturating_add(1), dim_qk.saturating_add(dim_v)];
    let work = work.into_iter().fold(1, |n: i128, m| n.saturating_mul(i128::from(m)));
    Sizes { verdict, bytes, work }
}

/// Whether lists are in order: `starts` is the number of the list of their starts, behind which the
/// list of their entries is, which are below `most`.
#[allow(clippy::too_many_arguments, reason = "fields of the description")]
fn verdict_of_lists(
    d: &Described,
    given: &Given,
    [heads, heads_q]: [i64; 2],
    stride: [i64; 2],
    starts: usize,
    has_entries: bool,
    most: i128,
    entries: i128,
) -> Verdict {
    let mut verdict = Verdict::Legal;
    verdict.demand(heads == 0 || heads_q % heads.max(1) == 0);
    for (i, n) in given.count.into_iter().enumerate() {
        verdict.demand(n <= 1 || stride[i] >= 0);
    }
    let is_empty = |first: i128| d.listed(starts, first) == d.listed(starts, first + given.lists);
    verdict.demand(has_entries || given.heads().all(is_empty));
    for first in given.heads() {
        let mut before = 0;
        for at in first..=first + given.lists {
            let start = i128::from(d.listed(starts, at));
            verdict.demand(before <= start && start <= entries);
            if at > first && 0 <= before && before <= start && start <= entries {
                let mut least = 0;
                for entry in (before..start).map(|at| i128::from(d.listed(starts + 1, at))) {
                    verdict.demand((least..most).contains(&entry));
                    least = entry + 1;
                }
            }
            before = start;
        }
    }
    verdict
}

/// What is needed once.
pub struct Bench {
    memory: Memory<POINTERS>,
    description: Guarded,
    words: Guarded,
    scratch: Guarded,
}

/// Scratch memory that we have.
const SCRATCH: usize = 4 << 20;

impl Default for Bench {
    fn default() -> Self {
        Bench {
            memory: Memory::new(),
            description: Guarded::new(8192),
            words: Guarded::new(4096),
            scratch: Guarded::new(SCRATCH),
        }
    }
}

impl Bench {
    pub fn try_out(&mut self, data: &[u8]) {
        let mut d = Described::read(&mut Input(data));
        let [isa, parts, order, extra, why_size, pool, ..] = d.control;
        let Sizes { mut verdict, bytes, work } = sizes(&mut d);
        let kind = |i: usize| match i {
            O | LSE | WEIGHTS => Kind::Output,
            STARTS_Q..=COLUMNS => Kind::List,
            _ => Kind::Input,
        };
        let mut wanted = [(Code(0), 0, Kind::Input); POINTERS];
        for (i, wanted) in wanted.iter_mut().enumerate() {
            *wanted = (d.codes[i], bytes[i], kind(i));
        }
        let (pointers, is_real) = self.memory.place(wanted);
        for tensor in [Q, K, V, O] {
            verdict.demand(!pointers[tensor].at.is_null() || bytes[tensor] == 0);
        }
        for output in [O, LSE, WEIGHTS] {
            for (i, pointer) in pointers.iter().enumerate() {
                if i != output && !pointer.at.is_null() {
                    // Scales of tensors without a quant are none.
                    verdict.demand(!pointers[output].overlaps(pointer));
                }
            }
        }
        self.fill(&d, &pointers, &mut verdict, hash(data));
        let mut a = d.a;
        let mut quants = d.quants;
        for (i, quant) in quants.iter_mut().enumerate() {
            quant.scale = pointers[SCALES + i].at.cast();
            quant.zero = pointers[SCALES + 3 + i].at.cast();
        }
        for (i, tensor) in [&mut a.q, &mut a.k, &mut a.v, &mut a.o, &mut a.mask].into_iter().enumerate() {
            tensor.data = pointers[i].at.cast();
            if d.has_quant[i] & 3 != 0 {
                tensor.quant = &quants[i % 3];
            }
        }
        a.lse = pointers[LSE].at.cast();
        (a.alibi_slopes, a.sinks) = (pointers[SLOPES].at.cast(), pointers[SINKS].at.cast());
        a.block_mask = pointers[CELLS].at;
        (a.cu_len_q, a.cu_len_kv) = (pointers[STARTS_Q].at.cast(), pointers[STARTS_KV].at.cast());
        a.kv_lens = pointers[LENS].at.cast();
        a.block_table = pointers[TABLE].at.cast();
        a.block_table_start = pointers[TABLE_STARTS].at.cast();
        (a.q_positions, a.kv_starts) = (pointers[POSITIONS].at.cast(), pointers[FIRSTS].at.cast());
        (a.spans, a.span_starts) = (pointers[SPANS].at.cast(), pointers[SPAN_STARTS].at.cast());

        (a.weight_heads, a.weight_rows) = (pointers[WEIGHT_HEADS].at.cast(), pointers[WEIGHT_ROWS].at.cast());
        (a.kept_start, a.kept_blocks) = (pointers[KEPT_START].at.cast(), pointers[KEPT_BLOCKS].at.cast());
        (a.column_start, a.columns) = (pointers[COLUMN_START].at.cast(), pointers[COLUMNS].at.cast());
        a.weights.data = pointers[WEIGHTS].at.cast();
        if d.has_quant[5] & 3 != 0 {
            a.weights.quant = &quants[0];
        }

        let at = put(&mut self.description, &a, extra, &mut verdict);
        let isas = [c"amx", c"avx512bf16", c"avx512vnni", c"avx512", c"avxvnni", c"avx2", c"scalar"];
        // SAFETY: a string.
        assert_eq!(unsafe { fa_limit_isa(isas[usize::from(isa) % isas.len()].as_ptr()) }, fa_status::FA_OK);
        self.memory.keep();

        let status = self.check(at, why_size);
        let fits = match verdict {
            Verdict::Legal => status == fa_status::FA_OK,
            Verdict::Either => true,
            Verdict::Refused => status != fa_status::FA_OK,
        };
        assert!(fits, "{verdict:?}, but {status:?}: {}\n{a:?}\n{quants:?}\n{:?}", self.why(at), d.lists);
        assert_ne!(status, fa_status::FA_ERR_INTERNAL);
        let n = i32::from(parts % 6) + 1;
        let mut size = usize::MAX;
        // SAFETY: the description is what it says.
        let answered = unsafe { fa_attention_workspace(at, n, &mut size) };
        assert!(answered == status, "workspace {answered:?}, check {status:?}");
        let mut most = usize::MAX;
        // SAFETY: as above.
        let answered = unsafe { fa_attention_workspace_max(at, n, &mut most) };
        assert!(answered == status, "workspace_max {answered:?}, check {status:?}");
        let mut how = std::mem::MaybeUninit::<fa_plan>::zeroed();
        // SAFETY: as above, and a plan whose size is set; any bits are one.
        let how = unsafe {
            (*how.as_mut_ptr()).struct_size = size_of::<fa_plan>();
            let answered = fa_attention_plan(at, n, how.as_mut_ptr());
            assert!(answered == status, "plan {answered:?}, check {status:?}");
            how.assume_init()
        };
        // SAFETY: as above; there is no workspace.
        let ready = unsafe { fa_attention_check_run(at, ptr::null(), 0, ptr::null(), ptr::null_mut(), 0) };
        assert!(ready == status || (status == fa_status::FA_OK && ready == fa_status::FA_ERR_WORKSPACE));
        if status != fa_status::FA_OK {
            assert_eq!([size, most], [usize::MAX; 2], "bytes was written");
            assert_eq!([how.work_items, how.tile_keys], [0; 2], "the plan was written");
            self.refuses(at, status, n);
            return;
        }
        let needed = |n| {
            let mut size = 0;
            // SAFETY: as above.
            assert_eq!(unsafe { fa_attention_workspace(at, n, &mut size) }, fa_status::FA_OK);
            size
        };
        assert_eq!(Some(most), (1..=n).map(needed).max(), "the most of 1 to {n} parts");
        assert_eq!(how.workspace_bytes, size);
        assert_eq!(ready == fa_status::FA_OK, needed(1) == 0, "{ready:?} without a workspace");
        if !is_real || work > WORK {
            return;
        }
        let label = Label(&a, &quants, &d.lists);
        // Integers without a scale, or what all types share, are larger than usual numbers.
        let has_unscaled = (0..3).any(|i| d.has_quant[i] & 3 != 0 && d.codes[SCALES + i].is_null());
        let is_large = has_unscaled || pointers.iter().any(|pointer| pointer.is_shared);
        let largest = if is_large { 264.0 } else { 8.0 };
        self.computes(at, &a, &pointers, largest, &label, [n, i32::from(order), i32::from(pool)]);
    }

    /// Numbers into inputs; what outputs hold before.
    fn fill(&mut self, d: &Described, pointers: &[Pointer; POINTERS], verdict: &mut Verdict, seed: u64) {
        self.memory.blank();
        let mut random = Random(seed);
        let a = &d.a;
        for (i, pointer) in pointers.iter().enumerate() {
            if pointer.at.is_null() || pointer.bytes > MOST as i128 || pointer.kind == Kind::Output {
                continue;
            }
            // SAFETY: as many bytes of our memory, which nobody else has now.
            let to = unsafe { std::slice::from_raw_parts_mut(pointer.at, pointer.bytes as usize) };
            if pointer.is_shared && pointer.kind == Kind::Input {
                anything(&mut random, to);
                continue;
            }
            let number = |random: &mut Random| random.normal();
            match i {
                STARTS_Q..=WEIGHT_ROWS => {
                    for (at, to) in to.chunks_exact_mut(4).enumerate() {
                        to.copy_from_slice(&(d.listed(i - STARTS_Q, at as i128) as i32).to_ne_bytes());
                    }
                }
                CELLS => to.iter_mut().for_each(|x| *x = (random.bits() % 3) as u8),
                Q => numbers(&mut random, a.q.dtype, d.has_quant[Q] & 3 != 0, to),
                K => numbers(&mut random, a.k.dtype, d.has_quant[K] & 3 != 0, to),
                V => numbers(&mut random, a.v.dtype, d.has_quant[V] & 3 != 0, to),
                MASK => {
                    numbers(&mut random, a.mask.dtype, false, to);
                    for x in to.chunks_exact_mut(block(a.mask.dtype)[1] as usize) {
                        if random.below(4) == 0 {
                            hide(a.mask.dtype, x);
                        }
                    }
                }
                _ => {
                    for x in to.chunks_exact_mut(4) {
                        let x_is = match i {
                            SLOPES => 0.1 * number(&mut random),
                            SINKS if random.below(3) == 0 => f32::NEG_INFINITY,
                            SINKS => number(&mut random),
                            _ if i < SCALES + 3 => 0.005 + 0.02 * random.uniform() as f32,
                            _ => random.below(19) as f32 - 9.0,
                        };
                        x.copy_from_slice(&x_is.to_ne_bytes());
                    }
                }
            }
        }
        // A value shared by a whole tensor must be finite; whether it is, is up to the input.
        for i in 0..6 {
            let which = i % 3;
            let is_given = d.has_quant[which] & 3 != 0 || (which == 0 && d.has_quant[O] & 3 != 0);
            let is_one = is_given && d.quants[which].stride == [0; 4];
            let value = d.codes[SCALES + i].0 >> 32;
            let pointer = &pointers[SCALES + i];
            if is_one && pointer.bytes == 4 && !pointer.at.is_null() && value != 0 && !pointer.is_shared {
                let value = f32::from_bits(value as u32);
                verdict.demand(value.is_finite());
                if !value.is_finite() {
                    // SAFETY: four bytes of our memory.
                    unsafe { pointer.at.cast::<f32>().write_unaligned(value) };
                }
            }
        }
    }

    fn check(&mut self, at: *const fa_attention, why_size: u8) -> fa_status {
        let n = usize::from(why_size);
        self.words.bytes().fill(0xa5);
        let words = if n == 255 { ptr::null_mut() } else { self.words.place(n, true) };
        // SAFETY: the description is what it says, and there is room for that many bytes.
        let status = unsafe { fa_attention_check(at, words.cast::<c_char>(), n) };
        let all = self.words.bytes();
        let beside = if words.is_null() { all.len() } else { all.len() - n };
        assert!(all[..beside].iter().all(|&x| x == 0xa5), "words written before their place");
        assert!(words.is_null() || n == 0 || all[beside..].contains(&0), "words without an end");
        assert!(self.memory.is_untouched_but(&[]), "check wrote");
        status
    }

    fn why(&mut self, at: *const fa_attention) -> String {
        let mut words = [0u8; 400];
        // SAFETY: room for as many bytes.
        unsafe { fa_attention_check(at, words.as_mut_ptr().cast(), words.len()) };
        String::from_utf8_lossy(CStr::from_bytes_until_nul(&words).unwrap().to_bytes()).into_owned()
    }

    /// Every function says the same, and touches nothing.
    fn refuses(&mut self, at: *const fa_attention, status: fa_status, n: i32) {
        let ws = self.scratch.place(SCRATCH, true).cast();
        // SAFETY: the description is what it says, and the memory as large.
        unsafe {
            assert_eq!(fa_attention_run(at, ws, SCRATCH, ptr::null()), status);
            assert_eq!(fa_attention_part(at, ws, SCRATCH, n - 1, n), status);
            assert_eq!(fa_attention_finish(at, ws, SCRATCH, n - 1, n), status);
        }
        assert!(self.memory.is_untouched_but(&[]), "refused, but touched");
    }

    /// Right, in all ways, and nothing else touched.
    fn computes(
        &mut self,
        at: *const fa_attention,
        a: &fa_attention,
        pointers: &[Pointer; POINTERS],
        largest: f64,
        label: &Label,
        [n, order, width]: [i32; 3],
    ) {
        let Some(size) = self.bytes(at, 1) else { return };
        // SAFETY: in this and what follows: the description is what it says, and scratch memory as
        // large.
        unsafe {
            if size > 0 {
                let ws = self.scratch.place(size - 1, true).cast();
                assert_eq!(fa_attention_run(at, ws, size - 1, ptr::null()), fa_status::FA_ERR_WORKSPACE);
                assert_eq!(
                    fa_attention_run(at, ptr::null_mut(), size, ptr::null()),
                    fa_status::FA_ERR_WORKSPACE
                );
            }
            for [part, n] in [[-1, 1], [1, 1], [n, n], [0, 0], [0, 257]] {
                let ws = self.scratch.place(SCRATCH, true).cast();
                assert_eq!(fa_attention_part(at, ws, SCRATCH, part, n), fa_status::FA_ERR_PART);
                assert_eq!(fa_attention_finish(at, ws, SCRATCH, part, n), fa_status::FA_ERR_PART);
            }
            assert!(self.memory.is_untouched_but(&[]), "refused, but touched");
            let ws = self.workspace(size, order);
            assert_eq!(
                fa_attention_run(at, ws, size, ptr::null()),
                fa_status::FA_OK,
                "check said it could\n{label}"
            );
        }
        // SAFETY: a static string.
        let isa = unsafe { CStr::from_ptr(fa_isa()) }.to_str().unwrap();
        let mut written = Vec::new();
        let rows = pointers[O].bytes > 0;
        if rows {
            // It is no longer than this.
            let a = fa_attention { struct_size: size_of::<fa_attention>(), ..*a };
            Definition(&a).check(isa, largest, label, |at, n| written.push((at, n)));
        }
        assert!(self.memory.is_untouched_but(&written), "wrote beside outputs\n{label}");
        let once = self.memory.contents();

        let Some(size) = self.bytes(at, n) else { return };
        self.memory.restore();
        let ws = self.workspace(size, order);
        for (step, backwards) in [(fa_attention_part as Step, order & 1), (fa_attention_finish, order & 2)] {
            for part in 0..n {
                let part = if backwards == 0 { part } else { n - 1 - part };
                // SAFETY: as above.
                assert_eq!(unsafe { step(at, ws, size, part, n) }, fa_status::FA_OK, "{label}");
            }
        }
        assert!(self.memory.contents() == once, "other bits in {n} parts\n{label}");

        let mut width = width % 8;
        let Some(size) = self.bytes(at, width.max(1)) else { return };
        self.memory.restore();
        let ws = self.workspace(size, order);
        let pool = fa_pool {
            struct_size: size_of::<fa_pool>(),
            ctx: ptr::from_mut(&mut width).cast(),
            width: Some(pool_width),
            parallel_for: Some(careless),
        };
        // SAFETY: as above.
        assert_eq!(unsafe { fa_attention_run(at, ws, size, &pool) }, fa_status::FA_OK, "{label}");
        assert!(self.memory.contents() == once, "other bits with a pool of {width}\n{label}");
    }

    /// What `n` parts need, if we have it.
    fn bytes(&self, at: *const fa_attention, n: i32) -> Option<usize> {
        let mut size = 0;
        // SAFETY: the description is what it says.
        assert_eq!(unsafe { fa_attention_workspace(at, n, &mut size) }, fa_status::FA_OK);
        (size <= SCRATCH).then_some(size)
    }

    /// So many bytes, none more at one end, with anything in them.
    fn workspace(&mut self, size: usize, order: i32) -> *mut c_void {
        let at = self.scratch.place(size, order & 4 == 0);
        // SAFETY: our memory.
        unsafe { at.write_bytes(0xff, size) };
        if size == 0 && order & 8 == 0 { ptr::null_mut() } else { at.cast() }
    }
}

/// Puts the structure where nothing is behind it.
pub(crate) fn put(
    description: &mut Guarded,
    a: &fa_attention,
    extra: u8,
    verdict: &mut Verdict,
) -> *const fa_attention {
    let known = size_of::<fa_attention>();
    let size = a.struct_size.clamp(8, description.size());
    let at = description.place(size, true);
    // SAFETY: as many bytes of our memory; a structure is bytes, and those that are copied are
    // there.
    unsafe {
        at.write_bytes(0, size);
        ptr::copy_nonoverlapping(ptr::from_ref(a).cast::<u8>(), at, size.min(known));
        if size > known && extra & 15 == 1 {
            *at.wrapping_add(known + usize::from(extra) * 7919 % (size - known)) = 1;
            verdict.demand(false);
        }
    }
    at.cast()
}

/// A description, for messages.
struct Label<'a>(&'a fa_attention, &'a [fa_quant; 3], &'a [Vec<i32>; LISTED.len()]);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}\n{:?}\n{:?}", self.0, self.1, self.2)
    }
}

type Step = unsafe extern "C" fn(*const fa_attention, *mut c_void, usize, i32, i32) -> fa_status;

extern "C" fn pool_width(ctx: *mut c_void) -> i32 {
    // SAFETY: the number that the pool was made with.
    unsafe { *ctx.cast::<i32>() }
}

/// Leaves one task out, calls the others backwards, and one of them twice.
extern "C" fn careless(
    _: *mut c_void,
    n: usize,
    task: flash_attention::capi::pool::fa_task,
    arg: *mut c_void,
) {
    let Some(task) = task else { return };
    for i in (0..n).rev().filter(|&i| n < 3 || i != 1) {
        // SAFETY: the task and its argument, with a number that it takes.
        unsafe { task(arg, i) };
    }
    if n > 0 {
        // SAFETY: as above.
        unsafe { task(arg, n - 1) };
    }
}

/// Moderate numbers of a type.
pub(crate) fn numbers(random: &mut Random, dtype: i32, is_scaled: bool, to: &mut [u8]) {
    match dtype {
        F32 => to.chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&random.normal().to_ne_bytes())),
        F16 => to
            .chunks_exact_mut(2)
            .for_each(|x| x.copy_from_slice(&half::f16::from_f32(random.normal()).to_ne_bytes())),
        BF16 => to
            .chunks_exact_mut(2)
            .for_each(|x| x.copy_from_slice(&half::bf16::from_f32(random.normal()).to_ne_bytes())),
        I8 | U8 if is_scaled => to.iter_mut().for_each(|x| *x = random.bits() as u8),
        I8 => to.iter_mut().for_each(|x| *x = (random.below(8) as i8 - 4) as u8),
        U8 => to.iter_mut().for_each(|x| *x = random.below(8) as u8),
        // Up to 4.
        F8_E4M3 => to.iter_mut().for_each(|x| *x = random.below(0x49) as u8 | (random.bits() as u8 & 0x80)),
        F8_E5M2 => to.iter_mut().for_each(|x| *x = random.below(0x45) as u8 | (random.bits() as u8 & 0x80)),
        BOOL8 => to.iter_mut().for_each(|x| *x = random.bits() as u8 | 1),
        // Of fractions any bits are one.
        // Blocks may begin at any second byte.
        _ => anything(random, to),
    }
}

fn hide(dtype: i32, x: &mut [u8]) {
    match dtype {
        F32 => x.copy_from_slice(&f32::NEG_INFINITY.to_ne_bytes()),
        F16 => x.copy_from_slice(&half::f16::NEG_INFINITY.to_ne_bytes()),
        BF16 => x.copy_from_slice(&half::bf16::NEG_INFINITY.to_ne_bytes()),
        _ => x[0] = 0,
    }
}
